use std::sync::Arc;

use proptest::prelude::*;

use super::frame::{PREFACE, flag, kind};
use super::*;
use crate::checked::{Checked, Http2Pseudo, Refusal, Workspace};
use crate::framing::Framing;
use crate::header::{HeaderList, Name, Value, names};
use crate::limits::{INTERIM_ANSWERS, Limits};
use crate::pool::Pool;
use crate::response::{BadResponse, ResponseHead};
use crate::verdict::Reply;
use phalanx_model::Reason;

mod attacks;
mod flow;
mod rfc;

/// A frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    super::frame::head(payload.len(), kind, flags, stream, &mut out);
    out.extend_from_slice(payload);
    out
}

/// Literal fields, nothing indexed.
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        out.push(0);
        for text in [name, value] {
            assert!(text.len() < 127);
            out.push(text.len() as u8);
            out.extend_from_slice(text.as_bytes());
        }
    }
    out
}

const GET: &[(&str, &str)] = &[
    (":method", "GET"),
    (":scheme", "http"),
    (":authority", "a"),
    (":path", "/"),
];
const POST: &[(&str, &str)] = &[
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "a"),
    (":path", "/"),
];

fn with<'f>(head: &[(&'f str, &'f str)], more: &[(&'f str, &'f str)]) -> Vec<(&'f str, &'f str)> {
    [head, more].concat()
}

/// HEADERS, complete; `last` ends the stream.
fn headers(stream: u32, last: bool, fields: &[(&str, &str)]) -> Vec<u8> {
    let flags = flag::END_HEADERS | if last { flag::END_STREAM } else { 0 };
    frame(kind::HEADERS, flags, stream, &block(fields))
}

fn get(stream: u32) -> Vec<u8> {
    headers(stream, true, GET)
}

fn post(stream: u32) -> Vec<u8> {
    headers(stream, false, POST)
}

fn data(stream: u32, last: bool, payload: &[u8]) -> Vec<u8> {
    frame(kind::DATA, u8::from(last), stream, payload)
}

fn reset(stream: u32, code: Code) -> Vec<u8> {
    frame(kind::RST_STREAM, 0, stream, &code.0.to_be_bytes())
}

fn window(stream: u32, more: u32) -> Vec<u8> {
    frame(kind::WINDOW_UPDATE, 0, stream, &more.to_be_bytes())
}

fn settings(entries: &[(u16, u32)]) -> Vec<u8> {
    let mut payload = Vec::new();
    for (key, value) in entries {
        payload.extend(key.to_be_bytes());
        payload.extend(value.to_be_bytes());
    }
    frame(kind::SETTINGS, 0, 0, &payload)
}

const INITIAL_WINDOW: u16 = 4;

/// What is written, a line each.
fn lines(mut bytes: &[u8]) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(rest) = bytes.strip_prefix(PREFACE) {
        lines.push("preface".to_owned());
        bytes = rest;
    }
    while let Some((head, rest)) = bytes.split_first_chunk::<9>() {
        let head = super::frame::FrameHead::of(*head);
        let (payload, rest) = rest.split_at(head.len as usize);
        bytes = rest;
        let number = |at: usize| {
            payload
                .get(at..at + 4)
                .map_or(0, |b| u32::from_be_bytes(b.try_into().unwrap()))
        };
        let last = if head.has(flag::END_STREAM) {
            " last"
        } else {
            ""
        };
        let stream = head.stream;
        lines.push(match head.kind {
            kind::DATA => format!("data {stream} {}{last}", head.len),
            kind::HEADERS => format!("headers {stream}{last}"),
            kind::CONTINUATION => format!("continuation {stream}"),
            kind::RST_STREAM => format!("reset {stream} {}", Code(number(0))),
            kind::SETTINGS if head.has(flag::ACK) => "settings ack".to_owned(),
            kind::SETTINGS => "settings".to_owned(),
            kind::PING if head.has(flag::ACK) => "ping ack".to_owned(),
            kind::PING => "ping".to_owned(),
            kind::GOAWAY => format!("goaway {} {}", number(0), Code(number(4))),
            kind::WINDOW_UPDATE => format!("window {stream} {}", number(0)),
            other => format!("kind {other}"),
        });
    }
    assert!(bytes.is_empty());
    lines
}

