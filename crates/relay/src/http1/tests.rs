use proptest::prelude::*;

use super::fuzz::{self, Request, asked};
use super::*;
use crate::checked::{Checked, Refusal};
use crate::framing::{Framing, Version};
use crate::header::{Field, HeaderList, Name, Value, names};
use crate::limits::{CHUNK_EXTENSION_BYTES, INTERIM_ANSWERS, Limits};
use crate::pool::Pool;
use crate::response::{BadResponse, ResponseHead};
use crate::verdict::Reply;
use phalanx_model::Reason;

mod attacks;

type Requests = Vec<(Checked, Vec<u8>)>;

/// Everything a server reads of `bytes`, until more is needed; the requests' bodies beside them.
fn serve(bytes: &[u8]) -> Result<(Server, Requests), Broken> {
    let (mut server, mut pool) = (Server::default(), Pool::default());
    let mut input = bytes;
    let mut requests = Vec::new();
    loop {
        match server.read(&mut input, &mut pool, &Limits::default())? {
            Some(Event::Request(request)) => requests.push((request, Vec::new())),
            Some(Event::Body(data)) => requests.last_mut().unwrap().1.extend_from_slice(data),
            Some(Event::End(_)) | None => return Ok((server, requests)),
        }
    }
}

fn request(bytes: &str) -> Result<Checked, Refusal> {
    match serve(bytes.as_bytes()) {
        Ok((_, mut requests)) => Ok(requests.pop().expect("a whole head").0),
        Err(Broken::Refused(refusal)) => Err(refusal),
        Err(other) => panic!("{other}"),
    }
}

/// What answers to `head` look like, and whether another request may follow.
fn answered(head: &str, status: u16, framing: Framing, body: &[u8]) -> (String, Turn) {
    let (mut server, _) = serve(head.as_bytes()).unwrap();
    let mut out = Vec::new();
    server
        .respond(&own(status, framing), false, &mut out)
        .unwrap();
    server.body(body, &mut out).unwrap();
    server.end(None, &mut out).unwrap();
    (String::from_utf8(out).unwrap(), server.turn())
}

fn own(status: u16, framing: Framing) -> ResponseHead {
    let mut head = ResponseHead::blank();
    head.own(status, framing);
    head
}

struct Heard {
    status: u16,
    framing: Framing,
    body: Vec<u8>,
    trailers: Option<HeaderList>,
    finished: Result<Ready, Spent>,
}

/// Reads `bytes` as the answer to a request that was sent whole; `eof`: the peer closes behind it.
fn hear(request: Request, bytes: &[u8], eof: bool) -> Result<Heard, BrokenAnswer> {
    let mut pool = Pool::default();
    let limits = Limits::default();
    let request = asked(request, &limits).unwrap();
    let mut exchange = Ready::fresh().send(&request, None, &mut Vec::new());
    let mut input = bytes;
    let (mut status, mut framing) = (0, Framing::None);
    let (mut body, mut trailers) = (Vec::new(), None);
    loop {
        let answer = match exchange.read(&mut input, &mut pool, &limits)? {
            None if eof => exchange.eof(&mut pool)?,
            answer => answer,
        };
        match answer {
            Some(Answer::Head(head)) => (status, framing) = (head.status, head.framing()),
            Some(Answer::Body(data)) => body.extend_from_slice(data),
            Some(Answer::End(list)) => {
                trailers = list;
                break;
            }
            Some(Answer::Interim(_)) => {}
            None => break,
        }
    }
    Ok(Heard {
        status,
        framing,
        body,
        trailers,
        finished: exchange.finish(input),
    })
}

fn get(bytes: &str) -> Result<Heard, BrokenAnswer> {
    hear(Request::Get, bytes.as_bytes(), false)
}

#[test]
fn plain_request_is_read() {
    let request = request(
        "POST /a/../b?x=1 HTTP/1.1\r\nHost: Battle:80\r\nX-Thing:  two words \r\ncontent-length: 3\r\n\r\nabc",
    )
    .unwrap();
    assert_eq!(request.method_str(), "POST");
    assert_eq!((request.path(), request.query()), ("/b", Some("x=1")));
    assert_eq!(request.authority(), "battle:80");
    assert_eq!(request.framing(), Framing::Length(3));
    let name = Name::new(b"x-thing").unwrap();
    assert_eq!(request.headers().get(name), Some(&b"two words"[..]));
}

