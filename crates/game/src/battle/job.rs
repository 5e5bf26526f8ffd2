//! One submitted fight: input, rules and answer in one allocation that the caller and the queue share. Whoever takes the
//! job out of its state (a core that runs it, a caller that leaves, a queue that refuses it) accounts for its end, once.

use std::collections::VecDeque;
use std::future::Future;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context as TaskContext, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use super::context::{Panicked, Setup, Stop, fight};
use super::executor::{Shared, Station};
use super::judge::WITHOUT_RESULT;
use super::kind::{Inner, ON_TRIAL, RECORDED, SHADOWED};
use super::metrics::End;
use super::rules::Version;
use super::{Battle, Call, Class, Reject, Stage, lock};

const QUEUED: u8 = 0;
const RUNNING: u8 = 1;
/// Running, but nobody wants the answer any more.
pub(crate) const STOPPED: u8 = 2;
const OVER: u8 = 3;
/// Queued, and on its way from one core's queue to another's.
const MOVING: u8 = 4;

/// Answers whose callers are not yet woken, at most.
const WAKES_MAX: usize = 32;
/// Nanoseconds that a caller's wake may wait for the next one's.
const WAKE_HELD: u64 = 20_000;
/// A fight estimated to take longer, in nanoseconds, starts with all callers awake.
const WAKE_BEFORE: u64 = 5_000;
/// Nanoseconds past its deadline after which a fight that doesn't stop is given up by its caller.
pub(crate) const GRACE: u64 = 50_000_000;
/// Fights between two looks at a version on trial.
const REVIEW_EVERY: u64 = 64;

/// A result and what it took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fought<O> {
    pub output: O,
    /// The version of the rules.
    pub rules: u64,
    /// From submission to the start of the fight.
    pub waited: Duration,
    pub took: Duration,
}

/// A fight that was submitted: a future of its end. Dropping it cancels the work, wherever it is.
#[must_use = "dropping it cancels the fight"]
pub struct Fight<B: Battle>(State<B>);

enum State<B: Battle> {
    Refused(Reject),
    Submitted(Arc<Job<B>>),
    Over,
}

impl<B: Battle> Fight<B> {
    pub(crate) fn refused(reject: Reject) -> Self {
        Self(State::Refused(reject))
    }

    pub(crate) fn submitted(job: Arc<Job<B>>) -> Self {
        Self(State::Submitted(job))
    }

    /// Blocks the calling thread until the end; for threads outside an async runtime.
    pub fn wait(mut self) -> Result<Fought<B::Output>, Reject> {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut cx = TaskContext::from_waker(&waker);
        loop {
            if let Poll::Ready(end) = Pin::new(&mut self).poll(&mut cx) {
                return end;
            }
            thread::park();
        }
    }
}

impl<B: Battle> Future for Fight<B> {
    type Output = Result<Fought<B::Output>, Reject>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let end = match &self.0 {
            State::Submitted(job) => match job.take(cx.waker()) {
                Some(end) => end,
                None => return Poll::Pending,
            },
            State::Refused(reject) => Err(reject.clone()),
            // Polled after its end, which only a caller can do who has it.
            State::Over => Err(Reject::Cancelled),
        };
        self.0 = State::Over;
        Poll::Ready(end)
    }
}

