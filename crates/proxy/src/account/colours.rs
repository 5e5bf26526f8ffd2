//! Requests by colour, and how lanes answered them. Colours that configuration names have a number each; what only a request
//! says is counted together, so that nobody outside can make labels.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use phalanx_model::name::{ClusterName, Direction};
use phalanx_model::resource::colour::{LANES_MAX, is_colour};
use phalanx_telemetry::metrics::{Exposition, Family};

use super::{bump, bump_at};

const BY_COLOUR: Family = Family::counter(
    "phalanx_requests_by_colour_total",
    "Requests with a colour (x-env); colours that no configuration names are `other`.",
);
const OF_LANES: Family = Family::counter(
    "phalanx_lane_requests_total",
    "Requests that a lane is for, by who got them: the lane, the baseline, or nobody.",
);

/// The colour of a request; cheap, and the same for as long as a plan names it, and one plan longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ColourId(u8);

/// One that no configuration names.
pub const OTHER: ColourId = ColourId(NAMED_MAX as u8);

/// Colours that are counted by name; what comes later is counted with the others.
pub const NAMED_MAX: usize = LANES_MAX;
const DIRECTIONS: [Direction; 2] = [Direction::Inbound, Direction::Outbound];
const COUNTED: usize = NAMED_MAX + 1;
/// Lanes of services, those of earlier plans included.
const LANES_COUNTED_MAX: usize = 4096;

/// Of one sidecar.
pub struct Colours {
    /// By number; at most [`NAMED_MAX`].
    names: ArcSwap<Vec<Named>>,
    /// What the plan before the last named. Held while a plan is made.
    before: Mutex<BTreeSet<Box<str>>>,
    cores: Box<[Cells]>,
    /// Taken when a plan is made and when counts are read, never by a request.
    lanes: Mutex<BTreeMap<ClusterName, Arc<LaneCounts>>>,
}

#[derive(Clone)]
struct Named {
    name: Box<str>,
    /// Its number may become another's: neither of the last two plans names it.
    is_free: bool,
    /// What stood in its cells before, inbound and outbound.
    from: [u64; 2],
}

#[repr(align(128))]
struct Cells {
    inbound: [AtomicU64; COUNTED],
    outbound: [AtomicU64; COUNTED],
}

/// Who took the requests that one lane of one service is for.
pub struct LaneCounts(Box<[LaneCells]>);

#[repr(align(128))]
#[derive(Default)]
struct LaneCells {
    lane: AtomicU64,
    baseline: AtomicU64,
    nobody: AtomicU64,
}

/// Sums over cores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneTotals {
    pub lane: u64,
    pub baseline: u64,
    pub nobody: u64,
}

impl Colours {
    pub fn new(cores: usize) -> Self {
        let cells = || Cells {
            inbound: [const { AtomicU64::new(0) }; COUNTED],
            outbound: [const { AtomicU64::new(0) }; COUNTED],
        };
        Self {
            names: ArcSwap::default(),
            before: Mutex::default(),
            cores: (0..cores).map(|_| cells()).collect(),
            lanes: Mutex::default(),
        }
    }

    /// A plan names these and no others.
    pub fn keep<'c>(&self, colours: impl Iterator<Item = &'c str>) {
        let mut before = self.before.lock().unwrap_or_else(PoisonError::into_inner);
        let colours = colours.filter(|colour| is_colour(colour.as_bytes()));
        let now: BTreeSet<Box<str>> = colours.map(Into::into).collect();
        let mut names = (**self.names.load()).clone();
        for named in &mut names {
            named.is_free = !now.contains(&named.name) && !before.contains(&named.name);
        }
        for colour in &now {
            self.number(&mut names, colour);
        }
        self.names.store(names.into());
        *before = now;
    }

    fn number(&self, names: &mut Vec<Named>, colour: &str) {
        if names.iter().any(|named| &*named.name == colour) {
            return;
        }
        let free = || names.iter().position(|named| named.is_free);
        let place = match names.len() < NAMED_MAX {
            true => Some(names.len()),
            false => free(),
        };
        let Some(place) = place else { return };
        let id = ColourId(place as u8);
        let made = Named {
            name: colour.into(),
            is_free: false,
            from: DIRECTIONS.map(|direction| self.sum(direction, id)),
        };
        match names.get_mut(place) {
            Some(free) => *free = made,
            None => names.push(made),
        }
    }

    /// Of a request's header.
    pub fn find(&self, value: &[u8]) -> ColourId {
        let names = self.names.load();
        let is_it = |named: &Named| !named.is_free && named.name.as_bytes() == value;
        let place = names.iter().position(is_it);
        place.map_or(OTHER, |place| ColourId(place as u8))
    }

    pub fn name(&self, colour: ColourId) -> String {
        let names = self.names.load();
        let named = names.get(usize::from(colour.0));
        named.map_or("other", |named| &*named.name).to_owned()
    }

    fn sum(&self, direction: Direction, id: ColourId) -> u64 {
        let cells = self.cores.iter().map(|cells| cells.of(direction));
        let cells = cells.filter_map(|cells| cells.get(usize::from(id.0)));
        cells.map(|cell| cell.load(Ordering::Relaxed)).sum()
    }

    /// On behalf of worker `core`.
    #[inline]
    pub fn count(&self, core: usize, direction: Direction, colour: ColourId) {
        if let Some(cells) = self.cores.get(core) {
            bump_at(cells.of(direction), usize::from(colour.0));
        }
    }

    /// Counts go on where they were when a lane comes back.
    pub fn lane(&self, cluster: &ClusterName) -> Option<Arc<LaneCounts>> {
        cluster.lane.as_ref()?;
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lanes.get(cluster) {
            return Some(known.clone());
        }
        if lanes.len() >= LANES_COUNTED_MAX {
            lanes.retain(|_, counts| Arc::strong_count(counts) > 1);
        }
        let cells = self.cores.iter().map(|_| LaneCells::default());
        let made = Arc::new(LaneCounts(cells.collect()));
        lanes.insert(cluster.clone(), made.clone());
        Some(made)
    }

    /// Of each lane of each service that has counted something.
    pub fn lanes(&self) -> Vec<(ClusterName, LaneTotals)> {
        let lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let totals = lanes
            .iter()
            .map(|(name, counts)| (name.clone(), counts.totals()));
        totals
            .filter(|(_, totals)| *totals != LaneTotals::default())
            .collect()
    }

    pub fn write(&self, out: &mut Exposition) {
        let mut page = out.family(&BY_COLOUR);
        let names = self.names.load();
        let named = names.iter().zip(0..);
        let named = named.map(|(named, place)| (&*named.name, ColourId(place), named.from));
        for (name, id, from) in named.chain([("other", OTHER, [0; 2])]) {
            for (direction, from) in DIRECTIONS.into_iter().zip(from) {
                let count = self.sum(direction, id).saturating_sub(from);
                if count > 0 {
                    let labels = [("direction", direction.as_str()), ("colour", name)];
                    page.sample(&labels, count);
                }
            }
        }
        let mut page = out.family(&OF_LANES);
        for (name, totals) in self.lanes() {
            let by = [
                ("lane", totals.lane),
                ("baseline", totals.baseline),
                ("nobody", totals.nobody),
            ];
            let colour = name.lane.as_deref().unwrap_or_default();
            for (by, count) in by.into_iter().filter(|(_, count)| *count > 0) {
                let labels = [
                    ("colour", colour),
                    ("destination_service_namespace", &name.service.namespace),
                    ("destination_service_name", &name.service.name),
                    ("answered_by", by),
                ];
                page.sample(&labels, count);
            }
        }
    }
}

