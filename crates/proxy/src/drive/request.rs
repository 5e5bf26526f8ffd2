//! One request from head to answer: the stages in their order, then attempts until one answer may go downstream, then the
//! bodies.

mod acquire;
mod answer;
mod attempt;
mod hedge;
mod json;

use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll};

use phalanx_model::instance::Protocol;
use phalanx_model::name::Direction;
use phalanx_model::reason::Reason;
use phalanx_relay::{Checked, Reply, ResponseHead, Upgrade, Verdict, Version, names};

use self::answer::{Answer, passed};
use self::attempt::Speaks;
pub use self::hedge::Kept;
use super::client::{Http1, Http2Lease, Http2Use, Outgoing, Slot};
use super::core::{Cluster, Core, Endpoint, Holder};
use super::exchange::{Exchange, Expiry};
use super::mirror::Copies;
use super::pump::{Download, Downward, Passed, Upload};
use super::secure;
use super::server::{Cut, Door, Incoming};
use super::shut::Review;
use super::tally::{Tally, parse_grpc_status};
use super::timer::{NEVER, ms};
use super::tunnel::Upgraded;
use crate::account::Event;
use crate::balance::{Picked, Tried};
use crate::context::StreamContext;
use crate::guard::Lasting;
use crate::plan::table::ForwardPlan;
use crate::plan::{Alpn, Outbound, Plan};
use crate::quota::Admitted;
use crate::upstream::retry::retries_allowed;
use crate::upstream::{Fault, Heard, Lease, Permit, Share};
use crate::{colour, correlate, filter, guard, limit, listen, route};

type Stage = for<'p> fn(&'p Plan, &mut Checked, &mut StreamContext<'p>) -> Verdict;

/// Every request passes them in this order. None depends on a ColourPolicy of the plan: a call gets its trace without one, and
/// colours are said within the mesh.
const STAGES: [Stage; 8] = [
    correlate::fill,
    listen::admit,
    route::choose,
    route::json::transcode,
    colour::admit,
    guard::admit,
    limit::admit,
    filter::request,
];

/// How a request ended for the connection that it came by.
pub enum Outcome {
    /// Answered.
    Done,
    /// Answered with 101; and what let that in.
    Upgraded(Box<Upgraded>, Option<Box<Lasting>>),
    /// There is nobody to answer.
    Gone,
}

