//! The entries of the log: everything that ever changes a shard, in the one order that owner, standby and recovery share.
//! Times are unix milliseconds by the owner's clock, which entries never take back.

use std::{fmt, str::FromStr, sync::Arc};

use super::wire::{
    Reader, put_fixed, put_float, put_number, put_quality, put_seating, put_seats, put_text,
    put_ticket,
};
use crate::matchmaking::{
    search::Quality,
    ticket::{Backfill, BackfillId, RegionIndex, Ticket, TicketId},
};

/// Teams of a match at most.
pub const TEAMS_MAX: usize = 64;
/// Tickets of a match at most.
pub const MATCH_TICKETS_MAX: usize = 1024;
/// Bytes of what an allocator says about a room (an address, a token).
pub const ROOM_BYTES_MAX: usize = 1024;
/// Per team, the role of each player: a place in the rules' list, or a seat that takes everybody.
pub type Seating = Vec<Vec<Option<u8>>>;
/// Classes of priority in the waiting room; 0 goes first.
pub const CLASSES: u8 = 4;

/// Never given twice, not even by an owner who lost what another had written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MatchId {
    /// Of the owner who proposed it.
    pub epoch: u64,
    pub number: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// An owner began; everything after it is of this epoch. Reservations last longer by the time since the entry before.
    Opened {
        epoch: u64,
        at_ms: u64,
    },
    /// A ticket came in, at its `enqueued_ms`. `outside`: into the waiting room first.
    Enqueued {
        ticket: Arc<Ticket>,
        class: u8,
        outside: bool,
        expires_ms: u64,
    },
    /// Out of the waiting room, into the search.
    Admitted {
        ticket: TicketId,
        at_ms: u64,
    },
    /// By the client. Only what waits can be cancelled; who is reserved refuses.
    Cancelled {
        ticket: TicketId,
        at_ms: u64,
    },
    /// Nobody was found in time.
    Expired {
        ticket: TicketId,
        at_ms: u64,
    },
    /// Tickets are reserved for a match.
    Proposed(Proposed),
    /// One player says yes.
    Confirmed {
        id: MatchId,
        player: u64,
        at_ms: u64,
    },
    /// One player says no: her ticket goes, the others wait again, as long as they did.
    Refused {
        id: MatchId,
        player: u64,
        at_ms: u64,
    },
    /// The reservation ran out. Tickets with a player who said nothing go, the others wait again; when nobody is missing
    /// an answer (there was no room), all wait again.
    Lapsed {
        id: MatchId,
        at_ms: u64,
    },
    /// There is a room: the tickets are matched.
    Committed {
        id: MatchId,
        room: String,
        at_ms: u64,
    },
    /// A running match looks for players; `room` is where they are sent.
    BackfillOpened {
        backfill: Backfill,
        room: String,
        at_ms: u64,
    },
    BackfillClosed {
        id: BackfillId,
        at_ms: u64,
    },
    /// Results up to a time are no longer kept.
    Forgotten {
        before_ms: u64,
        at_ms: u64,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub struct Proposed {
    pub id: MatchId,
    pub teams: Vec<Vec<TicketId>>,
    /// What each player plays, see [`Proposal`](crate::matchmaking::Proposal).
    pub roles: Seating,
    pub region: RegionIndex,
    pub quality: Quality,
    pub backfill: Option<BackfillId>,
    /// Whether every player has to confirm.
    pub ask: bool,
    /// Until when players may confirm, or (nobody being asked) a room has to be found.
    pub until_ms: u64,
    /// Once all have confirmed: how much longer a room is looked for.
    pub allocate_ms: u64,
    pub at_ms: u64,
}

impl Entry {
    pub fn at_ms(&self) -> u64 {
        match self {
            Entry::Enqueued { ticket, .. } => ticket.enqueued_ms,
            Entry::Proposed(proposed) => proposed.at_ms,
            Entry::Opened { at_ms, .. }
            | Entry::Admitted { at_ms, .. }
            | Entry::Cancelled { at_ms, .. }
            | Entry::Expired { at_ms, .. }
            | Entry::Confirmed { at_ms, .. }
            | Entry::Refused { at_ms, .. }
            | Entry::Lapsed { at_ms, .. }
            | Entry::Committed { at_ms, .. }
            | Entry::BackfillOpened { at_ms, .. }
            | Entry::BackfillClosed { at_ms, .. }
            | Entry::Forgotten { at_ms, .. } => *at_ms,
        }
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Entry::Opened { epoch, at_ms } => {
                out.push(1);
                put_number(out, *epoch);
                put_number(out, *at_ms);
            }
            Entry::Enqueued {
                ticket,
                class,
                outside,
                expires_ms,
            } => {
                out.push(2);
                put_ticket(out, ticket);
                out.push(*class);
                out.push(u8::from(*outside));
                put_number(out, *expires_ms);
            }
            Entry::Admitted { ticket, at_ms } => put_about(out, 3, ticket, *at_ms),
            Entry::Cancelled { ticket, at_ms } => put_about(out, 4, ticket, *at_ms),
            Entry::Expired { ticket, at_ms } => put_about(out, 5, ticket, *at_ms),
            Entry::Proposed(proposed) => {
                out.push(6);
                proposed.encode(out);
            }
            Entry::Confirmed { id, player, at_ms } => put_answer(out, 7, id, *player, *at_ms),
            Entry::Refused { id, player, at_ms } => put_answer(out, 8, id, *player, *at_ms),
            Entry::Lapsed { id, at_ms } => {
                out.push(9);
                id.encode(out);
                put_number(out, *at_ms);
            }
            Entry::Committed { id, room, at_ms } => {
                out.push(10);
                id.encode(out);
                put_text(out, room);
                put_number(out, *at_ms);
            }
            Entry::BackfillOpened {
                backfill,
                room,
                at_ms,
            } => {
                out.push(11);
                put_backfill(out, backfill);
                put_text(out, room);
                put_number(out, *at_ms);
            }
            Entry::BackfillClosed { id, at_ms } => {
                out.push(12);
                put_fixed(out, id.0);
                put_number(out, *at_ms);
            }
            Entry::Forgotten { before_ms, at_ms } => {
                out.push(13);
                put_number(out, *before_ms);
                put_number(out, *at_ms);
            }
        }
    }

    /// The entry at the start; `None` when there is none of ours.
    pub fn decode(reader: &mut Reader<'_>) -> Option<Entry> {
        let kind = reader.byte()?;
        Some(match kind {
            1 => Entry::Opened {
                epoch: reader.number()?,
                at_ms: reader.number()?,
            },
            2 => Entry::Enqueued {
                ticket: Arc::new(reader.ticket()?),
                class: reader.byte().filter(|&class| class < CLASSES)?,
                outside: reader.flag()?,
                expires_ms: reader.number()?,
            },
            3..=5 => {
                let ticket = TicketId(reader.fixed()?);
                let at_ms = reader.number()?;
                match kind {
                    3 => Entry::Admitted { ticket, at_ms },
                    4 => Entry::Cancelled { ticket, at_ms },
                    _ => Entry::Expired { ticket, at_ms },
                }
            }
            6 => Entry::Proposed(Proposed::decode(reader)?),
            7 | 8 => {
                let id = MatchId::decode(reader)?;
                let (player, at_ms) = (reader.fixed()?, reader.number()?);
                match kind {
                    7 => Entry::Confirmed { id, player, at_ms },
                    _ => Entry::Refused { id, player, at_ms },
                }
            }
            9 => Entry::Lapsed {
                id: MatchId::decode(reader)?,
                at_ms: reader.number()?,
            },
            10 => Entry::Committed {
                id: MatchId::decode(reader)?,
                room: reader.text(ROOM_BYTES_MAX)?.into(),
                at_ms: reader.number()?,
            },
            11 => Entry::BackfillOpened {
                backfill: backfill(reader)?,
                room: reader.text(ROOM_BYTES_MAX)?.into(),
                at_ms: reader.number()?,
            },
            12 => Entry::BackfillClosed {
                id: BackfillId(reader.fixed()?),
                at_ms: reader.number()?,
            },
            13 => Entry::Forgotten {
                before_ms: reader.number()?,
                at_ms: reader.number()?,
            },
            _ => return None,
        })
    }
}

