//! HTTP/2 connections of either role: one task each, which reads, tells streams what came for them, and writes what they
//! said meanwhile in one go.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use phalanx_relay::http2::{
    self, Batch, Bound, Broken, Client, Code, Config, Event, Server, Stream, Why,
};
use phalanx_relay::{HeaderList, Limits, Pool, ResponseHead};

use super::core::Core;
use super::wire::{Scratch, Wire};
use crate::account;

/// What both roles of the codec can do.
pub trait Codec {
    fn receive(
        &mut self,
        input: &[u8],
        now_s: u32,
        batch: &mut Batch,
        pool: &mut Pool,
        out: &mut Vec<u8>,
    ) -> Result<(), Broken>;
    fn writable(&mut self, out: &[u8]) -> Option<Stream>;
    fn consumed(&mut self, stream: Stream, len: usize, out: &mut Vec<u8>);
    fn release(&mut self, stream: Stream, out: &mut Vec<u8>);
    fn reset(&mut self, stream: Stream, code: Code, out: &mut Vec<u8>);
    fn is_done(&self) -> bool;
}

macro_rules! codec {
    ($role:ty) => {
        impl Codec for $role {
            #[inline]
            fn receive(
                &mut self,
                input: &[u8],
                now_s: u32,
                batch: &mut Batch,
                pool: &mut Pool,
                out: &mut Vec<u8>,
            ) -> Result<(), Broken> {
                Self::receive(self, input, now_s, batch, pool, out)
            }
            #[inline]
            fn writable(&mut self, out: &[u8]) -> Option<Stream> {
                Self::writable(self, out)
            }
            #[inline]
            fn consumed(&mut self, stream: Stream, len: usize, out: &mut Vec<u8>) {
                Self::consumed(self, stream, len, out);
            }
            #[inline]
            fn release(&mut self, stream: Stream, out: &mut Vec<u8>) {
                Self::release(self, stream, out);
            }
            #[inline]
            fn reset(&mut self, stream: Stream, code: Code, out: &mut Vec<u8>) {
                Self::reset(self, stream, code, out);
            }
            #[inline]
            fn is_done(&self) -> bool {
                Self::is_done(self)
            }
        }
    };
}

codec!(Server);
codec!(Client);

/// One connection: its task and its streams share it.
pub struct Connection<C> {
    pub core: Rc<Core>,
    pub inner: RefCell<Inner<C>>,
    pub bell: Bell,
}

pub struct Inner<C> {
    pub wire: Wire,
    pub codec: C,
    /// By the codec's small numbers.
    streams: Vec<Option<(Stream, Rc<Inbox>)>>,
}

/// Wakes a connection's task, once however often it is rung.
#[derive(Default)]
pub struct Bell {
    waker: RefCell<Option<Waker>>,
    rung: Cell<bool>,
}

impl Bell {
    #[inline]
    pub fn ring(&self) {
        if !self.rung.replace(true)
            && let Some(waker) = &*self.waker.borrow()
        {
            waker.wake_by_ref();
        }
    }

    #[inline]
    fn answer(&self, cx: &Context<'_>) {
        self.rung.set(false);
        park(&self.waker, cx);
    }
}

#[inline]
fn park(place: &RefCell<Option<Waker>>, cx: &Context<'_>) {
    let mut place = place.borrow_mut();
    match &mut *place {
        Some(known) if known.will_wake(cx.waker()) => {}
        Some(known) => known.clone_from(cx.waker()),
        None => *place = Some(cx.waker().clone()),
    }
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The peer has gone.
    Gone,
    /// We have said goodbye, and the peer should be able to read it.
    Told,
}

impl<C: Codec> Connection<C> {
    pub fn new(core: &Rc<Core>, wire: Wire, codec: C) -> Rc<Self> {
        Rc::new(Self {
            core: core.clone(),
            inner: RefCell::new(Inner {
                wire,
                codec,
                streams: Vec::new(),
            }),
            bell: Bell::default(),
        })
    }