/// Serves one request.
pub async fn serve(
    door: &Rc<Door>,
    mut incoming: Incoming<'_>,
    request: Checked,
    exchange: &Exchange,
) -> Outcome {
    let core = &door.core;
    let now_us = core.wheel.recent_us();
    let mut plan = core.plan();
    let mut tally = Tally::new(core, plan.clone(), &door.watch, door.direction, now_us);
    let mut request = Returned {
        request: Some(request),
        core,
    };
    let Some(request) = &mut request.request else {
        return Outcome::Gone;
    };
    let grpc = request.is_grpc();
    tally.came(request);
    let has_body = !request.framing().is_empty();
    exchange.begin(now_us, has_body);
    let (mut parked, mut correlated, mut transcoding) = (0, None, None);
    let mut context = loop {
        let guarded = core.secure.is_some();
        let mut context = StreamContext::new(door.direction, &door.caller, guarded, core.random());
        context.peer = door.watch.address.map(|address| address.ip());
        context.underway = core.account.underway().here(core.index, now_us / 1000);
        context.correlated = correlated;
        // A request that was made a call stays one while it waits for the plan of its host.
        context.transcoding = transcoding.take();
        (context.meant_port, context.original) = (door.meant, door.original.as_deref());
        let verdict = walk(&plan.plan, request, &mut context);
        correlated = context.correlated;
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
                match context.transcoding.as_deref() {
                    None => incoming.reply(core, &reply, grpc, tally),
                    work => {
                        Box::pin(json::reply(&mut incoming, core, &reply, grpc, work, tally)).await;
                    }
                }
                return Outcome::Done;
            }
            Verdict::Park => {}
        }
        // Once for each name that it has: with a plan that has the host, no stage parks.
        parked += 1;
        let waited = match parked <= 1 + u8::from(door.original.is_some()) {
            true => Box::pin(host(core, &plan.plan, request, door)).await,
            false => Err(Reason::NoHealthyUpstream),
        };
        transcoding = context.transcoding.take();
        if let Err(reason) = waited {
            let (reply, work) = (Reply::of(reason), transcoding.as_deref());
            Box::pin(json::reply(&mut incoming, core, &reply, grpc, work, tally)).await;
            return Outcome::Done;
        }
        plan = core.plan();
    };
    let chosen = match context.passes {
        true => door.passage(),
        false => context.cluster.and_then(|place| plan.cluster(place)),
    };
    let chosen = chosen.zip(context.forward);
    let Some((cluster, forward)) = chosen else {
        incoming.reply(core, &Reply::of(Reason::Fault), grpc, tally); // a defect of ours
        return Outcome::Done;
    };
    let permit = Permit::take(
        Holder(cluster.clone()),
        Share::Request,
        cluster.plan.limits.max_requests,
    );
    let overflow = permit.is_none();
    tally.assign(cluster, door.edges(cluster), permit);
    if overflow {
        let (reply, work) = (Reply::of(Reason::Overflow), context.transcoding.as_deref());
        Box::pin(json::reply(&mut incoming, core, &reply, grpc, work, tally)).await;
        return Outcome::Done;
    }
    tally.enters(request);
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
    if door.direction == Direction::Inbound || context.seat.is_some() {
        exchange.watch();
    }
    exchange.allow(streaming, allowed, head_only);
    let mut upload = match context.transcoding.as_deref_mut() {
        None => Upload::new(core, has_body, tally.flow()),
        Some(work) => {
            tally.is_grpc(true);
            let upload = json::upload(work, &mut incoming, core, exchange, has_body);
            match Box::pin(upload).await {
                Ok(upload) => upload,
                Err(json::Unread::Gone) => return Outcome::Gone,
                Err(json::Unread::Reply(reply)) => {
                    let work = Some(&*work);
                    Box::pin(json::reply(&mut incoming, core, &reply, grpc, work, tally)).await;
                    return Outcome::Done;
                }
            }
        }
    };
    if !context.mirrors.is_empty() {
        let copies = Copies::new(core, &plan, &context, request);
        if let Some(copies) = copies {
            copies
                .original()
                .into_iter()
                .for_each(|side| tally.compare(side));
            upload.copy(copies);
        }
    }
    let admitted = context.admitted.take();
    let mut run = Run {
        door,
        exchange,
        cluster,
        forward,
        request,
        context: &context,
        incoming,
        upload,
        admitted,
        answered_us: now_us,
    };
    let ended = match run.pause(context.delay_ms).await {
        true => run.attempts(&mut tally).await,
        false => Err(Reply::of(Reason::Timeout).into()),
    };
    let work = context.transcoding.as_deref();
    match ended {
        Ok(answer) => match work {
            None => run.pass_on(answer, tally).await,
            Some(work) => Box::pin(run.pass_on_json(work, answer, tally)).await,
        },
        Err(Unanswered::Reply(mut reply)) => {
            filter::own(&mut reply, &context);
            tally.end_attempt();
            match work {
                None => run.incoming.reply(core, &reply, grpc, tally),
                work => {
                    Box::pin(json::reply(
                        &mut run.incoming,
                        core,
                        &reply,
                        grpc,
                        work,
                        tally,
                    ))
                    .await;
                }
            }
            Outcome::Done
        }
        Err(Unanswered::Gone) => Outcome::Gone,
    }
}

