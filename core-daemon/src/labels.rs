//! Labels: the limits on them, the names that the daemon itself gives meaning to, and how an update mask changes them.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

/// Labels of any record.
pub type Labels = BTreeMap<String, String>;

/// Keeps an object as if a lease held it.
pub const GC_ROOT: &str = "containerd.io/gc.root";
/// When an image or lease stops keeping what it refers to, as RFC 3339.
pub const GC_EXPIRE: &str = "containerd.io/gc.expire";
/// On a lease: it keeps what it holds, but not what that refers to.
pub const GC_FLAT: &str = "containerd.io/gc.flat";
/// On a lease: the daemon itself works under it, and nobody does once that daemon has ended.
pub const TEMPORARY: &str = "gantry.lease/temporary";
/// From an object to content it needs; `.x` or `/x` may follow.
pub const GC_REF_CONTENT: &str = "containerd.io/gc.ref.content";
/// From an object to a snapshot it needs; the snapshotter's name and perhaps `/x` follow.
pub const GC_REF_SNAPSHOT: &str = "containerd.io/gc.ref.snapshot.";
/// From an object to an image it needs; `.x` or `/x` may follow.
pub const GC_REF_IMAGE: &str = "containerd.io/gc.ref.image";
/// From an object to a snapshot it needs as long as that is used: `usedat<24h|KEY`, the snapshotter's name follows.
pub const GC_COND_SNAPSHOT: &str = "containerd.io/gc.cond.snapshot";
/// On a snapshot: when it was last used, as RFC 3339, for those that need it only then.
pub const GC_COND_USED_AT: &str = "containerd.io/gc.cond.value-usedat";
/// On a namespace: its blobs are for all namespaces, be they isolated otherwise.
pub const SHAREABLE: &str = "containerd.io/namespace.shareable";
/// From content to an object which keeps it; the same with other names of kinds.
pub const GC_BACK_REF: &str = "containerd.io/gc.bref.";
/// On a compressed layer: the digest of its plain tar.
pub const UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// On fetched content: the repositories of a host it came from; the host's name without its port follows.
pub const DISTRIBUTION_SOURCE: &str = "containerd.io/distribution.source.";
/// On a snapshot to prepare: the committed snapshot which it is meant to become.
pub const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";
/// What labels of a snapshot begin with that are for the snapshotter itself.
pub const SNAPSHOT: &str = "containerd.io/snapshot/";
/// On a snapshot of a layer: the name of the image it is of, as snapshotters know it that fetch layers by themselves.
pub const LAYER_IMAGE: &str = "containerd.io/snapshot/cri.image-ref";
/// The same: the digest of the image's manifest.
pub const LAYER_MANIFEST: &str = "containerd.io/snapshot/cri.manifest-digest";
/// The same: the digest of the layer.
pub const LAYER_DIGEST: &str = "containerd.io/snapshot/cri.layer-digest";
/// The same: the digests of the layer and of those above it, as many as a label holds.
pub const LAYERS: &str = "containerd.io/snapshot/cri.image-layers";
/// On a snapshot: nobody needs it after a crash of the machine, so that nothing of it has to be flushed.
pub const SHORT_LIVED: &str = "gantry.snapshot/short-lived";
/// On a namespace: the snapshotter used where none is named.
pub const DEFAULT_SNAPSHOTTER: &str = "containerd.io/defaults/snapshotter";

/// How many repositories of a host are remembered of a blob.
const MAX_SOURCES: usize = 8;

/// Most bytes of a label's name and value together.
const MAX_SIZE: usize = 4096;

/// Whether a label may be kept.
pub fn fits(key: &str, value: &str) -> bool {
    !key.is_empty() && key.len() + value.len() <= MAX_SIZE
}

/// Checks labels that a client sets.
///
/// # Errors
/// `InvalidArgument` naming the label that is too long.
pub fn check(labels: &Labels) -> Result<()> {
    for (key, value) in labels {
        if key.is_empty() {
            return Err(Error::invalid("label with an empty name"));
        }
        if key.len() + value.len() > MAX_SIZE {
            let shown: String = key.chars().take(64).collect();
            return Err(Error::invalid(format!("label {shown:?}: name and value are longer than {MAX_SIZE} bytes")));
        }
    }
    Ok(())
}

/// The label that says which repositories of `registry` have a blob. It has no port, as containerd's clients write and read it.
pub fn distribution_source(registry: &str) -> String {
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    let host = registry.rsplit_once(':').filter(|(_, port)| is_port(port)).map_or(registry, |(host, _)| host);
    format!("{DISTRIBUTION_SOURCE}{}", host.trim_start_matches('[').trim_end_matches(']'))
}

