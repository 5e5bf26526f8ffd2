//! New rules beside the ones that count: a sample of live fights is fought again on them by cores that have nothing else to
//! do, and ends are compared. Live work interrupts it at its next check; nobody waits for it, and what there is no time for
//! is counted and forgotten.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::context::{Panicked, Setup, Stop, fight};
use super::executor::Station;
use super::job::Job;
use super::judge::{COUNTS, Judge, Verdict, WITHOUT_RESULT, judge};
use super::replay::{digest_with, small};
use super::rules::{VERSIONS_MAX, Version};
use super::{Battle, Reject, lock};

/// How often a shadow fight that live work interrupted is begun again.
const ATTEMPTS: u8 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShadowOptions {
    /// One of so many live fights is fought again. 10
    pub one_in: u32,
    /// Differences that are kept as examples, the latest. 32
    pub kept: usize,
}

impl Default for ShadowOptions {
    fn default() -> Self {
        Self {
            one_in: 10,
            kept: 32,
        }
    }
}

/// What a shadow found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ShadowReport {
    /// The version of the shadow's rules.
    pub version: u64,
    pub compared: u64,
    pub same: u64,
    pub different: u64,
    /// Never begun: cores had other work for too long.
    pub skipped: u64,
    /// Begun and interrupted by live work too often.
    pub interrupted: u64,
    /// Version of the live rules, fights compared with it, and those that ended differently; the latest 8 versions.
    pub by_version: Vec<(u64, u64, u64)>,
    /// Ends of the compared fights by outcome, live and on the shadow's rules; the last entry is "without a result".
    pub outcomes_live: Vec<u64>,
    pub outcomes_shadow: Vec<u64>,
    /// The latest differences.
    pub examples: Vec<ShadowDifference>,
}

impl ShadowReport {
    /// Whether the new rules shift outcomes, by what was compared so far.
    pub fn judge(&self, by: &Judge) -> Verdict {
        judge(&self.outcomes_live, &self.outcomes_shadow, by)
    }
}

/// A fight that ends differently on other rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShadowDifference {
    pub live_rules: u64,
    pub seed: u64,
    pub session: Option<String>,
    /// Digests, and classes of outcome.
    pub live: u64,
    pub shadow: Option<u64>,
    pub live_outcome: usize,
    pub shadow_outcome: usize,
    /// Empty when it is larger than 4 KiB.
    pub input: Vec<u8>,
}

/// Work for a core that has no other.
pub(crate) trait Aside: Send {
    /// Gives itself back when it was interrupted and wants another turn.
    fn run(self: Box<Self>, at: &mut Station<'_>) -> Option<Box<dyn Aside>>;
    /// There was no time for it.
    fn skip(&self);
}

pub(crate) struct Shadow<B: Battle> {
    version: Version<B::Rules>,
    options: ShadowOptions,
    seen: AtomicU32,
    /// Locked per compared fight, by cores without other work.
    found: Mutex<Found>,
}

#[derive(Default)]
struct Found {
    report: ShadowReport,
    live: [u64; COUNTS],
    shadow: [u64; COUNTS],
    examples: VecDeque<ShadowDifference>,
}

impl<B: Battle> Shadow<B> {
    pub fn new(version: Version<B::Rules>, options: ShadowOptions) -> Self {
        Self {
            version,
            options,
            seen: AtomicU32::new(0),
            found: Mutex::default(),
        }
    }

    /// Whether the next fight is one of the sample.
    pub fn wants(&self) -> bool {
        let seen = self.seen.fetch_add(1, Ordering::Relaxed);
        seen.is_multiple_of(self.options.one_in.max(1))
    }

    pub fn take_in(self: Arc<Self>, job: &Arc<Job<B>>, digest: u64, outcome: usize) {
        let shared = job.kind.shared.clone();
        let rerun = Rerun {
            job: job.clone(),
            shadow: self,
            digest,
            outcome,
            attempts: 0,
        };
        if let Some(oldest) = shared.set_aside(Box::new(rerun)) {
            oldest.skip();
        }
    }

