//! The backend of the benchmark: answers as cheaply as it can, so that the proxy in front of it is what is measured.
//!
//! `bench-backend h1 ADDRESS` answers every HTTP/1.1 request with 1 KB; `bench-backend h2 ADDRESS` answers every HTTP/2
//! request with a gRPC message of 205 bytes and trailers; `bench-backend tcp ADDRESS` sends, swallows or echoes bytes, as
//! the first one says, and `bench-backend load bulk|small|short ADDRESS CONNECTIONS SECONDS` is the client to that.

use std::convert::Infallible;
use std::net::SocketAddr;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::header::HeaderValue;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const ANSWER_BYTES: usize = 1024;
const MESSAGE_BYTES: usize = 200;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(kind), Some(address)) = (arguments.next(), arguments.next()) else {
        bail!("usage: bench-backend h1|h2|tcp ADDRESS")
    };
    if kind == "load" {
        let (Some(to), Some(connections), Some(seconds)) =
            (arguments.next(), arguments.next(), arguments.next())
        else {
            bail!("usage: bench-backend load bulk|small|short ADDRESS CONNECTIONS SECONDS")
        };
        return load(
            &address,
            to.parse()?,
            connections.parse()?,
            seconds.parse()?,
        )
        .await;
    }
    let address: SocketAddr = address.parse().context("no address")?;
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}"))?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let kind = kind.clone();
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

/// Prints what was moved: `bulk`, bytes, half of the connections in each direction; `small`, messages of 1 KB and their
/// echoes, one at a time per connection; `short`, connections of 16 KB there and back.
async fn load(kind: &str, to: SocketAddr, connections: usize, seconds: u64) -> anyhow::Result<()> {
    let mut clients = tokio::task::JoinSet::new();
    let until = tokio::time::Instant::now() + Duration::from_secs(seconds);
    for number in 0..connections {
        let kind = kind.to_owned();
        clients.spawn(async move {
            match kind.as_str() {
                "bulk" => bulk(to, number % 2 == 0, until).await,
                "small" => small(to, until).await,
                _ => short(to, until).await,
            }
        });
    }
    let mut moved = 0;
    while let Some(client) = clients.join_next().await {
        moved += client??;
    }
    println!("moved {moved}");
    Ok(())
}

async fn open(to: SocketAddr, what: u8) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    stream.write_u8(what).await?;
    Ok(stream)
}

async fn bulk(to: SocketAddr, down: bool, until: tokio::time::Instant) -> anyhow::Result<u64> {
    let mut stream = open(to, if down { SEND } else { SWALLOW }).await?;
    let (mut buffer, mut moved) = (vec![0; CHUNK_BYTES], 0);
    while tokio::time::Instant::now() < until {
        moved += match down {
            true => stream.read(&mut buffer).await?,
            false => stream.write(&buffer).await?,
        } as u64;
    }
    Ok(moved)
}

async fn small(to: SocketAddr, until: tokio::time::Instant) -> anyhow::Result<u64> {
    let mut stream = open(to, ECHO).await?;
    let (mut buffer, mut messages) = ([0; SMALL_BYTES], 0);
    while tokio::time::Instant::now() < until {
        stream.write_all(&buffer).await?;
        stream.read_exact(&mut buffer).await?;
        messages += 1;
    }
    Ok(messages)
}

async fn short(to: SocketAddr, until: tokio::time::Instant) -> anyhow::Result<u64> {
    let (mut buffer, mut connections) = (vec![0; SHORT_BYTES], 0);
    while tokio::time::Instant::now() < until {
        let mut stream = open(to, ECHO).await?;
        stream.write_all(&buffer).await?;
        stream.read_exact(&mut buffer).await?;
        stream.shutdown().await?;
        anyhow::ensure!(stream.read(&mut buffer).await? == 0, "bytes behind the end");
        connections += 1;
    }
    Ok(connections)
}

const SEND: u8 = b'd';
const SWALLOW: u8 = b'u';
const ECHO: u8 = b'e';
const CHUNK_BYTES: usize = 256 * 1024;
const SMALL_BYTES: usize = 1024;
const SHORT_BYTES: usize = 16 * 1024;
