//! What checkpoints and restores are asked to do, as criu takes it. The numbers are those of its `criu_opts`.

use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, RawFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

use super::wire::Message;
use crate::error::{Doing as _, Error, Result};
use crate::log;

/// What criu does with cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CgroupMode {
    /// Nothing.
    Ignore = 0,
    /// Makes those that are missing, and leaves the others as they are.
    Soft = 3,
    /// Sets those of the whole container as they were.
    Full = 4,
    /// Fails where they are not as they were.
    Strict = 5,
    /// Whatever this criu does by itself.
    #[default]
    Default = 6,
}

impl CgroupMode {
    /// Reads `--manage-cgroups-mode`.
    pub fn parse(text: &str) -> Result<Self> {
        match text {
            "" => Ok(Self::Default),
            "soft" => Ok(Self::Soft),
            "full" => Ok(Self::Full),
            "strict" => Ok(Self::Strict),
            "ignore" => Ok(Self::Ignore),
            other => Err(Error::invalid(format!("invalid manage-cgroups-mode value {other:?}"))),
        }
    }
}

/// A machine that takes or gives pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageServer {
    /// Its address.
    pub address: String,
    /// Its port.
    pub port: u16,
}

impl PageServer {
    /// Reads `--page-server`.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = || Error::invalid("Use --page-server ADDRESS:PORT to specify page server");
        let (address, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let address = address.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(address);
        if address.is_empty() || port.is_empty() {
            return Err(wrong());
        }
        let port = port.parse().ok().filter(|port| *port != 0);
        let port = port.ok_or_else(|| Error::invalid(format!("--page-server {text}: Invalid port number")))?;
        Ok(Self { address: address.to_owned(), port })
    }
}

/// What both directions have in common.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Where the images are.
    pub images: PathBuf,
    /// Where logs and work files go, if not there too.
    pub work: Option<PathBuf>,
    /// Connections of TCP may be open.
    pub tcp_established: bool,
    /// Connections to unix sockets outside may be open.
    pub external_unix: bool,
    /// The container's terminal may be the caller's.
    pub shell_job: bool,
    /// Locks of files are part of it.
    pub file_locks: bool,
    /// What criu does with cgroups.
    pub cgroups: CgroupMode,
    /// Pages that are saved twice are dropped from older images.
    pub auto_dedup: bool,
    /// Pages are fetched when they are touched.
    pub lazy_pages: bool,
}

/// `CLONE_NEWNET`: devices and routes are for whoever made them to make again, so the namespace comes back empty.
const EMPTY_NAMESPACES: u64 = 0x4000_0000;

/// Reads `--empty-ns`, which can only say what is done anyhow.
pub fn check_empty_namespaces(list: &[String]) -> Result<()> {
    match list.iter().find(|name| *name != "network") {
        Some(other) => Err(Error::invalid(format!("--empty-ns: namespace {other:?} is not supported"))),
        None => Ok(()),
    }
}

/// The directories of a conversation, open.
#[derive(Debug)]
pub struct Directories {
    /// Where the images are.
    pub images: File,
    /// Where the log is.
    pub work: Option<File>,
    log: PathBuf,
}

impl Directories {
    /// Opens them, making what is missing: of images that are to be read only the place to work in.
    pub fn open(options: &Options, log: &str, make_images: bool) -> Result<Self> {
        let images = open_directory(&options.images, make_images)?;
        let work = options.work.as_deref().map(|path| open_directory(path, true)).transpose()?;
        Ok(Self { images, work, log: options.work.as_deref().unwrap_or(&options.images).join(log) })
    }

    /// Lets criu read the images in a user namespace, where it is not their owner any more. What is written goes where it
    /// went before. It covers the images: for a mount namespace that nobody else sees.
    pub fn expose(&mut self) -> Result<()> {
        let exposed = super::images::expose(self.images.as_fd()).doing(|| "show the images in the user namespace")?;
        let images = std::mem::replace(&mut self.images, exposed.into());
        self.work.get_or_insert(images);
        Ok(())
    }

