//! What earlier pulls have left, and what has been lost since.

use std::os::unix::fs::PermissionsExt;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_makes_lost_layers_anew_under_what_stands_on_them() {
    let store = two_layers();
    let fake = Fake::start(move |asked| store.answer(asked)).await;
    let it = fixture();
    let pulled = it.pull(&fake).await.expect("pull");
    let before = it.directories(&pulled);
    std::fs::remove_dir_all(before.last().expect("lowest")).expect("damage");
    it.pull(&fake).await.expect("pull again");
    let after = it.directories(&pulled);
    assert_eq!((after.first(), after.len()), (before.first(), 2));
    assert_eq!(content_of(&after[1].join("usr/lib/old")), "old");
    let asked = fake.seen().len();
    it.pull(&fake).await.expect("nothing is lost");
    assert_eq!(fake.seen().len(), asked + 1, "{:?}", fake.seen());
}

/// Whoever breaks off a layer once, under whatever name, must not have a say in what is pulled later.
#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_of_an_earlier_pull_leave_nothing_in_the_image() {
    let noise: Vec<u8> = (0..300_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let mut root = file("./", b'5', "", b"");
    // Writable for all: the sum of the header's bytes grows by four.
    root[100..108].copy_from_slice(b"0000777\0");
    let sum = u32::from_str_radix(std::str::from_utf8(&root[148..154]).expect("text"), 8).expect("octal") + 4;
    root[148..154].copy_from_slice(format!("{sum:06o}").as_bytes());
    let evil = gzip(&tar(&[root, file("evil", b'0', "", b"evil"), file("noise", b'0', "", &noise)]));
    let mut store = Store::default();
    store.image(&[tar(&[file("good", b'0', "", b"good"), file("noise", b'0', "", &noise)])]);
    for wrong in [evil, noise] {
        let (store, is_evil) = (store.clone(), Arc::new(StdMutex::new(true)));
        let state = is_evil.clone();
        let fake = Fake::start(move |asked| {
            let answer = store.answer(asked);
            if !*state.lock().expect("lock") || !asked.path.contains("/blobs/") || answer.body.len() < 300_000 {
                return answer;
            }
            match asked.header("range") {
                "" => Answer { cut: Some(300_000), body: wrong.clone(), ..answer },
                _ => Answer::new(404, ""),
            }
        })
        .await;
        let it = fixture();
        it.pull(&fake).await.expect_err("broken off");
        *is_evil.lock().expect("lock") = false;
        let pulled = it.pull(&fake).await.expect("pull");
        let dir = it.directories(&pulled).remove(0);
        let mut names: Vec<_> =
            std::fs::read_dir(&dir).expect("list").flatten().map(|entry| entry.file_name()).collect();
        names.sort();
        assert_eq!(names, ["good", "noise"]);
        assert_eq!(std::fs::metadata(&dir).expect("metadata").permissions().mode() & 0o777, 0o755);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_are_there_stay_until_the_image_on_them_is_recorded() {
    let low = tar(&[file("low", b'0', "", b"low")]);
    let (mut first, mut second) = (Store::default(), Store::default());
    first.image(std::slice::from_ref(&low));
    second.image(&[low, tar(&[file("top", b'0', "", b"top")])]);
    let top = second.layers().into_iter().find(|layer| !first.layers().contains(layer)).expect("top");
    let it = fixture();
    let (gc, runtime) = (it.gc.clone(), tokio::runtime::Handle::current());
    let is_second = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let turn = is_second.clone();
    let fake = Fake::start(move |asked| {
        if !turn.load(Ordering::Relaxed) {
            return first.answer(asked);
        }
        if asked.path.ends_with(&top) {
            let collected = std::thread::scope(|scope| scope.spawn(|| runtime.block_on(gc.collect())).join());
            collected.expect("thread").expect("collect");
        }
        second.answer(asked)
    })
    .await;
    let pulled = it.pull(&fake).await.expect("first");
    it.images.records.delete(&it.ctx, &pulled.name, None).expect("remove");
    is_second.store(true, Ordering::Relaxed);
    let pulled = it.pull(&fake).await.expect("second");
    assert_eq!(content_of(&it.directories(&pulled)[1].join("low")), "low");
}
