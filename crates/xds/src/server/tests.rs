//! Claims about a session, told through a scripted client.

mod bounds;
mod break_after_make;
mod inventory;
mod one_kind;
mod order;
mod reconnects;
mod refusals;
mod remembered;
mod secrets;
mod state_of_the_world;
mod subscriptions;
mod time_to_live;

use std::sync::Arc;

use bytes::Bytes;
use phalanx_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use phalanx_proto::google::rpc::Status;

use super::*;
use crate::snapshot::Encoded;

fn resource(kind: Kind, name: &str, body: &str, refs: &[&str]) -> Encoded {
    let refs = refs.iter().map(|r| (*r).to_owned()).collect();
    let body = format!("{name}={body}");
    Encoded::new(kind, name, Bytes::from(body), refs)
}

fn cluster(name: &str, body: &str) -> Encoded {
    resource(Kind::Cluster, name, body, &[])
}

fn endpoints(name: &str, body: &str) -> Encoded {
    resource(Kind::Endpoints, name, body, &[])
}

fn routes(refs: &[&str]) -> Encoded {
    resource(Kind::Routes, "outbound", &refs.join(","), refs)
}

fn listener(body: &str) -> Encoded {
    resource(Kind::Listener, "outbound", body, &["outbound"])
}

fn snapshot(revision: u64, resources: impl IntoIterator<Item = Encoded>) -> Arc<Snapshot> {
    let mut builder = Snapshot::builder(revision);
    for resource in resources {
        builder.insert(resource);
    }
    Arc::new(builder.build())
}

/// A cluster, its endpoints, each with body `1`.
fn services(names: &[&str]) -> Vec<Encoded> {
    names
        .iter()
        .flat_map(|name| [cluster(name, "1"), endpoints(name, "1")])
        .collect()
}

/// Services, a listener, and a route table over `routed`.
fn mesh(revision: u64, names: &[&str], routed: &[&str]) -> Arc<Snapshot> {
    let mut all = services(names);
    all.extend([listener("1"), routes(routed)]);
    snapshot(revision, all)
}

fn list(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn ask(kind: Kind, names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: kind.type_url().to_owned(),
        resource_names_subscribe: list(names),
        ..Default::default()
    }
}

fn leave(kind: Kind, names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        resource_names_unsubscribe: list(names),
        ..ask(kind, &[])
    }
}

fn claim(kind: Kind, names: &[&str], held: &[&Encoded]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        initial_resource_versions: held
            .iter()
            .map(|resource| (resource.name.clone(), resource.version.clone()))
            .collect(),
        ..ask(kind, names)
    }
}

fn error(message: &str) -> Option<Status> {
    Some(Status {
        code: 13,
        message: message.to_owned(),
        ..Default::default()
    })
}

/// A delta session, with a shorthand for each move of its client.
struct Delta {
    session: Session,
    now_ms: u64,
}

impl Delta {
    fn new(snapshot: Arc<Snapshot>) -> Self {
        let mut session = Session::delta();
        session.set_snapshot(snapshot);
        Self { session, now_ms: 0 }
    }

    /// Asked for everything and acknowledged it.
    fn settled(snapshot: Arc<Snapshot>, names: &[&str]) -> Self {
        let mut delta = Self::new(snapshot);
        delta.send(ask(Kind::Cluster, &["*"]));
        delta.send(ask(Kind::Endpoints, names));
        delta.send(ask(Kind::Listener, &["*"]));
        delta.send(ask(Kind::Routes, &["outbound"]));
        delta.settle();
        delta
    }

    fn send(&mut self, request: DeltaDiscoveryRequest) {
        self.session.on_request(request).unwrap();
    }

    fn push(&mut self, snapshot: Arc<Snapshot>) -> Vec<DeltaDiscoveryResponse> {
        self.session.set_snapshot(snapshot);
        self.batch()
    }

    /// All responses that are due now.
    fn batch(&mut self) -> Vec<DeltaDiscoveryResponse> {
        std::iter::from_fn(|| self.session.poll(self.now_ms))
            .map(|response| response.into_delta().unwrap())
            .collect()
    }

    fn one(&mut self) -> DeltaDiscoveryResponse {
        let mut batch = self.batch();
        assert_eq!(batch.len(), 1, "{}", told(&batch));
        batch.remove(0)
    }

