//! Header blocks: requests, answers, trailers.

use crate::checked::Method;
use crate::framing::Framing;
use crate::hpack::Most;
use crate::http2::batch::{BadStream, Batch, Event};
use crate::http2::bounds::{self, Bound};
use crate::http2::connection::{Broken, Connection, Leaving, Role};
use crate::http2::frame::{self, Code, FrameHead, flag};
use crate::http2::heads::{self, Answered, Refused};
use crate::http2::streams::{Past, Side, Slot, Stream, UNKNOWN};
use crate::limits::INTERIM_ANSWERS;
use crate::pool::Pool;

/// A header block that spans frames.
#[derive(Debug)]
pub(in crate::http2) struct Block {
    pub(super) head: FrameHead,
    depends: u32,
    frames: u32,
    pub(in crate::http2) bytes: Vec<u8>,
}

impl Connection {
    pub(super) fn headers(
        &mut self,
        head: FrameHead,
        payload: &[u8],
        batch: &mut Batch,
        pool: &mut Pool,
        out: &mut Vec<u8>,
    ) -> Result<(), Broken> {
        let mut fragment = payload;
        let mut padding = 0;
        if head.has(flag::PADDED) {
            let short = Broken::FrameSize("padding without room");
            let (byte, after) = fragment.split_first().ok_or(short)?;
            padding = usize::from(*byte);
            fragment = after;
        }
        let mut depends = 0;
        if head.has(flag::PRIORITY) {
            let short = Broken::FrameSize("a priority without room");
            let (priority, after) = fragment.split_first_chunk::<5>().ok_or(short)?;
            depends = dependency(*priority);
            fragment = after;
        }
        let len = fragment.len().checked_sub(padding);
        let fragment = len.and_then(|len| fragment.get(..len));
        let fragment = fragment.ok_or(Broken::Protocol("more padding than frame"))?;
        if self.is_idle(head.stream) && (self.role == Role::Client || head.stream.is_multiple_of(2))
        {
            return Err(Broken::Protocol("a head on a stream that is none"));
        }
        if head.has(flag::END_HEADERS) {
            return self.list(head, depends, fragment, batch, pool, out);
        }
        let mut bytes = pool.buffer();
        bytes.extend_from_slice(fragment);
        self.block = Some(Block {
            head,
            depends,
            frames: 0,
            bytes,
        });
        Ok(())
    }

    pub(super) fn continuation(
        &mut self,
        head: FrameHead,
        payload: &[u8],
        batch: &mut Batch,
        pool: &mut Pool,
        out: &mut Vec<u8>,
    ) -> Result<(), Broken> {
        // Somewhat over the limit it is still read, to be answered rather than cut off.
        let max = Self::head_max(self.role, &self.config.limits).saturating_mul(2);
        let ends = head.has(flag::END_HEADERS);
        let Some(block) = &mut self.block else {
            return Ok(());
        };
        block.frames += 1;
        if block.frames > bounds::CONTINUATIONS_MAX || (payload.is_empty() && !ends) {
            return Err(Broken::Bound(Bound::Continuations));
        }
        if block.bytes.len() + payload.len() > max {
            return Err(Broken::Bound(Bound::Block));
        }
        block.bytes.extend_from_slice(payload);
        if !ends {
            return Ok(());
        }
        let Some(block) = self.block.take() else {
            return Ok(());
        };
        let taken = self.list(block.head, block.depends, &block.bytes, batch, pool, out);
        pool.put_buffer(block.bytes);
        taken
    }

    /// A whole block. Whatever it is for, the table must hear of it.
    fn list(
        &mut self,
        head: FrameHead,
        depends: u32,
        block: &[u8],
        batch: &mut Batch,
        pool: &mut Pool,
        out: &mut Vec<u8>,
    ) -> Result<(), Broken> {
        let limits = &self.config.limits;
        let found = self.streams.find(head.stream);
        let trailing = found.is_some_and(|stream| {
            let slot = self.streams.look(stream);
            slot.is_some_and(|slot| slot.receiving != Side::Head)
        });
        let most = Most {
            bytes: if trailing {
                limits.trailer_bytes
            } else {
                Self::head_max(self.role, limits)
            },
            // The pseudo-headers beside.
            fields: limits.head_fields.saturating_add(4),
        };
        let decoded = self.decoder.decode(block, &mut batch.fields, most);
        decoded.map_err(Broken::Block)?;
        if batch.fields.is_too_large() {
            Self::over(batch, Bound::Head);
        }
        let last = head.has(flag::END_STREAM);
        match found {
            Some(stream) if depends == head.stream => {
                self.break_stream(stream, BadStream::Dependency, batch, out)
            }
            Some(stream) => self.list_on(stream, last, batch, pool, out),
            None if self.role == Role::Server && head.stream > self.last_peer => {
                self.last_peer = head.stream;
                if depends == head.stream {
                    self.streams.close(head.stream, true, self.closed_kept());
                    return self.refuse(head.stream, Code::PROTOCOL_ERROR, out);
                }
                self.open(head.stream, last, batch, pool, out)
            }
            None => match self.streams.past(head.stream) {
                Past::Ours => Ok(self.calm.late()?),
                Past::Ended => Err(Broken::StreamClosed),
                // One of our own, of which nothing is remembered any more: an answer that comes very late.
                Past::Unknown if self.role == Role::Client => Ok(self.calm.late()?),
                Past::Unknown => Err(Broken::Protocol("a head on a stream that was passed over")),
            },
        }
    }

