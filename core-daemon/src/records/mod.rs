//! Records of images, leases, namespaces, containers and sandboxes: validated, written, announced; and what follows from pods.

pub mod containers;
pub mod images;
pub mod leases;
pub mod namespaces;
pub mod pods;
pub mod sandboxes;

pub use containers::Containers;
pub use images::ImageRecords;
pub use leases::Leases;
pub use namespaces::Namespaces;
pub use pods::Pods;
pub use sandboxes::Sandboxes;
