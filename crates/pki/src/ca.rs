//! A certificate authority's certificate with its key: the only thing that signs certificates, CRLs and OCSP responses.

use rustls::pki_types::CertificateDer;
use x509_cert::Certificate;
use x509_cert::certificate::{CertificateInner, TbsCertificateInner, Version};
use x509_cert::der::asn1::BitString;
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::Extension;
use x509_cert::name::RdnSequence;
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};
use x509_cert::time::Validity;

use crate::clock::UnixMillis;
use crate::key::{Key, KeyError};
use crate::x509::{self, Cert, Serial, X509Error};

/// A CA certificate and the key that goes with it.
#[derive(Debug)]
pub struct Ca {
    der: CertificateDer<'static>,
    cert: Cert,
    key: Key,
    key_id: Vec<u8>,
}

impl Ca {
    /// # Errors
    /// [`CaError`] when the key is another's, or the certificate may not sign certificates.
    pub fn try_new(der: CertificateDer<'static>, key: Key) -> Result<Self, CaError> {
        let cert = Cert::parse(&der)?;
        if cert.spki != key.spki() {
            return Err(CaError::KeyMismatch);
        }
        if !cert.is_ca || cert.key_usage.is_some_and(|u| !u.key_cert_sign()) {
            return Err(CaError::NotCa);
        }
        let key_id = match &cert.subject_key_id {
            Some(id) => id.clone(),
            None => x509::key_id(&cert.spki)?,
        };
        Ok(Self {
            der,
            cert,
            key,
            key_id,
        })
    }

    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    pub fn cert(&self) -> &Cert {
        &self.cert
    }

    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Whether its certificate lets it sign CRLs (no key usage at all does, RFC 5280 4.2.1.3).
    pub fn signs_crls(&self) -> bool {
        self.cert.key_usage.is_none_or(|u| u.crl_sign())
    }

    pub(crate) fn key_id(&self) -> &[u8] {
        &self.key_id
    }

    /// Signs the encoding of what is to be signed.
    pub(crate) fn sign(&self, tbs: &impl Encode) -> Result<BitString, CaError> {
        let message = tbs.to_der().map_err(|_| X509Error::Encode)?;
        Ok(self.key.sign(&message)?)
    }

    pub(crate) fn sign_certificate(
        &self,
        draft: Draft<'_>,
    ) -> Result<CertificateDer<'static>, CaError> {
        sign_draft(draft, self.cert.subject.clone(), &self.key)
    }
}

/// A certificate before it is signed.
pub(crate) struct Draft<'a> {
    pub serial: &'a Serial,
    pub subject: RdnSequence,
    /// DER
    pub spki: &'a [u8],
    pub not_before: UnixMillis,
    pub not_after: UnixMillis,
    pub extensions: Vec<Extension>,
}

pub(crate) fn sign_draft(
    draft: Draft<'_>,
    issuer: RdnSequence,
    key: &Key,
) -> Result<CertificateDer<'static>, CaError> {
    let algorithm: AlgorithmIdentifierOwned = key.algorithm();
    let spki = SubjectPublicKeyInfoOwned::from_der(draft.spki).map_err(|_| X509Error::Encode)?;
    let tbs = TbsCertificateInner {
        version: Version::V3,
        serial_number: draft.serial.to_number()?,
        signature: algorithm.clone(),
        issuer,
        validity: Validity {
            not_before: x509::to_time(draft.not_before)?,
            not_after: x509::to_time(draft.not_after)?,
        },
        subject: draft.subject,
        subject_public_key_info: spki,
        issuer_unique_id: None,
        subject_unique_id: None,
        extensions: Some(draft.extensions),
    };
    let message = tbs.to_der().map_err(|_| X509Error::Encode)?;
    let signature = key.sign(&message)?;
    let cert: Certificate = CertificateInner {
        tbs_certificate: tbs,
        signature_algorithm: algorithm,
        signature,
    };
    Ok(CertificateDer::from(
        cert.to_der().map_err(|_| X509Error::Encode)?,
    ))
}

#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("the private key does not belong to the CA certificate")]
    KeyMismatch,
    #[error(
        "the certificate is no CA's: it needs CA:TRUE and, where it has a key usage, keyCertSign"
    )]
    NotCa,
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    X509(#[from] X509Error),
}