    fn ack(&mut self, response: &DeltaDiscoveryResponse) {
        self.send(DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..Default::default()
        });
    }

    fn ack_all(&mut self, batch: &[DeltaDiscoveryResponse]) {
        batch.iter().for_each(|response| self.ack(response));
    }

    fn nack(&mut self, response: &DeltaDiscoveryResponse, message: &str) {
        self.send(DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: error(message),
            ..Default::default()
        });
    }

    /// Acknowledges until nothing more comes; returns what came, in rounds.
    fn settle(&mut self) -> Vec<String> {
        let mut rounds = Vec::new();
        loop {
            let batch = self.batch();
            if batch.is_empty() {
                return rounds;
            }
            self.ack_all(&batch);
            rounds.push(told(&batch));
            assert!(rounds.len() < 100, "{rounds:?}");
        }
    }

    /// Told for a snapshot, round by round.
    fn rounds(&mut self, snapshot: Arc<Snapshot>) -> Vec<String> {
        self.session.set_snapshot(snapshot);
        self.settle()
    }

    fn acked(&self) -> u64 {
        self.session.progress().acked
    }
}

/// `CDS +a -b | EDS +a`
fn told(batch: &[DeltaDiscoveryResponse]) -> String {
    let parts: Vec<String> = batch.iter().map(told_one).collect();
    parts.join(" | ")
}

fn told_one(response: &DeltaDiscoveryResponse) -> String {
    let kind = Kind::parse(&response.type_url).unwrap();
    let mut text = kind.to_string();
    for resource in &response.resources {
        let any = resource.resource.as_ref().unwrap();
        assert_eq!(any.type_url, response.type_url);
        text += &format!(" +{}", resource.name);
    }
    for name in &response.removed_resources {
        text += &format!(" -{name}");
    }
    text
}

/// A state-of-the-world session, likewise.
struct Sotw {
    session: Session,
    now_ms: u64,
}

impl Sotw {
    fn new(snapshot: Arc<Snapshot>) -> Self {
        let mut session = Session::sotw();
        session.set_snapshot(snapshot);
        Self { session, now_ms: 0 }
    }

    fn settled(snapshot: Arc<Snapshot>, names: &[&str]) -> Self {
        let mut sotw = Self::new(snapshot);
        sotw.ask(Kind::Cluster, &[], "");
        sotw.ask(Kind::Endpoints, names, "");
        sotw.ask(Kind::Listener, &[], "");
        sotw.ask(Kind::Routes, &["outbound"], "");
        sotw.settle(names);
        sotw
    }

    fn ask(&mut self, kind: Kind, names: &[&str], nonce: &str) {
        self.answer(kind, names, nonce, None);
    }

    fn answer(&mut self, kind: Kind, names: &[&str], nonce: &str, error_detail: Option<Status>) {
        self.session
            .on_request(DiscoveryRequest {
                type_url: kind.type_url().to_owned(),
                resource_names: list(names),
                response_nonce: nonce.to_owned(),
                error_detail,
                ..Default::default()
            })
            .unwrap();
    }

    fn batch(&mut self) -> Vec<DiscoveryResponse> {
        std::iter::from_fn(|| self.session.poll(self.now_ms))
            .map(|response| response.into_sotw().unwrap())
            .collect()
    }

    fn one(&mut self) -> DiscoveryResponse {
        let mut batch = self.batch();
        assert_eq!(batch.len(), 1, "{}", whole(&batch));
        batch.remove(0)
    }

    /// Acknowledges, asking for endpoints `names` again.
    fn ack(&mut self, response: &DiscoveryResponse, names: &[&str]) {
        let kind = Kind::parse(&response.type_url).unwrap();
        self.ask(kind, asked(kind, names), &response.nonce);
    }

    fn nack(&mut self, response: &DiscoveryResponse, names: &[&str], message: &str) {
        let kind = Kind::parse(&response.type_url).unwrap();
        self.answer(kind, asked(kind, names), &response.nonce, error(message));
    }

    fn settle(&mut self, names: &[&str]) -> Vec<String> {
        let mut rounds = Vec::new();
        loop {
            let batch = self.batch();
            if batch.is_empty() {
                return rounds;
            }
            batch.iter().for_each(|response| self.ack(response, names));
            rounds.push(whole(&batch));
            assert!(rounds.len() < 100, "{rounds:?}");
        }
    }

    fn rounds(&mut self, snapshot: Arc<Snapshot>, names: &[&str]) -> Vec<String> {
        self.session.set_snapshot(snapshot);
        self.settle(names)
    }
}

fn asked<'a>(kind: Kind, names: &'a [&'a str]) -> &'a [&'a str] {
    match kind {
        Kind::Endpoints | Kind::Secret => names,
        Kind::Routes => &["outbound"],
        Kind::Cluster | Kind::Listener => &[],
    }
}

/// `CDS a b | EDS a`
fn whole(batch: &[DiscoveryResponse]) -> String {
    let parts: Vec<String> = batch.iter().map(whole_one).collect();
    parts.join(" | ")
}

fn whole_one(response: &DiscoveryResponse) -> String {
    let mut text = Kind::parse(&response.type_url).unwrap().to_string();
    for any in &response.resources {
        let body = String::from_utf8(any.value.clone()).unwrap();
        text += &format!(" {}", body.split('=').next().unwrap());
    }
    text
}
