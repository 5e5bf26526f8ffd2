//! OCSP (RFC 6960, 5019): the responder's answers, staples made ahead, and the check of a staple that a peer sent. Bytes in,
//! bytes out; who is revoked is asked from outside.

use aws_lc_rs::digest;
use x509_cert::der::Encode;
use x509_cert::der::asn1::{Null, OctetString};
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::name::RdnSequence;
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoRef};
use x509_ocsp::CertId;

use crate::clock::UnixMillis;
use crate::revocation::Reason;
use crate::x509::{Serial, X509Error};

mod ask;
mod respond;
mod staple;
#[cfg(test)]
mod tests;

pub(crate) use ask::request;
pub use respond::{OcspError, REQUEST_MAX, Responder, decode_get};
pub use staple::{STAPLE_MAX, Staple, StapleError};
pub(crate) use staple::{Subject, check_staple};

const SHA1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.14.3.2.26");
const SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1");
const OCSP_SIGNING: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.9");

/// What the issuance log says about a serial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Good,
    Revoked {
        at: UnixMillis,
        reason: Reason,
    },
    /// The issuer never issued it.
    Unknown,
}

/// How a request names an issuer: hashes of its name and of its key, by SHA-1 and by SHA-256.
#[derive(Debug)]
struct IssuerIds {
    sha1: (Vec<u8>, Vec<u8>),
    sha256: (Vec<u8>, Vec<u8>),
}

impl IssuerIds {
    fn of(name: &RdnSequence, spki: &[u8]) -> Result<Self, X509Error> {
        let name = name.to_der().map_err(|_| X509Error::Encode)?;
        let spki = SubjectPublicKeyInfoRef::try_from(spki).map_err(|_| X509Error::Certificate)?;
        let key = spki.subject_public_key.raw_bytes();
        // SHA-1 only names the issuer here, as RFC 5019 has it; nothing rests on its strength.
        let pair = |algorithm| {
            [&name, key].map(|bytes: &[u8]| digest::digest(algorithm, bytes).as_ref().to_vec())
        };
        let [name1, key1] = pair(&digest::SHA1_FOR_LEGACY_USE_ONLY);
        let [name256, key256] = pair(&digest::SHA256);
        Ok(Self {
            sha1: (name1, key1),
            sha256: (name256, key256),
        })
    }

    fn matches(&self, id: &CertId) -> bool {
        let (name, key) = match id.hash_algorithm.oid {
            SHA1 => &self.sha1,
            SHA256 => &self.sha256,
            _ => return false,
        };
        id.issuer_name_hash.as_bytes() == name.as_slice()
            && id.issuer_key_hash.as_bytes() == key.as_slice()
    }

    /// By SHA-1, which every client understands.
    fn cert_id(&self, serial: &Serial) -> Result<CertId, X509Error> {
        let octets =
            |bytes: &Vec<u8>| OctetString::new(bytes.clone()).map_err(|_| X509Error::Encode);
        Ok(CertId {
            hash_algorithm: AlgorithmIdentifierOwned {
                oid: SHA1,
                parameters: Some(Null.into()),
            },
            issuer_name_hash: octets(&self.sha1.0)?,
            issuer_key_hash: octets(&self.sha1.1)?,
            serial_number: serial.to_number()?,
        })
    }
}
