//! Shims that go wrong in ways that ours does not: each is a program that names the socket of a service in this process.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::ensure;
use gantry_proto::containerd::services::sandbox::v1::ControllerCreateRequest;
use gantry_proto::containerd::services::sandbox::v1::controller_client::ControllerClient;
use gantry_proto::containerd::services::tasks::v1::tasks_client::TasksClient;
use gantry_proto::containerd::services::tasks::v1::{CreateTaskRequest, DeleteTaskRequest, StartRequest};
use gantry_proto::containerd::task::v3 as shim;
use gantry_proto::containerd::types::{Sandbox, sandbox};
use gantry_proto::status::Status;
use gantry_proto::ttrpc::server::unknown;
use gantry_proto::ttrpc::{Context, Service, serve_connection};
use integration_tests::{Env, Result, Stack, Test, daemon, tests, wait};
use prost::Message as _;
use tokio::sync::Notify;

pub(crate) const TESTS: &[Test] = tests![
    an_end_that_nobody_knows_is_no_success [Root, Overlay],
    warnings_of_a_shim_are_in_the_daemons_log [Root, Overlay],
    a_slow_shim_keeps_its_bundle_and_its_name [Root, Overlay],
    a_failed_creation_is_cleaned_up_until_it_is_clean [Root, Overlay],
    a_sandbox_that_is_not_clean_is_found_again [Root],
    shims_have_the_variables_that_are_configured [Root, Overlay],
];

/// How a shim behaves.
#[derive(Default)]
struct Fake {
    /// It does not answer Create and what follows.
    hangs: AtomicBool,
    /// Its connection ends at Create.
    dies: AtomicBool,
    /// Its process was killed.
    killed: AtomicBool,
    /// Ends all connections.
    end: Notify,
}

impl Service for Fake {
    async fn call(&self, service: &str, method: &str, _: &[u8], _: &Context) -> Result<Vec<u8>, Status> {
        until(|| !self.hangs.load(Ordering::SeqCst)).await;
        let pid = std::process::id();
        match method {
            "Create" | "CreateSandbox" if self.dies.load(Ordering::SeqCst) => {
                self.end.notify_waiters();
                std::future::pending().await
            }
            "Create" => {
                self.killed.store(false, Ordering::SeqCst);
                Ok(shim::CreateTaskResponse { pid }.encode_to_vec())
            }
            "Start" => Ok(shim::StartResponse { pid }.encode_to_vec()),
            "Wait" => {
                until(|| self.killed.load(Ordering::SeqCst)).await;
                Ok(shim::WaitResponse { exit_status: 137, exited_at: None }.encode_to_vec())
            }
            "Delete" => Err(Status::not_found("container not created")),
            "Kill" => {
                self.killed.store(true, Ordering::SeqCst);
                Ok(Vec::new())
            }
            "Shutdown" => Ok(Vec::new()),
            _ => Err(unknown(service, method)),
        }
    }
}

