//! Standard streams over ttrpc, as containerd's CRI opens them where its `io_type` is `streaming`.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use gantry_proto::any;
use gantry_proto::containerd::services::streaming::v1::StreamInit;
use gantry_proto::containerd::types::transfer::{Data, WindowUpdate};
use gantry_proto::containerd::v1::types::Status as TaskStatus;
use gantry_proto::status::Code;
use gantry_proto::ttrpc::frame::{self, Incoming};
use gantry_proto::ttrpc::{Request, Response};
use integration_tests::supervisor::{Stdio, Supervisor};
use integration_tests::{Bundle, Env, Result, Test, daemon, tests, wait};
use prost::Message as _;
use prost_types::Any;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;

pub(crate) const TESTS: &[Test] = tests![
    streams_carry_all_three[Root],
    a_terminal_is_one_stream[Root],
    an_exec_has_streams_of_its_own[Root],
    a_client_that_comes_again_goes_on[Root],
    a_process_waits_for_who_makes_no_room[Root],
    a_stream_of_another_socket_is_refused[Root],
    a_shim_without_streams_does_without_them[Root],
];

/// Room that a client gives at once.
const ROOM: i32 = 64 << 10;

/// A client's stream, on a connection of its own.
struct Stream {
    socket: UnixStream,
    /// Bytes that it may send.
    room: usize,
}

impl Stream {
    async fn open(shim: &Supervisor<'_>, id: &str) -> Result<Self> {
        let path = shim.address.strip_prefix("unix://").context("a unix address")?;
        let mut stream = Self { socket: UnixStream::connect(path).await?, room: 0 };
        let service = "containerd.services.streaming.v1.Streaming".to_owned();
        let request = Request { service, method: "Stream".to_owned(), ..Request::default() };
        stream.write(frame::encode(1, frame::REQUEST, frame::REMOTE_OPEN, &request)?).await?;
        stream.say(&StreamInit { id: id.to_owned() }).await?;
        stream.hear().await?.context("no word that it is open")?;
        Ok(stream)
    }

    async fn write(&mut self, frame: Vec<u8>) -> Result<()> {
        Ok(self.socket.write_all(&frame).await?)
    }

    async fn say<M: prost::Message + prost::Name>(&mut self, message: &M) -> Result<()> {
        self.write(frame::encode(1, frame::DATA, 0, &any::pack(message))?).await
    }

    /// The next message; none at the end.
    async fn hear(&mut self) -> Result<Option<Any>> {
        let read = tokio::time::timeout(wait::seconds(20), frame::read(&mut self.socket)).await;
        let Some(Incoming::Frame(header, message)) = read.context("nothing came")?? else { bail!("no frame came") };
        if header.kind == frame::RESPONSE {
            bail!("refused: {:?}", Response::decode(message.as_slice())?.status);
        }
        let is_end = header.flags & frame::REMOTE_CLOSED != 0;
        Ok(if is_end { None } else { Some(Any::decode(message.as_slice())?) })
    }

    async fn make_room(&mut self, update: i32) -> Result<()> {
        self.say(&WindowUpdate { update }).await
    }

    /// At least so many bytes of an output; fewer only at its end.
    async fn read(&mut self, count: usize) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        while all.len() < count {
            let Some(message) = self.hear().await? else { break };
            let data = any::unpack::<Data>(&message)?.data;
            self.make_room(i32::try_from(data.len())?).await?;
            all.extend_from_slice(&data);
        }
        Ok(all)
    }

    /// So many bytes of an output, and room for no more: none can be on the way to a client that goes.
    async fn take(&mut self, count: usize) -> Result<String> {
        self.make_room(i32::try_from(count)?).await?;
        let mut all = Vec::new();
        while all.len() < count {
            let message = self.hear().await?.context("the output has ended")?;
            all.extend_from_slice(&any::unpack::<Data>(&message)?.data);
        }
        Ok(String::from_utf8(all)?)
    }

    /// Everything up to the end.
    async fn read_all(mut self) -> Result<Vec<u8>> {
        self.make_room(ROOM).await?;
        self.read(usize::MAX).await
    }

    /// Sends bytes to an input as there is room for them.
    async fn send(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            while self.room == 0 {
                let message = self.hear().await?.context("the input has ended")?;
                self.room += usize::try_from(any::unpack::<WindowUpdate>(&message)?.update)?;
            }
            let (piece, rest) = bytes.split_at(bytes.len().min(self.room).min(32 << 10));
            self.say(&Data { data: piece.to_vec().into() }).await?;
            (bytes, self.room) = (rest, self.room - piece.len());
        }
        Ok(())
    }

    async fn last_word(&mut self) -> Result<()> {
        self.write(frame::encode(1, frame::DATA, frame::REMOTE_CLOSED | frame::NO_DATA, &())?).await
    }
}

