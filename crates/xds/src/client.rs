//! The delta ADS client as a socketless state machine: our sidecar's side of the stream.
//!
//! `connect` opens a stream with what is held already, `on_response` unpacks, the caller applies, `finish` acknowledges or
//! refuses. What is held outlives streams. Names of route tables come from the caller, who alone decodes listeners.
//! On demand ([`Client::set_demand`]) the server sends the clusters and endpoints of the tables asked for, unasked.

mod table;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use phalanx_proto::envoy::config::core::v3::Node;
use phalanx_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource,
};
use phalanx_proto::google::rpc::Status;

use self::table::Table;
use crate::kind::Kind;

/// Resources of one kind that a client holds, at most; a server that sends more gets the stream closed.
pub const HELD_MAX: usize = 10_000;
/// Bytes in the message of one refusal.
pub const ERROR_BYTES_MAX: usize = 4096;
/// Characters of the reason for one resource.
const REASON_CHARS_MAX: usize = 512;
/// gRPC's INVALID_ARGUMENT.
const INVALID_ARGUMENT: i32 = 3;

/// Wildcard for clusters and listeners; endpoints of every held cluster; route tables as the caller says.
#[derive(Debug)]
pub struct Client {
    node: Node,
    tables: [Table; Kind::ALL.len()],
    stream: u64,
    /// The node was not told on this stream yet.
    introduce: bool,
}

/// One response, unpacked: to be applied and then handed to [`Client::finish`] by its token.
#[derive(Debug)]
pub struct Update {
    pub kind: Kind,
    /// Name, version, body (the value of an `Any` of this kind's type); by name, each once, all of them asked for.
    pub upserts: Vec<(String, String, Vec<u8>)>,
    /// Held until now.
    pub removed: Vec<String>,
    pub token: Token,
}

/// Remembers what [`Client::finish`] needs.
#[derive(Debug)]
#[must_use = "without `finish` the server waits for an answer"]
pub struct Token {
    stream: u64,
    kind: Kind,
    nonce: String,
    /// Name, version.
    versions: Vec<(String, String)>,
    removed: Vec<String>,
    /// Name, message: not even unpacked.
    refused: Vec<(String, String)>,
}

impl Token {
    pub fn nonce(&self) -> &str {
        &self.nonce
    }
}

/// Why the stream must be closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    #[error("the server sent resources of type {0:?}, which were not asked for")]
    UnknownType(String),
    #[error("{kind}: the server sent more than {HELD_MAX} resources")]
    TooManyResources { kind: Kind },
}

impl Client {
    /// `node` goes out with the first request of each stream.
    pub fn new(node: Node) -> Self {
        Self {
            node,
            tables: Kind::ALL.map(Table::new),
            stream: 0,
            introduce: true,
        }
    }

    /// A stream was opened: the requests to send first. Answers to earlier streams are void from now on.
    pub fn connect(&mut self) -> Vec<DeltaDiscoveryRequest> {
        self.stream += 1;
        self.introduce = true;
        let mut requests: Vec<_> = self.tables.iter_mut().filter_map(Table::open).collect();
        self.introduce_in(&mut requests);
        requests
    }

    /// Asks for exactly `names` of `kind`, which is Endpoints or Routes; nothing to send if that is so already, or
    /// without a stream. Names no longer asked for are no longer held.
    pub fn subscribe(
        &mut self,
        kind: Kind,
        names: BTreeSet<String>,
    ) -> Option<DeltaDiscoveryRequest> {
        let connected = self.stream > 0;
        let mut request = vec![self.table(kind).subscribe(names, connected)?];
        self.introduce_in(&mut request);
        request.pop()
    }

    /// Asks for more names of `kind`, and for others no more: beside everything, where it has that. Names no longer asked
    /// for are no longer held.
    pub fn change(
        &mut self,
        kind: Kind,
        added: Vec<String>,
        gone: Vec<String>,
    ) -> Option<DeltaDiscoveryRequest> {
        let connected = self.stream > 0;
        let mut request = vec![self.table(kind).change(added, gone, connected)?];
        self.introduce_in(&mut request);
        request.pop()
    }

    /// `on`: endpoints come as the server sees fit, for the clusters that it sends; else by the names of the clusters that
    /// are held, which costs a round trip. Nothing to send if that is so already.
    pub fn set_demand(&mut self, on: bool) -> Option<DeltaDiscoveryRequest> {
        let clusters = || self.tables[Kind::Cluster.index()].held().keys().cloned();
        let names = if on {
            BTreeSet::new()
        } else {
            clusters().collect()
        };
        // Also without a name: a server that has heard of no table would take away what they name.
        self.table(Kind::Routes).set_always(on);
        let connected = self.stream > 0;
        let endpoints = self.table(Kind::Endpoints);
        let mut request = vec![endpoints.set_wildcard(on, names, connected)?];
        self.introduce_in(&mut request);
        request.pop()
    }

