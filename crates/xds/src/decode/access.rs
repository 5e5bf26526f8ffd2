//! Who may call, out of RBAC in the shape that [`crate::encode::access`] gives it.

use std::collections::BTreeMap;

use matcher_v3::string_matcher::MatchPattern;
use phalanx_model::identity::TrustDomain;
use phalanx_model::resource::{AccessRule, Caller, HeaderMatch, PathMatch, ValueMatch};
use phalanx_proto::envoy::config::rbac::v3 as rbac_v3;
use phalanx_proto::envoy::r#type::matcher::v3 as matcher_v3;
use rbac_v3::permission::Rule;
use rbac_v3::principal::Identifier;

use super::DecodeError;
use super::field::{At, single};
use super::routes;
use crate::encode::access::{METHOD, nothing, of_domain, of_namespace};

/// By the policy's name.
pub(super) fn policies(
    at: &At<'_>,
    rbac: rbac_v3::Rbac,
    trust_domain: &TrustDomain,
) -> Result<BTreeMap<String, Vec<AccessRule>>, DecodeError> {
    let at = at.field("rules");
    let mut policies = BTreeMap::<String, Vec<AccessRule>>::new();
    for (index, (name, policy)) in rbac.policies.into_iter().enumerate() {
        let at = at.item("policies", index);
        let call = single(&at.field("permissions"), policy.permissions)?;
        if call == nothing() {
            policies.entry(name).or_default();
            continue;
        }
        let mut rule = call_of(at.field("permissions"), call)?;
        rule.callers = callers(at.field("principals"), policy.principals, trust_domain)?;
        let policy = name
            .rsplit_once('/')
            .map_or(name.as_str(), |(policy, _)| policy);
        policies.entry(policy.to_owned()).or_default().push(rule);
    }
    Ok(policies)
}

fn callers(
    at: At<'_>,
    principals: Vec<rbac_v3::Principal>,
    trust_domain: &TrustDomain,
) -> Result<Vec<Caller>, DecodeError> {
    if let [only] = principals.as_slice()
        && only.identifier == Some(Identifier::Any(true))
    {
        return Ok(Vec::new());
    }
    let caller = |principal: rbac_v3::Principal| {
        let Some(Identifier::Authenticated(by)) = principal.identifier else {
            return Err(at.invalid("only `any`, alone, and `authenticated` are supported"));
        };
        let pattern = by.principal_name.and_then(|name| name.match_pattern);
        match pattern {
            Some(MatchPattern::Exact(id)) => {
                let id = id.parse();
                id.map(Caller::Id)
                    .map_err(|error| at.invalid(format!("{error}")))
            }
            Some(MatchPattern::Prefix(prefix)) if prefix == of_domain(trust_domain) => {
                Ok(Caller::Anyone)
            }
            Some(MatchPattern::Prefix(prefix)) => {
                let path = prefix.strip_prefix(&of_domain(trust_domain));
                let namespace =
                    path.and_then(|path| path.strip_prefix("ns/")?.strip_suffix("/sa/"));
                let namespace = namespace.filter(|name| {
                    of_namespace(trust_domain, name) == prefix && !name.contains('/')
                });
                let namespace = namespace.map(|name| Caller::Namespace(name.to_owned()));
                namespace.ok_or_else(|| at.invalid("only whole ids and whole namespaces"))
            }
            _ => Err(at.invalid("only exact ids, and prefixes of a namespace")),
        }
    };
    principals.into_iter().map(caller).collect()
}

fn call_of(at: At<'_>, call: rbac_v3::Permission) -> Result<AccessRule, DecodeError> {
    let mut rule = AccessRule::default();
    let all = match call.rule {
        Some(Rule::Any(true)) => return Ok(rule),
        Some(Rule::AndRules(all)) => all.rules,
        _ => return Err(at.unsupported()),
    };
    for one in all {
        match one.rule {
            Some(Rule::Header(header)) => {
                let name = header.name.clone();
                let value = routes::header_value(at, header)?;
                rule.headers.push(HeaderMatch { name, value });
            }
            Some(Rule::OrRules(any)) => {
                for one in any.rules {
                    match one.rule {
                        Some(Rule::Header(header)) if header.name == METHOD => {
                            match routes::header_value(at, header)? {
                                ValueMatch::Exact(method) => rule.methods.push(method),
                                ValueMatch::Regex(_) => return Err(at.unsupported()),
                            }
                        }
                        Some(other) => rule.paths.push(path(at, other)?),
                        None => return Err(at.unsupported()),
                    }
                }
            }
            _ => return Err(at.unsupported()),
        }
    }
    Ok(rule)
}

fn path(at: At<'_>, rule: Rule) -> Result<PathMatch, DecodeError> {
    use matcher_v3::path_matcher::Rule as Path;
    let prefix = |text: String| PathMatch::Prefix(text);
    match rule {
        Rule::UrlPath(matcher_v3::PathMatcher {
            rule: Some(Path::Path(text)),
        }) => match text.match_pattern {
            Some(MatchPattern::Exact(path)) => Ok(PathMatch::Exact(path)),
            Some(MatchPattern::SafeRegex(pattern)) => Ok(PathMatch::Regex(pattern.regex)),
            Some(MatchPattern::Prefix(text)) if text == "/" => Ok(prefix(text)),
            _ => Err(at.unsupported()),
        },
        // Whole segments: the path itself, and what is below it.
        Rule::OrRules(both) => match both.rules.into_iter().next().and_then(|one| one.rule) {
            Some(Rule::UrlPath(matcher_v3::PathMatcher {
                rule: Some(Path::Path(text)),
            })) => match text.match_pattern {
                Some(MatchPattern::Exact(path)) => Ok(prefix(path)),
                _ => Err(at.unsupported()),
            },
            _ => Err(at.unsupported()),
        },
        _ => Err(at.unsupported()),
    }
}
