//! AuthorizationPolicy: whose calls a Service takes, by method, path and headers. Who calls (`from`) is not known yet and
//! therefore refused, as is what some data plane could not check.

use super::backend::{TARGETS_MAX, targets};
use super::cursor::At;
use super::route::{header_matches, path_match};
use crate::document::{AuthorizationPolicy, Meta};
use crate::resource::{AccessRule, Effect, HeaderMatch, PathMatch};

const RULES_MAX: usize = 64;
const CONDITIONS_MAX: usize = 16;

pub(super) fn policy(spec: &At<'_>, meta: Meta) -> Option<AuthorizationPolicy> {
    let mut fields = spec.fields()?;
    fields.later(&["selector", "provider"]);
    let targets = fields.need("targetRefs").map_or_else(Vec::new, |at| {
        let items = at.items(TARGETS_MAX);
        at.check(!items.is_empty(), "a policy has at least one target");
        targets(&items, &meta)
    });
    let effects = [("Allow", Effect::Allow), ("Deny", Effect::Deny)];
    let effect = fields
        .need("action")
        .and_then(|at| at.choose(&effects, &["Audit", "Custom"]));
    let rules: Vec<AccessRule> = fields
        .list("rules", RULES_MAX)
        .iter()
        .filter_map(rule)
        .collect();
    if effect == Some(Effect::Deny) && rules.is_empty() {
        spec.refuse_with::<()>(
            "a policy that denies nothing",
            "`rules: [{}]` denies everything",
        );
    }
    Some(AuthorizationPolicy {
        meta,
        targets,
        effect: effect?,
        rules,
    })
}

fn rule(at: &At<'_>) -> Option<AccessRule> {
    let mut fields = at.fields()?;
    fields.later(&["from", "to", "when", "sources", "principals", "hosts"]);
    let methods: Vec<String> = fields
        .list("methods", CONDITIONS_MAX)
        .iter()
        .filter_map(method)
        .collect();
    let paths: Vec<PathMatch> = fields
        .list("paths", CONDITIONS_MAX)
        .iter()
        .filter_map(path_match)
        .collect();
    let headers = header_matches(&mut fields);
    for header in headers.iter().filter(|header| is_hidden(header)) {
        at.refuse_with::<()>(
            format!("header `{}` can't be checked by gRPC servers", header.name),
            "`grpc-…` and `…-bin` are the transport's own",
        );
    }
    Some(AccessRule {
        callers: Vec::new(),
        methods,
        paths,
        headers,
    })
}

/// An extension method is as good as a known one; CONNECT is no call.
fn method(at: &At<'_>) -> Option<String> {
    let text = at.bounded(32)?;
    let is_method = text
        .bytes()
        .all(|b| b.is_ascii_uppercase() || b == b'-' || b == b'_');
    at.check(
        is_method && text != "CONNECT",
        "a method is an upper-case word, and not CONNECT",
    )?;
    Some(text.to_owned())
}

fn is_hidden(header: &HeaderMatch) -> bool {
    header.name.starts_with("grpc-") || header.name.ends_with("-bin")
}
