//! rustls configurations over an [`Identity`]: what is current is read at each handshake, so nothing is rebuilt when it changes.
//! TLS 1.2 is the oldest, X25519MLKEM768 is offered first. No sockets: whoever owns the connection calls `admit` after the
//! handshake, which is the only way to a [`Peer`].
//!
//! Resumption skips the exchange of certificates, so three things keep revoked and expired peers from using it: sessions of
//! an earlier epoch (credentials, roots or revocations have changed since) are forgotten by both ends; a client forgets
//! them after [`SESSION_AGE_MAX`] as well; and `admit` checks the remembered chain again, in full, on every connection.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs as provider, verify_tls12_signature,
    verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, CommonState, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme, version,
};

use crate::identity::Identity;
use crate::verifier::{CrlPolicy, Expected, Peer, Policy, Refusal, Role, StaplePolicy};

mod session;
#[cfg(test)]
mod tests;

pub use session::SESSION_AGE_MAX;

/// Whether a server asks for certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// No certificate, no connection.
    Required,
    /// Without one the peer is nobody; a bad one is refused all the same.
    Optional,
    Off,
}

/// What a server asks of its clients.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    pub client_auth: ClientAuth,
    pub expected: Expected,
    pub crl: CrlPolicy,
    /// In order of preference; empty for none.
    pub alpn: Vec<Vec<u8>>,
}

/// What a client asks of its server.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    pub expected: Expected,
    pub crl: CrlPolicy,
    pub staple: StaplePolicy,
    pub alpn: Vec<Vec<u8>>,
}

/// The receiving end.
#[derive(Clone, Debug)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    end: Arc<End>,
    client_auth: ClientAuth,
}

/// The connecting end: one per set of expected ids, for sessions are kept with it.
#[derive(Clone, Debug)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
    end: Arc<End>,
}

/// One end's view of the other: the identity to check against, and what is asked.
#[derive(Debug)]
struct End {
    identity: Arc<Identity>,
    policy: Policy,
    provider: Arc<CryptoProvider>,
}

impl ServerTls {
    /// # Errors
    /// [`Error`] if rustls takes the versions and ciphers for inconsistent, which would be a defect of ours.
    pub fn try_new(identity: Arc<Identity>, options: ServerOptions) -> Result<Self, Error> {
        let policy = Policy {
            role: Role::Client,
            expected: options.expected,
            crl: options.crl,
            staple: StaplePolicy::Off,
        };
        let end = End::new(&identity, policy);
        let time = Arc::new(session::ClockTime(identity.clock().clone()));
        let builder = ServerConfig::builder_with_details(end.provider.clone(), time)
            .with_protocol_versions(&[&version::TLS13, &version::TLS12])?;
        let builder = match options.client_auth {
            ClientAuth::Off => builder.with_no_client_auth(),
            auth => {
                let mandatory = auth == ClientAuth::Required;
                builder.with_client_cert_verifier(Arc::new(Clients {
                    end: end.clone(),
                    mandatory,
                }))
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(Shown(identity.clone())));
        config.alpn_protocols = options.alpn;
        // Tickets only: a server that keeps no sessions has no table that peers could fill.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = Arc::new(session::Tickets::new(identity));
        config.max_early_data_size = 0;
        Ok(Self {
            config: Arc::new(config),
            end,
            client_auth: options.client_auth,
        })
    }

    pub fn config(&self) -> &Arc<ServerConfig> {
        &self.config
    }

    /// Who is at the other end of a finished handshake, resumed or not; `None` for nobody, where that is allowed.
    ///
    /// # Errors
    /// [`Refusal`]: the connection has to be closed before a byte of it is looked at.
    pub fn admit(&self, connection: &CommonState) -> Result<Option<Arc<Peer>>, Refusal> {
        match (connection.peer_certificates(), self.client_auth) {
            (None, ClientAuth::Required) => Err(Refusal::NoCertificate),
            (None, _) | (_, ClientAuth::Off) => Ok(None),
            (Some(chain), _) => self
                .end
                .identity
                .verify(chain, &[], &self.end.policy)
                .map(Some),
        }
    }
}

impl ClientTls {
    /// # Errors
    /// As [`ServerTls::try_new`].
    pub fn try_new(identity: Arc<Identity>, options: ClientOptions) -> Result<Self, Error> {
        let policy = Policy {
            role: Role::Server,
            expected: options.expected,
            crl: options.crl,
            staple: options.staple,
        };
        let end = End::new(&identity, policy);
        let time = Arc::new(session::ClockTime(identity.clock().clone()));
        let mut config = ClientConfig::builder_with_details(end.provider.clone(), time)
            .with_protocol_versions(&[&version::TLS13, &version::TLS12])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Servers(end.clone())))
            .with_client_cert_resolver(Arc::new(Shown(identity.clone())));
        config.alpn_protocols = options.alpn;
        config.resumption = Resumption::store(Arc::new(session::Sessions::new(identity)));
        Ok(Self {
            config: Arc::new(config),
            end,
        })
    }

    pub fn config(&self) -> &Arc<ClientConfig> {
        &self.config
    }

    /// Who serves, after a finished handshake. The staple was checked in it; one that was resumed had it checked when the
    /// session began, at most [`SESSION_AGE_MAX`] ago.
    ///
    /// # Errors
    /// [`Refusal`]: the connection has to be closed before a byte is sent on it.
    pub fn admit(&self, connection: &CommonState) -> Result<Arc<Peer>, Refusal> {
        let chain = connection
            .peer_certificates()
            .ok_or(Refusal::NoCertificate)?;
        let policy = Policy {
            staple: StaplePolicy::Off,
            ..self.end.policy.clone()
        };
        self.end.identity.verify(chain, &[], &policy)
    }
}

