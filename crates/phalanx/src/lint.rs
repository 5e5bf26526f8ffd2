//! `lint -f`: the checks that need no control plane.

use std::path::PathBuf;

use clap::Args;
use phalanx_client::api::File;
use phalanx_model::manifest::{self, ProblemKind};

use crate::exit::{Failure, Outcome};
use crate::{NamespaceOptions, files, output};

#[derive(Args)]
pub struct Options {
    #[arg(short, long = "file", required = true, value_name = "FILE|DIR|-")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    namespace: NamespaceOptions,
}

pub fn run(options: &Options) -> Outcome {
    let (mut documents, mut problems) = (0, Vec::new());
    for file in files::read_all(&options.files)? {
        let manifest = manifest::parse(&file.name, &file.text, &options.namespace.namespace);
        documents += manifest.documents.len();
        problems.extend(manifest.problems);
    }
    for problem in &problems {
        output::print(&format!("{problem}\n"))?;
    }
    let count = match problems.len() {
        1 => "1 problem".to_owned(),
        many => format!("{many} problems"),
    };
    if problems.iter().any(|p| p.kind == ProblemKind::Syntax) {
        return Err(Failure::file(count));
    }
    if !problems.is_empty() {
        return Err(Failure::refused(count));
    }
    if documents == 0 {
        return Err(Failure::refused("no documents found"));
    }
    output::print(&format!("{documents} documents, no problems\n"))
}

/// Refuses files that are no YAML before anybody is asked.
pub fn check_syntax(files: &[File]) -> Outcome {
    let problems = files
        .iter()
        .flat_map(|file| manifest::parse(&file.name, &file.text, "default").problems);
    let wrong: Vec<_> = problems.filter(|p| p.kind == ProblemKind::Syntax).collect();
    for problem in &wrong {
        eprintln!("{problem}");
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(Failure::file("not YAML; nothing was changed"))
    }
}
