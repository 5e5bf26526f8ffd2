//! Whether two answers are the same: status, which headers there are and what a few of them say, and the shape of the body.
//! Of JSON that is which keys have values of which type; of anything else, length and hash. Pure.

use std::collections::{BTreeMap, BTreeSet};

use phalanx_model::resource::Compare;
use phalanx_relay::{HeaderList, names};
use serde_json::Value;

use super::seen::Seen;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub kind: Kind,
    /// A header's name, or a path in JSON.
    pub at: String,
    pub original: String,
    pub copy: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Status,
    Header,
    Body,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Status, Self::Header, Self::Body];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Header => "header",
            Self::Body => "body",
        }
    }
}

/// What differs, at most [`DIFFERENCES_MAX`] of each kind; none at all where one of them is no whole answer.
pub(super) fn judge(original: &Seen, copy: &Seen, ignore: &Compare) -> Option<Vec<Difference>> {
    if !original.is_whole || !copy.is_whole {
        return None;
    }
    let mut found = Vec::new();
    status(original, copy, &mut found);
    let mut of_headers = headers(&original.headers, &copy.headers, ignore);
    of_headers.truncate(DIFFERENCES_MAX);
    found.append(&mut of_headers);
    body(original, copy, ignore, &mut found);
    Some(found)
}

fn status(original: &Seen, copy: &Seen, found: &mut Vec<Difference>) {
    let grpc = |seen: &Seen| {
        seen.grpc_status
            .map_or("none".to_owned(), |s| s.to_string())
    };
    let pairs = [
        (
            "status",
            original.status.to_string(),
            copy.status.to_string(),
        ),
        ("grpc-status", grpc(original), grpc(copy)),
    ];
    for (at, original, copy) in pairs {
        if original != copy {
            found.push(Difference {
                kind: Kind::Status,
                at: at.to_owned(),
                original,
                copy,
            });
        }
    }
}

fn headers(original: &HeaderList, copy: &HeaderList, ignore: &Compare) -> Vec<Difference> {
    let of = |list: &HeaderList| -> BTreeMap<String, String> {
        let counted = list.iter().filter(|(name, _)| {
            !PASSING.contains(&name.as_str()) && !ignore.headers.iter().any(|n| n == name.as_str())
        });
        let shown = counted.map(|(name, value)| {
            let value = match VALUED.contains(&name.as_str()) {
                true => cut(&String::from_utf8_lossy(value)),
                false => String::new(),
            };
            (name.as_str().to_owned(), value)
        });
        shown.collect()
    };
    let (original, copy) = (of(original), of(copy));
    let names: BTreeSet<&String> = original.keys().chain(copy.keys()).collect();
    let differs = |name: &&&String| original.get(**name) != copy.get(**name);
    let shown = |list: &BTreeMap<String, String>, name: &String| match list.get(name) {
        None => "missing".to_owned(),
        Some(value) if value.is_empty() => "there".to_owned(),
        Some(value) => value.clone(),
    };
    let different = names.iter().filter(differs);
    different
        .map(|name| Difference {
            kind: Kind::Header,
            at: (*name).clone(),
            original: shown(&original, name),
            copy: shown(&copy, name),
        })
        .collect()
}

fn body(original: &Seen, copy: &Seen, ignore: &Compare, found: &mut Vec<Difference>) {
    if let (Some(one), Some(other)) = (json(original), json(copy)) {
        let mut shape = Shape {
            ignore,
            found: Vec::new(),
        };
        shape.compare("$", &[&one], &[&other], 0);
        found.append(&mut shape.found);
        return;
    }
    if (original.length, original.hash()) != (copy.length, copy.hash()) {
        let shown = |seen: &Seen| format!("{} bytes, hash {:016x}", seen.length, seen.hash());
        found.push(Difference {
            kind: Kind::Body,
            at: "$".to_owned(),
            original: shown(original),
            copy: shown(copy),
        });
    }
}

fn json(seen: &Seen) -> Option<Value> {
    // Deeper than serde_json goes is no JSON to us.
    let is_json = is_json(&seen.headers) && seen.is_kept();
    is_json.then(|| serde_json::from_slice(&seen.body).ok())?
}

/// Whether the body behind these is said to be JSON.
pub(super) fn is_json(headers: &HeaderList) -> bool {
    let media = headers.get(names::CONTENT_TYPE);
    let media = media.and_then(|media| std::str::from_utf8(media).ok());
    let media = media.and_then(|media| media.split(';').next());
    let media = media.map_or("", str::trim);
    media == "application/json" || media.ends_with("+json")
}

struct Shape<'i> {
    ignore: &'i Compare,
    found: Vec<Difference>,
}

impl Shape<'_> {
    /// Of what stands at one place: one value, or those of all elements of arrays.
    fn compare(&mut self, at: &str, original: &[&Value], copy: &[&Value], depth: usize) {
        let is_ignored = self.ignore.paths.iter().any(|path| path == at);
        if is_ignored || depth > DEPTH_MAX || self.found.len() >= DIFFERENCES_MAX {
            return;
        }
        let (ours, theirs) = (types(original), types(copy));
        if ours != theirs {
            self.found.push(Difference {
                kind: Kind::Body,
                at: cut(at),
                original: ours,
                copy: theirs,
            });
            return;
        }
        let (ours, theirs) = (fields(original), fields(copy));
        let keys: BTreeSet<&str> = ours.keys().chain(theirs.keys()).copied().collect();
        for key in keys {
            let of = |fields: &BTreeMap<&str, Vec<_>>| fields.get(key).cloned().unwrap_or_default();
            self.compare(&format!("{at}.{key}"), &of(&ours), &of(&theirs), depth + 1);
        }
        let (ours, theirs) = (elements(original), elements(copy));
        // An empty array says nothing of its elements.
        if !ours.is_empty() && !theirs.is_empty() {
            self.compare(&format!("{at}[]"), &ours, &theirs, depth + 1);
        }
    }
}

/// Which there are, in one order.
fn types(values: &[&Value]) -> String {
    let name = |value: &&Value| match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let names: BTreeSet<&str> = values.iter().map(name).collect();
    match names.is_empty() {
        true => "missing".to_owned(),
        false => names.into_iter().collect::<Vec<_>>().join(" or "),
    }
}

fn fields<'v>(values: &[&'v Value]) -> BTreeMap<&'v str, Vec<&'v Value>> {
    let mut fields: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    for (key, value) in values
        .iter()
        .filter_map(|value| value.as_object())
        .flatten()
    {
        fields.entry(key).or_default().push(value);
    }
    fields
}

fn elements<'v>(values: &[&'v Value]) -> Vec<&'v Value> {
    let arrays = values.iter().filter_map(|value| value.as_array());
    arrays.flatten().collect()
}

/// What is shown of a text that came from outside.
fn cut(text: &str) -> String {
    let plain = text.chars().filter(|c| !c.is_control());
    plain.take(TEXT_MAX).collect()
}

/// Of one answer's headers, and of its body.
pub(super) const DIFFERENCES_MAX: usize = 8;
const DEPTH_MAX: usize = 32;
/// Characters.
const TEXT_MAX: usize = 96;
/// They tell of the way and the moment.
const PASSING: [&str; 12] = [
    "age",
    "connection",
    "content-length",
    "date",
    "keep-alive",
    "server",
    "traceparent",
    "tracestate",
    "transfer-encoding",
    "via",
    "x-request-id",
    "x-phalanx-reason",
];
/// What they say counts as well, and is no secret.
const VALUED: [&str; 5] = [
    "cache-control",
    "content-encoding",
    "content-language",
    "content-type",
    "location",
];
