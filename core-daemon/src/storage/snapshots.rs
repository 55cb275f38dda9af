//! Snapshots: every record has its files and its parent, and all files have a record.

use std::collections::{BTreeMap, BTreeSet};

use gantry_proto::containerd::services::containers::v1::Container;
use prost::Message as _;

use super::Parts;
use super::check::{Check, Problem};
use crate::error::{Error, Result};
use crate::metadata::schema::{CONTAINERS, SNAPSHOT_CHILDREN, SNAPSHOTS, join};
use crate::metadata::snapshots::{self as table, Record};
use crate::metadata::{Tx, WriteTx};
use crate::snapshots::{Kind, Snapshotter};

/// Namespace, snapshotter and name.
type Name = (String, String, String);

/// The snapshots at one moment.
#[derive(Default)]
struct Records {
    all: BTreeMap<Name, Record>,
    /// Rows that cannot be read.
    wrong: Vec<(String, String)>,
    /// Rows that say of a snapshot that another stands on it: namespace and key.
    children: BTreeSet<(String, String)>,
    /// Containers by the snapshot they use.
    users: BTreeMap<Name, String>,
}

pub(super) fn check(check: &mut Check<'_>) -> Result<()> {
    let records = check.parts.db.read(Records::read)?;
    check.looked(records.all.len() + records.wrong.len());
    for (namespace, key) in &records.wrong {
        check.unreadable(SNAPSHOTS, namespace, key, format!("snapshot {}", key.replace('\0', "/")));
    }
    let snapshotters = check.parts.snapshotters.clone();
    for (name, snapshotter) in snapshotters.iter() {
        records.damaged(check, name, snapshotter.as_ref())?;
        let is_unread = records.wrong.iter().any(|(_, key)| key.split('\0').next() == Some(name));
        let orphans = match snapshotter.orphans() {
            // Whose the files are is not known before every record can be read.
            Err(_) if is_unread => continue,
            other => other?,
        };
        check.looked(orphans.len());
        for number in orphans {
            let (object, problem) = (format!("snapshot {name}/{number}"), "no record names its files".to_owned());
            check.mend(Problem { kind: "snapshot-orphan", namespace: "", object, problem }, "remove the files", |_| {
                snapshotter.cleanup()?;
                match snapshotter.orphans()?.contains(&number) {
                    true => Err(Error::unavailable("something is mounted from it, or it cannot be removed yet")),
                    false => Ok(None),
                }
            });
        }
    }
    records.lineage(check);
    for (at, container) in &records.users {
        if !records.all.contains_key(at) {
            let (namespace, snapshotter, name) = at;
            let problem = format!("its snapshot {snapshotter}/{name} is gone");
            let what =
                Problem { kind: "container-snapshot", namespace, object: format!("container {container}"), problem };
            check.leave(what, "remove the container, and make it again");
        }
    }
    Ok(())
}

impl Records {
    fn read(tx: &impl Tx) -> Result<Self> {
        let mut read = Self::default();
        tx.scan_all(SNAPSHOTS, &mut |namespace, key, bytes| {
            match (key.split_once('\0'), Record::decode(bytes)) {
                (Some((snapshotter, name)), Ok(record)) if record.info.name == name => {
                    drop(read.all.insert((namespace.into(), snapshotter.into(), name.into()), record));
                }
                _ => read.wrong.push((namespace.to_owned(), key.to_owned())),
            }
            Ok(())
        })?;
        tx.scan_all(SNAPSHOT_CHILDREN, &mut |namespace, key, _| {
            read.children.insert((namespace.to_owned(), key.to_owned()));
            Ok(())
        })?;
        tx.scan_all(CONTAINERS, &mut |namespace, id, bytes| {
            if let Ok(it) = Container::decode(bytes)
                && !it.snapshot_key.is_empty()
            {
                read.users.insert((namespace.to_owned(), it.snapshotter, it.snapshot_key), id.to_owned());
            }
            Ok(())
        })?;
        Ok(read)
    }

