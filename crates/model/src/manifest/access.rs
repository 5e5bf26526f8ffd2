//! AuthorizationPolicy: whose calls a Service takes, by who calls, method, path and headers. What some data plane could not
//! check is refused.

use super::backend::{TARGETS_MAX, targets};
use super::cursor::{At, Fields};
use super::report::quoted;
use super::route::{header_matches, path_match};
use crate::document::{AuthorizationPolicy, CallRule, Meta, Source};
use crate::identity::SpiffeId;
use crate::name::ServiceName;
use crate::resource::{AccessRule, Effect, HeaderMatch, PathMatch};

const RULES_MAX: usize = 64;
const CONDITIONS_MAX: usize = 16;
/// Callers of one kind in one source.
const CALLERS_MAX: usize = 64;

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
    let rules: Vec<CallRule> = fields
        .list("rules", RULES_MAX)
        .iter()
        .filter_map(|at| rule(at, &meta))
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

fn rule(at: &At<'_>, meta: &Meta) -> Option<CallRule> {
    let mut fields = at.fields()?;
    fields.later(&["to", "when", "sources", "principals", "hosts"]);
    let from = fields.get("from").map_or_else(Vec::new, |at| {
        let items = at.items(CONDITIONS_MAX);
        if items.is_empty() {
            at.refuse_with::<()>(
                "an empty list would be nobody",
                "leave it out for everybody",
            );
        }
        items.iter().flat_map(|at| sources(at, meta)).collect()
    });
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
    let call = AccessRule {
        callers: Vec::new(),
        methods,
        paths,
        headers,
    };
    Some(CallRule { from, call })
}

/// One kind of callers per item, so that nobody has to guess whether two of them mean both or either.
fn sources(at: &At<'_>, meta: &Meta) -> Vec<Source> {
    let Some(mut fields) = at.fields() else {
        return Vec::new();
    };
    fields.later(&[
        "principals",
        "notPrincipals",
        "notNamespaces",
        "ipBlocks",
        "notIpBlocks",
        "remoteIpBlocks",
        "requestPrincipals",
    ]);
    let (mut sources, mut said) = (Vec::new(), 0);
    let mut of = |fields: &mut Fields<'_>, key, read: &dyn Fn(&At<'_>) -> Option<Source>| {
        let Some(at) = fields.get(key) else { return };
        said += 1;
        let items = at.items(CALLERS_MAX);
        if items.is_empty() {
            at.refuse_with::<()>("an empty list would be nobody", "leave it out");
        }
        sources.extend(items.iter().filter_map(read));
    };
    of(&mut fields, "services", &|at| {
        service(at, meta).map(Source::Service)
    });
    of(&mut fields, "namespaces", &|at| {
        at.dns_label().map(Source::Namespace)
    });
    of(&mut fields, "ids", &|at| id(at).map(Source::Id));
    if let Some(at) = fields.get("anyone") {
        said += 1;
        match at.boolean() {
            Some(true) => sources.push(Source::Anyone),
            Some(false) => {
                at.refuse_with::<()>("nobody can be meant by `false`", "leave it out");
            }
            None => {}
        }
    }
    match said {
        1 => {}
        0 => {
            at.refuse_with::<()>(
                "it names nobody",
                "write one of `services`, `namespaces`, `ids` or `anyone: true`",
            );
        }
        _ => {
            at.refuse_with::<()>(
                "several kinds of callers in one item",
                "write an item for each: the caller has to be one of all of them",
            );
        }
    }
    sources
}

/// `name` of the policy's own namespace, or `namespace/name`.
fn service(at: &At<'_>, meta: &Meta) -> Option<ServiceName> {
    let text = at.bounded(127)?;
    let (namespace, name) = text.split_once('/').unwrap_or((&meta.namespace, text));
    match ServiceName::parse(namespace, name) {
        Ok(service) => Some(service),
        Err(_) if text.contains('*') => at.refuse_with(
            "callers are compared whole, there are no patterns",
            "`namespaces` takes all services of a namespace",
        ),
        Err(_) => at.refuse_with(
            format!("{} is no service", quoted(text)),
            "write `name` (of this namespace) or `namespace/name`",
        ),
    }
}

fn id(at: &At<'_>) -> Option<SpiffeId> {
    match at.bounded(2048)?.parse() {
        Ok(id) => Some(id),
        Err(_) => at.refuse_with(
            format!("{} is no SPIFFE id of a mesh", quoted(at.text()?)),
            "like `spiffe://phalanx.local/ns/arena/sa/battle`; compared whole, there are no patterns",
        ),
    }
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
