//! TranscodingPolicies: which services can be called with JSON, and by which rules that holds.

use std::sync::Arc;

use phalanx_model::ServiceName;
use phalanx_model::document::{Document, RouteRule};
use phalanx_model::instance::Protocol;
use phalanx_model::resource::Transcoding;

use super::catalog::finding;
use super::index::Index;
use super::{Catalog, Finding};
use crate::world::{DocumentEntry, World};

/// Whether gRPC can be spoken to such a port. It can't over HTTP/1, so requests for one stay what they are.
pub(super) fn carries_calls(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::Auto | Protocol::H2c | Protocol::Grpc)
}

/// What holds for a service, whose ports speak these; of several policies the oldest does.
pub(super) fn of_service(
    world: &World,
    index: &Index,
    service: &ServiceName,
    mut protocols: impl Iterator<Item = Protocol> + Clone,
    findings: &mut Vec<Finding>,
) -> Option<Arc<Transcoding>> {
    let policies = index.transcoders.of(service).filter_map(|id| {
        let entry = world.documents.get(id)?;
        match entry.document.as_deref()? {
            Document::TranscodingPolicy(policy) => Some((&**entry, policy)),
            _ => None,
        }
    });
    let mut policies: Vec<_> = policies.collect();
    policies.sort_by_key(|(entry, _)| (entry.created_ms, &entry.id));
    let ((winner, policy), others) = policies.split_first()?;
    findings.extend(others.iter().map(|(entry, _)| {
        let message = format!(
            "conflicted: {} is older and already says how Service {service} is called with JSON",
            winner.id
        );
        finding(entry, message)
    }));
    if protocols.clone().next().is_none() {
        let message = format!("unattached: there is no Service {service} (yet)");
        findings.push(finding(winner, message));
    } else if !protocols.any(carries_calls) {
        let message = format!(
            "unattached: no port of Service {service} speaks gRPC (appProtocol `grpc` or `kubernetes.io/h2c`)"
        );
        findings.push(finding(winner, message));
    }
    Some(policy.transcoding.clone())
}

/// What holds for a rule: what its backends have in common. Where they differ nothing does, nor where the path is another
/// one for the backend.
pub(super) fn of_rule(
    entry: &DocumentEntry,
    rule: &RouteRule,
    catalog: &Catalog,
    findings: &mut Vec<Finding>,
) -> Option<Arc<Transcoding>> {
    let backends = rule.backends.iter().filter(|backend| backend.weight > 0);
    let words = backends.filter_map(|backend| catalog.port(&backend.service, backend.port));
    let mut words = words.map(|port| port.transcoding.as_ref());
    let first = words.next()?;
    if !words.all(|other| other == first) {
        let message =
            "its backends are not called with JSON in the same way, so by this rule none is";
        findings.push(finding(entry, message.to_owned()));
        return None;
    }
    if first.is_some() && rule.rewrite.path.is_some() {
        let message = "it rewrites paths, so its backends are not called with JSON by this rule";
        findings.push(finding(entry, message.to_owned()));
        return None;
    }
    first.cloned()
}
