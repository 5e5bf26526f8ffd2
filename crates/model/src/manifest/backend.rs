//! BackendPolicy: how the instances of a Service are called. What is left out keeps its default.

use std::time::Duration;

use super::cursor::{At, Fields};
use super::value::service_ref;
use crate::document::{BackendPolicy, Meta};
use crate::name::ServiceName;
use crate::resource::{
    CircuitBreaker, ConnectionPool, HealthCheck, LoadBalancer, OutlierDetection, Probe, RetryBudget,
};

pub(super) const TARGETS_MAX: usize = 16;
const MILLISECOND: Duration = Duration::from_millis(1);
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Questions that come faster are a load of their own.
const CHECK_INTERVAL_MIN: Duration = Duration::from_millis(100);
const HOUR: Duration = Duration::from_secs(60 * 60);
const THRESHOLD_MAX: u32 = 100;
/// Of the service named in a gRPC question.
const GRPC_SERVICE_MAX: usize = 256;

pub(super) fn policy(spec: &At<'_>, meta: Meta) -> Option<BackendPolicy> {
    let mut fields = spec.fields()?;
    fields.later(&["slowStart", "locality"]);
    let targets = fields.need("targetRefs").map_or_else(Vec::new, |at| {
        let items = at.items(TARGETS_MAX);
        at.check(!items.is_empty(), "a policy has at least one target");
        targets(&items, &meta)
    });
    Some(BackendPolicy {
        targets,
        load_balancer: section(&mut fields, "loadBalancer", load_balancer),
        connection_pool: section(&mut fields, "connectionPool", connection_pool),
        circuit_breaker: section(&mut fields, "circuitBreaker", circuit_breaker),
        outlier_detection: section(&mut fields, "outlierDetection", outlier_detection),
        retry_budget: section(&mut fields, "retryBudget", retry_budget),
        health_check: section(&mut fields, "healthCheck", health_check),
        meta,
    })
}

