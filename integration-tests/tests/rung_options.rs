//! What a configuration and a command line can ask for beside the usual, one small container each: that it arrives.

use std::fs;
use std::io::IoSliceMut;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::net::UnixListener;

use anyhow::Context as _;
use integration_tests::{Bundle, Env, Result, Test, tests, wait};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde_json::{Value, json};

pub(crate) const TESTS: &[Test] = tests![
    settings_reach_the_program [Root],
    a_new_file_system_is_roots [Root],
    kinds_of_mounts_are_seen [Root],
    the_working_directory_is_made_below_a_read_only_root [Root],
    mounts_come_and_go_while_it_runs [Root],
    descriptors_are_kept [Root],
    signals_that_the_caller_ignores_are_not_ignored [Root],
    the_session_keyring_is_the_containers [Root],
    a_shared_process_namespace_is_killed_whole [Root],
    a_profile_is_in_force_without_proc [Root, Apparmor],
    words_after_the_id_are_the_programs [Root],
    switches_take_values [],
    hooks_print_where_an_annotation_says [Root],
    the_groups_of_the_caller_can_be_kept [Root],
    annotations_that_are_not_built_are_refused [Root],
    a_joined_user_namespace_has_the_stated_maps [Root],
    sockets_get_the_terminal_and_the_process [Root],
    huge_pages_are_limited [Root],
    ids_of_mounts_below_are_mapped_too [Root],
    expressions_choose_containers [Root],
    the_journal_takes_the_log [Root, Systemd],
];

/// Values of a configuration by JSON pointer.
type Settings<'a> = &'a [(&'a str, Value)];

/// Runs a shell script in a container with these settings.
fn run(env: &Env, name: &str, settings: Settings<'_>, script: &str) -> Result<String> {
    let mut bundle = Bundle::new(env, name, &["sh", "-c", script])?;
    for (pointer, value) in settings {
        bundle.set(pointer, value.clone());
    }
    Ok(env.run_rung(&["run", "--bundle", bundle.write()?, &env.id(name)])?.ok()?.text().to_owned())
}

fn settings_reach_the_program(env: &Env) -> Result<()> {
    let namespaces = |more: &str| {
        let kinds = ["pid", "network", "ipc", "uts", "mount", more];
        kinds.into_iter().filter(|kind| !kind.is_empty()).map(|kind| json!({"type": kind})).collect::<Value>()
    };
    let limits = json!([{"type": "RLIMIT_NOFILE", "soft": 99, "hard": 111}]);
    let scheduler = json!({"policy": "SCHED_BATCH", "nice": 5});
    let offsets = json!({"boottime": {"secs": 1_000_000}});
    let io = json!({"class": "IOPRIO_CLASS_BE", "priority": 3});
    let nodes = json!({"mode": "MPOL_BIND", "nodes": "0"});
    let table: &[(&str, Settings<'_>, &str, &str)] = &[
        ("umask", &[("/process/user/umask", json!(0o77))], "umask", "0077"),
        ("rlimits", &[("/process/rlimits", limits)], "ulimit -Sn; ulimit -Hn", "99\n111"),
        ("oom", &[("/process/oomScoreAdj", json!(123))], "cat /proc/self/oom_score_adj", "123"),
        ("domain", &[("/domainname", json!("inside"))], "cat /proc/sys/kernel/domainname", "inside"),
        ("nice", &[("/process/scheduler", scheduler)], "cut -d' ' -f19,41 /proc/self/stat", "5 3"),
        (
            "offsets",
            &[("/linux/namespaces", namespaces("time")), ("/linux/timeOffsets", offsets)],
            "grep boottime /proc/self/timens_offsets | tr -s ' '",
            "boottime 1000000 0",
        ),
        ("mapped", &[("/linux/uidMappings", json!([{"hostID": 1, "containerID": 0, "size": 1}]))], "id -u", "0"),
        ("listed", &[("/process/execCPUAffinity", json!({"initial": "", "final": "0,, 0"}))], "echo y", "y"),
        ("noted", &[("/annotations", json!({"org.example.none": null}))], "echo y", "y"),
        ("groups", &[("/process/user/additionalGids", json!([7, 9]))], "id -G", "0 7 9"),
        ("io", &[("/process/ioPriority", io)], "ionice", "best-effort: prio 3"),
        ("nodes", &[("/linux/memoryPolicy", nodes)], "cut -d' ' -f2 /proc/self/numa_maps | head -n 1", "bind:0"),
    ];
    for (name, settings, script, expected) in table {
        assert_eq!(run(env, name, settings, script)?, *expected, "{name}");
    }
    if cfg!(target_arch = "x86_64") {
        let personality = [("/linux/personality", json!({"domain": "LINUX32"}))];
        assert_eq!(run(env, "personality", &personality, "uname -m")?, "i686");
    }
    Ok(())
}

fn kinds_of_mounts_are_seen(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "copied", &["sh", "-c", "cat /etc/passwd | wc -l; touch /etc/new && ls /etc"])?;
    let options = json!(["tmpcopyup", "mode=755"]);
    bundle.push("/mounts", json!({"destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": options}));
    let path = bundle.write()?.to_owned();
    let expected = "2\ngroup\nnew\npasswd";
    assert_eq!(env.run_rung(&["run", "--bundle", &path, &env.id("copied")])?.ok()?.text(), expected);
    assert!(!bundle.rootfs().join("etc/new").exists());
    let dev = bundle.config["mounts"].as_array_mut().into_iter().flatten().find(|mount| mount["destination"] == "/dev");
    if let Some(options) = dev.and_then(|dev| dev["options"].as_array_mut()) {
        // It is read-only when it is filled, whatever is asked of the mounts below.
        options.extend([json!("ro"), json!("rrelatime")]);
    }
    bundle.write()?;
    // For a root that cannot be pivoted away from.
    assert_eq!(env.run_rung(&["run", "--no-pivot", "--bundle", &path, &env.id("moved")])?.ok()?.text(), expected);
    Ok(())
}

/// As with runc: of what it covers a tmpfs has the mode, and not the owner, who may be anybody.
fn a_new_file_system_is_roots(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "owned", &["stat", "-c", "%u:%g %a", "/owned"])?;
    let owned = bundle.rootfs().join("owned");
    fs::create_dir(&owned)?;
    chown(&owned, Some(7), Some(8))?;
    fs::set_permissions(&owned, fs::Permissions::from_mode(0o2750))?;
    bundle.push("/mounts", json!({"destination": "/owned", "type": "tmpfs", "source": "tmpfs"}));
    assert_eq!(env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("owned")])?.ok()?.text(), "0:0 2750");
    Ok(())
}

