//! `rollout`: how far the new version of a service is, and orders by hand.

use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use phalanx_client::admin::Admin;
use phalanx_client::api::{
    RolloutEvent, RolloutMeasurement, RolloutOrder, RolloutView, VersionFigures,
};

use crate::exit::{Failure, Outcome};
use crate::output::{self, Format, Style, Table};
use crate::{AdminOptions, NamespaceOptions, status};

#[derive(Args)]
#[command(
    after_help = "Exit codes of `status --wait`: 0 promoted, 1 rolled back, 4 neither in time or not reachable."
)]
pub struct Options {
    #[command(subcommand)]
    act: Act,
}

#[derive(Subcommand)]
enum Act {
    /// List rollouts and how far each is
    List(ListOptions),
    /// Show one: its steps, and what is seen of both versions
    Status(StatusOptions),
    /// Leave it as it is until somebody resumes it
    Pause(OrderOptions),
    /// Go on, past a pause if it is at one
    Resume(OrderOptions),
    /// Give the new version everything, whatever steps are left
    Promote(OrderOptions),
    /// Give the old version everything
    Abort(OrderOptions),
    /// Start one that was rolled back again from its first step
    Retry(OrderOptions),
    /// List what happened to one, with reasons and figures
    History(HistoryOptions),
}

#[derive(Args)]
struct ListOptions {
    /// Of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    namespace: NamespaceOptions,
    #[command(flatten)]
    admin: AdminOptions,
}

#[derive(Args)]
struct StatusOptions {
    name: String,
    /// Show it again whenever it changes, until it is over
    #[arg(short, long)]
    watch: bool,
    /// End only when it is promoted or rolled back
    #[arg(long)]
    wait: bool,
    /// Of --wait and --watch
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = crate::demo::parse_duration)]
    timeout: Duration,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    namespace: NamespaceOptions,
    #[command(flatten)]
    admin: AdminOptions,
}

#[derive(Args)]
struct OrderOptions {
    name: String,
    /// Why, for its history
    #[arg(short, long)]
    message: Option<String>,
    /// Only while its record is at this revision (`rollout status -o json`)
    #[arg(long, value_name = "REVISION")]
    expect: Option<u64>,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    namespace: NamespaceOptions,
    #[command(flatten)]
    admin: AdminOptions,
}

#[derive(Args)]
struct HistoryOptions {
    name: String,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    namespace: NamespaceOptions,
    #[command(flatten)]
    admin: AdminOptions,
}

pub async fn run(options: Options) -> Outcome {
    match options.act {
        Act::List(options) => list(options).await,
        Act::Status(options) => show(options).await,
        Act::Pause(options) => order("pause", options).await,
        Act::Resume(options) => order("resume", options).await,
        Act::Promote(options) => order("promote", options).await,
        Act::Abort(options) => order("abort", options).await,
        Act::Retry(options) => order("retry", options).await,
        Act::History(options) => history(options).await,
    }
}

async fn list(options: ListOptions) -> Outcome {
    let namespace = (!options.all_namespaces).then_some(options.namespace.namespace.as_str());
    let told = options.admin.client().rollouts(namespace).await?;
    output::show(options.output, &told, || {
        if told.rollouts.is_empty() {
            return match namespace {
                Some(namespace) => format!("no rollouts in namespace {namespace} (-A lists all)\n"),
                None => "no rollouts\n".to_owned(),
            };
        }
        let mut table = Table::new(&[
            "NAMESPACE",
            "NAME",
            "PHASE",
            "STEP",
            "WEIGHT",
            "STABLE",
            "CANARY",
            "SINCE",
            "MESSAGE",
        ]);
        for view in &told.rollouts {
            table.row(vec![
                view.namespace.clone(),
                view.name.clone(),
                view.phase.clone(),
                step(view),
                share(view),
                view.stable.clone(),
                view.canary.clone(),
                age(view.since_ms),
                message(view).to_owned(),
            ]);
        }
        table.render(output::stdout_style())
    })
}

