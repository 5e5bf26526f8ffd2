//! The store's keys and the JSON of their values; the one place that knows them.

use std::net::SocketAddr;

use phalanx_model::document::{DocumentId, Kind};
use phalanx_model::instance::{Labels, Protocol, State};
use phalanx_model::{Instance, InstanceId, InstancePort, ServiceName};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub const CONFIG: &str = "config/";
pub const INSTANCES: &str = "instances/";
pub const HEALTH: &str = "health/";
pub const HISTORY: &str = "history/";
/// In the place of a control plane's name: no plane keeps a lease, it is found in an etcd where it keeps its own key alive.
/// No control plane can have this name.
pub const IMPORTED: &str = "!etcd";
/// A change that only some proxies have yet.
pub const CANARY: &str = "canary/current";
/// How the last one ended.
pub const CANARY_LAST: &str = "canary/last";
pub const PLANES: &str = "planes/";
pub const DRAINS: &str = "drains/";
pub const RELEASES: &str = "releases/";
/// Of the certificate authority, which follows its keys itself.
pub const CA: &str = "ca/";
/// Of the session directory, which does the same.
pub const SESSIONS: &str = "sessions/";

/// What a key stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    Document(DocumentId),
    Instance(InstanceId),
    /// Its sequence number.
    History(u64),
    Canary,
    CanaryLast,
    /// How far a Rollout is.
    Rollout(DocumentId),
    /// A control plane that is alive, by its name.
    Plane(String),
    /// What an operator wants of an instance.
    Drain(InstanceId),
    /// That an operator let held instances go.
    Release(ServiceName),
    /// Of an endpoint of a service.
    Health(ServiceName, SocketAddr),
    /// Of a later version, or foreign.
    Other,
}

impl Key {
    pub fn parse(key: &str) -> Self {
        match key {
            CANARY => return Self::Canary,
            CANARY_LAST => return Self::CanaryLast,
            _ => {}
        }
        let mut parts = key.split('/');
        let parts = [
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
        ];
        match parts {
            [
                Some("config"),
                Some(kind),
                Some(namespace),
                Some(name),
                None,
            ] => match Kind::ALL.into_iter().find(|k| k.as_str() == kind) {
                Some(kind) => Self::Document(DocumentId {
                    kind,
                    namespace: namespace.to_owned(),
                    name: name.to_owned(),
                }),
                None => Self::Other,
            },
            [
                Some("instances"),
                Some(namespace),
                Some(service),
                Some(id),
                None,
            ] if !id.is_empty() => Self::Instance(InstanceId {
                service: ServiceName::new(namespace, service),
                id: id.to_owned(),
            }),
            [
                Some("drains"),
                Some(namespace),
                Some(service),
                Some(id),
                None,
            ] if !id.is_empty() => Self::Drain(InstanceId {
                service: ServiceName::new(namespace, service),
                id: id.to_owned(),
            }),
            [Some("rollouts"), Some(namespace), Some(name), None, None] if !name.is_empty() => {
                Self::Rollout(DocumentId {
                    kind: Kind::Rollout,
                    namespace: namespace.to_owned(),
                    name: name.to_owned(),
                })
            }
            [Some("releases"), Some(namespace), Some(service), None, None] => {
                Self::Release(ServiceName::new(namespace, service))
            }
            [Some("planes"), Some(id), None, None, None] if !id.is_empty() => {
                Self::Plane(id.to_owned())
            }
            [Some("history"), Some(sequence), None, None, None] => {
                sequence.parse().map_or(Self::Other, Self::History)
            }
            [
                Some("health"),
                Some(namespace),
                Some(service),
                Some(address),
                None,
            ] => address.parse().map_or(Self::Other, |address| {
                Self::Health(ServiceName::new(namespace, service), address)
            }),
            _ => Self::Other,
        }
    }
}

/// `config/<Kind>/<namespace>/<name>`
pub fn document_key(id: &DocumentId) -> String {
    format!("{CONFIG}{id}")
}

/// `instances/<namespace>/<service>/<id>`
pub fn instance_key(id: &InstanceId) -> String {
    format!("{INSTANCES}{id}")
}

/// `planes/<name>`
pub fn plane_key(id: &str) -> String {
    format!("{PLANES}{id}")
}

