use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::time::sleep;

use super::*;
use crate::workers::policy::{Bounds, Sample};
use crate::workers::staffing::Staffing;

const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(3600);

/// The size that the test says.
struct Told(Arc<AtomicU32>);

impl Policy for Told {
    fn wanted(&mut self, sample: &Sample, _now: Duration) -> Wanted {
        let size = self.0.load(Ordering::Relaxed);
        let reason = if size == sample.size {
            Reason::Steady
        } else {
            Reason::Load
        };
        Wanted { size, reason }
    }

    fn bounds(&self) -> Bounds {
        Bounds::try_new(1, 100).unwrap()
    }
}

fn told(size: u32) -> (Arc<AtomicU32>, Told) {
    let told = Arc::new(AtomicU32::new(size));
    (Arc::clone(&told), Told(told))
}

fn options(start: u32) -> PoolOptions {
    PoolOptions {
        start: Some(start),
        seed: Some(1),
        ..PoolOptions::default()
    }
}

/// A pool whose jobs are the time that they take.
fn sleepers(options: PoolOptions, policy: impl Policy + 'static) -> Workers<Duration> {
    Workers::spawn(options, policy, sleep)
}

/// The timer counts in milliseconds.
fn near(time: Duration, to: Duration) -> bool {
    time.abs_diff(to) < Duration::from_millis(100)
}

