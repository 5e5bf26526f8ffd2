//! HTTP/2 on either side, and gRPC over it: streams, trailers, errors.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::channel::Channel;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use phalanx_model::instance::Protocol;
use phalanx_model::resource::*;
use phalanx_proxy::account::{Event, Traffic};
use phalanx_relay::{Deadlines, Limits};

use crate::support::*;

/// Any body, as these tests need it.
pub type AnyBody = Pin<Box<dyn Body<Data = Bytes, Error = Infallible> + Send>>;

fn empty() -> AnyBody {
    Box::pin(Empty::new())
}

fn full(text: &str) -> AnyBody {
    Box::pin(Full::new(Bytes::copy_from_slice(text.as_bytes())))
}

/// A gRPC-like upstream over HTTP/2: echoes messages as they come, then says how it went in trailers.
struct Grpc {
    address: SocketAddr,
    requests: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
}

struct Echo {
    incoming: Incoming,
    ended: bool,
    status: &'static str,
}

impl Body for Echo {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        match std::task::ready!(Pin::new(&mut self.incoming).poll_frame(cx)) {
            Some(Ok(frame)) if frame.is_data() => Poll::Ready(Some(Ok(frame))),
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            _ => {
                self.ended = true;
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", self.status.parse().unwrap());
                trailers.insert("content-length", "7".parse().unwrap());
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
        }
    }
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

impl Grpc {
    fn start(status: &'static str) -> Self {
        Self::taking(status, 200)
    }

    /// As many streams at once on a connection.
    fn taking(status: &'static str, streams: u32) -> Self {
        let listener = std::net::TcpListener::bind(any_port()).unwrap();
        listener.set_nonblocking(true).unwrap();
        let grpc = Self {
            address: listener.local_addr().unwrap(),
            requests: Arc::default(),
            connections: Arc::default(),
        };
        let (requests, connections) = (grpc.requests.clone(), grpc.connections.clone());
        std::thread::spawn(move || {
            runtime().block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    connections.fetch_add(1, Ordering::SeqCst);
                    let requests = requests.clone();
                    let service = service_fn(move |request: Request<Incoming>| {
                        requests.fetch_add(1, Ordering::SeqCst);
                        async move {
                            let te = request
                                .headers()
                                .get("te")
                                .map(|te| te.to_str().unwrap().to_owned());
                            let authority = request
                                .uri()
                                .authority()
                                .map(|authority| authority.to_string());
                            let echo = Echo {
                                incoming: request.into_body(),
                                ended: false,
                                status,
                            };
                            let answer =
                                Response::builder().header("content-type", "application/grpc");
                            let answer = answer
                                .header("x-te", te.unwrap_or_default())
                                .header("x-authority", authority.unwrap_or_default());
                            Ok::<_, Infallible>(answer.body(echo).unwrap())
                        }
                    });
                    tokio::spawn(
                        hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                            .max_concurrent_streams(streams)
                            .serve_connection(TokioIo::new(stream), service),
                    );
                }
            });
        });
        grpc
    }
}

pub async fn connect(address: SocketAddr) -> SendRequest<AnyBody> {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(async move {
        let _ = connection.await;
    });
    sender
}

fn grpc_request(body: AnyBody) -> Request<AnyBody> {
    let request = Request::post("http://battle/battle.Battle/Fight")
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    request.body(body).unwrap()
}

pub fn get(path: &str) -> Request<AnyBody> {
    Request::get(format!("http://battle{path}"))
        .body(empty())
        .unwrap()
}

fn header<'a>(response: &'a Response<Incoming>, name: &str) -> &'a str {
    response
        .headers()
        .get(name)
        .map_or("", |value| value.to_str().unwrap())
}

fn grpc_cluster(setup: Setup) -> Setup {
    setup.with_cluster(|cluster| cluster.protocol = Protocol::Grpc)
}

#[test]
fn grpc_streams_both_ways_with_trailers_through_two_sidecars() {
    let app = Grpc::start("0");
    let peer = Setup::default()
        .app(9000, app.address, Protocol::Auto)
        .start();
    let sidecar = grpc_cluster(Setup::battle(&[peer.inbound])).start();
    runtime().block_on(async {
        let mut sender = connect(sidecar.outbound).await;
        let (mut messages, body) = Channel::<Bytes, Infallible>::new(1);
        let mut response = sender
            .send_request(grpc_request(Box::pin(body)))
            .await
            .unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(
            (header(&response, "x-te"), header(&response, "x-authority")),
            ("trailers", "battle")
        );
        for number in 0..5u8 {
            messages
                .send_data(Bytes::from(vec![number; 100]))
                .await
                .unwrap();
            let echoed = response
                .frame()
                .await
                .unwrap()
                .unwrap()
                .into_data()
                .unwrap();
            assert_eq!(
                echoed,
                vec![number; 100],
                "each message returns before the next is sent"
            );
        }
        drop(messages);
        let trailers = response
            .frame()
            .await
            .unwrap()
            .unwrap()
            .into_trailers()
            .unwrap();
        assert_eq!(trailers.get("grpc-status").unwrap(), "0");
        assert_eq!(trailers.get("content-length"), None, "trailers never frame");
    });
    eventually("the stream is counted", || {
        sidecar.sum(|edge| edge.requests()) == 1
    });
    let edge = &sidecar.account.collect()[0];
    assert_eq!(
        (edge.key.traffic, &edge.grpc[..], edge.failures()),
        (Traffic::Grpc, &[(0, 1)][..], 0)
    );
}

