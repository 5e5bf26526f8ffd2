//! What a route does with a request: forward it, or redirect its client.

use std::time::Duration;

use phalanx_model::name::INVALID_BACKEND;
use phalanx_model::resource::limit::Priority;
use phalanx_model::resource::{
    Backend, Forward, HashOn, PathMatch, PathRewrite, Redirect, Retry, Rewrite, RuleMatch,
};
use phalanx_proto::envoy::config::route::v3 as route_v3;
use phalanx_proto::envoy::r#type::matcher::v3 as matcher_v3;

use super::super::DecodeError;
use super::super::field::{
    At, cluster_name, duration, each, fixed, header_name, nonempty, positive, refuse,
};
use super::beside::{self, Beside};
use super::{REQUEST, RESPONSE, edit};
use crate::encode::routes::beside as encoded;
use crate::encode::routes::{NO_BACKOFF, PICKS_MAX, WHOLE_PATH, previous_hosts, removal, retry_on};

/// Envoy's, where a route has none.
const ROUTE_TIMEOUT: Duration = Duration::from_secs(15);

#[expect(deprecated, reason = "every field is named")]
pub(super) fn forward(
    at: At<'_>,
    message: route_v3::RouteAction,
    matches: &RuleMatch,
    beside: Beside,
    urgency: Option<Priority>,
) -> Result<Forward, DecodeError> {
    use route_v3::route_action::{
        ClusterNotFoundResponseCode, ClusterSpecifier, HostRewriteSpecifier,
    };
    let route_v3::RouteAction {
        cluster_not_found_response_code,
        metadata_match,
        prefix_rewrite,
        regex_rewrite,
        path_rewrite_policy,
        path_rewrite,
        append_x_forwarded_host,
        timeout,
        idle_timeout,
        flush_timeout,
        early_data_policy,
        retry_policy,
        retry_policy_typed_config,
        request_mirror_policies,
        priority,
        rate_limits,
        include_vh_rate_limits: _, // there are none
        hash_policy,
        cors,
        max_grpc_timeout,
        grpc_timeout_offset,
        upgrade_configs,
        internal_redirect_policy,
        internal_redirect_action,
        max_internal_redirects: _, // there are none
        hedge_policy,
        max_stream_duration,
        cluster_specifier,
        host_rewrite_specifier,
    } = message;
    refuse!(at;
        metadata_match, path_rewrite_policy, path_rewrite, append_x_forwarded_host, idle_timeout, flush_timeout,
        early_data_policy, retry_policy_typed_config, priority, rate_limits,
        cors, max_grpc_timeout, grpc_timeout_offset, upgrade_configs, internal_redirect_policy,
        internal_redirect_action, max_stream_duration,
    );
    let backends = match cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => vec![Backend {
            cluster: backend_cluster(&at.field("cluster"), &name)?,
            weight: 1,
            request_headers: Default::default(),
            response_headers: Default::default(),
        }],
        Some(ClusterSpecifier::WeightedClusters(clusters)) => {
            weighted(at.field("weighted_clusters"), clusters)?
        }
        Some(_) => {
            return Err(at
                .field("cluster_specifier")
                .invalid("only cluster and weighted_clusters are supported"));
        }
        None => return Err(at.field("cluster").missing()),
    };
    let not_found = match backends.iter().any(|backend| backend.cluster.is_none()) {
        true => ClusterNotFoundResponseCode::InternalServerError,
        false => ClusterNotFoundResponseCode::ServiceUnavailable,
    };
    if cluster_not_found_response_code != i32::from(not_found) {
        let why = format!("must be {} with these clusters", not_found.as_str_name());
        return Err(at.field("cluster_not_found_response_code").invalid(why));
    }
    let authority = match host_rewrite_specifier {
        None => None,
        Some(HostRewriteSpecifier::HostRewriteLiteral(authority)) => {
            Some(nonempty(&at.field("host_rewrite_literal"), authority)?)
        }
        Some(_) => {
            return Err(at
                .field("host_rewrite_specifier")
                .invalid("only host_rewrite_literal is supported"));
        }
    };
    let path = match (prefix_rewrite.as_str(), regex_rewrite) {
        ("", None) => None,
        ("", Some(rewrite)) => Some(path_regex(
            &at.field("regex_rewrite"),
            &matches.path,
            rewrite,
        )?),
        (prefix, None) => Some(path_prefix(
            &at.field("prefix_rewrite"),
            &matches.path,
            prefix,
        )?),
        (_, Some(_)) => return Err(at.field("regex_rewrite").invalid("excludes prefix_rewrite")),
    };
    let (retry, attempt_timeout) = retry(at.field("retry_policy"), retry_policy, matches)?;
    let per_try = attempt_timeout;
    let attempt_timeout = attempt_timeout.filter(|_| hedge_policy.is_none());
    let request_timeout = match timeout {
        None => Some(ROUTE_TIMEOUT),
        Some(timeout) => Some(duration(&at.field("timeout"), timeout)?)
            .filter(|timeout| !timeout.is_zero() || beside.unlimited),
    };
    let mirrors = each(
        &at,
        "request_mirror_policies",
        request_mirror_policies,
        beside::mirror,
    )?;
    let forward = Forward {
        backends,
        rewrite: Rewrite { authority, path },
        request_timeout,
        attempt_timeout,
        retry,
        hash_on: hash_on(at.field("hash_policy"), hash_policy)?,
        mirrors,
        compare: beside.compare,
        session: beside.session,
        cors: beside.cors,
        hedging: beside.hedging,
        priority: urgency,
        transcoding: None, // a table may say it for all its rules
    };
    let said = encoded::hedge_policy(&forward, matches);
    if hedge_policy != said
        || (said.is_some() && per_try != encoded::hedge_delay(&forward, matches))
    {
        let why = "only where, and as, this sidecar hedges by the route's metadata";
        return Err(at.field("hedge_policy").invalid(why));
    }
    Ok(forward)
}

