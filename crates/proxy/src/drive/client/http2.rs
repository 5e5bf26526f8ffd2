//! Connections that many requests share, at most a few per endpoint and core.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use phalanx_relay::http2::{Client, Event as Heard, Why};
use phalanx_relay::{Checked, Field, HeaderList, ResponseHead};
use tokio::sync::Notify;

use super::super::core::{Core, Endpoint};
use super::super::http2::{Connection, Handle, Inbox, Inner, Lost, Piece, out_max};
use super::super::secure;
use super::super::stream::{Link, Stream};
use super::super::timer::ms;
use super::super::wire::Wire;
use super::{Http1, Slot, unless_rejected};
use crate::account::Event;
use crate::plan::Alpn;
use crate::upstream::Fault;

/// HTTP/2 connections to one endpoint.
#[derive(Default)]
pub struct Http2Pool {
    connections: RefCell<Vec<Rc<Http2>>>,
    connecting: Cell<bool>,
    /// A connection was opened, or could not be.
    pub changed: Notify,
    /// Connections that could not be opened, and why the last one could not.
    failures: Cell<u32>,
    failed: Cell<Option<Fault>>,
    /// The endpoint left the plan. Who picked it before still opens what it needs, which ends with its last stream.
    retired: Cell<bool>,
    /// Streams at once that the peer took last; a new connection is not asked for more before it has told.
    allowed: Rc<Cell<Option<u32>>>,
}

/// A connection shared by streams.
pub struct Http2 {
    connection: Rc<Connection<Client>>,
    active: Cell<u32>,
    served: Cell<u32>,
    requests_max: u32,
    /// To a sidecar of ours, over TLS.
    mesh: bool,
    /// As the sweeps see it.
    idle_since_ms: Cell<u64>,
    /// The peer ended it, or is about to; or it is to end when its streams have.
    ending: Cell<bool>,
    /// Nobody moves it any more.
    ended: Cell<bool>,
    home: Weak<Http2Pool>,
    /// As in its pool.
    allowed: Rc<Cell<Option<u32>>>,
    /// When it is secured.
    link: Option<Rc<Link>>,
    /// Until it ends, however long others hold it.
    slot: RefCell<Option<Slot>>,
    freed: Rc<Notify>,
}

/// The right to open one stream.
pub struct Http2Lease {
    connection: Rc<Http2>,
    /// It was opened.
    is_used: bool,
}

impl Drop for Http2Lease {
    fn drop(&mut self) {
        let connection = &self.connection;
        if !self.is_used {
            let served = connection.served.get().saturating_sub(1);
            connection.served.set(served);
        }
        connection
            .active
            .set(connection.active.get().saturating_sub(1));
        connection.freed.notify_waiters();
        if connection.active.get() == 0 {
            match connection.home.upgrade() {
                Some(home) => home.forgo(connection),
                None => connection.ending.set(true),
            }
        }
        if connection.ending.get() {
            connection.connection.bell.ring();
        }
    }
}

/// Held by the one request that opens a connection for all that wait.
pub struct Connecting(Rc<Http2Pool>);

impl Drop for Connecting {
    fn drop(&mut self) {
        self.0.connecting.set(false);
        self.0.changed.notify_waiters();
    }
}

impl Http2Pool {
    /// A stream on the first connection that has room; with `mesh`, one to a sidecar of ours.
    pub fn lease(&self, streams_max: u32, mesh: bool) -> Option<Http2Lease> {
        let connections = self.connections.borrow();
        let fits = |c: &&Rc<Http2>| (c.mesh || !mesh) && c.has_room(streams_max);
        let connection = connections.iter().find(fits)?;
        Some(Http2Lease::new(connection.clone()))
    }

    pub fn failures(&self) -> u32 {
        self.failures.get()
    }

    /// Why a connection could not be opened, if one was tried in vain since there were `failures`: who waited for it need
    /// not try again.
    pub fn failed_since(&self, failures: u32) -> Option<Fault> {
        self.failed
            .get()
            .filter(|_| self.failures.get() != failures)
    }

    /// The right to open a connection; none while another request does.
    pub fn connecting(self: &Rc<Self>) -> Option<Connecting> {
        if self.connecting.replace(true) {
            None
        } else {
            Some(Connecting(self.clone()))
        }
    }

