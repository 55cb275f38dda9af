//! Plugins that the daemon starts: programs in a directory, each with a socket for its descriptor 3.

use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use futures_util::future::join_all;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rung_sys::spawn::{cleanly, with_descriptor_3};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;

use super::attend::{FAREWELL, attend};
use super::plugin::Name;
use crate::blocking::blocking;
use crate::cri::Cri;
use crate::error::{Doing as _, Error, Kind, Result};

/// Most plugins that are started.
const MOST: usize = 64;
/// Largest file of a plugin's configuration.
const MAX_CONFIG: u64 = 1 << 20;

/// A plugin that the daemon has started.
pub(super) struct Launched {
    pub(super) name: Name,
    pub(super) config: String,
    process: Child,
}

/// A program to start.
struct Program {
    path: PathBuf,
    name: Name,
    config: String,
}

impl Cri {
    /// Starts all plugins of the directory, and waits until each is registered or cannot be.
    pub(super) async fn launch_plugins(&self) {
        let settings = self.nri().settings.clone();
        let found = blocking(move || programs(&settings.plugin_dir, &settings.config_dir)).await;
        let found = found.unwrap_or_else(|error| {
            tracing::error!(%error, "look for plugins of the node resource interface");
            Vec::new()
        });
        let mut all = Vec::new();
        for program in found {
            let name = program.name.to_string();
            match start(program) {
                Ok((launched, socket)) => {
                    let (ready, is_ready) = oneshot::channel();
                    self.nri().tasks.spawn(attend(self.clone(), socket, Some(launched), Some(ready)));
                    all.push(is_ready);
                }
                Err(error) => {
                    tracing::error!(plugin = name, %error, "start a plugin of the node resource interface");
                }
            }
        }
        // Each of them is given so much time, and no more.
        join_all(all).await;
    }
}

/// The plugins in a directory, which need not be there.
fn programs(dir: &Path, config_dir: &Path) -> Result<Vec<Program>> {
    let doing = || format!("read {}", dir.display());
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.doing(doing)?,
    };
    let mut programs = Vec::new();
    for entry in entries {
        let path = entry.doing(doing)?.path();
        // A link to a program is as good as the program.
        let Ok(metadata) = std::fs::metadata(&path) else { continue };
        if !metadata.is_file() || metadata.permissions().mode() & 0o111 == 0 {
            continue;
        }
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let parts = file.split_once('-').ok_or_else(|| Error::invalid("is not called NN-name"));
        let name = parts.and_then(|(index, base)| Name::new(index, base));
        match name.and_then(|name| Ok((config(config_dir, &name)?, name))) {
            Ok((config, name)) => programs.push(Program { path, name, config }),
            Err(error) => tracing::error!(path = %path.display(), %error, "plugin is not started"),
        }
    }
    programs.sort_by(|one, other| one.name.cmp(&other.name));
    if programs.len() > MOST {
        tracing::error!(dir = %dir.display(), "more than {MOST} plugins; the others are not started");
        programs.truncate(MOST);
    }
    Ok(programs)
}

/// A plugin's own configuration: a file with its whole name, or else one without the index; or else nothing.
fn config(dir: &Path, name: &Name) -> Result<String> {
    for file in [format!("{name}.conf"), format!("{}.conf", name.base)] {
        let path = dir.join(file);
        let doing = || format!("read {}", path.display());
        let file = match std::fs::File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            file => file.doing(doing)?,
        };
        let mut text = String::new();
        file.take(MAX_CONFIG + 1).read_to_string(&mut text).doing(doing)?;
        if text.len() as u64 > MAX_CONFIG {
            let text = format!("{}: is larger than {MAX_CONFIG} bytes", path.display());
            return Err(Error::new(Kind::ResourceExhausted, text));
        }
        return Ok(text);
    }
    Ok(String::new())
}

fn start(program: Program) -> Result<(Launched, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    // It may read and write as it likes: only our end is tokio's.
    let theirs = theirs.into_std()?;
    theirs.set_nonblocking(false)?;
    let mut command = std::process::Command::new(&program.path);
    command
        .env_clear()
        .env("NRI_PLUGIN_NAME", &program.name.base)
        .env("NRI_PLUGIN_IDX", &program.name.index)
        .env("NRI_PLUGIN_SOCKET", "3")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    cleanly(&mut command);
    with_descriptor_3(&mut command, theirs.as_fd()).map_err(std::io::Error::from)?;
    let mut command = Command::from(command);
    command.kill_on_drop(true);
    let process = command.spawn().doing(|| format!("start {}", program.path.display()))?;
    Ok((Launched { name: program.name, config: program.config, process }, ours))
}

impl Launched {
    /// Ends the plugin, and whatever it has started in its group.
    pub(super) async fn end(mut self) {
        // Its number is its own until it is waited for.
        if let Some(id) = self.process.id().and_then(|id| i32::try_from(id).ok()) {
            let _ = killpg(Pid::from_raw(id), Signal::SIGKILL);
        }
        let _ = tokio::time::timeout(FAREWELL, self.process.wait()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_in_their_order_with_their_configurations() {
        let (dir, config) = (tempfile::tempdir().expect("directory"), tempfile::tempdir().expect("directory"));
        for (name, mode) in [("20-b", 0o755), ("05-a", 0o700), ("10-no-program", 0o644), ("bad", 0o755)] {
            let path = dir.path().join(name);
            std::fs::write(&path, "").expect("write");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("mode");
        }
        std::fs::create_dir(dir.path().join("30-dir")).expect("make");
        std::fs::write(config.path().join("b.conf"), "of b").expect("write");
        std::fs::write(config.path().join("05-a.conf"), "of 05-a").expect("write");
        std::fs::write(config.path().join("a.conf"), "of a").expect("write");
        let found = programs(dir.path(), config.path()).expect("programs");
        let found: Vec<_> = found.iter().map(|one| (one.name.to_string(), one.config.as_str())).collect();
        assert_eq!(found, [("05-a".to_owned(), "of 05-a"), ("20-b".to_owned(), "of b")]);
        assert!(programs(Path::new("/no/such"), config.path()).expect("none").is_empty());
    }
}
