//! The door to the configuration: files in, one checked transaction out, or every reason why not.
//!
//! The only writer of `config/` and `history/`. Whatever can be seen here refuses the whole; what is allowed but probably
//! not meant becomes a warning. A dry run does everything but the commit.

mod canary;
mod effect;
mod files;
mod leaves;
mod rollback;
mod rollouts;
mod warn;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use phalanx_client::api::{
    ApplyRequest, ApplyResponse, Change, ChangeAction, DeleteRequest, File, Problem,
    RollbackRequest,
};
use phalanx_model::document::{DocumentId, Kind};
use phalanx_model::name::check_label;
use phalanx_store::{Store, Txn};
use serde_json::Value;
use tokio::sync::watch::Receiver;
use tokio::sync::{Mutex, OwnedMutexGuard};

pub use self::effect::{Around, told_finding};
use self::files::Admitted;
use crate::snapshot::{Compiler, Mesh, Published};
use crate::world::record::{
    DocumentRecord, HistoryChange, HistoryRecord, document_key, history_key,
};
use crate::world::{DocumentEntry, World};

/// Cheap to share; transactions are taken one after the other.
pub struct Admission {
    store: Store,
    worlds: Receiver<Arc<World>>,
    /// Compiled already; a change is compiled from there.
    published: Option<Receiver<Arc<Published>>>,
    /// Held over a whole transaction, so that what was checked is what is changed.
    turn: Arc<Mutex<()>>,
}

type Turn = OwnedMutexGuard<()>;

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum AdmitError {
    #[error("{} in {what}, nothing was changed", count(problems.len()))]
    Invalid {
        what: &'static str,
        problems: Vec<Problem>,
    },
    #[error(
        "the configuration is at revision {revision}, not at {expected}: somebody changed it meanwhile"
    )]
    Conflict { expected: u64, revision: u64 },
    #[error("the history does not reach back to revision {to}: it starts with revision {oldest}")]
    TooOld { to: u64, oldest: u64 },
    #[error("revision {to} does not exist yet, the configuration is at {revision}")]
    Future { to: u64, revision: u64 },
    #[error("the change is too large for one transaction: {reason}")]
    TooLarge { reason: String },
    /// A canary is, and what is asked would cross it.
    #[error("{what}")]
    UnderWay { what: String, revision: u64 },
    #[error(
        "no proxy that is connected is concerned by the change, so a canary would show nothing"
    )]
    Nobody,
    #[error("no such canary is under way")]
    NoCanary,
    #[error("{id} was changed meanwhile by something that did not ask")]
    Overtaken { id: String },
    #[error("the change could not be stored")]
    Store(#[source] phalanx_store::Error),
    #[error("the control plane failed to look at the change")]
    Defect,
}

fn count(problems: usize) -> String {
    if problems == 1 {
        "1 problem".to_owned()
    } else {
        format!("{problems} problems")
    }
}

/// To write while others do.
const TRIES_MAX: u32 = 5;
const AGAIN: Duration = Duration::from_millis(200);

/// Who changes what, and under which conditions.
struct Terms {
    expect: Option<u64>,
    dry_run: bool,
    author: String,
    message: String,
    canary: Option<canary::Checked>,
    /// As they came, for the places of warnings.
    files: Vec<File>,
    around: Around,
}

/// What becomes of a document; none: it goes.
type Wanted = BTreeMap<DocumentId, Option<Admitted>>;

impl Admission {
    pub fn new(store: Store, worlds: Receiver<Arc<World>>) -> Self {
        Self {
            store,
            worlds,
            published: None,
            turn: Arc::default(),
        }
    }

    /// Compiles changes from what is published, which costs what they change, instead of everything.
    #[must_use]
    pub fn compiling_from(mut self, published: Receiver<Arc<Published>>) -> Self {
        self.published = Some(published);
        self
    }

    /// `around`: who would receive it, for the effect of a dry run and for a canary.
    ///
    /// # Errors
    /// [`AdmitError`]; nothing was changed then.
    pub async fn apply(
        &self,
        request: ApplyRequest,
        around: Around,
    ) -> Result<ApplyResponse, AdmitError> {
        check_namespace(&request.namespace)?;
        check_texts(&request.author, request.message.as_deref())?;
        let canary = request.canary.as_ref().map(canary::check).transpose()?;
        let turn = self.turn().await;
        let (files, namespace) = (request.files, request.namespace);
        let parse = move || {
            let admitted = files::parse(&files, &namespace);
            (files, admitted)
        };
        let (turn, (files, admitted)) = aside(turn, parse).await?;
        let admitted = admitted?;
        let terms = Terms {
            expect: request.expect,
            dry_run: request.dry_run,
            author: request.author,
            message: request.message.unwrap_or_default(),
            canary,
            files,
            around,
        };
        let wanted = admitted
            .into_iter()
            .map(|admitted| (admitted.document.id(), Some(admitted)))
            .collect();
        self.insist(turn, wanted, terms).await
    }