/// One key at most.
fn hash_on(
    at: At<'_>,
    policies: Vec<route_v3::route_action::HashPolicy>,
) -> Result<Option<HashOn>, DecodeError> {
    use route_v3::route_action::HashPolicy;
    use route_v3::route_action::hash_policy::{
        ConnectionProperties, Cookie, Header, PolicySpecifier,
    };
    let mut policies = policies.into_iter();
    let Some(HashPolicy {
        terminal: _, // there is none after it
        policy_specifier,
    }) = policies.next()
    else {
        return Ok(None);
    };
    if policies.next().is_some() {
        return Err(at.invalid("this sidecar takes one key, not several together"));
    }
    match policy_specifier {
        Some(PolicySpecifier::Header(Header {
            header_name: name,
            regex_rewrite,
        })) => {
            let at = at.field("header");
            refuse!(at; regex_rewrite);
            let name = header_name(&at.field("header_name"), &name)?;
            Ok(Some(HashOn::Header(name)))
        }
        Some(PolicySpecifier::Cookie(Cookie {
            name,
            ttl,
            path,
            attributes,
        })) => {
            let at = at.field("cookie");
            refuse!(at; attributes);
            if ttl != Some(prost_types::Duration::default()) || path != "/" {
                return Err(at.invalid("this sidecar makes it for a session, and for the path `/`"));
            }
            let name = nonempty(&at.field("name"), name)?;
            Ok(Some(HashOn::Cookie(name)))
        }
        Some(PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true })) => {
            Ok(Some(HashOn::SourceIp))
        }
        _ => Err(at.invalid("only header, cookie and source_ip are supported")),
    }
}

fn backend_cluster(
    at: &At<'_>,
    name: &str,
) -> Result<Option<phalanx_model::ClusterName>, DecodeError> {
    if name == INVALID_BACKEND {
        Ok(None)
    } else {
        cluster_name(at, name).map(Some)
    }
}

#[expect(deprecated, reason = "every field is named")]
fn weighted(at: At<'_>, message: route_v3::WeightedCluster) -> Result<Vec<Backend>, DecodeError> {
    let route_v3::WeightedCluster {
        clusters,
        total_weight,
        runtime_key_prefix,
        random_value_specifier,
    } = message;
    refuse!(at; total_weight, runtime_key_prefix, random_value_specifier);
    let backends = each(&at, "clusters", clusters, backend)?;
    let total: u64 = backends
        .iter()
        .map(|backend| u64::from(backend.weight))
        .sum();
    if total == 0 || total > u64::from(u32::MAX) {
        return Err(at.field("clusters").invalid(format!(
            "the weights make {total}, which is not from 1 to {}",
            u32::MAX
        )));
    }
    Ok(backends)
}

