//! What has to be done in time: the own certificate, the next intermediate, files from outside, a rotation, old lines. What fails
//! is said once, and tried again; nothing that works stops for it.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use phalanx_pki::authority::Authority;
use phalanx_store::Txn;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::open::foreign;
use super::place::{self, PlaceError};
use super::record::{issued_key, issuer_key};
use super::token::PRUNED_AT_ONCE;
use super::{Ca, CaError, mesh};

/// How often own certificate, rotation and files are looked after.
const TEND: Duration = Duration::from_secs(1);
const OUTSIDE: Duration = Duration::from_secs(5);
const PRUNE: Duration = Duration::from_secs(60);
const PRUNE_TOKENS: Duration = Duration::from_secs(600);
/// How long a failure that stays the same is not said again.
const SAID: Duration = Duration::from_secs(300);
/// An intermediate is replaced when less than this is left of its life, or than two lives of a leaf.
const LEAD: Duration = Duration::from_secs(30 * 86_400);

impl Ca {
    pub(super) async fn tend(&self, stop: &CancellationToken) {
        let mut ticks = tokio::time::interval(TEND);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut due = Due::default();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let now = Instant::now();
            due.say("own certificate", self.tend_own().await);
            due.say("rotation of the root", self.progress().await);
            if due.is("outside", OUTSIDE, now) {
                let stamp = &mut due.stamp;
                let done = self.tend_outside(stamp).await;
                due.say("intermediate from outside", done);
                let done = self.tend_intermediate().await;
                due.say("next intermediate", done);
            }
            if due.is("prune", PRUNE, now) {
                due.say("pruning of the log", self.prune().await);
            }
            if due.is("tokens", PRUNE_TOKENS, now) {
                due.say("pruning of join tokens", self.prune_tokens().await);
            }
            if let Some(jwks) = &self.0.jwks {
                due.say("JWKS", jwks.tend().await.map_err(CaError::from));
            }
        }
    }

    /// Another intermediate in `--ca DIR`: under a root that the mesh trusts, it signs from now on.
    pub(super) async fn tend_outside(&self, stamp: &mut Option<SystemTime>) -> Result<(), CaError> {
        let Some(dir) = &self.0.config.outside else {
            return Ok(());
        };
        let found = place::outside_stamp(dir);
        if found == *stamp {
            return Ok(());
        }
        let issuer = place::outside(&self.0.config, dir, self.now())?;
        *stamp = found;
        let _step = self.0.steps.lock().await;
        let authority = self.authority();
        if authority
            .issuers()
            .any(|i| i.ca().der() == issuer.ca().der())
        {
            return Ok(());
        }
        if !self.mesh().has_root_of(&issuer) {
            return Err(foreign(&issuer, &self.mesh()).into());
        }
        let next = authority.replace_intermediate(issuer, self.now())?;
        self.replace_issuer(next).await
    }

    /// Leaves are to live for their whole time, so an intermediate goes before its last days come.
    pub(super) async fn tend_intermediate(&self) -> Result<(), CaError> {
        let authority = self.authority();
        let left = self.now().until(authority.active().not_after());
        if left > LEAD.max(self.0.config.leaf_ttl * 2) || self.0.config.outside.is_some() {
            return Ok(());
        }
        let _step = self.0.steps.lock().await;
        let made = place::intermediate(&self.0.config, authority.active(), self.now())?;
        let made = made.ok_or_else(|| PlaceError::RootOffline {
            dir: place::root_place(&self.0.config, authority.active()),
        })?;
        // A root near its own end gives no longer life: then only a rotation helps.
        if made.not_after() <= authority.active().not_after() {
            return Err(CaError::RootEnds {
                until: made.not_after(),
            });
        }
        let next = authority.replace_intermediate(made, self.now())?;
        self.replace_issuer(next).await
    }

    async fn replace_issuer(&self, next: Authority) -> Result<(), CaError> {
        let next = next.with_urls(&place::urls(&self.0.config));
        place::save(&self.0.config, &next)?;
        let issuer = next.active().ca().cert().serial.clone();
        self.set_authority(next);
        self.register_issuers().await?;
        tracing::info!(%issuer, "another intermediate signs");
        self.renew_own().await
    }

    /// Tells the mesh whose leaves this control plane may have made.
    pub(super) async fn register_issuers(&self) -> Result<(), CaError> {
        let (authority, mesh) = (self.authority(), self.mesh());
        let plane = &self.0.config.plane;
        let mut txn = Txn::new();
        for issuer in authority.issuers() {
            let known = mesh.issuers.get(&issuer.ca().cert().serial);
            if known != Some(&mesh::issuer_record(issuer, plane)) {
                txn = mesh::put_issuer(txn, issuer, plane)?;
            }
        }
        let over = mesh
            .issuers
            .iter()
            .filter(|(_, r)| r.not_after < self.now());
        for (serial, _) in over {
            txn = txn.delete(issuer_key(serial));
        }
        if !txn.ops.is_empty() {
            self.0.store.commit(txn).await?;
            self.reload_mesh().await?;
        }
        Ok(())
    }

    /// Deletes lines whose week is over.
    pub(super) async fn prune(&self) -> Result<(), CaError> {
        loop {
            let old = self.log().overdue(self.now(), PRUNED_AT_ONCE);
            if old.is_empty() {
                return Ok(());
            }
            let keys = old.iter().map(issued_key);
            let txn = keys.fold(Txn::new(), |txn, key| txn.delete(key));
            self.0.store.commit(txn).await?;
            let mut log = self.log();
            old.iter().for_each(|serial| log.remove(serial));
        }
    }
}

/// What is done when, and which failures were said when.
#[derive(Default)]
struct Due {
    done: HashMap<&'static str, Instant>,
    said: HashMap<&'static str, (String, Instant)>,
    stamp: Option<SystemTime>,
}

impl Due {
    fn is(&mut self, what: &'static str, every: Duration, now: Instant) -> bool {
        let due = self.done.get(what).is_none_or(|at| *at + every <= now);
        if due {
            self.done.insert(what, now);
        }
        due
    }

    fn say(&mut self, what: &'static str, done: Result<(), CaError>) {
        let Err(error) = done else {
            self.said.remove(what);
            return;
        };
        let text = chain(&error);
        let again = |(said, at): &(String, Instant)| *said == text && at.elapsed() < SAID;
        if self.said.get(what).is_some_and(again) {
            return;
        }
        tracing::error!(error = text, "{what} failed; it is tried again");
        self.said.insert(what, (text, Instant::now()));
    }
}

pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
