//! The books of a shard: every ticket that came in, and what became of it. Entries go in, in the log's order, and owner,
//! standby and recovery arrive at the same state. Nothing here reads a clock, draws a number or does I/O.
//!
//! A ticket is outside (the waiting room), waiting (in the search), reserved (in a proposal), then matched; or it goes
//! back to waiting with its original time; or it is gone. A player is in one live ticket at most.

mod audit;
mod entry;
mod snapshot;
pub(super) mod wire;

#[cfg(test)]
pub(crate) mod tests;

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

pub use audit::{Counts, Imbalance};
pub use entry::{
    CLASSES, Entry, MATCH_TICKETS_MAX, MatchId, NoMatchId, Proposed, ROOM_BYTES_MAX, Seating,
    TEAMS_MAX,
};

use super::{
    search::Quality,
    ticket::{Backfill, BackfillId, RegionIndex, Ticket, TicketId},
};

/// Results that are kept at most; beyond it the oldest goes, however young.
pub const RESULTS_MAX: usize = 200_000;

/// An entry that can't follow what was before: the log is not this shard's, or the code that wrote it was wrong. Nothing
/// was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("entry {seq} can't be: {problem}")]
pub struct Impossible {
    pub seq: u64,
    pub problem: &'static str,
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ledger {
    /// Entries applied.
    seq: u64,
    epoch: u64,
    /// The newest time of any entry.
    now_ms: u64,
    /// Gives tickets their place in the order of arrival.
    arrivals: u64,
    /// Gives matches their numbers.
    proposals: u64,
    tickets: HashMap<TicketId, Live>,
    players: HashMap<u64, TicketId>,
    reserved: HashMap<MatchId, Reserved>,
    backfills: HashMap<BackfillId, OpenMatch>,
    ended: HashMap<TicketId, Ended>,
    /// The same by time, oldest first.
    ended_order: VecDeque<(u64, TicketId)>,
    /// The newest ended ticket of a player.
    ended_of: HashMap<u64, TicketId>,
    counts: Counts,
    /// Derived: when waiting tickets expire, and when reservations lapse.
    expiries: BTreeSet<(u64, TicketId)>,
    deadlines: BTreeSet<(u64, MatchId)>,
}

/// A ticket that came in and has no result yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Live {
    pub ticket: Arc<Ticket>,
    /// Place in the order of arrival.
    pub order: u64,
    /// Of the waiting room; 0 goes first.
    pub class: u8,
    pub expires_ms: u64,
    pub stage: Waits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waits {
    /// In the waiting room.
    Outside,
    /// In the search.
    Inside,
    Reserved(MatchId),
}

/// A proposal whose tickets are reserved.
#[derive(Clone, Debug, PartialEq)]
pub struct Reserved {
    pub proposed: Proposed,
    /// Moves when the last player confirms, and by the time that the shard had no owner.
    pub until_ms: u64,
    pub confirmed: BTreeSet<u64>,
    pub players: usize,
}

impl Reserved {
    /// Whether only a room is missing.
    pub fn is_agreed(&self) -> bool {
        !self.proposed.ask || self.confirmed.len() == self.players
    }
}

/// A running match that takes players.
#[derive(Clone, Debug, PartialEq)]
pub struct OpenMatch {
    pub backfill: Backfill,
    pub room: String,
    /// The proposal that would fill it.
    pub taken: Option<MatchId>,
}

/// What became of a ticket.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    pub at_ms: u64,
    pub players: Box<[u64]>,
    pub how: How,
}

#[derive(Clone, Debug, PartialEq)]
pub enum How {
    Matched(Arc<Match>),
    Cancelled,
    Expired,
    /// One of its players refused.
    Refused {
        id: MatchId,
        player: u64,
    },
    /// One of its players gave no answer.
    Unconfirmed {
        id: MatchId,
    },
}

/// A match that has a room.
#[derive(Clone, Debug, PartialEq)]
pub struct Match {
    pub id: MatchId,
    pub teams: Vec<Vec<Party>>,
    /// What each player plays, see [`Proposal`](super::Proposal).
    pub roles: Seating,
    pub region: RegionIndex,
    pub quality: Quality,
    /// What the allocator said: an address, a token.
    pub room: String,
    pub backfill: Option<BackfillId>,
    pub at_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Party {
    pub ticket: TicketId,
    pub players: Box<[u64]>,
}

impl Ledger {
    pub fn new() -> Ledger {
        Ledger::default()
    }

