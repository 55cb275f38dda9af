//! Attacks that need another container at the same time: one that shares a volume and changes it between two looks of the
//! runtime. A thread of the test is that container.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use integration_tests::tar::Tar;
use integration_tests::{Bundle, Env, Result, Stack, Test, output, tests, wait};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use serde_json::json;

use crate::rung_cgroups::{Sleeper, unified};
use crate::rung_mounts::add_user_namespace;

pub(crate) const TESTS: &[Test] = tests![
    a_swapped_mount_target_stays_inside[Root, Fast],
    a_swapped_way_into_proc_sets_what_was_asked[Root, Fast],
    a_swapped_null_device_masks_nothing[Root, Fast],
    a_swapped_console_leads_nowhere[Root, Fast],
    a_swapped_working_directory_makes_nothing_outside[Root, Fast],
    an_exec_shows_no_descriptor_of_the_host[Root, Fast],
    an_exec_on_its_way_is_nothing_of_the_host[Root],
    who_makes_a_user_namespace_is_not_open_to_root[Root, Userns, Fast],
    a_swapped_directory_leads_no_copy_outside[Root, Overlay, Fast],
];

/// Starts of a container that one race is tried with; 10,000 where all is tried.
fn rounds() -> usize {
    wait::amount(wait::rounds(60), 10_000)
}