/// Images name directories that no layer has, and pods often have read-only roots.
fn the_working_directory_is_made_below_a_read_only_root(env: &Env) -> Result<()> {
    let settings = [("/root/readonly", json!(true)), ("/process/cwd", json!("/made/by/run"))];
    let said = run(env, "made", &settings, "pwd; touch x 2>&1; true")?;
    assert!(said.starts_with("/made/by/run\n") && said.contains("Read-only file system"), "{said}");
    Ok(())
}

fn mounts_come_and_go_while_it_runs(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "live", &["sleep", "600"])?;
    bundle.set("/root/readonly", false);
    let (id, volume, file) = (env.id("live"), env.dir("volume")?, env.path("mounts.json"));
    fs::write(volume.join("canary"), "seen")?;
    env.run_rung(&["run", "--detach", "--bundle", bundle.write()?, &id])?.ok()?;
    let look = "cat /added/canary /single; echo x 2>/dev/null >/added/canary; grep -c ' /ram tmpfs' /proc/mounts";
    let steps = || -> Result<[String; 3]> {
        let mounts = json!([
            {"destination": "/added", "source": volume, "options": ["rbind", "ro"]},
            {"destination": "/ram", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k"]},
            {"destination": "/single", "source": volume.join("canary"), "options": ["bind"]},
        ]);
        fs::write(&file, mounts.to_string())?;
        let path = file.to_string_lossy();
        env.run_rung(&["mounts", "add", &id, &path])?.ok()?;
        let with = env.run_rung(&["exec", &id, "sh", "-c", look])?.text().to_owned();
        env.run_rung(&["mounts", "remove", &id, &path])?.ok()?;
        let without = env.run_rung(&["exec", &id, "sh", "-c", look])?.text().to_owned();
        fs::write(
            &file,
            json!([{"destination": "/proc/self/attr", "source": volume, "options": ["bind"]}]).to_string(),
        )?;
        Ok([with, without, env.run_rung(&["mounts", "add", &id, &path])?.fails()?])
    };
    let seen = steps();
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    let [with, without, refused] = seen?;
    assert_eq!((&*with, &*without), ("seenseen1", "0"));
    assert!(refused.contains("inside /proc"), "{refused}");
    assert_eq!(fs::read_to_string(volume.join("canary"))?, "seen");
    Ok(())
}

