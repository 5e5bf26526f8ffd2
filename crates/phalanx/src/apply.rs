//! `apply`, `delete` and `diff`: one call, one transaction.

use std::path::PathBuf;

use std::time::Duration;

use clap::Args;
use phalanx_client::admin::Admin;
use phalanx_client::api::{
    ApplyRequest, ApplyResponse, CanaryTerms, Change, ChangeAction, DeleteRequest, DocumentRef,
};

use crate::exit::{Failure, Outcome};
use crate::output::{self, Format};
use crate::{AdminOptions, NamespaceOptions, canary, diff, files, get, lint, status};

#[derive(Args)]
pub struct Options {
    /// File, folder, or - for standard input; may be repeated
    #[arg(short, long = "file", required = true, value_name = "FILE|DIR|-")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    change: ChangeOptions,
    /// End only when every proxy has it; with --canary, when it is decided
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    canary: CanaryOptions,
}

#[derive(Args)]
pub struct CanaryOptions {
    /// First this many proxies, then all if those bear it, else none
    #[arg(long, value_name = "K|P%")]
    canary: Option<String>,
    /// With --canary: how long they have to bear it
    #[arg(long, requires = "canary", default_value = "30s", value_parser = crate::demo::parse_duration)]
    watch: Duration,
    /// With --canary: failed requests beyond those of the others and of before
    #[arg(long, requires = "canary", default_value = "5%", value_name = "SHARE", value_parser = canary::parse_rate)]
    max_error_rate: f64,
    /// With --canary: failed requests that end it at once
    #[arg(long, requires = "canary", value_name = "COUNT")]
    max_errors: Option<u64>,
}

impl CanaryOptions {
    pub fn terms(self) -> Option<CanaryTerms> {
        Some(CanaryTerms {
            first: self.canary?,
            watch_ms: u64::try_from(self.watch.as_millis()).unwrap_or(u64::MAX),
            max_error_rate: self.max_error_rate,
            max_errors: self.max_errors,
        })
    }
}

#[derive(Args)]
pub struct DeleteOptions {
    /// Documents of these files
    #[arg(
        short,
        long = "file",
        value_name = "FILE|DIR|-",
        conflicts_with = "kind"
    )]
    files: Vec<PathBuf>,
    /// Kind, such as httproute, and names; or KIND/NAME, several times
    kind: Option<String>,
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    change: ChangeOptions,
    /// End only when every proxy has it; with --canary, when it is decided
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    canary: CanaryOptions,
}

#[derive(Args)]
pub struct DiffOptions {
    #[arg(short, long = "file", required = true, value_name = "FILE|DIR|-")]
    files: Vec<PathBuf>,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    namespace: NamespaceOptions,
    #[command(flatten)]
    admin: AdminOptions,
}

#[derive(Args)]
struct ChangeOptions {
    /// Check and show, change nothing
    #[arg(long)]
    dry_run: bool,
    /// Refuse unless the configuration is at this revision
    #[arg(long, value_name = "REVISION")]
    expect: Option<u64>,
    /// Why, for the history
    #[arg(short, long)]
    message: Option<String>,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    namespace: NamespaceOptions,
    #[command(flatten)]
    admin: AdminOptions,
}

pub async fn apply(options: Options) -> Outcome {
    let change = options.change;
    let files = files::read_all(&options.files)?;
    lint::check_syntax(&files)?;
    let request = ApplyRequest {
        files,
        namespace: change.namespace.namespace,
        expect: change.expect,
        dry_run: change.dry_run,
        author: author(),
        message: change.message,
        canary: options.canary.terms(),
    };
    let client = change.admin.client();
    let answer = client.apply(&request).await?;
    show(change.output, &answer)?;
    arrived(&client, &answer, options.wait).await
}

/// Waits until every proxy has a change, or a canary of it is decided; for a dry run there is nothing to wait for.
pub async fn arrived(client: &Admin, answer: &ApplyResponse, wait: bool) -> Outcome {
    match &answer.canary {
        _ if !wait || answer.dry_run => Ok(()),
        Some(staged) => canary::wait(client, staged).await,
        None => status::wait_for(client, answer.revision).await,
    }
}

