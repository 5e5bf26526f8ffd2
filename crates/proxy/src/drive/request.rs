//! One request from head to answer: the stages in their order, then attempts until one answer may go downstream.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use http::request::Parts;
use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use phalanx_model::instance::Protocol;
use phalanx_model::reason::Reason;
use phalanx_relay::{
    Checked, Field, Method, Reply, ResponseHead, Upgrade, Verdict, Version, names,
};

use super::body::{DownBody, RequestBody, UpBody};
use super::core::{Cluster, Core, Endpoint, Holder};
use super::encode;
use super::exchange::{Exchange, Expiry};
use super::headers;
use super::hyper_in::{self, Door};
use super::hyper_out::{self, H1, H2Lease, H2Use, Sent, Slot, Upstream};
use super::secure;
use super::tally::{Tally, parse_grpc_status};
use super::timer::NEVER;
use super::tunnel::Upgraded;
use crate::account::Event;
use crate::balance::{Picked, Tried};
use crate::context::StreamContext;
use crate::guard::Lasting;
use crate::plan::table::ForwardPlan;
use crate::plan::{Alpn, Outbound, Plan};
use crate::upstream::retry::retries_allowed;
use crate::upstream::{Fault, Heard, Lease, Permit, Share};
use crate::{filter, guard, limit, listen, route};

type Stage = for<'p> fn(&'p Plan, &mut Checked, &mut StreamContext<'p>) -> Verdict;

/// Every request passes them in this order.
const STAGES: [Stage; 5] = [
    listen::admit,
    route::choose,
    guard::admit,
    limit::admit,
    filter::request,
];

