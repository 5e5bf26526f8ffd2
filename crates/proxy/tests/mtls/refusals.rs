//! Bad peers, each refused by its own name: at the receiving end and at the connecting one.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use phalanx_model::instance::Protocol;
use phalanx_model::name::Direction;
use phalanx_model::resource::*;
use phalanx_pki::clock::SystemClock;
use phalanx_pki::credentials::{Credentials, Parts};
use phalanx_pki::identity::Identity;
use phalanx_pki::key::Key;
use phalanx_pki::roots::Roots;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose as Eku, IsCa,
    KeyPair, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use time::OffsetDateTime;

use crate::pki::*;
use crate::support::*;

/// A CA whose leaves can have anything wrong with them.
struct Forge {
    key: KeyPair,
    params: CertificateParams,
    der: CertificateDer<'static>,
}

type Made = (CertificateDer<'static>, PrivateKeyDer<'static>);

fn date(hours: i64) -> OffsetDateTime {
    OffsetDateTime::now_utc() + time::Duration::hours(hours)
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

impl Forge {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "forge");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        (params.not_before, params.not_after) = (date(-1000), date(1000));
        let der = params.self_signed(&key).unwrap().der().clone();
        Self { key, params, der }
    }

    fn roots(&self) -> Roots {
        Roots::try_new([self.der.clone()]).unwrap()
    }

    /// A good leaf, but for what is changed.
    fn leaf(&self, service: &str, change: impl FnOnce(&mut CertificateParams)) -> Made {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![uri(&id(service).to_string())];
        params.extended_key_usages = vec![Eku::ServerAuth, Eku::ClientAuth];
        (params.not_before, params.not_after) = (date(-1), date(1));
        change(&mut params);
        let issuer = rcgen::Issuer::from_params(&self.params, &self.key);
        let der = params.signed_by(&key, &issuer).unwrap().der().clone();
        (der, PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }

    fn identity(&self, service: &str) -> Arc<Identity> {
        let (leaf, key) = self.leaf(service, |_| ());
        let parts = Parts {
            chain: vec![leaf],
            key: Key::from_der(key).unwrap(),
            staple: None,
            roots: self.roots(),
        };
        let credentials = Credentials::try_new(parts, &workload(service), now()).unwrap();
        let identity = Identity::new(Arc::new(SystemClock));
        identity.publish(credentials);
        Arc::new(identity)
    }
}

fn bad_leaves(forge: &Forge, service: &str) -> Vec<(&'static str, Made)> {
    let names = |names: Vec<SanType>| forge.leaf(service, move |p| p.subject_alt_names = names);
    let own = id(service).to_string();
    let dns = |text: &str| SanType::DnsName(text.try_into().unwrap());
    vec![
        ("unknown_ca", Forge::new().leaf(service, |_| ())),
        (
            "expired",
            forge.leaf(service, |p| {
                (p.not_before, p.not_after) = (date(-3), date(-2));
            }),
        ),
        (
            "not_yet_valid",
            forge.leaf(service, |p| {
                (p.not_before, p.not_after) = (date(1), date(2));
            }),
        ),
        (
            "ca_as_leaf",
            forge.leaf(service, |p| {
                p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            }),
        ),
        ("no_spiffe_id", names(vec![dns("battle.arena.svc.mesh")])),
        (
            "several_spiffe_ids",
            names(vec![uri(&own), uri(&id("admin").to_string())]),
        ),
        (
            "wildcard_name",
            names(vec![uri(&own), dns("*.arena.svc.mesh")]),
        ),
        (
            "wrong_trust_domain",
            names(vec![uri("spiffe://phalanx.local.evil/ns/arena/sa/gateway")]),
        ),
    ]
}