    /// Reads what is there and writes what is to be written. `on` hears of what the streams don't, and of their beginnings.
    /// The first of the pair is ready when the connection has ended; the second tells whether the peer takes nothing.
    pub fn poll(
        &self,
        cx: &mut Context<'_>,
        mut on: impl FnMut(&mut Inner<C>, Event, &mut Pool),
    ) -> (Poll<Ended>, bool) {
        self.bell.answer(cx);
        let core = &*self.core;
        let inner = &mut *self.inner.borrow_mut();
        let (mut broken, mut full) = (false, false);
        for round in 0.. {
            // Bodies fill half of it at most; what reading makes us say has the other half. Else two ends that have much to
            // send would wait for each other.
            if inner.wire.out.len() >= out_max(core) {
                full = true;
                break;
            }
            if round == ROUNDS_MAX {
                cx.waker().wake_by_ref(); // others of this core want their turn
                break;
            }
            let mut scratch = Scratch::take();
            match inner.wire.poll_read(cx, core, &mut scratch) {
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(_) => return (Poll::Ready(Ended::Gone), false),
                Poll::Pending => break,
            }
            if inner.receive(core, &scratch, &mut on).is_err() {
                broken = true;
                break;
            }
        }
        inner.wake_writable();
        let stalled = match inner.wire.poll_flush(cx, core) {
            Poll::Ready(Ok(())) => false,
            Poll::Ready(Err(_)) => return (Poll::Ready(Ended::Gone), false),
            Poll::Pending => true,
        };
        if !stalled {
            inner.wake_writable();
            if full {
                cx.waker().wake_by_ref();
            }
        }
        let over = broken || !stalled && inner.codec.is_done();
        if over {
            return (Poll::Ready(Ended::Told), stalled);
        }
        (Poll::Pending, stalled)
    }

    /// Tells every stream that its connection is no more.
    pub fn abandon(&self) {
        let Ok(inner) = self.inner.try_borrow_mut() else {
            return; // only while a panic unwinds
        };
        let written = inner.wire.written();
        for (_, inbox) in inner.streams.iter().flatten() {
            inbox.lose(Lost::Connection {
                unsent: inbox.begun_at.get() >= written,
            });
        }
    }

    /// Lets the peer read our last words.
    pub async fn part(&self) {
        let mut left = super::wire::PARTING_BYTES;
        let core = &*self.core;
        let parting =
            std::future::poll_fn(|cx| self.inner.borrow_mut().wire.poll_part(cx, core, &mut left));
        let _ = tokio::time::timeout(super::wire::PARTING, parting).await;
    }
}

impl<C: Codec> Inner<C> {
    fn receive(
        &mut self,
        core: &Core,
        input: &[u8],
        on: &mut impl FnMut(&mut Self, Event, &mut Pool),
    ) -> Result<(), Broken> {
        let memory = &mut *core.memory.borrow_mut();
        if self.wire.out.capacity() == 0 {
            self.wire.out = memory.pool.buffer();
        }
        let now_s = (core.wheel.recent_ms() / 1000) as u32;
        let mut batch = std::mem::take(&mut memory.batch);
        let received = self.codec.receive(
            input,
            now_s,
            &mut batch,
            &mut memory.pool,
            &mut self.wire.out,
        );
        for event in batch.drain() {
            match event {
                Event::Data { stream, at, last } => {
                    if let Some(inbox) = self.inbox(stream) {
                        inbox.data(input.get(at).unwrap_or_default(), last, &mut memory.pool);
                    }
                }
                Event::Head { stream, head, last } => match self.inbox(stream) {
                    Some(inbox) => inbox.head(head, last),
                    None => memory.pool.put_head(head),
                },
                Event::End { stream, trailers } => {
                    if let Some(inbox) = self.inbox(stream) {
                        inbox.end(trailers);
                    }
                }
                Event::Reset { stream, why } => {
                    if let Some(inbox) = self.inbox(stream) {
                        inbox.lose(Lost::Reset(why));
                    }
                }
                Event::Interim { .. } => {}
                Event::Over(bound) => core.count(over(bound)),
                other => on(self, other, &mut memory.pool),
            }
        }
        memory.batch = batch;
        if let Err(Broken::Bound(bound)) = received {
            core.count(over(bound));
        }
        received
    }

    fn inbox(&self, stream: Stream) -> Option<&Rc<Inbox>> {
        let (known, inbox) = self.streams.get(stream.slot())?.as_ref()?;
        (*known == stream).then_some(inbox)
    }

    pub fn enter(&mut self, stream: Stream, inbox: Rc<Inbox>) {
        let slot = stream.slot();
        if self.streams.len() <= slot {
            self.streams.resize_with(slot + 1, || None);
        }
        if let Some(place) = self.streams.get_mut(slot) {
            *place = Some((stream, inbox));
        }
    }

