//! What goes into an owner and what comes out: the words of the pure machine and the tasks around it.

use std::{sync::Arc, time::Duration};

use crate::matchmaking::{
    ledger::{Counts, Imbalance, Impossible, Ledger, MatchId},
    log::{Checkpoint, Position, Record, ReplicaId},
    node::talk::{Answer, Request, TicketState},
    search::Proposal,
    standby::Amend,
    ticket::{Backfill, BackfillId, RegionIndex, Ticket, TicketId},
};

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
