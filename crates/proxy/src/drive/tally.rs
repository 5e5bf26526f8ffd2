//! The one place where a request is counted: made when it comes, ended exactly once, however it ends.

use std::rc::Rc;

use phalanx_model::name::Direction;
use phalanx_model::reason::Reason;
use phalanx_relay::{HeaderList, names};

use super::core::{Cluster, Core, CorePlan, Holder};
use super::deadline::Watch;
use crate::account::{Edge, EdgeCell, Ending, Event, Traffic};
use crate::balance::Evidence;
use crate::plan::cluster::Edges;
use crate::upstream::Permit;

pub struct Tally {
    core: Rc<Core>,
    plan: Rc<CorePlan>,
    watch: Rc<Watch>,
    direction: Direction,
    traffic: Traffic,
    started_us: u64,
    /// 0 until the head of an answer goes downstream.
    status: u16,
    grpc_status: Option<u8>,
    reason: Option<Reason>,
    cluster: Option<Rc<Cluster>>,
    /// Of a known caller.
    edges: Option<Rc<Edges>>,
    member: Option<usize>,
    attempt: Option<Attempt>,
    permit: Option<Permit<Holder>>,
    ended: bool,
}

/// An attempt under way: outstanding for the balancer, active on its edge, until dropped.
struct Attempt {
    core: Rc<Core>,
    cluster: Rc<Cluster>,
    member: usize,
    edges: Option<Rc<Edges>>,
    traffic: Traffic,
    started_us: u64,
}

impl Attempt {
    fn cell(&self) -> Option<&EdgeCell> {
        let edges = match &self.edges {
            Some(edges) => edges,
            None => &self.cluster.endpoint(self.member)?.1.edges,
        };
        Some(edges.of_traffic(self.traffic).cell(self.core.index))
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some((endpoint, _)) = self.cluster.endpoint(self.member) {
            endpoint.load.end();
        }
        if let Some(cell) = self.cell() {
            cell.leave();
        }
    }
}

impl Tally {
    pub fn new(
        core: &Rc<Core>,
        plan: Rc<CorePlan>,
        watch: &Rc<Watch>,
        direction: Direction,
        started_us: u64,
    ) -> Self {
        watch.enter();
        Self {
            core: core.clone(),
            plan,
            watch: watch.clone(),
            direction,
            traffic: Traffic::Http,
            started_us,
            status: 0,
            grpc_status: None,
            reason: None,
            cluster: None,
            edges: None,
            member: None,
            attempt: None,
            permit: None,
            ended: false,
        }
    }

    pub fn is_grpc(&mut self, grpc: bool) {
        if grpc {
            self.traffic = Traffic::Grpc;
        }
    }

    /// A cluster was chosen, and took the request.
    pub fn assign(
        &mut self,
        cluster: &Rc<Cluster>,
        edges: Option<Rc<Edges>>,
        permit: Option<Permit<Holder>>,
    ) {
        self.cluster = Some(cluster.clone());
        self.edges = edges;
        self.permit = permit;
    }

    /// An attempt begins; the one before is over.
    pub fn attempt(&mut self, member: usize, again: bool, now_us: u64) {
        self.attempt = None;
        let Some(cluster) = &self.cluster else { return };
        self.member = Some(member);
        let attempt = Attempt {
            core: self.core.clone(),
            cluster: cluster.clone(),
            member,
            edges: self.edges.clone(),
            traffic: self.traffic,
            started_us: now_us,
        };
        if let Some((endpoint, _)) = cluster.endpoint(member) {
            endpoint.load.begin();
        }
        if let Some(cell) = attempt.cell() {
            cell.attempt(again);
        }
        self.attempt = Some(attempt);
    }

    pub fn connect_failed(&self) {
        if let Some(cell) = self.attempt.as_ref().and_then(Attempt::cell) {
            cell.connect_failed();
        }
    }

    /// What the attempt under way came to, for balancer and outlier detection.
    pub fn learn(&self, evidence: Option<Evidence>, now_us: u64) {
        let (Some(attempt), Some(evidence)) = (&self.attempt, evidence) else {
            return;
        };
        let latency_us = now_us.saturating_sub(attempt.started_us);
        if let Some((endpoint, _)) = attempt.cluster.endpoint(attempt.member) {
            match evidence {
                Evidence::Success => endpoint.load.observe(latency_us, now_us),
                _ => endpoint.load.penalise(latency_us, now_us),
            }
        }
        if attempt
            .cluster
            .plan
            .group
            .report(attempt.member, evidence, now_us / 1000)
            && let Some(cell) = attempt.cell()
        {
            cell.ejected();
        }
        let cluster = &attempt.cluster;
        let good = evidence == Evidence::Success;
        cluster.compare(attempt.member, good, latency_us, now_us, |member| {
            if let Some((_, endpoint)) = cluster.endpoint(member) {
                let edge = endpoint.edges.of_traffic(attempt.traffic);
                edge.cell(self.core.index).ejected();
            }
        });
    }

    /// The attempt is over and there is none after it.
    pub fn end_attempt(&mut self) {
        self.attempt = None;
    }

    /// The head that goes downstream.
    pub fn answer(&mut self, status: u16, grpc_status: Option<u8>, reason: Option<Reason>) {
        self.status = status;
        self.grpc_status = grpc_status;
        self.reason = reason;
    }

    /// Of gRPC: how it really ended.
    pub fn trailers(&mut self, trailers: &HeaderList) {
        if let Some(status) = trailers.get(names::GRPC_STATUS) {
            self.grpc_status = parse_grpc_status(status);
        }
    }

    /// The upstream broke off after its head had gone downstream.
    pub fn broke_off(&mut self) {
        self.learn(Some(Evidence::GatewayError), self.core.wheel.now_us());
        self.reason = Some(Reason::UpstreamReset);
        self.finish_now();
    }

    pub fn finish_now(&mut self) {
        self.finish(self.core.wheel.now_us());
    }

    /// Over. Later calls do nothing.
    pub fn finish(&mut self, now_us: u64) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.attempt = None;
        self.permit = None;
        let grpc_status = match self.traffic {
            Traffic::Grpc if self.status == 200 => Some(self.grpc_status.unwrap_or(GRPC_UNKNOWN)),
            _ => self.grpc_status.filter(|_| self.traffic == Traffic::Grpc),
        };
        let ending = Ending {
            status: self.status,
            grpc_status,
            reason: self.reason,
            duration_us: now_us.saturating_sub(self.started_us),
        };
        self.edge().cell(self.core.index).end(&ending);
        self.watch.leave(&self.core, now_us / 1000);
    }

    fn edge(&self) -> &Edge {
        let Some(cluster) = &self.cluster else {
            let own = &self.plan.plan.edges;
            return if self.direction == Direction::Inbound {
                &own.inbound
            } else {
                &own.outbound
            };
        };
        let assigned = self.member.and_then(|member| cluster.endpoint(member));
        let edges = match (&self.edges, assigned) {
            (Some(edges), _) => edges,
            (None, Some((_, endpoint))) => &endpoint.edges,
            (None, None) => &cluster.plan.unassigned,
        };
        edges.of_traffic(self.traffic)
    }
}

impl Drop for Tally {
    /// Dropped before its end: the caller went away.
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        self.core.count(Event::DownstreamAborted);
        // Nobody failed: whatever head went out, the answer was not wanted to its end.
        self.status = 0;
        self.finish_now();
    }
}

/// `1*DIGIT`, at most 255.
pub fn parse_grpc_status(value: &[u8]) -> Option<u8> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

const GRPC_UNKNOWN: u8 = 2;
