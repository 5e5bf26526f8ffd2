//! Rollout: steps towards a new version, and what has to hold meanwhile. What could never pass a step is refused.

use std::time::Duration;

use super::cursor::{At, Fields};
use super::report::quoted;
use super::tree::Value;
use super::value::service_ref;
use crate::document::rollout::{
    Analysis, Boundary, CustomGuard, LatencyGuard, OnFailure, Rollout, SHARE_WHOLE, Step,
    StepAction,
};
use crate::document::{DocumentId, Kind, Meta};
use crate::name::{COLOUR_LEN_MAX, ServiceName, is_colour};
use crate::resource::MILLION;

pub(super) fn rollout(spec: &At<'_>, meta: Meta) -> Option<Rollout> {
    let mut fields = spec.fields()?;
    let target = fields.need("targetRef").and_then(|at| target(&at, &meta));
    let stable = version(&mut fields, "stable", &meta);
    let canary_at = fields.get("canary");
    let canary = version(&mut fields, "canary", &meta);
    if let (Some(at), Some(_)) = (
        &canary_at,
        canary.as_ref().filter(|c| stable.as_ref() == Some(*c)),
    ) {
        at.refuse_with::<()>(
            "it is the stable Service",
            "each version has a Service of its own, selecting its `version`",
        );
    }
    let steps = steps(&mut fields);
    let analysis = fields
        .get("analysis")
        .map_or(Some(Analysis::default()), |at| analysis(&at));
    let boundary = fields.get("boundary").map_or(Some(Boundary::None), |at| {
        at.choose(&[("match", Boundary::Match), ("none", Boundary::None)], &[])
    });
    let on_failure = fields
        .get("onFailure")
        .map_or(Some(OnFailure::Rollback), |at| {
            let choices = [
                ("rollback", OnFailure::Rollback),
                ("pause", OnFailure::Pause),
            ];
            at.choose(&choices, &[])
        });
    let progress_deadline = fields
        .get("progressDeadline")
        .map_or(Some(PROGRESS_DEADLINE), |at| at.go_duration(SECOND, DAY));
    Some(Rollout {
        meta,
        target: target?,
        stable: stable?,
        canary: canary?,
        steps: steps?,
        analysis: analysis?,
        boundary: boundary?,
        on_failure: on_failure?,
        progress_deadline: progress_deadline?,
    })
}

fn target(at: &At<'_>, meta: &Meta) -> Option<DocumentId> {
    let mut fields = at.fields()?;
    fields.later(&["sectionName"]);
    if let Some(group) = fields.get("group")
        && group.text().is_some_and(|text| text != GROUP)
    {
        group.refuse_with::<()>("routes are in another group", format!("write `{GROUP}`"));
    }
    let kinds = [
        ("HTTPRoute", Kind::HttpRoute),
        ("GRPCRoute", Kind::GrpcRoute),
    ];
    let kind = fields
        .need("kind")
        .and_then(|at| at.choose(&kinds, &["TCPRoute", "TLSRoute", "UDPRoute"]));
    let name = fields.need("name").and_then(|at| at.dns_name());
    if let Some(at) = fields.get("namespace")
        && at.dns_label().is_some_and(|of| of != meta.namespace)
    {
        at.refuse_with::<()>(
            "a rollout acts in its own namespace only",
            "write it in the route's namespace",
        );
    }
    Some(DocumentId {
        kind: kind?,
        namespace: meta.namespace.clone(),
        name: name?,
    })
}

/// By its name, or as a reference.
fn version(fields: &mut Fields<'_>, key: &'static str, meta: &Meta) -> Option<ServiceName> {
    let at = fields.need(key)?;
    match &at.node.value {
        Value::Text(_) => Some(ServiceName::new(&meta.namespace, at.dns_label()?)),
        _ => service_ref(&mut at.fields()?, meta, "Service"),
    }
}

fn steps(fields: &mut Fields<'_>) -> Option<Vec<Step>> {
    let at = fields.need("steps")?;
    let items = at.items(STEPS_MAX);
    at.check(!items.is_empty(), "a rollout has at least one step")?;
    // Each, whatever is wrong with those before it.
    let steps: Vec<_> = items.iter().map(step).collect();
    steps.into_iter().collect()
}

