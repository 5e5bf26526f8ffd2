//! Connections from anyone: a bounded number at once, a deadline for their first words and one for reading what they get.
//! The first byte tells TLS from plain text; who is at the other end of TLS is known before a word is heard.
//!
//! A full house waits in the kernel's backlog, and so do newcomers while descriptors have run out; nothing spins. What is
//! spoken on a connection is the servers' business. A peer that is revoked, or whose root is trusted no more, is cut off.

mod door;
mod turns;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Sleep, sleep, timeout};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::door::Entered;
use crate::access::Arrival;

pub use self::door::{ADMIN, Door, OCSP, XDS};

/// A listener that lets in at most so many at once.
pub struct Connections {
    listener: TcpListener,
    seats: Arc<Semaphore>,
    door: Arc<Door>,
    stop: CancellationToken,
}

impl Connections {
    pub fn new(listener: TcpListener, most: usize, door: Door, stop: CancellationToken) -> Self {
        Self {
            listener,
            seats: Arc::new(Semaphore::new(most)),
            door: Arc::new(door.with_seats(most)),
            stop,
        }
    }

    /// Serves HTTP/1.1 until `stop`; ends when every connection has, or a little later.
    pub async fn serve_http(self, router: Router) {
        let tasks = TaskTracker::new();
        let watch = self.door.clone().watch(self.stop.clone());
        let watch = tokio::spawn(watch);
        while let Some((stream, remote, seat)) = self.accept().await {
            let (door, stop, router) = (self.door.clone(), self.stop.clone(), router.clone());
            tasks.spawn(async move {
                let entered = tokio::select! {
                    () = stop.cancelled() => return,
                    entered = door.enter(stream, remote) => entered,
                };
                if let Some(entered) = entered {
                    http(Connection::new(entered, seat, None), router, stop).await;
                }
            });
        }
        tasks.close();
        tasks.wait().await;
        watch.abort();
    }

    /// For a server of HTTP/2: connections that end by themselves unless the peer introduces itself in time. Must be called
    /// within a runtime.
    pub fn greeted(self) -> impl Stream<Item = io::Result<Connection>> {
        let (sender, entered) = mpsc::channel(ENTERED_MAX);
        tokio::spawn(self.admit(sender));
        ReceiverStream::new(entered)
    }

    /// Ends after `stop`, or when nobody takes connections any more.
    async fn admit(self, sender: mpsc::Sender<io::Result<Connection>>) {
        let watch = tokio::spawn(self.door.clone().watch(self.stop.clone()));
        loop {
            let accepted = tokio::select! {
                () = sender.closed() => break,
                accepted = self.accept() => accepted,
            };
            let Some((stream, remote, seat)) = accepted else {
                break;
            };
            let (door, stop, sender) = (self.door.clone(), self.stop.clone(), sender.clone());
            tokio::spawn(async move {
                let entered = tokio::select! {
                    () = stop.cancelled() => return,
                    entered = door.enter(stream, remote) => entered,
                };
                let Some(entered) = entered else { return };
                let until = async move {
                    let _ = timeout(GREETING_MAX, stop.cancelled()).await;
                };
                let greeting = Greeting {
                    missing: GREETING_BYTES,
                    until: Box::pin(until),
                };
                let connection = Connection::new(entered, seat, Some(greeting));
                let _ = sender.send(Ok(connection)).await;
            });
        }
        watch.abort();
    }

    /// None after `stop`.
    async fn accept(&self) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
        let accepted = async {
            let seat = self.seats.clone().acquire_owned().await.ok()?;
            loop {
                match self.listener.accept().await {
                    Ok((stream, remote)) => return Some((stream, remote, seat)),
                    Err(error) => {
                        tracing::warn!(%error, "cannot take a connection");
                        sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        };
        tokio::select! {
            () = self.stop.cancelled() => None,
            accepted = accepted => accepted,
        }
    }
}

async fn http(connection: Connection, router: Router, stop: CancellationToken) {
    let arrival = connection.arrival();
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(arrival.clone());
        router.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(connection), service);
    tokio::pin!(connection);
    // An error is the peer's: it broke off, or made no sense.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = timeout(GOODBYE_MAX, connection).await;
}

/// How many connections of `wanted` the process has descriptors for, with some left for everything else.
pub fn within_descriptors(wanted: usize) -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok());
    let Some(soft) = soft else {
        return wanted;
    };
    let most = soft
        .saturating_sub(DESCRIPTORS_LEFT)
        .max(soft / 2)
        .min(wanted);
    if most < wanted {
        tracing::info!(
            most,
            wanted,
            "fewer data planes than wanted can connect: raise the limit of open files (ulimit -n)"
        );
    }
    most
}

/// A seat and a socket.
pub struct Connection {
    entered: Entered,
    greeting: Option<Greeting>,
    /// Runs while a write waits for the peer to read.
    stalled: Option<Pin<Box<Sleep>>>,
    _seat: OwnedSemaphorePermit,
}

