use super::*;
use crate::workers::policy::{Bounds, Sample, Wanted};

/// Always the same size.
struct Fixed(u32);

impl Policy for Fixed {
    fn wanted(&mut self, sample: &Sample, _now: Duration) -> Wanted {
        let reason = if sample.size == self.0 {
            Reason::Steady
        } else {
            Reason::Load
        };
        Wanted {
            size: self.0,
            reason,
        }
    }

    fn bounds(&self) -> Bounds {
        Bounds::try_new(1, 1000).unwrap()
    }
}

const MS: u64 = 1_000_000;

fn job(at_ms: u64, service_ms: u64) -> Job {
    Job {
        at: at_ms * MS,
        service: service_ms * MS,
    }
}

#[test]
fn waits_are_those_of_a_queue_worked_by_hand() {
    // One worker: the second waits 60 ms, the third 150, the fourth nothing.
    let jobs = [job(0, 100), job(40, 100), job(50, 10), job(900, 10)];
    let outcome = run(
        &jobs,
        Duration::from_secs(1),
        Duration::ZERO,
        1,
        &mut Fixed(1),
    );
    assert_eq!(outcome.jobs, 4);
    assert_eq!(outcome.wait_max, Duration::from_millis(150));
    assert_eq!(outcome.wait_p50, Duration::ZERO);
    assert_eq!(outcome.queue_max, 2);
    assert!((outcome.worker_s - 1.0).abs() < 1e-9);
    assert_eq!(outcome.changes, []);
    let later = run(
        &jobs,
        Duration::from_secs(1),
        Duration::from_millis(500),
        1,
        &mut Fixed(1),
    );
    assert_eq!((later.jobs, later.wait_max), (1, Duration::ZERO));
    assert_eq!(later.queue_max, 0);
    assert!((later.worker_s - 0.5).abs() < 1e-9);
    let two = run(
        &jobs,
        Duration::from_secs(1),
        Duration::ZERO,
        2,
        &mut Fixed(2),
    );
    assert_eq!(two.wait_max, Duration::from_millis(50));
}

#[test]
fn a_worker_that_is_not_wanted_ends_after_its_job() {
    let jobs = [job(0, 600), job(0, 100), job(300, 100)];
    let outcome = run(
        &jobs,
        Duration::from_secs(1),
        Duration::ZERO,
        2,
        &mut Fixed(1),
    );
    // Two for 100 ms, then the long one alone keeps the one that is left: the third waits for it.
    assert_eq!(outcome.changes.len(), 1);
    assert_eq!(outcome.wait_max, Duration::from_millis(300));
}

#[test]
fn what_is_left_at_the_end_is_still_served_and_counted() {
    let jobs: Vec<Job> = (0..100).map(|at| job(at, 100)).collect();
    let outcome = run(
        &jobs,
        Duration::from_secs(1),
        Duration::ZERO,
        1,
        &mut Fixed(1),
    );
    assert_eq!(outcome.wait_max, Duration::from_millis(99 * 99));
    assert!((outcome.worker_s - 1.0).abs() < 1e-9);
    let never = [job(0, 3_600_000), job(1, 1)];
    let outcome = run(
        &never,
        Duration::from_secs(1),
        Duration::ZERO,
        1,
        &mut Fixed(1),
    );
    assert!(outcome.wait_max > Duration::from_secs(19));
}

#[test]
fn waiting_is_that_of_the_textbooks_queues() {
    // M/M/1 at 80 %: P99 = ln(80)·S/(1 − ρ), P50 = ln(1.6)·S/(1 − ρ).
    let curve = Curve::try_new(vec![(0.0, 80.0), (4000.0, 80.0)]).unwrap();
    let jobs = curve.jobs(Service::Exponential(Duration::from_millis(10)), 5);
    let outcome = run(&jobs, curve.length(), Duration::ZERO, 1, &mut Fixed(1));
    let near = |wait: Duration, ms: f64| (wait.as_secs_f64() * 1e3 / ms - 1.0).abs();
    assert!(
        near(outcome.wait_p99, 219.1) < 0.1,
        "{:?}",
        outcome.wait_p99
    );
    assert!(near(outcome.wait_p50, 23.5) < 0.1, "{:?}", outcome.wait_p50);
}

#[test]
fn turns_are_counted_where_direction_changes() {
    let change = |at, from, to| Change {
        at: Duration::from_secs(at),
        from,
        to,
        reason: Reason::Load,
    };
    let outcome = Outcome {
        jobs: 0,
        wait_p50: Duration::ZERO,
        wait_p99: Duration::ZERO,
        wait_max: Duration::ZERO,
        queue_max: 0,
        worker_s: 0.0,
        changes: vec![
            change(0, 1, 2),
            change(10, 2, 5),
            change(300, 5, 4),
            change(900, 4, 5),
            change(901, 5, 4),
        ],
        series: Vec::new(),
    };
    assert_eq!(outcome.turns(Duration::ZERO, Duration::MAX), 3);
    assert_eq!(
        outcome.turns(Duration::from_secs(10), Duration::from_secs(900)),
        1
    );
    assert_eq!(outcome.turns_in_ten_minutes(Duration::from_secs(10)), 1);
    assert_eq!(outcome.turns_in_ten_minutes(Duration::from_secs(301)), 1);
}

#[test]
fn every_named_load_is_there_and_small_enough() {
    for name in scenario::Named::NAMES {
        let named = scenario::Named::find(name).unwrap();
        assert_eq!(named.name, name);
        assert!(named.curve.length() <= Duration::from_secs(3600));
    }
    assert!(scenario::Named::find("sawtooth").is_none());
}

#[test]
fn recorded_arrivals_are_run_as_they_came() {
    let jobs = read_csv(
        "at_s,service_ms\n0,50\n0,50\n0.01,50\n2,1\n",
        Service::Fixed(Duration::ZERO),
        1,
    )
    .unwrap();
    let mut scenario = Scenario::recorded("friday", jobs).unwrap();
    scenario.start = 1;
    assert_eq!(scenario.length, Duration::from_secs(3));
    let outcome = scenario.run(&mut Fixed(1));
    assert_eq!(
        (outcome.jobs, outcome.wait_max),
        (4, Duration::from_millis(90))
    );
    assert_eq!(Scenario::recorded("none", Vec::new()), Err(BadLoad::Empty));
}
