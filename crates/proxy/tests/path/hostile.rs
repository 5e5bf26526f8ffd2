//! Peers that break the rules or stop in the middle: what they cut off is never taken for whole, and what they hold back
//! costs nobody else anything.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::Reason;
use phalanx_model::instance::Protocol;
use phalanx_model::resource::RetryBudget;
use phalanx_proxy::account::Event;
use phalanx_proxy::upstream::Share;
use phalanx_relay::{Deadlines, Limits};

use super::support::*;

const SHORT: Duration = Duration::from_millis(200);
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// `GET / http` of `battle`, in HPACK without its tables.
const GET: &[u8] = b"\x82\x84\x86\x41\x06battle";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

type Accepted = h2::server::Connection<tokio::net::TcpStream, Bytes>;

/// An HTTP/2 upstream that handles each connection as it is told.
fn http2_upstream<F: Future<Output = ()> + 'static>(
    handle: impl Fn(Accepted) -> F + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind(any_port()).unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    thread::spawn(move || {
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime(), async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                if let Ok(connection) = h2::server::handshake(stream).await {
                    tokio::task::spawn_local(handle(connection));
                }
            }
        });
    });
    address
}

fn head(status: u16) -> http::Response<()> {
    http::Response::builder().status(status).body(()).unwrap()
}

fn http2(setup: Setup) -> Setup {
    setup.with_cluster(|cluster| cluster.protocol = Protocol::H2c)
}

async fn connect(address: SocketAddr) -> h2::client::SendRequest<Bytes> {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(async move {
        let _ = connection.await;
    });
    sender.ready().await.unwrap()
}

fn request(method: &str, path: &str) -> http::Request<()> {
    let uri = format!("http://battle{path}");
    http::Request::builder()
        .method(method)
        .uri(uri)
        .body(())
        .unwrap()
}

#[test]
fn answer_that_an_upstream_resets_without_an_error_is_not_taken_for_whole() {
    let upstream = http2_upstream(|mut connection| async move {
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            tokio::task::spawn_local(async move {
                let mut body = respond.send_response(head(200), false).unwrap();
                body.send_data(Bytes::from_static(b"half"), false).unwrap();
                tokio::time::sleep(SHORT).await;
                body.send_reset(Reason::NO_ERROR);
            });
        }
    });
    let sidecar = http2(Setup::battle(&[upstream])).start();
    let mut client = Client::connect(sidecar.outbound);
    client.send(b"GET / HTTP/1.1\r\nhost: battle\r\n\r\n");
    assert!(client.message().is_none(), "the answer has no last chunk");
    eventually("it is a failure", || {
        sidecar.sum(|edge| edge.failures()) == 1
    });
    assert_eq!(sidecar.sum(|edge| edge.abandoned), 0);
}

