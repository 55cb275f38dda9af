//! Exec, attach and port forwarding over the connections that their URLs lead to.

use anyhow::Context as _;
use futures_util::stream::SplitStream;
use futures_util::{SinkExt as _, StreamExt as _};
use gantry_proto::runtime::v1;
use integration_tests::pods::Pods;
use integration_tests::{Env, Registry, Result, Stack, Test, tests, wait};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::{WebSocketStream, client_async};
use tonic::Code;

pub(crate) const TESTS: &[Test] = tests![
    exec_passes_everything_on_and_ends_with_the_code [Root, Overlay],
    exec_on_a_terminal_has_its_size [Root, Overlay],
    exec_loses_nothing_of_much [Root, Overlay],
    a_client_that_leaves_has_said_all_it_said [Root, Overlay],
    attach_shares_the_streams_with_the_log [Root, Overlay],
    ports_are_forwarded [Root, Overlay],
    what_cannot_be_streamed_is_refused [Root, Overlay],
    a_state_directory_may_lie_deeper_than_sockets_may [Root, Overlay],
];

type Socket = WebSocketStream<TcpStream>;

async fn connect(url: &str, protocol: &str) -> Result<Socket> {
    let host = url.trim_start_matches("http://").split('/').next().unwrap_or_default();
    let mut request = url.replace("http://", "ws://").into_client_request()?;
    request.headers_mut().insert("sec-websocket-protocol", protocol.parse()?);
    let stream = TcpStream::connect(host).await?;
    Ok(client_async(request, stream).await.context("upgrade")?.0)
}

async fn send(socket: &mut Socket, channel: u8, bytes: &[u8]) -> Result<()> {
    Ok(socket.send(Message::Binary([&[channel], bytes].concat().into())).await?)
}

/// Everything that comes on the channels until the end, or until `enough`.
async fn receive(socket: &mut Socket, enough: impl Fn(&[Vec<u8>; 5]) -> bool) -> Result<[Vec<u8>; 5]> {
    let mut all: [Vec<u8>; 5] = Default::default();
    let receiving = async {
        while !enough(&all)
            && let Some(message) = socket.next().await
        {
            let message = message?;
            if message.is_binary() {
                let bytes = message.into_data();
                all[usize::from(bytes[0])].extend_from_slice(&bytes[1..]);
            }
        }
        Ok::<_, anyhow::Error>(())
    };
    tokio::time::timeout(wait::seconds(30), receiving).await.context("receive")??;
    Ok(all)
}

/// A pod with one container that runs until it is removed.
fn running<'env>(
    env: &'env Env,
    stack: &Stack<'_>,
    terminal: bool,
    command: &[&str],
) -> Result<(Pods<'env>, String, String)> {
    let mut pods = Pods::connect(env, &stack.daemon)?;
    pods.pull(&stack.image)?;
    let config = pods.pod_config("pod");
    let pod = pods.run(&config)?;
    let container = pods.start(&pod, &config, &stack.image, command, |config| {
        (config.tty, config.stdin, config.stdin_once) = (terminal, true, true);
        config.log_path = "container.log".to_owned();
    })?;
    Ok((pods, pod, container))
}

fn exec(container: &str, command: &[&str]) -> v1::ExecRequest {
    v1::ExecRequest {
        container_id: container.to_owned(),
        cmd: command.iter().map(|word| (*word).to_owned()).collect(),
        tty: false,
        stdin: true,
        stdout: true,
        stderr: true,
    }
}

const SLEEP: &[&str] = &["sh", "-c", "trap 'exit 0' TERM; sleep 1000 & wait"];

fn exec_passes_everything_on_and_ends_with_the_code(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let (mut pods, pod, container) = running(env, &stack, false, SLEEP)?;
    let request = exec(&container, &["sh", "-c", "cat; echo oops >&2; exit 7"]);
    let mut client = pods.pods.clone();
    pods.runtime.block_on(async {
        let url = client.exec(request).await?.into_inner().url;
        let mut socket = connect(&url, "v5.channel.k8s.io").await?;
        let long = vec![b'x'; 300_000];
        for piece in long.chunks(30_000) {
            send(&mut socket, 0, piece).await?;
        }
        send(&mut socket, 255, &[0]).await?;
        let [_, stdout, stderr, error, _] = receive(&mut socket, |_| false).await?;
        assert!(stdout == long, "{} bytes came back", stdout.len());
        assert_eq!(String::from_utf8_lossy(&stderr), "oops\n");
        let status: serde_json::Value = serde_json::from_slice(&error)?;
        assert_eq!(status["details"]["causes"][0]["message"], "7", "{status}");
        // The end of output is not that of input.
        let request = exec(&container, &["sh", "-c", "exec >&- 2>&-; [ $(wc -c) = 300000 ] && exit 8"]);
        let mut socket = connect(&client.exec(request).await?.into_inner().url, "v5.channel.k8s.io").await?;
        for piece in long.chunks(30_000) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            send(&mut socket, 0, piece).await?;
        }
        send(&mut socket, 255, &[0]).await?;
        let [_, _, _, error, _] = receive(&mut socket, |_| false).await?;
        let status: serde_json::Value = serde_json::from_slice(&error)?;
        assert_eq!(status["details"]["causes"][0]["message"], "8", "{status}");
        Ok::<_, anyhow::Error>(())
    })?;
    pods.remove(&pod)
}

