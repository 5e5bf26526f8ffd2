//! The owner's thread: takes messages in the order they come, lets [`Owner`] decide, and does what it says. The disk has
//! a thread of its own beside it; rooms, the roll and the standby's connection are tasks.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender},
    },
    time::{Duration, Instant},
};

use tokio::{
    runtime::Handle,
    sync::{Semaphore, mpsc::UnboundedSender, oneshot, watch},
};

use super::{
    Allocator,
    allocate::{allocate, give_back},
    owner::{Command, Defect, Input, Now, Output, Owner},
    seek::MOMENT,
    shard::{Inner, Watching},
    talk::{Answer, Refusal, Request, TicketState},
};
use crate::matchmaking::{
    lease::{Lease, LeaseError},
    ledger::MatchId,
    log::{Log, LogError, Position, Record, ReplicaId},
    search::Proposal,
    standby::{Amend, link::Ship},
    ticket::TicketId,
};

/// Messages taken before what they come to is written.
const TAKE_MAX: usize = 4_096;
const TICK: Duration = Duration::from_millis(10);
const METRICS_EVERY: Duration = Duration::from_millis(100);
/// How long an owner whose lease may be over waits to hear that it isn't.
const INVALID_MAX: Duration = Duration::from_secs(3);
/// Between two attempts to write the roll.
const AMEND_PAUSE: Duration = Duration::from_millis(50);

/// What reaches the owner's thread. Requests are bounded by the gate's count; of everything else there are only so many
/// at a time (one sync, a tick's proposals, a room per reservation, an acknowledgement per record).
#[derive(Debug)]
pub enum Message {
    Requests(Vec<(Request, Slot)>),
    Proposed(Vec<Proposal>),
    Unsearchable(TicketId, String),
    Allocated(MatchId, Result<String, String>),
    Synced(u64),
    LogFailed(LogError),
    Joined {
        session: u64,
        replica: ReplicaId,
        position: Position,
        ships: UnboundedSender<Ship>,
        backlog: Arc<AtomicUsize>,
    },
    Acked {
        replica: ReplicaId,
        seq: u64,
    },
    Left {
        session: u64,
        replica: ReplicaId,
    },
    /// `None`: for as long as the process lives.
    Renewed(Option<Instant>),
    LeaseLost,
    Amended(Amend),
    Drain,
    Stop,
}

/// Where an answer goes.
#[derive(Debug)]
pub enum Slot {
    One(oneshot::Sender<Answer>),
    /// Its place in a batch's answers.
    Part(Arc<Mutex<Gather>>, usize),
    Watch(oneshot::Sender<Result<Watching, Refusal>>),
}

/// The answers of a batch, given when all are there.
#[derive(Debug)]
pub struct Gather {
    answers: Vec<Option<Answer>>,
    missing: usize,
    done: Option<oneshot::Sender<Vec<Answer>>>,
}

impl Slot {
    pub fn many(count: usize, done: oneshot::Sender<Vec<Answer>>) -> impl Iterator<Item = Slot> {
        let gather = Arc::new(Mutex::new(Gather {
            answers: vec![None; count],
            missing: count,
            done: Some(done),
        }));
        (0..count).map(move |at| Slot::Part(gather.clone(), at))
    }
}

/// Why an owner's thread ended.
#[derive(Debug)]
pub enum Ended {
    Drained,
    Stopped,
    LeaseLost,
    Disk(LogError),
    Defect(Defect),
    /// A thread that the owner needs panicked.
    Gone(&'static str),
}

type Watches = HashMap<TicketId, watch::Sender<TicketState>>;

/// An owner with everything it needs.
pub struct Run {
    pub owner: Owner<Slot>,
    pub outputs: Vec<Output<Slot>>,
    pub messages: Receiver<Message>,
    pub sender: Sender<Message>,
    pub queued: Arc<AtomicUsize>,
    pub log: Sender<LogWork>,
    pub search: Sender<Command>,
    pub search_backlog: Arc<AtomicUsize>,
    pub lease: Arc<dyn Lease>,
    pub replica: ReplicaId,
    pub allocator: Arc<dyn Allocator>,
    pub runtime: Handle,
    pub clock: Clock,
    pub inner: Arc<Inner>,
}

/// Unix milliseconds that don't jump: read once, then counted.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    pub start: Instant,
    pub start_ms: u64,
}

