//! What a sidecar is told at its start. Defaults stand here once; the command line prints them.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use phalanx_model::name::{NameError, check_label};
use phalanx_model::resource::Probe;
use phalanx_model::resource::udp::{TOKEN, token};
use phalanx_model::{Labels, ServiceName};
use tokio::net::{UdpSocket, lookup_host};

mod correlate;
mod identity;
mod intercept;
mod log;

pub use correlate::{Correlate, CorrelateMode, LINGER};
pub use identity::{IdentityConfig, Proof, Source, TRUST_DOMAIN};
pub use intercept::{
    INTERCEPT_INBOUND, INTERCEPT_OUTBOUND, InterceptConfig, OutboundPolicy, Prefix,
};
pub use log::{AccessLogConfig, LogPolicy, Sample, Target};

/// Sockets for datagrams of one sidecar: as many as the control plane takes.
const UDP_MAX: usize = 32;
pub const INBOUND: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 15006);
pub const OUTBOUND: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15001);
pub const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15000);
pub const CONTROL: &str = "127.0.0.1:15010";
/// Of the registration; a third of it is the heartbeat.
pub const TTL: Duration = Duration::from_secs(30);
/// How long a host that was called is kept after its last use.
pub const UNUSED: Duration = Duration::from_secs(600);
/// How long requests in flight may take after SIGTERM.
pub const DRAIN: Duration = Duration::from_secs(30);
/// How long streams may go on in a process that was replaced.
pub const UPGRADE_DRAIN: Duration = Duration::from_secs(600);
/// How long a process may take to get ready to replace another.
pub const UPGRADE_WAIT: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub service: ServiceName,
    /// Unique within the service and the same after a restart; none: made of the advertised address.
    pub instance: Option<String>,
    /// Name and address of each port of the application; the name of an only one may be empty. None at all: a sidecar
    /// for outbound traffic only, which registers nothing.
    pub apps: Vec<(String, SocketAddr)>,
    /// The same of its ports for datagrams, with names of their own among all; what comes there comes past the sidecar.
    pub udp_apps: Vec<(String, SocketAddr)>,
    pub labels: Labels,
    pub inbound: SocketAddr,
    pub outbound: SocketAddr,
    pub admin: SocketAddr,
    /// Listeners for raw TCP: where, to which service, to which of its ports.
    pub tcp: Vec<(SocketAddr, ServiceName, u16)>,
    /// Sockets for datagrams, likewise; the control plane says what follows.
    pub udp: Vec<(SocketAddr, ServiceName, u16)>,
    /// How the application is asked whether it is ready; none: it is when it accepts connections.
    pub ready: Option<Probe>,
    /// `HOST:PORT` of the control plane, or of several over one store, separated by commas.
    pub control: String,
    /// What is registered as the inbound listener's address; none: see [`Config::advertised`].
    pub advertise: Option<SocketAddr>,
    /// Threads that carry traffic.
    pub workers: usize,
    pub drain: Duration,
    pub ttl: Duration,
    /// How long a host is held that nobody calls any more.
    pub unused: Duration,
    /// Whether the application's calls get the colour and the trace that it does not pass on.
    pub correlate: Correlate,
    /// None: no request is logged.
    pub access_log: Option<AccessLogConfig>,
    /// None: nothing is encrypted, and nobody knows for sure who is who.
    pub identity: Option<IdentityConfig>,
    /// None: it can't be replaced while it serves.
    pub upgrade: Option<UpgradeConfig>,
    /// None: the application and its callers come to us by themselves.
    pub intercept: Option<InterceptConfig>,
    /// It is no application's sidecar, but runs the Gateway that is called like its service.
    pub gateway: Option<GatewayConfig>,
}

/// How a Gateway is run here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GatewayConfig {
    /// Where to listen; none: where the Gateway says.
    pub bind: Option<IpAddr>,
    /// Certificates, as [`crate::edge::TlsDir`] reads them.
    pub tls_dir: Option<PathBuf>,
}

/// How a sidecar is replaced by another process while it serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpgradeConfig {
    /// A Unix socket: whoever serves listens there, whoever starts asks there first.
    pub socket: PathBuf,
    /// How long streams may go on in the process that was replaced.
    pub drain: Duration,
    /// How long a process may take to get ready to replace another.
    pub wait: Duration,
}

