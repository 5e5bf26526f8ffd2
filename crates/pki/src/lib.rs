//! Identity without sockets: names that a workload owns, the authority that certifies them, and the check of whoever is at
//! the other end. Requests, clocks and bytes go in; certificates, OCSP responses, CRLs, rustls configurations and reasons
//! to refuse come out. Who may ask for what, and where records are kept, is decided above.
//!
//! Module order (a module imports only later ones): tls, identity, credentials, renewal, examine, authority, issuer, csr,
//! verifier, ocsp, revocation, roots, ca, join, jwt, key, x509, files, name, clock.

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

pub mod authority;
pub mod ca;
pub mod clock;
pub mod credentials;
pub mod csr;
pub mod examine;
pub mod files;
pub mod identity;
pub mod issuer;
pub mod join;
pub mod jwt;
pub mod key;
pub mod name;
pub mod ocsp;
pub mod renewal;
pub mod revocation;
pub mod roots;
#[cfg(test)]
mod tests;
pub mod tls;
pub mod verifier;
pub mod x509;
