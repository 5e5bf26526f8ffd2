//! Rollouts: what each is at, who drives it, and what is wanted of it by hand.
//!
//! One control plane of several drives a rollout: which, follows from who is alive, and its writes are fenced like all that a
//! plane does. What it decides is in [`machine`]; what data planes then receive, the compiler makes of the stored record. So
//! whoever comes after a `kill -9` goes on where the record ends.

mod figures;
mod machine;
mod view;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use phalanx_client::admin::Admin;
use phalanx_client::{api, prometheus};
use phalanx_model::document::rollout::Rollout;
use phalanx_model::document::{Document, DocumentId, Kind};
use phalanx_model::resource::Health;
use phalanx_store::{Revision, Store, Txn};
use tokio::sync::watch::Receiver;
use tokio_util::sync::CancellationToken;

use self::figures::Bases;
pub use self::machine::{Command, PHALANX};
use self::machine::{Instances, Look, Machine, Order};
use crate::admit::{outdated, unix_ms};
use crate::discovery::{Fleet, others};
use crate::observe::Observe;
use crate::planes::{Held, Planes};
use crate::snapshot::Published;
use crate::world::record::{HistoryRecord, history_key};
use crate::world::rollout::{Phase, Progress, RolloutRecord, rollout_key};
use crate::world::{DocumentEntry, World};

/// Cheap to clone: the task that runs it and the API share one.
#[derive(Clone)]
pub struct Rollouts {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    worlds: Receiver<Arc<World>>,
    published: Receiver<Arc<Published>>,
    fleet: Fleet,
    observe: Observe,
    planes: Planes,
    /// Those driven here. Short critical sections, never across an await.
    drives: Mutex<BTreeMap<DocumentId, Drive>>,
    counts: Counts,
}

/// Since start, of those driven here.
#[derive(Debug, Default)]
pub struct Counts {
    pub good: AtomicU64,
    pub bad: AtomicU64,
    pub promoted: AtomicU64,
    pub rolled_back: AtomicU64,
    /// Records that the store did not take.
    pub unstored: AtomicU64,
}

/// One that is driven here.
#[derive(Clone, Debug)]
struct Drive {
    machine: Machine,
    /// Of the record as it was last read or written; none: there is none yet.
    revision: Option<Revision>,
    bases: Bases,
    /// What could not be stored.
    problem: Option<String>,
}

type Ours = (DocumentEntry, Rollout);
type Orphan = (DocumentId, Revision);

/// Why an order was not followed.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    #[error("Rollout {namespace}/{name} does not exist")]
    Unknown { namespace: String, name: String },
    #[error("{why}")]
    Senseless { why: String },
    #[error("its record is at revision {revision}, not at {expected}: it has moved on meanwhile")]
    Moved { expected: u64, revision: u64 },
    #[error("the order could not be stored")]
    Store(#[source] phalanx_store::Error),
}

/// What is wanted of a Rollout, and by whom.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    pub command: Command,
    pub author: &'a str,
    pub message: &'a str,
    pub expect: Option<u64>,
}

