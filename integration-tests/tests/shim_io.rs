//! Where the shim takes input from and brings output to.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use gantry_proto::containerd::task::v3::CreateTaskResponse;
use gantry_proto::gantry::shim::v1::ReopenLogRequest;
use gantry_proto::stdio::{FrameKind, LogFormat, LogPolicy, LogUri};
use gantry_proto::ttrpc::Context;
use integration_tests::supervisor::{Stdio, Supervisor, fifo};
use integration_tests::{Bundle, Env, Result, Test, daemon, tests, wait};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

pub(crate) const TESTS: &[Test] = tests![
    fifos_carry_all_three_streams[Root],
    a_slow_reader_gets_every_byte[Root],
    a_client_may_leave_and_come_back[Root],
    a_file_takes_both_streams[Root],
    a_terminal_is_one_stream_with_a_size[Root],
    attached_clients_see_everything_and_type[Root],
    a_process_that_closes_its_output_still_reads[Root],
    logs_rotate_and_compress[Root],
    a_renamed_log_is_reopened[Root],
    a_full_disk_blocks_or_drops_as_told[Root],
    a_logger_program_gets_the_output[Root],
    a_logger_program_gets_what_a_terminal_shows[Root],
    output_held_open_does_not_hold_delete_for_ever[Root],
    what_a_runtime_complains_of_is_not_the_containers_output[Root],
];

/// Reads a FIFO to its end in a thread; opened before this returns, as clients do.
fn reader(path: &str, pause: std::time::Duration) -> Result<std::thread::JoinHandle<Vec<u8>>> {
    let mut file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
    let flags = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty());
    nix::fcntl::fcntl(&file, flags)?;
    Ok(std::thread::spawn(move || {
        let mut all = Vec::new();
        let mut chunk = vec![0; 256 << 10];
        // Until the shim has opened its end there is no writer, which reads as an end.
        while nix::poll::poll(
            &mut [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(&file), nix::poll::PollFlags::POLLIN)],
            30_000u16,
        )
        .is_ok_and(|ready| ready > 0)
        {
            match file.read(&mut chunk) {
                Ok(0) | Err(_) => break,
                Ok(count) => all.extend_from_slice(&chunk[..count]),
            }
            std::thread::sleep(pause);
        }
        all
    }))
}

const NO_PAUSE: std::time::Duration = std::time::Duration::ZERO;

fn fifos_carry_all_three_streams(env: &Env) -> Result<()> {
    let bundle = Bundle::new(env, "fifo", &["sh", "-c", "sleep 0.3; cat; echo done >&2"])?;
    let stdio = Stdio {
        stdin: fifo(&env.path("in"))?,
        stdout: fifo(&env.path("out"))?,
        stderr: fifo(&env.path("err"))?,
        terminal: false,
    };
    daemon::runtime()?.block_on(async {
        let shim = Supervisor::start(env, &bundle).await?;
        let (out, err) = (reader(&stdio.stdout, NO_PAUSE)?, reader(&stdio.stderr, NO_PAUSE)?);
        shim.create(&stdio).await?;
        shim.start_process("").await?;
        let mut input = OpenOptions::new().write(true).open(&stdio.stdin)?;
        // More than the process's pipe and what the shim has in hand: the rest is in the FIFO when it is closed.
        let lines = b"0123456789abcde\n".repeat(10 << 10);
        input.write_all(&lines)?;
        drop(input);
        shim.close_stdin("").await?;
        assert_eq!(shim.wait("").await?, 0);
        shim.delete("").await?;
        assert!(out.join().expect("reader") == lines, "all of the input comes back");
        assert_eq!(err.join().expect("reader"), b"done\n");
        shim.shutdown().await
    })
}

