//! A call for somebody who speaks JSON: its body is read as a whole first, and its answer is told once it is known how it
//! ended, or as a stream.

use phalanx_relay::{Framing, HeaderList};
use phalanx_transcode::{Answer as Converter, Status, Style};

use super::answer::Answer;
use super::*;
use crate::drive::held::Held;
use crate::drive::http2::Piece;
use crate::transcode::{self, Work};

/// Why there is no body to send.
pub(super) enum Unread {
    Reply(Reply),
    Gone,
}

/// Reads the body of a request and makes the messages of the call of it.
pub(super) async fn upload(
    work: &mut Work,
    incoming: &mut Incoming<'_>,
    core: &Rc<Core>,
    exchange: &Exchange,
    has_body: bool,
) -> Result<Upload, Unread> {
    let mut body = Vec::new();
    let mut share = core.bodies.hold();
    if has_body && work.reads_body() {
        incoming.proceed(core);
        let max = phalanx_transcode::request::MESSAGE_MAX;
        let read = poll_fn(|cx| read(cx, incoming, core, exchange, max, &mut body, &mut share));
        match read.await {
            Ok(Room::Enough) => {}
            Ok(Room::TooLarge) => return Err(Unread::Reply(work.too_large().and_close())),
            Ok(Room::Full) => {
                return Err(Unread::Reply(Reply::of(Reason::Overload).and_close()));
            }
            Err(Missed::Cut(Cut::Gone)) => return Err(Unread::Gone),
            Err(Missed::Expired(expiry)) => {
                if let Some(event) = expiry.event() {
                    core.count(event);
                }
                let reply = Reply::of(Reason::Timeout);
                return Err(Unread::Reply(match expiry {
                    Expiry::Body => reply.with_status(408).and_close(),
                    _ => reply.and_close(),
                }));
            }
            Err(Missed::Cut(Cut::Broken) | Missed::Fault(_)) => {
                return Err(Unread::Reply(Reply::of(Reason::BadRequest).and_close()));
            }
        }
    } else {
        exchange.request_complete();
    }
    let messages = work.finish(&body).map_err(Unread::Reply)?;
    drop(body);
    if !share.set(messages.capacity()) {
        return Err(Unread::Reply(Reply::of(Reason::Overload)));
    }
    let mut upload = Upload::of(core, true, messages);
    upload.share = Some(share);
    Ok(upload)
}

/// Whether there is room for a body.
enum Room {
    Enough,
    TooLarge,
    /// Too much is held for others.
    Full,
}

fn read(
    cx: &mut Context<'_>,
    incoming: &mut Incoming<'_>,
    core: &Core,
    exchange: &Exchange,
    max: usize,
    body: &mut Vec<u8>,
    share: &mut Held,
) -> Poll<Result<Room, Missed>> {
    loop {
        let came = incoming.poll_piece(cx, core, |data| {
            if body.len() <= max {
                body.extend_from_slice(data);
            }
        });
        match came {
            Poll::Ready(Ok(Piece::Data(len))) => exchange.request_moved(len),
            Poll::Ready(Ok(Piece::End(_))) => {
                exchange.request_complete();
                return Poll::Ready(Ok(match body.len() <= max {
                    true => Room::Enough,
                    false => Room::TooLarge,
                }));
            }
            Poll::Ready(Err(cut)) => return Poll::Ready(Err(Missed::Cut(cut))),
            Poll::Pending => {
                exchange.reads_body(true);
                let _ = incoming.flush(cx, core); // the word to go on
                return exchange.poll_expiry(cx).map(|e| Err(Missed::Expired(e)));
            }
        }
        if body.len() > max {
            return Poll::Ready(Ok(Room::TooLarge));
        }
        if !share.set(body.capacity()) {
            return Poll::Ready(Ok(Room::Full));
        }
    }
}

/// An answer of our own, in the form that the caller reads.
pub(super) async fn reply(
    incoming: &mut Incoming<'_>,
    core: &Core,
    reply: &Reply,
    grpc: bool,
    work: Option<&Work>,
    mut tally: Tally,
) {
    let said = work.zip(reply.reason);
    let Some((work, reason)) = said.filter(|(work, _)| work.table.options.convert_grpc_status)
    else {
        return incoming.reply(core, reply, grpc, tally);
    };
    let status = work.own(reply, reason);
    let told = work.failed(&status, reply.status);
    let code = u8::try_from(status.code).ok();
    tally.is_grpc(true);
    tally.answer(reply.status, code, Some(reason));
    let mut head = core.memory.borrow_mut().pool.head();
    head.own(told.status, Framing::Length(told.body.len() as u64));
    transcode::say(&mut head.headers, names::CONTENT_TYPE, &told.content_type);
    transcode::say(&mut head.headers, names::X_PHALANX_REASON, reason.as_str());
    for field in &reply.fields {
        head.headers.push_field(field);
    }
    let close = reply.close || tally.is_draining();
    let begun = incoming.respond(core, &head, close).is_ok();
    core.memory.borrow_mut().pool.put_head(head);
    if begun && !Box::pin(send(incoming, core, &told.body)).await {
        incoming.break_off();
    }
    tally.finish_now();
}

