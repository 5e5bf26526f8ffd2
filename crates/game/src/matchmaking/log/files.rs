//! The directory of a log: names, the lock, and what is found in it at the start.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use bytes::Buf;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{
    CHECKPOINT_BYTES_MAX, Checkpoint, LogError, Position, Record, Recovered, ReplicaId,
    SEGMENT_BYTES_MAX, record::MAGIC,
};

const IDENTITY: &str = "identity";
const LOCK: &str = "lock";
pub const UNFINISHED: &str = "unfinished";
const UNFINISHED_SEGMENT: &str = "unfinished-segment";
/// u32 magic, u64 seq, u64 epoch, u64 chain, u64 check.
const START_BYTES: usize = 36;
const START_MAGIC: u32 = 0x3153_5850; // "PXS1"

/// The file that is appended to.
#[derive(Debug)]
pub struct Segment {
    pub generation: u64,
    pub file: File,
    pub bytes: u64,
}

impl Segment {
    pub fn make(
        directory: &Path,
        generation: u64,
        position: &Position,
    ) -> Result<Segment, LogError> {
        let path = segment_path(directory, generation);
        let unfinished = path.with_extension(UNFINISHED_SEGMENT);
        let opened = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&unfinished);
        let mut file = opened.map_err(io("make", &unfinished))?;
        let written = file
            .write_all(&start(position))
            .and_then(|()| file.sync_data());
        written.map_err(io("write", &unfinished))?;
        fs::rename(&unfinished, &path).map_err(io("name", &path))?;
        sync_directory(directory)?;
        Ok(Segment {
            generation,
            file,
            bytes: START_BYTES as u64,
        })
    }
}

fn start(position: &Position) -> [u8; START_BYTES] {
    let mut start = [0; START_BYTES];
    start[..4].copy_from_slice(&START_MAGIC.to_le_bytes());
    start[4..12].copy_from_slice(&position.seq.to_le_bytes());
    start[12..20].copy_from_slice(&position.epoch.to_le_bytes());
    start[20..28].copy_from_slice(&position.chain.to_le_bytes());
    let check = xxh3_64_with_seed(&start[..28], u64::from(START_MAGIC));
    start[28..].copy_from_slice(&check.to_le_bytes());
    start
}

fn parse_start(bytes: &[u8]) -> Option<Position> {
    let whole = bytes.get(..START_BYTES)?;
    let mut fields = whole;
    let magic = fields.get_u32_le();
    let position = Position {
        seq: fields.get_u64_le(),
        epoch: fields.get_u64_le(),
        chain: fields.get_u64_le(),
    };
    (magic == START_MAGIC && start(&position) == whole).then_some(position)
}

pub fn segment_path(directory: &Path, generation: u64) -> PathBuf {
    directory.join(format!("{generation:016x}.segment"))
}

pub fn checkpoint_path(directory: &Path, generation: u64) -> PathBuf {
    directory.join(format!("{generation:016x}.checkpoint"))
}

pub fn io(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LogError + use<> {
    let path = path.to_owned();
    move |source| LogError::Io {
        attempt,
        path,
        source,
    }
}

pub fn sync_directory(directory: &Path) -> Result<(), LogError> {
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(io("sync the directory", directory))
}

/// With the directories above it, whose names are safe, too, when this returns.
pub fn make(directory: &Path) -> Result<(), LogError> {
    let missing = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
    let missing: Vec<&Path> = directory.ancestors().take_while(missing).collect();
    let made = DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory);
    made.map_err(io("make the directory", directory))?;
    for path in missing {
        let above = path.parent().filter(|path| !path.as_os_str().is_empty());
        sync_directory(above.unwrap_or(Path::new(".")))?;
    }
    Ok(())
}

/// A file that one process has at a time. To close it is not enough to let it go: a child that was forked at that moment
/// has it open, too, until it runs its program.
#[derive(Debug)]
pub struct Lock(pub File);

