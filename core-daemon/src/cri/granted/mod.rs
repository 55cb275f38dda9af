//! What a pod asks for by CRI-O's annotations, where its handler or its workload allows them.
//!
//! Whoever may make pods writes the annotations, so each value is hostile. One that is not allowed changes nothing, and the log
//! says so; one that is allowed and makes no sense is an error that names it.

mod container;
mod devices;
mod limits;
mod pod;
mod unified;
mod users;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use gantry_proto::runtime::v1;
use rung_sys::cgroupfs::{Version, version_at};

pub(super) use pod::{Agreed, namespace_options};
pub(super) use users::{Drawn, Users};

use super::Cri;
use super::quantity::quantity;
use crate::config::{self, Annotation, RuntimeHandler, Workload};
use crate::error::{Error, Result};

/// Where cgroups are.
const CGROUPS: &str = "/sys/fs/cgroup";
/// Longest value that is looked at.
const MAX_VALUE: usize = 16 << 10;
/// Longest name of a volume.
const MAX_VOLUME: usize = 63;
/// Bits of a mask of permissions.
const MASK: u32 = 0o777;

/// What a pod is given by annotations; by default nothing.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Granted {
    /// Containers may write to their cgroups.
    pub(super) cgroup_writable: bool,
    /// Devices of each container.
    pub(super) devices: Vec<v1::Device>,
    /// What is done about system calls that the filters forbid; none: they are refused.
    pub(super) forbidden_calls: Option<Forbidden>,
    /// What has the right label of SELinux is taken to be labelled throughout.
    pub(super) keeps_labels: bool,
    /// The volume in which the pod's logs are shown.
    pub(super) link_logs: Option<String>,
    /// Bytes of shared memory.
    pub(super) shm_size: Option<u64>,
    /// Mask of new files' permissions.
    pub(super) umask: Option<u32>,
    /// Users of the pod's own.
    pub(super) users: Option<users::Wish>,
    /// Files of cgroups, by container.
    unified: BTreeMap<String, unified::Files>,
    /// Whether processors take no interrupts, by container; that of the empty name is the others'.
    no_interrupts: BTreeMap<String, bool>,
    /// Whether time is not limited, by container; that of the empty name is the others'.
    no_quota: BTreeMap<String, bool>,
    /// The key by which each was asked for.
    keys: BTreeMap<(Annotation, String), String>,
}

/// What is done about a system call that a filter forbids, besides refusing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Forbidden {
    /// It is counted, and in the log.
    Log,
    /// The container is ended, too.
    Stop,
}

impl Granted {
    /// The files of a container's cgroup.
    pub(super) fn unified(&self, container: &str) -> Option<&unified::Files> {
        self.unified.get(container)
    }

    /// Whether a container's processors are to take no interrupts.
    fn has_no_interrupts(&self, container: &str) -> bool {
        self.no_interrupts.get(container).or_else(|| self.no_interrupts.get("")).copied().unwrap_or_default()
    }

    /// Whether a container's time is not to be limited.
    pub(super) fn has_no_quota(&self, container: &str) -> bool {
        self.no_quota.get(container).or_else(|| self.no_quota.get("")).copied().unwrap_or_default()
    }

    /// The annotation by which something was asked for, in the pod's words: for the container, or else for all of them.
    pub(super) fn key(&self, annotation: Annotation, container: &str) -> &str {
        let of = |name: &str| self.keys.get(&(annotation, name.to_owned()));
        of(container).or_else(|| of("")).map_or("", String::as_str)
    }
}

impl Cri {
    /// What a pod of that handler is given by its annotations.
    ///
    /// # Errors
    /// `InvalidArgument` naming the annotation whose value makes no sense, or the workloads that the pod is of.
    pub(super) fn granted(&self, handler: &RuntimeHandler, annotations: &Annotations) -> Result<Granted> {
        let is_unified = version_at(Path::new(CGROUPS)) == Some(Version::V2);
        let settings = self.config();
        read(&settings, is_unified, &allowed(&settings, handler, annotations)?, annotations)
    }

    /// The same of a pod that is there, as far as it is about time: whatever else it asked for, it has or has not, and what
    /// would be refused by now is no reason to refuse more.
    ///
    /// # Errors
    /// As [`Cri::granted`].
    fn granted_time(&self, handler: &RuntimeHandler, annotations: &Annotations) -> Result<Granted> {
        let settings = self.config();
        let mut allowed = allowed(&settings, handler, annotations)?;
        allowed.retain(|annotation| *annotation == Annotation::CpuQuota);
        read(&settings, true, &allowed, annotations)
    }

