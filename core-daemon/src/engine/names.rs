//! Names of containers. The index is in memory and made from the records; a name is reserved while its container is made,
//! and the reservation ends with whoever holds it, so a creation that is given up leaves nothing taken.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use gantry_proto::namespace::Namespace;

use crate::error::{Error, Result};
use crate::id::ContainerId;

/// Longest name.
const MAX_NAME: usize = 128;

/// The names and ids of the engine's containers.
#[derive(Default)]
pub(super) struct Names {
    spaces: Mutex<HashMap<Namespace, Space>>,
}

#[derive(Default)]
struct Space {
    /// Who has a name, or is to get it.
    names: HashMap<String, ContainerId>,
    /// The names of the containers that are there. What is only reserved is not, so nobody finds it.
    ids: BTreeMap<String, String>,
}

/// A name and an id that nobody else gets until this is dropped.
pub(super) struct Reservation<'a> {
    names: &'a Names,
    namespace: Namespace,
    id: ContainerId,
    name: String,
    kept: bool,
}

impl Names {
    /// Reserves `name`, or one that is made up where it is empty.
    pub(super) fn reserve(&self, namespace: &Namespace, id: &ContainerId, name: &str) -> Result<Reservation<'_>> {
        let wished = if name.is_empty() { None } else { Some(checked(name)?) };
        let mut spaces = self.lock();
        let space = spaces.entry(namespace.clone()).or_default();
        let name = wished.unwrap_or_else(|| made_up(id, |name| space.names.contains_key(name)));
        if let Some(holder) = space.names.get(&name) {
            return Err(taken(&name, holder));
        }
        space.names.insert(name.clone(), id.clone());
        Ok(Reservation { names: self, namespace: namespace.clone(), id: id.clone(), name, kept: false })
    }

    /// Takes a container of an earlier daemon into the index.
    pub(super) fn learn(&self, namespace: &Namespace, id: &ContainerId, name: &str) {
        self.lock().entry(namespace.clone()).or_default().insert(name.to_owned(), id);
    }

    /// Gives a container another name, and answers with the name as it is kept.
    pub(super) fn rename(&self, namespace: &Namespace, id: &ContainerId, name: &str) -> Result<String> {
        let name = checked(name)?;
        let mut spaces = self.lock();
        let space = spaces.entry(namespace.clone()).or_default();
        match space.names.get(&name) {
            Some(holder) if holder != id => return Err(taken(&name, holder)),
            _ => {}
        }
        if let Some(old) = space.ids.get(id.as_str()) {
            space.names.remove(old);
        }
        space.insert(name.clone(), id);
        Ok(name)
    }

    /// Frees a container's name.
    pub(super) fn forget(&self, namespace: &Namespace, id: &ContainerId) {
        self.change(namespace, |space| {
            if let Some(name) = space.ids.remove(id.as_str()) {
                space.names.remove(&name);
            }
        });
    }

    /// Takes something out of a namespace's names, and the namespace where nothing is left.
    fn change(&self, namespace: &Namespace, take: impl FnOnce(&mut Space)) {
        let mut spaces = self.lock();
        if let Some(space) = spaces.get_mut(namespace) {
            take(space);
            if space.names.is_empty() {
                spaces.remove(namespace);
            }
        }
    }

    /// The container that `reference` names.
    pub(super) fn resolve(&self, namespace: &Namespace, reference: &str) -> Result<ContainerId> {
        let missing = || Error::not_found(format!("no such container: {reference}"));
        let spaces = self.lock();
        let space = spaces.get(namespace).ok_or_else(missing)?;
        let named = space.names.get(reference.strip_prefix('/').unwrap_or(reference));
        if let Some(id) = named.filter(|id| space.ids.contains_key(id.as_str())) {
            return Ok(id.clone());
        }
        if reference.is_empty() {
            return Err(Error::invalid("a container's name or id is required"));
        }
        let range = (Bound::Included(reference.to_owned()), Bound::Unbounded);
        let mut matches = space.ids.range(range).map(|(id, _)| id).take_while(|id| id.starts_with(reference));
        let first = matches.next().ok_or_else(missing)?;
        if first != reference && matches.next().is_some() {
            return Err(Error::invalid(format!(
                "container id {reference:?} fits several containers; write more of it"
            )));
        }
        ContainerId::parse(first)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Namespace, Space>> {
        self.spaces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Space {
    fn insert(&mut self, name: String, id: &ContainerId) {
        self.ids.insert(id.to_string(), name.clone());
        self.names.insert(name, id.clone());
    }
}

impl Reservation<'_> {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The container is made: the name is its own.
    pub(super) fn keep(mut self) {
        self.kept = true;
        self.names.learn(&self.namespace, &self.id, &self.name);
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.names.change(&self.namespace, |space| drop(space.names.remove(&self.name)));
        }
    }
}

fn taken(name: &str, holder: &ContainerId) -> Error {
    let holder = short(holder);
    let advice = "remove it first or choose another name";
    Error::already_exists(format!("container name {name:?} is in use by container {holder}; {advice}"))
}

/// An id as people see it.
pub(super) fn short(id: &ContainerId) -> &str {
    id.as_str().get(..12).unwrap_or(id.as_str())
}

