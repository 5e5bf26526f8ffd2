//! The way in: what the first byte of a connection says, the handshake, and who is there after it. Whoever isn't let in is
//! counted by reason, and told why where its protocol has a word for it.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use phalanx_client::why::SPEAKS_TLS;
use phalanx_pki::clock::UnixMillis;
use phalanx_pki::identity::Identity;
use phalanx_pki::name::{SpiffeId, TrustDomain};
use phalanx_pki::tls::{ClientAuth, ServerOptions, ServerTls};
use phalanx_pki::verifier::{CrlPolicy, Expected, Peer, Refusal};
use phalanx_pki::x509::Serial;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::turns::Turns;
use crate::access::{Arrival, Crowd, Place, Refusals, Share, Shares, Standing, Who};

/// The names of ports, as a metric's label.
pub const XDS: &str = "xds";
pub const ADMIN: &str = "admin";
pub const OCSP: &str = "ocsp";

/// How a port lets in.
pub struct Door {
    port: &'static str,
    secure: Option<Secured>,
    /// Takes plain text.
    open: bool,
    refusals: Refusals,
    handshakes: Turns,
    /// Connections of one certificate, and of one service.
    certificates: Shares<Serial>,
    services: Shares<SpiffeId>,
    /// Who has not said a word yet.
    silent: Arc<Crowd>,
    /// Who came in over TLS and proved nothing.
    strangers: Arc<Crowd>,
    live: Arc<Live>,
}

struct Secured {
    tls: ServerTls,
    identity: Arc<Identity>,
}

impl Door {
    /// TLS with a certificate where the peer has one, which has to be of this trust domain; plain text only if `open`.
    ///
    /// # Errors
    /// [`rustls::Error`], as [`ServerTls::try_new`].
    pub fn try_new(
        port: &'static str,
        identity: Option<(Arc<Identity>, TrustDomain)>,
        open: bool,
        refusals: Refusals,
    ) -> Result<Self, rustls::Error> {
        let alpn: &[&[u8]] = match port {
            XDS => &[b"h2"],
            _ => &[b"http/1.1"],
        };
        let secure = identity.map(|(identity, domain)| -> Result<Secured, rustls::Error> {
            let options = ServerOptions {
                client_auth: ClientAuth::Optional,
                expected: Expected::trust_domain(domain),
                crl: CrlPolicy::IfPresent,
                alpn: alpn.iter().map(|name| name.to_vec()).collect(),
            };
            let tls = ServerTls::try_new(identity.clone(), options)?;
            Ok(Secured { tls, identity })
        });
        Ok(Self {
            port,
            secure: secure.transpose()?,
            open,
            refusals,
            handshakes: Turns::new(),
            certificates: Shares::new(PER_CERTIFICATE_MAX),
            services: Shares::new(usize::MAX),
            silent: Crowd::new(CROWD_MAX),
            strangers: Crowd::new(CROWD_MAX),
            live: Arc::default(),
        })
    }

    /// For a port with so many seats: those who prove nothing never take more than half of them, nor one service all.
    #[must_use]
    pub fn with_seats(self, seats: usize) -> Self {
        let most = (seats / 4).min(CROWD_MAX);
        Self {
            silent: Crowd::new(most),
            strangers: Crowd::new(most),
            services: Shares::new((seats / 4 * 3).max(1)),
            ..self
        }
    }

    /// Of tests.
    #[cfg(test)]
    pub fn plain() -> Self {
        Self::try_new(XDS, None, true, Refusals::default()).unwrap()
    }

