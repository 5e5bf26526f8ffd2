//! Copies of requests, sent once the whole request is there, to clusters whose answers nobody reads. A copy costs its
//! request nothing: one that is too large or finds no room is dropped, and counted.

use std::rc::Rc;

use phalanx_model::name::Direction;
use phalanx_relay::Checked;

use super::core::{Cluster, Core, CorePlan, Holder};
use super::deadline::Watch;
use super::exchange::Lent;
use super::request;
use super::server::Door;
use super::tally::Tally;
use crate::account::Event;
use crate::context::Caller;
use crate::upstream::{Permit, Share};

/// What is to be copied, and where to.
pub struct Copies {
    core: Rc<Core>,
    plan: Rc<CorePlan>,
    clusters: Vec<Rc<Cluster>>,
    direction: Direction,
    request: Checked,
    body: Vec<u8>,
}

impl Copies {
    /// None where it goes nowhere.
    pub fn new(
        core: &Rc<Core>,
        plan: &Rc<CorePlan>,
        places: &[usize],
        direction: Direction,
        request: &Checked,
    ) -> Option<Self> {
        let clusters = places.iter().filter_map(|place| plan.cluster(*place));
        let clusters: Vec<_> = clusters.cloned().collect();
        (!clusters.is_empty() && request.upgrade().is_none()).then(|| Self {
            core: core.clone(),
            plan: plan.clone(),
            clusters,
            direction,
            request: request.duplicate(),
            body: Vec::new(),
        })
    }

    /// A piece of the body; false when it is too large to be copied.
    pub fn keep(&mut self, data: &[u8]) -> bool {
        let fits = self.body.len() + data.len() <= self.core.limits.replay_bytes;
        if fits {
            self.body.extend_from_slice(data);
        }
        fits
    }

    /// None of them is sent.
    pub fn drop_all(&self) {
        let clusters = self.clusters.iter();
        clusters.for_each(|_| self.core.count(Event::MirrorDropped));
    }

    /// The request is complete.
    pub fn send(self) {
        let body: Rc<[u8]> = self.body.into();
        for cluster in self.clusters {
            let max = cluster.plan.limits.max_requests;
            let permit = Permit::take(Holder(cluster.clone()), Share::Request, max);
            let Some(permit) = permit else {
                self.core.count(Event::MirrorDropped);
                continue;
            };
            let copy = Copy {
                core: self.core.clone(),
                plan: self.plan.clone(),
                cluster,
                direction: self.direction,
                request: self.request.duplicate(),
                body: body.clone(),
                permit,
            };
            tokio::task::spawn_local(copy.run());
        }
    }
}

struct Copy {
    core: Rc<Core>,
    plan: Rc<CorePlan>,
    cluster: Rc<Cluster>,
    direction: Direction,
    request: Checked,
    body: Rc<[u8]>,
    permit: Permit<Holder>,
}

impl Copy {
    async fn run(mut self) {
        let core = &self.core;
        let watch = Watch::new(core, None);
        let door = Door::new(core, &watch, self.direction, Caller::Plain);
        let exchange = Lent::new(core);
        let now_us = core.wheel.now_us();
        let mut tally = Tally::new(core, self.plan, &watch, self.direction, now_us);
        tally.is_grpc(self.request.is_grpc());
        tally.assign(&self.cluster, None, Some(self.permit));
        request::send_copy(
            &door,
            &exchange,
            &self.cluster,
            &mut self.request,
            &self.body,
            tally,
        )
        .await;
    }
}
