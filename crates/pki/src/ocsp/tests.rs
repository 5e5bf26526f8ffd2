use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use x509_cert::der::Decode;
use x509_ocsp::{
    BasicOcspResponse, CertStatus, OcspRequest, OcspResponse, OcspResponseStatus, Request,
    TbsRequest,
};

use super::*;
use crate::key::{Key, KeyKind};
use crate::tests::*;
use crate::x509::Cert;

fn responder(issuer: &Issuer) -> Responder {
    Responder::try_new([issuer.ca().clone()], HOUR).unwrap()
}

fn check(
    issuer: &Issuer,
    leaf: &CertificateDer<'_>,
    bytes: &[u8],
    now: UnixMillis,
) -> Result<Staple, StapleError> {
    let cert = Cert::parse(leaf).unwrap();
    let subject = Subject {
        serial: &cert.serial,
        issuer: &cert.issuer,
        issuer_spki: &issuer.ca().cert().spki,
    };
    check_staple(bytes, &subject, now, SKEW)
}

fn request(issuer: &Issuer, serials: &[&Serial]) -> Vec<u8> {
    let ids = IssuerIds::of(&issuer.ca().cert().subject, &issuer.ca().cert().spki).unwrap();
    let one = |serial: &&Serial| Request {
        req_cert: ids.cert_id(serial).unwrap(),
        single_request_extensions: None,
    };
    let tbs_request = TbsRequest {
        request_list: serials.iter().map(one).collect(),
        ..TbsRequest::default()
    };
    OcspRequest {
        tbs_request,
        optional_signature: None,
    }
    .to_der()
    .unwrap()
}

fn status_of(bytes: &[u8]) -> OcspResponseStatus {
    OcspResponse::from_der(bytes).unwrap().response_status
}

#[test]
fn a_staple_says_good_for_its_own_certificate_and_its_time() {
    let issuer = issuer();
    let (a, b) = (
        leaf(&issuer, "a", HOUR, NOW).0,
        leaf(&issuer, "b", HOUR, NOW).0,
    );
    let staple = responder(&issuer)
        .staple(&a.chain[0], Status::Good, NOW)
        .unwrap();
    assert!(staple.len() < 400, "{}", staple.len());
    let read = check(&issuer, &a.chain[0], &staple, NOW).unwrap();
    assert_eq!(read.next_update, NOW.plus(HOUR));
    assert_eq!(
        check(&issuer, &b.chain[0], &staple, NOW),
        Err(StapleError::OtherCertificate)
    );
    let ms = Duration::from_millis;
    assert!(check(&issuer, &a.chain[0], &staple, NOW.plus(HOUR).plus(ms(200))).is_ok());
    assert_eq!(
        check(&issuer, &a.chain[0], &staple, NOW.plus(HOUR).plus(ms(201))),
        Err(StapleError::Stale)
    );
    assert_eq!(
        check(&issuer, &a.chain[0], &staple, NOW.minus(ms(1_201))),
        Err(StapleError::Stale)
    );
}

#[test]
fn revoked_and_unknown_are_no_good() {
    let issuer = issuer();
    let cert = leaf(&issuer, "a", HOUR, NOW).0.chain[0].clone();
    let revoked = Status::Revoked {
        at: NOW,
        reason: Reason::KeyCompromise,
    };
    let staple = |status| responder(&issuer).staple(&cert, status, NOW).unwrap();
    assert_eq!(
        check(&issuer, &cert, &staple(revoked), NOW),
        Err(StapleError::Revoked)
    );
    assert_eq!(
        check(&issuer, &cert, &staple(revoked), NOW.plus(2 * HOUR)),
        Err(StapleError::Revoked)
    );
    assert_eq!(
        check(&issuer, &cert, &staple(Status::Unknown), NOW),
        Err(StapleError::Unknown)
    );
}

#[test]
fn only_the_issuer_or_its_delegate_may_sign() {
    let (issuer, other) = (issuer(), issuer());
    let cert = leaf(&issuer, "a", HOUR, NOW).0.chain[0].clone();
    assert!(responder(&other).staple(&cert, Status::Good, NOW).is_err());
    let key = || Key::generate(KeyKind::default()).unwrap();
    let delegated = responder(&issuer)
        .with_delegate(issuer.ca(), key(), NOW, HOUR)
        .unwrap();
    let staple = delegated.staple(&cert, Status::Good, NOW).unwrap();
    assert!(check(&issuer, &cert, &staple, NOW).is_ok());
    // The delegate's certificate has run out, though the response has not.
    let later = delegated
        .staple(&cert, Status::Good, NOW.plus(HOUR))
        .unwrap();
    assert_eq!(
        check(&issuer, &cert, &later, NOW.plus(HOUR + HOUR / 2)),
        Err(StapleError::Signature)
    );
    // A workload's leaf of the same issuer signs nothing.
    let (leaf, leaf_key) = leaf(&issuer, "evil", HOUR, NOW);
    let forged = forge_by_leaf(&staple, &leaf.chain[0], &leaf_key);
    assert_eq!(
        check(&issuer, &cert, &forged, NOW),
        Err(StapleError::Signature)
    );
}

