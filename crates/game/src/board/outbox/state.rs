//! What a log remembers of itself: who it is (written before anything is numbered, durable) and how far it has arrived
//! (written often, never synced: an older answer only makes records be offered again, and the store knows them).

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use super::{OutboxError, failed};

/// A name for one log's numbers, drawn at random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Source(pub u64);

#[derive(Debug)]
pub(super) struct State {
    directory: PathBuf,
    pub(super) source: Source,
    /// Numbers up to this one were another source's.
    pub(super) base: u64,
    pub(super) acknowledged: u64,
    /// Where the acknowledged ones are.
    pub(super) store: Option<u64>,
    /// Unix s.
    pub(super) arrived_s: u64,
    /// The highest number that was ever acknowledged.
    highest: u64,
    /// The store's epoch, and the highest number when it began.
    epoch: u64,
    before: u64,
    progress: File,
}

impl State {
    /// `last`: of the records that are there. If it isn't known whose they were, they are nobody's: sent under a new name,
    /// they would count again.
    pub(super) fn open(directory: &Path, last: u64) -> Result<Self, OutboxError> {
        let path = directory.join(SOURCE);
        let (source, base) = match fs::read(&path) {
            Ok(bytes) => parse::<2>(&bytes)
                .map(|[source, base]| (Source(source), base))
                .ok_or(OutboxError::Damaged(path))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let source = draw();
                write_source(directory, source, last)?;
                (source, last)
            }
            Err(error) => return Err(failed("read", &path)(error)),
        };
        let path = directory.join(PROGRESS);
        let progress = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(failed("open", &path))?;
        let mut bytes = [0; RECORD_BYTES];
        // A damaged or missing one says that nothing has arrived, which is safe.
        let known = progress.read_exact_at(&mut bytes, 0).is_ok();
        let known = known.then(|| parse::<7>(&bytes)).flatten();
        let known = known.filter(|[of, ..]| *of == source.0);
        let [_, acknowledged, _, arrived_s, highest, epoch, before] = known.unwrap_or_default();
        Ok(Self {
            directory: directory.to_owned(),
            source,
            base,
            acknowledged,
            store: known.map(|[_, _, store, ..]| store),
            arrived_s,
            highest,
            epoch,
            before,
            progress,
        })
    }

    pub(super) fn acknowledge(&mut self, number: u64, store: u64) {
        if number <= self.acknowledged && self.store == Some(store) {
            return;
        }
        self.acknowledged = self.acknowledged.max(number);
        self.highest = self.highest.max(number);
        self.store = Some(store);
        self.arrived_s = crate::board::now_ms() / 1000;
        self.note();
    }

    /// The highest number that arrived before `epoch`, or before the latest one that is known.
    pub(super) fn entered(&mut self, epoch: u32) -> u64 {
        let epoch = u64::from(epoch);
        if epoch > self.epoch {
            (self.epoch, self.before) = (epoch, self.highest);
            self.note();
        }
        self.before
    }

    pub(super) fn rewind(&mut self, number: u64) {
        self.acknowledged = number;
        self.note();
    }

    pub(super) fn disown(&mut self, number: u64) -> Result<(), OutboxError> {
        let source = draw();
        write_source(&self.directory, source, number)?;
        self.source = source;
        self.base = number;
        self.acknowledged = number;
        self.store = None;
        Ok(())
    }

    fn note(&self) {
        let bytes = text([
            self.source.0,
            self.acknowledged,
            self.store.unwrap_or(0),
            self.arrived_s,
            self.highest,
            self.epoch,
            self.before,
        ]);
        if let Err(error) = self.progress.write_all_at(&bytes, 0) {
            tracing::warn!(%error, "cannot note how far the outbox has arrived");
        }
    }
}

fn draw() -> Source {
    // Zero is nobody.
    Source(fastrand::u64(1..))
}

fn write_source(directory: &Path, source: Source, base: u64) -> Result<(), OutboxError> {
    let new = directory.join("source.new");
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(&text([source.0, base]))?;
        file.sync_all()?;
        fs::rename(&new, directory.join(SOURCE))?;
        File::open(directory)?.sync_all()
    };
    write().map_err(failed("write", &new))
}

/// Numbers and their checksum, little endian.
fn text<const N: usize>(numbers: [u64; N]) -> Vec<u8> {
    let mut bytes: Vec<u8> = numbers
        .iter()
        .flat_map(|number| number.to_le_bytes())
        .collect();
    let check = xxh3_64(&bytes);
    bytes.extend_from_slice(&check.to_le_bytes());
    bytes
}

fn parse<const N: usize>(bytes: &[u8]) -> Option<[u64; N]> {
    let (numbers, check) = bytes.split_at_checked(N * 8)?;
    if xxh3_64(numbers).to_le_bytes() != *check {
        return None;
    }
    let mut parsed = [0; N];
    for (number, bytes) in parsed.iter_mut().zip(numbers.chunks_exact(8)) {
        *number = u64::from_le_bytes(bytes.try_into().ok()?);
    }
    Some(parsed)
}

const SOURCE: &str = "source";
const PROGRESS: &str = "progress";
/// Of the file `progress`: seven numbers and their checksum.
const RECORD_BYTES: usize = 64;
