//! A kind of battle at an executor: its rules, its usual cost, who records it and who runs it again. Submission is
//! synchronous and never waits: what can't be done in time is refused at once, and the rest is queued.

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::clock::nanos;
use super::executor::{Executor, Shared};
use super::job::{Fight, Job, Run, Ticket};
use super::judge::Judge;
use super::metrics::{End, KindMetrics};
use super::record::Recorder;
use super::rules::{Pinned, Rollback, Rulebook, RulesError, Version, VersionView};
use super::shadow::{Shadow, ShadowOptions, ShadowReport};
use super::{Battle, Call, OUTCOMES_MAX, Reject, SESSION_BYTES_MAX, lock};

/// Bits of `Inner::flags`: what a fight's end has to think of beyond its caller.
pub(crate) const RECORDED: u8 = 1;
pub(crate) const SHADOWED: u8 = 2;
pub(crate) const ON_TRIAL: u8 = 4;

/// Nanoseconds that a fight is taken to cost before the first one was measured.
const COST_GUESS: u64 = 50_000;
/// One in so many of the difference goes into the moving average of the cost.
const COST_WEIGHT: i64 = 16;
/// The average moves by at most this factor per fight, so that one stall isn't taken for a trend.
const COST_STEP: u64 = 64;

/// Why a kind of battle was not taken in.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// The name is taken, at this executor.
    #[error("there is a kind of battle called `{name}` already")]
    Known { name: &'static str },
    /// Beyond `KINDS_MAX`.
    #[error("more than {max} kinds of battle")]
    TooMany { max: usize },
    /// Beyond [`OUTCOMES_MAX`].
    #[error("{outcomes} classes of outcome, at most {OUTCOMES_MAX} are told apart")]
    TooManyOutcomes { outcomes: usize },
}

/// A handle that submits fights of one kind. Cheap to clone; usable from any thread, async or not.
pub struct Kind<B: Battle>(Arc<Inner<B>>);

impl<B: Battle> Clone for Kind<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<B: Battle> fmt::Debug for Kind<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kind({})", self.0.name)
    }
}

pub(crate) struct Inner<B: Battle> {
    pub name: &'static str,
    pub battle: B,
    pub shared: Arc<Shared>,
    pub flags: AtomicU8,
    book: Rulebook<B::Rules>,
    /// Nanoseconds, moving average; 0 before the first fight.
    cost: AtomicU64,
    recording: Mutex<Option<Recording>>,
    shadow: Mutex<Option<Arc<Shadow<B>>>>,
}

struct Recording {
    recorder: Recorder,
    one_in: u32,
    seen: u32,
}

impl Executor {
    /// Takes in a kind of battle with its first version of the rules. `name` stands in metrics and records.
    pub fn register<B: Battle>(
        &self,
        name: &'static str,
        battle: B,
        version: u64,
        rules: B::Rules,
    ) -> Result<Kind<B>, RegisterError> {
        if B::OUTCOMES > OUTCOMES_MAX {
            let outcomes = B::OUTCOMES;
            return Err(RegisterError::TooManyOutcomes { outcomes });
        }
        let inner = Arc::new(Inner {
            name,
            battle,
            shared: self.shared().clone(),
            flags: AtomicU8::new(0),
            book: Rulebook::new(version, rules),
            cost: AtomicU64::new(0),
            recording: Mutex::default(),
            shadow: Mutex::default(),
        });
        let shown: Arc<dyn Shown> = inner.clone();
        self.shared().show(name, Arc::downgrade(&shown))?;
        Ok(Kind(inner))
    }
}

impl<B: Battle> Kind<B> {
    /// Submits a fight on the current rules.
    pub fn submit(&self, input: B::Input, call: Call) -> Fight<B> {
        self.submit_on(self.0.book.current(), input, call)
    }

    /// Submits a fight on the rules that its battle began with.
    pub fn submit_pinned(&self, rules: &Pinned<B::Rules>, input: B::Input, call: Call) -> Fight<B> {
        self.submit_on(rules.share(), input, call)
    }

