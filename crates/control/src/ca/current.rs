//! Which certificates are in use: of each line of renewals the last one, and how much of its life is left. For status, metrics
//! and alarms; nothing is decided here.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use phalanx_pki::examine::is_late;
use phalanx_pki::verifier::Peer;
use phalanx_pki::x509::Serial;

use super::log::Line;
use super::{Ca, UnixMillis};

/// What somebody shows by now, as far as is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InUse {
    pub serial: Serial,
    pub not_before: UnixMillis,
    pub not_after: UnixMillis,
    /// Whether it should have been renewed by now.
    pub late: bool,
}

/// How many certificates there are in each state; every one that the log has is in one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// In use, and in time.
    pub good: u64,
    /// In use, and not renewed in time.
    pub late: u64,
    /// Alive, but its holder has the next one.
    pub renewed: u64,
    pub revoked: u64,
    /// In the last week.
    pub expired: u64,
}

/// Who has which certificate after the one that they once showed.
pub struct Successors(HashMap<Serial, Arc<Line>>);

impl Ca {
    /// Of every certificate that the log has: those in between have ended when a connection is older than two lives.
    pub fn successors(&self) -> Successors {
        let mut successors = HashMap::new();
        for line in self.log().newest() {
            // Of several, for an answer may have been lost, the newest.
            if let Some(replaced) = &line.record.replaces {
                let next = successors.entry(replaced.clone());
                next.or_insert_with(|| line.clone());
            }
        }
        Successors(successors)
    }

    /// What somebody shows by now whose connection was made with `peer`'s certificate.
    pub fn in_use(&self, successors: &Successors, peer: &Peer) -> InUse {
        let line = successors.last(&peer.serial);
        let (serial, not_before, not_after) = match &line {
            Some(line) => (&line.serial, line.record.not_before, line.record.not_after),
            // Of an outside CA, or not renewed yet.
            None => (&peer.serial, peer.not_before, peer.not_after),
        };
        let (life, left) = (not_before.until(not_after), self.now().until(not_after));
        InUse {
            serial: serial.clone(),
            not_before,
            not_after,
            late: is_late(life, left),
        }
    }

    pub fn census(&self) -> Census {
        let now = self.now();
        let lines: Vec<Arc<Line>> = self.log().newest().cloned().collect();
        let replaced: HashSet<&Serial> = lines
            .iter()
            .filter_map(|l| l.record.replaces.as_ref())
            .collect();
        let mut census = Census::default();
        for line in &lines {
            let (begin, end) = (line.record.not_before, line.record.not_after);
            let state = match () {
                () if self.is_revoked(&line.serial).is_some() => &mut census.revoked,
                () if end <= now => &mut census.expired,
                () if replaced.contains(&line.serial) => &mut census.renewed,
                () if is_late(begin.until(end), now.until(end)) => &mut census.late,
                () => &mut census.good,
            };
            *state += 1;
        }
        census
    }
}

impl Successors {
    /// The last of those that came after one; none when none did.
    fn last(&self, first: &Serial) -> Option<Arc<Line>> {
        let mut last = self.0.get(first)?;
        // A line replaces an older one, so this ends; the bound is for a log that somebody has tampered with.
        for _ in 0..self.0.len() {
            match self.0.get(&last.serial) {
                Some(next) => last = next,
                None => break,
            }
        }
        Some(last.clone())
    }
}