    fn leave(&mut self, stream: Stream) {
        if let Some(place) = self.streams.get_mut(stream.slot())
            && place.as_ref().is_some_and(|(known, _)| *known == stream)
        {
            *place = None;
        }
    }

    fn wake_writable(&mut self) {
        while let Some(stream) = self.codec.writable(&self.wire.out) {
            if let Some(inbox) = self.inbox(stream) {
                inbox.wake();
            }
        }
    }
}

/// Bytes to be written beyond which nothing more is read.
pub fn out_max(core: &Core) -> usize {
    core.limits.send_buffer_bytes.saturating_mul(2)
}

fn over(bound: Bound) -> account::Event {
    match bound {
        Bound::Streams => account::Event::Http2Streams,
        Bound::Head => account::Event::Http2Head,
        Bound::Block => account::Event::Http2Block,
        Bound::Continuations => account::Event::Http2Continuations,
        Bound::Resets => account::Event::ResetLimit,
        Bound::Control => account::Event::Http2Control,
        Bound::Settings => account::Event::Http2Settings,
        Bound::Unread => account::Event::Http2Unread,
    }
}

/// What has come for one stream and nobody has taken yet.
#[derive(Default)]
pub struct Inbox {
    state: RefCell<State>,
    waker: RefCell<Option<Waker>>,
    /// Of a request that we send: where its head stands in all that is written to its connection.
    pub begun_at: Cell<u64>,
}

#[derive(Default)]
struct State {
    head: Option<ResponseHead>,
    /// Bounded by the stream's window.
    data: Vec<u8>,
    trailers: Option<HeaderList>,
    ended: bool,
    lost: Option<Lost>,
}

/// Why nothing more comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    Reset(Why),
    /// `unsent`: not a byte of the request had left.
    Connection {
        unsent: bool,
    },
}

/// The next of a body.
#[derive(Debug)]
pub enum Piece {
    Data(usize),
    End(Option<HeaderList>),
}

impl Inbox {
    /// `ended`: nothing follows the head.
    pub fn new(core: &Core, ended: bool) -> Rc<Self> {
        let inbox = core.inboxes.borrow_mut().pop().unwrap_or_default();
        inbox.state.borrow_mut().ended = ended;
        inbox
    }

    /// Whoever holds it last lets it go, for another stream.
    pub fn put(self: &Rc<Self>, core: &Core) {
        if Rc::strong_count(self) > 1 {
            return;
        }
        let mut spare = core.inboxes.borrow_mut();
        if spare.len() >= INBOXES_KEPT_MAX {
            return;
        }
        let memory = &mut *core.memory.borrow_mut();
        let state = &mut *self.state.borrow_mut();
        memory.pool.put_buffer(std::mem::take(&mut state.data));
        if let Some(head) = state.head.take() {
            memory.pool.put_head(head);
        }
        *state = State::default();
        self.waker.take();
        self.begun_at.set(0);
        spare.push(self.clone());
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    #[inline]
    pub fn park(&self, cx: &Context<'_>) {
        park(&self.waker, cx);
    }

    pub fn is_lost(&self) -> bool {
        self.state.borrow().lost.is_some()
    }

    fn head(&self, head: ResponseHead, last: bool) {
        let mut state = self.state.borrow_mut();
        state.head = Some(head);
        state.ended |= last;
        self.wake();
    }

    fn data(&self, data: &[u8], last: bool, pool: &mut Pool) {
        let mut state = self.state.borrow_mut();
        if !data.is_empty() {
            if state.data.capacity() == 0 {
                state.data = pool.buffer();
            }
            state.data.extend_from_slice(data);
        }
        state.ended |= last;
        self.wake();
    }

    fn end(&self, trailers: Option<HeaderList>) {
        let mut state = self.state.borrow_mut();
        state.trailers = trailers;
        state.ended = true;
        self.wake();
    }

    fn lose(&self, lost: Lost) {
        self.state.borrow_mut().lost.get_or_insert(lost);
        self.wake();
    }
}

/// One stream of a connection. Dropped, it is let go of: what is not complete is cancelled.
pub struct Handle<C: Codec> {
    pub connection: Rc<Connection<C>>,
    pub stream: Stream,
    pub inbox: Rc<Inbox>,
    /// Why it ends before its end, if it does.
    pub code: Cell<Option<Code>>,
}

impl<C: Codec> Handle<C> {
    /// Speaks to the codec; what it says is written when everybody has spoken.
    #[inline]
    pub fn with<R>(&self, speak: impl FnOnce(&mut C, Stream, &mut Vec<u8>) -> R) -> R {
        let inner = &mut *self.connection.inner.borrow_mut();
        inner.wire.prepare(&self.connection.core);
        let said = speak(&mut inner.codec, self.stream, &mut inner.wire.out);
        self.connection.bell.ring();
        said
    }

