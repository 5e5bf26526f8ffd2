//! The etcd backend: the same contract over a cluster of etcd v3, for several control planes at once. Reads are
//! linearizable; etcd's revisions, which count what others write there, too, are taken as they are.
//!
//! Nothing is kept here but the way to the cluster. Each call goes to one member after the other for a bounded time. A
//! write is repeated only where it can't happen twice; else its outcome is said to be unknown.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use phalanx_proto::etcdserverpb::{
    CompactionRequest, Compare, RangeRequest, RangeResponse, ResponseHeader, ResponseOp,
    StatusRequest, TxnRequest, TxnResponse, kv_client::KvClient,
    maintenance_client::MaintenanceClient, response_op::Response,
};
use tokio::{sync::Semaphore, task::AbortHandle};

use crate::{Entry, Error, Expect, LeaseId, Limits, Op, Page, Result, Revision, Status, Txn};

mod migrate;
mod origin;

mod feed;
mod lease;

mod parts;

mod keys;
mod wire;

mod config;

#[cfg(test)]
mod tests;

pub use config::{Credentials, EtcdConfig, Tls};
pub use migrate::{Migrated, migrate};
pub use origin::{Shifted, Watch, open_shifted};
pub use parts::is_note as is_torn;

use feed::Watch as Feed;
use keys::{Keys, revision, signed};
use wire::{COMPACTED, FUTURE, Fault, MESSAGE_BYTES_MAX, Repeat, TOO_LARGE_TO_TAKE, Wire};

/// What the embedded store takes. etcd itself takes 128 operations and 1.5 MiB in one request, unless it is told otherwise;
/// more is written in parts.
pub const LIMITS: Limits = Limits {
    // Not counted here. Beyond some ten thousands etcd can't keep up with them.
    leases_max: 25_000,
    ..crate::embedded::LIMITS
};

/// An encoded transaction, with room for what etcd adds to it.
const REQUEST_BYTES_MAX: usize = (3 << 19) - (4 << 10);
/// Commits that are under way at once; more wait in their callers. One that is large counts for each MiB of it.
const COMMITS_MAX: usize = 64;
const COMMIT_BYTES: usize = 1 << 20;
/// How often a commit that can't happen twice is handed in again after its answer was lost.
const HANDED_IN_MAX: usize = 4;
/// Entries of a page, as long as they fit into a message.
const PAGE_ENTRIES_MAX: i64 = 512;
/// How often a list starts anew because its revision was compacted meanwhile.
const LISTS_MAX: usize = 4;
/// Between two looks at how etcd is.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Looks between two sweeps of parts that are of no more use.
const SWEEP_EVERY: u32 = 12;

pub struct Etcd {
    shared: Arc<Shared>,
    looking: AbortHandle,
}

/// What handle and watches have in common.
pub struct Shared {
    wire: Wire,
    keys: Keys,
    list_bytes_max: usize,
    /// The newest revision that an answer told of what lies under the prefix.
    known: AtomicU64,
    /// The newest that any answer told of the whole etcd.
    newest: AtomicU64,
    /// Once etcd's revision went back, and for as long as this handle lives: how.
    went_back: OnceLock<String>,
    /// Everything before is known to be compacted.
    oldest: AtomicU64,
    room: Semaphore,
    waiting: AtomicUsize,
    written: AtomicU64,
    /// A short critical section.
    census: Mutex<Census>,
}

/// What was found at the last look.
#[derive(Clone, Debug, Default)]
struct Census {
    entries: usize,
    leases: usize,
    bytes: u64,
    alarm: Option<String>,
}

/// Connects, and waits until a member answers, but no longer than the configuration says.
pub async fn open(config: EtcdConfig) -> Result<Etcd> {
    let shared = Arc::new(Shared {
        wire: Wire::new(&config)?,
        keys: Keys::new(&config.prefix),
        list_bytes_max: config.list_bytes_max,
        known: AtomicU64::new(0),
        newest: AtomicU64::new(0),
        went_back: OnceLock::new(),
        oldest: AtomicU64::new(0),
        room: Semaphore::new(COMMITS_MAX),
        waiting: AtomicUsize::new(0),
        written: AtomicU64::new(0),
        census: Mutex::default(),
    });
    match tokio::time::timeout(config.patience, shared.look()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(error),
        Err(_) => {
            let reason = shared.wire.trouble();
            return Err(Error::Unreachable {
                reason: reason.unwrap_or_else(|| "no answer in time".into()),
            });
        }
    }
    tracing::info!(etcd = %config.url(), prefix = %config.prefix, "store opened");
    let looking = tokio::spawn(look_on(Arc::downgrade(&shared))).abort_handle();
    Ok(Etcd { shared, looking })
}

