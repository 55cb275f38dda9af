//! The container that people get who ask for nothing special, as data: docker's default profile.

pub mod capabilities;
pub mod devices;
pub mod mounts;
pub mod paths;
pub mod seccomp;

/// The runtime specification version written into configurations. Every runtime since 2017 accepts 1.x.
pub const OCI_VERSION: &str = "1.2.0";

/// Search path of a process whose image sets none.
pub const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Open files a process may have: soft and hard. A low soft limit spares programs that walk every possible descriptor;
/// those that need more raise it themselves.
pub const NOFILE: (u64, u64) = (1024, 524_288);

/// Kernel settings of a container that has its network to itself: every port is its own to bind, and `ping` needs no
/// privilege.
pub const NETWORK_SYSCTLS: &[(&str, &str)] =
    &[("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];