/// The response signed again by a certificate that is not for signing OCSP.
fn forge_by_leaf(staple: &[u8], leaf: &CertificateDer<'_>, key: &Key) -> Vec<u8> {
    use x509_ocsp::{AsResponseBytes, ResponderId};
    let body = OcspResponse::from_der(staple)
        .unwrap()
        .response_bytes
        .unwrap();
    let mut basic = BasicOcspResponse::from_der(body.response.as_bytes()).unwrap();
    let cert = x509_cert::Certificate::from_der(leaf).unwrap();
    let ids = IssuerIds::of(&cert.tbs_certificate.subject, key.spki()).unwrap();
    basic.tbs_response_data.responder_id =
        ResponderId::ByKey(OctetString::new(ids.sha1.1).unwrap());
    basic.signature = key
        .sign(&basic.tbs_response_data.to_der().unwrap())
        .unwrap();
    basic.certs = Some(vec![cert]);
    let response_bytes = Some(basic.to_response_bytes().unwrap());
    OcspResponse {
        response_status: OcspResponseStatus::Successful,
        response_bytes,
    }
    .to_der()
    .unwrap()
}

#[test]
fn no_flipped_bit_of_a_staple_is_good() {
    let issuer = issuer();
    let cert = leaf(&issuer, "a", HOUR, NOW).0.chain[0].clone();
    let staple = responder(&issuer).staple(&cert, Status::Good, NOW).unwrap();
    for at in 0..staple.len() {
        let mut forged = staple.clone();
        forged[at] ^= 1;
        assert!(check(&issuer, &cert, &forged, NOW).is_err(), "byte {at}");
    }
}

#[test]
fn several_serials_get_several_answers() {
    let issuer = issuer();
    let serials: Vec<Serial> = (0..3).map(|_| Serial::random().unwrap()).collect();
    let bytes = request(&issuer, &serials.iter().collect::<Vec<_>>());
    let answer = responder(&issuer).respond(&bytes, NOW, |key, serial| {
        assert_eq!(crate::x509::hex(key), issuer.key_hex());
        if *serial == serials[1] {
            Status::Unknown
        } else {
            Status::Good
        }
    });
    let body = OcspResponse::from_der(&answer)
        .unwrap()
        .response_bytes
        .unwrap();
    let basic = BasicOcspResponse::from_der(body.response.as_bytes()).unwrap();
    let good: Vec<bool> = basic
        .tbs_response_data
        .responses
        .iter()
        .map(|r| matches!(r.cert_status, CertStatus::Good(_)))
        .collect();
    assert_eq!(good, [true, false, true]);
}

#[test]
fn what_cannot_be_answered_is_said_so() {
    let (issuer, other) = (issuer(), issuer());
    let serial = Serial::random().unwrap();
    let ask =
        |bytes: &[u8]| status_of(&responder(&issuer).respond(bytes, NOW, |_, _| Status::Good));
    assert_eq!(
        ask(&request(&issuer, &[&serial])),
        OcspResponseStatus::Successful
    );
    assert_eq!(
        ask(&request(&issuer, &[])),
        OcspResponseStatus::MalformedRequest
    );
    assert_eq!(
        ask(&request(&issuer, &[&serial; 17])),
        OcspResponseStatus::MalformedRequest
    );
    assert_eq!(ask(b""), OcspResponseStatus::MalformedRequest);
    assert_eq!(
        ask(&vec![0x30; REQUEST_MAX + 1]),
        OcspResponseStatus::MalformedRequest
    );
    assert_eq!(
        ask(&request(&other, &[&serial])),
        OcspResponseStatus::Unauthorized
    );
}

#[test]
fn a_get_says_the_same_as_a_post() {
    let bytes = request(&issuer(), &[&Serial::random().unwrap()]);
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(&bytes);
    let escaped = text
        .replace('+', "%2B")
        .replace('/', "%2f")
        .replace('=', "%3D");
    for path in [format!("/{escaped}"), escaped, format!("/{text}")] {
        assert_eq!(decode_get(&path).unwrap(), bytes);
    }
    for bad in ["%", "%2", "%zz", "/a", "é"] {
        assert!(decode_get(bad).is_err(), "{bad}");
    }
    assert!(decode_get(&"A".repeat(REQUEST_MAX * 4 + 8)).is_err());
}

#[test]
fn a_retired_issuer_answers_for_its_own_leaves() {
    let (old, new) = (issuer(), issuer());
    let both = Responder::try_new([new.ca().clone(), Arc::clone(old.ca())], HOUR).unwrap();
    let cert = leaf(&old, "a", HOUR, NOW).0.chain[0].clone();
    let staple = both.staple(&cert, Status::Good, NOW).unwrap();
    assert!(check(&old, &cert, &staple, NOW).is_ok());
}

#[test]
fn a_staple_by_record_is_the_staple_by_certificate() {
    let (issuer, other) = (issuer(), issuer());
    let (issued, _) = leaf(&issuer, "a", HOUR, NOW);
    let key = crate::x509::sha256(&issuer.ca().cert().spki);
    let by_record = |status| {
        responder(&issuer)
            .staple_of(&key, &issued.record.serial, status, NOW)
            .unwrap()
    };
    let good = check(&issuer, &issued.chain[0], &by_record(Status::Good), NOW);
    assert_eq!(good.unwrap().next_update, NOW.plus(HOUR));
    let held = Status::Revoked {
        at: NOW,
        reason: Reason::CertificateHold,
    };
    assert_eq!(
        check(&issuer, &issued.chain[0], &by_record(held), NOW),
        Err(StapleError::Revoked)
    );
    let serial = &issued.record.serial;
    let foreign = responder(&other).staple_of(&key, serial, Status::Good, NOW);
    assert!(matches!(foreign, Err(OcspError::UnknownIssuer)));
}