/// Sends a copy of a request once, and reads its answer for nobody.
pub async fn send_copy(
    door: &Rc<Door>,
    exchange: &Exchange,
    cluster: &Rc<Cluster>,
    request: &mut Checked,
    body: &[u8],
    mut tally: Tally,
) {
    let core = &door.core;
    let now_us = core.wheel.now_us();
    exchange.begin(now_us, false);
    exchange.allow(false, core.deadlines.route, false);
    let context = StreamContext::new(door.direction, &door.caller, false, core.random());
    let forward = ForwardPlan::plain();
    let any = !request.framing().is_empty();
    let mut run = Run {
        door,
        exchange,
        cluster,
        forward: &forward,
        request,
        context: &context,
        incoming: Incoming::Nobody,
        upload: Upload::of(core, any, body.to_vec()),
        admitted: None,
        answered_us: now_us,
    };
    match run.attempts(&mut tally).await {
        Ok(answer) => drop(run.pass_on(answer, tally).await),
        Err(Unanswered::Reply(reply)) => run.incoming.reply(core, &reply, false, tally),
        Err(Unanswered::Gone) => {}
    }
}

/// Also what `explain` goes through.
pub(crate) fn walk<'p>(
    plan: &'p Plan,
    request: &mut Checked,
    context: &mut StreamContext<'p>,
) -> Verdict {
    for stage in STAGES {
        match stage(plan, request, context) {
            Verdict::Continue => {}
            other => return other,
        }
    }
    Verdict::Continue
}

/// Waits until a plan has the request's host.
async fn host(core: &Rc<Core>, plan: &Plan, request: &Checked, door: &Door) -> Result<(), Reason> {
    let Outbound::Demand { desk, hosts } = &plan.outbound else {
        return Err(Reason::Fault);
    };
    let authority = match &door.original {
        Some(original) if hosts.contains(request.authority()) => &*original.authority,
        _ => request.authority(),
    };
    let is_there = || match &core.plan().plan.outbound {
        Outbound::Demand { hosts, .. } => hosts.contains(authority) && core.plan().plan.is_seated(),
        _ => true,
    };
    desk.wait(authority, is_there).await
}

/// Gives the request's memory back, however the request ends.
struct Returned<'d> {
    request: Option<Checked>,
    core: &'d Core,
}

impl Drop for Returned<'_> {
    fn drop(&mut self) {
        if let Some(request) = self.request.take() {
            let pool = &mut self.core.memory.borrow_mut().pool;
            pool.put_workspace(request.into_workspace());
        }
    }
}

/// What all attempts of one request share.
struct Run<'r> {
    door: &'r Rc<Door>,
    exchange: &'r Exchange,
    cluster: &'r Rc<Cluster>,
    forward: &'r ForwardPlan,
    request: &'r mut Checked,
    context: &'r StreamContext<'r>,
    incoming: Incoming<'r>,
    upload: Upload,
    /// Its place among the requests under way, until the answer's head goes down.
    admitted: Option<Admitted>,
    /// When the last attempt ended.
    answered_us: u64,
}

