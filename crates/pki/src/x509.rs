//! What the rooms above read from and write into certificates: names, times, serials, key identifiers, signatures. DER goes
//! through the crate x509-cert, which refuses what is not canonical; no bytes can make this panic.

use std::fmt;
use std::net::IpAddr;

use aws_lc_rs::digest;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm};
use serde::{Deserialize, Serialize};
use x509_cert::Certificate;
use x509_cert::attr::AttributeTypeAndValue;
use x509_cert::der::asn1::{Any, BitString, GeneralizedTime, OctetString, SetOfVec, UtcTime};
use x509_cert::der::oid::{AssociatedOid, ObjectIdentifier};
use x509_cert::der::pem::LineEnding;
use x509_cert::der::{DateTime, Decode, Encode, Tag};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAltName,
    SubjectKeyIdentifier,
};
use x509_cert::name::{RdnSequence, RelativeDistinguishedName};
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoRef};
use x509_cert::time::Time;

use crate::clock::UnixMillis;
use crate::name::Name;

/// Largest certificate that is looked at, DER.
pub const CERT_MAX: usize = 16 * 1024;
/// Most certificates in one file or chain.
pub const CERTS_MAX: usize = 32;

pub(crate) const ECDSA_SHA256: ObjectIdentifier =
    ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
pub(crate) const ECDSA_SHA384: ObjectIdentifier =
    ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3");
pub(crate) const RSA_SHA256: ObjectIdentifier =
    ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11");
pub(crate) const SERVER_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.1");
pub(crate) const CLIENT_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.2");
pub(crate) const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
/// RFC 7633: features of TLS that the server must offer.
pub(crate) const TLS_FEATURE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.1.24");
/// `SEQUENCE { INTEGER 5 }`: status_request.
pub(crate) const MUST_STAPLE: &[u8] = &[0x30, 0x03, 0x02, 0x01, 0x05];

/// The algorithms that any signature of a certificate, CRL, OCSP response or request may have.
pub(crate) static SIGNATURES: &[&dyn SignatureVerificationAlgorithm] = &[
    webpki::aws_lc_rs::ECDSA_P256_SHA256,
    webpki::aws_lc_rs::ECDSA_P256_SHA384,
    webpki::aws_lc_rs::ECDSA_P384_SHA256,
    webpki::aws_lc_rs::ECDSA_P384_SHA384,
    webpki::aws_lc_rs::RSA_PKCS1_2048_8192_SHA256,
    webpki::aws_lc_rs::RSA_PKCS1_2048_8192_SHA384,
    webpki::aws_lc_rs::RSA_PKCS1_2048_8192_SHA512,
];

/// A serial number: positive, big endian, without leading zeros, at most 20 bytes. Shown and stored as lower-case hex.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Serial(Vec<u8>);

impl Serial {
    /// 126 random bits.
    ///
    /// # Errors
    /// [`X509Error::Random`]
    pub fn random() -> Result<Self, X509Error> {
        let mut bytes = [0u8; 16];
        aws_lc_rs::rand::fill(&mut bytes).map_err(|_| X509Error::Random)?;
        // Positive, and always 16 bytes long.
        bytes[0] = (bytes[0] & 0x7f) | 0x40;
        Ok(Self(bytes.to_vec()))
    }

    /// Hex, with or without colons, as openssl prints it.
    ///
    /// # Errors
    /// [`X509Error::Serial`]
    pub fn parse(text: &str) -> Result<Self, X509Error> {
        if text.len() > 64 {
            return Err(X509Error::Serial);
        }
        let digits: Vec<u8> = text
            .chars()
            .filter(|c| *c != ':')
            .map(|c| {
                c.to_digit(16)
                    .and_then(|d| u8::try_from(d).ok())
                    .ok_or(X509Error::Serial)
            })
            .collect::<Result<_, _>>()?;
        let odd = digits.len() % 2;
        let padded: Vec<u8> = std::iter::repeat_n(0, odd).chain(digits).collect();
        let bytes: Vec<u8> = padded
            .chunks(2)
            .map(|pair| pair.iter().fold(0, |acc, d| acc << 4 | d))
            .collect();
        Self::of_bytes(&bytes)
    }

    /// Of no certificate.
    pub(crate) fn none() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn of_bytes(bytes: &[u8]) -> Result<Self, X509Error> {
        let zeros = bytes.iter().take_while(|b| **b == 0).count();
        let bytes = bytes.get(zeros..).unwrap_or_default();
        if bytes.is_empty() || bytes.len() > 20 {
            return Err(X509Error::Serial);
        }
        Ok(Self(bytes.to_vec()))
    }

