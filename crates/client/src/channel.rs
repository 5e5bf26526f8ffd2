//! The one HTTP/2 connection to the control plane that everything shares: discovery, registry and reports. It connects
//! when first used and again after every loss; its buffers are small, because most of its life it is idle.
//!
//! Of several control planes it leads to one, chosen by chance; when that is gone, the next connection leads to another. One
//! that takes connections but can't answer is left by [`Control::prefer`].

use std::future::Future;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tonic::codegen::Service;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};

/// Until a connection attempt counts as failed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The same where there is another control plane to try.
const CONNECT_TIMEOUT_OF_SEVERAL: Duration = Duration::from_millis(400);
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
    /// None: there is only one.
    several: Option<Arc<Several>>,
}

#[derive(Debug)]
struct Several {
    addresses: Vec<String>,
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
        let wrong = || ChannelError {
            control: text.to_owned(),
        };
        let mut addresses: Vec<String> = text.split(',').map(|a| a.trim().to_owned()).collect();
        let endpoints = addresses
            .iter()
            .map(|address| endpoint(address).ok_or_else(wrong))
            .collect::<Result<Vec<_>, _>>()?;
        if let [only] = endpoints.as_slice() {
            return Ok(only.connect_lazy().into());
        }
        if endpoints.len() > ADDRESSES_MAX {
            return Err(wrong());
        }
        fastrand::shuffle(&mut addresses);
        let direct = addresses.iter().filter_map(|address| endpoint(address));
        let several = Arc::new(Several {
            direct: direct.map(|endpoint| endpoint.connect_lazy()).collect(),
            addresses,
            preferred: AtomicUsize::new(0),
            cut: Mutex::default(),
        });
        // Its name is nobody's: the dialer knows where to.
        let shared = endpoint("control-planes:1").ok_or_else(wrong)?;
        Ok(Self {
            channel: shared.connect_with_connector_lazy(Dialer(several.clone())),
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

impl Several {
    /// The preferred one, else the others in turn.
    async fn dial(&self) -> io::Result<Line> {
        let first = self.preferred.load(Ordering::Relaxed);
        let count = self.addresses.len();
        let mut last = io::Error::from(ErrorKind::NotFound);
        for step in 0..count {
            let at = (first + step) % count;
            let Some(address) = self.addresses.get(at) else {
                continue;
            };
            let attempt = timeout(CONNECT_TIMEOUT_OF_SEVERAL, TcpStream::connect(address)).await;
            match attempt.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into())) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    self.preferred.store(at, Ordering::Relaxed);
                    let (cut, is_cut) = oneshot::channel();
                    self.connection(Some(cut));
                    return Ok(Line { stream, is_cut });
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Replaces the connection, which ends the one before.
    fn connection(&self, cut: Option<oneshot::Sender<()>>) {
        *self.cut.lock().unwrap_or_else(PoisonError::into_inner) = cut;
    }
}

#[derive(Clone)]
struct Dialer(Arc<Several>);

impl Service<Uri> for Dialer {
    type Response = TokioIo<Line>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Line>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let several = self.0.clone();
        Box::pin(async move { several.dial().await.map(TokioIo::new) })
    }
}

/// A connection that can be cut from outside.
struct Line {
    stream: TcpStream,
    is_cut: oneshot::Receiver<()>,
}

impl AsyncRead for Line {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if Pin::new(&mut self.is_cut).poll(context).is_ready() {
            return Poll::Ready(Err(ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Line {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, from)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, from)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{control}` is no address of a control plane (HOST:PORT, or several separated by commas)")]
pub struct ChannelError {
    control: String,
}

#[cfg(test)]
mod tests {
    use super::*;

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
            assert_eq!(line.stream.peer_addr().unwrap(), second);
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
        let before = line.stream.peer_addr().unwrap();
        let (other, _) = control.others()[0];
        control.prefer(other);
        let error = line.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
        let line = several.dial().await.unwrap();
        assert_ne!(line.stream.peer_addr().unwrap(), before);
    }
}
