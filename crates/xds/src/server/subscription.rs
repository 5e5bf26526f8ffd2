//! What one client asks for of one kind: everything, some names, or nothing. The two protocols say it differently.

use std::collections::BTreeSet;

use crate::kind::Kind;

const WILDCARD: &str = "*";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Subscription {
    wildcard: bool,
    names: BTreeSet<String>,
    /// Names, or `*`, were sent on this stream: from then on no name means nothing.
    explicit: bool,
    /// `*` is understood though the kind is commonly asked for by name only.
    pub(super) private_wildcard: bool,
}

impl Subscription {
    pub(super) fn is_wildcard(&self) -> bool {
        self.wildcard
    }

    /// Those asked for by name.
    pub(super) fn names(&self) -> &BTreeSet<String> {
        &self.names
    }

    pub(super) fn wants(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    /// Delta: applies one request, `first` of its kind on the stream. Returns the names that must be told anew although
    /// the client may be known to hold them: it has forgotten them, or cannot know that `*` still covers them.
    pub(super) fn change(
        &mut self,
        kind: Kind,
        first: bool,
        subscribe: Vec<String>,
        unsubscribe: &[String],
    ) -> Vec<String> {
        if first && subscribe.is_empty() {
            self.wildcard = kind.has_wildcard();
        }
        let mut anew = Vec::new();
        for name in unsubscribe {
            if name == WILDCARD {
                self.wildcard = false;
            } else if self.names.remove(name) && self.wildcard {
                anew.push(name.clone());
            }
        }
        for name in subscribe {
            self.explicit = true;
            if name == WILDCARD {
                self.wildcard |= kind.has_wildcard() || self.private_wildcard;
            } else if !self.names.insert(name.clone()) {
                anew.push(name);
            }
        }
        anew
    }

    /// State of the world: `names` replace the subscription. False when nothing changed.
    pub(super) fn replace(&mut self, kind: Kind, names: Vec<String>) -> bool {
        let mut next = Self {
            explicit: self.explicit || !names.is_empty(),
            ..Self::default()
        };
        next.names = names.into_iter().collect();
        let asked = next.names.remove(WILDCARD);
        next.wildcard = kind.has_wildcard() && (asked || !next.explicit);
        let changed = next.wildcard != self.wildcard || next.names != self.names;
        *self = next;
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| String::from(*name)).collect()
    }

    #[test]
    fn no_names_at_first_mean_everything_and_later_nothing() {
        let mut sotw = Subscription::default();
        assert!(sotw.replace(Kind::Cluster, vec![]) && sotw.is_wildcard());
        assert!(sotw.replace(Kind::Cluster, list(&["a"])) && !sotw.wants("b"));
        assert!(sotw.replace(Kind::Cluster, vec![]) && !sotw.wants("a") && !sotw.is_wildcard());
        assert!(!sotw.replace(Kind::Cluster, vec![]));
    }

    #[test]
    fn a_star_stands_for_everything_beside_names() {
        let mut sotw = Subscription::default();
        sotw.replace(Kind::Listener, list(&["*", "a"]));
        assert!(sotw.wants("b") && sotw.names().len() == 1);
        let mut delta = Subscription::default();
        delta.change(Kind::Listener, true, list(&["*", "a"]), &[]);
        assert!(delta.wants("b"));
        delta.change(Kind::Listener, false, vec![], &list(&["*"]));
        assert!(!delta.wants("b") && delta.wants("a"));
    }

    #[test]
    fn endpoints_routes_and_secrets_have_no_wildcard() {
        for kind in [Kind::Endpoints, Kind::Routes, Kind::Secret] {
            let (mut sotw, mut delta) = (Subscription::default(), Subscription::default());
            sotw.replace(kind, vec![]);
            delta.change(kind, true, list(&["*"]), &[]);
            assert!(!sotw.wants("a") && !delta.wants("a"));
        }
    }

    #[test]
    fn a_name_asked_for_again_is_told_again() {
        let mut delta = Subscription::default();
        assert!(
            delta
                .change(Kind::Endpoints, true, list(&["a"]), &[])
                .is_empty()
        );
        assert_eq!(
            delta.change(Kind::Endpoints, false, list(&["a", "b"]), &[]),
            ["a"]
        );
    }
}