fn step(at: &At<'_>) -> Option<Step> {
    let mut fields = at.fields()?;
    let given = [
        fields.get("mirror"),
        fields.get("lane"),
        fields.get("weight"),
        fields.get("pause"),
    ];
    if given.iter().flatten().count() != 1 {
        // What else stands there belongs to the one that is missing.
        fields.skip();
        return at.refuse_with(
            "a step is one of `mirror`, `lane`, `weight` and `pause`",
            "such as `{weight: 5, for: 2m}`",
        );
    }
    match given {
        [Some(at), ..] => mirror(&at),
        [_, Some(at), ..] => {
            let lane = colour(&at);
            held(&mut fields, lane.map(StepAction::Lane))
        }
        [_, _, Some(at), _] => {
            let weight = at.number(0..=100);
            held(&mut fields, weight.map(StepAction::Weight))
        }
        [.., at] => {
            let mut fields = at?.fields()?;
            let hold = optional(&mut fields, "for", |at| at.go_duration(SECOND, HOLD_MAX));
            Some(Step {
                action: StepAction::Pause,
                hold: hold?,
                min_requests: None,
            })
        }
    }
}

fn mirror(at: &At<'_>) -> Option<Step> {
    let mut fields = at.fields()?;
    let percent = fields.number("percent", 1..=100, 100);
    let compare = fields.get("compare").map_or(Some(false), |at| at.boolean());
    let action = compare.map(|compare| StepAction::Mirror {
        per_million: percent * (MILLION / 100),
        compare,
    });
    held(&mut fields, action)
}

/// Reads what else a step has, so that it is not unknown where there is no action.
fn held(fields: &mut Fields<'_>, action: Option<StepAction>) -> Option<Step> {
    let hold = fields
        .need("for")
        .and_then(|at| at.go_duration(SECOND, HOLD_MAX));
    let min_requests = optional(fields, "minRequests", |at| at.number(0..=REQUESTS_MAX));
    Some(Step {
        action: action?,
        hold: Some(hold?),
        min_requests: min_requests?,
    })
}

