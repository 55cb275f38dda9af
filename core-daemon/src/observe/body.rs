//! An answer whose end is noticed: its code comes last, in the trailers.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::body::Body;

/// The code of a call whose client went before the end.
const CANCELLED: i32 = 1;
/// The code of an answer that says none.
const UNKNOWN: i32 = 2;

/// What is told how a call ended, once: where nobody says, it was cut short.
pub(super) struct End {
    told: Option<Box<dyn FnOnce(i32) + Send>>,
}

impl End {
    /// Calls `told` with the code.
    pub(super) fn new(told: impl FnOnce(i32) + Send + 'static) -> Self {
        Self { told: Some(Box::new(told)) }
    }

    fn tell(&mut self, code: i32) {
        if let Some(told) = self.told.take() {
            told(code);
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.tell(CANCELLED);
    }
}

/// A body that tells how it ended.
pub(super) struct Watched {
    inner: Body,
    end: End,
}

impl Watched {
    /// The same answer, after which `end` is told.
    pub(super) fn watch(answer: Response<Body>, mut end: End) -> Response<Body> {
        // An error without a message is headers only.
        if let Some(code) = code(answer.headers()) {
            end.tell(code);
            return answer;
        }
        answer.map(|inner| Body::new(Self { inner, end }))
    }
}

fn code(headers: &HeaderMap) -> Option<i32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        match &polled {
            Poll::Ready(None) => self.end.tell(UNKNOWN),
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(trailers) = frame.trailers_ref() {
                    let code = code(trailers).unwrap_or(UNKNOWN);
                    self.end.tell(code);
                }
            }
            Poll::Ready(Some(Err(status))) => {
                let code = status.code().into();
                self.end.tell(code);
            }
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn an_end_is_told_once_whatever_happens() {
        let (codes, told) = mpsc::channel();
        let end = || {
            let codes = codes.clone();
            End::new(move |code| codes.send(code).expect("listens"))
        };
        // A client that went while its call was carried out.
        drop(end());
        let answer = Response::builder().header("grpc-status", "5").body(Body::empty()).expect("answer");
        drop(Watched::watch(answer, end()));
        drop(Watched::watch(Response::new(Body::empty()), end()));
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [CANCELLED, 5, CANCELLED]);
    }
}
