//! What a stage says of a request, and the answers that the proxy makes by itself.

use phalanx_model::Reason;

use crate::header::Field;

/// A stage is `fn(&Plan, &mut Checked, &mut StreamContext) -> Verdict`; plan and context belong to the proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// On to the next stage.
    Continue,
    /// Answer this; no later stage runs.
    Respond(Reply),
    /// The stage waits for something outside, and will be asked again from the first stage on, with whatever plan there is then.
    Park,
}

/// An answer of the proxy's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    /// Why; none for a redirect, or what a route answers by itself.
    pub reason: Option<Reason>,
    /// Where to, of a redirect.
    pub location: Option<String>,
    /// What else it says.
    pub fields: Vec<Field>,
    /// Of an answer to gRPC, where that of the reason doesn't do.
    pub grpc_status: Option<u8>,
    /// Whether the connection it came by can't be trusted any further.
    pub close: bool,
}

impl Reply {
    pub fn of(reason: Reason) -> Self {
        Self {
            status: reason.http_status(),
            reason: Some(reason),
            location: None,
            fields: Vec::new(),
            grpc_status: None,
            close: false,
        }
    }

    /// The same reason under another status.
    pub fn with_status(self, status: u16) -> Self {
        Self { status, ..self }
    }

    /// The same reason under another code of gRPC.
    pub fn with_grpc_status(self, code: u8) -> Self {
        Self {
            grpc_status: Some(code),
            ..self
        }
    }

    pub fn and_close(self) -> Self {
        Self {
            close: true,
            ..self
        }
    }

    /// Nothing is wrong, and these fields say all.
    pub fn with_fields(fields: Vec<Field>) -> Self {
        Self {
            status: 200,
            reason: None,
            location: None,
            fields,
            grpc_status: None,
            close: false,
        }
    }

    pub fn redirect(status: u16, location: String) -> Self {
        Self {
            status,
            reason: None,
            location: Some(location),
            fields: Vec::new(),
            grpc_status: None,
            close: false,
        }
    }
}

impl From<Reason> for Verdict {
    fn from(reason: Reason) -> Self {
        Self::Respond(Reply::of(reason))
    }
}
