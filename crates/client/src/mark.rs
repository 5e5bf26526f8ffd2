//! The mark on connections of this process. Where a sidecar intercepts what its application sends, the rules tell its own
//! connections by that; everywhere else there is none.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};

use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream, lookup_host};

/// 0: none.
static MARK: AtomicU32 = AtomicU32::new(0);

/// From now on every connection that this process opens bears `mark` (SO_MARK), which takes CAP_NET_ADMIN.
pub fn set(mark: u32) {
    MARK.store(mark, Ordering::Relaxed);
}

/// 0: none.
pub fn get() -> u32 {
    MARK.load(Ordering::Relaxed)
}

/// Connects as [`TcpStream::connect`] does, with the mark.
///
/// # Errors
/// Those of connecting, and of setting the mark.
pub async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let mark = get();
    if mark == 0 {
        return TcpStream::connect(address).await;
    }
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    SockRef::from(&socket).set_mark(mark)?;
    socket.connect(address).await
}

/// The same to `HOST:PORT`: the first of its addresses that takes the connection.
///
/// # Errors
/// The last address's.
pub async fn connect_to(host: &str) -> io::Result<TcpStream> {
    if get() == 0 {
        return TcpStream::connect(host).await;
    }
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in lookup_host(host).await? {
        match connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}
