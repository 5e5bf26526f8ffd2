//! Who may call, as RBAC: first what is denied, then what alone is allowed. Each rule is a policy of its own, because its
//! callers and its calls belong together.

use std::collections::BTreeMap;

use matcher_v3::string_matcher::MatchPattern;
use phalanx_model::identity::TrustDomain;
use phalanx_model::resource::{
    Access, AccessPolicy, AccessRule, Caller, Effect, HeaderMatch, PathMatch, ValueMatch,
};
use phalanx_proto::envoy::config::rbac::v3 as rbac_v3;
use phalanx_proto::envoy::config::route::v3 as route_v3;
use phalanx_proto::envoy::extensions::filters::http::rbac::v3 as filter_v3;
use phalanx_proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm_v3;
use phalanx_proto::envoy::extensions::filters::network::rbac::v3 as network_v3;
use phalanx_proto::envoy::r#type::matcher::v3 as matcher_v3;
use rbac_v3::permission::{self, Rule};
use rbac_v3::principal::{self, Identifier};
use rbac_v3::rbac::Action;

use super::any;

pub(crate) const DENY: &str = "phalanx.deny";
pub(crate) const ALLOW: &str = "phalanx.allow";
pub(crate) const METHOD: &str = ":method";

/// None where nobody says anything.
pub(crate) fn filters(access: &Access, trust_domain: &TrustDomain) -> Vec<hcm_v3::HttpFilter> {
    let filter = |(name, rules): (&str, rbac_v3::Rbac)| {
        let config = filter_v3::Rbac {
            rules: Some(rules),
            ..Default::default()
        };
        hcm_v3::HttpFilter {
            name: name.to_owned(),
            config_type: Some(hcm_v3::http_filter::ConfigType::TypedConfig(any(&config))),
            ..Default::default()
        }
    };
    rules(access, trust_domain, policies).map(filter).collect()
}

/// For raw TCP, where nothing is known but who calls: a rule that allows some calls allows none, one that denies some
/// denies all.
pub(crate) fn network(access: &Access, trust_domain: &TrustDomain) -> Vec<network_v3::Rbac> {
    let of_callers = |policy: &AccessPolicy, trust_domain: &TrustDomain| {
        let says_more = |rule: &AccessRule| {
            !rule.methods.is_empty() || !rule.paths.is_empty() || !rule.headers.is_empty()
        };
        let rules = policy.rules.iter();
        let rules = rules.filter(|rule| policy.effect == Effect::Deny || !says_more(rule));
        let bare = AccessPolicy {
            rules: rules
                .map(|rule| AccessRule {
                    callers: rule.callers.clone(),
                    ..AccessRule::default()
                })
                .collect(),
            ..policy.clone()
        };
        policies(&bare, trust_domain)
    };
    rules(access, trust_domain, of_callers)
        .map(|(name, rules)| network_v3::Rbac {
            rules: Some(rules),
            stat_prefix: format!("{name}."),
            ..Default::default()
        })
        .collect()
}

fn rules<P: Iterator<Item = (String, rbac_v3::Policy)>>(
    access: &Access,
    trust_domain: &TrustDomain,
    policies: impl Fn(&AccessPolicy, &TrustDomain) -> P,
) -> impl Iterator<Item = (&'static str, rbac_v3::Rbac)> {
    let of = |effect, name, action: Action| {
        let of_effect = || access.policies.iter().filter(move |p| p.effect == effect);
        of_effect().next()?;
        let policies: BTreeMap<_, _> = of_effect()
            .flat_map(|policy| policies(policy, trust_domain))
            .collect();
        let rules = rbac_v3::Rbac {
            action: action.into(),
            policies,
            ..Default::default()
        };
        Some((name, rules))
    };
    let deny = of(Effect::Deny, DENY, Action::Deny);
    let allow = of(Effect::Allow, ALLOW, Action::Allow);
    deny.into_iter().chain(allow)
}

/// By `<policy>/<rule>`; one without rules matches nothing, which has to be said.
fn policies(
    policy: &AccessPolicy,
    trust_domain: &TrustDomain,
) -> impl Iterator<Item = (String, rbac_v3::Policy)> + use<> {
    let rules = policy.rules.iter().enumerate().map(|(index, rule)| {
        let of_rule = rbac_v3::Policy {
            permissions: vec![call(rule)],
            principals: callers(&rule.callers, trust_domain),
            ..Default::default()
        };
        (format!("{}/{index:03}", policy.name), of_rule)
    });
    let nothing = policy.rules.is_empty().then(|| {
        let of_nothing = rbac_v3::Policy {
            permissions: vec![nothing()],
            principals: callers(&[], trust_domain),
            ..Default::default()
        };
        (policy.name.clone(), of_nothing)
    });
    rules.chain(nothing).collect::<Vec<_>>().into_iter()
}

