//! The directory over gRPC. A workload speaks for its own service; with a token, an operator for any.

use std::pin::Pin;
use std::sync::atomic::Ordering;

use futures_util::stream::unfold;
use phalanx_client::session::to_wire;
use phalanx_model::ServiceName;
use phalanx_proto::phalanx::sessions::v1 as wire;
use phalanx_proto::phalanx::sessions::v1::sessions_server;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use super::board::Session;
use super::feed::{Feed, Step};
use super::record::{BadKey, SessionId, service_of};
use super::writer::{ChangeError, Done};
use super::{SessionError, Sessions};
use crate::access::Who;

impl Session {
    pub fn to_wire(&self) -> wire::Session {
        to_wire(&phalanx_client::session::Session {
            service: self.id.service.clone(),
            key: self.id.key.to_string(),
            instance: self.held.instance.to_string(),
            epoch: self.held.epoch,
            ttl: self.held.ttl,
            away: self.addresses.is_none(),
        })
    }
}

impl Sessions {
    /// A page of what is asked for, over services where none is named.
    pub fn show(&self, request: &wire::ShowRequest) -> Result<wire::ShowResponse, BadKey> {
        let most = match request.limit as usize {
            0 => PAGE_MAX,
            limit => limit.min(PAGE_MAX),
        };
        if request.service.is_empty() {
            return Ok(self.show_all(&request.namespace, most));
        }
        let service = service_of(&request.namespace, &request.service)?;
        if !request.key.is_empty() {
            let id = SessionId::parse(&request.namespace, &request.service, &request.key)?;
            let found: Vec<_> = self.session(&id).iter().map(Session::to_wire).collect();
            return Ok(wire::ShowResponse {
                count: found.len() as u64,
                sessions: found,
                more: false,
            });
        }
        let instance = Some(request.instance.as_str()).filter(|id| !id.is_empty());
        let after = Some(request.after.as_str()).filter(|after| !after.is_empty());
        let (page, more) = self.page(&service, instance, after, most);
        let count = match instance {
            Some(instance) => self.count_of(&phalanx_model::InstanceId {
                service,
                id: instance.to_owned(),
            }),
            None => self.count(&service),
        };
        Ok(wire::ShowResponse {
            sessions: page.iter().map(Session::to_wire).collect(),
            more,
            count: count as u64,
        })
    }

    fn show_all(&self, namespace: &str, most: usize) -> wire::ShowResponse {
        let mut response = wire::ShowResponse::default();
        for service in self.services() {
            if service.namespace != namespace {
                continue;
            }
            response.count += self.count(&service) as u64;
            let room = most.saturating_sub(response.sessions.len());
            let (page, more) = self.page(&service, None, None, room);
            response.more |= more;
            let page = page.iter().map(Session::to_wire);
            response.sessions.extend(page);
        }
        response
    }
}

impl From<BadKey> for Status {
    fn from(error: BadKey) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

impl From<SessionError> for Status {
    fn from(error: SessionError) -> Self {
        let text = error.to_string();
        match error {
            SessionError::Unknown(_) => Self::not_found(text),
            SessionError::Closed { .. } => Self::failed_precondition(text),
            SessionError::Ttl => Self::invalid_argument(text),
            SessionError::Rate | SessionError::Change(ChangeError::Full | ChangeError::TooMany) => {
                Self::resource_exhausted(text)
            }
            SessionError::Stopping | SessionError::Change(ChangeError::Store(_)) => {
                Self::unavailable(text)
            }
        }
    }
}

fn answer(done: &Done) -> Response<wire::Answer> {
    Response::new(wire::Answer {
        done: done.done,
        session: done.session.as_ref().map(Session::to_wire),
    })
}

/// Whoever may speak for the session's service.
fn owned<T>(request: &Request<T>, id: Result<SessionId, BadKey>) -> Result<SessionId, Status> {
    let id = id?;
    own(request, &id.service)?;
    Ok(id)
}

/// A user of any service, a workload of its own: a key may be all that it takes to be taken for its player.
fn own<T>(request: &Request<T>, service: &ServiceName) -> Result<(), Status> {
    match Who::of(request.extensions()) {
        Who::User { .. } => Ok(()),
        who => Ok(who.owns(service)?),
    }
}

#[tonic::async_trait]
impl sessions_server::Sessions for Sessions {
    async fn claim(
        &self,
        request: Request<wire::ClaimRequest>,
    ) -> Result<Response<wire::Answer>, Status> {
        let asked = request.get_ref();
        let id = SessionId::parse(&asked.namespace, &asked.service, &asked.key);
        let id = owned(&request, id)?;
        let asked = request.into_inner();
        let ttl = (asked.ttl_ms > 0).then(|| std::time::Duration::from_millis(asked.ttl_ms));
        let done = Self::claim(self, id, &asked.instance, asked.expected_epoch, ttl).await?;
        Ok(answer(&done))
    }

