//! Make before break, across kinds: what a client must have acknowledged before it may get or lose a resource.
//!
//! References run Listener → Routes, Listener and Routes → Cluster → Endpoints, Listener and Cluster → Secret. A put waits
//! for what it names, a removal for whatever may still name it. Sending all at once lost 34 of 7,735 requests on Envoy, waiting for ACKs
//! none.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::held::{Held, Version, named_by};
use super::kind_state::KindState;
use crate::kind::Kind;
use crate::snapshot::{Encoded, Snapshot};

/// How long make before break waits for a client, in ms: one that does not answer, for whatever reason, must not keep
/// the other kinds from going on. Envoy answers within 5 ms unless it is stuck.
pub const PATIENCE_MS: u64 = 5_000;
/// How long a resource waits for what it names on a stream of one kind, where no ACK of the others is seen, in ms: enough
/// for them to arrive, and less than [`PATIENCE_MS`], after which what nothing names any more is removed.
pub const SETTLE_MS: u64 = 1_000;
/// How long a client that came back may keep its clusters to itself: Envoy's cluster warms for 15 s at most.
pub const WARMING_MS: u64 = 20_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Gate {
    Open,
    /// Until the client answers or asks, with patience for so many ms.
    Wait(u64),
    /// Until the client answers what is under way, however long that takes.
    Answer,
    /// For as long as it takes: going on would break what works.
    Hold,
}

/// What every decision looks at.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) target: &'a Snapshot,
    pub(super) kinds: &'a [KindState; Kind::ALL.len()],
    /// The stream carries one kind: what the client holds of the others is unknown, so time stands in for their ACKs.
    pub(super) alone: bool,
    /// See [`super::Session::trust_order`].
    pub(super) ordered: bool,
    /// State of the world: what a client holds from an earlier stream is told by name at most.
    pub(super) whole: bool,
    /// Since the session was polled first.
    pub(super) age_ms: u64,
}

