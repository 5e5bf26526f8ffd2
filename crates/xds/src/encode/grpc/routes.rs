//! Rules for gRPC clients, and which of them they could not follow.
//!
//! A call is always a POST without query, to `/service/method`. Conditions that follow from it are left out, a rule whose
//! conditions contradict it never matches and is left out whole; so nothing changes for the call.

use std::collections::BTreeMap;
use std::time::Duration;

use phalanx_model::name::INVALID_BACKEND;
use phalanx_model::resource::{
    Action, Backend, Forward, HeaderMatch, PathMatch, Retry, RouteTable, Rule, RuleMatch,
    ValueMatch, VirtualHost,
};
use phalanx_proto::envoy::config::route::v3 as route_v3;
use phalanx_proto::envoy::r#type::matcher::v3 as matcher_v3;

use super::super::duration;

/// What a client can't do that a rule asks for; the rule then leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Refusal {
    #[error("edit headers")]
    HeaderEdit,
    #[error("rewrite paths or authorities")]
    Rewrite,
    #[error("say how urgent its calls are")]
    Priority,
    #[error("be redirected")]
    Redirect,
    #[error("match the transport's own headers")]
    HiddenHeader,
}

/// Why a rule can't be followed; none if it can, or if no call ever meets it.
pub fn refusal(rule: &Rule) -> Option<Refusal> {
    if !is_met(&rule.matches) {
        return None;
    }
    if rule.matches.headers.iter().any(is_hidden) {
        return Some(Refusal::HiddenHeader);
    }
    let edits = !rule.request_headers.is_empty() || !rule.response_headers.is_empty();
    match &rule.action {
        Action::Redirect(_) => Some(Refusal::Redirect),
        Action::Respond(_) => None,
        Action::Forward(to) => {
            let is_edited =
                |b: &Backend| !b.request_headers.is_empty() || !b.response_headers.is_empty();
            if edits || to.backends.iter().any(is_edited) {
                Some(Refusal::HeaderEdit)
            } else if to.priority.is_some() {
                Some(Refusal::Priority)
            } else if to.rewrite.authority.is_some() || to.rewrite.path.is_some() {
                Some(Refusal::Rewrite)
            } else {
                None
            }
        }
    }
}

/// What a rule that is followed loses: it changes when a call is tried again or given up and which endpoint gets it, not
/// what service it goes to.
pub fn losses(rule: &Rule) -> Vec<&'static str> {
    let Action::Forward(to) = &rule.action else {
        return Vec::new();
    };
    let mut losses = Vec::new();
    if to.attempt_timeout.is_some() {
        losses.push("a deadline per attempt (backendRequest)");
    }
    if to.hash_on.is_some() {
        losses.push("its key (hashOn): endpoints are taken in turn");
    }
    if !to.mirrors.is_empty() {
        losses.push("its mirrors: nothing is copied");
    }
    if to.session.is_some() {
        losses.push("its sessions: each call may go to another endpoint");
    }
    if to.hedging.is_some() {
        losses.push("hedging: no call is sent twice");
    }
    let codes = &to.retry.codes;
    if to.retry.attempts > 0 && codes.iter().any(|code| status(*code).is_empty()) {
        losses.push("retries of other statuses than 429, 499, 500, 502, 503 and 504");
    }
    losses
}

pub(super) fn message(table: &RouteTable) -> route_v3::RouteConfiguration {
    route_v3::RouteConfiguration {
        name: table.name.clone(),
        virtual_hosts: table.hosts.iter().map(host).collect(),
        ..Default::default()
    }
}

/// The clusters it leads to.
pub(super) fn refs(table: &RouteTable) -> Vec<String> {
    let of_host = |host: &VirtualHost| {
        let met = host.rules.iter().filter(|rule| is_met(&rule.matches));
        let mut names: Vec<_> = met.flat_map(|rule| clusters(rule).into_keys()).collect();
        if names.is_empty() {
            names.push(INVALID_BACKEND.to_owned());
        }
        names
    };
    table.hosts.iter().flat_map(of_host).collect()
}

