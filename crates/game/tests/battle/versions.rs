//! Rules that change while battles go on; records that are fought again; new rules beside the old ones.

use std::sync::Arc;
use std::time::Duration;

use phalanx_game::battle::{
    Call, End, Executor, Judge, Kind, Reader, Recorder, RecorderOptions, Reject, RulesError,
    ShadowOptions, Verdict, replay,
};

use super::act::{Act, Gate, actors, occupy, patient, until};
use super::duel::{Duel, Rules, Teams};

fn duels(cores: usize) -> (Executor, Kind<Duel>) {
    let executor = Executor::start(patient(cores)).unwrap();
    let kind = executor.register("duel", Duel, 1, Rules::first()).unwrap();
    (executor, kind)
}

fn teams(seed: u64) -> Teams {
    Teams::sample(seed, 3, 600, 40)
}

fn rules(version: u64) -> Option<Arc<Rules>> {
    match version {
        1 => Some(Arc::new(Rules::first())),
        2 => Some(Arc::new(Rules::second())),
        _ => None,
    }
}

#[test]
fn old_battles_end_on_their_rules_and_then_these_are_gone() {
    let (_executor, kind) = duels(1);
    let campaign = kind.pin();
    kind.publish(2, Rules::second()).unwrap();
    for seed in 0..10 {
        let old = kind
            .submit_pinned(&campaign, teams(seed), Call::new(seed))
            .wait()
            .unwrap();
        let new = kind.submit(teams(seed), Call::new(seed)).wait().unwrap();
        assert_eq!((old.rules, new.rules), (1, 2));
        assert_ne!(old.output, new.output);
    }
    assert_eq!(kind.pin_version(1).unwrap().version(), 1);
    drop(campaign);
    until("version 1 is gone", || kind.versions().len() == 1);
    let gone = kind.pin_version(1).unwrap_err();
    assert_eq!(gone, Reject::NoSuchRules { version: 1 });
}

#[test]
fn a_fight_in_the_queue_keeps_the_rules_it_was_submitted_under() {
    let (executor, kind) = duels(1);
    let (gate, _blocker) = occupy(&executor, "gate");
    let fight = kind.submit(teams(1), Call::new(1));
    kind.publish(2, Rules::second()).unwrap();
    let of_first = |kind: &Kind<Duel>| {
        kind.versions()
            .iter()
            .map(|version| version.fights)
            .collect::<Vec<_>>()
    };
    assert_eq!(of_first(&kind), [1, 0]);
    gate.open();
    assert_eq!(fight.wait().unwrap().rules, 1);
    until("version 1 is gone", || kind.versions().len() == 1);
}

#[test]
fn a_record_replays_to_the_same_results_and_other_rules_are_found_out() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("duels");
    let (executor, kind) = duels(2);
    let recorder = Recorder::create(&path, RecorderOptions::default()).unwrap();
    kind.record(&recorder, 1);
    for seed in 0..100 {
        let call = Call::new(seed)
            .session(format!("s{seed}"))
            .fuel(100 + seed * 5);
        let _ = kind.submit(teams(seed), call).wait();
    }
    kind.publish(2, Rules::second()).unwrap();
    for seed in 0..50 {
        kind.submit(teams(seed), Call::new(seed)).wait().unwrap();
    }
    executor.drain_blocking(Duration::from_secs(60));
    assert_eq!(recorder.close().written, 150);

    let report = replay(&Duel, "duel", rules, Reader::open(&path).unwrap());
    assert_eq!(
        (report.fights, report.same, report.different),
        (150, 150, 0)
    );
    assert!(report.broken.is_none());

    let swapped = |version| rules(3 - version);
    let report = replay(&Duel, "duel", swapped, Reader::open(&path).unwrap());
    assert!(report.different > 100, "{}", report.different);
    let difference = &report.differences[0];
    assert_eq!(report.differences.len(), 64, "bounded");
    assert!(difference.session.is_some() && !difference.input.is_empty());

    let report = replay(&Duel, "duel", |_| None, Reader::open(&path).unwrap());
    assert_eq!((report.fights, report.without_rules), (0, 150));
    let report = replay(&Duel, "raid", rules, Reader::open(&path).unwrap());
    assert_eq!((report.fights, report.others), (0, 150));
}

#[test]
fn a_sample_is_recorded_and_every_panic() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("acts");
    let (executor, kind) = actors(patient(1));
    let recorder = Recorder::create(&path, RecorderOptions::default()).unwrap();
    kind.record(&recorder, 10);
    for at in 0..100 {
        kind.submit(Act::Say(at), Call::new(at)).wait().unwrap();
    }
    for at in 0..3 {
        let _ = kind.submit(Act::Panic(at), Call::new(at)).wait();
    }
    kind.stop_recording();
    kind.submit(Act::Say(1), Call::new(1)).wait().unwrap();
    executor.drain_blocking(Duration::from_secs(60));
    assert_eq!(recorder.close().written, 13);
    let report = replay(
        &super::act::Actor,
        "act",
        |_| Some(Arc::new(0)),
        Reader::open(&path).unwrap(),
    );
    assert_eq!(
        (report.same, report.different),
        (13, 0),
        "panics replay too"
    );
}

