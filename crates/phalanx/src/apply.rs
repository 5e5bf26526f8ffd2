//! `apply`, `delete` and `diff`: one call, one transaction.

use std::path::PathBuf;

use clap::Args;
use phalanx_client::api::{
    ApplyRequest, ApplyResponse, Change, ChangeAction, DeleteRequest, DocumentRef,
};
use serde_json::Value;

use crate::exit::{Failure, Outcome};
use crate::output::{self, Format};
use crate::{AdminOptions, NamespaceOptions, files, lint, status};

#[derive(Args)]
pub struct Options {
    /// File, folder, or - for standard input; may be repeated
    #[arg(short, long = "file", required = true, value_name = "FILE|DIR|-")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    change: ChangeOptions,
    /// End only when every proxy has it
    #[arg(long)]
    wait: bool,
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
    /// Kind, such as httproute
    #[arg(requires = "names")]
    kind: Option<String>,
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    change: ChangeOptions,
}

#[derive(Args)]
pub struct DiffOptions {
    #[arg(short, long = "file", required = true, value_name = "FILE|DIR|-")]
    files: Vec<PathBuf>,
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
    };
    let client = change.admin.client();
    let answer = client.apply(&request).await?;
    show(change.output, &answer)?;
    if options.wait && !change.dry_run {
        status::wait_for(&client, answer.revision).await?;
    }
    Ok(())
}

pub async fn delete(options: DeleteOptions) -> Outcome {
    let change = options.change;
    if options.files.is_empty() && options.kind.is_none() {
        return Err(Failure::usage("nothing named to delete")
            .hint("phalanx delete KIND NAME, or phalanx delete -f FILE"));
    }
    let named = options.names.iter().map(|name| DocumentRef {
        kind: options.kind.clone().unwrap_or_default(),
        namespace: change.namespace.namespace.clone(),
        name: name.clone(),
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
    };
    show(
        change.output,
        &change.admin.client().delete(&request).await?,
    )
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
    for change in &changed {
        output::print(&unified(change))?;
    }
    if changed.is_empty() {
        Ok(())
    } else {
        Err(Failure::refused(""))
    }
}

pub fn show(format: Format, answer: &ApplyResponse) -> Outcome {
    for warning in &answer.warnings {
        eprintln!("{} {warning}", output::stderr_style().warn("warning:"));
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
        format!("{lines}revision {}\n", answer.revision)
    })
}

/// Lines removed and added, with all lines between in order (documents are short).
fn unified(change: &Change) -> String {
    let lines = |value: &Option<Value>| -> Vec<String> {
        value
            .as_ref()
            .map(|v| output::yaml(v).lines().map(str::to_owned).collect())
            .unwrap_or_default()
    };
    let (before, after) = (lines(&change.before), lines(&change.after));
    let name = format!("{}/{}/{}", change.kind, change.namespace, change.name);
    let style = output::stdout_style();
    let mut text = format!(
        "{}\n",
        style.bold(&format!(
            "--- {name}\n+++ {name} ({})",
            change.action.as_str()
        ))
    );
    for step in steps(&before, &after) {
        text.push_str(&match step {
            Step::Same(line) => format!("  {line}\n"),
            Step::Gone(line) => format!("{}\n", style.error(&format!("- {line}"))),
            Step::New(line) => format!("{}\n", style.good(&format!("+ {line}"))),
        });
    }
    text
}

#[derive(Debug, PartialEq)]
enum Step<'a> {
    Same(&'a str),
    Gone(&'a str),
    New(&'a str),
}

/// The longest common subsequence, by the textbook's table.
fn steps<'a>(before: &'a [String], after: &'a [String]) -> Vec<Step<'a>> {
    let mut longest = vec![vec![0u32; after.len() + 1]; before.len() + 1];
    for i in (0..before.len()).rev() {
        for j in (0..after.len()).rev() {
            longest[i][j] = if before[i] == after[j] {
                longest[i + 1][j + 1] + 1
            } else {
                longest[i + 1][j].max(longest[i][j + 1])
            };
        }
    }
    let (mut i, mut j, mut steps) = (0, 0, Vec::new());
    while i < before.len() || j < after.len() {
        if i < before.len() && j < after.len() && before[i] == after[j] {
            steps.push(Step::Same(&before[i]));
            (i, j) = (i + 1, j + 1);
        } else if j == after.len() || (i < before.len() && longest[i + 1][j] >= longest[i][j + 1]) {
            steps.push(Step::Gone(&before[i]));
            i += 1;
        } else {
            steps.push(Step::New(&after[j]));
            j += 1;
        }
    }
    steps
}

/// Who the history names: the user of the shell.
fn author() -> String {
    std::env::var("USER")
        .or_else(|_| std::env::var("LOGNAME"))
        .unwrap_or_else(|_| "unknown".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diff_keeps_what_is_common() {
        let lines = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let (before, after) = (lines("a b c"), lines("a x c"));
        assert_eq!(
            steps(&before, &after),
            [
                Step::Same("a"),
                Step::Gone("b"),
                Step::New("x"),
                Step::Same("c")
            ]
        );
    }
}
