//! What `x-env` and `x-canary-id` say, each for itself, and which values are under way on a core: a row for each, that is
//! another's when nobody has had it for long.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use phalanx_relay::{HeaderList, Name, Value, names};

use super::span::Span;

/// What `x-env` and `x-canary-id` say; of the baseline neither.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Colour {
    pub(super) env: Option<Text>,
    pub(super) canary: Option<Text>,
}

/// The length (one more, 0: there is none), then the value.
pub(super) type Text = [u64; WORDS];

/// What one header of a request says.
pub(super) enum Read {
    Nothing,
    Of(Text),
    /// Said twice, or too long.
    Unreadable,
}

impl Read {
    pub(super) fn of(headers: &HeaderList, name: Name<'_>) -> Self {
        let mut values = headers.get_all(name);
        let Some(value) = values.next() else {
            return Self::Nothing;
        };
        if values.next().is_some() || value.len() > TEXT_MAX {
            return Self::Unreadable;
        }
        let mut text = [0; WORDS];
        let places = text.iter_mut().skip(1).zip(value.chunks(8));
        for (place, bytes) in places {
            let mut word = [0; 8];
            for (to, from) in word.iter_mut().zip(bytes) {
                *to = *from;
            }
            *place = u64::from_le_bytes(word);
        }
        if let Some(length) = text.first_mut() {
            *length = value.len() as u64 + 1;
        }
        Self::Of(text)
    }
}

impl Colour {
    /// Whether a request says anything of the kind.
    #[inline]
    pub(super) fn is_said(headers: &HeaderList) -> bool {
        headers.contains(names::X_ENV) || headers.contains(names::X_CANARY_ID)
    }

    /// Gives a request what of it it does not say itself.
    pub fn give(&self, headers: &mut HeaderList) {
        let both = [
            (names::X_ENV, &self.env),
            (names::X_CANARY_ID, &self.canary),
        ];
        for (name, text) in both {
            let Some(text) = text.as_ref().filter(|_| !headers.contains(name)) else {
                continue;
            };
            let mut bytes = [0; TEXT_MAX];
            for (word, place) in text.iter().skip(1).zip(bytes.as_chunks_mut().0) {
                *place = word.to_le_bytes();
            }
            let length = text.first().and_then(|length| length.checked_sub(1));
            let length = length.and_then(|length| usize::try_from(length).ok());
            let value = length.and_then(|length| bytes.get(..length));
            if let Some(value) = value.and_then(Value::new) {
                headers.set(name, value);
            }
        }
    }
}

/// What one header says of those under way on a core.
pub(super) struct Facet {
    /// They have it not.
    pub(super) without: Span,
    /// They have it, but no row is left, or it says nothing that can be written.
    pub(super) unnamed: Span,
    pub(super) rows: Rows,
}

/// Which of them one is counted with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seat {
    Without,
    Unnamed,
    Row(u8),
}

impl Facet {
    pub(super) fn new(rows: usize) -> Self {
        Self {
            without: Span::default(),
            unnamed: Span::default(),
            rows: Rows((0..rows).map(|_| Row::default()).collect()),
        }
    }

    /// One begins whose header says this; `key`: of a text.
    pub(super) fn begin(
        &self,
        read: &Read,
        key: impl Fn(&Text) -> u64,
        now_ms: u64,
        stale_ms: u64,
    ) -> (Seat, u64) {
        let unnamed = || {
            self.unnamed.begin();
            (Seat::Unnamed, UNNAMED)
        };
        match read {
            Read::Nothing => {
                self.without.begin();
                (Seat::Without, BASELINE)
            }
            Read::Unreadable => unnamed(),
            Read::Of(text) => {
                let key = key(text).max(KEY_MIN);
                let row = self.rows.begin(key, text, now_ms, stale_ms);
                row.map_or_else(unnamed, |row| (Seat::Row(row), key))
            }
        }
    }

    pub(super) fn end(&self, seat: Seat, ended_ms: u64) {
        match seat {
            Seat::Without => self.without.end(ended_ms),
            Seat::Unnamed => self.unnamed.end(ended_ms),
            Seat::Row(row) => self.rows.end(row, ended_ms),
        }
    }
}

/// Of one core.
pub(super) struct Rows(Box<[Row]>);

#[derive(Default)]
struct Row {
    /// Odd while the row becomes another value's; 0: nobody's yet.
    version: AtomicU64,
    key: AtomicU64,
    span: Span,
    text: [AtomicU64; WORDS],
}

impl Rows {
    /// One of this value begins; none where all rows are in use.
    fn begin(&self, key: u64, text: &Text, now_ms: u64, stale_ms: u64) -> Option<u8> {
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

    fn end(&self, row: u8, ended_ms: u64) {
        if let Some(row) = self.0.get(usize::from(row)) {
            row.span.end(ended_ms);
        }
    }

    /// Rows that are under way or were a short while ago, and their values' keys. A row that becomes another's meanwhile
    /// is left out: the old value is long gone, the new one just begins.
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
    pub(super) fn text(&self, row: u8, key: u64) -> Option<Text> {
        let row = self.0.get(usize::from(row))?;
        let version = row.version.load(Ordering::Acquire);
        let is_its = row.key.load(Ordering::Relaxed) == key;
        let text = std::array::from_fn(|at| {
            let word = row.text.get(at);
            word.map_or(0, |word| word.load(Ordering::Relaxed))
        });
        (is_its && row.is_still(version)).then_some(text)
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

    /// What was read since the version was is of one value.
    fn is_still(&self, version: u64) -> bool {
        fence(Ordering::Acquire);
        version.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == version
    }
}

/// Keys of values that are none.
pub(super) const BASELINE: u64 = 0;
pub(super) const UNNAMED: u64 = 1;
const KEY_MIN: u64 = 2;
pub(super) const WORDS: usize = 9;
/// Of one value.
const TEXT_MAX: usize = 8 * (WORDS - 1);