fn signals_that_the_caller_ignores_are_not_ignored(env: &Env) -> Result<()> {
    let bundle = Bundle::new(env, "ignored", &["grep", "SigIgn", "/proc/self/status"])?;
    let rung = env.rung(&["run", "--bundle", bundle.write()?, &env.id("ignored")])?;
    let words: Vec<_> = rung.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
    let line = format!("trap '' HUP USR1; exec {} {}", rung.get_program().to_string_lossy(), words.join(" "));
    let ignored = env.run("sh", &["-c", &line])?.ok()?;
    let ignored = u64::from_str_radix(ignored.text().trim_start_matches("SigIgn:").trim(), 16)?;
    // Two realtime signals are the C library's own, which touches them for nobody.
    assert_eq!(ignored, 0, "{ignored:b}");
    Ok(())
}

fn descriptors_are_kept(env: &Env) -> Result<()> {
    let bundle = Bundle::new(env, "kept", &["sh", "-c", "cat <&3; ls /proc/self/fd | wc -l"])?;
    let file = env.path("third");
    fs::write(&file, "third\n")?;
    let rung = env.rung(&["run", "--preserve-fds", "1", "--bundle", bundle.write()?, &env.id("kept")])?;
    let words: Vec<_> = rung.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
    let line = format!("exec {} {} 3<{}", rung.get_program().to_string_lossy(), words.join(" "), file.display());
    // 0 to 3, and the directory that is listed.
    assert_eq!(env.run("sh", &["-c", &line])?.ok()?.text(), "third\n5");
    Ok(())
}

fn the_session_keyring_is_the_containers(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "keys", &["cat", "/proc/keys"])?;
    let kept = env.run_rung(&["run", "--no-new-keyring", "--bundle", bundle.write()?, &env.id("caller")])?.ok()?;
    let id = env.id("keys");
    // Where it can be hidden it is: this one shows it.
    bundle.set("/linux/maskedPaths", json!([]));
    let own = env.run_rung(&["run", "--bundle", bundle.write()?, &id])?.ok()?;
    assert!(own.stdout.contains(&format!("_ses.{id}")) && !kept.stdout.contains("_ses."), "{own}\n{kept}");
    Ok(())
}

fn a_shared_process_namespace_is_killed_whole(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "shared", &["sh", "-c", "sleep 611 & sleep 611 & wait"])?;
    bundle.share("pid");
    let id = env.id("shared");
    env.run_rung(&["run", "--detach", "--bundle", bundle.write()?, &id])?.ok()?;
    let pids = || env.run_rung(&["ps", "--format", "json", &id]).map(|ran| ran.text().to_owned());
    let seen = wait::until("three processes", || pids().ok().filter(|pids| pids.matches(',').count() == 2));
    let killed = env.run_rung(&["kill", "--all", &id, "KILL"]);
    let gone = wait::until("their end", || pids().ok().filter(|pids| pids == "[]"));
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    killed?.ok()?;
    seen.and(gone).map(drop)
}

/// CVE-2019-16884, CVE-2025-52881: the label is written through a procfs that no image and no mount can get at, whether the
/// container has one or not. This one has files of the image's there.
fn a_profile_is_in_force_without_proc(env: &Env) -> Result<()> {
    let (id, file) = (env.id("profile"), env.path("profile.text"));
    fs::write(&file, format!("profile {id} flags=(attach_disconnected) {{ file, capability, signal, }}\n"))?;
    env.run("apparmor_parser", &["--replace", "--skip-cache", &file.to_string_lossy()])?.ok()?;
    let mut bundle = Bundle::new(env, "profile", &["sleep", "600"])?;
    bundle.set("/mounts", json!([])).set("/process/apparmorProfile", id.clone());
    bundle.set("/linux/maskedPaths", json!([])).set("/linux/readonlyPaths", json!([]));
    for file in ["self/attr/apparmor/exec", "self/attr/exec", "thread-self/attr/apparmor/exec"] {
        let path = bundle.rootfs().join("proc").join(file);
        fs::create_dir_all(path.parent().context("a directory")?)?;
        fs::write(path, "")?;
    }
    let run = env.run_rung(&["run", "--detach", "--bundle", bundle.write()?, &id])?;
    let state = env.run_rung(&["state", &id])?;
    let state: Value = serde_json::from_str(state.text()).unwrap_or_default();
    let label = fs::read_to_string(format!("/proc/{}/attr/current", state["pid"]));
    // A flag without a value is no wish for a process without a profile.
    let number = env.path("exec.pid");
    let flags = ["--detach", "--apparmor", "", "--pid-file", &number.to_string_lossy()];
    let ran = env.run_rung(&[&["exec"], &flags[..], &[&*id, "sleep", "500"]].concat());
    let other = fs::read_to_string(&number).and_then(|pid| fs::read_to_string(format!("/proc/{pid}/attr/current")));
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    env.run("apparmor_parser", &["--remove", &file.to_string_lossy()])?.ok()?;
    run.ok()?;
    ran?.ok()?;
    assert_eq!(label?.trim(), format!("{id} (enforce)"));
    assert_eq!(other?.trim(), format!("{id} (enforce)"));
    Ok(())
}

