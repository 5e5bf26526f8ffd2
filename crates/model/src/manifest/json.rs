//! A document as JSON on one line: what the store keeps and [`super::parse`] reads again.

use super::tree::{Entry, Node, Value};

/// Fields of `metadata` that a Kubernetes server adds; taken and left out.
pub(super) const SERVER_FIELDS: [&str; 8] = [
    "managedFields",
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "generation",
    "selfLink",
    "generateName",
    "ownerReferences",
];

/// `root` without `status` and [`SERVER_FIELDS`], its namespace filled in.
pub(super) fn canonical(root: &Node, namespace: &str) -> String {
    let mut out = String::new();
    let Value::Map(entries) = &root.value else {
        return out;
    };
    let kept = entries.iter().filter(|entry| entry.key != "status");
    write_map(&mut out, kept, |out, entry| match &entry.value.value {
        Value::Map(entries) if entry.key == "metadata" => write_metadata(out, entries, namespace),
        _ => write(out, &entry.value),
    });
    out
}

fn write_metadata(out: &mut String, entries: &[Entry], namespace: &str) {
    let is_given = entries.iter().any(|entry| entry.key == "namespace");
    let kept = entries
        .iter()
        .filter(|entry| !SERVER_FIELDS.contains(&entry.key.as_str()));
    write_map(out, kept, |out, entry| {
        if entry.key == "namespace" {
            write_text(out, namespace); // it may be null
        } else {
            write(out, &entry.value);
        }
        if entry.key == "name" && !is_given {
            out.push_str(",\"namespace\":");
            write_text(out, namespace);
        }
    });
}

fn write_map<'n>(
    out: &mut String,
    entries: impl Iterator<Item = &'n Entry>,
    mut value: impl FnMut(&mut String, &'n Entry),
) {
    out.push('{');
    for (i, entry) in entries.enumerate() {
        if i > 0 {
            out.push(',');
        }
        write_text(out, &entry.key);
        out.push(':');
        value(out, entry);
    }
    out.push('}');
}

/// Recursion is bounded by the depth of the tree.
fn write(out: &mut String, node: &Node) {
    match &node.value {
        Value::Null => out.push_str("null"),
        Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Value::Number(text) if is_json_number(text) => out.push_str(text),
        Value::Number(text) | Value::Text(text) => write_text(out, text),
        Value::List(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write(out, item);
            }
            out.push(']');
        }
        Value::Map(entries) => {
            write_map(out, entries.iter(), |out, entry| write(out, &entry.value))
        }
    }
}

fn is_json_number(text: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let (mantissa, exponent) = text
        .split_once(['e', 'E'])
        .map_or((text, None), |(m, e)| (m, Some(e)));
    let (whole, fraction) = mantissa
        .split_once('.')
        .map_or((mantissa, None), |(w, f)| (w, Some(f)));
    let whole = whole.strip_prefix('-').unwrap_or(whole);
    digits(whole)
        && (whole.len() == 1 || !whole.starts_with('0'))
        && fraction.is_none_or(digits)
        && exponent.is_none_or(|e| digits(e.strip_prefix(['-', '+']).unwrap_or(e)))
}

/// Escapes what JSON or YAML don't take raw.
fn write_text(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control()
                || matches!(
                    c,
                    '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}'
                ) =>
            {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}
