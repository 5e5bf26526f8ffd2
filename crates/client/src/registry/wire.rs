//! Instances as they travel: model ⇄ protobuf, checked on the way in. Clients and the control plane use the same two
//! functions, so that both refuse the same.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use phalanx_model::instance::{Protocol, State};
use phalanx_model::name::NameError;
use phalanx_model::resource::udp::{TOKEN, token};
use phalanx_model::{Instance, InstanceId, InstancePort, ServiceName};
use phalanx_proto::phalanx::registry::v1 as wire;

pub const PORTS_MAX: usize = 32;
pub const LABELS_MAX: usize = 64;
/// Of an id, a label's name or value, a zone.
pub const TEXT_MAX: usize = 253;
pub const WEIGHT_MAX: u32 = 128;
/// Of all labels of an instance together, names and values.
pub const LABEL_BYTES_MAX: usize = 4096;

pub fn to_wire(instance: &Instance) -> wire::Instance {
    let ports = instance.ports.iter().map(|port| wire::Port {
        name: port.name.clone(),
        address: port.address.to_string(),
        number: port.number.into(),
        protocol: port.protocol.as_str().to_owned(),
    });
    wire::Instance {
        id: instance.id.id.clone(),
        namespace: instance.id.service.namespace.clone(),
        service: instance.id.service.name.clone(),
        labels: instance.labels.clone(),
        ports: ports.collect(),
        zone: instance.zone.clone(),
        weight: instance.weight,
        proxy_admin: instance.proxy_admin.clone(),
        mutual_tls: instance.mutual_tls,
        state: wire::State::Accepting.into(),
    }
}

pub fn state_to_wire(state: State) -> wire::State {
    match state {
        State::Accepting => wire::State::Accepting,
        State::Draining => wire::State::Draining,
        State::NotReady => wire::State::NotReady,
        State::Drained => wire::State::Drained,
    }
}

/// A state that a later version may know counts as not ready: nothing is sent where we don't know whether it is wanted.
pub fn state_from_wire(state: i32) -> State {
    match wire::State::try_from(state) {
        Ok(wire::State::Accepting) => State::Accepting,
        Ok(wire::State::Draining) => State::Draining,
        Ok(wire::State::Drained) => State::Drained,
        Ok(wire::State::NotReady) | Err(_) => State::NotReady,
    }
}

/// Checks everything, fills in what has a default: the labels `service`, `namespace` and `app`, weight 1, a zone from the
/// label `zone`.
///
/// # Errors
/// [`InvalidInstance`] names the field and what it holds.
pub fn from_wire(instance: wire::Instance) -> Result<Instance, InvalidInstance> {
    let wire::Instance {
        id,
        namespace,
        service,
        mut labels,
        ports,
        zone,
        weight,
        proxy_admin,
        mutual_tls,
        state: _,
    } = instance;
    let id = id_from_wire(&namespace, &service, &id)?;
    for (key, expected) in [("service", &service), ("namespace", &namespace)] {
        let value = labels.entry(key.into()).or_insert_with(|| expected.clone());
        if value != expected {
            return Err(InvalidInstance::Label {
                key: key.into(),
                value: value.clone(),
            });
        }
    }
    labels.entry("app".into()).or_insert(service);
    if labels.len() > LABELS_MAX {
        return Err(InvalidInstance::Count {
            what: "labels",
            count: labels.len(),
        });
    }
    let label_bytes: usize = labels
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum();
    if label_bytes > LABEL_BYTES_MAX {
        return Err(InvalidInstance::LabelBytes(label_bytes));
    }
    if let Some((key, value)) = labels
        .iter()
        .find(|(key, value)| key.is_empty() || !plain(key) || !plain(value))
    {
        return Err(InvalidInstance::Label {
            key: key.clone(),
            value: value.clone(),
        });
    }
    if let Some(value) = labels.get(TOKEN).filter(|value| token(value).is_none()) {
        return Err(InvalidInstance::Token(value.clone()));
    }
    let zone = if zone.is_empty() {
        labels.get("zone").cloned().unwrap_or_default()
    } else {
        zone
    };
    if !plain(&zone) {
        return Err(InvalidInstance::Text {
            field: "zone",
            text: zone,
        });
    }
    let weight = weight.max(1);
    if weight > WEIGHT_MAX {
        return Err(InvalidInstance::Weight(weight));
    }
    if !proxy_admin.is_empty() && proxy_admin.parse::<SocketAddr>().is_err() {
        return Err(InvalidInstance::Address {
            field: "proxy_admin",
            text: proxy_admin,
        });
    }
    Ok(Instance {
        id,
        labels,
        ports: ports_from_wire(ports)?,
        zone,
        weight,
        proxy_admin,
        mutual_tls,
    })
}

