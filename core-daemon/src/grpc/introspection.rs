//! `containerd.services.introspection.v1.Introspection`: what this daemon is made of, in the terms clients look for.

use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use gantry_proto::any;
use gantry_proto::containerd::services::introspection::v1::introspection_server::Introspection;
use gantry_proto::containerd::services::introspection::v1::{
    Plugin, PluginInfoRequest, PluginInfoResponse, PluginsRequest, PluginsResponse, ServerResponse,
};
use gantry_proto::containerd::types::{Platform, RuntimeRequest};
use rung_sys::atomic_file;
use tonic::{Request, Response, Status};

use crate::error::{Doing, Error, Kind, Result};
use crate::filter::Filter;
use crate::snapshots::Snapshotters;
use crate::tasks::Tasks;

const SNAPSHOTTER: &str = "io.containerd.snapshotter.v1";
const RUNTIME: &str = "io.containerd.runtime.v2";
const SERVICE: &str = "io.containerd.service.v1";

/// The service.
pub struct IntrospectionService {
    uuid: String,
    pidns: u64,
    plugins: Vec<Plugin>,
    tasks: Tasks,
}

impl IntrospectionService {
    /// The service of the daemon whose directory is `root`.
    ///
    /// # Errors
    /// When the daemon's identity can be neither read nor made.
    pub fn new(root: &Path, plugins: Vec<Plugin>, tasks: Tasks) -> Result<Self> {
        let pidns = std::fs::metadata("/proc/self/ns/pid").doing(|| "identify the pid namespace")?.ino();
        Ok(Self { uuid: identity(root)?, pidns, plugins, tasks })
    }
}

/// The daemon's identity, which clients such as BuildKit keep things under: made once, then read. A damaged one is as good as
/// none.
fn identity(root: &Path) -> Result<String> {
    let dir = root.join("io.containerd.grpc.v1.introspection");
    let path = dir.join("uuid");
    match std::fs::read(&path) {
        Ok(bytes) => match std::str::from_utf8(bytes.trim_ascii()) {
            Ok(text) if is_uuid(text) => return Ok(text.to_owned()),
            _ => tracing::warn!(path = %path.display(), "the daemon's identity is damaged; it gets a new one"),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).doing(|| format!("read {}", path.display())),
    }
    let uuid = random_uuid()?;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
    made.doing(|| format!("make {}", dir.display()))?;
    atomic_file::write(&path, uuid.as_bytes(), 0o600)
        .map_err(std::io::Error::from)
        .doing(|| format!("write {}", path.display()))?;
    Ok(uuid)
}

/// The directory that clients install programs into, made where it is missing.
///
/// # Errors
/// When it cannot be made.
pub fn opt(root: &Path) -> Result<PathBuf> {
    let opt = root.join("opt");
    for directory in ["bin", "lib"] {
        let path = opt.join(directory);
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o711).create(&path);
        made.doing(|| format!("make {}", path.display()))?;
    }
    Ok(opt)
}

fn is_uuid(text: &str) -> bool {
    let fits =
        |(at, byte): (usize, u8)| if [8, 13, 18, 23].contains(&at) { byte == b'-' } else { byte.is_ascii_hexdigit() };
    text.len() == 36 && text.bytes().enumerate().all(fits)
}

/// A version 4 UUID.
fn random_uuid() -> Result<String> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).map_err(|error| Error::internal(format!("random number: {error}")))?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]))
}

