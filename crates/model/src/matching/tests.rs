use std::cmp::Ordering;

use proptest::prelude::*;

use super::canonical::{AuthorityError, PathError, canonical_authority, canonical_path};
use super::order::{GrpcName, grpc_path, precedence};
use super::pattern::Pattern;
use super::*;
use crate::reason::Reason;
use crate::resource::{Action, HeaderEdit, RuleMatch};

#[derive(Default)]
struct Ask {
    method: &'static str,
    path: &'static str,
    query: Option<&'static str>,
    headers: Vec<(&'static str, &'static str)>,
    grpc: bool,
}

impl Request for Ask {
    fn method(&self) -> &str {
        self.method
    }
    fn path(&self) -> &str {
        self.path
    }
    fn query(&self) -> Option<&str> {
        self.query
    }
    fn header(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        let values: Vec<&str> = self
            .headers
            .iter()
            .filter(|(n, _)| *n == name)
            .map(|(_, v)| *v)
            .collect();
        match values.as_slice() {
            [] => None,
            [one] => Some(Cow::Borrowed(one.as_bytes())),
            many => Some(Cow::Owned(many.join(",").into_bytes())),
        }
    }
    fn is_grpc(&self) -> bool {
        self.grpc
    }
}

fn get(path: &'static str) -> Ask {
    Ask {
        method: "GET",
        path,
        ..Ask::default()
    }
}

fn rule(name: &str, matches: RuleMatch) -> Rule {
    let edit = HeaderEdit::default();
    Rule {
        name: name.into(),
        matches,
        request_headers: edit.clone(),
        response_headers: edit,
        action: Action::Respond(Reason::Fault),
    }
}

fn path(path: PathMatch) -> RuleMatch {
    RuleMatch {
        path,
        ..RuleMatch::default()
    }
}

fn prefix(text: &str) -> RuleMatch {
    path(PathMatch::Prefix(text.into()))
}

fn exact(text: &str) -> RuleMatch {
    path(PathMatch::Exact(text.into()))
}

fn regex(text: &str) -> RuleMatch {
    path(PathMatch::Regex(text.into()))
}

fn table(domains: &[(&str, &[&str])], rules: Vec<Rule>) -> RouteTable {
    let host = |(name, domains): &(&str, &[&str])| VirtualHost {
        name: (*name).into(),
        domains: domains.iter().map(|d| (*d).into()).collect(),
        rules: rules.clone(),
    };
    RouteTable {
        name: "outbound".into(),
        hosts: domains.iter().map(host).collect(),
    }
}

fn compile(table: &RouteTable) -> CompiledTable<usize> {
    let mut count = 0;
    CompiledTable::compile(table, |_| {
        count += 1;
        Ok::<_, std::convert::Infallible>(count - 1)
    })
    .unwrap()
}

/// The name of the rule that a request meets among `rules`.
fn met(rules: &[(&str, RuleMatch)], request: &Ask) -> Option<String> {
    let rules = rules
        .iter()
        .map(|(name, m)| rule(name, m.clone()))
        .collect();
    let table = compile(&table(&[("any", &["*"])], rules));
    table
        .host("x")
        .and_then(|host| host.find(request))
        .map(|rule| rule.name.clone())
}

#[test]
fn host_is_exact_then_longest_suffix_then_any() {
    let table = table(
        &[
            ("any", &["*"]),
            ("wide", &["*.mesh"]),
            ("narrow", &["*.svc.mesh"]),
            ("one", &["a.svc.mesh", "a:80"]),
        ],
        vec![],
    );
    let compiled = compile(&table);
    let host = |authority| compiled.host(authority).map(|h| h.name.as_str());
    assert_eq!(host("a.svc.mesh"), Some("one"));
    assert_eq!(host("a:80"), Some("one"));
    assert_eq!(host("b.svc.mesh"), Some("narrow"));
    assert_eq!(host("b.mesh"), Some("wide"));
    assert_eq!(
        host(".mesh"),
        Some("any"),
        "a wildcard stands for at least one character"
    );
    assert_eq!(host("a:81"), Some("any"));
}

#[test]
fn unknown_host_is_none_without_wildcard() {
    assert!(
        compile(&table(&[("one", &["a"])], vec![]))
            .host("b")
            .is_none()
    );
}

