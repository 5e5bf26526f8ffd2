//! Answers of the Identity service, checked for their form and size.

use phalanx_pki::ocsp::STAPLE_MAX;
use phalanx_pki::revocation::{CRL_MAX, CRLS_MAX, Link, TOLD_MAX};
use phalanx_pki::roots::Roots;
use phalanx_pki::x509::{CERT_MAX, CERTS_MAX, Serial};
use phalanx_proto::phalanx::identity::v1::{Certificate, Told, TrustResponse};
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
    if answer.crls.len() > CRLS_MAX
        || answer.crls.iter().any(|crl| crl.len() > CRL_MAX)
        || answer.told.len() > TOLD_MAX
    {
        return Err(AnswerError::TooMuch);
    }
    Ok(Trust {
        roots: Roots::try_new(certs(answer.roots)?)?,
        crls: answer.crls,
        issuers: certs(answer.issuers)?,
        told: answer.told.iter().map(link).collect::<Result<_, _>>()?,
        staple: staple(answer.staple)?,
        renew: answer.renew,
    })
}

/// One that can't be understood is not passed over: somebody would be let in.
fn link(told: &Told) -> Result<Link, AnswerError> {
    let issuer_key = told.issuer_key.as_slice().try_into();
    Ok(Link {
        issuer_key: issuer_key.map_err(|_| AnswerError::Told)?,
        serial: Serial::parse(&told.serial).map_err(|_| AnswerError::Told)?,
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
        let many = TrustResponse {
            told: vec![Told::default(); TOLD_MAX + 1],
            ..TrustResponse::default()
        };
        assert!(matches!(trust(many).unwrap_err(), AnswerError::TooMuch));
        for (issuer_key, serial) in [(vec![1; 31], "0a"), (vec![1; 32], ""), (vec![1; 32], "x")] {
            let told = Told {
                issuer_key,
                serial: serial.to_owned(),
            };
            assert!(matches!(link(&told), Err(AnswerError::Told)), "{told:?}");
        }
        assert!(matches!(
            staple(vec![0; STAPLE_MAX + 1]),
            Err(AnswerError::TooMuch)
        ));
    }
}
