//! In front of every gRPC method: what it needs stands in a table, and one that doesn't stand there is not served. Asked when a
//! call begins; what then goes over its stream costs nothing here.

use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use http::header;
use tonic::service::Routes;
use tonic::transport::server::TcpConnectInfo;
use tonic::{Code, Status};

use super::calls::{self, Call};
use super::{Access, Arrival, Denied, Needs, Role, Standing, Who};

/// By service and method; `*` is every method of a service.
pub const METHODS: [(&str, &str, Needs); 21] = [
    ("phalanx.identity.v1.Identity", "Join", Needs::Tls),
    ("phalanx.identity.v1.Identity", "Renew", Needs::Certificate),
    ("phalanx.identity.v1.Identity", "Trust", Needs::Certificate),
    ("phalanx.registry.v1.Registry", "Register", Needs::DataPlane),
    (
        "phalanx.registry.v1.Registry",
        "Heartbeat",
        Needs::DataPlane,
    ),
    (
        "phalanx.registry.v1.Registry",
        "Heartbeats",
        Needs::DataPlane,
    ),
    (
        "phalanx.registry.v1.Registry",
        "Deregister",
        Needs::DataPlane,
    ),
    ("phalanx.registry.v1.Registry", "Watch", Needs::DataPlane),
    ("phalanx.observe.v1.Observe", "Report", Needs::DataPlane),
    ("phalanx.limits.v1.Limits", "Lease", Needs::DataPlane),
    ("phalanx.sessions.v1.Sessions", "*", Needs::Sessions),
    (
        "envoy.service.ratelimit.v3.RateLimitService",
        "*",
        Needs::DataPlane,
    ),
    (ADS, "*", Needs::DataPlane),
    (
        "envoy.service.cluster.v3.ClusterDiscoveryService",
        "*",
        Needs::DataPlane,
    ),
    (
        "envoy.service.endpoint.v3.EndpointDiscoveryService",
        "*",
        Needs::DataPlane,
    ),
    (
        "envoy.service.listener.v3.ListenerDiscoveryService",
        "*",
        Needs::DataPlane,
    ),
    (
        "envoy.service.route.v3.RouteDiscoveryService",
        "*",
        Needs::DataPlane,
    ),
    (
        "envoy.service.secret.v3.SecretDiscoveryService",
        "*",
        Needs::DataPlane,
    ),
    (
        "envoy.service.health.v3.HealthDiscoveryService",
        "*",
        Needs::DataPlane,
    ),
    (
        "envoy.service.load_stats.v3.LoadReportingService",
        "*",
        Needs::DataPlane,
    ),
    (
        "envoy.service.status.v3.ClientStatusDiscoveryService",
        "*",
        Needs::Role(Role::Viewer),
    ),
];

const ADS: &str = "envoy.service.discovery.v3.AggregatedDiscoveryService";

/// Services behind the table.
pub fn gated(services: Routes, access: Access) -> Routes {
    let router = services.into_axum_router();
    Routes::from(router.layer(middleware::from_fn_with_state(access, gate)))
}

async fn gate(State(access): State<Access>, mut request: Request, next: Next) -> Response {
    match admit(&access, &mut request) {
        Ok(None) => next.run(request).await,
        Ok(Some(call)) => {
            let answer = next.run(request).await;
            answer.map(|body| calls::counted(body, call))
        }
        Err(status) => status.into_http(),
    }
}

/// With who it is, and the addresses where tonic looks for them.
fn admit(access: &Access, request: &mut Request) -> Result<Option<Call>, Status> {
    let arrival = request.extensions_mut().remove::<Arrival>();
    let (who, local_addr, remote_addr, standing) = match arrival {
        Some(arrival) => (arrival.who, arrival.local, arrival.remote, arrival.standing),
        None => (Who::Nobody, None, None, Standing::default()),
    };
    let token = request.headers().get(header::AUTHORIZATION);
    let token = token.and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let path = request.uri().path();
    let judged = match needs(path) {
        Some(needs) => access.judge(&who, token, needs),
        None => Err(Denied::Unknown),
    };
    let counted = judged.and_then(|who| Ok((begin(access, &who, path)?, who)));
    let (call, who) = counted.map_err(|denied| {
        if access.refusals().may_tell() {
            tracing::info!(peer = ?remote_addr, path, reason = denied.as_str(), "a call is refused");
        }
        status(denied)
    })?;
    if matches!(who, Who::User { .. }) {
        standing.proven();
    }
    let info = TcpConnectInfo {
        local_addr,
        remote_addr,
    };
    request.extensions_mut().insert(info);
    request.extensions_mut().insert(who);
    Ok(call)
}

/// Within its share, whoever comes with a certificate.
fn begin(access: &Access, who: &Who, path: &str) -> Result<Option<Call>, Denied> {
    let Who::Workload(peer) = who else {
        return Ok(None);
    };
    let call = access.0.calls.begin(peer, path);
    if call.is_none() {
        access.refusals().denied(Denied::TooMany.as_str());
    }
    call.map(Some).ok_or(Denied::TooMany)
}

/// None: it isn't served.
fn needs(path: &str) -> Option<Needs> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    let is_it = |row: &&(&str, &str, Needs)| row.0 == service && (row.1 == "*" || row.1 == method);
    METHODS.iter().find(is_it).map(|row| row.2)
}

fn status(denied: Denied) -> Status {
    let code = match denied {
        Denied::Unknown => Code::Unimplemented,
        Denied::TooMany => Code::ResourceExhausted,
        denied if denied.is_unproven() => Code::Unauthenticated,
        _ => Code::PermissionDenied,
    };
    Status::new(code, format!("{denied} ({})", denied.hint()))
}
