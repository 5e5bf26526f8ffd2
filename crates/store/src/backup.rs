//! A backup: all that a store holds without a lease, as it was at one revision, and how it stands in a file. Bytes come out
//! frame by frame, so that a large one is sent without being built; reading checks every frame before anything is believed.
//!
//! ```text
//! "phalanx backup\n", u8 format
//! frames: u8 kind, u32 length, payload, u64 xxh3-64 of all before in the frame, seeded with the frame's number
//! kind 1, first: u64 revision, u64 taken_ms, u64 entries
//! kind 2, by key: u64 created, u64 modified, u64 version, u32 length of key, key, value
//! kind 3, last: u64 entries, u64 bytes of all keys and values
//! ```
//! Numbers are big-endian. The checksums are against accidents, not against people.

use std::{io, path::Path};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::{Entry, Revision, embedded::LIMITS};

/// What a backup file begins with.
pub const MAGIC: &[u8] = b"phalanx backup\n";
pub const FORMAT: u8 = 1;
/// Beyond what a frame's entry can have.
const FRAME_BYTES_MAX: usize = LIMITS.key_bytes_max + LIMITS.value_bytes_max + 64;

/// How far the revision jumps when a backup becomes a store again. What was written after the backup is lost, but its
/// revisions were told to people and programs: none of them may ever mean something else.
pub const REVISIONS_SKIPPED: Revision = 1_000_000_000;

const HEAD: u8 = 1;
const ENTRY: u8 = 2;
const END: u8 = 3;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backup {
    pub revision: Revision,
    /// Unix milliseconds, by the clock of who took it.
    pub taken_ms: u64,
    /// Sorted by key, none with a lease.
    pub entries: Vec<Entry>,
}

#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("it is no backup of a phalanx store")]
    Foreign,
    #[error("it has format {found}, this version reads {FORMAT}")]
    Format { found: u8 },
    #[error("it is damaged: {problem}")]
    Damaged { problem: String },
    #[error("it ends too early: {found} of {expected} entries are there")]
    Short { found: u64, expected: u64 },
    #[error("it can't be read")]
    Read(#[source] io::Error),
}

impl Backup {
    /// Of what a [`list`](crate::Store::list) of everything gave. Keys under a lease are left out: whoever holds it puts them
    /// again.
    pub fn of(page: crate::Page, taken_ms: u64) -> Backup {
        let kept = page.entries.into_iter();
        Backup {
            revision: page.revision,
            taken_ms,
            entries: kept.filter(|entry| entry.lease.is_none()).collect(),
        }
    }

    /// Of all keys and values.
    pub fn bytes(&self) -> u64 {
        self.entries.iter().map(size).sum()
    }

    /// As it stands in a file, in pieces.
    pub fn encode(self) -> impl Iterator<Item = Bytes> + Send {
        let (count, bytes) = (self.entries.len() as u64, self.bytes());
        let begin = [MAGIC, &[FORMAT]].concat().into();
        let mut head = BytesMut::new();
        head.put_u64(self.revision);
        head.put_u64(self.taken_ms);
        head.put_u64(count);
        let mut end = BytesMut::new();
        end.put_u64(count);
        end.put_u64(bytes);
        let entries = self
            .entries
            .into_iter()
            .map(|entry| (ENTRY, payload(&entry)));
        let frames = std::iter::once((HEAD, head))
            .chain(entries)
            .chain(std::iter::once((END, end)));
        let frames = frames
            .enumerate()
            .map(|(number, (kind, payload))| frame(number as u64, kind, &payload));
        std::iter::once(begin).chain(frames)
    }