async fn show(options: StatusOptions) -> Outcome {
    let client = options.admin.client();
    let (namespace, name) = (&options.namespace.namespace, &options.name);
    let deadline = Instant::now() + options.timeout;
    let mut away = status::Away::default();
    let mut shown = None;
    loop {
        let view = match options.wait || options.watch {
            true => away.bridge(client.rollout(namespace, name).await)?,
            false => Some(client.rollout(namespace, name).await?),
        };
        if let Some(view) = view {
            let is_over = ["promoted", "rolled-back"].contains(&view.phase.as_str());
            let is_last = is_over || !(options.wait || options.watch);
            let changed = shown.as_ref() != Some(&view);
            if is_last || (options.watch && changed) {
                output::show(options.output, &view, || {
                    render(&view, output::stdout_style())
                })?;
                shown = Some(view.clone());
            }
            if is_last {
                return match options.wait && view.phase == "rolled-back" {
                    true => Err(
                        Failure::refused(format!("rolled back: {}", view.reason)).hint(format!(
                            "`phalanx rollout history {name}` tells what led there"
                        )),
                    ),
                    false => Ok(()),
                };
            }
        }
        if Instant::now() >= deadline {
            return Err(Failure::unreachable(format!(
                "neither promoted nor rolled back within {:?}",
                options.timeout
            ))
            .hint(format!(
                "`phalanx rollout status {name}` shows how far it is"
            )));
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn order(command: &str, options: OrderOptions) -> Outcome {
    let wanted = RolloutOrder {
        command: command.to_owned(),
        author: crate::apply::author(),
        message: options.message,
        expect: options.expect,
    };
    let (namespace, name) = (&options.namespace.namespace, &options.name);
    let client: Admin = options.admin.client();
    let view = client.order_rollout(namespace, name, &wanted).await?;
    output::show(options.output, &view, || {
        format!(
            "Rollout/{}/{} is {}, {} of requests go to {}\n",
            view.namespace,
            view.name,
            view.phase,
            share(&view),
            view.canary
        )
    })
}

async fn history(options: HistoryOptions) -> Outcome {
    let (namespace, name) = (&options.namespace.namespace, &options.name);
    let view = options.admin.client().rollout(namespace, name).await?;
    output::show(options.output, &view.events, || {
        let mut table = Table::new(&[
            "AGE", "ATTEMPT", "EVENT", "STEP", "WEIGHT", "BY", "CANARY", "STABLE", "REASON",
        ]);
        for event in &view.events {
            table.row(row(event));
        }
        table.render(output::stdout_style())
    })
}

fn row(event: &RolloutEvent) -> Vec<String> {
    let figures = event.figures.as_ref();
    let told = |of: Option<&VersionFigures>| of.map_or("-".to_owned(), in_words);
    vec![
        age(event.time_ms),
        event.attempt.to_string(),
        event.event.clone(),
        event.step.to_string(),
        format!("{}%", event.weight),
        event.author.clone(),
        told(figures.map(|figures| &figures.canary)),
        told(figures.map(|figures| &figures.stable)),
        event.reason.clone(),
    ]
}

fn render(view: &RolloutView, style: Style) -> String {
    let head = format!(
        "Rollout/{}/{}: {} since {} ({})",
        view.namespace,
        view.name,
        view.phase,
        age(view.since_ms),
        output::plain(&view.reason)
    );
    let head = match view.phase.as_str() {
        "promoted" => style.good(&head),
        "rolled-back" | "paused" => style.warn(&head),
        _ => style.bold(&head),
    };
    let mut text = format!("{head}\n");
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            text += &format!("  {name:<9} {}\n", output::plain(&value));
        }
    };
    line("route", view.target.clone());
    line("stable", view.stable.clone());
    let versions = match view.versions.is_empty() {
        true => String::new(),
        false => format!(" (version {})", view.versions.join(", ")),
    };
    line("canary", format!("{}{versions}", view.canary));
    line("gets", share(view));
    line("now", view.waiting.clone());
    line("driven by", view.plane.clone());
    let mut steps = Table::new(&["", "STEP"]);
    for (index, step) in view.steps.iter().enumerate() {
        let mark = match step.state.as_str() {
            "done" => "✓",
            "current" => "▶",
            _ => " ",
        };
        steps.row(vec![
            mark.to_owned(),
            format!("{}. {}", index + 1, step.step),
        ]);
    }
    text += &steps.render(style);
    text += &figures(view, style);
    for problem in &view.problems {
        let problem = output::plain(problem);
        text += &format!("{} {problem}\n", style.error("problem:"));
    }
    text
}

/// The last measurement, and what was seen since.
fn figures(view: &RolloutView, style: Style) -> String {
    let all = [("last", &view.last), ("since", &view.seen)];
    let all = all
        .into_iter()
        .filter_map(|(name, of)| Some((name, of.as_ref()?)));
    let all: Vec<(&str, &RolloutMeasurement)> = all.collect();
    if all.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&[
        "MEASURED", "VERSION", "REQUESTS", "SUCCESS", "P99", "VERDICT",
    ]);
    for (name, of) in all {
        let verdict = match of.good {
            Some(true) => "good".to_owned(),
            Some(false) => of.why.join("; "),
            None => String::new(),
        };
        for (version, figures, verdict) in [
            ("canary", &of.canary, verdict.as_str()),
            ("stable", &of.stable, ""),
        ] {
            table.row(vec![
                name.to_owned(),
                version.to_owned(),
                figures.requests.to_string(),
                success(figures),
                p99(figures),
                verdict.to_owned(),
            ]);
        }
        if of.compared > 0 {
            let differ = format!("{} of {} copies differ", of.different, of.compared);
            table.row(vec![
                name.to_owned(),
                "mirror".to_owned(),
                of.compared.to_string(),
                String::new(),
                String::new(),
                differ,
            ]);
        }
        for (custom, value) in &of.custom {
            let told = format!("{value}");
            let row = [name, custom, "", "", "", told.as_str()];
            table.row(row.map(str::to_owned).to_vec());
        }
    }
    table.render(style)
}

