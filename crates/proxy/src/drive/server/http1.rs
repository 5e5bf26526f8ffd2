//! A connection that brings one request after the other. Its task serves them itself; between them it holds no buffer.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use phalanx_relay::http1::{Broken, Event as Read, Phase, Server, Turn, Unread};
use phalanx_relay::{Checked, HeaderList, Refusal, Reply, ResponseHead};

use super::super::core::Core;
use super::super::exchange::Lent;
use super::super::http2::Piece;
use super::super::request::{self, Outcome};
use super::super::shut;
use super::super::stream::Stream;
use super::super::tally::Tally;
use super::super::wire::{Scratch, Wire};
use super::{Cut, Door, Incoming};
use crate::account::Event;

pub struct Http1 {
    wire: Wire,
    codec: Server,
    unread: Unread,
    /// The peer closed, or the socket broke: nothing more comes.
    ended: bool,
    /// Nothing more can be written, or what was begun can't be completed.
    cut: bool,
}

/// Serves HTTP/1 until the connection ends, and what it was upgraded to after that. What an idle connection doesn't need lies
/// in boxes: thousands of them wait for their next request.
pub async fn serve(door: &Rc<Door>, stream: Stream) {
    let core = &door.core;
    let mut connection = Http1 {
        wire: Wire::new(stream),
        codec: Server::default(),
        unread: Unread::default(),
        ended: false,
        cut: false,
    };
    loop {
        match poll_fn(|cx| connection.poll_request(cx, door)).await {
            Next::Request(request) => {
                let exchange = Lent::new(core);
                let incoming = Incoming::Http1(&mut connection);
                let serving = request::serve(door, incoming, request, &exchange);
                match watched(door, Box::pin(serving)).await {
                    Some(Outcome::Done) => {}
                    Some(Outcome::Upgraded(upgraded, lasting)) => {
                        if poll_fn(|cx| connection.poll_last(cx, door)).await {
                            let early = connection.unread.as_slice().to_vec();
                            let running = upgraded.run(connection.wire.into_stream(), early.into());
                            let lasting = lasting.map(|lasting| *lasting);
                            Box::pin(shut::while_allowed(core, lasting, running)).await;
                        }
                        return;
                    }
                    Some(Outcome::Gone) | None => return,
                }
            }
            Next::Refused(refusal) => connection.refuse(door, refusal),
            Next::Nothing => return,
        }
        match connection.turn(core) {
            Turn::Next => {}
            Turn::Close if !connection.cut => {
                if poll_fn(|cx| connection.poll_last(cx, door)).await {
                    Box::pin(connection.wire.part(core)).await;
                }
                return;
            }
            _ => return connection.wire.abort(),
        }
    }
}

enum Next {
    Request(Checked),
    Refused(Refusal),
    /// The connection is over.
    Nothing,
}

/// Runs `serving` as long as the connection may live.
async fn watched<F: Future<Output = Outcome>>(
    door: &Door,
    mut serving: Pin<Box<F>>,
) -> Option<Outcome> {
    let (core, watch) = (&door.core, &door.watch);
    poll_fn(|cx| {
        if let Poll::Ready(outcome) = serving.as_mut().poll(cx) {
            return Poll::Ready(Some(outcome));
        }
        watch.settle(core);
        while watch.alarm.poll(cx).is_ready() {
            if let Some(event) = watch.missed(core) {
                core.count(event);
                return Poll::Ready(None);
            }
        }
        Poll::Pending
    })
    .await
}

