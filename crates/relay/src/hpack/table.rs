//! The dynamic table: its entries' bytes one behind the other, the oldest first. Holds no memory before its first entry.

use std::collections::VecDeque;

use super::fields::Kind;
use crate::limits::FIELD_OVERHEAD;

#[derive(Debug)]
pub(super) struct Table {
    entries: VecDeque<Entry>,
    bytes: Vec<u8>,
    /// The place, counted from the first byte ever inserted, of the first of `bytes`.
    origin: u32,
    size: usize,
    max: usize,
    /// How many entries there were, modulo 2³².
    inserted: u32,
}

/// Name and value lie behind each other.
#[derive(Clone, Copy, Debug)]
struct Entry {
    kind: Kind,
    at: u32,
    spelled_len: u16,
    value_len: u16,
    size: u16,
}

pub(super) struct Found<'t> {
    pub(super) kind: Kind,
    /// Empty when the kind says it.
    pub(super) name: &'t [u8],
    pub(super) value: &'t [u8],
    pub(super) size: usize,
}

impl Table {
    /// `max` at most 64 KiB.
    pub(super) fn new(max: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            bytes: Vec::new(),
            origin: 0,
            size: 0,
            max: max.min(usize::from(u16::MAX)),
            inserted: 0,
        }
    }

    pub(super) fn max(&self) -> usize {
        self.max
    }

    pub(super) fn set_max(&mut self, max: usize) {
        self.max = max.min(usize::from(u16::MAX));
        self.evict(self.max);
    }

    fn evict(&mut self, size: usize) {
        while self.size > size {
            let Some(oldest) = self.entries.pop_front() else {
                self.size = 0;
                return;
            };
            self.size -= usize::from(oldest.size);
        }
    }

    /// `name` empty unless `kind` needs it spelled. One that is larger than the table empties it.
    pub(super) fn insert(&mut self, kind: Kind, name: &[u8], value: &[u8]) {
        let name_len = if kind.is_spelled() {
            name.len()
        } else {
            kind.known_len()
        };
        let size = name_len + value.len() + FIELD_OVERHEAD;
        if size > self.max {
            self.evict(0);
            return;
        }
        self.evict(self.max - size);
        self.forget_evicted();
        let at = self.origin.wrapping_add(self.bytes.len() as u32);
        let spelled = if kind.is_spelled() { name } else { b"" };
        self.bytes.extend_from_slice(spelled);
        self.bytes.extend_from_slice(value);
        self.entries.push_back(Entry {
            kind,
            at,
            spelled_len: spelled.len() as u16,
            value_len: value.len() as u16,
            size: size as u16,
        });
        self.size += size;
        self.inserted = self.inserted.wrapping_add(1);
    }

    /// Frees the front of the bytes once it is larger than the rest may be, so that moving the rest costs little.
    fn forget_evicted(&mut self) {
        let oldest = self.entries.front().map(|oldest| oldest.at);
        let dead = match oldest {
            None => self.bytes.len(),
            Some(at) => at.wrapping_sub(self.origin) as usize,
        };
        if dead > self.max || oldest.is_none() {
            self.bytes.drain(..dead.min(self.bytes.len()));
            self.origin = self.origin.wrapping_add(dead as u32);
        }
    }

    /// `place` 0 is the newest.
    #[inline]
    pub(super) fn get(&self, place: usize) -> Option<Found<'_>> {
        let last = self.entries.len().checked_sub(1)?;
        let entry = self.entries.get(last.checked_sub(place)?)?;
        let at = entry.at.wrapping_sub(self.origin) as usize;
        let (spelled, value) = (usize::from(entry.spelled_len), usize::from(entry.value_len));
        let bytes = self.bytes.get(at..at + spelled + value)?;
        let (name, value) = bytes.split_at_checked(spelled)?;
        Some(Found {
            kind: entry.kind,
            name,
            value,
            size: usize::from(entry.size),
        })
    }

    /// The number of the newest entry. Never 0 while there is one, but once in 2³².
    pub(super) fn newest(&self) -> u32 {
        self.inserted
    }

    /// The place of the entry with this number, if it is still there.
    #[inline]
    pub(super) fn place(&self, number: u32) -> Option<usize> {
        let place = self.inserted.wrapping_sub(number) as usize;
        (place < self.entries.len()).then_some(place)
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.bytes.capacity() + self.entries.capacity() * size_of::<Entry>()
    }
}
