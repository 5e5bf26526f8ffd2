//! Colours, and which of them are under way on a core: a row for each, that is another's when nobody has had it for long.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use phalanx_relay::{HeaderList, Value, names};

use super::span::Span;

/// What `x-env` and `x-canary-id` say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Colour(Text);

/// The lengths (one more, 0: there is none), then both values.
pub(super) type Text = [u64; WORDS];

/// What the headers of a request say of its colour.
pub(super) enum Read {
    Baseline,
    Of(Text),
    /// Said twice, or too long.
    Unreadable,
}

impl Read {
    pub(super) fn is_coloured(&self) -> bool {
        !matches!(self, Self::Baseline)
    }
}

impl Colour {
    /// Whether a request says its colour itself.
    pub fn is_said(headers: &HeaderList) -> bool {
        headers.contains(names::X_ENV) || headers.contains(names::X_CANARY_ID)
    }

    #[inline]
    pub(super) fn of(headers: &HeaderList) -> Read {
        match Self::is_said(headers) {
            false => Read::Baseline,
            true => Self::read(headers),
        }
    }

    fn read(headers: &HeaderList) -> Read {
        let mut text = [0; WORDS];
        let mut bytes = [0; TEXT_MAX];
        let mut used = 0;
        for (index, name) in NAMES.into_iter().enumerate() {
            let mut values = headers.get_all(name);
            let Some(value) = values.next() else { continue };
            let place = bytes.get_mut(used..used + value.len());
            let (None, Some(place)) = (values.next(), place) else {
                return Read::Unreadable;
            };
            place.copy_from_slice(value);
            used += value.len();
            if let Some(lengths) = text.first_mut() {
                *lengths |= (value.len() as u64 + 1) << (8 * index);
            }
        }
        for (word, bytes) in text.iter_mut().skip(1).zip(bytes.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        Read::Of(text)
    }

    /// Gives a request this colour.
    pub fn give(&self, headers: &mut HeaderList) {
        let lengths = self.0.first().copied().unwrap_or_default();
        let mut bytes = [0; TEXT_MAX];
        for (word, place) in self.0.iter().skip(1).zip(bytes.as_chunks_mut().0) {
            *place = word.to_le_bytes();
        }
        let mut from = 0;
        for (index, name) in NAMES.into_iter().enumerate() {
            let length = usize::from((lengths >> (8 * index)) as u8);
            let Some(length) = length.checked_sub(1) else {
                continue;
            };
            let value = bytes.get(from..from + length).and_then(Value::new);
            if let Some(value) = value {
                headers.set(name, value);
            }
            from += length;
        }
    }
}

/// Of one core.
pub(super) struct Rows([Row; ROWS]);

#[derive(Default)]
struct Row {
    /// Odd while the row becomes another colour's; 0: nobody's yet.
    version: AtomicU64,
    key: AtomicU64,
    span: Span,
    text: [AtomicU64; WORDS],
}

impl Default for Rows {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Row::default()))
    }
}

impl Rows {
    /// One of this colour begins; none where all rows are in use.
    pub(super) fn enter(&self, key: u64, text: &Text, now_ms: u64, stale_ms: u64) -> Option<u8> {
        let mut free = None;
        for (index, row) in self.0.iter().enumerate() {
            let is_used = row.version.load(Ordering::Relaxed) != 0;
            if is_used && row.key.load(Ordering::Relaxed) == key {
                row.span.begin();
                return u8::try_from(index).ok();
            }
            if free.is_none() && (!is_used || !row.span.is_recent(now_ms, stale_ms)) {
                free = Some((index, row));
            }
            if !is_used {
                break; // so are those behind it
            }
        }
        let (index, row) = free?;
        row.become_of(key, text);
        row.span.begin();
        u8::try_from(index).ok()
    }

    pub(super) fn end(&self, row: u8, now_ms: u64) {
        if let Some(row) = self.0.get(usize::from(row)) {
            row.span.end(now_ms);
        }
    }

    /// Rows that are under way or were a short while ago, and their colours' keys. A row that becomes another's meanwhile
    /// is left out: the old colour is long gone, the new one just begins.
    pub(super) fn recent(&self, now_ms: u64, linger_ms: u64) -> impl Iterator<Item = (u8, u64)> {
        let used = |row: &&Row| row.version.load(Ordering::Acquire) != 0;
        let rows = self.0.iter().take_while(used).zip(0u8..);
        rows.filter_map(move |(row, index)| {
            let version = row.version.load(Ordering::Acquire);
            let recent = row.span.is_recent(now_ms, linger_ms);
            let key = row.key.load(Ordering::Relaxed);
            (recent && row.is_still(version)).then_some((index, key))
        })
    }

    /// Unless the row is another's by now.
    pub(super) fn colour(&self, row: u8, key: u64) -> Option<Colour> {
        let row = self.0.get(usize::from(row))?;
        let version = row.version.load(Ordering::Acquire);
        let is_its = row.key.load(Ordering::Relaxed) == key;
        let text = std::array::from_fn(|at| {
            let word = row.text.get(at);
            word.map_or(0, |word| word.load(Ordering::Relaxed))
        });
        (is_its && row.is_still(version)).then_some(Colour(text))
    }
}

impl Row {
    fn become_of(&self, key: u64, text: &Text) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        self.key.store(key, Ordering::Relaxed);
        for (place, word) in self.text.iter().zip(text) {
            place.store(*word, Ordering::Relaxed);
        }
        self.version.store(version + 2, Ordering::Release);
    }

    /// What was read since the version was is of one colour.
    fn is_still(&self, version: u64) -> bool {
        fence(Ordering::Acquire);
        version.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == version
    }
}

const NAMES: [phalanx_relay::Name<'static>; 2] = [names::X_ENV, names::X_CANARY_ID];
/// Colours of a core at once.
const ROWS: usize = 64;
const WORDS: usize = 16;
/// Of both values together.
const TEXT_MAX: usize = 8 * (WORDS - 1);
