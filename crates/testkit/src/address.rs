//! Loopback addresses: each part of a test gets an IP of its own, so that fixed ports never collide.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU32, Ordering};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// An address of 127.0.0.0/8 that no other part of this process, and hardly another process, uses.
pub fn fresh() -> IpAddr {
    let count = NEXT.fetch_add(1, Ordering::Relaxed);
    // 127.64.0.0/10 by process id, 240 addresses each; the ids of concurrently running tests differ by little.
    let block = (std::process::id() % 16_000) * 256;
    let host = 0x7f40_0000 | (block & 0x3f_ff00) | (count % 240 + 10);
    IpAddr::V4(Ipv4Addr::from(host))
}
