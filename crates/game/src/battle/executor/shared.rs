//! What callers and cores share: the door, the queues, and what is known about them without a lock.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::thread::Thread;
use std::time::Duration;

use super::Options;
use crate::battle::admission::Admission;
use crate::battle::call::{CLASSES, Class};
use crate::battle::clock::{Clock, NEVER, nanos};
use crate::battle::gradient::{Gradient, Window};
use crate::battle::job::{Run, Ticket, Wakes, quietly};
use crate::battle::kind::{RegisterError, Shown};
use crate::battle::metrics::{End, Metrics, Tally};
use crate::battle::quarantine::Quarantine;
use crate::battle::queue::{Entry, LaneOptions, Queue};
use crate::battle::shadow::Aside;
use crate::battle::{GradientOptions, Reject, Stage, lock};

/// Kinds of battle at one executor.
pub const KINDS_MAX: usize = 64;
/// Fights that wait to be run again on shadow rules.
const ASIDES_MAX: usize = 256;
/// What waking a core costs its first fight, in nanoseconds: a core that is awake is preferred with that much more work.
const WAKE_COST: u64 = 5_000;
/// Load of a core whose fight doesn't end.
const STUCK_LOAD: u64 = 1 << 60;
/// One in so many fights that look too late at the door is let in, so that an estimate that is wrong gets corrected.
const DOOR_PROBE: u64 = 64;
/// What somebody refused is told to wait.
const RETRY_NS: std::ops::RangeInclusive<u64> = 1_000_000..=1_000_000_000;

pub(crate) struct Shared {
    pub clock: Clock,
    pub options: Options,
    /// Nanoseconds.
    pub longest: u64,
    pub cores: Box<[Core]>,
    /// What callers count; cores have tallies of their own.
    pub tally: Tally,
    pub quarantine: Quarantine,
    /// Nothing is taken in any more.
    pub draining: AtomicBool,
    /// Running fights stop, threads end.
    pub abort: AtomicBool,
    admission: Admission,
    /// Locked by one core per window; another one that finds it so keeps its window open.
    gradient: Mutex<Gradient>,
    /// Refused at the door for their deadline.
    late_at_door: AtomicU64,
    asides: Mutex<VecDeque<Box<dyn Aside>>>,
    asides_len: AtomicUsize,
    kinds: Mutex<Vec<(&'static str, Weak<dyn Shown>)>>,
}

/// One core's queue, and what others may know of it.
#[repr(align(128))]
pub(crate) struct Core {
    inbox: Mutex<Inbox>,
    /// Estimated nanoseconds of work queued and running, by class.
    work: [AtomicU64; CLASSES],
    /// Fights in the queue.
    pub waiting: AtomicUsize,
    /// When the oldest of them came; never, without any.
    oldest: AtomicU64,
    newest_first: AtomicU8,
    asleep: AtomicBool,
    pub stuck: AtomicBool,
    /// Since when the core is at a shadow fight; never, when it is at none.
    pub aside_since: AtomicU64,
    pub wakes: Wakes,
    thread: OnceLock<Thread>,
    pub tally: Tally,
}

pub(super) struct Inbox {
    pub queue: Queue<Arc<dyn Run>>,
    /// What the core is at, for who watches that it ends.
    pub current: Option<Arc<dyn Run>>,
    /// The core waits to be woken.
    pub asleep: bool,
    /// Nobody will look into this queue again.
    pub closed: bool,
}

impl Shared {
    pub fn new(options: Options) -> Self {
        let lanes = options.classes.map(|class| LaneOptions {
            share: class.share,
            target: nanos(class.target),
            max: class.queue_max,
        });
        let interval = nanos(options.interval);
        let gradient = Gradient::new(options.limit.unwrap_or(GradientOptions {
            initial: 64,
            min: 1,
            max: 1_024,
        }));
        Self {
            clock: Clock::start(),
            longest: nanos(options.longest),
            cores: (0..options.cores)
                .map(|_| Core::new(lanes, interval))
                .collect(),
            tally: Tally::new(),
            quarantine: Quarantine::new(options.quarantine_max, nanos(options.quarantine_forget)),
            draining: AtomicBool::new(false),
            abort: AtomicBool::new(false),
            admission: Admission::new(gradient.limit(), options.classes.map(|class| class.share)),
            gradient: Mutex::new(gradient),
            late_at_door: AtomicU64::new(0),
            asides: Mutex::default(),
            asides_len: AtomicUsize::new(0),
            kinds: Mutex::default(),
            options,
        }
    }

    /// A place in a queue, or why there is none.
    pub fn admit(
        &self,
        class: Class,
        now: u64,
        cost: u64,
        deadline: u64,
    ) -> Result<Ticket, (End, Reject)> {
        if self.draining.load(Ordering::Relaxed) {
            return Err((End::Draining, Reject::Draining));
        }
        if !self.admission.enter(class.index()) {
            return Err((End::Limit, self.overloaded()));
        }
        let core = self.choose();
        let done = now
            .saturating_add(self.wait(core, class))
            .saturating_add(cost);
        if now >= deadline || (done > deadline && !self.is_probe()) {
            self.admission.leave(class.index());
            let stage = Stage::Enqueue;
            return Err((End::LateAtDoor, Reject::DeadlinePassed { stage }));
        }
        self.cores[core].work[class.index()].fetch_add(cost, Ordering::Relaxed);
        Ok(Ticket {
            class,
            core,
            at: now,
            cost,
            deadline,
        })
    }