/// Virtual time goes on until the pool is as it should be.
async fn until<J: Send + 'static>(pool: &Workers<J>, what: impl Fn(&Metrics) -> bool) -> Metrics {
    for _ in 0..100_000 {
        let metrics = pool.metrics();
        if what(&metrics) {
            return metrics;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {:?}", pool.metrics());
}

#[tokio::test(start_paused = true)]
async fn jobs_beyond_the_bound_are_refused_with_an_estimate() {
    let (_, policy) = told(2);
    let bounded = PoolOptions {
        queue_max: 3,
        ..options(2)
    };
    let pool = sleepers(bounded, policy);
    for _ in 0..2 {
        pool.submit(SECOND).unwrap();
    }
    until(&pool, |m| m.counts.done == 2).await;
    assert_eq!(pool.wait(), Some(Duration::ZERO));
    for _ in 0..2 {
        pool.submit(SECOND).unwrap();
    }
    until(&pool, |m| m.busy == 2).await;
    for _ in 0..3 {
        pool.submit(SECOND * 7).unwrap();
    }
    let refused = pool.submit(SECOND * 9).unwrap_err();
    assert_eq!(refused.job, SECOND * 9);
    let Why::Full { queue: 3, wait } = refused.why else {
        panic!("{refused:?}");
    };
    // Four with it, a second each, on two workers.
    assert!(near(wait.unwrap(), SECOND * 2), "{wait:?}");
    assert!(refused.to_string().contains("3 jobs wait already"));
    let drained = pool.drain(LONG).await;
    assert_eq!((drained.unstarted.len(), drained.running), (0, 0));
    let counts = pool.metrics().counts;
    assert_eq!(
        (counts.accepted, counts.done, counts.refused_full),
        (7, 7, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn a_job_that_would_wait_too_long_is_refused() {
    let (_, policy) = told(1);
    let patience = SECOND * 3 + SECOND / 2;
    let patient = PoolOptions {
        wait_max: Some(patience),
        ..options(1)
    };
    let pool = sleepers(patient, policy);
    pool.submit(SECOND).unwrap();
    until(&pool, |m| m.counts.done == 1).await;
    pool.submit(SECOND).unwrap();
    until(&pool, |m| m.busy == 1).await;
    for _ in 0..3 {
        pool.submit(SECOND).unwrap();
    }
    let refused = pool.submit(SECOND).unwrap_err();
    let Why::TooLong { wait, limit } = refused.why else {
        panic!("{refused:?}");
    };
    assert_eq!(limit, patience);
    assert!(near(wait, SECOND * 4), "{wait:?}");
    assert_eq!(pool.metrics().counts.refused_too_long, 1);
}

#[tokio::test(start_paused = true)]
async fn workers_follow_the_policy_and_end_only_after_their_job() {
    let (size, policy) = told(8);
    let pool = sleepers(options(1), policy);
    for _ in 0..8 {
        pool.submit(SECOND * 60).unwrap();
    }
    until(&pool, |m| m.busy == 8).await;
    size.store(2, Ordering::Relaxed);
    let metrics = until(&pool, |m| m.wanted == 2).await;
    assert_eq!((metrics.workers, metrics.busy), (8, 8));
    pool.submit(SECOND).unwrap();
    sleep(SECOND * 30).await;
    assert_eq!(pool.metrics().busy, 8);
    let metrics = until(&pool, |m| m.counts.done == 9).await;
    assert_eq!((metrics.workers, metrics.busy, metrics.queue), (2, 0, 0));
    // Idle ones go at once.
    size.store(1, Ordering::Relaxed);
    until(&pool, |m| m.workers == 1).await;
}

#[tokio::test(start_paused = true)]
async fn who_was_to_end_stays_when_more_are_wanted_again() {
    let (size, policy) = told(6);
    let pool = sleepers(options(6), policy);
    for _ in 0..6 {
        pool.submit(SECOND * 20).unwrap();
    }
    until(&pool, |m| m.busy == 6).await;
    size.store(1, Ordering::Relaxed);
    until(&pool, |m| m.wanted == 1).await;
    size.store(4, Ordering::Relaxed);
    until(&pool, |m| m.wanted == 4).await;
    // Nobody was hired for that.
    assert_eq!(pool.metrics().workers, 6);
    let metrics = until(&pool, |m| m.counts.done == 6).await;
    assert_eq!((metrics.workers, metrics.wanted), (4, 4));
    for _ in 0..40 {
        pool.submit(SECOND).unwrap();
    }
    until(&pool, |m| m.counts.done == 46).await;
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_counted_and_its_worker_kept() {
    let (_, policy) = told(1);
    let pool = Workers::spawn(options(1), policy, |job: u32| {
        assert!(job != 1, "in the call");
        async move {
            sleep(SECOND).await;
            assert!(job != 2, "in the future");
        }
    });
    for job in 0..4 {
        pool.submit(job).unwrap();
    }
    let metrics = until(&pool, |m| m.counts.done + m.counts.panicked == 4).await;
    assert_eq!((metrics.counts.done, metrics.counts.panicked), (2, 2));
    assert_eq!((metrics.workers, metrics.busy), (1, 0));
}

/// Panics as soon as anybody has come.
struct Faulty;

impl Policy for Faulty {
    fn wanted(&mut self, sample: &Sample, _now: Duration) -> Wanted {
        assert!(sample.arrival_rate == 0.0, "a fault of the policy");
        Wanted {
            size: sample.size,
            reason: Reason::Steady,
        }
    }

    fn bounds(&self) -> Bounds {
        Bounds::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_panics_costs_no_job() {
    let pool = sleepers(options(10), Faulty);
    for _ in 0..50 {
        pool.submit(SECOND).unwrap();
        sleep(SECOND / 20).await;
    }
    let drained = pool.drain(LONG).await;
    assert_eq!((drained.unstarted.len(), drained.running), (0, 0));
    assert_eq!(pool.metrics().counts.done, 50);
}

#[test]
fn a_pool_whose_runtime_is_gone_takes_no_jobs() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let pool = runtime.block_on(async {
        let (_, policy) = told(2);
        let pool = sleepers(options(2), policy);
        pool.submit(LONG).unwrap();
        until(&pool, |m| m.busy == 1).await;
        pool
    });
    drop(runtime);
    let refused = pool.submit(SECOND).unwrap_err();
    assert_eq!((refused.why, refused.job), (Why::Draining, SECOND));
    let metrics = pool.metrics();
    assert_eq!((metrics.workers, metrics.counts.panicked), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn no_job_is_lost_or_run_twice_however_the_size_jumps() {
    const JOBS: u64 = 3000;
    for seed in 0..5 {
        let mut dice = Dice::new(seed);
        let (size, policy) = told(5);
        let runs = Arc::new(Mutex::new(BTreeMap::<u64, u32>::new()));
        let seen = Arc::clone(&runs);
        let seeded = PoolOptions {
            seed: Some(seed),
            ..options(5)
        };
        let pool = Workers::spawn(seeded, policy, move |job: u64| {
            *seen.lock().unwrap().entry(job).or_default() += 1;
            async move {
                sleep(Duration::from_millis(job % 37 * 10)).await;
                assert!(!job.is_multiple_of(101), "a job that panics");
            }
        });
        for job in 0..JOBS {
            pool.submit(job).unwrap();
            if dice.chance(1, 8) {
                size.store(1 + dice.below(60) as u32, Ordering::Relaxed);
                sleep(Duration::from_millis(dice.below(200))).await;
            }
        }
        let drained = pool.drain(LONG).await;
        assert_eq!((drained.unstarted.len(), drained.running), (0, 0));
        let runs = runs.lock().unwrap();
        assert_eq!(runs.len() as u64, JOBS);
        assert!(runs.values().all(|&times| times == 1));
        let metrics = pool.metrics();
        assert_eq!(metrics.counts.panicked, JOBS.div_ceil(101));
        assert_eq!(metrics.counts.done + metrics.counts.panicked, JOBS);
        assert_eq!((metrics.workers, metrics.busy), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_hands_back_what_it_had_no_time_for() {
    let (_, policy) = told(2);
    let pool = sleepers(options(2), policy);
    for seconds in 1..=6 {
        pool.submit(SECOND * 10 * seconds).unwrap();
    }
    let drained = pool.drain(SECOND * 15).await;
    // 10 and 20 began at once, 30 after ten seconds.
    let unstarted: Vec<u64> = drained.unstarted.iter().map(Duration::as_secs).collect();
    assert_eq!(unstarted, [40, 50, 60]);
    assert_eq!(drained.running, 2);
    let refused = pool.submit(SECOND).unwrap_err();
    assert_eq!((refused.why, refused.job), (Why::Draining, SECOND));
    let again = pool.drain(LONG).await;
    assert_eq!((again.unstarted.len(), again.running), (0, 0));
    let metrics = pool.metrics();
    assert_eq!((metrics.counts.done, metrics.workers), (3, 0));
    assert_eq!(metrics.counts.refused_draining, 1);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_pool_runs_what_waits() {
    let (_, policy) = told(1);
    let (done, mut ended) = tokio::sync::mpsc::unbounded_channel();
    let pool = Workers::spawn(options(1), policy, move |job: u32| {
        let done = done.clone();
        async move {
            sleep(SECOND).await;
            done.send(job).unwrap();
        }
    });
    for job in 0..3 {
        pool.submit(job).unwrap();
    }
    drop(pool);
    let mut jobs = Vec::new();
    // The channel closes when the last worker and the pool's task are gone.
    while let Some(job) = ended.recv().await {
        jobs.push(job);
    }
    assert_eq!(jobs, [0, 1, 2]);
}

/// Notes when it is asked.
struct Notes(Arc<Mutex<Vec<Duration>>>);

impl Policy for Notes {
    fn wanted(&mut self, sample: &Sample, now: Duration) -> Wanted {
        self.0.lock().unwrap().push(now);
        Wanted {
            size: sample.size,
            reason: Reason::Steady,
        }
    }

    fn bounds(&self) -> Bounds {
        Bounds::default()
    }

    fn every(&self) -> Duration {
        SECOND * 10
    }
}

#[tokio::test(start_paused = true)]
async fn replicas_ask_at_moments_of_their_own() {
    let asked: Vec<Vec<Duration>> = {
        let notes: Vec<_> = (0..4).map(|_| Arc::default()).collect();
        let pools: Vec<_> = notes
            .iter()
            .zip(0..)
            .map(|(note, seed)| {
                let seeded = PoolOptions {
                    seed: Some(seed),
                    ..PoolOptions::default()
                };
                sleepers(seeded, Notes(Arc::clone(note)))
            })
            .collect();
        sleep(SECOND * 60).await;
        drop(pools);
        notes
            .iter()
            .map(|note| note.lock().unwrap().clone())
            .collect()
    };
    let mut first: Vec<Duration> = asked.iter().map(|times| times[0]).collect();
    first.sort_unstable();
    assert!(first.last() < Some(&(SECOND * 11)));
    assert!(
        first.windows(2).all(|pair| pair[1] - pair[0] > SECOND / 10),
        "{first:?}"
    );
    for times in asked {
        let gaps: Vec<Duration> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(
            gaps.iter()
                .all(|gap| gap.abs_diff(TICK) <= TICK / 10 + Duration::from_millis(2))
        );
        assert!(
            gaps.iter().any(|gap| gap.abs_diff(TICK) > TICK / 50),
            "no jitter"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_default_policy_staffs_the_live_pool() {
    let pool = sleepers(options(10), Staffing::default());
    let offer = async |rate: u32, seconds: u32| {
        for _ in 0..seconds * 100 {
            for _ in 0..rate / 100 {
                pool.submit(Duration::from_millis(50)).unwrap();
            }
            sleep(Duration::from_millis(10)).await;
        }
        pool.metrics()
    };
    let calm = offer(100, 20).await;
    assert_eq!((calm.wanted, calm.counts.grown), (10, 0));
    let busy = offer(800, 20).await;
    // 40 busy on average, their root, and what the first seconds' backlog took.
    assert!((46..=80).contains(&busy.wanted), "{busy:?}");
    assert!(busy.queue < 50 && busy.counts.refused_full == 0, "{busy:?}");
    assert!((45.0..70.0).contains(&busy.latency_p95_ms), "{busy:?}");
    let after = offer(100, 90).await;
    assert_eq!(after.wanted, 10, "{after:?}");
    let drained = pool.drain(LONG).await;
    assert_eq!(drained.unstarted.len(), 0);
    let counts = pool.metrics().counts;
    assert_eq!((counts.accepted, counts.done), (27_000, 27_000));
    assert!(counts.grown >= 1 && counts.shrunk >= 1);
}

#[tokio::test(start_paused = true)]
async fn metrics_bear_their_names() {
    let (_, policy) = told(1);
    let named = PoolOptions {
        name: "duel".to_owned(),
        ..options(1)
    };
    let pool = sleepers(named, policy);
    pool.submit(SECOND).unwrap();
    until(&pool, |m| m.counts.done == 1).await;
    for _ in 0..3 {
        pool.submit(SECOND).unwrap();
    }
    until(&pool, |m| m.busy == 1).await;
    let mut out = Exposition::new();
    pool.write(&mut out);
    let text = out.finish();
    for line in [
        "match_request_queue_length{pool=\"duel\"} 2",
        "match_workers{pool=\"duel\"} 1",
        "match_workers_busy{pool=\"duel\"} 1",
        "match_workers_wanted{pool=\"duel\"} 1",
        "match_workers_reason{pool=\"duel\",reason=\"steady\"} 1",
        "match_workers_reason{pool=\"duel\",reason=\"surge\"} 0",
        "match_jobs_accepted_total{pool=\"duel\"} 4",
        "match_jobs_ended_total{pool=\"duel\",outcome=\"done\"} 1",
        "match_jobs_refused_total{pool=\"duel\",reason=\"full\"} 0",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
    let value = |name: &str| -> f64 {
        let line = text.lines().find(|l| l.starts_with(&format!("{name}{{")));
        line.unwrap().rsplit(' ').next().unwrap().parse().unwrap()
    };
    for name in [
        "avg_match_latency_ms",
        "match_latency_p95_ms",
        "match_latency_mean_ms",
    ] {
        assert!(
            (value(name) - 1000.0).abs() < 32.0,
            "{name}: {}",
            value(name)
        );
    }
    assert!(value("match_wait_p95_ms") < 16.0);
}