#[test]
fn a_domain_of_two_hosts_or_with_an_inner_star_is_refused() {
    let refused = |domains: &[(&str, &[&str])]| {
        CompiledTable::compile(&table(domains, vec![]), |_| Ok::<(), std::fmt::Error>(()))
            .err()
            .map(|e| e.to_string())
    };
    assert!(
        refused(&[("a", &["x"]), ("b", &["x"])])
            .unwrap()
            .contains("belongs to another host")
    );
    assert!(refused(&[("a", &["*.x"]), ("b", &["*.x"])]).is_some());
    assert!(refused(&[("a", &["*"]), ("b", &["*"])]).is_some());
    for domain in ["x.*", "a*b", "**", ""] {
        assert!(
            refused(&[("a", &[domain])])
                .unwrap()
                .contains("is no domain"),
            "{domain}"
        );
    }
}

#[test]
fn prefix_covers_whole_segments_only() {
    for (path, meets) in [
        ("/a", true),
        ("/a/", true),
        ("/a/b", true),
        ("/ab", false),
        ("/", false),
        ("/b/a", false),
    ] {
        assert_eq!(
            met(&[("r", prefix("/a"))], &get(path)).is_some(),
            meets,
            "{path}"
        );
        assert_eq!(
            met(&[("r", prefix("/a/"))], &get(path)).is_some(),
            meets,
            "{path} by /a/"
        );
    }
    assert!(met(&[("r", prefix("/"))], &get("/anything")).is_some());
    assert!(
        met(&[("r", prefix("/"))], &get("*")).is_none(),
        "OPTIONS * has no path"
    );
}

#[test]
fn regex_matches_the_whole_path() {
    let rules = [("r", regex("/a|/b+"))];
    assert!(met(&rules, &get("/a")).is_some());
    assert!(met(&rules, &get("/bb")).is_some());
    assert!(met(&rules, &get("/ab")).is_none());
    assert!(met(&rules, &get("/x/a")).is_none());
}

#[test]
fn first_rule_that_matches_wins_and_all_conditions_must_hold() {
    let header = |name: &str, value: &str| HeaderMatch {
        name: name.into(),
        value: ValueMatch::Exact(value.into()),
    };
    let rules = [
        (
            "post",
            RuleMatch {
                method: Some("POST".into()),
                ..exact("/x")
            },
        ),
        (
            "vip",
            RuleMatch {
                headers: vec![header("x-vip", "1"), header("x-zone", "a")],
                ..exact("/x")
            },
        ),
        (
            "grpc",
            RuleMatch {
                grpc: true,
                ..exact("/x")
            },
        ),
        ("exact", exact("/x")),
        ("rest", prefix("/")),
    ];
    let ask = |method, headers: &[(&'static str, &'static str)], grpc| Ask {
        method,
        path: "/x",
        headers: headers.to_vec(),
        grpc,
        query: None,
    };
    assert_eq!(met(&rules, &ask("POST", &[], false)).unwrap(), "post");
    assert_eq!(
        met(
            &rules,
            &ask("GET", &[("x-vip", "1"), ("x-zone", "a")], true)
        )
        .unwrap(),
        "vip"
    );
    assert_eq!(
        met(&rules, &ask("GET", &[("x-vip", "1")], true)).unwrap(),
        "grpc"
    );
    assert_eq!(met(&rules, &ask("GET", &[], false)).unwrap(), "exact");
    assert_eq!(met(&rules, &get("/y")).unwrap(), "rest");
}

#[test]
fn repeated_header_is_compared_joined_by_comma() {
    let value = |value| RuleMatch {
        headers: vec![HeaderMatch {
            name: "x".into(),
            value,
        }],
        ..prefix("/")
    };
    let ask = Ask {
        headers: vec![("x", "a"), ("x", "b")],
        ..get("/")
    };
    assert!(met(&[("r", value(ValueMatch::Exact("a,b".into())))], &ask).is_some());
    assert!(met(&[("r", value(ValueMatch::Exact("a".into())))], &ask).is_none());
    assert!(met(&[("r", value(ValueMatch::Regex("a,.".into())))], &ask).is_some());
}

