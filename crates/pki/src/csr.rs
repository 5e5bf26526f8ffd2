//! Certificate requests (PKCS#10): made by a workload, and taken apart by the authority. A request proves possession of a key
//! and may ask for names that its workload owns. Whatever else it asks for is refused by name, never trimmed.

use std::net::IpAddr;

use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject;
use x509_cert::attr::{Attribute, AttributeTypeAndValue};
use x509_cert::der::asn1::{Ia5String, OctetString, SetOfVec};
use x509_cert::der::oid::{AssociatedOid, ObjectIdentifier};
use x509_cert::der::{Decode, Encode, Tag, Tagged};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::name::RdnSequence;
use x509_cert::request::{CertReq, CertReqInfo, ExtensionReq, Version};
use x509_cert::spki::{SubjectPublicKeyInfoOwned, SubjectPublicKeyInfoRef};

use crate::key::{Key, KeyError, RSA_BITS};
use crate::name::{Name, Workload};
use crate::x509::{self, COMMON_NAME, X509Error};

#[cfg(test)]
mod tests;

/// Largest request, DER.
pub const CSR_MAX: usize = 16 * 1024;
/// Most names in a request.
const NAMES_MAX: usize = 16;

const EC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const RSA_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");

/// What people call the extensions and attributes that requests come with.
const NAMED: &[(&str, &str)] = &[
    ("2.5.29.19", "basicConstraints"),
    ("2.5.29.15", "keyUsage"),
    ("2.5.29.37", "extendedKeyUsage"),
    ("2.5.29.14", "subjectKeyIdentifier"),
    ("2.5.29.35", "authorityKeyIdentifier"),
    ("2.5.29.30", "nameConstraints"),
    ("2.5.29.31", "cRLDistributionPoints"),
    ("2.5.29.32", "certificatePolicies"),
    ("1.3.6.1.5.5.7.1.1", "authorityInfoAccess"),
    ("1.3.6.1.5.5.7.1.24", "tlsFeature"),
    ("1.2.840.113549.1.9.7", "challengePassword"),
    ("1.2.840.113549.1.9.2", "unstructuredName"),
    ("2.5.4.10", "organizationName"),
    ("2.5.4.11", "organizationalUnitName"),
    ("2.5.4.6", "countryName"),
    ("2.5.4.7", "localityName"),
    ("2.5.4.8", "stateOrProvinceName"),
    ("2.5.4.5", "serialNumber"),
    ("1.2.840.113549.1.9.1", "emailAddress"),
];

/// A request whose signature was checked: somebody holds the key.
#[derive(Clone, Debug)]
pub struct Csr {
    spki: Vec<u8>,
    names: Vec<Name>,
    common_names: Vec<String>,
}

impl Csr {
    /// # Errors
    /// [`CsrError`]
    pub fn from_pem(pem: &[u8]) -> Result<Self, CsrError> {
        if pem.len() > CSR_MAX * 2 {
            return Err(CsrError::Malformed);
        }
        let der =
            CertificateSigningRequestDer::from_pem_slice(pem).map_err(|_| CsrError::Malformed)?;
        Self::from_der(&der)
    }

    /// # Errors
    /// [`CsrError`] for bytes that are no request, a weak key, a signature by another key, and whatever is asked for
    /// beyond names.
    pub fn from_der(der: &[u8]) -> Result<Self, CsrError> {
        if der.len() > CSR_MAX {
            return Err(CsrError::Malformed);
        }
        let request = CertReq::from_der(der).map_err(|_| CsrError::Malformed)?;
        let spki = request
            .info
            .public_key
            .to_der()
            .map_err(|_| CsrError::Malformed)?;
        check_key(&spki)?;
        let message = request.info.to_der().map_err(|_| CsrError::Malformed)?;
        x509::verify_signature(&spki, &request.algorithm, &message, &request.signature)
            .map_err(|_| CsrError::Signature)?;
        let mut names = Vec::new();
        for attribute in request.info.attributes.iter() {
            read_attribute(attribute, &mut names)?;
        }
        Ok(Self {
            spki,
            names,
            common_names: common_names(&request.info.subject)?,
        })
    }

