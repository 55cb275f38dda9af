//! The mounts of a container as a list of steps.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};
use rung_sys::beneath::lexical;
use rung_sys::idmap::Range;
use rung_sys::mount_options::MountOptions;
use rung_sys::namespace::Namespace;

use super::extensions::FORCE_V1;
use super::ids::{self, IdMaps};
use super::namespaces::NamespacePlan;
use crate::error::{Doing as _, Error, Result};
use crate::log;

/// One mount.
#[derive(Debug)]
pub struct MountPlan {
    /// Where, in the container; absolute and without `..`.
    pub destination: PathBuf,
    /// What.
    pub kind: MountKind,
    /// How.
    pub options: MountOptions,
    /// Ids to translate.
    pub idmap: Option<Idmap>,
}

/// What is mounted.
#[derive(Debug, PartialEq, Eq)]
pub enum MountKind {
    /// A file or directory of the host.
    Bind {
        /// Its path on the host.
        source: PathBuf,
    },
    /// The container's view of its cgroups.
    Cgroup,
    /// A file system of this type.
    FileSystem {
        /// The type.
        name: String,
        /// The source as the table of mounts shows it.
        source: PathBuf,
    },
}

/// How the ids of a bind mount are translated.
#[derive(Debug, PartialEq, Eq)]
pub enum Idmap {
    /// Through the container's own user namespace.
    Container,
    /// Through these ranges.
    Ranges {
        /// User ids.
        uids: Vec<Range>,
        /// Group ids.
        gids: Vec<Range>,
    },
}

/// What may be mounted below `/proc`: files that tools such as lxcfs replace, and nothing that a label or a setting is
/// written through.
const BELOW_PROC: &[&str] = &[
    "cpuinfo",
    "diskstats",
    "meminfo",
    "stat",
    "swaps",
    "uptime",
    "loadavg",
    "slabinfo",
    "sys/kernel/ns_last_pid",
    "sys/crypto/fips_enabled",
];

/// What mounts depend on beside themselves.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Where relative sources start.
    pub bundle: &'a Path,
    /// The root file system on the host.
    pub rootfs: &'a Path,
    /// The namespaces of the container.
    pub namespaces: &'a NamespacePlan,
    /// The id maps of its user namespace, where they are known.
    pub ids: Option<&'a IdMaps>,
}

/// Plans every mount of the configuration, in its order.
pub fn plan(spec: &Spec, context: Context<'_>) -> Result<Vec<MountPlan>> {
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    // One more for the readiness socket.
    let mut planned = Vec::with_capacity(mounts.len() + 1);
    for (index, mount) in mounts.iter().enumerate() {
        planned.push(one(mount, context).doing(|| format!("mounts[{index}]"))?);
    }
    Ok(planned)
}

impl MountPlan {
    /// Shows a directory of the host, in which nothing can be made or executed.
    pub fn shown(source: PathBuf, destination: &str) -> Self {
        Self {
            destination: destination.into(),
            kind: MountKind::Bind { source },
            options: MountOptions::parse(["bind", "nosuid", "noexec", "nodev", "ro"]),
            idmap: None,
        }
    }
}

/// Puts the v1 hierarchy that an old systemd looks for in the place of what is mounted there.
pub fn show_named_hierarchy(planned: &mut Vec<MountPlan>, place: &Path) -> Result<()> {
    let place = Path::new("/").join(lexical(place));
    let Some(index) = planned.iter().position(|step| step.destination == place) else {
        let reason = format!("nothing is mounted on {}", place.display());
        return Err(Error::invalid(format!("annotations[{FORCE_V1:?}]: {reason}")));
    };
    let step = |name: &str, destination: PathBuf, data: &[&str]| {
        let replaced = &planned[index].options;
        let options = MountOptions {
            set: replaced.set,
            propagation: replaced.propagation.clone(),
            data: data.iter().map(|word| (*word).to_owned()).collect(),
            ..MountOptions::default()
        };
        let kind = MountKind::FileSystem { name: name.to_owned(), source: name.into() };
        MountPlan { destination, kind, options, idmap: None }
    };
    let inner = step("cgroup", place.join("systemd"), &["none", "name=systemd", "xattr"]);
    let outer = step("tmpfs", place, &["mode=755", "size=1024k"]);
    planned.splice(index..=index, [outer, inner]);
    Ok(())
}

