//! Rules on names, parents, kinds, labels and leases.

use super::*;
use crate::labels::{SHORT_LIVED, SNAPSHOT_REF};

pub(super) const RULES: &[Rule] = &[
    ("a snapshot goes from active to committed", life),
    ("names and keys are one space", one_space),
    ("what is wrong is told by its code", codes),
    ("parents stay while they have children", parents_stay),
    ("labels change as the mask says", update),
    ("labels end with the key", labels_end),
    ("what is there already is held and told", snapshot_ref),
    ("a lease holds the key, then the name", leases_hold),
    ("namespaces do not see each other", namespaces),
    ("a restart changes nothing", restart),
    ("files without a record go", orphans),
    ("files that are mounted stay", mounted),
    ("a parent can be named at the commit", rebase),
    ("layers are committed together", layers),
    ("a layer takes the place of one without files", replaced),
];

fn life(it: &Fixture) {
    it.prepare(&it.ctx, "key", "", labels(&[("a", "b")])).expect("prepare");
    let active = it.stat(&it.ctx, "key").expect("stat");
    assert_eq!((active.kind(), active.name.as_str(), active.parent.as_str()), (Kind::Active, "key", ""));
    assert_eq!(active.labels.get("a").map(String::as_str), Some("b"));
    it.commit(&it.ctx, "name", "key", labels(&[("c", "d")]), None).expect("commit");
    fails(it.stat(&it.ctx, "key"), Code::NotFound);
    let committed = it.stat(&it.ctx, "name").expect("stat");
    assert_eq!(committed.kind(), Kind::Committed);
    assert!(committed.created_at != active.created_at && committed.created_at == committed.updated_at);
    it.prepare(&it.ctx, "child", "name", Labels::new()).expect("child");
    it.view(&it.ctx, "view", "name", Labels::new()).expect("view");
    let kinds: Vec<_> =
        it.list(&it.ctx).expect("list").into_iter().map(|info| (info.name.clone(), info.kind(), info.parent)).collect();
    let of = |name: &str, kind, parent: &str| (name.to_owned(), kind, parent.to_owned());
    assert_eq!(
        kinds,
        [of("child", Kind::Active, "name"), of("name", Kind::Committed, ""), of("view", Kind::View, "name")]
    );
}

fn one_space(it: &Fixture) {
    it.layer("a", "", |_| {});
    it.prepare(&it.ctx, "b", "a", Labels::new()).expect("prepare");
    for taken in ["a", "b"] {
        fails(it.prepare(&it.ctx, taken, "", Labels::new()), Code::AlreadyExists);
        fails(it.view(&it.ctx, taken, "", Labels::new()), Code::AlreadyExists);
        fails(it.commit(&it.ctx, taken, "b", Labels::new(), None), Code::AlreadyExists);
        fails(it.commit(&it.ctx, taken, "no such source", Labels::new(), None), Code::AlreadyExists);
    }
    // What could not be committed is still there to be committed.
    it.commit(&it.ctx, "c", "b", Labels::new(), None).expect("commit");
}

fn codes(it: &Fixture) {
    it.layer("committed", "", |_| {});
    it.prepare(&it.ctx, "active", "", Labels::new()).expect("prepare");
    it.view(&it.ctx, "view", "committed", Labels::new()).expect("view");
    let none = Labels::new;
    fails(it.stat(&it.ctx, "none"), Code::NotFound);
    fails(it.mounts(&it.ctx, "none"), Code::NotFound);
    fails(it.usage(&it.ctx, "none"), Code::NotFound);
    fails(it.remove(&it.ctx, "none"), Code::NotFound);
    fails(it.commit(&it.ctx, "x", "none", none(), None), Code::NotFound);
    fails(it.prepare(&it.ctx, "x", "none", none()), Code::NotFound);
    fails(it.prepare(&it.ctx, "x", "active", none()), Code::InvalidArgument);
    fails(it.view(&it.ctx, "x", "view", none()), Code::InvalidArgument);
    fails(it.prepare(&it.ctx, "", "", none()), Code::InvalidArgument);
    fails(it.commit(&it.ctx, "", "active", none(), None), Code::InvalidArgument);
    fails(it.commit(&it.ctx, "x", "view", none(), None), Code::FailedPrecondition);
    fails(it.commit(&it.ctx, "x", "committed", none(), None), Code::FailedPrecondition);
    fails(it.mounts(&it.ctx, "committed"), Code::FailedPrecondition);
    fails(it.prepare(&it.ctx, "x", "", labels(&[("k", &"v".repeat(5000))])), Code::InvalidArgument);
    assert_eq!(it.list(&it.ctx).expect("list").len(), 3);
    // As long as clients make them.
    let long = "k".repeat(4000);
    it.prepare(&it.ctx, &long, "", none()).expect("a long key");
    it.remove(&it.ctx, &long).expect("remove");
    fails(it.prepare(&it.ctx, &"k".repeat(5000), "", none()), Code::InvalidArgument);
}

