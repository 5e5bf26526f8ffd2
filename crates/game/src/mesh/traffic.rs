//! Whether this instance is to take new sessions: what the registry has of it, which tells each change as it comes. Details
//! of a drain are in the control plane's API, for whoever may look there; they are asked for while it lasts.

use std::time::Duration;

use phalanx_client::admin::Admin;
use phalanx_client::backoff::Backoff;
use phalanx_client::channel::Control;
use phalanx_client::registry::{Update, Watch};
use phalanx_model::instance::State;
use phalanx_model::{InstanceId, ServiceName};
use tokio::sync::watch::Sender;
use tokio::time::{Instant as Time, MissedTickBehavior, interval, sleep, timeout};
use tracing::{debug, info};

use crate::session::{Instance, Order, PER_SECOND};

/// How often the details of a drain are asked for: an operator may change its deadline.
const ASK: Duration = Duration::from_secs(1);
/// How long they are waited for: what the registry says of the drain waits with them.
const DETAILS_MAX: Duration = Duration::from_secs(2);
/// Waits between attempts to follow.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);
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
        let now = Time::now();
        let near = match (self.deadline, other.deadline) {
            // None is left: "now" in each answer.
            (Some(one), Some(two)) if one.max(two) <= now => true,
            (Some(one), Some(two)) => one.max(two) - one.min(two) < NEAR,
            (one, two) => one == two,
        };
        near && (self.per_second, self.handover, &self.author)
            == (other.per_second, other.handover, &other.author)
    }
}

/// Follows one instance until nobody listens. While the registry can't be followed, what was known last stays.
pub async fn follow(
    control: Control,
    service: ServiceName,
    instance: Instance,
    admin: Option<Admin>,
    said: Sender<Traffic>,
) {
    let id = InstanceId {
        service,
        id: instance.as_str().to_owned(),
    };
    let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
    while !said.is_closed() {
        let broke = match Watch::open_one(control.channel(), &id).await {
            Ok(watch) => hear(watch, &id, admin.as_ref(), &said, &mut backoff).await,
            Err(error) => error.to_string(),
        };
        debug!(instance = %id, error = broke, "whether to take sessions is not followed, trying again");
        sleep(backoff.wait()).await;
    }
}

/// Why it ended.
async fn hear(
    mut watch: Watch,
    id: &InstanceId,
    admin: Option<&Admin>,
    said: &Sender<Traffic>,
    backoff: &mut Backoff,
) -> String {
    let mut asks = interval(ASK);
    asks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut state = None;
    loop {
        let is_draining = matches!(state, Some(State::Draining | State::Drained));
        tokio::select! {
            () = said.closed() => return "nobody listens".to_owned(),
            update = watch.next() => match update {
                Ok(Some(update)) => {
                    backoff.reset();
                    state = now(update, id, state);
                    asks.reset();
                }
                Ok(None) => return "it ended".to_owned(),
                Err(error) => return error.to_string(),
            },
            _ = asks.tick(), if is_draining && admin.is_some() => {}
        }
        let traffic = match state {
            None => Traffic::Unregistered,
            Some(State::Accepting | State::NotReady) => Traffic::Accepting,
            Some(State::Draining | State::Drained) => {
                let order = match admin {
                    Some(admin) => ask(admin, id).await,
                    None => Some(DrainOrder::default()),
                };
                match (order, &*said.borrow()) {
                    (Some(order), _) => Traffic::Draining(order),
                    // The details that were known stay until others are.
                    (None, Traffic::Draining(known)) => Traffic::Draining(known.clone()),
                    (None, _) => Traffic::Draining(DrainOrder::default()),
                }
            }
        };
        say(said, id, traffic);
    }
}

/// What is in force by an update; none: it is not registered.
fn now(update: Update, id: &InstanceId, before: Option<State>) -> Option<State> {
    let mut told = update.upserted.iter().zip(&update.states);
    match told.rfind(|(instance, _)| instance.id == *id) {
        Some((_, state)) => Some(*state),
        None if update.full || update.removed.contains(id) => None,
        None => before,
    }
}

fn say(said: &Sender<Traffic>, id: &InstanceId, now: Traffic) {
    said.send_if_modified(|known| {
        let is_same = match (&*known, &now) {
            (Traffic::Draining(known), Traffic::Draining(now)) => known.is_like(now),
            (known, now) => known == now,
        };
        if !is_same {
            info!(instance = %id, traffic = ?now, "traffic");
            *known = now;
        }
        !is_same
    });
}

/// None: there was no answer. A sidecar that stops is in no list of drains.
async fn ask(admin: &Admin, id: &InstanceId) -> Option<DrainOrder> {
    let drains = match timeout(DETAILS_MAX, admin.drains()).await {
        Ok(Ok(drains)) => drains,
        Err(_) => {
            debug!("the control plane does not say what the drain is like, asking again");
            return None;
        }
        Ok(Err(error)) => {
            debug!(%error, "the details of a drain are not known");
            return None;
        }
    };
    let is_ours = |drain: &phalanx_client::api::DrainView| {
        drain.namespace == id.service.namespace
            && drain.service == id.service.name
            && drain.id == id.id
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_deadline_that_has_passed_is_not_news_again_and_again() {
        let until = |deadline| DrainOrder {
            deadline: Some(deadline),
            ..DrainOrder::default()
        };
        let begun = Time::now();
        let order = until(begun + Duration::from_secs(2));
        assert!(order.is_like(&until(begun + Duration::from_secs(1))));
        assert!(!order.is_like(&until(begun + Duration::from_secs(4))));
        tokio::time::advance(Duration::from_secs(9)).await;
        // The control plane says that nothing is left, ever anew.
        assert!(order.is_like(&until(Time::now())));
        assert!(!order.is_like(&until(Time::now() + Duration::from_secs(9))));
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_that_never_answers_holds_up_no_drain() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let admin = Admin::new(&silent.local_addr().unwrap().to_string());
        let id = InstanceId {
            service: ServiceName::new("default", "battle"),
            id: "battle-1".to_owned(),
        };
        let begun = Time::now();
        assert_eq!(ask(&admin, &id).await, None);
        assert!(begun.elapsed() < 2 * DETAILS_MAX, "{:?}", begun.elapsed());
    }
}
