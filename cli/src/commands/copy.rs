//! `gantry cp`: files of a container to this machine and back, or as a tar.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::OwnedFd;
use std::path::Path;

use gantry_proto::gantry::images::v1 as api;
use nix::fcntl::OFlag;

use super::Context;
use super::archives::Output;
use crate::client::{Client, reason};
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::files::{Source, Target, pack, unpack};
use crate::output;
use crate::output::human::decimal_size;

/// `gantry cp`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Copy what a link leads to instead of the link
    #[arg(long, short = 'L')]
    follow_link: bool,
    /// Keep owners, and the bits of modes that give privileges
    #[arg(long, short)]
    archive: bool,
    /// Do not say what was copied
    #[arg(long, short)]
    quiet: bool,
    /// CONTAINER:PATH, a path here, or - for a tar from standard input
    #[arg(value_name = "SOURCE")]
    source: String,
    /// CONTAINER:PATH, a path here, or - for a tar to standard output
    #[arg(value_name = "DESTINATION")]
    destination: String,
}

/// A container and a path in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place<'a> {
    container: &'a str,
    path: &'a str,
}

impl Args {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        match (place(&self.source), place(&self.destination)) {
            (Some(from), None) if self.destination == "-" => {
                let mut client = context.connect().await?;
                let mut to = Output::new(None)?;
                client.copy_out(from.request(self.follow_link), &mut to).await?;
                to.finish()
            }
            (None, Some(to)) if self.source == "-" => {
                context.connect().await?.copy_in(to.options(to.path), io::stdin()).await?;
                Ok(Code::SUCCESS)
            }
            (Some(from), None) => self.copy_out(context.connect().await?, from).await,
            (None, Some(to)) => self.copy_into(context.connect().await?, to).await,
            (Some(_), Some(_)) => Err(Failure::new("cp: copying between containers is not supported")
                .hint("pipe one into the other: gantry cp A:PATH - | gantry cp - B:PATH")),
            (None, None) => Err(Failure::new("cp: neither is a container's: write it as CONTAINER:PATH")),
        }
    }

    async fn copy_out(&self, mut client: Client, from: Place<'_>) -> Result<Code> {
        let request = from.request(self.follow_link);
        let stat = client.copy_stat(request.clone()).await?;
        let mut target = target(Path::new(&self.destination), from.path, &stat)?;
        target.owners = self.archive;
        let (mut reader, mut writer) = pipe()?;
        let unpacking = tokio::task::spawn_blocking(move || unpack(&mut reader, &target));
        let copied = client.copy_out(request, &mut writer).await;
        drop(writer);
        let unpacked = unpacking.await.map_err(|error| Failure::new(format!("cp: {error}")))?;
        // Where it cannot be unpacked, nobody takes what is sent, which is not the cause.
        let bytes = unpacked.map_err(|error| failed(&self.destination, &error))?;
        copied?;
        self.tell(bytes)
    }

    async fn copy_into(&self, mut client: Client, to: Place<'_>) -> Result<Code> {
        let here = Path::new(&self.source);
        let metadata = if self.follow_link || ends_in_directory(&self.source) {
            std::fs::metadata(here)
        } else {
            std::fs::symlink_metadata(here)
        };
        let is_directory = metadata.map_err(|error| failed(&self.source, &error))?.is_dir();
        let mut source = source(here, self.follow_link || ends_in_directory(&self.source))?;
        source.owners = self.archive;
        let base = source.called.clone();
        let directory = match client.copy_stat(to.request(true)).await {
            Ok(stat) if stat.is_directory => {
                source.called = if is_directory && wants_content(&self.source) { OsString::new() } else { base };
                to.path
            }
            Ok(_) if is_directory => {
                return Err(Failure::new(format!("cp: {}: is no directory, which {} is", to.path, self.source)));
            }
            Err(failure) if !failure.is_not_found() => return Err(failure),
            Err(_) if to.path.ends_with('/') && !is_directory => {
                return Err(Failure::new(format!("cp: {}: there is no such directory", to.path)));
            }
            // It is a file, to be replaced, or not there, and made.
            _ => {
                let (parent, name) = split(to.path);
                source.called = name.into();
                parent
            }
        };
        let (reader, mut writer) = pipe()?;
        let packing = tokio::task::spawn_blocking(move || pack(&source, &mut writer));
        let copied = client.copy_in(to.options(directory), reader).await;
        let packed = packing.await.map_err(|error| Failure::new(format!("cp: {error}")))?;
        // The daemon's word comes first: without it, nobody would take what is packed.
        copied?;
        let bytes = packed.map_err(|error| failed(&self.source, &error))?;
        self.tell(bytes)
    }

    fn tell(&self, bytes: u64) -> Result<Code> {
        if !self.quiet {
            let text = format!("Successfully copied {} to {}\n", decimal_size(bytes), self.destination);
            output::error_bytes(text.as_bytes());
        }
        Ok(Code::SUCCESS)
    }
}