/// Exchanges two names, again and again, until it is dropped.
struct Swapper {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Swapper {
    fn start(one: PathBuf, other: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                // Either name may be busy, or gone, for a moment.
                let _ = renameat2(AT_FDCWD, &one, AT_FDCWD, &other, RenameFlags::RENAME_EXCHANGE);
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Swapper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}

/// Everything in a directory and below, with sizes: a picture to compare with a later one.
fn picture(path: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let mut seen = Vec::new();
    let mut pending = vec![path.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            let found = entry.metadata()?;
            seen.push((entry.path(), found.len()));
            if found.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    seen.sort();
    Ok(seen)
}

/// The mounts of this test on the host, which must be the same after every attack; others come and go.
fn host_mounts(env: &Env) -> Result<usize> {
    Ok(fs::read_to_string("/proc/self/mountinfo")?.lines().filter(|line| line.contains(env.token())).count())
}

/// CVE-2021-30465, CVE-2019-19921: a component of a mount target becomes a link between the look and the mount.
fn a_swapped_mount_target_stays_inside(env: &Env) -> Result<()> {
    let (volume, victim) = (env.dir("volume")?, env.dir("victim")?);
    fs::write(victim.join("canary"), "unharmed")?;
    fs::create_dir(volume.join("dir"))?;
    symlink(&victim, volume.join("link"))?;
    let mut bundle = Bundle::new(env, "target", &["sh", "-c", "cat /volume/dir/made/canary /volume/link/made/canary"])?;
    bundle.push("/mounts", json!({"destination": "/volume", "source": volume, "options": ["bind"]}));
    bundle.push("/mounts", json!({"destination": "/volume/dir/made", "type": "tmpfs", "source": "tmpfs"}));
    let (path, before, mounts) = (bundle.write()?, picture(&victim)?, host_mounts(env)?);
    let swapper = Swapper::start(volume.join("dir"), volume.join("link"));
    for round in 0..rounds() {
        // Whether it starts does not matter; where it mounts does.
        let ran = env.run_rung(&["run", "--bundle", path, &env.id(&format!("target{round}"))])?;
        ensure!(!ran.stdout.contains("unharmed"), "a container read a file of the host");
    }
    drop(swapper);
    ensure!(picture(&victim)? == before, "a mount point was made outside");
    ensure!(host_mounts(env)? == mounts, "a mount is left on the host");
    Ok(())
}

/// CVE-2025-52881: a mount lands on the container's `/proc` where a link leads there for a moment, so that what is written
/// to a setting goes elsewhere. The container looks at its settings through a `/proc` of its own.
fn a_swapped_way_into_proc_sets_what_was_asked(env: &Env) -> Result<()> {
    let volume = env.dir("volume")?;
    fs::create_dir_all(volume.join("dir/ipv4"))?;
    symlink("/proc/sys/net", volume.join("link"))?;
    let script =
        "mkdir -p /tmp/proc && mount -t proc proc /tmp/proc && cat /tmp/proc/sys/net/ipv4/ip_unprivileged_port_start";
    let mut bundle = Bundle::new(env, "setting", &["sh", "-c", script])?;
    bundle.set("/root/readonly", false).set("/linux/sysctl/net.ipv4.ip_unprivileged_port_start", "77");
    bundle.grant("CAP_SYS_ADMIN");
    bundle.push("/mounts", json!({"destination": "/volume", "source": volume, "options": ["bind"]}));
    bundle.push("/mounts", json!({"destination": "/volume/dir/ipv4", "type": "tmpfs", "source": "tmpfs"}));
    let path = bundle.write()?;
    let swapper = Swapper::start(volume.join("dir"), volume.join("link"));
    let mut started = 0;
    for round in 0..rounds() {
        let ran = env.run_rung(&["run", "--bundle", path, &env.id(&format!("setting{round}"))])?;
        // It may be refused; a container that runs has what was asked for.
        if ran.code() == 0 {
            started += 1;
            ensure!(ran.text() == "77", "a setting went elsewhere: {ran}");
        }
    }
    drop(swapper);
    ensure!(started > 0, "no container started");
    Ok(())
}

/// CVE-2025-31133: the device that masks are made of is exchanged for a link to what they hide.
fn a_swapped_null_device_masks_nothing(env: &Env) -> Result<()> {
    let dev = env.dir("dev")?;
    let null = dev.join("null");
    env.run("mknod", &["-m", "666", null.to_str().context("a path")?, "c", "1", "3"])?.ok()?;
    symlink("/proc/sys/kernel/core_pattern", dev.join("link"))?;
    let script = "grep -q x /proc/timer_list && echo seen; echo '|/attack' > /proc/timer_list; exit 0";
    let mut bundle = Bundle::new(env, "null", &["sh", "-c", script])?;
    bundle.unmount("/dev").push("/mounts", json!({"destination": "/dev", "source": dev, "options": ["bind"]}));
    let path = bundle.write()?;
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern")?;
    let swapper = Swapper::start(null, dev.join("link"));
    for round in 0..rounds() {
        let mut command = env.rung(&["run", "--bundle", path, &env.id(&format!("null{round}"))])?;
        command.stdin(Stdio::null());
        let ran = output::run(command)?;
        ensure!(!ran.stdout.contains("seen"), "a mask was left out");
        ensure!(fs::read_to_string("/proc/sys/kernel/core_pattern")? == pattern, "a mask became a way to a setting");
    }
    drop(swapper);
    Ok(())
}

/// CVE-2025-52565, CVE-2026-88264: what the terminal is bound to is exchanged for a link.
fn a_swapped_console_leads_nowhere(env: &Env) -> Result<()> {
    let victim = env.path("victim");
    fs::write(&victim, "unharmed")?;
    let dev = env.dir("dev")?;
    fs::write(dev.join("console"), "")?;
    symlink(&victim, dev.join("link"))?;
    let mut bundle = Bundle::new(env, "console", &["sh", "-c", "echo attack > /dev/console"])?;
    bundle.set("/process/terminal", true);
    for mount in bundle.config["mounts"].as_array_mut().context("mounts")? {
        if mount["destination"] == "/dev" {
            *mount = json!({"destination": "/dev", "source": dev, "options": ["bind"]});
        }
    }
    fs::create_dir_all(dev.join("pts"))?;
    for name in ["shm", "mqueue"] {
        fs::create_dir_all(dev.join(name))?;
    }
    let (path, mounts) = (bundle.write()?, host_mounts(env)?);
    let swapper = Swapper::start(dev.join("console"), dev.join("link"));
    for round in 0..rounds() {
        env.run_rung(&["run", "--bundle", path, &env.id(&format!("console{round}"))])?;
        ensure!(fs::read_to_string(&victim)? == "unharmed", "the terminal led to a file of the host");
    }
    drop(swapper);
    ensure!(host_mounts(env)? == mounts, "a mount is left on the host");
    Ok(())
}

/// CVE-2026-55686 and its kin: a working directory that is made where a link leads.
fn a_swapped_working_directory_makes_nothing_outside(env: &Env) -> Result<()> {
    let victim = env.dir("victim")?;
    let mut bundle = Bundle::new(env, "workdir", &["pwd"])?;
    bundle.set("/root/readonly", false).set("/process/cwd", "/work/a/b");
    fs::create_dir(bundle.rootfs().join("work"))?;
    symlink(&victim, bundle.rootfs().join("link"))?;
    let path = bundle.write()?;
    let swapper = Swapper::start(bundle.rootfs().join("work"), bundle.rootfs().join("link"));
    for round in 0..rounds() {
        env.run_rung(&["run", "--bundle", path, &env.id(&format!("workdir{round}"))])?;
        ensure!(fs::read_dir(&victim)?.count() == 0, "a directory was made outside");
    }
    drop(swapper);
    Ok(())
}

/// CVE-2016-9962: root of the container looks at every process that joins, for a descriptor of the host, and for one that
/// is still in the host's root. The container's own file of users, told from the host's by what it is, is the container's to see.
fn an_exec_shows_no_descriptor_of_the_host(env: &Env) -> Result<()> {
    let id = env.id("spy");
    let watcher = "for n in /proc/1/ns/*; do own=\"$own $(readlink $n)\"; done; while :; do for p in /proc/[0-9]*; do [ $p = /proc/1 ] && continue; \
                   [ -d $p/root/bin ] && ! [ $p/root/bin -ef /bin ] && [ -d $p/root/bin ] && echo $p root >> /seen; \
                   for f in $p/fd/*; do t=$(readlink $f 2>/dev/null) || continue; \
                   case $t in /|/dev/null|pipe:*|socket:*|anon_inode:*|/proc/*|/bin/*|*/$ID/*) continue;; esac; \
                   [ $t = /etc/passwd ] && { [ $f -ef $t ] || [ \"$(readlink $f)\" != $t ]; } && continue; \
                   case $own in *\"$t\"*) ;; *) echo $p $f $t >> /seen;; esac; \
                   done; done; done";
    let mut bundle = Bundle::new(env, "spy", &["sh", "-c", watcher])?;
    bundle.push("/process/env", json!(format!("ID={id}")));
    bundle.set("/root/readonly", false).grant("CAP_SYS_PTRACE");
    let mut command = env.rung(&["run", "--detach", "--bundle", bundle.write()?, &id])?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    ensure!(command.status()?.success());
    for _ in 0..rounds() {
        let mut command = env.rung(&["exec", &id, "true"])?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    }
    let seen = fs::read_to_string(bundle.rootfs().join("seen")).unwrap_or_default();
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    ensure!(seen.is_empty(), "a container saw what the runtime has open:\n{seen}");
    Ok(())
}

/// The same without chance: a frozen cgroup stops whoever is in it, and what that has open can be looked at then. On v2,
/// where the process is born in its cgroup, the container does not see it yet.
fn an_exec_on_its_way_is_nothing_of_the_host(env: &Env) -> Result<()> {
    let sleeper = Sleeper::start(env, "stopped", json!({}))?;
    let state = env.state(&sleeper.id)?;
    let root = |pid: &str| fs::metadata(format!("/proc/{pid}/root")).map(|root| (root.dev(), root.ino()));
    let own_root = root(&state["pid"].to_string())?;
    env.run_rung(&["pause", &sleeper.id])?.ok()?;
    let log = env.path("exec.log");
    let arguments = ["--log", log.to_str().context("path")?, "exec", "--ignore-paused", &sleeper.id, "true"];
    let mut exec = env.rung(&arguments)?.stdin(Stdio::null()).spawn()?;
    let children = || fs::read_to_string(format!("/proc/{0}/task/{0}/children", exec.id())).unwrap_or_default();
    let entered =
        wait::until("the process that enters the container", || Some(()).filter(|()| !children().trim().is_empty()));
    let look = |pid: &str| -> Result<()> {
        let open = fs::read_dir(format!("/proc/{pid}/fd"))?.collect::<Result<Vec<_>, _>>()?;
        let of_the_host = |path: &Path| path.is_dir() || fs::read_link(path).is_ok_and(|target| target == log);
        let ways = open.iter().map(fs::DirEntry::path).filter(|path| of_the_host(path)).map(fs::read_link);
        let ways = ways.collect::<Vec<_>>();
        ensure!(open.len() > 3, "the process was not stopped where it enters: it has {} descriptors", open.len());
        ensure!(ways.is_empty(), "files of the host in sight of the container: {ways:?}");
        ensure!(root(pid)? == own_root, "the root of the host in sight of the container");
        Ok(())
    };
    let in_sight = |pid: &&str| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line.strip_prefix("NSpid:").is_some_and(|ids| ids.split_whitespace().count() > 1))
    };
    // On v1 it is stopped once it is there; on v2 nothing comes in sight, for which there is no sign to wait.
    let is_stopped = |pid: &&str| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" D"))
    };
    let stopped = if unified() {
        std::thread::sleep(Duration::from_millis(200));
        Ok(())
    } else {
        wait::until("it is stopped in sight of the container", || {
            children().split_whitespace().any(|pid| in_sight(&pid) && is_stopped(&pid)).then_some(())
        })
    };
    let seen =
        entered.and(stopped).map(|()| children().split_whitespace().filter(in_sight).map(look).collect::<Vec<_>>());
    env.run_rung(&["resume", &sleeper.id])?.ok()?;
    ensure!(exec.wait()?.success());
    let seen = seen?;
    ensure!(seen.len() == usize::from(!unified()), "{} processes were in sight", seen.len());
    seen.into_iter().collect()
}