/// Shortened to what tests look at.
fn told(event: &Event) -> String {
    match event {
        Event::Request {
            stream,
            request,
            last,
        } => format!(
            "request {} {} {}{}",
            stream.id(),
            request.method_str(),
            request.path(),
            if *last { " last" } else { "" }
        ),
        Event::Refused { stream, refusal } => format!("refused {} {refusal:?}", stream.id()),
        Event::Malformed(refusal) => format!("malformed {refusal:?}"),
        Event::Interim { stream, status } => format!("interim {} {status}", stream.id()),
        Event::Head { stream, head, last } => format!(
            "head {} {} {:?}{}",
            stream.id(),
            head.status,
            head.framing(),
            if *last { " last" } else { "" }
        ),
        Event::Data { stream, at, last } => {
            format!(
                "data {} {}{}",
                stream.id(),
                at.len(),
                if *last { " last" } else { "" }
            )
        }
        Event::End { stream, trailers } => format!(
            "end {} {}",
            stream.id(),
            trailers.as_ref().map_or(0, HeaderList::len)
        ),
        Event::Reset { stream, why } => format!("reset {} {why:?}", stream.id()),
        Event::Over(bound) => format!("over {}", bound.as_str()),
        Event::Pong => "pong".to_owned(),
        Event::GoAway { code } => format!("goes {code}"),
    }
}

/// A server, and all that it says and tells.
struct Served {
    server: Server,
    pool: Pool,
    batch: Batch,
    out: Vec<u8>,
    now_s: u32,
}

impl Served {
    fn with(config: Config) -> Self {
        let mut out = Vec::new();
        let server = Server::new(&Arc::new(config), &mut out);
        let mut served = Self {
            server,
            pool: Pool::default(),
            batch: Batch::new(),
            out,
            now_s: 0,
        };
        let greeting = [
            PREFACE,
            &settings(&[])[..],
            &frame(kind::SETTINGS, flag::ACK, 0, &[]),
        ]
        .concat();
        assert!(served.receive(&greeting).unwrap().is_empty());
        served.out.clear();
        served
    }

    fn new() -> Self {
        Self::with(Config::server(Limits::default()))
    }

    fn limited(limits: Limits) -> Self {
        Self::with(Config::server(limits))
    }

    fn receive(&mut self, bytes: &[u8]) -> Result<Vec<Event>, Broken> {
        let (batch, pool, out) = (&mut self.batch, &mut self.pool, &mut self.out);
        let read = self.server.receive(bytes, self.now_s, batch, pool, out);
        let events: Vec<Event> = batch.drain().collect();
        read.map(|()| events)
    }

    /// The streams of requests that `bytes` bring.
    fn streams(&mut self, bytes: &[u8]) -> Vec<Stream> {
        let events = self.receive(bytes).unwrap();
        let stream = |event: &Event| match event {
            Event::Request { stream, .. } | Event::Refused { stream, .. } => Some(*stream),
            _ => None,
        };
        events.iter().filter_map(stream).collect()
    }

    fn said(&mut self) -> Vec<String> {
        lines(&std::mem::take(&mut self.out))
    }
}

fn own(status: u16, framing: Framing) -> ResponseHead {
    let mut head = ResponseHead::blank();
    head.own(status, framing);
    head
}

/// A client that has asked, and all that it says and tells.
struct Asked {
    client: Client,
    pool: Pool,
    batch: Batch,
    out: Vec<u8>,
}

impl Asked {
    fn with(config: Config) -> Self {
        let mut out = Vec::new();
        let client = Client::new(&Arc::new(config), &mut out);
        let mut asked = Self {
            client,
            pool: Pool::default(),
            batch: Batch::new(),
            out,
        };
        assert!(
            asked
                .receive(&[settings(&[]), frame(kind::SETTINGS, flag::ACK, 0, &[])].concat())
                .unwrap()
                .is_empty()
        );
        asked.out.clear();
        asked
    }

