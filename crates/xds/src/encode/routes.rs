//! Route tables. Where Envoy's words mean something else than the model's, the form that means the same is taken; what
//! it can't say at all (a backoff that is a minimum, resets retried by method) is listed in `envoy.md` of this crate.

pub(crate) mod beside;
pub(crate) mod transcode;

use std::fmt::Write as _;
use std::time::Duration;

use phalanx_model::name::INVALID_BACKEND;
use phalanx_model::reason::{REASON_HEADER, Reason};
use phalanx_model::resource::limit::PRIORITY_HEADER;
use phalanx_model::resource::{
    Action, Backend, Forward, HashOn, HeaderEdit, HeaderMatch, PathMatch, PathRewrite, QueryMatch,
    Redirect, RouteTable, Rule, RuleMatch, Transcoding, ValueMatch, VirtualHost,
};
use phalanx_proto::envoy::config::core::v3 as core_v3;
use phalanx_proto::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use phalanx_proto::envoy::config::route::v3 as route_v3;
use phalanx_proto::envoy::r#type::matcher::v3 as matcher_v3;

use super::duration;

/// Matches every path, for replacing it whole. Envoy's `path_rewrite` would do, but is younger and formats its value.
pub(crate) const WHOLE_PATH: &str = "^.+$";

/// What stands for no backoff: Envoy demands more than 0 and raises it to 1 ms.
pub(crate) const NO_BACKOFF: Duration = Duration::from_nanos(1);

/// RFC 9110 §9.2.2.
pub(crate) const IDEMPOTENT: [&str; 6] = ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"];

const PREVIOUS_HOSTS: &str = "envoy.retry_host_predicates.previous_hosts";
const PREVIOUS_HOSTS_TYPE: &str =
    "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate";
/// How often Envoy picks again when it picked a host that failed before.
pub(crate) const PICKS_MAX: i64 = 5;

pub(crate) fn message(table: &RouteTable) -> route_v3::RouteConfiguration {
    route_v3::RouteConfiguration {
        name: table.name.clone(),
        virtual_hosts: {
            let of_table = transcode::of_table(table);
            let hosts = table.hosts.iter().map(|of| host(of, of_table));
            hosts.collect()
        },
        typed_per_filter_config: transcode::of_table(table)
            .map(transcode::config)
            .into_iter()
            .collect(),
        ignore_port_in_host_matching: table.ignores_ports(),
        ..Default::default()
    }
}

/// The clusters it forwards to, copies included.
pub(crate) fn refs(table: &RouteTable) -> Vec<String> {
    let rules = table.hosts.iter().flat_map(|host| &host.rules);
    let forwards = rules.filter_map(|rule| match &rule.action {
        Action::Forward(forward) => Some(forward),
        Action::Redirect(_) | Action::Respond(_) => None,
    });
    let named = |forward: &Forward| {
        let backends = forward.backends.iter().filter_map(|b| b.cluster.as_ref());
        let mirrors = forward.mirrors.iter().map(|mirror| &mirror.cluster);
        let clusters = backends.chain(mirrors);
        clusters.map(ToString::to_string).collect::<Vec<_>>()
    };
    forwards.flat_map(named).collect()
}

fn host(host: &VirtualHost, of_table: Option<&Transcoding>) -> route_v3::VirtualHost {
    route_v3::VirtualHost {
        name: host.name.clone(),
        domains: host.domains.clone(),
        routes: host.rules.iter().map(|of| rule(of, of_table)).collect(),
        ..Default::default()
    }
}

fn rule(rule: &Rule, of_table: Option<&Transcoding>) -> route_v3::Route {
    use route_v3::route::Action as Sent;
    let mut response_headers = added(&rule.response_headers);
    let action = match &rule.action {
        Action::Forward(to) => Sent::Route(forward(to, &rule.matches)),
        Action::Redirect(to) => Sent::Redirect(redirect(to, &rule.matches.path)),
        Action::Respond(reason) => {
            response_headers.insert(0, set_header(REASON_HEADER, reason.as_str()));
            Sent::DirectResponse(respond(*reason))
        }
    };
    let mut request_headers = added(&rule.request_headers);
    let (mut configs, words) = match &rule.action {
        Action::Forward(to) => {
            request_headers.extend(to.priority.map(|priority| {
                let action = HeaderAppendAction::AddIfAbsent;
                header(PRIORITY_HEADER, priority.word(), action)
            }));
            (beside::configs(to), beside::words(to))
        }
        Action::Redirect(_) | Action::Respond(_) => Default::default(),
    };
    configs.extend(transcode::of_rule(&rule.action, of_table));
    route_v3::Route {
        name: rule.name.clone(),
        typed_per_filter_config: configs,
        metadata: words,
        r#match: Some(route_match(&rule.matches)),
        request_headers_to_add: request_headers,
        request_headers_to_remove: rule.request_headers.remove.clone(),
        response_headers_to_add: response_headers,
        response_headers_to_remove: rule.response_headers.remove.clone(),
        action: Some(action),
        ..Default::default()
    }
}

