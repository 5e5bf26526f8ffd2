//! The search: tickets in, proposals out. Pure: no clock, no I/O, no chance; the same inserts at the same times give the
//! same proposals. Who owns a ticket, what becomes of a proposal and how a crash is survived are the shard's matters.
//!
//! **How.** Per region and per kind of ticket (its size; of one who came alone, his roles) an ordered array by rating.
//! Each tick takes the tickets oldest first; each looks outward from its own rating, on the tightest rung of the ladder
//! that can work, for the best match around it. A ticket that found nothing is not asked again until something new is
//! near: a ticket that came, or one whose window or regions widened. Counts per rating cell tell of most hopeless
//! tickets without a look at a single neighbour.
//!
//! **What is guaranteed** after a tick whose report says neither `exhausted` nor `pending`:
//! - *Every pair that must meet meets.* If a match is two tickets (1v1), no two waiting tickets are left that lie in each
//!   other's windows and share a region that is near enough to both.
//! - *Every group that must meet meets.* With larger teams, no group is left that fills a match within the ladder's step
//!   of its youngest ticket in one region: exactly so for players who came alone, with or without roles, and for parties
//!   without roles in matches of up to four teams of five. Of parties with roles the [`PARTY_NEAREST`] nearest of each size
//!   on both sides are considered, in [`SEATINGS_MAX`] arrangements.
//! - *Nobody younger goes first*, unless the older was put off. A ticket loses a partner only to an open seat of a running match or to an older ticket
//!   that sought its own match; there are ever fewer of those, so that nobody starves.
//! - A party is in one team, whole; a ticket is in one proposal; everybody's latency, window and roles hold; nobody is
//!   lost ([`verify`] checks a proposal independently).
//!
//! When a tick's operations run out, three quarters went to the oldest and one quarter to a cursor that goes round, so
//! that every pending ticket is looked at within a bounded number of ticks. A ticket whose search takes more than a
//! hundredth of a tick's operations is put off, and gets what it needs after the others: a crowd that looks as if it could
//! be seated, and can't, doesn't hold up whoever can.

mod assemble;
mod draft;
mod improve;
mod look;
mod ordered;
mod plan;
mod pool;
mod seek;
pub mod verify;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use self::draft::Draft;
use self::look::Scratch;
use self::ordered::Ordered;
use self::pool::{Hot, Pools};
use super::rules::{Brownout, Budget, MILLI, MatchRules};
use super::ticket::{Backfill, BackfillId, Problems, RegionIndex, Ticket, TicketId};

pub use self::assemble::SEATINGS_MAX;
pub use self::look::PARTY_NEAREST;

/// Tickets that one search holds at most.
pub const TICKETS_MAX: usize = 500_000;
/// Matches with open seats that one search holds at most.
pub const BACKFILLS_MAX: usize = 4_096;

/// Tickets that are brought to their step in one tick; there are more only where many thousands came at once.
const PROMOTED_MAX: usize = 10_000;
/// Operations for each of them.
const PROMOTE_COST: u64 = 50;
/// Operations to take a ticket out of every index.
const CLAIM_COST: u64 = 150;

/// A match that could be: every ticket of it has left the search.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Proposal {
    /// The tickets of each team. Of a backfill: of each team of the running match, some may be empty.
    pub teams: Vec<Vec<TicketId>>,
    /// What each player plays, by the rules' list: per team, the players of its tickets one after the other; `None` is a
    /// seat that takes everybody. Empty if the rules have no roles.
    #[serde(default)]
    pub roles: Vec<Vec<Option<u8>>>,
    pub region: RegionIndex,
    pub quality: Quality,
    /// The running match whose seats these are.
    #[serde(default)]
    pub backfill: Option<BackfillId>,
}

impl Proposal {
    pub fn tickets(&self) -> impl Iterator<Item = TicketId> + '_ {
        self.teams.iter().flatten().copied()
    }
}

/// How good a match is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quality {
    /// 0 to 1,000, by the rules' weights: rating, balance and latency, each against the widest that is allowed.
    pub score: u16,
    /// Between the parties' values (of a backfill: from the match's), in thousandths of a rating.
    pub spread_milli: u32,
    /// Between the means of the strongest and the weakest team, in thousandths; 0 for a backfill.
    pub imbalance_milli: u32,
    /// The longest round trip of all players.
    pub latency_ms: u16,
    /// How long its oldest ticket has waited.
    pub waited_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("ticket {0} waits already")]
    Waiting(TicketId),
    #[error("match {0} is offered already")]
    Offered(BackfillId),
    #[error("not admitted: {0}")]
    Invalid(Problems),
    #[error("{0} wait: that is all this search takes")]
    Full(usize),
}

