//! New snapshots and power failures: what of them is on the disk, and what is made again.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::*;
use crate::metadata::snapshots as table;

fn context() -> Context {
    Context::new(Namespace::parse("n").expect("namespace"))
}

/// The directory of a snapshot's own changes.
fn changes(mounts: &[Mount]) -> PathBuf {
    let upper = mounts[0].options.iter().find_map(|option| option.strip_prefix("upperdir="));
    upper.unwrap_or(&mounts[0].source).into()
}

fn record(db: &Db, key: &str) -> table::Record {
    db.read(|tx| table::get(tx, "n", "it", key)).expect("read").expect("record")
}

/// Makes snapshots until one says that all up to `number` are on the disk, and answers with its key.
fn told_once_flushed(it: &dyn Snapshotter, db: &Db, number: u64) -> String {
    let begun = Instant::now();
    for at in 0.. {
        let key = format!("later-{at}");
        it.prepare(&context(), &key, "layer", Labels::new()).expect("prepare");
        if record(db, &key).fresh > number {
            return key;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{number} is not flushed");
        std::thread::sleep(Duration::from_millis(100));
    }
    unreachable!("it is tried for ever")
}

fn layer(it: &dyn Snapshotter) {
    let below = changes(&it.prepare(&context(), "below", "", Labels::new()).expect("prepare"));
    chown(&below, Some(5), Some(6)).expect("chown");
    std::fs::set_permissions(&below, std::fs::Permissions::from_mode(0o711)).expect("chmod");
    it.commit(&context(), "layer", "below", Labels::new(), None).expect("commit");
}

#[test]
fn what_a_power_failure_took_of_a_snapshot_that_was_not_flushed_is_made_again() {
    for make in [overlay, volatile, erofs] {
        let (dir, ctx) = (tempfile::tempdir().expect("directory"), context());
        let (root, db, events) = (dir.path().join("it"), Db::open(&dir.path().join("meta.redb")), Events::new());
        let db = db.expect("metadata");
        let begin = |boot: &str| {
            db.write(|tx| table::set_boot(tx, "it", boot)).expect("note");
            make(&root, &db, &events)
        };
        let it = begin("earlier");
        layer(it.as_ref());
        let [flushed, written] =
            ["flushed", "written"].map(|key| changes(&it.prepare(&ctx, key, "layer", Labels::new()).expect(key)));
        std::fs::write(written.join("file"), "kept").expect("file");
        std::fs::set_permissions(&written, std::fs::Permissions::from_mode(0o700)).expect("chmod");
        let last = told_once_flushed(it.as_ref(), &db, record(&db, "written").number);
        let view = changes(&it.view(&ctx, "view", "", Labels::new()).expect("view"));
        let last_changes = root.join(format!("snapshots/{}/fs", record(&db, &last).number));
        let lose = |fs: &Path| std::fs::remove_dir_all(fs.parent().expect("directory")).expect("lose");
        [&flushed, &last_changes, &view].into_iter().for_each(|fs| lose(fs));
        drop(it);
        let damage = |it: &dyn Snapshotter, key: &str| it.damage(record(&db, key).number, Kind::Active);
        // As long as the machine has not failed, nothing is guessed.
        let it = begin(&crate::id::boot().expect("boot"));
        assert!(damage(it.as_ref(), &last).is_some());
        drop(it);
        let it = begin("earlier");
        assert_eq!(damage(it.as_ref(), &last), None);
        let metadata = std::fs::metadata(&last_changes).expect("changes");
        assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (5, 6, 0o711));
        it.mounts(&ctx, &last).expect("mounts");
        assert!(view.is_dir(), "a view has files of its own, too");
        // What is lost of these is lost, and what is there stays.
        assert!(damage(it.as_ref(), "flushed").is_some());
        assert_eq!(std::fs::metadata(&written).expect("changes").mode() & 0o7777, 0o700);
        it.close();
    }
}

/// Keeps directories on a disk that may fail.
struct Failing {
    overlay: Overlay,
    fails: Arc<AtomicBool>,
    tries: Arc<AtomicUsize>,
}

impl Driver for Failing {
    fn root(&self) -> &Path {
        self.overlay.root()
    }

    fn create(&self, number: u64, kind: Kind, parents: &[u64], labels: &Labels) -> Result<Made> {
        self.overlay.create(number, kind, parents, labels)
    }

    fn keep(&self, number: u64) -> Result<()> {
        self.tries.fetch_add(1, Ordering::Relaxed);
        match self.fails.load(Ordering::Relaxed) {
            true => Err(Error::internal("the disk failed")),
            false => self.overlay.keep(number),
        }
    }

    fn is_renewable(&self) -> bool {
        true
    }

    fn mounts(&self, number: u64, kind: Kind, parents: &[u64], labels: &Labels) -> Result<Vec<Mount>> {
        self.overlay.mounts(number, kind, parents, labels)
    }

    fn usage(&self, number: u64) -> Result<Usage> {
        self.overlay.usage(number)
    }
}

