//! The header list: one byte arena and one record per field, with the hash of its name computed once.
//!
//! Names and values are checked where they are made ([`Name`], [`Value`], [`Field`]), so that whatever is in a list can be
//! written to any codec without a second look. Order is kept, repeated names stay apart.

pub mod names;

use std::fmt;

/// Fields in order. Meant to be cleared and used again: one per request in flight, none while idle.
#[derive(Clone, Default)]
pub struct HeaderList {
    bytes: Vec<u8>,
    records: Vec<Record>,
    removed: usize,
}

/// Where one field lies in the arena. A well-known name takes no room there.
#[derive(Clone, Copy)]
struct Record {
    name_at: u32,
    value_at: u32,
    value_len: u32,
    hash: u32,
    name_len: u16,
    /// Into [`names::WELL_KNOWN`], [`OTHER`] or [`REMOVED`].
    index: u8,
    /// No codec may put it into a table of its own.
    never_indexed: bool,
}

const OTHER: u8 = u8::MAX;
const REMOVED: u8 = u8::MAX - 1;

/// A field name: a lower-case token of RFC 9110, with its hash.
#[derive(Clone, Copy)]
pub struct Name<'a> {
    bytes: &'a [u8],
    hash: u32,
    index: u8,
}

impl<'a> Name<'a> {
    /// None when `bytes` is no token in lower case, or longer than 64 KiB.
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        let fits = !bytes.is_empty()
            && bytes.len() < NAME_LEN_END
            && bytes.iter().all(|b| is_in(&NAME_BYTE, *b));
        fits.then(|| Self::interned(bytes))
    }

    #[inline]
    fn interned(bytes: &'a [u8]) -> Self {
        let hash = names::hash(bytes);
        Self {
            bytes,
            hash,
            index: names::index(hash, bytes).unwrap_or(OTHER),
        }
    }

    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// A token is ASCII.
    pub fn as_str(&self) -> &'a str {
        std::str::from_utf8(self.bytes).unwrap_or_default()
    }

    /// The place in [`names::WELL_KNOWN`], if it has one.
    #[inline]
    pub fn well_known(&self) -> Option<usize> {
        (self.index < REMOVED).then_some(usize::from(self.index))
    }
}

/// What is kept of a name beside its bytes, so that it need not be looked at again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NameKey {
    hash: u32,
    index: u8,
}

impl NameKey {
    pub(crate) const fn well_known(self) -> Option<usize> {
        if self.index < REMOVED {
            Some(self.index as usize)
        } else {
            None
        }
    }
}

impl<'a> Name<'a> {
    pub(crate) const fn byte_len(self) -> usize {
        self.bytes.len()
    }

    pub(crate) const fn key(self) -> NameKey {
        NameKey {
            hash: self.hash,
            index: self.index,
        }
    }

    /// The name that gave `key`. Of a well-known one `bytes` may be empty.
    #[inline]
    pub(crate) fn of_key(key: NameKey, bytes: &'a [u8]) -> Self {
        let bytes = match names::WELL_KNOWN.get(usize::from(key.index)) {
            Some(name) => name.as_bytes(),
            None => bytes,
        };
        Self {
            bytes,
            hash: key.hash,
            index: key.index,
        }
    }

    #[inline]
    pub(crate) fn hash(self) -> u32 {
        self.hash
    }
}

impl PartialEq for Name<'_> {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
            && self.index == other.index
            && (self.index < REMOVED || self.bytes == other.bytes)
    }
}

impl Eq for Name<'_> {}

impl fmt::Debug for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A few well-known names, found by one look at a bit.
#[derive(Clone, Copy)]
pub struct NameSet(u128);

