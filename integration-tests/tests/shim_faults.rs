//! Shims when something around them fails: a runtime that hangs, memory that runs out everywhere at once.

use std::fs;
use std::path::PathBuf;

use anyhow::Context as _;
use gantry_proto::containerd::events::{TaskExit, TaskOom};
use gantry_proto::containerd::task::v3::*;
use gantry_proto::status::Code;
use gantry_proto::ttrpc::{Client, Context};
use integration_tests::supervisor::{Stdio, Supervisor};
use integration_tests::{Bundle, Env, Result, Test, daemon, tests, wait};
use serde_json::json;

pub(crate) const TESTS: &[Test] = tests![
    a_runtime_that_hangs_holds_up_nothing_else[Root],
    a_create_that_cannot_be_undone_is_not_forgotten[Root],
    memory_kills_in_many_containers_are_all_announced[Root],
    clients_that_have_left_leave_room[Root],
];

/// A runtime that never finishes an exec, says so by the file `hangs`, and like others that stand before one reads the bundle
/// where it is started.
fn hanging_runtime(env: &Env) -> Result<PathBuf> {
    let script = format!(
        "#!/bin/sh\ntest -e config.json || exit 1\n\
         for word; do case $word in exec) : >{}; exec sleep 1000;; esac; done\nexec {} \"$@\"\n",
        env.path("hangs").display(),
        env.program("rung")?.display()
    );
    env.script("hanging", &script)
}

fn a_runtime_that_hangs_holds_up_nothing_else(env: &Env) -> Result<()> {
    let bundle = Bundle::new(env, "held", &["sleep", "60"])?;
    let runtime = hanging_runtime(env)?;
    daemon::runtime()?.block_on(async {
        let shim = Supervisor::start(env, &bundle).await?;
        let request = shim.request_of(&runtime, &Stdio::default());
        shim.call::<_, CreateTaskResponse>("Create", &request).await?;
        shim.start_process("").await?;
        shim.exec("e1", &["true"], &Stdio::default()).await?;
        shim.exec("e2", &["true"], &Stdio::default()).await?;
        let others = async {
            while !env.path("hangs").exists() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            shim.state("").await?;
            shim.state("e1").await?;
            let id = shim.id.clone();
            let pids: PidsResponse = shim.call("Pids", &PidsRequest { id: id.clone() }).await?;
            assert_eq!(pids.processes.len(), 1);
            shim.call::<_, StatsResponse>("Stats", &StatsRequest { id: id.clone() }).await?;
            shim.call::<_, ConnectResponse>("Connect", &ConnectRequest { id }).await?;
            shim.kill("e2", 9).await?;
            assert_eq!(shim.wait("e2").await?, 137, "an exec that waits for its start");
            shim.kill("", 9).await?;
            shim.wait("").await
        };
        let (started, ended) = tokio::join!(shim.start_process("e1"), others);
        assert_eq!(ended?, 137);
        assert_eq!(started.expect_err("the container ended around it").code, Code::FailedPrecondition);
        assert_eq!(shim.wait("e1").await?, 255);
        shim.delete("").await?;
        shim.shutdown().await
    })
}

/// A runtime whose create never returns although the process is there, and whose delete fails until `good` is there.
fn stubborn_runtime(env: &Env, good: &std::path::Path) -> Result<PathBuf> {
    let script = format!(
        "#!/bin/sh\nfor word; do case $word in create) {rung} \"$@\"; exec sleep 1000;; \
         delete) [ -e {good} ] || exit 1;; esac; done\nexec {rung} \"$@\"\n",
        rung = env.program("rung")?.display(),
        good = good.display(),
    );
    env.script("stubborn", &script)
}

