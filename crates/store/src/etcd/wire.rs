//! Calls to a cluster: to one member after the other until one answers, with the token of the user, within bounds.
//! What went wrong is told apart by what it means for a write: not done, refused, or unknown.

use std::{
    error::Error as _,
    future::Future,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use phalanx_proto::etcdserverpb::{AuthenticateRequest, auth_client::AuthClient};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tonic::{
    Code, Request, Response, Status,
    metadata::{AsciiMetadataValue, MetadataValue},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use super::config::{Credentials, EtcdConfig, Tls};
use crate::{Error, Result};

/// Until an attempt counts as lost, and until no further one is begun.
const ATTEMPT_MAX: Duration = Duration::from_secs(5);
const CALL_MAX: Duration = Duration::from_secs(10);
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// A member that vanished without a word is noticed after these two. etcd takes no more than a ping in 5 s.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_MAX: Duration = Duration::from_secs(5);
/// Between two rounds through the members.
const WAIT_MIN: Duration = Duration::from_millis(50);
const WAIT_MAX: Duration = Duration::from_secs(1);
/// The largest message taken. etcd's are at most 2 MiB, but for pages, which shrink when they don't fit.
pub const MESSAGE_BYTES_MAX: usize = 8 << 20;
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Calls that wait for the connection; beyond, callers wait themselves.
const CALLS_QUEUED_MAX: usize = 64;

pub struct Wire {
    members: Vec<Member>,
    /// The member that answered last.
    current: AtomicUsize,
    credentials: Option<Credentials>,
    /// Held over a call, so that many find out once that the token is stale.
    token: tokio::sync::Mutex<Token>,
    /// Why nobody answers, while nobody does. A short critical section.
    trouble: Mutex<Option<String>>,
    closed: watch::Sender<bool>,
}

struct Member {
    name: String,
    endpoint: Endpoint,
    channel: Channel,
}

#[derive(Default)]
struct Token {
    value: Option<AsciiMetadataValue>,
    /// How many there were.
    generation: u64,
}

/// One way to one member, for one attempt.
#[derive(Clone)]
pub struct Link {
    pub channel: Channel,
    token: Option<AsciiMetadataValue>,
    generation: u64,
}

/// Which failures may be answered with another attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// All: doing it twice is doing it once.
    Always,
    /// Only those after which it certainly was not done and will not be.
    IfNotDone,
}

#[derive(Debug)]
pub enum Fault {
    /// Never sent, or turned away before it was done.
    NotDone(String),
    /// Sent, and no answer.
    Lost(String),
    /// etcd's own answer; `repeated` if an earlier attempt of the same call was lost.
    Told {
        status: Status,
        repeated: bool,
    },
    Closed,
}

impl Wire {
    /// Nothing is connected yet. Must be called within a runtime.
    pub fn new(config: &EtcdConfig) -> Result<Wire> {
        config.check()?;
        let tls = config.tls.as_ref();
        let member = |name| Member::new(name, tls);
        let members: Result<Vec<Member>> = config.endpoints.iter().map(member).collect();
        Ok(Wire {
            members: members?,
            current: AtomicUsize::new(0),
            credentials: config.credentials.clone(),
            token: tokio::sync::Mutex::default(),
            trouble: Mutex::default(),
            closed: watch::Sender::new(false),
        })
    }

    pub fn close(&self) {
        self.closed.send_replace(true);
    }

    pub fn open(&self) -> Result<()> {
        match *self.closed.borrow() {
            true => Err(Error::Closed),
            false => Ok(()),
        }
    }

    pub async fn until_closed(&self) {
        // The sender is ours, so this ends by closing only.
        let _ = self.closed.subscribe().wait_for(|closed| *closed).await;
    }

    /// Why no member answers at the moment.
    pub fn trouble(&self) -> Option<String> {
        let trouble = self.trouble.lock();
        trouble.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Attempts until one has an answer, or none makes sense.
    pub async fn call<T, F>(&self, repeat: Repeat, attempt: impl Fn(Link) -> F) -> Result<T, Fault>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        tokio::select! {
            () = self.until_closed() => Err(Fault::Closed),
            done = self.attempts(repeat, attempt) => done,
        }
    }

    async fn attempts<T, F>(&self, repeat: Repeat, attempt: impl Fn(Link) -> F) -> Result<T, Fault>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let deadline = Instant::now() + CALL_MAX;
        let mut pause = Pause::new(self.members.len());
        let mut repeated = false;
        let mut renewed = false;
        loop {
            let at = self.current.load(Ordering::Relaxed) % self.members.len();
            let fault = match self.attempt(at, &attempt).await {
                Ok(message) => {
                    self.set_trouble(None);
                    return Ok(message);
                }
                Err((Fault::Told { status, .. }, generation)) => {
                    self.set_trouble(None);
                    // A token ends after five minutes without use and with its member.
                    if is_about_token(&status) && self.credentials.is_some() && !renewed {
                        renewed = true;
                        self.forget_token(generation).await;
                        continue;
                    }
                    return Err(Fault::Told { status, repeated });
                }
                Err((fault, _)) => fault.at(&self.members[at].name),
            };
            if let Fault::NotDone(reason) | Fault::Lost(reason) = &fault {
                self.set_trouble(Some(reason.clone()));
            }
            self.leave(at);
            if matches!(fault, Fault::Lost(_)) {
                repeated = true;
                if repeat == Repeat::IfNotDone {
                    return Err(fault);
                }
            }
            let wait = pause.next();
            if Instant::now() + wait >= deadline {
                return Err(match (fault, repeated) {
                    (Fault::NotDone(reason), true) => Fault::Lost(reason),
                    (fault, _) => fault,
                });
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// One attempt with one member, and which token it had.
    async fn attempt<T, F>(
        &self,
        at: usize,
        attempt: &impl Fn(Link) -> F,
    ) -> Result<T, (Fault, u64)>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let channel = self.members[at].channel.clone();
        let link = match timeout(ATTEMPT_MAX, self.link(channel)).await {
            Ok(Ok(link)) => link,
            Ok(Err(status)) => {
                // Whatever became of the token: the call itself was not sent.
                let fault = match Fault::of(status) {
                    Fault::Lost(reason) => Fault::NotDone(reason),
                    fault => fault,
                };
                return Err((fault, 0));
            }
            Err(_) => return Err((Fault::NotDone(silent()), 0)),
        };
        let generation = link.generation;
        match timeout(ATTEMPT_MAX, attempt(link)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err((Fault::of(status), generation)),
            Err(_) => Err((Fault::Lost(silent()), generation)),
        }
    }

    /// A connection of its own for a stream that may stand still: on a shared one it would take the window from others.
    pub async fn connect(&self, at: usize) -> Result<Link, Fault> {
        let member = &self.members[at % self.members.len()];
        let connecting = member.endpoint.connect();
        let channel = match timeout(CONNECT_MAX, connecting).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => return Err(Fault::NotDone(sources(&error))),
            Err(_) => return Err(Fault::NotDone(silent())),
        };
        match timeout(ATTEMPT_MAX, self.link(channel)).await {
            Ok(link) => link.map_err(Fault::of),
            Err(_) => Err(Fault::NotDone(silent())),
        }
    }

    /// The member that calls go to now, for the first [`connect`](Wire::connect).
    pub fn current(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }

    pub fn pause(&self) -> Pause {
        Pause::new(self.members.len())
    }

    async fn link(&self, channel: Channel) -> Result<Link, Status> {
        let Some(credentials) = &self.credentials else {
            return Ok(Link {
                channel,
                token: None,
                generation: 0,
            });
        };
        let mut token = self.token.lock().await;
        if token.value.is_none() {
            token.value = authenticate(channel.clone(), credentials).await?;
            token.generation += 1;
        }
        Ok(Link {
            channel,
            token: token.value.clone(),
            generation: token.generation,
        })
    }

    async fn forget_token(&self, generation: u64) {
        let mut token = self.token.lock().await;
        if token.generation == generation {
            token.value = None;
        }
    }

    /// Turns to the next member, unless somebody has already.
    fn leave(&self, at: usize) {
        let next = (at + 1) % self.members.len();
        let current = &self.current;
        let _ = current.compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn set_trouble(&self, now: Option<String>) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*trouble, &now) {
            (None, Some(reason)) => tracing::warn!(%reason, "etcd does not answer"),
            (Some(_), None) => tracing::info!("etcd answers again"),
            _ => {}
        }
        *trouble = now;
    }
}

