//! A connection from downstream and the watch on it: what it is doing, and since when it should have moved on.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::core::Core;
use super::frames::Frames;
use super::stream::Stream;
use super::timer::{Alarm, NEVER};
use crate::account::Event;

/// What a connection is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No request under way.
    Idle,
    /// A head has begun and not ended.
    Head,
    /// At least one request under way; it has deadlines of its own.
    Busy,
}

/// Shared by a connection's socket, its driver and its requests.
pub struct Watch {
    pub alarm: Alarm,
    /// Of the peer.
    pub address: Option<SocketAddr>,
    phase: Cell<Phase>,
    /// Requests under way.
    active: Cell<u32>,
    head_timed: Cell<bool>,
    write_stalled: Cell<bool>,
    write_stalled_timed: Cell<bool>,
    idle_since_ms: Cell<u64>,
    draining: Cell<bool>,
    doomed: Cell<bool>,
    /// Speaks HTTP/2: bytes may come between requests, and heads during them.
    http2: Cell<bool>,
    frames: RefCell<Frames>,
    /// HTTP/2: a head has begun and not ended.
    head_open: Cell<bool>,
    /// Requests seen, and those that the peer gave up before their answer.
    pub requests: Cell<u32>,
    pub resets: Cell<u32>,
}

impl Watch {
    pub fn new(core: &Core, address: Option<SocketAddr>) -> Rc<Self> {
        let watch = Self {
            address,
            alarm: core.wheel.alarm(),
            phase: Cell::new(Phase::Idle),
            active: Cell::new(0),
            head_timed: Cell::new(false),
            write_stalled: Cell::new(false),
            write_stalled_timed: Cell::new(false),
            idle_since_ms: Cell::new(core.wheel.now_ms()),
            draining: Cell::new(false),
            doomed: Cell::new(false),
            http2: Cell::new(false),
            frames: RefCell::default(),
            head_open: Cell::new(false),
            requests: Cell::new(0),
            resets: Cell::new(0),
        };
        Rc::new(watch)
    }

    pub fn speaks_http2(&self) {
        self.http2.set(true);
        self.phase.set(Phase::Idle);
    }

    pub fn is_http2(&self) -> bool {
        self.http2.get()
    }

    pub fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// A request came.
    #[inline]
    pub fn enter(&self) {
        self.active.set(self.active.get() + 1);
        self.requests.set(self.requests.get().saturating_add(1));
        self.phase.set(Phase::Busy);
        if self.head_open.get() {
            return;
        }
        self.head_timed.set(false);
        if !self.write_stalled.get() {
            self.alarm.clear();
        }
    }

    /// A request and its answer are over.
    #[inline]
    pub fn leave(&self, core: &Core, now_ms: u64) {
        let left = self.active.get().saturating_sub(1);
        self.active.set(left);
        if left == 0 {
            self.phase.set(Phase::Idle);
            self.idle_since_ms.set(now_ms);
            self.time_idle(core);
        }
    }

    pub fn time_idle(&self, core: &Core) {
        if self.write_stalled.get() || self.head_open.get() {
            return;
        }
        let allowed = if self.draining.get() {
            core.deadlines.drain_idle
        } else {
            core.deadlines.idle
        };
        self.alarm
            .set(self.idle_since_ms.get().saturating_add(allowed));
    }

    /// Told to end soon.
    pub fn drain(&self, core: &Core) {
        self.draining.set(true);
        if self.phase.get() == Phase::Idle {
            self.idle_since_ms.set(core.wheel.now_ms());
            self.time_idle(core);
        }
        self.alarm.wake();
    }

    pub fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Ends the connection at the next look.
    pub fn doom(&self) {
        self.doomed.set(true);
        self.alarm.wake();
    }

    pub fn is_doomed(&self) -> bool {
        self.doomed.get()
    }

