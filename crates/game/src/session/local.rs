//! The directory in this process: one table behind a lock that is held for an instant, and a tick that wakes followers.
//! Nothing runs beside it: what is over is let go when somebody looks, and a follower looks in time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use tokio::time::{Instant as Time, sleep};

use super::directory::{Directory, DirectoryError, Follow, Seat, Update};
use super::name::{Instance, Key};
use super::table::{SEATS_MAX, Table};

/// Epochs per millisecond that a directory may give on average, so that the next one begins behind the last.
const EPOCHS_PER_MS: u64 = 1_024;
/// A follower that has nothing to wait for looks all the same.
const IDLE: Duration = Duration::from_secs(60);

/// Cheap to clone; clones are one directory.
#[derive(Clone, Debug)]
pub struct Local {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Short critical sections, never across an await.
    table: Mutex<Table>,
    ticks: watch::Sender<u64>,
    start: Time,
}

/// Follows a [`Local`].
#[derive(Debug)]
pub struct LocalWatch {
    shared: Arc<Shared>,
    ticks: watch::Receiver<u64>,
    at: Option<u64>,
}

impl Default for Local {
    fn default() -> Self {
        Self::new()
    }
}

impl Local {
    /// Of at most [`SEATS_MAX`] seats. Epochs go on behind those of earlier processes, as long as the clock does.
    pub fn new() -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH);
        let ms = unix.map_or(1, |unix| unix.as_millis() as u64);
        let table = Table::new(ms.saturating_mul(EPOCHS_PER_MS), SEATS_MAX);
        let shared = Shared {
            table: Mutex::new(table),
            ticks: watch::Sender::new(0),
            start: Time::now(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// An instance takes nothing new, or does again.
    ///
    /// # Errors
    /// [`DirectoryError::Full`]
    pub fn close(&self, instance: &Instance, closed: bool) -> Result<(), DirectoryError> {
        self.shared.table().close(instance, closed)
    }

    /// How many seats an instance has.
    pub fn count_of(&self, instance: &Instance) -> usize {
        let mut table = self.shared.table();
        table.sweep(self.shared.now());
        table.count_of(instance)
    }

    pub fn len(&self) -> usize {
        let mut table = self.shared.table();
        table.sweep(self.shared.now());
        table.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn change<T>(
        &self,
        change: impl FnOnce(&mut Table, Duration) -> Result<T, DirectoryError>,
    ) -> Result<T, DirectoryError> {
        let done = change(&mut self.shared.table(), self.shared.now());
        self.shared.ticks.send_modify(|tick| *tick += 1);
        done
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }
}

impl Directory for Local {
    type Watch = LocalWatch;

    async fn claim(
        &self,
        key: &Key,
        instance: &Instance,
        over: Option<u64>,
        ttl: Option<Duration>,
    ) -> Result<Seat, DirectoryError> {
        self.change(|table, now| table.claim(now, key, instance, over, ttl))
    }

    async fn move_to(&self, key: &Key, to: &Instance, epoch: u64) -> Result<Seat, DirectoryError> {
        self.change(|table, now| table.move_to(now, key, to, epoch))
    }

    async fn release(&self, key: &Key, epoch: u64) -> Result<Option<Seat>, DirectoryError> {
        self.change(|table, now| table.release(now, key, epoch))
    }

    async fn show(&self, key: &Key) -> Result<Option<Seat>, DirectoryError> {
        Ok(self.shared.table().show(self.shared.now(), key))
    }

    async fn watch(&self) -> Result<LocalWatch, DirectoryError> {
        Ok(LocalWatch {
            shared: self.shared.clone(),
            ticks: self.shared.ticks.subscribe(),
            at: None,
        })
    }
}

impl Follow for LocalWatch {
    async fn next(&mut self) -> Result<Update, DirectoryError> {
        loop {
            self.ticks.borrow_and_update();
            let now = self.shared.now();
            let ends = {
                let mut table = self.shared.table();
                table.sweep(now);
                let (update, at) = table.since(self.at);
                self.at = Some(at);
                if let Some(update) = update {
                    return Ok(update);
                }
                table.next_end()
            };
            let until = ends.map_or(IDLE, |ends| ends.saturating_sub(now));
            tokio::select! {
                // The sender is in what we share.
                _ = self.ticks.changed() => {}
                () = sleep(until.min(IDLE)) => {}
            }
        }
    }
}
