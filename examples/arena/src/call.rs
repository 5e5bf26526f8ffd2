//! Calls to other services by name. Every call goes to the one outbound listener; the authority says whom it is for.
//! gRPC has one HTTP/2 connection per service, HTTP a small pool of kept connections.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint, Uri};

/// Connections that one client keeps without use.
const IDLE_MAX: usize = 64;
/// Bytes of one answer.
const ANSWER_MAX: usize = 1 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A gRPC channel to `service`; connects when first used.
pub fn grpc(outbound: SocketAddr, service: &str) -> anyhow::Result<Channel> {
    let origin: Uri = format!("http://{service}")
        .parse()
        .with_context(|| format!("service name {service:?}"))?;
    let endpoint = Endpoint::from_shared(format!("http://{outbound}"))?;
    Ok(endpoint
        .origin(origin)
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .connect_lazy())
}

#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("connecting to {0}")]
    Connect(SocketAddr, #[source] std::io::Error),
    #[error("exchanging HTTP")]
    Http(#[from] hyper::Error),
    #[error("reading the answer")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("no answer within {0:?}")]
    Deadline(Duration),
}

impl CallError {
    /// One word, for counting.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Connect(..) => "connect",
            Self::Http(_) => "reset",
            Self::Body(_) => "body",
            Self::Deadline(_) => "timeout",
        }
    }
}

/// One request, kept as parts so that it can be made twice.
pub struct Call {
    pub method: Method,
    /// With the query.
    pub path: String,
    pub headers: HeaderMap,
    /// JSON or empty.
    pub body: Bytes,
    /// Whether a second attempt does no harm when a kept connection turns out to be closed after the first was sent.
    pub repeatable: bool,
    pub deadline: Duration,
}

/// HTTP/1.1 with kept connections to one authority at one address.
pub struct HttpClient {
    address: SocketAddr,
    authority: HeaderValue,
    /// A mutex because tasks share it; held for a push or a pop.
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

impl HttpClient {
    pub fn new(address: SocketAddr, service: &'static str) -> Self {
        Self {
            address,
            authority: HeaderValue::from_static(service),
            idle: Mutex::default(),
        }
    }

    /// The answer with its whole body.
    pub async fn send(&self, call: Call) -> Result<Response<Bytes>, CallError> {
        timeout(call.deadline, self.attempt(&call))
            .await
            .map_err(|_| CallError::Deadline(call.deadline))?
    }

    async fn attempt(&self, call: &Call) -> Result<Response<Bytes>, CallError> {
        while let Some(mut kept) = self.pop() {
            // The peer may close a kept connection at any time: then a fresh one decides.
            if kept.ready().await.is_err() {
                continue;
            }
            match kept.try_send_request(self.request(call)).await {
                Ok(answer) => return self.finish(kept, answer).await,
                Err(error) if error.message().is_some() || call.repeatable => continue,
                Err(error) => return Err(error.into_error().into()),
            }
        }
        let mut fresh = self.connect().await?;
        let answer = fresh.send_request(self.request(call)).await?;
        self.finish(fresh, answer).await
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, CallError> {
        let connecting = timeout(CONNECT_TIMEOUT, TcpStream::connect(self.address)).await;
        let stream = connecting
            .map_err(|_| CallError::Deadline(CONNECT_TIMEOUT))?
            .map_err(|error| CallError::Connect(self.address, error))?;
        stream
            .set_nodelay(true)
            .map_err(|error| CallError::Connect(self.address, error))?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Ends when `sender` is dropped or the peer closes; an error shows at the sender too.
        tokio::spawn(connection);
        Ok(sender)
    }

    fn request(&self, call: &Call) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(call.body.clone()));
        *request.method_mut() = call.method.clone();
        *request.uri_mut() = call.path.parse().unwrap_or_default();
        *request.headers_mut() = call.headers.clone();
        request.headers_mut().insert(HOST, self.authority.clone());
        if !call.body.is_empty() {
            request
                .headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        request
    }

    async fn finish(
        &self,
        sender: SendRequest<Full<Bytes>>,
        answer: Response<hyper::body::Incoming>,
    ) -> Result<Response<Bytes>, CallError> {
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, ANSWER_MAX)
            .collect()
            .await
            .map_err(CallError::Body)?
            .to_bytes();
        self.push(sender);
        Ok(Response::from_parts(head, body))
    }

    fn pop(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.pop()
    }

    fn push(&self, sender: SendRequest<Full<Bytes>>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX && !sender.is_closed() {
            idle.push(sender);
        }
    }
}
