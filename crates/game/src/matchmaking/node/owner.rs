//! The owner of a shard, as a pure machine: requests, ticks, proposals, what disk, standby and lease service say go in;
//! records to write, answers, commands to the search go out. It reads no clock and does no I/O, so that the simulator
//! runs it as it is.
//!
//! A change is applied to the ledger at once and written with the next record. What anybody outside may see of it
//! (answers, calls for rooms) is held until [`Copies`] says that the entry can't be lost any more.

mod decide;
mod exchange;
mod journal;
mod limits;
mod recent;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use super::talk::{Answer, Stage, TicketState};
use crate::matchmaking::{
    ledger::{Entry, Ledger, MatchId, Waits},
    log::{Checkpoint, Position, ReplicaId},
    rules::MatchRules,
    standby::{Amend, Copies},
    ticket::TicketId,
    waiting::{Departures, Line},
};

pub use exchange::{Allocation, Command, Defect, Input, Now, Output, OwnerMetrics, Refused, Start};
use journal::{Journal, Written};
pub use limits::Limits;

/// Entries that are due (expiries, lapses) written per tick at most; the rest follows with the next.
pub const DUE_MAX: usize = 10_000;
/// Answers and news that may wait to be safe before requests have to; then the intake fills up, and more are refused.
pub const HELD_MAX: usize = 262_144;
const AUDIT_EVERY: Duration = Duration::from_secs(10);
/// How often old results are looked for, and places in the waiting room told.
const MINUTE_HAND: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub struct Owner<R> {
    limits: Limits,
    rules: Arc<MatchRules>,
    ledger: Ledger,
    copies: Copies,
    line: Line,
    departures: Departures,
    journal: Journal,
    synced: u64,
    held: VecDeque<(u64, Held<R>)>,
    moved: Vec<TicketId>,
    watched: HashSet<TicketId>,
    /// Matches for which a room was asked.
    allocating: HashSet<MatchId>,
    amending: Option<Amend>,
    /// Of the standby that is attached.
    session: Option<u64>,
    /// Of the newest input.
    now: Duration,
    draining: bool,
    drained: bool,
    refused: Refused,
    hand: Duration,
    /// The entry with which places were told last.
    places_told: u64,
    audited: Duration,
}

/// What waits for an entry to be safe.
#[derive(Debug)]
enum Held<R> {
    Answer(R, Answer),
    Told(TicketState),
    Allocate(MatchId),
    GiveBack(MatchId),
}

impl<R> Owner<R> {
    /// Begins an epoch over what the log came to.
    ///
    /// # Errors
    /// [`Defect::Impossible`] when the epoch isn't above the ledger's: the lease service went back in time.
    pub fn open(
        start: Start,
        rules: Arc<MatchRules>,
        limits: Limits,
        now: Now,
        out: &mut Vec<Output<R>>,
    ) -> Result<Owner<R>, Defect> {
        let Start {
            ledger,
            position,
            epoch,
            lease_until,
            log_bytes,
        } = start;
        debug_assert_eq!(ledger.seq(), position.seq);
        let mut departures = Departures::default();
        departures.began(now.mono);
        // The waiting room of a predecessor may have been larger.
        let outside_max = limits.outside_max.max(ledger.live_len());
        let mut owner = Owner {
            copies: Copies::new(position.seq, lease_until, limits.standby_patience),
            line: Line::new(outside_max),
            limits,
            rules,
            ledger,
            departures,
            synced: position.seq,
            journal: Journal::new(position, log_bytes),
            held: VecDeque::new(),
            moved: Vec::new(),
            watched: HashSet::new(),
            allocating: HashSet::new(),
            amending: None,
            session: None,
            now: now.mono,
            draining: false,
            drained: false,
            refused: Refused::default(),
            hand: now.mono,
            places_told: 0,
            audited: now.mono,
        };
        let at_ms = owner.clock(now);
        owner.write(Entry::Opened { epoch, at_ms }, out)?;
        owner.resume(out);
        owner.settle(now, out)?;
        Ok(owner)
    }

