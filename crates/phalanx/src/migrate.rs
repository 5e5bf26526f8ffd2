//! `migrate`: from the embedded store of a control plane that is stopped to an etcd. An interrupted one is run again.

use std::path::PathBuf;

use clap::Args;
use phalanx_control::carry;
use phalanx_store::{Error, EtcdConfig};

use crate::backup;
use crate::etcd::{self, Access};
use crate::exit::{Failure, Outcome};
use crate::output;
use crate::progress::Progress;

#[derive(Args)]
pub struct Options {
    /// The etcd, where nothing of a mesh may be yet
    #[arg(long, value_name = "etcd[s]://HOST:PORT[,HOST:PORT]", value_parser = etcd::parse)]
    to: EtcdConfig,
    /// Folder of the embedded store
    #[arg(long, value_name = "DIR", default_value = "phalanx-data")]
    data: PathBuf,
    #[command(flatten)]
    access: Access,
}

pub async fn run(options: Options) -> Outcome {
    let url = options.to.url();
    let to = options.access.apply(options.to)?;
    // Held until the end: no control plane may write there meanwhile.
    let (store, taken) = backup::closed(&options.data).await?;
    let (revision, described) = (taken.revision, backup::described(&taken));
    let mut progress = Progress::new("copied", "entries");
    let pinned = carry::pin(taken);
    let migrated = phalanx_store::migrate(&pinned, to, |done, all| {
        progress.at(done as u64, all as u64);
    });
    let migrated = migrated.await;
    progress.end();
    let migrated = migrated.map_err(|error| match error {
        error @ Error::Unreachable { .. } => etcd::unreachable(&url, &error),
        error @ Error::NotEmpty { .. } => Failure::from_error(error)
            .hint("a migration goes only where nothing is; delete what is there with etcdctl if nobody needs it"),
        error @ Error::Unknown { .. } => Failure::unreachable(error)
            .hint("run it again: it goes on where it was"),
        error => Failure::from_error(error),
    })?;
    store.close().await;
    let mut text =
        format!("migrated revision {revision} to {url}: {described}, read back and compared\n");
    if migrated.resumed > 0 {
        let resumed = migrated.resumed;
        text += &format!("{resumed} of them were there from a migration that was interrupted\n");
    }
    text += &format!("revisions go on above {}\n", migrated.revision);
    text += &format!(
        "next: phalanx control --store {url} …; {} stays as it was, start none on it any more\n",
        options.data.display()
    );
    output::print(&text)
}
