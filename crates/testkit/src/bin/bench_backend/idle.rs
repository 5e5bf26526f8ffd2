//! Connections that have made a request each and now do nothing.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, bail};
use rustls::pki_types::ServerName;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use super::raw::{self, Wire};

/// Prints `open N` when all are, and `held N` at the end of its input: as many as were not closed by the other end.
pub async fn hold(
    kind: &str,
    to: SocketAddr,
    connections: usize,
    pem: &[&str],
) -> anyhow::Result<()> {
    let http2 = kind == "h2";
    let tls = match pem {
        [] => None,
        [cert, key] => {
            let alpn = if http2 { "h2" } else { "http/1.1" };
            let pem = Some((Path::new(cert), Path::new(key)));
            Some(TlsConnector::from(raw::tls(alpn, pem)?))
        }
        _ => bail!("a certificate needs its key"),
    };
    let (mut opening, mut held) = (JoinSet::new(), Vec::with_capacity(connections));
    for number in 0..connections {
        if opening.len() >= AT_ONCE
            && let Some(opened) = opening.join_next().await
        {
            held.push(opened??);
        }
        let tls = tls.clone();
        opening.spawn(async move {
            let opened = open(to, tls, http2).await;
            opened.with_context(|| format!("connection {number}"))
        });
    }
    while let Some(opened) = opening.join_next().await {
        held.push(opened??);
    }
    println!("open {}", held.len());
    let mut end = Vec::new();
    tokio::io::stdin().read_to_end(&mut end).await?;
    let mut alive = 0;
    for wire in &mut held {
        alive += usize::from(is_open(wire.as_mut()).await);
    }
    println!("held {alive}");
    Ok(())
}

async fn open(
    to: SocketAddr,
    tls: Option<TlsConnector>,
    http2: bool,
) -> anyhow::Result<Box<dyn Wire>> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let mut wire: Box<dyn Wire> = match tls {
        None => Box::new(stream),
        Some(tls) => Box::new(
            tls.connect(ServerName::try_from("backend")?, stream)
                .await?,
        ),
    };
    match http2 {
        true => raw::get_http2(wire.as_mut()).await?,
        false => raw::get_http1(wire.as_mut()).await?,
    }
    Ok(wire)
}

/// What was sent to it meanwhile (settings, pings) is read; an end is an end.
async fn is_open(wire: &mut dyn Wire) -> bool {
    let mut chunk = [0; 4096];
    loop {
        let read = wire.read(&mut chunk);
        match at_once(read).await {
            None => return true,
            Some(Ok(read)) if read > 0 => {}
            Some(_) => return false,
        }
    }
}

/// What is there at once.
async fn at_once<F: Future>(future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|cx| {
        let polled = future.as_mut().poll(cx);
        std::task::Poll::Ready(match polled {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

const AT_ONCE: usize = 16;
