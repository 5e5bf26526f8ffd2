//! What operators do: drain an instance, let a held service go. Stored, with who did it in the history, so that every
//! control plane acts on it and a restart forgets nothing.

use std::collections::HashMap;
use std::time::Duration;

use phalanx_model::instance::State;
use phalanx_model::{InstanceId, ServiceName};
use phalanx_store::{Error, Revision, Txn};
use tokio::time::Instant;

use super::Registry;
use crate::admit::unix_ms;
use crate::world::World;
use crate::world::record::{
    DrainRecord, Handover, HistoryRecord, ReleaseRecord, drain_key, history_key, release_key,
};

/// How an instance shall drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drain {
    /// New sessions go elsewhere; after `grace` the others, too. None: when its sessions have left by themselves.
    Begin {
        grace: Option<Duration>,
        /// What then becomes of its sessions in the directory, and how many of them in a second; none: nothing.
        handover: Option<(Handover, Option<u32>)>,
    },
    /// It takes traffic again, if it wants to.
    Undo,
}

#[derive(Debug, thiserror::Error)]
pub enum OperateError {
    #[error("no instance {0} is registered")]
    Unknown(InstanceId),
    #[error("{0} is not being drained")]
    NotDrained(InstanceId),
    #[error("nothing of {0} is held")]
    NothingHeld(ServiceName),
    #[error("{DRAINS_MAX} instances are being drained, no more are taken")]
    TooMany,
    #[error("it could not be stored")]
    Store(#[source] Error),
}

impl Registry {
    /// # Errors
    /// [`OperateError`]: nothing changed.
    pub async fn drain(
        &self,
        id: &InstanceId,
        drain: Drain,
        author: &str,
    ) -> Result<Revision, OperateError> {
        let world = self.inner.worlds.borrow().clone();
        let is_known = world.instances.get(id).is_some();
        let (txn, message) = match drain {
            Drain::Begin { .. } if !is_known => return Err(OperateError::Unknown(id.clone())),
            Drain::Undo if !world.drains.contains_key(id) => {
                return Err(OperateError::NotDrained(id.clone()));
            }
            Drain::Undo => (Txn::new().delete(drain_key(id)), format!("undrain {id}")),
            Drain::Begin { grace, handover } => {
                let at_once = grace.is_some_and(|grace| grace.is_zero()) && handover.is_none();
                let state = if at_once {
                    State::Drained
                } else {
                    State::Draining
                };
                let record = DrainRecord {
                    since: unix_ms(),
                    author: author.to_owned(),
                    state: state.as_str().to_owned(),
                    grace_ms: grace.map(|grace| grace.as_millis() as u64),
                    handover: handover.map(|(what, _)| what.as_str().to_owned()),
                    reconnects_per_second: handover.and_then(|(_, rate)| rate),
                };
                let value = serde_json::to_vec(&record).unwrap_or_default();
                let mut txn = Txn::new().put(drain_key(id), value);
                if world.drains.len() >= DRAINS_MAX && !world.drains.contains_key(id) {
                    let absent = longest_absent(&world);
                    if absent.is_empty() {
                        return Err(OperateError::TooMany);
                    }
                    for gone in &absent {
                        txn = txn.delete(drain_key(gone));
                    }
                    let drains = absent.len();
                    tracing::warn!(drains, "forgotten, of instances that did not come back");
                }
                (txn, format!("drain {id}"))
            }
        };
        tracing::info!(author, "{message}");
        self.record(txn, author, message).await
    }

    /// Lets the held instances of a service go, on every control plane. Answers how many this one holds.
    ///
    /// # Errors
    /// [`OperateError`]: nothing changed.
    pub async fn release(
        &self,
        service: &ServiceName,
        author: &str,
    ) -> Result<(Revision, Vec<InstanceId>), OperateError> {
        let held = self.leases().held();
        let here: Vec<InstanceId> = held
            .into_iter()
            .map(|(id, _)| id)
            .filter(|id| id.service == *service)
            .collect();
        // What the others hold is theirs to know.
        let is_alone = self.inner.worlds.borrow().planes.len() <= 1;
        // What was found in an etcd is held elsewhere.
        let is_imported = self
            .inner
            .worlds
            .borrow()
            .instances
            .service(service)
            .is_some_and(|of| of.values().any(|registered| registered.is_imported()));
        let is_known = self
            .inner
            .worlds
            .borrow()
            .instances
            .service(service)
            .is_some();
        if !is_known || (here.is_empty() && is_alone && !is_imported) {
            return Err(OperateError::NothingHeld(service.clone()));
        }
        let record = ReleaseRecord {
            time: unix_ms(),
            author: author.to_owned(),
        };
        let value = serde_json::to_vec(&record).unwrap_or_default();
        let txn = Txn::new().put(release_key(service), value);
        let message = format!("release {service}");
        tracing::warn!(author, held = here.len(), "{message}");
        let revision = self.record(txn, author, message).await?;
        Ok((revision, here))
    }

