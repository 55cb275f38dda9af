//! Networks of containers: namespaces that live without a process, and the plugins that connect them.

pub mod cni;
pub mod namespaces;
