//! OCI artifacts: volumes of files, and filters of system calls.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use anyhow::Context as _;
use gantry_proto::runtime::v1;
use integration_tests::image::{Blob, media};
use integration_tests::pods::{Pods, spec};
use integration_tests::{Env, Registry, Result, Stack, Test, tests};
use serde_json::{Value, json};
use tonic::Code;

pub(crate) const TESTS: &[Test] = tests![
    an_artifact_is_a_volume_of_files [Root, Overlay],
    an_artifact_that_is_mounted_keeps_its_blobs [Root, Overlay],
    hostile_artifacts_are_no_volumes [Root, Overlay],
    half_a_volume_is_made_anew [Root, Overlay],
    an_artifact_is_a_filter_of_system_calls [Root, Overlay],
];

/// Pushes files under these names, without one where that is empty, and answers with the name of it all and its manifest.
fn push(registry: &Registry, tag: &str, files: &[(&str, &[u8])]) -> Result<(String, Blob)> {
    let empty = Blob::new("application/vnd.oci.empty.v1+json", b"{}".to_vec());
    registry.put_blob("test/artifact", &empty)?;
    let layer = |(title, bytes): &(&str, &[u8])| -> Result<Value> {
        let blob = Blob::new("application/octet-stream", bytes.to_vec());
        registry.put_blob("test/artifact", &blob)?;
        let mut layer = blob.descriptor();
        if !title.is_empty() {
            layer["annotations"] = json!({"org.opencontainers.image.title": title});
        }
        Ok(layer)
    };
    let layers = files.iter().map(layer).collect::<Result<Vec<_>>>()?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media::MANIFEST,
        "artifactType": "application/vnd.example.files",
        "config": empty.descriptor(),
        "layers": layers,
    });
    let manifest = Blob::new(media::MANIFEST, manifest.to_string().into_bytes());
    registry.put_manifest("test/artifact", tag, &manifest)?;
    Ok((format!("{}/test/artifact:{tag}", registry.host()), manifest))
}

fn mount(artifact: &str, place: &str, sub: &str) -> v1::Mount {
    v1::Mount {
        container_path: place.to_owned(),
        image: Some(spec(artifact)),
        image_sub_path: sub.to_owned(),
        readonly: true,
        ..Default::default()
    }
}

fn blob_path(env: &Env, bytes: &[u8]) -> PathBuf {
    let digest = integration_tests::image::digest(bytes).replace(':', "/");
    env.path("root/io.containerd.content.v1.content/blobs").join(digest)
}

/// Runs a script in a container of its own, and answers with how it ended and what it said.
fn script(
    env: &Env,
    pods: &mut Pods<'_>,
    pod: (&str, &v1::PodSandboxConfig),
    image: &str,
    text: &str,
    edit: impl FnOnce(&mut v1::ContainerConfig),
) -> Result<(i32, String)> {
    let id = pods.start(pod.0, pod.1, image, &["/bin/sh", "-c", text], |container| {
        container.log_path = "said.log".to_owned();
        container.metadata = Some(v1::ContainerMetadata { name: "said".to_owned(), attempt: 0 });
        edit(container);
    })?;
    let code = pods.exit_code(&id)?;
    let said = env.path("logs").join("said.log");
    let text = fs::read_to_string(&said)?;
    fs::remove_file(&said)?;
    let request = v1::RemoveContainerRequest { container_id: id };
    pods.runtime.block_on(pods.pods.remove_container(request))?;
    let lines: Vec<&str> = text.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap_or_default()).collect();
    Ok((code, lines.join("\n")))
}

fn refusal<T: std::fmt::Debug>(tried: Result<T>, code: Code) -> String {
    let error = tried.expect_err("refused");
    let status = error.downcast_ref::<tonic::Status>().unwrap_or_else(|| panic!("no status: {error:#}"));
    assert_eq!(status.code(), code, "{status}");
    status.message().to_owned()
}

