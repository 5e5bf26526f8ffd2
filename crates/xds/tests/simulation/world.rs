//! What the control plane would have compiled: random, always consistent snapshots.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use fastrand::Rng;
use phalanx_xds::{Encoded, Kind, Snapshot};

const CLUSTERS: u8 = 8;
const TABLES: u8 = 2;
const SECRETS: u8 = 3;

#[derive(Clone, Debug, Default)]
struct Service {
    cluster: String,
    /// None: the assignment is missing for the moment.
    endpoints: Option<String>,
    /// That its cluster takes over SDS.
    secret: Option<String>,
}

/// A listener and its route table, or a plain TCP listener without one.
#[derive(Clone, Debug, Default)]
struct Entry {
    listener: String,
    table: Option<String>,
    clusters: BTreeSet<String>,
}

pub struct World {
    /// Of what becomes new.
    pub bad_percent: u8,
    revision: u64,
    bodies: u64,
    services: BTreeMap<String, Service>,
    entries: BTreeMap<String, Entry>,
    /// Name → body; one that is named may be missing for the moment.
    secrets: BTreeMap<String, String>,
    snapshot: Arc<Snapshot>,
    /// Version → what it names, and whether clients refuse it; of everything that ever was.
    ever: BTreeMap<String, (Vec<String>, bool)>,
}

