//! What was let in to stay, under rules that may change: a WebSocket asks nothing again, so it is asked about with each plan.

use phalanx_model::identity::SpiffeId;
use phalanx_model::matching::access::AccessRequest;
use phalanx_model::name::Direction;
use phalanx_model::resource::MtlsMode;
use phalanx_relay::{Checked, HeaderList, names};

use super::{Asked, each_of};
use crate::context::{Caller, StreamContext};
use crate::plan::Plan;

/// A request as it was let in, for as long as what it opened stays open.
pub struct Lasting {
    method: Box<str>,
    path: Box<str>,
    authority: Box<str>,
    /// Where that has a port.
    host: Option<Box<str>>,
    headers: HeaderList,
    caller: Option<SpiffeId>,
    /// The application's port.
    port: u16,
}

impl Lasting {
    /// Of a request for the application's `port`; none where nobody is asked.
    pub fn of(port: u16, request: &Checked, context: &StreamContext<'_>) -> Option<Self> {
        (context.direction == Direction::Inbound).then(|| Self {
            method: request.method_str().into(),
            path: request.path().into(),
            authority: request.authority().into(),
            host: request.port().map(|_| request.host().into()),
            headers: request.headers().clone(),
            caller: match context.caller {
                Caller::Known(known) => Some(known.peer.id.clone()),
                _ => None,
            },
            port,
        })
    }

    /// As [`may_stay`].
    pub fn may_stay(&self, plan: &Plan) -> bool {
        is_let_in(plan, self.port, self.caller.as_ref(), self)
    }
}

/// Whether a request under way to the application's `port` would be let in now. An application that is gone, or whose
/// rules are not known, shuts nobody out.
pub fn may_stay(plan: &Plan, port: u16, request: &Checked, context: &StreamContext<'_>) -> bool {
    if context.direction == Direction::Outbound {
        return true;
    }
    let caller = match context.caller {
        Caller::Known(known) => Some(&known.peer.id),
        _ => None,
    };
    is_let_in(plan, port, caller, &Asked(request))
}

fn is_let_in(
    plan: &Plan,
    port: u16,
    caller: Option<&SpiffeId>,
    asked: &impl AccessRequest,
) -> bool {
    let mut apps = plan.inbound.apps.iter();
    let app = apps.find(|app| app.number == port);
    let Some(entry) = app.and_then(|app| app.entry.as_deref()) else {
        return true;
    };
    (entry.mode != MtlsMode::Strict || caller.is_some())
        && entry.access.decide(caller, asked).is_allowed()
}

impl AccessRequest for Lasting {
    fn method(&self) -> &str {
        &self.method
    }

    fn path(&self) -> &str {
        &self.path
    }

    fn each_value<'r>(&'r self, name: &str, each: &mut dyn FnMut(&'r [u8]) -> bool) {
        each_of(self.authority.as_bytes(), &self.headers, name, each);
    }

    fn also_read(&self, name: &str) -> Option<&[u8]> {
        let host = self.host.as_ref()?;
        (name.as_bytes() == names::HOST.as_bytes()).then_some(host.as_bytes())
    }
}
