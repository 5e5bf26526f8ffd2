//! A rollout by its clock: each look is a tick, and says what callers saw since the last one.

use std::collections::BTreeSet;

use phalanx_model::document::Document;
use phalanx_model::manifest;

use super::*;

const SPEC: &str = "
  steps:
  - mirror: {percent: 10, for: 10s}
  - {weight: 5, for: 20s}
  - pause: {}
  - {weight: 50, for: 10s}
  analysis: {interval: 5s, successRate: {min: 99.5}, minRequests: 50}
";

fn rollout(spec: &str) -> Rollout {
    let text = format!(
        "apiVersion: phalanx.dev/v1alpha1\nkind: Rollout\nmetadata: {{name: battle}}\nspec:\n  targetRef: {{kind: HTTPRoute, name: battle}}\n  stable: battle-v1\n  canary: battle-v2{spec}"
    );
    let parsed = manifest::parse("f", &text, "default").into_result();
    let parsed = parsed.unwrap_or_else(|p| panic!("{p:#?}"));
    match parsed.into_iter().next().map(|parsed| parsed.document) {
        Some(Document::Rollout(rollout)) => rollout,
        other => panic!("{other:?}"),
    }
}

/// One rollout over time.
struct Run {
    rollout: Rollout,
    machine: Machine,
    now: u64,
    versions: BTreeSet<String>,
    spec: String,
    stored: u64,
}

impl Run {
    fn of(spec: &str) -> Self {
        Self {
            rollout: rollout(spec),
            machine: Machine::new(RolloutRecord::default()),
            now: 1_000_000,
            versions: BTreeSet::from(["v2".to_owned()]),
            spec: "a".to_owned(),
            stored: 0,
        }
    }

    fn plain(&self) -> Look {
        Look {
            now: self.now,
            spec: self.spec.clone(),
            canary: Instances {
                ready: 1,
                versions: self.versions.clone(),
            },
            ..Look::default()
        }
    }

    fn look(&mut self, look: Look) {
        self.stored += u64::from(self.machine.look(&self.rollout, &look));
    }

    /// Seconds with so many requests and failures of the new version in each; the old one has a thousand good ones.
    fn seconds(&mut self, count: u64, requests: u64, failures: u64) -> &mut Self {
        for _ in 0..count {
            self.now += 1000;
            let sight = Sight {
                canary: counts(requests, failures, 10),
                stable: counts(1000, 0, 10),
                ..Sight::default()
            };
            let look = Look {
                sight,
                ..self.plain()
            };
            self.look(look);
        }
        self
    }

    fn order(&mut self, command: Command) -> Result<(), String> {
        let canary = self.plain().canary;
        let order = Order {
            command,
            author: "ann",
            message: "",
            now: self.now,
            revision: 7,
            canary: &canary,
        };
        self.machine.order(&self.rollout, &order)
    }

    /// As after a `kill -9`: what is stored is all there is.
    fn killed(&mut self) {
        let record = serde_json::to_vec(&self.machine.record).unwrap();
        self.machine = Machine::new(serde_json::from_slice(&record).unwrap());
    }

    fn at(&self) -> (Phase, usize, u32) {
        let record = &self.machine.record;
        (record.phase, record.step, record.overlay.weight)
    }

    fn reason(&self) -> &str {
        &self.machine.record.reason
    }
}

/// In the bucket of this index.
fn counts(requests: u64, failures: u64, bucket: usize) -> Counts {
    let mut latency = vec![0; crate::observe::BUCKETS];
    latency[bucket] = requests;
    Counts {
        requests,
        failures,
        latency,
    }
}

use Phase::{Paused, Progressing, Promoted, RolledBack, Waiting};

#[test]
fn steps_are_taken_one_after_the_other_and_a_pause_waits_for_somebody() {
    let mut run = Run::of(SPEC);
    run.seconds(1, 0, 0);
    assert_eq!(run.at(), (Progressing, 0, 0));
    assert!(run.machine.record.overlay.mirror.is_some());
    run.seconds(9, 100, 0);
    assert_eq!(run.at(), (Progressing, 0, 0), "its time is not over");
    run.seconds(2, 100, 0);
    assert_eq!(run.at(), (Progressing, 1, 5));
    assert!(run.machine.record.overlay.mirror.is_none());
    run.seconds(21, 100, 0);
    assert_eq!(run.at(), (Paused, 2, 5));
    run.seconds(3600, 100, 0);
    assert_eq!(run.at(), (Paused, 2, 5), "nobody has resumed it");
    run.order(Command::Resume).unwrap();
    assert_eq!(run.at(), (Progressing, 3, 50));
    run.seconds(11, 100, 0);
    assert_eq!(run.at(), (Promoted, 4, 100));
    let events: Vec<_> = (run.machine.record.events.iter())
        .map(|event| event.what.as_str())
        .collect();
    assert_eq!(
        events,
        [
            "started", "step", "step", "step", "paused", "resumed", "step", "promoted"
        ]
    );
    let figures = run.machine.record.events[2].figures.as_ref().unwrap();
    assert!(figures.good && figures.canary.requests >= 50, "{figures:?}");
}

