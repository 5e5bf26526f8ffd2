//! The identity of a process, as it stands: credentials, trusted roots, revocations. Each is checked, then published in one swap;
//! handshakes read what is current, connections that are open keep what they had. Peers are verified here and nowhere else.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use aws_lc_rs::digest;
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use crate::clock::{Clock, UnixMillis};
use crate::credentials::{Credentials, CredentialsError};
use crate::revocation::Revocations;
use crate::roots::Roots;
use crate::verifier::{self, CrlPolicy, Path, Peer, Policy, Refusal, Role};

#[cfg(test)]
mod tests;

/// Most verified paths that are remembered.
const PATHS_MAX: usize = 4096;

/// Shared by every listener and cluster of a process.
#[derive(Debug)]
pub struct Identity {
    clock: Arc<dyn Clock>,
    state: ArcSwap<State>,
    /// Writers only, so that one doesn't overwrite what another has just published; readers take the swap.
    writer: Mutex<()>,
    changes: watch::Sender<u64>,
    /// Signatures once checked under the current roots. Held for a lookup or an insert, never while checking.
    paths: Mutex<Paths>,
}

#[derive(Debug, Default)]
struct State {
    credentials: Option<Arc<Credentials>>,
    roots: Option<Roots>,
    revocations: Revocations,
    /// Grows whenever a session made before must not be resumed.
    epoch: u64,
    /// Grows with the roots.
    trust: u64,
}

#[derive(Debug, Default)]
struct Paths {
    trust: u64,
    known: HashMap<[u8; 32], Arc<Path>>,
}