impl Place<'_> {
    fn request(&self, follow: bool) -> api::CopyOutRequest {
        // A path that ends like a directory is one, whatever leads to it.
        let follow = follow || ends_in_directory(self.path);
        api::CopyOutRequest { r#ref: self.container.to_owned(), path: self.path.to_owned(), follow }
    }

    fn options(&self, directory: &str) -> api::CopyInOptions {
        api::CopyInOptions { r#ref: self.container.to_owned(), path: directory.to_owned() }
    }
}

/// A container and a path in it, which is absolute.
fn place(text: &str) -> Option<Place<'_>> {
    let (container, path) = text.split_once(':')?;
    let path = if path.is_empty() { "/" } else { path };
    (!container.is_empty() && !container.starts_with(['.', '/'])).then_some(Place { container, path })
}

/// Whether what is in a directory is meant, and not the directory.
fn wants_content(path: &str) -> bool {
    path == "." || path.ends_with("/.") || path == "/"
}

fn ends_in_directory(path: &str) -> bool {
    path.ends_with('/') || wants_content(path)
}

/// A path of a container in its directory and its name.
fn split(path: &str) -> (&str, &str) {
    let path = path.trim_end_matches('/');
    match path.rsplit_once('/') {
        Some((parent, name)) => (if parent.is_empty() { "/" } else { parent }, name),
        None => ("/", path),
    }
}

/// Where what is at `from` in a container goes, as docker says: into a directory that there is, else in its place.
fn target(to: &Path, from: &str, stat: &api::PathStat) -> Result<Target> {
    let fail = |error: io::Error| failed(&to.to_string_lossy(), &error);
    let bare = stat.name == "/";
    let target = |within, called| Target { within, called, bare, owners: false };
    match std::fs::metadata(to) {
        Ok(there) if there.is_dir() => {
            let called = (!bare && !wants_content(from)).then(|| safe_name(&stat.name)).transpose()?;
            return Ok(target(open(to).map_err(fail)?, called));
        }
        Ok(_) if stat.is_directory => {
            return Err(Failure::new(format!("cp: {}: is no directory, which {from} is", to.display())));
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
        Err(error) if !stat.is_directory && ends_in_directory(&to.to_string_lossy()) => return Err(fail(error)),
        _ => {}
    }
    let (within, name) = parent_of(to)?;
    if bare {
        nix::sys::stat::mkdirat(&within, name.as_os_str(), nix::sys::stat::Mode::from_bits_truncate(0o755))
            .map_err(|error| fail(error.into()))?;
        return Ok(target(open(to).map_err(fail)?, None));
    }
    Ok(target(within, Some(name)))
}

/// A name that a container gives, which must be one.
fn safe_name(name: &str) -> Result<OsString> {
    if name.is_empty() || name.contains('/') || name == "." || name == ".." {
        return Err(Failure::new(format!("cp: the container calls it {name:?}, which is no name")));
    }
    Ok(name.into())
}

/// What is at a path here, called by its own name. A link itself, unless `follow`.
fn source(path: &Path, follow: bool) -> Result<Source> {
    let fail = |error: io::Error| failed(&path.to_string_lossy(), &error);
    let called = match path.file_name() {
        Some(name) => name.to_owned(),
        // Such as `.` and `..`: their name is where they are.
        None => real(path).map_err(fail)?.file_name().map(OsStr::to_owned).unwrap_or_default(),
    };
    let real = if follow { real(path).map_err(fail)? } else { path.to_owned() };
    let (within, name) = match real.file_name() {
        Some(_) => parent_of(&real)?,
        None => (open(&real).map_err(fail)?, ".".into()),
    };
    Ok(Source { within, name, called, owners: false })
}

/// Where a path of this machine's own leads. It is the person's, not the container's.
#[expect(clippy::disallowed_methods, reason = "what is then opened is walked through descriptors")]
fn real(path: &Path) -> io::Result<std::path::PathBuf> {
    std::fs::canonicalize(path)
}

/// The directory that a path here is in, and its name there.
fn parent_of(path: &Path) -> Result<(OwnedFd, OsString)> {
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => path,
    };
    let name = path.file_name().ok_or_else(|| Failure::new(format!("cp: {}: has no name", path.display())))?;
    let within = open(parent).map_err(|error| failed(&parent.to_string_lossy(), &error))?;
    Ok((within, name.to_owned()))
}

