//! The rules of the contract as tests, for every snapshotter. They mount, so they need root; each rule has a thread with
//! mounts of its own.

mod files;
mod fresh;
mod records;
mod turns;

use std::collections::BTreeMap;
use std::ops::Deref;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gantry_proto::containerd::services::leases::v1::Lease;
use gantry_proto::namespace::Namespace;
use rung_sys::mount_options::MountOptions;
use rung_sys::{mount, mount_words};

use super::erofs::Erofs;
use super::native::Native;
use super::overlay::Overlay;
use super::proxy::Proxy;
use super::*;
use crate::config::Volatile;
use crate::error::Kind as Code;
use crate::events::Events;
use crate::metadata::{Db, leases};

/// A rule: what it says, and the test of it.
type Rule = (&'static str, fn(&Fixture));
/// Makes a snapshotter whose files are below a directory.
type Make = fn(&Path, &Db, &Events) -> Arc<dyn Snapshotter>;

fn overlay(root: &Path, db: &Db, events: &Events) -> Arc<dyn Snapshotter> {
    let driver = Overlay::open(root).expect("overlay");
    Arc::new(Local::open("it", driver, db.clone(), events.clone()).expect("open"))
}

fn volatile(root: &Path, db: &Db, events: &Events) -> Arc<dyn Snapshotter> {
    let driver = Overlay::open(root).expect("overlay").volatile(Volatile::Always).upperdir_label(true);
    Arc::new(Local::open("it", driver, db.clone(), events.clone()).expect("open"))
}

fn native(root: &Path, db: &Db, events: &Events) -> Arc<dyn Snapshotter> {
    Arc::new(Local::open("it", Native::open(root).expect("native"), db.clone(), events.clone()).expect("open"))
}

#[test]
fn overlay_keeps_the_contract() {
    run("overlay", overlay);
}

#[test]
fn volatile_overlay_keeps_the_contract() {
    run("volatile overlay", volatile);
}

#[test]
fn native_keeps_the_contract() {
    run("native", native);
}

fn erofs(root: &Path, db: &Db, events: &Events) -> Arc<dyn Snapshotter> {
    let driver = Erofs::open(root).expect("erofs");
    Arc::new(Local::open("it", driver, db.clone(), events.clone()).expect("open"))
}

#[test]
fn erofs_keeps_the_contract() {
    run("erofs", erofs);
}

/// A program of its own that keeps copies, asked over a socket. It goes with the test process.
fn proxy(root: &Path, db: &Db, events: &Events) -> Arc<dyn Snapshotter> {
    use gantry_proto::containerd::services::snapshots::v1::snapshots_server::SnapshotsServer;
    let beside = root.with_extension("program");
    let address = beside.with_extension("sock");
    let runtime = runtime();
    if !address.exists() {
        let theirs = Db::open(&beside.with_extension("redb")).expect("metadata");
        let all = BTreeMap::from([("it".to_owned(), native(&beside, &theirs, events))]);
        let all = Snapshotters::new(all, "it").expect("snapshotters");
        let content =
            crate::content::Content::open(&beside.join("content"), theirs.clone(), events.clone()).expect("content");
        let mounts = crate::mounts::Mounts::open(&beside.join("mounts"), &beside).expect("mounts");
        let gc = crate::gc::Gc::new(theirs, content, all.clone(), mounts, events.clone());
        let service = SnapshotsServer::new(crate::grpc::snapshots::SnapshotsService::new(all, gc));
        let _entered = runtime.enter();
        let listener = tokio::net::UnixListener::bind(&address).expect("bind");
        let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
        runtime.spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    }
    let _entered = runtime.enter();
    let plugin = crate::config::ProxyPlugin {
        kind: "snapshot".into(),
        address,
        platform: String::new(),
        capabilities: Vec::new(),
        exports: BTreeMap::new(),
    };
    let driver = Proxy::open(root, "it", &plugin).expect("proxy");
    Arc::new(Local::open("it", driver, db.clone(), events.clone()).expect("open"))
}

/// One for all tests: what it serves is asked until the process ends. Its threads do not see what tests mount, so what it
/// answers with must not need that.
fn runtime() -> &'static tokio::runtime::Runtime {
    static RUNTIME: std::sync::OnceLock<tokio::runtime::Runtime> = std::sync::OnceLock::new();
    RUNTIME.get_or_init(|| tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("runtime"))
}

#[test]
fn a_proxy_keeps_the_contract() {
    run("proxy", proxy);
}

fn run(name: &str, make: Make) {
    for (rule, test) in records::RULES.iter().chain(files::RULES) {
        let tested = std::thread::spawn(move || {
            rung_sys::namespace::leave(rung_sys::namespace::Namespace::Mount.flag()).expect("own mounts, as root");
            let all = mount::Change { propagation: Some(mount::Propagation::Private), ..mount::Change::default() };
            let top = std::fs::File::open("/").expect("open the root");
            mount::set_attributes(top.as_fd(), true, &all).expect("keep mounts from the machine");
            test(&Fixture::new(make));
        });
        if let Err(cause) = tested.join() {
            let text = cause.downcast_ref::<String>().cloned().unwrap_or_default();
            panic!("{name}: {rule}: {text}");
        }
    }
}

struct Fixture {
    make: Make,
    dir: tempfile::TempDir,
    db: Db,
    it: Arc<dyn Snapshotter>,
    ctx: Context,
}

impl Deref for Fixture {
    type Target = dyn Snapshotter;

