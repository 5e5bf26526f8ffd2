//! gRPC for callers who speak JSON: a request that a binding matches becomes the call, head first; its body follows in the
//! driver, and the answer comes back the same way.

use std::sync::Arc;

use phalanx_model::reason::Reason;
use phalanx_relay::{Checked, HeaderList, Name, Reply, Value, names};
use phalanx_transcode::request::{self, Call, Came, Refused};
use phalanx_transcode::{Answer, Status, Table, answer, status};

/// A request on its way to be a call, or one that can't be.
pub struct Work {
    pub table: Arc<Table>,
    /// None: refused.
    call: Option<Call>,
    refused: Option<Refused>,
    /// Of the body that came.
    content_type: Vec<u8>,
    encoded: bool,
    /// The caller asked for server-sent events.
    events: bool,
    /// Asked with HEAD: the answer is told by its head alone.
    pub head_only: bool,
}

/// What a request is to a table.
pub enum Begun {
    /// Nothing of ours; it goes on as it came.
    Other,
    /// The request was made the call.
    Call(Box<Work>),
    Refused(Box<Work>, Reply),
}

pub fn begin(table: &Arc<Table>, request: &mut Checked) -> Begun {
    let came = request::begin(table, request.method_str(), request.path(), request.query());
    let fields = request.headers();
    let encoding = fields.get(names::CONTENT_ENCODING);
    let encoded = encoding.is_some_and(|encoding| encoding != b"identity");
    let of_events = |accepted: &[u8]| contains(accepted, b"text/event-stream");
    let events = fields.get_all(names::ACCEPT).any(of_events);
    let mut work = Box::new(Work {
        table: table.clone(),
        call: None,
        refused: None,
        content_type: fields.get(names::CONTENT_TYPE).unwrap_or_default().to_vec(),
        encoded,
        events,
        head_only: request.method_str() == "HEAD",
    });
    let call = match came {
        Ok(Came::Other) => return Begun::Other,
        Ok(Came::Call(call)) => call,
        Err(refused) => {
            let reply = work.refuse(refused);
            return Begun::Refused(work, reply);
        }
    };
    let path = table
        .binding(call.binding)
        .map(|binding| binding.call.as_str());
    if request.become_call(path.unwrap_or_default()).is_err() {
        return Begun::Refused(work, Reply::of(Reason::Fault)); // a defect of ours
    }
    work.call = Some(call);
    Begun::Call(work)
}

fn contains(text: &[u8], wanted: &[u8]) -> bool {
    text.windows(wanted.len())
        .any(|part| part.eq_ignore_ascii_case(wanted))
}

impl Work {
    /// `GET /v1/{name=rooms/*} is /pkg.Service/Method`, for whoever asks.
    pub fn told(&self) -> Option<String> {
        let binding = self.table.binding(self.call.as_ref()?.binding)?;
        Some(format!(
            "called with JSON: {} {} is {}",
            binding.method, binding.template, binding.call
        ))
    }

    /// Why it is no call.
    pub fn refused(&self) -> Option<String> {
        self.refused.as_ref().map(ToString::to_string)
    }

    fn refuse(&mut self, refused: Refused) -> Reply {
        let reason = match refused {
            Refused::Unknown { .. } => Reason::NoRoute,
            Refused::TooLarge => Reason::TooLarge,
            _ => Reason::BadRequest,
        };
        let code = u8::try_from(refused.status().code).unwrap_or(status::INTERNAL);
        let reply = Reply::of(reason).with_status(refused.http());
        self.refused = Some(refused);
        reply.with_grpc_status(code)
    }

    pub fn reads_body(&self) -> bool {
        self.call
            .as_ref()
            .is_some_and(|call| call.reads_body(&self.table))
    }

    /// The messages of the call. A body that is none is refused.
    pub fn finish(&mut self, body: &[u8]) -> Result<Vec<u8>, Reply> {
        let finished = match &self.call {
            _ if self.encoded && !body.is_empty() => Err(Refused::Encoded),
            Some(call) => call.finish(&self.table, &self.content_type, body),
            None => Ok(Vec::new()),
        };
        finished.map_err(|refused| self.refuse(refused))
    }

    pub fn too_large(&mut self) -> Reply {
        self.refuse(Refused::TooLarge)
    }

    pub fn answer(&self) -> Answer {
        let binding = self.call.as_ref().map_or(usize::MAX, |call| call.binding);
        Answer::new(&self.table, binding, self.events)
    }

    /// An answer of our own: its status, and what it says.
    pub fn own(&self, reply: &Reply, reason: Reason) -> Status {
        let code = reply.grpc_status.unwrap_or(reason.grpc_status());
        let message = self.refused().unwrap_or_else(|| reason.as_str().to_owned());
        Status::new(code, message)
    }

    /// An answer that says how the call failed, with the HTTP status that is to go with it.
    pub fn failed(&self, status: &Status, http: u16) -> answer::Whole {
        answer::failed(&self.table, status, http)
    }
}

/// How a call ended, by trailers or by a head without a body.
pub fn status_of(fields: &HeaderList) -> Option<Status> {
    let details = Name::new(b"grpc-status-details-bin").and_then(|name| fields.get(name));
    let (code, message) = (
        fields.get(names::GRPC_STATUS),
        fields.get(names::GRPC_MESSAGE),
    );
    Status::parse(code, message, details)
}

/// Takes gRPC's own fields out of a head that becomes one of JSON.
pub fn strip(fields: &mut HeaderList) {
    fields.remove_where(|name, _| {
        name.as_bytes().starts_with(b"grpc-")
            || name == names::CONTENT_TYPE
            || name == names::TRAILER
    });
}

/// False where it is no value of a header: nothing was said.
pub fn say(fields: &mut HeaderList, name: Name<'_>, value: &str) -> bool {
    match Value::new(value.as_bytes()) {
        Some(value) => {
            fields.set(name, value);
            true
        }
        None => false,
    }
}