/// What a tick did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TickReport {
    /// Proposals made.
    pub proposals: usize,
    /// Operations spent.
    pub operations: u64,
    /// Tickets and open matches that sought.
    pub examined: usize,
    /// Those that should have, when operations ran out.
    pub pending: usize,
    /// True if operations ran out.
    pub exhausted: bool,
    /// Tickets that came, or whose window or regions widened, since the last tick.
    pub stirred: usize,
}

/// Tickets of one shard, see the module's text.
#[derive(Debug)]
pub struct Search {
    rules: Arc<MatchRules>,
    /// Slots: what is waiting, and (beside it) what the search reads most.
    cold: Vec<Cold>,
    hot: Vec<Hot>,
    free: Vec<u32>,
    ids: HashMap<TicketId, u32>,
    /// Oldest first.
    age: Ordered<Age>,
    pools: Pools,
    backfills: Vec<Offered>,
    /// Slots that came or reached a later step, and aren't known there yet: each once.
    due: VecDeque<u32>,
    last_ms: Option<u64>,
    brownout: Brownout,
    /// Where the pending were left.
    cursor: Option<Age>,
    scratch: Scratch,
}

/// Enqueued, id, slot.
type Age = (u64, u64, u32);

#[derive(Debug)]
struct Cold {
    ticket: Option<Arc<Ticket>>,
    /// Sum of the players' means, in thousandths.
    strength: i64,
}

#[derive(Debug)]
struct Offered {
    backfill: Backfill,
    value: i32,
    step: u8,
    pending: bool,
}

impl Search {
    pub fn new(rules: Arc<MatchRules>) -> Self {
        Self {
            pools: Pools::new(&rules),
            scratch: Scratch::new(&rules),
            rules,
            cold: Vec::new(),
            hot: Vec::new(),
            free: Vec::new(),
            ids: HashMap::new(),
            age: Ordered::default(),
            backfills: Vec::new(),
            due: VecDeque::new(),
            last_ms: None,
            brownout: Brownout::Off,
            cursor: None,
        }
    }

    /// Tickets that wait.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Matches whose open seats are offered.
    pub fn offered(&self) -> usize {
        self.backfills.len()
    }

    /// Takes a ticket, to be seen by the next tick.
    pub fn insert(&mut self, ticket: impl Into<Arc<Ticket>>) -> Result<(), Refused> {
        let ticket = ticket.into();
        self.rules.admit(&ticket).map_err(Refused::Invalid)?;
        if self.ids.contains_key(&ticket.id) {
            return Err(Refused::Waiting(ticket.id));
        }
        if self.ids.len() >= TICKETS_MAX {
            return Err(Refused::Full(TICKETS_MAX));
        }
        let hot = Hot::new(&self.rules, &ticket);
        let cold = Cold {
            strength: ticket
                .players
                .iter()
                .map(|player| (player.rating.mu * MILLI).round() as i64)
                .sum(),
            ticket: Some(Arc::clone(&ticket)),
        };
        let slot = self.slot(hot, cold);
        self.ids.insert(ticket.id, slot);
        self.age.insert((ticket.enqueued_ms, ticket.id.0, slot));
        // Where it stands at the last tick's time; the next tick brings it to its step.
        self.promote(slot, self.last_ms.unwrap_or(0));
        let hot = &mut self.hot[slot as usize];
        if !hot.is_due() {
            hot.set_due(true);
            self.due.push_back(slot);
        }
        Ok(())
    }

    /// Takes a ticket back, e.g. because its party cancelled.
    pub fn remove(&mut self, id: TicketId) -> Option<Arc<Ticket>> {
        let slot = *self.ids.get(&id)?;
        self.take(slot)
    }

