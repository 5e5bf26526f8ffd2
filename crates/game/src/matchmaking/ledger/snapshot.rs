//! The whole state as bytes, for checkpoints and for a standby that joins. Sorted, so that equal states have equal bytes.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    CLASSES, Counts, Ended, How, Ledger, Live, MATCH_TICKETS_MAX, Match, MatchId, OpenMatch, Party,
    Proposed, RESULTS_MAX, ROOM_BYTES_MAX, Reserved, TEAMS_MAX, Waits, entry,
    wire::{Reader, put_fixed, put_number, put_quality, put_seating, put_text, put_ticket},
};
use crate::matchmaking::ticket::{BackfillId, PARTY_MAX, RegionIndex, TicketId};

const FORMAT: u8 = 1;
/// Live tickets of a snapshot at most; more are foreign.
const LIVE_MAX: usize = 4_000_000;
const BACKFILLS_MAX: usize = 1_000_000;
/// No counter comes so far; one that did could not be added to.
const COUNT_MAX: u64 = 1 << 56;

impl Ledger {
    /// About 60 bytes per player and 30 per result.
    pub fn snapshot(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128 * self.tickets.len() + 64 * self.ended.len() + 256);
        out.push(FORMAT);
        for number in [
            self.seq,
            self.epoch,
            self.now_ms,
            self.arrivals,
            self.proposals,
        ] {
            put_number(&mut out, number);
        }
        for count in numbers(&self.counts) {
            put_number(&mut out, count);
        }
        put_number(&mut out, self.tickets.len() as u64);
        for live in self.live_in_order() {
            put_live(&mut out, live);
        }
        put_number(&mut out, self.reserved.len() as u64);
        for reserved in self.reserved_in_order() {
            put_reserved(&mut out, reserved);
        }
        put_number(&mut out, self.backfills.len() as u64);
        for open in self.backfills_in_order() {
            put_open(&mut out, open);
        }
        self.put_results(&mut out);
        out
    }

    /// Matches are written once; the results of their tickets name them by place.
    fn put_results(&self, out: &mut Vec<u8>) {
        let mut matches: Vec<&Arc<Match>> = Vec::new();
        let mut results = Vec::new();
        put_number(&mut results, self.ended_order.len() as u64);
        for (_, id) in &self.ended_order {
            let Some(ended) = self.ended.get(id) else {
                continue;
            };
            put_fixed(&mut results, id.0);
            put_number(&mut results, ended.at_ms);
            put_players(&mut results, &ended.players);
            match &ended.how {
                How::Matched(made) => {
                    // Tickets of a match end together, so it is the last one or a new one.
                    if matches.last().is_none_or(|last| last.id != made.id) {
                        matches.push(made);
                    }
                    results.push(0);
                    put_number(&mut results, matches.len() as u64 - 1);
                }
                How::Cancelled => results.push(1),
                How::Expired => results.push(2),
                How::Refused { id, player } => {
                    results.push(3);
                    id.encode(&mut results);
                    put_fixed(&mut results, *player);
                }
                How::Unconfirmed { id } => {
                    results.push(4);
                    id.encode(&mut results);
                }
            }
        }
        put_number(out, matches.len() as u64);
        for made in matches {
            put_match(out, made);
        }
        out.extend_from_slice(&results);
    }

    /// `None` when the bytes are no snapshot, or one that can't be.
    pub fn restore(bytes: &[u8]) -> Option<Ledger> {
        let mut reader = Reader(bytes);
        if reader.byte()? != FORMAT {
            return None;
        }
        let mut ledger = Ledger {
            seq: reader.number()?,
            epoch: reader.number()?,
            now_ms: reader.number()?,
            arrivals: reader.number()?,
            proposals: reader.number()?,
            counts: counts(&mut reader)?,
            ..Ledger::default()
        };
        let counted = [ledger.seq, ledger.arrivals, ledger.proposals].into_iter();
        if (counted.chain(numbers(&ledger.counts))).any(|count| count > COUNT_MAX) {
            return None;
        }
        let mut last = 0;
        for _ in 0..reader.count(LIVE_MAX)? {
            let live = live(&mut reader)?;
            // They stand in the order in which they came, and no two came at once.
            if live.order <= last || live.order > ledger.arrivals {
                return None;
            }
            last = live.order;
            ledger.add_live(live)?;
        }
        for _ in 0..reader.count(LIVE_MAX)? {
            let reserved = reserved(&mut reader)?;
            let id = reserved.proposed.id;
            ledger.deadlines.insert((reserved.until_ms, id));
            ledger.reserved.insert(id, reserved);
        }
        for _ in 0..reader.count(BACKFILLS_MAX)? {
            let open = open(&mut reader)?;
            ledger.backfills.insert(open.backfill.id, open);
        }
        ledger.read_results(&mut reader)?;
        (reader.0.is_empty() && ledger.audit().is_ok()).then_some(ledger)
    }

    fn add_live(&mut self, live: Live) -> Option<()> {
        let id = live.ticket.id;
        for player in &live.ticket.players {
            if self.players.insert(player.id, id).is_some() {
                return None;
            }
        }
        if !matches!(live.stage, Waits::Reserved(_)) {
            self.expiries.insert((live.expires_ms, id));
        }
        self.tickets.insert(id, live).is_none().then_some(())
    }

    fn read_results(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        let matches = reader.list(RESULTS_MAX, |reader| read_match(reader).map(Arc::new))?;
        for _ in 0..reader.count(RESULTS_MAX)? {
            let id = TicketId(reader.fixed()?);
            let at_ms = reader.number()?;
            let players = read_players(reader)?;
            let how = match reader.byte()? {
                0 => How::Matched(
                    matches
                        .get(usize::try_from(reader.number()?).ok()?)?
                        .clone(),
                ),
                1 => How::Cancelled,
                2 => How::Expired,
                3 => How::Refused {
                    id: MatchId::decode(reader)?,
                    player: reader.fixed()?,
                },
                4 => How::Unconfirmed {
                    id: MatchId::decode(reader)?,
                },
                _ => return None,
            };
            for player in &players {
                self.ended_of.insert(*player, id);
            }
            self.ended_order.push_back((at_ms, id));
            let ended = Ended {
                at_ms,
                players,
                how,
            };
            if self.ended.insert(id, ended).is_some() {
                return None;
            }
        }
        Some(())
    }
}