    pub(crate) fn of(number: &SerialNumber) -> Result<Self, X509Error> {
        let der = number.to_der().map_err(|_| X509Error::Serial)?;
        match der.get(2..) {
            // A negative number is no serial.
            Some([first, ..]) if first & 0x80 != 0 => Err(X509Error::Serial),
            Some(value) => Self::of_bytes(value),
            None => Err(X509Error::Serial),
        }
    }

    pub(crate) fn to_number(&self) -> Result<SerialNumber, X509Error> {
        SerialNumber::new(&self.0).map_err(|_| X509Error::Serial)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Serial({self})")
    }
}

impl TryFrom<String> for Serial {
    type Error = X509Error;
    fn try_from(text: String) -> Result<Self, X509Error> {
        Self::parse(&text)
    }
}

impl From<Serial> for String {
    fn from(serial: Serial) -> Self {
        serial.to_string()
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, b| {
        use fmt::Write;
        let _ = write!(text, "{b:02x}");
        text
    })
}

/// What one certificate says, read once.
#[derive(Clone, Debug)]
pub struct Cert {
    pub serial: Serial,
    pub not_before: UnixMillis,
    pub not_after: UnixMillis,
    /// Its DNS, URI and address names, in order.
    pub names: Vec<Name>,
    /// Kinds of subject alternative names that are none of these.
    pub other_names: Vec<&'static str>,
    pub is_ca: bool,
    /// RFC 7633: it is good only with a stapled OCSP response.
    pub must_staple: bool,
    pub(crate) usages: Option<Vec<ObjectIdentifier>>,
    pub(crate) key_usage: Option<KeyUsage>,
    pub(crate) subject: RdnSequence,
    pub(crate) issuer: RdnSequence,
    pub(crate) subject_key_id: Option<Vec<u8>>,
    /// DER of its SubjectPublicKeyInfo.
    pub(crate) spki: Vec<u8>,
}

impl Cert {
    /// # Errors
    /// [`X509Error::Certificate`]
    pub fn parse(der: &[u8]) -> Result<Self, X509Error> {
        if der.len() > CERT_MAX {
            return Err(X509Error::Certificate);
        }
        let cert = Certificate::from_der(der).map_err(|_| X509Error::Certificate)?;
        Self::read(&cert).map_err(|_| X509Error::Certificate)
    }

    fn read(cert: &Certificate) -> Result<Self, X509Error> {
        let tbs = &cert.tbs_certificate;
        let bad = |_| X509Error::Certificate;
        let (mut names, mut other_names) = (Vec::new(), Vec::new());
        if let Some((_, san)) = tbs.get::<SubjectAltName>().map_err(bad)? {
            for name in &san.0 {
                match name {
                    GeneralName::DnsName(text) => names.push(Name::Dns(text.to_string())),
                    GeneralName::UniformResourceIdentifier(text) => {
                        names.push(Name::Uri(text.to_string()))
                    }
                    GeneralName::IpAddress(octets) => {
                        names.push(Name::Ip(address(octets.as_bytes())?));
                    }
                    other => other_names.push(name_kind(other)),
                }
            }
        }
        let feature = tbs
            .extensions
            .iter()
            .flatten()
            .find(|e| e.extn_id == TLS_FEATURE);
        Ok(Self {
            serial: Serial::of(&tbs.serial_number)?,
            not_before: of_time(&tbs.validity.not_before),
            not_after: of_time(&tbs.validity.not_after),
            names,
            other_names,
            is_ca: tbs
                .get::<BasicConstraints>()
                .map_err(bad)?
                .is_some_and(|(_, b)| b.ca),
            must_staple: feature.is_some_and(|e| e.extn_value.as_bytes() == MUST_STAPLE),
            usages: tbs
                .get::<ExtendedKeyUsage>()
                .map_err(bad)?
                .map(|(_, u)| u.0),
            key_usage: tbs.get::<KeyUsage>().map_err(bad)?.map(|(_, u)| u),
            subject: tbs.subject.clone(),
            issuer: tbs.issuer.clone(),
            subject_key_id: tbs
                .get::<SubjectKeyIdentifier>()
                .map_err(bad)?
                .map(|(_, id)| id.0.as_bytes().to_vec()),
            spki: tbs.subject_public_key_info.to_der().map_err(bad)?,
        })
    }

