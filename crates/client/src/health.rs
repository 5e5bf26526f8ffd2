//! Asking endpoints whether they work, again and again: what a sidecar does for the control plane over health discovery,
//! and the control plane itself for endpoints that no data plane can ask.
//!
//! [`Checker`] is given all targets at once and calls back with each answer; [`ask`] is one question; [`Tally`] makes a state
//! of answers. Who asks whom, and what follows from it, is decided elsewhere.

mod ask;
mod secured;
mod tally;

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use phalanx_model::resource::{HealthCheck, PeerTls};
use phalanx_pki::identity::Identity;
use tokio::sync::watch;
use tokio::task::{Id, JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

pub use self::ask::{Answer, ask};
pub use self::secured::Way;
pub use self::tally::{State, Tally};

/// Whom to ask, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub address: SocketAddr,
    pub check: HealthCheck,
    /// Of a question over HTTP.
    pub authority: String,
    /// The port of the application that a sidecar at `address` is asked for; 0 where nobody needs to be told.
    pub port: u16,
    /// Ask over HTTP/2; gRPC always does.
    pub http2: bool,
    /// It takes mutual TLS: whom to expect there. Who asks without any identity asks in plain text all the same.
    pub tls: Option<PeerTls>,
    /// What is believed of it so far.
    pub before: State,
}

/// What an answer changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub state: State,
    /// Of an answer that was bad, else empty.
    pub reason: String,
    /// The state was another before.
    pub is_transition: bool,
}

type Targets<K> = BTreeMap<K, Target>;

/// A task that asks; it ends when this is dropped.
#[derive(Debug)]
pub struct Checker<K> {
    targets: watch::Sender<Targets<K>>,
    task: JoinHandle<()>,
}

impl<K: Ord + Clone + Debug + Send + Sync + 'static> Checker<K> {
    /// Asks at most `at_once` at the same time, as `identity` where mutual TLS is taken. `found` hears of each answer; it
    /// must not block.
    pub fn spawn(
        at_once: usize,
        identity: Option<Arc<Identity>>,
        found: impl FnMut(&K, Finding) + Send + 'static,
    ) -> Self {
        let (targets, wanted) = watch::channel(Targets::new());
        let asking = Asking {
            wanted,
            at_once: at_once.max(1),
            identity,
            watched: BTreeMap::new(),
            due: BTreeMap::new(),
            questions: JoinSet::new(),
            asked: HashMap::new(),
            serial: 0,
            found,
        };
        let task = tokio::spawn(asking.run());
        Self { targets, task }
    }

    /// From now on these and no others. A target that stays as it is keeps what is known of it.
    pub fn set(&self, targets: BTreeMap<K, Target>) {
        self.targets.send_if_modified(|now| {
            let is_other = *now != targets;
            *now = targets;
            is_other
        });
    }
}

impl<K> Drop for Checker<K> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Asking<K, F> {
    wanted: watch::Receiver<Targets<K>>,
    at_once: usize,
    identity: Option<Arc<Identity>>,
    watched: BTreeMap<K, Watched>,
    /// By time and serial number, so that two may be due at once.
    due: BTreeMap<(Instant, u64), K>,
    questions: JoinSet<Answer>,
    /// Whom they are about. One that ends in a defect of ours tells nothing, and is asked again.
    asked: HashMap<Id, (K, u64)>,
    serial: u64,
    found: F,
}

struct Watched {
    target: Target,
    /// Kept with its sessions.
    way: Option<Way>,
    tally: Tally,
    /// Of the one place in `due`, or of the question under way; what has another number is of an earlier target.
    serial: u64,
}

impl<K: Ord + Clone + Debug + Send + Sync + 'static, F: FnMut(&K, Finding)> Asking<K, F> {
    async fn run(mut self) {
        loop {
            self.ask_due();
            let next = self.due.keys().next().map(|(at, _)| *at);
            let has_room = self.questions.len() < self.at_once;
            tokio::select! {
                changed = self.wanted.changed() => match changed {
                    Ok(()) => self.take(),
                    Err(_) => return,
                },
                Some(done) = self.questions.join_next_with_id() => {
                    let (id, answer) = done.unwrap_or_else(|error| (error.id(), Answer::Void));
                    if let Some((key, serial)) = self.asked.remove(&id) {
                        self.answered(&key, serial, answer);
                    }
                }
                () = wait_until(next), if has_room => {}
            }
        }
    }

    fn take(&mut self) {
        let targets = self.wanted.borrow_and_update().clone();
        self.watched.retain(|key, _| targets.contains_key(key));
        for (key, target) in targets {
            let is_same = |watched: &Watched| {
                // What was believed before is only where a target starts from.
                watched.target
                    == Target {
                        before: watched.target.before,
                        ..target.clone()
                    }
            };
            if self.watched.get(&key).is_some_and(is_same) {
                continue;
            }
            let tally = Tally::new(&target.check, target.before);
            // Not all at the same moment, and neither do two who were told at the same moment.
            let first = Instant::now() + target.check.interval.mul_f64(fastrand::f64());
            let serial = self.plan(first, key.clone());
            let identity = self.identity.as_ref();
            let way = identity.and_then(|identity| Way::to(&target, identity));
            self.watched.insert(
                key,
                Watched {
                    target,
                    way,
                    tally,
                    serial,
                },
            );
        }
        let Self { due, watched, .. } = self;
        due.retain(|(_, serial), key| watched.get(key).is_some_and(|w| w.serial == *serial));
    }

    fn plan(&mut self, at: Instant, key: K) -> u64 {
        self.serial += 1;
        self.due.insert((at, self.serial), key);
        self.serial
    }

    fn ask_due(&mut self) {
        let now = Instant::now();
        while self.questions.len() < self.at_once {
            let Some(first) = self.due.first_entry().filter(|first| first.key().0 <= now) else {
                return;
            };
            let ((_, serial), key) = first.remove_entry();
            let Some(watched) = self.watched.get(&key).filter(|w| w.serial == serial) else {
                continue;
            };
            let (target, way) = (watched.target.clone(), watched.way.clone());
            let question = async move { ask(&target, way.as_ref()).await };
            self.question(key, serial, question);
        }
    }

    fn question(
        &mut self,
        key: K,
        serial: u64,
        question: impl Future<Output = Answer> + Send + 'static,
    ) {
        let id = self.questions.spawn(question).id();
        self.asked.insert(id, (key, serial));
    }

    fn answered(&mut self, key: &K, serial: u64, answer: Answer) {
        let Some(watched) = self.watched.get_mut(key).filter(|w| w.serial == serial) else {
            return;
        };
        let interval = watched.target.check.interval;
        let before = watched.tally.state();
        let reason = match answer {
            Answer::Good => {
                watched.tally.good();
                Some(String::new())
            }
            Answer::Bad(reason) => {
                watched.tally.bad();
                Some(reason)
            }
            Answer::Void => None,
        };
        let state = watched.tally.state();
        let next = Instant::now() + interval.mul_f64(1.0 - JITTER + 2.0 * JITTER * fastrand::f64());
        let serial = self.plan(next, key.clone());
        if let Some(watched) = self.watched.get_mut(key) {
            watched.serial = serial;
        }
        if let Some(reason) = reason {
            let is_transition = before != state;
            (self.found)(
                key,
                Finding {
                    state,
                    reason,
                    is_transition,
                },
            );
        }
    }
}

async fn wait_until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Of an interval, to both sides.
const JITTER: f64 = 0.1;
/// A question that took so much longer than it may says that we stood still, not the one asked.
const STALL: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests;
