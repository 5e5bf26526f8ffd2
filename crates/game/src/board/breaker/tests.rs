//! Among them what went wrong in other breakers: resilience4j #544, #903, #935 (stuck half open), #1432 (more probes than
//! allowed), #2093 (stuck open), and one that counted failures without asking what they were a share of.

use proptest::prelude::*;

use super::*;

const CONFIG: BreakerConfig = BreakerConfig {
    window: Duration::from_secs(2),
    volume_min: 4,
    failures_percent: 50,
    open_min: Duration::from_millis(200),
    open_max: Duration::from_secs(3),
    probe_max: Duration::from_secs(1),
};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Opened at `at`.
fn opened(at: Duration) -> Breaker {
    let mut breaker = Breaker::new(CONFIG, 7);
    for _ in 0..CONFIG.volume_min {
        let ticket = breaker.allow(at).unwrap();
        breaker.settle(at, ticket, Outcome::Failed);
    }
    assert_eq!(breaker.state(), State::Open);
    breaker
}

#[test]
fn a_small_share_of_failures_opens_nothing_however_many_they_are() {
    let mut breaker = Breaker::new(CONFIG, 1);
    for call in 0..100_000_u64 {
        let now = Duration::from_micros(call * 100);
        let ticket = breaker.allow(now).expect("closed");
        let outcome = if call % 700 == 0 {
            Outcome::Failed
        } else {
            Outcome::Succeeded
        };
        breaker.settle(now, ticket, outcome);
    }
    assert_eq!(breaker.state(), State::Closed);
}

#[test]
fn a_few_failures_are_no_volume() {
    let mut breaker = Breaker::new(CONFIG, 1);
    for call in 0..100 {
        // Three in each window.
        let now = ms(call * 700);
        let ticket = breaker.allow(now).expect("closed");
        let outcome = match call % 2 {
            0 => Outcome::Failed,
            _ => Outcome::Succeeded,
        };
        breaker.settle(now, ticket, outcome);
    }
    assert_eq!(breaker.state(), State::Closed);
}

#[test]
fn failures_in_a_row_open_it_though_each_takes_longer_than_the_window() {
    let mut breaker = Breaker::new(CONFIG, 1);
    for call in 0..u64::from(CONFIG.volume_min) {
        let now = ms(call * 5000);
        let ticket = breaker.allow(now).expect("closed");
        breaker.settle(now, ticket, Outcome::Failed);
    }
    assert_eq!(breaker.state(), State::Open);
}

#[test]
fn half_open_lets_one_through_and_ordinary_calls_never() {
    let mut breaker = opened(ms(10));
    assert!(breaker.probe(ms(11)).is_none());
    let later = ms(10) + CONFIG.open_min;
    assert!(breaker.allow(later).is_none());
    assert!(breaker.probe(later).is_some());
    assert!(breaker.probe(later).is_none());
    assert!(breaker.allow(later).is_none());
}

#[test]
fn a_probe_that_never_comes_back_is_followed_by_another() {
    let mut breaker = opened(ms(10));
    let lost = breaker.probe(ms(300)).unwrap();
    let mut now = ms(300) + CONFIG.probe_max;
    // Lost counts as failed: it is open first, then comes the next.
    assert!(breaker.probe(now).is_none());
    assert_eq!(breaker.state(), State::Open);
    now += CONFIG.open_max;
    let second = breaker.probe(now).unwrap();
    // The lost one's late word changes nothing.
    breaker.settle(now, lost, Outcome::Failed);
    assert_eq!(breaker.state(), State::HalfOpen);
    breaker.settle(now, second, Outcome::Succeeded);
    assert_eq!(breaker.state(), State::Closed);
}

#[test]
fn an_abandoned_probe_makes_room_at_once() {
    let mut breaker = opened(ms(10));
    let probe = breaker.probe(ms(300)).unwrap();
    breaker.settle(ms(301), probe, Outcome::Abandoned);
    assert!(breaker.probe(ms(301)).is_some());
}

#[test]
fn results_of_calls_that_began_before_it_opened_do_not_close_or_reopen_it() {
    let mut breaker = Breaker::new(CONFIG, 1);
    let old: Vec<Ticket> = (0..8).map(|_| breaker.allow(ms(1)).unwrap()).collect();
    for ticket in &old[..4] {
        breaker.settle(ms(2), *ticket, Outcome::Failed);
    }
    assert_eq!(breaker.state(), State::Open);
    let probe = breaker.probe(ms(400)).unwrap();
    breaker.settle(ms(400), old[4], Outcome::Succeeded);
    assert_eq!(breaker.state(), State::HalfOpen);
    breaker.settle(ms(401), probe, Outcome::Succeeded);
    for ticket in &old[5..] {
        breaker.settle(ms(402), *ticket, Outcome::Failed);
    }
    assert_eq!(breaker.state(), State::Closed);
    assert!(breaker.allow(ms(402)).is_some());
}

