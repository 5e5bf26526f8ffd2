//! The file: redb, with one table that grows at its end. A record per event, by revision; what is live is what no later
//! record replaced. So a commit appends, and a trim erases what is old and replaced. (docs/decisions/0002 says why redb.)

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use redb::{
    Builder, Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition,
};

use super::{
    disk::{Disk, MemoryDisk},
    ledger::Ledger,
    record::{self, FORMAT, Place},
};
use crate::{Batch, LeaseId, Revision};

const LOG: TableDefinition<'_, Place, &[u8]> = TableDefinition::new("log");
/// TTLs in milliseconds.
const LEASES: TableDefinition<'_, u64, u64> = TableDefinition::new("leases");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

const META_FORMAT: &str = "format";
const META_FLOOR: &str = "floor";
/// The head when the floor was set: a trim may erase the newest record, and the revision must not go back with it.
const META_HEAD: &str = "head";
const META_LEASE_NEXT: &str = "lease next";

/// redb's pages in memory. Reads of users never come here, so it only has to hold the edge of the tree.
const CACHE_BYTES: usize = 8 << 20;

/// What one read of a lagging watch may hold.
const CATCH_UP_BATCHES: usize = 256;
const CATCH_UP_BYTES: usize = 4 << 20;

/// How long a close waits for watches that are reading. They read little, so this is a limit, not a delay.
const READERS_WAIT: Duration = Duration::from_secs(5);

pub struct Engine {
    db: Arc<Database>,
    guard: Arc<Guard>,
    /// Why this engine only looks at the file and changes nothing in it.
    blocked: Option<String>,
}

/// One commit, all or nothing.
#[derive(Debug, Default)]
pub struct Delta {
    pub records: Vec<(Place, Bytes)>,
    pub erased: Vec<Place>,
    pub granted: Vec<(LeaseId, Duration)>,
    pub ended: Vec<LeaseId>,
    pub lease_next: Option<u64>,
    /// The new floor, and the head at that time.
    pub floor: Option<(Revision, Revision)>,
}

/// What is on disk beside the events.
#[derive(Debug)]
pub struct Persisted {
    pub leases: Vec<(LeaseId, Duration)>,
    pub lease_next: u64,
}

#[derive(Clone, Debug)]
pub enum Fault {
    /// No space. The file is as it was before.
    Full(String),
    /// The disk failed in a way after which nothing about it can be trusted; a failed sync always is.
    Final(String),
    Damaged(String),
}

impl Delta {
    pub fn is_empty(&self) -> bool {
        let Delta {
            records,
            erased,
            granted,
            ended,
            lease_next,
            floor,
        } = self;
        let nothing_written = records.is_empty() && granted.is_empty() && lease_next.is_none();
        nothing_written && erased.is_empty() && ended.is_empty() && floor.is_none()
    }
}

impl Engine {
    /// Opens the file, or makes one on an empty disk. All pages are checked against their checksums.
    pub fn open(disk: Arc<dyn Disk>) -> Result<Engine, Fault> {
        let guard = Arc::new(Guard {
            disk,
            failed: std::sync::Mutex::new(None),
            synced: AtomicBool::new(false),
        });
        let made = catch_unwind(AssertUnwindSafe(|| -> Result<Database, redb::Error> {
            let db = Builder::new()
                .set_cache_size(CACHE_BYTES)
                .set_check_integrity_on_open(true)
                .create_with_backend(Backend(guard.clone()))?;
            prepare(&db)?;
            Ok(db)
        }));
        match made {
            Ok(Ok(db)) => Ok(Engine {
                db: Arc::new(db),
                guard,
                blocked: None,
            }),
            Ok(Err(error)) => Err(guard.fault(error)),
            // redb asserts more about its pages than its checksums can promise.
            Err(_) => Err(guard.fault(corrupt("the engine gave up on what is in the file".into()))),
        }
    }

    /// Like `open`; on a full disk it looks at the file through a layer in memory that takes the engine's own writes.
    pub fn open_or_peek(disk: Arc<dyn Disk>) -> Result<Engine, Fault> {
        match Engine::open(disk.clone()) {
            Err(Fault::Full(reason)) => Engine::peek(disk, reason),
            opened => opened,
        }
    }

    pub fn peek(disk: Arc<dyn Disk>, reason: String) -> Result<Engine, Fault> {
        let layer = MemoryDisk::over(disk).map_err(|error| Fault::Final(error.to_string()))?;
        Ok(Engine {
            blocked: Some(reason),
            ..Engine::open(Arc::new(layer))?
        })
    }

    pub fn blocked(&self) -> Option<String> {
        self.blocked.clone()
    }

