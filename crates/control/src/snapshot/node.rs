//! Who is on the other end of a stream, as its first request tells.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use phalanx_model::ServiceName;
use phalanx_proto::envoy::config::core::v3 as core;
use prost_types::value::Kind as ValueKind;

/// A data plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub id: String,
    pub service: ServiceName,
    pub version: String,
    pub zone: String,
    pub instance: String,
    /// Of its listener for the application's traffic; none: it gets no listener.
    pub outbound: Option<SocketAddr>,
    /// `phalanx` or `envoy`, with the version if one was told.
    pub agent: String,
    pub tls: NodeTls,
    /// It runs the Gateway that is called like its service.
    pub edge: Option<Edge>,
    /// Where it takes datagrams of its application for a service's port.
    pub udp: Vec<(SocketAddr, ServiceName, u16)>,
}

/// How a data plane runs a Gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edge {
    /// Where it listens, whatever the Gateway's addresses are.
    pub bind: Option<IpAddr>,
    /// Where it keeps certificates, if it can't know that by itself.
    pub certificates_in: String,
    /// Of its pages; an edge registers nowhere else.
    pub admin: Option<SocketAddr>,
}

/// How a data plane takes part in mutual TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeTls {
    /// It has shown a certificate: it can be sent secrets, and clusters that are called with them.
    pub has_identity: bool,
    /// Where a stock Envoy is to take the calls of others.
    pub inbound: Option<SocketAddr>,
    /// The application behind it; a port alone is one on loopback.
    pub app: Option<SocketAddr>,
    /// Proxyless gRPC, with certificate providers in its bootstrap.
    pub has_providers: bool,
}

/// Why a node can't be served. The text goes to the peer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    #[error(
        "the first request of a stream must carry `node` (bootstrap: node.id, node.cluster, node.metadata)"
    )]
    Missing,
    #[error(
        "node.id is empty, longer than {ID_MAX} bytes or has control characters (expected <namespace>/<service>/<instance>)"
    )]
    Id,
    #[error(
        "node `{id}` has no metadata `{key}` (set node.metadata.{key} to a string; `service`, `namespace` and `outbound` say who it is)"
    )]
    Metadata { id: String, key: &'static str },
    #[error("node `{id}`: {reason}")]
    Name { id: String, reason: String },
    #[error(
        "node `{id}`: metadata `outbound` is `{value}`, expected the outbound listener's ip:port or port"
    )]
    Outbound { id: String, value: String },
    #[error(
        "node `{id}`: metadata `inbound` is `{value}`, expected the inbound listener's ip:port or port, and beside it `app`, the application's"
    )]
    Inbound { id: String, value: String },
    #[error(
        "node `{id}`: metadata `udp` has `{value}`, expected at most {UDP_MAX} of LISTEN=SERVICE[.NAMESPACE]:PORT with commas between, LISTEN an ip:port, each once"
    )]
    Udp { id: String, value: String },
    #[error("node `{id}`: metadata `bind` is `{value}`, expected an IP address")]
    Bind { id: String, value: String },
    #[error(
        "node `{id}` is proxyless gRPC (`{agent}`) and does not say whose it is (bootstrap: node.cluster is the caller's own service; node.metadata.namespace its namespace, `default` when left out)"
    )]
    Proxyless { id: String, agent: String },
}

impl Node {
    /// Of another control plane; without a listener, for nothing is sent to it from here.
    pub fn known(
        id: String,
        service: ServiceName,
        version: String,
        instance: String,
        agent: String,
    ) -> Self {
        Self {
            id,
            service,
            version,
            zone: String::new(),
            instance,
            outbound: None,
            agent,
            tls: NodeTls::default(),
            edge: None,
            udp: Vec::new(),
        }
    }

    /// Of an ADS request.
    ///
    /// # Errors
    /// What is missing, in words for the peer.
    pub fn parse(node: Option<&core::Node>) -> Result<Self, NodeError> {
        let node = node.ok_or(NodeError::Missing)?;
        let id = node.id.clone();
        if id.is_empty() || id.len() > ID_MAX || id.chars().any(char::is_control) {
            return Err(NodeError::Id);
        }
        let agent = agent(node);
        let required = |key| {
            text(node, key).ok_or(NodeError::Metadata {
                id: id.clone(),
                key,
            })
        };
        let (namespace, service) = if is_proxyless(&agent) {
            proxyless_names(node).ok_or_else(|| NodeError::Proxyless {
                id: id.clone(),
                agent: agent.clone(),
            })?
        } else {
            let service = text(node, "gateway").map_or_else(|| required("service"), Ok)?;
            (required("namespace")?, service)
        };
        let service = ServiceName::parse(&namespace, &service).map_err(|e| NodeError::Name {
            id: id.clone(),
            reason: e.to_string(),
        })?;
        let outbound = text(node, "outbound");
        let outbound = outbound
            .map(|value| {
                address(&value).ok_or(NodeError::Outbound {
                    id: id.clone(),
                    value,
                })
            })
            .transpose()?;
        let tls = tls(node, &id)?;
        let edge = edge(node, &id)?;
        let udp = udp(node, &id, &service.namespace)?;
        let optional = |key| text(node, key).unwrap_or_default();
        let zone = text(node, "zone")
            .or_else(|| node.locality.as_ref().map(|l| l.zone.clone()))
            .unwrap_or_default();
        Ok(Self {
            service,
            version: optional("version"),
            zone,
            instance: optional("instance"),
            outbound,
            agent,
            tls,
            edge,
            udp,
            id,
        })
    }
}

