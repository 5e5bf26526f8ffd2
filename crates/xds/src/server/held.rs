//! What one client may hold under one name: the version it acknowledged last, and whatever an unclear refusal left in
//! doubt. "Sent" never counts as "has it".

use std::sync::Arc;

use crate::kind::Kind;
use crate::snapshot::Encoded;

/// More than this many doubts under one name are folded into "anything, or nothing".
const DOUBTS_MAX: usize = 4;

/// A version that a client has or may have.
#[derive(Clone, Debug)]
pub(super) enum Version {
    /// This session sent it or found it in a snapshot.
    Known(Arc<Encoded>),
    /// A reconnecting client says so; what it names is unknown, so it may name anything.
    Claimed(String),
}

impl Version {
    pub(super) fn hash(&self) -> &str {
        match self {
            Self::Known(resource) => &resource.version,
            Self::Claimed(hash) => hash,
        }
    }
}

/// One step of a response: the new version of a name, or its removal.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) name: String,
    pub(super) put: Option<Arc<Encoded>>,
}

impl Change {
    /// Empty for a removal.
    pub(super) fn version(&self) -> &str {
        self.put
            .as_ref()
            .map_or("", |resource| resource.version.as_str())
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Held {
    acked: Option<Version>,
    /// Refused together with others, so each may or may not have been applied; `None` stands for a removal.
    doubts: Vec<Option<Version>>,
}

impl Held {
    pub(super) fn claimed(version: String) -> Self {
        Self {
            acked: Some(Version::Claimed(version)),
            doubts: Vec::new(),
        }
    }

    pub(super) fn acked(resource: Arc<Encoded>) -> Self {
        Self {
            acked: Some(Version::Known(resource)),
            doubts: Vec::new(),
        }
    }

    /// The last acknowledged one, if its bytes are known.
    pub(super) fn last_good(&self) -> Option<&Arc<Encoded>> {
        match &self.acked {
            Some(Version::Known(resource)) => Some(resource),
            _ => None,
        }
    }

    /// Whether the client holds exactly this version.
    pub(super) fn is_surely(&self, version: &str) -> bool {
        self.doubts.is_empty()
            && self
                .acked
                .as_ref()
                .is_some_and(|acked| acked.hash() == version)
    }

    /// The version that the client holds, if that is certain.
    pub(super) fn sure_version(&self) -> Option<&str> {
        let acked = self.acked.as_ref().filter(|_| self.doubts.is_empty());
        acked.map(Version::hash)
    }

    /// The last acknowledged version, whatever is in doubt.
    pub(super) fn acked_version(&self) -> Option<&str> {
        self.acked.as_ref().map(Version::hash)
    }

    /// Whether the client holds it in some version.
    pub(super) fn is_present(&self) -> bool {
        self.acked.is_some() && self.doubts.iter().all(Option::is_some)
    }

    /// Everything it may be.
    pub(super) fn versions(&self) -> impl Iterator<Item = &Version> {
        self.acked.iter().chain(self.doubts.iter().flatten())
    }

    /// Whether whatever the client holds names `name` for certain.
    pub(super) fn surely_names(&self, name: &str) -> bool {
        self.is_present()
            && self
                .versions()
                .all(|version| matches!(version, Version::Known(resource) if names(resource, name)))
    }

    /// The client may have applied `change`.
    pub(super) fn doubt(&mut self, change: &Change) {
        let known =
            |doubt: &Option<Version>| doubt.as_ref().map_or("", Version::hash) == change.version();
        if self.doubts.iter().any(known) {
            return;
        }
        if self.doubts.len() >= DOUBTS_MAX {
            self.doubts = vec![None, Some(Version::Claimed(String::from("?")))];
        }
        self.doubts.push(change.put.clone().map(Version::Known));
    }

    /// The client did not apply the change of this version.
    pub(super) fn absolve(&mut self, version: &str) {
        self.doubts
            .retain(|doubt| doubt.as_ref().map_or("", Version::hash) != version);
    }

    /// The client holds what it acknowledged last, after all. False when that is nothing.
    pub(super) fn settle(&mut self) -> bool {
        self.doubts.clear();
        self.acked.is_some()
    }

    /// A claimed version turns out to be this one.
    pub(super) fn adopt(&mut self, resource: &Arc<Encoded>) {
        if matches!(&self.acked, Some(Version::Claimed(hash)) if *hash == resource.version) {
            self.acked = Some(Version::Known(Arc::clone(resource)));
        }
    }

    /// Neither acknowledged nor in doubt.
    pub(super) fn is_nothing(&self) -> bool {
        self.acked.is_none() && self.doubts.is_empty()
    }
}

/// What `resource` names; a cluster its endpoint set, which has the same name and does not stand among its `refs`.
pub(super) fn named_by(resource: &Encoded) -> impl Iterator<Item = &str> {
    let own = (resource.kind == Kind::Cluster).then_some(resource.name.as_str());
    resource.refs.iter().map(String::as_str).chain(own)
}

fn names(resource: &Encoded, name: &str) -> bool {
    resource
        .refs
        .binary_search_by(|probe| probe.as_str().cmp(name))
        .is_ok()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn routes(body: &'static str, refs: &[&str]) -> Arc<Encoded> {
        let refs = refs.iter().map(|r| String::from(*r)).collect();
        Arc::new(Encoded::new(
            Kind::Routes,
            "r",
            Bytes::from_static(body.as_bytes()),
            refs,
        ))
    }

    fn may_name(held: &Held, name: &str) -> bool {
        held.versions().any(|version| match version {
            Version::Known(resource) => names(resource, name),
            Version::Claimed(_) => true,
        })
    }

    fn put(resource: &Arc<Encoded>) -> Change {
        Change {
            name: "r".into(),
            put: Some(Arc::clone(resource)),
        }
    }

    #[test]
    fn doubt_makes_every_possible_version_count() {
        let (old, new) = (routes("1", &["a", "b"]), routes("2", &["b", "c"]));
        let mut held = Held::acked(Arc::clone(&old));
        assert!(held.is_surely(&old.version) && held.surely_names("a"));
        held.doubt(&put(&new));
        assert!(!held.is_surely(&old.version) && !held.is_surely(&new.version));
        assert!(may_name(&held, "a") && may_name(&held, "c"));
        assert!(held.surely_names("b") && !held.surely_names("a"));
        held.absolve(&new.version);
        assert!(held.is_surely(&old.version));
    }

    #[test]
    fn a_refused_removal_leaves_presence_in_doubt() {
        let old = routes("1", &["a"]);
        let mut held = Held::acked(old);
        held.doubt(&Change {
            name: "r".into(),
            put: None,
        });
        assert!(!held.is_present() && may_name(&held, "a") && !held.surely_names("a"));
    }

    #[test]
    fn endless_doubts_are_bounded() {
        let mut held = Held::acked(routes("0", &["a"]));
        for body in ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11"] {
            held.doubt(&put(&routes(body, &["a"])));
        }
        assert!(held.doubts.len() <= DOUBTS_MAX + 1);
        assert!(may_name(&held, "anything") && !held.is_present());
    }

    #[test]
    fn a_claim_may_name_anything_until_it_is_adopted() {
        let resource = routes("1", &["a"]);
        let mut held = Held::claimed(resource.version.clone());
        assert!(held.is_surely(&resource.version) && may_name(&held, "z"));
        held.adopt(&resource);
        assert!(!may_name(&held, "z") && held.last_good().is_some());
    }
}
