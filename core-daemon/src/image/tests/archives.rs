//! Archives of images.

use super::*;
use crate::image::archive::{ExportOptions, Exported};

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_not_archived_for_a_platform_that_it_is_not_for() {
    let store = two_layers();
    let fake = Fake::start(move |asked| store.answer(asked)).await;
    let it = fixture();
    let pulled = it.pull(&fake).await.expect("pull");
    let image = [Exported { name: Some(pulled.name.clone()), target: pulled.target.clone() }];
    let export = async |platforms: &[&str]| {
        let platforms = platforms.iter().map(|text| Platform::parse(text).expect("platform")).collect();
        let choice = Choice { platforms, ..Choice::default() };
        let options = ExportOptions { choice, ..ExportOptions::default() };
        it.images.export(&it.ctx, &image, &options, std::io::sink()).await
    };
    for platforms in [&[][..], &["linux/amd64"], &["linux/amd64/v3"], &["linux/arm64", "linux/amd64"]] {
        export(platforms).await.unwrap_or_else(|error| panic!("{platforms:?}: {error}"));
    }
    let error = export(&["linux/arm64", "linux/s390x"]).await.expect_err("other platforms");
    assert_eq!(error.kind(), Kind::NotFound, "{error}");
    assert!(error.to_string().ends_with("is for linux/amd64, not linux/arm64 or linux/s390x"), "{error}");
}
