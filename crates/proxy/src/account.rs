//! Counting. Every edge (who is called, in which version, over what) has one cell per core; a core writes its own cells
//! with relaxed load and store, a reader sums them. No lock, no hashing and no label text on the request path: a plan
//! holds the edges, made once per configuration.

pub mod colours;
pub mod edge;
pub mod endings;
pub mod flow;
mod histogram;
pub mod lookout;
mod secured;
pub mod sight;
pub mod udp;
mod witness;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

pub use self::colours::{ColourId, Colours, LaneCounts};
pub use self::edge::{Edge, EdgeCell, EdgeKey, EdgeTotals, Ending, Security, Traffic};
pub use self::flow::{Flow, Speaks};
pub use self::histogram::{BOUNDS_US, Durations};
pub use self::lookout::Lookout;
pub use self::secured::{Secured, SecuredConnection, TlsRefused};
pub use self::sight::Sight;
pub use self::witness::Witness;
use crate::compare::Comparisons;
use crate::config::Correlate;
use crate::underway::Underway;

/// All counts of one sidecar.
pub struct Account {
    cores: usize,
    started: Instant,
    /// Taken when a plan is made and when counts are read, never by a request.
    edges: Mutex<BTreeMap<EdgeKey, Arc<Edge>>>,
    events: Box<[EventCells]>,
    witness: Witness,
    secured: Secured,
    lookout: Arc<Lookout>,
    datagrams: udp::Datagrams,
    underway: Underway,
    comparisons: Arc<Comparisons>,
    colours: Arc<Colours>,
}

impl Account {
    /// For `cores` workers, numbered from 0.
    pub fn new(cores: usize) -> Self {
        let cores = cores.max(1);
        Self {
            cores,
            started: Instant::now(),
            edges: Mutex::default(),
            events: (0..cores).map(|_| EventCells::default()).collect(),
            witness: Witness::default(),
            secured: Secured::new(cores),
            lookout: Arc::default(),
            datagrams: udp::Datagrams::default(),
            underway: Underway::new(cores, Correlate::default()),
            comparisons: Arc::default(),
            colours: Arc::new(Colours::new(cores)),
        }
    }

    /// Calls of the application are correlated so.
    #[must_use]
    pub fn correlating(mut self, correlate: Correlate) -> Self {
        self.underway = Underway::new(self.cores, correlate);
        self
    }

    /// Of answers of mirrors.
    pub fn comparisons(&self) -> &Arc<Comparisons> {
        &self.comparisons
    }

    /// For so long another process serves the same application, or requests of one that did may be under way.
    pub fn blind(&self, time: Duration) {
        let until = self.started.elapsed().saturating_add(time);
        let until_ms = u64::try_from(until.as_millis()).unwrap_or(u64::MAX);
        self.underway.blind(until_ms);
    }

    /// Requests that the application has to answer.
    #[inline]
    pub fn underway(&self) -> &Underway {
        &self.underway
    }

    /// Requests by colour.
    pub fn colours(&self) -> &Arc<Colours> {
        &self.colours
    }

    /// Of single requests, for logs and taps.
    pub fn lookout(&self) -> &Arc<Lookout> {
        &self.lookout
    }

    /// Of ports for datagrams.
    pub fn datagrams(&self) -> &udp::Datagrams {
        &self.datagrams
    }

    /// Connections over TLS, and those that were refused.
    pub fn secured(&self) -> &Secured {
        &self.secured
    }

    /// Of endpoints that refuse connections.
    pub fn witness(&self) -> &Witness {
        &self.witness
    }

    pub fn cores(&self) -> usize {
        self.cores
    }

    /// What times of ejection and of balancing are counted from.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// The edge of this key; counts go on where they were when it comes back. Over [`EDGES_MAX`], edges that no plan
    /// holds any more are forgotten.
    pub fn edge(&self, key: EdgeKey) -> Arc<Edge> {
        let mut edges = self.edges.lock().unwrap_or_else(PoisonError::into_inner);
        if edges.len() >= EDGES_MAX && !edges.contains_key(&key) {
            edges.retain(|_, edge| Arc::strong_count(edge) > 1);
        }
        edges
            .entry(key)
            .or_insert_with_key(|key| Arc::new(Edge::new(key.clone(), self.cores)))
            .clone()
    }