    pub fn sweep(&self, now_ms: u64, timeout_ms: u64) {
        let mut connections = self.connections.borrow_mut();
        for connection in connections.iter() {
            if connection.active.get() > 0 || connection.idle_since_ms.get() == NEW {
                connection.idle_since_ms.set(now_ms);
            }
        }
        let idle = |connection: &Http2| {
            let idle_ms = now_ms.saturating_sub(connection.idle_since_ms.get());
            connection.active.get() == 0 && idle_ms >= timeout_ms
        };
        let gone: Vec<_> = connections
            .extract_if(.., |connection| connection.ending.get() || idle(connection))
            .collect();
        drop(connections);
        gone.iter().for_each(|connection| connection.leave());
    }

    /// Drops one connection without streams; false when there is none.
    pub fn evict(&self) -> bool {
        let mut connections = self.connections.borrow_mut();
        let idle = connections.iter().position(|c| c.active.get() == 0);
        let evicted = idle.map(|place| connections.remove(place));
        drop(connections);
        evicted.inspect(|connection| connection.leave()).is_some()
    }

    /// No new stream on what is there; those under way go on.
    pub fn retire(&self) {
        self.retired.set(true);
        let gone = std::mem::take(&mut *self.connections.borrow_mut());
        gone.iter().for_each(|connection| connection.leave());
    }

    /// A connection's last stream is over: when retired, nobody sweeps it.
    fn forgo(&self, connection: &Rc<Http2>) {
        if self.retired.get() {
            let mut connections = self.connections.borrow_mut();
            connections.retain(|known| !Rc::ptr_eq(known, connection));
            connection.ending.set(true);
        }
    }
}

/// How an HTTP/2 connection is used.
#[derive(Clone, Copy, Debug)]
pub struct Http2Use {
    /// What is offered over TLS.
    pub alpn: Alpn,
    /// Over its life; 0 for no limit.
    pub requests_max: u32,
    /// Interval and time to answer. Only for peers that are known not to mind: many gRPC servers end a connection that
    /// is pinged often.
    pub pings: Option<(Duration, Duration)>,
}

impl Connecting {
    /// Opens a connection, and shares it; the first stream is the opener's, whatever becomes of the pool meanwhile. None
    /// where the peer speaks HTTP/1 only; the connection is in that pool then.
    ///
    /// # Errors
    /// As [`secure::connect`]; those who wait hear it too.
    pub async fn open(
        self,
        core: Rc<Core>,
        endpoint: Rc<Endpoint>,
        timeout: Duration,
        how: Http2Use,
        slot: Slot,
    ) -> Result<Option<Http2Lease>, Fault> {
        let connected = secure::connect(&core, &endpoint, how.alpn, timeout).await;
        if connected.is_ok() {
            core.count(Event::PoolOpened);
        }
        match connected {
            Ok((stream, Alpn::Http1)) => {
                Http1::new(stream, how.requests_max, slot).rest(&core, &endpoint);
                Ok(None)
            }
            Ok((stream, agreed)) => {
                let mesh = agreed == Alpn::Mesh;
                Ok(Some(self.speak(&core, stream, mesh, how, slot)))
            }
            Err(fault) => {
                self.0.failed.set(Some(fault));
                self.0.failures.set(self.0.failures.get().wrapping_add(1));
                Err(fault)
            }
        }
    }

    fn speak(
        &self,
        core: &Rc<Core>,
        stream: Stream,
        mesh: bool,
        how: Http2Use,
        slot: Slot,
    ) -> Http2Lease {
        let link = stream.link().cloned();
        let mut wire = Wire::new(stream);
        wire.prepare(core);
        let codec = Client::new(&core.http2.client, &mut wire.out);
        let opened = Rc::new(Http2 {
            connection: Connection::new(core, wire, codec),
            active: Cell::new(0),
            served: Cell::new(0),
            requests_max: how.requests_max,
            mesh,
            idle_since_ms: Cell::new(NEW),
            ending: Cell::new(false),
            ended: Cell::new(false),
            home: Rc::downgrade(&self.0),
            allowed: self.0.allowed.clone(),
            link,
            freed: slot.freed.clone(),
            slot: RefCell::new(Some(slot)),
        });
        tokio::task::spawn_local(opened.clone().run(how.pings));
        let mut connections = self.0.connections.borrow_mut();
        connections.retain(|known| !known.ending.get());
        connections.push(opened.clone());
        drop(connections);
        Http2Lease::new(opened)
    }
}

impl Http2 {
    fn has_room(&self, streams_max: u32) -> bool {
        let worn_out = self.requests_max > 0 && self.served.get() >= self.requests_max;
        if worn_out || self.ending.get() {
            return false;
        }
        let inner = self.connection.inner.borrow();
        let leased = self.active.get().saturating_sub(inner.codec.streams());
        let streams_max = match inner.codec.peer_streams() {
            Some(_) => streams_max,
            None => streams_max.min(self.allowed.get().unwrap_or(UNTOLD_STREAMS)),
        };
        inner.wire.out.len() < out_max(&self.connection.core)
            && self.active.get() < streams_max
            && inner.codec.room() > leased
    }

