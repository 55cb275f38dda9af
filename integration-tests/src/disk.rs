//! A disk that remembers in which order it was written, and can be had again as it was when the power failed.
//!
//! ```text
//! ext4 ── loop device ── a file that this process serves through FUSE: every write and every flush is noted
//! ```
//!
//! What was written before the last flush is on the disk after a power failure; of what was written since, any part may be.
//! It can also be made to fail, as a disk that is at its end does.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::{Env, Result, wait};

/// Longest write that the kernel sends at once.
const MAX_WRITE: u32 = 1 << 17;
/// Bytes of a request before its body, and of the body of a write before the data.
const HEAD: usize = 40;

/// What happened to the disk.
enum Event {
    Write { offset: u64, data: Vec<u8> },
    Flush,
}

/// What the disk does not do, which the kernel is told as `EIO`.
#[derive(Clone, Copy, Default)]
pub struct Faults {
    /// Writes and flushes: how many succeed before, and how many fail then.
    pub writes: Option<(usize, usize)>,
    /// Reads of one of so many pages, always the same ones for a number.
    pub reads: Option<(u64, u64)>,
}

/// A disk whose writes are noted, mounted in this process's own mount namespace, with which it goes.
pub struct NotedDisk {
    events: Arc<Mutex<Vec<Event>>>,
    faults: Arc<Mutex<Faults>>,
    file: PathBuf,
    target: PathBuf,
    size: u64,
}

/// The kernel unmounts what a process leaves behind when nobody serves the disk any more, and would wait for ever.
impl Drop for NotedDisk {
    fn drop(&mut self) {
        self.fail(Faults::default());
        let gone = || umount2(&self.target, MntFlags::empty()).map_err(|error| error == Errno::EBUSY);
        let _ = wait::until("the disk is unmounted", || gone().map_or_else(|is_busy| (!is_busy).then_some(()), Some));
    }
}

impl NotedDisk {
    /// Makes a disk with an empty file system, and mounts that at `target`.
    ///
    /// # Errors
    /// When the kernel or the programs for file systems refuse.
    pub fn mount(env: &Env, size: u64, target: &Path) -> Result<Self> {
        let (file, backing) = (env.path("disk"), env.path("disk.now"));
        File::create(&file)?;
        let now = File::options().read(true).write(true).create_new(true).open(&backing)?;
        now.set_len(size)?;
        let (events, faults) = (Arc::default(), Arc::default());
        let kernel = File::options().read(true).write(true).open("/dev/fuse").context("open /dev/fuse")?;
        let options = format!("fd={},rootmode=100600,user_id=0,group_id=0", kernel.as_raw_fd());
        mount(Some("disk"), &file, Some("fuse"), MsFlags::empty(), Some(options.as_str())).context("mount FUSE")?;
        let server = Server { kernel, now, size, events: Arc::clone(&events), faults: Arc::clone(&faults) };
        std::thread::spawn(move || server.serve());
        let path = file.to_string_lossy();
        env.run("mkfs.ext4", &["-q", "-F", "-b", "4096", "-E", "nodiscard,lazy_itable_init=0", "-N", "16384", &path])?
            .ok()?;
        mount_noted(env, &file, target)?;
        Ok(Self { events, faults, file, target: target.to_owned(), size })
    }

    /// From now on the disk has these faults alone.
    pub fn fail(&self, faults: Faults) {
        *self.faults.lock().unwrap_or_else(PoisonError::into_inner) = faults;
    }

    /// Mounts its file system again, which was unmounted: what is read then is what is on the disk.
    ///
    /// # Errors
    /// What mount(8) says.
    pub fn mount_again(&self, env: &Env) -> Result<()> {
        mount_noted(env, &self.file, &self.target)
    }

    /// How much has happened so far.
    ///
    /// # Panics
    /// Never: the count is of what is in memory.
    pub fn now(&self) -> usize {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Writes the disk to `image` as a power failure at a moment may have left it; `chance` says of each write that was not
    /// flushed whether it is there.
    ///
    /// # Errors
    /// When the image cannot be written.
    pub fn cut(&self, moment: usize, image: &Path, mut chance: impl FnMut() -> bool) -> Result<()> {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let events = events.get(..moment).context("a moment that has not come")?;
        let flushed = events.iter().rposition(|event| matches!(event, Event::Flush)).unwrap_or(0);
        let file = File::create(image)?;
        file.set_len(self.size)?;
        for (at, event) in events.iter().enumerate() {
            match event {
                Event::Write { offset, data } if at < flushed || chance() => file.write_all_at(data, *offset)?,
                _ => {}
            }
        }
        Ok(())
    }
}

/// Mounts the disk. The loop device takes a write for done of which only the beginning was, so none may be longer than what
/// FUSE sends at once: not more bytes, and whole pages.
fn mount_noted(env: &Env, image: &Path, target: &Path) -> Result<()> {
    mount_image(env, image, target)?;
    let device = std::fs::metadata(target)?.dev();
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let limit = format!("/sys/dev/block/{major}:{minor}/queue/max_sectors_kb");
    std::fs::write(&limit, (MAX_WRITE >> 11).to_string()).with_context(|| format!("write {limit}"))
}

/// Mounts a file with a file system.
///
/// # Errors
/// What mount(8) says.
pub fn mount_image(env: &Env, image: &Path, target: &Path) -> Result<()> {
    env.run("mount", &["-o", "loop", &image.to_string_lossy(), &target.to_string_lossy()])?.ok().map(drop)
}

/// Unmounts it.
///
/// # Errors
/// Where it stays busy.
pub fn unmount(env: &Env, target: &Path) -> Result<()> {
    let target = target.to_string_lossy();
    // A shim whose task is deleted is about to end.
    wait::until(&format!("{target} is busy"), || env.run("umount", &[&target]).ok()?.ok().ok()).map(drop)
}

/// Answers the kernel for a mount that is one file.
struct Server {
    kernel: File,
    now: File,
    size: u64,
    events: Arc<Mutex<Vec<Event>>>,
    faults: Arc<Mutex<Faults>>,
}

impl Server {
    /// Until it is unmounted.
    fn serve(mut self) {
        let mut buffer = vec![0; MAX_WRITE as usize + 4096];
        loop {
            match self.kernel.read(&mut buffer) {
                Ok(length) => {
                    let Some(request) = Request::of(&buffer[..length]) else { return };
                    let answer = self.answer(&request);
                    if let Some(answer) = answer
                        && self.reply(request.unique, answer).is_err()
                    {
                        return;
                    }
                }
                // A request that was taken back.
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Interrupted) => {}
                Err(_) => return,
            }
        }
    }

