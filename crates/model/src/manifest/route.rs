//! HTTPRoute and GRPCRoute of the Gateway API, attached to Services. Bounds are those of its CRDs.

use std::collections::HashSet;
use std::time::Duration;

use super::cursor::{At, Fields};
use super::filter::{Edits, Filters, edits, filters};
use super::gateway::{hostnames, is_gateway, push};
use super::report::quoted;
use super::session::session;
use super::value::{MatchType, match_type, service_ref, value_match, without_trailing_slash};
use crate::document::{BackendRef, GatewayRef, Kind, Meta, ParentRef, Route, RouteRule};
use crate::matching::order::{GrpcName, grpc_path};
use crate::resource::{Compare, HeaderMatch, PathMatch, PathRewrite, QueryMatch, Retry, RuleMatch};

const PARENTS_MAX: usize = 32;
const RULES_MAX: usize = 16;
const MATCHES_MAX: usize = 64;
/// Of all rules together.
const MATCHES_TOTAL_MAX: usize = 128;
const BACKENDS_MAX: usize = 16;
const CONDITIONS_MAX: usize = 16;
const WEIGHT_MAX: u32 = 1_000_000;
/// Bytes of a path, query value, service or method.
const TEXT_LEN_MAX: usize = 1024;
const HEADER_VALUE_LEN_MAX: usize = 4096;
/// Ours: the Gateway API names no bound.
const ATTEMPTS_MAX: u32 = 10;
const CODES_MAX: usize = 32;
const COMPARE: &str = "phalanx.dev/compare-mirrors";
const COMPARE_IGNORE: &str = "phalanx.dev/compare-ignore";
const BACKOFF_MAX: Duration = Duration::from_secs(60);

pub(super) fn route(spec: &At<'_>, meta: Meta, kind: Kind) -> Option<Route> {
    let mut fields = spec.fields()?;
    fields.later(&["useDefaultGateways"]);
    let mut gateways = Vec::new();
    let hostnames_at = fields.get("hostnames");
    let hostnames = hostnames(&mut fields);
    let parents = fields.need("parentRefs").map_or_else(Vec::new, |at| {
        let items = at.items(PARENTS_MAX);
        at.check(!items.is_empty(), "a route has at least one parent");
        parents(&items, &meta, &mut gateways)
    });
    if let Some(at) = hostnames_at.filter(|_| gateways.is_empty()) {
        at.refuse_with::<()>(
            "hostnames are those of a Gateway, and no parent is one",
            "leave them out: a Service is called by its own names",
        );
    }
    let items = fields.get("rules").map(|at| at.items(RULES_MAX));
    let rules: Vec<RouteRule> = match &items {
        Some(items) => items
            .iter()
            .filter_map(|at| rule(at, &meta, kind))
            .collect(),
        None => vec![everything(kind)],
    };
    names_are_unique(items.as_deref().unwrap_or_default());
    if rules.iter().map(|rule| rule.matches.len()).sum::<usize>() > MATCHES_TOTAL_MAX {
        fields.at.refuse::<()>(format!(
            "more than {MATCHES_TOTAL_MAX} matches in one route"
        ));
    }
    let compare = compare(&fields.at, &meta);
    if compare.is_some() && rules.iter().all(|rule| rule.mirrors.is_empty()) {
        let message = format!("{COMPARE}: no rule has a mirror");
        fields
            .at
            .refuse_with::<()>(message, "a filter of type RequestMirror makes one");
    }
    Some(Route {
        meta,
        kind,
        parents,
        gateways,
        hostnames,
        rules,
        compare,
    })
}

/// Annotations, since the Gateway API has no word for it.
fn compare(at: &At<'_>, meta: &Meta) -> Option<Compare> {
    let ignored = meta.annotations.get(COMPARE_IGNORE).map(String::as_str);
    match (meta.annotations.get(COMPARE).map(String::as_str), ignored) {
        (None | Some("false"), None) => None,
        (Some("true"), ignored) => Compare::parse(ignored.unwrap_or_default())
            .map_err(|why| at.refuse::<()>(format!("{COMPARE_IGNORE}: {why}")))
            .ok(),
        (None | Some("false"), Some(_)) => {
            at.refuse(format!("{COMPARE_IGNORE} without {COMPARE}: \"true\""))
        }
        (Some(other), _) => at.refuse(format!(
            "{COMPARE}: {} is neither true nor false",
            quoted(other)
        )),
    }
}

