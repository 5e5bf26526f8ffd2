//! Watches a canary: its proxies' acknowledgements, refusals and failed requests, against what the others see and what they
//! saw before; then everybody gets the change, or nobody keeps it.
//!
//! What is tried by whom stands in the store, what was seen of it only here: after a restart the watch starts anew, and a
//! canary that has waited for too long goes back. With several control planes each asks the others; the store lets one win.

mod judge;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use phalanx_client::admin::Admin;
use phalanx_client::api;
use tokio::sync::watch::Receiver;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::judge::{Seen, Verdict, judge, sum};
use super::fleet::{Fleet, ProxyState};
use crate::admit::{Admission, AdmitError, unix_ms};
use crate::observe::{ByDestination, Observe};
use crate::planes::Planes;
use crate::world::record::{CanaryLast, CanaryRecord, CanaryStage};
use crate::world::{Canary, World};

/// Cheap to clone: the task that runs it and the API share one.
#[derive(Clone)]
pub struct Canaries {
    inner: Arc<Inner>,
}

struct Inner {
    worlds: Receiver<Arc<World>>,
    admission: Arc<Admission>,
    fleet: Fleet,
    observe: Observe,
    /// This control plane among the others.
    planes: Planes,
    /// Short critical sections, never across an await.
    trial: Mutex<Option<Trial>>,
}

/// What this process has seen of the canary under way.
struct Trial {
    sequence: u64,
    since: Instant,
    /// The other proxies' totals when it began.
    others_then: ByDestination,
    /// Of each of its proxies that is connected here.
    nodes: BTreeMap<String, Borne>,
    /// When all of its proxies had it.
    complete: Option<Instant>,
    /// Those that had it, and have been without a stream, or without it, since.
    gone: BTreeMap<String, Instant>,
    /// What was decided and could not be stored.
    undecided: Option<String>,
    /// Of the other control planes, as they last told.
    peers: BTreeMap<String, api::CanaryEvidence>,
    problems: Vec<String>,
    seen: Seen,
}

#[derive(Default)]
struct Borne {
    /// In the minute before.
    before: ByDestination,
    /// When it acknowledged.
    totals_then: Option<ByDestination>,
}

