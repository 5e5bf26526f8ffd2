//! What a sidecar lets through, out of our own words. The filters for stock Envoys are compared with what
//! [`crate::encode::limits`] makes of these, by whoever reads the listener.

use std::time::Duration;

use phalanx_model::resource::limit::{
    Fault, FaultEffect, GlobalLimit, LimitKey, Limits, Overload, Priority, PriorityRule, Rate,
    SHARE_WHOLE,
};
use phalanx_model::resource::{HeaderMatch, ValueMatch};
use phalanx_proto::envoy::config::core::v3 as core_v3;
use prost_types::value::Kind as ValueKind;
use prost_types::{Struct, Value};

use super::DecodeError;
use super::field::At;
use crate::encode::METADATA;
use crate::encode::limits::LIMITS;

/// Of one list in them.
const ITEMS_MAX: usize = 64;

pub(super) fn limits(
    at: &At<'_>,
    metadata: Option<&core_v3::Metadata>,
) -> Result<Vec<Limits>, DecodeError> {
    let ours = metadata.and_then(|metadata| metadata.filter_metadata.get(METADATA));
    let Some(ours) = ours else {
        return Ok(Vec::new());
    };
    let words = Words { at, said: ours };
    words.each(LIMITS, policy)
}

fn policy(words: Words<'_>) -> Result<Limits, DecodeError> {
    Ok(Limits {
        policy: words.text("policy")?,
        local: words.inner("local")?.map(rate).transpose()?,
        global: words.inner("global")?.map(global).transpose()?,
        faults: words.each("faults", fault)?,
        overload: words.inner("overload")?.map(overload).transpose()?,
        probe: match words.get("probe") {
            Some(_) => Some(words.text("probe")?),
            None => None,
        },
    })
}

fn rate(words: Words<'_>) -> Result<Rate, DecodeError> {
    Ok(Rate {
        requests: words.number("requests", 1)?,
        per: words.duration("per_ns")?,
        burst: words.number("burst", 1)?,
    })
}

fn global(words: Words<'_>) -> Result<GlobalLimit, DecodeError> {
    let by = match (words.get("header"), words.get("caller")) {
        (Some(_), _) => LimitKey::Header(words.text("header")?),
        (None, Some(_)) => LimitKey::Caller,
        (None, None) => LimitKey::All,
    };
    Ok(GlobalLimit {
        by,
        closed: words.get("closed").is_some(),
        rate: rate(words)?,
    })
}

fn fault(words: Words<'_>) -> Result<Fault, DecodeError> {
    let invalid = |what: &str| words.at.field("metadata").invalid(what);
    let effect = if words.get("delay_ns").is_some() {
        FaultEffect::Delay(words.duration("delay_ns")?)
    } else if words.get("grpc").is_some() {
        let code = u8::try_from(words.number("grpc", 1)?);
        FaultEffect::Grpc(code.map_err(|_| invalid("`grpc` is no code"))?)
    } else {
        let status = u16::try_from(words.number("status", 200)?).ok();
        let status = status.filter(|status| *status < 600);
        FaultEffect::Status(status.ok_or_else(|| invalid("`status` is none of HTTP"))?)
    };
    let share = words.number("share", 0)?;
    if share > SHARE_WHOLE {
        return Err(invalid("`share` is more than all"));
    }
    Ok(Fault {
        effect,
        share,
        headers: words.each("headers", header)?,
    })
}

fn overload(words: Words<'_>) -> Result<Overload, DecodeError> {
    Ok(Overload {
        min_in_flight: words.number("min_in_flight", 1)?,
        max_in_flight: words.number("max_in_flight", 1)?,
        queue_delay: words.duration("queue_delay_ns")?,
        priorities: words.each("priorities", |words| {
            Ok(PriorityRule {
                priority: words.priority("priority")?,
                headers: words.each("headers", header)?,
            })
        })?,
        default: words.priority("default")?,
    })
}

fn header(words: Words<'_>) -> Result<HeaderMatch, DecodeError> {
    let value = match words.get("regex") {
        Some(_) => ValueMatch::Regex(words.text("regex")?),
        None => ValueMatch::Exact(words.text("exact")?),
    };
    Ok(HeaderMatch {
        name: words.text("name")?,
        value,
    })
}

/// One of our own messages, where protobuf has only words.
#[derive(Clone, Copy)]
struct Words<'a> {
    at: &'a At<'a>,
    said: &'a Struct,
}

impl<'a> Words<'a> {
    fn wrong(&self, key: &str) -> DecodeError {
        let at = self.at.field("metadata");
        at.invalid(format!("`{key}` is missing or not of its kind"))
    }

    fn get(&self, key: &str) -> Option<&'a ValueKind> {
        self.said.fields.get(key)?.kind.as_ref()
    }

    fn text(&self, key: &str) -> Result<String, DecodeError> {
        match self.get(key) {
            Some(ValueKind::StringValue(text)) => Ok(text.clone()),
            _ => Err(self.wrong(key)),
        }
    }

    fn priority(&self, key: &str) -> Result<Priority, DecodeError> {
        let text = self.text(key)?;
        Priority::parse(text.as_bytes()).ok_or_else(|| self.wrong(key))
    }

    /// At least `min`.
    fn number(&self, key: &str, min: u32) -> Result<u32, DecodeError> {
        match self.get(key) {
            Some(ValueKind::NumberValue(number))
                if number.fract() == 0.0
                    && (f64::from(min)..=f64::from(u32::MAX)).contains(number) =>
            {
                Ok(*number as u32)
            }
            _ => Err(self.wrong(key)),
        }
    }

    /// More than nothing.
    fn duration(&self, key: &str) -> Result<Duration, DecodeError> {
        match self.get(key) {
            Some(ValueKind::NumberValue(ns)) if (1.0..=NS_MAX).contains(ns) => {
                Ok(Duration::from_nanos(*ns as u64))
            }
            _ => Err(self.wrong(key)),
        }
    }

    fn inner(&self, key: &str) -> Result<Option<Words<'a>>, DecodeError> {
        match self.get(key) {
            None => Ok(None),
            Some(ValueKind::StructValue(said)) => Ok(Some(Words { at: self.at, said })),
            Some(_) => Err(self.wrong(key)),
        }
    }

    fn each<T>(
        &self,
        key: &str,
        read: impl Fn(Words<'a>) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, DecodeError> {
        let items: &[Value] = match self.get(key) {
            None => &[],
            Some(ValueKind::ListValue(list)) if list.values.len() <= ITEMS_MAX => &list.values,
            Some(_) => return Err(self.wrong(key)),
        };
        let item = |value: &'a Value| match &value.kind {
            Some(ValueKind::StructValue(said)) => read(Words { at: self.at, said }),
            _ => Err(self.wrong(key)),
        };
        items.iter().map(item).collect()
    }
}

/// A little more than 100 days, which a double still holds exactly.
const NS_MAX: f64 = 9.0e15;
