//! How a score and its time become one number that Redis can hold: a whole number below 2^53, exactly a double, smaller is
//! better. `ZRANGE` gives a board best first, `ZRANK` is the place minus one, and `ZADD LT CH` keeps the better of two
//! results whatever the order of their arrival, with ties won by whoever was first.
//!
//! Best and sum: `order = primary * 2^time_bits + tick`, where `primary` is how far the score is from the best possible
//! one and `tick` how many [`Law::tie_unit_ms`] after the begin of the season it was reached: a sum by the latest of the
//! results that made it, whatever the order in which they arrived. Decayed: `order = CEILING -
//! round(2^30 * log2(sum of points_i * 2^((t_i - season_from) / half_life)))`: points that came later weigh more, instead
//! of old ones being made to weigh less, so that the order of players doesn't change as time passes and nothing is ever
//! rewritten. What is shown is `2^(log - (now - season_from) / half_life)`.

use super::kind::{Better, BoardSpec, Kind, SpecError};
use std::fmt;

/// Orders are below 2^53: every one is exactly a double, and its decimal digits read back as itself.
pub const ORDER_BITS: u32 = 53;
const CEILING: u64 = (1 << ORDER_BITS) - 1;
/// Steps of a decayed board's logarithm (base 2): 2^30 of them. A step is a factor of 1 + 6.5e-10.
pub const LOG_STEPS: f64 = 1_073_741_824.0;

/// A member's standing as the store keeps it: smaller is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Order(u64);

impl Order {
    pub const BEST: Self = Self(0);
    pub const WORST: Self = Self(CEILING);

    pub fn from_bits(bits: u64) -> Option<Self> {
        (bits <= CEILING).then_some(Self(bits))
    }

    pub fn bits(self) -> u64 {
        self.0
    }

    /// What `ZSCORE` gives; `None` for anything that this module did not write (fractions, infinities, negative numbers).
    pub fn from_redis(score: f64) -> Option<Self> {
        let whole = score >= 0.0 && score <= CEILING as f64 && score.fract() == 0.0;
        whole.then_some(Self(score as u64))
    }

    /// A reply of Redis as bytes: digits, or digits with an exponent (`%.17g`, as old protocols print a double).
    pub fn from_text(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        Self::from_redis(text.parse().ok()?)
    }
}

/// Decimal digits, as `ZADD` takes them.
impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The rule by which one board turns results into orders and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Law {
    kind: Kind,
    score_min: i64,
    score_max: i64,
    season_from_ms: u64,
    time_bits: u32,
    unit_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("score {score} is outside the board's range {min} to {max}")]
    OutOfRange { score: i64, min: i64, max: i64 },
    #[error("{points} points can't be added to a decayed board (at least 1, at most 2^53)")]
    Points { points: i64 },
    #[error("{half_lives} half-lives after the season's begin, where a decayed board ends")]
    TooLate { half_lives: u64 },
}

/// What a script in the store needs to add to a sum board, all exact in doubles: with `sum = floor(old / scale)`,
/// `new = clamp(sum + step, 0, range) * scale + max(tick, old % scale)`, or `old` where that leaves `sum` as it is. An
/// absent member's `sum` is `origin`, her `old % scale` nought. A sum that would leave the board's range stays at its edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SumStep {
    pub step: i64,
    pub tick: u64,
    pub scale: u64,
    pub range: u64,
    pub origin: u64,
}

/// What a script in the store needs to add to a decayed board. With `log = ceiling - old`: `a` the greater and `b` the
/// less of `log` and `gain`, `new = ceiling - (a + floor(0.5 + steps * log2(1 + 2^((b - a) / steps))))`; an absent
/// member's new order is `ceiling - gain`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DecayStep {
    pub gain: u64,
    pub ceiling: u64,
    pub steps: f64,
}

