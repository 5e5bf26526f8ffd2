//! What clients say to a shard, and what they hear.

use crate::matchmaking::{
    ledger::{How, MatchId},
    ticket::{Backfill, BackfillId, Problems, Ticket, TicketId},
    waiting::Estimate,
};

/// All are idempotent: who got no answer asks again, here or at the next owner.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// The ticket's id is the client's own: the same id with the same players is the same ticket. `enqueued_ms` is set by
    /// the shard. `class` is the priority in the waiting room, 0 (first) to 3: who comes back, who joins friends.
    Enqueue {
        ticket: Ticket,
        class: u8,
    },
    Cancel {
        ticket: TicketId,
    },
    Confirm {
        id: MatchId,
        player: u64,
    },
    Refuse {
        id: MatchId,
        player: u64,
    },
    Look {
        ticket: TicketId,
    },
    /// For who reconnects and knows only herself.
    LookFor {
        player: u64,
    },
    /// Says again whenever the ticket's stage changes.
    Watch {
        ticket: TicketId,
    },
    /// Offers open seats of a running match, which is at `room`. An offer ends when its seats are matched; what is still
    /// open then is offered again. Its `since_ms` nought: since the offer came.
    OpenBackfill {
        backfill: Backfill,
        room: String,
    },
    CloseBackfill {
        id: BackfillId,
    },
}

pub type Answer = Result<TicketState, Refusal>;

/// A ticket, and where it stands. Of a backfill's answer the ticket is 0.
#[derive(Clone, Debug, PartialEq)]
pub struct TicketState {
    pub ticket: TicketId,
    pub stage: Stage,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Stage {
    /// In the waiting room.
    Outside(Estimate),
    /// In the search.
    Waiting { since_ms: u64 },
    Reserved {
        id: MatchId,
        /// Until when players may confirm, or a room has to be found, unix milliseconds.
        until_ms: u64,
        /// Whether players have to confirm.
        ask: bool,
        confirmed: u32,
        players: u32,
    },
    /// Over. Kept for a while.
    Ended(How),
    /// A backfill is offered, or no longer.
    Offered(bool),
}

impl Stage {
    pub fn is_final(&self) -> bool {
        matches!(self, Stage::Ended(_))
    }
}

/// Why not. Only [`Refusal::Unknown`] leaves open whether the request took effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The rules could never match such a ticket: every reason at once.
    #[error("not admitted: {0}")]
    Unfit(#[source] Problems),
    /// A player is in one live ticket at most; this one has to be cancelled first.
    #[error("player {player} is in ticket {ticket} already")]
    Queued { player: u64, ticket: TicketId },
    /// Tickets' ids are chosen at random by who brings them: choose another.
    #[error("another party has ticket {0}")]
    Taken(TicketId),
    #[error("nothing is known of ticket {0}: it never came, or its result is no longer kept")]
    NoTicket(TicketId),
    #[error("nothing is known of player {0}")]
    NoPlayer(u64),
    /// The match went before everybody agreed, or never was.
    #[error("player {player} has no seat in match {id}")]
    NoSeat { id: MatchId, player: u64 },
    /// Too late to cancel.
    #[error("ticket {ticket} is reserved for match {id}: refuse that instead")]
    Reserved { ticket: TicketId, id: MatchId },
    /// Players are on their way to its seats.
    #[error("backfill {} is being filled", .0.0)]
    Filling(BackfillId),
    /// The same id with other seats, or another room.
    #[error("backfill {} is another match's", .0.0)]
    OtherBackfill(BackfillId),
    #[error("{max} matches are offered: that is all this shard takes")]
    BackfillsFull { max: usize },
    #[error("a room's name has at most {max} bytes")]
    RoomTooLong { max: usize },
    /// Nothing was done; come back later.
    #[error("the waiting room is full ({max} tickets)")]
    Full { max: usize },
    #[error("{max} tickets are watched: that is all this shard takes")]
    WatchesFull { max: usize },
    /// More requests than the shard can look at. Come back later; nothing was done.
    #[error("too many requests")]
    Busy,
    /// A successor will take tickets in a moment.
    #[error("the shard is being handed over")]
    Draining,
    #[error("this process doesn't own the shard{}", owner.as_ref().map(|owner| format!(", {owner} does")).unwrap_or_default())]
    NotOwner {
        /// Where the owner ships its log from, if that is known.
        owner: Option<String>,
    },
    /// The owner went while the request was on its way. Ask the next one.
    #[error("it is unknown whether the request took effect: the shard changed hands")]
    Unknown,
}
