//! `start`: make the supervisor, or find the one that the container's group has already, and print its address.
//!
//! The supervisor is a fork of this process, not a second program: nothing has been set up yet that a fork could break
//! (one thread, no runtime), and a container starts one exec sooner. The socket listens before the fork, so that the
//! address can be answered at once; the first connection waits in the socket's queue until the supervisor accepts.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gantry_proto::containerd::runtime::bootstrap::v1::{BootstrapParams, BootstrapResult, LogLevel};
use gantry_proto::namespace::check_identifier;
use prost::Message;
use prost_types::Any;
use rung_sys::fd_pass;
use rung_sys::process::{self, CloneRequest, Forked, Pid};
use sha2::{Digest, Sha256};

use crate::args::{self, Flags};
use crate::bundle::{self, Config};
use crate::error::Kind;
use crate::options::Options;
use crate::{Doing, Error, Result, server};

/// Where sockets are unless the daemon says otherwise.
const SOCKET_DIR: &str = "/run/containerd/s";
/// Newest version of the Task service spoken here.
const NEWEST: u32 = 3;
/// `sockaddr_un` takes no longer paths.
const MAX_SOCKET_PATH: usize = 107;

/// What the supervisor needs to know about the daemon and itself.
#[derive(Debug, Clone, Default)]
pub struct Setting {
    /// Namespace of every container in this shim.
    pub namespace: String,
    /// Container or sandbox that the shim was started for.
    pub id: String,
    /// The bundle it was started in.
    pub bundle: PathBuf,
    /// The daemon's ttrpc socket for events; empty: none.
    pub events_address: String,
    /// Program that publishes events where there is no such socket.
    pub publish_binary: PathBuf,
    /// The daemon's gRPC socket, passed on to that program.
    pub grpc_address: String,
    /// Our own socket.
    pub socket: PathBuf,
    /// Log more.
    pub debug: bool,
}

/// What the daemon said, by whichever protocol it speaks.
#[derive(Debug, Default)]
struct Request {
    setting: Setting,
    options: Options,
    socket_dir: PathBuf,
    answer: Answer,
}

/// The forms of an answer, oldest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Answer {
    /// The address alone: containerd 1.6 and before.
    #[default]
    Bare,
    /// JSON with this version of the Task service.
    Json(u32),
    /// The protobuf message, to daemons that sent one.
    Message,
}

/// Answers a daemon's `start`. Returns in two processes: in the caller with the answer, and with nothing in the
/// supervisor after it has done its work.
///
/// # Errors
/// Where the bundle, the socket or the new process cannot be had.
pub fn start(flags: Flags) -> Result<Vec<u8>> {
    let input = args::read_input().doing(|| "read the daemon's parameters")?;
    let mut request = Request::read(flags, &input, &|name| std::env::var(name).ok())?;
    let config = Config::read(&request.setting.bundle);
    // A sandbox may have no configuration of its own.
    let config =
        config.or_else(|error| if error.kind() == Kind::NotFound { Ok(Config::default()) } else { Err(error) })?;
    let group = config.group().unwrap_or(&request.setting.id).to_owned();
    if request.setting.socket.as_os_str().is_empty() {
        request.setting.socket = request.socket_path(&group)?;
    }
    // Before the supervisor is forked, because that inherits it.
    if std::env::var_os("SCHED_CORE").is_some_and(|wish| !wish.is_empty()) {
        rung_sys::sched::keep_core_to_itself().doing(|| "keep the container's cores to itself (SCHED_CORE)")?;
    }
    let address = format!("unix://{}", request.setting.socket.display());
    let answer = request.answer.encode(&address);
    bundle::write(&request.setting.bundle.join("address"), address.as_bytes())?;
    let Some(listener) = listen(&request.setting.socket)? else {
        name_supervisor(&request.setting.bundle, &group)?;
        return Ok(answer);
    };
    match process::clone(&CloneRequest::default()).doing(|| "start the supervisor")? {
        Forked::Parent { pid, .. } => {
            settle(pid, &request).inspect_err(|_| {
                // The caller gets an error and will not look for a supervisor, so none may be left.
                let _ = rung_sys::signal::send(pid, nix::libc::SIGKILL);
                let _ = fs::remove_file(&request.setting.socket);
            })?;
            Ok(answer)
        }
        Forked::Child => server::run(listener, request.setting).map(|()| Vec::new()),
    }
}

