//! The one place where a request is counted: made when it comes, ended exactly once, however it ends.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use phalanx_model::name::Direction;
use phalanx_model::reason::Reason;
use phalanx_relay::{Checked, HeaderList, ResponseHead, Upgrade, names};
use phalanx_telemetry::trace::TraceContext;

use super::core::{Cluster, Core, CorePlan, Holder};
use super::deadline::Watch;
use crate::account::sight::{AnsweredBy, is_secret};
use crate::account::{Edge, EdgeCell, Ending, Event, Flow, LaneCounts, Sight, Speaks, Traffic};
use crate::balance::Evidence;
use crate::compare::{self, Side};
use crate::context::{Caller, StreamContext};
use crate::plan::cluster::Edges;
use crate::underway::{Ended, Ticket};
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
    /// Under way in the application.
    ticket: Option<Ticket>,
    /// Its answer is compared with another.
    side: Option<Box<Side>>,
    /// Of a stream that is counted while it is open.
    flow: Option<Rc<Flow>>,
    /// What is remembered of it, if somebody looks.
    sight: Option<Box<Sight>>,
    ended: bool,
}

/// An attempt under way: outstanding for the balancer, active on its edge, until dropped.
pub struct Attempt {
    core: Rc<Core>,
    cluster: Rc<Cluster>,
    member: usize,
    edges: Option<Rc<Edges>>,
    traffic: Traffic,
    started_us: u64,
}

impl Attempt {
    fn edge(&self) -> Option<&Arc<Edge>> {
        let edges = match &self.edges {
            Some(edges) => edges,
            None => &self.cluster.endpoint(self.member)?.1.edges,
        };
        Some(edges.of_traffic(self.traffic))
    }

    fn cell(&self) -> Option<&EdgeCell> {
        Some(self.edge()?.cell(self.core.index))
    }

    pub fn connect_failed(&self) {
        if let Some(cell) = self.cell() {
            cell.connect_failed();
        }
    }

