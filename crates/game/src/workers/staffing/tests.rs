use proptest::prelude::*;

use super::*;
use crate::workers::policy::TICK;

/// A policy, the pool's size as it orders it, and a clock.
struct Bed {
    policy: Staffing,
    size: u32,
    ticks: u32,
    reasons: Vec<Reason>,
}

impl Bed {
    fn new(options: StaffingOptions) -> Self {
        let size = options.bounds.min();
        Self {
            policy: Staffing::try_new(options).unwrap(),
            size,
            ticks: 0,
            reasons: Vec::new(),
        }
    }

    fn now(&self) -> Duration {
        TICK * self.ticks
    }

    /// `seconds` of even load without a queue.
    fn run(&mut self, seconds: u32, rate: f64, service_s: f64) -> &mut Self {
        self.run_queued(seconds, rate, service_s, 0)
    }

    fn run_queued(&mut self, seconds: u32, rate: f64, service_s: f64, queue: u64) -> &mut Self {
        for _ in 0..seconds * 4 {
            self.ask(rate, service_s, queue);
        }
        self
    }

    fn ask(&mut self, rate: f64, service_s: f64, queue: u64) {
        let sample = Sample {
            queue,
            arrival_rate: rate,
            ended: (rate / 4.0).round() as u64,
            service_s,
            size: self.size,
            ..Sample::default()
        };
        let wanted = self.policy.wanted(&sample, self.now());
        self.ticks += 1;
        if wanted.size != self.size {
            self.reasons.push(wanted.reason);
        }
        self.size = wanted.size;
    }
}

fn default() -> Bed {
    Bed::new(StaffingOptions::default())
}

#[test]
fn steady_load_is_staffed_by_its_square_root() {
    // 50 busy on average, and the root of 50.
    assert_eq!(default().run(120, 1000.0, 0.05).size, 58);
    // The bounds' least covers 1.5 + 1.2.
    assert_eq!(default().run(120, 30.0, 0.05).size, 10);
    let beta_2 = StaffingOptions {
        beta: 2.0,
        ..StaffingOptions::default()
    };
    assert_eq!(Bed::new(beta_2).run(120, 1000.0, 0.05).size, 65);
    let parties = StaffingOptions {
        clumping: 4.0,
        ..StaffingOptions::default()
    };
    assert_eq!(Bed::new(parties).run(120, 1000.0, 0.05).size, 65);
}

#[test]
fn a_surge_is_followed_within_seconds_and_at_a_bounded_rate() {
    let mut bed = default();
    bed.run(60, 150.0, 0.05);
    assert_eq!(bed.size, 10);
    let mut sizes = Vec::new();
    for _ in 0..5 {
        bed.run(1, 1000.0, 0.05);
        sizes.push(bed.size);
    }
    assert_eq!(sizes[..2], [20, 40]);
    assert!((50..=64).contains(&sizes[4]), "{sizes:?}");
    assert!(bed.reasons.contains(&Reason::Surge), "{:?}", bed.reasons);
}

#[test]
fn a_small_pool_may_grow_by_a_step_where_doubling_is_less() {
    let mut bed = Bed::new(StaffingOptions {
        bounds: Bounds::try_new(1, 200).unwrap(),
        ..StaffingOptions::default()
    });
    bed.run(30, 2.0, 0.05);
    assert_eq!(bed.size, 1);
    bed.run(1, 1000.0, 0.05);
    assert_eq!(bed.size, 9);
}

#[test]
fn size_is_held_and_then_released_at_once() {
    let mut bed = default();
    bed.run(120, 1000.0, 0.05);
    bed.run(45, 300.0, 0.05);
    assert_eq!(bed.size, 58);
    // The short average took its time, so that the last of it goes later.
    bed.run(15, 300.0, 0.05);
    assert!((19..=24).contains(&bed.size), "{}", bed.size);
    assert_eq!(bed.reasons.last(), Some(&Reason::Released));
    bed.run(120, 300.0, 0.05);
    assert!((19..=21).contains(&bed.size), "{}", bed.size);
}

#[test]
fn differences_within_the_band_are_left_alone() {
    let mut bed = default();
    bed.run(120, 1000.0, 0.05);
    let changes = bed.reasons.len();
    bed.run(300, 985.0, 0.05);
    bed.run(300, 1010.0, 0.05);
    bed.run(300, 990.0, 0.05);
    assert_eq!((bed.size, bed.reasons.len()), (58, changes));
}