#[test]
fn bad_clients_are_refused_each_by_name() {
    let app = Upstream::start(|_, _| ok("in"));
    let forge = Forge::new();
    let setup = called(
        &forge.identity("battle"),
        inbound(MtlsMode::Permissive, Access::default()),
    );
    let sidecar = setup.app(8080, app.address, Protocol::Auto).start();
    let mut bad = bad_leaves(&forge, "gateway");
    let server_only = forge.leaf("gateway", |p| p.extended_key_usages = vec![Eku::ServerAuth]);
    bad.push(("missing_client_eku", server_only));
    let no_usage = forge.leaf("gateway", |p| p.extended_key_usages = Vec::new());
    for (reason, (leaf, key)) in bad {
        let shown = Shown {
            chain: vec![leaf],
            key: Some(key),
            alpn: Vec::new(),
        };
        let answer = ask(&shown.config(), sidecar.inbound, "GET / HTTP/1.1");
        assert!(answer.is_err(), "{reason}: {answer:?}");
        is_refused(&sidecar, Direction::Inbound, reason, 1);
    }
    let (leaf, key) = no_usage;
    let shown = Shown {
        chain: vec![leaf],
        key: Some(key),
        alpn: Vec::new(),
    };
    assert!(ask(&shown.config(), sidecar.inbound, "GET / HTTP/1.1").is_err());
    is_refused(&sidecar, Direction::Inbound, "missing_client_eku", 2);

    // Not the key of the certificate.
    let good = forge.leaf("gateway", |_| ());
    let (_, other) = forge.leaf("gateway", |_| ());
    let thief = Thief::config(good.0, other);
    assert!(ask(&thief, sidecar.inbound, "GET / HTTP/1.1").is_err());
    is_refused(&sidecar, Direction::Inbound, "bad_proof", 1);

    // Protocols.
    let (leaf, key) = forge.leaf("gateway", |_| ());
    let shown = Shown {
        chain: vec![leaf],
        key: Some(key),
        alpn: vec!["spdy/3"],
    };
    assert!(ask(&shown.config(), sidecar.inbound, "GET / HTTP/1.1").is_err());
    is_refused(&sidecar, Direction::Inbound, "no_protocol", 1);
    let mut stream = TcpStream::connect(sidecar.inbound).unwrap();
    stream
        .write_all(&[0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0])
        .unwrap();
    let _ = stream.read_to_end(&mut Vec::new());
    is_refused(&sidecar, Direction::Inbound, "protocol", 1);
    let mut stream = TcpStream::connect(sidecar.inbound).unwrap();
    stream.write_all(&[0x16, 3, 1]).unwrap();
    drop(stream);
    eventually("the one who left is counted", || {
        refused(&sidecar, Direction::Inbound, "gone") == 1
    });

    assert_eq!(app.requests(), 0);
    let (leaf, key) = forge.leaf("gateway", |_| ());
    let shown = Shown {
        chain: vec![leaf],
        key: Some(key),
        alpn: Vec::new(),
    };
    let answer = ask(&shown.config(), sidecar.inbound, "GET / HTTP/1.1").unwrap();
    assert!(answer.ends_with("in"), "the good one: {answer}");
}

/// Shows a certificate whose key it has not.
#[derive(Debug)]
struct Thief(Arc<rustls::sign::CertifiedKey>);

impl Thief {
    fn config(
        leaf: CertificateDer<'static>,
        key: PrivateKeyDer<'static>,
    ) -> Arc<rustls::ClientConfig> {
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).unwrap();
        let certified = rustls::sign::CertifiedKey::new(vec![leaf], key);
        let mut config = Arc::unwrap_or_clone(Shown::default().config());
        config.client_auth_cert_resolver = Arc::new(Thief(Arc::new(certified)));
        Arc::new(config)
    }
}

impl rustls::client::ResolvesClientCert for Thief {
    fn resolve(
        &self,
        _: &[&[u8]],
        _: &[rustls::SignatureScheme],
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Answers every request over TLS, with this certificate.
fn server(leaf: CertificateDer<'static>, key: PrivateKeyDer<'static>, alpn: &str) -> SocketAddr {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf], key)
        .unwrap();
    if !alpn.is_empty() {
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    }
    let config = Arc::new(config);
    let listener = TcpListener::bind(any_port()).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let config = config.clone();
            thread::spawn(move || {
                let connection = ServerConnection::new(config).unwrap();
                let mut stream = StreamOwned::new(connection, stream);
                let mut head = [0; 1024];
                while stream.read(&mut head).is_ok_and(|count| count > 0) {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nin");
                }
            });
        }
    });
    address
}

