//! The lists of all pods and containers. A kubelet asks for them every second, on nodes with hundreds of either, so nothing
//! is copied for it: what does not change of an item is encoded once, and an answer is those bytes in a row, each with the
//! state of that moment. Who asks for all of them gets the same answer again until something has changed.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes};
use gantry_proto::runtime::v1;
use gantry_proto::runtime::v1::runtime_service_server::RuntimeServiceServer;
use http::{Request, Response};
use prost::encoding::{DecodeContext, WireType, encode_key, encode_varint, encoded_len_varint, key_len, skip_field};
use prost::{DecodeError, Message};
use tonic::body::Body;
use tonic::codec::CompressionEncoding;
use tonic::server::{Grpc, NamedService};
use tonic_prost::ProstCodec;
use tower::{Service, service_fn};

use super::runtime::RuntimeService;
use super::{Container, Cri, Sandbox};
use crate::error::Result;

const PODS: &str = "/runtime.v1.RuntimeService/ListPodSandbox";
const CONTAINERS: &str = "/runtime.v1.RuntimeService/ListContainers";
/// Field of either answer that has the items.
const ITEMS: u32 = 1;
/// Field of a pod, and of a container, with its state.
const POD_STATE: u32 = 3;
const CONTAINER_STATE: u32 = 6;

/// What does not change of an item, encoded when it is first asked for.
#[derive(Default)]
pub(super) struct Unchanging(OnceLock<Box<[u8]>>);

impl Unchanging {
    fn get(&self, item: impl FnOnce() -> Vec<u8>) -> &[u8] {
        self.0.get_or_init(|| item().into_boxed_slice())
    }
}

/// Answers to who asks for everything.
#[derive(Default)]
pub(super) struct Answers {
    pods: Kept,
    containers: Kept,
}

/// An answer, and how often anything had changed before it was made.
#[derive(Default)]
struct Kept(Mutex<(u64, Option<Encoded>)>);

impl Kept {
    fn get(&self, changes: u64, make: impl FnOnce() -> Encoded) -> Encoded {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*kept {
            (before, Some(answer)) if *before == changes => answer.clone(),
            _ => {
                let answer = make();
                *kept = (changes, Some(answer.clone()));
                answer
            }
        }
    }
}

/// A message whose items are encoded already.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Encoded(Bytes);

/// Such a message while its items are put together.
#[derive(Default)]
struct Items(Vec<u8>);

impl Items {
    /// One more item; a state of 0 is not said.
    fn push(&mut self, unchanging: &[u8], field: u32, state: i32) {
        let state = u64::try_from(state).unwrap_or(0);
        let said = if state == 0 { 0 } else { key_len(field) + encoded_len_varint(state) };
        encode_key(ITEMS, WireType::LengthDelimited, &mut self.0);
        encode_varint((unchanging.len() + said) as u64, &mut self.0);
        self.0.put_slice(unchanging);
        if said > 0 {
            encode_key(field, WireType::Varint, &mut self.0);
            encode_varint(state, &mut self.0);
        }
    }

    fn done(self) -> Encoded {
        Encoded(self.0.into())
    }
}

impl Encoded {
    /// The same as a message whose items can be looked at.
    pub(super) fn decoded<T: Message + Default>(&self) -> Result<T> {
        T::decode(self.0.clone()).map_err(|error| crate::error::Error::internal(format!("decode a list: {error}")))
    }
}

impl Message for Encoded {
    fn encode_raw(&self, to: &mut impl BufMut) {
        to.put_slice(&self.0);
    }

    fn encoded_len(&self) -> usize {
        self.0.len()
    }

    /// Nobody reads one.
    fn merge_field(
        &mut self,
        field: u32,
        kind: WireType,
        from: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        skip_field(kind, field, from, context)
    }

    fn clear(&mut self) {
        self.0 = Bytes::new();
    }
}

impl Cri {
    /// The pods that pass, newest first.
    pub(super) fn encoded_sandboxes(&self, filter: Option<&v1::PodSandboxFilter>) -> Encoded {
        match filter.filter(|filter| **filter != v1::PodSandboxFilter::default()) {
            Some(filter) => self.encode_sandboxes(Some(filter)),
            None => self.shared.lists.pods.get(self.store().changes(), || self.encode_sandboxes(None)),
        }
    }

    fn encode_sandboxes(&self, filter: Option<&v1::PodSandboxFilter>) -> Encoded {
        let mut sandboxes = self.store().sandboxes();
        if let Some(filter) = filter {
            sandboxes.retain(|sandbox| sandbox.passes(filter));
        }
        sandboxes.sort_by_key(|sandbox| std::cmp::Reverse(sandbox.created_at()));
        let mut all = Items::default();
        for sandbox in sandboxes {
            all.push(sandbox.unchanging.get(|| sandbox.listed().encode_to_vec()), POD_STATE, sandbox.state().into());
        }
        all.done()
    }

    /// The containers that pass, newest first.
    pub(super) fn encoded_containers(&self, filter: Option<&v1::ContainerFilter>) -> Encoded {
        match filter.filter(|filter| **filter != v1::ContainerFilter::default()) {
            Some(filter) => self.encode_containers(Some(filter)),
            None => self.shared.lists.containers.get(self.store().changes(), || self.encode_containers(None)),
        }
    }

