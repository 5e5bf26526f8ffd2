//! A look at what somebody shows in a TLS handshake, and at what an authority publishes about it: for diagnosis. Nothing is
//! trusted here and nothing of a user's is sent; what was seen is judged by [`phalanx_pki::examine`].

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use phalanx_pki::credentials::Credentials;
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Of a connection, a handshake, an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// A server of TLS 1.3 says only after the handshake that it does not take us.
const AFTERWORD: Duration = Duration::from_millis(300);
/// Most that is fetched: a revocation list.
const FETCH_MAX: usize = 8 * 1024 * 1024;
/// What workloads and control planes speak.
const PROTOCOLS: [&[u8]; 3] = [b"h2", b"http/1.1", b"phalanx-tcp"];

/// What a server showed.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// As sent, the leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// An OCSP response, DER; empty for none.
    pub staple: Vec<u8>,
    /// Whether it signed the handshake with the key of its leaf.
    pub proven: bool,
    /// Such as `TLSv1.3`.
    pub version: Option<String>,
    pub cipher: Option<String>,
    /// Of the key exchange, such as `X25519MLKEM768`.
    pub group: Option<String>,
    pub protocol: Option<String>,
    /// Whether it asked for a certificate of ours.
    pub asks: bool,
    /// Why the connection ended although the server had shown itself, such as an alert.
    pub ended: Option<String>,
}

/// Shakes hands with whoever listens at `HOST:PORT`, showing `own` if it is asked for.
///
/// # Errors
/// [`InspectError`] when nothing was shown.
pub async fn handshake(address: &str, own: Option<&Credentials>) -> Result<Seen, InspectError> {
    let late = |_| InspectError::Late {
        address: address.to_owned(),
    };
    let unreachable = |source| InspectError::Unreachable {
        address: address.to_owned(),
        source,
    };
    let connected = timeout(PATIENCE, TcpStream::connect(address)).await;
    let stream = connected.map_err(late)?.map_err(unreachable)?;
    let provider = Arc::new(provider());
    let watcher = Arc::new(Watcher {
        provider: provider.clone(),
        seen: Mutex::default(),
        own: own.map(shown).transpose().map_err(InspectError::Config)?,
    });
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(InspectError::Config)?;
    let mut config = config
        .dangerous()
        .with_custom_certificate_verifier(watcher.clone())
        .with_client_cert_resolver(watcher.clone());
    config.alpn_protocols = PROTOCOLS.iter().map(|p| p.to_vec()).collect();
    config.resumption = rustls::client::Resumption::disabled();
    let connector = TlsConnector::from(Arc::new(config));
    let shaken = timeout(PATIENCE, connector.connect(server_name(address), stream)).await;
    match shaken.map_err(late)? {
        Ok(mut stream) => {
            let ended = match timeout(AFTERWORD, stream.read_u8()).await {
                Ok(Err(error)) if error.kind() != io::ErrorKind::UnexpectedEof => {
                    Some(error.to_string())
                }
                _ => None,
            };
            let connection = stream.get_ref().1;
            let mut seen = watcher.taken();
            seen.version = connection.protocol_version().map(|v| match v {
                rustls::ProtocolVersion::TLSv1_2 => "TLSv1.2".to_owned(),
                rustls::ProtocolVersion::TLSv1_3 => "TLSv1.3".to_owned(),
                other => format!("{other:?}"),
            });
            let suite = connection.negotiated_cipher_suite();
            seen.cipher = suite.map(|s| format!("{:?}", s.suite()));
            let group = connection.negotiated_key_exchange_group();
            seen.group = group.map(|g| format!("{:?}", g.name()));
            let protocol = connection.alpn_protocol();
            seen.protocol = protocol.map(|p| String::from_utf8_lossy(p).into_owned());
            seen.ended = ended;
            Ok(seen)
        }
        Err(source) => {
            let seen = watcher.taken();
            if seen.chain.is_empty() {
                return Err(InspectError::Handshake {
                    address: address.to_owned(),
                    source,
                });
            }
            let ended = Some(source.to_string());
            Ok(Seen { ended, ..seen })
        }
    }
}

/// What workloads offer comes first, so that what is seen is what they get.
fn provider() -> CryptoProvider {
    use aws_lc_rs::kx_group::{SECP256R1, SECP384R1, X25519, X25519MLKEM768};
    CryptoProvider {
        kx_groups: vec![X25519MLKEM768, X25519, SECP256R1, SECP384R1],
        ..aws_lc_rs::default_provider()
    }
}

