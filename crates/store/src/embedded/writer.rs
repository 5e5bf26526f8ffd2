//! The one writer. Each turn takes what is queued, stages it on the ledger, makes it durable with one sync, shows it, and
//! only then answers. What failed to become durable was never visible.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};

use super::{
    Condition, LIMITS, Shared,
    disk::Disk,
    engine::{Delta, Engine, Fault},
    ledger::{Ledger, Stage, Trim},
    record::Place,
};
use crate::{Error, LeaseId, Reason, Result, Revision, Txn};

/// Requests that share one sync.
const GROUP_MAX: usize = 256;
/// Leases that one turn ends, so that a mass expiry doesn't keep writers waiting.
const EXPIRE_MAX: usize = 256;
/// How often a store on a full disk looks for space: first, and after doubling.
const HEAL_FIRST: Duration = Duration::from_secs(1);
const HEAL_MAX: Duration = Duration::from_secs(15);

pub struct Request {
    pub ask: Ask,
    pub answer: oneshot::Sender<Result<u64>>,
    pub _room: OwnedSemaphorePermit,
}

pub enum Ask {
    Commit(Txn),
    Grant(Duration),
    Revoke(LeaseId),
    Compact(Revision),
    Close,
}

type Answer = (oneshot::Sender<Result<u64>>, Result<u64>);

pub struct Writer {
    pub engine: Engine,
    disk: Arc<dyn Disk>,
    lease_next: u64,
    log_revisions_max: u64,
    log_bytes_max: u64,
    /// While read-only: when to look for space, and how long to wait after that.
    heal: Option<(Instant, Duration)>,
}

impl Writer {
    pub fn new(
        engine: Engine,
        disk: Arc<dyn Disk>,
        lease_next: u64,
        revisions_max: u64,
        bytes_max: u64,
    ) -> Writer {
        let heal = engine
            .blocked()
            .map(|_| (Instant::now() + HEAL_FIRST, HEAL_FIRST));
        Writer {
            engine,
            disk,
            lease_next,
            log_revisions_max: revisions_max,
            log_bytes_max: bytes_max,
            heal,
        }
    }
}

/// Runs until the store is closed or all its handles are gone.
pub async fn run(
    mut writer: Writer,
    shared: Arc<Shared>,
    mut queue: mpsc::Receiver<Request>,
    head: watch::Sender<Revision>,
) {
    let mut group = Vec::with_capacity(GROUP_MAX);
    let ended = Ended(shared.clone());
    let closing = loop {
        let wake = wake_at(&writer, &shared);
        tokio::select! {
            taken = queue.recv_many(&mut group, GROUP_MAX) => if taken == 0 { break None },
            () = async { sleep_until(wake.unwrap_or_else(Instant::now)).await }, if wake.is_some() => {}
        }
        let closing = group
            .iter()
            .position(|request| matches!(request.ask, Ask::Close));
        let rest = closing.map(|close| group.split_off(close));
        let requests = std::mem::take(&mut group);
        let shared_there = shared.clone();
        let turn = tokio::task::spawn_blocking(move || {
            let head = writer.turn(requests, &shared_there);
            (writer, head)
        });
        match turn.await {
            Ok((back, revision)) => {
                writer = back;
                // Watches that look now find what the turn has shown.
                head.send_if_modified(|head| std::mem::replace(head, revision) != revision);
            }
            Err(_) => return fail(&shared, queue, "the writer stopped unexpectedly".into()).await,
        }
        if let Some(mut rest) = rest {
            break Some(rest.swap_remove(0));
        }
    };
    shared.set_reader(None);
    // Without a pool, at the end of a runtime, the engine closes as it is dropped.
    let Writer { engine, disk, .. } = writer;
    let closed = tokio::task::spawn_blocking(move || {
        engine.close();
        drop(disk);
    });
    let _ = closed.await;
    drop(ended);
    drop(queue);
    if let Some(request) = closing {
        let _ = request.answer.send(Ok(0));
    }
}

/// The state after a panic under the writer: reads go on, writes are refused.
async fn fail(shared: &Shared, mut queue: mpsc::Receiver<Request>, reason: String) {
    tracing::error!(reason, "store takes no more writes");
    shared.condition.send_replace(Condition::Fatal(reason));
    while let Some(request) = queue.recv().await {
        let closing = matches!(request.ask, Ask::Close);
        let _ = request.answer.send(shared.writable().map(|()| 0));
        if closing {
            break;
        }
    }
}

/// Says that the writer has gone, also when its runtime takes it away.
struct Ended(Arc<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.set_reader(None);
        self.0.condition.send_replace(Condition::Closed);
    }
}

