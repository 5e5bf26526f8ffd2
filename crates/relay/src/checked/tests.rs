use proptest::prelude::*;

use super::*;
use crate::header::Value;
use crate::response::{BadResponse, ResponseHead};
use phalanx_model::matching::Request as _;

type Fields<'a> = &'a [(&'a str, &'a str)];

fn bytes<'a>(fields: Fields<'a>) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
    fields.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes()))
}

fn http1_line(
    method: &str,
    target: &str,
    version: Version,
    fields: Fields<'_>,
) -> Result<Checked, Refusal> {
    let (path, query) = target
        .split_once('?')
        .map_or((target, None), |(p, q)| (p, Some(q)));
    let line = Http1Line {
        method,
        authority: None,
        path,
        query,
        version,
    };
    Checked::http1(
        Workspace::default(),
        line,
        bytes(fields),
        &Limits::default(),
    )
    .map_err(|(refusal, _)| refusal)
}

fn http1(method: &str, target: &str, fields: Fields<'_>) -> Result<Checked, Refusal> {
    http1_line(method, target, Version::Http11, fields)
}

fn http2_with(
    authority: Option<&str>,
    ended: bool,
    fields: Fields<'_>,
) -> Result<Checked, Refusal> {
    let pseudo = Http2Pseudo {
        method: "POST",
        authority,
        path: "/a",
        query: None,
        ended,
    };
    Checked::http2(
        Workspace::default(),
        pseudo,
        bytes(fields),
        &Limits::default(),
    )
    .map_err(|(refusal, _)| refusal)
}

fn headers(checked: &Checked) -> Vec<String> {
    checked
        .headers()
        .iter()
        .map(|(n, v)| format!("{}: {}", n.as_str(), String::from_utf8_lossy(v)))
        .collect()
}

#[test]
fn plain_request_is_taken_apart() {
    let request = http1(
        "GET",
        "/a/./b//c?x=1",
        &[("host", "Battle.Default.svc.mesh.:80"), ("accept", "*/*")],
    )
    .unwrap();
    assert_eq!(request.authority(), "battle.default.svc.mesh:80");
    assert_eq!(
        (request.host(), request.port()),
        ("battle.default.svc.mesh", Some(80))
    );
    assert_eq!((request.path(), request.query()), ("/a/b/c", Some("x=1")));
    assert_eq!(request.framing(), Framing::None);
    assert_eq!(headers(&request), ["accept: */*"]);
}

