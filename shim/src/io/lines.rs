//! Output as the lines of a log.
//!
//! A line that is longer than a record may be is cut into pieces that readers can join again.

use gantry_proto::stdio::LogFormat;

/// What a stream has written of a line that is not finished.
#[derive(Debug, Default)]
pub struct Lines(Vec<u8>);

impl Lines {
    /// Takes output, and gives each line to `each`, with its end: whole, or in pieces of at most `most` bytes, for all but the
    /// last of which it hears `true`.
    pub fn push(&mut self, format: LogFormat, most: usize, chunk: &[u8], mut each: impl FnMut(&[u8], bool)) {
        for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
            let whole = piece.ends_with(b"\n");
            // Where records are lines, what ends one is not of the text that a record has room for.
            let end = usize::from(whole && format == LogFormat::Cri);
            if self.0.is_empty() && whole && piece.len() - end <= most {
                each(piece, false);
                continue;
            }
            self.0.extend_from_slice(piece);
            let mut line = std::mem::take(&mut self.0);
            let mut rest = line.as_slice();
            while rest.len() - end > most {
                let (head, tail) = rest.split_at(boundary(rest, most, format));
                each(head, true);
                rest = tail;
            }
            if whole {
                each(rest, false);
            } else {
                line.drain(..line.len() - rest.len());
                self.0 = line;
            }
        }
    }

    /// What is left of a line that its process never finished; nothing where it has finished them all.
    pub fn end(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}

/// The text of a line, without what ends it.
pub fn text(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\n").map_or(line, |text| text.strip_suffix(b"\r").unwrap_or(text))
}

/// The largest cut that splits no character, nor a line's end in CRI; bytes that are no text are cut anywhere.
fn boundary(line: &[u8], most: usize, format: LogFormat) -> usize {
    if format == LogFormat::Cri && line.get(most - 1) == Some(&b'\r') {
        return most - 1;
    }
    let starts = |at: usize| line.get(at).is_none_or(|byte| byte & 0xc0 != 0x80);
    (most - 3..=most).rev().find(|at| starts(*at)).unwrap_or(most)
}
