use super::*;
use crate::board::tests::{NOW, best, spec};
use proptest::prelude::*;

const FROM: u64 = 1_767_225_600_000;

fn law(spec: &BoardSpec) -> Law {
    Law::try_new(spec).unwrap()
}

fn ranges() -> impl Strategy<Value = (i64, i64)> {
    prop_oneof![
        Just((0, 99_999_999)),
        Just((0, 1)),
        Just((-500, 500)),
        Just((0, (1 << 53) - 1)),
        Just((-(1 << 52), (1 << 52) - 1)),
        (-1_000_000_i64..0, 0_i64..1 << 40),
    ]
}

fn better() -> impl Strategy<Value = Better> {
    prop_oneof![Just(Better::Higher), Just(Better::Lower)]
}

fn results(range: (i64, i64)) -> impl Strategy<Value = Vec<(i64, u64)>> {
    let score = prop_oneof![
        range.0..=range.1,
        range.0..=range.0.saturating_add(3).min(range.1)
    ];
    prop::collection::vec((score, FROM - 5_000..FROM + 100 * 86_400_000), 1..40)
}

proptest! {
    #[test]
    fn orders_sort_as_score_then_time(
        (range, better, results) in (ranges(), better())
            .prop_flat_map(|(range, better)| (Just(range), Just(better), results(range)))
    ) {
        let spec = BoardSpec { score_min: range.0, score_max: range.1, ..spec(Kind::Best(better)) };
        let law = law(&spec);
        let unit = law.tie_unit_ms();
        let season_end = spec.season_from_ms + spec.season_ms;
        for &(score, at) in &results {
            let order = law.order(score, at).unwrap();
            // Exactly a double, and exactly its digits.
            prop_assert_eq!(Order::from_redis(order.bits() as f64), Some(order));
            prop_assert_eq!(Order::from_text(order.to_string().as_bytes()), Some(order));
            prop_assert_eq!(law.score(order, NOW), score as f64);
            for &(other, later) in &results {
                let against = law.order(other, later).unwrap();
                let wins = match better {
                    Better::Higher => score > other,
                    Better::Lower => score < other,
                };
                if wins {
                    prop_assert!(order < against);
                } else if score == other && unit.is_some_and(|unit| at.max(FROM) + unit <= later) && at < season_end - 2 * unit.unwrap() {
                    prop_assert!(order < against, "first to reach wins");
                }
            }
        }
    }

    #[test]
    fn a_best_score_is_the_least_order_in_any_sequence(
        results in results((0, 99_999_999)), better in better()
    ) {
        let law = law(&spec(Kind::Best(better)));
        let mut current = None;
        for &(score, at) in &results {
            current = Some(law.apply(current, score, at).unwrap());
        }
        let all = results.iter().map(|&(score, at)| law.order(score, at).unwrap());
        // What `ZADD LT` leaves, whatever arrives first or twice.
        prop_assert_eq!(current, all.min());
    }

    #[test]
    fn sums_are_exact_and_stay_in_range(
        better in better(),
        gains in prop::collection::vec((-1_000_i64..3_000, 0_u64..86_400_000), 1..60)
    ) {
        let spec = BoardSpec { score_min: -2_000, score_max: 50_000, ..spec(Kind::Sum(better)) };
        let law = law(&spec);
        let (mut current, mut scripted, mut oracle) = (None, None, 0_i64);
        for &(points, after) in &gains {
            let at = FROM + after;
            oracle = (oracle + points).clamp(-2_000, 50_000);
            scripted = Some(sum_in_doubles(law.sum_step(points, at), scripted));
            current = Some(law.apply(current, points, at).unwrap());
            prop_assert_eq!(law.score(current.unwrap(), NOW), oracle as f64);
            prop_assert_eq!(scripted.and_then(Order::from_redis), current);
        }
    }

    /// As results of several processes do, one of which was cut off from the store for a while.
    #[test]
    fn a_sum_and_its_tie_are_the_same_in_whatever_order_results_arrive(
        better in better(),
        mut results in prop::collection::vec((-1_000_i64..3_000, 0_u64..86_400_000), 1..40),
        turn in any::<prop::sample::Index>()
    ) {
        // Wide enough that no sum meets its edge, where order must count.
        let spec = BoardSpec { score_min: -50_000, score_max: 150_000, ..spec(Kind::Sum(better)) };
        let law = law(&spec);
        let stand = |results: &[(i64, u64)]| results.iter().fold(None, |current, &(points, after)| {
            Some(law.apply(current, points, FROM + after).unwrap())
        });
        // One of nought only puts her on the board.
        results.retain(|(points, _)| *points != 0);
        let one = stand(&results);
        results.sort_unstable();
        if !results.is_empty() {
            let turned = turn.index(results.len());
            results.rotate_left(turned);
        }
        prop_assert_eq!(stand(&results), one);
    }

    #[test]
    fn decayed_order_never_changes_with_time(
        gains in prop::collection::vec((0_usize..6, 1_i64..1_000_000, 0_u64..10 * 86_400_000), 1..80)
    ) {
        let half_life_ms = 6 * 3_600_000;
        let law = law(&spec(Kind::Decayed { half_life_ms }));
        let mut orders = [None; 6];
        let mut scripted = [None; 6];
        for &(player, points, after) in &gains {
            let step = law.decay_step(points, FROM + after).unwrap();
            orders[player] = Some(law.apply(orders[player], points, FROM + after).unwrap());
            scripted[player] = Some(decay_in_doubles(step, scripted[player]));
        }
        let scripted = scripted.map(|order| order.and_then(Order::from_redis));
        prop_assert_eq!(scripted, orders);
        // The formula, in doubles, at two times after the last gain.
        for now in [10 * 86_400_000, 12 * 86_400_000] {
            let mut oracle = [0.0_f64; 6];
            for &(player, points, after) in &gains {
                let age = (now - after) as f64 / half_life_ms as f64;
                oracle[player] += points as f64 * (-age).exp2();
            }
            for (one, &a) in orders.iter().zip(&oracle) {
                let Some(order) = *one else { continue };
                let shown = law.score(order, FROM + now);
                // Half a step per gain: 3.3e-10 each.
                prop_assert!((shown / a - 1.0).abs() < 4e-10 * gains.len() as f64 + 1e-12, "{} {}", shown, a);
                for (other, &b) in orders.iter().zip(&oracle) {
                    if let Some(other) = *other && a > b * (1.0 + 1e-7) {
                        prop_assert!(order < other);
                    }
                }
            }
        }
    }

    #[test]
    fn no_reply_of_a_store_panics(bytes in prop::collection::vec(any::<u8>(), 0..24), bits in any::<u64>()) {
        let order = Order::from_text(&bytes);
        let number = Order::from_redis(f64::from_bits(bits));
        for order in [order, number].into_iter().flatten() {
            for kind in [Kind::Best(Better::Lower), Kind::Sum(Better::Higher), Kind::Decayed { half_life_ms: 60_000 }] {
                let law = law(&spec(kind));
                prop_assert!(law.score(order, bits).is_finite());
                let _ = law.apply(Some(order), bits as i64, bits);
            }
        }
    }
}

