//! Frames, one after the other, as they come in.

use super::batch::{BadStream, Batch, Event, Why};
use super::bounds::{self, Bound};
use super::connection::{Broken, Connection, Credit, Leaving, Ping, Role, ping_payload};
use super::frame::{self, Code, FrameHead, HEAD, PAYLOAD_MAX, PREFACE, WINDOW_MAX, flag, kind};
use super::heads::{self, Answered, Refused};
use super::settings;
use super::streams::{Past, Side, Slot, Stream, UNKNOWN};
use crate::framing::Framing;
use crate::hpack::Most;
use crate::limits::INTERIM_ANSWERS;
use crate::pool::Pool;

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

/// A DATA frame, handed on as it comes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Data {
    /// None when nobody wants it.
    stream: Option<Stream>,
    left: u32,
    padding: u32,
    /// The byte that tells of the padding has not come yet.
    padded: bool,
    last: bool,
}

/// A header block that spans frames.
#[derive(Debug)]
pub(super) struct Block {
    head: FrameHead,
    depends: u32,
    frames: u32,
    pub(super) bytes: Vec<u8>,
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

    // Streams that are none

    /// Whether the peer or we could have opened it and did not.
    fn is_idle(&self, id: u32) -> bool {
        match self.role {
            Role::Server => id.is_multiple_of(2) || id > self.last_peer,
            Role::Client => id.is_multiple_of(2) || id >= self.next_own,
        }
    }

    /// The one place where a reset that the peer forced is written, and counted.
    fn refuse(&mut self, id: u32, code: Code, out: &mut Vec<u8>) -> Result<(), Broken> {
        frame::reset(id, code, out);
        self.resets.count(self.config.limits.resets)?;
        Ok(())
    }

