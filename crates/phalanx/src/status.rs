//! `status`: how far a revision is, truthfully.

use std::time::{Duration, Instant};

use clap::Args;
use phalanx_client::admin::{Admin, AdminError};
use phalanx_client::api::{Refusal, ServicesFound, Status};

use crate::AdminOptions;
use crate::canary::{self, Act};
use crate::exit::{Failure, Outcome};
use crate::output::{self, Format, Style, Table};

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// One long poll; shorter than the server's bound.
const POLL: Duration = Duration::from_secs(5);
/// How long a control plane may be away while something is waited for.
const AWAY_MAX: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(200);

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
    /// Give the canary's change to every proxy now
    #[arg(long, conflicts_with_all = ["abort", "wait"])]
    promote: bool,
    /// Take the canary's change back now
    #[arg(long, conflicts_with = "wait")]
    abort: bool,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    admin: AdminOptions,
}

pub async fn run(options: Options) -> Outcome {
    let client = options.admin.client();
    if options.promote {
        canary::decide(&client, Act::Promote, None).await?;
    } else if options.abort {
        canary::decide(&client, Act::Abort, None).await?;
    }
    let (status, ended) = if options.wait {
        wait(&client, options.revision, options.timeout).await?
    } else {
        (client.status(options.revision).await?, Ok(()))
    };
    output::show(options.output, &status, || render(&status))?;
    ended?;
    if is_wrong(&status) {
        Err(Failure::refused(""))
    } else {
        Ok(())
    }
}

/// Whether something is refused, kept out of force, held, or not known.
fn is_wrong(status: &Status) -> bool {
    !status.refused.is_empty()
        || !status.quarantined.is_empty()
        || !status.findings.is_empty()
        || !status.held.is_empty()
        || !status.not_connected.is_empty()
        || !status.late_certificates.is_empty()
        || status.read_only.is_some()
        || status.planes.iter().any(|plane| plane.error.is_some())
}

/// Waits for a change that was just stored; that a proxy refuses is told, and no success.
pub async fn wait_for(client: &Admin, revision: u64) -> Outcome {
    let (status, ended) = wait(client, Some(revision), DEFAULT_TIMEOUT).await?;
    let (of_change, before): (Vec<&Refusal>, Vec<&Refusal>) = status
        .refused
        .iter()
        .filter(|refusal| !status.waiting.contains(&refusal.node))
        .partition(|refusal| refusal.since_revision >= revision);
    for refusal in &before {
        let word = output::stderr_style().warn("warning:");
        let since = refusal.since_revision;
        output::tell(&format!("{word} since revision {since}: {}", told(refusal)));
    }
    for refusal in &of_change {
        output::tell(&told(refusal));
    }
    ended?;
    if let (true, [first, ..]) = (of_change.is_empty(), status.not_connected.as_slice()) {
        let (applied, proxies) = (status.applied, status.proxies);
        let count = status.not_connected.len();
        return Err(Failure::refused(format!(
            "revision {revision} was applied by {applied} of {proxies} proxies: {count} registered without a stream, first: {first}"
        ))
        .hint("it is stored, and they get it when they are back; `phalanx status` lists them"));
    }
    match of_change.as_slice() {
        [] => Ok(()),
        [first, ..] => {
            let count = of_change.len();
            let what = if count == 1 {
                format!("refused: {}", told(first))
            } else {
                format!("refused {count} times, first: {}", told(first))
            };
            Err(Failure::refused(what).hint(
                "who refuses keeps what it had; `phalanx history` and `phalanx rollback` undo the change",
            ))
        }
    }
}

/// Who, why, which rule.
fn told(refusal: &Refusal) -> String {
    let rule = if refusal.rule.is_empty() {
        String::new()
    } else {
        format!(" because of {}", refusal.rule)
    };
    output::plain(&format!(
        "{} refuses {}{rule}: {}",
        refusal.node, refusal.resource, refusal.message
    ))
}

/// A control plane that starts again is waited for.
#[derive(Default)]
pub struct Away(Option<Instant>);

impl Away {
    /// None while nobody answers, which need not last.
    pub fn bridge<T>(&mut self, answer: Result<T, AdminError>) -> Result<Option<T>, Failure> {
        match answer {
            Ok(answer) => {
                self.0 = None;
                Ok(Some(answer))
            }
            Err(error) => {
                let since = *self.0.get_or_insert_with(Instant::now);
                match error.is_unreachable() && since.elapsed() < AWAY_MAX {
                    true => Ok(None),
                    false => Err(error.into()),
                }
            }
        }
    }
}

