//! Who asks about which endpoint: [`CHECKERS_PER_TARGET`] data planes each, of the endpoint's zone where there are some, none
//! with more than its share. A ring per zone: a checker that comes or goes moves few endpoints. Pure.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use phalanx_model::InstanceId;
use phalanx_model::resource::Probe;

use super::board::Who;
use super::targets::{Target, Targets};
use super::{CheckerInfo, Key};

/// Who asks about what.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Spread {
    pub by_checker: BTreeMap<Who, Vec<Key>>,
    /// For the control plane itself.
    pub alone: Vec<Key>,
}

type Ring = BTreeMap<(u64, Who), ()>;

pub fn assign<'a>(
    targets: &Targets,
    checkers: impl Iterator<Item = (Who, &'a CheckerInfo)>,
) -> Spread {
    // Of several streams of a node (a reconnect whose predecessor is not closed yet) the newest.
    let newest: BTreeMap<&str, (Who, &CheckerInfo)> = checkers
        .map(|(who, checker)| (checker.name.as_str(), (who, checker)))
        .collect();
    let mut zones: BTreeMap<&str, Ring> = BTreeMap::new();
    let mut everyone = Ring::new();
    let mut known: BTreeMap<Who, &CheckerInfo> = BTreeMap::new();
    for (who, checker) in newest.into_values() {
        known.insert(who, checker);
        for point in 0..POINTS {
            let place = (hash(&(&checker.name, point)), who);
            zones.entry(&checker.zone).or_default().insert(place, ());
            everyone.insert(place, ());
        }
    }
    let mut spread = Spread::default();
    for (key, target) in targets {
        let start = hash(key);
        let mut chosen: Vec<Who> = Vec::new();
        let near = zones
            .get(target.zone.as_str())
            .filter(|_| !target.zone.is_empty());
        for ring in near.into_iter().chain([&everyone]) {
            let ahead = ring.range((start, 0)..).chain(ring.range(..(start, 0)));
            for ((_, who), ()) in ahead.take(WALK_MAX) {
                if chosen.len() >= CHECKERS_PER_TARGET {
                    break;
                }
                let load = spread.by_checker.get(who).map_or(0, Vec::len);
                let can = known.get(who).is_some_and(|c| can_ask(c, key, target));
                if can && load < TARGETS_PER_CHECKER && !chosen.contains(who) {
                    chosen.push(*who);
                    spread.by_checker.entry(*who).or_default().push(key.clone());
                }
            }
        }
        if chosen.is_empty() {
            spread.alone.push(key.clone());
        }
    }
    spread
}

/// Nobody judges the application beside it from there: what matters is whether others reach it.
fn can_ask(checker: &CheckerInfo, key: &Key, target: &Target) -> bool {
    let InstanceId { service, id } = &checker.instance;
    let is_own = !target.instance.is_empty() && *id == target.instance && *service == key.0;
    let speaks = checker.grpc || !matches!(target.check.probe, Probe::Grpc { .. });
    !is_own && speaks && (checker.secure || target.tls.is_none())
}

