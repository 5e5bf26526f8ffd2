//! Bodies on their way: the caller's up, as often as there are attempts, and the answer's down.

use std::rc::Rc;
use std::task::{Context, Poll, ready};

use phalanx_relay::HeaderList;

use super::client::Outgoing;
use super::core::Core;
use super::exchange::Exchange;
use super::held::Held;
use super::http2::Piece;
use super::mirror::Copies;
use super::request::Kept;
use super::server::{Cut, Incoming};
use super::tally::Tally;
use crate::account::Flow;

/// A request's body, as far as it has come.
pub struct Upload {
    core: Rc<Core>,
    /// What came and may be needed again, or could not be sent yet.
    kept: Vec<u8>,
    /// How much of it the attempt under way has sent.
    sent: usize,
    /// All of it is kept, for another attempt.
    whole: bool,
    ended: bool,
    trailers: Option<HeaderList>,
    cut: Option<Cut>,
    /// The attempt under way has all of it, or takes no more.
    over: bool,
    /// There is one.
    any: bool,
    /// The caller was told to send it.
    asked: bool,
    /// Counts what moves, where somebody does.
    flow: Option<Rc<Flow>>,
    /// To be sent when the body is complete.
    copies: Option<Box<Copies>>,
    /// What of the core's budget it takes, as long as it is here.
    pub share: Option<Held>,
}

impl Upload {
    pub fn new(core: &Rc<Core>, any: bool, flow: Option<Rc<Flow>>) -> Self {
        Self {
            core: core.clone(),
            kept: Vec::new(),
            sent: 0,
            whole: true,
            ended: !any,
            trailers: None,
            cut: None,
            over: !any,
            any,
            asked: false,
            flow,
            copies: None,
            share: None,
        }
    }

    /// One that is there as a whole.
    pub fn of(core: &Rc<Core>, any: bool, body: Vec<u8>) -> Self {
        let mut upload = Self::new(core, any, None);
        upload.kept = body;
        upload.ended = true;
        upload
    }

    /// Copies of the request, to be sent once all of it is there.
    pub fn copy(&mut self, mut copies: Copies) {
        match self.any {
            // It was there as a whole.
            true if self.ended => match copies.keep(&self.kept) {
                true => copies.send(false),
                false => copies.drop_all(),
            },
            true => self.copies = Some(Box::new(copies)),
            false => copies.send(false),
        }
    }

    /// The body, for whoever may send it once more.
    pub fn keep(&mut self, kept: &Rc<Kept>) {
        let copies = self.copies.take();
        let mut copies = copies.unwrap_or_else(|| Box::new(Copies::of_body(&self.core)));
        copies.also(kept);
        self.copy(*copies);
    }

    /// For the next attempt, from its beginning.
    pub fn again(&mut self) {
        self.sent = 0;
        self.over = !self.any;
    }

    /// Whether another attempt could send all of it.
    pub fn is_repeatable(&self) -> bool {
        self.cut.is_none() && self.whole
    }

    /// Why the caller's side ended before its end, so that no attempt can succeed.
    pub fn cut(&self) -> Option<Cut> {
        self.cut
    }

    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// No further attempt will be made.
    pub fn release(&mut self) {
        self.whole = false;
    }

    /// Moves what can be moved now.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        exchange: &Exchange,
        incoming: &mut Incoming<'_>,
        outgoing: &mut Outgoing,
    ) {
        let core = self.core.clone();
        while !self.over && self.cut.is_none() {
            let rest = self.kept.get(self.sent..).unwrap_or_default();
            if !rest.is_empty() {
                match outgoing.body(&core, rest) {
                    Some(0) => {
                        exchange.reads_body(false);
                        break;
                    }
                    Some(sent) => self.sent += sent,
                    None => self.over = true, // its answer tells why
                }
                continue;
            }
            if !self.whole && self.sent > 0 {
                match self.share.take() {
                    None => self.kept.clear(),
                    Some(_) => self.kept = Vec::new(), // given back with its share
                }
                self.sent = 0;
            }
            if self.ended {
                outgoing.end(&core, self.trailers.as_ref());
                self.over = true;
                break;
            }
            if outgoing.poll_ready(cx, &core).is_pending() {
                exchange.reads_body(false);
                break;
            }
            if !std::mem::replace(&mut self.asked, true) {
                incoming.proceed(&core);
            }
            let (kept, sent, whole) = (&mut self.kept, &mut self.sent, &mut self.whole);
            let (flow, copies) = (self.flow.as_deref(), &mut self.copies);
            let came = incoming.poll_piece(cx, &core, |data| {
                if let Some(flow) = flow {
                    flow.request(data);
                }
                if copies.as_mut().is_some_and(|copies| !copies.keep(data))
                    && let Some(copies) = copies.take()
                {
                    copies.drop_all();
                }
                if *whole && kept.len() + data.len() > core.limits.replay_bytes {
                    *whole = false;
                    kept.clear();
                    *sent = 0;
                }
                let direct = if *whole {
                    0
                } else {
                    outgoing.body(&core, data).unwrap_or(data.len())
                };
                let rest = data.get(direct..).unwrap_or_default();
                if !rest.is_empty() {
                    if kept.capacity() == 0 {
                        *kept = core.memory.borrow_mut().pool.buffer();
                    }
                    kept.extend_from_slice(rest);
                }
            });
            match came {
                Poll::Ready(Ok(Piece::Data(len))) => exchange.request_moved(len),
                Poll::Ready(Ok(Piece::End(trailers))) => {
                    self.ended = true;
                    self.trailers = trailers;
                    if let Some(copies) = self.copies.take() {
                        copies.send(self.trailers.is_some());
                    }
                    exchange.request_complete();
                }
                Poll::Ready(Err(cut)) => self.cut = Some(cut),
                Poll::Pending => {
                    exchange.reads_body(true);
                    let _ = incoming.flush(cx, &core); // the word to go on
                    break;
                }
            }
        }
        outgoing.flush(cx, &core);
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(copies) = self.copies.take() {
            copies.drop_all();
        }
        let pool = &mut self.core.memory.borrow_mut().pool;
        pool.put_buffer(std::mem::take(&mut self.kept));
        if let Some(trailers) = self.trailers.take() {
            pool.put_list(trailers);
        }
    }
}

