//! The ADS server as a socketless state machine: one [`Session`] per stream, delta or state of the world.
//!
//! Requests and snapshots go in, `poll` gives responses until there is none. Sockets, nodes and clocks live elsewhere.
//! Module order: message, progress, plan, gate, quarantine, kind_state, wire, subscription, held, blame.

mod blame;
mod gate;
mod held;
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
pub use self::message::{NAME_BYTES_MAX, NAMES_MAX, Request, Response, SessionError};
pub use self::plan::{PATIENCE_MS, RESPONSE_BYTES_MAX};
pub use self::progress::{Nack, Pending, Progress};

use self::gate::View;
use self::held::{Change, named_by};
use self::kind_state::{KindState, Outstanding, Whole};
use self::message::{check_count, check_names, parse};
use self::plan::{Plan, plan};
use self::progress::{nacks, pending};
use crate::kind::Kind;
use crate::snapshot::Snapshot;

/// One stream of one client.
#[derive(Debug)]
pub struct Session {
    protocol: Protocol,
    target: Option<Arc<Snapshot>>,
    kinds: [KindState; 4],
    nonce: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Delta,
    Sotw,
}

impl Session {
    /// For `DeltaAggregatedResources`.
    pub fn delta() -> Self {
        Self::new(Protocol::Delta)
    }

    /// State of the world, for `StreamAggregatedResources`.
    pub fn sotw() -> Self {
        Self::new(Protocol::Sotw)
    }

    fn new(protocol: Protocol) -> Self {
        Self {
            protocol,
            target: None,
            kinds: Kind::ALL.map(KindState::new),
            nonce: 0,
        }
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
        while let Some(kind) = self.next_ready(now_ms) {
            for state in &mut self.kinds {
                state.adopt_claims(&target);
            }
            let view = View {
                target: &target,
                kinds: &self.kinds,
            };
            let plan = plan(view, kind, now_ms, self.protocol == Protocol::Delta);
            if let Some(response) = self.carry_out(kind, plan, &target, now_ms) {
                return Some(response);
            }
        }
        None
    }

    /// When waiting ends by itself, in the clock of `poll`.
    pub fn deadline_ms(&self) -> Option<u64> {
        let waiting = self
            .kinds
            .iter()
            .filter(|state| state.outstanding.is_none());
        let since = waiting.flat_map(|state| state.blocked.values()).min()?;
        Some(since.saturating_add(PATIENCE_MS))
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
        let kind = parse(&request.type_url)?;
        let claims = &request.initial_resource_versions;
        check_count(kind, claims.len())?;
        check_names(kind, claims.keys().chain(claims.values()))?;
        check_names(kind, request.resource_names_subscribe.iter())?;
        let first = self.state(kind).subscription.is_none();
        if !first {
            self.on_answer(kind, &request.response_nonce, request.error_detail.as_ref());
        }
        let revision = self.target.as_ref().map_or(0, |target| target.revision);
        let state = self.state(kind);
        let mentions = !request.resource_names_subscribe.is_empty()
            || !request.resource_names_unsubscribe.is_empty();
        let subscription = state.subscription.get_or_insert_default();
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
            state.claim(request.initial_resource_versions);
        }
        if first || mentions {
            state.subscription_changed(revision);
            self.wake();
        }
        Ok(())
    }

    /// A stale request is ignored as a whole: another one with the full list of names follows it.
    fn on_sotw(&mut self, request: DiscoveryRequest) -> Result<(), SessionError> {
        let kind = parse(&request.type_url)?;
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
        if first || changed {
            state.subscription_changed(revision);
            self.wake();
        }
        Ok(())
    }

    /// Only the nonce of the unanswered response makes a request an answer, and only `error` makes it a refusal.
    fn on_answer(&mut self, kind: Kind, nonce: &str, error: Option<&Status>) {
        let whole = match (self.protocol, kind) {
            (Protocol::Delta, _) => Whole::ChangesOnly,
            (Protocol::Sotw, Kind::Cluster | Kind::Listener) => Whole::OfKind,
            (Protocol::Sotw, Kind::Endpoints | Kind::Routes) => Whole::OfNamed,
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
        let overdue = |since: &u64| now_ms.saturating_sub(*since) >= PATIENCE_MS;
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
        if protocol == Protocol::Sotw && matches!(kind, Kind::Endpoints | Kind::Routes) {
            self.drop_silently(kind, &mut plan);
        }
        let state = self.state(kind);
        // A full state that leaves out what waits would remove it from a client that reconnects.
        let complete_or_late = plan.blocked.is_empty() || plan.impatient;
        let silent = protocol == Protocol::Sotw && state.answer_due && !complete_or_late;
        let greet = state.answer_due && complete_or_late;
        if !silent && (greet || !plan.changes.is_empty()) {
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
                Response::Delta(wire::delta(kind, &plan.changes, target.revision, nonce))
            }
            Protocol::Sotw => {
                let content = state.content(&plan.changes);
                Response::Sotw(wire::sotw(kind, content.into_iter(), nonce))
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

    /// Forgets to repeat endpoints that no cluster of the snapshot names.
    fn prune_resends(&mut self, target: &Snapshot) {
        let endpoints = self.state(Kind::Endpoints);
        if endpoints.resend.is_empty() {
            return;
        }
        let clusters = target.iter(Kind::Cluster);
        let named: BTreeSet<&str> = clusters.flat_map(|cluster| named_by(cluster)).collect();
        endpoints
            .resend
            .retain(|name| named.contains(name.as_str()));
    }

    fn wake(&mut self) {
        self.kinds.iter_mut().for_each(KindState::wake);
    }

    fn state(&mut self, kind: Kind) -> &mut KindState {
        &mut self.kinds[kind.index()]
    }
}