#[test]
fn request_that_a_caller_resets_without_an_error_is_not_taken_for_whole() {
    let upstream = Upstream::start(|_, _| ok(""));
    let sidecar = Setup::battle(&[upstream.address])
        .with_cluster(|cluster| cluster.protocol = Protocol::Http1)
        .start();
    runtime().block_on(async {
        let mut sender = connect(sidecar.outbound).await;
        let (_answer, mut body) = sender.send_request(request("POST", "/"), false).unwrap();
        body.send_data(Bytes::from_static(b"half"), false).unwrap();
        let until = std::time::Instant::now() + SHORT * 50;
        while upstream.connections() == 0 {
            assert!(std::time::Instant::now() < until, "it is not passed on");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(SHORT).await;
        body.send_reset(Reason::NO_ERROR);
        tokio::time::sleep(SHORT).await;
    });
    eventually("the request ended", || {
        sidecar.sum(|edge| edge.active) == 0 && upstream.connections() == 1
    });
    assert_eq!(upstream.requests(), 0, "no whole request arrived");
}

#[test]
fn request_that_a_connection_took_with_it_is_not_repeated_unless_idempotent() {
    for (method, expected) in [("POST", 1), ("PUT", 3)] {
        let seen = Arc::new(AtomicUsize::new(0));
        let counted = seen.clone();
        let upstream = http2_upstream(move |mut connection| {
            let counted = counted.clone();
            async move {
                // Taken, then a GOAWAY that covers it, and the end.
                let _taken = connection.accept().await;
                counted.fetch_add(1, Ordering::SeqCst);
                connection.abrupt_shutdown(Reason::NO_ERROR);
                while connection.accept().await.is_some() {}
            }
        });
        let sidecar = http2(Setup::battle(&[upstream])).start();
        let answer = Client::connect(sidecar.outbound).ask(&format!(
            "{method} / HTTP/1.1\r\nhost: battle\r\ncontent-length: 0\r\n\r\n"
        ));
        assert_eq!(
            (answer.status(), answer.reason()),
            (503, "upstream_reset"),
            "{method}"
        );
        assert_eq!(seen.load(Ordering::SeqCst), expected, "{method}");
    }
}

#[test]
fn repeated_body_stays_whole_when_its_answer_comes_first() {
    let upstream = http2_upstream(|mut connection| async move {
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            tokio::task::spawn_local(async move {
                let mut body = request.into_body();
                if respond.stream_id().as_u32() == 1 {
                    // Takes everything that is there, then fails.
                    let mut taken = 0;
                    while taken < 120_000 {
                        let chunk = body.data().await.unwrap().unwrap();
                        taken += chunk.len();
                        body.flow_control().release_capacity(chunk.len()).unwrap();
                    }
                    respond.send_response(head(503), true).unwrap();
                    return;
                }
                // Answers before it reads, and reads slowly.
                let mut answer = respond.send_response(head(200), false).unwrap();
                tokio::time::sleep(SHORT).await;
                let mut read = Vec::new();
                while let Some(chunk) = body.data().await {
                    let chunk = chunk.unwrap();
                    body.flow_control().release_capacity(chunk.len()).unwrap();
                    read.extend_from_slice(&chunk);
                }
                answer.send_data(read.into(), true).unwrap();
            });
        }
    });
    let limits = Limits {
        replay_bytes: 1 << 20,
        ..Limits::default()
    };
    let sidecar = Setup {
        limits,
        ..http2(Setup::battle(&[upstream]))
    }
    .start();
    let body: String = (0..20_000).map(|n| format!("{n:07},")).collect();
    let mut client = Client::connect(sidecar.outbound);
    client.send(b"PUT / HTTP/1.1\r\nhost: battle\r\ntransfer-encoding: chunked\r\n\r\n");
    for piece in body.as_bytes().chunks(8_000) {
        client.send(format!("{:x}\r\n", piece.len()).as_bytes());
        client.send(piece);
        client.send(b"\r\n");
    }
    thread::sleep(SHORT * 2); // the second attempt has its answer
    client.send(b"4\r\nlast\r\n0\r\n\r\n");
    let answer = client.message().unwrap();
    assert_eq!(answer.status(), 200);
    assert!(
        answer.text() == format!("{body}last"),
        "{} of {} bytes",
        answer.body.len(),
        body.len() + 4
    );
}

#[test]
fn answer_that_the_retry_budget_lets_pass_is_not_cut() {
    let listener = TcpListener::bind(any_port()).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut client = Client::over(stream);
                client.message();
                client.send(b"HTTP/1.1 503 No\r\ncontent-length: 5\r\n\r\n");
                thread::sleep(SHORT * 3);
                client.send(b"later");
            });
        }
    });
    let sidecar = Setup::battle(&[address])
        .with_cluster(|cluster| {
            cluster.retry_budget = RetryBudget {
                percent: 0,
                min_concurrency: 0,
            }
        })
        .start();
    let answer = sidecar.get("/");
    assert_eq!((answer.status(), answer.text().as_str()), (503, "later"));
}

#[test]
fn streams_that_wait_for_one_connection_hear_of_its_failure_together() {
    // A full backlog: nobody accepts, and the kernel drops what comes after.
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    full.bind(&any_port().into()).unwrap();
    full.listen(0).unwrap();
    let address = full.local_addr().unwrap().as_socket().unwrap();
    let _taken: Vec<_> = (0..4)
        .filter_map(|_| TcpStream::connect_timeout(&address, SHORT).ok())
        .collect();
    let sidecar = http2(Setup::battle(&[address]))
        .with_cluster(|cluster| cluster.connection_pool.connect_timeout = SHORT)
        .with_forward(|forward| {
            forward.retry.attempts = 0;
            forward.request_timeout = Some(SHORT * 100);
        })
        .start();
    let outbound = sidecar.outbound;
    let askers: Vec<_> = (0..30)
        .map(|_| thread::spawn(move || Client::connect(outbound).get("battle", "/")))
        .collect();
    for asker in askers {
        assert_eq!(asker.join().unwrap().reason(), "connect_failed");
    }
}

