use super::*;
use gantry_proto::containerd::services::leases::v1::Lease;
use gantry_proto::namespace::Namespace;

pub(super) struct Fixture {
    dir: tempfile::TempDir,
    db: Db,
    pub(super) content: Content,
}

pub(super) fn fixture() -> Fixture {
    let dir = tempfile::tempdir().expect("temporary directory");
    let db = Db::open(&dir.path().join("meta.redb")).expect("metadata");
    let content = Content::open(&dir.path().join("content"), db.clone(), Events::new()).expect("content");
    Fixture { dir, db, content }
}

pub(super) fn ctx(namespace: &str) -> Context {
    Context::new(Namespace::parse(namespace).expect("namespace"))
}

#[test]
fn what_is_written_can_be_read_only_in_its_namespace() {
    let it = fixture();
    let digest = it.content.put(&ctx("a"), b"hello", labels::Labels::new()).expect("put");
    assert_eq!(it.content.read(&ctx("a"), &digest, 10).expect("read"), b"hello");
    assert_eq!(it.content.info(&ctx("b"), &digest).expect_err("other namespace").kind(), Kind::NotFound);
    assert_eq!(it.content.read(&ctx("a"), &digest, 4).expect_err("limit").kind(), Kind::ResourceExhausted);
    // A second put is no error and writes nothing.
    assert_eq!(it.content.put(&ctx("a"), b"hello", labels::Labels::new()).expect("put again"), digest);
}

#[test]
fn the_same_bytes_are_stored_by_several_at_once() {
    let it = fixture();
    let bytes = vec![7; 1 << 20];
    std::thread::scope(|scope| {
        let put = || it.content.put(&ctx("a"), &bytes, labels::Labels::new());
        let all: Vec<_> = (0..8).map(|_| scope.spawn(put)).collect();
        all.into_iter().for_each(|one| drop(one.join().expect("thread").expect("put")));
    });
    assert_eq!(it.content.list(&ctx("a")).expect("list").len(), 1);
    assert!(it.content.statuses(&ctx("a")).expect("statuses").is_empty());
}

#[test]
fn what_a_client_holds_is_on_disk_before_it_is_told() {
    let it = fixture();
    let digest = it.content.put(&ctx("a"), b"hello", labels::Labels::new()).expect("put");
    // A copy is what a power failure leaves: what waits in memory is not in it.
    let held = |lease: &str| {
        let copy = it.dir.path().join(format!("{lease}.redb"));
        std::fs::copy(it.db.path(), &copy).expect("copy");
        let held = Db::open(&copy).expect("open").read(|tx| leases::resources(tx, "a", lease)).expect("read");
        held.iter().any(|one| one.id == digest.as_str())
    };
    let temporary = labels::Labels::from([(labels::TEMPORARY.to_owned(), String::new())]);
    for (id, labels) in [("clients", labels::Labels::new()), ("own", temporary)] {
        let lease = Lease { id: id.into(), labels, ..Lease::default() };
        it.db.write(|tx| leases::put(tx, "a", &lease)).expect("lease");
    }
    assert!(it.content.hold(&ctx("a").with_lease("clients"), &digest).expect("hold"));
    assert!(held("clients"));
    // Our own leases end with the daemon.
    assert!(it.content.hold(&ctx("a").with_lease("own"), &digest).expect("hold"));
    assert!(!held("own"));
}

#[test]
fn isolated_namespaces_have_to_show_that_they_have_the_bytes() {
    let it = fixture();
    let content = it.content.clone().isolated(true);
    let digest = content.put(&ctx("a"), b"hello", labels::Labels::new()).expect("put");
    let offset = |namespace: &str| {
        let ingest = content.writer(&ctx(namespace), "r", 5, Some(&digest)).expect("writer");
        let offset = ingest.offset();
        ingest.abort();
        offset
    };
    assert_eq!(offset("b"), 0);
    let shareable = labels::Labels::from([(labels::SHAREABLE.to_owned(), "true".to_owned())]);
    let shared = gantry_proto::containerd::services::namespaces::v1::Namespace { name: "a".into(), labels: shareable };
    it.db.write(|tx| namespaces::put(tx, &shared)).expect("label");
    assert_eq!(offset("b"), 5);
    let unmeasured = content.writer(&ctx("b"), "r", 0, Some(&digest)).expect("writer");
    assert_eq!(unmeasured.offset(), 5, "the digest alone is enough");
}

