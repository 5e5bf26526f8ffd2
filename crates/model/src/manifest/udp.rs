//! `udp` of a BackendPolicy: how datagrams to a Service are taken. What is left out keeps its default.

use std::time::Duration;

use super::cursor::{At, Fields};
use crate::resource::udp::{TOKEN_MAX, Token, TokenAt, UdpLimits, UdpRules};

const IDLE_MIN: Duration = Duration::from_secs(1);
const IDLE_MAX: Duration = Duration::from_secs(60 * 60);
/// Of one port of a data plane.
const SESSIONS_MAX: u32 = 1_000_000;
const PACKETS_MAX: u32 = 10_000_000;
const BYTES_MAX: u32 = u32::MAX;

pub(super) fn udp(fields: &mut Fields<'_>) -> Option<UdpRules> {
    let default = UdpRules::default();
    let idle_timeout = fields
        .get("idleTimeout")
        .and_then(|at| at.go_duration(IDLE_MIN, IDLE_MAX));
    let token = fields.get("token").and_then(|at| token(&at));
    let limits = default.limits;
    Some(UdpRules {
        idle_timeout: idle_timeout.unwrap_or(default.idle_timeout),
        token,
        limits: UdpLimits {
            sessions: fields.number("maxSessions", 1..=SESSIONS_MAX, limits.sessions),
            sessions_per_source: fields.number(
                "maxSessionsPerSource",
                1..=SESSIONS_MAX,
                limits.sessions_per_source,
            ),
            packets_per_second_per_source: fields.number(
                "packetsPerSecondPerSource",
                0..=PACKETS_MAX,
                limits.packets_per_second_per_source,
            ),
            bytes_per_second_per_source: fields
                .number("bytesPerSecondPerSource", 0..=BYTES_MAX, 0)
                .into(),
        },
    })
}

fn token(at: &At<'_>) -> Option<Token> {
    let mut fields = at.fields()?;
    let (prefix, suffix) = (fields.get("prefix"), fields.get("suffix"));
    let mut flag = |key| fields.get(key).map_or(Some(false), |at| at.boolean());
    let (strip, required) = (flag("strip"), flag("required"));
    let (place, len) = match (prefix, suffix) {
        (Some(at), None) => (TokenAt::Prefix, at),
        (None, Some(at)) => (TokenAt::Suffix, at),
        (None, None) => {
            return at.refuse_with(
                "nothing says where the token is",
                "`prefix: 16` for the first 16 bytes of each datagram, `suffix: 16` for the last",
            );
        }
        (Some(_), Some(_)) => {
            return at.refuse_with(
                "`prefix` and `suffix` exclude each other",
                "keep one of them",
            );
        }
    };
    let len = len.number(1..=TOKEN_MAX.into())?;
    Some(Token {
        at: place,
        len: u8::try_from(len).ok()?,
        strip: strip?,
        required: required?,
    })
}
