//! Fields behind a chunked body.

use std::cell::Cell;

use super::body::BadBody;
use super::lines::{Fields, Words};
use crate::checked::is_internal;
use crate::header::{HeaderList, Name, NameSet, Value, names};
use crate::limits::{FIELD_OVERHEAD, Limits};

/// Fills `list` with the trailers in `section`, which ends with its empty line.
pub(super) fn read(
    list: &mut HeaderList,
    section: &mut [u8],
    limits: &Limits,
) -> Result<(), BadBody> {
    list.clear();
    let words = Cell::new(Words::default());
    let (mut bytes, mut count) = (0, 0);
    for (name, value) in Fields::new(section, &words) {
        let name = name.ok_or(BadBody::Trailer)?;
        bytes += name.as_bytes().len() + value.len() + FIELD_OVERHEAD;
        count += 1;
        if bytes > limits.trailer_bytes || count > limits.head_fields {
            return Err(BadBody::TrailersTooLarge);
        }
        let value = Value::new(value).ok_or(BadBody::Trailer)?;
        if !is_forbidden_trailer(name) {
            list.push(name, value);
        }
    }
    Ok(())
}

/// Trailers never frame, route or authenticate (RFC 9110 §6.5.1), nor speak for the mesh: such fields are dropped.
pub fn is_forbidden_trailer(name: Name<'_>) -> bool {
    FORBIDDEN.contains(name) || is_internal(name.as_bytes())
}

const FORBIDDEN: NameSet = NameSet::of(&[
    names::AUTHORIZATION,
    names::CONNECTION,
    names::CONTENT_ENCODING,
    names::CONTENT_LENGTH,
    names::CONTENT_TYPE,
    names::COOKIE,
    names::EXPECT,
    names::HOST,
    names::HTTP2_SETTINGS,
    names::KEEP_ALIVE,
    names::PROXY_AUTHENTICATE,
    names::PROXY_AUTHORIZATION,
    names::PROXY_CONNECTION,
    names::SET_COOKIE,
    names::TE,
    names::TRAILER,
    names::TRANSFER_ENCODING,
    names::UPGRADE,
]);