#[test]
fn callers_that_read_nothing_do_not_hold_up_others_to_the_same_endpoint() {
    static LARGE: &[u8] = &[b'x'; 20_000_000]; // more than the sockets on the way hold
    let upstream = http2_upstream(|mut connection| async move {
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let mut body = respond.send_response(head(200), false).unwrap();
            let large = request.uri().path() == "/large";
            let bytes = if large { LARGE } else { &LARGE[..5] };
            body.send_data(Bytes::from_static(bytes), true).unwrap();
        }
    });
    let sidecar = http2(Setup::battle(&[upstream])).start();
    let mut stalled = Vec::new();
    for _ in 0..20 {
        let mut client = Client::connect(sidecar.outbound);
        client.send(b"GET /large HTTP/1.1\r\nhost: battle\r\n\r\n");
        stalled.push(client);
    }
    let runtime = runtime();
    let _stalled = runtime.block_on(async {
        let mut sender = connect(sidecar.outbound).await;
        let stalled: Vec<_> = (0..20)
            .map(|_| sender.send_request(request("GET", "/large"), true).unwrap())
            .collect();
        tokio::time::sleep(SHORT).await;
        stalled
    });
    let mut good = Client::connect(sidecar.outbound);
    for _ in 0..20 {
        let answer = good.get("battle", "/");
        assert_eq!((answer.status(), answer.text().as_str()), (200, "xxxxx"));
    }
    assert_eq!(
        sidecar.event(Event::WriteDeadline),
        0,
        "they are still there"
    );
}

#[test]
fn silent_http2_peer_is_found_out_by_pings() {
    let listener = TcpListener::bind(any_port()).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let _ = stream.write_all(SETTINGS);
                let _ = std::io::copy(&mut stream, &mut std::io::sink());
            });
        }
    });
    let deadlines = Deadlines {
        ping: SHORT,
        ping_answer: SHORT,
        ..Deadlines::default()
    };
    let mut setup = http2(Setup::battle(&[address]));
    setup.clusters[0].1[0].instance = "battle-1".into(); // a sidecar: others may not like to be pinged
    let sidecar = Setup { deadlines, ..setup }
        .with_forward(|forward| forward.retry.attempts = 0)
        .start();
    runtime().block_on(async {
        let mut sender = connect(sidecar.outbound).await;
        let mut call = request("POST", "/arena.v1.Battle/Fight");
        call.headers_mut()
            .insert("content-type", "application/grpc".parse().unwrap());
        let (answer, _body) = sender.send_request(call, false).unwrap();
        let answer = answer.await.unwrap();
        assert_eq!(answer.headers()["grpc-status"], "14");
        assert_eq!(answer.headers()["x-phalanx-reason"], "upstream_reset");
    });
}

/// What is read until the sidecar closes.
fn until_closed(stream: &mut TcpStream) -> usize {
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut buffer = [0; 4096];
    let mut total = 0;
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return total,
            Ok(count) => total += count,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return total,
            Err(error) => panic!("not closed: {error}"),
        }
    }
}

#[test]
fn slow_head_on_http2_is_not_waited_for() {
    let upstream = Upstream::start(|_, _| Act::Wait(SHORT * 20));
    let deadlines = Deadlines {
        head: SHORT,
        ..Deadlines::default()
    };
    let sidecar = Setup {
        deadlines,
        ..Setup::battle(&[upstream.address])
    }
    .with_cluster(|cluster| cluster.protocol = Protocol::Http1)
    .start();
    let whole = frame(HEADERS, END_STREAM | END_HEADERS, 1, GET);
    for (count, busy, rest) in [
        (1, false, frame(HEADERS, END_STREAM, 1, GET)), // no end of the block
        (2, true, frame(HEADERS, END_STREAM, 3, GET)),  // the same beside another request
        (3, false, whole[..12].to_vec()),               // half a frame
        (4, false, whole[..4].to_vec()),                // half a frame's head
    ] {
        let mut stream = TcpStream::connect(sidecar.outbound).unwrap();
        stream.write_all(&[PREFACE, SETTINGS].concat()).unwrap();
        if busy {
            stream.write_all(&whole).unwrap();
        }
        stream.write_all(&rest).unwrap();
        until_closed(&mut stream);
        assert_eq!(sidecar.event(Event::HeadDeadline), count);
    }
}

