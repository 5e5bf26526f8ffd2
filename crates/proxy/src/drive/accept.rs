//! From a listener to a connection that knows what it speaks. Each connection is a task: a panic ends that one, and is
//! counted.

mod edge;

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use phalanx_model::identity::SpiffeId;
use phalanx_model::name::Direction;
use phalanx_model::resource::MtlsMode;
use tokio::io::ReadBuf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::Shared;
use super::core::{Cluster, Core};
use super::deadline::Watch;
use super::secure::{self, Accepted, HANDSHAKE_RECORD};
use super::server::{self, Door};
use super::shut;
use super::stream::Stream;
use super::tunnel::{End, Ended, Tunnel};
use crate::account::{EdgeCell, Event, TlsRefused, Traffic};
use crate::balance::{Evidence, Tried};
use crate::context::Caller;
use crate::plan::{Alpn, App, Entry};
use crate::upstream::{Fault, Permit, Share};

/// What a listener is for.
#[derive(Clone, Copy, Debug)]
pub enum Service {
    Http(Direction),
    /// By place in the plan's `tcp`.
    Tcp(usize),
    /// Where a Gateway says so, at this address.
    Gateway(SocketAddr),
}

/// Accepts until told to close; then takes what is in the backlog already, and closes.
pub async fn run(
    core: Rc<Core>,
    listener: TcpListener,
    service: Service,
    shared: Arc<Shared>,
    mut closing: watch::Receiver<bool>,
) {
    loop {
        let closed = *closing.borrow_and_update();
        let accepted = if closed {
            poll_fn(|cx| match listener.poll_accept(cx) {
                Poll::Ready(accepted) => Poll::Ready(Some(accepted)),
                Poll::Pending => Poll::Ready(None),
            })
            .await
        } else {
            tokio::select! {
                accepted = listener.accept() => Some(accepted),
                changed = closing.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    continue;
                }
            }
        };
        match accepted {
            None => return,
            Some(Ok((stream, peer))) => admit(&core, stream, peer, service, &shared),
            Some(Err(error)) => {
                core.count(Event::AcceptFailed);
                if !is_of_one_connection(&error) {
                    // Out of descriptors, most likely: make some free, and don't spin.
                    core.sweep();
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                }
            }
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    )
}

/// Takes a connection in unless a limit says no.
fn admit(
    core: &Rc<Core>,
    stream: TcpStream,
    peer: SocketAddr,
    service: Service,
    shared: &Arc<Shared>,
) {
    let Some(live) = Live::enter(core, peer, shared) else {
        return;
    };
    tokio::task::spawn_local(async move {
        let core = live.core.clone();
        let _ = stream.set_nodelay(true); // a slower connection is still one
        match service {
            Service::Http(direction) => serve(&core, &live.watch, stream, direction).await,
            Service::Gateway(address) => {
                Box::pin(edge::serve(&core, &live.watch, stream, address)).await;
            }
            Service::Tcp(place) => {
                let plan = core.plan();
                if let Some(cluster) = plan
                    .plan
                    .tcp
                    .get(place)
                    .copied()
                    .flatten()
                    .and_then(|place| plan.cluster(place))
                {
                    Box::pin(relay(&core, cluster, Stream::Plain(stream), None)).await;
                }
            }
        }
        drop(live);
    });
}

/// Counts a connection for as long as it lives.
struct Live {
    core: Rc<Core>,
    watch: Rc<Watch>,
    key: usize,
    peer: SocketAddr,
    shared: Arc<Shared>,
}

