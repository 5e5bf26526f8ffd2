//! Watches. None of them has a queue: each remembers the revision it has read up to, takes batches from memory while they
//! are there and from disk when it lags. So a slow one costs nothing to the writer, and can't lose anything silently.

use std::{collections::VecDeque, sync::Arc};

use tokio::sync::watch;

use super::{
    Shared,
    engine::{Fault, Past},
    ledger::Tail,
};
use crate::{Batch, Error, Result, Revision};

/// Batches that one look at the memory takes.
const LOOK_MAX: usize = 64;

/// Batches under a prefix, in order and without a gap.
pub struct Watch {
    shared: Arc<Shared>,
    prefix: String,
    /// Everything up to here was delivered or is in `ready`.
    seen: Revision,
    ready: VecDeque<Batch>,
    head: watch::Receiver<Revision>,
    ended: bool,
}

impl Watch {
    pub(super) fn new(
        shared: Arc<Shared>,
        prefix: &str,
        from: Revision,
        head: watch::Receiver<Revision>,
    ) -> Watch {
        Watch {
            shared,
            prefix: prefix.into(),
            seen: from,
            ready: VecDeque::new(),
            head,
            ended: false,
        }
    }

    /// Waits for the next batch. An error is the last item: [`Error::Compacted`] says that this watch lags behind what is
    /// kept, so list and watch anew. `None` after it, and when the store is closed. May be dropped while it waits; nothing
    /// is lost by that.
    pub async fn next(&mut self) -> Option<Result<Batch>> {
        loop {
            if let Some(batch) = self.ready.pop_front() {
                return Some(Ok(batch));
            }
            if self.ended {
                return None;
            }
            let tail = self.shared.read().after(self.seen, LOOK_MAX);
            match tail {
                Tail::Batches(batches) => batches.iter().for_each(|batch| self.take(batch)),
                Tail::Behind => {
                    if let Err(error) = self.catch_up().await {
                        self.ended = true;
                        return Some(Err(error));
                    }
                }
                Tail::UpToDate => {
                    self.ended =
                        self.head.changed().await.is_err() && self.shared.read().head <= self.seen;
                }
            }
        }
    }

    fn take(&mut self, batch: &Batch) {
        self.seen = batch.revision;
        self.ready.extend(batch.under(&self.prefix));
    }

    async fn catch_up(&mut self) -> Result<()> {
        let reader = self.shared.reader().ok_or(Error::Closed)?;
        let seen = self.seen;
        let reading = tokio::task::spawn_blocking(move || (reader.after(seen), reader));
        let (past, reader) = reading.await.map_err(|_| Error::Closed)?;
        match past {
            Ok(Past::Batches(batches)) => {
                batches.iter().for_each(|batch| self.take(batch));
                Ok(())
            }
            Ok(Past::Compacted { oldest }) => Err(Error::Compacted { from: seen, oldest }),
            // The engine was opened anew meanwhile: look again.
            Err(_) if self.shared.reader().is_some_and(|now| !now.is(&reader)) => Ok(()),
            Err(Fault::Full(reason) | Fault::Final(reason) | Fault::Damaged(reason)) => {
                Err(Error::Fatal { reason })
            }
        }
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch")
            .field("prefix", &self.prefix)
            .field("seen", &self.seen)
            .finish()
    }
}
