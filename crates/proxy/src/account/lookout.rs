//! Who looks at single requests: one access log, and taps that come and go. While nobody does, a request costs one relaxed
//! load. Both sides are bounded: whoever reads too slowly loses lines, which are counted.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arc_swap::ArcSwap;
use phalanx_model::name::Direction;
use phalanx_telemetry::metrics::{Exposition, Family};
use tokio::sync::mpsc;

use super::Sight;
use crate::config::{LogPolicy, Sample};

/// Lines that wait for the writer of the access log.
pub const LOG_QUEUE_MAX: usize = 8_192;
/// Requests that wait for one tap's reader.
pub const TAP_QUEUE_MAX: usize = 256;
/// Taps at once.
pub const TAPS_MAX: usize = 8;

const LOG: u32 = 1;
const TAP: u32 = 2;
/// Some tap wants headers.
const HEADERS: u32 = 4;
const QUERY: u32 = 8;

#[derive(Default)]
pub struct Lookout {
    wanted: AtomicU32,
    log: OnceLock<Log>,
    taps: ArcSwap<Vec<Arc<Tap>>>,
    /// Taken when a tap comes or goes, never by a request.
    changing: Mutex<()>,
    written: AtomicU64,
    log_dropped: AtomicU64,
    tap_dropped: AtomicU64,
}

struct Log {
    lines: SyncSender<Box<Sight>>,
    policy: LogPolicy,
}

/// What a tap wants to see; what is not said does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// A service's name, `NAME` or `NAME.NAMESPACE`, of whoever is called.
    pub service: Option<String>,
    pub direction: Option<Direction>,
    /// Of the canonical path.
    pub path_prefix: Option<String>,
    pub method: Option<String>,
    /// Both included.
    pub status: Option<(u16, u16)>,
    pub grpc_status: Option<u8>,
    pub reason: Option<String>,
    pub colour: Option<String>,
    /// Part of the caller's id.
    pub caller: Option<String>,
    pub slower_than_us: Option<u64>,
    pub errors: bool,
    pub headers: bool,
    pub sample: Option<Sample>,
}

impl Filter {
    pub fn wants(&self, sight: &Sight) -> bool {
        let is = |wanted: &Option<String>, there: &str| {
            wanted.as_deref().is_none_or(|wanted| wanted == there)
        };
        let service = |wanted: &String| {
            sight.cluster.as_ref().is_some_and(|cluster| {
                let service = &cluster.service;
                service.name == *wanted
                    || format!("{}.{}", service.name, service.namespace) == *wanted
            })
        };
        self.service.as_ref().is_none_or(service)
            && self
                .direction
                .is_none_or(|wanted| wanted == sight.direction)
            && self
                .path_prefix
                .as_deref()
                .is_none_or(|prefix| sight.path.starts_with(prefix))
            && is(&self.method, &sight.method)
            && self
                .status
                .is_none_or(|(from, to)| (from..=to).contains(&sight.status))
            && self
                .grpc_status
                .is_none_or(|wanted| sight.grpc_status == Some(wanted))
            && is(&self.reason, sight.reason.map_or("", |r| r.as_str()))
            && is(&self.colour, &sight.colour)
            && self
                .caller
                .as_deref()
                .is_none_or(|part| sight.caller.contains(part))
            && self
                .slower_than_us
                .is_none_or(|least| sight.phases.end_us >= least)
            && (!self.errors || sight.is_error())
            && self
                .sample
                .is_none_or(|share| share.takes(&sight.trace_id, || fastrand::u64(..)))
    }
}

struct Tap {
    filter: Filter,
    seen: mpsc::Sender<Arc<Sight>>,
    dropped: Arc<AtomicU64>,
}

/// A tap's reader; dropped, the tap is gone.
pub struct Tapped {
    pub seen: mpsc::Receiver<Arc<Sight>>,
    /// Requests that this tap lost.
    pub dropped: Arc<AtomicU64>,
    tap: Arc<Tap>,
    lookout: Arc<Lookout>,
}

impl Drop for Tapped {
    fn drop(&mut self) {
        self.lookout
            .change(|taps| taps.retain(|tap| !Arc::ptr_eq(tap, &self.tap)));
    }
}

