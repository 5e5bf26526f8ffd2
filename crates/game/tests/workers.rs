//! What the elastic pool promises, in the simulator: the default policy on constant load and on the step, beside the
//! rule of two thresholds, and the drawings of the guide. `PHALANX_SOAK=10` runs ten seeds of every load (at most 20);
//! `PHALANX_DRAW=1` draws anew.

use std::env;
use std::path::Path;
use std::time::Duration;

use phalanx_game::workers::simulate::scenario::Named;
use phalanx_game::workers::simulate::{Comparison, Curve, Outcome, Scenario, Service, draw};
use phalanx_game::workers::{Bounds, Staffing, Thresholds};

const MS: Duration = Duration::from_millis(1);
/// Turns in ten minutes of constant load.
const TURNS_MAX: usize = 2;

fn named(name: &str) -> Named {
    Named::find(name).unwrap()
}

/// Seeds beyond the one that every run has; each is some ten seconds.
fn soak() -> Option<u64> {
    const SEEDS_MAX: u64 = 20;
    let rounds = env::var("PHALANX_SOAK").ok()?;
    let seeds: u64 = rounds.parse().expect("PHALANX_SOAK is a number");
    Some(seeds.clamp(1, SEEDS_MAX))
}

/// The drawing in the guide is what the code draws.
fn check_drawing(name: &str, comparison: &Comparison) {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/game");
    let path = guide.join(format!("{name}.svg"));
    let drawn = draw(comparison);
    if env::var_os("PHALANX_DRAW").is_some() {
        std::fs::write(&path, &drawn).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == drawn,
        "docs/game/{name}.svg is not what the code draws; PHALANX_DRAW=1 draws it anew"
    );
}

fn check_step(comparison: &Comparison) {
    let (thresholds, staffing) = (&comparison.thresholds, &comparison.staffing);
    assert!(
        staffing.wait_p99 * 100 <= thresholds.wait_p99
            && staffing.worker_s <= 1.1 * thresholds.worker_s,
        "{}",
        comparison.table()
    );
}

#[test]
fn on_the_step_a_hundredth_of_the_waiting_at_a_tenth_more_worker_seconds_at_most() {
    let step = named("step");
    let comparison = step.scenario().compare();
    println!("{}", comparison.table());
    check_step(&comparison);
    check_drawing("step", &comparison);
    let mean = step.service.mean();
    for service in [
        Service::Fixed(mean),
        Service::Even(mean),
        Service::Exponential(mean),
        Service::Spread(mean),
    ] {
        for seed in 1..=soak().unwrap_or(0) {
            check_step(&step.with(service, seed).compare());
        }
    }
}

#[test]
fn at_constant_load_the_default_keeps_still_and_two_thresholds_sway() {
    let comparison = named("constant").scenario().compare();
    println!("{}", comparison.table());
    let turns = |outcome: &Outcome| outcome.turns_in_ten_minutes(Duration::ZERO);
    assert!(turns(&comparison.staffing) <= TURNS_MAX);
    assert!(
        turns(&comparison.thresholds) >= 10,
        "{}",
        turns(&comparison.thresholds)
    );
    check_drawing("constant", &comparison);
}

#[test]
fn constant_load_of_any_kind_is_kept_still() {
    // Rate, service, seconds; by chance alone some need more than the default bounds' 200.
    let loads = [
        (200.0, Service::Exponential(MS * 250), 900.0),
        (20.0, Service::Exponential(MS * 1000), 1800.0),
        (4.0, Service::Exponential(MS * 5000), 3600.0),
        (100.0, Service::Spread(MS * 50), 1200.0),
        (40.0, Service::Even(MS * 2000), 1800.0),
        (3.0, Service::Exponential(MS * 20), 1800.0),
    ];
    let bounds = Bounds::try_new(1, 500).unwrap();
    for (rate, service, seconds) in loads {
        let curve = Curve::try_new(vec![(0.0, rate), (seconds, rate)]).unwrap();
        for seed in 0..soak().unwrap_or(1) {
            let scenario = Scenario {
                title: String::new(),
                jobs: curve.jobs(service, seed),
                length: curve.length(),
                warm_up: Duration::ZERO,
                start: 10,
            };
            let outcome = scenario.run(&mut Staffing::within(bounds));
            let turns = outcome.turns_in_ten_minutes(Duration::ZERO);
            let at = format!("{rate}/s, {service:?}, seed {seed}");
            assert!(
                turns <= TURNS_MAX,
                "{at}: {turns} turns, {:?}",
                outcome.changes
            );
            assert!(
                outcome.wait_p50 < service.mean() / 4,
                "{at}: {:?}",
                outcome.wait_p50
            );
        }
    }
}

#[test]
fn known_load_is_staffed_before_it_comes() {
    use phalanx_game::workers::{Expected, StaffingOptions};

    let curve = Curve::try_new(vec![
        (0.0, 100.0),
        (90.0, 100.0),
        (90.0, 2000.0),
        (120.0, 2000.0),
    ])
    .unwrap();
    let scenario = Scenario {
        title: String::new(),
        jobs: curve.jobs(Service::Even(MS * 50), 1),
        length: curve.length(),
        warm_up: Duration::ZERO,
        start: 10,
    };
    let event = Expected {
        from: Duration::from_secs(90),
        until: Duration::from_secs(120),
        rate: 2000.0,
        lead: Expected::LEAD,
    };
    let told = StaffingOptions {
        events: vec![event],
        ..StaffingOptions::default()
    };
    let surprised = scenario.run(&mut Staffing::default());
    let prepared = scenario.run(&mut Staffing::try_new(told).unwrap());
    assert!(surprised.wait_max > MS * 500, "{:?}", surprised.wait_max);
    assert!(prepared.wait_max < MS * 100, "{:?}", prepared.wait_max);
    // The rule isn't told of anything.
    assert!(scenario.run(&mut Thresholds::default()).wait_max > MS * 10_000);
}
