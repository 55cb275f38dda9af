//! Records against files: what differs, and what mends it.
//!
//! The daemon works meanwhile, so every comparison is made in the order in which nothing that is just coming or going
//! looks damaged: files come before their records and go after them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use gantry_proto::containerd::services::containers::v1::Container;
use gantry_proto::containerd::services::content::v1::Info;
use gantry_proto::containerd::services::images::v1::Image;
use gantry_proto::containerd::services::leases::v1::Lease;
use gantry_proto::containerd::services::namespaces::v1::Namespace;
use gantry_proto::containerd::types::Sandbox;
use prost::Message;
use rung_spec::digest::Digest;

use super::{Parts, references, snapshots};
use crate::content::Damage;
use crate::error::Result;
use crate::metadata::schema::{CONTAINERS, CONTENT, IMAGES, LEASES, NAMESPACES, SANDBOXES, Table};
use crate::metadata::{Tx as _, content as table, namespaces};

/// What a check found.
#[derive(Debug, Default)]
pub struct Report {
    /// What differs.
    pub findings: Vec<Finding>,
    /// Records and files looked at.
    pub checked: u64,
}

/// One thing that is not as it should be.
#[derive(Debug, Clone)]
pub struct Finding {
    /// A word for the kind of damage.
    pub kind: &'static str,
    /// The record's; empty for what is no namespace's.
    pub namespace: String,
    /// What is damaged.
    pub object: String,
    /// How.
    pub problem: String,
    /// What became of it.
    pub outcome: Outcome,
    /// What was done, or is to be done.
    pub remedy: String,
}

/// What became of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was not to be mended.
    Found,
    /// It is mended.
    Repaired,
    /// Only somebody else can mend it.
    Left,
}

/// What is wrong with what.
pub(super) struct Problem<'a> {
    pub(super) kind: &'static str,
    pub(super) namespace: &'a str,
    pub(super) object: String,
    pub(super) problem: String,
}

/// A check under way.
pub(super) struct Check<'a> {
    pub(super) parts: &'a Parts,
    repair: bool,
    deep: bool,
    report: Report,
}

pub(super) fn check(parts: &Parts, repair: bool, deep: bool) -> Result<Report> {
    let mut check = Check { parts, repair, deep, report: Report::default() };
    check.metadata()?;
    check.namespaces()?;
    check.records()?;
    check.blobs()?;
    check.files()?;
    snapshots::check(&mut check)?;
    references::check(&mut check)?;
    Ok(check.report)
}

