//! Waiting on descriptors with a deadline.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use crate::error::{Result, check};

/// What to wait for on a descriptor. Hang-up and errors always wake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Bytes (or an end) to read.
    Read,
    /// Room to write.
    Write,
    /// Both.
    Both,
    /// Only hang-up and errors.
    Hangup,
}

/// One descriptor that woke [`wait`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// Its position in the list that was passed.
    pub index: usize,
    /// It can be read without blocking.
    pub readable: bool,
    /// It can be written without blocking.
    pub writable: bool,
    /// The other side is gone, or the descriptor is in error.
    pub hangup: bool,
}

/// Waits until one of `descriptors` is ready. An empty answer means that the time ran out.
pub fn wait(descriptors: &[(BorrowedFd<'_>, Interest)], timeout: Option<Duration>) -> Result<Vec<Ready>> {
    // One that the clock cannot say is none.
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let mut polled: Vec<libc::pollfd> = descriptors
        .iter()
        .map(|(fd, interest)| {
            let events = match interest {
                Interest::Read => libc::POLLIN,
                Interest::Write => libc::POLLOUT,
                Interest::Both => libc::POLLIN | libc::POLLOUT,
                Interest::Hangup => 0,
            };
            libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 }
        })
        .collect();
    loop {
        let left = deadline.map_or(-1, |deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up: rounding down would spin through the last millisecond.
            i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
        });
        let count = libc::nfds_t::try_from(polled.len()).unwrap_or(libc::nfds_t::MAX);
        // SAFETY: `polled` is a live array of exactly `count` entries.
        let returned = unsafe { libc::poll(polled.as_mut_ptr(), count, left) };
        match check(returned, "poll", || format!("{} descriptors", polled.len())) {
            Err(error) if error.errno() == libc::EINTR => continue,
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        return Ok(polled
            .iter()
            .enumerate()
            .filter(|(_, entry)| entry.revents != 0)
            .map(|(index, entry)| Ready {
                index,
                readable: entry.revents & libc::POLLIN != 0,
                writable: entry.revents & libc::POLLOUT != 0,
                hangup: entry.revents & (libc::POLLHUP | libc::POLLERR | libc::POLLNVAL) != 0,
            })
            .collect());
    }
}