/// An answer's body passing through.
#[derive(Default)]
pub struct Download {
    /// What came and the caller could not take yet: no more than one read brings.
    pending: Vec<u8>,
    sent: usize,
    /// Bytes that the caller had taken when it took nothing more.
    taken: u64,
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passed {
    Whole,
    /// The upstream broke off, or said what can't be passed on.
    Broken,
}

/// How the body of an answer goes down.
pub trait Downward {
    /// Moves what can be moved now.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        core: &Core,
        exchange: &Exchange,
        incoming: &mut Incoming<'_>,
        outgoing: &mut Outgoing,
        tally: &mut Tally,
    ) -> Poll<Passed>;

    /// The upstream has said everything.
    fn is_heard(&self) -> bool;
}

impl Download {
    /// What is to go before anything else.
    pub fn rest(&mut self) -> &mut Vec<u8> {
        &mut self.pending
    }

    pub fn unsent(&self) -> &[u8] {
        self.pending.get(self.sent..).unwrap_or_default()
    }

    /// Ready when the caller takes more than what is here already.
    ///
    /// # Errors
    /// [`Cut`]: the answer can't be completed.
    pub fn poll_ready(
        &mut self,
        cx: &mut Context<'_>,
        core: &Core,
        exchange: &Exchange,
        incoming: &mut Incoming<'_>,
    ) -> Poll<Result<(), Cut>> {
        if !self.pending.is_empty() {
            let sent = incoming.body(core, self.unsent())?;
            if sent > 0 {
                self.sent += sent;
                exchange.moved();
            }
            if self.sent < self.pending.len() {
                exchange.stalled(true);
                return Poll::Pending;
            }
            let mut empty = std::mem::take(&mut self.pending);
            empty.clear();
            core.memory.borrow_mut().pool.put_buffer(empty);
            self.sent = 0;
        }
        if incoming.poll_ready(cx, core).is_pending() {
            self.stall(exchange, incoming);
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    /// There is nothing more for now.
    pub fn wait(
        &mut self,
        cx: &mut Context<'_>,
        core: &Core,
        exchange: &Exchange,
        incoming: &mut Incoming<'_>,
    ) {
        match incoming.flush(cx, core).is_pending() {
            true => self.stall(exchange, incoming),
            false => exchange.stalled(false),
        }
    }

    /// The caller does not take all that is there; it may take some of it.
    fn stall(&mut self, exchange: &Exchange, incoming: &Incoming<'_>) {
        exchange.stalled(true);
        if std::mem::replace(&mut self.taken, incoming.written()) != self.taken {
            exchange.moved();
        }
    }
}

impl Downward for Download {
    #[inline]
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        core: &Core,
        exchange: &Exchange,
        incoming: &mut Incoming<'_>,
        outgoing: &mut Outgoing,
        tally: &mut Tally,
    ) -> Poll<Passed> {
        loop {
            if ready!(self.poll_ready(cx, core, exchange, incoming)).is_err() {
                return Poll::Ready(Passed::Broken);
            }
            let (pending, mut failed) = (&mut self.pending, false);
            let came = outgoing.poll_piece(cx, core, |data| {
                tally.sent(data);
                let Ok(sent) = incoming.body(core, data) else {
                    failed = true;
                    return;
                };
                let rest = data.get(sent..).unwrap_or_default();
                if !rest.is_empty() {
                    if pending.capacity() == 0 {
                        *pending = core.memory.borrow_mut().pool.buffer();
                    }
                    pending.extend_from_slice(rest);
                }
            });
            match came {
                Poll::Ready(Ok(Piece::Data(_))) if failed => return Poll::Ready(Passed::Broken),
                Poll::Ready(Ok(Piece::Data(_))) => exchange.moved(),
                Poll::Ready(Ok(Piece::End(trailers))) => {
                    if let Some(trailers) = &trailers {
                        tally.trailers(trailers);
                    }
                    let ended = incoming.end(core, trailers.as_ref());
                    if let Some(trailers) = trailers {
                        core.memory.borrow_mut().pool.put_list(trailers);
                    }
                    return Poll::Ready(match ended {
                        Ok(()) => Passed::Whole,
                        Err(_) => Passed::Broken,
                    });
                }
                Poll::Ready(Err(_)) => return Poll::Ready(Passed::Broken),
                Poll::Pending => {
                    self.wait(cx, core, exchange, incoming);
                    return Poll::Pending;
                }
            }
        }
    }
    fn is_heard(&self) -> bool {
        false // its end is passed on at once
    }
}
