//! What plugins may not do, by the daemon's own configuration.

use gantry_proto::nri::pkg::api::v1alpha1 as api;
use gantry_proto::nri::pkg::api::v1alpha1::Field;
use gantry_proto::nri::pkg::api::v1alpha1::security_profile::ProfileType;

use crate::config::NriValidator;
use crate::error::{Error, Result};

/// Annotation of a pod that names plugins without which its containers are not to be made, as a list in YAML.
const REQUIRED: &str = "required-plugins.noderesource.dev";

/// Holds the changes of a container against the settings.
///
/// # Errors
/// `PermissionDenied` naming the plugins and what they did, or the plugins that are missing.
pub(super) fn check(settings: &NriValidator, request: &api::ValidateContainerAdjustmentRequest) -> Result<()> {
    let container = request.container.clone().unwrap_or_default();
    let owners = request.owners.as_ref().and_then(|owners| owners.owners.get(&container.id)).cloned();
    let owners = owners.unwrap_or_default();
    let simple = |field: Field| owners.simple.get(&i32::from(field)).map(|owner| owner.trim_start_matches('-'));
    let several = |field: Field| {
        let all = owners.compound.get(&i32::from(field)).into_iter().flat_map(|all| all.owners.iter());
        let named = all.map(|(entry, owner)| format!("{} ({entry})", owner.trim_start_matches('-')));
        Some(named.collect::<Vec<_>>().join(", ")).filter(|named| !named.is_empty())
    };
    let refuse = |who: &str, what: &str| Err(Error::refused(format!("cri.nri.validator: {who} may not change {what}")));
    if let Some(who) = simple(Field::OciHooks).filter(|_| settings.reject_hooks) {
        return refuse(who, "hooks");
    }
    if let Some(who) = simple(Field::SeccompPolicy) {
        let profile = container.linux.as_ref().and_then(|linux| linux.seccomp_profile.as_ref());
        let (is_rejected, what) = match profile.map(api::SecurityProfile::profile_type) {
            None | Some(ProfileType::Unconfined) => {
                (settings.reject_unconfined_seccomp, "a filter where there is none")
            }
            Some(ProfileType::RuntimeDefault) => (settings.reject_default_seccomp, "the usual filter of system calls"),
            Some(ProfileType::Localhost) => (settings.reject_custom_seccomp, "a container's own filter"),
        };
        if is_rejected {
            return refuse(who, what);
        }
    }
    if let Some(who) = several(Field::Namespace).filter(|_| settings.reject_namespaces) {
        return refuse(&who, "namespaces");
    }
    if let Some(who) = several(Field::Sysctl).filter(|_| settings.reject_sysctls) {
        return refuse(&who, "kernel parameters");
    }
    are_there(settings, request, &container.name)
}

/// Whether the plugins are there that must be.
fn are_there(
    settings: &NriValidator,
    request: &api::ValidateContainerAdjustmentRequest,
    container: &str,
) -> Result<()> {
    let annotated = |key: &str| {
        let pod = request.pod.as_ref()?;
        let keys = [format!("{key}/container.{container}"), format!("{key}/pod"), key.to_owned()];
        keys.iter().find_map(|key| pod.annotations.get(key))
    };
    let tolerate = &settings.tolerate_missing_annotation;
    if let Some(value) = annotated(tolerate).filter(|_| !tolerate.is_empty()) {
        match value.as_str() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => return Ok(()),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => {}
            other => return Err(Error::invalid(format!("annotations.{tolerate}: {other:?} is not true or false"))),
        }
    }
    let mut required = settings.required_plugins.clone();
    if let Some(value) = annotated(REQUIRED) {
        let named: Vec<String> = serde_saphyr::from_str(value)
            .map_err(|error| Error::invalid(format!("annotations.{REQUIRED}: is not a list: {error}")))?;
        required.extend(named);
    }
    let is_there = |name: &String| {
        let mut plugins = request.plugins.iter();
        plugins.any(|plugin| plugin.name == *name || format!("{}-{}", plugin.index, plugin.name) == *name)
    };
    match required.iter().find(|name| !is_there(name)) {
        Some(missing) => Err(Error::refused(format!("plugin {missing:?}, which is required, is not there"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn request(owners: api::FieldOwners) -> api::ValidateContainerAdjustmentRequest {
        api::ValidateContainerAdjustmentRequest {
            container: Some(api::Container { id: "c".into(), name: "web".into(), ..Default::default() }),
            owners: Some(api::OwningPlugins { owners: [("c".to_owned(), owners)].into() }),
            plugins: vec![api::PluginInstance { name: "a".into(), index: "05".into() }],
            ..Default::default()
        }
    }

    #[test]
    fn what_is_rejected_names_who_did_it() {
        let hooks = api::FieldOwners { simple: [(Field::OciHooks.into(), "05-a".into())].into(), ..Default::default() };
        let sysctl = api::CompoundFieldOwners { owners: [("net.x".to_owned(), "05-a".to_owned())].into() };
        let sysctl =
            api::FieldOwners { compound: [(Field::Sysctl.into(), sysctl)].into(), ..api::FieldOwners::default() };
        let settings = NriValidator { reject_hooks: true, reject_sysctls: true, ..Default::default() };
        for (owners, words) in [(hooks.clone(), "05-a may not change hooks"), (sysctl, "05-a (net.x)")] {
            let error = check(&settings, &request(owners)).expect_err("rejected").to_string();
            assert!(error.contains(words), "{error}");
        }
        check(&NriValidator { reject_sysctls: true, ..Default::default() }, &request(hooks)).expect("allowed");
    }

    #[test]
    fn required_plugins_must_be_there_unless_a_pod_does_without() {
        let settings = NriValidator {
            required_plugins: vec!["05-a".into(), "b".into()],
            tolerate_missing_annotation: "tolerate".into(),
            ..Default::default()
        };
        let asked = |annotations: &[(&str, &str)]| {
            let annotations: BTreeMap<_, _> =
                annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            let pod = Some(api::PodSandbox { annotations, ..Default::default() });
            api::ValidateContainerAdjustmentRequest { pod, ..request(api::FieldOwners::default()) }
        };
        assert!(check(&settings, &asked(&[])).expect_err("missing").to_string().contains("\"b\""));
        check(&settings, &asked(&[("tolerate/container.web", "true")])).expect("tolerated");
        assert!(check(&settings, &asked(&[("tolerate/container.other", "true")])).is_err());
        assert!(check(&settings, &asked(&[("tolerate", "maybe")])).is_err());
        let own = asked(&[("required-plugins.noderesource.dev/pod", "[a, c]")]);
        assert!(check(&NriValidator::default(), &own).expect_err("missing").to_string().contains("\"c\""));
    }
}