    fn submit_on(&self, rules: Arc<Version<B::Rules>>, input: B::Input, call: Call) -> Fight<B> {
        match self.0.admit(&rules, &input, &call) {
            Err((end, reject)) => {
                let tally = &self.0.shared.tally;
                tally.count_shared(call.class, end);
                Fight::refused(reject)
            }
            Ok(ticket) => {
                let job = Arc::new(Job::new(self.0.clone(), rules, input, call, ticket));
                let run: Arc<dyn Run> = job.clone();
                // A job that the queue doesn't take ends there, and the fight tells how.
                self.0.shared.push(run, ticket);
                Fight::submitted(job)
            }
        }
    }

    /// Keeps the current rules for a battle of several fights.
    pub fn pin(&self) -> Pinned<B::Rules> {
        self.0.book.pin()
    }

    /// Keeps a version by its number, as it came along with a battle that another process began.
    pub fn pin_version(&self, version: u64) -> Result<Pinned<B::Rules>, Reject> {
        (self.0.book.pin_of(version)).ok_or(Reject::NoSuchRules { version })
    }

    /// From now on fights begin on these rules.
    pub fn publish(&self, version: u64, rules: B::Rules) -> Result<(), RulesError> {
        self.0.book.publish(version, rules, None)?;
        self.0.review();
        Ok(())
    }

    /// As `publish`, but the rules before come back by themselves when outcomes shift; see [`Judge`].
    pub fn publish_on_trial(
        &self,
        version: u64,
        rules: B::Rules,
        judge: Judge,
    ) -> Result<(), RulesError> {
        if B::OUTCOMES == 0 {
            return Err(RulesError::NoOutcomes);
        }
        self.0.book.publish(version, rules, Some(judge))?;
        self.0.flags.fetch_or(ON_TRIAL, Ordering::Relaxed);
        Ok(())
    }

    /// Goes back to a version that is still in use. Ends a trial.
    pub fn reinstate(&self, version: u64) -> Result<(), RulesError> {
        self.0.book.reinstate(version)
    }

    /// The version that fights begin on.
    pub fn version(&self) -> u64 {
        self.0.book.current().number
    }

    /// The version on trial, if any.
    pub fn on_trial(&self) -> Option<u64> {
        self.0.book.on_trial()
    }

    /// All versions that somebody holds.
    pub fn versions(&self) -> Vec<VersionView> {
        self.0.book.view()
    }

    /// The latest versions that were taken back by a trial, oldest first.
    pub fn rollbacks(&self) -> Vec<Rollback> {
        self.0.book.rollbacks()
    }

    /// Moving average of what a fight takes.
    pub fn cost(&self) -> Duration {
        Duration::from_nanos(self.0.estimate())
    }

    /// Records one of so many fights, and every panic. The recorder never delays a fight: what it can't take is counted.
    pub fn record(&self, recorder: &Recorder, one_in: u32) {
        let recording = Recording {
            recorder: recorder.clone(),
            one_in: one_in.max(1),
            seen: 0,
        };
        *lock(&self.0.recording) = Some(recording);
        self.0.flags.fetch_or(RECORDED, Ordering::Relaxed);
    }

    pub fn stop_recording(&self) {
        self.0.flags.fetch_and(!RECORDED, Ordering::Relaxed);
        *lock(&self.0.recording) = None;
    }

    /// Runs one of so many fights again on other rules, on cores that have nothing else to do, and compares. Replaces the
    /// shadow before.
    pub fn shadow(&self, version: u64, rules: B::Rules, options: ShadowOptions) {
        let shadow = Shadow::new(Version::new(version, rules), options);
        *lock(&self.0.shadow) = Some(Arc::new(shadow));
        self.0.flags.fetch_or(SHADOWED, Ordering::Relaxed);
    }

    /// What the shadow has found so far.
    pub fn shadow_report(&self) -> Option<ShadowReport> {
        lock(&self.0.shadow).as_ref().map(|shadow| shadow.report())
    }

