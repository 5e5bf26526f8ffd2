//! What users of a mesh would have written: the service, a hundred rules on the way to it, headers changed on the way there
//! and back, and limits that refuse nobody here.

use std::fmt::Write;

use super::case::{Case, LISTEN, Load, Wire};

/// In all; the requests of the benchmark meet the last.
pub const RULES: usize = 100;
/// The Gateway API has no more than 16 in a route.
const RULES_OF_A_ROUTE: usize = 10;

/// For a sidecar that only calls: the backend stands beside the mesh.
pub fn outside(case: &Case) -> String {
    let (address, port) = case.backend().split_once(':').unwrap_or_default();
    let protocol = match case.wire {
        Wire::Http1 => "http",
        Wire::Http2 => "grpc",
        Wire::Tcp => "tcp",
        Wire::Udp => "udp",
    };
    let application = format!("appProtocol: {protocol}");
    let transport = if case.is_udp() { ", protocol: UDP" } else { "" };
    let (host, last) = address.rsplit_once('.').unwrap_or_default();
    let last: u8 = last.parse().unwrap_or_default();
    let each = (0..case.endpoints()).map(|n| format!("{{addresses: [\"{host}.{}\"]}}", last + n));
    let endpoints = each.collect::<Vec<_>>().join(", ");
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: backend}}\n\
         spec:\n  ports: [{{name: main, port: 80, targetPort: {port}, {application}}}]\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: backend-1, labels: {{kubernetes.io/service-name: backend}}}}\n\
         addressType: IPv4\nports: [{{name: main, port: {port}{transport}}}]\nendpoints: [{endpoints}]\n\
         ---\napiVersion: phalanx.dev/v1alpha1\nkind: BackendPolicy\nmetadata: {{name: backend}}\n\
         spec:\n  targetRefs: [{{kind: Service, name: backend}}]\n"
    );
    if case.is_udp() {
        text.push_str(&datagrams(case));
    } else if !case.is_tcp() {
        text.push_str(&routes());
    }
    text
}

/// An edge for them. All good clients of a benchmark have one address, and more of them than players there.
fn datagrams(case: &Case) -> String {
    let (_, port) = LISTEN.split_once(':').unwrap_or_default();
    let rate = if case.is_about_tails() && !matches!(case.load, Load::Paced) {
        10_000
    } else {
        1_000_000
    };
    format!(
        "  udp: {{packetsPerSecondPerSource: {rate}, maxSessions: 200000}}\n\
         ---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: bench}}\n\
         spec:\n  gatewayClassName: phalanx\n  listeners: [{{name: udp, port: {port}, protocol: UDP}}]\n\
         ---\napiVersion: gateway.networking.k8s.io/v1alpha2\nkind: UDPRoute\nmetadata: {{name: bench}}\n\
         spec:\n  parentRefs: [{{name: bench}}]\n  rules: [{{backendRefs: [{{name: backend, port: 80}}]}}]\n"
    )
}

/// For a pair: the backend has a sidecar, which keeps its limits.
pub fn inside() -> String {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: backend}\n\
         spec: {selector: {app: backend}, ports: [{port: 80, targetPort: 18101, appProtocol: http}]}\n\
         ---\napiVersion: phalanx.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {name: backend}\n\
         spec: {targetRefs: [{kind: Service, name: backend}], mtls: {mode: Strict}}\n\
         ---\napiVersion: phalanx.dev/v1alpha1\nkind: BackendPolicy\nmetadata: {name: backend}\n\
         spec:\n  targetRefs: [{kind: Service, name: backend}]\n\
         \x20 rateLimit:\n    local: {requests: 1000000, per: 1s, burst: 1000000}\n";
    format!("{service}{}", routes())
}

fn routes() -> String {
    let mut text = String::new();
    for number in 0..RULES {
        if number % RULES_OF_A_ROUTE == 0 {
            let _ = write!(
                text,
                "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: backend-{:02}}}\n\
                 spec:\n  parentRefs: [{{kind: Service, name: backend, group: \"\", port: 80}}]\n  rules:\n",
                number / RULES_OF_A_ROUTE
            );
        }
        let path = match number + 1 == RULES {
            true => "/".to_owned(),
            false => format!("/area-{number:02}/rooms"),
        };
        let _ = write!(
            text,
            "  - matches: [{{path: {{type: PathPrefix, value: {path}}}}}]\n    filters:\n\
             \x20   - {{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: x-route, value: r{number}}}], remove: [x-debug]}}}}\n\
             \x20   - {{type: ResponseHeaderModifier, responseHeaderModifier: {{set: [{{name: x-served, value: backend}}]}}}}\n\
             \x20   backendRefs: [{{name: backend, port: 80}}]\n"
        );
    }
    text
}