/// The answer to one request. Nothing that is large is handed from one future to another: each would keep a copy.
pub fn serve(
    door: Rc<Door>,
    exchange: Rc<Exchange>,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Response<DownBody>, Infallible>> {
    let (parts, incoming) = request.into_parts();
    let mut original = Some(parts);
    async move {
        if door.is_http2() {
            // hyper looks for a reset only after the first poll: so nothing is sent on for a stream that was opened and
            // reset in one batch.
            super::yield_once().await;
        }
        Ok(answer(&door, exchange, &mut original, incoming).await)
    }
}

async fn answer(
    door: &Rc<Door>,
    exchange: Rc<Exchange>,
    original: &mut Option<Parts>,
    incoming: Incoming,
) -> Response<DownBody> {
    let core = &door.core;
    let now_us = core.wheel.now_us();
    let mut plan = core.plan();
    let mut tally = Tally::new(core, plan.clone(), &door.watch, door.direction, now_us);
    let Some(parts) = original else {
        return hyper_in::reply(&own_fault(), false, false, tally);
    };
    let checked = hyper_in::check(core.workspace(), parts, &incoming, &core.limits);
    let mut checked = match checked {
        Ok(checked) => Returned {
            checked: Some(checked),
            door,
        },
        Err((refusal, workspace)) => {
            core.put_workspace(workspace);
            core.count(Event::Refused);
            tally.refused(parts.method.as_str());
            exchange.begin(now_us, false);
            return hyper_in::reply(
                &refusal.reply(),
                false,
                parts.method == http::Method::HEAD,
                tally,
            );
        }
    };
    let Some(request) = &mut checked.checked else {
        return hyper_in::reply(&own_fault(), false, false, tally);
    };
    let (grpc, bodyless) = (request.is_grpc(), request.method() == Method::Head);
    tally.came(request);
    exchange.begin(
        now_us,
        !request.framing().is_empty() && !hyper::body::Body::is_end_stream(&incoming),
    );
    let mut parked = false;
    let context = loop {
        let guarded = core.secure.is_some();
        let mut context = StreamContext::new(door.direction, &door.caller, guarded, core.random());
        context.peer = door.watch.address.map(|address| address.ip());
        let verdict = walk(&plan.plan, request, &mut context);
        if verdict != Verdict::Park {
            tally.routed(request, &context);
        }
        match verdict {
            Verdict::Continue => break context,
            Verdict::Respond(mut reply) => {
                filter::own(&mut reply, &context);
                if reply.reason == Some(Reason::Unauthenticated) {
                    door.refused();
                }
                return hyper_in::reply(&reply, grpc, bodyless, tally);
            }
            Verdict::Park => {}
        }
        // Once: with a plan that has the host, no stage parks.
        let waited = match std::mem::replace(&mut parked, true) {
            false => Box::pin(host(core, &plan.plan, request)).await,
            true => Err(Reason::NoHealthyUpstream),
        };
        if let Err(reason) = waited {
            return hyper_in::reply(&Reply::of(reason), grpc, bodyless, tally);
        }
        plan = core.plan();
    };
    let chosen = context
        .cluster
        .and_then(|place| plan.cluster(place))
        .zip(context.forward);
    let Some((cluster, forward)) = chosen else {
        return hyper_in::reply(&own_fault(), grpc, bodyless, tally);
    };
    let permit = Permit::take(
        Holder(cluster.clone()),
        Share::Request,
        cluster.plan.limits.max_requests,
    );
    let overflow = permit.is_none();
    tally.assign(cluster, door.edges(cluster), permit);
    if overflow {
        return hyper_in::reply(&Reply::of(Reason::Overflow), grpc, bodyless, tally);
    }
    let streaming = grpc || request.upgrade().is_some();
    let (allowed, head_only) = match forward.request_timeout_ms {
        Some(timeout) => (timeout, false),
        None if forward.default_timeout && !streaming => (core.deadlines.route, true),
        None => (0, false),
    };
    let (allowed, head_only) = match limit::left_ms(&context) {
        Some(left) if head_only || allowed == 0 || left < allowed => (left, false),
        _ => (allowed, head_only),
    };
    exchange.allow(streaming, allowed, head_only);
    let body = (!exchange.is_request_done()).then(|| {
        RequestBody::new(
            incoming,
            request.framing(),
            exchange.clone(),
            door.is_http2(),
            core.limits.replay_bytes,
            tally.flow(),
        )
    });
    let mut run = Run {
        door,
        exchange: &exchange,
        cluster,
        forward,
        request,
        context: &context,
        original,
        body,
        answered_us: now_us,
    };
    let ended = match run.pause(context.delay_ms).await {
        true => run.attempts(&mut tally).await,
        false => Err(Reply::of(Reason::Timeout)),
    };
    match ended {
        Ok(answer) => run.pass_on(answer, tally, bodyless),
        Err(mut reply) => {
            filter::own(&mut reply, &context);
            tally.end_attempt();
            hyper_in::reply(&reply, grpc, bodyless, tally)
        }
    }
}

/// Also what `explain` goes through.
pub(crate) fn walk<'p>(plan: &'p Plan, request: &mut Checked, context: &mut StreamContext<'p>) -> Verdict {
    for stage in STAGES {
        match stage(plan, request, context) {
            Verdict::Continue => {}
            other => return other,
        }
    }
    Verdict::Continue
}

/// Waits until a plan has the request's host.
async fn host(core: &Rc<Core>, plan: &Plan, request: &Checked) -> Result<(), Reason> {
    let Outbound::Demand { desk, .. } = &plan.outbound else {
        return Err(Reason::Fault);
    };
    let authority = request.authority();
    let is_there = || match &core.plan().plan.outbound {
        Outbound::Demand { hosts, .. } => hosts.contains(authority),
        _ => true,
    };
    desk.wait(authority, is_there).await
}

/// A defect of ours, told as a fault and not as a panic.
fn own_fault() -> Reply {
    Reply::of(Reason::Fault)
}

/// Gives the request's memory back, however the request ends.
struct Returned<'d> {
    checked: Option<Checked>,
    door: &'d Door,
}

