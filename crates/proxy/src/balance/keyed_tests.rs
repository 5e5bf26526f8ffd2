//! Ring, Maglev, zones and slow start: what holds for every set of endpoints.

use std::collections::BTreeMap;

use super::tests::member;
use super::*;

const KEYED: [LoadBalancer; 2] = [LoadBalancer::RingHash, LoadBalancer::Maglev];
const KEYS: u64 = 20_000;

fn policy(balancer: LoadBalancer) -> Policy {
    Policy::new(balancer, OutlierDetection::default())
}

fn group(balancer: LoadBalancer, ports: impl Iterator<Item = u16>) -> Group {
    Group::new(policy(balancer), ports.map(member).collect())
}

fn pick(group: &Group, hash: Option<u64>, tried: &Tried, now_ms: u64, rng: &mut Rng) -> Picked {
    let mut turn = rng.u32(..);
    let pick = Pick {
        load: |_| None,
        tried,
        rng,
        now_us: now_ms * 1000,
        turn: &mut turn,
        hash,
    };
    group.pick(pick).unwrap()
}

/// The port that each key leads to.
fn placed(group: &Group, now_ms: u64) -> Vec<u16> {
    let mut rng = Rng::with_seed(3);
    let hash = |key: u64| Some(xxhash_rust::xxh64::xxh64(&key.to_le_bytes(), 0));
    let at = |key| pick(group, hash(key), &Tried::default(), now_ms, &mut rng).member;
    let members = (0..KEYS).map(at);
    let port = |m| group.member(m).unwrap().address.port();
    members.map(port).collect()
}

fn counts<K: Ord>(items: impl IntoIterator<Item = K>) -> BTreeMap<K, usize> {
    let mut counts = BTreeMap::new();
    for item in items {
        *counts.entry(item).or_default() += 1;
    }
    counts
}

#[test]
fn equal_keys_lead_to_equal_endpoints_whatever_their_order() {
    for balancer in KEYED {
        let one = group(balancer, 1..=9);
        let other = group(balancer, (1..=9).rev());
        assert_eq!(placed(&one, 0), placed(&other, 0), "{balancer:?}");
    }
}

#[test]
fn ring_moves_the_keys_of_what_leaves_and_no_others() {
    for total in [2u16, 3, 10, 50] {
        let all = placed(&group(LoadBalancer::RingHash, 1..=total), 0);
        for gone in [1, total.div_ceil(2), total] {
            let rest = (1..=total).filter(|port| *port != gone);
            let left = placed(&group(LoadBalancer::RingHash, rest), 0);
            let moved = |(before, after): (&u16, &u16)| *before != gone && before != after;
            assert_eq!(all.iter().zip(&left).filter(|pair| moved(*pair)).count(), 0);
        }
    }
}

#[test]
fn maglev_moves_few_keys_of_what_stays() {
    for total in [3u16, 10, 50] {
        let all = placed(&group(LoadBalancer::Maglev, 1..=total), 0);
        let left = placed(&group(LoadBalancer::Maglev, 2..=total), 0);
        let moved = |(before, after): (&u16, &u16)| *before != 1 && before != after;
        let moved = all.iter().zip(&left).filter(|pair| moved(*pair)).count();
        assert!(moved < KEYS as usize / 12, "{moved} of {KEYS} with {total}");
    }
}

#[test]
fn shares_follow_weights_within_four_sigma() {
    // A share of p varies by √(p(1−p)·keys) for the keys, and with the ring for its 160 points a member.
    for (balancer, points) in [
        (LoadBalancer::RingHash, 160.0),
        (LoadBalancer::Maglev, f64::INFINITY),
    ] {
        for weights in [&[1u32; 10][..], &[1, 2, 4], &[5, 5, 90]] {
            let members = weights.iter().zip(1..).map(|(weight, port)| Member {
                weight: *weight,
                ..member(port)
            });
            let group = Group::new(policy(balancer), members.collect());
            let counted = counts(placed(&group, 0));
            let total: u32 = weights.iter().sum();
            for (weight, port) in weights.iter().zip(1..) {
                let share = f64::from(*weight) / f64::from(total);
                let (expected, keys) = (share * KEYS as f64, KEYS as f64);
                let of_keys = share * (1.0 - share) * keys;
                let of_ring = expected * expected * (1.0 - share) / (points * f64::from(*weight));
                let sigma = (of_keys + of_ring).sqrt();
                let count = counted.get(&port).copied().unwrap_or(0) as f64;
                let off = (count - expected).abs() / sigma;
                assert!(off < 4.0, "{balancer:?} {weights:?} {port}: {off} sigma");
            }
        }
    }
}

#[test]
fn keys_of_what_is_ejected_go_to_others_and_come_back() {
    for balancer in KEYED {
        let group = group(balancer, 1..=5);
        let before = placed(&group, 0);
        assert!(group.report(2, Evidence::Refused, 0));
        let during = placed(&group, 1);
        for (was, is) in before.iter().zip(&during) {
            assert_ne!(*is, 3);
            assert!(*was == 3 || was == is, "{balancer:?}");
        }
        assert!(counts(during).len() == 4 && placed(&group, 60_000) == before);
    }
}

