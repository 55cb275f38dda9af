//! Options, columns and words of docker's that people type every day.

use std::io::Write as _;
use std::process::Stdio;

use integration_tests::pty::Pty;
use integration_tests::{Env, Result, Stack, Test, output, tests, wait};

pub(crate) const TESTS: &[Test] = tests![
    events_tell_what_has_happened [Root, Overlay],
    a_container_between_restarts_is_restarting [Root, Overlay],
    an_init_looks_after_what_others_leave [Root, Overlay],
    an_init_has_a_terminal [Root, Overlay],
    options_of_run_are_in_force [Root, Overlay],
    lists_have_the_columns_that_are_asked_for [Root, Overlay],
    no_option_is_taken_and_ignored [Root, Overlay],
    rare_options_work [Root, Overlay],
];

fn events_tell_what_has_happened(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let script = "trap 'exit 5' TERM; while :; do sleep 0.1; done";
    stack.gantry(&["run", "-d", "--name", "web", "-l", "a=b", "IMAGE", "sh", "-c", script])?.ok()?;
    stack.gantry(&["exec", "web", "true"])?.ok()?;
    stack.gantry(&["restart", "web"])?.ok()?;
    stack.gantry(&["rename", "web", "site"])?.ok()?;
    stack.gantry(&["pause", "site"])?.ok()?;
    stack.gantry(&["unpause", "site"])?.ok()?;
    stack.gantry(&["kill", "site"])?.ok()?;
    stack.gantry(&["wait", "site"])?.ok()?;
    stack.gantry(&["rm", "site"])?.ok()?;
    // It is told of a container that is gone, whose end has come through its shim.
    let all = |filters: &[&str], format: &str| {
        let past = ["events", "--since", "1h", "--until", "0s", "--format", format];
        stack.gantry(&[&past[..], filters].concat())?.ok()
    };
    let actions = all(&["-f", "type=container"], "{{.Action}}")?;
    let expected = "create\nstart\nexec_create: true\nexec_start: true\nexec_die\nkill\ndie\nstop\nstart\nrestart\nrename\n\
                    pause\nunpause\nkill\ndie\ndestroy";
    assert_eq!(actions.text(), expected);
    let exits =
        all(&["-f", "event=die", "-f", "label=a=b"], "{{.Actor.Attributes.name}} {{.Actor.Attributes.exitCode}}")?;
    assert_eq!(exits.text(), "web 5\nsite 137");
    assert_eq!(all(&["-f", "event=rename"], "{{.Actor.Attributes.oldName}}")?.text(), "/web");
    assert_eq!(all(&["-f", "type=image", "-f", "event=pull"], "{{.Action}}")?.text(), "pull");
    assert_eq!(all(&["-f", "container=nobody"], "{{.Action}}")?.text(), "");
    Ok(())
}

fn a_container_between_restarts_is_restarting(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    stack.gantry(&["run", "-d", "--restart", "always", "--name", "again", "IMAGE", "sh", "-c", "exit 3"])?.ok()?;
    let is_paused = || {
        let listed = stack.gantry(&["ps", "-f", "status=restarting", "--format", "{{.Names}} {{.Status}}"]).ok()?;
        let format = "{{.State.Status}} {{.State.Restarting}} {{.State.Running}}";
        let inspected = stack.gantry(&["inspect", "-f", format, "again"]).ok()?;
        (listed.text().starts_with("again Restarting (3)") && inspected.text() == "restarting true true").then_some(())
    };
    wait::until("the pause between two runs", is_paused)?;
    stack.gantry(&["stop", "again"])?.ok()?;
    assert_eq!(stack.gantry(&["inspect", "-f", "{{.State.Status}}", "again"])?.ok()?.text(), "exited");
    Ok(())
}

