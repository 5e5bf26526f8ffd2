//! DATA, handed on as it comes.

use std::ops::Range;

use crate::http2::batch::{BadStream, Batch, Event};
use crate::http2::connection::{Broken, Connection, Credit, Role};
use crate::http2::frame::{Code, FrameHead, flag};
use crate::http2::read::Place;
use crate::http2::streams::{Past, Side, Stream, UNKNOWN};

/// A DATA frame, handed on as it comes.
#[derive(Clone, Copy, Debug)]
pub(in crate::http2) struct Data {
    /// None when nobody wants it.
    stream: Option<Stream>,
    left: u32,
    padding: u32,
    /// The byte that tells of the padding has not come yet.
    padded: bool,
    last: bool,
}

impl Connection {
    #[inline]
    pub(super) fn begin_data(
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
                let past = self.streams.past(head.stream);
                if past == Past::Ours || past == Past::Unknown && self.role == Role::Client {
                    self.calm.late()?;
                } else {
                    self.refuse(head.stream, Code::STREAM_CLOSED, out)?;
                }
                None
            }
            Some((_, slot)) if slot.reset => {
                if slot.by_peer {
                    self.refuse(head.stream, Code::STREAM_CLOSED, out)?;
                } else {
                    self.calm.late()?;
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
    pub(super) fn data(
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
        at: Range<usize>,
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
}