    /// Says in the log which annotations of a new pod change nothing because they are not allowed.
    pub(super) fn log_ignored(&self, id: &str, handler: &RuntimeHandler, annotations: &Annotations) {
        let allowed = allowed(&self.config(), handler, annotations).unwrap_or_default();
        for key in annotations.keys() {
            let is_known = Annotation::of_key(key).map(|key| allowed.contains(&key.annotation));
            if is_known == Some(false) || Annotation::is_unsupported(key) {
                tracing::info!(id, annotation = key, "an annotation of a pod is not allowed, and changes nothing");
            }
        }
    }

    /// Limits of a container in place of the kubelet's, from its pod's workload and annotations; `wanted` are the kubelet's.
    ///
    /// # Errors
    /// `InvalidArgument` naming the annotation.
    pub(super) fn put_over_limits(
        &self,
        annotations: &Annotations,
        container: &str,
        wanted: &mut v1::LinuxContainerResources,
    ) -> Result<()> {
        match workload(&self.config(), annotations)? {
            Some(workload) => limits::put_over(workload, container, annotations, wanted),
            None => Ok(()),
        }
    }
}

/// A pod's annotations.
pub(super) type Annotations = BTreeMap<String, String>;

/// The kind of pods that one with these annotations is of.
///
/// # Errors
/// `InvalidArgument` where it is of two: neither is meant more than the other.
fn workload<'config>(settings: &'config config::Cri, annotations: &Annotations) -> Result<Option<&'config Workload>> {
    let mut active =
        settings.workloads.iter().filter(|(_, workload)| annotations.contains_key(&workload.activation_annotation));
    match (active.next(), active.next()) {
        (Some((one, first)), Some((other, second))) => {
            let (first, second) = (&first.activation_annotation, &second.activation_annotation);
            Err(Error::invalid(format!(
                "annotations {first} and {second}: the pod is of the workloads {one} and {other}"
            )))
        }
        (active, _) => Ok(active.map(|(_, workload)| workload)),
    }
}

/// What annotations of a pod with these, and of images in it, may ask for.
///
/// # Errors
/// `InvalidArgument` where it is of two workloads.
pub(super) fn allowed(
    settings: &config::Cri,
    handler: &RuntimeHandler,
    annotations: &Annotations,
) -> Result<BTreeSet<Annotation>> {
    let mut allowed = Annotation::allowed(&handler.allowed_annotations)?;
    if let Some(workload) = workload(settings, annotations)? {
        allowed.append(&mut Annotation::allowed(&workload.allowed_annotations)?);
    }
    Ok(allowed)
}

/// Reads the annotations that are allowed, on a machine whose cgroups are of version 2 or not. Of two that ask for the same, the
/// one with the current name counts.
fn read(
    settings: &config::Cri,
    is_unified: bool,
    allowed: &BTreeSet<Annotation>,
    annotations: &Annotations,
) -> Result<Granted> {
    let mut granted = Granted::default();
    let mut said = BTreeSet::new();
    let mut asked: Vec<_> =
        annotations.iter().filter_map(|(name, value)| Some((Annotation::of_key(name)?, name, value))).collect();
    asked.sort_by_key(|(key, _, _)| !key.is_current);
    for (key, name, value) in asked {
        if allowed.contains(&key.annotation) && said.insert((key.annotation, key.container)) {
            let container = key.container.unwrap_or_default();
            let check = if value.len() > MAX_VALUE {
                Err(format!("is longer than {MAX_VALUE} bytes"))
            } else {
                granted.set(settings, key.annotation, container, value).and_then(|()| match key.annotation {
                    Annotation::CgroupWritable | Annotation::UnifiedCgroup
                        if !is_unified && granted.needs_unified() =>
                    {
                        Err("this machine's cgroups are not of version 2".to_owned())
                    }
                    _ => Ok(()),
                })
            };
            check.map_err(|what| Error::invalid(format!("annotation {name}: {what}")))?;
            granted.keys.insert((key.annotation, container.to_owned()), name.clone());
        }
    }
    Ok(granted)
}

impl Granted {
    /// Whether it can only be with cgroups of version 2.
    fn needs_unified(&self) -> bool {
        self.cgroup_writable || self.unified.values().any(|files| !files.is_empty())
    }