    pub fn seq(&self) -> u64 {
        self.seq
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The newest time of any entry, unix milliseconds. An owner's clock starts here at least.
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// The id that the next proposal has to have.
    pub fn next_match(&self) -> MatchId {
        MatchId {
            epoch: self.epoch,
            number: self.proposals + 1,
        }
    }

    pub fn live(&self, ticket: TicketId) -> Option<&Live> {
        self.tickets.get(&ticket)
    }

    pub fn ended(&self, ticket: TicketId) -> Option<&Ended> {
        self.ended.get(&ticket)
    }

    pub fn reserved(&self, id: MatchId) -> Option<&Reserved> {
        self.reserved.get(&id)
    }

    pub fn backfill(&self, id: BackfillId) -> Option<&OpenMatch> {
        self.backfills.get(&id)
    }

    /// The live ticket of a player.
    pub fn live_of(&self, player: u64) -> Option<TicketId> {
        self.players.get(&player).copied()
    }

    /// The live ticket of a player, or her newest that ended.
    pub fn newest_of(&self, player: u64) -> Option<TicketId> {
        let ended = || self.ended_of.get(&player).copied();
        self.live_of(player).or_else(ended)
    }

    /// Live tickets, those in the waiting room among them.
    pub fn live_len(&self) -> usize {
        self.tickets.len()
    }

    pub fn ended_len(&self) -> usize {
        self.ended.len()
    }

    pub fn reserved_len(&self) -> usize {
        self.reserved.len()
    }

    pub fn backfills_len(&self) -> usize {
        self.backfills.len()
    }

    /// All live tickets in the order of arrival.
    pub fn live_in_order(&self) -> Vec<&Live> {
        let mut all: Vec<&Live> = self.tickets.values().collect();
        all.sort_unstable_by_key(|live| live.order);
        all
    }

    /// All reserved matches in the order of their proposals.
    pub fn reserved_in_order(&self) -> Vec<&Reserved> {
        let mut all: Vec<&Reserved> = self.reserved.values().collect();
        all.sort_unstable_by_key(|reserved| reserved.proposed.id);
        all
    }

    /// Open backfills, by id.
    pub fn backfills_in_order(&self) -> Vec<&OpenMatch> {
        let mut all: Vec<&OpenMatch> = self.backfills.values().collect();
        all.sort_unstable_by_key(|open| open.backfill.id);
        all
    }

    /// The waiting ticket that expires first, if that is due.
    pub fn due_expiry(&self, now_ms: u64) -> Option<TicketId> {
        let &(at_ms, ticket) = self.expiries.first()?;
        (at_ms <= now_ms).then_some(ticket)
    }

    /// The reservation that lapses first, if that is due.
    pub fn due_lapse(&self, now_ms: u64) -> Option<MatchId> {
        let &(at_ms, id) = self.deadlines.first()?;
        (at_ms <= now_ms).then_some(id)
    }

    /// When the oldest result was made.
    pub fn oldest_result_ms(&self) -> Option<u64> {
        self.ended_order.front().map(|&(at_ms, _)| at_ms)
    }

    /// Applies entries as they stand in a record, up to the first that isn't ours or can't follow. How many were applied.
    pub fn read(&mut self, entries: &[u8]) -> usize {
        let (mut reader, mut moved) = (wire::Reader(entries), Vec::new());
        let mut count = 0;
        while let Some(entry) = Entry::decode(&mut reader)
            && self.apply(&entry, &mut moved).is_ok()
        {
            moved.clear();
            count += 1;
        }
        count
    }

    /// Applies the next entry. Tickets that now stand differently are pushed to `moved`.
    ///
    /// # Errors
    /// [`Impossible`]; then nothing is changed.
    pub fn apply(&mut self, entry: &Entry, moved: &mut Vec<TicketId>) -> Result<(), Impossible> {
        let applied = match entry {
            Entry::Opened { epoch, at_ms } => self.open(*epoch, *at_ms),
            Entry::Enqueued {
                ticket,
                class,
                outside,
                expires_ms,
            } => self.enqueue(ticket, *class, *outside, *expires_ms, moved),
            Entry::Admitted { ticket, .. } => self.admit(*ticket, moved),
            Entry::Cancelled { ticket, at_ms } => {
                self.leave(*ticket, *at_ms, How::Cancelled, moved)
            }
            Entry::Expired { ticket, at_ms } => self.leave(*ticket, *at_ms, How::Expired, moved),
            Entry::Proposed(proposed) => self.propose(proposed, moved),
            Entry::Confirmed { id, player, at_ms } => self.confirm(*id, *player, *at_ms, moved),
            Entry::Refused { id, player, at_ms } => self.refuse(*id, *player, *at_ms, moved),
            Entry::Lapsed { id, at_ms } => self.lapse(*id, *at_ms, moved),
            Entry::Committed { id, room, at_ms } => self.commit(*id, room, *at_ms, moved),
            Entry::BackfillOpened { backfill, room, .. } => self.open_backfill(backfill, room),
            Entry::BackfillClosed { id, .. } => self.close_backfill(*id),
            Entry::Forgotten { before_ms, .. } => {
                self.forget(*before_ms);
                Ok(())
            }
        };
        applied.map_err(|problem| Impossible {
            seq: self.seq + 1,
            problem,
        })?;
        self.seq += 1;
        self.now_ms = self.now_ms.max(entry.at_ms());
        self.bound_results();
        Ok(())
    }

    fn open(&mut self, epoch: u64, at_ms: u64) -> Result<(), &'static str> {
        if epoch <= self.epoch {
            return Err("an epoch that is not above the one before");
        }
        self.epoch = epoch;
        // Nobody could confirm while nobody owned the shard.
        let away_ms = at_ms.saturating_sub(self.now_ms);
        self.deadlines.clear();
        for (&id, reserved) in &mut self.reserved {
            reserved.until_ms = reserved.until_ms.saturating_add(away_ms);
            self.deadlines.insert((reserved.until_ms, id));
        }
        Ok(())
    }

