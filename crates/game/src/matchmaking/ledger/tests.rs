//! The ledger against a model that knows nothing but the rules: any entries in any order, possible or not.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::matchmaking::{
    rating::Rating,
    ticket::{Latency, OpenSeats, Player, Roles},
};

/// A party of `players`, enqueued at `at_ms`.
pub(crate) fn ticket(id: u64, players: &[u64], at_ms: u64) -> Arc<Ticket> {
    let player = |&id: &u64| Player {
        id,
        rating: Rating::new(20.0 + id as f64 / 7.0, 2.5),
        roles: Roles::default(),
        latency_ms: Latency::of(&[20, 80]),
    };
    Arc::new(Ticket {
        id: TicketId(id),
        players: players.iter().map(player).collect(),
        enqueued_ms: at_ms,
    })
}

fn enqueued(id: u64, players: &[u64], at_ms: u64) -> Entry {
    Entry::Enqueued {
        ticket: ticket(id, players, at_ms),
        class: 3,
        outside: false,
        expires_ms: at_ms + 600_000,
    }
}

fn proposed(ledger: &Ledger, tickets: &[u64], ask: bool, at_ms: u64) -> Proposed {
    Proposed {
        id: ledger.next_match(),
        teams: tickets.iter().map(|&id| vec![TicketId(id)]).collect(),
        roles: vec![vec![Some(1), None]],
        region: RegionIndex(1),
        quality: Quality {
            score: 800,
            ..Quality::default()
        },
        backfill: None,
        ask,
        until_ms: at_ms + 12_000,
        allocate_ms: 10_000,
        at_ms,
    }
}

fn apply(ledger: &mut Ledger, entry: Entry) -> Vec<TicketId> {
    let mut moved = Vec::new();
    ledger.apply(&entry, &mut moved).unwrap();
    ledger.audit().unwrap();
    moved
}

fn opened() -> Ledger {
    let mut ledger = Ledger::new();
    apply(&mut ledger, Entry::Opened { epoch: 1, at_ms: 0 });
    ledger
}

/// Two parties in one proposal, which asks.
fn reserved() -> (Ledger, MatchId) {
    let mut ledger = opened();
    apply(&mut ledger, enqueued(1, &[11, 12], 100));
    apply(&mut ledger, enqueued(2, &[21], 200));
    let proposal = proposed(&ledger, &[1, 2], true, 1_000);
    let id = proposal.id;
    apply(&mut ledger, Entry::Proposed(proposal));
    (ledger, id)
}

fn how(ledger: &Ledger, id: u64) -> &How {
    &ledger.ended(TicketId(id)).unwrap().how
}

#[test]
fn a_party_that_names_a_player_twice_is_none() {
    let mut ledger = Ledger::new();
    let mut moved = Vec::new();
    let twice = ledger.apply(&enqueued(1, &[7, 8, 7], 1_000), &mut moved);
    assert!(twice.is_err());
    assert_eq!((ledger, moved), (Ledger::new(), Vec::new()));
}

#[test]
fn a_state_whose_counters_could_not_go_on_is_none() {
    let with = |change: fn(&mut Ledger)| {
        let mut ledger = Ledger::new();
        change(&mut ledger);
        Ledger::restore(&ledger.snapshot())
    };
    assert!(with(|ledger| ledger.arrivals = 7).is_some());
    assert_eq!(with(|ledger| ledger.seq = u64::MAX), None);
    assert_eq!(with(|ledger| ledger.arrivals = u64::MAX), None);
    assert_eq!(with(|ledger| ledger.proposals = u64::MAX), None);
    let both = |ledger: &mut Ledger| (ledger.counts.matched, ledger.counts.expired) = (u64::MAX, 1);
    assert_eq!(with(both), None);
}

#[test]
fn all_confirm_and_a_room_makes_the_match() {
    let (mut ledger, id) = reserved();
    for player in [11, 21, 12] {
        assert!(!ledger.reserved(id).unwrap().is_agreed());
        apply(
            &mut ledger,
            Entry::Confirmed {
                id,
                player,
                at_ms: 5_000,
            },
        );
    }
    assert_eq!(ledger.due_lapse(14_999), None, "the room has its own time");
    assert_eq!(ledger.due_lapse(15_000), Some(id));
    let room = "10.0.0.1:7000".to_owned();
    apply(
        &mut ledger,
        Entry::Committed {
            id,
            room,
            at_ms: 6_000,
        },
    );
    let (How::Matched(one), How::Matched(other)) = (how(&ledger, 1), how(&ledger, 2)) else {
        panic!("not matched");
    };
    assert!(Arc::ptr_eq(one, other));
    assert_eq!(one.teams[0][0].players[..], [11, 12]);
    assert_eq!(
        ledger.newest_of(12),
        Some(TicketId(1)),
        "whoever comes back learns of it"
    );
    assert_eq!(ledger.live_len(), 0);
}

