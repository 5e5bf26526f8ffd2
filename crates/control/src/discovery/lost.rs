//! A store that was never told anything knows nothing, and what it doesn't know it can't have deleted. A data plane that comes
//! back with configuration of another store (the data directory was lost, or is the wrong one) is told nothing until this
//! store covers what it has in use, or until somebody changes this store: it goes on by its last configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use phalanx_xds::server::sotw_version;
use phalanx_xds::{Kind, Snapshot};
use tokio::time::Instant;

use super::fleet::Refused;
use super::message::Message;
use crate::snapshot::Published;

/// What a peer said it has in use when it opened its stream.
#[derive(Debug)]
pub struct Lost {
    claims: BTreeMap<Kind, Claim>,
    opened: Instant,
    /// It is told everything from now on.
    is_over: bool,
}

/// Of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Version by name.
    Delta(Vec<(String, String)>),
    /// The version of all that was asked for; no names: everything.
    Sotw {
        version: String,
        names: BTreeSet<String>,
    },
}

impl Default for Lost {
    fn default() -> Self {
        Self {
            claims: BTreeMap::new(),
            opened: Instant::now(),
            is_over: false,
        }
    }
}

impl Lost {
    /// What a request says is held; the first of each kind can.
    pub fn hear<M: Message>(&mut self, published: &Published, only: Option<Kind>, message: &M) {
        if !self.is_over
            && published.world.knows_nothing()
            && let Some(claim) = message.claim()
            && let Some(kind) = only.or_else(|| Kind::parse(message.answer().type_url))
        {
            self.claims.entry(kind).or_insert(claim);
        }
    }

    /// Whether the peer is to be told nothing yet. Once it was told something, never again.
    pub fn holds(&mut self, published: &Published, snapshot: &Snapshot) -> bool {
        self.is_over |= self.claims.is_empty()
            || !published.world.knows_nothing()
            || (self.opened.elapsed() >= QUIET && self.is_covered(snapshot));
        if self.is_over {
            self.claims = BTreeMap::new();
        }
        !self.is_over
    }

    /// Whether it is told nothing for longer than a reconnect takes.
    pub fn is_stuck(&self) -> bool {
        !self.is_over && !self.claims.is_empty() && self.opened.elapsed() >= SETTLE
    }

    /// When to look again although nothing changed.
    pub fn look_at(&self) -> Option<Instant> {
        let times = [QUIET, SETTLE].map(|after| self.opened + after);
        let now = Instant::now();
        let next = times.into_iter().find(|at| *at > now);
        next.filter(|_| !self.is_over && !self.claims.is_empty())
    }

    /// For the status; the peer itself refused nothing.
    pub fn told() -> Refused {
        Refused {
            resource: "everything".to_owned(),
            rule: String::new(),
            message: MESSAGE.to_owned(),
            since_revision: 0,
        }
    }

    fn is_covered(&self, snapshot: &Snapshot) -> bool {
        let settled = self.opened.elapsed() >= SETTLE;
        self.claims
            .iter()
            // After a while whoever lives is registered again.
            .filter(|(kind, _)| **kind != Kind::Endpoints || !settled)
            .all(|(kind, claim)| claim.is_covered(*kind, snapshot))
    }
}

impl Claim {
    fn is_covered(&self, kind: Kind, snapshot: &Snapshot) -> bool {
        match self {
            Self::Delta(held) => held.iter().all(|(name, version)| {
                let known = snapshot.get(kind, name);
                known.is_some_and(|known| known.version == *version)
            }),
            Self::Sotw { version, names } => {
                let is_asked = |name: &String| names.is_empty() || names.contains(name);
                let known = snapshot.iter(kind).filter(|known| is_asked(&known.name));
                sotw_version(known) == *version
            }
        }
    }
}

/// Claims come kind by kind: so long for the last of them.
const QUIET: Duration = Duration::from_millis(200);
/// So long after its stream opened, a peer's endpoints are waited for: all sidecars register again within seconds.
const SETTLE: Duration = Duration::from_secs(5);
const MESSAGE: &str = "kept as it was: the store of this control plane is empty and does not know what this proxy has in use (restore a backup, or apply all documents at once; the first change makes this store the truth)";

#[cfg(test)]
mod tests;
