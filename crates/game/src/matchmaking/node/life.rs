//! What a replica is to its shard over time: it opens its log, follows the owner where there is one, becomes the owner
//! where it may, and stops being that when the lease, the disk or an operator says so.

use std::{
    panic,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use tokio::{runtime::Handle, task::JoinHandle};

use super::{
    Allocator, ShardConfig,
    owner::{Owner, OwnerMetrics, Start},
    replica::{Replica, ReplicaError},
    run::{Clock, Ended, LogWork, Message, Run, keep_log},
    seek::Seeker,
    shard::{Gate, Inner, Role},
};
use crate::matchmaking::{
    lease::{Claim, Grant, Lease, LeaseError, Seen, admissible},
    ledger::Ledger,
    log::ReplicaId,
    standby::{
        frame::Seal,
        link::{self, Hello, LinkError, Shipped},
    },
};

/// Between two renewals of a lease.
pub const RENEW_EVERY: Duration = Duration::from_millis(300);
const RELEASE_MAX: Duration = Duration::from_secs(1);
/// After something that may pass.
const PAUSE: Duration = Duration::from_millis(50);
/// Frames that may lie between a standby's socket and its disk.
const SHIPPED_MAX: usize = 16;

pub(super) struct Life {
    config: ShardConfig,
    allocator: Arc<dyn Allocator>,
    address: String,
    seal: Seal,
    inner: Arc<Inner>,
    force: bool,
}

/// What a turn of life leaves.
// One at a time, moved a few times in a process's life.
#[allow(clippy::large_enum_variant)]
enum Turn {
    /// The log and the ledger agree; go on with them.
    Whole(Replica),
    /// Read the log again.
    Reopen,
    /// For good.
    Over(Role),
}

impl Life {
    pub fn new(
        config: ShardConfig,
        allocator: Arc<dyn Allocator>,
        address: String,
        seal: Seal,
        inner: Arc<Inner>,
    ) -> Life {
        Life {
            force: config.force,
            config,
            allocator,
            address,
            seal,
            inner,
        }
    }

    pub async fn run(mut self) {
        let mut replica = None;
        let role = loop {
            if self.inner.is_leaving() {
                break Role::Stopped;
            }
            let opened = match replica.take() {
                Some(replica) => replica,
                None => match self.open().await {
                    Ok(replica) => replica,
                    Err(error) => break failed(&error),
                },
            };
            match self.turn(opened).await {
                Turn::Whole(whole) => replica = Some(whole),
                Turn::Reopen => {}
                Turn::Over(role) => break role,
            }
        };
        // The log and its lock are let go before anybody is told.
        drop(replica);
        if let Role::Failed { reason } = &role {
            tracing::error!(key = %self.inner.key, reason, "the shard failed");
        }
        self.inner.set_role(role);
    }

    async fn open(&self) -> Result<Replica, ReplicaError> {
        self.inner.set_role(Role::Opening);
        let directory = self.config.directory.clone();
        blocking(move || Replica::open(&directory)).await
    }

    async fn turn(&mut self, replica: Replica) -> Turn {
        let seen = match self.config.lease.look().await {
            Ok(seen) => seen,
            Err(error) => return self.pause(replica, error.to_string()).await,
        };
        let claim = Claim {
            replica: replica.log.replica(),
            address: self.address.clone(),
            force: self.force,
        };
        match seen {
            Seen { held: true, roll } => match roll {
                Some(roll) if roll.owner != claim.replica => {
                    self.follow(replica, roll.address).await
                }
                // Its own lease of a life before, which has yet to run out; or a roll that is being written.
                _ => {
                    self.wait(
                        replica,
                        Role::Trying {
                            reason: LeaseError::Held.to_string(),
                        },
                    )
                    .await
                }
            },
            Seen { held: false, roll } => {
                if let Err(error) = admissible(roll.as_ref(), &claim) {
                    tracing::debug!(%error, "not taking over");
                    let roll = roll.map_or_else(String::new, |roll| roll.to_string());
                    return self.wait(replica, Role::OutOfSync { roll }).await;
                }
                match self.config.lease.acquire(claim).await {
                    Ok(grant) => {
                        self.force = false;
                        self.own(replica, grant).await
                    }
                    // Somebody was faster.
                    Err(LeaseError::Held | LeaseError::Lost | LeaseError::NotInSync { .. }) => {
                        Turn::Whole(replica)
                    }
                    Err(error) => self.pause(replica, error.to_string()).await,
                }
            }
        }
    }

    async fn pause(&self, replica: Replica, reason: String) -> Turn {
        self.inner.set_role(Role::Trying { reason });
        tokio::time::sleep(PAUSE).await;
        Turn::Whole(replica)
    }

    async fn wait(&self, replica: Replica, role: Role) -> Turn {
        self.inner.set_role(role);
        tokio::select! {
            () = self.config.lease.changed() => {}
            () = self.inner.bell.notified() => {}
        }
        Turn::Whole(replica)
    }

    /// Follows the owner at `address` until it lets go of the lease, or the connection ends.
    async fn follow(&self, replica: Replica, address: String) -> Turn {
        let hello = Hello {
            shard: self.inner.key.to_string(),
            replica: replica.log.replica(),
            position: replica.position(),
        };
        let link = tokio::select! {
            link = link::dial(&address, &self.seal, &hello) => link,
            () = self.freed(&address) => return Turn::Whole(replica),
        };
        let link = match link {
            Ok(link) => link,
            Err(error) => {
                tracing::debug!(address, %error, "the owner can't be followed");
                let reason = format!("the owner at {address} can't be followed: {error}");
                return self.pause(replica, reason).await;
            }
        };
        let (shipped, disk) = tokio::sync::mpsc::channel(SHIPPED_MAX);
        let (acks, acked) = tokio::sync::mpsc::unbounded_channel();
        let checkpoint_bytes = self.config.limits.checkpoint_bytes;
        // Whoever answers the first word is the owner; before it, there may be another secret.
        let (inner, owner) = (self.inner.clone(), address.clone());
        let greeted = Arc::new(AtomicBool::new(false));
        let first = {
            let greeted = greeted.clone();
            move || {
                greeted.store(true, Ordering::Relaxed);
                inner.set_role(Role::Standby { owner });
            }
        };
        let keeping = blocking(move || keep(replica, disk, acks, checkpoint_bytes, first));
        let keeping = tokio::spawn(keeping);
        let ended = tokio::select! {
            ended = link::follow(link, shipped, acked) => ended,
            () = self.freed(&address) => Ok(()),
        };
        match keeping.await {
            Ok(Ok(replica)) => match ended {
                Err(error) => {
                    tracing::info!(key = %self.inner.key, %error, "the owner is gone from here");
                    let hopeless = matches!(
                        error,
                        LinkError::Turned | LinkError::State | LinkError::Record
                    );
                    // One that was followed may be dead, and then there is something to do at once.
                    if greeted.load(Ordering::Relaxed) && !hopeless {
                        return Turn::Whole(replica);
                    }
                    let reason = format!("the owner at {address} can't be followed: {error}");
                    self.pause(replica, reason).await
                }
                Ok(()) => Turn::Whole(replica),
            },
            Ok(Err(error)) if error.is_passing() => {
                tracing::warn!(key = %self.inner.key, %error, "the owner's log doesn't fit this one");
                tokio::time::sleep(PAUSE).await;
                Turn::Reopen
            }
            Ok(Err(error)) => Turn::Over(failed(&error)),
            Err(_) => Turn::Reopen,
        }
    }

    /// Waits until there is something better to do than to follow the owner at `address`.
    async fn freed(&self, address: &str) {
        loop {
            tokio::select! {
                () = self.config.lease.changed() => {}
                () = self.inner.bell.notified() => {}
            }
            if self.inner.is_leaving() {
                return;
            }
            match self.config.lease.look().await {
                Ok(Seen { held: false, .. }) => return,
                Ok(Seen { roll, .. })
                    if roll.as_ref().is_none_or(|roll| roll.address != address) =>
                {
                    return;
                }
                // Nothing is known: whoever can't see the lease can't take it.
                Ok(_) | Err(_) => {}
            }
        }
    }

    /// Owns the shard until that ends.
    async fn own(&self, replica: Replica, grant: Grant) -> Turn {
        let began = Instant::now();
        let Replica { log, ledger } = replica;
        let own_id = log.replica();
        let result = self.start(log, ledger, grant, own_id);
        let (thread, keeper, renewing) = match result {
            Ok(running) => running,
            Err(reason) => {
                self.let_go().await;
                return Turn::Over(Role::Failed { reason });
            }
        };
        let epoch = grant.epoch;
        self.inner.takeovers.fetch_add(1, Ordering::Relaxed);
        self.inner.set_role(Role::Owner { epoch });
        tracing::info!(key = %self.inner.key, epoch, took = ?began.elapsed(), "owns the shard");
        // Said before there was anybody to hear it.
        if let Some(gate) = self.inner.gate.load_full() {
            let stopping = self.inner.stopping.load(Ordering::Acquire);
            let draining = self.inner.draining.load(Ordering::Acquire);
            let said = [(draining, Message::Drain), (stopping, Message::Stop)];
            for (_, message) in said.into_iter().filter(|(said, _)| *said) {
                let _ = gate.messages.send(message);
            }
        }
        let ended = thread.await;
        self.inner.gate.store(None);
        renewing.abort();
        self.inner.set_role(Role::Opening);
        let owner_metrics = self.inner.owner_metrics.lock();
        *owner_metrics.unwrap_or_else(PoisonError::into_inner) = OwnerMetrics::default();
        // The log is closed before anybody else may open it.
        let _ = keeper.await;
        // Whoever takes over has all that was acknowledged, however this ended.
        self.let_go().await;
        match ended {
            Ok(Ended::Drained | Ended::Stopped) => Turn::Over(Role::Stopped),
            Ok(Ended::LeaseLost) => {
                tracing::warn!(key = %self.inner.key, epoch, "the lease is lost");
                Turn::Reopen
            }
            Ok(Ended::Disk(error)) => Turn::Over(failed(&error)),
            Ok(Ended::Gone(which)) => Turn::Over(Role::Failed {
                reason: format!("the {which}'s thread panicked"),
            }),
            Ok(Ended::Defect(defect)) => Turn::Over(failed(&defect)),
            Err(_) => Turn::Over(Role::Failed {
                reason: "the owner's thread panicked".into(),
            }),
        }
    }

    /// A lease service that doesn't answer is not waited for: the lease runs out.
    async fn let_go(&self) {
        let released = tokio::time::timeout(RELEASE_MAX, self.config.lease.release()).await;
        if let Ok(Ok(())) = released {
            return;
        }
        tracing::warn!(key = %self.inner.key, "the lease was not let go; it will run out");
    }

    fn start(
        &self,
        log: crate::matchmaking::log::Log,
        ledger: Ledger,
        grant: Grant,
        replica: ReplicaId,
    ) -> Result<Running, String> {
        let clock = Clock::start(ledger.now_ms());
        let (sender, messages) = mpsc::channel();
        let (log_work, work) = mpsc::channel::<LogWork>();
        let (search, commands) = mpsc::channel();
        let (queued, search_backlog) =
            (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let start = Start {
            position: log.position(),
            ledger,
            epoch: grant.epoch,
            lease_until: clock.mono(grant.until),
            log_bytes: log.segment_bytes(),
        };
        let mut outputs = Vec::new();
        let (rules, limits) = (self.config.rules.clone(), self.config.limits.clone());
        let owner = Owner::open(start, rules, limits, clock.now(), &mut outputs)
            .map_err(|defect| defect.to_string())?;
        let seeker = Seeker {
            rules: self.config.rules.clone(),
            commands,
            backlog: search_backlog.clone(),
            proposals: sender.clone(),
            start_ms: clock.start_ms,
            start: clock.start,
            metrics: self.inner.search_metrics.clone(),
            fairness: self.inner.fairness.clone(),
        };
        let run = Run {
            owner,
            outputs,
            messages,
            sender: sender.clone(),
            queued: queued.clone(),
            log: log_work,
            search,
            search_backlog: search_backlog.clone(),
            lease: self.config.lease.clone(),
            replica,
            allocator: self.allocator.clone(),
            runtime: Handle::current(),
            clock,
            inner: self.inner.clone(),
        };
        let inner = self.inner.clone();
        let (log_owner, renewals) = (sender.clone(), sender.clone());
        let _seeking = on_thread("match search", move || seeker.run())?;
        let keeper = on_thread("match log", move || keep_log(log, work, log_owner, inner))?;
        let thread = on_thread("match owner", move || run.run())?;
        let renewing = tokio::spawn(renew(self.config.lease.clone(), renewals));
        self.inner.gate.store(Some(Arc::new(Gate {
            messages: sender,
            queued,
            search_backlog,
        })));
        Ok((thread, keeper, renewing))
    }
}

/// The owner's thread, its log's, and what renews its lease.
type Running = (JoinHandle<Ended>, JoinHandle<()>, JoinHandle<()>);

/// The standby's disk: each thing that the owner ships, then how far that is.
fn keep(
    mut replica: Replica,
    mut disk: tokio::sync::mpsc::Receiver<Shipped>,
    acks: tokio::sync::mpsc::UnboundedSender<u64>,
    checkpoint_bytes: u64,
    first: impl FnOnce(),
) -> Result<Replica, ReplicaError> {
    let mut first = Some(first);
    while let Some(shipped) = disk.blocking_recv() {
        if let Some(first) = first.take() {
            first();
        }
        let seq = replica.take(shipped, checkpoint_bytes)?;
        // A connection that is gone needs no acknowledgement, but what it brought may still be kept.
        let _ = acks.send(seq);
    }
    Ok(replica)
}

/// Holds on to a lease.
async fn renew(lease: Arc<dyn Lease>, owner: mpsc::Sender<Message>) {
    loop {
        tokio::time::sleep(RENEW_EVERY).await;
        let message = match lease.renew().await {
            Ok(grant) => Message::Renewed(grant.until),
            Err(LeaseError::Lost) => Message::LeaseLost,
            Err(error) => {
                tracing::warn!(%error, "the lease was not renewed; once more");
                continue;
            }
        };
        if owner.send(message).is_err() {
            return;
        }
    }
}

/// A thread whose end can be awaited.
fn on_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, String> {
    let (done, result) = tokio::sync::oneshot::channel();
    let spawned = std::thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            let _ = done.send(panic::catch_unwind(panic::AssertUnwindSafe(work)));
        });
    spawned.map_err(|error| format!("no thread for {name}: {error}"))?;
    Ok(tokio::spawn(async move {
        match result.await {
            Ok(Ok(value)) => value,
            Ok(Err(panicked)) => panic::resume_unwind(panicked),
            Err(_) => panic!("a thread ended without a word"),
        }
    }))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panicked) => panic::resume_unwind(panicked),
            // Only a runtime that is being shut down cancels, and then nobody waits for this.
            Err(_) => std::future::pending().await,
        },
    }
}

fn failed(error: &(dyn std::error::Error + 'static)) -> Role {
    let mut reason = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        reason = format!("{reason}: {error}");
        source = error.source();
    }
    Role::Failed { reason }
}
