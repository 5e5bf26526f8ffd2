//! hyper as the judge: what both take is the same request or answer, byte for byte; what we write, it reads; and where we
//! are stricter the reason is on a list.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::service::service_fn;
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::TokioIo;
use phalanx_relay::http1::fuzz::{self, asked};
use phalanx_relay::http1::{Answer, Event, Ready, Server, is_forbidden_trailer};
use phalanx_relay::{HeaderList, Limits, Name, Pool};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A message as both readers can tell it.
#[derive(Clone, Default, PartialEq, Eq)]
struct Message {
    /// Method, path and query; or the status.
    line: String,
    fields: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
    trailers: Vec<(String, Vec<u8>)>,
    complete: bool,
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} complete {}", self.line, self.complete)?;
        for (name, value) in self.fields.iter().chain(&self.trailers) {
            write!(f, " {name}: {}", value.escape_ascii())?;
        }
        write!(f, " body {}", self.body.escape_ascii())
    }
}

/// Fields that end at a hop or frame the message: we take them apart, hyper shows them.
const NOT_COMPARED: &[&str] = &[
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// In a request hyper takes more than we do only for these reasons. RFC 9112 allows or demands each refusal.
const STRICTER_REQUESTS: &[&str] = &[
    "broken: refused: a request line", // bare line feeds, several empty lines before a request (§2.2)
    "broken: refused: a version",
    "broken: refused: the method", // CONNECT, and tokens of other than capitals
    "broken: refused: content-length", // two equal lengths; a length beside a transfer-encoding (§6.3)
    "broken: refused: a transfer-encoding", // codings before `chunked`
    "broken: refused: no host",        // none or two, userinfo, another than the target's (§3.2)
    "broken: refused: a field name",   // twins of control headers with underscores
    "broken: refused: a field value",
    "broken: refused: a path", // escaped slashes, fragments, above the root
    "broken: refused: an upgrade",
    "broken: refused: an expectation",
    "broken: broken body: a chunk", // blanks behind a size, controls in extensions, bare line feeds
    "broken: broken body: a trailer",
];

/// The same for answers.
const STRICTER_ANSWERS: &[&str] = &[
    "the answer has a status line", // bare line feeds, empty lines before it
    "the answer has a status that",
    "the answer has a header name",
    "the answer has two lengths",
    "the answer has a transfer-encoding",
    "the answer switches",
    "broken body: a chunk",
    "broken body: a trailer",
    "too many interim answers",
];

fn fields(list: &HeaderList) -> Vec<(String, Vec<u8>)> {
    let fields = list
        .iter()
        .filter(|(name, _)| !NOT_COMPARED.contains(&name.as_str()));
    sorted(fields.map(|(name, value)| (name.as_str().to_owned(), value.to_vec())))
}

fn map_fields(map: &hyper::HeaderMap) -> Vec<(String, Vec<u8>)> {
    let nominated: Vec<String> = map
        .get_all("connection")
        .iter()
        .flat_map(|value| {
            String::from_utf8_lossy(value.as_bytes())
                .to_lowercase()
                .split(',')
                .map(|e| e.trim().to_owned())
                .collect::<Vec<_>>()
        })
        .collect();
    let fields = map.iter();
    sorted(
        fields
            .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
            .filter(|(name, _)| {
                !NOT_COMPARED.contains(&name.as_str()) && !nominated.contains(name)
            }),
    )
}

/// hyper keeps order only within a name.
fn sorted(fields: impl Iterator<Item = (String, Vec<u8>)>) -> Vec<(String, Vec<u8>)> {
    let mut fields: Vec<_> = fields
        .map(|(name, value)| (name, value.trim_ascii().to_vec()))
        .collect();
    fields.sort_by(|a, b| a.0.cmp(&b.0));
    fields
}

fn kept_trailers(map: Option<&hyper::HeaderMap>) -> Vec<(String, Vec<u8>)> {
    let map = map.cloned().unwrap_or_default();
    let fields = map
        .iter()
        .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()));
    sorted(fields.filter(|(name, _)| {
        Name::new(name.as_bytes()).is_none_or(|name| !is_forbidden_trailer(name))
    }))
}