pub async fn delete(options: DeleteOptions) -> Outcome {
    let change = options.change;
    if options.files.is_empty() && options.kind.is_none() {
        return Err(Failure::usage("nothing named to delete")
            .hint("phalanx delete KIND NAME, or phalanx delete -f FILE"));
    }
    let named = named(options.kind.as_deref(), &options.names)?;
    let named = named.into_iter().map(|(kind, name)| DocumentRef {
        kind: kind.to_owned(),
        namespace: change.namespace.namespace.clone(),
        name: name.to_owned(),
    });
    let files = files::read_all(&options.files)?;
    lint::check_syntax(&files)?;
    let request = DeleteRequest {
        files,
        ids: named.collect(),
        namespace: change.namespace.namespace.clone(),
        expect: change.expect,
        dry_run: change.dry_run,
        author: author(),
        message: change.message,
        canary: options.canary.terms(),
    };
    let client = change.admin.client();
    let answer = client.delete(&request).await?;
    show(change.output, &answer)?;
    arrived(&client, &answer, options.wait).await
}

/// `KIND NAME…`, or `KIND/NAME…`, as kubectl has it.
fn named<'a>(
    first: Option<&'a str>,
    names: &'a [String],
) -> Result<Vec<(&'a str, &'a str)>, Failure> {
    let Some(first) = first else {
        return Ok(Vec::new());
    };
    if first.contains('/') {
        let all = std::iter::once(first).chain(names.iter().map(String::as_str));
        let pairs = all.map(|word| {
            get::one(word).ok_or_else(|| {
                Failure::usage(format!("`{word}` is no KIND/NAME, as the first one is"))
            })
        });
        return pairs.collect();
    }
    if names.is_empty() {
        let text = format!("which {first}? a kind needs names");
        return Err(Failure::usage(text).hint("phalanx delete KIND NAME, or KIND/NAME"));
    }
    Ok(names.iter().map(|name| (first, name.as_str())).collect())
}

/// Exit code 1 when something would change, as `diff` and `kubectl diff` do.
pub async fn diff(options: DiffOptions) -> Outcome {
    let files = files::read_all(&options.files)?;
    lint::check_syntax(&files)?;
    let request = ApplyRequest {
        files,
        namespace: options.namespace.namespace,
        dry_run: true,
        author: author(),
        ..ApplyRequest::default()
    };
    let answer = options.admin.client().apply(&request).await?;
    let changed: Vec<&Change> = answer
        .changes
        .iter()
        .filter(|c| c.action != ChangeAction::Unchanged)
        .collect();
    output::show(options.output, &answer, || {
        let documents: String = changed
            .iter()
            .map(|change| diff::document(change))
            .collect();
        let effect = answer.effect.as_ref().filter(|_| !changed.is_empty());
        let effect = effect.map(|e| diff::effect(e, output::stdout_style()));
        documents + &effect.unwrap_or_default()
    })?;
    if changed.is_empty() {
        Ok(())
    } else {
        Err(Failure::refused(""))
    }
}

pub fn show(format: Format, answer: &ApplyResponse) -> Outcome {
    // As JSON they stand in the answer.
    if format == Format::Table {
        lint::warn(&answer.warnings);
    }
    output::show(format, answer, || {
        let dry = if answer.dry_run { " (dry run)" } else { "" };
        let line = |c: &Change| {
            format!(
                "{}/{}/{} {}{dry}\n",
                c.kind,
                c.namespace,
                c.name,
                c.action.as_str()
            )
        };
        let lines: String = answer.changes.iter().map(line).collect();
        let style = output::stdout_style();
        let canary = answer.canary.as_ref().map(|c| canary::render(c, style));
        let effect = answer.effect.as_ref().filter(|_| answer.dry_run);
        let effect = effect.map(|e| diff::effect(e, style)).unwrap_or_default();
        format!(
            "{lines}{effect}{}revision {}\n",
            canary.unwrap_or_default(),
            answer.revision
        )
    })
}

/// Who the history names: the user of the shell.
pub fn author() -> String {
    std::env::var("USER")
        .or_else(|_| std::env::var("LOGNAME"))
        .unwrap_or_else(|_| "unknown".to_owned())
}