/// A container that sees the host's processes, and whose root is the host's without a capability: the kernel lets it look at
/// all that a process of a new user namespace has, because root of the host has made that. It writes down which processes of
/// this test it finds in the host's root.
pub(crate) struct Watcher<'a> {
    env: &'a Env,
    id: String,
    seen: PathBuf,
    /// The beginning of the lines about what was shown to it.
    shown: String,
}

impl<'a> Watcher<'a> {
    pub(crate) fn start(env: &'a Env) -> Result<Self> {
        let (id, mark) = (env.id("watcher"), env.path("mark"));
        fs::write(&mark, "of the host")?;
        // What the daemon starts to make namespaces has a command line without the test's names.
        let script = format!(
            "old=\" $(echo /proc/[0-9]*) \"; touch /seen; while :; do for p in /proc/[0-9]*; do \
             case $old in *\" $p \"*) continue;; esac; read -r c < $p/cmdline; case $c in *{}*|*hold-namespaces*) \
             [ -e $p/root{} ] && echo $p $c >> /seen;; esac; done; done 2>/dev/null",
            env.token(),
            mark.display(),
        );
        let mut bundle = Bundle::new(env, "watcher", &["sh", "-c", &script])?;
        bundle.set("/root/readonly", false).set("/process/capabilities", json!({})).share("pid");
        env.run_rung(&["run", "--detach", "--bundle", bundle.write()?, &id])?.ok()?;
        let mut watcher = Self { env, id, seen: bundle.rootfs().join("seen"), shown: String::new() };
        wait::until("the watcher", || watcher.seen.exists().then_some(()))?;
        watcher.proves_itself()?;
        Ok(watcher)
    }

