//! The file systems every container has besides its root.

use std::path::PathBuf;

use oci_spec::runtime::Mount;

/// A default mount: destination, type, source, options.
pub type Row = (&'static str, &'static str, &'static str, &'static [&'static str]);

/// In the order they are mounted.
pub const DEFAULT: &[Row] = &[
    ("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
    ("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
    ("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
    ("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ("/sys/fs/cgroup", "cgroup", "cgroup", &["ro", "nosuid", "noexec", "nodev"]),
    ("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"]),
];

/// The default mounts; a privileged container may write to `/sys` and its cgroup.
pub fn default(privileged: bool) -> Vec<Mount> {
    DEFAULT
        .iter()
        .map(|(destination, kind, source, options)| {
            let kept = options.iter().filter(|option| !(privileged && **option == "ro"));
            mount(destination, kind, source, kept.map(|option| (*option).to_owned()).collect())
        })
        .collect()
}

/// A mount of the runtime configuration.
pub fn mount(destination: &str, kind: &str, source: &str, options: Vec<String>) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(PathBuf::from(destination))
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(PathBuf::from(source)))
        .set_options(Some(options));
    mount
}