/// Polls until every proxy has the revision or one has refused it; the last status in any case, and whether that was in time.
async fn wait(
    client: &Admin,
    revision: Option<u64>,
    timeout: Duration,
) -> Result<(Status, Outcome), Failure> {
    let deadline = Instant::now() + timeout;
    let mut away = Away::default();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let answer = client.status_within(revision, left.min(POLL)).await;
        let answer = match left.is_zero() {
            true => Some(answer?),
            false => away.bridge(answer)?,
        };
        let Some(status) = answer else {
            tokio::time::sleep(AGAIN).await;
            continue;
        };
        if status.settled() {
            return Ok((status, Ok(())));
        }
        if left.is_zero() {
            let late = Failure::unreachable(format!(
                "revision {} was applied by {} of {} proxies within {timeout:?}",
                status.target_revision, status.applied, status.proxies
            ))
            .hint(awaited(&status));
            return Ok((status, Err(late)));
        }
    }
}

fn awaited(status: &Status) -> String {
    let planes = status.planes.iter().filter_map(|plane| {
        let error = plane.error.as_ref()?;
        Some(format!(
            "control plane {} can't be asked: {error}",
            plane.name
        ))
    });
    let nodes = status
        .waiting
        .iter()
        .take(3)
        .map(|n| format!("waiting for {n}"));
    let all: Vec<_> = planes.chain(nodes).collect();
    all.join("; ")
}

/// Services that register themselves in an etcd.
fn services(found: &ServicesFound, style: Style) -> String {
    let ServicesFound {
        instances,
        services,
        ignored,
        prefix,
        etcd,
        ..
    } = found;
    let mut text =
        format!("{instances} instances of {services} services found in {etcd} under {prefix}\n");
    if let Some(trouble) = &found.trouble {
        text += &format!("{} {trouble}\n", style.warn("  nothing new is heard:"));
    }
    if *ignored > 0 {
        text += &format!(
            "{}\n",
            style.warn(&format!("  {ignored} keys are no instances"))
        );
    }
    for problem in &found.problems {
        text += &format!(
            "    {}: {}\n",
            problem.key.escape_debug(),
            problem.message.escape_debug()
        );
    }
    text
}

fn render(status: &Status) -> String {
    let style = output::stdout_style();
    let took = status
        .elapsed_ms
        .map(|ms| format!(" in {ms:.1} ms"))
        .unwrap_or_default();
    let alone = if status.proxies == status.not_connected.len() {
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
    if let Some(found) = &status.services {
        text += &services(found, style);
    }
    for plane in &status.planes {
        let share = match &plane.error {
            Some(error) => style.error(&format!("can't be asked: {error}")),
            None => format!("applied by {} of {}", plane.applied, plane.proxies),
        };
        text += &format!(
            "  control plane {} at {}: {share}\n",
            plane.name, plane.admin
        );
    }
    for node in &status.waiting {
        text += &format!("  waiting for {node}\n");
    }
    for node in &status.not_connected {
        text += &format!("  not connected: {node} (registered, but without a stream)\n");
    }
    if let Some(staged) = &status.canary {
        text += &canary::render(staged, style);
    } else if let Some(last) = &status.last_canary {
        text += &canary::render_end(last, style);
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
            output::plain(&q.id),
            output::plain(&q.message),
            q.since_revision
        );
    }
    for f in &status.findings {
        let message = f.message.strip_prefix(&format!("{}: ", f.state));
        text += &format!(
            "{} {}: {} (since revision {})\n",
            style.warn(&f.state),
            f.id,
            output::plain(message.unwrap_or(&f.message)),
            f.since_revision
        );
    }
    if status.unhealthy > 0 {
        text += &format!(
            "{} {} endpoints do not work (phalanx health says which, and why)\n",
            style.warn("unhealthy"),
            status.unhealthy
        );
    }
    for late in &status.late_certificates {
        let now = output::now_ms();
        let what = match late.expired {
            true => style.error("certificate expired"),
            false => style.warn("certificate not renewed"),
        };
        let when = match late.expired {
            true => format!("{} ago", output::age(late.not_after_ms, now)),
            false => format!("{} left", output::age(now, late.not_after_ms)),
        };
        text += &format!(
            "{what} {}: {when}, serial {} (its log says why; `phalanx cert list --expiring 24h`)\n",
            output::plain(&late.node),
            late.serial
        );
    }
    for h in &status.held {
        text += &format!(
            "{} {}/{}/{} since {}: {}\n",
            style.warn("held"),
            h.namespace,
            h.service,
            h.id,
            output::age(h.since_ms, output::now_ms()),
            h.reason
        );
    }
    text
}