fn a_slow_reader_gets_every_byte(env: &Env) -> Result<()> {
    let bytes = wait::amount(100 << 20, 500 << 20);
    let command = format!("yes 0123456789abcde | head -c {bytes}");
    let bundle = Bundle::new(env, "slow", &["sh", "-c", &command])?;
    let stdio = Stdio { stdout: fifo(&env.path("out"))?, ..Stdio::default() };
    daemon::runtime()?.block_on(async {
        let shim = Supervisor::start(env, &bundle).await?;
        let out = reader(&stdio.stdout, std::time::Duration::from_micros(200))?;
        shim.create(&stdio).await?;
        shim.start_process("").await?;
        assert_eq!(shim.wait("").await?, 0);
        shim.delete("").await?;
        let all = out.join().expect("reader");
        assert_eq!(all.len(), bytes);
        assert!(all.chunks(16).all(|line| line == b"0123456789abcde\n"));
        shim.shutdown().await
    })
}

fn a_client_may_leave_and_come_back(env: &Env) -> Result<()> {
    let bundle = Bundle::new(env, "leave", &["sh", "-c", "echo first; cat; echo last"])?;
    let stdio = Stdio { stdin: fifo(&env.path("in"))?, stdout: fifo(&env.path("out"))?, ..Stdio::default() };
    daemon::runtime()?.block_on(async {
        let shim = Supervisor::start(env, &bundle).await?;
        let mut out = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(&stdio.stdout)?;
        shim.create(&stdio).await?;
        shim.start_process("").await?;
        let mut seen = [0; 64];
        let read = || out.read(&mut seen).ok().filter(|count| *count > 0);
        let count = wait::until("the first line", read)?;
        assert_eq!(&seen[..count], b"first\n");
        drop(out);
        // Nobody reads now; the container goes on and is not ended by a signal.
        let mut input = OpenOptions::new().write(true).open(&stdio.stdin)?;
        input.write_all(b"meanwhile\n")?;
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        let out = reader(&stdio.stdout, NO_PAUSE)?;
        drop(input);
        // Nobody writes now; that does not end the input, which the client says.
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        OpenOptions::new().write(true).open(&stdio.stdin)?.write_all(b"again\n")?;
        shim.close_stdin("").await?;
        assert_eq!(shim.wait("").await?, 0);
        shim.delete("").await?;
        assert_eq!(out.join().expect("reader"), b"meanwhile\nagain\nlast\n");
        shim.shutdown().await
    })
}

fn a_file_takes_both_streams(env: &Env) -> Result<()> {
    let bundle = Bundle::new(env, "file", &["sh", "-c", "echo out; sleep 0.1; echo err >&2"])?;
    let path = env.path("deep/er/output");
    daemon::runtime()?.block_on(async {
        let shim = Supervisor::start(env, &bundle).await?;
        shim.create(&Stdio::file(&path)).await?;
        shim.start_process("").await?;
        shim.wait("").await?;
        shim.delete("").await?;
        assert_eq!(fs::read_to_string(&path)?, "out\nerr\n");
        shim.shutdown().await
    })
}

fn a_terminal_is_one_stream_with_a_size(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "tty", &["sh", "-c", "tty; read line; stty size; echo got $line"])?;
    bundle.set("/process/terminal", true);
    let stdio =
        Stdio { stdin: fifo(&env.path("in"))?, stdout: fifo(&env.path("out"))?, terminal: true, ..Stdio::default() };
    daemon::runtime()?.block_on(async {
        let shim = Supervisor::start(env, &bundle).await?;
        let out = reader(&stdio.stdout, NO_PAUSE)?;
        shim.create(&stdio).await?;
        shim.start_process("").await?;
        let resize = gantry_proto::containerd::task::v3::ResizePtyRequest {
            id: shim.id.clone(),
            exec_id: String::new(),
            width: 123,
            height: 45,
        };
        shim.call::<_, ()>("ResizePty", &resize).await?;
        let mut input = OpenOptions::new().write(true).open(&stdio.stdin)?;
        input.write_all(b"typed\n")?;
        assert_eq!(shim.wait("").await?, 0);
        shim.delete("").await?;
        let text = String::from_utf8(out.join().expect("reader"))?;
        for expected in ["/dev/pts/0", "45 123", "got typed"] {
            assert!(text.contains(expected), "{expected} in {text:?}");
        }
        shim.shutdown().await
    })
}

