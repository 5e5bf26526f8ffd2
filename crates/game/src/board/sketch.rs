//! Where a player outside the top stands, from 8 KiB: some hundred pivots, places at a growing distance with the order of
//! whoever has them. A player between two pivots has a place between theirs, so that the middle is off by half their
//! distance at most; and pivots lie at a constant ratio, so that this is a constant share of the place itself.

use super::order::Order;

/// Pivots of one sketch.
pub const PIVOTS_MAX: usize = 500;
/// Memory of one sketch.
pub const SKETCH_BYTES_MAX: usize = PIVOTS_MAX * size_of::<Pivot>();

/// The member at `place` (from 1) has this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pivot {
    pub place: u64,
    pub order: Order,
}

/// Empty: knows nothing of places outside the top.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sketch {
    pivots: Box<[Pivot]>,
    as_of_ms: u64,
}

/// A place that lies between `low` and `high`, both included: `place` is off by at most [`Estimate::error`]. It holds for
/// the board as it was at [`Sketch::as_of_ms`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    pub place: u64,
    pub low: u64,
    pub high: u64,
}

impl Estimate {
    pub(super) fn between(low: u64, high: u64) -> Self {
        let high = high.max(low);
        Self {
            place: low + (high - low) / 2,
            low,
            high,
        }
    }

    /// The same for one who is not counted where she will be: behind the pivots she is one more, before them one less.
    pub(super) fn apart(self) -> Self {
        Self {
            low: self.low.saturating_sub(1).max(1),
            high: self.high.saturating_add(1),
            ..self
        }
    }

    /// Places by which the estimate can be off.
    pub fn error(&self) -> u64 {
        (self.high - self.place).max(self.place - self.low)
    }
}

impl Sketch {
    /// The places whose members the refresher should ask for: from the first outside the top to the last, at a constant
    /// ratio (at least 1 apart). `top` is how many places the snapshot has. Empty if nobody is outside.
    pub fn ladder(top: u64, total: u64) -> Vec<u64> {
        let first = top + 1;
        if total < first {
            return Vec::new();
        }
        let steps = PIVOTS_MAX as u64 - 1;
        if total - first <= steps {
            return (first..=total).collect();
        }
        let (mut places, mut at) = (vec![first], first);
        while at < total {
            // What is left of the way is shared evenly, in the logarithm, by the steps that are left: where places are too
            // close together for that, the later steps get shorter.
            let left = steps - (places.len() as u64 - 1);
            let ratio = (total as f64 / at as f64).powf(1.0 / left.max(1) as f64);
            let next = if left <= 1 {
                total
            } else {
                (at as f64 * ratio) as u64
            };
            at = next.clamp(at + 1, total);
            places.push(at);
        }
        places
    }

    /// The most by which an estimate from such a ladder can be off, as a share of the true place, if no two members tie:
    /// 0.004 for 20,000 of a million.
    pub fn ladder_error(top: u64, total: u64) -> f64 {
        let places = Self::ladder(top, total);
        let gaps = places.windows(2).map(|pair| {
            // Between two pivots there are `gap - 1` places; the middle is off by half of that, rounded up.
            let inner = pair[1] - pair[0] - 1;
            (inner / 2) as f64 / (pair[0] + 1) as f64
        });
        gaps.fold(0.0, f64::max)
    }

    /// What the store answered for the places of a ladder. Pivots that contradict each other (they were not read at one
    /// instant) and those beyond [`PIVOTS_MAX`] are left out. `as_of_ms`: Unix, begin of that read.
    pub fn new(pivots: impl IntoIterator<Item = Pivot>, as_of_ms: u64) -> Self {
        let mut kept: Vec<Pivot> = Vec::new();
        for pivot in pivots {
            let after = kept
                .last()
                .is_none_or(|last| pivot.place > last.place && pivot.order >= last.order);
            if pivot.place > 0 && after && kept.len() < PIVOTS_MAX {
                kept.push(pivot);
            }
        }
        Self {
            pivots: kept.into(),
            as_of_ms,
        }
    }

    pub fn pivots(&self) -> &[Pivot] {
        &self.pivots
    }

    /// When the store was asked; a snapshot may carry the sketch of an earlier one.
    pub fn as_of_ms(&self) -> u64 {
        self.as_of_ms
    }

    /// The place of a member with this order, on a board of `total` members whose first `top` don't include it. `None`
    /// without pivots, unless hardly anybody is outside.
    pub fn estimate(&self, order: Order, top: u64, total: u64) -> Option<Estimate> {
        let worst = total.max(top + 1);
        if self.pivots.is_empty() && worst > top + 1 {
            return None;
        }
        let before = self.pivots.partition_point(|pivot| pivot.order < order);
        let behind = self.pivots.partition_point(|pivot| pivot.order <= order);
        let low = before.checked_sub(1).and_then(|at| self.pivots.get(at));
        // Foreign bytes may say any place.
        let low = low.map_or(top + 1, |pivot| pivot.place.saturating_add(1));
        let high = self
            .pivots
            .get(behind)
            .map_or(worst, |pivot| pivot.place - 1);
        let mut estimate = Estimate::between(low, high);
        // She may be the very member at the pivot, or one of many who have its order.
        if let Some(([first, ..], [.., last])) =
            self.pivots.get(before..behind).map(|equal| (equal, equal))
        {
            estimate.place =
                (first.place + (last.place - first.place) / 2).clamp(estimate.low, estimate.high);
        }
        Some(estimate)
    }

    pub(super) fn bytes(&self) -> usize {
        self.pivots.len() * size_of::<Pivot>()
    }
}

#[cfg(test)]
mod tests;
