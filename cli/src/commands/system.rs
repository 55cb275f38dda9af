//! `gantry system fsck`, `df` and `gc`: whether what is stored is whole, what takes space, and why it is kept.

use std::collections::BTreeMap;

use gantry_proto::gantry::system::v1 as api;
use serde_json::json;

use super::Context;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::output;
use crate::output::human::{decimal_size, harmless};
use crate::output::listing::{Column, Listing};

/// `gantry system fsck`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Leaves with 0 where all is well, 1 where everything found was mended, 4 where something is left, \
                        and 8 where it could not look."
)]
pub struct Fsck {
    /// Mend what can be mended
    #[arg(long)]
    repair: bool,
    /// Read every blob and all of the metadata
    #[arg(long)]
    deep: bool,
    /// json, or a template such as '{{.Kind}} {{.Object}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

/// `gantry system df`.
#[derive(Debug, clap::Args)]
pub struct Df {
    /// List every thing, and what keeps it
    #[arg(long, short)]
    verbose: bool,
    /// json, or a template such as '{{.Type}} {{.Size}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

/// `gantry system gc`.
#[derive(Debug, clap::Args)]
pub struct Gc {
    /// Say why an image, a digest, a snapshot, a container or a lease is kept, and remove nothing
    #[arg(long, value_name = "REF")]
    explain: Option<String>,
    /// json, for programs
    #[arg(long, value_name = "FORMAT", value_parser = ["json"])]
    format: Option<String>,
}

/// As fsck(8): everything was mended, something is left, it could not look.
const MENDED: Code = Code(1);
const LEFT: Code = Code(4);
const FAILED: Code = Code(8);

const FINDINGS: &[Column] = &[
    ("Kind", "KIND"),
    ("Namespace", "NAMESPACE"),
    ("Object", "OBJECT"),
    ("Problem", "PROBLEM"),
    ("Outcome", "OUTCOME"),
    ("Remedy", "REMEDY"),
];

impl Fsck {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        let request = api::CheckRequest { repair: self.repair, deep: self.deep };
        let checked = async { context.connect().await?.check(request).await };
        let answer = checked.await.map_err(|failure| failure.code(FAILED))?;
        let outcomes: Vec<api::Outcome> = answer.findings.iter().map(api::Finding::outcome).collect();
        let code = match &outcomes[..] {
            [] => Code::SUCCESS,
            all if all.iter().all(|outcome| *outcome == api::Outcome::Repaired) => MENDED,
            _ => LEFT,
        };
        let mut listing = Listing::new(FINDINGS);
        for finding in answer.findings {
            let outcome = match finding.outcome() {
                api::Outcome::Found => "found",
                api::Outcome::Repaired => "repaired",
                api::Outcome::Left => "left",
            };
            let api::Finding { kind, namespace, object, problem, remedy, .. } = finding;
            listing.row(vec![kind, namespace, object, problem, outcome.to_owned(), remedy]);
        }
        if outcomes.is_empty() && self.format.is_none() {
            output::line(format!("{} records and files: all is well", answer.checked))?;
            return Ok(code);
        }
        listing.print(self.format.as_deref(), &["Kind", "Namespace", "Object", "Problem", "Outcome", "Remedy"])?;
        Ok(code)
    }
}

const TOTALS: &[Column] =
    &[("Type", "TYPE"), ("TotalCount", "TOTAL"), ("Active", "KEPT"), ("Size", "SIZE"), ("Reclaimable", "RECLAIMABLE")];
const ITEMS: &[Column] = &[
    ("Type", "TYPE"),
    ("Namespace", "NAMESPACE"),
    ("Name", "NAME"),
    ("Size", "SIZE"),
    ("KeptBy", "KEPT BY"),
    ("Bytes", "BYTES"),
];

impl Df {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        let mut items = context.connect().await?.disk_usage().await?;
        items.sort_by(|a, b| (a.kind, &a.namespace, &a.name).cmp(&(b.kind, &b.namespace, &b.name)));
        let listing = if self.verbose { each(items) } else { totals(&items) };
        let shown: &[&str] = match self.verbose {
            true => &["Type", "Namespace", "Name", "Size", "KeptBy"],
            false => &["Type", "TotalCount", "Active", "Size", "Reclaimable"],
        };
        listing.print(self.format.as_deref(), shown)?;
        Ok(Code::SUCCESS)
    }
}

fn word(kind: api::Kind) -> &'static str {
    match kind {
        api::Kind::Image => "image",
        api::Kind::Container => "container",
        api::Kind::Blob => "blob",
        api::Kind::Snapshot => "snapshot",
        api::Kind::Ingest => "ingest",
        api::Kind::Log => "log",
        api::Kind::Unspecified => "unknown",
    }
}

