//! Images as a person thinks of them: by a short name, a digest, or part of an id.

use std::collections::BTreeMap;
use std::sync::Arc;

use gantry_proto::gantry::engine::v1 as api;
use gantry_proto::time;
use rung_spec::platform::Platform;
use rung_spec::reference::Reference;
use serde_json::json;

use super::create::{parse_platform, pull_options};
use super::{Engine, Record};
use crate::context::Context;
use crate::error::{Error, Kind, Result};
use crate::filter::Filter;
use crate::image::{Progress, Pulled, Resolved};

/// What the name of an image begins with that has none: its digest follows.
pub(super) const NAMELESS: &str = "<none>";
/// Fewest characters of an id that stand for an image.
const MIN_PREFIX: usize = 4;

impl Engine {
    /// Pulls an image.
    ///
    /// # Errors
    /// One line that names what failed and what to do.
    pub async fn pull(
        &self,
        context: &Context,
        request: api::PullRequest,
        progress: Arc<dyn Progress>,
    ) -> Result<Pulled> {
        let reference = Reference::parse(&request.image).map_err(|error| Error::invalid(error.to_string()))?;
        let options = pull_options(parse_platform(&request.platform)?, request.registry);
        let pulled = self.parts().images.pull(context, &reference, options, progress).await?;
        self.note_image(context, "pull", &pulled.name);
        Ok(pulled)
    }

    /// The image that `text` names: by name, or by part of its id.
    pub(super) fn find_image(&self, context: &Context, text: &str, platform: Option<&Platform>) -> Result<Resolved> {
        let images = &self.parts().images;
        let reference = Reference::parse(text).ok();
        if let Some(reference) = &reference {
            match images.resolve(context, &reference.to_string(), platform) {
                Err(error) if error.kind() == Kind::NotFound => {}
                found => return found,
            }
        }
        // A record may stand under the very text, as other clients write them.
        match images.resolve(context, text, platform) {
            Err(error) if error.kind() == Kind::NotFound => {}
            found => return found,
        }
        let ids: BTreeMap<String, Resolved> = self
            .resolved(context, |digest| begins(digest, text))?
            .into_iter()
            .filter(|image| fits(image, text))
            .map(|image| (image.config_digest.to_string(), image))
            .collect();
        let mut found = ids.into_values();
        match (found.next(), found.next()) {
            (Some(image), None) => Ok(image),
            (Some(_), Some(_)) => {
                Err(Error::invalid(format!("image id {text:?} fits several images; write more of it")))
            }
            (None, _) if reference.is_none() => {
                Err(Error::invalid(format!("{text:?} is neither an image's name nor an id")))
            }
            (None, _) => Err(Error::not_found(format!("no such image: {text}"))),
        }
    }

    /// The images that can run here and have a digest that `fits`. The others are not looked at: there may be thousands.
    fn resolved(&self, context: &Context, fits: impl Fn(&str) -> bool) -> Result<Vec<Resolved>> {
        let images = &self.parts().images;
        let names = images.leading_to(context, fits)?;
        Ok(names.iter().filter_map(|name| images.resolve(context, name, None).ok()).collect())
    }

