//! The sidecar's own pages: `/healthz`, `/readyz`, `/metrics`, `/certs`, `/compare`, `/connections`, `/config_dump`, `/explain`, `/tap`.
//! Read only; one small HTTP/1.1 server on the housekeeping runtime, that can't take more than it was given.

mod ask;
mod body;
mod compare;
mod dump;
mod istio;
mod limits;
mod pages;

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HOST, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use phalanx_telemetry::metrics;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::debug;

use self::body::PageBody;
pub use dump::rule as rule_json;
pub use pages::View;

/// Connections beyond this wait in the backlog.
const CONNECTIONS_MAX: usize = 32;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_BYTES_MAX: usize = 16 * 1024;
/// After an accept that failed, for want of file descriptors most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until dropped.
pub async fn serve(listener: TcpListener, view: Arc<View>) {
    let loopback_only = listener
        .local_addr()
        .is_ok_and(|address| address.ip().is_loopback());
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let view = view.clone();
                connections.spawn(async move {
                    let _slot = slot;
                    if let Err(error) = connection(stream, view, loopback_only).await {
                        debug!(%peer, %error, "admin connection ended early");
                    }
                });
            }
            Err(_) => sleep(ACCEPT_PAUSE).await,
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(stream: TcpStream, view: Arc<View>, loopback_only: bool) -> hyper::Result<()> {
    let service = service_fn(move |request| {
        let view = view.clone();
        async move { Ok::<_, Infallible>(answer(&request, &view, loopback_only).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

async fn answer(
    request: &Request<Incoming>,
    view: &View,
    loopback_only: bool,
) -> Response<PageBody> {
    // A page in a browser may have had its name pointed at this address: what it asks carries that name.
    if loopback_only && !request.headers().get(HOST).is_some_and(names_loopback) {
        return problem(
            StatusCode::FORBIDDEN,
            "this address answers to its own name only",
            "ask for 127.0.0.1 or localhost",
        );
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = problem(
            StatusCode::METHOD_NOT_ALLOWED,
            "pages are only read here",
            "use GET",
        );
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/healthz" => json_page(StatusCode::OK, json!({ "ok": true }).to_string()),
        "/readyz" => match view.not_ready() {
            None => json_page(StatusCode::OK, json!({ "ok": true }).to_string()),
            Some(why) => json_page(
                StatusCode::SERVICE_UNAVAILABLE,
                json!({ "ok": false, "error": why }).to_string(),
            ),
        },
        "/metrics" => page(StatusCode::OK, metrics::CONTENT_TYPE, view.metrics()),
        "/compare" => json_page(StatusCode::OK, format!("{:#}", view.comparisons())),
        "/connections" => json_page(StatusCode::OK, format!("{:#}", view.connections())),
        "/config_dump" => json_page(StatusCode::OK, format!("{:#}", view.config_dump())),
        "/explain" => ask::explain(view, request.uri().query().unwrap_or_default()).await,
        "/tap" => ask::tap(view, request.uri().query().unwrap_or_default()),
        "/certs" => match view.certs() {
            Some(certs) => json_page(StatusCode::OK, format!("{certs:#}")),
            None => problem(
                StatusCode::NOT_FOUND,
                "this sidecar has no identity, it speaks plain text",
                "--token-file FILE --identity-dir DIR gives it one",
            ),
        },
        _ => problem(
            StatusCode::NOT_FOUND,
            "no such page",
            "there are /healthz, /readyz, /metrics, /certs, /compare, /connections, /config_dump, /explain and /tap",
        ),
    }
}

fn names_loopback(host: &HeaderValue) -> bool {
    let Ok(host) = host.to_str() else {
        return false;
    };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn problem(status: StatusCode, error: &str, hint: &str) -> Response<PageBody> {
    json_page(status, json!({ "error": error, "hint": hint }).to_string())
}

fn json_page(status: StatusCode, body: String) -> Response<PageBody> {
    page(status, "application/json", body)
}

fn page(status: StatusCode, media: &'static str, body: String) -> Response<PageBody> {
    let mut response = Response::new(PageBody::text(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(media));
    response
}
