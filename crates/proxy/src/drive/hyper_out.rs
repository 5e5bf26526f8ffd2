//! hyper towards upstream: one exchange at a time on HTTP/1 connections, which are polled by whoever leases them; many on
//! HTTP/2 connections, which have a task each.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use phalanx_relay::Limits;
use tokio::sync::Notify;

use super::body::UpBody;
use super::core::{Core, Endpoint};
use super::secure;
use super::socket::Socket;
use super::stream::{Link, Stream};
use crate::plan::Alpn;
use crate::upstream::{Breaker, Completion, Fault, Lease, Permit};

/// A connection that carries one exchange at a time. No task of its own: it moves when it is polled.
pub struct H1 {
    sender: http1::SendRequest<UpBody>,
    connection: http1::Connection<TokioIo<Socket>, UpBody>,
    closed: bool,
    requests_max: u32,
    /// Bytes read since the last request was sent, and how many of them may come before the head of its answer is
    /// complete: interim answers are not listened to for ever.
    read: Rc<Cell<usize>>,
    read_max: usize,
    /// When it is secured.
    link: Option<Rc<Link>>,
    slot: Slot,
}

/// A connection's share of the cluster's limit. Given back, it tells those who wait for one.
pub struct Slot {
    permit: Option<Permit<Arc<Breaker>>>,
    freed: Rc<Notify>,
}

impl Slot {
    pub fn new(permit: Permit<Arc<Breaker>>, freed: &Rc<Notify>) -> Self {
        Self {
            permit: Some(permit),
            freed: freed.clone(),
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.permit = None;
        self.freed.notify_waiters();
    }
}

impl H1 {
    /// Speaks HTTP/1 on a fresh stream.
    ///
    /// # Errors
    /// None that hyper has today.
    pub async fn open(
        stream: Stream,
        limits: &Limits,
        requests_max: u32,
        slot: Slot,
    ) -> Result<Box<Self>, Fault> {
        let link = stream.link().cloned();
        let read = Rc::<Cell<usize>>::default();
        let io = TokioIo::new(Socket::upstream(stream, read.clone()));
        let head_max = limits.head_bytes.max(MIN_BUF);
        let opened = http1::Builder::new()
            .max_buf_size(head_max)
            .handshake(io)
            .await;
        let (sender, connection) = opened.map_err(|_| Fault::ConnectFailed)?;
        Ok(Box::new(Self {
            sender,
            connection,
            closed: false,
            requests_max,
            read,
            read_max: head_max.saturating_mul(2),
            link,
            slot,
        }))
    }

    /// Moves the connection on.
    fn drive(&mut self, cx: &mut Context<'_>) {
        if !self.closed {
            self.closed = self.connection.poll_without_shutdown(cx).is_ready();
        }
    }

    /// Whether an idle connection is still open and has nothing unread. Costs no system call: the runtime knows.
    pub fn is_usable(&mut self) -> bool {
        self.is_usable_in(&mut Context::from_waker(Waker::noop()))
    }

    pub fn is_usable_in(&mut self, cx: &mut Context<'_>) -> bool {
        self.drive(cx);
        !self.closed && self.sender.is_ready()
    }

    /// Begins to send; moves on with the connection.
    pub fn send(&mut self, request: Request<UpBody>) -> impl Sending + use<> {
        self.read.set(0);
        self.sender.try_send_request(request)
    }