fn a_create_that_cannot_be_undone_is_not_forgotten(env: &Env) -> Result<()> {
    let bundle = Bundle::new(env, "left", &["sleep", "60"])?;
    let good = env.path("good");
    let runtime = stubborn_runtime(env, &good)?;
    daemon::runtime()?.block_on(async {
        let shim = Supervisor::start(env, &bundle).await?;
        let request = shim.request_of(&runtime, &Stdio::default());
        let context = Context::new().with_timeout(std::time::Duration::from_secs(2));
        let create = shim.client.call::<_, CreateTaskResponse>("containerd.task.v3.Task", "Create", &request, &context);
        assert_eq!(create.await.expect_err("its create does not return").code, Code::DeadlineExceeded);
        let pid = fs::read_to_string(shim.bundle.join("init.pid")).context("the process was made")?;
        // Its process is ended all the same, and what is left of it is still the shim's.
        shim.wait("").await?;
        assert!(!std::path::Path::new("/proc").join(pid.trim()).exists(), "process {pid} is an orphan");
        assert!(shim.delete("").await.is_err(), "the runtime cannot delete");
        let again = shim.create(&Stdio::default()).await.expect_err("it is still there");
        assert_eq!(again.code, Code::AlreadyExists);
        fs::write(&good, "")?;
        shim.delete("").await?;
        assert_eq!(shim.state("").await.expect_err("gone").code, Code::NotFound);
        shim.shutdown().await
    })
}

const EATERS: usize = 8;

fn memory_kills_in_many_containers_are_all_announced(env: &Env) -> Result<()> {
    for _ in 0..wait::amount(wait::rounds(1), 50) {
        daemon::runtime()?.block_on(async {
            let mut shims = Vec::new();
            for number in 0..EATERS {
                let eat = "x=a; while true; do x=$x$x$x$x; done";
                let name = format!("eat{number}");
                if env.path(&name).exists() {
                    fs::remove_dir_all(env.path(&name)).context("the bundle of the last round")?;
                }
                let mut bundle = Bundle::new(env, &name, &["sh", "-c", eat])?;
                bundle.set("/linux/resources/memory", json!({ "limit": 16 << 20, "swap": 16 << 20 }));
                let shim = Supervisor::start(env, &bundle).await?;
                shim.create(&Stdio::default()).await?;
                shims.push(shim);
            }
            for shim in &shims {
                shim.start_process("").await?;
            }
            for shim in &shims {
                assert_eq!(shim.wait("").await?, 137);
                shim.events.until("exit", 1).await?;
                assert!(!shim.events.of::<TaskOom>().is_empty(), "{}: {:?}", shim.id, shim.events.topics());
                assert_eq!(shim.events.of::<TaskExit>().len(), 1);
                let topics = shim.events.topics();
                let place = |topic: &str| topics.iter().position(|seen| seen == topic);
                assert!(place("oom") < place("exit"), "{topics:?}");
                shim.finish().await?;
                shim.forget_events()?;
            }
            anyhow::Ok(())
        })?;
    }
    Ok(())
}

/// More clients than a shim serves at once, all of whom go.
fn clients_that_have_left_leave_room(env: &Env) -> Result<()> {
    let bundle = Bundle::new(env, "room", &["sleep", "60"])?;
    daemon::runtime()?.block_on(async {
        let mut shim = Supervisor::start(env, &bundle).await?;
        shim.create(&Stdio::default()).await?;
        let path = shim.address.strip_prefix("unix://").context("a unix address")?.to_owned();
        let (crowd, open) = (300, format!("/proc/{}/fd", shim.shim_pid().await?));
        let clients = (0..crowd).map(|_| std::os::unix::net::UnixStream::connect(&path));
        let clients: Vec<_> = clients.collect::<std::io::Result<_>>()?;
        let count = || fs::read_dir(&open).map_or(0, Iterator::count);
        wait::until("it serves as many as it does at once", || (count() > 250).then_some(()))?;
        drop(clients);
        wait::until("it has noticed that they are gone", || (count() < 250).then_some(()))?;
        shim.client = Client::connect(&path).await?;
        let connect = ConnectRequest { id: shim.id.clone() };
        let soon = Context::new().with_timeout(wait::seconds(10));
        let answer = shim.client.call("containerd.task.v3.Task", "Connect", &connect, &soon).await;
        let _: ConnectResponse = answer.context("one more client")?;
        shim.finish().await
    })
}
