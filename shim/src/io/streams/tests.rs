use std::fs::File;
use std::io::Read as _;

use gantry_proto::ttrpc::frame::{self, Header, Incoming};
use gantry_proto::ttrpc::{Context, Request, Response, Service, serve_connection};
use nix::unistd::pipe;
use prost::Message as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;

use super::*;

struct Shim(Streams);

impl Service for Shim {
    async fn call(&self, _: &str, _: &str, _: &[u8], _: &Context) -> Result<Vec<u8>, Status> {
        Err(Status::unimplemented("only streams"))
    }

    async fn stream(&self, _: &str, _: &str, stream: Stream) -> Result<(), Status> {
        let streams = self.0.clone();
        tokio::spawn(async move { streams.serve(stream).await }).await.expect("served")
    }
}

/// A client with one stream on a connection of its own, as containerd's CRI is one.
struct Peer(UnixStream);

/// What a client hears.
#[derive(Debug, PartialEq)]
enum Heard {
    Data(Vec<u8>),
    Room(i32),
    End,
    Refused(Code),
}

impl Peer {
    async fn connect(streams: &Streams, id: &str) -> Self {
        let (ours, theirs) = UnixStream::pair().expect("sockets");
        tokio::spawn(serve_connection(theirs, Arc::new(Shim(streams.clone()))));
        let mut peer = Self(ours);
        let request = Request { service: "s".into(), method: "Stream".into(), ..Request::default() };
        peer.write(frame::encode(1, frame::REQUEST, frame::REMOTE_OPEN, &request).expect("small")).await;
        peer.say(&StreamInit { id: id.to_owned() }).await;
        peer
    }

    async fn open(streams: &Streams, id: &str) -> Self {
        let mut peer = Self::connect(streams, id).await;
        let (_, first) = peer.frame().await;
        Any::decode(first.as_slice()).expect("a word that it is open");
        peer
    }

    async fn write(&mut self, bytes: Vec<u8>) {
        self.0.write_all(&bytes).await.expect("write");
    }

    async fn say<M: prost::Message + prost::Name>(&mut self, message: &M) {
        self.write(frame::encode(1, frame::DATA, 0, &any::pack(message)).expect("small")).await;
    }

    async fn data(&mut self, bytes: &[u8]) {
        self.say(&Data { data: bytes.to_vec().into() }).await;
    }

    async fn room(&mut self, update: i32) {
        self.say(&WindowUpdate { update }).await;
    }

    async fn last_word(&mut self) {
        let flags = frame::REMOTE_CLOSED | frame::NO_DATA;
        self.write(frame::encode(1, frame::DATA, flags, &()).expect("small")).await;
    }

    async fn frame(&mut self) -> (Header, Vec<u8>) {
        let read = tokio::time::timeout(Duration::from_secs(10), frame::read(&mut self.0)).await;
        match read.expect("in time").expect("read").expect("a frame") {
            Incoming::Frame(header, message) => (header, message),
            Incoming::Oversize(header) => panic!("{header:?}"),
        }
    }

    async fn hear(&mut self) -> Heard {
        let (header, message) = self.frame().await;
        if header.kind == frame::RESPONSE {
            let response = Response::decode(message.as_slice()).expect("response");
            return Heard::Refused(Status::from(response.status.expect("status")).code);
        }
        if header.flags & frame::REMOTE_CLOSED != 0 {
            assert_eq!((header.flags, message.len()), (frame::REMOTE_CLOSED | frame::NO_DATA, 0));
            return Heard::End;
        }
        let message = Any::decode(message.as_slice()).expect("any");
        match any::unpack::<Data>(&message) {
            Ok(data) => Heard::Data(data.data.to_vec()),
            Err(_) => Heard::Room(any::unpack::<WindowUpdate>(&message).expect("room").update),
        }
    }

    /// All bytes up to the end, with room for them.
    async fn hear_all(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            match self.hear().await {
                Heard::Data(data) => {
                    assert!(data.len() <= PIECE);
                    all.extend(data);
                }
                Heard::End => return all,
                other => panic!("{other:?}"),
            }
        }
    }
}

