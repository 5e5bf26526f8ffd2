//! When leases end. Only TTLs are on disk: after a restart each lease has one whole TTL, because nobody could keep it
//! alive while nobody listened. Time is tokio's, monotonic.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::Instant;

use crate::LeaseId;

#[derive(Debug, Default)]
pub struct Leases {
    granted: BTreeMap<LeaseId, Lease>,
    order: BTreeSet<(Instant, LeaseId)>,
}

#[derive(Debug)]
struct Lease {
    ttl: Duration,
    deadline: Instant,
}

impl Leases {
    pub fn restored(leases: impl IntoIterator<Item = (LeaseId, Duration)>) -> Leases {
        let mut restored = Leases::default();
        for (id, ttl) in leases {
            restored.grant(id, ttl);
        }
        restored
    }

    pub fn grant(&mut self, id: LeaseId, ttl: Duration) {
        let deadline = Instant::now() + ttl;
        self.granted.insert(id, Lease { ttl, deadline });
        self.order.insert((deadline, id));
    }

    pub fn end(&mut self, id: LeaseId) {
        if let Some(lease) = self.granted.remove(&id) {
            self.order.remove(&(lease.deadline, id));
        }
    }

    /// A lease whose deadline has passed stays dead, even if the writer has not come to it yet.
    pub fn keep_alive(&mut self, id: LeaseId) -> Option<Duration> {
        let now = Instant::now();
        let lease = self
            .granted
            .get_mut(&id)
            .filter(|lease| lease.deadline > now)?;
        self.order.remove(&(lease.deadline, id));
        lease.deadline = now + lease.ttl;
        self.order.insert((lease.deadline, id));
        Some(lease.ttl)
    }

    pub fn alive(&self, id: LeaseId) -> bool {
        self.granted
            .get(&id)
            .is_some_and(|lease| lease.deadline > Instant::now())
    }

    pub fn due(&self, most: usize) -> Vec<LeaseId> {
        let now = Instant::now();
        self.order
            .iter()
            .take_while(|(deadline, _)| *deadline <= now)
            .take(most)
            .map(|(_, id)| *id)
            .collect()
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.order.first().map(|(deadline, _)| *deadline)
    }

    pub fn len(&self) -> usize {
        self.granted.len()
    }
}