fn one(mount: &Mount, context: Context<'_>) -> Result<MountPlan> {
    let options = MountOptions::parse(mount.options().as_deref().unwrap_or_default());
    if mount.destination().is_relative() {
        // The specification has deprecated them.
        log::warning(&format!("mount destination {} is not absolute: it is one in /", mount.destination().display()));
    }
    let destination = destination(mount.destination(), context.rootfs)?;
    let type_name = mount.typ().as_deref().unwrap_or_default();
    let source = mount.source().clone().unwrap_or_default();
    // What is to be bound and remounted is there already; binding the source again would only cover it.
    let kind = if (options.bind || type_name == "bind") && !options.remount {
        // The specification hands them to mount(2), which has no use for them here. Runc refuses them; crun and the
        // conformance programs of the specification take them.
        warn_of_data(&options, &destination, "a bind mount");
        if source.as_os_str().is_empty() {
            return Err(Error::invalid(format!("source: a bind mount needs one ({})", destination.display())));
        }
        MountKind::Bind { source: if source.is_absolute() { source } else { context.bundle.join(source) } }
    } else {
        match type_name {
            "cgroup" => {
                // The view is of directories of the host's file system, whose own options stay as they are.
                warn_of_data(&options, &destination, "a view of cgroups");
                MountKind::Cgroup
            }
            "" | "bind" if options.remount => MountKind::FileSystem { name: String::new(), source },
            "" => return Err(Error::invalid(format!("type: missing for {}", destination.display()))),
            name => MountKind::FileSystem { name: name.to_owned(), source },
        }
    };
    below_proc(&destination, &kind)?;
    let idmap = idmap(mount, &options, &kind, context)?;
    Ok(MountPlan { destination, kind, options, idmap })
}

fn warn_of_data(options: &MountOptions, destination: &Path, what: &str) {
    if !options.data.is_empty() {
        log::warning(&format!(
            "options of {}: {what} has none of a file system: {} is ignored",
            destination.display(),
            options.data.join(",")
        ));
    }
}

fn idmap(mount: &Mount, options: &MountOptions, kind: &MountKind, context: Context<'_>) -> Result<Option<Idmap>> {
    let given = |list: &Option<Vec<_>>| list.as_ref().is_some_and(|list| !list.is_empty());
    let planned = match (given(mount.uid_mappings()), given(mount.gid_mappings())) {
        (false, false) if options.idmap_ranges.is_some() => {
            idmap_option(options.idmap_ranges.as_deref().unwrap_or_default(), context.ids)?
        }
        (true, _) | (_, true) if options.idmap_ranges.is_some() => {
            return Err(Error::invalid("options: idmap=… and uidMappings or gidMappings exclude each other"));
        }
        (true, true) => Idmap::Ranges {
            uids: ids::ranges("uidMappings", mount.uid_mappings().as_ref())?,
            gids: ids::ranges("gidMappings", mount.gid_mappings().as_ref())?,
        },
        (false, false) if options.idmap.is_none() => return Ok(None),
        (false, false) if context.namespaces.has(Namespace::User) => Idmap::Container,
        (false, false) => {
            return Err(Error::invalid("options: idmap without mappings needs a container with a user namespace"));
        }
        _ => {
            return Err(Error::invalid(
                "uidMappings: uidMappings and gidMappings must both be given or both be absent",
            ));
        }
    };
    if !matches!(kind, MountKind::Bind { .. }) {
        return Err(Error::invalid("uidMappings: id-mapped mounts are only possible for bind mounts"));
    }
    Ok(Some(planned))
}

