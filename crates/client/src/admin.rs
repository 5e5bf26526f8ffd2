//! The admin API as typed calls, for the command line and tests.
//!
//! One HTTP/1.1 connection per call, over TLS as soon as there are roots to trust; a token never goes out in plain text.
//! Nothing is pooled, nothing runs in the background. Every failure tells apart "nobody
//! answers" from "it was refused", because tools end with different exit codes.

mod backup;
mod cert;
mod line;
mod user;

use std::fmt;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::http::request;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api;
use crate::secure::{Secure, SecureError};

pub use backup::BackupFailed;

/// A place to ask. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Admin {
    address: String,
    timeout: Duration,
    /// None: in plain text.
    secure: Option<Secure>,
    token: Option<Token>,
    /// It was said that it speaks TLS.
    https: bool,
}

/// Not to be seen in a log.
#[derive(Clone)]
struct Token(String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// The answer to a GET that is no JSON (`/metrics`, `/healthz`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    pub status: u16,
    pub body: String,
}

#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Nothing listens there.
    #[error("no control plane answers at {address}")]
    Unreachable {
        address: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It is not the control plane, or can't prove it, or doesn't take us for whom we are.
    #[error("no trust between this machine and the control plane at {address}")]
    Untrusted {
        address: String,
        #[source]
        source: SecureError,
    },
    /// There is a token or an `https://` address, and nobody to trust.
    #[error("no roots are given to trust, and {what} is not to be used in plain text")]
    Rootless { what: &'static str },
    /// Hung up before it was known who it is.
    #[error("the handshake with {address} broke")]
    Handshake {
        address: String,
        #[source]
        source: io::Error,
    },
    /// What was asked for may have happened.
    #[error("the connection to the control plane at {address} broke before it answered")]
    Broken {
        address: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What was asked for may have happened.
    #[error("the control plane at {address} did not answer within {after:?}")]
    TimedOut { address: String, after: Duration },
    /// 422: files or names are wrong.
    #[error("{}", body.error)]
    Invalid { body: api::ErrorBody },
    /// 409: somebody else changed the configuration.
    #[error("{}", body.error)]
    Conflict { body: api::ErrorBody },
    /// 404
    #[error("{}", body.error)]
    NotFound { body: api::ErrorBody },
    /// Any other status.
    #[error("{} (HTTP {status})", body.error)]
    Refused { status: u16, body: api::ErrorBody },
    #[error("the answer of {address} is not understood: {message}")]
    Garbled { address: String, message: String },
}

impl AdminError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unreachable { address, .. } => Some(format!(
                "is `phalanx control` or `phalanx demo` running? ask elsewhere with --admin HOST:PORT or PHALANX_ADMIN (now {address})"
            )),
            Self::Untrusted { source, .. } => source.hint(),
            Self::Rootless { .. } => Some(
                "export PHALANX_ROOTS (the control plane's DATA/admin/roots.pem), or leave the token away where `--open` is meant"
                    .to_owned(),
            ),
            Self::Handshake { .. } => Some(
                "does it speak TLS? is it the admin port (15080 by default), and no proxy in between?"
                    .to_owned(),
            ),
            Self::Broken { .. } | Self::TimedOut { .. } => Some(
                "a change may have been stored all the same: look at `phalanx history`, then try again"
                    .to_owned(),
            ),
            Self::Invalid { body }
            | Self::Conflict { body }
            | Self::NotFound { body }
            | Self::Refused { body, .. } => body.hint.clone(),
            Self::Garbled { .. } => {
                Some("does a Phalanx control plane of this version listen there?".to_owned())
            }
        }
    }

    /// Whether it is worth trying again because nobody answered (exit code 4).
    pub fn is_unreachable(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Handshake { .. }
                | Self::Broken { .. }
                | Self::TimedOut { .. }
        )
    }

    /// Findings of a refused apply or delete.
    pub fn problems(&self) -> &[api::Problem] {
        match self {
            Self::Invalid { body } | Self::Refused { body, .. } => &body.problems,
            _ => &[],
        }
    }
}

impl Admin {
    /// `address` is `HOST:PORT`, with or without `http://` before it; with `https://` it is asked over TLS or not at all.
    pub fn new(address: &str) -> Self {
        let https = address.starts_with("https://");
        let address = address
            .strip_prefix("http://")
            .or_else(|| address.strip_prefix("https://"))
            .unwrap_or(address)
            .trim_end_matches('/');
        Self {
            address: address.to_owned(),
            timeout: CALL_TIMEOUT,
            secure: None,
            token: None,
            https,
        }
    }

