//! Images moved by containerd's transfer service, as a current `ctr` asks for it: pull, push, import, export, tag, with
//! their streams.

use std::fs;

use anyhow::{Context, anyhow, bail};
use gantry_proto::any;
use gantry_proto::containerd::services::streaming::v1::StreamInit;
use gantry_proto::containerd::services::streaming::v1::streaming_client::StreamingClient;
use gantry_proto::containerd::services::transfer::v1::transfer_client::TransferClient;
use gantry_proto::containerd::services::transfer::v1::{TransferOptions, TransferRequest};
use gantry_proto::containerd::types::Platform;
use gantry_proto::containerd::types::transfer as wire;
use integration_tests::image::{self, Packing};
use integration_tests::tar::Tar;
use integration_tests::{Daemon, Env, Image, Registry, Result, Stack, Test, daemon, tests};
use prost::{Message, Name};
use prost_types::Any;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

pub(crate) const TESTS: &[Test] = tests![
    an_image_goes_round_and_comes_back_the_same [Root, Overlay],
    a_client_is_asked_for_an_account [Root, Overlay],
    refusals_have_the_codes_that_clients_know [Root],
    an_index_is_fetched_as_far_as_it_is_wanted [Root, Overlay],
];

/// A client of the two services.
struct Client<'env> {
    channel: Channel,
    env: &'env Env,
}

/// A stream that a client has opened.
struct Opened {
    to: mpsc::Sender<Any>,
    from: Streaming<Any>,
}

impl<'env> Client<'env> {
    async fn new(env: &'env Env, daemon: &Daemon<'_>) -> Result<Self> {
        Ok(Self { channel: daemon.channel().await?, env })
    }

    async fn open(&self, id: &str) -> Result<Opened, Status> {
        let (to, messages) = mpsc::channel(64);
        to.send(any::pack(&StreamInit { id: id.to_owned() })).await.map_err(|_| Status::internal("closed"))?;
        let request = self.env.request(ReceiverStream::new(messages));
        let mut from = StreamingClient::new(self.channel.clone()).stream(request).await?.into_inner();
        let ack = from.message().await?.ok_or_else(|| Status::internal("no acknowledgement"))?;
        assert_eq!(ack.type_url, "google.protobuf.Empty");
        Ok(Opened { to, from })
    }

    async fn transfer(&self, from: Any, to: Any, progress: &str) -> Result<(), Status> {
        let options = Some(TransferOptions { progress_stream: progress.to_owned() });
        let request = TransferRequest { source: Some(from), destination: Some(to), options };
        let request = self.env.request(request);
        TransferClient::new(self.channel.clone()).transfer(request).await.map(drop)
    }

    /// A transfer with all that it tells.
    async fn told(&self, from: Any, to: Any) -> Result<Vec<wire::Progress>> {
        let mut stream = self.open("progress").await?;
        let (done, told) = tokio::join!(self.transfer(from, to, "progress"), async {
            let mut told = Vec::new();
            while let Ok(Some(message)) = stream.from.message().await {
                told.push(unpack::<wire::Progress>(&message)?);
            }
            Ok::<_, anyhow::Error>(told)
        });
        done?;
        told
    }
}

fn unpack<M: Message + Name + Default>(message: &Any) -> Result<M> {
    any::unpack(message).map_err(|error| anyhow!("{error}"))
}

fn registry(reference: &str, auth_stream: &str) -> Any {
    let auth_stream = auth_stream.to_owned();
    let resolver = Some(wire::RegistryResolver { auth_stream, default_scheme: "http".into(), ..Default::default() });
    any::pack(&wire::OciRegistry { reference: reference.to_owned(), resolver })
}

fn host() -> Platform {
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    Platform { os: "linux".into(), architecture: architecture.into(), ..Platform::default() }
}

/// An image store as `ctr pull` asks for it.
fn store(name: &str) -> wire::ImageStore {
    let unpack = wire::UnpackConfiguration { platform: Some(host()), snapshotter: String::new() };
    wire::ImageStore {
        name: name.to_owned(),
        platforms: vec![host()],
        all_metadata: true,
        unpacks: vec![unpack],
        ..wire::ImageStore::default()
    }
}

fn events<'a>(told: &'a [wire::Progress], name: &str) -> Vec<&'a str> {
    told.iter().filter(|one| one.name == name).map(|one| one.event.as_str()).collect()
}