impl Identity {
    /// Without credentials and roots: it shows nothing and lets nobody in.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            state: ArcSwap::default(),
            writer: Mutex::default(),
            changes: watch::Sender::new(0),
            paths: Mutex::default(),
        }
    }

    /// Publishes credentials together with their roots.
    pub fn publish(&self, credentials: Credentials) {
        self.swap(|old| State {
            roots: Some(credentials.parts().roots.clone()),
            credentials: Some(Arc::new(credentials)),
            revocations: old.revocations.clone(),
            epoch: old.epoch + 1,
            trust: old.trust + 1,
        });
    }

    /// Replaces the staple of the current credentials; sessions go on.
    ///
    /// # Errors
    /// [`CredentialsError::Staple`]; the staple before stays.
    pub fn publish_staple(&self, staple: Vec<u8>) -> Result<(), CredentialsError> {
        let _writer = self.lock_writer();
        let old = self.state.load_full();
        let Some(credentials) = &old.credentials else {
            return Err(CredentialsError::Refused(Refusal::NoCertificate));
        };
        let fresh = credentials.with_staple(staple, self.clock.now())?;
        self.store(State {
            credentials: Some(Arc::new(fresh)),
            ..old.copy()
        });
        Ok(())
    }

    /// Replaces the roots.
    ///
    /// # Errors
    /// [`CredentialsError::Refused`] when peers with these roots would refuse our own chain: during a rotation that is a
    /// bundle which came too early. What was there stays.
    pub fn publish_roots(&self, roots: Roots) -> Result<(), CredentialsError> {
        let _writer = self.lock_writer();
        let old = self.state.load_full();
        if let Some(own) = &old.credentials {
            verifier::verify_path(&own.parts().chain, Role::Server, &roots, self.clock.now())
                .map_err(CredentialsError::Refused)?;
        }
        if old.roots.as_ref().is_some_and(|r| r.is_same(&roots)) {
            return Ok(());
        }
        self.store(State {
            roots: Some(roots),
            epoch: old.epoch + 1,
            trust: old.trust + 1,
            ..old.copy()
        });
        Ok(())
    }

    /// Replaces the revocations. Returns whether they were taken: lists with a lower number than the current ones are a
    /// replay and are not.
    pub fn publish_revocations(&self, revocations: Revocations) -> bool {
        let _writer = self.lock_writer();
        let old = self.state.load_full();
        if revocations.is_behind(&old.revocations) {
            return false;
        }
        let epoch = old.epoch + u64::from(!revocations.lists_same(&old.revocations));
        self.store(State {
            revocations,
            epoch,
            ..old.copy()
        });
        true
    }

    pub fn credentials(&self) -> Option<Arc<Credentials>> {
        self.state.load().credentials.clone()
    }

    pub fn roots(&self) -> Option<Roots> {
        self.state.load().roots.clone()
    }

    pub fn revocations(&self) -> Revocations {
        self.state.load().revocations.clone()
    }

    /// Ticks after each publication.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub fn now(&self) -> UnixMillis {
        self.clock.now()
    }

    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// Sessions of an earlier epoch are not resumed.
    pub(crate) fn epoch(&self) -> u64 {
        self.state.load().epoch
    }

    /// Checks a peer's chain and staple against what is current.
    ///
    /// # Errors
    /// [`Refusal`]
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        staple: &[u8],
        policy: &Policy,
    ) -> Result<Arc<Peer>, Refusal> {
        let (state, now) = (self.state.load_full(), self.clock.now());
        let roots = state.roots.as_ref().ok_or(Refusal::NoRoots)?;
        let key = path_key(chain, policy.role);
        let path = match self.known(state.trust, &key) {
            Some(path) => path,
            None => {
                let path = Arc::new(verifier::verify_path(chain, policy.role, roots, now)?);
                self.remember(state.trust, key, path.clone());
                path
            }
        };
        verifier::check_peer(&path, &state.revocations, policy, now)?;
        verifier::check_staple(&path, staple, policy, now)?;
        Ok(path.peer.clone())
    }

    /// Whether an open connection may stay: its peer is not on a revocation list. (Expiry alone closes nothing.)
    ///
    /// # Errors
    /// [`Refusal::Revoked`]
    pub fn recheck(&self, peer: &Peer) -> Result<(), Refusal> {
        let state = self.state.load();
        verifier::check_links(
            &peer.links,
            &state.revocations,
            CrlPolicy::IfPresent,
            self.clock.now(),
        )
    }

    /// As [`Identity::recheck`], and the root that its chain ended in is still trusted: for connections that lose nothing when
    /// they are made anew.
    ///
    /// # Errors
    /// [`Refusal::Revoked`], [`Refusal::UnknownCa`]
    pub fn recheck_trust(&self, peer: &Peer) -> Result<(), Refusal> {
        self.recheck(peer)?;
        let state = self.state.load();
        let roots = state.roots.as_ref().ok_or(Refusal::NoRoots)?;
        let anchor = peer.links.last().ok_or(Refusal::UnknownCa)?;
        match roots.has_key(&anchor.issuer_key) {
            true => Ok(()),
            false => Err(Refusal::UnknownCa),
        }
    }

    fn known(&self, trust: u64, key: &[u8; 32]) -> Option<Arc<Path>> {
        let paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        if paths.trust == trust {
            paths.known.get(key).cloned()
        } else {
            None
        }
    }

    fn remember(&self, trust: u64, key: [u8; 32], path: Arc<Path>) {
        let mut paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        if paths.trust > trust {
            return;
        }
        if paths.trust < trust || paths.known.len() >= PATHS_MAX {
            *paths = Paths {
                trust,
                known: HashMap::new(),
            };
        }
        paths.known.insert(key, path);
    }

    fn swap(&self, next: impl FnOnce(&State) -> State) {
        let _writer = self.lock_writer();
        self.store(next(&self.state.load_full()));
    }

    fn store(&self, state: State) {
        self.state.store(Arc::new(state));
        self.changes.send_modify(|n| *n += 1);
    }

    fn lock_writer(&self) -> std::sync::MutexGuard<'_, ()> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn copy(&self) -> Self {
        Self {
            credentials: self.credentials.clone(),
            roots: self.roots.clone(),
            revocations: self.revocations.clone(),
            epoch: self.epoch,
            trust: self.trust,
        }
    }
}

/// SHA-256 over the role and every certificate with its length.
fn path_key(chain: &[CertificateDer<'_>], role: Role) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&[u8::from(role == Role::Client)]);
    for cert in chain {
        context.update(&cert.len().to_be_bytes());
        context.update(cert);
    }
    let mut key = [0; 32];
    key.copy_from_slice(context.finish().as_ref());
    key
}
