//! Seccomp and AppArmor profiles.

use std::path::Path;

use gantry_proto::runtime::v1;
use gantry_proto::runtime::v1::security_profile::ProfileType;
use oci_spec::runtime::{Capabilities, LinuxSeccomp};
use rung_spec::builder::profile;
use rung_spec::defaults;
use rung_spec::platform::Platform;

use super::invalid;
use crate::config;
use crate::error::{Doing as _, Error, Result};

/// Largest profile that is read.
const MAX_PROFILE: u64 = 4 << 20;
/// What the kernel shows of AppArmor, where that is mounted.
const SHOWN: &str = "/sys/kernel/security/apparmor";
/// Where the kernel lists the profiles it has.
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";
/// The program that loads profiles.
pub(in crate::cri) const PARSER: &str = "/sbin/apparmor_parser";
/// Begin of a profile on this machine, in the older fields.
const LOCALHOST: &str = "localhost/";

/// Name of the profile that containers get which name none. [`crate::cri`] sees to it that the kernel has it.
pub(in crate::cri) const DEFAULT_APPARMOR: &str = "gantry-default";

/// A profile as it is wished for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Wish {
    Unset,
    Unconfined,
    Default,
    Localhost(String),
}

fn wish(field: &str, profile: Option<&v1::SecurityProfile>, old: &str) -> Result<Wish> {
    let Some(profile) = profile else {
        return match old {
            "" => Ok(Wish::Unset),
            "unconfined" => Ok(Wish::Unconfined),
            "runtime/default" | "docker/default" => Ok(Wish::Default),
            text => match text.strip_prefix(LOCALHOST) {
                Some(name) if !name.is_empty() => Ok(Wish::Localhost(name.to_owned())),
                _ => Err(invalid(field, format!("{text:?} is not a profile"))),
            },
        };
    };
    match ProfileType::try_from(profile.profile_type) {
        // Whoever names a file means it: nothing else is done in its place.
        Ok(kind) if kind != ProfileType::Localhost && !profile.localhost_ref.is_empty() => {
            Err(invalid(field, "localhost_ref is possible only with Localhost"))
        }
        Ok(ProfileType::RuntimeDefault) => Ok(Wish::Default),
        Ok(ProfileType::Unconfined) => Ok(Wish::Unconfined),
        Ok(ProfileType::Localhost) if profile.localhost_ref.is_empty() => {
            Err(invalid(field, "localhost_ref is required with Localhost"))
        }
        Ok(ProfileType::Localhost) => {
            let name = &profile.localhost_ref;
            Ok(Wish::Localhost(name.strip_prefix(LOCALHOST).unwrap_or(name).to_owned()))
        }
        Err(_) => Err(invalid(field, format!("profile_type {} is unknown", profile.profile_type))),
    }
}

/// The filter of system calls.
#[allow(deprecated, reason = "kubelets of older releases send the older field")]
pub(super) fn seccomp(
    context: &v1::LinuxContainerSecurityContext,
    settings: &config::Cri,
    bounding: &Capabilities,
    annotated: Option<&str>,
) -> Result<Option<LinuxSeccomp>> {
    let field = "linux.security_context.seccomp";
    if context.privileged {
        return Ok(None);
    }
    let own = wish(field, context.seccomp.as_ref(), &context.seccomp_profile_path)?;
    if let Some(text) = annotated.filter(|_| matches!(own, Wish::Unset | Wish::Unconfined)) {
        return from_artifact(text, bounding).map(Some).map_err(|error| invalid("annotations", error));
    }
    let wished = match own {
        Wish::Unset => wish("cri.unset_seccomp_profile", None, &settings.unset_seccomp_profile)?,
        wished => wished,
    };
    match wished {
        Wish::Unset | Wish::Unconfined => Ok(None),
        Wish::Default => Ok(Some(defaults::seccomp::default(bounding))),
        Wish::Localhost(path) => read_seccomp(&path).map(Some).map_err(|error| invalid(field, error)),
    }
}

/// That of a pod's own process, with the profile that annotations name for it.
pub(in crate::cri) fn seccomp_of_pod(
    context: &v1::LinuxSandboxSecurityContext,
    settings: &config::Cri,
    annotated: Option<&str>,
) -> Result<Option<LinuxSeccomp>> {
    seccomp(&as_container(context), settings, &Capabilities::new(), annotated)
}

