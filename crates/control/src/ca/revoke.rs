//! Who is revoked: records under `ca/revoked/`, written by whichever control plane is asked and followed by all. Each plane
//! then makes the lists and OCSP answers of the issuers whose keys it has, so a record alone refuses nobody yet, and each
//! takes over the lists that the others make, which lie under `ca/crls/`.

use std::sync::Arc;
use std::time::Duration;

use phalanx_model::name::ServiceName;
use phalanx_pki::clock::UnixMillis;
use phalanx_pki::issuer::Attestation;
use phalanx_pki::name::SpiffeId;
use phalanx_pki::revocation::Reason;
use phalanx_pki::x509::Serial;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::log::{Line, Log};
use super::{Ca, Fault};

mod ledger;
mod lists;
#[cfg(test)]
mod tests;

pub(super) use self::ledger::Revocation;
pub use self::lists::List;

/// Most certificates that one call revokes.
pub const REVOKE_MAX: usize = 10_000;
/// How often lists and staples are looked after, when nothing happens before.
const TEND: Duration = Duration::from_secs(1);
/// How long after a revocation certificates are looked for that were issued at the same moment, here or by another plane.
const SWEEP: Duration = Duration::from_secs(15);
/// How often more of a workload's certificates are looked for at once.
const ROUNDS: usize = 4;
/// A record stays this long after its certificate has expired, as the issuance log does.
const KEEP: Duration = Duration::from_secs(7 * 86_400);
const PRUNE: Duration = Duration::from_secs(600);

/// One revoked certificate, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    pub serial: Serial,
    /// SHA-256 of the issuer's SubjectPublicKeyInfo, hex.
    pub issuer_key: String,
    pub id: SpiffeId,
    pub not_after: UnixMillis,
    pub at: UnixMillis,
    pub reason: Reason,
    pub author: String,
    /// The workload was revoked, not only this certificate of it.
    #[serde(default)]
    pub workload: bool,
    /// Its holder was: everything that this one replaces, or that replaces it.
    #[serde(default)]
    pub holder: bool,
}

/// What to revoke.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// These certificates and no others: what is open with another one of the same holder stays.
    Serials(Vec<Serial>),
    /// Every certificate of whoever holds these that has not expired: all that go back to the same first one.
    Holders(Vec<Serial>),
    /// Every certificate of a service that has not expired.
    Workload(ServiceName),
}

impl Ca {
    /// Revokes, and returns the serials that were not revoked before. When this returns, the records are stored, and the lists
    /// and answers of this plane's own issuers say so; other planes follow.
    ///
    /// # Errors
    /// [`RevokeError`]; then nothing was revoked, but for a store that failed half way.
    pub async fn revoke(
        &self,
        target: &Target,
        reason: Reason,
        author: &str,
    ) -> Result<Vec<Serial>, RevokeError> {
        let revoked = match target {
            Target::Serials(serials) => {
                let lines = self.named(serials)?;
                self.revoke_lines(&lines, reason, author, Whole::Certificate)
                    .await
            }
            Target::Holders(serials) => {
                let named = self.known(serials)?;
                self.revoke_all(reason, author, Whole::Holder, || self.held_with(&named))
                    .await
            }
            Target::Workload(service) => {
                let id = SpiffeId {
                    trust_domain: self.trust_domain().clone(),
                    service: service.clone(),
                };
                self.revoke_all(reason, author, Whole::Workload, || {
                    self.log().live(&id, self.now())
                })
                .await
            }
        };
        // What was stored before something failed is published all the same.
        self.renew_lists().await;
        self.tell();
        let revoked = revoked?;
        if !revoked.is_empty() {
            let certificates = revoked.len();
            tracing::info!(certificates, reason = reason.as_str(), author, "revoked");
        }
        Ok(revoked)
    }

    /// Takes back what was revoked as `certificateHold`. What was revoked for any other reason stays so for ever (RFC 5280,
    /// 5.3.1).
    ///
    /// # Errors
    /// [`RevokeError::NotHeld`] names the first that is not on hold; then nothing was released.
    pub async fn release(
        &self,
        serials: &[Serial],
        author: &str,
    ) -> Result<Vec<Serial>, RevokeError> {
        let released = self.revocation().release(serials).await;
        self.renew_lists().await;
        self.tell();
        let released = released?;
        let certificates = released.len();
        tracing::info!(certificates, author, "released from certificateHold");
        Ok(released)
    }