fn an_init_looks_after_what_others_leave(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let init = |script: &str| stack.script(&["--init"], script);
    assert_eq!(init("exit 7")?.exits(7)?.text(), "");
    assert_eq!(init("kill -9 $$")?.exits(137)?.text(), "");
    let missing = stack.gantry(&["run", "--rm", "--init", "IMAGE", "/there/is/none"])?.exits(127)?;
    assert!(missing.stderr.contains("/there/is/none"), "{}", missing.stderr);
    // A first process that knows no signal is not ended by one; below an init it is.
    stack.gantry(&["run", "-d", "--init", "--name", "web", "IMAGE", "sleep", "1000"])?.ok()?;
    // What its parent has left comes to the first process, and `sleep` would collect nobody.
    stack.gantry(&["exec", "web", "sh", "-c", "(sleep 0.2 &)"])?.ok()?;
    let processes = || stack.gantry(&["exec", "web", "ps", "-o", "comm"]).ok();
    wait::until("the orphan is collected", || processes().filter(|ran| ran.stdout.matches("sleep").count() == 1))?;
    // One that did not hear of it would be killed in the end, with 137.
    stack.gantry(&["stop", "-t", "60", "web"])?.ok()?;
    let shown = stack.gantry(&["inspect", "-f", "{{.State.ExitCode}} {{.Path}} {{.HostConfig.Init}}", "web"])?.ok()?;
    assert_eq!(shown.text(), "143 sleep true");
    assert_eq!(stack.gantry(&["diff", "web"])?.ok()?.text(), "");
    Ok(())
}

fn an_init_has_a_terminal(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let mut terminal = Pty::start(&stack.command(&["run", "--rm", "-it", "--init", "IMAGE", "sh"])?)?;
    terminal.types("read line; echo \"<$line>\"\n")?;
    terminal.types("hello\n")?;
    terminal.expect("<hello>")?;
    // A key that interrupts is for the command alone.
    terminal.types("sh -c 'echo re''ady; exec sleep 1000'\n")?;
    terminal.expect("ready")?;
    terminal.types("\u{3}")?;
    terminal.types("echo still $((40+2))\n")?;
    terminal.expect("still 42")?;
    terminal.types("exit 3\n")?;
    assert_eq!(terminal.end()?.code(), Some(3));
    Ok(())
}

fn options_of_run_are_in_force(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let dns = ["--dns", "192.0.2.1", "--dns-search", "example.org", "--dns-option", "ndots:2"];
    let resolv = stack.script(&dns, "cat /etc/resolv.conf")?.ok()?;
    for line in ["nameserver 192.0.2.1", "search example.org", "options ndots:2"] {
        assert_eq!(resolv.stdout.lines().filter(|it| *it == line).count(), 1, "{resolv}");
    }
    let shared = env.dir("shared")?;
    let volume = format!("{}:/data", shared.display());
    stack.gantry(&["create", "--name", "holder", "-v", &volume, "IMAGE", "true"])?.ok()?;
    stack.script(&["--volumes-from", "holder"], "echo here > /data/file")?.ok()?;
    let refused = stack.script(&["--volumes-from", "holder:ro"], "cat /data/file; echo more > /data/file")?;
    assert!(refused.text() == "here" && refused.fails()?.contains("Read-only"));
    let words = ["--cpu-period", "50000", "--cpu-quota", "25000", "--cgroup-parent", env.token(), "--name", "web"];
    stack.gantry(&[&["run", "-d"], &words[..], &["IMAGE", "sleep", "1000"]].concat())?.ok()?;
    let format =
        "{{.HostConfig.CpuPeriod}} {{.HostConfig.CpuQuota}} {{.HostConfig.CgroupParent}} {{.State.Pid}} {{.ID}}";
    let shown = stack.gantry(&["inspect", "-f", format, "web"])?.ok()?;
    let fields: Vec<&str> = shown.text().split(' ').collect();
    let parent = format!("/{}", env.token());
    assert_eq!(fields[..3], ["50000", "25000", &*parent]);
    let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", fields[3]))?;
    assert!(groups.contains(&format!(":{parent}/{}", fields[4])), "{groups}");
    stack.gantry(&["update", "--cpu-quota", "30000", "web"])?.ok()?;
    let quota = stack.gantry(&["inspect", "-f", "{{.HostConfig.CpuQuota}}", "web"])?.ok()?;
    assert_eq!(quota.text(), "30000");
    assert!(stack.gantry(&["update", "--cpus", "1", "web"])?.fails()?.contains("cpu quota"));
    // A device of which there is no node, and which is nobody's otherwise.
    let open = "mknod /node c 10 229; dd if=/node count=0 2>/dev/null && echo open || echo refused";
    assert_eq!(stack.script(&[], open)?.ok()?.text(), "refused");
    if std::path::Path::new("/dev/fuse").exists() {
        assert_eq!(stack.script(&["--device-cgroup-rule", "c 10:229 r"], open)?.ok()?.text(), "open");
    }
    assert!(stack.script(&["--device-cgroup-rule", "c 10"], "true")?.exits(125)?.stderr.contains("device rule"));
    Ok(())
}