#[test]
fn another_attempt_with_the_same_key_goes_elsewhere() {
    for balancer in KEYED {
        let group = group(balancer, 1..=3);
        let mut rng = Rng::with_seed(5);
        for key in 0..200 {
            let (mut tried, mut seen) = (Tried::default(), Vec::new());
            for _ in 0..3 {
                let member = pick(&group, Some(key), &tried, 0, &mut rng).member;
                tried.add(member);
                seen.push(member);
            }
            assert_eq!(counts(seen).len(), 3);
        }
    }
}

#[test]
fn requests_without_a_key_are_spread() {
    for balancer in KEYED {
        let group = group(balancer, 1..=4);
        let mut rng = Rng::with_seed(5);
        let members = (0..2000).map(|_| pick(&group, None, &Tried::default(), 0, &mut rng).member);
        assert!(counts(members).values().all(|count| *count > 300));
    }
}

#[test]
fn ring_stays_within_its_bound() {
    let members: Vec<_> = (0..2000u32).map(|m| (m, m.to_string(), 128)).collect();
    let ring = ring::Ring::new(&members);
    let mut rng = Rng::with_seed(1);
    let found = (0..1000).filter_map(|_| ring.find(rng.u64(..), |_| true));
    assert!(counts(found).len() > 500);
}

/// Two zones; how many of 10,000 requests go to each member.
fn zones(
    near: &[Health],
    far: &[Health],
    balancer: LoadBalancer,
    panic: u32,
) -> (usize, usize, usize) {
    let of = |healths: &[Health], is_far: bool, from: u16| -> Vec<Member> {
        let members = healths.iter().zip(from..).map(|(health, port)| Member {
            health: *health,
            is_far,
            ..member(port)
        });
        members.collect()
    };
    let members = of(near, false, 1).into_iter().chain(of(far, true, 1000));
    let policy = Policy {
        panic_percent: panic,
        ..policy(balancer)
    };
    let group = Group::new(policy, members.collect());
    let mut rng = Rng::with_seed(9);
    let (mut nears, mut fars, mut panics) = (0, 0, 0);
    for _ in 0..10_000 {
        let hash = Some(rng.u64(..));
        let picked = pick(&group, hash, &Tried::default(), 0, &mut rng);
        fars += usize::from(picked.is_far);
        nears += usize::from(!picked.is_far);
        panics += usize::from(picked.in_panic);
    }
    (nears, fars, panics)
}

#[test]
fn own_zone_first_and_what_it_cannot_take_elsewhere() {
    use Health::{Draining, Healthy, Unhealthy};
    for balancer in [
        LoadBalancer::P2c,
        LoadBalancer::RingHash,
        LoadBalancer::Maglev,
    ] {
        assert_eq!(
            zones(&[Healthy; 4], &[Healthy; 4], balancer, 50),
            (10_000, 0, 0)
        );
        assert_eq!(
            zones(&[Unhealthy; 4], &[Healthy; 4], balancer, 50),
            (0, 10_000, 0)
        );
        assert_eq!(zones(&[], &[Healthy; 4], balancer, 50), (0, 10_000, 0));
        // What drains has left: its zone is as healthy as before.
        let one_leaves = [Healthy, Healthy, Healthy, Draining];
        assert_eq!(
            zones(&one_leaves, &[Healthy; 4], balancer, 50),
            (10_000, 0, 0)
        );
        // Half works: 70 % stay.
        let half = [Healthy, Healthy, Unhealthy, Unhealthy];
        let (near, far, panics) = zones(&half, &[Healthy; 4], balancer, 50);
        assert!(near.abs_diff(7_000) < 200 && panics == 0, "{near} {far}");
    }
}

#[test]
fn below_the_panic_threshold_everything_is_used() {
    use Health::{Healthy, Unhealthy};
    let third = [Healthy, Unhealthy, Unhealthy];
    assert_eq!(zones(&third, &[], LoadBalancer::P2c, 50).2, 10_000);
    assert_eq!(zones(&third, &[], LoadBalancer::P2c, 30).2, 0);
    let (near, far, panics) = zones(&third, &third, LoadBalancer::Random, 50);
    assert!(near.abs_diff(5_000) < 250 && far > 0 && panics == 10_000);
}

/// Two of a lane with this health, then three of the baseline.
fn lane(health: [Health; 2], balancer: LoadBalancer) -> Group {
    let near = health.into_iter().zip(1..).map(|(health, port)| Member {
        health,
        ..member(port)
    });
    let far = (3..=5).map(|port| Member {
        is_far: true,
        ..member(port)
    });
    let policy = Policy {
        overprovision: 10_000,
        is_lane: true,
        ..Policy::new(
            balancer,
            OutlierDetection {
                max_ejection_percent: 100,
                ..OutlierDetection::default()
            },
        )
    };
    Group::new(policy, near.chain(far).collect())
}

