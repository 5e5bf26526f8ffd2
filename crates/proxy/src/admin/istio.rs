//! Edges under Istio's metric names and labels, so that dashboards and topologies made for Istio read them. What
//! is not known (who calls in plain text) is `unknown`, as Istio itself writes.

use std::collections::BTreeMap;

use phalanx_model::ServiceName;
use phalanx_model::identity::SpiffeId;
use phalanx_model::name::Direction;
use phalanx_model::reason::Reason;
use phalanx_telemetry::metrics::{Exposition, Family, Label};

use crate::account::endings::GRPC_OTHER;
use crate::account::{EdgeTotals, Security, Traffic};

const REQUESTS: Family = Family::counter(
    "istio_requests_total",
    "Requests that ended, by edge and answer.",
);
const DURATION: Family = Family::histogram(
    "istio_request_duration_milliseconds",
    "Time from a request's head to the end of its answer.",
);
const REQUEST_MESSAGES: Family = Family::counter(
    "istio_request_messages_total",
    "Messages from callers on gRPC streams and WebSockets, open ones included.",
);
const RESPONSE_MESSAGES: Family = Family::counter(
    "istio_response_messages_total",
    "Messages to callers on gRPC streams and WebSockets, open ones included.",
);
const REQUEST_BYTES: Family = Family::counter(
    "phalanx_stream_request_bytes_total",
    "Bytes from callers on gRPC streams and WebSockets, open ones included.",
);
const RESPONSE_BYTES: Family = Family::counter(
    "phalanx_stream_response_bytes_total",
    "Bytes to callers on gRPC streams and WebSockets, open ones included.",
);
const TCP_OPENED: Family = Family::counter(
    "istio_tcp_connections_opened_total",
    "TCP connections opened.",
);
const TCP_CLOSED: Family = Family::counter(
    "istio_tcp_connections_closed_total",
    "TCP connections closed.",
);
const TCP_SENT: Family = Family::counter(
    "istio_tcp_sent_bytes_total",
    "Bytes of responses: from the called to the caller.",
);
const TCP_RECEIVED: Family = Family::counter(
    "istio_tcp_received_bytes_total",
    "Bytes of requests: from the caller to the called.",
);

/// Istio's bounds, in milliseconds; each is one of the account's own, so nothing is interpolated.
const BOUNDS_MS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1_000.0,
    2_500.0,
    5_000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

const UNKNOWN: &str = "unknown";
/// Istio's revision of a workload without a version.
const NO_REVISION: &str = "latest";
const CLUSTER: &str = "phalanx";

/// This sidecar's own end of every edge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    pub service: ServiceName,
    pub version: String,
}

