//! Matches, weights, filters, rewrites and redirects.

use phalanx_model::instance::Protocol;
use phalanx_model::reason::Reason;
use phalanx_model::resource::*;

use crate::support::*;

fn prefix(path: &str) -> RuleMatch {
    RuleMatch {
        path: PathMatch::Prefix(path.into()),
        ..RuleMatch::default()
    }
}

#[test]
fn unknown_hosts_and_unmatched_paths_have_no_route() {
    let upstream = Upstream::start(|_, _| ok(""));
    let matched = Rule {
        matches: prefix("/api"),
        ..rule(Action::Forward(forward("battle")))
    };
    let setup = Setup::default().cluster(
        Cluster::new(cluster_name("battle"), Protocol::Auto),
        &[upstream.address],
    );
    let sidecar = setup.rule("battle", matched).start();
    for (host, path) in [
        ("nobody", "/api"),
        ("battle", "/other"),
        ("battle:81", "/api"),
    ] {
        let answer = Client::connect(sidecar.outbound).get(host, path);
        assert_eq!(
            (answer.status(), answer.reason()),
            (404, "no_route"),
            "{host}{path}"
        );
    }
    assert_eq!(sidecar.get("/api/x").status(), 200);
}

#[test]
fn weights_split_within_four_sigma() {
    let (v1, v2) = (
        Upstream::start(|_, _| ok("v1")),
        Upstream::start(|_, _| ok("v2")),
    );
    let split = Forward {
        backends: vec![backend("v1", 90), backend("v2", 10)],
        ..forward("v1")
    };
    let sidecar = Setup::default()
        .cluster(
            Cluster::new(cluster_name("v1"), Protocol::Auto),
            &[v1.address],
        )
        .cluster(
            Cluster::new(cluster_name("v2"), Protocol::Auto),
            &[v2.address],
        )
        .route("battle", split)
        .start();
    let mut client = Client::connect(sidecar.outbound);
    let count = 3000;
    let second = (0..count)
        .filter(|_| client.get("battle", "/").text() == "v2")
        .count();
    let sigma = (f64::from(count) * 0.1 * 0.9).sqrt();
    assert!(
        (second as f64 - f64::from(count) * 0.1).abs() < 4.0 * sigma,
        "{second} of {count}"
    );
}

#[test]
fn invalid_backends_take_their_share() {
    let upstream = Upstream::start(|_, _| ok(""));
    let gone = Backend {
        cluster: None,
        ..backend("gone", 1)
    };
    let split = Forward {
        backends: vec![backend("battle", 1), gone],
        ..forward("battle")
    };
    let setup = Setup::default().cluster(
        Cluster::new(cluster_name("battle"), Protocol::Auto),
        &[upstream.address],
    );
    let sidecar = setup
        .route("battle", split)
        .rule("none", rule(Action::Respond(Reason::InvalidBackend)))
        .start();
    let mut client = Client::connect(sidecar.outbound);
    let failed = (0..200)
        .filter(|_| client.get("battle", "/").status() == 500)
        .count();
    assert!((60..140).contains(&failed), "{failed} of 200");
    let answer = client.get("none", "/");
    assert_eq!(
        (answer.status(), answer.reason(), answer.text().as_str()),
        (500, "invalid_backend", "invalid_backend")
    );
}

#[test]
fn clusters_without_endpoints_are_said_to_be_unhealthy() {
    let sidecar = Setup::battle(&[])
        .route("unknown", forward("never-came"))
        .start();
    for host in ["battle", "unknown"] {
        let answer = Client::connect(sidecar.outbound).get(host, "/");
        assert_eq!(
            (answer.status(), answer.reason()),
            (503, "no_healthy_upstream"),
            "{host}"
        );
    }
}

