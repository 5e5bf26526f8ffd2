//! The root is replaced in three steps: everybody trusts both, the new one signs, only the new one is trusted. The control plane
//! that begins leads: it has the keys. Steps are written to its files first and then to the store; what a crash left between the
//! two is done when it comes back ([`Ca::reconcile`]).
//!
//! It goes on by itself: to the second step when the holder of every living certificate has the bundle, to the third when no
//! certificate under the old root is alive. An operator may take the second step earlier, past holders who are not connected
//! anywhere, but not past one who is; nobody takes the third earlier.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use phalanx_pki::authority::{Authority, Phase};
use phalanx_pki::clock::UnixMillis;
use phalanx_pki::issuer::Attestation;
use phalanx_pki::name::SpiffeId;
use phalanx_pki::x509::{self, Serial};
use phalanx_store::{Revision, Txn};

use super::log::Line;
use super::mesh;
use super::peers::Stream;
use super::place::{self, IntermediateFiles};
use super::record::{
    ROTATION, RotationRecord, Step, TrustingRecord, issuer_key, root_key, trusting_key,
};
use super::token::PRUNED_AT_ONCE;
use super::{Ca, CaError};

/// How long after the start of a control plane its sidecars may take to be back.
pub const SETTLE: Duration = Duration::from_secs(6);
/// Most that a status names.
pub const NAMED_MAX: usize = 50;
/// Who is told as the author of a step that was taken without one.
const ITSELF: &str = "phalanx";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotationPhase {
    /// One root, or those of several CAs; nothing is under way.
    Steady,
    /// Both roots are trusted, the old one signs: every holder of a certificate is to get the bundle.
    Overlap,
    /// Both roots are trusted, the new one signs: certificates of the old one are renewed or expire.
    Switched,
}

/// Where a rotation stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RotationStatus {
    pub phase: RotationPhase,
    /// The control plane that leads, who began it, and when; none when none is under way.
    pub led: Option<(String, String, UnixMillis)>,
    /// SHA-256 of the roots that go, and that come, hex.
    pub old: Vec<String>,
    pub new: Vec<String>,
    /// Holders of living certificates who have not said that they trust the new root.
    pub untrusting: usize,
    /// Those of them that are connected somewhere.
    pub connected: usize,
    /// This control plane has just started: those that are not connected may be on their way.
    pub settling: bool,
    /// Some of them, those that are connected first.
    pub waiting: Vec<Waiting>,
    /// Certificates under the old roots that are neither expired nor revoked, and when the last one ends.
    pub outstanding: usize,
    pub outstanding_until: Option<UnixMillis>,
}

/// Somebody who is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub id: SpiffeId,
    pub serial: Serial,
    pub not_after: UnixMillis,
    /// The control plane where it is connected.
    pub plane: Option<String>,
    /// Why it did not take the bundle.
    pub error: String,
}

/// Which certificates are of one holder: sets that grow together.
#[derive(Default)]
struct Holders<'a> {
    numbers: HashMap<&'a Serial, usize>,
    parents: Vec<usize>,
}

impl<'a> Holders<'a> {
    fn of(&mut self, serial: &'a Serial) -> usize {
        let next = self.parents.len();
        let mut at = *self.numbers.entry(serial).or_insert(next);
        if at == next {
            self.parents.push(next);
        }
        while let Some(parent) = self.parents.get(at).copied().filter(|parent| *parent != at) {
            at = parent;
        }
        at
    }

    fn same(&mut self, one: usize, other: usize) {
        if let Some(parent) = self.parents.get_mut(one) {
            *parent = other;
        }
    }
}