fn hash(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// Two, so that one with a broken network of its own condemns nobody.
pub const CHECKERS_PER_TARGET: usize = 2;
/// Endpoints that one data plane is asked to check.
pub const TARGETS_PER_CHECKER: usize = 256;
/// Places of a checker on a ring.
const POINTS: u32 = 8;
/// Places looked at for one endpoint: where so many are full, the control plane asks itself.
const WALK_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use phalanx_model::ServiceName;
    use phalanx_model::resource::HealthCheck;

    use super::*;

    fn shop() -> ServiceName {
        ServiceName::new("default", "shop")
    }

    fn targets(count: u16, zone: impl Fn(u16) -> &'static str, probe: Probe) -> Targets {
        let check = Arc::new(HealthCheck::new(probe));
        let target = |port: u16| Target {
            check: check.clone(),
            zone: zone(port).to_owned(),
            instance: format!("i{port}"),
            authority: String::new(),
            port: 0,
            http2: false,
            tls: None,
        };
        (1..=count)
            .map(|port| {
                (
                    (shop(), ([10, 0, 0, 1], port).into()),
                    Arc::new(target(port)),
                )
            })
            .collect()
    }

    fn checker(name: &str, zone: &str) -> CheckerInfo {
        CheckerInfo {
            name: name.to_owned(),
            zone: zone.to_owned(),
            instance: InstanceId {
                service: shop(),
                id: name.to_owned(),
            },
            grpc: true,
            secure: true,
        }
    }

    fn spread(targets: &Targets, checkers: &[CheckerInfo]) -> Spread {
        assign(targets, (1..).zip(checkers))
    }

    /// Per endpoint, the names of its checkers.
    fn by_port(spread: &Spread, checkers: &[CheckerInfo]) -> BTreeMap<u16, BTreeSet<String>> {
        let mut by_port: BTreeMap<u16, BTreeSet<String>> = BTreeMap::new();
        for (who, keys) in &spread.by_checker {
            for key in keys {
                let name = checkers[*who as usize - 1].name.clone();
                by_port.entry(key.1.port()).or_default().insert(name);
            }
        }
        by_port
    }

    #[test]
    fn each_endpoint_has_two_checkers_of_its_zone_where_there_are_two() {
        let zone = |port: u16| {
            if port.is_multiple_of(2) {
                "even"
            } else {
                "odd"
            }
        };
        let targets = targets(100, zone, Probe::Tcp);
        let checkers: Vec<_> = (0..10)
            .map(|i| checker(&format!("c{i}"), if i < 9 { "even" } else { "odd" }))
            .collect();
        let spread = spread(&targets, &checkers);
        assert!(spread.alone.is_empty());
        for (port, names) in by_port(&spread, &checkers) {
            assert_eq!(names.len(), 2);
            assert_eq!(
                names.contains("c9"),
                zone(port) == "odd",
                "{port}: {names:?}"
            );
        }
    }

    #[test]
    fn nobody_checks_its_own_application() {
        let targets = targets(3, |_| "", Probe::Tcp);
        let checkers = [checker("i1", ""), checker("i2", "")];
        let by_port = by_port(&spread(&targets, &checkers), &checkers);
        let names = |port: u16| {
            by_port[&port]
                .iter()
                .map(String::as_str)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            (names(1), names(2), names(3)),
            (vec!["i2"], vec!["i1"], vec!["i1", "i2"])
        );
    }

    #[test]
    fn who_does_not_speak_grpc_is_not_asked_to() {
        let targets = targets(
            2,
            |_| "",
            Probe::Grpc {
                service: String::new(),
            },
        );
        let envoy = CheckerInfo {
            grpc: false,
            ..checker("envoy", "")
        };
        assert_eq!(spread(&targets, &[envoy]).alone.len(), 2);
    }

    #[test]
    fn shares_are_bounded_and_the_rest_is_the_control_planes() {
        let targets = targets(1000, |_| "", Probe::Tcp);
        let checkers = [checker("a", ""), checker("b", "")];
        let spread = spread(&targets, &checkers);
        let shares: Vec<_> = spread.by_checker.values().map(Vec::len).collect();
        assert_eq!(shares, [TARGETS_PER_CHECKER; 2]);
        assert!(spread.alone.len() >= 1000 - 2 * TARGETS_PER_CHECKER);
    }

    #[test]
    fn a_checker_that_goes_moves_only_what_it_had() {
        let targets = targets(200, |_| "", Probe::Tcp);
        let mut checkers: Vec<_> = (0..20).map(|i| checker(&format!("c{i}"), "")).collect();
        let before = by_port(&spread(&targets, &checkers), &checkers);
        checkers.pop();
        let after = by_port(&spread(&targets, &checkers), &checkers);
        let moved = before.iter().filter(|(port, names)| after[port] != **names);
        assert!(moved.clone().all(|(_, names)| names.contains("c19")));
        assert!(moved.count() < 60);
    }

    #[test]
    fn of_two_streams_of_a_node_only_the_newer_has_work() {
        let targets = targets(5, |_| "", Probe::Tcp);
        let checkers = [checker("a", ""), checker("a", "")];
        let spread = spread(&targets, &checkers);
        assert_eq!(spread.by_checker.keys().collect::<Vec<_>>(), [&2]);
    }
}