    /// All images of a namespace, newest first. One whose content is incomplete is listed without what is missing.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub fn list_images(&self, context: &Context) -> Result<Vec<api::Image>> {
        let images = &self.parts().images;
        let mut listed = Vec::new();
        for record in images.records.list(context, &Filter::everything())? {
            let resolved = images.resolve(context, &record.name, None);
            let damaged = resolved.as_ref().is_err_and(|error| error.kind() == Kind::DataLoss);
            let resolved = resolved.ok();
            let name = familiar(&record.name);
            listed.push(api::Image {
                id: resolved.as_ref().map(|image| image.config_digest.to_string()).unwrap_or_default(),
                name,
                digest: record.target.map(|target| target.digest).unwrap_or_default(),
                created_at: resolved.as_ref().and_then(created_at).or(record.created_at),
                size: resolved.as_ref().map_or(0, |image| image.size),
                damaged,
                labels: resolved.map(|image| image.config.config.labels.into_iter().collect()).unwrap_or_default(),
            });
        }
        listed.sort_by_key(|image| std::cmp::Reverse(image.created_at.map(|at| (at.seconds, at.nanos))));
        Ok(listed)
    }

    /// Everything known of an image, as JSON in docker's shape.
    ///
    /// # Errors
    /// `NotFound` without such an image.
    pub fn inspect_image(&self, context: &Context, text: &str) -> Result<String> {
        let image = self.find_image(context, text, None)?;
        let names = self.names_of(context, &image)?;
        let digests: Vec<String> = names
            .iter()
            .filter_map(|name| Reference::parse(name).ok())
            .map(|name| format!("{}@{}", name.familiar_name(), image.target.digest))
            .collect();
        let (config, process) = (&image.config, &image.config.config);
        let layers: Vec<String> = config.rootfs.diff_ids.iter().map(ToString::to_string).collect();
        let document = json!({
            "Id": image.config_digest.to_string(),
            "RepoTags": names.iter().map(|name| familiar(name)).filter(|name| !name.is_empty()).collect::<Vec<_>>(),
            "RepoDigests": digests,
            "Created": config.created,
            "Author": config.author,
            "Architecture": config.platform.architecture,
            "Os": config.platform.os,
            "Variant": config.platform.variant,
            "Size": image.size,
            "VirtualSize": image.size,
            "Parent": "",
            "Comment": config.history.last().and_then(|step| step.comment.clone()).unwrap_or_default(),
            "GraphDriver": { "Name": self.parts().snapshotters.default_name(), "Data": null },
            "Config": {
                "User": process.user,
                "Env": process.env,
                "Entrypoint": process.entrypoint,
                "Cmd": process.cmd,
                "WorkingDir": process.working_dir,
                "Labels": process.labels,
                "StopSignal": process.stop_signal,
                "ExposedPorts": process.exposed_ports,
                "Volumes": process.volumes,
                "Healthcheck": process.healthcheck,
            },
            "RootFS": { "Type": "layers", "Layers": layers },
            "Descriptor": { "mediaType": image.target.media_type, "digest": image.target.digest.to_string() },
        });
        Ok(document.to_string())
    }

    /// Removes an image's name, or all names of the image that part of an id stands for.
    ///
    /// # Errors
    /// `NotFound` without such an image, `FailedPrecondition` while a container is made of it, unless forced.
    pub fn remove_image(
        &self,
        context: &Context,
        request: &api::RemoveImageRequest,
    ) -> Result<api::RemoveImageResponse> {
        let image = match self.find_image(context, &request.image, None) {
            // What cannot be run can still be removed, under its name.
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::DataLoss) => {
                return self.remove_damaged(context, &request.image, error);
            }
            found => found?,
        };
        let names = self.names_of(context, &image)?;
        let exact = Reference::parse(&request.image).map(|name| name.to_string()).unwrap_or_default();
        let named = names.iter().any(|name| *name == exact || *name == request.image);
        let going: Vec<String> = match named {
            true => names.iter().filter(|name| **name == exact || **name == request.image).cloned().collect(),
            false if names.len() > 1 && !request.force => {
                let names = names.join(", ");
                return Err(Error::precondition(format!(
                    "image {}: has the names {names}; remove those, or all of them with --force",
                    request.image
                )));
            }
            false => names.clone(),
        };
        let last = going.len() == names.len();
        if last && !request.force {
            self.refuse_used(context, &image, &request.image)?;
        }
        for name in &going {
            self.parts().images.records.delete(context, name, None)?;
        }
        self.parts().gc.changed();
        if last {
            self.note_image(context, "delete", image.config_digest.as_str());
        }
        Ok(api::RemoveImageResponse {
            untagged: going.iter().map(|name| familiar(name)).filter(|name| !name.is_empty()).collect(),
            deleted: if last { vec![image.config_digest.to_string()] } else { Vec::new() },
        })
    }

    fn remove_damaged(&self, context: &Context, text: &str, missing: Error) -> Result<api::RemoveImageResponse> {
        let name = Reference::parse(text).map_or_else(|_| text.to_owned(), |name| name.to_string());
        match self.parts().images.records.delete(context, &name, None) {
            Err(error) if error.kind() == Kind::NotFound => return Err(missing),
            deleted => deleted?,
        }
        self.parts().gc.changed();
        Ok(api::RemoveImageResponse { untagged: vec![text.to_owned()], deleted: Vec::new() })
    }

    fn names_of(&self, context: &Context, image: &Resolved) -> Result<Vec<String>> {
        let same = |other: &Resolved| other.config_digest == image.config_digest;
        let all = self.resolved(context, |digest| digest == image.config_digest.as_str())?;
        Ok(all.into_iter().filter(same).map(|image| image.name).collect())
    }

    fn refuse_used(&self, context: &Context, image: &Resolved, text: &str) -> Result<()> {
        let id = image.config_digest.to_string();
        for container in self.parts().containers.list(&context.namespace, &Filter::everything())? {
            if let Ok(Some(record)) = Record::of(&container)
                && record.image_id == id
            {
                return Err(Error::precondition(format!(
                    "image {text}: container {} is made of it; remove that first, or the image with --force",
                    record.name
                )));
            }
        }
        Ok(())
    }
}

/// A recorded name as people write it; empty for an image without one.
pub(super) fn familiar(name: &str) -> String {
    if name.strip_prefix(NAMELESS).is_some_and(|rest| rest.starts_with('@')) {
        return String::new();
    }
    Reference::parse(name).map_or_else(|_| name.to_owned(), |name| name.familiar())
}

fn fits(image: &Resolved, text: &str) -> bool {
    begins(image.config_digest.as_str(), text) || begins(image.target.digest.as_str(), text)
}

/// Whether `text` is the beginning of a digest, long enough to stand for it.
fn begins(digest: &str, text: &str) -> bool {
    let wanted = text.strip_prefix("sha256:").unwrap_or(text);
    let hex = digest.split_once(':').map_or(digest, |(_, hex)| hex);
    wanted.len() >= MIN_PREFIX && hex.starts_with(wanted)
}

fn created_at(image: &Resolved) -> Option<prost_types::Timestamp> {
    let at: jiff::Timestamp = image.config.created.as_ref()?.parse().ok()?;
    Some(time::timestamp(at.into()))
}