#[test]
fn who_refuses_goes_and_the_others_wait_with_their_time() {
    let (mut ledger, id) = reserved();
    apply(
        &mut ledger,
        Entry::Confirmed {
            id,
            player: 21,
            at_ms: 2_000,
        },
    );
    let moved = apply(
        &mut ledger,
        Entry::Refused {
            id,
            player: 12,
            at_ms: 3_000,
        },
    );
    assert_eq!(moved, [TicketId(1), TicketId(2)]);
    assert_eq!(*how(&ledger, 1), How::Refused { id, player: 12 });
    let live = ledger.live(TicketId(2)).unwrap();
    assert_eq!((live.stage, live.ticket.enqueued_ms), (Waits::Inside, 200));
    assert_eq!(
        ledger.due_expiry(600_200),
        Some(TicketId(2)),
        "its time to live is the old one"
    );
}

#[test]
fn who_says_nothing_goes_and_who_said_yes_waits() {
    let (mut ledger, id) = reserved();
    apply(
        &mut ledger,
        Entry::Confirmed {
            id,
            player: 21,
            at_ms: 2_000,
        },
    );
    apply(
        &mut ledger,
        Entry::Confirmed {
            id,
            player: 11,
            at_ms: 2_000,
        },
    );
    apply(&mut ledger, Entry::Lapsed { id, at_ms: 13_000 });
    assert_eq!(
        *how(&ledger, 1),
        How::Unconfirmed { id },
        "half a party isn't enough"
    );
    assert_eq!(ledger.live(TicketId(2)).unwrap().stage, Waits::Inside);
}

#[test]
fn without_a_room_everybody_waits_again() {
    for ask in [true, false] {
        let mut ledger = opened();
        apply(&mut ledger, enqueued(1, &[11], 100));
        let proposal = proposed(&ledger, &[1], ask, 1_000);
        let id = proposal.id;
        apply(&mut ledger, Entry::Proposed(proposal));
        if ask {
            apply(
                &mut ledger,
                Entry::Confirmed {
                    id,
                    player: 11,
                    at_ms: 2_000,
                },
            );
        }
        apply(&mut ledger, Entry::Lapsed { id, at_ms: 13_000 });
        assert_eq!(ledger.live(TicketId(1)).unwrap().stage, Waits::Inside);
        assert_eq!(ledger.counts().returned, 1);
    }
}

#[test]
fn a_backfill_is_in_one_proposal_and_open_again_when_that_fails() {
    let mut ledger = opened();
    let backfill = Backfill {
        id: BackfillId(9),
        region: RegionIndex(1),
        rating: 21.5,
        open: vec![
            OpenSeats::default(),
            OpenSeats {
                roles: vec![1],
                any: 2,
            },
        ],
        since_ms: 10,
    };
    let room = String::from("room");
    apply(
        &mut ledger,
        Entry::BackfillOpened {
            backfill,
            room,
            at_ms: 10,
        },
    );
    apply(&mut ledger, enqueued(1, &[11], 100));
    apply(&mut ledger, enqueued(2, &[21], 100));
    let fill = |ledger: &Ledger, ticket| Proposed {
        backfill: Some(BackfillId(9)),
        ..proposed(ledger, &[ticket], false, 1_000)
    };
    let first = fill(&ledger, 1);
    apply(&mut ledger, Entry::Proposed(first.clone()));
    let mut moved = Vec::new();
    let second = fill(&ledger, 2);
    assert!(ledger.apply(&Entry::Proposed(second), &mut moved).is_err());
    let closed = Entry::BackfillClosed {
        id: BackfillId(9),
        at_ms: 1_500,
    };
    assert!(ledger.apply(&closed, &mut moved).is_err());
    apply(
        &mut ledger,
        Entry::Lapsed {
            id: first.id,
            at_ms: 2_000,
        },
    );
    assert_eq!(ledger.backfill(BackfillId(9)).unwrap().taken, None);
    let again = fill(&ledger, 2);
    let id = again.id;
    apply(&mut ledger, Entry::Proposed(again));
    assert_eq!(Ledger::restore(&ledger.snapshot()).as_ref(), Some(&ledger));
    let room = String::from("room");
    apply(
        &mut ledger,
        Entry::Committed {
            id,
            room,
            at_ms: 3_000,
        },
    );
    assert_eq!(
        ledger.backfills_len(),
        0,
        "its server offers again what is still open"
    );
}

