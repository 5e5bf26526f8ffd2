//! The crate h2 as the judge, in both roles: what we send it reads, what it sends we read, and of any bytes what both take
//! is the same request; where we are stricter the reason is on a list.

#[path = "http2/drive.rs"]
mod drive;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use drive::{Ask, ask, echo};
use h2::{RecvStream, client, server};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use phalanx_relay::http2::{Batch, Config, Event, Server};
use phalanx_relay::{
    Checked, HeaderList, Http2Pseudo, Limits, Name, Pool, Value, Workspace, names,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

type Fields = Vec<(String, Vec<u8>)>;

/// Fields that frame the message, which both sides take apart, and what h2 shows elsewhere.
const NOT_COMPARED: &[&str] = &[
    "content-length",
    "host",
    "te",
    "expect",
    "trailer",
    "http2-settings",
];

fn of_list(list: &HeaderList) -> Fields {
    sorted(
        list.iter()
            .map(|(name, value)| (name.as_str().to_owned(), value.to_vec())),
    )
}

fn of_map(map: &HeaderMap) -> Fields {
    sorted(
        map.iter()
            .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec())),
    )
}

/// h2 keeps order only within a name; crumbs are joined by us.
fn sorted(fields: impl Iterator<Item = (String, Vec<u8>)>) -> Fields {
    let mut fields: Fields = fields
        .filter(|(name, _)| !NOT_COMPARED.contains(&name.as_str()))
        .map(|(name, value)| (name, value.trim_ascii().to_vec()))
        .collect();
    let crumbs: Vec<Vec<u8>> = fields
        .iter()
        .filter(|(name, _)| name == "cookie")
        .map(|(_, value)| value.clone())
        .collect();
    if !crumbs.is_empty() {
        fields.retain(|(name, _)| name != "cookie");
        fields.push((
            "cookie".to_owned(),
            crumbs.join(&b"; "[..]).trim_ascii().to_vec(),
        ));
    }
    fields.sort();
    fields
}

/// What of a request comes back; values that tables take, and values that they don't.
fn any_fields(rng: &mut fastrand::Rng) -> Fields {
    const NAMES: [&str; 10] = [
        "accept",
        "user-agent",
        "cookie",
        "x-a",
        "x-request-id",
        "grpc-timeout",
        "authorization",
        "x-token",
        "baggage",
        "content-type",
    ];
    let count = rng.usize(..12);
    (0..count)
        .map(|_| {
            let name = NAMES[rng.usize(..NAMES.len())].to_owned();
            let value = match rng.u8(..4) {
                0 => b"one of few".to_vec(),
                1 => format!("value-{}", rng.u8(..5)).into_bytes(),
                2 => (0..rng.usize(..200)).map(|_| rng.u8(0x21..0x7f)).collect(),
                _ => (0..rng.usize(..40)).map(|_| rng.u8(0x80..)).collect(),
            };
            (name, value)
        })
        .collect()
}

fn any_body(rng: &mut fastrand::Rng) -> Vec<u8> {
    let len = rng.choice([0, 1, 500, 17_000, 200_000]).unwrap();
    (0..len).map(|_| rng.u8(..)).collect()
}

fn checked(method: &str, path: &str, fields: &Fields, ended: bool) -> Checked {
    let pseudo = Http2Pseudo {
        method,
        authority: Some("host.mesh:80"),
        path,
        query: Some("q=1"),
        ended,
    };
    let fields = fields
        .iter()
        .map(|(name, value)| (name.as_bytes(), &value[..]));
    Checked::http2(Workspace::default(), pseudo, fields, &Limits::default()).unwrap()
}

fn config(huffman: bool) -> Arc<Config> {
    Arc::new(Config {
        huffman,
        ..Config::server(Limits::default())
    })
}

/// Reads a body to its end, giving the window back; true when it is whole.
async fn read_whole(body: &mut RecvStream) -> (Vec<u8>, Fields, bool) {
    let mut whole = Vec::new();
    while let Some(piece) = body.data().await {
        let Ok(piece) = piece else {
            return (whole, Fields::new(), false);
        };
        let _ = body.flow_control().release_capacity(piece.len());
        whole.extend_from_slice(&piece);
    }
    match body.trailers().await {
        Ok(trailers) => (
            whole,
            trailers.map(|map| of_map(&map)).unwrap_or_default(),
            true,
        ),
        Err(_) => (whole, Fields::new(), false),
    }
}

