//! The session directory, typed: an instance claims keys (player, room, guild), moves and releases them, and follows who has
//! what. An answer means that it is stored; the epoch that comes with it fences whoever had the key before.

use std::time::Duration;

use phalanx_model::ServiceName;
use phalanx_proto::phalanx::sessions::v1 as wire;
use phalanx_proto::phalanx::sessions::v1::sessions_client::SessionsClient;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// Of the resources that data planes follow.
pub const SEAT_TYPE: &str = "type.googleapis.com/phalanx.sessions.v1.Seat";
pub const SHELF_TYPE: &str = "type.googleapis.com/phalanx.sessions.v1.Shelf";
/// Of a call.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Who has a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    pub service: ServiceName,
    pub key: String,
    /// The id of the instance within the service.
    pub instance: String,
    /// Grows with each change of hands.
    pub epoch: u64,
    /// How long it is held without being claimed again; none: until it is released.
    pub ttl: Option<Duration>,
    /// The instance is not registered.
    pub away: bool,
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The epoch was another than expected: this one has it now, or nobody.
    #[error("{}", match .0 { Some(now) => format!("{} has it, at epoch {}", now.instance, now.epoch), None => "nobody has it".to_owned() })]
    Conflict(Option<Box<Session>>),
    #[error("the control plane does not do that")]
    Call(#[source] Box<Status>),
    /// It may have happened all the same.
    #[error("the control plane did not answer in time")]
    Timeout,
    #[error("the control plane's answer is not understood")]
    Garbled,
}

/// The way to the directory. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Sessions {
    client: SessionsClient<Channel>,
}

/// What a watch tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    pub changed: Vec<Session>,
    /// Keys that nobody has any more.
    pub removed: Vec<String>,
    /// What was told before is void: all keys follow, up to `complete`.
    pub begins: bool,
    pub complete: bool,
}

pub struct Watch(Streaming<wire::WatchResponse>, ServiceName);

impl Sessions {
    pub fn new(control: Channel) -> Self {
        Self {
            client: SessionsClient::new(control),
        }
    }

    /// Takes a key for an instance: one that nobody has (`expected` 0), or takes it over from that epoch. Whoever has it
    /// already keeps its epoch, for another `ttl`.
    ///
    /// # Errors
    /// [`SessionError`]
    pub async fn claim(
        &mut self,
        service: &ServiceName,
        key: &str,
        instance: &str,
        expected: u64,
        ttl: Option<Duration>,
    ) -> Result<Session, SessionError> {
        let request = wire::ClaimRequest {
            namespace: service.namespace.clone(),
            service: service.name.clone(),
            key: key.to_owned(),
            instance: instance.to_owned(),
            expected_epoch: expected,
            ttl_ms: ttl.map_or(0, |ttl| ttl.as_millis() as u64),
        };
        let answer = call(self.client.claim(request)).await?;
        done(answer)?.ok_or(SessionError::Garbled)
    }

    /// Puts a key that somebody has at another instance; `expected` 0: whatever its epoch is.
    ///
    /// # Errors
    /// [`SessionError`]
    pub async fn move_to(
        &mut self,
        service: &ServiceName,
        key: &str,
        to: &str,
        expected: u64,
    ) -> Result<Session, SessionError> {
        let request = wire::MoveRequest {
            namespace: service.namespace.clone(),
            service: service.name.clone(),
            key: key.to_owned(),
            to: to.to_owned(),
            expected_epoch: expected,
        };
        let answer = call(self.client.r#move(request)).await?;
        done(answer)?.ok_or(SessionError::Garbled)
    }

    /// Who had it; `expected` 0: whatever its epoch is. What nobody has is released already.
    ///
    /// # Errors
    /// [`SessionError`]
    pub async fn release(
        &mut self,
        service: &ServiceName,
        key: &str,
        expected: u64,
    ) -> Result<Option<Session>, SessionError> {
        let request = wire::ReleaseRequest {
            namespace: service.namespace.clone(),
            service: service.name.clone(),
            key: key.to_owned(),
            expected_epoch: expected,
        };
        done(call(self.client.release(request)).await?)
    }

    /// Who has a key; none: nobody.
    ///
    /// # Errors
    /// [`SessionError`]
    pub async fn show(
        &mut self,
        service: &ServiceName,
        key: &str,
    ) -> Result<Option<Session>, SessionError> {
        let request = wire::ShowRequest {
            namespace: service.namespace.clone(),
            service: service.name.clone(),
            key: key.to_owned(),
            ..Default::default()
        };
        let mut shown = call(self.client.show(request)).await?;
        shown.sessions.pop().map(from_wire).transpose()
    }

    /// All keys of a service, then what changes.
    ///
    /// # Errors
    /// [`SessionError`]
    pub async fn watch(&mut self, service: &ServiceName) -> Result<Watch, SessionError> {
        let request = wire::WatchRequest {
            namespace: service.namespace.clone(),
            service: service.name.clone(),
        };
        let stream = call(self.client.watch(request)).await?;
        Ok(Watch(stream, service.clone()))
    }
}

impl Watch {
    /// None: the control plane ended it.
    ///
    /// # Errors
    /// [`SessionError`]
    pub async fn next(&mut self) -> Result<Option<Update>, SessionError> {
        let Some(told) = self.0.message().await? else {
            return Ok(None);
        };
        let changed = told.changed.into_iter().map(from_wire);
        Ok(Some(Update {
            changed: changed.collect::<Result<_, _>>()?,
            removed: told.removed,
            begins: told.begins,
            complete: told.complete,
        }))
    }

    pub fn service(&self) -> &ServiceName {
        &self.1
    }
}

pub fn to_wire(session: &Session) -> wire::Session {
    wire::Session {
        namespace: session.service.namespace.clone(),
        service: session.service.name.clone(),
        key: session.key.clone(),
        instance: session.instance.clone(),
        epoch: session.epoch,
        ttl_ms: session.ttl.map_or(0, |ttl| ttl.as_millis() as u64),
        away: session.away,
    }
}

fn from_wire(session: wire::Session) -> Result<Session, SessionError> {
    let service = ServiceName::parse(&session.namespace, &session.service);
    Ok(Session {
        service: service.map_err(|_| SessionError::Garbled)?,
        key: session.key,
        instance: session.instance,
        epoch: session.epoch,
        ttl: (session.ttl_ms > 0).then(|| Duration::from_millis(session.ttl_ms)),
        away: session.away,
    })
}

fn done(answer: wire::Answer) -> Result<Option<Session>, SessionError> {
    let session = answer.session.map(from_wire).transpose()?;
    match answer.done {
        true => Ok(session),
        false => Err(SessionError::Conflict(session.map(Box::new))),
    }
}

async fn call<T>(
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, SessionError> {
    let answer = timeout(CALL_TIMEOUT, call).await;
    let answer = answer.map_err(|_| SessionError::Timeout)?;
    Ok(answer?.into_inner())
}

impl From<Status> for SessionError {
    fn from(status: Status) -> Self {
        Self::Call(Box::new(status))
    }
}