fn used(pods: &mut Pods<'_>) -> Result<u64> {
    let info = pods.runtime.block_on(pods.images.image_fs_info(v1::ImageFsInfoRequest {}))?.into_inner();
    Ok(info.image_filesystems.first().and_then(|it| it.used_bytes).context("no usage")?.value)
}

fn an_artifact_is_a_volume_of_files(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let large = vec![b'x'; 1 << 20];
    let files: [(&str, &[u8]); 5] =
        [("hello.txt", b"hello"), ("sub/two", b"2"), ("sub/d/three", b"#!/bin/sh\n"), ("", b"nameless"), ("x", &large)];
    let (artifact, manifest) = push(&stack.registry, "one", &files)?;
    let (other, _) = push(&stack.registry, "other", &[("y", b"y")])?;
    let mut pods = Pods::connect(env, &stack.daemon)?;
    pods.pull(&stack.image)?;
    let before = used(&mut pods)?;
    // All artifacts may have the same configuration: their manifests tell them apart.
    let id = pods.pull(&artifact)?;
    assert!(id == manifest.digest && pods.pull(&other)? != id, "{id}");
    let told = pods.image(&id)?.context("no image")?;
    let size = 2 + files.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>();
    assert_eq!((&told.repo_tags, told.size, told.uid), (&vec![artifact.clone()], size, None));
    assert!(used(&mut pods)? >= before + (1 << 20), "its blobs take space");
    let config = pods.pod_config("pod");
    let pod = pods.run(&config)?;
    let text = "exec 2>&1; cd /a && id -u && find . | sort && cat hello.txt sub/two && stat -c %a hello.txt sub && stat -c %i x; \
                ls /s; echo x > hello.txt; touch new; sub/d/three; rm -f x; cat /s/d/three";
    let (_, said) = script(env, &mut pods, (&pod, &config), &stack.image, text, |container| {
        container.mounts = vec![mount(&artifact, "/a", ""), mount(&id, "/s", "./sub")];
        let user = v1::Int64Value { value: 1000 };
        let context = v1::LinuxContainerSecurityContext { run_as_user: Some(user), ..Default::default() };
        container.linux.get_or_insert_default().security_context = Some(context);
    })?;
    let inode = fs::metadata(blob_path(env, &large))?.ino();
    let expected =
        format!("1000\n.\n./hello.txt\n./sub\n./sub/d\n./sub/d/three\n./sub/two\n./x\nhello2444\n755\n{inode}\n");
    assert!(said.starts_with(&expected), "{said}");
    let rest = said.split_at(expected.len()).1;
    assert!(rest.starts_with("d\ntwo\n") && rest.ends_with("#!/bin/sh"), "{rest}");
    for refused in ["hello.txt: Read-only", "new: Read-only", "sub/d/three: Permission denied", "'x': Read-only"] {
        assert!(rest.contains(refused), "{refused}: {rest}");
    }
    for (sub, problem) in [("none", "no such file"), ("hello.txt", "ot a directory"), ("../x", "leads out")] {
        let refused = script(env, &mut pods, (&pod, &config), &stack.image, "true", |container| {
            container.mounts = vec![mount(&artifact, "/a", sub)];
        });
        let refused = format!("{:#}", refused.expect_err(sub));
        assert!(refused.contains("ImageVolumeMountFailed") && refused.contains(problem), "{refused}");
    }
    // It is no root file system, for pods or anybody.
    let refused = refusal(pods.start(&pod, &config, &artifact, &["x"], |_| {}), Code::InvalidArgument);
    assert!(refused.contains("is an artifact (application/vnd.example.files)"), "{refused}");
    let refused = stack.gantry(&["run", "--rm", &artifact, "x"])?;
    assert!(refused.stderr.contains("is an artifact"), "{refused:?}");
    pods.remove(&pod)?;
    let remove = v1::RemoveImageRequest { image: Some(spec(&id)) };
    pods.runtime.block_on(pods.images.remove_image(remove))?;
    assert_eq!(pods.image(&artifact)?, None);
    Ok(())
}

