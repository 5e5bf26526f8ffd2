//! The handle to a shard: requests go to its owner's thread, if that is in this process.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use tokio::{
    sync::{Notify, oneshot, watch},
    task::JoinHandle,
};

use super::{
    Allocator, ShardConfig, ShardKey,
    life::Life,
    metrics::{SearchMetrics, ShardMetrics},
    owner::OwnerMetrics,
    run::{Message, Slot},
    talk::{Answer, Refusal, Request, Stage, TicketState},
};
use crate::matchmaking::{
    fairness::{Cohort, Fairness},
    ledger::MatchId,
    standby::{
        frame::Seal,
        link::{self, Hello, Link},
    },
    ticket::{Backfill, BackfillId, Ticket, TicketId},
};

/// Requests that may wait for the owner's thread; more are [`Refusal::Busy`].
pub const INTAKE_MAX: usize = 65_536;
/// Changes that may wait for the search; while there are more, requests are [`Refusal::Busy`].
pub const SEARCH_BACKLOG_MAX: usize = 500_000;

/// What a process is to a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Reading its log.
    Opening,
    /// Following the owner at this address.
    Standby {
        owner: String,
    },
    Owner {
        epoch: u64,
    },
    /// Nobody owns the shard, and this replica may not: another has what it lacks. Start that one, or force this.
    OutOfSync {
        roll: String,
    },
    /// Neither owner nor standby at the moment, and why.
    Trying {
        reason: String,
    },
    /// For good: an operator must act.
    Failed {
        reason: String,
    },
    /// Drained or dropped.
    Stopped,
}

/// Clones are handles to the same shard.
#[derive(Clone, Debug)]
pub struct Shard {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub key: ShardKey,
    pub gate: ArcSwapOption<Gate>,
    pub role: watch::Sender<Role>,
    pub draining: AtomicBool,
    pub stopping: AtomicBool,
    /// Rings when one of the two is set.
    pub bell: Notify,
    pub busy: AtomicU64,
    pub takeovers: AtomicU64,
    /// Mutexes because each is read as one; held for a copy.
    pub owner_metrics: Mutex<OwnerMetrics>,
    pub search_metrics: Arc<Mutex<SearchMetrics>>,
    pub fairness: Arc<Mutex<Fairness>>,
    pub syncs: Mutex<Syncs>,
    sessions: AtomicU64,
    /// Never held across an await.
    life: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Syncs {
    pub count: u64,
    pub spent: Duration,
    pub longest: Duration,
}

/// The way to the owner's thread, as long as there is one.
#[derive(Debug)]
pub(super) struct Gate {
    pub messages: mpsc::Sender<Message>,
    pub queued: Arc<AtomicUsize>,
    pub search_backlog: Arc<AtomicUsize>,
}

impl Shard {
    pub(super) fn start(
        config: ShardConfig,
        allocator: Arc<dyn Allocator>,
        address: String,
        seal: Seal,
    ) -> Shard {
        let inner = Arc::new(Inner {
            key: config.key.clone(),
            gate: ArcSwapOption::empty(),
            role: watch::Sender::new(Role::Opening),
            draining: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            bell: Notify::new(),
            busy: AtomicU64::new(0),
            takeovers: AtomicU64::new(0),
            owner_metrics: Mutex::default(),
            search_metrics: Arc::default(),
            fairness: Arc::new(Mutex::new(Fairness::new(config.rules.clone()))),
            syncs: Mutex::default(),
            sessions: AtomicU64::new(0),
            life: Mutex::new(None),
        });
        let life = Life::new(config, allocator, address, seal, inner.clone());
        let task = tokio::spawn(life.run());
        *inner.life.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
        Shard { inner }
    }

    pub fn key(&self) -> &ShardKey {
        &self.inner.key
    }

    pub fn role(&self) -> Role {
        self.inner.role.borrow().clone()
    }

    /// Follows the role.
    pub fn roles(&self) -> watch::Receiver<Role> {
        self.inner.role.subscribe()
    }

    /// Waits until this process owns the shard, or never will.
    pub async fn owned(&self) -> Role {
        let mut roles = self.roles();
        let settled = |role: &Role| {
            matches!(
                role,
                Role::Owner { .. } | Role::Failed { .. } | Role::Stopped
            )
        };
        match roles.wait_for(settled).await {
            Ok(role) => role.clone(),
            Err(_) => Role::Stopped,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.role(), Role::Failed { .. } | Role::Stopped)
    }

