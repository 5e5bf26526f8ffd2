//! Battles: latency and memory at 5,000/s, goodput at twice the capacity beside a pool without admission, what dispatching
//! an empty battle costs beside two actor frameworks, and a million replays. Loads are open: they send when it is time to,
//! and latency counts from then.

mod dispatch;
#[path = "../../../crates/game/examples/battle/duel.rs"]
#[allow(dead_code)]
mod duel;
mod load;

use std::time::{Duration, Instant};

use duel::{Duel, GOLDEN, Rules, Teams, golden_cases};
use load::{Contestant, Load, Naive, Phalanx};
use phalanx_game::battle::{Call, prove, rerun};

use crate::{Options, Row};

/// Fights per second of the first case.
const RATE: f64 = 5_000.0;
/// Part of all cores that these fights take.
const UTILISATION: f64 = 0.7;
/// Heroes per team: 1.3 KB of input.
const HEROES: usize = 40;
/// What a caller waits at most where goodput is counted.
const DEADLINE: Duration = Duration::from_millis(50);
/// Of the load where goodput is counted.
const TICK: Duration = Duration::from_millis(1);
/// Offered loads, relative to what all cores can do, among which the peak is looked for.
const TOWARDS_PEAK: [f64; 4] = [0.8, 0.9, 1.0, 1.2];
const REPLAYS: u64 = 1_000_000;

pub fn run(options: &Options) -> anyhow::Result<Vec<Row>> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let cost = UTILISATION * cores as f64 / RATE;
    let rounds = rounds_for(cost);
    let length = Duration::from_secs(options.seconds);
    let fight_us = cost * 1e6;
    let mut at_70 = Cases::new([
        "P99 at 5,000/s, 70 % load",
        "P50 at 5,000/s, 70 % load",
        "memory at 5,000/s",
    ]);
    let mut goodput = Cases::new([
        "goodput at 2 × capacity, of its peak",
        "P99 of what is answered at 2 × capacity",
    ]);
    for _ in 0..options.rounds {
        let load = Load {
            rate: RATE,
            length,
            within: Duration::from_secs(1),
            tick: Duration::ZERO,
            rounds,
            heroes: HEROES,
        };
        let phalanx = Phalanx::start(cores)?;
        let seen = load.run(&phalanx)?;
        phalanx.stop();
        let note = format!(
            "{cores} cores, fights of {fight_us:.0} µs, {:.0} % of all cores used, load included; {} sent, {} refused",
            100.0 * seen.cpu / (length.as_secs_f64() * cores as f64),
            seen.sent,
            seen.refused,
        );
        at_70.add(0, "phalanx", "ms", seen.p99_ms, Some("≤ 10 ms"), &note);
        at_70.add(1, "phalanx", "ms", seen.p50_ms, None, "");
        at_70.add(
            2,
            "phalanx",
            "MB",
            seen.rss_mb,
            Some("≤ 256 MB"),
            "highest resident set during the load, bench included",
        );
        let naive = Naive::start(cores);
        let seen = load.run(&naive)?;
        naive.stop();
        at_70.add(
            0,
            "mutex pool",
            "ms",
            seen.p99_ms,
            None,
            "Mutex<VecDeque> and Condvar, no admission",
        );
        at_70.add(1, "mutex pool", "ms", seen.p50_ms, None, "");

        let capacity = cores as f64 / cost;
        let phalanx = || Ok(Box::new(Phalanx::start(cores)?) as Box<dyn Contestant>);
        let naive = || Ok(Box::new(Naive::start(cores)) as Box<dyn Contestant>);
        type Start<'a> = &'a dyn Fn() -> anyhow::Result<Box<dyn Contestant>>;
        let contestants: [(&'static str, Start<'_>, Option<&str>); 2] = [
            ("phalanx", &phalanx, Some("≥ 95 %")),
            ("mutex pool", &naive, None),
        ];
        for (who, start, bar) in contestants {
            let measure = |of_capacity: f64, length| {
                let load = Load {
                    rate: capacity * of_capacity,
                    length,
                    within: DEADLINE,
                    tick: TICK,
                    rounds,
                    heroes: HEROES,
                };
                let contestant = start()?;
                let seen = load.run(&*contestant)?;
                contestant.stop();
                anyhow::Ok(seen)
            };
            let mut peak = 0.0_f64;
            for of_capacity in TOWARDS_PEAK {
                peak = peak.max(measure(of_capacity, length / 2)?.goodput);
            }
            let seen = measure(2.0, length)?;
            peak = peak.max(seen.goodput);
            let note = format!(
                "answered within {} ms: {:.0}/s, peak {peak:.0}/s",
                DEADLINE.as_millis(),
                seen.goodput,
            );
            goodput.add(0, who, "%", 100.0 * seen.goodput / peak, bar, &note);
            goodput.add(1, who, "ms", seen.p99_ms, None, "");
        }
    }
    let mut rows = at_70.rows;
    rows.append(&mut goodput.rows);
    rows.append(&mut dispatch::run(options)?);
    rows.push(replays(cores)?);
    Ok(rows)
}

fn replays(cores: usize) -> anyhow::Result<Row> {
    let start = Instant::now();
    let hash = prove(&Duel, 1, &Rules::first(), &golden_cases(), REPLAYS, cores)
        .map_err(|difference| anyhow::anyhow!("a replay differs: {difference:?}"))?;
    anyhow::ensure!(
        hash == GOLDEN,
        "release has {hash:#x}, the tests' debug build {GOLDEN:#x}"
    );
    Ok(Row {
        case: "a million replays, same hash",
        who: "phalanx",
        unit: "fights/s",
        samples: vec![REPLAYS as f64 / start.elapsed().as_secs_f64()],
        bar: Some("all the same".to_owned()),
        note: format!("{hash:016x}, which is the debug build's in the tests"),
    })
}

/// Rounds of a fight that takes so many seconds on this machine; nobody falls, so that all fights are as long.
fn rounds_for(seconds: f64) -> u32 {
    let time = |rounds: u32| {
        let input = Teams::sample(1, HEROES, u32::MAX, rounds);
        let times = (0..30).map(|seed| {
            let start = Instant::now();
            let _ =
                std::hint::black_box(rerun(&Duel, 1, &Rules::first(), &Call::new(seed), &input));
            start.elapsed().as_secs_f64()
        });
        let mut times: Vec<f64> = times.collect();
        // The least disturbed one.
        times.sort_by(f64::total_cmp);
        times[0]
    };
    let each = (time(110) - time(10)) / 100.0;
    (seconds / each.max(1e-9)).max(1.0) as u32
}

/// Rows by case and contestant, filled round by round.
struct Cases<const N: usize> {
    names: [&'static str; N],
    rows: Vec<Row>,
}

impl<const N: usize> Cases<N> {
    fn new(names: [&'static str; N]) -> Self {
        Self {
            names,
            rows: Vec::new(),
        }
    }

    fn add(
        &mut self,
        case: usize,
        who: &'static str,
        unit: &'static str,
        sample: f64,
        bar: Option<&str>,
        note: &str,
    ) {
        let case = self.names[case];
        let known = self
            .rows
            .iter_mut()
            .find(|row| row.case == case && row.who == who);
        if let Some(row) = known {
            row.samples.push(sample);
            return;
        }
        self.rows.push(Row {
            case,
            who,
            unit,
            samples: vec![sample],
            bar: bar.map(str::to_owned),
            note: note.to_owned(),
        });
    }
}
