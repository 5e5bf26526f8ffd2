//! The application's requests under way, by colour and by trace, so that what it sends out meanwhile can be told whose child
//! it is. Every core writes its own cells and reads everybody's: no lock, and no write that another core waits for.
//!
//! What is told is never a guess: a request that may be the cause is always among those that are looked at, and where they
//! differ nothing is said. (What comes in by other ways than the inbound listener is not seen here: see docs/correlation.md.)

mod colour;
mod index;
mod span;
mod trace;

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use phalanx_relay::{HeaderList, names};
use phalanx_telemetry::metrics::{Exposition, Family};
use phalanx_telemetry::trace::TraceContext;

pub use self::colour::Colour;
use self::colour::{BASELINE, Facet, Read, Rows, Seat, Text, UNNAMED};
use self::index::{Index, Known};
use self::span::Span;
pub use self::trace::Ids;
use self::trace::Traces;
use crate::config::{Correlate, CorrelateMode};

/// Of one sidecar.
pub struct Underway {
    mode: CorrelateMode,
    linger_ms: u64,
    /// A request with a colour has come, ever.
    is_coloured: AtomicBool,
    /// Until when requests may be under way in another process, which nobody sees here.
    blind_until_ms: AtomicU64,
    /// The application passes on traces, and ids: it has been seen to.
    passes_on: [AtomicBool; 2],
    hasher: RandomState,
    cores: Box<[Cells]>,
}

/// What one core writes.
#[repr(align(128))]
#[derive(Default)]
struct Cells {
    all: Span,
    /// When the one before the last ended, of all.
    before: Span,
    /// Begun before anything was coloured: all of the baseline, and not in the index.
    unindexed: Span,
    /// Made with the first coloured request.
    coloured: OnceLock<Box<Coloured>>,
    traces: OnceLock<Box<Traces>>,
    hows: [AtomicU64; How::ALL.len()],
    /// Traces given, or not for want of one candidate.
    given: AtomicU64,
    withheld: AtomicU64,
}

struct Coloured {
    env: Facet,
    canary: Facet,
    index: Index,
}

impl Default for Coloured {
    fn default() -> Self {
        Self {
            env: Facet::new(ENVS),
            canary: Facet::new(CANARIES),
            index: Index::default(),
        }
    }
}

/// How surely the colour of an outbound request is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The application said `x-env`.
    Carried,
    /// It carries trace or id of a request under way.
    Traced,
    /// All that may be its cause have this `x-env`.
    Correlated,
    /// Those that may be its cause differ.
    Ambiguous,
    /// There is nothing that may be its cause, or it says that it is another's.
    None,
}

impl How {
    pub const ALL: [Self; 5] = [
        Self::Carried,
        Self::Traced,
        Self::Correlated,
        Self::Ambiguous,
        Self::None,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Carried => "carried",
            Self::Traced => "traced",
            Self::Correlated => "correlated",
            Self::Ambiguous => "ambiguous",
            Self::None => "none",
        }
    }
}

/// What is known of the cause of an outbound request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    Traced(Colour),
    Correlated(Colour),
    /// `lost`: one of those that may be it is coloured.
    Ambiguous {
        lost: bool,
    },
    Unknown,
    /// It has a trace or an id that none has which may be it, of an application that passes them on.
    Foreign,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The application answered it, or never got it.
    Answered,
    /// Nobody waits for the answer any more; the application may be at work all the same.
    Abandoned,
}

/// A request under way; to be given back with [`Underway::end`].
#[derive(Debug)]
#[must_use]
pub struct Ticket {
    /// None: begun before anything was coloured.
    of: Option<Seats>,
    trace: Option<u8>,
}

#[derive(Debug)]
struct Seats {
    env: Seat,
    canary: Seat,
    /// Where trace and id are indexed.
    entries: [index::Place; 2],
}

/// The view of one core at one time.
#[derive(Clone, Copy)]
pub struct Here<'u> {
    of: &'u Underway,
    core: usize,
    now_ms: u64,
}

impl Underway {
    /// For `cores` workers, numbered from 0.
    pub fn new(cores: usize, correlate: Correlate) -> Self {
        Self {
            mode: correlate.mode,
            linger_ms: u64::try_from(correlate.linger.as_millis()).unwrap_or(u64::MAX),
            is_coloured: AtomicBool::new(false),
            blind_until_ms: AtomicU64::new(0),
            passes_on: [const { AtomicBool::new(false) }; 2],
            hasher: RandomState::new(),
            cores: (0..cores).map(|_| Cells::default()).collect(),
        }
    }

