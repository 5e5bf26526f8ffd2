//! Who is connected and what each has acknowledged: the facts behind `status` and `ps`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use phalanx_model::ServiceName;
use phalanx_pki::verifier::Peer;
use phalanx_xds::Kind;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::admit::unix_ms;
use crate::snapshot::{Asks, Node, Unmet};

/// All connected proxies; cheap to clone.
#[derive(Clone)]
pub struct Fleet {
    inner: Arc<Inner>,
}

struct Inner {
    /// Short critical sections, never across an await.
    state: Mutex<State>,
    counts: Counts,
    /// Counts changes, so that long polls can wait for one.
    changes: watch::Sender<u64>,
}

/// What is asked after each acknowledgement, by thousands of proxies, is looked up, not searched for.
#[derive(Default)]
struct State {
    next: u64,
    streams: BTreeMap<u64, ProxyState>,
    /// What a node calls itself is its own word; its service is proven. So nobody speaks for another service's.
    nodes: BTreeMap<Name, Streams>,
    /// The nodes that refuse nothing, by what they have acknowledged; a node stands under its newest stream.
    acked: BTreeSet<(u64, u64)>,
    /// The other nodes, likewise.
    refusing: BTreeSet<u64>,
    /// Of the last [`PUSHES_MAX`] revisions, oldest first.
    pushes: VecDeque<Push>,
}

/// A node of a service.
type Name = (String, ServiceName);

fn name(node: &Node) -> Name {
    (node.id.clone(), node.service.clone())
}

/// What one node has open.
#[derive(Default)]
struct Streams {
    /// Oldest first. In each lane the newest counts: a predecessor of it is not closed yet.
    all: Vec<u64>,
    summary: Option<Summary>,
}

/// Of all lanes of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Summary {
    /// The newest stream.
    stream: u64,
    /// The revision that all are being brought to.
    target: u64,
    /// What all have acknowledged.
    acked: u64,
    is_refusing: bool,
}

impl State {
    /// Each with the streams that count.
    fn nodes(&self) -> impl Iterator<Item = Vec<&ProxyState>> {
        self.nodes.values().map(|node| self.counting(node))
    }

    /// The newest stream of each lane, the newest of all first.
    fn counting(&self, node: &Streams) -> Vec<&ProxyState> {
        let mut lanes = BTreeSet::new();
        let newest_first = node.all.iter().rev().filter_map(|s| self.streams.get(s));
        newest_first
            .filter(|proxy| lanes.insert(proxy.lane))
            .collect()
    }

    fn connect(&mut self, proxy: ProxyState) -> u64 {
        let (stream, id) = (self.next, name(&proxy.node));
        self.next += 1;
        self.streams.insert(stream, proxy);
        self.nodes.entry(id.clone()).or_default().all.push(stream);
        self.file(&id);
        stream
    }

    fn disconnect(&mut self, stream: u64) {
        let Some(proxy) = self.streams.remove(&stream) else {
            return;
        };
        let id = name(&proxy.node);
        if let Some(node) = self.nodes.get_mut(&id) {
            node.all.retain(|other| *other != stream);
        }
        self.file(&id);
    }

    /// Takes a node into the set it belongs to now.
    fn file(&mut self, id: &Name) {
        let Some(node) = self.nodes.get(id) else {
            return;
        };
        let summary = self.summary(node);
        let before = node.summary;
        if summary == before {
            return;
        }
        if let Some(before) = before {
            self.acked.remove(&(before.acked, before.stream));
            self.refusing.remove(&before.stream);
        }
        match summary {
            Some(now) if now.is_refusing => drop(self.refusing.insert(now.stream)),
            Some(now) => drop(self.acked.insert((now.acked, now.stream))),
            None => drop(self.nodes.remove(id)),
        }
        if let Some(node) = self.nodes.get_mut(id) {
            node.summary = summary;
        }
    }

    fn summary(&self, node: &Streams) -> Option<Summary> {
        let counting = self.counting(node);
        Some(Summary {
            stream: *node.all.last()?,
            target: counting.iter().map(|proxy| proxy.target).min()?,
            acked: counting.iter().map(|proxy| proxy.acked).min()?,
            is_refusing: counting.iter().any(|proxy| !proxy.refused.is_empty()),
        })
    }
}

/// Which of a node's streams: all kinds on one, or one kind and what was asked for first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lane(u64);

impl Lane {
    /// `only`: the kind of a stream that carries no other; `names`: of its first request.
    pub fn new(only: Option<Kind>, names: &[String]) -> Self {
        let Some(kind) = only else {
            return Self::default();
        };
        let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
        names.sort_unstable();
        let mut hasher = DefaultHasher::new();
        (kind, names).hash(&mut hasher);
        Self(hasher.finish().max(1))
    }
}

