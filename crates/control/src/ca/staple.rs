//! OCSP by this plane, for the certificates of issuers whose keys it has: answers to requests, and staples made ahead for
//! whoever shows such a certificate. The issuer's own key signs: it is at hand, and a delegate's certificate would cost each
//! handshake half a kilobyte more.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use phalanx_pki::authority::Authority;
use phalanx_pki::clock::UnixMillis;
use phalanx_pki::ocsp::{Responder, Status};
use phalanx_pki::x509::Serial;

use super::Ca;

/// From thisUpdate to nextUpdate. A sidecar that loses its control plane can staple for at least half of it; without the lists,
/// which every peer follows within seconds, it would be how long a revoked certificate passes.
pub const VALIDITY: Duration = Duration::from_secs(12 * 3600);
/// Most staples that are kept; the rest is signed when it is asked for.
const KEPT_MAX: usize = 50_000;
/// `OCSPResponse { internalError }`
const INTERNAL_ERROR: [u8; 5] = [0x30, 0x03, 0x0a, 0x01, 0x02];

/// What answers are counted as.
pub(super) const OCSP: &str = "ocsp";

/// The word of an answer that says nothing of a certificate (RFC 6960, 4.2.1): these have no more than a status.
fn refusal(answer: &[u8]) -> Option<&'static str> {
    let [0x30, 0x03, 0x0a, 0x01, status] = answer else {
        return None;
    };
    Some(match status {
        1 => "malformed_request",
        2 => "internal_error",
        3 => "try_later",
        6 => "unauthorized",
        _ => "refused",
    })
}

/// Staples that were asked for, and what signs them.
#[derive(Default)]
pub(super) struct Staples {
    /// Held for a lookup or an insert, never while signing.
    made: Mutex<HashMap<Serial, Made>>,
    /// Of which authority, by its address.
    responder: Mutex<Option<(Arc<Authority>, Arc<Responder>)>>,
}

struct Made {
    der: Vec<u8>,
    status: Status,
    at: UnixMillis,
}

impl Ca {
    /// An OCSP response for a certificate of this plane, DER; it is good for at least half of [`VALIDITY`] from now on. `None`
    /// for a serial that is not in the log, or is another plane's: its own plane has the key.
    pub async fn staple(&self, serial: &Serial) -> Option<Vec<u8>> {
        self.staple_now(serial)
    }

    fn staple_now(&self, serial: &Serial) -> Option<Vec<u8>> {
        let now = self.now();
        let entry = self.log().entry(serial)?;
        let status = self.status(&entry.record.issuer_key, serial);
        if let Some(der) = self.staples().find(serial, status, now) {
            return Some(der);
        }
        let key = key_bytes(&entry.record.issuer_key)?;
        let der = (self.responder()?)
            .staple_of(&key, serial, status, now)
            .ok()?;
        self.staples().keep(serial, &der, status, now);
        Some(der)
    }

    /// Answers an OCSP request, whatever bytes it is.
    pub(crate) fn answer(&self, request: &[u8]) -> Vec<u8> {
        let Some(responder) = self.responder() else {
            self.0.counts.add(OCSP, "internal_error");
            return INTERNAL_ERROR.to_vec();
        };
        let answer = responder.respond(request, self.now(), |key, serial| {
            let status = self.status(&hex(key), serial);
            self.0.counts.add(
                OCSP,
                match &status {
                    Status::Good => "good",
                    Status::Revoked { .. } => "revoked",
                    _ => "unknown",
                },
            );
            status
        });
        if let Some(refusal) = refusal(&answer) {
            self.0.counts.add(OCSP, refusal);
        }
        answer
    }

    /// Good is only what the log knows, of that issuer.
    fn status(&self, issuer_key: &str, serial: &Serial) -> Status {
        match self.is_revoked(serial) {
            Some(revoked) if revoked.issuer_key == issuer_key => Status::Revoked {
                at: revoked.at,
                reason: revoked.reason,
            },
            _ => match self.log().entry(serial) {
                Some(entry) if entry.record.issuer_key == issuer_key => Status::Good,
                _ => Status::Unknown,
            },
        }
    }

    /// Lets staples go that are at half of their life, and says so to those who show them; staples its own certificate.
    pub(super) fn renew_staples(&self) {
        let now = self.now();
        if self.staples().retire(now) {
            self.tick();
        }
        let own = self.own();
        let Some(credentials) = own.credentials() else {
            return;
        };
        let is_fresh = credentials
            .staple()
            .is_some_and(|s| now < s.this_update.plus(VALIDITY / 2));
        if is_fresh {
            return;
        }
        let Some(staple) = self.staple_now(&credentials.peer().serial) else {
            return;
        };
        if let Err(error) = own.publish_staple(staple) {
            tracing::warn!(%error, "the control plane's own certificate goes without a staple");
        }
    }

    fn staples(&self) -> &Staples {
        &self.0.staples
    }

    fn responder(&self) -> Option<Arc<Responder>> {
        let authority = self.authority();
        let mut kept = lock(&self.staples().responder);
        if let Some((of, responder)) = &*kept
            && Arc::ptr_eq(of, &authority)
        {
            return Some(responder.clone());
        }
        let issuers = authority.issuers().map(|issuer| issuer.ca().clone());
        let made = Responder::try_new(issuers, VALIDITY);
        let made = made.inspect_err(|error| tracing::error!(%error, "no OCSP responder"));
        let responder = Arc::new(made.ok()?);
        *kept = Some((authority, responder.clone()));
        Some(responder)
    }
}

impl Staples {
    fn find(&self, serial: &Serial, status: Status, now: UnixMillis) -> Option<Vec<u8>> {
        let made = lock(&self.made);
        let found = made.get(serial)?;
        (found.status == status && !found.is_due(now)).then(|| found.der.clone())
    }

    fn keep(&self, serial: &Serial, der: &[u8], status: Status, now: UnixMillis) {
        let mut made = lock(&self.made);
        if made.len() >= KEPT_MAX && !made.contains_key(serial) {
            return;
        }
        let der = der.to_vec();
        made.insert(
            serial.clone(),
            Made {
                der,
                status,
                at: now,
            },
        );
    }

    /// Whether there were any. All that are past a quarter go together, so that those who show them hear of it together.
    fn retire(&self, now: UnixMillis) -> bool {
        let mut made = lock(&self.made);
        if !made.values().any(|m| m.is_due(now)) {
            return false;
        }
        made.retain(|_, m| now < m.at.plus(VALIDITY / 4));
        true
    }
}

impl Made {
    fn is_due(&self, now: UnixMillis) -> bool {
        self.at.plus(VALIDITY / 2) <= now
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn hex(bytes: &[u8; 32]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        use std::fmt::Write;
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn key_bytes(hex: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if hex.len() != 64 || !hex.is_ascii() {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(bytes)
}
