//! What a connection speaks, by its first bytes, which stay in the socket; and who that is for.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use phalanx_model::identity::SpiffeId;
use phalanx_model::instance::Protocol;
use phalanx_model::name::Direction;
use phalanx_model::resource::MtlsMode;
use socket2::SockRef;
use tokio::io::ReadBuf;
use tokio::net::TcpStream;

use crate::account::{Event, TlsRefused};
use crate::drive::core::{Cluster, Core};
use crate::drive::deadline::Watch;
use crate::drive::secure::{self, HANDSHAKE_RECORD};
use crate::plan::{Alpn, App, Entry};

/// What a connection turned out to speak.
pub(super) enum Spoken {
    Http1,
    Http2,
    /// Bytes for the application with this cluster and port.
    Raw(Rc<Cluster>, u16),
    /// A handshake with us begins.
    Tls,
    Nothing,
}

/// Of a redirected connection: which port of the application was called, and how long its client may keep silent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Meant {
    pub port: u16,
    pub wait: Duration,
}

/// By the first bytes, which stay in the socket.
pub(super) async fn detect(
    core: &Rc<Core>,
    watch: &Rc<Watch>,
    stream: &TcpStream,
    direction: Direction,
    meant: Option<Meant>,
) -> Spoken {
    let raw = match (direction, meant) {
        (Direction::Inbound, None) => raw_app(core),
        (Direction::Inbound, Some(meant)) => unread_app(core, Some(meant.port)),
        (Direction::Outbound, _) => None,
    };
    let secure = direction == Direction::Inbound && core.secure.is_some();
    let (spoken, why) = match raw {
        Some(raw) => sniff(core, watch, stream, raw, secure, meant).await,
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
    meant: Option<Meant>,
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
            Spoken::Raw(raw.cluster.clone(), raw.number)
        } else {
            Spoken::Nothing
        };
        (spoken, None)
    };
    let takes_tls = secure && mode != MtlsMode::Off;
    if raw.alone && !takes_tls {
        return pass();
    }
    let silence = meant.map_or(SILENCE, |meant| meant.wait);
    let mut byte = [0];
    match tokio::time::timeout(silence, stream.peek(&mut byte)).await {
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
    let preface = match meant {
        Some(meant) => first_line(stream, meant.wait).await,
        None => in_time(core, preface(stream)).await,
    };
    match preface {
        Some(Preface::Http2) => (Spoken::Http2, None),
        Some(Preface::Http1) => (Spoken::Http1, None),
        Some(Preface::Other) => pass(),
        None => (Spoken::Nothing, None),
    }
}

/// None when it took longer than a connection may take to say what it speaks, which is counted.
pub(super) async fn in_time<T>(core: &Core, future: impl Future<Output = Option<T>>) -> Option<T> {
    let within = Duration::from_millis(core.deadlines.handshake);
    let told = tokio::time::timeout(within, future).await;
    told.unwrap_or_else(|_| {
        core.count(Event::HandshakeDeadline);
        None
    })
}

/// Whether the policies let a connection in whose bytes nobody reads.
pub(super) fn may_enter(core: &Core, entry: Option<&Entry>, caller: Option<&SpiffeId>) -> bool {
    let allowed = match entry {
        Some(entry) => entry.access.decide_unread(caller).is_allowed(),
        None => core.secure.is_none(),
    };
    if !allowed {
        core.count(Event::AccessDenied);
    }
    allowed
}

/// Whether the rules in force by now let a raw connection to this port stay. Without rules of its own, or without the
/// application, there is none that locks it out.
pub(super) fn may_stay(core: &Core, port: u16, caller: Option<&SpiffeId>) -> bool {
    let entry = core.plan().plan.inbound.entry(port).cloned();
    entry.is_none_or(|entry| {
        (entry.mode != MtlsMode::Strict || caller.is_some())
            && entry.access.decide_unread(caller).is_allowed()
    })
}

