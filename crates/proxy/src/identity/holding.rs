//! What this room's tasks share: who we are, what is published, and the directory behind it. Whoever publishes holds the
//! directory's lock, so that what is kept there and what is shown come in the same order.

use std::sync::Arc;

use phalanx_client::identity::Trust;
use phalanx_pki::credentials::{Credentials, CredentialsError, Parts};
use phalanx_pki::identity::Identity;
use phalanx_pki::name::Workload;
use phalanx_pki::revocation::{CrlError, Revocations};
use phalanx_pki::roots::Roots;
use phalanx_pki::verifier::{Refusal, SKEW};
use phalanx_pki::x509::Cert;
use rustls::pki_types::CertificateDer;
use tokio::sync::{Mutex, Notify};
use tokio::task::spawn_blocking;
use tracing::{debug, info, warn};

use super::chain;
use super::folder::Folder;
use super::status::{Status, Topic};

pub struct Holding {
    pub own: Workload,
    pub identity: Arc<Identity>,
    pub status: Status,
    /// Renew now: what is told can't be taken with the certificate that we have.
    pub hurry: Notify,
    /// None where somebody else keeps the files. Locked while something is published and written.
    folder: Mutex<Option<Folder>>,
}

impl Holding {
    pub fn new(
        own: Workload,
        identity: Arc<Identity>,
        folder: Option<Folder>,
        status: Status,
    ) -> Self {
        Self {
            own,
            identity,
            status,
            hurry: Notify::new(),
            folder: Mutex::new(folder),
        }
    }

    /// Whether our certificate is on a list that we were told.
    pub fn is_revoked(&self) -> bool {
        let credentials = self.identity.credentials();
        credentials.is_some_and(|own| {
            let checked = self.identity.recheck_trust(own.peer());
            checked == Err(Refusal::Revoked)
        })
    }

    /// What comes from files needs not be written there.
    pub fn publish_read(&self, credentials: Credentials) {
        self.identity.publish(credentials);
    }

    /// Keeps a certificate that was issued to us and publishes it, in this order: whoever is seen to be ready and is killed can
    /// start again, though the token that let it in is used up. One that can't be kept is published all the same: it is good
    /// until the next start, and the alarm says so.
    ///
    /// # Errors
    /// [`CredentialsError`] when peers would refuse it; what was in force stays.
    pub async fn take(&self, parts: Parts) -> Result<(), CredentialsError> {
        let folder = self.folder.lock().await;
        let credentials = self.check(parts)?;
        let peer = credentials.peer().clone();
        let roots = credentials.parts().roots.clone();
        self.keep(&folder, Arc::new(credentials.clone()), roots)
            .await;
        self.identity.publish(credentials);
        info!(id = %peer.id, serial = %peer.serial, until = %peer.not_after, "certificate in force");
        Ok(())
    }

    /// The roots that were told on the stream are later than those that came with the answer, unless its chain says
    /// otherwise. A staple that can't be used is left out: the stream brings another.
    fn check(&self, parts: Parts) -> Result<Credentials, CredentialsError> {
        let (now, own) = (self.identity.now(), owner(&self.own, &parts.chain));
        let told = self.identity.roots();
        if let Some(roots) = told.filter(|_| self.status.trust_version() > 0) {
            let parts = Parts {
                roots,
                ..parts.clone()
            };
            if let Ok(credentials) = Credentials::try_new(parts, &own, now) {
                return Ok(credentials);
            }
        }
        match Credentials::try_new(parts.clone(), &own, now) {
            Err(CredentialsError::Staple(error)) => {
                debug!(%error, "an OCSP response came with the certificate that can't be used");
                let parts = Parts {
                    staple: None,
                    ..parts
                };
                Credentials::try_new(parts, &own, now)
            }
            done => done,
        }
    }

    /// Publishes whom to trust and keeps it.
    ///
    /// # Errors
    /// [`TrustError`]; what was in force stays.
    pub async fn trust(&self, trust: Trust) -> Result<(), TrustError> {
        let mut folder = self.folder.lock().await;
        let Trust {
            roots,
            crls,
            issuers,
            told,
            staple,
            renew: _,
        } = trust;
        let revocations = Revocations::try_new(&crls, &issuers, self.identity.now(), SKEW)?;
        let revocations = revocations.with_told(told)?;
        if revocations.is_behind(&self.identity.revocations()) {
            return Err(TrustError::Replay);
        }
        match folder.is_some() {
            true => self.identity.publish_roots(roots)?,
            false => self.compare(&roots)?,
        }
        self.identity.publish_revocations(revocations);
        if let Some(folder) = folder.as_mut() {
            folder.keep_crls(&crls, &issuers);
        }
        if let (Some(credentials), Some(roots)) =
            (self.identity.credentials(), self.identity.roots())
        {
            self.keep(&folder, credentials, roots).await;
        }
        if let Some(staple) = staple {
            self.staple(staple);
        }
        Ok(())
    }

    /// One for the certificate before may still be on its way when there is another; the next one will fit.
    fn staple(&self, staple: Vec<u8>) {
        let done = self.identity.publish_staple(staple);
        self.status.staple(done.as_ref().err().map(|e| chain(e)));
        if let Err(error) = done {
            debug!(error = chain(&error), "an OCSP response was not taken");
        }
    }

    /// Files of somebody else's are never overruled; where they lack a root that the mesh has, the mesh has to know.
    fn compare(&self, told: &Roots) -> Result<(), TrustError> {
        let own = self.identity.roots();
        let lacking = told.iter().find(|root| {
            !own.as_ref()
                .is_some_and(|own| own.contains(root.fingerprint()))
        });
        match lacking {
            Some(root) => Err(TrustError::Files {
                subject: root.subject().to_owned(),
            }),
            None => Ok(()),
        }
    }

    async fn keep(&self, folder: &Option<Folder>, credentials: Arc<Credentials>, roots: Roots) {
        let Some(folder) = folder.clone() else {
            return;
        };
        let written = spawn_blocking(move || folder.save(&credentials, &roots)).await;
        let error = match written {
            Ok(Ok(())) => return self.status.settle(Topic::Directory),
            Ok(Err(error)) => chain(&error),
            Err(error) => error.to_string(),
        };
        if self.status.alarm(Topic::Directory, error.clone()) {
            warn!(
                error,
                "the identity directory can't be written, what is in force is lost at the next start"
            );
        }
    }
}

/// Who the certificate may be of: us, in the zone that it says where we know none.
pub fn owner(own: &Workload, chain: &[CertificateDer<'_>]) -> Workload {
    match chain.first().and_then(|leaf| Cert::parse(leaf).ok()) {
        Some(cert) => own.with_zone_of(&cert.names),
        None => own.clone(),
    }
}

/// Why what was told is not taken.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error("a revocation list can't be used")]
    Crl(#[from] CrlError),
    #[error("a revocation list is older than the one in force")]
    Replay,
    #[error("the roots would not do for our own certificate")]
    Roots(#[from] CredentialsError),
    #[error("the files that are watched lack the root `{subject}`")]
    Files { subject: String },
}
