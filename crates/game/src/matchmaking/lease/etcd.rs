//! A lease in etcd, or in whatever stands behind `phalanx-store`: a key that lives under a lease of the store, the roll in
//! a key without one, both changed in one transaction. Epochs come from the store's revision, which never goes back.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use phalanx_store::{Entry, Error, LeaseId, Revision, Txn};
pub use phalanx_store::{EtcdConfig, Store};

use super::{Answer, Claim, Grant, IN_SYNC_MAX, Lease, LeaseError, Roll, Seen, admissible};
use crate::matchmaking::log::ReplicaId;

/// etcd's own least: with its default election timeout it grants nothing shorter.
pub const TTL: Duration = Duration::from_secs(2);
/// A holder stops this share of the time early: clocks of two machines run at different speeds, though not by an eighth.
const MARGIN_SHARE: u32 = 8;
/// How long a standby waits for an event before it looks by itself.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A larger roll is foreign.
const ROLL_BYTES_MAX: usize = 16 << 10;

/// See the module. One per shard and process; clones share what is held.
#[derive(Clone)]
pub struct StoreLease {
    store: Store,
    prefix: String,
    ttl: Duration,
    /// Never held across an await.
    held: Arc<Mutex<Option<Held>>>,
}

#[derive(Clone, Debug)]
struct Held {
    lease: LeaseId,
    /// Where the owner's key and the roll were written last.
    owner_at: Revision,
    roll_at: Revision,
    roll: Roll,
}

struct Found {
    seen: Seen,
    owner: Option<Entry>,
    roll_at: Option<Revision>,
    revision: Revision,
}

impl StoreLease {
    /// `shard` names the shard in the store; it becomes part of two keys.
    pub fn new(store: Store, shard: &str) -> StoreLease {
        StoreLease {
            store,
            prefix: format!("game/match/{shard}/"),
            ttl: TTL,
            held: Arc::default(),
        }
    }

    /// Another time than [`TTL`]: longer where owners stall for longer, which a takeover then waits for.
    pub fn with_ttl(self, ttl: Duration) -> StoreLease {
        let ttl = ttl.max(TTL);
        StoreLease { ttl, ..self }
    }

    fn owner_key(&self) -> String {
        format!("{}owner", self.prefix)
    }

    fn roll_key(&self) -> String {
        format!("{}roll", self.prefix)
    }

