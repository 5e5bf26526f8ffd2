//! What a route does besides forwarding: mirror policies, and the filters for CORS and sessions, which do nothing but for
//! routes that say so. What Envoy has no word for stands in the route's metadata.

use std::collections::BTreeMap;
use std::time::Duration;

use phalanx_model::resource::{
    Carrier, Cors, Forward, Hedging, MILLION, Mirror, PathMatch, RuleMatch, Session,
};
use phalanx_proto::envoy::config::core::v3 as core_v3;
use phalanx_proto::envoy::config::route::v3 as route_v3;
use phalanx_proto::envoy::extensions::filters::http::cors::v3 as cors_v3;
use phalanx_proto::envoy::extensions::filters::http::stateful_session::v3 as session_v3;
use phalanx_proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm_v3;
use phalanx_proto::envoy::extensions::http::stateful_session::cookie::v3::CookieBasedSessionState;
use phalanx_proto::envoy::extensions::http::stateful_session::header::v3::HeaderBasedSessionState;
use phalanx_proto::envoy::r#type::http::v3::Cookie;
use phalanx_proto::envoy::r#type::v3::{FractionalPercent, fractional_percent::DenominatorType};
use prost::Name;

use super::super::{any, duration, metadata};
use super::transcode::{self, TRANSCODER_FILTER};
use super::{IDEMPOTENT, string_match};

pub(crate) const CORS_FILTER: &str = "envoy.filters.http.cors";
pub(crate) const SESSION_FILTER: &str = "envoy.filters.http.stateful_session";
const COOKIE_STATE: &str = "envoy.http.stateful_session.cookie";
const HEADER_STATE: &str = "envoy.http.stateful_session.header";

/// In the metadata of a route, under [`super::super::METADATA`].
pub(crate) const TIMEOUT: &str = "timeout";
pub(crate) const NO_TIMEOUT: &str = "none";
pub(crate) const SESSION_IDLE: &str = "session_idle";
/// Of a header, which has no time to live in Envoy.
pub(crate) const SESSION_ABSOLUTE: &str = "session_absolute";
/// Of a cookie with a time to live that is not told to clients.
pub(crate) const SESSION_LIFETIME: &str = "session_lifetime";
pub(crate) const OF_CLIENT: &str = "client";
/// `<ns> <further attempts> [<path>…]`
pub(crate) const HEDGING: &str = "hedging";
/// `on`, then what is left out.
pub(crate) const COMPARE: &str = "compare";
pub(crate) const COMPARED: &str = "on";

/// In the order in which requests pass them; the router comes after.
pub(crate) fn filters() -> Vec<hcm_v3::HttpFilter> {
    let session = session_v3::StatefulSession::default();
    vec![
        filter(CORS_FILTER, &cors_v3::Cors {}),
        filter(SESSION_FILTER, &session),
        filter(TRANSCODER_FILTER, &transcode::idle()),
    ]
}

fn filter<M: Name>(name: &str, config: &M) -> hcm_v3::HttpFilter {
    hcm_v3::HttpFilter {
        name: name.to_owned(),
        config_type: Some(hcm_v3::http_filter::ConfigType::TypedConfig(any(config))),
        ..Default::default()
    }
}

pub(super) fn mirrors(to: &Forward) -> Vec<route_v3::route_action::RequestMirrorPolicy> {
    to.mirrors.iter().map(mirror).collect()
}

/// Envoy would mark the copy's authority with `-shadow`.
fn mirror(mirror: &Mirror) -> route_v3::route_action::RequestMirrorPolicy {
    let share = FractionalPercent {
        numerator: mirror.per_million,
        denominator: DenominatorType::Million.into(),
    };
    let runtime_fraction =
        (mirror.per_million < MILLION).then(|| core_v3::RuntimeFractionalPercent {
            default_value: Some(share),
            ..Default::default()
        });
    route_v3::route_action::RequestMirrorPolicy {
        cluster: mirror.cluster.to_string(),
        runtime_fraction,
        disable_shadow_host_suffix_append: true,
        ..Default::default()
    }
}

pub(super) fn configs(to: &Forward) -> BTreeMap<String, prost_types::Any> {
    let cors = to.cors.as_ref().map(|to| (CORS_FILTER, any(&cors(to))));
    let session = to.session.as_ref();
    let session = session.map(|to| (SESSION_FILTER, any(&stateful(to))));
    let configs = cors.into_iter().chain(session);
    configs
        .map(|(name, config)| (name.to_owned(), config))
        .collect()
}