    /// Asks the owner, which answers when what it says can't be lost any more.
    ///
    /// # Errors
    /// See [`Refusal`]. Dropping the future does not take the request back.
    pub async fn ask(&self, request: Request) -> Answer {
        let (slot, answer) = oneshot::channel();
        self.send(vec![(request, Slot::One(slot))])?;
        answer.await.unwrap_or(Err(Refusal::Unknown))
    }

    /// Asks many at once, which costs the thread less; the answers are in the order of the requests.
    pub async fn ask_all(&self, requests: Vec<Request>) -> Vec<Answer> {
        let count = requests.len();
        if count == 0 {
            return Vec::new();
        }
        let (done, answers) = oneshot::channel();
        let slots = Slot::many(count, done);
        if let Err(refusal) = self.send(requests.into_iter().zip(slots).collect()) {
            return vec![Err(refusal); count];
        }
        answers
            .await
            .unwrap_or_else(|_| vec![Err(Refusal::Unknown); count])
    }

    fn send(&self, requests: Vec<(Request, Slot)>) -> Result<(), Refusal> {
        let gate = self.inner.gate.load();
        let gate = gate.as_ref().ok_or_else(|| self.not_owner())?;
        let count = requests.len();
        let queued = gate.queued.fetch_add(count, Ordering::Relaxed);
        let busy = queued + count > INTAKE_MAX
            || gate.search_backlog.load(Ordering::Relaxed) > SEARCH_BACKLOG_MAX;
        if busy {
            gate.queued.fetch_sub(count, Ordering::Relaxed);
            self.inner.busy.fetch_add(count as u64, Ordering::Relaxed);
            return Err(Refusal::Busy);
        }
        let sent = gate.messages.send(Message::Requests(requests));
        sent.map_err(|_| self.not_owner())
    }

    fn not_owner(&self) -> Refusal {
        let owner = match self.role() {
            Role::Standby { owner } => Some(owner),
            _ => None,
        };
        Refusal::NotOwner { owner }
    }

    /// Puts a party into the queue, of the class that goes last in the waiting room.
    ///
    /// # Errors
    /// [`Refusal::Unfit`], [`Refusal::Queued`], [`Refusal::Full`] and those of every request.
    pub async fn enqueue(&self, ticket: Ticket) -> Answer {
        let class = crate::matchmaking::ledger::CLASSES - 1;
        self.ask(Request::Enqueue { ticket, class }).await
    }

    /// # Errors
    /// [`Refusal::Reserved`] when it is too late, and those of every request.
    pub async fn cancel(&self, ticket: TicketId) -> Answer {
        self.ask(Request::Cancel { ticket }).await
    }

    /// # Errors
    /// [`Refusal::NoSeat`] when the match is off, and those of every request.
    pub async fn confirm(&self, id: MatchId, player: u64) -> Answer {
        self.ask(Request::Confirm { id, player }).await
    }

    /// Her party's ticket goes; the others wait on with their time.
    ///
    /// # Errors
    /// As [`Shard::confirm`].
    pub async fn refuse(&self, id: MatchId, player: u64) -> Answer {
        self.ask(Request::Refuse { id, player }).await
    }

    /// # Errors
    /// [`Refusal::NoTicket`] and those of every request.
    pub async fn look(&self, ticket: TicketId) -> Answer {
        self.ask(Request::Look { ticket }).await
    }

    /// What a player who comes back has to know: her live ticket, or her newest result.
    ///
    /// # Errors
    /// [`Refusal::NoPlayer`] and those of every request.
    pub async fn look_for(&self, player: u64) -> Answer {
        self.ask(Request::LookFor { player }).await
    }

    /// # Errors
    /// As [`Request::OpenBackfill`] says.
    pub async fn open_backfill(&self, backfill: Backfill, room: String) -> Answer {
        self.ask(Request::OpenBackfill { backfill, room }).await
    }

    /// # Errors
    /// [`Refusal::Filling`] while players are on their way, and those of every request.
    pub async fn close_backfill(&self, id: BackfillId) -> Answer {
        self.ask(Request::CloseBackfill { id }).await
    }

    /// Follows a ticket to its end.
    ///
    /// # Errors
    /// [`Refusal::NoTicket`], [`Refusal::WatchesFull`] and those of every request.
    pub async fn watch(&self, ticket: TicketId) -> Result<Watching, Refusal> {
        let (slot, answer) = oneshot::channel();
        self.send(vec![(Request::Watch { ticket }, Slot::Watch(slot))])?;
        answer.await.unwrap_or(Err(Refusal::Unknown))
    }

