//! Bytes both ways, unread: WebSockets after their 101, and raw TCP. A tunnel that is idle holds no buffer: all of a core
//! read into the same one. A direction that moves much, in plain text on both sides, is spliced: the kernel passes its
//! pages on, and none is copied here.

mod pipe;

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use self::pipe::Pipe;
use super::client::Http1;
use super::core::Core;
use super::shut;
use super::stream::{Stream, TlsIo};
use super::tally::Tally;
use crate::account::{Event, Flow as Counted};
use crate::directory::Entry;

/// A WebSocket between its 101 and its end.
pub struct Upgraded {
    core: Rc<Core>,
    upstream: Box<Http1>,
    tally: Tally,
    /// It lasts no longer than its session is there.
    seat: Option<Arc<Entry>>,
}

impl Upgraded {
    pub fn new(
        core: &Rc<Core>,
        upstream: Box<Http1>,
        tally: Tally,
        seat: Option<Arc<Entry>>,
    ) -> Self {
        Self {
            core: core.clone(),
            upstream,
            tally,
            seat,
        }
    }

    /// `early`: what the caller sent behind its request.
    pub async fn run(mut self, downstream: Stream, early: Bytes) {
        let Some((upstream, answered_early, _slot)) = self.upstream.into_tunnel() else {
            return;
        };
        let (downstream, upstream) = (End::new(downstream), End::new(upstream));
        let seen = self.tally.flow();
        let mut tunnel = Tunnel::new(&downstream, &upstream);
        if let Some(seen) = seen.as_deref() {
            seen.request(&early);
            seen.response(&answered_early);
            tunnel.up.seen = Some((seen, Counted::request));
            tunnel.down.seen = Some((seen, Counted::response));
        }
        tunnel.up.pending = early;
        tunnel.down.pending = answered_early.into();
        let running = tunnel.run(&self.core, self.core.deadlines.stream_idle, |_, _| {});
        match shut::while_seated(self.seat.take(), running).await {
            Some(Ended::Idle) => self.core.count(Event::StreamIdleDeadline),
            Some(Ended::Closed | Ended::Broken) => {}
            None => self.core.count(Event::SessionMoved),
        }
        self.tally.finish_now();
    }
}

/// Two streams joined.
pub struct Tunnel<'s> {
    up: Flow<'s>,
    down: Flow<'s>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Both sides closed.
    Closed,
    /// A side broke.
    Broken,
    /// Nothing moved for too long.
    Idle,
}

/// One side. In plain text both directions use the socket at once; TLS has one state for both.
pub enum End {
    Plain(TcpStream),
    Tls(RefCell<Box<TlsIo>>),
}

impl End {
    pub fn new(stream: Stream) -> Self {
        match stream {
            Stream::Plain(stream) => Self::Plain(stream),
            Stream::Tls(io) => Self::Tls(RefCell::new(io)),
        }
    }

    /// Writes some of `bytes`; under TLS, what was written before has to have left.
    fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(stream) => loop {
                ready!(stream.poll_write_ready(cx))?;
                match stream.try_write(bytes) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    written => return Poll::Ready(written),
                }
            },
            Self::Tls(io) => {
                let mut io = io.borrow_mut();
                ready!(Pin::new(&mut **io).poll_flush(cx))?;
                Pin::new(&mut **io).poll_write(cx, bytes)
            }
        }
    }

    /// Under TLS, bytes that were taken may still lie here.
    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(_) => Poll::Ready(Ok(())),
            Self::Tls(io) => Pin::new(&mut **io.borrow_mut()).poll_flush(cx),
        }
    }

    /// Passes the end of a direction on; the other may go on.
    fn poll_finish(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Plain(stream) => {
                // A peer that is gone already needs no word.
                let _ = socket2::SockRef::from(stream).shutdown(std::net::Shutdown::Write);
                Poll::Ready(())
            }
            Self::Tls(io) => Pin::new(&mut **io.borrow_mut())
                .poll_shutdown(cx)
                .map(|_| ()),
        }
    }

    /// Reads into `scratch`; 0 at the end.
    fn poll_read(&self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(stream) => loop {
                ready!(stream.poll_read_ready(cx))?;
                match stream.try_read(scratch) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    read => return Poll::Ready(read),
                }
            },
            Self::Tls(io) => {
                let mut buf = ReadBuf::new(scratch);
                ready!(Pin::new(&mut **io.borrow_mut()).poll_read(cx, &mut buf))?;
                Poll::Ready(Ok(buf.filled().len()))
            }
        }
    }
}

/// One direction.
struct Flow<'s> {
    from: &'s End,
    to: &'s End,
    /// Read and not yet written.
    pending: Bytes,
    /// While it is spliced; between two loads of bytes it is given back.
    pipe: Option<Pipe>,
    /// Bytes that came in large reads, one after the other.
    run: usize,
    /// Loads in a row that were hardly worth a pipe.
    meagre: u8,
    read_end: bool,
    closed: bool,
    moved: u64,
    /// Where what is read is counted by messages, and in which direction.
    seen: Option<(&'s Counted, Count)>,
}

type Count = fn(&Counted, &[u8]);

impl<'s> Tunnel<'s> {
    pub fn new(downstream: &'s End, upstream: &'s End) -> Self {
        let flow = |from, to| Flow {
            from,
            to,
            pending: Bytes::new(),
            pipe: None,
            run: 0,
            meagre: 0,
            read_end: false,
            closed: false,
            moved: 0,
            seen: None,
        };
        Self {
            up: flow(downstream, upstream),
            down: flow(upstream, downstream),
        }
    }