    fn new() -> Self {
        Self::with(Config::client(Limits::default()))
    }

    fn open(&mut self, method: &str, ended: bool) -> Stream {
        let request = fuzz::asked(method, ended).unwrap();
        self.client.open(&request, None, &mut self.out).unwrap()
    }

    fn receive(&mut self, bytes: &[u8]) -> Result<Vec<String>, Broken> {
        let (batch, pool, out) = (&mut self.batch, &mut self.pool, &mut self.out);
        self.client.receive(bytes, 0, batch, pool, out)?;
        let events: Vec<Event> = batch.drain().collect();
        Ok(events.iter().map(told).collect())
    }
}

fn request(more: &[(&str, &str)], last: bool) -> Result<Checked, String> {
    let mut served = Served::new();
    let events = served.receive(&headers(1, last, &with(GET, more))).unwrap();
    match events.into_iter().next_back().unwrap() {
        Event::Request { request, .. } => Ok(request),
        other => Err(told(&other)),
    }
}

#[test]
fn greetings_say_what_is_taken() {
    let mut out = Vec::new();
    Server::new(&Arc::new(Config::server(Limits::default())), &mut out);
    assert_eq!(lines(&out), ["settings", "window 0 983041"]);
    let mut out = Vec::new();
    Client::new(&Arc::new(Config::client(Limits::default())), &mut out);
    assert_eq!(lines(&out), ["preface", "settings", "window 0 983041"]);
}

#[test]
fn exchange_of_both_roles_leaves_nothing_behind() {
    let (mut down, mut up) = (Served::new(), Asked::new());
    let stream = up.open("POST", false);
    let mut trailers = HeaderList::new();
    trailers.push(names::GRPC_STATUS, Value::new(b"0").unwrap());
    assert_eq!(up.client.body(stream, b"abc", true, &mut up.out), Ok(3));
    let sent = std::mem::take(&mut up.out);
    let events = down.receive(&sent).unwrap();
    let seen: Vec<String> = events.iter().map(told).collect();
    assert_eq!(seen, ["request 1 POST /", "data 1 3 last"]);
    let Event::Request { stream: theirs, .. } = events[0] else {
        panic!()
    };
    down.server
        .respond(theirs, &own(200, Framing::Chunked), &mut down.out)
        .unwrap();
    down.server.consumed(theirs, 3, &mut down.out);
    assert_eq!(
        down.server.body(theirs, b"defg", false, &mut down.out),
        Ok(4)
    );
    down.server
        .end(theirs, Some(&trailers), &mut down.out)
        .unwrap();
    down.server.release(theirs, &mut down.out);
    let sent = std::mem::take(&mut down.out);
    assert_eq!(lines(&sent), ["headers 1", "data 1 4", "headers 1 last"]);
    assert_eq!(
        up.receive(&sent).unwrap(),
        ["head 1 200 Chunked", "data 1 4", "end 1 1"]
    );
    assert!(up.client.is_complete(stream));
    up.client.consumed(stream, 4, &mut up.out);
    up.client.release(stream, &mut up.out);
    assert!(up.out.is_empty() && up.client.streams() == 0 && down.server.streams() == 0);
    assert_eq!(
        (up.client.phase(), down.server.phase()),
        (Phase::Idle, Phase::Idle)
    );
}

#[test]
fn what_one_request_is_told_by_its_head() {
    let checked = request(
        &[
            ("cookie", "a=1"),
            ("te", "trailers"),
            ("cookie", "b=2"),
            ("x-a", "1"),
        ],
        true,
    )
    .unwrap();
    assert_eq!(checked.authority(), "a");
    assert_eq!(checked.headers().get(names::COOKIE), Some(&b"a=1; b=2"[..]));
    assert!(checked.te_trailers() && checked.framing() == Framing::None);
    assert_eq!(
        request(&[("content-length", "5")], false)
            .unwrap()
            .framing(),
        Framing::Length(5)
    );
    assert_eq!(request(&[], false).unwrap().framing(), Framing::Chunked);
}

