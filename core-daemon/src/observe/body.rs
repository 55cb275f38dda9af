//! An answer whose end is noticed: its code comes last, in the trailers.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::body::Body;

/// What is told the code.
type End = Box<dyn FnOnce(i32) + Send>;

/// The code of a call whose client went before the end.
const CANCELLED: i32 = 1;
/// The code of an answer that says none.
const UNKNOWN: i32 = 2;

/// A body that tells how it ended.
pub(super) struct Watched {
    inner: Body,
    end: Option<End>,
}

impl Watched {
    /// The same answer, after which `end` is called once.
    pub(super) fn watch(answer: Response<Body>, end: impl FnOnce(i32) + Send + 'static) -> Response<Body> {
        // An error without a message is headers only.
        if let Some(code) = code(answer.headers()) {
            end(code);
            return answer;
        }
        answer.map(|inner| Body::new(Self { inner, end: Some(Box::new(end)) }))
    }

    fn ended(&mut self, code: i32) {
        if let Some(end) = self.end.take() {
            end(code);
        }
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
            Poll::Ready(None) => self.ended(UNKNOWN),
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(trailers) = frame.trailers_ref() {
                    let code = code(trailers).unwrap_or(UNKNOWN);
                    self.ended(code);
                }
            }
            Poll::Ready(Some(Err(status))) => {
                let code = status.code().into();
                self.ended(code);
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

impl Drop for Watched {
    fn drop(&mut self) {
        self.ended(CANCELLED);
    }
}