    /// Until both directions have ended. Each end of a direction is passed on as one (half-close). `moved` hears of
    /// bytes towards upstream and from it.
    pub async fn run(
        &mut self,
        core: &Core,
        idle_ms: u64,
        mut moved: impl FnMut(u64, u64),
    ) -> Ended {
        let alarm = core.wheel.alarm();
        alarm.set(core.wheel.now_ms().saturating_add(idle_ms));
        let mut quiet = true;
        let ended = poll_fn(|cx| {
            let broken = [self.up.poll(cx), self.down.poll(cx)]
                .into_iter()
                .any(|flow| matches!(flow, Poll::Ready(Err(_))));
            let (sent, received) = (
                std::mem::take(&mut self.up.moved),
                std::mem::take(&mut self.down.moved),
            );
            if sent + received > 0 {
                quiet = false;
                moved(sent, received);
            }
            if broken {
                return Poll::Ready(Ended::Broken);
            }
            if self.up.closed && self.down.closed {
                return Poll::Ready(Ended::Closed);
            }
            while alarm.poll(cx).is_ready() {
                if std::mem::replace(&mut quiet, true) {
                    return Poll::Ready(Ended::Idle);
                }
                alarm.set(core.wheel.now_ms().saturating_add(idle_ms));
            }
            Poll::Pending
        })
        .await;
        alarm.clear();
        ended
    }
}

impl Flow<'_> {
    /// Moves what can be moved now.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        for _ in 0..ROUNDS_MAX {
            if self.closed {
                return Poll::Ready(Ok(()));
            }
            while !self.pending.is_empty() {
                let written = ready!(self.to.poll_write(cx, &self.pending))?;
                self.pending.advance(written);
                self.moved += written as u64;
            }
            ready!(self.drain(cx))?;
            ready!(self.to.poll_flush(cx))?;
            if self.read_end {
                ready!(self.to.poll_finish(cx));
                self.closed = true;
                return Poll::Ready(Ok(()));
            }
            match self.pipe() {
                Some(pipe) => ready!(self.fill(cx, pipe))?,
                None => ready!(SCRATCH.with_borrow_mut(|scratch| self.pump(cx, scratch)))?,
            }
        }
        // Others of this core want their turn.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// One read, and the write of it as far as the other side takes it.
    fn pump(&mut self, cx: &mut Context<'_>, scratch: &mut Vec<u8>) -> Poll<io::Result<()>> {
        scratch.resize(BUFFER_BYTES, 0);
        let read = ready!(self.from.poll_read(cx, scratch))?;
        if read == 0 {
            self.read_end = true;
            return Poll::Ready(Ok(()));
        }
        self.run = match read >= LARGE_BYTES {
            true => self.run.saturating_add(read),
            false => 0,
        };
        let chunk = scratch.get(..read).unwrap_or_default();
        if let Some((seen, count)) = self.seen {
            count(seen, chunk);
        }
        let written = match self.to.poll_write(cx, chunk) {
            Poll::Ready(written) => written?,
            Poll::Pending => 0,
        };
        self.moved += written as u64;
        self.pending = Bytes::copy_from_slice(chunk.get(written..).unwrap_or_default());
        Poll::Ready(Ok(()))
    }

    /// An empty pipe to move the next bytes through, if they are likely to be many.
    fn pipe(&mut self) -> Option<Pipe> {
        let is_plain = matches!((self.from, self.to), (End::Plain(_), End::Plain(_)));
        if !is_plain || self.seen.is_some() || self.run < SPLICED_FROM_BYTES {
            return None;
        }
        self.pipe.take().or_else(Pipe::take)
    }

    /// One load into the pipe, and as much of it out again as the other side takes.
    fn fill(&mut self, cx: &mut Context<'_>, mut pipe: Pipe) -> Poll<io::Result<()>> {
        let End::Plain(from) = self.from else {
            return Poll::Ready(Ok(()));
        };
        let load = loop {
            // Nothing to read for now: the pipe goes back.
            ready!(from.poll_read_ready(cx))?;
            match from.try_io(Interest::READABLE, || pipe.fill(from)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                load => break load?,
            }
        };
        if load == 0 {
            self.read_end = true;
            return Poll::Ready(Ok(()));
        }
        self.meagre = match load < MEAGRE_BYTES {
            true => self.meagre + 1,
            false => 0,
        };
        if self.meagre >= MEAGRE_MAX {
            (self.meagre, self.run) = (0, 0);
        }
        self.pipe = Some(pipe);
        match self.drain(cx) {
            Poll::Ready(drained) => Poll::Ready(drained),
            // Waiting for the other side is the next round's first thing.
            Poll::Pending => Poll::Ready(Ok(())),
        }
    }

    /// Moves what the pipe holds to the other side.
    fn drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (Some(pipe), End::Plain(to)) = (&mut self.pipe, self.to) else {
            return Poll::Ready(Ok(()));
        };
        while !pipe.is_empty() {
            ready!(to.poll_write_ready(cx))?;
            match to.try_io(Interest::WRITABLE, || pipe.drain(to)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                moved => self.moved += moved? as u64,
            }
        }
        Poll::Ready(Ok(()))
    }
}

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Measured: smaller ones cost a third more per byte.
const BUFFER_BYTES: usize = 256 << 10;
/// A direction is spliced after it has moved this much in large reads, one after the other: for less, and for many small
/// messages, a pipe costs more than a copy.
const SPLICED_FROM_BYTES: usize = 64 << 10;
const LARGE_BYTES: usize = 16 << 10;
/// It is copied again after so many loads in a row of less than this.
const MEAGRE_BYTES: usize = 4 << 10;
const MEAGRE_MAX: u8 = 8;
/// Reads before others get a turn.
const ROUNDS_MAX: usize = 8;
