//! Why a peer was not let in. The names are stable: they stand in logs and are values of a metric's label.

use std::sync::Arc;

use rustls::{AlertDescription, CertificateError, Error, OtherError, PeerIncompatible};

use crate::ocsp::StapleError;
use crate::verifier::Role;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
pub enum Refusal {
    #[error("the peer sent no certificate")]
    NoCertificate,
    #[error("the peer's certificate cannot be read")]
    MalformedCertificate,
    #[error("the peer's chain is too long")]
    ChainTooLong,
    #[error("the peer's chain ends in no trusted root")]
    UnknownCa,
    #[error("the peer's certificate has expired")]
    Expired,
    #[error("the peer's certificate is not valid yet")]
    NotYetValid,
    #[error("a CA certificate of the peer's chain has expired or is not valid yet")]
    IssuerExpired,
    #[error("a certificate of the peer's chain that is no CA's signed another")]
    BadIssuer,
    #[error("the peer's certificate is a CA's")]
    CaAsLeaf,
    #[error("the peer's chain breaks a constraint on path length or names")]
    Constraint,
    #[error(
        "a certificate of the peer's chain has an unsupported critical extension, algorithm or version"
    )]
    Unsupported,
    #[error("the peer's certificate has no SPIFFE id of this mesh's form")]
    NoSpiffeId,
    #[error("the peer's certificate has several URI names")]
    SeveralSpiffeIds,
    #[error("the peer's certificate has a wildcard name")]
    WildcardName,
    #[error("the peer is of another trust domain")]
    WrongTrustDomain,
    #[error("the peer is not whom the route expects")]
    WrongName,
    #[error("the peer's certificate is not for clients")]
    MissingClientEku,
    #[error("the peer's certificate is not for servers")]
    MissingServerEku,
    #[error("a certificate of the peer's chain is revoked")]
    Revoked,
    #[error("there is no revocation list for the peer's chain")]
    UnknownRevocation,
    #[error("the revocation list for the peer's chain is out of date")]
    StaleCrl,
    #[error("the peer sent no OCSP response")]
    MissingStaple,
    #[error("the peer's OCSP response is damaged, signed by another or about another certificate")]
    BadStaple,
    #[error("the peer's OCSP response is out of date")]
    StaleStaple,
    #[error("the peer's OCSP response says that its certificate is unknown")]
    UnknownStaple,
    #[error("there are no trusted roots yet")]
    NoRoots,
    #[error("the peer proves no possession of its certificate's key")]
    BadProof,
    #[error("the peer speaks no TLS version, group or cipher that is taken here")]
    Incompatible,
    #[error("the peer speaks none of the protocols offered (ALPN)")]
    NoProtocol,
    #[error("the peer refused us with a TLS alert")]
    PeerAlert,
    #[error("the peer broke the TLS protocol")]
    Protocol,
}