/// The text that means a stream of this shim.
fn uri(shim: &Supervisor<'_>, id: &str) -> String {
    format!("ttrpc+{}?streaming_id={id}", shim.address)
}

fn all_three(shim: &Supervisor<'_>, process: &str) -> Stdio {
    let of = |name: &str| uri(shim, &format!("{process}-{name}"));
    Stdio { stdin: of("stdin"), stdout: of("stdout"), stderr: of("stderr"), terminal: false }
}

fn streams_carry_all_three(env: &Env) -> Result<()> {
    let bundle = Bundle::new(env, "streams", &["sh", "-c", "cat; echo done >&2"])?;
    daemon::runtime()?.block_on(async {
        let shim = Supervisor::start(env, &bundle).await?;
        // As the CRI does, before anybody knows of the container.
        let mut input = Stream::open(&shim, "c-stdin").await?;
        let (out, err) = (Stream::open(&shim, "c-stdout").await?, Stream::open(&shim, "c-stderr").await?);
        let (out, err) = (tokio::spawn(out.read_all()), tokio::spawn(err.read_all()));
        shim.create(&all_three(&shim, "c")).await?;
        shim.start_process("").await?;
        let lines = b"0123456789abcde\n".repeat(40 << 10);
        input.send(&lines).await?;
        // On two connections, in any order: the end comes after all bytes.
        shim.close_stdin("").await?;
        input.last_word().await?;
        ensure!(shim.wait("").await? == 0, "ends well");
        ensure!(out.await?? == lines && err.await?? == b"done\n", "every byte of each stream");
        shim.delete("").await?;
        shim.shutdown().await
    })
}

fn a_terminal_is_one_stream(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "tty", &["sh", "-c", "read line; echo got $line; stty size"])?;
    bundle.set("/process/terminal", true);
    daemon::runtime()?.block_on(async {
        let shim = Supervisor::start(env, &bundle).await?;
        let stdio = Stdio { stderr: String::new(), terminal: true, ..all_three(&shim, "t") };
        let mut input = Stream::open(&shim, "t-stdin").await?;
        let out = tokio::spawn(Stream::open(&shim, "t-stdout").await?.read_all());
        shim.create(&stdio).await?;
        shim.start_process("").await?;
        input.send(b"word\n").await?;
        ensure!(shim.wait("").await? == 0, "ends well");
        let text = String::from_utf8(out.await??)?;
        ensure!(text.contains("word\r\n") && text.contains("got word\r\n"), "{text:?}");
        shim.delete("").await?;
        shim.shutdown().await
    })
}

fn an_exec_has_streams_of_its_own(env: &Env) -> Result<()> {
    let bundle = Bundle::new(env, "exec", &["sleep", "1000"])?;
    daemon::runtime()?.block_on(async {
        let shim = Supervisor::start(env, &bundle).await?;
        shim.create(&Stdio::default()).await?;
        shim.start_process("").await?;
        // A name is free again when its process is deleted.
        for _ in 0..2 {
            let mut input = Stream::open(&shim, "e-stdin").await?;
            let out = tokio::spawn(Stream::open(&shim, "e-stdout").await?.read_all());
            let stdio = Stdio { stderr: String::new(), ..all_three(&shim, "e") };
            shim.exec("e", &["sh", "-c", "cat; echo lost >&2; exit 3"], &stdio).await?;
            shim.start_process("e").await?;
            input.send(b"text").await?;
            input.last_word().await?;
            ensure!(shim.wait("e").await? == 3 && out.await?? == b"text", "the exec's own streams");
            shim.delete("e").await?;
        }
        let taken = Stdio { stdin: String::new(), stderr: String::new(), ..all_three(&shim, "x") };
        for (exec, refused) in [("x", false), ("y", true)] {
            shim.exec(exec, &["sleep", "1000"], &taken).await?;
            let started = shim.start_process(exec).await;
            ensure!(started.is_err() == refused, "{exec}: {started:?}");
            if let Err(status) = started {
                ensure!(status.message.contains("stdout") && status.code == Code::AlreadyExists, "{status:?}");
            }
        }
        shim.finish().await
    })
}

