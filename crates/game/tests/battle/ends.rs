//! How fights end that don't end with a result.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use phalanx_game::battle::{
    Call, Class, Drained, End, Executor, GradientOptions, Options, RegisterError, Reject, Stage,
    StartError,
};
use phalanx_telemetry::metrics::Exposition;

use super::act::{Act, Bomb, Gate, actors, begun, occupy, patient, until};

#[test]
fn a_caller_that_leaves_stops_the_fight_it_waited_for() {
    let (executor, kind) = actors(patient(1));
    let gate = Arc::new(Gate::default());
    let fight = kind.submit(Act::Wait(gate.clone()), Call::new(1));
    until("it fights", || gate.inside() == 1);
    drop(fight);
    until("it stopped", || gate.inside() == 0);
    until("and made room", || executor.metrics().in_flight[0] == 0);
    assert_eq!(executor.metrics().ended(Class::Live, End::Cancelled), 1);
}

#[test]
fn a_caller_that_leaves_takes_its_fight_out_of_the_queue_at_once() {
    let (executor, kind) = actors(patient(1));
    let (gate, blocker) = occupy(&executor, "gate");
    let notes = Arc::new(Mutex::new(Vec::new()));
    let fights: Vec<_> = (0..10)
        .map(|at| kind.submit(Act::Note(notes.clone(), at), Call::new(at)))
        .collect();
    assert_eq!(executor.metrics().in_flight[0], 11);
    for (at, fight) in fights.into_iter().enumerate() {
        if at % 2 == 0 {
            drop(fight);
        } else {
            std::mem::forget(fight);
        }
    }
    assert_eq!(
        executor.metrics().in_flight[0],
        6,
        "without waiting for the core"
    );
    gate.open();
    blocker.wait().unwrap();
    until("the others fought", || executor.metrics().in_flight[0] == 0);
    assert_eq!(*notes.lock().unwrap(), [1, 3, 5, 7, 9]);
}

#[test]
fn a_deadline_ends_a_fight_that_computes() {
    let (_executor, kind) = actors(patient(1));
    let gate = Arc::new(Gate::default());
    let call = Call::new(1).within(Duration::from_millis(20));
    let end = begun(|| kind.submit(Act::Wait(gate.clone()), call.clone()));
    let stage = Stage::Fight;
    assert_eq!(end, Reject::DeadlinePassed { stage });
}

#[test]
fn a_deadline_that_passed_in_the_queue_costs_no_fight() {
    let (executor, kind) = actors(patient(1));
    let (gate, blocker) = occupy(&executor, "gate");
    let notes = Arc::new(Mutex::new(Vec::new()));
    let within = Duration::from_millis(50);
    let fight = kind.submit(Act::Note(notes.clone(), 1), Call::new(1).within(within));
    let late = Instant::now() + within;
    while Instant::now() <= late {
        thread::sleep(Duration::from_millis(1));
    }
    gate.open();
    blocker.wait().unwrap();
    let stage = Stage::Dequeue;
    assert_eq!(fight.wait().unwrap_err(), Reject::DeadlinePassed { stage });
    assert!(notes.lock().unwrap().is_empty());
}

#[test]
fn a_deadline_that_can_not_be_met_is_refused_at_the_door() {
    let (executor, kind) = actors(patient(1));
    let (gate, _blocker) = occupy(&executor, "gate");
    // Each counts for the 50 µs that a fight is taken to cost before one was measured.
    let queued: Vec<_> = (0..60)
        .map(|at| kind.submit(Act::Say(at), Call::new(at)))
        .collect();
    let call = Call::new(1).within(Duration::from_millis(2));
    let end = kind.submit(Act::Say(1), call).wait();
    let stage = Stage::Enqueue;
    assert_eq!(end.unwrap_err(), Reject::DeadlinePassed { stage });
    let call = Call::new(1).within(Duration::ZERO);
    let end = kind.submit(Act::Say(1), call).wait();
    assert_eq!(end.unwrap_err(), Reject::DeadlinePassed { stage });
    assert_eq!(executor.metrics().ended(Class::Live, End::LateAtDoor), 2);
    gate.open();
    assert!(queued.into_iter().all(|fight| fight.wait().is_ok()));
}