/// `releases/<namespace>/<service>`
pub fn release_key(service: &ServiceName) -> String {
    format!("{RELEASES}{service}")
}

/// `drains/<namespace>/<service>/<id>`
pub fn drain_key(id: &InstanceId) -> String {
    format!("{DRAINS}{id}")
}

/// `health/<namespace>/<service>/<ip:port>`
pub fn health_key(service: &ServiceName, address: &SocketAddr) -> String {
    format!("{HEALTH}{service}/{address}")
}

/// `history/<20 digits>`, so that the order of keys is that of time.
pub fn history_key(sequence: u64) -> String {
    format!("{HISTORY}{sequence:020}")
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DocumentRecord {
    /// Unix milliseconds.
    pub created: u64,
    pub updated: u64,
    pub generation: u64,
    pub document: Value,
}

/// One transaction on the configuration; its revision is the key's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HistoryRecord {
    /// Unix milliseconds.
    pub time: u64,
    pub author: String,
    #[serde(default)]
    pub message: String,
    pub changes: Vec<HistoryChange>,
    /// A step of a canary; what it tries is in force at few proxies only, so it is none of `changes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<CanaryStep>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CanaryStep {
    /// The sequence number of the transaction that staged it.
    pub of: u64,
    pub stage: CanaryStage,
    #[serde(default)]
    pub tried: Vec<HistoryChange>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CanaryStage {
    Started,
    Promoted,
    /// Withdrawn from the proxies that had it.
    Back,
}

/// A staged change. The documents under `config/` stay as they are until it is promoted, so that going back is nothing but
/// forgetting this.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CanaryRecord {
    /// Of the history record that started it.
    pub sequence: u64,
    /// Unix milliseconds.
    pub started: u64,
    pub author: String,
    #[serde(default)]
    pub message: String,
    /// How long all of `nodes` have to bear it.
    pub watch_ms: u64,
    /// Share of failed requests, 0 to 1, above that of the others and of before.
    pub max_error_rate: f64,
    #[serde(default)]
    pub max_errors: Option<u64>,
    /// Who gets it first; chosen once, so that every control plane over the store agrees.
    pub nodes: Vec<String>,
    /// How many proxies the change concerned then.
    pub concerned: usize,
    pub changes: Vec<CanaryChange>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CanaryChange {
    /// `<Kind>/<namespace>/<name>`
    pub id: String,
    /// The revision of what it replaces; none: it is new.
    #[serde(default)]
    pub replaces: Option<u64>,
    /// None: deleted.
    pub after: Option<DocumentRecord>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CanaryLast {
    /// As in [`CanaryRecord`].
    pub sequence: u64,
    pub stage: CanaryStage,
    pub reason: String,
    /// Who decided; `phalanx` when nobody did.
    pub author: String,
    /// Unix milliseconds.
    pub time: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistoryChange {
    /// `<Kind>/<namespace>/<name>`
    pub id: String,
    pub before: Option<Value>,
    pub after: Option<Value>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRecord {
    pub epoch: u64,
    pub ttl_ms: u32,
    pub labels: Labels,
    pub ports: Vec<PortRecord>,
    #[serde(default)]
    pub zone: String,
    pub weight: u32,
    #[serde(default)]
    pub proxy_admin: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub mutual_tls: bool,
    /// The control plane that keeps its lease; empty: nobody yet.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub plane: String,
    /// As the instance says; none when it takes traffic. One of `State`'s names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
}

/// A control plane, stored under its lease: when that ends, the key is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaneRecord {
    /// `HOST:PORT` of its admin API.
    pub admin: String,
    /// `HOST:PORT` for data planes.
    pub xds: String,
    /// Unix milliseconds.
    pub started: u64,
    /// Drawn at each start: tells two processes of one name apart.
    pub token: u64,
}

/// What an operator wants of an instance, whatever it says itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainRecord {
    /// Unix milliseconds.
    pub since: u64,
    pub author: String,
    /// `draining` or `drained`.
    pub state: String,
    /// After this long of draining, drained; none: it drains until that is undone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_ms: Option<u64>,
    /// `move` or `release`: what becomes of the sessions that the directory has there by then, before it is drained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handover: Option<String>,
    /// How many of them in a second; each is a client that comes again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reconnects_per_second: Option<u32>,
}

/// What becomes of sessions at the end of a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handover {
    /// To instances that take new ones.
    Move,
    /// To nobody: whoever claims them next.
    Release,
}

/// That an operator let the held instances of a service go; each time it is written counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseRecord {
    /// Unix milliseconds.
    pub time: u64,
    pub author: String,
}

