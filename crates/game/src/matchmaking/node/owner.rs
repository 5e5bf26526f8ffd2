//! The owner of a shard, as a pure machine: requests, ticks, proposals, what disk, standby and lease service say go in;
//! records to write, answers, commands to the search go out. It reads no clock and does no I/O, so that the simulator
//! runs it as it is.
//!
//! A change is applied to the ledger at once and written with the next record. What anybody outside may see of it
//! (answers, calls for rooms) is held until [`Copies`] says that the entry can't be lost any more.

mod decide;
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

use super::talk::{Answer, Request, Stage, TicketState};
use crate::matchmaking::{
    ledger::{Counts, Entry, Imbalance, Impossible, Ledger, MatchId, Waits},
    log::{Checkpoint, Position, Record, ReplicaId},
    rules::MatchRules,
    search::Proposal,
    standby::{Amend, Copies, PATIENCE},
    ticket::{Backfill, BackfillId, RegionIndex, Ticket, TicketId},
    waiting::{Departures, Line},
};

use recent::Recent;

/// Entries that are due (expiries, lapses) written per tick at most; the rest follows with the next.
pub const DUE_MAX: usize = 10_000;
/// A batch that has grown to this many bytes takes no more requests until it is on its way.
pub const BATCH_BYTES_MAX: usize = 1 << 20;
/// Answers and news that may wait to be safe before requests have to; then the intake fills up, and more are refused.
pub const HELD_MAX: usize = 262_144;
/// Records that may be under way to a standby that is waited for.
const PIPELINE_MAX: usize = 8;
/// Of [`Limits::outside_max`].
const OUTSIDE_MAX: usize = 1_000_000;
const AUDIT_EVERY: Duration = Duration::from_secs(10);
/// How often old results are looked for, and places in the waiting room told.
const MINUTE_HAND: Duration = Duration::from_secs(1);

/// What a shard allows itself. All have defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tickets in the search and in proposals at once; more wait outside. Default 100,000.
    pub inside_max: usize,
    /// Tickets in the waiting room; more are refused. Default 100,000.
    pub outside_max: usize,
    /// How long a ticket may wait, outside and inside, before it expires. Default 10 min.
    pub ticket_ttl: Duration,
    /// How long players have to confirm. Default 12 s.
    pub confirm_within: Duration,
    /// How long a room is looked for. Default 10 s.
    pub allocate_within: Duration,
    /// Whether players are asked to confirm. Default true.
    pub ask: bool,
    /// How long results are kept (and at most the newest
    /// [`RESULTS_MAX`](crate::matchmaking::ledger::RESULTS_MAX)). Default 5 min.
    pub keep_results: Duration,
    /// Matches with open seats at once. Default 4,096, which is all that a search takes.
    pub backfills_max: usize,
    /// Tickets that are watched at once. Default 200,000.
    pub watches_max: usize,
    /// Bytes of log after which the state is written as a checkpoint. Default 64 MiB.
    pub checkpoint_bytes: u64,
    /// How long a standby may say nothing before it is no longer waited for. Default 500 ms.
    pub standby_patience: Duration,
}

impl Limits {
    /// # Errors
    /// What is larger than the search takes, or than can be read back.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        use crate::matchmaking::{log::SEGMENT_BYTES_MAX, search};
        if self.inside_max > search::TICKETS_MAX {
            return Err("inside_max is at most 500,000");
        }
        if self.outside_max > OUTSIDE_MAX {
            return Err("outside_max is at most 1,000,000");
        }
        if self.backfills_max > search::BACKFILLS_MAX {
            return Err("backfills_max is at most 4,096");
        }
        if self.checkpoint_bytes > SEGMENT_BYTES_MAX / 4 {
            return Err("checkpoint_bytes is at most 256 MiB");
        }
        Ok(())
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            inside_max: 100_000,
            outside_max: 100_000,
            ticket_ttl: Duration::from_secs(600),
            confirm_within: Duration::from_secs(12),
            allocate_within: Duration::from_secs(10),
            ask: true,
            keep_results: Duration::from_secs(300),
            backfills_max: crate::matchmaking::search::BACKFILLS_MAX,
            watches_max: 200_000,
            checkpoint_bytes: 64 << 20,
            standby_patience: PATIENCE,
        }
    }
}

