//! What becomes of a rollout, from one look to the next: spec, clock and figures in, a record out. No I/O and no clock of
//! its own; what a process has seen so far of a measurement is lost with it, so a step needs a whole one after a restart.
//!
//! Nothing goes on by silence: a step ends after its time *and* a good measurement with enough requests in it.

use std::collections::BTreeSet;
use std::time::Duration;

use phalanx_model::document::rollout::{
    Analysis, OnFailure, Rollout, SHARE_WHOLE, Step, StepAction,
};

use crate::observe::Counts;
use crate::world::rollout::{
    EVENTS_MAX, Event, Measurement, MirrorShare, Overlay, Phase, RolloutRecord, Seen, subject,
};

/// A record, and what was seen since.
#[derive(Clone, Debug)]
pub struct Machine {
    pub record: RolloutRecord,
    window: Window,
    /// Good measurements of this step that were made here.
    good_here: u32,
    /// What it waits for just now, in words.
    waiting: String,
    /// When this process first looked: what came before was nobody's delay.
    met: Option<u64>,
    /// When it looked last.
    looked: Option<u64>,
    changed: bool,
}

/// What a measurement is made of.
#[derive(Clone, Debug, Default)]
struct Window {
    /// None: nothing was looked at yet.
    since: Option<u64>,
    due: u64,
    sight: Sight,
    /// What could not be found out when it was due.
    unknown: String,
}

/// What callers saw of both versions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sight {
    pub canary: Counts,
    pub stable: Counts,
    pub compared: u64,
    pub different: u64,
}

impl Sight {
    pub fn add(&mut self, other: &Self) {
        self.canary.add(&other.canary);
        self.stable.add(&other.stable);
        self.compared = self.compared.saturating_add(other.compared);
        self.different = self.different.saturating_add(other.different);
    }
}

/// Who would serve the new version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Instances {
    /// That take requests.
    pub ready: usize,
    /// Label `version` of all of them.
    pub versions: BTreeSet<String>,
}

/// Everything else that counts at one moment.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// Unix milliseconds.
    pub now: u64,
    /// A hash of the spec.
    pub spec: String,
    pub canary: Instances,
    /// Why the route can't do what it should.
    pub obstacle: Option<String>,
    /// That data planes don't take the route, and since when at the latest.
    pub refused: Option<(u64, String)>,
    /// Since the look before.
    pub sight: Sight,
    /// What can't be seen from here.
    pub blind: Option<String>,
    /// Asked for by [`Machine::is_due`]; in the order of the guards.
    pub custom: Vec<(String, Result<f64, String>)>,
}

/// What somebody wants by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Pause,
    Resume,
    Promote,
    Abort,
    Retry,
}

impl Command {
    pub const ALL: [(&'static str, Self); 5] = [
        ("pause", Self::Pause),
        ("resume", Self::Resume),
        ("promote", Self::Promote),
        ("abort", Self::Abort),
        ("retry", Self::Retry),
    ];

    pub fn parse(text: &str) -> Option<Self> {
        let found = Self::ALL.into_iter().find(|(name, _)| *name == text);
        found.map(|(_, command)| command)
    }
}

/// A command, from whom, and when.
#[derive(Clone, Debug)]
pub struct Order<'a> {
    pub command: Command,
    pub author: &'a str,
    /// May be empty.
    pub message: &'a str,
    pub now: u64,
    /// Of the world in which it was given.
    pub revision: u64,
    /// Who would serve the new version.
    pub canary: &'a Instances,
}

impl Machine {
    pub fn new(record: RolloutRecord) -> Self {
        Self {
            record,
            window: Window::default(),
            good_here: 0,
            waiting: String::new(),
            met: None,
            looked: None,
            changed: false,
        }
    }

    /// What it waits for; empty when it waits for nothing.
    pub fn waiting(&self) -> &str {
        &self.waiting
    }

    /// What was seen since the last measurement.
    pub fn sight(&self) -> &Sight {
        &self.window.sight
    }

    /// Takes over what somebody else wrote.
    pub fn replace(&mut self, record: RolloutRecord) {
        let same = self.record.attempt == record.attempt
            && self.record.step == record.step
            && self.record.overlay == record.overlay;
        match same {
            true => self.record = record,
            false => *self = Self::new(record),
        }
    }

    /// Whether a measurement would be made at this look, so that custom figures are worth asking for.
    pub fn is_due(&self, rollout: &Rollout, now: u64) -> bool {
        self.measures()
            && self.window.since.is_some()
            && now >= self.window.due
            && self.window.sight.canary.requests >= u64::from(self.needed(rollout))
    }