fn in_words(figures: &VersionFigures) -> String {
    match figures.requests {
        0 => "-".to_owned(),
        requests => format!("{} of {requests}, {}", success(figures), p99(figures)),
    }
}

fn success(figures: &VersionFigures) -> String {
    if figures.requests == 0 {
        return "-".to_owned();
    }
    let failed = figures.failures.min(figures.requests) as f64 / figures.requests as f64;
    format!("{:.2}%", (1.0 - failed) * 100.0)
}

fn p99(figures: &VersionFigures) -> String {
    let told = figures.p99_ms.map(|ms| format!("{ms:.1}ms"));
    told.unwrap_or_else(|| "-".to_owned())
}

fn step(view: &RolloutView) -> String {
    let of = view.steps.len();
    format!("{}/{of}", view.step.min(of))
}

/// What the new version gets.
fn share(view: &RolloutView) -> String {
    let mut shares = vec![format!("{}%", view.weight)];
    if view.mirror > 0.0 {
        shares.push(format!("copies of {}%", view.mirror));
    }
    if !view.lane.is_empty() {
        shares.push(format!("lane {}", view.lane));
    }
    shares.join(", ")
}

fn message(view: &RolloutView) -> &str {
    match view.waiting.as_str() {
        "" => &view.reason,
        waiting => waiting,
    }
}

fn age(time_ms: u64) -> String {
    match time_ms {
        0 => "-".to_owned(),
        time_ms => output::age(time_ms, output::now_ms()),
    }
}

const POLL: Duration = Duration::from_millis(500);