    /// Out of the pool: ends when its streams have.
    fn leave(&self) {
        self.ending.set(true);
        self.connection.bell.ring();
    }

    async fn run(self: Rc<Self>, pings: Option<(Duration, Duration)>) {
        let connection = &self.connection;
        let core = &connection.core;
        let _ended = End(&self);
        let mut pulse = pings.map(|(every, answer)| Pulse::new(core, ms(every), ms(answer)));
        let (mut said_goodbye, mut told, mut written) = (false, false, 0);
        let stall = core.wheel.alarm();
        poll_fn(|cx| {
            loop {
                let mut answered = false;
                let (polled, stalled) = connection.poll(cx, |_, event, _| match event {
                    Heard::Pong => answered = true,
                    Heard::GoAway { .. } => self.ending.set(true),
                    _ => {}
                });
                if polled.is_ready() {
                    return Poll::Ready(());
                }
                if !told && let Some(streams) = connection.inner.borrow().codec.peer_streams() {
                    told = true;
                    self.allowed.set(Some(streams.max(1)));
                    self.freed.notify_waiters();
                }
                // A peer that takes nothing for so long is none.
                let seen =
                    std::mem::replace(&mut written, connection.inner.borrow().wire.written());
                if !stalled {
                    stall.clear();
                } else if stall.is_unset() || seen != written {
                    let allowed = core.deadlines.stalled_write;
                    stall.set(core.wheel.now_ms().saturating_add(allowed));
                }
                if stall.poll(cx).is_ready() {
                    core.count(Event::WriteDeadline);
                    return Poll::Ready(());
                }
                if self.ending.get() && self.active.get() == 0 && !said_goodbye {
                    said_goodbye = true;
                    let inner = &mut *connection.inner.borrow_mut();
                    inner.wire.prepare(core);
                    inner.codec.drain(&mut inner.wire.out);
                    continue; // writes it
                }
                let Some(pulse) = &mut pulse else {
                    return Poll::Pending;
                };
                let inner = &mut *connection.inner.borrow_mut();
                match pulse.poll(cx, core, answered, &mut inner.codec) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Beat::Dead) => return Poll::Ready(()),
                    Poll::Ready(Beat::Ping) => {
                        inner.wire.prepare(core);
                        inner.codec.ping(&mut inner.wire.out);
                    }
                }
            }
        })
        .await;
    }
}

/// The connection is no more, however its task ended.
struct End<'c>(&'c Http2);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.ending.set(true);
        self.0.ended.set(true);
        self.0.connection.abandon();
        drop(self.0.slot.borrow_mut().take());
    }
}

/// Finds out whether a peer that says nothing is there, while streams wait for it.
struct Pulse {
    alarm: super::super::timer::Alarm,
    every_ms: u64,
    answer_ms: u64,
    frames: u32,
    asked: bool,
}

enum Beat {
    Ping,
    Dead,
}

impl Pulse {
    fn new(core: &Core, every_ms: u64, answer_ms: u64) -> Self {
        let alarm = core.wheel.alarm();
        alarm.set(core.wheel.now_ms().saturating_add(every_ms));
        Self {
            alarm,
            every_ms,
            answer_ms,
            frames: 0,
            asked: false,
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        core: &Core,
        answered: bool,
        codec: &mut Client,
    ) -> Poll<Beat> {
        if answered {
            self.asked = false;
        }
        while self.alarm.poll(cx).is_ready() {
            let moved = std::mem::replace(&mut self.frames, codec.frames()) != codec.frames();
            if self.asked && !moved {
                return Poll::Ready(Beat::Dead);
            }
            let ask = !moved && codec.streams() > 0;
            let wait = if ask { self.answer_ms } else { self.every_ms };
            self.asked = ask;
            self.alarm.set(core.wheel.now_ms().saturating_add(wait));
            if ask {
                return Poll::Ready(Beat::Ping);
            }
        }
        Poll::Pending
    }
}

impl Http2Lease {
    fn new(connection: Rc<Http2>) -> Self {
        connection.active.set(connection.active.get() + 1);
        let served = connection.served.get().saturating_add(1);
        connection.served.set(served);
        Self {
            connection,
            is_used: false,
        }
    }

    /// Whether its peer is a sidecar of ours.
    pub fn is_mesh(&self) -> bool {
        self.connection.mesh
    }

