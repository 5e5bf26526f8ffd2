//! The one HTTP/2 connection to the control plane that everything shares: discovery, registry and reports. It connects
//! when first used and again after every loss; its buffers are small, because most of its life it is idle.
//!
//! Of several control planes it leads to one, chosen by chance; when that is gone, the next connection leads to another. One
//! that takes connections but can't answer is left by [`Control::prefer`]. Over TLS, each new connection shows the certificate
//! that is current by then, and one whose control plane is trusted no more breaks off.

use std::future::Future;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use phalanx_pki::identity::Identity;
use phalanx_pki::x509::Serial;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tonic::codegen::Service;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};

use crate::mark;
use crate::secure::{Protocol, Rejection, Secure, SecureError};
use crate::why::NO_CERTIFICATE;

/// Until a connection attempt counts as failed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The same where there is another control plane to try.
const CONNECT_TIMEOUT_OF_SEVERAL: Duration = Duration::from_millis(400);
/// For the handshake beside it, and where a whole fleet shakes hands at once.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Of all attempts together.
const DIAL_TIMEOUT: Duration = Duration::from_secs(12);
/// A peer that vanished without a word is noticed after these two.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Calls that wait for the connection; beyond, callers wait themselves.
const CALLS_QUEUED_MAX: usize = 16;
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
const ADDRESSES_MAX: usize = 16;

/// The way to one or several control planes over one store. Cheap to clone; all clones share the connection.
#[derive(Clone, Debug)]
pub struct Control {
    channel: Channel,
    /// None: there is only one, in plain text.
    several: Option<Arc<Several>>,
}

#[derive(Debug)]
struct Several {
    addresses: Vec<String>,
    /// None: in plain text.
    secure: Option<Secure>,
    /// Leads to one of them each.
    direct: Vec<Channel>,
    /// Where the connection leads, or will.
    preferred: AtomicUsize,
    /// Cuts the connection when dropped. Held for an instant.
    cut: Mutex<Option<oneshot::Sender<()>>>,
}

impl Control {
    /// `HOST:PORT[,HOST:PORT…]` in plain text. Nothing is connected yet; must be called within a runtime.
    ///
    /// # Errors
    /// [`ChannelError`] when it is something else.
    pub fn parse(text: &str) -> Result<Self, ChannelError> {
        Self::to(text, None)
    }

    /// The same over TLS, to whoever has the control plane's id under the roots of `identity`. Its certificate is shown
    /// where it has one by then; whoever has yet to join has only roots.
    ///
    /// # Errors
    /// [`ChannelError`]
    pub fn secure(text: &str, identity: Arc<Identity>) -> Result<Self, ChannelError> {
        let secure = Secure::try_new(identity, Protocol::Http2);
        let secure = secure.map_err(|source| ChannelError::Tls { source })?;
        Self::to(text, Some(secure))
    }

    /// The same for a workload: before its identity has a certificate, nobody is dialled.
    ///
    /// # Errors
    /// [`ChannelError`]
    pub fn secure_as_workload(text: &str, identity: Arc<Identity>) -> Result<Self, ChannelError> {
        let secure = Secure::try_new(identity, Protocol::Http2);
        let secure = secure.map_err(|source| ChannelError::Tls { source })?;
        Self::to(text, Some(secure.as_workload()))
    }

    fn to(text: &str, secure: Option<Secure>) -> Result<Self, ChannelError> {
        let wrong = || ChannelError::Address {
            control: text.to_owned(),
        };
        let mut addresses: Vec<String> = text.split(',').map(|a| a.trim().to_owned()).collect();
        let endpoints = addresses
            .iter()
            .map(|address| endpoint(address).ok_or_else(wrong))
            .collect::<Result<Vec<_>, _>>()?;
        if let ([only], None, 0) = (endpoints.as_slice(), &secure, mark::get()) {
            return Ok(only.connect_lazy().into());
        }
        if endpoints.len() > ADDRESSES_MAX {
            return Err(wrong());
        }
        fastrand::shuffle(&mut addresses);
        let direct = addresses.iter().filter_map(|address| {
            let endpoint = endpoint(address)?;
            let Some(secure) = &secure else {
                return Some(endpoint.connect_lazy());
            };
            let dialer = Dialer::Direct(address.as_str().into(), secure.clone());
            Some(patient(endpoint).connect_with_connector_lazy(dialer))
        });
        let several = Arc::new(Several {
            direct: direct.collect(),
            addresses,
            secure,
            preferred: AtomicUsize::new(0),
            cut: Mutex::default(),
        });
        // Its name is nobody's: the dialer knows where to.
        let shared = patient(endpoint("control-planes:1").ok_or_else(wrong)?);
        Ok(Self {
            channel: shared.connect_with_connector_lazy(Dialer::Shared(several.clone())),
            several: Some(several),
        })
    }

    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The way to each of the others, for whoever gets no answer from the one in use. With what [`Control::prefer`] takes.
    pub fn others(&self) -> Vec<(usize, Channel)> {
        let Some(several) = &self.several else {
            return Vec::new();
        };
        let count = several.direct.len();
        let current = several.preferred.load(Ordering::Relaxed);
        let after = (1..count).map(|step| (current + step) % count);
        after
            .filter_map(|at| Some((at, several.direct.get(at)?.clone())))
            .collect()
    }