    pub fn load(&self) -> Result<(Ledger, Persisted), Fault> {
        let mut ledger = Ledger::default();
        let persisted = self.read(|tx| {
            let meta = tx.open_table(META)?;
            let number = |name: &str| -> Result<Option<u64>, redb::Error> {
                Ok(meta.get(name)?.map(|value| value.value()))
            };
            let format = number(META_FORMAT)?;
            if format != Some(FORMAT) {
                return Err(corrupt(format!(
                    "it has format {format:?}, this version reads {FORMAT}"
                )));
            }
            ledger.floor = number(META_FLOOR)?.unwrap_or(0);
            ledger.head = number(META_HEAD)?.unwrap_or(0);
            for row in tx.open_table(LOG)?.iter()? {
                let (place, record) = row?;
                let (place, record) = (place.value(), record.value());
                let event = decode(place, record)?;
                ledger.apply(place, event, record.len());
            }
            let mut leases = Vec::new();
            for row in tx.open_table(LEASES)?.iter()? {
                let (id, ttl) = row?;
                leases.push((LeaseId(id.value()), Duration::from_millis(ttl.value())));
            }
            Ok(Persisted {
                leases,
                lease_next: number(META_LEASE_NEXT)?.unwrap_or(1),
            })
        })?;
        Ok((ledger, persisted))
    }

    /// The newest revision in the file.
    pub fn head(&self) -> Result<Revision, Fault> {
        self.read(|tx| {
            let noted = tx
                .open_table(META)?
                .get(META_HEAD)?
                .map_or(0, |value| value.value());
            let newest = tx
                .open_table(LOG)?
                .last()?
                .map_or(0, |(place, _)| place.value().0);
            Ok(noted.max(newest))
        })
    }