impl Canaries {
    pub fn new(
        worlds: Receiver<Arc<World>>,
        admission: Arc<Admission>,
        fleet: Fleet,
        observe: Observe,
        planes: Planes,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                worlds,
                admission,
                fleet,
                observe,
                planes,
                trial: Mutex::default(),
            }),
        }
    }

    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut worlds = self.inner.worlds.clone();
        // Of another process's clock, or of this one's before a restart; what is staged from now on is new, whoever's clock.
        let found = worlds.borrow().canary.as_ref().map(|c| c.revision);
        loop {
            let world = worlds.borrow_and_update().clone();
            let pause = if world.canary.is_some() { TICK } else { IDLE };
            if let Some(canary) = &world.canary {
                self.look(&world, canary, found == Some(canary.revision))
                    .await;
            } else {
                *self.trial() = None;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = worlds.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // Registrations change the world too; looking at each would be of no use.
                    if world.canary.is_some() {
                        tokio::time::sleep(TICK).await;
                    }
                }
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// What is under way and how the last one ended.
    pub fn status(&self) -> api::CanaryStatus {
        let world = self.inner.worlds.borrow().clone();
        let current = world.canary.as_ref().map(|canary| self.view(canary));
        api::CanaryStatus {
            current,
            last: world.last_canary.as_deref().map(end),
        }
    }

    /// What was seen here, for other control planes.
    pub fn evidence(&self) -> api::CanaryEvidence {
        let world = self.inner.worlds.borrow().clone();
        let record = world
            .canary
            .as_ref()
            .and_then(|c| c.record.as_ref().zip(Some(c)));
        let Some((record, canary)) = record else {
            return api::CanaryEvidence::default();
        };
        let mut trial = self.trial();
        match trial.as_mut().filter(|t| t.sequence == record.sequence) {
            Some(trial) => self.local(trial, canary),
            None => api::CanaryEvidence::default(),
        }
    }

    async fn look(&self, world: &World, canary: &Arc<Canary>, is_found: bool) {
        let Some(record) = &canary.record else {
            let problem = canary.problem.clone().unwrap_or_default();
            return self.end(0, CanaryStage::Back, &problem).await;
        };
        let is_new = self.begin(record);
        let age_ms = unix_ms().saturating_sub(record.started);
        if is_new && is_found && age_ms > overdue_ms(record) {
            let reason = "it was not decided for too long, the control plane was away";
            return self.end(record.sequence, CanaryStage::Back, reason).await;
        }
        let peers = self.ask(world, record.sequence).await;
        let verdict = self.assess(record, canary, peers);
        let (stage, reason) = match verdict {
            Verdict::Wait => return self.settle(record.sequence),
            Verdict::Back(reason) => (CanaryStage::Back, reason),
            Verdict::Promote(reason) => (CanaryStage::Promoted, reason),
        };
        self.end(record.sequence, stage, &reason).await;
    }

    /// True when this process sees it for the first time.
    fn begin(&self, record: &CanaryRecord) -> bool {
        let mut trial = self.trial();
        if trial
            .as_ref()
            .is_some_and(|t| t.sequence == record.sequence)
        {
            return false;
        }
        let observe = &self.inner.observe;
        let chosen: BTreeSet<&str> = record.nodes.iter().map(String::as_str).collect();
        let borne = |node: &String| {
            let before = observe.recent(node);
            (
                node.clone(),
                Borne {
                    before,
                    totals_then: None,
                },
            )
        };
        *trial = Some(Trial {
            sequence: record.sequence,
            since: Instant::now(),
            others_then: observe.others(|node| chosen.contains(node)),
            nodes: record.nodes.iter().map(borne).collect(),
            complete: None,
            gone: BTreeMap::new(),
            undecided: None,
            peers: BTreeMap::new(),
            problems: Vec::new(),
            seen: Seen::default(),
        });
        true
    }

    /// What the other control planes saw; none: there are none.
    async fn ask(
        &self,
        world: &World,
        sequence: u64,
    ) -> Vec<(String, Result<api::CanaryEvidence, String>)> {
        let asked = others(world, &self.inner.planes).map(|(name, _, client)| async move {
            let answer = match client {
                Ok(client) => client.canary_evidence().await.map_err(|e| e.to_string()),
                Err(problem) => Err(problem),
            };
            let answer = answer.and_then(|evidence| {
                if evidence.sequence == sequence {
                    Ok(evidence)
                } else {
                    Err("it does not know of the canary yet".to_owned())
                }
            });
            (name.to_owned(), answer)
        });
        futures_util::future::join_all(asked).await
    }

    fn assess(
        &self,
        record: &CanaryRecord,
        canary: &Canary,
        peers: Vec<(String, Result<api::CanaryEvidence, String>)>,
    ) -> Verdict {
        let mut trial = self.trial();
        let Some(trial) = trial.as_mut().filter(|t| t.sequence == record.sequence) else {
            return Verdict::Wait;
        };
        let local = self.local(trial, canary);
        let mut told = BTreeMap::new();
        let mut problems = Vec::new();
        for (name, answer) in peers {
            match answer {
                Ok(evidence) => drop(told.insert(name, evidence)),
                Err(error) => {
                    problems.push(format!("control plane {name} can't be asked: {error}"))
                }
            }
        }
        trial.peers = told;
        trial.problems = problems;
        let mut seen = Seen::of(local, trial.peers.values());
        let now = Instant::now();
        for node in &record.nodes {
            let had = trial.seen.nodes.get(node).is_some_and(|n| n.applied)
                || trial.gone.contains_key(node);
            if seen.nodes.get(node).is_some_and(|n| n.applied) {
                trial.gone.remove(node);
            } else if had {
                trial.gone.entry(node.clone()).or_insert(now);
            }
        }
        let is_complete = record
            .nodes
            .iter()
            .all(|node| seen.nodes.get(node).is_some_and(|n| n.applied));
        if is_complete {
            trial.complete.get_or_insert(now);
        }
        seen.since = now - trial.since;
        seen.complete = trial.complete.map(|at| now - at);
        seen.gone = trial
            .gone
            .iter()
            .filter(|(node, since)| {
                let is_here = seen.nodes.contains_key(*node);
                now - **since > if is_here { judge::APPLY_MAX } else { GONE_MAX }
            })
            .map(|(node, _)| node.clone())
            .collect();
        seen.unasked.clone_from(&trial.problems);
        seen.all_here = is_complete;
        trial.seen = seen;
        judge(record, &trial.seen)
    }

    /// This control plane's part.
    fn local(&self, trial: &mut Trial, canary: &Canary) -> api::CanaryEvidence {
        let (observe, revision) = (&self.inner.observe, canary.revision);
        let proxies = self.inner.fleet.proxies();
        let chosen = proxies.iter().filter(|p| canary.nodes.contains(&p.node.id));
        let mut nodes = Vec::new();
        for proxy in chosen {
            let borne = trial.nodes.entry(proxy.node.id.clone()).or_default();
            let refused = refusals(proxy, revision);
            let applied = proxy.acked >= revision && refused.is_empty();
            let totals = observe.totals(&proxy.node.id);
            if applied && borne.totals_then.is_none() {
                borne.totals_then = Some(totals.clone());
            }
            let traffic = match &borne.totals_then {
                Some(then) => judge::since(&totals, then),
                None => ByDestination::new(),
            };
            nodes.push(api::NodeEvidence {
                node: proxy.node.id.clone(),
                applied,
                refused,
                traffic: judge::told(&traffic),
                before: judge::told(&borne.before),
            });
        }
        let others = observe.others(|node| canary.nodes.contains(node));
        api::CanaryEvidence {
            sequence: trial.sequence,
            nodes,
            others: judge::told(&judge::since(&others, &trial.others_then)),
        }
    }

    async fn end(&self, sequence: u64, stage: CanaryStage, reason: &str) {
        let admission = &self.inner.admission;
        let ended = admission.conclude(sequence, stage, AUTHOR, reason).await;
        match ended {
            Ok(_) => tracing::info!(sequence, ?stage, reason, "canary decided"),
            Err(AdmitError::Overtaken { id }) => {
                let reason = format!("{id} was changed meanwhile by something that did not ask");
                let back = admission.conclude(sequence, CanaryStage::Back, AUTHOR, &reason);
                if let Err(error) = back.await {
                    tracing::warn!(sequence, %error, "the canary could not be taken back yet");
                }
            }
            // Another control plane was faster, or somebody by hand.
            Err(AdmitError::NoCanary | AdmitError::Conflict { .. }) => {}
            Err(error) => {
                let told = undecided(stage, reason, &error);
                tracing::warn!(sequence, "{told}");
                if let Some(trial) = self.trial().as_mut().filter(|t| t.sequence == sequence) {
                    trial.undecided = Some(told);
                }
            }
        }
    }

    /// What could not be stored is due no more.
    fn settle(&self, sequence: u64) {
        if let Some(trial) = self.trial().as_mut().filter(|t| t.sequence == sequence) {
            trial.undecided = None;
        }
    }

    fn view(&self, canary: &Canary) -> api::Canary {
        let Some(record) = &canary.record else {
            return api::Canary {
                revision: canary.revision,
                stage: "unreadable".to_owned(),
                problems: canary.problem.iter().cloned().collect(),
                ..api::Canary::default()
            };
        };
        let trial = self.trial();
        let trial = trial.as_ref().filter(|t| t.sequence == record.sequence);
        let seen = trial.map(|t| &t.seen);
        let node = |id: &String| {
            let found = seen.and_then(|seen| seen.nodes.get(id));
            let state = match found {
                None => "not connected",
                Some(node) if !node.refused.is_empty() => "refused",
                Some(node) if node.applied => "applied",
                Some(_) => "waiting",
            };
            let total = |traffic: Option<&BTreeMap<String, api::Traffic>>| {
                traffic.map(|t| sum(t.values())).unwrap_or_default()
            };
            api::CanaryNode {
                node: id.clone(),
                state: state.to_owned(),
                message: found.map(|n| n.refused.join("; ")).unwrap_or_default(),
                traffic: total(found.map(|n| &n.traffic)),
                before: total(found.map(|n| &n.before)),
            }
        };
        let nodes: Vec<_> = record.nodes.iter().map(node).collect();
        let left = trial.and_then(|t| t.complete).map(|complete| {
            let watch = Duration::from_millis(record.watch_ms);
            unix_ms() + watch.saturating_sub(complete.elapsed()).as_millis() as u64
        });
        let change = |change: &crate::world::record::CanaryChange| {
            let sign = match (&change.replaces, &change.after) {
                (None, _) => '+',
                (_, None) => '-',
                _ => '~',
            };
            format!("{sign}{}", change.id)
        };
        api::Canary {
            sequence: record.sequence,
            revision: canary.revision,
            author: record.author.clone(),
            message: record.message.clone(),
            started_ms: record.started,
            watch_ms: record.watch_ms,
            max_error_rate: record.max_error_rate,
            max_errors: record.max_errors,
            changes: record.changes.iter().map(change).collect(),
            concerned: record.concerned,
            stage: if left.is_some() {
                "watching"
            } else {
                "sending"
            }
            .to_owned(),
            applied: nodes.iter().filter(|node| node.state == "applied").count(),
            until_ms: left,
            nodes,
            others: seen.map(|s| sum(s.others.values())).unwrap_or_default(),
            problems: trial
                .map(|t| t.undecided.iter().chain(&t.problems).cloned().collect())
                .unwrap_or_default(),
        }
    }

    fn trial(&self) -> MutexGuard<'_, Option<Trial>> {
        self.inner
            .trial
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A decision that the store did not take; it is tried again until it does, or another one is due.
fn undecided(stage: CanaryStage, reason: &str, error: &AdmitError) -> String {
    let cause = match error {
        AdmitError::Store(source) => source.to_string(),
        other => other.to_string(),
    };
    let what = match stage {
        CanaryStage::Promoted => "it should go on to all, but only its proxies have it",
        _ => "it should go back, but its proxies keep it",
    };
    format!("{what} for as long as that can't be stored: {cause} (reason to decide: {reason})")
}

/// The other control planes over the store: name, admin address, and how to ask it or why that is of no use.
pub fn others<'a>(
    world: &'a World,
    planes: &'a Planes,
) -> impl Iterator<Item = (&'a str, &'a str, Result<Admin, String>)> {
    let others = world.planes.iter();
    let others = others.filter(|(name, _)| *name != planes.name());
    others.map(|(name, plane)| {
        let client = match plane.admin == planes.admin() {
            true => Err(format!(
                "its admin address, {}, is this one's too",
                plane.admin
            )),
            false => Ok(planes.ask(&plane.admin, PEER_MAX)),
        };
        (name.as_str(), plane.admin.as_str(), client)
    })
}

