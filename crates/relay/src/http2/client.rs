//! The side that sends requests, many at once.

use std::sync::Arc;

use super::batch::Batch;
use super::connection::{Broken, Config, Connection, Phase, Ping, Role};
use super::frame::{Code, STREAM_ID_MAX};
use super::heads;
use super::send::WriteError;
use super::streams::{Side, Slot, Stream};
use crate::checked::{Checked, Method};
use crate::header::{Field, HeaderList};
use crate::pool::Pool;

/// One connection to an upstream.
#[derive(Debug)]
pub struct Client(Connection);

/// Why no stream can be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unopened {
    #[error("as many streams as the peer takes are open")]
    Full,
    #[error("the connection ends")]
    Ending,
    #[error("every stream id was used")]
    Exhausted,
}

impl Client {
    /// Greets the peer; requests may follow at once.
    pub fn new(config: &Arc<Config>, out: &mut Vec<u8>) -> Self {
        Self(Connection::new(Role::Client, config, out))
    }

    /// As [`super::Server::receive`]. After an error what came before it in the batch still holds.
    ///
    /// # Errors
    /// [`Broken`]: every stream is lost, and the connection ends once `out`, with its GOAWAY, is written.
    pub fn receive(
        &mut self,
        input: &[u8],
        now_s: u32,
        batch: &mut Batch,
        pool: &mut Pool,
        out: &mut Vec<u8>,
    ) -> Result<(), Broken> {
        self.0.receive(input, now_s, batch, pool, out)
    }

    /// How many streams the peer takes at once, once it has told.
    pub fn peer_streams(&self) -> Option<u32> {
        self.0.greeted.then_some(self.0.peer.max_streams)
    }

    /// How many streams may be opened now.
    pub fn room(&self) -> u32 {
        let connection = &self.0;
        if connection.broken || connection.peer_leaves.is_some() || connection.is_left() {
            return 0;
        }
        let ids = STREAM_ID_MAX.saturating_sub(connection.next_own) / 2;
        let max = connection.streams_max().min(connection.peer.max_streams);
        max.saturating_sub(connection.streams.live()).min(ids)
    }

    /// Writes the head of the request; `extra` stands behind its own fields.
    ///
    /// # Errors
    /// [`Unopened`]: to be sent on another connection.
    pub fn open<'e>(
        &mut self,
        request: &Checked,
        extra: impl IntoIterator<Item = &'e Field>,
        out: &mut Vec<u8>,
    ) -> Result<Stream, Unopened> {
        let connection = &mut self.0;
        if connection.broken || connection.peer_leaves.is_some() || connection.is_left() {
            return Err(Unopened::Ending);
        }
        let max = connection.streams_max().min(connection.peer.max_streams);
        if connection.streams.live() >= max {
            return Err(Unopened::Full);
        }
        let id = connection.next_own;
        if id > STREAM_ID_MAX {
            return Err(Unopened::Exhausted);
        }
        connection.next_own += 2;
        connection.resets.begin();
        let (window, own) = (connection.peer.initial_window, connection.stream_window);
        let mut slot = Slot::new(id, window, own);
        slot.head = request.method() == Method::Head;
        let stream = connection.streams.insert(slot);
        let last = request.framing().is_empty();
        let secure = connection.config.secure;
        connection.write_block(id, last, out, |encoder, out| {
            heads::write_request(request, extra, secure, encoder, out);
        });
        connection.begun(stream, request.framing(), last);
        Ok(stream)
    }

    /// A piece of the request's body: tells how much of it the windows and `out` took. Once it is not all, the rest is
    /// offered again when [`Client::writable`] names the stream. `last`: nothing follows, trailers neither.
    ///
    /// # Errors
    /// [`WriteError`]: the request can't be completed; [`Client::release`] makes the peer see it.
    pub fn body(
        &mut self,
        stream: Stream,
        data: &[u8],
        last: bool,
        out: &mut Vec<u8>,
    ) -> Result<usize, WriteError> {
        self.0.body(stream, data, last, out)
    }

    /// Ends the request, all of its body sent.
    ///
    /// # Errors
    /// As [`Client::body`].
    pub fn end(
        &mut self,
        stream: Stream,
        trailers: Option<&HeaderList>,
        out: &mut Vec<u8>,
    ) -> Result<(), WriteError> {
        self.0.end(stream, trailers, out)
    }

    /// As [`super::Server::writable`].
    pub fn writable(&mut self, out: &[u8]) -> Option<Stream> {
        self.0.writable(out)
    }

    /// How many streams wait for the peer to take more.
    pub fn stalled(&self) -> usize {
        self.0.stalled()
    }

    /// So many bytes of an answer's body are out of our hands: the peer may send as many more.
    pub fn consumed(&mut self, stream: Stream, len: usize, out: &mut Vec<u8>) {
        self.0.consumed(stream, len, out);
    }

    /// Whether request and answer are complete.
    pub fn is_complete(&self, stream: Stream) -> bool {
        let slot = self.0.streams.look(stream);
        slot.is_some_and(|s| s.sending == Side::Ended && s.receiving == Side::Ended && !s.reset)
    }

    /// Lets go of a stream. To be called once for each that was opened; what is not complete is cancelled.
    pub fn release(&mut self, stream: Stream, out: &mut Vec<u8>) {
        self.0.release(stream, None, out);
    }

    /// As [`Client::release`], saying why.
    pub fn reset(&mut self, stream: Stream, code: Code, out: &mut Vec<u8>) {
        self.0.release(stream, Some(code), out);
    }

    /// Opens nothing more, and says so.
    pub fn drain(&mut self, out: &mut Vec<u8>) {
        self.0.leave_now(out);
    }

    /// Nothing more will come of this connection: one side said goodbye, and every stream is let go of.
    pub fn is_done(&self) -> bool {
        let ends = self.0.is_left() || self.0.peer_leaves.is_some();
        self.0.broken || ends && self.0.streams.live() == 0
    }

    pub fn ping(&mut self, out: &mut Vec<u8>) {
        self.0.ping(Ping::Alive, out);
    }

    /// Streams not let go of.
    pub fn streams(&self) -> u32 {
        self.0.streams.live()
    }

    pub fn phase(&self) -> Phase {
        self.0.phase()
    }

    /// Frames that the peer has begun, modulo 2³²: whether it moves on.
    pub fn frames(&self) -> u32 {
        self.0.frames
    }

    /// Gives back what an idle connection needs no memory for.
    pub fn rest(&mut self) {
        self.0.streams.rest();
    }

    /// Memory held beside the struct itself.
    pub fn held_bytes(&self) -> usize {
        self.0.held_bytes()
    }

    /// As [`super::Server::receive_window`].
    pub fn receive_window(&self) -> (i64, i64) {
        self.0.receive_credit()
    }

    #[cfg(test)]
    pub(super) fn skip_to(&mut self, id: u32) {
        self.0.next_own = id;
    }
}
