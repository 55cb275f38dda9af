//! `compress`: standard input to standard output through gzip; the supervisor's helper for rotated logs.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::{Doing, Result};

/// Compresses everything and flushes the result, so that a log's plain file may be removed afterwards.
///
/// # Errors
/// Those of reading and writing.
pub fn run() -> Result<()> {
    let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let mut encoder = GzEncoder::new(output, Compression::fast());
    io::copy(&mut io::stdin().lock(), &mut encoder).doing(|| "compress")?;
    let output = encoder.finish().doing(|| "compress")?;
    output.sync_all().doing(|| "flush the compressed file")
}
