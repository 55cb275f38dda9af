//! What is mounted in the container besides its root.

use std::path::{Path, PathBuf};

use gantry_proto::runtime::v1;
use gantry_proto::runtime::v1::MountPropagation;
use oci_spec::runtime::Mount;
use rung_spec::defaults::mounts::{self as defaults, mount};

use super::{Making, invalid, namespaces};
use crate::cri::host::MountTable;
use crate::error::{Error, Result};

/// Where shared memory is.
const SHM: &str = "/dev/shm";
/// Where the time zone is.
const LOCALTIME: &str = "/etc/localtime";
/// Where containers write whose root is read-only by configuration, and what of these places anybody may.
const WRITABLE: [(&str, &str); 3] = [("/run", "mode=0755"), ("/tmp", "mode=1777"), ("/var/tmp", "mode=1777")];

/// The mounts, and the propagation of the root that some of them need.
pub(super) fn make(
    making: &Making<'_>,
    context: &v1::LinuxContainerSecurityContext,
) -> Result<(Vec<Mount>, Option<String>)> {
    let mut mounts = usual(making, context);
    if making.settings.read_only {
        mounts.extend(WRITABLE.iter().map(|(place, mode)| memory(place, mode)));
    }
    let mut propagation = None;
    let mut wished: Vec<Mount> = own_places(making, context);
    if making.config.mounts.iter().any(|mount| mount.propagation != 0) {
        propagation = Some("rslave".to_owned());
    }
    let table = MountTable::read()?;
    for (index, config) in making.config.mounts.iter().enumerate() {
        check(config, making.recursive_read_only)?;
        let Some(source) = making.sources.get(index).and_then(Option::as_ref) else { continue };
        if config.propagation() == MountPropagation::PropagationBidirectional {
            propagation = Some("rshared".to_owned());
        }
        let mut one = bind(config, source, &table)?;
        if config.uid_mappings.is_empty() && making.users_by_annotation {
            translate(making, &mut one, "ridmap");
        }
        wished.push(one);
    }
    for volume in making.volumes {
        let access = if volume.read_only { "ro" } else { "rw" };
        let mut one = bind_mount(&volume.destination, &volume.source, &[access, "rprivate"]);
        map_ids(making, &mut one, volume.map_ids);
        wished.push(one);
    }
    let is_wished = |place: &Path| wished.iter().any(|wished| wished.destination() == place);
    // What lies in the usual `/dev` has no place in another.
    let other_dev = is_wished(Path::new("/dev"));
    mounts.retain(|usual| {
        let place = usual.destination();
        !(is_wished(place) || other_dev && place.starts_with("/dev"))
    });
    // Outer ones before inner ones; of two in one place, the later one counts.
    wished.sort_by_key(|mount| mount.destination().components().count());
    mounts.extend(wished);
    Ok((mounts, propagation))
}

/// The file systems every container has, as far as this one may see and change them.
fn usual(making: &Making<'_>, context: &v1::LinuxContainerSecurityContext) -> Vec<Mount> {
    let writable_cgroup = context.privileged || making.handler.cgroup_writable || making.granted.cgroup_writable;
    let foreign_network = making.namespaces.host_network && making.namespaces.user.is_some();
    let of = |usual: Mount| {
        let place = usual.destination().to_string_lossy().into_owned();
        match place.as_str() {
            // A user namespace may not mount the sysfs of a network that is not its own.
            "/sys" if foreign_network => {
                let access = match (context.privileged, making.recursive_read_only) {
                    (true, _) => "rw",
                    // The host's cgroups and debugging files are mounted below it.
                    (false, true) => "rro",
                    (false, false) => "ro",
                };
                bind_mount(&place, Path::new("/sys"), &["nosuid", "noexec", "nodev", access])
            }
            "/sys/fs/cgroup" if writable_cgroup => {
                let mut writable = usual;
                let kept = writable.options().iter().flatten().filter(|option| *option != "ro").cloned().collect();
                writable.set_options(Some(kept));
                writable
            }
            _ => usual,
        }
    };
    defaults::default(context.privileged).into_iter().map(of).collect()
}

/// The pod's shared memory and its files in `/etc`, unless the kubelet has its own there.
fn own_places(making: &Making<'_>, context: &v1::LinuxContainerSecurityContext) -> Vec<Mount> {
    let access = if context.readonly_rootfs { "ro" } else { "rw" };
    let files = [
        ("/etc/hosts", making.places.hosts()),
        ("/etc/hostname", making.places.hostname()),
        ("/etc/resolv.conf", making.places.resolv_conf()),
    ];
    let there =
        |place: &str| making.config.mounts.iter().any(|mount| lexical(&mount.container_path) == Path::new(place));
    let mut places: Vec<Mount> = files
        .into_iter()
        .filter(|(place, _)| !there(place))
        .map(|(place, source)| {
            let mut file = bind_mount(place, &source, &["rprivate", access]);
            map_ids(making, &mut file, true);
            file
        })
        .collect();
    let zone = Some(making.places.localtime()).filter(|_| !making.settings.timezone.is_empty() && !there(LOCALTIME));
    if let Some(source) = zone.filter(|file| file.exists()) {
        let mut file = bind_mount(LOCALTIME, &source, &["rprivate", "nosuid", "noexec", "nodev", access]);
        map_ids(making, &mut file, true);
        places.push(file);
    }
    if !there(SHM) {
        let source = if making.namespaces.host_ipc { PathBuf::from(SHM) } else { making.places.shm() };
        places.push(bind_mount(SHM, &source, &["rprivate", "nosuid", "noexec", "nodev"]));
    }
    places
}

