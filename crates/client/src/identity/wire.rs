//! Answers of the Identity service, checked for their form and size.

use phalanx_pki::ocsp::STAPLE_MAX;
use phalanx_pki::revocation::{CRL_MAX, CRLS_MAX};
use phalanx_pki::roots::Roots;
use phalanx_pki::x509::{CERT_MAX, CERTS_MAX};
use phalanx_proto::phalanx::identity::v1::{Certificate, TrustResponse};
use rustls::pki_types::CertificateDer;

use super::{AnswerError, Grant, Trust};

pub(super) fn grant(answer: Certificate) -> Result<Grant, AnswerError> {
    if answer.chain.is_empty() {
        return Err(AnswerError::Empty);
    }
    Ok(Grant {
        chain: certs(answer.chain)?,
        roots: Roots::try_new(certs(answer.roots)?)?,
        staple: staple(answer.staple)?,
    })
}

pub(super) fn trust(answer: TrustResponse) -> Result<Trust, AnswerError> {
    if answer.crls.len() > CRLS_MAX || answer.crls.iter().any(|crl| crl.len() > CRL_MAX) {
        return Err(AnswerError::TooMuch);
    }
    Ok(Trust {
        roots: Roots::try_new(certs(answer.roots)?)?,
        crls: answer.crls,
        issuers: certs(answer.issuers)?,
        staple: staple(answer.staple)?,
        renew: answer.renew,
    })
}

fn certs(ders: Vec<Vec<u8>>) -> Result<Vec<CertificateDer<'static>>, AnswerError> {
    if ders.len() > CERTS_MAX || ders.iter().any(|der| der.len() > CERT_MAX) {
        return Err(AnswerError::TooMuch);
    }
    Ok(ders.into_iter().map(CertificateDer::from).collect())
}

fn staple(der: Vec<u8>) -> Result<Option<Vec<u8>>, AnswerError> {
    match der.len() {
        0 => Ok(None),
        1..=STAPLE_MAX => Ok(Some(der)),
        _ => Err(AnswerError::TooMuch),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_without_a_certificate_or_with_too_many_is_refused() {
        let refused = |answer| grant(answer).unwrap_err();
        assert!(matches!(
            refused(Certificate::default()),
            AnswerError::Empty
        ));
        let one = Certificate {
            chain: vec![vec![1]],
            ..Certificate::default()
        };
        assert!(matches!(refused(one), AnswerError::Roots(_)));
        let many = Certificate {
            chain: vec![vec![1]; CERTS_MAX + 1],
            ..Certificate::default()
        };
        assert!(matches!(refused(many), AnswerError::TooMuch));
    }

    #[test]
    fn lists_and_staples_have_a_bound() {
        let many = TrustResponse {
            crls: vec![Vec::new(); CRLS_MAX + 1],
            ..TrustResponse::default()
        };
        assert!(matches!(trust(many).unwrap_err(), AnswerError::TooMuch));
        assert!(matches!(
            staple(vec![0; STAPLE_MAX + 1]),
            Err(AnswerError::TooMuch)
        ));
    }
}