#[test]
fn a_wrong_digest_or_size_is_refused_and_leaves_no_blob() {
    let it = fixture();
    let expected = Digest::of(b"right");
    for (bytes, size) in [(&b"wrong"[..], 5), (&b"righ"[..], 5), (&b"right!"[..], 5)] {
        let mut ingest = it.content.writer(&ctx("a"), "r", 5, Some(&expected)).expect("writer");
        ingest.truncate(0).expect("truncate");
        ingest.write(bytes).expect("write");
        let error = ingest.commit(size, Some(&expected), labels::Labels::new()).expect_err("commit");
        assert_eq!(error.kind(), Kind::FailedPrecondition, "{error}");
    }
    assert!(it.content.stored().expect("stored").is_empty());
    assert_eq!(it.content.info(&ctx("a"), &expected).expect_err("info").kind(), Kind::NotFound);
}

#[test]
fn an_ingest_is_resumed_where_it_was_and_has_one_writer() {
    let it = fixture();
    let expected = Digest::of(b"hello world");
    let mut first = it.content.writer(&ctx("a"), "r", 11, Some(&expected)).expect("writer");
    first.write(b"hello ").expect("write");
    let busy = it.content.writer(&ctx("a"), "r", 11, Some(&expected)).err().expect("second writer");
    assert_eq!(busy.kind(), Kind::Unavailable);
    drop(first);
    assert_eq!(it.content.status(&ctx("a"), "r").expect("status").offset, 6);
    assert!(it.content.status(&ctx("b"), "r").is_err());
    let mut second = it.content.writer(&ctx("a"), "r", 11, Some(&expected)).expect("writer again");
    assert_eq!(second.offset(), 6);
    second.write(b"world").expect("write");
    second.commit(0, None, labels::Labels::new()).expect("commit");
    assert!(it.content.statuses(&ctx("a")).expect("statuses").is_empty());
    assert_eq!(it.content.read(&ctx("a"), &expected, 100).expect("read"), b"hello world");
    let again = it.content.writer(&ctx("a"), "r2", 11, Some(&expected)).err().expect("exists");
    assert_eq!(again.kind(), Kind::AlreadyExists);
}

#[test]
fn what_is_there_keeps_its_labels_when_a_client_commits_it_again() {
    let it = fixture();
    let labelled = |value: &str| labels::Labels::from([("k".to_owned(), value.to_owned())]);
    let digest = it.content.put(&ctx("a"), b"x", labelled("1")).expect("put");
    let again = || {
        let mut ingest = it.content.writer(&ctx("a"), "r", 0, None).expect("writer");
        ingest.write(b"x").expect("write");
        ingest
    };
    let shown = || it.content.info(&ctx("a"), &digest).expect("info").labels;
    assert_eq!(again().commit(1, None, labelled("2")).expect_err("it is there").kind(), Kind::AlreadyExists);
    assert_eq!(shown(), labelled("1"));
    // What the daemon itself finds out about a blob is noted.
    assert_eq!(again().store(1, None, labelled("3")).expect("store"), digest);
    assert_eq!(shown(), labelled("3"));
}

#[test]
fn what_was_to_be_written_binds_nobody_who_goes_on() {
    let it = fixture();
    let begun = |total, expected: Option<&Digest>| it.content.writer(&ctx("a"), "r", total, expected).expect("writer");
    begun(5, Some(&Digest::of(b"right"))).write(b"ri").expect("write");
    assert_eq!(begun(0, None).offset(), 2);
    assert_eq!(begun(7, None).offset(), 0, "something else, as its length shows");
    let mut shorter = begun(0, None);
    shorter.write(b"hello").expect("write");
    assert_eq!(shorter.commit(0, None, labels::Labels::new()).expect("commit"), Digest::of(b"hello"));
}

#[test]
fn another_namespace_claims_a_blob_by_knowing_it() {
    let it = fixture();
    let digest = it.content.put(&ctx("a"), b"hello", labels::Labels::new()).expect("put");
    let claim = it.content.writer(&ctx("b"), "r", 5, Some(&digest)).expect("writer");
    assert_eq!(claim.offset(), 5);
    claim.commit(5, Some(&digest), labels::Labels::new()).expect("commit");
    assert_eq!(it.content.read(&ctx("b"), &digest, 10).expect("read"), b"hello");
}

#[test]
fn a_claimed_blob_is_not_collected_before_it_is_read() {
    let it = fixture();
    let digest = it.content.put(&ctx("a"), b"hello", labels::Labels::new()).expect("put");
    it.content.delete(&ctx("a"), &digest).expect("delete");
    let claim = it.content.writer(&ctx("b"), "r", 5, Some(&digest)).expect("writer");
    assert_eq!(claim.offset(), 5);
    assert_eq!(it.content.reclaim(&digest).expect("claimed"), None);
    claim.written().expect("the bytes are still there");
    claim.commit(5, Some(&digest), labels::Labels::new()).expect("commit");
    assert_eq!(it.content.read(&ctx("b"), &digest, 10).expect("read"), b"hello");
}