/// What a client of the attach socket got: the frames' payloads by kind.
async fn frames(mut socket: impl tokio::io::AsyncRead + Unpin) -> Result<(Vec<u8>, Vec<u8>)> {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        let mut header = [0; 5];
        if socket.read_exact(&mut header).await.is_err() {
            return Ok((out, err));
        }
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]);
        let mut payload = vec![0; usize::try_from(length)?];
        socket.read_exact(&mut payload).await?;
        match FrameKind::from_byte(header[0]) {
            Some(FrameKind::Stdout) => out.extend(payload),
            Some(FrameKind::Stderr) => err.extend(payload),
            other => anyhow::bail!("frame {other:?}"),
        }
    }
}

async fn send(socket: &mut (impl tokio::io::AsyncWrite + Unpin), kind: FrameKind, payload: &[u8]) -> Result<()> {
    let length = u32::try_from(payload.len())?.to_be_bytes();
    socket.write_all(&[&[kind as u8], &length[..], payload].concat()).await?;
    Ok(())
}

/// The `log` texts of a JSON log.
fn texts(path: &Path) -> Result<String> {
    let text = fs::read_to_string(path)?;
    let mut all = String::new();
    for line in text.lines() {
        let value: serde_json::Value = serde_json::from_str(line)?;
        all += value["log"].as_str().unwrap_or_default();
    }
    Ok(all)
}

/// Streams that go to a log, and to whoever connects to a socket and may write.
fn attachable(env: &Env) -> (LogUri, Stdio) {
    let attach = env.path("a.sock").to_string_lossy().into_owned();
    let uri = LogUri { attach, ..LogUri::new(env.path("log.json").to_string_lossy()) };
    let stdio = Stdio { stdin: uri.to_string(), stdout: uri.to_string(), ..Stdio::default() };
    (uri, stdio)
}

fn attached_clients_see_everything_and_type(env: &Env) -> Result<()> {
    let bundle = Bundle::new(env, "attach", &["sh", "-c", "echo hello; echo oops >&2; cat; echo end"])?;
    let (uri, stdio) = attachable(env);
    daemon::runtime()?.block_on(async {
        let shim = Supervisor::start(env, &bundle).await?;
        shim.create(&stdio).await?;
        // Connected before the start, all of it is seen; more than one may be.
        let (read, mut write) = UnixStream::connect(&uri.attach).await?.into_split();
        let second = UnixStream::connect(&uri.attach).await?;
        let (first, second) = (tokio::spawn(frames(read)), tokio::spawn(frames(second)));
        shim.start_process("").await?;
        let long = "x".repeat(300_000) + "\n";
        for chunk in long.as_bytes().chunks(60_000) {
            send(&mut write, FrameKind::Stdin, chunk).await?;
        }
        send(&mut write, FrameKind::CloseStdin, b"").await?;
        assert_eq!(shim.wait("").await?, 0);
        for client in [first, second] {
            let (out, err) = client.await??;
            assert_eq!(String::from_utf8(out)?, format!("hello\n{long}end\n"));
            assert_eq!(err, b"oops\n");
        }
        shim.delete("").await?;
        let logged = texts(Path::new(&uri.path))?.replace("oops\n", "");
        assert_eq!(logged, format!("hello\n{long}end\n"));
        assert!(!Path::new(&uri.attach).exists());
        shim.shutdown().await
    })
}

