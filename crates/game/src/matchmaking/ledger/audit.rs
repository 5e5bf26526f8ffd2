//! Whether the books balance: what came in is waiting, reserved, matched or gone for a reason, and the tables agree with
//! each other. Counters and tables are kept apart, so that a mistake in either shows.

use super::{How, Ledger, Waits};

/// Tickets and matches since the shard's beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tickets that were taken in.
    pub entered: u64,
    pub matched: u64,
    pub cancelled: u64,
    pub expired: u64,
    /// Tickets of players who refused.
    pub refused: u64,
    /// Tickets of players who gave no answer.
    pub unconfirmed: u64,
    /// Times that a ticket went back to waiting.
    pub returned: u64,
    pub proposals: u64,
    /// Reservations that ran out.
    pub lapsed: u64,
    /// Proposals that became matches.
    pub matches: u64,
}

impl Counts {
    pub(super) fn end(&mut self, how: &How) {
        match how {
            How::Matched(_) => self.matched += 1,
            How::Cancelled => self.cancelled += 1,
            How::Expired => self.expired += 1,
            How::Refused { .. } => self.refused += 1,
            How::Unconfirmed { .. } => self.unconfirmed += 1,
        }
    }

    /// Tickets that have a result.
    pub fn ended(&self) -> u64 {
        self.matched + self.cancelled + self.expired + self.refused + self.unconfirmed
    }
}

/// The books don't balance: a defect of this code. The shard stops, because what it would write next can't be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the books don't balance after entry {seq}: {problem}")]
pub struct Imbalance {
    pub seq: u64,
    pub problem: String,
}

/// How many tickets stand where, counted one by one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    pub outside: u64,
    pub inside: u64,
    pub reserved: u64,
}

impl Ledger {
    /// Compares counters in constant time; for every batch.
    ///
    /// # Errors
    /// [`Imbalance`].
    pub fn balance(&self) -> Result<(), Imbalance> {
        let (live, counts) = (self.tickets.len() as u64, &self.counts);
        if counts.entered != live + counts.ended() {
            return self.imbalance(format!(
                "{} came in, {live} are live and {} ended",
                counts.entered,
                counts.ended()
            ));
        }
        Ok(())
    }

    /// Goes over every table (some milliseconds for 100,000 tickets); now and then.
    ///
    /// # Errors
    /// [`Imbalance`].
    pub fn audit(&self) -> Result<Standing, Imbalance> {
        self.balance()?;
        let mut standing = Standing::default();
        let mut players = 0;
        for (id, live) in &self.tickets {
            players += live.ticket.players.len();
            for player in &live.ticket.players {
                if self.players.get(&player.id) != Some(id) {
                    return self.imbalance(format!("player {} is not at ticket {id}", player.id));
                }
            }
            match live.stage {
                Waits::Outside => standing.outside += 1,
                Waits::Inside => standing.inside += 1,
                Waits::Reserved(id) if self.reserved.contains_key(&id) => standing.reserved += 1,
                Waits::Reserved(id) => {
                    return self.imbalance(format!("a ticket is reserved for {id}, which is not"));
                }
            }
        }
        if players != self.players.len() {
            let listed = self.players.len();
            return self.imbalance(format!(
                "{listed} players listed, {players} in live tickets"
            ));
        }
        let seats: usize = self
            .reserved
            .values()
            .map(|reserved| reserved.proposed.tickets().count())
            .sum();
        if seats as u64 != standing.reserved {
            let reserved = standing.reserved;
            return self.imbalance(format!("{reserved} tickets reserved, {seats} in proposals"));
        }
        let waiting = standing.outside + standing.inside;
        let timed = (self.expiries.len() as u64, self.deadlines.len());
        if timed != (waiting, self.reserved.len()) {
            return self.imbalance("a ticket or reservation without its time".into());
        }
        if self.ended.len() != self.ended_order.len() {
            return self.imbalance("results and their order differ".into());
        }
        Ok(standing)
    }

    fn imbalance<T>(&self, problem: String) -> Result<T, Imbalance> {
        Err(Imbalance {
            seq: self.seq,
            problem,
        })
    }
}