    /// Puts everybody back where the entries left them.
    fn resume(&mut self, out: &mut Vec<Output<R>>) {
        for live in self.ledger.live_in_order() {
            match live.stage {
                Waits::Outside => drop(self.line.push(live.class, live.ticket.id)),
                Waits::Inside => out.push(Output::Search(Command::Insert(live.ticket.clone()))),
                Waits::Reserved(_) => {}
            }
        }
        for open in self.ledger.backfills_in_order() {
            if open.taken.is_none() {
                out.push(Output::Search(Command::Offer(open.backfill.clone())));
            }
        }
        let agreed = self.ledger.reserved_in_order().into_iter();
        let agreed = agreed.filter(|reserved| reserved.is_agreed());
        let agreed: Vec<MatchId> = agreed.map(|reserved| reserved.proposed.id).collect();
        for id in agreed {
            // The predecessor may have asked already.
            self.allocating.insert(id);
            self.hold(Held::Allocate(id));
        }
    }

    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Whether clients may be told anything at `now`.
    pub fn is_valid(&self, now: Duration) -> bool {
        self.copies.is_valid(now)
    }

    /// Whether so much waits to be written or told that requests had better wait.
    pub fn is_full(&self) -> bool {
        self.journal.is_full() || self.held.len() >= HELD_MAX
    }

    pub fn metrics(&self) -> OwnerMetrics {
        let Written {
            records,
            entries,
            bytes,
        } = self.journal.written();
        let outside = self.line.len() as u64;
        OwnerMetrics {
            counts: *self.ledger.counts(),
            refused: self.refused,
            inside: self.inside() as u64,
            outside,
            backfills: self.ledger.backfills_len() as u64,
            results: self.ledger.ended_len() as u64,
            watched: self.watched.len() as u64,
            records,
            entries,
            bytes,
            unacknowledged: self.held.back().map_or(0, |&(seq, _)| seq)
                - self.held.front().map_or(0, |&(seq, _)| seq),
            standby_in_sync: self.copies.in_sync().is_some(),
        }
    }

    /// Takes one input. Outputs are pushed in the order in which they have to be done.
    ///
    /// # Errors
    /// A [`Defect`]: the owner must stop, and tell nobody anything more.
    pub fn take(
        &mut self,
        input: Input<R>,
        now: Now,
        out: &mut Vec<Output<R>>,
    ) -> Result<(), Defect> {
        self.now = now.mono;
        match input {
            Input::Request(request, to) => {
                let answer = self.decide(request, now, out)?;
                if let Err(refusal) = &answer {
                    self.count_refusal(refusal);
                }
                self.hold(Held::Answer(to, answer));
            }
            Input::Tick => self.tick(now, out)?,
            Input::Proposed(proposals) => {
                for proposal in proposals {
                    self.propose(proposal, now, out)?;
                }
            }
            Input::Unsearchable(ticket, reason) => {
                tracing::error!(%ticket, reason, "the search refused an admitted ticket");
                let inside = |live: &crate::matchmaking::ledger::Live| live.stage == Waits::Inside;
                if self.ledger.live(ticket).is_some_and(inside) {
                    let at_ms = self.clock(now);
                    self.write(Entry::Cancelled { ticket, at_ms }, out)?;
                }
            }
            Input::Allocated(id, room) => self.allocated(id, room, now, out)?,
            Input::Synced(seq) => {
                self.synced = self.synced.max(seq);
                self.copies.synced(seq);
            }
            Input::Joined {
                session,
                replica,
                position,
            } => self.join(session, replica, position, now, out)?,
            // More than was written is another history's.
            Input::Acked { replica, seq } if seq <= self.journal.position().seq => {
                self.copies.acked(replica, seq, now.mono);
            }
            Input::Acked { replica, seq } => {
                tracing::error!(%replica, seq, "a standby has what was never sent");
            }
            Input::Left { session, replica } => {
                if self.session == Some(session) {
                    self.session = None;
                    self.copies.left(replica);
                }
            }
            Input::Renewed(until) => self.copies.renewed(until),
            Input::Amended(amend) => {
                self.amending.take_if(|pending| *pending == amend);
                self.copies.amended(amend);
            }
            Input::Drain => {
                self.draining = true;
                out.push(Output::Search(Command::Rest));
            }
        }
        Ok(())
    }

    /// After a few inputs: writes what there is to write, and tells what may be told.
    ///
    /// # Errors
    /// As [`Owner::take`].
    pub fn settle(&mut self, now: Now, out: &mut Vec<Output<R>>) -> Result<(), Defect> {
        self.fill_from_line(now, out)?;
        if self.synced >= self.journal.position().seq && !self.standby_is_behind() {
            self.seal(out)?;
        }
        if self.amending.is_none()
            && let Some(amend) = self.copies.wants(self.journal.position().seq, now.mono)
        {
            self.amending = Some(amend);
            out.push(Output::Amend(amend));
        }
        let safe = self.copies.acknowledged(now.mono);
        while let Some(safe) = safe
            && self.held.front().is_some_and(|&(seq, _)| seq <= safe)
        {
            if let Some((_, held)) = self.held.pop_front() {
                self.let_go(held, now, out);
            }
        }
        let empty = self.held.is_empty() && safe >= Some(self.ledger.seq());
        if self.draining && !self.drained && empty && self.ledger.reserved_len() == 0 {
            self.drained = true;
            out.push(Output::Drained);
        }
        Ok(())
    }

