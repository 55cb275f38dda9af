//! How an image came to be, and which images nobody needs any more.

use std::collections::HashSet;

use gantry_proto::gantry::images::v1 as api;
use rung_spec::image::chain_ids;

use super::images::{NAMELESS, familiar};
use super::{Engine, Record};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::filter::Filter;
use crate::image::Resolved;
use crate::records::images::Image;

/// What stands for the id of a step that is no image of its own.
const MISSING: &str = "<missing>";
/// The label by which Kubernetes keeps an image.
const PINNED: &str = "io.cri-containerd.pinned";

impl Engine {
    /// The steps of an image, newest first.
    ///
    /// # Errors
    /// `NotFound` without such an image.
    pub fn history(&self, context: &Context, text: &str) -> Result<Vec<api::Step>> {
        let image = self.find_image(context, text, None)?;
        let chain = chain_ids(&image.config.rootfs.diff_ids);
        let snapshotter = self.parts().snapshotters.get("")?;
        // For a layer that is not unpacked only its compressed size is known.
        let sizes: Vec<u64> = chain
            .iter()
            .zip(&image.manifest.layers)
            .map(|(id, layer)| snapshotter.usage(context, id.as_str()).map_or(layer.size, |usage| usage.size))
            .collect();
        // Layers that no step accounts for are the lowest: a step is written down when its layer is put on top.
        let told = image.config.history.iter().filter(|step| !step.empty_layer).count();
        let mut sizes = sizes.into_iter();
        let lowest = sizes.by_ref().take(chain.len().saturating_sub(told));
        let untold = |size| api::Step { id: MISSING.to_owned(), size, ..api::Step::default() };
        let mut steps: Vec<api::Step> = lowest.map(untold).collect();
        for step in &image.config.history {
            let created = step.created.as_deref().and_then(|text| text.parse::<jiff::Timestamp>().ok());
            steps.push(api::Step {
                id: MISSING.to_owned(),
                created_at: created.map(time_of),
                created_by: step.created_by.clone().unwrap_or_default(),
                size: if step.empty_layer { 0 } else { sizes.next().unwrap_or(0) },
                comment: step.comment.clone().unwrap_or_default(),
            });
        }
        steps.reverse();
        if let Some(newest) = steps.first_mut() {
            newest.id = image.config_digest.to_string();
        }
        Ok(steps)
    }

    /// Removes images that no container is made of: those without a name, or all.
    ///
    /// # Errors
    /// When the records cannot be read or written.
    pub async fn prune_images(&self, context: &Context, request: api::PruneRequest) -> Result<api::PruneResponse> {
        let (engine, ctx) = (self.clone(), context.clone());
        let (untagged, deleted) = crate::blocking::blocking(move || engine.prune_names(&ctx, &request)).await?;
        let swept = self.parts().gc.collect().await?;
        Ok(api::PruneResponse { untagged, deleted, freed: swept.bytes })
    }

    fn prune_names(&self, context: &Context, request: &api::PruneRequest) -> Result<(Vec<String>, Vec<String>)> {
        let images = &self.parts().images;
        let used = self.used_images(context)?;
        let (mut untagged, mut deleted) = (Vec::new(), Vec::new());
        for record in images.records.list(context, &Filter::everything())? {
            let is_nameless = record.name.starts_with(&format!("{NAMELESS}@"));
            if !(request.all || is_nameless) || record.labels.get(PINNED).is_some_and(|value| value == "pinned") {
                continue;
            }
            // An image that cannot be resolved may be removed too.
            let resolved = images.resolve(context, &record.name, None).ok();
            let id = resolved.as_ref().map(|image| image.config_digest.to_string()).unwrap_or_default();
            if used.contains(&id) || used.contains(&record.name) || !fits(&record, resolved.as_ref(), request)? {
                continue;
            }
            images.records.delete(context, &record.name, record.target.as_ref())?;
            if !is_nameless {
                untagged.push(familiar(&record.name));
            }
            if !id.is_empty() && !deleted.contains(&id) {
                deleted.push(id);
            }
        }
        Ok((untagged, deleted))
    }

    /// Ids and names of images that containers are made of, whoever made them.
    fn used_images(&self, context: &Context) -> Result<HashSet<String>> {
        let mut used = HashSet::new();
        for container in self.parts().containers.list(&context.namespace, &Filter::everything())? {
            if let Ok(Some(record)) = Record::of(&container) {
                used.insert(record.image_id);
            }
            used.insert(container.image);
        }
        Ok(used)
    }
}

fn fits(record: &Image, image: Option<&Resolved>, request: &api::PruneRequest) -> Result<bool> {
    if let Some(before) = &request.before {
        let made = image.and_then(|image| image.config.created.as_deref()?.parse::<jiff::Timestamp>().ok());
        let made = made.map(|made| made.as_second()).or(record.created_at.map(|at| at.seconds)).unwrap_or(0);
        if made >= before.seconds {
            return Ok(false);
        }
    }
    let labels = image.map(|image| &image.config.config.labels);
    for wanted in &request.labels {
        let (negated, text) = wanted.strip_prefix('!').map_or((false, wanted.as_str()), |text| (true, text));
        let (key, value) = text.split_once('=').map_or((text, None), |(key, value)| (key, Some(value)));
        if key.is_empty() {
            return Err(Error::invalid(format!("label {wanted:?} has no name")));
        }
        let held = labels.and_then(|labels| labels.get(key));
        let is_there = held.is_some_and(|held| value.is_none_or(|value| value == held));
        if is_there == negated {
            return Ok(false);
        }
    }
    Ok(true)
}

fn time_of(at: jiff::Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: at.as_second(), nanos: at.subsec_nanosecond() }
}
