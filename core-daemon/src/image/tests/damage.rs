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