    /// The subject as RFC 4514 writes it.
    pub fn subject(&self) -> String {
        self.subject.to_string()
    }

    pub fn issuer(&self) -> String {
        self.issuer.to_string()
    }
}

fn address(octets: &[u8]) -> Result<IpAddr, X509Error> {
    let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from);
    let v6 = || <[u8; 16]>::try_from(octets).map(IpAddr::from);
    v4.or_else(|_| v6()).map_err(|_| X509Error::Certificate)
}

pub(crate) fn name_kind(name: &GeneralName) -> &'static str {
    match name {
        GeneralName::OtherName(_) => "otherName",
        GeneralName::Rfc822Name(_) => "rfc822Name",
        GeneralName::DnsName(_) => "dNSName",
        GeneralName::DirectoryName(_) => "directoryName",
        GeneralName::EdiPartyName(_) => "ediPartyName",
        GeneralName::UniformResourceIdentifier(_) => "uniformResourceIdentifier",
        GeneralName::IpAddress(_) => "iPAddress",
        GeneralName::RegisteredId(_) => "registeredID",
    }
}

/// SHA-256 of DER: the name of a certificate among people and in tables.
pub fn fingerprint(der: &[u8]) -> [u8; 32] {
    sha256(der)
}

pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

/// The certificates of a PEM text, in order; other sections are passed over.
///
/// # Errors
/// [`X509Error::Pem`] for none, a damaged one, or more than [`CERTS_MAX`].
pub fn certs_from_pem(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, X509Error> {
    let certs: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .take(CERTS_MAX + 1)
        .collect::<Result<_, _>>()
        .map_err(|_| X509Error::Pem)?;
    if certs.is_empty() || certs.len() > CERTS_MAX || certs.iter().any(|c| c.len() > CERT_MAX) {
        return Err(X509Error::Pem);
    }
    Ok(certs)
}

/// Certificates as PEM, in order.
pub fn certs_to_pem<'a>(certs: impl IntoIterator<Item = &'a CertificateDer<'static>>) -> String {
    certs.into_iter().map(|c| pem("CERTIFICATE", c)).collect()
}

/// Any DER as PEM.
pub fn pem(label: &str, der: &[u8]) -> String {
    x509_cert::der::pem::encode_string(label, LineEnding::LF, der).unwrap_or_default()
}

/// Checks a signature against the key in a SubjectPublicKeyInfo.
pub(crate) fn verify_signature(
    spki: &[u8],
    algorithm: &AlgorithmIdentifierOwned,
    message: &[u8],
    signature: &BitString,
) -> Result<(), X509Error> {
    // Whole bytes: a bit less would be another encoding of the same signature.
    let signature = signature.as_bytes().ok_or(X509Error::Signature)?;
    let spki = SubjectPublicKeyInfoRef::try_from(spki).map_err(|_| X509Error::Signature)?;
    let key = spki
        .subject_public_key
        .as_bytes()
        .ok_or(X509Error::Signature)?;
    let key_id = contents(&spki.algorithm)?;
    let signature_id = contents(algorithm)?;
    let fits = |a: &&&dyn SignatureVerificationAlgorithm| {
        a.public_key_alg_id().as_ref() == key_id && a.signature_alg_id().as_ref() == signature_id
    };
    let found = SIGNATURES.iter().find(fits).ok_or(X509Error::Signature)?;
    found
        .verify_signature(key, message, signature)
        .map_err(|_| X509Error::Signature)
}

/// An encoding without its outer tag and length.
pub(crate) fn contents(value: &impl Encode) -> Result<Vec<u8>, X509Error> {
    let der = value.to_der().map_err(|_| X509Error::Encode)?;
    let any = Any::from_der(&der).map_err(|_| X509Error::Encode)?;
    Ok(any.value().to_vec())
}

/// UTCTime through 2049, GeneralizedTime after (RFC 5280, 4.1.2.5); fractions of a second are cut off.
pub(crate) fn to_time(at: UnixMillis) -> Result<Time, X509Error> {
    let date = to_date(at)?;
    if date.year() <= UtcTime::MAX_YEAR {
        UtcTime::from_date_time(date)
            .map(Time::UtcTime)
            .map_err(|_| X509Error::Encode)
    } else {
        Ok(Time::GeneralTime(GeneralizedTime::from_date_time(date)))
    }
}