fn route_match(matches: &RuleMatch) -> route_v3::RouteMatch {
    use route_v3::route_match::{GrpcRouteMatchOptions, PathSpecifier};
    let path = match &matches.path {
        PathMatch::Exact(path) => PathSpecifier::Path(path.clone()),
        // Envoy takes neither `/` nor a trailing slash as a path-separated prefix.
        PathMatch::Prefix(prefix) => match whole_segments(prefix) {
            "" => PathSpecifier::Prefix("/".to_owned()),
            prefix => PathSpecifier::PathSeparatedPrefix(prefix.to_owned()),
        },
        PathMatch::Regex(pattern) => PathSpecifier::SafeRegex(regex(pattern)),
    };
    let method = matches
        .method
        .iter()
        .map(|method| header_match(":method", &ValueMatch::Exact(method.clone())));
    let headers = matches
        .headers
        .iter()
        .map(|HeaderMatch { name, value }| header_match(name, value));
    route_v3::RouteMatch {
        headers: method.chain(headers).collect(),
        query_parameters: matches.query.iter().map(query_match).collect(),
        grpc: matches.grpc.then_some(GrpcRouteMatchOptions {}),
        path_specifier: Some(path),
        ..Default::default()
    }
}

fn header_match(name: &str, value: &ValueMatch) -> route_v3::HeaderMatcher {
    use route_v3::header_matcher::HeaderMatchSpecifier;
    route_v3::HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(string_match(value))),
        ..Default::default()
    }
}

fn query_match(query: &QueryMatch) -> route_v3::QueryParameterMatcher {
    use route_v3::query_parameter_matcher::QueryParameterMatchSpecifier;
    let value = match &query.value {
        ValueMatch::Exact(text) => ValueMatch::Exact(query_text(text)),
        regex @ ValueMatch::Regex(_) => regex.clone(),
    };
    route_v3::QueryParameterMatcher {
        name: query_text(&query.name),
        query_parameter_match_specifier: Some(QueryParameterMatchSpecifier::StringMatch(
            string_match(&value),
        )),
    }
}

/// The model matches decoded text, Envoy what was sent: so in the form a client sends. Only what can't stand in a query
/// as it is becomes an escape.
fn query_text(text: &str) -> String {
    let mut sent = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'"' | b'#' | b'%' | b'&' | b'<' | b'>' | ..=b' ' | 0x7f.. => {
                let _ = write!(sent, "%{byte:02X}");
            }
            _ => sent.push(byte.into()),
        }
    }
    sent
}

fn string_match(value: &ValueMatch) -> matcher_v3::StringMatcher {
    use matcher_v3::string_matcher::MatchPattern;
    let pattern = match value {
        ValueMatch::Exact(text) => MatchPattern::Exact(text.clone()),
        ValueMatch::Regex(pattern) => MatchPattern::SafeRegex(regex(pattern)),
    };
    matcher_v3::StringMatcher {
        match_pattern: Some(pattern),
        ..Default::default()
    }
}

fn regex(pattern: &str) -> matcher_v3::RegexMatcher {
    matcher_v3::RegexMatcher {
        regex: pattern.to_owned(),
        ..Default::default()
    }
}

fn forward(to: &Forward, matches: &RuleMatch) -> route_v3::RouteAction {
    use route_v3::route_action::{
        ClusterNotFoundResponseCode, ClusterSpecifier, HostRewriteSpecifier,
    };
    let clusters = match to.backends.as_slice() {
        // The short form has no place for a weight or for edits.
        [only]
            if only.weight == 1
                && only.request_headers.is_empty()
                && only.response_headers.is_empty() =>
        {
            ClusterSpecifier::Cluster(cluster_name(only))
        }
        several => ClusterSpecifier::WeightedClusters(route_v3::WeightedCluster {
            clusters: several.iter().map(cluster_weight).collect(),
            ..Default::default()
        }),
    };
    // It holds for every cluster of the route, so it is only set where a backend is known not to exist.
    let not_found = match to.backends.iter().any(|backend| backend.cluster.is_none()) {
        true => ClusterNotFoundResponseCode::InternalServerError,
        false => ClusterNotFoundResponseCode::ServiceUnavailable,
    };
    let mut action = route_v3::RouteAction {
        cluster_not_found_response_code: not_found.into(),
        // Explicit, because Envoy reads a missing one as 15 s.
        timeout: Some(duration(to.request_timeout.unwrap_or(Duration::ZERO))),
        retry_policy: Some(retry_policy(to, matches)),
        hedge_policy: beside::hedge_policy(to, matches),
        hash_policy: to.hash_on.iter().map(hash_policy).collect(),
        request_mirror_policies: beside::mirrors(to),
        cluster_specifier: Some(clusters),
        host_rewrite_specifier: to
            .rewrite
            .authority
            .clone()
            .map(HostRewriteSpecifier::HostRewriteLiteral),
        ..Default::default()
    };
    match &to.rewrite.path {
        None => {}
        Some(PathRewrite::Full(path)) => action.regex_rewrite = Some(replace(WHOLE_PATH, path)),
        Some(PathRewrite::Prefix(prefix)) => match prefix_rewrite(&matches.path, prefix) {
            PrefixRewrite::Literal(prefix) => action.prefix_rewrite = prefix,
            PrefixRewrite::Removal(pattern) => action.regex_rewrite = Some(replace(&pattern, "/")),
        },
    }
    action
}