#[test]
fn a_shadow_tells_which_results_would_differ_and_changes_none() {
    let (executor, kind) = duels(1);
    kind.shadow(2, Rules::second(), ShadowOptions { one_in: 2, kept: 5 });
    for seed in 0..100 {
        let fought = kind.submit(teams(seed), Call::new(seed)).wait().unwrap();
        assert_eq!(fought.rules, 1);
    }
    let report = || kind.shadow_report().unwrap();
    until("half of them were fought again", || {
        let report = report();
        report.compared + report.skipped + report.interrupted == 50
    });
    let found = kind.end_shadow().unwrap();
    assert!(found.compared > 0 && found.different > 0, "{found:?}");
    assert_eq!(found.same + found.different, found.compared);
    assert_eq!(found.by_version, [(1, found.compared, found.different)]);
    assert!(found.examples.len() <= 5 && !found.examples.is_empty());
    let example = &found.examples[0];
    assert_ne!(Some(example.live), example.shadow);
    assert_eq!(example.live_rules, 1);
    assert_eq!(found.outcomes_live.iter().sum::<u64>(), found.compared);
    assert_eq!(kind.shadow_report(), None);
    assert_eq!(
        executor.metrics().ended_in_all(),
        100,
        "shadows are no fights"
    );
}

#[test]
fn a_shadow_of_the_same_rules_differs_in_nothing() {
    let (_executor, kind) = duels(1);
    kind.shadow(2, Rules::first(), ShadowOptions { one_in: 1, kept: 5 });
    for seed in 0..50 {
        kind.submit(teams(seed), Call::new(seed)).wait().unwrap();
    }
    until("all had their turn", || {
        let report = kind.shadow_report().unwrap();
        report.compared + report.skipped + report.interrupted == 50
    });
    let found = kind.end_shadow().unwrap();
    assert_eq!(found.different, 0);
    assert!(found.compared > 0);
    let judge = Judge {
        fights_min: 1,
        ..Judge::default()
    };
    assert_eq!(found.judge(&judge), Verdict::Same);
}

#[test]
fn live_work_interrupts_a_shadow() {
    let (executor, kind) = actors(patient(1));
    let gate = Arc::new(Gate::default());
    // The first fight only. On rules 2 it would never end.
    let options = ShadowOptions {
        one_in: 1_000,
        kept: 5,
    };
    kind.shadow(2, 2, options);
    kind.submit(Act::Shy(gate.clone()), Call::new(1))
        .wait()
        .unwrap();
    for at in 0..3 {
        until("the only core is at the shadow", || gate.inside() == 1);
        let fought = kind.submit(Act::Say(at), Call::new(at)).wait();
        assert_eq!(fought.unwrap().output, at);
    }
    until("the shadow gave up", || {
        kind.shadow_report().unwrap().interrupted == 1
    });
    assert_eq!(executor.metrics().ended_by(End::Result), 4);
}

#[test]
fn a_shadow_that_can_not_be_interrupted_leaves_no_live_caller_waiting() {
    let (executor, kind) = actors(patient(1));
    let gate = Arc::new(Gate::default());
    let options = ShadowOptions {
        one_in: 1_000,
        kept: 5,
    };
    kind.shadow(2, 2, options);
    kind.submit(Act::Deaf(gate.clone()), Call::new(1))
        .wait()
        .unwrap();
    until("the only core is at the shadow", || gate.inside() == 1);
    let call = Call::new(1).within(Duration::from_millis(100));
    let end = kind.submit(Act::Say(1), call).wait();
    assert!(matches!(end, Err(Reject::DeadlinePassed { .. })), "{end:?}");
    assert_eq!(gate.inside(), 1, "it goes on");
    gate.open();
    until("the core is back", || executor.metrics().stuck == 0);
    kind.submit(Act::Say(2), Call::new(2)).wait().unwrap();
}

#[test]
fn rules_that_shift_outcomes_are_taken_back_by_themselves() {
    let (_executor, kind) = duels(1);
    let judge = Judge {
        tolerance: 0.05,
        fights_min: 200,
        fights_max: 1_000,
        sigmas: 4.0,
    };
    let even = |seed| Teams::sample(seed, 2, 300, 60);
    for seed in 0..400 {
        kind.submit(even(seed), Call::new(seed)).wait().unwrap();
    }
    // Nothing hurts any more: everything is a draw.
    let harmless = Rules {
        armour_half: 0,
        ..Rules::first()
    };
    kind.publish_on_trial(2, harmless, judge).unwrap();
    assert_eq!((kind.version(), kind.on_trial()), (2, Some(2)));
    let mut seed = 0;
    while kind.on_trial().is_some() {
        kind.submit(even(seed), Call::new(seed)).wait().unwrap();
        seed += 1;
        assert!(seed < 5_000, "it should have been noticed");
    }
    assert_eq!(kind.version(), 1);
    let rollback = &kind.rollbacks()[0];
    assert_eq!((rollback.from, rollback.to), (2, 1));
    assert!(rollback.after > rollback.before);
    // Equal rules pass.
    kind.publish_on_trial(3, Rules::first(), judge).unwrap();
    for seed in 0..1_500 {
        kind.submit(even(seed), Call::new(seed)).wait().unwrap();
    }
    until("the trial is over", || kind.on_trial().is_none());
    assert_eq!((kind.version(), kind.rollbacks().len()), (3, 1));
}

#[test]
fn what_can_not_be_judged_is_not_put_on_trial() {
    let (_executor, kind) = actors(patient(1));
    let refused = kind.publish_on_trial(2, 0, Judge::default());
    assert_eq!(refused, Err(RulesError::NoOutcomes));
    let (_executor, kind) = duels(1);
    let refused = kind.publish_on_trial(2, Rules::second(), Judge::default());
    assert_eq!(
        refused,
        Err(RulesError::NoBaseline {
            version: 1,
            fights: 0
        })
    );
}