    /// True when there is something new to store.
    pub fn look(&mut self, rollout: &Rollout, look: &Look) -> bool {
        self.changed = false;
        self.waiting.clear();
        self.met.get_or_insert(look.now);
        let leapt = self.leap(rollout, look.now);
        self.renew(rollout, look);
        if self.window.since.is_none() {
            self.reset(rollout, look.now);
        } else if !leapt {
            self.window.sight.add(&look.sight);
        }
        match self.record.phase {
            Phase::Waiting => self.start(rollout, look),
            Phase::Progressing => {
                if let Some(obstacle) = &look.obstacle {
                    self.pause(PHALANX, obstacle.clone(), look.now);
                } else if let Some(refused) = self.refusal(look) {
                    self.pause(PHALANX, refused, look.now);
                } else {
                    self.measure(rollout, look);
                    if self.record.phase == Phase::Progressing {
                        self.advance(rollout, look.now);
                    }
                }
            }
            Phase::Paused => {
                self.measure(rollout, look);
                // It waits for somebody, not for requests.
                if self.record.phase == Phase::Paused {
                    self.waiting.clone_from(&self.record.reason);
                }
            }
            Phase::Promoted | Phase::RolledBack => {}
        }
        self.changed
    }

    /// Does what somebody wants.
    ///
    /// # Errors
    /// Why that makes no sense now.
    pub fn order(&mut self, rollout: &Rollout, order: &Order<'_>) -> Result<(), String> {
        self.follow(rollout, order)?;
        // Whoever gave it knew of these: they are no news that start it anew.
        if self.record.phase != Phase::Waiting {
            let versions = order.canary.versions.iter().cloned();
            self.record.versions.extend(versions);
        }
        Ok(())
    }

    /// Starts it where nothing is known of what it was.
    pub fn anew(&mut self, rollout: &Rollout, order: &Order<'_>) {
        self.record.tolerated = order.revision;
        let why = "its record was damaged, started anew by hand".to_owned();
        self.restart(rollout, order.author, why, order.now);
    }

    fn follow(&mut self, rollout: &Rollout, order: &Order<'_>) -> Result<(), String> {
        let Order { author, now, .. } = *order;
        let phase = self.record.phase;
        if self.record.subject != subject(rollout) {
            return Err("it is about to start, ask again in a moment".to_owned());
        }
        let said = |what: &str| match order.message {
            "" => what.to_owned(),
            why => format!("{what}: {why}"),
        };
        match (order.command, phase) {
            (Command::Pause, Phase::Waiting | Phase::Progressing) => {
                self.pause(author, said("paused by hand"), now);
            }
            (Command::Resume, Phase::Paused) => {
                self.record.tolerated = order.revision;
                self.resume(rollout, author, said("resumed by hand"), now);
            }
            (Command::Promote, Phase::Promoted) => return Err("it is promoted already".to_owned()),
            (Command::Promote, _) if order.canary.ready == 0 => {
                return Err(format!(
                    "no instance of Service {} takes requests, so nothing can go there",
                    rollout.canary
                ));
            }
            (Command::Promote, _) => self.promote(rollout, author, said("promoted by hand"), now),
            (Command::Abort, Phase::RolledBack) => {
                return Err("it is rolled back already".to_owned());
            }
            (Command::Abort, _) => self.back(author, said("aborted by hand"), now),
            (Command::Retry, Phase::RolledBack) => {
                self.record.tolerated = order.revision;
                self.restart(rollout, author, said("tried again by hand"), now);
            }
            (Command::Retry, Phase::Promoted) => {
                return Err("it is promoted; abort it first to start again".to_owned());
            }
            (Command::Retry, _) => return Err("it is under way".to_owned()),
            (Command::Resume, _) => return Err("it is not paused".to_owned()),
            (Command::Pause, Phase::Paused) => return Err("it is paused already".to_owned()),
            (Command::Pause, _) => return Err(format!("it is over: {}", phase.as_str())),
        }
        Ok(())
    }