/// The application that takes raw TCP.
pub(super) struct RawApp {
    /// Of the plan that says so: places of another one mean others.
    pub(super) cluster: Rc<Cluster>,
    pub(super) number: u16,
    /// It takes nothing else, and there is no other application that could be meant.
    alone: bool,
    pub(super) entry: Option<Arc<Entry>>,
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
        number: only.number,
        alone: apps.len() == 1,
        entry: only.entry.clone(),
    })
}

/// Who takes bytes that nobody reads, where it is known which port is meant, or that it is no HTTP: also an application of
/// which nobody said what it speaks, if there is no other.
pub(super) fn unread_app(core: &Core, meant: Option<u16>) -> Option<RawApp> {
    let plan = core.plan();
    let apps = &plan.plan.inbound.apps;
    let app = match (meant, &**apps) {
        (Some(port), _) => apps.iter().find(|app| app.number == port)?,
        (None, [only]) => only,
        (None, _) => return raw_app(core),
    };
    let cluster = plan.cluster(app.cluster)?.clone();
    let takes = app.tcp || cluster.plan.protocol == Protocol::Auto;
    takes.then(|| RawApp {
        cluster,
        number: app.number,
        alone: app.tcp,
        entry: app.entry.clone(),
    })
}

/// Waits for the first byte, as an idle connection does.
pub(super) async fn first_byte(
    core: &Rc<Core>,
    watch: &Rc<Watch>,
    stream: &TcpStream,
) -> Option<u8> {
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

pub(super) enum Preface {
    Http1,
    Http2,
    Other,
}

/// None when the peer went away.
pub(super) async fn preface(stream: &TcpStream) -> Option<Preface> {
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

/// What a call of the application speaks, of which nothing is known.
pub(super) enum Heard {
    Http1,
    Http2,
    /// A handshake with whom it called.
    Tls,
    Other,
    /// It closed.
    Nothing,
}

/// `wait`: how long the client may keep silent until the server is taken for who speaks first; none: it has to speak.
pub(super) async fn listen(
    core: &Rc<Core>,
    watch: &Rc<Watch>,
    stream: &TcpStream,
    wait: Option<Duration>,
) -> Heard {
    let first = first_byte(core, watch, stream);
    let first = match wait {
        Some(wait) => match tokio::time::timeout(wait, first).await {
            Ok(first) => first,
            Err(_) => return Heard::Other,
        },
        None => first.await,
    };
    match first {
        None => return Heard::Nothing,
        Some(HANDSHAKE_RECORD) => return Heard::Tls,
        Some(_) => {}
    }
    match first_line(stream, wait.unwrap_or(SILENCE)).await {
        Some(Preface::Http1) => Heard::Http1,
        Some(Preface::Http2) => Heard::Http2,
        Some(Preface::Other) => Heard::Other,
        None => Heard::Nothing,
    }
}

/// By the whole first line, for which no more than `wait` is taken: other protocols begin with words in capital letters, too.
/// None when the peer went away.
async fn first_line(stream: &TcpStream, wait: Duration) -> Option<Preface> {
    let until = Instant::now() + wait;
    let mut pause = Duration::from_millis(1);
    let mut seen = vec![0; LINE_MAX];
    loop {
        let count = stream
            .peek(&mut seen)
            .await
            .ok()
            .filter(|count| *count > 0)?;
        let seen = seen.get(..count)?;
        if let Some(preface) = judge(seen, Instant::now() >= until || count == LINE_MAX) {
            return Some(preface);
        }
        tokio::time::sleep(pause).await; // peek can't wait for more bytes than there are
        pause = (pause * 2).min(PREFACE_LOOK_MAX);
    }
}

/// None while more has to be seen; `at_last`: no more will be.
fn judge(seen: &[u8], at_last: bool) -> Option<Preface> {
    if seen.starts_with(HTTP2_START) {
        return Some(Preface::Http2);
    }
    let line = seen.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let is_whole = line.len() < seen.len();
    let is_head = line.strip_suffix(b"\r").unwrap_or(line);
    match (is_http1(seen), is_whole) {
        (false, _) => Some(Preface::Other),
        (true, true)
            if [&b" HTTP/1.1"[..], b" HTTP/1.0"]
                .iter()
                .any(|v| is_head.ends_with(v)) =>
        {
            Some(Preface::Http1)
        }
        (true, true) => Some(Preface::Other),
        (true, false) if at_last => Some(match METHODS.iter().any(|m| seen.starts_with(m)) {
            true => Preface::Http1,
            false => Preface::Other,
        }),
        (true, false) => None,
    }
}

/// What begins a connection, of bytes: whether that is HTTP, and for which host. For whoever feeds it foreign ones.
pub fn first_bytes(seen: &[u8], at_last: bool) -> (Option<bool>, Option<String>) {
    let is_http = judge(seen, at_last).map(|preface| !matches!(preface, Preface::Other));
    (is_http, host_of(seen))
}

/// The `Host` of the request that a connection begins with, as written, if its head came by now.
pub(super) async fn host(stream: &TcpStream) -> Option<String> {
    let mut seen = vec![0; LINE_MAX];
    let count = stream.peek(&mut seen).await.ok()?;
    host_of(seen.get(..count)?)
}

fn host_of(seen: &[u8]) -> Option<String> {
    let head = std::str::from_utf8(seen).ok()?;
    let head = head.split("\r\n\r\n").next()?;
    let mut fields = head
        .split("\r\n")
        .skip(1)
        .filter_map(|line| line.split_once(':'));
    let host = fields
        .find(|(name, _)| name.eq_ignore_ascii_case("host"))?
        .1;
    Some(host.trim().to_owned())
}

/// Ends it as if nobody had listened.
pub(super) fn reset(stream: TcpStream) {
    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
}

/// Where a redirected connection was going. None when it was not redirected, or what was there is not known any more.
pub(super) fn original(stream: &TcpStream) -> Option<SocketAddr> {
    let socket = SockRef::from(stream);
    let told = match stream.local_addr().ok()? {
        SocketAddr::V4(_) => socket.original_dst_v4(),
        SocketAddr::V6(_) => socket.original_dst_v6(),
    };
    told.ok()?.as_socket()
}

const HTTP2_START: &[u8] = b"PRI ";
const PREFACE_LOOK: Duration = Duration::from_millis(5);
const PREFACE_LOOK_MAX: Duration = Duration::from_millis(200);
const SILENCE: Duration = Duration::from_millis(300);
/// Of a first line or head that is looked at.
const LINE_MAX: usize = 8 << 10;
const METHODS: [&[u8]; 8] = [
    b"GET ",
    b"HEAD ",
    b"POST ",
    b"PUT ",
    b"DELETE ",
    b"OPTIONS ",
    b"PATCH ",
    b"CONNECT ",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_line_tells_http_from_others_that_write_in_capitals() {
        let of = |seen: &[u8], at_last| {
            judge(seen, at_last).map(|preface| match preface {
                Preface::Http1 => "http1",
                Preface::Http2 => "http2",
                Preface::Other => "other",
            })
        };
        for (seen, at_last, is) in [
            (&b"GET / HTTP/1.1\r\n"[..], false, Some("http1")),
            (b"PROPFIND /x HTTP/1.1\n", false, Some("http1")),
            (b"PRI * HTTP/2.0\r\n", false, Some("http2")),
            (b"SET key value\r\n", false, Some("other")),
            (b"EHLO mail.example\r\n", false, Some("other")),
            (b"*1\r\n$4\r\nPING\r\n", false, Some("other")),
            (b"PING\r\n", false, Some("other")),
            (b"\x00\x01", false, Some("other")),
            (b"GET /a", false, None),
            (b"PR", false, None),
            (b"GET /a", true, Some("http1")),
            (b"SET a", true, Some("other")),
        ] {
            assert_eq!(of(seen, at_last), is, "{}", String::from_utf8_lossy(seen));
        }
    }
}