    /// Finds what it looks for where that is shown to it: a process of a user namespace in the root of the host.
    fn proves_itself(&mut self) -> Result<()> {
        let mut shown = Command::new("unshare");
        shown.args(["--user", "tail", "-f"]).arg(self.env.path("mark"));
        let mut shown = shown.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        self.shown = format!("/proc/{} ", shown.id());
        let found = wait::until("it sees what it is shown", || {
            fs::read_to_string(&self.seen).is_ok_and(|seen| seen.contains(&self.shown)).then_some(())
        });
        shown.kill()?;
        shown.wait()?;
        found
    }

    /// What it has found, and its end.
    pub(crate) fn seen(self) -> Result<String> {
        let seen = fs::read_to_string(&self.seen)?;
        Ok(seen.lines().filter(|line| !line.starts_with(&self.shown)).collect::<Vec<_>>().join("\n"))
    }
}

impl Drop for Watcher<'_> {
    fn drop(&mut self) {
        let _ = self.env.run_rung(&["delete", "--force", &self.id]);
    }
}

fn who_makes_a_user_namespace_is_not_open_to_root(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "users", &["sleep", "600"])?;
    add_user_namespace(env, &mut bundle)?;
    fs::create_dir(bundle.rootfs().join("mnt"))?;
    let map = bundle.config["linux"]["uidMappings"].clone();
    bundle.push(
        "/mounts",
        json!({"destination": "/mnt", "source": env.dir("volume")?, "options": ["bind", "idmap"],
               "uidMappings": map, "gidMappings": map}),
    );
    let path = bundle.write()?;
    let watcher = Watcher::start(env)?;
    for round in 0..rounds().min(30) {
        let id = env.id(&format!("users{round}"));
        env.run_rung(&["run", "--detach", "--bundle", path, &id])?.ok()?;
        let executed = env.run_rung(&["exec", &id, "true"])?.ok();
        env.run_rung(&["delete", "--force", &id])?.ok()?;
        executed?;
    }
    let seen = watcher.seen()?;
    ensure!(seen.is_empty(), "a container saw the root of the host:\n{seen}");
    Ok(())
}