#[test]
fn head_in_many_pieces_is_taken_on_http2() {
    let upstream = Upstream::start(|_, _| ok("x"));
    let deadlines = Deadlines {
        head: SHORT * 5,
        idle: SHORT * 50,
        ..Deadlines::default()
    };
    let sidecar = Setup {
        deadlines,
        ..Setup::battle(&[upstream.address])
    }
    .with_cluster(|cluster| cluster.protocol = Protocol::Http1)
    .start();
    let mut stream = TcpStream::connect(sidecar.outbound).unwrap();
    stream.write_all(&[PREFACE, SETTINGS].concat()).unwrap();
    for number in [1u32, 3] {
        let (first, second) = GET.split_at(2);
        let mut bytes = frame(HEADERS, END_STREAM, number, first);
        bytes.extend(frame(CONTINUATION, END_HEADERS, number, second));
        for byte in bytes {
            stream.write_all(&[byte]).unwrap();
            thread::sleep(Duration::from_millis(2));
        }
        eventually("the request arrived", || {
            upstream.requests() as u32 == number.div_ceil(2)
        });
        thread::sleep(SHORT * 6);
    }
    assert_eq!(sidecar.event(Event::HeadDeadline), 0);
}

#[test]
fn flood_of_resets_reaches_nobody() {
    let upstream = Upstream::start(|_, _| Act::Wait(SHORT));
    let sidecar = Setup::battle(&[upstream.address])
        .with_cluster(|cluster| cluster.protocol = Protocol::Http1)
        .start();
    let mut stream = TcpStream::connect(sidecar.outbound).unwrap();
    let mut bytes = [PREFACE, SETTINGS].concat();
    for n in 0..5_000u32 {
        bytes.extend(frame(HEADERS, END_STREAM | END_HEADERS, 2 * n + 1, GET));
        bytes.extend(frame(RST_STREAM, 0, 2 * n + 1, &8u32.to_be_bytes()));
    }
    let _ = stream.write_all(&bytes);
    until_closed(&mut stream);
    assert!(upstream.requests() <= 200, "{}", upstream.requests());
    assert_eq!(sidecar.get("/").text(), "late");
}

#[test]
fn flood_of_continuations_ends_its_connection() {
    let sidecar = Setup::battle(&[dead_end()]).start();
    let mut stream = TcpStream::connect(sidecar.outbound).unwrap();
    let mut bytes = [PREFACE, SETTINGS].concat();
    bytes.extend(frame(HEADERS, END_STREAM, 1, GET));
    stream.write_all(&bytes).unwrap();
    // x-a: 8 KiB, never indexed
    let mut field = b"\x10\x03x-a\x7f\x81\x3f".to_vec();
    field.resize(field.len() + 8192, b'a');
    let until = Instant::now() + Duration::from_secs(10);
    while stream.write_all(&frame(CONTINUATION, 0, 1, &field)).is_ok() {
        assert!(Instant::now() < until, "it is still read");
    }
    assert_eq!(sidecar.event(Event::Panicked), 0);
}

#[test]
fn large_heads_on_http2_are_answered_431() {
    let upstream = Upstream::start(|_, _| ok("x"));
    let sidecar = Setup::battle(&[upstream.address])
        .with_cluster(|cluster| cluster.protocol = Protocol::Http1)
        .start();
    runtime().block_on(async {
        let mut sender = connect(sidecar.outbound).await;
        for (fields, bytes) in [(101, 1), (60, 1_000)] {
            let mut large = request("GET", "/");
            for n in 0..fields {
                let name: http::HeaderName = format!("x-{n}").parse().unwrap();
                large
                    .headers_mut()
                    .insert(name, "v".repeat(bytes).parse().unwrap());
            }
            let (answer, _) = sender.send_request(large, true).unwrap();
            assert_eq!(answer.await.unwrap().status(), 431, "{fields} × {bytes}");
        }
        // Crumbs count before they are joined.
        let mut crumbs = request("GET", "/");
        for _ in 0..101 {
            crumbs
                .headers_mut()
                .append("cookie", "a=b".parse().unwrap());
        }
        let (answer, _) = sender.send_request(crumbs, true).unwrap();
        assert_eq!(answer.await.unwrap().status(), 431);
        let (answer, _) = sender.send_request(request("GET", "/"), true).unwrap();
        assert_eq!(
            answer.await.unwrap().status(),
            200,
            "the connection goes on"
        );
    });
    assert_eq!(upstream.requests(), 1);
}

