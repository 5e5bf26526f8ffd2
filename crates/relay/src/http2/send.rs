//! What a driver sends: heads, bodies as far as the windows allow, trailers, resets.

use super::bounds;
use super::connection::{Connection, Role};
use super::frame::{self, Code, HEAD, PAYLOAD_MAX, flag, kind};
use super::heads;
use super::streams::{Side, Stream, UNKNOWN};
use crate::framing::Framing;
use crate::header::HeaderList;
use crate::hpack::Encoder;

/// A driver's mistake, a message that did not keep what its head said, or a stream that is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    #[error("more of a body than its head says")]
    TooMuch,
    #[error("less of a body than its head says")]
    TooLittle,
    #[error("not the turn of this part of a message")]
    OutOfTurn,
    #[error("the stream was reset")]
    Reset,
}

impl Connection {
    /// Writes a block, in as many frames as the peer wants it.
    #[inline]
    pub(super) fn write_block(
        &mut self,
        id: u32,
        last: bool,
        out: &mut Vec<u8>,
        fields: impl FnOnce(&mut Encoder, &mut Vec<u8>),
    ) {
        let at = out.len();
        out.extend_from_slice(&[0; HEAD]);
        self.encoder.begin(out);
        fields(&mut self.encoder, out);
        let len = out.len() - at - HEAD;
        let ends = if last { flag::END_STREAM } else { 0 };
        if len <= PAYLOAD_MAX as usize {
            let head = frame::head_bytes(len, kind::HEADERS, ends | flag::END_HEADERS, id);
            put(out, at, head);
            return;
        }
        let block = out.split_off(at + HEAD);
        let mut pieces = block.chunks(PAYLOAD_MAX as usize).peekable();
        let (mut kind, mut flags) = (kind::HEADERS, ends);
        out.truncate(at);
        while let Some(piece) = pieces.next() {
            if pieces.peek().is_none() {
                flags |= flag::END_HEADERS;
            }
            frame::head(piece.len(), kind, flags, id, out);
            out.extend_from_slice(piece);
            (kind, flags) = (kind::CONTINUATION, 0);
        }
    }

    /// Notes that the head is written. `last`: nothing follows it.
    pub(super) fn begun(&mut self, stream: Stream, framing: Framing, last: bool) {
        if let Some(slot) = self.streams.get(stream) {
            slot.sending = if last { Side::Ended } else { Side::Body };
            slot.to_send = match framing {
                Framing::Length(length) => length,
                Framing::None => 0,
                Framing::Chunked => UNKNOWN,
            };
        }
    }

    /// Writes as much of `data` as windows and buffer take, and tells how much. `last`: nothing follows it.
    pub(super) fn body(
        &mut self,
        stream: Stream,
        data: &[u8],
        last: bool,
        out: &mut Vec<u8>,
    ) -> Result<usize, WriteError> {
        let Some(slot) = self.streams.get(stream) else {
            return Err(WriteError::Reset);
        };
        if slot.reset {
            return Err(WriteError::Reset);
        }
        match slot.sending {
            Side::Body => {}
            // A head that had to be the last: what it promised nothing of may end once more.
            Side::Ended if data.is_empty() && last => return Ok(0),
            Side::Ended if slot.to_send == 0 => return Err(WriteError::TooMuch),
            Side::Head | Side::Ended => return Err(WriteError::OutOfTurn),
        }
        let len = data.len() as u64;
        if slot.to_send != UNKNOWN {
            if len > slot.to_send {
                return Err(WriteError::TooMuch);
            }
            if last && len < slot.to_send {
                return Err(WriteError::TooLittle);
            }
        }
        let room = self
            .config
            .limits
            .send_buffer_bytes
            .saturating_sub(out.len());
        let window = slot.send_window.min(self.send_window).max(0) as usize;
        let sent = data.len().min(window).min(room);
        let whole = sent == data.len();
        if sent > 0 {
            slot.send_window -= sent as i32;
            self.send_window -= sent as i32;
            if slot.to_send != UNKNOWN {
                slot.to_send -= sent as u64;
            }
        }
        slot.wants = !whole;
        if whole && last {
            slot.sending = Side::Ended;
        }
        let waits = !whole && slot.send_window > 0;
        let most = self.peer.max_frame.min(FRAME_MAX) as usize;
        let (taken, _) = data.split_at_checked(sent).unwrap_or_default();
        let mut pieces = taken.chunks(most).peekable();
        while let Some(piece) = pieces.next() {
            let ends = whole && last && pieces.peek().is_none();
            frame::head(piece.len(), kind::DATA, u8::from(ends), stream.id(), out);
            out.extend_from_slice(piece);
        }
        if sent == 0 && whole && last {
            frame::head(0, kind::DATA, flag::END_STREAM, stream.id(), out);
        }
        if whole || sent >= bounds::PROGRESS_BYTES_MIN {
            self.calm.earn(bounds::POINTS_PER_DATA);
        }
        if waits {
            self.streams.enqueue(stream);
        }
        Ok(sent)
    }

