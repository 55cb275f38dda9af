//! The root file system of a container, where more is needed for it than the shim can do.

use std::path::Path;

use gantry_proto::containerd::types::Mount;
use gantry_proto::namespace::Namespace;

use super::{Bundle, Tasks};
use crate::blocking::blocking;
use crate::context::Context;
use crate::error::{Kind, Result};
use crate::id::ContainerId;
use crate::mounts::{OF_CONTAINER, Wish};
use crate::shims::is_ours;
use crate::snapshots::InUse;

/// The annotation in which a shim names the types of mounts that it makes itself.
const ALLOWED: &str = "containerd.io/runtime-allow-mounts";

impl Tasks {
    /// Makes those of the mounts that the shim cannot make, and answers with the others.
    pub(super) async fn activate(
        &self,
        context: &Context,
        id: &ContainerId,
        program: &Path,
        rootfs: Vec<Mount>,
    ) -> Result<Vec<Mount>> {
        // Every shim makes these, and most root file systems consist of nothing else.
        let is_plain = |mount: &Mount| matches!(mount.r#type.as_str(), "bind" | "overlay");
        if rootfs.iter().all(is_plain) {
            return Ok(rootfs);
        }
        let allowed = self.allowed_mounts(program).await;
        let labels = [(OF_CONTAINER.to_owned(), id.to_string())].into();
        let wish = Wish { name: id.to_string(), mounts: rootfs.clone(), labels, temporary: false, allowed };
        let (mounts, context, id) = (self.parts().mounts.clone(), context.clone(), id.clone());
        blocking(move || match mounts.activate(&context, wish) {
            Ok(info) => Ok(info.system),
            Err(error) if error.kind() == Kind::Unimplemented => Ok(rootfs),
            // Those of the container's last task.
            Err(error) if error.kind() == Kind::AlreadyExists => {
                Ok(mounts.info(&context.namespace, id.as_str())?.system)
            }
            Err(error) => Err(error),
        })
        .await
    }

    /// Keeps a task's root file system from being collected, even if somebody deletes the container's record.
    pub(super) fn rootfs_in_use(&self, namespace: &Namespace, id: &ContainerId, bundle: &Bundle) -> Option<InUse> {
        let (snapshotter, key) = bundle.rootfs().or_else(|| {
            let container = self.parts().containers.get(namespace, id).ok()?;
            (!container.snapshot_key.is_empty()).then_some((container.snapshotter, container.snapshot_key))
        })?;
        Some(self.parts().snapshots.in_use(namespace, &snapshotter, &key))
    }

    async fn allowed_mounts(&self, program: &Path) -> Vec<String> {
        if is_ours(program) {
            return vec!["erofs".to_owned()];
        }
        match self.launcher().info(program, None).await {
            Ok(info) => {
                let given = info.annotations.get(ALLOWED).map(String::as_str).unwrap_or_default();
                given.split(',').filter(|kind| !kind.is_empty()).map(str::to_owned).collect()
            }
            Err(error) => {
                tracing::warn!(program = %program.display(), %error, "ask which mounts a shim makes");
                Vec::new()
            }
        }
    }

    /// Takes down what [`Tasks::activate`] made.
    pub(super) async fn deactivate(&self, namespace: &Namespace, id: &ContainerId) {
        if !self.parts().mounts.holds(namespace, id.as_str()) {
            return;
        }
        let (mounts, namespace, id) = (self.parts().mounts.clone(), namespace.clone(), id.clone());
        let work = move || match mounts.deactivate(&namespace, id.as_str()) {
            Err(error) if error.kind() != Kind::NotFound => {
                tracing::warn!(%namespace, %id, %error, "take the root file system's mounts down");
                Ok(())
            }
            _ => Ok(()),
        };
        let _: Result<()> = blocking(work).await;
    }
}
