use super::*;
use proptest::prelude::*;

fn order(bits: u64) -> Order {
    Order::from_bits(bits).unwrap()
}

/// The sketch that a refresher gets from a board whose members, best first, have these orders.
fn sketch(top: u64, orders: &[u64]) -> Sketch {
    let places = Sketch::ladder(top, orders.len() as u64);
    let pivots = places.into_iter().map(|place| Pivot {
        place,
        order: order(orders[place as usize - 1]),
    });
    Sketch::new(pivots, 7)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_member_is_within_the_bounds(
        mut orders in prop::collection::vec(prop_oneof![0_u64..1 << 50, 0_u64..50], 1..9_000),
        top in 0_u64..300,
    ) {
        orders.sort_unstable();
        let (sketch, total) = (sketch(top, &orders), orders.len() as u64);
        for (at, &bits) in orders.iter().enumerate().skip(top as usize) {
            let (estimate, place) = (sketch.estimate(order(bits), top, total).unwrap(), at as u64 + 1);
            prop_assert!((estimate.low..=estimate.high).contains(&place), "{place} in {estimate:?}");
            prop_assert!((estimate.low..=estimate.high).contains(&estimate.place));
            prop_assert!(estimate.place.abs_diff(place) <= estimate.error());
        }
    }

    #[test]
    fn without_ties_the_error_is_a_stated_share_of_the_place(
        top in 1_u64..2_000, more in 0_u64..60_000, stride in 1_u64..1_000
    ) {
        let total = top + more;
        let orders: Vec<u64> = (0..total).map(|at| at * stride).collect();
        let (sketch, bound) = (sketch(top, &orders), Sketch::ladder_error(top, total));
        for place in (top + 1..=total).step_by(1 + more as usize / 3_000) {
            let estimate = sketch.estimate(order(orders[place as usize - 1]), top, total).unwrap();
            let off = estimate.place.abs_diff(place) as f64 / place as f64;
            prop_assert!(off <= bound, "{off} > {bound} at {place} of {total}");
        }
    }

    #[test]
    fn answers_that_contradict_each_other_leave_a_sketch_in_order(
        pivots in prop::collection::vec((0_u64..100, 0_u64..100), 0..700), asked in 0_u64..100
    ) {
        let pivots = pivots.into_iter().map(|(place, bits)| Pivot { place, order: order(bits) });
        let sketch = Sketch::new(pivots, 7);
        prop_assert!(sketch.pivots().is_sorted_by(|a, b| a.place < b.place && a.order <= b.order));
        prop_assert!(sketch.bytes() <= SKETCH_BYTES_MAX);
        if let Some(estimate) = sketch.estimate(order(asked), 10, 100) {
            prop_assert!(estimate.low <= estimate.place && estimate.place <= estimate.high);
        }
    }
}

#[test]
fn the_bound_is_below_a_percent_up_to_a_hundred_million_members() {
    for (top, total, bound) in [
        (20_000, 1_000_000, 0.004),
        (20_000, 10_000_000, 0.0063),
        (20_000, 100_000_000, 0.0087),
        (10_000, 100_000_000, 0.0094),
    ] {
        let error = Sketch::ladder_error(top, total);
        assert!(
            error <= bound && error > bound * 0.9,
            "{error} for {top} of {total}"
        );
        assert!(Sketch::ladder(top, total).len() <= PIVOTS_MAX);
    }
    assert_eq!(SKETCH_BYTES_MAX, 8_000);
}

#[test]
fn a_ladder_reaches_from_the_first_outside_to_the_last() {
    assert_eq!(Sketch::ladder(10, 10), [0; 0]);
    assert_eq!(Sketch::ladder(10, 11), [11]);
    assert_eq!(Sketch::ladder(0, 3), [1, 2, 3]);
    for total in [501, 502, 600, 5_000, 1 << 40] {
        let ladder = Sketch::ladder(1, total);
        assert_eq!((ladder[0], *ladder.last().unwrap()), (2, total));
        assert!(ladder.is_sorted_by(|a, b| a < b) && ladder.len() <= PIVOTS_MAX);
    }
}

#[test]
fn without_pivots_nothing_is_estimated() {
    let sketch = Sketch::default();
    assert_eq!(sketch.estimate(Order::WORST, 100, 1_000), None);
    let only = sketch.estimate(Order::WORST, 100, 101).unwrap();
    assert_eq!((only.place, only.error()), (101, 0));
}

#[test]
fn a_member_at_a_pivot_has_its_place() {
    let orders: Vec<u64> = (0..33_396).collect();
    let sketch = sketch(1_385, &orders);
    for pivot in sketch.pivots() {
        let estimate = sketch.estimate(pivot.order, 1_385, 33_396).unwrap();
        assert_eq!(estimate.place, pivot.place);
    }
}
