//! Annotations of the runtime configuration, which shims, hooks and other runtimes read.

use std::collections::HashMap;

use super::Making;

/// Begin of the names that Kubernetes' runtimes agreed on.
const PREFIX: &str = "io.kubernetes.cri.";

pub(super) fn make(making: &Making<'_>) -> HashMap<String, String> {
    let pod = making.pod.metadata.clone().unwrap_or_default();
    let container = making.config.metadata.clone().unwrap_or_default();
    let image = making.config.image.as_ref().map(|image| match image.user_specified_image.as_str() {
        "" => image.image.clone(),
        specified => specified.to_owned(),
    });
    let mut annotations = passed(&making.handler.pod_annotations, &making.pod.annotations);
    annotations.extend(passed(&making.handler.container_annotations, &making.config.annotations));
    let own = [
        ("container-type", "container".to_owned()),
        ("sandbox-id", making.sandbox_id.to_owned()),
        ("sandbox-name", pod.name),
        ("sandbox-namespace", pod.namespace),
        ("sandbox-uid", pod.uid),
        ("container-name", container.name),
        ("image-name", image.unwrap_or_default()),
        ("sandbox-log-directory", making.pod.log_directory.clone()),
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
fn fits(pattern: &[u8], text: &[u8]) -> bool {
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
