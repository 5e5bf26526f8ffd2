//! What a workload shows: chain, key, staple, and the roots that came with them. A set is checked completely when it is made,
//! as a peer would check it, so whatever exists can be published.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;

use crate::clock::UnixMillis;
use crate::files::{self, Access, FileError};
use crate::key::{Key, KeyError};
use crate::name::{Name, Workload};
use crate::ocsp::{Staple, StapleError};
use crate::revocation::Revocations;
use crate::roots::{Roots, RootsError};
use crate::verifier::{self, Expected, Peer, Policy, Refusal, Role};
use crate::x509::{self, Cert, X509Error};

#[cfg(test)]
mod tests;

/// The names of the files, as gRPC's and Istio's tools have them.
pub const CERT_FILE: &str = "cert.pem";
pub const KEY_FILE: &str = "key.pem";
pub const ROOTS_FILE: &str = "roots.pem";

/// What credentials are made of.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    pub key: Key,
    /// An OCSP response, DER.
    pub staple: Option<Vec<u8>>,
    pub roots: Roots,
}

/// An immutable, verified set.
#[derive(Clone, Debug)]
pub struct Credentials {
    parts: Parts,
    peer: Arc<Peer>,
    staple: Option<Staple>,
    path: Arc<verifier::Path>,
    stapled: Arc<CertifiedKey>,
    plain: Arc<CertifiedKey>,
}

impl Credentials {
    /// Checks that the key fits, the chain ends in the roots for both ends of a connection, the names are the workload's
    /// and no others, the dates are right, and a staple is good.
    ///
    /// # Errors
    /// [`CredentialsError`]
    pub fn try_new(
        parts: Parts,
        own: &Workload,
        now: UnixMillis,
    ) -> Result<Self, CredentialsError> {
        Self::with_hosts(parts, own, &[], now)
    }

    /// As [`Credentials::try_new`], for a control plane's own leaf, which has host names as well.
    ///
    /// # Errors
    /// [`CredentialsError`]
    pub fn with_hosts(
        parts: Parts,
        own: &Workload,
        hosts: &[Name],
        now: UnixMillis,
    ) -> Result<Self, CredentialsError> {
        let leaf = parts
            .chain
            .first()
            .ok_or(CredentialsError::Refused(Refusal::NoCertificate))?;
        let cert = Cert::parse(leaf)?;
        if cert.spki != parts.key.spki() {
            return Err(CredentialsError::KeyMismatch);
        }
        check_names(&cert, own, hosts)?;
        let expected = Expected::ids([own.id().clone()]);
        for role in [Role::Client, Role::Server] {
            let policy = Policy {
                staple: verifier::StaplePolicy::Off,
                ..Policy::new(role, expected.clone())
            };
            verifier::verify(
                &parts.chain,
                &[],
                &parts.roots,
                &Revocations::default(),
                &policy,
                now,
            )
            .map_err(CredentialsError::Refused)?;
        }
        let path = verifier::verify_path(&parts.chain, Role::Server, &parts.roots, now)
            .map_err(CredentialsError::Refused)?;
        Self::with(parts, Arc::new(path), now)
    }

    fn with(
        parts: Parts,
        path: Arc<verifier::Path>,
        now: UnixMillis,
    ) -> Result<Self, CredentialsError> {
        let staple = parts
            .staple
            .as_deref()
            .map(|s| verifier::staple_of(&path, s, now))
            .transpose()?;
        let key = any_supported_type(&parts.key.to_der()).map_err(|_| KeyError::Kind)?;
        // The root is known to whoever trusts it; sending it costs 0.5 KB per handshake.
        let sent = parts
            .chain
            .iter()
            .filter(|c| !parts.roots.contains(&x509::fingerprint(c)));
        let plain = CertifiedKey::new(sent.cloned().collect(), key);
        let stapled = CertifiedKey {
            ocsp: parts.staple.clone(),
            ..plain.clone()
        };
        let (plain, stapled) = (Arc::new(plain), Arc::new(stapled));
        Ok(Self {
            peer: path.peer.clone(),
            parts,
            staple,
            path,
            stapled,
            plain,
        })
    }

