//! Following the filters of a container's processes: each hands over a descriptor, from which its forbidden calls are read.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rung_spec::syscalls;
use rung_sys::fd_pass;
use rung_sys::seccomp_notify::{self, Call};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::{MOST_OF_ALL, Used};
use crate::cri::{Container, Cri};
use crate::error::{Error, Result};

/// Most processes of a container that are followed at once. The calls of others are refused by the kernel.
const MOST: usize = 64;
/// Most calls of a process, and of those that it starts, that are refused in a second without a pause before each.
const FAST: u32 = 100;
/// How long each of the others waits then: whoever makes forbidden calls is not to have the daemon's time for it.
const PAUSE: Duration = Duration::from_millis(10);
/// How long a runtime may take to hand over a descriptor.
const PATIENCE: Duration = Duration::from_secs(10);
/// What a runtime says of a process is at most so long, in bytes.
const MAX_MESSAGE: usize = 16 << 20;
/// What is read of that at once.
const PIECE: usize = 64 << 10;

/// What a descriptor has to tell.
enum Pending {
    Call,
    Nothing,
    Ended,
}

impl Cri {
    /// Takes the descriptors of a container's processes as they come. It does not end by itself.
    pub(super) async fn follow_all(self, listener: UnixListener, container: Arc<Container>) {
        let (room, used) = (Arc::new(Semaphore::new(MOST)), Arc::<Mutex<Used>>::default());
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let received = tokio::time::timeout(PATIENCE, receive(&stream)).await;
            let received = received.unwrap_or_else(|_| Err(Error::unavailable("nothing came in time")));
            let slots = received.and_then(|filter| Ok((filter, self.slots(&room)?)));
            let error = match slots {
                Ok((filter, slots)) => {
                    let (cri, container, used) = (self.clone(), container.clone(), used.clone());
                    tokio::spawn(async move { cri.follow(filter, slots, container, used).await });
                    continue;
                }
                Err(error) => error,
            };
            tracing::warn!(id = %container.id(), %error, "a process's forbidden system calls are not heard of");
        }
    }

    /// Room for one more descriptor, of those of its container and of those of all.
    fn slots(&self, room: &Arc<Semaphore>) -> Result<[OwnedSemaphorePermit; 2]> {
        let slot = |room: &Arc<Semaphore>, most: usize, whose: &str| {
            let full = |_| Error::unavailable(format!("more than {most} processes of {whose} are followed"));
            room.clone().try_acquire_owned().map_err(full)
        };
        let all = &self.shared.calls.room;
        Ok([slot(room, MOST, "the container")?, slot(all, MOST_OF_ALL, "all containers")?])
    }

    /// Refuses all that a filter forbids, until its last process has ended.
    async fn follow(
        self,
        filter: OwnedFd,
        _slots: [OwnedSemaphorePermit; 2],
        container: Arc<Container>,
        used: Arc<Mutex<Used>>,
    ) {
        let told = async {
            let filter = Arc::new(filter);
            let ready = readiness(filter.clone())?;
            let mut pace = Pace::default();
            loop {
                // Forgotten before it is looked: what comes after the look is told again.
                ready.readable().await?.clear_ready();
                loop {
                    match pending(&filter)? {
                        Pending::Ended => return Ok(()),
                        Pending::Nothing => break,
                        Pending::Call => {}
                    }
                    // This does not wait, since nobody else takes calls from there. Its thread may have been killed just now.
                    let call = seccomp_notify::receive(filter.as_fd()).map_err(io::Error::from)?;
                    let Some(call) = call else { continue };
                    // Whoever sees the refusal finds the note.
                    self.note_call(&container, &used, &name(call));
                    if pace.is_fast(Instant::now()) {
                        tokio::time::sleep(PAUSE).await;
                    }
                    seccomp_notify::refuse(filter.as_fd(), call, libc::EPERM).map_err(io::Error::from)?;
                }
            }
        };
        let told: Result<()> = told.await;
        if let Err(error) = told {
            tracing::warn!(id = %container.id(), %error, "a process's forbidden system calls are not heard of any more");
        }
    }
}

