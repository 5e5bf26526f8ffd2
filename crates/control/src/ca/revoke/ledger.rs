//! The revocations and the revocation lists of all control planes, as the store has them and in memory. Written through here,
//! read back from the store's watch; what is written here is seen here at once.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use phalanx_pki::clock::UnixMillis;
use phalanx_pki::revocation::{self, Link, REVOKED_MAX, Reason, Revocations};
use phalanx_pki::x509::Serial;
use phalanx_store::{Entry, Error, EventKind, Revision, Store, Txn};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::lists::{List, ListError};
use super::{RevokeError, Revoked};

const REVOKED: &str = "ca/revoked/";
const LISTS: &str = "ca/crls/";
/// Records per transaction: each comes with an expectation.
const CHUNK: usize = 60;
/// How often a write is tried over when another plane was faster.
const TRIES: usize = 5;
/// Most lists that are followed: what a sidecar takes at most.
const LISTS_MAX: usize = revocation::CRLS_MAX;
/// After its end, by clocks that are behind, a certificate is nobody's any more.
const EXPIRED: Duration = Duration::from_secs(3600);
/// After a broken stream.
const PAUSE: Duration = Duration::from_millis(200);

/// One per control plane.
pub(in crate::ca) struct Revocation {
    store: Store,
    /// Short critical sections, never over an await.
    table: RwLock<Table>,
    changes: watch::Sender<u64>,
    /// What was told to this plane's servers and to those who follow.
    told: Mutex<Version>,
    /// By issuer: at which version of the records its list's content was looked at last, and the digest.
    contents: Mutex<HashMap<String, (u64, u64)>>,
    /// By issuer: why its list can't be made, so that it is said once.
    ailing: Mutex<HashMap<String, String>>,
}

#[derive(Default)]
struct Table {
    /// With the revision at which the record was written.
    revoked: HashMap<Serial, (Arc<Revoked>, Revision)>,
    lists: BTreeMap<String, (Arc<List>, Revision)>,
    version: Version,
}

/// Counts changes in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Version {
    revoked: u64,
    lists: u64,
}

impl Revocation {
    pub async fn load(store: Store) -> Result<Self, Error> {
        let ledger = Self {
            store,
            table: RwLock::default(),
            changes: watch::Sender::new(0),
            told: Mutex::default(),
            contents: Mutex::default(),
            ailing: Mutex::default(),
        };
        ledger.reload().await?;
        Ok(ledger)
    }

    /// Ticks after each change of a record or a list.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Whether anything has changed since this was asked last.
    pub fn take_untold(&self) -> bool {
        let version = self.read(|table| table.version);
        let before = std::mem::replace(&mut *lock(&self.told), version);
        before != version
    }

    /// What is revoked, has not expired and is on no list, with when it was revoked.
    pub fn unlisted(&self, listed: &Revocations, now: UnixMillis) -> Vec<(UnixMillis, Link)> {
        self.read(|table| {
            let records = table.revoked.values().map(|(record, _)| record);
            let living = records.filter(|r| now.minus(EXPIRED) <= r.not_after);
            let links = living.filter_map(|r| {
                let issuer_key = key_bytes(&r.issuer_key)?;
                let serial = r.serial.clone();
                Some((r.at, Link { issuer_key, serial }))
            });
            links.filter(|(_, link)| !listed.is_listed(link)).collect()
        })
    }

    /// The version of the records, and the digest of what an issuer's list has to say, if it is known for that version.
    pub fn content(&self, issuer_key: &str) -> (u64, Option<u64>) {
        let version = self.read(|table| table.version.revoked);
        let known = lock(&self.contents).get(issuer_key).copied();
        let known = known
            .filter(|(at, _)| *at == version)
            .map(|(_, digest)| digest);
        (version, known)
    }

    pub fn learn(&self, issuer_key: &str, version: u64, digest: u64) {
        lock(&self.contents).insert(issuer_key.to_owned(), (version, digest));
    }

    pub fn well(&self, issuer_key: &str) {
        lock(&self.ailing).remove(issuer_key);
    }

    /// Says it once, however often it is tried.
    pub fn ails(&self, issuer_key: &str, error: &ListError) {
        let cause = std::error::Error::source(error).map(ToString::to_string);
        let text = format!("{error}: {}", cause.unwrap_or_default());
        let before = lock(&self.ailing).insert(issuer_key.to_owned(), text.clone());
        if before.as_ref() != Some(&text) {
            tracing::error!(issuer_key, error = text, "no fresh revocation list");
        }
    }