#[test]
fn interim_answers_without_end_are_not_listened_to() {
    let listener = TcpListener::bind(any_port()).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut client = Client::over(stream);
                let asked = client.message();
                let some = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n".repeat(16);
                client.send(some.as_bytes());
                if asked.is_some_and(|asked| asked.path() == "/some") {
                    client.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
                }
                while client.stream.write_all(some.as_bytes()).is_ok() {}
            });
        }
    });
    let sidecar = Setup::battle(&[address])
        .with_forward(|forward| forward.retry.attempts = 0)
        .start();
    assert_eq!(sidecar.get("/some").text(), "ok");
    let answer = sidecar.get("/");
    assert_eq!((answer.status(), answer.reason()), (502, "upstream_reset"));
}

#[test]
fn caller_that_leaves_gives_everything_back_in_every_phase() {
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    full.bind(&any_port().into()).unwrap();
    full.listen(0).unwrap();
    let blackhole = full.local_addr().unwrap().as_socket().unwrap();
    let _taken: Vec<_> = (0..4)
        .filter_map(|_| TcpStream::connect_timeout(&blackhole, SHORT).ok())
        .collect();
    let slow = Upstream::start(|_, _| Act::Wait(Duration::from_secs(5)));
    let half = Upstream::start(|_, _| {
        Act::Say("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf".into())
    });
    let failing = Upstream::start(|_, _| status(503));
    let half_sent: &[u8] = b"POST / HTTP/1.1\r\nhost: battle\r\ncontent-length: 10\r\n\r\nhalf";
    let get: &[u8] = b"GET / HTTP/1.1\r\nhost: battle\r\n\r\n";
    for (phase, address, protocol, sent) in [
        ("connecting", blackhole, Protocol::Http1, get),
        ("connecting HTTP/2", blackhole, Protocol::H2c, get),
        ("waiting for the answer", slow.address, Protocol::Http1, get),
        ("sending the body", slow.address, Protocol::Http1, half_sent),
        ("reading the answer", half.address, Protocol::Http1, get),
        (
            "waiting to try again",
            failing.address,
            Protocol::Http1,
            get,
        ),
    ] {
        let sidecar = Setup::battle(&[address])
            .with_cluster(|cluster| {
                cluster.protocol = protocol;
                cluster.connection_pool.connect_timeout = SHORT * 3; // it is used up, whoever leaves
                cluster.connection_pool.idle_timeout = SHORT; // of one that nobody wants any more
                cluster.circuit_breaker.max_connections = 2; // the third one waits
            })
            .with_forward(|forward| forward.retry.backoff = Duration::from_secs(5))
            .start();
        let count = |share| sidecar.plan.load().clusters[0].breaker.count(share);
        let callers: Vec<_> = (0..4)
            .map(|_| {
                let mut client = Client::connect(sidecar.outbound);
                client.send(sent);
                client
            })
            .collect();
        eventually(phase, || count(Share::Request) == 4);
        thread::sleep(SHORT);
        drop(callers);
        eventually(phase, || {
            [Share::Request, Share::Pending, Share::Retry]
                .iter()
                .all(|share| count(*share) == 0)
        });
        eventually(phase, || {
            count(Share::Connection) == 0 || phase == "waiting to try again"
        });
        assert_eq!(sidecar.sum(|edge| edge.active), 0, "{phase}");
    }
}

#[test]
fn requests_without_body_keep_their_word_of_it() {
    let upstream = Upstream::start(|_, _| ok(""));
    let sidecar = Setup::battle(&[upstream.address]).start();
    for (sent, arrives) in [
        (
            "POST / HTTP/1.1\r\nhost: battle\r\ncontent-length: 0\r\n\r\n",
            Some("0"),
        ),
        ("GET / HTTP/1.1\r\nhost: battle\r\n\r\n", None),
    ] {
        Client::connect(sidecar.outbound).ask(sent);
        let seen = upstream.last();
        assert_eq!(
            (
                seen.header("content-length"),
                seen.header("transfer-encoding")
            ),
            (arrives, None),
            "{sent}"
        );
    }
}
