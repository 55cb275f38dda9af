use std::path::Path;

use super::*;
use gantry_proto::containerd::services::images::v1::Image;
use gantry_proto::containerd::services::leases::v1::Lease;

fn db() -> (tempfile::TempDir, Db) {
    let dir = tempfile::tempdir().expect("temporary directory");
    let db = Db::open(&dir.path().join("meta.redb")).expect("open");
    (dir, db)
}

#[test]
fn namespaces_do_not_see_each_other() {
    let (_dir, db) = db();
    let image = Image { name: "a".into(), ..Image::default() };
    db.write(|tx| images::put(tx, "one", &image)).expect("write");
    db.read(|tx| {
        assert_eq!(images::list(tx, "one")?.len(), 1);
        assert!(images::list(tx, "on")?.is_empty());
        assert!(images::get(tx, "two", "a")?.is_none());
        assert_eq!(namespaces::list(tx)?.len(), 1);
        assert_eq!(namespaces::contents(tx, "one")?, ["images"]);
        Ok(())
    })
    .expect("read");
}

#[test]
fn what_was_written_soon_is_lasting_once_flushed() {
    let (dir, db) = db();
    // What a machine that fails now would have on disk.
    let survives = || {
        let copy = tempfile::tempdir().expect("temporary directory");
        let path = copy.path().join("meta.redb");
        std::fs::copy(dir.path().join("meta.redb"), &path).expect("copy");
        let images = Db::open(&path).expect("open").read(|tx| images::list(tx, "n")).expect("list");
        images.len()
    };
    let image = Image { name: "a".into(), ..Image::default() };
    let before = db.undone();
    db.write_soon(|tx| images::put(tx, "n", &image)).expect("put");
    assert_eq!(survives(), 0);
    db.flush(before).expect("flush");
    assert_eq!(survives(), 1);
    // As after a write that failed: it takes along what was not flushed, and whoever waits for that is told.
    db.recover();
    assert_eq!(db.flush(before).expect_err("undone").kind(), Kind::Aborted);
    db.flush(db.undone()).expect("flush");
}

#[test]
fn changes_of_images_are_counted_apart() {
    let (_dir, db) = db();
    let (all, of_images) = (db.changes(), db.image_changes());
    db.write(|tx| leases::put(tx, "one", &Lease { id: "l".into(), ..Lease::default() })).expect("lease");
    assert_eq!((db.changes(), db.image_changes()), (all + 1, of_images));
    let image = Image { name: "a".into(), ..Image::default() };
    db.write(|tx| images::put(tx, "one", &image)).expect("image");
    db.write(|tx| tx.put(schema::CONTENT, "one", "digest", b"")).expect("content");
    assert_eq!(db.image_changes(), of_images + 2);
    db.write(|tx| images::delete(tx, "one", "none")).expect("nothing");
    assert_eq!(db.image_changes(), of_images + 2, "nothing was there");
    db.write(|tx| images::delete(tx, "one", "a")).expect("delete");
    assert_eq!((db.changes(), db.image_changes()), (all + 4, of_images + 3));
}

#[test]
fn leases_go_with_their_namespace() {
    let (_dir, db) = db();
    db.write(|tx| {
        leases::put(tx, "one", &Lease { id: "l".into(), ..Lease::default() })?;
        leases::hold(tx, "one", "l", "content", "x")?;
        assert!(namespaces::contents(tx, "one")?.is_empty());
        assert!(namespaces::delete(tx, "one")?);
        assert!(leases::list(tx, "one")?.is_empty() && leases::resources(tx, "one", "l")?.is_empty());
        Ok(())
    })
    .expect("write");
}

#[test]
fn a_failed_write_leaves_nothing() {
    let (_dir, db) = db();
    let failed: Result<()> = db.write(|tx| {
        images::put(tx, "one", &Image { name: "a".into(), ..Image::default() })?;
        Err(Error::internal("changed my mind"))
    });
    assert!(failed.is_err());
    assert!(db.read(|tx| images::get(tx, "one", "a")).expect("read").is_none());
}

#[test]
fn space_is_set_aside_again() {
    let (_dir, db) = db();
    db.give_up_reserve();
    let change =
        || db.write(|tx| images::put(tx, "n", &Image { name: "a".into(), ..Image::default() })).expect("write");
    change();
    assert!(!db.reserve().exists(), "not at once: the disk is full");
    *db.lacks_reserve() = Instant::now().checked_sub(RESERVE_AGAIN);
    change();
    assert_eq!(std::fs::metadata(db.reserve()).expect("reserve").len(), RESERVE);
}

#[test]
fn a_check_keeps_nobody_waiting() {
    let (_dir, db) = db();
    let (sender, checked) = std::sync::mpsc::channel();
    let checking = db.clone();
    db.read(|_| {
        std::thread::spawn(move || sender.send(checking.verify()));
        let right = checked.recv_timeout(Duration::from_secs(30)).expect("it waits for whoever reads");
        assert!(right.expect("verify"));
        Ok(())
    })
    .expect("read");
}