    /// Together with an entry in the history.
    async fn record(
        &self,
        txn: Txn,
        author: &str,
        message: String,
    ) -> Result<Revision, OperateError> {
        let record = HistoryRecord {
            time: unix_ms(),
            author: author.to_owned(),
            message,
            ..HistoryRecord::default()
        };
        let value = serde_json::to_vec(&record).unwrap_or_default();
        let mut tries = 0;
        loop {
            let sequence = self.inner.worlds.borrow().sequence + 1;
            let entry = history_key(sequence);
            let txn = txn
                .clone()
                .expect_absent(entry.clone())
                .put(entry, value.clone());
            match self.inner.store.commit(txn).await {
                Ok(revision) => {
                    self.catch_up(Some(revision)).await;
                    return Ok(revision);
                }
                Err(Error::Conflict { found, .. }) if tries < HISTORY_TRIES => {
                    tries += 1;
                    self.catch_up(found).await;
                }
                Err(error) => return Err(OperateError::Store(error)),
            }
        }
    }

    /// Ends the drains of our own instances whose grace is over.
    pub(super) async fn end_graces(&self, graces: &mut Graces, world: &World) {
        let over = graces.over(world, |id| self.leases().contains(id));
        for id in over {
            if let Err(error) = self.end_grace(&id).await {
                tracing::warn!(instance = %id, %error, "its grace is over, but that can't be stored yet");
            }
        }
    }

    async fn end_grace(&self, id: &InstanceId) -> Result<(), Error> {
        let key = drain_key(id);
        let Some(entry) = self.inner.store.get(&key).await? else {
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
        match self.inner.store.commit(txn).await {
            // An operator was faster.
            Ok(_) | Err(Error::Conflict { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Of the drained that are not registered, those that were drained first.
pub(super) fn longest_absent(world: &World) -> Vec<InstanceId> {
    let drains = world.drains.iter();
    let absent = drains.filter(|(id, _)| world.instances.get(id).is_none());
    let mut absent: Vec<_> = absent.map(|(id, drain)| (drain.since, id)).collect();
    absent.sort_unstable();
    let first = absent.into_iter().take(FORGOTTEN_AT_ONCE);
    first.map(|(_, id)| id.clone()).collect()
}

/// Since when instances drain, as this process saw it: a clock that jumps shortens no grace.
#[derive(Default)]
pub struct Graces(HashMap<InstanceId, Instant>);

impl Graces {
    fn over(&mut self, world: &World, is_ours: impl Fn(&InstanceId) -> bool) -> Vec<InstanceId> {
        if world.drains.is_empty() {
            self.0.clear();
            return Vec::new();
        }
        let now = Instant::now();
        let waiting = world.drains.iter().filter_map(|(id, drain)| {
            let grace = drain
                .grace_ms
                .filter(|_| drain.state() == State::Draining && drain.hands_over().is_none())?;
            Some((id, Duration::from_millis(grace)))
        });
        let mut since = HashMap::new();
        let mut over = Vec::new();
        for (id, grace) in waiting.filter(|(id, _)| is_ours(id)) {
            let began = self.0.get(id).copied().unwrap_or(now);
            // Tried again a while later, should it not be stored.
            let is_over = now >= began + grace;
            since.insert(id.clone(), if is_over { now } else { began });
            if is_over {
                over.push(id.clone());
            }
        }
        self.0 = since;
        over
    }
}

/// Those of instances that did not come back make room when there are more.
const DRAINS_MAX: usize = 10_000;
const FORGOTTEN_AT_ONCE: usize = 32;
const HISTORY_TRIES: usize = 5;