    /// After a 101: the stream, what was read of it already, and its share of the limit.
    pub async fn into_tunnel(mut self: Box<Self>) -> (Stream, Bytes, Slot) {
        poll_fn(|cx| {
            self.drive(cx);
            if self.closed {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
        let Self {
            connection, slot, ..
        } = *self;
        let parts = connection.into_parts();
        (parts.io.into_inner().into_stream(), parts.read_buf, slot)
    }
}

/// Waits for the head of the answer to what [`H1::send`] has begun. `expired` is polled beside it.
pub async fn answer_h1<E>(
    lease: &mut Lease<Box<H1>>,
    mut answer: Pin<&mut impl Sending>,
    mut expired: impl FnMut(&mut Context<'_>) -> Poll<E>,
) -> Result<Response<Incoming>, Sent<E>> {
    let reused = lease.is_reused();
    let h1 = &mut lease.connection;
    poll_fn(|cx| {
        h1.drive(cx);
        match answer.as_mut().poll(cx) {
            Poll::Ready(Ok(response)) => return Poll::Ready(Ok(response)),
            Poll::Ready(Err(mut error)) => {
                let unsent = error.take_message().is_some();
                let fault = h1_fault(&error.into_error(), unsent, reused);
                let fault = unless_rejected(&h1.link, fault);
                return Poll::Ready(Err(Sent::Failed(fault)));
            }
            Poll::Pending if h1.closed => {
                let fault = unless_rejected(&h1.link, Fault::Reset);
                return Poll::Ready(Err(Sent::Failed(fault)));
            }
            Poll::Pending if h1.read.get() > h1.read_max => {
                return Poll::Ready(Err(Sent::Failed(Fault::BadAnswer)));
            }
            Poll::Pending => {}
        }
        expired(cx).map(|expiry| Err(Sent::Expired(expiry)))
    })
    .await
}

/// What looks like a broken connection may be the peer's word on our certificate, which in TLS 1.3 comes after our end of
/// the handshake: then nobody has read the request.
fn unless_rejected(link: &Option<Rc<Link>>, fault: Fault) -> Fault {
    match link {
        Some(link) if link.is_rejected() => Fault::Mistrust,
        _ => fault,
    }
}

/// A request on its way, as hyper has it.
pub trait Sending:
    Future<Output = Result<Response<Incoming>, TrySendError<Request<UpBody>>>>
{
}

impl<F> Sending for F where
    F: Future<Output = Result<Response<Incoming>, TrySendError<Request<UpBody>>>>
{
}

/// Why a request that was sent has no answer.
pub enum Sent<E> {
    Failed(Fault),
    Expired(E),
}

fn h1_fault(error: &hyper::Error, unsent: bool, reused: bool) -> Fault {
    if unsent {
        Fault::Unprocessed
    } else if error.is_parse() || error.is_parse_status() {
        Fault::BadAnswer
    } else if reused
        && (error.is_incomplete_message()
            || error.is_canceled()
            || io_kind(error).is_some_and(is_gone))
    {
        Fault::Stale
    } else {
        Fault::Reset
    }
}

fn io_kind(error: &hyper::Error) -> Option<io::ErrorKind> {
    let source = std::error::Error::source(error)?;
    source.downcast_ref::<io::Error>().map(io::Error::kind)
}

fn is_gone(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::NotConnected
    )
}

/// HTTP/2 connections to one endpoint.
#[derive(Default)]
pub struct H2Pool {
    connections: RefCell<Vec<Rc<H2>>>,
    connecting: Cell<bool>,
    /// A connection was opened, or could not be.
    pub changed: Notify,
    /// Connections that could not be opened, and why the last one could not.
    failures: Cell<u32>,
    failed: Cell<Option<Fault>>,
    retired: Cell<bool>,
}

/// A connection shared by streams. Ends when nobody holds it.
pub struct H2 {
    sender: RefCell<http2::SendRequest<UpBody>>,
    active: Cell<u32>,
    served: Cell<u32>,
    requests_max: u32,
    /// As the sweeps see it.
    idle_since_ms: Cell<u64>,
    /// The peer ended it, or is about to.
    ending: Rc<Cell<bool>>,
    /// Streams that the peer takes at once.
    peer_max: Rc<Cell<u32>>,
    /// When it is secured.
    link: Option<Rc<Link>>,
    slot: Slot,
}

/// One stream of a connection.
pub struct H2Lease(Rc<H2>);

impl Drop for H2Lease {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get().saturating_sub(1));
        self.0.slot.freed.notify_waiters();
    }
}

/// Held by the one request that opens a connection for all that wait.
pub struct Connecting(Rc<H2Pool>);

impl Drop for Connecting {
    fn drop(&mut self) {
        self.0.connecting.set(false);
        self.0.changed.notify_waiters();
    }
}

impl H2Pool {
    /// A stream on the first connection that has room.
    pub fn lease(&self, streams_max: u32) -> Option<H2Lease> {
        let connections = self.connections.borrow();
        let connection = connections
            .iter()
            .find(|connection| connection.has_room(streams_max))?;
        connection.active.set(connection.active.get() + 1);
        connection
            .served
            .set(connection.served.get().saturating_add(1));
        Some(H2Lease(connection.clone()))
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
        for connection in connections
            .iter()
            .filter(|connection| connection.active.get() > 0 || connection.is_new())
        {
            connection.idle_since_ms.set(now_ms);
        }
        let idle = |connection: &H2| {
            let idle_ms = now_ms.saturating_sub(connection.idle_since_ms.get());
            connection.active.get() == 0 && idle_ms >= timeout_ms
        };
        let gone: Vec<_> = connections
            .extract_if(.., |connection| connection.is_ending() || idle(connection))
            .collect();
        drop(connections);
        drop(gone);
    }