/// Of the connection Envoy takes the address that `x-forwarded-for` ends with, where there is one.
fn hash_policy(on: &HashOn) -> route_v3::route_action::HashPolicy {
    use route_v3::route_action::hash_policy::{
        ConnectionProperties, Cookie, Header, PolicySpecifier,
    };
    let specifier = match on {
        HashOn::Header(name) => PolicySpecifier::Header(Header {
            header_name: name.clone(),
            regex_rewrite: None,
        }),
        // With a time to live, if of none, Envoy makes what is missing.
        HashOn::Cookie(name) => PolicySpecifier::Cookie(Cookie {
            name: name.clone(),
            ttl: Some(duration(Duration::ZERO)),
            path: "/".to_owned(),
            attributes: Vec::new(),
        }),
        HashOn::SourceIp => {
            PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true })
        }
    };
    route_v3::route_action::HashPolicy {
        terminal: false,
        policy_specifier: Some(specifier),
    }
}

fn cluster_name(backend: &Backend) -> String {
    backend
        .cluster
        .as_ref()
        .map_or_else(|| INVALID_BACKEND.to_owned(), ToString::to_string)
}

/// Its header edits come before its rule's: Envoy has no other order.
fn cluster_weight(backend: &Backend) -> route_v3::weighted_cluster::ClusterWeight {
    route_v3::weighted_cluster::ClusterWeight {
        name: cluster_name(backend),
        weight: Some(backend.weight),
        request_headers_to_add: added(&backend.request_headers),
        request_headers_to_remove: backend.request_headers.remove.clone(),
        response_headers_to_add: added(&backend.response_headers),
        response_headers_to_remove: backend.response_headers.remove.clone(),
        ..Default::default()
    }
}

/// Present even without retries: it carries the deadline of an attempt.
fn retry_policy(to: &Forward, matches: &RuleMatch) -> route_v3::RetryPolicy {
    let retry = &to.retry;
    let backoff = if retry.backoff.is_zero() {
        NO_BACKOFF
    } else {
        retry.backoff
    };
    let picks_again = retry.attempts > 0;
    route_v3::RetryPolicy {
        retry_on: retry_on(retry.attempts, &retry.codes, matches.method.as_deref()),
        num_retries: Some(retry.attempts),
        per_try_timeout: beside::hedge_delay(to, matches)
            .or(to.attempt_timeout)
            .map(duration),
        retry_host_predicate: if picks_again {
            vec![previous_hosts()]
        } else {
            Vec::new()
        },
        host_selection_retry_max_attempts: if picks_again { PICKS_MAX } else { 0 },
        retriable_status_codes: retry.codes.iter().map(|code| u32::from(*code)).collect(),
        retry_back_off: Some(route_v3::retry_policy::RetryBackOff {
            base_interval: Some(duration(backoff)),
            max_interval: None,
        }),
        ..Default::default()
    }
}

/// Envoy can't tell methods apart here. An attempt that never reached the application is always repeated; one that was
/// reset later only where the rule's own method is idempotent or a document asked for retries by code.
pub(crate) fn retry_on(attempts: u32, codes: &[u16], method: Option<&str>) -> String {
    if attempts == 0 {
        return String::new();
    }
    let mut on = "connect-failure,refused-stream,reset-before-request".to_owned();
    if !codes.is_empty() || method.is_some_and(|method| IDEMPOTENT.contains(&method)) {
        on.push_str(",reset");
    }
    if !codes.is_empty() {
        on.push_str(",retriable-status-codes");
    }
    on
}

pub(crate) fn previous_hosts() -> route_v3::retry_policy::RetryHostPredicate {
    use route_v3::retry_policy::retry_host_predicate::ConfigType;
    let config = prost_types::Any {
        type_url: PREVIOUS_HOSTS_TYPE.to_owned(),
        value: Vec::new(),
    };
    route_v3::retry_policy::RetryHostPredicate {
        name: PREVIOUS_HOSTS.to_owned(),
        config_type: Some(ConfigType::TypedConfig(config)),
    }
}

