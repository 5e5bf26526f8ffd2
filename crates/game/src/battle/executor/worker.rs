//! One core's thread: its own queue first, then what another core can't get to, then shadow fights, then sleep.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use super::Shared;
use super::shared::Core;
use crate::battle::arena::Arena;
use crate::battle::call::Class;
use crate::battle::clock::{NEVER, nanos};
use crate::battle::gradient::Window;
use crate::battle::job::{Run, quietly};
use crate::battle::metrics::{End, Tally};

/// A window of measurements is at least so long, in nanoseconds, and has at least so many fights in it ...
const WINDOW: u64 = 100_000_000;
const WINDOW_FIGHTS: u32 = 8;
/// ... unless it is so long. Shorter ones would take a burst, or a stall of the machine, for overload.
const WINDOW_MAX: u64 = 1_000_000_000;
/// How much older the oldest fight of another core must be than this core's before it is taken first, in nanoseconds. A core
/// whose thread the system doesn't run would keep what it has queued.
const BEHIND: u64 = 1_000_000;
/// Bytes of a buffer for hashing that are kept between fights.
const SCRATCH_KEPT: usize = 64 * 1024;

/// What a thread has at hand while it works.
pub(crate) struct Station<'a> {
    /// When the last thing ended that took time.
    pub now: u64,
    pub arena: Arena,
    pub scratch: Vec<u8>,
    pub shared: &'a Shared,
    index: usize,
    /// The core that was looked at last.
    neighbour: usize,
    measured: Measured,
}

/// Sums of a window, in nanoseconds.
#[derive(Default)]
struct Measured {
    since: u64,
    count: u32,
    took: u64,
    target: u64,
    fights: u32,
    fight: u64,
    in_flight: u32,
}

pub(super) fn serve(shared: &Shared, index: usize) {
    let core = &shared.cores[index];
    core.belongs_to(thread::current());
    let mut at = Station {
        now: shared.clock.now(),
        arena: Arena::new(shared.options.arena_max, shared.options.arena_trim_calls),
        scratch: Vec::new(),
        shared,
        index,
        neighbour: index,
        measured: Measured::default(),
    };
    let mut refused = Vec::new();
    while !shared.abort.load(Ordering::Relaxed) {
        if at.run_behind(&mut refused) {
            continue;
        }
        if let Some(job) = at.next(&mut refused) {
            at.run(job);
        } else if !at.run_stolen(&mut refused) && !at.run_aside() {
            at.sleep();
        }
    }
    at.close();
}

