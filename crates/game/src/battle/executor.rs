//! Threads of their own for fights, one per core, outside the async runtime: a fight that computes for a millisecond delays
//! no socket. An executor is started, takes in kinds of battle ([`super::Kind`]), and is drained. What waits is bounded
//! per core and class, what is in flight by admission; whoever isn't let in is told at once.

mod options;
mod shared;
mod watch;
mod worker;

pub use options::{ClassOptions, Options, StartError};
pub use shared::KINDS_MAX;
pub(crate) use shared::Shared;
pub(crate) use worker::Station;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use phalanx_telemetry::metrics::Exposition;

use super::affinity;
use super::metrics::Metrics;

/// How long a drain waits for threads whose fights were told to stop.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// Between two looks while draining.
const DRAIN_LOOK: Duration = Duration::from_millis(2);

/// Runs fights. Dropped without [`Executor::drain`], it tells running fights to stop, refuses queued ones and lets its
/// threads end by themselves.
pub struct Executor {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What a drain left behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Fights that were still in flight at the end of the time, and got [`super::Reject::Draining`].
    pub cut: u32,
    /// Threads that didn't end, as their fight never checks its context.
    pub stuck: usize,
}

impl Executor {
    pub fn start(options: Options) -> Result<Self, StartError> {
        let options = options.checked()?;
        let processors = if options.pin {
            affinity::allowed().map_err(StartError::Pin)?
        } else {
            Vec::new()
        };
        let mut executor = Self {
            shared: Arc::new(Shared::new(options)),
            threads: Vec::new(),
        };
        let (ready, started) = mpsc::channel::<io::Result<()>>();
        for index in 0..executor.shared.cores.len() {
            let (shared, ready) = (executor.shared.clone(), ready.clone());
            // More threads than processors: they share.
            let processor = index.checked_rem(processors.len());
            let processor = processor.and_then(|at| processors.get(at).copied());
            executor.spawn(&format!("{}-{index}", shared.options.name), move || {
                if shared.options.nice > 0
                    && let Err(error) = affinity::step_back(shared.options.nice)
                {
                    tracing::warn!(%error, "a thread of the executor keeps its priority");
                }
                let _ = ready.send(processor.map_or(Ok(()), affinity::pin));
                // Whoever starts the executor waits until nobody can send any more.
                drop(ready);
                worker::serve(&shared, index);
            })?;
        }
        let shared = executor.shared.clone();
        let name = format!("{}-watch", shared.options.name);
        executor.spawn(&name, move || watch::run(&shared))?;
        drop(ready);
        for pinned in started {
            pinned.map_err(StartError::Pin)?;
        }
        Ok(executor)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), StartError> {
        // A thread's name is cut at 15 bytes by the kernel.
        let builder = thread::Builder::new().name(name.to_owned());
        self.threads
            .push(builder.spawn(run).map_err(StartError::Thread)?);
        Ok(())
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Threads that fight.
    pub fn cores(&self) -> usize {
        self.shared.cores.len()
    }

    pub fn metrics(&self) -> Metrics {
        self.shared.metrics()
    }

    /// Writes [`Executor::metrics`] as families `phalanx_battle_*`.
    pub fn write(&self, out: &mut Exposition) {
        self.metrics().write(out);
    }

    /// From now on nothing is taken in; what is queued is fought to its end.
    pub fn close(&self) {
        self.shared.draining.store(true, Ordering::SeqCst);
    }

    /// Takes nothing in any more, lets what is in flight end for at most `limit`, cuts the rest short, joins all threads.
    pub async fn drain(mut self, limit: Duration) -> Drained {
        self.close();
        let since = Instant::now();
        while self.shared.in_flight() > 0 && since.elapsed() < limit {
            tokio::time::sleep(DRAIN_LOOK).await;
        }
        let cut = self.cut();
        let since = Instant::now();
        while self.running() > 0 && since.elapsed() < STOP_GRACE {
            tokio::time::sleep(DRAIN_LOOK).await;
        }
        self.joined(cut)
    }

    /// As [`Executor::drain`], for a thread outside an async runtime.
    pub fn drain_blocking(mut self, limit: Duration) -> Drained {
        self.close();
        let since = Instant::now();
        while self.shared.in_flight() > 0 && since.elapsed() < limit {
            thread::sleep(DRAIN_LOOK);
        }
        let cut = self.cut();
        let since = Instant::now();
        while self.running() > 0 && since.elapsed() < STOP_GRACE {
            thread::sleep(DRAIN_LOOK);
        }
        self.joined(cut)
    }

    /// Tells all threads to end; returns how many fights that cuts short.
    fn cut(&self) -> u32 {
        let cut = self.shared.in_flight();
        self.shared.draining.store(true, Ordering::SeqCst);
        self.shared.abort.store(true, Ordering::SeqCst);
        for thread in &self.threads {
            thread.thread().unpark();
        }
        cut
    }

    fn running(&self) -> usize {
        (self.threads.iter().filter(|thread| !thread.is_finished())).count()
    }

    fn joined(&mut self, cut: u32) -> Drained {
        let stuck = self.running();
        for thread in self.threads.drain(..) {
            if thread.is_finished() && thread.join().is_err() {
                tracing::error!("a thread of the executor panicked");
            }
        }
        if stuck > 0 {
            tracing::error!(stuck, "fights don't stop, their threads are left behind");
        }
        Drained { cut, stuck }
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.cut();
    }
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Executor({} cores)", self.cores())
    }
}