#[test]
fn too_little_traffic_is_not_health() {
    let mut run = Run::of(SPEC);
    run.seconds(1, 0, 0).seconds(300, 0, 0);
    assert_eq!(run.at(), (Progressing, 0, 0));
    assert!(
        run.machine.waiting().contains("0 of 50 requests seen"),
        "{}",
        run.machine.waiting()
    );
    // Ten minutes beyond its own ten seconds.
    run.seconds(310, 0, 0);
    assert_eq!(run.at().0, RolledBack);
    assert!(
        run.reason().contains("no progress for 600s"),
        "{}",
        run.reason()
    );
}

#[test]
fn requests_that_come_slowly_add_up() {
    let mut run = Run::of(SPEC);
    run.seconds(1, 0, 0).seconds(49, 1, 0);
    assert_eq!(run.at(), (Progressing, 0, 0));
    run.seconds(2, 1, 0);
    assert_eq!(run.at(), (Progressing, 1, 5));
}

#[test]
fn failures_of_the_new_version_take_its_traffic_away() {
    let mut run = Run::of(SPEC);
    run.seconds(14, 100, 0);
    assert_eq!(run.at(), (Progressing, 1, 5));
    run.seconds(6, 100, 5);
    assert_eq!(run.at(), (RolledBack, 1, 0));
    assert!(
        run.reason()
            .contains("requests succeeded, at least 99.5% have to"),
        "{}",
        run.reason()
    );
    run.seconds(600, 100, 5);
    assert_eq!(run.at(), (RolledBack, 1, 0), "it stays there");
    assert!(run.order(Command::Resume).is_err());
    run.order(Command::Retry).unwrap();
    run.seconds(1, 0, 0);
    assert_eq!(run.at(), (Progressing, 0, 0));
    assert_eq!(run.machine.record.attempt, 2);
}

#[test]
fn few_requests_that_cannot_come_right_any_more_are_enough_to_fail() {
    let mut run = Run::of(SPEC);
    run.seconds(1, 0, 0).seconds(5, 1, 1);
    assert_eq!(run.at().0, RolledBack, "{}", run.machine.waiting());
}

#[test]
fn several_bad_measurements_may_be_borne_but_a_step_ends_with_a_good_one() {
    let mut run = Run::of(&SPEC.replace("minRequests: 50", "minRequests: 50, failures: 2"));
    run.seconds(1, 0, 0).seconds(5, 100, 0).seconds(5, 100, 50);
    assert_eq!(run.at(), (Progressing, 0, 0));
    assert_eq!(run.machine.record.bad, 1);
    run.seconds(3, 100, 0);
    assert_eq!(run.at(), (Progressing, 0, 0), "the last one was bad");
    run.seconds(3, 100, 0);
    assert_eq!(run.at(), (Progressing, 1, 5));
}

#[test]
fn on_failure_it_can_pause_instead() {
    let mut run = Run::of(&format!("{SPEC}  onFailure: pause\n"));
    run.seconds(14, 100, 0).seconds(6, 100, 50);
    assert_eq!(run.at(), (Paused, 1, 5));
    run.order(Command::Abort).unwrap();
    assert_eq!(run.at(), (RolledBack, 1, 0));
}

#[test]
fn whoever_resumes_what_made_no_progress_gives_it_its_deadline_again() {
    let mut run = Run::of(&format!("{SPEC}  onFailure: pause\n"));
    run.seconds(620, 0, 0);
    assert_eq!(run.at().0, Paused);
    assert_eq!(run.machine.waiting(), run.reason());
    run.seconds(100, 0, 0);
    assert!(run.reason().contains("no progress"), "{}", run.reason());
    assert_eq!(run.machine.waiting(), run.reason(), "not for requests");
    run.order(Command::Resume).unwrap();
    run.seconds(590, 0, 0);
    assert_eq!(run.at(), (Progressing, 0, 0));
    run.killed();
    run.seconds(6, 100, 0);
    assert_eq!(run.at(), (Progressing, 1, 5), "there is traffic at last");
}