impl<B: Battle> Drop for Fight<B> {
    fn drop(&mut self) {
        if let State::Submitted(job) = &self.0 {
            job.abandon();
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Wakers of callers that were answered; woken together, so that a burst of short fights costs their runtime one wake. A
/// core's own, but for the watch, which wakes those that a fight holds up which is longer than was thought.
#[derive(Default)]
pub(crate) struct Wakes(Mutex<Held>);

#[derive(Default)]
struct Held {
    wakers: VecDeque<Waker>,
    since: u64,
}

impl Wakes {
    fn hold(&self, waker: Waker, now: u64) {
        let mut held = lock(&self.0);
        if held.wakers.is_empty() {
            held.since = now;
        }
        held.wakers.push_back(waker);
        let full = held.wakers.len() >= WAKES_MAX;
        drop(held);
        if full {
            self.flush();
        }
    }

    /// Before a fight that is expected to take so long.
    fn before(&self, cost: u64, now: u64) {
        if cost > WAKE_BEFORE || now.saturating_sub(lock(&self.0).since) > WAKE_HELD {
            self.flush();
        }
    }

    pub fn flush(&self) {
        let next = || lock(&self.0).wakers.pop_front();
        while let Some(waker) = next() {
            quietly(|| waker.wake());
        }
    }
}

/// Runs foreign code that is no fight (destructors, wakers): its panic must not cost a core its thread.
pub(crate) fn quietly(run: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(run)).is_err() {
        tracing::error!("a destructor or a waker panicked");
    }
}

/// What a core and a queue know of a job.
pub(crate) trait Run: Send + Sync {
    fn run(self: Arc<Self>, at: &mut Station<'_>);
    /// Ends a queued job without a fight. `None`: it had ended already; else since when it waited.
    fn refuse(&self, end: End) -> Option<u64>;
    /// Answers the caller of a fight that doesn't stop though its deadline is long past (or [`super::clock::NEVER`] is now).
    /// Whether it is such a one.
    fn give_up(&self, now: u64) -> bool;
    /// After a panic of the job's own code outside of the fight.
    fn fail(&self);
    fn ticket(&self) -> Ticket;
    /// Of a queued job: accounts for it at another core. `false`: it has ended.
    fn move_to(&self, core: usize) -> bool;
}

/// How a job is queued.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket {
    pub class: Class,
    pub core: usize,
    pub at: u64,
    pub cost: u64,
    pub deadline: u64,
}

pub(crate) struct Job<B: Battle> {
    pub kind: Arc<Inner<B>>,
    pub rules: Arc<Version<B::Rules>>,
    pub input: B::Input,
    pub call: Call,
    core: AtomicU32,
    at: u64,
    cost: u64,
    deadline: u64,
    state: AtomicU8,
    slot: Mutex<Slot<B::Output>>,
}

enum Slot<O> {
    Empty(Option<Waker>),
    Full(Result<Fought<O>, Reject>),
    Read,
}

impl<B: Battle> Job<B> {
    pub fn new(
        kind: Arc<Inner<B>>,
        rules: Arc<Version<B::Rules>>,
        input: B::Input,
        call: Call,
        ticket: Ticket,
    ) -> Self {
        Self {
            kind,
            rules,
            input,
            call,
            core: AtomicU32::new(ticket.core as u32),
            at: ticket.at,
            cost: ticket.cost,
            deadline: ticket.deadline,
            state: AtomicU8::new(QUEUED),
            slot: Mutex::new(Slot::Empty(None)),
        }
    }

    fn shared(&self) -> &Shared {
        &self.kind.shared
    }

    /// The end, if there is one; else `waker` is woken by it.
    fn take(&self, waker: &Waker) -> Option<Result<Fought<B::Output>, Reject>> {
        let mut slot = lock(&self.slot);
        match &mut *slot {
            Slot::Empty(Some(known)) if known.will_wake(waker) => None,
            Slot::Empty(known) => {
                *known = Some(waker.clone());
                None
            }
            full => match mem::replace(full, Slot::Read) {
                Slot::Full(end) => Some(end),
                Slot::Empty(_) | Slot::Read => Some(Err(Reject::Cancelled)),
            },
        }
    }

    /// The first answer counts. Returns whom to wake.
    fn answer(&self, end: Result<Fought<B::Output>, Reject>) -> Option<Waker> {
        let mut slot = lock(&self.slot);
        let Slot::Empty(waker) = &mut *slot else {
            return None;
        };
        let waker = waker.take();
        *slot = Slot::Full(end);
        waker
    }

    fn claim(&self, from: u8, to: u8) -> bool {
        (self.state)
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    fn leave(&self) {
        let core = self.core.load(Ordering::Relaxed) as usize;
        self.shared().leave(core, self.call.class, self.cost);
    }

    fn abandon(&self) {
        while !self.claim(QUEUED, OVER) {
            if self.claim(RUNNING, STOPPED) || self.state.load(Ordering::Acquire) != MOVING {
                return;
            }
            std::hint::spin_loop();
        }
        let tally = &self.shared().tally;
        tally.count_shared(self.call.class, End::Cancelled);
        self.leave();
    }

    fn run_claimed(self: &Arc<Self>, at: &mut Station<'_>) {
        let (shared, class) = (self.shared(), self.call.class);
        let waited = at.now.saturating_sub(self.at);
        if at.now >= self.deadline {
            let stage = Stage::Dequeue;
            at.measure_refused(class, waited);
            self.end(at, End::LateInQueue, Err(Reject::DeadlinePassed { stage }));
            return;
        }
        at.tally().waited(class, waited);
        at.core().wakes.before(self.cost, at.now);
        let started = at.now;
        let setup = Setup {
            rules: &self.rules.rules,
            version: self.rules.number,
            call: &self.call,
            every: shared.options.check_every,
        };
        let stop = Stop {
            clock: &shared.clock,
            deadline: self.deadline,
            state: &self.state,
            abort: &shared.abort,
            yield_to: None,
            wakes: &at.core().wakes,
        };
        let ended = fight(
            &self.kind.battle,
            &setup,
            at.arena.bump(),
            Some(stop),
            &self.input,
        );
        at.now = shared.clock.now();
        let took = at.now.saturating_sub(started);
        at.arena.reset();
        at.tally().fought(took);
        let result = self.judge_end(at, ended);
        if !matches!(result, Err(Reject::Cancelled | Reject::Draining)) {
            self.kind.learn_cost(took);
            at.measure(class, waited, took);
        }
        let end = end_of(&result);
        let flags = self.kind.flags.load(Ordering::Relaxed);
        let decided = matches!(
            end,
            End::Result | End::Foul | End::Exhausted | End::Panicked
        );
        if decided && (flags != 0 || B::OUTCOMES > 0) {
            self.end_watched(at, end, result, flags, waited, took);
            return;
        }
        let fought = result.map(|output| self.fought(output, waited, took));
        self.end(at, end, fought);
    }

    /// Panics and lateness become rejections.
    fn judge_end(
        &self,
        at: &mut Station<'_>,
        ended: Result<Result<B::Output, Reject>, Panicked>,
    ) -> Result<B::Output, Reject> {
        match ended {
            Ok(Ok(_)) if at.now >= self.deadline => Err(Reject::DeadlinePassed {
                stage: Stage::Fight,
            }),
            Ok(result) => result,
            Err(Panicked) => {
                let hash = self.kind.suspect(self.rules.number, &self.input);
                self.shared().quarantine.panicked(hash, at.now);
                tracing::warn!(
                    kind = self.kind.name,
                    rules = self.rules.number,
                    hash = format_args!("{hash:016x}"),
                    "battle panicked"
                );
                Err(Reject::Panicked { hash })
            }
        }
    }

    /// As `end`, where outcomes are counted, fights recorded or run again: reads the result first, acts afterwards.
    fn end_watched(
        self: &Arc<Self>,
        at: &mut Station<'_>,
        end: End,
        result: Result<B::Output, Reject>,
        flags: u8,
        waited: u64,
        took: u64,
    ) {
        let outcome = result.as_ref().map_or(WITHOUT_RESULT, B::outcome);
        let fights = if B::OUTCOMES > 0 {
            self.rules.count(outcome.min(WITHOUT_RESULT))
        } else {
            0
        };
        let shadow = self.kind.shadow_for(flags & SHADOWED != 0);
        let recorder = (self.kind).recorder_for(flags & RECORDED != 0, end == End::Panicked);
        let digest = (shadow.is_some() || recorder.is_some())
            .then(|| super::replay::digest_with::<B>(&result, &mut at.scratch))
            .flatten();
        let fought = result.map(|output| self.fought(output, waited, took));
        self.end(at, end, fought);
        if flags & ON_TRIAL != 0 && fights % REVIEW_EVERY == 0 {
            self.kind.review();
        }
        let Some(digest) = digest else {
            return;
        };
        if let Some(recorder) = recorder {
            at.core().wakes.flush();
            recorder.write(&super::record::Record::of(self, digest));
        }
        if let Some(shadow) = shadow {
            shadow.take_in(self, digest, outcome);
        }
    }

    fn fought(&self, output: B::Output, waited: u64, took: u64) -> Fought<B::Output> {
        Fought {
            output,
            rules: self.rules.number,
            waited: Duration::from_nanos(waited),
            took: Duration::from_nanos(took),
        }
    }

    fn end(&self, at: &mut Station<'_>, end: End, result: Result<Fought<B::Output>, Reject>) {
        // Counted and over before it is gone, so that whoever sees nothing in flight sees all ends, and cuts none short.
        at.tally().count(self.call.class, end);
        self.state.store(OVER, Ordering::Release);
        self.leave();
        if let Some(waker) = self.answer(result) {
            at.core().wakes.hold(waker, at.now);
        }
    }
}

fn end_of<O>(result: &Result<O, Reject>) -> End {
    match result {
        Ok(_) => End::Result,
        Err(Reject::Exhausted { .. }) => End::Exhausted,
        Err(Reject::DeadlinePassed { .. }) => End::LateInFight,
        Err(Reject::Cancelled) => End::Cancelled,
        Err(Reject::Panicked { .. }) => End::Panicked,
        Err(Reject::Draining) => End::Draining,
        // A battle's own word, whichever it chose.
        Err(_) => End::Foul,
    }
}

impl<B: Battle> Run for Job<B> {
    fn run(self: Arc<Self>, at: &mut Station<'_>) {
        if self.claim(QUEUED, RUNNING) {
            self.run_claimed(at);
        }
    }

    fn refuse(&self, end: End) -> Option<u64> {
        if !self.claim(QUEUED, OVER) {
            return None;
        }
        let shared = self.shared();
        shared.tally.count_shared(self.call.class, end);
        self.leave();
        let reject = match end {
            End::Draining => Reject::Draining,
            End::LateInQueue => Reject::DeadlinePassed {
                stage: Stage::Dequeue,
            },
            _ => shared.overloaded(),
        };
        if let Some(waker) = self.answer(Err(reject)) {
            waker.wake();
        }
        Some(self.at)
    }

    fn give_up(&self, now: u64) -> bool {
        let state = self.state.load(Ordering::Acquire);
        if !matches!(state, RUNNING | STOPPED) || now < self.deadline.saturating_add(GRACE) {
            return false;
        }
        let stage = Stage::Fight;
        let reject = match self.shared().abort.load(Ordering::SeqCst) {
            true => Reject::Draining,
            false => Reject::DeadlinePassed { stage },
        };
        if let Some(waker) = self.answer(Err(reject)) {
            waker.wake();
        }
        true
    }

    fn fail(&self) {
        if self.state.swap(OVER, Ordering::AcqRel) == OVER {
            return;
        }
        let shared = self.shared();
        shared.tally.count_shared(self.call.class, End::Panicked);
        self.leave();
        if let Some(waker) = self.answer(Err(Reject::Panicked { hash: 0 })) {
            waker.wake();
        }
    }

    fn ticket(&self) -> Ticket {
        Ticket {
            class: self.call.class,
            core: self.core.load(Ordering::Relaxed) as usize,
            at: self.at,
            cost: self.cost,
            deadline: self.deadline,
        }
    }

    fn move_to(&self, core: usize) -> bool {
        if !self.claim(QUEUED, MOVING) {
            return false;
        }
        let before = self.core.swap(core as u32, Ordering::Relaxed) as usize;
        self.shared()
            .moved(before, core, self.call.class, self.cost);
        self.state.store(QUEUED, Ordering::Release);
        true
    }
}
