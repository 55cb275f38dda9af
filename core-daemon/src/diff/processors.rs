//! Programs that make a layer of one that cannot be unpacked as it is, such as an encrypted one.
//!
//! ```text
//! stored layer ─ stdin ► program ─ stdout ─ stdin ► program ... ─► layer, compressed or not
//! ```
//!
//! Each says which media types it takes and which one it gives; they follow each other until nobody takes what has become
//! of the layer. What a client sends along for one of them it finds at descriptor 3, the layer's media type in
//! `STREAM_PROCESSOR_MEDIATYPE`. One that fails fails the layer, with what it said last.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use prost::Message as _;
use prost_types::Any;
use rung_spec::image::{Descriptor, Kind as MediaKind, bare};
use serde_json::json;

use super::decompress;
use crate::config::StreamProcessor;
use crate::error::{Doing, Error, Result};

/// What programs are sent along with a layer, by their name.
pub type Payloads = BTreeMap<String, Any>;

/// What the programs that decrypt layers are called everywhere, and what they are sent: they insist on it, even where it
/// says nothing because their keys are on this machine.
const DECRYPTERS: [&str; 2] = ["io.containerd.ocicrypt.decoder.v1.tar", "io.containerd.ocicrypt.decoder.v1.tar.gzip"];
const DECRYPTION: &str = "io.containerd.ocicrypt.v1.Payload";
/// Where a program is told what it reads.
const MEDIA_TYPE: &str = "STREAM_PROCESSOR_MEDIATYPE";
/// Of a layer that is a file system, for another snapshotter.
pub const ONLY_EROFS: &str = "is a file system and no archive, which only the snapshotter erofs takes";
/// Most programs in a row.
const MAX_STEPS: usize = 8;
/// How long nothing may come, and how long a program may go on after its output has ended.
const STALL: Duration = Duration::from_secs(600);
const PATIENCE: Duration = Duration::from_secs(10);
/// Most that is kept of what a program says.
const MAX_SAID: usize = 4 << 10;

/// The programs. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Processors {
    programs: Arc<BTreeMap<String, StreamProcessor>>,
    /// Layers that are EROFS images are taken as they are.
    takes_images: bool,
}

impl Processors {
    /// As they are configured, by name.
    pub fn new(configured: &BTreeMap<String, StreamProcessor>) -> Self {
        Self { programs: Arc::new(configured.clone()), takes_images: false }
    }

    /// With this for whether layers that are EROFS images are taken as they are.
    #[must_use]
    pub fn taking_images(self, takes_images: bool) -> Self {
        Self { takes_images, ..self }
    }

    /// Whether a layer is not unpacked as it is.
    ///
    /// # Errors
    /// `FailedPrecondition` where it would have to be, because it is encrypted; `Unimplemented` where it is an image that is
    /// not taken as it is.
    pub fn take(&self, layer: &Descriptor) -> Result<bool> {
        let media_type = bare(&layer.media_type);
        if self.taker(media_type).is_some() {
            return Ok(true);
        }
        let place = "in [stream_processors] of the daemon's configuration";
        match layer.kind() {
            MediaKind::Encrypted => Err(Error::precondition(format!(
                "layer of type {media_type}: is encrypted; name a program that decrypts it {place}"
            ))),
            MediaKind::Erofs(_) if !self.takes_images => Err(Error::unimplemented(format!(
                "layer of type {media_type}: is a file system and no archive; set snapshotters.erofs.trust_images where who \
                 makes the images is trusted, or name a program that makes a tar of it {place}"
            ))),
            _ => Ok(false),
        }
    }

    fn taker(&self, media_type: &str) -> Option<(&String, &StreamProcessor)> {
        self.programs.iter().find(|(_, processor)| processor.accepts.iter().any(|accepted| accepted == media_type))
    }

    /// The plain tar of a stored layer, whose file is at its start.
    ///
    /// # Errors
    /// `FailedPrecondition` where no program takes an encrypted layer, or nothing that can be unpacked becomes of it.
    pub fn plain(&self, layer: &Descriptor, stored: File, payloads: &Payloads) -> Result<Box<dyn Read + Send>> {
        let mut media_type = bare(&layer.media_type);
        if !self.take(layer)? {
            if matches!(layer.kind(), MediaKind::Erofs(_)) {
                return Err(Error::unimplemented(format!("layer of type {media_type}: {ONLY_EROFS}")));
            }
            return Ok(decompress(BufReader::with_capacity(256 << 10, stored))?.0);
        }
        let mut programs = Programs(Vec::new());
        let mut stream = OwnedFd::from(stored);
        while let Some((name, processor)) = self.taker(media_type) {
            if programs.0.len() == MAX_STEPS {
                return Err(Error::precondition(format!("more than {MAX_STEPS} stream processors in a row")));
            }
            let doing = || format!("stream processor {name}");
            let (program, output) = start(name, processor, media_type, stream, payloads.get(name)).doing(doing)?;
            programs.0.push(program);
            (stream, media_type) = (output, processor.returns.as_str());
        }
        if !matches!(MediaKind::of(media_type), MediaKind::Layer(_)) {
            return Err(Error::precondition(format!("stream processors make {media_type} of it, which is no layer")));
        }
        let output = Output { stream: File::from(stream), programs };
        Ok(decompress(BufReader::with_capacity(256 << 10, output))?.0)
    }
}

