//! The shim's start, its Task and Sandbox services, and its end, without a daemon.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::sync::mpsc;

use gantry_proto::any;
use gantry_proto::containerd::events::TaskExecAdded;
use gantry_proto::containerd::runtime::sandbox::v1 as sandbox;
use gantry_proto::containerd::task::v3::*;
use gantry_proto::containerd::types::RuntimeInfo;
use gantry_proto::containerd::v1::types::Status as TaskStatus;
use gantry_proto::status::{Code, Status};
use gantry_proto::ttrpc::Context;
use integration_tests::supervisor::{Events, Stdio, Supervisor, annotate, run_start, start_options};
use integration_tests::{Bundle, Env, Result, Test, daemon, tests, wait};
use nix::sched::{CloneFlags, unshare};
use prost::Message;

pub(crate) const TESTS: &[Test] = tests![
    a_container_lives_its_life [Root],
    nobody_waits_for_containers_of_a_daemon_under_systemd [Root],
    older_daemons_get_the_answer_they_read [Root],
    a_group_shares_one_shim [Root],
    refusals_have_their_codes [Root],
    pause_and_update_and_stats [Root],
    a_sandbox_is_a_process_or_the_shim [Root],
    a_sandbox_without_a_process_shows_its_network [Root],
    a_killed_shim_is_cleaned_up_after [Root],
    a_failed_create_leaves_nothing [Root],
    a_create_nobody_waits_for_is_undone [Root],
    it_describes_itself [],
];

fn a_container_lives_its_life(env: &Env) -> Result<()> {
    let bundle = Bundle::new(env, "life", &["sh", "-c", "exit 7"])?;
    daemon::runtime()?.block_on(async {
        let shim = Supervisor::start(env, &bundle).await?;
        let pid = shim.create(&Stdio::default()).await?;
        assert_eq!(shim.state("").await?, TaskStatus::Created);
        assert_eq!(shim.start_process("").await?, pid);
        assert_eq!(shim.wait("").await?, 7);
        assert_eq!(shim.state("").await?, TaskStatus::Stopped);
        let deleted = shim.delete("").await?;
        assert_eq!((deleted.pid, deleted.exit_status), (pid, 7));
        assert!(deleted.exited_at.is_some());
        shim.events.until("delete", 1).await?;
        assert_eq!(shim.events.topics(), ["create", "start", "exit", "delete"]);
        let request = ShutdownRequest { id: shim.id.clone(), now: false };
        shim.call::<_, ()>("Shutdown", &request).await?;
        // Who has this answer may start another shim of the name, which must not find this one's.
        let path = shim.address.trim_start_matches("unix://");
        assert!(!std::path::Path::new(path).exists(), "the socket stays");
        shim.client.closed().await;
        Ok(())
    })
}

/// `Type=notify` gives the daemon, and so the shim, a socket to say when it is ready. It is not the containers'.
fn nobody_waits_for_containers_of_a_daemon_under_systemd(env: &Env) -> Result<()> {
    let bundle = Bundle::new(env, "told", &["sh", "-c", "exit ${NOTIFY_SOCKET:+1}"])?;
    bundle.write()?;
    let path = env.path("notify");
    let _manager = UnixDatagram::bind(&path)?;
    let variables = [("NOTIFY_SOCKET", &*path.to_string_lossy())];
    daemon::runtime()?.block_on(async {
        let shim = Supervisor::start_among(env, &env.id("told"), &bundle.path, &variables).await?;
        shim.create(&Stdio::default()).await?;
        shim.start_process("").await?;
        assert_eq!(shim.wait("").await?, 0);
        shim.finish().await
    })
}

fn older_daemons_get_the_answer_they_read(env: &Env) -> Result<()> {
    let bundle = Bundle::new(env, "older", &["true"])?;
    bundle.write()?;
    daemon::runtime()?.block_on(async {
        // containerd 1.6: options or nothing on standard input, a bare address back, and the second Task service.
        let id = env.id("older");
        let bare = String::from_utf8(run_start(env, &id, &bundle.path, &start_options(env), &[])?)?;
        assert!(bare.starts_with("unix:///run/containerd/s/"), "{bare}");
        // containerd 1.7 and 2: JSON. It finds the shim that is there.
        let json = run_start(env, &id, &bundle.path, &[], &[("MAX_SHIM_VERSION", "2")])?;
        let json: serde_json::Value = serde_json::from_slice(&json)?;
        assert_eq!(json, serde_json::json!({ "version": 2, "address": bare, "protocol": "ttrpc" }));
        let shim = Supervisor::connect(env, &id, &bundle.path, &bare, Events::default()).await?;
        shim.create(&Stdio::default()).await?;
        let request = StateRequest { id, exec_id: String::new() };
        let state: StateResponse =
            shim.client.call("containerd.task.v2.Task", "State", &request, &Context::new()).await?;
        assert_eq!(state.status(), TaskStatus::Created);
        // Go's zero time: what is absent is 1970 for containerd, and so an end.
        assert_eq!(state.exited_at.map(|at| at.seconds), Some(-62_135_596_800));
        shim.finish().await
    })
}