    /// Over TLS, to a control plane that proves to be one; its own certificate is shown if `secure` has one.
    #[must_use]
    pub fn with_secure(self, secure: Secure) -> Self {
        Self {
            secure: Some(secure),
            ..self
        }
    }

    /// As the user whose token this is. It is sent over TLS only; without roots nothing is asked at all, for what only that
    /// user should say or hear would go in plain text.
    #[must_use]
    pub fn with_token(self, token: &str) -> Self {
        Self {
            token: Some(Token(token.trim().to_owned())),
            ..self
        }
    }

    /// How long one call may take, long polls apart.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// # Errors
    /// As every call: [`AdminError`].
    pub async fn apply(
        &self,
        request: &api::ApplyRequest,
    ) -> Result<api::ApplyResponse, AdminError> {
        self.post("/api/v1/apply", request).await
    }

    pub async fn delete(
        &self,
        request: &api::DeleteRequest,
    ) -> Result<api::ApplyResponse, AdminError> {
        self.post("/api/v1/delete", request).await
    }

    pub async fn rollback(
        &self,
        request: &api::RollbackRequest,
    ) -> Result<api::ApplyResponse, AdminError> {
        self.post("/api/v1/rollback", request).await
    }

    pub async fn release(
        &self,
        request: &api::ReleaseRequest,
    ) -> Result<api::ReleaseResponse, AdminError> {
        self.post("/api/v1/release", request).await
    }

    /// For control planes among themselves.
    pub async fn refused(
        &self,
        request: &api::RefusedRequest,
    ) -> Result<api::RefusedResponse, AdminError> {
        self.post("/api/v1/refused", request).await
    }

    pub async fn drain(
        &self,
        request: &api::DrainRequest,
    ) -> Result<api::DrainResponse, AdminError> {
        self.post("/api/v1/drain", request).await
    }

    /// Instances that operators drain.
    pub async fn drains(&self) -> Result<api::Drains, AdminError> {
        self.get("/api/v1/drains").await
    }

    /// None: of all services of the namespace, all keys, all instances, from the first key.
    pub async fn sessions(
        &self,
        namespace: &str,
        service: Option<&str>,
        key: Option<&str>,
        instance: Option<&str>,
        after: Option<&str>,
    ) -> Result<api::SessionPage, AdminError> {
        let named = [
            ("namespace", Some(namespace)),
            ("service", service),
            ("key", key),
            ("instance", instance),
            ("after", after),
        ];
        self.get(&path("/api/v1/sessions", &named)).await
    }

    /// `what`: `claim`, `move` or `release`. A conflict is [`AdminError::Conflict`].
    pub async fn session(
        &self,
        what: &str,
        request: &api::SessionRequest,
    ) -> Result<api::SessionAnswer, AdminError> {
        self.post(&format!("/api/v1/sessions/{what}"), request)
            .await
    }

    /// None: of every kind, in every namespace.
    pub async fn documents(
        &self,
        kind: Option<&str>,
        namespace: Option<&str>,
    ) -> Result<api::Documents, AdminError> {
        self.get(&path(
            "/api/v1/documents",
            &[("kind", kind), ("namespace", namespace)],
        ))
        .await
    }

    pub async fn document(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
    ) -> Result<api::StoredDocument, AdminError> {
        let [kind, namespace, name] = [kind, namespace, name].map(encode);
        self.get(&format!("/api/v1/documents/{kind}/{namespace}/{name}"))
            .await
    }

    /// None: about the newest revision.
    pub async fn status(&self, revision: Option<u64>) -> Result<api::Status, AdminError> {
        self.status_within(revision, Duration::ZERO).await
    }

    /// Answers when every proxy has the revision or one refused, at the latest after `wait`.
    pub async fn status_within(
        &self,
        revision: Option<u64>,
        wait: Duration,
    ) -> Result<api::Status, AdminError> {
        let revision = revision.map(|r| r.to_string());
        let wait_ms = (!wait.is_zero()).then(|| wait.as_millis().to_string());
        let path = path(
            "/api/v1/status",
            &[
                ("revision", revision.as_deref()),
                ("wait_ms", wait_ms.as_deref()),
            ],
        );
        self.call(Method::GET, &path, Bytes::new(), self.timeout + wait)
            .await
            .and_then(|answer| self.json(answer))
    }

