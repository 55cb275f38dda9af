//! BPF: loading and attaching programs, and the device program of cgroup v2.

pub mod device;

use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use crate::error::{Error, Result, check};

/// One eBPF instruction, as the kernel reads it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const PROG_LOAD: libc::c_long = 5;
const PROG_ATTACH: libc::c_long = 8;
const PROG_DETACH: libc::c_long = 9;
const PROG_GET_FD_BY_ID: libc::c_long = 13;
const PROG_QUERY: libc::c_long = 16;

const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const F_ALLOW_MULTI: u32 = 1 << 1;
const F_REPLACE: u32 = 1 << 2;

/// The parts of `union bpf_attr` used here. The kernel takes a shorter structure than its own for zeroes.
#[repr(C)]
#[derive(Default)]
struct Load {
    prog_type: u32,
    instruction_count: u32,
    instructions: u64,
    licence: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

#[repr(C)]
#[derive(Default)]
struct Attach {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
    replaced: u32,
}

#[repr(C)]
#[derive(Default)]
struct Query {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
}

/// Calls bpf(2) with a command and the structure that belongs to it.
fn bpf<T>(doing: &'static str, command: libc::c_long, attr: &mut T) -> Result<libc::c_long> {
    // SAFETY: `attr` is a live, exclusively borrowed structure of exactly the length given, laid out (`repr(C)`) as
    // the kernel's for this command; the addresses in it are of buffers that the callers below keep alive meanwhile.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    check(result, "bpf", || doing.to_owned())
}

fn owned(doing: &'static str, fd: libc::c_long) -> Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(|_| Error::new("bpf", doing, libc::EBADF))?;
    // SAFETY: the kernel has just returned this descriptor as a new one; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address<T>(of: &[T]) -> u64 {
    of.as_ptr() as usize as u64
}

/// Loads a program for the device hook of a cgroup.
///
/// # Errors
/// When the kernel has no BPF, the caller may not load, or the verifier refuses.
pub fn load_device_program(program: &[Instruction]) -> Result<OwnedFd> {
    let doing = "load the device program";
    let licence = b"Apache-2.0\0";
    let count = u32::try_from(program.len()).map_err(|_| Error::new("bpf", doing, libc::E2BIG))?;
    let mut attr = Load {
        prog_type: TYPE_CGROUP_DEVICE,
        instruction_count: count,
        instructions: address(program),
        licence: address(licence),
        name: *b"rung_devices\0\0\0\0",
        ..Load::default()
    };
    let fd = bpf(doing, PROG_LOAD, &mut attr)?;
    owned(doing, fd)
}

/// The device programs attached to the cgroup itself, as far as the caller may open them: a security module keeps those of
/// others (systemd's) to their owners, and they go on allowing or denying beside ours.
///
/// # Errors
/// When the caller may not ask.
pub fn attached_device_programs(cgroup: impl AsFd) -> Result<Vec<OwnedFd>> {
    let doing = "query the device programs";
    let target = descriptor(&cgroup);
    let mut ids = [0_u32; 64];
    let mut attr = Query {
        target,
        attach_type: ATTACH_CGROUP_DEVICE,
        ids: ids.as_mut_ptr() as usize as u64,
        count: 64,
        ..Query::default()
    };
    bpf(doing, PROG_QUERY, &mut attr)?;
    let count = usize::try_from(attr.count).unwrap_or(0).min(ids.len());
    let mut programs = Vec::with_capacity(count);
    for id in &ids[..count] {
        // struct { prog_id, next_id, open_flags }
        let mut by_id = [*id, 0, 0];
        match bpf("open a device program", PROG_GET_FD_BY_ID, &mut by_id) {
            Ok(fd) => programs.push(owned("open a device program", fd)?),
            Err(error) if error.is(&[libc::EPERM, libc::EACCES]) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(programs)
}

/// Makes `program` the device program of `cgroup`, in the place of all that were there.
///
/// A single old one is replaced in one step. Where the kernel cannot (before 5.6), or where several are attached, the new
/// one is attached first and the old ones are detached then: all attached ones must allow, so there is no moment in
/// which something is allowed that neither the old nor the new rules allow.
///
/// # Errors
/// When the kernel refuses.
pub fn set_device_program(cgroup: impl AsFd, program: impl AsFd) -> Result<()> {
    let old = attached_device_programs(&cgroup)?;
    let target = descriptor(&cgroup);
    let mut attr = Attach {
        target,
        program: descriptor(&program),
        attach_type: ATTACH_CGROUP_DEVICE,
        flags: F_ALLOW_MULTI,
        replaced: 0,
    };
    if let [only] = &old[..] {
        attr.flags |= F_REPLACE;
        attr.replaced = descriptor(only);
        if bpf("replace the device program", PROG_ATTACH, &mut attr).is_ok() {
            return Ok(());
        }
        attr.flags = F_ALLOW_MULTI;
        attr.replaced = 0;
    }
    bpf("attach the device program", PROG_ATTACH, &mut attr)?;
    for program in &old {
        let mut attr =
            Attach { target, program: descriptor(program), attach_type: ATTACH_CGROUP_DEVICE, flags: 0, replaced: 0 };
        bpf("detach the old device program", PROG_DETACH, &mut attr)?;
    }
    Ok(())
}

fn descriptor(fd: &impl AsFd) -> u32 {
    // A borrowed descriptor is never negative.
    fd.as_fd().as_raw_fd().unsigned_abs()
}
