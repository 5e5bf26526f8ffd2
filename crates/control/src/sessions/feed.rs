//! One follower of the directory, which remembers how far it is in the log of each service and nothing of keys: all keys of
//! a service first, in pieces, then what changes. For the stream of a data plane it speaks delta discovery.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use phalanx_client::session::{SEAT_TYPE, SHELF_TYPE};
use phalanx_model::ServiceName;
use phalanx_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource,
};
use phalanx_proto::phalanx::sessions::v1 as wire;
use prost::Message;
use prost_types::Any;
use tokio::sync::watch;
use tonic::Status;

use super::board::{Board, Session};
use super::record::service_of;
use super::{Shared, lock};

pub struct Feed {
    shared: Arc<Shared>,
    ticks: watch::Receiver<u64>,
    subscriptions: Vec<Subscription>,
    /// Which is looked at first.
    turn: usize,
    nonce: u64,
}

struct Subscription {
    service: ServiceName,
    at: At,
}

enum At {
    /// All keys are yet to be told, behind this one; and then what came since the position.
    Filling {
        behind: Option<Arc<str>>,
        began: bool,
        position: u64,
    },
    Following(u64),
}

/// Something to tell.
pub struct Step {
    pub service: ServiceName,
    pub begins: bool,
    pub complete: bool,
    pub changed: Vec<Session>,
    pub removed: Vec<Arc<str>>,
    /// Where to go on from here, in another life of the follower.
    pub place: String,
}

impl Feed {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            ticks: shared.ticks.subscribe(),
            shared,
            subscriptions: Vec::new(),
            turn: 0,
            nonce: 0,
        }
    }

    /// Takes a request of this type: names `<namespace>/<service>/*`, with what is held of them from an earlier stream.
    ///
    /// # Errors
    /// A status to end the stream with.
    pub fn on_request(&mut self, request: &DeltaDiscoveryRequest) -> Result<(), Status> {
        if let Some(error) = &request.error_detail {
            tracing::warn!(error = %error.message, "a data plane refused sessions");
        }
        for name in &request.resource_names_unsubscribe {
            let service = named(name)?;
            self.subscriptions.retain(|held| held.service != service);
        }
        for name in &request.resource_names_subscribe {
            let place = request.initial_resource_versions.get(name);
            self.subscribe(named(name)?, place.map(String::as_str))?;
        }
        Ok(())
    }

    /// `place`: of an earlier life.
    pub(super) fn subscribe(
        &mut self,
        service: ServiceName,
        place: Option<&str>,
    ) -> Result<(), Status> {
        self.subscriptions.retain(|held| held.service != service);
        if self.subscriptions.len() >= SERVICES_MAX {
            return Err(Status::resource_exhausted(format!(
                "sessions of more than {SERVICES_MAX} services are asked for"
            )));
        }
        let board = lock(&self.shared.board);
        let before = place.and_then(|place| position(&board, place));
        let before = before.filter(|from| board.news(&service, *from, 0).is_some());
        let at = match before {
            Some(position) => At::Following(position),
            None => start(&board, &service),
        };
        drop(board);
        self.subscriptions.push(Subscription { service, at });
        Ok(())
    }

    /// Waits until there may be something to tell; for ever where nothing is asked for.
    pub async fn changed(&mut self) {
        if self.subscriptions.is_empty() || self.ticks.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The next message to a data plane, if there is something to tell.
    pub fn tell(&mut self) -> Option<DeltaDiscoveryResponse> {
        let step = self.step()?;
        self.nonce += 1;
        self.shared.counts.pushed.fetch_add(1, Ordering::Relaxed);
        Some(response(step, self.nonce))
    }

    pub(super) fn step(&mut self) -> Option<Step> {
        if self.subscriptions.is_empty() {
            return None;
        }
        // Before it is looked: what changes meanwhile is looked at again.
        self.ticks.mark_unchanged();
        let board = lock(&self.shared.board);
        let count = self.subscriptions.len();
        for turn in 0..count {
            let index = (self.turn + turn) % count;
            let Some(subscription) = self.subscriptions.get_mut(index) else {
                continue;
            };
            if let Some(step) = subscription.step(&board) {
                self.turn = (index + 1) % count;
                return Some(step);
            }
        }
        None
    }
}