impl Check<'_> {
    /// Counts what was looked at.
    pub(super) fn looked(&mut self, count: usize) {
        self.report.checked += count as u64;
    }

    /// Reports what `act` mends, and has it do so if it is to be mended; it may say more of what it did.
    pub(super) fn mend(&mut self, what: Problem<'_>, remedy: &str, act: impl FnOnce(&Parts) -> Result<Option<String>>) {
        let (outcome, remedy) = match self.repair.then(|| act(self.parts)) {
            None => (Outcome::Found, remedy.to_owned()),
            Some(Ok(did)) => (Outcome::Repaired, did.unwrap_or_else(|| remedy.to_owned())),
            Some(Err(error)) => (Outcome::Left, format!("{remedy}: {error}")),
        };
        self.add(what, outcome, remedy);
    }

    /// Reports what cannot be mended from here.
    pub(super) fn leave(&mut self, what: Problem<'_>, remedy: &str) {
        let outcome = if self.repair { Outcome::Left } else { Outcome::Found };
        self.add(what, outcome, remedy.to_owned());
    }

    fn add(&mut self, what: Problem<'_>, outcome: Outcome, remedy: String) {
        let Problem { kind, namespace, object, problem } = what;
        self.report.findings.push(Finding { kind, namespace: namespace.to_owned(), object, problem, outcome, remedy });
    }

    /// The pages of the database.
    fn metadata(&mut self) -> Result<()> {
        if self.deep && !self.parts.db.verify()? {
            let (object, problem) = (self.parts.db.path().display().to_string(), "its pages did not agree".to_owned());
            let what = Problem { kind: "metadata", namespace: "", object, problem };
            // The database mends itself in looking.
            self.add(what, Outcome::Repaired, "mended from its own copies".to_owned());
        }
        Ok(())
    }

    /// Every namespace that has something has a record: the collection goes by those.
    fn namespaces(&mut self) -> Result<()> {
        let missing = self.parts.db.read(|tx| {
            let mut used = BTreeSet::new();
            for table in crate::metadata::schema::ALL {
                tx.scan_all(table, &mut |namespace, _, _| {
                    if !namespace.is_empty() && !used.contains(namespace) {
                        used.insert(namespace.to_owned());
                    }
                    Ok(())
                })?;
            }
            let known = BTreeSet::from_iter(namespaces::names(tx)?);
            Ok(used.difference(&known).cloned().collect::<Vec<_>>())
        })?;
        for name in missing {
            let (object, problem) = (format!("namespace {name}"), "has records, and none of itself".to_owned());
            let what = Problem { kind: "namespace-missing", namespace: &name, object, problem };
            self.mend(what, "record it", |parts| parts.db.write(|tx| namespaces::touch(tx, &name)).map(|()| None));
        }
        Ok(())
    }

    /// Every record of a thing without files can be read: until then the collection removes nothing.
    fn records(&mut self) -> Result<()> {
        self.readable::<Image>(IMAGES, "image")?;
        self.readable::<Lease>(LEASES, "lease")?;
        self.readable::<Container>(CONTAINERS, "container")?;
        self.readable::<Sandbox>(SANDBOXES, "sandbox")?;
        for (_, name) in self.wrong::<Namespace>(NAMESPACES)? {
            let (object, problem) = (format!("namespace {name}"), "its record cannot be read".to_owned());
            // What is in it must not be without a namespace.
            self.mend(
                Problem { kind: "record", namespace: &name, object, problem },
                "record it without labels",
                |parts| {
                    let record = Namespace { name: name.clone(), ..Namespace::default() };
                    parts.db.write(|tx| namespaces::put(tx, &record)).map(|()| None)
                },
            );
        }
        Ok(())
    }

    fn readable<M: Message + Default>(&mut self, table: Table, what: &str) -> Result<()> {
        for (namespace, key) in self.wrong::<M>(table)? {
            self.unreadable(table, &namespace, &key, format!("{what} {key}"));
        }
        Ok(())
    }

    /// The records of a table that cannot be read: namespace and key.
    fn wrong<M: Message + Default>(&mut self, table: Table) -> Result<Vec<(String, String)>> {
        let (mut count, mut wrong) = (0, Vec::new());
        self.parts.db.read(|tx| {
            tx.scan_all(table, &mut |namespace, key, bytes| {
                count += 1;
                if M::decode(bytes).is_err() {
                    wrong.push((namespace.to_owned(), key.to_owned()));
                }
                Ok(())
            })
        })?;
        self.looked(count);
        Ok(wrong)
    }

    /// Reports a record that cannot be read, which is removed: it says nothing to anybody.
    pub(super) fn unreadable(&mut self, table: Table, namespace: &str, key: &str, object: String) {
        let problem = "its record cannot be read".to_owned();
        self.mend(Problem { kind: "record", namespace, object, problem }, "remove the record", |parts| {
            parts.db.write(|tx| tx.delete(table, namespace, key)).map(|_| None)
        });
    }

    /// Every recorded blob is there, and is what its name says.
    fn blobs(&mut self) -> Result<()> {
        let mut recorded: BTreeMap<(String, u64), Vec<String>> = BTreeMap::new();
        let mut wrong = Vec::new();
        self.parts.db.read(|tx| {
            tx.scan_all(CONTENT, &mut |namespace, key, bytes| {
                match Info::decode(bytes) {
                    Ok(info) if Digest::parse(key).is_ok() && info.digest == key => {
                        let size = u64::try_from(info.size).unwrap_or(0);
                        recorded.entry((key.to_owned(), size)).or_default().push(namespace.to_owned());
                    }
                    _ => wrong.push((namespace.to_owned(), key.to_owned())),
                }
                Ok(())
            })
        })?;
        self.looked(recorded.len() + wrong.len());
        for (namespace, key) in wrong {
            self.unreadable(CONTENT, &namespace, &key, format!("content {key}"));
        }
        for ((key, size), namespaces) in recorded {
            let Ok(digest) = Digest::parse(&key) else { continue };
            if let Some(damage) = self.parts.content.damage(&digest, size, self.deep)? {
                self.blob(&digest, damage, size, &namespaces)?;
            }
        }
        Ok(())
    }

    fn blob(&mut self, digest: &Digest, damage: Damage, size: u64, namespaces: &[String]) -> Result<()> {
        let kind = match damage {
            Damage::Missing => "blob-missing",
            Damage::Size(_) => "blob-size",
            Damage::Bytes => "blob-digest",
        };
        let mut is_aside = false;
        for namespace in namespaces {
            // A record that went meanwhile took its file with it.
            if self.parts.db.read(|tx| table::get(tx, namespace, digest.as_str()))?.is_none() {
                continue;
            }
            let problem = match damage {
                Damage::Size(_) => format!("{damage} instead of {size}"),
                _ => damage.to_string(),
            };
            let what = Problem { kind, namespace, object: format!("content {digest}"), problem };
            if damage == Damage::Missing {
                self.leave(what, "pull its image again");
            } else if is_aside {
                self.mend(what, "is out of the way; pull its image again", |_| Ok(None));
            } else {
                let deep = self.deep;
                self.mend(what, "move it out of the way, and pull its image again", |parts| {
                    let moved = |aside: PathBuf| {
                        format!("moved to {}; the next pull of its image fetches it again", aside.display())
                    };
                    let aside = parts.content.quarantine(digest, size, deep)?;
                    Ok(Some(aside.map_or_else(|| "came anew meanwhile".to_owned(), moved)))
                });
                is_aside = true;
            }
        }
        Ok(())
    }

    /// Every file of the content store is a blob that is recorded, or an ingest.
    fn files(&mut self) -> Result<()> {
        let content = &self.parts.content;
        let (orphans, strays, broken) = (content.orphans()?, content.strays()?, content.broken_ingests(false)?);
        self.looked(content.stored()?.len() + content.ingests()?.len() + broken.len());
        for digest in orphans {
            let (object, problem) = (format!("content {digest}"), "no record names its file".to_owned());
            let what = Problem { kind: "blob-orphan", namespace: "", object, problem };
            self.mend(what, "remove the file", |parts| parts.content.reclaim(&digest).map(|_| None));
        }
        for path in strays {
            let (object, problem) = (path.display().to_string(), "is no blob, but is among them".to_owned());
            let what = Problem { kind: "file-stray", namespace: "", object, problem };
            self.mend(what, "move it out of the way", |parts| {
                parts.content.set_aside(&path).map(|aside| Some(format!("moved to {}", aside.display())))
            });
        }
        for path in broken {
            let (object, problem) = (path.display().to_string(), "is no ingest, but is among them".to_owned());
            let what = Problem { kind: "ingest-broken", namespace: "", object, problem };
            self.mend(what, "remove it", |parts| parts.content.broken_ingests(true).map(|_| None));
        }
        Ok(())
    }
}