/// Adds what is known of content by now. Where it came from is added to where it came from before, the newest first.
pub fn learn(known: &mut Labels, added: &Labels) {
    for (key, value) in added {
        let value = match known.get(key).filter(|_| key.starts_with(DISTRIBUTION_SOURCE)) {
            Some(before) => sources(value, before),
            None => value.clone(),
        };
        known.insert(key.clone(), value);
    }
}

/// Both lists as one.
fn sources(newer: &str, older: &str) -> String {
    let mut all = Vec::new();
    for name in newer.split(',').chain(older.split(',')) {
        if !name.is_empty() && !all.contains(&name) {
            all.push(name);
        }
    }
    all.truncate(MAX_SOURCES);
    all.join(",")
}

/// Drops labels without a value, which containerd does not keep.
pub fn drop_empty(labels: &mut Labels) {
    labels.retain(|_, value| !value.is_empty());
}

/// Changes `labels` as an update mask says: all of them without a mask or with `labels`, one with `labels.NAME`, where
/// an empty value removes it. `other` deals with any path that is not about labels.
///
/// # Errors
/// `InvalidArgument` for labels that are too long, and what `other` fails with.
pub fn update(
    labels: &mut Labels,
    wanted: &Labels,
    mask: &[String],
    mut other: impl FnMut(&str) -> Result<()>,
) -> Result<()> {
    if mask.is_empty() {
        labels.clone_from(wanted);
    }
    for path in mask {
        match path.strip_prefix("labels.") {
            Some(name) => match wanted.get(name).filter(|value| !value.is_empty()) {
                Some(value) => drop(labels.insert(name.to_owned(), value.clone())),
                None => drop(labels.remove(name)),
            },
            None if path == "labels" => labels.clone_from(wanted),
            None => other(path)?,
        }
    }
    drop_empty(labels);
    check(labels)
}

/// A number of bytes, as labels and options say it; units are powers of 1024, with or without `i` and `B`.
pub fn size(text: &str) -> Option<u64> {
    let digits = text.trim().trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let unit = text.trim()[digits.len()..].to_ascii_lowercase();
    let shift = match unit.trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return None,
    };
    let number: u64 = digits.trim().parse().ok()?;
    (number > 0).then(|| number.checked_mul(1 << shift)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn masks() {
        let refuse = |path: &str| Err(Error::invalid(path.to_owned()));
        let wanted = labels(&[("a.b/c", "2"), ("new", "3")]);
        let mut all = labels(&[("old", "1")]);
        update(&mut all, &wanted, &[], refuse).expect("no mask");
        assert_eq!(all, wanted);
        let mut one = labels(&[("old", "1"), ("gone", "x")]);
        update(&mut one, &wanted, &["labels.a.b/c".into(), "labels.gone".into()], refuse).expect("two names");
        assert_eq!(one, labels(&[("a.b/c", "2"), ("old", "1")]));
        assert!(update(&mut one, &wanted, &["size".into()], refuse).is_err());
    }

    #[test]
    fn sources_are_named_by_the_host_alone() {
        for (registry, host) in
            [("r.io", "r.io"), ("127.0.0.1:5000", "127.0.0.1"), ("[::1]:5000", "::1"), ("[::1]", "::1")]
        {
            assert_eq!(distribution_source(registry), format!("containerd.io/distribution.source.{host}"));
        }
    }

    #[test]
    fn sources_are_remembered_together() {
        let source = "containerd.io/distribution.source.example.org";
        let mut known = labels(&[(source, "a,b"), ("plain", "1,2")]);
        learn(&mut known, &labels(&[(source, "b"), ("plain", "3"), ("new", "x,x")]));
        assert_eq!(known, labels(&[(source, "b,a"), ("plain", "3"), ("new", "x,x")]));
        for number in 0..10 {
            learn(&mut known, &labels(&[(source, &number.to_string())]));
        }
        assert_eq!(known[source], "9,8,7,6,5,4,3,2");
    }

    #[test]
    fn limits() {
        assert!(check(&labels(&[("k", &"v".repeat(4095))])).is_ok());
        assert!(check(&labels(&[("k", &"v".repeat(4096))])).is_err());
    }

    #[test]
    fn sizes() {
        let good = [("1", 1), ("10g", 10 << 30), ("500MiB", 500 << 20), ("1 KB", 1 << 10), ("2T", 2 << 40)];
        for (text, bytes) in good {
            assert_eq!(size(text), Some(bytes), "{text}");
        }
        for text in ["", "0", "-1", "g", "1x", "1.5g", "99999999999t"] {
            assert_eq!(size(text), None, "{text}");
        }
    }
}