/// Sends back what it gets.
async fn h2_echo(io: DuplexStream) {
    let mut connection = server::handshake(io).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        tokio::spawn(async move {
            let (parts, mut body) = request.into_parts();
            let mut response = Response::new(());
            for (name, value) in &parts.headers {
                if name != "content-length" {
                    response.headers_mut().append(name, value.clone());
                }
            }
            response.headers_mut().insert(
                "x-path",
                HeaderValue::from_str(&parts.uri.to_string()).unwrap(),
            );
            let mut send = respond.send_response(response, false).unwrap();
            let (whole, trailers, _) = read_whole(&mut body).await;
            send.send_data(Bytes::from(whole), trailers.is_empty())
                .unwrap();
            if !trailers.is_empty() {
                let map = trailers.iter().map(|(name, value)| {
                    (
                        HeaderName::from_bytes(name.as_bytes()).unwrap(),
                        HeaderValue::from_bytes(value).unwrap(),
                    )
                });
                send.send_trailers(map.collect()).unwrap();
            }
        });
    }
}

#[tokio::test]
async fn h2_reads_what_our_client_sends_and_is_read_by_it() {
    for seed in 0..4 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut asks = Vec::new();
        let mut expected = Vec::new();
        for number in 0..120 {
            let (fields, body) = (any_fields(&mut rng), any_body(&mut rng));
            let request = checked("POST", &format!("/{number}"), &fields, false);
            let mut list = HeaderList::new();
            list.push(names::GRPC_STATUS, Value::new(b"0").unwrap());
            list.push(
                Name::new(b"x-sum").unwrap(),
                Value::new(number.to_string().as_bytes()).unwrap(),
            );
            let trailers = rng.bool().then_some(list);
            expected.push((
                of_list(request.headers()),
                body.clone(),
                trailers.as_ref().map(of_list),
            ));
            asks.push(Ask {
                request,
                body,
                trailers,
            });
        }
        let (ours, theirs) = tokio::io::duplex(rng.usize(20..20_000));
        let server = tokio::spawn(h2_echo(theirs));
        let (told, client) = ask(ours, &config(seed % 2 == 0), asks).await;
        for (number, (told, (fields, body, trailers))) in told.into_iter().zip(expected).enumerate()
        {
            assert!(told.complete, "{number} {:?}", told.reset);
            let head = told.head.unwrap();
            let path = head.headers.get(Name::new(b"x-path").unwrap()).unwrap();
            assert_eq!(path, format!("http://host.mesh:80/{number}?q=1").as_bytes());
            let mut echoed = of_list(&head.headers);
            echoed.retain(|(name, _)| name != "x-path");
            assert_eq!(echoed, fields);
            assert_eq!(told.body, body);
            assert_eq!(told.trailers.as_ref().map(of_list), trailers);
        }
        assert_eq!(client.streams(), 0);
        let (window, unreturned) = client.receive_window();
        assert_eq!(window + unreturned, 1 << 20);
        server.await.unwrap();
    }
}