    fn deref(&self) -> &Self::Target {
        self.it.as_ref()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // The directory is removed next, and what is mounted in it cannot be.
        let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
        let below = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
        for path in below.filter(|path| path.starts_with(self.dir.path())) {
            mount::detach(path).expect("unmount");
        }
    }
}

impl Fixture {
    fn new(make: Make) -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let db = Db::open(&dir.path().join("meta.redb")).expect("metadata");
        let it = make(&dir.path().join("root"), &db, &Events::new());
        Self { make, dir, db, it, ctx: context("n") }
    }

    /// What a restart of the daemon makes of it.
    fn reopened(&self) -> Arc<dyn Snapshotter> {
        (self.make)(&self.dir.path().join("root"), &self.db, &Events::new())
    }

    fn can(&self, capability: &str) -> bool {
        self.capabilities().iter().any(|name| name == capability)
    }

    fn lease(&self, id: &str) -> Context {
        let lease = Lease { id: id.into(), ..Lease::default() };
        self.db.write(|tx| leases::put(tx, "n", &lease)).expect("lease");
        self.ctx.clone().with_lease(id)
    }

    fn held(&self, lease: &str) -> Vec<String> {
        let held = self.db.read(|tx| leases::resources(tx, "n", lease)).expect("resources");
        held.into_iter().map(|resource| resource.id).collect()
    }

    /// Makes a layer by what `change` does to the mounted directory, and commits it as `name`.
    fn layer(&self, name: &str, parent: &str, change: impl FnOnce(&Path)) {
        let key = format!("{name}-key");
        let mounts = self.prepare(&self.ctx, &key, parent, Labels::new()).expect("prepare");
        change(&Shown::of(&mounts));
        self.commit(&self.ctx, name, &key, Labels::new(), None).expect("commit");
    }

    /// What a committed snapshot shows.
    fn shown(&self, name: &str) -> Shown {
        let key = format!("{name}-view-{}", crate::id::random::<8>().expect("random"));
        Shown::of(&self.view(&self.ctx, &key, name, Labels::new()).expect("view"))
    }
}

fn context(namespace: &str) -> Context {
    Context::new(Namespace::parse(namespace).expect("namespace"))
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[track_caller]
fn fails<T>(result: Result<T>, code: Code) {
    match result {
        Ok(_) => panic!("succeeds instead of {code:?}"),
        Err(error) => assert_eq!(error.kind(), code, "{error}"),
    }
}

/// A snapshot's mounts on a directory, until dropped.
struct Shown {
    dir: PathBuf,
    count: usize,
}

impl Shown {
    #[track_caller]
    fn of(mounts: &[Mount]) -> Self {
        let dir = tempfile::tempdir().expect("directory").keep();
        for one in mounts {
            let options = MountOptions::parse(&one.options);
            let tree =
                mount_words::make(&one.kind, &one.source, &options).unwrap_or_else(|error| panic!("{error}: {one:?}"));
            let target = std::fs::File::open(&dir).expect("open");
            mount::attach(tree.as_fd(), target.as_fd()).expect("attach");
        }
        Self { dir, count: mounts.len() }
    }
}

impl Deref for Shown {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        for _ in 0..self.count {
            mount::detach(&self.dir).expect("unmount");
        }
        std::fs::remove_dir(&self.dir).expect("remove the mount point");
    }
}

#[test]
fn one_that_failed_says_why() {
    let (dir, events) = (tempfile::tempdir().expect("directory"), Events::new());
    let db = Db::open(&dir.path().join("meta.redb")).expect("metadata");
    let all = BTreeMap::from([("overlayfs".to_owned(), overlay(&dir.path().join("root"), &db, &events))]);
    let failed = BTreeMap::from([("erofs".to_owned(), "needs another kernel".to_owned())]);
    fails(Snapshotters::with_failed(all.clone(), failed.clone(), "erofs"), Code::InvalidArgument);
    let it = Snapshotters::with_failed(all, failed, "overlayfs").expect("default is there");
    let error = it.get("erofs").err().expect("failed").to_string();
    assert_eq!(error, "snapshotter not loaded: erofs: needs another kernel");
    assert_eq!(it.get("btrfs").err().expect("unknown").to_string(), "snapshotter not loaded: btrfs");
}

/// Keeps what nobody can mount.
struct Unmountable(Native);

impl Driver for Unmountable {
    fn root(&self) -> &Path {
        self.0.root()
    }

    fn create(&self, number: u64, kind: Kind, parents: &[u64], labels: &Labels) -> Result<Made> {
        self.0.create(number, kind, parents, labels)
    }

    fn mounts(&self, _: u64, _: Kind, _: &[u64], _: &Labels) -> Result<Vec<Mount>> {
        Err(Error::unavailable("no mounts"))
    }

    fn usage(&self, number: u64) -> Result<Usage> {
        self.0.usage(number)
    }
}

#[test]
fn what_cannot_be_mounted_is_not_made() {
    let dir = tempfile::tempdir().expect("directory");
    let db = Db::open(&dir.path().join("meta.redb")).expect("metadata");
    let driver = Unmountable(Native::open(&dir.path().join("root")).expect("native"));
    let it = Local::open("it", driver, db, Events::new()).expect("open");
    for _ in 0..2 {
        fails(it.prepare(&context("n"), "key", "", Labels::new()), Code::Unavailable);
    }
    fails(it.stat(&context("n"), "key"), Code::NotFound);
}
