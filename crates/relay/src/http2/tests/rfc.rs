//! What RFC 9113 says of single frames and messages, a line each. h2spec's cases are run against the example server.

use super::*;

/// How a server takes `bytes`: the connection's end, a stream's, or what it tells.
fn outcome(bytes: &[u8]) -> String {
    let mut served = Served::new();
    match served.receive(bytes) {
        Err(broken) => {
            let said = served.said().pop().unwrap_or_default();
            assert!(
                said.starts_with("goaway") && said.ends_with(broken.code().as_str()),
                "{said}"
            );
            format!("connection {}", broken.code())
        }
        Ok(events) => {
            let said = served.said();
            match said.iter().find(|line| line.starts_with("reset")) {
                Some(reset) => format!("stream{}", reset.trim_start_matches("reset")),
                None => events.iter().map(told).collect::<Vec<_>>().join(", "),
            }
        }
    }
}

fn check(cases: &[(&str, Vec<u8>, &str)]) {
    for (name, bytes, expected) in cases {
        assert_eq!(outcome(bytes), *expected, "{name}");
    }
}

fn field(name: &str, value: &str) -> Vec<u8> {
    headers(1, true, &with(GET, &[(name, value)]))
}

fn pseudo(fields: &[(&str, &str)]) -> Vec<u8> {
    headers(1, true, fields)
}