    /// None for whoever isn't let in.
    pub async fn enter(&self, stream: TcpStream, remote: SocketAddr) -> Option<Entered> {
        // Only costs time where it fails.
        let _ = stream.set_nodelay(true);
        let local = stream.local_addr().ok();
        let first = self.first(&stream, remote).await?;
        let arrival = |who, standing| Arrival {
            local,
            remote: Some(remote),
            who,
            standing,
        };
        match (&self.secure, first == HANDSHAKE) {
            (Some(secured), true) => {
                let (stream, peer) = self.shake(secured, stream, remote).await?;
                let shares = match &peer {
                    Some(peer) => Some(self.shares(peer, remote)?),
                    None => None,
                };
                let cut = match &peer {
                    Some(peer) => Some(self.live(secured, peer, remote)?),
                    None => None,
                };
                // Where plain text is taken, there are no strangers.
                let place = (peer.is_none() && !self.open).then(|| self.strangers.enter());
                let standing = place.as_ref().map(Place::standing).unwrap_or_default();
                let who = peer.map_or(Who::Nobody, Who::Workload);
                Some(Entered {
                    wire: Wire::Tls(Box::new(stream)),
                    arrival: arrival(who, standing),
                    cut,
                    place,
                    _shares: shares,
                    is_over: false,
                })
            }
            (None, true) => {
                self.refuse(
                    remote,
                    "no_identity",
                    "this port has no identity, and speaks plain text only",
                );
                None
            }
            (_, false) if self.open => Some(Entered {
                wire: Wire::Plain(stream),
                arrival: arrival(Who::Open, Standing::default()),
                cut: None,
                place: None,
                _shares: None,
                is_over: false,
            }),
            (_, false) => {
                self.refuse(remote, "plain", "plain text is not taken here");
                let _ = timeout(ANSWER_MAX, self.answer(stream)).await;
                None
            }
        }
    }

    /// The first byte, which stays where it is.
    async fn first(&self, stream: &TcpStream, remote: SocketAddr) -> Option<u8> {
        let mut place = self.silent.enter();
        let mut first = [0];
        let peeked = tokio::select! {
            biased;
            peeked = timeout(FIRST_MAX, stream.peek(&mut first)) => peeked,
            () = place.pushed_out() => {
                self.refuse(remote, CROWDED, "it said nothing, and others came");
                return None;
            }
        };
        match peeked {
            Ok(Ok(1)) => {
                let [first] = first;
                Some(first)
            }
            // A port that is looked at, by a load balancer for one, is no event.
            Ok(_) => None,
            Err(_) => {
                self.refuse(remote, "silent", "nothing was said in time");
                None
            }
        }
    }

    /// What one who is let in may take of the port.
    fn shares(&self, peer: &Peer, remote: SocketAddr) -> Option<(Share<Serial>, Share<SpiffeId>)> {
        let shares = (
            self.certificates.take(&peer.serial),
            self.services.take(&peer.id),
        );
        let (Some(certificate), Some(service)) = shares else {
            let words = format!(
                "{} has as many connections as one may have ({PER_CERTIFICATE_MAX} by one certificate, three quarters of the port by one service)",
                peer.id
            );
            self.refuse(remote, TOO_MANY, &words);
            return None;
        };
        Some((certificate, service))
    }

    /// Looked at again once it can be cut off: it may have been revoked since its handshake.
    fn live(&self, secured: &Secured, peer: &Arc<Peer>, remote: SocketAddr) -> Option<Cut> {
        let cut = self.live.enter(peer.clone());
        match secured.identity.recheck_trust(peer) {
            Ok(()) => Some(cut),
            Err(refusal) => {
                self.refuse_peer(remote, refusal);
                None
            }
        }
    }

    async fn shake(
        &self,
        secured: &Secured,
        stream: TcpStream,
        remote: SocketAddr,
    ) -> Option<(TlsStream<TcpStream>, Option<Arc<Peer>>)> {
        let Some(turn) = self.handshakes.take(remote.ip()).await else {
            self.refuse(
                remote,
                CROWDED,
                "too many handshakes of this source are under way",
            );
            return None;
        };
        let acceptor = TlsAcceptor::from(secured.tls.config().clone());
        let shaking = acceptor.accept(stream).into_fallible();
        let shaken = match timeout(HANDSHAKE_MAX, shaking).await {
            Ok(shaken) => shaken,
            Err(_) => {
                self.refuse(remote, "timeout", "the handshake took too long");
                return None;
            }
        };
        let stream = match shaken {
            Ok(stream) => stream,
            Err((error, stream)) => {
                drop(turn);
                match tls_error(&error) {
                    Some(error) => {
                        self.refuse_peer(remote, Refusal::of_handshake(error));
                        let _ = timeout(ANSWER_MAX, close_softly(stream)).await;
                    }
                    None => self.refuse(remote, "broken", "the peer went during the handshake"),
                }
                return None;
            }
        };
        match secured.tls.admit(stream.get_ref().1) {
            Ok(peer) => Some((stream, peer)),
            Err(refusal) => {
                self.refuse_peer(remote, refusal);
                None
            }
        }
    }

