//! One question to one endpoint, over a connection of its own: whether it takes connections is part of the answer.

use std::future::{Ready, ready};
use std::io;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::{http1, http2};
use hyper::header::{CONNECTION, HOST, HeaderValue, USER_AGENT};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use phalanx_model::reason::{REASON_HEADER, Reason};
use phalanx_model::resource::Probe;
use phalanx_proto::grpc::health::v1::HealthCheckRequest;
use phalanx_proto::grpc::health::v1::health_check_response::ServingStatus;
use phalanx_proto::grpc::health::v1::health_client::HealthClient;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tonic::codegen::Service;
use tonic::metadata::MetadataValue;
use tonic::transport::Endpoint;
use tonic::{Code, Status};

use super::secured::OwnFault;
use super::{STALL, Target, Way};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Good,
    /// Why, in a few words.
    Bad(String),
    /// Says nothing about the endpoint: we ourselves stood still, or its sidecar let us not through to it.
    Void,
}

/// What was heard.
enum Heard {
    Good,
    /// From the sidecar: whoever asks may not come in (`unauthenticated`, `denied`).
    Guarded,
}

/// Asks once, within the timeout; `way` for a question over mutual TLS.
pub async fn ask(target: &Target, way: Option<&Way>) -> Answer {
    let start = Instant::now();
    let fault = OwnFault::default();
    let question = async {
        match &target.check.probe {
            Probe::Tcp => connect(target).await.map(|_| Heard::Good),
            Probe::Http { path } => http(target, path, open(target, way, &fault).await?).await,
            Probe::Grpc { service } => {
                grpc(target, service, open(target, way, &fault).await?).await
            }
        }
    };
    match timeout(target.check.timeout, question).await {
        Ok(Ok(Heard::Good)) => Answer::Good,
        Ok(Ok(Heard::Guarded)) => Answer::Void,
        Ok(Err(_)) if fault.is_set() => Answer::Void,
        Ok(Err(reason)) => Answer::Bad(shown(&reason)),
        Err(_) if start.elapsed() > target.check.timeout + STALL => Answer::Void,
        Err(_) => Answer::Bad(format!("no answer within {:?}", target.check.timeout)),
    }
}

/// A reason is partly in the words of the one asked, and people read it in a terminal.
pub(super) fn shown(reason: &str) -> String {
    let printable = reason.chars().filter(|c| !c.is_control());
    printable.take(REASON_MAX).collect()
}

async fn connect(target: &Target) -> Result<TcpStream, String> {
    let stream = crate::mark::connect(target.address)
        .await
        .map_err(connecting)?;
    // Only costs time where it fails.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

fn connecting(error: io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        _ => format!("cannot connect: {error}"),
    }
}

/// A connection that a question goes over.
trait Line: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Line for T {}

type Io = TokioIo<Box<dyn Line>>;

async fn open(target: &Target, way: Option<&Way>, fault: &OwnFault) -> Result<Io, String> {
    let stream = connect(target).await?;
    let line: Box<dyn Line> = match way {
        None => Box::new(stream),
        Some(way) => Box::new(way.secure(stream, fault).await?),
    };
    Ok(TokioIo::new(line))
}

async fn http(target: &Target, path: &str, io: Io) -> Result<Heard, String> {
    let request = request(target, path).map_err(|e| format!("cannot be asked for {path}: {e}"))?;
    let answer = if target.http2 {
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io)
            .await
            .map_err(speaking)?;
        either(sender.send_request(request), connection).await
    } else {
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(HEAD_MAX)
            .handshake(io)
            .await
            .map_err(speaking)?;
        either(sender.send_request(request), connection).await
    };
    let (status, reason) = answer?;
    let reason = reason.as_ref().map(HeaderValue::as_bytes);
    match status {
        status if status.is_success() => Ok(Heard::Good),
        _ if is_guarded(target, reason) => Ok(Heard::Guarded),
        status => Err(format!("answered {}", status.as_u16())),
    }
}

