//! Callers and endpoints that are slow, or leave: what is theirs arrives whole, and nobody is blamed for somebody else.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use phalanx_model::instance::Protocol;
use phalanx_model::resource::*;
use phalanx_proxy::account::Event;
use phalanx_relay::{Deadlines, Limits};

use crate::support::*;

/// More than the sockets on the way hold.
const LARGE: usize = 16 << 20;

/// A connection whose own socket holds little.
fn narrow(address: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(32 << 10).unwrap();
    socket.connect(&address.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream
}

/// Reads a piece at a time, with a pause after each, until the end; the bytes, and how long it took.
fn read_slowly(stream: &mut TcpStream, piece: usize, pause: Duration) -> (usize, Duration) {
    let (mut buffer, mut total, start) = (vec![0; piece], 0, Instant::now());
    loop {
        match stream.read(&mut buffer).unwrap() {
            0 => return (total, start.elapsed()),
            count => total += count,
        }
        thread::sleep(pause);
    }
}

#[test]
fn tail_of_an_answer_arrives_though_the_connection_ends_with_it() {
    let upstream = Upstream::start(|_, _| ok(&"x".repeat(LARGE)));
    let sidecar = Setup::battle(&[upstream.address]).start();
    for head in [
        "GET / HTTP/1.1\r\nhost: battle\r\nconnection: close\r\n\r\n",
        "GET / HTTP/1.0\r\nhost: battle\r\n\r\n",
    ] {
        let mut stream = narrow(sidecar.outbound);
        stream.write_all(head.as_bytes()).unwrap();
        thread::sleep(Duration::from_millis(300));
        let (total, _) = read_slowly(&mut stream, 1 << 20, Duration::ZERO);
        assert!(total > LARGE, "{head:?}: {total} bytes came");
    }
}

#[test]
fn caller_that_takes_a_little_now_and_then_is_not_dropped() {
    let upstream = Upstream::start(|_, _| ok(&"x".repeat(LARGE)));
    let stalled = Duration::from_millis(1_000);
    for head in [
        "GET / HTTP/1.1\r\nhost: battle\r\nconnection: close\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: battle\r\n\r\n",
    ] {
        let deadlines = Deadlines {
            stalled_write: stalled,
            idle: stalled,
            ..Deadlines::default()
        };
        let sidecar = Setup {
            deadlines,
            ..Setup::battle(&[upstream.address])
        }
        .start();
        let mut stream = narrow(sidecar.outbound);
        stream.write_all(head.as_bytes()).unwrap();
        let pause = Duration::from_millis(4); // some 8 MB/s, so more than one deadline's time
        let (total, took) = read_slowly(&mut stream, 32 << 10, pause);
        assert!(total > LARGE, "{head:?}: {total} bytes in {took:?}");
        assert!(took > stalled, "it was not slow at all: {took:?}");
        assert_eq!(sidecar.event(Event::WriteDeadline), 0, "{head:?}");
    }
}

/// Sends back what comes as it comes, over HTTP/2, with windows that let much be under way.
fn echo_of_http2() -> SocketAddr {
    let listener = TcpListener::bind(any_port()).unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    thread::spawn(move || {
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime(), async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let mut wide = h2::server::Builder::new();
                wide.initial_window_size(WINDOW);
                wide.initial_connection_window_size(64 * WINDOW);
                let mut connection = wide.handshake::<_, Bytes>(stream).await.unwrap();
                tokio::task::spawn_local(async move {
                    while let Some(Ok((request, mut respond))) = connection.accept().await {
                        let head = http::Response::new(());
                        let mut back = respond.send_response(head, false).unwrap();
                        let mut body = request.into_body();
                        tokio::task::spawn_local(async move {
                            while let Some(Ok(data)) = body.data().await {
                                let _ = body.flow_control().release_capacity(data.len());
                                send(&mut back, data, false).await;
                            }
                            send(&mut back, Bytes::new(), true).await;
                        });
                    }
                });
            }
        });
    });
    address
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// As the peer's window lets it.
async fn send(stream: &mut h2::SendStream<Bytes>, mut data: Bytes, last: bool) {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let Some(Ok(room)) = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await else {
            return;
        };
        let piece = data.split_to(room.min(data.len()));
        if stream.send_data(piece, false).is_err() {
            return;
        }
    }
    if last {
        let _ = stream.send_data(data, true);
    }
}

const WINDOW: u32 = 1 << 20;

#[test]
fn sidecars_that_both_have_much_to_send_do_not_wait_for_each_other() {
    const STREAMS: usize = 24;
    let limits = Limits {
        send_buffer_bytes: 16 << 10,
        ..Limits::default()
    };
    let app = echo_of_http2();
    let called = Setup {
        limits: limits.clone(),
        ..Setup::default()
    };
    let called = called.app(9000, app, Protocol::H2c).start();
    let caller = Setup {
        limits,
        ..Setup::battle(&[called.inbound])
    };
    let caller = caller
        .with_cluster(|cluster| {
            cluster.protocol = Protocol::H2c;
            cluster.circuit_breaker.max_connections = 1;
        })
        .start();
    let whole = async {
        let stream = tokio::net::TcpStream::connect(caller.outbound)
            .await
            .unwrap();
        let mut wide = h2::client::Builder::new();
        wide.initial_window_size(WINDOW);
        wide.initial_connection_window_size(64 * WINDOW);
        let (sender, connection) = wide.handshake::<_, Bytes>(stream).await.unwrap();
        tokio::task::spawn_local(async move {
            let _ = connection.await;
        });
        let mut calls = Vec::new();
        for _ in 0..STREAMS {
            let mut sender = sender.clone().ready().await.unwrap();
            let request = http::Request::post("http://battle/").body(()).unwrap();
            let (answer, mut body) = sender.send_request(request, false).unwrap();
            tokio::task::spawn_local(async move {
                for _ in 0..16 {
                    send(&mut body, Bytes::from_static(&[b'x'; 64 << 10]), false).await;
                }
                send(&mut body, Bytes::new(), true).await;
            });
            calls.push(tokio::task::spawn_local(async move {
                let mut body = answer.await.unwrap().into_body();
                let mut total = 0;
                while let Some(data) = body.data().await {
                    let data = data.unwrap();
                    let _ = body.flow_control().release_capacity(data.len());
                    total += data.len();
                }
                total
            }));
        }
        for call in calls {
            assert_eq!(call.await.unwrap(), 1 << 20);
        }
    };
    let local = tokio::task::LocalSet::new();
    let in_time = async { tokio::time::timeout(Duration::from_secs(30), whole).await };
    let done = local.block_on(&runtime(), in_time);
    assert!(done.is_ok(), "they wait for each other");
}

