//! One against one.

use super::*;

pub(super) fn assert_no_pair_is_left(world: &World) {
    let all: Vec<&Ticket> = world.waiting.values().collect();
    for (at, one) in all.iter().enumerate() {
        for two in &all[at + 1..] {
            assert!(
                !world.suit(&[one, two]),
                "{one:?} and {two:?} should have met"
            );
        }
    }
}

#[test]
fn every_pair_that_must_meet_meets() {
    for seed in 0..rounds(12) {
        let mut dice = Dice::new(seed);
        let mut world = World::new(spec(2, 1));
        let width = [3, 30, 300][dice.below(3) as usize];
        for _ in 0..50 {
            for _ in 0..dice.below(10) {
                world.insert_random(width, &mut dice);
            }
            if dice.chance(1, 3)
                && let Some(id) = world.waiting.keys().next().copied()
            {
                world.remove(id);
            }
            if dice.chance(1, 20) {
                world.brownout = Brownout::ALL[dice.below(4) as usize];
            }
            world.now += dice.below(4_000);
            let (_, report) = world.tick(None);
            assert!(!report.exhausted && report.pending == 0);
            assert_no_pair_is_left(&world);
        }
        world.remove(TicketId(u64::MAX));
    }
}

#[test]
fn a_ticket_loses_a_partner_only_to_an_older_one() {
    for seed in 0..rounds(10) {
        let mut dice = Dice::new(seed);
        let mut world = World::new(spec(2, 1));
        // Swaps exchange partners afterwards; who is matched at all is decided before.
        world.brownout = Brownout::Unimproved;
        for _ in 0..40 {
            for _ in 0..dice.below(12) {
                world.insert_random(40, &mut dice);
            }
            world.now += dice.below(4_000);
            let before = world.waiting.clone();
            let (proposals, _) = world.tick(None);
            for proposal in &proposals {
                let pair: Vec<&Ticket> = proposal.tickets().map(|id| &before[&id]).collect();
                let oldest = pair.iter().map(|t| (t.enqueued_ms, t.id)).min().unwrap();
                for left in world.waiting.values() {
                    let could = pair.iter().any(|partner| world.suit(&[left, partner]));
                    assert!(!could || oldest < (left.enqueued_ms, left.id));
                }
            }
        }
    }
}

#[test]
fn the_oldest_of_a_row_gets_the_only_partner() {
    let mut world = World::new(spec(2, 1));
    world.insert(alone(1, 20.0, START - 10_000));
    world.insert(alone(2, 22.0, START - 11_000));
    assert!(world.tick(None).0.len() == 1);
    let mut world = World::new(spec(2, 1));
    world.insert(alone(1, 20.0, START - 2_000));
    world.insert(alone(2, 21.9, START - 3_000));
    world.insert(alone(3, 20.95, START - 1_000));
    let (proposals, _) = world.tick(None);
    let ids: Vec<_> = proposals[0].tickets().collect();
    assert_eq!(ids, [TicketId(2), TicketId(3)]);
}

#[test]
fn windows_widen_with_waiting_and_no_faster() {
    let mut world = World::new(spec(2, 1));
    world.insert(alone(1, 20.0, START));
    world.insert(alone(2, 23.0, START));
    // 1 + 0.2 per second, by steps of 5 s: 3 apart is allowed after 10 s.
    for second in 0..10 {
        world.now = START + second * 1_000;
        assert!(world.tick(None).0.is_empty(), "after {second} s");
    }
    world.now = START + 10_000;
    assert_eq!(world.tick(None).0.len(), 1);
}

#[test]
fn regions_open_with_waiting() {
    let mut world = World::new(spec(2, 1));
    let mut far = alone(1, 20.0, START);
    far.players[0].latency_ms = Latency::of(&[100, 500]);
    world.insert(far);
    world.insert(alone(2, 20.0, START));
    world.now = START + 19_999;
    assert!(world.tick(None).0.is_empty());
    world.now = START + 20_000;
    let (proposals, _) = world.tick(None);
    assert_eq!(proposals[0].region, RegionIndex(0));
    assert_eq!(proposals[0].quality.latency_ms, 100);
}

#[test]
fn a_brownout_widens_windows_at_once_and_for_all() {
    let mut world = World::new(spec(2, 1));
    world.insert(alone(1, 20.0, START));
    world.insert(alone(2, 21.4, START));
    assert!(world.tick(None).0.is_empty());
    world.brownout = Brownout::Widened;
    assert_eq!(world.tick(None).0.len(), 1);
}

#[test]
fn one_that_comes_back_keeps_its_place() {
    let mut world = World::new(spec(2, 1));
    let old = alone(1, 20.0, START - 20_000);
    world.insert(old.clone());
    world.insert(alone(2, 24.0, START - 20_000));
    assert_eq!(world.tick(None).0.len(), 1);
    world.insert(old);
    world.insert(alone(3, 20.5, START - 1_000));
    world.insert(alone(4, 20.6, START));
    let (proposals, _) = world.tick(None);
    let ids: Vec<_> = proposals[0].tickets().collect();
    assert_eq!(ids, [TicketId(1), TicketId(3)]);
}

#[test]
fn those_who_found_nobody_arent_asked_again_until_something_is_near() {
    let mut world = World::new(spec(2, 1));
    for id in 0..100 {
        world.insert(alone(id, id as f64 * 20.0 - 500.0, START - 100_000));
    }
    world.tick(None);
    let (_, idle) = world.tick(None);
    assert_eq!(idle.examined, 0);
    world.insert(alone(1_000, -11.0, START));
    let (_, one) = world.tick(None);
    assert!(one.examined <= 3, "{one:?}");
}
