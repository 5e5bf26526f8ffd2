//! Who is connected and what each has acknowledged: the facts behind `status` and `ps`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::admit::unix_ms;
use crate::snapshot::Node;

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

#[derive(Default)]
struct State {
    next: u64,
    streams: BTreeMap<u64, ProxyState>,
    /// Of the last [`PUSHES_MAX`] revisions, oldest first.
    pushes: VecDeque<Push>,
}

impl State {
    fn nodes(&self) -> impl Iterator<Item = &ProxyState> {
        let by_id: BTreeMap<&str, &ProxyState> = self
            .streams
            .values()
            .map(|proxy| (proxy.node.id.as_str(), proxy))
            .collect();
        by_id.into_values()
    }
}

/// One connected proxy.
#[derive(Clone, Debug)]
pub struct ProxyState {
    pub node: Node,
    pub peer: String,
    /// `delta` or `sotw`
    pub protocol: &'static str,
    pub connected_ms: u64,
    pub connected: Instant,
    /// The revision it is being brought to.
    pub target: u64,
    pub acked: u64,
    pub refused: Vec<Refused>,
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
    pub fn connect(&self, node: &Node, peer: &str, protocol: &'static str) -> Seat {
        let mut state = self.state();
        let stream = state.next;
        state.next += 1;
        let proxy = ProxyState {
            node: node.clone(),
            peer: peer.to_owned(),
            protocol,
            connected_ms: unix_ms(),
            connected: Instant::now(),
            target: 0,
            acked: 0,
            refused: Vec::new(),
        };
        state.streams.insert(stream, proxy);
        drop(state);
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

    pub fn len(&self) -> usize {
        self.state().streams.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One per node, by id: of several streams (a reconnect whose predecessor is not closed yet) the newest.
    pub fn proxies(&self) -> Vec<ProxyState> {
        self.state().nodes().cloned().collect()
    }

    /// How far a revision is, over all nodes.
    pub fn reach(&self, revision: u64) -> Reach {
        let state = self.state();
        let mut reach = Reach::default();
        for proxy in state.nodes() {
            reach.proxies += 1;
            // What was refused of an older revision says nothing about this one.
            let is_offered = proxy.target >= revision;
            match (proxy.acked >= revision, proxy.refused.is_empty()) {
                (_, false) if is_offered => {}
                (true, _) => reach.applied += 1,
                (false, _) => reach.waiting.push(proxy.node.id.clone()),
            }
        }
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

/// The place of one stream in the fleet.
pub struct Seat {
    fleet: Fleet,
    stream: u64,
}

impl Seat {
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
        for push in pushes
            .iter_mut()
            .filter(|push| push.revision > proxy.acked && push.revision <= acked)
        {
            if proxy.connected <= push.committed {
                push.last_ack = Some(now);
                self.fleet
                    .inner
                    .counts
                    .observe(now.duration_since(push.committed));
            }
        }
        (proxy.target, proxy.acked, proxy.refused) = (target, acked, refused);
        drop(state);
        self.fleet.touch();
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.fleet.state().streams.remove(&self.stream);
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
    use phalanx_model::ServiceName;

    use super::*;

    #[test]
    fn a_refusal_of_an_older_revision_is_no_answer_to_a_newer_one() {
        let fleet = Fleet::default();
        let node = Node {
            id: "default/match/m1".into(),
            service: ServiceName::new("default", "match"),
            version: String::new(),
            zone: String::new(),
            instance: "m1".into(),
            outbound: None,
            agent: "envoy".into(),
        };
        let seat = fleet.connect(&node, "", "delta");
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
}