    /// # Errors
    /// [`AdmitError`]; a document that does not exist is a problem.
    pub async fn delete(
        &self,
        mut request: DeleteRequest,
        around: Around,
    ) -> Result<ApplyResponse, AdmitError> {
        check_namespace(&request.namespace)?;
        check_texts(&request.author, request.message.as_deref())?;
        let canary = request.canary.as_ref().map(canary::check).transpose()?;
        let turn = self.turn().await;
        let (files, namespace) = (
            std::mem::take(&mut request.files),
            request.namespace.clone(),
        );
        let (turn, ids) = aside(turn, move || files::ids(&files, &namespace)).await?;
        let mut ids = ids?;
        ids.extend(named(&request)?);
        if ids.is_empty() {
            return Err(AdmitError::Invalid {
                what: "the request",
                problems: vec![problem("it names no document", Some("give files or ids"))],
            });
        }
        let world = self.worlds.borrow().clone();
        let missing = ids
            .iter()
            .filter(|id| !world.documents.contains_key(id))
            .map(|id| problem(format!("{id} does not exist"), None));
        let problems: Vec<_> = missing.collect();
        if !problems.is_empty() {
            return Err(AdmitError::Invalid {
                what: "the names",
                problems,
            });
        }
        let terms = Terms {
            expect: request.expect,
            dry_run: request.dry_run,
            author: request.author,
            message: request.message.unwrap_or_default(),
            canary,
            files: Vec::new(),
            around,
        };
        let wanted = ids.into_iter().map(|id| (id, None)).collect();
        self.insist(turn, wanted, terms).await
    }

    /// # Errors
    /// [`AdmitError`], also when the history does not reach back that far.
    pub async fn rollback(
        &self,
        request: RollbackRequest,
        around: Around,
    ) -> Result<ApplyResponse, AdmitError> {
        check_texts(&request.author, request.message.as_deref())?;
        let canary = request.canary.as_ref().map(canary::check).transpose()?;
        let turn = self.turn().await;
        let world = self.worlds.borrow().clone();
        let (to, records) = (request.to, rollback::stored(&self.store).await?);
        let (turn, wanted) = aside(turn, move || rollback::wanted(&records, &world, to)).await?;
        let wanted = wanted?;
        let message = match request.message {
            Some(why) if !why.is_empty() => format!("rollback to revision {}: {why}", request.to),
            _ => format!("rollback to revision {}", request.to),
        };
        let terms = Terms {
            expect: request.expect,
            dry_run: request.dry_run,
            author: request.author,
            message,
            canary,
            files: Vec::new(),
            around,
        };
        self.transact(turn, wanted, Arc::new(terms)).await
    }

    /// The newest `limit` records, newest first, with their revisions and sequence numbers.
    pub async fn history(
        &self,
        limit: usize,
    ) -> Result<Vec<(u64, u64, HistoryRecord)>, AdmitError> {
        let stored = rollback::stored(&self.store).await?;
        let records = move || rollback::records(&stored).take(limit).collect();
        let read = tokio::task::spawn_blocking(records).await;
        read.map_err(|_| AdmitError::Defect)
    }

    /// The transaction of one revision.
    pub async fn history_at(
        &self,
        revision: u64,
    ) -> Result<Option<(u64, u64, HistoryRecord)>, AdmitError> {
        let stored = rollback::stored(&self.store).await?;
        let found = move || rollback::records(&stored).find(|(at, _, _)| *at == revision);
        let read = tokio::task::spawn_blocking(found).await;
        read.map_err(|_| AdmitError::Defect)
    }

    async fn turn(&self) -> Turn {
        self.turn.clone().lock_owned().await
    }

    /// Whoever expects no revision is not refused because another plane, or a rollout, wrote at the same moment: the
    /// documents are looked at again beside what that was.
    async fn insist(
        &self,
        mut turn: Turn,
        wanted: Wanted,
        terms: Terms,
    ) -> Result<ApplyResponse, AdmitError> {
        let terms = Arc::new(terms);
        let tries = if terms.expect.is_some() { 1 } else { TRIES_MAX };
        for _ in 1..tries {
            let seen = self.worlds.borrow().sequence;
            match self.transact(turn, wanted.clone(), terms.clone()).await {
                Err(AdmitError::Conflict { .. }) => {}
                ended => return ended,
            }
            self.caught_up(seen).await;
            turn = self.turn().await;
        }
        self.transact(turn, wanted, terms).await
    }

