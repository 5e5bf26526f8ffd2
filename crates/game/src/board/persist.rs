//! A snapshot as bytes: on disk, so that a process that starts while the store is away has something to answer; or from
//! replica to replica, where [`Board::publish`](super::Board::publish) lets the highest version win. Foreign bytes: torn,
//! changed, too long or of another board, they give an error with a reason, never a panic and never half a board.
//!
//! `PHXBOARD`, format 1, length of the body (u32), XXH3-64 of the body, body; whole numbers little-endian.

use super::kind::{BoardSpec, NAME_BYTES_MAX, PLAYER_BYTES_MAX, TOP_MAX};
use super::order::{Law, Order};
use super::sketch::{PIVOTS_MAX, Pivot, Sketch};
use super::snapshot::{BuildError, Builder, Snapshot, Version};
use super::{Board, PublishError};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;

const MAGIC: &[u8; 8] = b"PHXBOARD";
const FORMAT: u8 = 1;
const HEADER_BYTES: usize = 8 + 1 + 4 + 8;
/// More than any snapshot of 1 MiB can come to (8 bytes more per entry than in memory, and the pivots).
pub const FILE_BYTES_MAX: usize = 2 << 20;

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("board file can't be read")]
    Io(#[from] io::Error),
    #[error("board file of {0} bytes (at most {FILE_BYTES_MAX})")]
    TooLong(u64),
    #[error("not a board file")]
    NotABoard,
    #[error("board file of format {0}, this is format {FORMAT}")]
    Format(u8),
    #[error("torn board file: {said} bytes were written, {found} are there")]
    Torn { said: usize, found: usize },
    #[error("damaged board file: its checksum differs")]
    Checksum,
    #[error("board file with a {0} that can't be")]
    Content(&'static str),
    #[error("board file of another board, or of another rule of ranking")]
    Foreign,
    #[error("board file that makes no board")]
    Build(#[from] BuildError),
}

/// All of a snapshot. Bounded by [`FILE_BYTES_MAX`].
pub fn encode(snapshot: &Snapshot) -> Vec<u8> {
    let mut body = Vec::with_capacity(snapshot.bytes() + snapshot.len() * 8);
    for word in [
        snapshot.law(),
        snapshot.version().bits(),
        snapshot.as_of_ms(),
        snapshot.confirmed_ms(),
        snapshot.total(),
    ] {
        body.extend(word.to_le_bytes());
    }
    body.push(snapshot.is_final().into());
    text(&mut body, snapshot.board());
    body.extend((snapshot.len() as u32).to_le_bytes());
    for entry in snapshot.entries() {
        body.extend(entry.order.bits().to_le_bytes());
        text(&mut body, entry.player);
    }
    let sketch = snapshot.sketch();
    body.extend(sketch.as_of_ms().to_le_bytes());
    body.extend((sketch.pivots().len() as u32).to_le_bytes());
    for pivot in sketch.pivots() {
        body.extend(pivot.place.to_le_bytes());
        body.extend(pivot.order.bits().to_le_bytes());
    }

    let mut out = Vec::with_capacity(HEADER_BYTES + body.len());
    out.extend(MAGIC);
    out.push(FORMAT);
    out.extend((body.len() as u32).to_le_bytes());
    out.extend(xxhash_rust::xxh3::xxh3_64(&body).to_le_bytes());
    out.extend(body);
    out
}

/// Length in one byte: names and players have at most 64.
fn text(out: &mut Vec<u8>, text: &str) {
    out.push(text.len() as u8);
    out.extend(text.as_bytes());
}

/// Under a specification with less room the snapshot keeps fewer places. Times after `now_ms` (another machine's clock)
/// count as now.
pub fn decode(
    bytes: &[u8],
    spec: &BoardSpec,
    law: &Law,
    now_ms: u64,
) -> Result<Snapshot, LoadError> {
    let mut reader = Reader(checked(bytes)?);
    let (made_by, version) = (reader.word()?, Version::from_bits(reader.word()?));
    let (as_of_ms, confirmed_ms, total) = (reader.word()?, reader.word()?, reader.word()?);
    let last = reader.byte()? != 0;
    if made_by != law.fingerprint() || reader.text(NAME_BYTES_MAX)? != spec.name {
        return Err(LoadError::Foreign);
    }
    let mut builder = Builder::new(spec, law, version, as_of_ms.min(now_ms));
    for _ in 0..reader.count("number of entries", TOP_MAX)? {
        let order = reader.order()?;
        builder.push(reader.text(PLAYER_BYTES_MAX)?, order)?;
    }
    let sketch_as_of_ms = reader.word()?;
    let mut pivots = Vec::new();
    for _ in 0..reader.count("number of pivots", PIVOTS_MAX)? {
        pivots.push(Pivot {
            place: reader.word()?,
            order: reader.order()?,
        });
    }
    if !reader.0.is_empty() {
        return Err(LoadError::Content("tail"));
    }
    let sketch = Sketch::new(pivots, sketch_as_of_ms.min(now_ms));
    let snapshot = builder.total(total).sketch(sketch).last(last).build()?;
    snapshot.confirm(confirmed_ms.min(now_ms));
    Ok(snapshot)
}

/// The body, if it is all there and unchanged.
fn checked(bytes: &[u8]) -> Result<&[u8], LoadError> {
    if bytes.len() > FILE_BYTES_MAX {
        return Err(LoadError::TooLong(bytes.len() as u64));
    }
    let mut reader = Reader(bytes);
    if reader.take(MAGIC.len()).ok() != Some(MAGIC) {
        return Err(LoadError::NotABoard);
    }
    let torn = |_| LoadError::Torn {
        said: HEADER_BYTES,
        found: bytes.len(),
    };
    let format = reader.byte().map_err(torn)?;
    if format != FORMAT {
        return Err(LoadError::Format(format));
    }
    let said = reader.half().map_err(torn)? as usize;
    let hash = reader.word().map_err(torn)?;
    let body = reader.0;
    if body.len() != said {
        let said = said.saturating_add(HEADER_BYTES);
        return Err(LoadError::Torn {
            said,
            found: bytes.len(),
        });
    }
    if xxhash_rust::xxh3::xxh3_64(body) != hash {
        return Err(LoadError::Checksum);
    }
    Ok(body)
}

/// Written beside `path`, synced, renamed over it, and the folder synced: after a crash there is the old file or the new
/// one. Blocks; one writer per path.
pub fn save(path: &Path, snapshot: &Snapshot) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".tmp");
    let mut file = File::create(&beside)?;
    file.write_all(&encode(snapshot))?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// `None`: there is no such file. Blocks.
pub fn load(
    path: &Path,
    spec: &BoardSpec,
    law: &Law,
    now_ms: u64,
) -> Result<Option<Snapshot>, LoadError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX as u64 + 1)
        .read_to_end(&mut bytes)?;
    decode(&bytes, spec, law, now_ms).map(Some)
}