fn a_group_shares_one_shim(env: &Env) -> Result<()> {
    let mut first = Bundle::new(env, "pod", &["sleep", "60"])?;
    let mut second = Bundle::new(env, "member", &["sh", "-c", "exit 3"])?;
    for bundle in [&mut first, &mut second] {
        annotate(bundle, "io.kubernetes.cri.sandbox-id", &env.id("pod"));
    }
    daemon::runtime()?.block_on(async {
        let pod = Supervisor::start(env, &first).await?;
        let member = Supervisor::start(env, &second).await?;
        assert_eq!(pod.address, member.address);
        pod.create(&Stdio::default()).await?;
        pod.start_process("").await?;
        member.create(&Stdio::default()).await?;
        assert_eq!(pod.shim_pid().await?, member.shim_pid().await?);
        member.start_process("").await?;
        assert_eq!(member.wait("").await?, 3);
        member.delete("").await?;
        // The shim has another container: it stays.
        let request = ShutdownRequest { id: member.id.clone(), now: true };
        member.call::<_, ()>("Shutdown", &request).await?;
        assert_eq!(pod.state("").await?, TaskStatus::Running);
        pod.finish().await
    })
}

fn refusals_have_their_codes(env: &Env) -> Result<()> {
    let bundle = Bundle::new(env, "refuse", &["sleep", "60"])?;
    daemon::runtime()?.block_on(async {
        let shim = Supervisor::start(env, &bundle).await?;
        let code = |result: Result<(), Status>| result.expect_err("refused").code;
        assert_eq!(code(shim.state("").await.map(drop)), Code::NotFound);
        shim.create(&Stdio::default()).await?;
        assert_eq!(code(shim.create(&Stdio::default()).await.map(drop)), Code::AlreadyExists);
        shim.start_process("").await?;
        assert_eq!(code(shim.start_process("").await.map(drop)), Code::FailedPrecondition);
        assert_eq!(code(shim.delete("").await.map(drop)), Code::FailedPrecondition);
        assert_eq!(code(shim.start_process("nothing").await.map(drop)), Code::NotFound);
        shim.exec("one", &["sleep", "60"], &Stdio::default()).await?;
        assert_eq!(code(shim.exec("one", &["true"], &Stdio::default()).await), Code::AlreadyExists);
        assert_eq!(code(shim.exec("../up", &["true"], &Stdio::default()).await), Code::InvalidArgument);
        assert_eq!(code(shim.kill("", 99).await), Code::InvalidArgument);
        let unknown = shim.client.call::<_, ()>("containerd.task.v3.Task", "Fly", &(), &Context::new()).await;
        assert_eq!(code(unknown), Code::Unimplemented);
        // A start that failed ends the wait of whoever waits, and leaves the exec as it was.
        shim.exec("missing", &["/no-such-program"], &Stdio::default()).await?;
        // Containerd 2 shows a detail it does not know as one more error: only who asks is sent one.
        let status = shim.start_process("missing").await.expect_err("no such program");
        assert!(status.details.is_empty(), "{status:?}");
        assert_eq!(shim.wait("missing").await?, 255);
        assert_eq!(shim.state("missing").await?, TaskStatus::Created);
        shim.delete("missing").await?;
        let pause = PauseRequest { id: shim.id.clone() };
        shim.call::<_, ()>("Pause", &pause).await?;
        assert_eq!(code(shim.exec("frozen", &["true"], &Stdio::default()).await), Code::Unknown);
        shim.call::<_, ()>("Resume", &ResumeRequest { id: shim.id.clone() }).await?;
        // An exec that never ran ends by the signal it is sent, and is waited for like any other.
        shim.kill("one", 15).await?;
        assert_eq!(shim.wait("one").await?, 128 + 15);
        shim.kill("", 9).await?;
        assert_eq!(shim.wait("").await?, 128 + 9);
        assert_eq!(code(shim.kill("", 9).await), Code::NotFound);
        assert_eq!(code(shim.start_process("nothing").await.map(drop)), Code::NotFound);
        assert_eq!(code(shim.exec("late", &["true"], &Stdio::default()).await), Code::Unknown);
        shim.events.until("exit", 1).await?;
        let added = shim.events.of::<TaskExecAdded>().into_iter().map(|event| event.exec_id).collect::<Vec<_>>();
        assert_eq!(added, ["one", "missing"], "what is refused is not announced");
        let resize = ResizePtyRequest { id: shim.id.clone(), width: 80, height: 24, ..ResizePtyRequest::default() };
        assert_eq!(code(shim.call::<_, ()>("ResizePty", &resize).await), Code::Unknown);
        shim.finish().await
    })
}