/// Checks the three parts of an instance's key.
///
/// # Errors
/// [`InvalidInstance`] names the part.
pub fn id_from_wire(
    namespace: &str,
    service: &str,
    id: &str,
) -> Result<InstanceId, InvalidInstance> {
    let service = ServiceName::parse(namespace, service)?;
    if id.is_empty() || !plain(id) || id.contains('/') {
        return Err(InvalidInstance::Text {
            field: "id",
            text: id.to_owned(),
        });
    }
    Ok(InstanceId {
        service,
        id: id.to_owned(),
    })
}

fn ports_from_wire(ports: Vec<wire::Port>) -> Result<Vec<InstancePort>, InvalidInstance> {
    if ports.is_empty() || ports.len() > PORTS_MAX {
        return Err(InvalidInstance::Count {
            what: "ports",
            count: ports.len(),
        });
    }
    let single = ports.len() == 1;
    let mut seen = BTreeSet::new();
    let mut checked = Vec::with_capacity(ports.len());
    for port in ports {
        let port = port_from_wire(port)?;
        if port.name.is_empty() && !single {
            return Err(InvalidInstance::Text {
                field: "ports.name",
                text: port.name,
            });
        }
        if !seen.insert(port.name.clone()) {
            return Err(InvalidInstance::Twice(port.name));
        }
        checked.push(port);
    }
    Ok(checked)
}

fn port_from_wire(port: wire::Port) -> Result<InstancePort, InvalidInstance> {
    let wire::Port {
        name,
        address,
        number,
        protocol,
    } = port;
    if !name.is_empty() {
        phalanx_model::name::check_label(&name)?;
    }
    let number = u16::try_from(number)
        .ok()
        .filter(|n| *n > 0)
        .ok_or(InvalidInstance::Port(number))?;
    let parsed = address.parse::<SocketAddr>().ok();
    let usable = |a: &SocketAddr| a.port() > 0 && phalanx_model::instance::is_callable(a.ip());
    let Some(address) = parsed.filter(usable) else {
        return Err(InvalidInstance::Address {
            field: "ports.address",
            text: address,
        });
    };
    let Some(protocol) = Protocol::parse(&protocol) else {
        return Err(InvalidInstance::Text {
            field: "ports.protocol",
            text: protocol,
        });
    };
    Ok(InstancePort {
        name,
        number,
        address,
        protocol,
    })
}

/// Short, and nothing that would break a line or a table.
fn plain(text: &str) -> bool {
    text.len() <= TEXT_MAX && !text.chars().any(char::is_control)
}

