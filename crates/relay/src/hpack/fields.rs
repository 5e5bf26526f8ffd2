//! A decoded block: one arena, one record per field.

use crate::header::{Name, NameKey};

/// Fields in order. Meant to be cleared and used again.
#[derive(Default)]
pub struct Fields {
    pub(super) bytes: Vec<u8>,
    pub(super) records: Vec<Record>,
    /// As RFC 9113 §6.5.2 counts it.
    pub(super) size: usize,
    pub(super) too_large: bool,
    pub(super) never_indexed: bool,
}

/// A well-known name takes no room in the arena.
#[derive(Clone, Copy)]
pub(super) struct Record {
    pub(super) kind: Kind,
    pub(super) name_at: u32,
    pub(super) value_at: u32,
    pub(super) value_end: u32,
    pub(super) never_indexed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Pseudo(Pseudo),
    Name(NameKey),
    Bad,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pseudo {
    Authority,
    Method,
    Path,
    Protocol,
    Scheme,
    Status,
}

/// What a field of a block is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldName<'a> {
    Pseudo(Pseudo),
    Name(Name<'a>),
    /// No token in lower case, and no pseudo-header that there is.
    Bad,
}

impl Pseudo {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Authority => ":authority",
            Self::Method => ":method",
            Self::Path => ":path",
            Self::Protocol => ":protocol",
            Self::Scheme => ":scheme",
            Self::Status => ":status",
        }
    }
}

impl Kind {
    pub(super) fn of(name: &[u8]) -> Self {
        if name.first() != Some(&b':') {
            return Name::new(name).map_or(Self::Bad, |name| Self::Name(name.key()));
        }
        match name {
            b":authority" => Self::Pseudo(Pseudo::Authority),
            b":method" => Self::Pseudo(Pseudo::Method),
            b":path" => Self::Pseudo(Pseudo::Path),
            b":protocol" => Self::Pseudo(Pseudo::Protocol),
            b":scheme" => Self::Pseudo(Pseudo::Scheme),
            b":status" => Self::Pseudo(Pseudo::Status),
            _ => Self::Bad,
        }
    }

    /// Whether the name's bytes must be kept beside it.
    pub(super) fn is_spelled(self) -> bool {
        match self {
            Self::Pseudo(_) => false,
            Self::Name(key) => key.well_known().is_none(),
            Self::Bad => true,
        }
    }

    pub(super) fn known_len(self) -> usize {
        match self {
            Self::Pseudo(pseudo) => pseudo.as_str().len(),
            Self::Name(key) => Name::of_key(key, b"").as_bytes().len(),
            Self::Bad => 0,
        }
    }
}

impl Fields {
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.records.clear();
        self.size = 0;
        self.too_large = false;
        self.never_indexed = false;
    }

    /// Makes room for what comes after one odd block.
    pub(crate) fn trim(&mut self) {
        self.clear();
        self.bytes.shrink_to(KEPT_BYTES_MAX);
        self.records.shrink_to(KEPT_RECORDS_MAX);
    }

    /// Whether the list was over its limit; then there are no fields.
    pub fn is_too_large(&self) -> bool {
        self.too_large
    }

    /// Whether any of them may not be indexed by any hop.
    pub fn has_never_indexed(&self) -> bool {
        self.never_indexed
    }

    pub fn len(&self) -> usize {
        self.records.len()
    }

    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Name, value, and whether no hop may index it.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = (FieldName<'_>, &[u8], bool)> + Clone {
        self.iter_from(0)
    }

    /// As [`Fields::iter`], without so many at the front.
    #[inline]
    pub(crate) fn iter_from(
        &self,
        first: usize,
    ) -> impl Iterator<Item = (FieldName<'_>, &[u8], bool)> + Clone {
        let records = self.records.get(first..).unwrap_or_default();
        records.iter().map(|record| {
            let value = self.slice(record.value_at, record.value_end);
            (self.name(record), value, record.never_indexed)
        })
    }

    #[inline]
    fn name(&self, record: &Record) -> FieldName<'_> {
        match record.kind {
            Kind::Pseudo(pseudo) => FieldName::Pseudo(pseudo),
            Kind::Name(key) => FieldName::Name(Name::of_key(
                key,
                self.slice(record.name_at, record.value_at),
            )),
            Kind::Bad => FieldName::Bad,
        }
    }

    #[inline]
    pub(super) fn slice(&self, at: u32, end: u32) -> &[u8] {
        self.bytes
            .get(at as usize..end as usize)
            .unwrap_or_default()
    }
}

const KEPT_BYTES_MAX: usize = 8 << 10;
const KEPT_RECORDS_MAX: usize = 128;
