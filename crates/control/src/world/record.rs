//! The store's keys and the JSON of their values; the one place that knows them.

use std::net::SocketAddr;

use phalanx_model::document::{DocumentId, Kind};
use phalanx_model::instance::{Labels, Protocol};
use phalanx_model::{Instance, InstanceId, InstancePort, ServiceName};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub const CONFIG: &str = "config/";
pub const INSTANCES: &str = "instances/";
pub const HISTORY: &str = "history/";

/// What a key stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    Document(DocumentId),
    Instance(InstanceId),
    /// Its sequence number.
    History(u64),
    /// Of a later version, or foreign.
    Other,
}

impl Key {
    pub fn parse(key: &str) -> Self {
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
            [Some("history"), Some(sequence), None, None, None] => {
                sequence.parse().map_or(Self::Other, Self::History)
            }
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistoryRecord {
    /// Unix milliseconds.
    pub time: u64,
    pub author: String,
    #[serde(default)]
    pub message: String,
    pub changes: Vec<HistoryChange>,
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
        let id = InstanceId {
            service: ServiceName::new("default", "battle"),
            id: "battle-1".into(),
        };
        assert_eq!(Key::parse(&instance_key(&id)), Key::Instance(id));
        assert_eq!(history_key(7), "history/00000000000000000007");
        assert_eq!(Key::parse(&history_key(7)), Key::History(7));
    }

    #[test]
    fn foreign_keys_are_no_ones() {
        for key in [
            "",
            "x",
            "config/Service/default",
            "config/Gateway/default/x",
            "config/Service/a/b/c",
            "history/x",
            "instances/a/b/",
        ] {
            assert_eq!(Key::parse(key), Key::Other, "{key}");
        }
    }
}
