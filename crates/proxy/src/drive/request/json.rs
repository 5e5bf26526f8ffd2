//! A call for somebody who speaks JSON: its body is read as a whole first, and its answer is told once it is known how it
//! ended, or as a stream.

use std::task::ready;

use phalanx_relay::{Framing, HeaderList};
use phalanx_transcode::{Answer as Converter, Status, Style};

use super::answer::{Answer, Over, is_told};
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
                return Err(Unread::Reply(expired(core, expiry).and_close()));
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
    let body: &[u8] = if work.head_only { &[] } else { &told.body };
    if begun && !Box::pin(send(incoming, core, body)).await {
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
    /// All that will be told is in `down`.
    over: bool,
    down: Download,
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
        self.settle(&mut head, grpc_status, &mut tally);
        let mut telling = Telling {
            work,
            converter: work.answer(),
            said: transcode::status_of(&head.headers),
            head,
            began: false,
            over: false,
            down: Download::default(),
            close: self.door.watch.is_draining(),
        };
        let ended = self.pass(&mut telling, &mut outgoing, &mut tally).await;
        let (reason, is_callers) = match self.over(ended) {
            Over::Whole => {
                self.conclude(outgoing, tally);
                return Outcome::Done;
            }
            Over::Gone => return Outcome::Gone,
            Over::Broken { reason, is_callers } => (reason, is_callers),
        };
        drop(outgoing);
        let (core, incoming) = (&self.door.core, &mut self.incoming);
        if !telling.began {
            reply(incoming, core, &Reply::of(reason), true, Some(work), tally).await;
            return Outcome::Done;
        }
        tally.break_off(is_callers);
        // Other than in gRPC there is no reset that says it: whoever still reads is told.
        let is_told = !is_callers || is_told(reason);
        let is_told = is_told && Box::pin(telling.end_with(core, incoming, reason)).await;
        if !is_told {
            incoming.break_off();
        }
        Outcome::Done
    }
}

impl Downward for Telling<'_> {
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
            if self.began && self.work.head_only {
                self.down.rest().clear();
            }
            if self.began && ready!(self.down.poll_ready(cx, core, exchange, incoming)).is_err() {
                return Poll::Ready(Passed::Broken);
            }
            if self.over {
                return Poll::Ready(match incoming.end(core, None) {
                    Ok(()) => Passed::Whole,
                    Err(_) => Passed::Broken,
                });
            }
            let (converter, out) = (&mut self.converter, self.down.rest());
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
                    self.down.wait(cx, core, exchange, incoming);
                    return Poll::Pending;
                }
            };
            if !done {
                return Poll::Ready(Passed::Broken);
            }
        }
    }

    fn is_heard(&self) -> bool {
        self.over
    }
}

impl Telling<'_> {
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

    /// Ends a stream that goes on with the word that a new one would get. False: it can't be told.
    async fn end_with(&mut self, core: &Core, incoming: &mut Incoming<'_>, reason: Reason) -> bool {
        let status = Status::new(reason.grpc_status(), reason.as_str());
        if self.over || !self.finish(core, incoming, &status) {
            return false;
        }
        if self.work.head_only {
            self.down.rest().clear();
        }
        send(incoming, core, self.down.unsent()).await
    }

    /// All that is left to tell. False: that can't be told, and the answer breaks off.
    fn finish(&mut self, core: &Core, incoming: &mut Incoming<'_>, status: &Status) -> bool {
        self.over = true;
        if self.began {
            return self.converter.end(status, self.down.rest());
        }
        let convert = self.work.table.options.convert_grpc_status;
        let whole = match self.converter.style() {
            Style::Whole => self.converter.whole(status),
            _ => self.work.failed(status, status.http()),
        };
        transcode::strip(&mut self.head.headers);
        let headers = &mut self.head.headers;
        let out = self.down.rest();
        *out = whole.body;
        if !status.is_ok() && !convert {
            out.clear();
            let code = status.code.to_string();
            transcode::say(headers, names::GRPC_STATUS, &code);
            transcode::say(headers, names::GRPC_MESSAGE, &status.message);
        } else if !whole.content_type.is_empty() {
            transcode::say(headers, names::CONTENT_TYPE, &whole.content_type);
        }
        let len = out.len() as u64;
        self.head.replace_body(whole.status, Framing::Length(len));
        self.began = true;
        incoming.respond(core, &self.head, self.close).is_ok()
    }
}
