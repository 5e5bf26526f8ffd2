//! An application that knows nothing of the mesh: `echo ADDRESS NAME` tells who it is and what reached it.
//!
//! HTTP/1.1 and HTTP/2 in plain text. `x-echo` names the application. The path decides the behaviour: `/status/503` answers
//! that, `/slow/200` waits 200 ms, `/flaky/2` answers 503 twice and then 200 once, again and again, `/healthz` is healthy,
//! `/seen` tells how many requests of `/copy…` there were, everything else is answered with the request as JSON; gRPC
//! requests get one message and trailers. `x-next: ADDRESS=AUTHORITY,…` makes it call AUTHORITY through the proxy at the first
//! ADDRESS, with the others and the headers of the mesh, as an application that passes them on does; what came back is `next`. `x-answer: name=value` in a
//! request becomes a field of its answer. With `x-stream: MS` the answer never ends: each MS there is another message of gRPC, else a
//! line. A WebSocket gets its bytes back.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use phalanx_testkit::http::{Call, call};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::MissedTickBehavior;

/// Requests of `/flaky/…` so far.
static FLAKY: AtomicU32 = AtomicU32::new(0);
/// Requests of `/copy…` so far.
static COPIES: AtomicU32 = AtomicU32::new(0);

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: echo ADDRESS NAME";
    let address: SocketAddr = arguments.next().context(usage)?.parse().context(usage)?;
    let name: Arc<str> = arguments.next().context(usage)?.into();
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}"))?;
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(serve(stream, Arc::clone(&name)));
    }
}

async fn serve(stream: TcpStream, name: Arc<str>) {
    let mut start = [0; 3];
    // HTTP/2 by prior knowledge begins with "PRI".
    let Ok(read) = stream.peek(&mut start).await else {
        return;
    };
    let service = service_fn(move |request| answer(request, Arc::clone(&name)));
    let io = TokioIo::new(stream);
    // A peer that leaves is no error of ours.
    if start.get(..read) == Some(b"PRI") {
        let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(io, service)
            .await;
    } else {
        let _ = hyper::server::conn::http1::Builder::new()
            .serve_connection(io, service)
            .with_upgrades()
            .await;
    }
}

type BodyError = Box<dyn std::error::Error + Send + Sync>;

async fn answer(
    request: Request<Incoming>,
    name: Arc<str>,
) -> Result<Response<BoxBody<Bytes, BodyError>>, Infallible> {
    let asked = request.headers().get("upgrade");
    if asked.is_some_and(|asked| asked.as_bytes().eq_ignore_ascii_case(b"websocket")) {
        return Ok(switch(request, &name));
    }
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let received = body
        .collect()
        .await
        .map(|b| b.to_bytes())
        .unwrap_or_default();
    let mut segments = path.trim_start_matches('/').split('/');
    let (verb, value) = (
        segments.next().unwrap_or_default(),
        segments.next().and_then(|v| v.parse::<u16>().ok()),
    );
    let mut status = 200;
    match (verb, value) {
        ("status", Some(code)) => status = code,
        ("flaky", Some(times)) => {
            let count = FLAKY.fetch_add(1, Ordering::Relaxed);
            if count % (u32::from(times) + 1) < u32::from(times) {
                status = 503;
            }
        }
        (copy, _) if copy.starts_with("copy") => drop(COPIES.fetch_add(1, Ordering::Relaxed)),
        ("slow", Some(ms)) => tokio::time::sleep(Duration::from_millis(ms.into())).await,
        _ => {}
    }
    let grpc = head
        .headers
        .get("content-type")
        .is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"));
    // For gRPC a head that ends the stream, the only failure that all of its clients try again.
    let is_bare = grpc && verb == "flaky" && status != 200;
    let joined = |name| {
        let values = head.headers.get_all(name).iter();
        let values = values.map(|value| String::from_utf8_lossy(value.as_bytes()));
        values.collect::<Vec<_>>().join(", ")
    };
    let headers: serde_json::Map<String, serde_json::Value> = head
        .headers
        .keys()
        .map(|name| (name.to_string(), joined(name).into()))
        .collect();
    let authority = head
        .uri
        .authority()
        .map(ToString::to_string)
        .unwrap_or_default();
    let next = next(&head.headers, &path).await;
    let told = serde_json::json!({
        "name": &*name, "method": head.method.as_str(), "path": path, "query": head.uri.query(), "authority": authority,
        "version": format!("{:?}", head.version), "headers": headers, "body_bytes": received.len(),
        "seen": COPIES.load(Ordering::Relaxed), "next": next,
    });
    let mut trailers = None;
    let (kind, bytes) = if grpc {
        let mut map = HeaderMap::new();
        map.insert("grpc-status", HeaderValue::from_static("0"));
        trailers = Some(Ok(map));
        ("application/grpc", vec![0, 0, 0, 0, 0])
    } else {
        ("application/json", told.to_string().into_bytes())
    };
    let body = match (is_bare, pace(&head.headers)) {
        (true, _) => Empty::new().map_err(BodyError::from).boxed(),
        (false, Some(pace)) => Endless::new(pace, if grpc { &[0; 5] } else { b"line\n" }).boxed(),
        (false, None) => Full::new(Bytes::from(bytes))
            .with_trailers(async move { trailers })
            .map_err(BodyError::from)
            .boxed(),
    };
    let mut response = Response::new(body);
    if is_bare {
        let unavailable = HeaderValue::from_static("14");
        response.headers_mut().insert("grpc-status", unavailable);
    }
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
    response
        .headers_mut()
        .insert("content-type", HeaderValue::from_static(kind));
    for wanted in head.headers.get_all("x-answer") {
        let wanted = wanted.to_str().ok().and_then(|text| text.split_once('='));
        if let Some((name, value)) = wanted
            && let Ok(name) = HeaderName::from_bytes(name.as_bytes())
            && let Ok(value) = HeaderValue::from_str(value)
        {
            response.headers_mut().append(name, value);
        }
    }
    if let Ok(value) = HeaderValue::from_str(&name) {
        response.headers_mut().insert("x-echo", value);
    }
    Ok(response)
}