fn shown(own: &Credentials) -> Result<Arc<CertifiedKey>, Error> {
    let parts = own.parts();
    let key = aws_lc_rs::sign::any_supported_type(&parts.key.to_der())?;
    Ok(Arc::new(CertifiedKey::new(parts.chain.clone(), key)))
}

fn server_name(address: &str) -> ServerName<'static> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(host.to_owned());
    name.unwrap_or_else(|_| ServerName::from(std::net::IpAddr::from([127, 0, 0, 1])))
}

/// Takes down what is shown and takes anybody: the connection carries nothing.
#[derive(Debug)]
struct Watcher {
    provider: Arc<CryptoProvider>,
    /// A handshake calls one after the other; nobody else writes.
    seen: Mutex<Seen>,
    own: Option<Arc<CertifiedKey>>,
}

impl Watcher {
    fn note(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn taken(&self) -> Seen {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.clone()
    }

    fn prove(
        &self,
        proof: Result<HandshakeSignatureValid, Error>,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.note(|seen| seen.proven = proof.is_ok());
        proof
    }
}

impl ServerCertVerifier for Watcher {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        staple: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.note(|seen| {
            let sent = std::iter::once(leaf).chain(above);
            seen.chain = sent.map(|c| c.clone().into_owned()).collect();
            seen.staple = staple.to_vec();
        });
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        self.prove(verify_tls12_signature(message, cert, signed, algorithms))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        self.prove(verify_tls13_signature(message, cert, signed, algorithms))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

impl ResolvesClientCert for Watcher {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.note(|seen| seen.asks = true);
        self.own.clone()
    }

    /// Also without one: only then are we told that it is asked for.
    fn has_certs(&self) -> bool {
        true
    }
}

/// A responder's answer to a request in DER.
///
/// # Errors
/// [`InspectError`]
pub async fn ask_ocsp(url: &str, request: Vec<u8>) -> Result<Vec<u8>, InspectError> {
    fetch(url, Some(("application/ocsp-request", request))).await
}

/// A revocation list, DER.
///
/// # Errors
/// [`InspectError`]
pub async fn fetch_crl(url: &str) -> Result<Vec<u8>, InspectError> {
    fetch(url, None).await
}

async fn fetch(url: &str, body: Option<(&str, Vec<u8>)>) -> Result<Vec<u8>, InspectError> {
    let bad = |why: &str| InspectError::Fetch {
        url: url.to_owned(),
        why: why.to_owned(),
    };
    let rest = url.strip_prefix("http://");
    // OCSP and CRLs are signed themselves, so plain HTTP is what the field uses.
    let rest = rest.ok_or_else(|| bad("only http:// is asked"))?;
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let address = match host.rsplit_once(':') {
        Some((_, port)) if port.parse::<u16>().is_ok() => host.to_owned(),
        _ => format!("{host}:80"),
    };
    let method = match body {
        Some(_) => Method::POST,
        None => Method::GET,
    };
    let (kind, bytes) = body.unwrap_or(("application/pkix-crl", Vec::new()));
    let request = Request::builder()
        .method(method)
        .uri(if path.is_empty() { "/" } else { path })
        .header(HOST, host)
        .header(CONTENT_TYPE, kind)
        .body(Full::new(Bytes::from(bytes)))
        .map_err(|e| bad(&e.to_string()))?;
    let exchange = async {
        let stream = TcpStream::connect(&address).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let answer = async move {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), FETCH_MAX);
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>((status, body.collect().await?))
        };
        let (answer, _) = tokio::join!(answer, connection);
        answer
    };
    let answer = timeout(PATIENCE, exchange).await;
    let answer = answer.map_err(|_| bad("no answer in time"))?;
    let (status, body) = answer.map_err(|e| bad(&e.to_string()))?;
    match status.is_success() {
        true => Ok(body.to_bytes().to_vec()),
        false => Err(bad(&format!("the answer is HTTP {status}"))),
    }
}

#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    #[error("nobody answers at {address}")]
    Unreachable {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("{address} did not answer in time")]
    Late { address: String },
    #[error("{address} showed no certificate")]
    Handshake {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot ask {url}: {why}")]
    Fetch { url: String, why: String },
    #[error("TLS cannot be set up")]
    Config(#[source] Error),
}
