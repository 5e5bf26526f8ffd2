//! Whether this instance is to take new sessions. The mesh tells no application that it is drained, so it is asked in the way
//! that answers everybody who speaks for the service: a claim that can't succeed (an epoch that no seat has) is refused because of
//! the epoch while the instance accepts, and because of its state when it drains. Nothing is stored by it. Details of the drain
//! come from the control plane's API, for whoever may look there.

use std::time::Duration;

use phalanx_client::admin::Admin;
use phalanx_client::session::{SessionError, Sessions};
use phalanx_model::ServiceName;
use tokio::sync::watch::Sender;
use tokio::time::{Instant as Time, MissedTickBehavior, interval};
use tonic::Code;
use tracing::{debug, info};

use super::seats::code;
use crate::session::{Instance, Order, PER_SECOND};

/// How often is asked.
const ASK: Duration = Duration::from_secs(1);
/// A key that nobody has, and that is never taken.
const PROBE: &str = "phalanx-drain-probe";
/// An epoch that no seat has.
const NEVER: u64 = u64::MAX;
/// Two answers that tell deadlines so near are the same.
const NEAR: Duration = Duration::from_secs(2);

/// Whether new sessions come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// Not asked yet, or there was never an answer.
    Unknown,
    Accepting,
    /// An operator drains it, or its sidecar stops.
    Draining(DrainOrder),
    /// The control plane does not know it: it counts as gone.
    Unregistered,
}

/// What is known of a drain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DrainOrder {
    /// None: there is none, or it is not known.
    pub deadline: Option<Time>,
    /// Clients sent away in a second; none: not known.
    pub per_second: Option<u32>,
    /// What the control plane does with sessions that are there at the deadline.
    pub handover: Option<Handover>,
    /// Who drains it.
    pub author: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handover {
    /// They stay until the instance is gone.
    None,
    /// To instances that accept.
    Move,
    /// To whoever claims them.
    Release,
}

impl DrainOrder {
    /// As a [`Drain`](crate::session::Drain) takes it.
    pub fn order(&self) -> Order {
        Order {
            deadline: self
                .deadline
                .map(|deadline| deadline.saturating_duration_since(Time::now())),
            per_second: self.per_second.unwrap_or(PER_SECOND),
        }
    }

    fn is_like(&self, other: &Self) -> bool {
        let near = match (self.deadline, other.deadline) {
            (Some(one), Some(two)) => one.max(two) - one.min(two) < NEAR,
            (one, two) => one == two,
        };
        near && (self.per_second, self.handover, &self.author)
            == (other.per_second, other.handover, &other.author)
    }
}

/// Until nobody listens.
pub async fn follow(
    mut sessions: Sessions,
    service: ServiceName,
    instance: Instance,
    admin: Option<Admin>,
    said: Sender<Traffic>,
) {
    let mut ticks = interval(ASK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !said.is_closed() {
        ticks.tick().await;
        let asked = sessions.claim(&service, PROBE, instance.as_str(), NEVER, None);
        let now = match asked.await {
            Ok(_) | Err(SessionError::Conflict(_)) => Traffic::Accepting,
            Err(error) => match code(&error) {
                Some(Code::FailedPrecondition) => {
                    let order = match &admin {
                        Some(admin) => ask(admin, &service, &instance).await,
                        None => Some(DrainOrder::default()),
                    };
                    match (order, &*said.borrow()) {
                        (Some(order), _) => Traffic::Draining(order),
                        // The details that were known stay until others are.
                        (None, Traffic::Draining(known)) => Traffic::Draining(known.clone()),
                        (None, _) => Traffic::Draining(DrainOrder::default()),
                    }
                }
                Some(Code::NotFound) => Traffic::Unregistered,
                _ => {
                    debug!(%service, %error, "whether to take sessions is not known, asking again");
                    continue;
                }
            },
        };
        said.send_if_modified(|known| {
            let is_same = match (&*known, &now) {
                (Traffic::Draining(known), Traffic::Draining(now)) => known.is_like(now),
                (known, now) => known == now,
            };
            if !is_same {
                info!(%service, %instance, traffic = ?now, "traffic");
                *known = now;
            }
            !is_same
        });
    }
}

/// None: there was no answer. A sidecar that stops is in no list of drains.
async fn ask(admin: &Admin, service: &ServiceName, instance: &Instance) -> Option<DrainOrder> {
    let drains = match admin.drains().await {
        Ok(drains) => drains,
        Err(error) => {
            debug!(%error, "the details of a drain are not known");
            return None;
        }
    };
    let is_ours = |drain: &phalanx_client::api::DrainView| {
        drain.namespace == service.namespace
            && drain.service == service.name
            && drain.id == instance.as_str()
    };
    let Some(drain) = drains.items.into_iter().find(is_ours) else {
        return Some(DrainOrder::default());
    };
    Some(DrainOrder {
        deadline: drain
            .left_ms
            .map(|left| Time::now() + Duration::from_millis(left)),
        per_second: drain.reconnects_per_second,
        handover: match drain.handover.as_str() {
            "none" => Some(Handover::None),
            "move" => Some(Handover::Move),
            "release" => Some(Handover::Release),
            _ => None,
        },
        author: Some(drain.author).filter(|author| !author.is_empty()),
    })
}
