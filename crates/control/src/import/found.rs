//! What stands under `/services/`, read leniently: a key says who and where, a value may say more. Pure.
//!
//! Three habits are understood: the bare key `<service>/<ip:port>` with any value, the same with a JSON object that has
//! `weight`, `version`, `zone` or `labels`, and etcd's own naming (`{"Op":0,"Addr":"…","Metadata":{…}}`).

use std::net::SocketAddr;

use phalanx_model::instance::{InstancePort, Labels, Protocol, is_callable};
use phalanx_model::name::check_label;
use phalanx_model::{Instance, InstanceId, ServiceName};
use serde_json::Value;

use crate::world::record::WEIGHT_MAX;

/// The port of a service that nobody declared: what a name without a port means. Where its instances really listen is
/// theirs, and often different on each.
pub const PORT: u16 = 80;
/// More of a value is not looked at.
const VALUE_BYTES_MAX: usize = 64 << 10;
const LABELS_MAX: usize = 32;
const LABEL_BYTES_MAX: usize = 63;

/// An instance, or why it is none. The key is without the prefix.
pub fn read(key: &str, value: &[u8], namespace: &str) -> Result<Instance, String> {
    let Some((service, rest)) = key.split_once('/') else {
        return Err("it is not <service>/<ip:port>".into());
    };
    check_label(service).map_err(|error| format!("its service: {error}"))?;
    let extra = Extra::read(value);
    let address = match &extra.address {
        Some(text) => address(text)?,
        None => address(rest.rsplit('/').next().unwrap_or_default())?,
    };
    let labels = extra.labels(service, namespace);
    Ok(Instance {
        id: InstanceId {
            service: ServiceName::new(namespace, service),
            id: address.to_string(),
        },
        labels,
        ports: vec![InstancePort {
            name: String::new(),
            number: PORT,
            address,
            protocol: Protocol::Auto,
        }],
        zone: extra.text("zone").unwrap_or_default(),
        weight: extra.weight().clamp(1, WEIGHT_MAX),
        proxy_admin: String::new(),
        mutual_tls: false,
    })
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let shown: String = text.chars().take(64).collect();
    let Ok(address) = text.parse::<SocketAddr>() else {
        let is_named = text
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        return Err(match is_named {
            true => format!("`{shown}` has a name as its host, and only IP addresses are taken"),
            false => format!("`{shown}` is no ip:port"),
        });
    };
    // An address that is only one on some interface is nobody else's.
    let is_scoped = matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0);
    if !is_callable(address.ip()) || address.port() == 0 || is_scoped {
        return Err(format!("`{shown}` is no address that anybody could call"));
    }
    Ok(address)
}

/// What the value says beside.
struct Extra {
    address: Option<String>,
    /// Where fields are looked for, in this order.
    objects: Vec<Value>,
}

impl Extra {
    fn read(value: &[u8]) -> Extra {
        let is_small = value.len() <= VALUE_BYTES_MAX;
        let object = Some(value).filter(|_| is_small);
        let object: Option<Value> = object.and_then(|value| serde_json::from_slice(value).ok());
        let Some(Value::Object(mut object)) = object else {
            return Extra {
                address: None,
                objects: Vec::new(),
            };
        };
        let address = object
            .get("Addr")
            .and_then(Value::as_str)
            .map(str::to_owned);
        let metadata = object.remove("Metadata").filter(Value::is_object);
        let objects = std::iter::once(Value::Object(object)).chain(metadata);
        Extra {
            address,
            objects: objects.collect(),
        }
    }

    fn field(&self, name: &str) -> Option<&Value> {
        self.objects.iter().find_map(|object| object.get(name))
    }

    /// Also of a number, as versions are written.
    fn text(&self, name: &str) -> Option<String> {
        let text = match self.field(name)? {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            _ => return None,
        };
        is_label_text(&text).then_some(text)
    }

    fn weight(&self) -> u32 {
        let number = match self.field("weight") {
            Some(Value::Number(number)) => number.as_f64(),
            Some(Value::String(text)) => text.parse().ok(),
            _ => None,
        };
        // Of a float, `as` saturates; not a number becomes 0, and that 1.
        number.unwrap_or(1.0).round() as u32
    }