impl Rollouts {
    pub fn new(
        store: Store,
        worlds: Receiver<Arc<World>>,
        published: Receiver<Arc<Published>>,
        fleet: Fleet,
        observe: Observe,
        planes: Planes,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                store,
                worlds,
                published,
                fleet,
                observe,
                planes,
                drives: Mutex::default(),
                counts: Counts::default(),
            }),
        }
    }

    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut worlds = self.inner.worlds.clone();
        loop {
            let world = worlds.borrow_and_update().clone();
            let any = documents(&world).next().is_some() || !world.rollouts.is_empty();
            if any {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = self.drive(&world) => {}
                }
            } else {
                self.drives().clear();
            }
            let pause = async {
                if any {
                    return tokio::time::sleep(TICK).await;
                }
                if worlds.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
                // Registrations change the world too.
                tokio::time::sleep(TICK).await;
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = pause => {}
            }
        }
    }

    pub fn counts(&self) -> &Counts {
        &self.inner.counts
    }

    async fn drive(&self, world: &World) {
        let planes = &self.inner.planes;
        let Some(held) = planes.held() else {
            return self.drives().clear();
        };
        let published = self.inner.published.borrow().clone();
        let (ours, orphans) = self.ours(world, &published);
        self.drives()
            .retain(|id, _| ours.iter().any(|(entry, _)| entry.id == *id));
        for (id, revision) in orphans {
            self.forget(&id, revision, held).await;
        }
        for (entry, _) in &ours {
            self.meet(world, &entry.id);
        }
        let told = self.ask(world, &ours).await;
        let mut asked = Vec::new();
        for (entry, rollout) in &ours {
            asked.push(self.custom(&entry.id, rollout));
        }
        let asked = futures_util::future::join_all(asked).await;
        for ((entry, rollout), custom) in ours.iter().zip(asked) {
            if damage(world, &entry.id).is_some() {
                continue;
            }
            let look = Look {
                now: unix_ms(),
                spec: spec(entry),
                canary: instances(&published, rollout),
                obstacle: published
                    .mesh
                    .obstacle(&published.world, &entry.id, rollout),
                refused: told.refused(rollout),
                blind: told.blind(),
                custom,
                ..Look::default()
            };
            self.look(entry, rollout, look, &told, held).await;
        }
    }

    /// The Rollouts that this plane drives, and records whose Rollout is gone.
    fn ours(&self, world: &World, published: &Published) -> (Vec<Ours>, Vec<Orphan>) {
        let planes = &self.inner.planes;
        let duty = planes.duty(world);
        let is_ours = |id: &DocumentId| duty.keeper(&id.to_string()) == Some(planes.name());
        let ours = documents(&published.world).filter(|(entry, _)| is_ours(&entry.id));
        let ours = ours.map(|(entry, rollout)| (entry.clone(), rollout.clone()));
        let is_there = |id: &DocumentId| {
            [world, &published.world]
                .iter()
                .any(|w| w.documents.contains_key(id))
        };
        let orphans = world.rollouts.iter();
        let orphans = orphans.filter(|(id, _)| !is_there(id) && is_ours(id));
        let orphans = orphans.map(|(id, progress)| (id.clone(), progress.revision));
        (ours.collect(), orphans.collect())
    }

    /// Takes over what is stored, if that is newer than what is known here.
    fn meet(&self, world: &World, id: &DocumentId) {
        let mut drives = self.drives();
        let stored = world.rollouts.get(id);
        let revision = stored.map(|progress| progress.revision);
        let Some(drive) = drives.get_mut(id) else {
            let record = stored.map(|progress| progress.record.clone());
            let drive = Drive {
                machine: Machine::new(record.unwrap_or_default()),
                revision,
                bases: Bases::default(),
                problem: None,
            };
            drives.insert(id.clone(), drive);
            return;
        };
        // What was written here comes back by the world, a little later.
        if revision == drive.revision || drive.revision > Some(world.revision) {
            return;
        }
        drive.revision = revision;
        let record = stored.map_or_else(RolloutRecord::default, |p| p.record.clone());
        if record.attempt != drive.machine.record.attempt {
            drive.bases = Bases::default();
        }
        drive.machine.replace(record);
    }

    /// Custom figures, where a measurement is due.
    async fn custom(
        &self,
        id: &DocumentId,
        rollout: &Rollout,
    ) -> Vec<(String, Result<f64, String>)> {
        let guards = &rollout.analysis.custom;
        let due = || {
            let drives = self.drives();
            let drive = drives.get(id);
            drive.is_some_and(|drive| drive.machine.is_due(rollout, unix_ms()))
        };
        if guards.is_empty() || !due() {
            return Vec::new();
        }
        let mut questions = Vec::new();
        for guard in guards {
            questions.push(prometheus::query(&guard.address, &guard.query, CUSTOM_MAX));
        }
        let told = futures_util::future::join_all(questions).await;
        let names = guards.iter().map(|guard| guard.name.clone());
        names.zip(told).collect()
    }

    async fn look(
        &self,
        entry: &DocumentEntry,
        rollout: &Rollout,
        mut look: Look,
        told: &figures::Told,
        held: Held,
    ) {
        let (mut drive, before) = {
            let mut drives = self.drives();
            let Some(drive) = drives.get_mut(&entry.id) else {
                return;
            };
            // Of one that is over nothing is asked: should it start again, what was known by then is old.
            match drive.machine.record.phase.is_over() {
                true => drive.bases = Bases::default(),
                false => look.sight = drive.bases.since(rollout, told),
            }
            let before = drive.machine.record.clone();
            if !drive.machine.look(rollout, &look) {
                return;
            }
            let at = drive.revision.unwrap_or_default();
            drive.machine.record.note_move(&before, at);
            (drive.clone(), before)
        };
        let record = &drive.machine.record;
        let stored = self
            .store(&entry.id, &before, record, drive.revision, Some(held))
            .await;
        let mut drives = self.drives();
        match stored {
            Ok(revision) => {
                self.note(&entry.id, &before, &drive.machine.record);
                drive.revision = Some(revision);
                drive.problem = None;
                drives.insert(entry.id.clone(), drive);
            }
            // Another one wrote it: what that says is met at the next look.
            Err(phalanx_store::Error::Conflict { .. }) => drop(drives.remove(&entry.id)),
            Err(error) => {
                self.inner.counts.unstored.fetch_add(1, Ordering::Relaxed);
                let problem = format!("how it goes on can't be stored: {error}");
                let is_new = drive.problem.as_ref() != Some(&problem);
                if is_new {
                    tracing::warn!(rollout = %entry.id, %error, "a rollout can't be stored, trying again");
                }
                // Nothing happened that is not stored.
                drive.machine = Machine::new(before);
                drive.problem = Some(problem);
                drives.insert(entry.id.clone(), drive);
            }
        }
    }

    /// Counts and tells what has changed.
    fn note(&self, id: &DocumentId, before: &RolloutRecord, after: &RolloutRecord) {
        let counts = &self.inner.counts;
        if let Some(last) = after.last.as_ref().filter(|_| after.last != before.last) {
            let count = if last.good { &counts.good } else { &counts.bad };
            count.fetch_add(1, Ordering::Relaxed);
        }
        if after.phase != before.phase {
            match after.phase {
                Phase::Promoted => drop(counts.promoted.fetch_add(1, Ordering::Relaxed)),
                Phase::RolledBack => drop(counts.rolled_back.fetch_add(1, Ordering::Relaxed)),
                _ => {}
            }
        }
        if (after.phase, after.step) != (before.phase, before.step) {
            let phase = after.phase.as_str();
            let (step, weight, reason) = (after.step + 1, after.overlay.weight, &after.reason);
            tracing::info!(rollout = %id, phase, step, weight, reason, "rollout moved");
        }
    }

    /// Together with an entry in the history, if it moved.
    async fn store(
        &self,
        id: &DocumentId,
        before: &RolloutRecord,
        record: &RolloutRecord,
        at: Option<Revision>,
        held: Option<Held>,
    ) -> Result<Revision, phalanx_store::Error> {
        let key = rollout_key(&id.namespace, &id.name);
        let value = serde_json::to_vec(record).map_err(|e| phalanx_store::Error::Invalid {
            problem: e.to_string(),
        })?;
        let txn = match at {
            Some(at) => Txn::new().expect_modified(&key, at),
            None => Txn::new().expect_absent(&key),
        };
        let txn = self.fenced(txn, held).put(key, value);
        let Some(moved) = moved(id, before, record) else {
            return self.inner.store.commit(txn).await;
        };
        let moved = serde_json::to_vec(&moved).unwrap_or_default();
        let mut tries = 1;
        loop {
            let (entry, with) = noted(txn.clone(), &self.inner.worlds.borrow(), &moved);
            match self.inner.store.commit(with).await {
                // Something else was noted at that moment: no reason to measure anew.
                Err(phalanx_store::Error::Conflict { key, found, .. })
                    if key == entry && tries < TRIES_MAX =>
                {
                    tries += 1;
                    self.catch_up(found.unwrap_or_default()).await;
                }
                ended => return ended,
            }
        }
    }

    async fn catch_up(&self, revision: Revision) {
        let mut worlds = self.inner.worlds.clone();
        let caught_up = worlds.wait_for(|world| world.revision >= revision);
        // It is stored; whoever reads next may read what was before.
        let _ = tokio::time::timeout(CATCH_UP, caught_up).await;
    }

    fn fenced(&self, txn: Txn, held: Option<Held>) -> Txn {
        match held {
            Some(held) => txn.expect_modified(self.inner.planes.key(), held.fence),
            None => txn,
        }
    }

    /// The record of a Rollout that is gone.
    async fn forget(&self, id: &DocumentId, revision: Revision, held: Held) {
        let key = rollout_key(&id.namespace, &id.name);
        let txn = Txn::new().expect_modified(&key, revision);
        let forgotten = self.fenced(txn, Some(held)).delete(key);
        // Tried again at the next look.
        if let Err(error) = self.inner.store.commit(forgotten).await {
            tracing::debug!(rollout = %id, %error, "its record can't be forgotten yet");
        }
    }

    /// What all control planes were told of the Services of those rollouts that are under way.
    async fn ask(&self, world: &World, ours: &[Ours]) -> figures::Told {
        let mut services: Vec<String> = {
            let drives = self.drives();
            let is_live = |id: &DocumentId| {
                let drive = drives.get(id);
                drive.is_some_and(|drive| !drive.machine.record.phase.is_over())
            };
            let live = ours.iter().filter(|(entry, _)| is_live(&entry.id));
            live.flat_map(|(_, rollout)| figures::questions(rollout))
                .collect()
        };
        services.sort_unstable();
        services.dedup();
        let mut told = figures::Told::default();
        if services.is_empty() {
            return told;
        }
        told.take(self.inner.planes.name(), Ok(self.figures(&services)));
        let (mut names, mut asked) = (Vec::new(), Vec::new());
        for (name, _, client) in others(world, &self.inner.planes) {
            names.push(name.to_owned());
            asked.push(ask_one(client, &services));
        }
        let answers = futures_util::future::join_all(asked).await;
        for (name, answer) in names.iter().zip(answers) {
            told.take(name, answer);
        }
        told
    }

    /// What was told here.
    pub fn figures(&self, services: &[String]) -> api::RolloutFigures {
        figures::here(&self.inner.observe, &self.inner.fleet, services)
    }

    /// Follows an order, whoever drives the rollout.
    ///
    /// # Errors
    /// [`OrderError`]
    pub async fn order(&self, wanted: Wanted<'_>) -> Result<(), OrderError> {
        let mut tries = 1;
        let mut first = None;
        loop {
            match self.order_once(&wanted, &mut first).await {
                // It moved on at the same moment.
                Err(OrderError::Store(phalanx_store::Error::Conflict { .. }))
                    if tries < TRIES_MAX =>
                {
                    tries += 1;
                    tokio::time::sleep(AGAIN).await;
                }
                ended => return ended,
            }
        }
    }

    async fn order_once(
        &self,
        wanted: &Wanted<'_>,
        first: &mut Option<Arc<Progress>>,
    ) -> Result<(), OrderError> {
        let world = self.inner.worlds.borrow().clone();
        let id = id(wanted.namespace, wanted.name);
        let Some(Document::Rollout(rollout)) = world.document(&id) else {
            return Err(OrderError::Unknown {
                namespace: wanted.namespace.to_owned(),
                name: wanted.name.to_owned(),
            });
        };
        let senseless = |why: String| OrderError::Senseless { why };
        let progress = world.rollouts.get(&id);
        let progress = progress.ok_or_else(|| {
            senseless("no control plane has looked at it yet, ask again in a moment".to_owned())
        })?;
        let first = &**first.get_or_insert_with(|| progress.clone());
        unmoved(first, progress, wanted.expect)?;
        let published = self.inner.published.borrow().clone();
        let mut machine = Machine::new(progress.record.clone());
        let canary = instances(&published, rollout);
        let order = Order {
            command: wanted.command,
            author: wanted.author,
            message: wanted.message,
            now: unix_ms(),
            revision: world.revision,
            canary: &canary,
        };
        match &progress.damage {
            None => machine.order(rollout, &order).map_err(senseless)?,
            Some(_) if wanted.command == Command::Retry => machine.anew(rollout, &order),
            Some(damage) => return Err(senseless(format!("{damage}; `retry` starts it anew"))),
        }
        let record = &mut machine.record;
        record.note_move(&progress.record, progress.revision);
        let revision = self
            .store(
                &id,
                &progress.record,
                &machine.record,
                Some(progress.revision),
                None,
            )
            .await
            .map_err(OrderError::Store)?;
        let counts = &self.inner.counts;
        match machine.record.phase {
            Phase::Promoted => drop(counts.promoted.fetch_add(1, Ordering::Relaxed)),
            Phase::RolledBack => drop(counts.rolled_back.fetch_add(1, Ordering::Relaxed)),
            _ => {}
        }
        self.catch_up(revision).await;
        Ok(())
    }

    /// How far each is; with what is known only where it is driven, if that is here.
    pub fn views(&self, namespace: Option<&str>) -> Vec<api::RolloutView> {
        let world = self.inner.worlds.borrow().clone();
        documents(&world)
            .filter(|(entry, _)| namespace.is_none_or(|n| n == entry.id.namespace))
            .map(|(entry, rollout)| self.view(&world, entry, rollout))
            .collect()
    }

    /// One, with what happened to it.
    pub fn view_of(&self, namespace: &str, name: &str) -> Option<api::RolloutView> {
        let world = self.inner.worlds.borrow().clone();
        let id = id(namespace, name);
        let entry = world.documents.get(&id)?;
        let Some(Document::Rollout(rollout)) = entry.document.as_deref() else {
            return None;
        };
        let mut view = self.view(&world, entry, rollout);
        let progress = world.rollouts.get(&id);
        view.events = progress.map_or_else(Vec::new, |p| view::events(&p.record));
        Some(view)
    }

    fn view(&self, world: &World, entry: &DocumentEntry, rollout: &Rollout) -> api::RolloutView {
        let planes = &self.inner.planes;
        let mut view = view::of(rollout, world.rollouts.get(&entry.id).map(|p| &**p));
        let keeper = planes.duty(world).keeper(&entry.id.to_string());
        view.plane = keeper.unwrap_or_default().to_owned();
        let place = world.rollouts.get(&entry.id).map(|p| p.record.place());
        // What it waited for before an order that its driver has still to look at, it waits for no more.
        if let Some(drive) = self.drives().get(&entry.id)
            && place.is_none_or(|place| place == drive.machine.record.place())
        {
            view.waiting = drive.machine.waiting().to_owned();
            view.seen = view::seen(&drive.machine);
            view.problems.extend(drive.problem.clone());
        }
        let damage = damage(world, &entry.id);
        view.problems
            .extend(damage.map(|damage| format!("{damage}; `retry` starts it anew")));
        view
    }

    fn drives(&self) -> MutexGuard<'_, BTreeMap<DocumentId, Drive>> {
        self.inner
            .drives
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