impl Proposed {
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.id.encode(out);
        put_number(out, self.teams.len() as u64);
        for team in &self.teams {
            put_number(out, team.len() as u64);
            team.iter().for_each(|ticket| put_fixed(out, ticket.0));
        }
        put_seating(out, &self.roles);
        out.push(self.region.0);
        put_quality(out, &self.quality);
        out.push(u8::from(self.backfill.is_some()));
        if let Some(backfill) = self.backfill {
            put_fixed(out, backfill.0);
        }
        out.push(u8::from(self.ask));
        put_number(out, self.until_ms);
        put_number(out, self.allocate_ms);
        put_number(out, self.at_ms);
    }

    pub fn decode(reader: &mut Reader<'_>) -> Option<Proposed> {
        let id = MatchId::decode(reader)?;
        let ticket = |reader: &mut Reader<'_>| reader.fixed().map(TicketId);
        let teams = reader.list(TEAMS_MAX, |reader| reader.list(MATCH_TICKETS_MAX, ticket))?;
        let roles = reader.seating()?;
        let region = RegionIndex(reader.byte()?);
        let quality = reader.quality()?;
        let backfill = match reader.flag()? {
            true => Some(BackfillId(reader.fixed()?)),
            false => None,
        };
        Some(Proposed {
            id,
            teams,
            roles,
            region,
            quality,
            backfill,
            ask: reader.flag()?,
            until_ms: reader.number()?,
            allocate_ms: reader.number()?,
            at_ms: reader.number()?,
        })
    }

    pub fn tickets(&self) -> impl Iterator<Item = TicketId> + '_ {
        self.teams.iter().flatten().copied()
    }
}