/// All of a body that is small.
async fn send(incoming: &mut Incoming<'_>, core: &Core, body: &[u8]) -> bool {
    let (mut sent, alarm) = (0, core.wheel.alarm());
    alarm.set(
        core.wheel
            .now_ms()
            .saturating_add(core.deadlines.stalled_write),
    );
    let whole = poll_fn(|cx| {
        while sent < body.len() {
            match incoming.body(core, body.get(sent..).unwrap_or_default()) {
                Ok(0) => {
                    let _ = incoming.flush(cx, core);
                    return alarm.poll(cx).map(|()| false);
                }
                Ok(len) => sent += len,
                Err(_) => return Poll::Ready(false),
            }
        }
        Poll::Ready(true)
    });
    whole.await && incoming.end(core, None).is_ok()
}

/// How an answer in JSON goes down.
struct Telling<'w> {
    work: &'w Work,
    converter: Converter,
    head: ResponseHead,
    /// What the head says of the call's end, where nothing else follows.
    said: Option<Status>,
    began: bool,
    /// All that will be told is in `out`.
    over: bool,
    out: Vec<u8>,
    sent: usize,
    close: bool,
}

impl Run<'_> {
    /// Sends an answer downstream as JSON.
    pub(super) async fn pass_on_json(
        &mut self,
        work: &Work,
        answer: Answer,
        mut tally: Tally,
    ) -> Outcome {
        if !answer.is_grpc() {
            return self.pass_on(answer, tally).await;
        }
        let (mut head, mut outgoing, grpc_status) = answer.into_parts();
        let core = &self.door.core;
        filter::response(&mut head, self.context);
        tally.answer(head.status, grpc_status, None);
        self.exchange.answered(self.answered_us / 1000);
        self.upload.release();
        self.admitted = None;
        let mut telling = Telling {
            work,
            converter: work.answer(),
            said: transcode::status_of(&head.headers),
            head,
            began: false,
            over: false,
            out: Vec::new(),
            sent: 0,
            close: self.door.watch.is_draining(),
        };
        let (exchange, incoming, upload) = (self.exchange, &mut self.incoming, &mut self.upload);
        let (request, context, port) = (&*self.request, self.context, self.cluster.plan.name.port);
        let may_stay = |plan: &Plan| guard::may_stay(plan, port, request, context);
        let mut review = Review::default();
        let ended = poll_fn(|cx| {
            let told = telling.poll(cx, core, exchange, incoming, &mut outgoing, &mut tally);
            if let Poll::Ready(passed) = told {
                return Poll::Ready(Ok(passed));
            }
            if !telling.over {
                upload.poll(cx, exchange, incoming, &mut outgoing);
            }
            if let Some(cut) = upload.cut() {
                return Poll::Ready(Err(Missed::Cut(cut)));
            }
            if incoming.poll_gone(cx, core).is_ready() {
                return Poll::Ready(Err(Missed::Cut(Cut::Gone)));
            }
            review
                .poll(cx, core, exchange, may_stay)
                .map(|expiry| Err(Missed::Expired(expiry)))
        })
        .await;
        let failed = match ended {
            Ok(Passed::Whole) => {
                let now_us = core.wheel.recent_us();
                outgoing.finish(core, now_us / 1000);
                tally.finish(now_us);
                return Outcome::Done;
            }
            Err(Missed::Cut(Cut::Gone)) => return Outcome::Gone,
            Err(Missed::Expired(expiry)) => {
                if let Some(event) = expiry.event() {
                    core.count(event);
                }
                match expiry {
                    Expiry::ShutOut => Reason::Denied,
                    _ => Reason::Timeout,
                }
            }
            Ok(Passed::Broken) | Err(Missed::Cut(Cut::Broken) | Missed::Fault(_)) => {
                Reason::UpstreamReset
            }
        };
        drop(outgoing);
        if telling.began {
            tally.broke_off();
            self.incoming.break_off();
            return Outcome::Done;
        }
        let own = Reply::of(failed);
        reply(&mut self.incoming, core, &own, true, Some(work), tally).await;
        Outcome::Done
    }
}