    /// Ends the shadow and returns what it found.
    pub fn end_shadow(&self) -> Option<ShadowReport> {
        self.0.flags.fetch_and(!SHADOWED, Ordering::Relaxed);
        lock(&self.0.shadow).take().map(|shadow| shadow.report())
    }
}

impl<B: Battle> Inner<B> {
    fn admit(
        &self,
        rules: &Version<B::Rules>,
        input: &B::Input,
        call: &Call,
    ) -> Result<Ticket, (End, Reject)> {
        let long = |session: &Arc<str>| session.len() > SESSION_BYTES_MAX;
        if call.session.as_ref().is_some_and(long) {
            return Err((End::Foul, Reject::Foul("the session's name is too long")));
        }
        let shared = &self.shared;
        let now = shared.clock.now();
        if !shared.quarantine.is_empty() {
            let hash = self.suspect(rules.number, input);
            if shared.quarantine.holds(hash, now) {
                return Err((End::Poison, Reject::Poison { hash }));
            }
        }
        let within = call.within.map_or(u64::MAX, nanos);
        let deadline = now.saturating_add(within.min(shared.longest));
        shared.admit(call.class, now, self.estimate(), deadline)
    }

    fn estimate(&self) -> u64 {
        match self.cost.load(Ordering::Relaxed) {
            0 => COST_GUESS,
            cost => cost,
        }
    }

    pub fn learn_cost(&self, took: u64) {
        let cost = self.cost.load(Ordering::Relaxed);
        let next = if cost == 0 {
            took
        } else {
            let took = took.min(cost.saturating_mul(COST_STEP));
            let step = (took as i64).saturating_sub(cost as i64) / COST_WEIGHT;
            cost.saturating_add_signed(step)
        };
        // Racing threads lose a sample, no more.
        self.cost.store(next.max(1), Ordering::Relaxed);
    }

    /// Names an input under a version of the rules.
    pub fn suspect(&self, version: u64, input: &B::Input) -> u64 {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(self.name.as_bytes());
        bytes.push(0);
        bytes.extend_from_slice(&version.to_le_bytes());
        B::write_input(input, &mut bytes);
        xxhash_rust::xxh3::xxh3_64(&bytes)
    }

    pub fn review(&self) {
        if !self.book.review() {
            self.flags.fetch_and(!ON_TRIAL, Ordering::Relaxed);
            // A trial that began in between is not forgotten.
            if self.book.on_trial().is_some() {
                self.flags.fetch_or(ON_TRIAL, Ordering::Relaxed);
            }
        }
    }

    /// The recorder, if it is this fight's turn.
    pub fn recorder_for(&self, wanted: bool, always: bool) -> Option<Recorder> {
        if !wanted {
            return None;
        }
        let mut slot = lock(&self.recording);
        let recording = slot.as_mut()?;
        recording.seen += 1;
        if recording.seen >= recording.one_in {
            recording.seen = 0;
        } else if !always {
            return None;
        }
        Some(recording.recorder.clone())
    }

    pub fn shadow_for(&self, wanted: bool) -> Option<Arc<Shadow<B>>> {
        if !wanted {
            return None;
        }
        let slot = lock(&self.shadow);
        slot.as_ref().filter(|shadow| shadow.wants()).cloned()
    }
}

/// What an executor shows of a kind.
pub(crate) trait Shown: Send + Sync {
    fn metrics(&self) -> KindMetrics;
}

impl<B: Battle> Shown for Inner<B> {
    fn metrics(&self) -> KindMetrics {
        let shadow = lock(&self.shadow).as_ref().map(|shadow| shadow.report());
        let shadow = shadow.unwrap_or_default();
        KindMetrics {
            name: self.name,
            cost: Duration::from_nanos(self.cost.load(Ordering::Relaxed)),
            versions: self.book.view(),
            rollbacks: self.book.rolled_back.load(Ordering::Relaxed),
            shadowed: shadow.compared,
            shadow_differs: shadow.different,
        }
    }
}