async fn look_on(shared: std::sync::Weak<Shared>) {
    for looks in 1_u32.. {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        if let Err(error) = shared.look().await {
            tracing::debug!(%error, "no look at etcd");
        }
        if looks.is_multiple_of(SWEEP_EVERY) {
            match shared.sweep().await {
                Ok(0) => {}
                Ok(swept) => tracing::debug!(swept, "large values that were replaced are gone"),
                Err(fault) => tracing::debug!(error = %fault.of_read(), "no sweep of etcd"),
            }
        }
    }
}

impl Etcd {
    pub async fn get(&self, key: &str) -> Result<Option<Entry>> {
        self.shared.wire.open()?;
        let request = RangeRequest {
            key: self.shared.keys.full(key),
            ..Default::default()
        };
        let answer = self.shared.range(request).await.map_err(Fault::of_read)?;
        let found = answer.kvs.into_iter().next();
        let Some(entry) = found.and_then(|found| self.shared.keys.entry(found)) else {
            return Ok(None);
        };
        self.shared.learn(entry.modified);
        match self.shared.whole(entry, at(&answer.header)).await {
            Ok(entry) => Ok(Some(entry)),
            Err(fault) => Err(fault.of_read()),
        }
    }

    pub async fn list(&self, prefix: &str) -> Result<Page> {
        self.shared.wire.open()?;
        let mut fault = Fault::Closed;
        for _ in 0..LISTS_MAX {
            match self.shared.list(prefix).await {
                Ok(page) => {
                    self.shared.learn(page.revision);
                    return Ok(page);
                }
                Err(compacted) if compacted.says(COMPACTED) => fault = compacted,
                Err(fault) => return Err(fault.of_read()),
            }
        }
        Err(fault.of_read())
    }

    pub async fn commit(&self, txn: Txn) -> Result<Revision> {
        self.commit_where(&txn, None).await
    }

    /// Only while the note of where the state comes from is as of etcd's revision `at`; else it is a conflict.
    async fn commit_at_origin(&self, txn: &Txn, at: i64) -> Result<Revision> {
        let own = self.shared.origin_is(at);
        self.commit_where(txn, Some(own)).await
    }

    async fn commit_where(&self, txn: &Txn, own: Option<Compare>) -> Result<Revision> {
        self.shared.wire.open()?;
        txn.check(&LIMITS)?;
        self.shared.keys.check(txn)?;
        let _waiting = Waiting::new(&self.shared.waiting);
        let share = (txn.bytes() / COMMIT_BYTES + 1).min(COMMITS_MAX);
        let room = self.shared.room.acquire_many(share as u32);
        let _room = room.await.map_err(|_| Error::Closed)?;
        let (mut request, staged) = self.shared.stage(txn).await?;
        request.compare.extend(own);
        let outcome = self.shared.commit(txn, request).await;
        match staged {
            // What was not taken goes now and not only with time; of an unknown outcome it may still be taken.
            Some(lease) if !matches!(outcome, Err(Error::Unknown { .. })) => {
                if let Err(error) = self.shared.revoke(lease).await {
                    tracing::debug!(%error, "a lease of parts is left to its time");
                }
            }
            _ => {}
        }
        outcome
    }

    pub async fn watch(&self, prefix: &str, from: Revision) -> Result<Feed> {
        self.shared.wire.open()?;
        self.shared.check_watchable(prefix, from).await?;
        Ok(Feed::new(self.shared.clone(), prefix, from))
    }

    pub async fn grant(&self, ttl: Duration) -> Result<LeaseId> {
        self.shared.wire.open()?;
        self.shared.grant(ttl).await
    }

    pub async fn keep_alive(&self, lease: LeaseId) -> Result<Duration> {
        self.shared.wire.open()?;
        self.shared.keep_alive(lease).await
    }

    pub async fn revoke(&self, lease: LeaseId) -> Result<Revision> {
        self.shared.wire.open()?;
        self.shared.revoke(lease).await
    }

