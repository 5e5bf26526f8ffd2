//! What a sidecar lets through: our own words in the metadata of a filter chain, which say everything, and the filters by
//! which a stock Envoy does the same.

use std::collections::BTreeMap;
use std::time::Duration;

use fault_v3::fault_abort::ErrorType;
use phalanx_model::resource::limit::{
    Fault, FaultEffect, GlobalLimit, LimitKey, Limits, Overload, Rate,
};
use phalanx_model::resource::{HeaderMatch, ValueMatch};
use phalanx_proto::envoy::config::core::v3 as core_v3;
use phalanx_proto::envoy::config::ratelimit::v3 as ratelimit_v3;
use phalanx_proto::envoy::config::route::v3 as route_v3;
use phalanx_proto::envoy::extensions::filters::common::fault::v3 as common_v3;
use phalanx_proto::envoy::extensions::filters::http::fault::v3 as fault_v3;
use phalanx_proto::envoy::extensions::filters::http::local_ratelimit::v3 as local_v3;
use phalanx_proto::envoy::extensions::filters::http::ratelimit::v3 as asking_v3;
use phalanx_proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm_v3;
use phalanx_proto::envoy::r#type::matcher::v3 as matcher_v3;
use phalanx_proto::envoy::r#type::v3 as type_v3;
use prost::Name;
use prost_types::value::Kind as ValueKind;
use prost_types::{ListValue, Struct, Value};

use super::{METADATA, any, duration, string};

/// Under [`METADATA`].
pub(crate) const LIMITS: &str = "limits";

/// None where nothing is limited.
pub(crate) fn words(limits: &[Limits]) -> Option<core_v3::Metadata> {
    if limits.is_empty() {
        return None;
    }
    let ours = fields([(LIMITS, list(limits.iter().map(policy)))]);
    Some(core_v3::Metadata {
        filter_metadata: [(METADATA.to_owned(), ours)].into(),
        ..Default::default()
    })
}

fn policy(limits: &Limits) -> Value {
    let Limits {
        policy,
        local,
        global,
        faults,
        overload,
        probe,
    } = limits;
    let mut said = fields([("policy", string(policy))]);
    let mut say = |key: &str, value| drop(said.fields.insert(key.to_owned(), value));
    if let Some(local) = local {
        say("local", object(rate(local)));
    }
    if let Some(global) = global {
        say("global", object(self::global(global)));
    }
    if !faults.is_empty() {
        say("faults", list(faults.iter().map(|one| object(fault(one)))));
    }
    if let Some(probe) = probe {
        say("probe", string(probe));
    }
    if let Some(overload) = overload {
        say("overload", object(self::overload(overload)));
    }
    object(said)
}

fn rate(rate: &Rate) -> Struct {
    fields([
        ("requests", number(rate.requests)),
        ("per_ns", nanoseconds(rate.per)),
        ("burst", number(rate.burst)),
    ])
}

fn global(limit: &GlobalLimit) -> Struct {
    let mut said = rate(&limit.rate);
    match &limit.by {
        LimitKey::All => {}
        LimitKey::Header(name) => drop(said.fields.insert("header".into(), string(name))),
        LimitKey::Caller => drop(said.fields.insert("caller".into(), boolean(true))),
    }
    if limit.closed {
        said.fields.insert("closed".into(), boolean(true));
    }
    said
}

fn fault(fault: &Fault) -> Struct {
    let effect = match fault.effect {
        FaultEffect::Delay(delay) => ("delay_ns", nanoseconds(delay)),
        FaultEffect::Status(status) => ("status", number(status.into())),
        FaultEffect::Grpc(code) => ("grpc", number(code.into())),
    };
    let headers = list(fault.headers.iter().map(header));
    fields([effect, ("share", number(fault.share)), ("headers", headers)])
}

