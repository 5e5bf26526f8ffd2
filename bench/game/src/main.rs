//! The game kit beside its peers, in turn in one run: battles beside two actor frameworks and a naive pool, the board
//! beside Redis itself, two policies of the elastic pool on the same load, matchmaking beside what is asked of it.
//! Run by `cargo xtask bench game`, which writes the table into `bench/game/README.md`.

mod battle;
mod board;
mod matchmaking;
mod search_ticks;
mod table;
mod workers;

use std::path::PathBuf;

use anyhow::bail;
use clap::Parser;

#[derive(Parser)]
struct Arguments {
    /// Rounds; each measures everyone once
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of load per measurement
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Only these components: battle, board, workers, matchmaking, search
    #[arg(long, value_delimiter = ',')]
    case: Vec<String>,
    /// Where the table goes; none: it is printed only
    #[arg(long)]
    out: Option<PathBuf>,
}

pub struct Options {
    pub rounds: u32,
    pub seconds: u64,
}

/// One figure of one contestant.
pub struct Row {
    pub case: &'static str,
    pub who: &'static str,
    pub unit: &'static str,
    /// One per round.
    pub samples: Vec<f64>,
    /// What was promised, such as `≤ 10 ms`.
    pub bar: Option<String>,
    pub note: String,
}

type Component = (&'static str, fn(&Options) -> anyhow::Result<Vec<Row>>);

const COMPONENTS: &[Component] = &[
    ("battle", battle::run),
    ("board", board::run),
    ("workers", workers::run),
    ("matchmaking", matchmaking::run),
    ("search", search_ticks::rows),
];

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let known = |name: &&String| COMPONENTS.iter().any(|(c, _)| c == *name);
    if let Some(unknown) = arguments.case.iter().find(|name| !known(name)) {
        let names: Vec<&str> = COMPONENTS.iter().map(|(name, _)| *name).collect();
        bail!(
            "there is no component `{unknown}`, but {}",
            names.join(", ")
        );
    }
    let options = Options {
        rounds: arguments.rounds.max(1),
        seconds: arguments.seconds.max(1),
    };
    let (mut sections, mut missing) = (Vec::new(), Vec::new());
    for (name, run) in COMPONENTS {
        if !arguments.case.is_empty() && !arguments.case.iter().any(|case| case == name) {
            continue;
        }
        eprintln!("{name}: {} rounds of {} s", options.rounds, options.seconds);
        match run(&options) {
            Ok(rows) => {
                println!("{}", table::section(name, &rows));
                sections.push((*name, rows));
            }
            // Figures of the others are not thrown away for one.
            Err(error) => missing.push(format!("{name}: {error:#}")),
        }
    }
    if let Some(out) = arguments.out {
        std::fs::write(&out, table::page(&sections, &options))?;
    }
    if !missing.is_empty() {
        bail!("without figures:\n{}", missing.join("\n"));
    }
    Ok(())
}
