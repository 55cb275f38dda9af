//! What `gantry update` and `rename` change of a container, limits in force, health, and what `inspect` says of them.

use std::process::Stdio;

use integration_tests::image::CHILD_WANTS_MEMORY;
use integration_tests::{Env, Image, Result, Stack, Test, tests, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub(crate) const TESTS: &[Test] = tests![
    limits_are_in_force [Root, Overlay, EveryHost],
    limits_change_while_it_runs [Root, Overlay],
    out_of_memory_is_reported_whichever_event_comes_first [Root, Overlay],
    a_container_gets_another_name [Root, Overlay],
    inspect_shows_the_options [Root, Overlay],
    health_checks_set_the_status [Root, Overlay],
    slow_probes_leave_nothing_in_the_shim [Root, Overlay],
];

/// Shows the limits from inside.
const LIMITS: &str = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max /sys/fs/cgroup/cpu.max 2>/dev/null ||
    cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/pids/pids.max \
        /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu/cpu.cfs_period_us";

fn limits_change_while_it_runs(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    stack.gantry(&["run", "-d", "--name", "web", "-m", "64m", "--pids-limit", "20", "IMAGE", "sleep", "1000"])?.ok()?;
    let changed = ["-m", "96m", "--cpus", "0.5", "--pids-limit", "30", "--restart", "on-failure:3"];
    assert_eq!(stack.gantry(&[&["update"], &changed[..], &["web"]].concat())?.ok()?.text(), "web");
    let inside = || -> Result<Vec<String>> {
        let ran = stack.gantry(&["exec", "web", "sh", "-c", LIMITS])?.ok()?;
        Ok(ran.stdout.split_whitespace().map(str::to_owned).collect())
    };
    let wanted = ["100663296", "30", "50000", "100000"];
    assert_eq!(inside()?, wanted);
    let format = "{{.HostConfig.Memory}} {{.HostConfig.RestartPolicy.Name}}";
    assert_eq!(stack.gantry(&["inspect", "--format", format, "web"])?.ok()?.text(), "100663296 on-failure");
    stack.gantry(&["restart", "-t", "0", "web"])?.ok()?;
    assert_eq!(inside()?, wanted, "of the next run too");
    stack.gantry(&["update", "--memory-reservation", "32m", "--cpu-shares", "512", "web"])?.ok()?;
    let others = "cd /sys/fs/cgroup; cat memory.low cpu.weight 2>/dev/null ||
        cat memory/memory.soft_limit_in_bytes cpu/cpu.shares";
    let others = stack.gantry(&["exec", "web", "sh", "-c", others])?.ok()?;
    assert!(["33554432\n512", "33554432\n59"].contains(&others.text()), "{others}");
    assert_eq!(inside()?, wanted);
    stack.gantry(&["update", "--cpuset-cpus", "0", "--cpuset-mems", "0", "web"])?.ok()?;
    let confined = stack.gantry(&["exec", "web", "grep", "Cpus_allowed_list", "/proc/self/status"])?.ok()?;
    assert_eq!(confined.text().split_whitespace().last(), Some("0"));
    let format = "{{.HostConfig.MemoryReservation}} {{.HostConfig.CpuShares}} {{.HostConfig.CpusetCpus}}";
    assert_eq!(stack.gantry(&["inspect", "--format", format, "web"])?.ok()?.text(), "33554432 512 0");
    assert!(stack.gantry(&["update", "--cpuset-cpus", "x", "web"])?.fails()?.contains("not a list"));
    assert!(stack.gantry(&["update", "web"])?.fails()?.contains("nothing to change"));
    assert!(stack.gantry(&["update", "-m", "1k", "web"])?.fails()?.contains("memory"));
    assert!(stack.gantry(&["update", "--cpus", "100000", "web"])?.fails()?.contains("cpus"));
    assert_eq!(inside()?, wanted, "a refused change changes nothing");
    Ok(())
}

/// Whichever word of the shim comes first.
fn out_of_memory_is_reported_whichever_event_comes_first(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    for round in ["a1", "a2", "a3", "a4"] {
        stack.gantry(&["run", "--name", round, "-m", "24m", "IMAGE", "sh", "-c", CHILD_WANTS_MEMORY])?.ok()?;
        let told = stack.gantry(&["inspect", "--format", "{{.State.OOMKilled}}", round])?.ok()?;
        assert_eq!(told.text(), "true", "{round}");
    }
    Ok(())
}

fn a_container_gets_another_name(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    for name in ["web", "other"] {
        stack.gantry(&["run", "-d", "--name", name, "IMAGE", "sleep", "1000"])?.ok()?;
    }
    stack.gantry(&["rename", "web", "site"])?.ok()?;
    stack.gantry(&["exec", "site", "true"])?.ok()?;
    assert!(stack.gantry(&["exec", "web", "true"])?.fails()?.contains("no such container"));
    assert!(stack.gantry(&["rename", "other", "site"])?.fails()?.contains("in use"));
    assert!(stack.gantry(&["rename", "other", "-x"])?.fails()?.contains("-x"));
    stack.gantry(&["rename", "other", "web"])?.ok()?;
    let names = stack.gantry(&["ps", "--format", "{{.Names}}"])?.ok()?.stdout;
    let mut names: Vec<&str> = names.lines().collect();
    names.sort_unstable();
    assert_eq!(names, ["site", "web"]);
    Ok(())
}

fn limits_are_in_force(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let ran = stack.script(&["-m", "64m", "--pids-limit", "20", "--cpus", "0.5"], LIMITS)?.ok()?;
    let numbers: Vec<&str> = ran.stdout.split_whitespace().collect();
    assert_eq!(numbers, ["67108864", "20", "50000", "100000"]);
    let hungry = "head -c 100000000 /dev/zero | tail | wc -c";
    stack.script(&["-m", "16m"], &format!("{hungry}; exit $?"))?.fails().or_else(|_| {
        // The kernel may kill only the greedy program of the pipe; then its output is not whole.
        let ran = stack.script(&["-m", "16m"], hungry)?;
        anyhow::ensure!(ran.text() != "100000000", "64 MiB were held in 16");
        Ok::<_, anyhow::Error>(String::new())
    })?;
    let too_many = stack.script(&["--cpus", "100000"], "true")?.exits(125)?;
    assert!(too_many.stderr.contains("cpus: 100000.000 are wanted"), "{}", too_many.stderr);
    let refused = stack.script(&["-m", "1k"], "true")?.exits(125)?;
    assert!(refused.stderr.contains("memory"), "{}", refused.stderr);
    Ok(())
}

fn inspect_shows_the_options(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let wishes = [
        &["--cap-add", "NET_ADMIN", "--cap-drop", "CHOWN", "--pid", "host", "--shm-size", "1m"][..],
        &["--device", "/dev/null:/dev/nothing:rw", "--ulimit", "nofile=64:128", "--tmpfs", "/scratch:size=2m"],
        &["--add-host", "db:10.1.2.3", "--group-add", "4321", "--security-opt", "no-new-privileges"],
        &["--cpu-shares", "512", "-m", "64m", "--memory-reservation", "32m", "--oom-score-adj", "300"],
        &["--log-opt", "max-size=10m", "--log-opt", "mode=non-blocking", "--sysctl", "net.core.somaxconn=512"],
    ];
    stack.gantry(&[&["create", "--name", "wishes"], &wishes.concat()[..], &["IMAGE", "true"]].concat())?.ok()?;
    stack.gantry(&["create", "--name", "plain", "IMAGE", "true"])?.ok()?;
    let shown = |container: &str, path: &str| -> Result<String> {
        let format = format!("{{{{json .HostConfig.{path}}}}}");
        Ok(stack.gantry(&["inspect", "-f", &format, container])?.ok()?.text().to_owned())
    };
    let device = r#"[{"CgroupPermissions":"rw","PathInContainer":"/dev/nothing","PathOnHost":"/dev/null"}]"#;
    for (path, wished, plain) in [
        ("CapAdd", r#"["NET_ADMIN"]"#, "[]"),
        ("CapDrop", r#"["CHOWN"]"#, "[]"),
        ("PidMode", r#""host""#, r#""""#),
        ("IpcMode", r#""private""#, r#""private""#),
        ("ShmSize", "1048576", "67108864"),
        ("Devices", device, "[]"),
        ("Ulimits", r#"[{"Hard":128,"Name":"nofile","Soft":64}]"#, "[]"),
        ("Tmpfs", r#"{"/scratch":"size=2m"}"#, "{}"),
        ("ExtraHosts", r#"["db:10.1.2.3"]"#, "[]"),
        ("GroupAdd", r#"["4321"]"#, "[]"),
        ("SecurityOpt", r#"["no-new-privileges"]"#, "[]"),
        ("CpuShares", "512", "0"),
        ("MemoryReservation", "33554432", "0"),
        ("OomScoreAdj", "300", "0"),
        ("Sysctls", r#"{"net.core.somaxconn":"512"}"#, "{}"),
    ] {
        assert_eq!((path, &*shown("wishes", path)?, &*shown("plain", path)?), (path, wished, plain));
    }
    let log = |container: &str| -> Result<String> {
        let format = "{{index .HostConfig.LogConfig.Config \"max-size\"}} {{.HostConfig.LogConfig.Config.mode}}";
        Ok(stack.gantry(&["inspect", "-f", format, container])?.ok()?.text().to_owned())
    };
    assert_eq!(log("wishes")?, "10485760 non-blocking");
    assert!(log("plain")?.ends_with(" blocking"));
    Ok(())
}

/// A probe whose start takes longer than it may itself is somebody's all the same.
fn slow_probes_leave_nothing_in_the_shim(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let check = ["--health-cmd", "true", "--health-interval", "50ms", "--health-timeout", "500ms"];
    stack.gantry(&[&["run", "-d", "--name", "web"], &check[..], &["IMAGE", "sleep", "1000"]].concat())?.ok()?;
    let is_healthy = || {
        let status = stack.gantry(&["inspect", "-f", "{{.State.Health.Status}}", "web"]).ok()?;
        (status.text() == "healthy").then_some(())
    };
    wait::until("it is healthy", is_healthy)?;
    let id = stack.gantry(&["inspect", "-f", "{{.Id}}", "web"])?.ok()?;
    let bundle = env.path("state/io.containerd.runtime.v2.task").join(env.namespace()).join(id.text());
    let shim = Pid::from_raw(std::fs::read_to_string(bundle.join("shim.pid"))?.trim().parse()?);
    for _ in 0..3 {
        kill(shim, Signal::SIGSTOP)?;
        std::thread::sleep(std::time::Duration::from_millis(800));
        kill(shim, Signal::SIGCONT)?;
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    wait::until("it is healthy again", is_healthy)?;
    // The container's own, and that of the probe that is under way.
    let sockets = || std::fs::read_dir(env.path("state/attach")).map(Iterator::count).unwrap_or(0);
    wait::until("nothing is left of probes", || (sockets() <= 2).then_some(()))
}

fn health_checks_set_the_status(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let ask = |stack: &Stack<'_>, path: &str| -> Option<String> {
        let format = format!("{{{{json .{path}}}}}");
        Some(stack.gantry(&["inspect", "-f", &format, "web"]).ok()?.text().replace('"', ""))
    };
    let until = |stack: &Stack<'_>, status: &str| {
        let is_so = || (ask(stack, "State.Health.Status")? == status).then_some(());
        wait::until(&format!("it is {status}"), is_so)
    };
    let check = ["--health-cmd", "echo look; test -e /well", "--health-interval", "100ms", "--health-retries", "2"];
    stack.gantry(&[&["run", "-d", "--name", "web"], &check[..], &["IMAGE", "sleep", "1000"]].concat())?.ok()?;
    until(&stack, "unhealthy")?;
    let status = stack.gantry(&["ps", "--filter", "health=unhealthy", "--format", "{{.Status}}"])?.ok()?;
    assert!(status.text().ends_with("(unhealthy)"), "{status}");
    stack.gantry(&["exec", "web", "touch", "/well"])?.ok()?;
    until(&stack, "healthy")?;
    let log = stack.gantry(&["inspect", "-f", "{{json .State.Health.Log}}", "web"])?.ok()?;
    let log: serde_json::Value = serde_json::from_str(&log.stdout)?;
    let last = log.as_array().and_then(|log| log.last()).cloned().unwrap_or_default();
    assert_eq!((&last["ExitCode"], &last["Output"]), (&0.into(), &"look\n".into()));
    // Whoever watches is told of what was, which shows that the watch is on, and of what happens then.
    let (told, format) = (env.path("events"), "{{.Action}} {{.Actor.Attributes.name}}");
    let filters = ["events", "--since", "1h", "--filter", "event=health_status", "--format", format];
    let mut events = stack.command(&filters)?;
    let mut events = events.stdin(Stdio::null()).stdout(std::fs::File::create(&told)?).spawn()?;
    let hears = |times: usize, status: &str| {
        let line = format!("health_status: {status} web");
        wait::until(&format!("{line} is told {times} times"), || {
            let told = std::fs::read_to_string(&told).ok()?;
            (told.lines().filter(|told| *told == line).count() >= times).then_some(())
        })
    };
    let heard = hears(1, "healthy").and_then(|()| {
        stack.gantry(&["exec", "web", "rm", "/well"])?.ok()?;
        hears(2, "unhealthy")?;
        stack.gantry(&["exec", "web", "touch", "/well"])?.ok()?;
        hears(2, "healthy")
    });
    events.kill()?;
    events.wait()?;
    heard?;
    stack.gantry(&["rm", "-f", "web"])?.ok()?;
    let hangs = ["--health-cmd", "sleep 1000", "--health-timeout", "200ms", "--health-interval", "50ms"];
    stack.gantry(&[&["run", "-d", "--name", "web"], &hangs[..], &["IMAGE", "sleep", "1000"]].concat())?.ok()?;
    until(&stack, "unhealthy")?;
    assert!(ask(&stack, "State.Health.Log").is_some_and(|log| log.contains("exceeded timeout")));
    stack.gantry(&["rm", "-f", "web"])?.ok()?;
    let own = serde_json::json!({ "Test": ["CMD", "true"], "Interval": 50_000_000 });
    let image = Image::busybox()?.setting("Healthcheck", own).push(&stack.registry, "test/own", "1")?;
    stack.gantry(&["run", "-d", "--name", "web", &image, "sleep", "1000"])?.ok()?;
    until(&stack, "healthy")?;
    stack.gantry(&["rm", "-f", "web"])?.ok()?;
    stack.gantry(&["run", "-d", "--name", "web", "--no-healthcheck", &image, "sleep", "1000"])?.ok()?;
    let status = stack.gantry(&["ps", "--format", "{{.Status}}"])?.ok()?;
    assert!(status.text().starts_with("Up ") && !status.text().contains('('), "{status}");
    Ok(())
}
