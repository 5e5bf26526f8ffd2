//! A lease among processes of one machine: a lock on a file, which the kernel lets go of when its holder dies, however it
//! dies, and the roll in a file beside it. The directory must be on a local file system.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::{Answer, Claim, Grant, IN_SYNC_MAX, Lease, LeaseError, Roll, Seen, admissible};
use crate::matchmaking::log::{Lock, ReplicaId};

/// How soon a standby sees that the lock is free.
pub const LOOK_EVERY: Duration = Duration::from_millis(20);
const LOCK: &str = "owner.lock";
const ROLL: &str = "roll.json";
/// A larger roll is foreign.
const ROLL_BYTES_MAX: u64 = 16 << 10;

/// See the module. One per shard and directory.
#[derive(Clone, Debug)]
pub struct LocalLease {
    directory: PathBuf,
    /// Shared by clones; a mutex because lease and roll change together. Never held across an await.
    held: Arc<Mutex<Option<Held>>>,
}

#[derive(Debug)]
struct Held {
    _lock: Lock,
    roll: Roll,
}

impl LocalLease {
    /// # Errors
    /// When the directory can't be made.
    pub fn try_new(directory: impl Into<PathBuf>) -> Result<LocalLease, LeaseError> {
        let directory = directory.into();
        fs::create_dir_all(&directory).map_err(failed("make", &directory))?;
        Ok(LocalLease {
            directory,
            held: Arc::default(),
        })
    }

    fn lock(&self) -> Result<Option<Lock>, LeaseError> {
        let path = self.directory.join(LOCK);
        Lock::try_new(&path).map_err(failed("lock", &path))
    }

    fn roll(&self) -> Result<Option<Roll>, LeaseError> {
        let path = self.directory.join(ROLL);
        match fs::metadata(&path) {
            Ok(metadata) if metadata.len() > ROLL_BYTES_MAX => {
                return Err(foreign("the roll is too long"));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("read", &path)(error)),
        }
        let text = fs::read(&path).map_err(failed("read", &path))?;
        let roll = serde_json::from_slice(&text);
        roll.map(Some).map_err(|error| foreign(&error.to_string()))
    }

    fn write(&self, roll: &Roll) -> Result<(), LeaseError> {
        let path = self.directory.join(ROLL);
        let unfinished = path.with_extension("unfinished");
        let text = serde_json::to_vec(roll).map_err(|error| foreign(&error.to_string()))?;
        let written = File::create(&unfinished)
            .and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_data()))
            .and_then(|()| fs::rename(&unfinished, &path))
            .and_then(|()| File::open(&self.directory)?.sync_all());
        written.map_err(failed("write", &path))
    }

    fn seen(&self) -> Result<Seen, LeaseError> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let held = held.is_some() || self.lock()?.is_none();
        let roll = self.roll()?;
        Ok(Seen { roll, held })
    }

    fn take(&self, claim: &Claim) -> Result<Grant, LeaseError> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_some() {
            return Err(LeaseError::Held);
        }
        let lock = self.lock()?.ok_or(LeaseError::Held)?;
        let before = self.roll()?;
        admissible(before.as_ref(), claim)?;
        let roll = Roll {
            owner: claim.replica,
            address: claim.address.clone(),
            epoch: before.map_or(0, |roll| roll.epoch) + 1,
            in_sync: vec![claim.replica],
        };
        self.write(&roll)?;
        let epoch = roll.epoch;
        *held = Some(Held { _lock: lock, roll });
        Ok(Grant { epoch, until: None })
    }

    fn renewed(&self) -> Result<Grant, LeaseError> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let held = held.as_ref().ok_or(LeaseError::Lost)?;
        Ok(Grant {
            epoch: held.roll.epoch,
            until: None,
        })
    }

    fn amended(&self, epoch: u64, in_sync: Vec<ReplicaId>) -> Result<(), LeaseError> {
        debug_assert!(in_sync.len() <= IN_SYNC_MAX);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let held = held.as_mut().filter(|held| held.roll.epoch == epoch);
        let held = held.ok_or(LeaseError::Lost)?;
        let roll = Roll {
            in_sync,
            ..held.roll.clone()
        };
        self.write(&roll)?;
        held.roll = roll;
        Ok(())
    }
}

impl Lease for LocalLease {
    fn look(&self) -> Answer<'_, Seen> {
        let lease = self.clone();
        Box::pin(blocking(move || lease.seen()))
    }

    fn acquire(&self, claim: Claim) -> Answer<'_, Grant> {
        let lease = self.clone();
        Box::pin(blocking(move || lease.take(&claim)))
    }

    fn renew(&self) -> Answer<'_, Grant> {
        Box::pin(std::future::ready(self.renewed()))
    }

    fn amend(&self, epoch: u64, in_sync: Vec<ReplicaId>) -> Answer<'_, ()> {
        let lease = self.clone();
        Box::pin(blocking(move || lease.amended(epoch, in_sync)))
    }

    fn release(&self) -> Answer<'_, ()> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        *held = None;
        Box::pin(std::future::ready(Ok(())))
    }

    fn changed(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(tokio::time::sleep(LOOK_EVERY))
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LeaseError> + Send + 'static,
) -> Result<T, LeaseError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| {
        Err(LeaseError::Unavailable {
            reason: error.to_string(),
        })
    })
}

fn failed(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LeaseError + use<> {
    let path = path.to_owned();
    move |error| LeaseError::Unavailable {
        reason: format!("can't {attempt} {}: {error}", path.display()),
    }
}

fn foreign(problem: &str) -> LeaseError {
    LeaseError::Foreign {
        problem: problem.into(),
    }
}
