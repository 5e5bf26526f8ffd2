//! One edge: counts of requests, attempts, answers and TCP tunnels to one version of one cluster.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use phalanx_model::identity::SpiffeId;
use phalanx_model::name::{ClusterName, Direction};
use phalanx_model::reason::Reason;

use super::bump;
use super::endings::{self, Endings};
use super::histogram::{Durations, Histogram};

/// What an edge is told apart by. Everything here comes from configuration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EdgeKey {
    /// `Outbound`: this sidecar calls (Istio's reporter `source`). `Inbound`: it is called (reporter `destination`).
    pub direction: Direction,
    /// None: no cluster was chosen (no route, refused at the door).
    pub cluster: Option<ClusterName>,
    /// The endpoint's `version` label; empty when it has none or no endpoint was chosen.
    pub version: String,
    pub traffic: Traffic,
    pub security: Security,
    /// Of a lane's cluster; `cluster` is its service's. Metrics don't tell it apart.
    pub in_lane: bool,
}

/// How the way between two sidecars is secured.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Security {
    #[default]
    Plain,
    /// Mutual TLS with this peer; none when several may be meant.
    Mutual(Option<Box<SpiffeId>>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Traffic {
    Http,
    Grpc,
    Tcp,
    /// Sessions of datagrams, counted as connections.
    Udp,
}

impl Traffic {
    /// Istio's `request_protocol`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// How one request ended.
#[derive(Clone, Copy, Debug)]
pub struct Ending {
    /// As sent downstream; 0 when the caller went away before the answer's end.
    pub status: u16,
    /// Of gRPC: what trailers or headers said, none when they said nothing.
    pub grpc_status: Option<u8>,
    /// Set when the answer was made by this proxy.
    pub reason: Option<Reason>,
    pub duration_us: u64,
}

/// Counts of one edge; a cell per core, each made when first used.
pub struct Edge {
    key: EdgeKey,
    cells: Box<[OnceLock<Box<EdgeCell>>]>,
    spare: OnceLock<Box<EdgeCell>>,
}

impl Edge {
    pub(super) fn new(key: EdgeKey, cores: usize) -> Self {
        Self {
            key,
            cells: (0..cores).map(|_| OnceLock::new()).collect(),
            spare: OnceLock::new(),
        }
    }

    pub fn key(&self) -> &EdgeKey {
        &self.key
    }

    /// The cell that worker `core` alone may write. A number out of range gets one that is counted nowhere.
    #[inline]
    pub fn cell(&self, core: usize) -> &EdgeCell {
        match self.cells.get(core) {
            Some(cell) => cell.get_or_init(Box::default),
            None => self.spare.get_or_init(Box::default),
        }
    }

    pub(super) fn totals(&self) -> Option<EdgeTotals> {
        let mut totals = EdgeTotals::zero(self.key.clone());
        let mut used = false;
        for cell in self.cells.iter().filter_map(OnceLock::get) {
            cell.add_to(&mut totals);
            used = true;
        }
        used.then(|| totals.summed())
    }
}

/// One core's counts of one edge.
#[derive(Default)]
#[repr(align(128))]
pub struct EdgeCell {
    active: AtomicU64,
    durations: Histogram,
    endings: Endings,
    attempts: AtomicU64,
    retries: AtomicU64,
    connect_failures: AtomicU64,
    ejections: AtomicU64,
    abandoned: AtomicU64,
    tcp_opened: AtomicU64,
    tcp_closed: AtomicU64,
    tcp_sent: AtomicU64,
    tcp_received: AtomicU64,
    request_bytes: AtomicU64,
    response_bytes: AtomicU64,
    request_messages: AtomicU64,
    response_messages: AtomicU64,
}

impl EdgeCell {
    /// A request is sent to an endpoint of this edge; `again` when an earlier attempt had failed. It is active until
    /// [`EdgeCell::leave`], on the same core.
    #[inline]
    pub fn attempt(&self, again: bool) {
        bump(&self.active, 1);
        bump(&self.attempts, 1);
        if again {
            bump(&self.retries, 1);
        }
    }

    /// The attempt is over.
    #[inline]
    pub fn leave(&self) {
        bump(&self.active, u64::MAX); // one less, wrapping
    }

    /// A request ended, after however many attempts; counted where the last one went.
    pub fn end(&self, ending: &Ending) {
        self.durations.record(ending.duration_us);
        self.endings.count(endings::Key::new(
            ending.status,
            ending.grpc_status,
            ending.reason,
        ));
    }

    /// A request's caller left before an answer began.
    pub fn abandoned(&self) {
        bump(&self.abandoned, 1);
    }

    pub fn connect_failed(&self) {
        bump(&self.connect_failures, 1);
    }

    pub fn ejected(&self) {
        bump(&self.ejections, 1);
    }

    pub fn tunnel_opened(&self) {
        bump(&self.tcp_opened, 1);
    }

    pub fn tunnel_closed(&self) {
        bump(&self.tcp_closed, 1);
    }

    /// Bytes towards the endpoint, and from it.
    #[inline]
    pub fn tunnel_moved(&self, sent: u64, received: u64) {
        bump(&self.tcp_sent, sent);
        bump(&self.tcp_received, received);
    }

    /// Towards the endpoint, on a stream that is open.
    #[inline]
    pub fn request_moved(&self, bytes: u64, messages: u64) {
        bump(&self.request_bytes, bytes);
        bump(&self.request_messages, messages);
    }

    /// From the endpoint, on a stream that is open.
    #[inline]
    pub fn response_moved(&self, bytes: u64, messages: u64) {
        bump(&self.response_bytes, bytes);
        bump(&self.response_messages, messages);
    }

    fn add_to(&self, totals: &mut EdgeTotals) {
        let of = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        totals.active = totals.active.wrapping_add(of(&self.active));
        self.durations.add_to(&mut totals.durations);
        self.endings.add_to(&mut totals.endings);
        totals.attempts += of(&self.attempts);
        totals.retries += of(&self.retries);
        totals.connect_failures += of(&self.connect_failures);
        totals.ejections += of(&self.ejections);
        totals.abandoned += of(&self.abandoned);
        totals.tcp_opened += of(&self.tcp_opened);
        totals.tcp_closed += of(&self.tcp_closed);
        totals.tcp_sent_bytes += of(&self.tcp_sent);
        totals.tcp_received_bytes += of(&self.tcp_received);
        totals.request_bytes += of(&self.request_bytes);
        totals.response_bytes += of(&self.response_bytes);
        totals.request_messages += of(&self.request_messages);
        totals.response_messages += of(&self.response_messages);
    }
}

pub(super) fn add<K: PartialEq>(counts: &mut Vec<(K, u64)>, key: K, count: u64) {
    if count == 0 {
        return;
    }
    match counts.iter_mut().find(|(known, _)| *known == key) {
        Some((_, sum)) => *sum += count,
        None => counts.push((key, count)),
    }
}

/// An edge's counts since the start, over all cores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdgeTotals {
    pub key: EdgeKey,
    /// Requests by all that tells endings apart; the next three are sums of it.
    pub endings: Vec<(endings::Key, u64)>,
    /// Requests by status; 0 stands for a caller that went away.
    pub codes: Vec<(u16, u64)>,
    /// Requests by `grpc-status`; 17 stands for any other.
    pub grpc: Vec<(u8, u64)>,
    /// Requests that this proxy answered itself.
    pub reasons: Vec<(Reason, u64)>,
    pub durations: Durations,
    pub active: u64,
    pub attempts: u64,
    pub retries: u64,
    pub connect_failures: u64,
    pub ejections: u64,
    /// Requests whose callers left before an answer began.
    pub abandoned: u64,
    pub tcp_opened: u64,
    pub tcp_closed: u64,
    /// Towards the endpoint.
    pub tcp_sent_bytes: u64,
    pub tcp_received_bytes: u64,
    /// Of gRPC streams and WebSockets, the open ones included; as they pass.
    pub request_bytes: u64,
    pub response_bytes: u64,
    pub request_messages: u64,
    pub response_messages: u64,
}

impl EdgeTotals {
    fn zero(key: EdgeKey) -> Self {
        Self {
            key,
            endings: Vec::new(),
            codes: Vec::new(),
            grpc: Vec::new(),
            reasons: Vec::new(),
            durations: Durations::default(),
            active: 0,
            attempts: 0,
            retries: 0,
            connect_failures: 0,
            ejections: 0,
            abandoned: 0,
            tcp_opened: 0,
            tcp_closed: 0,
            tcp_sent_bytes: 0,
            tcp_received_bytes: 0,
            request_bytes: 0,
            response_bytes: 0,
            request_messages: 0,
            response_messages: 0,
        }
    }

    /// Adds the counts of another edge.
    pub(super) fn absorb(&mut self, other: Self) {
        for (key, count) in other.endings {
            add(&mut self.endings, key, count);
        }
        for (code, count) in other.codes {
            add(&mut self.codes, code, count);
        }
        for (status, count) in other.grpc {
            add(&mut self.grpc, status, count);
        }
        for (reason, count) in other.reasons {
            add(&mut self.reasons, reason, count);
        }
        self.durations.add(&other.durations);
        self.active = self.active.wrapping_add(other.active);
        self.attempts += other.attempts;
        self.retries += other.retries;
        self.connect_failures += other.connect_failures;
        self.ejections += other.ejections;
        self.abandoned += other.abandoned;
        self.tcp_opened += other.tcp_opened;
        self.tcp_closed += other.tcp_closed;
        self.tcp_sent_bytes += other.tcp_sent_bytes;
        self.tcp_received_bytes += other.tcp_received_bytes;
        self.request_bytes += other.request_bytes;
        self.response_bytes += other.response_bytes;
        self.request_messages += other.request_messages;
        self.response_messages += other.response_messages;
    }

    fn summed(mut self) -> Self {
        self.endings.sort_unstable();
        for (key, count) in &self.endings {
            add(&mut self.codes, key.status, *count);
            key.grpc_status
                .inspect(|status| add(&mut self.grpc, *status, *count));
            key.reason
                .inspect(|reason| add(&mut self.reasons, *reason, *count));
        }
        self
    }

    /// Requests that ended.
    pub fn requests(&self) -> u64 {
        self.codes.iter().map(|(_, count)| count).sum()
    }

    /// Requests that failed, each once; a caller that went away is none.
    pub fn failures(&self) -> u64 {
        let failed = self.endings.iter().filter(|(key, _)| key.is_failure());
        failed.map(|(_, count)| count).sum()
    }
}

/// The same edges, without telling lanes from their services.
pub fn without_lanes(edges: Vec<EdgeTotals>) -> Vec<EdgeTotals> {
    let mut merged: BTreeMap<EdgeKey, EdgeTotals> = BTreeMap::new();
    for mut totals in edges {
        totals.key.in_lane = false;
        match merged.get_mut(&totals.key) {
            Some(sum) => sum.absorb(totals),
            None => drop(merged.insert(totals.key.clone(), totals)),
        }
    }
    merged.into_values().collect()
}
