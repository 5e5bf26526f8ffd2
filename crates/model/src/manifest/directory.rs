//! `sessionDirectory` of a BackendPolicy: what of a request is the key of its session.

use super::backend::cookie_name;
use super::cursor::Fields;
use crate::document::SessionRules;
use crate::name::check_label;
use crate::resource::sessions::{Missing, SessionKey};

pub(super) fn directory(fields: &mut Fields<'_>) -> Option<SessionRules> {
    let service = fields.get("service").map(|at| {
        let name = at.text()?;
        at.check(check_label(name).is_ok(), "is no name of a Service")?;
        Some(name.to_owned())
    });
    let choices = Missing::ALL.map(|missing| (missing.as_str(), missing));
    let missing = fields
        .get("missing")
        .map_or(Some(Missing::default()), |at| at.choose(&choices, &[]));
    let key = match (fields.get("header"), fields.get("cookie")) {
        (Some(at), None) => {
            let name = at.header_name()?;
            let is_fit = name != "host" && !name.starts_with("x-phalanx-");
            at.check(is_fit, "has no session's key")?;
            SessionKey::Header(name)
        }
        (None, Some(at)) => SessionKey::Cookie(cookie_name(&at)?),
        (None, None) => {
            return fields.at.refuse_with(
                "nothing says where a request has its session",
                "such as `header: x-game-session` or `cookie: room`",
            );
        }
        (Some(_), Some(_)) => {
            return fields.at.refuse_with(
                "`header` and `cookie` exclude each other",
                "keep one of them",
            );
        }
    };
    Some(SessionRules {
        service: service.map_or(Some(None), |service| service.map(Some))?,
        key,
        missing: missing?,
    })
}
