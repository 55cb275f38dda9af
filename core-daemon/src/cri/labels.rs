//! Labels of records, as containerd's own interface writes them for whoever looks.

use std::collections::BTreeMap;

use crate::labels::Labels;

/// On a record: which of the two it is.
const KIND: &str = "io.cri-containerd.kind";
/// A pod sandbox.
pub(super) const SANDBOX: &str = "sandbox";
/// A container of a pod.
pub(super) const CONTAINER: &str = "container";

/// The kubelet's labels, and ours. One that is too long for a record is only in the extension.
pub(super) fn of(wanted: &BTreeMap<String, String>, kind: &str) -> Labels {
    let fits = |key: &String, value: &String| {
        let one = Labels::from([(key.clone(), value.clone())]);
        // What the daemon itself reads is not for clients of this interface to write.
        crate::labels::check(&one).is_ok() && !key.starts_with("containerd.io/") && !key.starts_with("io.containerd.")
    };
    let mut labels: Labels =
        wanted.iter().filter(|(key, value)| fits(key, value)).map(|(k, v)| (k.clone(), v.clone())).collect();
    labels.insert(KIND.to_owned(), kind.to_owned());
    labels
}