fn parents_stay(it: &Fixture) {
    it.layer("low", "", |_| {});
    it.layer("middle", "low", |_| {});
    it.prepare(&it.ctx, "top", "middle", Labels::new()).expect("prepare");
    fails(it.remove(&it.ctx, "low"), Code::FailedPrecondition);
    fails(it.remove(&it.ctx, "middle"), Code::FailedPrecondition);
    for name in ["top", "middle", "low"] {
        it.remove(&it.ctx, name).expect(name);
        fails(it.stat(&it.ctx, name), Code::NotFound);
    }
}

fn update(it: &Fixture) {
    it.prepare(&it.ctx, "key", "", labels(&[("a", "1"), ("b", "2")])).expect("prepare");
    let before = it.stat(&it.ctx, "key").expect("stat");
    let wanted = |pairs: &[(&str, &str)]| Info { name: "key".into(), labels: labels(pairs), ..Info::default() };
    let mask = |path: &str| vec![path.to_owned()];
    let own = |info: Info| {
        let mut labels = info.labels;
        labels.retain(|key, _| key.len() == 1);
        labels
    };
    let all = it.update(&it.ctx, wanted(&[("a", "3"), ("c", "4")]), &[]).expect("all");
    assert_eq!(own(all.clone()), labels(&[("a", "3"), ("c", "4")]));
    assert!(all.updated_at != before.updated_at && all.created_at == before.created_at);
    let one = it.update(&it.ctx, wanted(&[("a", "5"), ("x", "y")]), &mask("labels.a")).expect("one");
    assert_eq!(own(one), labels(&[("a", "5"), ("c", "4")]));
    let gone = it.update(&it.ctx, wanted(&[]), &mask("labels.a")).expect("without");
    assert_eq!(own(gone), labels(&[("c", "4")]));
    fails(it.update(&it.ctx, wanted(&[]), &mask("parent")), Code::InvalidArgument);
    fails(it.update(&it.ctx, Info { name: "none".into(), ..Info::default() }, &[]), Code::NotFound);
    it.commit(&it.ctx, "name", "key", Labels::new(), None).expect("commit");
    let committed = Info { name: "name".into(), labels: labels(&[("z", "1")]), ..Info::default() };
    assert_eq!(own(it.update(&it.ctx, committed, &[]).expect("committed")), labels(&[("z", "1")]));
}

fn labels_end(it: &Fixture) {
    it.prepare(&it.ctx, "key", "", labels(&[("of", "key"), (SHORT_LIVED, "")])).expect("prepare");
    it.commit(&it.ctx, "name", "key", labels(&[("of", "name")]), None).expect("commit");
    assert_eq!(it.stat(&it.ctx, "name").expect("stat").labels, labels(&[("of", "name")]));
}

fn snapshot_ref(it: &Fixture) {
    let wanted = labels(&[(SNAPSHOT_REF, "target")]);
    it.prepare(&it.ctx, "first", "", wanted.clone()).expect("nothing is there yet");
    it.commit(&it.ctx, "target", "first", Labels::new(), None).expect("commit");
    let ctx = it.lease("l");
    fails(it.prepare(&ctx, "second", "", wanted.clone()), Code::AlreadyExists);
    fails(it.stat(&it.ctx, "second"), Code::NotFound);
    assert_eq!(it.held("l"), ["target"]);
    it.remove(&it.ctx, "target").expect("remove");
    it.prepare(&it.ctx, "second", "", wanted).expect("it is gone");
}

