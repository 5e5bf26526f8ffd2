//! What each proxy saw of each destination: the totals, and those of half a minute to a minute ago, so that a canary's
//! proxies can be compared with what they were before. Pure, bounded.

use std::collections::{BTreeMap, HashMap};

use phalanx_proto::phalanx::observe::v1 as wire;

/// Ended requests, and how many of them failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub requests: u64,
    pub failures: u64,
}

/// By destination, `<namespace>/<service>`; empty for requests that no cluster was found for.
pub type ByDestination = BTreeMap<String, Traffic>;

#[derive(Debug, Default)]
pub struct Nodes {
    nodes: HashMap<String, Node>,
    destinations: usize,
}

#[derive(Debug, Default)]
struct Node {
    seen: u64,
    destinations: BTreeMap<String, Tally>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    now: Traffic,
    /// Two marks, the older first: the second of each, and what had been counted by then.
    marks: [(u64, Traffic); 2],
}

impl Traffic {
    pub fn add(&mut self, other: Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.failures = self.failures.saturating_add(other.failures);
    }

    pub fn since(self, before: Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(before.requests),
            failures: self.failures.saturating_sub(before.failures),
        }
    }

    /// 0 to 1; 0 without requests.
    pub fn share(self) -> f64 {
        if self.requests == 0 {
            0.0
        } else {
            self.failures.min(self.requests) as f64 / self.requests as f64
        }
    }
}

impl Nodes {
    /// Takes what a node reports.
    pub fn add(&mut self, report: &wire::ReportRequest, second: u64) {
        let of_edge = |edge: &wire::Edge| {
            let name = destination(&edge.destination_namespace, &edge.destination_service);
            let traffic = Traffic {
                requests: edge.requests,
                failures: edge.failures,
            };
            (name, traffic)
        };
        self.count(&report.node, report.edges.iter().map(of_edge), second);
    }

    /// Takes requests of a node, by destination.
    pub fn count(
        &mut self,
        node: &str,
        traffic: impl IntoIterator<Item = (String, Traffic)>,
        second: u64,
    ) {
        if self.nodes.len() >= super::NODES_MAX && !self.nodes.contains_key(node) {
            self.forget(second);
        }
        if self.nodes.len() >= super::NODES_MAX && !self.nodes.contains_key(node) {
            return;
        }
        let node = self.nodes.entry(node.to_owned()).or_default();
        node.seen = second;
        for (name, traffic) in traffic {
            let is_new = !node.destinations.contains_key(&name);
            if is_new && self.destinations >= DESTINATIONS_MAX {
                continue;
            }
            self.destinations += usize::from(is_new);
            let tally = node.destinations.entry(name).or_default();
            tally.add(traffic, second);
        }
    }

    /// Since the node's first report.
    pub fn totals(&self, node: &str) -> ByDestination {
        self.of(node, |tally| tally.now)
    }

    /// Of the last 30 to 60 seconds.
    pub fn recent(&self, node: &str) -> ByDestination {
        self.of(node, |tally| tally.now.since(tally.marks[0].1))
    }

    /// All nodes that reported within the last minute, but `except`.
    pub fn others(&self, except: impl Fn(&str) -> bool) -> ByDestination {
        let mut sums = ByDestination::new();
        for (_, node) in self.nodes.iter().filter(|(id, _)| !except(id)) {
            for (name, tally) in &node.destinations {
                sums.entry(name.clone()).or_default().add(tally.now);
            }
        }
        sums
    }

    fn of(&self, node: &str, traffic: impl Fn(&Tally) -> Traffic) -> ByDestination {
        let tallies = self.nodes.get(node).into_iter();
        tallies
            .flat_map(|node| &node.destinations)
            .map(|(name, tally)| (name.clone(), traffic(tally)))
            .collect()
    }

    fn forget(&mut self, second: u64) {
        self.nodes.retain(|_, node| node.seen + FORGET_S > second);
        self.destinations = self.nodes.values().map(|n| n.destinations.len()).sum();
    }
}

impl Tally {
    fn add(&mut self, traffic: Traffic, second: u64) {
        let [_, newer] = self.marks;
        if second >= newer.0 + MARK_S {
            self.marks = [newer, (second, self.now)];
        }
        self.now.add(traffic);
    }
}

/// What a destination is called here; empty when there is none.
pub fn destination(namespace: &str, service: &str) -> String {
    match service {
        "" => String::new(),
        service => format!("{namespace}/{service}"),
    }
}

/// Between two marks.
const MARK_S: u64 = 30;
/// A node that was silent for so long makes room for others.
const FORGET_S: u64 = 60;
/// Over all nodes.
const DESTINATIONS_MAX: usize = 400_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn report(node: &str, destination: &str, requests: u64, failures: u64) -> wire::ReportRequest {
        let edge = wire::Edge {
            destination_namespace: "default".into(),
            destination_service: destination.into(),
            requests,
            failures,
            ..wire::Edge::default()
        };
        wire::ReportRequest {
            node: node.into(),
            edges: vec![edge],
            ..wire::ReportRequest::default()
        }
    }

    #[test]
    fn what_is_recent_leaves_out_what_was_long_ago() {
        let mut nodes = Nodes::default();
        nodes.add(&report("a", "battle", 100, 100), 1);
        for second in 31..100 {
            nodes.add(&report("a", "battle", 10, 1), second);
        }
        let recent = nodes.recent("a")["default/battle"];
        assert!((300..=600).contains(&recent.requests), "{recent:?}");
        assert!(recent.share() < 0.11, "{recent:?}");
        assert_eq!(nodes.totals("a")["default/battle"].requests, 790);
    }

    #[test]
    fn others_are_all_but_the_canaries_and_unrouted_requests_count() {
        let mut nodes = Nodes::default();
        nodes.add(&report("a", "battle", 10, 10), 1);
        nodes.add(&report("b", "battle", 20, 0), 1);
        nodes.add(&report("c", "", 5, 5), 1);
        let others = nodes.others(|node| node == "a");
        assert_eq!(others["default/battle"].requests, 20);
        assert_eq!(others[""].failures, 5);
    }
}
