//! Images as a kubelet sees them: one for each id, with all of its names.

use gantry_proto::runtime::v1;
use integration_tests::pods::{Pods, spec};
use integration_tests::{Env, Image, Registry, Result, Stack, Test, tests, wait};
use tonic::Code;

pub(crate) const TESTS: &[Test] = tests![
    every_kind_of_name_finds_the_image [Root, Overlay],
    one_name_removed_removes_the_image [Root, Overlay],
    the_user_is_a_number_or_a_name [Root, Overlay],
    a_failed_pull_has_the_code_of_its_reason [Root, Overlay],
    the_file_system_is_a_real_one [Root, Overlay],
    what_others_do_to_images_is_seen_at_once [Root, Overlay, Containerd],
    images_of_other_clients_are_the_kubelets_to_remove [Root, Overlay, Containerd],
    verifiers_decide_about_pods_images_too [Root, Overlay],
];

fn every_kind_of_name_finds_the_image(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let mut pods = Pods::connect(env, &stack.daemon)?;
    let id = pods.pull(&stack.image)?;
    assert!(id.starts_with("sha256:"), "{id}");
    assert_eq!(pods.pull(&stack.image)?, id, "again");
    let image = pods.image(&id)?.expect("by id");
    assert_eq!((image.id.as_str(), &image.repo_tags), (id.as_str(), &vec![stack.image.clone()]));
    assert!(image.size > 0 && image.repo_digests.len() == 1, "{image:?}");
    let digest = image.repo_digests[0].clone();
    let without_tag = stack.image.trim_end_matches(":latest").to_owned();
    for name in [&stack.image, &digest, &without_tag, &id["sha256:".len()..][..12].to_owned()] {
        assert_eq!(pods.image(name)?.map(|image| image.id), Some(id.clone()), "{name}");
    }
    assert_eq!(pods.image("nowhere.test/nothing")?, None);
    let listed = pods.runtime.block_on(pods.images.list_images(v1::ListImagesRequest { filter: None }))?;
    assert_eq!(listed.into_inner().images.len(), 1);
    let filter = v1::ImageFilter { image: Some(spec("nowhere.test/nothing")) };
    let none = pods.runtime.block_on(pods.images.list_images(v1::ListImagesRequest { filter: Some(filter) }))?;
    assert!(none.into_inner().images.is_empty());
    let mut all = pods.runtime.block_on(pods.images.stream_images(v1::StreamImagesRequest::default()))?.into_inner();
    let first = pods.runtime.block_on(all.message())?.expect("one message");
    assert_eq!(first.images, [image]);
    assert!(pods.runtime.block_on(all.message())?.is_none());
    // By digest alone it has no tag.
    pods.runtime.block_on(pods.images.remove_image(v1::RemoveImageRequest { image: Some(spec(&id)) }))?;
    pods.pull(&digest)?;
    let image = pods.image(&digest)?.expect("by digest");
    assert!(image.repo_tags.is_empty() && image.repo_digests == [digest], "{image:?}");
    Ok(())
}

fn one_name_removed_removes_the_image(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let image = Image::busybox()?;
    let names = [
        image.push(&stack.registry, "test/one", "a")?,
        image.push(&stack.registry, "test/one", "b")?,
        image.push(&stack.registry, "other/two", "c")?,
    ];
    let mut pods = Pods::connect(env, &stack.daemon)?;
    for name in &names {
        pods.pull(name)?;
    }
    let mut tags = pods.image(&names[0])?.expect("image").repo_tags;
    tags.sort();
    let mut expected = names.to_vec();
    expected.sort();
    assert_eq!(tags, expected);
    let request = || v1::RemoveImageRequest { image: Some(spec(&names[1])) };
    pods.runtime.block_on(async {
        let (mut first, mut second) = (pods.images.clone(), pods.images.clone());
        let (first, second) = tokio::join!(first.remove_image(request()), second.remove_image(request()));
        first.and(second)
    })?;
    for name in &names {
        assert_eq!(pods.image(name)?, None, "{name}");
    }
    pods.runtime.block_on(pods.images.remove_image(request()))?;
    Ok(())
}

fn the_user_is_a_number_or_a_name(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let mut pods = Pods::connect(env, &stack.daemon)?;
    for (user, uid, name) in [("1002", Some(1002), ""), ("1003:50", Some(1003), ""), ("www:www", None, "www")] {
        let image = Image::busybox()?.setting("User", user).push(&stack.registry, "test/user", "latest")?;
        pods.pull(&image)?;
        let image = pods.image(&image)?.expect("image");
        assert_eq!((image.uid.map(|uid| uid.value), image.username.as_str()), (uid, name), "{user}");
    }
    Ok(())
}

fn a_failed_pull_has_the_code_of_its_reason(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let mut pods = Pods::connect(env, &stack.daemon)?;
    let mut pull = |image: &str, auth| {
        let request = v1::PullImageRequest { image: Some(spec(image)), auth, sandbox_config: None };
        pods.runtime.block_on(pods.images.pull_image(request)).expect_err("cannot be")
    };
    let missing = pull(&stack.image.replace("busybox", "missing"), None);
    assert_eq!(missing.code(), Code::NotFound, "{missing}");
    assert_eq!(pull("", None).code(), Code::InvalidArgument);
    assert_eq!(pull("docker.io/UPPER/case", None).code(), Code::InvalidArgument);
    let auth = v1::AuthConfig { auth: "not base64!".into(), ..Default::default() };
    assert_eq!(pull(&stack.image, Some(auth)).code(), Code::InvalidArgument);
    Ok(())
}

