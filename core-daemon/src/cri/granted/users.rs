//! Users of a pod's own by annotation: the kubelet knows nothing of them, so the daemon chooses which ids of the machine they
//! are.
//!
//! They come from the ranges that `/etc/subuid` and `/etc/subgid` grant to one user (`cri.userns_owner`), and no pod has those
//! of another. Files of the kubelet's volumes are the same users' inside as outside, as in pods whose users the kubelet chose:
//! mounts translate them.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use gantry_proto::runtime::v1;
use rung_sys::idmap;

use crate::cri::Store;
use crate::error::{Doing as _, Error, Kind, Result};

/// How many ids a pod has that does not say.
const USUAL: u32 = 65_536;
/// Begin of a value that asks for ids chosen here.
const AUTO: &str = "auto";
/// What a value may say besides, in CRI-O's words, and why it does not come about.
const OTHERS: [(&str, &str); 3] = [
    ("map-to-root", "mounts translate ids: the pod's root has the files of the machine's"),
    ("uidmapping", "ids of the machine are not a pod's to choose"),
    ("gidmapping", "ids of the machine are not a pod's to choose"),
];

/// What an annotation asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cri) struct Wish {
    count: u32,
}

impl Wish {
    /// Reads `auto[:size=COUNT;keep-id=true]`; an empty value asks for nothing.
    pub(super) fn parse(value: &str) -> std::result::Result<Option<Self>, String> {
        let (mode, options) = value.split_once(':').unwrap_or((value, ""));
        match mode {
            AUTO => {}
            "" if options.is_empty() => return Ok(None),
            "private" => {
                return Err("private is not supported: ids of the machine are not a pod's to choose".to_owned());
            }
            _ => return Err(format!("{mode:?} is not supported, only {AUTO}")),
        }
        let mut wish = Self { count: USUAL };
        for option in options.split(';').filter(|option| !option.is_empty()) {
            let (name, text) = option.split_once('=').ok_or_else(|| format!("{option:?} is not NAME=VALUE"))?;
            if let Some((_, why)) = OTHERS.iter().find(|(other, _)| *other == name) {
                return Err(format!("{name} is not supported: {why}"));
            }
            match (name, text) {
                ("size", count) => {
                    let count = count.parse().ok().filter(|count| *count > 0);
                    wish.count = count.ok_or_else(|| format!("size: {text:?} is not a number of ids"))?;
                }
                // Files of volumes keep their owners in any case.
                ("keep-id", "true" | "false") => {}
                ("keep-id", _) => return Err(format!("keep-id: {text:?} is neither true nor false")),
                _ => return Err(format!("{name:?} is unknown")),
            }
        }
        Ok(Some(wish))
    }
}

/// First id and number of ids.
type Range = (u32, u32);

/// Which ids are given to pods that are being made.
#[derive(Debug, Default)]
pub(in crate::cri) struct Users {
    drawn: Arc<Mutex<BTreeSet<Range>>>,
}

/// Ids of a pod, which nobody else gets while this is there.
#[derive(Debug)]
pub(in crate::cri) struct Drawn {
    drawn: Arc<Mutex<BTreeSet<Range>>>,
    range: Range,
}

impl Drop for Drawn {
    fn drop(&mut self) {
        self.drawn.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.range);
    }
}

impl Drawn {
    /// Which users and which groups they are.
    pub(in crate::cri) fn ranges(&self) -> (Vec<idmap::Range>, Vec<idmap::Range>) {
        let (outside, count) = self.range;
        let one = vec![idmap::Range { inside: 0, outside, count }];
        (one.clone(), one)
    }

    /// The user namespace, as a kubelet would ask for it.
    pub(in crate::cri) fn namespace(&self) -> v1::UserNamespace {
        let (host_id, length) = self.range;
        let ids = vec![v1::IdMapping { host_id, container_id: 0, length }];
        v1::UserNamespace { mode: v1::NamespaceMode::Pod.into(), uids: ids.clone(), gids: ids }
    }
}

impl Users {
    /// Ids for a new pod that no other has.
    ///
    /// # Errors
    /// `FailedPrecondition` where `owner` is granted none, `ResourceExhausted` where all of them are taken.
    pub(in crate::cri) fn draw(&self, wish: Wish, owner: &str, store: &Store) -> Result<Drawn> {
        let granted = both(&read("/etc/subuid", owner)?, &read("/etc/subgid", owner)?);
        if granted.is_empty() {
            let text = format!("user {owner:?} is granted no ids in /etc/subuid and /etc/subgid (cri.userns_owner)");
            return Err(Error::precondition(text));
        }
        let mut drawn = self.drawn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken: Vec<Range> = drawn.iter().copied().collect();
        for pod in store.sandboxes() {
            let record = pod.record();
            let of_kubelet = record.config.as_ref().and_then(|pod| pod.linux.as_ref()?.security_context.as_ref());
            let of_kubelet = of_kubelet.and_then(|context| context.namespace_options.as_ref()?.userns_options.as_ref());
            let all = record.users.iter().chain(of_kubelet).flat_map(|users| users.uids.iter().chain(&users.gids));
            taken.extend(all.map(|ids| (ids.host_id, ids.length)));
        }
        let range = free(&granted, taken, wish.count).ok_or_else(|| {
            let text = format!("no {} ids are left of those that are granted to {owner:?}", wish.count);
            Error::new(Kind::ResourceExhausted, text)
        })?;
        drawn.insert(range);
        Ok(Drawn { drawn: self.drawn.clone(), range })
    }
}