    fn held(&self) -> Result<Held, LeaseError> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.clone().ok_or(LeaseError::Lost)
    }

    fn hold(&self, held: Option<Held>) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = held;
    }

    /// Unless it was let go meanwhile, or another lease was taken: then what was asked under this one is over.
    fn change(&self, lease: LeaseId, held: Option<Held>) {
        let mut now = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if now.as_ref().is_some_and(|now| now.lease == lease) {
            *now = held;
        }
    }

    /// Both keys as they are at one revision.
    async fn find(&self) -> Result<Found, LeaseError> {
        let page = self.store.list(&self.prefix).await.map_err(unavailable)?;
        let (owner_key, roll_key) = (self.owner_key(), self.roll_key());
        let mut found = Found {
            seen: Seen::default(),
            owner: None,
            roll_at: None,
            revision: page.revision,
        };
        for entry in page.entries {
            if entry.key == owner_key {
                found.seen.held = true;
                found.owner = Some(entry);
            } else if entry.key == roll_key {
                found.seen.roll = Some(parse(&entry.value)?);
                found.roll_at = Some(entry.modified);
            }
        }
        Ok(found)
    }

    async fn take(&self, claim: Claim) -> Result<Grant, LeaseError> {
        if self.held().is_ok() {
            return Err(LeaseError::Held);
        }
        let found = self.find().await?;
        if found.seen.held {
            return Err(LeaseError::Held);
        }
        admissible(found.seen.roll.as_ref(), &claim)?;
        let lease = self.store.grant(self.ttl).await.map_err(unavailable)?;
        let until = self.prolong(lease).await?;
        // The transaction's revision is at least this, and any later owner sees it: epochs grow even where a roll was lost.
        let epoch = found.revision + 1;
        let roll = Roll {
            owner: claim.replica,
            address: claim.address,
            epoch,
            in_sync: vec![claim.replica],
        };
        // Told apart from any other claim, so that an answer that got lost can be looked up.
        let token = format!("{} {epoch} {lease}", claim.replica);
        let txn = Txn::new().expect_absent(self.owner_key());
        let txn = match found.roll_at {
            Some(at) => txn.expect_modified(self.roll_key(), at),
            None => txn.expect_absent(self.roll_key()),
        };
        let txn = txn
            .put_leased(self.owner_key(), token.clone(), lease)
            .put(self.roll_key(), text(&roll)?);
        let at = match self.store.commit(txn).await {
            Ok(at) => at,
            Err(Error::Conflict { .. }) => return Err(LeaseError::Held),
            Err(Error::Unknown { .. }) => self.looked_up(&token).await?,
            Err(error) => return Err(unavailable(error)),
        };
        self.hold(Some(Held {
            lease,
            owner_at: at,
            roll_at: at,
            roll,
        }));
        Ok(Grant {
            epoch,
            until: Some(until),
        })
    }

    /// Where the claim with this token was written, if it was.
    async fn looked_up(&self, token: &str) -> Result<Revision, LeaseError> {
        let owner = self.find().await?.owner;
        let ours = owner.filter(|entry| entry.value == token.as_bytes());
        ours.map(|entry| entry.modified).ok_or(LeaseError::Held)
    }

    /// Counted from before the request: the store's clock for this lease can't have started earlier.
    async fn prolong(&self, lease: LeaseId) -> Result<Instant, LeaseError> {
        let asked = Instant::now();
        let left = match self.store.keep_alive(lease).await {
            Ok(left) => left,
            Err(Error::LeaseNotFound { .. }) => return Err(LeaseError::Lost),
            Err(error) => return Err(unavailable(error)),
        };
        Ok(asked + (left - left / MARGIN_SHARE))
    }

    async fn renewed(&self) -> Result<Grant, LeaseError> {
        let held = self.held()?;
        let until = self.prolong(held.lease).await;
        if let Err(LeaseError::Lost) = until {
            self.change(held.lease, None);
        }
        Ok(Grant {
            epoch: held.roll.epoch,
            until: Some(until?),
        })
    }

    async fn amended(&self, epoch: u64, in_sync: Vec<ReplicaId>) -> Result<(), LeaseError> {
        debug_assert!(in_sync.len() <= IN_SYNC_MAX);
        let held = self.held()?;
        if held.roll.epoch != epoch {
            return Err(LeaseError::Lost);
        }
        let roll = Roll {
            in_sync,
            ..held.roll.clone()
        };
        let txn = Txn::new()
            .expect_modified(self.owner_key(), held.owner_at)
            .expect_modified(self.roll_key(), held.roll_at)
            .put(self.roll_key(), text(&roll)?);
        let roll_at = match self.store.commit(txn).await {
            Ok(at) => at,
            // The answer to an earlier attempt may have been lost: then it stands there already.
            Err(Error::Conflict { .. }) => {
                let found = self.find().await?;
                let owner_at = found.owner.as_ref().map(|owner| owner.modified);
                let ours =
                    owner_at == Some(held.owner_at) && found.seen.roll.as_ref() == Some(&roll);
                match found.roll_at {
                    Some(at) if ours => at,
                    _ => return Err(LeaseError::Lost),
                }
            }
            Err(error) => return Err(unavailable(error)),
        };
        let lease = held.lease;
        let amended = Held {
            roll_at,
            roll,
            ..held
        };
        self.change(lease, Some(amended));
        Ok(())
    }

    async fn released(&self) -> Result<(), LeaseError> {
        let Ok(held) = self.held() else {
            return Ok(());
        };
        self.hold(None);
        match self.store.revoke(held.lease).await {
            Ok(_) | Err(Error::LeaseNotFound { .. }) => Ok(()),
            Err(error) => Err(unavailable(error)),
        }
    }

    async fn event(&self) {
        let from = self.store.revision();
        let Ok(mut watch) = self.store.watch(&self.prefix, from).await else {
            return tokio::time::sleep(LOOK_EVERY / 5).await;
        };
        let _ = tokio::time::timeout(LOOK_EVERY, watch.next()).await;
    }
}

impl Lease for StoreLease {
    fn look(&self) -> Answer<'_, Seen> {
        Box::pin(async { Ok(self.find().await?.seen) })
    }

    fn acquire(&self, claim: Claim) -> Answer<'_, Grant> {
        Box::pin(self.take(claim))
    }

    fn renew(&self) -> Answer<'_, Grant> {
        Box::pin(self.renewed())
    }

    fn amend(&self, epoch: u64, in_sync: Vec<ReplicaId>) -> Answer<'_, ()> {
        Box::pin(self.amended(epoch, in_sync))
    }

    fn release(&self) -> Answer<'_, ()> {
        Box::pin(self.released())
    }

    fn changed(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(self.event())
    }
}

impl fmt::Debug for StoreLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreLease")
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

fn parse(value: &[u8]) -> Result<Roll, LeaseError> {
    if value.len() > ROLL_BYTES_MAX {
        return Err(foreign("the roll is too long"));
    }
    serde_json::from_slice(value).map_err(|error| foreign(&error.to_string()))
}

fn text(roll: &Roll) -> Result<Vec<u8>, LeaseError> {
    serde_json::to_vec(roll).map_err(|error| foreign(&error.to_string()))
}

fn unavailable(error: Error) -> LeaseError {
    LeaseError::Unavailable {
        reason: error.to_string(),
    }
}

fn foreign(problem: &str) -> LeaseError {
    LeaseError::Foreign {
        problem: problem.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_comes_back_late_changes_no_lease_but_its_own() {
        let store = Store::memory().await.unwrap();
        let lease = StoreLease::new(store, "duel/eu/v1").with_ttl(Duration::from_secs(60));
        let claim = || Claim {
            replica: ReplicaId(1),
            address: String::new(),
            force: false,
        };
        lease.acquire(claim()).await.unwrap();
        let old = lease.held().unwrap();
        lease.release().await.unwrap();
        lease.change(old.lease, Some(old.clone()));
        lease.acquire(claim()).await.expect("nothing is held");
        lease.change(old.lease, None);
        lease.renew().await.expect("the new one is held");
    }
}