fn the_file_system_is_a_real_one(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let mut pods = Pods::connect(env, &stack.daemon)?;
    pods.pull(&stack.image)?;
    let info = pods.runtime.block_on(pods.images.image_fs_info(v1::ImageFsInfoRequest {}))?.into_inner();
    let image = &info.image_filesystems[0];
    let mountpoint = image.fs_id.as_ref().expect("file system").mountpoint.clone();
    assert!(std::path::Path::new(&mountpoint).is_dir(), "{mountpoint}");
    assert!(image.used_bytes.is_some_and(|bytes| bytes.value > 0), "{image:?}");
    assert!(image.inodes_used.is_some_and(|inodes| inodes.value > 0), "{image:?}");
    assert_eq!(info.container_filesystems.len(), 1);
    Ok(())
}

/// What was read of images is kept, and must not be kept a moment too long.
fn what_others_do_to_images_is_seen_at_once(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let mut pods = Pods::connect(env, &stack.daemon)?;
    let id = pods.pull(&stack.image)?;
    let ctr = |words: &[&str]| {
        let words: Vec<&str> = ["--namespace", "k8s.io", "images"].iter().chain(words).copied().collect();
        stack.daemon.ctr(&words)?.ok().map(drop)
    };
    let other = format!("{}-other", stack.image);
    for round in 0..3 {
        assert_eq!(pods.image(&other)?, None, "{round}");
        ctr(&["tag", &stack.image, &other])?;
        let image = pods.image(&other)?.expect("another name");
        assert_eq!((&image.id, image.repo_tags.len(), image.pinned), (&id, 2, false), "{image:?}");
        ctr(&["label", &other, "io.cri-containerd.pinned=pinned"])?;
        assert!(pods.image(&id)?.is_some_and(|image| image.pinned));
        ctr(&["rm", &other])?;
        let filter = v1::ImageFilter { image: Some(spec(&id)) };
        let request = v1::ListImagesRequest { filter: Some(filter) };
        let listed = pods.runtime.block_on(pods.images.list_images(request))?.into_inner().images;
        assert!(listed.len() == 1 && listed[0].repo_tags.len() == 1 && !listed[0].pinned, "{listed:?}");
    }
    let digest = pods.image(&id)?.expect("image").repo_digests.remove(0);
    ctr(&["rm", &stack.image, &digest, &id])?;
    assert_eq!(pods.image(&id)?, None);
    assert_eq!(pods.pull(&stack.image)?, id);
    assert!(pods.image(&stack.image)?.is_some());
    Ok(())
}

fn verifiers_decide_about_pods_images_too(env: &Env) -> Result<()> {
    let (registry, programs) = (Registry::start(env)?, env.dir("verifiers")?);
    let script = "#!/bin/sh\ncase \"$*\" in *signed/*) exit 0 ;; esac\necho no signature\nexit 1\n";
    env.script("verifiers/names", script)?;
    let daemon = env.daemon_configured(&format!("[image_verifier]\nbin_dir = {programs:?}\n"))?;
    let mut pods = Pods::connect(env, &daemon)?;
    let signed = Image::busybox()?.push(&registry, "signed/box", "latest")?;
    let other = Image::busybox()?.setting("User", "7").push(&registry, "other/box", "latest")?;
    let request = v1::PullImageRequest { image: Some(spec(&other)), ..Default::default() };
    let refused = pods.runtime.block_on(pods.images.pull_image(request)).expect_err("it is not signed");
    // As kubelets look for it.
    assert_eq!(refused.code(), Code::Unknown, "{refused}");
    let text = refused.message();
    assert!(text.starts_with("SignatureValidationFailed: ") && text.contains("no signature"), "{text}");
    assert_eq!(pods.image(&other)?, None);
    let id = pods.pull(&signed)?;
    assert_eq!(pods.image(&signed)?.map(|image| image.id), Some(id));
    Ok(())
}

/// As with containerd: the label and the record under the id, whatever client brought the image.
fn images_of_other_clients_are_the_kubelets_to_remove(env: &Env) -> Result<()> {
    let (_registry, image) = Registry::with_busybox(env)?;
    let daemon = env.daemon_configured(&format!("[cri]\npinned_images = [{image:?}]\n"))?;
    let mut pods = Pods::connect(env, &daemon)?;
    let ctr = |words: &[&str]| {
        let words: Vec<&str> = ["--namespace", "k8s.io", "images"].iter().chain(words).copied().collect();
        daemon.ctr(&words)?.ok()
    };
    ctr(&["pull", "--plain-http", "--label", "a=b", &image])?;
    let id = pods.image(&image)?.expect("image").id;
    let listed = wait::until("the image is taken over", || {
        let listed = ctr(&["ls"]).ok()?.stdout;
        let managed = |line: &&str| line.contains("io.cri-containerd.image=managed");
        (listed.lines().filter(managed).count() == 2).then_some(listed)
    })?;
    for (name, label) in [(&image, "a=b"), (&image, "io.cri-containerd.pinned=pinned"), (&id, "")] {
        let line = listed.lines().find(|line| line.split_whitespace().next() == Some(name)).expect("a line");
        assert!(line.contains(label), "{line}");
    }
    // Somebody gives the name to another image, or takes it away: this one stays until the kubelet removes it.
    ctr(&["rm", &image])?;
    let left = pods.image(&id)?.expect("by id");
    assert!(left.repo_tags.is_empty(), "{left:?}");
    pods.runtime.block_on(pods.images.remove_image(v1::RemoveImageRequest { image: Some(spec(&id)) }))?;
    assert_eq!(pods.image(&id)?, None);
    let none = ctr(&["ls", "--quiet"])?;
    assert_eq!(none.stdout, "", "{none}");
    Ok(())
}
