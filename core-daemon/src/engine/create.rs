//! Making a container: name, image, specification, snapshot, record.
//!
//! Whatever was made before a step that fails is undone. The record comes last, so a container that is there is whole.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use gantry_proto::any;
use gantry_proto::containerd::services::containers::v1::{Container, container};
use gantry_proto::gantry::engine::v1 as api;
use oci_spec::runtime::{Capabilities, Spec};
use rung_spec::builder::{self, Extras, Options};
use rung_spec::platform::Platform;
use rung_spec::reference::Reference;
use rung_spec::user::User;

use super::etc::Etc;
use super::health::Check;
use super::record::{Limits, Log, Record};
use super::restart::Policy;
use super::{Engine, binds, events, extras, wishes};
use crate::blocking::blocking;
use crate::context::Context;
use crate::error::{Doing, Error, Kind, Result};
use crate::failpoint;
use crate::id::{self, ContainerId};
use crate::image::{Access, Choice, Credentials, Progress, PullOptions, Resolved, users};
use crate::labels::{GC_ROOT, Labels, SHORT_LIVED};
use crate::signals;
use crate::snapshots::Mount;
use crate::tasks::Begun;

/// A container that was just made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// Its id.
    pub id: ContainerId,
    /// Its name.
    pub name: String,
}

/// What this machine can give to containers, looked at once.
pub(super) struct Host {
    pub(super) capabilities: Option<Capabilities>,
    pub(super) nofile: Option<u64>,
}

/// A container that is about to be recorded.
struct Draft {
    spec: Vec<u8>,
    record: Record,
}

impl Engine {
    /// Makes a container, pulling its image first where the request says so, unless the client is `gone` before that
    /// is done.
    ///
    /// # Errors
    /// Names the wish that cannot be met; nothing is left behind.
    pub async fn create(
        &self,
        context: &Context,
        request: api::CreateRequest,
        progress: Arc<dyn Progress>,
        gone: impl Future<Output = ()>,
    ) -> Result<Created> {
        self.create_perhaps_begun(context, request, progress, gone, false).await.map(|(created, _)| created)
    }

    /// As [`Engine::create`]; its task is `begun` where it is to be started at once.
    ///
    /// # Errors
    /// As [`Engine::create`].
    pub(super) async fn create_perhaps_begun(
        &self,
        context: &Context,
        request: api::CreateRequest,
        progress: Arc<dyn Progress>,
        gone: impl Future<Output = ()>,
        begun: bool,
    ) -> Result<(Created, Option<Begun>)> {
        if Policy::parse(&request.restart)? != Policy::No && request.auto_remove {
            return Err(Error::invalid(
                "a container that is removed at its end cannot be restarted: leave out one of the two",
            ));
        }
        let id = ContainerId::parse(&id::random::<32>()?)?;
        let image = tokio::select! {
            image = self.image(context, &request, progress) => image?,
            () = gone => return Err(super::run::gone()),
        };
        image.check_root()?;
        let (engine, context) = (self.clone(), context.clone());
        // The rest is disk work, and not to be left half-way by a client that goes away.
        blocking(move || engine.create_now(&context, &id, request, &image, begun)).await
    }

    fn create_now(
        &self,
        context: &Context,
        id: &ContainerId,
        mut request: api::CreateRequest,
        image: &Resolved,
        begun: bool,
    ) -> Result<(Created, Option<Begun>)> {
        self.take_over_binds(context, &mut request)?;
        self.free_if_gone(&context.namespace, &request.name);
        let reserved = self.shared.names.reserve(&context.namespace, id, &request.name)?;
        let runtime = match request.runtime.as_str() {
            "" => self.parts().config.runtime.default.clone(),
            name => name.to_owned(),
        };
        // Fails here, and not only at the start, if the runtime is not installed.
        self.parts().tasks.program(&runtime)?;
        let snapshotter = self.parts().snapshotters.get("")?;
        let parent = image.chain_id.as_ref().map_or("", |chain| chain.as_str());
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut labels =
            Labels::from([(GC_ROOT.to_owned(), since.to_string()), (OURS.to_owned(), String::from("yes"))]);
        if request.auto_remove {
            labels.insert(SHORT_LIVED.to_owned(), String::from("yes"));
        }
        let mounts = snapshotter
            .prepare(context, id.as_str(), parent, labels)
            .doing(|| format!("root file system of image {}", image.name))?;
        failpoint::hit("engine.snapshot");
        let made = self.draft(context, id, &request, image, &mounts).and_then(|mut draft| {
            reserved.name().clone_into(&mut draft.record.name);
            let container = self.container(id, &request, image, &runtime, draft)?;
            let begun = if begun { Some(self.parts().tasks.begin(&context.namespace, &container)?) } else { None };
            self.parts().containers.create(&context.namespace, container)?;
            Ok(begun)
        });
        let begun = match made {
            Ok(begun) => begun,
            Err(error) => {
                if let Err(left) = snapshotter.remove(context, id.as_str()) {
                    tracing::warn!(%id, error = %left, "remove the snapshot of a container that could not be made");
                }
                return Err(error);
            }
        };
        failpoint::hit("engine.record");
        let name = reserved.name().to_owned();
        reserved.keep();
        let said = events::described(&request.labels, &name, &request.image);
        self.shared.journal.container(&context.namespace, id, "create", said);
        Ok((Created { id: id.clone(), name }, begun))
    }

