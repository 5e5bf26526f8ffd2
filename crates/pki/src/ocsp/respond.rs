//! The responder: a request in DER (or in the path of a GET) becomes a signed response, or one of the unsigned refusals of
//! RFC 6960.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use x509_cert::Certificate;
use x509_cert::der::asn1::{BitString, OctetString};
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::{ExtendedKeyUsage, KeyUsage, KeyUsages};
use x509_ocsp::{
    AsResponseBytes, BasicOcspResponse, CertId, CertStatus, OcspGeneralizedTime, OcspRequest,
    OcspResponse, OcspResponseStatus, ResponderId, ResponseData, RevokedInfo, SingleResponse,
};

use super::{IssuerIds, OCSP_SIGNING, Status};
use crate::ca::{Ca, CaError, Draft};
use crate::clock::UnixMillis;
use crate::key::Key;
use crate::revocation::Reason;
use crate::x509::{self, Cert, Serial, X509Error};

/// Largest request, DER.
pub const REQUEST_MAX: usize = 4 * 1024;
/// Most certificates asked about in one request.
const ASKED_MAX: usize = 16;
/// Longest nonce (RFC 9654).
const NONCE_MAX: usize = 128;
/// thisUpdate lies this far back, for clocks that are behind.
const BACKDATE: Duration = Duration::from_secs(1);

const NONCE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1.2");
const NO_CHECK: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1.5");
/// `OCSPResponse { internalError }`, for when not even a refusal can be encoded.
const INTERNAL_ERROR: [u8; 5] = [0x30, 0x03, 0x0a, 0x01, 0x02];

/// Answers for the certificates of one or more issuers (several while an intermediate is being replaced).
#[derive(Debug)]
pub struct Responder {
    signers: Vec<Signer>,
    validity: Duration,
}

#[derive(Debug)]
struct Signer {
    ca: Arc<Ca>,
    /// SHA-256 of the issuer's SubjectPublicKeyInfo.
    issuer_key: [u8; 32],
    ids: IssuerIds,
    delegate: Option<Delegate>,
}

#[derive(Debug)]
struct Delegate {
    cert: Certificate,
    key: Key,
    responder: OctetString,
}

impl Responder {
    /// `validity` is the time from thisUpdate to nextUpdate.
    ///
    /// # Errors
    /// [`OcspError::X509`]
    pub fn try_new(
        issuers: impl IntoIterator<Item = Arc<Ca>>,
        validity: Duration,
    ) -> Result<Self, OcspError> {
        let signers = issuers.into_iter().map(|ca| {
            let ids = IssuerIds::of(&ca.cert().subject, &ca.cert().spki)?;
            Ok(Signer {
                issuer_key: x509::sha256(&ca.cert().spki),
                ids,
                delegate: None,
                ca,
            })
        });
        Ok(Self {
            signers: signers.collect::<Result<_, X509Error>>()?,
            validity,
        })
    }

    /// Lets another key sign for `issuer`, which issues it a certificate for nothing but that.
    ///
    /// # Errors
    /// [`OcspError::UnknownIssuer`], [`OcspError::Ca`]
    pub fn with_delegate(
        mut self,
        issuer: &Ca,
        key: Key,
        now: UnixMillis,
        ttl: Duration,
    ) -> Result<Self, OcspError> {
        let signer = self
            .signers
            .iter_mut()
            .find(|s| s.ca.der() == issuer.der())
            .ok_or(OcspError::UnknownIssuer)?;
        let der = delegate_certificate(issuer, key.spki(), now, ttl)?;
        let cert = Certificate::from_der(&der).map_err(|_| X509Error::Certificate)?;
        let ids = IssuerIds::of(&cert.tbs_certificate.subject, key.spki())?;
        let responder = OctetString::new(ids.sha1.1).map_err(|_| X509Error::Encode)?;
        signer.delegate = Some(Delegate {
            cert,
            key,
            responder,
        });
        Ok(self)
    }

    /// The answer to a request; what goes wrong is said as an unsigned response, as the protocol has it. `status` gets the
    /// SHA-256 of the issuer's SubjectPublicKeyInfo and a serial.
    pub fn respond(
        &self,
        request: &[u8],
        now: UnixMillis,
        status: impl Fn(&[u8; 32], &Serial) -> Status,
    ) -> Vec<u8> {
        let done = self.try_respond(request, now, &status);
        let refusal = |status| {
            OcspResponse {
                response_status: status,
                response_bytes: None,
            }
            .to_der()
        };
        let bytes = match done {
            Ok(bytes) => Ok(bytes),
            Err(OcspError::Malformed) => refusal(OcspResponseStatus::MalformedRequest),
            Err(OcspError::UnknownIssuer) => refusal(OcspResponseStatus::Unauthorized),
            Err(_) => refusal(OcspResponseStatus::InternalError),
        };
        bytes.unwrap_or_else(|_| INTERNAL_ERROR.to_vec())
    }

