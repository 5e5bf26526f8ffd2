//! What a change does to real resources and to whom.

use serde::{Deserialize, Serialize};

use super::Finding;

/// The world as it would be against the world as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Effect {
    /// Connected or registered, on every control plane that was asked.
    pub proxies: usize,
    /// Of them, how many would receive something.
    pub concerned: usize,
    /// The first of those, by name.
    pub nodes: Vec<ProxyEffect>,
    pub resources: Vec<ResourceEffect>,
    pub rules: Vec<RuleEffect>,
    /// What would not, or no longer wholly, be in force.
    pub arising: Vec<Finding>,
    /// What would be in force that is not now.
    pub resolved: Vec<Finding>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyEffect {
    pub node: String,
    /// Kind and name, such as `RDS outbound`.
    pub resources: Vec<String>,
}

/// One xDS resource.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceEffect {
    /// `LDS`, `RDS`, `CDS`, `EDS`
    pub kind: String,
    pub name: String,
    /// `added`, `changed` or `removed`
    pub action: String,
    /// Such as `circuit_breaker.max_requests: 1024 → 10`; empty for route tables, whose rules are told one by one.
    pub details: Vec<String>,
    /// How many would receive it.
    pub proxies: usize,
}

/// One rule of one service's port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleEffect {
    /// `battle.default.svc.mesh:80`
    pub service: String,
    /// `<Kind>/<namespace>/<name>/<rule>`
    pub rule: String,
    /// `added`, `changed` or `removed`
    pub action: String,
    /// Such as `weights 90/10 → 50/50`.
    pub details: Vec<String>,
    pub proxies: usize,
}