    /// The image, pulled if the request wants that.
    async fn image(
        &self,
        context: &Context,
        request: &api::CreateRequest,
        progress: Arc<dyn Progress>,
    ) -> Result<Resolved> {
        let platform = parse_platform(&request.platform)?;
        let policy = request.pull_policy();
        if policy != api::PullPolicy::Always {
            match self.find_image(context, &request.image, platform.as_ref()) {
                Err(error) if error.kind() == Kind::NotFound && policy == api::PullPolicy::Missing => {}
                Ok(found)
                    if policy == api::PullPolicy::Missing && check_platform(&found, platform.as_ref()).is_err() => {}
                found => return found.and_then(|found| check_platform(&found, platform.as_ref()).map(|()| found)),
            }
        }
        let reference = Reference::parse(&request.image).map_err(|error| Error::invalid(error.to_string()))?;
        let options = pull_options(platform.clone(), request.registry.clone());
        let pulled = self.parts().images.pull(context, &reference, options, progress).await?;
        self.note_image(context, "pull", &pulled.name);
        let resolved = self.parts().images.resolve(context, &pulled.name, platform.as_ref())?;
        check_platform(&resolved, platform.as_ref())?;
        Ok(resolved)
    }

    fn draft(
        &self,
        context: &Context,
        id: &ContainerId,
        request: &api::CreateRequest,
        image: &Resolved,
        mounts: &[Mount],
    ) -> Result<Draft> {
        let config = &image.config.config;
        let named_user = builder::user_text(config, &request.user).to_owned();
        let mut user = users::resolve(&named_user, mounts)?;
        user.additional_gids.extend(users::groups(&request.group_add, mounts)?);
        let hostname = hostname(request, id)?;
        let etc = Etc::of(request, &hostname)?;
        binds::make_sources(&request.binds)?;
        let mut options = self.options(request, user)?;
        options.binds.extend(etc.binds(&self.directory(&context.namespace, id), request.read_only));
        options.cgroups_path = cgroup_parent(request, context)?.join(id.as_str());
        // With the host's network and no name of its own, it keeps the host's name.
        let is_named = request.network() != api::Network::Host || !request.hostname.is_empty();
        options.hostname = is_named.then_some(hostname);
        let invalid = |error: builder::InvalidOptions| Error::invalid(error.to_string());
        let mut spec = builder::build(config, &options).map_err(invalid)?;
        if request.init {
            begin_with_init(&mut spec);
        }
        let stop_signal = [&request.stop_signal, &config.stop_signal].into_iter().find(|text| !text.is_empty());
        let record = Record {
            name: String::new(),
            image: request.image.clone(),
            image_id: image.config_digest.to_string(),
            command: builder::command_line(config, &options).map_err(invalid)?,
            entrypoint: options.entrypoint.as_ref().map_or(config.entrypoint.len(), Vec::len),
            user: named_user,
            terminal: request.terminal,
            open_stdin: request.open_stdin,
            auto_remove: request.auto_remove,
            stop_signal: stop_signal.map_or(Ok(signals::SIGTERM), |text| signals::parse(text))?,
            host_network: request.network() == api::Network::Host,
            privileged: request.privileged,
            binds: request.binds.iter().map(binds::text).collect(),
            limits: request.limits.map(|limits| limits_of(&limits)).unwrap_or_default(),
            restart: Policy::parse(&request.restart)?,
            stop_timeout: request.stop_timeout,
            wishes: wishes::of(request),
            health: Check::of(request.health.as_ref(), config.healthcheck.as_ref())?,
            etc,
            log: request.log.map(log_of).unwrap_or_default(),
            restarts: 0,
            restarts_in_a_row: 0,
            stopped: false,
            ended: None,
            error: String::new(),
            error_code: 0,
        };
        Ok(Draft { spec: encode(&spec)?, record })
    }

