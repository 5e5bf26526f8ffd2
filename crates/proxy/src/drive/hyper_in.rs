//! hyper towards downstream: a connection, its requests checked on their way in, answers written on their way out.
//!
//! What hyper and the crate `http` have settled before we see a head: of `content-length` and `transfer-encoding`
//! together the length is dropped (and the connection closed after the answer), equal lengths are merged, a fragment is
//! cut from the target, obsolete folding and bad chunk syntax are answered with 400 by hyper itself. Our own codec will
//! refuse these like the rest.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Request, Response, StatusCode, header};
use hyper::body::{Body, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use phalanx_model::name::Direction;
use phalanx_relay::{
    Checked, Framing, Http1Line, Http2Pseudo, Limits, Refusal, Reply, ResponseHead, Version,
    Workspace,
};
use pin_project_lite::pin_project;

use super::body::DownBody;
use super::core::{Cluster, Core};
use super::exchange::Exchange;
use super::headers;
use super::hyper_out::{MIN_BUF, STREAM_WINDOW, connection_window};
use super::request;
use super::shut;
use super::socket::{Phase, Socket, Watch};
use super::stream::Stream as Connection;
use super::tally::Tally;
use super::tunnel::Upgraded;
use crate::account::{Event, TlsRefused};
use crate::context::Caller;
use crate::guard::Lasting;
use crate::plan::cluster::Edges;

/// What the requests of one downstream connection share.
pub struct Door {
    pub core: Rc<Core>,
    pub watch: Rc<Watch>,
    pub direction: Direction,
    pub caller: Caller,
    /// Where requests of a known caller are counted, for the cluster that it called last.
    edges: RefCell<Option<(Rc<Cluster>, Rc<Edges>)>>,
    /// An HTTP/1 connection's exchange, for its next request.
    spare: RefCell<Option<Rc<Exchange>>>,
    /// Set by a request that was answered with 101.
    pub upgraded: RefCell<Option<Upgraded>>,
    /// What let that in.
    pub lasting: RefCell<Option<Lasting>>,
    /// The HTTP/2 stream that hyper is about to spawn.
    stream: RefCell<Option<Rc<Exchange>>>,
    http2: Cell<bool>,
}

impl Door {
    pub fn new(
        core: &Rc<Core>,
        watch: &Rc<Watch>,
        direction: Direction,
        caller: Caller,
    ) -> Rc<Self> {
        Rc::new(Self {
            core: core.clone(),
            watch: watch.clone(),
            direction,
            caller,
            edges: RefCell::default(),
            spare: RefCell::default(),
            upgraded: RefCell::default(),
            lasting: RefCell::default(),
            stream: RefCell::default(),
            http2: Cell::new(false),
        })
    }

    pub fn is_http2(&self) -> bool {
        self.http2.get()
    }

    /// How many streams the peer may make us reset. The codec counts what is still on its way to a request that was answered
    /// early, and never forgets: of a sidecar, whose one connection carries everybody's calls, none is held against it.
    fn resets_max(&self) -> Option<usize> {
        match self.caller {
            Caller::Known(_) => None,
            _ => Some(self.core.limits.resets as usize),
        }
    }

    /// A request in plain text came where that is not taken.
    pub fn refused(&self) {
        if let (Caller::Plain, Some(address)) = (&self.caller, self.watch.address) {
            self.core
                .refuse_tls(self.direction, TlsRefused::PlainText, address);
        }
    }

    /// None where the cluster's own will do. Looked up once per connection and plan.
    pub fn edges(&self, cluster: &Rc<Cluster>) -> Option<Rc<Edges>> {
        let Caller::Known(known) = &self.caller else {
            return None;
        };
        let mut kept = self.edges.borrow_mut();
        if let Some((of, edges)) = &*kept
            && Rc::ptr_eq(of, cluster)
        {
            return Some(edges.clone());
        }
        let unassigned = &cluster.plan.unassigned;
        let edges = Rc::new(unassigned.with_peer(&known.peer.id, &self.core.account));
        *kept = Some((cluster.clone(), edges.clone()));
        Some(edges)
    }

    /// An exchange that nobody else holds.
    fn exchange(&self) -> Rc<Exchange> {
        if self.http2.get() {
            let exchange = Exchange::new(&self.core);
            *self.stream.borrow_mut() = Some(exchange.clone());
            return exchange;
        }
        let mut spare = self.spare.borrow_mut();
        match &*spare {
            Some(exchange) if Rc::strong_count(exchange) == 1 => exchange.clone(),
            _ => spare.insert(Exchange::new(&self.core)).clone(),
        }
    }
}

/// Serves HTTP/1 until the connection ends, and what it was upgraded to after that.
pub async fn serve_http1(door: &Rc<Door>, stream: Connection) {
    let (core, watch) = (&door.core, &door.watch);
    let io = TokioIo::new(Socket::watched(stream, watch.clone()));
    let service = service_fn(|request: Request<Incoming>| {
        request::serve(door.clone(), door.exchange(), request)
    });
    let mut builder = http1::Builder::new();
    builder
        .max_buf_size(core.limits.head_bytes.max(MIN_BUF))
        .auto_date_header(false);
    if core.limits.head_fields != HYPER_HEAD_FIELDS {
        builder.max_headers(core.limits.head_fields);
    }
    let mut connection = builder.serve_connection(io, service);
    let mut ending = false;
    let ended = poll_fn(|cx| {
        loop {
            if let Poll::Ready(ended) = Pin::new(&mut connection).poll(cx) {
                return Poll::Ready(ended.is_ok());
            }
            watch.settle(core);
            if watch.is_doomed() {
                return Poll::Ready(false);
            }
            if watch.is_draining()
                && watch.phase() == Phase::Busy
                && !std::mem::replace(&mut ending, true)
            {
                Pin::new(&mut connection).graceful_shutdown();
                continue;
            }
            if watch.alarm.poll(cx).is_pending() {
                return Poll::Pending;
            }
            match watch.missed(core) {
                // An idle connection is closed in peace, a stuck one at once.
                Some(Event::IdleDeadline) if !std::mem::replace(&mut ending, true) => {
                    if !watch.is_draining() {
                        core.count(Event::IdleDeadline);
                    }
                    Pin::new(&mut connection).graceful_shutdown();
                }
                Some(event) => {
                    core.count(event);
                    return Poll::Ready(false);
                }
                None => {}
            }
        }
    })
    .await;
    let upgraded = door.upgraded.borrow_mut().take();
    if let (true, Some(upgraded)) = (ended, upgraded) {
        let parts = connection.into_parts();
        let running = upgraded.run(parts.io.into_inner().into_stream(), parts.read_buf);
        let lasting = door.lasting.borrow_mut().take();
        shut::while_allowed(core, lasting, running).await;
    }
}

/// Serves HTTP/2 until the connection ends.
pub async fn serve_http2(door: &Rc<Door>, stream: Connection) {
    let (core, watch) = (&door.core, &door.watch);
    door.http2.set(true);
    watch.speaks_http2();
    let io = TokioIo::new(Socket::watched(stream, watch.clone()));
    let service = service_fn(|request: Request<Incoming>| {
        request::serve(door.clone(), door.exchange(), request)
    });
    let mut builder = http2::Builder::new(StreamExecutor(door.clone()));
    builder
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(connection_window(&core.limits))
        .max_concurrent_streams(core.limits.streams)
        .max_header_list_size(core.limits.http2_head_bytes())
        .max_send_buf_size(core.limits.send_buffer_bytes)
        .max_local_error_reset_streams(door.resets_max())
        .auto_date_header(false);
    let mut connection = pin!(builder.serve_connection(io, service));
    let mut ending = false;
    poll_fn(|cx| {
        loop {
            if connection.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            watch.settle(core);
            if watch.is_doomed() {
                return Poll::Ready(());
            }
            if watch.is_draining() && !std::mem::replace(&mut ending, true) {
                connection.as_mut().graceful_shutdown(); // a GOAWAY; streams under way go on
                continue;
            }
            if watch.alarm.poll(cx).is_pending() {
                return Poll::Pending;
            }
            match watch.missed(core) {
                Some(Event::IdleDeadline) if !std::mem::replace(&mut ending, true) => {
                    core.count(Event::IdleDeadline);
                    connection.as_mut().graceful_shutdown();
                }
                Some(event) => {
                    core.count(event);
                    return Poll::Ready(());
                }
                None => {}
            }
        }
    })
    .await;
}

/// Spawns streams, each with its exchange's deadline: a stream that hyper can't move, because the peer takes nothing, is
/// dropped, which resets it.
#[derive(Clone)]
struct StreamExecutor(Rc<Door>);

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for StreamExecutor {
    fn execute(&self, future: F) {
        let exchange = self.0.stream.borrow_mut().take();
        tokio::task::spawn_local(Stream { future, exchange });
    }
}

pin_project! {
    struct Stream<F> {
        #[pin]
        future: F,
        exchange: Option<Rc<Exchange>>,
    }
}

impl<F: Future<Output = ()>> Future for Stream<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if this.future.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let Some(exchange) = this.exchange else {
            return Poll::Pending;
        };
        exchange.poll_expiry(cx).map(|expiry| {
            if let Some(event) = expiry.event() {
                exchange.core.count(event);
            }
        })
    }
}