#[test]
fn a_fight_that_can_not_be_stopped_costs_its_core_and_no_caller() {
    let (executor, kind) = actors(patient(2));
    let gate = Arc::new(Gate::default());
    let stubborn = executor
        .register("stubborn", super::act::Actor, 1, 0)
        .unwrap();
    let call = Call::new(1).within(Duration::from_millis(20));
    let end = begun(|| stubborn.submit(Act::Ignore(gate.clone()), call.clone()));
    let stage = Stage::Fight;
    assert_eq!(end, Reject::DeadlinePassed { stage });
    assert_eq!(gate.inside(), 1, "it goes on");
    until("it is noticed", || executor.metrics().stuck == 1);
    for at in 0..50 {
        let fought = kind.submit(Act::Say(at), Call::new(at)).wait();
        assert_eq!(fought.unwrap().output, at, "the other core goes on");
    }
    gate.open();
    until("the core is back", || executor.metrics().stuck == 0);
    assert_eq!(executor.metrics().ended(Class::Live, End::LateInFight), 1);
}

#[test]
fn panics_end_one_fight_and_the_second_puts_the_input_away() {
    let (executor, kind) = actors(Options {
        quarantine_forget: Duration::from_secs(3_600),
        ..patient(1)
    });
    let panic = |seed| {
        kind.submit(Act::Panic(7), Call::new(seed))
            .wait()
            .unwrap_err()
    };
    let Reject::Panicked { hash } = panic(1) else {
        panic!("it should have panicked");
    };
    // Another seed: it is the input that is suspected.
    assert_eq!(panic(2), Reject::Panicked { hash });
    assert_eq!(panic(3), Reject::Poison { hash });
    assert!(
        kind.submit(Act::Say(7), Call::new(1)).wait().is_ok(),
        "others are fine"
    );
    kind.publish(2, 0).unwrap();
    let again = panic(4);
    assert!(
        matches!(again, Reject::Panicked { hash: other } if other != hash),
        "new rules, new chance"
    );
    let metrics = executor.metrics();
    assert_eq!(metrics.ended_by(End::Panicked), 3);
    assert_eq!((metrics.ended_by(End::Poison), metrics.suspects), (1, 2));
}

#[test]
fn a_fight_that_wants_more_memory_than_it_may_ends_alone() {
    let (executor, kind) = actors(Options {
        arena_max: 1 << 20,
        ..patient(1)
    });
    let end = kind.submit(Act::Take(4 << 20), Call::new(1)).wait();
    assert!(matches!(end, Err(Reject::Panicked { .. })));
    assert_eq!(
        kind.submit(Act::Take(1 << 19), Call::new(1))
            .wait()
            .unwrap()
            .output,
        1 << 19
    );
    assert!(executor.metrics().arena_bytes <= 1 << 20);
}

#[test]
fn a_large_fight_does_not_keep_its_memory() {
    let (executor, kind) = actors(Options {
        arena_trim_calls: 50,
        ..patient(1)
    });
    kind.submit(Act::Take(8 << 20), Call::new(1))
        .wait()
        .unwrap();
    until("it is held", || executor.metrics().arena_bytes >= 8 << 20);
    for at in 0..150 {
        kind.submit(Act::Take(100), Call::new(at)).wait().unwrap();
    }
    until("it is given back", || {
        executor.metrics().arena_bytes < 1 << 20
    });
}

#[test]
fn threads_may_be_tied_to_processors() {
    let (executor, kind) = actors(Options {
        pin: true,
        nice: 3,
        ..patient(2)
    });
    for at in 0..20 {
        let fought = kind.submit(Act::Say(at), Call::new(at)).wait();
        assert_eq!(fought.unwrap().output, at);
    }
    assert_eq!(executor.drain_blocking(Duration::from_secs(60)).stuck, 0);
}

#[test]
fn what_makes_no_sense_is_refused_at_the_start() {
    let refused = |options| Executor::start(options).unwrap_err();
    let cores = refused(Options {
        cores: 257,
        ..Options::default()
    });
    assert!(matches!(cores, StartError::Cores { cores: 257 }));
    let mut options = patient(1);
    options.classes[1].share = 0;
    assert!(matches!(
        refused(options),
        StartError::Share { class: "sweep" }
    ));
    let mut options = patient(1);
    options.classes[2].queue_max = 0;
    assert!(matches!(
        refused(options),
        StartError::Queue {
            class: "check",
            max: 0
        }
    ));
    let limit = GradientOptions {
        initial: 1,
        min: 9,
        max: 8,
    };
    let options = Options {
        limit: Some(limit),
        ..patient(1)
    };
    assert!(matches!(
        refused(options),
        StartError::Limit { min: 9, max: 8 }
    ));
    let (executor, _kind) = actors(patient(1));
    let twice = executor.register("act", super::act::Actor, 1, 0);
    assert_eq!(twice.unwrap_err(), RegisterError::Known { name: "act" });
}