/// The ranges of `idmap=uids=INSIDE-OUTSIDE-COUNT#…;gids=…`. After an `@` what is outside is counted as in the container.
fn idmap_option(text: &str, container: Option<&IdMaps>) -> Result<Idmap> {
    let wrong = |part: &str| Error::invalid(format!("options: idmap={text}: {part:?} is not understood"));
    let (mut uids, mut gids) = (Vec::new(), Vec::new());
    for part in text.split(';').filter(|part| !part.is_empty()) {
        let (list, known, rest) = match part.split_once('=') {
            Some(("uids", rest)) => (&mut uids, container.map(|maps| maps.uids.as_slice()), rest),
            Some(("gids", rest)) => (&mut gids, container.map(|maps| maps.gids.as_slice()), rest),
            _ => return Err(wrong(part)),
        };
        let (relative, rest) = rest.strip_prefix('@').map_or((false, rest), |rest| (true, rest));
        for triple in rest.split('#') {
            let numbers: Vec<u32> = triple.split('-').map_while(|number| number.parse().ok()).collect();
            let [inside, mut outside, count] = numbers[..] else { return Err(wrong(triple)) };
            if triple.split('-').count() != 3 || count == 0 {
                return Err(wrong(triple));
            }
            if relative {
                let maps = known.ok_or_else(|| {
                    Error::invalid(format!("options: idmap={text}: @ needs a user namespace whose maps are known"))
                })?;
                outside = ids::lookup(maps, outside).ok_or_else(|| {
                    Error::invalid(format!("options: idmap={text}: {outside} is not mapped in the container"))
                })?;
            }
            list.push(Range { inside, outside, count });
        }
    }
    if uids.is_empty() || gids.is_empty() {
        return Err(Error::invalid(format!("options: idmap={text}: uids and gids must both be given")));
    }
    Ok(Idmap::Ranges { uids, gids })
}

/// Makes a destination absolute and lexically clean; links are resolved inside the root later. As runc does, one that
/// repeats the path that the root has on the host is taken for what it means.
fn destination(path: &Path, rootfs: &Path) -> Result<PathBuf> {
    let mut clean = Path::new("/").join(lexical(path));
    if let Ok(inside) = clean.strip_prefix(rootfs) {
        clean = Path::new("/").join(inside);
    }
    if clean.as_os_str() == "/" {
        return Err(Error::invalid(
            "destination: a mount over the root file system is not possible (set root.path instead)",
        ));
    }
    Ok(clean)
}

fn below_proc(destination: &Path, kind: &MountKind) -> Result<()> {
    let Ok(below) = destination.strip_prefix("/proc") else { return Ok(()) };
    if below.as_os_str().is_empty() {
        return match kind {
            MountKind::FileSystem { name, .. } if name == "proc" || name.is_empty() => Ok(()),
            // Whether the source really is a procfs is checked when it is opened.
            MountKind::Bind { .. } => Ok(()),
            _ => Err(Error::invalid("destination: only a proc file system can be mounted on /proc")),
        };
    }
    if BELOW_PROC.iter().any(|allowed| below == Path::new(allowed)) {
        return Ok(());
    }
    Err(Error::invalid(format!("destination: {} cannot be mounted because it is inside /proc", destination.display())))
}

#[cfg(test)]
mod tests {
    use rung_sys::mount::attribute;

    use super::*;

    fn plan_one(json: &str) -> Result<MountPlan> {
        let mount: Mount = serde_json::from_str(json).expect("valid JSON");
        let (bundle, rootfs, namespaces) =
            (Path::new("/bundle"), Path::new("/bundle/rootfs"), NamespacePlan::default());
        let range = |inside, outside, count| Range { inside, outside, count };
        let ids = IdMaps { uids: vec![range(0, 0, 1), range(1, 2, 1000)], gids: vec![range(0, 100, 10)] };
        one(&mount, Context { bundle, rootfs, namespaces: &namespaces, ids: Some(&ids) })
    }

