//! What a runtime must be able to do for a container, where it would not say that it cannot.

use gantry_proto::any;
use prost_types::Any;
use serde_json::Value;

use super::Tasks;
use crate::error::{Doing, Error, Result};

impl Tasks {
    /// Asks the runtime whether it knows id-mapped mounts, where the specification has some. Runtimes ignore what they
    /// do not know, and the volume would then be open to the wrong users.
    ///
    /// # Errors
    /// `FailedPrecondition` where the specification has such maps and the runtime does not know them.
    pub(super) async fn check_features(
        &self,
        program: &std::path::Path,
        options: Option<&Any>,
        spec: &[u8],
    ) -> Result<()> {
        if !maps_mounts(spec) {
            return Ok(());
        }
        let doing = || "mounts with id maps: ask the runtime what it can do";
        let info = self.launcher().info(program, options).await.doing(doing)?;
        let known = match &info.features {
            // A description that is not OCI's features document: the runtime is no relative of runc's, and is trusted.
            Some(features) if any::json_of(features, any::FEATURES).is_err() => true,
            Some(features) => serde_json::from_slice::<Value>(&features.value)
                .is_ok_and(|features| features.pointer("/linux/mountExtensions/idmap/enabled") == Some(&true.into())),
            None => false,
        };
        if known {
            return Ok(());
        }
        let name = program.display();
        Err(Error::precondition(format!("mounts with id maps: the features of {name} do not have them")))
    }
}

/// Whether a mount of the specification has id maps. Most have none, and searching the text is faster than parsing it.
fn maps_mounts(spec: &[u8]) -> bool {
    let has = |word: &[u8]| spec.windows(word.len()).any(|window| window == word);
    if ![b"idmap".as_slice(), b"Mappings"].into_iter().any(has) {
        return false;
    }
    let Ok(spec) = serde_json::from_slice::<Value>(spec) else { return false };
    let is_mapped = |mount: &Value| {
        let is_given = |key: &str| mount.get(key).is_some_and(|maps| !maps.is_null());
        let options = mount.get("options").and_then(Value::as_array);
        is_given("uidMappings")
            || is_given("gidMappings")
            || options.is_some_and(|all| all.iter().any(|one| *one == "idmap" || *one == "ridmap"))
    };
    spec.get("mounts").and_then(Value::as_array).is_some_and(|mounts| mounts.iter().any(is_mapped))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_with_maps() {
        let maps = |spec: &str| maps_mounts(spec.as_bytes());
        assert!(maps(r#"{"mounts":[{"destination":"/a","options":["bind","ridmap"]}]}"#));
        assert!(maps(r#"{"mounts":[{"destination":"/a","uidMappings":[{"containerID":0}]}]}"#));
        assert!(!maps(r#"{"mounts":[{"destination":"/a","uidMappings":null,"options":["ro"]}]}"#));
        assert!(!maps(r#"{"mounts":[],"linux":{"uidMappings":[{"containerID":0}]}}"#));
        assert!(!maps(r#"{"process":{"args":["idmap"]}}"#));
    }
}