/// What a pod asks for, as a container would.
#[allow(deprecated, reason = "kubelets of older releases send the older field")]
pub(in crate::cri) fn as_container(context: &v1::LinuxSandboxSecurityContext) -> v1::LinuxContainerSecurityContext {
    v1::LinuxContainerSecurityContext {
        privileged: context.privileged,
        seccomp: context.seccomp.clone(),
        seccomp_profile_path: context.seccomp_profile_path.clone(),
        ..Default::default()
    }
}

/// Whose annotations may name a profile for a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cri) enum Room {
    /// Nobody's: it has a profile, or is to have none whatever happens.
    None,
    /// The pod's.
    ForPods,
    /// The pod's, and then the image's: it would have no profile at all.
    ForImages,
}

/// Whose annotations may name a profile for a container with this context.
#[allow(deprecated, reason = "kubelets of older releases send the older field")]
pub(in crate::cri) fn room_for_profile(
    context: &v1::LinuxContainerSecurityContext,
    settings: &config::Cri,
) -> Result<Room> {
    if context.privileged {
        return Ok(Room::None);
    }
    let field = "linux.security_context.seccomp";
    let wished = match wish(field, context.seccomp.as_ref(), &context.seccomp_profile_path)? {
        Wish::Unset => match wish("cri.unset_seccomp_profile", None, &settings.unset_seccomp_profile)? {
            Wish::Unset | Wish::Unconfined => Wish::Unconfined,
            // An image must not be able to replace it by one that forbids nothing.
            _ => return Ok(Room::ForPods),
        },
        wished => wished,
    };
    Ok(if wished == Wish::Unconfined { Room::ForImages } else { Room::None })
}

/// A profile in docker's form, as artifacts have it. What it says of a program that decides about calls would lead to a
/// socket of this machine, and is nothing for strangers to say.
fn from_artifact(text: &str, bounding: &Capabilities) -> Result<LinuxSeccomp> {
    let read = profile::read(text, bounding, &Platform::host().architecture);
    let filter = read.map_err(|error| Error::invalid(error.to_string()))?;
    if filter.listener_path().is_some() || filter.listener_metadata().is_some() {
        return Err(Error::invalid("seccomp profile: listenerPath and listenerMetadata are not for artifacts to set"));
    }
    Ok(filter)
}

fn read_seccomp(path: &str) -> Result<LinuxSeccomp> {
    use std::io::Read as _;
    let doing = || format!("profile {path}");
    if !Path::new(path).is_absolute() {
        return Err(Error::invalid("is not an absolute path")).doing(doing);
    }
    let mut text = String::new();
    std::fs::File::open(path).and_then(|file| file.take(MAX_PROFILE).read_to_string(&mut text)).doing(doing)?;
    serde_json::from_str(&text).map_err(|error| Error::invalid(error.to_string())).doing(doing)
}

/// Whether containers of this machine can be confined: the kernel can, profiles can be loaded, and the daemon is not in a
/// container itself, where the profiles are those of another machine.
fn supported(settings: &config::Cri) -> bool {
    !settings.disable_apparmor
        && rung_sys::lsm::apparmor_enabled()
        && std::env::var_os("container").is_none_or(|kind| kind.is_empty())
        && Path::new(SHOWN).exists()
        && Path::new(PARSER).exists()
}

/// Whether a container, whose configuration is known to make sense, gets the default AppArmor profile.
pub(in crate::cri) fn wants_default_apparmor(config: &v1::ContainerConfig, settings: &config::Cri) -> bool {
    let context = config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default();
    apparmor(&context, settings).is_ok_and(|profile| profile.as_deref() == Some(DEFAULT_APPARMOR))
}

/// The name of the AppArmor profile.
#[allow(deprecated, reason = "kubelets of older releases send the older field")]
pub(super) fn apparmor(context: &v1::LinuxContainerSecurityContext, settings: &config::Cri) -> Result<Option<String>> {
    let field = "linux.security_context.apparmor";
    let wished = wish(field, context.apparmor.as_ref(), &context.apparmor_profile)?;
    if !supported(settings) {
        return match wished {
            Wish::Unset | Wish::Unconfined => Ok(None),
            _ => Err(invalid(field, "this machine has no AppArmor, or it is not to be used")),
        };
    }
    match wished {
        Wish::Unconfined => Ok(None),
        Wish::Unset | Wish::Default if context.privileged => Ok(None),
        Wish::Unset | Wish::Default => Ok(Some(DEFAULT_APPARMOR.to_owned())),
        Wish::Localhost(name) if is_loaded(&name)? => Ok(Some(name)),
        Wish::Localhost(name) => Err(invalid(field, format!("profile {name:?} is not loaded"))),
    }
}

