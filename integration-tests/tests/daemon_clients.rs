//! Clients of containerd that know nothing of Gantry, on `gantryd`: Debian's dockerd and `ctr`.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};
use gantry_proto::containerd::services::version::v1::version_client::VersionClient;
use gantry_proto::runtime::v1::runtime_service_client::RuntimeServiceClient;
use gantry_proto::runtime::v1::{ListContainersRequest, VersionRequest};
use integration_tests::engines::{Dockerd, Engine};
use integration_tests::{Daemon, Env, Image, Registry, Result, Test, daemon, tests, wait};
use tonic::codec::CompressionEncoding;

pub(crate) const TESTS: &[Test] = tests![
    dockerd_keeps_its_containers_here [Root, Overlay, Dockerd],
    names_that_are_not_told_are_made_up [Root],
    images_go_round_in_ctr [Root, Overlay],
    content_and_snapshots_by_hand [Root, Overlay],
    clients_of_other_libraries_are_answered [Root],
    nobody_is_a_client_before_the_socket_has_its_mode [Root],
    clients_beyond_what_is_possible_wait_in_the_queue [Root],
];

/// The state of a container of docker's, by a template.
fn shown(engine: &Engine<'_>, name: &str, template: &str) -> Result<String> {
    Ok(engine.call(&["inspect", "--format", template, name])?.ok()?.text().to_owned())
}

fn short_lives(engine: &Engine<'_>) -> Result<()> {
    ensure!(engine.run(&["--rm"], &["echo", "hi"])?.ok()?.text() == "hi");
    engine.run(&["--rm"], &["sh", "-c", "exit 7"])?.exits(7)?;
    engine.run(&["--rm"], &["no-such-program"])?.exits(127)?;
    let small = ["--memory", "16m", "--memory-swap", "16m", "--detach", "--name"];
    let (hungry, clumsy) = (engine.env.id("hungry"), engine.env.id("clumsy"));
    let is_told = || -> Result<bool> {
        engine.run(&[&small[..], &[&hungry]].concat(), &["dd", "if=/dev/zero", "of=/dev/null", "bs=200M"])?.ok()?;
        ensure!(engine.call(&["wait", &hungry])?.ok()?.text() == "137");
        let told = shown(engine, &hungry, "{{.State.OOMKilled}}")? == "true";
        engine.call(&["rm", &hungry])?.ok()?;
        Ok(told)
    };
    // Containerd's shim, which dockerd names, says so beside the end, and now and then after it.
    ensure!(is_told()? || is_told()? || is_told()?, "the kill for lack of memory is not told");
    engine.run(&["--detach", "--restart", "on-failure:2", "--name", &clumsy], &["sh", "-c", "exit 4"])?.ok()?;
    let ended = || shown(engine, &clumsy, "{{.RestartCount}} {{.State.Status}} {{.State.ExitCode}}").ok();
    wait::until("it was started again twice", || ended().filter(|state| state == "2 exited 4"))?;
    engine.call(&["rm", &clumsy])?.ok().map(drop)
}

fn alive(engine: &Engine<'_>, name: &str) -> Result<()> {
    engine.call(&["exec", name, "sh", "-c", "exit 3"])?.exits(3)?;
    ensure!(engine.call(&["logs", name])?.ok()?.stdout.contains("begun"));
    ensure!(shown(engine, name, "{{.State.Status}}")? == "running");
    Ok(())
}

/// A container that outlives dockerd, and then this daemon.
fn long_life<'env>(dockerd: &mut Dockerd<'env>, daemon: Daemon<'env>) -> Result<Daemon<'env>> {
    let env = dockerd.engine.env;
    let name = env.id("web");
    let script = "echo begun; trap 'exit 9' TERM; while :; do sleep 0.1; done";
    dockerd.engine.run(&["--detach", "--memory", "64m", "--name", &name], &["sh", "-c", script])?.ok()?;
    wait::until("it has begun", || alive(&dockerd.engine, &name).ok())?;
    ensure!(dockerd.engine.call(&["top", &name])?.ok()?.text().contains("while"));
    ensure!(dockerd.engine.call(&["stats", "--no-stream", &name])?.ok()?.text().contains("64MiB"));
    dockerd.engine.call(&["pause", &name])?.ok()?;
    ensure!(shown(&dockerd.engine, &name, "{{.State.Status}}")? == "paused");
    dockerd.engine.call(&["unpause", &name])?.ok()?;
    dockerd.engine.call(&["update", "--memory", "96m", "--memory-swap", "96m", &name])?.ok()?;
    dockerd.restart()?;
    alive(&dockerd.engine, &name)?;
    daemon.crash()?;
    let daemon = env.daemon()?;
    wait::until("dockerd has found the daemon again", || alive(&dockerd.engine, &name).ok())?;
    dockerd.engine.call(&["stop", "--time", "20", &name])?.ok()?;
    ensure!(shown(&dockerd.engine, &name, "{{.State.ExitCode}}")? == "9");
    dockerd.engine.call(&["start", &name])?.ok()?;
    dockerd.engine.call(&["kill", &name])?.ok()?;
    ensure!(dockerd.engine.call(&["wait", &name])?.ok()?.text() == "137");
    dockerd.engine.call(&["rm", &name])?.ok()?;
    Ok(daemon)
}

