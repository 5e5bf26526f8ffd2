//! A stock client over state of the world, as Envoy does it: full names with every request, answers in any order of kinds.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;
use phalanx_proto::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use phalanx_proto::google::rpc::Status;
use phalanx_xds::Kind;
use phalanx_xds::server::{Request, Response, Session};

use crate::world::World;
use crate::{Peer, Temper};

pub struct Stock {
    temper: Temper,
    /// A stream per kind.
    separate: bool,
    received: Vec<DiscoveryResponse>,
    /// Name → version.
    held: BTreeMap<Kind, BTreeMap<String, String>>,
    asked: BTreeMap<Kind, BTreeSet<String>>,
    nonces: BTreeMap<Kind, String>,
    refused: BTreeSet<String>,
}

impl Stock {
    pub fn new(temper: Temper) -> Self {
        Self {
            temper,
            separate: false,
            received: Vec::new(),
            held: BTreeMap::new(),
            asked: BTreeMap::new(),
            nonces: BTreeMap::new(),
            refused: BTreeSet::new(),
        }
    }

    pub fn separate(temper: Temper) -> Self {
        Self {
            separate: true,
            ..Self::new(temper)
        }
    }

    fn apply(&mut self, response: DiscoveryResponse, world: &World) -> Vec<Request> {
        let kind = Kind::parse(&response.type_url).expect("a known kind");
        self.nonces.insert(kind, response.nonce);
        let mut bad = Vec::new();
        let mut fresh = BTreeMap::new();
        for any in &response.resources {
            let (name, version) = name_and_version(&any.value);
            match world.is_bad(&version) {
                true => bad.push(name),
                false => drop(fresh.insert(name, version)),
            }
        }
        if kind == Kind::Cluster {
            self.refused.extend(bad.iter().cloned());
        }
        if self.temper != Temper::Strict || bad.is_empty() {
            self.replace(kind, fresh, &bad);
        }
        let error = match (bad.is_empty(), self.temper) {
            (true, _) => None,
            (false, Temper::Precise) => Some(format!("bad are {}.", bad.join(", "))),
            (false, _) => Some("something is wrong".to_owned()),
        };
        let mut requests = vec![self.request(kind, error)];
        for (kind, names) in self.derive(kind, world) {
            requests.extend(self.subscribe(kind, names));
        }
        requests
    }

    fn replace(&mut self, kind: Kind, fresh: BTreeMap<String, String>, bad: &[String]) {
        let asked = self.asked.get(&kind).cloned().unwrap_or_default();
        let held = self.held.entry(kind).or_default();
        if kind.has_wildcard() {
            held.retain(|name, _| fresh.contains_key(name) || bad.contains(name));
            held.extend(fresh);
        } else {
            held.extend(fresh.into_iter().filter(|(name, _)| asked.contains(name)));
        }
    }

    /// Endpoints and secrets follow clusters, route tables follow listeners.
    fn derive(&self, kind: Kind, world: &World) -> Vec<(Kind, BTreeSet<String>)> {
        let none = BTreeMap::new();
        let held = self.held.get(&kind).unwrap_or(&none);
        let named = |names: fn(&World, &str) -> Vec<String>| {
            held.values().flat_map(|v| names(world, v)).collect()
        };
        match kind {
            Kind::Cluster => vec![
                (Kind::Secret, named(World::secrets_of)),
                (Kind::Endpoints, held.keys().cloned().collect()),
            ],
            Kind::Listener => vec![(Kind::Routes, named(World::tables_of))],
            Kind::Secret | Kind::Endpoints | Kind::Routes => Vec::new(),
        }
    }

    fn subscribe(&mut self, kind: Kind, names: BTreeSet<String>) -> Option<Request> {
        if self.asked.get(&kind) == Some(&names)
            || (names.is_empty() && !self.asked.contains_key(&kind))
        {
            return None;
        }
        self.held
            .entry(kind)
            .or_default()
            .retain(|name, _| names.contains(name));
        self.asked.insert(kind, names);
        Some(self.request(kind, None))
    }

    fn request(&self, kind: Kind, error: Option<String>) -> Request {
        Request::Sotw(DiscoveryRequest {
            type_url: kind.type_url().to_owned(),
            resource_names: self
                .asked
                .get(&kind)
                .into_iter()
                .flatten()
                .cloned()
                .collect(),
            response_nonce: self.nonces.get(&kind).cloned().unwrap_or_default(),
            error_detail: error.map(|message| Status {
                message,
                ..Default::default()
            }),
            ..Default::default()
        })
    }
}

/// The name stands in the body, the version is its hash.
fn name_and_version(body: &[u8]) -> (String, String) {
    let text = String::from_utf8_lossy(body);
    let name = text.split([' ', ':']).nth(1).expect("kind, name");
    (name.to_owned(), phalanx_xds::snapshot::version(body))
}

impl Peer for Stock {
    fn sessions(&self) -> Vec<Session> {
        match self.separate {
            true => Kind::ALL.map(Session::sotw_of).into(),
            false => vec![Session::sotw()],
        }
    }

    /// Over state of the world a client cannot say what it holds, so this one starts afresh, as after a restart.
    fn open(&mut self) -> Vec<Request> {
        *self = Self {
            refused: std::mem::take(&mut self.refused),
            separate: self.separate,
            ..Self::new(self.temper)
        };
        vec![
            self.request(Kind::Cluster, None),
            self.request(Kind::Listener, None),
        ]
    }

    fn receive(&mut self, response: Response) {
        self.received.extend(response.into_sotw());
    }

    fn work(&mut self, rng: &mut Rng, world: &World) -> Vec<Request> {
        if self.received.is_empty() {
            return Vec::new();
        }
        let response = self.received.remove(rng.usize(..self.received.len()));
        self.apply(response, world)
    }

    fn is_idle(&self) -> bool {
        self.received.is_empty()
    }

    fn held(&self, kind: Kind) -> BTreeMap<String, String> {
        self.held.get(&kind).cloned().unwrap_or_default()
    }

    fn wants(&self, kind: Kind, name: &str) -> bool {
        kind.has_wildcard()
            || self
                .asked
                .get(&kind)
                .is_some_and(|asked| asked.contains(name))
    }

    fn refused(&self) -> &BTreeSet<String> {
        &self.refused
    }
}
