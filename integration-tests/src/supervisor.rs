//! A shim without a daemon: started as a daemon would start it, asked over ttrpc, its events received.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use gantry_proto::any;
use gantry_proto::containerd::runc::v1::Options;
use gantry_proto::containerd::runtime::bootstrap::v1::{BootstrapParams, BootstrapResult};
use gantry_proto::containerd::services::events::ttrpc::v1::ForwardRequest;
use gantry_proto::containerd::task::v3::*;
use gantry_proto::containerd::v1::types::Status as TaskStatus;
use gantry_proto::status::Status;
use gantry_proto::ttrpc::server::{decode, unknown};
use gantry_proto::ttrpc::{Client, Context, Service, serve_connection};
use prost::{Message, Name};
use prost_types::Any;
use serde_json::Value;

use crate::{Bundle, Env, Result, wait};

const TASK: &str = "containerd.task.v3.Task";

/// An event as it came: topic and payload.
#[derive(Debug, Clone)]
pub struct Seen {
    /// `/tasks/exit` and so on.
    pub topic: String,
    /// The event itself.
    pub event: Any,
}

/// The daemon's end of the events.
#[derive(Debug, Clone, Default)]
pub struct Events {
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Events {
    /// Serves at `path`.
    pub fn serve(path: &Path) -> Result<Self> {
        let listener = tokio::net::UnixListener::bind(path)?;
        let events = Self::default();
        let service = Arc::new(events.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve_connection(stream, service.clone()));
            }
        });
        Ok(events)
    }

    /// Everything that has come, in order.
    pub fn all(&self) -> Vec<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The topics alone, without `/tasks/`.
    pub fn topics(&self) -> Vec<String> {
        self.all().iter().map(|seen| seen.topic.trim_start_matches("/tasks/").to_owned()).collect()
    }

    /// The events of one type.
    pub fn of<M: Message + Name + Default>(&self) -> Vec<M> {
        self.all().iter().filter_map(|seen| any::unpack(&seen.event).ok()).collect()
    }

    /// Waits until `count` events of `topic` have come.
    pub async fn until(&self, topic: &str, count: usize) -> Result<()> {
        let enough = || self.topics().iter().filter(|seen| *seen == topic).count() >= count;
        let limit = tokio::time::Instant::now() + wait::seconds(20);
        while !enough() {
            if tokio::time::Instant::now() > limit {
                bail!("{count} events {topic} did not come; came: {:?}", self.topics());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }
}

impl Service for Events {
    async fn call(&self, service: &str, method: &str, payload: &[u8], _: &Context) -> Result<Vec<u8>, Status> {
        if method != "Forward" {
            return Err(unknown(service, method));
        }
        let envelope = decode::<ForwardRequest>(payload)?.envelope.ok_or_else(|| Status::invalid("no envelope"))?;
        let event = envelope.event.ok_or_else(|| Status::invalid("no event"))?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.push(Seen { topic: envelope.topic, event });
        Ok(Vec::new())
    }
}

/// A running shim and a connection to it. What it supervises is ended when this is dropped.
#[derive(Debug)]
pub struct Supervisor<'env> {
    env: &'env Env,
    /// The container or group it was started for.
    pub id: String,
    /// The bundle it was started in.
    pub bundle: PathBuf,
    /// The connection.
    pub client: Client,
    /// What it tells the daemon.
    pub events: Events,
    /// What `start` answered.
    pub address: String,
}

/// Standard streams of a request.
#[derive(Debug, Clone, Default)]
pub struct Stdio {
    /// Standard input.
    pub stdin: String,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// With a terminal.
    pub terminal: bool,
}

impl Stdio {
    /// All output into one file.
    pub fn file(path: &Path) -> Self {
        let uri = format!("file://{}", path.display());
        Self { stdout: uri.clone(), stderr: uri, ..Self::default() }
    }
}

/// The options of every request: the runtime under the shim is `rung`, or what `GANTRY_TEST_RUNTIME` names, with its state
/// in the test's own directory.
fn options_in(env: &Env) -> Options {
    let binary_name = std::env::var("GANTRY_TEST_RUNTIME").unwrap_or_default();
    Options { binary_name, root: env.path("runtime").to_string_lossy().into_owned(), ..Options::default() }
}

fn request(id: &str, bundle: &Path, stdio: &Stdio, options: &Options) -> CreateTaskRequest {
    CreateTaskRequest {
        id: id.to_owned(),
        bundle: bundle.to_string_lossy().into_owned(),
        terminal: stdio.terminal,
        stdin: stdio.stdin.clone(),
        stdout: stdio.stdout.clone(),
        stderr: stdio.stderr.clone(),
        options: Some(any::pack(options)),
        ..CreateTaskRequest::default()
    }
}

