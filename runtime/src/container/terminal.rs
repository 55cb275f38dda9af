//! The caller's terminal while a container runs in the foreground.

use std::io::IsTerminal as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use rung_sys::tty;

use crate::error::{Doing as _, Result};

/// Copies between the caller's streams and a container's terminal.
#[derive(Debug)]
pub(super) struct Terminal {
    master: OwnedFd,
    saved: Option<tty::Settings>,
    to_master: Vec<u8>,
    stdin_open: bool,
    master_open: bool,
}

/// At most this much typed text waits for a program that does not read.
const MAX_PENDING: usize = 64 * 1024;

/// More than the kernel keeps of a terminal's output.
const MAX_REST: usize = 1 << 20;

impl Terminal {
    /// Makes the caller's terminal raw, when there is one, and takes its size over.
    pub(super) fn attach(master: OwnedFd) -> Result<Self> {
        let stdin = std::io::stdin();
        let saved = if stdin.is_terminal() {
            Some(tty::make_raw(stdin.as_fd()).doing(|| "make the caller's terminal raw")?)
        } else {
            None
        };
        let flags = OFlag::from_bits_truncate(fcntl(&master, FcntlArg::F_GETFL)?);
        fcntl(&master, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        let terminal = Self { master, saved, to_master: Vec::new(), stdin_open: true, master_open: true };
        terminal.resize();
        Ok(terminal)
    }

    /// Follows the size of the caller's terminal.
    pub(super) fn resize(&self) {
        if let Ok(size) = tty::window_size(std::io::stdin().as_fd()) {
            // A program that ends at this moment has no use for a size.
            drop(tty::set_window_size(self.master.as_fd(), size));
        }
    }

    /// The container's side.
    pub(super) fn master(&self) -> BorrowedFd<'_> {
        self.master.as_fd()
    }

    /// Whether the program may still write.
    pub(super) fn is_open(&self) -> bool {
        self.master_open
    }

    /// Whether the caller's input is wanted now.
    pub(super) fn wants_input(&self) -> bool {
        self.stdin_open && self.to_master.len() < MAX_PENDING
    }

    /// Whether typed text waits for room.
    pub(super) fn has_pending(&self) -> bool {
        !self.to_master.is_empty()
    }

    /// Takes what was typed.
    pub(super) fn read_input(&mut self) {
        let mut buffer = [0; 4096];
        match nix::unistd::read(std::io::stdin(), &mut buffer) {
            // A terminal has no end of input; whoever means one types it.
            Ok(0) => self.stdin_open = false,
            Ok(length) => self.to_master.extend_from_slice(&buffer[..length]),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(_) => self.stdin_open = false,
        }
        self.flush();
    }

    /// Hands typed text to the program as far as there is room.
    pub(super) fn flush(&mut self) {
        while !self.to_master.is_empty() {
            match nix::unistd::write(&self.master, &self.to_master) {
                Ok(length) => drop(self.to_master.drain(..length)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                Err(_) => self.to_master.clear(),
            }
        }
    }

    /// Copies one buffer of what the program wrote and returns how much that was. Not all there is: a program that
    /// never stops writing would keep its caller from handling signals and input.
    pub(super) fn copy_output(&mut self) -> usize {
        let mut buffer = [0; 16 * 1024];
        let copied = loop {
            match nix::unistd::read(&self.master, &mut buffer) {
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return 0,
                Ok(length) if length > 0 => {
                    use std::io::Write as _;
                    let mut stdout = std::io::stdout().lock();
                    break stdout.write_all(&buffer[..length]).and_then(|()| stdout.flush()).map_or(0, |()| length);
                }
                // The last holder of the slave is gone.
                _ => break 0,
            }
        };
        self.master_open &= copied > 0;
        copied
    }

    /// Copies what is there after the program's end. Others may hold the terminal and write on, for ever.
    pub(super) fn copy_rest(&mut self) {
        let mut copied = 0;
        while copied < MAX_REST {
            match self.copy_output() {
                0 => return,
                more => copied += more,
            }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(saved) = &self.saved {
            // There is no one to tell when the caller's terminal is gone.
            drop(tty::restore(std::io::stdin().as_fd(), saved));
        }
    }
}
