//! What a route does besides forwarding: copies, sessions and CORS, as [`crate::encode`] writes them.

use std::collections::BTreeMap;
use std::time::Duration;

use phalanx_model::resource::{
    Carrier, Compare, Cors, HEDGES_MAX, Hedging, MILLION, Mirror, Session,
};
use phalanx_proto::envoy::config::core::v3 as core_v3;
use phalanx_proto::envoy::config::route::v3::route_action::RequestMirrorPolicy;
use phalanx_proto::envoy::extensions::filters::http::cors::v3::CorsPolicy;
use phalanx_proto::envoy::extensions::filters::http::stateful_session::v3::{
    StatefulSession, StatefulSessionPerRoute, stateful_session_per_route::Override,
};
use phalanx_proto::envoy::extensions::http::stateful_session::cookie::v3::CookieBasedSessionState;
use phalanx_proto::envoy::extensions::http::stateful_session::header::v3::HeaderBasedSessionState;
use phalanx_proto::envoy::r#type::http::v3::Cookie;
use phalanx_proto::envoy::r#type::v3::fractional_percent::DenominatorType;
use prost::Name;

use super::super::DecodeError;
use super::super::field::{
    At, cluster_name, duration, each, fixed, header_name, is_token, metadata, nonempty, refuse,
    unpack,
};
use super::string_match;
use crate::encode::routes::beside::{
    COMPARE, COMPARED, CORS_FILTER, HEDGING, NO_TIMEOUT, OF_CLIENT, SESSION_ABSOLUTE,
    SESSION_FILTER, SESSION_IDLE, SESSION_LIFETIME, TIMEOUT,
};

/// What stands beside a route's action.
#[derive(Default)]
pub(super) struct Beside {
    pub session: Option<Session>,
    pub cors: Option<Cors>,
    /// A missing time limit is one that was not wanted.
    pub unlimited: bool,
    pub hedging: Option<Hedging>,
    pub compare: Option<Compare>,
}

impl Beside {
    pub(super) fn is_empty(&self) -> bool {
        self.session.is_none()
            && self.cors.is_none()
            && self.hedging.is_none()
            && self.compare.is_none()
            && !self.unlimited
    }
}

pub(super) fn read(
    at: &At<'_>,
    configs: BTreeMap<String, prost_types::Any>,
    words: Option<core_v3::Metadata>,
) -> Result<Beside, DecodeError> {
    let words_at = at.field("metadata");
    let keys = [
        TIMEOUT,
        SESSION_IDLE,
        SESSION_ABSOLUTE,
        SESSION_LIFETIME,
        HEDGING,
        COMPARE,
    ];
    let [timeout, idle, absolute, lifetime, hedged, compared] = metadata(&words_at, words, keys)?;
    let of_client = one_word(&words_at, &lifetime, OF_CLIENT)?;
    let mut beside = Beside {
        unlimited: one_word(&words_at, &timeout, NO_TIMEOUT)?,
        hedging: hedging(&words_at, &hedged)?,
        compare: compare(&words_at, &compared)?,
        ..Default::default()
    };
    let at = at.field("typed_per_filter_config");
    for (name, config) in configs {
        match name.as_str() {
            CORS_FILTER => beside.cors = Some(cors(at, unpack(&at, &config)?)?),
            SESSION_FILTER => {
                let config = unpack(&at, &config)?;
                beside.session = Some(stateful(at, config, of_client)?);
            }
            other => {
                return Err(at.invalid(format!("`{other}` is not supported by this sidecar")));
            }
        }
    }
    if let Some(session) = &mut beside.session {
        session.idle = seconds(&words_at, &idle)?;
        if session.carrier == Carrier::Header {
            session.absolute = seconds(&words_at, &absolute)?;
        }
    }
    Ok(beside)
}

/// As [`crate::encode`] writes it: times in ns, attempts, and then paths.
fn hedging(at: &At<'_>, text: &str) -> Result<Option<Hedging>, DecodeError> {
    if text.is_empty() {
        return Ok(None);
    }
    let mut words = text.split(' ');
    let mut number = || words.next().and_then(|word| word.parse::<u64>().ok());
    let (delay, extra) = (number(), number());
    let delay = delay.map(Duration::from_nanos).filter(|d| !d.is_zero());
    let extra = extra.and_then(|extra| u32::try_from(extra).ok());
    let extra = extra.filter(|extra| (1..=HEDGES_MAX).contains(extra));
    let grpc: Vec<String> = words.map(str::to_owned).collect();
    let are_paths = grpc.len() <= HEDGED_METHODS_MAX && grpc.iter().all(|p| p.starts_with('/'));
    match (delay, extra) {
        (Some(delay), Some(extra_max)) if are_paths => Ok(Some(Hedging {
            delay,
            extra_max,
            grpc,
        })),
        _ => Err(at.invalid(format!("`{text}` says no hedging"))),
    }
}

/// As [`crate::encode`] writes it.
fn compare(at: &At<'_>, text: &str) -> Result<Option<Compare>, DecodeError> {
    match text.split_once(' ') {
        None if text.is_empty() => Ok(None),
        Some((COMPARED, ignored)) => Compare::parse(ignored)
            .map(Some)
            .map_err(|why| at.invalid(why)),
        _ => Err(at.invalid(format!("`{text}` says nothing of comparing"))),
    }
}

fn one_word(at: &At<'_>, text: &str, word: &str) -> Result<bool, DecodeError> {
    match text {
        "" => Ok(false),
        text if text == word => Ok(true),
        text => Err(at.invalid(format!("`{text}` is not `{word}`"))),
    }
}

