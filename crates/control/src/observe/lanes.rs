//! Who took the requests that lanes are for, summed over all callers since start. Bounded.

use std::collections::BTreeMap;

use phalanx_client::observe::Lane;
use phalanx_model::ServiceName;
use phalanx_model::name::{check_label, is_colour};
use phalanx_proto::phalanx::observe::v1 as wire;

#[derive(Debug, Default)]
pub struct LaneSums(BTreeMap<(String, ServiceName), Lane>);

impl LaneSums {
    /// False where there are too many already.
    pub fn add(&mut self, lane: &wire::Lane) -> bool {
        let service = ServiceName::new(&lane.destination_namespace, &lane.destination_service);
        let key = (lane.colour.clone(), service);
        if self.0.len() >= LANES_MAX && !self.0.contains_key(&key) {
            return false;
        }
        let sum = self.0.entry(key).or_default();
        sum.lane = sum.lane.saturating_add(lane.lane);
        sum.baseline = sum.baseline.saturating_add(lane.baseline);
        sum.nobody = sum.nobody.saturating_add(lane.nobody);
        true
    }

    pub fn of(&self, colour: &str, service: &ServiceName) -> Lane {
        let found = self.0.get(&(colour.to_owned(), service.clone()));
        found.cloned().unwrap_or_default()
    }
}

pub fn is_sound(lane: &wire::Lane) -> bool {
    let names = [&lane.destination_namespace, &lane.destination_service];
    is_colour(lane.colour.as_bytes()) && names.iter().all(|name| check_label(name).is_ok())
}

/// Of one report.
pub const PER_REPORT_MAX: usize = 4096;
const LANES_MAX: usize = 16_384;
