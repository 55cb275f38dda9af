//! Images that leave and come: pushed, saved into archives and loaded from them, and what registries say of them.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::Arc;

use gantry_proto::gantry::images::v1 as api;
use rung_spec::reference::Reference;

use super::Engine;
use super::create::{access, parse_platform};
use super::images::NAMELESS;
use crate::blocking::blocking;
use crate::context::Context;
use crate::error::{Doing, Error, Kind, Result};
use crate::image::archive::{ExportOptions, Exported, ImportOptions};
use crate::image::naming::MoreName;
use crate::image::{Choice, Names, Progress, PushOptions, Pushed, Quiet, Unpack};

impl Engine {
    /// Pushes an image to the registry that its name says.
    ///
    /// # Errors
    /// One line that names what failed and what to do.
    pub async fn push(
        &self,
        context: &Context,
        request: api::PushRequest,
        progress: Arc<dyn Progress>,
    ) -> Result<Pushed> {
        let to = reference(&request.image)?;
        let (images, ctx, text) = (self.clone(), context.clone(), request.image.clone());
        let name = blocking(move || images.recorded(&ctx, &text)).await?;
        let platform = parse_platform(&request.platform)?;
        let options = PushOptions {
            what_is_here: platform.is_none(),
            platforms: platform.into_iter().collect(),
            foreign: request.foreign,
            access: access(request.registry),
        };
        let pushed = self.parts().images.push(context, &name, &to, options, progress).await?;
        self.note_image(context, "push", &name);
        Ok(pushed)
    }

    /// The name that an image is recorded by, which may be just what a person writes.
    fn recorded(&self, context: &Context, text: &str) -> Result<String> {
        let records = &self.parts().images.records;
        let full = reference(text)?.to_string();
        for name in [full.as_str(), text] {
            match records.get(context, name) {
                Err(error) if error.kind() == Kind::NotFound => {}
                found => return found.map(|image| image.name),
            }
        }
        Err(Error::not_found(format!("no such image: {text}")))
    }

    /// Loads the images of an archive.
    ///
    /// # Errors
    /// As [`crate::image::Images::import`].
    pub async fn load(
        &self,
        context: &Context,
        options: api::LoadOptions,
        archive: impl Read + Send + 'static,
    ) -> Result<Vec<api::Loaded>> {
        let platform = parse_platform(&options.platform)?;
        let choice = Choice { documents: true, ..self.parts().images.choice(platform) };
        let unpacks = choice.platforms().into_iter().map(|platform| Unpack { platform, snapshotter: String::new() });
        let any_name = MoreName { is_prefix: true, allow_overwrite: true, ..MoreName::default() };
        let options = ImportOptions {
            unpacks: unpacks.collect(),
            names: Names { more: vec![any_name], ..Names::default() },
            nameless: Some(NAMELESS.to_owned()),
            compress: false,
            choice,
        };
        let platform = options.choice.platforms.first().cloned();
        let images = self.parts().images.clone();
        let imported = images.import(context, archive, options, Arc::new(Quiet)).await?;
        for image in &imported {
            self.note_image(context, "load", &image.name);
        }
        let ctx = context.clone();
        blocking(move || {
            let loaded = |image: crate::image::archive::Imported| {
                // An artifact has no configuration that could be an id.
                let resolved = images.resolve_target(&ctx, &image.name, image.target.clone(), platform.as_ref());
                let id = resolved.map_or(image.target.digest, |image| image.config_digest);
                api::Loaded { name: super::images::familiar(&image.name), id: id.to_string() }
            };
            Ok(imported.into_iter().map(loaded).collect())
        })
        .await
    }

    /// Writes an archive of images.
    ///
    /// # Errors
    /// `NotFound` for an image; as [`crate::image::Images::export`].
    pub async fn save(
        &self,
        context: &Context,
        request: api::SaveRequest,
        to: impl Write + Send + 'static,
    ) -> Result<()> {
        let platform = parse_platform(&request.platform)?;
        let (engine, ctx, names, wanted) = (self.clone(), context.clone(), request.images, platform.clone());
        let exported = blocking(move || {
            let one = |text: &String| match engine.recorded(&ctx, text) {
                Ok(name) => {
                    let target = engine.parts().images.records.get(&ctx, &name)?.target.unwrap_or_default();
                    Ok(Exported { name: Some(name), target: crate::image::walk::descriptor(&target)? })
                }
                // What is asked for by its id has no name in the archive.
                Err(_) => engine
                    .find_image(&ctx, text, wanted.as_ref())
                    .map(|image| Exported { name: None, target: image.target }),
            };
            names.iter().map(one).collect::<Result<Vec<_>>>()
        })
        .await?;
        let options = ExportOptions {
            what_is_here: platform.is_none(),
            choice: self.parts().images.choice(platform),
            ..ExportOptions::default()
        };
        self.parts().images.export(context, &exported, &options, to).await.doing(|| "save")?;
        for image in &exported {
            self.note_image(context, "save", image.name.as_deref().unwrap_or(image.target.digest.as_str()));
        }
        Ok(())
    }

    /// Which hosts stand for an image's registry, and what each says.
    ///
    /// # Errors
    /// When what is configured of the registry cannot be read.
    pub async fn explain_registry(&self, request: api::ExplainRequest) -> Result<Vec<api::Host>> {
        let reference = reference(&request.image)?;
        let found = self.parts().images.explain(&reference, &access(request.registry)).await?;
        let host = |host: crate::registry::Explained| {
            let (digest, error) = match host.outcome {
                Ok(digest) => (digest, String::new()),
                Err(error) => (String::new(), error),
            };
            let capabilities = host.capabilities.into_iter().map(str::to_owned).collect();
            api::Host { url: host.url, mirror: host.mirror, capabilities, account: host.account, digest, error }
        };
        Ok(found.into_iter().map(host).collect())
    }

    /// What a registry has that is about an image.
    ///
    /// # Errors
    /// What the registry says.
    pub async fn referrers(&self, request: api::ReferrersRequest) -> Result<api::ReferrersResponse> {
        let reference = reference(&request.image)?;
        let kind = Some(request.artifact_type.as_str()).filter(|kind| !kind.is_empty());
        let (subject, found) = self.parts().images.referrers(&reference, kind, &access(request.registry)).await?;
        let referrer = |it: rung_spec::image::Descriptor| api::Referrer {
            digest: it.digest.to_string(),
            media_type: it.media_type,
            artifact_type: it.artifact_type.unwrap_or_default(),
            size: it.size,
            annotations: it.annotations.into_iter().collect::<BTreeMap<_, _>>(),
        };
        let referrers = found.into_iter().map(referrer).collect();
        Ok(api::ReferrersResponse { subject: subject.digest.to_string(), referrers })
    }

    /// Finds out whether an account is good.
    ///
    /// # Errors
    /// `Unauthenticated` where it is not; what connecting fails with.
    pub async fn check_account(&self, request: api::LoginRequest) -> Result<()> {
        self.parts().images.check_account(&request.host, &access(request.registry)).await
    }
}

fn reference(text: &str) -> Result<Reference> {
    Reference::parse(text).map_err(|error| Error::invalid(error.to_string()))
}