fn open(directory: &Path) -> io::Result<OwnedFd> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let flags = (OFlag::O_DIRECTORY | OFlag::O_CLOEXEC).bits();
    Ok(File::options().read(true).custom_flags(flags).open(directory)?.into())
}

fn pipe() -> Result<(PipeReader, PipeWriter)> {
    io::pipe().map_err(|error| Failure::new(format!("cp: make a pipe: {}", reason(&error))))
}

fn failed(path: &str, error: &io::Error) -> Failure {
    Failure::new(format!("cp: {path}: {}", reason(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_names_a_container() {
        assert_eq!(place("web:/etc"), Some(Place { container: "web", path: "/etc" }));
        assert_eq!(place("web:"), Some(Place { container: "web", path: "/" }));
        for text in ["-", "./a:b", "/a:b", ":x", "plain"] {
            assert_eq!(place(text), None, "{text}");
        }
        assert_eq!(split("/a/b/"), ("/a", "b"));
        assert_eq!(split("/a"), ("/", "a"));
        assert_eq!(split("a"), ("/", "a"));
        assert!(wants_content("x/.") && wants_content(".") && !wants_content("x/") && !wants_content("x."));
    }

    #[test]
    fn what_is_copied_goes_where_docker_puts_it() {
        let dir = tempfile::tempdir().expect("directory");
        std::fs::create_dir(dir.path().join("there")).expect("directory");
        std::fs::write(dir.path().join("file"), "x").expect("file");
        let stat = |is_directory| api::PathStat { name: "name".into(), is_directory, size: 0 };
        let called = |to: &str, from: &str, is_directory| {
            let target = target(&dir.path().join(to), from, &stat(is_directory));
            target.map(|target| target.called.map(|name| name.to_string_lossy().into_owned())).ok()
        };
        assert_eq!(called("there", "/a/name", false), Some(Some("name".into())));
        assert_eq!(called("there", "/a/name", true), Some(Some("name".into())));
        assert_eq!(called("there", "/a/name/.", true), Some(None));
        assert_eq!(called("new", "/a/name", false), Some(Some("new".into())));
        assert_eq!(called("new/", "/a/name", false), None, "there is no such directory");
        assert_eq!(called("new/", "/a/name/.", true), Some(Some("new".into())));
        assert_eq!(called("file", "/a/name", false), Some(Some("file".into())));
        assert_eq!(called("file", "/a/name", true), None, "a directory in place of a file");
        assert_eq!(called("none/new", "/a/name", false), None, "there is no such directory");
        assert!(safe_name("..").is_err() && safe_name("a/b").is_err());
    }
}