impl Clock {
    /// `least_ms`: where a predecessor's clock was.
    pub fn start(least_ms: u64) -> Clock {
        let unix = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let unix_ms = unix.map_or(0, |unix| unix.as_millis() as u64);
        Clock {
            start: Instant::now(),
            start_ms: unix_ms.max(least_ms),
        }
    }

    pub fn now(&self) -> Now {
        let mono = self.start.elapsed();
        Now {
            mono,
            ms: self.start_ms + mono.as_millis() as u64,
        }
    }

    /// On the scale of [`Now::mono`].
    pub fn mono(&self, until: Option<Instant>) -> Duration {
        until.map_or(Duration::MAX, |until| {
            until.saturating_duration_since(self.start)
        })
    }
}

/// State of the thread beside the owner.
struct Hands {
    run: Run,
    watches: Watches,
    /// Requests that were taken out while the batch was full.
    parked: VecDeque<(Request, Slot)>,
    joining: HashMap<u64, (UnboundedSender<Ship>, Arc<AtomicUsize>)>,
    attached: Option<(UnboundedSender<Ship>, Arc<AtomicUsize>)>,
    places: Arc<Semaphore>,
    ended: Option<Ended>,
}

impl Run {
    /// Until the shard changes hands.
    pub fn run(self) -> Ended {
        let mut hands = Hands {
            run: self,
            watches: Watches::new(),
            parked: VecDeque::new(),
            joining: HashMap::new(),
            attached: None,
            places: Arc::new(Semaphore::new(super::ALLOCATIONS_MAX)),
            ended: None,
        };
        let result = hands.work();
        let ended = match result {
            Ok(ended) => ended,
            Err(defect) => Ended::Defect(defect),
        };
        hands.let_down();
        ended
    }
}

impl Hands {
    fn work(&mut self) -> Result<Ended, Defect> {
        let mut next_tick = Instant::now();
        let mut next_metrics = Instant::now();
        let mut invalid_since: Option<Instant> = None;
        loop {
            self.take()?;
            let now = self.run.clock.now();
            if Instant::now() >= next_tick {
                next_tick = Instant::now() + TICK;
                self.run
                    .owner
                    .take(Input::Tick, now, &mut self.run.outputs)?;
            }
            self.run.owner.settle(now, &mut self.run.outputs)?;
            self.perform();
            if Instant::now() >= next_metrics {
                next_metrics = Instant::now() + METRICS_EVERY;
                self.publish_metrics();
            }
            if let Some(ended) = self.ended.take() {
                return Ok(ended);
            }
            invalid_since = match self.run.owner.is_valid(now.mono) {
                true => None,
                false => invalid_since.or_else(|| Some(Instant::now())),
            };
            if invalid_since.is_some_and(|since| since.elapsed() > INVALID_MAX) {
                return Ok(Ended::LeaseLost);
            }
        }
    }

    /// Waits for a message, then takes what else is there.
    fn take(&mut self) -> Result<(), Defect> {
        while !self.run.owner.is_full()
            && let Some((request, slot)) = self.parked.pop_front()
        {
            self.request(request, slot)?;
        }
        let first = match self.run.messages.recv_timeout(MOMENT) {
            Ok(message) => message,
            Err(RecvTimeoutError::Timeout) => return Ok(()),
            Err(RecvTimeoutError::Disconnected) => {
                self.ended = Some(Ended::Stopped);
                return Ok(());
            }
        };
        self.message(first)?;
        for _ in 0..TAKE_MAX {
            if self.ended.is_some() || self.run.owner.is_full() {
                break;
            }
            let Ok(message) = self.run.messages.try_recv() else {
                break;
            };
            self.message(message)?;
        }
        Ok(())
    }

    fn request(&mut self, request: Request, slot: Slot) -> Result<(), Defect> {
        self.run.queued.fetch_sub(1, Ordering::Relaxed);
        self.input(Input::Request(request, slot))
    }

    fn input(&mut self, input: Input<Slot>) -> Result<(), Defect> {
        let now = self.run.clock.now();
        self.run.owner.take(input, now, &mut self.run.outputs)
    }