    /// Waits for what somebody else wrote after `sequence`; not long, since it may have left no record.
    async fn caught_up(&self, sequence: u64) {
        let mut worlds = self.worlds.clone();
        let newer = worlds.wait_for(|world| world.sequence > sequence);
        let _ = tokio::time::timeout(AGAIN, newer).await;
    }

    async fn transact(
        &self,
        turn: Turn,
        wanted: Wanted,
        terms: Arc<Terms>,
    ) -> Result<ApplyResponse, AdmitError> {
        let world = self.worlds.borrow().clone();
        if let Some(expected) = terms
            .expect
            .filter(|expected| *expected != world.config_revision)
        {
            return Err(AdmitError::Conflict {
                expected,
                revision: world.config_revision,
            });
        }
        let (before, looks) = (world.clone(), terms.dry_run || terms.canary.is_some());
        let published = self.published.as_ref().map(|p| p.borrow().clone());
        let look = {
            let terms = terms.clone();
            move || plan(&before, published.as_deref(), wanted, &terms, looks)
        };
        let (_turn, planned) = aside(turn, look).await?;
        let Plan {
            steps,
            mut warnings,
            problems,
            outcome,
        } = planned;
        if !problems.is_empty() {
            return Err(AdmitError::Invalid {
                what: "the documents",
                problems,
            });
        }
        canary::refuse_staged(&world, &steps)?;
        if looks {
            let unknown = terms.around.unknown.iter();
            warnings.extend(unknown.map(|plane| problem(plane.clone(), None)));
        }
        let changes = steps.iter().map(|step| step.change(looks)).collect();
        let idle = !steps.iter().any(Step::changes);
        if let (Some(_), Some(outcome), false) = (&terms.canary, &outcome, idle) {
            canary::refuse_start(&world, outcome)?;
        }
        let revision = match (&terms.canary, &outcome) {
            _ if idle || terms.dry_run => world.config_revision,
            (Some(checked), Some(outcome)) => {
                self.stage(&world, steps, &terms, checked, outcome, &terms.around)
                    .await?
            }
            _ => self.commit(&world, steps, &terms).await?,
        };
        Ok(ApplyResponse {
            revision,
            dry_run: terms.dry_run,
            changes,
            warnings,
            effect: outcome.map(|outcome| outcome.effect),
            canary: None,
        })
    }

    async fn commit(
        &self,
        world: &World,
        steps: Vec<Step>,
        terms: &Terms,
    ) -> Result<u64, AdmitError> {
        let now = unix_ms();
        let sequence = world.sequence + 1;
        // Absent: nobody else made a transaction meanwhile.
        let mut txn = Txn::new().expect_absent(history_key(sequence));
        let mut record = HistoryRecord {
            time: now,
            author: terms.author.clone(),
            message: terms.message.clone(),
            changes: Vec::new(),
            canary: None,
        };
        for step in steps.into_iter().filter(Step::changes) {
            let key = document_key(&step.id);
            txn = match &step.after {
                Some(after) => txn.put(key, json(&step.record(&after.json, now))?),
                None => txn.delete(key),
            };
            record.changes.push(step.history());
        }
        self.store(world, txn, sequence, &record).await
    }

    /// Commits with the record of it, and waits until the world has it, so that whoever reads next reads this.
    async fn store(
        &self,
        world: &World,
        mut txn: Txn,
        sequence: u64,
        record: &HistoryRecord,
    ) -> Result<u64, AdmitError> {
        let record = json(record)?;
        for sequence in outdated(world, record.len()) {
            txn = txn.delete(history_key(sequence));
        }
        txn = txn.put(history_key(sequence), record);
        let revision = self.store.commit(txn).await.map_err(|error| match error {
            phalanx_store::Error::Conflict { .. } => AdmitError::Conflict {
                expected: world.config_revision,
                revision: self.worlds.borrow().config_revision,
            },
            phalanx_store::Error::Invalid { problem } => AdmitError::TooLarge { reason: problem },
            error => AdmitError::Store(error),
        })?;
        let mut worlds = self.worlds.clone();
        if !matches!(
            tokio::time::timeout(
                CATCH_UP,
                worlds.wait_for(|world| world.revision >= revision)
            )
            .await,
            Ok(Ok(_))
        ) {
            tracing::warn!(
                revision,
                "stored, but the control plane has not read it back yet"
            );
        }
        Ok(revision)
    }
}

