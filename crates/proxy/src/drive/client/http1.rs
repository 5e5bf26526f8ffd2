//! A connection that carries one exchange at a time. No task of its own: it moves when its request moves it.

use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use phalanx_relay::http1::{Answer, BrokenAnswer, Exchange, Ready, Unread};
use phalanx_relay::{Checked, Field, HeaderList, ResponseHead};

use super::super::core::{Core, Endpoint};
use super::super::http2::Piece;
use super::super::stream::{Link, Stream};
use super::super::wire::{Scratch, Wire};
use super::{Slot, unless_rejected};
use crate::upstream::{Completion, Fault};

pub struct Http1 {
    wire: Wire,
    state: State,
    unread: Unread,
    /// Bytes that had left when the request began.
    written_before: u64,
    reused: bool,
    /// Nothing can be written any more: what the peer has said meanwhile still counts.
    deaf: bool,
    pub requests_max: u32,
    /// When it is secured.
    link: Option<Rc<Link>>,
    pub slot: Slot,
}

enum State {
    Ready(Ready),
    Busy(Exchange),
    Spent,
}

/// Why reading ended.
enum Broke {
    Answer(BrokenAnswer),
    Socket,
}

impl Http1 {
    /// On a fresh stream.
    pub fn new(stream: Stream, requests_max: u32, slot: Slot) -> Box<Self> {
        Box::new(Self {
            link: stream.link().cloned(),
            wire: Wire::new(stream),
            state: State::Ready(Ready::fresh()),
            unread: Unread::default(),
            written_before: 0,
            reused: false,
            deaf: false,
            requests_max,
            slot,
        })
    }

    /// Opened, and wanted by nobody in particular: into its pool.
    pub fn rest(self: Box<Self>, core: &Core, endpoint: &Endpoint) {
        let (requests_max, freed) = (self.requests_max, self.slot.freed.clone());
        let opened = endpoint.h1.adopt(self);
        opened.finish(Completion::REUSABLE, requests_max, core.wheel.now_ms());
        freed.notify_waiters();
    }

    /// Whether an idle connection is still open and has nothing unread. Costs no system call: the runtime knows.
    pub fn is_usable(&mut self, core: &Core) -> bool {
        self.is_usable_in(&mut Context::from_waker(Waker::noop()), core)
    }

    pub fn is_usable_in(&mut self, cx: &mut Context<'_>, core: &Core) -> bool {
        matches!(self.state, State::Ready(_))
            && self
                .wire
                .poll_read(cx, core, &mut Scratch::take())
                .is_pending()
    }

    /// Writes the head; `extra` stands behind its own fields.
    pub fn open(&mut self, core: &Core, request: &Checked, extra: Option<&Field>, reused: bool) {
        self.reused = reused;
        self.written_before = self.wire.written();
        self.wire.prepare(core);
        self.state = match std::mem::replace(&mut self.state, State::Spent) {
            State::Ready(ready) => State::Busy(ready.send(request, extra, &mut self.wire.out)),
            other => other,
        };
    }

