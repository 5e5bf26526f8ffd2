//! `lint -f`: the checks that need no control plane.

use std::path::PathBuf;

use clap::Args;
use phalanx_model::manifest;

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
    let (mut documents, mut problems) = (0, 0);
    for file in files::read_all(&options.files)? {
        match manifest::parse(&file.name, &file.text, &options.namespace.namespace) {
            Ok(parsed) => documents += parsed.len(),
            Err(found) => {
                problems += found.len();
                for problem in found {
                    output::print(&format!("{problem}\n"))?;
                }
            }
        }
    }
    if problems > 0 {
        return Err(Failure::refused(format!("{problems} problem(s)")));
    }
    output::print(&format!("{documents} document(s), nothing to say\n"))
}
