//! An ingest as something that is written to.

use std::io::{self, Write};

use super::Ingest;

/// Appends to an ingest.
pub struct IngestWriter<'a>(pub &'a mut Ingest);

impl Write for IngestWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
