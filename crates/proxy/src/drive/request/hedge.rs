//! Hedging: while an answer is awaited, the request goes to further endpoints; the first good answer is taken, the others are
//! cancelled and say nothing of their endpoints. Only for requests that may be sent twice, and once all of the body is
//! there. Everything lies in a box: requests that are not hedged pay nothing.

use std::cell::OnceCell;
use std::pin::Pin;

use super::*;
use crate::balance::Evidence;
use crate::drive::exchange::Lent;
use crate::drive::tally::Attempt;
use crate::drive::timer::Alarm;
use phalanx_model::resource::Hedging;

/// A request's body for further attempts. Set once: all of it and when it was complete, or none when it can't be had.
#[derive(Default)]
pub struct Kept(OnceCell<Option<(u64, Rc<[u8]>)>>);

impl Kept {
    pub fn complete(&self, now_ms: u64, body: Rc<[u8]>) {
        let _ = self.0.set(Some((now_ms, body)));
    }

    /// It is too large, or more than a body.
    pub fn lose(&self) {
        let _ = self.0.set(None);
    }
}

type Sent<'r> = Pin<Box<dyn Future<Output = (Result<Answer, Missed>, Upload)> + 'r>>;

/// A further attempt under way. Dropped, it is cancelled.
struct Extra<'r> {
    member: usize,
    attempt: Attempt,
    sent: Sent<'r>,
    _permits: [Permit<Holder>; 2],
}

/// What a further attempt came to, where that is the last word.
struct Said {
    member: usize,
    attempt: Attempt,
    ended: Result<Answer, Missed>,
    /// As far as it has been sent there.
    upload: Upload,
}

/// The further attempts of one request.
struct Hedges<'r> {
    door: &'r Rc<Door>,
    cluster: &'r Rc<Cluster>,
    forward: &'r ForwardPlan,
    context: &'r StreamContext<'r>,
    delay_ms: u64,
    left: u32,
    alarm: Alarm,
    request: Checked,
    kept: Rc<Kept>,
    tried: Tried,
    rng: fastrand::Rng,
    under_way: Vec<Extra<'r>>,
    /// The first attempt has failed.
    alone: bool,
}

impl<'r> Run<'r> {
    /// How the request may be hedged. One that belongs to a session's endpoint is not: the session would move.
    pub(super) fn hedging(&self) -> Option<&'r Hedging> {
        let hedging = self.forward.hedging_of(self.request)?;
        let is_free = self.context.wanted.is_none() && self.cluster.plan.group.choices() > 1;
        is_free.then_some(hedging)
    }

    /// The first attempt at `member`, and further ones beside it. What the attempt under way in `tally` came to is for the
    /// caller to learn, as after [`Run::attempt`].
    pub(super) async fn hedged(
        &mut self,
        hedging: &'r Hedging,
        member: usize,
        tried: &mut Tried,
        tally: &mut Tally,
    ) -> Result<Answer, Missed> {
        let mut hedges = self.hedges(hedging, *tried);
        let first = {
            let mut first = std::pin::pin!(self.attempt(member));
            poll_fn(|cx| match first.as_mut().poll(cx) {
                Poll::Ready(ended) => Poll::Ready(Ok(ended)),
                Poll::Pending => hedges.poll(cx, tally).map(Err),
            })
            .await
        };
        let said = match first {
            Err(said) => said,
            Ok(ended) => {
                let is_over = matches!(ended, Err(Missed::Expired(_) | Missed::Cut(_)));
                *tried = hedges.tried;
                if hedges.under_way.is_empty() || is_over || is_good(&ended) {
                    return ended;
                }
                let unreached = || {
                    hedges.tried.unreached();
                    tally.connect_failed();
                };
                if let Some(heard) = heard(&ended, unreached) {
                    tally.learn(heard.evidence(), self.door.core.wheel.now_us());
                }
                tally.end_attempt();
                drop(ended);
                hedges.alone = true;
                self.exchange.begin_attempt(NEVER);
                self.within(poll_fn(|cx| hedges.poll(cx, tally))).await?
            }
        };
        *tried = hedges.tried;
        if is_good(&said.ended) {
            self.door.core.count(Event::HedgeWon);
        }
        tally.adopt(said.attempt);
        self.upload = said.upload;
        self.context.endpoint.set(self.address(said.member));
        said.ended
    }

    fn hedges(&mut self, hedging: &Hedging, tried: Tried) -> Hedges<'r> {
        let kept = Rc::new(Kept::default());
        self.upload.keep(&kept);
        let core = &self.door.core;
        let hedges = Hedges {
            door: self.door,
            cluster: self.cluster,
            forward: self.forward,
            context: self.context,
            delay_ms: ms(hedging.delay).max(1),
            left: hedging.extra_max,
            alarm: core.wheel.alarm(),
            request: self.request.duplicate(),
            kept,
            tried,
            rng: core.random(),
            under_way: Vec::new(),
            alone: false,
        };
        hedges.wait(core.wheel.now_ms());
        hedges
    }
}

