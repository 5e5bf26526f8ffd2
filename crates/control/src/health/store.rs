//! Brings verdicts to the store, and only what differs: under one lease of this process, so that what it said goes with it.

use std::collections::BTreeMap;
use std::time::Duration;

use phalanx_client::health::State;
use phalanx_store::{Error, LeaseId, Store, Txn};
use tokio::time::Instant;

use super::Key;
use super::board::Board;
use crate::world::record::health_key;
use crate::world::{Verdict, World};

pub struct Keeper {
    store: Store,
    lease: Option<(LeaseId, Instant)>,
    /// What was stored under the lease, and at which revision.
    written: BTreeMap<Key, (Verdict, u64)>,
}

/// What the store should say and does not.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    puts: Vec<(Key, Verdict)>,
    deletes: Vec<Key>,
}

impl Keeper {
    pub fn new(store: Store) -> Self {
        Self {
            store,
            lease: None,
            written: BTreeMap::new(),
        }
    }

    /// Compares the board with what is stored. `is_gone` tells whether an endpoint that the board says nothing of is nobody's
    /// any more.
    pub fn plan(&mut self, board: &Board, world: &World, is_gone: impl Fn(&Key) -> bool) -> Plan {
        self.written
            .retain(|key, _| board.state(key) == State::Unhealthy);
        let puts = board.unhealthy().filter(|(key, verdict)| {
            let Some((written, at)) = self.written.get(*key) else {
                return true;
            };
            // Another control plane may have taken it back meanwhile, thinking that it was its own to judge.
            let is_there = world.revision < *at || world.verdict(&key.0, &key.1).is_some();
            written != verdict || !is_there
        });
        let puts = puts.map(|(key, verdict)| (key.clone(), verdict)).collect();
        let stored = world
            .health
            .iter()
            .flat_map(|(service, of)| of.keys().map(move |address| (service.clone(), *address)));
        let deletes = stored.filter(|key| match board.state(key) {
            State::Unhealthy => false,
            State::Healthy => true,
            State::Unknown => is_gone(key),
        });
        Plan {
            deletes: deletes.collect(),
            puts,
        }
    }

    /// Makes the store say it. Returns how many transactions failed; the next plan has what they held.
    pub async fn keep(&mut self, plan: Plan) -> u64 {
        if let Err(error) = self.keep_alive().await {
            tracing::warn!(%error, "the lease of health verdicts could not be kept");
            return 1;
        }
        let Plan { puts, deletes } = plan;
        let (puts, deletes) = (self.put(puts).await, self.delete(deletes).await);
        let failures = [puts, deletes].into_iter().filter_map(Result::err);
        let failures = failures.map(|error| {
            tracing::warn!(%error, "health verdicts could not be stored");
            if matches!(error, Error::LeaseNotFound { .. }) {
                self.forget();
            }
        });
        failures.count() as u64
    }

    async fn put(&mut self, puts: Vec<(Key, Verdict)>) -> Result<(), Error> {
        if puts.is_empty() {
            return Ok(());
        }
        let lease = match self.lease {
            Some((lease, _)) => lease,
            None => {
                let lease = self.store.grant(LEASE_TTL).await?;
                self.lease = Some((lease, Instant::now()));
                lease
            }
        };
        for batch in puts.chunks(self.batch()) {
            let mut txn = Txn::new();
            for ((service, address), verdict) in batch {
                let value = serde_json::to_vec(verdict).unwrap_or_default();
                txn = txn.put_leased(health_key(service, address), value, lease);
            }
            let at = self.store.commit(txn).await?;
            let written = batch.iter().cloned();
            self.written
                .extend(written.map(|(key, verdict)| (key, (verdict, at))));
        }
        Ok(())
    }

    async fn delete(&mut self, deletes: Vec<Key>) -> Result<(), Error> {
        for batch in deletes.chunks(self.batch()) {
            let mut txn = Txn::new();
            for (service, address) in batch {
                txn = txn.delete(health_key(service, address));
            }
            self.store.commit(txn).await?;
        }
        Ok(())
    }

    async fn keep_alive(&mut self) -> Result<(), Error> {
        let Some((lease, at)) = self.lease else {
            return Ok(());
        };
        if at.elapsed() < LEASE_TTL / 3 {
            return Ok(());
        }
        match self.store.keep_alive(lease).await {
            Ok(_) => self.lease = Some((lease, Instant::now())),
            // A new one is taken with the next verdict, and everything is stored again.
            Err(Error::LeaseNotFound { .. }) => self.forget(),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn forget(&mut self) {
        self.lease = None;
        self.written.clear();
    }

    fn batch(&self) -> usize {
        BATCH_MAX.min(self.store.limits().txn_ops_max).max(1)
    }
}

/// After this process is gone, what it said is forgotten within it.
const LEASE_TTL: Duration = Duration::from_secs(15);
/// Verdicts of one transaction.
const BATCH_MAX: usize = 256;