impl UpgradeConfig {
    /// With every default.
    pub fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            drain: UPGRADE_DRAIN,
            wait: UPGRADE_WAIT,
        }
    }
}

impl Config {
    /// With every default.
    pub fn new(service: ServiceName, apps: Vec<(String, SocketAddr)>) -> Self {
        Self {
            service,
            instance: None,
            apps,
            udp_apps: Vec::new(),
            labels: Labels::new(),
            inbound: INBOUND,
            outbound: OUTBOUND,
            admin: ADMIN,
            tcp: Vec::new(),
            udp: Vec::new(),
            ready: None,
            control: CONTROL.to_owned(),
            advertise: None,
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            drain: DRAIN,
            ttl: TTL,
            unused: UNUSED,
            correlate: Correlate::default(),
            access_log: None,
            identity: None,
            upgrade: None,
            intercept: None,
            gateway: None,
        }
    }

    /// Checks what can be checked before anything is opened.
    ///
    /// # Errors
    /// The first [`ConfigError`].
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.workers == 0 {
            return Err(ConfigError::Workers);
        }
        if let Some(identity) = &self.identity {
            identity.check()?;
        }
        if let Some(intercept) = &self.intercept {
            intercept.check().map_err(ConfigError::Intercept)?;
        }
        let mut names = BTreeSet::new();
        let ports = self.apps.len() + self.udp_apps.len();
        for (name, address) in self.apps.iter().chain(&self.udp_apps) {
            if !name.is_empty() {
                check_label(name)?;
            } else if ports > 1 {
                return Err(ConfigError::Unnamed(*address));
            }
            if !names.insert(name) {
                return Err(ConfigError::Twice(name.clone()));
            }
        }
        if self.ready.is_some() && self.apps.is_empty() && !self.udp_apps.is_empty() {
            return Err(ConfigError::Ready);
        }
        let mut listens = BTreeSet::new();
        for (listen, ..) in &self.udp {
            if listen.port() == 0 || !listens.insert(listen) {
                return Err(ConfigError::UdpListen(*listen));
            }
        }
        if self.udp.len() > UDP_MAX {
            return Err(ConfigError::UdpMany);
        }
        let label = self.labels.get(TOKEN);
        if let Some(value) = label.filter(|value| token(value).is_none()) {
            return Err(ConfigError::Token(value.clone()));
        }
        for (key, own) in [
            ("service", &self.service.name),
            ("namespace", &self.service.namespace),
        ] {
            if self.labels.get(key).is_some_and(|value| value != own) {
                return Err(ConfigError::Label(key));
            }
        }
        Ok(())
    }

    /// Where peers find the inbound listener: `advertise`; else the address it listens on, when that is a specific one;
    /// else the local address of the route to the control plane.
    ///
    /// # Errors
    /// [`ConfigError::Route`] when there is no such route.
    pub async fn advertised(&self, inbound: SocketAddr) -> Result<SocketAddr, ConfigError> {
        if let Some(address) = self.advertise {
            return Ok(address);
        }
        if !inbound.ip().is_unspecified() {
            return Ok(inbound);
        }
        let local = local_address(&self.control)
            .await
            .map_err(|source| ConfigError::Route {
                control: self.control.clone(),
                source,
            })?;
        Ok(SocketAddr::new(local, inbound.port()))
    }
}

/// Whether a listener there takes who calls `advertised`, as far as families tell: one on `::` takes both.
pub fn takes_family(inbound: SocketAddr, advertised: SocketAddr) -> bool {
    let both = inbound.is_ipv6() && inbound.ip().is_unspecified();
    both || inbound.is_ipv4() == advertised.is_ipv4()
}

/// The address this machine uses towards `control`; nothing is sent.
async fn local_address(control: &str) -> io::Result<IpAddr> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for one in control.split(',') {
        let peers = match lookup_host(one.trim()).await {
            Ok(peers) => peers,
            Err(error) => {
                last = error;
                continue;
            }
        };
        for peer in peers {
            match local_address_towards(peer).await {
                Ok(address) => return Ok(address),
                Err(error) => last = error,
            }
        }
    }
    Err(last)
}