async fn until(is_so: impl Fn() -> bool) {
    while !is_so() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// What a shim's program logs.
const COMPLAINTS: &str = "echo 'time=\"1\" level=info msg=\"all is well\"' > log; \
     echo 'time=\"2\" level=error msg=\"it broke\"' > log; echo 'a trace' > log";

/// A shim's program, and the service behind it.
struct Program {
    service: Arc<Fake>,
    path: String,
    /// Every `delete` of the program leaves a line here.
    deletes: PathBuf,
    /// While it is there, `delete` fails.
    broken: PathBuf,
}

impl Program {
    fn make(env: &Env) -> Result<Self> {
        let socket = env.path("fake.sock");
        let (deletes, broken) = (env.path("deletes"), env.path("broken"));
        let answer = format!(r#"{{"version":3,"address":"unix://{}","protocol":"ttrpc"}}"#, socket.display());
        let script = format!(
            "#!/bin/sh\nfor word; do case $word in\nstart) {COMPLAINTS}; echo '{answer}'; exit;;\n\
             delete) echo >> {}; [ ! -e {} ]; exit;;\nesac; done\n",
            deletes.display(),
            broken.display()
        );
        let path = env.script("fake-shim", &script)?;
        let service = Arc::<Fake>::default();
        let listener = std::os::unix::net::UnixListener::bind(socket)?;
        listener.set_nonblocking(true)?;
        let (runtime, served) = (daemon::runtime()?, service.clone());
        std::thread::spawn(move || runtime.block_on(serve(listener, served)));
        Ok(Self { service, path: path.to_string_lossy().into_owned(), deletes, broken })
    }

    fn deletes(&self) -> usize {
        fs::read_to_string(&self.deletes).map_or(0, |lines| lines.lines().count())
    }
}

async fn serve(listener: std::os::unix::net::UnixListener, service: Arc<Fake>) -> Result<()> {
    let listener = tokio::net::UnixListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        let service = service.clone();
        tokio::spawn(async move {
            let end = service.end.notified();
            tokio::select! {
                served = serve_connection(stream, service.clone()) => served,
                () = end => Ok(()),
            }
        });
    }
}

/// Daemon and container, with short patience for its shim.
fn stack<'env>(env: &'env Env, program: &Program) -> Result<(Stack<'env>, String)> {
    let stack = Stack::start_configured(env, "[timeouts]\nshim_call = 1\nshim_shutdown = 1\n")?;
    stack.gantry(&["create", "--name", "web", "--runtime", &program.path, "IMAGE", "true"])?.ok()?;
    let id = stack.gantry(&["inspect", "-f", "{{.Id}}", "web"])?.ok()?.text().to_owned();
    Ok((stack, id))
}

fn bundle(env: &Env, id: &str) -> PathBuf {
    env.path("state/io.containerd.runtime.v2.task").join(env.namespace()).join(id)
}

/// A Delete that timed out in the daemon may have been carried out in the shim, which then knows no such container.
fn an_end_that_nobody_knows_is_no_success(env: &Env) -> Result<()> {
    let program = Program::make(env)?;
    let (stack, id) = stack(env, &program)?;
    let status = daemon::runtime()?.block_on(async {
        let mut tasks = TasksClient::new(stack.daemon.channel().await?);
        let create = CreateTaskRequest { container_id: id.clone(), ..CreateTaskRequest::default() };
        tasks.create(env.request(create)).await?;
        let start = StartRequest { container_id: id.clone(), ..StartRequest::default() };
        tasks.start(env.request(start)).await?;
        let deleted = tasks.delete(env.request(DeleteTaskRequest { container_id: id.clone() })).await?;
        anyhow::Ok(deleted.into_inner().exit_status)
    })?;
    assert_eq!(status, 255);
    assert!(!bundle(env, &id).exists());
    Ok(())
}

fn warnings_of_a_shim_are_in_the_daemons_log(env: &Env) -> Result<()> {
    let program = Program::make(env)?;
    let (stack, _) = stack(env, &program)?;
    stack.gantry(&["start", "web"])?.ok()?;
    wait::until("complaints in the daemon's log", || {
        let log = stack.daemon.log();
        let said = |level: &str, text: &str| log.lines().any(|line| line.contains(level) && line.contains(text));
        (said("ERROR", "it broke") && said("WARN", "a trace")).then_some(())
    })?;
    ensure!(!stack.daemon.log().contains("all is well"), "what is no complaint is told unasked");
    Ok(())
}

/// What a shim was asked before it stopped answering it may yet do, so it is not forgotten.
fn a_slow_shim_keeps_its_bundle_and_its_name(env: &Env) -> Result<()> {
    let program = Program::make(env)?;
    let (stack, id) = stack(env, &program)?;
    program.service.hangs.store(true, Ordering::SeqCst);
    let refused = stack.gantry(&["start", "web"])?.fails()?;
    // Caller and called count the same second, and either may be the first to say so.
    ensure!(refused.contains("no answer") || refused.contains("not done within"), "{refused}");
    ensure!(bundle(env, &id).join("bootstrap.json").exists(), "a later daemon does not find the shim");
    let again = stack.gantry(&["start", "web"])?.fails()?;
    ensure!(again.contains("already exists"), "{again}");
    program.service.hangs.store(false, Ordering::SeqCst);
    wait::until_within(wait::seconds(30), "the shim is let go", || (!bundle(env, &id).exists()).then_some(()))?;
    ensure!(program.deletes() > 0, "what it may have done is not cleaned up");
    stack.gantry(&["start", "web"])?.ok()?;
    Ok(())
}

