//! `gantry run` as people use it: output, exit codes, what is set from outside, what is kept out.

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::Context;
use integration_tests::{Env, Result, Stack, Test, output, tests, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub(crate) const TESTS: &[Test] = tests![
    output_is_exact_and_streams_are_apart [Root, Overlay],
    exit_codes_are_dockers [Root, Overlay],
    variables_directory_and_host_name_are_set [Root, Overlay],
    rare_options_reach_the_container [Root, Overlay],
    stopped_containers_are_pruned [Root, Overlay],
    users_are_looked_up_in_the_image [Root, Overlay],
    groups_that_deny_count_for_the_primary_one [Root, Overlay],
    standard_input_reaches_the_program [Root, Overlay],
    binds_show_the_host [Root, Overlay],
    privileges_are_the_default_ones [Root, Overlay],
    networks_are_private_or_the_hosts [Root, Overlay],
    detached_containers_run_on [Root, Overlay],
    signals_are_handed_on [Root, Overlay],
    a_stop_does_not_need_its_client [Root, Overlay],
    a_pull_ends_with_its_client [Root, Overlay],
    a_closed_output_ends_the_client [Root, Overlay],
    a_reader_that_pauses_misses_nothing [Root, Overlay],
    an_id_file_names_the_container_or_is_gone [Root, Overlay],
    nothing_is_left_after_a_failure [Root, Overlay],
];

fn output_is_exact_and_streams_are_apart(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let ran = stack.script(&[], "echo out; echo err >&2")?.ok()?;
    assert_eq!(ran.stdout, "out\n");
    assert!(ran.stderr.ends_with("err\n"), "{}", ran.stderr);
    let ran = stack.script(&[], "yes 0123456789abcde | head -c 8000000; printf end")?.ok()?;
    assert_eq!(ran.stdout.len(), 8_000_003);
    assert!(ran.stdout.ends_with("0123456789abcde\nend"));
    assert_eq!(ran.stderr, "", "the image is here, so nothing is said of it");
    Ok(())
}

fn exit_codes_are_dockers(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    stack.script(&[], "exit 7")?.exits(7)?;
    stack.script(&[], "sh -c 'kill -TERM $$'; exit $?")?.exits(143)?;
    let missing = stack.gantry(&["run", "--rm", "IMAGE", "no-such-program"])?.exits(127)?;
    assert!(missing.stderr.contains("no-such-program"), "{}", missing.stderr);
    stack.gantry(&["run", "--rm", "IMAGE", "/no/such/path"])?.exits(127)?;
    stack.gantry(&["run", "--rm", "IMAGE", "/etc/passwd"])?.exits(126)?;
    stack.gantry(&["run", "--rm", "IMAGE", "/etc"])?.exits(126)?;
    let host = stack.registry.host();
    let unknown = stack.gantry(&["run", "--rm", &format!("{host}/test/no-such-image")])?.exits(125)?;
    assert!(unknown.stderr.contains("no-such-image"), "{}", unknown.stderr);
    stack.gantry(&["run", "--no-such-option", "IMAGE"])?.exits(125)?;
    stack.gantry(&["run", "--pull", "never", "never/pulled"])?.exits(125)?;
    assert_eq!(stack.gantry(&["ps", "-aq"])?.ok()?.text(), "");
    Ok(())
}

fn variables_directory_and_host_name_are_set(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let file = env.path("variables");
    fs::write(&file, "# note\nFROM_FILE=file\nBOTH=file\nHERE\n")?;
    let mut command = stack.command(&[
        "run",
        "--rm",
        "--env-file",
        &file.display().to_string(),
        "-e",
        "BOTH=option",
        "-e",
        "HERE",
        "-e",
        "A=b=c",
        "--hostname",
        "box",
        "-w",
        "/tmp",
        "IMAGE",
        "sh",
        "-c",
        "echo $FROM_FILE $BOTH $HERE $A; hostname; pwd; echo $HOME",
    ])?;
    command.env("HERE", "here");
    assert_eq!(output::run(command)?.ok()?.text(), "file option here b=c\nbox\n/tmp\n/root");
    assert_eq!(stack.gantry(&["run", "--rm", "--entrypoint", "echo", "IMAGE", "-l", "--rm"])?.ok()?.text(), "-l --rm");
    // An entrypoint of one's own drops the image's command.
    stack.gantry(&["run", "--rm", "--entrypoint", "", "IMAGE"])?.exits(125)?;
    let hostname = stack.gantry(&["run", "--rm", "--name", "named", "IMAGE", "hostname"])?.ok()?;
    assert_eq!(hostname.text().len(), 12, "a container is called by its id unless told: {}", hostname.text());
    Ok(())
}

fn rare_options_reach_the_container(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let says = |options: &[&str], script: &str, wanted: &str| -> Result<()> {
        let ran = stack.script(options, script)?.ok()?;
        assert_eq!(ran.text(), wanted, "{options:?}");
        Ok(())
    };
    let labels = env.path("labels");
    fs::write(&labels, "# mine\nfrom=file\nboth=file\n")?;
    says(
        &["--ulimit", "nofile=100:200", "--sysctl", "net.ipv4.ip_forward=1", "--oom-score-adj", "77"],
        "ulimit -n; ulimit -Hn; cat /proc/sys/net/ipv4/ip_forward /proc/self/oom_score_adj",
        "100\n200\n1\n77",
    )?;
    says(
        &["--shm-size", "1m", "--tmpfs", "/scratch:size=2m,exec", "--add-host", "db:10.1.2.3", "--group-add", "4321"],
        "for d in /dev/shm /scratch; do df -k $d | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2; done; \
         grep ' /scratch ' /proc/mounts | grep -c noexec; grep -w db /etc/hosts; id -G",
        "1024\n2048\n0\n10.1.2.3\tdb\n0 4321",
    )?;
    says(
        &["--device", "/dev/null:/dev/nothing:rw", "--security-opt", "no-new-privileges"],
        "echo x > /dev/nothing; stat -c %t:%T /dev/nothing; grep NoNewPrivs /proc/self/status",
        "1:3\nNoNewPrivs:\t1",
    )?;
    let init = fs::read_to_string("/proc/1/comm")?;
    says(&["--pid", "host", "--ipc", "host"], "cat /proc/1/comm", init.trim())?;
    let own = fs::read_to_string("/proc/sys/kernel/hostname")?;
    says(&["--uts", "host"], "hostname", own.trim())?;
    for (options, word) in [
        (&["--sysctl", "kernel.panic=1"][..], "kernel.panic"),
        (&["--network", "host", "--sysctl", "net.ipv4.ip_forward=1"], "ip_forward"),
        (&["--device", "/dev/there-is-none"], "there-is-none"),
        (&["--group-add", "nobody-here"], "nobody-here"),
        (&["--ulimit", "nothing=1"], "nothing"),
        (&["--security-opt", "seccomp=/none.json"], "none.json"),
    ] {
        let refused = stack.script(options, "true")?.exits(125)?;
        assert!(refused.stderr.contains(word), "{}", refused.stderr);
    }
    let profile = env.path("profile.json");
    let rule = r#"{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","args":null,"includes":{},"excludes":{}}"#;
    fs::write(&profile, format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{rule}]}}"#))?;
    let option = format!("seccomp={}", profile.display());
    stack.script(&["--security-opt", &option], "mkdir /new")?.exits(1)?;
    let words = ["create", "--name", "wishes", "--stop-timeout", "3", "--annotation", "note=1", "--label", "both=line"];
    let file = labels.display().to_string();
    stack.gantry(&[&words[..], &["--label-file", &file, "IMAGE", "true"]].concat())?.ok()?;
    let format = "{{.Config.StopTimeout}} {{index .Config.Labels \"from\"}} {{index .Config.Labels \"both\"}}";
    assert_eq!(stack.gantry(&["inspect", "--format", format, "wishes"])?.ok()?.text(), "3 file line");
    Ok(())
}