    /// Snapshots without files, or without the parent that they stand on.
    fn damaged(&self, check: &mut Check<'_>, snapshotter: &str, files: &dyn Snapshotter) -> Result<()> {
        let mut gone = BTreeSet::new();
        for (at, record) in self.all.iter().filter(|((_, of, _), _)| of == snapshotter) {
            let (namespace, _, name) = at;
            let parent = (namespace.clone(), snapshotter.to_owned(), record.info.parent.clone());
            let (kind, problem) = if !record.info.parent.is_empty() && !self.all.contains_key(&parent) {
                ("snapshot-parent", format!("its parent {} is gone", record.info.parent))
            } else if let Some(problem) = files.damage(record.number, record.info.kind()) {
                // A record that went meanwhile took its files with it.
                if check.parts.db.read(|tx| table::get(tx, namespace, snapshotter, name))?.is_none() {
                    continue;
                }
                ("snapshot-files", problem)
            } else {
                continue;
            };
            let what = Problem { kind, namespace, object: format!("snapshot {snapshotter}/{name}"), problem };
            let above = self.above(at);
            let user = above.iter().find_map(|at| self.users.get(at));
            let written = above.iter().find(|at| self.all.get(*at).is_some_and(|it| it.info.kind() == Kind::Active));
            match (user, written) {
                (Some(container), _) => {
                    // A layer is put under what stands on it.
                    let again = if record.info.kind() == Kind::Committed { "pull its image again, or " } else { "" };
                    let remedy = format!("container {container} stands on it: {again}remove that, and check again");
                    check.leave(what, &remedy);
                }
                (None, Some((_, _, key))) => {
                    check.leave(what, &format!("snapshot {key} stands on it: remove that, and check again"));
                }
                (None, None) => {
                    let remedy = "remove its record and what stands on it; the next pull unpacks it again";
                    check.mend(what, remedy, |parts| {
                        // It may have gone with one below it.
                        let left: Vec<&Name> = above.iter().filter(|at| gone.insert((*at).clone())).collect();
                        self.forget(parts, &left)?;
                        files.cleanup().map(|_| None)
                    });
                }
            }
        }
        Ok(())
    }

    /// A snapshot and all that stand on it, those on top first.
    fn above(&self, at: &Name) -> Vec<Name> {
        let mut found = vec![at.clone()];
        let mut next = 0;
        while let Some((namespace, snapshotter, name)) = found.get(next).cloned() {
            let is_child = |(of, record): &(&Name, &Record)| {
                of.0 == namespace && of.1 == snapshotter && record.info.parent == name && !found.contains(of)
            };
            let children: Vec<Name> = self.all.iter().filter(is_child).map(|(of, _)| of.clone()).collect();
            found.extend(children);
            next += 1;
        }
        found.reverse();
        found
    }

    fn forget(&self, parts: &Parts, names: &[&Name]) -> Result<()> {
        parts.db.write(|tx: &WriteTx| {
            for (namespace, snapshotter, name) in names {
                if let Some(record) = table::get(tx, namespace, snapshotter, name)? {
                    table::delete(tx, namespace, snapshotter, &record)?;
                }
            }
            Ok(())
        })
    }

    /// The rows that lead from parents to children say what the snapshots say.
    fn lineage(&self, check: &mut Check<'_>) {
        let rows = self.all.iter().filter(|(_, record)| !record.info.parent.is_empty());
        let row = |((namespace, snapshotter, name), record): (&Name, &Record)| {
            (namespace.clone(), join(&[snapshotter, &record.info.parent, name]))
        };
        let wanted: BTreeSet<(String, String)> = rows.map(row).collect();
        for (namespace, key) in self.children.symmetric_difference(&wanted) {
            let is_missing = wanted.contains(&(namespace.clone(), key.clone()));
            let problem = if is_missing { "is not recorded" } else { "is recorded, but the child is not" };
            let object = format!("descent {}", key.replace('\0', "/"));
            let what = Problem { kind: "snapshot-lineage", namespace, object, problem: problem.to_owned() };
            check.mend(what, "correct the record", |parts| {
                parts.db.write(|tx| correct(tx, namespace, key))?;
                Ok(None)
            });
        }
    }
}

/// Makes one row of descent say what is so now.
fn correct(tx: &WriteTx, namespace: &str, key: &str) -> Result<()> {
    let mut parts = key.splitn(3, '\0');
    let (snapshotter, parent, name) =
        (parts.next(), parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let child = table::get(tx, namespace, snapshotter.unwrap_or_default(), name)?;
    if child.is_some_and(|child| child.info.parent == parent) {
        return tx.put(SNAPSHOT_CHILDREN, namespace, key, &[]);
    }
    tx.delete(SNAPSHOT_CHILDREN, namespace, key).map(drop)
}
