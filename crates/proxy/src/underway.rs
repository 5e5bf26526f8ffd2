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
use self::colour::{Read, Rows};
use self::index::Index;
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
    baseline: Span,
    /// Coloured, but no row is left for it, or its colour is none that can be written.
    unnamed: Span,
    /// Begun before anything was coloured: not in the index.
    unindexed: Span,
    /// Made with the first coloured request.
    coloured: OnceLock<Box<Coloured>>,
    traces: OnceLock<Box<Traces>>,
    hows: [AtomicU64; How::ALL.len()],
    /// Traces given, or not for want of one candidate.
    given: AtomicU64,
    withheld: AtomicU64,
}

#[derive(Default)]
struct Coloured {
    rows: Rows,
    index: Index,
}

/// How surely the colour of an outbound request is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The application said it.
    Carried,
    /// It carries trace or id of a request under way.
    Traced,
    /// All that may be its cause have this colour.
    Correlated,
    /// Those that may be its cause differ.
    Ambiguous,
    /// There is nothing that may be its cause.
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
    Traced(Option<Colour>),
    Correlated(Option<Colour>),
    /// `lost`: one of those that may be it is coloured.
    Ambiguous {
        lost: bool,
    },
    Unknown,
}

/// A request under way; to be given back with [`Underway::end`].
#[derive(Debug)]
#[must_use]
pub struct Ticket {
    row: Row,
    /// Where trace and id are indexed.
    entries: Option<[index::Place; 2]>,
    trace: Option<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Row {
    Baseline,
    Of(u8),
    Unnamed,
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

    /// Another process has requests of the application under way until then: nothing is sure.
    pub fn blind(&self, until_ms: u64) {
        self.blind_until_ms.store(until_ms, Ordering::Relaxed);
    }

    /// A request goes to the application with these headers.
    pub fn begin(&self, core: usize, headers: &HeaderList, now_ms: u64) -> Option<Ticket> {
        if self.mode == CorrelateMode::Off {
            return None;
        }
        let cells = self.cores.get(core)?;
        let colour = Colour::of(headers);
        if colour.is_coloured() && !self.is_coloured.load(Ordering::Relaxed) {
            self.is_coloured.store(true, Ordering::Release);
        }
        cells.all.begin();
        let trace = cells.traces.get_or_init(Box::default).begin(headers);
        let (row, entries) = match self.is_coloured.load(Ordering::Relaxed) {
            false => {
                cells.baseline.begin();
                cells.unindexed.begin();
                (Row::Baseline, None)
            }
            true => self.enter(cells, &colour, headers, now_ms),
        };
        Some(Ticket {
            row,
            entries,
            trace,
        })
    }

    fn enter(
        &self,
        cells: &Cells,
        colour: &Read,
        headers: &HeaderList,
        now_ms: u64,
    ) -> (Row, Option<[index::Place; 2]>) {
        let coloured = cells.coloured.get_or_init(Box::default);
        let stale_ms = self.linger_ms.saturating_add(STALE_MS);
        let (row, key) = match colour {
            Read::Baseline => (Row::Baseline, BASELINE),
            Read::Unreadable => (Row::Unnamed, UNNAMED),
            Read::Of(text) => {
                let key = self.colour_key(text);
                match coloured.rows.enter(key, text, now_ms, stale_ms) {
                    Some(row) => (Row::Of(row), key),
                    None => (Row::Unnamed, UNNAMED),
                }
            }
        };
        match row {
            Row::Baseline => cells.baseline.begin(),
            Row::Unnamed => cells.unnamed.begin(),
            Row::Of(_) => {} // by entering
        }
        let tag = match row {
            Row::Of(row) => row,
            Row::Baseline | Row::Unnamed => 0,
        };
        let entry = |id| coloured.index.begin(id, key, tag, now_ms, self.linger_ms);
        (row, Some(self.ids(headers).map(entry)))
    }

    /// Its answer is through, or nobody waits for it any more.
    pub fn end(&self, core: usize, ticket: Ticket, now_ms: u64) {
        let Some(cells) = self.cores.get(core) else {
            return;
        };
        if let (Some(trace), Some(traces)) = (ticket.trace, cells.traces.get()) {
            traces.end(trace, now_ms);
        }
        match (ticket.entries, cells.coloured.get()) {
            (Some(entries), Some(coloured)) => {
                entries
                    .into_iter()
                    .for_each(|place| coloured.index.end(place, now_ms));
            }
            _ => cells.unindexed.end(now_ms),
        }
        match ticket.row {
            Row::Baseline => cells.baseline.end(now_ms),
            Row::Unnamed => cells.unnamed.end(now_ms),
            Row::Of(row) => {
                if let Some(coloured) = cells.coloured.get() {
                    coloured.rows.end(row, now_ms);
                }
            }
        }
        cells.before.ended_as(&cells.all);
        cells.all.end(now_ms);
    }

    /// What a request says of whose it is: the keys of its trace and its id, 0 for none.
    fn ids(&self, headers: &HeaderList) -> [u64; 2] {
        let trace = TraceContext::of(headers.get_all(names::TRACEPARENT));
        let trace = trace.map_or(0, |trace| self.key(b't', &trace.trace_id()));
        let id = headers.get(names::X_REQUEST_ID);
        [trace, id.map_or(0, |id| self.key(b'i', id))]
    }

    fn colour_key(&self, text: &colour::Text) -> u64 {
        self.hasher.hash_one((b'c', text)).max(KEY_MIN)
    }

    /// Nobody outside can tell which texts share one.
    fn key(&self, of: u8, text: &[u8]) -> u64 {
        self.hasher.hash_one((of, text)).max(KEY_MIN)
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
        let candidates = self.candidates();
        if self.is_blind() {
            let lost = matches!(candidates, Candidates::Mixed | Candidates::One(Some(_)));
            return Cause::Ambiguous { lost };
        }
        if let Some(colour) = self.traced(headers) {
            return Cause::Traced(colour);
        }
        match candidates {
            Candidates::None => Cause::Unknown,
            Candidates::One(colour) => Cause::Correlated(colour),
            // Of one colour only the baseline is none, so one of several is coloured.
            Candidates::Mixed => Cause::Ambiguous { lost: true },
        }
    }

    fn is_blind(&self) -> bool {
        self.now_ms < self.of.blind_until_ms.load(Ordering::Relaxed)
    }

    /// Under way, or ended so recently that it may still be at work.
    fn is_candidate(&self, span: &Span) -> bool {
        span.is_recent(self.now_ms, self.of.linger_ms)
    }

    fn candidates(&self) -> Candidates {
        let mut found: Option<u64> = None;
        let mut place = None;
        for cells in &self.of.cores {
            if self.is_candidate(&cells.unnamed) {
                return Candidates::Mixed;
            }
            let baseline = self.is_candidate(&cells.baseline).then_some(BASELINE);
            let rows = cells.coloured.get().map(|coloured| &coloured.rows);
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
            // The colour changed while it was read: that of a request that began after this one.
            (Some(key), Some((rows, row))) => match rows.colour(row, key) {
                Some(colour) => Candidates::One(Some(colour)),
                None => Candidates::Mixed,
            },
            (Some(_), None) => Candidates::Mixed, // not reached: a key without a row is the baseline's
        }
    }

    /// The colour of the one request that these headers were given to.
    fn traced(&self, headers: &HeaderList) -> Option<Option<Colour>> {
        let ids = self.of.ids(headers);
        let mut found: Option<(u64, Option<(&Rows, u8)>)> = None;
        for cells in &self.of.cores {
            if self.is_candidate(&cells.unindexed) {
                return None; // it may be that one
            }
            let Some(coloured) = cells.coloured.get() else {
                continue;
            };
            for id in ids.into_iter().filter(|id| *id != 0) {
                let all = coloured
                    .index
                    .find(
                        id,
                        self.now_ms,
                        self.of.linger_ms,
                        |colour, row| match &found {
                            Some((known, _)) => *known == colour,
                            None => {
                                found = Some((colour, Some((&coloured.rows, row))));
                                true
                            }
                        },
                    );
                if !all {
                    return None; // several claim it, or not all are known
                }
            }
        }
        match found? {
            (BASELINE, _) => Some(None),
            (UNNAMED, _) => None,
            (key, place) => {
                let (rows, row) = place?;
                Some(Some(rows.colour(row, key)?))
            }
        }
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

enum Candidates {
    None,
    /// Of one colour, or all of the baseline.
    One(Option<Colour>),
    Mixed,
}

/// Keys of colours that are none.
const BASELINE: u64 = 0;
const UNNAMED: u64 = 1;
const KEY_MIN: u64 = 2;
/// A colour that nobody has had for so long after the linger time leaves its row to another.
const STALE_MS: u64 = 1_000;

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
