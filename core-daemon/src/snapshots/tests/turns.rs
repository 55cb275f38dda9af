//! Who comes while a snapshot is committed.

use std::sync::Barrier;

use super::*;

/// Waits in the middle of a commit, for somebody to look, and for the end of that.
struct Slow {
    root: PathBuf,
    at: Arc<Barrier>,
}

impl Driver for Slow {
    fn root(&self) -> &Path {
        &self.root
    }

    fn create(&self, number: u64, _: Kind, _: &[u64], _: &Labels) -> Result<Made> {
        std::fs::create_dir_all(self.dir(number))?;
        Ok(Made::Fresh)
    }

    fn mounts(&self, _: u64, _: Kind, _: &[u64], _: &Labels) -> Result<Vec<Mount>> {
        Ok(Vec::new())
    }

    fn usage(&self, _: u64) -> Result<Usage> {
        Ok(Usage::default())
    }

    fn commit(&self, _: u64, _: &[u64], _: &Labels) -> Result<()> {
        self.at.wait();
        self.at.wait();
        Ok(())
    }
}

#[test]
fn a_snapshot_is_committed_by_one_and_not_removed_meanwhile() {
    let dir = tempfile::tempdir().expect("directory");
    let db = Db::open(&dir.path().join("meta.redb")).expect("metadata");
    std::fs::create_dir(dir.path().join("snapshots")).expect("directory");
    let at = Arc::new(Barrier::new(2));
    let driver = Slow { root: dir.path().to_owned(), at: at.clone() };
    let events = Events::new();
    let it = Local::open("it", driver, db, events.clone()).expect("open");
    let ctx = Context::new(Namespace::parse("n").expect("namespace"));
    it.prepare(&ctx, "key", "", Labels::new()).expect("prepare");
    std::thread::scope(|scope| {
        let first = scope.spawn(|| it.commit(&ctx, "name", "key", Labels::new(), None));
        at.wait();
        let kinds = [
            it.commit(&ctx, "other", "key", Labels::new(), None).expect_err("a second commit").kind(),
            it.remove(&ctx, "key").expect_err("a removal").kind(),
        ];
        it.cleanup().expect("cleanup");
        at.wait();
        first.join().expect("thread").expect("commit");
        assert_eq!(kinds, [Code::Unavailable; 2]);
    });
    it.stat(&ctx, "name").expect("committed");
    // A view is not announced.
    let mut events = events.subscribe(crate::filter::Filter::everything());
    it.view(&ctx, "view", "name", Labels::new()).expect("view");
    it.remove(&ctx, "view").expect("remove");
    let event = futures_util::FutureExt::now_or_never(events.next()).expect("an event").expect("event");
    assert_eq!(event.topic, "/snapshot/remove");
    it.remove(&ctx, "name").expect("remove");
}

/// One of its directories cannot be removed.
struct Stuck(PathBuf);

impl Driver for Stuck {
    fn root(&self) -> &Path {
        &self.0
    }

    fn create(&self, _: u64, _: Kind, _: &[u64], _: &Labels) -> Result<Made> {
        Ok(Made::Fresh)
    }

    fn keep(&self, _: u64) -> Result<()> {
        Ok(())
    }

    fn mounts(&self, _: u64, _: Kind, _: &[u64], _: &Labels) -> Result<Vec<Mount>> {
        Ok(Vec::new())
    }

    fn usage(&self, _: u64) -> Result<Usage> {
        Ok(Usage::default())
    }

    fn remove(&self, number: u64) -> Result<()> {
        match number {
            2 => Err(std::io::Error::from(std::io::ErrorKind::PermissionDenied).into()),
            _ => Ok(std::fs::remove_dir_all(self.dir(number))?),
        }
    }
}

#[test]
fn what_cannot_be_removed_keeps_nothing_else() {
    let dir = tempfile::tempdir().expect("directory");
    let db = Db::open(&dir.path().join("meta.redb")).expect("metadata");
    let driver = Stuck(dir.path().to_owned());
    (1..=3).for_each(|number| std::fs::create_dir_all(driver.dir(number)).expect("orphan"));
    let it = Local::open("it", driver, db, Events::new()).expect("open");
    for _ in 0..2 {
        assert_eq!(it.cleanup().expect("cleanup"), 1);
        assert_eq!(it.orphans().expect("orphans"), [2]);
    }
}