impl Board {
    /// Makes what [`save`] wrote the newest version, unless a newer one is there: at a cold start, before the first
    /// refresh. `None`: no file, or nothing newer. After an error the board is as it was.
    pub fn restore(&self, path: &Path, now_ms: u64) -> Result<Option<Arc<Snapshot>>, LoadError> {
        let Some(snapshot) = load(path, self.spec(), self.law(), now_ms)? else {
            return Ok(None);
        };
        match self.publish(snapshot) {
            Ok(snapshot) => Ok(Some(snapshot)),
            Err(PublishError::Foreign) => Err(LoadError::Foreign),
            Err(PublishError::Superseded { .. } | PublishError::Final(_)) => Ok(None),
        }
    }
}

/// What is left to read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], LoadError> {
        let (taken, rest) = self
            .0
            .split_at_checked(len)
            .ok_or(LoadError::Content("end"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, LoadError> {
        Ok(self.take(1)?[0])
    }

    fn half(&mut self) -> Result<u32, LoadError> {
        let bytes = self.take(4)?.try_into();
        bytes
            .map(u32::from_le_bytes)
            .map_err(|_| LoadError::Content("number"))
    }

    fn word(&mut self) -> Result<u64, LoadError> {
        let bytes = self.take(8)?.try_into();
        bytes
            .map(u64::from_le_bytes)
            .map_err(|_| LoadError::Content("number"))
    }

    fn order(&mut self) -> Result<Order, LoadError> {
        Order::from_bits(self.word()?).ok_or(LoadError::Content("order"))
    }

    fn count(&mut self, what: &'static str, max: usize) -> Result<usize, LoadError> {
        let count = self.half()? as usize;
        (count <= max)
            .then_some(count)
            .ok_or(LoadError::Content(what))
    }

    fn text(&mut self, max: usize) -> Result<&'a str, LoadError> {
        let len = usize::from(self.byte()?);
        if len > max {
            return Err(LoadError::Content("length of a name"));
        }
        std::str::from_utf8(self.take(len)?).map_err(|_| LoadError::Content("name"))
    }
}

#[cfg(test)]
mod tests;
