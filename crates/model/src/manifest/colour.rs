//! ColourPolicy: what edges give to requests from outside, and lanes.

use super::cursor::{At, Fields};
use super::value;
use crate::document::{ColourPolicy, Fallback, Lane, Meta};
use crate::identity::SYSTEM_NAMESPACE;
use crate::name::ServiceName;
use crate::resource::colour::{
    CANARY_HEADER, COLOUR_HEADER, COLOUR_LEN_MAX, CanaryId, ColourPattern, EdgeColours, LANES_MAX,
    Network, RULES_MAX, is_colour,
};

const TARGETS_MAX: usize = 32;
const SERVICES_MAX: usize = 64;
const NETWORK_LEN_MAX: usize = 64;
const COOKIE_LEN_MAX: usize = 64;

const FALLBACKS: [(&str, Fallback); 2] = [
    ("Baseline", Fallback::Baseline),
    ("Refuse", Fallback::Refuse),
];

pub(super) fn policy(spec: &At<'_>, meta: Meta) -> Option<ColourPolicy> {
    let mut fields = spec.fields()?;
    let gateways = fields.get("targetRefs").map(|at| gateways(&at, &meta));
    let env = fields.get("env");
    let canary = fields.get("canaryId");
    let says_edge = env.is_some() || canary.is_some();
    let mut edge = EdgeColours::default();
    if let Some(at) = &env {
        self::env(at, &mut edge);
    }
    if let Some(at) = &canary {
        edge.canary = canary_id(at).unwrap_or_default();
    }
    let lanes_at = fields.get("lanes");
    let items = lanes_at.iter().flat_map(|at| at.items(LANES_MAX));
    let mut lanes: Vec<Lane> = Vec::new();
    for at in items {
        let Some(lane) = lane(&at, &meta) else {
            continue;
        };
        if lanes.iter().any(|known| known.colour == lane.colour) {
            at.refuse::<()>(format!(
                "there is a lane `{}` in this list already",
                lane.colour
            ));
        }
        lanes.push(lane);
    }
    if !says_edge && lanes_at.is_none() {
        spec.refuse_with::<()>("it says nothing", "write `env`, `canaryId` or `lanes`");
    }
    if let Some(at) = fields.get("targetRefs").filter(|_| !says_edge) {
        at.refuse_with::<()>(
            "Gateways are the targets of `env` and `canaryId` only",
            "lanes hold for the whole namespace: leave it out",
        );
    }
    Some(ColourPolicy {
        meta,
        gateways: gateways.unwrap_or_default(),
        edge: says_edge.then_some(edge),
        lanes,
    })
}

fn gateways(at: &At<'_>, meta: &Meta) -> Vec<ServiceName> {
    let items = at.items(TARGETS_MAX);
    if items.is_empty() {
        at.refuse_with::<()>("an empty list of targets", "leave it out for every edge");
    }
    if meta.namespace == SYSTEM_NAMESPACE {
        at.refuse_with::<()>(
            format!("in namespace `{SYSTEM_NAMESPACE}` it holds for the whole mesh"),
            "leave it out, or write it in the Gateway's namespace",
        );
    }
    let target = |at: &At<'_>| {
        let mut fields = at.fields()?;
        if let Some(at) = fields.get("group") {
            at.choose(&[("gateway.networking.k8s.io", ())], &[]);
        }
        let kind = fields
            .need("kind")
            .and_then(|at| at.choose(&[("Gateway", ())], &["Service"]));
        let name = fields.need("name").and_then(|at| at.dns_label());
        if let Some(at) = fields.get("namespace")
            && at
                .dns_label()
                .is_some_and(|namespace| namespace != meta.namespace)
        {
            at.refuse::<()>("a policy is for its own namespace");
        }
        kind?;
        Some(ServiceName::new(&meta.namespace, name?))
    };
    let mut found: Vec<ServiceName> = Vec::new();
    for at in &items {
        let Some(name) = target(at) else { continue };
        if found.contains(&name) {
            at.refuse::<()>("the Gateway stands twice in this list");
        }
        found.push(name);
    }
    found
}

fn env(at: &At<'_>, edge: &mut EdgeColours) -> Option<()> {
    let mut fields = at.fields()?;
    if let Some(at) = fields.get("header") {
        edge.taken = header(&at).unwrap_or_default();
    }
    for at in fields.list("networks", RULES_MAX) {
        let Some((network, colour)) = network(&at) else {
            continue;
        };
        if edge.networks.iter().any(|(known, _)| *known == network) {
            at.refuse::<()>(format!("the network {network} stands twice in this list"));
        }
        edge.networks.push((network, colour));
    }
    edge.default = fields.get("default").and_then(|at| colour(&at));
    Some(())
}

