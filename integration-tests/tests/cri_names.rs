//! What registries.conf(5) makes of the names of images: short ones, and those that lead to a mirror or nowhere.

use std::fs;
use std::path::PathBuf;

use gantry_proto::runtime::v1;
use integration_tests::pods::{Pods, spec};
use integration_tests::{Env, Image, Registry, Result, Test, tests};
use serde_json::json;
use tonic::{Code, Status};

pub(crate) const TESTS: &[Test] = tests![
    a_short_name_is_known_by_its_full_one [Root, Overlay],
    nobody_is_asked_which_registry_is_meant [Root, Overlay],
    names_lead_to_mirrors_or_nowhere [Root, Overlay],
];

/// Where registries.conf is, and a daemon's configuration that names it.
fn configured(env: &Env) -> (PathBuf, String) {
    let file = env.path("registries.conf");
    let config = format!("[registry]\nregistries_conf = {file:?}\n");
    (file, config)
}

fn refused(pods: &mut Pods<'_>, image: &str) -> Status {
    let request = v1::PullImageRequest { image: Some(spec(image)), auth: None, sandbox_config: None };
    pods.runtime.block_on(pods.images.pull_image(request)).expect_err("cannot be")
}

fn a_short_name_is_known_by_its_full_one(env: &Env) -> Result<()> {
    let (file, config) = configured(env);
    let registry = Registry::start(env)?;
    let tools = Image::busybox()?.push(&registry, "team/tools", "1")?;
    let plain = Image::busybox()?.setting("User", "7").push(&registry, "plain", "latest")?;
    let host = registry.host();
    fs::write(&file, format!("unqualified-search-registries = [{host:?}]\n"))?;
    let drop_in = env.dir("registries.conf.d")?.join("1.conf");
    fs::write(&drop_in, format!("[aliases]\n\"tools\" = \"{host}/team/tools\"\n"))?;
    let policies = env.dir("policies")?;
    let daemon = env.daemon_configured(&format!("{config}[image_policy]\nnamespaces_dir = {policies:?}\n"))?;
    let mut pods = Pods::connect(env, &daemon)?;
    // An alias, and the only registry that is searched.
    for (short, full) in [("tools:1", &tools), ("plain", &plain)] {
        assert_eq!(pods.image(short)?, None, "{short}");
        let id = pods.pull(short)?;
        let image = pods.image(short)?.expect("by its short name");
        assert_eq!((image.id.as_str(), &image.repo_tags), (id.as_str(), &vec![full.clone()]), "{short}");
        assert!(image.repo_digests[0].starts_with(&format!("{}@", full.rsplit_once(':').expect("tag").0)), "{image:?}");
        assert_eq!(pods.image(full)?.map(|image| image.id), Some(id), "{full}");
    }
    let listed = v1::ListImagesRequest { filter: Some(v1::ImageFilter { image: Some(spec("tools:1")) }) };
    assert_eq!(pods.runtime.block_on(pods.images.list_images(listed))?.into_inner().images.len(), 1);
    let config = pods.pod_config("short");
    let pod = pods.run(&config)?;
    let container = pods.start(&pod, &config, "tools:1", &["sleep", "1000"], |_| {})?;
    let status = pods.status(&container)?;
    assert_eq!(status.image.expect("image").image, tools);
    // A policy is about the full name, whatever the pod calls it.
    let policy = json!({
        "default": [{"type": "insecureAcceptAnything"}],
        "transports": {"docker": {format!("{host}/team"): [{"type": "reject"}]}},
    });
    let namespace = &config.metadata.as_ref().expect("metadata").namespace;
    fs::write(policies.join(format!("{namespace}.json")), policy.to_string())?;
    let id = pods.image("tools:1")?.expect("by its short name").id;
    let refused_now = pods.start(&pod, &config, &id, &["true"], |container| {
        container.metadata.get_or_insert_default().attempt = 1;
        container.image.get_or_insert_default().user_specified_image = "tools:1".to_owned();
    });
    let error = refused_now.expect_err("it is rejected");
    assert!(format!("{error:#}").contains("images are rejected"), "{error:#}");
    pods.remove(&pod)?;
    pods.runtime.block_on(pods.images.remove_image(v1::RemoveImageRequest { image: Some(spec("plain")) }))?;
    assert_eq!(pods.image(&plain)?, None);
    // The files are read each time; what is wrong in them is named.
    fs::write(&drop_in, "[aliases]\ntools = 1\n")?;
    let error = refused(&mut pods, "tools:1");
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    let message = error.message();
    assert!(message.contains("registries.conf.d/1.conf: aliases.\"tools\": must be a text"), "{message}");
    assert_eq!(pods.image(&tools)?.map(|image| image.repo_tags), Some(vec![tools.clone()]), "by its record");
    fs::remove_file(&drop_in)?;
    fs::remove_file(&file)?;
    let error = refused(&mut pods, "tools:1");
    assert!(error.message().contains("registries.conf: read: no such file"), "{error}");
    Ok(())
}

