//! Which of two matches comes first in a host's rules, by the Gateway API; and the paths that a GRPCRoute's service and
//! method stand for. Pure; ties (age, then name of the document) are broken by the caller.

use std::cmp::{Ordering, Reverse};

use crate::resource::{PathMatch, RuleMatch};

/// `Less` when `a` is asked before `b`.
///
/// Paths by Exact, Regex, Prefix, the longer first; then a method; then the number of headers; then of query parameters.
/// Between gRPC matches: characters of the service, of the method, then headers. gRPC comes before the rest.
pub fn precedence(a: &RuleMatch, b: &RuleMatch) -> Ordering {
    let conditions = |m: &RuleMatch| Reverse((m.method.is_some(), m.headers.len(), m.query.len()));
    let path = if a.grpc && b.grpc {
        grpc_rank(&a.path).cmp(&grpc_rank(&b.path))
    } else {
        path_rank(&a.path).cmp(&path_rank(&b.path))
    };
    b.grpc
        .cmp(&a.grpc)
        .then(path)
        .then_with(|| conditions(a).cmp(&conditions(b)))
}

fn path_rank(path: &PathMatch) -> (u8, Reverse<usize>) {
    match path {
        PathMatch::Exact(text) => (0, Reverse(text.len())),
        PathMatch::Regex(text) => (1, Reverse(text.len())),
        PathMatch::Prefix(text) => (2, Reverse(text.len())),
    }
}

/// (characters of service and method, whether it is a pattern)
fn grpc_rank(path: &PathMatch) -> (Reverse<(usize, usize)>, bool) {
    let (service, method) = match path {
        PathMatch::Exact(text) => text
            .trim_start_matches('/')
            .split_once('/')
            .unwrap_or((text, "")),
        PathMatch::Prefix(text) => (text.trim_start_matches('/'), ""),
        PathMatch::Regex(text) => grpc_parts(text).unwrap_or((text, "")),
    };
    (
        Reverse((service.len(), method.len())),
        matches!(path, PathMatch::Regex(_)),
    )
}

/// One half of a gRPC path, as a GRPCRoute's `method` match gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrpcName<'a> {
    Any,
    Exact(&'a str),
    Regex(&'a str),
}

const ANY_NAME: &str = "[^/]+";

/// The path match for a gRPC service and method.
pub fn grpc_path(service: GrpcName<'_>, method: GrpcName<'_>) -> PathMatch {
    let pattern = |name: GrpcName<'_>| match name {
        GrpcName::Any => ANY_NAME.to_owned(),
        GrpcName::Exact(text) => format!("(?:{})", text.replace('.', "\\.")), // names hold nothing else that is special
        GrpcName::Regex(text) => format!("(?:{text})"),
    };
    match (service, method) {
        (GrpcName::Any, GrpcName::Any) => PathMatch::Prefix("/".to_owned()),
        (GrpcName::Exact(service), GrpcName::Any) => PathMatch::Prefix(format!("/{service}")),
        (GrpcName::Exact(service), GrpcName::Exact(method)) => {
            PathMatch::Exact(format!("/{service}/{method}"))
        }
        _ => PathMatch::Regex(format!("/{}/{}", pattern(service), pattern(method))),
    }
}

/// The halves of a pattern that [`grpc_path`] made, empty where anything goes.
fn grpc_parts(pattern: &str) -> Option<(&str, &str)> {
    let half = |text| if text == ANY_NAME { "" } else { text };
    let pattern = pattern.strip_prefix('/')?;
    let (service, method) = match pattern.strip_prefix(ANY_NAME) {
        Some(rest) => (ANY_NAME, rest.strip_prefix('/')?),
        None => {
            let end = pattern.rfind(")/")? + 1;
            (pattern.get(..end)?, pattern.get(end + 1..)?)
        }
    };
    Some((half(service), half(method)))
}