fn stopped_containers_are_pruned(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let names = |stack: &Stack<'_>| -> Result<String> {
        Ok(stack.gantry(&["ps", "-a", "--format", "{{.Names}}"])?.ok()?.text().replace('\n', " "))
    };
    stack.gantry(&["run", "-d", "--name", "runs", "IMAGE", "sleep", "1000"])?.ok()?;
    stack.gantry(&["create", "--name", "kept", "--label", "keep", "IMAGE", "true"])?.ok()?;
    stack.gantry(&["run", "--name", "ended", "IMAGE", "true"])?.ok()?;
    stack.gantry(&["container", "prune"])?.fails()?;
    let pruned = stack.gantry(&["container", "prune", "-f", "--filter", "label!=keep"])?.ok()?;
    assert!(pruned.stdout.starts_with("Deleted Containers:\n"), "{pruned}");
    assert!(pruned.stdout.contains("Total reclaimed space:"), "{pruned}");
    assert_eq!(names(&stack)?, "kept runs");
    stack.gantry(&["system", "prune", "-f"])?.ok()?;
    assert_eq!(names(&stack)?, "runs");
    stack.script(&["--pull", "never"], "true")?.ok()?;
    Ok(())
}

fn users_are_looked_up_in_the_image(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let ids = |user: &str| -> Result<String> {
        Ok(stack
            .script(&["-u", user], "id -u; id -g; id -G; grep CapEff /proc/self/status")?
            .ok()?
            .text()
            .replace('\n', " "))
    };
    assert_eq!(ids("user")?, "1000 1000 1000 CapEff:\t0000000000000000");
    assert_eq!(ids("1000:0")?, "1000 0 0 CapEff:\t0000000000000000");
    assert_eq!(ids("7")?, "7 0 0 CapEff:\t0000000000000000");
    let failed = stack.script(&["-u", "nobody-here"], "true")?.exits(125)?;
    assert!(failed.stderr.contains("nobody-here"), "{}", failed.stderr);
    stack.script(&["-u", "4294967296"], "true")?.exits(125)?;
    Ok(())
}

