//! The store: a revisioned key-value space with leases, compare-and-set and watch, which is etcd's contract.
//! Transactions go in through [`Store::commit`], pages and gap-free batches of events come out of [`Store::list`] and
//! [`Store::watch`]. What the values mean is not known here; instance heartbeats don't belong here.
//!
//! Module order (a module imports only later ones): store, etcd, embedded, conformance, backup, txn, error, entry.
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! use phalanx_store::{Store, Txn};
//!
//! let store = Store::memory().await?;
//! let revision = store.commit(Txn::new().expect_absent("/routes/a").put("/routes/a", "10/90")).await?;
//! let page = store.list("/routes/").await?;
//! let mut watch = store.watch("/routes/", page.revision).await?;
//! store.commit(Txn::new().expect_modified("/routes/a", revision).put("/routes/a", "50/50")).await?;
//! assert_eq!(watch.next().await.unwrap()?.revision, revision + 1);
//! # Ok::<(), phalanx_store::Error>(()) }).unwrap();
//! ```

mod store;

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod embedded;
pub mod etcd;

pub mod backup;
mod entry;
mod error;
mod txn;

pub use backup::{Backup, BackupError};
pub use embedded::{Config, Disk, Restored, restore};
pub use entry::{Batch, Entry, Event, EventKind, LeaseId, Page, Reason, Revision};
pub use error::Error;
pub use etcd::{EtcdConfig, Migrated, migrate};
pub use store::{Status, Store, Watch};
pub use txn::{Expect, Limits, Op, Txn};

pub type Result<T, E = Error> = std::result::Result<T, E>;
