//! `cargo xtask`: the project's only script. Each verb is a file; none of them is needed to build or run Phalanx.

mod bench;
mod setup;
mod shell;
mod tests;
mod tidy;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Development tasks of Phalanx")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what the tests need: Debian packages (as root) and a real Envoy in target/tools
    Setup {
        /// Also install the peers and load generators of the benchmark
        #[arg(long)]
        bench: bool,
    },
    /// Run everything CI runs: setup, tidy, and the unit, end-to-end and interop suites
    Test {
        /// Only tests whose name contains this
        filter: Option<String>,
    },
    /// Run the long versions: thousands of kills and seeds
    Soak {
        /// Kills and seeds
        #[arg(long, default_value_t = 1000)]
        rounds: u32,
    },
    /// Measure the sidecar beside Envoy, haproxy and nginx and write bench/README.md
    Bench(bench::Options),
    /// Check the shape of the house: module order, foreign types, sizes of files
    Tidy,
    /// Generate crates/proto and the arena's messages again
    Codegen {
        /// Fail when the committed files differ
        #[arg(long)]
        check: bool,
    },
}

fn main() -> std::process::ExitCode {
    match run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let root = shell::root();
    match Arguments::parse().verb {
        Verb::Setup { bench } => setup::run(&root, bench),
        Verb::Test { filter } => tests::run(&root, filter.as_deref()),
        Verb::Soak { rounds } => tests::soak(&root, rounds),
        Verb::Bench(options) => bench::run(&root, &options),
        Verb::Tidy => tidy::run(&root),
        Verb::Codegen { check } => tests::codegen(&root, check),
    }
}
