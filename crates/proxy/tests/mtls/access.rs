//! AuthorizationPolicy at the inbound listener.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::channel::{Channel, Sender};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use phalanx_model::instance::Protocol;
use phalanx_model::resource::*;
use phalanx_proxy::account::Event;

use crate::pki::*;
use crate::rotation::echo_http2;
use crate::support::*;

fn policy(effect: Effect, rules: Vec<AccessRule>) -> AccessPolicy {
    AccessPolicy {
        name: "AuthorizationPolicy/arena/test".into(),
        effect,
        rules,
    }
}

fn of(service: &str) -> AccessRule {
    AccessRule {
        callers: vec![Caller::Id(id(service))],
        ..AccessRule::default()
    }
}

fn rules(mode: MtlsMode, policies: Vec<AccessPolicy>) -> Inbound {
    inbound(mode, Access { policies })
}

#[test]
fn only_whom_a_policy_allows_gets_in() {
    let app = Upstream::start(|_, _| ok("in"));
    for (allowed, status) in [("gateway", 200), ("stranger", 403)] {
        let access = rules(
            MtlsMode::Permissive,
            vec![policy(Effect::Allow, vec![of(allowed)])],
        );
        let pair = Pair::with(app.address, Protocol::Auto, access, |s| s);
        let answer = pair.get("/");
        assert_eq!(answer.status(), status);
        assert_eq!(answer.reason(), if status == 200 { "" } else { "denied" });
        // In plain text one is nobody.
        let plain = Client::connect(pair.called.inbound).get("battle", "/");
        assert_eq!((plain.status(), plain.reason()), (403, "denied"));
    }
}

#[test]
fn deny_beats_allow_on_the_path_that_the_application_gets() {
    let app = Upstream::start(|message, _| ok(message.path()));
    let admin = AccessRule {
        paths: vec![PathMatch::Prefix("/admin".into())],
        ..AccessRule::default()
    };
    let policies = vec![
        policy(Effect::Allow, vec![of("gateway")]),
        policy(Effect::Deny, vec![admin]),
    ];
    let access = rules(MtlsMode::Strict, policies);
    let pair = Pair::with(app.address, Protocol::Auto, access, |s| s);
    for path in ["/", "/play", "/administrator"] {
        assert_eq!(pair.get(path).text(), path);
    }
    let before = app.requests();
    for path in [
        "/admin",
        "/admin/users",
        "//admin",
        "/play/../admin",
        "/%61dmin",
        "/;a=b/admin",
        "/admin;x",
        "/play/..;/admin",
        "/play/%2e%2e/admin",
    ] {
        let answer = Client::connect(pair.caller.outbound).get("battle", path);
        assert!(
            matches!(answer.status(), 400 | 403),
            "{path}: {}",
            answer.status()
        );
    }
    let config = Shown::of(&pair.gateway).config();
    for path in [
        "/admin",
        "//admin",
        "/play/../admin",
        "/%61dmin",
        "/;a=b/admin",
    ] {
        let answer = ask(
            &config,
            pair.called.inbound,
            &format!("GET {path} HTTP/1.1"),
        )
        .unwrap();
        assert!(answer.starts_with("HTTP/1.1 403"), "{path}: {answer}");
    }
    assert_eq!(app.requests(), before);
}

#[test]
fn no_value_of_a_repeated_header_is_overlooked() {
    let app = Upstream::start(|_, _| ok("in"));
    let role = |value: &str| AccessRule {
        headers: vec![HeaderMatch {
            name: "x-role".into(),
            value: ValueMatch::Exact(value.into()),
        }],
        ..AccessRule::default()
    };
    let ask = |sidecar: &Sidecar, headers: &str| {
        let text = format!("GET / HTTP/1.1\r\nhost: battle\r\n{headers}\r\n");
        Client::connect(sidecar.inbound).ask(&text).status()
    };
    let denied = rules(
        MtlsMode::Permissive,
        vec![policy(Effect::Deny, vec![role("bot")])],
    );
    let pair = Pair::with(app.address, Protocol::Auto, denied, |s| s);
    for (headers, status) in [
        ("", 200),
        ("x-role: user\r\n", 200),
        ("x-role: bot\r\n", 403),
        ("x-role: user\r\nx-role: bot\r\n", 403),
        ("x-role: bot\r\nX-Role: user\r\n", 403),
        ("x-role: user, bot\r\n", 403),
        ("x_role: bot\r\n", 403),
    ] {
        assert_eq!(ask(&pair.called, headers), status, "{headers:?}");
    }
    let allowed = rules(
        MtlsMode::Permissive,
        vec![policy(Effect::Allow, vec![role("admin")])],
    );
    let pair = Pair::with(app.address, Protocol::Auto, allowed, |s| s);
    for (headers, status) in [
        ("", 403),
        ("x-role: admin\r\n", 200),
        ("x-role: admin\r\nx-role: user\r\n", 403),
        ("x-role: user\r\nx-role: admin\r\n", 403),
        ("x-role: admin\r\nx_role: user\r\n", 403),
    ] {
        assert_eq!(ask(&pair.called, headers), status, "{headers:?}");
    }
}