/// An open input, and the process's end of it.
fn input() -> (Arc<Input>, File) {
    let (read, write) = pipe().expect("pipe");
    let input = Arc::<Input>::default();
    input.open(write).expect("open");
    (input, File::from(read))
}

async fn read(process: File, count: usize) -> (File, Vec<u8>) {
    let reading = tokio::task::spawn_blocking(move || {
        let (mut process, mut bytes) = (process, vec![0; count]);
        process.read_exact(&mut bytes).expect("bytes");
        (process, bytes)
    });
    tokio::time::timeout(Duration::from_secs(10), reading).await.expect("in time").expect("read")
}

async fn is_at_its_end(process: File) {
    let reading = tokio::task::spawn_blocking(move || {
        let mut process = process;
        process.read(&mut [0]).expect("read")
    });
    assert_eq!(tokio::time::timeout(Duration::from_secs(10), reading).await.expect("in time").expect("read"), 0);
}

#[tokio::test]
async fn output_goes_as_far_as_there_is_room() {
    let streams = Streams::default();
    let mut peer = Peer::open(&streams, "c-stdout").await;
    let claim = streams.output("c-stdout").expect("claim");
    let bytes: Vec<u8> = (0..100_000_u32).map(|number| number.to_le_bytes()[0]).collect();
    let (sending, sent) = (claim.clone(), bytes.clone());
    let sending = tokio::spawn(async move {
        sending.send(&sent).await;
        sending.end();
    });
    for room in [10, 5] {
        peer.room(room).await;
        let Heard::Data(data) = peer.hear().await else { panic!("no data") };
        assert_eq!(i32::try_from(data.len()), Ok(room));
    }
    assert!(!sending.is_finished(), "the process waits");
    peer.room(1 << 20).await;
    assert_eq!(peer.hear_all().await, bytes[15..]);
    // Who comes late hears that there is no more.
    assert_eq!(Peer::open(&streams, "c-stdout").await.hear().await, Heard::End);
    drop((claim, sending.await));
    assert!(streams.lock().is_empty());
}

#[tokio::test]
async fn a_client_that_comes_again_gets_the_rest() {
    let streams = Streams::default();
    let claim = streams.output("c-stdout").expect("claim");
    let sending = claim.clone();
    tokio::spawn(async move { sending.send(b"hello world").await });
    let mut first = Peer::open(&streams, "c-stdout").await;
    first.room(6).await;
    assert_eq!(first.hear().await, Heard::Data(b"hello ".to_vec()));
    drop(first);
    let mut second = Peer::open(&streams, "c-stdout").await;
    second.room(1).await;
    assert_eq!(second.hear().await, Heard::Data(b"w".to_vec()));
    // Without having gone, a client loses its place to the next.
    let mut third = Peer::open(&streams, "c-stdout").await;
    assert_eq!(second.hear().await, Heard::Refused(Code::Aborted));
    third.room(100).await;
    assert_eq!(third.hear().await, Heard::Data(b"orld".to_vec()));
    claim.release();
    assert_eq!(third.hear().await, Heard::End);
}

#[tokio::test]
async fn input_is_asked_for_and_ends_with_the_clients_last_word() {
    let streams = Streams::default();
    let mut peer = Peer::open(&streams, "c-stdin").await;
    let (input, mut process) = input();
    let _claim = streams.input("c-stdin", input).expect("claim");
    let Heard::Room(mut room) = peer.hear().await else { panic!("no room") };
    assert_eq!(room, WINDOW);
    let mut left = 3 * usize::try_from(WINDOW).expect("small");
    while left > 0 {
        let piece = vec![b'x'; left.min(usize::try_from(room).expect("some")).min(PIECE)];
        peer.data(&piece).await;
        let (rest, bytes) = read(process, piece.len()).await;
        assert_eq!(bytes, piece);
        (process, left) = (rest, left - piece.len());
        room -= i32::try_from(piece.len()).expect("small");
        while room < i32::try_from(PIECE).expect("small") && left > 0 {
            let Heard::Room(more) = peer.hear().await else { panic!("no room") };
            room += more;
        }
    }
    peer.data(b"end").await;
    peer.last_word().await;
    let (process, bytes) = read(process, 3).await;
    assert_eq!(bytes, b"end");
    is_at_its_end(process).await;
}