fn dockerd_keeps_its_containers_here(env: &Env) -> Result<()> {
    // With containers that are to live on, dockerd leaves mounts behind.
    env.own_mounts()?;
    let daemon = env.daemon()?;
    let mut dockerd = Dockerd::start(env, daemon.socket(), "--live-restore")?;
    let outcome = dockerd.engine.import().and_then(|()| short_lives(&dockerd.engine)).and_then(|()| {
        let daemon = long_life(&mut dockerd, daemon)?;
        ensure!(!dockerd.engine.call(&["ps", "--all", "--quiet"])?.ok()?.text().contains(char::is_alphanumeric));
        Ok(daemon)
    });
    dockerd.stop()?;
    outcome.map(drop)
}

/// Before the first thing is in a namespace, dockerd asks for its defaults; `ctr leases create` names no lease.
fn names_that_are_not_told_are_made_up(env: &Env) -> Result<()> {
    let daemon = env.daemon()?;
    daemon.ctr(&["namespaces", "label", env.namespace(), "a=b"])?.ok()?;
    ensure!(daemon.ctr(&["namespaces", "ls"])?.ok()?.stdout.contains("a=b"));
    let made = daemon.ctr(&["leases", "create"])?.ok()?.text().to_owned();
    ensure!(!made.is_empty() && daemon.ctr(&["leases", "ls", "-q"])?.ok()?.text().contains(&made));
    daemon.ctr(&["leases", "rm", &made])?.ok()?;
    Ok(())
}

fn pulled(env: &Env, daemon: &Daemon<'_>) -> Result<(Registry, String)> {
    let registry = Registry::start(env)?;
    let image = Image::busybox()?.push(&registry, "test/busybox", "1")?;
    daemon.ctr(&["images", "pull", "--plain-http", &image])?.ok()?;
    Ok((registry, image))
}

fn images_go_round_in_ctr(env: &Env) -> Result<()> {
    let daemon = env.daemon()?;
    let (_registry, image) = pulled(env, &daemon)?;
    let other = image.replace(":1", ":2");
    let ctr = |args: &[&str]| daemon.ctr(args)?.ok();
    let names = || ctr(&["images", "ls", "-q"]).map(|listed| listed.text().to_owned());
    ensure!(ctr(&["images", "check"])?.stdout.contains("complete"));
    ctr(&["images", "tag", &image, &other])?;
    ensure!(daemon.ctr(&["images", "tag", &image, &other])?.fails()?.contains("already exists"));
    ctr(&["images", "tag", "--force", &image, &other])?;
    ctr(&["images", "label", &other, "colour=red"])?;
    ensure!(ctr(&["images", "ls", "labels.colour==red"])?.stdout.contains(&other));
    ctr(&["images", "push", "--plain-http", &other])?;

    let archive = env.path("all.tar").to_string_lossy().into_owned();
    ctr(&["images", "export", &archive, &image, &other])?;
    ctr(&["images", "rm", "--sync", &image, &other])?;
    ensure!(names()?.is_empty() && ctr(&["content", "ls", "-q"])?.text().is_empty());
    ctr(&["images", "import", &archive])?;
    ctr(&["images", "import", "--index-name", "whole:1", "--snapshotter", "native", &archive])?;
    ensure!([&image, &other].iter().all(|name| names().is_ok_and(|all| all.contains(*name))), "{}", names()?);

    ctr(&["images", "convert", "--oci", "--uncompress", &image, "plain:1"])?;
    ensure!(ctr(&["images", "ls", "name==plain:1"])?.stdout.contains("application/vnd.oci.image"));
    let mounted = env.dir("mounted")?.to_string_lossy().into_owned();
    ctr(&["images", "mount", "plain:1", &mounted])?;
    ensure!(env.path("mounted/bin/busybox").is_file(), "the image is not there");
    ctr(&["images", "unmount", "--rm", &mounted])?;
    ctr(&["images", "mount", "--rw", "plain:1", &mounted])?;
    std::fs::write(env.path("mounted/new"), "new")?;
    ctr(&["images", "unmount", "--rm", &mounted])?;
    ensure!(ctr(&["run", "--rm", "plain:1", &env.id("run"), "echo", "hi"])?.text() == "hi");
    ctr(&["images", "rm", "--sync", "plain:1", "whole:1", &image, &other])?;
    Ok(())
}

