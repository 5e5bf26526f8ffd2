//! Changes that few proxies get first: who they are, and how a staged change becomes everybody's or nobody's.
//!
//! Staging writes one record beside the documents, which stay as they are. Promoting writes the documents and forgets the
//! record, going back only forgets it; each is one transaction that one control plane wins.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use phalanx_client::api::{ApplyResponse, CanaryTerms, Share};
use phalanx_model::ServiceName;
use phalanx_store::Txn;

use super::effect::{Around, Outcome};
use super::{Admission, AdmitError, Step, TRIES_MAX, Terms, check_texts, json, problem, unix_ms};
use crate::snapshot::Node;
use crate::world::World;
use crate::world::record::{
    CANARY, CANARY_LAST, CanaryChange, CanaryLast, CanaryRecord, CanaryStage, CanaryStep,
    HistoryChange, HistoryRecord, document_key, history_key,
};

/// Terms that were understood.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked {
    first: Share,
    watch_ms: u64,
    max_error_rate: f64,
    max_errors: Option<u64>,
}

/// # Errors
/// All that is wrong with the terms.
pub fn check(terms: &CanaryTerms) -> Result<Checked, AdmitError> {
    let mut problems = Vec::new();
    let first = terms.first.parse::<Share>();
    let first = first.map_err(|wrong| {
        problems.push(problem(
            format!("canary: {wrong}"),
            Some("such as --canary 3 or --canary 10%"),
        ));
    });
    if !(0.0..=1.0).contains(&terms.max_error_rate) {
        let text = format!(
            "canary: an error rate of {} is not between 0 and 1",
            terms.max_error_rate
        );
        problems.push(problem(text, None));
    }
    let watch = Duration::from_millis(terms.watch_ms);
    if !(WATCH_MIN..=WATCH_MAX).contains(&watch) {
        let text = format!(
            "canary: watching for {watch:?} is not between {WATCH_MIN:?} and {WATCH_MAX:?}"
        );
        problems.push(problem(text, None));
    }
    match first {
        Ok(first) if problems.is_empty() => Ok(Checked {
            first,
            watch_ms: terms.watch_ms,
            max_error_rate: terms.max_error_rate,
            max_errors: terms.max_errors,
        }),
        _ => Err(AdmitError::Invalid {
            what: "the request",
            problems,
        }),
    }
}

/// A change of what a canary stages would leave nothing to go back to.
pub fn refuse_staged(world: &World, steps: &[Step]) -> Result<(), AdmitError> {
    let Some(canary) = &world.canary else {
        return Ok(());
    };
    let touches = |step: &&Step| step.changes() && canary.stages(&step.id);
    match steps.iter().find(touches) {
        Some(step) => Err(under_way(world, Some(&step.id.to_string()))),
        None => Ok(()),
    }
}

/// There is one canary at a time, and it has to show something.
pub fn refuse_start(world: &World, outcome: &Outcome) -> Result<(), AdmitError> {
    if world.canary.is_some() {
        return Err(under_way(world, None));
    }
    match outcome.concerned.is_empty() {
        true => Err(AdmitError::Nobody),
        false => Ok(()),
    }
}

/// Who tries what until when, as the refusal of another change.
pub fn under_way(world: &World, touched: Option<&str>) -> AdmitError {
    let record = world.canary.as_ref().and_then(|c| c.record.as_ref());
    let text = match record {
        Some(record) => {
            let ids: Vec<_> = record.changes.iter().map(|c| c.id.as_str()).collect();
            let until_s = record.watch_ms / 1000;
            format!(
                "{} has {} on trial at {} of {} proxies, decided {until_s} s after all of them have it",
                record.author,
                listed(&ids),
                record.nodes.len(),
                record.concerned
            )
        }
        None => "a canary is under way".to_owned(),
    };
    let what = match touched {
        Some(id) => format!("{id} can't be changed now: {text}"),
        None => format!("another canary can't start now: {text}"),
    };
    AdmitError::UnderWay {
        what,
        revision: world.config_revision,
    }
}

fn listed(ids: &[&str]) -> String {
    match ids {
        [one] => (*one).to_owned(),
        [one, rest @ ..] => format!("{one} and {} more", rest.len()),
        [] => "nothing".to_owned(),
    }
}

/// The first `count` of the nodes: callers of what changes before others, then spread over services and versions. The same
/// for the same nodes and `seed`.
pub fn first(
    nodes: &[Node],
    count: usize,
    services: &BTreeSet<ServiceName>,
    around: &Around,
    seed: u64,
) -> Vec<String> {
    type Groups<'a> = BTreeMap<(bool, &'a ServiceName, &'a str), Vec<(u64, &'a str)>>;
    let calls = |node: &Node| {
        services.iter().any(|service| {
            around
                .callers
                .contains(&(node.service.clone(), service.clone()))
        })
    };
    let mut groups = Groups::new();
    for node in nodes {
        let group = (!calls(node), &node.service, node.version.as_str());
        let members = groups.entry(group).or_default();
        members.push((hash(seed, &node.id), &node.id));
    }
    for members in groups.values_mut() {
        members.sort_unstable();
    }
    let mut chosen = Vec::new();
    for is_bystander in [false, true] {
        let of_tier = || groups.iter().filter(|((b, _, _), _)| *b == is_bystander);
        let most = of_tier().map(|(_, members)| members.len()).max();
        for round in 0..most.unwrap_or(0) {
            let of_round = of_tier().filter_map(|(_, members)| members.get(round));
            chosen.extend(of_round.map(|(_, id)| (*id).to_owned()));
        }
    }
    chosen.truncate(count);
    chosen
}