#[test]
fn results_are_bounded_by_time_and_number() {
    let mut ledger = opened();
    for id in 0..RESULTS_MAX as u64 + 10 {
        apply_only(&mut ledger, enqueued(id, &[id], id));
        apply_only(
            &mut ledger,
            Entry::Cancelled {
                ticket: TicketId(id),
                at_ms: id,
            },
        );
    }
    ledger.audit().unwrap();
    assert_eq!(ledger.ended_len(), RESULTS_MAX);
    assert_eq!(ledger.ended(TicketId(9)), None);
    assert!(ledger.ended(TicketId(10)).is_some());
    apply(
        &mut ledger,
        Entry::Forgotten {
            before_ms: 1_000,
            at_ms: 300_000,
        },
    );
    assert_eq!(ledger.oldest_result_ms(), Some(1_000));
    assert_eq!(ledger.newest_of(999), None);
    assert_eq!(ledger.counts().cancelled, RESULTS_MAX as u64 + 10);
}

fn apply_only(ledger: &mut Ledger, entry: Entry) {
    ledger.apply(&entry, &mut Vec::new()).unwrap();
}

/// What a ticket is to the model.
#[derive(Clone, Debug, PartialEq)]
enum Is {
    Outside,
    Inside,
    Reserved(MatchId),
    Over(&'static str),
}

#[derive(Clone, Debug, Default)]
struct Model {
    tickets: BTreeMap<u64, (Is, Vec<u64>)>,
    /// Asked, tickets, who confirmed.
    matches: BTreeMap<MatchId, (bool, Vec<u64>, BTreeSet<u64>)>,
    proposals: u64,
    epoch: u64,
}

impl Model {
    fn busy(&self, player: u64) -> bool {
        self.tickets
            .values()
            .any(|(is, players)| !matches!(is, Is::Over(_)) && players.contains(&player))
    }

    fn seat(&self, id: MatchId, player: u64) -> Option<u64> {
        let seated =
            |(is, players): &(Is, Vec<u64>)| *is == Is::Reserved(id) && players.contains(&player);
        self.tickets
            .iter()
            .find(|(_, it)| seated(it))
            .map(|(&ticket, _)| ticket)
    }

    fn agreed(&self, id: MatchId) -> bool {
        let (ask, tickets, confirmed) = &self.matches[&id];
        let mut players = tickets.iter().flat_map(|ticket| &self.tickets[ticket].1);
        !ask || players.all(|player| confirmed.contains(player))
    }

    fn set(&mut self, ticket: u64, is: Is) {
        self.tickets.get_mut(&ticket).unwrap().0 = is;
    }