#[test]
fn query_compares_the_decoded_first_value() {
    let value = |name: &str, value: &str| RuleMatch {
        query: vec![QueryMatch {
            name: name.into(),
            value: ValueMatch::Exact(value.into()),
        }],
        ..prefix("/")
    };
    let meets = |name, wanted, query| {
        met(
            &[("r", value(name, wanted))],
            &Ask {
                query: Some(query),
                ..get("/")
            },
        )
        .is_some()
    };
    assert!(meets("a", "1", "b=2&a=1"));
    assert!(meets("a", "1", "a=1&a=2"));
    assert!(!meets("a", "2", "a=1&a=2"), "only the first value counts");
    assert!(meets("a", "x y", "%61=x%20y"));
    assert!(meets("a", "x+y", "a=x+y"));
    assert!(meets("a", "", "a"));
    assert!(meets("a", "=", "a=="));
    assert!(meets("a", "%z1", "a=%z1"));
    assert!(!meets("a", "1", "aa=1"));
    assert!(met(&[("r", value("a", ""))], &get("/")).is_none());
}

#[test]
fn rule_knows_its_prefix_and_attachment() {
    let compiled = compile(&table(
        &[("h", &["h"])],
        vec![
            rule("a", exact("/e")),
            rule("b", prefix("/abc")),
            rule("c", prefix("/")),
        ],
    ));
    let rules: Vec<_> = compiled
        .host("h")
        .unwrap()
        .rules
        .iter()
        .map(|r| (r.prefix_len(), r.attachment))
        .collect();
    assert_eq!(rules, [(None, 0), (Some(4), 1), (Some(1), 2)]);
}

#[test]
fn bad_pattern_and_refused_action_name_the_rule() {
    let bad = table(
        &[("h", &["h"])],
        vec![rule("HTTPRoute/default/x/0", regex("("))],
    );
    let error = CompiledTable::compile(&bad, |_| Ok::<(), std::fmt::Error>(())).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("rule `HTTPRoute/default/x/0`: the pattern is no regular expression"),
        "{error}"
    );
    let fine = table(&[("h", &["h"])], vec![rule("r", prefix("/"))]);
    assert!(
        CompiledTable::compile(&fine, |_| Err::<(), _>(std::fmt::Error))
            .unwrap_err()
            .to_string()
            .starts_with("rule `r`")
    );
}

#[test]
fn canonical_path_resolves_merges_and_decodes() {
    for (raw, canonical) in [
        ("/", "/"),
        ("*", "*"),
        ("/a/b", "/a/b"),
        ("/.well-known/..x", "/.well-known/..x"),
        ("/a/./b", "/a/b"),
        ("/a/.", "/a/"),
        ("/a/b/..", "/a/"),
        ("/a/..", "/"),
        ("/a/../b", "/b"),
        ("//a///b//", "/a/b/"),
        ("/a//../b", "/a/b"),
        ("/%61%2d%7E", "/a-~"),
        ("/%2e%2E/x", ""),
        ("/a/%2e%2e/b", "/b"),
        ("/a%20b%3f%3F", "/a%20b%3F%3F"),
        ("/a%c3%a4ä", "/a%C3%A4%C3%A4"),
        ("/{x}|\"", "/%7Bx%7D%7C%22"),
        ("/%252f", "/%252f"),
        ("/a;b=1,c@d:e!$&'()*+", "/a;b=1,c@d:e!$&'()*+"),
    ] {
        let expected = if canonical.is_empty() {
            Err(PathError::AboveRoot)
        } else {
            Ok(Cow::from(canonical))
        };
        assert_eq!(canonical_path(raw), expected, "{raw}");
    }
}

#[test]
fn ambiguous_paths_are_refused() {
    for (raw, error) in [
        ("", PathError::NotAbsolute),
        ("a", PathError::NotAbsolute),
        ("http://x/", PathError::NotAbsolute),
        ("**", PathError::NotAbsolute),
        ("/../x", PathError::AboveRoot),
        ("/a/../../x", PathError::AboveRoot),
        ("/a%2fb", PathError::Hidden),
        ("/a%2Fb", PathError::Hidden),
        ("/a%5cb", PathError::Hidden),
        ("/a%00", PathError::Hidden),
        ("/a%0d%0a", PathError::Hidden),
        ("/a%7f", PathError::Hidden),
        ("/a\\b", PathError::Character),
        ("/a#b", PathError::Character),
        ("/a?b", PathError::Character),
        ("/a b", PathError::Character),
        ("/a\0", PathError::Character),
        ("/a\u{7f}", PathError::Character),
        ("/a%", PathError::Escape),
        ("/a%4", PathError::Escape),
        ("/a%zz", PathError::Escape),
        ("/%+1", PathError::Escape),
    ] {
        assert_eq!(canonical_path(raw), Err(error), "{raw:?}");
    }
}