    fn options(&self, request: &api::CreateRequest, user: User) -> Result<Options> {
        let limits = request.limits.unwrap_or_default();
        let (devices, device_rules) = extras::device_nodes(&request.devices, &request.device_cgroup_rules)?;
        let extras = extras::extras(request, self.shared.host.capabilities.as_ref())?;
        Ok(Options {
            args: request.args.clone(),
            entrypoint: request.entrypoint.clone().map(|entrypoint| entrypoint.args),
            env: request.env.clone(),
            workdir: Some(request.workdir.clone()).filter(|dir| !dir.is_empty()),
            user,
            terminal: request.terminal,
            console_size: request.console_size.as_ref().and_then(size_of),
            limits: limits_of(&limits).into(),
            binds: wished_binds(request, &self.parts().tasks.launcher().daemon)?,
            network: match request.network() {
                api::Network::Private => builder::Network::Private,
                api::Network::Host => builder::Network::Host,
            },
            read_only: request.read_only,
            privileged: request.privileged,
            cap_add: request.cap_add.clone(),
            cap_drop: request.cap_drop.clone(),
            available_capabilities: self.shared.host.capabilities.clone(),
            nofile_ceiling: self.shared.host.nofile,
            annotations: request.annotations.clone().into_iter().collect(),
            devices,
            extras: Extras { device_rules, ..extras },
            ..Options::default()
        })
    }

    fn container(
        &self,
        id: &ContainerId,
        request: &api::CreateRequest,
        image: &Resolved,
        runtime: &str,
        draft: Draft,
    ) -> Result<Container> {
        let mut container = Container {
            id: id.to_string(),
            labels: request.labels.clone(),
            image: image.name.clone(),
            runtime: Some(container::Runtime { name: runtime.to_owned(), options: None }),
            spec: Some(any::json(any::SPEC, draft.spec)),
            snapshotter: self.parts().snapshotters.default_name().to_owned(),
            snapshot_key: id.to_string(),
            ..Container::default()
        };
        draft.record.put(&mut container)?;
        Ok(container)
    }
}

/// Where the container sees the program of `--init`. It is in `/dev`, which is in memory, so that it does not count as
/// a change of the container's files.
pub(super) const INIT: &str = "/dev/init";
/// The label of a snapshot that was made for a container of the engine, also where the container's creation was cut
/// short.
pub(super) const OURS: &str = "gantry.engine/container";

impl Host {
    /// Looks at what the daemon itself has, which is the most it can give.
    pub(super) fn look() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
        let bounding = bounding.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
        let capabilities = bounding.map(|bits| {
            let all = rung_spec::defaults::capabilities::ALL.iter().copied();
            all.zip(0_u32..).filter(|(_, number)| bits >> number & 1 == 1).map(|(capability, _)| capability).collect()
        });
        let nofile = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).ok();
        Self { capabilities, nofile: nofile.map(|(_, hard)| hard) }
    }
}

/// The container's host name: the host's own where it shares the host's UTS namespace, or its network without a name.
fn hostname(request: &api::CreateRequest, id: &ContainerId) -> Result<String> {
    let shares_uts = request.host_namespaces.iter().any(|name| name == "uts");
    Ok(match request.hostname.as_str() {
        "" if shares_uts || request.network() == api::Network::Host => {
            nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned()
        }
        "" => super::names::short(id).to_owned(),
        name if shares_uts => {
            return Err(Error::invalid(format!("hostname {name:?}: is the host's, because the uts namespace is")));
        }
        name => name.to_owned(),
    })
}