    pub fn of(&self, serial: &Serial) -> Option<Arc<Revoked>> {
        self.read(|table| table.revoked.get(serial).map(|(record, _)| record.clone()))
    }

    /// What was revoked after `at`.
    pub fn since(&self, at: UnixMillis) -> Vec<Arc<Revoked>> {
        self.read(|table| {
            let records = table.revoked.values().map(|(record, _)| record);
            records.filter(|r| r.at > at).cloned().collect()
        })
    }

    /// What an issuer's list has to say, by serial.
    pub fn of_issuer(&self, issuer_key: &str) -> Vec<revocation::Revoked> {
        let mut found: Vec<_> = self.read(|table| {
            let records = table.revoked.values().map(|(record, _)| record);
            let own = records.filter(|r| r.issuer_key == issuer_key);
            let entry = |r: &Arc<Revoked>| revocation::Revoked {
                serial: r.serial.clone(),
                at: r.at,
                reason: r.reason,
            };
            own.map(entry).collect()
        });
        found.sort_by(|a, b| a.serial.cmp(&b.serial));
        found
    }

    pub fn list(&self, issuer_key: &str) -> Option<Arc<List>> {
        self.read(|table| table.lists.get(issuer_key).map(|(list, _)| list.clone()))
    }

    /// By issuer.
    pub fn lists(&self) -> Vec<Arc<List>> {
        self.read(|table| table.lists.values().map(|(list, _)| list.clone()).collect())
    }

    /// Stores those that are not revoked yet, or only on hold, and returns their serials.
    pub async fn revoke(&self, records: Vec<Revoked>) -> Result<Vec<Serial>, RevokeError> {
        self.room_for(&records)?;
        let mut done = Vec::new();
        for chunk in records.chunks(CHUNK) {
            done.extend(self.revoke_some(chunk).await?);
        }
        Ok(done)
    }

    async fn revoke_some(&self, records: &[Revoked]) -> Result<Vec<Serial>, RevokeError> {
        for _ in 0..TRIES {
            let mut txn = Txn::new();
            let mut new = Vec::new();
            for record in records {
                let key = key_of(&record.serial);
                let there = self.read(|t| t.revoked.get(&record.serial).cloned());
                txn = match there {
                    None => txn.expect_absent(&key),
                    Some((old, at)) if replaces(record, &old) => txn.expect_modified(&key, at),
                    Some(_) => continue,
                };
                txn = txn.put(key, encode(record));
                new.push(record);
            }
            if new.is_empty() {
                return Ok(Vec::new());
            }
            match self.store.commit(txn).await {
                Ok(revision) => {
                    let serials = new.iter().map(|r| r.serial.clone()).collect();
                    self.write(|table| {
                        for record in new {
                            table.put(record.clone(), revision);
                        }
                    });
                    return Ok(serials);
                }
                Err(Error::Conflict { .. }) => drop(self.reload().await?),
                Err(error) => return Err(error.into()),
            }
        }
        Err(RevokeError::Contended)
    }

    /// Takes back what is on hold.
    pub async fn release(&self, serials: &[Serial]) -> Result<Vec<Serial>, RevokeError> {
        for serial in serials {
            self.held(serial)?;
        }
        let mut done = Vec::new();
        for chunk in serials.chunks(CHUNK) {
            done.extend(self.release_some(chunk).await?);
        }
        Ok(done)
    }

    async fn release_some(&self, serials: &[Serial]) -> Result<Vec<Serial>, RevokeError> {
        for _ in 0..TRIES {
            let mut txn = Txn::new();
            for serial in serials {
                let key = key_of(serial);
                txn = txn.expect_modified(&key, self.held(serial)?).delete(key);
            }
            match self.store.commit(txn).await {
                Ok(revision) => {
                    self.write(|table| {
                        for serial in serials {
                            table.remove(serial, revision);
                        }
                    });
                    return Ok(serials.to_vec());
                }
                Err(Error::Conflict { .. }) => drop(self.reload().await?),
                Err(error) => return Err(error.into()),
            }
        }
        Err(RevokeError::Contended)
    }

    /// The revision of a record that can be taken back.
    fn held(&self, serial: &Serial) -> Result<Revision, RevokeError> {
        let found = self.read(|t| t.revoked.get(serial).cloned());
        match found {
            Some((record, at)) if record.reason == Reason::CertificateHold => Ok(at),
            _ => Err(RevokeError::NotHeld {
                serial: serial.clone(),
            }),
        }
    }

