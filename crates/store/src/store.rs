//! The handle that the rest of the house holds. It hides which backend answers; cloning it is cheap.

use std::{sync::Arc, time::Duration};

use crate::{
    Backup, Batch, Config, Entry, EtcdConfig, LeaseId, Limits, Page, Result, Revision, Txn,
    embedded::{self, Embedded},
    etcd::{self, Shifted},
};

/// All futures may be dropped at any point; a write that was handed over by then may still happen.
#[derive(Clone, Debug)]
pub struct Store {
    backend: Backend,
}

/// An enum and not a trait object: plain `async fn`, and the two are all there will be.
#[derive(Clone, Debug)]
enum Backend {
    Embedded(Arc<Embedded>),
    Etcd(Arc<Shifted>),
}

/// Batches under a prefix, in order and without a gap.
#[derive(Debug)]
pub struct Watch {
    feed: Feed,
}

#[derive(Debug)]
enum Feed {
    Embedded(embedded::Watch),
    // Larger: what comes from a socket in parts.
    Etcd(Box<etcd::Watch>),
}

/// How the store is, for health pages. Of etcd it is what was seen a few seconds ago.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub revision: Revision,
    /// The oldest revision to watch from.
    pub oldest: Revision,
    pub entries: usize,
    pub leases: usize,
    /// Bytes of the events between `oldest` and `revision`.
    pub log_bytes: u64,
    /// Why no write is taken at the moment. It heals by itself.
    pub read_only: Option<String>,
    /// Why no write will be taken until the store is opened again.
    pub fatal: Option<String>,
    /// Transactions that are waiting to be written.
    pub queued: usize,
    /// Requests written, and the synced groups that carried them.
    pub written: u64,
    pub groups: u64,
}

impl Store {
    /// Opens (or makes) an embedded store. Needs a tokio runtime, on which its writer lives from now on.
    pub async fn embedded(config: Config) -> Result<Store> {
        Ok(Store {
            backend: Backend::Embedded(Arc::new(embedded::open(config).await?)),
        })
    }

    /// Connects to an etcd, which others may use at the same time. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`Unreachable`](crate::Error::Unreachable) when no member answers within the configuration's patience.
    pub async fn etcd(config: EtcdConfig) -> Result<Store> {
        Ok(Store {
            backend: Backend::Etcd(Arc::new(etcd::open_shifted(config).await?)),
        })
    }

    /// A store that forgets everything when it is closed, for tests and dry runs.
    pub async fn memory() -> Result<Store> {
        Store::embedded(Config::memory()).await
    }

    pub async fn get(&self, key: &str) -> Result<Option<Entry>> {
        match &self.backend {
            Backend::Embedded(store) => store.get(key),
            Backend::Etcd(store) => store.get(key).await,
        }
    }

    /// All entries whose key starts with `prefix`; the empty prefix means all.
    pub async fn list(&self, prefix: &str) -> Result<Page> {
        match &self.backend {
            Backend::Embedded(store) => store.list(prefix),
            Backend::Etcd(store) => store.list(prefix).await,
        }
    }

    /// Answers after the transaction is on disk, with its revision.
    pub async fn commit(&self, txn: Txn) -> Result<Revision> {
        match &self.backend {
            Backend::Embedded(store) => store.commit(txn).await,
            Backend::Etcd(store) => store.commit(txn).await,
        }
    }

