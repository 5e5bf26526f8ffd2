//! A segment on disk: `MAGIC`, the number of its first record, then records: their length (4 bytes, little endian), a
//! checksum over number and payload (8 bytes), the payload. What follows a record that doesn't check out was never
//! acknowledged, in the last segment; in any other it is damage.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::path::Path;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{OutboxError, RECORD_BYTES_MAX, Segment, failed};

pub(super) fn name(first: u64) -> String {
    format!("{first:020}.log")
}

pub(super) fn head(first: u64) -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    head[..8].copy_from_slice(MAGIC);
    head[8..].copy_from_slice(&first.to_le_bytes());
    head
}

pub(super) fn encode(out: &mut Vec<u8>, number: u64, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&xxh3_64_with_seed(payload, number).to_le_bytes());
    out.extend_from_slice(payload);
}

/// The record at the start of `bytes`, and how many bytes it takes; `None` if there is no whole, sound one.
pub(super) fn decode(bytes: &[u8], number: u64) -> Option<(&[u8], usize)> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (check, rest) = rest.split_first_chunk::<8>()?;
    let length = u32::from_le_bytes(*length) as usize;
    if length > RECORD_BYTES_MAX {
        return None;
    }
    let payload = rest.get(..length)?;
    let sound = xxh3_64_with_seed(payload, number) == u64::from_le_bytes(*check);
    sound.then_some((payload, RECORD_HEAD_BYTES + length))
}

/// All segments of a directory, in order; the last without its torn end.
pub(super) fn scan(directory: &Path) -> Result<VecDeque<Segment>, OutboxError> {
    let mut firsts = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed("list", directory))? {
        let entry = entry.map_err(failed("list", directory))?;
        let name = entry.file_name();
        let Some(first) = name.to_str().and_then(|name| name.strip_suffix(".log")) else {
            continue;
        };
        firsts.extend(first.parse::<u64>().ok().filter(|first| *first > 0));
    }
    firsts.sort_unstable();
    let mut segments: VecDeque<Segment> = VecDeque::with_capacity(firsts.len());
    for (at, &first) in firsts.iter().enumerate() {
        let path = directory.join(name(first));
        if segments.back().is_some_and(|before| before.end() > first) {
            return Err(OutboxError::Damaged(path));
        }
        if segments.back().is_some_and(|before| before.end() < first) {
            return Err(OutboxError::Gap(path));
        }
        let segment = measure(&path, first, at + 1 == firsts.len())?;
        segments.extend(segment);
    }
    Ok(segments)
}

/// `None` if not even its head was written, which the next segment of that name will be.
fn measure(path: &Path, first: u64, last: bool) -> Result<Option<Segment>, OutboxError> {
    let bytes = fs::read(path).map_err(failed("read", path))?;
    let Some(mut rest) = bytes.strip_prefix(&head(first)) else {
        if !last || bytes.len() > HEAD_BYTES {
            return Err(OutboxError::Damaged(path.to_owned()));
        }
        fs::remove_file(path).map_err(failed("remove", path))?;
        return Ok(None);
    };
    let mut records = 0;
    while let Some((_, taken)) = decode(rest, first + records) {
        rest = &rest[taken..];
        records += 1;
    }
    let sound = (bytes.len() - rest.len()) as u64;
    if !rest.is_empty() {
        if !last {
            return Err(OutboxError::Damaged(path.to_owned()));
        }
        tracing::warn!(segment = %path.display(), bytes = rest.len(), "cut off what was being written at the end");
        let file = File::options()
            .write(true)
            .open(path)
            .map_err(failed("open", path))?;
        file.set_len(sound).map_err(failed("cut", path))?;
        file.sync_all().map_err(failed("sync", path))?;
    }
    Ok(Some(Segment {
        first,
        records,
        bytes: sound,
    }))
}

const MAGIC: &[u8; 8] = b"PXBOARD1";
pub(super) const HEAD_BYTES: usize = 16;
pub(super) const RECORD_HEAD_BYTES: usize = 12;