    /// What it came to, for balancer and outlier detection.
    pub fn learn(&self, evidence: Option<Evidence>, now_us: u64) {
        let Some(evidence) = evidence else {
            return;
        };
        let latency_us = now_us.saturating_sub(self.started_us);
        let cluster = &self.cluster;
        if let Some((endpoint, _)) = cluster.endpoint(self.member) {
            match evidence {
                Evidence::Success => endpoint.load.observe(latency_us, now_us),
                _ => endpoint.load.penalise(latency_us, now_us),
            }
        }
        let group = &cluster.plan.group;
        if group.report(self.member, evidence, now_us / 1000)
            && let Some(cell) = self.cell()
        {
            cell.ejected();
        }
        let good = evidence == Evidence::Success;
        cluster.compare(self.member, good, latency_us, now_us, |member| {
            if let Some((_, endpoint)) = cluster.endpoint(member) {
                let edge = endpoint.edges.of_traffic(self.traffic);
                edge.cell(self.core.index).ejected();
            }
        });
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
            ticket: None,
            side: None,
            flow: None,
            sight: None,
            ended: false,
        }
    }

    /// The connection that the request came by is to end.
    pub fn is_draining(&self) -> bool {
        self.watch.is_draining()
    }

    /// A head came in, and is what it was checked to be; nothing has changed it yet.
    #[inline]
    pub fn came(&mut self, request: &Checked) {
        self.is_grpc(request.is_grpc());
        let speaks = match request.upgrade() {
            Some(Upgrade::WebSocket) => Some(Speaks::WebSocket),
            None if request.is_grpc() => Some(Speaks::Grpc),
            None => None,
        };
        if !self.core.account.lookout().wanted().nothing() {
            self.look(request);
        }
        let speaks = match self.sight {
            Some(_) => Some(speaks.unwrap_or(Speaks::Bytes)),
            None => speaks,
        };
        self.flow = speaks.map(|speaks| Rc::new(Flow::new(self.core.index, speaks)));
    }

    #[cold]
    fn look(&mut self, request: &Checked) {
        let wanted = self.core.account.lookout().wanted();
        let mut sight = Sight::take();
        sight.method.push_str(request.method_str());
        sight.authority.push_str(request.authority());
        sight.path.push_str(request.path());
        if wanted.query() {
            sight.query = request.query().map(str::to_owned);
        }
        if wanted.headers() {
            let headers = request.headers().iter().take(HEADERS_MAX);
            let shown = headers.map(|(name, value)| match is_secret(name.as_str()) {
                true => (name.as_str().to_owned(), "[redacted]".to_owned()),
                false => {
                    let text = String::from_utf8_lossy(value);
                    (name.as_str().to_owned(), text.into_owned())
                }
            });
            sight.headers = shown.collect();
        }
        self.sight = Some(sight);
    }

    /// A head was refused at the door; of what it said only the method is told.
    pub fn refused(&mut self, method: &str) {
        if self.core.account.lookout().wanted().nothing() {
            return;
        }
        let mut sight = Sight::take();
        sight.method.extend(method.chars().take(METHOD_MAX));
        if self.core.account.lookout().keeps(&mut sight) {
            self.sight = Some(sight);
        }
    }

    /// The stages have decided: where it goes, or what it is answered.
    #[inline]
    pub fn routed(&mut self, request: &Checked, context: &StreamContext<'_>) {
        if let Some(colour) = context.colour {
            let colours = self.core.account.colours();
            colours.count(self.core.index, self.direction, colour);
        }
        if let Some(sight) = self.sight.take() {
            self.sight = self.look_on(sight, request, context);
        }
    }

    #[cold]
    fn look_on(
        &self,
        mut sight: Box<Sight>,
        request: &Checked,
        context: &StreamContext<'_>,
    ) -> Option<Box<Sight>> {
        use std::fmt::Write as _;
        let headers = request.headers();
        if let Some(trace) = TraceContext::of(headers.get_all(names::TRACEPARENT)) {
            sight.trace_id = trace.trace_id();
        }
        if !self.core.account.lookout().keeps(&mut sight) {
            sight.put();
            return None;
        }
        if let Some(id) = headers.get(names::X_REQUEST_ID) {
            let id = String::from_utf8_lossy(id);
            sight.request_id.extend(id.chars().take(REQUEST_ID_MAX));
        }
        if let Some(colour) = headers.get(names::X_ENV) {
            let colour = String::from_utf8_lossy(colour);
            sight.colour.extend(colour.chars().take(COLOUR_SHOWN));
        }
        sight.correlation = context.correlated;
        if let Some(rule) = context.rule {
            sight.rule.push_str(&rule.name);
        }
        if let Caller::Known(known) = context.caller {
            let _ = write!(sight.caller, "{}", known.peer.id);
            sight.certificate = Some(known.peer.fingerprint);
        }
        Some(sight)
    }

    /// It passed all stages: one that comes in is the application's now, with these headers.
    pub fn enters(&mut self, request: &Checked) {
        if self.direction == Direction::Inbound {
            let (underway, now_ms) = (self.core.account.underway(), self.started_us / 1000);
            self.ticket = underway.begin(self.core.index, request.headers(), now_ms);
        }
    }

    /// Its answer is compared with that to a copy, or that of a copy with the original's.
    pub fn compare(&mut self, side: Box<Side>) {
        self.side = Some(side);
    }

    /// The head of an answer, as it came.
    pub fn heard(&mut self, head: &ResponseHead) {
        if let Some(side) = &mut self.side {
            side.seen().head(head);
        }
    }

    /// What moves on it is to be told here, chunk by chunk; none where nobody counts it.
    pub fn flow(&self) -> Option<Rc<Flow>> {
        self.flow.clone()
    }

    /// Bytes of the answer's body go downstream.
    #[inline]
    pub fn sent(&mut self, chunk: &[u8]) {
        if let Some(side) = &mut self.side {
            side.seen().body(chunk);
        }
        if let Some(flow) = &self.flow {
            flow.response(chunk);
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
        self.attempt = self.begin(member, again, now_us);
        self.goes_to_attempt();
        if let Some(sight) = &mut self.sight {
            sight.attempts += 1;
            sight.phases.head_us = None;
        }
    }

    fn begin(&self, member: usize, again: bool, now_us: u64) -> Option<Attempt> {
        let cluster = self.cluster.as_ref()?;
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
        Some(attempt)
    }

    /// Counted from here on is what the attempt under way does.
    fn goes_to_attempt(&mut self) {
        let Some(attempt) = &self.attempt else { return };
        self.member = Some(attempt.member);
        if let (Some(flow), Some(edge)) = (&self.flow, attempt.edge()) {
            flow.goes_to(edge);
        }
        if let Some(sight) = &mut self.sight {
            let endpoint = attempt.cluster.endpoint(attempt.member);
            sight.upstream = endpoint.map(|(_, plan)| plan.address);
            let began_us = attempt.started_us.saturating_sub(self.started_us);
            sight.phases.attempt_us = Some(began_us);
        }
    }

    /// One more attempt begins while another is under way; dropped, it leaves no trace at its endpoint.
    pub fn hedge(&mut self, member: usize, now_us: u64) -> Option<Attempt> {
        if let Some(sight) = &mut self.sight {
            sight.attempts += 1;
            sight.hedges += 1;
        }
        self.begin(member, false, now_us)
    }

    /// Its answer is the one that is taken.
    pub fn adopt(&mut self, attempt: Attempt) {
        self.attempt = Some(attempt);
        self.goes_to_attempt();
    }

    pub fn connect_failed(&self) {
        if let Some(attempt) = &self.attempt {
            attempt.connect_failed();
        }
    }

    /// What the attempt under way came to, for balancer and outlier detection.
    pub fn learn(&self, evidence: Option<Evidence>, now_us: u64) {
        if let Some(attempt) = &self.attempt {
            attempt.learn(evidence, now_us);
        }
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
        if let Some(sight) = &mut self.sight {
            let head_us = self.core.wheel.now_us().saturating_sub(self.started_us);
            sight.phases.head_us = Some(head_us);
        }
    }

    /// Of gRPC: how it really ended.
    pub fn trailers(&mut self, trailers: &HeaderList) {
        if let Some(status) = trailers.get(names::GRPC_STATUS) {
            self.grpc_status = parse_grpc_status(status);
        }
    }

    /// The answer is not completed after its head has gone downstream: the upstream broke off, or as if the caller went away.
    pub fn break_off(mut self, is_callers: bool) {
        if is_callers {
            return; // see `drop`
        }
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
        self.count_lane();
        if let Some(ticket) = self.ticket.take() {
            let underway = self.core.account.underway();
            underway.end(self.core.index, ticket, self.left_behind(), now_us / 1000);
        }
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
        if let Some(side) = self.side.take() {
            let end = compare::End {
                grpc_status,
                is_whole: self.status != 0 && self.reason.is_none(),
                duration_us: ending.duration_us,
            };
            side.end(end, self.core.account.comparisons());
        }
        self.edge().cell(self.core.index).end(&ending);
        if let Some(sight) = self.sight.take() {
            self.tell(sight, &ending);
        }
        self.watch.leave(&self.core, now_us / 1000);
    }

    /// Whether an application that got the request may still be at work for it.
    fn left_behind(&self) -> Ended {
        let is_whole = self.status != 0 && self.reason.is_none();
        let never_came = matches!(self.reason, Some(Reason::ConnectFailed));
        match self.member.is_some() && !is_whole && !never_came {
            true => Ended::Abandoned,
            false => Ended::Answered,
        }
    }

    /// Who got it in the end.
    fn count_lane(&self) {
        if let Some((lane, is_far)) = self.lane() {
            lane.count(self.core.index, is_far);
        }
    }

    fn answered_by(&self) -> Option<AnsweredBy> {
        let (_, is_far) = self.lane()?;
        Some(match is_far {
            Some(false) => AnsweredBy::Lane,
            Some(true) => AnsweredBy::Baseline,
            None => AnsweredBy::Nobody,
        })
    }

    /// Where a lane is for it: its counts, and whether the endpoint that it came to last is of the baseline; none: of nobody.
    fn lane(&self) -> Option<(&LaneCounts, Option<bool>)> {
        let cluster = &self.cluster.as_ref()?.plan;
        let lane = cluster.lane.as_deref()?;
        let member = self.member.and_then(|member| cluster.group.member(member));
        Some((lane, member.map(|member| member.is_far)))
    }

    #[cold]
    fn tell(&self, mut sight: Box<Sight>, ending: &Ending) {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH);
        let now_ms = unix.map_or(0, |unix| u64::try_from(unix.as_millis()).unwrap_or(0));
        sight.time_ms = now_ms.saturating_sub(ending.duration_us / 1000);
        sight.direction = self.direction;
        sight.peer = self.watch.address;
        sight.traffic = self.traffic;
        let key = self.edge().key();
        sight.cluster = key.cluster.clone();
        sight.version.push_str(&key.version);
        sight.lane = self.answered_by();
        (sight.status, sight.reason) = (ending.status, ending.reason);
        sight.grpc_status = ending.grpc_status;
        sight.phases.end_us = ending.duration_us;
        if let Some(flow) = &self.flow {
            (sight.bytes, sight.messages) = (flow.bytes(), flow.messages());
        }
        self.core.account.lookout().tell(sight);
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
        // Whoever waits for a head in vain may have given up on one that hangs.
        if self.status == 0 && self.member.is_some() {
            self.edge().cell(self.core.index).abandoned();
        }
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
/// Of a request, for a tap.
const HEADERS_MAX: usize = 64;
/// Characters of what the caller may write at will.
const METHOD_MAX: usize = 32;
const REQUEST_ID_MAX: usize = 128;
/// Of a colour, which has 32 characters at most; something else may stand there.
const COLOUR_SHOWN: usize = 64;