    async fn r#move(
        &self,
        request: Request<wire::MoveRequest>,
    ) -> Result<Response<wire::Answer>, Status> {
        let asked = request.get_ref();
        let id = SessionId::parse(&asked.namespace, &asked.service, &asked.key);
        let id = owned(&request, id)?;
        let asked = request.into_inner();
        let done = self.move_to(id, &asked.to, asked.expected_epoch).await?;
        Ok(answer(&done))
    }

    async fn release(
        &self,
        request: Request<wire::ReleaseRequest>,
    ) -> Result<Response<wire::Answer>, Status> {
        let asked = request.get_ref();
        let id = SessionId::parse(&asked.namespace, &asked.service, &asked.key);
        let id = owned(&request, id)?;
        let done = Self::release(self, id, request.get_ref().expected_epoch).await?;
        Ok(answer(&done))
    }

    async fn show(
        &self,
        request: Request<wire::ShowRequest>,
    ) -> Result<Response<wire::ShowResponse>, Status> {
        let asked = request.get_ref();
        match asked.service.is_empty() {
            false => own(&request, &service_of(&asked.namespace, &asked.service)?)?,
            true if Who::of(request.extensions()).is_workload() => {
                return Err(Status::permission_denied(
                    "sessions of all services are shown to users only; name your own service",
                ));
            }
            true => {}
        }
        Ok(Response::new(Self::show(self, request.get_ref())?))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<wire::WatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<wire::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let asked = request.get_ref();
        let service = service_of(&asked.namespace, &asked.service)?;
        own(&request, &service)?;
        let place = Place::take(self)?;
        let mut feed = self.feed();
        feed.subscribe(service, None)?;
        let stop = self.stop.clone();
        let stream = unfold((place, feed, stop), |(place, mut feed, stop)| async move {
            let step = tokio::select! {
                () = stop.cancelled() => return None,
                step = step(&mut feed) => step,
            };
            Some((Ok(told(&step)), (place, feed, stop)))
        });
        Ok(Response::new(Box::pin(stream)))
    }
}

async fn step(feed: &mut Feed) -> Step {
    loop {
        if let Some(step) = feed.step() {
            return step;
        }
        feed.changed().await;
    }
}

fn told(step: &Step) -> wire::WatchResponse {
    wire::WatchResponse {
        changed: step.changed.iter().map(Session::to_wire).collect(),
        removed: step.removed.iter().map(|key| key.to_string()).collect(),
        begins: step.begins,
        complete: step.complete,
    }
}

/// One of a bounded number of watches.
struct Place(Sessions);

impl Place {
    fn take(sessions: &Sessions) -> Result<Self, Status> {
        let taken = sessions.shared.watchers.fetch_add(1, Ordering::Relaxed);
        let place = Self(sessions.clone());
        if taken >= WATCHERS_MAX {
            return Err(Status::resource_exhausted(format!(
                "{WATCHERS_MAX} watches are open, no more are taken"
            )));
        }
        Ok(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.shared.watchers.fetch_sub(1, Ordering::Relaxed);
    }
}

const WATCHERS_MAX: usize = 1_000;
const PAGE_MAX: usize = 1_000;