    /// All that lies here without a lease, at one revision.
    ///
    /// # Errors
    /// [`Refused`](crate::Error::Refused) where a value in etcd is no longer whole: a backup with a hole would be believed.
    pub async fn backup(&self) -> Result<Backup> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let taken_ms = now.map_or(0, |now| now.as_millis() as u64);
        let page = self.list("").await?;
        if let Backend::Etcd(_) = &self.backend
            && let Some(torn) = page
                .entries
                .iter()
                .find(|entry| etcd::is_torn(&entry.value))
        {
            return Err(crate::Error::Refused {
                reason: format!(
                    "parts of the value of {} are missing in etcd: write it again or delete it",
                    torn.key
                ),
            });
        }
        Ok(Backup::of(page, taken_ms))
    }

    /// Everything that happens under `prefix` after the revision `from`, without a gap. However far the watcher lags, it
    /// reads on, until the events it would need next are compacted.
    pub async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch> {
        let feed = match &self.backend {
            Backend::Embedded(store) => store.watch(prefix, from).map(Feed::Embedded),
            Backend::Etcd(store) => {
                let watch = store.watch(prefix, from).await;
                watch.map(|watch| Feed::Etcd(Box::new(watch)))
            }
        };
        Ok(Watch { feed: feed? })
    }

    /// A lease that ends `ttl` after its last [`keep_alive`](Store::keep_alive). Keys put under it end with it.
    pub async fn grant(&self, ttl: Duration) -> Result<LeaseId> {
        match &self.backend {
            Backend::Embedded(store) => store.grant(ttl).await,
            Backend::Etcd(store) => store.grant(ttl).await,
        }
    }

    /// Answers the time that the lease now has left.
    pub async fn keep_alive(&self, lease: LeaseId) -> Result<Duration> {
        match &self.backend {
            Backend::Embedded(store) => store.keep_alive(lease),
            Backend::Etcd(store) => store.keep_alive(lease).await,
        }
    }

    /// Ends a lease and deletes its keys, in one transaction.
    pub async fn revoke(&self, lease: LeaseId) -> Result<Revision> {
        match &self.backend {
            Backend::Embedded(store) => store.revoke(lease).await,
            Backend::Etcd(store) => store.revoke(lease).await,
        }
    }

    /// Forgets the events before `keep_from`. Entries stay. (An embedded log is kept bounded without this, etcd's by its own
    /// `--auto-compaction-retention`. In etcd it forgets everybody's.)
    pub async fn compact(&self, keep_from: Revision) -> Result<()> {
        match &self.backend {
            Backend::Embedded(store) => store.compact(keep_from).await,
            Backend::Etcd(store) => store.compact(keep_from).await,
        }
    }

    /// The newest revision that this handle knows of; for an embedded store the newest there is. etcd's own goes further
    /// with what others write beside this store.
    pub fn revision(&self) -> Revision {
        match &self.backend {
            Backend::Embedded(store) => store.revision(),
            Backend::Etcd(store) => store.revision(),
        }
    }

    pub fn limits(&self) -> Limits {
        match &self.backend {
            Backend::Embedded(_) => embedded::LIMITS,
            Backend::Etcd(_) => etcd::LIMITS,
        }
    }

    pub fn status(&self) -> Status {
        match &self.backend {
            Backend::Embedded(store) => store.status(),
            Backend::Etcd(store) => store.status(),
        }
    }

    #[cfg(test)]
    pub(crate) fn as_etcd(&self) -> &etcd::Etcd {
        match &self.backend {
            Backend::Etcd(store) => &store.etcd,
            Backend::Embedded(_) => panic!("it is embedded"),
        }
    }

    /// Waits until the store has failed for good, and says why. What then happens to the process is the caller's decision.
    pub async fn fatal(&self) -> String {
        match &self.backend {
            Backend::Embedded(store) => store.fatal().await,
            // What fails for good fails in its own process.
            Backend::Etcd(_) => std::future::pending().await,
        }
    }

    /// Writes what is queued and lets go of the data directory. Every handle answers [`Closed`](crate::Error::Closed) from
    /// then on, and watches end. Dropping all handles does the same, later.
    pub async fn close(&self) {
        match &self.backend {
            Backend::Embedded(store) => store.close().await,
            Backend::Etcd(store) => store.close(),
        }
    }
}

impl Watch {
    /// Waits for the next batch. An error is the last item: [`Compacted`](crate::Error::Compacted) says that this watch lags
    /// behind what is kept, so list and watch anew. `None` after it, and when the store is closed. May be dropped while it
    /// waits; nothing is lost by that. Where etcd does not answer, this waits until it does.
    pub async fn next(&mut self) -> Option<Result<Batch>> {
        match &mut self.feed {
            Feed::Embedded(watch) => watch.next().await,
            Feed::Etcd(watch) => watch.next().await,
        }
    }
}