fn numbers(counts: &Counts) -> [u64; 10] {
    let Counts {
        entered,
        matched,
        cancelled,
        expired,
        refused,
        unconfirmed,
        returned,
        proposals,
        lapsed,
        matches,
    } = *counts;
    [
        entered,
        matched,
        cancelled,
        expired,
        refused,
        unconfirmed,
        returned,
        proposals,
        lapsed,
        matches,
    ]
}

fn counts(reader: &mut Reader<'_>) -> Option<Counts> {
    Some(Counts {
        entered: reader.number()?,
        matched: reader.number()?,
        cancelled: reader.number()?,
        expired: reader.number()?,
        refused: reader.number()?,
        unconfirmed: reader.number()?,
        returned: reader.number()?,
        proposals: reader.number()?,
        lapsed: reader.number()?,
        matches: reader.number()?,
    })
}

fn put_live(out: &mut Vec<u8>, live: &Live) {
    put_ticket(out, &live.ticket);
    put_number(out, live.order);
    out.push(live.class);
    put_number(out, live.expires_ms);
    match live.stage {
        Waits::Outside => out.push(0),
        Waits::Inside => out.push(1),
        Waits::Reserved(id) => {
            out.push(2);
            id.encode(out);
        }
    }
}

fn live(reader: &mut Reader<'_>) -> Option<Live> {
    Some(Live {
        ticket: Arc::new(reader.ticket()?),
        order: reader.number()?,
        class: reader.byte().filter(|&class| class < CLASSES)?,
        expires_ms: reader.number()?,
        stage: match reader.byte()? {
            0 => Waits::Outside,
            1 => Waits::Inside,
            2 => Waits::Reserved(MatchId::decode(reader)?),
            _ => return None,
        },
    })
}

fn put_reserved(out: &mut Vec<u8>, reserved: &Reserved) {
    reserved.proposed.encode(out);
    put_number(out, reserved.until_ms);
    put_number(out, reserved.players as u64);
    put_number(out, reserved.confirmed.len() as u64);
    for player in &reserved.confirmed {
        put_fixed(out, *player);
    }
}

fn reserved(reader: &mut Reader<'_>) -> Option<Reserved> {
    let most = MATCH_TICKETS_MAX * PARTY_MAX;
    Some(Reserved {
        proposed: Proposed::decode(reader)?,
        until_ms: reader.number()?,
        players: usize::try_from(reader.number()?).ok()?,
        confirmed: BTreeSet::from_iter(reader.list(most, Reader::fixed)?),
    })
}

fn put_open(out: &mut Vec<u8>, open: &OpenMatch) {
    entry::put_backfill(out, &open.backfill);
    put_text(out, &open.room);
    out.push(u8::from(open.taken.is_some()));
    if let Some(id) = open.taken {
        id.encode(out);
    }
}

fn open(reader: &mut Reader<'_>) -> Option<OpenMatch> {
    Some(OpenMatch {
        backfill: entry::backfill(reader)?,
        room: reader.text(ROOM_BYTES_MAX)?.into(),
        taken: match reader.flag()? {
            true => Some(MatchId::decode(reader)?),
            false => None,
        },
    })
}

fn put_match(out: &mut Vec<u8>, made: &Match) {
    made.id.encode(out);
    put_number(out, made.teams.len() as u64);
    for team in &made.teams {
        put_number(out, team.len() as u64);
        for party in team {
            put_fixed(out, party.ticket.0);
            put_players(out, &party.players);
        }
    }
    put_seating(out, &made.roles);
    out.push(made.region.0);
    put_quality(out, &made.quality);
    put_text(out, &made.room);
    out.push(u8::from(made.backfill.is_some()));
    if let Some(backfill) = made.backfill {
        put_fixed(out, backfill.0);
    }
    put_number(out, made.at_ms);
}

fn read_match(reader: &mut Reader<'_>) -> Option<Match> {
    let party = |reader: &mut Reader<'_>| {
        Some(Party {
            ticket: TicketId(reader.fixed()?),
            players: read_players(reader)?,
        })
    };
    Some(Match {
        id: MatchId::decode(reader)?,
        teams: reader.list(TEAMS_MAX, |reader| reader.list(MATCH_TICKETS_MAX, party))?,
        roles: reader.seating()?,
        region: RegionIndex(reader.byte()?),
        quality: reader.quality()?,
        room: reader.text(ROOM_BYTES_MAX)?.into(),
        backfill: match reader.flag()? {
            true => Some(BackfillId(reader.fixed()?)),
            false => None,
        },
        at_ms: reader.number()?,
    })
}

fn put_players(out: &mut Vec<u8>, players: &[u64]) {
    put_number(out, players.len() as u64);
    players.iter().for_each(|player| put_fixed(out, *player));
}

fn read_players(reader: &mut Reader<'_>) -> Option<Box<[u64]>> {
    reader.list(PARTY_MAX, Reader::fixed).map(Vec::into)
}
