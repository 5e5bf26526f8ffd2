//! All that a session knows about one kind: what the client asked for, what it holds, what is under way, what it refused.
//!
//! Events come in through methods; what a refusal does is told in `quarantine`. `plan` and `gate` only read.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::by_name::ByName;
use super::held::{Change, Held};
use super::subscription::Subscription;
use crate::kind::Kind;
use crate::snapshot::{Encoded, Snapshot};

/// One response that the client has not answered yet.
#[derive(Debug)]
pub(super) struct Outstanding {
    pub(super) nonce: u64,
    pub(super) changes: Vec<Change>,
    /// Names that the client left since; if it asked for them again, it may have this or not.
    pub(super) void: BTreeSet<String>,
    pub(super) sent_ms: u64,
    /// The revision that the client has reached for this kind once it acknowledges; none if more is to come.
    pub(super) reaches: Option<u64>,
}

/// A resource is in quarantine for as long as this version is the one to be sent.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    /// Empty: the removal was refused.
    pub(super) version: String,
    pub(super) message: String,
    pub(super) since_revision: u64,
}

/// A resource that is not sent before others are acknowledged, or patience ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wait {
    pub(super) since_ms: u64,
    pub(super) patience_ms: u64,
    pub(super) until_ms: u64,
}

impl Wait {
    pub(super) fn is_endless(self) -> bool {
        self.until_ms == u64::MAX
    }

    pub(super) fn is_over(self, now_ms: u64) -> bool {
        now_ms >= self.until_ms
    }
}

#[derive(Debug)]
pub(super) struct KindState {
    pub(super) kind: Kind,
    /// None until the first request of this kind.
    pub(super) subscription: Option<Subscription>,
    pub(super) held: ByName<Held>,
    pub(super) outstanding: Option<Outstanding>,
    /// To be sent even if the client is known to hold this very version.
    pub(super) resend: BTreeSet<String>,
    /// Groups of names (sorted) among which a refused one hides; sent one group at a time.
    pub(super) suspects: VecDeque<Vec<String>>,
    pub(super) refused: BTreeMap<String, Refused>,
    /// The refusal that started the hunt through `suspects`.
    pub(super) unnamed: Option<Refused>,
    /// The first request of a wildcard is answered even when there is nothing to say.
    pub(super) answer_due: bool,
    /// Something changed since the last plan.
    pub(super) dirty: bool,
    /// What the last plan held back by make before break.
    pub(super) blocked: BTreeMap<String, Wait>,
    /// The last plan kept something that another kind's state may release.
    pub(super) holding: bool,
    /// The client holds every resource it asked for as of this revision, or newer.
    pub(super) reached: u64,
    /// The client came with resources from an earlier stream.
    pub(super) reconnected: bool,
    /// How long the client keeps what it is sent without being told again, in ms; 0: for ever.
    pub(super) ttl_ms: u64,
    /// When all of what is held was confirmed last, in ms.
    pub(super) confirmed_ms: Option<u64>,
    latest_nonce: u64,
    /// Claims that no snapshot was searched for yet.
    claims: bool,
}

impl KindState {
    pub(super) fn new(kind: Kind) -> Self {
        Self {
            kind,
            subscription: None,
            held: ByName::default(),
            outstanding: None,
            resend: BTreeSet::new(),
            suspects: VecDeque::new(),
            refused: BTreeMap::new(),
            unnamed: None,
            answer_due: false,
            dirty: false,
            blocked: BTreeMap::new(),
            holding: false,
            reached: 0,
            reconnected: false,
            ttl_ms: 0,
            confirmed_ms: None,
            latest_nonce: 0,
            claims: false,
        }
    }

    pub(super) fn wants(&self, name: &str) -> bool {
        self.subscription.as_ref().is_some_and(|s| s.wants(name))
    }

    /// Whether an unanswered response removes `name`.
    pub(super) fn is_being_removed(&self, name: &str) -> bool {
        self.outstanding.as_ref().is_some_and(|out| {
            out.changes
                .iter()
                .any(|c| c.name == name && c.put.is_none())
        })
    }

    /// Whether an unanswered response puts `name`, in this version if one is given.
    pub(super) fn is_on_its_way(&self, name: &str, version: Option<&str>) -> bool {
        let puts = |change: &Change| {
            let put = change.put.as_ref().filter(|_| change.name == name);
            put.is_some_and(|put| version.is_none_or(|version| put.version == version))
        };
        let unanswered = self.outstanding.as_ref();
        unanswered.is_some_and(|out| !out.void.contains(name) && out.changes.iter().any(puts))
    }

    /// Whether an unanswered response carries `name`.
    pub(super) fn is_under_way(&self, name: &str) -> bool {
        let out = self.outstanding.as_ref();
        out.is_some_and(|out| out.changes.iter().any(|change| change.name == name))
    }

    pub(super) fn is_outstanding(&self, nonce: &str) -> bool {
        self.outstanding
            .as_ref()
            .is_some_and(|out| out.nonce.to_string() == nonce)
    }

    pub(super) fn is_latest(&self, nonce: &str) -> bool {
        self.latest_nonce > 0 && self.latest_nonce.to_string() == nonce
    }

    /// Marks it for a new plan if other kinds' progress may release something here.
    pub(super) fn wake(&mut self) {
        self.dirty |= self.holding || !self.blocked.is_empty();
    }