/// What a server's own listener has in place of a table: it takes every call by itself.
pub(super) fn own(name: &str) -> route_v3::RouteConfiguration {
    route_v3::RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: vec![route_v3::VirtualHost {
            name: name.to_owned(),
            domains: vec!["*".to_owned()],
            // At a server it means that the call is its own; a client of grpc-js ends its process over one.
            routes: vec![any_path(route_v3::route::Action::NonForwardingAction(
                route_v3::NonForwardingAction {},
            ))],
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn host(host: &VirtualHost) -> route_v3::VirtualHost {
    let mut routes: Vec<_> = host.rules.iter().flat_map(rule).collect();
    if routes.is_empty() {
        routes.push(last());
    }
    route_v3::VirtualHost {
        name: host.name.clone(),
        domains: host.domains.clone(),
        routes,
        ..Default::default()
    }
}

/// For a host without rules, since clients may take one without routes for none.
fn last() -> route_v3::Route {
    let nowhere = route_v3::RouteAction {
        cluster_specifier: Some(route_v3::route_action::ClusterSpecifier::Cluster(
            INVALID_BACKEND.to_owned(),
        )),
        ..Default::default()
    };
    any_path(route_v3::route::Action::Route(nowhere))
}

fn any_path(action: route_v3::route::Action) -> route_v3::Route {
    route_v3::Route {
        r#match: Some(route_v3::RouteMatch {
            path_specifier: Some(route_v3::route_match::PathSpecifier::Prefix(String::new())),
            ..Default::default()
        }),
        action: Some(action),
        ..Default::default()
    }
}

/// One route per form of the path.
fn rule(rule: &Rule) -> Vec<route_v3::Route> {
    if !is_met(&rule.matches) {
        return Vec::new();
    }
    let action = action(rule);
    let visible = rule.matches.headers.iter().filter(|h| !is_hidden(h));
    let headers: Vec<_> = visible.map(header_match).collect();
    let route = |path| route_v3::Route {
        name: rule.name.clone(),
        r#match: Some(route_v3::RouteMatch {
            headers: headers.clone(),
            path_specifier: Some(path),
            ..Default::default()
        }),
        action: Some(route_v3::route::Action::Route(action.clone())),
        ..Default::default()
    };
    paths(&rule.matches.path).into_iter().map(route).collect()
}

fn is_met(matches: &RuleMatch) -> bool {
    matches.query.is_empty() && matches.method.as_deref().is_none_or(|m| m == "POST")
}

/// What clients add below the place where they route, or never show there.
fn is_hidden(header: &HeaderMatch) -> bool {
    const HIDDEN: [&str; 5] = ["user-agent", "te", "host", "content-length", "connection"];
    let name = header.name.as_str();
    HIDDEN.contains(&name) || name.starts_with("grpc-") || name.ends_with("-bin")
}

/// A prefix of whole segments is no form that clients know: so the path itself, and what follows a slash.
fn paths(path: &PathMatch) -> Vec<route_v3::route_match::PathSpecifier> {
    use route_v3::route_match::PathSpecifier;
    match path {
        PathMatch::Exact(path) => vec![PathSpecifier::Path(path.clone())],
        PathMatch::Regex(pattern) => vec![PathSpecifier::SafeRegex(regex(pattern))],
        PathMatch::Prefix(prefix) => match prefix.trim_end_matches('/') {
            "" => vec![PathSpecifier::Prefix(String::new())],
            prefix => vec![
                PathSpecifier::Path(prefix.to_owned()),
                PathSpecifier::Prefix(format!("{prefix}/")),
            ],
        },
    }
}

pub(super) fn header_match(header: &HeaderMatch) -> route_v3::HeaderMatcher {
    use route_v3::header_matcher::HeaderMatchSpecifier;
    let matcher = string_match(&header.value);
    route_v3::HeaderMatcher {
        name: header.name.clone(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(matcher)),
        ..Default::default()
    }
}