impl Http1 {
    fn poll_request(&mut self, cx: &mut Context<'_>, door: &Door) -> Poll<Next> {
        let (core, watch) = (&door.core, &door.watch);
        let before = self.wire.written();
        let flushed = self.poll_write(cx, core);
        if self.wire.written() != before {
            watch.wrote(false); // it takes something: the clock starts anew
        }
        watch.wrote(flushed.is_pending());
        if self.cut {
            return Poll::Ready(Next::Nothing);
        }
        if flushed.is_ready() {
            let next = self.poll_next(cx, core, |event| match event {
                Read::Request(request) => Some(request),
                Read::Body(_) | Read::End(_) => None,
            });
            match next {
                Poll::Ready(Ok(Some(request))) => {
                    if request.framing().is_empty() {
                        self.take_end(core);
                    }
                    return Poll::Ready(Next::Request(request));
                }
                Poll::Ready(Err(Some(Broken::Refused(refusal)))) => {
                    return Poll::Ready(Next::Refused(refusal));
                }
                Poll::Ready(_) => return Poll::Ready(Next::Nothing),
                Poll::Pending => {}
            }
            if self.codec.phase() == Phase::Head {
                watch.head_begun();
            }
        }
        watch.settle(core);
        while watch.alarm.poll(cx).is_ready() {
            if let Some(event) = watch.missed(core) {
                // A request that came in this very turn is not closed upon: its caller may not repeat it.
                if event == Event::IdleDeadline && self.wire.has_unheard() {
                    let soon = core.wheel.now_ms().saturating_add(UNHEARD_MS);
                    watch.alarm.set(soon);
                    continue;
                }
                if event != Event::IdleDeadline || !watch.is_draining() {
                    core.count(event);
                }
                return Poll::Ready(Next::Nothing);
            }
        }
        Poll::Pending
    }

    /// Writes what is left of the last answer; false when the peer takes none of it.
    fn poll_last(&mut self, cx: &mut Context<'_>, door: &Door) -> Poll<bool> {
        let (core, watch) = (&door.core, &door.watch);
        let before = self.wire.written();
        let flushed = self.poll_write(cx, core);
        if flushed.is_ready() {
            return Poll::Ready(!self.cut);
        }
        if self.wire.written() != before {
            watch.wrote(false); // it takes something: the clock starts anew
        }
        watch.wrote(true);
        watch.settle(core);
        while watch.alarm.poll(cx).is_ready() {
            if let Some(event) = watch.missed(core) {
                core.count(event);
                return Poll::Ready(false);
            }
        }
        Poll::Pending
    }

    /// Bytes that the peer took, ever.
    pub fn written(&self) -> u64 {
        self.wire.written()
    }

    /// The next of what the peer says. `Err(None)` when it has closed.
    fn poll_next<R>(
        &mut self,
        cx: &mut Context<'_>,
        core: &Core,
        on: impl FnOnce(Read<'_>) -> R,
    ) -> Poll<Result<R, Option<Broken>>> {
        loop {
            let mut input = self.unread.as_slice();
            let read =
                self.codec
                    .read(&mut input, &mut core.memory.borrow_mut().pool, &core.limits);
            let left = input.len();
            match read {
                Ok(None) => {}
                Ok(Some(event)) => {
                    let heard = on(event);
                    if !self.unread.is_empty() {
                        self.unread
                            .advance_to(left, &mut core.memory.borrow_mut().pool);
                    }
                    return Poll::Ready(Ok(heard));
                }
                Err(broken) => return Poll::Ready(Err(Some(broken))),
            }
            if !self.unread.is_empty() {
                self.unread
                    .advance_to(left, &mut core.memory.borrow_mut().pool);
            }
            if self.ended {
                return Poll::Ready(Err(None));
            }
            let mut scratch = Scratch::take();
            match ready!(self.wire.poll_read(cx, core, &mut scratch)) {
                Ok(1..) => {}
                _ => {
                    self.ended = true;
                    let ended = self.codec.eof(&mut core.memory.borrow_mut().pool);
                    if let Err(broken) = ended {
                        return Poll::Ready(Err(Some(broken)));
                    }
                    continue; // a body may be complete so
                }
            }
            let mut input: &[u8] = &scratch;
            let read = {
                let pool = &mut core.memory.borrow_mut().pool;
                let read = self.codec.read(&mut input, pool, &core.limits);
                self.unread.keep(input, pool);
                read
            };
            match read {
                Ok(None) => {}
                Ok(Some(event)) => return Poll::Ready(Ok(on(event))),
                Err(broken) => return Poll::Ready(Err(Some(broken))),
            }
        }
    }

    /// The end of a request without body, which takes no byte.
    fn take_end(&mut self, core: &Core) {
        let pool = &mut core.memory.borrow_mut().pool;
        let _ = self.codec.read(&mut &[][..], pool, &core.limits);
    }

    pub fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
        core: &Core,
        take: impl FnOnce(&[u8]),
    ) -> Poll<Result<Piece, Cut>> {
        let heard = ready!(self.poll_next(cx, core, |event| match event {
            Read::Body(data) => {
                take(data);
                Some(Piece::Data(data.len()))
            }
            Read::End(trailers) => Some(Piece::End(trailers)),
            Read::Request(_) => None,
        }));
        Poll::Ready(match heard {
            Ok(Some(piece)) => Ok(piece),
            Err(Some(Broken::Body(_))) => Err(Cut::Broken),
            Ok(None) | Err(_) => Err(Cut::Gone),
        })
    }

