//! What callers of other control planes found out. Refused connections are reported to the control plane that a caller is
//! connected to; the one that holds an instance may be another, so it asks them. Nothing is asked while nothing is held.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use phalanx_client::admin::Admin;
use phalanx_client::api::{ENDPOINTS_MAX, RefusedRequest, SilentEndpoint};
use tokio::time::MissedTickBehavior;

use super::{Registry, bump};

impl Registry {
    /// Asks the others about what is held here, until the token is cancelled.
    pub(super) async fn inquire(&self) {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut turn = 0;
        loop {
            tokio::select! {
                () = self.inner.stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let others = self.others();
            if others.is_empty() {
                continue;
            }
            let silent = self.silent(turn);
            turn += ENDPOINTS_MAX;
            if silent.is_empty() {
                turn = 0;
                continue;
            }
            let now = self.now_ms();
            let endpoint = |(address, beaten): (&SocketAddr, &u64)| SilentEndpoint {
                address: address.to_string(),
                silent_ms: now.saturating_sub(*beaten),
            };
            let request = RefusedRequest {
                endpoints: silent.iter().map(endpoint).collect(),
            };
            let answers = others.iter().map(|other| other.refused(&request));
            for answer in futures_util::future::join_all(answers).await {
                match answer {
                    Ok(answer) => self.learn(&silent, &answer.refused),
                    Err(error) => {
                        tracing::debug!(%error, "another control plane does not say who refused its callers")
                    }
                }
            }
        }
    }

    fn others(&self) -> Vec<Admin> {
        let world = self.inner.worlds.borrow().clone();
        let planes = world.planes.iter();
        planes
            .filter(|(name, plane)| *name != self.inner.planes.name() && !plane.admin.is_empty())
            .map(|(_, plane)| self.inner.planes.ask(&plane.admin, PATIENCE))
            .collect()
    }

    /// When each held endpoint was heard of last; of very many another part with every turn.
    pub(super) fn silent(&self, turn: usize) -> HashMap<SocketAddr, u64> {
        let held = self.leases().held_since_beat();
        let world = self.inner.worlds.borrow().clone();
        let start = turn.checked_rem(held.len()).unwrap_or(0);
        let (before, after) = held.split_at(start);
        let in_turn = after.iter().chain(before).take(ENDPOINTS_MAX);
        let known = in_turn.filter_map(|(id, beaten)| Some((world.instances.get(id)?, *beaten)));
        let endpoints = known.flat_map(|(known, beaten)| {
            let ports = known.instance.ports.iter();
            ports.map(move |port| (port.address, beaten))
        });
        endpoints.take(ENDPOINTS_MAX).collect()
    }

    /// Of endpoints that another control plane holds, those that refused a caller of this one since they were heard of.
    pub fn witnessed(&self, silent: &[SilentEndpoint]) -> Vec<String> {
        let now = self.now_ms();
        let evidence = self.evidence();
        let is_refused = |endpoint: &&SilentEndpoint| {
            let address = endpoint.address.parse();
            let since = now.saturating_sub(endpoint.silent_ms);
            address.is_ok_and(|address| evidence.is_refused(&address, since))
        };
        let refused = silent.iter().filter(is_refused);
        refused.map(|endpoint| endpoint.address.clone()).collect()
    }

    /// What was asked about and is confirmed; whoever beat since then is not concerned.
    pub(super) fn learn(&self, asked: &HashMap<SocketAddr, u64>, refused: &[String]) {
        let addresses = refused.iter().filter_map(|text| text.parse().ok());
        let confirmed = addresses.filter_map(|address| Some((address, *asked.get(&address)?)));
        let mut evidence = self.evidence();
        let mut count = 0;
        for (address, beaten) in confirmed {
            evidence.refused(address, beaten);
            count += 1;
        }
        bump(&self.inner.counts.evidence, count);
    }
}

/// Between two questions.
const INTERVAL: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(1);