/// CVE-2023-25173, CVE-2022-36109 and their kin: what a group may not do, its members may not do through other groups.
fn groups_that_deny_count_for_the_primary_one(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let options = ["run", "-d", "--name", "web", "-u", "1000:7", "--group-add", "5", "IMAGE", "sleep", "1000"];
    stack.gantry(&options)?.ok()?;
    let of = |options: &[&str], process: &str| -> Result<String> {
        let status = format!("/proc/{process}/status");
        let words = [&["exec"], options, &["web", "grep", "^Groups:", &status]].concat();
        Ok(stack.gantry(&words)?.ok()?.text().to_owned())
    };
    for groups in [of(&[], "1")?, of(&[], "self")?, of(&["-u", "1001:7"], "self")?] {
        assert!(groups.split_whitespace().any(|group| group == "7"), "{groups}");
    }
    Ok(())
}

fn standard_input_reaches_the_program(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let input = "line\n".repeat(200_000);
    let counted = stack.command(&["run", "--rm", "-i", "IMAGE", "wc", "-c"])?;
    assert_eq!(output::run_with_input(counted, &input)?.ok()?.text(), input.len().to_string());
    let echoed = stack.command(&["run", "--rm", "-i", "IMAGE", "cat"])?;
    assert!(output::run_with_input(echoed, &input)?.ok()?.stdout == input, "the bytes come back as they went");
    // Without -i the program finds its input at the end.
    let silent = stack.command(&["run", "--rm", "IMAGE", "cat"])?;
    assert_eq!(output::run_with_input(silent, "typed")?.ok()?.stdout, "");
    // A terminal needs somebody to type.
    let refused =
        output::run_with_input(stack.command(&["run", "--rm", "-it", "IMAGE", "cat"])?, "typed")?.exits(125)?;
    assert!(refused.stderr.contains("not a terminal"), "{}", refused.stderr);
    Ok(())
}