    /// What was not told and never will be: the answers, so that somebody can say that much.
    pub fn abandon(self) -> impl Iterator<Item = R> {
        self.held.into_iter().filter_map(|(_, held)| match held {
            Held::Answer(to, _) => Some(to),
            _ => None,
        })
    }

    /// Entries never take time back, not even those of an owner whose clock is behind its predecessor's.
    fn clock(&self, now: Now) -> u64 {
        now.ms.max(self.ledger.now_ms())
    }

    /// Applies an entry, adds it to the batch, and follows it up.
    fn write(&mut self, entry: Entry, out: &mut Vec<Output<R>>) -> Result<(), Defect> {
        let mut moved = std::mem::take(&mut self.moved);
        moved.clear();
        self.ledger.apply(&entry, &mut moved)?;
        self.journal.add(&entry);
        for &ticket in &moved {
            self.follow(ticket, &entry, out);
        }
        self.moved = moved;
        Ok(())
    }

    /// Keeps line, search and watchers in step with a ticket that moved.
    fn follow(&mut self, ticket: TicketId, entry: &Entry, out: &mut Vec<Output<R>>) {
        match self.ledger.live(ticket) {
            Some(live) => match live.stage {
                Waits::Outside => drop(self.line.push(live.class, ticket)),
                Waits::Inside => {
                    let new = matches!(entry, Entry::Enqueued { .. } | Entry::Admitted { .. });
                    let insert = if new {
                        Command::Insert
                    } else {
                        Command::Return
                    };
                    out.push(Output::Search(insert(live.ticket.clone())));
                }
                Waits::Reserved(_) => {}
            },
            None => {
                let left = matches!(entry, Entry::Cancelled { .. } | Entry::Expired { .. });
                let was_outside = left && self.line.remove(ticket);
                if left && !was_outside {
                    out.push(Output::Search(Command::Remove(ticket)));
                }
                if !was_outside {
                    self.departures.departed(1, self.now);
                }
            }
        }
        if self.watched.contains(&ticket)
            && let Some(stage) = self.stage(ticket)
        {
            if stage.is_final() {
                self.watched.remove(&ticket);
            }
            self.hold(Held::Told(TicketState { ticket, stage }));
        }
    }

    fn stage(&self, ticket: TicketId) -> Option<Stage> {
        if let Some(ended) = self.ledger.ended(ticket) {
            return Some(Stage::Ended(ended.how.clone()));
        }
        let live = self.ledger.live(ticket)?;
        Some(match live.stage {
            Waits::Outside => {
                let ahead = self.line.ahead(ticket).unwrap_or(self.line.len() as u64);
                Stage::Outside(self.departures.estimate(ahead))
            }
            Waits::Inside => Stage::Waiting {
                since_ms: live.ticket.enqueued_ms,
            },
            Waits::Reserved(id) => {
                let reserved = self.ledger.reserved(id)?;
                Stage::Reserved {
                    id,
                    until_ms: reserved.until_ms,
                    ask: reserved.proposed.ask,
                    confirmed: reserved.confirmed.len() as u32,
                    players: reserved.players as u32,
                }
            }
        })
    }

    fn hold(&mut self, held: Held<R>) {
        self.held.push_back((self.ledger.seq(), held));
    }

    /// What may be seen now. Calls for rooms are made from here, because nobody may learn of a match that could be lost.
    fn let_go(&mut self, held: Held<R>, now: Now, out: &mut Vec<Output<R>>) {
        match held {
            Held::Answer(to, answer) => out.push(Output::Answer(to, answer)),
            Held::Told(state) => out.push(Output::Told(state)),
            Held::GiveBack(id) => out.push(Output::GiveBack(id)),
            Held::Allocate(id) => {
                let Some(reserved) = self.ledger.reserved(id) else {
                    return;
                };
                let proposed = &reserved.proposed;
                let ticket = |id: &TicketId| Some(self.ledger.live(*id)?.ticket.clone());
                let teams = proposed.teams.iter();
                let room = proposed.backfill.and_then(|id| self.ledger.backfill(id));
                let allocation = Allocation {
                    id,
                    teams: teams
                        .map(|team| team.iter().filter_map(ticket).collect())
                        .collect(),
                    roles: proposed.roles.clone(),
                    region: proposed.region,
                    backfill: room.map(|open| open.room.clone()),
                };
                let left = reserved.until_ms.saturating_sub(now.ms);
                self.allocating.insert(id);
                let until = now.mono + Duration::from_millis(left);
                out.push(Output::Allocate(allocation, until));
            }
        }
    }