impl MatchId {
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_number(out, self.epoch);
        put_number(out, self.number);
    }

    pub fn decode(reader: &mut Reader<'_>) -> Option<MatchId> {
        Some(MatchId {
            epoch: reader.number()?,
            number: reader.number()?,
        })
    }
}

impl fmt::Display for MatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.number)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a match is named by two numbers, as in 3-1204")]
pub struct NoMatchId;

impl FromStr for MatchId {
    type Err = NoMatchId;

    fn from_str(text: &str) -> Result<MatchId, NoMatchId> {
        let (epoch, number) = text.split_once('-').ok_or(NoMatchId)?;
        match (epoch.parse(), number.parse()) {
            (Ok(epoch), Ok(number)) => Ok(MatchId { epoch, number }),
            _ => Err(NoMatchId),
        }
    }
}

fn put_about(out: &mut Vec<u8>, kind: u8, ticket: &TicketId, at_ms: u64) {
    out.push(kind);
    put_fixed(out, ticket.0);
    put_number(out, at_ms);
}

fn put_answer(out: &mut Vec<u8>, kind: u8, id: &MatchId, player: u64, at_ms: u64) {
    out.push(kind);
    id.encode(out);
    put_fixed(out, player);
    put_number(out, at_ms);
}

pub fn put_backfill(out: &mut Vec<u8>, backfill: &Backfill) {
    put_fixed(out, backfill.id.0);
    out.push(backfill.region.0);
    put_float(out, backfill.rating);
    put_seats(out, &backfill.open);
    put_number(out, backfill.since_ms);
}

pub fn backfill(reader: &mut Reader<'_>) -> Option<Backfill> {
    Some(Backfill {
        id: BackfillId(reader.fixed()?),
        region: RegionIndex(reader.byte()?),
        rating: reader.float()?,
        open: reader.seats(TEAMS_MAX)?,
        since_ms: reader.number()?,
    })
}