/// CVE-2018-15664: what a copy out of a container, or into it, goes through is exchanged for a link to the host.
fn a_swapped_directory_leads_no_copy_outside(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let host = env.dir("host")?;
    fs::write(host.join("file"), "the host's")?;
    let script = "mkdir /tmp/dir; echo own >/tmp/dir/file; exec sleep 100000";
    stack.gantry(&["run", "-d", "--name", "web", "IMAGE", "sh", "-c", script])?.ok()?;
    let pid = stack.gantry(&["inspect", "-f", "{{.State.Pid}}", "web"])?.ok()?.text().to_owned();
    let inside = PathBuf::from(format!("/proc/{pid}/root/tmp"));
    wait::until("the directory", || fs::read(inside.join("dir/file")).ok().filter(|bytes| !bytes.is_empty()))?;
    symlink(&host, inside.join("link"))?;
    let (archive, before) = (env.path("in.tar"), picture(&host)?);
    fs::write(&archive, Tar::new().file("new", "new").finish())?;
    let swapper = Swapper::start(inside.join("dir"), inside.join("link"));
    let mut copied = 0;
    // Each is two starts of a client.
    for _ in 0..wait::amount(wait::rounds(10), 2000) {
        let out = stack.gantry(&["cp", "web:/tmp/dir/file", "-"])?;
        ensure!(!out.stdout.contains("the host's"), "a file of the host came out");
        copied += usize::from(out.stdout.contains("own"));
        let mut into = stack.command(&["cp", "-", "web:/tmp/dir"])?;
        into.stdin(fs::File::open(&archive)?);
        into.output()?;
    }
    drop(swapper);
    ensure!(copied > 0, "the directory was never there");
    assert_eq!(picture(&host)?, before, "something was made on the host");
    Ok(())
}
