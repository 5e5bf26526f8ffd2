//! Active health checks, as the admin API shows them.

use serde::{Deserialize, Serialize};

/// `GET /api/v1/health?service=&namespace=`: every endpoint that a BackendPolicy wants checked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthViews {
    pub revision: u64,
    /// Data planes that offer to check.
    pub checkers: usize,
    pub items: Vec<EndpointHealth>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointHealth {
    pub namespace: String,
    pub service: String,
    /// `ip:port`
    pub address: String,
    pub zone: String,
    /// Empty for endpoints that don't register.
    pub instance: String,
    /// `healthy`, `unhealthy`, or `unknown`, which counts as healthy.
    pub state: String,
    /// Why, of an unhealthy one.
    pub reason: String,
    /// Whose word that follows, separated by `, `.
    pub by: String,
    /// Unix milliseconds of the last change; 0 before the first.
    pub since_ms: u64,
    /// Empty when another control plane sees to this endpoint.
    pub checkers: Vec<Opinion>,
}

/// What one checker says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opinion {
    /// Its node, or `control plane`.
    pub checker: String,
    /// As in [`EndpointHealth::state`].
    pub state: String,
    pub reason: String,
}
