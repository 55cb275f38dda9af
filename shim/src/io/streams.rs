//! Standard streams that clients open at the shim's own socket, by name: `containerd.services.streaming.v1.Streaming`.
//!
//! A client opens a stream before it asks for the process that has it, and again under the same name when it comes back. So
//! each name has a seat, in which sits at most one client, the newest, and at most one stream of a process. Bytes are
//! messages that the receiving end makes room for: what nobody makes room for stays in the process's pipe, and then the
//! process waits, as with a FIFO.
//!
//! A client's last word on its way in ends the process's input. A client that is gone without one may come back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gantry_proto::any;
use gantry_proto::containerd::services::streaming::v1::StreamInit;
use gantry_proto::containerd::types::transfer::{Data, WindowUpdate};
use gantry_proto::status::{Code, Status};
use gantry_proto::stdio::StreamUri;
use gantry_proto::ttrpc::{Outlet, Stream};
use prost_types::Any;
use tokio::sync::watch;

use crate::error::Kind;
use crate::io::input::Input;
use crate::{Error, Result};

/// Bytes of one message at most. Clients in Go count what they have taken by the pieces that they read at once, which are of
/// this size: of larger ones they would think that there is room left.
pub const PIECE: usize = 32 << 10;
/// Room that a client is given ahead.
const WINDOW: i32 = 64 << 10;
/// Names there may be at once.
const MAX_SEATS: usize = 1024;
/// How long a client may take to say which stream it opens.
const FIRST_WORD: Duration = Duration::from_secs(10);

/// The streams of all processes. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Streams {
    seats: Arc<Mutex<HashMap<String, Arc<Seat>>>>,
}

#[derive(Debug, Default)]
struct Seat {
    state: watch::Sender<State>,
}

#[derive(Debug, Default)]
struct State {
    client: Option<Client>,
    /// How many clients there have been.
    clients: u64,
    process: Process,
}

#[derive(Debug)]
struct Client {
    number: u64,
    outlet: Outlet,
    /// Bytes that it has room for.
    room: i64,
}

/// What a process has to do with a stream.
#[derive(Debug, Default)]
enum Process {
    /// None has it yet.
    #[default]
    Expected,
    /// Its output.
    Writes,
    /// Its input. `closing`: the client asked for the end, which comes after what it has sent.
    Reads { input: Arc<Input>, closing: bool },
    /// There will be no more bytes.
    Ended,
}

/// A process's part of a stream. Released when it is dropped.
#[derive(Debug)]
pub struct Claim {
    streams: Streams,
    id: String,
    seat: Arc<Seat>,
}

impl Streams {
    /// Takes a stream for a process's output.
    ///
    /// # Errors
    /// `AlreadyExists` where another process has it.
    pub fn output(&self, id: &str) -> Result<Arc<Claim>> {
        self.claim(id, Process::Writes)
    }

    /// Takes a stream for a process's input.
    ///
    /// # Errors
    /// As [`Streams::output`].
    pub fn input(&self, id: &str, input: Arc<Input>) -> Result<Arc<Claim>> {
        self.claim(id, Process::Reads { input, closing: false })
    }

    fn claim(&self, id: &str, process: Process) -> Result<Arc<Claim>> {
        let seat = self.seat(id).map_err(|status| Error::new(Kind::ResourceExhausted, status.message))?;
        let is_free = seat.state.send_if_modified(|state| {
            let is_free = matches!(state.process, Process::Expected);
            if is_free {
                state.process = process;
            }
            is_free
        });
        if !is_free {
            return Err(Error::already_exists(format!("stream {id:?}: another process has it")));
        }
        Ok(Arc::new(Claim { streams: self.clone(), id: id.to_owned(), seat }))
    }

    fn seat(&self, id: &str) -> Result<Arc<Seat>, Status> {
        let mut seats = self.lock();
        if !seats.contains_key(id) && seats.len() >= MAX_SEATS {
            return Err(Status::new(Code::ResourceExhausted, format!("stream {id:?}: there are {MAX_SEATS} others")));
        }
        Ok(seats.entry(id.to_owned()).or_default().clone())
    }