    /// Leaves the connection in use: what goes over it breaks off, and goes on over a new one, that shows the certificate
    /// which is current by then. Nothing happens in plain text.
    pub fn reconnect(&self) {
        if let Some(several) = &self.several
            && several.secure.is_some()
        {
            tracing::debug!("connecting anew to the control plane");
            several.connection(None);
        }
    }

    /// Which certificate of ours the control plane did not take last; none in plain text.
    pub fn rejected(&self) -> Option<watch::Receiver<Option<Rejection>>> {
        let secure = self.several.as_ref()?.secure.as_ref()?;
        Some(secure.rejected())
    }

    /// Leads the connection there from now on: what goes over it breaks off, and finds that one when it tries again.
    pub fn prefer(&self, at: usize) {
        if let Some(several) = &self.several {
            tracing::info!(
                control = several.addresses.get(at),
                "going over to another control plane"
            );
            several.preferred.store(at, Ordering::Relaxed);
            several.connection(None);
        }
    }
}

/// Where there is only one.
impl From<Channel> for Control {
    fn from(channel: Channel) -> Self {
        Self {
            channel,
            several: None,
        }
    }
}

/// A channel to `HOST:PORT[,HOST:PORT…]` in plain text. Nothing is connected yet; must be called within a runtime.
///
/// # Errors
/// [`ChannelError`] when `control` is something else.
pub fn channel(control: &str) -> Result<Channel, ChannelError> {
    Control::parse(control).map(|control| control.channel())
}

fn endpoint(address: &str) -> Option<Endpoint> {
    let (host, port) = address.rsplit_once(':')?;
    if host.is_empty() || host.contains('/') || port.parse::<u16>().is_err() {
        return None;
    }
    let endpoint = Endpoint::from_shared(format!("http://{address}")).ok()?;
    Some(
        endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .buffer_size(CALLS_QUEUED_MAX)
            .tcp_nodelay(true),
    )
}

/// The dialer has deadlines of its own, one per attempt.
fn patient(endpoint: Endpoint) -> Endpoint {
    endpoint.connect_timeout(DIAL_TIMEOUT)
}

impl Several {
    /// The preferred one, else the others in turn.
    async fn dial(&self) -> io::Result<Line> {
        let first = self.preferred.load(Ordering::Relaxed);
        let count = self.addresses.len();
        let most = match count {
            1 => CONNECT_TIMEOUT,
            _ => CONNECT_TIMEOUT_OF_SEVERAL,
        };
        let mut last = io::Error::from(ErrorKind::NotFound);
        for step in 0..count {
            let at = (first + step) % count;
            let Some(address) = self.addresses.get(at) else {
                continue;
            };
            match dial(address, self.secure.as_ref(), most).await {
                Ok((wire, distrusted)) => {
                    self.preferred.store(at, Ordering::Relaxed);
                    let (cut, is_cut) = oneshot::channel();
                    self.connection(Some(cut));
                    let over = async move {
                        tokio::select! {
                            _ = is_cut => {}
                            () = distrusted => {}
                        }
                    };
                    return Ok(Line {
                        wire,
                        over: Box::pin(over),
                        unheard: self.secure.as_ref().map(Unheard::new),
                    });
                }
                Err(error) => {
                    tracing::debug!(control = address, %error, "cannot connect");
                    last = error;
                }
            }
        }
        Err(last)
    }

    /// Replaces the connection, which ends the one before.
    fn connection(&self, cut: Option<oneshot::Sender<()>>) {
        *self.cut.lock().unwrap_or_else(PoisonError::into_inner) = cut;
    }
}

type Over = Pin<Box<dyn Future<Output = ()> + Send>>;

/// With what resolves when whoever serves there is trusted no more.
async fn dial(address: &str, secure: Option<&Secure>, most: Duration) -> io::Result<(Wire, Over)> {
    let late = |_| Err(ErrorKind::TimedOut.into());
    if secure.is_some_and(|secure| !secure.is_ready()) {
        return Err(io::Error::new(ErrorKind::NotConnected, NO_CERTIFICATE));
    }
    let stream = timeout(most, mark::connect_to(address)).await;
    let stream = stream.unwrap_or_else(late)?;
    stream.set_nodelay(true)?;
    let Some(secure) = secure else {
        return Ok((Wire::Plain(stream), Box::pin(std::future::pending())));
    };
    let shaken = timeout(HANDSHAKE_TIMEOUT, secure.connect(stream, address)).await;
    let shaken = shaken.map_err(|_| io::Error::from(ErrorKind::TimedOut))?;
    let (stream, peer) = shaken.inspect_err(|error| match error {
        SecureError::Io(error) => {
            tracing::warn!(control = address, %error, "the control plane's handshake breaks off");
        }
        _ => tracing::warn!(control = address, %error, "the control plane there is not trusted"),
    })?;
    let identity = secure.identity().clone();
    let distrusted = async move {
        let mut changes = identity.changes();
        while identity.recheck_trust(&peer).is_ok() {
            if changes.changed().await.is_err() {
                return;
            }
        }
        tracing::warn!(peer = %peer.id, "the control plane is trusted no more, its connection ends");
    };
    Ok((Wire::Tls(Box::new(stream)), Box::pin(distrusted)))
}

