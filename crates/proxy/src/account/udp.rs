//! Counts of datagrams: of each listening port a cell per core, which that core alone writes. Names and addresses come from
//! configuration; no client is in them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use phalanx_telemetry::metrics::{Exposition, Family};
use tokio::sync::watch;

use super::bump;

macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$of:meta])* $variant:ident $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name { $($(#[$of])* $variant,)* }

        impl $name {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

named! {
    /// Why a datagram goes nowhere; the texts are values of a metric label.
    Dropped {
        /// Over the packets that a source may send.
        SourcePackets "source_packets",
        SourceBytes "source_bytes",
        SourceSessions "source_sessions",
        /// More sources than are kept.
        Sources "sources",
        /// The port has as many sessions as it may.
        Sessions "sessions",
        /// The endpoint has as many sessions as there may be sockets.
        Sockets "sockets",
        /// Its token leads nowhere, and tokens are asked for.
        Token "token",
        NoEndpoint "no_endpoint",
        /// The session directory has its token at none of our endpoints, or has not come yet.
        Elsewhere "elsewhere",
        /// It would begin a session, and the process is about to end.
        Draining "draining",
        /// From nobody who can be answered, or from ourselves.
        BadSource "bad_source",
        /// From none of the endpoints that a socket has sessions with.
        Stranger "stranger",
        /// From an endpoint that its session has left.
        Left "left",
        /// More than a client gets that has not shown yet that answers reach it.
        Unproven "unproven",
        /// Another core has the session, and its queue is full.
        Queue "queue",
        /// The system gives no more sockets.
        Descriptors "descriptors",
        /// The system did not take it.
        Send "send",
        /// By the system, before it came to us: our queue was full, or its source is shut out for a flood.
        Kernel "kernel",
    }
}

named! {
    /// Why a session goes to another endpoint, or answers to another address.
    Moved {
        /// The same token from another address.
        Roamed "roamed",
        /// The session directory says so.
        Seat "directory",
        /// The endpoint is gone.
        Endpoint "endpoint_gone",
    }
}

named! {
    /// Why a session ended.
    Ended {
        Idle "idle",
        /// One datagram came and no other: it had little time, or made room for another session.
        HalfOpen "half_open",
        /// The listener is gone.
        Closed "closed",
        /// Another process goes on with it.
        HandedOver "handed_over",
    }
}

/// Name and address of a port.
type Key = (String, Option<SocketAddr>);

/// All ports of one process.
#[derive(Default)]
pub struct Datagrams {
    ports: Mutex<BTreeMap<Key, Arc<Port>>>,
    /// Ticks with every plan that has ports, or had.
    plans: watch::Sender<()>,
}

pub struct Port {
    pub name: String,
    pub address: Option<SocketAddr>,
    cells: Box<[Cell]>,
}

const REASONS: usize = Dropped::ALL.len();

/// One core's counts of one port. Towards the endpoint is 0, from it 1.
#[derive(Default)]
#[repr(align(128))]
pub struct Cell {
    packets: [AtomicU64; 2],
    bytes: [AtomicU64; 2],
    opened: AtomicU64,
    ended: [AtomicU64; Ended::ALL.len()],
    moved: [AtomicU64; Moved::ALL.len()],
    dropped: [AtomicU64; REASONS],
}

impl Cell {
    #[inline]
    pub fn up(&self, bytes: usize) {
        bump(&self.packets[0], 1);
        bump(&self.bytes[0], bytes as u64);
    }

    #[inline]
    pub fn down(&self, bytes: usize) {
        bump(&self.packets[1], 1);
        bump(&self.bytes[1], bytes as u64);
    }

    pub fn opened(&self) {
        bump(&self.opened, 1);
    }

    pub fn ended(&self, why: Ended) {
        add(&self.ended, why as usize, 1);
    }

    pub fn moved(&self, why: Moved) {
        add(&self.moved, why as usize, 1);
    }

    #[inline]
    pub fn dropped(&self, why: Dropped, packets: u64) {
        add(&self.dropped, why as usize, packets);
    }
}

#[inline]
fn add(cells: &[AtomicU64], at: usize, by: u64) {
    if let Some(cell) = cells.get(at) {
        bump(cell, by);
    }
}

/// Sums over cores.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub packets: [u64; 2],
    pub bytes: [u64; 2],
    pub opened: u64,
    pub ended: Vec<(Ended, u64)>,
    pub moved: Vec<(Moved, u64)>,
    pub dropped: Vec<(Dropped, u64)>,
}

impl Totals {
    /// Sessions that live.
    pub fn sessions(&self) -> u64 {
        let ended: u64 = self.ended.iter().map(|(_, count)| count).sum();
        self.opened.saturating_sub(ended)
    }

    pub fn dropped(&self, why: Dropped) -> u64 {
        let mut of = self.dropped.iter().filter(|(reason, _)| *reason == why);
        of.next().map_or(0, |(_, count)| *count)
    }

    pub fn moved(&self, why: Moved) -> u64 {
        let mut of = self.moved.iter().filter(|(reason, _)| *reason == why);
        of.next().map_or(0, |(_, count)| *count)
    }
}

impl Port {
    /// Counted nowhere else.
    pub fn new(name: &str, address: Option<SocketAddr>, cores: usize) -> Self {
        Self {
            name: name.to_owned(),
            address,
            cells: (0..cores.max(1)).map(|_| Cell::default()).collect(),
        }
    }

    /// What worker `core` alone may write.
    #[inline]
    pub fn cell(&self, core: usize) -> Option<&Cell> {
        self.cells.get(core)
    }

    pub fn totals(&self) -> Totals {
        let sum = |of: &dyn Fn(&Cell) -> &AtomicU64| {
            let cells = self.cells.iter();
            cells.map(|cell| of(cell).load(Ordering::Relaxed)).sum()
        };
        let nth = |cells: &dyn Fn(&Cell) -> &[AtomicU64], at: usize| -> u64 {
            let of = |cell| {
                cells(cell)
                    .get(at)
                    .map_or(0, |cell| cell.load(Ordering::Relaxed))
            };
            self.cells.iter().map(of).sum()
        };
        let ended = Ended::ALL
            .iter()
            .map(|why| (*why, nth(&|c| &c.ended, *why as usize)));
        let moved = Moved::ALL
            .iter()
            .map(|why| (*why, nth(&|c| &c.moved, *why as usize)));
        let dropped = Dropped::ALL.iter();
        let dropped = dropped.map(|why| (*why, nth(&|c| &c.dropped, *why as usize)));
        Totals {
            packets: [sum(&|c| &c.packets[0]), sum(&|c| &c.packets[1])],
            bytes: [sum(&|c| &c.bytes[0]), sum(&|c| &c.bytes[1])],
            opened: sum(&|c| &c.opened),
            ended: ended.collect(),
            moved: moved.collect(),
            dropped: dropped.collect(),
        }
    }
}

impl Datagrams {
    /// There is another plan: its ports are to be opened at once, for the control plane hears that it is in force.
    pub fn planned(&self) {
        self.plans.send_replace(());
    }

    pub fn plans(&self) -> watch::Receiver<()> {
        self.plans.subscribe()
    }

    /// The port of this name and address; counts go on where they were when it comes back. Over [`PORTS_MAX`], those that
    /// nobody holds are forgotten. `None` stands for what comes to upstream sockets and belongs to no port.
    pub fn port(&self, name: &str, address: Option<SocketAddr>, cores: usize) -> Arc<Port> {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (name.to_owned(), address);
        if ports.len() >= PORTS_MAX && !ports.contains_key(&key) {
            ports.retain(|_, port| Arc::strong_count(port) > 1);
        }
        let port = ports.entry(key);
        port.or_insert_with(|| Arc::new(Port::new(name, address, cores)))
            .clone()
    }

    pub fn ports(&self) -> Vec<Arc<Port>> {
        let ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        ports.values().cloned().collect()
    }

    /// Families of datagrams; nothing where there is no port for them.
    pub fn write(&self, out: &mut Exposition) {
        let ports = self.ports();
        let address = |port: &Port| port.address.map(|address| address.to_string());
        let is_told = |port: &&Arc<Port>| {
            let dropped = || port.totals().dropped.iter().any(|(_, count)| *count > 0);
            port.address.is_some() || dropped()
        };
        let all: Vec<_> = ports
            .iter()
            .filter(is_told)
            .map(|port| {
                (
                    port.name.as_str(),
                    address(port).unwrap_or_default(),
                    port.totals(),
                )
            })
            .collect();
        if all.is_empty() {
            return;
        }
        let labels = |name: &'static str, at: usize| (name, if at == 0 { "up" } else { "down" });
        for (family, of) in [
            (&PACKETS, (|t| &t.packets) as fn(&Totals) -> &[u64; 2]),
            (&BYTES, |t| &t.bytes),
        ] {
            let mut samples = out.family(family);
            for (name, address, totals) in &all {
                for (at, value) in of(totals).iter().enumerate() {
                    let of = [
                        ("port", *name),
                        ("address", address),
                        labels("direction", at),
                    ];
                    samples.sample(&of, *value);
                }
            }
        }
        let mut samples = out.family(&SESSIONS);
        for (name, address, totals) in &all {
            samples.sample(&[("port", *name), ("address", address)], totals.sessions());
        }
        let mut samples = out.family(&OPENED);
        for (name, address, totals) in &all {
            samples.sample(&[("port", *name), ("address", address)], totals.opened);
        }
        type Reasons = fn(&Totals) -> Vec<(&'static str, u64)>;
        let families: [(&Family, Reasons); 3] = [
            (&ENDED, |t| {
                t.ended.iter().map(|(why, n)| (why.as_str(), *n)).collect()
            }),
            (&MOVED, |t| {
                t.moved.iter().map(|(why, n)| (why.as_str(), *n)).collect()
            }),
            (&DROPPED, |t| {
                t.dropped
                    .iter()
                    .map(|(why, n)| (why.as_str(), *n))
                    .collect()
            }),
        ];
        for (family, reasons) in families {
            let mut samples = out.family(family);
            for (name, address, totals) in &all {
                for (reason, count) in reasons(totals).into_iter().filter(|(_, count)| *count > 0) {
                    let of = [("port", *name), ("address", address), ("reason", reason)];
                    samples.sample(&of, count);
                }
            }
        }
    }
}

const PACKETS: Family = Family::counter(
    "phalanx_udp_packets_total",
    "Datagrams passed on: up towards endpoints, down towards clients.",
);
const BYTES: Family = Family::counter(
    "phalanx_udp_bytes_total",
    "Bytes of datagrams passed on, without tokens that were cut off.",
);
const SESSIONS: Family = Family::gauge("phalanx_udp_sessions", "Sessions that live.");
const OPENED: Family = Family::counter("phalanx_udp_sessions_opened_total", "Sessions begun.");
const ENDED: Family = Family::counter(
    "phalanx_udp_sessions_ended_total",
    "Sessions ended, by reason.",
);
const MOVED: Family = Family::counter(
    "phalanx_udp_sessions_moved_total",
    "Sessions that went to another endpoint or client address, by reason.",
);
const DROPPED: Family = Family::counter(
    "phalanx_udp_dropped_total",
    "Datagrams that went nowhere, by reason.",
);

/// Ports kept, those of earlier plans included.
const PORTS_MAX: usize = 1_000;
