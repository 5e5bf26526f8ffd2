//! Versions of the rules. A fight runs on the version that was current when it was submitted, or on the one that it is
//! pinned to; a version is gone when it isn't current and its last pin and fight have ended. A version on trial is taken
//! back when its outcomes aren't those of the version before it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use arc_swap::ArcSwap;

use super::judge::{COUNTS, Judge, Verdict, judge};
use super::lock;

/// Versions of one kind that exist at the same time; a pin that is never let go can't take the memory.
pub const VERSIONS_MAX: usize = 8;
/// Rollbacks that are remembered.
const ROLLBACKS_MAX: usize = 16;

/// Why a version of the rules was not put in force. The one before still is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RulesError {
    /// A version is published once.
    #[error("rules version {version} is there already")]
    Known { version: u64 },
    /// Nobody holds it any more, or it never was.
    #[error("rules version {version} is not there (any more)")]
    Unknown { version: u64 },
    /// Beyond [`VERSIONS_MAX`]: somebody keeps pins.
    #[error("{VERSIONS_MAX} versions of the rules are still in use, the oldest is {oldest}")]
    TooMany { oldest: u64 },
    /// A trial compares outcomes; see [`Battle::OUTCOMES`](super::Battle::OUTCOMES).
    #[error("the battle tells no outcomes apart (`OUTCOMES` is 0), so nothing can be judged")]
    NoOutcomes,
    /// A trial needs [`Judge::fights_min`](super::Judge::fights_min) results of the version in force to compare with.
    #[error("rules version {version} has {fights} results, too few to judge another one by")]
    NoBaseline { version: u64, fights: u64 },
}

/// A version and who holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionView {
    pub version: u64,
    pub current: bool,
    /// [`Pinned`] handles.
    pub pins: usize,
    /// Fights that are queued, running or not yet read by their callers.
    pub fights: usize,
    /// Ended fights by outcome, the last entry being those without a result. Zeroes where `OUTCOMES` is 0.
    pub outcomes: Vec<u64>,
}

/// A version that was taken back.
#[derive(Clone, Debug, PartialEq)]
pub struct Rollback {
    pub from: u64,
    pub to: u64,
    /// The class of outcome that gave it away, and its shares of all results before and after.
    pub class: usize,
    pub before: f64,
    pub after: f64,
    /// Results that the verdict rests on.
    pub fights: u64,
}

pub(crate) struct Version<R> {
    pub number: u64,
    pub rules: R,
    pins: AtomicUsize,
    counts: [AtomicU64; COUNTS],
}

impl<R> Version<R> {
    pub fn new(number: u64, rules: R) -> Self {
        Self {
            number,
            rules,
            pins: AtomicUsize::new(0),
            counts: [const { AtomicU64::new(0) }; COUNTS],
        }
    }

    /// Returns how many there are in the class now.
    pub fn count(&self, class: usize) -> u64 {
        let class = class.min(COUNTS - 1);
        match self.counts.get(class) {
            Some(count) => count.fetch_add(1, Ordering::Relaxed) + 1,
            None => 0,
        }
    }

    fn counts(&self) -> [u64; COUNTS] {
        std::array::from_fn(|class| self.counts[class].load(Ordering::Relaxed))
    }
}

/// Keeps a version of the rules for a battle of several fights; submitted with `Kind::submit_pinned`.
pub struct Pinned<R>(Arc<Version<R>>);

impl<R> Pinned<R> {
    fn new(version: Arc<Version<R>>) -> Self {
        version.pins.fetch_add(1, Ordering::Relaxed);
        Self(version)
    }

    /// What travels with the battle, when its next fight may be another process'.
    pub fn version(&self) -> u64 {
        self.0.number
    }

    pub fn rules(&self) -> &R {
        &self.0.rules
    }

    pub(crate) fn share(&self) -> Arc<Version<R>> {
        self.0.clone()
    }
}

impl<R> Clone for Pinned<R> {
    fn clone(&self) -> Self {
        Self::new(self.0.clone())
    }
}

impl<R> Drop for Pinned<R> {
    fn drop(&mut self) {
        self.0.pins.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<R> fmt::Debug for Pinned<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pinned({})", self.0.number)
    }
}

pub(crate) struct Rulebook<R> {
    current: ArcSwap<Version<R>>,
    /// All that may be alive. Also what serialises changes, which are people's doing; no fight waits for it.
    known: Mutex<Vec<Weak<Version<R>>>>,
    trial: Mutex<Option<Trial<R>>>,
    rollbacks: Mutex<VecDeque<Rollback>>,
    pub rolled_back: AtomicU64,
}

struct Trial<R> {
    before: Arc<Version<R>>,
    candidate: Arc<Version<R>>,
    judge: Judge,
}