    /// Opens the stream with the head of its request.
    ///
    /// # Errors
    /// [`Fault::Unprocessed`]: to be sent on another connection.
    pub fn open<'e>(
        mut self,
        request: &Checked,
        extra: impl IntoIterator<Item = &'e Field>,
    ) -> Result<Http2Stream, Fault> {
        if self.connection.ended.get() {
            return Err(unless_rejected(&self.connection.link, Fault::Unprocessed));
        }
        let connection = self.connection.connection.clone();
        let mut inner = connection.inner.borrow_mut();
        inner.wire.prepare(&connection.core);
        let begun_at = inner.wire.queued();
        let Inner { wire, codec, .. } = &mut *inner;
        let Ok(stream) = codec.open(request, extra, &mut wire.out) else {
            return Err(Fault::Unprocessed);
        };
        let inbox = Inbox::new(&connection.core, false);
        inbox.begun_at.set(begun_at);
        inner.enter(stream, inbox.clone());
        drop(inner);
        self.is_used = true;
        connection.bell.ring();
        let handle = Handle {
            connection,
            stream,
            inbox,
            code: Cell::new(None),
        };
        Ok(Http2Stream {
            handle,
            lease: self,
        })
    }
}

/// One stream of a connection.
pub struct Http2Stream {
    handle: Handle<Client>,
    lease: Http2Lease,
}

impl Http2Stream {
    pub fn body(&self, data: &[u8]) -> Option<usize> {
        self.handle
            .with(|codec, stream, out| codec.body(stream, data, false, out))
            .ok()
    }

    pub fn end(&self, trailers: Option<&HeaderList>) {
        let ended = self
            .handle
            .with(|codec, stream, out| codec.end(stream, trailers, out));
        let _ = ended; // of a stream that was reset its answer tells
    }

    pub fn poll_head(&self, cx: &Context<'_>) -> Poll<Result<ResponseHead, Fault>> {
        self.handle.poll_head(cx).map_err(|lost| self.fault(lost))
    }

    pub fn poll_piece(
        &self,
        cx: &Context<'_>,
        take: impl FnOnce(&[u8]),
    ) -> Poll<Result<Piece, Fault>> {
        self.handle
            .poll_piece(cx, take)
            .map_err(|lost| self.fault(lost))
    }

    /// RFC 9113 §8.7: a stream refused, or above the last one of a GOAWAY, was not processed.
    fn fault(&self, lost: Lost) -> Fault {
        let connection = &self.lease.connection;
        let fault = match lost {
            // It said goodbye; one that refused a stream may take others.
            Lost::Reset(Why::Unprocessed) => {
                connection.ending.set(true);
                Fault::Unprocessed
            }
            Lost::Reset(why) if why.is_unprocessed() => Fault::Unprocessed,
            Lost::Reset(Why::Broken(_)) => Fault::BadAnswer,
            Lost::Connection { unsent: true } => Fault::Unprocessed,
            Lost::Reset(_) | Lost::Connection { .. } => Fault::Reset,
        };
        unless_rejected(&connection.link, fault)
    }
}

const NEW: u64 = u64::MAX;
/// Streams at once to a peer that has never told how many it takes: what others assume too.
const UNTOLD_STREAMS: u32 = 100;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arc_swap::ArcSwap;
    use phalanx_relay::{Deadlines, Limits};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::account::Account;
    use crate::plan::Plan;
    use crate::upstream::{Breaker, Permit, Share};

    #[test]
    fn a_stream_that_its_opener_gave_up_costs_the_connection_none_of_its_requests() {
        let plan = Arc::new(ArcSwap::from_pointee(Plan::empty()));
        let (account, limits) = (Arc::new(Account::new(1)), Limits::default());
        let core = Core::new(0, plan, account, limits, &Deadlines::default(), None);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build_local(tokio::runtime::LocalOptions::default())
            .unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let stream = Stream::Plain(TcpStream::connect(address).await.unwrap());
            let permit = Permit::take(Arc::<Breaker>::default(), Share::Connection, 1).unwrap();
            let slot = Slot::new(permit, &Rc::default());
            let how = Http2Use {
                alpn: Alpn::Http2,
                requests_max: 1,
                pings: None,
            };
            let pool = Rc::<Http2Pool>::default();
            let connecting = pool.connecting().unwrap();
            let opener = connecting.speak(&core, stream, false, how, slot);
            let other = pool.lease(100, false);
            assert!(other.is_none(), "its only request is the opener's");
            drop(opener);
            assert!(pool.lease(100, false).is_some());
        });
    }
}