fn pause_and_update_and_stats(env: &Env) -> Result<()> {
    let bundle = Bundle::new(env, "pause", &["sleep", "60"])?;
    daemon::runtime()?.block_on(async {
        let shim = Supervisor::start(env, &bundle).await?;
        let pid = shim.create(&Stdio::default()).await?;
        shim.start_process("").await?;
        let id = shim.id.clone();
        shim.exec("beside", &["sleep", "50"], &Stdio::default()).await?;
        let beside = shim.start_process("beside").await?;
        let pids: PidsResponse = shim.call("Pids", &PidsRequest { id: id.clone() }).await?;
        let named: Vec<u32> = pids.processes.iter().filter(|one| one.info.is_some()).map(|one| one.pid).collect();
        assert_eq!(named, [beside]);
        assert!(pids.processes.iter().any(|one| one.pid == pid));
        shim.call::<_, ()>("Pause", &PauseRequest { id: id.clone() }).await?;
        assert_eq!(shim.state("beside").await?, TaskStatus::Paused);
        shim.call::<_, ()>("Resume", &ResumeRequest { id: id.clone() }).await?;
        assert_eq!(shim.state("").await?, TaskStatus::Running);
        let limits = br#"{"pids":{"limit":77}}"#.to_vec();
        let resources = Some(any::json(any::LINUX_RESOURCES, limits));
        let update = UpdateTaskRequest { id: id.clone(), resources, ..UpdateTaskRequest::default() };
        shim.call::<_, ()>("Update", &update).await?;
        let stats: StatsResponse = shim.call("Stats", &StatsRequest { id }).await?;
        let stats = stats.stats.expect("stats");
        let limit = match any::unpack::<gantry_proto::io::containerd::cgroups::v1::Metrics>(&stats) {
            Ok(metrics) => metrics.pids.expect("pids").limit,
            Err(_) => {
                let metrics: gantry_proto::io::containerd::cgroups::v2::Metrics = any::unpack(&stats)?;
                metrics.pids.expect("pids").limit
            }
        };
        assert_eq!(limit, 77);
        shim.finish().await
    })
}

const SANDBOX: &str = "containerd.runtime.sandbox.v1.Sandbox";