impl NameSet {
    /// Names that are not well known are left out, which `const` evaluation refuses.
    pub const fn of(mut names: &[Name<'static>]) -> Self {
        let mut bits = 0;
        while let [name, rest @ ..] = names {
            assert!(name.index < 128, "only well-known names have a bit");
            bits |= 1 << name.index;
            names = rest;
        }
        Self(bits)
    }

    #[inline]
    pub fn contains(self, name: Name<'_>) -> bool {
        name.index < 128 && self.0 >> name.index & 1 == 1
    }
}

/// A field value: any bytes but control characters; a tab is none (RFC 9110 §5.5). No white space at the ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Value<'a>(&'a [u8]);

impl<'a> Value<'a> {
    /// None when `bytes` holds CR, LF, NUL or another control character. White space around it is cut off.
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        let bytes = trim(bytes);
        is_value(bytes).then_some(Self(bytes))
    }

    pub fn as_bytes(&self) -> &'a [u8] {
        self.0
    }
}

impl fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", String::from_utf8_lossy(self.0))
    }
}

/// An owned field, checked and hashed ahead of time: what a plan keeps of configured headers.
#[derive(Clone, PartialEq, Eq)]
pub struct Field {
    name: Box<[u8]>,
    hash: u32,
    index: u8,
    value: Box<[u8]>,
}

impl Field {
    /// `name` in any case.
    ///
    /// # Errors
    /// [`FieldError`] tells which half can't be sent.
    pub fn new(name: &str, value: &str) -> Result<Self, FieldError> {
        let lower = name.to_ascii_lowercase();
        let name = Name::new(lower.as_bytes()).ok_or_else(|| FieldError::Name(name.to_owned()))?;
        let value = Value::new(value.as_bytes()).ok_or_else(|| FieldError::Value(lower.clone()))?;
        Ok(Self {
            name: name.bytes.into(),
            hash: name.hash,
            index: name.index,
            value: value.0.into(),
        })
    }

    /// A field of ours; a control character in `value` ends it there.
    pub fn of(name: Name<'_>, value: &str) -> Self {
        let value = value
            .split(|c: char| c.is_control())
            .next()
            .unwrap_or_default();
        Self {
            name: name.bytes.into(),
            hash: name.hash,
            index: name.index,
            value: value.trim().as_bytes().into(),
        }
    }

    pub fn name(&self) -> Name<'_> {
        Name {
            bytes: &self.name,
            hash: self.hash,
            index: self.index,
        }
    }

    pub fn value(&self) -> Value<'_> {
        Value(&self.value)
    }
}

impl fmt::Debug for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {:?}", self.name(), self.value())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    #[error("`{0}` is no header name")]
    Name(String),
    #[error("the value of header `{0}` holds a control character")]
    Value(String),
}