impl Lock {
    /// `None` while somebody has it.
    pub fn try_new(path: &Path) -> io::Result<Option<Lock>> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

pub fn lock(directory: &Path) -> Result<Lock, LogError> {
    let path = directory.join(LOCK);
    let lock = Lock::try_new(&path).map_err(io("lock", &path))?;
    lock.ok_or_else(|| LogError::InUse {
        path: directory.into(),
    })
}

/// Reads who this directory is, or decides it.
pub fn identity(directory: &Path) -> Result<ReplicaId, LogError> {
    let path = directory.join(IDENTITY);
    match fs::read_to_string(&path) {
        Ok(text) => {
            let parsed = u64::from_str_radix(text.trim(), 16).ok();
            let id = parsed.filter(|&id| id != 0).map(ReplicaId);
            id.ok_or_else(|| damaged(&path, "it holds no identity"))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if !generations(directory, "segment")?.is_empty() {
                return Err(damaged(&path, "it is missing, and segments are there"));
            }
            let id = ReplicaId(fastrand::u64(1..));
            let unfinished = path.with_extension(UNFINISHED);
            let written = File::create(&unfinished).and_then(|mut file| {
                file.write_all(format!("{:016x}\n", id.0).as_bytes())?;
                file.sync_data()
            });
            written.map_err(io("write", &unfinished))?;
            fs::rename(&unfinished, &path).map_err(io("name", &path))?;
            sync_directory(directory)?;
            Ok(id)
        }
        Err(source) => Err(io("read", &path)(source)),
    }
}

type PathOf = fn(&Path, u64) -> PathBuf;

/// Removes the files of generations before `generation`.
pub fn remove_before(directory: &Path, generation: u64) -> Result<(), LogError> {
    let kinds: [(&str, PathOf); 2] = [("segment", segment_path), ("checkpoint", checkpoint_path)];
    for (kind, path) in kinds {
        for old in generations(directory, kind)? {
            if old < generation {
                let path = path(directory, old);
                fs::remove_file(&path).map_err(io("remove", &path))?;
            }
        }
    }
    Ok(())
}

/// Removes what a crash or a full disk left half written: its names are not used again.
fn remove_unfinished(directory: &Path) -> Result<(), LogError> {
    for entry in fs::read_dir(directory).map_err(io("list", directory))? {
        let path = entry.map_err(io("list", directory))?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if matches!(extension, Some(UNFINISHED | UNFINISHED_SEGMENT)) {
            fs::remove_file(&path).map_err(io("remove", &path))?;
        }
    }
    Ok(())
}

/// Ascending.
fn generations(directory: &Path, extension: &str) -> Result<Vec<u64>, LogError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(io("list", directory))? {
        let path = entry.map_err(io("list", directory))?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        if path.extension().is_some_and(|found| found == extension)
            && let Some(generation) = stem.and_then(|stem| u64::from_str_radix(stem, 16).ok())
        {
            found.push(generation);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Reads everything, cuts a torn end, and opens the newest segment for appending.
pub fn recover(directory: &Path) -> Result<(Recovered, Segment, Position), LogError> {
    remove_unfinished(directory)?;
    let newest = generations(directory, "checkpoint")?.last().copied();
    let checkpoint = newest.map(|generation| {
        let path = checkpoint_path(directory, generation);
        let bytes = read(&path, CHECKPOINT_BYTES_MAX as u64 + 1024)?;
        Checkpoint::parse(&bytes).ok_or_else(|| damaged(&path, "the checkpoint is not whole"))
    });
    let checkpoint = checkpoint.transpose()?;
    let mut recovered = Recovered {
        checkpoint,
        records: Vec::new(),
        cut_bytes: 0,
    };
    let base = newest.unwrap_or(1);
    let mut position = recovered
        .checkpoint
        .as_ref()
        .map_or_else(Position::default, |checkpoint| checkpoint.position);
    let all = generations(directory, "segment")?;
    let segments: Vec<u64> = all.iter().copied().filter(|&found| found >= base).collect();
    if segments.is_empty() {
        // An installed checkpoint whose segment was not begun yet, or nothing at all.
        if newest.is_none() && !all.is_empty() {
            return Err(damaged(
                directory,
                "segments are there, their checkpoint is missing",
            ));
        }
        let segment = Segment::make(directory, base, &position)?;
        remove_before(directory, base)?;
        return Ok((recovered, segment, position));
    }
    let last = segments.len() - 1;
    let mut open = None;
    for (at, &generation) in segments.iter().enumerate() {
        let path = segment_path(directory, generation);
        if generation != base + at as u64 {
            return Err(damaged(&path, "a segment before it is missing"));
        }
        let bytes = read(&path, SEGMENT_BYTES_MAX)?;
        if parse_start(&bytes) != Some(position) {
            return Err(damaged(
                &path,
                "it does not begin where the one before ends",
            ));
        }
        let whole = records(&path, &bytes, &mut position, &mut recovered.records)?;
        if whole < bytes.len() {
            if at < last {
                return Err(damaged(
                    &path,
                    "its end is not whole, and a later one is there",
                ));
            }
            recovered.cut_bytes = (bytes.len() - whole) as u64;
        }
        open = Some((generation, path, whole as u64));
    }
    let Some((generation, path, bytes)) = open else {
        return Err(damaged(directory, "no segment"));
    };
    let opened = OpenOptions::new().read(true).write(true).open(&path);
    let mut file = opened.map_err(io("open", &path))?;
    let cut = file
        .set_len(bytes)
        .and_then(|()| file.sync_data())
        .and_then(|()| file.seek(SeekFrom::End(0)));
    cut.map_err(io("cut", &path))?;
    remove_before(directory, base)?;
    let segment = Segment {
        generation,
        file,
        bytes,
    };
    Ok((recovered, segment, position))
}

/// Takes whole records until the end or something else, and says where that is. Only a last record may be torn: when a
/// whole one of this log follows, what lies between was synced once.
fn records(
    path: &Path,
    bytes: &[u8],
    position: &mut Position,
    records: &mut Vec<Record>,
) -> Result<usize, LogError> {
    let mut at = START_BYTES.min(bytes.len());
    while let Ok(record) = Record::parse(&bytes[at..]) {
        if !record.follows(position) {
            return Err(damaged(
                path,
                &format!("record {} is out of order", record.first),
            ));
        }
        at += record.bytes().len();
        *position = record.position();
        records.push(record);
    }
    let rest = &bytes[at..];
    let magic = MAGIC.to_le_bytes();
    let later = rest.windows(magic.len()).enumerate().any(|(offset, word)| {
        word == magic
            && Record::parse(&rest[offset..]).is_ok_and(|record| record.first > position.seq)
    });
    if later {
        let problem = format!(
            "a record after {} is not whole, and later ones are",
            position.seq
        );
        return Err(damaged(path, &problem));
    }
    Ok(at)
}

fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>, LogError> {
    let file = File::open(path).map_err(io("open", path))?;
    let mut bytes = Vec::new();
    let read = file.take(bytes_max + 1).read_to_end(&mut bytes);
    read.map_err(io("read", path))?;
    if bytes.len() as u64 > bytes_max {
        return Err(damaged(path, "it is larger than any of ours"));
    }
    Ok(bytes)
}

fn damaged(path: &Path, problem: &str) -> LogError {
    LogError::Damaged {
        path: path.into(),
        problem: problem.into(),
    }
}