async fn ask_one(
    client: Result<Admin, String>,
    services: &[String],
) -> Result<api::RolloutFigures, String> {
    let answer = client?.rollout_figures(services).await;
    answer.map_err(|e| e.to_string())
}

fn id(namespace: &str, name: &str) -> DocumentId {
    DocumentId {
        kind: Kind::Rollout,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    }
}

/// Rollouts in force; costs what there are.
fn documents(world: &World) -> impl Iterator<Item = (&DocumentEntry, &Rollout)> {
    let from = world
        .documents
        .starting_at(|id| id.kind.cmp(&Kind::Rollout));
    let of_kind = from.take_while(|(id, _)| id.kind == Kind::Rollout);
    of_kind.filter_map(|(_, entry)| match entry.document.as_deref()? {
        Document::Rollout(rollout) => Some((&**entry, rollout)),
        _ => None,
    })
}

/// Why its record can't be read.
fn damage<'a>(world: &'a World, id: &DocumentId) -> Option<&'a String> {
    world.rollouts.get(id)?.damage.as_ref()
}

/// Whoever gave an order had this one in mind: what it was when that was first looked at, or said to be.
fn unmoved(first: &Progress, now: &Progress, expect: Option<u64>) -> Result<(), OrderError> {
    let moved = |expected| OrderError::Moved {
        expected,
        revision: now.revision,
    };
    if let Some(expected) = expect.filter(|at| !now.is_as_of(*at)) {
        return Err(moved(expected));
    }
    match first.record.place() == now.record.place() {
        true => Ok(()),
        false => Err(moved(first.revision)),
    }
}