#[test]
fn host_that_is_denied_is_denied_at_every_port() {
    let app = Upstream::start(|_, _| ok("in"));
    let host = |name: &str| AccessRule {
        headers: vec![HeaderMatch {
            name: "host".into(),
            value: ValueMatch::Exact(name.into()),
        }],
        ..AccessRule::default()
    };
    for (effect, cases) in [
        (
            Effect::Deny,
            [
                ("secret", 403),
                ("SECRET:80", 403),
                ("secret.:81", 403),
                ("open:80", 200),
            ],
        ),
        (
            Effect::Allow,
            [
                ("secret", 200),
                ("SECRET:80", 403),
                ("secret.:81", 403),
                ("open:80", 403),
            ],
        ),
    ] {
        let rules = rules(
            MtlsMode::Permissive,
            vec![policy(effect, vec![host("secret")])],
        );
        let pair = Pair::with(app.address, Protocol::Auto, rules, |s| s);
        for (host, status) in cases {
            let answer = Client::connect(pair.called.inbound).get(host, "/");
            assert_eq!(answer.status(), status, "{effect:?} {host}");
        }
    }
}

#[test]
fn grpc_is_told_in_its_own_words() {
    let app = Upstream::start(|_, _| ok("in"));
    let access = rules(
        MtlsMode::Permissive,
        vec![policy(Effect::Allow, Vec::new())],
    );
    let pair = Pair::with(app.address, Protocol::Auto, access, |s| s);
    let answer = Client::connect(pair.called.inbound).ask(
        "POST /a.B/C HTTP/1.1\r\nhost: battle\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n\r\n",
    );
    assert_eq!(
        (answer.status(), answer.header("grpc-status")),
        (200, Some("7"))
    );
    assert_eq!(answer.reason(), "denied");
}

#[test]
fn raw_connection_is_let_in_by_its_caller() {
    let echo = echo_server();
    for (allowed, gets) in [("gateway", 4), ("stranger", 0)] {
        let access = rules(
            MtlsMode::Permissive,
            vec![policy(Effect::Allow, vec![of(allowed)])],
        );
        let pair = Pair::with(echo, Protocol::Tcp, access, |mut setup| {
            setup.tcp.push(cluster_name("battle"));
            setup
        });
        let talk = |address| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(10)))
                .unwrap();
            let mut got = Vec::new();
            let _ = stream.write_all(b"ping");
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = stream.read_to_end(&mut got);
            got.len()
        };
        assert_eq!(talk(pair.caller.tcp[0]), gets, "{allowed}");
        assert_eq!(talk(pair.called.inbound), 0, "in plain text");
        assert!(pair.called.event(Event::AccessDenied) > 0);
    }
}

type Body = Channel<Bytes, std::convert::Infallible>;

/// A call that goes on: its answer has begun, and its first message came back.
struct Stream {
    writer: Sender<Bytes, std::convert::Infallible>,
    answer: hyper::body::Incoming,
}

impl Stream {
    async fn open(sender: &mut SendRequest<Body>, path: &str) -> Self {
        let (writer, body) = Body::new(4);
        let answer = sender.send_request(call(path, body)).await.unwrap();
        assert_eq!(answer.status(), 200);
        let answer = answer.into_body();
        let mut stream = Self { writer, answer };
        assert!(stream.echoes().await);
        stream
    }

    async fn echoes(&mut self) -> bool {
        let sent = Bytes::from_static(b"again");
        self.writer.send_data(sent.clone()).await.unwrap();
        let came = self.answer.frame().await.unwrap().unwrap();
        came.data_ref() == Some(&sent)
    }

    /// The code that it ends with, though nothing is sent.
    async fn ended(&mut self) -> String {
        let frame = tokio::time::timeout(Duration::from_secs(10), self.answer.frame());
        let frame = frame.await.expect("the stream ends").unwrap().unwrap();
        let trailers = frame.into_trailers().unwrap();
        trailers["grpc-status"].to_str().unwrap().to_owned()
    }
}

fn call(path: &str, body: Body) -> http::Request<Body> {
    let request = http::Request::post(format!("http://battle{path}"));
    let request = request.header("content-type", "application/grpc");
    request.body(body).unwrap()
}

#[test]
fn grpc_streams_that_new_rules_would_not_let_in_end_with_their_word_and_no_others() {
    let access = rules(MtlsMode::Strict, Vec::new());
    let mut pair = Pair::with(echo_http2(), Protocol::H2c, access, |s| s);
    let deny = |pair: &mut Pair, path: &str| {
        let rule = AccessRule {
            callers: vec![Caller::Id(id("gateway"))],
            paths: vec![PathMatch::Prefix(path.into())],
            ..AccessRule::default()
        };
        let policies = vec![policy(Effect::Deny, vec![rule])];
        pair.called
            .change(|setup| setup.inbound = Some(rules(MtlsMode::Strict, policies)));
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(pair.caller.outbound);
        let io = TokioIo::new(stream.await.unwrap());
        let http2 = hyper::client::conn::http2::handshake(TokioExecutor::new(), io);
        let (mut sender, connection) = http2.await.unwrap();
        tokio::spawn(connection);
        let mut admin = Stream::open(&mut sender, "/admin/watch").await;
        let mut game = Stream::open(&mut sender, "/game/play").await;
        let (_writer, body) = Body::new(4);
        let silent = tokio::spawn(sender.send_request(call("/admin/silent", body)));
        let counted = || pair.called.sum(|edge| edge.active);
        while counted() < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // These have not lasted yet when the rules change.
        deny(&mut pair, "/admin");
        assert_eq!(admin.ended().await, "7");
        let refused = silent.await.unwrap().unwrap();
        assert_eq!(refused.headers()["grpc-status"], "7", "before an answer");
        assert!(game.echoes().await, "nobody denied that");
        // This one has.
        deny(&mut pair, "/game");
        assert_eq!(game.ended().await, "7");
    });
    assert_eq!(pair.called.event(Event::AccessDenied), 3);
}