/// What is to be remembered of a request that comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted(u32);

impl Wanted {
    #[inline]
    pub fn nothing(self) -> bool {
        self.0 == 0
    }

    pub fn query(self) -> bool {
        self.0 & QUERY != 0
    }

    pub fn headers(self) -> bool {
        self.0 & HEADERS != 0
    }
}

impl Lookout {
    #[inline]
    pub fn wanted(&self) -> Wanted {
        Wanted(self.wanted.load(Ordering::Relaxed))
    }

    /// Opens the access log. None when it is open already.
    pub fn log(&self, policy: LogPolicy) -> Option<Receiver<Box<Sight>>> {
        let (lines, receiver) = sync_channel(LOG_QUEUE_MAX);
        self.log.set(Log { lines, policy }).ok()?;
        let query = if policy.query { QUERY } else { 0 };
        self.wanted.fetch_or(LOG | query, Ordering::Relaxed);
        Some(receiver)
    }

    /// A new tap. None when there are [`TAPS_MAX`].
    pub fn tap(self: &Arc<Self>, filter: Filter) -> Option<Tapped> {
        let (sender, seen) = mpsc::channel(TAP_QUEUE_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        let tap = Arc::new(Tap {
            filter,
            seen: sender,
            dropped: dropped.clone(),
        });
        let mut taken = false;
        self.change(|taps| {
            taken = taps.len() < TAPS_MAX;
            if taken {
                taps.push(tap.clone());
            }
        });
        taken.then(|| Tapped {
            seen,
            dropped,
            tap,
            lookout: self.clone(),
        })
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Arc<Tap>>)) {
        let _guard = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taps = Vec::clone(&self.taps.load());
        change(&mut taps);
        let headers = taps.iter().any(|tap| tap.filter.headers);
        let bits = [(TAP, !taps.is_empty()), (HEADERS, headers)];
        self.taps.store(Arc::new(taps));
        for (bit, is_set) in bits {
            match is_set {
                true => self.wanted.fetch_or(bit, Ordering::Relaxed),
                false => self.wanted.fetch_and(!bit, Ordering::Relaxed),
            };
        }
    }

    /// Once a request's trace is known: whether it need be remembered any longer.
    pub fn keeps(&self, sight: &mut Sight) -> bool {
        let wanted = self.wanted.load(Ordering::Relaxed);
        if let Some(log) = self.log.get() {
            sight.sampled = log
                .policy
                .sample
                .takes(&sight.trace_id, || fastrand::u64(..));
        }
        sight.sampled || wanted & TAP != 0 || self.log.get().is_some_and(|log| log.policy.errors)
    }

