//! `lint -f`: the checks that need no control plane.

use std::path::PathBuf;

use clap::Args;
use phalanx_client::api::{File, Problem};
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
    let (mut documents, mut problems) = (0, Vec::new());
    for file in files::read_with(&options.files, options.ask)? {
        let manifest = manifest::parse(&file.name, &file.text, &options.namespace.namespace);
        documents += manifest.documents.len();
        problems.extend(manifest.problems);
    }
    let is_syntax = problems.iter().any(|p| p.kind == ProblemKind::Syntax);
    let problems: Vec<Problem> = problems.into_iter().map(told).collect();
    let found = json!({"documents": documents, "problems": problems});
    output::show(options.output, &found, || {
        problems
            .iter()
            .map(|problem| format!("{problem}\n"))
            .collect()
    })?;
    let count = match problems.len() {
        1 => "1 problem".to_owned(),
        many => format!("{many} problems"),
    };
    if is_syntax {
        return Err(Failure::file(count));
    }
    if !problems.is_empty() {
        return Err(Failure::refused(count));
    }
    if documents == 0 {
        return Err(Failure::refused("no documents found"));
    }
    if options.output == Format::Table {
        output::print(&format!("{documents} documents, no problems\n"))?;
    }
    Ok(())
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
