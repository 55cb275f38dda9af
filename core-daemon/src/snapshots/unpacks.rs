//! Layers on their way into snapshots: who wants to unpack the same one waits for whoever began, and then finds it there.
//!
//! A client says by a label of its prepare what the snapshot is to become. Until the commit nothing more is seen of it but
//! the applying, so that is waited for, and a moment before and after for the client's next call. A client that is gone
//! keeps nobody for longer.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gantry_proto::namespace::Namespace;
use tokio::sync::Notify;

use super::{Mount, Use};

/// How long a client may take from one call to the next.
const GRACE: Duration = Duration::from_secs(1);

/// Everything that is unpacked. Clones are the same.
#[derive(Clone, Default)]
pub struct Unpacks(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// By namespace, snapshotter and the name that comes of it.
    all: Mutex<HashMap<Use, Unpack>>,
    changed: Notify,
}

struct Unpack {
    /// The snapshot that is filled; none for the daemon's own.
    key: Option<String>,
    /// Where its files are, once that is known.
    place: Option<PathBuf>,
    /// Who fills it right now.
    applying: usize,
    since: Instant,
}

impl Unpack {
    /// How long others wait at most if nothing changes; forever while it is filled.
    fn patience(&self) -> Option<Duration> {
        (self.applying == 0).then(|| GRACE.saturating_sub(self.since.elapsed()))
    }
}

/// Somebody fills what is unpacked, until this is dropped.
pub struct Applying {
    unpacks: Unpacks,
    targets: Vec<Use>,
    /// With it they are done.
    ends: bool,
}

impl Unpacks {
    /// Waits as long as somebody else is at `target`, and then takes it on for the snapshot `key`.
    pub async fn take(&self, target: &Use, key: &str) {
        loop {
            let mut changed = std::pin::pin!(self.0.changed.notified());
            changed.as_mut().enable();
            let patience = {
                let mut all = self.lock();
                all.retain(|_, unpack| unpack.patience() != Some(Duration::ZERO));
                match all.get(target) {
                    Some(unpack) => unpack.patience(),
                    None => {
                        let key = Some(key.to_owned());
                        let unpack = Unpack { key, place: None, applying: 0, since: Instant::now() };
                        all.insert(target.clone(), unpack);
                        return;
                    }
                }
            };
            match patience {
                Some(patience) => drop(tokio::time::timeout(patience, changed).await),
                None => changed.await,
            }
        }
    }

    /// The snapshot of whoever took `target` on has these mounts.
    pub fn prepared(&self, target: &Use, mounts: &[Mount]) {
        if let Some(unpack) = self.lock().get_mut(target) {
            (unpack.place, unpack.since) = (place(mounts).map(Path::to_owned), Instant::now());
        }
    }

    /// Whoever worked on the snapshot `key`, or on what becomes `name`, does so no more.
    pub fn end(&self, namespace: &Namespace, snapshotter: &str, key: &str, name: &str) {
        self.lock().retain(|target, unpack| {
            let is_there = target.0 == namespace.as_str() && target.1 == snapshotter;
            !(is_there && (target.2 == name || unpack.key.as_deref() == Some(key)))
        });
        self.0.changed.notify_waiters();
    }

    /// Notes that a layer is applied to what the mounts show.
    pub fn applying(&self, mounts: &[Mount]) -> Applying {
        let place = place(mounts);
        let mut targets = Vec::new();
        for (target, unpack) in self.lock().iter_mut().filter(|(_, it)| it.place.is_some()) {
            if unpack.place.as_deref() == place {
                unpack.applying += 1;
                targets.push(target.clone());
            }
        }
        Applying { unpacks: self.clone(), targets, ends: false }
    }

    /// Notes that the daemon itself unpacks all of these.
    pub fn own(&self, namespace: &Namespace, snapshotter: &str, names: impl Iterator<Item = String>) -> Applying {
        let targets: Vec<Use> = names.map(|name| (namespace.to_string(), snapshotter.to_owned(), name)).collect();
        let mut all = self.lock();
        for target in &targets {
            let new = || Unpack { key: None, place: None, applying: 0, since: Instant::now() };
            all.entry(target.clone()).or_insert_with(new).applying += 1;
        }
        drop(all);
        Applying { unpacks: self.clone(), targets, ends: true }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Use, Unpack>> {
        self.0.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Applying {
    fn drop(&mut self) {
        let mut all = self.unpacks.lock();
        for target in &self.targets {
            let Some(unpack) = all.get_mut(target) else { continue };
            (unpack.applying, unpack.since) = (unpack.applying.saturating_sub(1), Instant::now());
            if self.ends && unpack.applying == 0 {
                all.remove(target);
            }
        }
        drop(all);
        self.unpacks.0.changed.notify_waiters();
    }
}

/// The directory that is written to.
fn place(mounts: &[Mount]) -> Option<&Path> {
    let mount = mounts.last()?;
    let upper = mount.options.iter().find_map(|option| option.strip_prefix("upperdir="));
    Some(Path::new(upper.unwrap_or(&mount.source)))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn the_second_waits_for_the_first() {
        let (unpacks, namespace) = (Unpacks::default(), Namespace::parse("n").expect("namespace"));
        let target: Use = ("n".into(), "s".into(), "chain".into());
        let mount = |upper: &str| {
            let (kind, source, target) = ("overlay".into(), "overlay".into(), String::new());
            Mount { kind, source, target, options: vec![format!("upperdir={upper}")] }
        };
        unpacks.take(&target, "one").await;
        unpacks.prepared(&target, &[mount("/one")]);
        let applying = unpacks.applying(&[mount("/one")]);
        drop(unpacks.applying(&[mount("/other")]));
        let mut second = Box::pin(unpacks.take(&target, "two"));
        assert!((&mut second).now_or_never().is_none(), "it does not wait");
        drop(applying);
        assert!((&mut second).now_or_never().is_none(), "the first has not committed");
        unpacks.end(&namespace, "s", "one", "chain");
        assert!((&mut second).now_or_never().is_some(), "it waits for nobody");
        drop(second);
        // One that goes away is not waited for: the second has applied nothing.
        let begun = Instant::now();
        unpacks.take(&target, "three").await;
        assert!(begun.elapsed() >= GRACE / 2);
        unpacks.end(&namespace, "s", "three", "");
        let own = unpacks.own(&namespace, "s", ["chain".to_owned()].into_iter());
        let mut third = Box::pin(unpacks.take(&target, "four"));
        assert!((&mut third).now_or_never().is_none(), "it does not wait for the daemon");
        drop(own);
        assert!((&mut third).now_or_never().is_some());
    }
}
