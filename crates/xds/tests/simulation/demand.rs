//! Our sidecar on demand: takes responses in the order of the stream, and at random asks for tables and leaves them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fastrand::Rng;
use phalanx_proto::envoy::config::core::v3::Node;
use phalanx_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use phalanx_xds::client::Client;
use phalanx_xds::server::{Request, Response, Session};
use phalanx_xds::{Kind, Snapshot};

use crate::world::World;
use crate::{Peer, Temper};

pub struct OnDemand {
    client: Client,
    temper: Temper,
    received: Vec<DeltaDiscoveryResponse>,
    /// Tables in use.
    tables: BTreeSet<String>,
    refused: BTreeSet<String>,
    /// Nothing is asked for or left any more.
    is_settled: bool,
}

impl OnDemand {
    pub fn new(temper: Temper) -> Self {
        let mut client = Client::new(Node::default());
        client.set_demand(true);
        Self {
            client,
            temper,
            received: Vec::new(),
            tables: BTreeSet::new(),
            refused: BTreeSet::new(),
            is_settled: false,
        }
    }

    fn apply(
        &mut self,
        response: DeltaDiscoveryResponse,
        world: &World,
    ) -> Vec<DeltaDiscoveryRequest> {
        let kind = Kind::parse(&response.type_url).expect("a known kind");
        let of = response.resources.iter();
        let bad = of.filter(|r| world.is_bad(&r.version) && self.wants(kind, &r.name));
        let bad: Vec<_> = bad.map(|r| (r.name.clone(), "is bad".to_owned())).collect();
        if kind == Kind::Cluster {
            self.refused
                .extend(bad.iter().map(|(name, _)| name.clone()));
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
        requests
    }

    fn use_or_leave(&mut self, table: String) -> Option<DeltaDiscoveryRequest> {
        let kind = Kind::Routes;
        match self.tables.insert(table.clone()) {
            true => self.client.change(kind, vec![table], Vec::new()),
            false => {
                self.tables.remove(&table);
                self.client.change(kind, Vec::new(), vec![table])
            }
        }
    }
}

impl Peer for OnDemand {
    const ON_DEMAND: bool = true;

    fn sessions(&self) -> Vec<Session> {
        let mut session = Session::delta();
        session.trust_order();
        vec![session]
    }

    /// The tables asked for and what they name, and all listeners with what those name themselves.
    fn part(world: &Snapshot, session: &Session) -> Arc<Snapshot> {
        let tables: Vec<_> = session
            .names(Kind::Routes)
            .filter_map(|name| world.get(Kind::Routes, name))
            .collect();
        let referrers = tables.iter().copied().chain(world.iter(Kind::Listener));
        let mut part = Snapshot::builder(world.revision);
        for name in referrers.flat_map(|referrer| &referrer.refs) {
            for kind in [Kind::Cluster, Kind::Endpoints] {
                if let Some(resource) = world.get(kind, name) {
                    part.insert(resource.clone());
                }
            }
        }
        for resource in tables.into_iter().chain(world.iter(Kind::Listener)) {
            part.insert(resource.clone());
        }
        Arc::new(part.build())
    }

    fn open(&mut self) -> Vec<Request> {
        self.received.clear();
        let requests = self.client.connect();
        requests.into_iter().map(Request::Delta).collect()
    }

    fn receive(&mut self, response: Response) {
        self.received.extend(response.into_delta());
    }

    fn work(&mut self, rng: &mut Rng, world: &World) -> Vec<Request> {
        let mut requests = Vec::new();
        if !self.is_settled && rng.u8(..8) == 0 {
            let table = format!("t{}", rng.u8(..3));
            requests.extend(self.use_or_leave(table));
        }
        if !self.received.is_empty() {
            let response = self.received.remove(0);
            requests.extend(self.apply(response, world));
        }
        requests.into_iter().map(Request::Delta).collect()
    }

    fn settle(&mut self, settled: bool) {
        self.is_settled = settled;
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
        match kind {
            Kind::Routes => self.tables.contains(name),
            Kind::Secret => false,
            Kind::Cluster | Kind::Endpoints | Kind::Listener => true,
        }
    }

    fn refused(&self) -> &BTreeSet<String> {
        &self.refused
    }
}