impl Ca {
    /// What is known now.
    pub fn rotation(&self) -> RotationStatus {
        let (mesh, now) = (self.mesh(), self.now());
        let Some((rotation, _)) = &mesh.rotation else {
            return RotationStatus {
                phase: RotationPhase::Steady,
                led: None,
                old: Vec::new(),
                new: Vec::new(),
                untrusting: 0,
                connected: 0,
                settling: false,
                waiting: Vec::new(),
                outstanding: 0,
                outstanding_until: None,
            };
        };
        let living = self.living(now);
        let mut waiting = match rotation.step {
            Step::Overlap => self.untrusting(&living, mesh.bundle()),
            Step::Switched => Vec::new(),
        };
        let under_old: HashSet<&Serial> = mesh
            .issuers
            .iter()
            .filter(|(_, issuer)| !issuer.roots.iter().any(|root| !rotation.old.contains(root)))
            .map(|(serial, _)| serial)
            .collect();
        let old: Vec<&Arc<Line>> = living
            .iter()
            .filter(|line| {
                let issuer = &line.record.issuer;
                // One that nobody knows any more can't be under the new root.
                under_old.contains(issuer) || !mesh.issuers.contains_key(issuer)
            })
            .collect();
        waiting.sort_by_key(|w| (w.plane.is_none(), w.not_after));
        let untrusting = waiting.len();
        let connected = waiting.iter().filter(|w| w.plane.is_some()).count();
        waiting.truncate(NAMED_MAX);
        RotationStatus {
            phase: match rotation.step {
                Step::Overlap => RotationPhase::Overlap,
                Step::Switched => RotationPhase::Switched,
            },
            led: Some((
                rotation.plane.clone(),
                rotation.author.clone(),
                rotation.begun,
            )),
            old: rotation.old.clone(),
            new: rotation.new.clone(),
            untrusting,
            connected,
            settling: untrusting > connected && !self.settles_in().is_zero(),
            waiting,
            outstanding: old.len(),
            outstanding_until: old.iter().map(|line| line.record.not_after).max(),
        }
    }

    /// Whether the root of a certificate is about to go, and this control plane would sign the next one under the root that
    /// comes: its holder should ask for that now, or the rotation waits until it does.
    pub(super) fn is_outgoing(&self, serial: &Serial) -> bool {
        let mesh = self.mesh();
        let Some((rotation, _)) = &mesh.rotation else {
            return false;
        };
        let goes = |issuer: &Serial| {
            let roots = mesh.issuers.get(issuer).map(|issuer| &issuer.roots);
            roots.is_none_or(|roots| roots.iter().all(|root| rotation.old.contains(root)))
        };
        let signs = self.authority().active().ca().cert().serial.clone();
        let issuer = self.log().entry(serial).map(|l| l.record.issuer.clone());
        rotation.step == Step::Switched && !goes(&signs) && issuer.is_some_and(|i| goes(&i))
    }

    /// Certificates that somebody may still show: neither expired nor revoked. A control plane keeps its key in memory, so of
    /// its own only the newest counts.
    fn living(&self, now: UnixMillis) -> Vec<Arc<Line>> {
        let mut all: Vec<Arc<Line>> = self.log().living(now).cloned().collect();
        let plane = |line: &Arc<Line>| match &line.record.attested {
            Attestation::ControlPlane { name } => Some(name.clone()),
            _ => None,
        };
        let mut newest: HashMap<String, Arc<Line>> = HashMap::new();
        for line in &all {
            if let Some(name) = plane(line) {
                let other = newest.entry(name).or_insert_with(|| line.clone());
                if other.record.issued_at <= line.record.issued_at {
                    *other = line.clone();
                }
            }
        }
        let own = self.own().credentials().map(|c| c.peer().serial.clone());
        let is_former = |line: &Arc<Line>| match plane(line) {
            Some(name) if name == self.0.config.plane => Some(&line.serial) != own.as_ref(),
            Some(name) => newest.get(&name).is_some_and(|n| n.serial != line.serial),
            None => false,
        };
        all.retain(|line| !is_former(line) && self.is_revoked(&line.serial).is_none());
        all
    }

    /// Holders of certificates that did not come with the bundle, who have not said either that they took it, with this
    /// certificate or with one that came in its place.
    fn untrusting(&self, living: &[Arc<Line>], bundle: &str) -> Vec<Waiting> {
        let peers = self.peers();
        let said = peers.stored();
        // What is said here is in the store a moment later.
        let here: HashMap<&Serial, &Stream> = peers.known().collect();
        let own = self.own().credentials().map(|c| c.peer().serial.clone());
        let own_roots = self.own().roots();
        let own_trusts = own_roots.is_some_and(|roots| mesh::bundle_of(&roots) == bundle);
        let is_here = |serial: &Serial| here.contains_key(serial) || own.as_ref() == Some(serial);
        let trusts = |line: &Line| {
            let serial = &line.serial;
            line.record.bundle == bundle
                || said.get(serial).is_some_and(|said| said.bundle == bundle)
                || here.get(serial).is_some_and(|here| here.bundle == bundle)
                || (own_trusts && own.as_ref() == Some(serial))
        };
        // Renewals of one certificate are one holder's: its connection may be older than what it shows.
        let mut holders = Holders::default();
        for line in living {
            let serial = holders.of(&line.serial);
            if let Some(before) = &line.record.replaces {
                let before = holders.of(before);
                holders.same(serial, before);
            }
        }
        let trusting: HashSet<usize> = living
            .iter()
            .filter(|line| trusts(line))
            .map(|line| holders.of(&line.serial))
            .collect();
        let mut unsettled: Vec<&Arc<Line>> = living.iter().collect();
        unsettled.retain(|line| !trusting.contains(&holders.of(&line.serial)));
        let waiting = |line: &Arc<Line>| {
            let connected = said.get(&line.serial);
            Waiting {
                id: line.record.id.clone(),
                serial: line.serial.clone(),
                not_after: line.record.not_after,
                plane: connected
                    .map(|said| said.plane.clone())
                    .or_else(|| is_here(&line.serial).then(|| self.0.config.plane.clone())),
                error: connected.map(|said| said.error.clone()).unwrap_or_default(),
            }
        };
        unsettled.into_iter().map(waiting).collect()
    }