fn wake_at(writer: &Writer, shared: &Shared) -> Option<Instant> {
    match *shared.condition.borrow() {
        Condition::Writable => shared.leases().next_deadline(),
        Condition::ReadOnly(_) => writer.heal.map(|(at, _)| at),
        Condition::Fatal(_) | Condition::Closed => None,
    }
}

impl Writer {
    /// Blocks while the disk works. Returns the newest revision that is durable.
    fn turn(&mut self, requests: Vec<Request>, shared: &Shared) -> Revision {
        if self.heal.is_some_and(|(at, _)| at <= Instant::now()) {
            self.try_heal(shared);
        }
        if let Err(refusal) = shared.writable() {
            for request in requests {
                let _ = request.answer.send(Err(refusal.clone()));
            }
            return shared.read().head;
        }
        let count = requests.len() as u64;
        let outcome = self.stage(requests, shared);
        let (answers, failed) = match outcome {
            Ok(answers) => (answers, None),
            Err((answers, fault)) => (answers, Some(fault)),
        };
        let refusal = failed.map(|fault| self.block(fault, shared));
        match &refusal {
            None => drop(shared.written.fetch_add(count, Ordering::Relaxed)),
            Some(error) => tracing::debug!(%error, count, "group refused"),
        }
        for (answer, result) in answers {
            // The caller may have gone.
            let _ = answer.send(match &refusal {
                Some(refusal) => Err(refusal.clone()),
                None => result,
            });
        }
        shared.read().head
    }

    /// Stages, commits and publishes one group. Answers are held back until their outcome is durable, refusals too: they
    /// may speak of something that the same group wrote.
    fn stage(
        &mut self,
        requests: Vec<Request>,
        shared: &Shared,
    ) -> Result<Vec<Answer>, (Vec<Answer>, Fault)> {
        let mut answers: Vec<Answer> = Vec::with_capacity(requests.len());
        let mut compact_to = None;
        let due = shared.leases().due(EXPIRE_MAX);
        let ledger = shared.read();
        let mut stage = Stage::on(&ledger);
        let lease_next = self.lease_next;
        for Request { ask, answer, _room } in requests {
            let result = match ask {
                Ask::Commit(txn) => stage.commit(txn, |lease| shared.leases().alive(lease)),
                Ask::Grant(ttl) => self.grant(&mut stage, shared.leases().len(), ttl),
                Ask::Revoke(lease) if stage.ended(lease) || !shared.leases().alive(lease) => {
                    Err(Error::LeaseNotFound { lease })
                }
                Ask::Revoke(lease) => Ok(stage.end(lease, Reason::Deleted)),
                Ask::Compact(keep_from) if keep_from > stage.head() + 1 => Err(Error::Future {
                    asked: keep_from,
                    head: stage.head(),
                }),
                Ask::Compact(keep_from) => {
                    compact_to = compact_to.max(Some(keep_from.saturating_sub(1).min(ledger.head)));
                    Ok(0)
                }
                // `run` takes it out of the group.
                Ask::Close => Ok(0),
            };
            answers.push((answer, result));
        }
        for lease in due {
            if !stage.ended(lease) {
                stage.end(lease, Reason::Expired);
            }
        }
        let trimmed = self.trim(&ledger, &stage, compact_to);
        let head = stage.head();
        let (mut delta, batches) = stage.finish();
        drop(ledger);
        let written = trimmed.and_then(|trimmed| {
            if let Some((trim, erased)) = &trimmed {
                delta.floor = Some((trim.floor, head));
                delta.erased.clone_from(erased);
            }
            if !delta.is_empty() {
                self.engine.commit(&delta)?;
                shared.groups.fetch_add(1, Ordering::Relaxed);
            }
            Ok(trimmed.map(|(trim, _)| trim))
        });
        match written {
            Ok(trim) => {
                show_leases(&delta, shared);
                shared.write().publish(batches, trim.as_ref());
                Ok(answers)
            }
            Err(fault) => {
                self.lease_next = lease_next;
                Err((answers, fault))
            }
        }
    }

    fn grant(&mut self, stage: &mut Stage<'_>, granted: usize, ttl: Duration) -> Result<u64> {
        let most = LIMITS.leases_max;
        // Of the group itself some may be in the stage already, which are at most GROUP_MAX.
        if granted >= most {
            return Err(Error::Invalid {
                problem: format!("one lease too many, at most {most} fit"),
            });
        }
        let lease = LeaseId(self.lease_next);
        self.lease_next += 1;
        stage.grant(lease, ttl);
        Ok(lease.0)
    }