#[test]
fn streams_of_a_core_share_one_connection() {
    let app = Grpc::start("0");
    let sidecar = grpc_cluster(Setup::battle(&[app.address])).start();
    runtime().block_on(async {
        let mut sender = connect(sidecar.outbound).await;
        let answers: Vec<_> = (0..20)
            .map(|_| sender.send_request(grpc_request(full("message"))))
            .collect();
        for answer in answers {
            assert_eq!(
                answer.await.unwrap().collect().await.unwrap().to_bytes(),
                "message"
            );
        }
    });
    assert_eq!(
        (
            app.requests.load(Ordering::SeqCst),
            app.connections.load(Ordering::SeqCst)
        ),
        (20, 1)
    );
}

#[test]
fn connections_grow_with_streams() {
    let app = Grpc::start("0");
    let limits = Limits {
        streams: 4,
        ..Limits::default()
    };
    let sidecar = Setup {
        limits,
        ..grpc_cluster(Setup::battle(&[app.address]))
    }
    .start();
    runtime().block_on(async {
        let mut open = Vec::new();
        for _ in 0..3 {
            let mut sender = connect(sidecar.outbound).await;
            for _ in 0..3 {
                let (messages, body) = Channel::<Bytes, Infallible>::new(1);
                let response = sender
                    .send_request(grpc_request(Box::pin(body)))
                    .await
                    .unwrap();
                open.push((sender.clone(), messages, response));
            }
        }
    });
    assert_eq!(app.connections.load(Ordering::SeqCst), 3);
}

#[test]
fn burst_at_an_upstream_that_takes_few_streams_finds_its_way() {
    let app = Grpc::taking("0", 10);
    let sidecar = grpc_cluster(Setup::battle(&[app.address])).start();
    runtime().block_on(async {
        let mut sender = connect(sidecar.outbound).await;
        let asked: Vec<_> = (0..60)
            .map(|_| {
                let (messages, body) = Channel::<Bytes, Infallible>::new(1);
                (messages, sender.send_request(grpc_request(Box::pin(body))))
            })
            .collect();
        let mut open = Vec::new();
        for (messages, answer) in asked {
            let answer = answer.await.unwrap();
            assert_eq!(header(&answer, "grpc-message"), "");
            open.push((messages, answer)); // none ends before all have begun
        }
    });
    assert_eq!(app.requests.load(Ordering::SeqCst), 60);
}

#[test]
fn errors_of_grpc_are_counted_by_their_trailers() {
    let app = Grpc::start("13");
    let sidecar = grpc_cluster(Setup::battle(&[app.address])).start();
    runtime().block_on(async {
        let response = connect(sidecar.outbound)
            .await
            .send_request(grpc_request(full("x")))
            .await
            .unwrap();
        assert_eq!(
            response
                .collect()
                .await
                .unwrap()
                .trailers()
                .unwrap()
                .get("grpc-status")
                .unwrap(),
            "13"
        );
    });
    eventually("the request is counted", || {
        sidecar.sum(|edge| edge.failures()) == 1
    });
}

#[test]
fn our_own_errors_reach_grpc_callers_as_grpc() {
    let slow = Upstream::start(|_, _| Act::Wait(Duration::from_secs(5)));
    let sidecar = Setup::battle(&[dead_end()])
        .cluster(
            Cluster::new(cluster_name("slow"), Protocol::Http1),
            &[slow.address],
        )
        .route(
            "slow",
            Forward {
                request_timeout: Some(Duration::from_millis(100)),
                ..forward("slow")
            },
        )
        .start();
    runtime().block_on(async {
        for (host, status, message) in [
            ("nobody", "12", "no_route"),
            ("battle", "14", "connect_failed"),
            ("slow", "4", "timeout"),
        ] {
            let mut request = grpc_request(full("x"));
            *request.uri_mut() = format!("http://{host}/a.B/C").parse().unwrap();
            let response = connect(sidecar.outbound)
                .await
                .send_request(request)
                .await
                .unwrap();
            assert_eq!(
                (response.status().as_u16(), header(&response, "grpc-status")),
                (200, status),
                "{host}"
            );
            assert_eq!(
                (
                    header(&response, "grpc-message"),
                    header(&response, "x-phalanx-reason")
                ),
                (message, message)
            );
            assert_eq!(header(&response, "content-type"), "application/grpc");
        }
    });
}