    /// Whether the entry may be; if so, does it.
    fn take(&mut self, entry: &Entry) -> bool {
        match entry {
            Entry::Opened { epoch, .. } => {
                let above = *epoch > self.epoch;
                self.epoch = self.epoch.max(*epoch);
                above
            }
            Entry::Enqueued {
                ticket, outside, ..
            } => {
                let players: Vec<u64> = ticket.players.iter().map(|player| player.id).collect();
                let new = !self.tickets.contains_key(&ticket.id.0);
                let possible = new && !players.iter().any(|&player| self.busy(player));
                if possible {
                    let is = if *outside { Is::Outside } else { Is::Inside };
                    self.tickets.insert(ticket.id.0, (is, players));
                }
                possible
            }
            Entry::Admitted { ticket, .. } => self.step(ticket.0, &[Is::Outside], Is::Inside),
            Entry::Cancelled { ticket, .. } => {
                self.step(ticket.0, &[Is::Outside, Is::Inside], Is::Over("cancelled"))
            }
            Entry::Expired { ticket, .. } => {
                self.step(ticket.0, &[Is::Outside, Is::Inside], Is::Over("expired"))
            }
            Entry::Proposed(proposed) => {
                let tickets: Vec<u64> = proposed.tickets().map(|ticket| ticket.0).collect();
                let unique: BTreeSet<&u64> = tickets.iter().collect();
                let wait = |ticket: &u64| {
                    self.tickets
                        .get(ticket)
                        .is_some_and(|(is, _)| *is == Is::Inside)
                };
                let possible = !tickets.is_empty()
                    && unique.len() == tickets.len()
                    && tickets.iter().all(wait)
                    && proposed.id
                        == MatchId {
                            epoch: self.epoch,
                            number: self.proposals + 1,
                        };
                if possible {
                    self.proposals += 1;
                    for &ticket in &tickets {
                        self.set(ticket, Is::Reserved(proposed.id));
                    }
                    let made = (proposed.ask, tickets, BTreeSet::new());
                    self.matches.insert(proposed.id, made);
                }
                possible
            }
            Entry::Confirmed { id, player, .. } => {
                let seated = self.seat(*id, *player).is_some();
                match self.matches.get_mut(id) {
                    Some((true, _, confirmed)) if seated => {
                        confirmed.insert(*player);
                        true
                    }
                    _ => false,
                }
            }
            Entry::Refused { id, player, .. } => {
                let Some(seat) = self.seat(*id, *player) else {
                    return false;
                };
                let (_, tickets, _) = self.matches.remove(id).unwrap();
                for ticket in tickets {
                    let gone = ticket == seat;
                    self.set(
                        ticket,
                        if gone {
                            Is::Over("refused")
                        } else {
                            Is::Inside
                        },
                    );
                }
                true
            }
            Entry::Lapsed { id, .. } => {
                if !self.matches.contains_key(id) {
                    return false;
                }
                let agreed = self.agreed(*id);
                let (_, tickets, confirmed) = self.matches.remove(id).unwrap();
                for ticket in tickets {
                    let mut players = self.tickets[&ticket].1.iter();
                    let yes = agreed || players.all(|player| confirmed.contains(player));
                    self.set(
                        ticket,
                        if yes {
                            Is::Inside
                        } else {
                            Is::Over("unconfirmed")
                        },
                    );
                }
                true
            }
            Entry::Committed { id, .. } => {
                if !self.matches.contains_key(id) || !self.agreed(*id) {
                    return false;
                }
                for ticket in self.matches.remove(id).unwrap().1 {
                    self.set(ticket, Is::Over("matched"));
                }
                true
            }
            Entry::BackfillOpened { .. } | Entry::BackfillClosed { .. } => unreachable!(),
            Entry::Forgotten { .. } => true,
        }
    }

    fn step(&mut self, ticket: u64, from: &[Is], to: Is) -> bool {
        match self.tickets.get_mut(&ticket) {
            Some((is, _)) if from.contains(is) => {
                *is = to;
                true
            }
            _ => false,
        }
    }

