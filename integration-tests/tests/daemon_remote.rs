//! The API at an address that other machines reach.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::Context as _;
use gantry_proto::containerd::services::version::v1::version_client::VersionClient;
use hyper_util::rt::TokioIo;
use integration_tests::{Env, Result, Test, daemon, output, tests, wait};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::daemon_registry::{authority, signed};

pub(crate) const TESTS: &[Test] = tests![clients_elsewhere_show_a_certificate [Root, Openssl]];

/// `ca`, which has signed `server` and `client`, and `stranger`, which has signed `other`.
fn certificates(env: &Env) -> Result<PathBuf> {
    let dir = env.dir("tls")?;
    fs::write(dir.join("extensions"), "subjectAltName=IP:127.0.0.1\n")?;
    let options = format!(" -extfile {}/extensions", dir.display());
    authority(env, &dir, "ca")?;
    authority(env, &dir, "stranger")?;
    for (name, by) in [("server", "ca"), ("client", "ca"), ("other", "stranger")] {
        signed(env, &dir, name, by, &options)?;
    }
    Ok(dir)
}

/// What the daemon says of its version through `openssl s_client` with these arguments more.
async fn version(env: &Env, dir: &Path, address: &str, arguments: &[String]) -> Result<String> {
    let mut command = std::process::Command::new("openssl");
    env.prepare(&mut command);
    let mut command = tokio::process::Command::from(command);
    command.args(["s_client", "-quiet", "-verify_return_error", "-alpn", "h2", "-connect", address, "-CAfile"]);
    command.arg(dir.join("ca.pem")).args(arguments).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut client = command.spawn().context("openssl")?;
    let (from, to) = (client.stdout.take().context("output")?, client.stdin.take().context("input")?);
    let mut pipe = Some(tokio::io::join(from, to));
    let connect = tower::service_fn(move |_: Uri| {
        let pipe = pipe.take().map(TokioIo::new).ok_or_else(|| std::io::Error::other("only once"));
        std::future::ready(pipe)
    });
    let channel = Endpoint::from_static("http://daemon").connect_with_connector(connect).await?;
    ask(channel).await
}

async fn ask(channel: Channel) -> Result<String> {
    let answer = tokio::time::timeout(wait::seconds(10), VersionClient::new(channel).version(())).await?;
    Ok(answer?.into_inner().version)
}

fn clients_elsewhere_show_a_certificate(env: &Env) -> Result<()> {
    let dir = certificates(env)?;
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let at = dir.display();
    let remote = format!(
        "[grpc.remote]\naddress = \"{address}\"\ncertificate = \"{at}/server.pem\"\nkey = \"{at}/server.key\"\n"
    );
    // Without an authority everybody would be root here.
    fs::write(env.path("open.toml"), &remote)?;
    let mut open = env.command("gantryd")?;
    open.args(["--root", &env.path("root").to_string_lossy(), "--state", &env.path("state").to_string_lossy()]);
    open.arg("--config").arg(env.path("open.toml"));
    let refused = output::run(open)?.fails()?;
    assert!(refused.contains("grpc.remote.client_authority"), "{refused}");
    let daemon = env.daemon_configured(&format!("oom_score = 3\n{remote}client_authority = \"{at}/ca.pem\"\n"))?;
    let score = fs::read_to_string(format!("/proc/{}/oom_score_adj", daemon.pid()))?;
    assert_eq!(score.trim(), "3");
    let as_whom = |name: &str| {
        ["-cert", ".pem", "-key", ".key"].map(|word| match word.strip_prefix('.') {
            Some(_) => format!("{at}/{name}{word}"),
            None => word.to_owned(),
        })
    };
    daemon::runtime()?.block_on(async {
        let local = ask(daemon.channel().await?).await?;
        assert_eq!(version(env, &dir, &address, &as_whom("client")).await?, local);
        assert!(version(env, &dir, &address, &[]).await.is_err(), "somebody without a certificate");
        assert!(version(env, &dir, &address, &as_whom("other")).await.is_err(), "somebody else's client");
        let target = address.clone();
        let plain = tower::service_fn(move |_: Uri| {
            let target = target.clone();
            async move { TcpStream::connect(target).await.map(TokioIo::new) }
        });
        let plain = async { ask(Endpoint::from_static("http://x").connect_with_connector(plain).await?).await };
        assert!(plain.await.is_err(), "somebody without TLS");
        // They all keep nobody else from it.
        assert_eq!(version(env, &dir, &address, &as_whom("client")).await?, local);
        anyhow::Ok(())
    })?;
    assert!(daemon.stop()?.success());
    Ok(())
}
