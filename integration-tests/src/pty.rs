//! A person at a terminal: types, waits for what is shown, changes the size of the window.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, anyhow, bail};
use nix::pty::{Winsize, openpty};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::ttyname;

use crate::{Result, output, wait};

/// A program on a terminal of its own; killed when dropped.
#[derive(Debug)]
pub struct Pty {
    child: Child,
    keyboard: File,
    /// Kept open, so that the terminal outlives the program and can be looked at.
    terminal: OwnedFd,
    shown: Arc<Mutex<Vec<u8>>>,
}

impl Pty {
    /// Starts `command` in a session of its own whose terminal has 24 rows of 80 columns.
    pub fn start(command: &Command) -> Result<Self> {
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).context("open a terminal")?;
        // setsid(1) makes its standard input the controlling terminal, which size changes need. What runs the tests may
        // ignore Ctrl-C, as a shell's jobs in the background do, and a program keeps that from whoever started it.
        let mut session = Command::new("env");
        session.args(["--default-signal", "setsid", "--ctty"]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => session.env(name, value),
                None => session.env_remove(name),
            };
        }
        let child = session
            .stdin(pty.slave.try_clone()?)
            .stdout(pty.slave.try_clone()?)
            .stderr(pty.slave.try_clone()?)
            .spawn()
            .context("start a program on a terminal")?;
        let keyboard = File::from(pty.master);
        let shown = Arc::new(Mutex::new(Vec::new()));
        let (mut screen, seen) = (keyboard.try_clone()?, Arc::clone(&shown));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = screen.read(&mut buffer) {
                seen.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..count]);
            }
        });
        Ok(Self { child, keyboard, terminal: pty.slave, shown })
    }

    /// Everything shown so far.
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// Types `keys`.
    pub fn types(&mut self, keys: &str) -> Result<()> {
        self.keyboard.write_all(keys.as_bytes()).context("type")
    }

    /// Waits until `text` is shown.
    pub fn expect(&self, text: &str) -> Result<()> {
        let found = wait::until(&format!("{text:?} is shown"), || self.shown().contains(text).then_some(()));
        found.map_err(|error| anyhow!("{error}\n--- shown\n{}", self.shown()))
    }

    /// Changes the size of the window, as dragging its corner does.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        let mut stty = Command::new("stty");
        let name = ttyname(self.terminal.as_fd()).context("name of the terminal")?;
        stty.arg("-F").arg(name).args(["rows", &rows.to_string(), "cols", &columns.to_string()]);
        output::run(stty)?.ok()?;
        Ok(())
    }

    /// Whether the terminal hands on whole lines and shows what is typed, as a shell leaves it.
    pub fn is_cooked(&self) -> Result<bool> {
        let flags = tcgetattr(self.terminal.as_fd()).context("look at the terminal")?.local_flags;
        Ok(flags.contains(LocalFlags::ICANON | LocalFlags::ECHO))
    }

    /// Waits for the program's end.
    pub fn end(&mut self) -> Result<ExitStatus> {
        let ended = wait::until("the program on the terminal ends", || self.child.try_wait().transpose());
        match ended {
            Ok(status) => Ok(status?),
            Err(error) => bail!("{error}\n--- shown\n{}", self.shown()),
        }
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_types_and_resizes() {
        let mut command = Command::new("sh");
        command.args(["-c", "stty size; read word; echo got $word; trap 'stty size; exit 3' WINCH; echo ready; while :; do sleep 0.05; done"]);
        let mut pty = Pty::start(&command).unwrap();
        pty.expect("24 80").unwrap();
        pty.types("it\n").unwrap();
        pty.expect("got it").unwrap();
        pty.expect("ready").unwrap();
        pty.resize(30, 100).unwrap();
        pty.expect("30 100").unwrap();
        assert_eq!(pty.end().unwrap().code(), Some(3));
        assert!(pty.is_cooked().unwrap());
    }
}