    /// Returns when everything is on disk. After any error this engine is of no more use.
    pub fn commit(&self, delta: &Delta) -> Result<(), Fault> {
        if let Some(reason) = &self.blocked {
            return Err(Fault::Full(reason.clone()));
        }
        let attempt = || -> Result<(), redb::Error> {
            let tx = self.db.begin_write()?;
            let mut log = tx.open_table(LOG)?;
            for (place, record) in &delta.records {
                log.insert(place, record.as_ref())?;
            }
            for place in &delta.erased {
                log.remove(place)?;
            }
            drop(log);
            if !delta.granted.is_empty() || !delta.ended.is_empty() {
                let mut leases = tx.open_table(LEASES)?;
                for (lease, ttl) in &delta.granted {
                    leases.insert(lease.0, u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))?;
                }
                for lease in &delta.ended {
                    leases.remove(lease.0)?;
                }
            }
            if delta.floor.is_some() || delta.lease_next.is_some() {
                let mut meta = tx.open_table(META)?;
                if let Some((floor, head)) = delta.floor {
                    meta.insert(META_FLOOR, floor)?;
                    meta.insert(META_HEAD, head)?;
                }
                if let Some(next) = delta.lease_next {
                    meta.insert(META_LEASE_NEXT, next)?;
                }
            }
            self.guard.synced.store(false, Ordering::Release);
            tx.commit()?;
            Ok(())
        };
        attempt().map_err(|error| self.guard.fault(error))?;
        if !self.guard.synced.load(Ordering::Acquire) {
            return Err(Fault::Final("the engine committed without a sync".into()));
        }
        Ok(())
    }

    /// Calls `each` with place, key and size of the records after `floor`, until it returns false.
    pub fn walk(
        &self,
        floor: Revision,
        mut each: impl FnMut(Place, &str, usize) -> bool,
    ) -> Result<(), Fault> {
        self.read(|tx| {
            for row in tx.open_table(LOG)?.range((floor + 1, 0)..)? {
                let (place, record) = row?;
                let (place, record) = (place.value(), record.value());
                if !each(place, decode(place, record)?.key(), record.len()) {
                    break;
                }
            }
            Ok(())
        })
    }

    pub fn reader(&self) -> Reader {
        Reader {
            db: self.db.clone(),
            guard: self.guard.clone(),
        }
    }

    /// Closes the file, after which its lock is free.
    pub fn close(self) {
        let Engine { mut db, .. } = self;
        let patience = Instant::now() + READERS_WAIT;
        loop {
            match Arc::try_unwrap(db) {
                Ok(db) => {
                    if let Err(error) = db.close() {
                        tracing::warn!(%error, "store not closed cleanly, it will be checked when it is opened");
                    }
                    return;
                }
                Err(shared) if Instant::now() < patience => db = shared,
                Err(_) => return tracing::warn!("store still read by a watch while it closes"),
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn read<T>(
        &self,
        look: impl FnOnce(&redb::ReadTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, Fault> {
        let attempt = || look(&self.db.begin_read()?);
        attempt().map_err(|error| self.guard.fault(error))
    }
}

/// Reads the log beside the writer, at a consistent state of its own.
#[derive(Clone)]
pub struct Reader {
    // Dropped before the database, whose count of users says that the disk is free.
    guard: Arc<Guard>,
    db: Arc<Database>,
}

pub enum Past {
    /// The next batches after the revision; empty if there are none.
    Batches(Vec<Batch>),
    Compacted {
        oldest: Revision,
    },
}

impl Reader {
    pub fn after(&self, revision: Revision) -> Result<Past, Fault> {
        let attempt = || -> Result<Past, redb::Error> {
            let tx = self.db.begin_read()?;
            let floor = tx
                .open_table(META)?
                .get(META_FLOOR)?
                .map_or(0, |value| value.value());
            if revision < floor {
                return Ok(Past::Compacted { oldest: floor });
            }
            let mut batches: Vec<Batch> = Vec::new();
            let mut bytes = 0;
            for row in tx.open_table(LOG)?.range((revision + 1, 0)..)? {
                let (place, record) = row?;
                let (place, record) = (place.value(), record.value());
                let event = decode(place, record)?;
                let full = batches.len() == CATCH_UP_BATCHES || bytes > CATCH_UP_BYTES;
                match batches.last_mut() {
                    Some(batch) if batch.revision == place.0 => batch.events.push(event),
                    _ if full => break,
                    _ => batches.push(Batch {
                        revision: place.0,
                        events: vec![event],
                    }),
                }
                bytes += record.len();
            }
            Ok(Past::Batches(batches))
        };
        attempt().map_err(|error| self.guard.fault(error))
    }

    pub fn is(&self, other: &Reader) -> bool {
        Arc::ptr_eq(&self.db, &other.db)
    }
}

fn prepare(db: &Database) -> Result<(), redb::Error> {
    let tx = db.begin_read()?;
    let fresh = match tx.open_table(META) {
        Ok(meta) => meta.is_empty()?,
        Err(redb::TableError::TableDoesNotExist(_)) => true,
        Err(error) => return Err(error.into()),
    };
    drop(tx);
    if fresh {
        let tx = db.begin_write()?;
        tx.open_table(LOG)?;
        tx.open_table(LEASES)?;
        tx.open_table(META)?.insert(META_FORMAT, FORMAT)?;
        tx.commit()?;
    }
    Ok(())
}

fn decode(place: Place, record: &[u8]) -> Result<crate::Event, redb::Error> {
    record::decode(place.0, record)
        .ok_or_else(|| corrupt(format!("the record at {place:?} makes no sense")))
}

fn corrupt(problem: String) -> redb::Error {
    redb::Error::Corrupted(problem)
}

/// Stands between redb and the disk, and remembers which call failed first: redb tells the error, but not whether it was
/// a sync.
#[derive(Debug)]
struct Guard {
    disk: Arc<dyn Disk>,
    failed: std::sync::Mutex<Option<(Call, std::io::Error)>>,
    synced: AtomicBool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Read,
    Write,
    Sync,
}

impl Guard {
    fn note<T>(&self, call: Call, result: std::io::Result<T>) -> std::io::Result<T> {
        result.map_err(|error| {
            let told = std::io::Error::new(error.kind(), error.to_string());
            let mut failed = self
                .failed
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            failed.get_or_insert((call, error));
            told
        })
    }

    fn fault(&self, error: redb::Error) -> Fault {
        use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};

        let failed = self
            .failed
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        match (&*failed, error) {
            (Some((Call::Write, error)), _)
                if matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge) =>
            {
                Fault::Full(error.to_string())
            }
            // A read past the end is the file's fault, not the disk's.
            (Some((Call::Read, error)), _) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                Fault::Damaged(format!("it is shorter than it says: {error}"))
            }
            (Some((call, error)), _) => Fault::Final(format!("a {call} failed: {error}")),
            (None, redb::Error::Io(error)) => Fault::Damaged(error.to_string()),
            (None, error) => Fault::Damaged(error.to_string()),
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Call::Read => "read",
            Call::Write => "write",
            Call::Sync => "sync",
        })
    }
}

#[derive(Debug)]
struct Backend(Arc<Guard>);

impl redb::StorageBackend for Backend {
    fn len(&self) -> std::io::Result<u64> {
        self.0.note(Call::Read, self.0.disk.size())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.0.note(Call::Read, self.0.disk.read(offset, out))
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.0.note(Call::Write, self.0.disk.set_size(len))
    }

    fn sync_data(&self) -> std::io::Result<()> {
        self.0.note(Call::Sync, self.0.disk.sync())?;
        self.0.synced.store(true, Ordering::Release);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.0.note(Call::Write, self.0.disk.write(offset, data))
    }
}
