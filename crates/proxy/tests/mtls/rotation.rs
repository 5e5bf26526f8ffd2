//! Leaves and the root change under load: no request fails, no stream breaks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::channel::Channel;
use hyper_util::rt::{TokioExecutor, TokioIo};
use phalanx_model::instance::Protocol;
use phalanx_model::resource::*;
use phalanx_pki::authority::Authority;
use phalanx_proxy::account::Event;

use crate::pki::*;
use crate::support::*;

#[test]
fn leaves_and_root_rotate_without_a_failed_request_or_a_broken_stream() {
    let app = Upstream::start(|message, _| ok(&message.text()));
    let first = issuer();
    let (gateway, battle) = (identity(&first, "gateway"), identity(&first, "battle"));
    let called = called(&battle, inbound(MtlsMode::Strict, Access::default()))
        .app(8080, app.address, Protocol::Auto)
        .start();
    let sidecar = caller(&gateway, &[called.inbound], &["battle"], Protocol::Auto)
        // New connections all the time, so that each certificate is used.
        .with_cluster(|cluster| cluster.connection_pool.max_requests_per_connection = 5)
        .with_forward(|forward| forward.retry.attempts = 0)
        .start();
    let (stop, asked) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let outbound = sidecar.outbound;
    let loads: Vec<_> = (0..3)
        .map(|number| {
            let (stop, asked) = (stop.clone(), asked.clone());
            thread::spawn(move || {
                let mut client = Client::connect(outbound);
                while !stop.load(Ordering::Relaxed) {
                    let answer = if number == 0 {
                        client.get("battle", "/")
                    } else {
                        client.post("battle", "/", "body")
                    };
                    assert_eq!(answer.status(), 200, "{}", answer.reason());
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();

    // A stream that is open all the while.
    let tunnel_app = echo_server();
    let streams = thread::spawn({
        let (stop, gateway, battle) = (stop.clone(), gateway.clone(), battle.clone());
        move || stream(&stop, &gateway, &battle, tunnel_app)
    });

    let authority = Authority::new(first);
    let renew = |authority: &Authority, times| {
        for _ in 0..times {
            for (identity, service) in [(&gateway, "gateway"), (&battle, "battle")] {
                identity.publish(credentials(authority.active(), service, authority.roots()));
                thread::sleep(Duration::from_millis(25));
            }
        }
    };
    renew(&authority, 10);
    let authority = authority.begin(issuer(), now()).unwrap();
    for identity in [&gateway, &battle] {
        identity.publish_roots(authority.roots().clone()).unwrap();
        thread::sleep(Duration::from_millis(50));
    }
    renew(&authority, 5);
    let authority = authority.switch(0, now()).unwrap();
    renew(&authority, 5);
    let authority = authority.finish(0, now()).unwrap();
    for identity in [&battle, &gateway] {
        identity.publish_roots(authority.roots().clone()).unwrap();
        thread::sleep(Duration::from_millis(50));
    }
    renew(&authority, 5);
    stop.store(true, Ordering::Relaxed);
    for load in loads {
        load.join().expect("no request failed");
    }
    assert!(streams.join().expect("no stream broke") > 3);
    assert!(asked.load(Ordering::Relaxed) > 50);
    assert!(called.event(Event::SecuredOpened) > 20);
    assert_eq!(sidecar.account.secured().refusals(), []);
    assert_eq!(called.account.secured().refusals(), []);
}

/// One HTTP/2 stream and one tunnel, echoed until told to stop; returns how often.
fn stream(
    stop: &AtomicBool,
    gateway: &Arc<phalanx_pki::identity::Identity>,
    battle: &Arc<phalanx_pki::identity::Identity>,
    echo: std::net::SocketAddr,
) -> usize {
    use std::io::{Read, Write};
    let rules = inbound(MtlsMode::Strict, Access::default());
    let raw = called(battle, rules.clone())
        .app(9000, echo, Protocol::Tcp)
        .start();
    let mut setup = caller(gateway, &[raw.inbound], &["battle"], Protocol::Tcp);
    setup.tcp.push(cluster_name("battle"));
    let raw_caller = setup.start();
    let mut tunnel = std::net::TcpStream::connect(raw_caller.tcp[0]).unwrap();

    let app = echo_http2();
    let http = called(battle, rules).app(8080, app, Protocol::H2c).start();
    let http_caller = caller(gateway, &[http.inbound], &["battle"], Protocol::H2c).start();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let rounds = runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(http_caller.outbound)
            .await
            .unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
        tokio::spawn(connection);
        let (mut writer, body) = Channel::<Bytes, std::convert::Infallible>::new(4);
        let request = http::Request::post("http://battle/stream")
            .header("content-type", "application/grpc")
            .body(body);
        writer
            .send_data(Bytes::from_static(b"first"))
            .await
            .unwrap();
        let answer = sender.send_request(request.unwrap()).await.unwrap();
        assert_eq!(answer.status(), 200);
        let mut answer = answer.into_body();
        let mut rounds = 0;
        let until = Instant::now() + Duration::from_secs(30);
        while !stop.load(Ordering::Relaxed) && Instant::now() < until {
            let frame = answer.frame().await.expect("the stream goes on").unwrap();
            assert!(frame.is_data());
            writer
                .send_data(Bytes::from_static(b"again"))
                .await
                .unwrap();
            let mut got = [0; 4];
            tunnel.write_all(b"ping").unwrap();
            tunnel.read_exact(&mut got).unwrap();
            rounds += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        rounds
    });
    // It is still the connection of the beginning.
    assert_eq!(http_caller.event(Event::SecuredOpened), 1);
    assert_eq!(raw_caller.event(Event::SecuredOpened), 1);
    rounds
}

/// An HTTP/2 application that sends back what it gets, as it comes; at `/admin/silent` it never answers.
pub fn echo_http2() -> std::net::SocketAddr {
    let listener = std::net::TcpListener::bind(any_port()).unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                let service = hyper::service::service_fn(
                    |request: http::Request<hyper::body::Incoming>| async move {
                        if request.uri().path() == "/admin/silent" {
                            std::future::pending::<()>().await;
                        }
                        Ok::<_, std::convert::Infallible>(http::Response::new(request.into_body()))
                    },
                );
                tokio::spawn(
                    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
    });
    address
}