fn an_artifact_that_is_mounted_keeps_its_blobs(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let (artifact, _) = push(&stack.registry, "kept", &[("kept.txt", b"still here")])?;
    let mut pods = Pods::connect(env, &stack.daemon)?;
    let image = pods.pull(&stack.image)?;
    pods.pull(&artifact)?;
    let config = pods.pod_config("pod");
    let pod = pods.run(&config)?;
    let container = pods.start(&pod, &config, &image, &["sleep", "1000"], |container| {
        container.mounts = vec![mount(&artifact, "/a", "")];
    })?;
    let remove = v1::RemoveImageRequest { image: Some(spec(&artifact)) };
    pods.runtime.block_on(pods.images.remove_image(remove))?;
    let blob = blob_path(env, b"still here");
    stack.gantry(&["system", "gc"])?.ok()?;
    assert!(blob.exists(), "a container has it");
    let cmd = ["cat", "/a/kept.txt"].map(str::to_owned).to_vec();
    let request = v1::ExecSyncRequest { container_id: container, cmd, timeout: 60 };
    assert_eq!(pods.runtime.block_on(pods.pods.exec_sync(request))?.into_inner().stdout, b"still here");
    pods.remove(&pod)?;
    stack.gantry(&["system", "gc"])?.ok()?;
    assert!(!blob.exists(), "nobody has it any more");
    Ok(())
}