    /// Drops one connection without streams; false when there is none.
    pub fn evict(&self) -> bool {
        let mut connections = self.connections.borrow_mut();
        let idle = connections
            .iter()
            .position(|connection| connection.active.get() == 0);
        let evicted = idle.map(|place| connections.remove(place));
        drop(connections);
        evicted.is_some()
    }

    /// No new stream; those under way go on.
    pub fn retire(&self) {
        self.retired.set(true);
        let gone = std::mem::take(&mut *self.connections.borrow_mut());
        drop(gone);
    }
}

/// How an HTTP/2 connection is used.
#[derive(Clone, Copy, Debug)]
pub struct H2Use {
    /// Over its life; 0 for no limit.
    pub requests_max: u32,
    /// Interval and time to answer. Only for peers that are known not to mind: many gRPC servers end a connection that
    /// is pinged often.
    pub pings: Option<(Duration, Duration)>,
}

impl Connecting {
    /// Opens a connection, and shares it.
    ///
    /// # Errors
    /// As [`secure::connect`], and [`Fault::ConnectFailed`] when the peer doesn't speak HTTP/2; those who wait hear it too.
    pub async fn open(
        self,
        core: &Rc<Core>,
        endpoint: &Endpoint,
        timeout: Duration,
        how: H2Use,
        slot: Slot,
    ) -> Result<H2Lease, Fault> {
        let opened = match secure::connect(core, endpoint, Alpn::Http2, timeout).await {
            Ok(stream) => self.speak(stream, &core.limits, how, slot).await,
            Err(fault) => Err(fault),
        };
        if let Err(fault) = &opened {
            self.0.failed.set(Some(*fault));
            self.0.failures.set(self.0.failures.get().wrapping_add(1));
        }
        opened
    }

    async fn speak(
        &self,
        stream: Stream,
        limits: &Limits,
        how: H2Use,
        slot: Slot,
    ) -> Result<H2Lease, Fault> {
        let link = stream.link().cloned();
        let io = TokioIo::new(Socket::upstream(stream, Rc::default()));
        let mut builder = http2::Builder::new(LocalExecutor);
        builder
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(connection_window(limits))
            .initial_max_send_streams(limits.streams as usize)
            .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
            .max_send_buf_size(limits.send_buffer_bytes)
            // What still comes for streams that callers gave up is no offence, however many of them there were.
            .max_concurrent_reset_streams(GIVEN_UP_MAX)
            .max_local_error_reset_streams(None);
        if let Some((interval, answer)) = how.pings {
            builder
                .timer(TokioTimer::new())
                .keep_alive_interval(interval)
                .keep_alive_timeout(answer);
        }
        let handshake = builder.handshake(io).await;
        let (sender, mut connection) = handshake.map_err(|_| Fault::ConnectFailed)?;
        let ending = Rc::new(Cell::new(false));
        let peer_max = Rc::new(Cell::new(limits.streams));
        let (ended, told_max) = (ending.clone(), peer_max.clone());
        tokio::task::spawn_local(async move {
            poll_fn(|cx| {
                let polled = Pin::new(&mut connection).poll(cx); // of an error its streams hear
                told_max
                    .set(u32::try_from(connection.current_max_send_streams()).unwrap_or(u32::MAX));
                polled.map(|_| ())
            })
            .await;
            ended.set(true);
        });
        let h2 = Rc::new(H2 {
            sender: RefCell::new(sender),
            active: Cell::new(1),
            served: Cell::new(1),
            requests_max: how.requests_max,
            idle_since_ms: Cell::new(NEW),
            ending,
            peer_max,
            link,
            slot,
        });
        if !self.0.retired.get() {
            let mut connections = self.0.connections.borrow_mut();
            connections.retain(|known| !known.is_ending());
            connections.push(h2.clone());
        }
        Ok(H2Lease(h2))
    }
}

impl H2 {
    fn is_ending(&self) -> bool {
        self.ending.get() || self.sender.borrow().is_closed()
    }

    /// No sweep has seen it yet.
    fn is_new(&self) -> bool {
        self.idle_since_ms.get() == NEW
    }