    /// Notes what the value of an annotation asks for; the error says what is wrong with the value.
    fn set(
        &mut self,
        settings: &config::Cri,
        annotation: Annotation,
        container: &str,
        value: &str,
    ) -> std::result::Result<(), String> {
        match annotation {
            Annotation::CgroupWritable => self.cgroup_writable = flag(value)?,
            Annotation::CpuQuota => drop(self.no_quota.insert(container.to_owned(), is_disabled(value)?)),
            Annotation::Devices => self.devices = devices::parse(value, &settings.allowed_devices)?,
            Annotation::Interrupts => drop(self.no_interrupts.insert(container.to_owned(), is_disabled(value)?)),
            Annotation::KeepLabels => self.keeps_labels = flag(value)?,
            Annotation::LinkLogs => self.link_logs = Some(volume(value)?.to_owned()),
            Annotation::SeccompNotifier => self.forbidden_calls = Some(forbidden(value)?),
            // An artifact, which the container or the pod's process looks for that gets it.
            Annotation::SeccompProfile => {}
            Annotation::ShmSize => self.shm_size = Some(size(value)?),
            Annotation::Umask => self.umask = Some(umask(value)?),
            Annotation::UnifiedCgroup if container.is_empty() => {
                return Err("a container's name has to follow, after a slash".to_owned());
            }
            Annotation::UnifiedCgroup => drop(self.unified.insert(container.to_owned(), unified::parse(value)?)),
            Annotation::Users => self.users = users::Wish::parse(value)?,
        }
        Ok(())
    }
}

fn flag(value: &str) -> std::result::Result<bool, String> {
    match value {
        "true" => Ok(true),
        "false" | "" => Ok(false),
        _ => Err(format!("{value:?} is neither true nor false")),
    }
}

/// Whether something is disabled; `true` is how this was written once.
fn is_disabled(value: &str) -> std::result::Result<bool, String> {
    match value {
        "disable" | "true" => Ok(true),
        "enable" | "false" => Ok(false),
        _ => Err(format!("{value:?} is neither disable nor enable")),
    }
}

/// The volume in which a pod's logs may be shown, allowed or not.
pub(super) fn volume_of_logs(annotations: &Annotations) -> Option<&str> {
    let asked = annotations.iter().filter_map(|(name, value)| Some((Annotation::of_key(name)?, value)));
    let asked = asked.filter(|(key, _)| key.annotation == Annotation::LinkLogs);
    asked.max_by_key(|(key, _)| key.is_current).and_then(|(_, value)| volume(value).ok())
}

/// The name of a volume, as Kubernetes has them.
fn volume(value: &str) -> std::result::Result<&str, String> {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    match !value.is_empty() && value.len() <= MAX_VOLUME && value.bytes().all(is_plain) {
        true => Ok(value),
        false => Err(format!("{value:?} is not the name of a volume")),
    }
}

fn forbidden(value: &str) -> std::result::Result<Forbidden, String> {
    match value {
        "stop" => Ok(Forbidden::Stop),
        "log" | "" => Ok(Forbidden::Log),
        _ => Err(format!("{value:?} is neither stop nor log")),
    }
}

/// A size that memory can have; none at all would be no limit to the kernel.
fn size(value: &str) -> std::result::Result<u64, String> {
    let fits = |size: &u64| *size > 0 && i64::try_from(*size).is_ok();
    quantity(value).filter(fits).ok_or_else(|| format!("{value:?} is not a size such as 128Mi"))
}