impl Live {
    fn enter(core: &Rc<Core>, peer: SocketAddr, shared: &Arc<Shared>) -> Option<Self> {
        core.accepted();
        if shared.connections.fetch_add(1, Ordering::Relaxed) >= core.limits.connections {
            shared.connections.fetch_sub(1, Ordering::Relaxed);
            core.count(Event::ConnectionLimit);
            return None;
        }
        if !peer.ip().is_loopback() {
            let mut sources = core.sources.borrow_mut();
            let count = sources.entry(peer.ip()).or_default();
            // Each core sees its share of a source's connections; the limit holds per core.
            if *count >= core.limits.connections_per_source {
                shared.connections.fetch_sub(1, Ordering::Relaxed);
                core.count(Event::SourceLimit);
                return None;
            }
            *count += 1;
        }
        core.count(Event::Accepted);
        let watch = Watch::new(core, Some(peer));
        let key = core.connections.borrow_mut().insert(watch.clone());
        if core.is_draining() {
            watch.drain(core);
        }
        Some(Self {
            core: core.clone(),
            watch,
            key,
            peer,
            shared: shared.clone(),
        })
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.shared.connections.fetch_sub(1, Ordering::Relaxed);
        self.core.connections.borrow_mut().try_remove(self.key);
        let source = self.peer.ip();
        if !source.is_loopback() {
            let mut sources = self.core.sources.borrow_mut();
            if let Some(count) = sources.get_mut(&source) {
                *count -= 1;
                if *count == 0 {
                    sources.remove(&source);
                }
            }
        }
        self.core.count(if std::thread::panicking() {
            Event::Panicked
        } else {
            Event::Closed
        });
    }
}

/// What a connection turned out to speak.
enum Spoken {
    Http1,
    Http2,
    /// Bytes for the application's port with this cluster.
    Raw(Rc<Cluster>),
    /// A handshake with us begins.
    Tls,
    Nothing,
}

async fn serve(core: &Rc<Core>, watch: &Rc<Watch>, stream: TcpStream, direction: Direction) {
    let spoken = Box::pin(detect(core, watch, &stream, direction)).await;
    let door = || Door::new(core, watch, direction, Caller::Plain);
    match spoken {
        Spoken::Http1 => server::serve_http1(&door(), Stream::Plain(stream)).await,
        Spoken::Http2 => server::serve_http2(&door(), Stream::Plain(stream)).await,
        Spoken::Tls => Box::pin(secured(core, watch, stream)).await,
        Spoken::Raw(cluster) => {
            let relaying = relay(core, &cluster, Stream::Plain(stream), None);
            Box::pin(shut::while_it(core, |_| may_stay(core, None), relaying)).await;
        }
        Spoken::Nothing => {}
    }
}

/// A handshake, and what was agreed on in it.
async fn secured(core: &Rc<Core>, watch: &Rc<Watch>, stream: TcpStream) {
    let Some(accepted) = secure::accept(core, stream).await else {
        return;
    };
    let Accepted {
        stream,
        alpn,
        caller,
    } = accepted;
    match (alpn, caller) {
        (Some(Alpn::Http2 | Alpn::Mesh), caller) => {
            let door = Door::new(core, watch, Direction::Inbound, caller);
            server::serve_http2(&door, stream).await;
        }
        (Some(Alpn::Http1) | None, caller) => {
            let door = Door::new(core, watch, Direction::Inbound, caller);
            server::serve_http1(&door, stream).await;
        }
        (Some(Alpn::Tcp), Caller::Known(known)) => {
            let Some(app) = raw_app(core) else {
                core.count(Event::UnknownProtocol);
                return;
            };
            if may_enter(core, app.entry.as_deref(), Some(&known.peer.id)) {
                let caller = Some(&known.peer.id);
                let relaying = relay(core, &app.cluster, stream, caller);
                shut::while_it(core, |_| may_stay(core, caller), relaying).await;
            }
        }
        (Some(Alpn::Tcp), Caller::Plain | Caller::Nobody | Caller::Outside(_)) => {}
    }
}

/// Whether the policies let a connection in whose bytes nobody reads.
fn may_enter(core: &Core, entry: Option<&Entry>, caller: Option<&SpiffeId>) -> bool {
    let allowed = match entry {
        Some(entry) => entry.access.decide_unread(caller).is_allowed(),
        None => core.secure.is_none(),
    };
    if !allowed {
        core.count(Event::AccessDenied);
    }
    allowed
}

/// Whether the rules in force by now let a raw connection stay. Without rules of its own, or without the application, there
/// is none that locks it out.
fn may_stay(core: &Core, caller: Option<&SpiffeId>) -> bool {
    let entry = raw_app(core).and_then(|app| app.entry);
    entry.is_none_or(|entry| {
        (entry.mode != MtlsMode::Strict || caller.is_some())
            && entry.access.decide_unread(caller).is_allowed()
    })
}