impl Node {
    /// Whether it is an application that speaks xDS by itself, through gRPC's own library.
    pub fn is_proxyless(&self) -> bool {
        is_proxyless(&self.agent)
    }

    /// Whether it is our own sidecar, which makes its keys itself and opens its sockets by its command line.
    pub fn is_sidecar(&self) -> bool {
        self.agent.starts_with("phalanx")
    }
}

/// What its metadata say; whether it has an identity is the connection's word.
fn tls(node: &core::Node, id: &str) -> Result<NodeTls, NodeError> {
    let wrong = |value: &str| NodeError::Inbound {
        id: id.to_owned(),
        value: value.to_owned(),
    };
    let said = text(node, "inbound");
    let inbound = said
        .as_deref()
        .map(|value| anywhere(value).ok_or_else(|| wrong(value)));
    let app = text(node, "app");
    let app = app
        .as_deref()
        .map(|value| address(value).ok_or_else(|| wrong(value)));
    let fields = node.metadata.as_ref().map(|metadata| &metadata.fields);
    let providers = fields.and_then(|fields| fields.get("certificate_providers")?.kind.as_ref());
    Ok(NodeTls {
        has_identity: false,
        inbound: inbound.transpose()?,
        app: app.transpose()?,
        has_providers: matches!(providers, Some(ValueKind::BoolValue(true))),
    })
}

/// None where it does not say that it is a Gateway's.
fn edge(node: &core::Node, id: &str) -> Result<Option<Edge>, NodeError> {
    if text(node, "gateway").is_none() {
        return Ok(None);
    }
    let bind = text(node, "bind");
    let bind = bind.map(|value| {
        value.parse().map_err(|_| NodeError::Bind {
            id: id.to_owned(),
            value,
        })
    });
    Ok(Some(Edge {
        bind: bind.transpose()?,
        certificates_in: text(node, "certificates_in").unwrap_or_default(),
        admin: text(node, "admin").and_then(|admin| admin.parse().ok()),
    }))
}

/// `127.0.0.1:7000=room:7000,127.0.0.1:7001=voice.media:7000`
fn udp(
    node: &core::Node,
    id: &str,
    namespace: &str,
) -> Result<Vec<(SocketAddr, ServiceName, u16)>, NodeError> {
    let Some(text) = text_of(node, "udp", UDP_LEN_MAX) else {
        return Ok(Vec::new());
    };
    let wrong = |value: &str| NodeError::Udp {
        id: id.to_owned(),
        value: value.to_owned(),
    };
    let one = |text: &str| {
        let (listen, target) = text.split_once('=')?;
        let (host, port) = target.rsplit_once(':')?;
        let (name, namespace) = host.split_once('.').unwrap_or((host, namespace));
        let service = ServiceName::parse(namespace, name).ok()?;
        let port = port.parse().ok().filter(|port| *port > 0)?;
        let listen: SocketAddr = listen.parse().ok()?;
        Some((listen, service, port)).filter(|_| listen.port() > 0)
    };
    let mut udp: Vec<(SocketAddr, ServiceName, u16)> = Vec::new();
    for text in text.split(',').map(str::trim) {
        let found = one(text).ok_or_else(|| wrong(text))?;
        if udp.len() == UDP_MAX || udp.iter().any(|known| known.0 == found.0) {
            return Err(wrong(text));
        }
        udp.push(found);
    }
    Ok(udp)
}

/// A port alone is taken on every address.
fn anywhere(value: &str) -> Option<SocketAddr> {
    let port = || value.parse().ok().filter(|port: &u16| *port > 0);
    let all = || Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port()?));
    value.parse().ok().or_else(all)
}

/// `gRPC C-core`, `gRPC Go`, `gRPC Java`, `gRPC Node Pure JS`, `grpc-go`.
fn is_proxyless(agent: &str) -> bool {
    agent.starts_with("gRPC") || agent.starts_with("grpc-")
}

/// Namespace and service, which a gRPC bootstrap need not say twice.
fn proxyless_names(node: &core::Node) -> Option<(String, String)> {
    let cluster = Some(node.cluster.clone()).filter(|name| !name.is_empty());
    let service = text(node, "service").or(cluster)?;
    let namespace = text(node, "namespace").unwrap_or_else(|| "default".to_owned());
    Some((namespace, service))
}