#[test]
fn authority_of_the_request_before_is_no_other_ones() {
    let mut served = Served::new();
    for (id, authority, host, port) in [
        (1, "a:80", "a", Some(80)),
        (3, "a:80", "a", Some(80)),
        (5, "A:80", "a", Some(80)),
        (7, "a", "a", None),
        (9, "b.c", "b.c", None),
        (11, "b.c", "b.c", None),
    ] {
        let fields = [GET[0], GET[1], (":authority", authority), GET[3]];
        let events = served.receive(&headers(id, true, &fields)).unwrap();
        let Some(Event::Request {
            request, stream, ..
        }) = events.into_iter().next()
        else {
            panic!()
        };
        assert_eq!((request.host(), request.port()), (host, port));
        served.pool.put_workspace(request.into_workspace());
        served.server.release(stream, &mut served.out);
    }
    let none = [GET[0], GET[1], GET[3]];
    let events = served.receive(&headers(13, true, &none)).unwrap();
    assert_eq!(told(&events[0]), "refused 13 Authority");
}

#[test]
fn field_marked_as_never_indexed_stays_so_on_the_next_hop() {
    let mut served = Served::new();
    let mut bytes = block(GET);
    bytes.extend(b"\x10\x07x-plain\x01v");
    let events = served.receive(&frame(kind::HEADERS, 5, 1, &bytes)).unwrap();
    let Event::Request { request, .. } = &events[0] else {
        panic!()
    };
    let mut asked = Asked::new();
    for _ in 0..3 {
        asked.out.clear();
        asked.client.open(request, None, &mut asked.out).unwrap();
        let never = b"\x10\x07x-plain\x01v";
        assert!(asked.out.windows(never.len()).any(|part| part == never));
    }
}

#[test]
fn own_replies_say_why_and_end_the_stream() {
    let mut served = Served::new();
    let stream = served.streams(&get(1))[0];
    let reply = Reply::of(Reason::NoRoute);
    served
        .server
        .reply(stream, &reply, &mut served.out)
        .unwrap();
    assert_eq!(
        served.server.reply(stream, &reply, &mut served.out),
        Err(WriteError::OutOfTurn)
    );
    served.server.release(stream, &mut served.out);
    let len = Reason::NoRoute.as_str().len();
    assert_eq!(
        served.said(),
        ["headers 1".to_owned(), format!("data 1 {len} last")]
    );
    // To HEAD, and where the peer's window has no room, without the text.
    let head = with(&[(":method", "HEAD")], &GET[1..]);
    let stream = served.streams(&headers(3, true, &head))[0];
    served
        .server
        .reply(stream, &reply, &mut served.out)
        .unwrap();
    assert_eq!(served.said(), ["headers 3 last"]);
    let stream = served.streams(&[settings(&[(INITIAL_WINDOW, 1)]), get(5)].concat())[0];
    served
        .server
        .reply(stream, &reply, &mut served.out)
        .unwrap();
    assert_eq!(served.said(), ["settings ack", "headers 5 last"]);
}

#[test]
fn answers_without_body_end_with_their_head() {
    let mut served = Served::new();
    let head = with(&[(":method", "HEAD")], &GET[1..]);
    for (id, request, answer) in [
        (1, get(1), own(204, Framing::None)),
        (3, get(3), own(304, Framing::Length(7))),
        (5, headers(5, true, &head), own(200, Framing::Length(7))),
        (7, get(7), own(200, Framing::Length(0))),
    ] {
        let stream = served.streams(&request)[0];
        served
            .server
            .respond(stream, &answer, &mut served.out)
            .unwrap();
        served.server.end(stream, None, &mut served.out).unwrap();
        assert_eq!(
            served.server.body(stream, b"x", false, &mut served.out),
            Err(WriteError::TooMuch)
        );
        served.server.release(stream, &mut served.out);
        assert_eq!(served.said(), [format!("headers {id} last")]);
    }
}

