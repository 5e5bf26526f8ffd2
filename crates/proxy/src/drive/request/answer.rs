//! The answer of an attempt: waited for, read, and sent downstream with its body.

use phalanx_relay::{HeaderList, Value};

use super::*;

/// An answer that could go downstream.
pub(super) struct Answer {
    head: ResponseHead,
    outgoing: Outgoing,
    grpc_status: Option<u8>,
    reason: Option<Reason>,
}

impl Answer {
    pub(super) fn heard(&self) -> Heard {
        Heard::Answer {
            status: self.head.status,
            peer_reason: self.reason,
            grpc_status: self.grpc_status,
        }
    }
}

impl Answer {
    /// Of a call, and not of something before it.
    pub(super) fn is_grpc(&self) -> bool {
        let content_type = self.head.headers.get(names::CONTENT_TYPE);
        let told = content_type.is_some_and(|told| told.starts_with(b"application/grpc"));
        self.head.status == 200 && (told || self.grpc_status.is_some())
    }

    pub(super) fn into_parts(self) -> (ResponseHead, Outgoing, Option<u8>) {
        (self.head, self.outgoing, self.grpc_status)
    }
}

impl Run<'_> {
    /// Sends the body, and waits for the head of the answer.
    pub(super) async fn answer(
        &mut self,
        mut outgoing: Outgoing,
    ) -> Result<(ResponseHead, Outgoing), Missed> {
        let Self {
            door,
            exchange,
            incoming,
            upload,
            request,
            context,
            cluster,
            ..
        } = self;
        let core = &door.core;
        let port = cluster.plan.name.port;
        let may_stay = |plan: &Plan| guard::may_stay(plan, port, request, context);
        let mut review = Review::of(context);
        let head = poll_fn(|cx| {
            upload.poll(cx, exchange, incoming, &mut outgoing);
            if let Some(cut) = upload.cut() {
                return Poll::Ready(Err(Missed::Cut(cut)));
            }
            if let Poll::Ready(head) = outgoing.poll_head(cx, core) {
                return Poll::Ready(head.map_err(Missed::Fault));
            }
            if upload.is_ended() && incoming.poll_gone(cx, core).is_ready() {
                return Poll::Ready(Err(Missed::Cut(Cut::Gone)));
            }
            review
                .poll(cx, core, exchange, may_stay)
                .map(|expiry| Err(Missed::Expired(expiry)))
        });
        let head = head.await?;
        Ok((head, outgoing))
    }

    /// Reads the head of an answer. `meshed`: the endpoint has a sidecar, which speaks for itself and lets its application
    /// not do so.
    pub(super) fn read(
        &self,
        head: ResponseHead,
        outgoing: Outgoing,
        meshed: bool,
    ) -> Result<Answer, Missed> {
        if head.status == 101 && self.request.upgrade().is_none() {
            return Err(Missed::Fault(Fault::BadAnswer));
        }
        let reason = head.headers.get(names::X_PHALANX_REASON).filter(|_| meshed);
        let reason = reason.and_then(|reason| Reason::parse(std::str::from_utf8(reason).ok()?));
        let grpc_status = head.headers.get(names::GRPC_STATUS);
        let grpc_status = grpc_status.and_then(parse_grpc_status);
        Ok(Answer {
            head,
            outgoing,
            grpc_status,
            reason,
        })
    }

    /// Sends the answer downstream.
    pub(super) async fn pass_on(&mut self, answer: Answer, mut tally: Tally) -> Outcome {
        let Answer {
            mut head,
            mut outgoing,
            grpc_status,
            reason: _,
        } = answer;
        let core = &self.door.core;
        tally.heard(&head);
        self.settle(&mut head, grpc_status, &mut tally);
        let incoming = &mut self.incoming;
        let begun = incoming.respond(core, &head, self.door.watch.is_draining());
        let status = head.status;
        core.memory.borrow_mut().pool.put_head(head);
        if begun.is_err() {
            return Outcome::Gone;
        }
        if status == 101 {
            let Outgoing::Http1(lease) = outgoing else {
                return Outcome::Gone;
            };
            let upgraded = Upgraded::new(core, lease.connection, tally, self.context.seat.clone());
            let lasting = Lasting::of(self.cluster.plan.name.port, self.request, self.context);
            let lasting = lasting.map(Box::new);
            return Outcome::Upgraded(Box::new(upgraded), lasting);
        }
        let mut download = Download::default();
        let ended = self.pass(&mut download, &mut outgoing, &mut tally).await;
        let (reason, is_callers) = match self.over(ended) {
            Over::Whole => {
                self.conclude(outgoing, tally);
                return Outcome::Done;
            }
            Over::Gone => return Outcome::Gone,
            Over::Broken { reason, is_callers } => (reason, is_callers),
        };
        drop(outgoing);
        tally.break_off(is_callers);
        let is_told = is_told(reason) && self.request.is_grpc() && self.end_with(reason).is_ok();
        if !is_told {
            self.incoming.break_off();
        }
        Outcome::Done
    }

    /// The answer is the one: no other attempt follows.
    pub(super) fn settle(
        &mut self,
        head: &mut ResponseHead,
        grpc_status: Option<u8>,
        tally: &mut Tally,
    ) {
        filter::response(head, self.context);
        tally.answer(head.status, grpc_status, None);
        self.exchange.answered(self.answered_us / 1000);
        self.upload.release();
        self.admitted = None;
    }

    /// Moves the bodies, the answer's by `down`, until that is over or must not go on.
    pub(super) fn pass(
        &mut self,
        down: &mut impl Downward,
        outgoing: &mut Outgoing,
        tally: &mut Tally,
    ) -> impl Future<Output = Result<Passed, Missed>> {
        let Self {
            door,
            exchange,
            incoming,
            upload,
            request,
            context,
            cluster,
            ..
        } = self;
        let (core, port, context) = (&door.core, cluster.plan.name.port, *context);
        let may_stay = move |plan: &Plan| guard::may_stay(plan, port, request, context);
        let mut review = Review::of(context);
        poll_fn(move |cx| {
            let passed = down.poll(cx, core, exchange, incoming, outgoing, tally);
            if let Poll::Ready(passed) = passed {
                return Poll::Ready(Ok(passed));
            }
            if !down.is_heard() {
                upload.poll(cx, exchange, incoming, outgoing);
            }
            if let Some(cut) = upload.cut() {
                return Poll::Ready(Err(Missed::Cut(cut)));
            }
            if upload.is_ended() && incoming.poll_gone(cx, core).is_ready() {
                return Poll::Ready(Err(Missed::Cut(Cut::Gone)));
            }
            review
                .poll(cx, core, exchange, &may_stay)
                .map(|expiry| Err(Missed::Expired(expiry)))
        })
    }

    /// What [`Run::pass`] came to.
    pub(super) fn over(&self, ended: Result<Passed, Missed>) -> Over {
        let (reason, is_callers) = match ended {
            Ok(Passed::Whole) => return Over::Whole,
            Err(Missed::Cut(Cut::Gone)) => return Over::Gone,
            Err(Missed::Expired(expiry)) => {
                if let Some(event) = expiry.event() {
                    self.door.core.count(event);
                }
                (expiry.reason(), expiry.is_callers())
            }
            Err(Missed::Cut(Cut::Broken)) => (Reason::BadRequest, true),
            Ok(Passed::Broken) | Err(Missed::Fault(_)) => (Reason::UpstreamReset, false),
        };
        Over::Broken { reason, is_callers }
    }

    pub(super) fn conclude(&self, outgoing: Outgoing, mut tally: Tally) {
        let core = &self.door.core;
        let now_us = core.wheel.recent_us();
        outgoing.finish(core, now_us / 1000);
        tally.finish(now_us);
    }

    /// Ends a gRPC stream that goes on with the word that a new one would get.
    fn end_with(&mut self, reason: Reason) -> Result<(), Cut> {
        let code = reason.grpc_status().to_string();
        let mut trailers = HeaderList::new();
        for (name, value) in [
            (names::GRPC_STATUS, code.as_str()),
            (names::GRPC_MESSAGE, reason.as_str()), // no field of ours: trailers don't speak for the mesh
        ] {
            if let Some(value) = Value::new(value.as_bytes()) {
                trailers.push(name, value);
            }
        }
        self.incoming.end(&self.door.core, Some(&trailers))
    }
}

/// How an answer ended that was on its way down.
pub(super) enum Over {
    Whole,
    /// Nobody reads it any more.
    Gone,
    Broken {
        reason: Reason,
        /// No word about the endpoint.
        is_callers: bool,
    },
}

/// Whether a stream that goes on is ended with a word, and not broken off.
pub(super) fn is_told(reason: Reason) -> bool {
    matches!(reason, Reason::Denied | Reason::Draining)
}

/// The last word of the backend, or ours for want of one.
pub(super) fn passed(ended: Result<Answer, Missed>) -> Result<Answer, Unanswered> {
    ended.map_err(|missed| match missed {
        Missed::Fault(Fault::BadAnswer) => Reply::of(Reason::UpstreamReset).with_status(502).into(),
        Missed::Fault(fault) => Reply::of(fault.reason()).into(),
        Missed::Expired(_) => Reply::of(Reason::Timeout).into(),
        Missed::Cut(_) => Unanswered::Gone,
    })
}