fn overload(overload: &Overload) -> Struct {
    let rules = overload.priorities.iter().map(|rule| {
        object(fields([
            ("priority", string(rule.priority.as_str())),
            ("headers", list(rule.headers.iter().map(header))),
        ]))
    });
    fields([
        ("min_in_flight", number(overload.min_in_flight)),
        ("max_in_flight", number(overload.max_in_flight)),
        ("queue_delay_ns", nanoseconds(overload.queue_delay)),
        ("priorities", list(rules)),
        ("default", string(overload.default.as_str())),
    ])
}

fn header(header: &HeaderMatch) -> Value {
    let value = match &header.value {
        ValueMatch::Exact(text) => ("exact", string(text)),
        ValueMatch::Regex(pattern) => ("regex", string(pattern)),
    };
    object(fields([("name", string(&header.name)), value]))
}

fn fields<const N: usize>(words: [(&str, Value); N]) -> Struct {
    let words = words.map(|(key, value)| (key.to_owned(), value));
    Struct {
        fields: BTreeMap::from(words),
    }
}

fn object(fields: Struct) -> Value {
    Value {
        kind: Some(ValueKind::StructValue(fields)),
    }
}

fn list(values: impl Iterator<Item = Value>) -> Value {
    Value {
        kind: Some(ValueKind::ListValue(ListValue {
            values: values.collect(),
        })),
    }
}

fn number(number: u32) -> Value {
    Value {
        kind: Some(ValueKind::NumberValue(number.into())),
    }
}

/// A day has fewer than a double can hold exactly.
fn nanoseconds(duration: Duration) -> Value {
    Value {
        kind: Some(ValueKind::NumberValue(duration.as_nanos() as f64)),
    }
}

fn boolean(value: bool) -> Value {
    Value {
        kind: Some(ValueKind::BoolValue(value)),
    }
}

/// In the order in which our sidecar goes through them. `asking`: also those by which Envoy asks about global limits, by
/// request; a key that it can't make of a request is left out, and shedding is no filter of its.
pub(crate) fn filters(limits: &[Limits], asking: bool) -> Vec<hcm_v3::HttpFilter> {
    let local = limits.iter().filter_map(|limits| {
        let rate = limits.local.as_ref()?;
        let name = format!("phalanx.limit/{}", limits.policy);
        Some(filter(name, &local(&limits.policy, rate)))
    });
    let asked = limits.iter().filter(|_| asking).filter_map(|limits| {
        let limit = limits.global.as_ref()?;
        let name = format!("phalanx.global/{}", limits.policy);
        Some(filter(name, &question(&limits.policy, limit)?))
    });
    let faults = limits.iter().flat_map(|limits| {
        let faults = limits.faults.iter().enumerate();
        faults.map(|(index, one)| {
            let name = format!("phalanx.fault/{}/{index:03}", limits.policy);
            filter(name, &injected(one))
        })
    });
    local.chain(asked).chain(faults).collect()
}

fn filter<M: Name>(name: String, config: &M) -> hcm_v3::HttpFilter {
    hcm_v3::HttpFilter {
        name,
        config_type: Some(hcm_v3::http_filter::ConfigType::TypedConfig(any(config))),
        ..Default::default()
    }
}

/// Envoy fills its bucket as time goes by, like ours.
fn local(policy: &str, rate: &Rate) -> local_v3::LocalRateLimit {
    let whole = || {
        Some(core_v3::RuntimeFractionalPercent {
            default_value: Some(type_v3::FractionalPercent {
                numerator: 100,
                denominator: type_v3::fractional_percent::DenominatorType::Hundred.into(),
            }),
            ..Default::default()
        })
    };
    local_v3::LocalRateLimit {
        stat_prefix: policy.to_owned(),
        token_bucket: Some(type_v3::TokenBucket {
            max_tokens: rate.burst,
            tokens_per_fill: Some(rate.requests),
            fill_interval: Some(duration(rate.per)),
        }),
        filter_enabled: whole(),
        filter_enforced: whole(),
        rate_limited_as_resource_exhausted: true,
        ..Default::default()
    }
}