fn redirect(to: &Redirect, matched: &PathMatch) -> route_v3::RedirectAction {
    use route_v3::redirect_action::{
        PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier,
    };
    let code = match to.status {
        301 => RedirectResponseCode::MovedPermanently,
        303 => RedirectResponseCode::SeeOther,
        307 => RedirectResponseCode::TemporaryRedirect,
        308 => RedirectResponseCode::PermanentRedirect,
        _ => RedirectResponseCode::Found,
    };
    let path = to.path.as_ref().map(|rewrite| match rewrite {
        PathRewrite::Full(path) => PathRewriteSpecifier::PathRedirect(path.clone()),
        PathRewrite::Prefix(prefix) => match prefix_rewrite(matched, prefix) {
            PrefixRewrite::Literal(prefix) => PathRewriteSpecifier::PrefixRewrite(prefix),
            PrefixRewrite::Removal(pattern) => {
                PathRewriteSpecifier::RegexRewrite(replace(&pattern, "/"))
            }
        },
    });
    route_v3::RedirectAction {
        host_redirect: to.hostname.clone().unwrap_or_default(),
        port_redirect: to.port.map_or(0, u32::from),
        response_code: code.into(),
        scheme_rewrite_specifier: to
            .scheme
            .clone()
            .map(SchemeRewriteSpecifier::SchemeRedirect),
        path_rewrite_specifier: path,
        ..Default::default()
    }
}

fn respond(reason: Reason) -> route_v3::DirectResponseAction {
    route_v3::DirectResponseAction {
        status: reason.http_status().into(),
        ..Default::default()
    }
}

enum PrefixRewrite {
    Literal(String),
    Removal(String),
}

/// Envoy swaps text, the model swaps segments: `/a` → `/` would make `//b` of `/a/b`, and `/` → `/x` would make `/xb`
/// of `/b`.
fn prefix_rewrite(matched: &PathMatch, to: &str) -> PrefixRewrite {
    let to = whole_segments(to);
    match matched {
        PathMatch::Prefix(prefix) => match (whole_segments(prefix), to) {
            ("", _) => PrefixRewrite::Literal(format!("{to}/")),
            (prefix, "") => PrefixRewrite::Removal(removal(prefix)),
            _ => PrefixRewrite::Literal(to.to_owned()),
        },
        // Documents with such a rewrite are refused at the door.
        PathMatch::Exact(_) | PathMatch::Regex(_) if to.is_empty() => {
            PrefixRewrite::Literal("/".to_owned())
        }
        PathMatch::Exact(_) | PathMatch::Regex(_) => PrefixRewrite::Literal(to.to_owned()),
    }
}

/// `/a/` → `/a`, `/` → nothing.
fn whole_segments(prefix: &str) -> &str {
    prefix.trim_end_matches('/')
}

/// Matches `prefix` and the slash after it, in RE2's words.
pub(crate) fn removal(prefix: &str) -> String {
    let mut pattern = String::from("^");
    for c in prefix.chars() {
        if c.is_ascii() && r"\.+*?()|[]{}^$".contains(c) {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern.push_str("/?");
    pattern
}

fn replace(pattern: &str, with: &str) -> matcher_v3::RegexMatchAndSubstitute {
    // A backslash begins a reference to a group.
    matcher_v3::RegexMatchAndSubstitute {
        pattern: Some(regex(pattern)),
        substitution: with.replace('\\', r"\\"),
    }
}

/// What is set, then what is added. Envoy removes before both, and sets before it adds.
fn added(edit: &HeaderEdit) -> Vec<core_v3::HeaderValueOption> {
    let set = edit.set.iter().map(|(name, value)| set_header(name, value));
    let add = edit
        .add
        .iter()
        .map(|(name, value)| header(name, value, HeaderAppendAction::AppendIfExistsOrAdd));
    set.chain(add).collect()
}

pub(crate) fn set_header(name: &str, value: &str) -> core_v3::HeaderValueOption {
    header(name, value, HeaderAppendAction::OverwriteIfExistsOrAdd)
}

fn header(name: &str, value: &str, action: HeaderAppendAction) -> core_v3::HeaderValueOption {
    core_v3::HeaderValueOption {
        header: Some(core_v3::HeaderValue {
            key: name.to_owned(),
            value: literal(value),
            ..Default::default()
        }),
        append_action: action.into(),
        keep_empty_value: value.is_empty(),
        ..Default::default()
    }
}

/// Envoy formats header values: `%` begins a command, `%%` is the character.
fn literal(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for part in value.split_inclusive('%') {
        let _ = match part.strip_suffix('%') {
            Some(before) => write!(text, "{before}%%"),
            None => write!(text, "{part}"),
        };
    }
    text
}
