//! The sidecar beside Envoy, haproxy and nginx: all in turn in one run, each alone on core 0, load and backend on core 1.
//!
//! The figure that counts is CPU time of the proxy per request, from the scheduler's own account; these machines are
//! noisy, so rounds alternate and the table gives the median with the extremes, and the ratio to Envoy of the same round.

mod case;
mod control;
mod game;
mod idle;
mod load;
mod manifest;
mod pair;
mod peer;
mod running;
mod sample;
mod stages;
mod table;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::{setup, shell};
use case::Case;
use peer::Peer;
use sample::Sample;

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Options {
    #[command(subcommand)]
    what: Option<What>,
    /// Rounds; each measures every proxy once per case
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Rounds of `rate`, `rate-pair` and `flood-*`, of which 99th percentiles are wanted
    #[arg(long, default_value_t = 9)]
    tail_rounds: usize,
    /// Seconds of load per measurement
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Only these cases: h1, h2, h2-64x1, pair; rate, rate-pair (latency at 4,000 requests/s); idle-h1, idle-h2, idle-tls,
    /// idle-tls-h2 (memory); flood-tls, flood-reset, flood-bad; tcp, tcp-small, tcp-short; udp,
    /// udp-sessions (memory), flood-udp; stages
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "CASES",
        verbatim_doc_comment
    )]
    case: Vec<String>,
    /// Only these proxies: direct, phalanx, envoy, haproxy, nginx
    #[arg(long, value_delimiter = ',', value_name = "PROXIES")]
    only: Vec<String>,
    /// Print the table, leave bench/README.md as it is
    #[arg(long)]
    dry_run: bool,
    /// Take the binaries in target/dist as they are
    #[arg(long)]
    no_build: bool,
}

#[derive(clap::Subcommand)]
enum What {
    /// Measure the control plane instead: a large fleet, a large registry, etcd's leases beside it
    Control(control::Options),
    /// Measure the game kit beside ractor, kameo and Redis and write bench/game/README.md
    Game(game::Options),
}

/// One measurement.
pub struct Row {
    pub round: usize,
    pub case: &'static Case,
    pub proxy: &'static str,
    pub sample: Sample,
}

pub fn run(root: &Path, options: &Options) -> anyhow::Result<()> {
    match &options.what {
        Some(What::Control(options)) => return control::run(root, options),
        Some(What::Game(options)) => return game::run(root, options),
        None => {}
    }
    let known = |name: &String| name == stages::NAME || case::ALL.iter().any(|c| c.name == name);
    if let Some(unknown) = options.case.iter().find(|name| !known(name)) {
        bail!("there is no case `{unknown}`");
    }
    let wanted = |name: &str| options.case.is_empty() || options.case.iter().any(|c| c == name);
    if !options.no_build {
        setup::run(root, true)?;
        build(root)?;
    }
    let work = root.join("target/bench");
    std::fs::create_dir_all(&work).context("cannot make target/bench")?;
    let cases: Vec<&Case> = case::ALL.iter().filter(|c| wanted(c.name)).collect();
    // First, for it has to be built.
    let stages = match wanted(stages::NAME) {
        true => Some(stages::measure(root)?),
        false => None,
    };
    let (rows, missing) = measure(root, &work, &cases, options)?;
    let path = root.join("bench/README.md");
    let before = std::fs::read_to_string(&path).unwrap_or_default();
    let versions = versions(root);
    let text = table::render(&rows, stages.as_deref(), options, &versions, &before);
    println!("\n{text}");
    if !options.dry_run {
        let control = before
            .find(control::HEADING)
            .and_then(|at| before.get(at..));
        let text = format!("{text}\n{}", control.unwrap_or_default());
        std::fs::write(path, text).context("cannot write bench/README.md")?;
    }
    if !missing.is_empty() {
        bail!("without a figure:\n{}", missing.join("\n"));
    }
    Ok(())
}

fn build(root: &Path) -> anyhow::Result<()> {
    let packages = ["--package", "phalanx", "--package", "phalanx-testkit"];
    let mut cargo = shell::cargo(root, &["build", "--profile", "dist", "--bins"]);
    shell::run(cargo.args(packages))
}

/// And what could not be measured, with the reasons: hours of figures are not thrown away for one.
fn measure(
    root: &Path,
    work: &Path,
    cases: &[&'static Case],
    options: &Options,
) -> anyhow::Result<(Vec<Row>, Vec<String>)> {
    let time = Duration::from_secs(options.seconds.max(1));
    let rounds_of = |case: &Case| match case.is_about_tails() {
        true => options.tail_rounds,
        // Memory is what it is.
        false if case.is_idle() => options.rounds.min(IDLE_ROUNDS),
        false => options.rounds,
    };
    let (begun, mut rows, mut missing) = (Instant::now(), Vec::new(), Vec::new());
    let rounds = cases.iter().map(|case| rounds_of(case)).max();
    for round in 0..rounds.unwrap_or_default() {
        for case in cases.iter().filter(|case| round < rounds_of(case)) {
            let backend = case.start_backend(root)?;
            let mut order: Vec<&Peer> = peer::ALL
                .iter()
                .filter(|p| p.takes(case))
                .filter(|p| options.only.is_empty() || options.only.iter().any(|o| o == p.name))
                .collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for proxy in order {
                let measured = proxy
                    .start(root, work, case)
                    .context("cannot start it")
                    .and_then(|running| case.measure(root, &running, time));
                let sample = match measured {
                    Ok(sample) => sample,
                    Err(error) => {
                        let round = round + 1;
                        let told =
                            format!("{}, {}, round {round}: {error:#}", case.name, proxy.name);
                        println!("no figure: {told}");
                        missing.push(told);
                        continue;
                    }
                };
                let figures = sample.0.iter();
                let figures = figures.map(|f| format!("{} {:.*}", f.name, f.digits, f.value));
                println!(
                    "{:5}s round {} {:11} {:8} {}",
                    begun.elapsed().as_secs(),
                    round + 1,
                    case.name,
                    proxy.name,
                    figures.collect::<Vec<_>>().join(", ")
                );
                rows.push(Row {
                    round,
                    case,
                    proxy: proxy.name,
                    sample,
                });
            }
            drop(backend);
        }
    }
    Ok((rows, missing))
}

const IDLE_ROUNDS: usize = 3;

fn versions(root: &Path) -> Vec<(&'static str, String)> {
    let first_line = |program: &Path, flag: &str| {
        let output = Command::new(program).arg(flag).output();
        let text = output
            .map(|o| [o.stdout, o.stderr].concat())
            .unwrap_or_default();
        String::from_utf8_lossy(&text)
            .lines()
            .find(|l| !l.trim().is_empty())
            .unwrap_or("unknown")
            .trim()
            .to_owned()
    };
    // Envoy begins with the path it was started by.
    let envoy = first_line(&setup::envoy(root), "--version");
    let envoy = envoy
        .split_once("version: ")
        .map_or(envoy.clone(), |(_, version)| version.to_owned());
    vec![
        ("envoy", envoy),
        ("haproxy", first_line(Path::new("haproxy"), "-v")),
        ("nginx", first_line(Path::new("/usr/sbin/nginx"), "-v")),
        ("kernel", first_line(Path::new("uname"), "-sr")),
    ]
}