impl<R> Rulebook<R> {
    pub fn new(number: u64, rules: R) -> Self {
        let version = Arc::new(Version::new(number, rules));
        Self {
            known: Mutex::new(vec![Arc::downgrade(&version)]),
            current: ArcSwap::new(version),
            trial: Mutex::default(),
            rollbacks: Mutex::default(),
            rolled_back: AtomicU64::new(0),
        }
    }

    pub fn current(&self) -> Arc<Version<R>> {
        self.current.load_full()
    }

    pub fn pin(&self) -> Pinned<R> {
        Pinned::new(self.current())
    }

    pub fn pin_of(&self, number: u64) -> Option<Pinned<R>> {
        find(&lock(&self.known), number).map(Pinned::new)
    }

    /// Makes `rules` the current version; with a judge, on trial against the one before.
    pub fn publish(
        &self,
        number: u64,
        rules: R,
        on_trial: Option<Judge>,
    ) -> Result<(), RulesError> {
        let mut known = lock(&self.known);
        known.retain(|version| version.strong_count() > 0);
        if find(&known, number).is_some() {
            return Err(RulesError::Known { version: number });
        }
        if known.len() >= VERSIONS_MAX {
            let oldest = known.first().and_then(Weak::upgrade);
            let oldest = oldest.map_or(0, |version| version.number);
            return Err(RulesError::TooMany { oldest });
        }
        let before = self.current();
        if let Some(judge) = &on_trial {
            let fights = before.counts().iter().sum();
            if fights < judge.fights_min {
                let version = before.number;
                return Err(RulesError::NoBaseline { version, fights });
            }
        }
        let candidate = Arc::new(Version::new(number, rules));
        known.push(Arc::downgrade(&candidate));
        self.current.store(candidate.clone());
        *lock(&self.trial) = on_trial.map(|judge| Trial {
            before,
            candidate,
            judge,
        });
        Ok(())
    }

    /// Makes a version current again that is still there. Ends a trial.
    pub fn reinstate(&self, number: u64) -> Result<(), RulesError> {
        let known = lock(&self.known);
        let version = find(&known, number).ok_or(RulesError::Unknown { version: number })?;
        self.current.store(version);
        *lock(&self.trial) = None;
        Ok(())
    }

    /// Judges a version on trial. Returns whether a trial goes on.
    pub fn review(&self) -> bool {
        let _changes = lock(&self.known);
        let mut slot = lock(&self.trial);
        let Some(trial) = &*slot else {
            return false;
        };
        let (before, after) = (trial.before.counts(), trial.candidate.counts());
        let fights: u64 = after.iter().sum();
        match judge(&before, &after, &trial.judge) {
            Verdict::Diverged {
                class,
                before,
                after,
            } => {
                self.current.store(trial.before.clone());
                let rollback = Rollback {
                    from: trial.candidate.number,
                    to: trial.before.number,
                    class,
                    before,
                    after,
                    fights,
                };
                tracing::warn!(?rollback, "rules taken back: their outcomes are others");
                let mut rollbacks = lock(&self.rollbacks);
                if rollbacks.len() >= ROLLBACKS_MAX {
                    rollbacks.pop_front();
                }
                rollbacks.push_back(rollback);
                self.rolled_back.fetch_add(1, Ordering::Relaxed);
            }
            Verdict::Same if fights >= trial.judge.fights_max => {
                let version = trial.candidate.number;
                tracing::info!(version, fights, "rules have passed their trial");
            }
            Verdict::Same | Verdict::Open => return true,
        }
        *slot = None;
        false
    }

    pub fn on_trial(&self) -> Option<u64> {
        lock(&self.trial)
            .as_ref()
            .map(|trial| trial.candidate.number)
    }

    pub fn rollbacks(&self) -> Vec<Rollback> {
        lock(&self.rollbacks).iter().cloned().collect()
    }

    pub fn view(&self) -> Vec<VersionView> {
        let known = lock(&self.known);
        let trial = lock(&self.trial);
        let current = self.current();
        let versions = known.iter().filter_map(Weak::upgrade);
        versions
            .map(|version| {
                let is = |other: &Arc<Version<R>>| usize::from(Arc::ptr_eq(other, &version));
                let on_trial = trial
                    .as_ref()
                    .map_or(0, |trial| is(&trial.before) + is(&trial.candidate));
                let pins = version.pins.load(Ordering::Relaxed);
                // Its own handle here; as the current one, the table's and the one above.
                let ours = 1 + 2 * is(&current) + on_trial + pins;
                VersionView {
                    version: version.number,
                    current: is(&current) == 1,
                    pins,
                    fights: Arc::strong_count(&version).saturating_sub(ours),
                    outcomes: version.counts().to_vec(),
                }
            })
            .collect()
    }
}

fn find<R>(known: &[Weak<Version<R>>], number: u64) -> Option<Arc<Version<R>>> {
    (known.iter().filter_map(Weak::upgrade)).find(|version| version.number == number)
}

#[cfg(test)]
mod tests;
