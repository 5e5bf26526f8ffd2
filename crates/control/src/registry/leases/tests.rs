use super::*;

fn id(service: &str, id: &str) -> InstanceId {
    InstanceId {
        service: ServiceName::new("default", service),
        id: id.into(),
    }
}

fn battle(n: u32) -> InstanceId {
    id("battle", &format!("b{n}"))
}

/// `count` instances of battle, registered at 0 with a TTL of one second.
fn leases(count: u32) -> Leases {
    let mut leases = Leases::new(TtlBounds::default());
    for n in 0..count {
        assert_eq!(
            leases.register(battle(n), 1, 1_000, 7, 0),
            Ok(Registered::Write)
        );
    }
    leases
}

/// Nothing is known of anybody but silence.
fn alive(_: &InstanceId, _: u64) -> bool {
    false
}

fn beat(leases: &mut Leases, instances: impl IntoIterator<Item = u32>, now_ms: u64) {
    for n in instances {
        assert_eq!(leases.heartbeat(&battle(n), 1, now_ms), Some(1_000), "{n}");
    }
}

#[test]
fn an_instance_that_stops_beating_is_gone_within_its_ttl() {
    let mut leases = leases(4);
    beat(&mut leases, 0..3, 900);
    assert_eq!(leases.expire(999, alive), []);
    assert_eq!(leases.expire(1_000, alive), [battle(3)]);
    assert_eq!(leases.heartbeat(&battle(3), 1, 1_001), None);
    assert_eq!(leases.len(), 3);
}

#[test]
fn heartbeats_keep_an_instance_however_long() {
    let mut leases = leases(4);
    for now in (0..600_000).step_by(500) {
        beat(&mut leases, 0..4, now);
        assert_eq!(leases.expire(now, alive), []);
    }
}

#[test]
fn a_lease_longer_than_the_wheel_expires_in_time() {
    let mut leases = leases(0);
    for n in 0..3 {
        leases.register(battle(n), 1, 300_000, 7, 50).unwrap();
    }
    let mut gone = Vec::new();
    for now in (0..300_000).step_by(100) {
        gone.extend(leases.expire(now, alive));
        if now == 200_000 {
            leases.heartbeat(&battle(0), 1, now);
            leases.heartbeat(&battle(1), 1, now);
        }
    }
    assert_eq!(gone, []);
    assert_eq!(leases.expire(300_100, alive), [battle(2)]);
}

#[test]
fn a_shorter_ttl_takes_effect_at_once() {
    let mut leases = leases(0);
    for n in 0..3 {
        leases.register(battle(n), 1, 60_000, 7, 0).unwrap();
    }
    assert_eq!(
        leases.register(battle(2), 1, 1_000, 7, 100),
        Ok(Registered::Unchanged)
    );
    assert_eq!(leases.expire(1_000, alive), []);
    assert_eq!(leases.expire(1_100, alive), [battle(2)]);
}

#[test]
fn an_older_epoch_changes_nothing() {
    let mut leases = leases(2);
    assert_eq!(
        leases.register(battle(0), 5, 1_000, 8, 10),
        Ok(Registered::Write)
    );
    assert!(matches!(
        leases.register(battle(0), 4, 1_000, 9, 20),
        Err(LeaseError::Older { current: 5, .. })
    ));
    assert_eq!(leases.heartbeat(&battle(0), 4, 20), None);
    assert!(!leases.deregister(&battle(0), 4, 20));
    assert!(leases.deregister(&battle(0), 5, 20));
}

#[test]
fn a_late_registration_does_not_undo_a_deregistration() {
    let mut leases = leases(2);
    assert!(leases.deregister(&battle(0), 3, 10));
    assert!(matches!(
        leases.register(battle(0), 2, 1_000, 7, 20),
        Err(LeaseError::Older { current: 3, .. })
    ));
    assert_eq!(
        leases.register(battle(0), 3, 1_000, 7, 20),
        Ok(Registered::Write)
    );
    assert!(
        !leases.deregister(&battle(9), 3, 10),
        "an unknown instance has nothing to delete"
    );
}

#[test]
fn only_changed_content_is_written() {
    let mut leases = leases(1);
    assert_eq!(
        leases.register(battle(0), 1, 1_000, 7, 10),
        Ok(Registered::Unchanged)
    );
    assert_eq!(
        leases.register(battle(0), 1, 1_000, 8, 10),
        Ok(Registered::Write)
    );
    leases.unstored(&battle(0));
    assert_eq!(
        leases.heartbeat(&battle(0), 1, 20),
        None,
        "a write that failed has to be asserted again"
    );
    assert_eq!(
        leases.register(battle(0), 1, 1_000, 8, 30),
        Ok(Registered::Write)
    );
}

