//! Reads a refusal: which of the resources sent does its message name, and how much of it is worth keeping.

use std::collections::BTreeSet;

/// Bytes of a refusal's message that are kept, at most.
pub const MESSAGE_BYTES_MAX: usize = 1024;
/// Envoy opens with a dump of the resource, the reason comes last: so more is kept of the end.
const HEAD_BYTES: usize = 256;
const ELISION: &str = " … ";
/// Bytes of a message that are searched for names.
const SEARCH_BYTES_MAX: usize = 64 * 1024;

/// Those of `names` that stand in `message` as whole words. All of them being there says as little as none.
pub(super) fn named<'a>(message: &str, names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let end = floor(message, SEARCH_BYTES_MAX);
    let words: BTreeSet<&str> = message
        .get(..end)
        .unwrap_or_default()
        .split(|c: char| c.is_whitespace() || "\"'`,;=()[]{}<>".contains(c))
        .flat_map(|word| [word, word.trim_end_matches(['.', ':'])])
        .filter(|word| !word.is_empty())
        .collect();
    names.filter(|name| words.contains(name)).collect()
}

/// The beginning and the end of `message`, [`MESSAGE_BYTES_MAX`] at most.
pub(super) fn excerpt(message: &str) -> String {
    if message.len() <= MESSAGE_BYTES_MAX {
        return message.to_owned();
    }
    let head = floor(message, HEAD_BYTES);
    let mut tail = message.len() - (MESSAGE_BYTES_MAX - HEAD_BYTES - ELISION.len());
    while !message.is_char_boundary(tail) {
        tail += 1;
    }
    let part = |range: Option<&str>| range.unwrap_or_default().to_owned();
    part(message.get(..head)) + ELISION + message.get(tail..).unwrap_or_default()
}

/// The last character boundary at or before `at`.
fn floor(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(message: &str, expected: &[&str]) {
        let names = [
            "outbound|80|a.ns.svc.mesh",
            "outbound|80|ab.ns.svc.mesh",
            "b",
        ];
        assert_eq!(named(message, names.into_iter()), expected, "{message}");
    }

    #[test]
    fn names_are_found_as_whole_words_only() {
        check(
            "Error adding/updating cluster(s) outbound|80|a.ns.svc.mesh: no such thing, b: bad",
            &["outbound|80|a.ns.svc.mesh", "b"],
        );
        check(
            "goo.gle/debugonly  name: \"outbound|80|ab.ns.svc.mesh\"\n lb_policy: 9",
            &["outbound|80|ab.ns.svc.mesh"],
        );
        check(
            "cluster outbound|80|a.ns.svc.mesh.",
            &["outbound|80|a.ns.svc.mesh"],
        );
        check("xoutbound|80|a.ns.svc.mesh2 and bb", &[]);
    }

    #[test]
    fn an_excerpt_is_bounded_and_keeps_both_ends() {
        let long = format!("head{}tail", "ü".repeat(5000));
        let kept = excerpt(&long);
        assert!(kept.len() <= MESSAGE_BYTES_MAX, "{}", kept.len());
        assert!(kept.starts_with("head") && kept.ends_with("tail"));
        assert_eq!(excerpt("short"), "short");
    }
}