impl<'env> Supervisor<'env> {
    /// Starts a shim for `bundle` as a current daemon does, and connects to it.
    pub async fn start(env: &'env Env, bundle: &Bundle) -> Result<Self> {
        let name = bundle.path.file_name().context("bundle name")?.to_string_lossy().into_owned();
        bundle.write()?;
        Self::start_at(env, &env.id(&name), &bundle.path).await
    }

    /// As [`Supervisor::start`], by identifier and directory.
    pub async fn start_at(env: &'env Env, id: &str, bundle: &Path) -> Result<Self> {
        Self::start_among(env, id, bundle, &[]).await
    }

    /// As [`Supervisor::start_at`], with variables that the daemon's own environment has.
    pub async fn start_among(env: &'env Env, id: &str, bundle: &Path, variables: &[(&str, &str)]) -> Result<Self> {
        let socket = events_socket(env, id);
        let events = Events::serve(&socket)?;
        let params = BootstrapParams {
            instance_id: id.to_owned(),
            namespace: env.namespace().to_owned(),
            containerd_ttrpc_address: socket.to_string_lossy().into_owned(),
            containerd_grpc_address: env.path("d.sock").to_string_lossy().into_owned(),
            socket_dir: Some(env.path("s").to_string_lossy().into_owned()),
            ..BootstrapParams::default()
        };
        let answer = run_start(env, id, bundle, &params.encode_to_vec(), variables)?;
        let result = BootstrapResult::decode(answer.as_slice()).context("decode the answer")?;
        assert_eq!((result.version, result.protocol.as_str()), (3, "ttrpc"));
        Self::connect(env, id, bundle, &result.address, events).await
    }

    /// Connects to a shim that was started otherwise.
    pub async fn connect(env: &'env Env, id: &str, bundle: &Path, address: &str, events: Events) -> Result<Self> {
        let path = address.strip_prefix("unix://").context("a unix address")?;
        let client = Client::connect(path).await.with_context(|| format!("connect to {path}"))?;
        let (id, bundle, address) = (id.to_owned(), bundle.to_owned(), address.to_owned());
        Ok(Self { env, id, bundle, client, events, address })
    }

    /// Calls a method of the Task service.
    pub async fn call<Q: Message, R: Message + Default>(&self, method: &str, request: &Q) -> Result<R, Status> {
        let limit = if wait::is_full() { 3600 } else { 60 };
        let context = Context::new().with_timeout(wait::seconds(limit));
        self.client.call(TASK, method, request, &context).await
    }

    /// Creates the container of the bundle.
    pub async fn create(&self, stdio: &Stdio) -> Result<u32, Status> {
        let request = request(&self.id, &self.bundle, stdio, &options_in(self.env));
        Ok(self.call::<_, CreateTaskResponse>("Create", &request).await?.pid)
    }

    /// The request to have the runtime at `binary_name` create the container of the bundle.
    pub fn request_of(&self, binary_name: &Path, stdio: &Stdio) -> CreateTaskRequest {
        let binary_name = binary_name.to_string_lossy().into_owned();
        let options = Options { binary_name, ..options_in(self.env) };
        request(&self.id, &self.bundle, stdio, &options)
    }

    /// Starts the container, or an exec.
    pub async fn start_process(&self, exec_id: &str) -> Result<u32, Status> {
        let request = StartRequest { id: self.id.clone(), exec_id: exec_id.to_owned() };
        Ok(self.call::<_, StartResponse>("Start", &request).await?.pid)
    }

