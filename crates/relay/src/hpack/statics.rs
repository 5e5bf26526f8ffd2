//! The static table (RFC 7541 appendix A).

use super::fields::{Kind, Pseudo};
use crate::header::{Name, names};

pub(super) struct Static {
    pub(super) kind: Kind,
    pub(super) name_len: usize,
    pub(super) value: &'static str,
}

const fn pseudo(pseudo: Pseudo, value: &'static str) -> Static {
    Static {
        kind: Kind::Pseudo(pseudo),
        name_len: pseudo.as_str().len(),
        value,
    }
}

const fn field(name: Name<'static>, value: &'static str) -> Static {
    Static {
        kind: Kind::Name(name.key()),
        name_len: name.byte_len(),
        value,
    }
}

#[rustfmt::skip]
const AT_COMPILE_TIME: [Static; COUNT] = [
    pseudo(Pseudo::Authority, ""),
    pseudo(Pseudo::Method, "GET"),
    pseudo(Pseudo::Method, "POST"),
    pseudo(Pseudo::Path, "/"),
    pseudo(Pseudo::Path, "/index.html"),
    pseudo(Pseudo::Scheme, "http"),
    pseudo(Pseudo::Scheme, "https"),
    pseudo(Pseudo::Status, "200"),
    pseudo(Pseudo::Status, "204"),
    pseudo(Pseudo::Status, "206"),
    pseudo(Pseudo::Status, "304"),
    pseudo(Pseudo::Status, "400"),
    pseudo(Pseudo::Status, "404"),
    pseudo(Pseudo::Status, "500"),
    field(names::ACCEPT_CHARSET, ""),
    field(names::ACCEPT_ENCODING, "gzip, deflate"),
    field(names::ACCEPT_LANGUAGE, ""),
    field(names::ACCEPT_RANGES, ""),
    field(names::ACCEPT, ""),
    field(names::ACCESS_CONTROL_ALLOW_ORIGIN, ""),
    field(names::AGE, ""),
    field(names::ALLOW, ""),
    field(names::AUTHORIZATION, ""),
    field(names::CACHE_CONTROL, ""),
    field(names::CONTENT_DISPOSITION, ""),
    field(names::CONTENT_ENCODING, ""),
    field(names::CONTENT_LANGUAGE, ""),
    field(names::CONTENT_LENGTH, ""),
    field(names::CONTENT_LOCATION, ""),
    field(names::CONTENT_RANGE, ""),
    field(names::CONTENT_TYPE, ""),
    field(names::COOKIE, ""),
    field(names::DATE, ""),
    field(names::ETAG, ""),
    field(names::EXPECT, ""),
    field(names::EXPIRES, ""),
    field(names::FROM, ""),
    field(names::HOST, ""),
    field(names::IF_MATCH, ""),
    field(names::IF_MODIFIED_SINCE, ""),
    field(names::IF_NONE_MATCH, ""),
    field(names::IF_RANGE, ""),
    field(names::IF_UNMODIFIED_SINCE, ""),
    field(names::LAST_MODIFIED, ""),
    field(names::LINK, ""),
    field(names::LOCATION, ""),
    field(names::MAX_FORWARDS, ""),
    field(names::PROXY_AUTHENTICATE, ""),
    field(names::PROXY_AUTHORIZATION, ""),
    field(names::RANGE, ""),
    field(names::REFERER, ""),
    field(names::REFRESH, ""),
    field(names::RETRY_AFTER, ""),
    field(names::SERVER, ""),
    field(names::SET_COOKIE, ""),
    field(names::STRICT_TRANSPORT_SECURITY, ""),
    field(names::TRANSFER_ENCODING, ""),
    field(names::USER_AGENT, ""),
    field(names::VARY, ""),
    field(names::VIA, ""),
    field(names::WWW_AUTHENTICATE, ""),
];

/// Its first entry has the index 1.
static ENTRIES: [Static; COUNT] = AT_COMPILE_TIME;

pub(super) const COUNT: usize = 61;

/// The entry of `index`, counted from 1.
#[inline]
pub(super) fn entry(index: usize) -> Option<&'static Static> {
    ENTRIES.get(index.checked_sub(1)?)
}

/// The index of a pseudo-header's name; 0 for none.
#[inline]
pub(super) fn pseudo_index(pseudo: Pseudo) -> usize {
    match pseudo {
        Pseudo::Authority => 1,
        Pseudo::Method => 2,
        Pseudo::Path => 4,
        Pseudo::Scheme => 6,
        Pseudo::Status => 8,
        Pseudo::Protocol => 0,
    }
}

/// The index of a name; 0 for none.
#[inline]
pub(super) fn name_index(name: Name<'_>) -> usize {
    let place = name.well_known().and_then(|place| NAMES.get(place));
    place.copied().map_or(0, usize::from)
}

/// For each well-known name its first entry.
#[allow(clippy::indexing_slicing)] // at compile time
static NAMES: [u8; names::WELL_KNOWN.len()] = {
    let mut table = [0; names::WELL_KNOWN.len()];
    let mut index = COUNT;
    while index > 0 {
        if let Kind::Name(key) = AT_COMPILE_TIME[index - 1].kind
            && let Some(place) = key.well_known()
        {
            table[place] = index as u8;
        }
        index -= 1;
    }
    table
};
