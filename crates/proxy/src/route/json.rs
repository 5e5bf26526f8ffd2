//! The stage after the route: where that says so, a request in JSON becomes a call of gRPC.

use phalanx_relay::{Checked, Verdict};

use super::choose;
use crate::context::StreamContext;
use crate::plan::Plan;
use crate::transcode::{self, Begun};

pub fn transcode<'p>(
    plan: &'p Plan,
    request: &mut Checked,
    context: &mut StreamContext<'p>,
) -> Verdict {
    let table = context
        .forward
        .and_then(|forward| forward.transcoding.as_ref());
    let Some(table) = table.filter(|_| !request.is_grpc() && request.upgrade().is_none()) else {
        return Verdict::Continue;
    };
    match transcode::begin(table, request) {
        Begun::Other => return Verdict::Continue,
        Begun::Call(work) => context.transcoding = Some(work),
        Begun::Refused(work, reply) => {
            context.transcoding = Some(work);
            return Verdict::Respond(reply);
        }
    }
    if table.options.match_incoming_request_route {
        return Verdict::Continue;
    }
    // By the call's own path, from the beginning.
    context.mirrors.clear();
    (context.session, context.wanted, context.origin) = (None, None, None);
    (context.hash, context.cookie, context.backend) = (None, None, None);
    choose(plan, request, context)
}