fn nobody_is_asked_which_registry_is_meant(env: &Env) -> Result<()> {
    let (file, config) = configured(env);
    let (first, second) = (Registry::start(env)?, Registry::start_with(env, "second", "")?);
    let image = Image::busybox()?.push(&second, "tools", "latest")?;
    let search =
        format!("unqualified-search-registries = [\"127.0.0.1:1\", {:?}, {:?}]\n", first.host(), second.host());
    fs::write(&file, &search)?;
    let daemon = env.daemon_configured(&config)?;
    let mut pods = Pods::connect(env, &daemon)?;
    let error = refused(&mut pods, "tools");
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    for part in ["\"tools\"", &first.host(), &second.host(), "alias", "short-name-mode = \"permissive\""] {
        assert!(error.message().contains(part), "{part}: {error}");
    }
    fs::write(&file, format!("{search}short-name-mode = \"permissive\"\n"))?;
    pods.pull("tools")?;
    assert_eq!(pods.image("tools")?.expect("image").repo_tags, [image]);
    // Of what none has, each registry has its say.
    let error = refused(&mut pods, "nothing");
    assert_eq!(error.code(), Code::NotFound, "{error}");
    for host in ["127.0.0.1:1", &first.host(), &second.host()] {
        assert!(error.message().contains(&format!("{host}/nothing")), "{host}: {error}");
    }
    Ok(())
}

fn names_lead_to_mirrors_or_nowhere(env: &Env) -> Result<()> {
    let (file, config) = configured(env);
    let (empty, mirror) = (Registry::start(env)?, Registry::start_with(env, "second", "")?);
    let pushed = Image::busybox()?.push(&mirror, "cache/app", "1")?;
    let moved = Image::busybox()?.setting("User", "7").push(&mirror, "elsewhere/tool", "2")?;
    // Neither host of the names is there: what comes is from the other places.
    let text = format!(
        "[[registry]]\nprefix = \"corp.invalid/team\"\nlocation = \"127.0.0.1:1/team\"\n\
         [[registry.mirror]]\nlocation = \"{empty}/cache\"\ninsecure = true\n\
         [[registry.mirror]]\nlocation = \"{mirror}/cache\"\npull-from-mirror = \"tag-only\"\n\
         [[registry]]\nprefix = \"*.old.invalid\"\nlocation = \"{mirror}/elsewhere\"\n\
         [[registry]]\nprefix = \"corp.invalid/team/secret\"\nblocked = true\n",
        empty = empty.host(),
        mirror = mirror.host(),
    );
    fs::write(&file, text)?;
    let daemon = env.daemon_configured(&config)?;
    let mut pods = Pods::connect(env, &daemon)?;
    let by_pods = [("corp.invalid/team/app:1", &pushed), ("a.old.invalid/tool:2", &moved)];
    for (name, _) in by_pods {
        pods.pull(name)?;
        assert_eq!(pods.image(name)?.expect("image").repo_tags, [name]);
    }
    for (name, place) in by_pods {
        let said = daemon.gantry(&["registry", "explain", name])?.ok()?.stdout;
        assert!(said.contains(place.split('/').next().expect("host")), "{said}");
        daemon.gantry(&["pull", name])?.ok()?;
    }
    let digest = pods.image("corp.invalid/team/app:1")?.expect("image").repo_digests[0].clone();
    pods.runtime.block_on(pods.images.remove_image(v1::RemoveImageRequest { image: Some(spec(&digest)) }))?;
    let error = refused(&mut pods, &digest);
    assert!(error.message().contains(&digest), "the mirror that has it is for tags only: {error}");
    let error = refused(&mut pods, "corp.invalid/team/secret:1");
    assert_eq!(error.code(), Code::PermissionDenied, "{error}");
    assert!(error.message().contains("registries.conf: corp.invalid/team/secret: is blocked"), "{error}");
    Ok(())
}