/// A disk, and the daemons that follow one another on it.
struct Disk {
    dir: tempfile::TempDir,
    db: Db,
    fails: Arc<AtomicBool>,
    tries: Arc<AtomicUsize>,
}

impl Disk {
    fn new(fails: bool) -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let db = Db::open(&dir.path().join("meta.redb")).expect("metadata");
        Self { dir, db, fails: Arc::new(fails.into()), tries: Arc::default() }
    }

    fn daemon(&self) -> Local<Failing> {
        let overlay = Overlay::open(&self.dir.path().join("it")).expect("overlay");
        let driver = Failing { overlay, fails: self.fails.clone(), tries: self.tries.clone() };
        Local::open("it", driver, self.db.clone(), Events::new()).expect("open")
    }

    /// A new snapshot's number, and the lowest that may not be on the disk when it was recorded.
    fn prepare(&self, it: &Local<Failing>, key: &str) -> (u64, u64) {
        it.prepare(&context(), key, "", Labels::new()).expect("prepare");
        let record = record(&self.db, key);
        (record.number, record.fresh)
    }
}

#[test]
fn what_was_not_flushed_stays_fresh_beyond_the_daemon() {
    let disk = Disk::new(true);
    let it = disk.daemon();
    assert_eq!(disk.prepare(&it, "one"), (1, 1));
    let begun = Instant::now();
    while disk.tries.load(Ordering::Relaxed) == 0 {
        assert!(begun.elapsed() < Duration::from_secs(30), "it is not flushed");
        std::thread::sleep(Duration::from_millis(10));
    }
    // The flush has failed, and nobody was told: it is tried again.
    assert_eq!(disk.prepare(&it, "two"), (2, 1));
    drop(it);
    // Killed: the next one knows what may not be on the disk.
    let it = disk.daemon();
    assert_eq!(disk.prepare(&it, "three"), (3, 1));
    drop(it);
    disk.fails.store(false, Ordering::Relaxed);
    let it = disk.daemon();
    assert_eq!(disk.prepare(&it, "four"), (4, 1));
    it.commit(&context(), "layer", "four", Labels::new(), None).expect("commit");
    told_once_flushed(&it, &disk.db, 3);
}

#[test]
fn what_is_committed_or_removed_is_fresh_no_more() {
    let disk = Disk::new(true);
    let it = disk.daemon();
    assert_eq!(disk.prepare(&it, "one"), (1, 1));
    it.commit(&context(), "layer", "one", Labels::new(), None).expect("commit");
    assert_eq!(disk.prepare(&it, "two"), (2, 2));
    it.remove(&context(), "two").expect("remove");
    disk.fails.store(false, Ordering::Relaxed);
    told_once_flushed(&it, &disk.db, 2);
}

#[test]
fn records_that_say_nothing_are_of_what_was_flushed() {
    let disk = Disk::new(true);
    disk.prepare(&disk.daemon(), "one");
    let earlier = table::Record { fresh: 0, ..record(&disk.db, "one") };
    disk.db.write(|tx| table::put(tx, "n", "it", &earlier)).expect("put");
    assert_eq!(disk.prepare(&disk.daemon(), "two"), (2, 2));
}

#[test]
fn where_too_many_wait_one_that_cannot_be_flushed_is_not_there() {
    let (disk, ctx) = (Disk::new(true), context());
    let it = disk.daemon();
    let waiting: Vec<_> = std::iter::from_fn(|| it.numbering.has_room().then(|| it.numbering.take())).collect();
    let error = it.prepare(&ctx, "key", "", Labels::new()).expect_err("not flushed");
    assert!(error.to_string().contains("the disk failed"), "{error}");
    assert_eq!(it.stat(&ctx, "key").expect_err("not recorded").kind(), Code::NotFound);
    assert_eq!(std::fs::read_dir(disk.dir.path().join("it/snapshots")).expect("list").count(), 0);
    drop(waiting);
    it.prepare(&ctx, "key", "", Labels::new()).expect("prepare");
}

/// A record that is refused leaves nothing.
#[test]
fn many_at_once_are_each_made_once() {
    let (dir, ctx) = (tempfile::tempdir().expect("directory"), context());
    let db = Db::open(&dir.path().join("meta.redb")).expect("metadata");
    let it = overlay(&dir.path().join("it"), &db, &Events::new());
    std::thread::scope(|scope| {
        let make = |key: String| it.prepare(&ctx, &key, "", Labels::new()).is_ok();
        let tries: Vec<_> = (0..32).map(|at| scope.spawn(move || make(format!("key-{}", at / 2)))).collect();
        let made = tries.into_iter().filter_map(|one| one.join().ok()).filter(|made| *made).count();
        assert_eq!(made, 16);
    });
    assert_eq!(std::fs::read_dir(dir.path().join("it/snapshots")).expect("list").count(), 16);
    let records = db.read(|tx| table::list_all(tx, "it")).expect("records");
    assert!(records.iter().all(|(_, record)| record.fresh > 0 && record.fresh <= record.number));
}
