//! The side that takes requests.

use std::sync::Arc;

use super::batch::Batch;
use super::connection::{Broken, Config, Connection, Phase, Ping, Role};
use super::frame::{self, Code, kind};
use super::heads;
use super::send::WriteError;
use super::streams::{Side, Stream};
use crate::framing::Framing;
use crate::header::HeaderList;
use crate::pool::Pool;
use crate::response::ResponseHead;
use crate::verdict::Reply;

/// One connection from downstream.
#[derive(Debug)]
pub struct Server(Connection);

impl Server {
    /// Greets the peer.
    pub fn new(config: &Arc<Config>, out: &mut Vec<u8>) -> Self {
        Self(Connection::new(Role::Server, config, out))
    }

    /// Takes all of `input`, which is what one read brought, and fills `batch` anew; what was opened and reset in it is not
    /// there. `now_s`: seconds of any clock that goes forward. Not to be called while `out` holds more than
    /// twice [`crate::Limits::send_buffer_bytes`], of which bodies fill one half: whoever reads none of our replies is not listened to.
    ///
    /// # Errors
    /// [`Broken`]: the batch is empty, and the connection ends once `out`, with its GOAWAY, is written.
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

    /// Tells a caller who waits for it to send the body: once, and not after the answer has begun.
    pub fn proceed(&mut self, stream: Stream, out: &mut Vec<u8>) {
        let Some(slot) = self.0.streams.get(stream) else {
            return;
        };
        let waits = slot.sending == Side::Head && slot.receiving == Side::Body;
        if std::mem::take(&mut slot.continues) && waits {
            let id = stream.id();
            self.0
                .write_block(id, false, out, |encoder, out| encoder.status(100, out));
        }
    }

    /// Begins the answer, and ends it where no body can follow.
    ///
    /// # Errors
    /// [`WriteError::OutOfTurn`]: one has begun, or it is interim. [`WriteError::Reset`]: nobody waits for it.
    pub fn respond(
        &mut self,
        stream: Stream,
        head: &ResponseHead,
        out: &mut Vec<u8>,
    ) -> Result<(), WriteError> {
        let asked_head = self.unanswered(stream)?;
        if !(200..1000).contains(&head.status) {
            return Err(WriteError::OutOfTurn);
        }
        let bodyless = asked_head || head.status == 204 || head.status == 304;
        let framing = if bodyless {
            Framing::None
        } else {
            head.framing()
        };
        let last = framing.is_empty();
        self.0.write_block(stream.id(), last, out, |encoder, out| {
            heads::write_answer(head, encoder, out);
        });
        self.0.begun(stream, framing, last);
        Ok(())
    }

    /// An answer of our own, whole, with its reason as text where the windows have room for it. To gRPC it looks
    /// different: then a driver makes the head itself.
    ///
    /// # Errors
    /// As [`Server::respond`].
    pub fn reply(
        &mut self,
        stream: Stream,
        reply: &Reply,
        out: &mut Vec<u8>,
    ) -> Result<(), WriteError> {
        let asked_head = self.unanswered(stream)?;
        let text = reply.reason.map_or("", |reason| reason.as_str());
        let window = self
            .0
            .streams
            .look(stream)
            .map_or(0, |slot| slot.send_window);
        let fits = text.len() as i64 <= i64::from(window.min(self.0.send_window));
        let text = if fits { text } else { "" };
        let last = asked_head || text.is_empty();
        self.0.write_block(stream.id(), last, out, |encoder, out| {
            heads::write_reply(reply, text, encoder, out);
        });
        self.0.begun(stream, Framing::None, true);
        if !last {
            let len = text.len() as i32;
            self.0.send_window -= len;
            if let Some(slot) = self.0.streams.get(stream) {
                slot.send_window -= len;
            }
            frame::head(
                text.len(),
                kind::DATA,
                frame::flag::END_STREAM,
                stream.id(),
                out,
            );
            out.extend_from_slice(text.as_bytes());
        }
        Ok(())
    }

    /// Whether it was asked for with HEAD.
    fn unanswered(&mut self, stream: Stream) -> Result<bool, WriteError> {
        let slot = self.0.streams.get(stream).filter(|slot| !slot.reset);
        let slot = slot.ok_or(WriteError::Reset)?;
        if slot.sending != Side::Head {
            return Err(WriteError::OutOfTurn);
        }
        slot.continues = false;
        Ok(slot.head)
    }

    /// A piece of the answer's body: tells how much of it the windows and `out` took. Once it is not all, the rest is
    /// offered again when [`Server::writable`] names the stream. `last`: nothing follows, trailers neither.
    ///
    /// # Errors
    /// [`WriteError`]: the answer can't be completed; [`Server::reset`] makes the peer see it.
    pub fn body(
        &mut self,
        stream: Stream,
        data: &[u8],
        last: bool,
        out: &mut Vec<u8>,
    ) -> Result<usize, WriteError> {
        self.0.body(stream, data, last, out)
    }

    /// Ends the answer, all of its body sent.
    ///
    /// # Errors
    /// As [`Server::body`].
    pub fn end(
        &mut self,
        stream: Stream,
        trailers: Option<&HeaderList>,
        out: &mut Vec<u8>,
    ) -> Result<(), WriteError> {
        self.0.end(stream, trailers, out)
    }

    /// The next stream that could not send all it was offered and now can send some. To be asked until it names none,
    /// after each batch and each flush.
    pub fn writable(&mut self, out: &[u8]) -> Option<Stream> {
        self.0.writable(out)
    }

    /// How many streams wait for the peer to take more: a driver gives them so long and no longer.
    pub fn stalled(&self) -> usize {
        self.0.stalled()
    }

    /// So many bytes of a request's body are out of our hands: the peer may send as many more.
    pub fn consumed(&mut self, stream: Stream, len: usize, out: &mut Vec<u8>) {
        self.0.consumed(stream, len, out);
    }

    /// Lets go of a stream. To be called once for each that an event has named, complete, reset or not; what is not
    /// complete is cancelled.
    pub fn release(&mut self, stream: Stream, out: &mut Vec<u8>) {
        self.0.release(stream, None, out);
    }

    /// As [`Server::release`], saying why.
    pub fn reset(&mut self, stream: Stream, code: Code, out: &mut Vec<u8>) {
        self.0.release(stream, Some(code), out);
    }

    /// Begins to say goodbye. The peer's answer, or [`Server::drain_now`], settles which streams are still taken.
    pub fn drain(&mut self, out: &mut Vec<u8>) {
        self.0.leave(out);
    }

    /// Takes no further stream.
    pub fn drain_now(&mut self, out: &mut Vec<u8>) {
        self.0.leave_now(out);
    }

    /// Nothing more will come of this connection: said goodbye, and every stream let go of.
    pub fn is_done(&self) -> bool {
        self.0.broken || self.0.is_left() && self.0.streams.live() == 0
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

    /// Bytes that the peer may send now, and those that are consumed and not yet given back: together the whole window
    /// once nothing is under way.
    pub fn receive_window(&self) -> (i64, i64) {
        self.0.receive_credit()
    }
}
