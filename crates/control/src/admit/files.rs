//! The files of a request: parsed, all problems of all files at once.

use std::collections::BTreeMap;

use phalanx_client::api::{File, Problem};
use phalanx_model::document::{Document, DocumentId};
use phalanx_model::manifest;
use serde_json::Value;

use super::{AdmitError, problem};

/// A document that may be stored.
#[derive(Clone, Debug)]
pub struct Admitted {
    pub document: Document,
    pub json: Value,
    /// Empty when it comes from no file.
    pub file: String,
    pub line: u32,
}

impl Admitted {
    /// A remark about it, with its place.
    pub fn problem(&self, message: String) -> Problem {
        Problem {
            file: self.file.clone(),
            line: self.line,
            column: u32::from(self.line > 0),
            message,
            ..Problem::default()
        }
    }
}

/// The documents of all files, each once.
pub fn parse(files: &[File], namespace: &str) -> Result<Vec<Admitted>, AdmitError> {
    let (mut admitted, mut problems) = (Vec::new(), Vec::new());
    for file in files {
        let parsed = manifest::parse(&file.name, &file.text, namespace);
        problems.extend(parsed.problems.into_iter().map(told));
        for parsed in parsed.documents {
            let line = parsed.line as u32;
            match serde_json::from_str(&parsed.json) {
                Ok(json) => admitted.push(Admitted {
                    document: parsed.document,
                    json,
                    file: file.name.clone(),
                    line,
                }),
                Err(e) => problems.push(Problem {
                    file: file.name.clone(),
                    line,
                    message: format!("it can't be stored as JSON: {e}"),
                    ..Problem::default()
                }),
            }
        }
    }
    problems.extend(duplicates(&admitted));
    if problems.is_empty() && admitted.is_empty() {
        problems.push(problem(
            "there is no document in the files",
            Some("a document has apiVersion, kind and metadata"),
        ));
    }
    if problems.is_empty() {
        return Ok(admitted);
    }
    // By file as given, then by place.
    let order: BTreeMap<&str, usize> = files
        .iter()
        .enumerate()
        .map(|(index, file)| (file.name.as_str(), index))
        .collect();
    problems.sort_by_key(|p| (order.get(p.file.as_str()).copied(), p.line, p.column));
    Err(AdmitError::Invalid {
        what: "the files",
        problems,
    })
}

/// What the files name; their content has to parse as well, so that a typo does not delete less than meant.
pub fn ids(files: &[File], namespace: &str) -> Result<Vec<DocumentId>, AdmitError> {
    if files.is_empty() {
        return Ok(Vec::new());
    }
    Ok(parse(files, namespace)?
        .into_iter()
        .map(|admitted| admitted.document.id())
        .collect())
}

fn duplicates(admitted: &[Admitted]) -> Vec<Problem> {
    let mut first: BTreeMap<DocumentId, &Admitted> = BTreeMap::new();
    let mut problems = Vec::new();
    for document in admitted {
        let id = document.document.id();
        match first.get(&id) {
            Some(before) if before.file != document.file => {
                problems.push(document.problem(format!(
                    "{id} stands in {}:{} already",
                    before.file, before.line
                )));
            }
            Some(_) => {} // the parser told it
            None => {
                first.insert(id, document);
            }
        }
    }
    problems
}

fn told(problem: manifest::Problem) -> Problem {
    Problem {
        file: problem.file,
        line: problem.line as u32,
        column: problem.column as u32,
        path: problem.path,
        message: problem.message,
        hint: problem.hint,
    }
}