    #[test]
    fn sources_are_relative_to_the_bundle() {
        let plan = plan_one(r#"{"destination":"data/../x","source":"vol","options":["rbind","ro"]}"#).expect("plan");
        assert_eq!(plan.destination, Path::new("/x"));
        assert_eq!(plan.kind, MountKind::Bind { source: "/bundle/vol".into() });
    }

    #[test]
    fn what_is_there_is_remounted() {
        for typ in ["", "bind"] {
            let json = format!(r#"{{"destination":"/x","type":"{typ}","source":"/y","options":["bind","remount"]}}"#);
            let plan = plan_one(&json).expect("plan");
            assert_eq!(plan.kind, MountKind::FileSystem { name: String::new(), source: "/y".into() });
        }
    }

    #[test]
    fn a_destination_may_repeat_the_path_of_the_root() {
        let plan = plan_one(r#"{"destination":"/bundle/rootfs/mnt/x","type":"tmpfs"}"#).expect("plan");
        assert_eq!(plan.destination, Path::new("/mnt/x"));
        let plan = plan_one(r#"{"destination":"/bundle/rootfs2","type":"tmpfs"}"#).expect("plan");
        assert_eq!(plan.destination, Path::new("/bundle/rootfs2"));
        assert!(plan_one(r#"{"destination":"/bundle/rootfs","type":"tmpfs"}"#).is_err());
    }

    #[test]
    fn maps_in_an_option_are_those_of_the_mount() {
        let idmap = |option: &str| {
            let json = format!(r#"{{"destination":"/x","source":"/y","options":["rbind","{option}"]}}"#);
            plan_one(&json).map(|plan| (plan.idmap, plan.options.idmap))
        };
        let range = |inside, outside, count| Range { inside, outside, count };
        let (planned, recursive) = idmap("ridmap=uids=0-1-10#10-11-10;gids=@0-3-5").expect("taken");
        let uids = vec![range(0, 1, 10), range(10, 11, 10)];
        assert_eq!(planned, Some(Idmap::Ranges { uids, gids: vec![range(0, 103, 5)] }));
        assert_eq!(recursive, Some(true));
        let (planned, _) = idmap("idmap=uids=@1-3-10;gids=0-0-1").expect("taken");
        assert_eq!(planned, Some(Idmap::Ranges { uids: vec![range(1, 4, 10)], gids: vec![range(0, 0, 1)] }));
        for bad in
            ["uids=0-1-1", "uids=0-1;gids=0-0-1", "uids=0-1-1-1;gids=0-0-1", "x=0-1-1", "uids=@5000-5000-1;gids=0-0-1"]
        {
            assert!(idmap(&format!("idmap={bad}")).is_err(), "{bad}");
        }
    }

    #[test]
    fn refusals() {
        for (json, text) in [
            (r#"{"destination":"/","type":"tmpfs"}"#, "over the root"),
            (r#"{"destination":"/a/..","type":"tmpfs"}"#, "over the root"),
            (r#"{"destination":"/proc/self/attr","type":"tmpfs"}"#, "inside /proc"),
            (r#"{"destination":"/proc","type":"tmpfs"}"#, "only a proc"),
            (r#"{"destination":"/x","options":["bind"]}"#, "needs one"),
            (r#"{"destination":"/x","source":"/y","options":["bind","idmap"]}"#, "user namespace"),
            (
                r#"{"destination":"/x","type":"tmpfs","uidMappings":[{"hostID":1,"containerID":0,"size":1}]}"#,
                "both be given",
            ),
        ] {
            let error = plan_one(json).expect_err(json).to_string();
            assert!(error.contains(text), "{json}: {error}");
        }
        assert!(plan_one(r#"{"destination":"/x","source":"/y","options":["bind","size=1"]}"#).is_ok());
        assert!(plan_one(r#"{"destination":"/proc/uptime","source":"/u","options":["bind"]}"#).is_ok());
    }
    #[test]
    fn an_old_systemd_sees_its_hierarchy() {
        let cgroups = r#"{"destination":"/sys/fs/cgroup","type":"cgroup","options":["nosuid","bind"],"source":"x"}"#;
        let mut planned =
            vec![plan_one(cgroups).expect("plan"), plan_one(r#"{"destination":"/x","type":"tmpfs"}"#).expect("plan")];
        show_named_hierarchy(&mut planned, Path::new("/sys/fs/cgroup/")).expect("shown");
        let places: Vec<_> = planned.iter().map(|step| step.destination.display().to_string()).collect();
        assert_eq!(places, ["/sys/fs/cgroup", "/sys/fs/cgroup/systemd", "/x"]);
        assert_eq!(planned[1].options.data, ["none", "name=systemd", "xattr"]);
        assert_eq!((planned[1].options.set, planned[1].options.bind), (attribute::NOSUID, false));
        let refused = show_named_hierarchy(&mut planned, Path::new("/y")).expect_err("nothing there").to_string();
        assert!(refused.contains("force_cgroup_v1") && refused.contains("/y"), "{refused}");
    }
}
