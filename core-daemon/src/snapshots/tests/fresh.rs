//! New snapshots and power failures: what of them is on the disk, and who was told.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::sync::atomic::{AtomicBool, Ordering};

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

#[test]
fn what_a_power_failure_took_of_a_snapshot_that_nobody_was_told_of_is_made_again() {
    for make in [overlay, volatile, erofs] {
        let (dir, ctx) = (tempfile::tempdir().expect("directory"), context());
        let (root, db, events) = (dir.path().join("it"), Db::open(&dir.path().join("meta.redb")), Events::new());
        let db = db.expect("metadata");
        let begin = |boot: &str| {
            db.write(|tx| table::set_boot(tx, "it", boot)).expect("note");
            make(&root, &db, &events)
        };
        let it = begin("earlier");
        let below = changes(&it.prepare(&ctx, "below", "", Labels::new()).expect("prepare"));
        chown(&below, Some(5), Some(6)).expect("chown");
        std::fs::set_permissions(&below, std::fs::Permissions::from_mode(0o711)).expect("chmod");
        it.commit(&ctx, "layer", "below", Labels::new(), None).expect("commit");
        let [told, written, last] =
            ["told", "written", "last"].map(|key| changes(&it.prepare(&ctx, key, "layer", Labels::new()).expect(key)));
        std::fs::write(written.join("file"), "kept").expect("file");
        std::fs::set_permissions(&written, std::fs::Permissions::from_mode(0o700)).expect("chmod");
        let lose = |fs: &Path| std::fs::remove_dir_all(fs.parent().expect("directory")).expect("lose");
        [&told, &last].into_iter().for_each(|fs| lose(fs));
        drop(it);
        let damage = |it: &dyn Snapshotter, key: &str| {
            let number = db.read(|tx| table::get(tx, "n", "it", key)).expect("read").expect("record").number;
            it.damage(number, Kind::Active)
        };
        // As long as the machine has not failed, nothing is guessed.
        let it = begin(&crate::id::boot().expect("boot"));
        assert!(damage(it.as_ref(), "last").is_some());
        drop(it);
        let it = begin("earlier");
        assert_eq!(damage(it.as_ref(), "last"), None);
        let metadata = std::fs::metadata(&last).expect("changes");
        assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (5, 6, 0o711));
        it.mounts(&ctx, "last").expect("mounts");
        // Of these somebody was told: what is lost is lost, and what is there stays.
        assert!(damage(it.as_ref(), "told").is_some());
        assert_eq!(std::fs::metadata(&written).expect("changes").mode() & 0o7777, 0o700);
        it.close();
    }
}

/// Keeps directories on a disk that may fail.
struct Failing {
    overlay: Overlay,
    fails: Arc<AtomicBool>,
}

impl Driver for Failing {
    fn root(&self) -> &Path {
        self.overlay.root()
    }

    fn create(&self, number: u64, kind: Kind, parents: &[u64], labels: &Labels) -> Result<Made> {
        self.overlay.create(number, kind, parents, labels)
    }

    fn keep(&self, number: u64) -> Result<()> {
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

#[test]
fn a_snapshot_that_cannot_be_flushed_is_not_there() {
    let (dir, ctx) = (tempfile::tempdir().expect("directory"), context());
    let db = Db::open(&dir.path().join("meta.redb")).expect("metadata");
    let fails = Arc::new(AtomicBool::new(true));
    let driver = Failing { overlay: Overlay::open(&dir.path().join("it")).expect("overlay"), fails: fails.clone() };
    let it = Local::open("it", driver, db, Events::new()).expect("open");
    let error = it.prepare(&ctx, "key", "", Labels::new()).expect_err("not flushed");
    assert!(error.to_string().contains("the disk failed"), "{error}");
    assert_eq!(it.stat(&ctx, "key").expect_err("not recorded").kind(), Code::NotFound);
    assert_eq!(std::fs::read_dir(dir.path().join("it/snapshots")).expect("list").count(), 0);
    fails.store(false, Ordering::Relaxed);
    it.prepare(&ctx, "key", "", Labels::new()).expect("prepare");
}

/// A record that is refused leaves nothing, whatever became of the flush beside it.
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