    /// Forgets a name that neither a client nor a process has.
    fn forget_unused(&self, id: &str) {
        let mut seats = self.lock();
        let is_unused = |seat: &Arc<Seat>| {
            let state = seat.state.borrow();
            state.client.is_none() && matches!(state.process, Process::Expected)
        };
        if seats.get(id).is_some_and(is_unused) {
            seats.remove(id);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Seat>>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves a stream that a client opens, to its end.
    ///
    /// # Errors
    /// Where the client does not keep to the protocol, or another takes its place.
    pub async fn serve(&self, mut stream: Stream) -> Result<(), Status> {
        let first = tokio::time::timeout(FIRST_WORD, stream.receive::<Any>()).await;
        let first = first.map_err(|_| Status::invalid("stream: its first message, which names it, did not come"))?;
        let first = first?.ok_or_else(|| Status::invalid("stream: ended before its first message, which names it"))?;
        let StreamInit { id } = any::unpack(&first).map_err(|error| Status::invalid(format!("stream: {error}")))?;
        if id.is_empty() || id.len() > StreamUri::MAX_ID {
            return Err(Status::invalid(format!("stream: id: must have 1 to {} bytes", StreamUri::MAX_ID)));
        }
        let mut seated = self.sit_down(&id, stream.outlet().clone())?;
        // The client knows by this that a process can be told the name.
        stream.outlet().send(&any::pack(&())).await?;
        seated.serve(&mut stream).await
    }

    fn sit_down(&self, id: &str, outlet: Outlet) -> Result<Seated, Status> {
        let seat = self.seat(id)?;
        let mut number = 0;
        seat.state.send_modify(|state| {
            state.clients += 1;
            number = state.clients;
            state.client = Some(Client { number, outlet, room: 0 });
        });
        Ok(Seated { streams: self.clone(), id: id.to_owned(), seat, number, granted: 0 })
    }
}

/// A client in its seat, until dropped.
struct Seated {
    streams: Streams,
    id: String,
    seat: Arc<Seat>,
    number: u64,
    /// Room that it has been given and not used.
    granted: i32,
}

/// What a client has to look after next.
enum Turn {
    Message(Option<Any>),
    /// A process has taken the stream for its input.
    Input(Arc<Input>),
    Over,
}

impl Seated {
    async fn serve(&mut self, stream: &mut Stream) -> Result<(), Status> {
        let (mut input, mut has_ended) = (None::<Arc<Input>>, false);
        loop {
            let is_known = input.is_some();
            let turn = tokio::select! {
                message = stream.receive::<Any>() => Turn::Message(message?),
                turn = self.turn(is_known) => turn,
            };
            match turn {
                Turn::Input(taken) if has_ended => {
                    taken.close();
                    return Ok(());
                }
                Turn::Input(taken) => {
                    input = Some(taken);
                    self.make_room().await;
                }
                Turn::Message(Some(message)) if any::is::<WindowUpdate>(&message) => self.grant(&message)?,
                Turn::Message(Some(message)) => match &input {
                    Some(input) => {
                        let data: Data = any::unpack(&message).map_err(|error| self.broken(&error.to_string()))?;
                        if !self.pass_on(input, &data.data).await {
                            return self.over();
                        }
                        self.granted = self.granted.saturating_sub(i32::try_from(data.data.len()).unwrap_or(i32::MAX));
                        self.make_room().await;
                    }
                    None => return Err(self.broken("bytes came before there was room for any, or for an output")),
                },
                Turn::Message(None) => match (&input, &self.seat.state.borrow().process) {
                    (Some(input), _) => {
                        input.close();
                        return Ok(());
                    }
                    // The end may be all that a process is to read.
                    (None, Process::Expected) => has_ended = true,
                    // Nothing more is wanted of an output.
                    (None, _) => return Ok(()),
                },
                Turn::Over => return self.over(),
            }
        }
    }

    /// Resolves when the seat's state asks for something.
    async fn turn(&self, input_is_known: bool) -> Turn {
        let mut seen = self.seat.state.subscribe();
        let asks = |state: &State| {
            !self.sits(state)
                || match &state.process {
                    Process::Ended => true,
                    Process::Reads { .. } => !input_is_known,
                    Process::Expected | Process::Writes => false,
                }
        };
        match seen.wait_for(asks).await.as_deref() {
            Ok(state) if self.sits(state) => match &state.process {
                Process::Reads { input, .. } => Turn::Input(input.clone()),
                _ => Turn::Over,
            },
            _ => Turn::Over,
        }
    }

    fn sits(&self, state: &State) -> bool {
        state.client.as_ref().is_some_and(|client| client.number == self.number)
    }

    /// Writes to a process that may not read for long; `false` where the seat is somebody else's meanwhile, or the process is
    /// gone. What a process that does not read any more is sent is thrown away.
    async fn pass_on(&self, input: &Input, bytes: &[u8]) -> bool {
        tokio::select! {
            _ = input.write(bytes) => true,
            _ = self.turn(true) => false,
        }
    }

    /// Gives the client of an input room for more.
    async fn make_room(&mut self) {
        if self.granted > WINDOW / 2 {
            return;
        }
        let update = WINDOW - self.granted.max(0);
        self.granted += update;
        let outlet =
            self.seat.state.borrow().client.as_ref().filter(|it| it.number == self.number).map(|it| it.outlet.clone());
        // One that is gone, or that somebody else has followed, has no use for it; what it has sent is passed on all the same.
        if let Some(outlet) = outlet {
            let _ = outlet.send(&any::pack(&WindowUpdate { update })).await;
        }
    }

    /// The client of an output has room for more.
    fn grant(&self, message: &Any) -> Result<(), Status> {
        let WindowUpdate { update } = any::unpack(message).map_err(|error| self.broken(&error.to_string()))?;
        if update < 0 {
            return Err(self.broken("a window update is negative"));
        }
        self.seat.state.send_if_modified(|state| match &mut state.client {
            Some(client) if client.number == self.number => {
                client.room = client.room.saturating_add(i64::from(update));
                true
            }
            _ => false,
        });
        Ok(())
    }

    /// The end of what the process had to say, or of this client's turn.
    fn over(&self) -> Result<(), Status> {
        match self.sits(&self.seat.state.borrow()) {
            true => Ok(()),
            false => Err(Status::new(Code::Aborted, format!("stream {:?}: another client has taken it", self.id))),
        }
    }

    fn broken(&self, why: &str) -> Status {
        Status::invalid(format!("stream {:?}: {why}", self.id))
    }
}

impl Drop for Seated {
    fn drop(&mut self) {
        self.seat.state.send_if_modified(|state| {
            let sits = state.client.as_ref().is_some_and(|client| client.number == self.number);
            if sits {
                state.client = None;
                if let Process::Reads { input, closing: true } = &state.process {
                    input.close();
                }
            }
            sits
        });
        self.streams.forget_unused(&self.id);
    }
}

impl Claim {
    /// Sends bytes to the client, once there is one that has room for them.
    pub async fn send(&self, mut bytes: &[u8]) {
        let mut seen = self.seat.state.subscribe();
        while !bytes.is_empty() {
            let has_room = |state: &State| {
                matches!(state.process, Process::Ended) || state.client.as_ref().is_some_and(|client| client.room > 0)
            };
            let (outlet, number, room) = match seen.wait_for(has_room).await.as_deref() {
                Ok(State { client: Some(it), process: Process::Writes, .. }) => (it.outlet.clone(), it.number, it.room),
                _ => return,
            };
            let count = usize::try_from(room).unwrap_or(PIECE).min(PIECE).min(bytes.len());
            let data = any::pack(&Data { data: bytes[..count].to_vec().into() });
            let is_sent = outlet.send(&data).await.is_ok();
            if is_sent {
                bytes = &bytes[count..];
            }
            self.seat.state.send_if_modified(|state| {
                if let Some(client) = state.client.as_mut().filter(|client| client.number == number) {
                    // One that is about to leave its seat is sent nothing more.
                    client.room = if is_sent { client.room - i64::try_from(count).unwrap_or(0) } else { 0 };
                }
                false
            });
        }
    }

    /// The client is told that there are no more bytes, whenever it comes.
    pub fn end(&self) {
        self.seat.state.send_modify(|state| state.process = Process::Ended);
    }

    /// Ends the process's input, after what a client that is there has sent: its last word, or its going, is the end.
    pub fn close_input(&self) {
        self.seat.state.send_modify(|state| {
            if let Process::Reads { input, closing } = &mut state.process {
                *closing = true;
                if state.client.is_none() {
                    input.close();
                }
            }
        });
    }

    /// Gives the name back: the process is gone, and a client that is there sees the end.
    pub fn release(&self) {
        let mut seats = self.streams.lock();
        if seats.get(&self.id).is_some_and(|seat| Arc::ptr_eq(seat, &self.seat)) {
            seats.remove(&self.id);
        }
        drop(seats);
        self.end();
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests;