fn pace(headers: &HeaderMap) -> Option<Duration> {
    let pace = headers.get("x-stream")?.to_str().ok()?.parse();
    pace.ok().map(Duration::from_millis)
}

/// The same again and again.
struct Endless {
    pace: tokio::time::Interval,
    piece: &'static [u8],
}

impl Endless {
    fn new(pace: Duration, piece: &'static [u8]) -> Self {
        let mut pace = tokio::time::interval(pace.max(Duration::from_millis(1)));
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay); // a busy machine is given no more to do
        Self { pace, piece }
    }
}

impl Body for Endless {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        ready!(self.pace.poll_tick(cx));
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(self.piece)))))
    }
}

/// From now on what comes goes back.
fn switch(request: Request<Incoming>, name: &str) -> Response<BoxBody<Bytes, BodyError>> {
    tokio::spawn(async move {
        let Ok(upgraded) = hyper::upgrade::on(request).await else {
            return;
        };
        let (mut from, mut to) = tokio::io::split(TokioIo::new(upgraded));
        let _ = tokio::io::copy(&mut from, &mut to).await; // a peer that leaves
    });
    let mut response = Response::new(Empty::new().map_err(BodyError::from).boxed());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert("connection", HeaderValue::from_static("upgrade"));
    headers.insert("upgrade", HeaderValue::from_static("websocket"));
    if let Ok(name) = HeaderValue::from_str(name) {
        headers.insert("x-echo", name);
    }
    response
}

/// What the next one answered; null where there is none.
async fn next(headers: &HeaderMap, path: &str) -> serde_json::Value {
    let said = headers.get("x-next").and_then(|value| value.to_str().ok());
    let Some((address, authority, rest)) = said.and_then(|said| {
        let (first, rest) = said.split_once(',').unwrap_or((said, ""));
        let (address, authority) = first.split_once('=')?;
        Some((address.parse::<SocketAddr>().ok()?, authority, rest))
    }) else {
        return serde_json::Value::Null;
    };
    let mut request = Call::get(authority, path);
    for name in ["x-env", "x-canary-id", "traceparent"] {
        if let Some(value) = headers.get(name).and_then(|value| value.to_str().ok()) {
            request = request.header(name, value);
        }
    }
    if !rest.is_empty() {
        request = request.header("x-next", rest);
    }
    match call(address, &request).await {
        Ok(answer) => match answer.json() {
            serde_json::Value::Null => answer.status.into(),
            told => told,
        },
        Err(error) => format!("{error:#}").into(),
    }
}
