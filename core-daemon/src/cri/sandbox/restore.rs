//! `RestorePod`: a new pod whose containers go on from a checkpoint once they are started.
//!
//! The checkpoint gives processes and changed files, and the request everything else. What the request says of the
//! processes has to be what they were made of: nothing of it would come about. The directory is looked at before anything
//! is made, and what is opened then is what is restored from.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::path::Path;
use std::sync::Arc;

use gantry_proto::gantry::cri::v1::{CheckpointedContainer, PodCheckpoint};
use gantry_proto::runtime::v1;
use nix::fcntl::OFlag;
use prost::Message as _;
use rung_spec::digest::Digest;
use rung_sys::beneath::Root;

use super::check::{self, Namespaces};
use super::checkpoint::{INDEX, VERSION, digest_of, no_options};
use super::run::name;
use crate::blocking::blocking;
use crate::cri::container::{Source, check_config, container_name};
use crate::cri::flights::Stage;
use crate::cri::{Container, Cri, Sandbox};
use crate::error::{Doing as _, Error, Result};

/// Largest index.
const MAX_INDEX: u64 = 16 << 20;

impl Cri {
    pub(in crate::cri) async fn restore_pod(&self, request: v1::RestorePodRequest) -> Result<v1::RestorePodResponse> {
        if !self.config().restore_checkpoints {
            let path = &request.checkpoint_path;
            return Err(Error::precondition(format!("checkpoint_path {path:?}: cri.restore_checkpoints is off")));
        }
        no_options(&request.options)?;
        if !Path::new(&request.checkpoint_path).is_absolute() {
            let path = &request.checkpoint_path;
            return Err(Error::invalid(format!("checkpoint_path: {path:?} is not an absolute path")));
        }
        let config = request.config.as_ref().ok_or_else(|| Error::invalid("config: is required"))?;
        let namespaces = check::config(config)?;
        let settings = self.config();
        let handler = settings.handler(&request.runtime_handler)?;
        if namespaces.user.is_some() || self.granted(handler, &config.annotations)?.users.is_some() {
            return Err(Error::unimplemented("restore a pod with users of its own"));
        }
        let names = names(&request.container_configs)?;
        let reserved = name(check::metadata(config)?);
        // Not what asks for a pod of the same name without a checkpoint.
        let asked = [b"restore ".as_slice(), &request.encode_to_vec()].concat();
        let (cri, held) = (self.clone(), reserved.clone());
        let work = |stage| async move { cri.restore_named(held, request, &namespaces, &stage).await };
        let pod_sandbox_id = self.shared.flights.join(&reserved, &asked, work).await?;
        let containers = self.by_name(&pod_sandbox_id);
        let restored = |name: String| match containers.get(&name) {
            Some(container) => Ok(v1::RestoredContainer { name, container_id: container.id().to_string() }),
            None => Err(Error::internal(format!("container {name}: is gone"))),
        };
        let restored_containers = names.into_iter().map(restored).collect::<Result<_>>()?;
        Ok(v1::RestorePodResponse { pod_sandbox_id, restored_containers })
    }

    async fn restore_named(
        &self,
        name: String,
        request: v1::RestorePodRequest,
        namespaces: &Namespaces,
        stage: &Stage,
    ) -> Result<String> {
        if let Some(there) = self.store().sandboxes().into_iter().find(|sandbox| sandbox.record().name == name) {
            // The answer to an earlier request was lost.
            return match self.is_restored(&there, &request) {
                true => Ok(there.id().to_string()),
                false => Err(Error::precondition(format!("name {name}: is the pod sandbox {}", there.id()))),
            };
        }
        stage.enter("checkpoint")?;
        let (cri, asked, wanted) = (self.clone(), request.clone(), namespaces.clone());
        let path = request.checkpoint_path.clone();
        let sources = blocking(move || cri.fitting(&asked, &wanted)).await.doing(|| format!("checkpoint {path}"))?;
        let pod = v1::RunPodSandboxRequest { config: request.config, runtime_handler: request.runtime_handler };
        let id = self.run_named(name, pod, namespaces.clone(), stage.clone()).await?;
        let sandbox = self.store().sandbox(&id)?;
        let made = self.make_containers(&sandbox, request.container_configs, sources, stage).await;
        if made.is_err()
            && let Err(error) = self.remove_sandbox(&sandbox).await
        {
            // It is there as one that is not ready, for the kubelet to remove.
            tracing::warn!(id, %error, "remove a pod that could not be restored");
        }
        made.doing(|| format!("restore pod from {path}")).map(|()| id)
    }