impl Telling<'_> {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        core: &Core,
        exchange: &Exchange,
        incoming: &mut Incoming<'_>,
        outgoing: &mut Outgoing,
        tally: &mut Tally,
    ) -> Poll<Passed> {
        loop {
            let failed = self.said.as_ref().is_some_and(|said| !said.is_ok());
            let streams = self.converter.style() != Style::Whole && !failed;
            if !self.began && streams && !self.over && !self.begin_stream(core, incoming) {
                return Poll::Ready(Passed::Broken);
            }
            while self.began && self.sent < self.out.len() {
                let rest = self.out.get(self.sent..).unwrap_or_default();
                match incoming.body(core, rest) {
                    Ok(0) => {
                        exchange.stalled(true);
                        let _ = incoming.flush(cx, core);
                        return Poll::Pending;
                    }
                    Ok(sent) => {
                        self.sent += sent;
                        exchange.moved();
                    }
                    Err(_) => return Poll::Ready(Passed::Broken),
                }
            }
            if self.began {
                self.out.clear();
                self.sent = 0;
            }
            if self.over {
                return Poll::Ready(match incoming.end(core, None) {
                    Ok(()) => Passed::Whole,
                    Err(_) => Passed::Broken,
                });
            }
            if incoming.poll_ready(cx, core).is_pending() {
                exchange.stalled(true);
                return Poll::Pending;
            }
            let (converter, out) = (&mut self.converter, &mut self.out);
            let mut failed = None;
            let came = outgoing.poll_piece(cx, core, |data| {
                tally.sent(data);
                failed = converter.push(data, out).err();
            });
            let done = match came {
                Poll::Ready(Ok(Piece::Data(_))) => {
                    exchange.moved();
                    match failed {
                        None => continue,
                        Some(status) => self.finish(core, incoming, &status),
                    }
                }
                Poll::Ready(Ok(Piece::End(trailers))) => {
                    let status = self.ended(trailers.as_ref(), tally);
                    if let Some(trailers) = trailers {
                        core.memory.borrow_mut().pool.put_list(trailers);
                    }
                    self.finish(core, incoming, &status)
                }
                Poll::Ready(Err(_)) => false,
                Poll::Pending => {
                    match incoming.flush(cx, core).is_pending() {
                        true => exchange.stalled(true),
                        false => exchange.stalled(false),
                    }
                    return Poll::Pending;
                }
            };
            if !done {
                return Poll::Ready(Passed::Broken);
            }
        }
    }

    fn ended(&mut self, trailers: Option<&HeaderList>, tally: &mut Tally) -> Status {
        let told = trailers.and_then(|trailers| {
            tally.trailers(trailers);
            transcode::status_of(trailers)
        });
        let told = told.or_else(|| self.said.take());
        told.unwrap_or_else(|| Status::new(2, "the answer does not say how the call ended"))
    }

    /// The head of a stream, as soon as it is known. False when it can't be sent.
    fn begin_stream(&mut self, core: &Core, incoming: &mut Incoming<'_>) -> bool {
        let Some(content_type) = self.converter.content_type() else {
            return true; // of the first message
        };
        transcode::strip(&mut self.head.headers);
        transcode::say(&mut self.head.headers, names::CONTENT_TYPE, content_type);
        self.head.replace_body(200, Framing::Chunked);
        self.began = true;
        incoming.respond(core, &self.head, self.close).is_ok()
    }

    /// All that is left to tell. False: that can't be told, and the answer breaks off.
    fn finish(&mut self, core: &Core, incoming: &mut Incoming<'_>, status: &Status) -> bool {
        self.over = true;
        if self.began {
            return self.converter.end(status, &mut self.out);
        }
        let convert = self.work.table.options.convert_grpc_status;
        let whole = match self.converter.style() {
            Style::Whole => self.converter.whole(status),
            _ => self.work.failed(status, status.http()),
        };
        transcode::strip(&mut self.head.headers);
        let headers = &mut self.head.headers;
        self.out = whole.body;
        if !status.is_ok() && !convert {
            self.out.clear();
            let code = status.code.to_string();
            transcode::say(headers, names::GRPC_STATUS, &code);
            transcode::say(headers, names::GRPC_MESSAGE, &status.message);
        } else if !whole.content_type.is_empty() {
            transcode::say(headers, names::CONTENT_TYPE, &whole.content_type);
        }
        let len = self.out.len() as u64;
        self.head.replace_body(whole.status, Framing::Length(len));
        self.began = true;
        incoming.respond(core, &self.head, self.close).is_ok()
    }
}
