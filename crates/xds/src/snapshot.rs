//! A snapshot: all resources of one node at one revision of the store, encoded. The unit of consistency.
//!
//! It is immutable; a new one shares what did not change, so that comparing by version costs no encoding.

use std::sync::Arc;

use bytes::Bytes;
use phalanx_model::SharedMap;
use xxhash_rust::xxh3::xxh3_64;

use crate::kind::Kind;

/// One resource, ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    pub kind: Kind,
    pub name: String,
    /// 16 hex digits of XXH3-64 over `body`, which is canonical: same content, same version, on every replica.
    pub version: String,
    /// The value of the `Any`.
    pub body: Bytes,
    /// What it names, sorted, each once: the clusters of [`Kind::Routes`], the cluster or route table of a
    /// [`Kind::Listener`]. (A cluster's endpoint set has the cluster's name and is not listed.)
    pub refs: Vec<String>,
    /// The secrets that a [`Kind::Cluster`] or [`Kind::Listener`] takes over SDS, sorted, each once.
    pub secrets: Vec<String>,
}

impl Encoded {
    /// Derives the version from `body` and sorts `refs`.
    pub fn new(kind: Kind, name: impl Into<String>, body: Bytes, mut refs: Vec<String>) -> Self {
        refs.sort_unstable();
        refs.dedup();
        Self {
            kind,
            name: name.into(),
            version: version(&body),
            body,
            refs,
            secrets: Vec::new(),
        }
    }

    /// The same, taking these secrets over SDS.
    #[must_use]
    pub fn with_secrets(mut self, mut secrets: Vec<String>) -> Self {
        secrets.sort_unstable();
        secrets.dedup();
        self.secrets = secrets;
        self
    }
}

/// 16 hex digits of XXH3-64.
pub fn version(body: &[u8]) -> String {
    format!("{:016x}", xxh3_64(body))
}

const KINDS: usize = Kind::ALL.len();

/// Resources of one kind by name; snapshots share what does not change.
pub type Resources = SharedMap<String, Arc<Encoded>>;

#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Of the store.
    pub revision: u64,
    kinds: [Resources; KINDS],
}

impl Snapshot {
    /// Without any resource.
    pub fn empty(revision: u64) -> Self {
        Self {
            revision,
            ..Self::default()
        }
    }

    pub fn builder(revision: u64) -> SnapshotBuilder {
        SnapshotBuilder {
            revision,
            kinds: Default::default(),
        }
    }

    /// From maps that other snapshots may share, in the order of [`Kind::ALL`]; each resource under its own name.
    pub fn from_kinds(revision: u64, kinds: [Resources; KINDS]) -> Self {
        Self { revision, kinds }
    }

    pub fn get(&self, kind: Kind, name: &str) -> Option<&Arc<Encoded>> {
        self.kinds[kind.index()].get(name)
    }

    /// Sorted by name.
    pub fn iter(&self, kind: Kind) -> impl Iterator<Item = &Arc<Encoded>> {
        self.kinds[kind.index()].values()
    }

    pub fn len(&self, kind: Kind) -> usize {
        self.kinds[kind.index()].len()
    }

    /// Whether it holds nothing of any kind.
    pub fn is_empty(&self) -> bool {
        self.kinds.iter().all(|kind| kind.is_empty())
    }

    /// The same resources under another revision: the store changed, nothing of this node did.
    #[must_use]
    pub fn at(&self, revision: u64) -> Self {
        Self {
            revision,
            kinds: self.kinds.clone(),
        }
    }

    /// All of one kind, to be shared.
    pub fn resources(&self, kind: Kind) -> &Resources {
        &self.kinds[kind.index()]
    }

    /// Whether both have the very same resources of `kind`, shared, which takes no comparing.
    pub fn shares(&self, kind: Kind, other: &Self) -> bool {
        let (one, two) = (&self.kinds[kind.index()], &other.kinds[kind.index()]);
        one.same(two) || (one.is_empty() && two.is_empty())
    }

    /// Whether both hold the same resources in the same versions, at whatever revision.
    pub fn same_content(&self, other: &Self) -> bool {
        self.kinds.iter().zip(&other.kinds).all(|(a, b)| {
            a.same(b)
                || (a.len() == b.len()
                    && a.iter()
                        .zip(b.iter())
                        .all(|((n, x), (m, y))| n == m && x.version == y.version))
        })
    }
}

/// Collects resources; of two with the same kind and name the later one stays.
#[derive(Debug)]
pub struct SnapshotBuilder {
    revision: u64,
    kinds: [Resources; KINDS],
}

impl SnapshotBuilder {
    #[must_use]
    pub fn with(mut self, resource: impl Into<Arc<Encoded>>) -> Self {
        self.insert(resource);
        self
    }

    pub fn insert(&mut self, resource: impl Into<Arc<Encoded>>) {
        let resource = resource.into();
        self.kinds[resource.kind.index()].insert(resource.name.clone(), resource);
    }

    pub fn build(self) -> Snapshot {
        Snapshot {
            revision: self.revision,
            kinds: self.kinds,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(kind: Kind, name: &str, body: &'static [u8]) -> Encoded {
        Encoded::new(kind, name, Bytes::from_static(body), Vec::new())
    }

    #[test]
    fn version_is_a_function_of_the_body_alone() {
        let one = encoded(Kind::Cluster, "a", b"x");
        assert_eq!(one.version, encoded(Kind::Routes, "b", b"x").version);
        assert_ne!(one.version, encoded(Kind::Cluster, "a", b"y").version);
        // Fixed, because replicas of different builds must agree.
        assert_eq!(version(b""), "2d06800538d394c2");
    }

    #[test]
    fn refs_are_sorted_and_unique() {
        let refs = ["b", "a", "b"].map(String::from).to_vec();
        assert_eq!(
            Encoded::new(Kind::Routes, "r", Bytes::new(), refs).refs,
            ["a", "b"]
        );
    }

    #[test]
    fn a_snapshot_is_read_by_kind_and_name() {
        let snapshot = Snapshot::builder(7)
            .with(encoded(Kind::Cluster, "b", b"1"))
            .with(encoded(Kind::Cluster, "a", b"2"))
            .with(encoded(Kind::Routes, "a", b"3"))
            .build();
        assert_eq!(snapshot.revision, 7);
        let names: Vec<_> = snapshot
            .iter(Kind::Cluster)
            .map(|r| r.name.as_str())
            .collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(
            snapshot.get(Kind::Routes, "a").map(|r| r.body.as_ref()),
            Some(&b"3"[..])
        );
        assert!(snapshot.get(Kind::Endpoints, "a").is_none());
        assert_eq!(snapshot.len(Kind::Listener), 0);
        assert!(!snapshot.is_empty() && Snapshot::empty(1).is_empty());
    }

    #[test]
    fn content_is_compared_by_version_whatever_the_revision() {
        let one = Snapshot::builder(1)
            .with(encoded(Kind::Cluster, "a", b"1"))
            .build();
        let same = Snapshot::builder(2)
            .with(encoded(Kind::Cluster, "a", b"1"))
            .build();
        let other = Snapshot::builder(2)
            .with(encoded(Kind::Cluster, "a", b"2"))
            .build();
        assert!(one.same_content(&same) && one.same_content(&one.at(9)));
        assert!(!one.same_content(&other) && !one.same_content(&Snapshot::empty(1)));
    }
}
