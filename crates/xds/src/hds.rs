//! Health discovery, both ways: what a data plane is told to check, and what it reports. Each [`Group`] is one cluster of
//! the specifier: endpoints that are asked the same. Conversions only; who checks what is the control plane's decision.

use std::net::SocketAddr;

use phalanx_proto::envoy::config::core::v3::HealthStatus;
use phalanx_proto::envoy::service::health::v3 as wire;
use prost_types::value::Kind;

pub use crate::decode::hds::specifier as groups;
pub use crate::encode::hds::{Group, introduction, report, specifier};

use crate::decode::hds::socket;
use crate::encode::hds::REASON;

/// One line of a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reported {
    /// Of the group.
    pub name: String,
    pub address: SocketAddr,
    pub is_healthy: bool,
    /// In the reporter's words, as far as it has any; empty of a healthy one.
    pub reason: String,
}

/// What a checker says of endpoints, line by line; a line without an IP address or with a status that says nothing is
/// left out.
pub fn reported(response: wire::EndpointHealthResponse) -> impl Iterator<Item = Reported> {
    let clusters = response.cluster_endpoints_health.into_iter();
    clusters.flat_map(|cluster| {
        let name = cluster.cluster_name;
        let localities = cluster.locality_endpoints_health.into_iter();
        let lines = localities.flat_map(|locality| locality.endpoints_health);
        lines.filter_map(move |line| {
            let (is_healthy, plain) = said(line.health_status)?;
            let told = line.health_metadata.as_ref().and_then(told);
            Some(Reported {
                name: name.clone(),
                address: socket(line.endpoint?.address.as_ref()?)?,
                is_healthy,
                reason: match is_healthy {
                    true => String::new(),
                    false => told.unwrap_or_else(|| plain.to_owned()),
                },
            })
        })
    })
}

/// Bounded, because it is kept and shown.
fn told(metadata: &prost_types::Struct) -> Option<String> {
    match metadata.fields.get(REASON)?.kind.as_ref()? {
        Kind::StringValue(text) => {
            let printable = text.chars().filter(|c| !c.is_control());
            Some(printable.take(REASON_MAX).collect())
        }
        _ => None,
    }
}

fn said(status: i32) -> Option<(bool, &'static str)> {
    match HealthStatus::try_from(status).ok()? {
        HealthStatus::Healthy | HealthStatus::Degraded => Some((true, "")),
        HealthStatus::Unhealthy => Some((false, "bad answers or none")),
        HealthStatus::Timeout => Some((false, "no answer in time")),
        HealthStatus::Unknown | HealthStatus::Draining => None,
    }
}

/// Characters of a reason.
const REASON_MAX: usize = 200;

#[cfg(test)]
mod tests;
