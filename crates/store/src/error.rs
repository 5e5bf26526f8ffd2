//! Everything that can go wrong in the store, for callers on every backend.

use std::{io, path::PathBuf, sync::Arc};

use crate::{Expect, LeaseId, Revision};

#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// An expectation did not hold; nothing of the transaction was done. `found` is where the key was last modified,
    /// `None` when there is no such key.
    #[error("key {key} should {expected}, but {}", match found { Some(at) => format!("was modified at revision {at}"), None => "is absent".into() })]
    Conflict {
        key: String,
        expected: Expect,
        found: Option<Revision>,
    },

    /// Events between `from` and `oldest` are no longer kept: list, then watch from the page's revision.
    #[error(
        "the events after revision {from} are compacted, the oldest revision to watch from is {oldest}"
    )]
    Compacted { from: Revision, oldest: Revision },

    /// Usual cause: the store was restored from an older copy. List, then go on from the page's revision.
    #[error("revision {asked} is not reached yet, the store is at {head}")]
    Future { asked: Revision, head: Revision },

    #[error("there is no lease {lease}: it expired or was revoked")]
    LeaseNotFound { lease: LeaseId },

    #[error("a bad request to the store: {problem}")]
    Invalid { problem: String },

    /// Nothing was written. Reads and watches go on, and writes are taken again when the reason is gone.
    #[error("the store is read-only: {reason}")]
    ReadOnly { reason: String },

    /// The outcome of writes that were under way is unknown until the store is opened anew; none will succeed before.
    #[error("the store takes no more writes until it is opened again: {reason}")]
    Fatal { reason: String },

    /// Nobody answered in time, and nothing was written. It may work later.
    #[error("the store does not answer: {reason}")]
    Unreachable { reason: String },

    /// A write was handed over and its answer was lost: it happened, did not, or will within seconds. Look before doing it
    /// again.
    #[error("it is unknown whether the write happened: {reason}")]
    Unknown { reason: String },

    /// The server said no, and will again: a wrong password, a missing permission.
    #[error("the store refuses: {reason}")]
    Refused { reason: String },

    #[error("the store is closed")]
    Closed,

    #[error("the data directory {} is already in use{}", path.display(), match pid { Some(pid) => format!(" by pid {pid}"), None => String::new() })]
    InUse { path: PathBuf, pid: Option<u32> },

    /// Of a restore or a migration, which make a whole state and mix with none.
    #[error("{place} is not empty, {found} is there")]
    NotEmpty { place: String, found: String },

    #[error("the store {} can't be used: {problem} ({hint})", path.display())]
    Damaged {
        path: PathBuf,
        problem: String,
        hint: &'static str,
    },

    #[error("can't {attempt} {}", path.display())]
    Open {
        attempt: &'static str,
        path: PathBuf,
        #[source]
        source: Arc<io::Error>,
    },
}