impl Run<'_> {
    /// Tries until an answer may be passed on, or there is nothing more to try.
    async fn attempts(&mut self, tally: &mut Tally) -> Result<Answer, Unanswered> {
        let core = &self.door.core;
        let mut tried = Tried::default();
        let mut rng = core.random();
        let idempotent = self.request.method().is_idempotent();
        let mut budget: Option<Permit<Holder>> = None;
        let mut number = 0;
        let mut now_us = self.exchange.started_us.get();
        loop {
            limit::carry(self.request, self.context)?;
            let seated = self.context.seat.is_some();
            let keeps = |m: &usize| seated || self.cluster.plan.group.keeps(*m, now_us / 1000);
            let wanted = self.context.wanted.filter(|_| number == 0 || seated);
            let wanted = wanted.filter(keeps);
            let pick = |rng| self.cluster.pick(&tried, rng, self.context.hash, now_us);
            let picked = wanted.map(Picked::wanted).or_else(|| pick(&mut rng));
            let Some(Picked {
                member,
                is_far,
                in_panic,
            }) = picked
            else {
                return Err(Reply::of(Reason::NoHealthyUpstream).into());
            };
            if is_far && self.cluster.plan.lane.is_none() {
                core.count(Event::PickedFar);
            }
            if in_panic {
                core.count(Event::PickedInPanic);
            }
            tried.add(member);
            self.context.endpoint.set(self.address(member));
            tally.attempt(member, number > 0, now_us);
            let ended = match self.hedging().filter(|_| number == 0) {
                Some(hedging) => Box::pin(self.hedged(hedging, member, &mut tried, tally)).await,
                None => self.attempt(member).await,
            };
            drop(budget.take());
            now_us = match ended {
                Ok(_) => core.wheel.recent_us(),
                Err(_) => core.wheel.now_us(),
            };
            self.answered_us = now_us;
            let heard = match &ended {
                Ok(answer) => answer.heard(),
                Err(Missed::Fault(fault)) => {
                    if fault.is_of_connecting() {
                        tried.unreached();
                        tally.connect_failed();
                    }
                    Heard::Fault(*fault)
                }
                Err(Missed::Expired(expiry)) => {
                    return Err(self.expired(*expiry, tally, now_us).into());
                }
                // The caller's doing, no word about the endpoint.
                Err(Missed::Cut(Cut::Gone)) => return Err(Unanswered::Gone),
                Err(Missed::Cut(Cut::Broken)) => {
                    return Err(Reply::of(Reason::BadRequest).and_close().into());
                }
            };
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
        self.request.upgrade().is_none() && self.upload.is_repeatable()
    }

    /// Waits the backoff out, and then for a share of the retry budget, a few times over if need be: the budget bounds
    /// how many retries are under way, not how many requests may be saved. What never reached the application costs it
    /// nothing and needs no budget.
    async fn wait(&mut self, number: u32, heard: Heard, rng: &mut fastrand::Rng) -> Waited {
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
    async fn pause(&mut self, pause_ms: u64) -> bool {
        if pause_ms == 0 {
            return true;
        }
        self.exchange
            .begin_pause(self.door.core.wheel.now_ms().saturating_add(pause_ms));
        self.within(std::future::pending::<()>())
            .await
            .is_err_and(|missed| matches!(missed, Missed::Expired(Expiry::Pause)))
    }

    fn expired(&self, expiry: Expiry, tally: &mut Tally, now_us: u64) -> Reply {
        if !expiry.is_callers() {
            tally.learn(Fault::Timeout.evidence(), now_us);
        }
        expired(&self.door.core, expiry)
    }

    /// Runs `future` unless a deadline comes first, or the caller goes away.
    async fn within<T>(&mut self, future: impl Future<Output = T>) -> Result<T, Missed> {
        let mut future = std::pin::pin!(future);
        self.exchange.reads_body(false);
        let Self {
            door,
            exchange,
            incoming,
            upload,
            ..
        } = self;
        poll_fn(|cx| {
            if let Poll::Ready(value) = future.as_mut().poll(cx) {
                return Poll::Ready(Ok(value));
            }
            if upload.is_ended() && incoming.poll_gone(cx, &door.core).is_ready() {
                return Poll::Ready(Err(Missed::Cut(Cut::Gone)));
            }
            exchange
                .poll_expiry(cx)
                .map(|expiry| Err(Missed::Expired(expiry)))
        })
        .await
    }
}

/// Counts it, and makes the answer.
fn expired(core: &Core, expiry: Expiry) -> Reply {
    if let Some(event) = expiry.event() {
        core.count(event);
    }
    let reply = Reply::of(expiry.reason());
    match expiry {
        Expiry::Body => reply.with_status(408).and_close(),
        _ => reply,
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
    Cut(Cut),
}

impl From<Fault> for Missed {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// Why a request has no answer of an upstream.
enum Unanswered {
    Reply(Reply),
    /// Nobody waits for one.
    Gone,
}

impl From<Reply> for Unanswered {
    fn from(reply: Reply) -> Self {
        Self::Reply(reply)
    }
}

/// How often a retry that the budget has no room for waits its backoff once more.
const BUDGET_WAITS: u32 = 3;
const BACKOFF_DOUBLINGS: u32 = 5;
const BACKOFF_MAX_MS: u64 = 1_000;
