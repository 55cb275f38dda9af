//! The shim's own log: one line a record into the bundle's `log` FIFO, which the daemon reads.
//!
//! The few lines below stand in for `tracing-subscriber`: the shim is to need about one mebibyte of memory, and it uses
//! no filters, spans or colours.

use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

struct Lines {
    output: File,
    level: Level,
}

/// Sends records of `level` and worse to the FIFO `log` in `bundle`; without such a FIFO nothing is logged.
///
/// The FIFO is opened for both directions and without blocking, so that a daemon that is gone neither ends nor stops the
/// shim: what does not fit is lost.
pub fn to_bundle(bundle: &Path, debug: bool) {
    let flags = nix::libc::O_NONBLOCK | nix::libc::O_NOFOLLOW;
    let Ok(output) = OpenOptions::new().read(true).write(true).custom_flags(flags).open(bundle.join("log")) else {
        return;
    };
    if !output.metadata().is_ok_and(|meta| meta.file_type().is_fifo()) {
        return;
    }
    let level = if debug { Level::DEBUG } else { Level::INFO };
    // Fails only where a subscriber is set already.
    let _ = tracing::subscriber::set_global_default(Lines { output, level });
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level
    }

    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        Some(self.level.into())
    }

    fn event(&self, event: &Event<'_>) {
        let level = event.metadata().level().as_str().to_ascii_lowercase();
        let mut line = format!("time=\"{}\" level={level}", jiff::Timestamp::now());
        event.record(&mut Fields(&mut line));
        line.push('\n');
        let _ = (&self.output).write(line.as_bytes());
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

struct Fields<'a>(&'a mut String);

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let name = if field.name() == "message" { "msg" } else { field.name() };
        let text = format!("{value:?}");
        let quoted = text.starts_with('"') || !text.contains([' ', '=']);
        let _ = if quoted { write!(self.0, " {name}={text}") } else { write!(self.0, " {name}={text:?}") };
    }
}
