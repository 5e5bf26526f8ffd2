//! Who may call, as RBAC filters: first what is denied, then what alone is allowed.

use phalanx_model::resource::{
    Access, AccessPolicy, AccessRule, Effect, HeaderMatch, PathMatch, ValueMatch,
};
use phalanx_proto::envoy::config::rbac::v3 as rbac_v3;
use phalanx_proto::envoy::extensions::filters::http::rbac::v3 as filter_v3;
use phalanx_proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm_v3;
use phalanx_proto::envoy::r#type::matcher::v3 as matcher_v3;
use rbac_v3::permission::{self, Rule};

use super::super::any;
use super::routes::{header_match, regex};

/// None where nobody says anything; nothing is allowed where only empty policies allow.
pub(super) fn filters(access: &Access) -> Vec<hcm_v3::HttpFilter> {
    let filter = |effect, name: &str, action: rbac_v3::rbac::Action| {
        let mut of_effect = access
            .policies
            .iter()
            .filter(|p| p.effect == effect)
            .peekable();
        of_effect.peek()?;
        let policies = of_effect.filter(|policy| !policy.rules.is_empty());
        let rules = rbac_v3::Rbac {
            action: action.into(),
            policies: policies.map(|p| (p.name.clone(), policy(p))).collect(),
            ..Default::default()
        };
        let config = filter_v3::Rbac {
            rules: Some(rules),
            ..Default::default()
        };
        Some(hcm_v3::HttpFilter {
            name: name.to_owned(),
            config_type: Some(hcm_v3::http_filter::ConfigType::TypedConfig(any(&config))),
            ..Default::default()
        })
    };
    use rbac_v3::rbac::Action;
    let deny = filter(Effect::Deny, "phalanx.deny", Action::Deny);
    let allow = filter(Effect::Allow, "phalanx.allow", Action::Allow);
    deny.into_iter().chain(allow).collect()
}

/// Whoever calls: identity is not known here.
fn policy(policy: &AccessPolicy) -> rbac_v3::Policy {
    use rbac_v3::principal::Identifier;
    rbac_v3::Policy {
        permissions: policy.rules.iter().map(rule).collect(),
        principals: vec![rbac_v3::Principal {
            identifier: Some(Identifier::Any(true)),
        }],
        ..Default::default()
    }
}

fn rule(rule: &AccessRule) -> rbac_v3::Permission {
    let methods = rule.methods.iter().map(|method| {
        header(&HeaderMatch {
            name: ":method".to_owned(),
            value: ValueMatch::Exact(method.clone()),
        })
    });
    let paths = rule.paths.iter().flat_map(paths);
    let all: Vec<_> = [one_of(methods.collect()), one_of(paths.collect())]
        .into_iter()
        .flatten()
        .chain(rule.headers.iter().map(header))
        .collect();
    match all.is_empty() {
        true => permission(Rule::Any(true)),
        false => permission(Rule::AndRules(permission::Set { rules: all })),
    }
}

fn one_of(rules: Vec<rbac_v3::Permission>) -> Option<rbac_v3::Permission> {
    (!rules.is_empty()).then(|| permission(Rule::OrRules(permission::Set { rules })))
}

fn permission(rule: Rule) -> rbac_v3::Permission {
    rbac_v3::Permission { rule: Some(rule) }
}

fn header(header: &HeaderMatch) -> rbac_v3::Permission {
    permission(Rule::Header(header_match(header)))
}

fn paths(path: &PathMatch) -> Vec<rbac_v3::Permission> {
    use matcher_v3::string_matcher::MatchPattern;
    let patterns = match path {
        PathMatch::Exact(path) => vec![MatchPattern::Exact(path.clone())],
        PathMatch::Regex(pattern) => vec![MatchPattern::SafeRegex(regex(pattern))],
        PathMatch::Prefix(prefix) => match prefix.trim_end_matches('/') {
            "" => vec![MatchPattern::Prefix("/".to_owned())],
            prefix => vec![
                MatchPattern::Exact(prefix.to_owned()),
                MatchPattern::Prefix(format!("{prefix}/")),
            ],
        },
    };
    patterns.into_iter().map(url_path).collect()
}

fn url_path(pattern: matcher_v3::string_matcher::MatchPattern) -> rbac_v3::Permission {
    use matcher_v3::path_matcher::Rule as Path;
    let matcher = matcher_v3::StringMatcher {
        match_pattern: Some(pattern),
        ..Default::default()
    };
    permission(Rule::UrlPath(matcher_v3::PathMatcher {
        rule: Some(Path::Path(matcher)),
    }))
}