#[test]
fn body_keeps_to_the_length_of_its_head() {
    let mut served = Served::new();
    let stream = served.streams(&get(1))[0];
    served
        .server
        .respond(stream, &own(200, Framing::Length(3)), &mut served.out)
        .unwrap();
    let (server, out) = (&mut served.server, &mut served.out);
    assert_eq!(
        server.body(stream, b"abcd", false, out),
        Err(WriteError::TooMuch)
    );
    assert_eq!(
        server.body(stream, b"ab", true, out),
        Err(WriteError::TooLittle)
    );
    assert_eq!(server.body(stream, b"ab", false, out), Ok(2));
    assert_eq!(server.end(stream, None, out), Err(WriteError::TooLittle));
    assert_eq!(server.body(stream, b"c", true, out), Ok(1));
    assert_eq!(
        server.respond(stream, &own(200, Framing::None), out),
        Err(WriteError::OutOfTurn)
    );
}

#[test]
fn expectation_is_met_once_and_not_late() {
    let mut served = Served::new();
    let stream = served.streams(&headers(
        1,
        false,
        &with(POST, &[("expect", "100-continue")]),
    ))[0];
    served.server.proceed(stream, &mut served.out);
    served.server.proceed(stream, &mut served.out);
    assert_eq!(served.said(), ["headers 1"]);
    let stream = served.streams(&headers(
        3,
        false,
        &with(POST, &[("expect", "100-continue")]),
    ))[0];
    served
        .server
        .respond(stream, &own(403, Framing::None), &mut served.out)
        .unwrap();
    served.server.proceed(stream, &mut served.out);
    assert_eq!(served.said(), ["headers 3 last"]);
}

#[test]
fn large_heads_are_cut_into_frames() {
    let mut asked = Asked::new();
    let mut request = fuzz::asked("GET", true).unwrap();
    let long = "v".repeat(20_000);
    let name = Name::new(b"x-long").unwrap();
    request
        .headers_mut()
        .push(name, Value::new(long.as_bytes()).unwrap());
    asked.client.open(&request, None, &mut asked.out).unwrap();
    let sent = std::mem::take(&mut asked.out);
    assert_eq!(lines(&sent), ["headers 1 last", "continuation 1"]);
    let events = Served::new().receive(&sent).unwrap();
    let Event::Request { request, .. } = &events[0] else {
        panic!()
    };
    assert_eq!(request.headers().get(name), Some(long.as_bytes()));
}

#[test]
fn goodbye_takes_what_was_on_its_way_and_nothing_after() {
    let mut served = Served::new();
    let first = served.streams(&get(1))[0];
    served.server.drain(&mut served.out);
    assert_eq!(served.said(), ["goaway 2147483647 NO_ERROR", "ping"]);
    let second = served.streams(&get(3))[0];
    let ack = frame(kind::PING, flag::ACK, 0, b"phalanx!");
    assert!(served.receive(&ack).unwrap().is_empty());
    assert_eq!(served.said(), ["goaway 3 NO_ERROR"]);
    assert!(
        served
            .receive(&[get(5), data(5, false, b"x")].concat())
            .unwrap()
            .is_empty()
    );
    for stream in [first, second] {
        assert!(!served.server.is_done());
        served
            .server
            .respond(stream, &own(200, Framing::None), &mut served.out)
            .unwrap();
        served.server.release(stream, &mut served.out);
    }
    assert!(served.server.is_done());
    assert_eq!(served.said(), ["headers 1 last", "headers 3 last"]);
}