impl HeaderList {
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of fields.
    pub fn len(&self) -> usize {
        self.records.len() - self.removed
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets every field and keeps the memory, unless one odd request made it large.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES_MAX);
        self.records.clear();
        self.records.shrink_to(KEPT_RECORDS_MAX);
        self.removed = 0;
    }

    /// Memory held on the heap.
    pub fn held_bytes(&self) -> usize {
        self.bytes.capacity() + self.records.capacity() * size_of::<Record>()
    }

    /// Adds a field at the end.
    #[inline]
    pub fn push(&mut self, name: Name<'_>, value: Value<'_>) {
        let name_at = self.bytes.len() as u32;
        let mut name_len = 0;
        if name.index == OTHER {
            self.bytes.extend_from_slice(name.bytes);
            name_len = name.bytes.len() as u16;
        }
        let value_at = self.bytes.len() as u32;
        self.bytes.extend_from_slice(value.0);
        let value_len = value.0.len() as u32;
        self.records.push(Record {
            name_at,
            value_at,
            value_len,
            hash: name.hash,
            name_len,
            index: name.index,
            never_indexed: false,
        });
    }

    /// Marks every field of this name: a sender said that no hop may put it into a compression table (RFC 7541 §7.1.3).
    pub fn mark_never_indexed(&mut self, name: Name<'_>) {
        let mut records = std::mem::take(&mut self.records);
        for record in &mut records {
            record.never_indexed |= self.is_named(record, name);
        }
        self.records = records;
    }

    pub fn push_field(&mut self, field: &Field) {
        self.push(field.name(), field.value());
    }

    /// The value of the first field of this name.
    #[inline]
    pub fn get(&self, name: Name<'_>) -> Option<&[u8]> {
        self.get_all(name).next()
    }

    #[inline]
    pub fn contains(&self, name: Name<'_>) -> bool {
        self.get(name).is_some()
    }

    /// The values of every field of this name, in order.
    #[inline]
    pub fn get_all<'l>(&'l self, name: Name<'_>) -> impl Iterator<Item = &'l [u8]> {
        self.records
            .iter()
            .filter(move |record| self.is_named(record, name))
            .map(|record| self.value(record))
    }

    /// One field of this name with this value: the first takes it, others go.
    pub fn set(&mut self, name: Name<'_>, value: Value<'_>) {
        let mut records = std::mem::take(&mut self.records);
        let mut place = None;
        for record in &mut records {
            if !self.is_named(record, name) {
                continue;
            }
            if place.is_some() {
                record.index = REMOVED;
                self.removed += 1;
            } else {
                place = Some(record);
            }
        }
        match place {
            Some(record) => {
                record.value_at = self.bytes.len() as u32;
                record.value_len = value.0.len() as u32;
                self.bytes.extend_from_slice(value.0);
                self.records = records;
            }
            None => {
                self.records = records;
                self.push(name, value);
            }
        }
    }

    pub fn set_field(&mut self, field: &Field) {
        self.set(field.name(), field.value());
    }

    /// Takes every field of this name away; tells whether there was one.
    pub fn remove(&mut self, name: Name<'_>) -> bool {
        self.remove_where(|field, _| field == name)
    }

    /// Takes away every field that `test` picks; tells whether there was one.
    pub fn remove_where(&mut self, mut test: impl FnMut(Name<'_>, &[u8]) -> bool) -> bool {
        let mut records = std::mem::take(&mut self.records);
        let before = self.removed;
        for record in records.iter_mut().filter(|record| record.index != REMOVED) {
            if test(self.name(record), self.value(record)) {
                record.index = REMOVED;
                self.removed += 1;
            }
        }
        self.records = records;
        self.removed > before
    }

    /// Every field in order.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = (Name<'_>, &[u8])> {
        self.records
            .iter()
            .filter(|record| record.index != REMOVED)
            .map(|record| (self.name(record), self.value(record)))
    }

    /// Every field in order, with whether it is marked as never to be indexed.
    #[inline]
    pub(crate) fn iter_marked(&self) -> impl Iterator<Item = (Name<'_>, &[u8], bool)> {
        let kept = self.records.iter().filter(|record| record.index != REMOVED);
        kept.map(|record| (self.name(record), self.value(record), record.never_indexed))
    }

    /// The arena, and for every field its name and where in the arena its value lies. For a codec that shares the bytes.
    pub fn layout(
        &self,
    ) -> (
        &[u8],
        impl Iterator<Item = (Name<'_>, std::ops::Range<usize>)>,
    ) {
        let fields = self
            .records
            .iter()
            .filter(|record| record.index != REMOVED)
            .map(|record| {
                let at = record.value_at as usize;
                (self.name(record), at..at + record.value_len as usize)
            });
        (&self.bytes, fields)
    }

    #[inline]
    fn is_named(&self, record: &Record, name: Name<'_>) -> bool {
        record.hash == name.hash
            && record.index == name.index
            && (name.index < REMOVED || self.name(record).bytes == name.bytes)
    }

    #[inline]
    fn name(&self, record: &Record) -> Name<'_> {
        let bytes = match names::WELL_KNOWN.get(usize::from(record.index)) {
            Some(name) => name.as_bytes(),
            None => self.slice(record.name_at, u32::from(record.name_len)),
        };
        Name {
            bytes,
            hash: record.hash,
            index: record.index,
        }
    }

    #[inline]
    fn value(&self, record: &Record) -> &[u8] {
        self.slice(record.value_at, record.value_len)
    }

    #[inline]
    fn slice(&self, at: u32, len: u32) -> &[u8] {
        self.bytes
            .get(at as usize..(at as usize) + (len as usize))
            .unwrap_or_default()
    }
}