#[test]
fn bad_servers_are_refused_each_by_name() {
    let forge = Forge::new();
    let gateway = forge.identity("gateway");
    let ask = |address| {
        let sidecar = caller(&gateway, &[address], &["battle"], Protocol::Http1).start();
        let answer = sidecar.get("/");
        (sidecar, answer)
    };
    let mut bad = bad_leaves(&forge, "battle");
    bad.push(("wrong_name", forge.leaf("admin", |_| ())));
    let client_only = forge.leaf("battle", |p| p.extended_key_usages = vec![Eku::ClientAuth]);
    bad.push(("missing_server_eku", client_only));
    for (reason, (leaf, key)) in bad {
        let (sidecar, answer) = ask(server(leaf, key, "http/1.1"));
        assert_eq!(
            (answer.status(), answer.reason()),
            (503, "connect_failed"),
            "{reason}"
        );
        assert!(
            refused(&sidecar, Direction::Outbound, reason) > 0,
            "{reason}"
        );
        assert!(sidecar.sum(|edge| edge.connect_failures) > 0);
    }
    let (leaf, key) = forge.leaf("battle", |_| ());
    let (sidecar, answer) = ask(server(leaf, key, ""));
    assert_eq!(
        answer.reason(),
        "connect_failed",
        "a server that agrees on nothing"
    );
    assert!(refused(&sidecar, Direction::Outbound, "no_protocol") > 0);
    let plain = Upstream::start(|_, _| ok("plain"));
    let (sidecar, answer) = ask(plain.address);
    assert_eq!(
        answer.reason(),
        "connect_failed",
        "a server that speaks no TLS"
    );
    assert_eq!(plain.requests(), 0);
    drop(sidecar);
    let (leaf, key) = forge.leaf("battle", |_| ());
    let (_, answer) = ask(server(leaf, key, "http/1.1"));
    assert_eq!(
        (answer.status(), answer.text()),
        (200, "in".into()),
        "the good one"
    );
}

#[test]
fn peer_that_was_refused_is_not_asked_again_and_again() {
    let forge = Forge::new();
    let (leaf, key) = forge.leaf("admin", |_| ());
    let address = server(leaf, key, "http/1.1");
    let sidecar = caller(
        &forge.identity("gateway"),
        &[address],
        &["battle"],
        Protocol::Http1,
    )
    .start();
    let started = std::time::Instant::now();
    for _ in 0..20 {
        assert_eq!(sidecar.get("/").reason(), "connect_failed");
    }
    let handshakes = refused(&sidecar, Direction::Outbound, "wrong_name");
    let windows = started.elapsed().as_millis() / 500 + 1;
    assert!(
        u128::from(handshakes) <= windows,
        "{handshakes} in {windows} half seconds"
    );
    assert!(refused(&sidecar, Direction::Outbound, "again") > 0);
}

#[test]
fn caller_that_is_refused_is_told_connect_failed_whatever_the_method() {
    let app = Upstream::start(|_, _| ok("in"));
    let forge = Forge::new();
    let rules = inbound(MtlsMode::Strict, Access::default());
    let stranger = issuer();
    // The called trusts another root, the caller trusts both.
    let called = called(&identity(&stranger, "battle"), rules)
        .app(8080, app.address, Protocol::Auto)
        .start();
    let gateway = forge.identity("gateway");
    let both = forge.roots().and(stranger.roots()).unwrap();
    gateway.publish_roots(both).unwrap();
    for protocol in [Protocol::Http1, Protocol::H2c] {
        let sidecar = caller(&gateway, &[called.inbound], &["battle"], protocol).start();
        for text in [
            "GET / HTTP/1.1\r\nhost: battle\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: battle\r\ncontent-length: 2\r\n\r\nhi",
        ] {
            let answer = Client::connect(sidecar.outbound).ask(text);
            assert_eq!(
                (answer.status(), answer.reason()),
                (503, "connect_failed"),
                "{protocol:?}"
            );
        }
        assert!(refused(&sidecar, Direction::Outbound, "peer_alert") > 0);
    }
    assert!(refused(&called, Direction::Inbound, "unknown_ca") > 0);
    assert_eq!(app.requests(), 0);
}