fn header(at: &At<'_>) -> Option<Vec<ColourPattern>> {
    let mut fields = at.fields()?;
    let trusted = fields.need("trusted").and_then(|at| at.boolean());
    let allow = fields.get("allow");
    let items = allow.iter().flat_map(|at| at.items(RULES_MAX));
    let patterns = items.filter_map(|at| {
        let text = at.bounded(COLOUR_LEN_MAX + 1)?;
        let pattern = text.parse();
        pattern.map_or_else(
            |error: crate::resource::colour::ColourError| at.refuse(error.to_string()),
            Some,
        )
    });
    let patterns: Vec<ColourPattern> = patterns.collect();
    match (trusted?, &allow) {
        (true, Some(at)) if patterns.is_empty() => at.refuse_with(
            "an empty list allows nothing",
            "leave it out to take any colour, or write `trusted: false`",
        ),
        (true, Some(_)) => Some(patterns),
        (true, None) => Some(vec![ColourPattern::Prefix(String::new())]),
        (false, Some(at)) => at.refuse_with(
            format!("`{COLOUR_HEADER}` is not taken from outside, so nothing is allowed by it"),
            "write `trusted: true`, or leave `allow` out",
        ),
        (false, None) => Some(Vec::new()),
    }
}

fn network(at: &At<'_>) -> Option<(Network, String)> {
    let mut fields = at.fields()?;
    let cidr = fields.need("cidr").and_then(|at| {
        let text = at.bounded(NETWORK_LEN_MAX)?;
        let network = text.parse();
        network.map_or_else(
            |error: crate::resource::colour::ColourError| at.refuse(error.to_string()),
            Some,
        )
    });
    let value = fields.need("value").and_then(|at| colour(&at));
    cidr.zip(value)
}

fn colour(at: &At<'_>) -> Option<String> {
    let text = at.text()?;
    match is_colour(text.as_bytes()) {
        true => Some(text.to_owned()),
        false => at.refuse_with(
            format!("{} is no colour", super::report::quoted(text)),
            format!("a-z, 0-9 and -, at most {COLOUR_LEN_MAX}"),
        ),
    }
}

fn canary_id(at: &At<'_>) -> Option<CanaryId> {
    let mut fields = at.fields()?;
    let header = fields.get("header").and_then(|at| at.header_name());
    if let Some(at) = fields.get("header")
        && header.as_ref().is_some_and(|name| name.contains('_'))
    {
        at.refuse_with::<()>(
            "a header with `_` in its name is dropped at edges",
            format!("write a name with `-`, like `{CANARY_HEADER}`"),
        );
    }
    let cookie = fields.get("cookie").and_then(|at| {
        let text = at.bounded(COOKIE_LEN_MAX)?;
        let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        at.check(text.bytes().all(is_token), "is no cookie's name")?;
        Some(text.to_owned())
    });
    let generate = fields.get("generate").and_then(|at| at.boolean());
    let id = CanaryId {
        header,
        cookie,
        generate: generate.unwrap_or(false),
    };
    if id == CanaryId::default() && generate != Some(false) {
        at.refuse_with::<()>(
            "it says nothing",
            "write `header: NAME`, `cookie: NAME` or `generate: true`",
        );
    }
    Some(id)
}

fn lane(at: &At<'_>, meta: &Meta) -> Option<Lane> {
    let mut fields: Fields<'_> = at.fields()?;
    let colour = fields.need("colour").and_then(|at| colour(&at));
    let selector_at = fields.need("selector");
    let selector = selector_at.as_ref().map(value::labels).unwrap_or_default();
    if let Some(at) = selector_at.filter(|_| selector.is_empty()) {
        at.refuse_with::<()>(
            "it would select every instance",
            "write a label that only the lane's instances have, like `lane: dev-li`",
        );
    }
    let fallback = fields.get("fallback");
    let fallback = fallback.map_or(Some(Fallback::default()), |at| at.choose(&FALLBACKS, &[]));
    let services_at = fields.get("services");
    let items = services_at.iter().flat_map(|at| at.items(SERVICES_MAX));
    let services = items.filter_map(|at| Some(ServiceName::new(&meta.namespace, at.dns_label()?)));
    let services: Vec<_> = services.collect();
    if let Some(at) = &services_at {
        if fallback == Some(Fallback::Baseline) {
            at.refuse_with::<()>(
                "a service without an instance of the lane is served by its baseline anyway",
                "leave it out, or write `fallback: Refuse`",
            );
        }
        if meta.namespace == SYSTEM_NAMESPACE {
            at.refuse::<()>("services are named in their own namespace's policy");
        }
    }
    Some(Lane {
        colour: colour?,
        selector,
        fallback: fallback?,
        services,
    })
}

