use super::*;
use crate::board::kind::{Better, BoardSpec};

const SEASON: u64 = 1_767_225_600_000;

fn pending(kind: Kind) -> Pending {
    Pending::new(law(kind))
}

fn law(kind: Kind) -> Law {
    Law::try_new(&BoardSpec::new("b", kind)).unwrap()
}

fn write(player: &str, points: i64) -> Write {
    Write {
        record: Record::Points {
            points,
            at_ms: SEASON + 5,
        },
        epoch: 0,
        player: PlayerId::parse(player).unwrap(),
        written_ms: 0,
    }
}

fn score(kind: Kind, order: Option<Order>) -> Option<f64> {
    order.map(|order| law(kind).score(order, SEASON))
}

#[test]
fn a_result_is_seen_until_the_snapshot_has_it_and_no_longer() {
    let kind = Kind::Sum(Better::Higher);
    let base = law(kind).order(100, SEASON).ok();
    let pending = pending(kind);
    pending.note(1, &write("ann", 7));
    pending.note(2, &write("ann", 5));
    assert_eq!(
        score(kind, pending.pending("ann", base, 50, 0)),
        Some(112.0)
    );
    assert_eq!(pending.pending("bob", base, 50, 0), None);
    pending.reflects(60, 1);
    assert_eq!(
        score(kind, pending.pending("ann", base, 60, 0)),
        Some(105.0)
    );
    pending.reflects(70, 2);
    assert_eq!(pending.pending("ann", base, 70, 0), None);
    // Whoever still reads the snapshot before sees what it lacks.
    assert_eq!(
        score(kind, pending.pending("ann", base, 60, 0)),
        Some(105.0)
    );
    for at in 71..80 {
        pending.reflects(at, 2);
    }
    assert_eq!(pending.records(), 0);
}

#[test]
fn a_best_result_needs_no_base_and_a_sum_is_silent_without_one() {
    let best = Kind::Best(Better::Higher);
    let pending_best = pending(best);
    pending_best.note(1, &write("ann", 7));
    pending_best.note(2, &write("ann", 5));
    assert_eq!(
        score(best, pending_best.pending("ann", None, 1, 0)),
        Some(7.0)
    );

    let sum = Kind::Sum(Better::Higher);
    let pending_sum = pending(sum);
    pending_sum.note(1, &write("ann", 7));
    pending_sum.note(2, &write("ann", 5));
    assert_eq!(pending_sum.pending("ann", None, 1, 0), None);
    let known = law(sum).order(50, SEASON).unwrap();
    pending_sum.remember(PlayerId::parse("ann").unwrap(), known, 1, 0);
    assert_eq!(pending_sum.remembered("ann", 0), Some(known));
    assert_eq!(
        score(sum, pending_sum.pending("ann", None, 1, 0)),
        Some(55.0)
    );
}

#[test]
fn a_player_with_many_results_takes_bounded_room() {
    let kind = Kind::Sum(Better::Higher);
    let base = law(kind).order(0, SEASON).ok();
    let pending = pending(kind);
    for number in 1..=1000 {
        pending.note(number, &write("ann", 2));
    }
    assert_eq!(pending.records(), RESULTS_MAX);
    assert_eq!(
        score(kind, pending.pending("ann", base, 1, 0)),
        Some(2000.0)
    );
}

#[test]
fn results_that_were_folded_stand_where_the_store_will_have_them() {
    let kind = Kind::Sum(Better::Higher);
    let base = law(kind).order(0, SEASON).ok();
    let pending = pending(kind);
    let mut stored = base;
    for number in 1..=100 {
        // The latest is not the last, and some change nothing.
        let (points, at_ms) = ((number % 3) as i64, SEASON + (number * 37) % 101 * 600_000);
        let record = Record::Points { points, at_ms };
        pending.note(
            number,
            &Write {
                record,
                ..write("ann", 0)
            },
        );
        stored = law(kind).apply(stored, points, at_ms).ok();
    }
    assert_eq!(pending.records(), RESULTS_MAX);
    assert_eq!(pending.pending("ann", base, 1, 0), stored);
}

#[test]
fn numbers_heard_of_in_any_order_are_dropped_in_theirs() {
    let kind = Kind::Sum(Better::Higher);
    let base = law(kind).order(0, SEASON).ok();
    let pending = pending(kind);
    for number in [3, 1, 2] {
        pending.note(number, &write("ann", number as i64));
    }
    pending.reflects(10, 2);
    assert_eq!(score(kind, pending.pending("ann", base, 10, 0)), Some(3.0));
}

#[test]
fn the_next_epoch_begins_without_what_was_known_and_pending_of_the_last() {
    let sum = Kind::Sum(Better::Higher);
    let ann = PlayerId::parse("ann").unwrap();
    let pending = pending(sum);
    pending.remember(ann.clone(), law(sum).order(50, SEASON).unwrap(), 1, 1);
    for number in 2..4 {
        let epoch = number as u32 - 1;
        let write = Write {
            epoch,
            ..write("ann", 5)
        };
        pending.note(number, &write);
    }
    assert_eq!(score(sum, pending.pending("ann", None, 1, 1)), Some(55.0));
    assert_eq!(pending.remembered("ann", 2), None);
    assert_eq!(pending.pending("ann", None, 1, 2), None);
    let base = law(sum).order(7, SEASON).ok();
    assert_eq!(score(sum, pending.pending("ann", base, 1, 2)), Some(12.0));
}

#[test]
fn what_is_remembered_is_bounded() {
    let pending = pending(Kind::Best(Better::Higher));
    for number in 0..200_000 {
        let player = PlayerId::parse(&format!("p{number}")).unwrap();
        pending.remember(player, Order::BEST, 0, 0);
    }
    let kept: usize = pending
        .shards
        .iter()
        .map(|shard| {
            let shard = lock(shard);
            shard.known.len() + shard.known_before.len()
        })
        .sum();
    assert!(kept <= KNOWN_MAX, "{kept}");
    assert_eq!(pending.remembered("p199999", 0), Some(Order::BEST));
    assert_eq!(pending.remembered("p0", 0), None);
}