    /// The canary that is under way, and how the last one ended.
    pub async fn canary(&self) -> Result<api::CanaryStatus, AdminError> {
        self.get("/api/v1/canary").await
    }

    /// What this control plane alone saw of the canary's proxies.
    pub async fn canary_evidence(&self) -> Result<api::CanaryEvidence, AdminError> {
        self.get("/api/v1/canary/evidence").await
    }

    /// Promotes or aborts it by hand.
    pub async fn decide_canary(
        &self,
        decision: &api::CanaryDecision,
    ) -> Result<api::CanaryStatus, AdminError> {
        self.post("/api/v1/canary", decision).await
    }

    /// How far each Rollout is.
    pub async fn rollouts(&self, namespace: Option<&str>) -> Result<api::Rollouts, AdminError> {
        self.get(&path("/api/v1/rollouts", &[("namespace", namespace)]))
            .await
    }

    /// What this control plane alone knows of the Rollouts that it drives.
    pub async fn rollouts_here(&self) -> Result<api::Rollouts, AdminError> {
        self.get("/api/v1/rollouts?here=1").await
    }

    /// One Rollout, with what happened to it.
    pub async fn rollout(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<api::RolloutView, AdminError> {
        let [namespace, name] = [namespace, name].map(encode);
        self.get(&format!("/api/v1/rollouts/{namespace}/{name}"))
            .await
    }

    /// Pauses, resumes, promotes, aborts or retries a Rollout.
    pub async fn order_rollout(
        &self,
        namespace: &str,
        name: &str,
        order: &api::RolloutOrder,
    ) -> Result<api::RolloutView, AdminError> {
        let [namespace, name] = [namespace, name].map(encode);
        self.post(&format!("/api/v1/rollouts/{namespace}/{name}"), order)
            .await
    }

    /// What this control plane alone was told of services, by `<namespace>/<name>`.
    pub async fn rollout_figures(
        &self,
        services: &[String],
    ) -> Result<api::RolloutFigures, AdminError> {
        let services = services.join(",");
        self.get(&path(
            "/api/v1/rollouts/figures",
            &[("services", Some(&services))],
        ))
        .await
    }

    /// The transaction of one revision.
    pub async fn history_at(&self, revision: u64) -> Result<api::History, AdminError> {
        let revision = revision.to_string();
        self.get(&path("/api/v1/history", &[("revision", Some(&revision))]))
            .await
    }

    pub async fn history(&self, limit: Option<usize>) -> Result<api::History, AdminError> {
        let limit = limit.map(|l| l.to_string());
        self.get(&path("/api/v1/history", &[("limit", limit.as_deref())]))
            .await
    }

    pub async fn proxies(&self) -> Result<api::Proxies, AdminError> {
        self.get("/api/v1/proxies").await
    }

    /// With what each asks for.
    pub async fn proxies_asking(&self) -> Result<api::Proxies, AdminError> {
        self.get("/api/v1/proxies?asks=1").await
    }

    pub async fn instances(
        &self,
        service: Option<&str>,
        namespace: Option<&str>,
    ) -> Result<api::Instances, AdminError> {
        self.get(&path(
            "/api/v1/instances",
            &[("service", service), ("namespace", namespace)],
        ))
        .await
    }

    /// Endpoints under active health checks.
    pub async fn health(
        &self,
        service: Option<&str>,
        namespace: Option<&str>,
    ) -> Result<api::HealthViews, AdminError> {
        self.get(&path(
            "/api/v1/health",
            &[("service", service), ("namespace", namespace)],
        ))
        .await
    }

    /// Lanes, and who has instances in them.
    /// Mirrors beside originals; of one route: `NAME`, `NAMESPACE/NAME` or with its kind.
    pub async fn comparisons(&self, route: Option<&str>) -> Result<api::Comparisons, AdminError> {
        self.get(&path("/api/v1/comparisons", &[("route", route)]))
            .await
    }

    pub async fn lanes(&self, colour: Option<&str>) -> Result<api::LaneViews, AdminError> {
        self.get(&path("/api/v1/lanes", &[("colour", colour)]))
            .await
    }

    pub async fn edges(&self, window_s: Option<u64>) -> Result<api::Edges, AdminError> {
        let window = window_s.map(|w| w.to_string());
        self.get(&path("/api/v1/edges", &[("window_s", window.as_deref())]))
            .await
    }

    pub async fn loads(&self) -> Result<api::Loads, AdminError> {
        self.get("/api/v1/loads").await
    }

    /// Any path as it is, whatever its status: `/readyz`, `/metrics`.
    pub async fn text(&self, path: &str) -> Result<Text, AdminError> {
        let (status, body) = self
            .call(Method::GET, path, Bytes::new(), self.timeout)
            .await?;
        Ok(Text {
            status: status.as_u16(),
            body: String::from_utf8_lossy(&body).into_owned(),
        })
    }

    /// The status of an empty request, by the name of any method: `get`, `post`, `delete`.
    pub async fn raw(&self, method: &str, path: &str) -> Result<u16, AdminError> {
        let method = Method::from_bytes(method.to_uppercase().as_bytes());
        let method = method.unwrap_or(Method::GET);
        let body = Bytes::from_static(b"{}");
        let answer = self.call(method, path, body, self.timeout).await?;
        Ok(answer.0.as_u16())
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, AdminError> {
        let answer = self
            .call(Method::GET, path, Bytes::new(), self.timeout)
            .await?;
        self.json(answer)
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, AdminError> {
        let body = serde_json::to_vec(body).map_err(|e| self.garbled(&e))?;
        // Sent anyway, it would be cut off in the middle, and the reason lost with it.
        if body.len() > api::BODY_BYTES_MAX {
            let most = api::BODY_BYTES_MAX >> 20;
            let error = format!("{} bytes at once, at most {most} MiB are taken", body.len());
            return Err(AdminError::Refused {
                status: StatusCode::PAYLOAD_TOO_LARGE.as_u16(),
                body: api::ErrorBody {
                    error,
                    hint: Some("apply fewer files at once".to_owned()),
                    ..api::ErrorBody::default()
                },
            });
        }
        let answer = self
            .call(Method::POST, path, body.into(), self.timeout)
            .await?;
        self.json(answer)
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        timeout: Duration,
    ) -> Result<(StatusCode, Bytes), AdminError> {
        let exchange = async {
            let stream = self.connect().await?;
            let answer = self.exchange(stream, method, path, body).await;
            answer.map_err(|source| self.broken(source))
        };
        match tokio::time::timeout(timeout, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(AdminError::TimedOut {
                address: self.address.clone(),
                after: timeout,
            }),
        }
    }

    async fn exchange(
        &self,
        stream: Box<dyn line::Line>,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), Box<dyn std::error::Error + Send + Sync>> {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let request = self
            .request(method, path, "application/json")
            .body(Full::new(body))?;
        let exchange = async move {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_MAX)
                .collect()
                .await?
                .to_bytes();
            Ok((status, body))
        };
        // The connection ends with the exchange: `sender` is dropped inside it.
        let (answer, _) = tokio::join!(exchange, connection);
        answer
    }

    /// Without a body yet.
    fn request(&self, method: Method, path: &str, accept: &str) -> request::Builder {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.address)
            .header(ACCEPT, accept)
            .header(CONTENT_TYPE, "application/json");
        match (&self.token, &self.secure) {
            (Some(Token(token)), Some(_)) => {
                request.header(AUTHORIZATION, format!("Bearer {token}"))
            }
            _ => request,
        }
    }

    fn json<T: DeserializeOwned>(
        &self,
        (status, body): (StatusCode, Bytes),
    ) -> Result<T, AdminError> {
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|e| self.garbled(&e));
        }
        let Ok(body) = serde_json::from_slice::<api::ErrorBody>(&body) else {
            let message = format!("HTTP {status} without an error body");
            return Err(AdminError::Garbled {
                address: self.address.clone(),
                message,
            });
        };
        Err(match status {
            StatusCode::UNPROCESSABLE_ENTITY => AdminError::Invalid { body },
            StatusCode::CONFLICT => AdminError::Conflict { body },
            StatusCode::NOT_FOUND => AdminError::NotFound { body },
            status => AdminError::Refused {
                status: status.as_u16(),
                body,
            },
        })
    }

    fn garbled(&self, error: &serde_json::Error) -> AdminError {
        AdminError::Garbled {
            address: self.address.clone(),
            message: error.to_string(),
        }
    }
}