    /// Step 1: another root is trusted beside the one there is. With an embedded root it is made now; with `--ca DIR` it is
    /// what lies in `DIR/next`.
    ///
    /// # Errors
    /// [`CaError::RotationUnderWay`], [`CaError::Place`], [`CaError`]
    pub async fn rotate_begin(&self, author: &str) -> Result<RotationStatus, CaError> {
        let _step = self.0.steps.lock().await;
        self.reload_mesh().await?;
        self.bind_now();
        if let Some((rotation, _)) = &self.mesh().rotation {
            let author = rotation.author.clone();
            return Err(CaError::RotationUnderWay { author });
        }
        let (config, now) = (&self.0.config, self.now());
        let incoming = match &config.outside {
            Some(dir) => place::outside_next(config, dir, now)?,
            None => place::create_next(config, now)?,
        };
        let authority = self.authority();
        let next = authority.begin(incoming.clone(), now)?;
        place::save(config, &next)?;
        let hex = |roots: &phalanx_pki::roots::Roots| {
            let all = roots.iter().map(|r| x509::hex(r.fingerprint()));
            all.collect::<Vec<_>>()
        };
        let rotation = RotationRecord {
            step: Step::Overlap,
            old: hex(authority.active().roots()),
            new: hex(incoming.roots()),
            plane: config.plane.clone(),
            author: author.to_owned(),
            begun: now,
            at: now,
        };
        let mut txn = Txn::new().expect_absent(ROTATION);
        txn = txn.put(ROTATION, mesh::encode(ROTATION, &rotation)?);
        txn = mesh::put_roots(txn, incoming.roots(), &config.plane, now)?;
        txn = mesh::put_issuer(txn, &incoming, &config.plane)?;
        if let Err(error) = self.0.store.commit(txn).await {
            // Nobody has heard of it.
            place::save(config, &authority)?;
            return Err(error.into());
        }
        self.stepped(next).await?;
        tracing::info!(author, "rotation of the root begun: both roots are trusted");
        Ok(self.rotation())
    }

    /// Back from step 1.
    ///
    /// # Errors
    /// [`CaError::Authority`] once the new root signs.
    pub async fn rotate_abort(&self, author: &str) -> Result<RotationStatus, CaError> {
        let _step = self.0.steps.lock().await;
        let (rotation, revision) = self.led().await?;
        let next = self.authority().abort()?;
        let next = self.less(next, &rotation.new)?;
        place::save(&self.0.config, &next)?;
        self.forget(&rotation.new, revision).await?;
        self.stepped(next).await?;
        tracing::info!(author, "rotation of the root taken back");
        Ok(self.rotation())
    }

    /// Step 2: the new root's intermediate signs. Peers that are connected nowhere are not waited for.
    ///
    /// # Errors
    /// [`CaError::Untrusting`] as long as one that is connected does not trust the new root, [`CaError::Settling`] as long as
    /// that is not known of all.
    pub async fn rotate_switch(&self, author: &str) -> Result<RotationStatus, CaError> {
        self.say_trusting().await?;
        let status = self.rotation();
        if status.connected > 0 {
            let first = status.waiting.first();
            return Err(CaError::Untrusting {
                peers: status.connected,
                first: first.map(|w| w.id.to_string()).unwrap_or_default(),
            });
        }
        self.led().await?;
        if status.settling {
            let again = self.settles_in();
            return Err(CaError::Settling { again });
        }
        self.switch(author).await?;
        Ok(self.rotation())
    }

    /// Until whoever was connected before a restart has had the time to be so again.
    fn settles_in(&self) -> Duration {
        self.now().until(self.0.opened.plus(SETTLE))
    }