/// Puts the next entry into the history, which stays as short as it is to be, and tells its key.
fn noted(txn: Txn, world: &World, moved: &[u8]) -> (String, Txn) {
    let entry = history_key(world.sequence + 1);
    let txn = txn.expect_absent(entry.clone()).put(&entry, moved.to_vec());
    let too_old = outdated(world, moved.len()).map(history_key);
    (entry, too_old.fold(txn, Txn::delete))
}

/// What the history tells of a move: who, and what happened since.
fn moved(id: &DocumentId, before: &RolloutRecord, after: &RolloutRecord) -> Option<HistoryRecord> {
    let last = before.events.back();
    let known = after.events.iter().rposition(|event| Some(event) == last);
    let new: Vec<_> = after
        .events
        .iter()
        .skip(known.map_or(0, |at| at + 1))
        .collect();
    let first = new.first()?;
    let told = new.iter().map(|event| match event.what.as_str() {
        "step" => format!("step {}: {}", event.step, event.reason),
        what => format!("{what}: {}", event.reason),
    });
    let told = told.collect::<Vec<_>>().join("; ");
    Some(HistoryRecord {
        time: first.at,
        author: first.author.clone(),
        message: format!("rollout {}/{} {told}", id.namespace, id.name),
        ..HistoryRecord::default()
    })
}