    /// Unpacks a response. What cannot even be unpacked is refused by `finish` without the caller's help.
    pub fn on_response(&mut self, response: DeltaDiscoveryResponse) -> Result<Update, ClientError> {
        let unknown = || ClientError::UnknownType(response.type_url.chars().take(256).collect());
        let kind = Kind::parse(&response.type_url).ok_or_else(unknown)?;
        let table = &self.tables[kind.index()];
        let resources = response.resources.iter();
        let fresh = resources.filter(|resource| !table.held().contains_key(&resource.name));
        if table.held().len() + fresh.count() > HELD_MAX {
            return Err(ClientError::TooManyResources { kind });
        }
        let mut token = Token {
            stream: self.stream,
            kind,
            nonce: response.nonce,
            versions: Vec::new(),
            removed: response.removed_resources,
            refused: Vec::new(),
        };
        let mut resources = response.resources;
        resources.retain(|resource| table.wants(&resource.name));
        resources.sort_by(|a, b| a.name.cmp(&b.name));
        let mut upserts: Vec<(String, String, Vec<u8>)> = Vec::with_capacity(resources.len());
        for resource in resources {
            let twice = upserts
                .last()
                .is_some_and(|(last, ..)| *last == resource.name);
            match unpack(kind, resource, twice) {
                Ok(upsert) => upserts.push(upsert),
                Err(refused) => token.refused.push(refused),
            }
        }
        token.versions = upserts
            .iter()
            .map(|(name, version, _)| (name.clone(), version.clone()))
            .collect();
        token.removed.retain(|name| table.held().contains_key(name));
        let removed = token.removed.clone();
        Ok(Update {
            kind,
            upserts,
            removed,
            token,
        })
    }

    /// The update was applied, clusters that were removed with their endpoints, apart from the resources listed with name and message, which keep their old version.
    /// Returns the answer, behind whatever subscription follows from the update.
    pub fn finish(
        &mut self,
        token: Token,
        applied: Result<(), Vec<(String, String)>>,
    ) -> Vec<DeltaDiscoveryRequest> {
        let mut failed = token.refused;
        failed.extend(applied.err().unwrap_or_default());
        let refused: BTreeSet<&str> = failed.iter().map(|(name, _)| name.as_str()).collect();
        let table = self.table(token.kind);
        for (name, version) in token.versions {
            if !refused.contains(name.as_str()) {
                table.hold(name, version);
            }
        }
        for name in &token.removed {
            table.drop(name);
        }
        let mut requests = Vec::new();
        if token.kind == Kind::Cluster {
            for name in &token.removed {
                self.table(Kind::Endpoints).drop(name);
            }
            let table = self.table(token.kind);
            let clusters = table.held().keys().cloned().collect();
            requests.extend(self.subscribe(Kind::Endpoints, clusters));
        }
        if token.stream == self.stream {
            requests.push(DeltaDiscoveryRequest {
                type_url: token.kind.type_url().to_owned(),
                response_nonce: token.nonce,
                error_detail: (!failed.is_empty()).then(|| refusal(&failed)),
                ..Default::default()
            });
        }
        requests
    }

    /// A resource that was refused is in force after all. The server hears of it with the next stream.
    pub fn took(&mut self, kind: Kind, name: String, version: String) {
        self.table(kind).hold(name, version);
    }

    /// A resource that was taken can't be served after all. The server sends it again on the next stream, to be refused.
    pub fn lost(&mut self, kind: Kind, name: &str) {
        self.table(kind).drop(name);
    }

    /// Name and version of every resource of `kind` that is in force, in order.
    pub fn held(&self, kind: Kind) -> impl Iterator<Item = (&str, &str)> {
        let held = self.tables[kind.index()].held().iter();
        held.map(|(name, version)| (name.as_str(), version.as_str()))
    }

    fn table(&mut self, kind: Kind) -> &mut Table {
        &mut self.tables[kind.index()]
    }

    fn introduce_in(&mut self, requests: &mut [DeltaDiscoveryRequest]) {
        if let (true, Some(first)) = (self.introduce, requests.first_mut()) {
            first.node = Some(self.node.clone());
            self.introduce = false;
        }
    }
}

fn unpack(
    kind: Kind,
    resource: Resource,
    twice: bool,
) -> Result<(String, String, Vec<u8>), (String, String)> {
    let name = resource.name;
    match resource.resource {
        _ if twice => Err((name, "occurs twice in one response".to_owned())),
        Some(any) if any.type_url == kind.type_url() => Ok((name, resource.version, any.value)),
        Some(any) => Err((name, format!("is of type {:?}", any.type_url))),
        None => Err((name, "has no content".to_owned())),
    }
}

/// `name: message; name: message`, so that the server finds the offenders by name.
fn refusal(failed: &[(String, String)]) -> Status {
    let mut message = String::new();
    for (name, why) in failed {
        let why: String = why.chars().take(REASON_CHARS_MAX).collect();
        if !message.is_empty() {
            message.push_str("; ");
        }
        if message.len() + name.len() + why.len() > ERROR_BYTES_MAX {
            message.push('…');
            break;
        }
        message.extend([name, ": ", &why]);
    }
    Status {
        code: INVALID_ARGUMENT,
        message,
        ..Default::default()
    }
}