    /// Ends a stream because of what the peer sent on it.
    fn break_stream(
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
    fn end_stream(&mut self, stream: Stream, why: Why, batch: &mut Batch) {
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

    // DATA

    #[inline]
    fn begin_data(
        &mut self,
        head: FrameHead,
        batch: &mut Batch,
        out: &mut Vec<u8>,
    ) -> Result<(), Broken> {
        if head.stream == 0 || self.is_idle(head.stream) {
            return Err(Broken::Protocol("data on a stream that is none"));
        }
        let len = head.len as i32;
        if len > self.receive_window {
            return Err(Broken::FlowControl);
        }
        self.receive_window -= len;
        if self.config.credit == Credit::Received {
            self.unreturned += head.len;
            self.return_credit(out);
        }
        let padded = head.has(flag::PADDED);
        if padded && head.len == 0 {
            return Err(Broken::FrameSize("padding without room"));
        }
        let last = head.has(flag::END_STREAM);
        if head.len == 0 && !last {
            self.calm.spend(1)?;
        }
        let stream = self.streams.find(head.stream);
        let stream = match stream.and_then(|stream| self.streams.get(stream).map(|s| (stream, s))) {
            None => {
                if self.streams.past(head.stream) == Past::Ours {
                    self.calm.spend(1)?;
                } else {
                    self.refuse(head.stream, Code::STREAM_CLOSED, out)?;
                }
                None
            }
            Some((_, slot)) if slot.reset => {
                if slot.by_peer {
                    self.refuse(head.stream, Code::STREAM_CLOSED, out)?;
                } else {
                    self.calm.spend(1)?;
                }
                None
            }
            Some((stream, slot)) => {
                let bad = match slot.receiving {
                    Side::Ended => Some(BadStream::Ended),
                    Side::Head => Some(BadStream::Order),
                    Side::Body if len > slot.receive_window => Some(BadStream::FlowControl),
                    Side::Body => None,
                };
                if let Some(bad) = bad {
                    self.break_stream(stream, bad, batch, out)?;
                    None
                } else {
                    slot.receive_window -= len;
                    Some(stream)
                }
            }
        };
        self.place = Place::Data(Data {
            stream,
            left: head.len,
            padding: 0,
            padded,
            last,
        });
        Ok(())
    }

    /// False when more is needed.
    fn data(
        &mut self,
        mut data: Data,
        mut at: usize,
        rest: &mut &[u8],
        batch: &mut Batch,
        out: &mut Vec<u8>,
    ) -> Result<bool, Broken> {
        if data.padded {
            let Some((padding, after)) = rest.split_first() else {
                return Ok(false);
            };
            *rest = after;
            at += 1;
            data.padded = false;
            data.padding = u32::from(*padding);
            let Some(left) = data.left.checked_sub(1 + data.padding) else {
                return Err(Broken::Protocol("more padding than frame"));
            };
            data.left = left;
            if left < data.padding && !data.last {
                self.calm.spend(1)?;
            }
            self.unused(data.stream, 1 + data.padding, out);
            self.place = Place::Data(data);
        }
        let taken = (data.left as usize).min(rest.len());
        *rest = rest.get(taken..).unwrap_or_default();
        data.left -= taken as u32;
        let ends = data.last && data.left == 0;
        if taken > 0 || ends {
            self.piece(&mut data, at..at + taken, ends, batch, out)?;
        }
        let skipped = if data.left == 0 {
            (data.padding as usize).min(rest.len())
        } else {
            0
        };
        *rest = rest.get(skipped..).unwrap_or_default();
        data.padding -= skipped as u32;
        if data.left == 0 && data.padding == 0 {
            self.place = Place::Head;
            return Ok(true);
        }
        self.place = Place::Data(data);
        Ok(false)
    }

    /// Bytes that nobody needs to consume.
    fn unused(&mut self, stream: Option<Stream>, len: u32, out: &mut Vec<u8>) {
        if self.config.credit == Credit::Consumed {
            self.unreturned += len;
            self.return_credit(out);
        }
        if let Some(stream) = stream {
            self.return_stream(stream, len, out);
        }
    }

    #[inline]
    fn piece(
        &mut self,
        data: &mut Data,
        at: std::ops::Range<usize>,
        ends: bool,
        batch: &mut Batch,
        out: &mut Vec<u8>,
    ) -> Result<(), Broken> {
        if ends {
            data.last = false;
        }
        let len = at.len() as u32;
        let open = data.stream.filter(|stream| {
            let slot = self.streams.look(*stream);
            slot.is_some_and(|slot| !slot.reset)
        });
        let Some(stream) = open else {
            self.unused(None, len, out);
            return Ok(());
        };
        let Some(slot) = self.streams.get(stream) else {
            return Ok(());
        };
        let left = slot.left;
        let wrong = left != UNKNOWN && (u64::from(len) > left || ends && u64::from(len) != left);
        if wrong {
            self.unused(None, len, out);
            return self.break_stream(stream, BadStream::Length, batch, out);
        }
        if left != UNKNOWN {
            slot.left -= u64::from(len);
        }
        slot.unconsumed += len;
        if ends {
            slot.receiving = Side::Ended;
        }
        batch.events.push(if len == 0 {
            let trailers = None;
            Event::End { stream, trailers }
        } else {
            let last = ends;
            Event::Data { stream, at, last }
        });
        Ok(())
    }

    // Heads

    fn headers(
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

    fn continuation(
        &mut self,
        head: FrameHead,
        payload: &[u8],
        batch: &mut Batch,
        pool: &mut Pool,
        out: &mut Vec<u8>,
    ) -> Result<(), Broken> {
        let max = Self::head_max(self.role, &self.config.limits);
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
                Past::Ours => Ok(self.calm.spend(1)?),
                Past::Ended => Err(Broken::StreamClosed),
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
            slot.head = request.method() == crate::checked::Method::Head;
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
            return Ok(self.calm.spend(1)?);
        }
        match slot.receiving {
            Side::Ended => self.break_stream(stream, BadStream::Ended, batch, out),
            Side::Body => {
                let whole = slot.left == UNKNOWN || slot.left == 0;
                let read = match (last, whole) {
                    (false, _) => Err(BadStream::Trailer),
                    (true, false) => Err(BadStream::Length),
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

    // The rest

    /// Priorities are not followed (RFC 9113 §5.3.2).
    fn priority(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Broken> {
        self.calm.spend(1)?;
        let depends = payload.first_chunk().map_or(0, |five| dependency(*five));
        if depends == head.stream {
            return Err(Broken::Protocol("a stream that depends on itself"));
        }
        Ok(())
    }

    fn reset(&mut self, head: FrameHead, payload: &[u8], batch: &mut Batch) -> Result<(), Broken> {
        if self.is_idle(head.stream) {
            return Err(Broken::Protocol("a reset of a stream that is none"));
        }
        let Some(stream) = self.streams.find(head.stream) else {
            return Ok(self.calm.spend(1)?);
        };
        let code = Code(number(payload));
        let Some(slot) = self.streams.get(stream) else {
            return Ok(());
        };
        if slot.reset {
            return Ok(self.calm.spend(1)?);
        }
        if slot.receiving == Side::Ended && slot.sending == Side::Ended {
            return Ok(self.calm.spend(1)?);
        }
        // A server that has answered whole may so stop a client that goes on sending (RFC 9113 §8.1).
        let unanswered = match self.role {
            Role::Server => slot.sending != Side::Ended,
            Role::Client => slot.receiving != Side::Ended,
        };
        self.end_stream(stream, Why::Peer(code), batch);
        if unanswered {
            self.resets.count(self.config.limits.resets)?;
        } else {
            self.calm.spend(1)?;
        }
        Ok(())
    }

    fn settings(
        &mut self,
        head: FrameHead,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), Broken> {
        if head.has(flag::ACK) {
            return self.acknowledged();
        }
        if self.greeted {
            self.calm.spend(bounds::POINTS_OF_SETTINGS)?;
        }
        self.greeted = true;
        let before = self.peer;
        self.peer.read(payload, self.role == Role::Client)?;
        if self.peer.table_size != before.table_size {
            self.encoder.resize(self.peer.table_size as usize);
        }
        let more = i64::from(self.peer.initial_window) - i64::from(before.initial_window);
        if more != 0 {
            for slot in self.streams.all_mut() {
                let window = i64::from(slot.send_window) + more;
                slot.send_window = i32::try_from(window).map_err(|_| Broken::FlowControl)?;
            }
            self.wake_all();
        }
        settings::acknowledge(out);
        Ok(())
    }

    /// From here the peer keeps to our windows instead of the usual ones.
    fn acknowledged(&mut self) -> Result<(), Broken> {
        if self.unacknowledged == 0 {
            return Ok(self.calm.spend(1)?);
        }
        self.unacknowledged -= 1;
        let window = settings::window(self.config.stream_window);
        let more = window - self.stream_window;
        self.stream_window = window;
        for slot in self.streams.all_mut() {
            slot.receive_window = slot.receive_window.saturating_add(more);
        }
        Ok(())
    }

    fn pinged(
        &mut self,
        head: FrameHead,
        payload: &[u8],
        batch: &mut Batch,
        out: &mut Vec<u8>,
    ) -> Result<(), Broken> {
        let payload = *payload.first_chunk::<8>().unwrap_or(&[0; 8]);
        if !head.has(flag::ACK) {
            self.calm.spend(1)?;
            frame::ping(true, payload, out);
            return Ok(());
        }
        let place = self
            .pings
            .iter()
            .position(|ping| ping_payload(*ping) == payload);
        match place.and_then(|place| self.pings.remove(place)) {
            Some(Ping::Leaving) => self.leave_now(out),
            Some(Ping::Alive) => batch.events.push(Event::Pong),
            None => self.calm.spend(1)?,
        }
        Ok(())
    }

    fn goaway(&mut self, payload: &[u8], batch: &mut Batch) -> Result<(), Broken> {
        self.calm.spend(1)?;
        let last = number(payload) & frame::STREAM_ID_MAX;
        let code = Code(number(payload.get(4..).unwrap_or_default()));
        if self.peer_leaves.is_some_and(|before| last > before) {
            return Err(Broken::Protocol("a goaway that takes back another"));
        }
        let first = self.peer_leaves.replace(last).is_none();
        if self.role == Role::Client {
            let lost: Vec<Stream> = self
                .streams
                .all()
                .filter(|(stream, slot)| stream.id() > last && !slot.reset)
                .map(|(stream, _)| stream)
                .collect();
            for stream in lost {
                self.end_stream(stream, Why::Unprocessed, batch);
            }
        }
        if first {
            batch.events.push(Event::GoAway { code });
        }
        Ok(())
    }

    fn window_update(
        &mut self,
        head: FrameHead,
        payload: &[u8],
        batch: &mut Batch,
        out: &mut Vec<u8>,
    ) -> Result<(), Broken> {
        self.calm.spend(1)?;
        let more = (number(payload) & frame::STREAM_ID_MAX) as i32;
        if head.stream == 0 {
            if more == 0 {
                return Err(Broken::Protocol("a window update of nothing"));
            }
            let window = self.send_window.checked_add(more);
            self.send_window = window.ok_or(Broken::FlowControl)?;
            return Ok(());
        }
        if self.is_idle(head.stream) {
            return Err(Broken::Protocol("a window of a stream that is none"));
        }
        let Some(stream) = self.streams.find(head.stream) else {
            return Ok(());
        };
        let Some(slot) = self.streams.get(stream) else {
            return Ok(());
        };
        if slot.reset {
            return Ok(());
        }
        if more == 0 {
            return self.break_stream(stream, BadStream::EmptyUpdate, batch, out);
        }
        match slot.send_window.checked_add(more) {
            Some(window) if window <= WINDOW_MAX => {
                slot.send_window = window;
                if slot.wants && window > 0 {
                    self.streams.enqueue(stream);
                }
                Ok(())
            }
            _ => self.break_stream(stream, BadStream::FlowControl, batch, out),
        }
    }
}

fn number(bytes: &[u8]) -> u32 {
    bytes
        .first_chunk()
        .map_or(0, |four| u32::from_be_bytes(*four))
}

fn dependency([a, b, c, d, _]: [u8; 5]) -> u32 {
    u32::from_be_bytes([a, b, c, d]) & frame::STREAM_ID_MAX
}
