//! Checkpoints through the daemon and the shim, into the content store and back. A stand-in for the runtime takes criu's
//! place where that does not work: it writes a file as a checkpoint and starts the container anew as a restore.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use gantry_proto::any;
use gantry_proto::containerd::runc::v1::{CheckpointOptions, Options};
use gantry_proto::containerd::services::containers::v1::containers_client::ContainersClient;
use gantry_proto::containerd::services::containers::v1::{self as containers, Container, container};
use gantry_proto::containerd::services::tasks::v1::tasks_client::TasksClient;
use gantry_proto::containerd::services::tasks::v1::{self as tasks};
use gantry_proto::containerd::types::{Descriptor, Mount};
use gantry_proto::namespace::NAMESPACE_HEADER;
use integration_tests::{Bundle, Env, Result, Test, daemon, tests, wait};
use prost_types::Any;
use serde_json::json;
use tonic::transport::Channel;
use tonic::{Code, Request};

pub(crate) const TESTS: &[Test] = tests![
    a_checkpoint_is_content_and_is_restored_from[Root],
    a_checkpoint_may_be_a_directory[Root],
    what_is_no_checkpoint_is_refused[Root],
    a_container_goes_on_from_its_checkpoint[Root, Criu],
    maps_of_mounts_need_a_runtime_that_knows_them[Root],
];

const STAND_IN: &str = r#"#!/bin/sh
# rung, but for two verbs. Of some containers it makes no checkpoint.
rung=RUNG
verb=; images=; root=; n=$#
while [ $n -gt 0 ]; do
    word=$1; shift; n=$((n - 1))
    case $word in
    --image-path) images=$1; shift; n=$((n - 1)); continue ;;
    --work-path) shift; n=$((n - 1)); continue ;;
    --leave-running) continue ;;
    --detach) [ "$verb" != restore ] || continue ;;
    --root) root=$1 ;;
    checkpoint) verb=checkpoint ;;
    restore) verb=restore; word=create ;;
    features) echo '{"linux":{}}'; exit ;;
    esac
    set -- "$@" "$word"
done
case $verb in
checkpoint) [ ! -e "$0-refuses-$word" ] && mkdir -p "$images/sub" && echo pages | tee "$images/pages-1.img" > "$images/sub/pages-1.img" ;;
restore)
    [ "$(cat "$images/pages-1.img")" = pages ] || exit 1
    "$rung" "$@" && "$rung" --root "$root" start "$word" ;;
*) exec "$rung" "$@" ;;
esac
"#;

/// A client of the daemon's, with one container.
struct Client<'env> {
    env: &'env Env,
    channel: Channel,
    id: String,
    rootfs: Vec<Mount>,
}

const LEASE: &str = "checkpoints";