fn a_sandbox_without_a_process_shows_its_network(env: &Env) -> Result<()> {
    let (tell, told) = mpsc::channel();
    let (keep, kept) = mpsc::channel::<()>();
    let network = std::thread::spawn(move || {
        tell.send(unshare(CloneFlags::CLONE_NEWNET).map(|()| nix::unistd::gettid())).expect("tell");
        kept.recv().expect_err("the test ends");
    });
    let path = format!("/proc/{}/ns/net", told.recv()??);
    let mut bundle = Bundle::new(env, "member", &["sh", "-c", "echo out"])?;
    annotate(&mut bundle, "io.kubernetes.cri.sandbox-id", &env.id("bare"));
    let script = format!("#!/bin/sh\nexec 5>&-\nexec cat <&3 >{}\n", env.path("got").display());
    let logger = format!("binary://{}", env.script("logger.sh", &script)?.display());
    daemon::runtime()?.block_on(async {
        let context = Context::new().with_timeout(wait::seconds(30));
        let shim = Supervisor::start_at(env, &env.id("bare"), &env.dir("bare")?).await?;
        let sandbox_id = shim.id.clone();
        let create = |netns_path: &str| sandbox::CreateSandboxRequest {
            sandbox_id: sandbox_id.clone(),
            bundle_path: shim.bundle.to_string_lossy().into_owned(),
            netns_path: netns_path.to_owned(),
            ..sandbox::CreateSandboxRequest::default()
        };
        let _: sandbox::CreateSandboxResponse =
            shim.client.call(SANDBOX, "CreateSandbox", &create(&path), &context).await?;
        let start = sandbox::StartSandboxRequest { sandbox_id: sandbox_id.clone() };
        let started: sandbox::StartSandboxResponse =
            shim.client.call(SANDBOX, "StartSandbox", &start, &context).await?;
        let (pid, shim_pid) = (started.pid, shim.shim_pid().await?);
        let inode = |path: &str| fs::metadata(path).map(|found| found.ino());
        assert_eq!(inode(&format!("/proc/{pid}/ns/net"))?, inode(&path)?);
        assert_eq!(inode(&format!("/proc/{shim_pid}/ns/net"))?, inode("/proc/self/ns/net")?, "the shim stays outside");
        assert!(fs::read_to_string(format!("/proc/{pid}/status"))?.contains(&format!("Tgid:\t{shim_pid}\n")));
        let status = sandbox::SandboxStatusRequest { sandbox_id: sandbox_id.clone(), verbose: true };
        let status: sandbox::SandboxStatusResponse =
            shim.client.call(SANDBOX, "SandboxStatus", &status, &context).await?;
        assert_eq!((status.pid, status.state.as_str()), (pid, "SANDBOX_READY"));
        // A program for logs is started by a fork, which is possible only where no thread has to do with memory.
        let member = Supervisor::start(env, &bundle).await?;
        member.create(&Stdio { stdout: logger, ..Stdio::default() }).await?;
        member.start_process("").await?;
        assert_eq!(member.wait("").await?, 0);
        member.delete("").await?;
        assert_eq!(fs::read_to_string(env.path("got"))?, "out\n");
        let stop = sandbox::StopSandboxRequest { sandbox_id: sandbox_id.clone(), timeout_secs: 1 };
        let _: sandbox::StopSandboxResponse = shim.client.call(SANDBOX, "StopSandbox", &stop, &context).await?;
        let tasks = fs::read_dir(format!("/proc/{shim_pid}/task"))?.count();
        assert_eq!(tasks, 1, "the network is let go of before the shim ends");
        let shutdown = sandbox::ShutdownSandboxRequest { sandbox_id: sandbox_id.clone() };
        let _: sandbox::ShutdownSandboxResponse =
            shim.client.call(SANDBOX, "ShutdownSandbox", &shutdown, &context).await?;
        tokio::time::timeout(wait::seconds(10), shim.client.closed()).await?;
        Ok::<_, anyhow::Error>(())
    })?;
    drop(keep);
    network.join().expect("thread");
    Ok(())
}

fn a_sandbox_is_a_process_or_the_shim(env: &Env) -> Result<()> {
    let bundle = Bundle::new(env, "box", &["sleep", "60"])?;
    let empty = env.dir("bare")?;
    daemon::runtime()?.block_on(async {
        let context = Context::new().with_timeout(wait::seconds(30));
        for (shim, processes) in [
            (Supervisor::start(env, &bundle).await?, true),
            (Supervisor::start_at(env, &env.id("bare"), &empty).await?, false),
        ] {
            let id = shim.id.clone();
            let create = sandbox::CreateSandboxRequest {
                sandbox_id: id.clone(),
                bundle_path: shim.bundle.to_string_lossy().into_owned(),
                options: Some(prost_types::Any::decode(start_options(env).as_slice())?),
                ..sandbox::CreateSandboxRequest::default()
            };
            let _: sandbox::CreateSandboxResponse =
                shim.client.call(SANDBOX, "CreateSandbox", &create, &context).await?;
            let start = sandbox::StartSandboxRequest { sandbox_id: id.clone() };
            let started: sandbox::StartSandboxResponse =
                shim.client.call(SANDBOX, "StartSandbox", &start, &context).await?;
            assert_eq!(started.pid == shim.shim_pid().await?, !processes);
            let status = sandbox::SandboxStatusRequest { sandbox_id: id.clone(), verbose: true };
            let status: sandbox::SandboxStatusResponse =
                shim.client.call(SANDBOX, "SandboxStatus", &status, &context).await?;
            assert_eq!(status.state, "SANDBOX_READY");
            let stop = sandbox::StopSandboxRequest { sandbox_id: id.clone(), timeout_secs: 1 };
            let _: sandbox::StopSandboxResponse = shim.client.call(SANDBOX, "StopSandbox", &stop, &context).await?;
            let wait = sandbox::WaitSandboxRequest { sandbox_id: id.clone() };
            let ended: sandbox::WaitSandboxResponse = shim.client.call(SANDBOX, "WaitSandbox", &wait, &context).await?;
            assert_eq!(ended.exit_status, if processes { 128 + 9 } else { 0 });
            let shutdown = sandbox::ShutdownSandboxRequest { sandbox_id: id };
            let _: sandbox::ShutdownSandboxResponse =
                shim.client.call(SANDBOX, "ShutdownSandbox", &shutdown, &context).await?;
            tokio::time::timeout(wait::seconds(10), shim.client.closed()).await?;
        }
        Ok(())
    })
}

