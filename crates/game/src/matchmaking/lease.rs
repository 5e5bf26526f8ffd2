//! Who may own a shard: one process at a time, told apart by epochs that only grow. Beside the lease stands the roll,
//! which outlives it: who has everything that was ever acknowledged. Nobody else may take the shard over.
//!
//! A holder that can't renew stops acknowledging before another may acquire: [`Grant::until`] is counted from before the
//! request that renewed it, on the monotonic clock, less a margin for clocks that run at different speeds.

#[cfg(feature = "etcd")]
pub mod etcd;
pub mod local;

use std::{fmt, pin::Pin, time::Instant};

use serde::{Deserialize, Serialize};

use super::log::ReplicaId;

/// What the answers of a lease service take to come.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, LeaseError>> + Send + 'a>>;

/// Replicas in sync at once: the owner and one standby.
pub const IN_SYNC_MAX: usize = 2;

/// Stands in the lease service, with the lease or without.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roll {
    /// The owner, or the last one.
    pub owner: ReplicaId,
    /// Where the owner ships its log from, `HOST:PORT`.
    pub address: String,
    pub epoch: u64,
    /// Who has everything that was acknowledged, the owner among them.
    pub in_sync: Vec<ReplicaId>,
}

/// How things stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// `None` when nobody ever owned the shard.
    pub roll: Option<Roll>,
    /// Whether somebody holds the lease.
    pub held: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub replica: ReplicaId,
    /// Where a standby will find this process.
    pub address: String,
    /// An operator's word that what only others acknowledged may be lost. Never set by the machinery.
    pub force: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Above every epoch before it.
    pub epoch: u64,
    /// When to stop acknowledging unless renewed; `None` for a lease that lasts as long as the process.
    pub until: Option<Instant>,
}

#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    #[error("another process holds the lease")]
    Held,
    /// What the others acknowledged while this replica was away isn't here.
    #[error("this replica ({replica}) is not in sync with what was acknowledged ({roll})")]
    NotInSync { replica: ReplicaId, roll: String },
    /// The lease is gone: it ran out, or another process has it by now. Final.
    #[error("the lease is lost")]
    Lost,
    /// It may work later; nothing is known to have changed.
    #[error("the lease service does not answer: {reason}")]
    Unavailable { reason: String },
    /// What stands there was not written by us.
    #[error("the lease service holds something foreign: {problem}")]
    Foreign { problem: String },
}

/// A lease service's view of one shard.
///
/// All are idempotent for the holder: an answer that got lost is found out by asking again. The conformance tests are in
/// `tests/matchmaking_lease.rs`.
pub trait Lease: fmt::Debug + Send + Sync + 'static {
    fn look(&self) -> Answer<'_, Seen>;

    /// Takes a free lease, raises the epoch and writes a roll with the claimant alone in sync.
    fn acquire(&self, claim: Claim) -> Answer<'_, Grant>;

    /// Holds on to the lease. To be called every third of its time or more often.
    fn renew(&self) -> Answer<'_, Grant>;

    /// Replaces who is in sync, if this process still holds the lease that was granted with `epoch` (compare and set).
    fn amend(&self, epoch: u64, in_sync: Vec<ReplicaId>) -> Answer<'_, ()>;

    /// Lets go at once, for a successor that is waiting. The roll stays.
    fn release(&self) -> Answer<'_, ()>;

    /// Waits until something may have changed: a moment, or an event.
    fn changed(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

/// Whether `claim` may follow `roll`.
///
/// # Errors
/// [`LeaseError::NotInSync`], which only an operator's word overrides.
pub fn admissible(roll: Option<&Roll>, claim: &Claim) -> Result<(), LeaseError> {
    match roll {
        Some(roll) if !claim.force && !roll.in_sync.contains(&claim.replica) => {
            Err(LeaseError::NotInSync {
                replica: claim.replica,
                roll: roll.to_string(),
            })
        }
        _ => Ok(()),
    }
}

impl fmt::Display for Roll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "epoch {} of {}, in sync:", self.epoch, self.owner)?;
        self.in_sync.iter().try_for_each(|id| write!(f, " {id}"))
    }
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