fn a_process_that_closes_its_output_still_reads(env: &Env) -> Result<()> {
    let bundle = Bundle::new(env, "deaf", &["sh", "-c", "exec >&- 2>&-; [ $(wc -c) = 300000 ] && exit 4"])?;
    let (uri, stdio) = attachable(env);
    daemon::runtime()?.block_on(async {
        let shim = Supervisor::start(env, &bundle).await?;
        shim.create(&stdio).await?;
        let (read, mut write) = UnixStream::connect(&uri.attach).await?.into_split();
        shim.start_process("").await?;
        assert_eq!(frames(read).await?, (Vec::new(), Vec::new()));
        for _ in 0..10 {
            send(&mut write, FrameKind::Stdin, &[b'x'; 30_000]).await?;
        }
        // Who comes later is told at once that there is nothing to see.
        assert_eq!(frames(UnixStream::connect(&uri.attach).await?).await?, (Vec::new(), Vec::new()));
        send(&mut write, FrameKind::CloseStdin, b"").await?;
        assert_eq!(shim.wait("").await?, 4);
        shim.delete("").await?;
        assert!(!Path::new(&uri.attach).exists());
        shim.shutdown().await
    })
}

fn logs_rotate_and_compress(env: &Env) -> Result<()> {
    let count = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done";
    let bundle = Bundle::new(env, "rotate", &["sh", "-c", count])?;
    let uri = LogUri {
        format: LogFormat::Cri,
        max_size: 100_000,
        max_files: 4,
        compress: true,
        ..LogUri::new(env.path("logs/c.log").to_string_lossy())
    };
    let stdio = Stdio { stdout: uri.to_string(), ..Stdio::default() };
    daemon::runtime()?.block_on(async {
        let shim = Supervisor::start(env, &bundle).await?;
        shim.create(&stdio).await?;
        shim.start_process("").await?;
        assert_eq!(shim.wait("").await?, 0);
        shim.delete("").await?;
        let names = || -> Vec<String> {
            let list = fs::read_dir(env.path("logs")).into_iter().flatten().flatten();
            let mut names: Vec<_> = list.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
            names.sort();
            names
        };
        let settled = || (names() == ["c.log", "c.log.1.gz", "c.log.2.gz", "c.log.3.gz"]).then_some(());
        wait::until("rotated logs to be compressed", settled)?;
        let mut all = String::new();
        for number in (1..=3).rev() {
            let file = fs::File::open(env.path(&format!("logs/c.log.{number}.gz")))?;
            flate2::read::GzDecoder::new(file).read_to_string(&mut all)?;
        }
        all += &fs::read_to_string(env.path("logs/c.log"))?;
        let numbers: Vec<u32> =
            all.lines().map(|line| line.rsplit(' ').next().expect("a number").parse().expect("a number")).collect();
        assert_eq!(numbers.last(), Some(&19_999));
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "a line is missing or doubled");
        assert!(numbers.len() > 5000);
        shim.shutdown().await
    })
}

fn a_renamed_log_is_reopened(env: &Env) -> Result<()> {
    let bundle = Bundle::new(env, "reopen", &["sh", "-c", "echo before; read line; echo after; read line"])?;
    let log = env.path("c.log");
    let uri = LogUri {
        format: LogFormat::Cri,
        attach: env.path("a.sock").to_string_lossy().into_owned(),
        ..LogUri::new(log.to_string_lossy())
    };
    let stdio = Stdio { stdin: uri.to_string(), stdout: uri.to_string(), ..Stdio::default() };
    daemon::runtime()?.block_on(async {
        let shim = Supervisor::start(env, &bundle).await?;
        shim.create(&stdio).await?;
        let mut client = UnixStream::connect(&uri.attach).await?;
        shim.start_process("").await?;
        let holds = |path: &Path, text: &str| fs::read_to_string(path).is_ok_and(|all| all.contains(text));
        wait::until("the first line", || holds(&log, "before").then_some(()))?;
        let moved = env.path("c.log.old");
        fs::rename(&log, &moved)?;
        let request = ReopenLogRequest { id: shim.id.clone(), exec_id: String::new() };
        let _: () = shim.client.call("gantry.shim.v1.Shim", "ReopenLog", &request, &Context::new()).await?;
        send(&mut client, FrameKind::Stdin, b"go\n").await?;
        wait::until("the second line", || holds(&log, "after").then_some(()))?;
        assert!(!holds(&moved, "after") && !holds(&log, "before"));
        shim.finish().await
    })
}

