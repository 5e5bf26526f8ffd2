//! What a stream asks for by name, where it gets no more than that: what it receives of another world follows from it.

use std::collections::BTreeSet;

use phalanx_xds::server::Session;
use phalanx_xds::{Kind, Snapshot};

use super::demand::{DEMAND, Demand, Names, resolve};
use super::proxyless::Proxyless;
use super::{Node, Published};

/// By kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Asks(BTreeSet<(Kind, String)>);

impl Names for Asks {
    fn names(&self, kind: Kind) -> impl Iterator<Item = &str> {
        let of_kind = self.0.iter().filter(move |(of, _)| *of == kind);
        of_kind.map(|(_, name)| name.as_str())
    }
}

impl FromIterator<(Kind, String)> for Asks {
    fn from_iter<T: IntoIterator<Item = (Kind, String)>>(names: T) -> Self {
        Self(names.into_iter().collect())
    }
}

impl Asks {
    pub fn of(session: &Session) -> Self {
        let names = |kind| session.names(kind).map(move |name| (kind, name.to_owned()));
        Kind::ALL.into_iter().flat_map(names).collect()
    }

    pub fn iter(&self) -> impl Iterator<Item = &(Kind, String)> {
        self.0.iter()
    }

    /// What it leads to in that world.
    pub fn snapshot(&self, published: &Published, node: &Node) -> Snapshot {
        match Proxyless::of(node) {
            Some(mut proxyless) => proxyless.snapshot(published, node, self),
            None => Demand::of(node).snapshot(published, node, self),
        }
    }
}

/// The host, as `<service>.<namespace>.svc.mesh:<port>`, that a table is of when a node in `namespace` asks for it.
pub fn host(table: &str, namespace: &str, published: &Published) -> Option<String> {
    let authority = table.strip_prefix(DEMAND).unwrap_or(table);
    let (service, port) = resolve(authority, namespace, &published.mesh.catalog)?;
    Some(format!("{}:{port}", service.host()))
}