/// Runs what may take long away from the runtime's threads, which streams wait for. It keeps the turn even when whoever
/// asked has gone, so there is one at a time.
async fn aside<T: Send + 'static>(
    turn: Turn,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<(Turn, T), AdmitError> {
    let done = tokio::task::spawn_blocking(move || (turn, work())).await;
    done.map_err(|_| AdmitError::Defect)
}

/// What a transaction does, what of it is probably not meant, and its effect if somebody looks.
struct Plan {
    steps: Vec<Step>,
    warnings: Vec<Problem>,
    /// Why it is not done.
    problems: Vec<Problem>,
    outcome: Option<effect::Outcome>,
}

fn plan(
    world: &Arc<World>,
    published: Option<&Published>,
    wanted: Wanted,
    terms: &Terms,
    looks: bool,
) -> Plan {
    let exists = |id: &DocumentId, after: &Option<Admitted>| {
        after.is_some() || world.documents.contains_key(id)
    };
    let steps: Vec<Step> = wanted
        .into_iter()
        .filter(|(id, after)| exists(id, after))
        .map(|(id, after)| Step::new(world, id, after))
        .collect();
    let after = Arc::new(would_be(world, &steps));
    let mesh = match published {
        Some(published) => published.mesh.advance(&published.world, &after),
        None => Mesh::compile(&after),
    };
    let warnings = warn::warnings(&mesh, &steps, &terms.files);
    let problems = rollouts::refused(&mesh, &after, &steps);
    let outcome = looks.then(|| {
        let compiler = published.map(Compiler::resume).unwrap_or_default();
        effect::of(compiler, world.clone(), after, &terms.around)
    });
    Plan {
        steps,
        warnings,
        problems,
        outcome,
    }
}

/// What an apply of these files to a mesh without anything else would say: what of them is probably not meant.
///
/// # Errors
/// [`AdmitError::Invalid`]: it would be refused.
pub fn look(files: &[File], namespace: &str) -> Result<Vec<Problem>, AdmitError> {
    let world = World::empty();
    let steps = files::parse(files, namespace)?.into_iter();
    let steps: Vec<Step> = steps
        .map(|admitted| Step::new(&world, admitted.document.id(), Some(admitted)))
        .collect();
    let mesh = Mesh::compile(&Arc::new(would_be(&world, &steps)));
    Ok(warn::warnings(&mesh, &steps, files))
}

/// One document of a transaction.
struct Step {
    id: DocumentId,
    before: Option<Arc<DocumentEntry>>,
    after: Option<Admitted>,
    action: ChangeAction,
}

impl Step {
    fn new(world: &World, id: DocumentId, after: Option<Admitted>) -> Self {
        let before = world.documents.get(&id).cloned();
        let quarantined = world.quarantined.contains_key(&id.to_string());
        let action = match (&before, &after) {
            (None, None) => ChangeAction::Unchanged,
            (None, Some(_)) => ChangeAction::Created,
            (Some(_), None) => ChangeAction::Deleted,
            (Some(before), Some(after)) if before.json == after.json && !quarantined => {
                ChangeAction::Unchanged
            }
            (Some(_), Some(_)) => ChangeAction::Configured,
        };
        Self {
            id,
            before,
            after,
            action,
        }
    }

    fn changes(&self) -> bool {
        self.action != ChangeAction::Unchanged
    }

    fn history(&self) -> HistoryChange {
        HistoryChange {
            id: self.id.to_string(),
            before: self.before.as_ref().map(|before| before.json.clone()),
            after: self.after.as_ref().map(|after| after.json.clone()),
        }
    }

    fn change(&self, whole: bool) -> Change {
        Change {
            kind: self.id.kind.as_str().to_owned(),
            namespace: self.id.namespace.clone(),
            name: self.id.name.clone(),
            action: self.action,
            before: self
                .before
                .as_ref()
                .filter(|_| whole)
                .map(|entry| entry.json.clone()),
            after: self
                .after
                .as_ref()
                .filter(|_| whole)
                .map(|admitted| admitted.json.clone()),
        }
    }

    fn record(&self, document: &Value, now: u64) -> DocumentRecord {
        let created = self
            .before
            .as_ref()
            .map(|entry| entry.created_ms)
            .filter(|created| *created > 0);
        let generation = self.before.as_ref().map_or(0, |entry| entry.generation) + 1;
        DocumentRecord {
            created: created.unwrap_or(now),
            updated: now,
            generation,
            document: document.clone(),
        }
    }
}

