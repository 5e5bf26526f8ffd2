//! The live pool: a bounded queue, worker tasks, and one task that asks the policy and hires or releases workers. Jobs
//! go in by [`Workers::submit`] and are run once each, by the function that the pool was started with.

use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use phalanx_telemetry::metrics::Exposition;
use thiserror::Error;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::meter::Meter;
use super::metrics::{self, Counts, Metrics};
use super::policy::{Policy, Reason, TICK, Wanted};
use crate::dice::Dice;

/// Jobs that wait, unless said otherwise.
pub const QUEUE_MAX: usize = 10_000;
/// A tick is up to a tenth shorter or longer, so that replicas drift apart.
const JITTER: u32 = 10;
/// The service time that estimates of waiting reckon with averages over about as many jobs.
const ESTIMATE_JOBS: f64 = 32.0;

#[derive(Clone, Debug)]
pub struct PoolOptions {
    /// The label `pool` of the exported metrics.
    pub name: String,
    /// Jobs that may wait (10,000).
    pub queue_max: usize,
    /// Refuse a job that would wait longer, by estimate (no such limit).
    pub wait_max: Option<Duration>,
    /// Workers at the start (the policy's least).
    pub start: Option<u32>,
    /// Of the jitter (by chance).
    pub seed: Option<u64>,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self {
            name: "default".to_owned(),
            queue_max: QUEUE_MAX,
            wait_max: None,
            start: None,
            seed: None,
        }
    }
}

/// A pool of worker tasks. Dropped, it takes no more jobs, runs those that wait, and ends.
#[derive(Debug)]
pub struct Workers<J> {
    shared: Arc<Shared<J>>,
    ended: watch::Receiver<()>,
}

/// The job comes back, with the reason.
pub struct Refused<J> {
    pub job: J,
    pub why: Why,
}

#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Why {
    /// `wait` is how long the queue would take to be worked off as things are; none before a job has ended.
    #[error("{queue} jobs wait already")]
    Full {
        queue: usize,
        wait: Option<Duration>,
    },
    #[error("it would wait {wait:?}; the limit is {limit:?}")]
    TooLong { wait: Duration, limit: Duration },
    #[error("the pool is being drained")]
    Draining,
}

impl<J> fmt::Debug for Refused<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refused")
            .field("why", &self.why)
            .finish_non_exhaustive()
    }
}

impl<J> fmt::Display for Refused<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "job refused: {}", self.why)
    }
}

impl<J> std::error::Error for Refused<J> {}

/// How a drain ended.
#[derive(Debug)]
pub struct Drained<J> {
    /// Jobs that no worker had begun when the time was up; nobody will.
    pub unstarted: Vec<J>,
    /// Jobs that were still running then; their workers finish them.
    pub running: u32,
}

impl<J: Send + 'static> Workers<J> {
    /// Starts the workers and the task that asks `policy`; needs a tokio runtime. A panic in `run` is counted, ends that
    /// job, and keeps the worker.
    pub fn spawn<F, Fut>(options: PoolOptions, policy: impl Policy + 'static, run: F) -> Self
    where
        F: Fn(J) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let (ending, ended) = watch::channel(());
        let shared = Arc::new(Shared {
            state: Mutex::new(State::new()),
            turns: Semaphore::new(0),
            started: Instant::now(),
            options,
        });
        let ending = Ending {
            shared: Arc::clone(&shared),
            _ended: ending,
        };
        tokio::spawn(control(ending, policy, Arc::new(run)));
        Self { shared, ended }
    }

    /// Puts the job at the end of the queue.
    pub fn submit(&self, job: J) -> Result<(), Refused<J>> {
        self.shared.submit(job)
    }

    /// How long a job that is submitted now would wait, as things are; `None` before a job has ended.
    pub fn wait(&self) -> Option<Duration> {
        self.shared.lock().wait()
    }

    pub fn metrics(&self) -> Metrics {
        let now = self.shared.now();
        let mut state = self.shared.lock();
        let state = &mut *state;
        Metrics {
            name: self.shared.options.name.clone(),
            queue: state.queue.len() as u64,
            latency_p95_ms: state.meter.latency.quantile_ms(0.95, now),
            latency_mean_ms: state.meter.latency.mean_ms(now),
            wait_p95_ms: state.meter.wait.quantile_ms(0.95, now),
            workers: state.live,
            busy: state.busy,
            wanted: state.wanted.size,
            reason: state.wanted.reason,
            counts: state.counts,
        }
    }

    /// The pool's metrics as Prometheus reads them. For several pools in one exposition: [`metrics::write`].
    pub fn write(&self, out: &mut Exposition) {
        metrics::write(&[self.metrics()], out);
    }

    /// Takes no more jobs, and waits until those that were taken have ended, `limit` at the longest.
    pub async fn drain(&self, limit: Duration) -> Drained<J> {
        self.shared.close();
        let mut ended = self.ended.clone();
        // The sender is never used: it goes when the pool has ended.
        let _ = timeout(limit, ended.changed()).await;
        let mut state = self.shared.lock();
        let unstarted = state.queue.drain(..).map(|queued| queued.job).collect();
        Drained {
            unstarted,
            running: state.busy,
        }
    }
}

