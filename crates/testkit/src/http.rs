//! A plain HTTP client of one connection at a time, and what a test wants to know of an answer.

use std::error::Error;
use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

/// No answer of a test may take longer.
const ANSWER_MAX: Duration = Duration::from_secs(20);
/// How long a sidecar waits for the control plane's word on a host.
const HOST_WAIT: Duration = Duration::from_secs(2);
const FIRST_CALLS_MAX: usize = 5;

#[derive(Clone, Debug)]
pub struct Call {
    pub method: Method,
    pub authority: String,
    /// With the query.
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
    pub http2: bool,
}

impl Call {
    pub fn get(authority: &str, path: &str) -> Self {
        Self {
            method: Method::GET,
            authority: authority.into(),
            path: path.into(),
            headers: Vec::new(),
            body: Bytes::new(),
            http2: false,
        }
    }

    pub fn method(mut self, method: Method) -> Self {
        self.method = method;
        self
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// An empty gRPC call over HTTP/2.
    pub fn grpc(authority: &str, path: &str) -> Self {
        let mut call = Self::get(authority, path)
            .method(Method::POST)
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        call.body = Bytes::from_static(&[0, 0, 0, 0, 0]);
        call.http2 = true;
        call
    }
}

#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: HeaderMap,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default()
    }

    /// From the trailers, or from the head of an answer without messages.
    pub fn grpc_status(&self) -> Option<&str> {
        self.trailers
            .get("grpc-status")
            .or_else(|| self.headers.get("grpc-status"))?
            .to_str()
            .ok()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

enum Sender {
    Http1(conn::http1::SendRequest<Full<Bytes>>),
    Http2(conn::http2::SendRequest<Full<Bytes>>),
}

/// One connection.
pub struct Connection(Sender);

impl Connection {
    pub async fn open(address: SocketAddr, http2: bool) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let io = TokioIo::new(stream);
        let sender = if http2 {
            let (sender, connection) = conn::http2::handshake(TokioExecutor::new(), io).await?;
            tokio::spawn(connection);
            Sender::Http2(sender)
        } else {
            let (sender, connection) = conn::http1::handshake(io).await?;
            tokio::spawn(connection);
            Sender::Http1(sender)
        };
        Ok(Self(sender))
    }

    pub async fn send(&mut self, call: &Call) -> anyhow::Result<Answer> {
        tokio::time::timeout(ANSWER_MAX, self.exchange(call)).await?
    }

    async fn exchange(&mut self, call: &Call) -> anyhow::Result<Answer> {
        let (head, body) = self.begin(call).await?.into_parts();
        let collected = body.collect().await?;
        let trailers = collected.trailers().cloned().unwrap_or_default();
        Ok(Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            body: collected.to_bytes(),
            trailers,
        })
    }

    async fn begin(&mut self, call: &Call) -> anyhow::Result<Response<Incoming>> {
        let uri = if call.http2 {
            format!("http://{}{}", call.authority, call.path)
        } else {
            call.path.clone()
        };
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(uri)
            .body(Full::new(call.body.clone()))?;
        for (name, value) in &call.headers {
            request.headers_mut().append(
                HeaderName::from_bytes(name.as_bytes())?,
                HeaderValue::from_str(value)?,
            );
        }
        if !call.http2 {
            request
                .headers_mut()
                .insert("host", HeaderValue::from_str(&call.authority)?);
        }
        let sent = match &mut self.0 {
            Sender::Http1(sender) => {
                sender.ready().await.map_err(Unsent)?;
                sender.try_send_request(request).await
            }
            Sender::Http2(sender) => {
                sender.ready().await.map_err(Unsent)?;
                sender.try_send_request(request).await
            }
        };
        sent.map_err(|mut error| {
            let is_back = error.take_message().is_some();
            let error = error.into_error();
            match is_back || is_let_go(&error) {
                true => anyhow::Error::new(Unsent(error)),
                false => error.into(),
            }
        })
    }
}

/// An answer that is read as it comes.
pub struct Stream {
    pub head: http::response::Parts,
    body: Incoming,
    _connection: Connection,
}

/// How a stream went on.
#[derive(Debug)]
pub enum Next {
    Piece(Bytes),
    /// Whole, with its trailers.
    End(HeaderMap),
    BrokenOff,
}

impl Stream {
    /// Over a connection of its own, until the answer's head is there.
    ///
    /// # Errors
    /// When there is none in time.
    pub async fn open(address: SocketAddr, call: &Call) -> anyhow::Result<Self> {
        let mut connection = Connection::open(address, call.http2).await?;
        let begun = tokio::time::timeout(ANSWER_MAX, connection.begin(call)).await??;
        let (head, body) = begun.into_parts();
        Ok(Self {
            head,
            body,
            _connection: connection,
        })
    }

    /// # Errors
    /// When nothing comes in time.
    pub async fn next(&mut self) -> anyhow::Result<Next> {
        let frame = tokio::time::timeout(ANSWER_MAX, self.body.frame()).await?;
        Ok(match frame {
            None => Next::End(HeaderMap::new()),
            Some(Err(_)) => Next::BrokenOff,
            Some(Ok(frame)) => match frame.into_data() {
                Ok(piece) => Next::Piece(piece),
                Err(frame) => Next::End(frame.into_trailers().unwrap_or_default()),
            },
        })
    }
}

/// The connection ended before anything of the call was taken: whoever asks again, over another, sends it once. hyper looks whether
/// its connection takes more and then sends, so on two threads a server's goodbye may come between, however well it says it.
#[derive(Debug)]
pub struct Unsent(hyper::Error);

impl fmt::Display for Unsent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nothing was sent")
    }
}

impl Error for Unsent {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0)
    }
}

/// Whether that is why a call failed.
pub fn is_unsent(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Unsent>().is_some()
}

/// The server ended the connection in peace, and says that it has not looked at this stream (RFC 9113, 6.8).
fn is_let_go(error: &hyper::Error) -> bool {
    let cause = error
        .source()
        .and_then(|cause| cause.downcast_ref::<h2::Error>());
    cause.is_some_and(|cause| {
        cause.is_go_away() && cause.is_remote() && cause.reason() == Some(h2::Reason::NO_ERROR)
    })
}

/// One call over a connection of its own.
pub async fn call(address: SocketAddr, call: &Call) -> anyhow::Result<Answer> {
    Connection::open(address, call.http2)
        .await?
        .send(call)
        .await
}

/// As [`call`], of a host that is called for the first time: asked again when nobody had told of it after all the time that a
/// sidecar waits. That is what it should say on a busy machine; sooner it should not.
///
/// # Errors
/// As [`call`]; when it is never told.
pub async fn first_call(address: SocketAddr, request: &Call) -> anyhow::Result<Answer> {
    for _ in 0..FIRST_CALLS_MAX {
        let begun = Instant::now();
        let answer = call(address, request).await?;
        let is_untold = answer.header("x-phalanx-reason") == "no_healthy_upstream";
        if !is_untold || begun.elapsed() < HOST_WAIT {
            return Ok(answer);
        }
    }
    anyhow::bail!("{} is never told", request.authority)
}