/// What programs are sent along with a layer that no client sends anything along with.
pub fn own_payloads(layer: &Descriptor) -> Payloads {
    let payload = json!({ "DecryptConfig": { "Parameters": null }, "Descriptor": layer });
    let payload = Any { type_url: DECRYPTION.to_owned(), value: payload.to_string().into_bytes() };
    DECRYPTERS.iter().map(|name| ((*name).to_owned(), payload.clone())).collect()
}

fn start(
    name: &str,
    processor: &StreamProcessor,
    media_type: &str,
    input: OwnedFd,
    payload: Option<&Any>,
) -> Result<(Program, OwnedFd)> {
    let mut command = Command::new(&processor.path);
    command.args(&processor.args).env(MEDIA_TYPE, media_type).process_group(0);
    command.envs(processor.env.iter().filter_map(|pair| pair.split_once('=')));
    command.stdin(Stdio::from(input)).stdout(Stdio::piped()).stderr(Stdio::piped());
    rung_sys::spawn::cleanly(&mut command);
    if let Some(payload) = payload {
        let mut file = File::from(memfd_create(c"payload", MFdFlags::MFD_CLOEXEC).map_err(io::Error::from)?);
        file.write_all(&payload.encode_to_vec()).and_then(|()| file.rewind())?;
        rung_sys::spawn::with_descriptor_3(&mut command, file.as_fd()).map_err(io::Error::from)?;
    }
    let mut child = command.spawn().doing(|| format!("start {}", processor.path.display()))?;
    let (output, errors) = (child.stdout.take(), child.stderr.take());
    let (to, said) = sync_channel(1);
    if let Some(mut errors) = errors {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = (&mut errors).take(MAX_SAID as u64).read_to_end(&mut text);
            let _ = io::copy(&mut errors, &mut io::sink());
            let _ = to.send(String::from_utf8_lossy(&text).trim().to_owned());
        });
    }
    let output = output.ok_or_else(|| Error::internal("has no output"))?;
    Ok((Program { name: name.to_owned(), child, said, ended: false }, output.into()))
}

/// A program that runs.
struct Program {
    name: String,
    child: Child,
    said: Receiver<String>,
    ended: bool,
}

impl Program {
    /// Waits until it has ended, and says what is wrong if it failed.
    fn end(&mut self) -> io::Result<()> {
        let begun = Instant::now();
        let status = loop {
            match self.child.try_wait()? {
                Some(status) => break status,
                None if begun.elapsed() > PATIENCE => {
                    let text = format!("stream processor {}: goes on after its output has ended", self.name);
                    return Err(io::Error::other(text));
                }
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        self.ended = true;
        if status.success() {
            return Ok(());
        }
        let said = self.said.recv_timeout(Duration::from_secs(1)).unwrap_or_default();
        Err(io::Error::other(format!("stream processor {}: failed with {status}: {said}", self.name)))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if !self.ended {
            // It is the leader of a group of its own, and waited for by nobody else.
            let group = i32::try_from(self.child.id()).ok().filter(|id| *id > 1);
            let _ = group.map(|id| killpg(Pid::from_raw(id), Signal::SIGKILL));
            let _ = self.child.wait();
        }
    }
}

/// Programs in the order in which a layer goes through them.
struct Programs(Vec<Program>);

/// What the last program puts out; at its end all must have done well.
struct Output {
    stream: File,
    programs: Programs,
}

impl Read for Output {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let timeout = PollTimeout::try_from(STALL).unwrap_or(PollTimeout::MAX);
        if poll(&mut [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)], timeout)? == 0 {
            let text = format!("stream processors: nothing came for {} s", STALL.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        let length = self.stream.read(out)?;
        if length == 0 && !out.is_empty() {
            self.programs.0.iter_mut().filter(|program| !program.ended).try_for_each(Program::end)?;
        }
        Ok(length)
    }
}