#[test]
fn bodies_with_two_readings_are_refused() {
    let cases: &[(Fields<'_>, Refusal)] = &[
        (
            &[
                ("host", "a"),
                ("content-length", "1"),
                ("transfer-encoding", "chunked"),
            ],
            Refusal::Length,
        ),
        (
            &[
                ("host", "a"),
                ("transfer-encoding", "chunked"),
                ("content-length", "1"),
            ],
            Refusal::Length,
        ),
        (
            &[
                ("host", "a"),
                ("content-length", "1"),
                ("content-length", "1"),
            ],
            Refusal::Length,
        ),
        (&[("host", "a"), ("content-length", "+1")], Refusal::Length),
        (
            &[("host", "a"), ("content-length", "1, 1")],
            Refusal::Length,
        ),
        (&[("host", "a"), ("content-length", "")], Refusal::Length),
        (
            &[("host", "a"), ("content-length", "99999999999999999999")],
            Refusal::Length,
        ),
        (
            &[("host", "a"), ("transfer-encoding", "identity")],
            Refusal::TransferEncoding,
        ),
        (
            &[("host", "a"), ("transfer-encoding", "gzip, chunked")],
            Refusal::TransferEncoding,
        ),
        (
            &[
                ("host", "a"),
                ("transfer-encoding", "chunked"),
                ("transfer-encoding", "chunked"),
            ],
            Refusal::TransferEncoding,
        ),
    ];
    for (fields, refusal) in cases {
        assert_eq!(
            http1("POST", "/", fields).unwrap_err(),
            *refusal,
            "{fields:?}"
        );
    }
    let old = http1_line(
        "POST",
        "/",
        Version::Http10,
        &[("host", "a"), ("transfer-encoding", "chunked")],
    );
    assert_eq!(old.unwrap_err(), Refusal::TransferEncoding);
}

#[test]
fn framing_is_told_by_the_enum_alone() {
    let request = http1("POST", "/", &[("host", "a"), ("content-length", "12")]).unwrap();
    assert_eq!(
        (request.framing(), request.headers().len()),
        (Framing::Length(12), 0)
    );
    let request = http1(
        "POST",
        "/",
        &[("host", "a"), ("transfer-encoding", "Chunked")],
    )
    .unwrap();
    assert_eq!(
        (request.framing(), request.headers().len()),
        (Framing::Chunked, 0)
    );
}

#[test]
fn authority_has_one_reading() {
    assert_eq!(http1("GET", "/", &[]).unwrap_err(), Refusal::Authority);
    assert_eq!(
        http1("GET", "/", &[("host", "a"), ("host", "a")]).unwrap_err(),
        Refusal::Authority
    );
    assert_eq!(
        http1("GET", "/", &[("host", "good@bad")]).unwrap_err(),
        Refusal::Authority
    );
    assert_eq!(
        http1("GET", "/", &[("host", "a b")]).unwrap_err(),
        Refusal::Authority
    );
    assert_eq!(
        http1("GET", "/", &[("host", "")]).unwrap_err(),
        Refusal::Authority
    );
    assert_eq!(
        http2_with(Some("a"), true, &[("host", "b")]).unwrap_err(),
        Refusal::Authority
    );
    assert_eq!(http2_with(None, true, &[]).unwrap_err(), Refusal::Authority);
    assert_eq!(
        http2_with(Some("a"), true, &[("host", "A")])
            .unwrap()
            .authority(),
        "a"
    );
    assert_eq!(
        http2_with(None, true, &[("host", "a")])
            .unwrap()
            .authority(),
        "a"
    );
}

#[test]
fn absolute_target_must_agree_with_host() {
    let line = |authority| Http1Line {
        method: "GET",
        authority: Some(authority),
        path: "/",
        query: None,
        version: Version::Http11,
    };
    let ask = |authority, host| {
        Checked::http1(
            Workspace::default(),
            line(authority),
            bytes(&[("host", host)]),
            &Limits::default(),
        )
    };
    assert!(ask("a", "a").is_ok());
    assert_eq!(ask("a", "b").unwrap_err().0, Refusal::Authority);
}

#[test]
fn paths_that_hide_something_are_refused() {
    for target in [
        "/a%2fb", "/a%5cb", "/a%00", "/a\\b", "/../a", "/a?x#y", "*", "a", "",
    ] {
        assert_eq!(
            http1("GET", target, &[("host", "a")]).unwrap_err(),
            Refusal::Path,
            "{target}"
        );
    }
    assert_eq!(Refusal::Path.reply().status, 400);
    assert_eq!(http1("OPTIONS", "*", &[("host", "a")]).unwrap().path(), "*");
}

#[test]
fn connection_fields_end_here() {
    let request = http1(
        "GET",
        "/",
        &[
            ("host", "a"),
            ("connection", "close, X-Secret"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "x"),
            ("te", "trailers"),
            ("trailer", "x"),
            ("http2-settings", "AAA"),
            ("upgrade", "h2c"),
            ("x-kept", "1"),
        ],
    )
    .unwrap();
    assert_eq!(headers(&request), ["x-kept: 1"]);
    assert!(request.te_trailers());
    assert_eq!(request.upgrade(), None);
}

#[test]
fn only_websockets_upgrade_and_only_without_body() {
    let websocket: Fields<'_> = &[
        ("host", "a"),
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "WebSocket"),
    ];
    assert_eq!(
        http1("GET", "/", websocket).unwrap().upgrade(),
        Some(Upgrade::WebSocket)
    );
    assert_eq!(http1("POST", "/", websocket).unwrap_err(), Refusal::Upgrade);
    let with_body = [websocket, &[("content-length", "3")]].concat();
    assert_eq!(http1("GET", "/", &with_body).unwrap_err(), Refusal::Upgrade);
    let other: Fields<'_> = &[
        ("host", "a"),
        ("connection", "upgrade"),
        ("upgrade", "tls/1.3"),
    ];
    assert_eq!(http1("GET", "/", other).unwrap_err(), Refusal::Upgrade);
    let h2c: Fields<'_> = &[
        ("host", "a"),
        ("connection", "upgrade, http2-settings"),
        ("upgrade", "h2c"),
        ("http2-settings", "A"),
    ];
    let request = http1("GET", "/", h2c).unwrap();
    assert_eq!((request.upgrade(), request.headers().len()), (None, 0));
}

#[test]
fn connect_and_odd_methods_are_refused() {
    for method in ["CONNECT", "PRI", "get", "", "GET ", "A/B"] {
        assert_eq!(
            http1(method, "/", &[("host", "a")]).unwrap_err(),
            Refusal::Method,
            "{method}"
        );
    }
    assert_eq!(
        http1("M-SEARCH", "/", &[("host", "a")])
            .unwrap()
            .method_str(),
        "M-SEARCH"
    );
}