/// As the store's script does it: doubles alone.
fn sum_in_doubles(step: SumStep, old: Option<f64>) -> f64 {
    let scale = step.scale as f64;
    let (mut sum, mut tick) = (step.origin as f64, step.tick as f64);
    if let Some(old) = old {
        sum = (old / scale).floor();
        tick = tick.max(old - sum * scale);
    }
    let new = (sum + step.step as f64).clamp(0.0, step.range as f64);
    match old {
        Some(old) if new == sum => old,
        _ => new * scale + tick,
    }
}

fn decay_in_doubles(step: DecayStep, old: Option<f64>) -> f64 {
    let (gain, ceiling) = (step.gain as f64, step.ceiling as f64);
    let Some(old) = old else {
        return ceiling - gain;
    };
    let log = ceiling - old;
    let (a, b) = (log.max(gain), log.min(gain));
    let more = (1.0 + 2.0_f64.powf((b - a) / step.steps)).ln() / std::f64::consts::LN_2;
    ceiling - (a + (0.5 + step.steps * more).floor())
}

#[test]
fn the_range_decides_how_finely_ties_are_told_apart() {
    let unit = |score_max| {
        law(&BoardSpec {
            score_max,
            season_ms: 90 * 86_400_000,
            ..best()
        })
        .tie_unit_ms()
    };
    assert_eq!(unit((1 << 20) - 1), Some(1));
    assert_eq!(unit(99_999_999), Some(116));
    assert_eq!(unit((1 << 33) - 1), Some(7_416));
    assert_eq!(unit((1 << 52) - 1), Some(90 * 86_400_000 / 2));
    assert_eq!(unit((1 << 53) - 1), None);
    assert_eq!(law(&best()).tie_unit_ms(), Some(4_702));
}

#[test]
fn a_result_that_leaves_a_sum_as_it_is_costs_no_tie() {
    let spec = BoardSpec {
        season_from_ms: FROM,
        season_ms: 90 * 86_400_000,
        ..spec(Kind::Sum(Better::Higher))
    };
    let law = law(&spec);
    let hour = 3_600_000;
    let first = law.apply(None, 500, FROM + hour).unwrap();
    let second = law.apply(None, 500, FROM + 2 * hour).unwrap();
    assert!(first < second, "first to reach it wins");
    assert_eq!(law.apply(Some(first), 0, FROM + 3 * hour), Ok(first));
    // A sum at its edge.
    let full = law.apply(Some(first), i64::MAX, FROM + 4 * hour).unwrap();
    assert_eq!(law.apply(Some(full), 7, FROM + 5 * hour), Ok(full));
    // An older result that arrives late doesn't make the sum older than its newest.
    let late = law.apply(Some(second), 10, FROM + hour).unwrap();
    let both = law.apply(Some(first), 10, FROM + 2 * hour).unwrap();
    assert_eq!(late, both);
}

#[test]
fn scores_outside_the_range_are_refused() {
    let law = law(&best());
    let (min, max) = (0, 99_999_999);
    for score in [-1, 100_000_000, i64::MIN, i64::MAX] {
        let refused = law.order(score, NOW).unwrap_err();
        assert_eq!(refused, Refused::OutOfRange { score, min, max });
    }
}

#[test]
fn a_decayed_board_refuses_what_it_cant_hold() {
    let law = law(&spec(Kind::Decayed {
        half_life_ms: 60_000,
    }));
    assert_eq!(law.order(0, NOW), Err(Refused::Points { points: 0 }));
    assert_eq!(law.order(-4, NOW), Err(Refused::Points { points: -4 }));
    let fifteen_years = 15 * 365 * 86_400_000_u64;
    law.order(1 << 53, FROM + fifteen_years).unwrap();
    let late = law.order(1, FROM + 2 * fifteen_years);
    assert!(matches!(late, Err(Refused::TooLate { .. })));
}

#[test]
fn what_faded_can_be_overtaken_by_what_is_new() {
    let hour = 3_600_000;
    let law = law(&spec(Kind::Decayed { half_life_ms: hour }));
    let old = law.order(1_000, FROM).unwrap();
    let new = law.order(600, FROM + hour).unwrap();
    assert!(new < old);
    assert!((law.score(old, FROM + hour) - 500.0).abs() < 1e-5);
    assert!((law.score(new, FROM + 2 * hour) - 300.0).abs() < 1e-5);
}
