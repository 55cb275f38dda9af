//! The floor under `make bench`: asks the kernel for the container that `runc spec` describes, and does nothing else.
//!
//! Same namespaces, mounts, devices, masks, limits and capabilities; no config.json, no cgroup, no state on disk. What a
//! runtime takes beyond this is its own.
//!
//! ```text
//! floor ROOTFS PROGRAM [ARG...]
//! ```

use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{chdir, mkdir, sethostname, symlinkat};
use rung_sys::capabilities::{self, CapabilitySet};
use rung_sys::mount::{detach, mount, pivot_root_here};
use rung_sys::process::{self, CStringArray, CloneRequest, Forked, Target};
use rung_sys::rlimit;

type Outcome = Result<(), Box<dyn std::error::Error>>;

const NOSUID: u64 = libc::MS_NOSUID;
const NOEXEC: u64 = libc::MS_NOEXEC;
const NODEV: u64 = libc::MS_NODEV;
const RDONLY: u64 = libc::MS_RDONLY;
const BIND: u64 = libc::MS_BIND;
const REC: u64 = libc::MS_REC;
const REMOUNT: u64 = libc::MS_REMOUNT;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let [root, program @ ..] = args.as_slice() else { return ExitCode::from(2) };
    let Some(path) = program.first() else { return ExitCode::from(2) };
    let Ok(argv) = CStringArray::new(program.iter().map(|arg| arg.as_bytes())) else { return ExitCode::from(2) };
    let flags = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWNET;
    match process::clone(&CloneRequest { flags: u64::from(flags.unsigned_abs()), into_cgroup: None }) {
        Ok(Forked::Child) => {
            let failed = contain(Path::new(root)).err();
            let Ok(env) = CStringArray::new(["PATH=/bin", "TERM=xterm"]) else { process::exit_now(125) };
            if failed.is_none() {
                let _ = process::exec(Path::new(path), &argv, &env);
            }
            process::exit_now(125)
        }
        Ok(Forked::Parent { pidfd, .. }) => match process::wait(Target::Pidfd(pidfd.as_fd()), true) {
            Ok(Some((_, exit))) => ExitCode::from(exit.shell_code()),
            _ => ExitCode::from(125),
        },
        Err(_) => ExitCode::from(125),
    }
}

fn contain(root: &Path) -> Outcome {
    mount(None, Path::new("/"), None, REC | libc::MS_SLAVE, None)?;
    mount(Some(root), root, None, BIND | REC, None)?;
    chdir(root)?;
    mounts()?;
    devices()?;
    pivot_root_here()?;
    detach(Path::new("."))?;
    chdir("/")?;
    sethostname("floor")?;
    mount(None, Path::new("/"), None, REMOUNT | BIND | RDONLY, None)?;
    mask()?;
    let number = rlimit::number("RLIMIT_NOFILE").ok_or("RLIMIT_NOFILE is unknown")?;
    rlimit::set(0, number, 1024, 1024)?;
    let keep = CapabilitySet::from_names(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    let keep = keep.ok_or("a capability is unknown")?;
    capabilities::limit_bounding(keep)?;
    capabilities::set(keep, keep, keep)?;
    capabilities::set_ambient(keep)?;
    process::set_no_new_privileges()?;
    Ok(())
}

fn mounts() -> Outcome {
    let new = |kind: &str, target: &str, flags: u64, data: Option<&str>| {
        mount(Some(Path::new(kind)), Path::new(target), Some(kind), flags, data)
    };
    new("proc", "proc", 0, None)?;
    new("tmpfs", "dev", NOSUID | libc::MS_STRICTATIME, Some("mode=755,size=65536k"))?;
    for dir in ["dev/pts", "dev/shm", "dev/mqueue"] {
        mkdir(dir, Mode::from_bits_truncate(0o755))?;
    }
    new("devpts", "dev/pts", NOSUID | NOEXEC, Some("newinstance,ptmxmode=0666,mode=0620,gid=5"))?;
    new("tmpfs", "dev/shm", NOSUID | NOEXEC | NODEV, Some("mode=1777,size=65536k"))?;
    new("mqueue", "dev/mqueue", NOSUID | NOEXEC | NODEV, None)?;
    new("sysfs", "sys", NOSUID | NOEXEC | NODEV | RDONLY, None)?;
    Ok(())
}

fn devices() -> Outcome {
    let numbers = [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("tty", 5, 0), ("random", 1, 8), ("urandom", 1, 9)];
    for (name, major, minor) in numbers {
        let mode = Mode::from_bits_truncate(0o666);
        mknod(Path::new("dev").join(name).as_path(), SFlag::S_IFCHR, mode, makedev(major, minor))?;
    }
    let links = [("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1")];
    for (name, target) in links.into_iter().chain([("stderr", "/proc/self/fd/2"), ("ptmx", "pts/ptmx")]) {
        symlinkat(target, nix::fcntl::AT_FDCWD, Path::new("dev").join(name).as_path())?;
    }
    Ok(())
}

/// What is not there cannot be masked, and need not be.
fn mask() -> Outcome {
    let null = Path::new("/dev/null");
    for dir in ["/proc/acpi", "/proc/asound", "/sys/firmware", "/proc/scsi"] {
        let _ = mount(Some(Path::new("tmpfs")), Path::new(dir), Some("tmpfs"), RDONLY, Some("size=0"));
    }
    for file in ["kcore", "keys", "latency_stats", "timer_list", "timer_stats", "sched_debug"] {
        let _ = mount(Some(null), &Path::new("/proc").join(file), None, BIND, None);
    }
    for path in ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"].map(Path::new) {
        if mount(Some(path), path, None, BIND | REC, None).is_ok() {
            mount(None, path, None, BIND | REMOUNT | RDONLY | REC, None)?;
        }
    }
    Ok(())
}