impl Drop for Returned<'_> {
    fn drop(&mut self) {
        if let Some(checked) = self.checked.take() {
            self.door.core.put_workspace(checked.into_workspace());
        }
    }
}

/// What all attempts of one request share.
struct Run<'r> {
    door: &'r Rc<Door>,
    exchange: &'r Rc<Exchange>,
    cluster: &'r Rc<Cluster>,
    forward: &'r ForwardPlan,
    request: &'r mut Checked,
    context: &'r StreamContext<'r>,
    /// hyper's own parts, whose memory the first attempt takes.
    original: &'r mut Option<Parts>,
    body: Option<Rc<RequestBody>>,
    /// When the last attempt ended.
    answered_us: u64,
}

/// An answer that could go downstream.
struct Answer {
    head: ResponseHead,
    map: HeaderMap,
    upstream: Upstream,
    grpc_status: Option<u8>,
    reason: Option<Reason>,
}

impl Answer {
    fn heard(&self) -> Heard {
        Heard::Answer {
            status: self.head.status,
            peer_reason: self.reason,
            grpc_status: self.grpc_status,
        }
    }
}

impl Run<'_> {
    /// Tries until an answer may be passed on, or there is nothing more to try.
    async fn attempts(&mut self, tally: &mut Tally) -> Result<Answer, Reply> {
        let core = &self.door.core;
        let mut tried = Tried::default();
        let mut rng = core.random();
        let idempotent = self.request.method().is_idempotent();
        let mut budget: Option<Permit<Holder>> = None;
        let mut number = 0;
        let mut now_us = self.exchange.started_us.get();
        loop {
            limit::carry(self.request, self.context)?;
            let keeps = |member: &usize| self.cluster.plan.group.keeps(*member, now_us / 1000);
            let wanted = self.context.wanted.filter(|_| number == 0).filter(keeps);
            let pick = |rng| self.cluster.pick(&tried, rng, self.context.hash, now_us);
            let picked = wanted.map(Picked::wanted).or_else(|| pick(&mut rng));
            let Some(Picked {
                member,
                is_far,
                in_panic,
            }) = picked
            else {
                return Err(Reply::of(Reason::NoHealthyUpstream));
            };
            if is_far {
                core.count(Event::PickedFar);
            }
            if in_panic {
                core.count(Event::PickedInPanic);
            }
            tried.add(member);
            self.context.endpoint.set(self.address(member));
            tally.attempt(member, number > 0, now_us);
            let ended = self.attempt(member, tally).await;
            drop(budget.take());
            now_us = core.wheel.now_us();
            self.answered_us = now_us;
            let heard = match &ended {
                Ok(answer) => answer.heard(),
                Err(Missed::Fault(fault)) => Heard::Fault(*fault),
                Err(Missed::Expired(expiry)) => return Err(self.expired(*expiry, tally, now_us)),
            };
            if self.body.as_ref().is_some_and(|body| body.is_broken()) {
                return Err(Reply::of(Reason::BadRequest).and_close()); // the caller's doing, no word about the endpoint
            }
            tally.learn(heard.evidence(), now_us);
            if number >= self.forward.retry.attempts
                || !self.forward.retry.allows(heard, idempotent)
            {
                return passed(ended);
            }
            if !self.may_repeat() {
                core.count(Event::RetryUnreplayable);
                return passed(ended);
            }
            tally.end_attempt();
            number += 1;
            budget = match Box::pin(self.wait(number, heard, &mut rng)).await {
                Waited::Go(budget) => budget,
                Waited::Spent => {
                    core.count(Event::RetryBudget);
                    return passed(ended);
                }
                // The deadline came while waiting: what the backend said last says more than that.
                Waited::Expired => return passed(ended),
            };
            now_us = core.wheel.now_us();
        }
    }

    fn may_repeat(&self) -> bool {
        self.request.upgrade().is_none()
            && self.body.as_ref().is_none_or(|body| body.is_repeatable())
    }

    /// Waits the backoff out, and then for a share of the retry budget, a few times over if need be: the budget bounds
    /// how many retries are under way, not how many requests may be saved. What never reached the application costs it
    /// nothing and needs no budget.
    async fn wait(&self, number: u32, heard: Heard, rng: &mut fastrand::Rng) -> Waited {
        for _ in 0..BUDGET_WAITS {
            // Full jitter above the minimum, doubling.
            let base = self.forward.retry.backoff_ms;
            let spread = base
                .saturating_mul(1 << number.min(BACKOFF_DOUBLINGS))
                .min(BACKOFF_MAX_MS);
            let pause = base.saturating_add(rng.u64(0..=spread / 2));
            if !self.pause(pause).await {
                return Waited::Expired;
            }
            if heard.is_unprocessed() {
                return Waited::Go(None);
            }
            let plan = &self.cluster.plan;
            let allowed = retries_allowed(
                plan.retry_budget,
                plan.limits,
                plan.breaker.count(Share::Request),
            );
            let permit = Permit::take(Holder(self.cluster.clone()), Share::Retry, allowed);
            if permit.is_some() {
                return Waited::Go(permit);
            }
        }
        Waited::Spent
    }

    /// False when another deadline came first.
    async fn pause(&self, pause_ms: u64) -> bool {
        if pause_ms == 0 {
            return true;
        }
        self.exchange
            .begin_pause(self.door.core.wheel.now_ms().saturating_add(pause_ms));
        poll_fn(|cx| self.exchange.poll_expiry(cx)).await == Expiry::Pause
    }

    fn expired(&self, expiry: Expiry, tally: &mut Tally, now_us: u64) -> Reply {
        if let Some(event) = expiry.event() {
            self.door.core.count(event);
        }
        match expiry {
            // The caller's own doing: no word about the endpoint.
            Expiry::Body => Reply::of(Reason::Timeout).with_status(408).and_close(),
            _ => {
                tally.learn(Fault::Timeout.evidence(), now_us);
                Reply::of(Reason::Timeout)
            }
        }
    }

    /// One attempt at one endpoint. A connection that turns out to be closed already, or a stream that was refused, is
    /// replaced by a fresh one at once: that is no failure of the endpoint.
    async fn attempt(&mut self, member: usize, tally: &Tally) -> Result<Answer, Missed> {
        let core = self.door.core.clone();
        let limit = self
            .forward
            .attempt_timeout_ms
            .map_or(NEVER, |timeout| core.wheel.now_ms().saturating_add(timeout));
        self.exchange.begin_attempt(limit);
        let idempotent = self.request.method().is_idempotent();
        let mut fresh = false;
        loop {
            let ended = self.send(member, fresh).await;
            match ended {
                Err(Missed::Fault(
                    fault @ (Fault::Refused
                    | Fault::ConnectFailed
                    | Fault::NoCredentials
                    | Fault::Mistrust),
                )) => {
                    tally.connect_failed();
                    if fault == Fault::Refused
                        && let Some(address) = self.address(member)
                    {
                        core.account.witness().refused(address);
                    }
                    return Err(Missed::Fault(fault));
                }
                Err(Missed::Fault(fault @ (Fault::Unprocessed | Fault::Stale)))
                    if !fresh
                        && self.may_repeat()
                        && (fault == Fault::Unprocessed || idempotent) =>
                {
                    core.count(Event::StaleConnection);
                    fresh = true;
                }
                // After a first stale one there is no excuse any more.
                Err(Missed::Fault(Fault::Stale)) => return Err(Missed::Fault(Fault::Reset)),
                Err(Missed::Expired(Expiry::Attempt)) => {
                    core.count(Event::AttemptDeadline);
                    return Err(Missed::Fault(Fault::Timeout));
                }
                other => {
                    if other.is_ok()
                        && let Some(address) = self.address(member)
                    {
                        core.account.witness().reached(address);
                    }
                    return other;
                }
            }
        }
    }

    fn address(&self, member: usize) -> Option<SocketAddr> {
        let (endpoint, _) = self.cluster.endpoint(member)?;
        Some(endpoint.address)
    }

    async fn send(&mut self, member: usize, fresh: bool) -> Result<Answer, Missed> {
        let cluster = self.cluster;
        let Some((endpoint, plan)) = cluster.endpoint(member) else {
            return Err(Missed::Fault(Fault::ConnectFailed));
        };
        let port = plan.port_field.as_ref();
        let (response, upstream) = if self.speaks_http2() {
            let stream = self.acquire_h2(endpoint, port.is_some()).await?;
            let answer = pin!(stream.send(self.encode(true, port)));
            let response = hyper_out::answer_h2(&stream, answer, |cx| self.expiry(cx)).await;
            let response = response.inspect_err(|sent| self.refused_by(endpoint, sent))?;
            let (parts, incoming) = response.into_parts();
            (
                parts,
                Upstream::H2 {
                    incoming,
                    _stream: stream,
                },
            )
        } else {
            let mut lease = self.acquire_h1(endpoint, fresh).await?;
            let answer = pin!(lease.connection.send(self.encode(false, port)));
            let response = hyper_out::answer_h1(&mut lease, answer, |cx| self.expiry(cx)).await;
            let response = response.inspect_err(|sent| self.refused_by(endpoint, sent))?;
            let (parts, incoming) = response.into_parts();
            (parts, Upstream::H1 { incoming, lease })
        };
        self.read(response, upstream, port.is_some())
    }

    /// Who did not take our certificate would not take it in the next moment either.
    fn refused_by(&self, endpoint: &Endpoint, sent: &Sent<Expiry>) {
        if let Sent::Failed(Fault::Mistrust) = sent {
            endpoint.bar(self.door.core.wheel.now_ms());
        }
    }

    /// Checks the head of an answer. `meshed`: the endpoint has a sidecar, which speaks for itself and lets its
    /// application not do so.
    fn read(
        &self,
        parts: http::response::Parts,
        upstream: Upstream,
        meshed: bool,
    ) -> Result<Answer, Missed> {
        let core = &self.door.core;
        let mut head = core.head();
        let status = parts.status.as_u16();
        let bodyless = self.request.method() == Method::Head || matches!(status, 204 | 304);
        let filled = head.fill(
            status,
            headers::fields(&parts.headers),
            bodyless,
            &core.limits,
        );
        if filled.is_err() || (status == 101 && self.request.upgrade().is_none()) {
            core.put_head(head);
            return Err(Missed::Fault(Fault::BadAnswer));
        }
        let reason = head.headers.get(names::X_PHALANX_REASON).filter(|_| meshed);
        let reason = reason.and_then(|reason| Reason::parse(std::str::from_utf8(reason).ok()?));
        let grpc_status = head
            .headers
            .get(names::GRPC_STATUS)
            .and_then(parse_grpc_status);
        Ok(Answer {
            head,
            map: parts.headers,
            upstream,
            grpc_status,
            reason,
        })
    }

    /// Sends the answer downstream; its body follows as it comes.
    fn pass_on(&mut self, answer: Answer, mut tally: Tally, bodyless: bool) -> Response<DownBody> {
        let Answer {
            mut head,
            map,
            upstream,
            grpc_status,
            reason: _,
        } = answer;
        let core = &self.door.core;
        filter::response(&mut head, self.context);
        tally.answer(head.status, grpc_status, None);
        self.exchange.answered(self.answered_us / 1000);
        if let Some(body) = &self.body {
            body.release();
        }
        let bodyless = bodyless || matches!(head.status, 204 | 304);
        let body = match (head.status, upstream) {
            (101, Upstream::H1 { lease, .. }) => {
                let upgraded = Upgraded::new(core, lease.connection, tally);
                *self.door.upgraded.borrow_mut() = Some(upgraded);
                let port = self.cluster.plan.name.port;
                let lasting = Lasting::of(port, self.request, self.context);
                *self.door.lasting.borrow_mut() = lasting;
                DownBody::Empty(None)
            }
            (_, upstream) => DownBody::stream(upstream, self.exchange.clone(), tally),
        };
        let response = hyper_in::answer(&head, map, body, bodyless);
        core.put_head(head);
        response
    }

    /// By the cluster's protocol, else as the caller speaks; WebSockets need HTTP/1.
    fn speaks_http2(&self) -> bool {
        match self.cluster.plan.protocol {
            _ if self.request.upgrade() == Some(Upgrade::WebSocket) => false,
            Protocol::H2c | Protocol::Grpc => true,
            Protocol::Http1 => false,
            Protocol::Auto | Protocol::Tcp => self.request.version() == Version::Http2,
        }
    }

    fn encode(&mut self, http2: bool, port: Option<&Field>) -> Request<UpBody> {
        let body = self.body.as_ref().map_or(UpBody::Empty, RequestBody::again);
        encode::request(self.request, self.original.take(), port, http2, body)
    }

    #[inline]
    fn expiry(&self, cx: &mut Context<'_>) -> Poll<Expiry> {
        self.exchange.poll_expiry(cx)
    }

    /// Runs `future` unless a deadline comes first.
    async fn within<T>(&self, future: impl Future<Output = T>) -> Result<T, Missed> {
        let mut future = std::pin::pin!(future);
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(value) => Poll::Ready(Ok(value)),
            Poll::Pending => self.expiry(cx).map(|expiry| Err(Missed::Expired(expiry))),
        })
        .await
    }

    /// An idle connection, or a new one. What is not needed for the first lies in a box: the future of every request
    /// would be four times as large.
    async fn acquire_h1(
        &self,
        endpoint: &Rc<Endpoint>,
        fresh: bool,
    ) -> Result<Lease<Box<H1>>, Missed> {
        match self.idle_h1(endpoint, fresh).await {
            Some(lease) => Ok(lease),
            None => Box::pin(self.open_h1(endpoint, fresh)).await,
        }
    }

    async fn idle_h1(&self, endpoint: &Rc<Endpoint>, fresh: bool) -> Option<Lease<Box<H1>>> {
        if fresh {
            return None;
        }
        let lease = |cx: &mut Context<'_>| endpoint.h1.lease(|idle| idle.is_usable_in(cx));
        let leased = poll_fn(|cx| Poll::Ready(lease(cx))).await?;
        self.door.core.count(Event::PoolReused);
        Some(leased)
    }

    /// A new connection within the limit, or the first that becomes free.
    async fn open_h1(
        &self,
        endpoint: &Rc<Endpoint>,
        fresh: bool,
    ) -> Result<Lease<Box<H1>>, Missed> {
        let (core, pool) = (&self.door.core, &self.cluster.plan.pool);
        let mut waiting = None;
        loop {
            if let Some(slot) = self.slot() {
                let stream = secure::connect(core, endpoint, Alpn::Http1, pool.connect_timeout);
                let stream = self.within(stream).await??;
                let requests_max = pool.max_requests_per_connection;
                let opened = H1::open(stream, &core.limits, requests_max, slot).await?;
                core.count(Event::PoolOpened);
                return Ok(endpoint.h1.adopt(opened));
            }
            self.wait_freed(&mut waiting).await?;
            if let Some(lease) = self.idle_h1(endpoint, fresh).await {
                return Ok(lease);
            }
        }
    }

    async fn acquire_h2(&self, endpoint: &Rc<Endpoint>, meshed: bool) -> Result<H2Lease, Missed> {
        match endpoint.h2.lease(self.door.core.limits.streams) {
            Some(stream) => Ok(stream),
            None => Box::pin(self.open_h2(endpoint, meshed)).await,
        }
    }

    /// A stream on a new connection: opened by this request, or by another that is already at it.
    async fn open_h2(&self, endpoint: &Rc<Endpoint>, meshed: bool) -> Result<H2Lease, Missed> {
        let (core, pool) = (&self.door.core, &self.cluster.plan.pool);
        let how = H2Use {
            requests_max: pool.max_requests_per_connection,
            pings: core.pings.filter(|_| meshed),
        };
        let failures = endpoint.h2.failures();
        let mut waiting = None;
        loop {
            let changed = endpoint.h2.changed.notified();
            if let Some(stream) = endpoint.h2.lease(core.limits.streams) {
                return Ok(stream);
            }
            if let Some(fault) = endpoint.h2.failed_since(failures) {
                return Err(Missed::Fault(fault));
            }
            let Some(connecting) = endpoint.h2.connecting() else {
                self.within(changed).await?;
                continue;
            };
            if let Some(slot) = self.slot() {
                let opened = connecting.open(core, endpoint, pool.connect_timeout, how, slot);
                let opened = self.within(opened).await??;
                core.count(Event::PoolOpened);
                return Ok(opened);
            }
            drop(connecting);
            self.wait_freed(&mut waiting).await?;
        }
    }

    /// The right to open one more connection to the cluster. At the limit, an idle one to another endpoint makes room.
    fn slot(&self) -> Option<Slot> {
        let plan = &self.cluster.plan;
        let take = || {
            Permit::take(
                plan.breaker.clone(),
                Share::Connection,
                plan.limits.max_connections,
            )
        };
        let permit = take().or_else(|| {
            if self.cluster.evict_idle() {
                take()
            } else {
                None
            }
        })?;
        Some(Slot::new(permit, &self.cluster.freed))
    }

    /// Waits until something of the cluster becomes free on this core; looks again after a while, since another core
    /// may have freed it.
    async fn wait_freed(&self, waiting: &mut Option<Permit<Holder>>) -> Result<(), Missed> {
        if waiting.is_none() {
            let limit = self.cluster.plan.limits.max_pending_requests;
            let permit = Permit::take(Holder(self.cluster.clone()), Share::Pending, limit);
            *waiting = Some(permit.ok_or(Missed::Fault(Fault::Overflow))?);
        }
        let freed = self.cluster.freed.notified();
        let waited = tokio::time::timeout(PENDING_LOOK, freed);
        self.within(waited).await.map(|_| ())
    }
}

enum Waited {
    Go(Option<Permit<Holder>>),
    Spent,
    Expired,
}

/// Why an attempt has no answer.
enum Missed {
    Fault(Fault),
    Expired(Expiry),
}

impl From<Fault> for Missed {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<Sent<Expiry>> for Missed {
    fn from(sent: Sent<Expiry>) -> Self {
        match sent {
            Sent::Failed(fault) => Self::Fault(fault),
            Sent::Expired(expiry) => Self::Expired(expiry),
        }
    }
}

/// The last word of the backend, or ours for want of one.
fn passed(ended: Result<Answer, Missed>) -> Result<Answer, Reply> {
    ended.map_err(|missed| match missed {
        Missed::Fault(Fault::BadAnswer) => Reply::of(Reason::UpstreamReset).with_status(502),
        Missed::Fault(fault) => Reply::of(fault.reason()),
        Missed::Expired(_) => Reply::of(Reason::Timeout),
    })
}

/// How often a retry that the budget has no room for waits its backoff once more.
const BUDGET_WAITS: u32 = 3;
const BACKOFF_DOUBLINGS: u32 = 5;
const BACKOFF_MAX_MS: u64 = 1_000;
const PENDING_LOOK: std::time::Duration = std::time::Duration::from_millis(10);
