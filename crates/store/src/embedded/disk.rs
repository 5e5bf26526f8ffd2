//! The disk under the engine, handed in so that tests and simulation can bring one that fails, fills up or forgets what
//! was not synced. A [`FileDisk`] is what users have.

use std::{
    collections::BTreeMap,
    fmt,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use super::engine::Fault;
use crate::Error;

pub const FILE: &str = "store.redb";
const LOCK: &str = "store.lock";
/// A store that is being made; it gets its name when it is complete, so an empty file by that name is damage.
const UNFINISHED: &str = "store.redb.new";
const PROBE: &str = "store.probe";
/// What has to be free before a store that found its disk full writes again.
const ROOM_BYTES: usize = 4 << 20;

/// Bytes that can be read, written and synced. A write is durable when a later `sync` has returned. The store calls it
/// from one thread at a time, except for `read`.
pub trait Disk: fmt::Debug + Send + Sync + 'static {
    fn size(&self) -> io::Result<u64>;
    /// Fills `into`, or fails with `UnexpectedEof`.
    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;
    fn write(&self, offset: u64, from: &[u8]) -> io::Result<()>;
    /// New bytes are zero.
    fn set_size(&self, size: u64) -> io::Result<()>;
    fn sync(&self) -> io::Result<()>;
    /// Whether a few MiB more would fit.
    fn room(&self) -> io::Result<()>;
}

/// A file in a locked directory.
#[derive(Debug)]
pub struct FileDisk {
    file: File,
    directory: PathBuf,
    /// Held, not used: the lock goes when the last user of the disk does, or the process.
    _lock: Option<File>,
}

/// What lies beside a store and is no store.
pub const HELPERS: [&str; 3] = [LOCK, UNFINISHED, PROBE];

/// Makes the directory if it isn't there.
pub fn make(directory: &Path) -> Result<(), Error> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory);
    made.map_err(attempt("make the directory", directory))
}

/// Makes a store under another name, lets `name` give it its own, and makes that durable.
pub fn complete<T>(
    directory: &Path,
    format: impl FnOnce(Arc<dyn Disk>) -> Result<(), Fault>,
    name: impl FnOnce(&Path) -> io::Result<T>,
) -> Result<T, Error> {
    let unfinished = directory.join(UNFINISHED);
    let file = open(&unfinished, true).map_err(attempt("make", &unfinished))?;
    let disk = FileDisk {
        file,
        directory: directory.into(),
        _lock: None,
    };
    format(Arc::new(disk)).map_err(|fault| super::refused(&unfinished, fault))?;
    let named = name(&unfinished).map_err(attempt("name", &unfinished))?;
    let sync = |directory: &Path| File::open(directory).and_then(|directory| directory.sync_all());
    sync(directory).map_err(attempt("sync the directory", directory))?;
    // The directory itself may be new; above it is none of ours, and may not be readable.
    if let Some(parent) = directory.parent()
        && let Err(error) = sync(parent)
    {
        tracing::debug!(path = %parent.display(), %error, "directory not synced");
    }
    Ok(named)
}

fn open(path: &Path, new: bool) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(new)
        .truncate(new)
        .mode(0o600)
        .open(path)
}

fn attempt(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Open {
        attempt,
        path,
        source: Arc::new(source),
    }
}

/// Locks the directory and makes its store if there is none, with `format`.
pub fn prepare(
    directory: &Path,
    format: impl FnOnce(Arc<dyn Disk>) -> Result<(), Fault>,
) -> Result<FileDisk, Error> {
    make(directory)?;
    let lock = lock(directory)?;
    let path = directory.join(FILE);
    if !path.try_exists().map_err(attempt("look for", &path))? {
        complete(directory, format, |unfinished| {
            fs::rename(unfinished, &path)
        })?;
    }
    let file = open(&path, false).map_err(attempt("open", &path))?;
    let disk = FileDisk {
        file,
        directory: directory.into(),
        _lock: Some(lock),
    };
    match disk.size() {
        Ok(0) => Err(super::refused(&path, Fault::Damaged("it is empty".into()))),
        Ok(_) => Ok(disk),
        Err(error) => Err(attempt("open", &path)(error)),
    }
}