impl Cells {
    fn of(&self, direction: Direction) -> &[AtomicU64; COUNTED] {
        match direction {
            Direction::Inbound => &self.inbound,
            Direction::Outbound => &self.outbound,
        }
    }
}

impl LaneCounts {
    /// Whether the baseline got the request; none: nobody.
    pub fn count(&self, core: usize, is_baseline: Option<bool>) {
        if let Some(cells) = self.0.get(core) {
            let cell = match is_baseline {
                Some(false) => &cells.lane,
                Some(true) => &cells.baseline,
                None => &cells.nobody,
            };
            bump(cell, 1);
        }
    }

    fn totals(&self) -> LaneTotals {
        let sum = |cell: fn(&LaneCells) -> &AtomicU64| {
            let cells = self.0.iter().map(cell);
            cells.map(|cell| cell.load(Ordering::Relaxed)).sum()
        };
        LaneTotals {
            lane: sum(|cells| &cells.lane),
            baseline: sum(|cells| &cells.baseline),
            nobody: sum(|cells| &cells.nobody),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_configured_colours_have_a_number_and_a_request_makes_none() {
        let colours = Colours::new(1);
        colours.keep(["dev-li", "No Colour"].into_iter());
        let dev = colours.find(b"dev-li");
        assert_eq!(colours.name(dev), "dev-li");
        for other in ["dev-wu", "No Colour"] {
            assert_eq!(colours.find(other.as_bytes()), OTHER);
        }
        assert_eq!(colours.name(OTHER), "other");
    }

    #[test]
    fn a_number_is_anothers_once_two_plans_have_not_named_its_colour() {
        let colours = Colours::new(2);
        let all: Vec<String> = (0..NAMED_MAX).map(|n| format!("c{n}")).collect();
        colours.keep(all.iter().map(String::as_str));
        let first = colours.find(b"c0");
        (0..3).for_each(|_| colours.count(1, Direction::Inbound, first));
        let others = || all.iter().skip(1).map(String::as_str);
        colours.keep(others().chain(["new"]));
        // Requests of the plan before may still be counted.
        assert_eq!((colours.find(b"new"), colours.find(b"c0")), (OTHER, first));
        colours.keep(others().chain(["new"]));
        assert_eq!((colours.find(b"new"), colours.find(b"c0")), (first, OTHER));
        colours.count(0, Direction::Inbound, first);
        let mut out = Exposition::new();
        colours.write(&mut out);
        let text = out.finish();
        assert!(text.contains(r#"colour="new"} 1"#), "{text}");
        assert!(!text.contains("c0"), "{text}");
    }

    #[test]
    fn lanes_are_counted_by_who_answers() {
        let colours = Colours::new(2);
        let service = phalanx_model::ServiceName::new("default", "battle");
        let name = ClusterName::outbound(service, 80);
        assert!(colours.lane(&name).is_none());
        let name = name.lane("dev-li");
        let counts = colours.lane(&name).unwrap();
        counts.count(0, Some(false));
        counts.count(1, Some(true));
        counts.count(1, Some(true));
        counts.count(0, None);
        let expected = LaneTotals {
            lane: 1,
            baseline: 2,
            nobody: 1,
        };
        assert_eq!(colours.lanes(), [(name, expected)]);
        colours.count(1, Direction::Inbound, OTHER);
        let mut out = Exposition::new();
        colours.write(&mut out);
        let text = out.finish();
        assert!(
            text.contains(
                r#"phalanx_requests_by_colour_total{direction="inbound",colour="other"} 1"#
            ),
            "{text}"
        );
        assert!(text.contains(r#"answered_by="baseline"} 2"#), "{text}");
    }
}