#[test]
fn goodbye_of_an_upstream_frees_what_it_will_not_look_at() {
    let mut asked = Asked::new();
    let (first, second) = (asked.open("GET", true), asked.open("POST", false));
    let goaway = |last: u32| frame(kind::GOAWAY, 0, 0, &[last.to_be_bytes(), [0; 4]].concat());
    let told = asked
        .receive(&[goaway(i32::MAX as u32), goaway(1)].concat())
        .unwrap();
    assert_eq!(told, ["goes NO_ERROR", "reset 3 Unprocessed"]);
    asked.client.release(second, &mut asked.out);
    assert_eq!(asked.client.room(), 0);
    let request = fuzz::asked("GET", true).unwrap();
    assert_eq!(
        asked.client.open(&request, None, &mut asked.out),
        Err(Unopened::Ending)
    );
    assert_eq!(
        asked
            .receive(&headers(1, true, &[(":status", "200")]))
            .unwrap(),
        ["head 1 200 None last"]
    );
    assert!(!asked.client.is_done());
    asked.client.release(first, &mut asked.out);
    assert!(asked.client.is_done());
    assert_eq!(
        asked.receive(&goaway(3)).unwrap_err().code(),
        Code::PROTOCOL_ERROR
    );
}

#[test]
fn pings_of_ours_are_answered_and_foreign_answers_are_not_ours() {
    let mut served = Served::new();
    served.server.ping(&mut served.out);
    let seen = served
        .receive(
            &[
                frame(kind::PING, flag::ACK, 0, b"whatever"),
                frame(kind::PING, flag::ACK, 0, b"phalanx?"),
                frame(kind::PING, 0, 0, b"12345678"),
            ]
            .concat(),
        )
        .unwrap();
    assert!(matches!(seen[..], [Event::Pong]));
    assert_eq!(served.said(), ["ping", "ping ack"]);
}

#[test]
fn ids_are_used_up_once() {
    let mut asked = Asked::new();
    asked.client.skip_to(i32::MAX as u32 - 2);
    let request = fuzz::asked("GET", true).unwrap();
    assert_eq!(asked.client.room(), 1);
    asked.open("GET", true);
    assert_eq!(asked.open("GET", true).id(), i32::MAX as u32);
    assert_eq!(
        asked.client.open(&request, None, &mut asked.out),
        Err(Unopened::Exhausted)
    );
    let mut served = Served::new();
    assert_eq!(served.streams(&get(i32::MAX as u32)).len(), 1);
    assert!(served.receive(&get(1)).is_err());
}

#[test]
fn peers_limit_of_streams_is_kept() {
    let mut asked = Asked::new();
    asked.receive(&settings(&[(3, 2)])).unwrap();
    let first = asked.open("GET", true);
    asked.open("GET", true);
    let request = fuzz::asked("GET", true).unwrap();
    assert_eq!(
        asked.client.open(&request, None, &mut asked.out),
        Err(Unopened::Full)
    );
    asked.client.release(first, &mut asked.out);
    assert_eq!(asked.client.room(), 1);
}

#[test]
fn letting_go_early_cancels_and_an_early_answer_says_no_error() {
    let mut served = Served::new();
    let streams = served.streams(&[post(1), post(3), post(5)].concat());
    served.server.release(streams[0], &mut served.out);
    served
        .server
        .respond(streams[1], &own(413, Framing::None), &mut served.out)
        .unwrap();
    served.server.release(streams[1], &mut served.out);
    served
        .server
        .reset(streams[2], Code::INTERNAL_ERROR, &mut served.out);
    assert_eq!(
        served.said(),
        [
            "reset 1 CANCEL",
            "headers 3 last",
            "reset 3 NO_ERROR",
            "reset 5 INTERNAL_ERROR"
        ]
    );
    // What was on its way is no error, and goes back to the window.
    assert!(
        served
            .receive(
                &[
                    data(1, false, &[0; 100]),
                    data(3, true, b"x"),
                    headers(5, true, &[("x", "y")])
                ]
                .concat()
            )
            .unwrap()
            .is_empty()
    );
    assert!(served.said().is_empty());
    let (window, unreturned) = served.server.receive_window();
    assert_eq!(window + unreturned, 1 << 20);
    // A stream that outlived its slot reaches nobody else's.
    let next = served.streams(&get(7))[0];
    assert_eq!(next.slot(), streams[2].slot());
    assert_eq!(
        served.server.body(streams[2], b"x", false, &mut served.out),
        Err(WriteError::Reset)
    );
    served.server.release(streams[2], &mut served.out);
    assert_eq!(served.server.streams(), 1);
}

