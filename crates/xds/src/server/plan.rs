//! Decides what one kind sends next: compares what the client holds with the snapshot, in one pass over both, and leaves
//! out what is refused, suspected or has to wait. Reads only; the session carries the plan out.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::gate::{Gate, View};
use super::held::{Change, Held};
use super::kind_state::{KindState, Wait};
use crate::kind::Kind;
use crate::snapshot::{Encoded, Snapshot};

/// Body bytes in one delta response, at most, unless a single resource is larger: gRPC refuses messages over 4 MiB.
pub const RESPONSE_BYTES_MAX: usize = 3 * 1024 * 1024;

#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) changes: Vec<Change>,
    pub(super) blocked: BTreeMap<String, Wait>,
    /// Something that is gone from the snapshot stays with the client because it is still needed.
    pub(super) holding: bool,
    /// Something goes out although it should have waited longer.
    pub(super) impatient: bool,
    /// Groups of suspects, by index and ascending, that are sent with this plan or need nothing any more.
    pub(super) spent: Vec<usize>,
    quarantined: bool,
    deferred: bool,
    bytes: usize,
}

/// `paged`: may be cut at [`RESPONSE_BYTES_MAX`].
///
/// Groups of suspects have a turn each, then everything else; the first with something to send takes it.
pub(super) fn plan(view: View<'_>, kind: Kind, now_ms: u64, paged: bool) -> Plan {
    let groups = &view.of(kind).suspects;
    let turns = groups.iter().map(|group| Turn::Group(group));
    let rest = Turn::Rest(groups);
    let mut plan = Plan::default();
    for (index, turn) in turns.chain([rest]).enumerate() {
        let waiting = plan.blocked.len();
        plan.deferred = false;
        plan.take(turn, view, kind, now_ms, paged);
        let sending = !plan.changes.is_empty();
        if index < groups.len() && (sending || plan.blocked.len() == waiting) {
            plan.spent.push(index);
        }
        if sending {
            return plan;
        }
    }
    plan.deferred = false;
    plan
}

/// Who may be sent together.
#[derive(Clone, Copy)]
enum Turn<'a> {
    Group(&'a [String]),
    /// All but these.
    Rest(&'a VecDeque<Vec<String>>),
}

impl Turn<'_> {
    fn is_of(self, name: &str) -> bool {
        let within = |group: &[String]| group.binary_search_by(|n| n.as_str().cmp(name)).is_ok();
        match self {
            Self::Group(group) => within(group),
            Self::Rest(groups) => !groups.iter().any(|group| within(group)),
        }
    }
}

impl Plan {
    /// Whether the client has all of the snapshot once it has these changes.
    pub(super) fn is_complete(&self) -> bool {
        self.blocked.is_empty() && !self.quarantined && !self.deferred
    }

    /// Notes in `state` what was decided, apart from the changes.
    pub(super) fn note(&self, state: &mut KindState) {
        state.blocked.clone_from(&self.blocked);
        state.holding = self.holding;
        state.dirty = false;
        for index in self.spent.iter().rev() {
            state.suspects.remove(*index);
        }
        if state.suspects.is_empty() && self.spent.is_empty() {
            state.unnamed = None;
        }
    }

    fn take(&mut self, turn: Turn<'_>, view: View<'_>, kind: Kind, now_ms: u64, paged: bool) {
        let state = view.of(kind);
        let mut removals = None;
        for (name, target, held) in pairs(state, view.target) {
            let version = target.map_or("", |target| target.version.as_str());
            let settled = target.is_some() && held.is_some_and(|held| held.is_surely(version));
            if settled && !state.resend.contains(name) {
                continue;
            }
            if state.is_refused(name, version) {
                self.quarantined |= !settled;
                continue;
            }
            let size = target.map_or(0, |target| target.body.len()) + name.len();
            let full = paged && self.bytes > 0 && self.bytes + size > RESPONSE_BYTES_MAX;
            if full || !turn.is_of(name) {
                self.deferred = true;
                continue;
            }
            let gate = match target {
                Some(target) => view.put(target, held),
                None => removals
                    .get_or_insert_with(|| view.removals(kind))
                    .gate(name),
            };
            if self.admits(state, name, gate, now_ms) {
                self.bytes += size;
                self.changes.push(Change {
                    name: name.to_owned(),
                    put: target.cloned(),
                });
            }
        }
    }

    /// Whether a change may go out now; takes note of it if not.
    fn admits(&mut self, state: &KindState, name: &str, gate: Gate, now_ms: u64) -> bool {
        match gate {
            Gate::Open => true,
            Gate::Hold => {
                self.holding = true;
                false
            }
            Gate::Wait(_) | Gate::Answer => {
                let patience_ms = match gate {
                    Gate::Wait(ms) => ms,
                    _ => u64::MAX,
                };
                // Patience counts anew when it waits for something else.
                let before = state.blocked.get(name);
                let before = before.filter(|wait| wait.patience_ms == patience_ms);
                let since_ms = before.map_or(now_ms, |wait| wait.since_ms);
                let wait = Wait {
                    since_ms,
                    patience_ms,
                    until_ms: since_ms.saturating_add(patience_ms),
                };
                let is_over = wait.is_over(now_ms);
                if !is_over {
                    self.blocked.insert(name.to_owned(), wait);
                }
                self.impatient |= is_over;
                is_over
            }
        }
    }
}

type Pair<'a> = (&'a str, Option<&'a Arc<Encoded>>, Option<&'a Held>);

/// Joins what the client asks for and the snapshot has with what the client holds, by name. Names that neither side has
/// do not occur: a subscription to something that does not exist yet is met with silence.
fn pairs<'a>(state: &'a KindState, target: &'a Snapshot) -> impl Iterator<Item = Pair<'a>> {
    let kind = state.kind;
    let subscription = state.subscription.as_ref();
    let all = subscription
        .filter(|s| s.is_wildcard())
        .map(|_| target.iter(kind));
    let named = subscription
        .filter(|s| !s.is_wildcard())
        .map(|s| s.names().iter().filter_map(move |n| target.get(kind, n)));
    let mut wanted = all
        .into_iter()
        .flatten()
        .chain(named.into_iter().flatten())
        .peekable();
    let mut held = state.held.iter().peekable();
    std::iter::from_fn(move || {
        let (left, right) = (wanted.peek().map(|r| &r.name), held.peek().map(|(n, _)| *n));
        let (take_left, take_right) = match (left, right) {
            (Some(l), Some(r)) => (l <= r, r <= l),
            (l, r) => (l.is_some(), r.is_some()),
        };
        let resource = take_left.then(|| wanted.next()).flatten();
        let holding = take_right.then(|| held.next()).flatten();
        let name = resource
            .map(|resource| resource.name.as_str())
            .or(holding.map(|(name, _)| name.as_str()))?;
        Some((name, resource, holding.map(|(_, held)| held)))
    })
}
