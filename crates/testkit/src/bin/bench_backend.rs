//! The backend of the benchmark: answers as cheaply as it can, so that the proxy in front of it is what is measured.
//!
//! `bench-backend h1 ADDRESS` answers every HTTP/1.1 request with 1 KB; `bench-backend h2 ADDRESS` answers every HTTP/2
//! request with a gRPC message of 205 bytes and trailers.

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
    let mut arguments = std::env::args().skip(1);
    let (Some(kind), Some(address)) = (arguments.next(), arguments.next()) else {
        bail!("usage: bench-backend h1|h2 ADDRESS")
    };
    let address: SocketAddr = address.parse().context("no address")?;
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}"))?;
    let h2 = kind == "h2";
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            // The peer may leave whenever it likes.
            let _ = if h2 {
                serve_h2(stream).await
            } else {
                serve_h1(stream).await
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