#[test]
fn header_edits_apply_on_both_ways_and_the_rule_has_the_last_word() {
    let upstream = Upstream::start(|_, _| {
        Act::Say("HTTP/1.1 200 OK\r\nx-old: 1\r\nserver: s\r\ncontent-length: 0\r\n\r\n".into())
    });
    let edit = |name: &str, value: &str| HeaderEdit {
        set: vec![(name.into(), value.into())],
        ..HeaderEdit::default()
    };
    let forward = Forward {
        backends: vec![Backend {
            request_headers: edit("x-who", "backend"),
            response_headers: edit("x-new", "backend"),
            ..backend("battle", 1)
        }],
        ..forward("battle")
    };
    let edited = Rule {
        request_headers: HeaderEdit {
            set: vec![
                ("X-Set".into(), "new".into()),
                ("x-who".into(), "rule".into()),
            ],
            add: vec![("x-add".into(), "2".into())],
            remove: vec!["x-gone".into()],
        },
        response_headers: HeaderEdit {
            remove: vec!["x-old".into()],
            ..edit("x-new", "1")
        },
        ..rule(Action::Forward(forward))
    };
    let setup = Setup::default().cluster(
        Cluster::new(cluster_name("battle"), Protocol::Auto),
        &[upstream.address],
    );
    let sidecar = setup.rule("battle", edited).start();
    let answer = Client::connect(sidecar.outbound)
        .ask("GET / HTTP/1.1\r\nhost: battle\r\nx-set: old\r\nx-set: older\r\nx-add: 1\r\nx-gone: 1\r\n\r\n");
    assert_eq!(
        (
            answer.header("x-old"),
            answer.header("x-new"),
            answer.header("server")
        ),
        (None, Some("1"), Some("s"))
    );
    let seen = upstream.last();
    let all = |name: &str| {
        seen.headers
            .iter()
            .filter(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        (all("x-set"), all("x-add"), all("x-gone")),
        (vec!["new"], vec!["1", "2"], vec![])
    );
    assert_eq!(all("x-who"), ["rule"]);
}

#[test]
fn rewrites_change_what_is_sent() {
    let upstream = Upstream::start(|_, _| ok(""));
    let rewrite = Rewrite {
        authority: Some("other.test".into()),
        path: Some(PathRewrite::Prefix("/v2".into())),
    };
    let rewritten = Rule {
        matches: prefix("/api"),
        ..rule(Action::Forward(Forward {
            rewrite,
            ..forward("battle")
        }))
    };
    let setup = Setup::default().cluster(
        Cluster::new(cluster_name("battle"), Protocol::Auto),
        &[upstream.address],
    );
    let sidecar = setup.rule("battle", rewritten).start();
    sidecar.get("/api/a?q=1");
    let seen = upstream.last();
    assert_eq!(
        (seen.line.as_str(), seen.header("host")),
        ("GET /v2/a?q=1 HTTP/1.1", Some("other.test"))
    );
}

#[test]
fn prefixes_are_swapped_by_whole_segments_and_a_last_slash_stays() {
    let upstream = Upstream::start(|_, _| ok(""));
    let mut setup = Setup::default().cluster(
        Cluster::new(cluster_name("battle"), Protocol::Auto),
        &[upstream.address],
    );
    for (host, matched, to) in [
        ("swap", "/swap/", "/b/"),
        ("strip", "/strip", "/"),
        ("all", "/", "/b"),
    ] {
        let rewrite = Rewrite {
            authority: None,
            path: Some(PathRewrite::Prefix(to.into())),
        };
        let rule = Rule {
            matches: prefix(matched),
            ..rule(Action::Forward(Forward {
                rewrite,
                ..forward("battle")
            }))
        };
        setup = setup.rule(host, rule);
    }
    let sidecar = setup.start();
    let mut client = Client::connect(sidecar.outbound);
    for (host, path, sent) in [
        ("swap", "/swap", "/b"),
        ("swap", "/swap/", "/b/"),
        ("swap", "/swap/x/", "/b/x/"),
        ("swap", "/swap?q", "/b?q"),
        ("strip", "/strip", "/"),
        ("strip", "/strip/", "/"),
        ("strip", "/strip/x", "/x"),
        ("all", "/", "/b/"),
        ("all", "/x", "/b/x"),
    ] {
        client.get(host, path);
        assert_eq!(upstream.last().path(), sent, "{host} {path}");
    }
}

#[test]
fn redirects_say_where_to() {
    let redirect = |redirect: Redirect| rule(Action::Redirect(redirect));
    let base = Redirect {
        scheme: None,
        hostname: None,
        port: None,
        path: None,
        status: 302,
    };
    let sidecar = Setup::default()
        .rule(
            "a",
            redirect(Redirect {
                scheme: Some("https".into()),
                status: 301,
                ..base.clone()
            }),
        )
        .rule(
            "b",
            redirect(Redirect {
                hostname: Some("x.test".into()),
                port: Some(8080),
                ..base.clone()
            }),
        )
        .rule(
            "c",
            Rule {
                matches: prefix("/old"),
                ..redirect(Redirect {
                    path: Some(PathRewrite::Prefix("/new".into())),
                    ..base
                })
            },
        )
        .start();
    let location = |host: &str, path: &str| {
        let answer = Client::connect(sidecar.outbound).get(host, path);
        (
            answer.status(),
            answer.header("location").unwrap_or("").to_owned(),
        )
    };
    assert_eq!(location("a", "/x?y=z"), (301, "https://a/x?y=z".into()));
    assert_eq!(location("b", "/x"), (302, "http://x.test:8080/x".into()));
    assert_eq!(location("c", "/old/y"), (302, "http://c/new/y".into()));
}

#[test]
fn plan_is_swapped_between_two_requests() {
    let (v1, v2) = (
        Upstream::start(|_, _| ok("v1")),
        Upstream::start(|_, _| ok("v2")),
    );
    let mut sidecar = Setup::default()
        .cluster(
            Cluster::new(cluster_name("v1"), Protocol::Auto),
            &[v1.address],
        )
        .cluster(
            Cluster::new(cluster_name("v2"), Protocol::Auto),
            &[v2.address],
        )
        .route("battle", forward("v1"))
        .start();
    let mut client = Client::connect(sidecar.outbound);
    assert_eq!(client.get("battle", "/").text(), "v1");
    sidecar.change(|setup| setup.rules[0].1[0].action = Action::Forward(forward("v2")));
    assert_eq!(client.get("battle", "/").text(), "v2");
}

#[test]
fn a_mirror_gets_the_edits_of_the_rule_and_not_those_of_the_chosen_backend() {
    let (upstream, shadow) = (
        Upstream::start(|_, _| ok("")),
        Upstream::start(|_, _| ok("")),
    );
    let set = |name: &str, value: &str| HeaderEdit {
        set: vec![(name.into(), value.into())],
        ..HeaderEdit::default()
    };
    let mut forward = forward("battle");
    forward.backends[0].request_headers = HeaderEdit {
        remove: vec!["x-room".into()],
        ..set("x-backend", "chosen")
    };
    forward.mirrors = vec![Mirror {
        cluster: cluster_name("shadow"),
        per_million: MILLION,
    }];
    let rule = Rule {
        request_headers: set("x-rule", "this"),
        ..rule(Action::Forward(forward))
    };
    let setup = Setup::default()
        .cluster(
            Cluster::new(cluster_name("battle"), Protocol::Http1),
            &[upstream.address],
        )
        .cluster(
            Cluster::new(cluster_name("shadow"), Protocol::Http1),
            &[shadow.address],
        );
    let sidecar = setup.rule("battle", rule).start();
    let asked = "GET / HTTP/1.1\r\nhost: battle\r\nx-room: 7\r\n\r\n";
    let mut client = Client::connect(sidecar.outbound);
    assert_eq!(client.ask(asked).status(), 200);
    eventually("a copy came", || shadow.requests() == 1);
    let seen = |upstream: &Upstream| {
        let last = upstream.last();
        let names = ["x-backend", "x-room", "x-rule", "traceparent"];
        names.map(|name| last.header(name).map(str::to_owned))
    };
    let [backend, room, rule, _] = seen(&upstream);
    assert_eq!(backend.as_deref(), Some("chosen"));
    assert_eq!((room, rule.as_deref()), (None, Some("this")));
    let [backend, room, rule, trace] = seen(&shadow);
    assert_eq!((backend, room.as_deref()), (None, Some("7")));
    assert_eq!(rule.as_deref(), Some("this"));
    assert!(trace.is_some());
}