#[test]
fn the_last_instance_is_held_and_lives_again_when_it_beats() {
    let mut leases = leases(1);
    assert_eq!(leases.expire(1_000, alive), []);
    assert_eq!(leases.held(), [(battle(0), 1_000)]);
    assert_eq!(
        leases.state(&battle(0), 1_500),
        Some(LeaseState::Held { since_ms: 1_000 })
    );
    beat(&mut leases, [0], 2_000);
    assert_eq!(
        (leases.held(), leases.state(&battle(0), 2_000)),
        (vec![], Some(LeaseState::Live { left_ms: 1_000 }))
    );
    assert_eq!(leases.expire(3_000, alive), []);
    assert_eq!(
        leases.held().len(),
        1,
        "and is held again when it stops again"
    );
}

#[test]
fn a_held_instance_goes_when_it_is_deregistered() {
    let mut leases = leases(1);
    leases.expire(1_000, alive);
    assert!(leases.deregister(&battle(0), 1, 2_000));
    assert!(leases.held().is_empty() && leases.is_empty());
}

#[test]
fn more_than_half_within_seconds_is_held_whole() {
    let mut leases = leases(5);
    beat(&mut leases, 0..2, 900);
    assert_eq!(leases.expire(1_000, alive), []);
    assert_eq!(leases.held().len(), 3);
}

#[test]
fn half_may_go() {
    let mut leases = leases(2);
    beat(&mut leases, [0], 900);
    assert_eq!(leases.expire(1_000, alive), [battle(1)]);
}

#[test]
fn what_went_seconds_ago_counts_and_what_went_long_ago_does_not() {
    let mut leases = leases(4);
    beat(&mut leases, 0..2, 900);
    assert_eq!(leases.expire(1_000, alive), [battle(2), battle(3)]);
    beat(&mut leases, [0], 1_800);
    assert_eq!(
        leases.expire(1_900, alive),
        [],
        "three of four within a second"
    );
    assert_eq!(leases.held(), [(battle(1), 1_900)]);
    beat(&mut leases, [1], 2_000);
    for now in (2_000..14_000).step_by(500) {
        beat(&mut leases, 0..2, now);
        leases.expire(now, alive);
    }
    beat(&mut leases, [0], 14_400);
    assert_eq!(
        leases.expire(14_600, alive),
        [battle(1)],
        "the loss of half, long after"
    );
}

#[test]
fn held_instances_go_when_the_service_came_back_without_them() {
    let mut leases = leases(2);
    assert_eq!(leases.expire(1_000, alive), []);
    for n in 10..12 {
        leases.register(battle(n), 1, 60_000, 7, 2_000).unwrap();
    }
    assert_eq!(leases.expire(10_900, alive), []);
    assert_eq!(leases.expire(11_000, alive), [battle(0), battle(1)]);
    assert!(leases.held().is_empty());
}

#[test]
fn a_restart_gives_everyone_one_ttl() {
    let mut leases = Leases::new(TtlBounds::default());
    for n in 0..3 {
        leases.recall(battle(n), 4, 30_000, 7, 0);
    }
    assert_eq!(leases.expire(29_900, alive), []);
    assert_eq!(leases.heartbeat(&battle(0), 4, 29_950), Some(30_000));
    assert_eq!(
        leases.register(battle(1), 4, 30_000, 7, 29_950),
        Ok(Registered::Unchanged)
    );
    assert_eq!(leases.expire(30_000, alive), [battle(2)]);
}

#[test]
fn services_are_guarded_apart() {
    let mut leases = leases(2);
    leases.register(id("match", "m0"), 1, 60_000, 7, 0).unwrap();
    beat(&mut leases, [0], 900);
    assert_eq!(leases.expire(1_000, alive), [battle(1)]);
}

#[test]
fn a_clock_that_jumps_expires_no_more_than_what_is_over() {
    let mut leases = leases(0);
    for n in 0..10 {
        leases.register(battle(n), 1, 600_000, 7, 0).unwrap();
    }
    assert_eq!(leases.expire(500_000, alive), []);
    assert_eq!(leases.expire(599_900, alive), []);
    beat_all(&mut leases, 0..9, 599_950);
    assert_eq!(leases.expire(600_000, alive), [battle(9)]);
}

fn beat_all(leases: &mut Leases, instances: std::ops::Range<u32>, now_ms: u64) {
    for n in instances {
        assert!(leases.heartbeat(&battle(n), 1, now_ms).is_some());
    }
}

#[test]
fn a_held_lease_is_taken_over_by_a_life_whose_clock_is_behind() {
    let mut leases = Leases::new(TtlBounds::default());
    leases.register(battle(0), 9, 1_000, 7, 0).unwrap();
    assert!(leases.register(battle(0), 2, 1_000, 7, 500).is_err());
    assert_eq!(leases.expire(1_000, alive), []);
    assert_eq!(leases.held_len(), 1);
    assert!(leases.register(battle(0), 2, 1_000, 8, 1_100).is_ok());
    assert_eq!(leases.heartbeat(&battle(0), 2, 1_200), Some(1_000));
    assert_eq!((leases.held_len(), leases.held()), (0, Vec::new()));
}