    /// A clock that was put forward or back, or a process that stood still: what was measured across that says nothing, and
    /// the step was not borne for that long. True: that happened.
    fn leap(&mut self, rollout: &Rollout, now: u64) -> bool {
        let Some(looked) = self.looked.replace(now) else {
            return false;
        };
        let since = self.window.since.unwrap_or(now);
        if (looked.max(since)..=looked.saturating_add(LEAP_MIN)).contains(&now) {
            return false;
        }
        let shift = |time: &mut u64| {
            *time = match now.checked_sub(looked) {
                Some(forward) => time.saturating_add(forward),
                None => time.saturating_sub(looked - now),
            };
        };
        self.met.as_mut().map(shift);
        self.reset(rollout, now);
        if matches!(self.record.phase, Phase::Progressing | Phase::Paused) {
            shift(&mut self.record.step_since);
            self.record.paused_since.as_mut().map(shift);
            self.changed = true;
        }
        true
    }

    /// Starts anew when it is another one, another spec, or another build of the new version.
    fn renew(&mut self, rollout: &Rollout, look: &Look) {
        let record = &self.record;
        let is_other = record.subject != subject(rollout);
        let known = &record.versions;
        let new = look.canary.versions.iter().find(|v| !known.contains(*v));
        let why = if record.attempt == 0 {
            "it is new".to_owned()
        } else if is_other {
            "route or Services are others than before".to_owned()
        } else if record.spec != look.spec {
            match record.phase {
                // Whoever has the traffic keeps it, whatever is said about steps that are over.
                Phase::Promoted | Phase::Waiting => {
                    self.record.spec.clone_from(&look.spec);
                    self.changed = true;
                    return;
                }
                _ => "its spec was changed".to_owned(),
            }
        } else {
            match (record.phase, new) {
                (Phase::Promoted | Phase::Waiting, _) | (_, None) => return,
                // Who paused it before it could start, paused it for whoever comes.
                (Phase::Paused, _) if !record.began => return,
                (_, Some(version)) => format!("version {version} of {} is new", rollout.canary),
            }
        };
        self.record.spec.clone_from(&look.spec);
        self.restart(rollout, PHALANX, why, look.now);
    }

    fn restart(&mut self, rollout: &Rollout, author: &str, why: String, now: u64) {
        let before = std::mem::take(&mut self.record);
        self.record = RolloutRecord {
            subject: subject(rollout),
            spec: before.spec,
            attempt: before.attempt + 1,
            phase: Phase::Waiting,
            started: now,
            step_since: now,
            tolerated: before.tolerated,
            since: now,
            author: author.to_owned(),
            reason: why,
            events: before.events,
            ..RolloutRecord::default()
        };
        self.window = Window::default();
        self.good_here = 0;
        self.changed = true;
    }

    /// From waiting to the first step.
    fn start(&mut self, rollout: &Rollout, look: &Look) {
        if let Some(obstacle) = &look.obstacle {
            self.waiting.clone_from(obstacle);
            return;
        }
        if look.canary.ready == 0 {
            self.waiting = format!("no instance of Service {} takes requests", rollout.canary);
            return;
        }
        self.record.versions.clone_from(&look.canary.versions);
        self.record.began = true;
        self.record.phase = Phase::Progressing;
        self.record.since = look.now;
        self.record.started = look.now;
        let (why, author) = (self.record.reason.clone(), self.record.author.clone());
        self.tell("started", &author, why, look.now);
        self.enter(rollout, 0, look.now);
    }

    fn refusal(&self, look: &Look) -> Option<String> {
        let (since, text) = look.refused.as_ref()?;
        (*since > self.record.tolerated).then(|| text.clone())
    }

    /// Whether the new version gets something that can be judged.
    fn measures(&self) -> bool {
        let is_live = matches!(self.record.phase, Phase::Progressing | Phase::Paused);
        is_live && self.record.overlay.exposes()
    }

    fn needed(&self, rollout: &Rollout) -> u32 {
        let step = rollout.steps.get(self.record.step);
        step.and_then(|step| step.min_requests)
            .unwrap_or(rollout.analysis.min_requests)
    }