    /// For everybody in this etcd, not for this prefix alone.
    pub async fn compact(&self, keep_from: Revision) -> Result<()> {
        self.shared.wire.open()?;
        // At the revision that etcd compacts to, it may drop a deletion; what is kept begins behind it.
        let last = keep_from.saturating_sub(1);
        if last == 0 {
            return Ok(());
        }
        let request = CompactionRequest {
            revision: signed(last),
            physical: false,
        };
        let done = self.shared.wire.call(Repeat::Always, |link| {
            let request = link.request(request);
            async move { KvClient::new(link.channel).compact(request).await }
        });
        match done.await {
            Ok(_) => drop(self.shared.oldest.fetch_max(last, Ordering::Relaxed)),
            Err(fault) if fault.says(COMPACTED) => {}
            Err(fault) if fault.says(FUTURE) => {
                return Err(Error::Future {
                    asked: keep_from,
                    head: self.shared.head().await?,
                });
            }
            Err(fault) => return Err(fault.of_read()),
        }
        Ok(())
    }

    pub fn revision(&self) -> Revision {
        self.shared.known.load(Ordering::Relaxed)
    }

    /// As of the last look; never waits.
    pub fn status(&self) -> Status {
        let census = self.shared.census().clone();
        let trouble = self.shared.wire.trouble();
        let unreachable = trouble.map(|reason| format!("etcd does not answer: {reason}"));
        let written = self.shared.written.load(Ordering::Relaxed);
        Status {
            revision: self.revision(),
            oldest: self.shared.oldest.load(Ordering::Relaxed),
            entries: census.entries,
            leases: census.leases,
            log_bytes: census.bytes,
            read_only: self
                .shared
                .went_back
                .get()
                .cloned()
                .or(unreachable)
                .or(census.alarm),
            fatal: None,
            queued: self.shared.waiting.load(Ordering::Relaxed),
            written,
            groups: written,
        }
    }

