//! Active health checks: which endpoints a BackendPolicy wants asked, who asks them, and what follows from the answers.
//!
//! [`targets`] says what is to be asked, [`assign`] spreads it over the data planes that offered to (over
//! [`crate::discovery::Hds`]), the rest is asked from here; [`board`] judges what they say. A verdict is stored when it
//! changes, under a lease of this process, and comes back through the world like everything else.

mod assign;
mod board;
mod store;
mod targets;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use phalanx_client::health::{Checker, Finding, Target as Asked};
use phalanx_model::{InstanceId, ServiceName};
use phalanx_pki::identity::Identity;
use phalanx_store::Store;
use phalanx_xds::hds::{Group, Reported};
use tokio::sync::Notify;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::board::{Board, PROBER, Who};
pub use self::board::{Opinion, View};
use self::store::Keeper;
use self::targets::{Target, Targets, Watchlist};
use crate::snapshot::Published;
use crate::world::World;

/// One endpoint of one service.
pub type Key = (ServiceName, SocketAddr);

/// Shared by the HDS service, the admin API and the task; cheap to clone.
#[derive(Clone)]
pub struct Health {
    inner: Arc<Inner>,
}

struct Inner {
    /// A short critical section per report; never across an await.
    state: Mutex<State>,
    /// Something came that the task should look at.
    news: Notify,
    counts: Counts,
}

#[derive(Default)]
struct State {
    next: Who,
    board: Board,
    checkers: BTreeMap<Who, Joined>,
    /// A checker came or went since the last look.
    is_other: bool,
}

struct Joined {
    checker: CheckerInfo,
    work: watch::Sender<Arc<Work>>,
}

/// Since start, apart from gauges.
#[derive(Debug, Default)]
pub struct Counts {
    /// Lines of reports.
    pub reports: AtomicU64,
    /// Of them, about endpoints that the reporter was not asked about.
    pub ignored: AtomicU64,
    /// Questions that this process asked itself, answered.
    pub probes: AtomicU64,
    pub to_unhealthy: AtomicU64,
    pub to_healthy: AtomicU64,
    /// Transactions that failed; what they held is written again.
    pub write_failures: AtomicU64,
}

/// How many there are of what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    pub checkers: usize,
    /// Endpoints that a policy wants asked, and that are this control plane's to see to.
    pub targets: usize,
    /// Of them, those that this process asks itself.
    pub probed: usize,
    pub unhealthy: usize,
}

/// A data plane that offers to check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckerInfo {
    /// Of its node.
    pub name: String,
    pub zone: String,
    /// The instance it stands beside: that is not its to judge.
    pub instance: InstanceId,
    /// Whether it can ask over gRPC.
    pub grpc: bool,
    /// Whether it can ask over mutual TLS: it has a certificate, and is one of ours.
    pub secure: bool,
}

/// What one checker is to do.
#[derive(Debug, Default)]
pub struct Work {
    pub groups: Vec<Group>,
    /// The service of each group.
    services: BTreeMap<String, ServiceName>,
}

/// Why a checker is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{CHECKERS_MAX} data planes check already, no more are needed")]
pub struct Full;

impl Default for Health {
    fn default() -> Self {
        Self {
            inner: Arc::new(Inner {
                state: Mutex::default(),
                news: Notify::new(),
                counts: Counts::default(),
            }),
        }
    }
}

impl Health {
    /// Takes a checker, until its seat is dropped.
    ///
    /// # Errors
    /// [`Full`]
    pub fn join(&self, checker: CheckerInfo) -> Result<Seat, Full> {
        let (work, receiver) = watch::channel(Arc::default());
        let mut state = self.state();
        if state.checkers.len() >= CHECKERS_MAX {
            return Err(Full);
        }
        state.next += 1;
        let who = state.next;
        state.checkers.insert(who, Joined { checker, work });
        state.is_other = true;
        drop(state);
        self.inner.news.notify_one();
        Ok(Seat {
            health: self.clone(),
            who,
            work: receiver,
        })
    }

    pub fn counts(&self) -> &Counts {
        &self.inner.counts
    }

    pub fn gauges(&self) -> Gauges {
        let state = self.state();
        Gauges {
            checkers: state.checkers.len(),
            ..state.board.gauges()
        }
    }

    /// Every endpoint that this control plane sees to, with what each checker says of it.
    pub fn views(&self) -> Vec<View> {
        let state = self.state();
        let name = |who: Who| match state.checkers.get(&who) {
            Some(joined) => joined.checker.name.clone(),
            None => CONTROL.to_owned(),
        };
        state.board.views(name)
    }

