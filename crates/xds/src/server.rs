//! The xDS server as a socketless state machine: one [`Session`] per stream, delta or state of the world, of all kinds or one.
//!
//! Requests and snapshots go in, `poll` gives responses until there is none. Sockets, nodes and clocks live elsewhere.
//! On a stream of one kind nothing is known of the others, so time stands in for their ACKs ([`SETTLE_MS`],
//! [`PATIENCE_MS`]).
//! Module order: message, progress, inventory, plan, gate, quarantine, kind_state, wire, subscription, held, by_name, blame.

mod blame;
mod by_name;
mod gate;
mod held;
mod inventory;
mod kind_state;
mod message;
mod plan;
mod progress;
mod quarantine;
mod subscription;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::BTreeSet;
use std::sync::Arc;

use phalanx_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use phalanx_proto::google::rpc::Status;

pub use self::blame::MESSAGE_BYTES_MAX;
pub use self::gate::{PATIENCE_MS, SETTLE_MS, WARMING_MS};
pub use self::inventory::{Delivery, Item};
pub use self::message::{
    NAME_BYTES_MAX, NAMES_MAX, Request, Response, SOTW_BYTES_MAX, SessionError, UNSERVED_MAX,
};
pub use self::plan::RESPONSE_BYTES_MAX;
pub use self::progress::{Nack, Pending, Progress};
pub use self::wire::sotw_version;

use self::gate::View;
use self::held::{Change, named_by};
use self::kind_state::{KindState, Outstanding, Refused, Wait, Whole};
use self::message::{check_count, check_names, short};
use self::plan::{Plan, plan};
use self::progress::{nacks, pending};
use crate::kind::Kind;
use crate::snapshot::Snapshot;

/// One stream of one client.
#[derive(Debug)]
pub struct Session {
    protocol: Protocol,
    ordered: bool,
    /// The only kind that is served here; none: all are.
    only: Option<Kind>,
    target: Option<Arc<Snapshot>>,
    kinds: [KindState; Kind::ALL.len()],
    nonce: u64,
    /// When it was polled first.
    opened_ms: Option<u64>,
    /// Types that the client asked for and that are not served.
    unserved: BTreeSet<String>,
    failed: Option<SessionError>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Delta,
    Sotw,
}

impl Session {
    /// For `DeltaAggregatedResources`.
    pub fn delta() -> Self {
        Self::new(Protocol::Delta, None)
    }

    /// State of the world, for `StreamAggregatedResources`.
    pub fn sotw() -> Self {
        Self::new(Protocol::Sotw, None)
    }

    /// For `DeltaClusters` and its like.
    pub fn delta_of(kind: Kind) -> Self {
        Self::new(Protocol::Delta, Some(kind))
    }

    /// For `StreamClusters` and its like.
    pub fn sotw_of(kind: Kind) -> Self {
        Self::new(Protocol::Sotw, Some(kind))
    }

    fn new(protocol: Protocol, only: Option<Kind>) -> Self {
        Self {
            protocol,
            only,
            ordered: false,
            target: None,
            kinds: Kind::ALL.map(KindState::new),
            nonce: 0,
            opened_ms: None,
            unserved: BTreeSet::new(),
            failed: None,
        }
    }

    /// Clusters and listeners go out with this time to live, and are confirmed in time for as long as the session is polled:
    /// a client that hears nothing any more drops them. 0, as at first: they never expire. Of the other kinds Envoy ignores
    /// the end.
    pub fn set_ttl(&mut self, ttl_ms: u64) {
        for kind in [Kind::Cluster, Kind::Listener] {
            self.state(kind).ttl_ms = ttl_ms;
        }
    }

    /// What the client refused on an earlier stream is not sent again in that version. Before the first snapshot.
    pub fn remember(&mut self, nacks: impl IntoIterator<Item = Nack>) {
        for nack in nacks {
            let Some(name) = nack.name else { continue };
            let refused = Refused {
                version: nack.version,
                message: nack.message,
                since_revision: nack.since_revision,
            };
            self.state(nack.kind).refused.insert(name, refused);
        }
    }

