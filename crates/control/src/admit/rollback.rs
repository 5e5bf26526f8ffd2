//! The configuration as it was: the present, with the history undone record by record.

use std::collections::BTreeMap;

use phalanx_model::manifest;
use phalanx_store::{Entry, Store};
use serde_json::Value;

use super::{AdmitError, Admitted, Wanted, problem};
use crate::carry;
use crate::world::World;
use crate::world::record::{HISTORY, HistoryRecord, Key};

/// All records as they are stored, oldest first.
pub async fn stored(store: &Store) -> Result<Vec<Entry>, AdmitError> {
    let page = store.list(HISTORY).await.map_err(AdmitError::Store)?;
    Ok(page.entries)
}

/// Newest first, each with its revision and sequence number. One that can't be read ends them: beyond it nothing could be
/// undone.
pub fn records(stored: &[Entry]) -> impl Iterator<Item = (u64, u64, HistoryRecord)> {
    let record = |entry: &Entry| match Key::parse(&entry.key) {
        Key::History(sequence) => serde_json::from_slice(&entry.value)
            .ok()
            .map(|record| (revision(entry), sequence, record)),
        _ => None,
    };
    stored.iter().rev().map_while(record)
}

/// Of another store, if it was migrated from there.
fn revision(entry: &Entry) -> u64 {
    carry::pinned(&entry.value).unwrap_or(entry.modified)
}

/// What has to become of each document so that all are as they were just after revision `to`.
pub fn wanted(stored: &[Entry], world: &World, to: u64) -> Result<Wanted, AdmitError> {
    if to > world.config_revision {
        return Err(AdmitError::Future {
            to,
            revision: world.config_revision,
        });
    }
    let records: Vec<_> = records(stored).collect();
    let oldest = records
        .last()
        .map_or((0, 1), |(revision, sequence, _)| (*revision, *sequence));
    // Before the first record there was nothing, which is a great deal to delete for a number that was mistaken: 0 says it.
    if to < oldest.0 && (oldest.1 > 1 || to > 0) {
        return Err(AdmitError::TooOld {
            to,
            oldest: oldest.0,
        });
    }
    let mut then: BTreeMap<String, Option<Value>> = BTreeMap::new();
    for (_, _, record) in records
        .into_iter()
        .take_while(|(revision, _, _)| *revision > to)
    {
        for change in record.changes {
            then.insert(change.id, change.before);
        }
    }
    let (mut wanted, mut problems) = (Wanted::new(), Vec::new());
    for (name, json) in then {
        match restored(&name, json) {
            Ok((id, admitted)) => {
                wanted.insert(id, admitted);
            }
            Err(message) => problems.push(problem(
                format!("{name}: {message}"),
                Some("delete or correct it by hand"),
            )),
        }
    }
    if problems.is_empty() {
        Ok(wanted)
    } else {
        Err(AdmitError::Invalid {
            what: "that revision",
            problems,
        })
    }
}

fn restored(
    name: &str,
    json: Option<Value>,
) -> Result<(phalanx_model::document::DocumentId, Option<Admitted>), String> {
    let Key::Document(id) = Key::parse(&format!("config/{name}")) else {
        return Err("its kind is not known".to_owned());
    };
    let Some(json) = json else {
        return Ok((id, None));
    };
    let parsed = manifest::parse(name, &json.to_string(), &id.namespace).into_result();
    let mut documents = parsed.map_err(|problems| {
        problems
            .first()
            .map_or_else(String::new, |p| format!("{}: {}", p.path, p.message))
    })?;
    match documents.pop() {
        Some(parsed) if documents.is_empty() && parsed.document.id() == id => Ok((
            id,
            Some(Admitted {
                document: parsed.document,
                json,
                file: String::new(),
                line: 0,
            }),
        )),
        _ => Err("it is another document".to_owned()),
    }
}
