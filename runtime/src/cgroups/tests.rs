//! Against the cgroups of this machine, whatever they are. Nothing is done, and nothing shown, without root.

use std::process::{Child, Command, Stdio};

use oci_spec::runtime::LinuxResources;

use super::*;

fn root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn unique(name: &str) -> PathBuf {
    PathBuf::from(format!("/rung-unit-{}/{name}", std::process::id()))
}

fn sleeper() -> Child {
    Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap()
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

/// Removes what a test made, also the parent made for it.
struct Cleanup(Cgroup);

impl Drop for Cleanup {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.remove(std::time::Duration::from_secs(5));
        for place in &self.0.places {
            let _ = place.path.parent().map(rung_sys::cgroupfs::remove);
        }
    }
}

fn created(name: &str, resources: &str) -> Cleanup {
    let resources: LinuxResources = serde_json::from_str(resources).unwrap();
    let mut cgroup = Cgroup::plan(Some(&unique(name)), name, false, false).unwrap();
    cgroup.create(Some(&resources), None).unwrap();
    Cleanup(cgroup)
}

#[test]
fn create_join_freeze_kill_remove() {
    if !root() {
        return;
    }
    let cgroup = created("life", r#"{"pids":{"limit":20}}"#);
    let cgroup = &cgroup.0;
    let mut child = sleeper();
    cgroup.join(pid_of(&child)).unwrap();
    assert_eq!(cgroup.pids().unwrap(), [pid_of(&child)]);
    {
        let _guard = cgroup.frozen().unwrap();
        assert!(cgroup.is_frozen().unwrap());
    }
    assert!(!cgroup.is_frozen().unwrap());
    cgroup.freeze().unwrap();
    cgroup.kill().unwrap();
    assert!(!child.wait().unwrap().success());
    assert!(!cgroup.is_frozen().unwrap());
    let record = Cgroup::from_paths(&cgroup.paths());
    record.remove(std::time::Duration::from_secs(5)).unwrap();
    record.remove(std::time::Duration::ZERO).unwrap();
    assert!(cgroup.places.iter().all(|place| !place.path.exists()));
}

#[test]
fn limits_are_there_and_an_occupied_cgroup_is_refused() {
    if !root() {
        return;
    }
    let made = created(
        "limits",
        r#"{"pids":{"limit":7},"memory":{"limit":33554432},"cpu":{"shares":512,"quota":20000,"period":50000}}"#,
    );
    let read = |file: &str| {
        let dirs = made.0.places.iter().filter_map(|place| place.dir.as_ref());
        dirs.filter_map(|dir| dir.read_optional(file).unwrap()).map(|text| text.trim().to_owned()).next()
    };
    assert_eq!(read("pids.max").as_deref(), Some("7"));
    if made.0.is_unified() {
        assert_eq!(read("memory.max").as_deref(), Some("33554432"));
        assert_eq!(read("cpu.max").as_deref(), Some("20000 50000"));
    } else {
        assert_eq!(read("memory.limit_in_bytes").as_deref(), Some("33554432"));
        assert_eq!(read("cpu.cfs_quota_us").as_deref(), Some("20000"));
        assert_eq!(read("cpu.cfs_period_us").as_deref(), Some("50000"));
        assert_eq!(read("cpu.shares").as_deref(), Some("512"));
    }
    let mut child = sleeper();
    made.0.join(pid_of(&child)).unwrap();
    let mut second = Cgroup::plan(Some(&unique("limits")), "limits", false, false).unwrap();
    let refused = second.create(None, None).unwrap_err().to_string();
    assert!(refused.contains("cgroup is not empty: 1 process(es)"), "{refused}");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_process_puts_itself_in() {
    if !root() {
        return;
    }
    let made = created("entry", "{}");
    let entry = made.0.entry(false).unwrap();
    let files: Vec<_> = entry.files.iter().map(|file| rung_sys::file::path_of(file).unwrap()).collect();
    // The way of `Entry::enter` by a shell, since a test may not fork.
    let script = format!("for f in {}; do echo 0 > $f; done; exec cat /proc/self/cgroup", {
        files.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" ")
    });
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    let inner = unique("entry").display().to_string();
    let inside = table.lines().filter(|line| line.ends_with(&inner)).count();
    assert_eq!(inside, made.0.places.iter().filter(|place| place.dir.is_some()).count(), "{table}");
}

#[test]
fn a_refused_limit_leaves_nothing() {
    if !root() {
        return;
    }
    let resources = serde_json::from_str(r#"{"cpu":{"cpus":"5000"}}"#).unwrap();
    let mut cgroup = Cgroup::plan(Some(&unique("refused")), "refused", false, false).unwrap();
    cgroup.create(Some(&resources), None).unwrap_err();
    assert!(cgroup.places.iter().all(|place| !place.path.exists()));
    drop(Cleanup(cgroup));
}
