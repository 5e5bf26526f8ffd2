//! `sessionPersistence` of a route's rule (GEP-1619).

use std::time::Duration;

use super::cursor::{At, Fields};
use super::filter::header_to_edit;
use super::report::quoted;
use crate::resource::{Carrier, Session};

const NAME_LEN_MAX: usize = 128;

/// The field `sessionPersistence` of a rule.
pub(super) fn session(fields: &mut Fields<'_>) -> Option<Session> {
    let at = fields.get("sessionPersistence")?;
    let mut fields = at.fields()?;
    let kinds = [("Cookie", false), ("Header", true)];
    let is_header = fields
        .get("type")
        .map_or(Some(false), |at| at.choose(&kinds, &[]));
    let name = fields.get("sessionName").map(|at| {
        at.bounded(NAME_LEN_MAX)?;
        match is_header {
            Some(true) => header_to_edit(&at),
            _ => cookie_name(&at),
        }
    });
    let absolute = fields.get("absoluteTimeout").map(|at| timeout(&at));
    let idle = fields.get("idleTimeout").map(|at| timeout(&at));
    let config = fields.get("cookieConfig");
    if let Some(config) = config.as_ref().filter(|_| is_header == Some(true)) {
        config.refuse::<()>("a session of type Header has no cookie");
    }
    let is_permanent = config.is_some_and(|at| lifetime(&at).unwrap_or_default());
    if is_permanent && absolute.is_none() {
        at.refuse_with::<()>(
            "a permanent cookie ends at some time",
            "say when, with `absoluteTimeout`",
        );
    }
    Some(Session {
        name: name.map_or(Some(String::new()), |name| name)?,
        carrier: match (is_header?, is_permanent) {
            (true, _) => Carrier::Header,
            (false, true) => Carrier::PermanentCookie,
            (false, false) => Carrier::Cookie,
        },
        absolute: absolute.flatten(),
        idle: idle.flatten(),
    })
}

/// Whether it is permanent.
fn lifetime(at: &At<'_>) -> Option<bool> {
    let mut fields = at.fields()?;
    let kinds = [("Session", false), ("Permanent", true)];
    fields
        .get("lifetimeType")
        .map_or(Some(false), |at| at.choose(&kinds, &[]))
}

/// RFC 6265 §4.1.1: a token, and here case counts.
fn cookie_name(at: &At<'_>) -> Option<String> {
    let text = at.text()?;
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if text.bytes().all(token) {
        Some(text.to_owned())
    } else {
        at.refuse(format!("{} is no name of a cookie", quoted(text)))
    }
}

/// Tokens and cookies count whole seconds.
fn timeout(at: &At<'_>) -> Option<Duration> {
    let timeout = at.gateway_duration()?;
    at.check(
        !timeout.is_zero() && timeout.subsec_nanos() == 0,
        "is no whole number of seconds, at least 1s",
    )?;
    Some(timeout)
}
