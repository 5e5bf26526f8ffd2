//! More work than can be done: who comes first, what is refused, and that every fight has one end.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use phalanx_game::battle::{Call, Class, End, GradientOptions, Options, Reject};

use super::act::{Act, Gate, actors, occupy, patient, until};
use super::duel::{Duel, Rules, Teams};

#[test]
fn classes_get_their_shares_of_a_core_that_is_behind() {
    let (executor, kind) = actors(Options {
        limit: Some(GradientOptions {
            initial: 1_000,
            min: 1_000,
            max: 1_000,
        }),
        ..patient(1)
    });
    // Costs are learnt: all cost the same from here on.
    let (gate, blocker) = occupy(&executor, "gate");
    let notes = Arc::new(Mutex::new(Vec::new()));
    let submit = |class: Class, at| {
        let act = Act::Note(notes.clone(), class as u64);
        kind.submit(act, Call::new(at).class(class))
    };
    let mut fights = Vec::new();
    // Whoever came first has no advantage.
    for class in [Class::Check, Class::Sweep, Class::Live] {
        fights.extend((0..100).map(|at| submit(class, at)));
    }
    gate.open();
    blocker.wait().unwrap();
    assert!(fights.into_iter().all(|fight| fight.wait().is_ok()));
    let notes = notes.lock().unwrap();
    let of = |class: Class| {
        notes
            .iter()
            .take(100)
            .filter(|&&note| note == class as u64)
            .count()
    };
    let counts = [of(Class::Live), of(Class::Sweep), of(Class::Check)];
    assert!(
        counts[0].abs_diff(70) <= 2 && counts[1].abs_diff(20) <= 2,
        "{counts:?}"
    );
    assert_eq!(notes.len(), 300, "and what is left is lent");
}

#[test]
fn under_overload_the_newest_are_served_and_the_oldest_refused() {
    let mut options = patient(1);
    options.interval = Duration::ZERO;
    options.classes[0].target = Duration::from_millis(1);
    let (executor, kind) = actors(options);
    let (gate, blocker) = occupy(&executor, "gate");
    let fights: Vec<_> = (0..50)
        .map(|at| kind.submit(Act::Say(at), Call::new(at)))
        .collect();
    let late = Instant::now() + Duration::from_millis(2);
    while Instant::now() <= late {
        thread::sleep(Duration::from_millis(1));
    }
    gate.open();
    blocker.wait().unwrap();
    let ends: Vec<_> = fights.into_iter().map(|fight| fight.wait()).collect();
    assert!(
        matches!(ends[0], Err(Reject::Overloaded { .. })),
        "{:?}",
        ends[0]
    );
    assert!(ends[49].is_ok(), "{:?}", ends[49]);
    let served = ends.iter().filter(|end| end.is_ok()).count() as u64;
    let metrics = executor.metrics();
    assert_eq!(metrics.ended_by(End::TooOld) + served, 50);
    assert!(metrics.turned >= 1);
}

#[test]
fn an_idle_core_takes_what_a_busy_one_can_not_get_to() {
    let (executor, kind) = actors(patient(2));
    let (_stays_shut, _first) = occupy(&executor, "gate-1");
    let (gate, second) = occupy(&executor, "gate-2");
    let fights: Vec<_> = (0..20)
        .map(|at| kind.submit(Act::Say(at), Call::new(at)))
        .collect();
    gate.open();
    second.wait().unwrap();
    for fight in fights {
        fight.wait().unwrap();
    }
    assert!(executor.metrics().stolen > 0);
}

#[test]
fn a_sleeping_core_comes_for_what_is_behind_a_fight_that_is_longer_than_was_thought() {
    let (_executor, kind) = actors(patient(2));
    // Learnt: a fight costs less than waking a core.
    for at in 0..1_000 {
        kind.submit(Act::Say(at), Call::new(at)).wait().unwrap();
    }
    let gate = Arc::new(Gate::default());
    let long = kind.submit(Act::Wait(gate.clone()), Call::new(1));
    until("it fights", || gate.inside() == 1);
    let fought = kind.submit(Act::Say(7), Call::new(7)).wait();
    assert_eq!(fought.unwrap().output, 7);
    gate.open();
    long.wait().unwrap();
}

