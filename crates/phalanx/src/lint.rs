//! `lint -f`: the checks that need no control plane, and what an apply to an empty mesh would warn of.

use std::path::PathBuf;

use clap::Args;
use phalanx_client::api::{File, Problem};
use phalanx_control::admit::{self, AdmitError};
use phalanx_model::manifest::{self, ProblemKind};
use serde_json::json;

use crate::exit::{Failure, Outcome};
use crate::output::{self, Format};
use crate::{NamespaceOptions, files};

#[derive(Args)]
pub struct Options {
    #[arg(short, long = "file", required = true, value_name = "FILE|DIR|-")]
    files: Vec<PathBuf>,
    /// Ask the servers that `descriptorSet: {reflection: HOST:PORT}` names
    #[arg(long)]
    ask: bool,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    namespace: NamespaceOptions,
}

pub fn run(options: &Options) -> Outcome {
    let namespace = &options.namespace.namespace;
    let files = files::read_with(&options.files, options.ask)?;
    let (mut documents, mut problems) = (0, Vec::new());
    for file in &files {
        let manifest = manifest::parse(&file.name, &file.text, namespace);
        documents += manifest.documents.len();
        problems.extend(manifest.problems);
    }
    let is_syntax = problems.iter().any(|p| p.kind == ProblemKind::Syntax);
    let problems: Vec<Problem> = problems.into_iter().map(told).collect();
    let mut warnings = Vec::new();
    if problems.is_empty() && documents > 0 {
        warnings = match admit::look(&files, namespace) {
            Ok(found) => found,
            // One document in several files: an apply refuses them together, but they may be meant one at a time.
            Err(AdmitError::Invalid { problems, .. }) => problems,
            Err(other) => return Err(Failure::defect(other.to_string())),
        };
    }
    let found = json!({"documents": documents, "problems": problems, "warnings": warnings});
    output::show(options.output, &found, || {
        problems
            .iter()
            .map(|problem| format!("{problem}\n"))
            .collect()
    })?;
    if is_syntax {
        return Err(Failure::file(count(&problems, "problem")));
    }
    if !problems.is_empty() {
        return Err(Failure::refused(count(&problems, "problem")));
    }
    if documents == 0 {
        return Err(Failure::refused("no documents found"));
    }
    if options.output == Format::Table {
        warn(&warnings);
        let doubts = match warnings.is_empty() {
            true => String::new(),
            false => format!(
                ", {} as if there were nothing but these files",
                count(&warnings, "warning")
            ),
        };
        output::print(&format!("{documents} documents, no problems{doubts}\n"))?;
    }
    Ok(())
}

/// What is allowed but probably not meant.
pub fn warn(warnings: &[Problem]) {
    for warning in warnings {
        let word = output::stderr_style().warn("warning:");
        output::tell(&format!("{word} {}", output::plain(&warning.to_string())));
    }
}

fn count(problems: &[Problem], word: &str) -> String {
    match problems.len() {
        1 => format!("1 {word}"),
        many => format!("{many} {word}s"),
    }
}

pub fn told(problem: manifest::Problem) -> Problem {
    Problem {
        file: problem.file,
        line: u32::try_from(problem.line).unwrap_or(u32::MAX),
        column: u32::try_from(problem.column).unwrap_or(u32::MAX),
        path: problem.path,
        message: problem.message,
        hint: problem.hint,
    }
}

/// Refuses files that are no YAML before anybody is asked.
pub fn check_syntax(files: &[File]) -> Outcome {
    let problems = files
        .iter()
        .flat_map(|file| manifest::parse(&file.name, &file.text, "default").problems);
    let wrong: Vec<_> = problems
        .filter(|p| p.kind == ProblemKind::Syntax)
        .map(told)
        .collect();
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(Failure::file("not YAML; nothing was changed").problems(wrong))
    }
}