pub fn write(out: &mut Exposition, own: &Own, edges: &[EdgeTotals]) {
    let edges: Vec<(EdgeLabels<'_>, &EdgeTotals)> = edges
        .iter()
        .map(|edge| (EdgeLabels::of(own, edge), edge))
        .collect();
    let (tcp, http): (Vec<_>, Vec<_>) = edges
        .iter()
        .partition(|(_, edge)| matches!(edge.key.traffic, Traffic::Tcp | Traffic::Udp));
    write_requests(out, &http);
    write_durations(out, &http);
    write_streams(out, &http);
    write_tcp(out, &tcp);
}

fn write_requests(out: &mut Exposition, edges: &[&(EdgeLabels<'_>, &EdgeTotals)]) {
    let mut samples = out.family(&REQUESTS);
    for (labels, edge) in edges {
        for ((code, grpc, flags), count) in answers(edge) {
            let code = code.to_string();
            let grpc = grpc.map(|status| status.to_string()).unwrap_or_default();
            let last = [
                ("response_code", code.as_str()),
                ("grpc_response_status", &grpc),
                ("response_flags", flags),
            ];
            samples.sample(&labels.with(&last), count);
        }
    }
}

fn write_durations(out: &mut Exposition, edges: &[&(EdgeLabels<'_>, &EdgeTotals)]) {
    let mut samples = out.family(&DURATION);
    for (labels, edge) in edges {
        let mut below = 0;
        let mut counts: Vec<u64> = Vec::with_capacity(BOUNDS_MS.len() + 1);
        for bound in BOUNDS_MS {
            let at_most = edge.durations.at_most((bound * 1000.0) as u64);
            counts.push(at_most.saturating_sub(below));
            below = at_most;
        }
        counts.push(edge.durations.count().saturating_sub(below));
        samples.histogram(
            &labels.with(&[]),
            &BOUNDS_MS,
            &counts,
            edge.durations.sum_us as f64 / 1000.0,
        );
    }
}

/// Of edges on which a stream ever moved something.
fn write_streams(out: &mut Exposition, edges: &[&(EdgeLabels<'_>, &EdgeTotals)]) {
    type Count = fn(&EdgeTotals) -> u64;
    let families: [(&Family, Count); 4] = [
        (&REQUEST_MESSAGES, |edge| edge.request_messages),
        (&RESPONSE_MESSAGES, |edge| edge.response_messages),
        (&REQUEST_BYTES, |edge| edge.request_bytes),
        (&RESPONSE_BYTES, |edge| edge.response_bytes),
    ];
    let moved = |(_, edge): &&&(EdgeLabels<'_>, &EdgeTotals)| {
        edge.request_bytes > 0 || edge.response_bytes > 0
    };
    for (family, count) in families {
        let mut samples = out.family(family);
        for (labels, edge) in edges.iter().filter(moved) {
            samples.sample(&labels.with(&[]), count(edge));
        }
    }
}

fn write_tcp(out: &mut Exposition, edges: &[&(EdgeLabels<'_>, &EdgeTotals)]) {
    type Count = fn(&EdgeTotals) -> u64;
    let families: [(&Family, Count); 4] = [
        (&TCP_OPENED, |edge| edge.tcp_opened),
        (&TCP_CLOSED, |edge| edge.tcp_closed),
        (&TCP_SENT, |edge| edge.tcp_received_bytes),
        (&TCP_RECEIVED, |edge| edge.tcp_sent_bytes),
    ];
    for (family, count) in families {
        let mut samples = out.family(family);
        for (labels, edge) in edges {
            samples.sample(&labels.with(&[("response_flags", "-")]), count(edge));
        }
    }
}

/// Requests by status, `grpc-status` and response flag.
fn answers(edge: &EdgeTotals) -> BTreeMap<(u16, Option<u8>, &'static str), u64> {
    let mut answers = BTreeMap::new();
    for (ending, count) in &edge.endings {
        // Codes that gRPC does not know mean UNKNOWN.
        let grpc = ending
            .grpc_status
            .map(|status| if status == GRPC_OTHER { 2 } else { status });
        let flags = match ending.reason {
            Some(reason) => flag(reason),
            None if ending.status == 0 => "DC",
            None => "-",
        };
        *answers.entry((ending.status, grpc, flags)).or_default() += count;
    }
    answers
}

/// Envoy's response flag for an answer of ours.
fn flag(reason: Reason) -> &'static str {
    match reason {
        Reason::NoRoute | Reason::InvalidBackend => "NR",
        Reason::NoHealthyUpstream => "UH",
        Reason::ConnectFailed => "UF",
        Reason::UpstreamReset => "UC",
        Reason::Timeout => "UT",
        Reason::Overflow => "UO",
        Reason::RateLimited => "RL",
        Reason::Overload => "OM",
        Reason::Denied | Reason::Unauthenticated => "UAEX",
        Reason::BadRequest | Reason::BadPath | Reason::TooLarge => "DPE",
        Reason::Fault => "FI",
        Reason::Draining => "UMSDR",
        Reason::ColourLost => "NC",
    }
}

/// The labels all samples of an edge share.
struct EdgeLabels<'a> {
    labels: Vec<Label<'a>>,
    /// `<service>.<namespace>.svc.mesh`, or empty when no cluster was chosen.
    host: String,
    source_principal: String,
    destination_principal: String,
}

impl<'a> EdgeLabels<'a> {
    fn of(own: &'a Own, edge: &'a EdgeTotals) -> Self {
        let known = |text: &'a str| if text.is_empty() { UNKNOWN } else { text };
        let revision = |text: &'a str| if text.is_empty() { NO_REVISION } else { text };
        let own_end = End {
            service: &own.service.name,
            namespace: &own.service.namespace,
            version: known(&own.version),
            revision: revision(&own.version),
            cluster: CLUSTER,
        };
        let (reporter, source, destination) = match (edge.key.direction, &edge.key.cluster) {
            (Direction::Inbound, _) => ("destination", caller(&edge.key.security), own_end),
            (Direction::Outbound, None) => ("source", own_end, End::UNKNOWN),
            (Direction::Outbound, Some(cluster)) => {
                let called = End {
                    service: &cluster.service.name,
                    namespace: &cluster.service.namespace,
                    version: known(&edge.key.version),
                    revision: revision(&edge.key.version),
                    cluster: CLUSTER,
                };
                ("source", own_end, called)
            }
        };
        let host = match destination.service {
            UNKNOWN => UNKNOWN.to_owned(),
            service => ServiceName::new(destination.namespace, service).host(),
        };
        let (policy, peer, this) = match &edge.key.security {
            Security::Plain => ("none", UNKNOWN.to_owned(), UNKNOWN.to_owned()),
            Security::Mutual(None) => ("mutual_tls", UNKNOWN.to_owned(), UNKNOWN.to_owned()),
            Security::Mutual(Some(peer)) => {
                let this = SpiffeId {
                    trust_domain: peer.trust_domain.clone(),
                    service: own.service.clone(),
                };
                ("mutual_tls", peer.to_string(), this.to_string())
            }
        };
        let labels = vec![
            ("reporter", reporter),
            ("source_workload", source.service),
            ("source_workload_namespace", source.namespace),
            ("source_app", source.service),
            ("source_version", source.version),
            ("source_cluster", source.cluster),
            ("source_canonical_service", source.service),
            ("source_canonical_revision", source.revision),
            ("destination_workload", destination.service),
            ("destination_workload_namespace", destination.namespace),
            ("destination_app", destination.service),
            ("destination_version", destination.version),
            ("destination_cluster", destination.cluster),
            ("destination_canonical_service", destination.service),
            ("destination_canonical_revision", destination.revision),
            ("destination_service_name", destination.service),
            ("destination_service_namespace", destination.namespace),
            ("request_protocol", edge.key.traffic.as_str()),
            ("connection_security_policy", policy),
        ];
        let [source_principal, destination_principal] = match edge.key.direction {
            Direction::Inbound => [peer, this],
            Direction::Outbound => [this, peer],
        };
        Self {
            labels,
            host,
            source_principal,
            destination_principal,
        }
    }

    fn with<'b>(&'b self, last: &[Label<'b>]) -> Vec<Label<'b>>
    where
        'a: 'b,
    {
        let mut labels: Vec<Label<'b>> = self.labels.clone();
        labels.push(("source_principal", &self.source_principal));
        labels.push(("destination_principal", &self.destination_principal));
        labels.push(("destination_service", &self.host));
        labels.extend_from_slice(last);
        labels
    }
}

struct End<'a> {
    service: &'a str,
    namespace: &'a str,
    version: &'a str,
    revision: &'a str,
    cluster: &'a str,
}

/// Whoever called, by its certificate.
fn caller(security: &Security) -> End<'_> {
    match security {
        Security::Mutual(Some(peer)) => End {
            service: &peer.service.name,
            namespace: &peer.service.namespace,
            cluster: CLUSTER,
            ..End::UNKNOWN
        },
        Security::Mutual(None) | Security::Plain => End::UNKNOWN,
    }
}

impl End<'_> {
    const UNKNOWN: End<'static> = End {
        service: UNKNOWN,
        namespace: UNKNOWN,
        version: UNKNOWN,
        revision: UNKNOWN,
        cluster: UNKNOWN,
    };
}

#[cfg(test)]
mod tests;