fn end(last: &CanaryLast) -> api::CanaryEnd {
    api::CanaryEnd {
        sequence: last.sequence,
        stage: match last.stage {
            CanaryStage::Started => "started",
            CanaryStage::Promoted => "promoted",
            CanaryStage::Back => "back",
        }
        .to_owned(),
        reason: last.reason.clone(),
        author: last.author.clone(),
        time_ms: last.time,
    }
}

/// Of the change or of something that came with it; what it refused before says nothing about it.
fn refusals(proxy: &ProxyState, revision: u64) -> Vec<String> {
    let new = proxy
        .refused
        .iter()
        .filter(|r| r.since_revision >= revision);
    new.map(|r| {
        let rule = if r.rule.is_empty() {
            &r.resource
        } else {
            &r.rule
        };
        format!("{rule}: {}", r.message)
    })
    .collect()
}

/// From its start; a canary that is older when a process sees it first is doubtful.
fn overdue_ms(record: &CanaryRecord) -> u64 {
    record.watch_ms.saturating_mul(3).saturating_add(OVERDUE_MS)
}

/// Who the history names when nobody decided by hand.
pub const AUTHOR: &str = "phalanx";
const TICK: Duration = Duration::from_millis(250);
const IDLE: Duration = Duration::from_secs(60);
/// Of one question to another control plane.
const PEER_MAX: Duration = Duration::from_secs(1);
/// How long one of its proxies may be away: a reconnect takes less.
const GONE_MAX: Duration = Duration::from_secs(10);
const OVERDUE_MS: u64 = 10 * 60 * 1000;