/// The parts of the daemon, as containerd names its own, which clients look for before they use a feature. Only what is
/// served is listed.
pub fn plugins(platform: &Platform, snapshotters: &Snapshotters, opt: &Path) -> Vec<Plugin> {
    let plain = [
        ("io.containerd.content.v1", "content"),
        ("io.containerd.event.v1", "exchange"),
        ("io.containerd.metadata.v1", "bolt"),
        ("io.containerd.gc.v1", "scheduler"),
        ("io.containerd.image-verifier.v1", "bindir"),
        ("io.containerd.internal.v1", "restart"),
        ("io.containerd.internal.v1", "tracing"),
        ("io.containerd.lease.v1", "manager"),
        ("io.containerd.monitor.container.v1", "restart"),
        ("io.containerd.mount-manager.v1", "bolt"),
        ("io.containerd.shim.v1", "manager"),
        ("io.containerd.warning.v1", "deprecations"),
        ("io.containerd.podsandbox.controller.v1", "podsandbox"),
        ("io.containerd.sandbox.controller.v1", "podsandbox"),
        ("io.containerd.sandbox.controller.v1", "shim"),
        ("io.containerd.sandbox.store.v1", "local"),
        ("io.containerd.cri.v1", "images"),
        ("io.containerd.cri.v1", "runtime"),
        ("io.containerd.streaming.v1", "manager"),
        ("io.containerd.transfer.v1", "local"),
        ("io.containerd.grpc.v1", "containers"),
        ("io.containerd.grpc.v1", "content"),
        ("io.containerd.grpc.v1", "cri"),
        ("io.containerd.grpc.v1", "diff"),
        ("io.containerd.grpc.v1", "events"),
        ("io.containerd.grpc.v1", "healthcheck"),
        ("io.containerd.grpc.v1", "images"),
        ("io.containerd.grpc.v1", "introspection"),
        ("io.containerd.grpc.v1", "leases"),
        ("io.containerd.grpc.v1", "mounts"),
        ("io.containerd.grpc.v1", "namespaces"),
        ("io.containerd.grpc.v1", "sandbox-controllers"),
        ("io.containerd.grpc.v1", "sandboxes"),
        ("io.containerd.grpc.v1", "snapshots"),
        ("io.containerd.grpc.v1", "streaming"),
        ("io.containerd.grpc.v1", "tasks"),
        ("io.containerd.grpc.v1", "transfer"),
        ("io.containerd.grpc.v1", "version"),
        ("io.containerd.server.v1", "grpc"),
        ("io.containerd.server.v1", "grpc-tcp"),
        ("io.containerd.server.v1", "metrics"),
        ("io.containerd.server.v1", "ttrpc"),
        ("io.containerd.tracing.processor.v1", "otlp"),
        // The same services under the names by which clients inside containerd know them.
        (SERVICE, "containers-service"),
        (SERVICE, "content-service"),
        (SERVICE, "diff-service"),
        (SERVICE, "images-service"),
        (SERVICE, "introspection-service"),
        (SERVICE, "namespaces-service"),
        (SERVICE, "snapshots-service"),
        (SERVICE, "tasks-service"),
    ];
    let on_platform = [
        ("io.containerd.differ.v1", "walking"),
        ("io.containerd.monitor.task.v1", "cgroups"),
        ("io.containerd.mount-handler.v1", "erofs"),
        ("io.containerd.mount-handler.v1", "loop"),
        (RUNTIME, "task"),
    ];
    let mut plugins: Vec<Plugin> = plain.into_iter().map(|(kind, id)| plugin(kind, id, None)).collect();
    plugins.extend(on_platform.into_iter().map(|(kind, id)| plugin(kind, id, Some(platform))));
    let mut programs = plugin("io.containerd.internal.v1", "opt", None);
    programs.exports.insert("path".to_owned(), opt.to_string_lossy().into_owned());
    plugins.push(programs);
    for (name, it) in snapshotters.iter() {
        let mut snapshotter = plugin(SNAPSHOTTER, name, Some(platform));
        snapshotter.exports.extend(it.exports());
        snapshotter.capabilities = it.capabilities();
        plugins.push(snapshotter);
    }
    for (name, why) in snapshotters.failed() {
        let code = i32::from(tonic::Code::Unavailable);
        let status = gantry_proto::google::rpc::Status { code, message: why.to_owned(), details: Vec::new() };
        plugins.push(Plugin { init_err: Some(status), ..plugin(SNAPSHOTTER, name, Some(platform)) });
    }
    plugins
}

fn plugin(kind: &str, id: &str, platform: Option<&Platform>) -> Plugin {
    Plugin {
        r#type: kind.to_owned(),
        id: id.to_owned(),
        platforms: platform.cloned().into_iter().collect(),
        ..Plugin::default()
    }
}