impl fmt::Debug for HeaderList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(
                self.iter()
                    .map(|(name, value)| (name, String::from_utf8_lossy(value))),
            )
            .finish()
    }
}

/// Name and value of a field line, the name put in lower case where it stands; none when the line begins with no name and
/// a colon.
#[inline]
pub(crate) fn split_field(line: &mut [u8]) -> Option<(Name<'_>, &[u8])> {
    let mut len = 0;
    for byte in line.iter_mut() {
        let lower = LOWER_NAME_BYTE.get(usize::from(*byte)).copied();
        let Some(lower @ 1..) = lower else { break };
        *byte = lower;
        len += 1;
    }
    let (name, rest) = line.split_at_mut_checked(len)?;
    let ([b':', value @ ..], 1..NAME_LEN_END) = (&*rest, len) else {
        return None;
    };
    Some((Name::interned(name), trim(value)))
}

/// Without blanks and tabs at the ends.
#[inline]
pub fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = bytes {
        bytes = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

/// The elements of a comma-separated list, trimmed, without empty ones.
pub fn elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value
        .split(|b| *b == b',')
        .map(trim)
        .filter(|element| !element.is_empty())
}

const NAME_LEN_END: usize = u16::MAX as usize;

/// What a cleared list may keep.
const KEPT_BYTES_MAX: usize = 8 << 10;
const KEPT_RECORDS_MAX: usize = 64;

#[inline]
fn is_in(table: &[bool; 256], byte: u8) -> bool {
    table.get(usize::from(byte)).copied().unwrap_or_default()
}

/// Eight bytes at a time; a word that holds a control character is looked at again, because a tab is allowed.
#[inline]
fn is_value(bytes: &[u8]) -> bool {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    let is_fine = |bytes: &[u8]| bytes.iter().all(|b| is_in(&VALUE_BYTE, *b));
    let (words, tail) = bytes.as_chunks::<8>();
    words.iter().all(|eight| {
        let word = u64::from_le_bytes(*eight);
        let low = word.wrapping_sub(ONES * 0x20) & !word;
        let delete = word ^ (ONES * 0x7f);
        let deletes = delete.wrapping_sub(ONES) & !delete;
        (low | deletes) & (ONES << 7) == 0 || is_fine(eight)
    }) && is_fine(tail)
}

/// `tchar` of RFC 9110 §5.6.2 without upper case.
#[allow(clippy::indexing_slicing)] // at compile time
static NAME_BYTE: [bool; 256] = {
    let mut table = [false; 256];
    let allowed = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz";
    let mut i = 0;
    while i < allowed.len() {
        table[allowed[i] as usize] = true;
        i += 1;
    }
    table
};

/// What a byte of a name is in lower case; 0 for what stands in none.
#[allow(clippy::indexing_slicing)] // at compile time
static LOWER_NAME_BYTE: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let lower = (byte as u8).to_ascii_lowercase();
        if NAME_BYTE[lower as usize] {
            table[byte] = lower;
        }
        byte += 1;
    }
    table
};

#[allow(clippy::indexing_slicing)] // at compile time
static VALUE_BYTE: [bool; 256] = {
    let mut table = [true; 256];
    let mut byte = 0;
    while byte < 0x20 {
        table[byte] = byte == b'\t' as usize;
        byte += 1;
    }
    table[0x7f] = false;
    table
};

#[cfg(test)]
mod tests;