/// FNV-1a: spreads, and stays the same over builds.
fn hash(seed: u64, text: &str) -> u64 {
    let bytes = seed.to_le_bytes().into_iter().chain(text.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

impl Admission {
    /// Stores what was checked as a canary.
    pub(super) async fn stage(
        &self,
        world: &World,
        steps: Vec<Step>,
        terms: &Terms,
        checked: &Checked,
        outcome: &Outcome,
        around: &Around,
    ) -> Result<u64, AdmitError> {
        let now = unix_ms();
        let sequence = world.sequence + 1;
        let concerned = outcome.concerned.len();
        let nodes = first(
            &outcome.concerned,
            checked.first.of(concerned),
            &outcome.services,
            around,
            sequence,
        );
        let mut txn = Txn::new()
            .expect_absent(history_key(sequence))
            .expect_absent(CANARY);
        let mut record = CanaryRecord {
            sequence,
            started: now,
            author: terms.author.clone(),
            message: terms.message.clone(),
            watch_ms: checked.watch_ms,
            max_error_rate: checked.max_error_rate,
            max_errors: checked.max_errors,
            nodes,
            concerned,
            changes: Vec::new(),
        };
        let mut tried = Vec::new();
        for step in steps.into_iter().filter(Step::changes) {
            record.changes.push(CanaryChange {
                id: step.id.to_string(),
                replaces: step.before.as_ref().map(|before| before.revision),
                after: step
                    .after
                    .as_ref()
                    .map(|after| step.record(&after.json, now)),
            });
            tried.push(step.history());
        }
        txn = txn.put(CANARY, json(&record)?);
        let history = HistoryRecord {
            time: now,
            author: terms.author.clone(),
            message: terms.message.clone(),
            changes: Vec::new(),
            canary: Some(CanaryStep {
                of: sequence,
                stage: CanaryStage::Started,
                tried,
            }),
        };
        self.store(world, txn, sequence, &history).await
    }

    /// Ends the canary that `sequence` started.
    ///
    /// # Errors
    /// [`AdmitError::NoCanary`] when it has ended already; else as of any change.
    pub async fn conclude(
        &self,
        sequence: u64,
        stage: CanaryStage,
        author: &str,
        reason: &str,
    ) -> Result<ApplyResponse, AdmitError> {
        check_texts(author, None)?;
        let _turn = self.turn().await;
        let mut tries = 1;
        loop {
            let seen = self.worlds.borrow().sequence;
            match self.conclude_once(sequence, stage, author, reason).await {
                // Something else was written at the same moment, which need not concern it.
                Err(AdmitError::Conflict { .. }) if tries < TRIES_MAX => tries += 1,
                ended => return ended,
            }
            self.caught_up(seen).await;
        }
    }

    async fn conclude_once(
        &self,
        sequence: u64,
        stage: CanaryStage,
        author: &str,
        reason: &str,
    ) -> Result<ApplyResponse, AdmitError> {
        let world = self.worlds.borrow().clone();
        let Some(canary) = world.canary.as_ref().filter(|canary| {
            canary.record.as_ref().map_or(0, |record| record.sequence) == sequence
        }) else {
            return Err(AdmitError::NoCanary);
        };
        let now = unix_ms();
        let next = world.sequence + 1;
        let mut txn = Txn::new()
            .expect_modified(CANARY, canary.revision)
            .expect_absent(history_key(next))
            .delete(CANARY);
        let mut changes = Vec::new();
        if let (CanaryStage::Promoted, Some(record)) = (stage, &canary.record) {
            for (staged, change) in canary.staged.iter().zip(&record.changes) {
                let before = world.documents.get(&staged.id);
                if before.map(|before| before.revision) != change.replaces {
                    return Err(AdmitError::Overtaken {
                        id: change.id.clone(),
                    });
                }
                let key = document_key(&staged.id);
                txn = match &change.after {
                    Some(after) => txn.put(key, json(after)?),
                    None => txn.delete(key),
                };
                changes.push(HistoryChange {
                    id: change.id.clone(),
                    before: before.map(|before| before.json.clone()),
                    after: change.after.as_ref().map(|after| after.document.clone()),
                });
            }
        }
        let last = CanaryLast {
            sequence,
            stage,
            reason: reason.to_owned(),
            author: author.to_owned(),
            time: now,
        };
        txn = txn.put(CANARY_LAST, json(&last)?);
        let history = HistoryRecord {
            time: now,
            author: author.to_owned(),
            message: reason.to_owned(),
            changes,
            canary: Some(CanaryStep {
                of: sequence,
                stage,
                tried: Vec::new(),
            }),
        };
        let revision = self.store(&world, txn, next, &history).await?;
        Ok(ApplyResponse {
            revision,
            ..ApplyResponse::default()
        })
    }
}

const WATCH_MIN: Duration = Duration::from_secs(1);
const WATCH_MAX: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests;
