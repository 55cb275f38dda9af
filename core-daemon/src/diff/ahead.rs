//! A stream read ahead of whoever uses it, and hashed beside that: a layer is inflated while what came out before is hashed
//! by one and written by another.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};

use rung_spec::digest::{Algorithm, Digest, Hasher};

/// Bytes of one piece, and pieces that wait for one thread.
const PIECE: usize = 256 << 10;
const PIECES: usize = 4;

type Piece = Arc<Vec<u8>>;

/// Lets `work` read what a thread of its own reads from `inner`, and one more hashes. They end with the piece that nobody
/// wants any more.
pub fn read_ahead<T>(mut inner: impl Read + Send, work: impl FnOnce(&mut Ahead) -> T) -> T {
    let (to, from) = sync_channel(PIECES);
    let (to_hash, pieces) = sync_channel::<Piece>(PIECES);
    let (tell, hashed) = channel();
    let (give_back, spare) = channel::<Piece>();
    std::thread::scope(|scope| {
        scope.spawn(move || hash(&pieces, &tell));
        scope.spawn(move || {
            loop {
                // One that is still being hashed is left to be freed.
                let mut bytes = spare.try_recv().ok().and_then(Arc::into_inner).unwrap_or_default();
                let failed = fill(&mut inner, &mut bytes).err();
                let is_last = failed.is_some() || bytes.is_empty();
                let is_piece = failed.is_none() || !bytes.is_empty();
                let piece = Arc::new(bytes);
                let is_wanted = !is_piece || (to_hash.send(piece.clone()).is_ok() && to.send(Ok(piece)).is_ok());
                if let Some(error) = failed.filter(|_| is_wanted) {
                    let _ = to.send(Err(error));
                }
                if is_last || !is_wanted {
                    return;
                }
            }
        });
        work(&mut Ahead { from, give_back, hashed, now: Piece::default(), at: 0, ended: false })
    })
}

/// Hashes pieces up to the empty one that ends them, and tells the digest.
fn hash(pieces: &Receiver<Piece>, tell: &Sender<Digest>) {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    for piece in pieces {
        if piece.is_empty() {
            let _ = tell.send(hasher.finish());
            return;
        }
        hasher.update(&piece);
    }
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
    from: Receiver<io::Result<Piece>>,
    give_back: Sender<Piece>,
    hashed: Receiver<Digest>,
    now: Piece,
    at: usize,
    ended: bool,
}

impl Ahead {
    /// The digest of the whole stream, which has been read to its end.
    ///
    /// # Errors
    /// When it has not.
    pub fn digest(&self) -> io::Result<Digest> {
        let unread = || io::Error::other("a stream that was not read to its end has no digest");
        if self.ended { self.hashed.recv().map_err(|_| unread()) } else { Err(unread()) }
    }
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
        let digest = read_ahead(&bytes[..], |ahead| ahead.read_to_end(&mut read).and_then(|_| ahead.digest()));
        assert_eq!(digest.expect("read"), Digest::of(&bytes));
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
        let digest = read_ahead(io::repeat(0), |ahead| ahead.read_exact(&mut [0; 10]).map(|()| ahead.digest()));
        digest.expect("a part").expect_err("a part has no digest");
    }
}
