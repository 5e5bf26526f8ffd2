//! How late a worker's own loop is: a short sleep that ends late has waited behind everything else of this core. Measured
//! only while somebody sheds by it.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

thread_local! {
    static LAG_NS: Cell<u64> = const { Cell::new(0) };
}

static WANTED: AtomicUsize = AtomicUsize::new(0);

/// Keeps workers measuring while it is held.
#[derive(Debug)]
pub struct Wanted(());

impl Default for Wanted {
    fn default() -> Self {
        WANTED.fetch_add(1, Ordering::Relaxed);
        Self(())
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        WANTED.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Of this worker, in ns; 0 on other threads.
#[inline]
pub fn lag_ns() -> u64 {
    LAG_NS.with(Cell::get)
}

/// Runs on a worker as long as that does.
pub async fn watch() {
    loop {
        if WANTED.load(Ordering::Relaxed) == 0 {
            LAG_NS.with(|lag| lag.set(0));
            tokio::time::sleep(UNWANTED_LOOK).await;
            continue;
        }
        let slept = Instant::now();
        tokio::time::sleep(PAUSE).await;
        let late = slept.elapsed().saturating_sub(PAUSE + GRAIN);
        let late = u64::try_from(late.as_nanos()).unwrap_or(u64::MAX);
        LAG_NS.with(|lag| lag.set(smoothed(lag.get(), late)));
    }
}

/// One late wake-up is no overload.
fn smoothed(before: u64, late: u64) -> u64 {
    before - before / 4 + late / 4
}

const PAUSE: Duration = Duration::from_millis(10);
/// tokio's clock has whole milliseconds.
const GRAIN: Duration = Duration::from_millis(1);
const UNWANTED_LOOK: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn busy_loop_is_late_and_recovers() {
        let _wanted = Wanted::default();
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                tokio::task::spawn_local(watch());
                tokio::time::sleep(Duration::from_millis(50)).await;
                for _ in 0..6 {
                    std::thread::sleep(Duration::from_millis(60));
                    tokio::task::yield_now().await;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                assert!(lag_ns() > 10_000_000, "{}", lag_ns());
                let calm = async {
                    while lag_ns() > 5_000_000 {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                };
                tokio::time::timeout(Duration::from_secs(20), calm)
                    .await
                    .unwrap();
            })
            .await;
    }
}