fn backend(
    at: At<'_>,
    message: route_v3::weighted_cluster::ClusterWeight,
) -> Result<Backend, DecodeError> {
    let route_v3::weighted_cluster::ClusterWeight {
        name,
        cluster_header,
        weight,
        metadata_match,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        typed_per_filter_config,
        host_rewrite_specifier,
    } = message;
    refuse!(at; cluster_header, metadata_match, typed_per_filter_config, host_rewrite_specifier);
    Ok(Backend {
        cluster: backend_cluster(&at.field("name"), &name)?,
        weight: weight.ok_or_else(|| at.field("weight").missing())?,
        request_headers: edit(
            &at,
            REQUEST,
            request_headers_to_add,
            request_headers_to_remove,
        )?,
        response_headers: edit(
            &at,
            RESPONSE,
            response_headers_to_add,
            response_headers_to_remove,
        )?,
    })
}

/// The retries, and the deadline of an attempt. Without a policy Envoy makes no retries.
fn retry(
    at: At<'_>,
    message: Option<route_v3::RetryPolicy>,
    matches: &RuleMatch,
) -> Result<(Retry, Option<Duration>), DecodeError> {
    let Some(message) = message else {
        return Ok((
            Retry {
                attempts: 0,
                ..Retry::default()
            },
            None,
        ));
    };
    let ours = route_v3::RetryPolicy {
        retry_host_predicate: vec![previous_hosts()],
        host_selection_retry_max_attempts: PICKS_MAX,
        ..Default::default()
    };
    let route_v3::RetryPolicy {
        retry_on: on,
        num_retries,
        per_try_timeout,
        per_try_idle_timeout,
        retry_priority,
        retry_host_predicate,
        retry_options_predicates,
        host_selection_retry_max_attempts,
        retriable_status_codes,
        retry_back_off,
        rate_limited_retry_back_off,
        retriable_headers,
        retriable_request_headers,
        refresh_cluster_on_retry,
    } = message;
    refuse!(at;
        per_try_idle_timeout, retry_priority, retry_options_predicates, rate_limited_retry_back_off,
        retriable_headers, retriable_request_headers, refresh_cluster_on_retry,
    );
    fixed!(at, ours; retry_host_predicate, host_selection_retry_max_attempts);
    // Without a condition nothing is ever retried, whatever the number.
    let attempts = if on.is_empty() {
        0
    } else {
        num_retries.unwrap_or(1)
    };
    let codes = each(
        &at,
        "retriable_status_codes",
        retriable_status_codes,
        status,
    )?;
    let expected = retry_on(attempts, &codes, matches.method.as_deref());
    if attempts > 0 && words(&on) != words(&expected) {
        let why = format!(
            "this sidecar has only `{expected}` (`retriable-status-codes` and `reset` with status codes)"
        );
        return Err(at.field("retry_on").invalid(why));
    }
    let backoff = match retry_back_off {
        None => Retry::default().backoff,
        Some(route_v3::retry_policy::RetryBackOff {
            base_interval,
            max_interval,
        }) => {
            let at = at.field("retry_back_off");
            refuse!(at; max_interval);
            let at = at.field("base_interval");
            let backoff = positive(&at, base_interval.ok_or_else(|| at.missing())?)?;
            if backoff == NO_BACKOFF {
                Duration::ZERO
            } else {
                backoff
            }
        }
    };
    let attempt_timeout = match per_try_timeout {
        None => None,
        Some(timeout) => Some(duration(&at.field("per_try_timeout"), timeout)?)
            .filter(|timeout| !timeout.is_zero()),
    };
    Ok((
        Retry {
            attempts,
            codes,
            backoff,
        },
        attempt_timeout,
    ))
}

fn words(list: &str) -> Vec<&str> {
    let mut words: Vec<&str> = list.split(',').map(str::trim).collect();
    words.sort_unstable();
    words.dedup();
    words
}

fn status(at: At<'_>, code: u32) -> Result<u16, DecodeError> {
    let status = u16::try_from(code)
        .ok()
        .filter(|code| (100..600).contains(code));
    status.ok_or_else(|| at.invalid(format!("{code} is no HTTP status")))
}