fn a_client_that_comes_again_goes_on(env: &Env) -> Result<()> {
    let script = "while read line; do echo got $line; done; echo end";
    let bundle = Bundle::new(env, "again", &["sh", "-c", script])?;
    daemon::runtime()?.block_on(async {
        let shim = Supervisor::start(env, &bundle).await?;
        shim.create(&Stdio { stderr: String::new(), ..all_three(&shim, "c") }).await?;
        shim.start_process("").await?;
        for number in 0..3 {
            let (mut input, mut out) = (Stream::open(&shim, "c-stdin").await?, Stream::open(&shim, "c-stdout").await?);
            // What is sent just before the client goes is passed on too, and its answer waits for the next client.
            if number > 0 {
                ensure!(out.take(11).await? == format!("got late {}\n", number - 1), "{number}");
            }
            input.send(format!("{number}\n").as_bytes()).await?;
            ensure!(out.take(6).await? == format!("got {number}\n"), "{number}");
            drop(out);
            input.send(format!("late {number}\n").as_bytes()).await?;
        }
        ensure!(shim.state("").await? == TaskStatus::Running, "clients that go end nothing");
        // Nobody is there whose last word would be the end.
        shim.close_stdin("").await?;
        let rest = Stream::open(&shim, "c-stdout").await?.read_all().await?;
        ensure!(rest == b"got late 2\nend\n", "{:?}", String::from_utf8_lossy(&rest));
        ensure!(shim.wait("").await? == 0, "ends well");
        ensure!(Stream::open(&shim, "c-stdout").await?.read_all().await?.is_empty(), "late, and told of the end");
        shim.delete("").await?;
        shim.shutdown().await
    })
}

fn a_process_waits_for_who_makes_no_room(env: &Env) -> Result<()> {
    let bundle = Bundle::new(env, "slow", &["sh", "-c", "head -c 1000000 /dev/zero; echo done >&2"])?;
    daemon::runtime()?.block_on(async {
        let shim = Supervisor::start(env, &bundle).await?;
        let (mut out, mut err) = (Stream::open(&shim, "c-stdout").await?, Stream::open(&shim, "c-stderr").await?);
        shim.create(&Stdio { stdin: String::new(), ..all_three(&shim, "c") }).await?;
        shim.start_process("").await?;
        err.make_room(ROOM).await?;
        out.make_room(1000).await?;
        ensure!(any::unpack::<Data>(&out.hear().await?.context("no bytes")?)?.data.len() == 1000, "as there is room");
        let more = tokio::time::timeout(Duration::from_millis(300), err.hear()).await;
        ensure!(more.is_err(), "the process does not come to its end");
        ensure!(out.read_all().await?.len() == 999_000, "all of it once there is room");
        ensure!(err.read(1).await? == b"done\n", "and then it does");
        ensure!(shim.wait("").await? == 0, "ends well");
        shim.delete("").await?;
        shim.shutdown().await
    })
}

fn a_stream_of_another_socket_is_refused(env: &Env) -> Result<()> {
    let bundle = Bundle::new(env, "other", &["true"])?;
    daemon::runtime()?.block_on(async {
        let shim = Supervisor::start(env, &bundle).await?;
        let own = uri(&shim, "x");
        let cases = [
            (
                "ttrpc+unix:///elsewhere.sock?streaming_id=x",
                "/elsewhere.sock: streams are opened at the shim's own socket",
            ),
            ("ttrpc+unix:///elsewhere.sock", "streaming_id"),
            (&format!("{own}&more=1"), "\"more=1\""),
            ("grpc+vsock://3:4?streaming_id=x", "known kind of destination"),
        ];
        for (text, wanted) in cases {
            let error = shim.create(&Stdio { stdout: text.to_owned(), ..Stdio::default() }).await;
            let error = error.expect_err(text);
            let told = error.message.contains("stdout") && error.message.contains(wanted);
            ensure!(told && error.code == Code::InvalidArgument, "{text}: {error:?}");
        }
        shim.shutdown().await
    })
}

/// Bytes that a process has written and shares with nobody. Of what it only reads nobody else may have a part, or all
/// other shims.
fn private_memory(pid: u32) -> Result<u64> {
    let text = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("smaps_rollup"))?;
    let line = text.lines().find(|line| line.starts_with("Private_Dirty:")).context("no such line")?;
    Ok(line.split_whitespace().nth(1).context("no number")?.parse::<u64>()? << 10)
}

/// Streams that have ended leave nothing in the shim.
fn a_shim_without_streams_does_without_them(env: &Env) -> Result<()> {
    let bundle = Bundle::new(env, "quiet", &["sleep", "1000"])?;
    daemon::runtime()?.block_on(async {
        let shim = Supervisor::start(env, &bundle).await?;
        shim.create(&Stdio::default()).await?;
        shim.start_process("").await?;
        let pid = shim.shim_pid().await?;
        let pass = async |count: usize| {
            for number in 0..count {
                let id = format!("e{number}");
                let out = tokio::spawn(Stream::open(&shim, &format!("{id}-stdout")).await?.read_all());
                let stdio = Stdio { stdin: String::new(), stderr: String::new(), ..all_three(&shim, &id) };
                shim.exec(&id, &["head", "-c", "300000", "/dev/zero"], &stdio).await?;
                shim.start_process(&id).await?;
                ensure!(out.await??.len() == 300_000, "{number}");
                shim.wait(&id).await?;
                shim.delete(&id).await?;
            }
            private_memory(pid)
        };
        let few = pass(5).await?;
        let many = pass(20).await?;
        ensure!(many < few + (256 << 10), "{few} bytes after 5 execs, {many} after 20 more");
        shim.finish().await
    })
}