/// The requests that we read, and why we stopped if it was before the end.
fn our_requests(bytes: &[u8]) -> (Vec<Message>, Option<String>) {
    let (mut server, mut pool, limits) = (Server::default(), Pool::default(), Limits::default());
    let mut messages: Vec<Message> = Vec::new();
    let mut input = bytes;
    loop {
        let event = match server.read(&mut input, &mut pool, &limits) {
            Ok(Some(event)) => event,
            Ok(None) => {
                return (
                    messages,
                    server.eof(&mut pool).err().map(|_| "truncated".to_owned()),
                );
            }
            Err(broken) => return (messages, Some(format!("broken: {broken}"))),
        };
        match event {
            Event::Request(request) => {
                let query = request
                    .query()
                    .map_or(String::new(), |query| format!("?{query}"));
                messages.push(Message {
                    line: format!("{} {}{query}", request.method_str(), request.path()),
                    fields: fields(request.headers()),
                    ..Message::default()
                });
            }
            Event::Body(data) => messages.last_mut().unwrap().body.extend_from_slice(data),
            Event::End(trailers) => {
                let last = messages.last_mut().unwrap();
                last.complete = true;
                last.trailers = trailers.as_ref().map(fields).unwrap_or_default();
                let mut head = phalanx_relay::ResponseHead::blank();
                head.own(200, phalanx_relay::Framing::Length(0));
                server.respond(&head, false, &mut Vec::new()).unwrap();
                server.end(None, &mut Vec::new()).unwrap();
                if server.turn() != phalanx_relay::http1::Turn::Next {
                    return (messages, None);
                }
            }
        }
    }
}

