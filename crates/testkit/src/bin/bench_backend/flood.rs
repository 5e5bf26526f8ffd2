//! Peers that mean no good, as fast as they can, over and over again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use super::raw;

/// `tls`: handshakes without a certificate, and a request where one is demanded; `reset`: streams that are opened and reset
/// at once; `bad`: requests that no two readers read alike. Prints `attacks N`: handshakes, streams, requests.
pub async fn run(kind: &str, to: SocketAddr, seconds: u64) -> anyhow::Result<()> {
    let attacks = Arc::new(AtomicU64::new(0));
    let mut attackers = JoinSet::new();
    let tls = TlsConnector::from(raw::tls("http/1.1", None)?);
    for _ in 0..ATTACKERS {
        let (attacks, kind, tls) = (attacks.clone(), kind.to_owned(), tls.clone());
        attackers.spawn(async move {
            loop {
                let made = tokio::time::timeout(PATIENCE, async {
                    match kind.as_str() {
                        "tls" => handshake(to, &tls).await,
                        "reset" => resets(to).await,
                        "bad" => bad(to).await,
                        other => bail!("no such flood: {other}"),
                    }
                });
                attacks.fetch_add(made.await.context("no answer")??, Ordering::Relaxed);
            }
            #[allow(unreachable_code)] // says what the errors are
            Ok::<(), anyhow::Error>(())
        });
    }
    tokio::select! {
        Some(ended) = attackers.join_next() => ended??,
        () = tokio::time::sleep(Duration::from_secs(seconds)) => {}
    }
    println!("attacks {}", attacks.load(Ordering::Relaxed));
    Ok(())
}

/// From an address that is not the good client's.
async fn connect(to: SocketAddr) -> anyhow::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(FROM.parse()?)?;
    let stream = socket.connect(to).await.context("cannot connect")?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn handshake(to: SocketAddr, tls: &TlsConnector) -> anyhow::Result<u64> {
    let stream = connect(to).await?;
    let Ok(mut stream) = tls.connect(ServerName::try_from("backend")?, stream).await else {
        return Ok(1);
    };
    // In TLS 1.3 a client is told what is missing after its handshake; whoever answers over HTTP must refuse.
    let (mut got, request) = (Vec::new(), b"GET / HTTP/1.1\r\nHost: backend\r\n\r\n");
    let mut chunk = [0; 1024];
    if stream.write_all(request).await.is_ok()
        && let Ok(read) = stream.read(&mut chunk).await
    {
        got.extend_from_slice(&chunk[..read]);
    }
    ensure!(
        !got.starts_with(b"HTTP/1.1 200"),
        "served without a certificate"
    );
    Ok(1)
}

async fn resets(to: SocketAddr) -> anyhow::Result<u64> {
    let stream = connect(to).await?;
    let (reading, mut writing) = stream.into_split();
    let mut hello = raw::HELLO.to_vec();
    let mut chunk = [0; 4096];
    writing.write_all(&hello).await?;
    let (mut streams, mut next) = (0, 1);
    while streams < STREAMS_MAX {
        hello.clear();
        for _ in 0..BURST {
            raw::request(next, &mut hello);
            raw::reset(next, &mut hello);
            next += 2;
        }
        if writing.write_all(&hello).await.is_err() {
            break;
        }
        streams += BURST;
        // Whatever is said is heard: else a peer that tells us to go would have to wait for us.
        match reading.try_read(&mut chunk) {
            Ok(0) => break,
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => break,
            _ => tokio::task::yield_now().await,
        }
    }
    Ok(streams)
}

async fn bad(to: SocketAddr) -> anyhow::Result<u64> {
    let mut stream = connect(to).await?;
    let request =
        b"POST / HTTP/1.1\r\nHost: backend\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nabcde";
    let mut chunk = [0; 2048];
    stream.write_all(request).await?;
    if let Ok(read) = stream.read(&mut chunk).await {
        let told = String::from_utf8_lossy(&chunk[..read.min(32)]).into_owned();
        ensure!(!told.starts_with("HTTP/1.1 2"), "taken: {told}");
    }
    Ok(1)
}

const FROM: &str = "127.0.0.66:0";
const ATTACKERS: usize = 16;
/// Streams in one write, and in one connection that nobody ends.
const BURST: u64 = 50;
const STREAMS_MAX: u64 = 10_000;
const PATIENCE: Duration = Duration::from_secs(10);