    /// Sums over cores, of every edge that was ever used, in the order of keys.
    pub fn collect(&self) -> Vec<EdgeTotals> {
        let edges: Vec<Arc<Edge>> = {
            let edges = self.edges.lock().unwrap_or_else(PoisonError::into_inner);
            edges.values().cloned().collect()
        };
        edges.iter().filter_map(|edge| edge.totals()).collect()
    }

    /// The same, whatever the security of an edge.
    pub fn collect_merged(&self) -> Vec<EdgeTotals> {
        let mut merged: BTreeMap<EdgeKey, EdgeTotals> = BTreeMap::new();
        for mut totals in self.collect() {
            totals.key.security = Security::Plain;
            match merged.get_mut(&totals.key) {
                Some(sum) => sum.absorb(totals),
                None => drop(merged.insert(totals.key.clone(), totals)),
            }
        }
        merged.into_values().collect()
    }

    /// How often what happened, that belongs to no edge.
    pub fn events(&self) -> Vec<(Event, u64)> {
        let of = |cells: &EventCells, event: Event| {
            cells
                .0
                .get(event as usize)
                .map_or(0, |cell| cell.load(Ordering::Relaxed))
        };
        Event::ALL
            .iter()
            .map(|event| {
                (
                    *event,
                    self.events.iter().map(|cells| of(cells, *event)).sum(),
                )
            })
            .collect()
    }

    /// Counts an event on behalf of worker `core`.
    #[inline]
    pub fn count(&self, core: usize, event: Event) {
        if let Some(cells) = self.events.get(core) {
            bump_at(&cells.0, event as usize);
        }
    }
}

/// Adds with one writer: no locked instruction.
#[inline]
pub(crate) fn bump(cell: &AtomicU64, by: u64) {
    cell.store(
        cell.load(Ordering::Relaxed).wrapping_add(by),
        Ordering::Relaxed,
    );
}

#[inline]
fn bump_at(cells: &[AtomicU64], index: usize) {
    if let Some(cell) = cells.get(index) {
        bump(cell, 1);
    }
}

macro_rules! events {
    ($($variant:ident $text:literal,)*) => {
        /// What happens to connections and limits; the texts are values of a metric label.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Event { $($variant,)* }

        impl Event {
            pub const ALL: &'static [Event] = &[$(Event::$variant,)*];

            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        const EVENTS: usize = [$(Event::$variant,)*].len();
    };
}

events! {
    Accepted "connection_accepted",
    Closed "connection_closed",
    AcceptFailed "accept_failed",
    ConnectionLimit "connection_limit",
    SourceLimit "source_limit",
    Panicked "panicked",
    HandshakeDeadline "deadline_handshake",
    HeadDeadline "deadline_head",
    IdleDeadline "deadline_idle",
    WriteDeadline "deadline_stalled_write",
    BodyDeadline "deadline_body",
    RouteDeadline "deadline_route",
    AttemptDeadline "deadline_attempt",
    StreamIdleDeadline "deadline_stream_idle",
    TunnelIdleDeadline "deadline_tunnel_idle",
    DrainDeadline "deadline_drain",
    Refused "request_refused",
    ResetLimit "reset_limit",
    RetryBudget "retry_budget_spent",
    RetryUnreplayable "retry_unreplayable",
    StaleConnection "stale_connection",
    PoolOpened "pool_opened",
    PoolReused "pool_reused",
    PoolEvicted "pool_evicted",
    DownstreamAborted "downstream_aborted",
    UnknownProtocol "unknown_protocol",
    NotRedirected "not_redirected",
    PassedThrough "passed_through",
    OutboundRefused "outbound_refused",
    AccessDenied "connection_denied",
    SessionMoved "session_moved",
    SecuredOpened "tls_opened",
    SecuredResumed "tls_resumed",
    SecuredRevoked "tls_revoked_closed",
    PickedFar "picked_other_zone",
    PickedInPanic "picked_in_panic",
    MirrorDropped "mirror_dropped",
    Hedged "hedged",
    HedgeWon "hedge_won",
    HedgeBudget "hedge_budget_spent",
    Http2Streams "http2_streams",
    Http2Head "http2_head",
    Http2Block "http2_block",
    Http2Continuations "http2_continuations",
    Http2Control "http2_control",
    Http2Settings "http2_settings",
    Http2Unread "http2_unread",
}

#[repr(align(128))]
struct EventCells([AtomicU64; EVENTS]);

impl Default for EventCells {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; EVENTS])
    }
}

/// Edges kept, those of earlier plans included.
pub const EDGES_MAX: usize = 10_000;

#[cfg(test)]
mod tests;