    pub fn report(&self) -> ShadowReport {
        let found = self.found();
        ShadowReport {
            version: self.version.number,
            outcomes_live: found.live.to_vec(),
            outcomes_shadow: found.shadow.to_vec(),
            examples: found.examples.iter().cloned().collect(),
            ..found.report.clone()
        }
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        lock(&self.found)
    }

    fn compare(&self, job: &Job<B>, live: (u64, usize), shadow: (Option<u64>, usize)) {
        let mut found = self.found();
        let same = shadow.0 == Some(live.0);
        found.report.compared += 1;
        found.report.same += u64::from(same);
        found.report.different += u64::from(!same);
        found.by_version(job.rules.number, same);
        found.live[live.1.min(WITHOUT_RESULT)] += 1;
        found.shadow[shadow.1.min(WITHOUT_RESULT)] += 1;
        if same || self.options.kept == 0 {
            return;
        }
        let mut input = Vec::new();
        B::write_input(&job.input, &mut input);
        if found.examples.len() >= self.options.kept {
            found.examples.pop_front();
        }
        found.examples.push_back(ShadowDifference {
            live_rules: job.rules.number,
            seed: job.call.seed,
            session: job.call.session.as_deref().map(str::to_owned),
            live: live.0,
            shadow: shadow.0,
            live_outcome: live.1,
            shadow_outcome: shadow.1,
            input: small(input),
        });
    }
}

impl Found {
    fn by_version(&mut self, version: u64, same: bool) {
        let versions = &mut self.report.by_version;
        let at = match versions.iter().position(|(known, ..)| *known == version) {
            Some(at) => at,
            None => {
                if versions.len() >= VERSIONS_MAX {
                    versions.remove(0);
                }
                versions.push((version, 0, 0));
                versions.len() - 1
            }
        };
        if let Some((_, compared, different)) = versions.get_mut(at) {
            *compared += 1;
            *different += u64::from(!same);
        }
    }
}

/// A live fight that ended, and waits to be fought again.
struct Rerun<B: Battle> {
    job: Arc<Job<B>>,
    shadow: Arc<Shadow<B>>,
    digest: u64,
    outcome: usize,
    attempts: u8,
}

impl<B: Battle> Aside for Rerun<B> {
    fn run(mut self: Box<Self>, at: &mut Station<'_>) -> Option<Box<dyn Aside>> {
        let (job, shadow) = (&self.job, &self.shadow);
        let setup = Setup {
            rules: &shadow.version.rules,
            version: shadow.version.number,
            call: &job.call,
            every: at.shared.options.check_every,
        };
        let core = at.core();
        let nobody_leaves = AtomicU8::new(0);
        let stop = Stop {
            clock: &at.shared.clock,
            deadline: at.now.saturating_add(at.shared.longest),
            state: &nobody_leaves,
            abort: &at.shared.abort,
            yield_to: Some(&core.waiting),
            wakes: &core.wakes,
        };
        let ended = fight(
            &job.kind.battle,
            &setup,
            at.arena.bump(),
            Some(stop),
            &job.input,
        );
        at.arena.reset();
        let result = match ended {
            Ok(Err(Reject::Cancelled | Reject::Draining | Reject::DeadlinePassed { .. })) => {
                self.attempts += 1;
                if self.attempts < ATTEMPTS {
                    return Some(self);
                }
                self.shadow.found().report.interrupted += 1;
                return None;
            }
            Ok(result) => result,
            Err(Panicked) => Err(Reject::Panicked { hash: 0 }),
        };
        let outcome = result.as_ref().map_or(WITHOUT_RESULT, B::outcome);
        let digest = digest_with::<B>(&result, &mut at.scratch);
        shadow.compare(job, (self.digest, self.outcome), (digest, outcome));
        None
    }

    fn skip(&self) {
        self.shadow.found().report.skipped += 1;
    }
}
