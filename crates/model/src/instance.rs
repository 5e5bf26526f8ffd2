//! Instances: one running copy of a service, as its sidecar registers it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::name::ServiceName;

pub type Labels = BTreeMap<String, String>;

/// Unique within its service: `<namespace>/<service>/<id>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId {
    pub service: ServiceName,
    pub id: String,
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service, self.id)
    }
}

/// What an instance says of itself. `labels` always hold `service`, `namespace` and `app`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    pub id: InstanceId,
    pub labels: Labels,
    /// At least one.
    pub ports: Vec<InstancePort>,
    /// Empty when unknown.
    pub zone: String,
    /// Relative share of traffic, 1 to 128; 1 by default.
    pub weight: u32,
    /// Where the sidecar's admin listens; empty when it has none.
    pub proxy_admin: String,
    /// Its addresses take mutual TLS: a sidecar with an identity is in front of it.
    pub mutual_tls: bool,
}

impl Instance {
    /// The `version` label, empty when there is none.
    pub fn version(&self) -> &str {
        self.labels.get("version").map_or("", String::as_str)
    }
}

/// Whether an instance wants traffic; that it is alive is another question. In the order of how little it gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    #[default]
    Accepting,
    /// Sessions that it has may stay, new ones go elsewhere.
    Draining,
    /// Alive, but not able to serve: in no endpoint set.
    NotReady,
    /// In no endpoint set, for good.
    Drained,
}

impl State {
    pub const ALL: [Self; 4] = [
        Self::Accepting,
        Self::Draining,
        Self::NotReady,
        Self::Drained,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepting => "accepting",
            Self::Draining => "draining",
            Self::NotReady => "not ready",
            Self::Drained => "drained",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }

    /// Whether callers hear of it at all.
    pub fn is_served(self) -> bool {
        matches!(self, Self::Accepting | Self::Draining)
    }
}

/// One port of the application and where traffic for it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstancePort {
    /// Empty when the application's only port was given without a name.
    pub name: String,
    /// The port the application listens on.
    pub number: u16,
    /// The sidecar's inbound listener, or the application itself where there is no sidecar.
    pub address: SocketAddr,
    pub protocol: Protocol,
}

/// What is spoken on a port (`appProtocol` of a Service).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// HTTP in the version the caller speaks.
    #[default]
    Auto,
    Http1,
    /// HTTP/2 in plain text, by prior knowledge.
    H2c,
    Grpc,
    Tcp,
    /// Datagrams.
    Udp,
}

impl Protocol {
    /// The name in a manifest; `Auto` is written by leaving it out.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "",
            Self::Http1 => "http",
            Self::H2c => "kubernetes.io/h2c",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// Whether requests can be told apart in it.
    pub fn is_http(self) -> bool {
        !matches!(self, Self::Tcp | Self::Udp)
    }

    pub fn parse(text: &str) -> Option<Self> {
        let all = [
            Self::Auto,
            Self::Http1,
            Self::H2c,
            Self::Grpc,
            Self::Tcp,
            Self::Udp,
        ];
        all.into_iter().find(|p| p.as_str() == text)
    }

    /// What a port's name tells where nothing else does: `grpc`, `grpc-web`, `http`, `h2c-x`, `tcp-…`; `redis` and `mysql` are raw TCP, too.
    pub fn guess(port_name: &str) -> Self {
        match port_name.split('-').next().unwrap_or_default() {
            "grpc" => Self::Grpc,
            "h2c" | "http2" => Self::H2c,
            "http" => Self::Http1,
            "tcp" | "redis" | "mysql" => Self::Tcp,
            _ => Self::Auto,
        }
    }
}

/// Whether an endpoint may be there. Link-local is none: what answers there is the machine's own business (the metadata of a
/// cloud at 169.254.169.254), and nobody else can reach it.
pub fn is_callable(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            !ip.is_unspecified() && !ip.is_multicast() && !ip.is_link_local() && !ip.is_broadcast()
        }
        IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_called_at_an_address_of_no_host_or_of_the_machines_own_link() {
        let text = "10.0.0.1 127.0.0.1 8.8.8.8 fd00::1 ::1 2001:db8::1 ::ffff:10.0.0.1";
        for good in text.split(' ') {
            assert!(is_callable(good.parse().unwrap()), "{good}");
        }
        let text = "0.0.0.0 224.0.0.1 255.255.255.255 169.254.169.254 :: ff02::1 fe80::1 ::ffff:169.254.169.254 ::ffff:0.0.0.0";
        for bad in text.split(' ') {
            assert!(!is_callable(bad.parse().unwrap()), "{bad}");
        }
    }
}