    async fn switch(&self, author: &str) -> Result<(), CaError> {
        let _step = self.0.steps.lock().await;
        let (rotation, revision) = self.led().await?;
        let next = self.authority().switch(0, self.now())?;
        place::save(&self.0.config, &next)?;
        self.write_switched(rotation, revision).await?;
        self.stepped(next).await?;
        self.renew_own().await?;
        tracing::info!(author, "rotation of the root: the new one signs");
        Ok(())
    }

    async fn write_switched(
        &self,
        rotation: RotationRecord,
        revision: Revision,
    ) -> Result<(), CaError> {
        let next = RotationRecord {
            step: Step::Switched,
            at: self.now(),
            ..rotation
        };
        let txn = Txn::new().expect_modified(ROTATION, revision);
        let txn = txn.put(ROTATION, mesh::encode(ROTATION, &next)?);
        self.0.store.commit(txn).await?;
        Ok(())
    }

    /// Step 3: only the new root is trusted.
    ///
    /// # Errors
    /// [`CaError::Outstanding`] as long as a certificate under the old one is neither expired nor revoked.
    pub async fn rotate_finish(&self, author: &str) -> Result<RotationStatus, CaError> {
        let _step = self.0.steps.lock().await;
        let (rotation, revision) = self.led().await?;
        let status = self.rotation();
        if let (Phase::Switched, Some(until)) = (self.authority().phase(), status.outstanding_until)
        {
            let leaves = status.outstanding;
            return Err(CaError::Outstanding { leaves, until });
        }
        let next = self.authority().finish(status.outstanding, self.now())?;
        let next = self.less(next, &rotation.old)?;
        place::save(&self.0.config, &next)?;
        self.forget(&rotation.old, revision).await?;
        self.stepped(next).await?;
        tracing::info!(
            author,
            "rotation of the root finished: only the new one is trusted"
        );
        Ok(self.rotation())
    }

    /// The rotation as the store has it, if it is ours to lead.
    async fn led(&self) -> Result<(RotationRecord, Revision), CaError> {
        self.reload_mesh().await?;
        let rotation = self.mesh().rotation.clone().ok_or(CaError::NoRotation)?;
        if rotation.0.plane != self.0.config.plane {
            let plane = rotation.0.plane;
            return Err(CaError::LedElsewhere { plane });
        }
        Ok(rotation)
    }

    /// An authority in a mesh that trusts all that it does now but these.
    fn less(&self, authority: Authority, gone: &[String]) -> Result<Authority, CaError> {
        let roots = self.roots();
        let kept = roots
            .iter()
            .filter(|r| !gone.contains(&x509::hex(r.fingerprint())))
            .map(|r| r.der().clone());
        let kept = phalanx_pki::roots::Roots::try_new(kept);
        let kept = kept.map_err(|e| CaError::Authority(e.into()))?;
        Ok(authority.within(kept, self.now())?)
    }

    /// Ends the rotation in the store: roots go, with the issuers under them, and what was said of it.
    async fn forget(&self, gone: &[String], revision: Revision) -> Result<(), CaError> {
        let mut txn = Txn::new()
            .expect_modified(ROTATION, revision)
            .delete(ROTATION);
        for fingerprint in gone {
            txn = txn.delete(root_key(fingerprint));
        }
        let mesh = self.mesh();
        let under = |roots: &[String]| roots.iter().all(|root| gone.contains(root));
        let issuers = mesh.issuers.iter().filter(|(_, i)| under(&i.roots));
        for (serial, _) in issuers {
            txn = txn.delete(issuer_key(serial));
        }
        self.0.store.commit(txn).await?;
        Ok(())
    }

    async fn stepped(&self, next: Authority) -> Result<(), CaError> {
        let next = next.with_urls(&place::urls(&self.0.config));
        self.set_authority(next);
        self.reload_mesh().await?;
        self.bind_now();
        Ok(())
    }

    /// Once a second: says who trusts what, and takes the next step when its time has come.
    pub(super) async fn progress(&self) -> Result<(), CaError> {
        let Some((rotation, _)) = self.mesh().rotation.clone() else {
            // A step that was broken off half way.
            if self.authority().phase() != Phase::Steady {
                self.reconcile().await?;
            }
            return self.clear_trusting().await;
        };
        self.say_trusting().await?;
        if rotation.plane != self.0.config.plane {
            return Ok(());
        }
        self.reconcile().await?;
        let status = self.rotation();
        match status.phase {
            RotationPhase::Overlap if status.untrusting == 0 => self.switch(ITSELF).await,
            RotationPhase::Switched if status.outstanding == 0 => {
                self.rotate_finish(ITSELF).await.map(|_| ())
            }
            _ => Ok(()),
        }
    }