/// Both clocks: one for spans, one for what is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Since any fixed start.
    pub mono: Duration,
    /// Unix milliseconds, which don't go back while this owner lives.
    pub ms: u64,
}

/// What happens to an owner. `R` is where an answer goes.
#[derive(Debug)]
pub enum Input<R> {
    Request(Request, R),
    /// To be given several times a second.
    Tick,
    Proposed(Vec<Proposal>),
    /// The search doesn't take a ticket that passed the door: a defect.
    Unsearchable(TicketId, String),
    Allocated(MatchId, Result<String, String>),
    /// The own disk has everything up to an entry.
    Synced(u64),
    /// A standby connects and says how far its history goes.
    Joined {
        session: u64,
        replica: ReplicaId,
        position: Position,
    },
    Acked {
        replica: ReplicaId,
        seq: u64,
    },
    Left {
        session: u64,
        replica: ReplicaId,
    },
    /// The lease is good until then.
    Renewed(Duration),
    Amended(Amend),
    /// Take in nothing more, finish what is reserved.
    Drain,
}

#[derive(Debug)]
pub enum Output<R> {
    /// To be written, synced, and sent to the standby that is attached.
    Append(Record),
    /// What all records so far come to, to be written beside the log.
    Checkpoint(Vec<u8>),
    Answer(R, Answer),
    /// A watched ticket stands differently.
    Told(TicketState),
    Search(Command),
    /// Everybody agreed: a room is wanted until then (monotonic).
    Allocate(Allocation, Duration),
    /// A room that was found, or may yet be, has no players any more.
    GiveBack(MatchId),
    /// The roll has to be changed; repeated until it is, or the lease is over.
    Amend(Amend),
    /// A standby's session begins: with the whole state, or with the records that it lacks.
    Attach {
        session: u64,
        checkpoint: Option<Checkpoint>,
        tail: Vec<Record>,
    },
    /// There is no place for this standby now.
    Turned {
        session: u64,
    },
    /// Everything is written and known to the standby, nothing is reserved: let go of the lease.
    Drained,
}

/// What the search is to do, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// One that comes for the first time.
    Insert(Arc<Ticket>),
    /// One that was in a proposal.
    Return(Arc<Ticket>),
    Remove(TicketId),
    Offer(Backfill),
    Withdraw(BackfillId),
    /// No more proposals.
    Rest,
}

/// What an allocator needs to know.
#[derive(Clone, Debug, PartialEq)]
pub struct Allocation {
    /// The same match asks with the same id, by this owner or the next: it gets the same room.
    pub id: MatchId,
    pub teams: Vec<Vec<Arc<Ticket>>>,
    /// What each player plays, see [`Proposal`].
    pub roles: Vec<Vec<Option<u8>>>,
    pub region: RegionIndex,
    /// The room of the running match whose open seats these are, to be told who comes.
    pub backfill: Option<String>,
}

/// An owner that can't go on.
#[derive(Debug, thiserror::Error)]
pub enum Defect {
    #[error(transparent)]
    Impossible(#[from] Impossible),
    #[error(transparent)]
    Imbalance(#[from] Imbalance),
}

/// Requests that were turned away, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    pub unfit: u64,
    pub queued: u64,
    pub full: u64,
    pub draining: u64,
    pub other: u64,
}

/// How an owner is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnerMetrics {
    pub counts: Counts,
    pub refused: Refused,
    /// Tickets in search and proposals.
    pub inside: u64,
    /// Tickets in the waiting room.
    pub outside: u64,
    pub backfills: u64,
    pub results: u64,
    pub watched: u64,
    pub records: u64,
    pub entries: u64,
    pub bytes: u64,
    /// Entries that clients can't be told of yet.
    pub unacknowledged: u64,
    pub standby_in_sync: bool,
}