pub fn lock(directory: &Path) -> Result<File, Error> {
    let path = directory.join(LOCK);
    let failed = |attempt: &'static str| {
        let path = path.clone();
        move |source: io::Error| Error::Open {
            attempt,
            path,
            source: Arc::new(source),
        }
    };
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path);
    let mut file = opened.map_err(failed("open"))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::Error(error)) => return Err(failed("lock")(error)),
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Who holds it is only for the message.
            let _ = file.read_to_string(&mut holder);
            return Err(Error::InUse {
                path: directory.into(),
                pid: holder.trim().parse().ok(),
            });
        }
    }
    // On a full disk nobody can be told who we are; the lock holds all the same.
    if let Err(error) = file
        .set_len(0)
        .and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()))
    {
        tracing::debug!(path = %path.display(), %error, "process id not written");
    }
    Ok(file)
}

impl Disk for FileDisk {
    fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(into, offset)
    }

    fn write(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        self.file.write_all_at(from, offset)
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.file.set_len(size)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn room(&self) -> io::Result<()> {
        let path = self.directory.join(PROBE);
        // Synced, because some file systems look for the space only then.
        let written = File::create(&path).and_then(|mut file| {
            file.write_all(&vec![0x5a; ROOM_BYTES])?;
            file.sync_data()
        });
        fs::remove_file(&path).and(written)
    }
}

/// A disk in memory, by itself or as a layer that keeps writes from the disk below it.
#[derive(Debug, Default)]
pub struct MemoryDisk {
    below: Option<Arc<dyn Disk>>,
    pages: RwLock<Pages>,
}

const PAGE: usize = 4096;

#[derive(Default)]
struct Pages {
    written: BTreeMap<u64, Box<[u8; PAGE]>>,
    size: u64,
    /// How much of the disk below still shows.
    shown: u64,
}

impl MemoryDisk {
    pub fn over(below: Arc<dyn Disk>) -> io::Result<MemoryDisk> {
        let size = below.size()?;
        let pages = Pages {
            size,
            shown: size,
            ..Pages::default()
        };
        Ok(MemoryDisk {
            below: Some(below),
            pages: RwLock::new(pages),
        })
    }

    fn below(&self, shown: u64, offset: u64, into: &mut [u8]) -> io::Result<()> {
        into.fill(0);
        let length = shown.saturating_sub(offset).min(into.len() as u64) as usize;
        match &self.below {
            Some(disk) if length > 0 => disk.read(offset, &mut into[..length]),
            _ => Ok(()),
        }
    }

    /// Where the bytes from `offset` lie: page, start in it, length.
    fn parts(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, usize)> {
        let end = offset + length as u64;
        let mut at = offset;
        std::iter::from_fn(move || {
            let (page, start) = (at / PAGE as u64, (at % PAGE as u64) as usize);
            let length = (PAGE - start).min((end - at) as usize);
            at += length as u64;
            (length > 0).then_some((page, start, length))
        })
    }
}

impl Disk for MemoryDisk {
    fn size(&self) -> io::Result<u64> {
        Ok(self
            .pages
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .size)
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let pages = self.pages.read().unwrap_or_else(PoisonError::into_inner);
        if offset + into.len() as u64 > pages.size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut rest = into;
        for (page, start, length) in Self::parts(offset, rest.len()) {
            let (part, after) = rest.split_at_mut(length);
            match pages.written.get(&page) {
                Some(bytes) => part.copy_from_slice(&bytes[start..start + length]),
                None => self.below(pages.shown, page * PAGE as u64 + start as u64, part)?,
            }
            rest = after;
        }
        Ok(())
    }

    fn write(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        let mut pages = self.pages.write().unwrap_or_else(PoisonError::into_inner);
        pages.size = pages.size.max(offset + from.len() as u64);
        let mut rest = from;
        for (page, start, length) in Self::parts(offset, from.len()) {
            let (part, after) = rest.split_at(length);
            if !pages.written.contains_key(&page) {
                let mut bytes = Box::new([0; PAGE]);
                self.below(pages.shown, page * PAGE as u64, &mut bytes[..])?;
                pages.written.insert(page, bytes);
            }
            if let Some(bytes) = pages.written.get_mut(&page) {
                bytes[start..start + length].copy_from_slice(part);
            }
            rest = after;
        }
        Ok(())
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        let mut pages = self.pages.write().unwrap_or_else(PoisonError::into_inner);
        if size < pages.size {
            pages.shown = pages.shown.min(size);
            let first_gone = size.div_ceil(PAGE as u64);
            pages.written.split_off(&first_gone);
            let start = (size % PAGE as u64) as usize;
            if let Some(bytes) = pages.written.get_mut(&(size / PAGE as u64)) {
                bytes[start..].fill(0);
            }
        }
        pages.size = size;
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn room(&self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pages")
            .field("size", &self.size)
            .field("written", &self.written.len())
            .finish()
    }
}