#[test]
fn http1_callers_reach_http2_upstreams_and_back() {
    let app = Grpc::start("0");
    let sidecar = Setup::battle(&[app.address])
        .with_cluster(|cluster| cluster.protocol = Protocol::H2c)
        .start();
    let answer = Client::connect(sidecar.outbound).post("battle", "/", "over http/2");
    assert_eq!(
        (answer.status(), answer.text().as_str()),
        (200, "over http/2")
    );
    let upstream = Upstream::start(|request, _| {
        ok(&format!(
            "{} {}",
            request.line,
            request.header("host").unwrap()
        ))
    });
    let sidecar = Setup::battle(&[upstream.address])
        .with_cluster(|cluster| cluster.protocol = Protocol::Http1)
        .start();
    runtime().block_on(async {
        let response = connect(sidecar.outbound)
            .await
            .send_request(get("/path?q=1"))
            .await
            .unwrap();
        assert_eq!(
            response.collect().await.unwrap().to_bytes(),
            "GET /path?q=1 HTTP/1.1 battle"
        );
    });
}

#[test]
fn grpc_is_not_cut_by_the_default_deadline_but_plain_requests_are() {
    let app = Grpc::start("0");
    let deadlines = Deadlines {
        route: Duration::from_millis(100),
        ..Deadlines::default()
    };
    let sidecar = Setup {
        deadlines,
        ..grpc_cluster(Setup::battle(&[app.address]))
    }
    .start();
    runtime().block_on(async {
        let (mut messages, body) = Channel::<Bytes, Infallible>::new(1);
        let mut response = connect(sidecar.outbound)
            .await
            .send_request(grpc_request(Box::pin(body)))
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(400)).await;
        messages
            .send_data(Bytes::from_static(b"late"))
            .await
            .unwrap();
        assert_eq!(
            response
                .frame()
                .await
                .unwrap()
                .unwrap()
                .into_data()
                .unwrap(),
            "late"
        );
    });
    assert_eq!(sidecar.event(Event::RouteDeadline), 0);
}

#[test]
fn silent_stream_ends_after_its_idle_deadline() {
    let app = Grpc::start("0");
    let deadlines = Deadlines {
        stream_idle: Duration::from_millis(600),
        ..Deadlines::default()
    };
    let sidecar = Setup {
        deadlines,
        ..grpc_cluster(Setup::battle(&[app.address]))
    }
    .start();
    runtime().block_on(async {
        let (_messages, body) = Channel::<Bytes, Infallible>::new(1);
        let mut response = connect(sidecar.outbound)
            .await
            .send_request(grpc_request(Box::pin(body)))
            .await
            .unwrap();
        assert!(response.frame().await.is_none_or(|frame| frame.is_err()));
    });
    assert_eq!(sidecar.event(Event::StreamIdleDeadline), 1);
}