    fn try_respond(
        &self,
        request: &[u8],
        now: UnixMillis,
        status: &impl Fn(&[u8; 32], &Serial) -> Status,
    ) -> Result<Vec<u8>, OcspError> {
        if request.len() > REQUEST_MAX {
            return Err(OcspError::Malformed);
        }
        let tbs = OcspRequest::from_der(request)
            .map_err(|_| OcspError::Malformed)?
            .tbs_request;
        let asked: Vec<CertId> = tbs.request_list.into_iter().map(|r| r.req_cert).collect();
        let first = asked.first().ok_or(OcspError::Malformed)?;
        let nonce = nonce(tbs.request_extensions.as_deref().unwrap_or_default())?;
        if asked.len() > ASKED_MAX {
            return Err(OcspError::Malformed);
        }
        let signer = self
            .signers
            .iter()
            .find(|s| s.ids.matches(first))
            .ok_or(OcspError::UnknownIssuer)?;
        if !asked.iter().all(|id| signer.ids.matches(id)) {
            return Err(OcspError::UnknownIssuer);
        }
        let mut answers = Vec::with_capacity(asked.len());
        for id in asked {
            let serial = Serial::of(&id.serial_number).map_err(|_| OcspError::Malformed)?;
            answers.push(self.answer(id, status(&signer.issuer_key, &serial), now)?);
        }
        signer.sign(answers, nonce, now)
    }

    /// A response about one certificate, made ahead: what a server staples and a control plane hands out.
    ///
    /// # Errors
    /// [`OcspError::UnknownIssuer`] when none of the issuers has this name; [`OcspError::X509`].
    pub fn staple(
        &self,
        cert: &CertificateDer<'_>,
        status: Status,
        now: UnixMillis,
    ) -> Result<Vec<u8>, OcspError> {
        let parsed = Certificate::from_der(cert).map_err(|_| X509Error::Certificate)?;
        let tbs = &parsed.tbs_certificate;
        let message = tbs.to_der().map_err(|_| X509Error::Encode)?;
        let signed = |s: &&Signer| {
            let (algorithm, signature) = (&parsed.signature_algorithm, &parsed.signature);
            s.ca.cert().subject == tbs.issuer
                && x509::verify_signature(&s.ca.cert().spki, algorithm, &message, signature).is_ok()
        };
        let signer = self
            .signers
            .iter()
            .find(signed)
            .ok_or(OcspError::UnknownIssuer)?;
        let id = signer.ids.cert_id(&Serial::of(&tbs.serial_number)?)?;
        signer.sign(vec![self.answer(id, status, now)?], None, now)
    }

    /// The same for a certificate that is known by its record only: SHA-256 of the SubjectPublicKeyInfo of its issuer, and its
    /// serial. `status` is believed: nothing here says that the certificate exists.
    ///
    /// # Errors
    /// [`OcspError::UnknownIssuer`], [`OcspError::X509`]
    pub fn staple_of(
        &self,
        issuer_key: &[u8; 32],
        serial: &Serial,
        status: Status,
        now: UnixMillis,
    ) -> Result<Vec<u8>, OcspError> {
        let signer = self
            .signers
            .iter()
            .find(|s| s.issuer_key == *issuer_key)
            .ok_or(OcspError::UnknownIssuer)?;
        let id = signer.ids.cert_id(serial)?;
        signer.sign(vec![self.answer(id, status, now)?], None, now)
    }

    fn answer(
        &self,
        cert_id: CertId,
        status: Status,
        now: UnixMillis,
    ) -> Result<SingleResponse, X509Error> {
        let cert_status = match status {
            Status::Good => CertStatus::good(),
            Status::Unknown => CertStatus::unknown(),
            Status::Revoked { at, reason } => CertStatus::revoked(RevokedInfo {
                revocation_time: date(at)?,
                revocation_reason: Some(reason)
                    .filter(|r| *r != Reason::Unspecified)
                    .map(Reason::to_code),
            }),
        };
        Ok(SingleResponse {
            cert_id,
            cert_status,
            this_update: date(now.minus(BACKDATE))?,
            next_update: Some(date(now.plus(self.validity))?),
            single_extensions: None,
        })
    }
}