#[test]
fn it_is_rolled_back_from_a_pause_too() {
    let mut run = Run::of(SPEC);
    run.seconds(14, 100, 0);
    run.order(Command::Pause).unwrap();
    run.seconds(20, 100, 50);
    assert_eq!(run.at().0, RolledBack);
}

#[test]
fn time_spent_paused_is_not_time_of_the_step() {
    let mut run = Run::of(SPEC);
    run.seconds(14, 100, 0);
    run.order(Command::Pause).unwrap();
    run.seconds(1000, 100, 0);
    run.order(Command::Resume).unwrap();
    run.seconds(5, 100, 0);
    assert_eq!(run.at(), (Progressing, 1, 5));
    run.seconds(15, 100, 0);
    assert_eq!(
        run.at(),
        (Paused, 2, 5),
        "at the next step, which is a pause"
    );
}

#[test]
fn after_a_kill_a_step_needs_a_measurement_of_its_own() {
    let mut run = Run::of(SPEC);
    run.seconds(14, 100, 0).seconds(15, 100, 0);
    assert_eq!(run.at(), (Progressing, 1, 5));
    run.killed();
    run.now += 3_600_000;
    run.seconds(4, 100, 0);
    assert_eq!(run.at(), (Progressing, 1, 5), "nothing was seen since");
    run.seconds(3, 100, 0);
    assert_eq!(run.at(), (Paused, 2, 5));
}

#[test]
fn it_waits_for_instances_and_starts_again_with_another_build() {
    let mut run = Run::of(SPEC);
    run.now += 1000;
    let nobody = Look {
        canary: Instances::default(),
        ..run.plain()
    };
    run.look(nobody);
    assert_eq!(run.at(), (Waiting, 0, 0));
    assert!(run.order(Command::Promote).is_ok(), "by hand it may");
    let mut run = Run::of(SPEC);
    run.seconds(14, 100, 0);
    assert_eq!(run.at(), (Progressing, 1, 5));
    run.versions.insert("v2.1".to_owned());
    run.seconds(1, 100, 0);
    assert_eq!(run.at(), (Progressing, 0, 0));
    assert_eq!(run.machine.record.attempt, 2);
    let started = run.machine.record.events.iter().rev();
    let mut started = started.filter(|event| event.what == "started");
    let why = &started.next().unwrap().reason;
    assert!(why.contains("version v2.1"), "{why}");
}

#[test]
fn whoever_is_promoted_stays_so_until_the_services_are_others() {
    let mut run = Run::of(SPEC);
    run.seconds(1, 0, 0);
    run.order(Command::Promote).unwrap();
    run.spec = "b".to_owned();
    run.versions.insert("v3".to_owned());
    run.seconds(5, 100, 100);
    assert_eq!(run.at(), (Promoted, 4, 100));
    run.rollout.stable = run.rollout.canary.clone();
    run.rollout.canary.name = "battle-v3".to_owned();
    run.seconds(1, 0, 0);
    assert_eq!(run.at(), (Progressing, 0, 0));
}

#[test]
fn what_was_ended_or_paused_by_hand_stays_so_whoever_is_there() {
    let ten_looks = |run: &mut Run, what: &str| {
        let record = run.machine.record.clone();
        run.seconds(10, 0, 0);
        assert_eq!(run.machine.record, record, "{what}");
    };
    // A build that came while it was promoted is not new when that is aborted.
    let mut run = Run::of(SPEC);
    run.seconds(1, 0, 0);
    run.order(Command::Promote).unwrap();
    run.versions.insert("v3".to_owned());
    run.seconds(1, 0, 0);
    run.order(Command::Abort).unwrap();
    assert_eq!(run.at(), (RolledBack, 4, 0));
    ten_looks(&mut run, "aborted");
    // Before its first step nobody knows any version.
    let waiting = || {
        let mut run = Run::of(SPEC);
        let obstacle = Look {
            obstacle: Some("no route".to_owned()),
            ..run.plain()
        };
        run.look(obstacle);
        assert_eq!(run.at().0, Waiting);
        run
    };
    for (command, phase) in [(Command::Pause, Paused), (Command::Abort, RolledBack)] {
        let mut run = waiting();
        run.order(command).unwrap();
        assert_eq!(run.at().0, phase);
        ten_looks(&mut run, "before its first step");
    }
    let mut run = waiting();
    run.versions.clear();
    run.order(Command::Pause).unwrap();
    run.versions.insert("v2".to_owned());
    ten_looks(&mut run, "paused for whoever comes");
    run.order(Command::Resume).unwrap();
    run.seconds(1, 0, 0);
    assert_eq!(run.at().0, Progressing);
    let mut run = Run::of(SPEC);
    run.seconds(14, 100, 0).seconds(6, 100, 5);
    assert_eq!(run.at().0, RolledBack);
    ten_looks(&mut run, "rolled back by itself");
}