#[test]
fn only_unrecorded_blobs_are_reclaimed() {
    let it = fixture();
    let digest = it.content.put(&ctx("a"), b"hello", labels::Labels::new()).expect("put");
    assert_eq!(it.content.reclaim(&digest).expect("recorded"), None);
    it.content.delete(&ctx("a"), &digest).expect("delete");
    let mut ingest = it.content.writer(&ctx("b"), "r", 0, None).expect("writer");
    ingest.write(b"hello").expect("write");
    let sealed = ingest.seal(5, Some(&digest)).map_err(|(_, error)| error).expect("seal");
    it.content.put(&ctx("c"), b"hello", labels::Labels::new()).expect("put");
    it.content.delete(&ctx("c"), &digest).expect("delete");
    assert_eq!(it.content.reclaim(&digest).expect("pending"), None);
    drop(sealed);
    assert_eq!(it.content.reclaim(&digest).expect("free"), Some(5));
    assert!(it.content.stored().expect("stored").is_empty());
}

#[test]
fn what_cannot_be_read_is_somebodys_all_the_same() {
    use crate::metadata::schema::{CONTENT, NAMESPACES};
    let it = fixture();
    let put =
        |namespace: &str, bytes: &[u8]| it.content.put(&ctx(namespace), bytes, labels::Labels::new()).expect("put");
    let (kept, whole) = (put("a", b"hello"), put("b", b"hello there"));
    it.db.write(|tx| tx.put(NAMESPACES, "", "a", &[0xff])).expect("damage");
    assert_eq!(it.content.reclaim(&kept).expect("recorded"), None, "its namespace cannot be read");
    it.db.write(|tx| tx.put(CONTENT, "b", kept.as_str(), &[0xff])).expect("damage");
    it.content.delete(&ctx("a"), &kept).expect("delete");
    assert_eq!(it.content.reclaim(&kept).expect("recorded"), None, "its record cannot be read");
    assert!(it.content.orphans().expect("orphans").is_empty());
    let listed = it.content.list(&ctx("b")).expect("the others");
    assert_eq!(listed.into_iter().map(|info| info.digest).collect::<Vec<_>>(), [whole.to_string()]);
    // Nor does it keep anybody from writing, and what a label of its would grant is not granted.
    let content = it.content.clone().isolated(true);
    assert_eq!(content.writer(&ctx("c"), "r", 5, Some(&kept)).expect("writer").offset(), 0);
}

#[test]
fn damage_is_noticed_and_mended_by_writing_again() {
    let it = fixture();
    let digest = it.content.put(&ctx("a"), b"hello", labels::Labels::new()).expect("put");
    let path = it.content.0.blob(&digest);
    std::fs::remove_file(&path).expect("remove");
    assert_eq!(it.content.reader(&ctx("a"), &digest).expect_err("gone").kind(), Kind::DataLoss);
    assert!(!it.content.has(&ctx("a"), &digest).expect("has"));
    it.content.put(&ctx("a"), b"hello", labels::Labels::new()).expect("put again");
    assert_eq!(it.content.read(&ctx("a"), &digest, 10).expect("read"), b"hello");
}

#[test]
fn what_is_committed_under_a_lease_is_held_by_it() {
    let it = fixture();
    let ctx = ctx("a").with_lease("l");
    let lease = Lease { id: "l".into(), ..Lease::default() };
    let none = it.content.put(&ctx, b"x", labels::Labels::new()).expect_err("no such lease");
    assert_eq!(none.kind(), Kind::NotFound);
    it.db.write(|tx| leases::put(tx, "a", &lease)).expect("lease");
    let digest = it.content.put(&ctx, b"x", labels::Labels::new()).expect("put");
    let held = it.db.read(|tx| leases::resources(tx, "a", "l")).expect("resources");
    assert_eq!(held.iter().map(|it| it.id.as_str()).collect::<Vec<_>>(), [digest.as_str()]);
}

#[test]
fn an_ingest_knows_when_it_began_and_grew() {
    let it = fixture();
    let before = SystemTime::now();
    let mut ingest = it.content.writer(&ctx("a"), "r", 0, None).expect("writer");
    let begun = ingest.status();
    assert!(begun.started >= before && begun.updated >= before && begun.updated <= SystemTime::now());
    let before = SystemTime::now();
    ingest.write(b"x").expect("write");
    let grown = it.content.status(&ctx("a"), "r").expect("status");
    assert!(grown.updated >= before && grown.updated <= SystemTime::now());
    drop(ingest);
    let again = it.content.writer(&ctx("a"), "r", 0, None).expect("resume");
    assert_eq!((again.status().started, again.status().updated), (begun.started, grown.updated));
}

