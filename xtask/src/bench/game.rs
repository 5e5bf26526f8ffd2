//! The game kit beside its peers: a crate of its own, outside the workspace, for the peers are nobody else's dependencies.

use std::path::Path;

use crate::{setup, shell};

#[derive(clap::Args)]
pub struct Options {
    /// Rounds; each measures everyone once
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of load per measurement
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Only these components: battle, board, workers, matchmaking, search
    #[arg(long, value_delimiter = ',', value_name = "COMPONENTS")]
    case: Vec<String>,
    /// Print the table, leave bench/game/README.md as it is
    #[arg(long)]
    dry_run: bool,
}

pub fn run(root: &Path, options: &Options) -> anyhow::Result<()> {
    setup::run(root, false)?;
    let mut bench = shell::cargo(root, &["run", "--release", "--locked"]);
    bench.args(["--manifest-path", "bench/game/Cargo.toml"]);
    bench.args(["--target-dir", "target/bench-game", "--"]);
    bench.args(["--rounds", &options.rounds.to_string()]);
    bench.args(["--seconds", &options.seconds.to_string()]);
    if !options.case.is_empty() {
        bench.args(["--case", &options.case.join(",")]);
    }
    if !options.dry_run {
        bench.args(["--out", "bench/game/README.md"]);
    }
    shell::run(&mut bench)
}
