//! Interrupts keep off the processors of containers whose pods ask for that by annotation: CRI-O's `irq-load-balancing`.
//!
//! What the machine had before is in a file of the state directory for as long as any container has such processors. What is to
//! be follows from the containers alone, so whoever is the daemon when the last of them ends gives back what there was.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use gantry_proto::runtime::v1::ContainerState;
use rung_sys::atomic_file;
use rung_sys::sched::NumberSet;

use super::{Container, Cri};
use crate::blocking::blocking;
use crate::error::{Doing as _, Error, Result};

/// Where the kernel says which processors take which interrupt.
const PLACE: &str = "/proc/irq";
/// What holds for interrupts to come.
const DEFAULT: &str = "default_smp_affinity";
/// What holds for one that is there.
const OWN: &str = "smp_affinity";
/// Bits in each part of a mask's text.
const BITS: usize = 32;

/// Masks by the files that have them.
type Masks = BTreeMap<String, String>;

/// One change at a time.
#[derive(Debug, Clone, Default)]
pub(super) struct Interrupts(Arc<Mutex<()>>);

impl Cri {
    /// Keeps interrupts off the processors of a container that is about to run, has others, or has ended; nothing for one that
    /// does not ask for that.
    ///
    /// # Errors
    /// Names the annotation, and what the kernel does not take.
    pub(super) async fn settle_interrupts_of(&self, container: &Container) -> Result<()> {
        match self.processors_without_interrupts(container) {
            Some(_) => self.settle_interrupts().await.doing(|| "annotation irq-load-balancing.crio.io"),
            None => Ok(()),
        }
    }

    /// The same for all containers, after a start of the daemon.
    pub(super) async fn settle_interrupts_again(&self) {
        if self.masks_before().exists()
            && let Err(error) = self.settle_interrupts().await
        {
            tracing::warn!(%error, "keep interrupts off the processors of containers");
        }
    }

    async fn settle_interrupts(&self) -> Result<()> {
        let cri = self.clone();
        let settle = move || {
            let _turn = cri.shared.interrupts.0.lock().unwrap_or_else(PoisonError::into_inner);
            let containers = cri.store().containers();
            let alive = containers.iter().filter(|container| container.state() != ContainerState::ContainerExited);
            let kept = alive.filter_map(|container| cri.processors_without_interrupts(container));
            settle(Path::new(PLACE), &cri.masks_before(), &kept.collect::<Vec<_>>())
        };
        blocking(settle).await
    }

    fn masks_before(&self) -> PathBuf {
        self.parts().config.state.join("cri/interrupts.json")
    }
}

/// Makes the masks in `place` what they were before, without the processors of `kept`.
fn settle(place: &Path, before: &Path, kept: &[NumberSet]) -> Result<()> {
    let mut masks = match std::fs::read(before) {
        Err(error) if error.kind() == ErrorKind::NotFound && kept.is_empty() => return Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Masks::new(),
        bytes => {
            let unread = |error: serde_json::Error| Error::internal(format!("read {}: {error}", before.display()));
            serde_json::from_slice(&bytes.doing(|| format!("read {}", before.display()))?).map_err(unread)?
        }
    };
    if !kept.is_empty() {
        // Of an interrupt that has come since, the default was changed already.
        let default = masks.get(DEFAULT).cloned();
        for (file, mask) in look(place).doing(|| format!("read {}", place.display()))? {
            masks.entry(file).or_insert_with(|| default.clone().unwrap_or(mask));
        }
        let text = serde_json::to_vec(&masks).map_err(|error| Error::internal(error.to_string()))?;
        let parent = before.parent().unwrap_or(before);
        let written =
            std::fs::create_dir_all(parent).and_then(|()| Ok(atomic_file::write_volatile(before, &text, 0o600)?));
        written.doing(|| format!("write {}", before.display()))?;
    }
    for (file, mask) in &masks {
        let path = place.join(file);
        let wanted = without(mask, kept).ok_or_else(|| Error::internal(format!("{file}: {mask:?} is no mask")))?;
        match set(&path, &wanted) {
            Err(error) if file == DEFAULT => return Err(error).doing(|| format!("write {}", path.display())),
            // Gone, or of a device that lets nobody move it.
            Err(error) => tracing::debug!(%error, file, "an interrupt stays where it is"),
            Ok(()) => {}
        }
    }
    match kept.is_empty() {
        true => std::fs::remove_file(before).doing(|| format!("remove {}", before.display())),
        false => Ok(()),
    }
}

