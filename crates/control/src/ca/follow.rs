//! The authority follows the store: what other control planes write, and what this one wrote itself, change after change.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use phalanx_pki::authority::Authority;
use phalanx_store::{Batch, Entry, Error, EventKind, Revision, Store};
use tokio_util::sync::CancellationToken;

use super::log::{Line, Log};
use super::mesh::Mesh;
use super::peers::Peers;
use super::record::{self, Key};
use super::{Ca, CaError, revoke};

/// After a broken stream.
const PAUSE: Duration = Duration::from_millis(200);
/// A line that is on its way to the store isn't in what was read from it.
const UNDER_WAY: Duration = Duration::from_secs(60);

/// Everything under `ca/` at one revision.
pub(super) struct Stored {
    pub mesh: Mesh,
    pub log: Log,
    pub peers: Peers,
    pub revision: Revision,
}

impl Stored {
    pub async fn read(store: &Store) -> Result<Self, CaError> {
        let page = store.list(record::CA).await?;
        let (mut log, mut peers) = (Log::default(), Peers::default());
        for entry in &page.entries {
            take_line(&mut log, entry);
            take_trust(&mut peers, entry);
        }
        Ok(Self {
            mesh: Mesh::of(&page.entries, page.revision)?,
            log,
            peers,
            revision: page.revision,
        })
    }
}

/// Whether it is one more.
fn take_line(log: &mut Log, entry: &Entry) -> bool {
    let Key::Issued(serial) = Key::parse(&entry.key) else {
        return false;
    };
    match serde_json::from_slice(&entry.value) {
        Ok(line) => log.add(serial, line),
        Err(error) => {
            tracing::warn!(key = entry.key, %error, "a line of the issuance log is damaged");
            false
        }
    }
}

fn take_trust(peers: &mut Peers, entry: &Entry) {
    if let Key::Trusting(serial) = Key::parse(&entry.key) {
        peers.store(serial, serde_json::from_slice(&entry.value).ok());
    }
}

impl Ca {
    /// Follows the store, renews the own certificate, replaces an intermediate before it ends, goes on with a rotation.
    pub async fn run(self, stop: CancellationToken) {
        tokio::join!(
            self.follow(&stop),
            self.tend(&stop),
            revoke::run(self.clone(), stop.clone())
        );
        self.0.stopped.cancel();
    }

    pub(super) fn set_authority(&self, next: Authority) {
        {
            let authority = self.0.authority.write();
            *authority.unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        }
        self.tick();
    }

