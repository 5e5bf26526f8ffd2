//! Copies of requests, sent once the whole request is there, to clusters whose answers nobody reads. A copy costs its
//! request nothing: one that is too large or finds no room is dropped, and counted. A request that may be hedged keeps a copy
//! of its body here too.

use std::rc::Rc;

use phalanx_model::name::Direction;
use phalanx_relay::Checked;

use super::core::{Cluster, Core, CorePlan, Holder};
use super::deadline::Watch;
use super::exchange::Lent;
use super::request::{self, Kept};
use super::server::Door;
use super::tally::Tally;
use crate::account::Event;
use crate::compare::{Pairing, Side};
use crate::context::{Caller, StreamContext};
use crate::upstream::{Permit, Share};

/// What is copied, and what for.
pub struct Copies {
    core: Rc<Core>,
    body: Vec<u8>,
    mirrored: Option<Mirrored>,
    kept: Option<Rc<Kept>>,
}

/// A request and where copies of it go.
struct Mirrored {
    plan: Rc<CorePlan>,
    clusters: Vec<Rc<Cluster>>,
    direction: Direction,
    request: Checked,
    /// Their answers are compared with that to the request.
    pairing: Option<Rc<Pairing>>,
}

impl Copies {
    /// None where it goes nowhere.
    pub fn new(
        core: &Rc<Core>,
        plan: &Rc<CorePlan>,
        context: &StreamContext<'_>,
        request: &Checked,
    ) -> Option<Self> {
        let clusters = context
            .mirrors
            .iter()
            .filter_map(|place| plan.cluster(*place));
        let clusters: Vec<_> = clusters.cloned().collect();
        if clusters.is_empty() || request.upgrade().is_some() {
            return None;
        }
        let rule = context.rule.map_or("", |rule| &*rule.name);
        let compare = context.forward.and_then(|forward| forward.compare.as_ref());
        let comparisons = core.account.comparisons();
        let copies = clusters.len();
        let pairing =
            compare.and_then(|compare| comparisons.pairing(rule, compare, request.path(), copies));
        let mut request = request.duplicate();
        if let Some(headers) = &context.mirrored {
            request.headers_mut().clone_from(headers);
        }
        Some(Self {
            core: core.clone(),
            body: Vec::new(),
            mirrored: Some(Mirrored {
                plan: plan.clone(),
                clusters,
                direction: context.direction,
                request,
                pairing,
            }),
            kept: None,
        })
    }

    /// Of the request itself, where copies are compared with it.
    pub fn original(&self) -> Option<Box<Side>> {
        let pairing = self.mirrored.as_ref()?.pairing.as_ref()?;
        Some(pairing.original())
    }

    /// Of the body only.
    pub fn of_body(core: &Rc<Core>) -> Self {
        Self {
            core: core.clone(),
            body: Vec::new(),
            mirrored: None,
            kept: None,
        }
    }

    /// The body is wanted there too.
    pub fn also(&mut self, kept: &Rc<Kept>) {
        self.kept = Some(kept.clone());
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
        if let Some(kept) = &self.kept {
            kept.lose();
        }
        let clusters = self.mirrored.iter().flat_map(|of| &of.clusters);
        clusters.for_each(|_| self.core.count(Event::MirrorDropped));
    }

    /// The request is complete; with trailers it can't be sent once more.
    pub fn send(self, trailers: bool) {
        let body: Rc<[u8]> = self.body.into();
        match &self.kept {
            Some(kept) if trailers => kept.lose(),
            Some(kept) => kept.complete(self.core.wheel.now_ms(), body.clone()),
            None => {}
        }
        let Some(mirrored) = self.mirrored else {
            return;
        };
        for cluster in mirrored.clusters {
            let max = cluster.plan.limits.max_requests;
            let permit = Permit::take(Holder(cluster.clone()), Share::Request, max);
            let Some(permit) = permit else {
                self.core.count(Event::MirrorDropped);
                continue;
            };
            let side = mirrored.pairing.as_ref();
            let side = side.map(|pairing| pairing.copy(&cluster.plan.name));
            let copy = Copy {
                core: self.core.clone(),
                plan: mirrored.plan.clone(),
                cluster,
                direction: mirrored.direction,
                request: mirrored.request.duplicate(),
                body: body.clone(),
                permit,
                side,
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
    side: Option<Box<Side>>,
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
        if let Some(side) = self.side {
            tally.compare(side);
        }
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