    /// Checks that everything asked for is the workload's own. Asking for nothing is asking for all that it owns.
    ///
    /// # Errors
    /// [`CsrError::Wildcard`], [`CsrError::NotOwned`]
    pub fn check_owned(&self, workload: &Workload) -> Result<(), CsrError> {
        let service = &workload.id().service;
        for name in &self.names {
            if name.is_wildcard() {
                return Err(CsrError::Wildcard {
                    name: name.to_string(),
                });
            }
            if !workload.owns(name) {
                return Err(CsrError::NotOwned {
                    name: name.to_string(),
                    owner: workload.id().to_string(),
                });
            }
        }
        for name in &self.common_names {
            if name.contains('*') {
                return Err(CsrError::Wildcard {
                    name: format!("CN={}", name.escape_debug()),
                });
            }
            let own = *name == service.name || workload.owns(&Name::Dns(name.clone()));
            if !own {
                let name = format!("CN={}", name.escape_debug());
                return Err(CsrError::NotOwned {
                    name,
                    owner: workload.id().to_string(),
                });
            }
        }
        Ok(())
    }

    /// The names asked for.
    pub fn names(&self) -> &[Name] {
        &self.names
    }

    /// DER of its SubjectPublicKeyInfo.
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }
}

/// A request, DER, for a key and all names that a workload owns.
///
/// # Errors
/// [`CsrError::Make`]
pub fn request(key: &Key, workload: &Workload) -> Result<Vec<u8>, CsrError> {
    let failed = |_| CsrError::Make(X509Error::Encode);
    let san = x509::extension(&alt_names(&workload.names()).map_err(CsrError::Make)?, true)
        .map_err(CsrError::Make)?;
    let attribute = Attribute::try_from(ExtensionReq(vec![san])).map_err(failed)?;
    let info = CertReqInfo {
        version: Version::V1,
        subject: RdnSequence::default(),
        public_key: SubjectPublicKeyInfoOwned::from_der(key.spki()).map_err(failed)?,
        attributes: SetOfVec::try_from(vec![attribute]).map_err(failed)?,
    };
    let signature = key.sign(&info.to_der().map_err(failed)?)?;
    CertReq {
        info,
        algorithm: key.algorithm(),
        signature,
    }
    .to_der()
    .map_err(failed)
}

pub(crate) fn alt_names(names: &[Name]) -> Result<SubjectAltName, X509Error> {
    let ia5 = |text: &String| Ia5String::new(text).map_err(|_| X509Error::Encode);
    let general = |name: &Name| match name {
        Name::Uri(text) => ia5(text).map(GeneralName::UniformResourceIdentifier),
        Name::Dns(text) => ia5(text).map(GeneralName::DnsName),
        Name::Ip(address) => octets(*address).map(GeneralName::IpAddress),
    };
    Ok(SubjectAltName(
        names.iter().map(general).collect::<Result<_, _>>()?,
    ))
}

fn octets(address: IpAddr) -> Result<OctetString, X509Error> {
    let bytes = match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    OctetString::new(bytes).map_err(|_| X509Error::Encode)
}

/// ECDSA on P-256 or P-384, or RSA of 2048–4096 bits.
fn check_key(spki: &[u8]) -> Result<(), CsrError> {
    let spki = SubjectPublicKeyInfoRef::try_from(spki).map_err(|_| CsrError::Malformed)?;
    let key = spki
        .subject_public_key
        .as_bytes()
        .ok_or(CsrError::Malformed)?;
    match spki.algorithm.oid {
        EC_KEY => match spki.algorithm.parameters_oid() {
            Ok(P256 | P384) => Ok(()),
            Ok(curve) => Err(CsrError::Key {
                what: format!("the curve {curve}"),
            }),
            Err(_) => Err(CsrError::Malformed),
        },
        RSA_KEY => {
            let bits = rsa_bits(key).ok_or(CsrError::Malformed)?;
            if RSA_BITS.contains(&bits) {
                Ok(())
            } else {
                Err(CsrError::Key {
                    what: format!("RSA of {bits} bits"),
                })
            }
        }
        other => Err(CsrError::Key {
            what: format!("the algorithm {other}"),
        }),
    }
}

