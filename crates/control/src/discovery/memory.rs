//! What nodes refused outlives their streams, so that one that reconnects is not first sent the same offending bytes.
//!
//! In memory only, for a bounded number of nodes and time: after that, or once a node comes with another build or holding
//! nothing, it may try again. Nobody proves its id, so what one says counts for its own service and address only.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use phalanx_model::ServiceName;
use phalanx_xds::Kind;
use phalanx_xds::server::Nack;
use tokio::time::Instant;

use super::isolate::Isolation;
use crate::snapshot::Node;

/// Of all nodes; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// Short critical sections, never across an await.
    nodes: Arc<Mutex<BTreeMap<Who, Record>>>,
}

/// Of two who say the same id, one can't spoil the other's from another address, or with another build.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Who {
    id: String,
    service: ServiceName,
    agent: String,
    address: Option<IpAddr>,
}

impl Who {
    pub fn new(node: &Node, address: Option<IpAddr>) -> Self {
        Self {
            id: node.id.clone(),
            service: node.service.clone(),
            agent: node.agent.clone(),
            address,
        }
    }
}

#[derive(Debug)]
struct Record {
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
    pub fn keep(&self, who: &Who, known: Known) {
        let mut nodes = self.nodes();
        let now = Instant::now();
        if !nodes.contains_key(who) && nodes.len() >= NODES_MAX {
            nodes.retain(|_, record| record.is_fresh(now));
            let oldest = nodes.iter().min_by_key(|(_, record)| record.at);
            let oldest = oldest.map(|(who, _)| who.clone());
            if let Some(oldest) = oldest.filter(|_| nodes.len() >= NODES_MAX) {
                nodes.remove(&oldest);
            }
        }
        let record = nodes.entry(who.clone()).or_insert_with(|| Record {
            at: now,
            nacks: BTreeMap::new(),
            isolation: Isolation::default(),
        });
        record.at = now;
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
            nodes.remove(who);
        }
    }

    /// What a node that comes again refused before.
    pub fn recall(&self, who: &Who) -> Recalled {
        let nodes = self.nodes();
        let record = nodes.get(who).filter(|r| r.is_fresh(Instant::now()));
        record.map_or_else(Recalled::default, |record| Recalled {
            nacks: record.nacks.values().cloned().collect(),
            isolation: record.isolation.remembered(),
        })
    }

    /// A node starts anew.
    pub fn forget(&self, who: &Who) -> Recalled {
        self.nodes().remove(who);
        Recalled::default()
    }

    fn nodes(&self) -> std::sync::MutexGuard<'_, BTreeMap<Who, Record>> {
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
    use super::*;

    fn node(id: &str, agent: &str) -> Who {
        Who {
            id: id.into(),
            service: ServiceName::new("default", "match"),
            agent: agent.into(),
            address: Some([127, 0, 0, 1].into()),
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

    fn keep(memory: &Memory, stream: &mut Remembered, who: &Who, nacks: &[Nack]) {
        if let Some(known) = stream.renew(nacks, &Isolation::default()) {
            memory.keep(who, known);
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
    async fn another_build_another_address_and_who_starts_anew_may_try_again() {
        let (memory, a) = (Memory::default(), node("a", "envoy 1.40"));
        keep(&memory, &mut Remembered::default(), &a, &[nack("x")]);
        assert!(memory.recall(&node("a", "envoy 1.41")).nacks.is_empty());
        let address = Some([127, 0, 0, 2].into());
        let liar = Who {
            address,
            ..a.clone()
        };
        assert!(memory.recall(&liar).nacks.is_empty());
        assert!(memory.forget(&liar).nacks.is_empty());
        assert_eq!(memory.recall(&a).nacks, [nack("x")]);
        assert!(memory.forget(&a).nacks.is_empty());
        assert!(memory.recall(&a).nacks.is_empty());
    }

    #[tokio::test]
    async fn nodes_and_refusals_are_bounded() {
        let memory = Memory::default();
        let many: Vec<Nack> = (0..2 * REFUSALS_MAX)
            .map(|i| nack(&i.to_string()))
            .collect();
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