#[test]
fn an_ingest_is_aborted_under_its_writer() {
    let it = fixture();
    let mut ingest = it.content.writer(&ctx("a"), "r", 0, None).expect("writer");
    ingest.write(b"hello").expect("write");
    it.content.abort(&ctx("a"), "r").expect("abort");
    assert!(it.content.statuses(&ctx("a")).expect("statuses").is_empty());
    ingest.commit(5, None, labels::Labels::new()).expect_err("nothing to commit");
    assert!(it.content.stored().expect("stored").is_empty());
}

#[test]
fn a_shared_blob_can_be_gone_on_from() {
    let it = fixture();
    let digest = it.content.put(&ctx("a"), b"hello", labels::Labels::new()).expect("put");
    let mut ingest = it.content.writer(&ctx("b"), "r", 5, Some(&digest)).expect("writer");
    ingest.write(b" world").expect("write");
    let longer = Digest::of(b"hello world");
    assert_eq!((ingest.offset(), ingest.digest()), (11, longer.clone()));
    ingest.commit(11, Some(&longer), labels::Labels::new()).expect("commit");
    assert_eq!(it.content.read(&ctx("b"), &longer, 100).expect("read"), b"hello world");
    assert_eq!(it.content.read(&ctx("a"), &digest, 100).expect("read"), b"hello");
}

#[test]
fn a_digest_may_be_of_another_algorithm_than_was_thought() {
    let it = fixture();
    let mut hasher = rung_spec::digest::Hasher::new(Algorithm::Sha512);
    hasher.update(b"hello");
    let wanted = hasher.finish();
    let mut ingest = it.content.writer(&ctx("a"), "r", 0, None).expect("writer");
    ingest.write(b"hello").expect("write");
    assert_eq!(ingest.commit(5, Some(&wanted), labels::Labels::new()).expect("commit"), wanted);
    assert_eq!(it.content.read(&ctx("a"), &wanted, 100).expect("read"), b"hello");
}

#[test]
fn what_is_deleted_under_a_lease_is_not_held_any_more() {
    let it = fixture();
    it.db.write(|tx| leases::put(tx, "a", &Lease { id: "l".into(), ..Lease::default() })).expect("lease");
    let ctx = ctx("a").with_lease("l");
    let empty = labels::Labels::from([("k".to_owned(), String::new())]);
    let digest = it.content.put(&ctx, b"x", empty).expect("put");
    assert!(it.content.info(&ctx, &digest).expect("info").labels.is_empty(), "a label without a value");
    drop(it.content.writer(&ctx, "r", 0, None).expect("writer"));
    it.content.delete(&ctx, &digest).expect("delete");
    it.content.abort(&ctx, "r").expect("abort");
    assert!(it.db.read(|tx| leases::resources(tx, "a", "l")).expect("resources").is_empty());
}

#[test]
fn what_is_no_file_is_no_blob_and_is_not_waited_for() {
    let it = fixture();
    let digest = it.content.put(&ctx("a"), b"hello", labels::Labels::new()).expect("put");
    let path = it.dir.path().join("content/blobs/sha256").join(digest.hex());
    std::fs::remove_file(&path).expect("remove");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("fifo");
    assert_eq!(it.content.damage(&digest, 5, true).expect("check"), Some(Damage::Missing));
    assert_eq!(it.content.strays().expect("strays"), [path]);
}

#[test]
fn what_nobody_goes_on_with_is_not_kept() {
    let it = fixture();
    let write = |mut ingest: Ingest| ingest.write(b"begun").map(|()| ingest).expect("write");
    drop(write(it.content.writer(&ctx("a"), "resumed", 0, None).expect("writer")));
    let once = write(it.content.writer_once(&ctx("a"), "layer", 0, None).expect("writer"));
    let left = || {
        it.content.expire_ingests(|_, _| true).expect("expire");
        it.content.statuses(&ctx("a")).expect("statuses").len()
    };
    assert_eq!(left(), 2, "one is being written");
    drop(once);
    assert_eq!(left(), 1);
}

#[test]
fn what_took_a_damaged_blobs_place_is_not_put_aside() {
    let it = fixture();
    let digest = it.content.put(&ctx("a"), b"bytes", labels::Labels::new()).expect("put");
    let path = it.content.0.blob(&digest);
    let replace = |bytes: &[u8]| std::fs::remove_file(&path).and_then(|()| std::fs::write(&path, bytes)).expect("file");
    replace(b"wrong");
    assert_eq!(it.content.damage(&digest, 5, true).expect("damage"), Some(Damage::Bytes));
    replace(b"bytes");
    assert_eq!(it.content.quarantine(&digest, 5, true).expect("quarantine"), None);
    replace(b"wrong");
    let aside = it.content.quarantine(&digest, 5, true).expect("quarantine").expect("moved");
    assert_eq!((std::fs::read(aside).expect("aside"), path.exists()), (b"wrong".to_vec(), false));
}