#[cfg(test)]
mod tests {
    use crate::document::Document;
    use crate::manifest::parse;

    /// The rules of the edge and the lanes, or what is wrong.
    fn policy(namespace: &str, spec: &str) -> Result<(String, usize), String> {
        let text = format!(
            "apiVersion: phalanx.dev/v1alpha1\nkind: ColourPolicy\nmetadata: {{name: c, namespace: {namespace}}}\nspec: {{{spec}}}\n"
        );
        match parse("c.yaml", &text, "default").into_result() {
            Ok(parsed) => match parsed.into_iter().next().map(|parsed| parsed.document) {
                Some(Document::ColourPolicy(policy)) => {
                    let edge = policy.edge.map_or("-".to_owned(), |edge| edge.to_string());
                    Ok((edge, policy.lanes.len()))
                }
                other => Err(format!("{other:?}")),
            },
            Err(problems) => {
                let told = problems
                    .iter()
                    .map(|one| format!("{}: {}", one.path, one.message));
                Err(told.collect::<Vec<_>>().join("; "))
            }
        }
    }

    #[test]
    fn what_a_policy_says_is_read() {
        let said = "targetRefs: [{kind: Gateway, name: edge}], env: {header: {trusted: true, allow: [staging, 'dev-*']}, networks: [{cidr: 10.10.0.0/16, value: staging}], default: prod}, canaryId: {header: X-User, generate: true}";
        let rules = "take=staging take=dev-* net=10.10.0.0/16=staging default=prod id-header=x-user id-made";
        assert_eq!(policy("default", said), Ok((rules.to_owned(), 0)));
        let lanes = "lanes: [{colour: a, selector: {l: a}}, {colour: b, selector: {l: b}, fallback: Refuse, services: [battle]}]";
        assert_eq!(policy("default", lanes), Ok(("-".to_owned(), 2)));
        let open = policy("phalanx-system", "env: {header: {trusted: true}}");
        assert_eq!(open, Ok(("take=*".to_owned(), 0)));
    }

    #[test]
    fn what_says_nothing_or_could_be_mistaken_is_refused() {
        for (namespace, spec, why) in [
            ("default", "", "it says nothing"),
            ("default", "env: {default: Prod}", "is no colour"),
            (
                "default",
                "env: {header: {trusted: false, allow: [a]}}",
                "is not taken from outside",
            ),
            (
                "default",
                "env: {header: {trusted: true, allow: []}}",
                "allows nothing",
            ),
            (
                "default",
                "env: {header: {trusted: true, allow: ['a*b']}}",
                "is no colour",
            ),
            (
                "default",
                "env: {networks: [{cidr: 10.1.2.3/8, value: a}]}",
                "write `10.0.0.0/8`",
            ),
            (
                "default",
                "env: {networks: [{cidr: 10.0.0.0/8, value: a}, {cidr: 10.0.0.0/8, value: b}]}",
                "stands twice",
            ),
            ("default", "canaryId: {}", "it says nothing"),
            ("default", "canaryId: {header: x_user}", "dropped at edges"),
            (
                "default",
                "targetRefs: [{kind: Service, name: a}], env: {default: a}",
                "not supported",
            ),
            (
                "default",
                "targetRefs: [{kind: Gateway, name: a}], lanes: [{colour: a, selector: {l: a}}]",
                "targets of `env`",
            ),
            (
                "phalanx-system",
                "targetRefs: [{kind: Gateway, name: a}], env: {default: a}",
                "whole mesh",
            ),
            (
                "default",
                "lanes: [{colour: a, selector: {}}]",
                "every instance",
            ),
            (
                "default",
                "lanes: [{colour: a, selector: {l: a}}, {colour: a, selector: {l: b}}]",
                "already",
            ),
            (
                "default",
                "lanes: [{colour: a, selector: {l: a}, services: [b]}]",
                "by its baseline anyway",
            ),
            (
                "default",
                "lanes: [{colour: a, selector: {l: a}, fallback: refuse}]",
                "unknown value",
            ),
            (
                "default",
                "lanes: [{colour: a, selector: {l: a}, weight: 1}]",
                "unknown field",
            ),
        ] {
            let refused = policy(namespace, spec).unwrap_err();
            assert!(refused.contains(why), "{spec}: {refused}");
        }
    }
}