fn request(target: &Target, path: &str) -> Result<Request<Empty<Bytes>>, hyper::http::Error> {
    let builder = if target.http2 {
        Request::get(format!("http://{}{path}", target.authority))
    } else {
        Request::get(path)
            .header(HOST, &target.authority)
            .header(CONNECTION, "close")
    };
    let mut request = builder
        .header(USER_AGENT, HeaderValue::from_static(AGENT))
        .body(Empty::new())?;
    if target.port != 0 {
        request.headers_mut().insert(PORT, target.port.into());
    }
    Ok(request)
}

/// Polls both until the head of the answer is there.
async fn either<B>(
    answer: impl Future<Output = hyper::Result<hyper::Response<B>>>,
    connection: impl Future<Output = hyper::Result<()>>,
) -> Result<(StatusCode, Option<HeaderValue>), String> {
    let mut answer = std::pin::pin!(answer);
    let answer = tokio::select! {
        biased;
        answer = answer.as_mut() => answer,
        // The answer may have come with the end of the connection.
        _ = connection => answer.await,
    };
    let answer = answer.map_err(speaking)?;
    let reason = answer.headers().get(REASON_HEADER).cloned();
    Ok((answer.status(), reason))
}

/// Only a sidecar speaks for itself.
fn is_guarded(target: &Target, reason: Option<&[u8]>) -> bool {
    let guards = [Reason::Unauthenticated, Reason::Denied];
    target.port != 0 && guards.iter().any(|r| reason == Some(r.as_str().as_bytes()))
}

fn speaking(error: hyper::Error) -> String {
    match error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        true => "closed the connection without an answer".to_owned(),
        false => format!("no HTTP answer: {error}"),
    }
}

/// Hands a connection that is open already to tonic.
struct Opened(Option<Io>);

impl Service<Uri> for Opened {
    type Response = Io;
    type Error = io::Error;
    type Future = Ready<io::Result<Io>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        ready(
            self.0
                .take()
                .ok_or_else(|| io::ErrorKind::NotConnected.into()),
        )
    }
}

async fn grpc(target: &Target, service: &str, io: Io) -> Result<Heard, String> {
    let wrong = |what: &str| format!("cannot be asked: {what}");
    let endpoint = Endpoint::from_shared(format!("http://{}", target.address))
        .map_err(|_| wrong("its address makes no URI"))?;
    let channel = endpoint.connect_with_connector(Opened(Some(io))).await;
    let channel = channel.map_err(|_| "takes connections, but speaks no HTTP/2".to_owned())?;
    let origin: Uri = format!("http://{}", target.authority)
        .parse()
        .map_err(|_| wrong("its authority makes no URI"))?;
    let mut client =
        HealthClient::with_origin(channel, origin).max_decoding_message_size(MESSAGE_MAX);
    let mut question = tonic::Request::new(HealthCheckRequest {
        service: service.to_owned(),
    });
    if target.port != 0 {
        question
            .metadata_mut()
            .insert(PORT, MetadataValue::from(target.port));
    }
    let answer = match client.check(question).await {
        Ok(answer) => answer,
        Err(status) => {
            let reason = status.metadata().get(REASON_HEADER).map(|r| r.as_bytes());
            return match is_guarded(target, reason) {
                true => Ok(Heard::Guarded),
                false => Err(refused(&status, service)),
            };
        }
    };
    match answer.into_inner().status() {
        ServingStatus::Serving => Ok(Heard::Good),
        other => Err(format!("answered {}", other.as_str_name())),
    }
}

fn refused(status: &Status, service: &str) -> String {
    match status.code() {
        Code::Unimplemented => "has no grpc.health.v1.Health".to_owned(),
        Code::NotFound => format!("does not know the service `{service}`"),
        code => format!("answered {code:?}: {}", status.message()),
    }
}

const AGENT: &str = concat!("phalanx-health/", env!("CARGO_PKG_VERSION"));
/// Tells a sidecar which of its application's ports is meant.
const PORT: &str = "x-phalanx-port";
/// Characters of a reason.
pub(super) const REASON_MAX: usize = 200;
/// Of an answer's head.
const HEAD_MAX: usize = 64 * 1024;
/// Of a gRPC answer.
const MESSAGE_MAX: usize = 16 * 1024;
