//! Frames, one after the other, as they come in.

use super::batch::{BadStream, Batch, Event, Why};
use super::bounds::Bound;
use super::connection::{Broken, Connection, Role};
use super::frame::{self, Code, FrameHead, HEAD, PAYLOAD_MAX, PREFACE, flag, kind};
use super::streams::{Side, Stream};
use crate::pool::Pool;

mod control;
mod data;
mod lists;

use self::data::Data;
pub(super) use self::lists::Block;

/// Where in the stream of bytes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// So many bytes of the preface have come.
    Preface(u8),
    Head,
    /// A frame that is taken whole.
    Payload(FrameHead),
    Data(Data),
    Skip(u32),
}

impl Connection {
    pub(super) fn read(
        &mut self,
        input: &[u8],
        batch: &mut Batch,
        pool: &mut Pool,
        out: &mut Vec<u8>,
    ) -> Result<(), Broken> {
        let mut rest = input;
        loop {
            match self.place {
                Place::Head => {
                    let Some(head) = self.take_head(&mut rest) else {
                        return Ok(());
                    };
                    self.begin_frame(head, batch, out)?;
                }
                Place::Payload(head) => {
                    let len = head.len as usize;
                    if self.partial.is_empty()
                        && let Some((payload, after)) = rest.split_at_checked(len)
                    {
                        rest = after;
                        self.place = Place::Head;
                        self.frame(head, payload, batch, pool, out)?;
                        continue;
                    }
                    if !self.collect(len, &mut rest, pool) {
                        return Ok(());
                    }
                    let payload = std::mem::take(&mut self.partial);
                    self.place = Place::Head;
                    let taken = self.frame(head, &payload, batch, pool, out);
                    pool.put_buffer(payload);
                    taken?;
                }
                Place::Data(data) => {
                    let at = input.len() - rest.len();
                    if !self.data(data, at, &mut rest, batch, out)? {
                        return Ok(());
                    }
                }
                Place::Skip(left) => {
                    let taken = (left as usize).min(rest.len());
                    rest = rest.get(taken..).unwrap_or_default();
                    let left = left - taken as u32;
                    if left > 0 {
                        self.place = Place::Skip(left);
                        return Ok(());
                    }
                    self.place = Place::Head;
                }
                Place::Preface(have) => {
                    if !self.preface(have, &mut rest)? {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn preface(&mut self, have: u8, rest: &mut &[u8]) -> Result<bool, Broken> {
        let expected = PREFACE.get(usize::from(have)..).unwrap_or_default();
        let len = expected.len().min(rest.len());
        let (came, after) = rest.split_at_checked(len).unwrap_or((rest, &[]));
        if !expected.starts_with(came) {
            return Err(Broken::Preface);
        }
        *rest = after;
        if len < expected.len() {
            self.place = Place::Preface(have + len as u8);
            return Ok(false);
        }
        self.place = Place::Head;
        Ok(true)
    }

    #[inline]
    fn take_head(&mut self, rest: &mut &[u8]) -> Option<FrameHead> {
        if self.head_have == 0
            && let Some((head, after)) = rest.split_first_chunk::<HEAD>()
        {
            *rest = after;
            return Some(FrameHead::of(*head));
        }
        while usize::from(self.head_have) < HEAD {
            let (byte, after) = rest.split_first()?;
            *rest = after;
            if let Some(place) = self.head.get_mut(usize::from(self.head_have)) {
                *place = *byte;
            }
            self.head_have += 1;
        }
        self.head_have = 0;
        Some(FrameHead::of(self.head))
    }

    /// True when the frame of `len` bytes is there.
    fn collect(&mut self, len: usize, rest: &mut &[u8], pool: &mut Pool) -> bool {
        if self.partial.capacity() == 0 && !rest.is_empty() {
            self.partial = pool.buffer();
        }
        let taken = len.saturating_sub(self.partial.len()).min(rest.len());
        let (came, after) = rest.split_at_checked(taken).unwrap_or_default();
        self.partial.extend_from_slice(came);
        *rest = after;
        self.partial.len() >= len
    }

    /// What the head alone tells.
    #[inline]
    fn begin_frame(
        &mut self,
        head: FrameHead,
        batch: &mut Batch,
        out: &mut Vec<u8>,
    ) -> Result<(), Broken> {
        self.frames = self.frames.wrapping_add(1);
        if head.len > PAYLOAD_MAX {
            return Err(Broken::FrameSize("a frame that is too large"));
        }
        if out.len() > self.config.limits.send_buffer_bytes.saturating_mul(2) {
            return Err(Broken::Bound(Bound::Unread));
        }
        if let Some(block) = &self.block
            && (head.kind != kind::CONTINUATION || head.stream != block.head.stream)
        {
            return Err(Broken::Protocol("a frame within a header block"));
        }
        if !self.greeted && (head.kind != kind::SETTINGS || head.has(flag::ACK)) {
            return Err(Broken::Protocol(
                "a connection that begins without settings",
            ));
        }
        let fits = match head.kind {
            kind::DATA => return self.begin_data(head, batch, out),
            kind::HEADERS => true,
            kind::CONTINUATION if self.block.is_none() => {
                return Err(Broken::Protocol("a CONTINUATION of nothing"));
            }
            kind::CONTINUATION => true,
            kind::PRIORITY => head.len == 5,
            kind::RST_STREAM | kind::WINDOW_UPDATE => head.len == 4,
            kind::SETTINGS if head.has(flag::ACK) => head.len == 0,
            kind::SETTINGS => head.len.is_multiple_of(6),
            kind::PING => head.len == 8,
            kind::GOAWAY => head.len >= 8,
            kind::PUSH_PROMISE => return Err(Broken::Protocol("a push that nobody wants")),
            _ => {
                self.calm.spend(1)?;
                self.place = Place::Skip(head.len);
                return Ok(());
            }
        };
        if !fits {
            return Err(Broken::FrameSize(
                "a frame of a size that its kind can't have",
            ));
        }
        let of_connection = matches!(head.kind, kind::SETTINGS | kind::PING | kind::GOAWAY);
        if of_connection != (head.stream == 0) && head.kind != kind::WINDOW_UPDATE {
            return Err(Broken::Protocol(
                "a frame of a stream on none, or the reverse",
            ));
        }
        self.place = Place::Payload(head);
        Ok(())
    }

    #[inline]
    fn frame(
        &mut self,
        head: FrameHead,
        payload: &[u8],
        batch: &mut Batch,
        pool: &mut Pool,
        out: &mut Vec<u8>,
    ) -> Result<(), Broken> {
        match head.kind {
            kind::HEADERS => self.headers(head, payload, batch, pool, out),
            kind::CONTINUATION => self.continuation(head, payload, batch, pool, out),
            kind::PRIORITY => self.priority(head, payload),
            kind::RST_STREAM => self.reset(head, payload, batch),
            kind::SETTINGS => self.settings(head, payload, out),
            kind::PING => self.pinged(head, payload, batch, out),
            kind::GOAWAY => self.goaway(payload, batch),
            kind::WINDOW_UPDATE => self.window_update(head, payload, batch, out),
            _ => Ok(()),
        }
    }

    /// Whether the peer or we could have opened it and did not.
    pub(super) fn is_idle(&self, id: u32) -> bool {
        match self.role {
            Role::Server => id.is_multiple_of(2) || id > self.last_peer,
            Role::Client => id.is_multiple_of(2) || id >= self.next_own,
        }
    }

    /// The one place where a reset that the peer forced is written, and counted.
    pub(super) fn refuse(&mut self, id: u32, code: Code, out: &mut Vec<u8>) -> Result<(), Broken> {
        frame::reset(id, code, out);
        self.resets.count(self.config.limits.resets)?;
        Ok(())
    }

    /// Ends a stream because of what the peer sent on it.
    pub(super) fn break_stream(
        &mut self,
        stream: Stream,
        bad: BadStream,
        batch: &mut Batch,
        out: &mut Vec<u8>,
    ) -> Result<(), Broken> {
        let Some(slot) = self.streams.get(stream) else {
            return Ok(());
        };
        if slot.reset {
            return Ok(());
        }
        self.end_stream(stream, Why::Broken(bad), batch);
        self.refuse(stream.id(), bad.code(), out)
    }

    /// Nothing goes either way from here. What came in this batch only is withdrawn, the rest is told.
    pub(super) fn end_stream(&mut self, stream: Stream, why: Why, batch: &mut Batch) {
        let born_now = self.batch;
        let Some(slot) = self.streams.get(stream) else {
            return;
        };
        slot.reset = true;
        slot.by_peer = matches!(why, Why::Peer(_));
        slot.receiving = Side::Ended;
        slot.sending = Side::Ended;
        slot.wants = false;
        if slot.born == born_now && self.role == Role::Server {
            self.withdrawn.push(stream);
        } else {
            batch.events.push(Event::Reset { stream, why });
        }
    }
}