/// The masks as they are.
fn look(place: &Path) -> std::io::Result<Masks> {
    let read = |file: &str| std::fs::read_to_string(place.join(file)).map(|mask| mask.trim().to_owned());
    let mut masks = Masks::from([(DEFAULT.to_owned(), read(DEFAULT)?)]);
    for entry in std::fs::read_dir(place)? {
        let file = format!("{}/{OWN}", entry?.file_name().to_string_lossy());
        // One may go while this is read.
        if let Ok(mask) = read(&file) {
            masks.insert(file, mask);
        }
    }
    Ok(masks)
}

fn set(path: &Path, mask: &str) -> std::io::Result<()> {
    match std::fs::read_to_string(path)?.trim() == mask {
        true => Ok(()),
        // The kernel takes a mask in one write.
        false => std::fs::OpenOptions::new().write(true).truncate(true).open(path)?.write_all(mask.as_bytes()),
    }
}

/// A mask without some processors, and as it is where none would be left; `None` for what is no mask.
fn without(mask: &str, kept: &[NumberSet]) -> Option<String> {
    let parts: Vec<&str> = mask.split(',').collect();
    let mut words = parts.iter().map(|part| u32::from_str_radix(part, 16).ok()).collect::<Option<Vec<_>>>()?;
    let count = words.len();
    for (place, word) in words.iter_mut().enumerate() {
        // The text begins with the highest.
        let first = (count - 1 - place) * BITS;
        let taken = |bit: usize| kept.iter().any(|set| set.has(first + bit));
        (0..BITS).filter(|bit| taken(*bit)).for_each(|bit| *word &= !(1 << bit));
    }
    if words.iter().all(|word| *word == 0) {
        return Some(mask.to_owned());
    }
    let text = words.iter().zip(&parts).map(|(word, part)| format!("{word:0width$x}", width = part.len()));
    Some(text.collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set_of(list: &str) -> NumberSet {
        NumberSet::parse(list).expect("a list")
    }

    #[test]
    fn masks_lose_processors_but_never_all() {
        for (mask, kept, wanted) in [
            ("f", vec!["1-2"], "9"),
            ("ff", vec!["0-3"], "f0"),
            ("ffffffff,ffffffff", vec!["32", "0"], "fffffffe,fffffffe"),
            ("000000ff,00000001", vec!["40"], "000000ff,00000001"),
            ("3", vec!["0", "1"], "3"),
            ("3", vec![], "3"),
        ] {
            let kept: Vec<NumberSet> = kept.into_iter().map(set_of).collect();
            assert_eq!(without(mask, &kept).as_deref(), Some(wanted), "{mask}");
        }
        assert_eq!(without("x", &[]), None);
    }

    #[test]
    fn what_there_was_comes_back() {
        let dir = tempfile::tempdir().expect("directory");
        let (place, before) = (dir.path().join("irq"), dir.path().join("state/before.json"));
        let write = |file: &str, mask: &str| {
            let path = place.join(file);
            std::fs::create_dir_all(path.parent().expect("parent")).expect("directory");
            std::fs::write(path, format!("{mask}\n")).expect("file");
        };
        let read = |file: &str| std::fs::read_to_string(place.join(file)).expect(file).trim().to_owned();
        write(DEFAULT, "f");
        write("8/smp_affinity", "f");
        write("9/smp_affinity", "2");
        let all = || [DEFAULT, "8/smp_affinity", "9/smp_affinity"].map(read).join(" ");
        settle(&place, &before, &[]).expect("nothing to do");
        settle(&place, &before, &[set_of("1")]).expect("one container");
        assert_eq!(all(), "d d 2");
        // An interrupt that comes now has the default of now, and is to have that of before.
        write("10/smp_affinity", "d");
        settle(&place, &before, &[set_of("1"), set_of("2-3")]).expect("another");
        assert_eq!((all().as_str(), read("10/smp_affinity").as_str()), ("1 1 2", "1"));
        settle(&place, &before, &[set_of("2-3")]).expect("the first has ended");
        assert_eq!(all(), "3 3 2");
        std::fs::remove_dir_all(place.join("8")).expect("it goes");
        settle(&place, &before, &[]).expect("all have ended");
        assert_eq!([DEFAULT, "9/smp_affinity", "10/smp_affinity"].map(read), ["f", "2", "f"]);
        assert!(!before.exists());
    }
}
