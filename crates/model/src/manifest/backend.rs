//! BackendPolicy: how the instances of a Service are called. What is left out keeps its default.

use std::time::Duration;

use super::cursor::{At, Fields};
use super::directory::directory;
use super::hedge::hedging;
use super::limit;
use super::udp::udp;
use super::value::service_ref;
use crate::document::{BackendPolicy, Meta};
use crate::name::ServiceName;
use crate::resource::{
    CircuitBreaker, ConnectionPool, HashOn, HealthCheck, LoadBalancer, Locality, OutlierDetection,
    Probe, RetryBudget, SlowStart,
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
/// In thousandths.
const STDEV_MAX: u32 = 10_000;
const LATENCY_FACTOR: std::ops::RangeInclusive<u32> = 1_100..=100_000;
const COOKIE_NAME_MAX: usize = 128;

pub(super) fn policy(spec: &At<'_>, meta: Meta) -> Option<BackendPolicy> {
    let mut fields = spec.fields()?;
    let targets = fields.need("targetRefs").map_or_else(Vec::new, |at| {
        let items = at.items(TARGETS_MAX);
        at.check(!items.is_empty(), "a policy has at least one target");
        targets(&items, &meta)
    });
    let (load_balancer, hash_on) =
        section(&mut fields, "loadBalancer", load_balancer).unwrap_or_default();
    let slow_start_at = fields.get("slowStart");
    let slow_start = section(&mut fields, "slowStart", slow_start);
    let balancer = load_balancer.unwrap_or_default();
    if let Some(at) = &slow_start_at
        && (balancer.is_keyed() || balancer == LoadBalancer::Random)
    {
        at.refuse_with::<()>(
            "only P2C, LeastRequest and RoundRobin let an endpoint start slowly",
            "leave `slowStart` out, or choose one of these",
        );
    }
    let health_check = section(&mut fields, "healthCheck", self::health_check);
    Some(BackendPolicy {
        targets,
        load_balancer,
        hash_on,
        slow_start,
        locality: section(&mut fields, "locality", locality),
        connection_pool: section(&mut fields, "connectionPool", connection_pool),
        circuit_breaker: section(&mut fields, "circuitBreaker", circuit_breaker),
        outlier_detection: section(&mut fields, "outlierDetection", outlier_detection),
        retry_budget: section(&mut fields, "retryBudget", retry_budget),
        hedging: section(&mut fields, "hedging", hedging),
        limits: limit::limits(
            &mut fields,
            &meta,
            health_check.as_ref().map(|check| &check.probe),
        ),
        udp: section(&mut fields, "udp", udp),
        session_directory: section(&mut fields, "sessionDirectory", directory),
        health_check,
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

type Balancing = (Option<LoadBalancer>, Option<HashOn>);

/// A balancer that goes by keys needs to know where they are; the others have no use for them.
fn load_balancer(fields: &mut Fields<'_>) -> Option<Balancing> {
    let choices = [
        ("P2C", LoadBalancer::P2c),
        ("LeastRequest", LoadBalancer::LeastRequest),
        ("RoundRobin", LoadBalancer::RoundRobin),
        ("Random", LoadBalancer::Random),
        ("RingHash", LoadBalancer::RingHash),
        ("Maglev", LoadBalancer::Maglev),
    ];
    let kind = fields.need("type").and_then(|at| at.choose(&choices, &[]));
    let at = fields.get("hashOn");
    let hash_on = at.as_ref().map(|at| hash_on(at));
    match (kind?.is_keyed(), at) {
        (true, None) => fields.at.refuse_with(
            "nothing says what of a request is its key",
            "such as `hashOn: {header: x-room}`, `{cookie: room}` or `{sourceIP: true}`",
        ),
        (false, Some(at)) => at.refuse_with(
            "only RingHash and Maglev have keys",
            "leave `hashOn` out, or choose one of these",
        ),
        _ => Some((kind, hash_on.flatten())),
    }
}

fn hash_on(at: &At<'_>) -> Option<HashOn> {
    let mut fields = at.fields()?;
    let (header, cookie, ip) = (
        fields.get("header"),
        fields.get("cookie"),
        fields.get("sourceIP"),
    );
    match (header, cookie, ip) {
        (Some(header), None, None) => {
            let name = header.header_name()?;
            header.check(name != "host", "the host can't be a key: it is the service")?;
            Some(HashOn::Header(name))
        }
        (None, Some(cookie), None) => cookie_name(&cookie).map(HashOn::Cookie),
        (None, None, Some(ip)) => {
            if ip.boolean()? {
                return Some(HashOn::SourceIp);
            }
            ip.refuse_with("only `true` means something", "leave `sourceIP` out")
        }
        (None, None, None) => at.refuse("one of `header`, `cookie` and `sourceIP` is needed"),
        _ => at.refuse_with(
            "`header`, `cookie` and `sourceIP` exclude each other",
            "keep one of them",
        ),
    }
}

/// A token of RFC 6265.
pub(super) fn cookie_name(at: &At<'_>) -> Option<String> {
    let text = at.bounded(COOKIE_NAME_MAX)?;
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    at.check(text.bytes().all(token), "is no name of a cookie")?;
    Some(text.to_owned())
}

fn slow_start(fields: &mut Fields<'_>) -> Option<SlowStart> {
    let window = fields.need("window")?.go_duration(MILLISECOND, HOUR)?;
    Some(SlowStart {
        window,
        min_weight_percent: fields.number("minWeightPercent", 1..=100, 10),
    })
}

fn locality(fields: &mut Fields<'_>) -> Option<Locality> {
    let prefer = fields
        .need("prefer")
        .and_then(|at| at.choose(&[("zone", ())], &[]));
    let failover_percent = fields.number("failoverAtHealthyPercent", 1..=100, 70);
    let panic_percent = fields.number("panicAtHealthyPercent", 1..=100, 50);
    prefer?;
    Some(Locality {
        failover_percent,
        panic_percent,
    })
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
        success_rate_stdev: fields
            .get("successRateStdev")
            .and_then(|at| at.thousandths(0..=STDEV_MAX))
            .unwrap_or(default.success_rate_stdev),
        latency_factor: fields
            .get("latencyFactor")
            .and_then(|at| at.thousandths(LATENCY_FACTOR))
            .unwrap_or(default.latency_factor),
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
