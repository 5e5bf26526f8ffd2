//! Endpoints that leave the plan while requests that picked them are still to be sent.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use phalanx_model::instance::Protocol;
use phalanx_proxy::account::Event;
use tokio::sync::Semaphore;

use crate::http2::{connect, get, runtime};
use crate::support::*;

/// An HTTP/2 upstream that answers the first `held` requests with 503 once it is told to, and all others with 200.
struct Failing {
    address: SocketAddr,
    requests: Arc<AtomicUsize>,
    /// Connections there have been, and those of them that are open.
    connections: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    go: Arc<Semaphore>,
}

impl Failing {
    fn start(held: usize) -> Self {
        let listener = TcpListener::bind(any_port()).unwrap();
        listener.set_nonblocking(true).unwrap();
        let failing = Self {
            address: listener.local_addr().unwrap(),
            requests: Arc::default(),
            connections: Arc::default(),
            open: Arc::default(),
            go: Arc::new(Semaphore::new(0)),
        };
        let (requests, go) = (failing.requests.clone(), failing.go.clone());
        let (connections, open) = (failing.connections.clone(), failing.open.clone());
        let service = service_fn(move |_: Request<Incoming>| {
            let number = requests.fetch_add(1, Ordering::SeqCst);
            let go = go.clone();
            async move {
                let status = match number < held {
                    true => {
                        let _told = go.acquire().await.unwrap();
                        503
                    }
                    false => 200,
                };
                let answer = Response::builder().status(status);
                Ok::<_, Infallible>(answer.body(Empty::<Bytes>::new()).unwrap())
            }
        });
        std::thread::spawn(move || {
            runtime().block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    connections.fetch_add(1, Ordering::SeqCst);
                    open.fetch_add(1, Ordering::SeqCst);
                    let open = open.clone();
                    let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service.clone());
                    tokio::spawn(async move {
                        let _ = serving.await;
                        open.fetch_sub(1, Ordering::SeqCst);
                    });
                }
            });
        });
        failing
    }
}

#[test]
fn retries_to_an_endpoint_that_left_the_plan_meanwhile_are_sent_and_leave_nothing_open() {
    const CALLERS: usize = 8;
    let app = Failing::start(CALLERS);
    let mut sidecar = Setup::battle(&[app.address])
        .with_cluster(|cluster| {
            cluster.protocol = Protocol::H2c;
            cluster.outlier_detection.consecutive_gateway = 0;
            cluster.outlier_detection.consecutive_5xx = 0;
            cluster.retry_budget.min_concurrency = CALLERS as u32;
        })
        .start();
    let answers = runtime().block_on(async {
        let mut sender = connect(sidecar.outbound).await;
        let asked: Vec<_> = (0..CALLERS)
            .map(|_| tokio::spawn(sender.send_request(get("/"))))
            .collect();
        let told = "all first attempts to be there";
        let outbound = sidecar.outbound;
        tokio::task::block_in_place(|| {
            eventually(told, || app.requests.load(Ordering::SeqCst) == CALLERS);
            sidecar.change(|setup| setup.clusters[0].1.clear());
            // Answered by the plan that knows no endpoint: it is in force.
            let answer = Client::connect(outbound).get("battle", "/");
            assert_eq!(answer.reason(), "no_healthy_upstream");
        });
        app.go.add_permits(CALLERS);
        let mut answers = Vec::new();
        for answer in asked {
            answers.push(answer.await.unwrap().unwrap().status().as_u16());
        }
        answers
    });
    assert_eq!(answers, [200; CALLERS]);
    assert_eq!(app.requests.load(Ordering::SeqCst), CALLERS * 2);
    assert_eq!(sidecar.event(Event::RouteDeadline), 0);
    let connections = app.connections.load(Ordering::SeqCst);
    assert!(
        connections <= 1 + CALLERS,
        "{connections} connections, no more than one for each that was sent again"
    );
    eventually("connections to the endpoint that left to end", || {
        app.open.load(Ordering::SeqCst) == 0
    });
}

#[test]
fn upstream_that_hangs_up_on_every_connection_is_tried_a_few_times_and_no_more() {
    let listener = TcpListener::bind(any_port()).unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            counted.fetch_add(1, Ordering::SeqCst);
            drop(stream);
        }
    });
    let sidecar = Setup::battle(&[address])
        .with_cluster(|cluster| {
            cluster.protocol = Protocol::H2c;
            cluster.outlier_detection.consecutive_gateway = 0;
            cluster.outlier_detection.consecutive_5xx = 0;
        })
        .start();
    for _ in 0..20 {
        let before = connections.load(Ordering::SeqCst);
        let answer = sidecar.get("/");
        assert_eq!((answer.status(), answer.reason()), (503, "upstream_reset"));
        let tried = connections.load(Ordering::SeqCst) - before;
        assert!(
            tried <= 3 * 2,
            "{tried} connections: each of three attempts has a second one"
        );
    }
}
