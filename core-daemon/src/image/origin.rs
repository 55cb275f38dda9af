//! What a snapshotter that is another program is told of a layer, so that it may fetch that by itself.

use rung_spec::digest::Digest;
use rung_spec::image::Descriptor;

use crate::labels::{self, Labels};

/// Most annotations of a layer that become labels: a manifest says what it likes.
const MAX_ANNOTATIONS: usize = 32;

/// The image that layers are of.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    image: String,
    manifest: Digest,
}

impl Origin {
    /// The image of a record's name. None where that says nothing of a registry: it is the image's id.
    pub(super) fn of(name: &str, manifest: &Digest) -> Option<Self> {
        (!name.starts_with("sha256:")).then(|| Self { image: name.to_owned(), manifest: manifest.clone() })
    }
}

/// The labels of the lowest of `layers`, above which the others are.
pub(super) fn labels_of(origin: Option<&Origin>, layers: &[Descriptor]) -> Labels {
    let Some(layer) = layers.first() else { return Labels::new() };
    let is_for_it = |(key, value): &(&String, &String)| key.starts_with(labels::SNAPSHOT) && labels::fits(key, value);
    let annotations = layer.annotations.iter().filter(is_for_it).take(MAX_ANNOTATIONS);
    let mut all: Labels = annotations.map(|(key, value)| (key.clone(), value.clone())).collect();
    let Some(origin) = origin else { return all };
    let mut above = String::new();
    for layer in layers {
        let comma = if above.is_empty() { "" } else { "," };
        let more = format!("{above}{comma}{}", layer.digest);
        if !labels::fits(labels::LAYERS, &more) {
            break;
        }
        above = more;
    }
    for (key, value) in [
        (labels::LAYER_IMAGE, origin.image.clone()),
        (labels::LAYER_MANIFEST, origin.manifest.to_string()),
        (labels::LAYER_DIGEST, layer.digest.to_string()),
        (labels::LAYERS, above),
    ] {
        if labels::fits(key, &value) {
            all.insert(key.to_owned(), value);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_layers_are_named_as_a_label_holds() {
        let layer = |number: usize| {
            let digest = Digest::of(format!("layer {number}").as_bytes());
            let mut layer = Descriptor::new("application/vnd.oci.image.layer.v1.tar+gzip", digest, 1);
            let annotations = [("containerd.io/snapshot/x", "1"), ("containerd.io/other", "2")];
            layer.annotations = annotations.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
            layer
        };
        let layers: Vec<Descriptor> = (0..100).map(layer).collect();
        let manifest = Digest::of(b"manifest");
        let all = labels_of(Origin::of("docker.io/library/x:1", &manifest).as_ref(), &layers[1..]);
        let named: Vec<&str> = all[labels::LAYERS].split(',').collect();
        assert!(named.len() > 50 && named.len() < 99, "{}", named.len());
        assert_eq!(named[0], layers[1].digest.to_string());
        assert_eq!(all[labels::LAYER_DIGEST], layers[1].digest.to_string());
        assert_eq!(all[labels::LAYER_IMAGE], "docker.io/library/x:1");
        assert_eq!(all[labels::LAYER_MANIFEST], manifest.to_string());
        assert!(all.contains_key("containerd.io/snapshot/x") && !all.contains_key("containerd.io/other"));
        labels::check(&all).expect("they may be kept");
        assert!(Origin::of("sha256:0123", &manifest).is_none());
    }
}
