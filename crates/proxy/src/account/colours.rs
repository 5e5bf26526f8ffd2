//! Requests by colour, and how lanes answered them. Colours that configuration names have a number each; what only a request
//! says is counted together, so that nobody outside can make labels.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

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

/// The colour of a request; cheap, and the same for as long as the sidecar runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ColourId(u8);

/// One that no configuration names.
pub const OTHER: ColourId = ColourId(NAMED_MAX as u8);

/// Colours that are counted by name; what comes later is counted with the others.
pub const NAMED_MAX: usize = LANES_MAX;
const COUNTED: usize = NAMED_MAX + 1;
/// Lanes of services, those of earlier plans included.
const LANES_COUNTED_MAX: usize = 4096;

/// Of one sidecar.
pub struct Colours {
    /// Filled from the front.
    names: [OnceLock<Box<str>>; NAMED_MAX],
    cores: Box<[Cells]>,
    /// Taken when a plan is made and when counts are read, never by a request.
    lanes: Mutex<BTreeMap<ClusterName, Arc<LaneCounts>>>,
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
            names: [const { OnceLock::new() }; NAMED_MAX],
            cores: (0..cores).map(|_| cells()).collect(),
            lanes: Mutex::default(),
        }
    }

    /// The number of a colour that configuration names; from now on it is known.
    pub fn intern(&self, colour: &str) -> ColourId {
        if !is_colour(colour.as_bytes()) {
            return OTHER;
        }
        let place = self
            .names
            .iter()
            .position(|slot| &**slot.get_or_init(|| colour.into()) == colour);
        place.map_or(OTHER, |place| ColourId(place as u8))
    }

    /// Of a request's header.
    pub fn find(&self, value: &[u8]) -> ColourId {
        let known = self.names.iter().map_while(OnceLock::get);
        let place = known.into_iter().position(|name| name.as_bytes() == value);
        place.map_or(OTHER, |place| ColourId(place as u8))
    }

    pub fn name(&self, colour: ColourId) -> &str {
        let slot = self.names.get(usize::from(colour.0));
        slot.and_then(OnceLock::get).map_or("other", |name| name)
    }

    /// On behalf of worker `core`.
    #[inline]
    pub fn count(&self, core: usize, direction: Direction, colour: ColourId) {
        if let Some(cells) = self.cores.get(core) {
            let cells = match direction {
                Direction::Inbound => &cells.inbound,
                Direction::Outbound => &cells.outbound,
            };
            bump_at(cells, usize::from(colour.0));
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
        let known = self
            .names
            .iter()
            .filter(|slot| slot.get().is_some())
            .count();
        let ids = (0..known).map(|place| ColourId(place as u8)).chain([OTHER]);
        for (direction, id) in ids.flat_map(|id| {
            [Direction::Inbound, Direction::Outbound].map(|direction| (direction, id))
        }) {
            let of = |cells: &Cells| {
                let cells = match direction {
                    Direction::Inbound => &cells.inbound,
                    Direction::Outbound => &cells.outbound,
                };
                let cell = cells.get(usize::from(id.0));
                cell.map_or(0, |cell| cell.load(Ordering::Relaxed))
            };
            let count: u64 = self.cores.iter().map(of).sum();
            if count > 0 {
                let labels = [("direction", direction.as_str()), ("colour", self.name(id))];
                page.sample(&labels, count);
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
        let dev = colours.intern("dev-li");
        assert_eq!(colours.intern("dev-li"), dev);
        assert_eq!(
            (colours.find(b"dev-li"), colours.name(dev)),
            (dev, "dev-li")
        );
        assert_eq!(
            (colours.find(b"dev-wu"), colours.name(OTHER)),
            (OTHER, "other")
        );
        for number in 0..2 * NAMED_MAX {
            colours.intern(&format!("c{number}"));
        }
        assert_eq!(colours.intern("one-more"), OTHER);
        assert_eq!(colours.intern("dev-li"), dev);
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
