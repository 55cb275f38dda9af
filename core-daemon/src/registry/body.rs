//! What a request carries: nothing, some bytes, or a part of a file, which can be sent again.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::stream;

/// Bytes in one piece.
const PIECE: u64 = 256 << 10;

/// Is told how far into a file sending has come.
pub type Sent = Arc<dyn Fn(u64) + Send + Sync>;

#[derive(Clone)]
pub(super) enum Body {
    None,
    Bytes(Bytes),
    Part(Part),
}

/// A part of a file.
#[derive(Clone)]
pub(super) struct Part {
    pub(super) file: Arc<File>,
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) sent: Sent,
}

impl Body {
    /// Puts it into a request. `moved` counts its bytes as they go out.
    pub(super) fn attach(&self, request: reqwest::RequestBuilder, moved: &Arc<AtomicU64>) -> reqwest::RequestBuilder {
        match self {
            Self::None => request,
            Self::Bytes(bytes) => request.body(bytes.clone()),
            Self::Part(part) => {
                let request = request.header(http::header::CONTENT_LENGTH, part.length);
                request.body(reqwest::Body::wrap_stream(part.clone().stream(moved.clone())))
            }
        }
    }
}

impl Part {
    fn stream(self, moved: Arc<AtomicU64>) -> impl futures_util::Stream<Item = io::Result<Bytes>> + Send {
        let end = self.offset + self.length;
        stream::try_unfold(self.offset, move |offset| {
            let (file, sent, moved) = (self.file.clone(), self.sent.clone(), moved.clone());
            async move {
                if offset >= end {
                    return Ok(None);
                }
                let length = usize::try_from((end - offset).min(PIECE)).unwrap_or(0);
                let read = tokio::task::spawn_blocking(move || {
                    let mut piece = vec![0; length];
                    file.read_exact_at(&mut piece, offset).map(|()| Bytes::from(piece))
                });
                let piece = read.await.map_err(io::Error::other)??;
                let next = offset + piece.len() as u64;
                moved.fetch_add(piece.len() as u64, Ordering::Relaxed);
                sent(next);
                Ok(Some((piece, next)))
            }
        })
    }
}