impl Signer {
    fn sign(
        &self,
        responses: Vec<SingleResponse>,
        nonce: Option<Extension>,
        now: UnixMillis,
    ) -> Result<Vec<u8>, OcspError> {
        let by_issuer = || OctetString::new(self.ids.sha1.1.clone()).map_err(|_| X509Error::Encode);
        let (key, responder, certs) = match &self.delegate {
            Some(d) => (&d.key, d.responder.clone(), Some(vec![d.cert.clone()])),
            None => (self.ca.key(), by_issuer()?, None),
        };
        let data = ResponseData {
            version: x509_ocsp::Version::V1,
            responder_id: ResponderId::ByKey(responder),
            produced_at: date(now)?,
            responses,
            response_extensions: nonce.map(|n| vec![n]),
        };
        let message = data.to_der().map_err(|_| X509Error::Encode)?;
        let signature: BitString = key.sign(&message).map_err(CaError::Key)?;
        let basic = BasicOcspResponse {
            tbs_response_data: data,
            signature_algorithm: key.algorithm(),
            signature,
            certs,
        };
        let response = OcspResponse {
            response_status: OcspResponseStatus::Successful,
            response_bytes: Some(basic.to_response_bytes().map_err(|_| X509Error::Encode)?),
        };
        Ok(response.to_der().map_err(|_| X509Error::Encode)?)
    }
}

/// The nonce extension, to be sent back as it came. An unknown critical extension is refused.
fn nonce(extensions: &[Extension]) -> Result<Option<Extension>, OcspError> {
    let mut found = None;
    for extension in extensions {
        if extension.extn_id != NONCE {
            if extension.critical {
                return Err(OcspError::Malformed);
            }
            continue;
        }
        let value = OctetString::from_der(extension.extn_value.as_bytes());
        // Before RFC 8954 the nonce stood there bare; its length is what matters.
        let length = value.map_or(extension.extn_value.as_bytes().len(), |v| {
            v.as_bytes().len()
        });
        if found.is_some() || length == 0 || length > NONCE_MAX {
            return Err(OcspError::Malformed);
        }
        found = Some(extension.clone());
    }
    Ok(found)
}

fn delegate_certificate(
    issuer: &Ca,
    spki: &[u8],
    now: UnixMillis,
    ttl: Duration,
) -> Result<CertificateDer<'static>, OcspError> {
    let usage = KeyUsage(KeyUsages::DigitalSignature.into());
    let draft = Draft {
        serial: &Serial::random()?,
        subject: x509::common_name("Phalanx OCSP responder")?,
        spki,
        not_before: now.minus(BACKDATE),
        not_after: now.plus(ttl).min(issuer.cert().not_after),
        extensions: vec![
            x509::extension(&usage, true)?,
            x509::extension(&ExtendedKeyUsage(vec![OCSP_SIGNING]), true)?,
            x509::raw_extension(NO_CHECK, false, vec![0x05, 0x00])?,
            x509::authority_key_id(issuer.key_id())?,
        ],
    };
    let der = issuer.sign_certificate(draft)?;
    Cert::parse(&der)?;
    Ok(der)
}

/// The request in the path of a GET: base64, then percent-encoded (RFC 6960, A.1). A leading slash is passed over.
///
/// # Errors
/// [`OcspError::Malformed`]
pub fn decode_get(path: &str) -> Result<Vec<u8>, OcspError> {
    let path = path.strip_prefix('/').unwrap_or(path).as_bytes();
    // Every byte percent-encoded, four characters of base64 for three bytes.
    if path.len() > REQUEST_MAX * 4 + 4 {
        return Err(OcspError::Malformed);
    }
    let mut text = Vec::with_capacity(path.len());
    let mut rest = path.iter();
    while let Some(byte) = rest.next() {
        let mut digit = || {
            rest.next()
                .and_then(|b| char::from(*b).to_digit(16))
                .and_then(|d| u8::try_from(d).ok())
        };
        text.push(match byte {
            b'%' => digit()
                .zip(digit())
                .map(|(h, l)| h << 4 | l)
                .ok_or(OcspError::Malformed)?,
            byte => *byte,
        });
    }
    STANDARD.decode(text).map_err(|_| OcspError::Malformed)
}

fn date(at: UnixMillis) -> Result<OcspGeneralizedTime, X509Error> {
    Ok(x509::to_date(at)?.into())
}

#[derive(Debug, thiserror::Error)]
pub enum OcspError {
    #[error(
        "the OCSP request cannot be read (DER, at most {REQUEST_MAX} bytes and {ASKED_MAX} certificates)"
    )]
    Malformed,
    #[error("the issuer is none of ours")]
    UnknownIssuer,
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error(transparent)]
    X509(#[from] X509Error),
}
