//! Images made here: of a container's changes, and of a tar of files.

use std::io::{self, BufReader, Read, Write};

use gantry_proto::gantry::images::v1 as api;
use rung_spec::digest::{Algorithm, Digest, Hasher};
use rung_spec::image::{Descriptor, Manifest, media_types};
use rung_spec::platform::Platform;
use rung_spec::reference::Reference;
use serde_json::{Map, Value, json};

use super::create::parse_platform;
use super::etc::PLACES;
use super::images::NAMELESS;
use super::{Engine, Known, instructions};
use crate::blocking::{blocking, with_client};
use crate::content::Ingest;
use crate::context::Context;
use crate::diff;
use crate::error::{Doing, Error, Kind, Result};
use crate::image::layers::{NewLayer, compare};
use crate::image::{Names, Resolved, walk};
use crate::labels::{self, Labels};

/// Hours that a lease lasts for making an image.
const LEASE_HOURS: i64 = 24;

/// A layer that was made: as it is stored, and the digest of its plain tar.
struct Made {
    layer: Descriptor,
    diff_id: Digest,
}

impl Engine {
    /// Makes an image of one layer of a tar, which may be packed with gzip or zstd.
    ///
    /// # Errors
    /// `InvalidArgument` for a name, a platform or a change that is malformed, or for what is no tar.
    pub async fn import_files(
        &self,
        context: &Context,
        options: api::ImportOptions,
        archive: impl Read + Send + 'static,
    ) -> Result<String> {
        // Files of no known build run on what every processor of this kind can do, and other clients know no levels.
        let usual = || Platform { variant: None, ..Platform::host() };
        let platform = parse_platform(&options.platform)?.unwrap_or_else(usual);
        let name = record_name(&options.name)?;
        let (engine, context) = (self.clone(), context.clone());
        with_client(move || {
            engine.under_lease(&context, "import", |ctx| {
                let made = engine.store_layer(ctx, archive)?;
                let mut config = Map::new();
                instructions::apply(&mut config, &options.changes)?;
                let now = jiff::Timestamp::now().to_string();
                let comment = Some(options.message.as_str()).filter(|text| !text.is_empty()).unwrap_or("imported");
                let document = json!({
                    "created": now,
                    "architecture": platform.architecture,
                    "os": platform.os,
                    "variant": platform.variant,
                    "config": config,
                    "rootfs": {"type": "layers", "diff_ids": [made.diff_id.to_string()]},
                    "history": [{"created": now, "comment": comment}],
                });
                let id = engine.put_image(ctx, name.clone(), document, vec![made.layer], true)?;
                engine.note_image(ctx, "import", name.as_deref().unwrap_or(&id));
                Ok(id)
            })
        })
        .await
        .doing(|| "import")
    }