/// As many bytes as are wanted both ways, to a reader who takes its time, and all that was written by a process that ends at once.
fn exec_loses_nothing_of_much(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let (mut pods, pod, container) = running(env, &stack, false, SLEEP)?;
    let piece: Vec<u8> = (0..30_000_u32).map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    let most = wait::amount(4 << 20, 500 << 20);
    let pieces = most / piece.len();
    let mut client = pods.pods.clone();
    pods.runtime.block_on(async {
        let request = exec(&container, &["sh", "-c", "cat; exit 7"]);
        let (mut to, mut from) =
            connect(&client.exec(request).await?.into_inner().url, "v5.channel.k8s.io").await?.split();
        let write = async {
            for _ in 0..pieces {
                to.send(Message::Binary([&[0][..], &piece].concat().into())).await?;
            }
            to.send(Message::Binary(vec![255, 0].into())).await?;
            anyhow::Ok(())
        };
        let (written, read) = tokio::join!(write, compare(&mut from, &piece));
        written?;
        assert_eq!(read?, (pieces * piece.len(), "7".to_owned()));
        let script = format!("stty raw; yes 0123456789abcde | head -c {most}; exit 9");
        let request = v1::ExecRequest { tty: true, stderr: false, ..exec(&container, &["sh", "-c", &script]) };
        let (_to, mut from) =
            connect(&client.exec(request).await?.into_inner().url, "v4.channel.k8s.io").await?.split();
        assert_eq!(compare(&mut from, b"0123456789abcde\n").await?, (most, "9".to_owned()));
        anyhow::Ok(())
    })?;
    pods.remove(&pod)
}

/// How much comes of `piece` over and over, and the exit code.
async fn compare(from: &mut SplitStream<Socket>, piece: &[u8]) -> Result<(usize, String)> {
    let (mut count, mut code) = (0, String::new());
    while let Some(message) = tokio::time::timeout(wait::seconds(30), from.next()).await.context("nothing comes")? {
        let message = message?;
        if !message.is_binary() {
            continue;
        }
        let bytes = message.into_data();
        match bytes[0] {
            1 => {
                let wanted = piece.iter().cycle().skip(count % piece.len());
                anyhow::ensure!(
                    bytes[1..].iter().zip(wanted).all(|(is, should)| is == should),
                    "other bytes after {count}"
                );
                let before = count >> 18;
                count += bytes.len() - 1;
                if count >> 18 != before {
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
            }
            3 if bytes.len() > 1 => {
                let status: serde_json::Value = serde_json::from_slice(&bytes[1..])?;
                code = status["details"]["causes"][0]["message"].as_str().unwrap_or_default().to_owned();
            }
            _ => {}
        }
    }
    Ok((count, code))
}

fn exec_on_a_terminal_has_its_size(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let (mut pods, pod, container) = running(env, &stack, false, SLEEP)?;
    // The size arrives some time after it was sent.
    let script = "until [ \"$(stty size)\" = \"43 132\" ]; do sleep 0.1; done; read word; echo \"heard $word\"";
    let request = v1::ExecRequest { tty: true, stderr: false, ..exec(&container, &["sh", "-c", script]) };
    let mut client = pods.pods.clone();
    pods.runtime.block_on(async {
        let url = client.exec(request).await?.into_inner().url;
        let mut socket = connect(&url, "v4.channel.k8s.io").await?;
        send(&mut socket, 4, br#"{"Width":132,"Height":43}"#).await?;
        send(&mut socket, 0, b"something\n").await?;
        let [_, stdout, _, error, _] = receive(&mut socket, |_| false).await?;
        assert!(String::from_utf8_lossy(&stdout).contains("heard something\r\n"), "{stdout:?}");
        assert!(String::from_utf8_lossy(&error).contains("Success"), "{}", String::from_utf8_lossy(&error));
        Ok::<_, anyhow::Error>(())
    })?;
    pods.remove(&pod)
}

fn attach_shares_the_streams_with_the_log(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let (mut pods, pod, container) = running(env, &stack, false, &["sh", "-c", "cat; exit 5"])?;
    let request =
        v1::AttachRequest { container_id: container.clone(), stdin: true, tty: false, stdout: true, stderr: true };
    let mut client = pods.pods.clone();
    pods.runtime.block_on(async {
        let url = client.attach(request).await?.into_inner().url;
        let mut socket = connect(&url, "v5.channel.k8s.io").await?;
        send(&mut socket, 0, b"hello\n").await?;
        receive(&mut socket, |all| all[1] == b"hello\n").await?;
        // The container's input ends with this client's: it is one that is attached to once.
        send(&mut socket, 255, &[0]).await?;
        receive(&mut socket, |_| false).await?;
        Ok::<_, anyhow::Error>(())
    })?;
    assert_eq!(pods.exit_code(&container)?, 5);
    let log = std::fs::read_to_string(env.path("logs/container.log"))?;
    assert!(log.ends_with(" stdout F hello\n"), "{log}");
    pods.remove(&pod)
}

fn a_client_that_leaves_has_said_all_it_said(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let (mut pods, pod, container) = running(env, &stack, false, &["sh", "-c", "cat > /said; exit 5"])?;
    let mut client = pods.pods.clone();
    // Which of both is seen first, the end of its input or that it is gone, is a matter of luck.
    for round in 0..6 {
        let request = exec(&container, &["sh", "-c", &format!("cat > /part{round}; mv /part{round} /whole{round}")]);
        pods.runtime.block_on(async {
            let url = client.exec(request).await?.into_inner().url;
            let mut socket = connect(&url, "v4.channel.k8s.io").await?;
            // The server's first word: to leave without having read is to break off.
            socket.next().await.context("first word")??;
            for _ in 0..3 {
                send(&mut socket, 0, &[b'x'; 10_000]).await?;
            }
            Ok::<_, anyhow::Error>(())
        })?;
        wait::until("the input ends", || {
            let cmd = ["stat", "-c", "%s", &format!("/whole{round}")].map(str::to_owned).to_vec();
            let request = v1::ExecSyncRequest { container_id: container.clone(), cmd, timeout: 10 };
            let answer = pods.runtime.block_on(client.exec_sync(request)).ok()?.into_inner();
            (answer.stdout == b"30000\n").then_some(())
        })?;
    }
    let request =
        v1::AttachRequest { container_id: container.clone(), stdin: true, tty: false, stdout: true, stderr: true };
    pods.runtime.block_on(async {
        let url = client.attach(request).await?.into_inner().url;
        let mut socket = connect(&url, "v4.channel.k8s.io").await?;
        socket.next().await.context("first word")??;
        send(&mut socket, 0, b"hello\n").await
    })?;
    // It is one that is attached to once.
    assert_eq!(pods.exit_code(&container)?, 5);
    pods.remove(&pod)
}

fn ports_are_forwarded(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    // The pod has the machine's network, so what listens here listens in it.
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let server = std::thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        let (mut stream, _) = listener.accept()?;
        let mut five = [0; 5];
        stream.read_exact(&mut five)?;
        stream.write_all(&five)
    });
    let (mut pods, pod, _) = running(env, &stack, false, SLEEP)?;
    let request = v1::PortForwardRequest { pod_sandbox_id: pod.clone(), port: vec![port.into()] };
    let mut client = pods.pods.clone();
    pods.runtime.block_on(async {
        let url = client.port_forward(request).await?.into_inner().url;
        let mut socket = connect(&url, "v4.channel.k8s.io").await?;
        send(&mut socket, 0, b"hello").await?;
        let [data, ..] = receive(&mut socket, |all| all[0].len() >= 7).await?;
        assert_eq!((&data[..2], &data[2..]), (&port.to_le_bytes()[..], &b"hello"[..]));
        Ok::<_, anyhow::Error>(())
    })?;
    server.join().expect("server")?;
    pods.remove(&pod)
}

