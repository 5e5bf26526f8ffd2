//! The one reader of the store's change stream: everything that is stored at boot, then batch after batch.

use std::sync::Arc;

use phalanx_store::{Batch, Entry, EventKind, Page, Store};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Fold, Stored, World};

/// Holds the world and where to go on.
pub struct Follower {
    store: Store,
    fold: Fold,
    revision: u64,
    worlds: watch::Sender<Arc<World>>,
}

impl Follower {
    /// Reads everything. Bad content is quarantined; only a store that can't be read is an error.
    pub async fn load(store: Store) -> Result<Self, phalanx_store::Error> {
        let page = store.list("").await?;
        let revision = page.revision;
        let fold = boot(page);
        let (worlds, _) = watch::channel(fold.world());
        Ok(Self {
            store,
            fold,
            revision,
            worlds,
        })
    }

    pub fn worlds(&self) -> watch::Receiver<Arc<World>> {
        self.worlds.subscribe()
    }

    /// Follows until `stop`. After a gap in the stream everything is read again.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut told = String::new();
        loop {
            let followed = tokio::select! {
                () = stop.cancelled() => return,
                followed = self.follow() => followed,
            };
            match followed {
                Err(phalanx_store::Error::Closed) => return,
                // Once: a store that can't be used says the same again and again.
                Err(error) if told == error.to_string() => {}
                Err(error) => {
                    tracing::warn!(%error, "the store's change stream broke, reading everything again");
                    told = error.to_string();
                }
                Ok(()) => {
                    tracing::warn!("the store's change stream ended, reading everything again")
                }
            }
            if let Ok(page) = self.store.list("").await {
                told.clear();
                self.revision = page.revision;
                self.fold = boot(page);
                self.worlds.send_replace(self.fold.world());
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    async fn follow(&mut self) -> Result<(), phalanx_store::Error> {
        let mut watch = self.store.watch("", self.revision).await?;
        while let Some(batch) = watch.next().await {
            self.take(batch?);
            self.worlds.send_replace(self.fold.world());
        }
        Ok(())
    }

    fn take(&mut self, batch: Batch) {
        self.revision = batch.revision;
        for event in batch.events {
            self.fold.apply(match event.kind {
                EventKind::Put(entry) => stored(entry),
                EventKind::Delete { key, .. } => Stored {
                    key,
                    value: None,
                    revision: batch.revision,
                },
            });
        }
    }
}

fn boot(page: Page) -> Fold {
    Fold::boot(
        page.entries.into_iter().map(stored).collect(),
        page.revision,
    )
}

fn stored(entry: Entry) -> Stored {
    Stored {
        key: entry.key,
        value: Some(entry.value.to_vec()),
        revision: entry.modified,
    }
}

/// After a broken stream.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(200);