fn a_full_disk_blocks_or_drops_as_told(env: &Env) -> Result<()> {
    for policy in [LogPolicy::Block, LogPolicy::Drop] {
        let name = format!("{policy:?}").to_lowercase();
        let disk = env.dir(&format!("disk-{name}"))?;
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("tmpfs"), &disk, Some("tmpfs"), flags, Some("size=1m"))?;
        let outcome = full_disk(env, &name, &disk, policy);
        nix::mount::umount2(&disk, nix::mount::MntFlags::MNT_DETACH)?;
        outcome?;
    }
    Ok(())
}

fn full_disk(env: &Env, name: &str, disk: &Path, policy: LogPolicy) -> Result<()> {
    let count = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done";
    let bundle = Bundle::new(env, name, &["sh", "-c", count])?;
    let log = disk.join("log.json");
    fs::write(disk.join("ballast"), vec![0; 700 << 10])?;
    let uri = LogUri { policy, ..LogUri::new(log.to_string_lossy()) };
    let stdio = Stdio { stdout: uri.to_string(), ..Stdio::default() };
    daemon::runtime()?.block_on(async {
        let shim = Supervisor::start(env, &bundle).await?;
        shim.create(&stdio).await?;
        shim.start_process("").await?;
        let ended = shim.wait("");
        tokio::pin!(ended);
        if policy == LogPolicy::Block {
            // 20000 records are more than a mebibyte: the process stands still, and so does its Wait.
            let early = tokio::time::timeout(std::time::Duration::from_millis(1500), &mut ended).await;
            assert!(early.is_err(), "the process ended although its log is full");
            fs::remove_file(disk.join("ballast"))?;
            nix::mount::mount(None::<&str>, disk, None::<&str>, nix::mount::MsFlags::MS_REMOUNT, Some("size=16m"))?;
        }
        assert_eq!(ended.await?, 0);
        shim.delete("").await?;
        let logged = texts(&log)?;
        if policy == LogPolicy::Block {
            let numbers = logged.lines().enumerate();
            assert_eq!(numbers.filter(|(number, line)| *line == format!("line {number}")).count(), 20_000);
        } else {
            // The log says how much is missing, and that is the truth; what is missing at the very end is only counted
            // where there was room to say so.
            assert!(logged.starts_with("line 0\nline 1\n") && logged.lines().count() < 20_000);
            let dropped = |line: &str| line.strip_prefix("gantry: ")?.split(' ').next()?.parse::<usize>().ok();
            let gaps: usize = logged.lines().filter_map(dropped).sum();
            let kept = logged.lines().filter(|line| line.starts_with("line ")).count();
            assert!(kept + gaps <= 20_000, "{kept} kept and {gaps} dropped");
        }
        shim.shutdown().await
    })
}

/// A program that keeps what a logger gets in `got.*`, and its address.
fn logger(env: &Env) -> Result<String> {
    let directory = env.root().display();
    let script = format!(
        "#!/bin/sh\necho \"$CONTAINER_ID $CONTAINER_NAMESPACE $*\" >{directory}/got.args\nexec 5>&-\n\
         cat <&3 >{directory}/got.out & cat <&4 >{directory}/got.err &\nexec 3<&- 4<&-\nwait\n"
    );
    let program = env.script("logger.sh", &script)?;
    Ok(format!("binary://{}?key=some+value", program.display()))
}

fn a_logger_program_gets_the_output(env: &Env) -> Result<()> {
    let bundle = Bundle::new(env, "logger", &["sh", "-c", "echo out; echo err >&2"])?;
    let uri = logger(env)?;
    let stdio = Stdio { stdout: uri.clone(), stderr: uri, ..Stdio::default() };
    daemon::runtime()?.block_on(async {
        let shim = Supervisor::start(env, &bundle).await?;
        shim.create(&stdio).await?;
        shim.start_process("").await?;
        assert_eq!(shim.wait("").await?, 0);
        shim.delete("").await?;
        assert_eq!(fs::read_to_string(env.path("got.out"))?, "out\n");
        assert_eq!(fs::read_to_string(env.path("got.err"))?, "err\n");
        let expected = format!("{} {} key some value\n", shim.id, env.namespace());
        assert_eq!(fs::read_to_string(env.path("got.args"))?, expected);
        let missing = Stdio { stdout: "binary:///does/not/exist".into(), ..Stdio::default() };
        let error = shim.create(&missing).await.expect_err("no such program");
        assert!(error.message.contains("/does/not/exist"), "{error}");
        shim.shutdown().await
    })
}