fn a_killed_shim_is_cleaned_up_after(env: &Env) -> Result<()> {
    let bundle = Bundle::new(env, "orphan", &["sleep", "60"])?;
    daemon::runtime()?.block_on(async {
        let shim = Supervisor::start(env, &bundle).await?;
        let pid = shim.create(&Stdio::default()).await?;
        shim.start_process("").await?;
        let shim_pid = i32::try_from(shim.shim_pid().await?)?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim_pid), nix::sys::signal::Signal::SIGKILL)?;
        shim.client.closed().await;
        assert!(std::path::Path::new(&format!("/proc/{pid}")).exists(), "the container outlives its shim");
        let deleted = shim.delete_dead()?;
        assert_eq!((deleted.pid, deleted.exit_status), (pid, 137));
        let gone = || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            (stat.is_empty() || stat.contains(") Z ")).then_some(())
        };
        wait::until("the container's process to end", gone)?;
        assert!(!std::path::Path::new(shim.address.trim_start_matches("unix://")).exists());
        // A second time finds nothing to do.
        shim.delete_dead()?;
        Ok(())
    })
}

fn a_failed_create_leaves_nothing(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "broken", &["sleep", "60"])?;
    bundle.set("/process/cwd", "not absolute");
    daemon::runtime()?.block_on(async {
        let shim = Supervisor::start(env, &bundle).await?;
        let error = shim.create(&Stdio::default()).await.expect_err("a broken configuration");
        assert!(error.message.contains(&shim.id), "{error}");
        assert_eq!(shim.state("").await.expect_err("gone").code, Code::NotFound);
        bundle.set("/process/cwd", "/").write()?;
        shim.create(&Stdio::default()).await?;
        shim.finish().await
    })
}

fn a_create_nobody_waits_for_is_undone(env: &Env) -> Result<()> {
    let bundle = Bundle::new(env, "stuck", &["sleep", "60"])?;
    let stuck = env.script("stuck-runtime", "#!/bin/sh\ncase \"$*\" in *create*) exec sleep 1000;; esac\n")?;
    daemon::runtime()?.block_on(async {
        let shim = Supervisor::start(env, &bundle).await?;
        let request = shim.request_of(&stuck, &Stdio::default());
        let context = Context::new().with_timeout(std::time::Duration::from_millis(300));
        let create = shim.client.call::<_, CreateTaskResponse>("containerd.task.v3.Task", "Create", &request, &context);
        assert_eq!(create.await.expect_err("stuck").code, Code::DeadlineExceeded);
        // The identifier is free again as soon as the shim has cleaned up.
        let limit = tokio::time::Instant::now() + wait::seconds(10);
        while let Err(status) = shim.create(&Stdio::default()).await {
            assert_eq!(status.code, Code::AlreadyExists);
            assert!(tokio::time::Instant::now() < limit, "the identifier stays taken");
        }
        shim.finish().await
    })
}

fn it_describes_itself(env: &Env) -> Result<()> {
    let mut command = env.command("containerd-shim-rung-v2")?;
    let output = command.arg("-info").stdin(std::process::Stdio::null()).output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let info = RuntimeInfo::decode(output.stdout.as_slice())?;
    assert_eq!(info.name, "io.containerd.rung.v2");
    assert_eq!(info.annotations.get("containerd.io/runtime-allow-mounts").map(String::as_str), Some("erofs"));
    assert!(info.version.is_some_and(|version| !version.version.is_empty()));
    let mut command = env.command("containerd-shim-rung-v2")?;
    let output = command.args(["-namespace", "a/b", "-id", "x", "start"]).output()?;
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("-namespace"));
    Ok(())
}