    fn measure(&mut self, rollout: &Rollout, look: &Look) {
        let now = look.now;
        if !self.measures() {
            return self.reset(rollout, now);
        }
        if now < self.window.due {
            self.waiting.clone_from(&self.window.unknown);
            return;
        }
        let since = self.window.since.unwrap_or(now);
        let needed = u64::from(self.needed(rollout));
        let counts = &self.window.sight.canary;
        if counts.requests < needed && !hopeless(&rollout.analysis, counts, needed) {
            self.waiting = format!(
                "{} of {needed} requests seen of {} in {}",
                counts.requests,
                rollout.canary,
                spoken(now.saturating_sub(since))
            );
            return;
        }
        let judged = self.judge(rollout, look, needed);
        let (mut measurement, unknown) = judged;
        if measurement.why.is_empty() && !unknown.is_empty() {
            self.waiting = unknown.join("; ");
            let interval = millis(rollout.analysis.interval);
            self.window.due = now + interval;
            // What was good long ago must not hide what is bad now.
            if now.saturating_sub(since) > WINDOW_MAX * interval {
                self.reset(rollout, now);
            }
            self.window.unknown.clone_from(&self.waiting);
            return;
        }
        measurement.good = measurement.why.is_empty();
        let (good, why) = (measurement.good, measurement.why.join("; "));
        let floor = needed.max(1);
        if self.window.sight.stable.measured() >= floor {
            self.record.stable_p99_us = measurement.stable.p99_us;
        }
        self.record.last = Some(measurement);
        self.changed = true;
        self.reset(rollout, now);
        if good {
            self.record.good += 1;
            self.good_here += 1;
            return;
        }
        self.record.bad += 1;
        self.good_here = 0;
        if self.record.bad >= rollout.analysis.failures {
            self.fail(rollout, why, now);
        }
    }

    /// What was seen, with what is wrong with it, and what could not be found out.
    fn judge(&self, rollout: &Rollout, look: &Look, needed: u64) -> (Measurement, Vec<String>) {
        let analysis = &rollout.analysis;
        let Sight {
            canary,
            stable,
            compared,
            different,
        } = &self.window.sight;
        let seen = |counts: &Counts| Seen {
            requests: counts.requests,
            failures: counts.failures,
            p99_us: counts.p99_us(),
        };
        let mut of = Measurement {
            at: look.now,
            took_ms: look
                .now
                .saturating_sub(self.window.since.unwrap_or(look.now)),
            canary: seen(canary),
            stable: seen(stable),
            compared: *compared,
            different: *different,
            ..Measurement::default()
        };
        let mut unknown = Vec::new();
        if is_short(analysis, canary, canary.requests) {
            of.why.push(format!(
                "{} of {} requests succeeded, at least {} have to",
                percent(of.canary.success()),
                canary.requests,
                percent(f64::from(analysis.success_min) / f64::from(SHARE_WHOLE))
            ));
        }
        self.judge_latency(rollout, &mut of, &mut unknown, needed);
        let step = rollout.steps.get(self.record.step).map(|s| &s.action);
        let compares = matches!(step, Some(StepAction::Mirror { compare: true, .. }));
        if let Some(max) = analysis.different_max.filter(|_| compares) {
            let shared = u64::from(SHARE_WHOLE);
            if *compared < needed.max(1) {
                unknown.push(format!("{compared} of {needed} answers were compared"));
            } else if different.saturating_mul(shared) > compared.saturating_mul(u64::from(max)) {
                of.why.push(format!(
                    "{different} of {compared} compared answers differ, at most {} may",
                    percent(f64::from(max) / f64::from(SHARE_WHOLE))
                ));
            }
        }
        for guard in &analysis.custom {
            let told = look.custom.iter().find(|(name, _)| *name == guard.name);
            match told.map(|(_, told)| told) {
                None => unknown.push(format!("{} was not asked for yet", guard.name)),
                Some(Err(error)) => unknown.push(format!("{}: {error}", guard.name)),
                Some(Ok(value)) => {
                    of.custom.push((guard.name.clone(), *value));
                    if let Some(min) = guard.min.filter(|min| value < min) {
                        of.why
                            .push(format!("{} is {value}, below {min}", guard.name));
                    }
                    if let Some(max) = guard.max.filter(|max| value > max) {
                        of.why
                            .push(format!("{} is {value}, above {max}", guard.name));
                    }
                }
            }
        }
        unknown.extend(look.blind.clone());
        (of, unknown)
    }

