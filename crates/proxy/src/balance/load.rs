//! What one core has measured of one endpoint: the peak exponentially weighted moving average of latency (as Finagle's
//! and Linkerd's), and how many requests are out.

use std::cell::Cell;

use super::judge::Sample;

/// One writer, one core: cells, no atomics.
#[derive(Default)]
pub struct Load {
    ewma_us: Cell<f64>,
    stamp_us: Cell<u64>,
    outstanding: Cell<u32>,
    /// Of the interval under way, where endpoints are compared.
    sample: Cell<Sample>,
}

impl Load {
    pub fn outstanding(&self) -> u32 {
        self.outstanding.get()
    }

    /// An attempt goes out.
    #[inline]
    pub fn begin(&self) {
        self.outstanding.set(self.outstanding.get() + 1);
    }

    /// An attempt came back or was given up, without word on its latency.
    #[inline]
    pub fn end(&self) {
        self.outstanding
            .set(self.outstanding.get().saturating_sub(1));
    }

    /// The answer's head came `latency_us` after the attempt began. A peak counts at once, the rest decays.
    #[inline]
    pub fn observe(&self, latency_us: u64, now_us: u64) {
        let (sample, average) = (latency_us as f64, self.ewma_us.get());
        let next = if sample > average {
            sample
        } else {
            let keep = decay(now_us.saturating_sub(self.stamp_us.get()));
            average * keep + sample * (1.0 - keep)
        };
        self.ewma_us.set(next);
        self.stamp_us.set(now_us);
    }

    /// Counts an answer for the next comparison.
    pub fn sample(&self, good: bool, latency_us: u64) {
        let mut sample = self.sample.get();
        sample.answers = sample.answers.saturating_add(1);
        if good {
            sample.good = sample.good.saturating_add(1);
            sample.latency_us = sample.latency_us.saturating_add(latency_us);
        }
        self.sample.set(sample);
    }

    /// What was counted since this was asked last.
    pub fn take_sample(&self) -> Sample {
        self.sample.take()
    }

    /// The attempt failed after `latency_us`: quick failures shall not look attractive.
    pub fn penalise(&self, latency_us: u64, now_us: u64) {
        let floor = (self.ewma_us.get() * 4.0).clamp(PENALTY_MIN_US, PENALTY_MAX_US);
        self.observe((latency_us as f64).max(floor) as u64, now_us);
    }

    /// Average latency, fading while nothing is heard, times the requests that would then be out; these count less where
    /// the weight is more. An endpoint never heard of gets one request, and the next after its answer.
    #[inline]
    pub fn cost(&self, now_us: u64, weight: u32) -> f64 {
        let outstanding = f64::from(self.outstanding.get());
        let average = self.ewma_us.get();
        if average == 0.0 {
            return if outstanding == 0.0 {
                0.0
            } else {
                UNKNOWN_COST + outstanding
            };
        }
        let faded = average * decay(now_us.saturating_sub(self.stamp_us.get()));
        faded * (outstanding / f64::from(weight.max(1)) + 1.0)
    }
}

/// e^(−Δt/τ), to the second order below: exact enough, and no libm call for the common small Δt.
#[inline]
fn decay(elapsed_us: u64) -> f64 {
    let x = elapsed_us as f64 / DECAY_US;
    if x < 0.01 {
        1.0 - x + x * x / 2.0
    } else {
        (-x).exp()
    }
}

/// Finagle's default: 10 s.
const DECAY_US: f64 = 10_000_000.0;
const PENALTY_MIN_US: f64 = 5_000.0;
const PENALTY_MAX_US: f64 = 1_000_000.0;
const UNKNOWN_COST: f64 = 1e12;