/// What a comparison with docker's command line by random lines has found.
fn no_option_is_taken_and_ignored(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    assert_eq!(stack.script(&["--network", "host", "-h", "box"], "hostname")?.ok()?.text(), "box");
    let own = nix::unistd::gethostname()?;
    assert_eq!(stack.script(&["--network", "host"], "hostname")?.ok()?.text(), own.to_string_lossy());
    assert!(stack.script(&["--uts", "host", "-h", "box"], "true")?.exits(125)?.stderr.contains("hostname"));
    let other = stack.script(&["--pull", "never", "--platform", "linux/s390x"], "true")?.exits(125)?;
    assert!(other.stderr.contains("linux/s390x"), "{}", other.stderr);
    stack.script(&["--platform", "", "--pull", "", "--cidfile", "", "--restart", "no"], "true")?.ok()?;
    assert!(stack.script(&["--restart", "always"], "true")?.exits(125)?.stderr.contains("--restart"));
    stack.script(&["--memory-swap", "-1", "--memory-swappiness", "-1", "--init=false"], "true")?.ok()?;
    stack.script(&["--security-opt", "apparmor=unconfined"], "true")?.ok()?;
    // The runtime's own words, not those of a second attempt, which a short-lived root does not allow.
    let refused = stack.script(&["--security-opt", "apparmor=gantry-none"], "true")?.fails()?;
    assert!(refused.contains("apparmor"), "{refused}");
    assert_eq!(stack.gantry(&["run", "--rm", "IMAGE", ""])?.exits(127)?.text(), "");
    assert!(stack.gantry(&["create", "-l", "=x", "IMAGE", "true"])?.exits(125)?.stderr.contains("--label"));
    let create = ["create", "--name", "b", "--name", "old", "--stop-timeout", "-1", "IMAGE", "sh", "-c", "a b"];
    stack.gantry(&create)?.ok()?;
    assert_eq!(stack.gantry(&["inspect", "-f", "{{.Config.StopTimeout}}", "old"])?.ok()?.text(), "-1");
    stack.gantry(&["run", "-d", "--name", "web", "IMAGE", "sleep", "1000"])?.ok()?;
    let ps = |filter: &str| stack.gantry(&["ps", "-af", filter, "--no-trunc", "--format", "{{.Names}} {{.Command}}"]);
    assert_eq!(ps("before=web")?.ok()?.text(), "old \"sh -c 'a b'\"");
    assert_eq!(ps("since=old")?.ok()?.text(), "web \"sleep 1000\"");
    assert!(ps("status=foo")?.fails()?.contains("status=foo"));
    // A container that runs needs no start; one that is paused has nothing to say to whom attaches.
    assert_eq!(stack.gantry(&["start", "web"])?.ok()?.text(), "web");
    stack.gantry(&["pause", "web"])?.ok()?;
    assert!(stack.gantry(&["attach", "--no-stdin", "web"])?.fails()?.contains("paused"));
    stack.gantry(&["start", "web"])?.fails()?;
    stack.gantry(&["unpause", "web"])?.ok()?;
    Ok(())
}