impl Law {
    pub fn try_new(spec: &BoardSpec) -> Result<Self, SpecError> {
        spec.check()?;
        let (time_bits, unit_ms) = match spec.kind {
            Kind::Decayed { .. } => (0, 1),
            Kind::Best(_) | Kind::Sum(_) => {
                let range = spec.score_max.abs_diff(spec.score_min);
                let time_bits = ORDER_BITS - (u64::BITS - range.leading_zeros());
                // More than milliseconds is more than is known of a time.
                (time_bits, spec.season_ms.div_ceil(1 << time_bits).max(1))
            }
        };
        Ok(Self {
            kind: spec.kind,
            score_min: spec.score_min,
            score_max: spec.score_max,
            season_from_ms: spec.season_from_ms,
            time_bits,
            unit_ms,
        })
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Results closer together than this, in ms, tie: the player's id decides. In a season of 90 days: 1 ms up to scores of
    /// 2^20, 116 ms up to 2^27, 7.5 s up to 2^33; with a range of 2^52 or more there is no room for time, and this is
    /// `None`. A decayed board has no ties to speak of (`None`).
    pub fn tie_unit_ms(&self) -> Option<u64> {
        (self.time_bits > 0).then_some(self.unit_ms)
    }

    /// The standing of one result alone: a best score, or the first result of a sum.
    pub fn order(&self, points: i64, at_ms: u64) -> Result<Order, Refused> {
        match self.kind {
            Kind::Best(_) => {
                let primary = self.primary(points)?;
                Ok(self.pack(primary, at_ms))
            }
            Kind::Sum(_) => self.apply(None, points, at_ms),
            Kind::Decayed { .. } => {
                let DecayStep { gain, ceiling, .. } = self.decay_step(points, at_ms)?;
                Ok(Order(ceiling - gain))
            }
        }
    }

    /// The first and the last order that a score can have, by when it was reached. `None`: it is outside the range, or the
    /// board decays.
    pub fn orders(&self, score: i64) -> Option<(Order, Order)> {
        if let Kind::Decayed { .. } = self.kind {
            return None;
        }
        let first = self.primary(score).ok()? << self.time_bits;
        Some((Order(first), Order(first | ((1 << self.time_bits) - 1))))
    }

    /// What a member's standing becomes by a result of `points` at `at_ms` (Unix): the better of the two, the sum, or the
    /// faded sum. The store's scripts compute the same. A sum stays inside the board's range.
    pub fn apply(&self, current: Option<Order>, points: i64, at_ms: u64) -> Result<Order, Refused> {
        match (self.kind, current) {
            (Kind::Best(_), current) => {
                let new = self.order(points, at_ms)?;
                Ok(current.map_or(new, |current| current.min(new)))
            }
            (Kind::Sum(_), current) => {
                let step = self.sum_step(points, at_ms);
                let old = current.map_or(step.origin, |order| order.0 >> self.time_bits);
                let primary = i128::from(old) + i128::from(step.step);
                let primary = primary.clamp(0, i128::from(step.range)) as u64;
                let reached = match current {
                    // She had it before.
                    Some(same) if primary == old => return Ok(same),
                    Some(order) => order.0 & ((1 << self.time_bits) - 1),
                    None => 0,
                };
                Ok(Order(primary << self.time_bits | step.tick.max(reached)))
            }
            (Kind::Decayed { .. }, None) => self.order(points, at_ms),
            (Kind::Decayed { .. }, Some(order)) => {
                let gain = self.decay_step(points, at_ms)?.gain;
                Ok(Order(CEILING - log_add(CEILING - order.0, gain)))
            }
        }
    }

    /// For a sum board's script.
    pub fn sum_step(&self, points: i64, at_ms: u64) -> SumStep {
        let lower = self.better() == Better::Lower;
        SumStep {
            step: if lower {
                points
            } else {
                points.saturating_neg()
            },
            tick: self.tick(at_ms),
            scale: 1 << self.time_bits,
            range: self.range(),
            origin: if lower {
                0_i64.abs_diff(self.score_min)
            } else {
                self.score_max.abs_diff(0)
            },
        }
    }

    /// For a decayed board's script.
    pub fn decay_step(&self, points: i64, at_ms: u64) -> Result<DecayStep, Refused> {
        if !(1..=1 << ORDER_BITS).contains(&points) {
            return Err(Refused::Points { points });
        }
        let half_lives = self.half_lives(at_ms);
        let log = (points as f64).log2() + half_lives;
        // Room above for sums: 2^64 results of the greatest size would add 64.
        if log + 64.0 >= CEILING as f64 / LOG_STEPS {
            return Err(Refused::TooLate {
                half_lives: half_lives as u64,
            });
        }
        Ok(DecayStep {
            gain: (log * LOG_STEPS).round() as u64,
            ceiling: CEILING,
            steps: LOG_STEPS,
        })
    }

    /// The score to show: whole and exact (below 2^53) for best and sum; what is left of it at `now_ms` for decayed.
    pub fn score(&self, order: Order, now_ms: u64) -> f64 {
        match self.kind {
            Kind::Decayed { .. } => {
                let log = (CEILING - order.0) as f64 / LOG_STEPS;
                (log - self.half_lives(now_ms)).exp2().min(f64::MAX)
            }
            Kind::Best(_) | Kind::Sum(_) => self.whole(order) as f64,
        }
    }

    /// After so many ms a decayed board's picture is told anew, though nothing has changed: its scores have faded by less
    /// than a thousandth since, or for a second. `None` where scores don't fade.
    pub fn fades_within_ms(&self) -> Option<u64> {
        match self.kind {
            Kind::Decayed { half_life_ms } => Some((half_life_ms / 1_024).max(1_000)),
            Kind::Best(_) | Kind::Sum(_) => None,
        }
    }

    /// Tells two laws apart: a snapshot of another law says nothing under this one.
    pub fn fingerprint(&self) -> u64 {
        let mut bytes = Vec::with_capacity(48);
        let (tag, half_life) = match self.kind {
            Kind::Best(Better::Higher) => (0_u64, 0),
            Kind::Best(Better::Lower) => (1, 0),
            Kind::Sum(Better::Higher) => (2, 0),
            Kind::Sum(Better::Lower) => (3, 0),
            Kind::Decayed { half_life_ms } => (4, half_life_ms),
        };
        for word in [
            tag,
            half_life,
            self.score_min as u64,
            self.score_max as u64,
            self.season_from_ms,
            u64::from(self.time_bits),
            self.unit_ms,
        ] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        xxhash_rust::xxh3::xxh3_64(&bytes)
    }

    fn better(&self) -> Better {
        match self.kind {
            Kind::Best(better) | Kind::Sum(better) => better,
            Kind::Decayed { .. } => Better::Higher,
        }
    }

    fn range(&self) -> u64 {
        self.score_max.abs_diff(self.score_min)
    }

    fn primary(&self, score: i64) -> Result<u64, Refused> {
        let (min, max) = (self.score_min, self.score_max);
        if !(min..=max).contains(&score) {
            return Err(Refused::OutOfRange { score, min, max });
        }
        Ok(match self.better() {
            Better::Higher => max.abs_diff(score),
            Better::Lower => score.abs_diff(min),
        })
    }

    fn whole(&self, order: Order) -> i64 {
        let primary = (order.0 >> self.time_bits).min(self.range());
        match self.better() {
            Better::Higher => self.score_max.saturating_sub_unsigned(primary),
            Better::Lower => self.score_min.saturating_add_unsigned(primary),
        }
    }

    fn pack(&self, primary: u64, at_ms: u64) -> Order {
        Order(primary << self.time_bits | self.tick(at_ms))
    }

    /// Units since the season's begin; from its end on, the last one.
    fn tick(&self, at_ms: u64) -> u64 {
        let ticks = at_ms.saturating_sub(self.season_from_ms) / self.unit_ms;
        ticks.min((1 << self.time_bits) - 1)
    }

    fn half_lives(&self, at_ms: u64) -> f64 {
        let Kind::Decayed { half_life_ms } = self.kind else {
            return 0.0;
        };
        at_ms.saturating_sub(self.season_from_ms) as f64 / half_life_ms as f64
    }
}

/// `log2(2^a + 2^b)` in steps of 2^-30, rounded: off by half a step, a factor of 1 ± 3.3e-10. As the store's Lua does it:
/// the same operations in the same order.
fn log_add(a: u64, b: u64) -> u64 {
    let (a, b) = (a.max(b), a.min(b));
    let apart = (a - b) as f64 / LOG_STEPS;
    let more = (1.0 + 2.0_f64.powf(-apart)).ln() / std::f64::consts::LN_2;
    let sum = a + (0.5 + LOG_STEPS * more).floor() as u64;
    sum.min(CEILING)
}

#[cfg(test)]
mod tests;