    /// Quotes what criu's log says of errors, for its answer only says that there was one.
    pub fn quote_errors(&self) {
        let Ok(text) = std::fs::read(&self.log) else { return };
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().filter(|line| line.contains("Error")).collect();
        for line in &lines[lines.len().saturating_sub(8)..] {
            log::warning(&format!("{}: {line}", self.log.display()));
        }
    }
}

fn open_directory(path: &Path, make: bool) -> Result<File> {
    let made = if make { std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path) } else { Ok(()) };
    made.and_then(|()| {
        let flags = libc::O_DIRECTORY;
        std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path)
    })
    .doing(|| format!("open {}", path.display()))
}

impl Options {
    /// The part of the request that both directions share.
    pub fn request(&self, directories: &Directories, log: &str, spec: &Spec) -> Message {
        let message = Message::default()
            .signed(1, directories.images.as_raw_fd())
            .flag(4, self.external_unix)
            .flag(5, self.tcp_established)
            .flag(7, self.shell_job)
            .flag(8, self.file_locks)
            .number(9, 4)
            .text(10, log)
            .flag(12, true)
            .flag(16, self.auto_dedup)
            .flag(24, true)
            .number(34, self.cgroups as u64)
            .number(38, EMPTY_NAMESPACES)
            .flag(48, self.lazy_pages)
            .flag(50, true);
        let message = match &directories.work {
            Some(work) => message.signed(17, work.as_raw_fd()),
            None => message,
        };
        match config_file(spec) {
            Some(file) => message.text(51, file),
            None => message,
        }
    }
}

/// The file of further settings: the annotation's, or runc's, of which criu does not mind that it is missing.
fn config_file(spec: &Spec) -> Option<&str> {
    let annotations = spec.annotations().as_ref();
    match annotations.and_then(|annotations| annotations.get("org.criu.config")) {
        Some(file) => Some(file.as_str()).filter(|file| !file.is_empty()),
        None => Some("/etc/criu/runc.conf"),
    }
}

/// A mount that is not part of the images: criu is told its name, and on the way back what to put there.
pub fn external_mount(message: Message, key: &str, value: &str) -> Message {
    message.message(23, &Message::default().text(1, key).text(2, value))
}

/// A descriptor that takes the place of one that was open to something outside.
pub fn inherited(message: Message, key: &str, number: RawFd) -> Message {
    message.message(27, &Message::default().text(1, key).signed(2, number))
}

/// Descriptors that criu inherits start behind its socket.
pub const FIRST_INHERITED: RawFd = 4;

/// The name in the images of the mount at `destination`: every byte as two digits, for criu gives brackets and colons
/// in a name a meaning, and a name that an image's author can shape is a way out of the container.
pub fn mount_name(destination: &Path) -> String {
    use std::fmt::Write as _;
    use std::os::unix::ffi::OsStrExt as _;
    destination.as_os_str().as_bytes().iter().fold("rung-".to_owned(), |mut name, byte| {
        // Writing to a string does not fail.
        let _ = write!(name, "{byte:02x}");
        name
    })
}

/// A number that the program which started us opened for us.
pub fn write_ready(status_fd: Option<BorrowedFd<'_>>) {
    if let Some(fd) = status_fd
        && let Err(error) = nix::unistd::write(fd, &[0])
    {
        log::warning(&format!("--status-fd: {error}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_read() {
        assert_eq!(CgroupMode::parse("").unwrap(), CgroupMode::Default);
        assert!(CgroupMode::parse("hard").is_err());
        let server = |text| PageServer::parse(text).map(|server| (server.address, server.port));
        assert_eq!(server("10.0.0.1:27").unwrap(), ("10.0.0.1".into(), 27));
        assert_eq!(server("[::1]:27").unwrap(), ("::1".into(), 27));
        for bad in ["", "host", ":1", "host:", "host:0", "host:x", "host:70000"] {
            assert!(server(bad).is_err(), "{bad}");
        }
        assert!(check_empty_namespaces(&["network".into()]).is_ok());
        assert!(check_empty_namespaces(&["pid".into()]).is_err());
    }

    #[test]
    fn names_of_mounts_mean_nothing_to_criu() {
        let name = mount_name(Path::new("/a]:b\n"));
        assert_eq!(name, "rung-2f615d3a620a");
        assert_ne!(mount_name(Path::new("/a")), mount_name(Path::new("/a/")));
    }
}