#[test]
fn waits_grow_with_failed_probes_and_differ_between_processes() {
    let waits = |seed| {
        let mut breaker = Breaker::new(CONFIG, seed);
        for _ in 0..CONFIG.volume_min {
            let ticket = breaker.allow(ms(0)).unwrap();
            breaker.settle(ms(0), ticket, Outcome::Failed);
        }
        let mut now = ms(0);
        let mut waits = Vec::new();
        for _ in 0..8 {
            let due = breaker.due().unwrap();
            waits.push(due - now);
            now = due;
            let probe = breaker.probe(now).unwrap();
            breaker.settle(now, probe, Outcome::Failed);
        }
        waits
    };
    let (one, other) = (waits(1), waits(2));
    assert_ne!(one, other);
    for (at, wait) in one.iter().enumerate() {
        let longest = (CONFIG.open_min * (1 << at)).min(CONFIG.open_max);
        assert!(*wait >= longest / 2 - ms(1) && *wait <= longest, "{one:?}");
    }
}

#[test]
fn a_dropped_permit_is_given_back() {
    let circuit = Circuit::new(BreakerConfig {
        volume_min: 1,
        open_min: Duration::ZERO,
        open_max: Duration::ZERO,
        ..CONFIG
    });
    circuit.allow().unwrap().settle(Outcome::Failed);
    assert_eq!(circuit.state(), State::Open);
    assert_eq!(circuit.openings(), 1);
    assert!(circuit.allow().is_none());
    let probe = circuit.probe().unwrap();
    assert!(circuit.probe().is_none());
    drop(probe);
    circuit.probe().unwrap().settle(Outcome::Succeeded);
    assert_eq!(circuit.state(), State::Closed);
    assert!(circuit.allow().is_some());
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Allow,
    Probe,
    /// Of the oldest ticket that is still out.
    Settle(Outcome),
    Lose,
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let outcome = prop_oneof![
        Just(Outcome::Succeeded),
        Just(Outcome::Failed),
        Just(Outcome::Abandoned)
    ];
    prop_oneof![
        3 => Just(Step::Allow),
        3 => Just(Step::Probe),
        5 => outcome.prop_map(Step::Settle),
        1 => Just(Step::Lose),
        3 => (0_u64..1500).prop_map(Step::Pass),
    ]
}

proptest! {
    #[test]
    fn it_is_never_stuck_and_never_has_two_probes_out(
        seed in any::<u64>(),
        steps in proptest::collection::vec(step(), 0..300),
    ) {
        let mut breaker = Breaker::new(CONFIG, seed);
        let mut now = Duration::ZERO;
        let mut out: Vec<Ticket> = Vec::new();
        let mut probe_since: Option<Duration> = None;
        for step in steps {
            match step {
                Step::Allow => {
                    let ticket = breaker.allow(now);
                    prop_assert_eq!(ticket.is_some(), breaker.state() == State::Closed);
                    out.extend(ticket);
                }
                Step::Probe => {
                    let before = breaker.state();
                    let ticket = breaker.probe(now);
                    if before != State::Closed && ticket.is_some() {
                        prop_assert_eq!(before, State::Open);
                        prop_assert_eq!(breaker.state(), State::HalfOpen);
                        probe_since = Some(now);
                    }
                    out.extend(ticket);
                }
                Step::Settle(outcome) if !out.is_empty() => {
                    breaker.settle(now, out.remove(0), outcome);
                }
                Step::Lose if !out.is_empty() => drop(out.remove(0)),
                Step::Pass(more) => now += ms(more),
                Step::Settle(_) | Step::Lose => {}
            }
            if breaker.state() == State::HalfOpen {
                prop_assert!(probe_since.is_some());
            }
        }
        // Whatever was lost: whoever asks again and again gets a probe, and a success closes it.
        out.clear();
        let start = now;
        while breaker.state() != State::Closed {
            if let Some(probe) = breaker.probe(now) {
                breaker.settle(now, probe, Outcome::Succeeded);
            }
            now += ms(50);
            prop_assert!(now - start < CONFIG.open_max + CONFIG.probe_max + ms(200));
        }
        prop_assert!(breaker.allow(now).is_some());
    }
}
