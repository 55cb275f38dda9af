//! Where a pod has its files and namespaces. All of it ends with the machine's run, as pods do.
//!
//! ```text
//! <state>/cri/pods/<id>/hosts, hostname, resolv.conf, localtime   files that containers see
//!                      /shm                            shared memory of the containers
//!                      /images/<number>                images that are mounted as volumes
//!                      /ns/{ipc,uts,user}              namespaces, bound
//! <netns_dir>/cri-<id>                                 the network namespace, bound
//! ```

use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use gantry_proto::runtime::v1;
use rung_sys::atomic_file;
use rung_sys::mount;
use rung_sys::namespace::Namespace;

use super::localtime;
use crate::cri::Cri;
use crate::error::{Doing as _, Result};
use crate::net::namespaces;

/// Begin of a network namespace's file name.
const NETNS: &str = "cri-";
/// Bytes of shared memory of a pod that does not say.
const SHM_SIZE: u64 = 64 << 20;

/// The paths of one pod.
#[derive(Debug, Clone)]
pub(in crate::cri) struct Places {
    dir: PathBuf,
    netns: PathBuf,
}

impl Cri {
    /// Where the pod `id` has its files.
    pub(in crate::cri) fn places(&self, id: &str) -> Places {
        let netns = self.config().cni.netns_dir.join(format!("{NETNS}{id}"));
        Places { dir: self.pods_dir().join(id), netns }
    }

    /// Where all pods have their files.
    pub(in crate::cri) fn pods_dir(&self) -> PathBuf {
        self.parts().config.state.join("cri/pods")
    }
}

impl Places {
    pub(in crate::cri) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(in crate::cri) fn hosts(&self) -> PathBuf {
        self.dir.join("hosts")
    }

    pub(in crate::cri) fn hostname(&self) -> PathBuf {
        self.dir.join("hostname")
    }

    pub(in crate::cri) fn resolv_conf(&self) -> PathBuf {
        self.dir.join("resolv.conf")
    }

    /// The time zone, where the configuration names one.
    pub(in crate::cri) fn localtime(&self) -> PathBuf {
        self.dir.join("localtime")
    }

    pub(in crate::cri) fn shm(&self) -> PathBuf {
        self.dir.join("shm")
    }

    pub(in crate::cri) fn images(&self) -> PathBuf {
        self.dir.join("images")
    }

    /// The file a namespace is bound to.
    pub(in crate::cri) fn namespace(&self, kind: Namespace) -> PathBuf {
        match kind {
            Namespace::Network => self.netns.clone(),
            kind => self.dir.join("ns").join(kind.proc_name()),
        }
    }

    /// Makes the directory and what containers see of it.
    pub(super) fn make(&self, config: &v1::PodSandboxConfig, hostname: &str) -> Result<()> {
        let doing = || format!("make {}", self.dir.display());
        std::fs::DirBuilder::new().recursive(true).mode(0o711).create(&self.dir).doing(doing)?;
        for dir in [&self.dir, &self.dir.join("ns")] {
            std::fs::DirBuilder::new().recursive(true).mode(0o711).create(dir).doing(doing)?;
        }
        write(&self.hostname(), format!("{hostname}\n").as_bytes())?;
        write(&self.hosts(), &read_host("/etc/hosts")?)?;
        let resolv_conf = match &config.dns_config {
            Some(dns) => render_dns(dns).into_bytes(),
            None => read_host("/etc/resolv.conf")?,
        };
        write(&self.resolv_conf(), &resolv_conf)
    }

    /// Makes the file with the time zone that the configuration names, if it names one and there is one.
    pub(super) fn make_localtime(&self, zone: &str) -> Result<()> {
        match localtime::read(zone)? {
            Some(rules) => write(&self.localtime(), &rules),
            None => Ok(()),
        }
    }

    /// Makes the shared memory, of so many bytes where a pod says how many; `owner` is who root of the pod is outside of it.
    pub(super) fn make_shm(&self, owner: Option<(u32, u32)>, size: Option<u64>) -> Result<()> {
        let path = self.shm();
        let doing = || format!("mount {}", path.display());
        std::fs::create_dir(&path).doing(doing)?;
        let mut data = format!("mode=1777,size={}", size.unwrap_or(SHM_SIZE));
        if let Some((uid, gid)) = owner {
            data.push_str(&format!(",uid={uid},gid={gid}"));
        }
        let flags = nix::mount::MsFlags::MS_NOSUID | nix::mount::MsFlags::MS_NODEV | nix::mount::MsFlags::MS_NOEXEC;
        let mounted = mount::mount(Some(Path::new("shm")), &path, Some("tmpfs"), flags.bits(), Some(&data));
        mounted.map_err(std::io::Error::from).doing(doing)
    }

    /// Takes everything down. May be repeated.
    pub(in crate::cri) fn unmake(&self) -> Result<()> {
        for kind in [Namespace::Network, Namespace::Ipc, Namespace::Uts, Namespace::User] {
            namespaces::remove(&self.namespace(kind))?;
        }
        let images = std::fs::read_dir(self.images()).into_iter().flatten();
        let images: Vec<PathBuf> = images.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
        for path in images.into_iter().chain([self.shm()]) {
            unmount(&path)?;
        }
        Ok(())
    }

    /// Removes the files, which nothing may be mounted among any more.
    pub(in crate::cri) fn remove(&self) -> Result<()> {
        match rung_sys::beneath::remove(&self.dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).doing(|| format!("remove {}", self.dir.display()))
            }
            _ => Ok(()),
        }
    }
}

/// Unmounts what may not be mounted.
pub(in crate::cri) fn unmount(path: &Path) -> Result<()> {
    // One mount may hide another.
    loop {
        match mount::detach(path).map_err(std::io::Error::from) {
            Err(error) if matches!(error.raw_os_error(), Some(nix::libc::EINVAL | nix::libc::ENOENT)) => return Ok(()),
            detached => detached.doing(|| format!("unmount {}", path.display()))?,
        }
    }
}

fn write(path: &Path, text: &[u8]) -> Result<()> {
    let written = atomic_file::write_volatile(path, text, 0o644).map_err(std::io::Error::from);
    // Whatever the daemon's mask: containers of any user read it.
    let readable = || std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644));
    written.and_then(|()| readable()).doing(|| format!("write {}", path.display()))
}

/// A file of the host; empty where it has none.
fn read_host(path: &str) -> Result<Vec<u8>> {
    match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read.doing(|| format!("read {path}")),
    }
}

fn render_dns(dns: &v1::DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf() {
        let dns = v1::DnsConfig {
            servers: vec!["10.0.0.10".into(), "fd00::a".into()],
            searches: vec!["a.svc".into(), "svc".into()],
            options: vec!["ndots:5".into()],
        };
        assert_eq!(render_dns(&dns), "search a.svc svc\nnameserver 10.0.0.10\nnameserver fd00::a\noptions ndots:5\n");
        assert_eq!(render_dns(&v1::DnsConfig::default()), "");
    }
}