#[test]
fn a_backlog_is_staffed_for_and_a_chance_queue_is_not() {
    let mut bed = default();
    bed.run(120, 1000.0, 0.05);
    bed.run_queued(5, 1000.0, 0.05, 56);
    assert_eq!(bed.size, 58);
    bed.run_queued(5, 1000.0, 0.05, 1057);
    // A thousand jobs too many, 50 ms each, in 3 s: 17 more.
    assert_eq!(bed.size, 74);
    assert_eq!(bed.reasons.last(), Some(&Reason::Backlog));
}

#[test]
fn slower_service_is_noticed_as_soon_as_chance_does_not_explain_it() {
    let mut bed = default();
    bed.run(120, 400.0, 0.05);
    assert_eq!(bed.size, 25);
    bed.run(10, 400.0, 0.2);
    assert!((80..=92).contains(&bed.size), "{}", bed.size);
    assert!((bed.policy.service.level() - 0.2).abs() < 0.02);
}

#[test]
fn no_worker_goes_while_a_panic_is_held() {
    let mut bed = default();
    bed.run(60, 100.0, 0.05);
    bed.run(10, 1000.0, 0.05);
    let peak = bed.size;
    assert!(peak >= 50);
    bed.run(35, 100.0, 0.05);
    assert_eq!(bed.size, peak);
    bed.run(30, 100.0, 0.05);
    assert_eq!(bed.size, 10);
}

#[test]
fn the_calendar_staffs_before_the_event_and_releases_after_it() {
    let event = Expected {
        from: Duration::from_secs(100),
        until: Duration::from_secs(160),
        rate: 2000.0,
        lead: Expected::LEAD,
    };
    let mut bed = Bed::new(StaffingOptions {
        events: vec![event],
        ..StaffingOptions::default()
    });
    bed.run(69, 100.0, 0.05);
    assert_eq!(bed.size, 10);
    bed.run(31, 100.0, 0.05);
    assert_eq!(
        (bed.size, bed.reasons.last()),
        (110, Some(&Reason::Expected))
    );
    bed.run(80, 100.0, 0.05);
    assert_eq!(bed.size, 110);
    bed.run(60, 100.0, 0.05);
    assert_eq!(bed.size, 10);
}

#[test]
fn events_are_placed_by_the_wall_clock() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    let hour = Duration::from_secs(3600);
    let event = Expected::at(now + hour, hour, 500.0, now).unwrap();
    assert_eq!((event.from, event.until), (hour, hour * 2));
    let begun = Expected::at(now - hour / 2, hour, 500.0, now).unwrap();
    assert_eq!((begun.from, begun.until), (Duration::ZERO, hour / 2));
    assert_eq!(Expected::at(now - hour * 2, hour, 500.0, now), None);
}

#[test]
fn more_than_the_most_is_said_and_not_done() {
    let mut bed = default();
    bed.run(120, 100_000.0, 0.05);
    assert_eq!(bed.size, 200);
    let sample = Sample {
        size: 200,
        arrival_rate: 1e5,
        ..Sample::default()
    };
    let wanted = bed.policy.wanted(&sample, bed.now());
    assert_eq!((wanted.size, wanted.reason), (200, Reason::Capped));
}

#[test]
fn a_pool_that_saw_nothing_keeps_its_least() {
    let mut bed = default();
    for _ in 0..2000 {
        bed.ask(0.0, 0.0, 0);
    }
    assert_eq!((bed.size, bed.reasons.len()), (10, 0));
    // After idling it serves again as if new.
    assert_eq!(bed.run(60, 1000.0, 0.05).size, 58);
}

#[test]
fn options_out_of_range_are_named() {
    let bad = |change: fn(&mut StaffingOptions)| {
        let mut options = StaffingOptions::default();
        change(&mut options);
        Staffing::try_new(options).unwrap_err().to_string()
    };
    assert!(bad(|o| o.beta = f64::NAN).contains("`beta`"));
    assert!(bad(|o| o.grow_factor = 0.5).contains("`grow_factor`"));
    assert!(bad(|o| o.band_part = 1.5).contains("`band_part`"));
    assert!(bad(|o| o.clumping = 0.0).contains("`clumping`"));
    assert!(bad(|o| o.drain = Duration::ZERO).contains("`drain`"));
    assert!(bad(|o| o.short = Duration::ZERO).contains("`short`"));
    assert!(bad(|o| o.hold = Duration::MAX).contains("`hold`"));
    let stuck = bad(|o| (o.grow_factor, o.grow_step) = (1.0, 0));
    assert!(stuck.contains("`grow_step`"));
    let event = Expected {
        from: Duration::ZERO,
        until: Duration::MAX,
        rate: f64::INFINITY,
        lead: Duration::ZERO,
    };
    let mut options = StaffingOptions {
        events: vec![event],
        ..StaffingOptions::default()
    };
    let refused = Staffing::try_new(options.clone()).unwrap_err();
    assert!(refused.to_string().contains("`events.rate`"));
    options.events = vec![event; EVENTS_MAX + 1];
    let refused = Staffing::try_new(options).unwrap_err();
    assert!(matches!(refused, BadPolicy::Events { .. }));
    for (min, max) in [(0, 10), (11, 10), (1, 1_000_000)] {
        assert!(Bounds::try_new(min, max).is_err());
    }
}