    /// Whether the log has become too long, or a compaction was asked for; and what goes then.
    fn trim(
        &self,
        ledger: &Ledger,
        stage: &Stage<'_>,
        compact_to: Option<Revision>,
    ) -> Result<Option<(Trim, Vec<Place>)>, Fault> {
        let bytes_now = ledger.log_bytes + stage.bytes();
        let revisions_now = stage.head() - ledger.floor;
        // Trims come in steps, so that most commits touch only the end of the log.
        let step = |most: u64| most + most / 64;
        let asked = compact_to.unwrap_or(0);
        let too_long =
            revisions_now > step(self.log_revisions_max) || bytes_now > step(self.log_bytes_max);
        if asked <= ledger.floor && !too_long {
            return Ok(None);
        }
        let keep_after = stage
            .head()
            .saturating_sub(self.log_revisions_max)
            .max(asked)
            .min(ledger.head);
        let mut trim = Trim {
            floor: ledger.floor,
            bytes: 0,
            stale: ledger.stale().len(),
        };
        let mut erased = ledger.stale().to_vec();
        self.engine.walk(ledger.floor, |place, key, bytes| {
            let (revision, _) = place;
            let enough = revision > keep_after && bytes_now - trim.bytes <= self.log_bytes_max;
            if revision > ledger.head || (enough && revision > trim.floor) {
                return false;
            }
            trim.floor = revision;
            trim.bytes += bytes as u64;
            if !stage.is_live(key, place) {
                erased.push(place);
            }
            true
        })?;
        Ok(Some((trim, erased)))
    }

    /// After a failed commit. What is on disk is what was there before, or the store is done for.
    fn block(&mut self, fault: Fault, shared: &Shared) -> Error {
        let reason = match fault {
            Fault::Full(reason) => reason,
            Fault::Final(reason) | Fault::Damaged(reason) => return give_up(shared, reason),
        };
        // The engine refuses everything after an error. Watches that lag still need to read.
        match Engine::peek(self.disk.clone(), reason.clone())
            .and_then(|engine| same_head(engine, shared))
        {
            Ok(engine) => {
                shared.set_reader(Some(engine.reader()));
                self.engine = engine;
            }
            Err(Fault::Full(problem) | Fault::Final(problem) | Fault::Damaged(problem)) => {
                return give_up(shared, format!("{reason}, and then: {problem}"));
            }
        }
        tracing::warn!(reason, "store is read-only");
        self.heal = Some((Instant::now() + HEAL_FIRST, HEAL_FIRST));
        shared
            .condition
            .send_replace(Condition::ReadOnly(reason.clone()));
        Error::ReadOnly { reason }
    }

    fn try_heal(&mut self, shared: &Shared) {
        let healed = match self.disk.room() {
            Ok(()) => Engine::open(self.disk.clone()).and_then(|engine| same_head(engine, shared)),
            Err(error) => Err(Fault::Full(error.to_string())),
        };
        match healed {
            Ok(engine) => {
                shared.set_reader(Some(engine.reader()));
                self.engine = engine;
                self.heal = None;
                tracing::info!("store takes writes again");
                shared.condition.send_replace(Condition::Writable);
            }
            Err(Fault::Full(_)) => {
                let wait = self
                    .heal
                    .map_or(HEAL_FIRST, |(_, wait)| (wait * 2).min(HEAL_MAX));
                self.heal = Some((Instant::now() + wait, wait));
            }
            Err(Fault::Final(reason) | Fault::Damaged(reason)) => drop(give_up(shared, reason)),
        }
    }
}

/// Nothing but the file says whether a failed write happened, so it is asked.
fn same_head(engine: Engine, shared: &Shared) -> Result<Engine, Fault> {
    let (on_disk, known) = (engine.head()?, shared.read().head);
    if on_disk == known {
        Ok(engine)
    } else {
        Err(Fault::Final(format!(
            "the file is at revision {on_disk}, not at {known}"
        )))
    }
}

fn give_up(shared: &Shared, reason: String) -> Error {
    tracing::error!(
        reason,
        "store takes no more writes until it is opened again"
    );
    shared
        .condition
        .send_replace(Condition::Fatal(reason.clone()));
    Error::Fatal { reason }
}

fn show_leases(delta: &Delta, shared: &Shared) {
    let mut leases = shared.leases();
    for (lease, ttl) in &delta.granted {
        leases.grant(*lease, *ttl);
    }
    for lease in &delta.ended {
        leases.end(*lease);
    }
}
