use super::*;

fn sample(queue: u64, latency_p95_ms: f64, size: u32) -> Sample {
    Sample {
        queue,
        latency_p95_ms,
        size,
        ..Sample::default()
    }
}

fn at(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// What the rule does at ten seconds.
fn acts(rule: &mut Thresholds, queue: u64, latency: f64, size: u32) -> (u32, Reason) {
    rule.wanted(&sample(0, 0.0, size), at(0.0));
    let wanted = rule.wanted(&sample(queue, latency, size), at(10.0));
    (wanted.size, wanted.reason)
}

#[test]
fn every_clause_is_the_rules() {
    for (queue, latency, size, wanted, reason) in [
        // Growth takes both, each beyond its threshold.
        (501, 200.1, 50, 60, Reason::Overload),
        (500, 200.1, 50, 50, Reason::Steady),
        (501, 200.0, 50, 50, Reason::Steady),
        (50_000, 190.0, 50, 50, Reason::Steady),
        (499, 10_000.0, 50, 50, Reason::Steady),
        // So does shrinking.
        (99, 79.9, 50, 42, Reason::Idle),
        (100, 79.9, 50, 50, Reason::Steady),
        (99, 80.0, 50, 50, Reason::Steady),
        (0, 90.0, 50, 50, Reason::Steady),
        // int() drops the fraction,
        (501, 201.0, 11, 13, Reason::Overload),
        (0, 0.0, 13, 11, Reason::Idle),
        // and the bounds hold.
        (501, 201.0, 190, 200, Reason::Overload),
        (501, 201.0, 200, 200, Reason::Capped),
        (0, 0.0, 11, 10, Reason::Idle),
        (0, 0.0, 10, 10, Reason::Steady),
        (501, f64::NAN, 50, 50, Reason::Steady),
        (0, f64::NAN, 50, 50, Reason::Steady),
        (501, f64::INFINITY, 50, 60, Reason::Overload),
    ] {
        let acted = acts(&mut Thresholds::default(), queue, latency, size);
        assert_eq!(
            acted,
            (wanted, reason),
            "queue {queue}, {latency} ms, {size} workers"
        );
    }
}

#[test]
fn growth_sticks_below_five() {
    let bounds = Bounds::try_new(1, 200).unwrap();
    for (size, wanted, reason) in [
        (1, 1, Reason::Rounded),
        (4, 4, Reason::Rounded),
        (5, 6, Reason::Overload),
    ] {
        assert_eq!(
            acts(&mut Thresholds::new(bounds), 501, 201.0, size),
            (wanted, reason)
        );
    }
}

#[test]
fn it_acts_every_ten_seconds_and_once_after_a_pause() {
    let mut rule = Thresholds::default();
    let mut size = 10;
    let mut grown = Vec::new();
    let mut ask = |from: u32, until: u32| {
        for quarter in from * 4..until * 4 {
            let now = at(f64::from(quarter) / 4.0);
            let wanted = rule.wanted(&sample(1000, 1000.0, size), now);
            if wanted.size != size {
                grown.push((now.as_secs(), wanted.size));
                size = wanted.size;
            }
        }
    };
    ask(0, 31);
    ask(75, 82);
    assert_eq!(grown, [(10, 12), (20, 14), (30, 16), (75, 19), (80, 22)]);
}

#[test]
fn from_ten_to_two_hundred_takes_three_minutes_and_back_almost_as_long() {
    let mut size = 10;
    let steps = |size: &mut u32, queue, latency, end| {
        let mut steps = 0;
        while *size != end {
            *size = acts(&mut Thresholds::default(), queue, latency, *size).0;
            steps += 1;
        }
        steps
    };
    assert_eq!(steps(&mut size, 501, 201.0, 200), 18);
    assert_eq!(steps(&mut size, 0, 0.0, 10), 17);
}

#[test]
fn it_ratchets_where_service_alone_takes_80_ms() {
    let mut rule = Thresholds::default();
    for second in 0..1500 {
        let wanted = rule.wanted(&sample(0, 100.0, 200), Duration::from_secs(second));
        assert_eq!(wanted.size, 200);
    }
}

#[test]
fn a_size_outside_the_bounds_is_brought_in_at_once() {
    for (size, inside) in [(0, 10), (9, 10), (201, 200), (u32::MAX, 200)] {
        let wanted = Thresholds::default().wanted(&sample(0, 0.0, size), at(3.0));
        assert_eq!((wanted.size, wanted.reason), (inside, Reason::Bounds));
    }
}