    fn room_for(&self, records: &[Revoked]) -> Result<(), RevokeError> {
        let mut wanted: HashMap<&str, usize> = HashMap::new();
        for record in records {
            *wanted.entry(&record.issuer_key).or_default() += 1;
        }
        let there = |issuer: &str| {
            self.read(|t| {
                let all = t.revoked.values();
                all.filter(|(r, _)| r.issuer_key == issuer).count()
            })
        };
        if wanted
            .iter()
            .any(|(issuer, n)| there(issuer) + n > REVOKED_MAX)
        {
            return Err(RevokeError::ListFull);
        }
        Ok(())
    }

    /// Puts a list in the place of the one that `over` was made from; false when another was faster, which is then known here.
    pub async fn put_list(
        &self,
        issuer_key: &str,
        list: List,
        over: Option<Revision>,
    ) -> Result<bool, Error> {
        let key = format!("{LISTS}{issuer_key}");
        let txn = match over {
            None => Txn::new().expect_absent(&key),
            Some(at) => Txn::new().expect_modified(&key, at),
        };
        match self.store.commit(txn.put(key, list.encode())).await {
            Ok(revision) => {
                self.write(|table| table.put_list(issuer_key, list, revision));
                Ok(true)
            }
            Err(Error::Conflict { .. }) => self.reload().await.map(|_| false),
            Err(error) => Err(error),
        }
    }

    /// The list of an issuer with its revision, to be replaced.
    pub fn list_at(&self, issuer_key: &str) -> (Option<Arc<List>>, Option<Revision>) {
        let found = self.read(|table| table.lists.get(issuer_key).cloned());
        found.map_or((None, None), |(list, at)| (Some(list), Some(at)))
    }

    /// Deletes records of certificates that expired before `expired`, and lists of issuers that have expired by `now`. What
    /// fails is tried again later.
    pub async fn prune(&self, expired: UnixMillis, now: UnixMillis) {
        let (serials, issuers) = self.read(|table| {
            let old = table
                .revoked
                .values()
                .filter(|(r, _)| r.not_after < expired);
            let serials: Vec<Serial> = old.map(|(r, _)| r.serial.clone()).collect();
            let over = table.lists.iter().filter(|(_, (l, _))| l.is_over(now));
            let issuers: Vec<String> = over.map(|(key, _)| key.clone()).collect();
            (serials, issuers)
        });
        let keys = serials.iter().map(key_of);
        let keys: Vec<String> = keys
            .chain(issuers.iter().map(|i| format!("{LISTS}{i}")))
            .collect();
        for chunk in keys.chunks(CHUNK) {
            let txn = chunk.iter().fold(Txn::new(), |txn, key| txn.delete(key));
            if let Err(error) = self.store.commit(txn).await {
                tracing::warn!(%error, "cannot prune revocations");
                return;
            }
        }
    }