/// Services; Gateways go to `gateways`.
fn parents(items: &[At<'_>], meta: &Meta, gateways: &mut Vec<GatewayRef>) -> Vec<ParentRef> {
    let mut parents: Vec<ParentRef> = Vec::new();
    for (index, at) in items.iter().enumerate() {
        if is_gateway(at) {
            push(gateways, at, meta, index);
            continue;
        }
        push_parent(&mut parents, at, meta);
    }
    parents
}

/// A Service, once.
pub(super) fn push_parent(parents: &mut Vec<ParentRef>, at: &At<'_>, meta: &Meta) {
    let Some(parent) = parent(at, meta) else {
        return;
    };
    if parents.contains(&parent) {
        at.refuse::<()>("the parent stands twice in this list");
    }
    parents.push(parent);
}

fn parent(at: &At<'_>, meta: &Meta) -> Option<ParentRef> {
    let mut fields = at.fields()?;
    let service = service_ref(&mut fields, meta, "Gateway");
    let port = fields
        .get("port")
        .map_or(Some(None), |at| at.port().map(Some));
    let section = fields
        .get("sectionName")
        .map_or(Some(None), |at| at.dns_name().map(Some));
    Some(ParentRef {
        service: service?,
        port: port?,
        section: section?,
    })
}

fn names_are_unique(items: &[At<'_>]) {
    let mut seen = HashSet::new();
    for at in items {
        if at.field_text("name").is_some_and(|name| !seen.insert(name)) {
            at.refuse::<()>("another rule of this route has the same name");
        }
    }
}

/// The rule of a route that has none.
fn everything(kind: Kind) -> RouteRule {
    RouteRule {
        name: None,
        matches: vec![any_match(kind)],
        request_headers: Default::default(),
        response_headers: Default::default(),
        rewrite: Default::default(),
        redirect: None,
        backends: Vec::new(),
        mirrors: Vec::new(),
        cors: None,
        request_timeout: None,
        attempt_timeout: None,
        retry: None,
        session: None,
        priority: None,
    }
}

fn any_match(kind: Kind) -> RuleMatch {
    RuleMatch {
        grpc: kind == Kind::GrpcRoute,
        ..RuleMatch::default()
    }
}

fn rule(at: &At<'_>, meta: &Meta, kind: Kind) -> Option<RouteRule> {
    let mut fields = at.fields()?;
    if kind == Kind::GrpcRoute {
        fields.later(&["timeouts", "retry"]);
    }
    let name = fields.get("name").map(|at| at.dns_name());
    let matches = fields.list("matches", MATCHES_MAX);
    let mut matches: Vec<RuleMatch> = matches
        .iter()
        .filter_map(|at| {
            if kind == Kind::GrpcRoute {
                grpc_match(at)
            } else {
                http_match(at)
            }
        })
        .collect();
    if matches.is_empty() {
        matches.push(any_match(kind));
    }
    let Filters {
        edits,
        rewrite,
        redirect,
        mirrors,
        cors,
        priority,
    } = filters(&mut fields, meta, kind);
    let backends: Vec<BackendRef> = fields
        .list("backendRefs", BACKENDS_MAX)
        .iter()
        .filter_map(|at| backend(at, meta, kind))
        .collect();
    let (request_timeout, attempt_timeout, retry) = if kind == Kind::HttpRoute {
        http_only(&mut fields)
    } else {
        (None, None, None)
    };
    let session = session(&mut fields);

    if redirect.is_some() && !backends.is_empty() {
        at.refuse_with::<()>(
            "a rule that redirects has no backendRefs",
            "drop one of them",
        );
    }
    if redirect.is_some() && rewrite != Default::default() {
        at.refuse_with::<()>(
            "a rule that redirects rewrites nothing",
            "drop one of the filters",
        );
    }
    let has_more = !mirrors.is_empty() || cors.is_some() || session.is_some() || priority.is_some();
    if redirect.is_some() && has_more {
        at.refuse_with::<()>(
            "a rule that redirects has no mirror, no CORS, no session and no priority",
            "drop one of them",
        );
    }
    let replaced = redirect
        .as_ref()
        .map_or(&rewrite.path, |redirect| &redirect.path);
    let prefixes = matches
        .iter()
        .all(|m| matches!(m.path, PathMatch::Prefix(_)));
    if matches!(replaced, Some(PathRewrite::Prefix(_))) && !prefixes {
        at.refuse_with::<()>(
            "`ReplacePrefixMatch` needs matches of type PathPrefix only",
            "use `ReplaceFullPath`, or make it a rule of its own",
        );
    }
    let Edits {
        request: request_headers,
        response: response_headers,
    } = edits;
    let name = name.flatten();
    Some(RouteRule {
        name,
        matches,
        request_headers,
        response_headers,
        rewrite,
        redirect,
        backends,
        mirrors,
        cors,
        request_timeout,
        attempt_timeout,
        retry,
        session,
        priority,
    })
}

fn http_match(at: &At<'_>) -> Option<RuleMatch> {
    const METHODS: [(&str, &str); 8] = [
        ("GET", "GET"),
        ("HEAD", "HEAD"),
        ("POST", "POST"),
        ("PUT", "PUT"),
        ("DELETE", "DELETE"),
        ("OPTIONS", "OPTIONS"),
        ("TRACE", "TRACE"),
        ("PATCH", "PATCH"),
    ];
    let mut fields = at.fields()?;
    let path = fields
        .get("path")
        .map_or_else(|| Some(RuleMatch::default().path), |at| path_match(&at));
    let method = fields
        .get("method")
        .map(|at| at.choose(&METHODS, &["CONNECT"]));
    let headers = header_matches(&mut fields);
    let query = fields.list("queryParams", CONDITIONS_MAX);
    let query = conditions(&query, query_match, |m: &QueryMatch| &m.name);
    Some(RuleMatch {
        path: path?,
        method: method.flatten().map(str::to_owned),
        headers,
        query,
        grpc: false,
    })
}

pub(super) fn path_match(at: &At<'_>) -> Option<PathMatch> {
    #[derive(Clone, Copy)]
    enum Type {
        Exact,
        Prefix,
        Regex,
    }
    let mut fields = at.fields()?;
    let choices = [
        ("PathPrefix", Type::Prefix),
        ("Exact", Type::Exact),
        ("RegularExpression", Type::Regex),
    ];
    let kind = fields
        .get("type")
        .map_or(Some(Type::Prefix), |at| at.choose(&choices, &[]));
    let Some(value) = fields.get("value") else {
        return match kind? {
            Type::Exact => Some(PathMatch::Exact("/".to_owned())),
            Type::Prefix => Some(PathMatch::Prefix("/".to_owned())),
            Type::Regex => at.refuse("a path of type RegularExpression needs a value"),
        };
    };
    Some(match kind? {
        Type::Exact => PathMatch::Exact(value.path()?),
        Type::Prefix => PathMatch::Prefix(without_trailing_slash(value.path()?)),
        Type::Regex => PathMatch::Regex(value.pattern(TEXT_LEN_MAX)?),
    })
}

pub(super) fn header_matches(fields: &mut Fields<'_>) -> Vec<HeaderMatch> {
    let items = fields.list("headers", CONDITIONS_MAX);
    conditions(&items, header_match, |m| &m.name)
}

fn header_match(at: &At<'_>) -> Option<HeaderMatch> {
    let mut fields = at.fields()?;
    let name = fields.need("name").and_then(|at| {
        let name = at.header_name()?;
        if name == "host" {
            at.refuse_with(
                "the host can't be matched as a header",
                "parentRefs choose the Service",
            )
        } else {
            Some(name)
        }
    });
    let value = value_match(&mut fields, HEADER_VALUE_LEN_MAX, |at| at.header_value());
    Some(HeaderMatch {
        name: name?,
        value: value?,
    })
}

fn query_match(at: &At<'_>) -> Option<QueryMatch> {
    let mut fields = at.fields()?;
    let name = fields
        .need("name")
        .and_then(|at| at.bounded(256).map(str::to_owned));
    let value = value_match(&mut fields, TEXT_LEN_MAX, |at| {
        at.bounded(TEXT_LEN_MAX).map(str::to_owned)
    });
    Some(QueryMatch {
        name: name?,
        value: value?,
    })
}

/// Reads each item and refuses a second one of the same name.
fn conditions<'a, T>(
    items: &[At<'a>],
    read: fn(&At<'a>) -> Option<T>,
    name: fn(&T) -> &String,
) -> Vec<T> {
    let mut conditions: Vec<T> = Vec::new();
    for at in items {
        let Some(condition) = read(at) else { continue };
        if conditions
            .iter()
            .any(|known| name(known) == name(&condition))
        {
            at.refuse::<()>(format!(
                "{} stands twice in this list",
                quoted(name(&condition))
            ));
        }
        conditions.push(condition);
    }
    conditions
}

fn grpc_match(at: &At<'_>) -> Option<RuleMatch> {
    let mut fields = at.fields()?;
    let path = fields
        .get("method")
        .map_or_else(|| Some(RuleMatch::default().path), |at| grpc_method(&at));
    let headers = header_matches(&mut fields);
    Some(RuleMatch {
        path: path?,
        method: None,
        headers,
        query: Vec::new(),
        grpc: true,
    })
}

fn grpc_method(at: &At<'_>) -> Option<PathMatch> {
    let mut fields = at.fields()?;
    let kind = match_type(&mut fields);
    let mut name = |key| fields.get(key).filter(|at| at.text() != Some(""));
    let (service, method) = (name("service"), name("method"));
    if service.is_none() && method.is_none() {
        return at.refuse("a method match names a service, a method or both");
    }
    let kind = kind?;
    let service = service.map_or(Some(GrpcName::Any), |at| {
        grpc_name(&at, kind, |text| text.split('.').all(is_identifier))
    });
    let method = method.map_or(Some(GrpcName::Any), |at| {
        grpc_name(&at, kind, is_identifier)
    });
    Some(grpc_path(service?, method?))
}

fn grpc_name<'a>(
    at: &At<'a>,
    kind: MatchType,
    is_name: impl FnOnce(&str) -> bool,
) -> Option<GrpcName<'a>> {
    let text = at.bounded(TEXT_LEN_MAX)?;
    if kind == MatchType::Regex {
        at.pattern(TEXT_LEN_MAX)?;
        return Some(GrpcName::Regex(text));
    }
    at.check(is_name(text), "is no name of a gRPC service or method")?;
    Some(GrpcName::Exact(text))
}

fn is_identifier(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && text.starts_with(|c: char| !c.is_ascii_digit())
}

fn backend(at: &At<'_>, meta: &Meta, kind: Kind) -> Option<BackendRef> {
    let mut fields = at.fields()?;
    let service = service_ref(&mut fields, meta, "Service");
    let port = fields.need("port").and_then(|at| at.port());
    let weight = fields.number("weight", 0..=WEIGHT_MAX, 1);
    let Edits { request, response } = edits(&mut fields, meta, kind);
    Some(BackendRef {
        service: service?,
        port: port?,
        weight,
        request_headers: request,
        response_headers: response,
    })
}

/// `timeouts` and `retry`, which a GRPCRoute doesn't have.
fn http_only(fields: &mut Fields<'_>) -> (Option<Duration>, Option<Duration>, Option<Retry>) {
    let (request, attempt) = fields
        .get("timeouts")
        .and_then(|at| timeouts(&at))
        .unwrap_or_default();
    let retry = fields.get("retry").and_then(|at| retry(&at));
    (request, attempt, retry)
}

/// (of the whole exchange, of one attempt). Zero is no limit, which for the whole is another word than none at all.
fn timeouts(at: &At<'_>) -> Option<(Option<Duration>, Option<Duration>)> {
    let mut fields = at.fields()?;
    let mut timeout = |key| fields.get(key).and_then(|at| at.gateway_duration());
    let request = timeout("request");
    let attempt = timeout("backendRequest").filter(|timeout| !timeout.is_zero());
    if request
        .zip(attempt)
        .is_some_and(|(request, attempt)| !request.is_zero() && attempt > request)
    {
        at.refuse::<()>("`backendRequest` is longer than `request`");
    }
    Some((request, attempt))
}

fn retry(at: &At<'_>) -> Option<Retry> {
    let mut fields = at.fields()?;
    let default = Retry::default();
    let mut codes: Vec<u16> = fields
        .list("codes", CODES_MAX)
        .iter()
        .filter_map(|at| u16::try_from(at.number(400..=599)?).ok())
        .collect();
    codes.sort_unstable();
    codes.dedup();
    let attempts = fields.number("attempts", 0..=ATTEMPTS_MAX, default.attempts);
    let backoff = fields.get("backoff").and_then(|at| {
        let backoff = at.gateway_duration()?;
        at.check(backoff <= BACKOFF_MAX, "a backoff is at most 60s")?;
        Some(backoff)
    });
    Some(Retry {
        attempts,
        codes,
        backoff: backoff.unwrap_or(default.backoff),
    })
}