/// What of an instance can't be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidInstance {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("`{text}` is no valid {field}")]
    Text { field: &'static str, text: String },
    #[error("label {key}=`{value}` is not allowed here")]
    Label { key: String, value: String },
    #[error("label {TOKEN}=`{0}` is no token in hex (two digits for each byte)")]
    Token(String),
    #[error("{count} {what} are not allowed (1 to {PORTS_MAX} ports, at most {LABELS_MAX} labels)")]
    Count { what: &'static str, count: usize },
    #[error("labels of {0} bytes in all are not allowed (at most {LABEL_BYTES_MAX})")]
    LabelBytes(usize),
    #[error("port name `{0}` is given twice")]
    Twice(String),
    #[error("{0} is no port number")]
    Port(u32),
    #[error("{field} `{text}` is no address that others can connect to (IP:PORT)")]
    Address { field: &'static str, text: String },
    #[error("weight {0} is over {WEIGHT_MAX}")]
    Weight(u32),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Instance {
        Instance {
            id: InstanceId {
                service: ServiceName::new("default", "battle"),
                id: "10-0-0-7-15006".into(),
            },
            labels: [
                ("service", "battle"),
                ("namespace", "default"),
                ("app", "battle"),
                ("version", "v1"),
                ("zone", "az1"),
            ]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into(),
            ports: vec![
                InstancePort {
                    name: "grpc".into(),
                    number: 9000,
                    address: "10.0.0.7:15006".parse().unwrap(),
                    protocol: Protocol::Grpc,
                },
                InstancePort {
                    name: "http".into(),
                    number: 8080,
                    address: "[fd00::7]:15006".parse().unwrap(),
                    protocol: Protocol::Auto,
                },
            ],
            zone: "az1".into(),
            weight: 100,
            proxy_admin: "10.0.0.7:15000".into(),
            mutual_tls: true,
        }
    }

    #[test]
    fn an_instance_survives_the_wire() {
        assert_eq!(from_wire(to_wire(&sample())), Ok(sample()));
    }

    #[test]
    fn defaults_are_filled_in() {
        let mut bare = to_wire(&sample());
        bare.labels = [("zone".to_owned(), "az2".to_owned())].into();
        (bare.zone, bare.weight, bare.proxy_admin) = (String::new(), 0, String::new());
        bare.ports.truncate(1);
        bare.ports[0].name.clear();
        let instance = from_wire(bare).unwrap();
        assert_eq!((instance.zone.as_str(), instance.weight), ("az2", 1));
        for (key, value) in [
            ("service", "battle"),
            ("namespace", "default"),
            ("app", "battle"),
        ] {
            assert_eq!(instance.labels[key], value);
        }
    }

    #[test]
    fn what_cannot_be_used_is_refused_by_field() {
        type Change = fn(&mut wire::Instance);
        let cases: &[(&str, Change)] = &[
            ("`A_` is no DNS label", |i| i.service = "A_".into()),
            ("`` is no DNS label", |i| i.namespace.clear()),
            ("`` is no valid id", |i| i.id.clear()),
            ("`a/b` is no valid id", |i| i.id = "a/b".into()),
            ("label service=`other`", |i| {
                drop(i.labels.insert("service".into(), "other".into()))
            }),
            ("label x=`a\nb`", |i| {
                drop(i.labels.insert("x".into(), "a\nb".into()))
            }),
            ("67 labels", |i| {
                i.labels
                    .extend((0..62).map(|n| (format!("l{n}"), String::new())))
            }),
            ("labels of 5104 bytes", |i| {
                i.labels
                    .extend((0..20).map(|n| (format!("l{n}"), "x".repeat(250))))
            }),
            ("1000 ports", |i| {
                i.ports = vec![wire::Port::default(); 1000]
            }),
            ("0 ports", |i| i.ports.clear()),
            ("port name `grpc` is given twice", |i| {
                i.ports[1].name = "grpc".into()
            }),
            ("`` is no valid ports.name", |i| i.ports[1].name.clear()),
            ("65536 is no port number", |i| i.ports[0].number = 65536),
            ("0 is no port number", |i| i.ports[0].number = 0),
            ("ports.address `169.254.169.254:80`", |i| {
                i.ports[0].address = "169.254.169.254:80".into()
            }),
            ("ports.address `0.0.0.0:15006`", |i| {
                i.ports[0].address = "0.0.0.0:15006".into()
            }),
            ("ports.address `10.0.0.7:0`", |i| {
                i.ports[0].address = "10.0.0.7:0".into()
            }),
            ("ports.address `battle:80`", |i| {
                i.ports[0].address = "battle:80".into()
            }),
            ("`thrift` is no valid ports.protocol", |i| {
                i.ports[0].protocol = "thrift".into()
            }),
            ("weight 129 is over 128", |i| i.weight = 129),
            ("proxy_admin `x`", |i| i.proxy_admin = "x".into()),
        ];
        for (message, change) in cases {
            let mut instance = to_wire(&sample());
            change(&mut instance);
            let error = from_wire(instance).expect_err(message).to_string();
            assert!(error.contains(message), "{error} lacks {message}");
        }
    }
}
