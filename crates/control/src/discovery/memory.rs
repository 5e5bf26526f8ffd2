//! What nodes refused outlives their streams, so that one that reconnects is not first sent the same offending bytes.
//!
//! In memory only, for a bounded number of nodes and time: after that, or once a node comes with another build, it may try
//! again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use phalanx_xds::Kind;
use phalanx_xds::server::Nack;
use tokio::time::Instant;

use super::isolate::Isolation;
use crate::snapshot::Node;

/// Of all nodes; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// By node id. Short critical sections, never across an await.
    nodes: Arc<Mutex<BTreeMap<String, Record>>>,
}

#[derive(Debug)]
struct Record {
    agent: String,
    at: Instant,
    nacks: BTreeMap<(Kind, String), Nack>,
    isolation: Isolation,
}

/// What one stream has made known.
#[derive(Debug, Default)]
pub struct Remembered {
    resources: BTreeSet<(Kind, String)>,
    blames: bool,
}

/// To be made known.
#[derive(Debug)]
pub struct Known {
    /// What the stream had refused and does not refuse any more.
    gone: Vec<(Kind, String)>,
    nacks: Vec<Nack>,
    /// None: this stream has nothing to say about it.
    isolation: Option<Isolation>,
}

/// For a new stream.
#[derive(Debug, Default)]
pub struct Recalled {
    pub nacks: Vec<Nack>,
    pub isolation: Isolation,
}

impl Remembered {
    /// What differs from what is known; none: nothing.
    pub fn renew(&mut self, nacks: &[Nack], isolation: &Isolation) -> Option<Known> {
        let blames = isolation.is_blaming();
        if nacks.is_empty() && self.resources.is_empty() && !blames && !self.blames {
            return None;
        }
        let named = nacks.iter().filter_map(|n| Some((n.kind, n.name.clone()?)));
        let now: BTreeSet<(Kind, String)> = named.take(REFUSALS_MAX).collect();
        let gone = self.resources.difference(&now).cloned().collect();
        let known = Known {
            gone,
            nacks: nacks.to_vec(),
            isolation: (blames || self.blames).then(|| isolation.remembered()),
        };
        self.resources = now;
        self.blames = blames;
        Some(known)
    }
}

impl Memory {
    /// Notes what a node refuses now.
    pub fn keep(&self, node: &Node, known: Known) {
        let mut nodes = self.nodes();
        let now = Instant::now();
        if !nodes.contains_key(&node.id) && nodes.len() >= NODES_MAX {
            nodes.retain(|_, record| record.is_fresh(now));
            let oldest = nodes.iter().min_by_key(|(_, record)| record.at);
            let oldest = oldest.map(|(id, _)| id.clone());
            if let Some(id) = oldest.filter(|_| nodes.len() >= NODES_MAX) {
                nodes.remove(&id);
            }
        }
        let record = nodes.entry(node.id.clone()).or_insert_with(|| Record {
            agent: node.agent.clone(),
            at: now,
            nacks: BTreeMap::new(),
            isolation: Isolation::default(),
        });
        record.at = now;
        record.agent.clone_from(&node.agent);
        for gone in &known.gone {
            record.nacks.remove(gone);
        }
        for nack in known.nacks {
            let Some(name) = nack.name.clone() else {
                continue;
            };
            if record.nacks.len() < REFUSALS_MAX {
                record.nacks.insert((nack.kind, name), nack);
            }
        }
        if let Some(isolation) = known.isolation {
            record.isolation = isolation;
        }
        if record.nacks.is_empty() && !record.isolation.is_blaming() {
            nodes.remove(&node.id);
        }
    }

    /// What a node that comes (again) refused before.
    pub fn recall(&self, node: &Node) -> Recalled {
        let mut nodes = self.nodes();
        let is_same = |record: &Record| {
            record.agent == node.agent && record.is_fresh(Instant::now())
        };
        match nodes.get(&node.id) {
            Some(record) if is_same(record) => Recalled {
                nacks: record.nacks.values().cloned().collect(),
                isolation: record.isolation.remembered(),
            },
            Some(_) => {
                nodes.remove(&node.id);
                Recalled::default()
            }
            None => Recalled::default(),
        }
    }

    fn nodes(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Record>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Record {
    fn is_fresh(&self, now: Instant) -> bool {
        now.duration_since(self.at) < AGE_MAX
    }
}

/// Nodes that are remembered.
const NODES_MAX: usize = 4_096;
/// Refusals of one node that are remembered.
const REFUSALS_MAX: usize = 256;
/// Since a refusal was last told or confirmed.
const AGE_MAX: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use phalanx_model::ServiceName;

    use super::*;

    fn node(id: &str, agent: &str) -> Node {
        Node {
            id: id.into(),
            service: ServiceName::new("default", "match"),
            version: String::new(),
            zone: String::new(),
            instance: String::new(),
            outbound: None,
            agent: agent.into(),
        }
    }

    fn nack(name: &str) -> Nack {
        Nack {
            kind: Kind::Cluster,
            name: Some(name.into()),
            version: "v".into(),
            message: "no".into(),
            since_revision: 1,
        }
    }

    fn keep(memory: &Memory, stream: &mut Remembered, node: &Node, nacks: &[Nack]) {
        if let Some(known) = stream.renew(nacks, &Isolation::default()) {
            memory.keep(node, known);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_outlive_a_stream_until_taken_back_or_too_old() {
        let (memory, a) = (Memory::default(), node("a", "envoy 1.40"));
        let mut stream = Remembered::default();
        keep(&memory, &mut stream, &a, &[nack("x"), nack("y")]);
        assert_eq!(memory.recall(&a).nacks, [nack("x"), nack("y")]);
        keep(&memory, &mut stream, &a, &[nack("y")]);
        assert_eq!(memory.recall(&a).nacks, [nack("y")]);
        assert!(memory.recall(&node("b", "envoy 1.40")).nacks.is_empty());
        tokio::time::advance(AGE_MAX).await;
        assert!(memory.recall(&a).nacks.is_empty());
    }

    #[tokio::test]
    async fn another_build_may_try_again() {
        let (memory, a) = (Memory::default(), node("a", "envoy 1.40"));
        keep(&memory, &mut Remembered::default(), &a, &[nack("x")]);
        assert!(memory.recall(&node("a", "envoy 1.41")).nacks.is_empty());
        assert!(memory.recall(&a).nacks.is_empty(), "that took it back");
    }

    #[tokio::test]
    async fn nodes_and_refusals_are_bounded() {
        let memory = Memory::default();
        let many: Vec<Nack> = (0..2 * REFUSALS_MAX).map(|i| nack(&i.to_string())).collect();
        let (first, last) = (node("0", ""), node(&NODES_MAX.to_string(), ""));
        keep(&memory, &mut Remembered::default(), &last, &many);
        assert_eq!(memory.recall(&last).nacks.len(), REFUSALS_MAX);
        for id in 0..=NODES_MAX {
            let node = node(&id.to_string(), "");
            keep(&memory, &mut Remembered::default(), &node, &[nack("x")]);
        }
        assert!(memory.nodes().len() <= NODES_MAX);
        assert!(memory.recall(&first).nacks.is_empty(), "the oldest goes");
        assert!(!memory.recall(&last).nacks.is_empty());
    }
}