    /// Whether a service has certificates that have not expired, and each of them is revoked.
    pub fn is_revoked_workload(&self, service: &ServiceName) -> bool {
        let id = SpiffeId {
            trust_domain: self.trust_domain().clone(),
            service: service.clone(),
        };
        let living = self.log().live(&id, self.now());
        let mut living = living.iter().peekable();
        living.peek().is_some() && living.all(|line| self.is_revoked(&line.serial).is_some())
    }

    pub fn is_revoked(&self, serial: &Serial) -> Option<Arc<Revoked>> {
        self.revocation().of(serial)
    }

    /// Whether what this one's holder got last is revoked: that is what it shows by now, whatever it had before.
    pub fn is_revoked_in_use(&self, serial: &Serial) -> bool {
        let last = self.log().last(serial).map(|line| line.serial.clone());
        self.is_revoked(last.as_ref().unwrap_or(serial)).is_some()
    }

    /// What the holders of these still have that is good.
    pub fn left_of(&self, serials: &[Serial]) -> Vec<Serial> {
        let lines = {
            let log = self.log();
            let lines = serials.iter().filter_map(|serial| log.entry(serial));
            lines.collect::<Vec<_>>()
        };
        let held = self.held_with(&lines).into_iter();
        let good = held.filter(|line| self.is_revoked(&line.serial).is_none());
        good.map(|line| line.serial.clone()).collect()
    }

    /// Living certificates of the holders of these, each once.
    fn held_with(&self, lines: &[Arc<Line>]) -> Vec<Arc<Line>> {
        let (now, log) = (self.now(), self.log());
        let all = lines.iter().flat_map(|line| log.holder(&line.serial));
        let mut held: Vec<_> = all
            .filter(|line| line.record.not_after > now)
            .cloned()
            .collect();
        held.sort_by(|a, b| a.serial.cmp(&b.serial));
        held.dedup_by(|a, b| a.serial == b.serial);
        held
    }

    /// Again until nothing is left: a renewal under way looks at the records after its certificate is in the log.
    async fn revoke_all(
        &self,
        reason: Reason,
        author: &str,
        whole: Whole,
        living: impl Fn() -> Vec<Arc<Line>>,
    ) -> Result<Vec<Serial>, RevokeError> {
        let mut done = Vec::new();
        let first = self.now();
        for _ in 0..ROUNDS {
            let mut lines = living();
            lines.retain(|line| line.record.issued_at <= first);
            let more = self.revoke_lines(&lines, reason, author, whole).await?;
            if more.is_empty() {
                break;
            }
            done.extend(more);
        }
        Ok(done)
    }

    async fn revoke_lines(
        &self,
        lines: &[Arc<Line>],
        reason: Reason,
        author: &str,
        whole: Whole,
    ) -> Result<Vec<Serial>, RevokeError> {
        if lines.len() > REVOKE_MAX {
            return Err(RevokeError::TooMany { asked: lines.len() });
        }
        let own = self.own().credentials();
        let own = own.as_ref().map(|c| &c.peer().serial);
        if lines.iter().any(|line| Some(&line.serial) == own) {
            return Err(RevokeError::Own);
        }
        let now = self.now();
        let record = |line: &Arc<Line>| record(line, reason, author, now, whole);
        self.revocation()
            .revoke(lines.iter().map(record).collect())
            .await
    }

    /// The log's lines of these serials, each of which has to be there and not expired.
    fn named(&self, serials: &[Serial]) -> Result<Vec<Arc<Line>>, RevokeError> {
        let (now, known) = (self.now(), self.known(serials)?);
        match known.iter().find(|line| line.record.not_after <= now) {
            Some(line) => Err(RevokeError::Expired {
                serial: line.serial.clone(),
                not_after: line.record.not_after,
            }),
            None => Ok(known),
        }
    }

    /// Each once.
    fn known(&self, serials: &[Serial]) -> Result<Vec<Arc<Line>>, RevokeError> {
        let log = self.log();
        let line = |serial: &Serial| {
            let line = log.entry(serial);
            line.ok_or_else(|| RevokeError::NotIssued {
                serial: serial.clone(),
            })
        };
        let mut serials = serials.to_vec();
        serials.sort();
        serials.dedup();
        serials.iter().map(line).collect()
    }

