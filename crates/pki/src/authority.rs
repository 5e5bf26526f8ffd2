//! The authority over time: which issuer signs, which roots are trusted, and how one replaces the other without a refused peer.
//! A root is rotated in three steps: trust both, sign with the new, trust only the new; each step checks that it may be taken.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::clock::UnixMillis;
use crate::files::{self, Access, FileError};
use crate::issuer::{IssueError, Issuer, Urls};
use crate::name::TrustDomain;
use crate::roots::{Roots, RootsError};
use crate::x509::{Serial, X509Error};

#[cfg(test)]
mod tests;

/// Most issuers that are kept because leaves of theirs may still live.
pub const RETIRED_MAX: usize = 16;
const INDEX: &str = "authority.json";
const BUNDLE: &str = "trusted-roots.pem";

/// Which step of a root's rotation was taken last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// One issuer, its roots.
    Steady,
    /// Both roots are trusted, the old one signs: wait until every peer trusts both.
    Overlap,
    /// Both roots are trusted, the new one signs: wait until no leaf of the old one is left.
    Switched,
}

/// Immutable: each step yields the next one.
#[derive(Clone, Debug)]
pub struct Authority {
    active: Arc<Issuer>,
    incoming: Option<Arc<Issuer>>,
    retired: Vec<Arc<Issuer>>,
    roots: Roots,
    phase: Phase,
}

impl Authority {
    pub fn new(active: Issuer) -> Self {
        let roots = active.roots().clone();
        Self {
            active: Arc::new(active),
            incoming: None,
            retired: Vec::new(),
            roots,
            phase: Phase::Steady,
        }
    }

    /// What leaves will say about where to ask.
    #[must_use]
    pub fn with_urls(self, urls: &Urls) -> Self {
        let told = |issuer: Arc<Issuer>| Arc::new(Issuer::clone(&issuer).with_urls(urls.clone()));
        Self {
            active: told(self.active),
            incoming: self.incoming.map(told),
            ..self
        }
    }

    /// The same within a mesh that trusts more, or other, roots: of other control planes, or for a while.
    ///
    /// # Errors
    /// [`IssueError::Probe`] when peers that trust just these would refuse what is signed now.
    pub fn within(&self, roots: Roots, now: UnixMillis) -> Result<Self, AuthorityError> {
        self.active.probe(&roots, now)?;
        Ok(Self {
            roots,
            ..self.clone()
        })
    }

    /// The one that will sign after the next step of a rotation.
    pub fn incoming(&self) -> Option<&Arc<Issuer>> {
        self.incoming.as_ref()
    }

    /// Signs leaves now.
    pub fn active(&self) -> &Arc<Issuer> {
        &self.active
    }

    /// What peers have to trust.
    pub fn roots(&self) -> &Roots {
        &self.roots
    }

    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Everyone whose leaves may be asked about: for OCSP and CRLs.
    pub fn issuers(&self) -> impl Iterator<Item = &Arc<Issuer>> {
        std::iter::once(&self.active)
            .chain(&self.incoming)
            .chain(&self.retired)
    }

    /// Step 1: the new root is trusted beside the old one.
    ///
    /// # Errors
    /// [`AuthorityError`] if a rotation is under way, the root is not new, or the trust domain is another.
    pub fn begin(&self, incoming: Issuer, now: UnixMillis) -> Result<Self, AuthorityError> {
        self.expect(Phase::Steady)?;
        self.check_domain(&incoming)?;
        if incoming
            .roots()
            .iter()
            .any(|r| self.roots.contains(r.fingerprint()))
        {
            return Err(AuthorityError::SameRoot);
        }
        let roots = self.roots.and(incoming.roots())?;
        self.active.probe(&roots, now)?;
        incoming.probe(&roots, now)?;
        Ok(Self {
            incoming: Some(Arc::new(incoming)),
            roots,
            phase: Phase::Overlap,
            ..self.clone()
        })
    }

