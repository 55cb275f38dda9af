//! What containers write, in the journal of the system.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use integration_tests::pods::Pods;
use integration_tests::{Env, Result, Stack, Test, tests, wait};
use nix::mount::{MsFlags, mount};

pub(crate) const TESTS: &[Test] = tests![what_containers_write_is_in_the_journal_too [Root, Overlay]];

const SOCKET: &str = "/run/systemd/journal/socket";

/// A place for a journal of the test's own, where neither the machine nor another test sees it.
fn own_journal(env: &Env) -> Result<()> {
    env.own_mounts()?;
    // Where there is no systemd there is no directory to mount on, but the one above all.
    let (over, inside) = match Path::new("/run/systemd").is_dir() {
        true => ("/run/systemd", "journal"),
        false => ("/run", "systemd/journal"),
    };
    mount(Some("tmpfs"), over, Some("tmpfs"), MsFlags::empty(), None::<&str>).context("mount a tmpfs")?;
    fs::create_dir_all(Path::new(over).join(inside)).context("make the journal's directory")
}

/// The fields of a record, in the two forms of the journal's protocol.
fn fields(mut record: &[u8]) -> Vec<(String, String)> {
    let mut all = Vec::new();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    while let Some(end) = record.iter().position(|byte| *byte == b'\n') {
        let (line, rest) = (&record[..end], &record[end + 1..]);
        if let Some(at) = line.iter().position(|byte| *byte == b'=') {
            all.push((text(&line[..at]), text(&line[at + 1..])));
            record = rest;
            continue;
        }
        let length = usize::try_from(u64::from_le_bytes(rest[..8].try_into().expect("a length"))).expect("fits");
        all.push((text(line), text(&rest[8..8 + length])));
        record = &rest[8 + length + 1..];
    }
    all
}

fn what_containers_write_is_in_the_journal_too(env: &Env) -> Result<()> {
    own_journal(env)?;
    let stack = Stack::start_configured(env, "[cri]\nlog_to_journald = true\n")?;
    let mut pods = Pods::connect(env, &stack.daemon)?;
    pods.pull(&stack.image)?;
    let mut config = pods.pod_config("journal");
    config.log_directory = env.dir("logs")?.display().to_string();
    let metadata = config.metadata.clone().expect("metadata");
    let pod = pods.run(&config)?;
    // There is no journal yet: nothing waits for it.
    let away = "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; echo unseen; sleep 3; \
                echo out; echo err >&2; printf unfinished";
    let start = |pods: &mut Pods<'_>, attempt: u32, log: &str, script: &str| {
        pods.start(&pod, &config, &stack.image, &["sh", "-c", script], |container| {
            container.metadata.get_or_insert_default().attempt = attempt;
            container.log_path = log.to_owned();
        })
    };
    let container = start(&mut pods, 0, "0.log", away)?;
    let logged = || fs::read_to_string(env.path("logs").join("0.log")).unwrap_or_default();
    wait::until("the container writes without a journal", || logged().contains("unseen").then_some(()))?;
    let journal = UnixDatagram::bind(SOCKET).context("bind the journal")?;
    journal.set_read_timeout(Some(Duration::from_secs(20)))?;
    let name = pods.status(&container)?.metadata.expect("metadata").name;
    let mut buffer = vec![0; 1 << 18];
    let mut next = || -> Result<Vec<(String, String)>> {
        let count = journal.recv(&mut buffer).context("a record of the journal")?;
        Ok(fields(&buffer[..count]))
    };
    let get = |record: &[(String, String)], key: &str| {
        record.iter().find(|(is, _)| is == key).map(|(_, value)| value.clone()).unwrap_or_default()
    };
    let full_name = format!("k8s_{name}_{}_{}_{}_0", metadata.name, metadata.namespace, metadata.uid);
    let mut seen = Vec::new();
    for _ in 0..4 {
        let record = next()?;
        assert_eq!(get(&record, "CONTAINER_ID_FULL"), container);
        assert_eq!(get(&record, "CONTAINER_ID"), container[..12]);
        assert_eq!(
            (get(&record, "CONTAINER_NAME"), get(&record, "SYSLOG_IDENTIFIER")),
            (full_name.clone(), full_name.clone())
        );
        seen.push(["MESSAGE", "PRIORITY", "CONTAINER_PARTIAL_MESSAGE"].map(|key| get(&record, key)));
    }
    seen.sort();
    let expected = [["err", "3", ""], ["gantry", "3", ""], ["out", "6", ""], ["unfinished", "6", "true"]];
    for ([message, priority, partial], wanted) in seen.iter().zip(expected) {
        assert!(message.starts_with(wanted[0]) && [priority, partial] == [wanted[1], wanted[2]], "{seen:?}");
    }
    assert!(seen[1][0].contains("2001 records were dropped"), "{seen:?}");
    assert_eq!(pods.exit_code(&container)?, 0);
    assert!(["out", "err", "unfinished"].iter().all(|text| logged().contains(text)), "the log has it all");
    // One that nobody reads stops no container either, nor is a log needed for it.
    let container = start(&mut pods, 1, "", "yes | head -n 20000; exit 3")?;
    assert_eq!(pods.exit_code(&container)?, 3);
    let record = next()?;
    assert_eq!((get(&record, "CONTAINER_ID_FULL"), get(&record, "MESSAGE")), (container, "y".to_owned()));
    pods.remove(&pod)
}
