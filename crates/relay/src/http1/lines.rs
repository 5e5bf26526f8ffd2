//! Lines of a head: found in pieces without looking at a byte twice, then taken apart where they stand.

use std::cell::Cell;

use super::steps;
use crate::header::{Name, elements, names, split_field};
use crate::pool::Pool;

/// The part of a head that has come so far. Empty and without memory between heads.
#[derive(Debug, Default)]
pub(super) struct Lines {
    carry: Vec<u8>,
    /// Bytes of the line under way that are in `carry`.
    line_len: usize,
}

/// Why no head can come of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unusable {
    BareLineFeed,
    TooLarge,
}

impl Lines {
    pub(super) fn is_empty(&self) -> bool {
        self.carry.is_empty()
    }

    /// Memory held.
    pub(super) fn held_bytes(&self) -> usize {
        self.carry.capacity()
    }

    /// Takes from `input` until the empty line that ends a head of at most `max` bytes; true when all of it stands in the
    /// pool's scratch. What comes behind is left.
    pub(super) fn collect(
        &mut self,
        input: &mut &[u8],
        max: usize,
        pool: &mut Pool,
    ) -> Result<bool, Unusable> {
        let room = max.saturating_sub(self.carry.len());
        let (piece, beyond) = input.split_at_checked(room).unwrap_or((input, &[]));
        let Some(end) = self.scan(piece)? else {
            if !beyond.is_empty() {
                return Err(Unusable::TooLarge);
            }
            if self.carry.capacity() == 0 {
                self.carry = pool.buffer();
            }
            self.carry.extend_from_slice(piece);
            *input = beyond;
            return Ok(false);
        };
        let (head, rest) = input.split_at_checked(end).unwrap_or((input, &[]));
        pool.trim_scratch();
        if self.carry.is_empty() {
            pool.scratch.extend_from_slice(head);
        } else {
            self.carry.extend_from_slice(head);
            std::mem::swap(&mut self.carry, &mut pool.scratch);
            pool.put_buffer(std::mem::take(&mut self.carry));
        }
        self.line_len = 0;
        *input = rest;
        Ok(true)
    }

    /// Gives back what was collected of a head that will never be complete.
    pub(super) fn forget(&mut self, pool: &mut Pool) {
        self.line_len = 0;
        pool.put_buffer(std::mem::take(&mut self.carry));
    }

    /// Where in `piece` the head ends.
    fn scan(&mut self, piece: &[u8]) -> Result<Option<usize>, Unusable> {
        let mut rest = piece;
        let mut before = self.carry.last().copied();
        let mut line_len = self.line_len;
        while let Some(at) = find_line_feed(rest) {
            let (line, after) = rest.split_at_checked(at + 1).unwrap_or((rest, &[]));
            let last = match at.checked_sub(1) {
                Some(at) => line.get(at).copied(),
                None => before,
            };
            line_len += at;
            if last != Some(b'\r') || line_len == 0 {
                return Err(Unusable::BareLineFeed);
            }
            rest = after;
            if line_len == 1 {
                return Ok(Some(piece.len() - rest.len()));
            }
            line_len = 0;
            before = None;
        }
        self.line_len = line_len + rest.len();
        Ok(None)
    }
}

/// Eight bytes at a time.
#[inline]
fn find_line_feed(bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    let (words, tail) = bytes.as_chunks::<8>();
    for (number, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word) ^ (ONES * b'\n' as u64);
        // The lowest set bit is that of the first byte that is zero (Mycroft); higher ones may be wrong.
        let zeros = word.wrapping_sub(ONES) & !word & (ONES << 7);
        if zeros != 0 {
            let at = number * 8 + zeros.trailing_zeros() as usize / 8;
            steps::add(at + 1);
            return Some(at);
        }
    }
    let at = tail.iter().position(|byte| *byte == b'\n');
    steps::add(words.len() * 8 + at.map_or(tail.len(), |at| at + 1));
    at.map(|at| words.len() * 8 + at)
}

/// The next line of a complete head, without its end; none when there is no more.
pub(super) fn next_line<'h>(rest: &mut &'h mut [u8]) -> Option<&'h mut [u8]> {
    let at = find_line_feed(rest)?;
    let (line, after) = std::mem::take(rest).split_at_mut_checked(at + 1)?;
    *rest = after;
    line.get_mut(..at.checked_sub(1)?)
}

/// What `connection` says of the connection itself.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Words {
    pub close: bool,
    pub keep_alive: bool,
}

/// The fields of a complete head, their names put in lower case where they stand. A line that is no field comes as one
/// without name, which no constructor takes.
pub(super) struct Fields<'h> {
    rest: &'h mut [u8],
    words: &'h Cell<Words>,
}

impl<'h> Fields<'h> {
    pub(super) fn new(rest: &'h mut [u8], words: &'h Cell<Words>) -> Self {
        Self { rest, words }
    }
}

impl<'h> Iterator for Fields<'h> {
    type Item = (Option<Name<'h>>, &'h [u8]);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let line = next_line(&mut self.rest).filter(|line| !line.is_empty())?;
        let Some((name, value)) = split_field(line) else {
            return Some((None, b""));
        };
        if name == names::CONNECTION {
            let mut words = self.words.get();
            for element in elements(value) {
                words.close |= element.eq_ignore_ascii_case(b"close");
                words.keep_alive |= element.eq_ignore_ascii_case(b"keep-alive");
            }
            self.words.set(words);
        }
        Some((Some(name), value))
    }
}