pub(crate) fn to_date(at: UnixMillis) -> Result<DateTime, X509Error> {
    DateTime::from_unix_duration(std::time::Duration::from_secs(at.as_secs()))
        .map_err(|_| X509Error::Encode)
}

pub(crate) fn of_time(time: &Time) -> UnixMillis {
    UnixMillis::from_secs(
        i64::try_from(time.to_unix_duration().as_secs()).unwrap_or(i64::MAX / 1000),
    )
}

pub(crate) fn of_date(date: &DateTime) -> UnixMillis {
    UnixMillis::from_secs(i64::try_from(date.unix_duration().as_secs()).unwrap_or(i64::MAX / 1000))
}

/// `CN=<text>`
pub(crate) fn common_name(text: &str) -> Result<RdnSequence, X509Error> {
    let value = Any::new(Tag::Utf8String, text.as_bytes()).map_err(|_| X509Error::Encode)?;
    let set = SetOfVec::try_from(vec![AttributeTypeAndValue {
        oid: COMMON_NAME,
        value,
    }]);
    Ok(RdnSequence(vec![RelativeDistinguishedName(
        set.map_err(|_| X509Error::Encode)?,
    )]))
}

/// The first 160 bits of the key's SHA-256 (RFC 7093, method 1).
pub(crate) fn key_id(spki: &[u8]) -> Result<Vec<u8>, X509Error> {
    let spki = SubjectPublicKeyInfoRef::try_from(spki).map_err(|_| X509Error::Certificate)?;
    let hash = sha256(spki.subject_public_key.raw_bytes());
    Ok(hash.iter().take(20).copied().collect())
}

pub(crate) fn extension<T: AssociatedOid + Encode>(
    value: &T,
    critical: bool,
) -> Result<Extension, X509Error> {
    raw_extension(
        T::OID,
        critical,
        value.to_der().map_err(|_| X509Error::Encode)?,
    )
}

pub(crate) fn raw_extension(
    oid: ObjectIdentifier,
    critical: bool,
    der: Vec<u8>,
) -> Result<Extension, X509Error> {
    let extn_value = OctetString::new(der).map_err(|_| X509Error::Encode)?;
    Ok(Extension {
        extn_id: oid,
        critical,
        extn_value,
    })
}

pub(crate) fn authority_key_id(id: &[u8]) -> Result<Extension, X509Error> {
    let key_identifier = Some(OctetString::new(id).map_err(|_| X509Error::Encode)?);
    let value = AuthorityKeyIdentifier {
        key_identifier,
        authority_cert_issuer: None,
        authority_cert_serial_number: None,
    };
    extension(&value, false)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum X509Error {
    #[error("the certificate cannot be read (X.509 v3 in DER, at most {CERT_MAX} bytes)")]
    Certificate,
    #[error("no certificates in PEM (1 to {CERTS_MAX})")]
    Pem,
    #[error("no serial number: positive, at most 20 bytes, as hex")]
    Serial,
    #[error("the signature does not match, or its algorithm is not allowed")]
    Signature,
    #[error("cannot encode")]
    Encode,
    #[error("no randomness")]
    Random,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serials_are_positive_long_and_different() {
        let (a, b) = (Serial::random().unwrap(), Serial::random().unwrap());
        assert_ne!(a, b);
        assert_eq!(a.as_bytes().len(), 16);
        assert!(a.as_bytes()[0] < 0x80);
        assert_eq!(Serial::parse(&a.to_string()).unwrap(), a);
        assert_eq!(
            Serial::parse("00:A0:1").unwrap(),
            Serial::of_bytes(&[0x0a, 0x01]).unwrap()
        );
        for bad in ["", "0", "zz", &"11".repeat(21)] {
            assert!(Serial::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_serial_survives_its_number() {
        for bytes in [&[0x80u8, 1][..], &[1], &[0x7f; 20]] {
            let serial = Serial::of_bytes(bytes).unwrap();
            assert_eq!(Serial::of(&serial.to_number().unwrap()).unwrap(), serial);
        }
    }

    #[test]
    fn dates_survive_the_year_2050() {
        for secs in [0, 1_795_362_049, 2_524_608_000, 4_102_444_800] {
            let at = UnixMillis::from_secs(secs);
            assert_eq!(of_time(&to_time(at).unwrap()), at);
        }
    }
}