fn leases_hold(it: &Fixture) {
    let ctx = it.lease("l");
    it.prepare(&ctx, "key", "", Labels::new()).expect("prepare");
    assert_eq!(it.held("l"), ["key"]);
    it.commit(&ctx, "name", "key", Labels::new(), None).expect("commit");
    assert_eq!(it.held("l"), ["name"]);
    let none = it.ctx.clone().with_lease("none");
    fails(it.prepare(&none, "other", "", Labels::new()), Code::NotFound);
    fails(it.stat(&it.ctx, "other"), Code::NotFound);
}

fn namespaces(it: &Fixture) {
    let other = context("other");
    it.layer("name", "", |dir| std::fs::write(dir.join("f"), "mine").expect("write"));
    fails(it.stat(&other, "name"), Code::NotFound);
    fails(it.prepare(&other, "key", "name", Labels::new()), Code::NotFound);
    let mounts = it.prepare(&other, "name", "", Labels::new()).expect("the same key");
    assert!(!Shown::of(&mounts).join("f").exists());
    assert_eq!(it.list(&other).expect("list").len(), 1);
    it.remove(&other, "name").expect("remove");
    assert!(it.shown("name").join("f").exists());
}

fn restart(it: &Fixture) {
    it.layer("low", "", |dir| std::fs::write(dir.join("low"), "1").expect("write"));
    let mounts = it.prepare(&it.ctx, "key", "low", Labels::new()).expect("prepare");
    std::fs::write(Shown::of(&mounts).join("top"), "2").expect("write");
    let again = it.reopened();
    assert_eq!(again.list(&it.ctx).expect("list"), it.list(&it.ctx).expect("list"));
    assert_eq!(again.mounts(&it.ctx, "key").expect("mounts"), mounts);
    let shown = Shown::of(&mounts);
    assert!(shown.join("low").exists() && shown.join("top").exists());
    // A number is never given twice.
    again.prepare(&it.ctx, "next", "", Labels::new()).expect("prepare");
    assert_ne!(again.mounts(&it.ctx, "next").expect("mounts"), mounts);
}

fn orphans(it: &Fixture) {
    it.layer("kept", "", |dir| std::fs::write(dir.join("f"), "x").expect("write"));
    let root = it.root().expect("its files are here");
    let orphan = root.join("snapshots/4711");
    std::fs::create_dir_all(orphan.join("fs/some/where")).expect("orphan");
    std::fs::write(root.join("snapshots/notes"), "not a snapshot").expect("stranger");
    it.cleanup().expect("cleanup");
    assert!(!orphan.exists());
    assert!(root.join("snapshots/notes").exists());
    assert!(it.shown("kept").join("f").exists());
}

fn mounted(it: &Fixture) {
    let orphan = it.root().expect("its files are here").join("snapshots/4712");
    std::fs::create_dir_all(orphan.join("fs")).expect("orphan");
    let source = orphan.join("fs").to_string_lossy().into_owned();
    let options = vec!["rbind".to_owned(), "ro".to_owned()];
    let shown = Shown::of(&[Mount { kind: "bind".into(), source, target: String::new(), options }]);
    it.cleanup().expect("cleanup");
    assert!(orphan.exists(), "somebody runs on it");
    drop(shown);
    it.cleanup().expect("cleanup");
    assert!(!orphan.exists());
}

fn rebase(it: &Fixture) {
    it.layer("low", "", |dir| std::fs::write(dir.join("low"), "1").expect("write"));
    it.prepare(&it.ctx, "key", "low", Labels::new()).expect("prepare");
    it.layer("other", "", |_| {});
    fails(it.commit(&it.ctx, "x", "key", Labels::new(), Some("other")), Code::InvalidArgument);
    it.commit(&it.ctx, "same", "key", Labels::new(), Some("low")).expect("its own parent");
    if !it.can(REBASE) {
        it.prepare(&it.ctx, "apart", "", Labels::new()).expect("prepare");
        fails(it.commit(&it.ctx, "top", "apart", Labels::new(), Some("low")), Code::FailedPrecondition);
        return;
    }
    let mounts = it.prepare(&it.ctx, "apart", "", Labels::new()).expect("prepare");
    std::fs::write(Shown::of(&mounts).join("top"), "2").expect("write");
    fails(it.commit(&it.ctx, "top", "apart", Labels::new(), Some("none")), Code::NotFound);
    it.commit(&it.ctx, "top", "apart", Labels::new(), Some("low")).expect("commit");
    assert_eq!(it.stat(&it.ctx, "top").expect("stat").parent, "low");
    let shown = it.shown("top");
    assert!(shown.join("low").exists() && shown.join("top").exists());
    fails(it.remove(&it.ctx, "low"), Code::FailedPrecondition);
}

