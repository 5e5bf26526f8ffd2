//! Mirrors, sessions, CORS, and how parents name ports.

use super::*;
use crate::document::MirrorRef;
use crate::resource::{Carrier, Compare, Cors, MILLION, Session};

fn route(kind: &str, rule: &str) -> String {
    let parents = "parentRefs: [{kind: Service, name: a, sectionName: http}]";
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: r}}\nspec:\n  {parents}\n  rules:\n  - {rule}\n"
    )
}

fn rule(kind: &str, text: &str) -> crate::document::RouteRule {
    match good(&route(kind, text)).as_slice() {
        [Document::Route(route)] => route.rules[0].clone(),
        other => panic!("{other:?}"),
    }
}

fn refused(kind: &str, text: &str, why: &str) {
    let told = problems(&route(kind, text));
    assert!(
        told.iter().any(|problem| problem.contains(why)),
        "{text}: {told:?}"
    );
}

fn mirrors(text: &str) -> Vec<u32> {
    let mirrors = rule("HTTPRoute", &format!("filters: [{text}]")).mirrors;
    mirrors.iter().map(|mirror| mirror.per_million).collect()
}

#[test]
fn mirrors_have_their_share_in_millionths() {
    let of = |share: &str| {
        format!(
            "{{type: RequestMirror, requestMirror: {{backendRef: {{name: m, port: 80}}{share}}}}}"
        )
    };
    let all = [
        "",
        ", percent: 42",
        ", percent: 0",
        ", fraction: {numerator: 5}",
        ", fraction: {numerator: 1, denominator: 3}",
        ", fraction: {numerator: 1, denominator: 100000000}",
    ];
    let all = all.map(of).join(", ");
    assert_eq!(mirrors(&all), [MILLION, 420_000, 0, 50_000, 333_333, 1]);
    let text = "filters: [{type: RequestMirror, requestMirror: {backendRef: {name: m, namespace: n, port: 81}}}]";
    let expected = MirrorRef {
        service: ServiceName::new("n", "m"),
        port: 81,
        per_million: MILLION,
    };
    assert_eq!(rule("GRPCRoute", text).mirrors, [expected]);
    for (share, why) in [
        (", percent: 101", "not within"),
        (", percent: 1, fraction: {numerator: 1}", "say the same"),
        (", fraction: {numerator: 3, denominator: 2}", "more than"),
        (", fraction: {numerator: 1, denominator: 0}", "not within"),
    ] {
        refused("HTTPRoute", &format!("filters: [{}]", of(share)), why);
    }
}

#[test]
fn sessions_are_read_whole() {
    let read = |kind, text: &str| {
        rule(kind, &format!("sessionPersistence: {{{text}}}"))
            .session
            .unwrap()
    };
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    let plain = Session {
        name: String::new(),
        carrier: Carrier::Cookie,
        absolute: None,
        idle: None,
    };
    assert_eq!(read("GRPCRoute", ""), plain);
    assert_eq!(
        read(
            "HTTPRoute",
            "sessionName: Room, absoluteTimeout: 1h, idleTimeout: 90s, cookieConfig: {lifetimeType: Permanent}"
        ),
        Session {
            name: "Room".into(),
            carrier: Carrier::PermanentCookie,
            absolute: seconds(3600),
            idle: seconds(90),
        }
    );
    assert_eq!(
        read("HTTPRoute", "type: Header, sessionName: X-Room"),
        Session {
            name: "x-room".into(),
            carrier: Carrier::Header,
            ..plain
        }
    );
    for (text, why) in [
        ("cookieConfig: {lifetimeType: Permanent}", "absoluteTimeout"),
        ("type: Header, cookieConfig: {}", "no cookie"),
        ("type: Header, sessionName: host", "host"),
        ("type: Header, sessionName: x-phalanx-a", "proxy"),
        ("sessionName: 'a b'", "no name of a cookie"),
        ("idleTimeout: 1500ms", "whole number of seconds"),
        ("absoluteTimeout: 0s", "whole number of seconds"),
        ("path: /", "unknown field"),
    ] {
        refused("HTTPRoute", &format!("sessionPersistence: {{{text}}}"), why);
    }
}

#[test]
fn cors_is_read_whole() {
    let read = |text: &str| {
        let cors = rule(
            "HTTPRoute",
            &format!("filters: [{{type: CORS, cors: {{{text}}}}}]"),
        )
        .cors;
        cors.unwrap()
    };
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    assert_eq!(
        read(
            "allowOrigins: ['https://A.test:443', 'https://*.b.test'], allowCredentials: true, allowMethods: [GET], \
             allowHeaders: [X-A, x-b], exposeHeaders: [x-c], maxAge: 9"
        ),
        Cors {
            origins: vec![
                ValueMatch::Exact("https://a.test".into()),
                ValueMatch::Regex("https://[^/:]+\\.b\\.test".into()),
            ],
            credentials: true,
            methods: words(&["GET"]),
            headers: words(&["x-a", "x-b"]),
            exposed: words(&["x-c"]),
            max_age: 9,
        }
    );
    let open = read("allowOrigins: ['*']");
    assert_eq!(open.origins, [ValueMatch::Exact("*".into())]);
    assert_eq!(open.max_age, 5);
    for (text, why) in [
        ("allowOrigins: ['*', 'https://a.test']", "stands for all"),
        ("allowOrigins: ['a.test']", "is no origin"),
        ("allowOrigins: ['ftp://a.test']", "is no origin"),
        ("allowOrigins: ['https://a.test/']", "is no origin"),
        ("allowMethods: [BREW]", "unknown value"),
        ("allowHeaders: [x-a, X-A]", "twice"),
        (
            "allowCredentials: true, exposeHeaders: ['*']",
            "name the headers",
        ),
        ("maxAge: 0", "not within"),
    ] {
        refused(
            "HTTPRoute",
            &format!("filters: [{{type: CORS, cors: {{{text}}}}}]"),
            why,
        );
    }
}