#[test]
fn a_clock_that_jumps_is_no_time_of_the_step() {
    for jump in [3_600_000_i64, -3_600_000] {
        let mut run = Run::of(SPEC);
        run.now += 10_000_000;
        run.seconds(14, 100, 0).seconds(8, 100, 0);
        assert_eq!(run.at(), (Progressing, 1, 5));
        run.now = run.now.checked_add_signed(jump).unwrap();
        run.seconds(1, 100, 50);
        assert_eq!(run.machine.sight(), &Sight::default(), "{jump}");
        run.seconds(8, 100, 0);
        assert_eq!(run.at(), (Progressing, 1, 5), "{jump}: it is not over yet");
        run.seconds(6, 100, 0);
        assert_eq!(run.at(), (Paused, 2, 5), "{jump}");
        // Nor is it a delay.
        let mut idle = Run::of(SPEC);
        idle.now += 10_000_000;
        idle.seconds(20, 0, 0);
        idle.now = idle.now.checked_add_signed(jump).unwrap();
        idle.seconds(20, 0, 0);
        assert_eq!(idle.at(), (Progressing, 0, 0), "{jump}: {}", idle.reason());
    }
}

#[test]
fn a_changed_spec_starts_anew() {
    let mut run = Run::of(SPEC);
    run.seconds(14, 100, 0);
    run.spec = "b".to_owned();
    run.seconds(1, 100, 0);
    assert_eq!(run.at(), (Progressing, 0, 0));
    assert_eq!(run.machine.record.spec, "b");
}

#[test]
fn a_refusal_or_a_quarantine_pauses_and_what_is_known_is_put_up_with() {
    let mut run = Run::of(SPEC);
    run.seconds(14, 100, 0);
    let refused = |run: &Run, since| Look {
        refused: Some((since, "n1 does not take it".to_owned())),
        ..run.plain()
    };
    run.look(refused(&run, 5));
    assert_eq!(run.at(), (Paused, 1, 5));
    run.order(Command::Resume).unwrap();
    run.look(refused(&run, 5));
    assert_eq!(run.at(), (Progressing, 1, 5), "that one was known");
    run.look(refused(&run, 8));
    assert_eq!(run.at(), (Paused, 1, 5));
    run.order(Command::Resume).unwrap();
    let gone = Look {
        obstacle: Some("it is in quarantine".to_owned()),
        ..run.plain()
    };
    run.look(gone);
    assert_eq!((run.at().0, run.reason()), (Paused, "it is in quarantine"));
}

#[test]
fn latencies_are_judged_by_themselves_and_against_the_old_version() {
    let guarded = |latency: &str| {
        SPEC.replace(
            "minRequests: 50",
            &format!("minRequests: 50, latency: {latency}"),
        )
    };
    let slow = |run: &mut Run, bucket: usize| {
        for _ in 0..7 {
            run.now += 1000;
            let sight = Sight {
                canary: counts(100, 0, bucket),
                stable: counts(1000, 0, 10),
                ..Sight::default()
            };
            let look = Look {
                sight,
                ..run.plain()
            };
            run.look(look);
        }
    };
    // 1 to 1.25 ms in the tenth bucket, 20 to 25 ms in the 23rd.
    let mut run = Run::of(&guarded("{p99: 10ms}"));
    slow(&mut run, 23);
    assert!(run.reason().contains("above 10ms"), "{}", run.reason());
    let mut run = Run::of(&guarded("{maxRatioToStable: 1.5}"));
    slow(&mut run, 11);
    assert_eq!(run.at().0, Progressing, "{}", run.reason());
    let mut run = Run::of(&guarded("{maxRatioToStable: 1.5}"));
    slow(&mut run, 15);
    assert!(
        run.reason().contains("more than 1.5 times"),
        "{}",
        run.reason()
    );
}

