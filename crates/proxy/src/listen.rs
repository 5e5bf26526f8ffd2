//! The door. A checked head enters; at the inbound listener, which is an edge as long as it has no mutual TLS, headers
//! that only the mesh may set are taken away.

use phalanx_model::name::Direction;
use phalanx_relay::checked::is_internal;
use phalanx_relay::{Checked, Verdict, names};

use crate::context::StreamContext;
use crate::plan::Plan;

/// Reads what the caller's sidecar says to ours, and strips the rest of its kind.
///
/// `x-phalanx-port` only picks among the ports of this sidecar's own application, and `x-phalanx-http` the protocol that it
/// is spoken to in, so anybody may send them.
pub fn admit<'p>(_: &'p Plan, request: &mut Checked, context: &mut StreamContext<'p>) -> Verdict {
    if context.direction == Direction::Inbound {
        let asked = request.headers().get(names::X_PHALANX_PORT);
        context.asked_port = asked.and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
        context.began_as_http1 = request.headers().get(names::X_PHALANX_HTTP) == Some(b"1");
    }
    request
        .headers_mut()
        .remove_where(|name, _| may_be_internal(name) && is_internal(name.as_bytes()));
    Verdict::Continue
}

/// Spares the comparison for names that are known not to be.
#[inline]
fn may_be_internal(name: phalanx_relay::Name<'_>) -> bool {
    name.as_bytes().first() == Some(&b'x')
}
