//! Answers to copies of requests, compared with those to the originals. Workers only remember what was answered; a task of
//! the housekeeping runtime compares. An original waits for nothing, and what is too much is left out and counted.

mod book;
mod judge;
mod room;
mod seen;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use phalanx_model::ClusterName;
use phalanx_model::resource::Compare;
use phalanx_telemetry::metrics::{Exposition, Family};
use tokio::sync::mpsc;

use self::book::{Book, Key};
pub use self::book::{Comparison, Sample, Totals};
use self::judge::judge;
pub use self::judge::{Difference, Kind};
use self::room::{Bounds, Room};
use self::seen::SHARE;
pub use self::seen::{End, Seen};

/// Of one sidecar.
pub struct Comparisons {
    due: mpsc::Sender<Box<Due>>,
    work: Mutex<Option<mpsc::Receiver<Box<Due>>>>,
    /// Held while one comparison is written down, and by readers; never by a worker.
    book: Mutex<Book>,
    dropped: AtomicU64,
    bounds: Bounds,
}

/// Two answers that are to be compared.
struct Due {
    key: Key,
    ignore: Arc<Compare>,
    path: String,
    original: Arc<Seen>,
    copy: Seen,
}

/// One original and its copies, on one core.
pub struct Pairing {
    rule: String,
    ignore: Arc<Compare>,
    path: String,
    state: RefCell<State>,
    /// Of those that have not begun.
    room: RefCell<Room>,
}

#[derive(Default)]
struct State {
    original: Option<Arc<Seen>>,
    waiting: Vec<(ClusterName, Seen)>,
}

/// Remembers the answer to the original, or to a copy.
pub struct Side {
    pairing: Rc<Pairing>,
    /// Where the copy went.
    copy: Option<ClusterName>,
    seen: Seen,
}

impl Pairing {
    pub fn original(self: &Rc<Self>) -> Box<Side> {
        self.side(None)
    }

    pub fn copy(self: &Rc<Self>, cluster: &ClusterName) -> Box<Side> {
        self.side(Some(cluster.clone()))
    }

    fn side(self: &Rc<Self>, copy: Option<ClusterName>) -> Box<Side> {
        Box::new(Side {
            pairing: self.clone(),
            copy,
            seen: Seen::within(self.room.borrow_mut().split(SHARE)),
        })
    }

    fn due(&self, mirror: ClusterName, original: &Arc<Seen>, copy: Seen) -> Box<Due> {
        Box::new(Due {
            key: Key {
                rule: self.rule.clone(),
                mirror,
            },
            ignore: self.ignore.clone(),
            path: self.path.clone(),
            original: original.clone(),
            copy,
        })
    }
}

impl Side {
    pub fn seen(&mut self) -> &mut Seen {
        &mut self.seen
    }

    /// The answer is over; once both are, they are compared.
    pub fn end(mut self, end: End, comparisons: &Comparisons) {
        self.seen.end(end);
        let Self {
            pairing,
            copy,
            seen,
        } = self;
        let mut state = pairing.state.borrow_mut();
        match (copy, &state.original) {
            (Some(mirror), Some(original)) => {
                comparisons.push(pairing.due(mirror, original, seen));
            }
            (Some(mirror), None) => state.waiting.push((mirror, seen)),
            (None, _) => {
                let original = Arc::new(seen);
                for (mirror, copy) in std::mem::take(&mut state.waiting) {
                    comparisons.push(pairing.due(mirror, &original, copy));
                }
                state.original = Some(original);
            }
        }
    }
}

impl Default for Comparisons {
    fn default() -> Self {
        let (due, work) = mpsc::channel(DUE_MAX);
        Self {
            due,
            work: Mutex::new(Some(work)),
            book: Mutex::default(),
            dropped: AtomicU64::new(0),
            bounds: Bounds::default(),
        }
    }
}

impl Comparisons {
    /// Begins with a request of this path that goes by the rule of this name and is copied so often. None where there is no
    /// room for so many answers; that is counted.
    pub fn pairing(
        &self,
        rule: &str,
        ignore: &Arc<Compare>,
        path: &str,
        copies: usize,
    ) -> Option<Rc<Pairing>> {
        let Some(room) = self.bounds.take(SHARE.saturating_mul(copies + 1)) else {
            self.dropped.fetch_add(copies as u64, Ordering::Relaxed);
            return None;
        };
        Some(Rc::new(Pairing {
            rule: rule.to_owned(),
            ignore: ignore.clone(),
            path: path.chars().take(PATH_MAX).collect(),
            state: RefCell::default(),
            room: RefCell::new(room),
        }))
    }

    fn push(&self, due: Box<Due>) {
        if self.due.try_send(due).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Compares for as long as it is polled; once.
    pub async fn run(self: Arc<Self>) {
        let work = self
            .work
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(mut work) = work else {
            return;
        };
        while let Some(due) = work.recv().await {
            self.compare(*due);
            tokio::task::yield_now().await;
        }
    }

    fn compare(&self, due: Due) {
        let found = judge(&due.original, &due.copy, &due.ignore);
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let time_ms = now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(0));
        let times = (due.original.duration_us(), due.copy.duration_us());
        let is_known = self.book().add(due.key, due.path, time_ms, times, found);
        if !is_known {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them, by rule and mirror.
    pub fn all(&self) -> Vec<Comparison> {
        self.book().all()
    }

    pub fn write(&self, out: &mut Exposition) {
        let all = self.all();
        let dropped = self.dropped.load(Ordering::Relaxed);
        if all.is_empty() && dropped == 0 {
            return;
        }
        let mut compared = out.family(&COMPARED);
        for comparison in &all {
            let totals = &comparison.totals;
            let mirror = comparison.mirror.to_string();
            for (result, count) in [
                ("same", totals.same()),
                ("different", totals.different),
                ("unanswered", totals.unanswered),
            ] {
                let labels = [
                    ("route", comparison.rule.as_str()),
                    ("mirror", mirror.as_str()),
                    ("result", result),
                ];
                compared.sample(&labels, count);
            }
        }
        let mut differences = out.family(&DIFFERENCES);
        for comparison in &all {
            for (kind, count) in Kind::ALL.into_iter().zip(comparison.totals.kinds) {
                let labels = [("route", comparison.rule.as_str()), ("kind", kind.as_str())];
                differences.sample(&labels, count);
            }
        }
        out.family(&DROPPED).sample(&[], dropped);
    }
}

/// Answers that wait to be compared.
const DUE_MAX: usize = 256;
/// Characters.
const PATH_MAX: usize = 256;

const COMPARED: Family = Family::counter(
    "phalanx_mirror_compared_total",
    "Answers to copies of requests, by whether they are as the original's.",
);
const DIFFERENCES: Family = Family::counter(
    "phalanx_mirror_differences_total",
    "Answers to copies that differ from the original's, by what differs; one may differ in several ways.",
);
const DROPPED: Family = Family::counter(
    "phalanx_mirror_compare_dropped_total",
    "Answers that were not compared, because there were too many.",
);

#[cfg(test)]
mod tests;
