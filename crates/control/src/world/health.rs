//! What health checks found out. Only verdicts of which something follows are stored: an endpoint that nobody tells about is
//! healthy, so a checker that dies takes its verdicts with it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use phalanx_model::ServiceName;
use serde::{Deserialize, Serialize};

/// By service and address; what does not change is shared between worlds.
pub type Health = Arc<BTreeMap<ServiceName, Arc<ServiceHealth>>>;
pub type ServiceHealth = BTreeMap<SocketAddr, Verdict>;

/// About one endpoint of one service, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    pub state: VerdictState,
    /// In words of whoever asked.
    pub reason: String,
    /// The checkers behind it, separated by `, `.
    pub by: String,
    /// Unix milliseconds of the transition.
    pub since_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VerdictState {
    Healthy,
    Unhealthy,
}

impl Verdict {
    /// As it is stored.
    pub fn word(&self) -> &'static str {
        match self.state {
            VerdictState::Healthy => "healthy",
            VerdictState::Unhealthy => "unhealthy",
        }
    }

    pub fn is_unhealthy(&self) -> bool {
        self.state == VerdictState::Unhealthy
    }
}

/// Puts a verdict, or takes it away.
pub(super) fn set(
    health: &mut Health,
    service: ServiceName,
    address: SocketAddr,
    verdict: Option<Verdict>,
) {
    let is_there = |health: &Health| {
        health
            .get(&service)
            .is_some_and(|of| of.contains_key(&address))
    };
    if verdict.is_none() && !is_there(health) {
        return;
    }
    let services = Arc::make_mut(health);
    let of_service = Arc::make_mut(services.entry(service.clone()).or_default());
    match verdict {
        Some(verdict) => drop(of_service.insert(address, verdict)),
        None => drop(of_service.remove(&address)),
    }
    if of_service.is_empty() {
        services.remove(&service);
    }
}
