//! The one reader of the store's change stream: everything that is stored at boot, then batch after batch.

use std::sync::Arc;

use phalanx_store::{Batch, Entry, EventKind, Page, Store};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::record::{CA, SESSIONS};
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
            if self.take(batch?) {
                self.worlds.send_replace(self.fold.world());
            }
        }
        Ok(())
    }

    /// False when it is none of the world's: a thousand sidecars that renew at once compile nothing anew.
    fn take(&mut self, batch: Batch) -> bool {
        self.revision = batch.revision;
        let before = self.fold.revision();
        for event in batch.events {
            if is_others(event.key()) {
                continue;
            }
            self.fold.apply(match event.kind {
                EventKind::Put(entry) => stored(entry),
                EventKind::Delete { key, .. } => Stored {
                    key,
                    value: None,
                    revision: batch.revision,
                },
            });
        }
        self.fold.revision() != before
    }
}

/// Of rooms that follow their keys themselves.
fn is_others(key: &str) -> bool {
    key.starts_with(CA) || key.starts_with(SESSIONS)
}

fn boot(page: Page) -> Fold {
    let entries = page.entries.into_iter();
    let entries = entries.filter(|entry| !is_others(&entry.key));
    Fold::boot(entries.map(stored).collect(), page.revision)
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