/// Exports an image into an archive, giving room as a client in Go does.
async fn export(client: &Client<'_>, name: &str) -> Result<Vec<u8>> {
    let mut stream = client.open("export").await?;
    let to = any::pack(&wire::ImageExportStream { stream: "export".into(), ..Default::default() });
    let named = wire::ImageReference { name: name.to_owned(), ..Default::default() };
    let from = any::pack(&wire::ImageStore { extra_references: vec![named], ..Default::default() });
    let receiving = async {
        let (mut archive, mut window) = (Vec::new(), 0_usize);
        loop {
            if window < 65536 {
                // What the daemon does not hear any more it need not.
                let _ = stream.to.send(any::pack(&wire::WindowUpdate { update: 65536 })).await;
                window += 65536;
            }
            let Some(message) = stream.from.message().await? else { break };
            let wire::Data { data } = unpack(&message)?;
            window = window.checked_sub(data.len()).context("more than there was room for")?;
            archive.extend_from_slice(&data);
        }
        Ok::<_, anyhow::Error>(archive)
    };
    let (done, archive) = tokio::join!(client.transfer(from, to, ""), receiving);
    done?;
    archive
}

/// Imports an archive, sending only what there is room for.
async fn import(client: &Client<'_>, archive: &[u8], store: wire::ImageStore) -> Result<()> {
    let mut stream = client.open("import").await?;
    let from = any::pack(&wire::ImageImportStream { stream: "import".into(), ..Default::default() });
    let sending = async {
        let mut rest = archive;
        while !rest.is_empty() {
            let Some(message) = stream.from.message().await? else { bail!("the daemon reads no further") };
            let wire::WindowUpdate { update } = unpack(&message)?;
            let mut room = usize::try_from(update)?;
            while room > 0 && !rest.is_empty() {
                let (piece, left) = rest.split_at(room.min(32768).min(rest.len()));
                (rest, room) = (left, room - piece.len());
                stream.to.send(any::pack(&wire::Data { data: piece.to_vec().into() })).await?;
            }
        }
        drop(stream.to);
        Ok(())
    };
    let (done, sent) = tokio::join!(client.transfer(from, any::pack(&store), ""), sending);
    sent?;
    Ok(done?)
}