    fn judge_latency(
        &self,
        rollout: &Rollout,
        of: &mut Measurement,
        unknown: &mut Vec<String>,
        needed: u64,
    ) {
        let Sight { canary, stable, .. } = &self.window.sight;
        let Some(guard) = rollout.analysis.latency.filter(|_| canary.requests > 0) else {
            return;
        };
        let Some(p99) = of
            .canary
            .p99_us
            .filter(|_| canary.measured() >= needed.max(1))
        else {
            unknown.push(format!(
                "latencies of {} of {needed} requests are known",
                canary.measured()
            ));
            return;
        };
        if let Some(max) = guard.p99_max
            && u128::from(p99) > max.as_micros()
        {
            let told = format!("the 99th percentile is {}, above {max:?}", ms(p99));
            of.why.push(told);
        }
        let Some(ratio) = guard.ratio_max else { return };
        let fresh = of
            .stable
            .p99_us
            .filter(|_| stable.measured() >= needed.max(1));
        let Some(reference) = fresh.or(self.record.stable_p99_us) else {
            unknown.push(format!(
                "{} of {needed} requests seen of {} to compare with",
                stable.measured(),
                rollout.stable
            ));
            return;
        };
        if u128::from(p99) * 1000 > u128::from(reference) * u128::from(ratio) {
            of.why.push(format!(
                "the 99th percentile is {}, more than {} times the {} of {}",
                ms(p99),
                f64::from(ratio) / 1000.0,
                ms(reference),
                rollout.stable
            ));
        }
    }

    /// To the next step, when this one has been borne for long enough.
    fn advance(&mut self, rollout: &Rollout, now: u64) {
        let Some(step) = rollout.steps.get(self.record.step) else {
            return self.enter(rollout, self.record.step, now);
        };
        let elapsed = now.saturating_sub(self.record.step_since);
        let hold = step.hold.map_or(0, millis);
        if elapsed < hold {
            let left = spoken(hold - elapsed);
            if self.waiting.is_empty() {
                self.waiting = match step.action {
                    StepAction::Pause => format!("paused for {left} more"),
                    _ => format!("the step lasts {left} more"),
                };
            }
            return;
        }
        let is_pause = step.action == StepAction::Pause;
        if is_pause || !self.record.overlay.exposes() || self.good_here > 0 {
            return self.enter(rollout, self.record.step + 1, now);
        }
        let over = self.record.step_since.saturating_add(hold);
        // Whoever resumes it gives it the whole deadline again.
        let from = over.max(self.met.unwrap_or(now)).max(self.record.since);
        let late = now.saturating_sub(from);
        if late >= millis(rollout.progress_deadline) {
            let waiting = match self.waiting.as_str() {
                "" => "no good measurement was made".to_owned(),
                waiting => waiting.to_owned(),
            };
            let why = format!("no progress for {:?}: {waiting}", rollout.progress_deadline);
            return self.fail(rollout, why, now);
        }
        if self.waiting.is_empty() {
            self.waiting = "a good measurement is still to be made".to_owned();
        }
    }

    fn enter(&mut self, rollout: &Rollout, step: usize, now: u64) {
        let Some(next) = rollout.steps.get(step) else {
            return self.promote(rollout, PHALANX, "all steps were borne".to_owned(), now);
        };
        let figures_of_last = self.record.last.take();
        self.record.step = step;
        self.record.step_since = now;
        (self.record.good, self.record.bad) = (0, 0);
        self.good_here = 0;
        if let Some(overlay) = overlay(next) {
            self.record.overlay = overlay;
        }
        self.reset(rollout, now);
        self.changed = true;
        let told = told(next);
        self.record.last = figures_of_last;
        self.tell("step", PHALANX, told, now);
        self.record.last = None;
        if next.action == StepAction::Pause && next.hold.is_none() {
            let why = "this step is a pause until somebody resumes it".to_owned();
            self.pause(PHALANX, why, now);
        }
    }

    fn pause(&mut self, author: &str, why: String, now: u64) {
        self.record.paused_since = Some(now);
        self.turn(Phase::Paused, author, why.clone(), now);
        self.tell("paused", author, why, now);
    }

    /// What was paused at a pause goes on with what comes after it.
    fn resume(&mut self, rollout: &Rollout, author: &str, why: String, now: u64) {
        let paused = now.saturating_sub(self.record.paused_since.unwrap_or(now));
        self.record.paused_since = None;
        self.record.step_since = self.record.step_since.saturating_add(paused);
        self.record.bad = 0;
        let step = rollout.steps.get(self.record.step);
        let at_pause = step.is_some_and(|step| step.action == StepAction::Pause);
        // Paused before it could start: it still has to.
        let phase = match self.record.began {
            true => Phase::Progressing,
            false => Phase::Waiting,
        };
        self.turn(phase, author, why.clone(), now);
        self.tell("resumed", author, why, now);
        self.reset(rollout, now);
        if phase == Phase::Progressing && at_pause {
            self.enter(rollout, self.record.step + 1, now);
        }
    }

    fn promote(&mut self, rollout: &Rollout, author: &str, why: String, now: u64) {
        self.record.step = rollout.steps.len();
        self.record.overlay = Overlay {
            weight: 100,
            ..Overlay::default()
        };
        self.record.paused_since = None;
        self.turn(Phase::Promoted, author, why.clone(), now);
        self.tell("promoted", author, why, now);
    }

