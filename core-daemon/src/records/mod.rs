//! Records of images, leases, namespaces and containers: validated, written, announced.

pub mod containers;
pub mod images;
pub mod leases;
pub mod namespaces;

pub use containers::Containers;
pub use images::ImageRecords;
pub use leases::Leases;
pub use namespaces::Namespaces;