    /// After each poll of the connection: starts the clocks for what it is now waiting for.
    #[inline]
    pub fn settle(&self, core: &Core) {
        let in_head = self.phase.get() == Phase::Head || self.head_open.get();
        if in_head && !self.head_timed.replace(true) {
            self.alarm
                .set(core.wheel.now_ms().saturating_add(core.deadlines.head));
        }
        if self.write_stalled.get() {
            if !self.write_stalled_timed.replace(true) {
                self.alarm.set(
                    core.wheel
                        .now_ms()
                        .saturating_add(core.deadlines.stalled_write),
                );
            }
        } else if self.phase.get() == Phase::Idle && self.alarm.is_unset() {
            self.time_idle(core);
        }
    }

    /// The alarm went off: what was missed, if it still is.
    pub fn missed(&self, core: &Core) -> Option<Event> {
        if self.write_stalled.get() {
            return Some(Event::WriteDeadline);
        }
        if self.head_open.get() {
            return Some(Event::HeadDeadline);
        }
        match self.phase.get() {
            Phase::Idle => {
                let idle_ms = core.wheel.now_ms().saturating_sub(self.idle_since_ms.get());
                let allowed = if self.draining.get() {
                    core.deadlines.drain_idle
                } else {
                    core.deadlines.idle
                };
                if idle_ms >= allowed {
                    return Some(Event::IdleDeadline);
                }
                self.time_idle(core);
                None
            }
            Phase::Head => Some(Event::HeadDeadline),
            Phase::Busy => None,
        }
    }

    /// HTTP/2: what the bytes just read begin or end. The clock of a head starts when the connection settles.
    #[inline]
    fn follow(&self, bytes: &[u8]) {
        let mut frames = self.frames.borrow_mut();
        let ended = frames.read(bytes);
        let was_open = self.head_open.replace(frames.is_midway());
        if was_open && ended {
            self.head_timed.set(false);
            if !self.write_stalled.get() {
                self.alarm.set(NEVER);
            }
        }
    }

    /// The clock that was stopped for the stall starts anew when the connection settles.
    #[inline]
    fn wrote(&self, pending: bool) {
        if pending {
            self.write_stalled.set(true);
        } else if self.write_stalled.replace(false) {
            self.write_stalled_timed.set(false);
            self.head_timed.set(false);
            self.alarm.set(NEVER);
        }
    }
}

/// What hyper reads from and writes to.
pub struct Socket {
    stream: Stream,
    side: Side,
}

enum Side {
    Downstream(Rc<Watch>),
    /// Counts the bytes that were read; the request's own deadlines watch the rest.
    Upstream(Rc<Cell<usize>>),
}

impl Socket {
    /// From downstream.
    pub fn watched(stream: Stream, watch: Rc<Watch>) -> Self {
        Self {
            stream,
            side: Side::Downstream(watch),
        }
    }

    /// To upstream. `read` grows with every byte that comes.
    pub fn upstream(stream: Stream, read: Rc<Cell<usize>>) -> Self {
        Self {
            stream,
            side: Side::Upstream(read),
        }
    }

    pub fn into_stream(self) -> Stream {
        self.stream
    }

    #[inline]
    fn noted(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Side::Downstream(watch) = &self.side {
            watch.wrote(result.is_pending());
        }
        result
    }
}

impl AsyncRead for Socket {
    #[inline]
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        let read = buf.filled().get(before..).unwrap_or_default();
        if read.is_empty() {
            return result;
        }
        match &self.side {
            Side::Downstream(watch) if watch.http2.get() => watch.follow(read),
            Side::Downstream(watch) if watch.phase.get() == Phase::Idle => {
                watch.phase.set(Phase::Head);
                watch.head_timed.set(false);
            }
            Side::Downstream(_) => {}
            Side::Upstream(count) => count.set(count.get().saturating_add(read.len())),
        }
        result
    }
}

impl AsyncWrite for Socket {
    #[inline]
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.noted(result)
    }

    #[inline]
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.noted(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// Of TLS a write is done when it is flushed.
    #[inline]
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        if let (Stream::Tls(_), Side::Downstream(watch)) = (&self.stream, &self.side) {
            watch.wrote(result.is_pending());
        }
        result
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