#[tokio::test]
async fn a_client_that_is_gone_ends_no_input_before_it_is_to_be_closed() {
    let streams = Streams::default();
    let (input, process) = input();
    let claim = streams.input("c-stdin", input).expect("claim");
    let mut peer = Peer::open(&streams, "c-stdin").await;
    // What it sent before it went is passed on, also where it had to be made room for meanwhile.
    let piece = [b'1'; PIECE];
    peer.data(&piece).await;
    peer.data(&piece).await;
    drop(peer);
    let (process, bytes) = read(process, 2 * PIECE).await;
    assert_eq!(bytes, [piece, piece].concat());
    let mut peer = Peer::open(&streams, "c-stdin").await;
    peer.data(b"two").await;
    let (process, bytes) = read(process, 3).await;
    assert_eq!(bytes, b"two");
    claim.close_input();
    peer.data(b"six").await;
    let (process, bytes) = read(process, 3).await;
    assert_eq!(bytes, b"six", "it may still send");
    drop(peer);
    is_at_its_end(process).await;
    // Nobody is there to wait for.
    let (input, process) = self::input();
    streams.input("d-stdin", input).expect("claim").close_input();
    is_at_its_end(process).await;
}

#[tokio::test]
async fn a_last_word_may_come_before_the_process() {
    let streams = Streams::default();
    let mut peer = Peer::open(&streams, "c-stdin").await;
    peer.last_word().await;
    let (input, process) = input();
    let _claim = streams.input("c-stdin", input).expect("claim");
    is_at_its_end(process).await;
    // The process may have come first: then there was room for more.
    while peer.hear().await != Heard::End {}
    // Without a process the name is free once the client is gone, whatever its last words were.
    let mut peer = Peer::open(&streams, "d-stdin").await;
    peer.last_word().await;
    peer.last_word().await;
    drop(peer);
    let is_forgotten = async {
        while streams.lock().contains_key("d-stdin") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), is_forgotten).await.expect("forgotten");
}

#[tokio::test]
async fn clients_keep_to_the_protocol() {
    let streams = Streams::default();
    for id in ["", &"x".repeat(StreamUri::MAX_ID + 1)] {
        assert_eq!(Peer::connect(&streams, id).await.hear().await, Heard::Refused(Code::InvalidArgument));
    }
    let mut peer = Peer::open(&streams, "c-stdout").await;
    peer.data(b"too early").await;
    assert_eq!(peer.hear().await, Heard::Refused(Code::InvalidArgument));
    let mut peer = Peer::open(&streams, "c-stdout").await;
    peer.room(-1).await;
    assert_eq!(peer.hear().await, Heard::Refused(Code::InvalidArgument));
    let claim = streams.output("c-stdout").expect("claim");
    assert_eq!(streams.output("c-stdout").expect_err("taken").kind(), Kind::AlreadyExists);
    drop(claim);
    assert!(streams.lock().is_empty(), "what nobody has is forgotten");
    let all: Vec<_> = (0..MAX_SEATS).map(|number| streams.output(&number.to_string()).expect("claim")).collect();
    assert_eq!(Peer::connect(&streams, "more").await.hear().await, Heard::Refused(Code::ResourceExhausted));
    assert_eq!(streams.output("more").expect_err("too many").kind(), Kind::ResourceExhausted);
    drop(all);
}

#[tokio::test]
async fn a_process_that_does_not_read_is_sent_no_more_than_there_is_room_for() {
    let streams = Streams::default();
    let (input, process) = input();
    let _claim = streams.input("c-stdin", input).expect("claim");
    let mut peer = Peer::open(&streams, "c-stdin").await;
    assert_eq!(peer.hear().await, Heard::Room(WINDOW));
    // More than the pipe takes, and then more than may wait. The connection is read on all the same.
    let piece = frame::encode(1, frame::DATA, 0, &any::pack(&Data { data: vec![0; PIECE].into() })).expect("small");
    peer.write(piece.repeat(64)).await;
    let code = loop {
        if let Heard::Refused(code) = peer.hear().await {
            break code;
        }
    };
    assert_eq!(code, Code::ResourceExhausted);
    drop(process);
}