/// How many calls there are in a second.
#[derive(Default)]
struct Pace {
    since: Option<Instant>,
    count: u32,
}

impl Pace {
    /// Notes a call, and answers whether there were many before it in the same second.
    fn is_fast(&mut self, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.duration_since(since) >= Duration::from_secs(1)) {
            *self = Self { since: Some(now), count: 0 };
        }
        self.count = self.count.saturating_add(1);
        self.count > FAST
    }
}

#[allow(deprecated, reason = "its replacement is unsafe, and the descriptor is owned by what is registered")]
fn readiness(filter: Arc<OwnedFd>) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    AsyncFd::with_interest(filter, Interest::READABLE)
}

fn name(call: Call) -> String {
    let known = syscalls::name(call.architecture, call.number);
    known.map_or_else(|| format!("number_{}", call.number), str::to_owned)
}

fn pending(filter: &OwnedFd) -> io::Result<Pending> {
    let mut asked = [PollFd::new(filter.as_fd(), PollFlags::POLLIN)];
    poll(&mut asked, PollTimeout::ZERO)?;
    let said = asked[0].revents().unwrap_or(PollFlags::empty());
    Ok(match said {
        said if said.contains(PollFlags::POLLIN) => Pending::Call,
        said if said.intersects(PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL) => Pending::Ended,
        _ => Pending::Nothing,
    })
}

/// Takes the one descriptor that a runtime hands over, and all that it says beside it.
async fn receive(stream: &UnixStream) -> Result<OwnedFd> {
    let (mut buffer, mut length, mut filter) = (vec![0; PIECE], 0, None);
    loop {
        stream.readable().await?;
        let mut read = || fd_pass::receive(stream.as_fd(), &mut buffer).map_err(io::Error::from);
        let (read, descriptors) = match stream.try_io(Interest::READABLE, &mut read) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            read => read?,
        };
        for descriptor in descriptors {
            if filter.replace(descriptor).is_some() {
                return Err(Error::invalid("a runtime handed over more than one descriptor"));
            }
        }
        length += read;
        match (read, filter.take()) {
            (0, Some(filter)) => return Ok(filter),
            (0, None) => return Err(Error::invalid("a runtime handed over no descriptor")),
            _ if length > MAX_MESSAGE => return Err(Error::invalid("a runtime says too much")),
            (_, taken) => filter = taken,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use super::*;

    async fn handed(parts: &[(&[u8], usize)]) -> Result<OwnedFd> {
        let (ours, theirs) = UnixStream::pair().expect("pair");
        let theirs = theirs.into_std().expect("socket");
        let null = std::fs::File::open("/dev/null").expect("open");
        for (text, count) in parts {
            fd_pass::send(theirs.as_fd(), text, &vec![null.as_fd(); *count]).expect("send");
        }
        drop(theirs);
        receive(&ours).await
    }

    #[test]
    fn calls_are_fast_after_many_in_one_second() {
        let (start, mut pace) = (Instant::now(), Pace::default());
        let second = Duration::from_secs(1);
        let fast = |pace: &mut Pace, now| (0..2 * FAST).filter(|_| pace.is_fast(now)).count();
        assert_eq!(fast(&mut pace, start), FAST as usize);
        assert_eq!(fast(&mut pace, start + second / 2), 2 * FAST as usize);
        assert_eq!(fast(&mut pace, start + second), FAST as usize);
    }

    #[tokio::test]
    async fn one_descriptor_comes_with_the_words() {
        let filter = handed(&[(b"{\"fds\":", 1), (b"[]}", 0)]).await.expect("received");
        assert!(filter.as_raw_fd() > 2);
        for wrong in [&[(&b"{}"[..], 0)][..], &[(b"{}", 2)], &[(b"{", 1), (b"}", 1)], &[]] {
            assert!(handed(wrong).await.is_err());
        }
    }
}
