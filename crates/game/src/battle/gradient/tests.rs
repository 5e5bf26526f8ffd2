use super::*;

const OPTIONS: GradientOptions = GradientOptions {
    initial: 64,
    min: 4,
    max: 4_096,
};

/// A pool of `cores` that fights `fight` µs each, with `in_flight` admitted: what a window measures (Little's law).
fn window(cores: f64, fight: f64, in_flight: f64) -> Window {
    let took = fight * (in_flight / cores).max(1.0);
    Window {
        took: Duration::from_secs_f64(took / 1e6),
        fight: Duration::from_secs_f64(fight / 1e6),
        target: Duration::from_millis(5),
        in_flight: in_flight as u32,
    }
}

/// The limit after `windows` of a load that takes whatever is admitted, up to `demand` in flight.
fn settle(gradient: &mut Gradient, cores: f64, fight: f64, demand: f64, windows: u32) -> u32 {
    for _ in 0..windows {
        let in_flight = f64::from(gradient.limit()).min(demand);
        gradient.update(&window(cores, fight, in_flight));
    }
    gradient.limit()
}

#[test]
fn overload_settles_where_the_wait_is_below_its_target() {
    for (cores, fight) in [(1.0, 50.0), (2.0, 50.0), (16.0, 300.0), (2.0, 5_000.0)] {
        let mut gradient = Gradient::new(OPTIONS);
        let limit = settle(&mut gradient, cores, fight, 1e9, 3_000);
        let wait_ms = (f64::from(limit) / cores - 1.0) * fight / 1e3;
        assert!(
            wait_ms <= 5.0 + fight / 1e3,
            "{cores} cores of {fight} µs wait {wait_ms} ms"
        );
        assert!(f64::from(limit) >= cores, "and every core is used: {limit}");
    }
}

#[test]
fn an_overload_of_hours_does_not_raise_the_limit() {
    let mut gradient = Gradient::new(OPTIONS);
    let early = settle(&mut gradient, 2.0, 50.0, 1e9, 2_000);
    let late = settle(&mut gradient, 2.0, 50.0, 1e9, 500_000);
    assert!(late <= early + early / 10, "{early} became {late}");
}

#[test]
fn a_limit_that_is_not_used_does_not_move() {
    let mut gradient = Gradient::new(OPTIONS);
    assert_eq!(settle(&mut gradient, 2.0, 50.0, 3.0, 1_000), 64);
}

#[test]
fn a_limit_that_is_too_small_grows_while_it_is_used() {
    let mut gradient = Gradient::new(GradientOptions {
        initial: 4,
        ..OPTIONS
    });
    let limit = settle(&mut gradient, 16.0, 300.0, 1e9, 1_000);
    assert!(limit > 32, "{limit}");
}

#[test]
fn microsecond_fights_may_queue_a_little() {
    let mut gradient = Gradient::new(OPTIONS);
    settle(&mut gradient, 2.0, 50.0, 2.0, 1_000);
    // A queue of 1 ms is many times the usual 50 µs and still harmless.
    let limit = settle(&mut gradient, 2.0, 50.0, 40.0, 1_000);
    assert!(limit >= 64, "{limit}");
}

proptest::proptest! {
    #[test]
    fn the_limit_keeps_its_bounds_and_moves_in_steps(
        windows in proptest::collection::vec((0_u64..10_000_000, 0_u64..1_000_000, 0_u32..5_000), 1..200),
    ) {
        let mut gradient = Gradient::new(OPTIONS);
        for (took, fight, in_flight) in windows {
            let before = f64::from(gradient.limit());
            let limit = gradient.update(&Window {
                took: Duration::from_micros(took),
                fight: Duration::from_micros(fight),
                target: Duration::from_millis(5),
                in_flight,
            });
            proptest::prop_assert!((OPTIONS.min..=OPTIONS.max).contains(&limit));
            let after = f64::from(limit);
            proptest::prop_assert!(after >= before * 0.89 - 1.0 && after <= before + before * 0.021 + 1.3);
            if f64::from(in_flight) < before / 2.0 {
                proptest::prop_assert_eq!(before, after);
            }
        }
    }
}
