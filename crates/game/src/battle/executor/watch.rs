//! A thread that looks whether fights end. A battle that never checks its context can't be stopped; its caller is answered
//! all the same when the deadline is past, and what waits behind it goes to other cores.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use super::Shared;
use crate::battle::job::Run;
use crate::battle::metrics::End;

/// Between two looks.
const EVERY: Duration = Duration::from_millis(100);

pub(super) fn run(shared: &Shared) {
    while !shared.abort.load(Ordering::Relaxed) {
        thread::park_timeout(EVERY);
        let now = shared.clock.now();
        for index in 0..shared.cores.len() {
            look(shared, index, now);
        }
    }
}

fn look(shared: &Shared, index: usize, now: u64) {
    let core = &shared.cores[index];
    let current = core.inbox().current.clone();
    let stuck = current.is_some_and(|job| job.give_up(now));
    if stuck != core.stuck.swap(stuck, Ordering::Relaxed) && stuck {
        tracing::error!(
            core = index,
            "a fight doesn't end though its deadline has passed"
        );
    }
    if !stuck {
        return;
    }
    let mut inbox = core.inbox();
    let waiting = inbox.queue.take_all();
    core.show_length(&inbox);
    drop(inbox);
    for job in waiting {
        place(shared, index, job, now);
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
