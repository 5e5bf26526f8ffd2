//! What time does to sessions: those of an instance that is away are let go after a while, those with a time to live when
//! that is over, and those of an instance whose drain is at its deadline are handed over, no faster than may be.
//!
//! Clocks are this process's own: a restart grants everybody the whole time again. Where several control planes do the same,
//! each change is under the condition that nothing else happened meanwhile.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use phalanx_model::InstanceId;
use phalanx_model::instance::State;
use phalanx_store::{Error, Txn};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::record::SessionId;
use super::writer::{Ask, Job};
use super::{Sessions, bump};
use crate::world::World;
use crate::world::record::{DrainRecord, Handover, drain_key};

/// A drain that is this control plane's to end.
struct Due {
    began: Instant,
    /// Since when nothing is left.
    empty_since: Option<Instant>,
    /// Changes that it may make by now.
    budget: f64,
    at: Instant,
    /// It was said that nobody takes them.
    told: bool,
}

impl Sessions {
    pub(super) async fn tend(&self, plane: &str) {
        let mut worlds = self.worlds.clone();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut drains = HashMap::new();
        loop {
            let is_tick = tokio::select! {
                changed = worlds.changed() => match changed {
                    Ok(()) => false,
                    Err(_) => return std::future::pending().await,
                },
                _ = ticks.tick() => true,
            };
            let world = worlds.borrow_and_update().clone();
            let now = Instant::now();
            if self.board().move_in(&world.instances, now) {
                self.shared.tick();
            }
            if is_tick {
                self.let_go(now);
                self.end_drains(&mut drains, &world, plane, now).await;
            }
        }
    }

    fn let_go(&self, now: Instant) {
        let over = {
            let mut board = self.board();
            let mut over = board.abandoned(AWAY_MAX, now, AT_ONCE);
            // Until it is deleted; the store may not take it now.
            over.extend(board.expired(now, now + AGAIN, AT_ONCE));
            over
        };
        for (id, modified) in over {
            let release = Ask::Release {
                expected: 0,
                at: Some(modified),
            };
            if self.ask(id, release) {
                bump(&self.shared.counts.dropped);
            }
        }
    }

    /// Without waiting for an answer: what is not done is done again.
    fn ask(&self, id: SessionId, ask: Ask) -> bool {
        let (job, _) = Job::new(id, ask);
        match self.jobs.try_send(job) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(_) | mpsc::error::TrySendError::Closed(_)) => false,
        }
    }

    async fn end_drains(
        &self,
        drains: &mut HashMap<InstanceId, Due>,
        world: &World,
        plane: &str,
        now: Instant,
    ) {
        let is_ours = |id: &InstanceId| {
            let registered = world.instances.get(id);
            registered.is_some_and(|registered| registered.plane == plane)
        };
        let open =
            |drain: &DrainRecord| drain.state() == State::Draining && drain.hands_over().is_some();
        drains.retain(|id, _| world.drains.get(id).is_some_and(|drain| open(drain)) && is_ours(id));
        for (id, drain) in world.drains.iter() {
            let Some(handover) = drain.hands_over().filter(|_| open(drain) && is_ours(id)) else {
                continue;
            };
            let due = drains.entry(id.clone()).or_insert(Due {
                began: now,
                empty_since: None,
                budget: 1.0,
                at: now,
                told: false,
            });
            let (uses, left) = {
                let board = self.board();
                (board.has(&id.service), board.count_of(id))
            };
            let deadline = drain.grace_ms.map(Duration::from_millis);
            let is_over = deadline.is_some_and(|grace| now >= due.began + grace);
            due.empty_since = match left {
                0 => due.empty_since.or(Some(now)),
                _ => None,
            };
            if is_over && left > 0 {
                self.hand_over(id, due, drain, handover, world, now);
                continue;
            }
            let is_empty = due
                .empty_since
                .is_some_and(|since| now >= since + EMPTY_FOR);
            if ((is_over && left == 0) || (uses && is_empty))
                && let Err(error) = self.drained(id).await
            {
                tracing::warn!(instance = %id, %error, "it is drained, but that can't be stored yet");
            }
        }
    }

    fn hand_over(
        &self,
        id: &InstanceId,
        due: &mut Due,
        drain: &DrainRecord,
        handover: Handover,
        world: &World,
        now: Instant,
    ) {
        let rate = f64::from(drain.reconnects_per_second.unwrap_or(RECONNECTS).max(1));
        // What could not be made use of is not saved up.
        due.budget =
            (due.budget + now.duration_since(due.at).as_secs_f64() * rate).min(rate.max(1.0));
        due.at = now;
        let most = due.budget as usize;
        // Read at once: what has come to be another's since is left alone.
        let keys = self.board().stored_of(id, most.min(AT_ONCE));
        let mut heirs = match handover {
            Handover::Move => self.heirs(id, world),
            Handover::Release => Vec::new(),
        };
        if handover == Handover::Move && heirs.is_empty() {
            if !std::mem::replace(&mut due.told, true) {
                tracing::warn!(instance = %id, "its deadline is over, and no other instance takes its sessions: it keeps them");
            }
            return;
        }
        for (key, modified) in keys {
            let ask = match heirs.iter_mut().min_by_key(|(count, _)| *count) {
                Some((count, heir)) => {
                    *count += 1;
                    Ask::Move {
                        to: heir.clone(),
                        expected: 0,
                        from: Some(id.id.as_str().into()),
                    }
                }
                None => Ask::Release {
                    expected: 0,
                    at: Some(modified),
                },
            };
            if !self.ask(key, ask) {
                return;
            }
            due.budget -= 1.0;
            bump(&self.shared.counts.handed_over);
        }
    }

    /// Who takes sessions of the same service, with how many it has.
    fn heirs(&self, id: &InstanceId, world: &World) -> Vec<(usize, Arc<str>)> {
        let instances = world.instances.service(&id.service);
        let others = instances
            .into_iter()
            .flat_map(|instances| instances.values());
        let others =
            others.filter(|other| other.state == State::Accepting && other.instance.id != *id);
        let board = self.board();
        let heir = |other: &InstanceId| (board.count_of(other), other.id.as_str().into());
        others.map(|other| heir(&other.instance.id)).collect()
    }

    async fn drained(&self, id: &InstanceId) -> Result<(), Error> {
        let key = drain_key(id);
        let Some(entry) = self.store.get(&key).await? else {
            return Ok(());
        };
        let Ok(mut record) = serde_json::from_slice::<DrainRecord>(&entry.value) else {
            return Ok(());
        };
        record.state = State::Drained.as_str().to_owned();
        let value = serde_json::to_vec(&record).unwrap_or_default();
        let txn = Txn::new()
            .expect_modified(key.clone(), entry.modified)
            .put(key, value);
        match self.store.commit(txn).await {
            Ok(_) => {
                tracing::info!(instance = %id, "drained");
                Ok(())
            }
            // An operator was faster.
            Err(Error::Conflict { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

const TICK: Duration = Duration::from_millis(100);
/// How long an instance may be away before its sessions are let go.
pub const AWAY_MAX: Duration = Duration::from_secs(60);
/// Changes asked for in one tick.
const AT_ONCE: usize = 1_000;
const AGAIN: Duration = Duration::from_secs(1);
/// Without sessions for so long: drained before its deadline.
const EMPTY_FOR: Duration = Duration::from_secs(1);
/// Sessions handed over in a second, where nothing is said.
const RECONNECTS: u32 = 100;
