//! Annotations that crun gave a meaning, `run.oci.*`, and that its callers set for any runtime.
//!
//! Those of them that are not built are refused: whoever sets one relies on it.

use std::collections::HashMap;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use oci_spec::runtime::Spec;

use crate::error::{Error, Result};

/// What the annotations ask for.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Extensions {
    /// The groups of the caller stay: `podman run --group-add keep-groups`.
    pub keep_groups: bool,
    /// Where a seccomp listener goes when the profile does not say.
    pub seccomp_receiver: Option<PathBuf>,
    /// The filter itself, instead of one made from the profile.
    pub seccomp_program: Option<Vec<u8>>,
    /// A system call of the profile that nobody knows is an error.
    pub strict_seccomp: bool,
    /// A socket that gets the descriptor of the first process.
    pub pidfd_receiver: Option<PathBuf>,
    /// The mount option that carries the SELinux label, where it is not `context`.
    pub context_option: Option<&'static str>,
    /// The cgroup of the container below that of its systemd unit.
    pub subgroup: Option<String>,
    /// A cgroup below the container's, without limits, into which its first process is put: its own to manage.
    pub delegated: Option<String>,
    /// The mount that is to be the v1 hierarchy of systemd's name, for one in the container that knows no other.
    pub named_hierarchy: Option<PathBuf>,
    /// Files that get what hooks print: stdout, stderr.
    pub hook_output: [Option<PathBuf>; 2],
}

const PREFIX: &str = "run.oci.";

/// Asks for [`Extensions::named_hierarchy`].
pub const FORCE_V1: &str = "run.oci.systemd.force_cgroup_v1";

/// Asks for [`Extensions::seccomp_program`].
const SECCOMP_PROGRAM: &str = "run.oci.seccomp_bpf_data";

/// Words for [`Extensions::context_option`].
const CONTEXTS: &[&str] = &["context", "fscontext", "defcontext", "rootcontext"];

impl Extensions {
    /// Reads the annotations of a configuration.
    pub fn read(annotations: Option<&HashMap<String, String>>) -> Result<Self> {
        let mut found = Self::default();
        for (key, value) in annotations.into_iter().flatten() {
            let Some(name) = key.strip_prefix(PREFIX) else { continue };
            let wrong = |reason: &str| Error::invalid(format!("annotations[{key:?}]: {reason}"));
            let path = || {
                let path = PathBuf::from(value);
                if path.is_absolute() { Ok(Some(path)) } else { Err(wrong(&format!("{value:?} is not absolute"))) }
            };
            match name {
                "keep_original_groups" => found.keep_groups = is_set(value),
                "seccomp.receiver" => found.seccomp_receiver = path()?,
                "seccomp_bpf_data" => {
                    let decoded = BASE64.decode(value);
                    found.seccomp_program = Some(decoded.map_err(|error| wrong(&format!("no base64: {error}")))?);
                }
                "systemd.force_cgroup_v1" => found.named_hierarchy = path()?,
                "seccomp_fail_unknown_syscall" => found.strict_seccomp = is_set(value),
                "pidfd_receiver" => found.pidfd_receiver = path()?,
                "hooks.stdout" => found.hook_output[0] = path()?,
                "hooks.stderr" => found.hook_output[1] = path()?,
                "mount_context_type" => {
                    let known = CONTEXTS.iter().find(|word| *word == value);
                    found.context_option = Some(*known.ok_or_else(|| wrong(&format!("unknown type {value:?}")))?);
                }
                "systemd.subgroup" | "delegate-cgroup" => {
                    let is_name = !value.contains('/') && value != "." && value != "..";
                    let named = (!value.is_empty()).then(|| value.clone());
                    let named = if is_name { named } else { return Err(wrong(&format!("{value:?} is no name"))) };
                    *(if name == "delegate-cgroup" { &mut found.delegated } else { &mut found.subgroup }) = named;
                }
                "seccomp.plugins" | "handler" => {
                    return Err(Error::unsupported(format!("annotations[{key:?}]: not supported by this runtime")));
                }
                _ => {}
            }
        }
        Ok(found)
    }
}

/// Whether a filter will be in force.
pub fn is_filtered(spec: &Spec) -> bool {
    let given = spec.annotations().as_ref().is_some_and(|annotations| annotations.contains_key(SECCOMP_PROGRAM));
    given || spec.linux().as_ref().is_some_and(|linux| linux.seccomp().is_some())
}

fn is_set(value: &str) -> bool {
    !matches!(value, "0" | "false")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(key: &str, value: &str) -> Result<Extensions> {
        Extensions::read(Some(&HashMap::from([(key.to_owned(), value.to_owned())])))
    }

    #[test]
    fn annotations_are_taken_or_refused() {
        assert!(read("run.oci.keep_original_groups", "1").expect("taken").keep_groups);
        assert!(!read("run.oci.keep_original_groups", "0").expect("taken").keep_groups);
        let context = read("run.oci.mount_context_type", "rootcontext").expect("taken").context_option;
        assert_eq!(context, Some("rootcontext"));
        for (key, value) in [
            ("run.oci.handler", "krun"),
            ("run.oci.systemd.subgroup", "a/b"),
            ("run.oci.delegate-cgroup", ".."),
            ("run.oci.seccomp.receiver", "relative"),
            ("run.oci.systemd.force_cgroup_v1", "relative"),
            ("run.oci.seccomp_bpf_data", "#"),
            ("run.oci.mount_context_type", "x"),
        ] {
            let refused = read(key, value).expect_err(key).to_string();
            assert!(refused.starts_with(&format!("annotations[{key:?}]: ")), "{refused}");
        }
        assert_eq!(read("run.oci.systemd.subgroup", "x").expect("taken").subgroup.as_deref(), Some("x"));
        assert_eq!(read("run.oci.delegate-cgroup", "x").expect("taken").delegated.as_deref(), Some("x"));
        assert_eq!(read("run.oci.seccomp_bpf_data", "AQI=").expect("taken").seccomp_program, Some(vec![1, 2]));
        for (key, value) in [("run.oci.systemd.subgroup", ""), ("run.oci.future", "x"), ("other", "x")] {
            assert_eq!(read(key, value).expect(key), Extensions::default());
        }
    }
}