impl<'a> Station<'a> {
    pub fn core(&self) -> &'a Core {
        &self.shared.cores[self.index]
    }

    /// For this thread only.
    pub fn tally(&self) -> &'a Tally {
        &self.core().tally
    }

    fn next(&mut self, refused: &mut Vec<Arc<dyn Run>>) -> Option<Arc<dyn Run>> {
        let core = self.core();
        let mut inbox = core.inbox();
        let last = inbox.current.take();
        let job = inbox.queue.pop(self.now, refused);
        core.show(&inbox);
        inbox.current = job.clone();
        drop(inbox);
        // A job's last handle may run foreign destructors: not under the lock.
        quietly(|| drop(last));
        self.refuse(refused);
        job
    }

    fn refuse(&mut self, refused: &mut Vec<Arc<dyn Run>>) {
        for job in refused.drain(..) {
            quietly(|| {
                if let Some(at) = job.refuse(End::TooOld) {
                    self.measure_refused(job.ticket().class, self.now.saturating_sub(at));
                }
                drop(job);
            });
        }
    }

    fn run(&mut self, job: Arc<dyn Run>) {
        // After it is known as the current one: either this sees the end of the executor, or who ends it sees the job.
        if self.shared.abort.load(Ordering::SeqCst) {
            job.refuse(End::Draining);
            return;
        }
        if catch_unwind(AssertUnwindSafe(|| job.run(self))).is_err() {
            let job = self.core().inbox().current.clone();
            if let Some(job) = job {
                quietly(|| job.fail());
            }
            self.now = self.shared.clock.now();
        }
        if self.scratch.capacity() > SCRATCH_KEPT {
            self.scratch = Vec::new();
        }
        let tally = self.tally();
        store(&tally.arena_bytes, self.arena.bytes() as u64);
        store(&tally.arena_trims, self.arena.trims);
    }

    /// A fight of the next core, one after the other, that has waited for much longer than this core's own.
    fn run_behind(&mut self, refused: &mut Vec<Arc<dyn Run>>) -> bool {
        let cores = &self.shared.cores;
        if cores.len() < 2 {
            return false;
        }
        self.neighbour = (self.neighbour + 1) % cores.len();
        if self.neighbour == self.index {
            self.neighbour = (self.neighbour + 1) % cores.len();
        }
        let other = &cores[self.neighbour];
        let own = self.core().oldest().min(self.now);
        other.oldest().saturating_add(BEHIND) < own && self.steal(other, refused)
    }

    /// Any work of another core.
    fn run_stolen(&mut self, refused: &mut Vec<Arc<dyn Run>>) -> bool {
        self.core().wakes.flush();
        let (cores, index) = (&self.shared.cores, self.index);
        (1..cores.len())
            .map(|step| &cores[(index + step) % cores.len()])
            .any(|other| other.waiting.load(Ordering::Relaxed) > 0 && self.steal(other, refused))
    }

    fn steal(&mut self, other: &Core, refused: &mut Vec<Arc<dyn Run>>) -> bool {
        let mut inbox = other.inbox();
        let job = inbox.queue.pop(self.now, refused);
        other.show_length(&inbox);
        drop(inbox);
        self.refuse(refused);
        let Some(job) = job else {
            return false;
        };
        let last = self.core().inbox().current.replace(job.clone());
        quietly(|| drop(last));
        let stolen = &self.tally().stolen;
        store(stolen, stolen.load(Ordering::Relaxed) + 1);
        self.run(job);
        true
    }

    fn run_aside(&mut self) -> bool {
        let Some(work) = self.shared.take_aside() else {
            return false;
        };
        let since = &self.core().aside_since;
        store(since, self.shared.clock.now());
        quietly(|| {
            if let Some(work) = work.run(self)
                && let Some(oldest) = self.shared.set_aside(work)
            {
                oldest.skip();
            }
        });
        store(since, NEVER);
        self.now = self.shared.clock.now();
        true
    }

    fn sleep(&mut self) {
        if self.core().fall_asleep(&self.shared.abort) {
            thread::park();
        }
        self.now = self.shared.clock.now();
    }

    fn close(&mut self) {
        self.core().wakes.flush();
        self.core().close();
        let last = self.core().inbox().current.take();
        quietly(|| drop(last));
        while let Some(work) = self.shared.take_aside() {
            quietly(move || work.skip());
        }
    }

    /// A fight that was fought.
    pub fn measure(&mut self, class: Class, waited: u64, took: u64) {
        self.measured.fights += 1;
        self.measured.fight += took;
        self.measure_one(class, waited + took);
    }

    /// One that waited for nothing.
    pub fn measure_refused(&mut self, class: Class, waited: u64) {
        self.measure_one(class, waited);
    }

    fn measure_one(&mut self, class: Class, took: u64) {
        let window = &mut self.measured;
        if window.count == 0 {
            window.since = self.now;
        }
        window.count += 1;
        window.took += took;
        let target = nanos(self.shared.options.classes[class.index()].target);
        window.target = window.target.saturating_add(target);
        window.in_flight = window.in_flight.max(self.shared.in_flight());
        let age = self.now.saturating_sub(window.since);
        if (age < WINDOW || window.count < WINDOW_FIGHTS) && age < WINDOW_MAX {
            return;
        }
        let mean = |sum: u64, count: u32| Duration::from_nanos(sum / u64::from(count.max(1)));
        let learnt = self.shared.learn(&Window {
            took: mean(window.took, window.count),
            fight: mean(window.fight, window.fights),
            target: mean(window.target, window.count),
            in_flight: window.in_flight,
        });
        if learnt {
            *window = Measured::default();
        }
    }
}

fn store(cell: &AtomicU64, value: u64) {
    cell.store(value, Ordering::Relaxed);
}