/// Output of `openssl <words>`, with `input` on its standard input.
fn openssl(words: &str, input: &str) -> String {
    let mut child = Command::new("openssl")
        .args(words.split_whitespace())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl is installed");
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let done = child.wait_with_output().unwrap();
    let text = [done.stdout, done.stderr].concat();
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn openssl_is_a_peer_like_any_other() {
    let app = Upstream::start(|_, _| ok("in"));
    let pair = Pair::start(app.address, MtlsMode::Strict);
    let dir = tempfile::tempdir().unwrap();
    pair.gateway
        .credentials()
        .unwrap()
        .save(dir.path())
        .unwrap();
    let dir = dir.path().display();
    let shown = format!("-cert {dir}/cert.pem -cert_chain {dir}/cert.pem -key {dir}/key.pem");
    let connect = format!(
        "s_client -connect {} -CAfile {dir}/roots.pem",
        pair.called.inbound
    );
    let request = "GET / HTTP/1.1\r\nhost: battle\r\nconnection: close\r\n\r\n";
    for version in ["-tls1_3", "-tls1_2"] {
        let text = openssl(
            &format!("{connect} -quiet {version} -alpn http/1.1 {shown}"),
            request,
        );
        assert!(text.contains("HTTP/1.1 200"), "{version}: {text}");
        assert!(text.contains("verify return:1"), "{text}");
    }
    let seen = app.last();
    let named = seen.header("x-forwarded-client-cert").unwrap();
    assert!(
        named.ends_with(&format!("URI={}", id("gateway"))),
        "{named}"
    );

    let text = openssl(&format!("{connect} -quiet {}", "-alpn http/1.1"), request);
    assert!(text.contains("x-phalanx-reason: unauthenticated"), "{text}");
    let old = openssl(
        &format!("{connect} -tls1_1 -cipher DEFAULT@SECLEVEL=0 {shown}"),
        request,
    );
    assert!(
        old.contains("Cipher is (NONE)") || old.contains("no protocols available"),
        "{old}"
    );
    if old.contains("SSL alert number") {
        is_refused(&pair.called, Direction::Inbound, "incompatible", 1);
    }
    assert_eq!(app.requests(), 2);
}

#[test]
fn openssl_may_serve_and_sees_our_certificate() {
    let issuer = issuer();
    let (gateway, battle) = (identity(&issuer, "gateway"), identity(&issuer, "battle"));
    let dir = tempfile::tempdir().unwrap();
    battle.credentials().unwrap().save(dir.path()).unwrap();
    let dir = dir.path().display().to_string();
    let address = own_address();
    let words = format!(
        "s_server -accept {address} -www -Verify 3 -verify_return_error -alpn http/1.1 -CAfile {dir}/roots.pem \
-cert {dir}/cert.pem -cert_chain {dir}/cert.pem -key {dir}/key.pem"
    );
    let mut child = Command::new("openssl")
        .args(words.split_whitespace())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("openssl is installed");
    let sidecar = caller(&gateway, &[address], &["battle"], Protocol::Http1).start();
    let mut text = String::new();
    eventually("openssl answers", || {
        thread::sleep(Duration::from_millis(100));
        let mut client = Client::connect(sidecar.outbound);
        client.send(b"GET / HTTP/1.1\r\nhost: battle\r\nconnection: close\r\n\r\n");
        let mut rest = Vec::new();
        let _ = client.stream.read_to_end(&mut rest);
        text = String::from_utf8_lossy(&rest).into_owned();
        text.starts_with("HTTP/1.1 200")
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(
        text.contains("TLSv1.3") && text.contains("Client certificate"),
        "{text}"
    );
    assert!(text.contains("gateway"), "{text}");
}

/// An address for a program that is about to listen: on a host of this process alone, below the ports of outgoing connections.
fn own_address() -> SocketAddr {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    ([127, 32 + high % 32, middle, low], 8_443).into()
}