pub(super) fn redirect(
    at: At<'_>,
    message: route_v3::RedirectAction,
    matched: &PathMatch,
) -> Result<Redirect, DecodeError> {
    use route_v3::redirect_action::{
        PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier,
    };
    let route_v3::RedirectAction {
        host_redirect,
        port_redirect,
        response_code,
        strip_query,
        scheme_rewrite_specifier,
        path_rewrite_specifier,
    } = message;
    refuse!(at; strip_query);
    let status = match RedirectResponseCode::try_from(response_code) {
        Ok(RedirectResponseCode::MovedPermanently) => 301,
        Ok(RedirectResponseCode::Found) => 302,
        Ok(RedirectResponseCode::SeeOther) => 303,
        Ok(RedirectResponseCode::TemporaryRedirect) => 307,
        Ok(RedirectResponseCode::PermanentRedirect) => 308,
        Err(_) => return Err(at.field("response_code").unsupported()),
    };
    let scheme = match scheme_rewrite_specifier {
        None => None,
        Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => {
            Some(nonempty(&at.field("scheme_redirect"), scheme)?)
        }
        Some(SchemeRewriteSpecifier::HttpsRedirect(_)) => {
            return Err(at.field("https_redirect").unsupported());
        }
    };
    let path = match path_rewrite_specifier {
        None => None,
        Some(PathRewriteSpecifier::PathRedirect(path)) => Some(PathRewrite::Full(absolute(
            &at.field("path_redirect"),
            path,
        )?)),
        Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => {
            Some(path_prefix(&at.field("prefix_rewrite"), matched, &prefix)?)
        }
        Some(PathRewriteSpecifier::RegexRewrite(rewrite)) => {
            Some(path_regex(&at.field("regex_rewrite"), matched, rewrite)?)
        }
        Some(PathRewriteSpecifier::PathRewrite(_)) => {
            return Err(at.field("path_rewrite").unsupported());
        }
    };
    let port = u16::try_from(port_redirect)
        .map_err(|_| at.field("port_redirect").invalid("is no port"))?;
    Ok(Redirect {
        scheme,
        hostname: Some(host_redirect).filter(|host| !host.is_empty()),
        port: Some(port).filter(|port| *port > 0),
        path,
        status,
    })
}

/// Only where swapping text is the same as swapping segments.
fn path_prefix(at: &At<'_>, matched: &PathMatch, to: &str) -> Result<PathRewrite, DecodeError> {
    let PathMatch::Prefix(prefix) = matched else {
        return Err(at.invalid("only with a prefix match"));
    };
    let to = absolute(at, to.to_owned())?;
    match (prefix == "/", to.strip_suffix('/')) {
        (true, None) => Err(at.invalid("must end with `/`, as the matched prefix does")),
        (true, Some("")) => Ok(PathRewrite::Prefix(to)),
        (true, Some(bare)) if !bare.ends_with('/') => Ok(PathRewrite::Prefix(bare.to_owned())),
        (false, None) => Ok(PathRewrite::Prefix(to)),
        (_, Some(_)) => Err(at.invalid("would double a slash")),
    }
}

/// One of the two patterns that we write: the whole path, or the prefix with its slash.
fn path_regex(
    at: &At<'_>,
    matched: &PathMatch,
    rewrite: matcher_v3::RegexMatchAndSubstitute,
) -> Result<PathRewrite, DecodeError> {
    let matcher_v3::RegexMatchAndSubstitute {
        pattern,
        substitution,
    } = rewrite;
    let pattern = pattern.map(|pattern| pattern.regex).unwrap_or_default();
    if pattern == WHOLE_PATH {
        return Ok(PathRewrite::Full(absolute(
            at,
            unescaped(at, &substitution)?,
        )?));
    }
    match matched {
        PathMatch::Prefix(prefix)
            if prefix != "/" && pattern == removal(prefix) && substitution == "/" =>
        {
            Ok(PathRewrite::Prefix(substitution))
        }
        _ => Err(
            at.invalid("only the whole path or the matched prefix can be replaced by this sidecar")
        ),
    }
}

/// The text of a substitution without references to groups.
fn unescaped(at: &At<'_>, substitution: &str) -> Result<String, DecodeError> {
    let mut parts = substitution.split(r"\\");
    if parts.clone().any(|part| part.contains('\\')) {
        return Err(at
            .field("substitution")
            .invalid("references to groups are not supported by this sidecar"));
    }
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text.push('\\');
        text.push_str(part);
    }
    Ok(text)
}

fn absolute(at: &At<'_>, path: String) -> Result<String, DecodeError> {
    if path.starts_with('/') && !path.contains(['?', '#']) {
        return Ok(path);
    }
    Err(at.invalid(format!("`{path}` is no absolute path without query")))
}