fn hostile() -> impl Strategy<Value = f64> {
    prop_oneof![
        Just(f64::NAN),
        Just(f64::INFINITY),
        Just(f64::NEG_INFINITY),
        Just(0.0),
        Just(-1.0),
        Just(f64::MAX),
        Just(f64::MIN_POSITIVE),
        0.0..1e4,
    ]
}

fn anything() -> impl Strategy<Value = (Sample, u64)> {
    let numbers = (hostile(), hostile(), hostile());
    let counts = (
        prop_oneof![Just(u64::MAX), 0..100_000_u64],
        prop_oneof![Just(u64::MAX), 0..1000_u64],
        any::<u32>(),
        prop_oneof![any::<u32>(), 0..300_u32],
        prop_oneof![0..1000_u64, 0..1_000_000_u64, Just(u64::MAX / 2)],
    );
    (numbers, counts).prop_map(
        |((latency_p95_ms, arrival_rate, service_s), (queue, ended, busy, size, passed_ms))| {
            let sample = Sample {
                queue,
                latency_p95_ms,
                arrival_rate,
                ended,
                service_s,
                busy,
                size,
            };
            (sample, passed_ms)
        },
    )
}

/// Every policy that there is, within bounds.
fn policies(bounds: Bounds) -> [Box<dyn Policy>; 2] {
    [
        Box::new(Staffing::within(bounds)),
        Box::new(crate::workers::Thresholds::new(bounds)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_the_samples_say_size_is_within_bounds_and_changes_have_a_reason(
        min in 1..40_u32,
        more in 0..400_u32,
        samples in proptest::collection::vec(anything(), 1..60),
    ) {
        let bounds = Bounds::try_new(min, min + more).unwrap();
        for mut policy in policies(bounds) {
            let mut now = Duration::ZERO;
            for (sample, passed_ms) in &samples {
                now = now.saturating_add(Duration::from_millis(*passed_ms));
                let wanted = policy.wanted(sample, now);
                prop_assert!((min..=min + more).contains(&wanted.size), "{wanted:?}");
                prop_assert_eq!(wanted.size != sample.size, wanted.reason.changes(), "{:?}", wanted);
            }
        }
    }

    #[test]
    fn more_work_never_means_fewer_workers(
        rates in proptest::collection::vec((0.0..3000.0_f64, 1..40_u32), 1..6),
        service_s in 0.001..0.5_f64,
        queue in 0..5000_u64,
        rate in 0.0..3000.0_f64,
        more_queue in 0..5000_u64,
        more_rate in 0.0..3000.0_f64,
        latency in 0.0..500.0_f64,
        more_latency in 0.0..500.0_f64,
    ) {
        let mut bed = default();
        for (rate, seconds) in rates {
            bed.run(seconds, rate, service_s);
        }
        let sample = Sample {
            queue,
            latency_p95_ms: latency,
            arrival_rate: rate,
            ended: 10,
            service_s,
            size: bed.size,
            ..Sample::default()
        };
        let busier = Sample {
            queue: queue + more_queue,
            latency_p95_ms: latency + more_latency,
            arrival_rate: rate + more_rate,
            ..sample
        };
        let now = bed.now();
        let less = bed.policy.clone().wanted(&sample, now);
        let most = bed.policy.clone().wanted(&busier, now);
        prop_assert!(less.size <= most.size, "{less:?} {most:?}");
        let thresholds = |sample: &Sample| {
            let mut rule = crate::workers::Thresholds::default();
            rule.wanted(sample, Duration::ZERO);
            rule.wanted(sample, Duration::from_secs(10)).size
        };
        prop_assert!(thresholds(&sample) <= thresholds(&busier));
    }
}