    /// Closes the batches, if there is anything in them.
    fn seal(&mut self, out: &mut Vec<Output<R>>) -> Result<(), Defect> {
        if self.ledger.seq() == self.journal.position().seq {
            return Ok(());
        }
        self.ledger.balance()?;
        let records = self.journal.seal(self.ledger.epoch());
        out.extend(records.into_iter().map(Output::Append));
        if self.journal.is_checkpoint_due(self.limits.checkpoint_bytes) {
            out.push(Output::Checkpoint(self.ledger.snapshot()));
        }
        Ok(())
    }

    /// Whether a standby that is waited for has enough to do.
    fn standby_is_behind(&self) -> bool {
        let waited_for = self.copies.waits_for();
        waited_for.is_some_and(|acked| self.journal.is_ahead_of(acked))
    }

    fn join(
        &mut self,
        session: u64,
        replica: ReplicaId,
        position: Position,
        now: Now,
        out: &mut Vec<Output<R>>,
    ) -> Result<(), Defect> {
        // The state that is sent must be one that the log has been at.
        self.seal(out)?;
        let tail = self.journal.since(&position);
        let acked = tail.as_ref().map_or(0, |_| position.seq);
        // A standby that dials again is heard, even before its old connection is known to be dead.
        if !self.copies.joined(replica, acked, now.mono) {
            out.push(Output::Turned { session });
            return Ok(());
        }
        self.session = Some(session);
        let checkpoint = tail.is_none().then(|| Checkpoint {
            position: self.journal.position(),
            state: self.ledger.snapshot(),
        });
        out.push(Output::Attach {
            session,
            checkpoint,
            tail: tail.unwrap_or_default(),
        });
        Ok(())
    }

    fn tick(&mut self, now: Now, out: &mut Vec<Output<R>>) -> Result<(), Defect> {
        self.departures.turn(now.mono);
        let at_ms = self.clock(now);
        for _ in 0..DUE_MAX {
            if let Some(ticket) = self.ledger.due_expiry(at_ms) {
                self.write(Entry::Expired { ticket, at_ms }, out)?;
            } else if let Some(id) = self.ledger.due_lapse(at_ms) {
                self.dissolve(id, Entry::Lapsed { id, at_ms }, out)?;
            } else {
                break;
            }
        }
        if now.mono.saturating_sub(self.hand) >= MINUTE_HAND {
            self.hand = now.mono;
            self.forget(at_ms, out)?;
            self.tell_places();
        }
        if now.mono.saturating_sub(self.audited) >= AUDIT_EVERY {
            self.audited = now.mono;
            self.ledger.audit()?;
        }
        Ok(())
    }

    fn forget(&mut self, at_ms: u64, out: &mut Vec<Output<R>>) -> Result<(), Defect> {
        let before_ms = at_ms.saturating_sub(self.limits.keep_results.as_millis() as u64);
        if self
            .ledger
            .oldest_result_ms()
            .is_some_and(|oldest| oldest < before_ms)
        {
            self.write(Entry::Forgotten { before_ms, at_ms }, out)?;
        }
        Ok(())
    }

    /// Who watches from the waiting room hears how the line moves.
    fn tell_places(&mut self) {
        let untold = |&(seq, _): &(u64, Held<R>)| seq <= self.places_told;
        // What was told last may still wait to be safe, for as long as the disk does.
        if self.line.is_empty() || self.held.front().is_some_and(untold) {
            return;
        }
        self.places_told = self.ledger.seq();
        let outside = self.watched.iter().copied();
        let outside: Vec<TicketId> = outside
            .filter(|&ticket| self.line.ahead(ticket).is_some())
            .collect();
        for ticket in outside {
            if let Some(stage) = self.stage(ticket) {
                self.hold(Held::Told(TicketState { ticket, stage }));
            }
        }
    }
}
