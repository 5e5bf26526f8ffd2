//! Who we are, as the control plane is told with the first request of each stream.

use std::net::{IpAddr, SocketAddr};

use phalanx_model::{Instance, ServiceName};
use phalanx_proto::envoy::config::core::v3::node::UserAgentVersionType;
use phalanx_proto::envoy::config::core::v3::{Locality, Node};
use prost_types::value::Kind;
use prost_types::{Struct, Value};

/// Runs the Gateway that is called like its service; `bind`: where it listens, whatever that says.
pub fn edge_node(instance: &Instance, bind: Option<IpAddr>) -> Node {
    let mut node = node(instance, SocketAddr::from(([127, 0, 0, 1], 1)));
    let text = |text: String| Value {
        kind: Some(Kind::StringValue(text)),
    };
    if let Some(metadata) = &mut node.metadata {
        let fields = &mut metadata.fields;
        // It has no application that calls, and wants all that its Gateway leads to.
        fields.remove("outbound");
        fields.remove("demand");
        fields.insert("gateway".to_owned(), text(instance.id.service.name.clone()));
        fields.insert("admin".to_owned(), text(instance.proxy_admin.clone()));
        if let Some(bind) = bind {
            fields.insert("bind".to_owned(), text(bind.to_string()));
        }
    }
    node
}

/// `outbound` is where our listener for the application's own calls is; the control plane sends a listener for it.
pub fn node(instance: &Instance, outbound: SocketAddr) -> Node {
    let service = &instance.id.service;
    let metadata = [
        ("service", service.name.clone()),
        ("namespace", service.namespace.clone()),
        ("version", instance.version().to_owned()),
        ("zone", instance.zone.clone()),
        ("instance", instance.id.id.clone()),
        ("outbound", outbound.to_string()),
    ];
    let text = |text| Value {
        kind: Some(Kind::StringValue(text)),
    };
    // Only what is used, asked for by host; a control plane that doesn't know it sends everything.
    let demand = Value {
        kind: Some(Kind::BoolValue(true)),
    };
    let words = metadata.map(|(key, value)| (key.to_owned(), text(value)));
    let fields = words.into_iter().chain([("demand".to_owned(), demand)]);
    Node {
        id: instance.id.to_string(),
        cluster: service.name.clone(),
        metadata: Some(Struct {
            fields: fields.collect(),
        }),
        locality: Some(Locality {
            zone: instance.zone.clone(),
            ..Locality::default()
        }),
        user_agent_name: "phalanx".to_owned(),
        user_agent_version_type: Some(UserAgentVersionType::UserAgentVersion(
            env!("CARGO_PKG_VERSION").to_owned(),
        )),
        ..Node::default()
    }
}

/// With the sockets where it takes datagrams for a service's port; the control plane sends a listener for each.
pub fn with_udp(mut node: Node, udp: &[(SocketAddr, ServiceName, u16)]) -> Node {
    let one = |(listen, service, port): &(SocketAddr, ServiceName, u16)| {
        format!("{listen}={}.{}:{port}", service.name, service.namespace)
    };
    let words: Vec<String> = udp.iter().map(one).collect();
    if let Some(metadata) = node.metadata.as_mut().filter(|_| !words.is_empty()) {
        let value = Value {
            kind: Some(Kind::StringValue(words.join(","))),
        };
        metadata.fields.insert("udp".to_owned(), value);
    }
    node
}