/// Frames that may stand in any order.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let id = prop_oneof![
        Just(1u32),
        Just(3),
        Just(5),
        Just(7),
        Just(9),
        Just(0),
        Just(2)
    ];
    let field = prop_oneof![
        Just(("x-a", "1")),
        Just(("te", "trailers")),
        Just(("cookie", "a=b")),
        Just(("content-length", "3")),
        Just((":status", "200")),
        Just((":status", "100")),
        Just(("Upper", "1")),
        Just(("connection", "close")),
        Just(("host", "a")),
    ];
    let some = prop::collection::vec(field, 0..4);
    prop_oneof![
        4 => (id.clone(), any::<bool>(), any::<bool>(), some.clone()).prop_map(|(id, last, post, more)| {
            headers(id, last, &with(if post { POST } else { GET }, &more))
        }),
        2 => (id.clone(), any::<bool>(), some).prop_map(|(id, last, fields)| headers(id, last, &fields)),
        4 => (id.clone(), any::<bool>(), 0usize..40).prop_map(|(id, last, len)| data(id, last, &vec![b'd'; len])),
        1 => (id.clone(), 0u32..14).prop_map(|(id, code)| reset(id, Code(code))),
        1 => (id.clone(), any::<u32>()).prop_map(|(id, more)| window(id, more)),
        1 => (0u16..10, any::<u32>()).prop_map(|(key, value)| settings(&[(key, value)])),
        1 => (0u8..12, any::<u8>(), id, prop::collection::vec(any::<u8>(), 0..20)).prop_map(|(kind, flags, id, payload)| frame(kind, flags, id, &payload)),
    ]
}

proptest! {
    #[test]
    fn requests_are_the_same_however_they_are_cut(
        frames in prop::collection::vec(any_frame(), 0..12), cuts in prop::collection::vec(any::<u8>(), 0..60),
    ) {
        let bytes = [settings(&[]), frames.concat()].concat();
        fuzz::requests(&bytes, &cuts, &Limits::default())?;
    }

    #[test]
    fn answers_are_the_same_however_they_are_cut(
        frames in prop::collection::vec(any_frame(), 0..12), cuts in prop::collection::vec(any::<u8>(), 0..60),
    ) {
        let bytes = [settings(&[]), frames.concat()].concat();
        fuzz::answers(&bytes, &cuts, &Limits::default())?;
    }

    #[test]
    fn anything_is_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), cuts in prop::collection::vec(any::<u8>(), 0..20)) {
        fuzz::requests(&bytes, &cuts, &Limits::default())?;
        fuzz::answers(&[settings(&[]), bytes].concat(), &cuts, &Limits::default())?;
    }

    #[test]
    fn fields_of_requests_come_back_from_the_next_hop(
        path in "/[a-z%0-9/.]{0,12}", fields in prop::collection::vec(("[a-z-]{1,12}", "[ -~]{0,20}"), 0..8),
    ) {
        let pseudo = Http2Pseudo { method: "PUT", authority: Some("a:80"), path: &path, query: Some("q=1"), ended: false };
        let fields = fields.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        if let Ok(request) = Checked::http2(Workspace::default(), pseudo, fields, &Limits::default()) {
            let mut asked = Asked::new();
            asked.client.open(&request, None, &mut asked.out).unwrap();
            let events = Served::new().receive(&asked.out).unwrap();
            let Event::Request { request: again, .. } = &events[0] else { panic!("{events:?}") };
            prop_assert_eq!(format!("{request:?} {:?}", request.query()), format!("{again:?} {:?}", again.query()));
        }
    }
}