/// Any of them; a connection without a certificate of the mesh is none of them.
fn callers(callers: &[Caller], trust_domain: &TrustDomain) -> Vec<rbac_v3::Principal> {
    let principal = |identifier| rbac_v3::Principal {
        identifier: Some(identifier),
    };
    if callers.is_empty() {
        return vec![principal(Identifier::Any(true))];
    }
    let named = |caller: &Caller| {
        let pattern = match caller {
            Caller::Id(id) => MatchPattern::Exact(id.to_string()),
            Caller::Anyone => MatchPattern::Prefix(of_domain(trust_domain)),
            Caller::Namespace(name) => MatchPattern::Prefix(of_namespace(trust_domain, name)),
        };
        principal(Identifier::Authenticated(principal::Authenticated {
            principal_name: Some(text(pattern)),
        }))
    };
    callers.iter().map(named).collect()
}

pub(crate) fn of_domain(trust_domain: &TrustDomain) -> String {
    format!("spiffe://{trust_domain}/")
}

pub(crate) fn of_namespace(trust_domain: &TrustDomain, namespace: &str) -> String {
    format!("spiffe://{trust_domain}/ns/{namespace}/sa/")
}

fn call(rule: &AccessRule) -> rbac_v3::Permission {
    let methods = rule.methods.iter().map(|method| {
        header(&HeaderMatch {
            name: METHOD.to_owned(),
            value: ValueMatch::Exact(method.clone()),
        })
    });
    let all: Vec<_> = [
        one_of(methods.collect()),
        one_of(rule.paths.iter().map(path).collect()),
    ]
    .into_iter()
    .flatten()
    .chain(rule.headers.iter().map(header))
    .collect();
    match all.is_empty() {
        true => permission(Rule::Any(true)),
        false => permission(Rule::AndRules(permission::Set { rules: all })),
    }
}

pub(crate) fn nothing() -> rbac_v3::Permission {
    permission(Rule::NotRule(Box::new(permission(Rule::Any(true)))))
}

fn one_of(rules: Vec<rbac_v3::Permission>) -> Option<rbac_v3::Permission> {
    (!rules.is_empty()).then(|| permission(Rule::OrRules(permission::Set { rules })))
}

fn permission(rule: Rule) -> rbac_v3::Permission {
    rbac_v3::Permission { rule: Some(rule) }
}

fn header(header: &HeaderMatch) -> rbac_v3::Permission {
    use route_v3::header_matcher::HeaderMatchSpecifier;
    let value = match &header.value {
        ValueMatch::Exact(text) => MatchPattern::Exact(text.clone()),
        ValueMatch::Regex(pattern) => MatchPattern::SafeRegex(regex(pattern)),
    };
    permission(Rule::Header(route_v3::HeaderMatcher {
        name: header.name.clone(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(text(value))),
        ..Default::default()
    }))
}

/// RBAC knows no prefixes of whole segments.
fn path(path: &PathMatch) -> rbac_v3::Permission {
    match path {
        PathMatch::Exact(path) => url_path(MatchPattern::Exact(path.clone())),
        PathMatch::Regex(pattern) => url_path(MatchPattern::SafeRegex(regex(pattern))),
        PathMatch::Prefix(prefix) => match prefix.trim_end_matches('/') {
            "" => url_path(MatchPattern::Prefix("/".to_owned())),
            prefix => permission(Rule::OrRules(permission::Set {
                rules: vec![
                    url_path(MatchPattern::Exact(prefix.to_owned())),
                    url_path(MatchPattern::Prefix(format!("{prefix}/"))),
                ],
            })),
        },
    }
}

fn url_path(pattern: MatchPattern) -> rbac_v3::Permission {
    use matcher_v3::path_matcher::Rule as Path;
    permission(Rule::UrlPath(matcher_v3::PathMatcher {
        rule: Some(Path::Path(text(pattern))),
    }))
}

fn text(pattern: MatchPattern) -> matcher_v3::StringMatcher {
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
