//! A stream read ahead of whoever uses it, so that a layer is inflated while what came out before is hashed and written.

use std::io::{self, BufRead, Read};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};

/// Bytes of one piece, and pieces under way.
const PIECE: usize = 256 << 10;
const PIECES: usize = 4;

/// Lets `work` read what a thread of its own reads from `inner`. The thread ends with the piece that nobody wants any
/// more.
pub fn read_ahead<T>(mut inner: impl Read + Send, work: impl FnOnce(&mut Ahead) -> T) -> T {
    let (to, from) = sync_channel(PIECES);
    let (give_back, spare) = channel::<Vec<u8>>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            loop {
                let mut bytes = spare.try_recv().unwrap_or_default();
                let failed = fill(&mut inner, &mut bytes).err();
                let is_last = failed.is_some() || bytes.is_empty();
                let is_wanted = (bytes.is_empty() && failed.is_some()) || to.send(Ok(bytes)).is_ok();
                if let Some(error) = failed.filter(|_| is_wanted) {
                    let _ = to.send(Err(error));
                }
                if is_last || !is_wanted {
                    return;
                }
            }
        });
        work(&mut Ahead { from, give_back, now: Vec::new(), at: 0, ended: false })
    })
}

/// Fills a piece, as far as the stream goes. What came before an error is in it.
fn fill(inner: &mut impl Read, bytes: &mut Vec<u8>) -> io::Result<()> {
    bytes.resize(PIECE, 0);
    let mut length = 0;
    let mut failed = None;
    while length < PIECE && failed.is_none() {
        match inner.read(&mut bytes[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => failed = Some(error),
        }
    }
    bytes.truncate(length);
    failed.map_or(Ok(()), Err)
}

/// The reading end.
pub struct Ahead {
    from: Receiver<io::Result<Vec<u8>>>,
    give_back: Sender<Vec<u8>>,
    now: Vec<u8>,
    at: usize,
    ended: bool,
}

impl BufRead for Ahead {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.now.len() && !self.ended {
            let next = self.from.recv().map_err(|_| io::Error::other("the thread that reads ahead ended"))??;
            // Without anybody who takes it, it is freed.
            let _ = self.give_back.send(std::mem::replace(&mut self.now, next));
            (self.at, self.ended) = (0, self.now.is_empty());
        }
        Ok(&self.now[self.at..])
    }

    fn consume(&mut self, count: usize) {
        self.at = self.now.len().min(self.at + count);
    }
}

impl Read for Ahead {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let length = self.fill_buf()?.read(out)?;
        self.consume(length);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_arrives_and_so_does_an_error() {
        let bytes: Vec<u8> = (0..3 * PIECE + 7).map(|at| u8::try_from(at % 251).unwrap_or(0)).collect();
        let mut read = Vec::new();
        read_ahead(&bytes[..], |ahead| ahead.read_to_end(&mut read)).expect("read");
        assert_eq!(read, bytes);
        struct Broken(usize);
        impl Read for Broken {
            fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
                let length = out.len().min(self.0);
                self.0 -= length;
                if length == 0 { Err(io::ErrorKind::InvalidData.into()) } else { Ok(length) }
            }
        }
        let mut read = Vec::new();
        let error = read_ahead(Broken(PIECE + 1), |ahead| ahead.read_to_end(&mut read)).expect_err("broken");
        assert_eq!((error.kind(), read.len()), (io::ErrorKind::InvalidData, PIECE + 1));
        // One that is not read to its end does not wait for anybody.
        read_ahead(io::repeat(0), |ahead| ahead.read_exact(&mut [0; 10])).expect("a part");
    }
}