    /// When what the client holds must be confirmed, so that a lost message does not let it expire.
    pub(super) fn heartbeat_ms(&self) -> Option<u64> {
        let due = self.ttl_ms > 0 && self.outstanding.is_none() && !self.held.is_empty();
        due.then(|| {
            let confirmed_ms = self.confirmed_ms.unwrap_or(0);
            confirmed_ms.saturating_add(self.ttl_ms / HEARTBEATS_PER_TTL)
        })
    }

    /// What the client holds for certain, with versions.
    pub(super) fn sure(&self) -> impl Iterator<Item = (&str, &str)> {
        self.held
            .iter()
            .filter_map(|(name, held)| Some((name.as_str(), held.sure_version()?)))
    }

    /// What a reconnecting client says it holds.
    pub(super) fn claim(&mut self, versions: impl IntoIterator<Item = (String, String)>) {
        let mut versions: Vec<_> = versions.into_iter().collect();
        versions.sort_unstable();
        for (name, version) in versions {
            if self.wants(&name) {
                // Refused once, and taken meanwhile.
                if self.is_refused(&name, &version) {
                    self.refused.remove(&name);
                }
                self.held.insert(name, Held::claimed(version));
                self.claims = true;
                self.reconnected = true;
            }
        }
    }

    /// Finds the bytes of claimed versions, once there is a snapshot.
    pub(super) fn adopt_claims(&mut self, target: &Snapshot) {
        if !std::mem::take(&mut self.claims) {
            return;
        }
        for (name, held) in self.held.iter_mut() {
            if let Some(resource) = target.get(self.kind, name) {
                held.adopt(resource);
            }
        }
    }

    /// The subscription changed, and `revision` is no longer reached before the additions are acknowledged.
    pub(super) fn subscription_changed(&mut self, revision: u64) {
        let Some(subscription) = self.subscription.take() else {
            return;
        };
        self.held.retain(|name, _| subscription.wants(name));
        if let Some(out) = &mut self.outstanding {
            let names = out.changes.iter().map(|change| &change.name);
            let void = names.filter(|name| !subscription.wants(name)).cloned();
            out.void.extend(void);
            out.reaches = None;
        }
        self.subscription = Some(subscription);
        self.reached = self.reached.min(revision.saturating_sub(1));
        self.dirty = true;
    }

    /// A new target: `shared` says that it has the very same resources of this kind as `previous`.
    pub(super) fn retarget(&mut self, target: &Snapshot, previous: Option<u64>, shared: bool) {
        if !shared || self.dirty {
            self.dirty = true;
            self.release(target);
            return;
        }
        if self.holding {
            return;
        }
        match &mut self.outstanding {
            Some(out) if out.reaches == previous => out.reaches = Some(target.revision),
            None if Some(self.reached) == previous => self.reached = target.revision,
            _ => {}
        }
    }

    pub(super) fn sent(&mut self, outstanding: Outstanding) {
        for change in &outstanding.changes {
            self.resend.remove(&change.name);
        }
        self.answer_due = false;
        self.confirmed_ms.get_or_insert(outstanding.sent_ms);
        self.latest_nonce = outstanding.nonce;
        self.outstanding = Some(outstanding);
    }

    /// The client applied the outstanding response. `whole`: it was the full state, so what it left out is gone.
    pub(super) fn acknowledge(&mut self, whole: Whole) {
        let Some(out) = self.outstanding.take() else {
            return;
        };
        match whole {
            Whole::ChangesOnly => {}
            Whole::OfNamed => self.held.iter_mut().for_each(|(_, held)| {
                if held.last_good().is_some() {
                    held.settle();
                }
            }),
            Whole::OfKind => self.held.retain(|_, held| held.settle()),
        }
        for change in out.changes {
            if out.void.contains(&change.name) {
                self.doubt(&change);
                continue;
            }
            self.refused.remove(&change.name);
            match change.put {
                Some(resource) => self.held.insert(change.name, Held::acked(resource)),
                None => self.held.remove(&change.name),
            }
        }
        match out.reaches {
            Some(revision) => self.reached = self.reached.max(revision),
            None => self.dirty = true,
        }
        self.dirty |= !self.suspects.is_empty();
    }

    /// The client may have applied `change`, unless it does not care any more.
    pub(super) fn doubt(&mut self, change: &Change) {
        if self.wants(&change.name) {
            match self.held.get_mut(&change.name) {
                Some(held) => held.doubt(change),
                None => {
                    let mut held = Held::default();
                    held.doubt(change);
                    self.held.insert(change.name.clone(), held);
                }
            }
        }
    }

    /// The content of a full-state response: the last good of everything, with `changes` on top. Sorted by name.
    pub(super) fn content<'a>(&'a self, changes: &'a [Change]) -> Vec<&'a Arc<Encoded>> {
        let mut content: BTreeMap<&str, &Arc<Encoded>> = self
            .held
            .iter()
            .filter_map(|(name, held)| Some((name.as_str(), held.last_good()?)))
            .collect();
        for change in changes {
            match &change.put {
                Some(resource) => content.insert(&change.name, resource),
                None => content.remove(change.name.as_str()),
            };
        }
        content.into_values().collect()
    }
}

/// How much of a kind an acknowledged response stood for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whole {
    /// Delta.
    ChangesOnly,
    /// State of the world, Endpoints and Routes: what was left out stays.
    OfNamed,
    /// State of the world, Cluster and Listener: what was left out is gone.
    OfKind,
}

/// Two may be lost or late.
const HEARTBEATS_PER_TTL: u64 = 3;