impl Member {
    fn new(name: &String, tls: Option<&Tls>) -> Result<Member> {
        let invalid = |problem: String| Error::Invalid { problem };
        let scheme = if tls.is_some() { "https" } else { "http" };
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{name}"))
            .map_err(|error| invalid(format!("`{name}` is no endpoint of an etcd: {error}")))?;
        if let Some(tls) = tls {
            let config = endpoint.tls_config(tls_config(tls)?);
            endpoint = config.map_err(|error| {
                let problem = sources(&error);
                invalid(format!(
                    "the certificates for etcd can't be used: {problem}"
                ))
            })?;
        }
        let endpoint = endpoint
            .connect_timeout(CONNECT_MAX)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_MAX)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .buffer_size(CALLS_QUEUED_MAX)
            .tcp_nodelay(true);
        Ok(Member {
            name: name.clone(),
            channel: endpoint.connect_lazy(),
            endpoint,
        })
    }
}

fn tls_config(tls: &Tls) -> Result<ClientTlsConfig> {
    let is_pem = |text: &[u8], what: &str| {
        let begin = format!("-----BEGIN {what}");
        text.windows(begin.len())
            .any(|part| part == begin.as_bytes())
    };
    if !is_pem(&tls.ca, "CERTIFICATE-----") {
        return Err(Error::Invalid {
            problem:
                "an etcd over TLS needs the certificate (PEM) of the authority that signed its own"
                    .into(),
        });
    }
    let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&tls.ca));
    if let Some(name) = &tls.server_name {
        config = config.domain_name(name);
    }
    if let Some((chain, key)) = &tls.identity {
        if !is_pem(chain, "CERTIFICATE-----") {
            return Err(Error::Invalid {
                problem: "the client certificate for etcd is no certificate in PEM".into(),
            });
        }
        config = config.identity(Identity::from_pem(chain, key));
    }
    Ok(config)
}

