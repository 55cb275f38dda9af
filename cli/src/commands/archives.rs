//! `gantry load`, `save`, `import` and `export`: archives of images, and of files.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use gantry_proto::gantry::images::v1 as api;

use super::Context;
use super::options::platform;
use crate::client::reason;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::output;

/// `gantry load`.
#[derive(Debug, clap::Args)]
pub struct Load {
    /// Read the archive from a file instead of standard input
    #[arg(long, short, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Load only the images for this platform: os/arch[/variant]
    #[arg(long, value_name = "PLATFORM", value_parser = platform)]
    platform: Option<String>,
    /// Print nothing
    #[arg(long, short)]
    quiet: bool,
}

/// `gantry save`.
#[derive(Debug, clap::Args)]
pub struct Save {
    /// Write the archive to a file instead of standard output
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Save only the images for this platform: os/arch[/variant]
    #[arg(long, value_name = "PLATFORM", value_parser = platform)]
    platform: Option<String>,
    /// Names or ids of images
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
}

/// `gantry import`.
#[derive(Debug, clap::Args)]
pub struct Import {
    /// Change the configuration by an instruction of a Dockerfile
    #[arg(long, short, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// A note for the image's history
    #[arg(long, short, value_name = "TEXT")]
    message: Option<String>,
    /// Platform that the files are for: os/arch[/variant]
    #[arg(long, value_name = "PLATFORM", value_parser = platform)]
    platform: Option<String>,
    /// The tar, packed with gzip or zstd or not at all; - for standard input
    #[arg(value_name = "FILE|-")]
    file: PathBuf,
    /// Name of the image
    #[arg(value_name = "REPOSITORY[:TAG]")]
    name: Option<String>,
}

/// `gantry export`.
#[derive(Debug, clap::Args)]
pub struct Export {
    /// Write the tar to a file instead of standard output
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Name or id of the container
    #[arg(value_name = "CONTAINER")]
    container: String,
}

impl Load {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        let archive = input(self.input.as_deref(), "an archive, or name a file with -i")?;
        let options = api::LoadOptions { platform: self.platform.unwrap_or_default() };
        let loaded = context.connect().await?.load(options, archive).await?;
        if !self.quiet {
            for image in loaded {
                match image.name.as_str() {
                    "" => output::line(format!("Loaded image ID: {}", image.id))?,
                    name => output::line(format!("Loaded image: {name}"))?,
                }
            }
        }
        Ok(Code::SUCCESS)
    }
}

impl Save {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        let request = api::SaveRequest { images: self.images, platform: self.platform.unwrap_or_default() };
        let mut client = context.connect().await?;
        let mut to = Output::new(self.output)?;
        client.save(request, &mut to).await?;
        to.finish()
    }
}

impl Import {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        let path = Some(self.file.as_path()).filter(|path| *path != Path::new("-"));
        let options = api::ImportOptions {
            name: self.name.unwrap_or_default(),
            message: self.message.unwrap_or_default(),
            platform: self.platform.unwrap_or_default(),
            changes: self.change,
        };
        let archive = input(path, "a tar")?;
        output::line(context.connect().await?.import(options, archive).await?)?;
        Ok(Code::SUCCESS)
    }
}

impl Export {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        let mut client = context.connect().await?;
        let mut to = Output::new(self.output)?;
        client.export(&self.container, &mut to).await?;
        to.finish()
    }
}

/// A file, or standard input where that is no terminal.
fn input(path: Option<&Path>, wanted: &str) -> Result<Box<dyn Read + Send>> {
    match path {
        Some(path) => {
            let file = File::open(path);
            let file = file.map_err(|error| Failure::new(format!("open {}: {}", path.display(), reason(&error))))?;
            Ok(Box::new(file))
        }
        None if io::stdin().is_terminal() => {
            Err(Failure::new("standard input is a terminal").hint(format!("pipe {wanted} into it")))
        }
        None => Ok(Box::new(io::stdin())),
    }
}

/// A file that is there only once it is whole, or standard output where that is no terminal.
pub(super) struct Output {
    file: Option<(File, PathBuf, PathBuf)>,
}

impl Output {
    pub(super) fn new(path: Option<PathBuf>) -> Result<Self> {
        let Some(path) = path else {
            if io::stdout().is_terminal() {
                let hint = "redirect it, or name a file with -o";
                return Err(Failure::new("standard output is a terminal, which an archive is not for").hint(hint));
            }
            return Ok(Self { file: None });
        };
        check_replaceable(&path)?;
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.part", std::process::id()));
        let part = path.with_file_name(name);
        // As docker has it, what is in a container or an image is not everybody's.
        let opened = File::options().write(true).create_new(true).mode(0o600).open(&part);
        let file = opened.map_err(|error| Failure::new(format!("write {}: {}", path.display(), reason(&error))))?;
        Ok(Self { file: Some((file, part, path)) })
    }

    /// Makes it last.
    pub(super) fn finish(mut self) -> Result<Code> {
        if let Some((file, part, path)) = self.file.take() {
            let done = file.sync_all().and_then(|()| std::fs::rename(&part, &path));
            done.map_err(|error| Failure::new(format!("write {}: {}", path.display(), reason(&error))))?;
        }
        Ok(Code::SUCCESS)
    }
}

/// Refuses what a file must not take the place of: for root that might be /dev/null itself.
fn check_replaceable(path: &Path) -> Result<()> {
    // Nothing is there, or the error comes again when the file is made.
    let Ok(there) = std::fs::symlink_metadata(path) else { return Ok(()) };
    let kind = there.file_type();
    let what = match () {
        () if kind.is_file() => return Ok(()),
        () if kind.is_dir() => "a directory",
        () if kind.is_symlink() => "a symbolic link",
        () if kind.is_fifo() => "a named pipe",
        () if kind.is_socket() => "a socket",
        () => "a device",
    };
    let text = format!("write {}: it is {what}, which no archive takes the place of", path.display());
    Err(Failure::new(text).hint("name a file, or redirect standard output without -o"))
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.file {
            Some((file, ..)) => file.write(bytes),
            None => io::stdout().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.file {
            Some((file, ..)) => file.flush(),
            None => io::stdout().flush(),
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some((_, part, _)) = &self.file {
            // It is ours, and not whole.
            let _ = std::fs::remove_file(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn only_a_file_is_replaced_and_only_by_a_whole_one() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        symlink("file", at("link")).unwrap();
        for name in ["pipe", "link", "."] {
            assert!(Output::new(Some(at(name))).is_err(), "{name}");
        }
        std::fs::write(at("file"), "old").unwrap();
        let begun = || {
            let mut output = Output::new(Some(at("file"))).unwrap();
            output.write_all(b"new").unwrap();
            output
        };
        drop(begun());
        assert_eq!(std::fs::read(at("file")).unwrap(), b"old");
        begun().finish().unwrap();
        assert_eq!(std::fs::read(at("file")).unwrap(), b"new");
        assert_eq!(std::fs::metadata(at("file")).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
    }
}