fn checked(name: &str) -> Result<String> {
    let name = name.strip_prefix('/').unwrap_or(name);
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let rest = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
    if first && rest && name.len() <= MAX_NAME {
        return Ok(name.to_owned());
    }
    Err(Error::invalid(format!(
        "container name {name:?}: must start with a letter or digit, go on with letters, digits, '_', '.' and '-', and \
         have at most {MAX_NAME} characters"
    )))
}

/// A name for a container that was given none: two words that its id picks, and part of the id if those are taken.
fn made_up(id: &ContainerId, taken: impl Fn(&str) -> bool) -> String {
    let digits = u64::from_str_radix(id.as_str().get(..8).unwrap_or_default(), 16).unwrap_or_default();
    let pick = |words: &[&str], number: u64| {
        let count = u64::try_from(words.len()).unwrap_or(1);
        usize::try_from(number % count).ok().and_then(|index| words.get(index)).copied().unwrap_or("box").to_owned()
    };
    let name = format!("{}_{}", pick(QUALITIES, digits), pick(THINGS, digits >> 16));
    if taken(&name) { format!("{name}_{}", short(id)) } else { name }
}

const QUALITIES: &[&str] = &[
    "able", "amber", "ample", "brave", "breezy", "bright", "brisk", "calm", "candid", "clever", "copper", "crisp",
    "daring", "deft", "eager", "early", "earnest", "easy", "fair", "fleet", "fond", "frank", "fresh", "gentle", "glad",
    "golden", "grand", "hardy", "honest", "ivory", "jolly", "keen", "kind", "lively", "loyal", "lucid", "mellow",
    "merry", "mild", "neat", "nimble", "noble", "patient", "plucky", "polite", "proud", "quick", "quiet", "ready",
    "rosy", "rugged", "sharp", "silver", "sleek", "snug", "solid", "spry", "steady", "sunny", "swift", "tidy", "vivid",
    "warm", "wise",
];

const THINGS: &[&str] = &[
    "anchor", "barge", "beacon", "boom", "bow", "bridge", "buoy", "cabin", "cable", "cargo", "chart", "cleat",
    "compass", "crane", "crate", "deck", "derrick", "dock", "ferry", "flag", "fleet", "frame", "freight", "girder",
    "harbor", "hatch", "hawser", "hoist", "hold", "hook", "hull", "jetty", "keel", "ladder", "lantern", "ledger",
    "lighter", "lock", "mast", "mooring", "oar", "pallet", "pier", "pilot", "port", "pulley", "quay", "rail", "rigger",
    "rope", "rudder", "sail", "shackle", "skiff", "sling", "spar", "stern", "tackle", "tide", "tiller", "tug", "wharf",
    "winch", "yard",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn id(text: &str) -> ContainerId {
        ContainerId::parse(text).expect("id")
    }

    #[test]
    fn a_reservation_that_is_dropped_frees_the_name() {
        let (names, namespace) = (Names::default(), Namespace::parse("n").expect("namespace"));
        let reserved = names.reserve(&namespace, &id("aa11"), "web").expect("reserve");
        let taken = names.reserve(&namespace, &id("bb22"), "web").err().expect("taken");
        assert_eq!(taken.kind(), Kind::AlreadyExists);
        // Whoever asks meanwhile neither finds it nor frees it.
        for reference in ["web", "aa11", "aa"] {
            assert_eq!(names.resolve(&namespace, reference).expect_err(reference).kind(), Kind::NotFound);
        }
        names.forget(&namespace, &id("aa11"));
        assert!(names.reserve(&namespace, &id("bb22"), "web").is_err());
        drop(reserved);
        names.reserve(&namespace, &id("bb22"), "/web").expect("free again").keep();
        assert_eq!(names.resolve(&namespace, "web").expect("name"), id("bb22"));
        names.forget(&namespace, &id("bb22"));
        assert_eq!(names.resolve(&namespace, "web").expect_err("gone").kind(), Kind::NotFound);
        // What was only asked for leaves nothing either.
        assert!(names.reserve(&namespace, &id("cc33"), "not a name").is_err());
        drop(names.reserve(&namespace, &id("cc33"), "web").expect("reserve"));
        assert!(names.lock().is_empty());
    }

    #[test]
    fn ids_may_be_cut_short_while_that_is_unambiguous() {
        let (names, namespace) = (Names::default(), Namespace::parse("n").expect("namespace"));
        for (number, text) in ["abc1", "abc2", "abd3"].into_iter().enumerate() {
            names.learn(&namespace, &id(text), &format!("name{number}"));
        }
        assert_eq!(names.resolve(&namespace, "abd").expect("unique"), id("abd3"));
        assert_eq!(names.resolve(&namespace, "abc").expect_err("two").kind(), Kind::InvalidArgument);
        assert_eq!(names.resolve(&namespace, "abc1").expect("whole"), id("abc1"));
        assert!(names.resolve(&namespace, "").is_err());
    }

    #[test]
    fn made_up_names_are_valid_and_differ() {
        let first = made_up(&id("0123456789abcdef"), |_| false);
        assert_eq!(checked(&first).expect("valid"), first);
        let second = made_up(&id("0123456789abcdef"), |name| name == first);
        assert_ne!(first, second);
        for bad in ["", "-a", ".a", "a b", "a/b", "é"] {
            assert!(checked(bad).is_err(), "{bad}");
        }
    }
}