#[test]
fn a_lane_is_left_only_while_none_of_it_works_or_for_want_of_a_connection() {
    use Health::{Draining, Healthy, Unhealthy};
    let mut rng = Rng::with_seed(5);
    for balancer in [
        LoadBalancer::P2c,
        LoadBalancer::Maglev,
        LoadBalancer::Random,
    ] {
        let mut fars = |group: &Group, tried: &Tried| {
            let picks = (0..200).map(|n| pick(group, Some(n * 7_919), tried, 0, &mut rng));
            picks.filter(|picked| picked.member >= 2).count()
        };
        let (one, both) = (
            lane([Healthy, Draining], balancer),
            lane([Healthy; 2], balancer),
        );
        let mut tried = Tried::default();
        tried.add(0);
        assert_eq!((fars(&one, &tried), fars(&both, &tried)), (0, 0), "again");
        tried.add(1);
        assert_eq!(
            (fars(&one, &tried), fars(&both, &tried)),
            (0, 0),
            "all tried"
        );
        tried.unreached();
        assert_eq!((fars(&one, &tried), fars(&both, &tried)), (200, 200));
        let none = lane([Unhealthy, Draining], balancer);
        assert_eq!(fars(&none, &Tried::default()), 200);
        assert_eq!((one.choices(), both.choices(), none.choices()), (1, 2, 5));
    }
}

#[test]
fn the_last_of_a_lane_that_works_is_not_ejected() {
    let group = lane([Health::Healthy; 2], LoadBalancer::P2c);
    assert!(group.report(0, Evidence::Refused, 1));
    assert!(!group.report(1, Evidence::Refused, 1));
    assert!(group.report(2, Evidence::Refused, 1), "of the baseline");
    let group = lane([Health::Healthy, Health::Unhealthy], LoadBalancer::P2c);
    assert!(!group.report(0, Evidence::Refused, 1));
}

#[test]
fn ejections_count_as_bad_health_while_they_last() {
    let far = (4..=6).map(|port| Member {
        is_far: true,
        ..member(port)
    });
    let members = (1..=3).map(member).chain(far).collect();
    let outlier = OutlierDetection {
        max_ejection_percent: 100,
        ..OutlierDetection::default()
    };
    let group = Group::new(Policy::new(LoadBalancer::P2c, outlier), members);
    let fars = |now_ms: u64| {
        let mut rng = Rng::with_seed(2);
        let tried = Tried::default();
        let picks = (0..1000).map(|_| pick(&group, None, &tried, now_ms, &mut rng));
        picks.filter(|picked| picked.is_far).count()
    };
    assert_eq!(fars(0), 0);
    assert!((0..3).all(|member| group.report(member, Evidence::Refused, 1)));
    assert_eq!(fars(2), 1000);
    assert_eq!(fars(40_000), 0);
}

#[test]
fn newcomer_gets_a_growing_part_of_its_share() {
    for balancer in [
        LoadBalancer::P2c,
        LoadBalancer::LeastRequest,
        LoadBalancer::RoundRobin,
    ] {
        let newcomer = Member {
            joined_ms: Some(1_000_000),
            ..member(4)
        };
        let members = (1..=3).map(member).chain([newcomer]).collect();
        let policy = Policy {
            slow_start: Some(SlowStart {
                window_ms: 10_000,
                min_percent: 10,
            }),
            ..policy(balancer)
        };
        let group = Group::new(policy, members);
        let share = |age_ms: u64| {
            let mut rng = Rng::with_seed(2);
            let tried = Tried::default();
            let picks =
                (0..20_000).map(|_| pick(&group, None, &tried, 1_000_000 + age_ms, &mut rng));
            picks.filter(|picked| picked.member == 3).count()
        };
        for (age_ms, wanted) in [
            (0, 500usize),
            (5_000, 2_500),
            (10_000, 5_000),
            (60_000, 5_000),
        ] {
            let got = share(age_ms);
            assert!(got.abs_diff(wanted) < 300, "{balancer:?} {age_ms}: {got}");
        }
    }
}

#[test]
fn where_all_are_new_nobody_waits() {
    let members = (1..=3).map(|port| Member {
        joined_ms: Some(0),
        ..member(port)
    });
    let policy = Policy {
        slow_start: Some(SlowStart {
            window_ms: 10_000,
            min_percent: 1,
        }),
        ..policy(LoadBalancer::P2c)
    };
    let group = Group::new(policy, members.collect());
    let mut rng = Rng::with_seed(2);
    let members = (0..3000).map(|_| pick(&group, None, &Tried::default(), 5, &mut rng).member);
    assert!(
        counts(members)
            .values()
            .all(|count| count.abs_diff(1000) < 150)
    );
}