/// The length of the modulus in `RSAPublicKey`.
fn rsa_bits(key: &[u8]) -> Option<usize> {
    let bits = aws_lc_rs::signature::RsaParameters::public_modulus_len(key).ok()?;
    usize::try_from(bits).ok()
}

fn read_attribute(attribute: &Attribute, names: &mut Vec<Name>) -> Result<(), CsrError> {
    if attribute.oid != ExtensionReq::OID {
        return Err(CsrError::Refused {
            what: format!("the attribute {}", called(&attribute.oid)),
        });
    }
    for value in attribute.values.iter() {
        let der = value.to_der().map_err(|_| CsrError::Malformed)?;
        let ExtensionReq(extensions) =
            ExtensionReq::from_der(&der).map_err(|_| CsrError::Malformed)?;
        for extension in extensions {
            if extension.extn_id != SubjectAltName::OID {
                return Err(CsrError::Refused {
                    what: format!("the extension {}", called(&extension.extn_id)),
                });
            }
            let san = SubjectAltName::from_der(extension.extn_value.as_bytes())
                .map_err(|_| CsrError::Malformed)?;
            for name in &san.0 {
                names.push(own_kind(name)?);
            }
            if names.len() > NAMES_MAX {
                return Err(CsrError::Malformed);
            }
        }
    }
    Ok(())
}

fn own_kind(name: &GeneralName) -> Result<Name, CsrError> {
    match name {
        GeneralName::DnsName(text) => Ok(Name::Dns(text.to_string())),
        GeneralName::UniformResourceIdentifier(text) => Ok(Name::Uri(text.to_string())),
        other => Err(CsrError::Refused {
            what: format!("a name of kind {}", x509::name_kind(other)),
        }),
    }
}

fn common_names(subject: &RdnSequence) -> Result<Vec<String>, CsrError> {
    let parts = subject.0.iter().flat_map(|rdn| rdn.0.iter());
    let text = |part: &AttributeTypeAndValue| {
        if part.oid != COMMON_NAME {
            return Err(CsrError::Refused {
                what: format!("the subject's {}", called(&part.oid)),
            });
        }
        if !matches!(
            part.value.tag(),
            Tag::Utf8String | Tag::PrintableString | Tag::Ia5String
        ) {
            return Err(CsrError::Malformed);
        }
        String::from_utf8(part.value.value().to_vec()).map_err(|_| CsrError::Malformed)
    };
    parts.map(text).collect()
}

fn called(oid: &ObjectIdentifier) -> String {
    let dotted = oid.to_string();
    let name = NAMED.iter().find(|(known, _)| *known == dotted);
    name.map_or(dotted.clone(), |(_, name)| (*name).to_owned())
}

#[derive(Debug, thiserror::Error)]
pub enum CsrError {
    #[error("the certificate request cannot be read (PKCS#10, at most {CSR_MAX} bytes)")]
    Malformed,
    #[error("the certificate request is not signed by the key it is for")]
    Signature,
    #[error(
        "the certificate request's key is {what}; taken are ECDSA on P-256 or P-384, and RSA of 2048 to 4096 bits"
    )]
    Key { what: String },
    #[error(
        "the certificate request asks for {what}, which is not given; names are all that can be asked for"
    )]
    Refused { what: String },
    #[error("the certificate request asks for the wildcard {name}")]
    Wildcard { name: String },
    #[error("the certificate request asks for {name}, which {owner} does not own")]
    NotOwned { name: String, owner: String },
    #[error("cannot make a certificate request")]
    Make(#[source] X509Error),
    #[error(transparent)]
    MakeKey(#[from] KeyError),
}