    /// Back from step 1, as long as nothing was signed.
    ///
    /// # Errors
    /// [`AuthorityError::Phase`]
    pub fn abort(&self) -> Result<Self, AuthorityError> {
        self.expect(Phase::Overlap)?;
        let roots = self.active.roots().clone();
        Ok(Self {
            incoming: None,
            roots,
            phase: Phase::Steady,
            ..self.clone()
        })
    }

    /// Step 2: the new issuer signs. `untrusting` is how many peers have not confirmed the overlapping bundle yet.
    ///
    /// # Errors
    /// [`AuthorityError::Untrusting`] unless that is none.
    pub fn switch(&self, untrusting: usize, now: UnixMillis) -> Result<Self, AuthorityError> {
        self.expect(Phase::Overlap)?;
        if untrusting > 0 {
            return Err(AuthorityError::Untrusting { peers: untrusting });
        }
        let incoming = self.incoming.clone().ok_or(AuthorityError::Incomplete)?;
        incoming.probe(&self.roots, now)?;
        let next = Self {
            active: incoming,
            incoming: None,
            phase: Phase::Switched,
            ..self.clone()
        };
        next.retire(&self.active, now)
    }

    /// Step 3: only the new root is trusted. `outstanding` is how many leaves of retired issuers are neither expired nor
    /// revoked.
    ///
    /// # Errors
    /// [`AuthorityError::Outstanding`] unless that is none.
    pub fn finish(&self, outstanding: usize, now: UnixMillis) -> Result<Self, AuthorityError> {
        self.expect(Phase::Switched)?;
        if outstanding > 0 {
            return Err(AuthorityError::Outstanding {
                leaves: outstanding,
            });
        }
        let roots = self.active.roots().clone();
        self.active.probe(&roots, now)?;
        // One that was replaced under the root that stays may still have living leaves.
        let stays = |issuer: &&Arc<Issuer>| issuer.probe(&roots, now).is_ok();
        let retired = self.retired.iter().filter(stays).cloned().collect();
        Ok(Self {
            roots,
            retired,
            phase: Phase::Steady,
            ..self.clone()
        })
    }

    /// Another intermediate under a root that is already trusted; at any time.
    ///
    /// # Errors
    /// [`IssueError::Probe`] if peers would refuse its leaves.
    pub fn replace_intermediate(
        &self,
        next: Issuer,
        now: UnixMillis,
    ) -> Result<Self, AuthorityError> {
        self.check_domain(&next)?;
        next.probe(&self.roots, now)?;
        let old = self.active.clone();
        Self {
            active: Arc::new(next),
            ..self.clone()
        }
        .retire(&old, now)
    }

    /// Keeps an old issuer for OCSP and CRLs until it has expired.
    fn retire(mut self, old: &Arc<Issuer>, now: UnixMillis) -> Result<Self, AuthorityError> {
        self.retired.retain(|i| i.not_after() > now);
        self.retired.push(old.clone());
        if self.retired.len() > RETIRED_MAX {
            return Err(AuthorityError::TooManyRetired);
        }
        Ok(self)
    }

    fn expect(&self, phase: Phase) -> Result<(), AuthorityError> {
        if self.phase == phase {
            Ok(())
        } else {
            Err(AuthorityError::Phase { phase: self.phase })
        }
    }

    fn check_domain(&self, other: &Issuer) -> Result<(), AuthorityError> {
        let (ours, theirs) = (self.active.trust_domain(), other.trust_domain());
        if ours == theirs {
            Ok(())
        } else {
            Err(AuthorityError::TrustDomain {
                other: theirs.clone(),
            })
        }
    }

