//! A mesh with an issuer, sidecars of two services, and clients that show what they are told to show.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use phalanx_model::identity::SpiffeId;
use phalanx_model::instance::Protocol;
use phalanx_model::name::Direction;
use phalanx_model::resource::*;
use phalanx_pki::clock::{Clock, SystemClock, UnixMillis};
use phalanx_pki::credentials::{Credentials, Parts};
use phalanx_pki::identity::Identity;
use phalanx_pki::issuer::{Attestation, Issuer, Order, RootCa};
use phalanx_pki::key::{Key, KeyKind};
use phalanx_pki::name::{TrustDomain, Workload};
use phalanx_pki::revocation::{Reason, Revocations, Revoked, build_crl};
use phalanx_pki::roots::Roots;
use phalanx_pki::verifier::SKEW;
use phalanx_pki::x509::Serial;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

use crate::support::*;

pub const HOUR: Duration = Duration::from_secs(3600);

pub fn domain() -> TrustDomain {
    TrustDomain::parse("phalanx.local").unwrap()
}

pub fn workload(service: &str) -> Workload {
    Workload::parse(&domain(), "arena", service, None).unwrap()
}

pub fn id(service: &str) -> SpiffeId {
    workload(service).id().clone()
}

pub fn now() -> UnixMillis {
    SystemClock.now()
}

pub fn issuer() -> Issuer {
    let root = RootCa::create(&domain(), KeyKind::default(), now(), 1000 * HOUR).unwrap();
    root.intermediate(KeyKind::default(), now(), 500 * HOUR)
        .unwrap()
}

/// Made by `issuer`, trusting `roots`.
pub fn credentials(issuer: &Issuer, service: &str, roots: &Roots) -> Credentials {
    let (key, workload) = (
        Key::generate(KeyKind::default()).unwrap(),
        workload(service),
    );
    let attested = Attestation::Operator {
        name: "test".into(),
    };
    let order = Order::new(&workload, HOUR, attested);
    let issued = issuer.issue_to(key.spki(), &order, now()).unwrap();
    let parts = Parts {
        chain: issued.chain,
        key,
        staple: None,
        roots: roots.clone(),
    };
    Credentials::try_new(parts, &workload, now()).unwrap()
}

/// Without credentials yet.
pub fn nobody() -> Arc<Identity> {
    Arc::new(Identity::new(Arc::new(SystemClock)))
}

pub fn identity(issuer: &Issuer, service: &str) -> Arc<Identity> {
    let identity = nobody();
    identity.publish(credentials(issuer, service, issuer.roots()));
    identity
}

pub fn serial(identity: &Identity) -> Serial {
    identity.credentials().unwrap().peer().serial.clone()
}

/// Tells `identity` that these are revoked.
pub fn revoke(identity: &Identity, issuer: &Issuer, serials: &[Serial], number: u64) {
    let revoked = serials.iter().map(|serial| Revoked {
        serial: serial.clone(),
        at: now(),
        reason: Reason::KeyCompromise,
    });
    let revoked: Vec<Revoked> = revoked.collect();
    let crl = build_crl(issuer.ca(), &revoked, number, now(), HOUR).unwrap();
    let issuers = [issuer.ca().der().clone()];
    let list = Revocations::try_new(&[crl], &issuers, now(), SKEW).unwrap();
    assert!(identity.publish_revocations(list));
}

pub fn inbound(mode: MtlsMode, access: Access) -> Inbound {
    Inbound {
        default: InboundRule {
            mode,
            access,
            ..InboundRule::default()
        },
        ports: BTreeMap::new(),
        colours: Default::default(),
    }
}

/// Sidecar `gateway` → sidecar `battle` → its application.
pub struct Pair {
    pub issuer: Issuer,
    pub caller: Sidecar,
    pub called: Sidecar,
    pub gateway: Arc<Identity>,
    pub battle: Arc<Identity>,
}

impl Pair {
    /// Before `app`, with HTTP spoken as the application does.
    pub fn start(app: SocketAddr, mode: MtlsMode) -> Self {
        Self::with(app, Protocol::Auto, inbound(mode, Access::default()), |s| s)
    }