#[test]
fn what_is_not_built_or_means_nothing_is_refused_by_name() {
    for (kind, text, why) in [
        (
            "HTTPRoute",
            "filters: [{type: ExtensionRef, extensionRef: {group: phalanx.dev, kind: Quota, name: low}}]",
            "unknown value `Quota`",
        ),
        (
            "HTTPRoute",
            "filters: [{type: ExternalAuth, externalAuth: {}}]",
            "`ExternalAuth`",
        ),
        (
            "GRPCRoute",
            "filters: [{type: CORS, cors: {}}]",
            "unknown value `CORS`",
        ),
        (
            "GRPCRoute",
            "filters: [{type: ExtensionRef, extensionRef: {group: phalanx.dev, kind: Priority, name: lwo}}]",
            "unknown value `lwo`",
        ),
        (
            "HTTPRoute",
            "backendRefs: [{name: b, port: 80, filters: [{type: ExtensionRef}]}]",
            "`ExtensionRef`",
        ),
        ("GRPCRoute", "timeouts: {request: 1s}", "`timeouts`"),
        ("GRPCRoute", "retry: {}", "`retry`"),
        (
            "HTTPRoute",
            "backendRefs: [{name: b, port: 80, filters: [{type: RequestMirror}]}]",
            "`RequestMirror`",
        ),
        (
            "HTTPRoute",
            "filters: [{type: RequestRedirect, requestRedirect: {}}, {type: CORS, cors: {}}]",
            "a rule that redirects",
        ),
        (
            "HTTPRoute",
            "timeouts: {request: 1s, backendRequest: 2s}",
            "longer",
        ),
    ] {
        refused(kind, text, why);
    }
}

#[test]
fn zero_is_a_word_of_its_own_about_time() {
    let limits = |text: &str| {
        let rule = rule("HTTPRoute", &format!("timeouts: {{{text}}}"));
        (rule.request_timeout, rule.attempt_timeout)
    };
    assert_eq!(limits(""), (None, None));
    assert_eq!(
        limits("request: 0s, backendRequest: 0s"),
        (Some(Duration::ZERO), None)
    );
    let second = Duration::from_secs(1);
    assert_eq!(
        limits("request: 0s, backendRequest: 1s"),
        (Some(Duration::ZERO), Some(second))
    );
}

#[test]
fn a_parent_may_name_its_port() {
    let document = good(&route("HTTPRoute", "{}"));
    let [Document::Route(route)] = document.as_slice() else {
        panic!("{document:?}")
    };
    assert_eq!(route.parents[0].section.as_deref(), Some("http"));
}

/// A route with these annotations and one mirror.
fn compared(annotations: &str) -> String {
    let text = "filters: [{type: RequestMirror, requestMirror: {backendRef: {name: m, port: 80}}}]";
    let named = format!("metadata: {{name: r, annotations: {{{annotations}}}}}");
    route("HTTPRoute", text).replace("metadata: {name: r}", &named)
}

#[test]
fn annotations_say_that_mirrors_are_compared_and_what_is_left_out() {
    let of = |annotations: &str| match good(&compared(annotations)).as_slice() {
        [Document::Route(route)] => route.compare.clone(),
        other => panic!("{other:?}"),
    };
    let on = "phalanx.dev/compare-mirrors: 'true'";
    assert_eq!(of(""), None);
    assert_eq!(of("phalanx.dev/compare-mirrors: 'false'"), None);
    assert_eq!(of(on), Some(Compare::default()));
    let but = format!("{on}, phalanx.dev/compare-ignore: 'X-Version, $.now $.rooms[].id'");
    let expected = Compare {
        headers: vec!["x-version".into()],
        paths: vec!["$.now".into(), "$.rooms[].id".into()],
    };
    assert_eq!(of(&but), Some(expected));
    for (annotations, why) in [
        (
            "phalanx.dev/compare-mirrors: 'yes'",
            "neither true nor false",
        ),
        ("phalanx.dev/compare-ignore: 'x'", "without"),
        (
            &format!("{on}, phalanx.dev/compare-ignore: 'a b/c'"),
            "neither a header's name",
        ),
    ] {
        let told = problems(&compared(annotations));
        assert!(
            told.iter().any(|problem| problem.contains(why)),
            "{annotations}: {told:?}"
        );
    }
    let bare = compared(on).replace("- filters", "- {}\n  # ");
    let told = problems(&bare);
    assert!(
        told.iter()
            .any(|problem| problem.contains("no rule has a mirror")),
        "{told:?}"
    );
}