    pub fn close(&self) {
        self.looking.abort();
        self.shared.wire.close();
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Fault> {
        let before = self.not_back()?;
        let call = self.wire.call(Repeat::Always, |link| {
            let request = link.request(request.clone());
            let client = KvClient::new(link.channel);
            let mut client = client.max_decoding_message_size(MESSAGE_BYTES_MAX);
            async move { client.range(request).await }
        });
        let answer = call.await?;
        self.goes_on(before, &answer.header)?;
        Ok(answer)
    }

    async fn txn(&self, repeat: Repeat, request: &TxnRequest) -> Result<TxnResponse, Fault> {
        let before = self.not_back()?;
        let call = self.wire.call(repeat, |link| {
            let request = link.request(request.clone());
            let client = KvClient::new(link.channel);
            let mut client = client.max_decoding_message_size(MESSAGE_BYTES_MAX);
            async move { client.txn(request).await }
        });
        let answer = call.await?;
        self.goes_on(before, &answer.header)?;
        Ok(answer)
    }

    /// The revision that answers to come are at, or beyond.
    fn not_back(&self) -> Result<Revision, Fault> {
        match self.went_back.get() {
            Some(how) => Err(Fault::refused(how)),
            None => Ok(self.newest.load(Ordering::Relaxed)),
        }
    }

    /// An etcd whose revision goes back has lost what was acknowledged, or is another one. What it has is not the state that
    /// went on from the last answer, and watches would skip what comes until it is as far again: nothing of it is taken.
    fn goes_on(&self, before: Revision, header: &Option<ResponseHeader>) -> Result<(), Fault> {
        let now = at(header);
        if now >= before || now == 0 {
            self.newest.fetch_max(now, Ordering::Relaxed);
            return Ok(());
        }
        let how = self.went_back.get_or_init(|| {
            let how = format!("etcd lost its data or is another one: it was at revision {before} and is at {now}");
            tracing::error!(%how, "nothing is read from it or written to it until the store is opened again");
            how
        });
        Err(Fault::refused(how))
    }

    /// Page after page at the revision of the first.
    async fn list(&self, prefix: &str) -> Result<Page, Fault> {
        let (first, end) = self.keys.range(prefix);
        let mut page = Page {
            entries: Vec::new(),
            revision: 0,
        };
        let mut bytes = 0;
        let mut request = RangeRequest {
            key: first,
            range_end: end,
            limit: PAGE_ENTRIES_MAX,
            ..Default::default()
        };
        loop {
            let answer = match self.range(request.clone()).await {
                Err(fault) if fault.says(TOO_LARGE_TO_TAKE) && request.limit > 1 => {
                    request.limit /= 2;
                    continue;
                }
                answer => answer?,
            };
            if page.revision == 0 {
                page.revision = at(&answer.header);
                request.revision = signed(page.revision);
            }
            let Some(last) = answer.kvs.last() else {
                return Ok(page);
            };
            // The key that follows: the last one and a zero byte.
            request.key = [&last.key[..], &[0]].concat();
            let entries = answer.kvs.into_iter();
            for entry in entries.filter_map(|found| self.keys.entry(found)) {
                let entry = self.whole(entry, page.revision).await?;
                bytes += entry.key.len() + entry.value.len();
                page.entries.push(entry);
            }
            if bytes > self.list_bytes_max {
                let most = self.list_bytes_max >> 20;
                let what = self.keys.full(prefix);
                let what = String::from_utf8_lossy(&what);
                return Err(Fault::refused(&format!(
                    "there are more than {most} MiB under {what}"
                )));
            }
            if !answer.more {
                return Ok(page);
            }
        }
    }

    async fn commit(&self, txn: &Txn, request: TxnRequest) -> Result<Revision> {
        let only_looks = txn.ops.is_empty();
        let repeat = if only_looks {
            Repeat::Always
        } else {
            Repeat::IfNotDone
        };
        let fence = fence(txn);
        let mut lost = None;
        for _ in 0..HANDED_IN_MAX {
            let answer = match self.txn(repeat, &request).await {
                Ok(answer) => answer,
                Err(Fault::Lost(reason)) if fence.is_some() => {
                    lost = Some(reason);
                    continue;
                }
                Err(fault) if fault.says(wire::NO_LEASE) => {
                    return Err(self.missing_lease(txn, fault).await);
                }
                Err(fault) if fault.says(wire::NO_KEY) => {
                    let reason = "its parts were written too slowly".into();
                    return Err(Error::Unreachable { reason });
                }
                Err(fault) => {
                    return Err(match (fault.of_write(), lost) {
                        (error @ (Error::Unreachable { .. } | Error::Closed), Some(reason)) => {
                            let reason = format!("{reason}; then {error}");
                            Error::Unknown { reason }
                        }
                        (error, _) => error,
                    });
                }
            };
            if answer.succeeded {
                return Ok(self.done(&answer));
            }
            let found = found(&answer);
            // What was lost may be what now stands in the way; unless the fence stands as it was expected.
            let is_fence_broken = fence.is_some_and(|i| !txn.expect[i].holds(found[i]));
            return Err(match lost {
                Some(reason) if is_fence_broken => Error::Unknown { reason },
                _ => conflict(txn, &found),
            });
        }
        Err(Error::Unknown {
            reason: lost.unwrap_or_default(),
        })
    }

    fn done(&self, answer: &TxnResponse) -> Revision {
        if answer.responses.iter().any(changes) {
            self.learn(at(&answer.header));
            self.written.fetch_add(1, Ordering::Relaxed);
            return at(&answer.header);
        }
        // Nothing happened. etcd's own revision may be one that no watch of this prefix will ever see.
        match self.known.load(Ordering::Relaxed) {
            0 => at(&answer.header),
            known => known,
        }
    }

    /// Which of the transaction's leases is not there.
    async fn missing_lease(&self, txn: &Txn, fault: Fault) -> Error {
        let leases: BTreeSet<LeaseId> = txn
            .ops
            .iter()
            .filter_map(|op| match op {
                Op::Put { lease, .. } => *lease,
                Op::Delete { .. } => None,
            })
            .collect();
        for lease in &leases {
            if leases.len() == 1 || matches!(self.is_alive(*lease).await, Ok(false)) {
                return Error::LeaseNotFound { lease: *lease };
            }
        }
        fault.of_write()
    }

    /// Whether everything after `from` can still be watched.
    async fn check_watchable(&self, prefix: &str, from: Revision) -> Result<()> {
        // etcd begins with revision 1, at which there is nothing.
        match self.look_at(prefix, from.max(1)).await {
            Ok(_) => Ok(()),
            Err(fault) if fault.says(COMPACTED) => Err(Error::Compacted {
                from,
                oldest: self.find_oldest(prefix).await,
            }),
            Err(fault) if fault.says(FUTURE) => Err(Error::Future {
                asked: from,
                head: self.head().await?,
            }),
            Err(fault) => Err(fault.of_read()),
        }
    }

    /// Reads next to nothing at a revision.
    async fn look_at(&self, prefix: &str, revision: Revision) -> Result<RangeResponse, Fault> {
        let (key, range_end) = self.keys.range(prefix);
        let request = RangeRequest {
            key,
            range_end,
            limit: 1,
            revision: signed(revision),
            keys_only: true,
            ..Default::default()
        };
        self.range(request).await
    }

    async fn head(&self) -> Result<Revision> {
        let answer = self.look_at("", 0).await.map_err(Fault::of_read)?;
        Ok(at(&answer.header))
    }

    async fn look(&self) -> Result<()> {
        let status = self.wire.call(Repeat::Always, |link| {
            let request = link.request(StatusRequest {});
            async move { MaintenanceClient::new(link.channel).status(request).await }
        });
        let status = status.await.map_err(Fault::of_read)?;
        let leases = self.count(self.keys.leases()).await?;
        let own = self.count(self.keys.reserved()).await?;
        let all = self.count(self.keys.range("")).await?;
        let entries = all.saturating_sub(own);
        *self.census() = Census {
            entries,
            leases,
            bytes: revision(status.db_size),
            alarm: (!status.errors.is_empty()).then(|| status.errors.join(", ")),
        };
        Ok(())
    }

    async fn count(&self, (key, range_end): (Vec<u8>, Vec<u8>)) -> Result<usize> {
        let request = RangeRequest {
            key,
            range_end,
            count_only: true,
            ..Default::default()
        };
        let answer = self.range(request).await.map_err(Fault::of_read)?;
        Ok(answer.count.try_into().unwrap_or(0))
    }

    fn learn(&self, revision: Revision) {
        self.known.fetch_max(revision, Ordering::Relaxed);
    }

    fn census(&self) -> std::sync::MutexGuard<'_, Census> {
        self.census.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An expectation that the transaction itself ends. With one it can't happen twice, so it may be handed in again.
fn fence(txn: &Txn) -> Option<usize> {
    txn.expect.iter().position(|expect| {
        let operation = txn.ops.iter().find(|op| op.key() == expect.key());
        match (expect, operation) {
            (Expect::Absent { .. }, Some(op)) => matches!(op, Op::Put { .. }),
            (Expect::Modified { .. }, Some(_)) => true,
            (Expect::Exists { .. }, Some(_)) | (_, None) => false,
        }
    })
}

/// Whether an operation made a revision.
fn changes(op: &ResponseOp) -> bool {
    match &op.response {
        Some(Response::ResponsePut(_)) => true,
        Some(Response::ResponseDeleteRange(deletion)) => deletion.deleted > 0,
        Some(Response::ResponseTxn(group)) => group.responses.iter().any(changes),
        _ => false,
    }
}

/// Where each expected key was last modified.
fn found(answer: &TxnResponse) -> Vec<Option<Revision>> {
    let modified = |op: &ResponseOp| match &op.response {
        Some(Response::ResponseRange(range)) => {
            range.kvs.first().map(|found| revision(found.mod_revision))
        }
        _ => None,
    };
    answer.responses.iter().map(modified).collect()
}

fn conflict(txn: &Txn, found: &[Option<Revision>]) -> Error {
    let mut looks = txn.expect.iter().zip(found);
    match looks.find(|(expect, found)| !expect.holds(**found)) {
        Some((expect, found)) => Error::Conflict {
            key: expect.key().into(),
            expected: expect.clone(),
            found: *found,
        },
        // The one comparison that is the store's own.
        None => Error::Conflict {
            key: keys::ORIGIN.into(),
            expected: Expect::Exists {
                key: keys::ORIGIN.into(),
            },
            found: None,
        },
    }
}

fn at(header: &Option<ResponseHeader>) -> Revision {
    header
        .as_ref()
        .map_or(0, |header| revision(header.revision))
}

/// One more that waits, until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl Waiting<'_> {
    fn new(count: &AtomicUsize) -> Waiting<'_> {
        count.fetch_add(1, Ordering::Relaxed);
        Waiting(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Etcd")
            .field("status", &self.status())
            .finish()
    }
}