async fn local_address_towards(peer: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = if peer.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(peer).await?;
    Ok(socket.local_addr()?.ip())
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("no worker thread is asked for; --workers takes 1 or more")]
    Workers,
    #[error("application port {0} needs a name, because there are several (--app NAME={0})")]
    Unnamed(SocketAddr),
    #[error("application port `{0}` is given twice")]
    Twice(String),
    #[error("label `{0}` is set by the sidecar and can't be another")]
    Label(&'static str),
    #[error(
        "nobody can be asked whether it is ready: --ready needs a port for connections (--app NAME=HOST:PORT)"
    )]
    Ready,
    #[error("--udp takes datagrams at an address with a port, each once, and not at {0}")]
    UdpListen(SocketAddr),
    #[error("--udp is taken {UDP_MAX} times at most")]
    UdpMany,
    #[error("label {TOKEN}={0} is no token in hex (two digits for each byte)")]
    Token(String),
    #[error("cannot intercept so: {0}")]
    Intercept(&'static str),
    #[error("--cert-check takes 50ms or more")]
    CertCheck,
    #[error("--renew-before takes 1s or more")]
    RenewBefore,
    #[error(
        "no route to the control plane at {control}, so the address to register is not known; --advertise IP:PORT says it"
    )]
    Route {
        control: String,
        #[source]
        source: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_takes_its_own_family_and_the_wildcard_of_ipv6_both() {
        let takes = |inbound: &str, advertised: &str| {
            takes_family(inbound.parse().unwrap(), advertised.parse().unwrap())
        };
        assert!(takes("0.0.0.0:15006", "10.0.0.1:15006"));
        assert!(!takes("0.0.0.0:15006", "[fd00::1]:15006"));
        assert!(takes("[::]:15006", "10.0.0.1:15006"));
        assert!(takes("[::]:15006", "[fd00::1]:15006"));
        assert!(!takes("[fd00::1]:15006", "10.0.0.1:15006"));
    }

    fn config(apps: &[(&str, u16)]) -> Config {
        let apps = apps
            .iter()
            .map(|(name, port)| ((*name).to_owned(), ([127, 0, 0, 1], *port).into()));
        Config::new(ServiceName::new("default", "battle"), apps.collect())
    }

    #[test]
    fn names_of_application_ports_tell_them_apart() {
        for good in [
            &[][..],
            &[("", 1)],
            &[("http", 1)],
            &[("http", 1), ("grpc", 2)],
        ] {
            assert!(config(good).check().is_ok(), "{good:?}");
        }
        for bad in [
            &[("", 1), ("grpc", 2)][..],
            &[("http", 1), ("http", 2)],
            &[("Http", 1)],
        ] {
            assert!(config(bad).check().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn own_labels_cannot_be_another_service() {
        let labels: Labels = [("service".to_owned(), "match".to_owned())].into();
        assert!(
            Config {
                labels,
                ..config(&[])
            }
            .check()
            .is_err()
        );
    }

    #[tokio::test]
    async fn the_advertised_address_is_given_or_specific_or_towards_the_control_plane() {
        let config = Config {
            control: "127.0.0.1:9".into(),
            ..config(&[])
        };
        assert_eq!(
            config
                .advertised("127.0.0.7:15006".parse().unwrap())
                .await
                .unwrap(),
            "127.0.0.7:15006".parse().unwrap()
        );
        assert_eq!(
            config
                .advertised("0.0.0.0:15006".parse().unwrap())
                .await
                .unwrap(),
            "127.0.0.1:15006".parse().unwrap()
        );
        let config = Config {
            advertise: Some("10.9.8.7:1".parse().unwrap()),
            ..config
        };
        assert_eq!(
            config
                .advertised("127.0.0.7:15006".parse().unwrap())
                .await
                .unwrap(),
            "10.9.8.7:1".parse().unwrap()
        );
        let config = Config {
            control: "no-such-host.invalid:1".into(),
            advertise: None,
            ..config
        };
        assert!(matches!(
            config.advertised("0.0.0.0:1".parse().unwrap()).await,
            Err(ConfigError::Route { .. })
        ));
    }
}