    fn back(&mut self, author: &str, why: String, now: u64) {
        self.record.overlay = Overlay::default();
        self.record.paused_since = None;
        self.turn(Phase::RolledBack, author, why.clone(), now);
        self.tell("rolled-back", author, why, now);
    }

    fn fail(&mut self, rollout: &Rollout, why: String, now: u64) {
        match rollout.on_failure {
            OnFailure::Rollback => self.back(PHALANX, why, now),
            OnFailure::Pause if self.record.phase == Phase::Paused => {
                self.record.reason = why;
                self.record.bad = 0;
                self.changed = true;
            }
            OnFailure::Pause => self.pause(PHALANX, why, now),
        }
    }

    fn turn(&mut self, phase: Phase, author: &str, why: String, now: u64) {
        self.record.phase = phase;
        self.record.author = author.to_owned();
        self.record.reason = why;
        self.record.since = now;
        self.changed = true;
        self.waiting.clear();
    }

    fn tell(&mut self, what: &str, author: &str, reason: String, now: u64) {
        let event = Event {
            at: now,
            attempt: self.record.attempt,
            what: what.to_owned(),
            reason,
            author: author.to_owned(),
            step: match what {
                "started" => 0,
                _ => self.record.step + 1,
            },
            overlay: self.record.overlay.clone(),
            figures: self.record.last.clone(),
        };
        while self.record.events.len() >= EVENTS_MAX {
            self.record.events.pop_front();
        }
        self.record.events.push_back(event);
    }

    fn reset(&mut self, rollout: &Rollout, now: u64) {
        self.window = Window {
            since: Some(now),
            due: now + millis(rollout.analysis.interval),
            ..Window::default()
        };
    }
}

/// What holds during a step; none: as before.
fn overlay(step: &Step) -> Option<Overlay> {
    let none = Overlay::default();
    Some(match &step.action {
        StepAction::Mirror {
            per_million,
            compare,
        } => Overlay {
            mirror: Some(MirrorShare {
                per_million: *per_million,
                compare: *compare,
            }),
            ..none
        },
        StepAction::Lane(lane) => Overlay {
            lane: Some(lane.clone()),
            ..none
        },
        StepAction::Weight(weight) => Overlay {
            weight: *weight,
            ..none
        },
        StepAction::Pause => return None,
    })
}

/// A step in words.
pub fn told(step: &Step) -> String {
    let held = step
        .hold
        .map(|hold| format!(" for {hold:?}"))
        .unwrap_or_default();
    match &step.action {
        StepAction::Mirror {
            per_million,
            compare,
        } => {
            let compared = if *compare { ", compared" } else { "" };
            format!("mirror {}%{compared}{held}", per_million / 10_000)
        }
        StepAction::Lane(lane) => format!("lane {lane}{held}"),
        StepAction::Weight(weight) => format!("weight {weight}%{held}"),
        StepAction::Pause => format!("pause{held}"),
    }
}

/// Whether fewer of `of` requests succeeded than have to, if all others did.
fn is_short(analysis: &Analysis, counts: &Counts, of: u64) -> bool {
    let may_fail = u64::from(SHARE_WHOLE.saturating_sub(analysis.success_min));
    counts.failures.saturating_mul(u64::from(SHARE_WHOLE)) > of.saturating_mul(may_fail)
}

/// Even if everything that is still missing succeeded, it would be too little.
fn hopeless(analysis: &Analysis, counts: &Counts, needed: u64) -> bool {
    is_short(analysis, counts, needed.max(counts.requests))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn percent(share: f64) -> String {
    let text = format!("{:.3}", share * 100.0);
    let text = text.trim_end_matches('0').trim_end_matches('.');
    format!("{text}%")
}

fn ms(us: u64) -> String {
    format!("{:.1} ms", us as f64 / 1000.0)
}

fn spoken(ms: u64) -> String {
    let seconds = ms.div_ceil(1000);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        _ => format!("{}h", seconds / 3600),
    }
}

/// Who decides when nobody does.
pub const PHALANX: &str = "phalanx";
/// Intervals after which a measurement that can't be finished starts again.
const WINDOW_MAX: u64 = 12;
/// Milliseconds: a look takes less, however slow those are that are asked.
const LEAP_MIN: u64 = 30_000;

#[cfg(test)]
mod tests;