    /// The next of what came; `take` sees data.
    pub fn poll_piece(
        &self,
        cx: &Context<'_>,
        take: impl FnOnce(&[u8]),
    ) -> Poll<Result<Piece, Lost>> {
        let mut state = self.inbox.state.borrow_mut();
        if !state.data.is_empty() {
            let mut data = std::mem::take(&mut state.data);
            drop(state);
            take(&data);
            let len = data.len();
            data.clear();
            self.connection
                .core
                .memory
                .borrow_mut()
                .pool
                .put_buffer(data);
            let inner = &mut *self.connection.inner.borrow_mut();
            let before = inner.wire.out.len();
            inner.codec.consumed(self.stream, len, &mut inner.wire.out);
            if inner.wire.out.len() > before {
                self.connection.bell.ring();
            }
            return Poll::Ready(Ok(Piece::Data(len)));
        }
        if state.ended {
            return Poll::Ready(Ok(Piece::End(state.trailers.take())));
        }
        if let Some(lost) = state.lost {
            return Poll::Ready(Err(lost));
        }
        self.inbox.park(cx);
        Poll::Pending
    }

    /// The head of the answer.
    pub fn poll_head(&self, cx: &Context<'_>) -> Poll<Result<ResponseHead, Lost>> {
        let mut state = self.inbox.state.borrow_mut();
        if let Some(head) = state.head.take() {
            return Poll::Ready(Ok(head));
        }
        if let Some(lost) = state.lost {
            return Poll::Ready(Err(lost));
        }
        self.inbox.park(cx);
        Poll::Pending
    }
}

impl<C: Codec> Drop for Handle<C> {
    fn drop(&mut self) {
        let Ok(mut inner) = self.connection.inner.try_borrow_mut() else {
            return; // only while a panic unwinds
        };
        let inner = &mut *inner;
        inner.leave(self.stream);
        inner.wire.prepare(&self.connection.core);
        let out = &mut inner.wire.out;
        match self.code.get() {
            Some(code) => inner.codec.reset(self.stream, code, out),
            None => inner.codec.release(self.stream, out),
        }
        if !out.is_empty() || inner.codec.is_done() {
            self.connection.bell.ring();
        }
        self.inbox.put(&self.connection.core);
    }
}

/// How a core's connections are spoken.
pub struct Configs {
    /// From anybody.
    pub server: Arc<Config>,
    /// From sidecars: their one connection carries everybody's calls, and everybody may give up some.
    pub peer: Arc<Config>,
    pub client: Arc<Config>,
}

impl Configs {
    pub fn new(limits: &Limits) -> Self {
        let windows = |config: Config| Config {
            stream_window: STREAM_WINDOW,
            connection_window: connection_window(limits),
            ..config
        };
        let resets = Limits {
            resets: limits.resets.saturating_mul(PEER_RESETS),
            ..limits.clone()
        };
        Self {
            server: Arc::new(windows(Config::server(limits.clone()))),
            peer: Arc::new(windows(Config::server(resets.clone()))),
            client: Arc::new(windows(http2::Config::client(resets))),
        }
    }
}

/// Room for every stream's window: whoever doesn't read its own holds up no other stream of the connection.
fn connection_window(limits: &Limits) -> u32 {
    STREAM_WINDOW
        .saturating_mul(limits.streams)
        .clamp(STREAM_WINDOW, WINDOW_MAX)
}

/// What one stream may have in flight towards us.
const STREAM_WINDOW: u32 = 64 << 10;
/// As many times the resets are allowed to a connection that carries calls of many.
const PEER_RESETS: u32 = 100;
/// RFC 9113 §6.9.1.
const WINDOW_MAX: u32 = (1 << 31) - 1;
/// A core keeps as many for streams to come.
const INBOXES_KEPT_MAX: usize = 256;
/// Reads before others of the core get a turn.
const ROUNDS_MAX: u32 = 8;
