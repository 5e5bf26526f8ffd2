//! Hostnames of the Gateway API, exact or `*.suffix`: which of two is the narrower, and what both of them take.

use std::cmp::Reverse;

/// Whether every name that `inner` takes is taken by `outer` too. None takes all.
pub fn covers(outer: Option<&str>, inner: &str) -> bool {
    let Some(outer) = outer else {
        return true;
    };
    match outer.strip_prefix('*') {
        Some(suffix) => match inner.strip_prefix('*') {
            Some(narrower) => narrower.ends_with(suffix),
            // `*.example.com` takes `a.example.com` and `a.b.example.com`, not `example.com`.
            None => inner.len() > suffix.len() && inner.ends_with(suffix),
        },
        None => outer == inner,
    }
}

/// The names that both take, which is the narrower of the two; none when there is none.
pub fn intersection<'h>(one: &'h str, other: &'h str) -> Option<&'h str> {
    if covers(Some(one), other) {
        return Some(other);
    }
    covers(Some(other), one).then_some(one)
}

/// Sorts narrower ones first: exact before wildcards, the longer before the shorter.
pub fn rank(hostname: Option<&str>) -> (bool, Reverse<usize>) {
    let hostname = hostname.unwrap_or_default();
    let is_exact = !hostname.is_empty() && !hostname.starts_with('*');
    (!is_exact, Reverse(hostname.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_takes_names_below_it_and_not_its_own() {
        let takes = |outer, inner| covers(Some(outer), inner);
        assert!(
            takes("*.example.com", "a.example.com") && takes("*.example.com", "a.b.example.com")
        );
        assert!(
            takes("*.example.com", "*.example.com") && takes("*.example.com", "*.b.example.com")
        );
        assert!(
            !takes("*.example.com", "example.com") && !takes("*.b.example.com", "*.example.com")
        );
        assert!(
            !takes("*.example.com", "a.badexample.com") && !takes("a.example.com", "*.example.com")
        );
        assert!(covers(None, "a") && covers(None, "*.a"));
    }

    #[test]
    fn what_both_take_is_the_narrower() {
        let both = intersection;
        assert_eq!(
            both("*.example.com", "a.example.com"),
            Some("a.example.com")
        );
        assert_eq!(
            both("a.example.com", "*.example.com"),
            Some("a.example.com")
        );
        assert_eq!(both("*.com", "*.example.com"), Some("*.example.com"));
        assert_eq!(both("a.com", "b.com"), None);
        assert_eq!(both("*.a.com", "*.b.com"), None);
    }

    #[test]
    fn the_narrower_come_first() {
        let mut names = [
            None,
            Some("*.com"),
            Some("a.com"),
            Some("*.a.com"),
            Some("b.a.com"),
        ];
        names.sort_by_key(|name| rank(*name));
        assert_eq!(
            names,
            [
                Some("b.a.com"),
                Some("a.com"),
                Some("*.a.com"),
                Some("*.com"),
                None
            ]
        );
    }
}
