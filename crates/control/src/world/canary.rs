//! A staged change: documents that a few nodes have already and everybody else does not. The stored documents stay what they
//! are; the staged ones lie over them in a second world, which only those nodes are served from.

use std::collections::BTreeSet;
use std::sync::Arc;

use phalanx_model::document::{Document, DocumentId};

use super::fold::parse_stored;
use super::record::{CanaryRecord, DocumentRecord, Key};
use super::{DocumentEntry, World};

#[derive(Clone, Debug)]
pub struct Canary {
    /// Of the record.
    pub revision: u64,
    /// None: it can't be read, and nobody is served from it.
    pub record: Option<CanaryRecord>,
    pub nodes: BTreeSet<String>,
    pub staged: Vec<Staged>,
    pub problem: Option<String>,
}

/// What becomes of one document.
#[derive(Clone, Debug)]
pub struct Staged {
    pub id: DocumentId,
    /// None: it goes.
    pub after: Option<(DocumentRecord, Arc<Document>)>,
}

impl Canary {
    /// What can't be read is a problem, not an error: it must stop no start.
    pub fn read(value: &[u8], revision: u64) -> Self {
        let read = serde_json::from_slice::<CanaryRecord>(value)
            .map_err(|e| format!("the record of the canary is damaged: {e}"))
            .and_then(|record| Ok((staged(&record)?, record)));
        match read {
            Ok((staged, record)) => Self {
                revision,
                nodes: record.nodes.iter().cloned().collect(),
                record: Some(record),
                staged,
                problem: None,
            },
            Err(problem) => Self {
                revision,
                record: None,
                nodes: BTreeSet::new(),
                staged: Vec::new(),
                problem: Some(problem),
            },
        }
    }

    /// Whether it stages a document of this name.
    pub fn stages(&self, id: &DocumentId) -> bool {
        self.staged.iter().any(|staged| staged.id == *id)
    }
}

fn staged(record: &CanaryRecord) -> Result<Vec<Staged>, String> {
    let mut all = Vec::new();
    for change in &record.changes {
        let Key::Document(id) = Key::parse(&format!("config/{}", change.id)) else {
            return Err(format!("{}: its kind is not known", change.id));
        };
        let after = match &change.after {
            Some(after) => {
                let document = parse_stored(&id, &after.document)
                    .map_err(|problem| format!("{}: {problem}", change.id))?;
                Some((after.clone(), Arc::new(document)))
            }
            None => None,
        };
        all.push(Staged { id, after });
    }
    Ok(all)
}

impl World {
    /// The world as the canary's nodes have it; none without a canary.
    pub fn staged(&self) -> Option<World> {
        let canary = self.canary.as_ref().filter(|c| c.problem.is_none())?;
        let mut world = self.clone();
        let documents = Arc::make_mut(&mut world.documents);
        for staged in &canary.staged {
            let Some((record, document)) = &staged.after else {
                documents.remove(&staged.id);
                continue;
            };
            let entry = DocumentEntry {
                id: staged.id.clone(),
                created_ms: record.created,
                updated_ms: record.updated,
                generation: record.generation,
                revision: canary.revision,
                json: record.document.clone(),
                document: Some(document.clone()),
            };
            documents.insert(staged.id.clone(), Arc::new(entry));
        }
        Some(world)
    }
}
