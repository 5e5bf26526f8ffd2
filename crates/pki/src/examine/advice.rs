//! What to do about each finding.

use crate::verifier::Refusal;

pub const KEY_MISMATCH: &str =
    "put the key beside the certificate that it was made for, or `phalanx cert issue` a new pair";
pub const FOREIGN_NAME: &str =
    "a sidecar refuses to use it; have it issued again with the names of this service alone";
pub const RENEWAL_DUE: &str = "whoever holds it should have renewed it by now: `phalanx cert renew --dir DIR`, or look at the sidecar's log";
pub const STAPLE: &str = "the server should leave a bad staple out; its log says why it has none";
pub const OCSP: &str =
    "is the control plane's --ocsp port reachable from here? --offline leaves this out";
pub const CRL: &str = "is the control plane's --ocsp port, which has the lists too, reachable from here? --offline leaves this out";

pub fn of(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::UnknownCa => {
            "is it of another mesh, or of a root that was rotated out? `phalanx cert roots` prints what is trusted now; the intermediate has to follow the leaf in the file"
        }
        Refusal::Expired => {
            "it can't renew itself any more: join again with a new `phalanx cert token`, or `phalanx cert issue`"
        }
        Refusal::NotYetValid => "is the clock of this machine right, and that of the authority?",
        Refusal::IssuerExpired => {
            "the authority needs a new intermediate: `phalanx cert rotate-root --begin` for an embedded one, new files in --ca DIR for an outside one"
        }
        Refusal::BadIssuer | Refusal::Constraint | Refusal::ChainTooLong => {
            "the authority above it may not issue it; look at the intermediate's CA flag, path length and name constraints"
        }
        Refusal::NoSpiffeId | Refusal::SeveralSpiffeIds => {
            "exactly one URI spiffe://<trust domain>/ns/<namespace>/sa/<service> is needed; `phalanx cert issue` makes such"
        }
        Refusal::WildcardName => "wildcards are nobody's name here; have it issued without",
        Refusal::WrongTrustDomain | Refusal::WrongName => {
            "another workload answers: is the address right, and the expected id?"
        }
        Refusal::MissingClientEku | Refusal::MissingServerEku => {
            "in the mesh every workload is both: extended key usage needs serverAuth and clientAuth"
        }
        Refusal::CaAsLeaf => "an authority's certificate is not for connections; issue a leaf",
        Refusal::Revoked => {
            "peers refuse it and close what is open; if that was a mistake, join again with a new token"
        }
        Refusal::BadProof => "whoever answers does not hold the key: do not trust this address",
        Refusal::StaleStaple | Refusal::StaleCrl => {
            "is the clock right? else the control plane has not been reachable for long: `phalanx status`"
        }
        Refusal::MissingStaple => {
            "the server has to staple: is its connection to the control plane up?"
        }
        Refusal::UnknownStaple => {
            "the authority has no record of it: was it restored from an older backup, or is it a forgery?"
        }
        Refusal::BadStaple => STAPLE,
        Refusal::Unsupported | Refusal::MalformedCertificate => {
            "issue it again: ECDSA on P-256 or P-384 or RSA of 2048 to 4096 bits, version 3, no unknown critical extension"
        }
        _ => "look at the log of the other side",
    }
}
