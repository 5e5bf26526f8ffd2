//! Stands for every sidecar at once: takes HTTP/1.1 and h2c, and sends a request to a service by its authority.
//! It takes turns where a name has several addresses, and passes bodies, trailers and streams through as they come.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::HOST;
use axum::http::{HeaderMap, StatusCode, Version};
use axum::response::{IntoResponse, Response};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::sync::Mutex;
use tokio::net::{TcpListener, TcpStream};

/// What arrived at whom: authority, path and headers.
pub type Seen = Arc<Mutex<Vec<(String, String, HeaderMap)>>>;

/// Where services are now.
pub type Addresses = Arc<Mutex<HashMap<&'static str, Vec<SocketAddr>>>>;

struct Names {
    addresses: Addresses,
    turn: AtomicUsize,
    seen: Seen,
}

/// Serves on `listener` until the runtime ends.
pub fn spawn(listener: TcpListener, addresses: Addresses) -> Seen {
    let seen = Seen::default();
    let names = Arc::new(Names {
        addresses,
        turn: AtomicUsize::new(0),
        seen: seen.clone(),
    });
    let router = axum::Router::new().fallback(forward).with_state(names);
    tokio::spawn(async move { axum::serve(listener, router).await });
    seen
}

async fn forward(State(names): State<Arc<Names>>, request: Request) -> Response {
    let host = request
        .headers()
        .get(HOST)
        .and_then(|host| host.to_str().ok());
    let authority = request
        .uri()
        .host()
        .or(host)
        .unwrap_or_default()
        .to_string();
    let path = request.uri().path().to_string();
    names
        .seen
        .lock()
        .unwrap()
        .push((authority.clone(), path, request.headers().clone()));
    let turn = names.turn.fetch_add(1, Relaxed);
    let address = {
        let addresses = names.addresses.lock().unwrap();
        let addresses = addresses.get(authority.as_str());
        addresses.map(|addresses| addresses[turn % addresses.len()])
    };
    let Some(address) = address else {
        return (StatusCode::NOT_FOUND, [("x-phalanx-reason", "no_route")]).into_response();
    };
    match send(address, request).await {
        Ok(response) => response,
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}

async fn send(address: SocketAddr, mut request: Request) -> anyhow::Result<Response> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let io = TokioIo::new(stream);
    if request.version() == Version::HTTP_2 {
        let (mut sender, connection) =
            http2::handshake::<_, _, Body>(TokioExecutor::new(), io).await?;
        tokio::spawn(connection);
        Ok(sender.send_request(request).await?.map(Body::new))
    } else {
        let (mut sender, connection) = http1::handshake::<_, Body>(io).await?;
        tokio::spawn(connection);
        *request.uri_mut() = request
            .uri()
            .path_and_query()
            .map(|path| path.as_str().parse())
            .transpose()?
            .unwrap_or_default();
        Ok(sender.send_request(request).await?.map(Body::new))
    }
}