#[test]
fn canonical_path_is_not_copied() {
    for raw in ["/", "/battle.v1.Battle/Start", "/a/b%20c/", "/.x/..y"] {
        assert!(matches!(canonical_path(raw), Ok(Cow::Borrowed(_))), "{raw}");
    }
}

#[test]
fn canonical_authority_has_one_form() {
    for (raw, text, host, port) in [
        ("battle", "battle", "battle", None),
        (
            "Battle.Default.SVC.mesh.:80",
            "battle.default.svc.mesh:80",
            "battle.default.svc.mesh",
            Some(80),
        ),
        ("a.", "a", "a", None),
        ("A", "a", "a", None),
        (
            "127.0.0.1:65535",
            "127.0.0.1:65535",
            "127.0.0.1",
            Some(65535),
        ),
        ("[::1]:80", "[::1]:80", "[::1]", Some(80)),
        ("[0:0::1]", "[::1]", "[::1]", None),
        (
            "[2001:DB8::A]:1",
            "[2001:db8::a]:1",
            "[2001:db8::a]",
            Some(1),
        ),
        ("my_box", "my_box", "my_box", None),
    ] {
        let authority = canonical_authority(raw).unwrap();
        assert_eq!(
            (authority.as_str(), authority.host(), authority.port()),
            (text, host, port),
            "{raw}"
        );
    }
}

#[test]
fn ambiguous_authorities_are_refused() {
    for (raw, error) in [
        ("", AuthorityError::Empty),
        (".", AuthorityError::Empty),
        (":80", AuthorityError::Empty),
        ("u@h", AuthorityError::UserInfo),
        ("u:p@h:80", AuthorityError::UserInfo),
        ("h:", AuthorityError::Port),
        ("h:0", AuthorityError::Port),
        ("h:080", AuthorityError::Port),
        ("h:65536", AuthorityError::Port),
        ("h:+80", AuthorityError::Port),
        ("h:80:80", AuthorityError::Port),
        ("::1", AuthorityError::Empty),
        ("[::1", AuthorityError::Host),
        ("[::1]x", AuthorityError::Host),
        ("[1.2.3.4]", AuthorityError::Host),
        ("[fe80::1%25eth0]", AuthorityError::Host),
        ("a..b", AuthorityError::Host),
        ("a..", AuthorityError::Host),
        (".a", AuthorityError::Host),
        ("a b", AuthorityError::Host),
        ("a/b", AuthorityError::Host),
        ("a%41", AuthorityError::Host),
        ("ä", AuthorityError::Host),
    ] {
        assert_eq!(canonical_authority(raw), Err(error), "{raw:?}");
    }
}

fn in_order(rules: &[RuleMatch]) {
    for (i, a) in rules.iter().enumerate() {
        for (j, b) in rules.iter().enumerate() {
            assert_eq!(precedence(a, b), i.cmp(&j), "{a:?}\n{b:?}");
        }
    }
}

#[test]
fn precedence_follows_the_gateway_api() {
    let header = HeaderMatch {
        name: "x".into(),
        value: ValueMatch::Exact("1".into()),
    };
    let query = QueryMatch {
        name: "x".into(),
        value: ValueMatch::Exact("1".into()),
    };
    in_order(&[
        exact("/longer"),
        exact("/x"),
        regex("/a/.*"),
        regex("/.*"),
        RuleMatch {
            method: Some("GET".into()),
            ..prefix("/long")
        },
        RuleMatch {
            headers: vec![header.clone(), header.clone()],
            ..prefix("/long")
        },
        RuleMatch {
            headers: vec![header.clone()],
            query: vec![query.clone()],
            ..prefix("/long")
        },
        RuleMatch {
            headers: vec![header],
            ..prefix("/long")
        },
        RuleMatch {
            query: vec![query],
            ..prefix("/long")
        },
        prefix("/long"),
        prefix("/"),
    ]);
}

