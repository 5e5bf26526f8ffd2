//! How many asked for certificates, and what became of it: by kind of request and by outcome, each a word of ours.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use phalanx_pki::csr::CsrError;
use phalanx_pki::join::JoinError;

use super::staple::OCSP;
use super::{Ca, CaError, JwksError};

/// Kind and outcome. Held for an increment.
#[derive(Debug, Default)]
pub(super) struct Counts(Mutex<BTreeMap<(&'static str, &'static str), u64>>);

impl Counts {
    pub fn add(&self, kind: &'static str, outcome: &'static str) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry((kind, outcome)).or_default() += 1;
    }
}

impl Ca {
    /// Joins and renewals since the start, by kind and outcome (`granted`, or why not).
    pub fn requests(&self) -> BTreeMap<(&'static str, &'static str), u64> {
        let mut counts = self.counted();
        counts.retain(|(kind, _), _| *kind != OCSP);
        counts
    }

    /// What OCSP answered: of each certificate asked about, or of the request if it was refused.
    pub fn ocsp_answers(&self) -> BTreeMap<&'static str, u64> {
        let counts = self.counted().into_iter();
        let answers = counts.filter(|((kind, _), _)| *kind == OCSP);
        answers.map(|((_, answer), n)| (answer, n)).collect()
    }

    fn counted(&self) -> BTreeMap<(&'static str, &'static str), u64> {
        let counts = self.0.counts.0.lock();
        counts.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl CaError {
    /// One word for counting.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Join(JoinError::Expired { .. }) => "token_expired",
            Self::Join(JoinError::Zone) | Self::ZoneUnproven => "wrong_zone",
            Self::Join(_) => "malformed_token",
            Self::TokenUnknown => "token_unknown",
            Self::TokenUsed => "token_used",
            Self::TokenOfAnother { .. } | Self::JwtOfAnother { .. } => "proof_of_another",
            Self::Jwt(_) => "service_account",
            Self::Jwks(JwksError::None) => "service_accounts_off",
            Self::Jwks(_) => "jwks",
            Self::Reserved { .. } => "reserved_name",
            Self::TrustDomain { .. } => "wrong_trust_domain",
            Self::Revoked { .. } => "revoked",
            Self::Ended { .. } => "expired",
            Self::Csr(CsrError::Wildcard { .. }) => "wildcard_name",
            Self::Csr(CsrError::NotOwned { .. }) => "foreign_name",
            Self::Csr(_) => "bad_request",
            Self::Name(_) => "bad_name",
            Self::LeavesFull { .. } | Self::LogFull { .. } => "log_full",
            Self::TooOften { .. } => "too_often",
            Self::Store(_) => "store",
            Self::Issue(_) | Self::Authority(_) => "authority",
            _ => "other",
        }
    }
}
