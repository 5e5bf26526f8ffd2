//! How far a Rollout is, as it is stored: under which phase, at which step, what its route is to do instead of what the
//! documents say, and what led there. Written by `rollout`, read by the compiler.

use std::collections::{BTreeSet, VecDeque};

use phalanx_model::document::rollout::Rollout;
use serde::{Deserialize, Serialize};

/// `rollouts/<namespace>/<name>`
pub const ROLLOUTS: &str = "rollouts/";

/// A record as it is stored now.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// Nothing where it can't be read.
    pub record: RolloutRecord,
    /// Of its last change.
    pub revision: u64,
    /// Why it can't be read: it leads nothing then, until somebody starts it anew.
    pub damage: Option<String>,
}

impl Progress {
    pub fn read(value: &[u8], revision: u64) -> Self {
        let read = serde_json::from_slice(value);
        let damage = read.as_ref().err();
        Self {
            damage: damage.map(|e: &serde_json::Error| format!("its record is damaged: {e}")),
            record: read.unwrap_or_default(),
            revision,
        }
    }

    /// Whether it has not moved on since somebody saw it at this revision; measurements change it, but are no move.
    pub fn is_as_of(&self, revision: u64) -> bool {
        (self.record.moved_from + 1..=self.revision).contains(&revision)
    }
}

/// All there is to go on from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RolloutRecord {
    /// Route and both Services: with others it is another rollout.
    pub subject: String,
    /// A hash of the whole spec.
    pub spec: String,
    /// Counts starts, from 1.
    pub attempt: u32,
    pub phase: Phase,
    /// Whether it has come to its first step.
    #[serde(default)]
    pub began: bool,
    /// The one under way, from 0; as many as there are when all are done.
    pub step: usize,
    /// Unix milliseconds, as all times here.
    pub started: u64,
    /// Since when the step has been under way; put forward by what was spent paused.
    pub step_since: u64,
    /// None unless it is paused.
    #[serde(default)]
    pub paused_since: Option<u64>,
    pub overlay: Overlay,
    /// Of the new version's instances when it started.
    #[serde(default)]
    pub versions: BTreeSet<String>,
    /// Measurements of this step.
    #[serde(default)]
    pub good: u32,
    #[serde(default)]
    pub bad: u32,
    #[serde(default)]
    pub last: Option<Measurement>,
    /// Of the old version, when it was last measured.
    #[serde(default)]
    pub stable_p99_us: Option<u64>,
    /// Refusals by data planes up to this revision are known and put up with.
    #[serde(default)]
    pub tolerated: u64,
    /// Why it is in this phase.
    #[serde(default)]
    pub reason: String,
    /// Who brought it there; `phalanx` when nobody did.
    #[serde(default)]
    pub author: String,
    /// When it came into this phase.
    #[serde(default)]
    pub since: u64,
    /// Its revision before attempt, phase or step were last changed; 0: there was none.
    #[serde(default)]
    pub moved_from: u64,
    /// The newest last, at most [`EVENTS_MAX`].
    #[serde(default)]
    pub events: VecDeque<Event>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// It can't start yet.
    #[default]
    Waiting,
    Progressing,
    Paused,
    Promoted,
    RolledBack,
}

impl Phase {
    pub const ALL: [Self; 5] = [
        Self::Waiting,
        Self::Progressing,
        Self::Paused,
        Self::Promoted,
        Self::RolledBack,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Progressing => "progressing",
            Self::Paused => "paused",
            Self::Promoted => "promoted",
            Self::RolledBack => "rolled-back",
        }
    }

    /// Nothing more comes by itself.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Promoted | Self::RolledBack)
    }
}

/// What the route does instead of what its document says. By default everything goes to the old version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    /// Of a hundred requests, how many go to the new version.
    pub weight: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<MirrorShare>,
    /// Requests of this colour go to the new version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lane: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorShare {
    pub per_million: u32,
    pub compare: bool,
}

impl Overlay {
    /// Whether the new version gets anything at all.
    pub fn exposes(&self) -> bool {
        self.weight > 0 || self.mirror.is_some() || self.lane.is_some()
    }
}

/// What was seen of both versions, and what follows from it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    pub at: u64,
    /// How long it took.
    pub took_ms: u64,
    pub canary: Seen,
    pub stable: Seen,
    /// Answers of copies that were compared, and how many of them were others.
    #[serde(default)]
    pub compared: u64,
    #[serde(default)]
    pub different: u64,
    /// By name.
    #[serde(default)]
    pub custom: Vec<(String, f64)>,
    pub good: bool,
    /// What did not hold.
    #[serde(default)]
    pub why: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    pub requests: u64,
    pub failures: u64,
    #[serde(default)]
    pub p99_us: Option<u64>,
}

impl Seen {
    /// 0 to 1; 1 without requests.
    pub fn success(&self) -> f64 {
        match self.requests {
            0 => 1.0,
            requests => 1.0 - self.failures.min(requests) as f64 / requests as f64,
        }
    }
}

/// Something that happened to it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Event {
    pub at: u64,
    pub attempt: u32,
    /// `started`, `step`, `paused`, `resumed`, `promoted`, `rolled-back`
    pub what: String,
    pub reason: String,
    pub author: String,
    /// From 1; 0 before the first.
    pub step: usize,
    pub overlay: Overlay,
    /// What had been seen by then.
    #[serde(default)]
    pub figures: Option<Measurement>,
}

impl RolloutRecord {
    /// What an order is about: with another it is about something else.
    pub fn place(&self) -> (u32, Phase, usize) {
        (self.attempt, self.phase, self.step)
    }

    /// Notes that it moved, if it did, from what it was at this revision.
    pub fn note_move(&mut self, before: &Self, at: u64) {
        self.moved_from = match self.place() == before.place() {
            true => before.moved_from,
            false => at,
        };
    }
}

/// What a Rollout speaks of.
pub fn subject(rollout: &Rollout) -> String {
    format!("{} {} {}", rollout.target, rollout.stable, rollout.canary)
}

/// `rollouts/<namespace>/<name>`
pub fn rollout_key(namespace: &str, name: &str) -> String {
    format!("{ROLLOUTS}{namespace}/{name}")
}

pub const EVENTS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measurements_are_no_move_and_phases_steps_and_attempts_are() {
        let mut progress = Progress::read(b"{", 7);
        assert!(progress.damage.is_some() && progress.record == RolloutRecord::default());
        for (revision, moves) in [(9, true), (12, false), (15, false), (20, true)] {
            let before = progress.record.clone();
            progress.record.good += 1;
            progress.record.step += usize::from(moves);
            progress.record.note_move(&before, progress.revision);
            progress.revision = revision;
            let known: Vec<u64> = (0..30).filter(|at| progress.is_as_of(*at)).collect();
            let expected = match revision {
                9 => 8..=9,
                12 => 8..=12,
                15 => 8..=15,
                _ => 16..=20,
            };
            assert_eq!(known, expected.collect::<Vec<_>>());
        }
    }
}