    /// Announces an exec of `args`.
    pub async fn exec(&self, exec_id: &str, args: &[&str], stdio: &Stdio) -> Result<(), Status> {
        let process = serde_json::json!({
            "args": args, "cwd": "/", "env": ["PATH=/bin"], "terminal": stdio.terminal,
            "user": { "uid": 0, "gid": 0 },
        });
        let request = ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            terminal: stdio.terminal,
            stdin: stdio.stdin.clone(),
            stdout: stdio.stdout.clone(),
            stderr: stdio.stderr.clone(),
            spec: Some(any::json(any::PROCESS, process.to_string().into_bytes())),
        };
        self.call::<_, ()>("Exec", &request).await
    }

    /// Waits for the end of the container, or of an exec.
    pub async fn wait(&self, exec_id: &str) -> Result<u32, Status> {
        let request = WaitRequest { id: self.id.clone(), exec_id: exec_id.to_owned() };
        Ok(self.call::<_, WaitResponse>("Wait", &request).await?.exit_status)
    }

    /// Ends a process's standard input, after what was written.
    pub async fn close_stdin(&self, exec_id: &str) -> Result<(), Status> {
        let request = CloseIoRequest { id: self.id.clone(), exec_id: exec_id.to_owned(), stdin: true };
        self.call("CloseIO", &request).await
    }

    /// Sends a signal to all of the container's processes.
    pub async fn kill_all(&self, signal: u32) -> Result<(), Status> {
        let request = KillRequest { id: self.id.clone(), exec_id: String::new(), signal, all: true };
        self.call::<_, ()>("Kill", &request).await
    }

    /// Sends a signal.
    pub async fn kill(&self, exec_id: &str, signal: u32) -> Result<(), Status> {
        let request = KillRequest { id: self.id.clone(), exec_id: exec_id.to_owned(), signal, all: false };
        self.call::<_, ()>("Kill", &request).await
    }

    /// Deletes the container, or an exec.
    pub async fn delete(&self, exec_id: &str) -> Result<DeleteResponse, Status> {
        let request = DeleteRequest { id: self.id.clone(), exec_id: exec_id.to_owned() };
        self.call("Delete", &request).await
    }

    /// The state of the container, or of an exec.
    pub async fn state(&self, exec_id: &str) -> Result<TaskStatus, Status> {
        let request = StateRequest { id: self.id.clone(), exec_id: exec_id.to_owned() };
        Ok(self.call::<_, StateResponse>("State", &request).await?.status())
    }

    /// The shim's own process.
    pub async fn shim_pid(&self) -> Result<u32, Status> {
        let request = ConnectRequest { id: self.id.clone() };
        Ok(self.call::<_, ConnectResponse>("Connect", &request).await?.shim_pid)
    }

    /// Asks the shim to end and waits until it has.
    pub async fn shutdown(&self) -> Result<()> {
        let request = ShutdownRequest { id: self.id.clone(), now: false };
        self.call::<_, ()>("Shutdown", &request).await?;
        tokio::time::timeout(wait::seconds(10), self.client.closed()).await.context("the shim did not end")?;
        Ok(())
    }

    /// Removes the socket for events, so that another shim of the same name may be started.
    pub fn forget_events(&self) -> Result<()> {
        Ok(std::fs::remove_file(events_socket(self.env, &self.id))?)
    }

    /// Kills, deletes and shuts down whatever is left: the end of tests that are not about ends.
    pub async fn finish(&self) -> Result<()> {
        let _ = self.kill("", 9).await;
        let _ = self.wait("").await;
        self.delete("").await?;
        self.shutdown().await
    }

    /// Runs the program's `delete`, as a daemon does after the shim's death.
    pub fn delete_dead(&self) -> Result<DeleteResponse> {
        let mut command = shim_command(self.env, &self.id, &self.bundle)?;
        command.arg("delete");
        let ran = command.output()?;
        if !ran.status.success() {
            bail!("delete: {}", String::from_utf8_lossy(&ran.stderr));
        }
        Ok(DeleteResponse::decode(ran.stdout.as_slice())?)
    }
}

fn events_socket(env: &Env, id: &str) -> PathBuf {
    env.path(&format!("{}.ev", &id[id.len().saturating_sub(12)..]))
}

fn shim_command(env: &Env, id: &str, bundle: &Path) -> Result<Command> {
    let mut command = env.command("containerd-shim-rung-v2")?;
    let address = env.path("d.sock");
    command.args(["-namespace", env.namespace(), "-id", id, "-publish-binary", "", "-address"]).arg(address);
    command.arg("-bundle").arg(bundle).current_dir(bundle);
    Ok(command)
}

/// Runs `start` with `input` on standard input; gives what it answers.
pub fn run_start(env: &Env, id: &str, bundle: &Path, input: &[u8], variables: &[(&str, &str)]) -> Result<Vec<u8>> {
    let mut command = shim_command(env, id, bundle)?;
    command.arg("start").envs(variables.iter().copied());
    command.stdin(process::Stdio::piped()).stdout(process::Stdio::piped()).stderr(process::Stdio::piped());
    let mut child = command.spawn()?;
    child.stdin.take().context("stdin")?.write_all(input)?;
    let ran = child.wait_with_output()?;
    if !ran.status.success() || !ran.stderr.is_empty() {
        bail!("start: {} {}", ran.status, String::from_utf8_lossy(&ran.stderr));
    }
    Ok(ran.stdout)
}

/// The runtime's options for a shim that is started with options alone.
pub fn start_options(env: &Env) -> Vec<u8> {
    any::pack(&options_in(env)).encode_to_vec()
}

/// Adds an annotation to a bundle's configuration.
pub fn annotate(bundle: &mut Bundle, key: &str, value: &str) {
    let mut annotations = bundle.config.get("annotations").cloned().unwrap_or_else(|| serde_json::json!({}));
    annotations[key] = Value::from(value);
    bundle.set("/annotations", annotations);
}

/// Makes a named pipe.
pub fn fifo(path: &Path) -> Result<String> {
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::from_bits_truncate(0o700))?;
    Ok(path.to_string_lossy().into_owned())
}