impl Refusal {
    /// Every reason, for declaring a metric and for docs.
    pub const ALL: [Self; 31] = [
        Self::NoCertificate,
        Self::MalformedCertificate,
        Self::ChainTooLong,
        Self::UnknownCa,
        Self::Expired,
        Self::NotYetValid,
        Self::IssuerExpired,
        Self::BadIssuer,
        Self::CaAsLeaf,
        Self::Constraint,
        Self::Unsupported,
        Self::NoSpiffeId,
        Self::SeveralSpiffeIds,
        Self::WildcardName,
        Self::WrongTrustDomain,
        Self::WrongName,
        Self::MissingClientEku,
        Self::MissingServerEku,
        Self::Revoked,
        Self::UnknownRevocation,
        Self::StaleCrl,
        Self::MissingStaple,
        Self::BadStaple,
        Self::StaleStaple,
        Self::UnknownStaple,
        Self::NoRoots,
        Self::BadProof,
        Self::Incompatible,
        Self::NoProtocol,
        Self::PeerAlert,
        Self::Protocol,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::MalformedCertificate => "malformed_certificate",
            Self::ChainTooLong => "chain_too_long",
            Self::UnknownCa => "unknown_ca",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::IssuerExpired => "issuer_expired",
            Self::BadIssuer => "bad_issuer",
            Self::CaAsLeaf => "ca_as_leaf",
            Self::Constraint => "constraint",
            Self::Unsupported => "unsupported",
            Self::NoSpiffeId => "no_spiffe_id",
            Self::SeveralSpiffeIds => "several_spiffe_ids",
            Self::WildcardName => "wildcard_name",
            Self::WrongTrustDomain => "wrong_trust_domain",
            Self::WrongName => "wrong_name",
            Self::MissingClientEku => "missing_client_eku",
            Self::MissingServerEku => "missing_server_eku",
            Self::Revoked => "revoked",
            Self::UnknownRevocation => "unknown_revocation",
            Self::StaleCrl => "stale_crl",
            Self::MissingStaple => "missing_staple",
            Self::BadStaple => "bad_staple",
            Self::StaleStaple => "stale_staple",
            Self::UnknownStaple => "unknown_staple",
            Self::NoRoots => "no_roots",
            Self::BadProof => "bad_proof",
            Self::Incompatible => "incompatible",
            Self::NoProtocol => "no_protocol",
            Self::PeerAlert => "peer_alert",
            Self::Protocol => "protocol",
        }
    }

    pub(crate) fn of_webpki(error: &webpki::Error, role: Role) -> Self {
        use webpki::Error as E;
        match error {
            // A path that only looks like ours, by a name that anybody can write, is no path either.
            E::UnknownIssuer | E::InvalidSignatureForPublicKey => Self::UnknownCa,
            E::CertExpired { .. } | E::CertNotValidYet { .. } => Self::IssuerExpired,
            E::CaUsedAsEndEntity => Self::CaAsLeaf,
            E::EndEntityUsedAsCa => Self::BadIssuer,
            E::NameConstraintViolation
            | E::PathLenConstraintViolated
            | E::MalformedNameConstraint
            | E::InvalidNetworkMaskConstraint => Self::Constraint,
            E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension => match role {
                Role::Client => Self::MissingClientEku,
                Role::Server => Self::MissingServerEku,
            },
            E::UnsupportedCriticalExtension
            | E::UnsupportedCertVersion
            | E::UnsupportedNameType
            | E::UnsupportedSignatureAlgorithmContext(_)
            | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_)
            | E::SignatureAlgorithmMismatch => Self::Unsupported,
            E::MaximumPathDepthExceeded
            | E::MaximumPathBuildCallsExceeded
            | E::MaximumSignatureChecksExceeded
            | E::MaximumNameConstraintComparisonsExceeded => Self::ChainTooLong,
            _ => Self::MalformedCertificate,
        }
    }

    pub(crate) fn of_staple(error: StapleError) -> Self {
        match error {
            StapleError::Revoked => Self::Revoked,
            StapleError::Stale => Self::StaleStaple,
            StapleError::Unknown => Self::UnknownStaple,
            StapleError::Malformed
            | StapleError::NoAnswer
            | StapleError::Signature
            | StapleError::OtherCertificate => Self::BadStaple,
        }
    }

    /// As rustls wants it, so that the peer gets the alert that fits.
    pub(crate) fn to_rustls(self) -> Error {
        let error = match self {
            Self::NoCertificate => return Error::NoCertificatesPresented,
            Self::MalformedCertificate => CertificateError::BadEncoding,
            Self::UnknownCa => CertificateError::UnknownIssuer,
            Self::Expired => CertificateError::Expired,
            Self::NotYetValid => CertificateError::NotValidYet,
            Self::Revoked => CertificateError::Revoked,
            other => CertificateError::Other(OtherError(Arc::new(other))),
        };
        Error::InvalidCertificate(error)
    }

    /// The reason behind a failed handshake.
    pub fn of_handshake(error: &Error) -> Self {
        match error {
            Error::NoCertificatesPresented => Self::NoCertificate,
            Error::InvalidCertificate(error) => Self::of_certificate(error),
            Error::PeerIncompatible(
                PeerIncompatible::NoCertificateRequestSignatureSchemesInCommon,
            ) => Self::Unsupported,
            Error::PeerIncompatible(_) => Self::Incompatible,
            Error::NoApplicationProtocol
            | Error::AlertReceived(AlertDescription::NoApplicationProtocol) => Self::NoProtocol,
            Error::AlertReceived(
                AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure,
            ) => Self::Incompatible,
            Error::AlertReceived(_) => Self::PeerAlert,
            _ => Self::Protocol,
        }
    }

    fn of_certificate(error: &CertificateError) -> Self {
        match error {
            CertificateError::Other(OtherError(inner)) => inner
                .downcast_ref::<Self>()
                .copied()
                .unwrap_or(Self::MalformedCertificate),
            CertificateError::UnknownIssuer => Self::UnknownCa,
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Self::NotYetValid
            }
            CertificateError::Revoked => Self::Revoked,
            CertificateError::BadSignature => Self::BadProof,
            CertificateError::BadEncoding => Self::MalformedCertificate,
            _ => Self::Unsupported,
        }
    }
}

/// Whether an alert is the peer's word on the certificate that it was shown, or on none being shown.
pub fn is_word_on_certificate(alert: AlertDescription) -> bool {
    use AlertDescription as A;
    matches!(
        alert,
        A::HandshakeFailure
            | A::NoCertificate
            | A::BadCertificate
            | A::UnsupportedCertificate
            | A::CertificateRevoked
            | A::CertificateExpired
            | A::CertificateUnknown
            | A::UnknownCA
            | A::AccessDenied
            | A::DecryptError
            | A::CertificateRequired
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_has_a_name_of_its_own_and_survives_rustls() {
        let names: std::collections::BTreeSet<_> =
            Refusal::ALL.iter().map(|r| r.as_str()).collect();
        assert_eq!(names.len(), Refusal::ALL.len());
        for refusal in Refusal::ALL {
            assert_eq!(Refusal::of_handshake(&refusal.to_rustls()), refusal);
        }
    }
}
