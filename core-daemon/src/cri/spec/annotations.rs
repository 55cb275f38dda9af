//! Annotations of the runtime configuration, which shims, hooks and other runtimes read.

use std::collections::HashMap;

use gantry_proto::runtime::v1;

use super::Making;
use crate::config::RuntimeHandler;

/// Begin of the names that Kubernetes' runtimes agreed on.
pub(super) const PREFIX: &str = "io.kubernetes.cri.";

pub(super) fn make(making: &Making<'_>) -> HashMap<String, String> {
    let container = making.config.metadata.clone().unwrap_or_default();
    let image = making.config.image.as_ref().map(|image| match image.user_specified_image.as_str() {
        "" => image.image.clone(),
        specified => specified.to_owned(),
    });
    let mut annotations = of_pod(making.sandbox_id, making.pod, making.handler);
    annotations.extend(passed(&making.handler.container_annotations, &making.config.annotations));
    let own = [
        ("container-type", "container".to_owned()),
        ("container-name", container.name),
        ("image-name", image.unwrap_or_default()),
    ];
    annotations.extend(own.into_iter().map(|(name, value)| (format!("{PREFIX}{name}"), value)));
    annotations
}

/// Annotations of the process that holds a pod.
pub(in crate::cri) fn sandbox(
    id: &str,
    pod: &v1::PodSandboxConfig,
    handler: &RuntimeHandler,
) -> HashMap<String, String> {
    let mut annotations = of_pod(id, pod, handler);
    let resources = pod.linux.as_ref().and_then(|linux| linux.resources.clone()).unwrap_or_default();
    let own = [
        ("container-type", "sandbox".to_owned()),
        ("sandbox-cpu-period", resources.cpu_period.to_string()),
        ("sandbox-cpu-quota", resources.cpu_quota.to_string()),
        ("sandbox-cpu-shares", resources.cpu_shares.to_string()),
        ("sandbox-memory", resources.memory_limit_in_bytes.to_string()),
    ];
    annotations.extend(own.into_iter().map(|(name, value)| (format!("{PREFIX}{name}"), value)));
    annotations
}

fn of_pod(id: &str, pod: &v1::PodSandboxConfig, handler: &RuntimeHandler) -> HashMap<String, String> {
    let metadata = pod.metadata.clone().unwrap_or_default();
    let mut annotations = passed(&handler.pod_annotations, &pod.annotations);
    let own = [
        ("sandbox-id", id.to_owned()),
        ("sandbox-name", metadata.name),
        ("sandbox-namespace", metadata.namespace),
        ("sandbox-uid", metadata.uid),
        ("sandbox-log-directory", pod.log_directory.clone()),
    ];
    annotations.extend(own.into_iter().map(|(name, value)| (format!("{PREFIX}{name}"), value)));
    annotations
}

/// The annotations that one of the patterns names.
fn passed(patterns: &[String], annotations: &std::collections::BTreeMap<String, String>) -> HashMap<String, String> {
    let wanted = |name: &String| patterns.iter().any(|pattern| fits(pattern.as_bytes(), name.as_bytes()));
    annotations.iter().filter(|(name, _)| wanted(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// `*` stands for any text without `/`, `?` for one character that is none.
pub(super) fn fits(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) if fits(rest, text) => true,
        (Some((b'*', _)), Some((byte, tail))) => *byte != b'/' && fits(pattern, tail),
        (Some((b'?', rest)), Some((byte, tail))) => *byte != b'/' && fits(rest, tail),
        (Some((wanted, rest)), Some((byte, tail))) => wanted == byte && fits(rest, tail),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, text) in [("a.b/*", "a.b/c"), ("*", "x"), ("a?c", "abc"), ("*.io/x", "gpu.io/x"), ("", "")] {
            assert!(fits(pattern.as_bytes(), text.as_bytes()), "{pattern} {text}");
        }
        for (pattern, text) in [("a.b/*", "a.b/c/d"), ("a", "ab"), ("a?", "a"), ("*", "a/b")] {
            assert!(!fits(pattern.as_bytes(), text.as_bytes()), "{pattern} {text}");
        }
    }
}
