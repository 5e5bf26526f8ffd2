//! Connections over TLS that are open, each with the certificate it uses, and a count of those that were refused. Locks are
//! taken at handshakes and closings, never by a request.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use phalanx_model::name::Direction;
use phalanx_pki::verifier::{Peer, Refusal};
use slab::Slab;

/// Shared by all workers.
pub struct Secured {
    /// Per core.
    open: Box<[Mutex<Slab<Arc<SecuredConnection>>>]>,
    refusals: Mutex<Refusals>,
}

/// One connection, with what its peer has proven.
#[derive(Debug)]
pub struct SecuredConnection {
    pub direction: Direction,
    pub address: SocketAddr,
    /// None for somebody without a certificate, who is told so and no more.
    pub peer: Option<Arc<Peer>>,
    /// What was agreed by ALPN; empty for nothing.
    pub protocol: String,
    pub version: &'static str,
    /// Without a full handshake.
    pub resumed: bool,
    pub opened: Instant,
}

/// Why a connection was not secured, or not taken without being so: values of a metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsRefused {
    /// What is wrong with the peer.
    Peer(Refusal),
    /// Plain text where mutual TLS is a must.
    PlainText,
    /// TLS where plain text is a must.
    Off,
    /// We have none ourselves, yet.
    NoCredentials,
    /// What is asked of callers is not known, yet.
    NoPolicy,
    /// The handshake took too long.
    Deadline,
    /// The peer left during the handshake.
    Gone,
    /// Too many handshakes at once.
    Busy,
    /// This peer was refused just before.
    Again,
    /// Nobody here has the name that it asked for.
    Name,
}

impl TlsRefused {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Peer(refusal) => refusal.as_str(),
            Self::PlainText => "plain_text",
            Self::Off => "tls_off",
            Self::NoCredentials => "no_credentials",
            Self::NoPolicy => "no_policy",
            Self::Deadline => "deadline",
            Self::Gone => "gone",
            Self::Busy => "busy",
            Self::Again => "again",
            Self::Name => "name",
        }
    }
}

impl std::fmt::Display for TlsRefused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Peer(refusal) => refusal.fmt(f),
            Self::PlainText => f.write_str("plain text is not taken here"),
            Self::Off => f.write_str("TLS is not taken here"),
            Self::NoCredentials => f.write_str("this sidecar has no certificate yet"),
            Self::NoPolicy => f.write_str("what is asked of callers is not known yet"),
            Self::Deadline => f.write_str("the handshake took too long"),
            Self::Gone => f.write_str("the peer left during the handshake"),
            Self::Busy => f.write_str("too many handshakes at once"),
            Self::Again => f.write_str("the peer was refused just before"),
            Self::Name => f.write_str("nobody here has the name that it asked for"),
        }
    }
}

#[derive(Default)]
struct Refusals {
    counts: BTreeMap<(Direction, &'static str), u64>,
    /// When the current second of the log began, and what it holds.
    since: Option<Instant>,
    logged: u32,
    silent: u64,
}

impl Secured {
    pub(super) fn new(cores: usize) -> Self {
        Self {
            open: (0..cores).map(|_| Mutex::default()).collect(),
            refusals: Mutex::default(),
        }
    }

    /// Enters a connection of worker `core`; gives the key to let go of it.
    pub fn enter(&self, core: usize, connection: Arc<SecuredConnection>) -> usize {
        let entered = self.of(core).map(|mut open| open.insert(connection));
        entered.unwrap_or_default()
    }

    pub fn leave(&self, core: usize, key: usize) {
        if let Some(mut open) = self.of(core) {
            open.try_remove(key);
        }
    }

    /// How many are open.
    pub fn count(&self) -> usize {
        let cores = 0..self.open.len();
        cores
            .filter_map(|core| self.of(core))
            .map(|open| open.len())
            .sum()
    }

    /// How many are open, and `max` of them, those that were opened last first.
    pub fn open(&self, max: usize) -> (usize, Vec<Arc<SecuredConnection>>) {
        let mut all = Vec::new();
        for core in 0..self.open.len() {
            if let Some(open) = self.of(core) {
                all.extend(open.iter().map(|(_, connection)| connection.clone()));
            }
        }
        let count = all.len();
        all.sort_unstable_by_key(|connection| std::cmp::Reverse(connection.opened));
        all.truncate(max);
        (count, all)
    }

    /// Counts a refusal, and says it, unless too many were said in this second.
    pub fn refuse(&self, direction: Direction, reason: TlsRefused, peer: SocketAddr) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        *refusals
            .counts
            .entry((direction, reason.as_str()))
            .or_default() += 1;
        let Some(silent) = refusals.may_log(Instant::now()) else {
            return;
        };
        drop(refusals);
        tracing::warn!(
            direction = direction.as_str(), %peer, reason = reason.as_str(), silent,
            "connection refused: {reason}"
        );
    }

    /// Refusals by direction and reason.
    pub fn refusals(&self) -> Vec<(Direction, &'static str, u64)> {
        let refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = refusals.counts.iter();
        counts
            .map(|((direction, reason), count)| (*direction, *reason, *count))
            .collect()
    }

    fn of(&self, core: usize) -> Option<MutexGuard<'_, Slab<Arc<SecuredConnection>>>> {
        let open = self.open.get(core)?;
        Some(open.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Refusals {
    /// How many were not said before this one, if this one may be said.
    fn may_log(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now - since >= LOG_INTERVAL) {
            self.since = Some(now);
            self.logged = 0;
        }
        if self.logged >= LOGGED_MAX {
            self.silent += 1;
            return None;
        }
        self.logged += 1;
        Some(std::mem::take(&mut self.silent))
    }
}

const LOG_INTERVAL: Duration = Duration::from_secs(1);
/// Refusals said per [`LOG_INTERVAL`].
const LOGGED_MAX: u32 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flood_of_refusals_is_counted_and_not_said() {
        let mut refusals = Refusals::default();
        let start = Instant::now();
        let said = (0..100)
            .filter(|_| refusals.may_log(start).is_some())
            .count();
        assert_eq!(said, LOGGED_MAX as usize);
        assert_eq!(refusals.may_log(start + LOG_INTERVAL), Some(90));
        let secured = Secured::new(1);
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        for _ in 0..100 {
            secured.refuse(Direction::Inbound, TlsRefused::Peer(Refusal::Revoked), peer);
        }
        assert_eq!(secured.refusals(), [(Direction::Inbound, "revoked", 100)]);
    }
}