    /// Writes everything below `dir`: a directory per issuer (keys 0600), and last an index that says which is which.
    ///
    /// # Errors
    /// [`AuthorityError`]; the index then still names what was there before.
    pub fn save(&self, dir: &Path) -> Result<(), AuthorityError> {
        files::private_dir(dir)?;
        for issuer in self.issuers() {
            issuer.save(&dir.join(folder(issuer)))?;
        }
        files::write(
            &dir.join(BUNDLE),
            self.roots.to_pem().as_bytes(),
            Access::Public,
        )?;
        let index = Index {
            phase: self.phase,
            active: serial(&self.active),
            incoming: self.incoming.as_ref().map(serial),
            retired: self.retired.iter().map(serial).collect(),
        };
        let text = serde_json::to_vec_pretty(&index).map_err(AuthorityError::Index)?;
        Ok(files::write(&dir.join(INDEX), &text, Access::Private)?)
    }

    /// Reads what [`Authority::save`] wrote, in whatever phase that was; `None` if nothing was.
    ///
    /// # Errors
    /// [`AuthorityError`]. A retired issuer that has expired meanwhile is left out.
    pub fn load(
        dir: &Path,
        trust_domain: &TrustDomain,
        now: UnixMillis,
    ) -> Result<Option<Self>, AuthorityError> {
        if !dir.join(INDEX).exists() {
            return Ok(None);
        }
        let index: Index = serde_json::from_slice(&files::read(&dir.join(INDEX), Access::Private)?)
            .map_err(AuthorityError::Index)?;
        let issuer = |serial: &Serial| {
            Issuer::load(&dir.join(serial.to_string()), trust_domain, now).map(Arc::new)
        };
        let active = issuer(&index.active)?;
        let incoming = index.incoming.as_ref().map(issuer).transpose()?;
        let retired = index
            .retired
            .iter()
            .map(issuer)
            .filter(|i| !matches!(i, Err(e) if is_over(e)));
        let retired = retired.collect::<Result<_, _>>()?;
        // The index is written last, so the bundle can be one step ahead; the phase says what belongs in it.
        let roots = match (index.phase, &incoming) {
            (Phase::Steady, _) => active.roots().clone(),
            (Phase::Overlap, Some(incoming)) => active.roots().and(incoming.roots())?,
            (Phase::Overlap, None) => return Err(AuthorityError::Incomplete),
            (Phase::Switched, _) => {
                Roots::from_pem(&files::read(&dir.join(BUNDLE), Access::Public)?)?
                    .and(active.roots())?
            }
        };
        active.probe(&roots, now)?;
        Ok(Some(Self {
            active,
            incoming,
            retired,
            roots,
            phase: index.phase,
        }))
    }
}

fn is_over(error: &IssueError) -> bool {
    matches!(error, IssueError::Expired { .. } | IssueError::Probe { .. })
}

fn serial(issuer: &Arc<Issuer>) -> Serial {
    issuer.ca().cert().serial.clone()
}

fn folder(issuer: &Arc<Issuer>) -> String {
    serial(issuer).to_string()
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Index {
    phase: Phase,
    active: Serial,
    incoming: Option<Serial>,
    retired: Vec<Serial>,
}

#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("the rotation stands at `{phase:?}`, where this step cannot be taken")]
    Phase { phase: Phase },
    #[error("the new root is already trusted; a rotation needs another one")]
    SameRoot,
    #[error("the new issuer is of the trust domain `{other}`")]
    TrustDomain { other: TrustDomain },
    #[error("{peers} peers do not trust the new root yet")]
    Untrusting { peers: usize },
    #[error("{leaves} leaves of the old root are still in use")]
    Outstanding { leaves: usize },
    #[error("more than {RETIRED_MAX} retired issuers still have living leaves")]
    TooManyRetired,
    #[error("the rotation's new issuer is missing")]
    Incomplete,
    #[error("cannot read {INDEX}")]
    Index(#[source] serde_json::Error),
    #[error(transparent)]
    Issue(#[from] IssueError),
    #[error(transparent)]
    Roots(#[from] RootsError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    X509(#[from] X509Error),
}