#[test]
fn underscore_twins_are_refused() {
    for name in [
        "x_phalanx_reason",
        "x-phalanx_port",
        "x_forwarded_for",
        "content_length",
        "x_env",
        "x_session_epoch",
    ] {
        assert_eq!(
            http1("GET", "/", &[("host", "a"), (name, "1")]).unwrap_err(),
            Refusal::FieldName,
            "{name}"
        );
    }
    assert!(http1("GET", "/", &[("host", "a"), ("x_mine", "1")]).is_ok());
}

#[test]
fn values_that_split_messages_are_refused() {
    for value in ["a\r\nb: c", "a\nb", "a\0b"] {
        assert_eq!(
            http1("GET", "/", &[("host", "a"), ("x", value)]).unwrap_err(),
            Refusal::FieldValue,
            "{value:?}"
        );
    }
}

#[test]
fn heads_over_the_limits_are_refused() {
    let many: Vec<_> = std::iter::once(("host", "a"))
        .chain((0..100).map(|_| ("cookie", "a=b")))
        .collect();
    assert_eq!(http1("GET", "/", &many).unwrap_err(), Refusal::TooLarge);
    assert!(http1("GET", "/", &many[..100]).is_ok());
    let large = "x".repeat(64 << 10);
    assert_eq!(
        http1("GET", "/", &[("host", "a"), ("x", &large)]).unwrap_err(),
        Refusal::TooLarge
    );
    assert_eq!(
        http1("GET", &format!("/{large}"), &[("host", "a")]).unwrap_err(),
        Refusal::TooLarge
    );
    assert_eq!(Refusal::TooLarge.reply().status, 431);
}

#[test]
fn cookie_crumbs_become_one() {
    let request = http2_with(
        Some("a"),
        true,
        &[("cookie", "a=1"), ("x", "y"), ("cookie", "b=2")],
    )
    .unwrap();
    assert_eq!(headers(&request), ["cookie: a=1; b=2", "x: y"]);
}

#[test]
fn http2_has_no_connection_fields() {
    for (name, value) in [
        ("connection", "close"),
        ("keep-alive", "1"),
        ("upgrade", "websocket"),
        ("te", "gzip"),
    ] {
        assert_eq!(
            http2_with(Some("a"), true, &[(name, value)]).unwrap_err(),
            Refusal::ForbiddenField,
            "{name}"
        );
    }
    assert_eq!(
        http2_with(Some("a"), true, &[("transfer-encoding", "chunked")]).unwrap_err(),
        Refusal::TransferEncoding
    );
    assert!(
        http2_with(Some("a"), true, &[("te", "trailers")])
            .unwrap()
            .te_trailers()
    );
}

#[test]
fn http2_length_must_agree_with_the_end() {
    assert_eq!(
        http2_with(Some("a"), true, &[("content-length", "3")]).unwrap_err(),
        Refusal::Length
    );
    assert_eq!(
        http2_with(Some("a"), false, &[("content-length", "3")])
            .unwrap()
            .framing(),
        Framing::Length(3)
    );
    assert_eq!(
        http2_with(Some("a"), false, &[]).unwrap().framing(),
        Framing::Chunked
    );
    assert_eq!(
        http2_with(Some("a"), true, &[]).unwrap().framing(),
        Framing::None
    );
}

#[test]
fn grpc_is_told_by_content_type() {
    for (value, grpc) in [
        ("application/grpc", true),
        ("application/grpc+proto", true),
        ("application/grpc-web", false),
        ("text/plain", false),
    ] {
        assert_eq!(
            http2_with(Some("a"), false, &[("content-type", value)])
                .unwrap()
                .is_grpc(),
            grpc,
            "{value}"
        );
    }
}

#[test]
fn repeated_headers_match_joined() {
    let request = http1("GET", "/", &[("host", "a"), ("x-a", "1"), ("x-a", "2")]).unwrap();
    assert_eq!(request.header("x-a").unwrap(), &b"1,2"[..]);
    assert_eq!(request.header("host").unwrap(), &b"a"[..]);
    assert_eq!(request.header("x-b"), None);
}

#[test]
fn memory_used_again_remembers_nothing() {
    let first = http1(
        "POST",
        "/a?q=secret",
        &[
            ("host", "a"),
            ("x", "1"),
            ("content-type", "application/grpc"),
            ("content-length", "1"),
        ],
    );
    let line = Http1Line {
        method: "GET",
        authority: None,
        path: "/b",
        query: None,
        version: Version::Http11,
    };
    let workspace = first.unwrap().into_workspace();
    let second =
        Checked::http1(workspace, line, bytes(&[("host", "b")]), &Limits::default()).unwrap();
    assert_eq!(
        (second.authority(), second.path(), second.query()),
        ("b", "/b", None)
    );
    assert!(!second.is_grpc() && second.headers().is_empty() && second.framing() == Framing::None);
}