    /// A request is over.
    pub fn tell(&self, sight: Box<Sight>) {
        let wanted = self.wanted.load(Ordering::Relaxed);
        if wanted & TAP != 0 {
            self.tell_taps(&sight);
        }
        let logged = |log: &&Log| sight.sampled || (log.policy.errors && sight.is_error());
        let Some(log) = self.log.get().filter(logged) else {
            return sight.put();
        };
        if log.lines.try_send(sight).is_err() {
            self.log_dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn tell_taps(&self, sight: &Sight) {
        let mut shared: Option<Arc<Sight>> = None;
        for tap in self.taps.load().iter() {
            if !tap.filter.wants(sight) {
                continue;
            }
            let seen = shared.get_or_insert_with(|| Arc::new(sight.clone()));
            if tap.seen.try_send(seen.clone()).is_err() {
                tap.dropped.fetch_add(1, Ordering::Relaxed);
                self.tap_dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Lines of the access log reached its file.
    pub fn wrote(&self, lines: u64) {
        self.written.fetch_add(lines, Ordering::Relaxed);
    }

    /// Lines of the access log could not be written.
    pub fn lost(&self, lines: u64) {
        self.log_dropped.fetch_add(lines, Ordering::Relaxed);
    }

    pub fn write(&self, out: &mut Exposition) {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        if self.log.get().is_some() {
            out.family(&LINES).sample(&[], of(&self.written));
            out.family(&LOST).sample(&[], of(&self.log_dropped));
        }
        out.family(&TAPS).sample(&[], self.taps.load().len() as u64);
        out.family(&TAP_LOST).sample(&[], of(&self.tap_dropped));
    }
}

const LINES: Family = Family::counter(
    "phalanx_access_log_lines_total",
    "Lines written to the access log.",
);
const LOST: Family = Family::counter(
    "phalanx_access_log_dropped_total",
    "Lines that the access log lost, because its writer was too slow or its file could not be written.",
);
const TAPS: Family = Family::gauge("phalanx_taps", "Taps that listen.");
const TAP_LOST: Family = Family::counter(
    "phalanx_tap_dropped_total",
    "Requests that taps lost, because their readers were too slow.",
);

#[cfg(test)]
mod tests {
    use super::*;

    fn sight(status: u16) -> Box<Sight> {
        Box::new(Sight {
            status,
            path: "/cart/7".into(),
            ..Sight::default()
        })
    }

    #[test]
    fn nobody_listens_and_nothing_is_wanted() {
        let lookout = Arc::new(Lookout::default());
        assert!(lookout.wanted().nothing());
        let tap = lookout.tap(Filter::default()).unwrap();
        assert!(!lookout.wanted().nothing() && !lookout.wanted().headers());
        drop(tap);
        assert!(lookout.wanted().nothing());
    }

    #[test]
    fn a_tap_gets_what_it_asks_for_and_counts_what_it_loses() {
        let lookout = Arc::new(Lookout::default());
        let filter = Filter {
            status: Some((500, 599)),
            path_prefix: Some("/cart".into()),
            ..Filter::default()
        };
        let mut tap = lookout.tap(filter).unwrap();
        lookout.tell(sight(200));
        for _ in 0..TAP_QUEUE_MAX + 3 {
            lookout.tell(sight(503));
        }
        let mut seen = 0;
        while let Ok(one) = tap.seen.try_recv() {
            assert_eq!(one.status, 503);
            seen += 1;
        }
        assert_eq!(seen, TAP_QUEUE_MAX);
        assert_eq!(tap.dropped.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn there_are_so_many_taps_and_no_more() {
        let lookout = Arc::new(Lookout::default());
        let mut taps: Vec<_> = (0..TAPS_MAX)
            .map(|_| lookout.tap(Filter::default()).unwrap())
            .collect();
        assert!(lookout.tap(Filter::default()).is_none());
        taps.pop();
        assert!(lookout.tap(Filter::default()).is_some());
    }

    #[test]
    fn a_log_that_nobody_reads_loses_lines_and_holds_nobody_up() {
        let lookout = Lookout::default();
        let policy = LogPolicy {
            sample: Sample::ALL,
            errors: false,
            query: false,
        };
        let lines = lookout.log(policy).unwrap();
        for _ in 0..LOG_QUEUE_MAX + 5 {
            let mut one = sight(200);
            assert!(lookout.keeps(&mut one));
            lookout.tell(one);
        }
        assert_eq!(lookout.log_dropped.load(Ordering::Relaxed), 5);
        assert_eq!(lines.try_iter().count(), LOG_QUEUE_MAX);
    }

    #[test]
    fn the_trace_decides_the_sample_and_errors_are_kept_beside() {
        let share = Sample::parse("25%").unwrap();
        let none = || unreachable!();
        let mut trace = [7; 16];
        trace[9] = 0x3f;
        assert!(share.takes(&trace, none));
        trace[9] = 0x40;
        assert!(!share.takes(&trace, none));
        assert!(Sample::parse("101%").is_err() && Sample::parse("x").is_err());

        let lookout = Lookout::default();
        let policy = LogPolicy {
            sample: Sample::parse("0").unwrap(),
            errors: true,
            query: false,
        };
        let lines = lookout.log(policy).unwrap();
        for status in [200, 404, 503] {
            let mut one = sight(status);
            assert!(lookout.keeps(&mut one) && !one.sampled);
            lookout.tell(one);
        }
        let logged: Vec<u16> = lines.try_iter().map(|line| line.status).collect();
        assert_eq!(logged, [404, 503]);
    }
}