    /// Hands the shard over: takes nothing more in, finishes what is reserved, lets go of the lease when the standby (if
    /// there is one in sync) has everything, and stops. A standby just stops. Takes as long as players may take to
    /// confirm and a room may take to be found.
    pub async fn drain(&self) {
        self.inner.draining.store(true, Ordering::Release);
        self.inner.bell.notify_waiters();
        if let Some(gate) = self.inner.gate.load_full() {
            let _ = gate.messages.send(Message::Drain);
        }
        let mut roles = self.roles();
        let over = |role: &Role| matches!(role, Role::Failed { .. } | Role::Stopped);
        let _ = roles.wait_for(over).await;
    }

    /// Stops at once, as a crash would, and lets go of the lease.
    pub(super) fn stop(&self) {
        self.inner.stopping.store(true, Ordering::Release);
        self.inner.bell.notify_waiters();
        if let Some(gate) = self.inner.gate.load_full() {
            let _ = gate.messages.send(Message::Stop);
        }
    }

    /// Stops, and waits until the log and the lease are let go.
    pub async fn close(&self) {
        self.stop();
        let life = self
            .inner
            .life
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(life) = life {
            let _ = life.await;
        }
    }

    pub fn metrics(&self) -> ShardMetrics {
        let inner = &self.inner;
        let queued = inner
            .gate
            .load()
            .as_ref()
            .map_or(0, |gate| gate.queued.load(Ordering::Relaxed) as u64);
        let syncs = *inner.syncs.lock().unwrap_or_else(PoisonError::into_inner);
        ShardMetrics {
            role: self.role(),
            queued,
            busy: inner.busy.load(Ordering::Relaxed),
            owner: *inner
                .owner_metrics
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
            search: *inner
                .search_metrics
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
            syncs: syncs.count,
            syncing: syncs.spent,
            longest_sync: syncs.longest,
            takeovers: inner.takeovers.load(Ordering::Relaxed),
        }
    }

    /// How long each cohort waits here, and how good its matches are, since this process opened the shard.
    pub fn fairness(&self) -> Vec<Cohort> {
        self.figures().cohorts()
    }

    pub(super) fn figures(&self) -> MutexGuard<'_, Fairness> {
        self.inner
            .fairness
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// One standby's connection, until it ends.
    pub(super) async fn serve_standby(&self, hello: Hello, link: Link) {
        let Some(gate) = self.inner.gate.load_full() else {
            return;
        };
        let session = self.inner.sessions.fetch_add(1, Ordering::Relaxed);
        let replica = hello.replica;
        let (ships, shipped) = tokio::sync::mpsc::unbounded_channel();
        let backlog = Arc::new(AtomicUsize::new(0));
        let joined = Message::Joined {
            session,
            replica,
            position: hello.position,
            ships,
            backlog: backlog.clone(),
        };
        if gate.messages.send(joined).is_err() {
            return;
        }
        let key = &self.inner.key;
        tracing::info!(%key, %replica, "a standby connected");
        let acks = gate.messages.clone();
        let ended = link::serve(link, shipped, backlog, move |seq| {
            let _ = acks.send(Message::Acked { replica, seq });
        });
        if let Err(error) = ended.await {
            tracing::info!(%key, %replica, %error, "the standby's connection ended");
        }
        let _ = gate.messages.send(Message::Left { session, replica });
    }
}

/// A ticket that is followed.
#[derive(Debug)]
pub struct Watching {
    states: watch::Receiver<TicketState>,
}

impl Watching {
    /// How it stands is news, too: what happened between two requests would else never be told.
    pub(super) fn new(mut states: watch::Receiver<TicketState>) -> Self {
        states.mark_changed();
        Self { states }
    }

    /// How it stands.
    pub fn state(&self) -> TicketState {
        self.states.borrow().clone()
    }

    /// How it stands, the first time; then its next change. `None` after the last, and when the shard changed hands (then
    /// watch anew at the next owner).
    pub async fn next(&mut self) -> Option<TicketState> {
        self.states.changed().await.ok()?;
        Some(self.states.borrow_and_update().clone())
    }

    /// Waits for what becomes of it; `None` when the shard changed hands before.
    pub async fn end(&mut self) -> Option<TicketState> {
        let ended = |state: &TicketState| matches!(state.stage, Stage::Ended(_));
        self.states
            .wait_for(ended)
            .await
            .ok()
            .map(|state| state.clone())
    }
}

impl Inner {
    pub fn set_role(&self, role: Role) {
        self.role.send_if_modified(|current| {
            let changed = *current != role;
            if changed {
                tracing::info!(key = %self.key, ?role, "the shard's role changed");
                *current = role;
            }
            changed
        });
    }

    pub fn is_leaving(&self) -> bool {
        self.draining.load(Ordering::Acquire) || self.stopping.load(Ordering::Acquire)
    }
}
