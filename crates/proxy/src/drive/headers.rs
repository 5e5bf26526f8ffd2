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
        // Neither can fail: the list takes only what the map takes.
        let (Some(name), Ok(value)) = (
            known(name),
            HeaderValue::from_maybe_shared(arena.slice(range)),
        ) else {
            continue;
        };
        map.append(name, value);
    }
}

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
