//! Records of images, leases, namespaces, containers and sandboxes: validated, written, announced.

pub mod containers;
pub mod images;
pub mod leases;
pub mod namespaces;
pub mod sandboxes;

pub use containers::Containers;
pub use images::ImageRecords;
pub use leases::Leases;
pub use namespaces::Namespaces;
pub use sandboxes::Sandboxes;