impl<J> Drop for Workers<J> {
    fn drop(&mut self) {
        self.shared.close();
    }
}

#[derive(Debug)]
struct Shared<J> {
    /// A mutex, since queue and counts change together; held for some stores, never across an await.
    state: Mutex<State<J>>,
    /// One permit per job in the queue and per worker that is to end; closed when the pool is.
    turns: Semaphore,
    started: Instant,
    options: PoolOptions,
}

#[derive(Debug)]
struct State<J> {
    open: bool,
    queue: VecDeque<Queued<J>>,
    /// Workers that are to end as soon as they have no job.
    releasing: u32,
    live: u32,
    busy: u32,
    /// As last ordered.
    wanted: Wanted,
    /// Seconds; none before a job has ended.
    service: Option<f64>,
    meter: Meter,
    counts: Counts,
}

#[derive(Debug)]
struct Queued<J> {
    job: J,
    at: Duration,
}

enum Turn<J> {
    Job {
        job: J,
        waited: Duration,
    },
    /// Somebody else had it.
    Nothing,
    End,
}

impl<J> State<J> {
    fn new() -> Self {
        Self {
            open: true,
            queue: VecDeque::new(),
            releasing: 0,
            live: 0,
            busy: 0,
            wanted: Wanted {
                size: 0,
                reason: Reason::Steady,
            },
            service: None,
            meter: Meter::default(),
            counts: Counts::default(),
        }
    }

    fn wait(&self) -> Option<Duration> {
        if self.queue.is_empty() && self.busy < self.wanted.size {
            return Some(Duration::ZERO);
        }
        let turns = (self.queue.len() + 1) as f64 / f64::from(self.wanted.size.max(1));
        Duration::try_from_secs_f64(turns * self.service?).ok()
    }

    fn refusal(&self, options: &PoolOptions) -> Option<Why> {
        if !self.open {
            return Some(Why::Draining);
        }
        let wait = self.wait();
        let queue = self.queue.len();
        if queue >= options.queue_max {
            return Some(Why::Full { queue, wait });
        }
        match (wait, options.wait_max) {
            (Some(wait), Some(limit)) if wait > limit => Some(Why::TooLong { wait, limit }),
            _ => None,
        }
    }
}

impl<J> Shared<J> {
    fn lock(&self) -> MutexGuard<'_, State<J>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn submit(&self, job: J) -> Result<(), Refused<J>> {
        let at = self.now();
        {
            let mut state = self.lock();
            let why = state.refusal(&self.options);
            if why != Some(Why::Draining) {
                state.meter.arrived();
            }
            if let Some(why) = why {
                state.counts.refuse(why);
                return Err(Refused { job, why });
            }
            state.counts.accepted += 1;
            state.queue.push_back(Queued { job, at });
        }
        self.turns.add_permits(1);
        Ok(())
    }

    fn close(&self) {
        self.lock().open = false;
        self.turns.close();
    }

    /// What a worker with a permit does next. To end comes before the next job.
    fn turn(&self) -> Turn<J> {
        let now = self.now();
        let mut state = self.lock();
        if state.releasing > 0 {
            state.releasing -= 1;
            return Turn::End;
        }
        match state.queue.pop_front() {
            Some(Queued { job, at }) => {
                state.busy += 1;
                let waited = now.saturating_sub(at);
                Turn::Job { job, waited }
            }
            None if state.open => Turn::Nothing,
            None => Turn::End,
        }
    }

    fn finish(&self, waited: Duration, began: Duration, panicked: bool) {
        let now = self.now();
        let service = now.saturating_sub(began);
        let mut state = self.lock();
        state.busy -= 1;
        let seconds = service.as_secs_f64();
        let usual = state.service.unwrap_or(seconds);
        state.service = Some(usual + (seconds - usual) / ESTIMATE_JOBS);
        state.meter.ended(waited, service, now);
        if panicked {
            state.counts.panicked += 1;
        } else {
            state.counts.done += 1;
        }
    }

    /// Returns how many workers are to be started.
    fn order(&self, wanted: Wanted) -> u32 {
        let mut state = self.lock();
        let size = state.wanted.size;
        state.wanted = wanted;
        if wanted.size < size {
            let fewer = size - wanted.size;
            state.counts.shrunk += 1;
            state.releasing += fewer;
            drop(state);
            self.turns.add_permits(fewer as usize);
            return 0;
        }
        let more = wanted.size - size;
        // The first ones are no change of size.
        if more > 0 && size > 0 {
            state.counts.grown += 1;
        }
        // Who was to end stays instead. A permit that is in a worker's hand already finds nothing, or a job.
        let stay = more.min(state.releasing);
        state.releasing -= stay;
        self.turns.forget_permits(stay as usize);
        more - stay
    }
}