/// One connected proxy.
#[derive(Clone, Debug)]
pub struct ProxyState {
    pub node: Node,
    pub peer: String,
    /// `delta` or `sotw`
    pub protocol: &'static str,
    pub lane: Lane,
    pub connected_ms: u64,
    pub connected: Instant,
    /// The revision it is being brought to.
    pub target: u64,
    pub acked: u64,
    /// The newest that it ever acknowledged: who asks for more takes back for a moment what was counted.
    counted: u64,
    pub refused: Vec<Refused>,
    /// Where it gets what it asks for and no more.
    pub asks: Option<Arc<Asks>>,
    /// By which it connected.
    pub certificate: Option<Arc<Peer>>,
}

/// Something a proxy does not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Kind and name, such as `RDS outbound`.
    pub resource: String,
    /// Documents it can come from, separated by `, `.
    pub rule: String,
    pub message: String,
    pub since_revision: u64,
}

impl From<&Unmet> for Refused {
    fn from(unmet: &Unmet) -> Self {
        Self {
            resource: format!("{} {}", Kind::Routes, unmet.table),
            rule: unmet.rule.clone(),
            message: unmet.message.clone(),
            since_revision: unmet.since_revision,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Push {
    revision: u64,
    committed: Instant,
    /// Of a proxy that was connected when it was stored.
    last_ack: Option<Instant>,
}

/// Since start.
#[derive(Debug, Default)]
pub struct Counts {
    pub responses: AtomicU64,
    pub nacks: AtomicU64,
    /// Acknowledged revisions by the time since they were stored; bounds in [`PUSH_BOUNDS_MS`], the last above all.
    pub push_ms: [AtomicU64; PUSH_BOUNDS_MS.len() + 1],
    pub push_us_sum: AtomicU64,
}

/// How far a revision is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reach {
    pub proxies: usize,
    pub applied: usize,
    pub waiting: Vec<String>,
    /// From being stored to the last acknowledgement, once nobody is waiting or refusing.
    pub elapsed: Option<Duration>,
}

impl Default for Fleet {
    fn default() -> Self {
        let (changes, _) = watch::channel(0);
        Self {
            inner: Arc::new(Inner {
                state: Mutex::default(),
                counts: Counts::default(),
                changes,
            }),
        }
    }
}

impl Fleet {
    /// Notes who came; dropping the seat notes that it went.
    pub fn connect(&self, node: &Node, peer: &str, protocol: &'static str, lane: Lane) -> Seat {
        let proxy = ProxyState {
            node: node.clone(),
            peer: peer.to_owned(),
            protocol,
            lane,
            connected_ms: unix_ms(),
            connected: Instant::now(),
            target: 0,
            acked: 0,
            counted: 0,
            refused: Vec::new(),
            asks: None,
            certificate: None,
        };
        let stream = self.state().connect(proxy);
        self.touch();
        Seat {
            fleet: self.clone(),
            stream,
        }
    }

    /// Notes revisions and when they were stored.
    pub fn stored(&self, recent: &VecDeque<(u64, Instant)>) {
        let mut state = self.state();
        let known = state.pushes.back().map_or(0, |push| push.revision);
        for (revision, committed) in recent.iter().filter(|(revision, _)| *revision > known) {
            if state.pushes.len() >= PUSHES_MAX {
                state.pushes.pop_front();
            }
            state.pushes.push_back(Push {
                revision: *revision,
                committed: *committed,
                last_ack: None,
            });
        }
    }

    pub fn sent(&self) {
        self.inner.counts.responses.fetch_add(1, Ordering::Relaxed);
    }

    pub fn nacked(&self) {
        self.inner.counts.nacks.fetch_add(1, Ordering::Relaxed);
    }

    /// Wakes long polls.
    pub fn touch(&self) {
        self.inner
            .changes
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    pub fn counts(&self) -> &Counts {
        &self.inner.counts
    }

    /// Streams, of which a node may have several.
    pub fn len(&self) -> usize {
        self.state().streams.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One per node, by id; what it has acknowledged is what every one of its streams has.
    pub fn proxies(&self) -> Vec<ProxyState> {
        self.state().nodes().filter_map(merged).collect()
    }

    pub fn nodes(&self) -> usize {
        self.state().nodes.len()
    }

    /// How far a revision is, over all nodes.
    pub fn reach(&self, revision: u64) -> Reach {
        let state = self.state();
        let id = |stream: &u64| Some(state.streams.get(stream)?.node.id.clone());
        let late = state.acked.range(..(revision, 0));
        let mut reach = Reach {
            proxies: state.nodes.len(),
            applied: 0,
            waiting: late.filter_map(|(_, stream)| id(stream)).collect(),
            elapsed: None,
        };
        reach.applied = state.acked.len() - reach.waiting.len();
        let named = |stream: &u64| Some(name(&state.streams.get(stream)?.node));
        let summary = |stream: &u64| state.nodes.get(&named(stream)?)?.summary;
        let refusing = state.refusing.iter();
        for (stream, node) in refusing.filter_map(|s| Some((s, summary(s)?))) {
            // What was refused of an older revision says nothing about this one.
            if node.target >= revision {
                continue;
            }
            match node.acked >= revision {
                true => reach.applied += 1,
                false => reach.waiting.extend(id(stream)),
            }
        }
        reach.waiting.sort_unstable();
        if reach.applied == reach.proxies {
            let push = state.pushes.iter().find(|push| push.revision >= revision);
            reach.elapsed =
                push.and_then(|push| Some(push.last_ack?.duration_since(push.committed)));
        }
        reach
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The streams of one node as one.
fn merged(streams: Vec<&ProxyState>) -> Option<ProxyState> {
    Some(ProxyState {
        target: streams.iter().map(|proxy| proxy.target).min()?,
        acked: streams.iter().map(|proxy| proxy.acked).min()?,
        refused: streams.iter().flat_map(|p| p.refused.clone()).collect(),
        ..(*streams.first()?).clone()
    })
}

/// The place of one stream in the fleet.
pub struct Seat {
    fleet: Fleet,
    stream: u64,
}

impl Seat {
    /// Notes what the stream asks for by name.
    pub fn asks(&self, asks: Asks) {
        if let Some(proxy) = self.fleet.state().streams.get_mut(&self.stream) {
            proxy.asks = Some(Arc::new(asks));
        }
    }

    /// Notes by which certificate it connected.
    pub fn shows(&self, certificate: Arc<Peer>) {
        if let Some(proxy) = self.fleet.state().streams.get_mut(&self.stream) {
            proxy.certificate = Some(certificate);
        }
    }

    /// Notes the progress of the stream.
    pub fn report(&self, target: u64, acked: u64, refused: Vec<Refused>) {
        let mut state = self.fleet.state();
        let State {
            streams, pushes, ..
        } = &mut *state;
        let Some(proxy) = streams.get_mut(&self.stream) else {
            return;
        };
        if (proxy.target, proxy.acked, &proxy.refused) == (target, acked, &refused) {
            return;
        }
        let now = Instant::now();
        let from = pushes.partition_point(|push| push.revision <= proxy.counted);
        let to = pushes.partition_point(|push| push.revision <= acked);
        for push in pushes.range_mut(from..to.max(from)) {
            if proxy.connected <= push.committed {
                push.last_ack = Some(now);
                self.fleet
                    .inner
                    .counts
                    .observe(now.duration_since(push.committed));
            }
        }
        proxy.counted = proxy.counted.max(acked);
        (proxy.target, proxy.acked, proxy.refused) = (target, acked, refused);
        let id = name(&proxy.node);
        state.file(&id);
        drop(state);
        self.fleet.touch();
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.fleet.state().disconnect(self.stream);
        self.fleet.touch();
    }
}

impl Counts {
    fn observe(&self, elapsed: Duration) {
        let ms = elapsed.as_secs_f64() * 1000.0;
        let bucket = PUSH_BOUNDS_MS.partition_point(|bound| *bound < ms);
        self.push_ms[bucket].fetch_add(1, Ordering::Relaxed);
        self.push_us_sum
            .fetch_add(elapsed.as_micros() as u64, Ordering::Relaxed);
    }
}

/// Milliseconds from stored to acknowledged.
pub const PUSH_BOUNDS_MS: [f64; 12] = [
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 5_000.0, 30_000.0,
];
const PUSHES_MAX: usize = 256;

#[cfg(test)]
mod tests {

    use super::*;

    fn node(id: &str) -> Node {
        Node {
            id: id.into(),
            service: ServiceName::new("default", "match"),
            version: String::new(),
            zone: String::new(),
            instance: "m1".into(),
            outbound: None,
            agent: "envoy".into(),
            tls: Default::default(),
            edge: None,
            udp: Vec::new(),
        }
    }

    #[test]
    fn the_newest_stream_of_a_node_counts_until_it_ends() {
        let fleet = Fleet::default();
        let old = fleet.connect(&node("a"), "", "delta", Lane::default());
        old.report(3, 3, Vec::new());
        let other = fleet.connect(&node("b"), "", "delta", Lane::default());
        other.report(3, 3, Vec::new());
        assert_eq!((fleet.reach(3).applied, fleet.reach(3).proxies), (2, 2));
        let new = fleet.connect(&node("a"), "", "delta", Lane::default());
        assert_eq!(fleet.reach(3).waiting, ["a"]);
        old.report(4, 4, Vec::new());
        assert_eq!(fleet.reach(4).waiting, ["a", "b"]);
        drop(new);
        assert_eq!((fleet.reach(4).applied, fleet.reach(4).proxies), (1, 2));
        drop((old, other));
        assert_eq!(fleet.reach(4), Reach::default());
    }

    #[test]
    fn a_node_of_another_service_that_calls_itself_the_same_changes_nothing() {
        let fleet = Fleet::default();
        let good = fleet.connect(&node("a"), "", "delta", Lane::default());
        good.report(3, 3, Vec::new());
        let service = ServiceName::new("default", "shop");
        let liar = Node {
            service,
            ..node("a")
        };
        let liar = fleet.connect(&liar, "", "delta", Lane::default());
        liar.report(4, 4, Vec::new());
        assert_eq!((fleet.reach(4).applied, fleet.nodes()), (1, 2));
        assert_eq!(fleet.reach(4).waiting, ["a"]);
        good.report(4, 4, Vec::new());
        assert_eq!(fleet.reach(4).applied, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_acknowledgement_is_timed_once_however_often_its_node_asks_for_more() {
        let fleet = Fleet::default();
        let seat = fleet.connect(&node("a"), "", "sotw", Lane::default());
        fleet.stored(&VecDeque::from([(3, Instant::now())]));
        seat.report(3, 3, Vec::new());
        tokio::time::advance(Duration::from_secs(60)).await;
        seat.report(3, 2, Vec::new());
        assert_eq!(fleet.reach(3).applied, 0);
        seat.report(3, 3, Vec::new());
        assert_eq!(fleet.reach(3).elapsed, Some(Duration::ZERO));
        let timed = fleet.counts().push_ms.iter();
        assert_eq!(
            timed
                .map(|count| count.load(Ordering::Relaxed))
                .sum::<u64>(),
            1
        );
    }

    #[test]
    fn a_refusal_of_an_older_revision_is_no_answer_to_a_newer_one() {
        let fleet = Fleet::default();
        let seat = fleet.connect(&node("default/match/m1"), "", "delta", Lane::default());
        let refused = || {
            vec![Refused {
                resource: "RDS outbound".into(),
                rule: "HTTPRoute/default/bad".into(),
                message: "no".into(),
                since_revision: 5,
            }]
        };
        seat.report(5, 4, refused());
        assert_eq!(fleet.reach(5).waiting, Vec::<String>::new());
        assert_eq!(fleet.reach(6).waiting, ["default/match/m1"]);
        seat.report(6, 4, refused());
        assert_eq!(
            (fleet.reach(6).waiting.len(), fleet.reach(6).applied),
            (0, 0)
        );
        seat.report(6, 6, Vec::new());
        assert_eq!(fleet.reach(6).applied, 1);
    }

    #[test]
    fn a_node_with_a_stream_per_kind_has_applied_what_all_of_them_have() {
        let fleet = Fleet::default();
        let node = node("default/match/m1");
        let connect = |kind, names: &[&str]| {
            let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
            fleet.connect(&node, "", "delta", Lane::new(Some(kind), &names))
        };
        let clusters = connect(Kind::Cluster, &[]);
        let (a, b) = (
            connect(Kind::Endpoints, &["a"]),
            connect(Kind::Endpoints, &["b"]),
        );
        clusters.report(5, 5, Vec::new());
        a.report(5, 5, Vec::new());
        b.report(5, 4, Vec::new());
        let reach = fleet.reach(5);
        assert_eq!((reach.proxies, reach.applied), (1, 0));
        assert_eq!((fleet.proxies()[0].acked, fleet.nodes()), (4, 1));
        b.report(5, 5, Vec::new());
        assert_eq!(fleet.reach(5).applied, 1);
        // A stream that came again in place of one that is not known to be gone yet counts alone.
        let again = connect(Kind::Endpoints, &["b"]);
        b.report(5, 0, Vec::new());
        assert_eq!(fleet.reach(5).applied, 0);
        again.report(5, 5, Vec::new());
        assert_eq!(fleet.reach(5).applied, 1);
    }
}