/// Whether the kernel has a profile of that name.
pub(in crate::cri) fn is_loaded(name: &str) -> Result<bool> {
    let text = std::fs::read_to_string(LOADED).doing(|| format!("read {LOADED}"))?;
    Ok(text.lines().any(|line| line.rsplit_once(" (").is_some_and(|(loaded, _)| loaded == name)))
}

/// Whether the wishes of a pod make sense, in the same terms.
#[allow(deprecated, reason = "kubelets of older releases send the older field")]
pub(in crate::cri) fn check(context: &v1::LinuxSandboxSecurityContext) -> Result<()> {
    wish("linux.security_context.seccomp", context.seccomp.as_ref(), &context.seccomp_profile_path).map(drop)
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxSeccompAction;

    use super::*;

    #[test]
    fn wishes_in_both_fields() {
        let new = |kind: ProfileType, name: &str| {
            let profile = v1::SecurityProfile { profile_type: kind.into(), localhost_ref: name.into() };
            wish("f", Some(&profile), "unconfined")
        };
        assert_eq!(new(ProfileType::RuntimeDefault, "").expect("default"), Wish::Default);
        assert_eq!(new(ProfileType::Localhost, "/a.json").expect("file"), Wish::Localhost("/a.json".into()));
        assert!(new(ProfileType::Localhost, "").is_err());
        assert!(new(ProfileType::RuntimeDefault, "/a.json").is_err() && new(ProfileType::Unconfined, "x").is_err());
        assert_eq!(wish("f", None, "localhost//a.json").expect("old"), Wish::Localhost("/a.json".into()));
        assert_eq!(wish("f", None, "").expect("unset"), Wish::Unset);
        assert!(wish("f", None, "localhost/").is_err() && wish("f", None, "other").is_err());
    }

    #[test]
    fn privileged_containers_have_no_filter() {
        let default = v1::SecurityProfile { profile_type: ProfileType::RuntimeDefault.into(), ..Default::default() };
        let context = v1::LinuxContainerSecurityContext { seccomp: Some(default), ..Default::default() };
        let settings = config::Cri::default();
        assert!(seccomp(&context, &settings, &Capabilities::new(), None).expect("default").is_some());
        let privileged = v1::LinuxContainerSecurityContext { privileged: true, ..context };
        assert!(seccomp(&privileged, &settings, &Capabilities::new(), None).expect("privileged").is_none());
        let none = v1::LinuxContainerSecurityContext::default();
        assert!(seccomp(&none, &settings, &Capabilities::new(), None).expect("unset").is_none());
    }

    #[test]
    fn a_profile_by_annotation_replaces_none_that_is_asked_for() {
        let text = r#"{"defaultAction": "SCMP_ACT_LOG"}"#;
        let of = |kind: Option<ProfileType>, privileged, unset: &str| {
            let seccomp = kind.map(|kind| v1::SecurityProfile { profile_type: kind.into(), ..Default::default() });
            let context = v1::LinuxContainerSecurityContext { seccomp, privileged, ..Default::default() };
            let settings = config::Cri { unset_seccomp_profile: unset.into(), ..config::Cri::default() };
            let filter = super::seccomp(&context, &settings, &Capabilities::new(), Some(text)).expect("filter");
            let is_annotated = filter.is_some_and(|it| it.default_action() == LinuxSeccompAction::ScmpActLog);
            (room_for_profile(&context, &settings).expect("room"), is_annotated)
        };
        assert_eq!(of(None, false, "unconfined"), (Room::ForImages, true));
        assert_eq!(of(None, false, "runtime/default"), (Room::ForPods, true));
        assert_eq!(of(Some(ProfileType::Unconfined), false, "runtime/default"), (Room::ForImages, true));
        assert_eq!(of(Some(ProfileType::RuntimeDefault), false, ""), (Room::None, false));
        assert_eq!(of(None, true, "unconfined"), (Room::None, false));
        let listener = r#"{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/x.sock"}"#;
        let refused = from_artifact(listener, &Capabilities::new()).expect_err("a socket").to_string();
        assert!(refused.contains("listenerPath"), "{refused}");
        from_artifact("[]", &Capabilities::new()).expect_err("no profile");
    }
}