    fn reply(&mut self, unique: u64, answer: std::result::Result<Vec<u8>, i32>) -> std::io::Result<()> {
        let (error, body) = match answer {
            Ok(body) => (0, body),
            Err(error) => (-error, Vec::new()),
        };
        let length = u32::try_from(16 + body.len()).map_err(std::io::Error::other)?;
        let head = [&length.to_ne_bytes()[..], &error.to_ne_bytes(), &unique.to_ne_bytes()].concat();
        self.kernel.write_all(&[head, body].concat())
    }

    /// What is answered to a request; `None` to those that want no answer.
    fn answer(&self, request: &Request<'_>) -> Option<std::result::Result<Vec<u8>, i32>> {
        if self.fails(request) {
            return Some(Err(nix::libc::EIO));
        }
        Some(match request.operation {
            // Forget, forget many, and what cannot be taken back.
            2 | 36 | 42 => return None,
            // Attributes, as they are and as somebody wants them: the size is what it is.
            3 | 4 => Ok([&words(&[1, 0])[..], &self.attributes()].concat()),
            // Open: no handle is needed.
            14 => Ok(words(&[0, 0])),
            15 => self.read(request).map_err(|error| error.raw_os_error().unwrap_or(nix::libc::EIO)),
            16 => self.write(request).map_err(|error| error.raw_os_error().unwrap_or(nix::libc::EIO)),
            // Release and flush, which is what closing a descriptor is called.
            18 | 25 => Ok(Vec::new()),
            20 => {
                self.note(Event::Flush);
                Ok(Vec::new())
            }
            26 => Ok(greeting()),
            _ => Err(nix::libc::ENOSYS),
        })
    }

    /// Whether the disk is to fail a request.
    fn fails(&self, request: &Request<'_>) -> bool {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        match (request.operation, faults.reads, &mut faults.writes) {
            (15, Some((number, one_of)), _) => {
                let (offset, length) = (request.number(8), request.number(16) & 0xffff_ffff);
                (offset >> 12..(offset + length).div_ceil(4096)).any(|page| mixed(page ^ number).is_multiple_of(one_of))
            }
            (16 | 20, _, Some((before, _))) if *before > 0 => {
                *before -= 1;
                false
            }
            (16 | 20, _, Some((_, failing))) if *failing > 0 => {
                *failing -= 1;
                true
            }
            _ => false,
        }
    }

    fn note(&self, event: Event) {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }

    fn read(&self, request: &Request<'_>) -> std::io::Result<Vec<u8>> {
        let offset = request.number(8);
        let length = (request.number(16) & 0xffff_ffff).min(self.size.saturating_sub(offset));
        let mut data = vec![0; usize::try_from(length).map_err(std::io::Error::other)?];
        self.now.read_exact_at(&mut data, offset)?;
        Ok(data)
    }

    fn write(&self, request: &Request<'_>) -> std::io::Result<Vec<u8>> {
        let (offset, data) = (request.number(8), request.body.get(HEAD..).unwrap_or_default());
        self.now.write_all_at(data, offset)?;
        self.note(Event::Write { offset, data: data.to_vec() });
        Ok(words(&[data.len() as u64]))
    }

    /// Number, size, blocks, three times, their nanoseconds, mode and links, owner, block size.
    fn attributes(&self) -> Vec<u8> {
        let mode = u64::from(nix::libc::S_IFREG | 0o600);
        words(&[1, self.size, self.size / 512, 0, 0, 0, 0, mode << 32, 1, 0, 4096])
    }
}

/// A number that has nothing of the given one's order.
fn mixed(number: u64) -> u64 {
    let mixed = (number ^ number >> 31).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 16
}

/// Version 7.31, room for what may be under way, the longest write, times in nanoseconds; writes of more than a page.
fn greeting() -> Vec<u8> {
    let version = 7 | 31 << 32;
    let big_writes = 1 << 5;
    words(&[version, big_writes << 32, 16 | 12 << 16 | u64::from(MAX_WRITE) << 32, 1, 0, 0, 0, 0])
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// What the kernel asks.
struct Request<'a> {
    operation: u32,
    unique: u64,
    body: &'a [u8],
}

impl<'a> Request<'a> {
    fn of(bytes: &'a [u8]) -> Option<Self> {
        let operation = u32::from_ne_bytes(bytes.get(4..8)?.try_into().ok()?);
        let unique = u64::from_ne_bytes(bytes.get(8..16)?.try_into().ok()?);
        Some(Self { operation, unique, body: bytes.get(HEAD..)? })
    }

    /// The number at an offset of the body.
    fn number(&self, at: usize) -> u64 {
        let bytes = self.body.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u64::from_ne_bytes).unwrap_or_default()
    }
}
