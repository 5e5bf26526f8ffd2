//! The mesh's session directory as a [`Directory`]: what is answered is stored by the control plane, and every sidecar and
//! gateway follows it.

use std::time::Duration;

use phalanx_client::backoff::Backoff;
use phalanx_client::channel::Control;
use phalanx_client::session::{self, SessionError, Sessions};
use phalanx_model::ServiceName;
use tokio::time::sleep;
use tonic::Code;
use tracing::debug;

use crate::session::{Directory, DirectoryError, Follow, Instance, Key, Seat, Update};

/// Waits between attempts to follow.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// Seats of one service. Cheap to clone.
#[derive(Clone, Debug)]
pub struct MeshDirectory {
    sessions: Sessions,
    service: ServiceName,
}

/// Follows a [`MeshDirectory`]; opened anew when it breaks, with an update that begins again.
pub struct MeshWatch {
    directory: MeshDirectory,
    open: Option<session::Watch>,
    backoff: Backoff,
}

impl MeshDirectory {
    /// Of a service of the namespace that it is in. Workloads with identities may ask for their own only.
    pub fn new(control: Control, service: ServiceName) -> Self {
        Self {
            sessions: Sessions::new(control.channel()),
            service,
        }
    }

    pub fn service(&self) -> &ServiceName {
        &self.service
    }

    fn sessions(&self) -> Sessions {
        self.sessions.clone()
    }
}

impl Directory for MeshDirectory {
    type Watch = MeshWatch;

    async fn claim(
        &self,
        key: &Key,
        instance: &Instance,
        over: Option<u64>,
        ttl: Option<Duration>,
    ) -> Result<Seat, DirectoryError> {
        let over = over.map_or(Ok(0), fenced)?;
        let mut sessions = self.sessions();
        let claim = sessions.claim(&self.service, key.as_str(), instance.as_str(), over, ttl);
        let session = claim.await.map_err(|error| refused(error, instance))?;
        seat(session)
    }

    async fn move_to(&self, key: &Key, to: &Instance, epoch: u64) -> Result<Seat, DirectoryError> {
        let epoch = fenced(epoch)?;
        let mut sessions = self.sessions();
        let moved = sessions.move_to(&self.service, key.as_str(), to.as_str(), epoch);
        seat(moved.await.map_err(|error| refused(error, to))?)
    }

    async fn release(&self, key: &Key, epoch: u64) -> Result<Option<Seat>, DirectoryError> {
        let epoch = fenced(epoch)?;
        let mut sessions = self.sessions();
        let released = sessions.release(&self.service, key.as_str(), epoch).await;
        let session = released.map_err(unavailable)?;
        session.map(seat).transpose()
    }

    async fn show(&self, key: &Key) -> Result<Option<Seat>, DirectoryError> {
        let mut sessions = self.sessions();
        let shown = sessions.show(&self.service, key.as_str()).await;
        shown.map_err(unavailable)?.map(seat).transpose()
    }

    /// Nothing is opened yet.
    async fn watch(&self) -> Result<MeshWatch, DirectoryError> {
        Ok(MeshWatch {
            directory: self.clone(),
            open: None,
            backoff: Backoff::new(RETRY_MIN, RETRY_MAX),
        })
    }
}

impl MeshWatch {
    /// None: it broke, and is worth another attempt.
    async fn step(&mut self) -> Result<Option<Update>, SessionError> {
        if self.open.is_none() {
            let service = &self.directory.service;
            let watch = self.directory.sessions().watch(service).await?;
            self.open = Some(watch);
        }
        let Some(watch) = &mut self.open else {
            return Ok(None);
        };
        let Some(told) = watch.next().await? else {
            return Ok(None);
        };
        let seats = told.changed.into_iter().map(seat);
        Ok(Some(Update {
            begins: told.begins,
            complete: told.complete,
            changed: seats
                .collect::<Result<_, _>>()
                .map_err(|_| SessionError::Garbled)?,
            removed: told
                .removed
                .iter()
                .map(|key| Key::parse(key).map_err(|_| SessionError::Garbled))
                .collect::<Result<_, _>>()?,
        }))
    }
}

impl Follow for MeshWatch {
    async fn next(&mut self) -> Result<Update, DirectoryError> {
        loop {
            let error = match self.step().await {
                Ok(Some(update)) => {
                    self.backoff.reset();
                    return Ok(update);
                }
                Ok(None) => None,
                Err(error) => Some(error),
            };
            self.open = None;
            if let Some(error) = error {
                if is_final(&error) {
                    return Err(unavailable(error));
                }
                debug!(service = %self.directory.service, %error, "the session directory is not followed, trying again");
            }
            sleep(self.backoff.wait()).await;
        }
    }
}

/// Epoch 0 means whatever it is, to the mesh: nobody changes a seat that was not looked at.
fn fenced(epoch: u64) -> Result<u64, DirectoryError> {
    match epoch {
        0 => Err(DirectoryError::Invalid),
        epoch => Ok(epoch),
    }
}

fn seat(session: session::Session) -> Result<Seat, DirectoryError> {
    let names = (Key::parse(&session.key), Instance::parse(&session.instance));
    let (Ok(key), Ok(instance)) = names else {
        return Err(unavailable(SessionError::Garbled));
    };
    Ok(Seat {
        key,
        instance,
        epoch: session.epoch,
        ttl: session.ttl,
        away: session.away,
    })
}

fn refused(error: SessionError, instance: &Instance) -> DirectoryError {
    match code(&error) {
        Some(Code::FailedPrecondition) => DirectoryError::Closed(instance.clone()),
        Some(Code::NotFound) => DirectoryError::Unknown(instance.clone()),
        _ => unavailable(error),
    }
}

fn unavailable(error: SessionError) -> DirectoryError {
    match (code(&error), error) {
        (Some(Code::ResourceExhausted), _) => DirectoryError::Full,
        (Some(Code::InvalidArgument), _) => DirectoryError::Invalid,
        (_, SessionError::Conflict(now)) => match now.map(|now| seat(*now)).transpose() {
            Ok(now) => DirectoryError::Conflict(now.map(Box::new)),
            Err(error) => error,
        },
        (_, error) => DirectoryError::Unavailable(Box::new(error)),
    }
}

/// Asking again would bring the same.
fn is_final(error: &SessionError) -> bool {
    matches!(
        code(error),
        Some(
            Code::PermissionDenied
                | Code::Unauthenticated
                | Code::InvalidArgument
                | Code::Unimplemented
        )
    )
}

pub(super) fn code(error: &SessionError) -> Option<Code> {
    match error {
        SessionError::Call(status) => Some(status.code()),
        _ => None,
    }
}
