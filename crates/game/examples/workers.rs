//! A pool that grows with its load, refuses what it can't hold, shrinks when the load is gone, and drains.
//! `cargo run -p phalanx-game --example workers` (fifteen seconds)

use std::time::Duration;

use phalanx_game::Exposition;
use phalanx_game::workers::{Bounds, PoolOptions, Staffing, StaffingOptions, Workers};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

/// What a caller asks, and where it wants the answer.
struct Allocate {
    players: u32,
    answer: oneshot::Sender<String>,
}

/// The job: here as slow as a fleet that has to be asked for a server.
async fn allocate(job: Allocate) {
    sleep(Duration::from_millis(100)).await;
    // Who has gone wants no answer.
    let _ = job.answer.send(format!("server-{}", job.players % 7));
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let policy = Staffing::try_new(StaffingOptions {
        bounds: Bounds::try_new(2, 60)?,
        // So that the example sees it shrink.
        hold: Duration::from_secs(3),
        ..StaffingOptions::default()
    })?;
    let options = PoolOptions {
        name: "allocate".to_owned(),
        queue_max: 500,
        ..PoolOptions::default()
    };
    let pool = Workers::spawn(options, policy, allocate);

    let (answer, answered) = oneshot::channel();
    pool.submit(Allocate {
        players: 10,
        answer,
    })?;
    println!("the first answer: {}", answered.await?);

    for (rate, seconds) in [(20, 2), (300, 4), (20, 9)] {
        let until = Instant::now() + Duration::from_secs(seconds);
        let mut refused = 0;
        while Instant::now() < until {
            for _ in 0..rate / 20 {
                let (answer, _) = oneshot::channel();
                // Refused: the job comes back, and `why` says how long the queue would take.
                refused += u32::from(
                    pool.submit(Allocate {
                        players: 10,
                        answer,
                    })
                    .is_err(),
                );
            }
            sleep(Duration::from_millis(50)).await;
        }
        let m = pool.metrics();
        println!(
            "{rate:>4} jobs/s: {:>2} workers ({}), {} waiting, P95 {:.0} ms, {refused} refused",
            m.wanted,
            m.reason.as_str(),
            m.queue,
            m.latency_p95_ms
        );
    }

    let drained = pool.drain(Duration::from_secs(5)).await;
    println!("drained; {} jobs were not begun", drained.unstarted.len());
    let mut out = Exposition::new();
    pool.write(&mut out);
    print!("{}", out.finish());
    Ok(())
}
