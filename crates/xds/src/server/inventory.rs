//! Every resource of a session by name: which version the client has, and how far the present one is.

use super::kind_state::KindState;
use crate::kind::Kind;
use crate::snapshot::Snapshot;

/// One resource that the client asks for, or still holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub kind: Kind,
    pub name: String,
    /// What the client acknowledged last, or says it holds; empty: nothing.
    pub version: String,
    pub delivery: Delivery,
}

/// How far the snapshot's version of a resource is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Sent and acknowledged.
    Synced,
    /// Sent, not answered yet.
    Stale,
    /// It waits for something, or there is none.
    NotSent,
    /// Refused, in this version and these words.
    Refused {
        version: String,
        message: String,
        since_revision: u64,
    },
}

pub(super) fn items<'a>(
    state: &'a KindState,
    target: Option<&'a Snapshot>,
) -> impl Iterator<Item = Item> + 'a {
    let subscription = state.subscription.as_ref();
    let named = subscription.into_iter().flat_map(|s| s.names());
    let all = target.filter(|_| subscription.is_some_and(|s| s.is_wildcard()));
    let all = all
        .into_iter()
        .flat_map(|target| target.iter(state.kind))
        .map(|resource| &resource.name);
    let mut names: Vec<&String> = state.held.keys().chain(named).chain(all).collect();
    names.sort_unstable();
    names.dedup();
    names.into_iter().map(move |name| item(state, target, name))
}

fn item(state: &KindState, target: Option<&Snapshot>, name: &str) -> Item {
    let held = state.held.get(name);
    let wanted = target.and_then(|target| target.get(state.kind, name));
    let has = |version: &str| held.is_some_and(|held| held.is_surely(version));
    let delivery = match (state.refused.get(name), wanted) {
        (Some(refused), _) => Delivery::Refused {
            version: refused.version.clone(),
            message: refused.message.clone(),
            since_revision: refused.since_revision,
        },
        _ if state.is_under_way(name) => Delivery::Stale,
        (None, Some(wanted)) if has(&wanted.version) => Delivery::Synced,
        _ => Delivery::NotSent,
    };
    let version = held.and_then(|held| held.acked_version());
    Item {
        kind: state.kind,
        name: name.to_owned(),
        version: version.unwrap_or_default().to_owned(),
        delivery,
    }
}