#[test]
fn a_foul_is_the_battles_own_word() {
    let (executor, kind) = actors(patient(1));
    let end = kind.submit(Act::Foul, Call::new(1)).wait();
    assert_eq!(end.unwrap_err(), Reject::Foul("not allowed"));
    let long = Call::new(1).session("s".repeat(257));
    assert!(matches!(
        kind.submit(Act::Say(1), long).wait(),
        Err(Reject::Foul(_))
    ));
    assert_eq!(executor.metrics().ended_by(End::Foul), 2);
}

#[tokio::test]
async fn a_drain_finishes_what_was_taken_in_and_refuses_the_rest() {
    let (executor, kind) = actors(patient(2));
    let (gate, blocker) = occupy(&executor, "gate");
    let queued: Vec<_> = (0..100)
        .map(|at| kind.submit(Act::Say(at), Call::new(at)))
        .collect();
    executor.close();
    let late = kind.submit(Act::Say(1), Call::new(1)).await;
    assert_eq!(late.unwrap_err(), Reject::Draining);
    gate.open();
    let drained = executor.drain(Duration::from_secs(60)).await;
    assert_eq!((drained.cut, drained.stuck), (0, 0));
    assert!(blocker.await.is_ok());
    for (at, fight) in queued.into_iter().enumerate() {
        assert_eq!(fight.await.unwrap().output, at as u64);
    }
    let late = kind.submit(Act::Say(1), Call::new(1)).await;
    assert_eq!(late.unwrap_err(), Reject::Draining, "and for good");
}

#[test]
fn a_drain_that_runs_out_of_time_cuts_fights_short() {
    let (executor, kind) = actors(patient(1));
    let (_never_opens, blocker) = occupy(&executor, "gate");
    let queued = kind.submit(Act::Say(1), Call::new(1));
    let drained = executor.drain_blocking(Duration::from_millis(5));
    assert_eq!((drained.cut, drained.stuck), (2, 0));
    assert_eq!(blocker.wait().unwrap_err(), Reject::Draining);
    assert_eq!(queued.wait().unwrap_err(), Reject::Draining);
}

#[test]
fn a_dropped_executor_leaves_no_caller_waiting() {
    let (executor, kind) = actors(patient(1));
    let (_never_opens, blocker) = occupy(&executor, "gate");
    let queued = kind.submit(Act::Say(1), Call::new(1));
    drop(executor);
    assert_eq!(blocker.wait().unwrap_err(), Reject::Draining);
    assert_eq!(queued.wait().unwrap_err(), Reject::Draining);
}

#[test]
fn a_fight_that_can_not_be_stopped_leaves_no_caller_waiting_when_the_executor_ends() {
    let (executor, kind) = actors(patient(1));
    let gate = Arc::new(Gate::default());
    let stubborn = kind.submit(Act::Ignore(gate.clone()), Call::new(1));
    until("it fights", || gate.inside() == 1);
    let queued = kind.submit(Act::Say(1), Call::new(1));
    drop(executor);
    assert_eq!(stubborn.wait().unwrap_err(), Reject::Draining);
    assert_eq!(queued.wait().unwrap_err(), Reject::Draining);
    let late = kind.submit(Act::Say(1), Call::new(1)).wait();
    assert_eq!(late.unwrap_err(), Reject::Draining);
    gate.open();
}

#[test]
fn a_drain_may_take_for_ever() {
    let (executor, kind) = actors(patient(1));
    kind.submit(Act::Say(1), Call::new(1)).wait().unwrap();
    let drained = executor.drain_blocking(Duration::MAX);
    assert_eq!(drained, Drained { cut: 0, stuck: 0 });
}

#[test]
fn a_destructor_that_panics_costs_no_core() {
    let (_executor, kind) = actors(patient(1));
    for at in 0..3 {
        let bomb = Act::Bomb(Arc::new(Bomb(at)));
        // Answered, or (the last handle may be its caller's) the panic is its caller's own.
        let caller = thread::spawn({
            let kind = kind.clone();
            move || drop(kind.submit(bomb, Call::new(at)))
        });
        let _ = caller.join();
        let fought = kind.submit(Act::Say(at), Call::new(at)).wait();
        assert_eq!(fought.unwrap().output, at);
    }
}