fn seconds(at: &At<'_>, text: &str) -> Result<Option<Duration>, DecodeError> {
    if text.is_empty() {
        return Ok(None);
    }
    let seconds = text.parse().ok().filter(|seconds| *seconds > 0);
    let seconds = seconds.ok_or_else(|| at.invalid(format!("`{text}` is no number of seconds")))?;
    Ok(Some(Duration::from_secs(seconds)))
}

pub(super) fn mirror(at: At<'_>, message: RequestMirrorPolicy) -> Result<Mirror, DecodeError> {
    let RequestMirrorPolicy {
        cluster,
        cluster_header,
        runtime_fraction,
        trace_sampled,
        disable_shadow_host_suffix_append: _, // nothing is appended here
        request_headers_mutations,
        host_rewrite_literal,
    } = message;
    refuse!(at; cluster_header, trace_sampled, request_headers_mutations, host_rewrite_literal);
    let per_million = match runtime_fraction {
        None => MILLION,
        Some(core_v3::RuntimeFractionalPercent {
            default_value,
            runtime_key: _, // there is no runtime
        }) => {
            let at = at.field("runtime_fraction");
            let share = default_value.ok_or_else(|| at.field("default_value").missing())?;
            let unit = match DenominatorType::try_from(share.denominator) {
                Ok(DenominatorType::Hundred) => MILLION / 100,
                Ok(DenominatorType::TenThousand) => MILLION / 10_000,
                Ok(DenominatorType::Million) => 1,
                Err(_) => return Err(at.field("denominator").unsupported()),
            };
            share.numerator.saturating_mul(unit).min(MILLION)
        }
    };
    Ok(Mirror {
        cluster: cluster_name(&at.field("cluster"), &cluster)?,
        per_million,
    })
}

fn cors(at: At<'_>, message: CorsPolicy) -> Result<Cors, DecodeError> {
    let ours = CorsPolicy {
        forward_not_matching_preflights: Some(false),
        ..Default::default()
    };
    let CorsPolicy {
        allow_origin_string_match: origins,
        allow_methods,
        allow_headers,
        expose_headers,
        max_age,
        allow_credentials,
        filter_enabled,
        shadow_enabled,
        allow_private_network_access,
        forward_not_matching_preflights,
    } = message;
    refuse!(at; filter_enabled, shadow_enabled, allow_private_network_access);
    fixed!(at, ours; forward_not_matching_preflights);
    let age_at = at.field("max_age");
    let max_age = match max_age.as_str() {
        "" => 0,
        text => text
            .parse()
            .map_err(|_| age_at.invalid(format!("`{text}` is no number of seconds")))?,
    };
    Ok(Cors {
        origins: each(&at, "allow_origin_string_match", origins, string_match)?,
        credentials: allow_credentials.unwrap_or_default(),
        methods: tokens(&at.field("allow_methods"), &allow_methods)?,
        headers: tokens(&at.field("allow_headers"), &allow_headers)?,
        exposed: tokens(&at.field("expose_headers"), &expose_headers)?,
        max_age,
    })
}

fn tokens(at: &At<'_>, list: &str) -> Result<Vec<String>, DecodeError> {
    let words = list.split(',').map(str::trim).filter(|w| !w.is_empty());
    let checked = words.map(|word| match is_token(word) {
        true => Ok(word.to_owned()),
        false => Err(at.invalid(format!("`{word}` is no token"))),
    });
    checked.collect()
}

/// `of_client`: its time to live is not told to clients.
fn stateful(
    at: At<'_>,
    message: StatefulSessionPerRoute,
    of_client: bool,
) -> Result<Session, DecodeError> {
    let Some(Override::StatefulSession(session)) = message.r#override else {
        return Err(at.field("stateful_session").missing());
    };
    let at = at.field("stateful_session");
    let StatefulSession {
        session_state,
        strict,
        stat_prefix: _,                            // Envoy's own statistics
        status_on_strict_destination_not_found: _, // it is not strict
    } = session;
    refuse!(at; strict);
    let at = at.field("session_state");
    let state = session_state.and_then(|state| state.typed_config);
    let state = state.ok_or_else(|| at.missing())?;
    if state
        .type_url
        .ends_with(&HeaderBasedSessionState::full_name())
    {
        let HeaderBasedSessionState { name } = unpack(&at, &state)?;
        return Ok(Session {
            name: header_name(&at.field("name"), &name)?,
            carrier: Carrier::Header,
            absolute: None,
            idle: None,
        });
    }
    let CookieBasedSessionState { cookie } = unpack(&at, &state)?;
    let at = at.field("cookie");
    let Cookie {
        name,
        ttl,
        path,
        attributes,
    } = cookie.ok_or_else(|| at.missing())?;
    refuse!(at; attributes);
    if !matches!(path.as_str(), "" | "/") {
        return Err(at.invalid("this sidecar makes cookies for the path `/`"));
    }
    let name = nonempty(&at.field("name"), name)?;
    if !is_token(&name) {
        return Err(at.invalid(format!("`{name}` is no name of a cookie")));
    }
    let ttl = ttl.map(|ttl| duration(&at.field("ttl"), ttl)).transpose()?;
    let absolute = ttl
        .map(|ttl| Duration::from_secs(ttl.as_secs()))
        .filter(|ttl| !ttl.is_zero());
    Ok(Session {
        name,
        carrier: match absolute {
            Some(_) if !of_client => Carrier::PermanentCookie,
            _ => Carrier::Cookie,
        },
        absolute,
        idle: None,
    })
}

/// gRPC methods that may be called twice.
const HEDGED_METHODS_MAX: usize = 64;
