//! Which endpoints are to be asked, and what: the BackendPolicies with a `healthCheck`, and the endpoints of their services
//! as they are compiled. Services that did not change keep their targets.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use phalanx_model::document::Document;
use phalanx_model::instance::Protocol;
use phalanx_model::resource::{Assignment, Cluster, HealthCheck, PeerTls, Probe};
use phalanx_model::{ClusterName, ServiceName};

use super::Key;
use crate::snapshot::{Mesh, Ports};
use crate::world::World;

/// One endpoint and how it is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub check: Arc<HealthCheck>,
    /// Empty when unknown.
    pub zone: String,
    /// Id of the instance, empty for endpoints that don't register.
    pub instance: String,
    pub authority: String,
    /// The application's port that the endpoint's sidecar is asked for; 0 without one.
    pub port: u16,
    pub http2: bool,
    /// It takes mutual TLS: whom to expect there. None for a question that is only whether it takes connections.
    pub tls: Option<PeerTls>,
}

pub type Targets = BTreeMap<Key, Arc<Target>>;

/// Remembers what it was made from, so that the next look costs what changed.
#[derive(Default)]
pub struct Watchlist {
    documents: Option<Arc<crate::world::Documents>>,
    planes: Option<Arc<crate::world::Planes>>,
    checks: BTreeMap<ServiceName, Arc<HealthCheck>>,
    services: BTreeMap<ServiceName, Service>,
    /// Of all services, whoever sees to them.
    all: Targets,
    /// Those that are this control plane's.
    owned: Targets,
    plane: String,
}

/// The endpoints of a port, and how they are called.
type Asked = (Arc<Assignment>, Arc<Cluster>);

struct Service {
    check: Arc<HealthCheck>,
    ports: Arc<Ports>,
    asked: Vec<Asked>,
    targets: Vec<(Key, Arc<Target>)>,
}

impl Watchlist {
    pub fn targets(&self) -> &Targets {
        &self.owned
    }

    /// Whether a verdict about this endpoint has no use any more, and it is for this control plane to remove it.
    pub fn is_gone(&self, key: &Key) -> bool {
        !self.all.contains_key(key)
            && self
                .planes
                .as_ref()
                .is_none_or(|planes| owns(planes.keys(), &self.plane, key))
    }

    /// Follows a world and its mesh; true when the targets are others than before.
    pub fn follow(&mut self, world: &World, mesh: &Mesh, plane: &str) -> bool {
        let is_same = |known: &Arc<_>| Arc::ptr_eq(known, &world.documents);
        if !self.documents.as_ref().is_some_and(is_same) {
            self.checks = checks(world, std::mem::take(&mut self.checks));
            self.documents = Some(world.documents.clone());
        }
        let mut services = BTreeMap::new();
        let mut is_other = false;
        for (name, check) in &self.checks {
            let Some(ports) = mesh.catalog.services.get(name) else {
                continue;
            };
            let before = self.services.remove(name);
            let service = Service::compile(name, check, ports, mesh, before, &mut is_other);
            services.insert(name.clone(), service);
        }
        is_other |= !self.services.is_empty();
        self.services = services;
        let is_same = |known: &Arc<_>| Arc::ptr_eq(known, &world.planes);
        is_other |= !self.planes.as_ref().is_some_and(is_same) || self.plane != plane;
        if is_other {
            self.planes = Some(world.planes.clone());
            self.plane = plane.to_owned();
            let all = self
                .services
                .values()
                .flat_map(|s| s.targets.iter().cloned());
            self.all = all.collect();
            let owned = self.all.iter();
            let owned = owned.filter(|(key, _)| owns(world.planes.keys(), plane, key));
            self.owned = owned
                .map(|(key, target)| (key.clone(), target.clone()))
                .collect();
        }
        is_other
    }
}

impl Service {
    fn compile(
        name: &ServiceName,
        check: &Arc<HealthCheck>,
        ports: &Arc<Ports>,
        mesh: &Mesh,
        before: Option<Self>,
        is_other: &mut bool,
    ) -> Self {
        let of = |name: ClusterName| {
            let assignment = mesh.assignments.get(&name).cloned();
            assignment.zip(mesh.clusters.get(&name).cloned())
        };
        let names = ports.iter().flat_map(|(port, of_port)| {
            let baseline = ClusterName::outbound(name.clone(), *port);
            let lanes = of_port.lanes.iter().map(|colour| baseline.lane(colour));
            let lanes: Vec<_> = lanes.collect();
            std::iter::once(baseline).chain(lanes)
        });
        let asked: Vec<Asked> = names.filter_map(of).collect();
        let is_same = |before: &Self| {
            before.check == *check
                && Arc::ptr_eq(&before.ports, ports)
                && before.asked.len() == asked.len()
                && before
                    .asked
                    .iter()
                    .zip(&asked)
                    .all(|(a, b)| Arc::ptr_eq(&a.0, &b.0) && Arc::ptr_eq(&a.1, &b.1))
        };
        match before {
            Some(before) if is_same(&before) => before,
            before => {
                let targets = compile(name, check, ports, &asked);
                *is_other |= before.is_none_or(|before| before.targets != targets);
                Self {
                    check: check.clone(),
                    ports: ports.clone(),
                    asked,
                    targets,
                }
            }
        }
    }
}

