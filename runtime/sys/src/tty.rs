//! Pseudo-terminals: opening a pair, raw mode, window size.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use crate::error::{Error, Result, check};
use crate::pidfd::owned;

/// Rows and columns of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters a line.
    pub columns: u16,
}

/// Unlocks a freshly opened master and opens its slave through the master, so that no path can be swapped in between.
pub fn open_slave(master: BorrowedFd<'_>) -> Result<OwnedFd> {
    let unlock: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int, which outlives the call.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) }, "ioctl", || {
        "TIOCSPTLCK".into()
    })?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes open flags by value and returns a new descriptor.
    let returned = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
    owned(check(returned, "ioctl", || "TIOCGPTPEER".into())?, "ioctl")
}

/// The number N of the slave's name `/dev/pts/N`.
pub fn number(master: BorrowedFd<'_>) -> Result<u32> {
    let mut number: libc::c_uint = 0;
    // SAFETY: TIOCGPTN writes one unsigned int, which outlives the call.
    let returned = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN, &raw mut number) };
    check(returned, "ioctl", || "TIOCGPTN".into())?;
    Ok(number)
}

/// Makes `slave` the controlling terminal of this session.
pub fn set_controlling(slave: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: TIOCSCTTY takes a number by value.
    let returned = unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY, 0) };
    check(returned, "ioctl", || "TIOCSCTTY".into()).map(drop)
}

/// Reads the window size.
pub fn window_size(terminal: BorrowedFd<'_>) -> Result<WindowSize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize, which outlives the call.
    let returned = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    check(returned, "ioctl", || "TIOCGWINSZ".into())?;
    Ok(WindowSize { rows: size.ws_row, columns: size.ws_col })
}

/// Sets the window size; the foreground programs get SIGWINCH.
pub fn set_window_size(terminal: BorrowedFd<'_>, size: WindowSize) -> Result<()> {
    let size = libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize, which outlives the call.
    let returned = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    check(returned, "ioctl", || "TIOCSWINSZ".into()).map(drop)
}

/// Whether the descriptor is a terminal.
pub fn is_terminal(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: isatty has no memory precondition.
    unsafe { libc::isatty(fd.as_raw_fd()) == 1 }
}

/// The settings a terminal had, to be put back.
#[derive(Clone)]
pub struct Settings(libc::termios);

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings").finish_non_exhaustive()
    }
}

/// Reads the settings of a terminal.
pub fn settings(terminal: BorrowedFd<'_>) -> Result<Settings> {
    // SAFETY: `termios` is plain integers, for which all zeroes is a value.
    let mut attributes: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: tcgetattr writes one termios, which outlives the call.
    let returned = unsafe { libc::tcgetattr(terminal.as_raw_fd(), &raw mut attributes) };
    check(returned, "tcgetattr", || terminal.as_raw_fd().to_string())?;
    Ok(Settings(attributes))
}

/// Puts settings back.
pub fn restore(terminal: BorrowedFd<'_>, settings: &Settings) -> Result<()> {
    // SAFETY: tcsetattr reads one termios, which outlives the call.
    let returned = unsafe { libc::tcsetattr(terminal.as_raw_fd(), libc::TCSANOW, &raw const settings.0) };
    check(returned, "tcsetattr", || terminal.as_raw_fd().to_string()).map(drop)
}

/// Switches to raw mode (every key goes through as it is) and returns the settings from before.
pub fn make_raw(terminal: BorrowedFd<'_>) -> Result<Settings> {
    let before = settings(terminal)?;
    let mut raw = before.clone();
    // SAFETY: cfmakeraw only changes the termios it is given.
    unsafe { libc::cfmakeraw(&raw mut raw.0) };
    restore(terminal, &raw)?;
    Ok(before)
}

/// Stops the terminal from turning `\n` into `\r\n` on output: the terminal at the other end does that already.
pub fn clear_newline_translation(terminal: BorrowedFd<'_>) -> Result<()> {
    let mut settings = settings(terminal)?;
    settings.0.c_oflag &= !libc::ONLCR;
    restore(terminal, &settings)
}

/// Opens a new master from a devpts multiplexer node given as a directory and a name inside it.
pub fn open_master(directory: BorrowedFd<'_>, name: &std::ffi::CStr) -> Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC | libc::O_NOFOLLOW;
    // SAFETY: `name` is a C string that outlives the call; the result is a new descriptor or an error.
    let returned = unsafe { libc::openat(directory.as_raw_fd(), name.as_ptr(), flags) };
    let master = owned(check(returned, "openat", || format!("{name:?}"))?, "openat")?;
    use std::os::fd::AsFd;
    // A file that an image put there would pass open; only a real master knows its number.
    number(master.as_fd())
        .map_err(|error| Error::new("openat", format!("{name:?} is no pty master"), error.errno()))?;
    Ok(master)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_pair_shares_its_window_size() {
        let directory = std::fs::File::open("/dev/pts").expect("devpts");
        let master = open_master(directory.as_fd(), c"ptmx").expect("master");
        let slave = open_slave(master.as_fd()).expect("slave");
        let size = WindowSize { rows: 12, columns: 34 };
        set_window_size(master.as_fd(), size).expect("set");
        assert_eq!(window_size(slave.as_fd()).expect("get"), size);
        assert!(is_terminal(slave.as_fd()));
        make_raw(slave.as_fd()).expect("raw");
    }

    #[test]
    fn a_plain_file_is_no_master() {
        let directory = tempfile::tempdir().expect("temp");
        std::fs::write(directory.path().join("ptmx"), "").expect("write");
        let directory = std::fs::File::open(directory.path()).expect("open");
        assert!(open_master(directory.as_fd(), c"ptmx").is_err());
    }
}
