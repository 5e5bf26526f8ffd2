//! Tokens for the next page.

use crate::board::kind::{PAGE_MAX, PlayerId};
use crate::board::order::Order;
use crate::board::snapshot::Version;

/// What a token says: 34 bytes in hexadecimal, the last eight a hash over the others, the board and, if it tells what
/// somebody saw of herself, the viewer. That is no signature: it turns garbage and tokens of another board into a clear
/// error, and whoever forges one reads rows that he may read anyway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    pub version: Version,
    /// Of the version's content: another process may have given the same number to another picture.
    pub tag: u32,
    pub offset: u32,
    pub limit: u16,
    /// The pending order that the viewer saw on her first page.
    pub seen: Option<Order>,
}

const CURSOR_BYTES: usize = 34;
const CURSOR_SEED: u64 = 0x7068_616C_616E_7831;

/// Why a text is no paging token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadToken {
    /// Another length, or not hexadecimal.
    #[error("not a token of {} characters", CURSOR_BYTES * 2)]
    Form,
    /// Made by another board, for another viewer, or changed.
    #[error("not a token of this board and this viewer")]
    Check,
}

impl Cursor {
    pub fn text(&self, board: &str, viewer: Option<&PlayerId>) -> String {
        let mut bytes = Vec::with_capacity(CURSOR_BYTES);
        bytes.extend(self.version.bits().to_be_bytes());
        bytes.extend(self.tag.to_be_bytes());
        bytes.extend(self.offset.to_be_bytes());
        bytes.extend(self.limit.to_be_bytes());
        bytes.extend(self.seen.map_or(u64::MAX, Order::bits).to_be_bytes());
        let viewer = viewer.filter(|_| self.seen.is_some());
        bytes.extend(check(&bytes, board, viewer).to_be_bytes());
        let digit = |nibble: u8| char::from(b"0123456789abcdef"[usize::from(nibble)]);
        let pairs = bytes
            .iter()
            .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]);
        pairs.collect()
    }

    pub fn parse(text: &str, board: &str, viewer: Option<&PlayerId>) -> Result<Self, BadToken> {
        if text.len() != CURSOR_BYTES * 2 || !text.is_ascii() {
            return Err(BadToken::Form);
        }
        let mut bytes = [0; CURSOR_BYTES];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let nibble = |digit: u8| char::from(digit).to_digit(16).ok_or(BadToken::Form);
            *byte = (nibble(pair[0])? << 4 | nibble(pair[1])?) as u8;
        }
        let (said, hash) = bytes.split_at(CURSOR_BYTES - 8);
        let word = |at: usize, len: usize| {
            said[at..at + len]
                .iter()
                .fold(0_u64, |word, &byte| word << 8 | u64::from(byte))
        };
        let cursor = Self {
            version: Version::from_bits(word(0, 8)),
            tag: word(8, 4) as u32,
            offset: word(12, 4) as u32,
            limit: word(16, 2) as u16,
            seen: Order::from_bits(word(18, 8)),
        };
        let viewer = viewer.filter(|_| cursor.seen.is_some());
        // Only a forged one can say more rows than a page has.
        let rows = 1..=PAGE_MAX as u16;
        if check(said, board, viewer).to_be_bytes() != hash || !rows.contains(&cursor.limit) {
            return Err(BadToken::Check);
        }
        Ok(cursor)
    }
}

fn check(bytes: &[u8], board: &str, viewer: Option<&PlayerId>) -> u64 {
    let mut hasher = xxhash_rust::xxh3::Xxh3::with_seed(CURSOR_SEED);
    hasher.update(bytes);
    hasher.update(board.as_bytes());
    if let Some(viewer) = viewer {
        hasher.update(b"\n");
        hasher.update(viewer.as_str().as_bytes());
    }
    hasher.digest()
}
