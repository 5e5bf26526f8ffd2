//! What the log is made of: a record is one batch of entries, written at once and synced at once. The same bytes go to
//! disk and to the standby. What the entries mean is not known here.
//!
//! ```text
//! u32 magic, u32 length of body, u64 epoch, u64 first, u32 count, u64 chain before, u64 check, body     little endian
//! ```
//!
//! `check` is XXH3 over everything else. The chain after a record is XXH3 of the chain before and the check: two logs
//! with the same chain at the same place are the same up to there.

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Bytes of entries in one record. A larger length is foreign.
pub const BODY_BYTES_MAX: usize = 8 << 20;
pub const HEADER_BYTES: usize = 44;
pub const MAGIC: u32 = 0x314d_5850; // "PXM1"

/// How far a history goes, and which one it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Entries so far; the first is number 1.
    pub seq: u64,
    /// Of the newest record.
    pub epoch: u64,
    /// 0 before everything.
    pub chain: u64,
}

/// A sealed batch. Cloning shares the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub epoch: u64,
    /// Number of its first entry.
    pub first: u64,
    pub count: u32,
    before: u64,
    check: u64,
    bytes: Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Torn {
    /// More bytes are needed.
    Short,
    /// No record of ours begins here.
    Foreign,
}

impl Record {
    /// Seals `count` entries that follow `after`. `body` is at most [`BODY_BYTES_MAX`] long, which the builder of batches
    /// sees to.
    pub fn seal(epoch: u64, after: &Position, count: u32, body: &[u8]) -> Record {
        let first = after.seq + 1;
        let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
        bytes.extend_from_slice(&MAGIC.to_le_bytes());
        bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&epoch.to_le_bytes());
        bytes.extend_from_slice(&first.to_le_bytes());
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.extend_from_slice(&after.chain.to_le_bytes());
        let check = checksum(&bytes, body);
        bytes.extend_from_slice(&check.to_le_bytes());
        bytes.extend_from_slice(body);
        Record {
            epoch,
            first,
            count,
            before: after.chain,
            check,
            bytes: bytes.into(),
        }
    }

    /// The record at the start of `bytes`; the rest may be anything.
    pub fn parse(bytes: &[u8]) -> Result<Record, Torn> {
        let header = bytes.get(..HEADER_BYTES).ok_or(Torn::Short)?;
        let length = u32_at(header, 4) as usize;
        let (first, count) = (u64_at(header, 16), u32_at(header, 24));
        let fits = length <= BODY_BYTES_MAX && count > 0 && first > 0;
        if u32_at(header, 0) != MAGIC || !fits || first.checked_add(u64::from(count)).is_none() {
            return Err(Torn::Foreign);
        }
        let whole = bytes.get(..HEADER_BYTES + length).ok_or(Torn::Short)?;
        let check = u64_at(header, 36);
        if checksum(&whole[..36], &whole[HEADER_BYTES..]) != check {
            return Err(Torn::Foreign);
        }
        Ok(Record {
            epoch: u64_at(header, 8),
            first,
            count,
            before: u64_at(header, 28),
            check,
            bytes: Bytes::copy_from_slice(whole),
        })
    }

    /// Number of its last entry.
    pub fn last(&self) -> u64 {
        self.first + u64::from(self.count) - 1
    }

    /// The position behind it.
    pub fn position(&self) -> Position {
        Position {
            seq: self.last(),
            epoch: self.epoch,
            chain: xxh3_64_with_seed(&self.check.to_le_bytes(), self.before),
        }
    }

    pub fn follows(&self, position: &Position) -> bool {
        self.first == position.seq + 1
            && self.before == position.chain
            && self.epoch >= position.epoch
    }

    /// The entries, one after the other.
    pub fn body(&self) -> &[u8] {
        &self.bytes[HEADER_BYTES..]
    }

    /// As it stands on disk and on the wire.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

fn checksum(header: &[u8], body: &[u8]) -> u64 {
    xxh3_64_with_seed(body, xxh3_64_with_seed(header, u64::from(MAGIC)))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    if let Some(found) = bytes.get(at..at + 4) {
        number.copy_from_slice(found);
    }
    u32::from_le_bytes(number)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    if let Some(found) = bytes.get(at..at + 8) {
        number.copy_from_slice(found);
    }
    u64::from_le_bytes(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_and_every_flipped_bit_is_seen() {
        let after = Position {
            seq: 41,
            epoch: 3,
            chain: 77,
        };
        let record = Record::seal(4, &after, 2, b"two entries");
        assert_eq!(Record::parse(record.bytes()), Ok(record.clone()));
        assert!(record.follows(&after));
        assert_eq!(record.position().seq, 43);
        for length in 0..record.bytes().len() {
            assert_eq!(
                Record::parse(&record.bytes()[..length]),
                Err(Torn::Short),
                "{length}"
            );
        }
        for bit in 0..record.bytes().len() * 8 {
            let mut bytes = record.bytes().to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Record::parse(&bytes).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn another_history_has_another_chain() {
        let start = Position::default();
        let one = Record::seal(1, &start, 1, b"a");
        let other = Record::seal(1, &start, 1, b"b");
        assert_ne!(one.position().chain, other.position().chain);
        let next = Record::seal(1, &one.position(), 1, b"c");
        assert!(next.follows(&one.position()) && !next.follows(&other.position()));
    }
}