    pub fn with(
        app: SocketAddr,
        protocol: Protocol,
        rules: Inbound,
        change: impl FnOnce(Setup) -> Setup,
    ) -> Self {
        let issuer = issuer();
        let (gateway, battle) = (identity(&issuer, "gateway"), identity(&issuer, "battle"));
        let called = called(&battle, rules).app(8080, app, protocol).start();
        let setup = caller(&gateway, &[called.inbound], &["battle"], protocol);
        Self {
            caller: change(setup).start(),
            issuer,
            called,
            gateway,
            battle,
        }
    }

    pub fn get(&self, path: &str) -> Answer {
        self.caller.get(path)
    }
}

pub fn called(identity: &Arc<Identity>, rules: Inbound) -> Setup {
    Setup {
        identity: Some(identity.clone()),
        inbound: Some(rules),
        ..Setup::default()
    }
}

/// Calls `addresses` over mutual TLS, where it expects `services`.
pub fn caller(
    identity: &Arc<Identity>,
    addresses: &[SocketAddr],
    services: &[&str],
    protocol: Protocol,
) -> Setup {
    let mut cluster = Cluster::new(cluster_name("battle"), protocol);
    cluster.tls = Some(PeerTls {
        ids: services.iter().map(|service| id(service)).collect(),
    });
    let mut setup = Setup::default()
        .cluster(cluster, addresses)
        .route("battle", forward("battle"))
        .meshed();
    for endpoint in &mut setup.clusters[0].1 {
        endpoint.mutual_tls = true;
    }
    setup.identity = Some(identity.clone());
    setup
}

/// How often `sidecar` refused somebody for this reason.
pub fn refused(sidecar: &Sidecar, direction: Direction, reason: &str) -> u64 {
    let refusals = sidecar.account.secured().refusals();
    let same = refusals
        .iter()
        .filter(|(d, r, _)| (*d, *r) == (direction, reason));
    same.map(|(.., count)| count).sum()
}

/// Waits until `sidecar` has refused somebody so many times for this reason.
pub fn is_refused(sidecar: &Sidecar, direction: Direction, reason: &str, times: u64) {
    let told = || sidecar.account.secured().refusals();
    eventually(&format!("{times} × {reason}, not {:?}", told()), || {
        refused(sidecar, direction, reason) == times
    });
}

/// What a client of no mesh is made of.
#[derive(Default)]
pub struct Shown {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: Option<PrivateKeyDer<'static>>,
    pub alpn: Vec<&'static str>,
}

impl Shown {
    pub fn of(identity: &Identity) -> Self {
        let credentials = identity.credentials().unwrap();
        let parts = credentials.parts();
        Self {
            chain: parts.chain.clone(),
            key: Some(parts.key.to_der()),
            alpn: Vec::new(),
        }
    }

    pub fn alpn(mut self, name: &'static str) -> Self {
        self.alpn.push(name);
        self
    }

    /// A configuration that trusts whoever answers.
    pub fn config(self) -> Arc<ClientConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody(provider)));
        let mut config = match self.key {
            Some(key) => builder.with_client_auth_cert(self.chain, key).unwrap(),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = self
            .alpn
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        Arc::new(config)
    }
}

pub type Tls = StreamOwned<ClientConnection, TcpStream>;

pub fn dial(config: &Arc<ClientConfig>, address: SocketAddr) -> Tls {
    let stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let name = ServerName::IpAddress(address.ip().into());
    StreamOwned::new(ClientConnection::new(config.clone(), name).unwrap(), stream)
}

/// One request over TLS; what was answered, until the end, or why not.
pub fn ask(config: &Arc<ClientConfig>, address: SocketAddr, head: &str) -> Result<String, String> {
    let mut stream = dial(config, address);
    let text = format!("{head}\r\nhost: battle\r\nconnection: close\r\n\r\n");
    stream
        .write_all(text.as_bytes())
        .map_err(|e| e.to_string())?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) if answer.is_empty() => return Err(error.to_string()),
        Err(_) => {}
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[derive(Debug)]
struct Anybody(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
