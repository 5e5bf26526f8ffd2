//! Counts per edge and second, and what is read from them. Pure.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use phalanx_client::api;
use phalanx_model::ServiceName;
use phalanx_proto::phalanx::observe::v1 as wire;

pub use super::counts::{BOUNDS_US, BUCKETS};
use super::counts::{Counts, quantile_ms};

/// Who talks to whom.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EdgeKey {
    pub source_namespace: String,
    pub source: String,
    pub destination_namespace: String,
    pub destination: String,
    pub destination_version: String,
    pub protocol: String,
}

#[derive(Debug, Default)]
pub struct Edges {
    edges: BTreeMap<EdgeKey, Edge>,
    /// By destination, with latencies.
    services: BTreeMap<ServiceName, Counts>,
}

#[derive(Debug, Default)]
struct Edge {
    total: Sums,
    /// Only seconds with a report, oldest first, at most [`SECONDS_MAX`].
    seconds: VecDeque<(u64, Sums)>,
}

/// Counts that add up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    requests: u64,
    failures: u64,
    attempts: u64,
    retries: u64,
    connect_failures: u64,
    ejections: u64,
    tcp_bytes: u64,
    /// Requests whose callers left before an answer.
    abandoned: u64,
    /// Empty, or [`BUCKETS`] of them.
    latency: Vec<u64>,
}

impl Sums {
    pub fn of(edge: &wire::Edge) -> Self {
        Self {
            requests: edge.requests,
            failures: edge.failures,
            attempts: edge.attempts,
            retries: edge.retries,
            connect_failures: edge.connect_failures,
            ejections: edge.ejections,
            tcp_bytes: edge.tcp_bytes,
            abandoned: edge.abandoned,
            latency: edge.latency_buckets.clone(),
        }
    }

    fn add(&mut self, other: &Self) {
        let sum = |a: &mut u64, b: u64| *a = a.saturating_add(b);
        sum(&mut self.requests, other.requests);
        sum(&mut self.failures, other.failures);
        sum(&mut self.attempts, other.attempts);
        sum(&mut self.retries, other.retries);
        sum(&mut self.connect_failures, other.connect_failures);
        sum(&mut self.ejections, other.ejections);
        sum(&mut self.tcp_bytes, other.tcp_bytes);
        sum(&mut self.abandoned, other.abandoned);
        if self.latency.len() < other.latency.len() {
            self.latency.resize(other.latency.len(), 0);
        }
        for (mine, theirs) in self.latency.iter_mut().zip(&other.latency) {
            sum(mine, *theirs);
        }
    }

    fn quantile_ms(&self, q: f64) -> Option<f64> {
        quantile_ms(&self.latency, q)
    }

    /// Whoever gave up waiting was not served: a version that hangs is not a healthy one.
    pub fn counts(&self) -> Counts {
        Counts {
            requests: self.requests,
            failures: self.failures.saturating_add(self.abandoned),
            latency: self.latency.clone(),
        }
    }
}

impl Edges {
    /// Without a second, only the totals take it. False: there are too many edges, it was not taken.
    pub fn add(&mut self, key: EdgeKey, second: Option<u64>, sums: Sums) -> bool {
        if self.edges.len() >= EDGES_MAX && !self.edges.contains_key(&key) {
            return false;
        }
        let edge = self.edges.entry(key).or_default();
        edge.total.add(&Sums {
            latency: Vec::new(),
            ..sums.clone()
        });
        let Some(second) = second else {
            return true;
        };
        while edge
            .seconds
            .front()
            .is_some_and(|(at, _)| at + SECONDS_MAX <= second)
        {
            edge.seconds.pop_front();
        }
        match edge.seconds.back_mut() {
            Some((at, last)) if *at == second => last.add(&sums),
            _ => edge.seconds.push_back((second, sums)),
        }
        true
    }

    /// Takes what callers saw of a service, also of one whose edges are too many. Bounded by itself.
    pub fn count(&mut self, service: ServiceName, counts: &Counts) {
        if self.services.len() < SERVICES_MAX || self.services.contains_key(&service) {
            self.services.entry(service).or_default().add(counts);
        }
    }

    /// All that was seen of a service since start.
    pub fn service(&self, service: &ServiceName) -> Counts {
        self.services.get(service).cloned().unwrap_or_default()
    }

    /// The last `window_s` whole seconds before `now`, busiest first.
    pub fn window(&self, now: u64, window_s: u64) -> Vec<api::Edge> {
        let from = now.saturating_sub(window_s);
        let sum = |edge: &Edge| {
            let mut sums = Sums::default();
            edge.seconds
                .iter()
                .filter(|(at, _)| *at >= from && *at < now.max(1))
                .for_each(|(_, second)| sums.add(second));
            sums
        };
        let busy = self
            .edges
            .iter()
            .map(|(key, edge)| (key, sum(edge)))
            .filter(|(_, sums)| *sums != Sums::default());
        // A young control plane has not seen the whole window.
        let seen_s = window_s.min(now.max(1));
        let mut edges: Vec<_> = busy.map(|(key, sums)| view(key, &sums, seen_s)).collect();
        edges.sort_by_key(|edge| Reverse(edge.requests));
        edges
    }

    /// Who has called whom since start.
    pub fn callers(&self) -> BTreeSet<(ServiceName, ServiceName)> {
        let caller = |key: &EdgeKey| {
            let source = ServiceName::new(&key.source_namespace, &key.source);
            (
                source,
                ServiceName::new(&key.destination_namespace, &key.destination),
            )
        };
        self.edges.keys().map(caller).collect()
    }

    /// Since start, by name.
    pub fn totals(&self) -> Vec<api::Edge> {
        self.edges
            .iter()
            .map(|(key, edge)| view(key, &edge.total, 0))
            .collect()
    }
}

fn view(key: &EdgeKey, sums: &Sums, window_s: u64) -> api::Edge {
    let rps = if window_s == 0 {
        0.0
    } else {
        sums.requests as f64 / window_s as f64
    };
    let failed = if sums.requests == 0 {
        0.0
    } else {
        sums.failures as f64 / sums.requests as f64
    };
    api::Edge {
        source_namespace: key.source_namespace.clone(),
        source: key.source.clone(),
        destination_namespace: key.destination_namespace.clone(),
        destination: key.destination.clone(),
        // Known to the world only; see `api::read::edges`.
        destination_app: String::new(),
        destination_version: key.destination_version.clone(),
        protocol: key.protocol.clone(),
        requests: sums.requests,
        rps,
        failures: sums.failures,
        success: (1.0 - failed).max(0.0),
        p50_ms: sums.quantile_ms(0.50),
        p99_ms: sums.quantile_ms(0.99),
        attempts: sums.attempts,
        retries: sums.retries,
        connect_failures: sums.connect_failures,
        ejections: sums.ejections,
        tcp_bytes: sums.tcp_bytes,
    }
}

/// How long seconds are kept.
pub const SECONDS_MAX: u64 = 60;
const EDGES_MAX: usize = 4096;
const SERVICES_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_that_overflow_together_have_quantiles() {
        let sums = Sums {
            latency: vec![u64::MAX; BUCKETS],
            ..Sums::default()
        };
        assert!(sums.quantile_ms(0.99).is_some_and(f64::is_finite));
    }
}
