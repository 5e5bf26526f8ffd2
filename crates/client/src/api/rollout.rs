//! Rollouts: how far each is, what was seen, and what is wanted of it by hand.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// `GET /api/v1/rollouts`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rollouts {
    pub rollouts: Vec<RolloutView>,
}

/// One Rollout and how far it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RolloutView {
    pub namespace: String,
    pub name: String,
    /// `<Kind>/<namespace>/<name>` of the route.
    pub target: String,
    /// `<namespace>/<name>`
    pub stable: String,
    /// `<namespace>/<name>`
    pub canary: String,
    /// `match` or `none`
    pub boundary: String,
    /// `waiting`, `progressing`, `paused`, `promoted` or `rolled-back`
    pub phase: String,
    /// Counts starts.
    pub attempt: u32,
    /// From 1; 0 before the first, one more than there are when all are done.
    pub step: usize,
    pub steps: Vec<RolloutStep>,
    /// Of a hundred requests, how many go to the new version.
    pub weight: u32,
    /// Of a hundred requests, how many are copied to it.
    pub mirror: f64,
    /// Requests of this colour go to it; empty: none.
    pub lane: String,
    /// What it waits for just now; empty: for nothing, or nobody knows here.
    pub waiting: String,
    /// Why it is in this phase.
    pub reason: String,
    pub author: String,
    /// When it came into this phase.
    pub since_ms: u64,
    pub started_ms: u64,
    pub step_since_ms: u64,
    /// Label `version` of the new version's instances.
    pub versions: Vec<String>,
    /// Of this step.
    #[serde(default)]
    pub last: Option<RolloutMeasurement>,
    /// What was seen since.
    #[serde(default)]
    pub seen: Option<RolloutMeasurement>,
    /// The control plane that drives it; empty: none just now.
    pub plane: String,
    /// Of its record; 0 before there is one.
    pub revision: u64,
    /// What can't be found out or stored.
    #[serde(default)]
    pub problems: Vec<String>,
    /// Newest last; only where one is asked for.
    #[serde(default)]
    pub events: Vec<RolloutEvent>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutStep {
    /// In words, such as `weight 5% for 120s`.
    pub step: String,
    /// `done`, `current` or `ahead`
    pub state: String,
}

/// What callers saw of both versions in one measurement.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RolloutMeasurement {
    pub time_ms: u64,
    pub took_ms: u64,
    pub canary: VersionFigures,
    pub stable: VersionFigures,
    /// Answers of copies that were compared with the original's, and how many of them were others.
    pub compared: u64,
    pub different: u64,
    pub custom: BTreeMap<String, f64>,
    /// None: it is not finished.
    #[serde(default)]
    pub good: Option<bool>,
    /// What did not hold.
    pub why: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VersionFigures {
    pub requests: u64,
    pub failures: u64,
    #[serde(default)]
    pub p99_ms: Option<f64>,
}

/// Something that happened to a Rollout.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RolloutEvent {
    pub time_ms: u64,
    pub attempt: u32,
    /// `started`, `step`, `paused`, `resumed`, `promoted` or `rolled-back`
    pub event: String,
    /// From 1; 0 before the first.
    pub step: usize,
    pub weight: u32,
    pub reason: String,
    /// `phalanx` when nobody decided.
    pub author: String,
    /// The last measurement before.
    #[serde(default)]
    pub figures: Option<RolloutMeasurement>,
}

/// `POST /api/v1/rollouts/{namespace}/{name}`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RolloutOrder {
    /// `pause`, `resume`, `promote`, `abort` or `retry`
    pub command: String,
    #[serde(default)]
    pub author: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Only if attempt, phase and step are still those that its record had at this revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<u64>,
}

/// `GET /api/v1/rollouts/figures`: what one control plane was told of services, for the one that drives their rollout.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutFigures {
    /// Another one after a restart: counts began at nothing then.
    pub life: u64,
    /// By `<namespace>/<name>` of a Service or `<Kind>/<namespace>/<name>` of a route, since that began.
    pub services: BTreeMap<String, ServiceCounts>,
    /// Of routes.
    pub refused: Vec<RolloutRefusal>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceCounts {
    pub requests: u64,
    pub failures: u64,
    pub latency: Vec<u64>,
    /// Of a route: answers to copies that were compared.
    pub compared: u64,
    pub different: u64,
}

/// A data plane that does not take a route.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutRefusal {
    /// Documents it can come from, separated by `, `.
    pub rule: String,
    pub node: String,
    pub message: String,
    pub since_revision: u64,
}
