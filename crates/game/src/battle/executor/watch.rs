//! A thread that looks whether fights end. A battle that never checks its context can't be stopped; its caller is answered
//! all the same when the deadline is past, and what waits behind it goes to other cores.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use super::Shared;
use super::shared::Core;
use crate::battle::clock::NEVER;
use crate::battle::job::{GRACE, Run, quietly};
use crate::battle::metrics::End;

/// Between two looks.
const EVERY: Duration = Duration::from_millis(100);
/// Between two looks while cores end.
const END_LOOK: Duration = Duration::from_millis(1);

pub(super) fn run(shared: &Shared) {
    while !shared.abort.load(Ordering::SeqCst) {
        thread::park_timeout(EVERY);
        let now = shared.clock.now();
        shared.quarantine.forget(now);
        for index in 0..shared.cores.len() {
            quietly(|| look(shared, index, now));
        }
    }
    end(shared);
}

fn look(shared: &Shared, index: usize, now: u64) {
    let core = &shared.cores[index];
    // A fight that is far longer than was thought holds up whom to wake.
    core.wakes.flush();
    if core.waiting.load(Ordering::Relaxed) > 0 {
        // A fight may be behind one that is longer than was thought, and everybody else asleep.
        (shared.cores.iter().filter(|core| core.is_asleep())).for_each(Core::wake);
    }
    let current = core.inbox().current.clone();
    let shadowed = core.aside_since.load(Ordering::Relaxed);
    let stuck = current.is_some_and(|job| job.give_up(now))
        // A shadow fight that doesn't step back from live work.
        || now.saturating_sub(shadowed.max(core.oldest())) > GRACE;
    if stuck != core.stuck.swap(stuck, Ordering::Relaxed) && stuck {
        tracing::error!(core = index, "a fight doesn't end though it was told to");
    }
    if !stuck {
        return;
    }
    let mut inbox = core.inbox();
    let waiting = inbox.queue.take_all();
    core.show_length(&inbox);
    drop(inbox);
    for job in waiting {
        quietly(|| place(shared, index, job, now));
    }
}

/// Cores stop their fights and refuse what they have queued by themselves; a core that doesn't get to it has it done here.
fn end(shared: &Shared) {
    let until = shared.clock.now().saturating_add(GRACE);
    let busy = |core: &Core| !core.inbox().closed;
    while shared.cores.iter().any(busy) && shared.clock.now() < until {
        thread::sleep(END_LOOK);
    }
    for core in &shared.cores {
        core.wakes.flush();
        core.close();
        let Some(job) = core.inbox().current.clone() else {
            continue;
        };
        quietly(move || {
            job.refuse(End::Draining);
            job.give_up(NEVER);
        });
    }
}

/// Where a job goes that waits at a core that is stuck.
fn place(shared: &Shared, stuck: usize, job: Arc<dyn Run>, now: u64) {
    let ticket = job.ticket();
    if now >= ticket.deadline {
        job.refuse(End::LateInQueue);
        return;
    }
    let free = (0..shared.cores.len())
        .find(|&index| index != stuck && !shared.cores[index].stuck.load(Ordering::Relaxed));
    let core = match free {
        Some(free) if job.move_to(free) => free,
        Some(_) => return,
        None => stuck,
    };
    if let Err(job) = shared.push_to(core, job, ticket) {
        job.refuse(End::QueueFull);
    }
}