/// What `read` makes of a field that may be left out; none: it is there and no good.
fn optional<T>(
    fields: &mut Fields<'_>,
    key: &'static str,
    read: impl FnOnce(&At<'_>) -> Option<T>,
) -> Option<Option<T>> {
    match fields.get(key) {
        Some(at) => read(&at).map(Some),
        None => Some(None),
    }
}

/// A value of `x-env`.
fn colour(at: &At<'_>) -> Option<String> {
    let text = at.text()?;
    if is_colour(text.as_bytes()) {
        return Some(text.to_owned());
    }
    at.refuse_with(
        format!("{} is no lane", quoted(text)),
        format!("at most {COLOUR_LEN_MAX} of a-z, 0-9 and -, as in the header `x-env`"),
    )
}

fn analysis(at: &At<'_>) -> Option<Analysis> {
    let mut fields = at.fields()?;
    let default = Analysis::default();
    let interval = fields.get("interval").map_or(Some(default.interval), |at| {
        at.go_duration(SECOND, INTERVAL_MAX)
    });
    let success_min = fields
        .get("successRate")
        .map_or(Some(default.success_min), |at| {
            at.fields()?.need("min")?.thousandths(0..=SHARE_WHOLE)
        });
    let latency = optional(&mut fields, "latency", latency);
    let different_max = optional(&mut fields, "different", |at| {
        at.fields()?.need("max")?.thousandths(0..=SHARE_WHOLE)
    });
    let mut custom: Vec<CustomGuard> = Vec::new();
    for at in fields.list("custom", CUSTOM_MAX) {
        let Some(guard) = self::custom(&at) else {
            continue; // told, so that the document is refused
        };
        if custom.iter().any(|known| known.name == guard.name) {
            at.refuse::<()>("the name stands twice in this list");
        }
        custom.push(guard);
    }
    let min_requests = fields.number("minRequests", 0..=REQUESTS_MAX, default.min_requests);
    let failures = fields.number("failures", 1..=FAILURES_MAX, default.failures);
    Some(Analysis {
        interval: interval?,
        success_min: success_min?,
        latency: latency?,
        different_max: different_max?,
        custom,
        min_requests,
        failures,
    })
}

fn latency(at: &At<'_>) -> Option<LatencyGuard> {
    let mut fields = at.fields()?;
    fields.later(&["p50", "p90", "p95", "p999"]);
    let p99 = optional(&mut fields, "p99", |at| {
        at.go_duration(LATENCY_MIN, LATENCY_MAX)
    });
    let ratio = optional(&mut fields, "maxRatioToStable", |at| {
        at.thousandths(1_000..=RATIO_MAX)
    });
    if (p99, ratio) == (Some(None), Some(None)) {
        return at.refuse_with(
            "one of `p99` and `maxRatioToStable` is needed",
            "such as `latency: {p99: 50ms}`",
        );
    }
    Some(LatencyGuard {
        p99_max: p99?,
        ratio_max: ratio?,
    })
}

fn custom(at: &At<'_>) -> Option<CustomGuard> {
    let mut fields = at.fields()?;
    let name = fields.need("name").and_then(|at| at.dns_label());
    let prometheus = fields.need("prometheus").and_then(|at| {
        let mut fields = at.fields()?;
        let address = fields.need("address").and_then(|at| address(&at));
        let query = fields
            .need("query")
            .and_then(|at| Some(at.bounded(QUERY_LEN_MAX)?.to_owned()));
        address.zip(query)
    });
    let (min, max) = (fields.get("min"), fields.get("max"));
    if min.is_none() && max.is_none() {
        at.refuse_with::<()>("one of `min` and `max` is needed", "such as `max: 0.01`");
    }
    let bound = |at: Option<At<'_>>| match at {
        Some(at) => number(&at).map(Some),
        None => Some(None),
    };
    let (min, max) = (bound(min), bound(max));
    let (address, query) = prometheus?;
    Some(CustomGuard {
        name: name?,
        address,
        query,
        min: min?,
        max: max?,
    })
}

/// `HOST:PORT`, with or without `http://` before it.
fn address(at: &At<'_>) -> Option<String> {
    let text = at.bounded(ADDRESS_LEN_MAX)?;
    if text.starts_with("https://") {
        return at.refuse_with(
            "a Prometheus is asked over plain HTTP only in this version",
            "write `HOST:PORT`",
        );
    }
    let bare = text.strip_prefix("http://").unwrap_or(text);
    let bare = bare.strip_suffix('/').unwrap_or(bare);
    let port = bare
        .rsplit_once(':')
        .map(|(host, port)| (host, port.parse::<u16>()));
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.:[]".contains(&b);
    match port {
        Some((host, Ok(1..))) if !host.is_empty() && bare.bytes().all(plain) => {
            Some(bare.to_owned())
        }
        _ => at.refuse_with(
            format!("{} is no address", quoted(text)),
            "such as `prometheus.monitoring:9090`",
        ),
    }
}

fn number(at: &At<'_>) -> Option<f64> {
    let Value::Number(text) = &at.node.value else {
        return at.wrong_type("a number");
    };
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => Some(number),
        _ => at.refuse(format!("{} is no number", quoted(text))),
    }
}

const GROUP: &str = "gateway.networking.k8s.io";
const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const PROGRESS_DEADLINE: Duration = Duration::from_secs(10 * 60);
const HOLD_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);
const INTERVAL_MAX: Duration = Duration::from_secs(10 * 60);
const LATENCY_MIN: Duration = Duration::from_micros(100);
const LATENCY_MAX: Duration = Duration::from_secs(30);
/// In thousandths.
const RATIO_MAX: u32 = 100_000;
pub(super) const STEPS_MAX: usize = 64;
const CUSTOM_MAX: usize = 16;
const QUERY_LEN_MAX: usize = 4096;
const ADDRESS_LEN_MAX: usize = 262;
const REQUESTS_MAX: u32 = 100_000_000;
const FAILURES_MAX: u32 = 1_000;

#[cfg(test)]
mod tests;