fn binds_show_the_host(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let dir = env.dir("shared")?;
    fs::write(dir.join("file"), "from the host")?;
    let volume = format!("{}:/data", dir.display());
    stack.script(&["-v", &volume], "cat /data/file; echo back > /data/answer")?.ok()?;
    assert_eq!(fs::read_to_string(dir.join("answer"))?, "back\n");
    let read_only = stack.script(&["-v", &format!("{volume}:ro")], "cat /data/file; echo x > /data/answer")?;
    assert_eq!((read_only.code(), read_only.stdout.as_str()), (1, "from the host"));
    let mut relative = stack.command(&["run", "--rm", "-v", "./shared/file:/one", "IMAGE", "cat", "/one"])?;
    relative.current_dir(env.root());
    assert_eq!(output::run(relative)?.ok()?.stdout, "from the host");
    let mount = format!("type=bind,source={},target=/data,readonly", dir.display());
    assert_eq!(stack.script(&["--mount", &mount], "cat /data/file")?.ok()?.stdout, "from the host");
    // What is mounted below is as the bind is, unless it is said otherwise.
    let inner = dir.join("inner");
    fs::create_dir(&inner)?;
    env.run("mount", &["-t", "tmpfs", "inner", &inner.to_string_lossy()])?.ok()?;
    fs::write(inner.join("file"), "")?;
    let inside = |options: &[&str]| {
        let look = "touch /data/inner/x 2>/dev/null && echo written; rm -f /data/inner/x; ls /data/inner";
        Ok::<_, anyhow::Error>(stack.script(options, look)?.text().replace('\n', " "))
    };
    assert_eq!(inside(&["-v", &format!("{volume}:ro")])?, "file");
    for (recursive, seen) in [("writable", "written file"), ("readonly", "file"), ("disabled", ""), ("enabled", "file")]
    {
        assert_eq!(inside(&["--mount", &format!("{mount},bind-recursive={recursive}")])?, seen, "{recursive}");
    }
    let writable = mount.replace(",readonly", ",bind-recursive=readonly");
    let refused = stack.script(&["--mount", &writable], "true")?.exits(125)?;
    assert!(refused.stderr.contains("read-only"), "{}", refused.stderr);
    env.run("umount", &[&*inner.to_string_lossy()])?.ok()?;
    Ok(())
}

fn privileges_are_the_default_ones(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let effective = |options: &[&str]| -> Result<String> {
        let ran = stack.script(options, "grep -E 'Cap(Inh|Eff|Amb)|Seccomp:' /proc/self/status | cut -f 2")?.ok()?;
        Ok(ran.text().replace('\n', " "))
    };
    assert_eq!(effective(&[])?, "0000000000000000 00000000a80425fb 0000000000000000 2");
    assert_eq!(
        effective(&["--cap-drop", "ALL", "--cap-add", "NET_RAW"])?,
        "0000000000000000 0000000000002000 0000000000000000 2"
    );
    assert!(effective(&["--privileged"])?.ends_with(" 0"), "no filter is in the way of a privileged container");
    stack.script(&[], "mount -t tmpfs none /tmp")?.fails()?;
    stack.script(&["--privileged"], "mount -t tmpfs none /tmp && touch /tmp/x")?.ok()?;
    stack.script(&[], "echo 1 > /proc/sys/kernel/sysrq")?.fails()?;
    assert_eq!(stack.script(&[], "cat /proc/kcore | wc -c; ls /sys/firmware")?.ok()?.text(), "0");
    stack.script(&["--read-only"], "touch /x")?.fails()?;
    stack.script(&["--read-only"], "touch /dev/shm/x")?.ok()?;
    let refused = stack.script(&["--cap-add", "NO_SUCH"], "true")?.exits(125)?;
    assert!(refused.stderr.contains("NO_SUCH"), "{}", refused.stderr);
    Ok(())
}