    fn message(&mut self, message: Message) -> Result<(), Defect> {
        match message {
            Message::Requests(requests) => {
                for (request, slot) in requests {
                    // In order: whoever came first is parked first.
                    if self.run.owner.is_full() || !self.parked.is_empty() {
                        self.parked.push_back((request, slot));
                    } else {
                        self.request(request, slot)?;
                    }
                }
                Ok(())
            }
            Message::Proposed(proposals) => {
                self.count_fairness(&proposals);
                self.input(Input::Proposed(proposals))
            }
            Message::Unsearchable(ticket, reason) => {
                self.input(Input::Unsearchable(ticket, reason))
            }
            Message::Allocated(id, room) => self.input(Input::Allocated(id, room)),
            Message::Synced(seq) => self.input(Input::Synced(seq)),
            Message::LogFailed(error) => {
                self.ended = Some(Ended::Disk(error));
                Ok(())
            }
            Message::Joined {
                session,
                replica,
                position,
                ships,
                backlog,
            } => {
                self.joining.insert(session, (ships, backlog));
                self.input(Input::Joined {
                    session,
                    replica,
                    position,
                })
            }
            Message::Acked { replica, seq } => self.input(Input::Acked { replica, seq }),
            Message::Left { session, replica } => {
                self.joining.remove(&session);
                self.input(Input::Left { session, replica })
            }
            Message::Renewed(until) => {
                let until = self.run.clock.mono(until);
                self.input(Input::Renewed(until))
            }
            Message::LeaseLost => {
                self.ended = Some(Ended::LeaseLost);
                Ok(())
            }
            Message::Amended(amend) => self.input(Input::Amended(amend)),
            Message::Drain => self.input(Input::Drain),
            Message::Stop => {
                self.ended = Some(Ended::Stopped);
                Ok(())
            }
        }
    }

    fn perform(&mut self) {
        let mut outputs = std::mem::take(&mut self.run.outputs);
        for output in outputs.drain(..) {
            self.do_one(output);
        }
        self.run.outputs = outputs;
    }

    fn do_one(&mut self, output: Output<Slot>) {
        match output {
            Output::Append(record) => {
                self.ship(Ship::Record(record.clone()));
                self.log(LogWork::Append(record));
            }
            Output::Checkpoint(state) => self.log(LogWork::Checkpoint(state)),
            Output::Answer(slot, answer) => answer_to(slot, answer, &mut self.watches),
            Output::Told(state) => tell(state, &mut self.watches),
            Output::Search(command) => {
                self.run.search_backlog.fetch_add(1, Ordering::Relaxed);
                if self.run.search.send(command).is_err() {
                    self.ended.get_or_insert(Ended::Gone("search"));
                }
            }
            Output::Allocate(wanted, until) => {
                let until = self.run.clock.start + until;
                let allocator = self.run.allocator.clone();
                let answer = self.run.sender.clone();
                let task = allocate(allocator, self.places.clone(), wanted, until, answer);
                self.run.runtime.spawn(task);
            }
            Output::GiveBack(id) => {
                let allocator = self.run.allocator.clone();
                self.run.runtime.spawn(give_back(allocator, id));
            }
            Output::Amend(amend) => {
                let in_sync = match amend {
                    Amend::Add(standby) => vec![self.run.replica, standby],
                    Amend::Remove(_) => vec![self.run.replica],
                };
                let (lease, answer) = (self.run.lease.clone(), self.run.sender.clone());
                // The lease may be held anew by the time that this is written.
                let epoch = self.run.owner.ledger().epoch();
                self.run.runtime.spawn(async move {
                    let message = match amend_until_known(&*lease, epoch, in_sync).await {
                        true => Message::Amended(amend),
                        false => Message::LeaseLost,
                    };
                    let _ = answer.send(message);
                });
            }
            Output::Attach {
                session,
                checkpoint,
                tail,
            } => {
                self.attached = self.joining.remove(&session);
                if let Some(checkpoint) = checkpoint {
                    self.ship(Ship::State(checkpoint));
                }
                for record in tail {
                    self.ship(Ship::Record(record));
                }
                self.ship(Ship::Whole);
            }
            Output::Turned { session } => {
                if let Some((ships, _)) = self.joining.remove(&session) {
                    let _ = ships.send(Ship::Turned);
                }
            }
            Output::Drained => self.ended = Some(Ended::Drained),
        }
    }

    fn log(&mut self, work: LogWork) {
        if self.run.log.send(work).is_ok() || self.ended.is_some() {
            return;
        }
        // A log that failed has said why before it went.
        let failed = self
            .run
            .messages
            .try_iter()
            .find_map(|message| match message {
                Message::LogFailed(error) => Some(Ended::Disk(error)),
                _ => None,
            });
        self.ended = Some(failed.unwrap_or(Ended::Gone("log")));
    }