    fn has_room(&self, streams_max: u32) -> bool {
        let worn_out = self.requests_max > 0 && self.served.get() >= self.requests_max;
        !worn_out
            && !self.is_ending()
            && self.active.get() < streams_max.min(self.peer_max.get().max(1))
    }
}

impl H2Lease {
    /// Begins to send.
    pub fn send(&self, request: Request<UpBody>) -> impl Sending + use<> {
        self.0.sender.borrow_mut().try_send_request(request)
    }
}

/// Waits for the head of the answer to what [`H2Lease::send`] has begun.
pub async fn answer_h2<E>(
    lease: &H2Lease,
    mut answer: Pin<&mut impl Sending>,
    mut expired: impl FnMut(&mut Context<'_>) -> Poll<E>,
) -> Result<Response<Incoming>, Sent<E>> {
    poll_fn(|cx| {
        match answer.as_mut().poll(cx) {
            Poll::Ready(Ok(response)) => return Poll::Ready(Ok(response)),
            Poll::Ready(Err(mut error)) => {
                let unsent = error.take_message().is_some();
                let fault = h2_fault(&error.into_error(), unsent);
                let fault = unless_rejected(&lease.0.link, fault);
                if fault == Fault::Unprocessed {
                    lease.0.ending.set(true);
                }
                return Poll::Ready(Err(Sent::Failed(fault)));
            }
            Poll::Pending => {}
        }
        expired(cx).map(|expiry| Err(Sent::Expired(expiry)))
    })
    .await
}

/// RFC 9113 §8.7: a stream refused, or above the last one of a GOAWAY, was not processed.
fn h2_fault(error: &hyper::Error, unsent: bool) -> Fault {
    if unsent || error.is_canceled() {
        return Fault::Unprocessed;
    }
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(h2) = cause.downcast_ref::<h2::Error>() {
            return match h2.reason() {
                Some(h2::Reason::REFUSED_STREAM) => Fault::Unprocessed,
                Some(h2::Reason::NO_ERROR) if h2.is_go_away() && h2.is_remote() => {
                    Fault::Unprocessed
                }
                Some(h2::Reason::PROTOCOL_ERROR) if !h2.is_remote() => Fault::BadAnswer,
                _ => Fault::Reset,
            };
        }
        source = cause.source();
    }
    Fault::Reset
}

/// Where an answer's body comes from, with the connection it comes by.
pub enum Upstream {
    H1 {
        incoming: Incoming,
        lease: Lease<Box<H1>>,
    },
    H2 {
        incoming: Incoming,
        _stream: H2Lease,
    },
}

impl Upstream {
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self {
            Self::H1 { incoming, lease } => match Pin::new(&mut *incoming).poll_frame(cx) {
                Poll::Pending => {
                    lease.connection.drive(cx);
                    Pin::new(incoming).poll_frame(cx)
                }
                ready => ready,
            },
            Self::H2 { incoming, .. } => Pin::new(incoming).poll_frame(cx),
        }
    }

    pub fn is_end_stream(&self) -> bool {
        match self {
            Self::H1 { incoming, .. } | Self::H2 { incoming, .. } => incoming.is_end_stream(),
        }
    }

    /// Of a body that seems to be over: whether the peer reset the stream before its end. hyper takes a reset with
    /// NO_ERROR for an end.
    pub fn is_cut_off(&self) -> bool {
        match self {
            Self::H1 { .. } => false,
            Self::H2 { incoming, .. } => !incoming.is_end_stream(),
        }
    }

    pub fn size_hint(&self) -> SizeHint {
        match self {
            Self::H1 { incoming, .. } | Self::H2 { incoming, .. } => incoming.size_hint(),
        }
    }

    /// The answer was read to its end.
    pub fn finish(self, request_done: bool, now_ms: u64) {
        if let Self::H1 { lease, .. } = self {
            let (reusable, requests_max) =
                (!lease.connection.closed, lease.connection.requests_max);
            let freed = lease.connection.slot.freed.clone();
            lease.finish(
                Completion {
                    request: request_done,
                    response: true,
                    reusable,
                },
                requests_max,
                now_ms,
            );
            freed.notify_waiters();
        }
    }
}

/// Spawns on the worker's own runtime.
#[derive(Clone, Copy)]
pub struct LocalExecutor;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

const NEW: u64 = u64::MAX;
/// What one stream may have in flight towards us.
pub const STREAM_WINDOW: u32 = 64 << 10;

/// Room for every stream's window: whoever doesn't read its own holds up no other stream of the connection.
pub fn connection_window(limits: &Limits) -> u32 {
    STREAM_WINDOW
        .saturating_mul(limits.streams)
        .clamp(STREAM_WINDOW, WINDOW_MAX)
}

/// Streams that were given up of which the codec knows, for a second, that they were.
const GIVEN_UP_MAX: usize = 1000;
/// RFC 9113 §6.9.1.
const WINDOW_MAX: u32 = (1 << 31) - 1;
/// What hyper insists on.
pub const MIN_BUF: usize = 8 << 10;