/// What an owner takes over.
#[derive(Debug)]
pub struct Start {
    pub ledger: Ledger,
    /// Of the log that came to the ledger.
    pub position: Position,
    /// As the lease says.
    pub epoch: u64,
    pub lease_until: Duration,
    /// Bytes that the log has written since its newest checkpoint.
    pub log_bytes: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Owner<R> {
    limits: Limits,
    rules: Arc<MatchRules>,
    ledger: Ledger,
    copies: Copies,
    line: Line,
    departures: Departures,
    position: Position,
    synced: u64,
    recent: Recent,
    /// Batches that were full, oldest first, and the one that is being filled.
    full: Vec<(Vec<u8>, u32)>,
    body: Vec<u8>,
    count: u32,
    since_checkpoint: u64,
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
    written: (u64, u64, u64),
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
            position,
            recent: Recent::default(),
            full: Vec::new(),
            body: Vec::new(),
            count: 0,
            since_checkpoint: log_bytes,
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
            written: (0, 0, 0),
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
        !self.full.is_empty() || self.held.len() >= HELD_MAX
    }

    pub fn metrics(&self) -> OwnerMetrics {
        let (records, entries, bytes) = self.written;
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
            Input::Acked { replica, seq } if seq <= self.position.seq => {
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
        if self.synced >= self.position.seq && !self.standby_is_behind() {
            self.seal(out)?;
        }
        if self.amending.is_none()
            && let Some(amend) = self.copies.wants(self.position.seq, now.mono)
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
        entry.encode(&mut self.body);
        self.count += 1;
        // Rooms and the search don't wait for the disk, but a record has to stay one that can be read.
        if self.body.len() >= BATCH_BYTES_MAX {
            let body = std::mem::take(&mut self.body);
            self.full.push((body, std::mem::take(&mut self.count)));
        }
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
        if self.ledger.seq() == self.position.seq {
            return Ok(());
        }
        self.ledger.balance()?;
        for (body, count) in std::mem::take(&mut self.full) {
            self.append(&body, count, out);
        }
        if self.count > 0 {
            let mut body = std::mem::take(&mut self.body);
            let count = std::mem::take(&mut self.count);
            self.append(&body, count, out);
            body.clear();
            self.body = body;
        }
        if self.since_checkpoint > self.limits.checkpoint_bytes {
            self.since_checkpoint = 0;
            out.push(Output::Checkpoint(self.ledger.snapshot()));
        }
        Ok(())
    }

    fn append(&mut self, body: &[u8], count: u32, out: &mut Vec<Output<R>>) {
        let record = Record::seal(self.ledger.epoch(), &self.position, count, body);
        self.position = record.position();
        let bytes = record.bytes().len() as u64;
        self.written.0 += 1;
        self.written.1 += u64::from(count);
        self.written.2 += bytes;
        self.since_checkpoint += bytes;
        self.recent.push(record.clone());
        out.push(Output::Append(record));
    }

    /// Whether a standby that is waited for has enough to do; then batches grow.
    fn standby_is_behind(&self) -> bool {
        let waited_for = self.copies.waits_for();
        waited_for.is_some_and(|acked| self.recent.after(acked) >= PIPELINE_MAX)
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
        let tail = self.recent.since(&position, &self.position);
        let acked = tail.as_ref().map_or(0, |_| position.seq);
        // A standby that dials again is heard, even before its old connection is known to be dead.
        if !self.copies.joined(replica, acked, now.mono) {
            out.push(Output::Turned { session });
            return Ok(());
        }
        self.session = Some(session);
        let checkpoint = tail.is_none().then(|| Checkpoint {
            position: self.position,
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