fn agent(node: &core::Node) -> String {
    use core::node::UserAgentVersionType;
    let version = match &node.user_agent_version_type {
        Some(UserAgentVersionType::UserAgentVersion(version)) => version.clone(),
        Some(UserAgentVersionType::UserAgentBuildVersion(build)) => build
            .version
            .as_ref()
            .map(|v| format!("{}.{}.{}", v.major_number, v.minor_number, v.patch))
            .unwrap_or_default(),
        None => String::new(),
    };
    let agent = format!("{} {version}", node.user_agent_name);
    agent
        .trim()
        .chars()
        .filter(|c| !c.is_control())
        .take(AGENT_MAX)
        .collect()
}

/// Metadata as text; a whole number counts, because YAML writes ports without quotes.
fn text(node: &core::Node, key: &str) -> Option<String> {
    text_of(node, key, VALUE_MAX)
}

fn text_of(node: &core::Node, key: &str, max: usize) -> Option<String> {
    match node.metadata.as_ref()?.fields.get(key)?.kind.as_ref()? {
        ValueKind::StringValue(text) if !text.is_empty() && text.len() <= max => Some(text.clone()),
        ValueKind::NumberValue(number) if number.fract() == 0.0 => Some(format!("{number}")),
        _ => None,
    }
}

fn address(text: &str) -> Option<SocketAddr> {
    let port = || {
        text.parse()
            .ok()
            .map(|port: u16| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port))
    };
    text.parse()
        .ok()
        .or_else(port)
        .filter(|address: &SocketAddr| address.port() > 0)
}

/// Of a node's id.
const ID_MAX: usize = 512;
const AGENT_MAX: usize = 64;
/// Of one metadata value.
const VALUE_MAX: usize = 256;
/// Sockets for datagrams of one node, and the text that names them.
const UDP_MAX: usize = 32;
const UDP_LEN_MAX: usize = 8192;

#[cfg(test)]
mod tests {
    use prost_types::{Struct, Value};

    use super::*;

    fn node(metadata: &[(&str, ValueKind)]) -> core::Node {
        let fields = metadata
            .iter()
            .map(|(key, kind)| {
                (
                    key.to_string(),
                    Value {
                        kind: Some(kind.clone()),
                    },
                )
            })
            .collect();
        core::Node {
            id: "default/match/m1".into(),
            metadata: Some(Struct { fields }),
            ..core::Node::default()
        }
    }

    fn string(text: &str) -> ValueKind {
        ValueKind::StringValue(text.into())
    }

    #[test]
    fn a_bare_outbound_port_means_loopback() {
        for outbound in [
            string("15001"),
            string("127.0.0.1:15001"),
            ValueKind::NumberValue(15001.0),
        ] {
            let node = Node::parse(Some(&node(&[
                ("service", string("match")),
                ("namespace", string("default")),
                ("outbound", outbound),
            ])))
            .unwrap();
            assert_eq!(node.outbound, Some("127.0.0.1:15001".parse().unwrap()));
        }
    }

    #[test]
    fn a_node_that_does_not_say_who_it_is_is_refused_with_a_hint() {
        assert_eq!(Node::parse(None), Err(NodeError::Missing));
        let error = Node::parse(Some(&node(&[("service", string("match"))]))).unwrap_err();
        assert!(
            error.to_string().contains("node.metadata.namespace"),
            "{error}"
        );
        let metadata = [
            ("service", string("match")),
            ("namespace", string("default")),
            ("outbound", string("nowhere")),
        ];
        assert!(matches!(
            Node::parse(Some(&node(&metadata))),
            Err(NodeError::Outbound { .. })
        ));
        let metadata = [
            ("service", string("Match")),
            ("namespace", string("default")),
        ];
        assert!(matches!(
            Node::parse(Some(&node(&metadata))),
            Err(NodeError::Name { .. })
        ));
    }

    #[test]
    fn a_proxyless_client_need_only_name_its_cluster() {
        let with = |cluster: &str, metadata| {
            Node::parse(Some(&core::Node {
                user_agent_name: "gRPC C-core".into(),
                cluster: cluster.into(),
                ..node(metadata)
            }))
        };
        let plain = with("match", &[]).unwrap();
        assert_eq!(plain.service, ServiceName::new("default", "match"));
        assert!(plain.is_proxyless() && plain.outbound.is_none());
        let told = [("namespace", string("eu")), ("service", string("lobby"))];
        let told = with("match", &told).unwrap();
        assert_eq!(told.service, ServiceName::new("eu", "lobby"));
        let error = with("", &[]).unwrap_err();
        assert!(error.to_string().contains("node.cluster"), "{error}");
    }
}
