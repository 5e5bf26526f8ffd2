//! The check of a stapled response: right certificate, right signer, in time, and what it says. rustls hands over the bytes
//! and checks nothing itself.

use std::time::Duration;

use x509_cert::Certificate;
use x509_cert::der::{Decode, Encode};
use x509_cert::name::RdnSequence;
use x509_ocsp::{
    BasicOcspResponse, CertStatus, OcspResponse, OcspResponseStatus, ResponderId, SingleResponse,
};

use super::{IssuerIds, OCSP_SIGNING};
use crate::clock::UnixMillis;
use crate::x509::{self, Cert, Serial};

/// Largest staple, DER.
pub const STAPLE_MAX: usize = 16 * 1024;
/// Most certificates that a response may bring along.
const CERTS_MAX: usize = 4;
/// Most answers in one response.
const ANSWERS_MAX: usize = 16;
const BASIC: &str = "1.3.6.1.5.5.7.48.1.1";

/// What a staple says about its certificate, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Staple {
    pub this_update: UnixMillis,
    pub next_update: UnixMillis,
}

/// Which certificate the staple should be about.
pub(crate) struct Subject<'a> {
    pub serial: &'a Serial,
    pub issuer: &'a RdnSequence,
    /// DER of the issuer's SubjectPublicKeyInfo.
    pub issuer_spki: &'a [u8],
}

/// `Ok` means good: revoked and unknown are errors.
pub(crate) fn check_staple(
    bytes: &[u8],
    subject: &Subject<'_>,
    now: UnixMillis,
    skew: Duration,
) -> Result<Staple, StapleError> {
    if bytes.len() > STAPLE_MAX {
        return Err(StapleError::Malformed);
    }
    let response = OcspResponse::from_der(bytes).map_err(|_| StapleError::Malformed)?;
    if response.response_status != OcspResponseStatus::Successful {
        return Err(StapleError::NoAnswer);
    }
    let body = response.response_bytes.ok_or(StapleError::Malformed)?;
    if body.response_type.to_string() != BASIC {
        return Err(StapleError::Malformed);
    }
    let basic = BasicOcspResponse::from_der(body.response.as_bytes())
        .map_err(|_| StapleError::Malformed)?;
    check_signer(&basic, subject, now, skew)?;
    let answer = find_answer(&basic, subject)?;
    let extensions = [
        &answer.single_extensions,
        &basic.tbs_response_data.response_extensions,
    ];
    if extensions
        .into_iter()
        .flatten()
        .flatten()
        .any(|e| e.critical)
    {
        return Err(StapleError::Malformed);
    }
    let this_update = x509::of_date(&answer.this_update.0.to_date_time());
    let next_update = answer.next_update.ok_or(StapleError::Stale)?;
    let next_update = x509::of_date(&next_update.0.to_date_time());
    // Revoked first: an old response that says so is still a reason to refuse.
    if matches!(answer.cert_status, CertStatus::Revoked(_)) {
        return Err(StapleError::Revoked);
    }
    if now.minus(skew) > next_update || this_update > now.plus(skew) || next_update < this_update {
        return Err(StapleError::Stale);
    }
    match answer.cert_status {
        CertStatus::Good(_) => Ok(Staple {
            this_update,
            next_update,
        }),
        _ => Err(StapleError::Unknown),
    }
}

fn find_answer<'a>(
    basic: &'a BasicOcspResponse,
    subject: &Subject<'_>,
) -> Result<&'a SingleResponse, StapleError> {
    let ids =
        IssuerIds::of(subject.issuer, subject.issuer_spki).map_err(|_| StapleError::Malformed)?;
    let answers = &basic.tbs_response_data.responses;
    if answers.len() > ANSWERS_MAX {
        return Err(StapleError::Malformed);
    }
    let about = |a: &&SingleResponse| {
        ids.matches(&a.cert_id)
            && Serial::of(&a.cert_id.serial_number).as_ref() == Ok(subject.serial)
    };
    answers
        .iter()
        .find(about)
        .ok_or(StapleError::OtherCertificate)
}

/// The issuer itself, or one whom it gave a certificate for signing OCSP (RFC 6960, 4.2.2.2).
fn check_signer(
    basic: &BasicOcspResponse,
    subject: &Subject<'_>,
    now: UnixMillis,
    skew: Duration,
) -> Result<(), StapleError> {
    let wrong = StapleError::Signature;
    let message = basic
        .tbs_response_data
        .to_der()
        .map_err(|_| StapleError::Malformed)?;
    let signed_by = |name: &RdnSequence, spki: &[u8]| {
        is_responder(&basic.tbs_response_data.responder_id, name, spki)
            && x509::verify_signature(spki, &basic.signature_algorithm, &message, &basic.signature)
                .is_ok()
    };
    if signed_by(subject.issuer, subject.issuer_spki) {
        return Ok(());
    }
    let certs = basic.certs.as_deref().unwrap_or_default();
    if certs.len() > CERTS_MAX {
        return Err(StapleError::Malformed);
    }
    for delegate in certs {
        let Some(cert) = delegated(delegate, subject, now, skew) else {
            continue;
        };
        if signed_by(&cert.subject, &cert.spki) {
            return Ok(());
        }
    }
    Err(wrong)
}

/// A responder's certificate that the issuer signed for this purpose, in time.
fn delegated(
    cert: &Certificate,
    subject: &Subject<'_>,
    now: UnixMillis,
    skew: Duration,
) -> Option<Cert> {
    let message = cert.tbs_certificate.to_der().ok()?;
    let parsed = Cert::parse(&cert.to_der().ok()?).ok()?;
    let purpose = parsed
        .usages
        .as_ref()
        .is_some_and(|u| u.contains(&OCSP_SIGNING));
    let in_time = parsed.not_before <= now.plus(skew) && now.minus(skew) <= parsed.not_after;
    let signature = &cert.signature;
    let signed = || {
        x509::verify_signature(
            subject.issuer_spki,
            &cert.signature_algorithm,
            &message,
            signature,
        )
        .is_ok()
    };
    let fits = purpose && in_time && !parsed.is_ca && parsed.issuer == *subject.issuer && signed();
    fits.then_some(parsed)
}

fn is_responder(id: &ResponderId, name: &RdnSequence, spki: &[u8]) -> bool {
    match id {
        ResponderId::ByName(by) => by == name,
        ResponderId::ByKey(hash) => {
            IssuerIds::of(name, spki).is_ok_and(|ids| ids.sha1.1.as_slice() == hash.as_bytes())
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StapleError {
    #[error("the stapled OCSP response cannot be read")]
    Malformed,
    #[error("the stapled OCSP response is an error of its responder")]
    NoAnswer,
    #[error("the stapled OCSP response is signed by nobody entitled to it")]
    Signature,
    #[error("the stapled OCSP response is about another certificate")]
    OtherCertificate,
    #[error("the stapled OCSP response is out of date")]
    Stale,
    #[error("the stapled OCSP response says that the issuer does not know the certificate")]
    Unknown,
    #[error("the stapled OCSP response says that the certificate is revoked")]
    Revoked,
}
