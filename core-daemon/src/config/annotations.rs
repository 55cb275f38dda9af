//! The annotations by which a pod may ask for what Kubernetes has no field for, where an administrator allows it: CRI-O's.

use std::collections::BTreeSet;

use crate::error::{Error, Result};

/// What an annotation asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Annotation {
    /// Containers may write to their cgroup.
    CgroupWritable,
    /// No limit of processor time.
    CpuQuota,
    /// Devices of the host.
    Devices,
    /// No interrupts on processors of a container's own.
    Interrupts,
    /// Volumes whose own label of SELinux is right are not labelled.
    KeepLabels,
    /// The pod's logs in one of its volumes.
    LinkLogs,
    /// What is done about system calls that a filter forbids.
    SeccompNotifier,
    /// The filter of system calls, as an artifact.
    SeccompProfile,
    /// Size of the pod's shared memory.
    ShmSize,
    /// The mask of new files' permissions.
    Umask,
    /// Files of a container's cgroup.
    UnifiedCgroup,
    /// Users of the pod's own.
    Users,
}

/// The name of an annotation that images may have too, as it is now and as it was before.
pub const SECCOMP_PROFILE: [&str; 2] = ["seccomp-profile.crio.io", "seccomp-profile.kubernetes.cri-o.io"];

/// An annotation's names.
struct Names {
    annotation: Annotation,
    /// As CRI-O calls it now.
    current: &'static str,
    /// As it called it before; empty: not at all.
    older: &'static str,
    /// It may be about one container, whose name follows after a slash.
    per_container: bool,
}

const fn names(annotation: Annotation, current: &'static str, older: &'static str, per_container: bool) -> Names {
    Names { annotation, current, older, per_container }
}

const ALL: [Names; 12] = [
    names(
        Annotation::CgroupWritable,
        "cgroup2-mount-hierarchy-rw.crio.io",
        "io.kubernetes.cri-o.cgroup2-mount-hierarchy-rw",
        false,
    ),
    names(Annotation::CpuQuota, "cpu-quota.crio.io", "", true),
    names(Annotation::Devices, "devices.crio.io", "io.kubernetes.cri-o.Devices", false),
    names(Annotation::Interrupts, "irq-load-balancing.crio.io", "", true),
    names(
        Annotation::KeepLabels,
        "try-skip-volume-selinux-label.crio.io",
        "io.kubernetes.cri-o.TrySkipVolumeSELinuxLabel",
        false,
    ),
    names(Annotation::LinkLogs, "link-logs.crio.io", "io.kubernetes.cri-o.LinkLogs", false),
    names(
        Annotation::SeccompNotifier,
        "seccomp-notifier-action.crio.io",
        "io.kubernetes.cri-o.seccompNotifierAction",
        false,
    ),
    names(Annotation::SeccompProfile, SECCOMP_PROFILE[0], SECCOMP_PROFILE[1], true),
    names(Annotation::ShmSize, "shm-size.crio.io", "io.kubernetes.cri-o.ShmSize", false),
    names(Annotation::Umask, "umask.crio.io", "io.kubernetes.cri-o.umask", false),
    names(Annotation::UnifiedCgroup, "unified-cgroup.crio.io", "io.kubernetes.cri-o.UnifiedCgroup", true),
    names(Annotation::Users, "userns-mode.crio.io", "io.kubernetes.cri-o.userns-mode", false),
];

const GLOBAL: &str = "it changes settings of the whole machine, which would be left behind where the daemon is killed";
const PASSED: &str = "annotations for a runtime are passed to it by pod_annotations";
const OTHERWISE: &str = "there is nothing in this daemon that it could change";

/// What else CRI-O allows by name, and why it is not done here.
const OTHERS: [(&str, &str); 23] = [
    ("cpu-c-states.crio.io", GLOBAL),
    ("cpu-freq-governor.crio.io", GLOBAL),
    ("cpu-load-balancing.crio.io", "it changes the cgroups of other pods, which are the kubelet's"),
    ("cpu-shared.crio.io", "no processors are set aside for containers to share"),
    ("disable-fips.crio.io", OTHERWISE),
    ("io.kubernetes.cri-o.DisableFIPS", OTHERWISE),
    ("platform-runtime-path.crio.io", "a handler has one runtime: another handler has another"),
    ("io.kubernetes.cri-o.PlatformRuntimePath", "a handler has one runtime: another handler has another"),
    ("pod-linux-overhead.crio.io", OTHERWISE),
    ("io.kubernetes.cri-o.PodLinuxOverhead", OTHERWISE),
    ("pod-linux-resources.crio.io", OTHERWISE),
    ("io.kubernetes.cri-o.PodLinuxResources", OTHERWISE),
    ("spoofed.crio.io", "every container has processes"),
    ("io.kubernetes.cri-o.Spoofed", "every container has processes"),
    ("io.containers.trace-syscall", "a hook is chosen by a file in hooks_dirs"),
    ("io.kubernetes.cri.rdt-class", "it needs no leave here"),
    ("bundle", PASSED),
    ("io.kubernetes.cri.container-type", "every container and every pod has it here"),
    ("module.wasm.image/variant", PASSED),
    ("org.opencontainers.image.stopSignal", "a container's signal is the kubelet's, or else its image's"),
    ("org.criu.config", PASSED),
    ("org.systemd.property.", PASSED),
    ("run.oci.", PASSED),
];