/// The world after a transaction.
fn would_be(world: &World, steps: &[Step]) -> World {
    let mut documents = (*world.documents).clone();
    for step in steps {
        let Some(after) = &step.after else {
            documents.remove(&step.id);
            continue;
        };
        let created_ms = step
            .before
            .as_ref()
            .map_or_else(unix_ms, |entry| entry.created_ms);
        let entry = DocumentEntry {
            id: step.id.clone(),
            created_ms,
            updated_ms: 0,
            generation: 0,
            revision: 0,
            json: Value::Null,
            document: Some(Arc::new(after.document.clone())),
        };
        documents.insert(step.id.clone(), Arc::new(entry));
    }
    World {
        documents: Arc::new(documents),
        ..world.clone()
    }
}

fn named(request: &DeleteRequest) -> Result<Vec<DocumentId>, AdmitError> {
    let (mut ids, mut problems) = (Vec::new(), Vec::new());
    for reference in &request.ids {
        match Kind::parse(&reference.kind) {
            Some(kind) => ids.push(DocumentId {
                kind,
                namespace: reference.namespace.clone(),
                name: reference.name.clone(),
            }),
            None => problems.push(unknown_kind(&reference.kind)),
        }
    }
    if problems.is_empty() {
        Ok(ids)
    } else {
        Err(AdmitError::Invalid {
            what: "the names",
            problems,
        })
    }
}

pub fn unknown_kind(kind: &str) -> Problem {
    let kinds = Kind::ALL.map(Kind::as_str).join(", ");
    problem(
        format!("`{kind}` is no kind"),
        Some(&format!("kinds are {kinds}")),
    )
}

/// The oldest records of the history that have to go when one of `bytes` comes.
pub fn outdated(world: &World, bytes: usize) -> impl Iterator<Item = u64> {
    let mut count = world.history.len() as u64 + 1;
    let mut bytes = bytes + world.history.values().sum::<usize>();
    let is_over = move |(_, record): &(&u64, &usize)| {
        let is_over = count > HISTORY_MAX || bytes > HISTORY_BYTES_MAX;
        (count, bytes) = (count - 1, bytes - **record);
        is_over
    };
    let oldest = world.history.iter().take_while(is_over).take(PRUNED_MAX);
    oldest.map(|(sequence, _)| *sequence)
}

fn check_namespace(namespace: &str) -> Result<(), AdmitError> {
    check_label(namespace).map_err(|error| AdmitError::Invalid {
        what: "the request",
        problems: vec![problem(error.to_string(), Some("give a namespace"))],
    })
}

/// Who and why stand in the history, in every answer that lists it, and on terminals.
pub fn check_texts(author: &str, message: Option<&str>) -> Result<(), AdmitError> {
    let mut problems = Vec::new();
    for (what, text, most) in [
        ("author", author, AUTHOR_BYTES_MAX),
        ("message", message.unwrap_or_default(), MESSAGE_BYTES_MAX),
    ] {
        if text.len() > most {
            let long = format!("{what}: {} bytes, at most {most} are kept", text.len());
            problems.push(problem(long, None));
        }
        if text
            .chars()
            .any(|c| c.is_control() && c != '\n' && c != '\t')
        {
            problems.push(problem(format!("{what}: it has control characters"), None));
        }
    }
    match problems.is_empty() {
        true => Ok(()),
        false => Err(AdmitError::Invalid {
            what: "the request",
            problems,
        }),
    }
}

fn problem(message: impl Into<String>, hint: Option<&str>) -> Problem {
    Problem {
        message: message.into(),
        hint: hint.map(str::to_owned),
        ..Problem::default()
    }
}

fn json(record: &impl serde::Serialize) -> Result<Vec<u8>, AdmitError> {
    serde_json::to_vec(record).map_err(|error| AdmitError::TooLarge {
        reason: error.to_string(),
    })
}

pub fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

const AUTHOR_BYTES_MAX: usize = 253;
const MESSAGE_BYTES_MAX: usize = 4096;
/// Transactions kept for `history` and `rollback`.
pub const HISTORY_MAX: u64 = 1000;
/// All of them together: they are kept in memory too.
const HISTORY_BYTES_MAX: usize = 64 << 20;
/// Of one transaction, which may not have too many parts.
const PRUNED_MAX: usize = 16;
/// How long an answer waits for the world to have read what was stored.
const CATCH_UP: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