/// By the first bytes, which stay in the socket.
async fn detect(
    core: &Rc<Core>,
    watch: &Rc<Watch>,
    stream: &TcpStream,
    direction: Direction,
) -> Spoken {
    let raw = if direction == Direction::Inbound {
        raw_app(core)
    } else {
        None
    };
    let secure = direction == Direction::Inbound && core.secure.is_some();
    let (spoken, why) = match raw {
        Some(raw) => sniff(core, watch, stream, raw, secure).await,
        None => guess(core, watch, stream, secure).await,
    };
    if let (Some(reason), Some(address)) = (why, watch.address) {
        core.refuse_tls(Direction::Inbound, reason, address);
    }
    spoken
}

/// Where no application takes raw TCP.
async fn guess(
    core: &Rc<Core>,
    watch: &Rc<Watch>,
    stream: &TcpStream,
    secure: bool,
) -> (Spoken, Option<TlsRefused>) {
    let Some(first) = first_byte(core, watch, stream).await else {
        return (Spoken::Nothing, None);
    };
    if secure && first == HANDSHAKE_RECORD {
        let plan = core.plan();
        let apps = &plan.plan.inbound.apps;
        let is_off = |app: &App| app.entry.as_ref().is_some_and(|e| e.mode == MtlsMode::Off);
        if !apps.is_empty() && apps.iter().all(is_off) {
            return (Spoken::Nothing, Some(TlsRefused::Off));
        }
        return (Spoken::Tls, None);
    }
    let spoken = match in_time(core, preface(stream)).await {
        Some(Preface::Http2) => Spoken::Http2,
        // To what is neither, the codec answers 400.
        Some(Preface::Http1 | Preface::Other) => Spoken::Http1,
        None => Spoken::Nothing,
    };
    (spoken, None)
}

/// Of several applications behind the inbound listener at most one is raw TCP; it gets what is no HTTP, and, since its
/// protocol may be one where the server speaks first, whoever stays silent for [`SILENCE`]. TLS that doesn't name our own
/// protocol is the application's, and passed on; under `Strict` nothing is passed on but what came in ours.
async fn sniff(
    core: &Rc<Core>,
    watch: &Rc<Watch>,
    stream: &TcpStream,
    raw: RawApp,
    secure: bool,
) -> (Spoken, Option<TlsRefused>) {
    let mode = match &raw.entry {
        Some(entry) => entry.mode,
        None if secure => return (Spoken::Nothing, Some(TlsRefused::NoPolicy)),
        None => MtlsMode::Off, // without identity nobody is asked for one
    };
    let strict = mode == MtlsMode::Strict;
    let pass = || {
        if strict {
            return (Spoken::Nothing, Some(TlsRefused::PlainText));
        }
        let spoken = if may_enter(core, raw.entry.as_deref(), None) {
            Spoken::Raw(raw.cluster.clone())
        } else {
            Spoken::Nothing
        };
        (spoken, None)
    };
    let takes_tls = secure && mode != MtlsMode::Off;
    if raw.alone && !takes_tls {
        return pass();
    }
    let mut byte = [0];
    match tokio::time::timeout(SILENCE, stream.peek(&mut byte)).await {
        Ok(Ok(1..)) => {}
        Ok(_) => return (Spoken::Nothing, None),
        Err(_) if !strict => return pass(),
        // Nothing that it could be passed on to: whoever has to show an identity speaks first.
        Err(_) => {
            if first_byte(core, watch, stream).await.is_none() {
                return (Spoken::Nothing, None);
            }
            let _ = stream.peek(&mut byte).await;
        }
    }
    if secure && byte == [HANDSHAKE_RECORD] {
        let wanted: &[Alpn] = match (takes_tls, raw.alone) {
            (true, true) => &[Alpn::Tcp],
            (true, false) => &Alpn::ALL,
            (false, _) => &[Alpn::Mesh, Alpn::Http2, Alpn::Http1],
        };
        let ours = in_time(core, async { Some(secure::is_ours(stream, wanted).await) }).await;
        return match ours {
            Some(true) => (Spoken::Tls, None),
            Some(false) => pass(),
            None => (Spoken::Nothing, None),
        };
    }
    if raw.alone {
        return pass();
    }
    match in_time(core, preface(stream)).await {
        Some(Preface::Http2) => (Spoken::Http2, None),
        Some(Preface::Http1) => (Spoken::Http1, None),
        Some(Preface::Other) => pass(),
        None => (Spoken::Nothing, None),
    }
}

