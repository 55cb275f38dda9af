//! Images that other clients put into the namespace of pods. As with containerd their records get its label, and a record
//! under the image's id keeps the image until the kubelet removes it, whatever becomes of its names.

use gantry_proto::containerd::services::images::v1::Image as Record;

use crate::blocking::blocking;
use crate::cri::Cri;
use crate::error::{Doing as _, Kind, Result};
use crate::filter::Filter;
use crate::labels::GC_EXPIRE;

impl Cri {
    /// Takes over what other clients bring, until the daemon stops.
    pub async fn adopt_images(self) {
        loop {
            let cri = self.clone();
            if let Err(error) = blocking(move || cri.adopt_now()).await {
                tracing::warn!(%error, "take over images of other clients");
            }
            tokio::select! {
                () = self.parts().images.records.written() => {}
                () = self.parts().stopping.cancelled() => return,
            }
        }
    }

    fn adopt_now(&self) -> Result<()> {
        let everything = Filter::everything();
        for record in self.parts().images.records.list(self.context(), &everything)? {
            let name = record.name.clone();
            match self.adopt(record) {
                // Somebody removed it at the same time.
                Err(error) if error.kind() == Kind::NotFound => {}
                // One that cannot be taken over keeps no other from it.
                Err(error) => tracing::warn!(image = name, %error, "take over an image of another client"),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    fn adopt(&self, mut record: Record) -> Result<()> {
        let (images, context, known) = (&self.parts().images, self.context(), self.known_images());
        let mut labels = known.labels_for(&record.name);
        labels.retain(|key, value| record.labels.get(key) != Some(value));
        // What is to go by itself is not kept.
        if labels.is_empty() || record.labels.contains_key(GC_EXPIRE) {
            return Ok(());
        }
        let Some(id) = known.id_of(images, context, &record)? else { return Ok(()) };
        if record.name != id {
            let by_id = Record {
                name: id.clone(),
                labels: known.labels_for(&record.name),
                target: record.target.clone(),
                ..Record::default()
            };
            images.records.set(context, by_id).doing(|| format!("image {id}"))?;
        }
        // Last: a record with the label is not looked at again.
        let mask: Vec<String> = labels.keys().map(|key| format!("labels.{key}")).collect();
        record.labels = labels;
        images.records.update(context, &record, &mask).map(drop)
    }
}
