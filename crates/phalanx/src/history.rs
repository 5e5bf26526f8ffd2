//! `history` and `rollback`.

use clap::Args;
use phalanx_client::api::{HistoryChange, RollbackRequest};

use crate::AdminOptions;
use crate::exit::Outcome;
use crate::output::{self, Format, Table};

#[derive(Args)]
pub struct Options {
    /// At most this many, newest first
    #[arg(long, default_value_t = 20)]
    limit: usize,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    admin: AdminOptions,
}

#[derive(Args)]
pub struct RollbackOptions {
    /// Everything as it was just after this revision
    #[arg(long, value_name = "REVISION")]
    to: u64,
    /// Refuse unless the configuration is at this revision
    #[arg(long, value_name = "REVISION")]
    expect: Option<u64>,
    /// Show, change nothing
    #[arg(long)]
    dry_run: bool,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    admin: AdminOptions,
}

pub async fn run(options: Options) -> Outcome {
    let history = options.admin.client().history(Some(options.limit)).await?;
    output::show(options.output, &history, || {
        let now = output::now_ms();
        let mut table = Table::new(&["REVISION", "AGE", "AUTHOR", "CHANGES", "MESSAGE"]);
        for e in &history.entries {
            let changes = describe_all(&e.changes);
            table.row(vec![
                e.revision.to_string(),
                output::age(e.time_ms, now),
                e.author.clone(),
                changes,
                e.message.clone(),
            ]);
        }
        table.render(output::stdout_style())
    })
}

pub async fn rollback(options: RollbackOptions) -> Outcome {
    let author = std::env::var("USER").unwrap_or_else(|_| "unknown".to_owned());
    let request = RollbackRequest {
        to: options.to,
        expect: options.expect,
        dry_run: options.dry_run,
        author,
    };
    crate::apply::show(
        options.output,
        &options.admin.client().rollback(&request).await?,
    )
}

/// Every change by name, or only counted when the line would get too long.
fn describe_all(changes: &[HistoryChange]) -> String {
    if changes.len() <= NAMED_MAX {
        return changes.iter().map(describe).collect::<Vec<_>>().join(", ");
    }
    let mut counts: std::collections::BTreeMap<String, usize> = Default::default();
    for change in changes {
        let line = describe(change);
        let kind = line.split('/').next().unwrap_or_default();
        *counts.entry(kind.to_owned()).or_default() += 1;
    }
    let parts: Vec<String> = counts
        .iter()
        .map(|(kind, count)| format!("{count} {kind}"))
        .collect();
    parts.join(", ")
}

const NAMED_MAX: usize = 3;

fn describe(change: &HistoryChange) -> String {
    let sign = match (&change.before, &change.after) {
        (None, _) => "+",
        (_, None) => "-",
        _ => "~",
    };
    format!("{sign}{}", change.id)
}
