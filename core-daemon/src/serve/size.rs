//! A message that is longer than the daemon takes is refused as by every other server of gRPC: with `ResourceExhausted`.
//! tonic's own word for it is `OutOfRange`, which clients of the content store take for a place beyond the end of a blob.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Request;
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

/// Before each message: a byte that says whether it is packed, and four with its length.
const HEADER: usize = 5;

/// Limits the messages of requests to so many bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct MaxMessage(pub(super) usize);

impl<S> Layer<S> for MaxMessage {
    type Service = Limited<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Limited { inner, max: self.0 }
    }
}

/// A service whose requests are limited.
#[derive(Debug, Clone)]
pub(super) struct Limited<S> {
    inner: S,
    max: usize,
}

impl<S: Service<Request<Body>>> Service<Request<Body>> for Limited<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let lengths = Lengths { max: self.max, header: [0; HEADER], have: 0, left: 0 };
        self.inner.call(request.map(|body| Body::new(Watched { body, lengths })))
    }
}

/// A request's body, which ends with an error at a message that is too long.
struct Watched {
    body: Body,
    lengths: Lengths,
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
            && let Err(status) = self.lengths.see(data)
        {
            return Poll::Ready(Some(Err(status)));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Where in its messages a body is, whose pieces end anywhere.
struct Lengths {
    max: usize,
    header: [u8; HEADER],
    /// Bytes of the header that are there.
    have: usize,
    /// Bytes of the message that are still to come.
    left: usize,
}

impl Lengths {
    fn see(&mut self, mut data: &[u8]) -> Result<(), Status> {
        while !data.is_empty() {
            if self.left > 0 {
                let some = self.left.min(data.len());
                (self.left, data) = (self.left - some, &data[some..]);
                continue;
            }
            let some = (HEADER - self.have).min(data.len());
            self.header[self.have..self.have + some].copy_from_slice(&data[..some]);
            (self.have, data) = (self.have + some, &data[some..]);
            if self.have == HEADER {
                let [_, length @ ..] = self.header;
                (self.have, self.left) = (0, u32::from_be_bytes(length) as usize);
                self.check()?;
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Status> {
        let Self { left, max, .. } = self;
        let refusal = || format!("a message of {left} bytes is larger than max ({max}, which grpc.max_message says)");
        if left > max { Err(Status::resource_exhausted(refusal())) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: u32) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend(length.to_be_bytes());
        bytes.extend(std::iter::repeat_n(7, length as usize));
        bytes
    }

    #[test]
    fn messages_are_found_wherever_the_pieces_end() {
        let bytes = [message(3), message(0), message(100), message(101)].concat();
        for size in 1..bytes.len() {
            let mut lengths = Lengths { max: 100, header: [0; HEADER], have: 0, left: 0 };
            let refused = bytes.chunks(size).position(|piece| lengths.see(piece).is_err());
            // The header of the last message ends after 3 + 0 + 100 bytes and four headers.
            assert_eq!(refused, Some((103 + 4 * HEADER - 1) / size), "pieces of {size}");
        }
    }

    #[tokio::test]
    async fn what_is_too_long_is_told_in_the_words_of_grpc() {
        let reads = tower::service_fn(|request: Request<Body>| async {
            let decoder = tonic_prost::ProstDecoder::<Vec<u8>>::default();
            Ok::<_, std::convert::Infallible>(
                tonic::Streaming::new_request(decoder, request.into_body(), None, Some(1000)).message().await,
            )
        });
        let mut limited = MaxMessage(100).layer(reads);
        let body = Body::new(http_body_util::Full::new(Bytes::from(message(101))));
        let answer = limited.call(Request::new(body)).await.expect("infallible");
        assert_eq!(answer.expect_err("too long").code(), tonic::Code::ResourceExhausted);
    }
}