fn what_cannot_be_streamed_is_refused(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let (mut pods, pod, container) = running(env, &stack, false, SLEEP)?;
    let mut client = pods.pods.clone();
    pods.runtime.block_on(async {
        let missing = client.exec(exec("0123456789", &["true"])).await.expect_err("no such container");
        assert_eq!(missing.code(), Code::NotFound);
        let both = v1::ExecRequest { tty: true, ..exec(&container, &["true"]) };
        assert_eq!(client.exec(both).await.expect_err("tty and stderr").code(), Code::InvalidArgument);
        let url = client.exec(exec(&container, &["/no/such/program"])).await?.into_inner().url;
        let mut socket = connect(&url, "v4.channel.k8s.io").await?;
        let [_, _, _, error, _] = receive(&mut socket, |_| false).await?;
        assert!(String::from_utf8_lossy(&error).contains("no such file"), "{}", String::from_utf8_lossy(&error));
        assert!(connect(&url, "v4.channel.k8s.io").await.is_err(), "a URL is good once");
        Ok::<_, anyhow::Error>(())
    })?;
    pods.remove(&pod)
}

fn a_state_directory_may_lie_deeper_than_sockets_may(env: &Env) -> Result<()> {
    let (_registry, image) = Registry::with_busybox(env)?;
    let state = env.path(&"d".repeat(120));
    let daemon = env.daemon_with(&["--state", &state.to_string_lossy()])?;
    let mut pods = Pods::connect(env, &daemon)?;
    pods.pull(&image)?;
    let config = pods.pod_config("pod");
    let pod = pods.run(&config)?;
    let container = pods.start(&pod, &config, &image, SLEEP, |_| {})?;
    let cmd = ["echo", "hello"].map(str::to_owned).to_vec();
    let request = v1::ExecSyncRequest { container_id: container, cmd, timeout: 30 };
    let said = pods.runtime.block_on(pods.pods.exec_sync(request))?.into_inner();
    assert_eq!((said.exit_code, said.stdout.as_slice()), (0, &b"hello\n"[..]));
    pods.remove(&pod)
}
