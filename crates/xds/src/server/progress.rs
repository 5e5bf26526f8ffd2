//! What a session tells about its client: how far it got, what it refuses, what is under way.

use super::kind_state::KindState;
use crate::kind::Kind;

/// What a client has got so far, truthfully.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Revision of the newest snapshot; 0 before the first.
    pub target: u64,
    /// The newest revision whose every resource that the client asked for is acknowledged, or superseded by a newer
    /// acknowledged one. A refused one is not acknowledged. 0: none yet.
    pub acked: u64,
    /// What the client refuses and the snapshot still has.
    pub nacks: Vec<Nack>,
    /// Kinds with something under way or waiting.
    pub pending: Vec<Pending>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nack {
    pub kind: Kind,
    /// None while the offender among several is being looked for.
    pub name: Option<String>,
    /// The refused one; empty if unknown, or if a removal was refused.
    pub version: String,
    /// At most [`super::MESSAGE_BYTES_MAX`] bytes of the client's words.
    pub message: String,
    /// The snapshot's revision when it was refused first.
    pub since_revision: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    pub kind: Kind,
    /// When the unanswered response was sent, if there is one.
    pub unacked_since_ms: Option<u64>,
    /// Resources that wait for other kinds.
    pub blocked: usize,
}

pub(super) fn nacks(state: &KindState) -> impl Iterator<Item = Nack> {
    let named = state
        .refused
        .iter()
        .filter(|(name, _)| state.wants(name))
        .map(|(name, refused)| (Some(name), refused));
    let hunting = !state.suspects.is_empty();
    let unnamed = state.unnamed.iter().filter(move |_| hunting);
    let unnamed = unnamed.map(|refused| (None, refused));
    named.chain(unnamed).map(|(name, refused)| Nack {
        kind: state.kind,
        name: name.cloned(),
        version: refused.version.clone(),
        message: refused.message.clone(),
        since_revision: refused.since_revision,
    })
}

pub(super) fn pending(state: &KindState) -> Option<Pending> {
    let unacked_since_ms = state.outstanding.as_ref().map(|out| out.sent_ms);
    let blocked = state.blocked.len();
    (unacked_since_ms.is_some() || blocked > 0 || state.dirty).then_some(Pending {
        kind: state.kind,
        unacked_since_ms,
        blocked,
    })
}