#[test]
fn an_answer_reaches_its_caller_though_the_next_fight_never_ends() {
    let (executor, kind) = actors(patient(1));
    // Learnt: a fight costs next to nothing, so that callers are woken together.
    for at in 0..1_000 {
        kind.submit(Act::Say(at), Call::new(at)).wait().unwrap();
    }
    let (start, blocker) = occupy(&executor, "gate");
    let fights: Vec<_> = (0..5)
        .map(|at| kind.submit(Act::Say(at), Call::new(at)))
        .collect();
    let gate = Arc::new(Gate::default());
    let endless = kind.submit(Act::Ignore(gate.clone()), Call::new(1));
    start.open();
    blocker.wait().unwrap();
    assert!(fights.into_iter().all(|fight| fight.wait().is_ok()));
    gate.open();
    endless.wait().unwrap();
}

#[test]
fn more_than_the_limit_is_told_when_to_come_again() {
    let limit = |limit| GradientOptions {
        initial: limit,
        min: limit,
        max: limit,
    };
    let (executor, kind) = actors(Options {
        limit: Some(limit(4)),
        ..patient(1)
    });
    let (gate, blocker) = occupy(&executor, "gate");
    let queued: Vec<_> = (0..3)
        .map(|at| kind.submit(Act::Say(at), Call::new(at)))
        .collect();
    let Err(Reject::Overloaded { retry_after }) = kind.submit(Act::Say(9), Call::new(9)).wait()
    else {
        panic!("the fifth should be refused");
    };
    assert!(retry_after >= Duration::from_millis(1) && retry_after <= Duration::from_secs(2));
    gate.open();
    blocker.wait().unwrap();
    assert!(queued.into_iter().all(|fight| fight.wait().is_ok()));
    assert!(kind.submit(Act::Say(9), Call::new(9)).wait().is_ok());
    assert_eq!(executor.metrics().ended(Class::Live, End::Limit), 1);
}

#[test]
fn a_full_queue_refuses_its_class_only() {
    let mut options = patient(1);
    options.classes[2].queue_max = 5;
    let (executor, kind) = actors(options);
    let (gate, _blocker) = occupy(&executor, "gate");
    let check = |at| kind.submit(Act::Say(at), Call::new(at).class(Class::Check));
    let queued: Vec<_> = (0..5).map(check).collect();
    assert!(matches!(check(5).wait(), Err(Reject::Overloaded { .. })));
    let live = kind.submit(Act::Say(6), Call::new(6));
    gate.open();
    assert!(live.wait().is_ok());
    assert!(queued.into_iter().all(|fight| fight.wait().is_ok()));
    assert_eq!(executor.metrics().ended(Class::Check, End::QueueFull), 1);
}

#[test]
fn a_future_that_is_polled_by_another_task_later_is_woken() {
    let (executor, kind) = actors(patient(1));
    let (gate, _blocker) = occupy(&executor, "gate");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap();
    let done = Arc::new(AtomicU32::new(0));
    for at in 0..20 {
        let (kind, done) = (kind.clone(), done.clone());
        runtime.spawn(async move {
            let mut fight = kind.submit(Act::Say(at), Call::new(at));
            // Polled once here, awaited by another task.
            let first = std::future::poll_fn(|cx| {
                std::task::Poll::Ready(std::future::Future::poll(
                    std::pin::Pin::new(&mut fight),
                    cx,
                ))
            });
            assert!(first.await.is_pending());
            let fought = tokio::spawn(fight).await.unwrap().unwrap();
            assert_eq!(fought.output, at);
            done.fetch_add(1, Ordering::SeqCst);
        });
    }
    until("all wait", || executor.metrics().in_flight[0] == 21);
    gate.open();
    until("all are answered", || done.load(Ordering::SeqCst) == 20);
}

#[test]
fn metrics_tell_each_end_once_and_name_no_player() {
    let (executor, kind) = actors(patient(1));
    for at in 0..5 {
        let call = Call::new(at)
            .session("player-7")
            .class(Class::ALL[at as usize % 3]);
        kind.submit(Act::Say(at), call).wait().unwrap();
    }
    let _ = kind.submit(Act::Foul, Call::new(1)).wait();
    let metrics = executor.metrics();
    assert_eq!((metrics.ended_in_all(), metrics.fights.count()), (6, 6));
    let mut out = Exposition::new();
    executor.write(&mut out);
    let text = out.finish();
    for line in [
        "phalanx_battle_ended_total{class=\"live\",end=\"result\"} 2",
        "phalanx_battle_ended_total{class=\"live\",end=\"foul\"} 1",
        "phalanx_battle_wait_seconds_count{class=\"sweep\"} 2",
        "phalanx_battle_fight_seconds_count 6",
        "phalanx_battle_pins{kind=\"act\",version=\"1\"} 0",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
    assert!(!text.contains("player-7"));
}