    fn refuse_peer(&self, remote: SocketAddr, refusal: Refusal) {
        self.refuse(remote, refusal.as_str(), &refusal.to_string());
    }

    fn refuse(&self, peer: SocketAddr, reason: &'static str, words: &str) {
        if self.refusals.tls(self.port, reason) {
            tracing::warn!(port = self.port, %peer, reason, "a connection is refused: {words}");
        }
    }

    /// Tells who speaks HTTP in plain text what is spoken here, in the version that it speaks.
    async fn answer(&self, mut stream: TcpStream) -> io::Result<()> {
        let mut words = [0; WORDS];
        let count = stream.read(&mut words).await?;
        let answer = match words.get(..count).unwrap_or_default() {
            words if words.starts_with(b"PRI * HTTP/2") => go_away(),
            words if is_http1(words) => bad_request(),
            _ => return Ok(()),
        };
        stream.write_all(&answer).await?;
        stream.shutdown().await?;
        // What is not read makes the kernel reset the connection, and the answer is lost.
        while stream.read(&mut words).await? > 0 {}
        Ok(())
    }

    /// Cuts off peers that are trusted no more, until `stop`.
    pub async fn watch(self: Arc<Self>, stop: CancellationToken) {
        let Some(Secured { identity, .. }) = &self.secure else {
            return;
        };
        let mut changes = identity.changes();
        let mut ticks = tokio::time::interval(EXPIRED_LOOK);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                changed = changes.changed() => if changed.is_err() { return },
                _ = ticks.tick() => {
                    self.end_expired(identity.now());
                    continue;
                }
            }
            for (peer, refusal) in self.live.recheck(identity) {
                let reason = refusal.as_str();
                self.refusals.tls(self.port, reason);
                tracing::warn!(port = self.port, peer = %peer.id, serial = %peer.serial, reason, "a connection is cut off: {refusal}");
            }
        }
    }
}

impl Door {
    /// Whoever has renewed connects anew with what it has by now; it had a while to do so by itself.
    fn end_expired(&self, now: UnixMillis) {
        for peer in self.live.expired(now) {
            if self.refusals.tls(self.port, ENDED) {
                tracing::info!(port = self.port, peer = %peer.id, serial = %peer.serial, "a connection ends with its certificate");
            }
        }
    }
}

/// How long a connection outlives the certificate that it was made with: a tenth of that one's life, a minute at most.
fn grace(peer: &Peer) -> Duration {
    let life = peer.not_before.until(peer.not_after);
    (life / 10).clamp(GRACE_MIN, GRACE_MAX)
}

/// Reads what the peer has said already, and a little more: what isn't read makes the kernel reset the connection, and the
/// alert that says why is lost.
async fn close_softly(mut stream: TcpStream) -> io::Result<()> {
    stream.shutdown().await?;
    let (mut words, mut left) = ([0; WORDS], LINGER_BYTES_MAX);
    while left > 0 {
        match stream.read(&mut words).await? {
            0 => return Ok(()),
            count => left = left.saturating_sub(count),
        }
    }
    Ok(())
}

/// The one behind it, if it is TLS's.
fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// Whoever was let in.
pub struct Entered {
    pub wire: Wire,
    pub arrival: Arrival,
    cut: Option<Cut>,
    place: Option<Place>,
    _shares: Option<(Share<Serial>, Share<SpiffeId>)>,
    is_over: bool,
}