    /// Reads a whole backup and checks all of it; `progress` hears of each entry.
    ///
    /// # Errors
    /// [`BackupError`], which says what is wrong with it.
    pub fn read(
        from: &mut impl io::Read,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Backup, BackupError> {
        let mut begin = [0; MAGIC.len() + 1];
        let is_there = fill(from, &mut begin).map_err(BackupError::Read)?;
        if !is_there || !begin.starts_with(MAGIC) {
            return Err(BackupError::Foreign);
        }
        let found = begin[MAGIC.len()];
        if found != FORMAT {
            return Err(BackupError::Format { found });
        }
        let Some((HEAD, mut head)) = next(from, 0)? else {
            return Err(damaged("its first frame is missing"));
        };
        let number = |payload: &mut Bytes| {
            payload
                .try_get_u64()
                .map_err(|_| damaged("a frame is too short"))
        };
        let mut backup = Backup {
            revision: number(&mut head)?,
            taken_ms: number(&mut head)?,
            entries: Vec::new(),
        };
        let expected = number(&mut head)?;
        for frame in 1.. {
            let found = backup.entries.len() as u64;
            match next(from, frame)? {
                Some((ENTRY, payload)) => {
                    let entry = decode(payload)
                        .ok_or_else(|| damaged(format!("entry {found} makes no sense")))?;
                    if backup
                        .entries
                        .last()
                        .is_some_and(|last| last.key >= entry.key)
                    {
                        return Err(damaged(format!("entry {found} is out of order")));
                    }
                    if entry.modified > backup.revision || entry.created > entry.modified {
                        return Err(damaged(format!("entry {found} is from the future")));
                    }
                    backup.entries.push(entry);
                    progress(found + 1, expected);
                }
                Some((END, mut payload)) => {
                    let (count, bytes) = (number(&mut payload)?, number(&mut payload)?);
                    if (count, count, bytes) != (found, expected, backup.bytes()) {
                        return Err(damaged("it holds something else than it says"));
                    }
                    break;
                }
                Some((kind, _)) => {
                    return Err(damaged(format!("a frame of the unknown kind {kind}")));
                }
                None => return Err(BackupError::Short { found, expected }),
            }
        }
        match fill(from, &mut [0]) {
            Ok(false) => Ok(backup),
            Ok(true) => Err(damaged("something follows its end")),
            Err(error) => Err(BackupError::Read(error)),
        }
    }

    /// # Errors
    /// As [`Backup::read`].
    pub fn open(path: &Path, progress: impl FnMut(u64, u64)) -> Result<Backup, BackupError> {
        let file = std::fs::File::open(path).map_err(BackupError::Read)?;
        Backup::read(&mut io::BufReader::with_capacity(1 << 20, file), progress)
    }
}

fn size(entry: &Entry) -> u64 {
    (entry.key.len() + entry.value.len()) as u64
}

fn payload(entry: &Entry) -> BytesMut {
    let mut payload = BytesMut::with_capacity(28 + entry.key.len() + entry.value.len());
    payload.put_u64(entry.created);
    payload.put_u64(entry.modified);
    payload.put_u64(entry.version);
    payload.put_u32(entry.key.len() as u32);
    payload.put_slice(entry.key.as_bytes());
    payload.put_slice(&entry.value);
    payload
}

fn decode(mut payload: Bytes) -> Option<Entry> {
    let created = payload.try_get_u64().ok()?;
    let modified = payload.try_get_u64().ok()?;
    let version = payload.try_get_u64().ok()?;
    let length = payload.try_get_u32().ok()? as usize;
    if length == 0 || length > LIMITS.key_bytes_max || length > payload.len() {
        return None;
    }
    let key = String::from_utf8(payload.split_to(length).to_vec()).ok()?;
    let fits = payload.len() <= LIMITS.value_bytes_max && created > 0 && version > 0;
    fits.then_some(Entry {
        key,
        value: payload,
        created,
        modified,
        version,
        lease: None,
    })
}

fn frame(number: u64, kind: u8, payload: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(13 + payload.len());
    frame.put_u8(kind);
    // An entry's limits are far below this.
    frame.put_u32(payload.len() as u32);
    frame.put_slice(payload);
    let sum = xxh3_64_with_seed(&frame, number);
    frame.put_u64(sum);
    frame.freeze()
}

/// None: the file ends here.
fn next(from: &mut impl io::Read, number: u64) -> Result<Option<(u8, Bytes)>, BackupError> {
    let mut start = [0; 5];
    if !fill(from, &mut start).map_err(BackupError::Read)? {
        return Ok(None);
    }
    let [kind, length @ ..] = start;
    let length = u32::from_be_bytes(length) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(damaged(format!("frame {number} is longer than any can be")));
    }
    let mut whole = vec![0; start.len() + length + 8];
    whole[..start.len()].copy_from_slice(&start);
    if !fill(from, &mut whole[start.len()..]).map_err(BackupError::Read)? {
        return Ok(None);
    }
    let mut payload = Bytes::from(whole);
    let sum = payload.split_off(start.len() + length);
    if sum != xxh3_64_with_seed(&payload, number).to_be_bytes()[..] {
        return Err(damaged(format!("the checksum of frame {number} is wrong")));
    }
    payload.advance(start.len());
    Ok(Some((kind, payload)))
}

/// Whether there was enough; a part of it counts as nothing.
fn fill(from: &mut impl io::Read, into: &mut [u8]) -> io::Result<bool> {
    match from.read_exact(into) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn damaged(problem: impl Into<String>) -> BackupError {
    BackupError::Damaged {
        problem: problem.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backup() -> Backup {
        let entry = |key: &str, value: &'static [u8], modified| Entry {
            key: key.into(),
            value: Bytes::from_static(value),
            created: 1,
            modified,
            version: 2,
            lease: None,
        };
        Backup {
            revision: 9,
            taken_ms: 77,
            entries: vec![
                entry("a", b"1", 3),
                entry("größe", b"", 9),
                entry("z", b"22", 4),
            ],
        }
    }

    fn file() -> Vec<u8> {
        backup().encode().flatten().collect()
    }

    fn read(mut bytes: &[u8]) -> Result<Backup, BackupError> {
        Backup::read(&mut bytes, |_, _| {})
    }

    #[test]
    fn a_backup_reads_back() {
        assert_eq!(read(&file()).unwrap(), backup());
        let none = Backup::default();
        let bytes: Vec<u8> = none.clone().encode().flatten().collect();
        assert_eq!(read(&bytes).unwrap(), none);
    }

    #[test]
    fn every_cut_every_flipped_bit_and_anything_behind_it_is_noticed() {
        let good = file();
        for length in 0..good.len() {
            assert!(read(&good[..length]).is_err(), "cut to {length}");
        }
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&bad).is_err(), "bit {bit}");
        }
        let longer = [&good[..], b"x"].concat();
        assert!(read(&longer).is_err());
    }

    #[test]
    fn frames_that_changed_places_are_noticed() {
        let mut pieces: Vec<Bytes> = backup().encode().collect();
        pieces.swap(2, 4);
        let bytes: Vec<u8> = pieces.into_iter().flatten().collect();
        assert!(matches!(read(&bytes), Err(BackupError::Damaged { .. })));
    }

    #[test]
    fn what_is_no_backup_or_a_later_one_is_said() {
        assert!(matches!(
            read(b"PK\x03\x04 some other file"),
            Err(BackupError::Foreign)
        ));
        let mut later = file();
        later[MAGIC.len()] = 9;
        assert!(matches!(
            read(&later),
            Err(BackupError::Format { found: 9 })
        ));
    }
}