#[test]
fn an_instance_that_flaps_is_not_brought_back_by_a_late_message() {
    let mut leases = leases(1);
    leases.deregister(&battle(0), 1, 0);
    leases
        .register(battle(0), 2, 1_000, 7, GRAVE_MS - 200)
        .unwrap();
    assert!(leases.deregister(&battle(0), 5, GRAVE_MS - 100));
    // A withdrawal that comes late opens no grave either.
    assert!(!leases.deregister(&battle(0), 3, GRAVE_MS - 50));
    assert_eq!(leases.expire(GRAVE_MS, alive), []);
    assert!(
        leases
            .register(battle(0), 4, 1_000, 7, GRAVE_MS + 100)
            .is_err()
    );
    leases.expire(3 * GRAVE_MS, alive);
    assert!(
        leases
            .register(battle(0), 4, 1_000, 7, 3 * GRAVE_MS)
            .is_ok()
    );
}

#[test]
fn a_held_instance_goes_by_hand() {
    let mut leases = leases(2);
    assert_eq!(leases.expire(1_000, alive), []);
    let mut released = leases.release(&battle(0).service, 1_500);
    released.sort_unstable();
    assert_eq!(released, [battle(0), battle(1)]);
    assert!(leases.is_empty() && leases.held_len() == 0);
    assert!(leases.release(&battle(0).service, 1_600).is_empty());
}

#[test]
fn whoever_is_dead_by_evidence_goes_at_once_and_counts_for_nothing() {
    let mut leases = leases(4);
    beat(&mut leases, [0], 900);
    let dead = |id: &InstanceId, _: u64| *id == battle(1) || *id == battle(2);
    assert_eq!(
        leases.expire(1_000, dead),
        [battle(1), battle(2), battle(3)],
        "two are dead, and one of two may go by silence"
    );
}

#[test]
fn the_last_one_goes_when_it_is_dead_and_not_only_silent() {
    let mut leases = leases(1);
    assert_eq!(leases.expire(1_000, alive), []);
    let since = |_: &InstanceId, since: u64| since > 0;
    assert_eq!(leases.expire(1_050, since), [], "it was silent since 0");
    assert_eq!(
        leases.expire(1_100, |_: &InstanceId, _: u64| true),
        [battle(0)]
    );
    assert!(leases.is_empty());
}

#[test]
fn evidence_against_a_live_lease_is_none() {
    let mut leases = leases(1);
    assert_eq!(leases.expire(900, |_: &InstanceId, _: u64| true), []);
    beat(&mut leases, [0], 950);
}

#[test]
fn who_wants_no_traffic_goes_unguarded_and_guards_nobody() {
    let mut leases = leases(4);
    for n in 1..4 {
        leases.guard(&battle(n), false);
    }
    assert_eq!(
        leases.expire(1_000, alive),
        [battle(1), battle(2), battle(3)]
    );
    assert_eq!(leases.held(), [(battle(0), 1_000)], "the last that serves");
}

#[test]
fn a_held_instance_that_comes_back_draining_is_no_longer_guarded() {
    let mut leases = leases(1);
    leases.expire(1_000, alive);
    leases.guard(&battle(0), false);
    beat(&mut leases, [0], 2_000);
    assert_eq!(leases.expire(3_000, alive), [battle(0)]);
    assert!(leases.is_empty());
}

#[test]
fn after_a_reset_nobody_is_known_but_who_left_is() {
    let mut leases = leases(3);
    assert!(leases.deregister(&battle(0), 5, 10));
    leases.reset();
    assert!(leases.is_empty());
    assert_eq!(leases.heartbeat(&battle(1), 1, 20), None);
    assert!(leases.register(battle(0), 4, 1_000, 7, 20).is_err());
    leases.recall(battle(1), 1, 1_000, 7, 20);
    assert_eq!(leases.heartbeat(&battle(1), 1, 30), Some(1_000));
}

#[test]
fn of_very_many_held_each_tick_looks_at_some_and_all_have_their_turn() {
    let count = 3 * LOOKS_MAX;
    let mut leases = Leases::new(TtlBounds::default());
    let id = |n: usize| InstanceId {
        service: ServiceName::new("default", format!("s{}", n % 7)),
        id: format!("i{n}"),
    };
    for n in 0..count {
        leases.register(id(n), 1, 1_000, 7, 0).unwrap();
    }
    assert_eq!(leases.expire(1_000, alive), []);
    assert_eq!(leases.held_len(), count);
    let seen = std::cell::RefCell::new(BTreeSet::new());
    for tick in 1..=4 {
        let looks = std::cell::Cell::new(0);
        let is_dead = |of: &InstanceId, _: u64| {
            looks.set(looks.get() + 1);
            seen.borrow_mut().insert(of.clone());
            *of == id(count - 1)
        };
        let gone = leases.expire(1_000 + tick * TICK_MS, is_dead);
        assert!(looks.get() <= LOOKS_MAX, "{}", looks.get());
        assert!(gone.is_empty() || gone == [id(count - 1)]);
    }
    assert_eq!(seen.borrow().len(), count);
    assert_eq!(leases.held_len(), count - 1);
}