#[test]
fn bodies_end_where_their_head_says() {
    let (_, requests) =
        serve(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabcdef").unwrap();
    assert_eq!(requests[0].1, b"abc");
    let chunked = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n\
        3\r\nabc\r\n00A;x=\"y\"\r\n0123456789\r\n0\r\n\r\nGET";
    let (_, requests) = serve(chunked).unwrap();
    assert_eq!(requests[0].1, b"abc0123456789");
}

#[test]
fn every_form_of_target_is_read_or_refused() {
    let form = |line: &str| request(&format!("{line} HTTP/1.1\r\nhost: a\r\n\r\n"));
    assert_eq!(form("GET http://a/b?c").unwrap().path(), "/b");
    assert_eq!(form("GET http://a").unwrap().path(), "/");
    assert_eq!(form("GET http://a?q").unwrap().query(), Some("q"));
    assert_eq!(form("OPTIONS *").unwrap().path(), "*");
    assert_eq!(form("OPTIONS http://a").unwrap().path(), "*");
    for (line, refusal) in [
        ("GET http://b/", Refusal::Authority),
        ("GET http://user@a/", Refusal::Authority),
        ("GET http:///b", Refusal::Authority),
        ("GET ftp://a/", Refusal::Authority),
        ("GET *", Refusal::Path),
        ("GET b", Refusal::Path),
        ("GET ?q", Refusal::Path),
        ("GET /a#b", Refusal::Path),
        ("GET /a?b#c", Refusal::Path),
        ("GET http://a#c", Refusal::Path),
        ("GET /a b", Refusal::Path),
        ("GET  /a", Refusal::Path),
        ("GET /a\tb", Refusal::Path),
        ("GET /a\0b", Refusal::Path),
        ("GET /a?b\0", Refusal::Path),
        ("GET /a\rb", Refusal::Path),
        ("GET /a%2fb", Refusal::Path),
        ("GET /a<b", Refusal::Path),
        ("GET /?a=\"", Refusal::Path),
        ("GET /../a", Refusal::Path),
        ("CONNECT a:1", Refusal::Method),
        ("PRI *", Refusal::Method),
        ("get /", Refusal::Method),
        ("GE(T /", Refusal::Method),
        ("GET", Refusal::Line),
        ("", Refusal::Line),
    ] {
        assert_eq!(form(line).unwrap_err(), refusal, "{line:?}");
    }
}

#[test]
fn two_readings_of_a_head_are_refused() {
    for (fields, refusal) in [
        (
            "content-length: 1\r\ntransfer-encoding: chunked\r\n",
            Refusal::Length,
        ),
        (
            "content-length: 1\r\ncontent-length: 1\r\n",
            Refusal::Length,
        ),
        ("content-length: 1, 1\r\n", Refusal::Length),
        ("content-length: +1\r\n", Refusal::Length),
        ("content-length: 0x1\r\n", Refusal::Length),
        ("content-length: -1\r\n", Refusal::Length),
        ("content-length: 99999999999999999999\r\n", Refusal::Length),
        ("content-length:\r\n", Refusal::Length),
        (
            "transfer-encoding: chunked, chunked\r\n",
            Refusal::TransferEncoding,
        ),
        ("transfer-encoding: identity\r\n", Refusal::TransferEncoding),
        (
            "transfer-encoding: chunked;q=1\r\n",
            Refusal::TransferEncoding,
        ),
        ("transfer-encoding: \u{b}chunked\r\n", Refusal::FieldValue),
        ("transfer-encoding : chunked\r\n", Refusal::FieldName),
        ("transfer\u{1}encoding: chunked\r\n", Refusal::FieldName),
        ("transfer_encoding: chunked\r\n", Refusal::FieldName),
        ("host: a\r\n", Refusal::Authority),
        ("x: a\r\n b\r\n", Refusal::FieldName),
        ("x: a\r\n\tb\r\n", Refusal::FieldName),
        ("x: a\nb: c\r\n", Refusal::Line),
        ("x: a\rb: c\r\n", Refusal::FieldValue),
        ("x: a\0\r\n", Refusal::FieldValue),
        ("x: a\r\r\n", Refusal::FieldValue),
        ("x y: a\r\n", Refusal::FieldName),
        ("x\r\n", Refusal::FieldName),
        (": a\r\n", Refusal::FieldName),
        ("expect: 200-ok\r\n", Refusal::Expectation),
    ] {
        let head = format!("POST / HTTP/1.1\r\nhost: a\r\n{fields}\r\n");
        assert_eq!(request(&head).unwrap_err(), refusal, "{fields:?}");
    }
    for (head, refusal) in [
        ("GET / HTTP/1.1\r\n\r\n", Refusal::Authority),
        ("GET / HTTP/1.1\r\n host: a\r\n\r\n", Refusal::FieldName),
        ("GET / HTTP/1.1\nhost: a\n\n", Refusal::Line),
        ("GET / HTTP/1.2\r\nhost: a\r\n\r\n", Refusal::Version),
        ("GET / HTTP/2.0\r\nhost: a\r\n\r\n", Refusal::Version),
        ("GET / http/1.1\r\nhost: a\r\n\r\n", Refusal::Line),
        ("GET /\r\nhost: a\r\n\r\n", Refusal::Line),
        ("GET / HTTP/1.1 \r\nhost: a\r\n\r\n", Refusal::Line),
        (
            "GET / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n",
            Refusal::TransferEncoding,
        ),
        ("GET / HTTP/1.1\r\nhost: u@a\r\n\r\n", Refusal::Authority),
        ("\u{16}\u{3}\u{1}", Refusal::Line),
        ("\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n", Refusal::Line),
        ("\nGET / HTTP/1.1\r\nhost: a\r\n\r\n", Refusal::Line),
    ] {
        assert_eq!(request(head).unwrap_err(), refusal, "{head:?}");
    }
}

#[test]
fn one_empty_line_before_a_request_is_read_over() {
    assert!(request("\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n").is_ok());
}

#[test]
fn odd_chunks_are_refused() {
    for chunks in [
        "\r\n",
        "x\r\n",
        "-1\r\n",
        "+1\r\n",
        "0x1\r\na\r\n",
        " 1\r\na\r\n",
        "1 \r\na\r\n",
        "1\ra\r\n",
        "1\na\r\n",
        "1 ;x\r\na\r\n",
        "1;x\ra\r\n",
        "1;x\na\r\n",
        "1;\0\r\na\r\n",
        "1\r\nab\r\n",
        "1\r\na\n",
        "1\r\na\r1\r\n",
        "10000000000000000\r\n",
        "00000000000000001\r\na\r\n",
        "1;\r\n\r\n;",
    ] {
        let bytes =
            format!("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{chunks}");
        let broken = serve(bytes.as_bytes()).unwrap_err();
        assert_eq!(broken, Broken::Body(BadBody::Chunk), "{chunks:?}");
    }
}

#[test]
fn trailers_are_cleaned_and_bounded() {
    let section = |trailers: &str| {
        let bytes =
            format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n{trailers}\r\n");
        hear(Request::Get, bytes.as_bytes(), false).map(|heard| heard.trailers)
    };
    let kept = section(
        "Grpc-Status: 0\r\ncontent-length: 5\r\nset-cookie: a\r\nx-phalanx-peer: me\r\nhost: b\r\n",
    );
    let kept = kept.unwrap().unwrap();
    assert_eq!(kept.get(names::GRPC_STATUS), Some(&b"0"[..]));
    assert_eq!(kept.len(), 1);
    assert!(section("cookie: a\r\n").unwrap().is_none());
    assert_eq!(
        section("x y: 1\r\n").unwrap_err(),
        BrokenAnswer::Body(BadBody::Trailer)
    );
    assert_eq!(
        section("x: 1\n").unwrap_err(),
        BrokenAnswer::Body(BadBody::Trailer)
    );
    let too_large = BrokenAnswer::Body(BadBody::TrailersTooLarge);
    let large = format!("x: {}\r\n", "a".repeat(Limits::default().trailer_bytes));
    assert_eq!(section(&large).unwrap_err(), too_large);
    assert_eq!(section(&"x: a\r\n".repeat(101)).unwrap_err(), too_large);
}

#[test]
fn chunk_extensions_are_bounded_over_the_whole_body() {
    let chunk = format!("1;{}\r\na\r\n", "x".repeat(CHUNK_EXTENSION_BYTES / 2 - 1));
    let body = |chunks: usize| {
        format!(
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{}0\r\n\r\n",
            chunk.repeat(chunks)
        )
    };
    assert_eq!(serve(body(2).as_bytes()).unwrap().1[0].1, b"aa");
    assert_eq!(
        serve(body(3).as_bytes()).unwrap_err(),
        Broken::Body(BadBody::ExtensionsTooLarge)
    );
}

#[test]
fn heads_are_taken_up_to_the_limit_and_not_beyond() {
    let limits = Limits::default();
    let counted = "GET/".len() + "hosta".len() + 32 + "x".len() + 32;
    let head = |value: usize| {
        format!(
            "GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n",
            "v".repeat(value)
        )
    };
    assert!(request(&head(limits.head_bytes - counted)).is_ok());
    assert_eq!(
        request(&head(limits.head_bytes - counted + 1)).unwrap_err(),
        Refusal::TooLarge
    );
    let fields = |count: usize| {
        format!(
            "GET / HTTP/1.1\r\nhost: a\r\n{}\r\n",
            "x: y\r\n".repeat(count)
        )
    };
    assert!(request(&fields(limits.head_fields - 1)).is_ok());
    assert_eq!(
        request(&fields(limits.head_fields)).unwrap_err(),
        Refusal::TooLarge
    );
    let endless = "G".repeat(2 * limits.head_bytes);
    assert_eq!(request(&endless).unwrap_err(), Refusal::TooLarge);
}

#[test]
fn pipelined_request_waits_for_the_answer_before_it() {
    let two = b"GET /1 HTTP/1.1\r\nhost: a\r\n\r\nGET /2 HTTP/1.1\r\nhost: a\r\n\r\n";
    let (mut server, mut pool) = (Server::default(), Pool::default());
    let limits = Limits::default();
    let mut input = &two[..];
    let mut next = |server: &mut Server, input: &mut &'static [u8]| match server
        .read(input, &mut pool, &limits)
        .unwrap()
    {
        Some(Event::Request(request)) => Some(request.path().to_owned()),
        Some(Event::End(None)) => Some("end".to_owned()),
        other => other.map(|other| format!("{other:?}")),
    };
    let mut input_static: &'static [u8] = two;
    std::mem::swap(&mut input, &mut input_static);
    assert_eq!(next(&mut server, &mut input).as_deref(), Some("/1"));
    assert_eq!(next(&mut server, &mut input).as_deref(), Some("end"));
    assert_eq!(next(&mut server, &mut input), None);
    assert_eq!(input.len(), two.len() / 2, "the second was touched");
    assert_eq!(server.turn(), Turn::Answer);
    server
        .reply(&Reply::of(Reason::NoRoute), &mut Vec::new())
        .unwrap();
    assert_eq!(server.turn(), Turn::Next);
    assert_eq!(next(&mut server, &mut input).as_deref(), Some("/2"));
}

#[test]
fn connection_goes_on_only_when_both_sides_may_and_want() {
    let fixed = Framing::Length(2);
    let close = "connection: close\r\n";
    let (text, turn) = answered("GET / HTTP/1.1\r\nhost: a\r\n\r\n", 200, fixed, b"ok");
    assert_eq!(text, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    assert_eq!(turn, Turn::Next);
    let (text, turn) = answered(
        "GET / HTTP/1.1\r\nhost: a\r\nconnection: x, Close\r\n\r\n",
        200,
        fixed,
        b"ok",
    );
    assert!(text.contains(close) && turn == Turn::Close);
    let (text, turn) = answered("GET / HTTP/1.0\r\nhost: a\r\n\r\n", 200, fixed, b"ok");
    assert!(text.contains(close) && turn == Turn::Close);
    let old = "GET / HTTP/1.0\r\nhost: a\r\nconnection: keep-alive\r\n\r\n";
    let (text, turn) = answered(old, 200, fixed, b"ok");
    assert!(text.contains("connection: keep-alive\r\n") && turn == Turn::Next);
    let (text, turn) = answered(old, 200, Framing::Chunked, b"ok");
    assert_eq!(text, "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nok");
    assert_eq!(turn, Turn::Close);
    let unread = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nab";
    let (mut server, _) = serve(unread.as_bytes()).unwrap();
    server
        .reply(&Reply::of(Reason::NoRoute), &mut Vec::new())
        .unwrap();
    assert_eq!(server.turn(), Turn::Unread);
    let mut rest: &[u8] = b"cde";
    let (mut pool, limits) = (Pool::default(), Limits::default());
    while server
        .read(&mut rest, &mut pool, &limits)
        .unwrap()
        .is_some()
    {}
    assert_eq!(server.turn(), Turn::Next);
}

#[test]
fn refused_request_gets_one_answer_and_the_end() {
    let (mut server, mut pool) = (Server::default(), Pool::default());
    let mut input: &[u8] = b"GET /%2f HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let broken = server.read(&mut input, &mut pool, &Limits::default());
    assert_eq!(broken.unwrap_err(), Broken::Refused(Refusal::Path));
    assert!(
        server
            .read(&mut input, &mut pool, &Limits::default())
            .unwrap()
            .is_none()
    );
    let mut out = Vec::new();
    server.reply(&Refusal::Path.reply(), &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    assert_eq!(
        text,
        "HTTP/1.1 400 Bad Request\r\nx-phalanx-reason: bad_path\r\ncontent-length: 8\r\nconnection: close\r\n\r\nbad_path"
    );
    assert_eq!(server.turn(), Turn::Close);
    assert_eq!(
        server.reply(&Refusal::Path.reply(), &mut Vec::new()),
        Err(WriteError::OutOfTurn)
    );
}

#[test]
fn answers_without_body_have_none() {
    let head = "HEAD / HTTP/1.1\r\nhost: a\r\n\r\n";
    let (text, turn) = answered(head, 200, Framing::Length(9), b"");
    assert_eq!(text, "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n");
    assert_eq!(turn, Turn::Next);
    let get = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let (text, _) = answered(get, 204, Framing::Length(0), b"");
    assert_eq!(text, "HTTP/1.1 204 No Content\r\n\r\n");
    let (text, _) = answered(get, 304, Framing::Length(9), b"");
    assert_eq!(
        text,
        "HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n"
    );
    let (text, _) = answered(get, 200, Framing::None, b"");
    assert_eq!(text, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    let (mut server, _) = serve(get.as_bytes()).unwrap();
    server
        .respond(&own(204, Framing::None), false, &mut Vec::new())
        .unwrap();
    assert_eq!(server.body(b"x", &mut Vec::new()), Err(WriteError::TooMuch));
}

#[test]
fn body_that_breaks_its_promise_is_not_written() {
    let (mut server, _) = serve(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    let mut out = Vec::new();
    assert_eq!(server.body(b"x", &mut out), Err(WriteError::OutOfTurn));
    server
        .respond(&own(200, Framing::Length(3)), false, &mut out)
        .unwrap();
    assert_eq!(server.body(b"four", &mut out), Err(WriteError::TooMuch));
    server.body(b"ab", &mut out).unwrap();
    assert_eq!(server.end(None, &mut out), Err(WriteError::TooLittle));
    assert_eq!(server.turn(), Turn::Answer);
}

#[test]
fn framing_is_never_taken_from_a_header() {
    let mut head = own(200, Framing::Length(2));
    for (name, value) in [
        (names::CONTENT_LENGTH, "7"),
        (names::TRANSFER_ENCODING, "chunked"),
        (names::CONNECTION, "close"),
        (names::UPGRADE, "h2c"),
        (names::ETAG, "e"),
    ] {
        head.headers
            .push(name, Value::new(value.as_bytes()).unwrap());
    }
    let (mut server, _) = serve(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    let mut out = Vec::new();
    server.respond(&head, false, &mut out).unwrap();
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "HTTP/1.1 200 OK\r\netag: e\r\ncontent-length: 2\r\n\r\n"
    );
}

#[test]
fn chunked_answer_carries_its_trailers() {
    let (mut server, _) = serve(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    let mut out = Vec::new();
    server
        .respond(&own(200, Framing::Chunked), false, &mut out)
        .unwrap();
    server.body(b"", &mut out).unwrap();
    server.body(b"0123456789abcdef", &mut out).unwrap();
    let frame = server.body_frame(300).unwrap();
    assert_eq!(
        (frame.head(), frame.tail()),
        (&b"12c\r\n"[..], &b"\r\n"[..])
    );
    let mut trailers = HeaderList::new();
    trailers.push(names::GRPC_STATUS, Value::new(b"0").unwrap());
    trailers.push(names::CONTENT_LENGTH, Value::new(b"9").unwrap());
    server.end(Some(&trailers), &mut out).unwrap();
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n10\r\n0123456789abcdef\r\n0\r\ngrpc-status: 0\r\n\r\n"
    );
}

#[test]
fn waiting_caller_is_told_to_proceed_once() {
    let head = "POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 1\r\n\r\n";
    let (mut server, _) = serve(head.as_bytes()).unwrap();
    let mut out = Vec::new();
    server.proceed(&mut out);
    server.proceed(&mut out);
    assert_eq!(out, b"HTTP/1.1 100 Continue\r\n\r\n");
    let old = head.replace("1.1", "1.0");
    let (mut server, _) = serve(old.as_bytes()).unwrap();
    out.clear();
    server.proceed(&mut out);
    assert!(out.is_empty(), "HTTP/1.0 knows no 100");
    let (mut server, _) = serve(format!("{head}x").as_bytes()).unwrap();
    server.proceed(&mut out);
    assert!(out.is_empty(), "the body has come already");
}

#[test]
fn expectation_that_was_never_met_ends_the_connection() {
    let head = "POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 1\r\n\r\n";
    let (mut server, _) = serve(head.as_bytes()).unwrap();
    let mut out = Vec::new();
    server.reply(&Reply::of(Reason::NoRoute), &mut out).unwrap();
    assert!(
        String::from_utf8(out)
            .unwrap()
            .contains("connection: close")
    );
    assert_eq!(server.turn(), Turn::Close);
}

const UPGRADE: &str =
    "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";

#[test]
fn tunnel_begins_with_a_101_that_was_asked_for() {
    let (mut server, _) = serve(UPGRADE.as_bytes()).unwrap();
    let mut out = Vec::new();
    server
        .respond(&own(101, Framing::None), false, &mut out)
        .unwrap();
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
    );
    assert_eq!(server.turn(), Turn::Tunnel);
    let (mut server, _) = serve(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    assert_eq!(
        server.respond(&own(101, Framing::None), false, &mut Vec::new()),
        Err(WriteError::OutOfTurn)
    );
}

#[test]
fn early_bytes_of_an_upgrade_are_no_request_and_a_refusal_ends_the_connection() {
    let early = format!("{UPGRADE}GET /hidden HTTP/1.1\r\nhost: a\r\n\r\n");
    let (mut server, requests) = serve(early.as_bytes()).unwrap();
    assert_eq!(requests.len(), 1);
    let mut out = Vec::new();
    server
        .respond(&own(404, Framing::None), false, &mut out)
        .unwrap();
    server.end(None, &mut out).unwrap();
    assert_eq!(server.turn(), Turn::Close);
}

#[test]
fn exchange_becomes_a_tunnel_only_after_its_101() {
    let limits = Limits::default();
    let mut pool = Pool::default();
    let request = asked(Request::WebSocket, &limits).unwrap();
    let mut out = Vec::new();
    let exchange = Ready::fresh().send(&request, None, &mut out);
    assert!(
        String::from_utf8(out)
            .unwrap()
            .ends_with("host: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
    );
    let mut exchange = *exchange.into_tunnel().unwrap_err();
    let mut input: &[u8] =
        b"HTTP/1.1 101 x\r\nconnection: upgrade\r\nupgrade: WebSocket\r\nsec-websocket-accept: k\r\n\r\nfrom the server";
    let Some(Answer::Head(head)) = exchange.read(&mut input, &mut pool, &limits).unwrap() else {
        panic!("no head");
    };
    assert_eq!(head.status, 101);
    assert!(
        exchange
            .read(&mut input, &mut pool, &limits)
            .unwrap()
            .is_none()
    );
    assert_eq!(input, b"from the server");
    assert!(exchange.into_tunnel().is_ok());
}

#[test]
fn switch_that_nobody_asked_for_is_refused() {
    let switch = "HTTP/1.1 101 x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    let bad = BrokenAnswer::Head(BadResponse::Upgrade);
    assert_eq!(get(switch).err(), Some(bad));
    let other = switch.replace("websocket", "h2c");
    assert_eq!(
        hear(Request::WebSocket, other.as_bytes(), false).err(),
        Some(bad)
    );
}

#[test]
fn every_way_to_end_decides_about_reuse() {
    let spent = |heard: Result<Heard, BrokenAnswer>| heard.unwrap().finished.err();
    assert_eq!(
        spent(get("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")),
        None
    );
    assert_eq!(spent(get("HTTP/1.1 204 No Content\r\n\r\n")), None);
    assert_eq!(
        spent(get(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
        )),
        None
    );
    assert_eq!(
        spent(get(
            "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 0\r\n\r\n"
        )),
        None
    );
    assert_eq!(
        spent(get("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no")),
        Some(Spent::Answer)
    );
    assert_eq!(
        spent(get("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok!")),
        Some(Spent::Unread)
    );
    assert_eq!(
        spent(get(
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        )),
        Some(Spent::Close)
    );
    assert_eq!(
        spent(get("HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n")),
        Some(Spent::Close)
    );
    assert_eq!(
        spent(hear(Request::Get, b"HTTP/1.1 200 OK\r\n\r\nok", true)),
        Some(Spent::Close)
    );
    assert_eq!(
        spent(hear(
            Request::WebSocket,
            b"HTTP/1.1 403 x\r\ncontent-length: 0\r\n\r\n",
            false
        )),
        Some(Spent::Upgrade)
    );
    assert_eq!(
        spent(hear(
            Request::Head,
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n",
            false
        )),
        None
    );
    assert_eq!(
        spent(hear(
            Request::Head,
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            false
        )),
        Some(Spent::Unread)
    );
}

#[test]
fn early_answer_does_not_make_a_connection_reusable() {
    let (mut pool, limits) = (Pool::default(), Limits::default());
    let upload = request("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\n").unwrap();
    let mut exchange = Ready::fresh().send(&upload, None, &mut Vec::new());
    let mut input: &[u8] = b"HTTP/1.1 413 x\r\ncontent-length: 0\r\n\r\n";
    while let Some(answer) = exchange.read(&mut input, &mut pool, &limits).unwrap() {
        if matches!(answer, Answer::End(_)) {
            break;
        }
    }
    assert_eq!(exchange.finish(input).err(), Some(Spent::Request));
}

#[test]
fn surplus_behind_an_answer_is_an_error() {
    let (mut pool, limits) = (Pool::default(), Limits::default());
    let request = asked(Request::Get, &limits).unwrap();
    let mut exchange = Ready::fresh().send(&request, None, &mut Vec::new());
    let mut input: &[u8] = b"HTTP/1.1 204 x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n";
    assert!(matches!(
        exchange.read(&mut input, &mut pool, &limits),
        Ok(Some(Answer::Head(_)))
    ));
    assert!(matches!(
        exchange.read(&mut input, &mut pool, &limits),
        Ok(Some(Answer::End(None)))
    ));
    assert_eq!(
        exchange.read(&mut input, &mut pool, &limits).unwrap_err(),
        BrokenAnswer::Surplus
    );
}

#[test]
fn two_readings_of_an_answer_are_refused() {
    for (head, bad) in [
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
            BadResponse::Length,
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\n",
            BadResponse::Length,
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 1, 1\r\n\r\n",
            BadResponse::Length,
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
            BadResponse::TransferEncoding,
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: identity\r\n\r\n",
            BadResponse::TransferEncoding,
        ),
        (
            "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            BadResponse::TransferEncoding,
        ),
        (
            "HTTP/1.1 103 x\r\ncontent-length: 1\r\n\r\n",
            BadResponse::Length,
        ),
        ("HTTP/1.1 200 OK\r\nx: a\r\n b\r\n\r\n", BadResponse::Field),
        ("HTTP/1.1 200 OK\r\nx : a\r\n\r\n", BadResponse::Field),
        ("HTTP/1.1 200 OK\nx: a\n\n", BadResponse::Line),
        ("HTTP/1.1 20 OK\r\n\r\n", BadResponse::Line),
        ("HTTP/1.1 2000 OK\r\n\r\n", BadResponse::Line),
        ("HTTP/1.1  200 OK\r\n\r\n", BadResponse::Line),
        ("HTTP/1.1 200 O\0K\r\n\r\n", BadResponse::Line),
        ("HTTP/1.1 099 x\r\n\r\n", BadResponse::Status),
        ("HTTP/2.0 200 OK\r\n\r\n", BadResponse::Line),
        ("\r\nHTTP/1.1 200 OK\r\n\r\n", BadResponse::Line),
        ("ICY 200 OK\r\n\r\n", BadResponse::Line),
    ] {
        assert_eq!(get(head).err(), Some(BrokenAnswer::Head(bad)), "{head:?}");
    }
}

#[test]
fn interim_answers_are_read_over_and_counted() {
    let interim = "HTTP/1.1 100 Continue\r\n\r\n";
    let with = |count: usize| get(&format!("{}HTTP/1.1 204 x\r\n\r\n", interim.repeat(count)));
    assert_eq!(with(usize::from(INTERIM_ANSWERS)).unwrap().status, 204);
    assert_eq!(
        with(usize::from(INTERIM_ANSWERS) + 1).err(),
        Some(BrokenAnswer::Interim)
    );
}

#[test]
fn close_ends_only_an_answer_that_says_no_other_end() {
    let closed = |bytes: &str| hear(Request::Get, bytes.as_bytes(), true);
    let heard = closed("HTTP/1.0 200 OK\r\n\r\nall of it").unwrap();
    assert_eq!(heard.body, b"all of it");
    assert_eq!(heard.framing, Framing::Chunked);
    assert_eq!(closed("").err(), Some(BrokenAnswer::Silent));
    for cut in [
        "H",
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n",
        "HTTP/1.1 100 x\r\n\r\n",
    ] {
        assert_eq!(closed(cut).err(), Some(BrokenAnswer::Truncated), "{cut:?}");
    }
}

#[test]
fn request_is_written_from_the_checked_one_alone() {
    let mut checked = request(
        "POST /a/./b?q HTTP/1.1\r\nHost: A:80\r\nconnection: x-gone\r\nx-gone: 1\r\nX-Kept: 2\r\n\
         transfer-encoding: Chunked\r\nte: trailers\r\n\r\n0\r\n\r\n",
    )
    .unwrap();
    let evil = Value::new(b"9").unwrap();
    checked.headers_mut().push(names::CONTENT_LENGTH, evil);
    let port = Field::new("x-phalanx-port", "7000").unwrap();
    let mut out = Vec::new();
    let mut exchange = Ready::fresh().send(&checked, Some(&port), &mut out);
    exchange.body(b"hi", &mut out).unwrap();
    exchange.end(None, &mut out).unwrap();
    assert!(exchange.is_sent());
    assert_eq!(exchange.body(b"x", &mut out), Err(WriteError::OutOfTurn));
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "POST /a/b?q HTTP/1.1\r\nhost: a:80\r\nx-kept: 2\r\nx-phalanx-port: 7000\r\n\
         transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
    );
}

#[test]
fn close_in_the_middle_of_a_request_is_seen() {
    for (bytes, complete) in [
        ("", true),
        ("G", false),
        ("GET / HTTP/1.1\r\nhost: a\r\n", false),
        (
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\na",
            false,
        ),
        ("GET / HTTP/1.1\r\nhost: a\r\n\r\n", true),
    ] {
        let (mut server, _) = serve(bytes.as_bytes()).unwrap();
        assert_eq!(
            server.eof(&mut Pool::default()).is_ok(),
            complete,
            "{bytes:?}"
        );
    }
}

#[test]
fn idle_connection_holds_no_memory_beyond_itself() {
    let idle = size_of::<Server>() + size_of::<Unread>() + size_of::<Ready>();
    assert!(idle <= 256, "{idle} bytes");
    assert!(size_of::<Exchange>() <= 256);
    let (mut server, mut pool) = (Server::default(), Pool::default());
    let limits = Limits::default();
    let mut unread = Unread::default();
    for piece in ["GET / HTT", "P/1.1\r\nhost: a\r\n\r\nleft"] {
        unread.keep(piece.as_bytes(), &mut pool);
        let mut input = unread.as_slice();
        while let Some(event) = server.read(&mut input, &mut pool, &limits).unwrap() {
            if let Event::Request(request) = event {
                pool.put_workspace(request.into_workspace());
            }
        }
        let left = input.len();
        unread.advance_to(left, &mut pool);
    }
    assert_eq!(unread.as_slice(), b"left");
    unread.advance_to(0, &mut pool);
    server
        .reply(&Reply::of(Reason::NoRoute), &mut Vec::new())
        .unwrap();
    assert_eq!((server.turn(), server.phase()), (Turn::Next, Phase::Idle));
    assert!(format!("{server:?}{unread:?}").contains("carry: []"));
    assert_eq!(server.held_bytes() + unread.held_bytes(), 0);
}