    /// Reads what others write, until `stop`.
    pub async fn follow(&self, stop: CancellationToken) {
        loop {
            let followed = tokio::select! {
                () = stop.cancelled() => return,
                followed = self.follow_once() => followed,
            };
            match followed {
                Err(Error::Closed) => return,
                Err(error) => {
                    tracing::warn!(%error, "the stream of revocations broke, reading everything again");
                }
                Ok(()) => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    async fn follow_once(&self) -> Result<(), Error> {
        let from = self.reload().await?;
        let mut watch = self.store.watch("ca/", from).await?;
        while let Some(batch) = watch.next().await {
            let batch = batch?;
            let ours = |key: &str| key.starts_with(REVOKED) || key.starts_with(LISTS);
            if !batch.events.iter().any(|e| ours(e.key())) {
                continue;
            }
            self.write(|table| {
                for event in batch.events {
                    match event.kind {
                        EventKind::Put(entry) => table.apply(&entry),
                        EventKind::Delete { key, .. } => table.drop_key(&key, batch.revision),
                    }
                }
            });
        }
        Ok(())
    }

    #[cfg(test)]
    pub async fn reload_now(&self) {
        self.reload().await.unwrap();
    }

    async fn reload(&self) -> Result<Revision, Error> {
        let page = self.store.list("ca/").await?;
        let mut fresh = Table::default();
        for entry in &page.entries {
            fresh.apply(entry);
        }
        self.write(|table| table.replace(fresh, page.revision));
        Ok(page.revision)
    }

    fn read<T>(&self, look: impl FnOnce(&Table) -> T) -> T {
        look(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write(&self, change: impl FnOnce(&mut Table)) {
        let is_changed = {
            let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
            let before = table.version;
            change(&mut table);
            table.version != before
        };
        if is_changed {
            self.changes.send_modify(|n| *n += 1);
        }
    }
}

impl Table {
    fn apply(&mut self, entry: &Entry) {
        if let Some(serial) = entry.key.strip_prefix(REVOKED) {
            match serde_json::from_slice::<Revoked>(&entry.value) {
                Ok(record) if record.serial.to_string() == serial => {
                    self.put(record, entry.modified);
                }
                _ => tracing::warn!(key = entry.key, "a damaged record of a revocation"),
            }
        } else if let Some(issuer) = entry.key.strip_prefix(LISTS) {
            match List::decode(&entry.value) {
                Some(list) if self.lists.contains_key(issuer) || self.lists.len() < LISTS_MAX => {
                    self.put_list(issuer, list, entry.modified);
                }
                Some(_) => {
                    tracing::warn!(
                        issuer,
                        "more than {LISTS_MAX} issuers have revocation lists"
                    )
                }
                None => tracing::warn!(key = entry.key, "a damaged revocation list"),
            }
        }
    }

    /// What was written here may be newer than what the watch brings.
    fn put(&mut self, record: Revoked, at: Revision) {
        let old = self.revoked.get(&record.serial);
        if old.is_some_and(|(_, there)| *there >= at) {
            return;
        }
        let serial = record.serial.clone();
        self.revoked.insert(serial, (Arc::new(record), at));
        self.version.revoked += 1;
    }

    fn remove(&mut self, serial: &Serial, at: Revision) {
        if self
            .revoked
            .get(serial)
            .is_some_and(|(_, there)| *there < at)
        {
            self.revoked.remove(serial);
            self.version.revoked += 1;
        }
    }

    fn put_list(&mut self, issuer_key: &str, list: List, at: Revision) {
        let old = self.lists.get(issuer_key);
        if old.is_some_and(|(_, there)| *there >= at) {
            return;
        }
        self.lists
            .insert(issuer_key.to_owned(), (Arc::new(list), at));
        self.version.lists += 1;
    }

    fn drop_key(&mut self, key: &str, at: Revision) {
        if let Some(serial) = key.strip_prefix(REVOKED) {
            if let Ok(serial) = Serial::parse(serial) {
                self.remove(&serial, at);
            }
        } else if let Some(issuer) = key.strip_prefix(LISTS)
            && self.lists.get(issuer).is_some_and(|(_, there)| *there < at)
        {
            self.lists.remove(issuer);
            self.version.lists += 1;
        }
    }

    /// Everything as it was at `revision`; what was written here after that stays.
    fn replace(&mut self, mut fresh: Self, revision: Revision) {
        let later = self.revoked.values().filter(|(_, at)| *at > revision);
        for (record, at) in later {
            fresh.put((**record).clone(), *at);
        }
        let later = self.lists.iter().filter(|(_, (_, at))| *at > revision);
        for (issuer, (list, at)) in later {
            fresh.put_list(issuer, (**list).clone(), *at);
        }
        if fresh.revoked != self.revoked {
            self.version.revoked += 1;
        }
        if !fresh
            .lists
            .iter()
            .map(|(k, v)| (k, v.1))
            .eq(self.lists.iter().map(|(k, v)| (k, v.1)))
        {
            self.version.lists += 1;
        }
        self.revoked = fresh.revoked;
        self.lists = fresh.lists;
    }
}

/// Only a hold can become something else, and not a hold again.
fn replaces(new: &Revoked, old: &Revoked) -> bool {
    old.reason == Reason::CertificateHold && new.reason != Reason::CertificateHold
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn key_of(serial: &Serial) -> String {
    format!("{REVOKED}{serial}")
}

fn key_bytes(hex: &str) -> Option<[u8; 32]> {
    let mut key = [0; 32];
    if hex.len() != 2 * key.len() {
        return None;
    }
    for (byte, digits) in key.iter_mut().zip(hex.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(key)
}

fn encode(record: &Revoked) -> Vec<u8> {
    // Strings and numbers only: there is nothing that JSON has no words for.
    serde_json::to_vec(record).unwrap_or_default()
}
