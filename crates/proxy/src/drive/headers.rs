//! Between the flat list and hyper's map. All values of a message share one copy of the arena.

use std::sync::LazyLock;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use phalanx_relay::{HeaderList, Name, names};

/// As [`Name`]s are numbered.
static KNOWN: LazyLock<Vec<HeaderName>> = LazyLock::new(|| {
    names::WELL_KNOWN
        .iter()
        .map(|name| HeaderName::from_static(name))
        .collect()
});

/// Adds every field of `list` to `map`.
pub fn fill(map: &mut HeaderMap, list: &HeaderList) {
    let (arena, fields) = list.layout();
    let arena = Bytes::copy_from_slice(arena);
    for (name, range) in fields {
        let value = HeaderValue::from_maybe_shared(arena.slice(range));
        // Neither can fail: the list takes only what the map takes.
        let (Some(known), Ok(mut value)) = (known(name), value) else {
            continue;
        };
        if NEVER_INDEXED.contains(&name) {
            value.set_sensitive(true);
        }
        map.append(known, value);
    }
}

/// HPACK keeps these out of its tables: secrets, because a shared upstream connection carries those of many callers, and
/// values that never come twice, because they would only push out others.
const NEVER_INDEXED: &[Name<'static>] = &[
    names::AUTHORIZATION,
    names::COOKIE,
    names::SET_COOKIE,
    names::TRACEPARENT,
    names::X_REQUEST_ID,
];

fn known(name: Name<'_>) -> Option<HeaderName> {
    match name.well_known() {
        Some(index) => KNOWN.get(index).cloned(),
        None => HeaderName::from_bytes(name.as_bytes()).ok(),
    }
}

/// Names and values as the relay's constructors want them.
pub fn fields(map: &HeaderMap) -> impl Iterator<Item = (&[u8], &[u8])> {
    map.iter()
        .map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()))
}