/// Makes the one checked request of a head.
///
/// # Errors
/// [`Refusal`], and the memory back.
pub fn check(
    workspace: Workspace,
    parts: &Parts,
    body: &Incoming,
    limits: &Limits,
) -> Result<Checked, (Refusal, Workspace)> {
    let uri = &parts.uri;
    let (method, authority, query) = (
        parts.method.as_str(),
        uri.authority().map(|a| a.as_str()),
        uri.query(),
    );
    let fields = headers::fields(&parts.headers);
    if parts.version == http::Version::HTTP_2 {
        let pseudo = Http2Pseudo {
            method,
            authority,
            path: uri.path(),
            query,
            ended: body.is_end_stream(),
        };
        return Checked::http2(workspace, pseudo, fields, limits);
    }
    let version = if parts.version == http::Version::HTTP_10 {
        Version::Http10
    } else {
        Version::Http11
    };
    Checked::http1(
        workspace,
        Http1Line {
            method,
            authority,
            path: uri.path(),
            query,
            version,
        },
        fields,
        limits,
    )
}

/// An answer of an upstream, with its head as the filters left it. `map` is empty memory.
pub fn answer(
    head: &ResponseHead,
    mut map: HeaderMap,
    body: DownBody,
    bodyless: bool,
) -> Response<DownBody> {
    map.clear();
    headers::fill(&mut map, &head.headers);
    if head.status == 101 {
        map.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    } else if bodyless && let Framing::Length(length) = head.framing() {
        map.insert(header::CONTENT_LENGTH, HeaderValue::from(length)); // of a body that doesn't follow
    }
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(head.status).unwrap_or(StatusCode::BAD_GATEWAY);
    *response.headers_mut() = map;
    response
}