    pub fn poll_ready(&mut self, cx: &mut Context<'_>, core: &Core) -> Poll<()> {
        if self.wire.out.len() >= OUT_FULL {
            ready!(self.poll_flush(cx, core));
        }
        Poll::Ready(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>, core: &Core) -> Poll<()> {
        if !self.deaf && ready!(self.wire.poll_flush(cx, core)).is_err() {
            self.deaf = true;
        }
        Poll::Ready(())
    }

    pub fn flush(&mut self, cx: &mut Context<'_>, core: &Core) {
        let _ = self.poll_flush(cx, core);
    }

    pub fn body(&mut self, core: &Core, data: &[u8]) -> Option<usize> {
        let State::Busy(exchange) = &mut self.state else {
            return None;
        };
        if self.deaf {
            return None;
        }
        self.wire.prepare(core);
        exchange.body(data, &mut self.wire.out).ok()?;
        Some(data.len())
    }

    pub fn end(&mut self, core: &Core, trailers: Option<&HeaderList>) {
        if let State::Busy(exchange) = &mut self.state {
            self.wire.prepare(core);
            let _ = exchange.end(trailers, &mut self.wire.out); // else it is never used again
        }
    }

    /// The next of what the peer says.
    fn poll_next<R>(
        &mut self,
        cx: &mut Context<'_>,
        core: &Core,
        on: impl FnOnce(Answer<'_>) -> R,
    ) -> Poll<Result<R, Broke>> {
        let State::Busy(exchange) = &mut self.state else {
            return Poll::Ready(Err(Broke::Socket));
        };
        let unread = &mut self.unread;
        loop {
            let mut input = unread.as_slice();
            let read = exchange.read(&mut input, &mut core.memory.borrow_mut().pool, &core.limits);
            let left = input.len();
            match read {
                Ok(None) if left > 0 => return Poll::Pending, // behind a 101
                Ok(None) => {}
                Ok(Some(answer)) => {
                    let heard = on(answer);
                    unread.advance_to(left, &mut core.memory.borrow_mut().pool);
                    return Poll::Ready(Ok(heard));
                }
                Err(broken) => return Poll::Ready(Err(Broke::Answer(broken))),
            }
            if !unread.is_empty() {
                unread.advance_to(left, &mut core.memory.borrow_mut().pool);
            }
            let mut scratch = Scratch::take();
            let came = ready!(self.wire.poll_read(cx, core, &mut scratch));
            if !matches!(came, Ok(1..)) {
                let ended = exchange.eof(&mut core.memory.borrow_mut().pool);
                return Poll::Ready(match (ended, came) {
                    (Ok(Some(answer)), Ok(_)) => Ok(on(answer)),
                    (Err(broken), Ok(_)) => Err(Broke::Answer(broken)),
                    (Err(silent @ BrokenAnswer::Silent), Err(_)) => Err(Broke::Answer(silent)),
                    _ => Err(Broke::Socket),
                });
            }
            let mut input: &[u8] = &scratch;
            let read = {
                let pool = &mut core.memory.borrow_mut().pool;
                let read = exchange.read(&mut input, pool, &core.limits);
                unread.keep(input, pool);
                read
            };
            match read {
                Ok(None) => {}
                Ok(Some(answer)) => return Poll::Ready(Ok(on(answer))),
                Err(broken) => return Poll::Ready(Err(Broke::Answer(broken))),
            }
        }
    }

    pub fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        core: &Core,
    ) -> Poll<Result<ResponseHead, Fault>> {
        loop {
            let heard = ready!(self.poll_next(cx, core, |answer| match answer {
                Answer::Head(head) => Some(head),
                _ => None,
            }));
            match heard {
                Ok(Some(head)) => return Poll::Ready(Ok(head)),
                Ok(None) => {} // interim
                Err(broke) => {
                    let fault = unless_rejected(&self.link, self.fault(&broke));
                    return Poll::Ready(Err(fault));
                }
            }
        }
    }

    fn fault(&self, broke: &Broke) -> Fault {
        match broke {
            Broke::Answer(BrokenAnswer::Silent) if self.wire.written() == self.written_before => {
                Fault::Unprocessed
            }
            Broke::Answer(BrokenAnswer::Silent) if self.reused => Fault::Stale,
            Broke::Answer(BrokenAnswer::Silent | BrokenAnswer::Truncated) | Broke::Socket => {
                Fault::Reset
            }
            Broke::Answer(_) => Fault::BadAnswer,
        }
    }

    pub fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
        core: &Core,
        take: impl FnOnce(&[u8]),
    ) -> Poll<Result<Piece, Fault>> {
        let heard = ready!(self.poll_next(cx, core, |answer| match answer {
            Answer::Body(data) => {
                take(data);
                Some(Piece::Data(data.len()))
            }
            Answer::End(trailers) => Some(Piece::End(trailers)),
            Answer::Head(_) | Answer::Interim(_) => None,
        }));
        Poll::Ready(match heard {
            Ok(Some(piece)) => Ok(piece),
            Ok(None) | Err(_) => Err(Fault::Reset),
        })
    }

    /// After an answer: whether the connection may carry another request.
    pub fn settle(&mut self, core: &Core) -> bool {
        let State::Busy(exchange) = std::mem::replace(&mut self.state, State::Spent) else {
            return false;
        };
        let finished = exchange.finish(self.unread.as_slice());
        self.unread
            .advance_to(0, &mut core.memory.borrow_mut().pool);
        match finished {
            Ok(ready) if !self.deaf && self.wire.out.is_empty() => {
                self.state = State::Ready(ready);
                true
            }
            _ => false,
        }
    }

    /// After a 101: the stream, what was read of it already, and its share of the limit. None when it was none.
    pub fn into_tunnel(self: Box<Self>) -> Option<(Stream, Vec<u8>, Slot)> {
        let Self {
            wire,
            state,
            unread,
            slot,
            ..
        } = *self;
        let State::Busy(exchange) = state else {
            return None;
        };
        let _switched = exchange.into_tunnel().ok()?;
        Some((wire.into_stream(), unread.as_slice().to_vec(), slot))
    }
}

/// More of a body is not taken before some of this has left.
const OUT_FULL: usize = 64 << 10;