/// Whether a mount makes sense, whatever is on the host.
fn check(config: &v1::Mount, recursive_read_only: bool) -> Result<()> {
    let place = config.container_path.as_str();
    if !place.starts_with('/') || place.contains('\0') || lexical(place) == Path::new("/") {
        return Err(invalid("mounts.container_path", format!("{place:?} is not an absolute path below the root")));
    }
    if MountPropagation::try_from(config.propagation).is_err() {
        return Err(invalid("mounts.propagation", format!("{} is unknown", config.propagation)));
    }
    if config.recursive_read_only {
        if !config.readonly {
            return Err(invalid("mounts.recursive_read_only", format!("{place}: is possible only with readonly")));
        }
        if config.propagation() != MountPropagation::PropagationPrivate {
            return Err(invalid(
                "mounts.recursive_read_only",
                format!("{place}: is possible only with private propagation"),
            ));
        }
        if !recursive_read_only {
            // Kubelets look for the first word.
            return Err(Error::precondition(format!(
                "RROUnsupported: config.mounts.recursive_read_only: {place}: the runtime handler or this machine cannot"
            )));
        }
    }
    if !config.mount_options.is_empty() {
        return Err(invalid("mounts.mount_options", format!("{place}: are not supported by this runtime")));
    }
    if config.uid_mappings.is_empty() != config.gid_mappings.is_empty() {
        return Err(invalid(
            "mounts.uidMappings",
            format!("{place}: users and groups are mapped together or not at all"),
        ));
    }
    Ok(())
}

fn bind(config: &v1::Mount, source: &Path, table: &MountTable) -> Result<Mount> {
    let shown = source.display();
    let propagation = match config.propagation() {
        MountPropagation::PropagationPrivate => "rprivate",
        MountPropagation::PropagationHostToContainer if table.is_shared(source) || table.is_slave(source) => "rslave",
        MountPropagation::PropagationHostToContainer => {
            return Err(invalid(
                "mounts.propagation",
                format!("{shown}: is on a mount that is neither shared nor a slave"),
            ));
        }
        MountPropagation::PropagationBidirectional if table.is_shared(source) => "rshared",
        MountPropagation::PropagationBidirectional => {
            return Err(invalid("mounts.propagation", format!("{shown}: is on a mount that is not shared")));
        }
    };
    let access = match (config.readonly, config.recursive_read_only) {
        (true, true) => "rro",
        (true, false) => "ro",
        (false, _) => "rw",
    };
    let mut one = bind_mount(&config.container_path, source, &[propagation, access]);
    if !config.uid_mappings.is_empty() {
        let (users, groups) = (mapping(&config.uid_mappings), mapping(&config.gid_mappings));
        one.set_uid_mappings(Some(namespaces::ranges(&users))).set_gid_mappings(Some(namespaces::ranges(&groups)));
        push_option(&mut one, "ridmap");
    }
    Ok(one)
}

fn mapping(ranges: &[v1::IdMapping]) -> Vec<rung_sys::idmap::Range> {
    ranges
        .iter()
        .map(|range| rung_sys::idmap::Range { inside: range.container_id, outside: range.host_id, count: range.length })
        .collect()
}

/// Lets files of the daemon's appear as those of the pod's root, where that is another.
fn map_ids(making: &Making<'_>, mount: &mut Mount, wanted: bool) {
    if wanted {
        translate(making, mount, "idmap");
    }
}

/// Lets files have the same owners inside as outside, where the pod has users of its own.
fn translate(making: &Making<'_>, mount: &mut Mount, option: &str) {
    let Some((users, groups)) = &making.namespaces.user else { return };
    mount.set_uid_mappings(Some(namespaces::ranges(users))).set_gid_mappings(Some(namespaces::ranges(groups)));
    push_option(mount, option);
}

/// Memory that is written in place of a read-only root, with what the image has there in it.
fn memory(place: &str, mode: &str) -> Mount {
    let options = ["rw", "noexec", "nosuid", "nodev", "tmpcopyup", mode].map(str::to_owned).to_vec();
    mount(place, "tmpfs", "tmpfs", options)
}

pub(super) fn push_option(mount: &mut Mount, option: &str) {
    let mut options = mount.options().clone().unwrap_or_default();
    options.push(option.to_owned());
    mount.set_options(Some(options));
}

fn bind_mount(destination: &str, source: &Path, options: &[&str]) -> Mount {
    let options = std::iter::once("rbind").chain(options.iter().copied()).map(str::to_owned).collect();
    let destination = lexical(destination);
    mount(&destination.to_string_lossy(), "bind", &source.to_string_lossy(), options)
}

/// A path in the container without detours; whatever is written there, nothing above the root is meant.
fn lexical(path: &str) -> PathBuf {
    Path::new("/").join(rung_sys::beneath::lexical(Path::new(path)))
}
