//! `restore`: a backup becomes the embedded store of a folder. Nothing is touched before all of the backup was checked.

use std::path::PathBuf;

use clap::Args;
use phalanx_store::Error;

use crate::backup;
use crate::exit::{Failure, Outcome};
use crate::output;

#[derive(Args)]
pub struct Options {
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Folder of the embedded store; it has to be empty, or not to be there
    #[arg(long, value_name = "DIR", default_value = "phalanx-data")]
    data: PathBuf,
    /// Take the place of a store that is there; the old one is kept beside it under another name
    #[arg(long)]
    force: bool,
}

pub fn run(options: &Options) -> Outcome {
    let backup = backup::read(&options.file)?;
    let restored = phalanx_store::restore(&options.data, &backup, options.force);
    let restored = restored.map_err(|error| match error {
        error @ Error::NotEmpty { .. } => Failure::from_error(error).hint(
            "choose an empty folder, or --force, which keeps what is there under another name",
        ),
        error @ Error::InUse { .. } => {
            Failure::from_error(error).hint("stop the control plane that uses it")
        }
        error => Failure::from_error(error),
    })?;
    let mut text = format!(
        "restored revision {}: {}, in {}; it goes on at revision {}\n",
        backup.revision,
        backup::described(&backup),
        options.data.display(),
        restored.revision
    );
    if let Some(aside) = &restored.aside {
        text += &format!("the store that was there is {} now\n", aside.display());
    }
    text += &format!("next: phalanx control --data {}\n", options.data.display());
    output::print(&text)
}