#[test]
fn rewrites_are_checked_too() {
    let mut request = http1("GET", "/a?x=1", &[("host", "a")]).unwrap();
    request.set_path("/b//c").unwrap();
    assert_eq!((request.path(), request.query()), ("/b/c", Some("x=1")));
    assert_eq!(request.set_path("/b%2f"), Err(Refusal::Path));
    assert_eq!(request.set_authority("u@h"), Err(Refusal::Authority));
    assert_eq!((request.path(), request.authority()), ("/b/c", "a"));
}

fn response(status: u16, fields: Fields<'_>) -> Result<ResponseHead, BadResponse> {
    let mut head = ResponseHead::blank();
    head.fill(status, bytes(fields), false, &Limits::default())
        .map(|()| head)
}

#[test]
fn answers_with_two_readings_are_refused() {
    assert_eq!(
        response(
            200,
            &[("content-length", "1"), ("transfer-encoding", "chunked")]
        )
        .unwrap_err(),
        BadResponse::Length
    );
    assert_eq!(
        response(200, &[("content-length", "1"), ("content-length", "2")]).unwrap_err(),
        BadResponse::Length
    );
    assert_eq!(
        response(200, &[("x", "a\r\nb")]).unwrap_err(),
        BadResponse::Field
    );
    assert_eq!(response(100, &[]).unwrap_err(), BadResponse::Status);
    let many: Vec<_> = (0..101).map(|_| ("set-cookie", "a")).collect();
    assert_eq!(response(200, &many).unwrap_err(), BadResponse::TooLarge);
}

#[test]
fn answers_lose_connection_fields() {
    let head = response(
        200,
        &[
            ("connection", "x-gone"),
            ("x-gone", "1"),
            ("keep-alive", "1"),
            ("set-cookie", "a"),
            ("set-cookie", "b"),
        ],
    )
    .unwrap();
    assert_eq!(
        head.headers
            .iter()
            .map(|(_, v)| v.to_vec())
            .collect::<Vec<_>>(),
        [b"a", b"b"]
    );
    assert_eq!(head.framing(), Framing::Chunked);
}

/// Fields from pieces that mean something and pieces that are noise.
fn field() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let name = prop_oneof![
        prop::sample::select(
            [
                "host",
                "content-length",
                "transfer-encoding",
                "connection",
                "upgrade",
                "te",
                "expect",
                "cookie",
                "x_env",
                "content-type"
            ]
            .as_slice()
        )
        .prop_map(|n| n.as_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 0..6),
    ];
    let value = prop_oneof![
        prop::sample::select(
            [
                "a",
                "a:80",
                "1",
                "chunked",
                "close, host",
                "websocket",
                "trailers",
                "100-continue",
                "upgrade"
            ]
            .as_slice()
        )
        .prop_map(|v| v.as_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 0..12),
    ];
    (name, value)
}

proptest! {
    #[test]
    fn whatever_is_taken_can_be_sent(
        method in prop_oneof![Just("GET".to_owned()), Just("POST".to_owned()), ".{0,5}"],
        path in prop_oneof![Just("/a".to_owned()), "[/.%a2f]{0,10}", ".{0,8}"],
        query in prop::option::of("\\PC{0,8}"),
        authority in prop::option::of(prop_oneof![Just("a".to_owned()), ".{0,6}"]),
        fields in prop::collection::vec(field(), 0..8),
        second in any::<bool>(),
    ) {
        let fields = || fields.iter().map(|(n, v)| (n.as_slice(), v.as_slice()));
        let (authority, query) = (authority.as_deref(), query.as_deref());
        let taken = if second {
            let pseudo = Http2Pseudo { method: &method, authority, path: &path, query, ended: true };
            Checked::http2(Workspace::default(), pseudo, fields(), &Limits::default())
        } else {
            let line = Http1Line { method: &method, authority, path: &path, query, version: Version::Http11 };
            Checked::http1(Workspace::default(), line, fields(), &Limits::default())
        };
        if let Ok(request) = taken {
            prop_assert!(!request.host().is_empty() && !request.host().contains('@'));
            prop_assert!(request.path() == "*" || request.path().starts_with('/'));
            prop_assert!(request.path().bytes().chain(request.query().unwrap_or("").bytes()).all(|b| b.is_ascii_graphic()));
            for (name, value) in request.headers().iter() {
                prop_assert!(Name::new(name.as_bytes()).is_some() && Value::new(value).is_some());
                prop_assert!(name != names::HOST && name != names::CONTENT_LENGTH && name != names::TRANSFER_ENCODING);
            }
        }
    }
}