fn hostile_artifacts_are_no_volumes(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let mut pods = Pods::connect(env, &stack.daemon)?;
    pods.pull(&stack.image)?;
    let config = pods.pod_config("pod");
    let pod = pods.run(&config)?;
    let names = [
        ("up", vec!["good", "../../x"], "leads out of the volume"),
        ("root", vec!["/etc/passwd"], "leads out of the volume"),
        ("twice", vec!["x", "./x"], "is there twice"),
        ("inside", vec!["x", "x/y"], "is inside of another file"),
        ("none", vec![""], "no layer of it has a name"),
    ];
    for (tag, titles, problem) in names {
        let files: Vec<(&str, &[u8])> = titles.iter().map(|title| (*title, b"data".as_slice())).collect();
        let (artifact, _) = push(&stack.registry, tag, &files)?;
        pods.pull(&artifact)?;
        let tried = pods.start(&pod, &config, &stack.image, &["true"], |container| {
            container.mounts = vec![mount(&artifact, "/a", "")];
        });
        let refused = refusal(tried, Code::InvalidArgument);
        assert!(refused.contains("ImageVolumeMountFailed") && refused.contains(problem), "{refused}");
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let images = format!("{}/cri/pods/{pod}/images", env.path("state").display());
    assert!(!mounts.contains(&images), "{mounts}");
    Ok(())
}

fn half_a_volume_is_made_anew(env: &Env) -> Result<()> {
    let (registry, image) = Registry::with_busybox(env)?;
    let (artifact, _) = push(&registry, "half", &[("one", b"1"), ("two", b"2")])?;
    let mut daemon = env.daemon_dying_at("cri.artifact.mounting")?;
    let mut pods = Pods::connect(env, &daemon)?;
    pods.pull(&image)?;
    pods.pull(&artifact)?;
    let config = pods.pod_config("pod");
    let pod = pods.run(&config)?;
    let with = |container: &mut v1::ContainerConfig| container.mounts = vec![mount(&artifact, "/a", "")];
    pods.start(&pod, &config, &image, &["true"], with).expect_err("the daemon dies");
    assert!(daemon.died());
    std::mem::forget(pods);
    let daemon = env.daemon()?;
    let mut pods = Pods::connect(env, &daemon)?;
    let (code, said) = script(env, &mut pods, (&pod, &config), &image, "cat /a/one /a/two", with)?;
    assert_eq!((code, said.as_str()), (0, "12"));
    pods.remove(&pod)
}

fn an_artifact_is_a_filter_of_system_calls(env: &Env) -> Result<()> {
    let stack = Stack::start_configured(
        env,
        "[cri.runtimes.rung]\nallowed_annotations = [\"seccomp-profile.crio.io\"]\n[cri.runtimes.strict]\n",
    )?;
    let profile = |more: Value| {
        let mut profile = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
        });
        profile.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
        profile.to_string()
    };
    let (filter, _) = push(&stack.registry, "filter", &[("", profile(json!({})).as_bytes())])?;
    let listening = profile(json!({"listenerPath": "/run/x.sock"}));
    let (listening, _) = push(&stack.registry, "listening", &[("", listening.as_bytes())])?;
    let mut pods = Pods::connect(env, &stack.daemon)?;
    pods.pull(&stack.image)?;
    let mut config = pods.pod_config("pod");
    let annotation = |of: &str, value: &str| (format!("seccomp-profile.kubernetes.cri-o.io/{of}"), value.to_owned());
    config.annotations = [
        annotation("POD", &filter),
        annotation("missing", &filter.replace("filter", "missing")),
        annotation("image", &stack.image),
        annotation("listening", &listening),
    ]
    .into();
    let pod = pods.run(&config)?;
    let named = |name: &str| v1::ContainerMetadata { name: name.to_owned(), attempt: 0 };
    // It is pulled when it is asked for.
    let (_, said) = script(env, &mut pods, (&pod, &config), &stack.image, "mkdir /d", |_| {})?;
    assert!(said.contains("Operation not permitted"), "{said}");
    assert!(pods.image(&filter)?.is_some());
    // What a container asks for itself counts for more.
    let default = v1::SecurityProfile::default();
    let (code, said) = script(env, &mut pods, (&pod, &config), &stack.image, "mkdir /d", |container| {
        let context = v1::LinuxContainerSecurityContext { seccomp: Some(default), ..Default::default() };
        container.linux.get_or_insert_default().security_context = Some(context);
    })?;
    assert_eq!(code, 0, "{said}");
    for (name, code, problem) in [
        ("missing", Code::NotFound, "annotation seccomp-profile.kubernetes.cri-o.io/missing"),
        ("image", Code::InvalidArgument, "is an image"),
        ("listening", Code::InvalidArgument, "listenerPath"),
    ] {
        let tried = pods.start(&pod, &config, &stack.image, &["true"], |container| {
            container.metadata = Some(named(name));
        });
        let refused = refusal(tried, code);
        assert!(refused.contains(problem), "{refused}");
    }
    // A container that sees the pod's own process must not have that make calls in its place.
    let mut shared = config.clone();
    shared.metadata = Some(v1::PodSandboxMetadata { name: env.id("shared"), ..shared.metadata.unwrap_or_default() });
    let context = shared.linux.get_or_insert_default().security_context.get_or_insert_default();
    context.namespace_options.get_or_insert_default().pid = v1::NamespaceMode::Pod.into();
    let shared = pods.run(&shared)?;
    let first = pods.pod_info(&shared)?["pid"].as_i64().context("no process")?;
    let status = fs::read_to_string(format!("/proc/{first}/status"))?;
    assert!(status.lines().any(|line| line == "Seccomp:\t2"), "{status}");
    // Another handler does not allow it.
    config.metadata = Some(v1::PodSandboxMetadata { name: env.id("strict"), ..config.metadata.unwrap_or_default() });
    let request = v1::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: "strict".to_owned() };
    let strict = pods.runtime.block_on(pods.pods.run_pod_sandbox(request))?.into_inner().pod_sandbox_id;
    let (code, said) = script(env, &mut pods, (&strict, &config), &stack.image, "mkdir /d", |_| {})?;
    assert_eq!(code, 0, "{said}");
    Ok(())
}
