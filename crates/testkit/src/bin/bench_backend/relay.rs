//! Bytes through a relay of TCP.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{CHUNK_BYTES, ECHO, SEND, SWALLOW};

/// Prints what was moved: `bulk`, bytes, half of the connections in each direction; `small`, messages of 1 KB and their
/// echoes, one at a time per connection; `short`, connections of 16 KB there and back.
pub async fn load(
    kind: &str,
    to: SocketAddr,
    connections: usize,
    seconds: u64,
) -> anyhow::Result<()> {
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

const SMALL_BYTES: usize = 1024;
const SHORT_BYTES: usize = 16 * 1024;
