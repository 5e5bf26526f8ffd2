//! Whose address that is: for calls that name no host. Made when the first such name is asked for, and from then on kept by
//! what differs between two meshes.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use phalanx_model::resource::{Assignment, Endpoint};
use phalanx_model::{ClusterName, ServiceName, SharedMap};

type Assignments = SharedMap<ClusterName, Arc<Assignment>>;

/// By address, who may be meant; the likeliest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Addresses {
    owners: SharedMap<SocketAddr, Arc<[Owner]>>,
    /// What they were taken from.
    of: Assignments,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Owner {
    by: By,
    cluster: Arc<ClusterName>,
}

/// How an address leads to a service; an earlier one wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum By {
    /// It is an endpoint that has no sidecar.
    Endpoint,
    /// The port that the application of an instance listens at.
    Application,
    /// The Service's port at an instance's address, as who asked DNS for the name calls it.
    Service,
}

impl Addresses {
    /// The service and port that is called at this address, if that is one of the mesh. Of several services with that
    /// instance it is the first by port and name.
    pub(super) fn owner(
        &mut self,
        address: SocketAddr,
        assignments: &Assignments,
    ) -> Option<(ServiceName, u16)> {
        self.follow(assignments);
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        let owner = self.owners.get(&address)?.first()?;
        Some((owner.cluster.service.clone(), owner.cluster.port))
    }

    fn follow(&mut self, assignments: &Assignments) {
        let before = std::mem::replace(&mut self.of, assignments.clone());
        for change in assignments.differences(&before, Arc::ptr_eq) {
            let cluster = Arc::new(change.key.clone());
            for (address, by) in claims(change.before) {
                self.remove(address, by, &cluster);
            }
            for (address, by) in claims(change.after) {
                self.add(address, by, &cluster);
            }
        }
    }

    fn add(&mut self, address: SocketAddr, by: By, cluster: &Arc<ClusterName>) {
        let owner = Owner {
            by,
            cluster: cluster.clone(),
        };
        let mut owners = self
            .owners
            .get(&address)
            .map_or_else(Vec::new, |o| o.to_vec());
        if let Err(place) = owners.binary_search(&owner) {
            owners.insert(place, owner);
            self.owners.insert(address, owners.into());
        }
    }

    fn remove(&mut self, address: SocketAddr, by: By, cluster: &Arc<ClusterName>) {
        let Some(owners) = self.owners.get(&address) else {
            return;
        };
        let is_other = |owner: &&Owner| owner.by != by || owner.cluster != *cluster;
        let left: Arc<[Owner]> = owners.iter().filter(is_other).cloned().collect();
        match left.is_empty() {
            true => drop(self.owners.remove(&address)),
            false => drop(self.owners.insert(address, left)),
        }
    }
}

fn claims(assignment: Option<&Arc<Assignment>>) -> impl Iterator<Item = (SocketAddr, By)> {
    let of = |(port, endpoint): (u16, &Endpoint)| {
        let ip: IpAddr = endpoint.address.ip().to_canonical();
        let at = move |port| SocketAddr::new(ip, port);
        let own = match endpoint.instance.is_empty() {
            true => (at(endpoint.address.port()), By::Endpoint),
            false => (at(endpoint.target), By::Application),
        };
        [own, (at(port), By::Service)]
    };
    let endpoints = assignment.into_iter().flat_map(|assignment| {
        let port = assignment.cluster.port;
        let streams = assignment.endpoints.iter().filter(|e| !e.datagrams);
        streams.map(move |e| (port, e))
    });
    endpoints
        .flat_map(of)
        .filter(|(address, _)| address.port() != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(address: &str, instance: &str, target: u16) -> Endpoint {
        Endpoint {
            address: address.parse().unwrap(),
            weight: 1,
            zone: String::new(),
            is_far: false,
            health: phalanx_model::resource::Health::Healthy,
            version: String::new(),
            instance: instance.to_owned(),
            target,
            mutual_tls: false,
            datagrams: false,
            token: String::new(),
        }
    }

    fn assign(to: &mut Assignments, service: &str, port: u16, endpoints: Vec<Endpoint>) {
        let cluster = ClusterName::outbound(ServiceName::new("default", service), port);
        let assignment = Assignment {
            cluster: cluster.clone(),
            endpoints,
            overprovision: None,
        };
        to.insert(cluster, Arc::new(assignment));
    }

    #[test]
    fn an_address_leads_to_the_service_whose_it_is_and_follows_changes() {
        let (mut all, mut addresses) = (Assignments::default(), Addresses::default());
        let redis = |ip: &str| endpoint(&format!("{ip}:15006"), "a", 6379);
        assign(
            &mut all,
            "redis",
            7000,
            vec![redis("10.0.0.1"), redis("[fd00::1]")],
        );
        assign(&mut all, "cache", 6379, vec![redis("10.0.0.1")]);
        assign(&mut all, "db", 3306, vec![endpoint("10.0.0.9:3307", "", 0)]);
        let mut owner = |address: &str, all: &Assignments| {
            let owner = addresses.owner(address.parse().unwrap(), all)?;
            Some(format!("{}:{}", owner.0.name, owner.1))
        };
        let is = |name: &str| Some(name.to_owned());
        // Of both that have the application's port, the first by port.
        assert_eq!(owner("10.0.0.1:6379", &all), is("cache:6379"));
        assert_eq!(
            owner("10.0.0.1:7000", &all),
            is("redis:7000"),
            "the Service's"
        );
        assert_eq!(owner("[fd00::1]:6379", &all), is("redis:7000"));
        assert_eq!(owner("[::ffff:10.0.0.1]:7000", &all), is("redis:7000"));
        assert_eq!(owner("10.0.0.9:3307", &all), is("db:3306"));
        assert_eq!(owner("10.0.0.9:3306", &all), is("db:3306"));
        assert_eq!(
            owner("10.0.0.1:15006", &all),
            None,
            "the sidecar is no service"
        );
        assert_eq!(owner("10.0.0.2:6379", &all), None);
        assign(&mut all, "cache", 6379, vec![redis("10.0.0.2")]);
        all.remove(&ClusterName::outbound(
            ServiceName::new("default", "db"),
            3306,
        ));
        assert_eq!(owner("10.0.0.1:6379", &all), is("redis:7000"));
        assert_eq!(owner("10.0.0.2:6379", &all), is("cache:6379"));
        assert_eq!(owner("10.0.0.9:3307", &all), None);
    }
}