fn a_logger_program_gets_what_a_terminal_shows(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "logged-tty", &["sh", "-c", "tty; echo err >&2"])?;
    bundle.set("/process/terminal", true);
    let stdio = Stdio { stdout: logger(env)?, terminal: true, ..Stdio::default() };
    daemon::runtime()?.block_on(async {
        let shim = Supervisor::start(env, &bundle).await?;
        shim.create(&stdio).await?;
        shim.start_process("").await?;
        assert_eq!(shim.wait("").await?, 0);
        shim.delete("").await?;
        assert_eq!(fs::read_to_string(env.path("got.out"))?, "/dev/pts/0\r\nerr\r\n");
        assert_eq!(fs::read_to_string(env.path("got.err"))?, "");
        shim.shutdown().await
    })
}

fn output_held_open_does_not_hold_delete_for_ever(env: &Env) -> Result<()> {
    let bundle = Bundle::new(env, "held", &["sleep", "1000"])?;
    daemon::runtime()?.block_on(async {
        let shim = Supervisor::start(env, &bundle).await?;
        shim.create(&Stdio::default()).await?;
        shim.start_process("").await?;
        let stdio = Stdio::file(&env.path("output"));
        shim.exec("one", &["sh", "-c", "echo said; sleep 1000 &"], &stdio).await?;
        shim.start_process("one").await?;
        assert_eq!(shim.wait("one").await?, 0);
        // Whoever waited for the end of it would wait longer than a test may.
        shim.delete("one").await?;
        assert_eq!(fs::read_to_string(env.path("output"))?, "said\n");
        shim.finish().await
    })
}

fn what_a_runtime_complains_of_is_not_the_containers_output(env: &Env) -> Result<()> {
    let failing = env.path("failing");
    let script = format!(
        "#!/bin/sh\nfor word; do case $word in $(cat {})) echo no luck >&2; exit 4;; esac; done\nexec {} \"$@\"\n",
        failing.display(),
        env.program("rung")?.display()
    );
    let program = env.script("runtime.sh", &script)?;
    let bundle = Bundle::new(env, "complains", &["sleep", "60"])?;
    let output = env.path("output");
    let uri = format!("file://{}", output.display());
    let stdio = Stdio { stdout: uri.clone(), stderr: uri, ..Stdio::default() };
    daemon::runtime()?.block_on(async {
        let shim = Supervisor::start(env, &bundle).await?;
        let request = shim.request_of(&program, &stdio);
        fs::write(&failing, "create")?;
        let error = shim.call::<_, CreateTaskResponse>("Create", &request).await.expect_err("create");
        assert!(error.message.contains("OCI runtime create failed: no luck"), "{error}");
        fs::write(&failing, "exec")?;
        shim.call::<_, CreateTaskResponse>("Create", &request).await?;
        shim.start_process("").await?;
        shim.exec("e", &["true"], &stdio).await?;
        let error = shim.start_process("e").await.expect_err("exec");
        assert!(error.message.contains("OCI runtime exec failed: no luck"), "{error}");
        fs::write(&failing, "none")?;
        shim.exec("said", &["echo", "said"], &stdio).await?;
        shim.start_process("said").await?;
        assert_eq!(shim.wait("said").await?, 0);
        shim.delete("said").await?;
        assert_eq!(fs::read_to_string(&output)?, "said\n");
        shim.kill("", 9).await?;
        shim.wait("").await?;
        shim.delete("").await?;
        shim.shutdown().await
    })
}