/// What the key of an annotation is about: the whole pod, or a container of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key<'a> {
    /// What it asks for.
    pub annotation: Annotation,
    /// Name of the container; none for all of the pod.
    pub container: Option<&'a str>,
    /// It is written as CRI-O does now.
    pub is_current: bool,
}

impl Annotation {
    /// Reads a list of names that are allowed, each in either form: allowing one allows both.
    ///
    /// # Errors
    /// `InvalidArgument` for a name that CRI-O does not know, or that stands for something that is not done here.
    pub fn allowed(list: &[String]) -> Result<BTreeSet<Self>> {
        list.iter().map(|name| Self::named(name)).collect()
    }

    fn named(name: &str) -> Result<Self> {
        let names = ALL.iter().find(|names| [names.current, names.older].contains(&name) && !name.is_empty());
        if let Some(names) = names {
            return Ok(names.annotation);
        }
        let text = match OTHERS.iter().find(|(other, _)| *other == name) {
            Some((_, why)) => format!("{name:?} is not supported: {why}"),
            None => format!("{name:?} is no annotation that could be allowed"),
        };
        Err(Error::invalid(text))
    }

    /// What an annotation of a pod with this key asks for, if anything.
    pub fn of_key(key: &str) -> Option<Key<'_>> {
        ALL.iter().find_map(|names| {
            let of = |name: &str, is_current: bool| {
                let rest = key.strip_prefix(name).filter(|_| !name.is_empty())?;
                let separators: &[char] = if is_current { &['/'] } else { &['/', '.'] };
                let container = match rest {
                    "" => None,
                    rest if names.per_container => Some(rest.strip_prefix(separators).filter(|name| !name.is_empty())?),
                    _ => return None,
                };
                Some(Key { annotation: names.annotation, container, is_current })
            };
            of(names.current, true).or_else(|| of(names.older, false))
        })
    }

    /// Whether a key is that of something that CRI-O would do, and this daemon never does.
    pub fn is_unsupported(key: &str) -> bool {
        let name = key.split_once('/').map_or(key, |(name, _)| name);
        let is_theirs = name.ends_with(".crio.io") || name.starts_with("io.kubernetes.cri-o.");
        is_theirs && OTHERS.iter().any(|(other, _)| *other == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_names_are_one_annotation() {
        let list = |names: &[&str]| Annotation::allowed(&names.iter().map(|&name| name.into()).collect::<Vec<_>>());
        let both = list(&["devices.crio.io", "io.kubernetes.cri-o.Devices", "umask.crio.io"]).expect("known");
        assert_eq!(both, BTreeSet::from([Annotation::Devices, Annotation::Umask]));
        assert!(list(&[]).expect("empty").is_empty());
        let error = list(&["cpu-c-states.crio.io"]).expect_err("not done").to_string();
        assert!(error.contains("\"cpu-c-states.crio.io\" is not supported: it changes settings"), "{error}");
        for (name, why) in
            [("module.wasm.image/variant", "pod_annotations"), ("org.opencontainers.image.stopSignal", "signal")]
        {
            let error = list(&[name]).expect_err(name).to_string();
            assert!(error.contains("is not supported") && error.contains(why), "{error}");
        }
        assert!(list(&[""]).is_err() && list(&["devices.crio.io/web"]).is_err() && list(&["example.org/x"]).is_err());
    }

    #[test]
    fn keys_with_and_without_a_container() {
        let key = |text| Annotation::of_key(text).map(|key| (key.annotation, key.container, key.is_current));
        assert_eq!(key("devices.crio.io"), Some((Annotation::Devices, None, true)));
        assert_eq!(key("io.kubernetes.cri-o.Devices"), Some((Annotation::Devices, None, false)));
        assert_eq!(key("unified-cgroup.crio.io/web"), Some((Annotation::UnifiedCgroup, Some("web"), true)));
        for older in ["io.kubernetes.cri-o.UnifiedCgroup/web", "io.kubernetes.cri-o.UnifiedCgroup.web"] {
            assert_eq!(key(older), Some((Annotation::UnifiedCgroup, Some("web"), false)), "{older}");
        }
        for other in
            ["devices.crio.io/web", "devices.crio.iox", "unified-cgroup.crio.io/", "unified-cgroup.crio.io.x", ""]
        {
            assert_eq!(key(other), None, "{other}");
        }
        for theirs in ["cpu-load-balancing.crio.io/web", "spoofed.crio.io", "io.kubernetes.cri-o.Spoofed"] {
            assert!(Annotation::is_unsupported(theirs), "{theirs}");
        }
        for other in ["bundle", "io.kubernetes.cri.container-type", "io.kubernetes.cri-o.Devices"] {
            assert!(!Annotation::is_unsupported(other), "{other}");
        }
    }
}
