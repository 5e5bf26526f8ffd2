//! The backend of the benchmark: answers as cheaply as it can, so that the proxy in front of it is what is measured.
//!
//! `bench-backend h1 ADDRESS` answers every HTTP/1.1 request with 1 KB; `bench-backend h2 ADDRESS` answers every HTTP/2
//! request with a gRPC message of 205 bytes and trailers; `bench-backend tcp ADDRESS` sends, swallows or echoes bytes, as
//! the first one says; `bench-backend udp ADDRESS COUNT` echoes datagrams. The clients: [`relay`], [`paced`] at a constant
//! rate, [`idle`] connections, [`flood`], [`datagrams`].

#[path = "bench_backend/datagrams.rs"]
mod datagrams;
#[path = "bench_backend/flood.rs"]
mod flood;
#[path = "bench_backend/idle.rs"]
mod idle;
#[path = "bench_backend/paced.rs"]
mod paced;
#[path = "bench_backend/raw.rs"]
mod raw;
#[path = "bench_backend/relay.rs"]
mod relay;

use std::convert::Infallible;
use std::net::SocketAddr;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::header::HeaderValue;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const ANSWER_BYTES: usize = 1024;
const MESSAGE_BYTES: usize = 200;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["load", kind, to, connections, seconds] => {
            relay::load(kind, to.parse()?, connections.parse()?, seconds.parse()?).await
        }
        ["paced", to, rate, connections, seconds] => {
            paced::load(
                to.parse()?,
                rate.parse()?,
                connections.parse()?,
                seconds.parse()?,
            )
            .await
        }
        ["idle", kind, to, connections, ref pem @ ..] => {
            idle::hold(kind, to.parse()?, connections.parse()?, pem).await
        }
        ["udp", address, count] => datagrams::echo(address.parse()?, count.parse()?).await,
        ["udp-paced", to, rate, sockets, seconds] => {
            let (rate, sockets) = (rate.parse()?, sockets.parse()?);
            datagrams::paced(to.parse()?, rate, sockets, seconds.parse()?).await
        }
        ["udp-hello", to, count] => datagrams::hello(to.parse()?, count.parse()?),
        ["flood", "udp", to, seconds] => datagrams::flood(to.parse()?, seconds.parse()?),
        ["flood", kind, to, seconds] => flood::run(kind, to.parse()?, seconds.parse()?).await,
        [kind @ ("h1" | "h2" | "tcp"), address] => serve(kind, address.parse()?).await,
        _ => bail!("{USAGE}"),
    }
}

const USAGE: &str = "usage: bench-backend h1|h2|tcp ADDRESS
       bench-backend load bulk|small|short ADDRESS CONNECTIONS SECONDS
       bench-backend paced ADDRESS REQUESTS_PER_SECOND CONNECTIONS SECONDS
       bench-backend idle h1|h2 ADDRESS CONNECTIONS [CERT KEY]
       bench-backend udp ADDRESS COUNT
       bench-backend udp-paced ADDRESS DATAGRAMS_PER_SECOND SOCKETS SECONDS
       bench-backend udp-hello ADDRESS CLIENTS
       bench-backend flood tls|reset|bad|udp ADDRESS SECONDS";

async fn serve(kind: &str, address: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}"))?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let kind = kind.to_owned();
        tokio::spawn(async move {
            // The peer may leave whenever it likes.
            let _ = match kind.as_str() {
                "h2" => serve_h2(stream).await,
                "tcp" => serve_tcp(stream).await,
                _ => serve_h1(stream).await,
            };
        });
    }
}

/// Counts heads (requests here have no body) and writes one prepared answer each.
async fn serve_h1(mut stream: TcpStream) -> anyhow::Result<()> {
    let mut answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {ANSWER_BYTES}\r\n\r\n"
    )
    .into_bytes();
    answer.resize(answer.len() + ANSWER_BYTES, b'x');
    let (mut buffer, mut filled) = (vec![0; 64 * 1024], 0);
    loop {
        let read = stream.read(&mut buffer[filled..]).await?;
        if read == 0 {
            return Ok(());
        }
        filled += read;
        let mut consumed = 0;
        while let Some(end) = buffer[consumed..filled]
            .windows(4)
            .position(|w| w == b"\r\n\r\n")
        {
            consumed += end + 4;
            stream.write_all(&answer).await?;
        }
        buffer.copy_within(consumed..filled, 0);
        filled -= consumed;
    }
}

async fn serve_h2(stream: TcpStream) -> anyhow::Result<()> {
    let service =
        hyper::service::service_fn(|request: Request<hyper::body::Incoming>| async move {
            let _ = request.into_body().collect().await;
            let mut message = vec![0, 0, 0, 0, MESSAGE_BYTES as u8];
            message.resize(message.len() + MESSAGE_BYTES, b'x');
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            let body =
                Full::new(Bytes::from(message)).with_trailers(async move { Some(Ok(trailers)) });
            let mut response = Response::new(body);
            response
                .headers_mut()
                .insert("content-type", HeaderValue::from_static("application/grpc"));
            Ok::<_, Infallible>(response)
        });
    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await?;
    Ok(())
}

/// The first byte says what the rest of the connection is.
async fn serve_tcp(mut stream: TcpStream) -> anyhow::Result<()> {
    let mut buffer = vec![0; CHUNK_BYTES];
    match stream.read_u8().await? {
        SEND => loop {
            stream.write_all(&buffer).await?;
        },
        SWALLOW => while stream.read(&mut buffer).await? > 0 {},
        _ => loop {
            let read = stream.read(&mut buffer).await?;
            if read == 0 {
                return Ok(());
            }
            stream.write_all(&buffer[..read]).await?;
        },
    }
    Ok(())
}

/// The first byte of a connection of raw TCP; any other than the first two: send back what comes.
const SEND: u8 = b'd';
const SWALLOW: u8 = b'u';
const ECHO: u8 = b'e';
const CHUNK_BYTES: usize = 256 * 1024;