#[test]
fn drain_lets_streams_end_and_takes_no_new_ones() {
    let app = Grpc::start("0");
    let mut sidecar = Setup::default()
        .app(9000, app.address, Protocol::Auto)
        .start();
    let runtime = runtime();
    let (mut messages, mut response, mut sender) = runtime.block_on(async {
        let mut sender = connect(sidecar.inbound).await;
        let (messages, body) = Channel::<Bytes, Infallible>::new(1);
        let response = sender
            .send_request(grpc_request(Box::pin(body)))
            .await
            .unwrap();
        (messages, response, sender)
    });
    let ended = std::thread::spawn(move || sidecar.drain(Duration::from_secs(10)));
    runtime.block_on(async {
        let until = std::time::Instant::now() + Duration::from_secs(5);
        while sender.send_request(get("/")).await.is_ok() {
            assert!(std::time::Instant::now() < until, "no GOAWAY came");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        messages
            .send_data(Bytes::from_static(b"still here"))
            .await
            .unwrap();
        assert_eq!(
            response
                .frame()
                .await
                .unwrap()
                .unwrap()
                .into_data()
                .unwrap(),
            "still here"
        );
        drop(messages);
        assert!(response.frame().await.unwrap().unwrap().is_trailers());
    });
    ended.join().unwrap();
}

#[test]
fn resets_without_end_end_the_connection() {
    let upstream = Upstream::start(|_, _| Act::Wait(Duration::from_secs(2)));
    let limits = Limits {
        resets: 10,
        ..Limits::default()
    };
    let sidecar = Setup {
        limits,
        ..Setup::battle(&[upstream.address])
    }
    .with_cluster(|cluster| cluster.protocol = Protocol::Http1)
    .start();
    runtime().block_on(async {
        let mut sender = connect(sidecar.outbound).await;
        for _ in 0..200 {
            if sender.ready().await.is_err() {
                break;
            }
            let answer = sender.send_request(get("/"));
            let _ = tokio::time::timeout(Duration::from_millis(5), answer).await;
        }
        assert!(sender.ready().await.is_err(), "the connection was ended");
    });
    assert_eq!(sidecar.event(Event::ResetLimit), 1);
    assert!(upstream.requests() < 60);
}

/// Answers after the callers have gone, again and again, on one connection: others' streams on it go on.
#[test]
fn callers_who_give_up_cost_the_others_nothing() {
    let upstream = Grpc::start("0");
    let sidecar = grpc_cluster(Setup::battle(&[upstream.address])).start();
    runtime().block_on(async {
        let mut sender = connect(sidecar.outbound).await;
        let (mut messages, body) = Channel::<Bytes, Infallible>::new(4);
        let response = sender.send_request(grpc_request(Box::pin(body)));
        messages
            .send_data(Bytes::from_static(b"first"))
            .await
            .unwrap();
        let mut stream = response.await.unwrap().into_body();
        for round in 0..20 {
            let mut given_up = Vec::new();
            let mut sender = connect(sidecar.outbound).await;
            // Twice as many fit into one connection.
            for _ in 0..40 {
                sender.ready().await.unwrap();
                let (mut words, body) = Channel::<Bytes, Infallible>::new(4);
                let response = sender.send_request(grpc_request(Box::pin(body)));
                words.send_data(Bytes::from_static(b"gone")).await.unwrap();
                given_up.push((words, tokio::spawn(response)));
            }
            for (words, response) in given_up {
                let answer = response.await.unwrap().unwrap();
                drop((answer, words)); // what the echo sends meanwhile is for nobody
            }
            if round % 10 == 0 {
                messages
                    .send_data(Bytes::from_static(b"still"))
                    .await
                    .unwrap();
                assert!(stream.frame().await.unwrap().unwrap().is_data());
            }
        }
        drop(messages);
        while let Some(frame) = stream.frame().await {
            frame.unwrap();
        }
    });
    assert_eq!(upstream.connections.load(Ordering::SeqCst), 1);
}

#[test]
fn dead_http2_endpoint_is_passed_over() {
    let app = Grpc::start("0");
    let sidecar = grpc_cluster(Setup::battle(&[dead_end(), app.address])).start();
    runtime().block_on(async {
        let mut sender = connect(sidecar.outbound).await;
        for _ in 0..20 {
            let response = sender.send_request(grpc_request(full("x"))).await.unwrap();
            assert_eq!(header(&response, "grpc-status"), "");
            assert_eq!(response.collect().await.unwrap().to_bytes(), "x");
        }
    });
    assert_eq!(sidecar.sum(|edge| edge.ejections), 1);
}

#[test]
fn caller_that_opens_no_window_loses_its_stream_only() {
    let upstream = Upstream::start(|request, _| match request.path() {
        "/large" => ok(&"x".repeat(3_000_000)),
        _ => ok("small"),
    });
    let deadlines = Deadlines {
        stalled_write: Duration::from_millis(300),
        ..Deadlines::default()
    };
    let sidecar = Setup {
        deadlines,
        ..Setup::battle(&[upstream.address])
    }
    .with_cluster(|cluster| cluster.protocol = Protocol::Http1)
    .start();
    runtime().block_on(async {
        let mut sender = connect(sidecar.outbound).await;
        let stalled = sender.send_request(get("/large")).await.unwrap();
        let until = std::time::Instant::now() + Duration::from_secs(10);
        while sidecar.event(Event::WriteDeadline) == 0 {
            assert!(
                std::time::Instant::now() < until,
                "the stream is still there"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(stalled.collect().await.is_err());
        let answer = sender.send_request(get("/")).await.unwrap();
        assert_eq!(answer.collect().await.unwrap().to_bytes(), "small");
    });
}

#[test]
fn trailers_over_the_limit_break_the_answer_off() {
    let app = Grpc::start("0");
    let limits = Limits {
        trailer_bytes: 40,
        ..Limits::default()
    };
    let sidecar = Setup {
        limits,
        ..grpc_cluster(Setup::battle(&[app.address]))
    }
    .start();
    runtime().block_on(async {
        let mut sender = connect(sidecar.outbound).await;
        // The reset may overtake the head.
        let answer = sender.send_request(grpc_request(full("x"))).await;
        let broken = match answer {
            Ok(answer) => answer.collect().await.is_err(),
            Err(_) => true,
        };
        assert!(broken);
    });
}
