//! Open seats of running matches.

use super::*;

fn offer(id: u64, rating: f64, any: &[u8]) -> Backfill {
    Backfill {
        id: BackfillId(id),
        region: RegionIndex(0),
        rating,
        open: any
            .iter()
            .map(|any| OpenSeats {
                roles: vec![],
                any: *any,
            })
            .collect(),
        since_ms: START,
    }
}

fn answered(world: &mut World, backfill: &Backfill) -> Option<Proposal> {
    let before = world.waiting.clone();
    let (proposals, _) = world.tick(None);
    let proposal = proposals.into_iter().find(|p| p.backfill.is_some())?;
    verify(world, &proposal, &before, backfill);
    Some(proposal)
}

fn verify(
    world: &World,
    proposal: &Proposal,
    before: &BTreeMap<TicketId, Ticket>,
    open: &Backfill,
) {
    let (rules, find) = (&world.rules, |id| before.get(&id));
    verify::verify(rules, world.brownout, world.now, proposal, find, Some(open)).unwrap();
}

#[test]
fn open_seats_are_filled_before_new_matches_begin() {
    let mut world = World::new(spec(2, 2));
    for id in 1..5 {
        world.insert(alone(id, 20.0 + id as f64 / 100.0, START));
    }
    let open = offer(7, 20.0, &[1, 0]);
    world.search.offer(open.clone()).unwrap();
    let proposal = answered(&mut world, &open).unwrap();
    assert_eq!(proposal.backfill, Some(BackfillId(7)));
    assert_eq!(proposal.teams, [vec![TicketId(1)], vec![]]);
    assert_eq!((world.search.offered(), world.waiting.len()), (0, 3));
}

#[test]
fn a_party_takes_open_seats_of_one_team_or_none() {
    let mut world = World::new(spec(2, 3));
    world.insert(party(1, &[20.0, 20.0], START));
    let open = offer(7, 20.0, &[1, 1]);
    world.search.offer(open.clone()).unwrap();
    assert!(answered(&mut world, &open).is_none());
    assert_eq!(world.search.withdraw(BackfillId(7)), Some(open));
    assert_eq!(world.search.withdraw(BackfillId(7)), None);
    let open = offer(8, 20.0, &[1, 2]);
    world.search.offer(open.clone()).unwrap();
    let proposal = answered(&mut world, &open).unwrap();
    assert_eq!(proposal.teams, [vec![], vec![TicketId(1)]]);
}

#[test]
fn whoever_is_too_far_from_a_running_match_waits_until_both_widened() {
    let mut world = World::new(spec(2, 2));
    let open = offer(7, 20.0, &[1, 0]);
    world.search.offer(open.clone()).unwrap();
    world.insert(alone(1, 22.0, START + 4_000));
    world.now = START + 5_000;
    assert!(answered(&mut world, &open).is_none());
    world.now = START + 9_000;
    assert!(answered(&mut world, &open).is_some());
}

/// Whoever came last has the place of whoever left last.
#[test]
fn of_players_who_are_equally_near_the_one_who_waited_longest_gets_the_open_seat() {
    let mut world = World::new(spec(2, 10));
    for id in 1..=8 {
        world.insert(alone(id, 20.0, START + id));
    }
    world.now = START + 1_000;
    for id in 1..=4 {
        world.waiting.remove(&TicketId(id));
        assert!(world.search.remove(TicketId(id)).is_some());
    }
    for id in 11..=14 {
        world.insert(alone(id, 20.0, world.now));
    }
    world.now = START + 4_000;
    for (offered, oldest) in [(7, 5), (8, 6)] {
        let open = offer(offered, 20.0, &[1, 0]);
        world.search.offer(open.clone()).unwrap();
        let proposal = answered(&mut world, &open).unwrap();
        assert_eq!(proposal.teams, [vec![TicketId(oldest)], vec![]]);
    }
}

#[test]
fn offers_without_sense_are_refused() {
    let mut world = World::new(spec(2, 2));
    let open = offer(7, 20.0, &[0, 0]);
    assert!(matches!(world.search.offer(open), Err(Refused::Invalid(_))));
    let open = offer(7, f64::NAN, &[1, 0, 3]);
    let Err(Refused::Invalid(problems)) = world.search.offer(open) else {
        panic!("taken");
    };
    assert_eq!(problems.list().len(), 3, "{problems}");
    world.search.offer(offer(7, 20.0, &[1, 0])).unwrap();
    assert_eq!(
        world.search.offer(offer(7, 20.0, &[1, 0])),
        Err(Refused::Offered(BackfillId(7)))
    );
}

#[test]
fn offers_are_answered_within_the_rules_and_no_seat_stays_open_that_somebody_fits() {
    let mut answers = 0;
    for seed in 0..rounds(10) {
        let mut dice = Dice::new(seed);
        let mut world = World::new(spec(2, 3));
        let mut offers = BTreeMap::new();
        for id in 0..25 {
            let seats = [dice.below(3) as u8 + 1, dice.below(3) as u8];
            let open = Backfill {
                since_ms: world.now,
                ..offer(id, dice.below(20) as f64, &seats)
            };
            world.search.offer(open.clone()).unwrap();
            offers.insert(open.id, open);
            for _ in 0..dice.below(3) {
                world.insert_random(20, &mut dice);
            }
            world.now += dice.below(5_000);
            let before = world.waiting.clone();
            let (proposals, report) = world.tick(None);
            assert!(!report.exhausted && report.pending == 0);
            for proposal in proposals.iter().filter(|p| p.backfill.is_some()) {
                answers += 1;
                let open = proposal.backfill.and_then(|id| offers.remove(&id));
                verify(&world, proposal, &before, &open.unwrap());
            }
            for (open, ticket) in offers
                .values()
                .flat_map(|open| world.waiting.values().map(move |ticket| (open, ticket)))
            {
                assert!(!fits(&world, open, ticket), "{open:?} {ticket:?}");
            }
        }
    }
    assert!(answers > 100, "{answers}");
}

fn fits(world: &World, open: &Backfill, ticket: &Ticket) -> bool {
    let step = world
        .rules
        .step(world.now - open.since_ms)
        .min(world.step(ticket));
    let distance = (world.rules.value(ticket) - (open.rating * MILLI).round() as i32).abs();
    let near = world
        .rules
        .near(&world.rules.latency(ticket), world.step(ticket));
    distance <= world.rules.ladder(world.brownout)[step].window
        && near & (1 << open.region.0) != 0
        && open
            .open
            .iter()
            .any(|team| team.total() >= ticket.players.len())
}