impl Subscription {
    fn step(&mut self, board: &Board) -> Option<Step> {
        let service = &self.service;
        if let At::Following(position) = self.at {
            match board.news(service, position, STEP_MAX) {
                Some(news) if news.changes.is_empty() => return None,
                Some(news) => {
                    self.at = At::Following(news.position);
                    let mut step = Step::of(service, board, news.position);
                    for (key, session) in news.changes {
                        match session {
                            Some(session) => step.changed.push(session),
                            None => step.removed.push(key),
                        }
                    }
                    return Some(step);
                }
                None => self.at = start(board, service),
            }
        }
        let At::Filling {
            behind,
            began,
            position,
        } = &mut self.at
        else {
            return None;
        };
        let (page, more) = board.page(service, behind.as_deref(), STEP_MAX);
        // What changed since the beginning follows.
        let mut step = Step::of(service, board, *position);
        (step.begins, step.complete) = (!std::mem::replace(began, true), !more);
        *behind = page.last().map(|session| session.id.key.clone());
        step.changed = page;
        if !more {
            self.at = At::Following(*position);
        } else {
            // Half of it is nothing to go on from.
            step.place = String::new();
        }
        Some(step)
    }
}

impl Step {
    fn of(service: &ServiceName, board: &Board, position: u64) -> Self {
        Self {
            service: service.clone(),
            begins: false,
            complete: false,
            changed: Vec::new(),
            removed: Vec::new(),
            place: format!("{:x}:{position}", board.token),
        }
    }
}

fn start(board: &Board, service: &ServiceName) -> At {
    At::Filling {
        behind: None,
        began: false,
        position: board.position(service),
    }
}

/// None: of another process.
fn position(board: &Board, place: &str) -> Option<u64> {
    let (token, position) = place.split_once(':')?;
    let is_ours = u64::from_str_radix(token, 16) == Ok(board.token);
    position.parse().ok().filter(|_| is_ours)
}

fn named(name: &str) -> Result<ServiceName, Status> {
    let parts = name
        .strip_suffix("/*")
        .and_then(|parts| parts.split_once('/'));
    let service = parts.and_then(|(namespace, service)| service_of(namespace, service).ok());
    service.ok_or_else(|| {
        let name: String = name.chars().take(NAME_SHOWN).collect();
        Status::invalid_argument(format!(
            "sessions are asked for as `<namespace>/<service>/*`, not as `{name}`"
        ))
    })
}

fn response(step: Step, nonce: u64) -> DeltaDiscoveryResponse {
    let prefix = format!("{}/{}/", step.service.namespace, step.service.name);
    let shelf = Resource {
        name: format!("{prefix}*"),
        version: step.place,
        resource: Some(any(
            SHELF_TYPE,
            &wire::Shelf {
                begins: step.begins,
                complete: step.complete,
            },
        )),
        ..Default::default()
    };
    let seat = |session: Session| Resource {
        name: format!("{prefix}{}", session.id.key),
        version: session.held.epoch.to_string(),
        resource: Some(any(SEAT_TYPE, &seat(&session))),
        ..Default::default()
    };
    let removed = step.removed.iter().map(|key| format!("{prefix}{key}"));
    DeltaDiscoveryResponse {
        resources: std::iter::once(shelf)
            .chain(step.changed.into_iter().map(seat))
            .collect(),
        type_url: SEAT_TYPE.to_owned(),
        removed_resources: removed.collect(),
        nonce: format!("s{nonce}"),
        ..Default::default()
    }
}

fn seat(session: &Session) -> wire::Seat {
    let addresses = session.addresses.iter().flat_map(|addresses| &**addresses);
    wire::Seat {
        instance: session.held.instance.to_string(),
        epoch: session.held.epoch,
        addresses: addresses.map(ToString::to_string).collect(),
    }
}

fn any(type_url: &str, message: &impl Message) -> Any {
    Any {
        type_url: type_url.to_owned(),
        value: message.encode_to_vec(),
    }
}

/// Services that one stream follows.
const SERVICES_MAX: usize = 256;
/// Keys in one message.
const STEP_MAX: usize = 1_000;
/// Of a name that is none.
const NAME_SHOWN: usize = 128;
