//! Datagrams: what clients send to a port of the plan goes to an endpoint, and what that answers comes back. A session is a
//! client's address, or the token in its datagrams; it keeps its endpoint until it was idle for a while.
//!
//! Module order: drive, ports, shut, world, table, wheel, will, session, target, source, kin, index, slots, sys. Sockets are in the
//! first two and in `sys`; the rest knows none, nor a clock.

mod drive;
mod index;
mod kin;
mod ports;
mod session;
mod shut;
mod slots;
mod source;
mod sys;
mod table;
mod target;
mod wheel;
mod will;
mod world;

use std::net::{IpAddr, SocketAddr};

pub use self::drive::run;
pub use self::ports::{Own, Ports, Reserved};

/// For tests of foreign bytes: a will that was read, written again.
#[doc(hidden)]
pub fn rewritten(will: &[u8]) -> Option<Vec<u8>> {
    will::Will::read(will).map(|will| will.write())
}

/// Of what a session is found by. The seed is a secret.
#[inline]
fn hash(seed: u64, ports: &[SocketAddr], from: Option<SocketAddr>, token: &[u8]) -> u64 {
    let mut bytes = [0; HASHED_MAX];
    let mut at = 0;
    let mut put = |more: &[u8]| {
        if let Some(room) = bytes.get_mut(at..at + more.len()) {
            room.copy_from_slice(more);
            at += more.len();
        }
    };
    for address in ports.iter().chain(&from) {
        match address.ip() {
            IpAddr::V4(ip) => put(&ip.octets()),
            IpAddr::V6(ip) => put(&ip.octets()),
        }
        put(&address.port().to_ne_bytes());
    }
    put(&[u8::from(from.is_some())]);
    put(token);
    let told = bytes.get(..at).unwrap_or_default();
    xxhash_rust::xxh3::xxh3_64_with_seed(told, seed)
}

/// Two addresses, whether the second is there, and the longest token.
const HASHED_MAX: usize = 18 + 18 + 1 + 64;