/// What only our sidecar hears.
pub(super) fn words(to: &Forward) -> Option<core_v3::Metadata> {
    let seconds = |time: Option<Duration>| {
        time.map(|time| time.as_secs().to_string())
            .unwrap_or_default()
    };
    let is_unlimited = to.request_timeout == Some(Duration::ZERO);
    let carrier = |of| to.session.as_ref().filter(|s| s.carrier == of);
    let absolute = carrier(Carrier::Header).and_then(|session| session.absolute);
    let lifetime = carrier(Carrier::Cookie).and_then(|session| session.absolute);
    let idle = to.session.as_ref().and_then(|session| session.idle);
    metadata(&[
        (TIMEOUT, if is_unlimited { NO_TIMEOUT } else { "" }),
        (SESSION_IDLE, &seconds(idle)),
        (SESSION_ABSOLUTE, &seconds(absolute)),
        (SESSION_LIFETIME, lifetime.map_or("", |_| OF_CLIENT)),
        (
            HEDGING,
            &to.hedging.as_ref().map_or_else(String::new, hedging),
        ),
        (
            COMPARE,
            &to.compare.as_ref().map_or_else(String::new, |compare| {
                format!("{COMPARED} {}", compare.ignored())
            }),
        ),
    ])
}

fn hedging(hedging: &Hedging) -> String {
    let mut text = format!("{} {}", hedging.delay.as_nanos(), hedging.extra_max);
    for path in &hedging.grpc {
        text.push(' ');
        text.push_str(path);
    }
    text
}

/// Envoy hedges when an attempt's time is over, whatever the method, and as often as it may retry: only where all of that
/// says the same.
pub(crate) fn hedge_delay(to: &Forward, matches: &RuleMatch) -> Option<Duration> {
    let hedging = to.hedging.as_ref()?;
    let is_safe = match (&matches.path, &matches.method) {
        (PathMatch::Exact(path), _) if matches.grpc => hedging.allows_grpc(path),
        (_, Some(method)) => !matches.grpc && IDEMPOTENT.contains(&method.as_str()),
        _ => false,
    };
    let is_alone = to.attempt_timeout.is_none() && to.session.is_none();
    let is_said = is_safe && is_alone && to.retry.attempts >= hedging.extra_max;
    is_said.then_some(hedging.delay)
}

pub(crate) fn hedge_policy(to: &Forward, matches: &RuleMatch) -> Option<route_v3::HedgePolicy> {
    hedge_delay(to, matches).map(|_| route_v3::HedgePolicy {
        hedge_on_per_try_timeout: true,
        ..Default::default()
    })
}

/// Preflights of other origins are answered, not passed on: the application would decide by itself.
fn cors(cors: &Cors) -> cors_v3::CorsPolicy {
    cors_v3::CorsPolicy {
        allow_origin_string_match: cors.origins.iter().map(string_match).collect(),
        allow_methods: cors.methods.join(", "),
        allow_headers: cors.headers.join(", "),
        expose_headers: cors.exposed.join(", "),
        max_age: cors.max_age.to_string(),
        allow_credentials: Some(cors.credentials),
        forward_not_matching_preflights: Some(false),
        ..Default::default()
    }
}

fn stateful(session: &Session) -> session_v3::StatefulSessionPerRoute {
    use session_v3::stateful_session_per_route::Override;
    let name = session.name.clone();
    let (state, config) = match session.carrier {
        Carrier::Header => (HEADER_STATE, any(&HeaderBasedSessionState { name })),
        Carrier::Cookie | Carrier::PermanentCookie => {
            let cookie = Cookie {
                name,
                ttl: session.absolute.map(duration),
                path: "/".to_owned(),
                attributes: Vec::new(),
            };
            let cookie = Some(cookie);
            (COOKIE_STATE, any(&CookieBasedSessionState { cookie }))
        }
    };
    let session_state = Some(core_v3::TypedExtensionConfig {
        name: state.to_owned(),
        typed_config: Some(config),
    });
    session_v3::StatefulSessionPerRoute {
        r#override: Some(Override::StatefulSession(session_v3::StatefulSession {
            session_state,
            ..Default::default()
        })),
    }
}