/// None when it took longer than a connection may take to say what it speaks, which is counted.
async fn in_time<T>(core: &Core, future: impl Future<Output = Option<T>>) -> Option<T> {
    let within = Duration::from_millis(core.deadlines.handshake);
    let told = tokio::time::timeout(within, future).await;
    told.unwrap_or_else(|_| {
        core.count(Event::HandshakeDeadline);
        None
    })
}

/// The application that takes raw TCP.
struct RawApp {
    /// Of the plan that says so: places of another one mean others.
    cluster: Rc<Cluster>,
    /// There is no other application.
    alone: bool,
    entry: Option<Arc<Entry>>,
}

fn raw_app(core: &Core) -> Option<RawApp> {
    let plan = core.plan();
    let apps = &plan.plan.inbound.apps;
    let mut raw = apps.iter().filter(|app| app.tcp);
    let only = raw.next()?;
    if raw.next().is_some() {
        core.count(Event::UnknownProtocol); // two of them can't be told apart
        return None;
    }
    Some(RawApp {
        cluster: plan.cluster(only.cluster)?.clone(),
        alone: apps.len() == 1,
        entry: only.entry.clone(),
    })
}

/// Waits for the first byte, as an idle connection does.
async fn first_byte(core: &Rc<Core>, watch: &Rc<Watch>, stream: &TcpStream) -> Option<u8> {
    poll_fn(|cx| {
        loop {
            // Readiness alone is not enough: a socket just accepted is taken for ready.
            let mut byte = [0];
            if let Poll::Ready(peeked) = stream.poll_peek(cx, &mut ReadBuf::new(&mut byte)) {
                let [byte] = byte;
                return Poll::Ready(peeked.ok().filter(|count| *count > 0).map(|_| byte));
            }
            watch.settle(core);
            if watch.alarm.poll(cx).is_pending() {
                return Poll::Pending;
            }
            if let Some(event) = watch.missed(core) {
                core.count(event);
                return Poll::Ready(None);
            }
        }
    })
    .await
}

enum Preface {
    Http1,
    Http2,
    Other,
}

/// None when the peer went away.
async fn preface(stream: &TcpStream) -> Option<Preface> {
    let mut first = [0; 24];
    let mut pause = PREFACE_LOOK;
    loop {
        let count = stream
            .peek(&mut first)
            .await
            .ok()
            .filter(|count| *count > 0)?;
        let seen = first.get(..count)?;
        if seen.starts_with(HTTP2_START) {
            return Some(Preface::Http2);
        }
        if !HTTP2_START.starts_with(seen) {
            return Some(if is_http1(seen) {
                Preface::Http1
            } else {
                Preface::Other
            });
        }
        tokio::time::sleep(pause).await; // peek can't wait for more bytes than there are
        pause = (pause * 2).min(PREFACE_LOOK_MAX);
    }
}

/// Begins with a method: capital letters, then a blank, if it is among what was seen.
fn is_http1(seen: &[u8]) -> bool {
    let method = seen
        .iter()
        .take_while(|b| b.is_ascii_uppercase() || **b == b'-')
        .count();
    method >= 1 && seen.get(method).is_none_or(|b| *b == b' ')
}

