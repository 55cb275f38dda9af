//! Programs that are asked something: each reads it, answers, and has ended in time or is ended.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use crate::error::{Error, Kind, Result};

/// Most bytes of what a program says that are kept, of each of its two streams.
const MAX_SAID: u64 = 4 << 20;

/// What a program said and how it ended.
#[derive(Debug)]
pub struct Answer {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub output: Vec<u8>,
    /// What it wrote to standard error.
    pub errors: Vec<u8>,
}

impl Answer {
    /// Both, as text for people; empty where it said nothing.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&[&self.errors[..], &self.output].concat()).trim().to_owned()
    }
}

/// Runs a program with `input`, and calls `begun` with its process id before it has read anything.
///
/// It is in a process group of its own: signals from the daemon's terminal are not for it. The ends of its two streams are
/// waited for, and the program itself, so a server that it leaves behind must have closed them.
///
/// # Errors
/// When it cannot be started; `DeadlineExceeded` when it has not ended by then, and its whole group is killed.
pub async fn ask(mut command: Command, input: &[u8], patience: Duration, begun: impl FnOnce(u32)) -> Result<Answer> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
    let conversation = async {
        let mut child = command.spawn()?;
        let mut group = Group(child.id());
        if let Some(id) = group.0 {
            begun(id);
        }
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let tell = async {
            if let Some(mut stdin) = stdin {
                // A program that does not read its input is not wrong.
                let _ = stdin.write_all(input).await;
            }
        };
        let ((), output, errors) = tokio::join!(tell, hear(stdout), hear(stderr));
        let status = child.wait().await?;
        // What it left behind on purpose goes on.
        group.0 = None;
        Ok(Answer { status, output: output?, errors: errors? })
    };
    let late = |_| Error::new(Kind::DeadlineExceeded, format!("no answer within {} s", patience.as_secs()));
    tokio::time::timeout(patience, conversation).await.map_err(late)?
}

/// The programs of a group, which end when it is dropped.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let leader = self.0.and_then(|id| i32::try_from(id).ok()).filter(|id| *id > 1);
        // Its leader is not waited for yet, so the number is nobody else's.
        let _ = leader.map(|id| killpg(Pid::from_raw(id), Signal::SIGKILL));
    }
}

async fn hear(stream: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut said = Vec::new();
    if let Some(mut stream) = stream {
        (&mut stream).take(MAX_SAID).read_to_end(&mut said).await?;
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
    }
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn a_program_is_heard_to_its_end() {
        let mut id = 0;
        let much = "cat; head -c 5000000 /dev/zero; echo no >&2; exit 3";
        let answer = ask(shell(much), b"first", Duration::from_secs(20), |begun| id = begun).await.expect("sh");
        assert!(id > 0 && answer.output.starts_with(b"first\0") && answer.output.len() as u64 == MAX_SAID);
        assert_eq!((answer.status.code(), &answer.errors[..]), (Some(3), &b"no\n"[..]));
        // One that reads nothing.
        ask(shell("exit"), &vec![0; 1 << 20], Duration::from_secs(20), drop).await.expect("sh");
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_ended_with_all_that_it_started() {
        let dir = tempfile::tempdir().expect("directory");
        let (note, mut id) = (dir.path().join("pid"), 0);
        let hangs = format!("sleep 60 & echo $! > {}; wait", note.display());
        let error = ask(shell(&hangs), b"", Duration::from_millis(300), |begun| id = begun).await.expect_err("timeout");
        assert_eq!(error.kind(), Kind::DeadlineExceeded);
        let started: i32 = std::fs::read_to_string(&note).expect("it began").trim().parse().expect("pid");
        // Who is left waits for nothing but to be collected.
        let is_gone = |pid: i32| {
            let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            state.is_empty() || state.contains(") Z ")
        };
        for _ in 0..200 {
            if is_gone(started) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{started} of the group {id} runs on");
    }
}