    /// The same chain and key with a fresh staple.
    ///
    /// # Errors
    /// [`CredentialsError::Staple`]; revoked is one of them.
    pub fn with_staple(&self, staple: Vec<u8>, now: UnixMillis) -> Result<Self, CredentialsError> {
        Self::with(
            Parts {
                staple: Some(staple),
                ..self.parts.clone()
            },
            self.path.clone(),
            now,
        )
    }

    /// Reads files that somebody else put there: `cert.pem` (chain), `key.pem` (0600), `roots.pem`.
    ///
    /// # Errors
    /// [`CredentialsError`]
    pub fn load(dir: &Path, own: &Workload, now: UnixMillis) -> Result<Self, CredentialsError> {
        let public = |name: &str| files::read(&dir.join(name), Access::Public);
        let parts = Parts {
            chain: x509::certs_from_pem(&public(CERT_FILE)?)?,
            key: Key::from_pem(&files::read(&dir.join(KEY_FILE), Access::Private)?)?,
            staple: None,
            roots: Roots::from_pem(&public(ROOTS_FILE)?)?,
        };
        Self::try_new(parts, own, now)
    }

    /// Writes the three files as one set (see [`files::write_set`]), the key with mode 0600.
    ///
    /// # Errors
    /// [`CredentialsError::File`]
    pub fn save(&self, dir: &Path) -> Result<(), CredentialsError> {
        let (chain, key, roots) = (
            self.chain_pem(),
            self.parts.key.to_pem()?,
            self.parts.roots.to_pem(),
        );
        let set = [
            (CERT_FILE, chain.as_bytes(), Access::Public),
            (KEY_FILE, key.as_bytes(), Access::Private),
            (ROOTS_FILE, roots.as_bytes(), Access::Public),
        ];
        Ok(files::write_set(dir, &set)?)
    }

    pub fn chain_pem(&self) -> String {
        x509::certs_to_pem(&self.parts.chain)
    }

    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Itself as its peers see it: id, serial, dates.
    pub fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    pub fn not_after(&self) -> UnixMillis {
        self.peer.not_after
    }

    /// How long its staple is good; `None` without one.
    pub fn staple(&self) -> Option<Staple> {
        self.staple
    }

    /// For rustls. A staple past its nextUpdate is left out: none is better than one that peers refuse.
    pub(crate) fn certified(&self, now: UnixMillis) -> Arc<CertifiedKey> {
        match self.staple {
            Some(staple) if now < staple.next_update => self.stapled.clone(),
            _ => self.plain.clone(),
        }
    }

    pub(crate) fn certified_plain(&self) -> Arc<CertifiedKey> {
        self.plain.clone()
    }
}

fn check_names(cert: &Cert, own: &Workload, hosts: &[Name]) -> Result<(), CredentialsError> {
    if let Some(kind) = cert.other_names.first() {
        return Err(CredentialsError::ForeignName {
            name: (*kind).to_owned(),
        });
    }
    if cert.names.iter().any(Name::is_wildcard) {
        return Err(CredentialsError::Refused(Refusal::WildcardName));
    }
    match cert
        .names
        .iter()
        .find(|n| !own.owns(n) && !hosts.contains(n))
    {
        Some(name) => Err(CredentialsError::ForeignName {
            name: name.to_string(),
        }),
        None => Ok(()),
    }
}

#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error("the private key does not belong to the certificate")]
    KeyMismatch,
    #[error("the certificate has the name {name}, which the workload does not own")]
    ForeignName { name: String },
    #[error("peers would refuse the certificate")]
    Refused(#[source] Refusal),
    #[error(transparent)]
    Staple(#[from] StapleError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Roots(#[from] RootsError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    X509(#[from] X509Error),
}
