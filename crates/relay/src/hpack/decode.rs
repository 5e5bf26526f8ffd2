//! Blocks to fields.

use super::fields::{Fields, Kind, Record};
use super::table::Table;
use super::{TABLE_BYTES, huffman, integer, statics};
use crate::limits::FIELD_OVERHEAD;

/// One direction of one connection.
#[derive(Debug)]
pub struct Decoder {
    table: Table,
}

/// How large a list may be.
#[derive(Clone, Copy, Debug)]
pub struct Most {
    /// Names, values, and 32 for each field.
    pub bytes: usize,
    pub fields: usize,
}

/// The table is out of step with the peer's: the connection must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadBlock {
    #[error("an integer that does not end, or is too large")]
    Integer,
    #[error("a string that is longer than the block")]
    Truncated,
    #[error("a Huffman code that is none")]
    Huffman,
    #[error("an index that no entry has")]
    Index,
    #[error("a change of the table's size out of place, or beyond what was offered")]
    TableSize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self {
            table: Table::new(TABLE_BYTES),
        }
    }
}

impl Decoder {
    /// Fills `fields` anew. A list over `most` is read to its end all the same, and is empty and
    /// [`Fields::is_too_large`] then.
    ///
    /// # Errors
    /// [`BadBlock`].
    pub fn decode(
        &mut self,
        block: &[u8],
        fields: &mut Fields,
        most: Most,
    ) -> Result<(), BadBlock> {
        fields.clear();
        let mut rest = block;
        let mut size_changes = 0;
        while let Some((first, after)) = rest.split_first() {
            rest = after;
            match *first {
                0x80.. => self.indexed(*first, &mut rest, fields)?,
                0x40.. => self.literal(*first, 6, true, &mut rest, fields)?,
                0x20.. => {
                    size_changes += 1;
                    let begun = fields.size > 0 || fields.too_large;
                    self.resize(*first, begun || size_changes > SIZE_CHANGES_MAX, &mut rest)?;
                    continue;
                }
                _ => self.literal(*first, 4, false, &mut rest, fields)?,
            }
            fields.check(most);
        }
        Ok(())
    }

    fn resize(&mut self, first: u8, out_of_place: bool, rest: &mut &[u8]) -> Result<(), BadBlock> {
        let size = integer::read(first, 5, rest).ok_or(BadBlock::Integer)?;
        if out_of_place || size > TABLE_BYTES {
            return Err(BadBlock::TableSize);
        }
        self.table.set_max(size);
        Ok(())
    }

    #[inline]
    fn indexed(
        &mut self,
        first: u8,
        rest: &mut &[u8],
        fields: &mut Fields,
    ) -> Result<(), BadBlock> {
        let index = integer::read(first, 7, rest).ok_or(BadBlock::Integer)?;
        if let Some(found) = statics::entry(index) {
            fields.add(found.kind, b"", found.value.as_bytes());
            fields.size += found.name_len + found.value.len() + FIELD_OVERHEAD;
            return Ok(());
        }
        let found = self.dynamic(index)?;
        fields.add(found.kind, found.name, found.value);
        fields.size += found.size;
        Ok(())
    }

    #[inline]
    fn dynamic(&self, index: usize) -> Result<super::table::Found<'_>, BadBlock> {
        let place = index.checked_sub(statics::COUNT + 1);
        let found = place.and_then(|place| self.table.get(place));
        found.ok_or(BadBlock::Index)
    }

    fn literal(
        &mut self,
        first: u8,
        bits: u32,
        insert: bool,
        rest: &mut &[u8],
        fields: &mut Fields,
    ) -> Result<(), BadBlock> {
        let index = integer::read(first, bits, rest).ok_or(BadBlock::Integer)?;
        let name_at = fields.bytes.len();
        let (kind, name_len) = if index == 0 {
            string(rest, &mut fields.bytes)?;
            let name = fields.bytes.get(name_at..).unwrap_or_default();
            let (kind, len) = (Kind::of(name), name.len());
            if !kind.is_spelled() {
                fields.bytes.truncate(name_at);
            }
            (kind, len)
        } else if let Some(found) = statics::entry(index) {
            (found.kind, found.name_len)
        } else {
            let found = self.dynamic(index)?;
            fields.bytes.extend_from_slice(found.name);
            (found.kind, found.size - found.value.len() - FIELD_OVERHEAD)
        };
        let value_at = fields.bytes.len();
        string(rest, &mut fields.bytes)?;
        let value_end = fields.bytes.len();
        let record = Record {
            kind,
            name_at: name_at as u32,
            value_at: value_at as u32,
            value_end: value_end as u32,
            never_indexed: first & 0xf0 == 0x10,
        };
        fields.size += name_len + (value_end - value_at) + FIELD_OVERHEAD;
        if insert {
            let name = fields.slice(record.name_at, record.value_at);
            let value = fields.slice(record.value_at, record.value_end);
            self.table.insert(kind, name, value);
        }
        fields.never_indexed |= record.never_indexed;
        fields.records.push(record);
        Ok(())
    }

    pub fn held_bytes(&self) -> usize {
        self.table.held_bytes()
    }
}

impl Fields {
    #[inline]
    fn add(&mut self, kind: Kind, name: &[u8], value: &[u8]) {
        let name_at = self.bytes.len() as u32;
        if !name.is_empty() {
            self.bytes.extend_from_slice(name);
        }
        let value_at = self.bytes.len() as u32;
        self.bytes.extend_from_slice(value);
        self.records.push(Record {
            kind,
            name_at,
            value_at,
            value_end: self.bytes.len() as u32,
            never_indexed: false,
        });
    }

    /// Beyond the limit nothing more is kept; each field is forgotten as soon as it is read.
    #[inline]
    fn check(&mut self, most: Most) {
        if self.too_large || self.size > most.bytes || self.records.len() > most.fields {
            self.too_large = true;
            self.records.clear();
            self.bytes.clear();
        }
    }
}

/// Appends the string at the front of `rest`.
#[inline]
fn string(rest: &mut &[u8], to: &mut Vec<u8>) -> Result<(), BadBlock> {
    let (first, after) = rest.split_first().ok_or(BadBlock::Truncated)?;
    *rest = after;
    let len = integer::read(*first, 7, rest).ok_or(BadBlock::Integer)?;
    let (text, after) = rest.split_at_checked(len).ok_or(BadBlock::Truncated)?;
    *rest = after;
    if first & 0x80 == 0 {
        to.extend_from_slice(text);
    } else if !huffman::decode(text, to) {
        return Err(BadBlock::Huffman);
    }
    Ok(())
}

/// To the smallest size since the last block, and to the final one (RFC 7541 §4.2).
const SIZE_CHANGES_MAX: u32 = 2;