#[test]
fn leases_hold_until_deleted() {
    let (_dir, db) = db();
    db.write(|tx| {
        assert_eq!(leases::hold(tx, "n", "l", "content", "x").expect_err("no lease").kind(), Kind::NotFound);
        leases::put(tx, "n", &Lease { id: "l".into(), ..Lease::default() })?;
        leases::put(tx, "n", &Lease { id: "l2".into(), ..Lease::default() })?;
        leases::hold(tx, "n", "l", "snapshots/overlayfs", "a b")?;
        leases::hold(tx, "n", "l2", "content", "y")
    })
    .expect("write");
    let held = db.read(|tx| leases::resources(tx, "n", "l")).expect("read");
    assert_eq!(held.len(), 1);
    assert_eq!((held[0].r#type.as_str(), held[0].id.as_str()), ("snapshots/overlayfs", "a b"));
    assert!(db.write(|tx| leases::delete(tx, "n", "l")).expect("delete"));
    assert!(db.read(|tx| leases::resources(tx, "n", "l")).expect("read").is_empty());
    assert_eq!(db.read(|tx| leases::resources(tx, "n", "l2")).expect("read").len(), 1);
}

#[test]
fn a_second_opener_is_refused_and_told_what_to_do() {
    let (dir, _db) = db();
    let error = Db::open(&dir.path().join("meta.redb")).err().expect("second open");
    assert_eq!(error.kind(), Kind::FailedPrecondition);
    assert!(error.to_string().contains("another gantryd"), "{error}");
}

#[test]
fn it_goes_on_after_a_failed_write() {
    let (_dir, db) = db();
    db.write(|tx| images::put(tx, "n", &Image { name: "a".into(), ..Image::default() })).expect("write");
    assert!(db.reserve().exists());
    let full: Result<()> = db.write(|_| Err(Error::new(Kind::ResourceExhausted, "no space left on device")));
    assert_eq!(full.expect_err("full").kind(), Kind::ResourceExhausted);
    assert!(!db.reserve().exists());
    db.write(|tx| images::delete(tx, "n", "a")).expect("write after");
    assert!(db.read(|tx| images::list(tx, "n")).expect("read").is_empty());
}

#[test]
fn sequences_go_on_after_reopening() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("meta.redb");
    for expected in 1..=3 {
        let db = Db::open(&path).expect("open");
        assert_eq!(db.write(|tx| tx.next("snapshot")).expect("next"), expected);
    }
}

#[test]
fn damage_is_told_with_a_remedy_and_changes_nothing() {
    let (dir, db) = db();
    let path = dir.path().join("meta.redb");
    drop(db);
    let good = std::fs::read(&path).expect("read");
    for (what, from, to) in [("magic", 0, 512), ("everything", 0, good.len())] {
        let mut bytes = good.clone();
        bytes[from..to].fill(0x5a);
        std::fs::write(&path, &bytes).expect("damage");
        let error = Db::open(&path).err().unwrap_or_else(|| panic!("{what}: opened"));
        assert_eq!(error.kind(), Kind::DataLoss, "{what}: {error}");
        assert!(error.to_string().contains("backup") && error.to_string().contains("meta.redb"), "{what}: {error}");
        assert_eq!(std::fs::read(&path).expect("read"), bytes, "{what}");
    }
}

fn read(path: &Path) -> Result<Condition> {
    std::panic::catch_unwind(|| verify(path)).unwrap_or_else(|_| Err(Error::new(Kind::DataLoss, "panic")))
}

#[test]
fn what_a_lost_database_described_is_not_given_up() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (path, blobs) = (dir.path().join("meta.redb"), dir.path().join("blobs"));
    std::fs::create_dir(&blobs).expect("directory");
    let described = [dir.path().join("nothing"), blobs.clone()];
    drop(Db::open_beside(&path, &described, &read).expect("new"));
    std::fs::write(blobs.join("one"), "").expect("blob");
    drop(Db::open_beside(&path, &described, &read).expect("again"));
    for lose in [|path: &Path| std::fs::write(path, ""), |path: &Path| std::fs::remove_file(path)] {
        lose(&path).expect("lose");
        drop(std::fs::remove_file(Journal::path_of(&path)));
        let error = Db::open_beside(&path, &described, &read).err().expect("lost");
        assert_eq!(error.kind(), Kind::DataLoss);
        assert!(error.to_string().contains("blobs is not; put it back"), "{error}");
    }
}

