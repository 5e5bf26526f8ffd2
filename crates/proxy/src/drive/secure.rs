//! Handshakes: the receiving end of the inbound listener, and the connecting end towards endpoints that take mutual TLS.
//! Whoever is not let in is counted with the reason and logged; without credentials of our own nothing is connected, and
//! nothing falls back to plain text.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use phalanx_model::identity::TrustDomain;
use phalanx_model::name::Direction;
use phalanx_pki::identity::Identity;
use phalanx_pki::tls::{ClientAuth, ServerOptions, ServerTls};
use phalanx_pki::verifier::{CrlPolicy, Expected, Peer, Refusal};
use phalanx_relay::Field;
use rustls::pki_types::ServerName;
use rustls::server::{Accepted as Hello, Acceptor, ClientHello};
use rustls::{HandshakeKind, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_rustls::server::TlsStream as ServerStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::core::{Core, Endpoint};
use super::stream::{self, Stream};
use crate::account::{Event, SecuredConnection, TlsRefused};
use crate::context::{Caller, KnownCaller};
use crate::plan::{Alpn, PeerPlan};
use crate::upstream::Fault;

/// What all workers share of the process's identity.
pub struct Secure {
    pub identity: Arc<Identity>,
    /// For one trust domain, which doesn't change while a process lives, or hardly.
    server: Mutex<Option<(TrustDomain, ServerTls)>>,
}

impl Secure {
    pub fn new(identity: Arc<Identity>) -> Self {
        Self {
            identity,
            server: Mutex::default(),
        }
    }

    /// The receiving end; none while we have nothing to show.
    fn server(&self) -> Option<ServerTls> {
        let own = self.identity.credentials()?;
        let domain = &own.peer().id.trust_domain;
        let mut server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((made_for, server)) = &*server
            && made_for == domain
        {
            return Some(server.clone());
        }
        let options = ServerOptions {
            client_auth: ClientAuth::Optional,
            expected: Expected::trust_domain(domain.clone()),
            crl: CrlPolicy::IfPresent,
            alpn: Alpn::ALL.map(|alpn| alpn.as_str().into()).into(),
        };
        let made = ServerTls::try_new(self.identity.clone(), options)
            .inspect_err(|error| tracing::error!(%error, "no TLS configuration can be made"))
            .ok()?;
        *server = Some((domain.clone(), made.clone()));
        Some(made)
    }
}

/// A connection that was secured from downstream.
pub struct Accepted {
    pub stream: Stream,
    /// None when the peer named no protocol.
    pub alpn: Option<Alpn>,
    pub caller: Caller,
}

/// Takes a handshake that a peer has begun. None when it was refused, which was counted.
pub async fn accept(core: &Rc<Core>, stream: TcpStream) -> Option<Accepted> {
    let address = stream.peer_addr().ok()?;
    let refuse = |reason| core.refuse_tls(Direction::Inbound, reason, address);
    let Some(server) = core.secure.as_ref().and_then(|secure| secure.server()) else {
        refuse(TlsRefused::NoCredentials);
        return None;
    };
    let done = shake(core, stream, server.config(), address).await?;
    let (_, connection) = done.get_ref();
    let alpn = connection.alpn_protocol().and_then(Alpn::parse);
    let peer = match server.admit(connection) {
        Ok(Some(peer)) => peer,
        Ok(None) if alpn == Some(Alpn::Tcp) => {
            refuse(TlsRefused::Peer(Refusal::NoCertificate));
            return None;
        }
        // Over HTTP it can be told so.
        Ok(None) => {
            refuse(TlsRefused::Peer(Refusal::NoCertificate));
            return Some(Accepted {
                stream: enter(core, done.into(), Direction::Inbound, address, None),
                alpn,
                caller: Caller::Nobody,
            });
        }
        Err(refusal) => {
            refuse(TlsRefused::Peer(refusal));
            return None;
        }
    };
    let caller = known(core, &peer);
    Some(Accepted {
        stream: enter(core, done.into(), Direction::Inbound, address, Some(peer)),
        alpn,
        caller,
    })
}

/// The same of somebody outside the mesh, who shows nothing and is shown one of the edge's own certificates.
pub async fn terminate(
    core: &Rc<Core>,
    stream: TcpStream,
    config: Arc<ServerConfig>,
) -> Option<(Stream, Option<Alpn>)> {
    let address = stream.peer_addr().ok()?;
    let done = shake(core, stream, &config, address).await?;
    let (_, connection) = done.get_ref();
    let alpn = connection.alpn_protocol().and_then(Alpn::parse);
    let stream = enter(core, done.into(), Direction::Inbound, address, None);
    Some((stream, alpn))
}

/// The handshake itself. None when it failed, which was counted.
async fn shake(
    core: &Rc<Core>,
    stream: TcpStream,
    config: &Arc<ServerConfig>,
    address: SocketAddr,
) -> Option<ServerStream<TcpStream>> {
    let refuse = |reason| core.refuse_tls(Direction::Inbound, reason, address);
    let turn = core.handshakes.begin();
    let handshake = TlsAcceptor::from(config.clone()).accept(stream);
    let handshake = handshake.into_fallible();
    let within = Duration::from_millis(core.deadlines.handshake);
    let ended = tokio::select! {
        biased;
        ended = tokio::time::timeout(within, handshake) => ended,
        () = turn.over.notified() => {
            refuse(TlsRefused::Busy);
            return None;
        }
    };
    match ended {
        Ok(Ok(done)) => Some(done),
        Ok(Err((error, stream))) => {
            refuse(why(&error));
            drop(turn);
            part(stream).await;
            None
        }
        Err(_) => {
            core.count(Event::HandshakeDeadline);
            refuse(TlsRefused::Deadline);
            None
        }
    }
}

/// Lets the peer read why: closed with bytes of it unread, the connection would be reset, and the alert lost.
async fn part(mut stream: TcpStream) {
    let parting = async {
        let _ = stream.shutdown().await;
        let (mut rest, mut left) = ([0; 1024], PARTING_BYTES);
        while left > 0 {
            match stream.read(&mut rest).await {
                Ok(count @ 1..) => left = left.saturating_sub(count),
                _ => return,
            }
        }
    };
    let _ = tokio::time::timeout(PARTING, parting).await;
}

/// Opens a connection to an endpoint, secured if the endpoint takes nothing else, all within `timeout`. Tells what was
/// agreed on of what `alpn` offers.
///
/// # Errors
/// [`Fault::Refused`], [`Fault::ConnectFailed`], [`Fault::Mistrust`], or [`Fault::NoCredentials`] when we have nothing to
/// show.
pub async fn connect(
    core: &Rc<Core>,
    endpoint: &Endpoint,
    alpn: Alpn,
    timeout: Duration,
) -> Result<(Stream, Alpn), Fault> {
    match &endpoint.tls {
        None => {
            let connecting = tcp(endpoint.address);
            let connected = tokio::time::timeout(timeout, connecting).await;
            connected
                .map_err(|_| Fault::ConnectFailed)?
                .map(|stream| (Stream::Plain(stream), alpn))
        }
        Some(plan) => Box::pin(connect_secured(core, endpoint, plan, alpn, timeout)).await,
    }
}

/// A connection in plain text, of which whoever intercepts knows that it is ours.
pub async fn tcp(address: SocketAddr) -> Result<TcpStream, Fault> {
    match phalanx_client::mark::connect(address).await {
        Ok(stream) => {
            let _ = stream.set_nodelay(true); // a slower connection is still one
            Ok(stream)
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Err(Fault::Refused),
        Err(_) => Err(Fault::ConnectFailed),
    }
}

async fn connect_secured(
    core: &Rc<Core>,
    endpoint: &Endpoint,
    plan: &PeerPlan,
    alpn: Alpn,
    timeout: Duration,
) -> Result<(Stream, Alpn), Fault> {
    let address = endpoint.address;
    let refuse = |reason| {
        core.refuse_tls(Direction::Outbound, reason, address);
        Fault::ConnectFailed
    };
    let identity = core.secure.as_ref().map(|secure| &secure.identity);
    let Some(identity) = identity.filter(|identity| identity.credentials().is_some()) else {
        refuse(TlsRefused::NoCredentials);
        return Err(Fault::NoCredentials);
    };
    if core.wheel.now_ms() < endpoint.barred_until_ms.get() {
        refuse(TlsRefused::Again);
        return Err(Fault::Mistrust);
    }
    let client = plan.client(identity, alpn).map_err(|error| {
        tracing::error!(%error, "no TLS configuration can be made");
        Fault::ConnectFailed
    })?;
    let name = ServerName::IpAddress(address.ip().into());
    let connecting = async {
        let stream = tcp(address).await?;
        let connector = TlsConnector::from(client.config().clone());
        connector.connect(name, stream).await.map_err(|error| {
            let reason = why(&error);
            if let TlsRefused::Peer(_) = reason {
                endpoint.bar(core.wheel.now_ms());
            }
            let fault = refuse(reason);
            match stream::is_word_on_us(&error) {
                true => Fault::Mistrust,
                false => fault,
            }
        })
    };
    let Ok(connected) = tokio::time::timeout(timeout, connecting).await else {
        return Err(refuse(TlsRefused::Deadline));
    };
    let done = connected?;
    let (_, connection) = done.get_ref();
    let admitted = client.admit(connection).map_err(TlsRefused::Peer);
    let agreed = connection.alpn_protocol().and_then(Alpn::parse);
    let agreed = agreed.filter(|agreed| alpn.offers().contains(agreed));
    let admitted = admitted.and_then(|peer| match agreed {
        Some(agreed) => Ok((peer, agreed)),
        None => Err(TlsRefused::Peer(Refusal::NoProtocol)),
    });
    let (peer, agreed) = admitted.map_err(|reason| {
        endpoint.bar(core.wheel.now_ms());
        refuse(reason)
    })?;
    if alpn.offers().contains(&Alpn::Mesh) {
        endpoint.is_sidecar.set(Some(agreed == Alpn::Mesh));
    }
    let stream = enter(core, done.into(), Direction::Outbound, address, Some(peer));
    Ok((stream, agreed))
}

fn enter(
    core: &Core,
    stream: TlsStream<TcpStream>,
    direction: Direction,
    address: SocketAddr,
    peer: Option<Arc<Peer>>,
) -> Stream {
    let (_, connection) = stream.get_ref();
    let protocol = connection.alpn_protocol().map(String::from_utf8_lossy);
    let entered = SecuredConnection {
        direction,
        address,
        peer,
        protocol: protocol.unwrap_or_default().into_owned(),
        version: stream::version(connection),
        resumed: connection.handshake_kind() == Some(HandshakeKind::Resumed),
        opened: Instant::now(),
    };
    core.links.enter(stream, entered)
}

/// What the application is told of its caller, in Envoy's words.
fn known(core: &Core, peer: &Arc<Peer>) -> Caller {
    let own = core.secure.as_ref().and_then(|s| s.identity.credentials());
    let by = own.map(|own| own.peer().id.to_string()).unwrap_or_default();
    let hash: String = peer
        .fingerprint
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    let value = format!("By={by};Hash={hash};URI={}", peer.id);
    match Field::new(CALLER_HEADER, &value) {
        Ok(header) => Caller::Known(Box::new(KnownCaller {
            peer: peer.clone(),
            header,
        })),
        Err(_) => Caller::Nobody, // an id that no header can carry
    }
}

/// Whether a handshake that a peer has begun is meant for us rather than for the application. Its bytes stay in the
/// socket.
pub async fn is_ours(stream: &TcpStream, wanted: &[Alpn]) -> bool {
    let is_wanted = |hello: ClientHello<'_>| {
        let mut named = hello.alpn().into_iter().flatten();
        named.any(|name| Alpn::parse(name).is_some_and(|a| wanted.contains(&a)))
    };
    hello(stream, is_wanted).await.unwrap_or_default()
}

/// The name in a handshake that a peer has begun, in lower case, if it has one; None when it is no handshake. Its bytes stay
/// in the socket. It counts among the handshakes under way.
pub async fn named(core: &Core, stream: &TcpStream) -> Option<Option<String>> {
    let turn = core.handshakes.begin();
    tokio::select! {
        biased;
        name = hello(stream, server_name) => name,
        () = turn.over.notified() => {
            core.refuse_tls(Direction::Inbound, TlsRefused::Busy, stream.peer_addr().ok()?);
            None
        }
    }
}

/// None for what is no beginning of a handshake, or too long for one.
async fn hello<T>(stream: &TcpStream, look: impl FnOnce(ClientHello<'_>) -> T) -> Option<T> {
    let mut seen = vec![0; HELLO_MAX];
    let mut pause = HELLO_LOOK;
    loop {
        let Ok(count @ 1..) = stream.peek(&mut seen).await else {
            return None;
        };
        match read_hello(seen.get(..count).unwrap_or_default()) {
            Ok(None) if count < HELLO_MAX => {}
            Ok(Some(hello)) => return Some(look(hello.client_hello())),
            Ok(None) | Err(NoHello) => return None,
        }
        tokio::time::sleep(pause).await; // peek can't wait for more bytes than there are
        pause = (pause * 2).min(HELLO_LOOK_MAX);
    }
}

/// Bytes that begin no handshake.
struct NoHello;

/// None while it is not whole.
fn read_hello(mut bytes: &[u8]) -> Result<Option<Hello>, NoHello> {
    let mut acceptor = Acceptor::default();
    while !bytes.is_empty() {
        acceptor.read_tls(&mut bytes).map_err(|_| NoHello)?;
        if let Some(hello) = acceptor.accept().map_err(|_| NoHello)? {
            return Ok(Some(hello));
        }
    }
    Ok(None)
}

/// As [`named`], of bytes: for whoever feeds it foreign ones.
pub fn name_in_hello(bytes: &[u8]) -> Option<Option<String>> {
    let hello = read_hello(bytes).ok()??;
    Some(server_name(hello.client_hello()))
}

fn server_name(hello: ClientHello<'_>) -> Option<String> {
    hello.server_name().map(str::to_ascii_lowercase)
}

fn why(error: &io::Error) -> TlsRefused {
    match stream::tls_error(error) {
        Some(error) => TlsRefused::Peer(Refusal::of_handshake(error)),
        None => TlsRefused::Gone,
    }
}

/// The handshakes of a core that are under way from downstream. Where there are too many, the one that began first ends: so
/// peers that never finish keep nobody out who does.
#[derive(Default)]
pub struct Handshakes {
    /// By number, in the order of their beginnings.
    open: RefCell<BTreeMap<u64, Rc<Notify>>>,
}

impl Handshakes {
    fn begin(&self) -> Turn<'_> {
        let over = Rc::new(Notify::new());
        let mut open = self.open.borrow_mut();
        if open.len() >= HANDSHAKES_MAX
            && let Some((_, oldest)) = open.pop_first()
        {
            oldest.notify_one();
        }
        let number = open.last_key_value().map_or(0, |(last, _)| last + 1);
        open.insert(number, over.clone());
        Turn {
            handshakes: self,
            number,
            over,
        }
    }
}

/// A handshake under way.
struct Turn<'h> {
    handshakes: &'h Handshakes,
    number: u64,
    /// Told when it has to end.
    over: Rc<Notify>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.handshakes.open.borrow_mut().remove(&self.number);
    }
}

/// How long and for how many bytes a peer that was refused is listened to.
const PARTING: Duration = Duration::from_millis(500);
const PARTING_BYTES: usize = 256 << 10;
/// The first byte of a TLS record that begins a handshake.
pub const HANDSHAKE_RECORD: u8 = 0x16;
const CALLER_HEADER: &str = "x-forwarded-client-cert";
/// Handshakes that a core has under way from downstream.
const HANDSHAKES_MAX: usize = 1024;
/// A ClientHello that does not fit is not ours.
const HELLO_MAX: usize = 16 << 10;
const HELLO_LOOK: Duration = Duration::from_millis(1);
const HELLO_LOOK_MAX: Duration = Duration::from_millis(100);
