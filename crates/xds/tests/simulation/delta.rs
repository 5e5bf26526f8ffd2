//! Our sidecar: the crate's own client, which takes its time and finishes updates of different kinds in any order.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;
use phalanx_proto::envoy::config::core::v3::Node;
use phalanx_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use phalanx_xds::Kind;
use phalanx_xds::client::Client;
use phalanx_xds::server::{Request, Response, Session};

use crate::world::World;
use crate::{Peer, Temper};

pub struct Sidecar {
    /// A stream per kind.
    separate: bool,
    client: Client,
    temper: Temper,
    received: Vec<DeltaDiscoveryResponse>,
    /// Names asked for, by kind.
    asked: BTreeMap<Kind, BTreeSet<String>>,
    refused: BTreeSet<String>,
}

impl Sidecar {
    pub fn new(temper: Temper) -> Self {
        Self {
            separate: false,
            client: Client::new(Node::default()),
            temper,
            received: Vec::new(),
            asked: BTreeMap::new(),
            refused: BTreeSet::new(),
        }
    }

    pub fn separate(temper: Temper) -> Self {
        Self {
            separate: true,
            ..Self::new(temper)
        }
    }

    fn apply(
        &mut self,
        response: DeltaDiscoveryResponse,
        world: &World,
    ) -> Vec<DeltaDiscoveryRequest> {
        let (kind, bad) = self.bad_in(&response, world);
        if kind == Kind::Cluster {
            self.refused
                .extend(bad.iter().map(|(name, _)| name.clone()));
        }
        if self.temper == Temper::Strict && !bad.is_empty() {
            return vec![DeltaDiscoveryRequest {
                type_url: response.type_url,
                response_nonce: response.nonce,
                error_detail: Some(Default::default()),
                ..Default::default()
            }];
        }
        let update = self.client.on_response(response).expect("a known kind");
        let applied = if bad.is_empty() { Ok(()) } else { Err(bad) };
        let mut requests = self.client.finish(update.token, applied);
        if self.temper == Temper::Vague {
            for error in requests
                .iter_mut()
                .flat_map(|request| &mut request.error_detail)
            {
                error.message = "something is wrong".into();
            }
        }
        if kind == Kind::Listener {
            let tables = self
                .client
                .held(kind)
                .flat_map(|(_, version)| world.tables_of(version));
            let tables = tables.collect();
            requests.extend(self.client.subscribe(Kind::Routes, tables));
        }
        requests
    }

    fn bad_in(
        &self,
        response: &DeltaDiscoveryResponse,
        world: &World,
    ) -> (Kind, Vec<(String, String)>) {
        let kind = Kind::parse(&response.type_url).expect("a known kind");
        let bad = response
            .resources
            .iter()
            .filter(|r| world.is_bad(&r.version));
        let bad = bad.filter(|r| self.wants(kind, &r.name));
        (
            kind,
            bad.map(|r| (r.name.clone(), "is bad".to_owned())).collect(),
        )
    }

    fn note(&mut self, requests: Vec<DeltaDiscoveryRequest>) -> Vec<Request> {
        for request in &requests {
            let kind = Kind::parse(&request.type_url).expect("a known kind");
            let asked = self.asked.entry(kind).or_default();
            asked.extend(request.resource_names_subscribe.iter().cloned());
            request.resource_names_unsubscribe.iter().for_each(|name| {
                asked.remove(name);
            });
        }
        requests.into_iter().map(Request::Delta).collect()
    }
}

impl Peer for Sidecar {
    fn sessions(&self) -> Vec<Session> {
        match self.separate {
            true => Kind::ALL.map(Session::delta_of).into(),
            false => vec![Session::delta()],
        }
    }

    fn open(&mut self) -> Vec<Request> {
        self.received.clear();
        self.asked.clear();
        let requests = self.client.connect();
        self.note(requests)
    }

    fn receive(&mut self, response: Response) {
        self.received.extend(response.into_delta());
    }

    fn work(&mut self, rng: &mut Rng, world: &World) -> Vec<Request> {
        if self.received.is_empty() {
            return Vec::new();
        }
        let response = self.received.remove(rng.usize(..self.received.len()));
        let requests = self.apply(response, world);
        self.note(requests)
    }

    fn is_idle(&self) -> bool {
        self.received.is_empty()
    }

    fn held(&self, kind: Kind) -> BTreeMap<String, String> {
        self.client
            .held(kind)
            .map(|(name, version)| (name.to_owned(), version.to_owned()))
            .collect()
    }

    fn wants(&self, kind: Kind, name: &str) -> bool {
        let asked = self.asked.get(&kind);
        asked.is_some_and(|asked| asked.contains("*") || asked.contains(name))
    }

    fn refused(&self) -> &BTreeSet<String> {
        &self.refused
    }
}