#[test]
fn nobody_else_reads_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let (dir, db) = db();
    let mode = |name: &str| std::fs::metadata(dir.path().join(name)).expect(name).permissions().mode() & 0o777;
    assert_eq!((mode("meta.redb"), mode("meta.reserve")), (0o600, 0o600));
    drop(db);
    std::fs::set_permissions(dir.path().join("meta.redb"), std::fs::Permissions::from_mode(0o644)).expect("widen");
    drop(Db::open(&dir.path().join("meta.redb")).expect("open"));
    assert_eq!(mode("meta.redb"), 0o600);
}

/// Images that a database has, after changes of every kind.
fn changed(path: &Path) -> Vec<Image> {
    let db = Db::open_beside(path, &[], &read).expect("open");
    let image = |name: &str| Image { name: name.into(), ..Image::default() };
    for name in ["a", "b", "c"] {
        db.write(|tx| images::put(tx, "n", &image(name))).expect("put");
    }
    db.write(|tx| {
        leases::put(tx, "n", &Lease { id: "l".into(), ..Lease::default() })?;
        leases::hold(tx, "n", "l", "content", "x")
    })
    .expect("lease");
    db.write(|tx| leases::delete(tx, "n", "l")).expect("delete");
    db.write(|tx| images::delete(tx, "n", "b")).expect("delete");
    db.write_soon(|tx| images::put(tx, "n", &image("soon"))).expect("put");
    db.read(|tx| images::list(tx, "n")).expect("list")
}

/// How many damaged ones were put aside.
fn aside(path: &Path) -> usize {
    let names = std::fs::read_dir(path.parent().expect("parent")).expect("list").flatten();
    names.filter(|entry| entry.file_name().to_string_lossy().starts_with("meta.redb.damaged-")).count()
}

#[test]
fn a_damaged_database_is_made_anew_from_its_journal() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("meta.redb");
    let before = changed(&path);
    assert_eq!(before.len(), 3);
    let (good, journal) = (std::fs::read(&path).expect("read"), std::fs::read(Journal::path_of(&path)).expect("read"));
    let rounds = std::env::var("GANTRY_TEST_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1_u64);
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random % below as u64).expect("small")
    };
    let mut made_anew = 0;
    for round in 0..40 * rounds {
        let mut bytes = good.clone();
        match round % 4 {
            0 => bytes.truncate(next(good.len())),
            // What is used is mostly at the beginning.
            1 => (0..8).for_each(|_| bytes[next(4096)] ^= 1 << next(8)),
            2 => (0..64).for_each(|_| bytes[next(good.len())] ^= 1 << next(8)),
            _ => {
                let from = next(good.len());
                let to = (from + next(1 << 16)).min(good.len());
                bytes[from..to].fill(0x5a);
            }
        }
        std::fs::write(&path, &bytes).expect("damage");
        std::fs::write(Journal::path_of(&path), &journal).expect("journal");
        let db = Db::open_beside(&path, &[], &read).unwrap_or_else(|error| panic!("round {round}: {error}"));
        let after = db.read(|tx| images::list(tx, "n")).expect("list");
        assert_eq!(after, before, "round {round}");
        assert!(db.read(|tx| leases::resources(tx, "n", "l")).expect("resources").is_empty());
        drop(db);
        made_anew += aside(&path);
        for entry in std::fs::read_dir(dir.path()).expect("list").flatten() {
            if entry.file_name().to_string_lossy().contains("damaged-") {
                std::fs::remove_file(entry.path()).expect("remove");
            }
        }
    }
    assert!(made_anew > 10, "{made_anew} were made anew");
}

#[test]
fn a_damaged_journal_harms_nothing() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("meta.redb");
    let before = changed(&path);
    let journal = std::fs::read(Journal::path_of(&path)).expect("read");
    for damaged in [&journal[..journal.len() - 3], &journal[..5], &[0xff; 64], &[]] {
        std::fs::write(Journal::path_of(&path), damaged).expect("damage");
        let db = Db::open_beside(&path, &[], &read).expect("open");
        assert_eq!(db.read(|tx| images::list(tx, "n")).expect("list"), before);
    }
    assert_eq!(aside(&path), 0);
    // What follows damage is lost, what precedes it is not.
    std::fs::write(Journal::path_of(&path), &journal[..journal.len() - 3]).expect("damage");
    std::fs::remove_file(&path).expect("lose");
    let db = Db::open_beside(&path, &[], &read).expect("open");
    let names: Vec<String> = db.read(|tx| images::list(tx, "n")).expect("list").into_iter().map(|it| it.name).collect();
    assert_eq!(names, ["a", "c"]);
}

#[test]
fn a_journal_that_grows_is_written_anew() {
    let (dir, db) = db();
    let image = Image { name: "a".into(), labels: [("k".to_owned(), "v".repeat(4000))].into(), ..Image::default() };
    for _ in 0..1500 {
        db.write_soon(|tx| images::put(tx, "n", &image)).expect("put");
    }
    let length = std::fs::metadata(Journal::path_of(&dir.path().join("meta.redb"))).expect("journal").len();
    assert!(length < 5 << 20, "{length}");
}
