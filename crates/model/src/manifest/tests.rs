mod beside;
mod gateway;
mod limits;
mod udp;

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::document::{
    BackendPolicy, BackendRef, ParentRef, PeerAuthentication, Route, TargetPort,
};
use crate::identity::TrustDomain;
use crate::instance::Protocol;
use crate::name::ServiceName;
use crate::resource::{
    Caller, CircuitBreaker, ConnectionPool, HashOn, HeaderEdit, HeaderMatch, HealthCheck,
    LoadBalancer, MtlsMode, OutlierDetection, PathMatch, PathRewrite, Probe, QueryMatch, Redirect,
    Retry, RetryBudget, Rewrite, RuleMatch, ValueMatch,
};

const ROUTES: &str = include_str!("../../tests/golden/routes.yaml");
const KUBECTL: &str = include_str!("../../tests/golden/kubectl.yaml");
const BAD_VALUES: &str = include_str!("../../tests/golden/bad_values.yaml");

fn good(text: &str) -> Vec<Document> {
    let parsed = parse("f", text, "default").into_result().unwrap();
    parsed.into_iter().map(|parsed| parsed.document).collect()
}

/// Each problem as text.
fn problems(text: &str) -> Vec<String> {
    parse("f", text, "default")
        .problems
        .iter()
        .map(ToString::to_string)
        .collect()
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

fn routes() -> (Route, Route) {
    match good(ROUTES).as_slice() {
        [
            Document::Route(http),
            Document::Route(grpc),
            Document::BackendPolicy(_),
        ] => (http.clone(), grpc.clone()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn http_route_is_read_whole() {
    let (route, _) = routes();
    assert_eq!(
        (route.kind, route.meta.namespace.as_str()),
        (Kind::HttpRoute, "default")
    );
    let parent = |namespace, port| ParentRef {
        service: ServiceName::new(namespace, "board"),
        port,
        section: None,
    };
    assert_eq!(
        route.parents,
        [parent("default", Some(80)), parent("other", None)]
    );
    let [top, old, rest] = route.rules.as_slice() else {
        panic!("{:?}", route.rules)
    };
    assert_eq!(
        top.matches,
        [
            RuleMatch {
                path: PathMatch::Exact("/top".into()),
                method: Some("GET".into()),
                headers: vec![
                    HeaderMatch {
                        name: "x-vip".into(),
                        value: ValueMatch::Exact("1".into())
                    },
                    HeaderMatch {
                        name: "x-zone".into(),
                        value: ValueMatch::Regex("az\\d".into())
                    },
                ],
                query: vec![QueryMatch {
                    name: "page".into(),
                    value: ValueMatch::Exact("1".into())
                }],
                grpc: false,
            },
            RuleMatch {
                path: PathMatch::Regex("/top/[0-9]+".into()),
                ..RuleMatch::default()
            },
        ]
    );
    assert_eq!(
        top.request_headers,
        HeaderEdit {
            set: pairs(&[("x-board", "top")]),
            add: pairs(&[("x-hop", "a")]),
            remove: vec!["x-old".into()]
        }
    );
    assert_eq!(
        top.response_headers.set,
        pairs(&[("cache-control", "no-store")])
    );
    assert_eq!(
        top.rewrite,
        Rewrite {
            authority: Some("board.internal".into()),
            path: Some(PathRewrite::Full("/v2/top".into()))
        }
    );
    let canary = HeaderEdit {
        set: pairs(&[("x-canary-id", "b2")]),
        ..HeaderEdit::default()
    };
    let backend = |service, weight, request_headers| BackendRef {
        service,
        port: 80,
        weight,
        request_headers,
        response_headers: HeaderEdit::default(),
    };
    assert_eq!(
        top.backends,
        [
            backend(
                ServiceName::new("default", "board-v1"),
                90,
                HeaderEdit::default()
            ),
            backend(ServiceName::new("canary", "board-v2"), 10, canary)
        ]
    );
    assert_eq!(
        (top.request_timeout, top.attempt_timeout),
        (
            Some(Duration::from_secs(10)),
            Some(Duration::from_millis(1500))
        )
    );
    assert_eq!(
        top.retry,
        Some(Retry {
            attempts: 3,
            codes: vec![500, 503],
            backoff: Duration::from_millis(50)
        })
    );
    assert_eq!(old.matches[0].path, PathMatch::Prefix("/old".into()));
    let redirect = Redirect {
        scheme: Some("https".into()),
        hostname: Some("board.example.com".into()),
        port: Some(8443),
        path: Some(PathRewrite::Prefix("/new".into())),
        status: 308,
    };
    assert_eq!(old.redirect, Some(redirect));
    assert_eq!(
        (rest.matches.as_slice(), rest.backends.len(), &rest.retry),
        ([RuleMatch::default()].as_slice(), 0, &None)
    );
}

#[test]
fn grpc_route_matches_by_path() {
    let (_, route) = routes();
    let paths: Vec<&PathMatch> = route.rules[0].matches.iter().map(|m| &m.path).collect();
    let expected = [
        PathMatch::Exact("/battle.v1.Battle/Start".into()),
        PathMatch::Prefix("/battle.v1.Battle".into()),
        PathMatch::Regex("/[^/]+/(?:Watch)".into()),
        PathMatch::Regex("/(?:battle\\.v[12]\\.Battle)/[^/]+".into()),
        PathMatch::Prefix("/".into()),
    ];
    assert_eq!(paths, expected.iter().collect::<Vec<_>>());
    assert!(
        route
            .rules
            .iter()
            .flat_map(|rule| &rule.matches)
            .all(|m| m.grpc)
    );
    assert_eq!(route.rules[1].backends[0].weight, 0);
}

#[test]
fn policy_fills_a_section_with_defaults_and_leaves_others_unsaid() {
    let Some(Document::BackendPolicy(policy)) = good(ROUTES).pop() else {
        panic!()
    };
    assert_eq!(policy.targets, [ServiceName::new("default", "battle")]);
    assert_eq!(policy.load_balancer, Some(LoadBalancer::LeastRequest));
    assert_eq!(
        policy.connection_pool,
        Some(ConnectionPool {
            connect_timeout: Duration::from_millis(1500),
            ..ConnectionPool::default()
        })
    );
    assert_eq!(
        policy.circuit_breaker,
        Some(CircuitBreaker {
            max_requests: 100,
            ..CircuitBreaker::default()
        })
    );
    let outlier = OutlierDetection {
        consecutive_5xx: 3,
        base_ejection: Duration::from_secs(90),
        max_ejection_percent: 50,
        ..OutlierDetection::default()
    };
    assert_eq!(policy.outlier_detection, Some(outlier));
    assert_eq!(
        policy.retry_budget,
        Some(RetryBudget {
            percent: 10,
            ..RetryBudget::default()
        })
    );
    let bare = "{apiVersion: phalanx.dev/v1alpha1, kind: BackendPolicy, metadata: {name: a}, spec: {targetRefs: [{name: a}]}}";
    let Some(Document::BackendPolicy(bare)) = good(bare).pop() else {
        panic!()
    };
    assert_eq!(
        (bare.load_balancer, bare.connection_pool, bare.retry_budget),
        (None, None, None)
    );
}

/// Of a BackendPolicy with these sections.
fn policy_of(sections: &str) -> Result<BackendPolicy, Vec<String>> {
    let policy = format!(
        "{{apiVersion: phalanx.dev/v1alpha1, kind: BackendPolicy, metadata: {{name: a}}, spec: {{targetRefs: [{{name: a}}], {sections}}}}}"
    );
    let problems = problems(&policy);
    if !problems.is_empty() {
        return Err(problems);
    }
    match good(&policy).pop() {
        Some(Document::BackendPolicy(policy)) => Ok(policy),
        other => panic!("{other:?}"),
    }
}

#[test]
fn hedging_names_the_grpc_methods_that_may_be_called_twice() {
    let text = "hedging: {delay: 50ms, maxExtra: 2, grpcMethods: [arena.v1.Board/Top, \"a.B/*\"]}";
    let hedging = policy_of(text).unwrap().hedging.unwrap();
    assert_eq!((hedging.delay.as_millis(), hedging.extra_max), (50, 2));
    let safe = ["/arena.v1.Board/Top", "/a.B/Any"];
    assert!(safe.iter().all(|path| hedging.allows_grpc(path)));
    let unsafe_ones = ["/arena.v1.Board/Set", "/arena.v1.Board/", "/a.C/Any", "/"];
    assert!(!unsafe_ones.iter().any(|path| hedging.allows_grpc(path)));
    for (text, why) in [
        ("{}", "the field is missing"),
        ("{delay: 0s}", "is not within"),
        ("{delay: 1s, maxExtra: 4}", "is not within 1 to 3"),
        ("{delay: 1s, grpcMethods: [Top]}", "is no gRPC method"),
        ("{delay: 1s, grpcMethods: [a.B/C, a.B/C]}", "stands twice"),
        ("{delay: 1s, delayPercentile: 95}", "unknown field"),
    ] {
        let problems = policy_of(&format!("hedging: {text}")).unwrap_err();
        assert!(
            format!("{problems:?}").contains(why),
            "{text}: {problems:?}"
        );
    }
}

#[test]
fn keyed_balancers_say_what_the_key_is() {
    for (text, hash_on) in [
        ("{header: X-Room}", HashOn::Header("x-room".into())),
        ("{cookie: room}", HashOn::Cookie("room".into())),
        ("{sourceIP: true}", HashOn::SourceIp),
    ] {
        let policy = policy_of(&format!("loadBalancer: {{type: Maglev, hashOn: {text}}}")).unwrap();
        assert_eq!(policy.load_balancer, Some(LoadBalancer::Maglev));
        assert_eq!(policy.hash_on, Some(hash_on));
    }
    for (sections, problem) in [
        (
            "loadBalancer: {type: RingHash}",
            "nothing says what of a request is its key",
        ),
        (
            "loadBalancer: {type: P2C, hashOn: {header: a}}",
            "only RingHash and Maglev have keys",
        ),
        (
            "loadBalancer: {type: Maglev, hashOn: {header: a, cookie: b}}",
            "exclude each other",
        ),
        (
            "loadBalancer: {type: Maglev, hashOn: {sourceIP: false}}",
            "only `true`",
        ),
        (
            "loadBalancer: {type: Maglev, hashOn: {cookie: a b}}",
            "no name of a cookie",
        ),
        ("loadBalancer: {type: Maglev, hashOn: {}}", "is needed"),
        (
            "loadBalancer: {type: RingHash, hashOn: {header: a}}, slowStart: {window: 1s}",
            "only P2C, LeastRequest and RoundRobin",
        ),
    ] {
        let problems = policy_of(sections).unwrap_err();
        assert!(problems.iter().any(|p| p.contains(problem)), "{problems:?}");
    }
}

#[test]
fn zones_slow_start_and_comparisons_have_defaults_and_bounds() {
    let policy = policy_of("locality: {prefer: zone}, slowStart: {window: 30s}, outlierDetection: {successRateStdev: 1.9, latencyFactor: 3}").unwrap();
    let locality = policy.locality.unwrap();
    assert_eq!(
        (locality.failover_percent, locality.panic_percent),
        (70, 50)
    );
    assert_eq!(locality.overprovision(), 143);
    assert_eq!(policy.slow_start.unwrap().min_weight_percent, 10);
    let outlier = policy.outlier_detection.unwrap();
    assert_eq!(
        (outlier.success_rate_stdev, outlier.latency_factor),
        (1_900, 3_000)
    );
    for (sections, problem) in [
        ("locality: {}", "the field is missing"),
        ("locality: {prefer: region}", "unknown value"),
        (
            "locality: {prefer: zone, failoverAtHealthyPercent: 0}",
            "not within 1 to 100",
        ),
        ("slowStart: {minWeightPercent: 5}", "the field is missing"),
        (
            "outlierDetection: {latencyFactor: 1}",
            "not within 1.1 to 100",
        ),
        (
            "outlierDetection: {successRateStdev: 1.2345}",
            "three decimal places",
        ),
        (
            "outlierDetection: {successRateStdev: -1}",
            "three decimal places",
        ),
    ] {
        let problems = policy_of(sections).unwrap_err();
        assert!(
            problems.iter().any(|p| p.contains(problem)),
            "{sections}: {problems:?}"
        );
    }
}

fn health_check(text: &str) -> Result<HealthCheck, Vec<String>> {
    let policy = format!(
        "{{apiVersion: phalanx.dev/v1alpha1, kind: BackendPolicy, metadata: {{name: a}}, spec: {{targetRefs: [{{name: a}}], healthCheck: {text}}}}}"
    );
    let problems = problems(&policy);
    if !problems.is_empty() {
        return Err(problems);
    }
    match good(&policy).pop() {
        Some(Document::BackendPolicy(policy)) => Ok(policy.health_check.unwrap()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_health_check_asks_in_exactly_one_way() {
    let http = Probe::Http {
        path: "/healthz".into(),
    };
    let grpc = |service: &str| Probe::Grpc {
        service: service.into(),
    };
    for (text, probe) in [
        ("{path: /healthz}", http.clone()),
        ("{grpc: {}}", grpc("")),
        (
            "{grpc: {service: arena.v1.Battle}}",
            grpc("arena.v1.Battle"),
        ),
        ("{tcp: true}", Probe::Tcp),
    ] {
        assert_eq!(health_check(text), Ok(HealthCheck::new(probe)), "{text}");
    }
    let whole = "{path: /healthz, interval: 500ms, timeout: 200ms, healthyThreshold: 2, unhealthyThreshold: 5}";
    assert_eq!(
        health_check(whole),
        Ok(HealthCheck {
            probe: http,
            interval: Duration::from_millis(500),
            timeout: Duration::from_millis(200),
            healthy_threshold: 2,
            unhealthy_threshold: 5,
        })
    );
    for (text, expected) in [
        ("{}", "one of `path`, `grpc` and `tcp` is needed"),
        (
            "{interval: 1s}",
            "one of `path`, `grpc` and `tcp` is needed",
        ),
        ("{path: /a, tcp: true}", "exclude each other"),
        ("{path: /a, grpc: {}}", "exclude each other"),
        ("{tcp: false}", "only `true` means something"),
        ("{path: healthz}", "spec.healthCheck.path"),
        ("{path: /a/../b}", "not in canonical form"),
        ("{grpc: {service: a b}}", "no space"),
        ("{grpc: {method: Check}}", "unknown field"),
        ("{tcp: true, interval: 1ms}", "spec.healthCheck.interval"),
        ("{tcp: true, timeout: 2m}", "spec.healthCheck.timeout"),
        ("{tcp: true, unhealthyThreshold: 0}", "not within 1 to 100"),
        (
            "{tcp: true, healtyThreshold: 1}",
            "did you mean `healthyThreshold`?",
        ),
    ] {
        let problems = health_check(text).unwrap_err();
        assert!(
            problems.iter().any(|problem| problem.contains(expected)),
            "{text}: {problems:?}"
        );
    }
}

#[test]
fn what_kubectl_prints_is_taken() {
    let documents = good(KUBECTL);
    let [Document::Service(service), Document::EndpointSlice(slice)] = documents.as_slice() else {
        panic!("{documents:?}")
    };
    assert_eq!(service.service_name(), ServiceName::new("game", "board"));
    assert_eq!(
        service.selector.get("version").map(String::as_str),
        Some("1")
    );
    assert_eq!(service.ports[0].target, TargetPort::Name("web".into()));
    assert_eq!(
        (service.ports[0].protocol, service.ports[1].protocol),
        (Protocol::Http1, Protocol::Auto)
    );
    assert_eq!(service.ports[1].target, TargetPort::Number(8081));
    assert_eq!(
        (slice.service.to_string().as_str(), slice.ports[0].port),
        ("game/board", 8080)
    );
    let endpoints: Vec<_> = slice
        .endpoints
        .iter()
        .map(|e| {
            (
                e.addresses[0].to_string(),
                e.ready,
                e.terminating,
                e.zone.as_str(),
            )
        })
        .collect();
    assert_eq!(
        endpoints,
        [
            ("10.1.0.7".to_owned(), true, false, "az1"),
            ("10.1.0.8".to_owned(), false, true, "")
        ]
    );
}

#[test]
fn stored_text_leaves_out_what_the_server_adds_and_names_the_namespace() {
    let parsed = parse("f", KUBECTL, "default").into_result().unwrap();
    for field in [
        "status",
        "uid\":\"5f",
        "resourceVersion",
        "creationTimestamp",
        "managedFields",
        "generation",
        "ownerReferences",
    ] {
        assert!(!parsed.iter().any(|p| p.json.contains(field)), "{field}");
    }
    let text = "apiVersion: v1\nkind: Service\nmetadata: {labels: {a: 'yes'}, name: a, namespace: }\nspec: {ports: [{port: 80}]}";
    let parsed = parse("f", text, "game").into_result().unwrap();
    assert_eq!(
        parsed[0].json,
        r#"{"apiVersion":"v1","kind":"Service","metadata":{"labels":{"a":"yes"},"name":"a","namespace":"game"},"spec":{"ports":[{"port":80}]}}"#
    );
}

#[test]
fn stored_text_reads_back_to_the_same_document() {
    for text in [ROUTES, KUBECTL] {
        for parsed in parse("f", text, "default").into_result().unwrap() {
            let again = parse("store", &parsed.json, "elsewhere")
                .into_result()
                .unwrap();
            assert_eq!(
                (again.len(), &again[0].document, &again[0].json),
                (1, &parsed.document, &parsed.json)
            );
        }
    }
}

#[test]
fn timeout_of_zero_is_no_limit() {
    let text = "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: a}, spec: {parentRefs: [{kind: Service, name: a}], \
                rules: [{timeouts: {request: 0s, backendRequest: 5s}}]}}";
    let [Document::Route(route)] = &good(text)[..] else {
        panic!()
    };
    assert_eq!(
        (
            route.rules[0].request_timeout,
            route.rules[0].attempt_timeout
        ),
        (Some(Duration::ZERO), Some(Duration::from_secs(5)))
    );
}

#[test]
fn five_planted_mistakes_are_all_told_with_their_places() {
    let text = include_str!("../../tests/golden/five_mistakes.yaml");
    let places: Vec<_> = parse("f", text, "default")
        .problems
        .into_iter()
        .map(|p| (p.line, p.column, p.path))
        .collect();
    let expected = [
        (9, 13, "spec.ports[0].port"),
        (10, 20, "spec.ports[0].appProtocol"),
        (21, 24, "spec.rules[0].matches[0].path.type"),
        (23, 39, "spec.rules[0].backendRefs[0].wieght"),
        (24, 47, "spec.rules[0].backendRefs[1].weight"),
    ];
    assert_eq!(
        places,
        expected.map(|(line, column, path)| (line, column, path.to_owned()))
    );
}

#[test]
fn problem_reads_file_place_path_message_hint() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  ports: [{port: 80}]\n  selektor: {}\n";
    assert_eq!(
        problems(text),
        ["f:6:3: spec.selektor: unknown field (did you mean `selector`?)"]
    );
}

#[test]
fn document_without_a_name_still_tells_the_problems_of_its_spec() {
    assert_eq!(
        problems("apiVersion: v1\nkind: Service\nspec: {ports: [{port: x}]}"),
        [
            "f:1:1: metadata: the field is missing",
            "f:3:23: spec.ports[0].port: expected a whole number, found the text `x`"
        ]
    );
}

#[test]
fn document_with_a_problem_is_not_handed_out() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: a, name: a}\nspec: {ports: [{port: 80}]}\n";
    let manifest = parse("f", text, "default");
    assert_eq!((manifest.documents.len(), manifest.problems.len()), (0, 1));
    let list = format!(
        "kind: List\napiVersion: v1\nitems:\n- {}",
        text.trim_end().replace('\n', "\n  ")
    );
    assert_eq!(parse("f", &list, "default").documents, []);
}

#[test]
fn syntax_error_ends_one_document_only() {
    let good = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n";
    let manifest = parse("f", &format!("a: [\n---\n{good}---\nb: ]\n"), "default");
    let kinds: Vec<_> = manifest.problems.iter().map(|p| (p.kind, p.line)).collect();
    assert_eq!(kinds, [(ProblemKind::Syntax, 2), (ProblemKind::Syntax, 8)]);
    assert_eq!(manifest.documents[0].line, 3);
}

#[test]
fn empty_documents_byte_order_mark_and_crlf_are_harmless() {
    let service =
        "apiVersion: v1\r\nkind: Service\r\nmetadata: {name: a}\r\nspec: {ports: [{port: 80}]}\r\n";
    for text in [
        "",
        "\n",
        "# nothing\n",
        "---\n---\n# x\n---\n",
        "null\n",
        "\u{feff}",
    ] {
        assert_eq!(parse("f", text, "default"), Manifest::default(), "{text:?}");
    }
    for text in [
        format!("\u{feff}{service}"),
        format!("%YAML 1.2\r\n---\r\n{service}---\r\n"),
        format!("# x\n{service}...\n"),
    ] {
        assert_eq!(good(&text).len(), 1, "{text:?}");
    }
}

#[test]
fn null_means_left_out_and_a_bad_default_namespace_is_told() {
    let text = "{apiVersion: gateway.networking.k8s.io/v1, kind: GRPCRoute, metadata: {name: a, labels: }, \
                spec: {hostnames: null, parentRefs: [{kind: Service, name: a, port: ~}], rules: }}";
    let [Document::Route(route)] = &good(text)[..] else {
        panic!()
    };
    assert_eq!(
        (route.parents[0].port, route.rules[0].matches[0].grpc),
        (None, true)
    );
    let told = parse("f", text, "Not/good").problems;
    assert_eq!((told.len(), told[0].path.as_str()), (1, "metadata"));
}

#[test]
fn three_dashes_in_a_block_text_do_not_split() {
    let text = "apiVersion: v1\nkind: Service\nmetadata:\n  name: a\n  annotations:\n    note: |\n      ---\n      x\nspec: {ports: [{port: 80}]}\n";
    assert_eq!(
        good(text)[0]
            .meta()
            .annotations
            .get("note")
            .map(String::as_str),
        Some("---\nx\n")
    );
}

#[test]
fn alias_bomb_of_300_bytes_is_refused() {
    let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned();
    for i in 1..9 {
        let alias = format!("*a{}", i - 1);
        bomb.push_str(&format!(
            "a{i}: &a{i} [{}]\n",
            [alias.as_str(); 5].join(",")
        ));
    }
    assert!(bomb.len() <= 300, "{}", bomb.len());
    assert_eq!(
        problems(&bomb),
        ["f:1:5: a0: anchors are not taken (write the value out)"]
    );
}

#[test]
fn documents_over_the_limits_are_refused() {
    let long = format!("a: {}\n", "x".repeat(DOCUMENT_LEN_MAX));
    assert!(
        problems(&long)[0]
            .starts_with("f:1:1: the document has 1048580 bytes, at most 1048576 are taken"),
        "{:?}",
        problems(&long)
    );
    let deep = format!("a: {}{}", "[".repeat(64), "]".repeat(64));
    assert!(
        problems(&deep)[0].contains("more than 64 levels"),
        "{:?}",
        problems(&deep)
    );
    let many = format!("a: [{}]", "1,".repeat(NODES_MAX));
    assert!(problems(&many)[0].contains("more than 10000 values"));
    let documents = "--- 1\n".repeat(DOCUMENTS_MAX + 2);
    assert!(parse("f", &documents, "default").problems.len() <= PROBLEMS_MAX + 1);
    assert!(problems(&"... \n--- \na: 1\n".repeat(DOCUMENTS_MAX + 1)).len() <= PROBLEMS_MAX + 1);
    let long_key = format!("? {}\n: 1\n", "k".repeat(2000));
    assert!(
        problems(&long_key)[0].contains("a key has more than 1024 bytes"),
        "{:?}",
        problems(&long_key)
    );
}

#[test]
fn depth_of_64_is_taken() {
    let deep = format!("kind: x\na: {}{}", "[".repeat(63), "]".repeat(63));
    assert!(!problems(&deep).iter().any(|p| p.contains("levels")));
}

#[test]
fn problems_are_bounded_and_the_rest_is_counted() {
    let fields: String = (0..300).map(|i| format!("  f{i}: 1\n")).collect();
    let told = problems(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec:\n  ports: [{{port: 80}}]\n{fields}"
    ));
    assert_eq!(told.len(), PROBLEMS_MAX + 1);
    assert!(
        told[PROBLEMS_MAX].ends_with("200 further problems are not shown"),
        "{}",
        told[PROBLEMS_MAX]
    );
}

#[test]
fn foreign_text_in_problems_is_short_and_has_no_control_characters() {
    let told = problems(&format!(
        "apiVersion: v1\nkind: \"Serv\\u001b[31mice\\n{}\"\n",
        "x".repeat(500)
    ));
    assert!(
        told[0].len() < 400 && !told[0].contains(char::is_control),
        "{told:?}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        parse("f", &String::from_utf8_lossy(&bytes), "default");
    }

    #[test]
    fn yaml_like_text_never_panics(text in "([\\[\\]{},:?|>&*!%@`'\"#\\-~ \n\t\r]|---\n|: |- |[a-z]{1,3}|\\PC){0,60}") {
        parse("f", &text, "default");
    }

    /// Whatever a good text becomes by a few wrong bytes: no panic, places within the text, and what is taken reads back.
    #[test]
    fn damaged_manifests_are_refused_with_places_or_read_back(
        which in 0..3usize,
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0..40usize, "[\\[\\]{},:?|>&*!%@`'\"#\\-~ \n0-9a-z]{0,4}"), 1..4),
    ) {
        let mut bytes = [ROUTES, KUBECTL, BAD_VALUES][which].as_bytes().to_vec();
        for (at, len, with) in edits {
            let start = at.index(bytes.len());
            let end = (start + len).min(bytes.len());
            bytes.splice(start..end, with.bytes());
        }
        let text = String::from_utf8_lossy(&bytes);
        let manifest = parse("f", &text, "default");
        for problem in &manifest.problems {
            prop_assert!(problem.line >= 1 && problem.line <= text.lines().count() + 1, "{problem}");
            prop_assert!(problem.column >= 1, "{problem}");
        }
        for parsed in manifest.documents {
            let again = parse("store", &parsed.json, "elsewhere");
            prop_assert!(again.problems.is_empty(), "{:?}\n{}", again.problems, parsed.json);
            prop_assert_eq!(&again.documents[0].document, &parsed.document);
        }
    }

    #[test]
    fn any_annotation_survives_the_stored_text(value in "(\\PC|[\\x00-\\x1f\\x7f-\\u{9f}\u{2028}\u{feff}'\"\\\\]){0,40}") {
        let mut escaped = String::new();
        for c in value.chars() {
            escaped.push_str(&format!("\\U{:08x}", u32::from(c)));
        }
        let text = format!("{{apiVersion: v1, kind: Service, metadata: {{name: a, annotations: {{x: \"{escaped}\"}}}}, spec: {{ports: [{{port: 80}}]}}}}");
        let first = parse("f", &text, "default").into_result().unwrap();
        prop_assert_eq!(first[0].document.meta().annotations.get("x"), Some(&value));
        let again = parse("store", &first[0].json, "default").into_result().unwrap();
        prop_assert_eq!(&again[0].document, &first[0].document);
    }
}

const ACCESS: &str = "\
apiVersion: phalanx.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: battle, namespace: arena}
spec:
  targetRefs: [{kind: Service, name: battle}]
  action: Allow
  rules:
  - from: [{services: [gateway, ops/console]}, {namespaces: [match]}, {ids: [\"spiffe://other.example/ns/a/sa/b\"]}]
    methods: [POST]
  - from: [{anyone: true}]
  - methods: [GET]
";

#[test]
fn callers_are_resolved_in_the_policys_namespace_and_the_meshs_trust_domain() {
    let Some(Document::AuthorizationPolicy(policy)) = good(ACCESS).pop() else {
        panic!("no policy");
    };
    assert!(policy.names_callers());
    let domain = TrustDomain::parse("mesh.example").unwrap();
    let access = policy.access(&domain);
    assert_eq!(access.name, "AuthorizationPolicy/arena/battle");
    let id = |text: &str| Caller::Id(text.parse().unwrap());
    let callers: Vec<_> = access.rules.iter().map(|r| r.callers.clone()).collect();
    assert_eq!(
        callers,
        [
            vec![
                id("spiffe://mesh.example/ns/arena/sa/gateway"),
                id("spiffe://mesh.example/ns/ops/sa/console"),
                id("spiffe://other.example/ns/a/sa/b"),
                Caller::Namespace("match".into()),
            ],
            vec![Caller::Anyone],
            vec![],
        ]
    );
}

#[test]
fn callers_that_mean_nobody_or_anything_are_refused_with_a_hint() {
    let told = |from: &str| {
        let rules = format!("  rules: [{{from: {from}}}]\n");
        let start = ACCESS.find("  rules:").unwrap();
        problems(&format!("{}{rules}", &ACCESS[..start])).join("\n")
    };
    for (from, expected) in [
        (
            "[]",
            "an empty list would be nobody (leave it out for everybody)",
        ),
        ("[{}]", "it names nobody"),
        ("[{services: []}]", "an empty list would be nobody"),
        (
            "[{services: [a], namespaces: [b]}]",
            "several kinds of callers in one item",
        ),
        ("[{services: ['*']}]", "callers are compared whole"),
        ("[{services: [a/b/c]}]", "is no service"),
        ("[{anyone: false}]", "nobody can be meant by `false`"),
        ("[{ids: ['spiffe://x/*']}]", "is no SPIFFE id of a mesh"),
        (
            "[{principals: [a]}]",
            "`principals` is not supported by this version",
        ),
        (
            "[{service: [a]}]",
            "unknown field (did you mean `services`?)",
        ),
    ] {
        let problems = told(from);
        assert!(problems.contains(expected), "{from}: {problems}");
    }
}

/// What a PeerAuthentication in this namespace says, or is refused for.
fn peers(namespace: &str, spec: &str) -> Result<PeerAuthentication, String> {
    let text = format!(
        "apiVersion: phalanx.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {{name: p, namespace: {namespace}}}\nspec: {spec}\n"
    );
    match parse("f", &text, "default").into_result() {
        Ok(parsed) => match parsed.into_iter().next().map(|parsed| parsed.document) {
            Some(Document::PeerAuthentication(policy)) => Ok(policy),
            other => panic!("{other:?}"),
        },
        Err(problems) => Err(problems.iter().map(|p| format!("{p}\n")).collect()),
    }
}

#[test]
fn a_mode_is_of_services_of_their_ports_of_a_namespace_or_of_the_mesh() {
    let spec = "{targetRefs: [{kind: Service, name: battle}], mtls: {mode: Strict}, ports: [{port: 9000, mode: \"Off\"}]}";
    let policy = peers("arena", spec).unwrap();
    assert_eq!(policy.targets, [ServiceName::new("arena", "battle")]);
    assert_eq!(policy.mode, Some(MtlsMode::Strict));
    assert_eq!(policy.ports, [(9000, MtlsMode::Off)]);
    let off = peers("arena", "{mtls: {mode: Off}}").unwrap();
    assert_eq!(off.mode, Some(MtlsMode::Off), "no boolean");
    let wide = peers("phalanx-system", "{mtls: {mode: Permissive}}").unwrap();
    assert_eq!(
        (wide.targets.len(), wide.mode),
        (0, Some(MtlsMode::Permissive))
    );
}

#[test]
fn modes_that_say_nothing_or_too_much_are_refused_with_a_hint() {
    let target = "targetRefs: [{kind: Service, name: battle}]";
    for (namespace, spec, expected) in [
        ("a", "{}".to_owned(), "it says nothing"),
        (
            "a",
            "{mtls: {}}".into(),
            "spec.mtls.mode: the field is missing",
        ),
        (
            "a",
            "{mtls: {mode: STRICT}}".into(),
            "did you mean `Strict`?",
        ),
        (
            "a",
            "{mtls: {mode: DISABLE}}".into(),
            "this mode is called `Off` here",
        ),
        (
            "a",
            "{targetRefs: [], mtls: {mode: Strict}}".into(),
            "an empty list of targets",
        ),
        (
            "a",
            "{ports: [{port: 1, mode: Strict}]}".into(),
            "so they need targets",
        ),
        (
            "a",
            format!("{{{target}, ports: [{{port: 1, mode: Strict}}, {{port: 1, mode: Strict}}]}}"),
            "port 1 stands twice",
        ),
        (
            "a",
            "{selector: {}, mtls: {mode: Strict}}".into(),
            "`selector` is not supported",
        ),
        (
            "a",
            "{portLevelMtls: {}, mtls: {mode: Strict}}".into(),
            "write `ports:",
        ),
        (
            "phalanx-system",
            format!("{{{target}, mtls: {{mode: Strict}}}}"),
            "it holds for the whole mesh",
        ),
    ] {
        let problems = peers(namespace, &spec).unwrap_err();
        assert!(problems.contains(expected), "{spec}: {problems}");
    }
}

#[test]
fn a_slice_is_mutual_or_says_nothing_of_it() {
    let slice = |label: &str| {
        let text = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s, labels: {{kubernetes.io/service-name: a{label}}}}}\naddressType: IPv4\nports: [{{port: 1}}]\nendpoints: []\n"
        );
        let parsed = parse("f", &text, "default").into_result();
        parsed.map(|parsed| match &parsed[0].document {
            Document::EndpointSlice(slice) => slice.mutual_tls,
            other => panic!("{other:?}"),
        })
    };
    assert_eq!(slice(""), Ok(false));
    assert_eq!(slice(", phalanx.dev/tls: mutual"), Ok(true));
    assert!(slice(", phalanx.dev/tls: strict").is_err());
}