    async fn follow(&self, stop: &CancellationToken) {
        loop {
            let followed = tokio::select! {
                () = stop.cancelled() => return,
                followed = self.follow_once() => followed,
            };
            match followed {
                Err(Error::Closed) => return,
                Err(error) => {
                    tracing::warn!(%error, "the stream of the CA's records broke, reading everything again");
                }
                Ok(()) => {}
            }
            match Stored::read(&self.0.store).await {
                Ok(stored) => self.replace(stored).await,
                Err(error) => tracing::warn!(%error, "cannot read the CA's records"),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    async fn follow_once(&self) -> Result<(), Error> {
        let from = *self.followed();
        let mut watch = self.0.store.watch(record::CA, from).await?;
        while let Some(batch) = watch.next().await {
            self.take(batch?).await;
        }
        Ok(())
    }

    /// As after a stream that broke.
    #[cfg(test)]
    pub(super) async fn reload(&self) {
        let stored = Stored::read(&self.0.store).await.unwrap();
        self.replace(stored).await;
    }

    fn followed(&self) -> std::sync::MutexGuard<'_, Revision> {
        let followed = self.0.followed.lock();
        followed.unwrap_or_else(PoisonError::into_inner)
    }

    async fn replace(&self, stored: Stored) {
        {
            let since = self.now().minus(UNDER_WAY);
            let mut log = self.log();
            let mut fresh = stored.log;
            for line in log.newest().take_while(|l| l.record.issued_at > since) {
                fresh.add(line.serial.clone(), line.record.clone());
            }
            let missed = fresh.newest().rev();
            self.note_renewals(&fresh, missed.filter(|l| log.entry(&l.serial).is_none()));
            *log = fresh;
        }
        {
            let mut peers = self.peers();
            peers.forget_stored();
            for (serial, record) in stored.peers.stored() {
                peers.store(serial.clone(), Some(record.clone()));
            }
        }
        *self.followed() = stored.revision;
        self.set_mesh(stored.mesh);
        self.bind().await;
    }

    async fn take(&self, batch: Batch) {
        let mut mesh: Option<Mesh> = None;
        for event in &batch.events {
            let key = Key::parse(event.key());
            if key.is_mesh() {
                let mesh = mesh.get_or_insert_with(|| Mesh::clone(&self.mesh()));
                self.take_mesh(mesh, &key, &event.kind, batch.revision);
                continue;
            }
            match (&event.kind, key) {
                (EventKind::Put(entry), Key::Issued(serial)) => {
                    let mut log = self.log();
                    if take_line(&mut log, entry) {
                        self.note_renewals(&log, log.entry(&serial).iter());
                    }
                }
                (EventKind::Put(entry), Key::Trusting(_)) => take_trust(&mut self.peers(), entry),
                (EventKind::Delete { .. }, Key::Issued(serial)) => self.log().remove(&serial),
                (EventKind::Delete { .. }, Key::Trusting(serial)) => {
                    self.peers().store(serial, None);
                }
                _ => {}
            }
        }
        *self.followed() = batch.revision;
        if let Some(mesh) = mesh {
            self.set_mesh(mesh);
            self.bind().await;
        }
    }

    /// Lines that were not written here since the start, oldest first: what their holders got counts.
    pub(super) fn note_renewals<'a>(&self, log: &Log, lines: impl Iterator<Item = &'a Arc<Line>>) {
        let renewals = lines.filter(|line| line.record.replaces.is_some());
        let by_holder = renewals.map(|line| (log.first(&line.serial), line.record.issued_at));
        let life = self.0.config.leaf_ttl;
        self.0.often.note(by_holder, life, self.now());
    }

    fn take_mesh(&self, mesh: &mut Mesh, key: &Key, kind: &EventKind, at: Revision) {
        match kind {
            EventKind::Put(entry) => {
                if let Err(error) = mesh.apply(key, entry) {
                    tracing::warn!(%error, "a record of the CA is damaged, the one before stays");
                }
            }
            EventKind::Delete { .. } => mesh.drop_key(key, at),
        }
    }

    fn set_mesh(&self, next: Mesh) {
        let mut mesh = self.0.mesh.write().unwrap_or_else(PoisonError::into_inner);
        *mesh = Arc::new(next);
    }

    /// Reads roots, issuers and rotation now: what was just written is in force when this returns.
    pub(super) async fn reload_mesh(&self) -> Result<(), CaError> {
        let mut entries = Vec::new();
        let mut since = Revision::MAX;
        for prefix in [record::MESH, "ca/ro", record::ISSUERS] {
            let page = self.0.store.list(prefix).await?;
            since = since.min(page.revision);
            entries.extend(page.entries);
        }
        self.set_mesh(Mesh::of(&entries, since)?);
        Ok(())
    }

    /// After a change of what the mesh trusts: the own identity and the authority go along.
    async fn bind(&self) {
        let _step = self.0.steps.lock().await;
        self.bind_now();
    }

    pub(super) fn bind_now(&self) {
        let (authority, roots) = (self.authority(), self.roots());
        if !authority.roots().is_same(&roots) {
            match authority.within(roots, self.now()) {
                Ok(next) => self.set_authority(next),
                Err(error) => {
                    tracing::error!(%error, "the mesh no longer trusts this control plane's CA (`phalanx cert intermediate --out DIR` at another one, then `--ca DIR`)");
                }
            }
        }
        self.publish_own_roots();
        self.tick();
    }
}
