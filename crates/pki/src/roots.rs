//! Trust bundles: the root certificates that chains may end in, several at a time while a root is being rotated. A bundle is
//! immutable; a root that has expired is in it but trusted no more.

use std::sync::Arc;

use rustls::pki_types::{CertificateDer, TrustAnchor};

use crate::clock::UnixMillis;
use crate::x509::{self, Cert, X509Error};

/// Most roots in a bundle.
pub const ROOTS_MAX: usize = 16;

/// One trusted root.
#[derive(Clone, Debug)]
pub struct Root {
    der: CertificateDer<'static>,
    anchor: TrustAnchor<'static>,
    subject: String,
    not_before: UnixMillis,
    not_after: UnixMillis,
    fingerprint: [u8; 32],
}

impl Root {
    /// # Errors
    /// [`RootsError::NotCa`] for a certificate without CA:TRUE.
    pub fn parse(der: CertificateDer<'static>) -> Result<Self, RootsError> {
        let cert = Cert::parse(&der)?;
        if !cert.is_ca {
            return Err(RootsError::NotCa {
                subject: cert.subject(),
            });
        }
        let anchor = webpki::anchor_from_trusted_cert(&der)
            .map_err(|_| X509Error::Certificate)?
            .to_owned();
        Ok(Self {
            anchor,
            subject: cert.subject(),
            not_before: cert.not_before,
            not_after: cert.not_after,
            fingerprint: x509::fingerprint(&der),
            der,
        })
    }

    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    pub fn subject(&self) -> &str {
        &self.subject
    }

    pub fn not_after(&self) -> UnixMillis {
        self.not_after
    }

    /// SHA-256 of its DER.
    pub fn fingerprint(&self) -> &[u8; 32] {
        &self.fingerprint
    }
}

/// A set of roots without duplicates, at least one.
#[derive(Clone, Debug)]
pub struct Roots(Arc<[Root]>);

impl Roots {
    /// # Errors
    /// [`RootsError`] for none, more than [`ROOTS_MAX`], or one that is no CA.
    pub fn try_new(
        certs: impl IntoIterator<Item = CertificateDer<'static>>,
    ) -> Result<Self, RootsError> {
        let mut roots: Vec<Root> = Vec::new();
        for der in certs.into_iter().take(x509::CERTS_MAX + 1) {
            let root = Root::parse(der)?;
            if !roots.iter().any(|r| r.fingerprint == root.fingerprint) {
                roots.push(root);
            }
        }
        match roots.len() {
            0 => Err(RootsError::Empty),
            1..=ROOTS_MAX => Ok(Self(roots.into())),
            _ => Err(RootsError::TooMany),
        }
    }

    /// # Errors
    /// [`RootsError`]
    pub fn from_pem(pem: &[u8]) -> Result<Self, RootsError> {
        Self::try_new(x509::certs_from_pem(pem)?)
    }

    pub fn to_pem(&self) -> String {
        x509::certs_to_pem(self.0.iter().map(Root::der))
    }

    pub fn iter(&self) -> impl Iterator<Item = &Root> {
        self.0.iter()
    }

    pub fn contains(&self, fingerprint: &[u8; 32]) -> bool {
        self.0.iter().any(|r| r.fingerprint == *fingerprint)
    }

    /// This bundle and another's: what peers have to trust while roots overlap.
    ///
    /// # Errors
    /// [`RootsError::TooMany`]
    pub fn and(&self, other: &Self) -> Result<Self, RootsError> {
        Self::try_new(self.iter().chain(other.iter()).map(|r| r.der.clone()))
    }

    /// This bundle less one root.
    ///
    /// # Errors
    /// [`RootsError::Empty`] if it was the last.
    pub fn without(&self, fingerprint: &[u8; 32]) -> Result<Self, RootsError> {
        let kept = self.iter().filter(|r| r.fingerprint != *fingerprint);
        Self::try_new(kept.map(|r| r.der.clone()))
    }

    /// Whether one of them has this key, by the SHA-256 of its SPKI.
    pub(crate) fn has_key(&self, key: &[u8; 32]) -> bool {
        self.iter()
            .any(|r| x509::sha256(&webpki::spki_for_anchor(&r.anchor)) == *key)
    }

    pub fn is_same(&self, other: &Self) -> bool {
        self.0.len() == other.0.len() && self.iter().all(|r| other.contains(&r.fingerprint))
    }

    /// NotBefore and NotAfter of the root that an anchor stands for; of several with its key and name, the longest-lived.
    pub(crate) fn life_of(&self, anchor: &TrustAnchor<'_>) -> Option<(UnixMillis, UnixMillis)> {
        let same = |r: &&Root| {
            r.anchor.subject == anchor.subject
                && r.anchor.subject_public_key_info == anchor.subject_public_key_info
        };
        self.iter()
            .filter(same)
            .max_by_key(|r| r.not_after)
            .map(|r| (r.not_before, r.not_after))
    }

    /// The anchors of roots that are valid at a time, give or take `skew`.
    pub(crate) fn anchors(
        &self,
        now: UnixMillis,
        skew: std::time::Duration,
    ) -> Vec<TrustAnchor<'_>> {
        let valid = |r: &&Root| r.not_before <= now.plus(skew) && now.minus(skew) <= r.not_after;
        self.iter()
            .filter(valid)
            .map(|r| borrow(&r.anchor))
            .collect()
    }
}

fn borrow<'a>(anchor: &'a TrustAnchor<'static>) -> TrustAnchor<'a> {
    TrustAnchor {
        subject: anchor.subject.as_ref().into(),
        subject_public_key_info: anchor.subject_public_key_info.as_ref().into(),
        name_constraints: anchor.name_constraints.as_ref().map(|c| c.as_ref().into()),
    }
}

#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    #[error("a trust bundle needs at least one root")]
    Empty,
    #[error("a trust bundle takes at most {ROOTS_MAX} roots")]
    TooMany,
    #[error("`{subject}` is no CA certificate, so it can be no root")]
    NotCa { subject: String },
    #[error(transparent)]
    X509(#[from] X509Error),
}