/// Copies the group's `shim.pid` into the bundle of a container that joins the group: the supervisor wrote it only into
/// the bundle that it was started for.
fn name_supervisor(bundle: &Path, group: &str) -> Result<()> {
    let first = check_identifier(group).ok().and_then(|()| Some(bundle.parent()?.join(group).join("shim.pid")));
    match first.and_then(|path| fs::read(path).ok()) {
        Some(pid) => bundle::write(&bundle.join("shim.pid"), &pid),
        None => Ok(()),
    }
}

/// What is done to the supervisor from outside.
fn settle(pid: Pid, request: &Request) -> Result<()> {
    bundle::write(&request.setting.bundle.join("shim.pid"), pid.to_string().as_bytes())?;
    raise_oom_score(pid).doing(|| "set the supervisor's oom score")?;
    if !request.options.shim_cgroup.is_empty() {
        crate::stats::cgroup::join(&request.options.shim_cgroup, pid.as_raw())?;
    }
    Ok(())
}

/// Makes the OOM killer choose containers before their supervisor, and a supervisor before the daemon: the score is the
/// daemon's plus one.
fn raise_oom_score(pid: Pid) -> std::io::Result<()> {
    let daemon = fs::read_to_string(format!("/proc/{}/oom_score_adj", nix::unistd::getppid()))?;
    let score = daemon.trim().parse::<i32>().unwrap_or(0).saturating_add(1).min(1000);
    let mut file = fs::OpenOptions::new().write(true).open(format!("/proc/{pid}/oom_score_adj"))?;
    file.write_all(score.to_string().as_bytes())
}

impl Request {
    fn read(flags: Flags, input: &[u8], env: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let bundle = flags.bundle()?;
        let mut request = Self {
            setting: Setting {
                namespace: flags.namespace,
                id: flags.id,
                bundle,
                events_address: env("TTRPC_ADDRESS").unwrap_or_default(),
                publish_binary: flags.publish_binary.into(),
                grpc_address: flags.address,
                socket: flags.socket.into(),
                debug: flags.debug,
            },
            socket_dir: SOCKET_DIR.into(),
            ..Self::default()
        };
        let params = BootstrapParams::decode(input)
            .ok()
            .filter(|params| params.instance_id == request.setting.id && params.namespace == request.setting.namespace);
        match params {
            Some(params) => request.take(params)?,
            None => {
                if let Some(version) = env("MAX_SHIM_VERSION").and_then(|text| text.parse::<u32>().ok()) {
                    request.answer = Answer::Json(version.clamp(2, NEWEST));
                }
                let options = Any::decode(input).map_err(|error| {
                    Error::invalid(format!("the daemon's parameters are neither BootstrapParams nor Any: {error}"))
                })?;
                request.options = Options::from_any(Some(&options))?;
            }
        }
        Ok(request)
    }

    fn take(&mut self, params: BootstrapParams) -> Result<()> {
        self.answer = Answer::Message;
        let level = params.log_level();
        let setting = &mut self.setting;
        setting.debug |= matches!(level, LogLevel::Debug | LogLevel::Trace);
        let fill = |place: &mut String, value: String| {
            if !value.is_empty() {
                *place = value;
            }
        };
        fill(&mut setting.events_address, params.containerd_ttrpc_address);
        fill(&mut setting.grpc_address, params.containerd_grpc_address);
        if !params.containerd_binary.is_empty() {
            setting.publish_binary = params.containerd_binary.into();
        }
        if let Some(dir) = params.socket_dir.filter(|dir| !dir.is_empty()) {
            self.socket_dir = dir.into();
        }
        // Extensions are a list of whatever a daemon wants to say; the one we know is the runtime's options.
        for extension in params.extensions.iter().filter_map(|extension| extension.value.as_ref()) {
            if extension.type_url.ends_with(".Options") {
                self.options = Options::from_any(Some(extension))?;
            }
        }
        Ok(())
    }

    /// Every `start` for the same daemon, namespace and group computes the same path.
    fn socket_path(&self, group: &str) -> Result<PathBuf> {
        let key = Path::new(&self.setting.grpc_address).join(&self.setting.namespace).join(group);
        let digest = Sha256::digest(key.as_os_str().as_encoded_bytes());
        let name = digest.iter().fold(String::with_capacity(64), |name, byte| format!("{name}{byte:02x}"));
        let path = self.socket_dir.join(name);
        if path.as_os_str().len() > MAX_SOCKET_PATH {
            let text = format!("socket directory {} is too long for a unix socket", self.socket_dir.display());
            return Err(Error::invalid(text));
        }
        Ok(path)
    }
}

