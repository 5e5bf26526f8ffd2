use std::future::pending;
use std::net::SocketAddr;

use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use axum::routing::post;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::listen::Door;

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, std::convert::Infallible>;

struct Served {
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// `/echo` answers with the body, `/never` not at all, and tells when it is given up.
async fn served() -> (Served, mpsc::UnboundedReceiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (told, given_up) = mpsc::unbounded_channel();
    let never = move || {
        let guard = Guard(told.clone());
        async move {
            pending::<()>().await;
            drop(guard);
        }
    };
    let echo = async |request: Request| Response::new(request.into_body());
    let router = Router::new()
        .route("/echo", post(echo))
        .route("/never", post(never));
    let stop = CancellationToken::new();
    let connections = Connections::new(listener, 8, Door::plain(), stop.clone());
    let serving = serve(
        connections,
        Routes::from(router),
        Refusals::default(),
        stop.clone(),
    );
    let task = tokio::spawn(serving);
    let served = Served {
        address,
        stop,
        task,
    };
    (served, given_up)
}

struct Guard(mpsc::UnboundedSender<()>);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

async fn client(served: &Served) -> SendRequest<Body> {
    let tcp = TcpStream::connect(served.address).await.unwrap();
    let shaken = handshake(TokioExecutor::new(), TokioIo::new(tcp)).await;
    let (sender, connection) = shaken.unwrap();
    tokio::spawn(connection);
    sender
}

fn ask(path: &str, body: Bytes) -> http::Request<Body> {
    let body = match body.is_empty() {
        true => Empty::new().boxed_unsync(),
        false => Full::new(body).boxed_unsync(),
    };
    let request = http::Request::post(format!("http://control{path}"));
    request.body(body).unwrap()
}

#[tokio::test]
async fn bodies_larger_than_every_window_pass_both_ways() {
    let (served, _given_up) = served().await;
    let mut client = client(&served).await;
    let sent: Vec<u8> = (0..5_000_000_u32).map(|i| (i % 251) as u8).collect();
    let sent = Bytes::from(sent);
    let answers = (0..3).map(|_| client.send_request(ask("/echo", sent.clone())));
    for answer in futures_util::future::join_all(answers).await {
        let answer = answer.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), sent);
    }
    let empty = client.send_request(ask("/echo", Bytes::new())).await;
    let empty = empty.unwrap().into_body().collect().await.unwrap();
    assert!(empty.to_bytes().is_empty());
}

#[tokio::test]
async fn what_serves_a_call_is_dropped_when_the_caller_gives_it_up_or_goes() {
    let (served, mut given_up) = served().await;
    let mut one = client(&served).await;
    let call = one.send_request(ask("/never", Bytes::new()));
    assert!(timeout(Duration::from_millis(50), call).await.is_err());
    given_up.recv().await.unwrap();
    let call = tokio::spawn(one.send_request(ask("/never", Bytes::new())));
    assert_eq!(
        one.send_request(ask("/echo", Bytes::new()))
            .await
            .unwrap()
            .status(),
        200
    );
    call.abort();
    drop(one);
    given_up.recv().await.unwrap();
}

#[tokio::test]
async fn a_caller_s_time_bounds_its_call() {
    let (served, mut given_up) = served().await;
    let mut client = client(&served).await;
    let mut call = ask("/never", Bytes::new());
    let headers = call.headers_mut();
    headers.insert("grpc-timeout", "30m".parse().unwrap());
    let answer = client.send_request(call).await.unwrap();
    let deadline_exceeded = "4";
    assert_eq!(answer.headers()["grpc-status"], deadline_exceeded);
    given_up.recv().await.unwrap();
}

#[tokio::test]
async fn calls_under_way_are_completed_when_the_server_stops() {
    let (served, _given_up) = served().await;
    let mut client = client(&served).await;
    let (sender, body) = http_body_util::channel::Channel::<Bytes>::new(1);
    let (mut sender, body) = (sender, body.map_err(|never| match never {}));
    let body = Body::new(body);
    let request = http::Request::post("http://control/echo").body(body);
    let answer = client.send_request(request.unwrap()).await.unwrap();
    served.stop.cancel();
    // It is said goodbye to, and takes no new call.
    let refused = async {
        loop {
            let new = client.send_request(ask("/echo", Bytes::new()));
            if new.await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(5), refused).await.unwrap();
    sender
        .send_data(Bytes::from_static(b"words"))
        .await
        .unwrap();
    drop(sender);
    let said = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(&said[..], b"words");
    served.task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_answers_nothing_is_asked_and_let_go() {
    let (served, _given_up) = served().await;
    let mut peer = TcpStream::connect(served.address).await.unwrap();
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    peer.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    peer.write_all(&settings).await.unwrap();
    let mut heard = Vec::new();
    let ended = timeout(
        3 * (KEEPALIVE + KEEPALIVE_TIMEOUT),
        peer.read_to_end(&mut heard),
    );
    let _ = ended.await.expect("it is held for ever");
    let ping = [0, 0, 8, 6, 0];
    assert!(heard.windows(5).any(|w| w == ping), "it is not asked");
}

#[test]
fn an_idle_connection_is_small() {
    const { assert!(connection::SIZE <= 2048) }
}
