//! How a shard comes to be in two places. [`Copies`] is the owner's rule for when a client may be told: after its own disk,
//! and after the standby's for as long as the standby may take over. It is pure; `link` and `frame` are its wires.
//!
//! The order is what makes it safe. A standby is waited for before it is on the roll, and it is on the roll only when it
//! has everything that was ever acknowledged; it is off the roll before it is no longer waited for. So whoever is on the
//! roll has all that was acknowledged, and nobody else may take over.

pub mod frame;
pub mod link;

use std::time::Duration;

use super::log::ReplicaId;

/// How far behind a standby may be when the owner begins to wait for it, in entries.
pub const LAG_MAX: u64 = 20_000;
/// How long an owner waits for a standby that says nothing before it takes it off the roll.
pub const PATIENCE: Duration = Duration::from_millis(500);

/// A change of the roll that the owner wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amend {
    Add(ReplicaId),
    Remove(ReplicaId),
}

/// See the module. Times are monotonic, since any start.
#[derive(Debug)]
pub struct Copies {
    lease_until: Duration,
    synced: u64,
    /// The furthest that clients were told.
    released: u64,
    partner: Option<Partner>,
    patience: Duration,
}

#[derive(Debug)]
struct Partner {
    id: ReplicaId,
    acked: u64,
    heard: Duration,
    connected: bool,
    stands: Stands,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stands {
    /// Catching up. Not waited for.
    Behind,
    /// Waited for, not on the roll.
    Expected,
    /// Waited for; its place on the roll is being written.
    Adding,
    /// Waited for, on the roll.
    InSync,
    /// Waited for; being taken off the roll.
    Removing,
}

impl Copies {
    /// Of a new owner, whose log is synced to `synced`.
    pub fn new(synced: u64, lease_until: Duration, patience: Duration) -> Copies {
        Copies {
            lease_until,
            synced,
            released: synced,
            partner: None,
            patience,
        }
    }

    pub fn renewed(&mut self, lease_until: Duration) {
        self.lease_until = self.lease_until.max(lease_until);
    }

    pub fn is_valid(&self, now: Duration) -> bool {
        now < self.lease_until
    }

    /// The owner's own disk has everything up to `seq`.
    pub fn synced(&mut self, seq: u64) {
        self.synced = self.synced.max(seq);
    }

    /// A standby connected, whose history is a part of ours up to `seq`. Refused while another is there.
    pub fn joined(&mut self, id: ReplicaId, seq: u64, now: Duration) -> bool {
        match &mut self.partner {
            Some(partner) if partner.id == id => {
                partner.acked = seq;
                partner.heard = now;
                partner.connected = true;
                true
            }
            Some(_) => false,
            None => {
                self.partner = Some(Partner {
                    id,
                    acked: seq,
                    heard: now,
                    connected: true,
                    stands: Stands::Behind,
                });
                true
            }
        }
    }

    /// The standby's disk has everything up to `seq`.
    pub fn acked(&mut self, id: ReplicaId, seq: u64, now: Duration) {
        if let Some(partner) = self.partner.as_mut().filter(|partner| partner.id == id) {
            partner.acked = partner.acked.max(seq);
            partner.heard = now;
        }
    }

    pub fn left(&mut self, id: ReplicaId) {
        if let Some(partner) = self.partner.as_mut().filter(|partner| partner.id == id) {
            partner.connected = false;
        }
        self.drop_stranger();
    }

    /// Whoever is neither connected nor on the roll is nobody's concern.
    fn drop_stranger(&mut self) {
        self.partner.take_if(|partner| {
            !partner.connected && matches!(partner.stands, Stands::Behind | Stands::Expected)
        });
    }

    /// What should be written to the roll, once for each change; the answer comes by [`amended`](Copies::amended).
    pub fn wants(&mut self, appended: u64, now: Duration) -> Option<Amend> {
        let released = self.released;
        let partner = self.partner.as_mut()?;
        let silent = now.saturating_sub(partner.heard) > self.patience;
        match partner.stands {
            Stands::Behind if appended.saturating_sub(partner.acked) <= LAG_MAX && !silent => {
                partner.stands = Stands::Expected;
                self.wants(appended, now)
            }
            Stands::Expected if silent => {
                partner.stands = Stands::Behind;
                None
            }
            Stands::Expected if partner.acked >= released => {
                partner.stands = Stands::Adding;
                Some(Amend::Add(partner.id))
            }
            Stands::InSync if silent || !partner.connected => {
                partner.stands = Stands::Removing;
                Some(Amend::Remove(partner.id))
            }
            _ => None,
        }
    }