    fn is_probe(&self) -> bool {
        let before = self.late_at_door.fetch_add(1, Ordering::Relaxed);
        before % DOOR_PROBE == DOOR_PROBE - 1
    }

    /// The better one of two cores taken at random (Mitzenmacher 2001), by work.
    fn choose(&self) -> usize {
        let (a, b) = match self.cores.len() {
            0 | 1 => return 0,
            2 => (0, 1),
            n => {
                let (a, b) = (fastrand::usize(..n), fastrand::usize(..n - 1));
                (a, if b >= a { b + 1 } else { b })
            }
        };
        if self.cores[b].load() < self.cores[a].load() {
            b
        } else {
            a
        }
    }

    /// Nanoseconds until a fight of this class would begin: what is there, but no more than its own class' work at the
    /// class' share. While its newest come first, it is next.
    fn wait(&self, core: usize, class: Class) -> u64 {
        let core = &self.cores[core];
        if core.newest_first.load(Ordering::Relaxed) & (1 << class.index()) != 0 {
            return 0;
        }
        let shares = self.options.classes.map(|class| u64::from(class.share));
        let own = core.work[class.index()].load(Ordering::Relaxed);
        let at_share = own.saturating_mul(shares.iter().sum()) / shares[class.index()].max(1);
        core.all_work().min(at_share)
    }

    /// Queues an admitted job. One that finds no room ends here.
    pub fn push(&self, job: Arc<dyn Run>, ticket: Ticket) {
        let Err(job) = self.push_to(ticket.core, job, ticket) else {
            return;
        };
        let other = (ticket.core + 1) % self.cores.len().max(1);
        if other == ticket.core || !job.move_to(other) {
            job.refuse(End::QueueFull);
        } else if let Err(job) = self.push_to(other, job, ticket) {
            job.refuse(End::QueueFull);
        }
    }

    pub(super) fn push_to(
        &self,
        core: usize,
        job: Arc<dyn Run>,
        ticket: Ticket,
    ) -> Result<(), Arc<dyn Run>> {
        let core = &self.cores[core];
        let mut inbox = core.inbox();
        if inbox.closed {
            drop(inbox);
            job.refuse(End::Draining);
            return Ok(());
        }
        let entry = Entry {
            at: ticket.at,
            cost: ticket.cost,
            item: job,
        };
        let displaced = inbox.queue.push(ticket.class.index(), entry)?;
        core.show_length(&inbox);
        let wake = std::mem::take(&mut inbox.asleep);
        drop(inbox);
        if wake {
            core.asleep.store(false, Ordering::Relaxed);
            core.wake();
        }
        if let Some(displaced) = displaced {
            displaced.refuse(End::TooOld);
        }
        Ok(())
    }

    /// An admitted job ended.
    pub fn leave(&self, core: usize, class: Class, cost: u64) {
        self.cores[core].work[class.index()].fetch_sub(cost, Ordering::Relaxed);
        self.admission.leave(class.index());
    }

    pub fn moved(&self, from: usize, to: usize, class: Class, cost: u64) {
        self.cores[to].work[class.index()].fetch_add(cost, Ordering::Relaxed);
        self.cores[from].work[class.index()].fetch_sub(cost, Ordering::Relaxed);
    }

    /// Come again when what is queued now is done, and not all at once.
    pub fn overloaded(&self) -> Reject {
        let work: u64 = self.cores.iter().map(Core::all_work).sum();
        let each = work / self.cores.len().max(1) as u64;
        let wait = each.clamp(*RETRY_NS.start(), *RETRY_NS.end());
        let jitter = fastrand::u64(0..=wait / 2);
        Reject::Overloaded {
            retry_after: Duration::from_nanos(wait + jitter),
        }
    }

    pub fn in_flight(&self) -> u32 {
        self.admission.total()
    }

    /// Takes in what a core measured; `false` when another core is at it.
    pub fn learn(&self, window: &Window) -> bool {
        let Ok(mut gradient) = self.gradient.try_lock() else {
            return false;
        };
        self.admission.set_limit(gradient.update(window));
        true
    }

    /// Puts work aside for a core without any; gives the oldest back when there is too much.
    pub fn set_aside(&self, work: Box<dyn Aside>) -> Option<Box<dyn Aside>> {
        let mut asides = lock(&self.asides);
        let oldest = if asides.len() >= ASIDES_MAX {
            asides.pop_front()
        } else {
            None
        };
        asides.push_back(work);
        self.asides_len.store(asides.len(), Ordering::Relaxed);
        drop(asides);
        if let Some(core) = self.cores.iter().find(|core| core.is_asleep()) {
            core.wake();
        }
        oldest
    }