/// Each address once: of several ports behind it the lowest that can be asked. Raw TCP has no answer to HTTP.
fn compile(
    name: &ServiceName,
    check: &Arc<HealthCheck>,
    ports: &Ports,
    asked: &[Asked],
) -> Vec<(Key, Arc<Target>)> {
    let mut targets: Targets = BTreeMap::new();
    for (assignment, cluster) in asked {
        let Some(port) = ports.get(&assignment.cluster.port) else {
            continue;
        };
        let answers = match port.protocol {
            // Nobody answers a datagram that is nothing to them; their other ports are asked.
            Protocol::Udp => false,
            Protocol::Tcp => check.probe == Probe::Tcp,
            _ => true,
        };
        if !answers {
            continue;
        }
        for endpoint in &assignment.endpoints {
            let target = || {
                Arc::new(Target {
                    check: check.clone(),
                    zone: endpoint.zone.clone(),
                    instance: endpoint.instance.clone(),
                    authority: name.host(),
                    port: endpoint.target,
                    http2: matches!(port.protocol, Protocol::H2c | Protocol::Grpc)
                        || matches!(check.probe, Probe::Grpc { .. }),
                    tls: cluster
                        .tls
                        .clone()
                        .filter(|_| endpoint.mutual_tls && check.probe != Probe::Tcp),
                })
            };
            targets
                .entry((name.clone(), endpoint.address))
                .or_insert_with(target);
        }
    }
    targets.into_iter().collect()
}

/// The check of each service: that of its oldest policy, as for everything else a policy says.
fn checks(
    world: &World,
    before: BTreeMap<ServiceName, Arc<HealthCheck>>,
) -> BTreeMap<ServiceName, Arc<HealthCheck>> {
    let mut policies: Vec<_> = world
        .in_force()
        .filter_map(|(entry, document)| match document {
            Document::BackendPolicy(policy) => Some((entry, policy)),
            _ => None,
        })
        .collect();
    policies.sort_by_key(|(entry, _)| (entry.created_ms, &entry.id));
    let mut decided = BTreeSet::new();
    let mut checks = BTreeMap::new();
    for (_, policy) in policies {
        for service in &policy.targets {
            if !decided.insert(service) {
                continue;
            }
            if let Some(check) = &policy.health_check {
                let kept = before.get(service).filter(|before| ***before == *check);
                let check = kept.cloned().unwrap_or_else(|| Arc::new(check.clone()));
                checks.insert(service.clone(), check);
            }
        }
    }
    checks
}

/// Of several control planes over one store one sees to an endpoint: the one with the highest hash of both names. Who is not
/// among those that are known to live (yet) sees to everything: twice asked is better than not at all.
fn owns<'a>(planes: impl Iterator<Item = &'a String>, plane: &str, key: &Key) -> bool {
    let rank = |plane: &str| {
        let mut hasher = DefaultHasher::new();
        (plane, key).hash(&mut hasher);
        (hasher.finish(), plane.to_owned())
    };
    let planes: Vec<&String> = planes.collect();
    if planes.len() < 2 || !planes.iter().any(|known| *known == plane) {
        return true;
    }
    let mine = rank(plane);
    planes.iter().all(|other| rank(other) <= mine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_one_living_control_plane_sees_to_an_endpoint() {
        let planes: Vec<String> = ["a", "b", "c"].map(str::to_owned).into();
        let mut shares = [0; 3];
        for port in 1..=300 {
            let key = (
                ServiceName::new("default", "shop"),
                ([127, 0, 0, 1], port).into(),
            );
            let owners: Vec<_> = (0..3)
                .filter(|i| owns(planes.iter(), &planes[*i], &key))
                .collect();
            assert_eq!(owners.len(), 1);
            shares[owners[0]] += 1;
            assert!(owns(planes.iter(), "newcomer", &key), "until it is known");
        }
        assert!(shares.iter().all(|share| *share > 60), "{shares:?}");
    }
}