    /// Makes an image of a container: its image with one more layer of what has changed.
    ///
    /// # Errors
    /// `NotFound` for the container or its image; what reading its files fails with.
    pub async fn commit(&self, context: &Context, request: api::CommitRequest) -> Result<String> {
        let known = self.find(context, &request.r#ref)?;
        let name = record_name(&request.name)?;
        let live = self.running(&context.namespace, &known.id);
        let held = match live.filter(|_| request.pause) {
            Some(live) if live.task.hold().await? => Some(live),
            _ => None,
        };
        let (engine, context, what) = (self.clone(), context.clone(), known.record.name.clone());
        let made = blocking(move || {
            let made = engine.under_lease(&context, "commit", |ctx| engine.commit_held(ctx, &known, name, &request));
            made.inspect(|_| engine.note(&context.namespace, &known, "commit", &[("comment", &request.message)]))
        })
        .await;
        let resumed = match held {
            Some(live) => live.task.release().await,
            None => Ok(()),
        };
        let image = made.doing(|| format!("commit {what}"))?;
        resumed.doing(|| format!("container {what} stays paused: image {image} was made of it; resume"))?;
        Ok(image)
    }

    fn commit_held(
        &self,
        ctx: &Context,
        known: &Known,
        name: Option<String>,
        request: &api::CommitRequest,
    ) -> Result<String> {
        let base = self.image_of(ctx, known)?;
        let made = self.changes_of(ctx, known, &base)?;
        let bytes = self.parts().images.content.read(ctx, &base.config_digest, walk::MAX_DOCUMENT)?;
        let mut document: Value = serde_json::from_slice(&bytes).map_err(|error| Error::invalid(error.to_string()))?;
        let mut config = match document["config"].take() {
            Value::Object(config) => config,
            _ => Map::new(),
        };
        run_settings(&mut config, known);
        instructions::apply(&mut config, &request.changes)?;
        let now = jiff::Timestamp::now().to_string();
        document["config"] = Value::Object(config);
        document["created"] = json!(now);
        if !request.author.is_empty() {
            document["author"] = json!(request.author);
        }
        push(&mut document["rootfs"]["diff_ids"], json!(made.diff_id.to_string()));
        let mut step = json!({"created": now, "created_by": known.record.command.join(" ")});
        for (key, text) in [("author", &request.author), ("comment", &request.message)] {
            if !text.is_empty() {
                step[key] = json!(text);
            }
        }
        push(&mut document["history"], step);
        let mut layers = base.manifest.layers.clone();
        layers.push(made.layer);
        let is_oci = base.manifest.config.media_type != media_types::DOCKER_CONFIG;
        self.put_image(ctx, name, document, layers, is_oci)
    }

    /// The image that a container was made of.
    pub(super) fn image_of(&self, ctx: &Context, known: &Known) -> Result<Resolved> {
        let by_name = self.parts().images.resolve(ctx, &known.container.image, None);
        match by_name {
            Ok(image) if image.config_digest.as_str() == known.record.image_id => Ok(image),
            // The name stands for another image by now.
            _ => self.find_image(ctx, &known.record.image_id, None),
        }
    }

    /// What a container has changed, as a layer.
    fn changes_of(&self, ctx: &Context, known: &Known, base: &Resolved) -> Result<Made> {
        let snapshotter = self.parts().snapshotters.get(&known.container.snapshotter)?;
        let is_docker = base.manifest.config.media_type == media_types::DOCKER_CONFIG;
        let media_type = if is_docker { media_types::DOCKER_LAYER_GZIP } else { media_types::OCI_LAYER_GZIP };
        let wanted = NewLayer { media_type: media_type.to_owned(), mounted_on: &PLACES, ..NewLayer::default() };
        let layer = compare(ctx, snapshotter.as_ref(), &known.container.snapshot_key, |left, right| {
            self.parts().images.diff(ctx, left, right, &wanted)
        })?;
        let info = self.parts().images.content.info(ctx, &layer.digest)?;
        let diff_id = info.labels.get(labels::UNCOMPRESSED).and_then(|text| Digest::parse(text).ok());
        let diff_id =
            diff_id.ok_or_else(|| Error::internal(format!("layer {}: its plain digest is lost", layer.digest)))?;
        Ok(Made { layer, diff_id })
    }

    fn under_lease<T>(&self, context: &Context, what: &str, work: impl FnOnce(&Context) -> Result<T>) -> Result<T> {
        let leases = &self.parts().images.leases;
        let lease = leases.temporary(context, what, LEASE_HOURS)?;
        let done = work(&context.clone().with_lease(&lease.id));
        if let Err(error) = leases.end(context, &lease.id) {
            tracing::warn!(lease = lease.id, %error, "left a lease, which will expire");
        }
        self.parts().gc.changed();
        done
    }

    /// Stores a tar with gzip, whatever it is packed with now.
    fn store_layer(&self, ctx: &Context, archive: impl Read + Send) -> Result<Made> {
        let mut plain = diff::decompress_archive(BufReader::with_capacity(256 << 10, archive))?;
        let mut ingest = self.parts().images.content.writer_once(ctx, "layer-import", 0, None)?;
        let packed = pack(&mut plain, &mut ingest).doing(|| "read the archive");
        let (diff_id, length) = match packed {
            Ok(packed) => packed,
            Err(error) => {
                ingest.abort();
                return Err(error);
            }
        };
        if length == 0 {
            ingest.abort();
            return Err(Error::invalid("the archive is empty"));
        }
        let size = ingest.offset();
        let known = Labels::from([(labels::UNCOMPRESSED.to_owned(), diff_id.to_string())]);
        let digest = ingest.store(size, None, known)?;
        Ok(Made { layer: Descriptor::new(media_types::OCI_LAYER_GZIP, digest, size), diff_id })
    }

    /// Stores configuration and manifest, unpacks the layers, and records the image; answers with its id.
    fn put_image(
        &self,
        ctx: &Context,
        name: Option<String>,
        mut document: Value,
        layers: Vec<Descriptor>,
        is_oci: bool,
    ) -> Result<String> {
        let images = &self.parts().images;
        if document["variant"].is_null() && document.is_object() {
            document.as_object_mut().map(|members| members.remove("variant"));
        }
        let (config_type, manifest_type) = match is_oci {
            true => (media_types::OCI_CONFIG, media_types::OCI_MANIFEST),
            false => (media_types::DOCKER_CONFIG, media_types::DOCKER_MANIFEST),
        };
        let encode = |value: &Value| serde_json::to_vec(value).map_err(|error| Error::internal(error.to_string()));
        let bytes = encode(&document)?;
        let config = Descriptor::new(config_type, images.content.put(ctx, &bytes, Labels::new())?, bytes.len() as u64);
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(manifest_type.to_owned()),
            artifact_type: None,
            config,
            layers,
            subject: None,
            annotations: Default::default(),
        };
        let parsed = walk::parse_config(&manifest, &bytes)?;
        let text = serde_json::to_vec(&manifest).map_err(|error| Error::internal(error.to_string()))?;
        let digest = images.content.put(ctx, &text, crate::image::manifest_labels(&manifest))?;
        let target = Descriptor::new(manifest_type, digest, text.len() as u64);
        images.unpack_made(ctx, &manifest, &parsed)?;
        let name = name.unwrap_or_else(|| format!("{NAMELESS}@{}", target.digest));
        let mut unleased = ctx.clone();
        unleased.lease = None;
        for record in Names::one(name, Labels::new()).records(&target) {
            images.records.set(&unleased, record)?;
        }
        Ok(manifest.config.digest.to_string())
    }
}