fn words_after_the_id_are_the_programs(env: &Env) -> Result<()> {
    let bundle = Bundle::new(env, "words", &["sleep", "600"])?;
    let id = env.id("words");
    env.run_rung(&["run", "--detach", "--bundle", bundle.write()?, &id])?.ok()?;
    let said = env.run_rung(&["exec", "--env", "A=1", &id, "echo", "--env", "-u"]);
    let empty = env.run_rung(&["exec", "--cwd", "", "--process-label", "", &id, "pwd"]);
    let listed = env.run_rung(&["ps", &id, "-f", "-A"]);
    let signalled = env.run_rung(&["kill", &id, "-a"]);
    env.run_rung(&["delete", "--force=true", &id])?.ok()?;
    assert_eq!(said?.ok()?.text(), "--env -u");
    assert_eq!(empty?.ok()?.text(), "/");
    assert!(listed?.ok()?.text().contains("sleep 600"));
    assert!(signalled?.fails()?.contains("unknown signal"));
    Ok(())
}

fn switches_take_values(env: &Env) -> Result<()> {
    // A root that is named must be there.
    fs::create_dir(env.path("rung"))?;
    assert_eq!(env.run_rung(&["--debug=false", "--rootless=1", "list", "--quiet=true"])?.ok()?.text(), "");
    let log = env.path("log");
    env.run_rung(&["--log", &log.to_string_lossy(), "--log-format=json", "delete", "--force=maybe", "x"])?.fails()?;
    assert!(fs::read_to_string(&log)?.contains(r#""level":"error""#));
    Ok(())
}

fn hooks_print_where_an_annotation_says(env: &Env) -> Result<()> {
    let (out, err) = (env.path("out"), env.path("err"));
    fs::write(&out, "before\n")?;
    let hook = |word: &str, path: &str| json!([{"path": path, "args": ["sh", "-c", format!("echo {word}; echo {word}! >&2")]}]);
    let settings = [
        ("/annotations", json!({"run.oci.hooks.stdout": out, "run.oci.hooks.stderr": err})),
        ("/hooks/createRuntime", hook("runtime", "/bin/sh")),
        ("/hooks/startContainer", hook("inside", "/bin/sh")),
        ("/hooks/poststop", hook("after", "/bin/sh")),
    ];
    assert_eq!(run(env, "printing", &settings, "ls /proc/self/fd | wc -l")?, "4");
    assert_eq!(fs::read_to_string(&out)?, "before\nruntime\ninside\nafter\n");
    assert_eq!(fs::read_to_string(&err)?, "runtime!\ninside!\nafter!\n");
    Ok(())
}

fn the_groups_of_the_caller_can_be_kept(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "caller", &["id", "-G"])?;
    bundle.set("/annotations", json!({"run.oci.keep_original_groups": "1"}));
    let rung = env.rung(&["run", "--bundle", bundle.write()?, &env.id("caller")])?;
    let mut command = vec!["--groups=0,4242", "--"];
    let words: Vec<_> =
        std::iter::once(rung.get_program()).chain(rung.get_args()).map(|w| w.to_string_lossy()).collect();
    command.extend(words.iter().map(|word| &**word));
    assert_eq!(env.run("setpriv", &command)?.ok()?.text(), "0 4242");
    Ok(())
}

fn annotations_that_are_not_built_are_refused(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "handler", &["true"])?;
    bundle.set("/annotations", json!({"run.oci.handler": "krun"}));
    let said = env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("handler")])?.fails()?;
    assert!(said.contains("run.oci.handler") && said.contains("not supported"), "{said}");
    Ok(())
}