    pub fn take_aside(&self) -> Option<Box<dyn Aside>> {
        if self.asides_len.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut asides = lock(&self.asides);
        let work = asides.pop_front();
        self.asides_len.store(asides.len(), Ordering::Relaxed);
        work
    }

    pub fn show(&self, name: &'static str, kind: Weak<dyn Shown>) -> Result<(), RegisterError> {
        let mut kinds = lock(&self.kinds);
        kinds.retain(|(_, kind)| kind.strong_count() > 0);
        if kinds.iter().any(|(known, _)| *known == name) {
            return Err(RegisterError::Known { name });
        }
        if kinds.len() >= KINDS_MAX {
            return Err(RegisterError::TooMany { max: KINDS_MAX });
        }
        kinds.push((name, kind));
        Ok(())
    }

    pub fn metrics(&self) -> Metrics {
        let tallies = (self.cores.iter().map(|core| &core.tally)).chain([&self.tally]);
        let mut metrics = Metrics::of_tallies(tallies);
        metrics.in_flight = self.admission.in_flight();
        metrics.limit = self.admission.limit();
        metrics.suspects = self.quarantine.len() as u64;
        for core in &self.cores {
            metrics.queued += core.waiting.load(Ordering::Relaxed) as u64;
            metrics.work += Duration::from_nanos(core.all_work());
            metrics.stuck += u64::from(core.stuck.load(Ordering::Relaxed));
        }
        let kinds: Vec<_> = (lock(&self.kinds).iter())
            .filter_map(|(_, kind)| kind.upgrade())
            .collect();
        metrics.kinds = kinds.iter().map(|kind| kind.metrics()).collect();
        metrics.kinds.sort_by_key(|kind| kind.name);
        metrics
    }
}

impl Core {
    fn new(lanes: [LaneOptions; CLASSES], interval: u64) -> Self {
        Self {
            inbox: Mutex::new(Inbox {
                queue: Queue::new(lanes, interval),
                current: None,
                asleep: false,
                closed: false,
            }),
            work: [const { AtomicU64::new(0) }; CLASSES],
            waiting: AtomicUsize::new(0),
            oldest: AtomicU64::new(NEVER),
            newest_first: AtomicU8::new(0),
            asleep: AtomicBool::new(false),
            stuck: AtomicBool::new(false),
            aside_since: AtomicU64::new(NEVER),
            wakes: Wakes::default(),
            thread: OnceLock::new(),
            tally: Tally::new(),
        }
    }

    /// Held for a push or a pop; no foreign code runs under it.
    pub(super) fn inbox(&self) -> MutexGuard<'_, Inbox> {
        lock(&self.inbox)
    }

    pub(super) fn belongs_to(&self, thread: Thread) {
        let _ = self.thread.set(thread);
    }

    pub(super) fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    pub(super) fn is_asleep(&self) -> bool {
        self.asleep.load(Ordering::Relaxed)
    }

    /// Refuses what is queued; from now on whoever pushes is told.
    pub(super) fn close(&self) {
        let mut inbox = self.inbox();
        inbox.closed = true;
        let left = inbox.queue.take_all();
        self.show_length(&inbox);
        drop(inbox);
        for job in left {
            quietly(move || {
                job.refuse(End::Draining);
            });
        }
    }

    /// When the oldest fight in the queue came, as far as others may know.
    pub(super) fn oldest(&self) -> u64 {
        self.oldest.load(Ordering::Relaxed)
    }

    pub(super) fn show_length(&self, inbox: &Inbox) {
        self.waiting.store(inbox.queue.len(), Ordering::Relaxed);
        let oldest = inbox.queue.oldest().unwrap_or(NEVER);
        self.oldest.store(oldest, Ordering::Relaxed);
    }

    /// Tells what is true of the queue after a pop by its own thread.
    pub(super) fn show(&self, inbox: &Inbox) {
        self.show_length(inbox);
        let newest_first = inbox.queue.newest_first();
        if self.newest_first.load(Ordering::Relaxed) != newest_first {
            self.newest_first.store(newest_first, Ordering::Relaxed);
            self.tally
                .turned
                .store(inbox.queue.turned(), Ordering::Relaxed);
        }
    }

    /// Waits for work, unless there is some. The caller parks when this returns `true`.
    pub(super) fn fall_asleep(&self, abort: &AtomicBool) -> bool {
        let mut inbox = self.inbox();
        if inbox.queue.len() > 0 || abort.load(Ordering::SeqCst) {
            return false;
        }
        inbox.asleep = true;
        self.asleep.store(true, Ordering::Relaxed);
        true
    }

    fn all_work(&self) -> u64 {
        self.work
            .iter()
            .map(|work| work.load(Ordering::Relaxed))
            .sum()
    }

    fn load(&self) -> u64 {
        let mut load = self.all_work();
        if self.is_asleep() {
            load += WAKE_COST;
        }
        if self.stuck.load(Ordering::Relaxed) {
            load += STUCK_LOAD;
        }
        load
    }
}