fn rare_options_work(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    stack.gantry(&["run", "--name", "web", "IMAGE", "sh", "-c", "head -c 5000 /dev/zero > /five; echo hi"])?.ok()?;
    let sizes = stack.gantry(&["inspect", "-s", "-f", "{{.SizeRw}} {{gt .SizeRootFs .SizeRw}}", "web"])?.ok()?;
    let (written, more) = sizes.text().split_once(' ').unwrap_or_default();
    assert!(written.parse::<u64>()? >= 5000 && more == "true", "{sizes}");
    assert_eq!(stack.gantry(&["logs", "--details", "web"])?.ok()?.stdout, " hi\n");
    let size = stack.gantry(&["history", "--human=false", "--format", "{{.Size}}", "IMAGE"])?.ok()?;
    assert!(!size.text().is_empty() && size.text().lines().all(|line| line.parse::<u64>().is_ok()), "{size}");
    let change = r#"HEALTHCHECK --interval=7s CMD ["true"]"#;
    stack.gantry(&["commit", "--change", change, "web", "checked:1"])?.ok()?;
    let shown = "{{json .Config.Healthcheck.Test}} {{.Config.Healthcheck.Interval}}";
    assert_eq!(
        stack.gantry(&["image", "inspect", "-f", shown, "checked:1"])?.ok()?.text(),
        r#"["CMD","true"] 7000000000"#
    );
    let until = |time: &str| stack.gantry(&["images", "-q", "--filter", &format!("until={time}"), "checked"])?.ok();
    assert_eq!(until("1h")?.text(), "");
    assert_ne!(until("2100-01-01T00:00:00Z")?.text(), "");
    stack.gantry(&["run", "-d", "--name", "held", "IMAGE", "sleep", "100"])?.ok()?;
    stack.gantry(&["pause", "held"])?.ok()?;
    let counts = "{{.Containers}} {{.ContainersRunning}} {{.ContainersPaused}} {{.ContainersStopped}}";
    assert_eq!(stack.gantry(&["info", "-f", counts])?.ok()?.text(), "2 0 1 1");
    stack.gantry(&["rm", "-f", "held"])?.ok()?;
    Ok(())
}

fn lists_have_the_columns_that_are_asked_for(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let script = "dd if=/dev/zero of=/file bs=1000 count=300 2>/dev/null; exec sleep 1000";
    stack.gantry(&["run", "-d", "--name", "web", "-l", "kind=a,b", "IMAGE", "sh", "-c", script])?.ok()?;
    stack.gantry(&["create", "--name", "idle", "IMAGE", "true"])?.ok()?;
    let ps = |format: &str| stack.gantry(&["ps", "-f", "name=web", "--format", format])?.ok();
    assert_eq!(ps("{{.Label \"kind\"}}|{{.Networks}}|{{.Mounts}}|{{.LocalVolumes}}")?.text(), "a,b|none||0");
    let is_written =
        || ps("{{.Size}}").ok().filter(|ran| ran.text().starts_with('3') && ran.text().contains("kB (virtual "));
    wait::until("its file is counted", is_written)?;
    assert!(stack.gantry(&["ps", "-s"])?.ok()?.text().contains("SIZE"));
    let top = stack.gantry(&["top", "web"])?.ok()?;
    let heading: Vec<&str> = top.text().lines().next().unwrap_or_default().split_whitespace().collect();
    assert_eq!(heading, ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]);
    assert!(top.text().lines().any(|line| line.starts_with("root") && line.ends_with("sleep 1000")), "{top}");
    let top = stack.gantry(&["top", "web", "-o", "pid,args"])?.ok()?;
    assert!(top.text().lines().count() == 2 && top.text().ends_with("sleep 1000"), "{top}");
    let stats = |all: &[&str]| {
        let words = ["stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}}"];
        stack.gantry(&[&words[..], all].concat())?.ok()
    };
    assert_eq!(stats(&[])?.text(), "web 1");
    assert!(stats(&["-a"])?.text().lines().any(|line| line == "idle 0"));
    // Whoever is asked may answer through a pipe.
    let mut prune = stack.command(&["container", "prune"])?;
    let mut prune = prune.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    prune.stdin.take().map(|mut answer| answer.write_all(b"y\n")).transpose()?;
    assert!(prune.wait()?.success());
    assert_eq!(stack.gantry(&["ps", "-a", "--format", "{{.Names}}"])?.ok()?.text(), "web");
    let mut silent = stack.command(&["container", "prune"])?;
    silent.stdin(Stdio::null());
    assert!(output::run(silent)?.fails()?.contains("--force"));
    Ok(())
}