fn a_joined_user_namespace_has_the_stated_maps(env: &Env) -> Result<()> {
    let map = |outside: u32| json!([{"containerID": 0, "hostID": outside, "size": 1000}]);
    let mut bundle = Bundle::new(env, "owner", &["sleep", "600"])?;
    bundle.set("/linux/uidMappings", map(100_000)).set("/linux/gidMappings", map(100_000));
    bundle.push("/linux/namespaces", json!({"type": "user"}));
    let id = env.id("owner");
    env.run_rung(&["run", "--detach", "--bundle", bundle.write()?, &id])?.ok()?;
    let state = env.state(&id)?;
    let join = |outside: u32| -> Result<_> {
        let name = format!("joins{outside}");
        let mut bundle = Bundle::new(env, &name, &["cat", "/proc/self/uid_map"])?;
        bundle.set("/linux/uidMappings", map(outside)).set("/linux/gidMappings", map(outside));
        let path = format!("/proc/{}/ns/user", state["pid"]);
        bundle.push("/linux/namespaces", json!({"type": "user", "path": path}));
        env.run_rung(&["run", "--bundle", bundle.write()?, &env.id(&name)])
    };
    let (same, other) = (join(100_000), join(200_000));
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    let same = same?.ok()?;
    assert_eq!(same.text().split_whitespace().collect::<Vec<_>>(), ["0", "100000", "1000"]);
    assert!(other?.fails()?.contains("linux.uidMappings: not those of the user namespace"));
    Ok(())
}

/// The terminal has the configured size before anybody has looked at it; the descriptor is the first process's.
fn sockets_get_the_terminal_and_the_process(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "sockets", &["sh", "-c", "stty size >/size; sleep 600"])?;
    bundle.set("/process/terminal", true).set("/process/consoleSize", json!({"height": 17, "width": 91}));
    bundle.set("/root/readonly", false);
    let (id, console, process) = (env.id("sockets"), env.path("console"), env.path("pidfd"));
    let listeners = [UnixListener::bind(&console)?, UnixListener::bind(&process)?];
    let (console, process) = (console.to_string_lossy(), process.to_string_lossy());
    let flags = ["run", "--detach", "--console-socket", &console, "--pidfd-socket", &process, "--bundle"];
    env.run_rung(&[&flags[..], &[bundle.write()?, &id]].concat())?.ok()?;
    let state = env.state(&id)?;
    let looked = (|| {
        let (_, terminal) = receive(&listeners[0])?;
        let (name, pidfd) = receive(&listeners[1])?;
        let size = || fs::read_to_string(bundle.rootfs().join("size")).ok().filter(|size| size.ends_with('\n'));
        let size = wait::until("the size", size)?;
        Ok::<_, anyhow::Error>((name, terminal, fs::read_to_string(format!("/proc/self/fdinfo/{pidfd}"))?, size))
    })();
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    let (name, terminal, info, size) = looked?;
    assert!(fs::read_link(format!("/proc/self/fd/{terminal}"))?.ends_with("ptmx"));
    assert_eq!((name.as_str(), size.trim()), ("standard", "17 91"));
    assert!(info.contains(&format!("Pid:\t{}\n", state["pid"])), "{info}");
    Ok(())
}

/// What was sent to a listener: a text, and the number of the descriptor that came with it, which stays open.
fn receive(listener: &UnixListener) -> Result<(String, i32)> {
    let (socket, _) = listener.accept()?;
    let (mut text, mut space) = (vec![0; 4096], nix::cmsg_space!([i32; 1]));
    let (length, sent) = {
        let mut parts = [IoSliceMut::new(&mut text)];
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
        let sent = message.cmsgs()?.find_map(|one| match one {
            ControlMessageOwned::ScmRights(list) => list.first().copied(),
            _ => None,
        });
        (message.bytes, sent)
    };
    text.truncate(length);
    Ok((String::from_utf8(text)?, sent.context("no descriptor came")?))
}