    /// Endpoints that are unhealthy, by the same rule as the list of them: of those that this control plane sees to its own
    /// word counts, which the store has a moment later; of all others what the world says.
    pub fn unhealthy(&self, world: &World) -> usize {
        let state = self.state();
        let of_others = world.health.iter().flat_map(|(service, of)| {
            let verdicts = of.iter().filter(|(_, verdict)| verdict.is_unhealthy());
            verdicts.map(move |(address, _)| (service.clone(), *address))
        });
        let of_others = of_others.filter(|key| !state.board.contains(key)).count();
        of_others + state.board.unhealthy().count()
    }

    /// Whether anybody is asking about this endpoint, as far as this control plane knows.
    pub fn is_checked(&self, service: &ServiceName, address: SocketAddr) -> bool {
        self.state().board.contains(&(service.clone(), address))
    }

    /// Checks, judges and stores until `stop`. `plane` is the name of this control plane among those in the world;
    /// `identity` is what it asks with itself, where mutual TLS is taken.
    pub async fn run(
        self,
        store: Store,
        plane: String,
        identity: Option<Arc<Identity>>,
        mut published: watch::Receiver<Arc<Published>>,
        stop: CancellationToken,
    ) {
        let prober = {
            let health = self.clone();
            Checker::spawn(PROBES_MAX, identity, move |key: &Key, finding| {
                health.probed(key, finding)
            })
        };
        let mut keeper = Keeper::new(store);
        let mut watchlist = Watchlist::default();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        published.mark_changed();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                changed = published.changed() => if changed.is_err() { return },
                () = self.inner.news.notified() => {}
                _ = ticks.tick() => {}
            }
            let began = Instant::now();
            let now = published.borrow_and_update().clone();
            let is_other = watchlist.follow(&now.world, &now.mesh, &plane);
            self.direct(&watchlist, &now.world, is_other, &prober);
            let names = self.names();
            let transitions = self.state().board.judge(Instant::now(), &names);
            self.tell(&transitions);
            let is_gone = |key: &Key| watchlist.is_gone(key);
            let plan = keeper.plan(&self.state().board, &now.world, is_gone);
            let busy = began.elapsed();
            let failed = keeper.keep(plan).await;
            self.inner
                .counts
                .write_failures
                .fetch_add(failed, Ordering::Relaxed);
            // News come in crowds, and a look at very many takes its time.
            tokio::time::sleep(PACE.max(busy * REST)).await;
        }
    }

    /// Spreads the targets anew, where they or the checkers are others than before.
    fn direct(&self, watchlist: &Watchlist, world: &World, is_other: bool, prober: &Checker<Key>) {
        let mut state = self.state();
        if !is_other && !std::mem::take(&mut state.is_other) {
            return;
        }
        state.is_other = false;
        let targets = watchlist.targets();
        let now = Instant::now();
        let State {
            board, checkers, ..
        } = &mut *state;
        board.set(targets, world);
        let spread = assign::assign(targets, checkers.iter().map(|(who, j)| (*who, &j.checker)));
        for (who, joined) in checkers.iter() {
            let keys = spread.by_checker.get(who).map_or(&[][..], Vec::as_slice);
            let work = Work::new(keys, targets);
            joined.work.send_if_modified(|before| {
                let is_other = before.groups != work.groups;
                if is_other {
                    *before = Arc::new(work);
                }
                is_other
            });
        }
        let probed = spread.alone.iter().filter_map(|key| {
            let before = board.state(key);
            Some((key.clone(), targets.get(key)?.asked(key, before)))
        });
        let probed: BTreeMap<Key, Asked> = probed.collect();
        board.assign(spread, now);
        drop(state);
        prober.set(probed);
    }

    fn names(&self) -> BTreeMap<Who, String> {
        let state = self.state();
        let names = state.checkers.iter();
        names
            .map(|(who, joined)| (*who, joined.checker.name.clone()))
            .chain([(PROBER, CONTROL.to_owned())])
            .collect()
    }

    fn probed(&self, key: &Key, finding: Finding) {
        self.inner.counts.probes.fetch_add(1, Ordering::Relaxed);
        let is_healthy = match finding.state {
            phalanx_client::health::State::Unknown => return,
            phalanx_client::health::State::Healthy => true,
            phalanx_client::health::State::Unhealthy => false,
        };
        let reason = match is_healthy {
            true => String::new(),
            false => finding.reason,
        };
        self.state()
            .board
            .report(PROBER, key, is_healthy, reason, Instant::now());
        if finding.is_transition {
            self.inner.news.notify_one();
        }
    }

    fn tell(&self, transitions: &[View]) {
        for view in transitions {
            let counts = &self.inner.counts;
            match view.is_unhealthy() {
                true => {
                    counts.to_unhealthy.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(service = %view.service, address = %view.address, reason = view.reason, by = view.by, "endpoint is unhealthy");
                }
                false => {
                    counts.to_healthy.fetch_add(1, Ordering::Relaxed);
                    tracing::info!(service = %view.service, address = %view.address, by = view.by, "endpoint is healthy");
                }
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one checker; dropping it takes back everything it said.
pub struct Seat {
    health: Health,
    who: Who,
    work: watch::Receiver<Arc<Work>>,
}

impl Seat {
    /// Waits until there is other work than before.
    pub async fn other_work(&mut self) -> Arc<Work> {
        if self.work.changed().await.is_err() {
            // The sender lives as long as this seat.
            std::future::pending::<()>().await;
        }
        self.work()
    }

    pub fn work(&mut self) -> Arc<Work> {
        self.work.borrow_and_update().clone()
    }

    /// Takes a report; what is said of endpoints that are not this checker's is ignored and counted.
    pub fn report(&self, lines: impl Iterator<Item = Reported>) {
        let work = self.work.borrow().clone();
        let now = Instant::now();
        let (mut taken, mut ignored, mut is_news) = (0, 0, false);
        let mut state = self.health.state();
        for line in lines.take(LINES_MAX) {
            taken += 1;
            let outcome = work.services.get(&line.name).map(|service| {
                let key = (service.clone(), line.address);
                state
                    .board
                    .report(self.who, &key, line.is_healthy, line.reason, now)
            });
            match outcome {
                Some(Some(is_other)) => is_news |= is_other,
                _ => ignored += 1,
            }
        }
        drop(state);
        let counts = &self.health.inner.counts;
        counts.reports.fetch_add(taken, Ordering::Relaxed);
        counts.ignored.fetch_add(ignored, Ordering::Relaxed);
        if is_news {
            self.health.inner.news.notify_one();
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.health.state();
        state.checkers.remove(&self.who);
        state.board.leave(self.who);
        state.is_other = true;
        drop(state);
        self.health.inner.news.notify_one();
    }
}

impl Work {
    fn new(keys: &[Key], targets: &Targets) -> Self {
        let mut work = Self::default();
        let mut groups: BTreeMap<String, Group> = BTreeMap::new();
        let keys: BTreeSet<&Key> = keys.iter().collect();
        for key in keys {
            let Some(target) = targets.get(key) else {
                continue;
            };
            let name = target.group(key);
            work.services.insert(name.clone(), key.0.clone());
            let group = groups
                .entry(name)
                .or_insert_with_key(|name| target.empty_group(name));
            group.endpoints.push((key.1, target.zone.clone()));
        }
        work.groups = groups.into_values().collect();
        work
    }

    /// How often its checker should report.
    pub fn report_interval(&self) -> Duration {
        let intervals = self.groups.iter().map(|group| group.check.interval);
        intervals
            .min()
            .unwrap_or(REPORT_MAX)
            .clamp(REPORT_MIN, REPORT_MAX)
    }
}

impl Target {
    /// For our own questions.
    fn asked(&self, key: &Key, before: phalanx_client::health::State) -> Asked {
        Asked {
            address: key.1,
            check: (*self.check).clone(),
            authority: self.authority.clone(),
            port: self.port,
            http2: self.http2,
            tls: self.tls.clone(),
            before,
        }
    }

    /// Endpoints of a service that are asked the same.
    fn group(&self, key: &Key) -> String {
        let version = if self.http2 { "h2" } else { "h1" };
        let secured = if self.tls.is_some() { "|mtls" } else { "" };
        format!("{}|{}|{version}{secured}", key.0, self.port)
    }

    fn empty_group(&self, name: &str) -> Group {
        Group {
            name: name.to_owned(),
            check: (*self.check).clone(),
            authority: self.authority.clone(),
            port: self.port,
            http2: self.http2,
            tls: self.tls.clone(),
            endpoints: Vec::new(),
        }
    }
}

/// What the control plane calls itself as a checker.
const CONTROL: &str = "control plane";
/// Data planes that check; beyond, more streams would cost more than they tell.
pub const CHECKERS_MAX: usize = 2_000;
/// Questions of this process at once.
const PROBES_MAX: usize = 128;
/// Of one report.
const LINES_MAX: usize = 4096;
const REPORT_MIN: Duration = Duration::from_millis(250);
const REPORT_MAX: Duration = Duration::from_secs(1);
/// Between two looks at whether reports are still fresh.
const TICK: Duration = Duration::from_secs(1);
/// Between two looks at news.
const PACE: Duration = Duration::from_millis(50);
/// For each look so many times as long without one, at least.
const REST: u32 = 4;

#[cfg(test)]
mod tests;