    /// Ends the message, with trailers if it has some.
    pub(super) fn end(
        &mut self,
        stream: Stream,
        trailers: Option<&HeaderList>,
        out: &mut Vec<u8>,
    ) -> Result<(), WriteError> {
        let trailers = trailers.filter(|list| heads::has_trailers(list));
        let Some(list) = trailers else {
            return self.body(stream, &[], true, out).map(|_| ());
        };
        let slot = self.streams.get(stream).filter(|slot| !slot.reset);
        let slot = slot.ok_or(WriteError::Reset)?;
        match slot.sending {
            Side::Body if slot.to_send == 0 || slot.to_send == UNKNOWN => {}
            Side::Body => return Err(WriteError::TooLittle),
            Side::Ended if slot.to_send == 0 => return Ok(()), // a message without body has no trailers
            Side::Head | Side::Ended => return Err(WriteError::OutOfTurn),
        }
        slot.sending = Side::Ended;
        slot.wants = false;
        self.write_block(stream.id(), true, out, |encoder, out| {
            heads::write_trailers(list, encoder, out);
        });
        Ok(())
    }

    /// Whose turn it is to write, if there is room.
    pub(super) fn writable(&mut self, out: &[u8]) -> Option<Stream> {
        if self.send_window <= 0 || out.len() >= self.config.limits.send_buffer_bytes {
            return None;
        }
        loop {
            let stream = self.streams.dequeue()?;
            let slot = self.streams.look(stream);
            if slot.is_some_and(|slot| slot.wants && slot.send_window > 0) {
                return Some(stream);
            }
        }
    }

    /// Streams that wait for a window, or for room.
    pub(super) fn stalled(&self) -> usize {
        self.streams.all().filter(|(_, slot)| slot.wants).count()
    }

    /// After the windows of all streams have changed.
    pub(super) fn wake_all(&mut self) {
        let ready =
            |slot: &super::streams::Slot| slot.wants && slot.send_window > 0 && !slot.queued;
        let woken: Vec<Stream> = self
            .streams
            .all()
            .filter(|(_, slot)| ready(slot))
            .map(|(stream, _)| stream)
            .collect();
        for stream in woken {
            self.streams.enqueue(stream);
        }
    }

    /// Lets go of a stream; what of it is not complete is reset.
    pub(super) fn release(&mut self, stream: Stream, code: Option<Code>, out: &mut Vec<u8>) {
        let Some(slot) = self.streams.get(stream) else {
            return;
        };
        let sent = slot.sending == Side::Ended;
        let complete = sent && slot.receiving == Side::Ended;
        if !complete && !slot.reset && !self.broken {
            slot.reset = true;
            self.calm.expect_late(self.role == Role::Client);
            let answered = sent && self.role == Role::Server;
            let code = code.unwrap_or(if answered {
                Code::NO_ERROR
            } else {
                Code::CANCEL
            });
            frame::reset(stream.id(), code, out);
        }
        self.let_go(stream);
        if !self.broken {
            self.return_credit(out);
        }
    }
}

/// Overwrites a frame's head.
fn put(out: &mut [u8], at: usize, head: [u8; HEAD]) {
    if let Some(place) = out.get_mut(at..at + HEAD) {
        place.copy_from_slice(&head);
    }
}

/// Larger ones would hold up other streams.
const FRAME_MAX: u32 = PAYLOAD_MAX;