pub(super) fn string_match(value: &ValueMatch) -> matcher_v3::StringMatcher {
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

pub(super) fn regex(pattern: &str) -> matcher_v3::RegexMatcher {
    matcher_v3::RegexMatcher {
        regex: pattern.to_owned(),
        ..Default::default()
    }
}

fn action(rule: &Rule) -> route_v3::RouteAction {
    use route_v3::route_action::{ClusterSpecifier, MaxStreamDuration};
    let clusters = clusters(rule);
    let specifier = match clusters.first_key_value() {
        Some((only, _)) if clusters.len() == 1 => ClusterSpecifier::Cluster(only.clone()),
        _ => ClusterSpecifier::WeightedClusters(route_v3::WeightedCluster {
            clusters: clusters.into_iter().map(cluster_weight).collect(),
            ..Default::default()
        }),
    };
    let mut action = route_v3::RouteAction {
        cluster_specifier: Some(specifier),
        ..Default::default()
    };
    if let Action::Forward(to) = &rule.action {
        let limit = to.request_timeout.filter(|limit| !limit.is_zero());
        action.max_stream_duration = limit.map(|limit| MaxStreamDuration {
            max_stream_duration: Some(duration(limit)),
            ..Default::default()
        });
        action.retry_policy = retry_policy(&to.retry);
    }
    action
}

/// Each cluster once, with its weight above 0; never empty.
fn clusters(rule: &Rule) -> BTreeMap<String, u32> {
    let nowhere = || BTreeMap::from([(INVALID_BACKEND.to_owned(), 1)]);
    match &rule.action {
        Action::Forward(to) if refusal(rule).is_none() => {
            let weights = weights(to);
            if weights.is_empty() {
                nowhere()
            } else {
                weights
            }
        }
        _ => nowhere(),
    }
}

fn weights(to: &Forward) -> BTreeMap<String, u32> {
    let mut weights = BTreeMap::<String, u32>::new();
    for backend in to.backends.iter().filter(|backend| backend.weight > 0) {
        let name = backend
            .cluster
            .as_ref()
            .map_or_else(|| INVALID_BACKEND.to_owned(), ToString::to_string);
        let weight = weights.entry(name).or_default();
        *weight = weight.saturating_add(backend.weight);
    }
    weights
}

fn cluster_weight((name, weight): (String, u32)) -> route_v3::weighted_cluster::ClusterWeight {
    route_v3::weighted_cluster::ClusterWeight {
        name,
        weight: Some(weight),
        ..Default::default()
    }
}

/// Only where a document asked for retries by status: calls that never left are repeated by the client itself.
fn retry_policy(retry: &Retry) -> Option<route_v3::RetryPolicy> {
    let mut statuses: Vec<&str> = retry
        .codes
        .iter()
        .flat_map(|c| status(*c))
        .copied()
        .collect();
    statuses.sort_unstable();
    statuses.dedup();
    if retry.attempts == 0 || statuses.is_empty() {
        return None;
    }
    Some(route_v3::RetryPolicy {
        retry_on: statuses.join(","),
        num_retries: Some(retry.attempts),
        retry_back_off: Some(route_v3::retry_policy::RetryBackOff {
            base_interval: Some(duration(retry.backoff.max(BACKOFF_MIN))),
            max_interval: None,
        }),
        ..Default::default()
    })
}

/// The gRPC statuses that a call ends with where HTTP would have said this: gRPC's own mapping for answers of foreign
/// proxies, and the mesh's for its own.
fn status(code: u16) -> &'static [&'static str] {
    match code {
        429 => &["resource-exhausted", "unavailable"],
        499 => &["cancelled"],
        500 => &["internal"],
        502 | 503 => &["unavailable"],
        504 => &["deadline-exceeded", "unavailable"],
        _ => &[],
    }
}

/// Clients count in whole milliseconds, and refuse 0.
const BACKOFF_MIN: Duration = Duration::from_millis(1);