#[derive(Clone)]
enum Dialer {
    /// The connection that all share.
    Shared(Arc<Several>),
    /// To one alone.
    Direct(Arc<str>, Secure),
}

impl Service<Uri> for Dialer {
    type Response = TokioIo<Line>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Line>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let dialer = self.clone();
        Box::pin(async move {
            let line = match dialer {
                Self::Shared(several) => several.dial().await?,
                Self::Direct(address, secure) => {
                    let (wire, over) = dial(&address, Some(&secure), CONNECT_TIMEOUT).await?;
                    Line {
                        wire,
                        over,
                        unheard: Some(Unheard::new(&secure)),
                    }
                }
            };
            Ok(TokioIo::new(line))
        })
    }
}

/// A connection that can be cut from outside.
struct Line {
    wire: Wire,
    over: Over,
    /// Until the first byte, or alert, of the other side.
    unheard: Option<Unheard>,
}

/// Who is to be told whether our certificate was taken.
struct Unheard {
    secure: Secure,
    shown: Option<Serial>,
}

impl Unheard {
    fn new(secure: &Secure) -> Self {
        Self {
            secure: secure.clone(),
            shown: secure.shown(),
        }
    }
}

enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Line {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.over.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(ErrorKind::ConnectionAborted.into()));
        }
        let before = into.filled().len();
        let read = match &mut self.wire {
            Wire::Plain(stream) => Pin::new(stream).poll_read(context, into),
            Wire::Tls(stream) => Pin::new(stream).poll_read(context, into),
        };
        if let (Poll::Ready(read), Some(unheard)) =
            (&read, self.unheard.take_if(|_| read.is_ready()))
        {
            let said = read.as_ref().copied();
            if said.is_err() || into.filled().len() > before {
                unheard.secure.heard(unheard.shown.as_ref(), said);
            }
        }
        read
    }
}

impl AsyncWrite for Line {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.wire {
            Wire::Plain(stream) => Pin::new(stream).poll_write(context, from),
            Wire::Tls(stream) => Pin::new(stream).poll_write(context, from),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.wire {
            Wire::Plain(stream) => Pin::new(stream).poll_write_vectored(context, from),
            Wire::Tls(stream) => Pin::new(stream).poll_write_vectored(context, from),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.wire {
            Wire::Plain(stream) => stream.is_write_vectored(),
            Wire::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.wire {
            Wire::Plain(stream) => Pin::new(stream).poll_flush(context),
            Wire::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.wire {
            Wire::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Wire::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    #[error(
        "`{control}` is no address of a control plane (HOST:PORT, or several separated by commas)"
    )]
    Address { control: String },
    #[error("TLS can't be set up")]
    Tls {
        #[source]
        source: rustls::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Line {
        fn peer(&self) -> io::Result<std::net::SocketAddr> {
            match &self.wire {
                Wire::Plain(stream) => stream.peer_addr(),
                Wire::Tls(stream) => stream.get_ref().0.peer_addr(),
            }
        }
    }

    #[tokio::test]
    async fn only_host_and_port_make_a_channel() {
        for good in [
            "127.0.0.1:15010",
            "control.local:1",
            "[::1]:15010",
            "a:1,b:2, c:3",
        ] {
            assert!(channel(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "127.0.0.1",
            ":15010",
            "a:b",
            "http://a:1",
            "a b:1",
            "127.0.0.1:70000",
            "a:1,",
            "a:1,b",
        ] {
            assert!(channel(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn the_next_one_is_dialled_when_the_first_refuses() {
        let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let there = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (first, second) = (gone.local_addr().unwrap(), there.local_addr().unwrap());
        drop(gone);
        let control = Control::parse(&format!("{first},{second}")).unwrap();
        let several = control.several.as_ref().unwrap();
        for _ in 0..3 {
            let line = several.dial().await.unwrap();
            assert_eq!(line.peer().unwrap(), second);
        }
        assert_eq!(control.others().len(), 1);
    }

    #[tokio::test]
    async fn a_connection_that_is_left_breaks_off() {
        use tokio::io::AsyncReadExt;
        let listeners = [
            tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap(),
            tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap(),
        ];
        let text = listeners
            .each_ref()
            .map(|l| l.local_addr().unwrap().to_string());
        let control = Control::parse(&text.join(",")).unwrap();
        let several = control.several.as_ref().unwrap();
        let mut line = several.dial().await.unwrap();
        let before = line.peer().unwrap();
        let (other, _) = control.others()[0];
        control.prefer(other);
        let error = line.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
        let line = several.dial().await.unwrap();
        assert_ne!(line.peer().unwrap(), before);
    }
}