fn layers(it: &Fixture) {
    if it.unpacking() != Unpacking::Apart {
        return;
    }
    it.layer("there", "", |_| {});
    let mut wanted = Vec::new();
    for (name, parent) in [("there", ""), ("one", "there"), ("two", "one")] {
        let key = format!("{name}-unpacked");
        let mounts = it.prepare_layer(&it.ctx, &key, "").expect("prepare");
        std::fs::write(Shown::of(&mounts).join(name), "x").expect("write");
        wanted.push(Layer { name: name.into(), key, parent: parent.into(), labels: Labels::new() });
    }
    it.commit_layers(&it.ctx, &wanted).expect("commit");
    let shown = it.shown("two");
    assert!(shown.join("one").exists() && shown.join("two").exists() && !shown.join("there").exists());
    fails(it.stat(&it.ctx, "there-unpacked"), Code::NotFound);
}

fn replaced(it: &Fixture) {
    let root = it.root().expect("root").join("snapshots");
    it.layer("bottom", "", |dir| std::fs::write(dir.join("file"), "first").expect("write"));
    it.layer("top", "bottom", |_| {});
    it.prepare(&it.ctx, "rw", "top", Labels::new()).expect("prepare");
    assert!(it.is_whole(&it.ctx, "top").expect("whole") && !it.is_whole(&it.ctx, "rw").expect("not committed"));
    assert!(!it.is_whole(&it.ctx, "nobody").expect("there is none"));
    let holding = it.lease("holding");
    let held = ["top", "rw", "nobody"].map(|name| it.hold(&holding, name).expect("hold"));
    assert_eq!((held, it.held("holding").as_slice()), ([true, false, false], ["top".to_owned()].as_slice()));
    let again = |key: &str, held: &Context| {
        let mounts = it.prepare(held, key, "", Labels::new()).expect("prepare");
        std::fs::write(Shown::of(&mounts).join("file"), key).expect("write");
        let layer = Layer { name: "bottom".into(), key: key.into(), parent: String::new(), labels: Labels::new() };
        it.commit_layers(held, &[layer]).expect("commit");
        fails(it.stat(held, key), Code::NotFound);
    };
    // What is whole stays.
    again("second", &it.ctx);
    assert_eq!(std::fs::read(it.shown("bottom").join("file")).expect("read"), b"first");
    let first =
        std::fs::read_dir(&root).expect("list").flatten().filter_map(|it| it.file_name().to_str()?.parse().ok());
    let first: u64 = first.min().expect("number");
    let dir = root.join(first.to_string());
    // Files that are another program's are not ours to make anew.
    if !dir.join("fs").exists() {
        return;
    }
    // Who shows images has them mounted.
    let _ = mount::detach(&dir.join("fs"));
    rung_sys::beneath::remove(&dir).expect("damage");
    assert!(!it.is_whole(&it.ctx, "bottom").expect("damaged") && it.is_whole(&it.ctx, "top").expect("whole"));
    again("third", &it.lease("l"));
    assert_eq!(it.held("l"), ["bottom"]);
    assert!(it.is_whole(&it.ctx, "bottom").expect("whole"));
    assert_eq!(std::fs::read(it.shown("bottom").join("file")).expect("read"), b"third");
    // What stands on it has the new files, unless it has copies.
    let shown = Shown::of(&it.mounts(&it.ctx, "rw").expect("mounts"));
    let (_, is) =
        (std::fs::write(shown.join("own"), "").expect("write"), std::fs::read(shown.join("file")).expect("read"));
    assert!(is == b"third" || it.unpacking().is_stacked() && is == b"first", "{is:?}");
    assert_eq!(it.stat(&it.ctx, "top").expect("stat").parent, "bottom");
}