#[test]
fn grpc_precedence_counts_service_then_method() {
    use GrpcName::{Any, Exact, Regex};
    let grpc = |service, method| RuleMatch {
        grpc: true,
        ..path(grpc_path(service, method))
    };
    in_order(&[
        grpc(Exact("a.LongService"), Any),
        grpc(Exact("a.Short"), Exact("Method")),
        grpc(Exact("a.Short"), Exact("Me")),
        grpc(Exact("a.Short"), Any),
        grpc(Any, Exact("LongerMethod")),
        grpc(Any, Regex("Get.*")),
        grpc(Any, Any),
        prefix("/not/grpc/at/all"),
    ]);
}

#[test]
fn grpc_paths_match_service_and_method() {
    use GrpcName::{Any, Exact, Regex};
    let meets = |service, method, path_| {
        met(&[("r", path(grpc_path(service, method)))], &get(path_)).is_some()
    };
    assert!(meets(Exact("a.B"), Exact("C"), "/a.B/C"));
    assert!(!meets(Exact("a.B"), Exact("C"), "/axB/C"));
    assert!(meets(Exact("a.B"), Any, "/a.B/D"));
    assert!(!meets(Exact("a.B"), Any, "/a.Bx/D"));
    assert!(meets(Any, Exact("C"), "/x/C"));
    assert!(!meets(Any, Exact("C"), "/x/y/C"));
    assert!(meets(Exact("a.B"), Regex("C|D"), "/a.B/D"));
    assert!(!meets(Exact("a.B"), Regex("C|D"), "/axB/D"));
}

#[test]
fn patterns_read_like_re2() {
    let matches =
        |pattern: &str, value: &str| Pattern::parse(pattern).unwrap().matches(value.as_bytes());
    assert!(matches(r"\d+", "123"));
    assert!(!matches(r"\d+", "٣"), "ASCII digits only");
    assert!(!matches(r"\w", "ä"));
    assert!(matches(r"[^\W\d]+", "abc_"));
    assert!(!matches(r"[\D]", "1"));
    assert!(matches(r"\bfoo\b.*", "foo bar"));
    assert!(!matches(r"\s", "\u{b}"), "no vertical tab");
    assert!(matches("(?i)AbC|x", "aBc"));
    assert!(matches("[]a]+", "]a"));
    assert!(matches("[[:alpha:]_]+", "ab_"));
    assert!(matches(r"\x41\x{42}", "AB"));
    assert!(matches("(?P<x>a)(?<y>b)(?:c)", "abc"));
    assert!(matches("(?s:.)", "\n"));
    assert!(!matches(".", "\n"));
    assert!(matches(".{2}", "äö"));
    assert!(!matches("a", "a\n"));
    assert!(matches("", ""));
}

#[test]
fn patterns_that_engines_read_differently_are_refused() {
    for pattern in [
        "(?=a)",
        "(?!a)",
        "(?<=a)b",
        "(?<!a)b",
        r"(a)\1",
        r"\p{L}",
        r"\pL",
        r"\u0041",
        r"\Qa\E",
        r"\C",
        r"\Z",
        r"\h",
        r"\<",
        r"\_",
        "[a&&b]",
        "[a--b]",
        "[a~~b]",
        "[a[b]]",
        "[[:nope:]]",
        "(?x) a # b",
        "(?u:a)",
        "(?R)a",
        "(?)",
        "(?i",
        "(?-:a)",
        "a**",
        "a{2}{3}",
        "a+*",
        "*a",
        "a|*",
        "a{,5}",
        "a{ 2 }",
        "a{2",
        "{",
        "a{1001}",
        "(a{100}){11}",
        "a{5,2}",
        "a)|(b",
        "(",
        "[",
        "\\",
        r"[\b]",
        r"\x4",
        r"\x{}",
        "(?P<1a>b)",
        "(?P<>b)",
        "[]",
        "[b-a]",
    ] {
        assert!(Pattern::parse(pattern).is_err(), "{pattern}");
    }
}