fn networks_are_private_or_the_hosts(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let links = "ls /sys/class/net; ip link show lo | head -1";
    let own = stack.script(&[], links)?.ok()?;
    assert_eq!(own.stdout.lines().next(), Some("lo"));
    assert!(own.stdout.contains("UP"), "loopback is up: {}", own.stdout);
    let namespace = fs::read_link("/proc/self/ns/net")?.display().to_string();
    let inside = |network| stack.script(&["--network", network], "ls -l /proc/self/ns/net | sed 's/.* -> //'");
    assert_eq!(inside("host")?.ok()?.text(), namespace);
    assert_ne!(inside("none")?.ok()?.text(), namespace);
    Ok(())
}

fn detached_containers_run_on(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let script = "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.1; done";
    let id = stack.gantry(&["run", "-d", "--name", "web", "--label", "a=b", "IMAGE", "sh", "-c", script])?.ok()?;
    assert_eq!(id.text().len(), 64);
    let listed = stack.gantry(&["ps", "--format", "{{.ID}} {{.Names}} {{.State}} {{.Labels}}", "--no-trunc"])?.ok()?;
    assert_eq!(listed.text(), format!("{} web running a=b", id.text()));
    let table = stack.gantry(&["ps"])?.ok()?.stdout;
    assert!(table.starts_with("CONTAINER ID   IMAGE") && table.contains("Up "), "{table}");
    wait::until("the log has its first line", || {
        stack.gantry(&["logs", "web"]).ok().filter(|logs| logs.stdout == "up\n")
    })?;
    stack.gantry(&["create", "--name", "web", "IMAGE", "true"])?.exits(1)?;
    stack.gantry(&["start", "-a", "nobody"])?.exits(1)?;
    let taken = stack.gantry(&["run", "-d", "--name", "web", "IMAGE", "true"])?.exits(125)?;
    assert!(taken.stderr.contains("web"), "{}", taken.stderr);
    let inspected = stack.gantry(&["inspect", "-f", "{{.State.Running}} {{.Name}}", "web"])?.ok()?;
    assert_eq!(inspected.text(), "true /web");
    stack.gantry(&["rm", "web"])?.exits(1)?;
    assert_eq!(stack.gantry(&["stop", "-t", "5", "web"])?.ok()?.text(), "web");
    assert_eq!(stack.gantry(&["wait", &id.text()[..8]])?.ok()?.text(), "3");
    assert_eq!(stack.gantry(&["logs", "--tail", "1", "web"])?.ok()?.stdout, "bye\n");
    let exited = stack.gantry(&["ps", "-a", "--filter", "name=web", "--format", "{{.Status}}"])?.ok()?;
    assert!(exited.text().starts_with("Exited (3) "), "{}", exited.text());
    assert_eq!(stack.gantry(&["start", "web"])?.ok()?.text(), "web");
    assert_eq!(stack.gantry(&["kill", "web"])?.ok()?.text(), "web");
    assert_eq!(stack.gantry(&["wait", "web"])?.ok()?.text(), "137");
    assert_eq!(stack.gantry(&["rm", "web"])?.ok()?.text(), "web");
    stack.gantry(&["rm", "web"])?.exits(1)?;
    Ok(())
}

/// Starts a `gantry` whose output can be read as it comes.
fn spawn(stack: &Stack<'_>, args: &[&str]) -> Result<Child> {
    stack.command(args)?.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("start gantry")
}