impl<'env> Client<'env> {
    async fn new(env: &'env Env, daemon: &integration_tests::Daemon<'_>, bundle: &Bundle) -> Result<Self> {
        let source = bundle.rootfs().to_string_lossy().into_owned();
        // As every client does: nothing else keeps the content of a checkpoint.
        daemon.ctr(&["leases", "create", "--id", LEASE])?.ok()?;
        let bind = Mount { r#type: "bind".into(), source, options: vec!["rbind".into()], ..Mount::default() };
        Ok(Self { env, channel: daemon.channel().await?, id: env.id("c"), rootfs: vec![bind] })
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let namespace = self.env.namespace().parse().expect("a namespace is text");
        request.metadata_mut().insert(NAMESPACE_HEADER, namespace);
        request
    }

    async fn add(&self, bundle: &Bundle, runtime: Option<&Path>) -> Result<()> {
        let binary_name = runtime.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
        let root = self.env.path("runtime").to_string_lossy().into_owned();
        let options = any::pack(&Options { binary_name, root, ..Options::default() });
        let runtime = container::Runtime { name: "io.containerd.rung.v2".into(), options: Some(options) };
        let spec = Some(any::json(any::SPEC, serde_json::to_vec(&bundle.config)?));
        let container = Container { id: self.id.clone(), runtime: Some(runtime), spec, ..Container::default() };
        let request = self.request(containers::CreateContainerRequest { container: Some(container) });
        ContainersClient::new(self.channel.clone()).create(request).await?;
        Ok(())
    }

    async fn create(&self, checkpoint: Option<Descriptor>) -> std::result::Result<(), tonic::Status> {
        let (container_id, rootfs) = (self.id.clone(), self.rootfs.clone());
        let request =
            tasks::CreateTaskRequest { container_id, rootfs, checkpoint, ..tasks::CreateTaskRequest::default() };
        self.tasks().create(self.request(request)).await.map(drop)
    }

    async fn start(&self) -> Result<u32> {
        let request = tasks::StartRequest { container_id: self.id.clone(), exec_id: String::new() };
        Ok(self.tasks().start(self.request(request)).await?.into_inner().pid)
    }

    async fn checkpoint(&self, options: CheckpointOptions) -> Result<Vec<Descriptor>> {
        let (container_id, options) = (self.id.clone(), Some(any::pack(&options)));
        let request = tasks::CheckpointTaskRequest { container_id, options, parent_checkpoint: String::new() };
        let mut request = self.request(request);
        request.metadata_mut().insert("containerd-lease", LEASE.parse()?);
        Ok(self.tasks().checkpoint(request).await?.into_inner().descriptors)
    }

    async fn end(&self) -> Result<()> {
        let container_id = self.id.clone();
        let kill = tasks::KillRequest { container_id, signal: 9, ..tasks::KillRequest::default() };
        // What exits with its checkpoint is gone.
        let _ = self.tasks().kill(self.request(kill)).await;
        let (container_id, exec_id) = (self.id.clone(), String::new());
        self.tasks().wait(self.request(tasks::WaitRequest { container_id, exec_id })).await?;
        let container_id = self.id.clone();
        self.tasks().delete(self.request(tasks::DeleteTaskRequest { container_id })).await?;
        Ok(())
    }

    async fn remove(&self) -> Result<()> {
        let request = self.request(containers::DeleteContainerRequest { id: self.id.clone() });
        ContainersClient::new(self.channel.clone()).delete(request).await?;
        Ok(())
    }

    fn tasks(&self) -> TasksClient<Channel> {
        TasksClient::new(self.channel.clone())
    }
}

pub(crate) fn stand_in(env: &Env) -> Result<std::path::PathBuf> {
    let path = env.path("stand-in");
    fs::write(&path, STAND_IN.replace("RUNG", &env.program("rung")?.to_string_lossy()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

fn sleeping(env: &Env) -> Result<Bundle> {
    Bundle::new(env, "bundle", &["sleep", "1000"])
}

fn a_checkpoint_is_content_and_is_restored_from(env: &Env) -> Result<()> {
    let (bundle, runtime) = (sleeping(env)?, stand_in(env)?);
    let daemon = env.daemon()?;
    daemon::runtime()?.block_on(async {
        let client = Client::new(env, &daemon, &bundle).await?;
        client.add(&bundle, Some(&runtime)).await?;
        client.create(None).await?;
        client.start().await?;
        let made = client.checkpoint(CheckpointOptions::default()).await?;
        client.end().await?;
        let types: Vec<&str> = made.iter().map(|one| one.media_type.as_str()).collect();
        let wanted = [
            "application/vnd.containerd.container.criu.checkpoint.criu.tar",
            "application/vnd.containerd.container.checkpoint.config.v1+proto",
        ];
        assert_eq!(types, wanted);
        let spec = fs::read(blob(env, &made[1].digest))?;
        let spec: Any = prost::Message::decode(spec.as_slice())?;
        assert_eq!(any::json_of(&spec, any::SPEC)?, serde_json::to_vec(&bundle.config)?);
        client.create(Some(made[0].clone())).await?;
        let pid = client.start().await?;
        assert!(Path::new(&format!("/proc/{pid}")).exists());
        let work = env.path("root/io.containerd.runtime.v2.task").join(env.namespace()).join(&client.id);
        let gone = || (!work.join("checkpoint").exists()).then_some(());
        wait::until("what was restored from to be removed", gone)?;
        client.end().await?;
        assert!(!work.exists());
        client.remove().await
    })
}

fn blob(env: &Env, digest: &str) -> std::path::PathBuf {
    env.path("root/io.containerd.content.v1.content/blobs").join(digest.replace(':', "/"))
}

fn a_checkpoint_may_be_a_directory(env: &Env) -> Result<()> {
    let (bundle, runtime) = (sleeping(env)?, stand_in(env)?);
    let daemon = env.daemon()?;
    daemon::runtime()?.block_on(async {
        let client = Client::new(env, &daemon, &bundle).await?;
        client.add(&bundle, Some(&runtime)).await?;
        client.create(None).await?;
        client.start().await?;
        let image_path = env.path("images").to_string_lossy().into_owned();
        let made =
            client.checkpoint(CheckpointOptions { image_path: image_path.clone(), ..Default::default() }).await?;
        assert!(made.is_empty() && env.path("images/sub/pages-1.img").exists());
        client.end().await?;
        let annotations = [("RestoreFromPath".to_owned(), image_path)].into();
        client.create(Some(Descriptor { annotations, ..Descriptor::default() })).await?;
        client.start().await?;
        client.end().await?;
        client.remove().await
    })
}

fn what_is_no_checkpoint_is_refused(env: &Env) -> Result<()> {
    let (bundle, runtime) = (sleeping(env)?, stand_in(env)?);
    let daemon = env.daemon()?;
    daemon::runtime()?.block_on(async {
        let client = Client::new(env, &daemon, &bundle).await?;
        client.add(&bundle, Some(&runtime)).await?;
        let digest = format!("sha256:{}", "0".repeat(64));
        let media_type = "application/vnd.containerd.container.criu.checkpoint.criu.tar".to_owned();
        let missing = Descriptor { media_type, digest, ..Descriptor::default() };
        let refused = client.create(Some(missing.clone())).await.expect_err("there is no such content");
        assert_eq!(refused.code(), Code::NotFound, "{refused}");
        let other = Descriptor { media_type: "text/plain".into(), ..missing };
        let refused = client.create(Some(other)).await.expect_err("it is no checkpoint");
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        // Nothing is left in its way.
        client.create(None).await?;
        client.start().await?;
        client.end().await?;
        client.remove().await
    })
}

fn a_container_goes_on_from_its_checkpoint(env: &Env) -> Result<()> {
    let script = "i=0; while true; do i=$((i+1)); echo $i > /count; sleep 0.05; done";
    let mut bundle = Bundle::new(env, "bundle", &["sh", "-c", script])?;
    bundle.set("/root/readonly", false);
    let count = || fs::read_to_string(bundle.rootfs().join("count")).ok()?.trim().parse::<u64>().ok();
    let above = |least: u64| wait::until("it counts", || count().filter(|count| *count > least));
    let daemon = env.daemon()?;
    daemon::runtime()?.block_on(async {
        let client = Client::new(env, &daemon, &bundle).await?;
        client.add(&bundle, None).await?;
        client.create(None).await?;
        client.start().await?;
        above(3)?;
        let made = client.checkpoint(CheckpointOptions { exit: true, ..CheckpointOptions::default() }).await?;
        client.end().await?;
        let before = count().unwrap_or(3);
        client.create(made.into_iter().next()).await?;
        client.start().await.context("restore")?;
        let after = above(before)?;
        assert!(after < before + 1000, "it began anew: {after} after {before}");
        client.end().await?;
        client.remove().await
    })
}

fn maps_of_mounts_need_a_runtime_that_knows_them(env: &Env) -> Result<()> {
    let (mut bundle, runtime) = (sleeping(env)?, stand_in(env)?);
    let volume = env.dir("volume")?;
    bundle.push("/mounts", json!({"destination": "/tmp", "source": volume, "options": ["bind", "idmap"]}));
    let daemon = env.daemon()?;
    daemon::runtime()?.block_on(async {
        let client = Client::new(env, &daemon, &bundle).await?;
        client.add(&bundle, Some(&runtime)).await?;
        let refused = client.create(None).await.expect_err("the runtime would ignore the map");
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        assert!(refused.message().contains("id maps"), "{refused}");
        client.remove().await
    })
}