/// aws-lc, the hybrid post-quantum group first.
pub fn provider() -> Arc<CryptoProvider> {
    let kx_groups = vec![
        provider::kx_group::X25519MLKEM768,
        provider::kx_group::X25519,
        provider::kx_group::SECP256R1,
        provider::kx_group::SECP384R1,
    ];
    Arc::new(CryptoProvider {
        kx_groups,
        ..provider::default_provider()
    })
}

/// Shows the credentials that are current.
#[derive(Debug)]
struct Shown(Arc<Identity>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let credentials = self.0.credentials()?;
        Some(credentials.certified(self.0.now()))
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _roots: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let certified = self.0.credentials()?.certified_plain();
        certified.key.choose_scheme(schemes)?;
        Some(certified)
    }

    fn has_certs(&self) -> bool {
        self.0.credentials().is_some()
    }
}

#[derive(Debug)]
struct Clients {
    end: Arc<End>,
    mandatory: bool,
}

impl ClientCertVerifier for Clients {
    /// None: the roots may change during the handshake, and a client of the mesh has one certificate anyway.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.end
            .check(leaf, rest, &[])
            .map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, self.end.algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, self.end.algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.end.algorithms().supported_schemes()
    }
}

#[derive(Debug)]
struct Servers(Arc<End>);

impl ServerCertVerifier for Servers {
    /// The SPIFFE id decides who it is; the server's name in the handshake only says where we went.
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        staple: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.0
            .check(leaf, rest, staple)
            .map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, self.0.algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, self.0.algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.algorithms().supported_schemes()
    }
}

impl End {
    fn new(identity: &Arc<Identity>, policy: Policy) -> Arc<Self> {
        Arc::new(Self {
            identity: identity.clone(),
            policy,
            provider: provider(),
        })
    }

    fn algorithms(&self) -> &WebPkiSupportedAlgorithms {
        &self.provider.signature_verification_algorithms
    }

    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        staple: &[u8],
    ) -> Result<(), Error> {
        let chain: Vec<CertificateDer<'_>> = std::iter::once(leaf).chain(rest).cloned().collect();
        let done = self.identity.verify(&chain, staple, &self.policy);
        done.map(|_| ()).map_err(Refusal::to_rustls)
    }
}