impl<'a> View<'a> {
    pub(super) fn of(&self, kind: Kind) -> &'a KindState {
        &self.kinds[kind.index()]
    }

    /// Whether the client may get `resource` now, in place of `held`.
    pub(super) fn put(&self, resource: &Encoded, held: Option<&Held>) -> Gate {
        if resource.kind == Kind::Cluster
            && let Some(ms) = self.would_drop_routed_clusters()
        {
            return Gate::Wait(ms);
        }
        let names_clusters = matches!(resource.kind, Kind::Listener | Kind::Routes);
        let ready = |name: &String| {
            let cluster = self.target.get(Kind::Cluster, name);
            cluster.is_none_or(|cluster| self.cluster_ready(cluster, held))
        };
        let has_clusters = !names_clusters || resource.refs.iter().all(ready);
        if has_clusters && resource.secrets.iter().all(|name| self.secret_ready(name)) {
            return Gate::Open;
        }
        // Patience is for a client that may have what it was sent, not for what it can't have.
        if names_clusters && held.is_some() && resource.refs.iter().any(|n| self.is_unsent(n)) {
            return Gate::Answer;
        }
        Gate::Wait(match self.clusters_are_unheard() {
            _ if self.alone => SETTLE_MS,
            Some(ms) => ms,
            None => PATIENCE_MS,
        })
    }

    /// A secret that the client asks for and could have comes first. Most ask only once they know who names it, and keep
    /// that one warming meanwhile.
    fn secret_ready(&self, name: &str) -> bool {
        let secrets = self.of(Kind::Secret);
        let Some(secret) = self.target.get(Kind::Secret, name) else {
            return true;
        };
        !secrets.wants(name)
            || secrets.held.get(name).is_some_and(Held::is_present)
            || secrets.is_refused(name, &secret.version)
    }

    /// Whether the client has no version of a cluster, or is just losing it, and gets none before it answers what is under
    /// way.
    fn is_unsent(&self, name: &str) -> bool {
        let clusters = self.of(Kind::Cluster);
        let target = self.target.get(Kind::Cluster, name);
        target.is_some_and(|target| !clusters.is_refused(name, &target.version))
            && clusters.wants(name)
            && clusters.outstanding.is_some()
            && !clusters.is_on_its_way(name, None)
            && (clusters.is_being_removed(name)
                || !clusters.held.get(name).is_some_and(Held::is_present))
    }

    /// Whether a resource that names `cluster` may replace `held`. A cluster that the client does not ask for, or has
    /// refused, counts as ready: one bad cluster must not freeze all routes.
    fn cluster_ready(&self, cluster: &Encoded, held: Option<&Held>) -> bool {
        let clusters = self.of(Kind::Cluster);
        let (name, version) = (&cluster.name, &cluster.version);
        if self.alone {
            // Whatever replaces nothing can break nothing.
            return held.is_none_or(|held| held.surely_names(name));
        }
        if self.clusters_are_unheard().is_some() {
            let endpoints = self.of(Kind::Endpoints).subscription.as_ref();
            return endpoints.is_some_and(|endpoints| endpoints.wants(name));
        }
        if !clusters.wants(name) || clusters.is_refused(name, version) {
            return true;
        }
        let on_its_way = || self.ordered && clusters.is_on_its_way(name, Some(version));
        let there = clusters
            .held
            .get(name)
            .is_some_and(|c| c.is_surely(version))
            || on_its_way();
        let named_before = held.is_some_and(|held| held.surely_names(name));
        there
            && !clusters.is_being_removed(name)
            && (named_before
                || named_by(cluster).all(|set| self.endpoints_ready(set, held.is_some())))
    }

    /// For how long, in ms: the client came back with routes and has not told of its clusters, or was not told of any yet.
    /// Envoy asks for clusters only when none of them is warming; what it holds shows in the endpoints it asks for. One that
    /// asks for neither has clusters of its own.
    fn clusters_are_unheard(&self) -> Option<u64> {
        let clusters = self.of(Kind::Cluster);
        let came_back = |kind| self.of(kind).reconnected;
        let unheard = match &clusters.subscription {
            _ if self.alone || self.ordered => false,
            None => came_back(Kind::Routes) || came_back(Kind::Listener),
            Some(_) => self.whole && clusters.reconnected && clusters.answer_due,
        };
        let is_asked = self.of(Kind::Endpoints).subscription.is_some();
        unheard.then(|| self.left(is_asked)).flatten()
    }

    /// For how long, in ms: the first full state of clusters after a client came back takes away those that went meanwhile.
    /// Its old routes may still name them, so new routes go first, if they can do with clusters that it has.
    fn would_drop_routed_clusters(&self) -> Option<u64> {
        let clusters = self.of(Kind::Cluster);
        if !self.whole || self.alone || !clusters.reconnected || !clusters.answer_due {
            return None;
        }
        let Some(endpoints) = &self.of(Kind::Endpoints).subscription else {
            return self.left(false);
        };
        let went = |name: &String| self.target.get(Kind::Cluster, name).is_none();
        if !endpoints.names().iter().any(went) {
            return None;
        }
        let is_held = |name: &String| went(name) || endpoints.wants(name);
        let goes_first = |kind: Kind| {
            let state = self.of(kind);
            let wanted = || self.target.iter(kind).filter(|r| state.wants(&r.name));
            let is_there = |r: &Arc<Encoded>| {
                let held = state.held.get(&r.name);
                held.is_some_and(|held| held.is_surely(&r.version))
                    || state.is_refused(&r.name, &r.version)
            };
            wanted().all(|r| r.refs.iter().all(is_held)) && !wanted().all(is_there)
        };
        let [listeners, routes] = [Kind::Listener, Kind::Routes];
        if goes_first(listeners) || goes_first(routes) {
            return self.left(true);
        }
        let unasked = |kind| self.of(kind).subscription.is_none();
        (unasked(listeners) || unasked(routes))
            .then(|| self.left(false))
            .flatten()
    }

    /// What is left of the time that a client which came back has for asking: all its first requests come at once, unless
    /// some of what it has `may_warm`.
    fn left(&self, may_warm: bool) -> Option<u64> {
        let all = if may_warm { WARMING_MS } else { SETTLE_MS };
        all.checked_sub(self.age_ms).filter(|left| *left > 0)
    }

    /// Whether a cluster that is new to a route has endpoints. `replacing`: the client has an older version of the route
    /// that works, so it may also wait for endpoints that the snapshot does not have yet.
    fn endpoints_ready(&self, name: &str, replacing: bool) -> bool {
        let state = self.of(Kind::Endpoints);
        if state.subscription.is_none() || state.held.get(name).is_some_and(Held::is_present) {
            return true;
        }
        if self.ordered && state.is_on_its_way(name, None) {
            return true;
        }
        match self.target.get(Kind::Endpoints, name) {
            Some(endpoints) => state.is_refused(name, &endpoints.version),
            None => !(replacing && state.wants(name)),
        }
    }

    /// For each name of `kind` that something names: how long its removal must wait.
    pub(super) fn removals(&self, kind: Kind) -> Removals<'a> {
        let mut removals = Removals::default();
        if self.alone && !referrers(kind).is_empty() {
            removals.any = Gate::Wait(PATIENCE_MS);
        }
        // Envoy takes the removal of a secret as "ready without": the listener opens, and handshakes fail.
        if kind == Kind::Secret {
            removals.any = Gate::Hold;
            return removals;
        }
        for &referrer in referrers(kind) {
            // A client that reconnects asks for one kind after the other, and may hold referrers it has yet to tell of. What
            // it says may be late by as much as keepalive lets a connection be silent.
            let unheard = !self.alone && self.of(referrer).subscription.is_none();
            if self.of(kind).reconnected && unheard {
                removals.any = Gate::Wait(WARMING_MS);
            }
            for resource in self.target.iter(referrer) {
                removals.raise(resource, Gate::Hold);
            }
            self.raise_held(referrer, &mut removals);
        }
        removals
    }

    fn raise_held(&self, referrer: Kind, removals: &mut Removals<'a>) {
        let state = self.of(referrer);
        let mut upper = None;
        for (name, held) in state.held.iter() {
            let target = self.target.get(referrer, name);
            if target.is_some_and(|target| held.is_surely(&target.version)) {
                continue;
            }
            let gate = match target {
                Some(target) if state.is_refused(name, &target.version) => Gate::Hold,
                // What replaces it is under way or comes after that: an answer that is late costs a cluster too many.
                Some(_) if state.outstanding.is_some() => Gate::Answer,
                Some(_) => Gate::Wait(PATIENCE_MS),
                None if state.is_refused(name, "") => Gate::Hold,
                None => upper
                    .get_or_insert_with(|| self.removals(referrer))
                    .gate(name)
                    .max(Gate::Wait(PATIENCE_MS)),
            };
            for version in held.versions() {
                match version {
                    Version::Known(resource) => removals.raise(resource, gate),
                    Version::Claimed(_) if referrer == Kind::Cluster => {
                        removals.raise_name(name, gate);
                    }
                    Version::Claimed(_) => removals.any = removals.any.max(gate),
                }
            }
        }
        for change in state.outstanding.iter().flat_map(|out| &out.changes) {
            if let Some(resource) = &change.put {
                removals.raise(resource, Gate::Answer);
            }
        }
    }
}

