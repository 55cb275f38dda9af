//! Directories beside the root file system: volumes that the image declares, and images mounted as volumes.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use gantry_proto::runtime::v1;
use nix::fcntl::OFlag;
use rung_sys::beneath::{self, Root};
use rung_sys::mount;

use super::artifact;
use super::create::{ready, snapshot_labels};
use super::tree;
use crate::blocking::blocking;
use crate::cri::sandbox::check::Namespaces;
use crate::cri::spec::Volume;
use crate::cri::{Cri, Sandbox};
use crate::error::{Doing as _, Error, Kind, Result};
use crate::image::Resolved;
use crate::labels::{GC_REF_CONTENT, Labels};
use crate::snapshots::{Mount as SnapshotMount, Snapshotter};

impl Cri {
    /// What outlives a reboot of a container, besides its record and root file system.
    pub(in crate::cri) fn container_dir(&self, id: &str) -> PathBuf {
        self.containers_dir().join(id)
    }

    /// Where all containers have that.
    pub(in crate::cri) fn containers_dir(&self) -> PathBuf {
        self.parts().config.root.join("cri/containers")
    }

    pub(in crate::cri) fn remove_container_dir(&self, id: &str) -> Result<()> {
        let dir = self.container_dir(id);
        match beneath::remove(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).doing(|| format!("remove {}", dir.display()))
            }
            _ => Ok(()),
        }
    }

    /// Volumes that the image declares and the kubelet has nothing for, with what the image has there.
    pub(super) fn image_volumes(
        &self,
        id: &str,
        image: &Resolved,
        config: &v1::ContainerConfig,
        rootfs: &[SnapshotMount],
        namespaces: &Namespaces,
    ) -> Result<Vec<Volume>> {
        let clean = |path: &str| Path::new("/").join(beneath::lexical(Path::new(path)));
        let taken: Vec<PathBuf> = config.mounts.iter().map(|mount| clean(&mount.container_path)).collect();
        let mut volumes = Vec::new();
        if self.config().ignore_image_defined_volumes {
            return Ok(volumes);
        }
        for (number, declared) in image.config.config.volumes.keys().enumerate() {
            let destination = clean(declared);
            if taken.contains(&destination) || destination == Path::new("/") {
                continue;
            }
            let source = self.container_dir(id).join("volumes").join(number.to_string());
            let doing = || format!("volume {declared:?} of the image");
            std::fs::DirBuilder::new().recursive(true).mode(0o711).create(&source).doing(doing)?;
            // Whatever the daemon's mask; the image's own directory decides where there is one.
            std::fs::set_permissions(&source, std::fs::Permissions::from_mode(0o755)).doing(doing)?;
            tree::copy_from_layers(rootfs, &destination, &source).doing(doing)?;
            volumes.push(Volume {
                source,
                destination: destination.to_string_lossy().into_owned(),
                read_only: false,
                map_ids: namespaces.user.is_some(),
            });
        }
        Ok(volumes)
    }

    /// Mounts the images that the kubelet wants as volumes, each once for a pod.
    pub(super) async fn image_mounts(
        &self,
        sandbox: &Sandbox,
        config: &v1::ContainerConfig,
        namespaces: &Namespaces,
    ) -> Result<Vec<Volume>> {
        let mut volumes = Vec::new();
        for wanted in config.mounts.iter().filter(|mount| mount.image.is_some()) {
            let (cri, pod, wanted) = (self.clone(), sandbox.id().to_string(), wanted.clone());
            let namespaces = namespaces.clone();
            // Nobody else mounts it, and nobody unmounts it while it is looked at.
            let _turn = sandbox.turn.lock().await;
            ready(sandbox)?;
            let handler = sandbox.record().runtime_handler.clone();
            volumes.push(blocking(move || cri.image_mount(&pod, &handler, &wanted, &namespaces)).await?);
        }
        Ok(volumes)
    }

    fn image_mount(&self, pod: &str, handler: &str, wanted: &v1::Mount, namespaces: &Namespaces) -> Result<Volume> {
        // Kubelets look for the first word.
        let mounted = self.image_mount_now(pod, handler, wanted, namespaces);
        let source = mounted.doing(|| "ImageVolumeMountFailed")?;
        let destination = wanted.container_path.clone();
        // Its layers are translated already, as the kernel can do it only there.
        Ok(Volume { source, destination, read_only: true, map_ids: false })
    }

    fn image_mount_now(&self, pod: &str, handler: &str, wanted: &v1::Mount, users: &Namespaces) -> Result<PathBuf> {
        let field = "config.mounts.image";
        if !wanted.host_path.is_empty() {
            return Err(Error::invalid(format!("{field}: has a host_path too")));
        }
        if !wanted.readonly {
            return Err(Error::invalid(format!("{field}: {}: readonly is required", wanted.container_path)));
        }
        let text = wanted.image.as_ref().map(|image| image.image.clone()).unwrap_or_default();
        if text.is_empty() {
            return Err(Error::invalid(format!("{field}.image: is required")));
        }
        let image = self.find_image(&text).doing(|| field)?;
        let name = image.config_digest.as_str().replace(':', "-");
        let target = self.places(pod).images().join(&name);
        if image.manifest.is_artifact() {
            let content = &self.parts().images.content;
            artifact::mount(content, self.context(), &image, &target).doing(|| format!("{field}: {text}"))?;
        } else if !is_mounted(&target)? {
            let snapshotter = self.snapshotter_of_pod(handler)?;
            self.mount_image(&image_key(pod, &name), snapshotter.as_ref(), &image, &target, users)?;
        }
        sub_path(&target, &wanted.image_sub_path)
    }

    fn mount_image(
        &self,
        key: &str,
        snapshotter: &dyn Snapshotter,
        image: &Resolved,
        target: &Path,
        namespaces: &Namespaces,
    ) -> Result<()> {
        let doing = || format!("mount image {}", image.name);
        std::fs::DirBuilder::new().recursive(true).mode(0o711).create(target).doing(doing)?;
        let Some(chain) = &image.chain_id else { return Ok(()) };
        let mounts = match snapshotter.view(self.context(), key, chain.as_str(), snapshot_labels(namespaces)) {
            // It was mounted before the machine was started anew.
            Err(error) if error.kind() == Kind::AlreadyExists => snapshotter.mounts(self.context(), key),
            viewed => viewed,
        };
        let tree = tree::mount_view(&mounts.doing(doing)?).doing(doing)?;
        let place = Root::open(target).doing(doing)?;
        mount::attach(tree.as_fd(), place.as_fd()).map_err(std::io::Error::from).doing(doing)
    }

    /// Lets go of the images that a pod had mounted, once they are unmounted.
    pub(in crate::cri) fn release_images(&self, pod: &str, handler: &str) -> Result<()> {
        let images = std::fs::read_dir(self.places(pod).images()).into_iter().flatten();
        let snapshotter = self.snapshotter_of_pod(handler)?;
        for name in images.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
            match snapshotter.remove(self.context(), &image_key(pod, &name)) {
                Err(error) if error.kind() != Kind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// What keeps the blobs of artifacts that are volumes, as labels of the container: there is no snapshot of them.
    pub(super) fn artifact_labels(&self, mounts: &[v1::Mount]) -> Result<Labels> {
        let mut labels = Labels::new();
        for image in mounts.iter().filter_map(|mount| mount.image.as_ref()) {
            let image = self.find_image(&image.image)?;
            if image.manifest.is_artifact() {
                let label = format!("{GC_REF_CONTENT}.artifact.{}", labels.len());
                labels.insert(label, image.manifest_descriptor.digest.to_string());
            }
        }
        Ok(labels)
    }

    /// The kubelet's mounts, as the status reports them.
    pub(super) fn reported_mounts(&self, config: &v1::ContainerConfig) -> Result<Vec<v1::Mount>> {
        let report = |mount: &v1::Mount| {
            let mut reported = mount.clone();
            if let Some(image) = &mut reported.image {
                image.image_ref = self.find_image(&image.image)?.config_digest.to_string();
                // What the digest is of, in the field that older kubelets look at.
                image.user_specified_image.clone_from(&image.image);
                image.image.clone_from(&image.image_ref);
            }
            Ok(reported)
        };
        config.mounts.iter().map(report).collect()
    }
}

fn image_key(pod: &str, name: &str) -> String {
    format!("{pod}-{name}")
}

/// Whether something is mounted on a directory.
pub(super) fn is_mounted(path: &Path) -> Result<bool> {
    let parent = path.parent().map(mount_of).transpose()?.flatten();
    Ok(mount_of(path)?.is_some_and(|own| Some(own) != parent))
}

/// The kernel's number of the mount that a directory is on; none where there is nothing.
fn mount_of(path: &Path) -> Result<Option<u64>> {
    let doing = || format!("read {}", path.display());
    let opened = match std::fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_PATH).open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        opened => opened.doing(doing)?,
    };
    mount::number_of(opened.as_fd()).map(Some).map_err(std::io::Error::from).doing(doing)
}

/// A directory of an image; links in it lead nowhere but into it.
fn sub_path(image: &Path, sub: &str) -> Result<PathBuf> {
    if sub.is_empty() {
        return Ok(image.to_owned());
    }
    let field = "config.mounts.image_sub_path";
    let plain = |part| matches!(part, std::path::Component::Normal(_) | std::path::Component::CurDir);
    if !Path::new(sub).components().all(plain) {
        return Err(Error::invalid(format!("{field}: {sub:?}: leads out of the image")));
    }
    let doing = || format!("{field}: {sub:?}");
    let root = Root::open(image).doing(doing)?;
    let opened = match root.resolve(Path::new(sub), OFlag::O_PATH | OFlag::O_DIRECTORY) {
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
            return Err(Error::invalid(format!("{field}: {sub:?}: not a directory")));
        }
        opened => opened.doing(doing)?,
    };
    std::fs::read_link(format!("/proc/self/fd/{}", opened.as_raw_fd())).doing(doing)
}