/// FNV-1a over the spec as it is stored.
fn spec(entry: &DocumentEntry) -> String {
    let text = entry.json.get("spec").unwrap_or(&entry.json).to_string();
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// Who takes the new version's requests.
fn instances(published: &Published, rollout: &Rollout) -> Instances {
    let mesh = &published.mesh;
    let mut ready = 0;
    for (port, _) in mesh
        .catalog
        .services
        .get(&rollout.canary)
        .into_iter()
        .flat_map(|p| p.iter())
    {
        let name = phalanx_model::ClusterName::outbound(rollout.canary.clone(), *port);
        let endpoints = mesh.assignments.get(&name).into_iter();
        let able = endpoints.flat_map(|set| &set.endpoints);
        ready = ready.max(able.filter(|e| e.health == Health::Healthy).count());
    }
    Instances {
        ready,
        versions: mesh.versions(&published.world, &rollout.canary),
    }
}

/// Between two looks.
const TICK: Duration = Duration::from_millis(500);
/// Of one question to a Prometheus.
const CUSTOM_MAX: Duration = Duration::from_secs(2);
/// To follow an order while the rollout moves on.
const TRIES_MAX: u32 = 5;
const AGAIN: Duration = Duration::from_millis(50);
const CATCH_UP: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::rollout::Event;

    #[test]
    fn an_order_is_for_the_phase_and_step_that_whoever_gave_it_saw() {
        let mut first = Progress::read(b"{", 5);
        first.record.phase = Phase::Progressing;
        first.damage = None;
        let mut measured = first.clone();
        (measured.revision, measured.record.good) = (9, 3);
        assert!(unmoved(&first, &measured, None).is_ok());
        assert!(
            unmoved(&first, &measured, Some(5)).is_ok(),
            "a measurement is no move"
        );
        let mut back = measured.clone();
        back.revision = 12;
        back.record.phase = Phase::RolledBack;
        back.record.note_move(&measured.record, measured.revision);
        let refused = unmoved(&first, &back, None).unwrap_err();
        assert!(
            matches!(
                refused,
                OrderError::Moved {
                    expected: 5,
                    revision: 12
                }
            ),
            "{refused}"
        );
        assert!(unmoved(&back, &back, Some(9)).is_err());
        assert!(unmoved(&back, &back, Some(12)).is_ok());
    }

    #[test]
    fn a_history_that_is_full_lets_go_of_its_oldest_when_a_rollout_moves() {
        let full = crate::admit::HISTORY_MAX;
        let mut world = World::empty();
        world.sequence = full;
        world.history = Arc::new((1..=full).map(|sequence| (sequence, 10)).collect());
        let (entry, txn) = noted(Txn::new(), &world, b"moved");
        assert_eq!(entry, history_key(full + 1));
        let wanted = Txn::new()
            .expect_absent(history_key(full + 1))
            .put(history_key(full + 1), b"moved".to_vec())
            .delete(history_key(1));
        assert_eq!(txn, wanted);
    }

    #[test]
    fn the_history_tells_who_moved_a_rollout_and_how() {
        let event = |at, what: &str, author: &str, step, reason: &str| Event {
            at,
            what: what.to_owned(),
            author: author.to_owned(),
            step,
            reason: reason.to_owned(),
            ..Event::default()
        };
        let id = id("arena", "battle");
        let mut before = RolloutRecord::default();
        before
            .events
            .push_back(event(1, "started", PHALANX, 0, "it is new"));
        let mut after = before.clone();
        after.good = 3;
        assert_eq!(
            moved(&id, &before, &after),
            None,
            "a measurement is no move"
        );
        after
            .events
            .push_back(event(2, "resumed", "ann", 2, "resumed by hand: go"));
        after
            .events
            .push_back(event(2, "step", PHALANX, 3, "weight 50% for 5s"));
        let told = moved(&id, &before, &after).unwrap();
        assert_eq!((told.author.as_str(), told.time), ("ann", 2));
        assert_eq!(
            told.message,
            "rollout arena/battle resumed: resumed by hand: go; step 3: weight 50% for 5s"
        );
        // Older ones are let go of, beyond a bound.
        after.events.pop_front();
        assert_eq!(moved(&id, &before, &after).unwrap().message, told.message);
    }
}