fn path(base: &str, query: &[(&str, Option<&str>)]) -> String {
    let given = query
        .iter()
        .filter_map(|(key, value)| value.map(|v| format!("{key}={}", encode(v))));
    let query = given.collect::<Vec<_>>().join("&");
    if query.is_empty() {
        base.to_owned()
    } else {
        format!("{base}?{query}")
    }
}

/// Percent-encoding of everything but RFC 3986's unreserved characters.
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(byte as char)
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Of one answer.
const ANSWER_MAX: usize = 256 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers one connection with the given text.
    async fn answering(status: &str, body: &str) -> Admin {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let answer = format!(
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\ncontent-type: application/json\r\n\r\n{body}",
            body.len()
        );
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = vec![0; 4096];
            let _ = stream.read(&mut head).await;
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        Admin::new(&address)
    }

    #[tokio::test]
    async fn nobody_listening_is_unreachable_with_a_hint() {
        let port = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let error = Admin::new(&format!("http://127.0.0.1:{port}/"))
            .proxies()
            .await
            .unwrap_err();
        assert!(error.is_unreachable(), "{error}");
        assert!(error.to_string().contains(&format!("127.0.0.1:{port}")));
        assert!(error.hint().unwrap().contains("PHALANX_ADMIN"));
    }

    #[tokio::test]
    async fn nothing_is_asked_in_plain_text_that_was_meant_to_be_secret() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        for admin in [
            Admin::new(&address).with_token("phalanx-user.a.b"),
            Admin::new(&format!("https://{address}")),
        ] {
            let error = admin.proxies().await.unwrap_err();
            assert!(matches!(error, AdminError::Rootless { .. }), "{error:?}");
            assert!(error.hint().unwrap().contains("PHALANX_ROOTS"));
        }
        let came = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
        assert!(came.is_err(), "nobody called");
    }

    #[tokio::test]
    async fn a_peer_that_never_answers_times_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let admin = Admin::new(&listener.local_addr().unwrap().to_string())
            .with_timeout(Duration::from_millis(50));
        assert!(matches!(
            admin.proxies().await,
            Err(AdminError::TimedOut { .. })
        ));
    }

    #[tokio::test]
    async fn a_connection_that_breaks_leaves_open_what_happened() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let admin = Admin::new(&listener.local_addr().unwrap().to_string());
        let killed = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
        };
        let request = api::ApplyRequest::default();
        let (answer, ()) = tokio::join!(admin.apply(&request), killed);
        let error = answer.unwrap_err();
        assert!(error.is_unreachable(), "{error}");
        assert!(error.hint().unwrap().contains("phalanx history"), "{error}");
    }

    #[tokio::test]
    async fn problems_and_conflicts_are_told_apart() {
        let body = r#"{"error":"1 problem","problems":[{"file":"a.yaml","line":3,"column":5,"path":"spec","message":"unknown field `x`","hint":"did you mean `y`?"}]}"#;
        let error = answering("422 Unprocessable Entity", body)
            .await
            .apply(&api::ApplyRequest::default())
            .await
            .unwrap_err();
        assert_eq!(
            error.problems()[0].to_string(),
            "a.yaml:3:5: spec: unknown field `x` (did you mean `y`?)"
        );

        let error = answering("409 Conflict", r#"{"error":"moved on","revision":9}"#)
            .await
            .apply(&api::ApplyRequest::default())
            .await
            .unwrap_err();
        assert!(matches!(error, AdminError::Conflict { body } if body.revision == Some(9)));

        let error = answering(
            "503 Service Unavailable",
            r#"{"error":"the disk is full","hint":"free some"}"#,
        )
        .await
        .proxies()
        .await
        .unwrap_err();
        assert_eq!(error.hint().as_deref(), Some("free some"));
    }

    #[tokio::test]
    async fn more_than_is_taken_is_refused_and_not_unreachable() {
        let file = api::File {
            name: "a.yaml".into(),
            text: "x".repeat(api::BODY_BYTES_MAX),
        };
        let request = api::ApplyRequest {
            files: vec![file],
            ..api::ApplyRequest::default()
        };
        let error = answering("413 Payload Too Large", "{}")
            .await
            .apply(&request)
            .await
            .unwrap_err();
        assert!(
            !error.is_unreachable() && error.hint().unwrap().contains("fewer files"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_foreign_server_is_garbled() {
        assert!(matches!(
            answering("200 OK", "<html>").await.proxies().await,
            Err(AdminError::Garbled { .. })
        ));
        assert!(matches!(
            answering("500 Oops", "<html>").await.proxies().await,
            Err(AdminError::Garbled { .. })
        ));
    }

    #[test]
    fn queries_are_encoded() {
        assert_eq!(
            path("/a", &[("k", Some("x y&z")), ("n", None), ("m", Some("1"))]),
            "/a?k=x%20y%26z&m=1"
        );
        assert_eq!(path("/a", &[("k", None)]), "/a");
    }
}