/// An answer of our own. To a gRPC request: 200 and the word in `grpc-status`, as trailers without a body.
pub fn reply(reply: &Reply, grpc: bool, bodyless: bool, mut tally: Tally) -> Response<DownBody> {
    let reason = reply.reason.map_or("", |reason| reason.as_str());
    let mut response = Response::new(DownBody::Empty(None));
    let map = response.headers_mut();
    if let Some(reason) = reply.reason {
        map.insert(
            HeaderName::from_static("x-phalanx-reason"),
            HeaderValue::from_static(reason.as_str()),
        );
    }
    if let Some(location) = reply
        .location
        .as_deref()
        .and_then(|location| HeaderValue::from_str(location).ok())
    {
        map.insert(header::LOCATION, location);
    }
    for field in &reply.fields {
        let name = HeaderName::from_bytes(field.name().as_str().as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(field.value().as_bytes())) {
            map.append(name, value);
        }
    }
    let mut status = reply.status;
    match reply.reason {
        Some(reason) if grpc => {
            status = 200;
            let code = reply.grpc_status.unwrap_or(reason.grpc_status());
            map.insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/grpc"),
            );
            map.insert(
                HeaderName::from_static("grpc-status"),
                HeaderValue::from(u16::from(code)),
            );
            map.insert(
                HeaderName::from_static("grpc-message"),
                HeaderValue::from_static(reason.as_str()),
            );
            tally.answer(status, Some(code), Some(reason));
        }
        _ => tally.answer(status, None, reply.reason),
    }
    // HTTP/2 has no such field, and resets what it can't follow by itself.
    if reply.close && !tally.is_http2() {
        map.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    let text = if grpc || bodyless {
        Bytes::new()
    } else {
        Bytes::from_static(reason.as_bytes())
    };
    *response.body_mut() = if text.is_empty() {
        DownBody::Empty(Some(tally))
    } else {
        DownBody::Text(text, Some(tally))
    };
    response
}

const HYPER_HEAD_FIELDS: usize = 100;