    /// The roll was written. A write that failed or whose answer is missing is repeated until it is known, or the lease
    /// is over.
    pub fn amended(&mut self, amend: Amend) {
        let Some(partner) = &mut self.partner else {
            return;
        };
        match (amend, partner.stands) {
            (Amend::Add(id), Stands::Adding) if id == partner.id => {
                partner.stands = Stands::InSync;
            }
            (Amend::Remove(id), Stands::Removing) if id == partner.id => {
                partner.stands = Stands::Behind;
            }
            _ => {}
        }
        self.drop_stranger();
    }

    /// Up to which entry clients may be told at `now`; `None` when the lease may be over.
    pub fn acknowledged(&mut self, now: Duration) -> Option<u64> {
        if !self.is_valid(now) {
            return None;
        }
        let acked = self.waits_for().unwrap_or(u64::MAX);
        self.released = self.released.max(self.synced.min(acked));
        Some(self.released)
    }

    /// The standby that may take over.
    pub fn in_sync(&self) -> Option<ReplicaId> {
        let partner = self.partner.as_ref();
        let synced = partner.filter(|partner| partner.stands == Stands::InSync);
        synced.map(|partner| partner.id)
    }

    /// How far the standby is that clients' answers wait for.
    pub fn waits_for(&self) -> Option<u64> {
        let partner = self.partner.as_ref();
        let waited_for = partner.filter(|partner| partner.stands != Stands::Behind);
        waited_for.map(|partner| partner.acked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const B: ReplicaId = ReplicaId(2);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn alone() -> Copies {
        Copies::new(10, ms(2_000), PATIENCE)
    }

    #[test]
    fn an_owner_whose_lease_may_be_over_tells_nobody_anything() {
        let mut copies = alone();
        copies.synced(20);
        assert_eq!(copies.acknowledged(ms(1_999)), Some(20));
        copies.synced(30);
        assert_eq!(copies.acknowledged(ms(2_000)), None);
        copies.renewed(ms(3_000));
        assert_eq!(copies.acknowledged(ms(2_000)), Some(30));
    }

    #[test]
    fn a_standby_is_on_the_roll_only_with_all_that_was_acknowledged() {
        let mut copies = alone();
        copies.synced(100);
        assert_eq!(copies.acknowledged(ms(1)), Some(100));
        assert!(copies.joined(B, 10, ms(1)));
        assert_eq!(copies.wants(100, ms(2)), None, "expected, not added");
        copies.synced(110);
        assert_eq!(copies.acknowledged(ms(2)), Some(100), "waited for already");
        copies.acked(B, 99, ms(3));
        assert_eq!(copies.wants(110, ms(3)), None);
        copies.acked(B, 105, ms(4));
        assert_eq!(copies.wants(110, ms(4)), Some(Amend::Add(B)));
        assert_eq!(copies.in_sync(), None);
        copies.amended(Amend::Add(B));
        assert_eq!(copies.in_sync(), Some(B));
        assert_eq!(copies.acknowledged(ms(5)), Some(105));
    }

    #[test]
    fn a_silent_standby_is_waited_for_until_it_is_off_the_roll() {
        let mut copies = alone();
        assert!(copies.joined(B, 10, ms(0)));
        assert_eq!(copies.wants(10, ms(0)), Some(Amend::Add(B)));
        copies.amended(Amend::Add(B));
        copies.synced(50);
        assert_eq!(copies.acknowledged(ms(400)), Some(10));
        assert_eq!(copies.wants(50, ms(400)), None);
        assert_eq!(copies.wants(50, ms(501)), Some(Amend::Remove(B)));
        assert_eq!(copies.acknowledged(ms(501)), Some(10));
        copies.left(B);
        copies.amended(Amend::Remove(B));
        assert_eq!(copies.acknowledged(ms(502)), Some(50));
    }

    #[test]
    fn one_that_was_only_expected_is_given_up_without_a_word_to_the_roll() {
        let mut copies = alone();
        copies.synced(100);
        copies.acknowledged(ms(0));
        assert!(copies.joined(B, 10, ms(0)));
        assert_eq!(copies.wants(100, ms(0)), None);
        copies.synced(200);
        assert_eq!(copies.acknowledged(ms(1)), Some(100));
        assert_eq!(copies.wants(200, ms(600)), None);
        assert_eq!(copies.acknowledged(ms(600)), Some(200));
    }
}