const HELLO: &str = "sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";

fn content_by_hand(env: &Env, daemon: &Daemon<'_>) -> Result<()> {
    let socket = daemon.socket().to_string_lossy().into_owned();
    let ingest = |flags: &str| {
        let ctr = format!("ctr --address {socket} --namespace {} content ingest", env.namespace());
        env.run("sh", &["-c", &format!("echo hello | {ctr} {flags}")])
    };
    ensure!(ingest("--expected-size 7 long")?.fails()?.contains("unexpected EOF"));
    ensure!(ingest(&format!("--expected-digest {} wrong", HELLO.replace("be03", "be04")))?.fails()?.contains("wrong"));
    let ctr = |args: &[&str]| daemon.ctr(args)?.ok();
    let is_kept = || -> Result<()> {
        ingest(&format!("--expected-size 6 --expected-digest {HELLO} right"))?.ok()?;
        ensure!(ctr(&["content", "get", HELLO])?.stdout == "hello\n");
        ctr(&["content", "label", HELLO, "a=b", "containerd.io/gc.root=now"]).map(drop)
    };
    // Until it has that label, the collection at the daemon's start may take it away.
    is_kept().or_else(|_| is_kept())?;
    ensure!(ctr(&["content", "ls", "-q", "labels.a==b"])?.text() == HELLO);
    ctr(&["content", "rm", HELLO])?;
    ensure!(daemon.ctr(&["content", "get", HELLO])?.fails()?.contains("not found"));
    Ok(())
}

fn content_and_snapshots_by_hand(env: &Env) -> Result<()> {
    let daemon = env.daemon()?;
    content_by_hand(env, &daemon)?;
    let (_registry, image) = pulled(env, &daemon)?;
    let ctr = |args: &[&str]| daemon.ctr(args)?.ok();
    let listed = ctr(&["snapshots", "ls"])?;
    let row = listed.stdout.lines().find(|line| line.contains("Committed"));
    let base = row.and_then(|row| row.split_whitespace().next()).unwrap_or_default().to_owned();
    let target = env.dir("target")?.to_string_lossy().into_owned();
    ctr(&["snapshots", "prepare", "key", &base])?;
    // Nothing keeps it from the next collection.
    ctr(&["snapshots", "view", "seen", &base])?;
    let mount = ctr(&["snapshots", "mounts", &target, "key"])?.text().to_owned();
    let archive = env.path("layer.tar.gz").display().to_string();
    env.run("sh", &["-c", &format!("{mount} && echo new > {target}/new; rm {target}/bin/sh; umount {target}")])?
        .ok()?;
    let diff = format!("ctr --address {} --namespace {}", daemon.socket().display(), env.namespace());
    env.run("sh", &["-c", &format!("{diff} snapshots diff key > {archive}")])?.ok()?;
    let changes = env.run("tar", &["-tzf", &archive])?.ok()?.stdout;
    ensure!(changes.contains("new") && changes.contains("bin/.wh.sh"), "{changes}");
    ctr(&["snapshots", "commit", "made", "key"])?;
    ctr(&["snapshots", "label", "made", "a=b"])?;
    ensure!(ctr(&["snapshots", "info", "made"])?.stdout.contains(&base));
    ensure!(ctr(&["snapshots", "tree"])?.stdout.contains("made"));
    ensure!(ctr(&["snapshots", "usage", "made"])?.stdout.contains("made"));
    ensure!(daemon.ctr(&["snapshots", "rm", &base])?.fails()?.contains("failed precondition"));
    ctr(&["snapshots", "rm", "made"])?;
    ctr(&["images", "rm", "--sync", &image])?;
    ensure!(!ctr(&["snapshots", "ls"])?.stdout.contains("sha256:"));
    Ok(())
}

/// A frame of HTTP/2 on the first stream of a client, or on none.
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("short").to_be_bytes();
    [&[0, length[0], length[1], kind, flags, 0, 0, 0, stream], payload].concat()
}