    /// Certificates that got away: renewed with a revoked one, or issued by another plane while their workload was being
    /// revoked.
    async fn sweep(&self) {
        let now = self.now();
        let mut found = Vec::new();
        for revoked in self.revocation().since(now.minus(SWEEP)) {
            let mut slipped = {
                let log = self.log();
                let mut lines = log.live(&revoked.id, now);
                lines.retain(|line| is_swept(&log, line, &revoked));
                lines
            };
            slipped.retain(|line| self.is_revoked(&line.serial).is_none());
            let (reason, author) = (revoked.reason, &revoked.author);
            let what = slipped.iter();
            found.extend(what.map(|line| record(line, reason, author, now, Whole::Certificate)));
        }
        found.sort_by(|a, b| a.serial.cmp(&b.serial));
        found.dedup_by(|a, b| a.serial == b.serial);
        found.truncate(REVOKE_MAX);
        if found.is_empty() {
            return;
        }
        match self.revocation().revoke(found).await {
            Ok(done) => {
                let certificates = done.len();
                tracing::info!(certificates, "revoked what slipped past a revocation");
            }
            Err(error) => tracing::error!(%error, "cannot revoke what slipped past a revocation"),
        }
    }

    /// Brings lists and staples up to date, and publishes them. At an opening too: the first peer that comes may be a revoked
    /// one.
    pub(super) async fn tend_revocation(&self) {
        self.sweep().await;
        self.renew_lists().await;
        self.tell();
        self.renew_staples();
    }

    fn revocation(&self) -> &Revocation {
        &self.0.revocation
    }
}

fn is_swept(log: &Log, line: &Line, revoked: &Revoked) -> bool {
    let issued_at = line.record.issued_at;
    let renewed = matches!(&line.record.attested, Attestation::Certificate { serial } if *serial == revoked.serial)
        && issued_at >= revoked.at;
    let meant = revoked.workload
        || (revoked.holder && log.first(&line.serial) == log.first(&revoked.serial));
    renewed || (meant && issued_at <= revoked.at)
}

/// How much is revoked at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whole {
    Certificate,
    Holder,
    Workload,
}

fn record(line: &Line, reason: Reason, author: &str, at: UnixMillis, whole: Whole) -> Revoked {
    Revoked {
        serial: line.serial.clone(),
        issuer_key: line.record.issuer_key.clone(),
        id: line.record.id.clone(),
        not_after: line.record.not_after,
        at,
        reason,
        author: author.to_owned(),
        workload: whole == Whole::Workload,
        holder: whole == Whole::Holder,
    }
}

/// Follows the records and lists, and keeps what this plane makes of them fresh, until `stop`.
pub(super) async fn run(ca: Ca, stop: CancellationToken) {
    let follow = ca.revocation().follow(stop.clone());
    let tend = async {
        let (mut changes, mut own) = (ca.revocation().changes(), ca.own().changes());
        let mut pruned = ca.now();
        loop {
            ca.tend_revocation().await;
            let now = ca.now();
            if pruned.until(now) >= PRUNE {
                pruned = now;
                ca.revocation().prune(now.minus(KEEP), now).await;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                _ = changes.changed() => {}
                _ = own.changed() => {}
                () = tokio::time::sleep(TEND) => {}
            }
        }
    };
    tokio::join!(follow, tend);
}

impl RevokeError {
    pub fn fault(&self) -> Fault {
        match self {
            Self::NotIssued { .. } | Self::Expired { .. } | Self::TooMany { .. } => Fault::Request,
            Self::Own | Self::NotHeld { .. } | Self::ListFull => Fault::State,
            Self::Contended | Self::Store(_) => Fault::Busy,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum RevokeError {
    #[error(
        "no certificate with the serial {serial} is in the issuance log (lines are kept until a week after expiry)"
    )]
    NotIssued { serial: Serial },
    #[error("the certificate {serial} has expired at {not_after} already")]
    Expired {
        serial: Serial,
        not_after: UnixMillis,
    },
    #[error("{asked} certificates are more than the {REVOKE_MAX} that can be revoked at once")]
    TooMany { asked: usize },
    #[error(
        "an issuer's list takes at most {} certificates",
        phalanx_pki::revocation::REVOKED_MAX
    )]
    ListFull,
    #[error(
        "that is the certificate that this control plane itself shows; everybody would be cut off"
    )]
    Own,
    #[error(
        "the certificate {serial} is not on hold: only what was revoked as certificateHold can be released"
    )]
    NotHeld { serial: Serial },
    #[error("others kept changing the same certificates; try again")]
    Contended,
    #[error("the revocation cannot be stored")]
    Store(#[from] phalanx_store::Error),
}