fn record_name(text: &str) -> Result<Option<String>> {
    if text.is_empty() {
        return Ok(None);
    }
    let reference = Reference::parse(text).map_err(|error| Error::invalid(error.to_string()))?;
    if reference.digest.is_some() {
        return Err(Error::invalid(format!("{text}: a name to give cannot have a digest")));
    }
    Ok(Some(reference.to_string()))
}

fn push(list: &mut Value, item: Value) {
    match list.as_array_mut() {
        Some(list) => list.push(item),
        None => *list = json!([item]),
    }
}

/// What the container was run with stands over what its image says.
fn run_settings(config: &mut Map<String, Value>, known: &Known) {
    let (entrypoint, command) = known.record.command_parts();
    for (key, words) in [("Entrypoint", entrypoint), ("Cmd", command)] {
        config.insert(key.to_owned(), json!(Some(words).filter(|words| !words.is_empty())));
    }
    // Where nobody said it, the image's stands, as in records of before that do not know it.
    if !known.record.user.is_empty() {
        config.insert("User".to_owned(), json!(known.record.user));
    }
    for (key, value) in &known.container.labels {
        instructions::enter(config, "Labels", key.clone(), json!(value));
    }
    if let Some(check) = &known.record.health {
        config.insert("Healthcheck".to_owned(), check.shown());
    }
    let spec = known.container.spec.as_ref().map(|spec| spec.value.as_slice()).unwrap_or_default();
    let spec: Value = serde_json::from_slice(spec).unwrap_or_default();
    let process = &spec["process"];
    for variable in process["env"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if let Some((key, value)) = variable.split_once('=')
            && !matches!(key, "HOSTNAME" | "TERM" | "HOME")
        {
            instructions::set_variable(config, key, value);
        }
    }
    if let Some(directory) = process["cwd"].as_str().filter(|directory| *directory != "/") {
        config.insert("WorkingDir".to_owned(), json!(directory));
    }
}

/// Copies a plain tar into an ingest, packed; answers with the plain tar's digest and length.
fn pack(plain: &mut dyn Read, ingest: &mut Ingest) -> Result<(Digest, u64)> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    let (mut buffer, mut total) = (vec![0; 256 << 10], 0);
    loop {
        let length = match plain.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Error::new(Kind::DataLoss, error.to_string())),
        };
        hasher.update(&buffer[..length]);
        total += length as u64;
        encoder.write_all(&buffer[..length])?;
        ingest.write(&std::mem::take(encoder.get_mut()))?;
    }
    ingest.write(&encoder.finish()?)?;
    Ok((hasher.finish(), total))
}
