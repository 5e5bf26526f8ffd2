//! The search on a thread of its own, so that taking tickets in never waits for it. Under load it lets the rules give way
//! step by step, and takes that back when it is over.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender},
    },
    time::{Duration, Instant},
};

use super::{metrics::SearchMetrics, owner::Command, run::Message};
use crate::matchmaking::{
    fairness::Fairness,
    rules::{Brownout, MatchRules},
    search::Search,
    ticket::Ticket,
};

/// Ticks in a row that were too much, before more gives way; and that were not, before less does.
const HOT_TICKS: u32 = 3;
const CALM_TICKS: u32 = 50;
/// How often it is counted who is left alone.
const LOOK_EVERY: Duration = Duration::from_secs(1);

pub struct Seeker {
    pub rules: Arc<MatchRules>,
    pub commands: Receiver<Command>,
    /// Commands that wait in the channel.
    pub backlog: Arc<AtomicUsize>,
    pub proposals: Sender<Message>,
    /// Unix milliseconds at `start`.
    pub start_ms: u64,
    pub start: Instant,
    /// A mutex because it is read as one; held for a copy.
    pub metrics: Arc<Mutex<SearchMetrics>>,
    /// A mutex because the owner's thread counts proposals, this one arrivals; held for one ticket.
    pub fairness: Arc<Mutex<Fairness>>,
}

impl Seeker {
    /// Until the owner goes.
    pub fn run(self) {
        let mut search = Search::new(self.rules.clone());
        let mut brownout = Brownout::Off;
        let (mut hot, mut calm, mut resting) = (0, 0, false);
        let mut next = Instant::now() + self.rules.period(brownout);
        let mut next_look = Instant::now();
        loop {
            let wait = next.saturating_duration_since(Instant::now());
            match self.commands.recv_timeout(wait) {
                Ok(command) => {
                    self.backlog.fetch_sub(1, Ordering::Relaxed);
                    resting |= command == Command::Rest;
                    self.follow(&mut search, command);
                    // A tick that is due is not put off by commands without end.
                    if Instant::now() < next {
                        continue;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            // What came before the tick is seen by it, as far as that is bounded.
            for _ in 0..self.backlog.load(Ordering::Relaxed) {
                let Ok(command) = self.commands.try_recv() else {
                    break;
                };
                self.backlog.fetch_sub(1, Ordering::Relaxed);
                resting |= command == Command::Rest;
                self.follow(&mut search, command);
            }
            let begun = Instant::now();
            let period = self.rules.period(brownout);
            next = begun + period;
            if resting {
                continue;
            }
            let exhausted = self.tick(&mut search, brownout, begun);
            if begun >= next_look {
                next_look = begun + LOOK_EVERY;
                let now_ms = self.now_ms(begun);
                self.fairness()
                    .look(search.iter().map(|ticket| &**ticket), now_ms);
            }
            let too_much = exhausted || begun.elapsed() > period / 2;
            (hot, calm) = if too_much {
                (hot + 1, 0)
            } else {
                (0, calm + 1)
            };
            if hot >= HOT_TICKS && brownout != brownout.more() {
                (brownout, hot) = (brownout.more(), 0);
                tracing::info!(?brownout, "the search gives way");
            } else if calm >= CALM_TICKS && brownout != Brownout::Off {
                (brownout, calm) = (brownout.less(), 0);
                tracing::info!(?brownout, "the search takes back");
            }
        }
    }

    fn follow(&self, search: &mut Search, command: Command) {
        let refused = match command {
            Command::Insert(ticket) => {
                self.fairness().arrived(&ticket);
                insert(search, ticket)
            }
            Command::Return(ticket) => insert(search, ticket),
            Command::Remove(id) => {
                if let Some(ticket) = search.remove(id) {
                    self.fairness().left(&ticket);
                }
                None
            }
            Command::Offer(backfill) => {
                if let Err(refused) = search.offer(backfill) {
                    tracing::error!(%refused, "the search refused an admitted backfill");
                }
                None
            }
            Command::Withdraw(id) => {
                search.withdraw(id);
                None
            }
            Command::Rest => None,
        };
        if let Some(refused) = refused {
            let _ = self.proposals.send(refused);
        }
    }

    fn now_ms(&self, now: Instant) -> u64 {
        self.start_ms + now.saturating_duration_since(self.start).as_millis() as u64
    }

    fn fairness(&self) -> MutexGuard<'_, Fairness> {
        self.fairness.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tick(&self, search: &mut Search, brownout: Brownout, begun: Instant) -> bool {
        let now_ms = self.now_ms(begun);
        let mut proposals = Vec::new();
        let report = search.tick(now_ms, self.rules.budget(brownout), &mut proposals);
        if !proposals.is_empty() {
            let _ = self.proposals.send(Message::Proposed(proposals));
        }
        let took = begun.elapsed();
        let mut metrics = self.metrics.lock().unwrap_or_else(PoisonError::into_inner);
        metrics.ticks += 1;
        metrics.proposals += report.proposals as u64;
        metrics.exhausted += u64::from(report.exhausted);
        metrics.waiting = search.len() as u64;
        metrics.pending = report.pending as u64;
        metrics.brownout = brownout;
        metrics.spent += took;
        metrics.last = took;
        metrics.longest = metrics.longest.max(took);
        report.exhausted
    }
}

/// What the owner has to hear, if the search refuses what passed the door.
fn insert(search: &mut Search, ticket: Arc<Ticket>) -> Option<Message> {
    let id = ticket.id;
    let refused = search.insert(ticket).err()?;
    Some(Message::Unsearchable(id, refused.to_string()))
}

/// A wait that is never long: for threads that also look at the time.
pub const MOMENT: Duration = Duration::from_millis(10);