fn an_image_goes_round_and_comes_back_the_same(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    // More than fits any window, and not to be compressed.
    let noise: Vec<u8> = (0..700_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let image = Image::busybox()?.layer(Tar::new().file("noise", noise), Packing::Zstd)?;
    let name = image.push(&stack.registry, "test/round", "v1")?;
    let pushed = format!("{}/other/place:v2", stack.registry.host());
    let archive = daemon::runtime()?.block_on(async {
        let client = Client::new(env, &stack.daemon).await?;
        let told = client.told(registry(&name, ""), any::pack(&store(&name))).await?;
        let first = told.first().context("nothing was told")?;
        assert_eq!(first.event, format!("Resolving from OCI Registry ({name})"));
        assert_eq!(
            told.last().map(|last| last.event.clone()),
            Some(format!("Completed pull from OCI Registry ({name})"))
        );
        assert_eq!(events(&told, &name), ["fetching image content", "saved"]);
        let layer = format!("layer-{}", image.layers()[1].digest);
        let of_layer = events(&told, &layer);
        assert_eq!((of_layer.first(), of_layer.last()), (Some(&"waiting"), Some(&"extracted")), "{of_layer:?}");
        let manifest = format!("manifest-{}", image.manifest()?.digest);
        let parents = told.iter().find(|one| one.name == layer).map(|one| one.parents.clone());
        assert_eq!(parents, Some(vec![manifest]));

        client
            .transfer(
                any::pack(&store(&name)),
                any::pack(&wire::ImageStore { name: "tagged".into(), ..Default::default() }),
                "",
            )
            .await?;
        let told = client
            .told(any::pack(&wire::ImageStore { name: "tagged".into(), ..Default::default() }), registry(&pushed, ""))
            .await?;
        // The registry has the layers in its other repository.
        assert_eq!(events(&told, &layer).last(), Some(&"already exists"));
        export(&client, &name).await
    })?;
    let there =
        stack.registry.request("GET", "/v2/other/place/manifests/v2", &[("accept", image::media::MANIFEST)], b"")?;
    assert_eq!(image::digest(&there.expect(200)?.body), image.manifest()?.digest);
    stack.gantry(&["run", "--rm", &name, "wc", "-c", "/noise"])?.ok()?;

    // The archive stands for the same image in an empty store.
    let path = env.path("archive.tar");
    fs::write(&path, &archive)?;
    let listed = env.run("tar", &["-tf", &path.display().to_string()])?.ok()?;
    for part in ["index.json", "manifest.json", "oci-layout", &image.manifest()?.digest.replace(':', "/")] {
        assert!(listed.stdout.contains(part), "no {part}: {}", listed.stdout);
    }
    for image in [&name, "tagged"] {
        stack.daemon.ctr(&["images", "rm", "--sync", image])?.ok()?;
    }
    assert_eq!(stack.daemon.ctr(&["content", "ls", "-q"])?.ok()?.text(), "");
    let again = daemon::runtime()?.block_on(async {
        let client = Client::new(env, &stack.daemon).await?;
        let prefix = wire::ImageReference {
            name: "import".into(),
            is_prefix: true,
            allow_overwrite: true,
            ..Default::default()
        };
        let destination = wire::ImageStore { extra_references: vec![prefix], all_metadata: false, ..store("") };
        import(&client, &archive, destination).await?;
        export(&client, &name).await
    })?;
    assert_eq!(stack.daemon.ctr(&["images", "ls", "-q"])?.ok()?.text(), name);
    assert_eq!(stack.gantry(&["run", "--rm", &name, "wc", "-c", "/noise"])?.ok()?.text(), "2800000 /noise");
    assert!(again.len() <= archive.len(), "an archive grows: {} bytes, then {}", archive.len(), again.len());
    Ok(())
}

/// Bcrypt of `open sesame` for the user `ali`.
const ACCOUNT: &str = "ali:$2y$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW\n";

fn a_client_is_asked_for_an_account(env: &Env) -> Result<()> {
    let accounts = env.path("accounts");
    fs::write(&accounts, ACCOUNT)?;
    let auth = format!("auth:\n  htpasswd:\n    realm: test\n    path: {}", accounts.display());
    let plain = Registry::start(env)?;
    Image::busybox()?.push(&plain, "test/busybox", "latest")?;
    let guarded = Registry::start_with(env, "registry", &auth)?;
    let daemon = env.daemon()?;
    let name = format!("{}/test/busybox:latest", guarded.host());
    daemon::runtime()?.block_on(async {
        let client = Client::new(env, &daemon).await?;
        let refused = client.transfer(registry(&name, ""), any::pack(&store(&name)), "").await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
        let mut stream = client.open("creds").await?;
        let answering = async {
            let mut asked = 0;
            while let Ok(Some(message)) = stream.from.message().await {
                let question: wire::AuthRequest = unpack(&message)?;
                assert_eq!((question.host, question.reference), (guarded.host(), name.clone()));
                assert!(question.wwwauthenticate[0].starts_with("Basic "), "{:?}", question.wwwauthenticate);
                asked += 1;
                let answer = wire::AuthResponse {
                    auth_type: wire::AuthType::Credentials.into(),
                    username: "ali".into(),
                    secret: "open sesame".into(),
                    expire_at: None,
                };
                stream.to.send(any::pack(&answer)).await?;
            }
            Ok::<_, anyhow::Error>(asked)
        };
        let pulling = client.transfer(registry(&name, "creds"), any::pack(&store(&name)), "");
        tokio::pin!(pulling);
        tokio::select! {
            done = &mut pulling => done?,
            answered = answering => bail!("the stream ended before the pull: {answered:?}"),
        }
        Ok(())
    })
}

fn refusals_have_the_codes_that_clients_know(env: &Env) -> Result<()> {
    let daemon = env.daemon()?;
    daemon::runtime()?.block_on(async {
        let client = Client::new(env, &daemon).await?;
        let image = any::pack(&wire::ImageStore { name: "a".into(), ..Default::default() });
        let code = async |from: Any, to: Any, progress: &str| match client.transfer(from, to, progress).await {
            Ok(()) => Code::Ok,
            Err(status) => status.code(),
        };
        let export = any::pack(&wire::ImageExportStream { stream: "none".into(), ..Default::default() });
        assert_eq!(code(image.clone(), image.clone(), "").await, Code::NotFound);
        assert_eq!(code(image.clone(), image.clone(), "none").await, Code::NotFound);
        assert_eq!(code(image.clone(), export, "").await, Code::NotFound);
        assert_eq!(code(registry("h.example/a:1", "none"), image.clone(), "").await, Code::NotFound);
        let read = any::pack(&wire::ReadStream::default());
        assert_eq!(code(read, image.clone(), "").await, Code::Unimplemented);
        assert_eq!(code(registry("h.example/a:1", ""), registry("h.example/b:1", ""), "").await, Code::Unimplemented);
        let unknown = Any { type_url: "nobody.knows.This".into(), value: Vec::new() };
        assert_eq!(code(unknown, image.clone(), "").await, Code::NotFound);
        assert_eq!(code(registry("h.example/UPPER:1", ""), image, "").await, Code::InvalidArgument);
        // An image is not there without what was asked for.
        let unpacks = vec![wire::UnpackConfiguration { snapshotter: "nobody".into(), ..Default::default() }];
        let nowhere = any::pack(&wire::ImageStore { name: "a".into(), unpacks, ..Default::default() });
        assert_eq!(code(registry("h.example/a:1", ""), nowhere, "").await, Code::InvalidArgument);
        let _first = client.open("twice").await?;
        assert_eq!(client.open("twice").await.err().map(|status| status.code()), Some(Code::AlreadyExists));
        // What is echoed comes back as it is.
        let mut from = client.open("in").await?;
        let mut to = client.open("out").await?;
        from.to.send(any::pack(&wire::Data { data: vec![7; 10].into() })).await?;
        drop(from.to);
        to.to.send(any::pack(&wire::WindowUpdate { update: 65536 })).await?;
        let import = any::pack(&wire::ImageImportStream { stream: "in".into(), ..Default::default() });
        let export = any::pack(&wire::ImageExportStream { stream: "out".into(), ..Default::default() });
        let (done, data) = tokio::join!(client.transfer(import, export, ""), async {
            let message = to.from.message().await?.context("no data")?;
            to.to.send(any::pack(&wire::WindowUpdate { update: 65536 })).await?;
            unpack::<wire::Data>(&message)
        });
        done?;
        assert_eq!(data?.data.as_ref(), [7; 10]);
        assert!(from.from.message().await?.is_some(), "no room was given");
        Ok(())
    })
}

fn an_index_is_fetched_as_far_as_it_is_wanted(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let own = Image::busybox()?.layer(Tar::new().file("which", "own"), Packing::Gzip)?;
    let other = Image::empty().layer(Tar::new().file("which", "other"), Packing::Gzip)?.on_platform("linux", "s390x");
    let name = image::push_index(&[other.clone(), own.clone()], &stack.registry, "test/many", "v1")?;
    let has = |digest: &str| -> Result<bool> {
        Ok(stack.daemon.ctr(&["content", "ls", "-q"])?.ok()?.stdout.contains(digest))
    };
    let pull = |store: wire::ImageStore| {
        daemon::runtime()?.block_on(async {
            let client = Client::new(env, &stack.daemon).await?;
            Ok::<_, anyhow::Error>(client.transfer(registry(&name, ""), any::pack(&store), "").await?)
        })
    };
    pull(wire::ImageStore { all_metadata: false, ..store(&name) })?;
    assert!(has(&own.layers()[1].digest)? && !has(&other.manifest()?.digest)?);
    pull(store(&name))?;
    assert!(has(&other.manifest()?.digest)? && has(&other.config()?.digest)? && !has(&other.layers()[0].digest)?);
    // Everything: no platform is named, and nothing is unpacked.
    pull(wire::ImageStore { platforms: Vec::new(), unpacks: Vec::new(), ..store(&name) })?;
    assert!(has(&other.layers()[0].digest)?);
    // What came first is still there after a collection: the index refers to all of its entries.
    stack.daemon.ctr(&["leases", "create", "--id", "going"])?.ok()?;
    stack.daemon.ctr(&["leases", "delete", "--sync", "going"])?.ok()?;
    assert!(has(&other.layers()[0].digest)? && has(&own.layers()[1].digest)?);
    assert_eq!(stack.gantry(&["run", "--rm", &name, "cat", "/which"])?.ok()?.text(), "own");
    Ok(())
}