/// As gRPC's core asks, which is below its clients in Python, C++ and Ruby: every name written out, and the path of the
/// socket for an authority.
fn asks_as_the_core_does(socket: &Path) -> Result<()> {
    let authority = socket.display().to_string().trim_start_matches('/').replace('/', "%2F");
    let fields = [
        (":path", "/containerd.services.version.v1.Version/Version"),
        (":authority", authority.as_str()),
        (":method", "POST"),
        (":scheme", "http"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let mut headers = Vec::new();
    for (name, value) in fields {
        headers.push(0x40);
        for text in [name, value] {
            headers.push(u8::try_from(text.len()).ok().filter(|length| *length < 0x7f).context("short")?);
            headers.extend_from_slice(text.as_bytes());
        }
    }
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(wait::seconds(10)))?;
    let sent = [frame(4, 0, 0, &[]), frame(1, 4, 1, &headers), frame(0, 1, 1, &[0; 5])];
    stream.write_all(&[&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &sent.concat()].concat())?;
    loop {
        let mut header = [0; 9];
        stream.read_exact(&mut header)?;
        let mut payload = vec![0; usize::from(header[1]) << 8 | usize::from(header[2])];
        stream.read_exact(&mut payload)?;
        match header[3] {
            0 => return Ok(()),
            3 | 7 => bail!("the call is refused: {payload:?}"),
            _ => {}
        }
    }
}

fn clients_of_other_libraries_are_answered(env: &Env) -> Result<()> {
    let daemon = env.daemon()?;
    asks_as_the_core_does(daemon.socket())?;
    // Java's and Python's may pack what they ask.
    daemon::runtime()?.block_on(async {
        let channel = daemon.channel().await?;
        let mut client = VersionClient::new(channel.clone()).send_compressed(CompressionEncoding::Gzip);
        client.version(()).await.context("the version, asked in a packed message")?;
        let mut pods = RuntimeServiceClient::new(channel).send_compressed(CompressionEncoding::Gzip);
        let version = VersionRequest { version: "x".repeat(100) };
        pods.version(version).await.context("CRI's version, asked in a packed message")?;
        let all = ListContainersRequest { filter: None };
        pods.list_containers(all).await.context("a list, asked for in a packed message")?;
        Ok(())
    })
}

/// Started with a mask of nothing, as by a first process that has set none.
fn nobody_is_a_client_before_the_socket_has_its_mode(env: &Env) -> Result<()> {
    let program = env.command("gantryd")?;
    let (socket, root, state) = (env.path("gantryd.sock"), env.path("root"), env.path("state"));
    let mut command = Command::new("sh");
    env.prepare(&mut command);
    command.args(["-c", "umask 0; exec \"$@\"", "sh"]).arg(program.get_program());
    command.arg("--address").arg(&socket).arg("--root").arg(root).arg("--state").arg(state);
    // It is killed, and would leave the machine's socket of plugins.
    std::fs::write(env.path("config.toml"), "[cri.nri]\nenable = false\n")?;
    command.arg("--config").arg(env.path("config.toml"));
    let mut daemon = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let there = wait::until("the socket", || socket.exists().then_some(()));
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.id()));
    daemon.kill()?;
    daemon.wait()?;
    there?;
    let status = status?;
    ensure!(status.contains("\nUmask:\t0022\n"), "{status}");
    Ok(())
}

/// More clients than the daemon may have descriptors.
fn clients_beyond_what_is_possible_wait_in_the_queue(env: &Env) -> Result<()> {
    let daemon = env.daemon()?;
    let pid = daemon.pid().to_string();
    env.run("prlimit", &["--pid", &pid, "--nofile=64:64"])?.ok()?;
    let crowd = (0..80).map(|_| UnixStream::connect(daemon.socket())).collect::<std::io::Result<Vec<_>>>()?;
    wait::until("it says so", || daemon.log().contains("accept a connection of a client").then_some(()))?;
    // Ticks of the processor, a hundred in a second.
    let used = || -> Result<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields = stat.rsplit_once(") ").context("a name in brackets")?.1.split(' ').skip(11).take(2);
        Ok(fields.map(str::parse::<u64>).sum::<Result<u64, _>>()?)
    };
    let before = used()?;
    std::thread::sleep(std::time::Duration::from_secs(1));
    let spent = used()? - before;
    ensure!(spent < 20, "it tries all the time: {spent} hundredths of a second");
    drop(crowd);
    daemon.gantry(&["version"])?.ok()?;
    Ok(())
}