struct Greeting {
    missing: usize,
    until: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Connection {
    fn new(entered: Entered, seat: OwnedSemaphorePermit, greeting: Option<Greeting>) -> Self {
        Self {
            entered,
            greeting,
            stalled: None,
            _seat: seat,
        }
    }

    pub fn arrival(&self) -> Arrival {
        self.entered.arrival.clone()
    }

    fn patient<T>(
        &mut self,
        written: Poll<io::Result<T>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(sleep(STALL_MAX)));
        stalled
            .as_mut()
            .poll(cx)
            .map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.entered.poll_cut(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let before = into.filled().len();
        let read = Pin::new(&mut self.entered.wire).poll_read(cx, into);
        let Some(greeting) = &mut self.greeting else {
            return read;
        };
        greeting.missing = greeting
            .missing
            .saturating_sub(into.filled().len() - before);
        if greeting.missing == 0 {
            self.greeting = None;
        } else if read.is_pending() {
            return greeting
                .until
                .as_mut()
                .poll(cx)
                .map(|()| Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.entered.wire).poll_write(cx, from);
        self.patient(written, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.entered.wire).poll_write_vectored(cx, from);
        self.patient(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.entered.wire.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.entered.wire).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.entered.wire).poll_shutdown(cx)
    }
}

/// Of the gRPC server: one per data plane.
pub const XDS_MAX: usize = 20_000;
/// Of the admin server, whose bodies may be some MiB each.
pub const ADMIN_MAX: usize = 128;
/// HTTP/2's preface, and the head of the frame after it.
const GREETING_BYTES: usize = 24 + 9;
const GREETING_MAX: Duration = Duration::from_secs(10);
/// Of a request, from the end of the one before.
const HEAD_MAX: Duration = Duration::from_secs(10);
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Without a byte taken.
const STALL_MAX: Duration = Duration::from_secs(30);
/// Connections that wait for their server.
const ENTERED_MAX: usize = 64;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// For answers under way when the server stops.
const GOODBYE_MAX: Duration = Duration::from_secs(2);
const DESCRIPTORS_LEFT: usize = 256;

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use futures_util::StreamExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn connections(most: usize) -> (Connections, std::net::SocketAddr, CancellationToken) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        (
            Connections::new(listener, most, Door::plain(), stop.clone()),
            address,
            stop,
        )
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_introduce_itself_is_let_go() {
        let (connections, address, _stop) = connections(1).await;
        let mut connections = std::pin::pin!(connections.greeted());
        let mut silent = TcpStream::connect(address).await.unwrap();
        let mut heard = [0; 8];
        tokio::select! {
            _ = connections.next() => panic!("a peer that said nothing is let in"),
            read = silent.read(&mut heard) => assert!(matches!(read, Ok(0) | Err(_))),
        }

        let words = "PRI * HTTP/2.0\r\n";
        let mut peer = TcpStream::connect(address).await.unwrap();
        peer.write_all(words.as_bytes()).await.unwrap();
        let mut connection = connections.next().await.unwrap().unwrap();
        let mut heard = Vec::new();
        let error = connection.read_to_end(&mut heard).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(heard, words.as_bytes());
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_introduced_itself_may_be_silent() {
        let (connections, address, _stop) = connections(1).await;
        let mut peer = TcpStream::connect(address).await.unwrap();
        peer.write_all(&[7; GREETING_BYTES]).await.unwrap();
        let mut connection = std::pin::pin!(connections.greeted())
            .next()
            .await
            .unwrap()
            .unwrap();
        connection
            .read_exact(&mut [0; GREETING_BYTES])
            .await
            .unwrap();
        assert!(
            timeout(10 * GREETING_MAX, connection.read_u8())
                .await
                .is_err()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_request_and_an_idle_connection_end() {
        for words in [
            "GET / HTTP/1.1\r\nhost: a\r\nx: ",
            "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
            "",
        ] {
            let (connections, address, _stop) = connections(8).await;
            tokio::spawn(connections.serve_http(Router::new().route("/", get(|| async { "ok" }))));
            let mut peer = TcpStream::connect(address).await.unwrap();
            peer.write_all(words.as_bytes()).await.unwrap();
            let mut heard = String::new();
            let ended = timeout(3 * HEAD_MAX, peer.read_to_string(&mut heard)).await;
            assert!(ended.is_ok(), "`{words}` is held for ever");
            assert_eq!(
                heard.contains("200 OK"),
                words.ends_with("\r\n\r\n"),
                "{heard}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_read_is_let_go() {
        let (connections, address, _stop) = connections(1).await;
        let mut peer = TcpStream::connect(address).await.unwrap();
        peer.write_all(b"P").await.unwrap();
        let mut connection = std::pin::pin!(connections.greeted())
            .next()
            .await
            .unwrap()
            .unwrap();
        let error = connection.write_all(&vec![0; 64 << 20]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn more_than_there_are_seats_wait_for_one() {
        let (connections, address, _stop) = connections(1).await;
        let mut peers = (
            TcpStream::connect(address).await.unwrap(),
            TcpStream::connect(address).await.unwrap(),
        );
        peers.0.write_all(b"P").await.unwrap();
        peers.1.write_all(b"P").await.unwrap();
        let mut connections = std::pin::pin!(connections.greeted());
        let first = connections.next().await.unwrap().unwrap();
        assert!(
            timeout(Duration::from_millis(50), connections.next())
                .await
                .is_err()
        );
        drop(first);
        assert!(connections.next().await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_waits_for_no_half_request() {
        let (connections, address, stop) = connections(8).await;
        let server = tokio::spawn(connections.serve_http(Router::new()));
        let mut peer = TcpStream::connect(address).await.unwrap();
        peer.write_all(b"GET / HT").await.unwrap();
        sleep(Duration::from_millis(10)).await;
        stop.cancel();
        timeout(2 * GOODBYE_MAX, server).await.unwrap().unwrap();
    }
}