    /// None where nothing is correlated.
    #[inline]
    pub fn here(&self, core: usize, now_ms: u64) -> Option<Here<'_>> {
        (self.mode != CorrelateMode::Off).then_some(Here {
            of: self,
            core,
            now_ms,
        })
    }

    /// Another process has requests of the application under way until then, or had: of what carries no trace or id nothing
    /// is sure.
    pub fn blind(&self, until_ms: u64) {
        self.blind_until_ms.fetch_max(until_ms, Ordering::Relaxed);
    }

    /// A request goes to the application with these headers.
    pub fn begin(&self, core: usize, headers: &HeaderList, now_ms: u64) -> Option<Ticket> {
        if self.mode == CorrelateMode::Off {
            return None;
        }
        let cells = self.cores.get(core)?;
        if Colour::is_said(headers) && !self.is_coloured.load(Ordering::Relaxed) {
            self.is_coloured.store(true, Ordering::Release);
        }
        cells.all.begin();
        let trace = cells.traces.get_or_init(Box::default).begin(headers);
        let of = match self.is_coloured.load(Ordering::Relaxed) {
            false => {
                cells.unindexed.begin();
                None
            }
            true => Some(self.enter(cells, headers, now_ms)),
        };
        Some(Ticket { of, trace })
    }

    fn enter(&self, cells: &Cells, headers: &HeaderList, now_ms: u64) -> Seats {
        let coloured = cells.coloured.get_or_init(Box::default);
        let stale_ms = self.linger_ms.saturating_add(STALE_MS);
        let key = |text: &Text| self.hasher.hash_one((b'c', text));
        let [env, canary] = [names::X_ENV, names::X_CANARY_ID].map(|name| Read::of(headers, name));
        let (env, env_key) = coloured.env.begin(&env, key, now_ms, stale_ms);
        let (seat, _) = coloured.canary.begin(&canary, key, now_ms, stale_ms);
        let row = match env {
            Seat::Row(row) => row,
            Seat::Without | Seat::Unnamed => 0,
        };
        let index = &coloured.index;
        let entry = |id| index.begin(id, (env_key, row), &canary, now_ms, self.linger_ms);
        Seats {
            env,
            canary: seat,
            entries: self.ids(headers).map(entry),
        }
    }

    /// Its answer is through, or nobody waits for it any more.
    pub fn end(&self, core: usize, ticket: Ticket, how: Ended, now_ms: u64) {
        let Some(cells) = self.cores.get(core) else {
            return;
        };
        // It is remembered until the linger time after that.
        let ended_ms = match how {
            Ended::Answered => now_ms,
            Ended::Abandoned => now_ms + ABANDONED_MS.saturating_sub(self.linger_ms),
        };
        if let (Some(trace), Some(traces)) = (ticket.trace, cells.traces.get()) {
            traces.end(trace, ended_ms);
        }
        match (ticket.of, cells.coloured.get()) {
            (Some(seats), Some(coloured)) => {
                for place in seats.entries {
                    coloured.index.end(place, ended_ms);
                }
                coloured.env.end(seats.env, ended_ms);
                coloured.canary.end(seats.canary, ended_ms);
            }
            _ => cells.unindexed.end(ended_ms),
        }
        cells.before.ended_as(&cells.all);
        cells.all.end(ended_ms);
    }

    /// What a request says of whose it is: the keys of its trace and its id, 0 for none.
    fn ids(&self, headers: &HeaderList) -> [u64; 2] {
        let trace = TraceContext::of(headers.get_all(names::TRACEPARENT));
        let trace = trace.map_or(0, |trace| self.key(b't', &trace.trace_id()));
        let id = headers.get(names::X_REQUEST_ID);
        [trace, id.map_or(0, |id| self.key(b'i', id))]
    }

    /// Nobody outside can tell which texts share one.
    fn key(&self, of: u8, text: &[u8]) -> u64 {
        self.hasher.hash_one((of, text)).max(1)
    }

    pub fn write(&self, out: &mut Exposition) {
        if self.mode == CorrelateMode::Off {
            return;
        }
        let sum =
            |cell: &dyn Fn(&Cells) -> Option<u64>| self.cores.iter().filter_map(cell).sum::<u64>();
        let mut hows = out.family(&HOWS);
        for how in How::ALL {
            let of = |cells: &Cells| Some(cells.hows.get(how as usize)?.load(Ordering::Relaxed));
            hows.sample(&[("how", how.as_str())], sum(&of));
        }
        let given = sum(&|cells| Some(cells.given.load(Ordering::Relaxed)));
        let withheld = sum(&|cells| Some(cells.withheld.load(Ordering::Relaxed)));
        let mut traces = out.family(&TRACES);
        traces.sample(&[("how", "correlated")], given);
        traces.sample(&[("how", "none")], withheld);
    }
}