    fn check(&self, ledger: &Ledger) {
        for (&id, (is, _)) in &self.tickets {
            let stage = ledger.live(TicketId(id)).map(|live| live.stage);
            let found = match (stage, ledger.ended(TicketId(id)).map(|ended| &ended.how)) {
                (Some(Waits::Outside), None) => Is::Outside,
                (Some(Waits::Inside), None) => Is::Inside,
                (Some(Waits::Reserved(id)), None) => Is::Reserved(id),
                (None, Some(How::Matched(_))) => Is::Over("matched"),
                (None, Some(How::Cancelled)) => Is::Over("cancelled"),
                (None, Some(How::Expired)) => Is::Over("expired"),
                (None, Some(How::Refused { .. })) => Is::Over("refused"),
                (None, Some(How::Unconfirmed { .. })) => Is::Over("unconfirmed"),
                both => panic!("ticket {id} is {both:?}"),
            };
            assert_eq!(found, *is, "ticket {id}");
        }
        let counts = ledger.counts();
        assert_eq!(counts.entered, self.tickets.len() as u64);
        let standing = ledger.audit().unwrap();
        let sum = standing.outside + standing.inside + standing.reserved + counts.ended();
        assert_eq!(sum, counts.entered, "what came in is somewhere");
    }
}

/// Small ranges, so that entries meet.
fn step() -> impl Strategy<Value = (u8, u64, u64, Vec<u64>, bool)> {
    let tickets = prop::collection::vec(0_u64..12, 0..4);
    (0_u8..20, 0_u64..12, 0_u64..10, tickets, any::<bool>())
}

fn entry(step: &(u8, u64, u64, Vec<u64>, bool), ledger: &Ledger, at_ms: u64) -> Entry {
    let (kind, id, player, list, flag) = step;
    let ticket = TicketId(*id);
    let matched = MatchId {
        epoch: ledger.epoch(),
        number: ledger.next_match().number.saturating_sub(1 + id % 3),
    };
    match kind {
        0..=6 => {
            let mut players: Vec<u64> = list.iter().map(|player| player % 10).collect();
            players.push(*player);
            players.sort_unstable();
            players.dedup();
            Entry::Enqueued {
                // Ids come again now and then.
                ticket: self::ticket(ledger.seq() % 40 + id / 6, &players, at_ms),
                class: *kind % CLASSES,
                outside: *flag,
                expires_ms: at_ms + 100,
            }
        }
        7 | 8 => Entry::Admitted { ticket, at_ms },
        9 => Entry::Cancelled { ticket, at_ms },
        10 => Entry::Expired { ticket, at_ms },
        11..=13 => {
            let inside = |live: &&Live| live.stage == Waits::Inside;
            let mut tickets: Vec<u64> = list.clone();
            if *flag {
                let all = ledger.live_in_order().into_iter().filter(inside);
                tickets = all.take(3).map(|live| live.ticket.id.0).collect();
            }
            Entry::Proposed(proposed(ledger, &tickets, *id < 8, at_ms))
        }
        14..=16 => Entry::Confirmed {
            id: matched,
            player: *player,
            at_ms,
        },
        17 => Entry::Refused {
            id: matched,
            player: *player,
            at_ms,
        },
        18 => Entry::Lapsed { id: matched, at_ms },
        _ => Entry::Committed {
            id: matched,
            room: format!("room {id}"),
            at_ms,
        },
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn any_entries_in_any_order_keep_every_ticket_in_one_place(
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut ledger = opened();
        let mut model = Model { epoch: 1, ..Model::default() };
        let mut replica = opened();
        for (at, step) in steps.iter().enumerate() {
            let entry = entry(step, &ledger, at as u64);
            let before = ledger.clone();
            let mut moved = Vec::new();
            let possible = model.take(&entry);
            let applied = ledger.apply(&entry, &mut moved);
            prop_assert_eq!(applied.is_ok(), possible, "{:?}", entry);
            model.check(&ledger);
            if !possible {
                prop_assert_eq!(&before, &ledger, "a refused entry changes nothing");
                continue;
            }
            // A standby reads the entry from bytes, and arrives at the same.
            let mut bytes = Vec::new();
            entry.encode(&mut bytes);
            let mut reader = wire::Reader(&bytes);
            let read = Entry::decode(&mut reader);
            prop_assert_eq!(read.as_ref(), Some(&entry));
            prop_assert!(reader.0.is_empty());
            replica.apply(&read.unwrap(), &mut moved).unwrap();
        }
        prop_assert_eq!(&replica, &ledger);
        let snapshot = ledger.snapshot();
        let restored = Ledger::restore(&snapshot);
        prop_assert_eq!(restored.as_ref(), Some(&ledger));
        prop_assert_eq!(replica.snapshot(), snapshot, "equal states have equal bytes");
    }

    #[test]
    fn foreign_bytes_are_refused_without_a_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        flip in any::<prop::sample::Index>(),
        bit in 0_u8..8,
    ) {
        let _ = Entry::decode(&mut wire::Reader(&bytes));
        let _ = Ledger::restore(&bytes);
        let (ledger, _) = reserved();
        let mut snapshot = ledger.snapshot();
        let at = flip.index(snapshot.len());
        snapshot[at] ^= 1 << bit;
        let _ = Ledger::restore(&snapshot);
        let _ = Ledger::restore(&snapshot[..at]);
    }
}

fn cases() -> u32 {
    let soak = std::env::var("PHALANX_SOAK")
        .ok()
        .and_then(|rounds| rounds.parse().ok());
    soak.map_or(200, |rounds: u32| rounds.clamp(1, 100).saturating_mul(200))
}