impl Entered {
    /// Ready when the connection has to end.
    pub fn poll_cut(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if !self.is_over {
            let polled = match (&mut self.cut, &mut self.place) {
                (Some(cut), _) => Pin::new(&mut cut.is_cut).poll(context).map(drop),
                (None, Some(place)) => place.poll_out(context),
                (None, None) => Poll::Pending,
            };
            self.is_over = polled.is_ready();
        }
        match self.is_over {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}

/// Connections of peers with certificates.
#[derive(Default)]
struct Live {
    next: AtomicU64,
    /// Short critical sections, never across an await. Bounded by the seats.
    peers: Mutex<Peers>,
}

/// What cuts each of them.
type Peers = HashMap<u64, (Arc<Peer>, oneshot::Sender<()>)>;

struct Cut {
    live: Arc<Live>,
    id: u64,
    is_cut: oneshot::Receiver<()>,
}

impl Live {
    fn enter(self: &Arc<Self>, peer: Arc<Peer>) -> Cut {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (cut, is_cut) = oneshot::channel();
        self.peers().insert(id, (peer, cut));
        Cut {
            live: self.clone(),
            id,
            is_cut,
        }
    }

    /// Cuts whoever is not trusted any more, and says who that was.
    fn recheck(&self, identity: &Identity) -> Vec<(Arc<Peer>, Refusal)> {
        let mut out = Vec::new();
        self.peers().retain(|_, (peer, _)| {
            let checked = identity.recheck_trust(peer);
            out.extend(checked.err().map(|refusal| (peer.clone(), refusal)));
            checked.is_ok()
        });
        out
    }

    /// Cuts those whose certificate ended a while ago.
    fn expired(&self, now: UnixMillis) -> Vec<Arc<Peer>> {
        let mut out = Vec::new();
        self.peers().retain(|_, (peer, _)| {
            let is_over = peer.not_after.plus(grace(peer)) < now;
            if is_over {
                out.push(peer.clone());
            }
            !is_over
        });
        out
    }

    fn peers(&self) -> MutexGuard<'_, Peers> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        self.live.peers().remove(&self.id);
    }
}

fn is_http1(words: &[u8]) -> bool {
    let method = words.split(|b| *b == b' ').next().unwrap_or_default();
    (3..=7).contains(&method.len()) && method.iter().all(u8::is_ascii_uppercase)
}

fn bad_request() -> Vec<u8> {
    let body = format!("{{\"error\":\"{SPEAKS_TLS}\",\"hint\":\"{HINT}\"}}\n");
    let head = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    (head + &body).into_bytes()
}

/// HTTP/2: empty SETTINGS, then GOAWAY with words (RFC 9113, 6.5 and 6.8).
fn go_away() -> Vec<u8> {
    let words = format!("{SPEAKS_TLS} ({HINT})");
    let length = u32::try_from(8 + words.len()).unwrap_or(8);
    let mut bytes = vec![0, 0, 0, 4, 0, 0, 0, 0, 0];
    bytes.extend_from_slice(&length.to_be_bytes()[1..]);
    bytes.extend_from_slice(&[7, 0, 0, 0, 0, 0]);
    bytes.extend_from_slice(&0_u32.to_be_bytes());
    bytes.extend_from_slice(&INADEQUATE_SECURITY.to_be_bytes());
    bytes.extend_from_slice(words.as_bytes());
    bytes
}

/// A socket, with TLS on it or without.
pub enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, into),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, into),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, from),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, from),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, from),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, from),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// The first byte of TLS: a record of a handshake. No method of HTTP and no preface begins with it.
const HANDSHAKE: u8 = 0x16;
/// Connections of one certificate: a workload's own, and what shares its files.
const PER_CERTIFICATE_MAX: usize = 256;
/// A reason: it has its share.
const TOO_MANY: &str = "too_many";
/// A reason: it was let in, and its certificate ended since.
const ENDED: &str = "ended";
/// Between two looks at whose certificate has ended.
const EXPIRED_LOOK: Duration = Duration::from_secs(1);
const GRACE_MIN: Duration = Duration::from_secs(1);
const GRACE_MAX: Duration = Duration::from_secs(60);
/// Most of a port who have said nothing, and most who proved nothing.
const CROWD_MAX: usize = 2048;
/// A reason: others came after it.
const CROWDED: &str = "crowded";
/// Until the first byte.
const FIRST_MAX: Duration = Duration::from_secs(10);
/// From one's turn on; a good one takes milliseconds.
const HANDSHAKE_MAX: Duration = Duration::from_secs(3);
/// For an answer to somebody who isn't let in.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// What is read of its words at once.
const WORDS: usize = 4096;
/// What is read of somebody who was refused.
const LINGER_BYTES_MAX: usize = 64 << 10;
/// An error code of HTTP/2.
const INADEQUATE_SECURITY: u32 = 0xc;
const HINT: &str = "export PHALANX_ROOTS and PHALANX_TOKEN_FILE as the control plane says at its start, or give a sidecar --token-file";

#[cfg(test)]
mod tests;