impl Link {
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.clone());
        }
        request
    }

    /// Of a stream that shall end when its member is cut off from the others.
    pub fn request_with_leader<T>(&self, message: T) -> Request<T> {
        let mut request = self.request(message);
        let leader = MetadataValue::from_static("true");
        request.metadata_mut().insert("hasleader", leader);
        request
    }
}

impl Fault {
    pub fn of(status: Status) -> Fault {
        if never_sent(&status) {
            return Fault::NotDone(sources(&status));
        }
        let message = status.message();
        match status.code() {
            // Turned away before it is proposed.
            Code::ResourceExhausted if message.contains("too many requests") => {
                Fault::NotDone(message.into())
            }
            Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Cancelled
            | Code::Aborted
            | Code::Internal
            | Code::Unknown => Fault::Lost(sources(&status)),
            _ => Fault::Told {
                status,
                repeated: false,
            },
        }
    }

    /// By us, of what etcd can't be asked or is not believed.
    pub fn refused(why: &str) -> Fault {
        Fault::Told {
            status: Status::failed_precondition(why),
            repeated: false,
        }
    }

    fn at(self, member: &str) -> Fault {
        match self {
            Fault::NotDone(reason) => Fault::NotDone(format!("{member}: {reason}")),
            Fault::Lost(reason) => Fault::Lost(format!("{member}: {reason}")),
            fault => fault,
        }
    }

    /// For what changes nothing, or can be done again.
    pub fn of_read(self) -> Error {
        match self {
            Fault::NotDone(reason) | Fault::Lost(reason) => Error::Unreachable { reason },
            Fault::Told { status, .. } => refusal(&status),
            Fault::Closed => Error::Closed,
        }
    }

    pub fn of_write(self) -> Error {
        match self {
            Fault::Lost(reason) => Error::Unknown { reason },
            fault => fault.of_read(),
        }
    }

    /// Whether etcd said it with these words.
    pub fn says(&self, words: &str) -> bool {
        matches!(self, Fault::Told { status, .. } if status.message().contains(words))
    }
}

pub const COMPACTED: &str = "required revision has been compacted";
pub const FUTURE: &str = "required revision is a future revision";
pub const NO_LEASE: &str = "requested lease not found";
pub const NO_KEY: &str = "etcdserver: key not found";
pub const LEASE_EXISTS: &str = "lease already exists";
pub const TOO_LARGE_TO_TAKE: &str = "decoded message length too large";

fn refusal(status: &Status) -> Error {
    let reason = status.message().to_owned();
    if reason.contains("database space exceeded") {
        let reason = format!("etcd is full, compact and defragment it ({reason})");
        return Error::ReadOnly { reason };
    }
    if reason.contains("request is too large") {
        return Error::Invalid { problem: reason };
    }
    Error::Refused { reason }
}

fn is_about_token(status: &Status) -> bool {
    let message = status.message();
    status.code() == Code::Unauthenticated
        || ["invalid auth token", "revision in header is old"]
            .iter()
            .any(|stale| message.contains(stale))
}

fn never_sent(status: &Status) -> bool {
    std::iter::successors(status.source(), |&error| error.source())
        .any(|error| error.is::<tonic::ConnectError>())
}

async fn authenticate(
    channel: Channel,
    credentials: &Credentials,
) -> Result<Option<AsciiMetadataValue>, Status> {
    let request = AuthenticateRequest {
        name: credentials.user.clone(),
        password: credentials.password.clone(),
    };
    let answer = match AuthClient::new(channel).authenticate(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) if status.message().contains("authentication is not enabled") => {
            tracing::warn!("etcd takes everybody: a user was given, but authentication is off");
            return Ok(None);
        }
        Err(status) => return Err(status),
    };
    let token = answer.token.parse();
    token
        .map(Some)
        .map_err(|_| Status::unauthenticated("etcd's token is no header value"))
}

fn silent() -> String {
    "no answer in time".into()
}

/// An error and its causes in one line; tonic's own text is often "transport error" alone.
fn sources(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = match error.downcast_ref::<Status>() {
        Some(status) => status.message().to_owned(),
        None => error.to_string(),
    };
    for cause in std::iter::successors(error.source(), |&error| error.source()) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// No wait until each member was tried, then longer ones with jitter.
pub struct Pause {
    members: usize,
    attempts: usize,
    span: Duration,
}

impl Pause {
    fn new(members: usize) -> Pause {
        Pause {
            members,
            attempts: 0,
            span: WAIT_MIN,
        }
    }

    pub fn next(&mut self) -> Duration {
        self.attempts += 1;
        if !self.attempts.is_multiple_of(self.members) {
            return Duration::ZERO;
        }
        let span = self.span;
        self.span = (span * 2).min(WAIT_MAX);
        span.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}