#[tokio::test]
async fn h2_is_read_by_our_server_and_reads_what_it_sends() {
    for seed in 0..4 {
        let mut rng = fastrand::Rng::with_seed(100 + seed);
        let (ours, theirs) = tokio::io::duplex(rng.usize(20..20_000));
        let config = config(seed % 2 == 0);
        let server = tokio::spawn(async move { echo(ours, &config).await });
        let (mut send, connection) = client::handshake(theirs).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut tasks = Vec::new();
        for number in 0..120 {
            let (fields, body) = (any_fields(&mut rng), any_body(&mut rng));
            let trailers = rng.bool();
            send = send.ready().await.unwrap();
            let mut request = Request::builder()
                .method(Method::POST)
                .uri(format!("http://host.mesh/{number}?x"));
            for (name, value) in &fields {
                request = request.header(name, HeaderValue::from_bytes(value).unwrap());
            }
            let (response, mut stream) =
                send.send_request(request.body(()).unwrap(), false).unwrap();
            tasks.push(tokio::spawn(async move {
                stream
                    .send_data(Bytes::from(body.clone()), !trailers)
                    .unwrap();
                if trailers {
                    let mut map = HeaderMap::new();
                    map.insert("x-sum", HeaderValue::from(number));
                    stream.send_trailers(map).unwrap();
                }
                let (parts, mut answer) = response.await.unwrap().into_parts();
                let (echoed, theirs, whole) = read_whole(&mut answer).await;
                assert!(whole && parts.status == 200 && echoed == body);
                assert_eq!(of_map(&parts.headers), sorted(fields.into_iter()));
                assert_eq!(theirs.len(), usize::from(trailers));
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        drop(send);
        connection.await.unwrap().unwrap();
        let served = server.await.unwrap();
        assert_eq!((served.requests, served.broken), (120, None));
        assert_eq!(served.server.streams(), 0);
        let (window, unreturned) = served.server.receive_window();
        assert_eq!(window + unreturned, 1 << 20);
    }
}

/// A request as both can tell it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    line: String,
    fields: Fields,
    body: Vec<u8>,
    trailers: Fields,
    complete: bool,
}

/// h2 takes more than we do only for these reasons. RFC 9113 and 9110 allow or demand each refusal.
const STRICTER: &[&str] = &[
    "refused Authority", // userinfo, another host than the authority's (§8.3.1)
    "refused Path",      // escaped slashes, fragments, above the root
    "refused Expectation",
    "refused Method",      // CONNECT, with and without a protocol
    "malformed Length",    // two lengths, even the same
    "malformed FieldName", // twins of control headers
    "malformed FieldValue",
    "malformed Line", // schemes of other protocols, requests without one
    "reset Trailer",
    "reset Length",
    "broken more padding than frame",
];

struct Ours {
    seen: BTreeMap<u32, Seen>,
    why: Vec<String>,
}

fn ours(bytes: &[u8]) -> Ours {
    let config = config(false);
    let (mut out, mut pool, mut batch) = (Vec::new(), Pool::default(), Batch::new());
    let mut server = Server::new(&config, &mut out);
    let mut ours = Ours {
        seen: BTreeMap::new(),
        why: Vec::new(),
    };
    for piece in bytes.chunks(7) {
        let read = server.receive(piece, 0, &mut batch, &mut pool, &mut out);
        for event in batch.drain() {
            match event {
                Event::Request {
                    stream,
                    request,
                    last,
                } => {
                    let query = request
                        .query()
                        .map_or(String::new(), |query| format!("?{query}"));
                    let seen = Seen {
                        line: format!("{} {}{query}", request.method_str(), request.path()),
                        fields: of_list(request.headers()),
                        complete: last,
                        ..Seen::default()
                    };
                    ours.seen.insert(stream.id(), seen);
                }
                Event::Data { stream, at, last } => {
                    let Some(seen) = ours.seen.get_mut(&stream.id()) else {
                        continue; // refused
                    };
                    seen.body.extend_from_slice(&piece[at]);
                    seen.complete = last;
                }
                Event::End { stream, trailers } => {
                    let Some(seen) = ours.seen.get_mut(&stream.id()) else {
                        continue;
                    };
                    seen.trailers = trailers.as_ref().map(of_list).unwrap_or_default();
                    seen.complete = true;
                }
                Event::Reset { stream, why } => {
                    ours.seen.remove(&stream.id());
                    ours.why.push(match why {
                        phalanx_relay::http2::Why::Broken(bad) => format!("reset {bad:?}"),
                        _ => "reset by peer".to_owned(),
                    });
                    server.release(stream, &mut out);
                }
                Event::Refused { refusal, .. } => ours.why.push(format!("refused {refusal:?}")),
                Event::Malformed(refusal) => ours.why.push(format!("malformed {refusal:?}")),
                _ => {}
            }
        }
        if let Err(broken) = read {
            ours.why.push(format!("broken {broken}"));
            break;
        }
    }
    ours
}

async fn theirs(bytes: Vec<u8>) -> (BTreeMap<u32, Seen>, Option<String>) {
    let seen: Arc<Mutex<BTreeMap<u32, Seen>>> = Arc::default();
    let (peer, io) = tokio::io::duplex(1 << 20);
    let (mut read, mut write) = tokio::io::split(peer);
    let writer = tokio::spawn(async move {
        let _ = write.write_all(&bytes).await;
        for _ in 0..100 {
            tokio::task::yield_now().await; // so that all of it is read before the end is seen
        }
        let _ = write.shutdown().await;
        let _ = read.read_to_end(&mut Vec::new()).await;
    });
    let mut broken = None;
    let mut answers = Vec::new();
    let serve = async {
        let mut connection = match server::handshake(io).await {
            Ok(connection) => connection,
            Err(error) => return Some(error.to_string()),
        };
        while let Some(accepted) = connection.accept().await {
            let (request, respond) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => return Some(error.to_string()),
            };
            answers.push(respond); // dropped, it would reset the stream
            let (parts, mut body) = request.into_parts();
            let id = body.stream_id().as_u32();
            let path = parts
                .uri
                .path_and_query()
                .map_or(String::new(), |path| path.to_string());
            let line = format!("{} {path}", parts.method);
            let fields = of_map(&parts.headers);
            seen.lock().unwrap().insert(
                id,
                Seen {
                    line,
                    fields,
                    ..Seen::default()
                },
            );
            let seen = seen.clone();
            tokio::spawn(async move {
                let (body, trailers, complete) = read_whole(&mut body).await;
                let mut seen = seen.lock().unwrap();
                let mine = seen.get_mut(&id).unwrap();
                (mine.body, mine.trailers, mine.complete) = (body, trailers, complete);
            });
        }
        None
    };
    let served = tokio::time::timeout(Duration::from_secs(5), serve).await;
    broken = served.expect("h2 ends with its input").or(broken);
    writer.abort();
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    let seen = seen.lock().unwrap().clone();
    (seen, broken)
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = (payload.len() as u32).to_be_bytes();
    [&[a, b, c, kind, flags], &stream.to_be_bytes()[..], payload].concat()
}

fn any_headers(rng: &mut fastrand::Rng) -> Vec<u8> {
    let mut pick = |usual: [&'static str; 2], other: &[&'static str]| match rng.u8(..16) {
        0 => other[rng.usize(..other.len())],
        place => usual[usize::from(place) % 2],
    };
    let mut fields: Vec<(&str, &str)> = vec![
        (
            ":method",
            pick(["GET", "POST"], &["OPTIONS", "CONNECT", "get"]),
        ),
        (":scheme", pick(["http", "https"], &["ftp"])),
        (":authority", pick(["a", "a"], &["A:80", "u@a", ""])),
        (
            ":path",
            pick(
                ["/", "/x?y"],
                &["*", "/a%2fb", "/../x", "/x#y", "x", "/a//b"],
            ),
        ),
    ];
    if rng.u8(..30) == 0 {
        fields.remove(rng.usize(..4));
    }
    const MORE: [(&str, &str); 16] = [
        ("x-a", "1"),
        ("cookie", "a=b"),
        ("cookie", "c=d"),
        ("te", "trailers"),
        ("te", "gzip"),
        ("content-length", "3"),
        ("content-length", "0"),
        ("host", "a"),
        ("host", "b"),
        ("Upper", "1"),
        ("connection", "close"),
        ("x_forwarded_for", "1"),
        ("x", "a\nb"),
        (":path", "/"),
        (":status", "200"),
        ("transfer-encoding", "chunked"),
    ];
    let tame = rng.u8(..4) > 0;
    for _ in 0..rng.usize(..4) {
        fields.push(MORE[rng.usize(..if tame { 4 } else { MORE.len() })]);
    }
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(text.len() as u8);
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

fn any_stream_of_frames(rng: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    let mut next = 1;
    for turn in 0..rng.usize(1..10) {
        let old = rng
            .choice([1, 3, 5, next, next])
            .unwrap()
            .min(next.max(3) - 2);
        let last = u8::from(rng.u8(..3) == 0);
        match if turn == 0 { 0 } else { rng.u8(..40) } {
            0..=15 => {
                bytes.extend(frame(1, 4 | last, next, &any_headers(rng)));
                next += 2;
            }
            16..=30 => {
                let body = vec![b'd'; rng.choice([0, 1, 3, 3, 50]).unwrap()];
                bytes.extend(frame(0, last, old, &body));
            }
            31..=34 => bytes.extend(frame(1, 5, old, b"\x00\x03x-t\x011")),
            35..=36 => bytes.extend(frame(
                0,
                8 | last,
                old,
                &[&[rng.u8(..6)][..], b"abcd"].concat(),
            )),
            37..=38 => bytes.extend(frame(3, 0, old, &[0, 0, 0, 8])),
            _ => bytes.extend(frame(
                rng.u8(..12),
                rng.u8(..),
                old,
                &vec![0; rng.usize(..9)],
            )),
        }
    }
    bytes
}

#[tokio::test]
async fn of_any_frames_both_take_the_same_or_we_say_why_not() {
    let rounds = if std::env::var_os("PHALANX_SOAK").is_some() {
        60_000
    } else {
        1_500
    };
    let (mut both, mut stricter) = (0, 0);
    for seed in 0..rounds {
        let mut rng = fastrand::Rng::with_seed(seed);
        let bytes = any_stream_of_frames(&mut rng);
        let ours = ours(&bytes);
        let (theirs, broken) = theirs(bytes).await;
        for (id, mine) in ours.seen.iter().filter(|(_, mine)| mine.complete) {
            match theirs.get(id) {
                Some(other) if other.complete => {
                    let mut other = other.clone();
                    // One path for all servers: ours is canonical.
                    other.line = other.line.replace("//", "/");
                    assert_eq!(*mine, other, "seed {seed} stream {id}");
                    both += 1;
                }
                // h2 ends the connection where we end a stream, and hands on nothing of what it has read by then.
                _ => {
                    let both = broken.is_some() && !ours.why.is_empty();
                    assert!(both, "seed {seed} stream {id}: only ours, {broken:?}");
                }
            }
        }
        for (id, _) in theirs.iter().filter(|(_, other)| other.complete) {
            if ours.seen.get(id).is_some_and(|mine| mine.complete) {
                continue;
            }
            let listed = |why: &String| {
                STRICTER.contains(&why.as_str())
                    || why == "reset by peer"
                    || why.starts_with("broken")
            };
            assert!(
                ours.why.iter().any(listed),
                "seed {seed} stream {id}: {:?}",
                ours.why
            );
            stricter += 1;
        }
    }
    assert!(both > 300 && stricter > 10, "{both} {stricter}");
}
