//! The elastic pool: the default policy beside the rule of two thresholds, on the same load. In the simulator the rounds are seeds,
//! and the jobs of a round are the same for both; live they take turns on one runtime.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use phalanx_game::dice::Dice;
use phalanx_game::workers::simulate::scenario::Named;
use phalanx_game::workers::simulate::{Comparison, Outcome, Service};
use phalanx_game::workers::{Policy, PoolOptions, Staffing, Thresholds, Workers};

use crate::{Options, Row};

const MS: Duration = Duration::from_millis(1);
/// The rule of two thresholds first acts after ten seconds; a shorter run would show nothing of it.
const LIVE_SECONDS_MIN: u64 = 15;
const LIVE_LOW: f64 = 150.0;
const LIVE_HIGH: f64 = 1000.0;

pub fn run(options: &Options) -> anyhow::Result<Vec<Row>> {
    let mut rows = step(options)?;
    rows.extend(constant(options)?);
    rows.extend(live(options)?);
    Ok(rows)
}

fn compare(
    name: &str,
    service: fn(Duration) -> Service,
    rounds: u32,
) -> anyhow::Result<Vec<Comparison>> {
    let named = Named::find(name).ok_or_else(|| anyhow::anyhow!("no load `{name}`"))?;
    let service = service(named.service.mean());
    let seeds = 1..=u64::from(rounds);
    Ok(seeds
        .map(|seed| named.with(service, seed).compare())
        .collect())
}

fn step(options: &Options) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (case, worker_seconds, service) in [
        (
            "step 150 → 1,000/s, 50 ms (cv 0.25): P99 wait",
            "step 150 → 1,000/s, 50 ms (cv 0.25): worker-seconds",
            Service::Even as fn(Duration) -> Service,
        ),
        (
            "step 150 → 1,000/s, 50 ms (cv 1): P99 wait",
            "step 150 → 1,000/s, 50 ms (cv 1): worker-seconds",
            Service::Exponential,
        ),
    ] {
        let runs = compare("step", service, options.rounds)?;
        let wait = |outcome: &Outcome| outcome.wait_p99.as_secs_f64() * 1e3;
        rows.extend(both(case, "ms", &runs, wait, "≤ 1/100 of the thresholds'"));
        let cost = |outcome: &Outcome| outcome.worker_s;
        rows.extend(both(
            worker_seconds,
            "worker-s",
            &runs,
            cost,
            "≤ 1.1 × the thresholds'",
        ));
    }
    Ok(rows)
}

fn constant(options: &Options) -> anyhow::Result<Vec<Row>> {
    let runs = compare("constant", Service::Even, options.rounds)?;
    let turns = |outcome: &Outcome| outcome.turns_in_ten_minutes(Duration::ZERO) as f64;
    let mut rows = both(
        "constant 1,000/s: turns in 10 min",
        "turns",
        &runs,
        turns,
        "≤ 2",
    );
    let cost = |outcome: &Outcome| outcome.worker_s;
    rows.extend(both(
        "constant 1,000/s: worker-seconds of 15 min",
        "worker-s",
        &runs,
        cost,
        "",
    ));
    Ok(rows)
}

/// A row for each policy; the bar is the default's.
fn both(
    case: &'static str,
    unit: &'static str,
    runs: &[Comparison],
    figure: impl Fn(&Outcome) -> f64,
    bar: &str,
) -> Vec<Row> {
    let row = |who, samples, bar| Row {
        case,
        who,
        unit,
        samples,
        bar,
        note: "simulated; rounds are seeds".to_owned(),
    };
    let staffing = runs.iter().map(|run| figure(&run.staffing)).collect();
    let thresholds = runs.iter().map(|run| figure(&run.thresholds)).collect();
    vec![
        row(
            "phalanx",
            staffing,
            (!bar.is_empty()).then(|| bar.to_owned()),
        ),
        row("two thresholds", thresholds, None),
    ]
}

fn live(options: &Options) -> anyhow::Result<Vec<Row>> {
    let seconds = options.seconds.max(LIVE_SECONDS_MIN);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let (mut staffing, mut thresholds) = (Vec::new(), Vec::new());
    for round in 0..options.rounds {
        let seed = u64::from(round);
        staffing.push(runtime.block_on(live_step(Staffing::default(), seconds, seed))?);
        thresholds.push(runtime.block_on(live_step(Thresholds::default(), seconds, seed))?);
    }
    let row = |who, samples| Row {
        case: "live, step 150 → 1,000/s after a third of the run, 50 ms: P99 wait",
        who,
        unit: "ms",
        samples,
        bar: None,
        note: format!("open loop, {seconds} s, from the moment a job was due"),
    };
    Ok(vec![
        row("phalanx", staffing),
        row("two thresholds", thresholds),
    ])
}

struct Due(Instant);

/// P99 in ms of the time from when a job was due to when a worker began it.
async fn live_step(policy: impl Policy + 'static, seconds: u64, seed: u64) -> anyhow::Result<f64> {
    let waits = Arc::new(Mutex::new(Histogram::<u64>::new(3)?));
    let seen = Arc::clone(&waits);
    let pool_options = PoolOptions {
        queue_max: 1_000_000,
        seed: Some(seed),
        ..PoolOptions::default()
    };
    let pool = Workers::spawn(pool_options, policy, move |Due(due)| {
        let us = due.elapsed().as_micros() as u64;
        if let Ok(mut waits) = seen.lock() {
            // Grows as needed, and the widest wait here is minutes.
            let _ = waits.record(us.max(1));
        }
        tokio::time::sleep(MS * 50)
    });
    let mut dice = Dice::new(seed);
    let start = Instant::now();
    let (end, rise) = (
        Duration::from_secs(seconds),
        Duration::from_secs(seconds / 3),
    );
    let mut due = Duration::ZERO;
    while due < end {
        let ahead = due.saturating_sub(start.elapsed());
        if ahead > MS {
            tokio::time::sleep(ahead).await;
        }
        pool.submit(Due(start + due))
            .map_err(|refused| anyhow::anyhow!("{refused}"))?;
        let rate = if due < rise { LIVE_LOW } else { LIVE_HIGH };
        let uniform = (dice.below(1 << 53) + 1) as f64 / (1_u64 << 53) as f64;
        due += Duration::from_secs_f64(-uniform.ln() / rate);
    }
    pool.drain(Duration::from_secs(600)).await;
    let waits = waits
        .lock()
        .map_err(|_| anyhow::anyhow!("a job panicked"))?;
    Ok(waits.value_at_quantile(0.99) as f64 / 1e3)
}