/// The requests that hyper reads.
async fn hyper_requests(bytes: &[u8]) -> Vec<Message> {
    let heard: Arc<Mutex<Vec<Message>>> = Arc::default();
    let (mut peer, stream) = tokio::io::duplex(1 << 20);
    let service = service_fn(|request: Request<Incoming>| {
        let heard = heard.clone();
        async move {
            let (parts, body) = request.into_parts();
            let place = heard.lock().unwrap().len();
            let query = parts
                .uri
                .query()
                .map_or(String::new(), |query| format!("?{query}"));
            heard.lock().unwrap().push(Message {
                line: format!("{} {}{query}", parts.method, parts.uri.path()),
                fields: map_fields(&parts.headers),
                ..Message::default()
            });
            let mut body = body;
            let mut complete = true;
            while let Some(frame) = body.frame().await {
                let Ok(frame) = frame else {
                    complete = false;
                    break;
                };
                let mut heard = heard.lock().unwrap();
                match frame.into_data() {
                    Ok(data) => heard[place].body.extend_from_slice(&data),
                    Err(frame) => heard[place].trailers = kept_trailers(frame.trailers_ref()),
                }
            }
            heard.lock().unwrap()[place].complete = complete;
            Ok::<_, std::convert::Infallible>(Response::new(Empty::<Bytes>::new()))
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service);
    let feed = async {
        let _ = peer.write_all(bytes).await; // hyper may have closed
        let _ = peer.shutdown().await;
        let _ = peer.read_to_end(&mut Vec::new()).await;
    };
    let both = async { tokio::join!(connection, feed) };
    let _ = tokio::time::timeout(Duration::from_secs(10), both)
        .await
        .expect("hyper hangs");
    heard.lock().unwrap().clone()
}

/// The answer that we read.
fn our_answer(bytes: &[u8], head: bool) -> Result<Message, String> {
    let (mut pool, limits) = (Pool::default(), Limits::default());
    let kind = if head {
        fuzz::Request::Head
    } else {
        fuzz::Request::Get
    };
    let request = asked(kind, &limits).unwrap();
    let mut exchange = Ready::fresh().send(&request, None, &mut Vec::new());
    let mut message = Message::default();
    let mut input = bytes;
    loop {
        let answer = match exchange.read(&mut input, &mut pool, &limits) {
            Ok(None) => exchange.eof(&mut pool),
            answer => answer,
        };
        match answer {
            Ok(Some(Answer::Interim(_))) => {}
            Ok(Some(Answer::Head(head))) => {
                message.line = head.status.to_string();
                message.fields = fields(&head.headers);
            }
            Ok(Some(Answer::Body(data))) => message.body.extend_from_slice(data),
            Ok(Some(Answer::End(trailers))) => {
                message.complete = true;
                message.trailers = trailers.as_ref().map(fields).unwrap_or_default();
                return Ok(message);
            }
            Ok(None) => return Ok(message),
            Err(broken) if message.line.is_empty() => return Err(broken.to_string()),
            Err(broken) if broken.to_string().contains("closed") => return Ok(message),
            Err(broken) => return Err(broken.to_string()),
        }
    }
}

/// The answer that hyper reads.
async fn hyper_answer(bytes: &[u8], head: bool) -> Option<Message> {
    let (mut peer, stream) = tokio::io::duplex(1 << 20);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    let request = Request::builder()
        .method(if head { "HEAD" } else { "GET" })
        .uri("/")
        .header("host", "a")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let ask = async move {
        let response = sender.send_request(request).await.ok()?;
        let (parts, mut body) = response.into_parts();
        let mut message = Message {
            line: parts.status.as_u16().to_string(),
            fields: map_fields(&parts.headers),
            complete: true,
            ..Message::default()
        };
        while let Some(frame) = body.frame().await {
            match frame.map(hyper::body::Frame::into_data) {
                Ok(Ok(data)) => message.body.extend_from_slice(&data),
                Ok(Err(frame)) => message.trailers = kept_trailers(frame.trailers_ref()),
                Err(_) => {
                    message.complete = false;
                    break;
                }
            }
        }
        Some(message)
    };
    let feed = async {
        let mut request = [0; 1024];
        let _ = peer.read(&mut request).await; // an answer before the request would be an error of its own
        let _ = peer.write_all(bytes).await;
        drop(peer);
    };
    let all = async { tokio::join!(connection, ask, feed).1 };
    tokio::time::timeout(Duration::from_secs(10), all)
        .await
        .expect("hyper hangs")
}

/// Parts of messages, right and wrong.
const REQUEST_LINES: &[&str] = &[
    "GET / HTTP/1.1\r\n",
    "POST /a/b?c=d HTTP/1.1\r\n",
    "PUT /x HTTP/1.0\r\n",
    "GET http://a/b HTTP/1.1\r\n",
    "OPTIONS * HTTP/1.1\r\n",
    "HEAD / HTTP/1.1\r\n",
    "PATCH /%7e HTTP/1.1\r\n",
    "GET /a#b HTTP/1.1\r\n",
    "GET  / HTTP/1.1\r\n",
    "DELETE /a;b HTTP/1.1\r\n",
    "get / HTTP/1.1\r\n",
    "GET / HTTP/1.2\r\n",
    "\r\nGET / HTTP/1.1\r\n",
    "GET / HTTP/1.1\n",
];
const STATUS_LINES: &[&str] = &[
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.1 404 Not Found\r\n",
    "HTTP/1.0 200 OK\r\n",
    "HTTP/1.1 204 No Content\r\n",
    "HTTP/1.1 304 x\r\n",
    "HTTP/1.1 500\r\n",
    "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n",
    "HTTP/1.1 99 x\r\n",
    "HTTP/1.1 200 OK\n",
    "HTTP/1.1 103 Hints\r\nlink: a\r\n\r\nHTTP/1.1 201 x\r\n",
];
const FIELDS: &[&str] = &[
    "Host: a\r\n",
    "Host: a\r\n",
    "Host: a\r\n",
    "host: b\r\n",
    "Content-Length: 5\r\n",
    "Content-Length: 0\r\n",
    "Transfer-Encoding: chunked\r\n",
    "transfer-encoding: gzip, chunked\r\n",
    "transfer-encoding: Chunked\r\n",
    "Connection: keep-alive\r\n",
    "Connection: close\r\n",
    "Connection: x-gone\r\nX-Gone: 1\r\n",
    "X-A: b\r\n",
    "X-A:c \r\n",
    "Cookie: a=b\r\n",
    "x-b: \t two words\t \r\n",
    "X-Empty:\r\n",
    "x: a\r\n b\r\n",
    "x : a\r\n",
    "x: \u{e9}\r\n",
    "x: a\0\r\n",
    "x_y: 1\r\n",
    "Content-Length: +5\r\n",
    "TE: trailers\r\n",
    "Accept: */*\r\n",
    "x: a\n",
];
const BODIES: &[&str] = &[
    "",
    "hello",
    "hel",
    "5\r\nhello\r\n0\r\n\r\n",
    "5\r\nhello\r\n0\r\nX-T: 1\r\n\r\n",
    "5;x=y\r\nhello\r\n00\r\n\r\n",
    "5 \r\nhello\r\n0\r\n\r\n",
    "5\r\nhello\r\n0\r\nContent-Length: 1\r\n\r\n",
    "A\r\n0123456789\r\n1\r\nx\r\n0\r\n\r\n",
    "5\r\nhell",
    "5\nhello\r\n0\r\n\r\n",
    "5\r\nhelloo\r\n0\r\n\r\n",
];

fn message(rng: &mut fastrand::Rng, lines: &[&str], host: bool) -> Vec<u8> {
    let mut pick = |parts: &[&str]| parts[rng.usize(..parts.len())].as_bytes().to_vec();
    let mut bytes = pick(lines);
    if host {
        bytes.extend_from_slice(b"Host: a\r\n");
    }
    let body = pick(BODIES);
    // Mostly what fits the body, so that more than heads is compared.
    match body.first() {
        Some(b'0'..=b'9' | b'A') => bytes.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        Some(_) => bytes.extend_from_slice(b"Content-Length: 5\r\n"),
        None => {}
    }
    for _ in 0..rng.usize(..3) {
        bytes.extend_from_slice(FIELDS[rng.usize(..FIELDS.len())].as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(&body);
    if rng.u8(..8) == 0 {
        let at = rng.usize(..bytes.len());
        bytes[at] = rng.u8(..);
    }
    bytes
}

fn rounds() -> usize {
    if std::env::var_os("PHALANX_SOAK").is_some() {
        100_000
    } else {
        3_000
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// hyper leaves a target as it is; ours has one form.
fn same_line(ours: &str, theirs: &str) -> bool {
    let canonical = |line: &str| {
        let (method, target) = line.split_once(' ').unwrap_or((line, ""));
        let (path, query) = target
            .split_once('?')
            .map_or((target, None), |(path, query)| (path, Some(query)));
        let path = phalanx_model::matching::canonical::canonical_path(path)
            .map_or(path.to_owned(), |path| path.into_owned());
        (method.to_owned(), path, query.map(str::to_owned))
    };
    canonical(ours) == canonical(theirs)
}

fn same(ours: &Message, theirs: &Message) -> bool {
    let lines = same_line(&ours.line, &theirs.line);
    // Crumbs are joined in a request.
    let joined = |fields: &[(String, Vec<u8>)]| {
        let mut out: Vec<(String, Vec<u8>)> = Vec::new();
        for (name, value) in fields {
            match out.last_mut() {
                Some((last, joined)) if name == "cookie" && last == name => {
                    joined.extend_from_slice(b"; ");
                    joined.extend_from_slice(value);
                }
                _ => out.push((name.clone(), value.clone())),
            }
        }
        out
    };
    lines
        && joined(&ours.fields) == joined(&theirs.fields)
        && ours.body == theirs.body
        && ours.trailers == theirs.trailers
        && ours.complete == theirs.complete
}

#[test]
fn requests_that_both_take_are_the_same() {
    let runtime = runtime();
    let mut rng = fastrand::Rng::with_seed(7);
    let (mut both, mut stricter) = (0, 0);
    for round in 0..rounds() {
        let mut bytes = message(&mut rng, REQUEST_LINES, round % 4 != 0);
        if rng.bool() {
            bytes.extend(message(&mut rng, REQUEST_LINES, true));
        }
        let (ours, stopped) = our_requests(&bytes);
        let theirs = runtime.block_on(hyper_requests(&bytes));
        let text = || {
            format!(
                "{}\nours: {ours:#?} {stopped:?}\ntheirs: {theirs:#?}",
                bytes.escape_ascii()
            )
        };
        for (ours, theirs) in ours.iter().zip(&theirs) {
            let broken_off = !ours.complete && stopped.is_some();
            assert!(
                same(ours, theirs) || (broken_off && same_line(&ours.line, &theirs.line)),
                "{}",
                text()
            );
            both += 1;
        }
        assert!(
            ours.len() <= theirs.len(),
            "hyper refuses what we take: {}",
            text()
        );
        let beyond = theirs.len() > ours.len()
            || theirs
                .get(ours.len().wrapping_sub(1))
                .is_some_and(|last| last.complete && !ours.last().unwrap().complete);
        if beyond {
            let Some(stopped) = &stopped else {
                panic!("we stop without a reason: {}", text());
            };
            assert!(
                STRICTER_REQUESTS
                    .iter()
                    .any(|reason| stopped.starts_with(reason)),
                "{}",
                text()
            );
            stricter += 1;
        }
    }
    println!("{both} requests the same, {stricter} refused by us alone");
    assert!(both > rounds() / 4 && stricter > 0, "{both} {stricter}");
}

#[test]
fn answers_that_both_take_are_the_same() {
    let runtime = runtime();
    let mut rng = fastrand::Rng::with_seed(8);
    let (mut both, mut stricter) = (0, 0);
    for _ in 0..rounds() {
        let bytes = message(&mut rng, STATUS_LINES, false);
        let head = rng.u8(..6) == 0;
        let ours = our_answer(&bytes, head);
        let theirs = runtime.block_on(hyper_answer(&bytes, head));
        let text = || {
            format!(
                "{}\nours: {ours:#?}\ntheirs: {theirs:#?}",
                bytes.escape_ascii()
            )
        };
        match (&ours, &theirs) {
            (Ok(ours), Some(theirs)) => {
                assert!(same(ours, theirs), "{}", text());
                both += 1;
            }
            (Ok(_), None) => panic!("hyper refuses what we take: {}", text()),
            (Err(reason), Some(_)) => {
                assert!(
                    STRICTER_ANSWERS
                        .iter()
                        .any(|known| reason.starts_with(known)),
                    "{}",
                    text()
                );
                stricter += 1;
            }
            (Err(_), None) => {}
        }
    }
    println!("{both} answers the same, {stricter} refused by us alone");
    assert!(both > rounds() / 4 && stricter > 0, "{both} {stricter}");
}

#[test]
fn what_we_write_is_what_hyper_reads() {
    let runtime = runtime();
    let mut rng = fastrand::Rng::with_seed(9);
    let (mut requests, mut answers) = (0, 0);
    for _ in 0..rounds() {
        let bytes = message(&mut rng, REQUEST_LINES, true);
        if let Some((ours, out)) = rewritten_request(&bytes) {
            let theirs = runtime.block_on(hyper_requests(&out));
            assert!(
                theirs.len() == 1 && same(&ours, &theirs[0]),
                "{}\n{ours:#?}\n{theirs:#?}",
                out.escape_ascii()
            );
            requests += 1;
        }
        let bytes = message(&mut rng, STATUS_LINES, false);
        if let Some((ours, out)) = rewritten_answer(&bytes) {
            let theirs = runtime.block_on(hyper_answer(&out, false));
            assert!(
                theirs.as_ref().is_some_and(|theirs| same(&ours, theirs)),
                "{}\n{ours:#?}\n{theirs:#?}",
                out.escape_ascii()
            );
            answers += 1;
        }
    }
    assert!(
        requests > rounds() / 10 && answers > rounds() / 10,
        "{requests} {answers}"
    );
}

/// A complete request of `bytes`, and how we send it on.
fn rewritten_request(bytes: &[u8]) -> Option<(Message, Vec<u8>)> {
    let (ours, _) = our_requests(bytes);
    let message = ours.into_iter().next().filter(|message| message.complete)?;
    let (mut server, mut pool, limits) = (Server::default(), Pool::default(), Limits::default());
    let (mut input, mut out) = (bytes, Vec::new());
    let Ok(Some(Event::Request(request))) = server.read(&mut input, &mut pool, &limits) else {
        return None;
    };
    let mut exchange = Ready::fresh().send(&request, None, &mut out);
    while let Ok(Some(event)) = server.read(&mut input, &mut pool, &limits) {
        match event {
            Event::Body(data) => exchange.body(data, &mut out).unwrap(),
            Event::End(_) if exchange.is_sent() => break,
            Event::End(trailers) => {
                exchange.end(trailers.as_ref(), &mut out).unwrap();
                break;
            }
            Event::Request(_) => unreachable!(),
        }
    }
    Some((message, out))
}

/// A complete answer of `bytes`, and how we send it on.
fn rewritten_answer(bytes: &[u8]) -> Option<(Message, Vec<u8>)> {
    let message = our_answer(bytes, false)
        .ok()
        .filter(|message| message.complete)?;
    let (mut pool, limits) = (Pool::default(), Limits::default());
    let request = asked(fuzz::Request::Get, &limits)?;
    let mut exchange = Ready::fresh().send(&request, None, &mut Vec::new());
    let mut server = Server::default();
    let mut ask: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    while server.read(&mut ask, &mut pool, &limits).unwrap().is_some() {}
    let (mut input, mut out) = (bytes, Vec::new());
    loop {
        let answer = match exchange.read(&mut input, &mut pool, &limits).ok()? {
            None => exchange.eof(&mut pool).ok()?,
            answer => answer,
        };
        match answer? {
            Answer::Interim(_) => {}
            Answer::Head(head) => server.respond(&head, false, &mut out).unwrap(),
            Answer::Body(data) => server.body(data, &mut out).unwrap(),
            Answer::End(trailers) => {
                server.end(trailers.as_ref(), &mut out).unwrap();
                return Some((message, out));
            }
        }
    }
}