    fn encode_containers(&self, filter: Option<&v1::ContainerFilter>) -> Encoded {
        let mut containers = self.store().containers();
        if let Some(filter) = filter {
            containers.retain(|container| container.passes(filter));
        }
        containers.sort_by_key(|container| std::cmp::Reverse(container.created_at()));
        let mut all = Items::default();
        for container in containers {
            let unchanging = container.unchanging.get(|| container.listed().encode_to_vec());
            all.push(unchanging, CONTAINER_STATE, container.state().into());
        }
        all.done()
    }
}

impl Sandbox {
    /// What is listed of it but for its state.
    fn listed(&self) -> v1::PodSandbox {
        let record = self.record();
        let config = record.config.clone().unwrap_or_default();
        v1::PodSandbox {
            id: self.id().to_string(),
            metadata: config.metadata,
            state: 0,
            created_at: record.created_at,
            labels: config.labels,
            annotations: config.annotations,
            runtime_handler: record.runtime_handler.clone(),
        }
    }
}

impl Container {
    fn listed(&self) -> v1::Container {
        let record = self.record();
        let config = record.config.clone().unwrap_or_default();
        v1::Container {
            id: self.id().to_string(),
            pod_sandbox_id: record.sandbox_id.clone(),
            metadata: config.metadata,
            image: config.image,
            image_ref: record.image_id.clone(),
            state: 0,
            created_at: record.created_at,
            labels: config.labels,
            annotations: config.annotations,
            image_id: record.image_id.clone(),
        }
    }
}

/// The runtime service, whose lists are answered as bytes.
#[derive(Clone)]
pub struct Lists {
    cri: Cri,
    others: RuntimeServiceServer<RuntimeService>,
    max: usize,
}

impl Lists {
    /// The service over `cri`, for messages of at most `max` bytes.
    pub fn new(cri: Cri, max: usize) -> Self {
        let others = RuntimeServiceServer::new(RuntimeService::new(cri.clone()));
        let others = others.accept_compressed(CompressionEncoding::Gzip);
        Self { cri, others: others.max_decoding_message_size(max).max_encoding_message_size(max), max }
    }

    fn answer<Q: Message + Default + 'static>(
        &self,
        request: Request<Body>,
        list: fn(&Cri, Q) -> Encoded,
    ) -> <Self as Service<Request<Body>>>::Future {
        let (cri, max) = (self.cri.clone(), self.max);
        Box::pin(async move {
            let codec = ProstCodec::<Encoded, Q>::default();
            let grpc = Grpc::new(codec).max_decoding_message_size(max).max_encoding_message_size(max);
            let mut grpc = grpc.accept_compressed(CompressionEncoding::Gzip);
            let service = service_fn(|request: tonic::Request<Q>| {
                let answer = tonic::Response::new(list(&cri, request.into_inner()));
                std::future::ready(Ok::<_, tonic::Status>(answer))
            });
            Ok(grpc.unary(service, request).await)
        })
    }
}

impl NamedService for Lists {
    const NAME: &'static str = <RuntimeServiceServer<RuntimeService> as NamedService>::NAME;
}

impl Service<Request<Body>> for Lists {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match request.uri().path() {
            PODS => self
                .answer(request, |cri, asked: v1::ListPodSandboxRequest| cri.encoded_sandboxes(asked.filter.as_ref())),
            CONTAINERS => self
                .answer(request, |cri, asked: v1::ListContainersRequest| cri.encoded_containers(asked.filter.as_ref())),
            _ => self.others.call(request),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_piece_by_piece_reads_as_the_whole() {
        let pod = |id: &str, state: v1::PodSandboxState| v1::PodSandbox {
            id: id.to_owned(),
            metadata: Some(v1::PodSandboxMetadata { name: "x".repeat(200), ..Default::default() }),
            state: state.into(),
            created_at: 7,
            labels: [("a".to_owned(), "b".to_owned())].into(),
            ..Default::default()
        };
        let items = vec![pod("1", v1::PodSandboxState::SandboxReady), pod("2", v1::PodSandboxState::SandboxNotready)];
        let mut pods = Items::default();
        for item in &items {
            let unchanging = v1::PodSandbox { state: 0, ..item.clone() }.encode_to_vec();
            pods.push(&unchanging, POD_STATE, item.state);
        }
        let pods = pods.done();
        assert_eq!(pods.decoded::<v1::ListPodSandboxResponse>().expect("pods").items, items);
        assert_eq!(pods.encoded_len(), pods.encode_to_vec().len());
        let container = v1::Container { id: "c".into(), state: 3, image_id: "i".into(), ..Default::default() };
        let mut containers = Items::default();
        containers.push(&v1::Container { state: 0, ..container.clone() }.encode_to_vec(), CONTAINER_STATE, 3);
        let containers = containers.done();
        assert_eq!(containers.decoded::<v1::ListContainersResponse>().expect("containers").containers, [container]);
    }

    #[test]
    fn an_answer_is_good_until_something_changes() {
        let kept = Kept::default();
        let made = |text: &'static str| move || Encoded(Bytes::from_static(text.as_bytes()));
        assert_eq!(kept.get(0, made("a")), made("a")());
        assert_eq!(kept.get(0, made("b")), made("a")(), "nothing has changed");
        assert_eq!(kept.get(1, made("b")), made("b")());
    }
}