    async fn make_containers(
        &self,
        sandbox: &Arc<Sandbox>,
        configs: Vec<v1::ContainerConfig>,
        sources: Vec<Source>,
        stage: &Stage,
    ) -> Result<()> {
        for (config, source) in configs.into_iter().zip(sources) {
            let name = container_name(&config.metadata.clone().unwrap_or_default(), sandbox);
            self.make_named(name, sandbox.clone(), config, Some(source), stage).await?;
        }
        Ok(())
    }

    /// A pod that is what the request asks for, and has not gone on yet.
    fn is_restored(&self, sandbox: &Sandbox, request: &v1::RestorePodRequest) -> bool {
        let (record, containers) = (sandbox.record(), self.by_name(sandbox.id().as_str()));
        let waits = |config: &v1::ContainerConfig| {
            let name = config.metadata.as_ref().map_or("", |metadata| metadata.name.as_str());
            containers.get(name).is_some_and(|container| {
                container.record().config.as_ref() == Some(config)
                    && container.state() == v1::ContainerState::ContainerCreated
                    && self.checkpoint_images(container.id().as_str()).is_some()
            })
        };
        record.config == request.config
            && record.runtime_handler == request.runtime_handler
            && sandbox.state() == v1::PodSandboxState::SandboxReady
            && containers.len() == request.container_configs.len()
            && request.container_configs.iter().all(waits)
    }

    fn by_name(&self, sandbox: &str) -> BTreeMap<String, Arc<Container>> {
        let name = |container: &Container| {
            let metadata = container.record().config.as_ref().and_then(|config| config.metadata.clone());
            metadata.unwrap_or_default().name
        };
        self.store().containers_of(sandbox).into_iter().map(|container| (name(&container), container)).collect()
    }

    /// Opens a checkpoint that fits the request: what each of the request's containers goes on from, in their order.
    fn fitting(&self, request: &v1::RestorePodRequest, wanted: &Namespaces) -> Result<Vec<Source>> {
        let root = Root::open(Path::new(&request.checkpoint_path))?;
        let index = read_index(&root).doing(|| INDEX)?;
        let settings = self.config();
        let handler = settings.handler(&request.runtime_handler)?;
        let restorer = self.restorer(handler);
        if index.runtime != restorer {
            return Err(Error::precondition(format!(
                "was made by the runtime {:?}, and is not for {restorer:?}",
                index.runtime
            )));
        }
        let linux = index.config.as_ref().and_then(|config| config.linux.as_ref()?.security_context.as_ref());
        if check::namespaces(linux.and_then(|context| context.namespace_options.as_ref()))? != *wanted {
            let field = "config.linux.security_context.namespace_options";
            return Err(Error::invalid(format!("{field}: are not those of the pod that the checkpoint is of")));
        }
        let mut parts: BTreeMap<&str, &CheckpointedContainer> = BTreeMap::new();
        for part in &index.containers {
            let metadata = part.config.as_ref().and_then(|config| config.metadata.as_ref());
            let metadata = metadata.ok_or_else(|| Error::invalid("has a container without a name")).doing(|| INDEX)?;
            parts.insert(&metadata.name, part);
        }
        let mut sources = Vec::with_capacity(request.container_configs.len());
        for (number, config) in request.container_configs.iter().enumerate() {
            let field = format!("container_configs[{number}]");
            let name = config.metadata.as_ref().map_or("", |metadata| metadata.name.as_str());
            let part = parts.remove(name);
            let part =
                part.ok_or_else(|| Error::invalid(format!("{field}: the checkpoint has no container {name}")))?;
            check_process(&field, config, &part.config.clone().unwrap_or_default())?;
            let image = config.image.clone().unwrap_or_default().image;
            if self.find_image(&image).doing(|| format!("{field}.image"))?.config_digest.as_str() != part.image_id {
                let was = &part.image_id;
                return Err(Error::invalid(format!("{field}.image: {image} is not {was}, which the checkpoint is of")));
            }
            let file = open_archive(&root, part).doing(|| format!("container {name}: archive {}", part.archive))?;
            sources.push(Source::Opened { file, image_id: part.image_id.clone() });
        }
        match parts.keys().next() {
            Some(name) => Err(Error::invalid(format!("container_configs: lacks {name}, which the checkpoint has"))),
            None => Ok(sources),
        }
    }
}

/// The names of the containers, each of which is there once.
fn names(configs: &[v1::ContainerConfig]) -> Result<Vec<String>> {
    if configs.is_empty() {
        return Err(Error::invalid("container_configs: has none"));
    }
    let mut names = Vec::with_capacity(configs.len());
    for (number, config) in configs.iter().enumerate() {
        let field = format!("container_configs[{number}]");
        let name = &check_config(&field, config)?.name;
        if names.contains(name) {
            return Err(Error::invalid(format!("{field}.metadata.name: {name} is there twice")));
        }
        names.push(name.clone());
    }
    Ok(names)
}