    /// A request.
    fn open(
        &mut self,
        id: u32,
        last: bool,
        batch: &mut Batch,
        pool: &mut Pool,
        out: &mut Vec<u8>,
    ) -> Result<(), Broken> {
        if matches!(self.leaving, Leaving::From(_)) {
            self.streams.close(id, true, self.closed_kept());
            return Ok(self.calm.spend(1)?);
        }
        self.resets.begin();
        if self.streams.live() >= self.streams_max() {
            Self::over(batch, Bound::Streams);
            self.streams.close(id, true, self.closed_kept());
            return self.refuse(id, Code::REFUSED_STREAM, out);
        }
        let request = match heads::request(&batch.fields, last, pool, &self.config.limits) {
            Err(Refused::Malformed(refusal)) => {
                batch.events.push(Event::Malformed(refusal));
                self.streams.close(id, true, self.closed_kept());
                return self.refuse(id, Code::PROTOCOL_ERROR, out);
            }
            Err(Refused::Answered(refusal)) => Err(refusal),
            Ok(request) => Ok(request),
        };
        self.calm.earn(bounds::POINTS_PER_HEAD);
        let mut slot = Slot::new(id, self.peer.initial_window, self.stream_window);
        slot.born = self.batch;
        slot.receiving = if last { Side::Ended } else { Side::Body };
        if let Ok(request) = &request {
            slot.head = request.method() == Method::Head;
            slot.continues = request.expects_continue();
            if let Framing::Length(length) = request.framing() {
                slot.left = length;
            }
        }
        let stream = self.streams.insert(slot);
        batch.events.push(match request {
            Ok(request) => Event::Request {
                stream,
                request,
                last,
            },
            Err(refusal) => Event::Refused { stream, refusal },
        });
        Ok(())
    }

    /// An answer's head, or trailers.
    fn list_on(
        &mut self,
        stream: Stream,
        last: bool,
        batch: &mut Batch,
        pool: &mut Pool,
        out: &mut Vec<u8>,
    ) -> Result<(), Broken> {
        let Some(slot) = self.streams.get(stream) else {
            return Ok(());
        };
        if slot.by_peer {
            return Err(Broken::StreamClosed);
        }
        if slot.reset {
            return Ok(self.calm.late()?);
        }
        match slot.receiving {
            Side::Ended => self.break_stream(stream, BadStream::Ended, batch, out),
            Side::Body => {
                let whole = slot.left == UNKNOWN || slot.left == 0;
                let read = match (last, whole) {
                    (false, _) => Err(BadStream::Trailer),
                    (true, false) => Err(BadStream::Length),
                    (true, true)
                        if self.role == Role::Server && heads::is_padded(&batch.fields) =>
                    {
                        Err(BadStream::Trailer)
                    }
                    (true, true) => heads::trailers(&batch.fields, pool),
                };
                match read {
                    Ok(trailers) => {
                        slot.receiving = Side::Ended;
                        batch.events.push(Event::End { stream, trailers });
                        Ok(())
                    }
                    Err(bad) => self.break_stream(stream, bad, batch, out),
                }
            }
            Side::Head => {
                let asked = slot.head;
                match heads::answer(&batch.fields, last, asked, pool, &self.config.limits) {
                    Err(bad) => self.break_stream(stream, BadStream::Head(bad), batch, out),
                    Ok(Answered::Interim(status)) => {
                        slot.interim += 1;
                        if slot.interim > INTERIM_ANSWERS {
                            return self.break_stream(stream, BadStream::Interim, batch, out);
                        }
                        batch.events.push(Event::Interim { stream, status });
                        Ok(())
                    }
                    Ok(Answered::Head(head)) => {
                        let bodyless = asked || head.status == 204 || head.status == 304;
                        slot.left = match head.framing() {
                            _ if bodyless => 0,
                            Framing::Length(length) => length,
                            Framing::None | Framing::Chunked => UNKNOWN,
                        };
                        slot.receiving = if last { Side::Ended } else { Side::Body };
                        self.calm.earn(bounds::POINTS_PER_HEAD);
                        batch.events.push(Event::Head { stream, head, last });
                        Ok(())
                    }
                }
            }
        }
    }
}

pub(super) fn dependency([a, b, c, d, _]: [u8; 5]) -> u32 {
    u32::from_be_bytes([a, b, c, d]) & frame::STREAM_ID_MAX
}
