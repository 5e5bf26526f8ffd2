//! What a refusal does: the offender is quarantined in that version, its siblings are unknown and come again.
//!
//! Envoy drops a whole delta response for a constraint violation and applies the valid siblings for a semantic error, and
//! does not say which. The same bytes are never sent again at once.

use std::collections::BTreeSet;

use super::blame;
use super::held::{Change, Held};
use super::kind_state::{KindState, Refused};
use crate::snapshot::Snapshot;

impl KindState {
    /// Whether `version` of `name` was refused in this session.
    pub(super) fn is_refused(&self, name: &str, version: &str) -> bool {
        self.refused.get(name).is_some_and(|r| r.version == version)
    }

    /// The client refused the outstanding response.
    pub(super) fn refuse(&mut self, message: &str, target: &Snapshot) {
        let Some(out) = self.outstanding.take() else {
            return;
        };
        self.dirty = true;
        // Who asked for more kept what was reached, up to here.
        self.reached = self.reached.min(target.revision.saturating_sub(1));
        if out.changes.is_empty() {
            // It knows nothing of what was only confirmed: that has expired.
            self.resend.extend(self.held.keys().cloned());
        }
        let refused = |version: &str| Refused {
            version: version.to_owned(),
            message: blame::excerpt(message),
            since_revision: target.revision,
        };
        let offenders = match self.accuse(&out.changes, message) {
            Verdict::Guilty(names) => names,
            Verdict::Suspected(mut names) => {
                let back = names.split_off(names.len() / 2);
                self.suspects.push_front(back);
                self.suspects.push_front(names);
                self.unnamed = Some(refused(""));
                BTreeSet::new()
            }
        };
        for change in &out.changes {
            if !offenders.contains(&change.name) {
                self.doubt(change);
            } else if !out.void.contains(&change.name) {
                if let Some(held) = self.held.get_mut(&change.name) {
                    held.absolve(change.version());
                }
                let verdict = refused(change.version());
                self.refused.insert(change.name.clone(), verdict);
            }
        }
        self.held.retain(|_, held| !held.is_nothing());
        self.release(target);
    }

    /// The message names the guilty; naming all says as little as naming none. What was accepted once in this very version,
    /// and the removal of what never was, are above suspicion unless they were alone.
    fn accuse(&self, changes: &[Change], message: &str) -> Verdict {
        let named = blame::named(message, changes.iter().map(|change| change.name.as_str()));
        if !named.is_empty() && named.len() < changes.len() {
            return Verdict::Guilty(named.into_iter().map(str::to_owned).collect());
        }
        let accepted = |change: &&Change| {
            let held = self.held.get(&change.name).and_then(Held::last_good);
            held.map_or("", |held| &held.version) == change.version()
        };
        let names = |changes: Vec<&Change>| changes.into_iter().map(|c| c.name.clone()).collect();
        let mut suspects: Vec<String> = names(changes.iter().filter(|c| !accepted(c)).collect());
        if suspects.is_empty() {
            suspects = names(changes.iter().collect());
        }
        suspects.sort_unstable();
        match suspects.len() {
            0 | 1 => Verdict::Guilty(suspects.into_iter().collect()),
            _ => Verdict::Suspected(suspects),
        }
    }

    /// Ends the quarantine of whatever is not to be sent in the refused version any more.
    pub(super) fn release(&mut self, target: &Snapshot) {
        self.refused.retain(|name, refused| {
            let version = target.get(self.kind, name).map_or("", |r| &r.version);
            refused.version == version
        });
    }
}

enum Verdict {
    Guilty(BTreeSet<String>),
    /// One or more of these; sorted, two at least.
    Suspected(Vec<String>),
}