/// Refuses a configuration that speaks of other processes than those of the checkpoint.
fn check_process(field: &str, wanted: &v1::ContainerConfig, was: &v1::ContainerConfig) -> Result<()> {
    fn envs(config: &v1::ContainerConfig) -> BTreeMap<&str, &[u8]> {
        config.envs.iter().map(|one| (one.key.as_str(), one.value.as_slice())).collect()
    }
    let same = [
        ("command", wanted.command == was.command),
        ("args", wanted.args == was.args),
        ("working_dir", wanted.working_dir == was.working_dir),
        ("envs", envs(wanted) == envs(was)),
        ("tty", wanted.tty == was.tty),
        ("stdin", wanted.stdin == was.stdin),
        ("linux.security_context", credentials(wanted) == credentials(was)),
    ];
    match same.iter().find(|(_, same)| !same) {
        Some((name, _)) => Err(Error::invalid(format!("{field}.{name}: is not what the checkpoint was made of"))),
        None => Ok(()),
    }
}

/// What of a security context is the processes' own: not which other container they see, and not their labels, which are
/// the pod's.
fn credentials(config: &v1::ContainerConfig) -> v1::LinuxContainerSecurityContext {
    let context = config.linux.as_ref().and_then(|linux| linux.security_context.clone());
    let mut context = context.unwrap_or_default();
    context.selinux_options = None;
    context.namespace_options.get_or_insert_default().target_id.clear();
    context
}

/// A file of the checkpoint: nothing that leads elsewhere, and nothing that never ends.
fn open(root: &Root, name: &str) -> Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = File::from(root.resolve(Path::new(name), flags)?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(Error::invalid("is not a plain file")) }
}

fn read_index(root: &Root) -> Result<PodCheckpoint> {
    let mut bytes = Vec::new();
    open(root, INDEX)?.take(MAX_INDEX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_INDEX {
        return Err(Error::invalid(format!("is larger than {MAX_INDEX} bytes")));
    }
    let index = PodCheckpoint::decode(bytes.as_slice()).map_err(|error| Error::invalid(error.to_string()))?;
    match index.version {
        VERSION => Ok(index),
        other => Err(Error::invalid(format!("has version {other}, and only {VERSION} is known"))),
    }
}

fn open_archive(root: &Root, part: &CheckpointedContainer) -> Result<File> {
    let digest = Digest::parse(&part.digest).map_err(|error| Error::invalid(error.to_string()))?;
    let mut file = open(root, &part.archive)?;
    if digest_of(&file)? != digest {
        return Err(Error::invalid(format!("is not {digest}; it was changed")));
    }
    file.rewind()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> v1::ContainerConfig {
        let env = |key: &str| v1::KeyValue { key: key.into(), value: "x".into() };
        v1::ContainerConfig { command: vec!["sh".into()], envs: vec![env("A"), env("B")], ..Default::default() }
    }

    #[test]
    fn a_configuration_of_other_processes_is_refused() {
        let mut same = config();
        same.envs.reverse();
        same.labels.insert("new".into(), "label".into());
        same.log_path = "elsewhere.log".into();
        check_process("c", &same, &config()).expect("only the environment's order differs");
        let mut others = [config(), config(), config(), config()];
        others[0].command.push("-c".into());
        others[1].envs.pop();
        others[2].tty = true;
        let context = v1::LinuxContainerSecurityContext { privileged: true, ..Default::default() };
        others[3].linux = Some(v1::LinuxContainerConfig { security_context: Some(context), ..Default::default() });
        for (other, field) in others.iter().zip(["command", "envs", "tty", "linux.security_context"]) {
            let refused = check_process("c", other, &config()).expect_err(field);
            assert!(refused.to_string().starts_with(&format!("c.{field}:")), "{refused}");
        }
    }

    #[test]
    fn nothing_but_files_is_read() {
        let dir = tempfile::tempdir().expect("directory");
        let root = Root::open(dir.path()).expect("root");
        nix::unistd::mkfifo(&dir.path().join(INDEX), nix::sys::stat::Mode::S_IRUSR).expect("pipe");
        assert!(read_index(&root).expect_err("a pipe").to_string().contains("plain file"));
        std::fs::remove_file(dir.path().join(INDEX)).expect("remove");
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join(INDEX)).expect("link");
        assert!(read_index(&root).is_err());
        std::fs::remove_file(dir.path().join(INDEX)).expect("remove");
        let index = PodCheckpoint { version: 2, ..Default::default() };
        std::fs::write(dir.path().join(INDEX), index.encode_to_vec()).expect("write");
        assert!(read_index(&root).expect_err("version").to_string().contains("version 2"));
    }
}
