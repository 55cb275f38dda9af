//! Handing network devices of the host to a container.
//!
//! From here on they are the container's: when its namespace ends, physical ones return to the host by the kernel's own
//! doing, and virtual ones are gone. Nothing is ever moved back from here.

use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rung_sys::namespace::{self, Namespace};
use rung_sys::netlink::Netlink;
use rung_sys::process::Pid;

use crate::error::{Doing as _, Error, Result};
use crate::plan::InitPlan;

/// The namespace that gets the devices, where there are any: the one that is joined, or the one of a process just made.
pub fn namespace_of(plan: &InitPlan, joined: Option<OwnedFd>, pid: Pid) -> Result<OwnedFd> {
    let path = format!("/proc/{pid}/ns/net");
    match joined {
        Some(namespace) if plan.namespaces.joins(Namespace::Network) => Ok(namespace),
        _ => Ok(File::open(&path).doing(|| format!("open {path}"))?.into()),
    }
}

/// Moves all devices of the plan to `namespace`, with their addresses, and brings them up.
pub fn move_devices(plan: &InitPlan, namespace: BorrowedFd<'_>) -> Result<()> {
    let here = Netlink::open()?;
    let there = open_in(namespace)?;
    for (name, wanted) in &plan.net_devices {
        move_one(&here, &there, namespace, name, wanted).doing(|| format!("linux.netDevices.{name}"))?;
    }
    Ok(())
}

/// A socket stays in the namespace that it was made in, so this process enters that one only for a moment.
fn open_in(namespace: BorrowedFd<'_>) -> Result<Netlink> {
    let flag = Namespace::Network.flag();
    let own = File::open("/proc/self/ns/net").doing(|| "open /proc/self/ns/net")?;
    namespace::enter(namespace, flag).doing(|| "join the network namespace")?;
    let opened = Netlink::open();
    namespace::enter(own.as_fd(), flag).doing(|| "return from the network namespace")?;
    Ok(opened?)
}

fn move_one(here: &Netlink, there: &Netlink, namespace: BorrowedFd<'_>, name: &str, wanted: &str) -> Result<()> {
    let link = here.link(name).doing(|| "find the device on the host")?;
    let name = free_name(there, wanted).doing(|| format!("move it to the container as {wanted}"))?;
    // Before it goes down: that takes the addresses of IPv6 away, and the move those of IPv4.
    let addresses = here.addresses(link.index).doing(|| "read its addresses")?;
    // It must not be used half configured, neither here nor there.
    here.set_up(link.index, false).doing(|| "bring it down")?;
    let moved = here.move_link(link.index, namespace, &name);
    moved.doing(|| format!("move it to the container as {name}")).inspect_err(|_| {
        if link.up {
            // It stays with the host, as it was; the failure that led here is what is reported.
            drop(here.set_up(link.index, true));
            for address in &addresses {
                drop(here.add_address(link.index, address));
            }
        }
    })?;
    let link = there.link(&name).doing(|| format!("find it in the container as {name}"))?;
    for address in addresses.iter().filter(|address| address.is_permanent_and_global()) {
        there.add_address(link.index, address).doing(|| "give it its address back")?;
    }
    there.set_up(link.index, true).doing(|| "bring it up in the container")
}

/// The name of a device in the container. A `%d` in the name stands for the first number that is free.
///
/// The kernel moves a device and then renames it, so a name that is taken would show only when the device has left the
/// host.
fn free_name(there: &Netlink, wanted: &str) -> Result<String> {
    let taken = there.names().doing(|| "read the names of the container's devices")?;
    let mut names = (0..=taken.len()).map(|number| wanted.replacen("%d", &number.to_string(), 1));
    let taken_name = || Error::from(nix::errno::Errno::EEXIST);
    names.find(|name| !taken.contains(name)).ok_or_else(taken_name)
}