fn umask(value: &str) -> std::result::Result<u32, String> {
    let is_octal = (1..=4).contains(&value.len()) && value.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    let mask = u32::from_str_radix(value, 8).ok().filter(|mask| is_octal && *mask <= MASK);
    mask.ok_or_else(|| format!("{value:?} is not an octal number up to 777"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> Annotations {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn read_all(pairs: &[(&str, &str)]) -> Result<Granted> {
        let all: Vec<String> =
            pairs.iter().map(|(name, _)| name.split('/').next().unwrap_or(name).to_string()).collect();
        read(&config::Cri::default(), true, &Annotation::allowed(&all)?, &annotations(pairs))
    }

    #[test]
    fn nothing_is_granted_that_is_not_allowed() {
        let asked =
            annotations(&[("umask.crio.io", "nonsense"), ("devices.crio.io", "/dev/sda"), ("example.org/x", "1")]);
        let none = read(&config::Cri::default(), true, &BTreeSet::new(), &asked).expect("ignored");
        assert_eq!(none, Granted::default());
        let devices = BTreeSet::from([Annotation::Devices]);
        let error =
            read(&config::Cri::default(), true, &devices, &asked).expect_err("no such device is allowed").to_string();
        assert!(error.contains("annotation devices.crio.io: /dev/sda"), "{error}");
    }

    #[test]
    fn values_that_make_no_sense_are_named() {
        for (name, value) in [
            ("umask.crio.io", "8"),
            ("umask.crio.io", ""),
            ("umask.crio.io", "00777"),
            ("umask.crio.io", "1777"),
            ("umask.crio.io", "+22"),
            ("io.kubernetes.cri-o.umask", "x"),
            ("shm-size.crio.io", "0"),
            ("shm-size.crio.io", "-1"),
            ("shm-size.crio.io", "much"),
            ("shm-size.crio.io", "16E"),
            ("cgroup2-mount-hierarchy-rw.crio.io", "yes"),
            ("cpu-quota.crio.io/web", "off"),
            ("seccomp-notifier-action.crio.io", "kill"),
            ("unified-cgroup.crio.io", "memory.high=1"),
            ("userns-mode.crio.io", "host"),
            ("irq-load-balancing.crio.io", ""),
            ("link-logs.crio.io", ""),
            ("link-logs.crio.io", "../x"),
            ("try-skip-volume-selinux-label.crio.io", "maybe"),
        ] {
            let error = read_all(&[(name, value)]).expect_err(value).to_string();
            assert!(error.starts_with(&format!("annotation {name}: ")), "{error}");
        }
        let long = "a".repeat(MAX_VALUE + 1);
        assert!(read_all(&[("umask.crio.io", &long)]).expect_err("long").to_string().contains("longer"));
    }

    #[test]
    fn what_is_said_counts() {
        let granted = read_all(&[
            ("umask.crio.io", "027"),
            ("io.kubernetes.cri-o.umask", "nonsense, but the other counts"),
            ("io.kubernetes.cri-o.ShmSize", "128Mi"),
            ("cgroup2-mount-hierarchy-rw.crio.io", "true"),
            ("cpu-quota.crio.io", "disable"),
            ("seccomp-notifier-action.crio.io", "stop"),
            ("cpu-quota.crio.io/web", "enable"),
            ("irq-load-balancing.crio.io/web", "disable"),
            ("unified-cgroup.crio.io/web", "memory.high=1000"),
            ("io.kubernetes.cri-o.LinkLogs", "logs-of-it"),
            ("io.kubernetes.cri-o.TrySkipVolumeSELinuxLabel", "true"),
        ])
        .expect("granted");
        assert!(granted.keeps_labels && granted.link_logs.as_deref() == Some("logs-of-it"));
        let both = annotations(&[("io.kubernetes.cri-o.LinkLogs", "old"), ("link-logs.crio.io", "new")]);
        assert_eq!(volume_of_logs(&both), Some("new"));
        assert_eq!(volume_of_logs(&annotations(&[("link-logs.crio.io", "a/b")])), None);
        assert_eq!((granted.umask, granted.shm_size, granted.cgroup_writable), (Some(0o27), Some(128 << 20), true));
        assert_eq!(granted.forbidden_calls, Some(Forbidden::Stop));
        assert!(granted.has_no_interrupts("web") && !granted.has_no_interrupts("other"));
        assert!(granted.has_no_quota("other") && !granted.has_no_quota("web"));
        assert!(granted.unified("web").is_some() && granted.unified("other").is_none());
        assert_eq!(granted.key(Annotation::ShmSize, ""), "io.kubernetes.cri-o.ShmSize");
        assert_eq!(granted.key(Annotation::Umask, ""), "umask.crio.io");
        assert_eq!(granted.key(Annotation::CpuQuota, "web"), "cpu-quota.crio.io/web");
        assert_eq!(granted.key(Annotation::CpuQuota, "other"), "cpu-quota.crio.io");
    }

    #[test]
    fn a_pod_is_of_one_workload() {
        let named = |name: &str, allowed: &[&str]| Workload {
            activation_annotation: format!("{name}.example.org"),
            allowed_annotations: allowed.iter().map(|&name| name.to_owned()).collect(),
            ..Workload::default()
        };
        let mut settings = config::Cri::default();
        settings.workloads.insert("a".into(), named("a", &["umask.crio.io"]));
        settings.workloads.insert("b".into(), named("b", &[]));
        let handler =
            RuntimeHandler { allowed_annotations: vec!["devices.crio.io".into()], ..RuntimeHandler::default() };
        let allowed = |pairs| allowed(&settings, &handler, &annotations(pairs));
        assert_eq!(allowed(&[]).expect("none"), BTreeSet::from([Annotation::Devices]));
        let both = BTreeSet::from([Annotation::Devices, Annotation::Umask]);
        assert_eq!(allowed(&[("a.example.org", "")]).expect("a"), both);
        let error = allowed(&[("a.example.org", ""), ("b.example.org", "")]).expect_err("two").to_string();
        assert!(error.contains("workloads a and b"), "{error}");
    }
}