#[test]
fn huge_patterns_are_refused() {
    assert_eq!(
        Pattern::parse(&"a".repeat(5000)).unwrap_err(),
        super::pattern::PatternError::Length
    );
    assert!(
        Pattern::parse("(?:[^/]{1,100}[^a]{1,10}){1000}")
            .unwrap_err()
            .to_string()
            .contains("1000")
    );
    assert_eq!(
        Pattern::parse(&"[^/]{999}".repeat(20)).unwrap_err(),
        super::pattern::PatternError::Size
    );
    assert!(Pattern::parse(&"(".repeat(4000)).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn canonical_path_is_idempotent(raw in "/([a-c./%]|%2[eEfF0]|%[0-9a-fA-F]{2}|\\PC){0,16}") {
        if let Ok(once) = canonical_path(&raw) {
            prop_assert_eq!(canonical_path(&once), Ok(once.clone()));
            prop_assert!(matches!(canonical_path(&once), Ok(Cow::Borrowed(_))));
            prop_assert!(once.starts_with('/') && !once.contains("//") && !once.contains("/../"));
        }
    }

    #[test]
    fn canonical_authority_is_idempotent(raw in "(\\PC{0,6}|[A-Za-z.-]{0,10}|\\[[0-9a-f:.]{0,12}\\])(:[0-9]{0,6})?") {
        if let Ok(once) = canonical_authority(&raw) {
            let again = canonical_authority(once.as_str()).unwrap();
            prop_assert_eq!(&again, &once);
        }
    }

    #[test]
    fn patterns_never_panic(pattern in "([\\[\\](){}|*+?^$\\\\.,:<>P\\-&ia0-9dwsbxz]|\\PC){0,24}") {
        if let Ok(pattern) = Pattern::parse(&pattern) {
            pattern.matches(b"/a");
        }
    }

    #[test]
    fn precedence_is_an_order(texts in prop::collection::vec(("[/a.()\\[^\\]+]{0,8}", 0..3u8, any::<bool>(), any::<bool>()), 3)) {
        let make = |(text, kind, grpc, method): &(String, u8, bool, bool)| RuleMatch {
            path: match kind { 0 => PathMatch::Exact(text.clone()), 1 => PathMatch::Regex(text.clone()), _ => PathMatch::Prefix(text.clone()) },
            grpc: *grpc,
            method: method.then(|| "GET".to_owned()),
            ..RuleMatch::default()
        };
        let [a, b, c] = [make(&texts[0]), make(&texts[1]), make(&texts[2])];
        prop_assert_eq!(precedence(&a, &b), precedence(&b, &a).reverse());
        if precedence(&a, &b) != Ordering::Greater && precedence(&b, &c) != Ordering::Greater {
            prop_assert_ne!(precedence(&a, &c), Ordering::Greater);
        }
    }
}

fn any_path() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec![
        "",
        "a",
        "b",
        "ab",
        "a-very-long-part-of-a-path-that-has-more-than-64-bytes-in-it",
    ]);
    prop::collection::vec(part, 0..16).prop_map(|parts| format!("/{}", parts.join("/")))
}

fn any_match() -> impl Strategy<Value = RuleMatch> {
    let paths = prop_oneof![
        3 => any_path().prop_map(PathMatch::Prefix),
        3 => any_path().prop_map(PathMatch::Exact),
        1 => Just(PathMatch::Regex("/a(/b)*".into())),
        1 => Just(PathMatch::Prefix("/".into())),
    ];
    (paths, prop::option::weighted(0.3, Just("POST".to_owned()))).prop_map(|(path, method)| {
        RuleMatch {
            path,
            method,
            ..RuleMatch::default()
        }
    })
}

proptest! {
    #[test]
    fn looked_up_rule_is_the_one_that_asking_in_order_finds(
        matches in prop::collection::vec(any_match(), 1..60),
        paths in prop::collection::vec(any_path(), 1..40),
    ) {
        let rules = matches.into_iter().map(|matches| rule("r", matches)).collect();
        let compiled = compile(&table(&[("h", &["h"])], rules));
        let host = compiled.host("h").unwrap();
        for path in paths.iter().map(String::as_str).chain(["*", "/", ""]) {
            let path: &'static str = Box::leak(path.to_owned().into_boxed_str());
            let asked = host.rules().iter().find(|rule| rule.matches(&get(path)));
            let found = host.find(&get(path));
            prop_assert_eq!(found.map(|r| r.attachment), asked.map(|r| r.attachment), "{}", path);
        }
    }
}