/// None where Envoy has no such key.
fn question(policy: &str, limit: &GlobalLimit) -> Option<asking_v3::RateLimit> {
    use core_v3::grpc_service::{EnvoyGrpc, TargetSpecifier};
    use route_v3::rate_limit::action::{ActionSpecifier, GenericKey, RequestHeaders};
    let action = match &limit.by {
        LimitKey::All => ActionSpecifier::GenericKey(GenericKey {
            descriptor_value: "all".to_owned(),
            ..Default::default()
        }),
        LimitKey::Header(name) => ActionSpecifier::RequestHeaders(RequestHeaders {
            header_name: name.clone(),
            descriptor_key: "value".to_owned(),
            ..Default::default()
        }),
        LimitKey::Caller => return None,
    };
    let service = core_v3::GrpcService {
        target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
            cluster_name: CONTROL.to_owned(),
            ..Default::default()
        })),
        ..Default::default()
    };
    let of_route = route_v3::RateLimit {
        actions: vec![route_v3::rate_limit::Action {
            action_specifier: Some(action),
        }],
        ..Default::default()
    };
    Some(asking_v3::RateLimit {
        domain: policy.to_owned(),
        timeout: Some(duration(ANSWER)),
        failure_mode_deny: limit.closed,
        rate_limited_as_resource_exhausted: true,
        rate_limit_service: Some(ratelimit_v3::RateLimitServiceConfig {
            grpc_service: Some(service),
            transport_api_version: core_v3::ApiVersion::V3.into(),
        }),
        rate_limits: vec![of_route],
        ..Default::default()
    })
}

/// The control plane's cluster in an Envoy's bootstrap, as `docs/envoy.md` has it.
const CONTROL: &str = "xds";
const ANSWER: Duration = Duration::from_millis(500);

fn injected(fault: &Fault) -> fault_v3::HttpFault {
    use common_v3::fault_delay::FaultDelaySecifier;
    let percentage = Some(type_v3::FractionalPercent {
        numerator: fault.share * 10,
        denominator: type_v3::fractional_percent::DenominatorType::Million.into(),
    });
    let abort = |error| {
        Some(fault_v3::FaultAbort {
            percentage,
            error_type: Some(error),
            ..Default::default()
        })
    };
    let mut injected = fault_v3::HttpFault {
        headers: fault.headers.iter().map(matcher).collect(),
        ..Default::default()
    };
    match fault.effect {
        FaultEffect::Delay(delay) => {
            injected.delay = Some(common_v3::FaultDelay {
                percentage,
                fault_delay_secifier: Some(FaultDelaySecifier::FixedDelay(duration(delay))),
            });
        }
        FaultEffect::Status(status) => injected.abort = abort(ErrorType::HttpStatus(status.into())),
        FaultEffect::Grpc(code) => {
            injected.abort = abort(ErrorType::GrpcStatus(code.into()));
            injected.headers.push(of_grpc());
        }
    }
    injected
}

/// Envoy would answer any request with a code that only gRPC's clients read.
fn of_grpc() -> route_v3::HeaderMatcher {
    matcher(&HeaderMatch {
        name: "content-type".to_owned(),
        value: ValueMatch::Regex("application/grpc([+;].*)?".to_owned()),
    })
}

fn matcher(header: &HeaderMatch) -> route_v3::HeaderMatcher {
    use matcher_v3::string_matcher::MatchPattern;
    use route_v3::header_matcher::HeaderMatchSpecifier;
    let pattern = match &header.value {
        ValueMatch::Exact(text) => MatchPattern::Exact(text.clone()),
        ValueMatch::Regex(pattern) => MatchPattern::SafeRegex(matcher_v3::RegexMatcher {
            regex: pattern.clone(),
            ..Default::default()
        }),
    };
    route_v3::HeaderMatcher {
        name: header.name.clone(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(
            matcher_v3::StringMatcher {
                match_pattern: Some(pattern),
                ..Default::default()
            },
        )),
        ..Default::default()
    }
}