impl Handover {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Move => "move",
            Self::Release => "release",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Self::Move, Self::Release]
            .into_iter()
            .find(|handover| handover.as_str() == text)
    }
}

impl DrainRecord {
    /// None: nothing; its end is the registry's to see.
    pub fn hands_over(&self) -> Option<Handover> {
        Handover::parse(self.handover.as_deref()?)
    }

    /// Draining unless it says more.
    pub fn state(&self) -> State {
        match State::parse(&self.state) {
            Some(State::Drained) => State::Drained,
            _ => State::Draining,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRecord {
    pub name: String,
    pub number: u16,
    pub address: SocketAddr,
    /// As in `appProtocol`, empty for any HTTP.
    pub protocol: String,
}

impl InstanceRecord {
    pub fn new(instance: &Instance, epoch: u64, ttl_ms: u32) -> Self {
        let port = |port: &InstancePort| PortRecord {
            name: port.name.clone(),
            number: port.number,
            address: port.address,
            protocol: port.protocol.as_str().to_owned(),
        };
        Self {
            epoch,
            ttl_ms,
            labels: instance.labels.clone(),
            ports: instance.ports.iter().map(port).collect(),
            zone: instance.zone.clone(),
            weight: instance.weight,
            proxy_admin: instance.proxy_admin.clone(),
            mutual_tls: instance.mutual_tls,
            plane: String::new(),
            state: None,
        }
    }

    #[must_use]
    pub fn of(self, plane: &str, state: State) -> Self {
        Self {
            plane: plane.to_owned(),
            state: (state != State::default()).then(|| state.as_str().to_owned()),
            ..self
        }
    }

    /// A name of a later version counts as not ready.
    pub fn state(&self) -> State {
        match &self.state {
            None => State::default(),
            Some(text) => State::parse(text).unwrap_or(State::NotReady),
        }
    }

    /// # Errors
    /// What is wrong, in words.
    pub fn instance(self, id: InstanceId) -> Result<Instance, String> {
        let port = |port: PortRecord| match Protocol::parse(&port.protocol) {
            Some(protocol) => Ok(InstancePort {
                name: port.name,
                number: port.number,
                address: port.address,
                protocol,
            }),
            None => Err(format!("`{}` is no protocol", port.protocol)),
        };
        let ports = self
            .ports
            .into_iter()
            .map(port)
            .collect::<Result<Vec<_>, _>>()?;
        if ports.is_empty() {
            return Err("it has no port".to_owned());
        }
        let weight = self.weight.clamp(1, WEIGHT_MAX);
        Ok(Instance {
            id,
            labels: self.labels,
            ports,
            zone: self.zone,
            weight,
            proxy_admin: self.proxy_admin,
            mutual_tls: self.mutual_tls,
        })
    }
}

/// Of an instance; Envoy's bound for an endpoint.
pub const WEIGHT_MAX: u32 = 128;
/// Characters kept of a record that is damaged.
pub const UNREADABLE_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_text() {
        let id = DocumentId {
            kind: Kind::HttpRoute,
            namespace: "default".into(),
            name: "battle".into(),
        };
        assert_eq!(Key::parse(&document_key(&id)), Key::Document(id));
        let id = || InstanceId {
            service: ServiceName::new("default", "battle"),
            id: "battle-1".into(),
        };
        assert_eq!(Key::parse(&instance_key(&id())), Key::Instance(id()));
        assert_eq!(Key::parse(&drain_key(&id())), Key::Drain(id()));
        assert_eq!(Key::parse(&plane_key("a-1")), Key::Plane("a-1".into()));
        assert_eq!(history_key(7), "history/00000000000000000007");
        assert_eq!(Key::parse(&history_key(7)), Key::History(7));
    }

    #[test]
    fn foreign_keys_are_no_ones() {
        for key in [
            "",
            "x",
            "config/Service/default",
            "config/Telemetry/default/x",
            "config/Service/a/b/c",
            "history/x",
            "instances/a/b/",
        ] {
            assert_eq!(Key::parse(key), Key::Other, "{key}");
        }
    }
}