    fn enqueue(
        &mut self,
        ticket: &Arc<Ticket>,
        class: u8,
        outside: bool,
        expires_ms: u64,
        moved: &mut Vec<TicketId>,
    ) -> Result<(), &'static str> {
        let id = ticket.id;
        if self.tickets.contains_key(&id) || self.ended.contains_key(&id) {
            return Err("a ticket that is there already");
        }
        let players: BTreeSet<u64> = ticket.players.iter().map(|player| player.id).collect();
        if players.len() != ticket.players.len() {
            return Err("a player twice in a ticket");
        }
        if players
            .iter()
            .any(|player| self.players.contains_key(player))
        {
            return Err("a player in two live tickets");
        }
        for player in &ticket.players {
            self.players.insert(player.id, id);
        }
        self.arrivals += 1;
        self.counts.entered += 1;
        self.expiries.insert((expires_ms, id));
        let live = Live {
            ticket: ticket.clone(),
            order: self.arrivals,
            class,
            expires_ms,
            stage: if outside {
                Waits::Outside
            } else {
                Waits::Inside
            },
        };
        self.tickets.insert(id, live);
        moved.push(id);
        Ok(())
    }

    fn admit(&mut self, id: TicketId, moved: &mut Vec<TicketId>) -> Result<(), &'static str> {
        let live = self.tickets.get_mut(&id).ok_or("no such ticket")?;
        if live.stage != Waits::Outside {
            return Err("a ticket is admitted that is not outside");
        }
        live.stage = Waits::Inside;
        moved.push(id);
        Ok(())
    }

    /// Of a ticket that is not reserved.
    fn leave(
        &mut self,
        id: TicketId,
        at_ms: u64,
        how: How,
        moved: &mut Vec<TicketId>,
    ) -> Result<(), &'static str> {
        let live = self.tickets.get(&id).ok_or("no such ticket")?;
        if let Waits::Reserved(_) = live.stage {
            return Err("a reserved ticket leaves");
        }
        self.expiries.remove(&(live.expires_ms, id));
        self.end(id, at_ms, how, moved);
        Ok(())
    }

    fn propose(
        &mut self,
        proposed: &Proposed,
        moved: &mut Vec<TicketId>,
    ) -> Result<(), &'static str> {
        if proposed.id != self.next_match() {
            return Err("a proposal out of order");
        }
        let mut seen = BTreeSet::new();
        let mut players = 0;
        for ticket in proposed.tickets() {
            let live = self.tickets.get(&ticket).ok_or("no such ticket")?;
            if live.stage != Waits::Inside || !seen.insert(ticket) {
                return Err("a ticket is proposed that is not waiting");
            }
            players += live.ticket.players.len();
        }
        if seen.is_empty() {
            return Err("a proposal of nobody");
        }
        if let Some(backfill) = proposed.backfill {
            let open = self.backfills.get_mut(&backfill);
            let open = open.ok_or("no such backfill")?;
            if open.taken.is_some() {
                return Err("a backfill in two proposals");
            }
            open.taken = Some(proposed.id);
        }
        for ticket in proposed.tickets() {
            if let Some(live) = self.tickets.get_mut(&ticket) {
                live.stage = Waits::Reserved(proposed.id);
                self.expiries.remove(&(live.expires_ms, ticket));
            }
            moved.push(ticket);
        }
        self.proposals += 1;
        self.counts.proposals += 1;
        self.deadlines.insert((proposed.until_ms, proposed.id));
        let reserved = Reserved {
            proposed: proposed.clone(),
            until_ms: proposed.until_ms,
            confirmed: BTreeSet::new(),
            players,
        };
        self.reserved.insert(proposed.id, reserved);
        Ok(())
    }

    /// The ticket by which a player is in a reserved match.
    pub fn seat(&self, id: MatchId, player: u64) -> Option<TicketId> {
        let ticket = self.live_of(player)?;
        let stage = self.tickets.get(&ticket)?.stage;
        (stage == Waits::Reserved(id)).then_some(ticket)
    }

    fn confirm(
        &mut self,
        id: MatchId,
        player: u64,
        at_ms: u64,
        moved: &mut Vec<TicketId>,
    ) -> Result<(), &'static str> {
        self.seat(id, player)
            .ok_or("a player confirms who is not in the match")?;
        let reserved = self.reserved.get_mut(&id).ok_or("no such match")?;
        if !reserved.proposed.ask {
            return Err("nobody is asked in this match");
        }
        reserved.confirmed.insert(player);
        if reserved.is_agreed() {
            self.deadlines.remove(&(reserved.until_ms, id));
            reserved.until_ms = at_ms.saturating_add(reserved.proposed.allocate_ms);
            self.deadlines.insert((reserved.until_ms, id));
        }
        moved.extend(reserved.proposed.tickets());
        Ok(())
    }

    fn refuse(
        &mut self,
        id: MatchId,
        player: u64,
        at_ms: u64,
        moved: &mut Vec<TicketId>,
    ) -> Result<(), &'static str> {
        let seat = self.seat(id, player);
        let seat = seat.ok_or("a player refuses who is not in the match")?;
        let reserved = self.dissolve(id).ok_or("no such match")?;
        for ticket in reserved.proposed.tickets() {
            if ticket == seat {
                self.end(ticket, at_ms, How::Refused { id, player }, moved);
            } else {
                self.wait_again(ticket, moved);
            }
        }
        Ok(())
    }

    fn lapse(
        &mut self,
        id: MatchId,
        at_ms: u64,
        moved: &mut Vec<TicketId>,
    ) -> Result<(), &'static str> {
        let reserved = self.dissolve(id).ok_or("no such match")?;
        let agreed = reserved.is_agreed();
        for ticket in reserved.proposed.tickets() {
            let said_yes = self.tickets.get(&ticket).is_some_and(|live| {
                let mut players = live.ticket.players.iter();
                players.all(|player| reserved.confirmed.contains(&player.id))
            });
            if agreed || said_yes {
                self.wait_again(ticket, moved);
            } else {
                self.end(ticket, at_ms, How::Unconfirmed { id }, moved);
            }
        }
        self.counts.lapsed += 1;
        Ok(())
    }

    fn commit(
        &mut self,
        id: MatchId,
        room: &str,
        at_ms: u64,
        moved: &mut Vec<TicketId>,
    ) -> Result<(), &'static str> {
        let reserved = self.reserved.get(&id).ok_or("no such match")?;
        if !reserved.is_agreed() {
            return Err("a match is made before everybody agreed");
        }
        let Some(reserved) = self.dissolve(id) else {
            return Err("no such match");
        };
        let proposed = reserved.proposed;
        let party = |&ticket: &TicketId| Party {
            ticket,
            players: self.tickets.get(&ticket).map_or_else(Box::default, players),
        };
        let teams = proposed.teams.iter();
        let made = Arc::new(Match {
            id,
            teams: teams.map(|team| team.iter().map(party).collect()).collect(),
            roles: proposed.roles.clone(),
            region: proposed.region,
            quality: proposed.quality,
            room: room.into(),
            backfill: proposed.backfill,
            at_ms,
        });
        for ticket in proposed.tickets() {
            self.end(ticket, at_ms, How::Matched(made.clone()), moved);
        }
        if let Some(backfill) = proposed.backfill {
            self.backfills.remove(&backfill);
        }
        self.counts.matches += 1;
        Ok(())
    }

    fn open_backfill(&mut self, backfill: &Backfill, room: &str) -> Result<(), &'static str> {
        if self.backfills.contains_key(&backfill.id) {
            return Err("a backfill that is open already");
        }
        let open = OpenMatch {
            backfill: backfill.clone(),
            room: room.into(),
            taken: None,
        };
        self.backfills.insert(backfill.id, open);
        Ok(())
    }

    fn close_backfill(&mut self, id: BackfillId) -> Result<(), &'static str> {
        let open = self.backfills.get(&id).ok_or("no such backfill")?;
        if open.taken.is_some() {
            return Err("a backfill is closed while it is being filled");
        }
        self.backfills.remove(&id);
        Ok(())
    }

    fn forget(&mut self, before_ms: u64) {
        while self
            .ended_order
            .front()
            .is_some_and(|&(at_ms, _)| at_ms < before_ms)
        {
            self.drop_oldest_result();
        }
    }

    fn bound_results(&mut self) {
        while self.ended.len() > RESULTS_MAX {
            self.drop_oldest_result();
        }
    }

    fn drop_oldest_result(&mut self) {
        let Some((_, id)) = self.ended_order.pop_front() else {
            return;
        };
        let Some(ended) = self.ended.remove(&id) else {
            return;
        };
        for player in &ended.players {
            if self.ended_of.get(player) == Some(&id) {
                self.ended_of.remove(player);
            }
        }
    }

    /// Takes a reservation out; its tickets are the caller's to place.
    fn dissolve(&mut self, id: MatchId) -> Option<Reserved> {
        let reserved = self.reserved.remove(&id)?;
        self.deadlines.remove(&(reserved.until_ms, id));
        let backfill = reserved.proposed.backfill;
        if let Some(open) = backfill.and_then(|id| self.backfills.get_mut(&id)) {
            open.taken = None;
        }
        Some(reserved)
    }

    fn wait_again(&mut self, id: TicketId, moved: &mut Vec<TicketId>) {
        if let Some(live) = self.tickets.get_mut(&id) {
            live.stage = Waits::Inside;
            self.expiries.insert((live.expires_ms, id));
            self.counts.returned += 1;
            moved.push(id);
        }
    }

    fn end(&mut self, id: TicketId, at_ms: u64, how: How, moved: &mut Vec<TicketId>) {
        let Some(live) = self.tickets.remove(&id) else {
            return;
        };
        self.counts.end(&how);
        for player in &live.ticket.players {
            self.players.remove(&player.id);
            self.ended_of.insert(player.id, id);
        }
        // The clock of entries never goes back, so the order of ends is that of their times.
        let at_ms = at_ms.max(self.now_ms);
        self.ended_order.push_back((at_ms, id));
        let ended = Ended {
            at_ms,
            players: players(&live),
            how,
        };
        self.ended.insert(id, ended);
        moved.push(id);
    }
}

fn players(live: &Live) -> Box<[u64]> {
    let players = live.ticket.players.iter();
    players.map(|player| player.id).collect()
}