impl Answer {
    fn encode(self, address: &str) -> Vec<u8> {
        match self {
            Self::Bare => address.as_bytes().to_vec(),
            Self::Json(version) => {
                serde_json::json!({ "version": version, "address": address, "protocol": "ttrpc" }).to_string().into()
            }
            Self::Message => BootstrapResult {
                version: 3,
                address: address.to_owned(),
                protocol: "ttrpc".to_owned(),
                ..BootstrapResult::default()
            }
            .encode_to_vec(),
        }
    }
}

/// Whether a process listens at the socket `path`, even one that is too busy to accept a connection in time.
pub fn is_answered(path: &Path) -> bool {
    match fd_pass::connect(path, Duration::from_secs(2)) {
        Ok(_) => true,
        Err(error) => error.kind() == ErrorKind::TimedOut,
    }
}

/// Listens at `path`; none where a supervisor answers there already.
fn listen(path: &Path) -> Result<Option<UnixListener>> {
    if let Some(dir) = path.parent() {
        let made = fs::DirBuilder::new().recursive(true).mode(0o711).create(dir);
        made.doing(|| format!("create socket directory {}", dir.display()))?;
    }
    for _ in 0..2 {
        match UnixListener::bind(path) {
            Ok(listener) => {
                let private = fs::set_permissions(path, fs::Permissions::from_mode(0o600));
                private.doing(|| format!("restrict socket {}", path.display()))?;
                return Ok(Some(listener));
            }
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                if is_answered(path) {
                    return Ok(None);
                }
                // Nobody listens: its owner was killed. Two starts that find this at once end in a second attempt.
                match fs::remove_file(path) {
                    Err(error) if error.kind() != ErrorKind::NotFound => {
                        return Err(error).doing(|| format!("remove dead socket {}", path.display()));
                    }
                    _ => {}
                }
            }
            Err(error) => return Err(error).doing(|| format!("listen at {}", path.display())),
        }
    }
    Err(Error::already_exists(format!("listen at {}: another start is under way", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_proto::any;
    use gantry_proto::containerd::runc::v1 as runc;
    use gantry_proto::containerd::runtime::bootstrap::v1::Extension;

    fn flags() -> Flags {
        Flags { namespace: "ns".into(), id: "c1".into(), address: "/run/d.sock".into(), ..Flags::default() }
    }

    fn none(_: &str) -> Option<String> {
        None
    }

    #[test]
    fn daemons_that_send_options() {
        let options = any::pack(&runc::Options { root: "/r".into(), ..runc::Options::default() }).encode_to_vec();
        let request = Request::read(flags(), &options, &none).expect("options");
        assert_eq!((request.options.root.as_str(), request.answer), ("/r", Answer::Bare));
        let newer = |name: &str| (name == "MAX_SHIM_VERSION").then(|| "2".to_owned());
        let request = Request::read(flags(), &[], &newer).expect("nothing");
        assert_eq!(request.answer, Answer::Json(2));
        assert_eq!(request.answer.encode("unix:///s"), br#"{"address":"unix:///s","protocol":"ttrpc","version":2}"#);
    }

    #[test]
    fn daemons_that_send_parameters() {
        let options = any::pack(&runc::Options { binary_name: "crun".into(), ..runc::Options::default() });
        let params = BootstrapParams {
            instance_id: "c1".into(),
            namespace: "ns".into(),
            log_level: LogLevel::Debug.into(),
            containerd_ttrpc_address: "/run/d.sock.ttrpc".into(),
            extensions: vec![Extension { value: Some(options) }],
            socket_dir: Some("/tmp/s".into()),
            ..BootstrapParams::default()
        };
        let request = Request::read(flags(), &params.encode_to_vec(), &none).expect("parameters");
        assert_eq!(request.answer, Answer::Message);
        assert_eq!(request.setting.events_address, "/run/d.sock.ttrpc");
        assert_eq!(request.options.binary_name, "crun");
        assert!(request.setting.debug);
        let path = request.socket_path("c1").expect("short");
        assert!(path.starts_with("/tmp/s"));
        assert_eq!(path.file_name().map(std::ffi::OsStr::len), Some(64));
    }

    #[test]
    fn parameters_of_another_container_are_not_ours() {
        let params =
            BootstrapParams { instance_id: "other".into(), namespace: "ns".into(), ..BootstrapParams::default() };
        // Read as Any, the identifier is a type URL that no options have.
        assert!(Request::read(flags(), &params.encode_to_vec(), &none).is_err());
    }
}
