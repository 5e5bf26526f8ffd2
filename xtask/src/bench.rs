//! The sidecar beside Envoy, haproxy and nginx: all in turn in one run, each alone on core 0, load and backend on core 1.
//!
//! The figure that counts is CPU time of the proxy per request, from the scheduler's own account; these machines are
//! noisy, so rounds alternate and the table gives the median with the extremes, and the ratio to Envoy of the same round.

mod case;
mod control;
mod pair;
mod peer;
mod table;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;

use crate::{setup, shell};
use case::{Case, Sample};
use peer::Peer;

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Options {
    #[command(subcommand)]
    what: Option<What>,
    /// Rounds; each measures every proxy once per case
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of load per measurement
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Only these cases: h1, h2, pair, tcp, tcp-small, tcp-short
    #[arg(long, value_delimiter = ',')]
    case: Vec<String>,
    /// Only these proxies, by name
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Print the table, leave bench/README.md as it is
    #[arg(long)]
    dry_run: bool,
}

#[derive(clap::Subcommand)]
enum What {
    /// Measure the control plane instead: a large fleet, a large registry, etcd's leases beside it
    Control(control::Options),
}

/// One measurement, or why there is none.
pub struct Row {
    pub round: usize,
    pub case: Case,
    pub proxy: &'static str,
    pub sample: Sample,
}

pub fn run(root: &Path, options: &Options) -> anyhow::Result<()> {
    if let Some(What::Control(options)) = &options.what {
        return control::run(root, options);
    }
    setup::run(root, true)?;
    shell::run(&mut shell::cargo(
        root,
        &[
            "build",
            "--release",
            "--package",
            "phalanx",
            "--package",
            "phalanx-testkit",
            "--bins",
        ],
    ))?;
    let work = root.join("target/bench");
    std::fs::create_dir_all(&work).context("cannot make target/bench")?;
    let load = Duration::from_secs(options.seconds.max(1));
    let cases: Vec<Case> = Case::ALL
        .into_iter()
        .filter(|c| options.case.is_empty() || options.case.iter().any(|wanted| wanted == c.name()))
        .collect();
    let mut rows = Vec::new();
    for round in 0..options.rounds {
        for &case in &cases {
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
                let running = proxy
                    .start(root, &work, case)
                    .with_context(|| format!("cannot start {}", proxy.name))?;
                let sample = case
                    .measure(root, &running, load)
                    .with_context(|| format!("{} in case {}", proxy.name, case.name()))?;
                let unit = case.unit();
                println!(
                    "round {} {:3} {:8} {:6.2} CPU-\u{b5}s/{unit} {:9.0} {unit}s/s  {:5.1} MB idle",
                    round + 1,
                    case.name(),
                    proxy.name,
                    sample.cpu_us,
                    sample.per_second,
                    sample.idle_mb
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
    let text = table::render(&rows, options, &versions(root));
    println!("\n{text}");
    if !options.dry_run {
        let path = root.join("bench/README.md");
        let before = std::fs::read_to_string(&path).unwrap_or_default();
        let control = before
            .find(control::HEADING)
            .and_then(|at| before.get(at..));
        let text = format!("{text}\n{}", control.unwrap_or_default());
        std::fs::write(path, text).context("cannot write bench/README.md")?;
    }
    Ok(())
}

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