/// Joins `downstream` to an endpoint of the cluster. `caller`: who was let in by its certificate.
async fn relay(
    core: &Rc<Core>,
    cluster: &Rc<Cluster>,
    downstream: Stream,
    caller: Option<&SpiffeId>,
) {
    let own = caller.map(|id| cluster.plan.unassigned.with_peer(id, &core.account));
    let downstream = End::new(downstream);
    let (mut tried, mut rng) = (Tried::default(), core.random());
    for _ in 0..TCP_ATTEMPTS {
        let Some(picked) = cluster.pick(&tried, &mut rng, None, core.wheel.now_us()) else {
            return;
        };
        let member = picked.member;
        tried.add(member);
        let Some((endpoint, plan)) = cluster.endpoint(member) else {
            return;
        };
        let breaker = &cluster.plan.breaker;
        let Some(_permit) = Permit::take(
            breaker.clone(),
            Share::Connection,
            cluster.plan.limits.max_connections,
        ) else {
            return;
        };
        let edges = own.as_ref().unwrap_or(&plan.edges);
        let cell: &EdgeCell = edges.of_traffic(Traffic::Tcp).cell(core.index);
        let report = |evidence| {
            if cluster
                .plan
                .group
                .report(member, evidence, core.wheel.now_ms())
            {
                cell.ejected();
            }
        };
        let timeout = cluster.plan.pool.connect_timeout;
        match secure::connect(core, endpoint, Alpn::Tcp, timeout).await {
            Ok((upstream, _)) => {
                core.account.witness().reached(endpoint.address);
                report(Evidence::Success);
                endpoint.load.begin();
                cell.tunnel_opened();
                let _open = OpenTunnel {
                    cell,
                    load: &endpoint.load,
                };
                let upstream = End::new(upstream);
                let mut tunnel = Tunnel::new(&downstream, &upstream);
                let ended = tunnel.run(core, core.deadlines.tunnel_idle, |sent, received| {
                    cell.tunnel_moved(sent, received)
                });
                if ended.await == Ended::Idle {
                    core.count(Event::TunnelIdleDeadline);
                }
                return;
            }
            Err(fault) => {
                cell.connect_failed();
                if fault == Fault::Refused {
                    core.account.witness().refused(endpoint.address);
                }
                if let Some(evidence) = fault.evidence() {
                    report(evidence);
                }
            }
        }
    }
}

/// Counted as open until dropped, however the tunnel ends.
struct OpenTunnel<'t> {
    cell: &'t EdgeCell,
    load: &'t crate::balance::Load,
}

impl Drop for OpenTunnel<'_> {
    fn drop(&mut self) {
        self.cell.tunnel_closed();
        self.load.end();
    }
}

const HTTP2_START: &[u8] = b"PRI ";
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);
const PREFACE_LOOK: Duration = Duration::from_millis(5);
const PREFACE_LOOK_MAX: Duration = Duration::from_millis(200);
const SILENCE: Duration = Duration::from_millis(300);
const TCP_ATTEMPTS: u32 = 3;

#[cfg(test)]
mod tests {
    use arc_swap::ArcSwap;
    use phalanx_relay::{Deadlines, Limits};

    use super::*;
    use crate::account::Account;
    use crate::plan::Plan;

    /// Of a future that is never made.
    fn size<F: Future>(_: impl FnOnce() -> F) -> usize {
        size_of::<F>()
    }

    fn any<T>() -> T {
        unreachable!("nobody asks")
    }

    /// Thousands of connections wait for their next request: what they need then is what their task is as large as.
    #[test]
    fn task_of_a_connection_is_small() {
        let task = size(|| serve(any::<&Rc<Core>>(), any(), any(), any()));
        assert!(task <= 720, "{task} bytes");
    }

    #[test]
    fn panic_ends_one_connection_and_gives_back_what_it_held() {
        let account = Arc::new(Account::new(1));
        let plan = Arc::new(ArcSwap::from_pointee(Plan::empty()));
        let core = Core::new(
            0,
            plan,
            account.clone(),
            Limits::default(),
            &Deadlines::default(),
            None,
        );
        let peer = SocketAddr::from(([192, 0, 2, 1], 1));
        let shared = Arc::<Shared>::default();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build_local(tokio::runtime::LocalOptions::default())
            .unwrap();
        let enter = || Live::enter(&core, peer, &shared).unwrap();
        let (good, bad) = (enter(), enter());
        let panicked = runtime.block_on(async {
            let bad = tokio::task::spawn_local(async move {
                let _bad = bad;
                panic!("a defect, in a test");
            });
            let good = tokio::task::spawn_local(async move { drop(good) });
            let panicked = bad.await.is_err_and(|error| error.is_panic());
            good.await.unwrap();
            panicked
        });
        assert!(panicked, "the runtime goes on");
        let count = |event| {
            account
                .events()
                .iter()
                .find(|(e, _)| *e == event)
                .unwrap()
                .1
        };
        assert_eq!((count(Event::Panicked), count(Event::Closed)), (1, 1));
        assert_eq!((core.live(), core.sources.borrow().len()), (0, 0));
        assert_eq!(shared.connections.load(Ordering::Relaxed), 0);
    }
}
