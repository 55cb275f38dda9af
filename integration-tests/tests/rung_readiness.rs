//! What passes between a service manager and a container: readiness (NOTIFY_SOCKET) and sockets (LISTEN_FDS).

use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, ensure};
use integration_tests::{Bundle, Env, Ran, Result, Test, output, tests, wait};

pub(crate) const TESTS: &[Test] = tests![
    a_detached_run_waits_until_the_program_is_ready[Root],
    a_created_container_is_listened_to_by_start[Root],
    in_the_foreground_the_runtime_is_watched[Root],
    a_manager_that_is_gone_costs_the_container[Root],
    a_program_that_ends_unready_is_not_waited_for[Root],
    descriptors_of_a_service_manager_are_passed[Root],
];

/// The service manager's side.
struct Manager {
    socket: UnixDatagram,
    path: std::path::PathBuf,
}

impl Manager {
    fn new(env: &Env) -> Result<Self> {
        let path = env.path("manager.sock");
        let socket = UnixDatagram::bind(&path).context("bind the manager's socket")?;
        socket.set_read_timeout(Some(wait::seconds(30)))?;
        Ok(Self { socket, path })
    }

    /// The next message; a descriptor that comes with it is closed, which is the answer to a barrier.
    fn next(&self) -> Result<String> {
        let mut buffer = [0; 512];
        let length = self.socket.recv(&mut buffer).context("wait for a message of the runtime")?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    fn expect_ready(&self, pid: &str) -> Result<()> {
        ensure!(self.next()? == "READY=1\n");
        let main = self.next()?;
        ensure!(main == format!("MAINPID={pid}\n"), "{main} is not {pid}");
        ensure!(self.next()? == "BARRIER=1");
        Ok(())
    }

    fn rung(&self, env: &Env, args: &[&str]) -> Result<Command> {
        let mut command = env.rung(args)?;
        command.env("NOTIFY_SOCKET", &self.path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(command)
    }
}

/// A container that shows what it knows of its manager and stays.
fn bundle(env: &Env, name: &str) -> Result<Bundle> {
    let script = "test \"$NOTIFY_SOCKET\" = /run/notify/notify.sock || exit 3; exec sleep 600";
    Bundle::new(env, name, &["sh", "-c", script])
}

fn pid(env: &Env, id: &str) -> Result<String> {
    wait::until("the container runs", || {
        let state = env.state(id).ok()?;
        (state["status"] == "running").then(|| state["pid"].to_string())
    })
}

/// Says it through the container's own view of the socket.
fn say(pid: &str, text: &str) -> Result<()> {
    let socket = UnixDatagram::unbound()?;
    let path = format!("/proc/{pid}/root/run/notify/notify.sock");
    wait::until("the socket is there", || socket.send_to(text.as_bytes(), &path).ok())?;
    Ok(())
}

fn is_running(child: &mut Child) -> Result<bool> {
    Ok(child.try_wait()?.is_none())
}

fn a_detached_run_waits_until_the_program_is_ready(env: &Env) -> Result<()> {
    let manager = Manager::new(env)?;
    let id = env.id("detached");
    let bundle = bundle(env, "detached")?;
    let mut run = manager.rung(env, &["run", "--detach", "--bundle", bundle.write()?, &id])?.spawn()?;
    let outcome = || -> Result<()> {
        let pid = pid(env, &id)?;
        say(&pid, "STATUS=not yet")?;
        ensure!(is_running(&mut run)?, "it did not wait");
        say(&pid, "STATUS=up\nREADY=1")?;
        manager.expect_ready(&pid)?;
        ensure!(run.wait()?.success());
        Ok(())
    }();
    drop((run.kill(), run.wait()));
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    ensure!(!env.path("rung").join(&id).exists(), "the socket's directory is left");
    outcome
}

fn a_created_container_is_listened_to_by_start(env: &Env) -> Result<()> {
    let manager = Manager::new(env)?;
    let id = env.id("created");
    let bundle = bundle(env, "created")?;
    ensure!(manager.rung(env, &["create", "--bundle", bundle.write()?, &id])?.status()?.success());
    let mut start = manager.rung(env, &["start", &id])?.spawn()?;
    let outcome = || -> Result<()> {
        let pid = pid(env, &id)?;
        say(&pid, "READY=1")?;
        manager.expect_ready(&pid)?;
        ensure!(start.wait()?.success());
        Ok(())
    }();
    drop((start.kill(), start.wait()));
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    outcome
}

fn in_the_foreground_the_runtime_is_watched(env: &Env) -> Result<()> {
    let manager = Manager::new(env)?;
    let id = env.id("front");
    let bundle = bundle(env, "front")?;
    let mut run = manager.rung(env, &["run", "--bundle", bundle.write()?, &id])?.spawn()?;
    let outcome = || -> Result<()> {
        let pid = pid(env, &id)?;
        say(&pid, "READY=1")?;
        manager.expect_ready(&run.id().to_string())?;
        ensure!(is_running(&mut run)?);
        env.run_rung(&["kill", &id, "KILL"])?.ok()?;
        ensure!(run.wait()?.code() == Some(137));
        Ok(())
    }();
    drop((run.kill(), run.wait()));
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    outcome
}

/// Nobody would look after it.
fn a_manager_that_is_gone_costs_the_container(env: &Env) -> Result<()> {
    let id = env.id("orphan");
    let bundle = bundle(env, "orphan")?;
    let manager = Manager::new(env)?;
    let mut run = manager.rung(env, &["run", "--bundle", bundle.write()?, &id])?.spawn()?;
    let outcome = || -> Result<()> {
        let pid = pid(env, &id)?;
        drop(manager);
        std::fs::remove_file(env.path("manager.sock"))?;
        say(&pid, "READY=1")?;
        ensure!(run.wait()?.code() == Some(1));
        ensure!(env.run_rung(&["state", &id])?.fails()?.contains("does not exist"));
        ensure!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "the program runs on");
        Ok(())
    }();
    drop((run.kill(), run.wait()));
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    outcome
}

fn a_program_that_ends_unready_is_not_waited_for(env: &Env) -> Result<()> {
    let manager = Manager::new(env)?;
    let id = env.id("ends");
    let bundle = Bundle::new(env, "ends", &["true"])?;
    ensure!(manager.rung(env, &["run", "--detach", "--bundle", bundle.write()?, &id])?.status()?.success());
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    Ok(())
}

/// A shell puts a file at descriptor 3 and becomes the runtime, with its own number in LISTEN_PID.
fn listen(env: &Env, file: &str, variables: &str, bundle: &str, id: &str) -> Result<Ran> {
    let mut command = Command::new("sh");
    let script = format!("{variables} exec \"$RUNG\" --root \"$STATE\" run --bundle {bundle} {id} 3<{file}");
    command.args(["-c", &script]).env("RUNG", env.program("rung")?).env("STATE", env.path("rung"));
    output::run(command)
}

fn descriptors_of_a_service_manager_are_passed(env: &Env) -> Result<()> {
    let file = env.path("socket");
    std::fs::write(&file, "hello\n")?;
    let file = file.to_str().context("a path")?;
    let script = "echo $LISTEN_FDS $LISTEN_PID; test -e /proc/self/fd/3 && cat <&3; exit 0";
    let bundle = Bundle::new(env, "listen", &["sh", "-c", script])?;
    let (path, id) = (bundle.write()?, env.id("listen"));
    let passed = listen(env, file, "LISTEN_FDS=1 LISTEN_PID=$$", path, &id)?.ok()?.stdout;
    ensure!(passed == "1 1\nhello\n", "{passed}");
    let foreign = listen(env, file, "LISTEN_FDS=1 LISTEN_PID=1", path, &id)?.ok()?.stdout;
    ensure!(foreign.trim().is_empty(), "descriptors of another process were passed: {foreign}");
    let missing = listen(env, file, "LISTEN_FDS=2 LISTEN_PID=$$", path, &id)?.fails()?;
    ensure!(missing.contains("preserved-fd 4"), "{missing}");
    Ok(())
}