/// A plugin's fields as filters call them.
fn field(plugin: &Plugin, path: &[String]) -> Option<String> {
    match path {
        [name] if name == "type" => Some(plugin.r#type.clone()),
        [name] if name == "id" => Some(plugin.id.clone()),
        [name] if name == "platforms" => {
            let texts = plugin.platforms.iter().map(|platform| format!("{}/{}", platform.os, platform.architecture));
            Some(texts.collect::<Vec<_>>().join(","))
        }
        [name] if name == "capabilities" => Some(plugin.capabilities.join(",")),
        _ => None,
    }
}

#[tonic::async_trait]
impl Introspection for IntrospectionService {
    async fn plugins(&self, request: Request<PluginsRequest>) -> Result<Response<PluginsResponse>, Status> {
        let filter = Filter::parse(&request.get_ref().filters)?;
        let wanted = |plugin: &&Plugin| filter.matches(|path| field(plugin, path));
        Ok(Response::new(PluginsResponse { plugins: self.plugins.iter().filter(wanted).cloned().collect() }))
    }

    async fn server(&self, _request: Request<()>) -> Result<Response<ServerResponse>, Status> {
        Ok(Response::new(ServerResponse {
            uuid: self.uuid.clone(),
            pid: u64::from(std::process::id()),
            pidns: self.pidns,
            deprecations: Vec::new(),
        }))
    }

    async fn plugin_info(&self, request: Request<PluginInfoRequest>) -> Result<Response<PluginInfoResponse>, Status> {
        let request = request.into_inner();
        let name = format!("{} {}", request.r#type, request.id);
        let plugin = self.plugins.iter().find(|plugin| plugin.r#type == request.r#type && plugin.id == request.id);
        let plugin = plugin.cloned().ok_or_else(|| Error::not_found(format!("plugin {name}: not found")))?;
        let Some(options) = request.options else {
            return Ok(Response::new(PluginInfoResponse { plugin: Some(plugin), extra: None }));
        };
        if plugin.r#type != RUNTIME {
            return Err(Error::unimplemented(format!("plugin {name}: takes no questions")).into());
        }
        let question: RuntimeRequest = any::unpack(&options)
            .map_err(|error| Error::new(Kind::InvalidArgument, format!("plugin {name}: {error}")))?;
        let program = self.tasks.program(&question.runtime_path)?;
        let info = self.tasks.launcher().info(&program, question.options.as_ref()).await?;
        Ok(Response::new(PluginInfoResponse { plugin: Some(plugin), extra: Some(any::pack(&info)) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_is_made_once() {
        let root = tempfile::tempdir().expect("directory");
        let first = identity(root.path()).expect("make");
        assert_eq!((first.len(), first.as_bytes()[14]), (36, b'4'));
        assert_eq!(identity(root.path()).expect("read"), first);
    }

    #[test]
    fn a_damaged_identity_is_made_anew() {
        let root = tempfile::tempdir().expect("directory");
        let first = identity(root.path()).expect("make");
        let path = root.path().join("io.containerd.grpc.v1.introspection/uuid");
        let mut flipped = first.clone().into_bytes();
        flipped[3] ^= 0x80;
        let damaged = [flipped.as_slice(), &[], &first.as_bytes()[..20], b"zzzzzzzz-0000-4000-8000-000000000000"];
        for bytes in damaged {
            std::fs::write(&path, bytes).expect("damage");
            let made = identity(root.path()).expect("made");
            assert!(is_uuid(&made) && made != first, "{made}");
            assert_eq!(identity(root.path()).expect("read"), made);
        }
    }

    #[test]
    fn clients_find_what_they_look_for() {
        let platform = Platform { os: "linux".into(), architecture: "amd64".into(), ..Platform::default() };
        let dir = tempfile::tempdir().expect("directory");
        let opt = opt(dir.path()).expect("opt");
        assert!(opt.join("bin").is_dir() && opt.join("lib").is_dir());
        let plugins = plugins(&platform, &snapshotters(), &opt);
        let installed = plugins.iter().find(|it| it.id == "opt").expect("opt");
        assert_eq!(installed.exports["path"], opt.to_string_lossy());
        let find = |filter: &str| {
            let filter = Filter::parse(&[filter.to_owned()]).expect("filter");
            plugins.iter().filter(|plugin| filter.matches(|path| field(plugin, path))).count()
        };
        assert_eq!(find("type==io.containerd.snapshotter.v1,id==overlayfs"), 1);
        assert_eq!(find("type==io.containerd.runtime.v2,platforms==linux/amd64"), 1);
        assert_eq!(find("type==io.containerd.grpc.v1,id==tasks"), 1);
        assert_eq!(find("type==io.containerd.image-verifier.v1,id==bindir"), 1);
        assert_eq!(find("type==io.containerd.tracing.processor.v1"), 1);
        let failed =
            plugins.iter().find(|plugin| plugin.r#type == SNAPSHOTTER && plugin.id == "erofs").expect("listed");
        assert_eq!(failed.init_err.as_ref().map(|status| status.message.as_str()), Some("needs a kernel"));
        let overlay = plugins.iter().find(|plugin| plugin.id == "overlayfs").expect("listed");
        assert!(overlay.capabilities.contains(&"rebase".to_owned()) && overlay.exports.contains_key("root"));
    }

    fn snapshotters() -> Snapshotters {
        let dir = tempfile::tempdir().expect("directory");
        let db = crate::metadata::Db::open(&dir.path().join("db")).expect("metadata");
        let overlay = crate::snapshots::overlay::Overlay::open(dir.path()).expect("overlay");
        let local =
            crate::snapshots::Local::open("overlayfs", overlay, db, crate::events::Events::new()).expect("local");
        let local: std::sync::Arc<dyn crate::snapshots::Snapshotter> = std::sync::Arc::new(local);
        let failed = [("erofs".to_owned(), "needs a kernel".to_owned())].into();
        Snapshotters::with_failed([("overlayfs".to_owned(), local)].into(), failed, "overlayfs").expect("snapshotters")
    }
}
