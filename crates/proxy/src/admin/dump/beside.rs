//! What stands beside the way of a request: copies, sessions, CORS, hedging of a rule; limits, faults and shedding of those
//! who are called.

use std::time::Duration;

use phalanx_model::resource::limit::{
    Fault, FaultEffect, GlobalLimit, LimitKey, Limits, Overload, PriorityRule, Rate,
};
use phalanx_model::resource::{
    Carrier, Cors, HashOn, HeaderMatch, Hedging, Mirror, Session, Transcoding, ValueMatch,
};
use phalanx_transcode::Binding;
use serde_json::{Map, Value, json};

pub fn mirror(mirror: &Mirror) -> Value {
    let Mirror {
        cluster,
        per_million,
    } = mirror;
    json!({ "cluster": cluster.to_string(), "per_million": per_million })
}

pub fn session(session: &Session) -> Value {
    let Session {
        name,
        carrier,
        absolute,
        idle,
    } = session;
    let carrier = match carrier {
        Carrier::Cookie => "cookie",
        Carrier::PermanentCookie => "permanent_cookie",
        Carrier::Header => "header",
    };
    let told = |limit: &Option<Duration>| limit.map(|limit| format!("{limit:?}"));
    json!({ "name": name, "carrier": carrier, "absolute": told(absolute), "idle": told(idle) })
}

pub fn cors(cors: &Cors) -> Value {
    let Cors {
        origins,
        credentials,
        methods,
        headers,
        exposed,
        max_age,
    } = cors;
    let origin = |origin: &ValueMatch| match origin {
        ValueMatch::Exact(text) => json!({ "exact": text }),
        ValueMatch::Regex(regex) => json!({ "regex": regex }),
    };
    json!({
        "origins": origins.iter().map(origin).collect::<Vec<_>>(),
        "credentials": credentials,
        "methods": methods,
        "headers": headers,
        "exposed": exposed,
        "max_age": max_age,
    })
}

pub fn hedging(hedging: &Hedging) -> Value {
    let Hedging {
        delay,
        extra_max,
        grpc,
    } = hedging;
    json!({ "delay": format!("{delay:?}"), "extra_max": extra_max, "grpc": grpc })
}

/// Without the descriptors, but with what they bind.
pub fn transcoding(transcoding: &Transcoding) -> Value {
    let table = transcoding.table();
    let binding = |of: &Binding| format!("{} {} = {}", of.method, of.template, of.call);
    json!({
        "services": transcoding.services(),
        "descriptor_bytes": transcoding.descriptors().len(),
        "bindings": table.bindings().iter().map(binding).collect::<Vec<_>>(),
        "options": format!("{:?}", table.options),
    })
}

pub fn hash_on(hash_on: &HashOn) -> Value {
    match hash_on {
        HashOn::Header(name) => json!({ "header": name }),
        HashOn::Cookie(name) => json!({ "cookie": name }),
        HashOn::SourceIp => json!("source_ip"),
    }
}

pub fn headers(headers: &[HeaderMatch]) -> Value {
    headers.iter().map(|h| named(&h.name, &h.value)).collect()
}

/// A condition on a value with a name.
pub fn named(name: &str, value: &ValueMatch) -> Value {
    match value {
        ValueMatch::Exact(text) => json!({ "name": name, "exact": text }),
        ValueMatch::Regex(regex) => json!({ "name": name, "regex": regex }),
    }
}

/// What one policy says; what it does not say is left out.
pub fn limits(limits: &Limits) -> Value {
    let Limits {
        policy,
        local,
        global,
        faults,
        overload,
        probe,
    } = limits;
    let mut out = Map::new();
    out.insert("policy".into(), json!(policy));
    if let Some(local) = local {
        out.insert("local".into(), rate(local));
    }
    if let Some(GlobalLimit { rate, by, closed }) = global {
        let by = match by {
            LimitKey::All => json!("all"),
            LimitKey::Caller => json!("caller"),
            LimitKey::Header(name) => json!({ "header": name }),
        };
        let global = json!({ "rate": self::rate(rate), "by": by, "closed": closed });
        out.insert("global".into(), global);
    }
    if !faults.is_empty() {
        out.insert("faults".into(), faults.iter().map(fault).collect());
    }
    if let Some(overload) = overload {
        out.insert("overload".into(), self::overload(overload));
    }
    if let Some(probe) = probe {
        out.insert("probe".into(), json!(probe));
    }
    Value::Object(out)
}

fn rate(rate: &Rate) -> Value {
    let Rate {
        requests,
        per,
        burst,
    } = rate;
    json!({ "requests": requests, "per": format!("{per:?}"), "burst": burst })
}

fn fault(fault: &Fault) -> Value {
    let Fault {
        effect,
        share,
        headers,
    } = fault;
    let (key, effect) = match effect {
        FaultEffect::Delay(delay) => ("delay", json!(format!("{delay:?}"))),
        FaultEffect::Status(status) => ("status", json!(status)),
        FaultEffect::Grpc(status) => ("grpc_status", json!(status)),
    };
    json!({ key: effect, "per_100000": share, "headers": self::headers(headers) })
}

fn overload(overload: &Overload) -> Value {
    let Overload {
        min_in_flight,
        max_in_flight,
        queue_delay,
        priorities,
        default,
    } = overload;
    let rule = |rule: &PriorityRule| json!({ "priority": rule.priority.as_str(), "headers": headers(&rule.headers) });
    json!({
        "min_in_flight": min_in_flight,
        "max_in_flight": max_in_flight,
        "queue_delay": format!("{queue_delay:?}"),
        "priorities": priorities.iter().map(rule).collect::<Vec<_>>(),
        "default": default.as_str(),
    })
}