/// How long removals of one kind must wait.
pub(super) struct Removals<'a> {
    named: BTreeMap<&'a str, Gate>,
    /// For every name, because a client holds something of unknown content.
    any: Gate,
}

impl Default for Removals<'_> {
    fn default() -> Self {
        Self {
            named: BTreeMap::new(),
            any: Gate::Open,
        }
    }
}

impl<'a> Removals<'a> {
    pub(super) fn gate(&self, name: &str) -> Gate {
        self.named
            .get(name)
            .copied()
            .unwrap_or(Gate::Open)
            .max(self.any)
    }

    fn raise(&mut self, resource: &'a Encoded, gate: Gate) {
        for name in named_by(resource) {
            self.raise_name(name, gate);
        }
    }

    fn raise_name(&mut self, name: &'a str, gate: Gate) {
        let entry = self.named.entry(name).or_insert(Gate::Open);
        *entry = gate.max(*entry);
    }
}

/// Whose resources name those of `kind`.
fn referrers(kind: Kind) -> &'static [Kind] {
    match kind {
        Kind::Cluster => &[Kind::Listener, Kind::Routes],
        Kind::Endpoints => &[Kind::Cluster],
        Kind::Routes => &[Kind::Listener],
        // Never removed.
        Kind::Secret => &[],
        Kind::Listener => &[],
    }
}