    fn ship(&mut self, ship: Ship) {
        if let Some((ships, backlog)) = &self.attached {
            backlog.fetch_add(ship.bytes(), Ordering::Relaxed);
            if ships.send(ship).is_err() {
                self.attached = None;
            }
        }
    }

    fn count_fairness(&self, proposals: &[Proposal]) {
        let now_ms = self.run.clock.now().ms;
        let ledger = self.run.owner.ledger();
        let fairness = self.run.inner.fairness.lock();
        let mut fairness = fairness.unwrap_or_else(PoisonError::into_inner);
        for proposal in proposals {
            for live in proposal.tickets().filter_map(|ticket| ledger.live(ticket)) {
                fairness.matched(&live.ticket, &proposal.quality, now_ms);
            }
        }
    }

    fn publish_metrics(&self) {
        let shared = self.run.inner.owner_metrics.lock();
        *shared.unwrap_or_else(PoisonError::into_inner) = self.run.owner.metrics();
    }

    /// Nobody is told anything any more, except that.
    fn let_down(self) {
        let Hands {
            run,
            mut watches,
            parked,
            ..
        } = self;
        let unanswered = run.owner.abandon();
        for slot in unanswered.chain(parked.into_iter().map(|(_, slot)| slot)) {
            answer_to(slot, Err(Refusal::Unknown), &mut watches);
        }
        // What still lies in the channel was never looked at; its senders are dropped with it.
    }
}

fn answer_to(slot: Slot, answer: Answer, watches: &mut Watches) {
    match slot {
        Slot::One(to) => {
            let _ = to.send(answer);
        }
        Slot::Part(gather, at) => {
            let mut gather = gather.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(place) = gather.answers.get_mut(at)
                && place.replace(answer).is_none()
            {
                gather.missing -= 1;
            }
            if gather.missing == 0
                && let Some(done) = gather.done.take()
            {
                let answers = std::mem::take(&mut gather.answers);
                let _ = done.send(answers.into_iter().flatten().collect());
            }
        }
        Slot::Watch(to) => {
            let watching = answer.map(|state| watching(state, watches));
            let _ = to.send(watching);
        }
    }
}

fn watching(state: TicketState, watches: &mut Watches) -> Watching {
    if state.stage.is_final() {
        return Watching::new(watch::channel(state).1);
    }
    let ticket = state.ticket;
    let sender = watches
        .entry(ticket)
        .or_insert_with(|| watch::Sender::new(state));
    Watching::new(sender.subscribe())
}

fn tell(state: TicketState, watches: &mut Watches) {
    let (ticket, over) = (state.ticket, state.stage.is_final());
    if let Some(sender) = watches.get(&ticket)
        && (sender.send(state).is_err() || over)
    {
        watches.remove(&ticket);
    }
}

/// Writes the roll until it is known to be written; false when the lease is lost.
async fn amend_until_known(lease: &dyn Lease, epoch: u64, in_sync: Vec<ReplicaId>) -> bool {
    loop {
        match lease.amend(epoch, in_sync.clone()).await {
            Ok(()) => return true,
            Err(LeaseError::Lost) => return false,
            Err(error) => tracing::warn!(%error, "the roll was not written; once more"),
        }
        // It ends with the lease: a holder that can't renew loses it, and then this is told so.
        match lease.renew().await {
            Err(LeaseError::Lost) => return false,
            _ => tokio::time::sleep(AMEND_PAUSE).await,
        }
    }
}

/// What the log's thread does, in order.
#[derive(Debug)]
pub enum LogWork {
    Append(Record),
    Checkpoint(Vec<u8>),
}

/// The log's thread: one record after the other, each synced. A failure is its last word.
pub fn keep_log(mut log: Log, work: Receiver<LogWork>, owner: Sender<Message>, inner: Arc<Inner>) {
    for work in work {
        let result = match work {
            LogWork::Append(record) => {
                let begun = Instant::now();
                let appended = log.append(&record);
                count_sync(&inner, begun.elapsed());
                appended.map(|()| {
                    let _ = owner.send(Message::Synced(record.last()));
                })
            }
            LogWork::Checkpoint(state) => log.checkpoint(state).map(|_| ()),
        };
        if let Err(error) = result {
            let _ = owner.send(Message::LogFailed(error));
            return;
        }
    }
}

fn count_sync(inner: &Inner, took: Duration) {
    let mut syncs = inner.syncs.lock().unwrap_or_else(PoisonError::into_inner);
    syncs.count += 1;
    syncs.spent += took;
    syncs.longest = syncs.longest.max(took);
}
