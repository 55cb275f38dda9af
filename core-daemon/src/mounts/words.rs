//! What the types and options of mounts ask for before they are mounted.

use gantry_proto::containerd::types::{ActiveMount, Mount};

use crate::error::{Error, Result};

/// What is done to a mount's words, by a prefix of its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Templates in it are filled in.
    Format,
    /// Directories that its options name are made.
    MakeDirectories,
    /// Its source is made, an image of a file system.
    MakeImage,
}

/// The steps that a type asks for, and what is left of it.
pub(super) fn steps(kind: &str) -> (Vec<Step>, &str) {
    let (mut steps, mut rest) = (Vec::new(), kind);
    while let Some((prefix, after)) = rest.split_once('/') {
        steps.push(match prefix {
            "format" => Step::Format,
            "mkdir" => Step::MakeDirectories,
            "mkfs" => Step::MakeImage,
            _ => break,
        });
        rest = after;
    }
    (steps, rest)
}

/// Whether mounting it is more than a caller of mount(2) does.
pub(super) fn is_handled(kind: &str) -> bool {
    matches!(kind, "loop" | "erofs")
}

/// How many of the mounts the daemon makes; the one after them may still have steps. `None`: nothing is the daemon's.
pub(super) fn count(mounts: &[Mount], temporary: bool, allowed: &[String]) -> Option<usize> {
    let mut count = None;
    for (number, mount) in mounts.iter().enumerate() {
        let (steps, kind) = steps(&mount.r#type);
        let prefix = mount.r#type.split_once('/').map(|(prefix, _)| format!("{prefix}/*"));
        let is_allowed = |kind: &str| allowed.iter().any(|one| one == kind);
        if !steps.is_empty() && !is_allowed(&mount.r#type) && !prefix.as_deref().is_some_and(is_allowed) {
            count = Some(number);
        }
        if temporary || (is_handled(kind) && !is_allowed(kind)) {
            count = Some(number + 1);
        }
    }
    count
}

/// The mount with its templates filled in from those before it.
pub(super) fn format(mut mount: Mount, before: &[ActiveMount]) -> Result<Mount> {
    mount.source = fill(&mount.source, before)?;
    mount.target = fill(&mount.target, before)?;
    for option in &mut mount.options {
        *option = fill(option, before)?;
    }
    Ok(mount)
}

/// `{{ source N }}`, `{{ target N }}` and `{{ mount N }}` are those of mount N; `{{ overlay A B }}` the places of mounts A
/// to B, joined by colons, backwards where A is the greater.
fn fill(text: &str, before: &[ActiveMount]) -> Result<String> {
    let mut filled = String::new();
    let mut rest = text;
    while let Some((plain, after)) = rest.split_once("{{") {
        let malformed = || Error::invalid(format!("template {text:?} is malformed"));
        let (inside, after) = after.split_once("}}").ok_or_else(malformed)?;
        filled.push_str(plain);
        let words: Vec<&str> = inside.trim_matches('-').split_whitespace().collect();
        let number = |word: &str| word.parse::<usize>().map_err(|_| malformed());
        let get = |number: usize| {
            let count = before.len();
            let missing = || Error::invalid(format!("template {text:?}: mount {number} of {count} before it"));
            before.get(number).ok_or_else(missing)
        };
        let of = |active: &ActiveMount| active.mount.clone().unwrap_or_default();
        match words.as_slice() {
            ["source", at] => filled.push_str(&of(get(number(at)?)?).source),
            ["target", at] => filled.push_str(&of(get(number(at)?)?).target),
            ["mount", at] => filled.push_str(&get(number(at)?)?.mount_point),
            ["overlay", from, to] => {
                let (from, to) = (number(from)?, number(to)?);
                get(from.max(to))?;
                let mut places: Vec<&str> =
                    before[from.min(to)..=from.max(to)].iter().map(|active| active.mount_point.as_str()).collect();
                if from > to {
                    places.reverse();
                }
                filled.push_str(&places.join(":"));
            }
            _ => return Err(malformed()),
        }
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}