/// A worker that is there, until dropped.
struct Seat<J> {
    shared: Arc<Shared<J>>,
    busy: bool,
}

impl<J> Drop for Seat<J> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.live -= 1;
        // The runtime goes, or a job panicked even in its drop.
        if self.busy {
            state.busy -= 1;
            state.counts.panicked += 1;
        }
    }
}

async fn work<J, F, Fut>(mut seat: Seat<J>, run: Arc<F>)
where
    F: Fn(J) -> Fut,
    Fut: Future<Output = ()>,
{
    let shared = Arc::clone(&seat.shared);
    loop {
        match shared.turns.acquire().await {
            Ok(permit) => permit.forget(),
            // Closed: no longer a pause by itself.
            Err(_) => tokio::task::yield_now().await,
        }
        match shared.turn() {
            Turn::Job { job, waited } => {
                seat.busy = true;
                let began = shared.now();
                let panicked = panics(begin(&*run, job)).await;
                seat.busy = false;
                shared.finish(waited, began, panicked);
            }
            Turn::Nothing => {}
            Turn::End => return,
        }
    }
}

/// The call itself inside the future, so that its panic is one of the job's.
async fn begin<J, F, Fut>(run: &F, job: J)
where
    F: Fn(J) -> Fut,
    Fut: Future<Output = ()>,
{
    run(job).await;
}

/// Whether the future ended by a panic.
async fn panics(future: impl Future<Output = ()>) -> bool {
    let mut future = pin!(future);
    poll_fn(|cx| {
        // A future that panicked isn't polled again, only dropped.
        match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(())) => Poll::Ready(false),
            Err(_) => Poll::Ready(true),
        }
    })
    .await
}

/// However the pool's task ends, nobody submits jobs to workers that aren't there, and whoever drains hears of it.
struct Ending<J> {
    shared: Arc<Shared<J>>,
    _ended: watch::Sender<()>,
}

impl<J> Drop for Ending<J> {
    fn drop(&mut self) {
        self.shared.close();
    }
}

/// Owns the workers; ends when the pool is closed and the last of them has ended.
async fn control<J, F, Fut>(ending: Ending<J>, mut policy: impl Policy, run: Arc<F>)
where
    J: Send + 'static,
    F: Fn(J) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let shared = &ending.shared;
    let mut dice = Dice::new(shared.options.seed.unwrap_or_else(|| fastrand::u64(..)));
    let mut crew = JoinSet::new();
    let bounds = policy.bounds();
    let start = shared.options.start.unwrap_or(bounds.min());
    let wanted = Wanted {
        size: bounds.clamp(start),
        reason: Reason::Steady,
    };
    hire(shared, &run, &mut crew, shared.order(wanted));
    let mut next = Instant::now() + part_of(policy.every(), &mut dice);
    loop {
        tokio::select! {
            () = sleep_until(next) => {
                let fewest = TICK - TICK / JITTER;
                next = Instant::now() + fewest + part_of(TICK * 2 / JITTER, &mut dice);
                let more = ask(shared, &mut policy);
                hire(shared, &run, &mut crew, more);
            }
            Some(joined) = crew.join_next() => {
                if joined.is_err() {
                    tracing::error!(pool = %shared.options.name, "worker lost; another takes its place");
                    hire(shared, &run, &mut crew, 1);
                }
            }
        }
        if crew.is_empty() {
            break;
        }
    }
}

fn ask<J>(shared: &Shared<J>, policy: &mut impl Policy) -> u32 {
    let now = shared.now();
    let sample = {
        let mut state = shared.lock();
        let state = &mut *state;
        if !state.open && state.queue.is_empty() {
            return 0;
        }
        let queue = state.queue.len() as u64;
        state
            .meter
            .sample(queue, state.busy, state.wanted.size, now)
    };
    let asked = catch_unwind(AssertUnwindSafe(|| {
        let wanted = policy.wanted(&sample, now);
        let size = policy.bounds().clamp(wanted.size);
        Wanted { size, ..wanted }
    }));
    let Ok(wanted) = asked else {
        tracing::error!(pool = %shared.options.name, "the policy panicked; the size stays");
        return 0;
    };
    if wanted.size != sample.size {
        tracing::info!(
            pool = %shared.options.name,
            from = sample.size,
            to = wanted.size,
            reason = wanted.reason.as_str(),
            "pool resized"
        );
    }
    shared.order(wanted)
}

fn hire<J, F, Fut>(shared: &Arc<Shared<J>>, run: &Arc<F>, crew: &mut JoinSet<()>, count: u32)
where
    J: Send + 'static,
    F: Fn(J) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    shared.lock().live += count;
    for _ in 0..count {
        let seat = Seat {
            shared: Arc::clone(shared),
            busy: false,
        };
        crew.spawn(work(seat, Arc::clone(run)));
    }
}

fn part_of(whole: Duration, dice: &mut Dice) -> Duration {
    let nanos = u64::try_from(whole.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(dice.below(nanos))
}

#[cfg(test)]
mod tests;
