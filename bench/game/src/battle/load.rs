//! An open load of fights, and the two pools that take it.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use phalanx_game::battle::{Call, Executor, Kind, Options, rerun};
use phalanx_game::dice::Dice;

use super::duel::{Duel, Rules, Teams};

/// Fights that are sent at times of their own, exponentially apart.
pub struct Load {
    /// Per second.
    pub rate: f64,
    pub length: Duration,
    pub within: Duration,
    /// Sends are due at their own times and made at most so much later, together: a load that wakes for each would itself
    /// take a good part of the machine.
    pub tick: Duration,
    pub rounds: u32,
    pub heroes: usize,
}

pub struct Seen {
    pub sent: u64,
    pub refused: u64,
    /// Answered within `Load::within` of the time to send, per second of the load.
    pub goodput: f64,
    /// Of what was answered with a result.
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub rss_mb: f64,
    /// Seconds of processor time of the whole process.
    pub cpu: f64,
}

/// `true`: with a result.
pub type Answer = Pin<Box<dyn Future<Output = bool> + Send>>;

pub trait Contestant: Send + Sync {
    fn send(&self, input: Teams, seed: u64, within: Duration) -> Answer;
    fn stop(&self);
}

#[derive(Default)]
struct Counts {
    refused: u64,
    in_time: u64,
}

impl Load {
    pub fn run<C: Contestant + ?Sized>(&self, contestant: &C) -> anyhow::Result<Seen> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_time()
            .build()?;
        let histogram = Histogram::<u64>::new_with_bounds(1, 600_000_000, 3)?;
        let seen = Arc::new(Mutex::new((histogram, Counts::default())));
        let input = Teams::sample(1, self.heroes, u32::MAX, self.rounds);
        let mut dice = Dice::new(7);
        let (mut sent, mut rss) = (0_u64, 0.0_f64);
        let cpu = cpu_seconds();
        let start = Instant::now();
        let (mut due, mut next_look) = (start, start);
        while due < start + self.length {
            let now = Instant::now();
            if due > now {
                thread::sleep((due - now).max(self.tick));
            }
            if now >= next_look {
                rss = rss.max(rss_mb());
                next_look = now + Duration::from_millis(50);
            }
            // What is left of the caller's time, when the load itself is late.
            let within = self.within.saturating_sub(due.elapsed());
            let answer = contestant.send(input.clone(), sent, within);
            sent += 1;
            let (seen, intended, limit) = (seen.clone(), due, self.within);
            runtime.spawn(async move {
                let won = answer.await;
                let took = intended.elapsed();
                let mut seen = seen.lock().expect("no holder panics");
                if won {
                    let _ = seen.0.record(took.as_micros() as u64);
                    seen.1.in_time += u64::from(took <= limit);
                } else {
                    seen.1.refused += 1;
                }
            });
            let unit = (dice.bits() >> 11) as f64 / (1_u64 << 53) as f64;
            due += Duration::from_secs_f64(-(1.0 - unit).ln() / self.rate);
        }
        // What is under way is answered; what a pool has piled up is not waited for to its end.
        let end = Instant::now() + Duration::from_secs(1);
        while Instant::now() < end {
            let seen = seen.lock().expect("no holder panics");
            if seen.0.len() + seen.1.refused == sent {
                break;
            }
            drop(seen);
            thread::sleep(Duration::from_millis(1));
        }
        let cpu = cpu_seconds() - cpu;
        runtime.shutdown_background();
        let seen = seen.lock().expect("no holder panics");
        let ms = |quantile| seen.0.value_at_quantile(quantile) as f64 / 1e3;
        Ok(Seen {
            sent,
            refused: seen.1.refused,
            goodput: seen.1.in_time as f64 / self.length.as_secs_f64(),
            p50_ms: ms(0.5),
            p99_ms: ms(0.99),
            rss_mb: rss,
            cpu,
        })
    }
}

/// Of this process, user and system.
pub fn cpu_seconds() -> f64 {
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    // SAFETY: a rusage is plain numbers, for which zeroes are a value, and the kernel writes at most its size.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

fn rss_mb() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: f64 = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .unwrap_or(0.0);
    pages * 4_096.0 / 1e6
}

pub struct Phalanx {
    executor: Mutex<Option<Executor>>,
    kind: Kind<Duel>,
}

impl Phalanx {
    pub fn start(cores: usize) -> anyhow::Result<Self> {
        let executor = Executor::start(Options {
            cores,
            ..Options::default()
        })?;
        let kind = executor.register("duel", Duel, 1, Rules::first())?;
        Ok(Self {
            executor: Mutex::new(Some(executor)),
            kind,
        })
    }
}

impl Contestant for Phalanx {
    fn send(&self, input: Teams, seed: u64, within: Duration) -> Answer {
        let fight = self.kind.submit(input, Call::new(seed).within(within));
        Box::pin(async move { fight.await.is_ok() })
    }

    fn stop(&self) {
        if let Some(executor) = self.executor.lock().expect("no holder panics").take() {
            executor.drain_blocking(Duration::from_secs(1));
        }
    }
}

/// What is written in an afternoon: a queue under a mutex, a thread per core, no bound.
pub struct Naive {
    shared: Arc<(Mutex<Queue>, Condvar)>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<(Teams, u64, tokio::sync::oneshot::Sender<bool>)>,
    over: bool,
}

impl Naive {
    pub fn start(cores: usize) -> Self {
        let shared = Arc::<(Mutex<Queue>, Condvar)>::default();
        let threads = (0..cores).map(|_| {
            let shared = shared.clone();
            thread::spawn(move || {
                let rules = Rules::first();
                loop {
                    let mut queue = shared.0.lock().expect("no holder panics");
                    let (input, seed, answer) = loop {
                        if queue.over {
                            return;
                        }
                        match queue.jobs.pop_front() {
                            Some(job) => break job,
                            None => queue = shared.1.wait(queue).expect("no holder panics"),
                        }
                    };
                    drop(queue);
                    let end = rerun(&Duel, 1, &rules, &Call::new(seed), &input);
                    let _ = answer.send(end.is_ok());
                }
            })
        });
        Self {
            threads: Mutex::new(threads.collect()),
            shared: shared.clone(),
        }
    }
}

impl Contestant for Naive {
    fn send(&self, input: Teams, seed: u64, _: Duration) -> Answer {
        let (sender, answer) = tokio::sync::oneshot::channel();
        self.shared
            .0
            .lock()
            .expect("no holder panics")
            .jobs
            .push_back((input, seed, sender));
        self.shared.1.notify_one();
        Box::pin(async move { answer.await.unwrap_or(false) })
    }

    fn stop(&self) {
        self.shared.0.lock().expect("no holder panics").over = true;
        self.shared.1.notify_all();
        for thread in self.threads.lock().expect("no holder panics").drain(..) {
            let _ = thread.join();
        }
    }
}