#[test]
fn what_cannot_be_found_out_is_not_good() {
    let custom = "minRequests: 50, custom: [{name: gold, prometheus: {address: 'p:9090', query: q}, min: 0.5}]";
    let mut run = Run::of(&SPEC.replace("minRequests: 50", custom));
    run.seconds(60, 100, 0);
    assert_eq!(run.at(), (Progressing, 0, 0));
    let told = |run: &mut Run, told: Result<f64, String>| {
        for _ in 0..7 {
            run.now += 1000;
            let look = Look {
                sight: Sight {
                    canary: counts(100, 0, 10),
                    ..Sight::default()
                },
                custom: vec![("gold".to_owned(), told.clone())],
                ..run.plain()
            };
            run.look(look);
        }
    };
    told(&mut run, Err("no answer".to_owned()));
    assert_eq!(run.at(), (Progressing, 0, 0));
    assert!(
        run.machine.waiting().contains("gold: no answer"),
        "{}",
        run.machine.waiting()
    );
    let mut low = Run::of(&SPEC.replace("minRequests: 50", custom));
    told(&mut low, Ok(0.4));
    assert_eq!(low.at().0, RolledBack);
    assert!(
        low.reason().contains("gold is 0.4, below 0.5"),
        "{}",
        low.reason()
    );
    told(&mut run, Ok(0.6));
    assert_eq!(run.at(), (Progressing, 1, 5));
    let mut blind = Run::of(SPEC);
    for _ in 0..60 {
        blind.now += 1000;
        let look = Look {
            sight: Sight {
                canary: counts(100, 0, 10),
                ..Sight::default()
            },
            blind: Some("control plane b can't be asked".to_owned()),
            ..blind.plain()
        };
        blind.look(look);
    }
    assert_eq!(blind.at(), (Progressing, 0, 0));
}

#[test]
fn orders_that_make_no_sense_are_refused_with_the_reason() {
    let mut run = Run::of(SPEC);
    assert!(
        run.order(Command::Pause)
            .unwrap_err()
            .contains("about to start")
    );
    run.seconds(1, 0, 0);
    assert!(
        run.order(Command::Resume)
            .unwrap_err()
            .contains("not paused")
    );
    assert!(run.order(Command::Retry).unwrap_err().contains("under way"));
    run.order(Command::Pause).unwrap();
    assert!(run.order(Command::Pause).unwrap_err().contains("already"));
    run.order(Command::Promote).unwrap();
    assert!(run.order(Command::Promote).unwrap_err().contains("already"));
    run.order(Command::Abort).unwrap();
    assert_eq!(run.at().2, 0, "also from the end");
    assert!(run.order(Command::Abort).unwrap_err().contains("already"));
}

/// Whatever happens in whatever order: no step without what it needs, and nothing for a version that was taken back.
#[test]
fn no_sequence_of_events_lets_a_step_pass_unseen() {
    for seed in 0..40 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut run = Run::of(&format!(
            "{SPEC}  onFailure: {}\n",
            ["rollback", "pause"][random.usize(..2)]
        ));
        for _ in 0..200 {
            let before = run.machine.record.clone();
            let mut by_hand = false;
            match random.u32(..100) {
                0 => run.killed(),
                1 => run.spec = format!("{}", random.u32(..3)),
                2 => {
                    run.versions.insert(format!("v{}", random.u32(..6)));
                }
                3 => run.now += random.u64(..100_000),
                4..10 => {
                    let (_, command) = Command::ALL[random.usize(..5)];
                    by_hand = run.order(command).is_ok();
                }
                _ => {
                    let requests = random.u64(..40);
                    let failures = match random.u32(..30) {
                        0 => random.u64(..=requests),
                        _ => 0,
                    };
                    run.seconds(1, requests, failures);
                }
            }
            let after = &run.machine.record;
            let went_on = after.attempt == before.attempt && after.step > before.step;
            if went_on && before.overlay.exposes() && !by_hand {
                let mut events = after.events.iter().rev();
                let went = events.find(|e| ["step", "promoted"].contains(&e.what.as_str()));
                let last = went.and_then(|event| event.figures.as_ref());
                assert!(
                    last.is_some_and(|last| last.good && last.canary.requests >= 50),
                    "seed {seed}: {before:#?}"
                );
            }
            match after.phase {
                RolledBack | Waiting => assert!(!after.overlay.exposes(), "seed {seed}"),
                Promoted => assert_eq!(after.overlay.weight, 100, "seed {seed}"),
                Progressing | Paused => {
                    assert!([0, 5, 50].contains(&after.overlay.weight), "seed {seed}");
                }
            }
            assert!(after.events.len() <= EVENTS_MAX);
            let text = serde_json::to_vec(after).unwrap();
            assert_eq!(
                serde_json::from_slice::<RolloutRecord>(&text).unwrap(),
                *after
            );
        }
    }
}