#[test]
fn frames() {
    let padded = |kind, flags, payload: &[u8]| frame(kind, flags | flag::PADDED, 1, payload);
    check(&[
        (
            "4.1 unknown kinds are ignored",
            [frame(0x42, 255, 1, b"x"), get(1)].concat(),
            "request 1 GET / last",
        ),
        (
            "4.1 the reserved bit is ignored",
            {
                let mut f = get(1);
                f[5] |= 0x80;
                f
            },
            "request 1 GET / last",
        ),
        (
            "4.2 too large",
            frame(kind::DATA, 0, 1, &[0; 16385]),
            "connection FRAME_SIZE_ERROR",
        ),
        (
            "4.2 unknown kind too large",
            frame(0x42, 0, 1, &[0; 16385]),
            "connection FRAME_SIZE_ERROR",
        ),
        (
            "4.3 block that is none",
            frame(kind::HEADERS, 5, 1, b"\x80"),
            "connection COMPRESSION_ERROR",
        ),
        (
            "5.1 data on an idle stream",
            data(1, false, b"x"),
            "connection PROTOCOL_ERROR",
        ),
        (
            "5.1 reset of an idle stream",
            reset(1, Code::CANCEL),
            "connection PROTOCOL_ERROR",
        ),
        (
            "5.1 window of an idle stream",
            window(1, 1),
            "connection PROTOCOL_ERROR",
        ),
        ("5.1.1 even id", get(2), "connection PROTOCOL_ERROR"),
        (
            "5.1.1 smaller id",
            [get(5), get(3)].concat(),
            "connection PROTOCOL_ERROR",
        ),
        (
            "6.1 data on no stream",
            data(0, false, b"x"),
            "connection PROTOCOL_ERROR",
        ),
        (
            "6.1 padding of all",
            [post(1), padded(kind::DATA, 0, b"\x03abc")].concat(),
            "request 1 POST /",
        ),
        (
            "6.1 padding of more",
            [post(1), padded(kind::DATA, 0, b"\x04abc")].concat(),
            "connection PROTOCOL_ERROR",
        ),
        (
            "6.1 padding",
            [post(1), padded(kind::DATA, 1, b"\x01abc")].concat(),
            "request 1 POST /, data 1 2 last",
        ),
        (
            "6.1 padding and nothing else, last",
            [post(1), padded(kind::DATA, 1, b"\x02ab")].concat(),
            "request 1 POST /, end 1 0",
        ),
        (
            "6.1 no room for the padding's length",
            [post(1), padded(kind::DATA, 1, b"")].concat(),
            "connection FRAME_SIZE_ERROR",
        ),
        (
            "6.2 head on no stream",
            headers(0, true, GET),
            "connection PROTOCOL_ERROR",
        ),
        (
            "6.2 padded head",
            padded(
                kind::HEADERS,
                5,
                &[b"\x02", &block(GET)[..], b"zz"].concat(),
            ),
            "request 1 GET / last",
        ),
        (
            "6.2 padding of more",
            padded(kind::HEADERS, 5, b"\x09ab"),
            "connection PROTOCOL_ERROR",
        ),
        (
            "6.2 head with priority",
            frame(
                kind::HEADERS,
                0x25,
                1,
                &[&[0, 0, 0, 3, 7], &block(GET)[..]].concat(),
            ),
            "request 1 GET / last",
        ),
        (
            "6.2 priority cut short",
            frame(kind::HEADERS, 0x25, 1, &[0, 0]),
            "connection FRAME_SIZE_ERROR",
        ),
        (
            "6.2 depends on itself",
            frame(
                kind::HEADERS,
                0x25,
                1,
                &[&[0, 0, 0, 1, 7], &block(GET)[..]].concat(),
            ),
            "stream 1 PROTOCOL_ERROR",
        ),
        (
            "6.3 priority",
            [frame(kind::PRIORITY, 0, 9, &[0, 0, 0, 1, 7]), get(1)].concat(),
            "request 1 GET / last",
        ),
        (
            "6.3 size",
            frame(kind::PRIORITY, 0, 1, &[0; 4]),
            "connection FRAME_SIZE_ERROR",
        ),
        (
            "6.3 no stream",
            frame(kind::PRIORITY, 0, 0, &[0; 5]),
            "connection PROTOCOL_ERROR",
        ),
        (
            "6.4 size",
            [post(1), frame(kind::RST_STREAM, 0, 1, &[0; 3])].concat(),
            "connection FRAME_SIZE_ERROR",
        ),
        (
            "6.4 no stream",
            reset(0, Code::CANCEL),
            "connection PROTOCOL_ERROR",
        ),
        (
            "6.5 size",
            frame(kind::SETTINGS, 0, 0, &[0; 5]),
            "connection FRAME_SIZE_ERROR",
        ),
        (
            "6.5 ack with payload",
            frame(kind::SETTINGS, 1, 0, &[0; 6]),
            "connection FRAME_SIZE_ERROR",
        ),
        (
            "6.5 on a stream",
            frame(kind::SETTINGS, 0, 1, &[]),
            "connection PROTOCOL_ERROR",
        ),
        (
            "6.5.2 push",
            settings(&[(2, 2)]),
            "connection PROTOCOL_ERROR",
        ),
        (
            "6.5.2 window",
            settings(&[(4, 1 << 31)]),
            "connection FLOW_CONTROL_ERROR",
        ),
        (
            "6.5.2 frame small",
            settings(&[(5, 16383)]),
            "connection PROTOCOL_ERROR",
        ),
        (
            "6.5.2 frame large",
            settings(&[(5, 1 << 24)]),
            "connection PROTOCOL_ERROR",
        ),
        (
            "6.5.2 unknown",
            [settings(&[(99, 9)]), get(1)].concat(),
            "request 1 GET / last",
        ),
        (
            "6.6 push",
            frame(kind::PUSH_PROMISE, 4, 1, &[0; 8]),
            "connection PROTOCOL_ERROR",
        ),
        (
            "6.7 size",
            frame(kind::PING, 0, 0, &[0; 7]),
            "connection FRAME_SIZE_ERROR",
        ),
        (
            "6.7 on a stream",
            frame(kind::PING, 0, 1, &[0; 8]),
            "connection PROTOCOL_ERROR",
        ),
        (
            "6.8 on a stream",
            frame(kind::GOAWAY, 0, 1, &[0; 8]),
            "connection PROTOCOL_ERROR",
        ),
        (
            "6.8 size",
            frame(kind::GOAWAY, 0, 0, &[0; 7]),
            "connection FRAME_SIZE_ERROR",
        ),
        (
            "6.9 size",
            frame(kind::WINDOW_UPDATE, 0, 0, &[0; 3]),
            "connection FRAME_SIZE_ERROR",
        ),
        ("6.9 nothing", window(0, 0), "connection PROTOCOL_ERROR"),
        (
            "6.9 nothing on a stream",
            [post(1), window(1, 0)].concat(),
            "stream 1 PROTOCOL_ERROR",
        ),
        (
            "6.9.1 overflow",
            [window(0, i32::MAX as u32)].concat(),
            "connection FLOW_CONTROL_ERROR",
        ),
        (
            "6.9.1 overflow on a stream",
            [post(1), window(1, i32::MAX as u32)].concat(),
            "stream 1 FLOW_CONTROL_ERROR",
        ),
        (
            "6.9.2 overflow by settings",
            [post(1), window(1, 1000), settings(&[(4, i32::MAX as u32)])].concat(),
            "connection FLOW_CONTROL_ERROR",
        ),
        (
            "6.10 of nothing",
            frame(kind::CONTINUATION, 4, 1, b""),
            "connection PROTOCOL_ERROR",
        ),
        (
            "6.10 of another stream",
            [
                frame(kind::HEADERS, 1, 1, b""),
                frame(kind::CONTINUATION, 4, 3, b""),
            ]
            .concat(),
            "connection PROTOCOL_ERROR",
        ),
        (
            "6.10 something between",
            [
                frame(kind::HEADERS, 1, 1, b""),
                frame(kind::PING, 0, 0, &[0; 8]),
            ]
            .concat(),
            "connection PROTOCOL_ERROR",
        ),
        (
            "6.10 unknown between",
            [frame(kind::HEADERS, 1, 1, b""), frame(0x42, 0, 0, &[0; 8])].concat(),
            "connection PROTOCOL_ERROR",
        ),
        (
            "6.10 three parts",
            {
                let b = block(GET);
                [
                    frame(kind::HEADERS, 1, 1, &b[..3]),
                    frame(kind::CONTINUATION, 0, 1, &b[3..9]),
                    frame(kind::CONTINUATION, 4, 1, &b[9..]),
                ]
                .concat()
            },
            "request 1 GET / last",
        ),
        (
            "5.1 data behind the end",
            [get(1), data(1, false, b"x")].concat(),
            "stream 1 STREAM_CLOSED",
        ),
        (
            "5.1 head behind the end",
            [get(1), headers(1, true, &[("x", "y")])].concat(),
            "stream 1 STREAM_CLOSED",
        ),
    ]);
}