impl Here<'_> {
    pub fn is_strict(&self) -> bool {
        self.of.mode == CorrelateMode::Strict
    }

    pub fn count(&self, how: How) {
        let cells = self.of.cores.get(self.core);
        if let Some(cell) = cells.and_then(|cells| cells.hows.get(how as usize)) {
            span::bump(cell);
        }
    }

    /// Whether anything may have a colour. While nothing ever had one, this is all that a request costs.
    #[inline]
    pub fn is_coloured(&self) -> bool {
        self.of.is_coloured.load(Ordering::Acquire)
    }

    /// Whose child an outbound request with these headers is.
    pub fn cause(&self, headers: &HeaderList) -> Cause {
        let is_blind = self.is_blind();
        match self.traced(headers) {
            Traced::By(colour) => return Cause::Traced(colour),
            Traced::Nobody if !is_blind => return Cause::Foreign,
            Traced::Nobody | Traced::Unsure => {}
        }
        let env = match self.candidates(|coloured| &coloured.env) {
            Candidates::One(env) if is_blind => {
                let lost = env.is_some();
                return Cause::Ambiguous { lost };
            }
            Candidates::None if is_blind => return Cause::Ambiguous { lost: false },
            Candidates::None => return Cause::Unknown,
            // Of one colour only the baseline is none, so one of several is coloured.
            Candidates::Mixed => return Cause::Ambiguous { lost: true },
            Candidates::One(env) => env,
        };
        let canary = match self.candidates(|coloured| &coloured.canary) {
            Candidates::One(canary) => canary,
            Candidates::None | Candidates::Mixed => None,
        };
        Cause::Correlated(Colour { env, canary })
    }

    fn is_blind(&self) -> bool {
        self.now_ms < self.of.blind_until_ms.load(Ordering::Relaxed)
    }

    /// Under way, or ended so recently that it may still be at work.
    fn is_candidate(&self, span: &Span) -> bool {
        span.is_recent(self.now_ms, self.of.linger_ms)
    }

    /// What one header says of all of them.
    fn candidates(&self, facet: impl Fn(&Coloured) -> &Facet) -> Candidates {
        let mut found: Option<u64> = None;
        let mut place = None;
        for cells in &self.of.cores {
            let facet = cells.coloured.get().map(|coloured| facet(coloured));
            if facet.is_some_and(|facet| self.is_candidate(&facet.unnamed)) {
                return Candidates::Mixed;
            }
            let has_baseline = self.is_candidate(&cells.unindexed)
                || facet.is_some_and(|facet| self.is_candidate(&facet.without));
            let baseline = has_baseline.then_some(BASELINE);
            let rows = facet.map(|facet| &facet.rows);
            let recent = rows.map(|rows| (rows, rows.recent(self.now_ms, self.of.linger_ms)));
            let keyed = recent
                .into_iter()
                .flat_map(|(rows, recent)| recent.map(move |(row, key)| (key, Some((rows, row)))));
            for (key, at) in baseline.map(|key| (key, None)).into_iter().chain(keyed) {
                if *found.get_or_insert(key) != key {
                    return Candidates::Mixed;
                }
                place = place.or(at);
            }
        }
        match (found, place) {
            (None, _) => Candidates::None,
            (Some(BASELINE), _) => Candidates::One(None),
            // Another's by now: of a request that began after this one.
            (Some(key), Some((rows, row))) => match rows.text(row, key) {
                Some(text) => Candidates::One(Some(text)),
                None => Candidates::Mixed,
            },
            (Some(_), None) => Candidates::Mixed, // not reached: a key without a row is the baseline's
        }
    }

    /// The colour of those requests that these headers were given to.
    fn traced(&self, headers: &HeaderList) -> Traced {
        let ids = self.of.ids(headers);
        let mut found: Option<(Known, &Rows)> = None;
        let (mut are_same, mut has_unindexed, mut hits) = (true, false, [false; 2]);
        for cells in &self.of.cores {
            has_unindexed |= self.is_candidate(&cells.unindexed);
            let Some(coloured) = cells.coloured.get() else {
                continue;
            };
            for (id, hit) in ids.into_iter().zip(&mut hits).filter(|(id, _)| *id != 0) {
                let rows = &coloured.env.rows;
                let same = |new: Known| {
                    *hit = true;
                    let (known, _) = found.get_or_insert((new, rows));
                    known.canary = known.canary.filter(|known| new.canary == Some(*known));
                    known.env == new.env
                };
                let index = &coloured.index;
                are_same &= index.find(id, self.now_ms, self.of.linger_ms, same);
            }
        }
        if !are_same {
            return Traced::Unsure; // several claim it, or not all are known
        }
        let kinds = || ids.iter().zip(&self.of.passes_on);
        let Some((known, rows)) = found else {
            let passed =
                |(id, passes): (&u64, &AtomicBool)| *id != 0 && passes.load(Ordering::Relaxed);
            return match !has_unindexed && kinds().any(passed) {
                true => Traced::Nobody,
                false => Traced::Unsure,
            };
        };
        for (hit, passes) in hits.into_iter().zip(&self.of.passes_on) {
            if hit && !passes.load(Ordering::Relaxed) {
                passes.store(true, Ordering::Relaxed);
            }
        }
        let env = match known.env {
            BASELINE => None,
            UNNAMED => return Traced::Unsure,
            key => match rows.text(known.row, key) {
                None => return Traced::Unsure,
                text => text,
            },
        };
        let canary = known.canary;
        Traced::By(Colour { env, canary })
    }

    /// What the one request was given that may be the cause of anything now; none where there are several, or none.
    pub fn sole(&self) -> Option<Box<Ids>> {
        let found = self.find_sole();
        if let Some(cells) = self.of.cores.get(self.core) {
            let cell = if found.is_some() {
                &cells.given
            } else {
                &cells.withheld
            };
            span::bump(cell);
        }
        found
    }

    fn find_sole(&self) -> Option<Box<Ids>> {
        if self.is_blind() || !self.is_sole() {
            return None;
        }
        let traces = self.of.cores.iter().filter_map(|cells| cells.traces.get());
        let mut found = traces.flat_map(|traces| traces.recent(self.now_ms, self.of.linger_ms));
        let only = found.next()?;
        // Looked at again: one that began meanwhile may be what was found.
        (found.next().is_none() && self.is_sole()).then_some(only)
    }

    fn is_sole(&self) -> bool {
        let mut sum = 0u64;
        for cells in &self.of.cores {
            sum = sum.saturating_add(cells.all.recent(self.now_ms, self.of.linger_ms));
            sum = sum.saturating_add(cells.before.recent(self.now_ms, self.of.linger_ms));
            if sum > 1 {
                return false;
            }
        }
        sum == 1
    }
}

enum Traced {
    By(Colour),
    /// It says whose it is, and there is none of these.
    Nobody,
    Unsure,
}

/// What one header says of all candidates.
enum Candidates {
    None,
    One(Option<Text>),
    Mixed,
}

/// Colours of a core at once.
const ENVS: usize = 64;
/// The same of `x-canary-id`: of more, none is shared by all candidates.
const CANARIES: usize = 16;
/// A colour that nobody has had for so long after the linger time leaves its row to another.
const STALE_MS: u64 = 1_000;
/// What the application may do for a request after nobody waits for its answer any more.
const ABANDONED_MS: u64 = 15_000;

const HOWS: Family = Family::counter(
    "phalanx_correlation_total",
    "The application's calls, by how surely their colour is known.",
);
const TRACES: Family = Family::counter(
    "phalanx_correlation_traces_total",
    "The application's calls without a trace or an id of their own, by whether those of their cause were known.",
);

#[cfg(test)]
mod tests;