    /// What the peer sends ahead is kept, as far as one read brings it.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>, core: &Core) -> Poll<()> {
        if self.ended {
            return Poll::Ready(());
        }
        if !self.unread.is_empty() {
            return Poll::Pending;
        }
        let mut scratch = Scratch::take();
        match ready!(self.wire.poll_read(cx, core, &mut scratch)) {
            Ok(1..) => {
                self.unread
                    .keep(&scratch, &mut core.memory.borrow_mut().pool);
                Poll::Pending
            }
            _ => {
                self.ended = true;
                Poll::Ready(())
            }
        }
    }

    pub fn proceed(&mut self, core: &Core) {
        self.wire.prepare(core);
        self.codec.proceed(&mut self.wire.out);
    }

    pub fn respond(&mut self, core: &Core, head: &ResponseHead, close: bool) -> Result<(), Cut> {
        self.wire.prepare(core);
        let begun = self.codec.respond(head, close, &mut self.wire.out);
        begun
            .map_err(|_| self.break_off())
            .map_err(|()| Cut::Broken)
    }

    pub fn body(&mut self, core: &Core, data: &[u8]) -> Result<usize, Cut> {
        self.wire.prepare(core);
        let written = self.codec.body(data, &mut self.wire.out);
        written.map_err(|_| Cut::Broken)?;
        Ok(data.len())
    }

    pub fn end(&mut self, core: &Core, trailers: Option<&HeaderList>) -> Result<(), Cut> {
        self.wire.prepare(core);
        let ended = self.codec.end(trailers, &mut self.wire.out);
        ended.map_err(|_| Cut::Broken)
    }

    pub fn reply(&mut self, core: &Core, reply: &Reply) {
        self.wire.prepare(core);
        if self.codec.reply(reply, &mut self.wire.out).is_err() {
            self.break_off();
        }
    }

    pub fn break_off(&mut self) {
        self.cut = true;
    }

    /// A head that was refused: answered, and the connection ends.
    fn refuse(&mut self, door: &Door, refusal: Refusal) {
        let core = &door.core;
        let mut tally = Tally::new(
            core,
            core.plan(),
            &door.watch,
            door.direction,
            core.wheel.now_us(),
        );
        core.count(Event::Refused);
        tally.refused("");
        let reply = refusal.reply();
        tally.answer(reply.status, None, reply.reason);
        self.reply(core, &reply);
        tally.finish_now();
    }

    pub fn poll_ready(&mut self, cx: &mut Context<'_>, core: &Core) -> Poll<()> {
        if self.wire.out.len() >= OUT_FULL {
            return self.poll_flush(cx, core);
        }
        Poll::Ready(())
    }

    pub fn poll_flush(&mut self, cx: &mut Context<'_>, core: &Core) -> Poll<()> {
        self.poll_write(cx, core)
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, core: &Core) -> Poll<()> {
        if ready!(self.wire.poll_flush(cx, core)).is_err() {
            self.cut = true;
            self.ended = true;
        }
        Poll::Ready(())
    }

    /// What comes after an answer. What is there of a request's body that nobody wanted is thrown away; more of it is not
    /// waited for.
    fn turn(&mut self, core: &Core) -> Turn {
        let turn = self.codec.turn();
        if turn != Turn::Unread {
            return turn;
        }
        let cx = &mut Context::from_waker(std::task::Waker::noop());
        for _ in 0..THROWN_AWAY_MAX {
            let piece = self.poll_piece(cx, core, |_| ());
            match piece {
                Poll::Ready(Ok(Piece::Data(_))) => {}
                Poll::Ready(Ok(Piece::End(_))) => return self.codec.turn(),
                _ => break,
            }
        }
        Turn::Close
    }
}

/// For the runtime to hear of what the socket has.
const UNHEARD_MS: u64 = 10;
/// More of an answer is not taken before some of this has left.
const OUT_FULL: usize = 64 << 10;
/// Pieces of a body that nobody wants.
const THROWN_AWAY_MAX: usize = 16;