impl Hedges<'_> {
    fn wait(&self, from_ms: u64) {
        self.alarm.set(from_ms.saturating_add(self.delay_ms));
    }

    /// Ready with the first good answer; where the first attempt has failed, also with the last failure.
    fn poll(&mut self, cx: &mut Context<'_>, tally: &mut Tally) -> Poll<Said> {
        while self.alarm.poll(cx).is_ready() {
            self.launch(tally);
        }
        let mut index = 0;
        while let Some(extra) = self.under_way.get_mut(index) {
            let Poll::Ready((ended, upload)) = extra.sent.as_mut().poll(cx) else {
                index += 1;
                continue;
            };
            let Extra {
                member, attempt, ..
            } = self.under_way.swap_remove(index);
            // Nobody but the endpoint can have kept it waiting.
            let ended = ended.map_err(|missed| match missed {
                Missed::Expired(_) | Missed::Cut(_) => Missed::Fault(Fault::Timeout),
                fault => fault,
            });
            if is_good(&ended) || (self.alone && self.under_way.is_empty()) {
                return Poll::Ready(Said {
                    member,
                    attempt,
                    ended,
                    upload,
                });
            }
            let unreached = || {
                self.tried.unreached();
                attempt.connect_failed();
            };
            if let Some(heard) = heard(&ended, unreached) {
                attempt.learn(heard.evidence(), self.door.core.wheel.now_us());
            }
        }
        Poll::Pending
    }

    /// Sends it once more, if its body is there, another endpoint is, and budget and breaker have room.
    fn launch(&mut self, tally: &mut Tally) {
        let core = &self.door.core;
        let now_us = core.wheel.now_us();
        let now_ms = now_us / 1000;
        let body = match self.kept.0.get() {
            _ if self.left == 0 => return,
            None => return self.wait(now_ms),
            Some(None) => return,
            Some(Some((at_ms, _))) if at_ms.saturating_add(self.delay_ms) > now_ms => {
                return self.wait(*at_ms);
            }
            Some(Some((_, body))) => body.clone(),
        };
        self.left -= 1;
        self.wait(now_ms);
        let mut request = self.request.duplicate();
        if limit::carry(&mut request, self.context).is_err() {
            return;
        }
        let hash = self.context.hash;
        let picked = self.cluster.pick(&self.tried, &mut self.rng, hash, now_us);
        let Some(member) = picked.map(|picked| picked.member) else {
            return;
        };
        if self.tried.has(member) {
            return;
        }
        let Some(permits) = permits(self.cluster) else {
            core.count(Event::HedgeBudget);
            return;
        };
        let Some(attempt) = tally.hedge(member, now_us) else {
            return;
        };
        self.tried.add(member);
        core.count(Event::Hedged);
        let run = (self.door, self.cluster, self.forward, self.context);
        self.under_way.push(Extra {
            member,
            attempt,
            sent: Box::pin(send(run, request, body, member)),
            _permits: permits,
        });
    }
}

/// A place among the retries, and one among the requests.
fn permits(cluster: &Rc<Cluster>) -> Option<[Permit<Holder>; 2]> {
    let plan = &cluster.plan;
    let requests = plan.breaker.count(Share::Request);
    let retries = retries_allowed(plan.retry_budget, plan.limits, requests);
    let take = |share, max| Permit::take(Holder(cluster.clone()), share, max);
    Some([
        take(Share::Retry, retries)?,
        take(Share::Request, plan.limits.max_requests)?,
    ])
}

type Shared<'r> = (
    &'r Rc<Door>,
    &'r Rc<Cluster>,
    &'r ForwardPlan,
    &'r StreamContext<'r>,
);

/// One further attempt, with a clock and a body of its own.
async fn send(
    (door, cluster, forward, context): Shared<'_>,
    mut request: Checked,
    body: Rc<[u8]>,
    member: usize,
) -> (Result<Answer, Missed>, Upload) {
    let core = &door.core;
    let lent = Lent::new(core);
    let any = !request.framing().is_empty();
    let upload = Upload::of(core, any, body.to_vec());
    let exchange: &Exchange = &lent;
    exchange.begin(core.wheel.now_us(), false);
    exchange.allow(true, 0, false);
    let mut run = Run {
        door,
        exchange,
        cluster,
        forward,
        request: &mut request,
        context,
        incoming: Incoming::Nobody,
        upload,
        admitted: None,
        answered_us: 0,
    };
    let ended = run.attempt(member).await;
    (ended, run.upload)
}

/// None where it says nothing of the endpoint.
fn heard(ended: &Result<Answer, Missed>, connect_failed: impl FnOnce()) -> Option<Heard> {
    match ended {
        Ok(answer) => Some(answer.heard()),
        Err(Missed::Fault(fault)) => {
            if fault.is_of_connecting() {
                connect_failed();
            }
            Some(Heard::Fault(*fault))
        }
        Err(Missed::Expired(_) | Missed::Cut(_)) => None,
    }
}

/// An answer that needs no better one: not of an endpoint that fails, or that refuses for its load.
fn is_good(ended: &Result<Answer, Missed>) -> bool {
    let heard = ended.as_ref().map(Answer::heard);
    heard.is_ok_and(|heard| heard.evidence() == Some(Evidence::Success))
}