/// The limit arrives in the cgroup, or the host lacks the controller and that is told.
fn huge_pages_are_limited(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "huge", &["sleep", "600"])?;
    bundle.set("/linux/resources/hugepageLimits", json!([{"pageSize": "2MB", "limit": 4_194_304}]));
    let id = env.id("huge");
    let ran = env.run_rung(&["run", "--detach", "--bundle", bundle.write()?, &id])?;
    let inner = bundle.config["linux"]["cgroupsPath"].as_str().unwrap_or_default();
    let files = [format!("hugetlb{inner}/hugetlb.2MB.limit_in_bytes"), format!("{}/hugetlb.2MB.max", &inner[1..])];
    let found = files.iter().find_map(|file| fs::read_to_string(format!("/sys/fs/cgroup/{file}")).ok());
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    match found {
        Some(limit) => assert_eq!((ran.ok()?.text(), limit.trim()), ("", "4194304")),
        None => assert!(ran.fails()?.contains("hugetlb")),
    }
    Ok(())
}

/// `ridmap` reaches the mounts below, `idmap` does not.
fn ids_of_mounts_below_are_mapped_too(env: &Env) -> Result<()> {
    env.own_mounts()?;
    let outer = env.dir("outer")?;
    let path = outer.to_string_lossy().into_owned();
    env.run("mount", &["-t", "tmpfs", "tmpfs", &path])?.ok()?;
    fs::create_dir(outer.join("inner"))?;
    env.run("mount", &["-t", "tmpfs", "tmpfs", &format!("{path}/inner")])?.ok()?;
    for file in ["a", "inner/b"] {
        fs::write(outer.join(file), "")?;
    }
    for (option, below) in [("idmap", "0"), ("ridmap", "1000")] {
        let mut bundle = Bundle::new(env, option, &["stat", "-c", "%u", "/v/a", "/v/inner/b"])?;
        let maps = json!([{"containerID": 0, "hostID": 1000, "size": 10}]);
        bundle.push(
            "/mounts",
            json!({"destination": "/v", "source": path, "type": "bind", "options": ["rbind", option],
                "uidMappings": maps, "gidMappings": maps}),
        );
        let ran = env.run_rung(&["run", "--bundle", bundle.write()?, &env.id(option)])?;
        if ran.code() != 0 && ran.stderr.contains("invalid argument") {
            // Before Linux 6.3 a tmpfs cannot be mapped, and that is said.
            assert!(ran.fails()?.contains("map the ids"));
            return Ok(());
        }
        assert_eq!(ran.ok()?.text(), format!("1000\n{below}"), "{option}");
    }
    Ok(())
}

fn expressions_choose_containers(env: &Env) -> Result<()> {
    for name in ["one", "two", "other"] {
        let bundle = Bundle::new(env, name, &["sleep", "600"])?;
        env.run_rung(&["run", "--detach", "--bundle", bundle.write()?, &env.id(name)])?.ok()?;
    }
    let (some, all, none) = (format!("^{}-(one|two)$", env.token()), format!("^{}-", env.token()), "^nobody$");
    let killed = env.run_rung(&["kill", "--regex", &some, "KILL"])?;
    let nobody = env.run_rung(&["delete", "--regex", none])?;
    let deleted = env.run_rung(&["delete", "--force", "--regex", &some])?;
    let left = env.run_rung(&["list", "--quiet"])?;
    env.run_rung(&["delete", "--force", "--regex", &all])?.ok()?;
    killed.ok()?;
    nobody.ok()?;
    deleted.ok()?;
    assert_eq!(left.ok()?.text(), env.id("other"));
    assert!(env.run_rung(&["delete", "--regex", "("])?.fails()?.contains("no regular expression"));
    Ok(())
}

fn the_journal_takes_the_log(env: &Env) -> Result<()> {
    let name = env.id("log");
    for global in
        [&["--log", &format!("journald:{name}")][..], &["--log", &format!("syslog:{name}")], &["--systemd-log"]]
    {
        env.run_rung(&[global, &["state", &name]].concat())?.fails()?;
    }
    let said = |identifier: &str| {
        let ran = env.run("journalctl", &["--quiet", "--output", "cat", "--identifier", identifier]).ok()?;
        Some(ran.text().to_owned())
    };
    let lines = |text: &str| text.matches(&*name).count();
    wait::until("the journal", || said(&name).filter(|text| lines(text) == 2))?;
    wait::until("the journal", || said("rung").filter(|text| lines(text) == 1))?;
    Ok(())
}
