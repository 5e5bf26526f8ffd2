//! Loopback addresses: each part of a test gets an IP of its own, so that fixed ports never collide.

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

static NEXT: AtomicU32 = AtomicU32::new(0);
static NEXT_PORT: AtomicU32 = AtomicU32::new(0);

/// An address of 127.0.0.0/8 that no other part of this process, and hardly another process, uses.
pub fn fresh() -> IpAddr {
    let count = NEXT.fetch_add(1, Ordering::Relaxed);
    // 127.64.0.0/10 by process id, 240 addresses each; the ids of concurrently running tests differ by little.
    let block = (std::process::id() % 16_000) * 256;
    let host = 0x7f40_0000 | (block & 0x3f_ff00) | (count % 240 + 10);
    IpAddr::V4(Ipv4Addr::from(host))
}

/// A port for a program that listens on every address, whatever it is told. It is below those that the kernel gives to outgoing
/// connections: one of these, seen free, may be taken a moment later.
///
/// # Errors
/// When none is free.
pub fn port() -> std::io::Result<u16> {
    for _ in 0..PORTS {
        let count = NEXT_PORT.fetch_add(1, Ordering::Relaxed);
        let offset = (std::process::id().wrapping_mul(16).wrapping_add(count)) % PORTS;
        let port = PORT_MIN + offset as u16;
        if TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return Ok(port);
        }
    }
    Err(std::io::ErrorKind::AddrInUse.into())
}

const PORT_MIN: u16 = 26_000;
const PORTS: u32 = 6_000;
