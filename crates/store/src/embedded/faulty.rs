//! A disk that fails as it is told, and forgets at a crash what was not synced. For tests, here and of whoever stands on the
//! store.

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use super::Disk;

/// Shared by the store, which writes, and the test, which breaks it.
#[derive(Debug, Default)]
pub struct FaultyDisk {
    state: Mutex<State>,
    /// What the test has seen acknowledged, so that a crash can note it at its moment.
    pub acknowledged: AtomicU64,
}

#[derive(Debug, Default)]
pub struct State {
    /// What a crash leaves in any case.
    pub durable: Vec<u8>,
    now: Vec<u8>,
    pub unsynced: Vec<Change>,
    /// Writes, changes of size and syncs so far.
    pub calls: u64,
    pub syncs: u64,
    /// Writes that still fit; none: any.
    pub fit: Option<u64>,
    pub sync_fails: bool,
    pub sync_panics: bool,
    pub write_fails: bool,
    /// Notes at this call what a crash would leave.
    pub crash_at: Option<u64>,
    /// From `crash_at` on nothing works any more, so that nothing later is acknowledged.
    pub dies: bool,
    /// The image of `crash_at`, and what had been acknowledged by then.
    pub crashed: Option<(Vec<u8>, u64)>,
    /// Seed of what a crash leaves of the unsynced.
    pub random: u64,
}

/// Not synced yet.
#[derive(Debug)]
pub enum Change {
    Write(u64, Vec<u8>),
    Size(u64),
}

impl Change {
    fn apply(&self, to: &mut Vec<u8>) {
        match self {
            Change::Size(size) => to.resize(*size as usize, 0),
            Change::Write(offset, from) => {
                let (start, end) = (*offset as usize, *offset as usize + from.len());
                if to.len() < end {
                    to.resize(end, 0);
                }
                to[start..end].copy_from_slice(from);
            }
        }
    }
}

impl FaultyDisk {
    /// A disk that holds `image`.
    pub fn with(image: Vec<u8>) -> Arc<FaultyDisk> {
        let disk = FaultyDisk::default();
        disk.set(|state| {
            state.durable.clone_from(&image);
            state.now = image;
        });
        Arc::new(disk)
    }

    /// Looks at or changes what the disk does from now on.
    pub fn set<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn call(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.calls += 1;
        if state.crash_at == Some(state.calls) {
            let image = state.crash_image();
            state.crashed = Some((image, self.acknowledged.load(Ordering::SeqCst)));
        }
        state
    }

    fn check_alive(state: &State) -> io::Result<()> {
        if state.dies && state.crashed.is_some() {
            return Err(io::Error::other("the power is gone"));
        }
        Ok(())
    }
}

impl State {
    /// What may be left after a power failure now: of what was not synced any part, in sectors.
    pub fn crash_image(&self) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(self.random);
        let odds = random.f64();
        let mut image = self.durable.clone();
        for change in &self.unsynced {
            match change {
                Change::Size(_) if random.f64() < odds => change.apply(&mut image),
                Change::Size(_) => {}
                Change::Write(offset, from) => {
                    for (i, sector) in from.chunks(512).enumerate() {
                        if random.f64() < odds {
                            Change::Write(offset + i as u64 * 512, sector.to_vec())
                                .apply(&mut image);
                        }
                    }
                }
            }
        }
        image
    }

    fn change(&mut self, change: Change) -> io::Result<()> {
        if self.write_fails {
            return Err(io::Error::other("a broken sector"));
        }
        match &mut self.fit {
            Some(0) => return Err(io::ErrorKind::StorageFull.into()),
            Some(fit) => *fit -= 1,
            None => {}
        }
        change.apply(&mut self.now);
        self.unsynced.push(change);
        Ok(())
    }
}

impl Disk for FaultyDisk {
    fn size(&self) -> io::Result<u64> {
        Ok(self
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .now
            .len() as u64)
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let from = state.now.get(offset as usize..offset as usize + into.len());
        into.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        let mut state = self.call();
        Self::check_alive(&state)?;
        state.change(Change::Write(offset, from.to_vec()))
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        let mut state = self.call();
        Self::check_alive(&state)?;
        state.change(Change::Size(size))
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.call();
        Self::check_alive(&state)?;
        assert!(!state.sync_panics, "told to panic");
        if state.sync_fails {
            return Err(io::Error::other("the disk is gone"));
        }
        state.syncs += 1;
        for change in std::mem::take(&mut state.unsynced) {
            change.apply(&mut state.durable);
        }
        Ok(())
    }

    fn room(&self) -> io::Result<()> {
        match self
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .fit
        {
            Some(_) => Err(io::ErrorKind::StorageFull.into()),
            None => Ok(()),
        }
    }
}
