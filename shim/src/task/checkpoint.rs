//! Checkpoint: the runtime drives criu.

use std::ffi::OsString;

use gantry_proto::any;
use gantry_proto::containerd::events::TaskCheckpointed;
use gantry_proto::containerd::runc::v1::CheckpointOptions;
use gantry_proto::containerd::task::v3::CheckpointTaskRequest;

use crate::arguments;
use crate::rung::{Ends, flag};
use crate::task::Container;
use crate::task::state::State;
use crate::{Doing as _, Error, Result};

impl Container {
    /// Writes the container's processes to a directory.
    ///
    /// # Errors
    /// Where it does not run, and what the runtime says; that names criu's log.
    pub async fn checkpoint(&mut self, request: &CheckpointTaskRequest) -> Result<()> {
        self.init.state.require(&[State::Running, State::Paused], "checkpoint")?;
        let options: CheckpointOptions = match &request.options {
            Some(options) if !options.type_url.is_empty() => {
                any::unpack(options).map_err(|error| Error::invalid(format!("options: {error}")))?
            }
            _ => CheckpointOptions::default(),
        };
        let first = |candidates: [&String; 3]| candidates.into_iter().find(|path| !path.is_empty()).cloned();
        let image = first([&options.image_path, &request.path, &self.options.criu_image_path]);
        let image = image.ok_or_else(|| Error::invalid("path: the checkpoint's directory is missing"))?;
        let work = first([&options.work_path, &self.options.criu_work_path, &String::new()]);
        let work = work.map_or_else(|| self.bundle.join("criu"), Into::into);
        std::fs::create_dir_all(&work).doing(|| format!("make {} for criu's log", work.display()))?;
        let mut arguments = arguments!["checkpoint", "--image-path", &image, "--work-path", &work];
        flag(&mut arguments, !options.exit, "--leave-running");
        flag(&mut arguments, options.open_tcp, "--tcp-established");
        flag(&mut arguments, options.external_unix_sockets, "--ext-unix-sk");
        flag(&mut arguments, options.terminal, "--shell-job");
        flag(&mut arguments, options.file_locks, "--file-locks");
        for namespace in &options.empty_namespaces {
            arguments.extend(arguments!["--empty-ns", namespace]);
        }
        if !options.cgroups_mode.is_empty() {
            arguments.extend(arguments!["--manage-cgroups-mode", &options.cgroups_mode]);
        }
        if !options.parent_path.is_empty() {
            arguments.extend(arguments!["--parent-path", &options.parent_path]);
        }
        arguments.push(OsString::from(&self.id));
        self.run(&arguments, Ends::default()).await.map_err(|error| {
            error.context(format_args!("checkpoint container {} (criu's log is in {})", self.id, work.display()))
        })?;
        let event = TaskCheckpointed { container_id: self.id.clone(), checkpoint: image };
        self.shim.events.publish("/tasks/checkpointed", &event);
        Ok(())
    }
}
