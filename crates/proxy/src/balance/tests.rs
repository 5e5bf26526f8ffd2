use std::time::Duration;

use super::*;

fn group_of(policy: LoadBalancer, members: &[(u32, Health)], outlier: OutlierDetection) -> Group {
    let members = members
        .iter()
        .zip(1..)
        .map(|((weight, health), port)| Member {
            weight: *weight,
            health: *health,
            ..member(port)
        });
    Group::new(Policy::new(policy, outlier), members.collect())
}

/// A healthy one of weight 1 in the own zone.
pub(super) fn member(port: u16) -> Member {
    Member {
        address: ([10, 0, 0, 1], port).into(),
        weight: 1,
        health: Health::Healthy,
        is_far: false,
        joined_ms: None,
        outlier: Arc::default(),
    }
}

fn group(policy: LoadBalancer, weights: &[u32]) -> Group {
    let members: Vec<_> = weights.iter().map(|w| (*w, Health::Healthy)).collect();
    group_of(policy, &members, OutlierDetection::default())
}

/// Picks `count` times with nothing outstanding; how often each member came.
fn spread(group: &Group, count: usize, tried: &[usize], now_ms: u64) -> Vec<usize> {
    let loads: Vec<Load> = (0..group.len()).map(|_| Load::default()).collect();
    for load in &loads {
        load.observe(1000, 1);
    }
    let (mut rng, mut turn, mut hits) = (Rng::with_seed(7), 0, vec![0; group.len()]);
    let mut memory = Tried::default();
    tried.iter().for_each(|member| memory.add(*member));
    for _ in 0..count {
        let pick = Pick {
            load: |i| loads.get(i),
            tried: &memory,
            rng: &mut rng,
            now_us: now_ms * 1000,
            turn: &mut turn,
            hash: None,
        };
        hits[group.pick(pick).unwrap().member] += 1;
    }
    hits
}

fn near(hits: &[usize], expected: &[usize], slack: usize) {
    assert!(
        hits.iter()
            .zip(expected)
            .all(|(hit, wanted)| hit.abs_diff(*wanted) <= slack),
        "{hits:?} is not near {expected:?}"
    );
}

#[test]
fn weights_share_the_traffic_under_every_policy() {
    for policy in [
        LoadBalancer::P2c,
        LoadBalancer::LeastRequest,
        LoadBalancer::Random,
    ] {
        near(
            &spread(&group(policy, &[1, 3]), 40_000, &[], 0),
            &[10_000, 30_000],
            800,
        );
        near(
            &spread(&group(policy, &[1, 1, 1, 1]), 40_000, &[], 0),
            &[10_000; 4],
            800,
        );
    }
}

#[test]
fn round_robin_is_exact() {
    assert_eq!(
        spread(&group(LoadBalancer::RoundRobin, &[1, 1, 1]), 300, &[], 0),
        [100; 3]
    );
    assert_eq!(
        spread(&group(LoadBalancer::RoundRobin, &[1, 3, 6]), 1000, &[], 0),
        [100, 300, 600]
    );
}

#[test]
fn tried_endpoints_are_avoided_while_others_are_left() {
    let group = group(LoadBalancer::P2c, &[1, 1, 1]);
    let hits = spread(&group, 100, &[0, 1], 0);
    assert_eq!(hits, [0, 0, 100]);
    assert_eq!(
        spread(&group, 100, &[0, 1, 2], 0).iter().sum::<usize>(),
        100
    );
}

#[test]
fn draining_and_unhealthy_endpoints_are_the_last_resort() {
    use Health::{Draining, Healthy, Unhealthy};
    let of = |healths: &[Health]| {
        let members: Vec<_> = healths.iter().map(|h| (1, *h)).collect();
        spread(
            &group_of(LoadBalancer::P2c, &members, OutlierDetection::default()),
            50,
            &[],
            0,
        )
    };
    assert_eq!(of(&[Unhealthy, Draining, Healthy]), [0, 0, 50]);
    assert_eq!(of(&[Unhealthy, Draining]), [0, 50]);
    assert_eq!(of(&[Unhealthy]), [50]);
}

#[test]
fn nothing_is_picked_from_nothing() {
    let group = group(LoadBalancer::P2c, &[]);
    let (mut rng, mut turn) = (Rng::with_seed(1), 0);
    let pick = Pick {
        load: |_| None,
        tried: &Tried::default(),
        rng: &mut rng,
        now_us: 0,
        turn: &mut turn,
        hash: None,
    };
    assert_eq!(group.pick(pick), None);
}