/// Reads from a child's output until `text` has come.
fn read_until(child: &mut Child, text: &str) -> Result<String> {
    let stdout = child.stdout.as_mut().context("its output is read")?;
    let mut seen = Vec::new();
    let mut byte = [0];
    while !seen.ends_with(text.as_bytes()) {
        if stdout.read(&mut byte)? == 0 {
            anyhow::bail!("wanted {text:?}, had {:?}", String::from_utf8_lossy(&seen));
        }
        seen.push(byte[0]);
    }
    Ok(String::from_utf8(seen)?)
}

fn end_code(child: &mut Child) -> Result<Option<i32>> {
    Ok(wait::until("gantry ends", || child.try_wait().transpose())??.code())
}

fn pid(child: &Child) -> Result<Pid> {
    Ok(Pid::from_raw(child.id().try_into()?))
}

fn signals_are_handed_on(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let script = "trap 'echo usr' USR1; trap 'exit 42' TERM; echo up; while :; do sleep 0.05; done";
    let mut child = spawn(&stack, &["run", "--rm", "IMAGE", "sh", "-c", script])?;
    read_until(&mut child, "up\n")?;
    kill(pid(&child)?, Signal::SIGUSR1)?;
    read_until(&mut child, "usr\n")?;
    kill(pid(&child)?, Signal::SIGTERM)?;
    assert_eq!(end_code(&mut child)?, Some(42));
    // Nor does input that nobody reads hold them up.
    let mut command = stack.command(&["run", "--rm", "-i", "IMAGE", "sh", "-c", script])?;
    let mut child = command.stdin(fs::File::open("/dev/zero")?).stdout(Stdio::piped()).spawn()?;
    read_until(&mut child, "up\n")?;
    std::thread::sleep(wait::seconds(1) / 2);
    kill(pid(&child)?, Signal::SIGUSR1)?;
    read_until(&mut child, "usr\n")?;
    kill(pid(&child)?, Signal::SIGTERM)?;
    assert_eq!(end_code(&mut child)?, Some(42));
    // A program that does not listen is left by the third interrupt.
    let deaf = "trap '' INT; echo up; while :; do sleep 0.05; done";
    let mut child = spawn(&stack, &["run", "--name", "deaf", "IMAGE", "sh", "-c", deaf])?;
    read_until(&mut child, "up\n")?;
    // Two that come while it is busy are one, so on a busy machine it may take more than three.
    let mut interrupts = 0;
    let ended = wait::until("gantry leaves", || {
        kill(pid(&child).ok()?, Signal::SIGINT).ok()?;
        interrupts += 1;
        std::thread::sleep(Duration::from_millis(100));
        child.try_wait().transpose()
    });
    assert_eq!((ended??.code(), interrupts >= 3), (Some(125), true), "after {interrupts} interrupts");
    assert_eq!(stack.gantry(&["ps", "--format", "{{.Names}}"])?.ok()?.text(), "deaf");
    Ok(())
}

fn a_stop_does_not_need_its_client(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let deaf = "trap 'echo told' TERM; echo up; while :; do sleep 0.1; done";
    stack.gantry(&["run", "-d", "--name", "deaf", "IMAGE", "sh", "-c", deaf])?.ok()?;
    let says = |text: &str| stack.gantry(&["logs", "deaf"]).ok().filter(|logs| logs.stdout == text);
    wait::until("it runs", || says("up\n"))?;
    let mut stopping = spawn(&stack, &["stop", "--time", "2", "deaf"])?;
    wait::until("it is told to end", || says("up\ntold\n"))?;
    stopping.kill()?;
    stopping.wait()?;
    assert_eq!(stack.gantry(&["wait", "deaf"])?.ok()?.text(), "137");
    Ok(())
}

fn a_pull_ends_with_its_client(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    // A registry that never answers.
    let registry = TcpListener::bind("127.0.0.1:0")?;
    let image = format!("{}/never/answers", registry.local_addr()?);
    let mut pulling = spawn(&stack, &["run", "--rm", "--plain-http", &image, "true"])?;
    let (mut asking, _) = registry.accept()?;
    pulling.kill()?;
    pulling.wait()?;
    asking.set_read_timeout(Some(wait::seconds(20)))?;
    let mut request = Vec::new();
    asking.read_to_end(&mut request).context("the daemon still waits for the registry")?;
    Ok(())
}