#[test]
fn beginnings() {
    let begin = |bytes: &[u8]| {
        let (mut out, mut pool, mut batch) = (Vec::new(), Pool::default(), Batch::new());
        let config = Arc::new(Config::server(Limits::default()));
        let mut server = Server::new(&config, &mut out);
        server
            .receive(bytes, 0, &mut batch, &mut pool, &mut out)
            .map(|()| server.phase())
    };
    assert_eq!(begin(b"GET / HTTP/1.1\r\n"), Err(Broken::Preface));
    assert_eq!(
        begin(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rx"),
        Err(Broken::Preface)
    );
    assert_eq!(begin(&PREFACE[..10]), Ok(Phase::Greeting));
    assert!(begin(&[PREFACE, &get(1)[..]].concat()).is_err());
    assert!(begin(&[PREFACE, &frame(kind::SETTINGS, 1, 0, &[])[..]].concat()).is_err());
    assert_eq!(
        begin(&[PREFACE, &settings(&[])[..]].concat()),
        Ok(Phase::Idle)
    );
    let half = frame(kind::HEADERS, 5, 1, &block(GET));
    assert_eq!(
        begin(&[&PREFACE[..], &settings(&[]), &half[..half.len() - 1]].concat()),
        Ok(Phase::Head)
    );
    assert_eq!(
        begin(&[&PREFACE[..], &settings(&[]), &half[..4]].concat()),
        Ok(Phase::Head)
    );
    assert_eq!(
        begin(&[&PREFACE[..], &settings(&[]), &half].concat()),
        Ok(Phase::Busy)
    );
}

#[test]
fn requests() {
    let reset = "stream 1 PROTOCOL_ERROR";
    let m = (":method", "GET");
    let s = (":scheme", "http");
    let a = (":authority", "a");
    let p = (":path", "/");
    check(&[
        ("8.2.1 upper case", field("X-A", "1"), reset),
        ("8.2.1 no name", field("", "1"), reset),
        ("8.2.1 blank in a name", field("x a", "1"), reset),
        ("8.2.1 line feed in a value", field("x", "a\nb"), reset),
        (
            "8.2.1 carriage return in a value",
            field("x", "a\rb: c"),
            reset,
        ),
        ("8.2.1 NUL in a value", field("x", "a\0b"), reset),
        ("8.2.1 blank before a value", field("x", " a"), reset),
        ("8.2.1 tab behind a value", field("x", "a\t"), reset),
        ("8.2.1 nothing but a blank", field("x", " "), reset),
        (
            "8.2.1 blanks within a value",
            field("x", "a \tb"),
            "request 1 GET / last",
        ),
        ("8.2.2 connection", field("connection", "close"), reset),
        ("8.2.2 keep-alive", field("keep-alive", "1"), reset),
        (
            "8.2.2 proxy-connection",
            field("proxy-connection", "1"),
            reset,
        ),
        (
            "8.2.2 transfer-encoding",
            field("transfer-encoding", "chunked"),
            reset,
        ),
        ("8.2.2 upgrade", field("upgrade", "websocket"), reset),
        ("8.2.2 te", field("te", "gzip"), reset),
        (
            "8.2.2 te trailers",
            field("te", "trailers"),
            "request 1 GET / last",
        ),
        (
            "8.3 pseudo behind a field",
            pseudo(&[m, s, a, ("x", "y"), p]),
            reset,
        ),
        (
            "8.3 unknown pseudo",
            pseudo(&[m, s, a, p, (":x", "y")]),
            reset,
        ),
        (
            "8.3 status",
            pseudo(&[m, s, a, p, (":status", "200")]),
            reset,
        ),
        ("8.3.1 two methods", pseudo(&[m, m, s, a, p]), reset),
        ("8.3.1 two paths", pseudo(&[m, s, a, p, p]), reset),
        ("8.3.1 two authorities", pseudo(&[m, s, a, a, p]), reset),
        ("8.3.1 no method", pseudo(&[s, a, p]), reset),
        ("8.3.1 no scheme", pseudo(&[m, a, p]), reset),
        ("8.3.1 no path", pseudo(&[m, s, a]), reset),
        ("8.3.1 empty path", pseudo(&[m, s, a, (":path", "")]), reset),
        (
            "8.3.1 foreign scheme",
            pseudo(&[m, (":scheme", "ftp"), a, p]),
            reset,
        ),
        (
            "8.3.1 no authority",
            pseudo(&[m, s, p]),
            "refused 1 Authority",
        ),
        (
            "8.3.1 empty authority",
            pseudo(&[m, s, (":authority", ""), p]),
            "refused 1 Authority",
        ),
        (
            "8.3.1 userinfo",
            pseudo(&[m, s, (":authority", "u@a"), p]),
            "refused 1 Authority",
        ),
        (
            "8.3.1 host instead",
            pseudo(&[m, s, p, ("host", "a")]),
            "request 1 GET / last",
        ),
        (
            "8.3.1 host the same",
            field("host", "A"),
            "request 1 GET / last",
        ),
        (
            "8.3.1 host another",
            field("host", "b"),
            "refused 1 Authority",
        ),
        (
            "8.3.1 two hosts",
            pseudo(&[m, s, p, ("host", "a"), ("host", "a")]),
            "refused 1 Authority",
        ),
        (
            "8.3.1 path without slash",
            pseudo(&[m, s, a, (":path", "x")]),
            "refused 1 Path",
        ),
        (
            "8.3.1 fragment",
            pseudo(&[m, s, a, (":path", "/x#y")]),
            "refused 1 Path",
        ),
        (
            "8.3.1 escaped slash",
            pseudo(&[m, s, a, (":path", "/a%2fb")]),
            "refused 1 Path",
        ),
        (
            "8.3.1 above the root",
            pseudo(&[m, s, a, (":path", "/../x")]),
            "refused 1 Path",
        ),
        (
            "8.3.1 star",
            pseudo(&[(":method", "OPTIONS"), s, a, (":path", "*")]),
            "request 1 OPTIONS * last",
        ),
        (
            "8.3.1 star without OPTIONS",
            pseudo(&[m, s, a, (":path", "*")]),
            "refused 1 Path",
        ),
        (
            "8.5 connect",
            pseudo(&[(":method", "CONNECT"), a]),
            "refused 1 Method",
        ),
        (
            "RFC 8441 connect",
            pseudo(&[(":method", "CONNECT"), (":protocol", "websocket"), s, a, p]),
            "refused 1 Method",
        ),
        ("twins", field("transfer_encoding", "chunked"), reset),
        ("internal twins", field("x_forwarded_for", "1"), reset),
        ("expectation", field("expect", "x"), "refused 1 Expectation"),
        (
            "8.1.1 length that is none",
            field("content-length", "-1"),
            reset,
        ),
        (
            "8.1.1 two lengths",
            headers(
                1,
                false,
                &with(POST, &[("content-length", "1"), ("content-length", "1")]),
            ),
            reset,
        ),
        (
            "8.1.1 length and no body",
            field("content-length", "1"),
            reset,
        ),
        (
            "8.1.1 length of nothing and no body",
            field("content-length", "0"),
            "request 1 GET / last",
        ),
    ]);
}

#[test]
fn bodies_and_trailers() {
    let three = || headers(1, false, &with(POST, &[("content-length", "3")]));
    let reset = "stream 1 PROTOCOL_ERROR";
    check(&[
        (
            "as long as told",
            [three(), data(1, false, b"a"), data(1, true, b"bc")].concat(),
            "request 1 POST /, data 1 1, data 1 2 last",
        ),
        ("shorter", [three(), data(1, true, b"ab")].concat(), reset),
        ("longer", [three(), data(1, false, b"abcd")].concat(), reset),
        (
            "longer by pieces",
            [three(), data(1, false, b"ab"), data(1, true, b"cd")].concat(),
            reset,
        ),
        (
            "ended by nothing",
            [three(), data(1, false, b"abc"), data(1, true, b"")].concat(),
            "request 1 POST /, data 1 3, end 1 0",
        ),
        (
            "trailers",
            [
                three(),
                data(1, false, b"abc"),
                headers(1, true, &[("x-sum", "1")]),
            ]
            .concat(),
            "request 1 POST /, data 1 3, end 1 1",
        ),
        (
            "trailers too early",
            [three(), headers(1, true, &[("x-sum", "1")])].concat(),
            reset,
        ),
        (
            "trailers that end nothing",
            [post(1), headers(1, false, &[("x-sum", "1")])].concat(),
            reset,
        ),
        (
            "trailers with a blank behind a value",
            [post(1), headers(1, true, &[("x-sum", "1 ")])].concat(),
            reset,
        ),
        (
            "trailers with a pseudo",
            [post(1), headers(1, true, &[(":path", "/")])].concat(),
            reset,
        ),
        (
            "trailers in upper case",
            [post(1), headers(1, true, &[("X", "/")])].concat(),
            reset,
        ),
        (
            "trailers with a line feed",
            [post(1), headers(1, true, &[("x", "a\nb")])].concat(),
            reset,
        ),
        (
            "trailers that are dropped",
            [
                post(1),
                headers(
                    1,
                    true,
                    &[
                        ("content-length", "9"),
                        ("x-phalanx-reason", "x"),
                        ("host", "b"),
                    ],
                ),
            ]
            .concat(),
            "request 1 POST /, end 1 0",
        ),
        (
            "trailers of nothing",
            [post(1), headers(1, true, &[])].concat(),
            "request 1 POST /, end 1 0",
        ),
    ]);
}

#[test]
fn answers() {
    let answered = |method: &str, bytes: &[u8]| {
        let mut asked = Asked::new();
        asked.open(method, true);
        asked.out.clear();
        match asked.receive(bytes) {
            Err(broken) => format!("connection {}", broken.code()),
            Ok(told) => told.join(", "),
        }
    };
    let head = |last: bool, fields: &[(&str, &str)]| headers(1, last, fields);
    let ok = (":status", "200");
    let bad = |bad: &str| format!("reset 1 Broken(Head({bad}))");
    for (name, method, bytes, expected) in [
        (
            "plain",
            "GET",
            [head(false, &[ok]), data(1, true, b"ab")].concat(),
            "head 1 200 Chunked, data 1 2 last".to_owned(),
        ),
        (
            "with a length",
            "GET",
            [
                head(false, &[ok, ("content-length", "2")]),
                data(1, true, b"ab"),
            ]
            .concat(),
            "head 1 200 Length(2), data 1 2 last".to_owned(),
        ),
        (
            "another length",
            "GET",
            [
                head(false, &[ok, ("content-length", "2")]),
                data(1, true, b"a"),
            ]
            .concat(),
            "head 1 200 Length(2), reset 1 Broken(Length)".to_owned(),
        ),
        (
            "length and nothing",
            "GET",
            head(true, &[ok, ("content-length", "2")]),
            bad("Length"),
        ),
        (
            "length and nothing to HEAD",
            "HEAD",
            head(true, &[ok, ("content-length", "2")]),
            "head 1 200 Length(2) last".to_owned(),
        ),
        (
            "body to HEAD",
            "HEAD",
            [head(false, &[ok]), data(1, true, b"x")].concat(),
            "head 1 200 None, reset 1 Broken(Length)".to_owned(),
        ),
        (
            "empty end to HEAD",
            "HEAD",
            [head(false, &[ok]), data(1, true, b"")].concat(),
            "head 1 200 None, end 1 0".to_owned(),
        ),
        (
            "body of 204",
            "GET",
            [head(false, &[(":status", "204")]), data(1, true, b"x")].concat(),
            "head 1 204 None, reset 1 Broken(Length)".to_owned(),
        ),
        (
            "two lengths",
            "GET",
            head(
                false,
                &[ok, ("content-length", "2"), ("content-length", "3")],
            ),
            bad("Length"),
        ),
        ("no status", "GET", head(true, &[("x", "y")]), bad("Line")),
        ("two statuses", "GET", head(true, &[ok, ok]), bad("Line")),
        (
            "status of a request",
            "GET",
            head(true, &[ok, (":path", "/")]),
            bad("Line"),
        ),
        (
            "status that is none",
            "GET",
            head(true, &[(":status", "2x0")]),
            bad("Line"),
        ),
        (
            "status too long",
            "GET",
            head(true, &[(":status", "2000")]),
            bad("Line"),
        ),
        (
            "status behind a field",
            "GET",
            head(true, &[("x", "y"), ok]),
            bad("Line"),
        ),
        (
            "status below",
            "GET",
            head(true, &[(":status", "099")]),
            bad("Status"),
        ),
        (
            "upper case",
            "GET",
            head(true, &[ok, ("X", "y")]),
            bad("Field"),
        ),
        (
            "control character",
            "GET",
            head(true, &[ok, ("x", "a\rb")]),
            bad("Field"),
        ),
        (
            "connection",
            "GET",
            head(true, &[ok, ("connection", "close")]),
            bad("Field"),
        ),
        (
            "transfer-encoding",
            "GET",
            head(true, &[ok, ("transfer-encoding", "chunked")]),
            bad("Field"),
        ),
        (
            "interim",
            "GET",
            [head(false, &[(":status", "103")]), head(true, &[ok])].concat(),
            "interim 1 103, head 1 200 None last".to_owned(),
        ),
        (
            "interim that ends",
            "GET",
            head(true, &[(":status", "103")]),
            bad("Status"),
        ),
        (
            "101",
            "GET",
            head(false, &[(":status", "101")]),
            bad("Upgrade"),
        ),
        (
            "body first",
            "GET",
            data(1, false, b"x"),
            "reset 1 Broken(Order)".to_owned(),
        ),
        (
            "trailers",
            "GET",
            [
                head(false, &[ok]),
                data(1, false, b"x"),
                head(true, &[("grpc-status", "0")]),
            ]
            .concat(),
            "head 1 200 Chunked, data 1 1, end 1 1".to_owned(),
        ),
        (
            "second head",
            "GET",
            [head(false, &[ok]), head(false, &[ok])].concat(),
            "head 1 200 Chunked, reset 1 Broken(Trailer)".to_owned(),
        ),
        (
            "behind the end",
            "GET",
            [head(true, &[ok]), data(1, false, b"x")].concat(),
            "head 1 200 None last, reset 1 Broken(Ended)".to_owned(),
        ),
        (
            "push",
            "GET",
            frame(kind::PUSH_PROMISE, 4, 1, &[0; 8]),
            "connection PROTOCOL_ERROR".to_owned(),
        ),
        (
            "settings of a pusher",
            "GET",
            settings(&[(2, 1)]),
            "connection PROTOCOL_ERROR".to_owned(),
        ),
        (
            "a stream of its own",
            "GET",
            headers(2, true, &[ok]),
            "connection PROTOCOL_ERROR".to_owned(),
        ),
        (
            "a stream never opened",
            "GET",
            headers(3, true, &[ok]),
            "connection PROTOCOL_ERROR".to_owned(),
        ),
        (
            "data never asked for",
            "GET",
            data(3, true, b"x"),
            "connection PROTOCOL_ERROR".to_owned(),
        ),
        (
            "refused",
            "GET",
            reset(1, Code::REFUSED_STREAM),
            "reset 1 Peer(REFUSED_STREAM)".to_owned(),
        ),
        (
            "whole, then no error",
            "POST",
            [head(true, &[ok]), reset(1, Code::NO_ERROR)].concat(),
            "head 1 200 None last".to_owned(),
        ),
    ] {
        assert_eq!(answered(method, &bytes), expected, "{name}");
    }
}

#[test]
fn server_that_answers_early_may_stop_the_request() {
    let mut asked = Asked::new();
    let stream = asked.open("POST", false);
    let told = asked
        .receive(
            &[
                headers(1, true, &[(":status", "413")]),
                reset(1, Code::NO_ERROR),
            ]
            .concat(),
        )
        .unwrap();
    assert_eq!(told, ["head 1 413 None last", "reset 1 Peer(NO_ERROR)"]);
    assert_eq!(
        asked.client.body(stream, b"x", false, &mut asked.out),
        Err(WriteError::Reset)
    );
    asked.out.clear();
    asked.client.release(stream, &mut asked.out);
    assert!(asked.out.is_empty());
}

#[test]
fn refusals_are_answered_and_the_connection_goes_on() {
    let mut served = Served::new();
    let stream = served.streams(&headers(
        1,
        true,
        &with(&[(":method", "CONNECT")], &[(":authority", "a")]),
    ))[0];
    served
        .server
        .reply(stream, &Refusal::Method.reply(), &mut served.out)
        .unwrap();
    served.server.release(stream, &mut served.out);
    assert_eq!(served.streams(&get(3)).len(), 1);
    assert_eq!(served.said()[0], "headers 1");
}
