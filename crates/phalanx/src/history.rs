//! `history` and `rollback`.

use clap::Args;
use phalanx_client::api::{HistoryChange, HistoryEntry, RollbackRequest};

use crate::apply::CanaryOptions;
use crate::exit::Outcome;
use crate::output::{self, Format, Table};
use crate::{AdminOptions, diff};

#[derive(Args)]
pub struct Options {
    /// At most this many, newest first
    #[arg(long, default_value_t = 20)]
    limit: usize,
    /// The documents line by line, of the change of this revision or of all that are listed
    #[arg(long, value_name = "REVISION", num_args = 0..=1, default_missing_value = "0")]
    diff: Option<u64>,
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
    /// Why, for the history
    #[arg(short, long)]
    message: Option<String>,
    /// End only when every proxy has it; with --canary, when it is decided
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    canary: CanaryOptions,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    admin: AdminOptions,
}

pub async fn run(options: Options) -> Outcome {
    let client = options.admin.client();
    let history = match options.diff {
        Some(revision) if revision > 0 => client.history_at(revision).await?,
        _ => client.history(Some(options.limit)).await?,
    };
    output::show(options.output, &history, || {
        if options.diff.is_some() {
            return history.entries.iter().map(diffs).collect();
        }
        let now = output::now_ms();
        let mut table = Table::new(&["REVISION", "AGE", "AUTHOR", "CHANGES", "MESSAGE"]);
        for e in &history.entries {
            let changes = describe_entry(e);
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
    let request = RollbackRequest {
        to: options.to,
        expect: options.expect,
        dry_run: options.dry_run,
        author: crate::apply::author(),
        message: options.message,
        canary: options.canary.terms(),
    };
    let client = options.admin.client();
    let answer = client.rollback(&request).await?;
    crate::apply::show(options.output, &answer)?;
    crate::apply::arrived(&client, &answer, options.wait).await
}

/// One change and its documents.
fn diffs(entry: &HistoryEntry) -> String {
    let style = output::stdout_style();
    let age = output::age(entry.time_ms, output::now_ms());
    let author = output::plain(&entry.author);
    let mut head = format!("revision {} by {author}, {age} ago", entry.revision);
    if !entry.message.is_empty() {
        head += &format!(": {}", output::plain(&entry.message));
    }
    let mut text = format!("{}\n", style.bold(&head));
    text.extend(entry.changes.iter().map(diff::past));
    if !entry.tried.is_empty() {
        text += "tried at few proxies only:\n";
        text.extend(entry.tried.iter().map(diff::past));
    }
    text
}

fn describe_entry(entry: &HistoryEntry) -> String {
    match entry.canary.as_deref() {
        Some("started") => format!("canary of {}", describe_all(&entry.tried)),
        Some("back") => "canary went back".to_owned(),
        Some(_) => format!("canary promoted: {}", describe_all(&entry.changes)),
        None => describe_all(&entry.changes),
    }
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