    fn labels(&self, service: &str, namespace: &str) -> Labels {
        let mut labels = Labels::new();
        if let Some(Value::Object(object)) = self.field("labels") {
            let texts = object
                .iter()
                .filter_map(|(key, value)| Some((key, value.as_str()?)));
            let fitting = texts.filter(|(key, value)| is_label_text(key) && is_label_text(value));
            let few = fitting.take(LABELS_MAX);
            labels.extend(few.map(|(key, value)| (key.clone(), value.to_owned())));
        }
        if let Some(version) = self.text("version") {
            labels.insert("version".into(), version);
        }
        labels
            .entry("app".into())
            .or_insert_with(|| service.to_owned());
        labels.insert("service".into(), service.to_owned());
        labels.insert("namespace".into(), namespace.to_owned());
        labels
    }
}

fn is_label_text(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    !text.is_empty() && text.len() <= LABEL_BYTES_MAX && text.chars().all(is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(key: &str, value: &str) -> Instance {
        read(key, value.as_bytes(), "default").unwrap()
    }

    #[test]
    fn the_key_alone_is_enough() {
        for value in ["", "10.0.0.1:9", "{", "null", "[1]", "\u{1}garbage"] {
            let instance = found("battle/10.0.0.1:8080", value);
            assert_eq!(instance.id.to_string(), "default/battle/10.0.0.1:8080");
            assert_eq!(
                (instance.weight, instance.zone.as_str(), instance.version()),
                (1, "", "")
            );
            assert_eq!(instance.ports[0].address.to_string(), "10.0.0.1:8080");
            assert_eq!(
                (instance.ports[0].number, instance.ports[0].protocol),
                (80, Protocol::Auto)
            );
            assert_eq!(instance.labels["app"], "battle");
        }
        assert_eq!(found("battle/[fd00::1]:80", "").id.id, "[fd00::1]:80");
        assert_eq!(
            found("battle/dc1/node7/10.0.0.1:8080", "").id.id,
            "10.0.0.1:8080"
        );
    }

    #[test]
    fn a_json_value_says_weight_version_zone_and_labels() {
        let value = r#"{"weight":"7","version":1.2,"zone":"eu-1","labels":{"tier":"gold","bad key":"x","service":"forged","n":3}}"#;
        let instance = found("battle/10.0.0.1:8080", value);
        assert_eq!(
            (instance.weight, instance.zone.as_str(), instance.version()),
            (7, "eu-1", "1.2")
        );
        let labels: Vec<_> = instance
            .labels
            .iter()
            .map(|(k, v)| format!("{k}={v}"))
            .collect();
        assert_eq!(
            labels,
            [
                "app=battle",
                "namespace=default",
                "service=battle",
                "tier=gold",
                "version=1.2"
            ]
        );
        for (weight, clamped) in [("0", 1), ("-5", 1), ("1e9", 128), ("null", 1), ("2.6", 3)] {
            assert_eq!(
                found("a/1.1.1.1:1", &format!("{{\"weight\":{weight}}}")).weight,
                clamped
            );
        }
    }

    #[test]
    fn etcds_own_naming_is_understood() {
        let value = r#"{"Op":0,"Addr":"10.0.0.2:9000","Metadata":{"weight":3,"version":"v2"}}"#;
        let instance = found("battle/7587869f1a2b", value);
        assert_eq!(
            (instance.id.id.as_str(), instance.weight, instance.version()),
            ("10.0.0.2:9000", 3, "v2")
        );
        assert_eq!(
            found(
                "battle/x",
                r#"{"Op":0,"Addr":"10.0.0.2:9000","Metadata":null}"#
            )
            .weight,
            1
        );
    }

    #[test]
    fn what_is_none_is_said_and_nothing_panics() {
        for (key, value, reason) in [
            ("", "", "not <service>"),
            ("battle", "", "not <service>"),
            ("Battle/10.0.0.1:1", "", "no DNS label"),
            ("/10.0.0.1:1", "", "no DNS label"),
            ("battle/", "", "no ip:port"),
            ("battle/10.0.0.1", "", "no ip:port"),
            ("battle/10.0.0.1:99999", "", "no ip:port"),
            ("battle/battle-7.local:8080", "", "only IP addresses"),
            ("battle/0.0.0.0:80", "", "anybody could call"),
            ("battle/10.0.0.1:0", "", "anybody could call"),
            ("battle/169.254.169.254:80", "", "anybody could call"),
            (
                "battle/[::ffff:169.254.169.254]:80",
                "",
                "anybody could call",
            ),
            ("battle/[fe80::1%2]:80", "", "anybody could call"),
            ("battle/[fd00::1%2]:80", "", "anybody could call"),
            ("battle/x", r#"{"Addr":"somewhere"}"#, "no ip:port"),
            ("battle/\u{fffd}\u{1f980}", "", "no ip:port"),
        ] {
            let error = read(key, value.as_bytes(), "default").unwrap_err();
            assert!(error.contains(reason), "{key}: {error}");
        }
    }
}