impl World {
    pub fn new(rng: &mut Rng) -> Self {
        let mut world = Self {
            bad_percent: 0,
            revision: 0,
            bodies: 0,
            services: BTreeMap::new(),
            entries: BTreeMap::new(),
            secrets: BTreeMap::new(),
            snapshot: Arc::default(),
            ever: BTreeMap::new(),
        };
        for _ in 0..12 {
            world.mutate(rng);
        }
        world
    }

    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot)
    }

    pub fn is_bad(&self, version: &str) -> bool {
        self.ever.get(version).is_some_and(|(_, bad)| *bad)
    }

    /// Clusters that this version of a listener or a route table names.
    pub fn clusters_of(&self, version: &str) -> Vec<String> {
        self.names_of(version, 'c')
    }

    /// Route tables that this version of a listener names.
    pub fn tables_of(&self, version: &str) -> Vec<String> {
        self.names_of(version, 't')
    }

    /// Secrets that this version of a cluster names.
    pub fn secrets_of(&self, version: &str) -> Vec<String> {
        self.names_of(version, 's')
    }

    fn names_of(&self, version: &str, first: char) -> Vec<String> {
        let names = self
            .ever
            .get(version)
            .map(|(names, _)| names.as_slice())
            .unwrap_or_default();
        names
            .iter()
            .filter(|name| name.starts_with(first))
            .cloned()
            .collect()
    }

    /// Between one and three changes, and a new snapshot.
    pub fn mutate(&mut self, rng: &mut Rng) {
        for _ in 0..rng.u8(1..4) {
            self.change(rng);
        }
        self.build();
    }

    fn change(&mut self, rng: &mut Rng) {
        let name = format!("c{}", rng.u8(..CLUSTERS));
        let (one, two) = (self.body(rng), self.body(rng));
        match rng.u8(..10) {
            0 | 1 => {
                self.services.insert(
                    name,
                    Service {
                        cluster: one,
                        endpoints: Some(two),
                        secret: rng.bool().then(|| secret(rng)),
                    },
                );
            }
            2 => {
                self.services.remove(&name);
                for entry in self.entries.values_mut() {
                    if entry.clusters.remove(&name) {
                        entry.listener.clone_from(&one);
                    }
                }
                self.entries
                    .retain(|_, entry| entry.table.is_some() || !entry.clusters.is_empty());
            }
            3 => {
                if let Some(service) = self.services.get_mut(&name) {
                    service.cluster = one;
                }
            }
            4 => {
                if let Some(service) = self.services.get_mut(&name) {
                    service.endpoints = (rng.u8(..8) > 0).then_some(one);
                }
            }
            5 | 6 => {
                let entry = self
                    .entries
                    .entry(format!("t{}", rng.u8(..TABLES)))
                    .or_default();
                entry.clusters = self
                    .services
                    .keys()
                    .filter(|_| rng.bool())
                    .cloned()
                    .collect();
                if entry.listener.is_empty() || rng.u8(..4) == 0 {
                    entry.listener = one;
                }
                entry.table = Some(two);
            }
            7 => {
                self.secrets.insert(secret(rng), one);
            }
            8 => {
                self.secrets.remove(&secret(rng));
            }
            _ if rng.bool() => {
                self.entries.remove(&format!("t{}", rng.u8(..TABLES)));
            }
            _ if self.services.contains_key(&name) => {
                let clusters = BTreeSet::from([name]);
                self.entries.insert(
                    "plain".into(),
                    Entry {
                        listener: one,
                        table: None,
                        clusters,
                    },
                );
            }
            _ => {}
        }
    }

    fn body(&mut self, rng: &mut Rng) -> String {
        self.bodies += 1;
        let word = if rng.u8(..100) < self.bad_percent {
            "bad"
        } else {
            "good"
        };
        format!("{word} {}", self.bodies)
    }

    /// Every assignment is there, and nothing is bad any more unless it `stays_bad`.
    pub fn heal(&mut self, stays_bad: bool) {
        let bodies = &mut self.bodies;
        let mut cure = |text: &mut String| {
            if !stays_bad && text.starts_with("bad") {
                *bodies += 1;
                *text = format!("good {bodies}");
            }
        };
        for service in self.services.values_mut() {
            cure(&mut service.cluster);
            cure(service.endpoints.get_or_insert_with(|| "good".into()));
            if let Some(secret) = &service.secret {
                let secret = self.secrets.entry(secret.clone());
                secret.or_insert_with(|| "good".into());
            }
        }
        self.secrets.values_mut().for_each(&mut cure);
        for entry in self.entries.values_mut() {
            cure(&mut entry.listener);
            entry.table.iter_mut().for_each(&mut cure);
        }
        self.build();
    }

    fn build(&mut self) {
        self.revision += 1;
        let mut all = Vec::new();
        let mut add = |kind: Kind, name: &String, body: &String, refs: &BTreeSet<String>| {
            let text = format!("{kind} {name}: {body} {refs:?}");
            let refs: Vec<String> = refs.iter().cloned().collect();
            let body_is_bad = body.starts_with("bad");
            let body = Bytes::from(text);
            let resource = match kind {
                Kind::Cluster => Encoded::new(kind, name, body, Vec::new()).with_secrets(refs),
                _ => Encoded::new(kind, name, body, refs),
            };
            all.push((resource, body_is_bad));
        };
        for (name, body) in &self.secrets {
            add(Kind::Secret, name, body, &BTreeSet::new());
        }
        for (name, service) in &self.services {
            let secret = service.secret.iter().cloned().collect();
            add(Kind::Cluster, name, &service.cluster, &secret);
            if let Some(endpoints) = &service.endpoints {
                add(Kind::Endpoints, name, endpoints, &BTreeSet::new());
            }
        }
        for (name, entry) in &self.entries {
            let table = BTreeSet::from([name.clone()]);
            let refs = if entry.table.is_some() {
                &table
            } else {
                &entry.clusters
            };
            add(Kind::Listener, name, &entry.listener, refs);
            if let Some(body) = &entry.table {
                add(Kind::Routes, name, body, &entry.clusters);
            }
        }
        let mut builder = Snapshot::builder(self.revision);
        for (resource, bad) in all {
            let names = [resource.refs.as_slice(), &resource.secrets].concat();
            self.ever.insert(resource.version.clone(), (names, bad));
            builder.insert(resource);
        }
        self.snapshot = Arc::new(builder.build());
    }
}

fn secret(rng: &mut Rng) -> String {
    format!("s{}", rng.u8(..SECRETS))
}