#[test]
fn admission_converges_and_keeps_the_wait_short() {
    let mut options = patient(2);
    for class in &mut options.classes {
        (class.target, class.queue_max) = (Duration::from_millis(20), 8_192);
    }
    // Without CoDel, to see what admission does alone.
    options.interval = Duration::from_secs(600);
    options.limit = Some(GradientOptions {
        initial: 2_048,
        min: 4,
        max: 4_096,
    });
    let executor = phalanx_game::battle::Executor::start(options).unwrap();
    let duels = executor.register("duel", Duel, 1, Rules::first()).unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let feeders: Vec<_> = (0..2)
        .map(|feeder| {
            let (duels, over) = (duels.clone(), over.clone());
            thread::spawn(move || {
                let mut held = std::collections::VecDeque::new();
                let mut seed = feeder;
                while !over.load(Ordering::Relaxed) {
                    // As many as get in, and no more memory than that.
                    let fight = duels.submit(Teams::sample(seed, 5, u32::MAX, 60), Call::new(seed));
                    seed += 2;
                    held.push_back(fight);
                    if held.len() > 3_000 {
                        let _ = held.pop_front().map(|fight| fight.wait());
                    }
                }
            })
        })
        .collect();
    // What is in flight is as much as is done in about the aimed-at wait, whatever the machine's speed.
    until("the limit has settled", || {
        let metrics = executor.metrics();
        let in_time = 2.0 * 0.02 / metrics.kinds[0].cost.as_secs_f64().max(1e-9);
        let refused = metrics.ended_by(End::Limit) > 0;
        refused && f64::from(metrics.limit) < 4.0 * in_time.max(8.0)
    });
    over.store(true, Ordering::Relaxed);
    for feeder in feeders {
        feeder.join().unwrap();
    }
}

#[test]
fn no_answer_is_lost_or_given_twice() {
    const THREADS: u64 = 4;
    let rounds: u64 = std::env::var("PHALANX_SOAK").map_or(1, |rounds| rounds.parse().unwrap());
    let each = 1_500 * rounds;
    let mut options = patient(3);
    for class in &mut options.classes {
        (class.target, class.queue_max) = (Duration::from_micros(200), 20);
    }
    (options.interval, options.check_every) = (Duration::from_millis(1), 1);
    let (executor, kind) = actors(options);
    let answered = Arc::new(AtomicU64::new(0));
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (kind, answered) = (kind.clone(), answered.clone());
            scope.spawn(move || {
                let mut held = Vec::new();
                for at in 0..each {
                    let number = thread * each + at;
                    let act = if at % 100 == 7 {
                        Act::Foul
                    } else {
                        Act::Say(number)
                    };
                    let class = Class::ALL[(at % 3) as usize];
                    let mut call = Call::new(number).class(class);
                    if at % 5 == 0 {
                        call = call.within(Duration::from_micros(at % 400));
                    }
                    let fight = kind.submit(act, call);
                    match at % 4 {
                        // Leaves, at once or with some others.
                        0 => drop(fight),
                        1 => held.push((number, None, Some(fight))),
                        _ => held.push((number, Some(()), Some(fight))),
                    }
                    if held.len() >= 32 {
                        for (number, wanted, fight) in held.drain(..) {
                            let Some(fight) = fight.filter(|_| wanted.is_some()) else {
                                continue;
                            };
                            if let Ok(fought) = fight.wait() {
                                assert_eq!(fought.output, number, "its own answer");
                            }
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
                for (_, wanted, fight) in held {
                    if let Some(fight) = fight.filter(|_| wanted.is_some()) {
                        let _ = fight.wait();
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert_eq!(answered.load(Ordering::Relaxed), THREADS * each / 2);
    until("nothing is in flight", || {
        executor.metrics().in_flight == [0; 3]
    });
    let metrics = executor.metrics();
    assert_eq!(metrics.ended_in_all(), THREADS * each, "{:?}", metrics.ends);
    assert_eq!(metrics.work, Duration::ZERO, "all accounted for");
    // Fights whose callers left are passed over when their turn comes.
    until("the queues are empty", || executor.metrics().queued == 0);
}