fn section<T>(
    fields: &mut Fields<'_>,
    key: &'static str,
    read: fn(&mut Fields<'_>) -> Option<T>,
) -> Option<T> {
    let mut fields = fields.get(key)?.fields()?;
    read(&mut fields)
}

pub(super) fn targets(items: &[At<'_>], meta: &Meta) -> Vec<ServiceName> {
    let mut targets = Vec::new();
    for at in items {
        let Some(mut fields) = at.fields() else {
            continue;
        };
        fields.later(&["sectionName"]);
        let Some(target) = service_ref(&mut fields, meta, "Service") else {
            continue;
        };
        if target.namespace != meta.namespace {
            at.refuse_with::<()>(
                "a policy acts in its own namespace only",
                "write it in the target's namespace",
            );
        }
        if targets.contains(&target) {
            at.refuse::<()>("the target stands twice in this list");
        }
        targets.push(target);
    }
    targets
}

fn load_balancer(fields: &mut Fields<'_>) -> Option<LoadBalancer> {
    fields.later(&["hashOn"]);
    let choices = [
        ("P2C", LoadBalancer::P2c),
        ("LeastRequest", LoadBalancer::LeastRequest),
        ("RoundRobin", LoadBalancer::RoundRobin),
        ("Random", LoadBalancer::Random),
    ];
    fields
        .need("type")
        .and_then(|at| at.choose(&choices, &["RingHash", "Maglev"]))
}

fn connection_pool(fields: &mut Fields<'_>) -> Option<ConnectionPool> {
    let default = ConnectionPool::default();
    Some(ConnectionPool {
        max_requests_per_connection: fields.number(
            "maxRequestsPerConnection",
            0..=u32::MAX,
            default.max_requests_per_connection,
        ),
        connect_timeout: duration(
            fields,
            "connectTimeout",
            MILLISECOND,
            MINUTE,
            default.connect_timeout,
        ),
        idle_timeout: duration(
            fields,
            "idleTimeout",
            MILLISECOND,
            DAY,
            default.idle_timeout,
        ),
    })
}

fn circuit_breaker(fields: &mut Fields<'_>) -> Option<CircuitBreaker> {
    let default = CircuitBreaker::default();
    Some(CircuitBreaker {
        max_connections: fields.number("maxConnections", 1..=u32::MAX, default.max_connections),
        max_pending_requests: fields.number(
            "maxPendingRequests",
            0..=u32::MAX,
            default.max_pending_requests,
        ),
        max_requests: fields.number("maxRequests", 1..=u32::MAX, default.max_requests),
        max_retries: fields.number("maxRetries", 0..=u32::MAX, default.max_retries),
    })
}

fn outlier_detection(fields: &mut Fields<'_>) -> Option<OutlierDetection> {
    fields.later(&["successRateStdev", "latencyFactor"]);
    let default = OutlierDetection::default();
    Some(OutlierDetection {
        consecutive_5xx: fields.number(
            "consecutive5xxErrors",
            0..=u32::MAX,
            default.consecutive_5xx,
        ),
        consecutive_gateway: fields.number(
            "consecutiveGatewayErrors",
            0..=u32::MAX,
            default.consecutive_gateway,
        ),
        interval: duration(fields, "interval", MILLISECOND, DAY, default.interval),
        base_ejection: duration(
            fields,
            "baseEjectionTime",
            MILLISECOND,
            DAY,
            default.base_ejection,
        ),
        max_ejection_percent: fields.number(
            "maxEjectionPercent",
            0..=100,
            default.max_ejection_percent,
        ),
    })
}

fn retry_budget(fields: &mut Fields<'_>) -> Option<RetryBudget> {
    let default = RetryBudget::default();
    Some(RetryBudget {
        percent: fields.number("percent", 0..=100, default.percent),
        min_concurrency: fields.number(
            "minRetryConcurrency",
            0..=u32::MAX,
            default.min_concurrency,
        ),
    })
}

fn health_check(fields: &mut Fields<'_>) -> Option<HealthCheck> {
    let at = fields.at.clone();
    let path = fields.get("path");
    let grpc = fields.get("grpc");
    let tcp = fields.get("tcp");
    let written = [path.is_some(), grpc.is_some(), tcp.is_some()];
    let probes = [
        path.and_then(|at| at.path())
            .map(|path| Probe::Http { path }),
        grpc.and_then(|at| grpc_probe(&at)),
        tcp.and_then(|at| tcp_probe(&at)),
    ];
    // What can't be read is told already; the default stands in for it, so that the rest is checked too.
    let mut check = HealthCheck::new(probes.into_iter().flatten().next().unwrap_or(Probe::Tcp));
    check.interval = duration(fields, "interval", CHECK_INTERVAL_MIN, HOUR, check.interval);
    check.timeout = duration(fields, "timeout", MILLISECOND, MINUTE, check.timeout);
    check.healthy_threshold = fields.number(
        "healthyThreshold",
        1..=THRESHOLD_MAX,
        check.healthy_threshold,
    );
    check.unhealthy_threshold = fields.number(
        "unhealthyThreshold",
        1..=THRESHOLD_MAX,
        check.unhealthy_threshold,
    );
    match written.into_iter().filter(|is_written| *is_written).count() {
        1 => Some(check),
        0 => at.refuse_with(
            "nothing says how to ask: one of `path`, `grpc` and `tcp` is needed",
            "such as `path: /healthz`, `grpc: {}` or `tcp: true`",
        ),
        _ => at.refuse_with(
            "`path`, `grpc` and `tcp` exclude each other",
            "keep one of them",
        ),
    }
}

fn grpc_probe(at: &At<'_>) -> Option<Probe> {
    let mut fields = at.fields()?;
    let service = match fields.get("service") {
        None => String::new(),
        Some(at) => {
            let text = at.text()?;
            at.check(
                text.len() <= GRPC_SERVICE_MAX && text.bytes().all(|b| b.is_ascii_graphic()),
                "a gRPC service has at most 256 printable characters and no space",
            )?;
            text.to_owned()
        }
    };
    Some(Probe::Grpc { service })
}

fn tcp_probe(at: &At<'_>) -> Option<Probe> {
    if at.boolean()? {
        return Some(Probe::Tcp);
    }
    at.refuse_with("only `true` means something", "leave `tcp` out")
}

fn duration(
    fields: &mut Fields<'_>,
    key: &'static str,
    min: Duration,
    max: Duration,
    default: Duration,
) -> Duration {
    fields
        .get(key)
        .and_then(|at| at.go_duration(min, max))
        .unwrap_or(default)
}