/// A shim that dies is cleaned up after; while that fails, the next daemon could still find what it left.
fn a_failed_creation_is_cleaned_up_until_it_is_clean(env: &Env) -> Result<()> {
    let program = Program::make(env)?;
    let (stack, id) = stack(env, &program)?;
    program.service.dies.store(true, Ordering::SeqCst);
    fs::write(&program.broken, "")?;
    stack.gantry(&["start", "web"])?.fails()?;
    ensure!(bundle(env, &id).exists(), "what the shim left is forgotten");
    let before = program.deletes();
    wait::until("another try to clean up", || (program.deletes() > before).then_some(()))?;
    program.service.dies.store(false, Ordering::SeqCst);
    fs::remove_file(&program.broken)?;
    wait::until_within(wait::seconds(30), "all is clean", || (!bundle(env, &id).exists()).then_some(()))?;
    stack.gantry(&["start", "web"])?.ok()?;
    Ok(())
}

fn a_sandbox_that_is_not_clean_is_found_again(env: &Env) -> Result<()> {
    let program = Program::make(env)?;
    program.service.dies.store(true, Ordering::SeqCst);
    fs::write(&program.broken, "")?;
    let daemon = env.daemon()?;
    let (sandbox_id, sandboxer) = (env.id("pod"), "shim".to_owned());
    let sandbox = Sandbox {
        sandbox_id: sandbox_id.clone(),
        runtime: Some(sandbox::Runtime { name: program.path.clone(), options: None }),
        ..Sandbox::default()
    };
    let create = ControllerCreateRequest {
        sandbox_id: sandbox_id.clone(),
        sandboxer,
        sandbox: Some(sandbox),
        ..ControllerCreateRequest::default()
    };
    let created = daemon::runtime()?.block_on(async {
        let mut controller = ControllerClient::new(daemon.channel().await?);
        anyhow::Ok(controller.create(env.request(create)).await)
    })?;
    ensure!(created.is_err(), "the sandbox has no shim");
    ensure!(program.deletes() > 1, "it is not tried again to clean up");
    ensure!(bundle(env, &sandbox_id).exists(), "what the shim left is forgotten");
    daemon.stop()?;
    fs::remove_file(env.path("fake.sock"))?;
    fs::remove_file(&program.broken)?;
    let _daemon = env.daemon()?;
    wait::until("all is clean", || (!bundle(env, &sandbox_id).exists()).then_some(()))
}

/// Core scheduling is what they are there for. Where the kernel or the processors have none, a start says so.
fn shims_have_the_variables_that_are_configured(env: &Env) -> Result<()> {
    let config = "[runtime]\nshim_env = [\"SCHED_CORE=1\", \"GANTRY_TEST=there\"]\n";
    let stack = Stack::start_configured(env, config)?;
    let ran = stack.gantry(&["run", "-d", "--name", "web", "IMAGE", "sleep", "1000"])?;
    if ran.code() != 0 {
        let said = ran.fails()?;
        ensure!(said.contains("(SCHED_CORE): prctl"), "{said}");
        return Ok(());
    }
    let id = stack.gantry(&["inspect", "-f", "{{.Id}}", "web"])?.ok()?;
    let pid = fs::read_to_string(bundle(env, id.text()).join("shim.pid"))?;
    let variables = fs::read(format!("/proc/{}/environ", pid.trim()))?;
    ensure!(variables.split(|byte| *byte == 0).any(|one| one == b"GANTRY_TEST=there"), "it is not there");
    Ok(())
}