    /// The only kind that is served here; none: all are.
    pub fn only(&self) -> Option<Kind> {
        self.only
    }

    /// Types that the client asked for in vain. The others go on: on an aggregated stream there is no other way to refuse one.
    pub fn unserved(&self) -> impl Iterator<Item = &str> {
        self.unserved.iter().map(String::as_str)
    }

    /// Why the stream must be closed although the client did nothing wrong. Then `poll` gives nothing any more.
    pub fn failed(&self) -> Option<&SessionError> {
        self.failed.as_ref()
    }

    /// Everything that the client asks for or holds, by kind and name.
    pub fn inventory(&self) -> impl Iterator<Item = Item> + '_ {
        let asked = self.kinds.iter().filter(|s| s.subscription.is_some());
        asked.flat_map(|state| inventory::items(state, self.target.as_deref()))
    }

    /// Whether the client asks for all of `kind`.
    pub fn is_wildcard(&self, kind: Kind) -> bool {
        let subscription = self.kinds[kind.index()].subscription.as_ref();
        subscription.is_some_and(|s| s.is_wildcard())
    }

    /// The client takes responses one after the other, in the order of the stream, and asks on demand: so what is new
    /// need not wait until what it names is acknowledged (it only has to be sent before), `*` holds for endpoints too, and
    /// asking for more does not take back that a revision was reached. Removals wait as ever. Told before its first
    /// request.
    pub fn trust_order(&mut self) {
        self.ordered = true;
    }

    /// What the client asks for by name.
    pub fn names(&self, kind: Kind) -> impl Iterator<Item = &str> {
        let subscription = self.kinds[kind.index()].subscription.as_ref();
        let names = subscription.into_iter().flat_map(|s| s.names());
        names.map(String::as_str)
    }

    /// Takes in one message of the client. An error ends the session.
    pub fn on_request(&mut self, request: impl Into<Request>) -> Result<(), SessionError> {
        match (self.protocol, request.into()) {
            (Protocol::Delta, Request::Delta(request)) => self.on_delta(request),
            (Protocol::Sotw, Request::Sotw(request)) => self.on_sotw(request),
            _ => Err(SessionError::WrongProtocol),
        }
    }

    /// The newest snapshot replaces an older one, whether or not that was delivered.
    pub fn set_snapshot(&mut self, target: Arc<Snapshot>) {
        let previous = self.target.replace(Arc::clone(&target));
        for state in &mut self.kinds {
            let shared = previous
                .as_ref()
                .is_some_and(|previous| previous.shares(state.kind, &target));
            state.retarget(&target, previous.as_ref().map(|p| p.revision), shared);
        }
        self.prune_resends(&target);
        self.wake();
    }

    /// The next response to send; call until None, after every request and snapshot, and at [`Self::deadline_ms`].
    /// Constant time when nothing changed. `now_ms` is any clock that does not go backwards.
    pub fn poll(&mut self, now_ms: u64) -> Option<Response> {
        let target = self.target.clone()?;
        if self.failed.is_some() {
            return None;
        }
        let opened_ms = *self.opened_ms.get_or_insert(now_ms);
        while let Some(kind) = self.next_ready(now_ms) {
            for state in &mut self.kinds {
                state.adopt_claims(&target);
            }
            let view = View {
                target: &target,
                kinds: &self.kinds,
                alone: self.only.is_some(),
                ordered: self.ordered,
                whole: self.protocol == Protocol::Sotw,
                age_ms: now_ms.saturating_sub(opened_ms),
            };
            let plan = plan(view, kind, now_ms, self.protocol == Protocol::Delta);
            if let Some(response) = self.carry_out(kind, plan, &target, now_ms) {
                return Some(response);
            }
        }
        self.heartbeat(&target, now_ms)
    }

    /// When waiting ends by itself, in the clock of `poll`.
    pub fn deadline_ms(&self) -> Option<u64> {
        let waiting = self
            .kinds
            .iter()
            .filter(|state| state.outstanding.is_none());
        let blocked = waiting.flat_map(|state| state.blocked.values());
        let heartbeats = self.kinds.iter().filter_map(KindState::heartbeat_ms);
        let until = blocked
            .filter(|wait| !wait.is_endless())
            .map(|wait| wait.until_ms);
        until.chain(heartbeats).min()
    }

    pub fn progress(&self) -> Progress {
        let asked = || self.kinds.iter().filter(|s| s.subscription.is_some());
        Progress {
            target: self.target.as_ref().map_or(0, |target| target.revision),
            acked: asked().map(|state| state.reached).min().unwrap_or(0),
            nacks: asked().flat_map(nacks).collect(),
            pending: asked().filter_map(pending).collect(),
        }
    }

    fn on_delta(&mut self, request: DeltaDiscoveryRequest) -> Result<(), SessionError> {
        let Some(kind) = self.kind_of(&request.type_url)? else {
            return Ok(());
        };
        let claims = &request.initial_resource_versions;
        check_count(kind, claims.len())?;
        check_names(kind, claims.keys().chain(claims.values()))?;
        check_names(kind, request.resource_names_subscribe.iter())?;
        let first = self.state(kind).subscription.is_none();
        if !first {
            self.on_answer(kind, &request.response_nonce, request.error_detail.as_ref());
        }
        let revision = self.target.as_ref().map_or(0, |target| target.revision);
        let ordered = self.ordered;
        let clusters_unheard = kind == Kind::Endpoints
            && self.only.is_none()
            && self.kinds[Kind::Cluster.index()].subscription.is_none();
        let state = self.state(kind);
        let mentions = !request.resource_names_subscribe.is_empty()
            || !request.resource_names_unsubscribe.is_empty();
        let subscription = state.subscription.get_or_insert_default();
        subscription.private_wildcard = ordered && kind == Kind::Endpoints;
        let anew = subscription.change(
            kind,
            first,
            request.resource_names_subscribe,
            &request.resource_names_unsubscribe,
        );
        check_count(kind, subscription.names().len())?;
        state.answer_due |= first && subscription.is_wildcard();
        state.resend.extend(anew);
        if first {
            let claimed = request.initial_resource_versions;
            if clusters_unheard {
                // One of its clusters may be warming, for endpoints that were on their way when the stream broke.
                state.resend.extend(claimed.keys().cloned());
            }
            state.claim(claimed);
        }
        if first || mentions {
            let reached = state.reached;
            state.subscription_changed(revision);
            if ordered {
                state.reached = reached;
            }
            self.wake();
        }
        Ok(())
    }

    /// A stale request is ignored as a whole: another one with the full list of names follows it.
    fn on_sotw(&mut self, request: DiscoveryRequest) -> Result<(), SessionError> {
        let Some(kind) = self.kind_of(&request.type_url)? else {
            return Ok(());
        };
        check_count(kind, request.resource_names.len())?;
        check_names(kind, request.resource_names.iter())?;
        let nonce = &request.response_nonce;
        let state = self.state(kind);
        let first = state.subscription.is_none();
        if !first && !nonce.is_empty() && !state.is_latest(nonce) {
            return Ok(());
        }
        if !first {
            self.on_answer(kind, nonce, request.error_detail.as_ref());
        }
        let revision = self.target.as_ref().map_or(0, |target| target.revision);
        let state = self.state(kind);
        let subscription = state.subscription.get_or_insert_default();
        let changed = subscription.replace(kind, request.resource_names);
        state.answer_due |= first && subscription.is_wildcard();
        state.reconnected |= first && !request.version_info.is_empty();
        if first || changed {
            state.subscription_changed(revision);
            self.wake();
        }
        Ok(())
    }

    /// None for a type that is not served. On a stream of one kind the type may be left out.
    fn kind_of(&mut self, type_url: &str) -> Result<Option<Kind>, SessionError> {
        match (Kind::parse(type_url), self.only) {
            (None, Some(served)) if type_url.is_empty() => Ok(Some(served)),
            (Some(asked), Some(served)) if asked != served => {
                Err(SessionError::OtherKind { served, asked })
            }
            (Some(kind), _) => Ok(Some(kind)),
            (None, None) if !type_url.is_empty() => {
                let type_url = short(type_url);
                if self.unserved.len() >= UNSERVED_MAX && !self.unserved.contains(&type_url) {
                    return Err(SessionError::TooManyTypes(type_url));
                }
                self.unserved.insert(type_url);
                Ok(None)
            }
            (None, _) => Err(SessionError::UnknownType(short(type_url))),
        }
    }

    /// Only the nonce of the unanswered response makes a request an answer, and only `error` makes it a refusal.
    fn on_answer(&mut self, kind: Kind, nonce: &str, error: Option<&Status>) {
        let whole = match (self.protocol, kind) {
            (Protocol::Delta, _) => Whole::ChangesOnly,
            (Protocol::Sotw, kind) if kind.has_wildcard() => Whole::OfKind,
            (Protocol::Sotw, _) => Whole::OfNamed,
        };
        let Some(target) = self.target.clone() else {
            return;
        };
        let state = self.state(kind);
        if !state.is_outstanding(nonce) {
            return;
        }
        match error {
            None => state.acknowledge(whole),
            Some(error) => state.refuse(&error.message, &target),
        }
        self.wake();
    }

    /// In push order: the first kind that may send and has a reason to look for something.
    fn next_ready(&self, now_ms: u64) -> Option<Kind> {
        let overdue = |wait: &Wait| wait.is_over(now_ms);
        let ready = |state: &&KindState| {
            state.subscription.is_some()
                && state.outstanding.is_none()
                && (state.dirty || state.blocked.values().any(overdue))
        };
        self.kinds.iter().find(ready).map(|state| state.kind)
    }

    fn carry_out(
        &mut self,
        kind: Kind,
        mut plan: Plan,
        target: &Snapshot,
        now_ms: u64,
    ) -> Option<Response> {
        let protocol = self.protocol;
        let state = self.state(kind);
        plan.note(state);
        if protocol == Protocol::Sotw && !kind.has_wildcard() {
            self.drop_silently(kind, &mut plan);
        }
        let state = self.state(kind);
        // A full state that leaves out what waits would remove it from a client that reconnects.
        let complete_or_late = plan.blocked.is_empty() || plan.impatient;
        let silent = protocol == Protocol::Sotw && state.answer_due && !complete_or_late;
        let greet = state.answer_due && complete_or_late;
        if !silent && (greet || !plan.changes.is_empty()) {
            if let Err(error) = self.check_size(kind, &plan) {
                self.failed = Some(error);
                return None;
            }
            return Some(self.send(kind, plan, target, now_ms));
        }
        if plan.is_complete() {
            state.reached = state.reached.max(target.revision);
        }
        None
    }

    /// The state of the world has no word for the removal of these kinds: the client drops them by itself.
    fn drop_silently(&mut self, kind: Kind, plan: &mut Plan) {
        let state = self.state(kind);
        let before = state.held.len();
        for gone in plan.changes.extract_if(.., |change| change.put.is_none()) {
            state.held.remove(&gone.name);
        }
        if state.held.len() < before {
            self.wake();
        }
    }

    fn send(&mut self, kind: Kind, plan: Plan, target: &Snapshot, now_ms: u64) -> Response {
        self.nonce += 1;
        let (nonce, protocol) = (self.nonce, self.protocol);
        if kind == Kind::Cluster {
            self.endpoints_follow(&plan.changes);
        }
        let state = self.state(kind);
        let response = match protocol {
            Protocol::Delta => {
                let (ttl_ms, revision) = (state.ttl_ms, target.revision);
                Response::Delta(wire::delta(kind, &plan.changes, ttl_ms, revision, nonce))
            }
            Protocol::Sotw => {
                let content = state.content(&plan.changes);
                Response::Sotw(wire::sotw(kind, content.into_iter(), state.ttl_ms, nonce))
            }
        };
        state.sent(Outstanding {
            nonce,
            void: BTreeSet::new(),
            sent_ms: now_ms,
            reaches: plan.is_complete().then_some(target.revision),
            changes: plan.changes,
        });
        response
    }

    fn check_size(&self, kind: Kind, plan: &Plan) -> Result<(), SessionError> {
        if self.protocol == Protocol::Delta {
            return Ok(());
        }
        let content = self.kinds[kind.index()].content(&plan.changes);
        let bytes = content.iter().map(|resource| resource.body.len()).sum();
        if bytes > SOTW_BYTES_MAX {
            return Err(SessionError::TooLarge { kind, bytes });
        }
        Ok(())
    }

    /// Confirms what is held and would expire at the client.
    fn heartbeat(&mut self, target: &Snapshot, now_ms: u64) -> Option<Response> {
        let due = |state: &&mut KindState| state.heartbeat_ms().is_some_and(|at| now_ms >= at);
        let protocol = self.protocol;
        let state = self.kinds.iter_mut().find(due)?;
        state.confirmed_ms = Some(now_ms);
        self.nonce += 1;
        let (kind, ttl_ms, nonce) = (state.kind, state.ttl_ms, self.nonce);
        let response = match protocol {
            Protocol::Delta => Response::Delta(wire::delta_heartbeat(
                kind,
                state.sure(),
                ttl_ms,
                target.revision,
                nonce,
            )),
            // Envoy takes a full state of names without resources for an empty one.
            Protocol::Sotw => {
                let content = state.content(&[]);
                Response::Sotw(wire::sotw(kind, content.into_iter(), ttl_ms, nonce))
            }
        };
        state.sent(Outstanding {
            nonce,
            void: BTreeSet::new(),
            sent_ms: now_ms,
            reaches: (!state.dirty).then_some(state.reached),
            changes: Vec::new(),
        });
        Some(response)
    }

    /// A changed cluster is warming at the client until its endpoints come again, changed or not; Envoy would wait 15 s.
    fn endpoints_follow(&mut self, clusters: &[Change]) {
        let sets = clusters
            .iter()
            .flat_map(|change| &change.put)
            .flat_map(|cluster| named_by(cluster).map(str::to_owned));
        let endpoints = self.state(Kind::Endpoints);
        endpoints.resend.extend(sets);
        endpoints.dirty = true;
    }

    /// Forgets to repeat endpoints that no cluster names: none of the snapshot, and none that the client may have.
    fn prune_resends(&mut self, target: &Snapshot) {
        let [endpoints, clusters] =
            [Kind::Endpoints, Kind::Cluster].map(|kind| &self.kinds[kind.index()]);
        if endpoints.resend.is_empty() {
            return;
        }
        let mut named: BTreeSet<String> = BTreeSet::new();
        let under_way = clusters.outstanding.iter().flat_map(|out| &out.changes);
        let sent = under_way.filter_map(|change| change.put.as_ref());
        for cluster in target.iter(Kind::Cluster).chain(sent) {
            named.extend(named_by(cluster).map(str::to_owned));
        }
        for (name, held) in clusters.held.iter() {
            named.insert(name.clone());
            let known = held.last_good().into_iter();
            named.extend(
                known
                    .flat_map(|cluster| named_by(cluster))
                    .map(str::to_owned),
            );
        }
        let endpoints = self.state(Kind::Endpoints);
        endpoints.resend.retain(|name| named.contains(name));
    }

    fn wake(&mut self) {
        self.kinds.iter_mut().for_each(KindState::wake);
    }

    fn state(&mut self, kind: Kind) -> &mut KindState {
        &mut self.kinds[kind.index()]
    }
}