    /// Who is connected here, and who we are ourselves: what each has taken.
    pub(super) async fn say_trusting(&self) -> Result<(), CaError> {
        let mesh = self.mesh();
        if mesh.rotation.is_none() {
            return Ok(());
        }
        let plane = &self.0.config.plane;
        let mut unsaid = self.peers().unsaid(plane, PRUNED_AT_ONCE);
        if let Some(own) = self.own().credentials() {
            let serial = own.peer().serial.clone();
            let roots = self.own().roots();
            let record = TrustingRecord {
                bundle: roots.map(|r| mesh::bundle_of(&r)).unwrap_or_default(),
                error: String::new(),
                plane: plane.clone(),
            };
            if self.peers().stored().get(&serial) != Some(&record) {
                unsaid.push((serial, record));
            }
        }
        if unsaid.is_empty() {
            return Ok(());
        }
        let mut txn = Txn::new();
        for (serial, record) in &unsaid {
            let key = trusting_key(serial);
            let value = mesh::encode(&key, record)?;
            txn = txn.put(key, value);
        }
        self.0.store.commit(txn).await?;
        let mut peers = self.peers();
        for (serial, record) in unsaid {
            peers.store(serial, Some(record));
        }
        Ok(())
    }

    async fn clear_trusting(&self) -> Result<(), CaError> {
        let old: Vec<Serial> = {
            let peers = self.peers();
            let stored = peers.stored().keys();
            stored.take(PRUNED_AT_ONCE).cloned().collect()
        };
        if old.is_empty() {
            return Ok(());
        }
        let keys = old.iter().map(trusting_key);
        let txn = keys.fold(Txn::new(), |txn, key| txn.delete(key));
        self.0.store.commit(txn).await?;
        let mut peers = self.peers();
        old.into_iter().for_each(|serial| peers.store(serial, None));
        Ok(())
    }

    /// Brings files and store together after a crash between the two. Steps are checked before they are written to the files,
    /// so what stands there may be told.
    pub(super) async fn reconcile(&self) -> Result<(), CaError> {
        let _step = self.0.steps.lock().await;
        let authority = self.authority();
        let Some((rotation, revision)) = self.mesh().rotation.clone() else {
            return self.settle(&authority).await;
        };
        if rotation.plane != self.0.config.plane {
            return Ok(());
        }
        let own = authority.active().roots();
        let is_new = own
            .iter()
            .any(|r| rotation.new.contains(&x509::hex(r.fingerprint())));
        match (rotation.step, authority.phase()) {
            (Step::Overlap, Phase::Overlap) | (Step::Switched, Phase::Switched) => return Ok(()),
            (Step::Overlap, _) if is_new => self.write_switched(rotation, revision).await?,
            (Step::Overlap, _) => self.forget(&rotation.new, revision).await?,
            (Step::Switched, Phase::Steady) => self.forget(&rotation.old, revision).await?,
            (Step::Switched, Phase::Overlap) => {
                let next = authority.switch(0, self.now())?;
                place::save(&self.0.config, &next)?;
                self.set_authority(next);
            }
        }
        self.reload_mesh().await?;
        self.bind_now();
        Ok(())
    }

    /// No rotation is known to the mesh: one that stands in the files was never told, or is over.
    async fn settle(&self, authority: &Authority) -> Result<(), CaError> {
        let next = match authority.phase() {
            Phase::Steady => return Ok(()),
            Phase::Overlap => authority.abort()?,
            Phase::Switched => authority.finish(0, self.now())?,
        };
        let next = next.within(self.roots(), self.now())?;
        place::save(&self.0.config, &next)?;
        self.stepped(next).await
    }

    /// An intermediate for another control plane, under the root of this one. Its key is kept nowhere here.
    ///
    /// # Errors
    /// [`CaError::Place`] when the root's key is not here.
    pub async fn intermediate(&self, author: &str) -> Result<IntermediateFiles, CaError> {
        let authority = self.authority();
        let made = place::intermediate(&self.0.config, authority.active(), self.now())?;
        let made = made.ok_or_else(|| place::PlaceError::RootOffline {
            dir: place::root_place(&self.0.config, authority.active()),
        })?;
        tracing::info!(author, serial = %made.ca().cert().serial, "intermediate made for another control plane");
        place::files_of(&made).map_err(CaError::Issue)
    }
}