fn touchy(setup: Setup) -> Setup {
    setup.with_cluster(|cluster| {
        cluster.outlier_detection.consecutive_5xx = 1;
        cluster.outlier_detection.consecutive_gateway = 1;
        cluster.outlier_detection.max_ejection_percent = 100;
    })
}

#[test]
fn endpoint_is_not_blamed_for_a_caller_that_leaves_or_takes_nothing() {
    let upstream = Upstream::start(|_, _| ok(&"x".repeat(LARGE)));
    let deadlines = Deadlines {
        stalled_write: Duration::from_millis(300),
        ..Deadlines::default()
    };
    let sidecar = touchy(Setup {
        deadlines,
        ..Setup::battle(&[upstream.address])
    })
    .start();
    let mut stalled = Vec::new();
    for _ in 0..3 {
        let mut stream = narrow(sidecar.outbound);
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: battle\r\n\r\n")
            .unwrap();
        stalled.push(stream);
    }
    eventually("those who take nothing are given up", || {
        sidecar.event(Event::WriteDeadline) == 3
    });
    for _ in 0..3 {
        let mut stream = narrow(sidecar.outbound);
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: battle\r\n\r\n")
            .unwrap();
        let mut some = [0; 1000];
        stream.read_exact(&mut some).unwrap();
    }
    eventually("those who left are gone", || {
        sidecar.sum(|edge| edge.active) == 0
    });
    assert_eq!(sidecar.sum(|edge| edge.ejections), 0);
}

#[test]
fn endpoint_that_breaks_its_answer_off_is_blamed() {
    let upstream = Upstream::start(|_, _| {
        Act::SayAndClose("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf".into())
    });
    let sidecar = touchy(Setup::battle(&[upstream.address, dead_end()])).start();
    eventually("it is taken out", || {
        let mut client = Client::connect(sidecar.outbound);
        client.send(b"GET / HTTP/1.1\r\nhost: battle\r\n\r\n");
        client.message();
        sidecar.sum(|edge| edge.ejections) > 0
    });
}

#[test]
fn cut_answer_that_only_the_connection_ends_is_ended_by_a_reset() {
    let upstream = Upstream::start(|_, _| {
        Act::SayAndClose(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n".into(),
        )
    });
    let whole = Upstream::start(|_, _| {
        Act::Say(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".into(),
        )
    });
    for (address, is_cut) in [(upstream.address, true), (whole.address, false)] {
        let sidecar = Setup::battle(&[address])
            .with_cluster(|cluster| cluster.protocol = Protocol::Http1)
            .start();
        let mut stream = TcpStream::connect(sidecar.outbound).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream
            .write_all(b"GET / HTTP/1.0\r\nhost: battle\r\n\r\n")
            .unwrap();
        let mut heard = Vec::new();
        let ended = stream.read_to_end(&mut heard);
        let text = String::from_utf8_lossy(&heard).into_owned();
        assert!(!text.contains("content-length"), "{text}");
        if is_cut {
            let reset = ended.map_err(|error| error.kind());
            assert_eq!(reset, Err(ErrorKind::ConnectionReset), "{text}");
        } else {
            assert!(ended.is_ok() && text.ends_with("\r\n\r\nhello"), "{text}");
        }
    }
}

#[test]
fn copies_that_are_not_sent_are_counted() {
    let upstream = Upstream::start(|_, _| ok(""));
    let shadow = Upstream::start(|_, _| ok(""));
    let limits = Limits {
        replay_bytes: 1000,
        ..Limits::default()
    };
    let sidecar = Setup {
        limits,
        ..Setup::battle(&[upstream.address])
    }
    .cluster(
        Cluster::new(cluster_name("shadow"), Protocol::Http1),
        &[shadow.address],
    )
    .with_forward(|forward| {
        let mirror = Mirror {
            cluster: cluster_name("shadow"),
            per_million: MILLION,
        };
        forward.mirrors = vec![mirror];
    })
    .start();
    let mut client = Client::connect(sidecar.outbound);
    assert_eq!(client.post("battle", "/small", "x").status(), 200);
    eventually("a copy came", || shadow.requests() == 1);
    assert_eq!(sidecar.event(Event::MirrorDropped), 0);
    assert_eq!(
        client.post("battle", "/large", &"x".repeat(1001)).status(),
        200
    );
    eventually("one that is too large is counted", || {
        sidecar.event(Event::MirrorDropped) == 1
    });
    client.send(b"POST /half HTTP/1.1\r\nhost: battle\r\ncontent-length: 10\r\n\r\nhalf");
    thread::sleep(Duration::from_millis(100));
    drop(client);
    eventually("one whose request never ended is counted", || {
        sidecar.event(Event::MirrorDropped) == 2
    });
    assert_eq!(shadow.requests(), 1);
    assert_eq!(shadow.last().path(), "/small");
}