fn a_closed_output_ends_the_client(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let mut child = spawn(&stack, &["run", "--name", "noisy", "IMAGE", "yes"])?;
    read_until(&mut child, "y\n")?;
    drop(child.stdout.take());
    assert_eq!(end_code(&mut child)?, Some(141));
    // A full disk is said, not passed over.
    let mut full = stack.command(&["ps", "-a"])?;
    full.stdout(fs::File::options().write(true).open("/dev/full")?).stderr(Stdio::piped());
    let full = full.spawn()?.wait_with_output()?;
    assert!(String::from_utf8_lossy(&full.stderr).contains("no space left"), "{full:?}");
    assert_eq!(full.status.code(), Some(1));
    Ok(())
}

/// Longer than anything waits for output once a process has ended, in which all of its pipes are full.
fn a_reader_that_pauses_misses_nothing(env: &Env) -> Result<()> {
    const LENGTH: usize = 30_000_000;
    let stack = Stack::start(env)?;
    let script = format!("head -c {LENGTH} /dev/zero | tr '\\0' x; echo end");
    let mut command = stack.command(&["run", "--name", "talks", "IMAGE", "sh", "-c", &script])?;
    let mut client = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut output = client.stdout.take().context("no output")?;
    let mut first = [0; 10];
    output.read_exact(&mut first)?;
    std::thread::sleep(Duration::from_secs(12));
    let mut rest = Vec::new();
    output.read_to_end(&mut rest)?;
    assert!(client.wait()?.success());
    assert_eq!(first.len() + rest.len(), LENGTH + 4);
    assert!(rest.ends_with(b"xend\n"));
    let logged = stack.gantry(&["logs", "talks"])?.ok()?;
    assert_eq!(logged.stdout.len(), LENGTH + 4, "the log has less than the client");
    Ok(())
}

fn an_id_file_names_the_container_or_is_gone(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let file = env.path("id");
    let path = file.display().to_string();
    let id = stack.gantry(&["create", "--cidfile", &path, "IMAGE", "true"])?.ok()?;
    assert_eq!(fs::read_to_string(&file)?, id.text());
    let refused = stack.gantry(&["run", "--rm", "--cidfile", &path, "IMAGE", "true"])?.exits(125)?;
    assert!(refused.stderr.contains(&path), "{}", refused.stderr);
    let other = env.path("other");
    stack.gantry(&["run", "--cidfile", &other.display().to_string(), "--pull", "never", "never/pulled"])?.exits(125)?;
    assert!(!other.exists());
    assert_eq!(stack.gantry(&["start", "-a", id.text()])?.ok()?.stdout, "");
    Ok(())
}

fn nothing_is_left_after_a_failure(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    stack.gantry(&["pull", "IMAGE"])?.ok()?;
    for options in [
        &["--mount", "type=bind,src=/no/such/host/path,dst=/data"][..],
        &["-u", "nobody-here"],
        &["--cap-add", "NO_SUCH"],
        &["-w", "x"],
    ] {
        stack.script(options, "true")?.exits(125)?;
    }
    stack.gantry(&["run", "--rm", "IMAGE", "no-such-program"])?.exits(127)?;
    stack.gantry(&["run", "--rm", "-d", "IMAGE", "no-such-program"])?.exits(127)?;
    assert_eq!(stack.gantry(&["ps", "-aq"])?.ok()?.text(), "");
    let state = env.path("state").display().to_string();
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    assert!(!mounts.contains(&state), "a mount is left below {state}:\n{mounts}");
    stack.script(&["--name", "again"], "true")?.ok()?;
    stack.script(&["--name", "again"], "true")?.ok()?;
    Ok(())
}
