//! Two values of one type, field by field: whatever a resource is made of shows up in a dry run, with no list of fields to
//! keep up with.

use std::collections::BTreeMap;
use std::fmt::Debug;

/// `<field>.<field>[<index>]: <before> → <after>`, the first [`DETAILS_MAX`] of them.
pub fn differences(before: &impl Debug, after: &impl Debug) -> Vec<String> {
    let (before, after) = (leaves(before), leaves(after));
    let gone = before
        .iter()
        .filter(|(path, _)| !after.contains_key(*path))
        .map(|(path, value)| format!("{path}: {value} → none"));
    let new = after
        .iter()
        .filter(|(path, _)| !before.contains_key(*path))
        .map(|(path, value)| format!("{path}: none → {value}"));
    let changed = before.iter().filter_map(|(path, value)| {
        let after = after.get(path).filter(|after| *after != value)?;
        Some(format!("{path}: {value} → {after}"))
    });
    bounded(changed.chain(gone).chain(new).collect())
}

pub fn bounded(mut details: Vec<String>) -> Vec<String> {
    if details.len() > DETAILS_MAX {
        let more = details.len() - DETAILS_MAX;
        details.truncate(DETAILS_MAX);
        details.push(format!("and {more} more"));
    }
    details
}

/// What stands at the ends of `{value:#?}`, by path. `Some(…)` and names of types are no part of a path.
fn leaves(value: &impl Debug) -> BTreeMap<String, String> {
    let text = format!("{value:#?}");
    let mut open: Vec<Level> = Vec::new();
    let mut leaves = BTreeMap::new();
    for line in text.lines() {
        let line = line.trim();
        let line = line.strip_suffix(',').unwrap_or(line);
        if let ("}" | ")" | "]", Some(_)) = (line, open.last()) {
            open.pop();
            continue;
        }
        let (label, rest) = label(line);
        let step = match (label, open.last_mut()) {
            (Some(label), _) => label.to_owned(),
            (None, Some(level)) => level.next(),
            (None, None) => String::new(),
        };
        let opens = rest.ends_with(['{', '(', '[']) && !rest.starts_with('"');
        if opens {
            open.push(Level {
                step,
                is_list: rest == "[" || rest == "{",
                count: 0,
            });
        } else {
            let mut path = String::new();
            for step in open.iter().map(|l| l.step.as_str()).chain([step.as_str()]) {
                if !path.is_empty() && !step.is_empty() && !step.starts_with('[') {
                    path.push('.');
                }
                path.push_str(step);
            }
            leaves.insert(path, rest.to_owned());
        }
    }
    leaves
}

struct Level {
    step: String,
    /// Its items have no names; those of a wrapper such as `Some(` take the wrapper's.
    is_list: bool,
    count: usize,
}

impl Level {
    fn next(&mut self) -> String {
        self.count += 1;
        if self.is_list {
            format!("[{}]", self.count - 1)
        } else {
            String::new()
        }
    }
}

/// `name: rest`, where the name is one of a field.
fn label(line: &str) -> (Option<&str>, &str) {
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    match line.split_once(": ") {
        Some((name, rest)) if is_name(name) => (Some(name), rest),
        _ => (None, line),
    }
}

/// Of one resource or rule.
const DETAILS_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use phalanx_model::instance::Protocol;
    use phalanx_model::resource::Cluster;
    use phalanx_model::{ClusterName, ServiceName};

    use super::*;

    #[test]
    fn a_changed_field_is_named_by_its_path() {
        let name = ClusterName::outbound(ServiceName::new("default", "battle"), 80);
        let before = Cluster::new(name, Protocol::Http1);
        let mut after = before.clone();
        after.circuit_breaker.max_requests = 10;
        after.connection_pool.connect_timeout = Duration::from_millis(250);
        assert_eq!(
            differences(&before, &after),
            [
                "circuit_breaker.max_requests: 1024 → 10",
                "connection_pool.connect_timeout: 1s → 250ms",
            ]
        );
        assert!(differences(&before, &before).is_empty());
    }

    #[test]
    fn lists_and_options_and_texts_with_brackets_are_read() {
        #[derive(Debug)]
        #[expect(dead_code, reason = "read as text only")]
        struct Thing {
            list: Vec<&'static str>,
            maybe: Option<u32>,
        }
        let thing = |list: &[&'static str], maybe| Thing {
            list: list.to_vec(),
            maybe,
        };
        let before = thing(&["a {", "b: ["], Some(1));
        let after = thing(&["a {", "c: [", "d"], None);
        assert_eq!(
            differences(&before, &after),
            [
                "list[1]: \"b: [\" → \"c: [\"",
                "maybe: 1 → None",
                "list[2]: none → \"d\"",
            ]
        );
    }
}