/// The ranges that a file grants to a user.
fn read(path: &str, owner: &str) -> Result<Vec<Range>> {
    match std::fs::read_to_string(Path::new(path)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        text => Ok(granted(&text.doing(|| format!("read {path}"))?, owner)),
    }
}

/// Lines of `USER:FIRST:COUNT`. Never the machine's root.
fn granted(text: &str, owner: &str) -> Vec<Range> {
    let range = |line: &str| {
        let mut fields = line.split(':').map(str::trim);
        let user = fields.next()?;
        let (first, count): (u32, u32) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        (user == owner && first > 0 && count > 0 && first.checked_add(count).is_some()).then_some((first, count))
    };
    text.lines().filter_map(range).collect()
}

/// The ids that are in both.
fn both(users: &[Range], groups: &[Range]) -> Vec<Range> {
    let common = |one: Range, other: Range| {
        let (first, end) = (one.0.max(other.0), (one.0 + one.1).min(other.0 + other.1));
        (first < end).then(|| (first, end - first))
    };
    users.iter().flat_map(|one| groups.iter().filter_map(move |other| common(*one, *other))).collect()
}

/// The first `count` ids one after another of which none is taken.
fn free(granted: &[Range], mut taken: Vec<Range>, count: u32) -> Option<Range> {
    taken.sort_unstable();
    granted.iter().find_map(|(first, length)| {
        let (mut candidate, end) = (u64::from(*first), u64::from(*first) + u64::from(*length));
        for (start, many) in &taken {
            let (start, stop) = (u64::from(*start), u64::from(*start) + u64::from(*many));
            if start < candidate + u64::from(count) && candidate < stop {
                candidate = stop;
            }
        }
        let fits = candidate + u64::from(count) <= end;
        u32::try_from(candidate).ok().filter(|_| fits).map(|first| (first, count))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ids_that_are_chosen_here() {
        let count = |value| Wish::parse(value).map(|wish| wish.map(|wish| wish.count));
        assert_eq!(count(""), Ok(None));
        assert_eq!(count("auto"), Ok(Some(USUAL)));
        assert_eq!(count("auto:size=1000;keep-id=true"), Ok(Some(1000)));
        for (value, what) in [
            ("private", "not a pod's to choose"),
            ("private:uidmapping=0:0:10", "not a pod's to choose"),
            ("auto:uidmapping=0:0:10", "uidmapping is not supported"),
            ("auto:map-to-root=true", "map-to-root is not supported"),
            ("keep-id", "only auto"),
            ("auto:size=0", "size"),
            ("auto:size=-1", "size"),
            ("auto:size=4294967296", "size"),
            ("auto:keep-id=maybe", "keep-id"),
            ("auto:other=1", "unknown"),
            ("auto:x", "NAME=VALUE"),
            (":size=1", "only auto"),
        ] {
            assert!(count(value).expect_err(value).contains(what), "{value}");
        }
    }

    #[test]
    fn ids_that_nobody_has() {
        let text = "web:1:5\ncontainers:100000:200000\ncontainers:0:9\ncontainers:x:9\ncontainers:4294967295:9\n";
        assert_eq!(granted(text, "containers"), [(100_000, 200_000)]);
        assert_eq!(both(&[(100, 50), (200, 10)], &[(120, 100)]), [(120, 30), (200, 10)]);
        let range = [(100, 50)];
        assert_eq!(free(&range, vec![], 50), Some((100, 50)));
        assert_eq!(free(&range, vec![], 51), None);
        assert_eq!(free(&range, vec![(130, 5), (90, 20)], 20), Some((110, 20)));
        assert_eq!(free(&range, vec![(130, 5), (90, 20)], 21), None);
        assert_eq!(free(&[(100, 50), (500, 30)], vec![(0, 120), (110, 20)], 25), Some((500, 25)));
        assert_eq!(free(&range, vec![(0, u32::MAX)], 1), None);
        // One range in another does not lead back into it.
        assert_eq!(free(&[(0, 100)], vec![(0, 50), (10, 5)], 10), Some((50, 10)));
    }
}