fn each(items: Vec<api::Item>) -> Listing {
    let mut listing = Listing::new(ITEMS);
    for item in items {
        let kept_by = if item.kept_by.is_empty() { "nothing".to_owned() } else { item.kept_by.clone() };
        let (kind, bytes) = (word(item.kind()).to_owned(), item.size.to_string());
        listing.row(vec![kind, item.namespace, item.name, decimal_size(item.size), kept_by, bytes]);
    }
    listing
}

fn totals(items: &[api::Item]) -> Listing {
    let mut listing = Listing::new(TOTALS);
    let kinds = [
        (api::Kind::Image, "Images"),
        (api::Kind::Container, "Containers"),
        (api::Kind::Blob, "Blobs"),
        (api::Kind::Snapshot, "Snapshots"),
        (api::Kind::Ingest, "Ingests"),
        (api::Kind::Log, "Logs"),
    ];
    for (kind, name) in kinds {
        let of_it: Vec<&api::Item> = items.iter().filter(|item| item.kind() == kind).collect();
        let kept: Vec<&&api::Item> = of_it.iter().filter(|item| !item.kept_by.is_empty()).collect();
        let (all, held) = (size(of_it.iter().copied()), size(kept.iter().map(|item| **item)));
        let counts = (of_it.len().to_string(), kept.len().to_string());
        listing.row(vec![
            name.to_owned(),
            counts.0,
            counts.1,
            decimal_size(all),
            decimal_size(all.saturating_sub(held)),
        ]);
    }
    listing
}

/// Bytes of things, of which a blob is stored once for all namespaces.
fn size<'a>(items: impl Iterator<Item = &'a api::Item>) -> u64 {
    let mut sizes = BTreeMap::new();
    for item in items {
        let namespace = if item.kind() == api::Kind::Blob { "" } else { &item.namespace };
        sizes.insert((namespace, item.name.as_str()), item.size);
    }
    sizes.values().sum()
}

impl Gc {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        let mut client = context.connect().await?;
        match &self.explain {
            Some(name) => {
                let found = client.explain_kept(name).await?;
                let text = if self.format.is_some() { documents(&found) } else { lines(&found) };
                output::bytes(text.as_bytes())?;
            }
            None => {
                let it = client.collect().await?;
                let document = json!({
                    "Blobs": it.blobs, "Snapshots": it.snapshots, "Expired": it.expired, "Bytes": it.bytes, "Failed": it.failed,
                });
                let bytes = decimal_size(it.bytes);
                let text = format!("removed {} blobs ({bytes}) and {} snapshots", it.blobs, it.snapshots);
                output::line(if self.format.is_some() { document.to_string() } else { text })?;
                if it.failed > 0 {
                    return Err(Failure::new(format!("{} things could not be removed", it.failed))
                        .hint("gantryd's log says why; it tries again by itself"));
                }
            }
        }
        Ok(Code::SUCCESS)
    }
}

fn documents(found: &[api::Explanation]) -> String {
    let document = |it: &api::Explanation| {
        let way: Vec<_> = it.way.iter().map(|step| json!({ "By": step.by, "Object": step.object })).collect();
        format!("{}\n", json!({ "Object": it.object, "Kept": !way.is_empty(), "Way": way }))
    };
    found.iter().map(document).collect()
}

/// Each way as a stair, from what keeps the thing down to it.
fn lines(found: &[api::Explanation]) -> String {
    let mut text = String::new();
    for it in found {
        match &it.way[..] {
            [] => {
                text.push_str(&format!("{}: nothing keeps it; the next collection removes it\n", harmless(&it.object)))
            }
            [_] => text.push_str(&format!("{}: keeps itself until it is removed\n", harmless(&it.object))),
            way => {
                for (depth, step) in way.iter().enumerate() {
                    let by = if step.by.is_empty() { String::new() } else { format!("{} -> ", harmless(&step.by)) };
                    text.push_str(&format!("{:indent$}{by}{}\n", "", harmless(&step.object), indent = 2 * depth));
                }
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(kind: api::Kind, namespace: &str, name: &str, size: u64, kept_by: &str) -> api::Item {
        let (kind, own) = (kind.into(), str::to_owned);
        api::Item { kind, namespace: own(namespace), name: own(name), size, kept_by: own(kept_by) }
    }

    #[test]
    fn a_blob_of_several_namespaces_is_counted_once() {
        let blob = api::Kind::Blob;
        let items = [item(blob, "a", "x", 5, "image i"), item(blob, "b", "x", 5, ""), item(blob, "a", "y", 2, "")];
        assert_eq!(size(items.iter()), 7);
    }

    #[test]
    fn a_way_is_a_stair() {
        let step = |by: &str, object: &str| api::Step { by: by.to_owned(), object: object.to_owned() };
        let way = vec![step("", "image i"), step("target", "content d")];
        let found = [
            api::Explanation { object: "content d".to_owned(), way },
            api::Explanation { object: "content e".to_owned(), way: Vec::new() },
        ];
        let text = lines(&found);
        assert_eq!(
            text,
            "image i\n  target -> content d\ncontent e: nothing keeps it; the next collection removes it\n"
        );
    }
}
