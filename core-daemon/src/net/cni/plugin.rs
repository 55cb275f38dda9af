//! Running a plugin's program.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;

use crate::error::{Doing as _, Error, Kind, Result};
use crate::program::{self, Answer};

/// Code of a plugin's error: try again later.
const TRY_AGAIN: u64 = 11;

/// One call of one plugin.
#[derive(Debug)]
pub(super) struct Call<'a> {
    /// What is wanted, such as `ADD`.
    pub(super) command: &'static str,
    /// The container.
    pub(super) container: &'a str,
    /// Path of its network namespace; empty where it is gone.
    pub(super) netns: String,
    /// Name of the interface.
    pub(super) interface: &'a str,
    /// `KEY=VALUE` pairs for the plugin, joined by `;`.
    pub(super) args: &'a str,
}

/// The program of the plugin called `kind`.
pub(super) fn find(kind: &str, dirs: &[PathBuf]) -> Result<PathBuf> {
    dirs.iter().map(|dir| dir.join(kind)).find(|path| path.is_file()).ok_or_else(|| {
        let shown: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
        Error::not_found(format!("plugin {kind}: not in {}", shown.join(":")))
    })
}

/// Runs a plugin and returns what it answered.
pub(super) async fn run(
    plugin: &Path,
    call: &Call<'_>,
    dirs: &[PathBuf],
    config: &Value,
    timeout: Duration,
) -> Result<Value> {
    let path = std::env::join_paths(dirs).map_err(|error| Error::invalid(format!("cri.cni.bin_dirs: {error}")))?;
    let mut command = Command::new(plugin);
    command
        .env("CNI_COMMAND", call.command)
        .env("CNI_CONTAINERID", call.container)
        .env("CNI_NETNS", &call.netns)
        .env("CNI_IFNAME", call.interface)
        .env("CNI_ARGS", call.args)
        .env("CNI_PATH", path);
    let doing = || format!("network plugin {} {}", plugin.file_name().unwrap_or_default().display(), call.command);
    let answer = program::ask(command, config.to_string().as_bytes(), timeout, drop).await.doing(doing)?;
    if !answer.status.success() {
        return Err(failure(&answer)).doing(doing);
    }
    if answer.output.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&answer.output)
        .map_err(|error| Error::new(Kind::Unknown, format!("answer is not JSON: {error}")))
        .doing(doing)
}

/// What a plugin that failed said: its error as JSON, else whatever it printed.
fn failure(answer: &Answer) -> Error {
    let value: Value = serde_json::from_slice(&answer.output).unwrap_or_default();
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
    let code = value.get("code").and_then(Value::as_u64);
    let Some(code) = code else {
        let said = answer.said();
        return Error::new(Kind::Unknown, if said.is_empty() { "failed without a word" } else { &said });
    };
    let kind = if code == TRY_AGAIN { Kind::Unavailable } else { Kind::Unknown };
    let details = if text("details").is_empty() { String::new() } else { format!(": {}", text("details")) };
    Error::new(kind, format!("{}{details} (code {code})", text("msg")))
}

#[cfg(test)]
mod tests {
    use std::process::ExitStatus;

    use super::*;

    #[test]
    fn failures_say_what_the_plugin_said() {
        let failure = |output: &[u8], errors: &[u8]| {
            failure(&Answer { status: ExitStatus::default(), output: output.to_vec(), errors: errors.to_vec() })
        };
        let error = failure(br#"{"cniVersion":"1.0.0","code":11,"msg":"no lease","details":"server away"}"#, b"");
        assert_eq!((error.kind(), error.to_string().as_str()), (Kind::Unavailable, "no lease: server away (code 11)"));
        assert_eq!(failure(b"", b"panic: x\n").to_string(), "panic: x");
        assert_eq!(failure(b"{}", b"").to_string(), "{}");
    }

    #[tokio::test]
    async fn a_plugin_that_hangs_is_ended() {
        let dir = tempfile::tempdir().expect("directory");
        let program = dir.path().join("slow");
        std::fs::write(&program, "#!/bin/sh\nexec sleep 60\n").expect("write");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program, mode).expect("mode");
        let call = Call { command: "ADD", container: "c", netns: String::new(), interface: "eth0", args: "" };
        let dirs = [dir.path().to_owned()];
        let answer = run(&program, &call, &dirs, &Value::Null, Duration::from_millis(100)).await;
        assert_eq!(answer.expect_err("slow").kind(), Kind::DeadlineExceeded);
        assert!(find("slow", &dirs).is_ok() && find("none", &dirs).is_err());
    }
}
