//! `status`: how far a revision is, truthfully.

use std::time::{Duration, Instant};

use clap::Args;
use phalanx_client::admin::Admin;
use phalanx_client::api::Status;

use crate::AdminOptions;
use crate::exit::{Failure, Outcome};
use crate::output::{self, Format, Table};

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// One long poll; shorter than the server's bound.
const POLL: Duration = Duration::from_secs(5);

#[derive(Args)]
pub struct Options {
    /// The revision asked about; the newest by default
    #[arg(long)]
    revision: Option<u64>,
    /// End only when every proxy has it
    #[arg(long)]
    wait: bool,
    /// With --wait: give up after this many seconds, such as 30s
    #[arg(long, default_value = "30s", value_parser = crate::demo::parse_duration)]
    timeout: Duration,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    admin: AdminOptions,
}

pub async fn run(options: Options) -> Outcome {
    let client = options.admin.client();
    let status = if options.wait {
        wait(&client, options.revision, options.timeout).await?
    } else {
        client.status(options.revision).await?
    };
    output::show(options.output, &status, || render(&status))?;
    let wrong = !status.refused.is_empty() || !status.quarantined.is_empty();
    if wrong {
        Err(Failure::refused(""))
    } else {
        Ok(())
    }
}

/// Waits for a change that was just stored; that a proxy refuses is printed, and no success.
pub async fn wait_for(client: &Admin, revision: u64) -> Outcome {
    let status = wait(client, Some(revision), DEFAULT_TIMEOUT).await?;
    if status.refused.is_empty() {
        return Ok(());
    }
    output::print(&render(&status))?;
    Err(Failure::refused(""))
}

/// Polls until every proxy has the revision or one has refused it.
async fn wait(client: &Admin, revision: Option<u64>, timeout: Duration) -> Result<Status, Failure> {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let status = client.status_within(revision, left.min(POLL)).await?;
        if status.settled() {
            return Ok(status);
        }
        if left.is_zero() {
            output::print(&render(&status))?;
            return Err(Failure::unreachable(format!(
                "revision {} was not applied everywhere within {timeout:?}",
                status.target_revision
            )));
        }
    }
}

fn render(status: &Status) -> String {
    let style = output::stdout_style();
    let took = status
        .elapsed_ms
        .map(|ms| format!(" in {ms:.1} ms"))
        .unwrap_or_default();
    let alone = if status.proxies == 0 {
        "; none is connected"
    } else {
        ""
    };
    let line = format!(
        "revision {}: applied by {} of {} proxies{took}{alone}",
        status.target_revision, status.applied, status.proxies
    );
    let mut text = if status.complete() {
        style.good(&line)
    } else {
        style.warn(&line)
    } + "\n";
    if let Some(reason) = &status.read_only {
        text += &format!("{} {reason}\n", style.error("read-only:"));
    }
    for node in &status.waiting {
        text += &format!("  waiting for {node}\n");
    }
    if !status.refused.is_empty() {
        let mut table = Table::new(&["REFUSED BY", "RESOURCE", "RULE", "MESSAGE"]);
        for r in &status.refused {
            table.row(vec![
                r.node.clone(),
                r.resource.clone(),
                r.rule.clone(),
                r.message.clone(),
            ]);
        }
        text += &table.render(style);
    }
    for q in &status.quarantined {
        text += &format!(
            "{} {}: {} (since revision {}; a good version before it stays in force)\n",
            style.error("quarantined"),
            q.id,
            q.message,
            q.since_revision
        );
    }
    for h in &status.held {
        text += &format!(
            "{} {}/{}/{}: {}\n",
            style.warn("held"),
            h.namespace,
            h.service,
            h.id,
            h.reason
        );
    }
    text
}
