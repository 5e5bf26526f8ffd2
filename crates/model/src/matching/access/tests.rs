use super::*;
use crate::resource::{HeaderMatch, PathMatch, ValueMatch};

struct Asked {
    method: &'static str,
    path: String,
    headers: Vec<(&'static str, String)>,
}

impl AccessRequest for Asked {
    fn method(&self) -> &str {
        self.method
    }

    fn path(&self) -> &str {
        &self.path
    }

    fn each_value<'r>(&'r self, name: &str, each: &mut dyn FnMut(&'r [u8]) -> bool) {
        for (_, value) in self.headers.iter().filter(|(field, _)| *field == name) {
            if !each(value.as_bytes()) {
                return;
            }
        }
    }
}

fn get(path: &str) -> Asked {
    Asked {
        method: "GET",
        path: path.into(),
        headers: Vec::new(),
    }
}

fn with(mut asked: Asked, name: &'static str, value: &str) -> Asked {
    asked.headers.push((name, value.to_owned()));
    asked
}

fn id(namespace: &str, service: &str) -> SpiffeId {
    format!("spiffe://phalanx.local/ns/{namespace}/sa/{service}")
        .parse()
        .unwrap()
}

fn policy(name: &str, effect: Effect, rules: Vec<AccessRule>) -> AccessPolicy {
    AccessPolicy {
        name: name.into(),
        effect,
        rules,
    }
}

fn compiled(policies: Vec<AccessPolicy>) -> CompiledAccess {
    CompiledAccess::compile(&Access { policies }).unwrap()
}

fn deny(rule: AccessRule) -> CompiledAccess {
    compiled(vec![policy("d", Effect::Deny, vec![rule])])
}

fn allow(rule: AccessRule) -> CompiledAccess {
    compiled(vec![policy("a", Effect::Allow, vec![rule])])
}

fn on_path(path: PathMatch) -> AccessRule {
    AccessRule {
        paths: vec![path],
        ..AccessRule::default()
    }
}

fn on_header(name: &str, value: &str) -> AccessRule {
    AccessRule {
        headers: vec![HeaderMatch {
            name: name.into(),
            value: ValueMatch::Exact(value.into()),
        }],
        ..AccessRule::default()
    }
}

fn of(callers: Vec<Caller>) -> AccessRule {
    AccessRule {
        callers,
        ..AccessRule::default()
    }
}

#[test]
fn without_policies_everybody_may() {
    let access = compiled(Vec::new());
    assert!(access.is_open());
    assert!(access.decide(None, &get("/")).is_allowed());
    assert!(access.decide_unread(None).is_allowed());
}

#[test]
fn deny_beats_allow_and_names_its_policy() {
    let access = compiled(vec![
        policy("everybody", Effect::Allow, vec![AccessRule::default()]),
        policy(
            "nobody-here",
            Effect::Deny,
            vec![on_path(PathMatch::Prefix("/admin".into()))],
        ),
    ]);
    assert_eq!(access.decide(None, &get("/")), Decision::Allowed);
    assert_eq!(
        access.decide(None, &get("/admin/x")),
        Decision::Denied("nobody-here")
    );
}

#[test]
fn where_policies_allow_only_those_are_allowed() {
    let access = allow(of(vec![Caller::Id(id("arena", "gateway"))]));
    let may = |who: Option<&SpiffeId>| access.decide(who, &get("/"));
    assert_eq!(may(Some(&id("arena", "gateway"))), Decision::Allowed);
    assert_eq!(may(Some(&id("arena", "gateway2"))), Decision::NotAllowed);
    assert_eq!(may(Some(&id("arena2", "gateway"))), Decision::NotAllowed);
    assert_eq!(may(None), Decision::NotAllowed);
    let nothing = compiled(vec![policy("empty", Effect::Allow, Vec::new())]);
    assert_eq!(nothing.decide(None, &get("/")), Decision::NotAllowed);
}

#[test]
fn nobody_in_plain_text_is_meant_by_callers() {
    let namespace = || of(vec![Caller::Namespace("arena".into())]);
    for rule in [namespace(), of(vec![Caller::Anyone])] {
        let access = allow(rule);
        let battle = id("arena", "battle");
        assert!(access.decide(Some(&battle), &get("/")).is_allowed());
        assert!(!access.decide(None, &get("/")).is_allowed());
    }
    let stranger = id("bank", "battle");
    assert!(
        !allow(namespace())
            .decide(Some(&stranger), &get("/"))
            .is_allowed()
    );
}

#[test]
fn parameters_of_segments_hide_no_path_from_a_denial_and_open_none_to_a_permission() {
    let denied = deny(on_path(PathMatch::Prefix("/admin".into())));
    let allowed = allow(on_path(PathMatch::Prefix("/open".into())));
    for hidden in [
        "/;a=b/admin",
        "/admin;x=1",
        "/admin;x/y",
        "/x/..;/admin",
        "/;/admin",
    ] {
        assert!(!denied.decide(None, &get(hidden)).is_allowed(), "{hidden}");
    }
    for hidden in ["/open/..;/admin", "/open;/..;x/..;y/z", "/;open"] {
        assert!(!allowed.decide(None, &get(hidden)).is_allowed(), "{hidden}");
    }
    assert!(allowed.decide(None, &get("/open/a;v=1")).is_allowed());
    assert!(!allowed.decide(None, &get("/open;v=1/a")).is_allowed());
    assert!(denied.decide(None, &get("/a;b/admin")).is_allowed());
}

#[test]
fn repeated_header_neither_hides_from_a_denial_nor_earns_a_permission() {
    let denied = deny(on_header("x-role", "bot"));
    let allowed = allow(on_header("x-role", "admin"));
    let asked = |values: &[&str]| {
        values
            .iter()
            .fold(get("/"), |asked, v| with(asked, "x-role", v))
    };
    for values in [
        &["bot"][..],
        &["good", "bot"],
        &["bot", "good"],
        &["good, bot"],
        &["good,bot ,x"],
    ] {
        assert!(
            !denied.decide(None, &asked(values)).is_allowed(),
            "{values:?}"
        );
    }
    for values in [&[][..], &["good"], &["robot"]] {
        assert!(
            denied.decide(None, &asked(values)).is_allowed(),
            "{values:?}"
        );
    }
    for values in [
        &[][..],
        &["admin", "user"],
        &["user", "admin"],
        &["admin,user"],
    ] {
        assert!(
            !allowed.decide(None, &asked(values)).is_allowed(),
            "{values:?}"
        );
    }
    for values in [&["admin"][..], &["admin", "admin"]] {
        assert!(
            allowed.decide(None, &asked(values)).is_allowed(),
            "{values:?}"
        );
    }
    let list = deny(on_header("x-role", "a, b"));
    assert!(!list.decide(None, &asked(&["a", "b"])).is_allowed());
}

#[test]
fn connection_that_is_not_read_is_denied_by_what_can_not_be_seen() {
    let gateway = id("arena", "gateway");
    let by = |mut rule: AccessRule| {
        rule.callers = vec![Caller::Id(gateway.clone())];
        rule
    };
    let path = on_path(PathMatch::Exact("/x".into()));
    assert!(
        !deny(by(path.clone()))
            .decide_unread(Some(&gateway))
            .is_allowed()
    );
    assert!(deny(by(path.clone())).decide_unread(None).is_allowed());
    assert!(!allow(by(path)).decide_unread(Some(&gateway)).is_allowed());
    assert!(
        allow(by(AccessRule::default()))
            .decide_unread(Some(&gateway))
            .is_allowed()
    );
}

#[test]
fn pattern_that_does_not_compile_is_refused_with_its_policy() {
    let access = Access {
        policies: vec![policy(
            "AuthorizationPolicy/arena/odd",
            Effect::Deny,
            vec![on_path(PathMatch::Regex("(".into()))],
        )],
    };
    let error = CompiledAccess::compile(&access).unwrap_err().to_string();
    assert!(error.contains("AuthorizationPolicy/arena/odd"), "{error}");
}

/// The same, written down as naively as can be.
fn oracle(access: &Access, caller: Option<&SpiffeId>, asked: &Asked) -> bool {
    let holds = |rule: &AccessRule| {
        let mut all = true;
        if !rule.callers.is_empty() {
            all &= rule.callers.iter().any(|one| match (one, caller) {
                (_, None) => false,
                (Caller::Anyone, Some(_)) => true,
                (Caller::Id(id), Some(caller)) => id.to_string() == caller.to_string(),
                (Caller::Namespace(ns), Some(caller)) => {
                    caller.to_string().contains(&format!("/ns/{ns}/sa/"))
                }
            });
        }
        if !rule.methods.is_empty() {
            all &= rule.methods.contains(&asked.method.to_owned());
        }
        if !rule.paths.is_empty() {
            all &= rule.paths.iter().any(|path| match path {
                PathMatch::Exact(text) => *text == asked.path,
                PathMatch::Prefix(text) => format!("{}/", asked.path)
                    .starts_with(&format!("{}/", text.trim_end_matches('/'))),
                PathMatch::Regex(_) => unreachable!(),
            });
        }
        for header in &rule.headers {
            let ValueMatch::Exact(expected) = &header.value else {
                unreachable!()
            };
            all &= asked
                .headers
                .iter()
                .any(|(name, value)| *name == header.name && value == expected);
        }
        all
    };
    let any = |effect| {
        access
            .policies
            .iter()
            .filter(move |p| p.effect == effect)
            .any(|p| p.rules.iter().any(holds))
    };
    let has_allow = access.policies.iter().any(|p| p.effect == Effect::Allow);
    !any(Effect::Deny) && (!has_allow || any(Effect::Allow))
}

#[test]
fn decisions_are_those_of_the_naive_oracle() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = move |n: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    let (namespaces, services) = (["arena", "bank"], ["battle", "gateway"]);
    let (methods, paths) = (
        ["GET", "POST"],
        ["/", "/a", "/a/b", "/ab", "/admin", "/admin/x"],
    );
    let (names, values) = (["x-role", "x-env"], ["admin", "bot"]);
    let mut counts = [0_u32; 2];
    for _ in 0..20_000 {
        let mut policies = Vec::new();
        for number in 0..below(4) {
            let mut rules = Vec::new();
            for _ in 0..below(3) {
                let mut rule = AccessRule::default();
                for _ in 0..below(3) {
                    rule.callers.push(match below(4) {
                        0 => Caller::Anyone,
                        1 => Caller::Namespace(namespaces[below(2)].into()),
                        _ => Caller::Id(id(namespaces[below(2)], services[below(2)])),
                    });
                }
                if below(3) == 0 {
                    rule.methods.push(methods[below(2)].into());
                }
                for _ in 0..below(3) {
                    let path = paths[below(paths.len())].to_owned();
                    rule.paths.push(if below(2) == 0 {
                        PathMatch::Exact(path)
                    } else {
                        PathMatch::Prefix(path)
                    });
                }
                if below(3) == 0 {
                    rule.headers
                        .extend(on_header(names[below(2)], values[below(2)]).headers);
                }
                rules.push(rule);
            }
            let effect = [Effect::Allow, Effect::Deny][below(2)];
            policies.push(policy(&number.to_string(), effect, rules));
        }
        let mut asked = Asked {
            method: methods[below(2)],
            path: paths[below(paths.len())].to_owned(),
            headers: Vec::new(),
        };
        for name in names {
            if below(2) == 0 {
                asked.headers.push((name, values[below(2)].to_owned()));
            }
        }
        let caller = (below(3) > 0).then(|| id(namespaces[below(2)], services[below(2)]));
        let access = Access { policies };
        let decided = CompiledAccess::compile(&access)
            .unwrap()
            .decide(caller.as_ref(), &asked)
            .is_allowed();
        assert_eq!(
            decided,
            oracle(&access, caller.as_ref(), &asked),
            "{access:?} {caller:?} {} {} {:?}",
            asked.method,
            asked.path,
            asked.headers
        );
        counts[usize::from(decided)] += 1;
    }
    assert!(counts.iter().all(|count| *count > 2_000), "{counts:?}");
}