#[test]
fn slow_endpoint_gets_less_and_recovers() {
    let group = group(LoadBalancer::P2c, &[1, 1]);
    let loads = [Load::default(), Load::default()];
    loads[0].observe(50_000, 0);
    loads[1].observe(1_000, 0);
    assert!(loads[0].cost(0, 1) > loads[1].cost(0, 1));
    loads[1].begin();
    assert!(
        loads[1].cost(0, 1) < loads[0].cost(0, 1),
        "one more outstanding is not yet worse than fifty times slower"
    );
    for at in 1..100u64 {
        loads[0].observe(1_000, at * 1_000_000);
    }
    assert!(loads[0].cost(99_000_000, 1) < 1_500.0);
    assert_eq!(group.len(), 2);
}

#[test]
fn endpoint_never_heard_of_gets_one_request_first() {
    let (new, known) = (Load::default(), Load::default());
    known.observe(1_000, 0);
    assert!(new.cost(0, 1) < known.cost(0, 1));
    new.begin();
    assert!(new.cost(0, 1) > known.cost(0, 1));
}

#[test]
fn failures_cost_more_than_their_latency() {
    let (fails, works) = (Load::default(), Load::default());
    works.observe(2_000, 0);
    fails.observe(2_000, 0);
    fails.penalise(10, 0);
    assert!(fails.cost(0, 1) > works.cost(0, 1) * 2.0);
}

#[test]
fn five_errors_in_a_row_eject_and_a_success_forgives() {
    let group = group(LoadBalancer::P2c, &[1, 1]);
    for round in 0..2 {
        for _ in 0..4 {
            assert!(!group.report(0, Evidence::ServerError, round));
        }
        assert!(!group.report(0, Evidence::Success, round));
    }
    for _ in 0..4 {
        assert!(!group.report(0, Evidence::GatewayError, 5));
    }
    assert!(group.report(0, Evidence::GatewayError, 5));
    assert_eq!(spread(&group, 50, &[], 10), [0, 50]);
    assert_eq!(
        spread(&group, 50, &[], 31_000)
            .iter()
            .filter(|hits| **hits > 0)
            .count(),
        2,
        "back after 30 s"
    );
}

#[test]
fn refused_connection_ejects_at_once() {
    let group = group(LoadBalancer::P2c, &[1, 1]);
    assert!(group.report(1, Evidence::Refused, 100));
    assert_eq!(spread(&group, 50, &[], 101), [50, 0]);
}

#[test]
fn ejection_keeps_to_its_limit_but_allows_one_of_two() {
    let two = group(LoadBalancer::P2c, &[1, 1]);
    assert!(two.report(0, Evidence::Refused, 1));
    assert!(
        !two.report(1, Evidence::Refused, 1),
        "10 % of two is one, by the rule that one is always allowed"
    );
    let one = group(LoadBalancer::P2c, &[1]);
    assert!(!one.report(0, Evidence::Refused, 1));
    let twenty = group(LoadBalancer::P2c, &[1; 20]);
    let ejected = (0..20)
        .filter(|member| twenty.report(*member, Evidence::Refused, 1))
        .count();
    assert_eq!(ejected, 2);
}

#[test]
fn all_ejected_means_all_are_used() {
    let policy = OutlierDetection {
        max_ejection_percent: 100,
        ..OutlierDetection::default()
    };
    let group = group_of(
        LoadBalancer::P2c,
        &[(1, Health::Healthy), (1, Health::Healthy)],
        policy,
    );
    assert!(group.report(0, Evidence::Refused, 1) && group.report(1, Evidence::Refused, 1));
    assert!(spread(&group, 100, &[], 2).iter().all(|hits| *hits > 0));
}

#[test]
fn each_ejection_in_a_row_is_longer() {
    let policy = OutlierDetection {
        base_ejection: Duration::from_millis(100),
        ..OutlierDetection::default()
    };
    let group = group_of(
        LoadBalancer::P2c,
        &[(1, Health::Healthy), (1, Health::Healthy)],
        policy,
    );
    let outlier = group.member(0).unwrap().outlier.clone();
    assert!(group.report(0, Evidence::Refused, 1000));
    assert!(outlier.is_ejected(1099) && !outlier.is_ejected(1100));
    assert!(group.report(0, Evidence::Refused, 1100));
    assert!(outlier.is_ejected(1299) && !outlier.is_ejected(1300));
    let much_later = 1300 + 10_000 * 5;
    assert!(group.report(0, Evidence::Refused, much_later));
    assert!(
        !outlier.is_ejected(much_later + 100),
        "forgiven by intervals without ejection"
    );
}

#[test]
fn kinds_of_detection_switch_off() {
    let policy = OutlierDetection {
        consecutive_5xx: 0,
        consecutive_gateway: 0,
        ..OutlierDetection::default()
    };
    let group = group_of(
        LoadBalancer::P2c,
        &[(1, Health::Healthy), (1, Health::Healthy)],
        policy,
    );
    for _ in 0..20 {
        assert!(
            !group.report(0, Evidence::ServerError, 1)
                && !group.report(0, Evidence::GatewayError, 1)
        );
    }
    assert!(!group.report(0, Evidence::Refused, 1));
}
