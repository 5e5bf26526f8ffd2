//! The door. A checked head enters; at the inbound listener, which is an edge as long as it has no mutual TLS, headers
//! that only the mesh may set are taken away.

mod outside;

use phalanx_model::name::Direction;
use phalanx_relay::checked::is_internal;
use phalanx_relay::{Checked, Verdict, names};

use crate::context::{Caller, StreamContext};
use crate::plan::Plan;

/// Reads what the caller's sidecar says to ours, and strips the rest of its kind.
///
/// `x-phalanx-port` only picks among the ports of this sidecar's own application, and `x-phalanx-http` the protocol that it
/// is spoken to in, so anybody may send them.
pub fn admit<'p>(
    plan: &'p Plan,
    request: &mut Checked,
    context: &mut StreamContext<'p>,
) -> Verdict {
    if context.direction == Direction::Inbound {
        let asked = request.headers().get(names::X_PHALANX_PORT);
        context.asked_port = asked.and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
        context.began_as_http1 = request.headers().get(names::X_PHALANX_HTTP) == Some(b"1");
    }
    if let Caller::Outside(outside) = context.caller {
        outside::admit(&plan.gates.colours, request, context, outside);
        return Verdict::Continue;
    }
    let keeps_priority = tells_priority(context);
    request.headers_mut().remove_where(|name, _| {
        may_be_internal(name)
            && is_internal(name.as_bytes())
            && !(keeps_priority && name == names::X_PHALANX_PRIORITY)
    });
    Verdict::Continue
}

/// How urgent a request is, this sidecar's own application may say, and whoever has shown that it is of the mesh.
fn tells_priority(context: &StreamContext<'_>) -> bool {
    match context.direction {
        Direction::Outbound => true,
        Direction::Inbound => matches!(context.caller, Caller::Known(_)),
    }
}

/// Spares the comparison for names that are known not to be.
#[inline]
fn may_be_internal(name: phalanx_relay::Name<'_>) -> bool {
    name.as_bytes().first() == Some(&b'x')
}
