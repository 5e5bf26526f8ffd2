//! The part of a BackendPolicy that the sidecars of the targets enforce: rate limits, faults and what goes first under too
//! much load. A limit that could not mean anything is refused.

use std::time::Duration;

use super::cursor::{At, Fields};
use super::route::header_matches;
use crate::document::Meta;
use crate::resource::limit::{
    Fault, FaultEffect, GlobalLimit, LimitKey, Limits, Overload, Priority, PriorityRule, Rate,
    SHARE_WHOLE,
};
use crate::resource::{HeaderMatch, Probe};

const FAULTS_MAX: usize = 16;
const PRIORITIES_MAX: usize = 16;
/// Envoy fills no bucket in less.
const PER_MIN: Duration = Duration::from_millis(50);
const PER_MAX: Duration = Duration::from_secs(24 * 60 * 60);
const DELAY_MAX: Duration = Duration::from_secs(60 * 60);
const QUEUE_DELAY_MAX: Duration = Duration::from_secs(1);
const IN_FLIGHT_MAX: u32 = 1_000_000;
const RATE_MAX: u32 = 10_000_000;

/// None where nothing of the kind is said.
pub(super) fn limits(
    fields: &mut Fields<'_>,
    meta: &Meta,
    probe: Option<&Probe>,
) -> Option<Limits> {
    let (local, global) = fields
        .get("rateLimit")
        .and_then(|at| rate_limit(&at))
        .unwrap_or_default();
    let faults = fields.list("faults", FAULTS_MAX);
    let limits = Limits {
        policy: format!("BackendPolicy/{}/{}", meta.namespace, meta.name),
        local,
        global,
        faults: faults.iter().filter_map(fault).collect(),
        overload: fields.get("overload").and_then(|at| overload(&at)),
        probe: match probe {
            Some(Probe::Http { path }) => Some(path.clone()),
            _ => None,
        },
    };
    (!limits.is_empty()).then_some(limits)
}

fn rate_limit(at: &At<'_>) -> Option<(Option<Rate>, Option<GlobalLimit>)> {
    let mut fields = at.fields()?;
    let (local, global) = (fields.get("local"), fields.get("global"));
    if local.is_none() && global.is_none() {
        at.refuse_with::<()>(
            "nothing is limited",
            "such as `local: {requests: 100, per: 1s}`",
        );
    }
    let local = local.and_then(|at| rate(&mut at.fields()?));
    let global = global.and_then(|at| {
        let mut fields = at.fields()?;
        let by = fields.get("by").map_or(Some(LimitKey::All), |at| key(&at));
        let closed = fields.get("onFailure").map_or(Some(false), |at| {
            at.choose(&[("Allow", false), ("Deny", true)], &[])
        });
        Some(GlobalLimit {
            rate: rate(&mut fields)?,
            by: by?,
            closed: closed?,
        })
    });
    Some((local, global))
}

fn rate(fields: &mut Fields<'_>) -> Option<Rate> {
    let requests = fields
        .need("requests")
        .and_then(|at| at.number(1..=RATE_MAX));
    let per = fields
        .need("per")
        .and_then(|at| at.go_duration(PER_MIN, PER_MAX));
    let burst = fields.number("burst", 1..=RATE_MAX, requests.unwrap_or(1));
    Some(Rate {
        requests: requests?,
        per: per?,
        burst,
    })
}

fn key(at: &At<'_>) -> Option<LimitKey> {
    let mut fields = at.fields()?;
    match (fields.get("header"), fields.get("caller")) {
        (Some(header), None) => {
            let name = header.header_name()?;
            header.check(name != "host", "the host can't be a key: it is the service")?;
            Some(LimitKey::Header(name))
        }
        (None, Some(caller)) => match caller.boolean()? {
            true => Some(LimitKey::Caller),
            false => caller.refuse_with("only `true` means something", "leave `caller` out"),
        },
        (None, None) => at.refuse("one of `header` and `caller` is needed"),
        _ => at.refuse_with("`header` and `caller` exclude each other", "keep one"),
    }
}

fn fault(at: &At<'_>) -> Option<Fault> {
    let mut fields = at.fields()?;
    let delay = fields.get("delay");
    let abort = fields.get("abort");
    let share = fields
        .need("percent")
        .and_then(|at| at.thousandths(0..=SHARE_WHOLE));
    let headers = fields.get("when").map_or(Some(Vec::new()), conditions);
    let effect = match (delay, abort) {
        (Some(delay), None) => delay
            .go_duration(Duration::from_millis(1), DELAY_MAX)
            .map(FaultEffect::Delay),
        (None, Some(abort)) => self::abort(&abort),
        (None, None) => at.refuse("one of `delay` and `abort` is needed"),
        _ => at.refuse_with(
            "`delay` and `abort` exclude each other",
            "write an item for each: they have chances of their own",
        ),
    };
    Some(Fault {
        effect: effect?,
        share: share?,
        headers: headers?,
    })
}

fn abort(at: &At<'_>) -> Option<FaultEffect> {
    let mut fields = at.fields()?;
    match (fields.get("status"), fields.get("grpc")) {
        (Some(status), None) => {
            let status = u16::try_from(status.number(400..=599)?).ok()?;
            Some(FaultEffect::Status(status))
        }
        (None, Some(code)) => {
            let code = u8::try_from(code.number(1..=16)?).ok()?;
            Some(FaultEffect::Grpc(code))
        }
        _ => at.refuse_with(
            "one of `status` and `grpc` is needed",
            "such as `abort: {status: 503}` or `abort: {grpc: 14}`",
        ),
    }
}

/// Headers that all have to match; none at all is refused, because it would mean every request.
fn conditions(at: At<'_>) -> Option<Vec<HeaderMatch>> {
    let headers = header_matches(&mut at.fields()?);
    if headers.is_empty() {
        return at.refuse_with(
            "no header is named",
            "such as `when: {headers: [{name: x-chaos, value: \"1\"}]}`",
        );
    }
    Some(headers)
}

fn overload(at: &At<'_>) -> Option<Overload> {
    let mut fields = at.fields()?;
    let default = Overload::default();
    let min = fields.number("minInFlight", 1..=IN_FLIGHT_MAX, default.min_in_flight);
    let max = fields.number("maxInFlight", 1..=IN_FLIGHT_MAX, default.max_in_flight);
    at.check(min <= max, "`minInFlight` is above `maxInFlight`")?;
    let queue_delay = fields
        .get("queueDelay")
        .and_then(|at| at.go_duration(Duration::from_millis(1), QUEUE_DELAY_MAX))
        .unwrap_or(default.queue_delay);
    let priorities = fields.list("priorities", PRIORITIES_MAX);
    let priorities = priorities.iter().filter_map(priority_rule).collect();
    let usual = fields.get("default").and_then(|at| priority(&at));
    Some(Overload {
        min_in_flight: min,
        max_in_flight: max,
        queue_delay,
        priorities,
        default: usual.unwrap_or_default(),
    })
}

fn priority_rule(at: &At<'_>) -> Option<PriorityRule> {
    let mut fields = at.fields()?;
    let priority = fields.need("priority").and_then(|at| priority(&at));
    let headers = fields.need("when").and_then(conditions);
    Some(PriorityRule {
        priority: priority?,
        headers: headers?,
    })
}

fn priority(at: &At<'_>) -> Option<Priority> {
    at.choose(
        &Priority::ALL.map(|priority| (priority.as_str(), priority)),
        &[],
    )
}