    /// All that wait, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Ticket>> {
        self.age
            .iter()
            .filter_map(|(_, _, slot)| self.cold[slot as usize].ticket.as_ref())
    }

    /// Offers the open seats of a running match.
    pub fn offer(&mut self, backfill: Backfill) -> Result<(), Refused> {
        self.rules
            .admit_backfill(&backfill)
            .map_err(Refused::Invalid)?;
        if self
            .backfills
            .iter()
            .any(|other| other.backfill.id == backfill.id)
        {
            return Err(Refused::Offered(backfill.id));
        }
        if self.backfills.len() >= BACKFILLS_MAX {
            return Err(Refused::Full(BACKFILLS_MAX));
        }
        let value = (backfill.rating * MILLI).round() as i32;
        let key = |offered: &Offered| (offered.backfill.since_ms, offered.backfill.id);
        let new = Offered {
            value,
            step: 0,
            pending: true,
            backfill,
        };
        let at = self
            .backfills
            .partition_point(|other| key(other) < key(&new));
        self.backfills.insert(at, new);
        Ok(())
    }

    /// Takes the offer back, e.g. because the match ended.
    pub fn withdraw(&mut self, id: BackfillId) -> Option<Backfill> {
        let at = self
            .backfills
            .iter()
            .position(|other| other.backfill.id == id)?;
        Some(self.backfills.remove(at).backfill)
    }

    /// Looks for matches at `now_ms` (unix milliseconds; a clock that went back stands still) and appends them to `out`.
    pub fn tick(&mut self, now_ms: u64, budget: Budget, out: &mut Vec<Proposal>) -> TickReport {
        let now = self.last_ms.map_or(now_ms, |last| now_ms.max(last));
        self.scratch.begin(now, budget.operations);
        let mut report = TickReport {
            stirred: self.stir(now, budget.brownout),
            ..TickReport::default()
        };
        self.last_ms = Some(now);
        self.pools.begin();
        let mut drafts = Vec::new();
        self.fill_open(&mut drafts, &mut report);
        self.match_oldest_first(&mut drafts, &mut report);
        self.pools.end();
        report.pending += self.due.len();
        if budget.brownout < Brownout::Unimproved {
            self.improve(&mut drafts);
        }
        report.proposals = drafts.len();
        report.operations = self.scratch.spent();
        for draft in drafts {
            out.push(self.propose(draft));
        }
        report
    }

    /// Bytes that the search holds for its tickets; the tickets themselves are shared with the caller and count too.
    pub fn bytes(&self) -> usize {
        let tickets: usize = self
            .cold
            .iter()
            .filter_map(|cold| cold.ticket.as_deref())
            .map(|ticket| size_of::<Ticket>() + 16 + size_of_val(ticket.players.as_slice()))
            .sum();
        tickets
            + self.cold.capacity() * size_of::<Cold>()
            + self.hot.capacity() * size_of::<Hot>()
            + (self.free.capacity() + self.due.capacity()) * 4
            + self.ids.capacity() * (size_of::<(TicketId, u32)>() + 1)
            + self.age.bytes()
            + self.pools.bytes()
    }

    fn slot(&mut self, mut hot: Hot, cold: Cold) -> u32 {
        if let Some(slot) = self.free.pop() {
            hot.set_due(self.hot[slot as usize].is_due());
            self.hot[slot as usize] = hot;
            self.cold[slot as usize] = cold;
            return slot;
        }
        self.hot.push(hot);
        self.cold.push(cold);
        (self.hot.len() - 1) as u32
    }

    /// Removes what is in a slot from everywhere.
    fn take(&mut self, slot: u32) -> Option<Arc<Ticket>> {
        let ticket = self.cold[slot as usize].ticket.take()?;
        self.ids.remove(&ticket.id);
        self.age.remove(&(ticket.enqueued_ms, ticket.id.0, slot));
        let hot = &mut self.hot[slot as usize];
        self.pools.remove(hot, slot);
        *hot = hot.gone();
        self.free.push(slot);
        Some(ticket)
    }

    /// Brings every ticket to its step of the ladder at `now`, and tells the pools who came or widened.
    fn stir(&mut self, now: u64, brownout: Brownout) -> usize {
        let mut stirred = 0;
        let changed = (brownout == Brownout::Off) != (self.brownout == Brownout::Off);
        self.brownout = brownout;
        self.pools.set_ladder(self.rules.ladder(brownout));
        if changed {
            self.pools.stir_all();
            for open in &mut self.backfills {
                open.pending = true;
            }
        }
        self.climb(now);
        let most = self.scratch.limit() / 2;
        while stirred < PROMOTED_MAX && self.scratch.spent < most {
            let Some(slot) = self.due.pop_front() else {
                break;
            };
            self.hot[slot as usize].set_due(false);
            if self.promote(slot, now) {
                stirred += 1;
                self.scratch.spend(PROMOTE_COST);
            }
        }
        for open in &mut self.backfills {
            let step = self.rules.step(now.saturating_sub(open.backfill.since_ms)) as u8;
            open.pending |= step != open.step;
            open.step = step;
        }
        stirred
    }

    /// Those that reached a later step since the last tick: by age, that is a stretch of the list for each step.
    fn climb(&mut self, now: u64) {
        let Some(last) = self.last_ms.filter(|last| *last < now) else {
            return;
        };
        for step in self.rules.ladder(Brownout::Off).iter().skip(1) {
            let Some(to) = now.checked_sub(step.after_ms) else {
                break;
            };
            let from = last.checked_sub(step.after_ms).map_or(0, |from| from + 1);
            let climbing = self.age.up(&(from, 0, 0));
            let climbing = climbing.take_while(|(enqueued, _, _)| *enqueued <= to);
            for (_, _, slot) in climbing {
                let hot = &mut self.hot[slot as usize];
                if !hot.is_due() {
                    hot.set_due(true);
                    self.due.push_back(slot);
                }
            }
        }
    }

    /// True if the ticket came to the pools or to another step.
    fn promote(&mut self, slot: u32, now: u64) -> bool {
        let Some(ticket) = &self.cold[slot as usize].ticket else {
            return false;
        };
        let step = self.rules.step(now.saturating_sub(ticket.enqueued_ms));
        let hot = &mut self.hot[slot as usize];
        if hot.is_placed() && usize::from(hot.step) == step {
            return false;
        }
        let regions = self.rules.near(&hot.latency, step);
        self.pools.place(hot, slot, step as u8, regions);
        true
    }

    fn match_oldest_first(&mut self, drafts: &mut Vec<Draft>, report: &mut TickReport) {
        let mut seeds = std::mem::take(&mut self.scratch.seeds);
        seeds.clear();
        for age in self.age.iter() {
            let hot = &self.hot[age.2 as usize];
            if self.pools.may_match(hot, &mut self.scratch.plans) {
                seeds.push(age);
            }
        }
        // Whoever is known to cost more than a share lets the others go first.
        seeds.sort_by_key(|age| self.hot[age.2 as usize].is_hard());
        let total = self.scratch.limit();
        let mut at = 0;
        // The cursor's quarter is kept back only while there is a backlog.
        let first = if self.cursor.is_some() {
            total / 4 * 3
        } else {
            total
        };
        self.scratch.set_limit(first);
        while at < seeds.len() && !self.scratch.is_spent() {
            self.seek_for(seeds[at], drafts, report);
            at += 1;
        }
        self.scratch.set_limit(total);
        seeds[at..].sort();
        let rest = &seeds[at..];
        let start = self
            .cursor
            .map_or(0, |cursor| rest.partition_point(|age| *age <= cursor));
        let mut reached = None;
        for age in rest[start..].iter().chain(&rest[..start]) {
            if self.scratch.is_spent() {
                let hot = &mut self.hot[age.2 as usize];
                hot.set_pending(hot.is_placed());
            } else {
                self.seek_for(*age, drafts, report);
                reached = Some(*age);
            }
        }
        report.pending += seeds
            .iter()
            .filter(|age| self.hot[age.2 as usize].is_pending())
            .count();
        report.exhausted = self.scratch.is_spent();
        self.cursor = match (report.pending > 0, reached) {
            (false, _) => None,
            (true, Some(reached)) => Some(reached),
            (true, None) => self.cursor.or(seeds.first().copied()),
        };
        self.scratch.seeds = seeds;
    }

    fn seek_for(&mut self, age: Age, drafts: &mut Vec<Draft>, report: &mut TickReport) {
        let slot = age.2;
        if !self.hot[slot as usize].is_placed() {
            return;
        }
        report.examined += 1;
        self.scratch.next_seed(self.hot[slot as usize].is_hard());
        let found = self.seek(slot);
        // Cut short: it must come back.
        let is_cut = found.is_none() && self.scratch.is_cut();
        let hot = &mut self.hot[slot as usize];
        hot.set_pending(is_cut);
        hot.set_hard(is_cut);
        if let Some(draft) = found {
            self.claim(&draft);
            drafts.push(draft);
        }
    }

    /// The draft's tickets leave the search.
    fn claim(&mut self, draft: &Draft) {
        self.scratch
            .spend(CLAIM_COST * draft.members().count() as u64);
        for member in draft.teams.iter().flatten() {
            self.take(member.slot);
        }
    }
}

#[cfg(test)]
mod tests;