/// The binds of the request and, for `--init`, one of `daemon`: the daemon's own program is the init.
fn wished_binds(request: &api::CreateRequest, daemon: &Path) -> Result<Vec<builder::Bind>> {
    let mut all = request.binds.iter().map(binds::wished).collect::<Result<Vec<builder::Bind>>>()?;
    if request.init {
        if all.iter().any(|bind| Path::new(&bind.destination) == Path::new("/dev")) {
            return Err(Error::invalid("init: needs the container's own /dev, where a bind is"));
        }
        let source = daemon.to_string_lossy().into_owned();
        all.push(builder::Bind { source, destination: INIT.to_owned(), read_only: true, ..Default::default() });
    }
    Ok(all)
}

/// The cgroup that the container's own is made in: the request's, else one for the namespace.
fn cgroup_parent(request: &api::CreateRequest, context: &Context) -> Result<PathBuf> {
    let text = &request.cgroup_parent;
    if text.is_empty() {
        return Ok(Path::new("/gantry").join(context.namespace.as_str()));
    }
    if text.contains('\0') || text.split('/').any(|part| part == "..") {
        return Err(Error::invalid(format!("cgroup parent {text:?}: is not a path without '..'")));
    }
    Ok(Path::new("/").join(text))
}

/// Puts [`INIT`] before the container's command.
fn begin_with_init(spec: &mut Spec) {
    if let Some(process) = spec.process_mut() {
        let command = process.args().clone().unwrap_or_default();
        let init = [INIT, crate::init::VERB, "--"].map(str::to_owned);
        process.set_args(Some(init.into_iter().chain(command).collect()));
    }
}

pub(super) fn encode(spec: &Spec) -> Result<Vec<u8>> {
    serde_json::to_vec(spec).map_err(|error| Error::internal(format!("encode the specification: {error}")))
}

pub(super) fn size_of(size: &api::Size) -> Option<(u16, u16)> {
    let (width, height) = (u16::try_from(size.width).ok()?, u16::try_from(size.height).ok()?);
    (width > 0 && height > 0).then_some((width, height))
}

/// Refuses an image that is for another platform than is asked for: one without an index is found for any.
fn check_platform(image: &Resolved, platform: Option<&Platform>) -> Result<()> {
    let Some(platform) = platform else { return Ok(()) };
    let offered = image.config.platform.clone().normalised();
    // Many images for ARM do not say of which variant they are.
    let is_alike = offered.os == platform.os && offered.architecture == platform.architecture;
    if is_alike || offered.architecture.is_empty() || platform.rank(&offered).is_some() {
        return Ok(());
    }
    Err(Error::not_found(format!("image {}: is for {offered}, not {platform}", image.name)))
}

pub(super) fn parse_platform(text: &str) -> Result<Option<Platform>> {
    if text.is_empty() {
        return Ok(None);
    }
    Platform::parse(text).map(Some).map_err(|error| Error::invalid(error.to_string()))
}

pub(super) fn pull_options(platform: Option<Platform>, registry: Option<api::RegistryOptions>) -> PullOptions {
    PullOptions { choice: Choice::platform(platform), access: access(registry), ..PullOptions::default() }
}

/// How to speak to a registry, as a person says it.
pub(super) fn access(registry: Option<api::RegistryOptions>) -> Access {
    let registry = registry.unwrap_or_default();
    let credentials = if !registry.registry_token.is_empty() {
        Some(Credentials::Header(format!("Bearer {}", registry.registry_token)))
    } else if !registry.identity_token.is_empty() {
        Some(Credentials::Identity(registry.identity_token))
    } else if !registry.username.is_empty() {
        Some(Credentials::password(registry.username, registry.password))
    } else {
        None
    };
    Access { plain_http: registry.plain_http, skip_verify: registry.insecure, credentials, ..Access::default() }
}

fn log_of(log: api::LogOptions) -> Log {
    Log {
        drop: log.drop,
        max_size: Some(log.max_size).filter(|size| *size > 0),
        max_files: Some(log.max_files).filter(|files| *files > 0),
        compress: log.compress,
    }
}

fn limits_of(limits: &api::Limits) -> Limits {
    Limits {
        memory: limits.memory,
        memory_swap: limits.memory_swap,
        nano_cpus: limits.nano_cpus,
        pids: limits.pids,
        cpu_quota: limits.cpu_quota,
        cpu_period: limits.cpu_period,
    }
}
