//! The etcd backend: the same contract over a cluster of etcd v3, for several control planes at once. Reads are
//! linearizable; etcd's revisions, which count what others write there, too, are taken as they are.
//!
//! Nothing is kept here but the way to the cluster. Each call goes to one member after the other for a bounded time. A
//! write is repeated only where it can't happen twice; else its outcome is said to be unknown.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use phalanx_proto::etcdserverpb::{
    CompactionRequest, RangeRequest, RangeResponse, ResponseHeader, ResponseOp, StatusRequest,
    TxnRequest, TxnResponse, kv_client::KvClient, maintenance_client::MaintenanceClient,
    response_op::Response,
};
use prost::Message;
use tokio::{sync::Semaphore, task::AbortHandle};

use crate::{Entry, Error, Expect, LeaseId, Limits, Op, Page, Result, Revision, Status, Txn};

mod feed;
mod lease;

mod keys;
mod wire;

mod config;

#[cfg(test)]
mod tests;

pub use config::{Credentials, EtcdConfig, Tls};
pub use feed::Watch;

use keys::{Keys, revision, signed};
use wire::{COMPACTED, FUTURE, Fault, MESSAGE_BYTES_MAX, Repeat, TOO_LARGE_TO_TAKE, Wire};

/// etcd takes 128 operations and 1.5 MiB in one request, unless it is told otherwise.
pub const LIMITS: Limits = Limits {
    key_bytes_max: 4 << 10,
    value_bytes_max: 5 << 18,
    txn_ops_max: 128,
    txn_bytes_max: (5 << 18) + (8 << 10),
    lease_ttl_max: Duration::from_secs(30 * 24 * 3600),
    // Not counted here. Beyond some ten thousands etcd can't keep up with them.
    leases_max: 25_000,
};

/// An encoded transaction, with room for what etcd adds to it.
const REQUEST_BYTES_MAX: usize = (3 << 19) - (4 << 10);
/// Commits that are under way at once; more wait in their callers.
const COMMITS_MAX: usize = 64;
/// How often a commit that can't happen twice is handed in again after its answer was lost.
const HANDED_IN_MAX: usize = 4;
/// Entries of a page, as long as they fit into a message.
const PAGE_ENTRIES_MAX: i64 = 512;
/// How often a list starts anew because its revision was compacted meanwhile.
const LISTS_MAX: usize = 4;
/// Between two looks at how etcd is.
const LOOK_EVERY: Duration = Duration::from_secs(5);

pub struct Etcd {
    shared: Arc<Shared>,
    looking: AbortHandle,
}

/// What handle and watches have in common.
pub struct Shared {
    wire: Wire,
    keys: Keys,
    /// The newest revision that an answer told of what lies under the prefix.
    known: AtomicU64,
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
        known: AtomicU64::new(0),
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
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        if let Err(error) = shared.look().await {
            tracing::debug!(%error, "no look at etcd");
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
        let entry = found.and_then(|found| self.shared.keys.entry(found));
        if let Some(entry) = &entry {
            self.shared.learn(entry.modified);
        }
        Ok(entry)
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
        self.shared.wire.open()?;
        txn.check(&LIMITS)?;
        self.shared.keys.check(&txn)?;
        let request = self.shared.keys.txn(&txn);
        let bytes = request.encoded_len();
        if bytes > REQUEST_BYTES_MAX {
            return Err(Error::Invalid {
                problem: format!(
                    "a transaction of {bytes} bytes with all keys that it names, at most {REQUEST_BYTES_MAX} fit"
                ),
            });
        }
        let _waiting = Waiting::new(&self.shared.waiting);
        let _room = self
            .shared
            .room
            .acquire()
            .await
            .map_err(|_| Error::Closed)?;
        self.shared.commit(&txn, request).await
    }

    pub async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch> {
        self.shared.wire.open()?;
        self.shared.check_watchable(prefix, from).await?;
        Ok(Watch::new(self.shared.clone(), prefix, from))
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
            read_only: unreachable.or(census.alarm),
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
        let call = self.wire.call(Repeat::Always, |link| {
            let request = link.request(request.clone());
            let client = KvClient::new(link.channel);
            let mut client = client.max_decoding_message_size(MESSAGE_BYTES_MAX);
            async move { client.range(request).await }
        });
        call.await
    }

    async fn txn(&self, repeat: Repeat, request: &TxnRequest) -> Result<TxnResponse, Fault> {
        let call = self.wire.call(repeat, |link| {
            let request = link.request(request.clone());
            let client = KvClient::new(link.channel);
            let mut client = client.max_decoding_message_size(MESSAGE_BYTES_MAX);
            async move { client.txn(request).await }
        });
        call.await
    }

    /// Page after page at the revision of the first.
    async fn list(&self, prefix: &str) -> Result<Page, Fault> {
        let (first, end) = self.keys.range(prefix);
        let mut page = Page {
            entries: Vec::new(),
            revision: 0,
        };
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
            page.entries
                .extend(entries.filter_map(|found| self.keys.entry(found)));
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
        let changes = |op: &ResponseOp| match &op.response {
            Some(Response::ResponsePut(_)) => true,
            Some(Response::ResponseDeleteRange(deletion)) => deletion.deleted > 0,
            _ => false,
        };
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
        let (entries, leases) = (self.keys.range(""), self.keys.leases());
        let leases = self.count(leases).await?;
        let entries = self.count(entries).await?.saturating_sub(leases);
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
        None => Error::Refused {
            reason: "etcd found a conflict and nothing that conflicts".into(),
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
