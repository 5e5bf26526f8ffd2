//! What is changed on the way: header edits and rewrites of the route, trace context and request id; on the way back the
//! route's edits, and at the inbound listener nothing that looks like the proxy's own word.
//!
//! `x-forwarded-for` and its kin are neither added nor removed: inside the mesh the peer is a sidecar, and who the player
//! is the gateway knows.

use phalanx_model::name::Direction;
use phalanx_model::reason::Reason;
use phalanx_relay::checked::is_internal;
use phalanx_relay::{Checked, HeaderList, Reply, ResponseHead, Value, Verdict, names};
use phalanx_telemetry::trace::{TraceContext, tracestate_valid};

use crate::context::StreamContext;
use crate::plan::Plan;
use crate::plan::table::rewritten;

/// Trace context and request id, the backend's edits, then the rule's, and the rewrite. A backend's edits are of what it
/// gets and nobody else: copies for others go without.
pub fn request<'p>(_: &'p Plan, request: &mut Checked, context: &mut StreamContext<'p>) -> Verdict {
    trace(request, context);
    if let Some(backend) = context.backend
        && !backend.request.is_empty()
    {
        if !context.mirrors.is_empty() {
            context.mirrored = Some(Box::new(request.headers().clone()));
        }
        backend.request.apply(request.headers_mut());
    }
    let (rule, forward) = (context.rule, context.forward);
    let edit = |headers: &mut HeaderList| {
        if let Some(rule) = rule {
            rule.request.apply(headers);
        }
        if let Some(priority) = forward.and_then(|forward| forward.priority.as_ref())
            && !headers.contains(priority.name())
        {
            headers.push_field(priority);
        }
    };
    edit(request.headers_mut());
    if let Some(copied) = &mut context.mirrored {
        edit(copied);
    }
    let Some(forward) = forward else {
        return Verdict::Continue;
    };
    if let Some(authority) = &forward.authority
        && request.set_authority(authority).is_err()
    {
        return Reason::BadRequest.into();
    }
    if let Some(rewrite) = &forward.path {
        let path = rewritten(rewrite, request.path(), context.prefix_len);
        if path.is_none_or(|path| request.set_path(&path).is_err()) {
            return Reason::BadPath.into();
        }
    }
    Verdict::Continue
}

/// Every hop is a span: the trace id stays, the parent id is this hop's. Without a valid `traceparent` a trace begins,
/// and `tracestate`, which belongs to another, goes.
fn trace(request: &mut Checked, context: &mut StreamContext<'_>) {
    let headers = request.headers_mut();
    let known = TraceContext::of(headers.get_all(names::TRACEPARENT));
    if headers.contains(names::TRACESTATE)
        && (known.is_none() || !tracestate_valid(headers.get_all(names::TRACESTATE)))
    {
        headers.remove(names::TRACESTATE);
    }
    let here = match known {
        Some(known) => known.child(&mut context.rng),
        None => TraceContext::mint(&mut context.rng, false),
    };
    if let Some(value) = Value::new(&here.encode()) {
        headers.set(names::TRACEPARENT, value);
    }
    if !headers.contains(names::X_REQUEST_ID)
        && let Some(value) = Value::new(&request_id(&mut context.rng))
    {
        headers.push(names::X_REQUEST_ID, value);
    }
}

/// A random UUID (RFC 9562, version 4).
fn request_id(rng: &mut fastrand::Rng) -> [u8; 36] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut bytes = [0; 16];
    rng.fill(&mut bytes);
    let mut out = [b'-'; 36];
    let mut place = out.iter_mut();
    for (index, byte) in bytes.into_iter().enumerate() {
        let byte = match index {
            6 => 0x40 | byte & 0x0f,
            8 => 0x80 | byte & 0x3f,
            _ => byte,
        };
        if matches!(index, 4 | 6 | 8 | 10) {
            place.next();
        }
        for digit in [byte >> 4, byte & 15] {
            if let (Some(place), Some(digit)) = (place.next(), DIGITS.get(usize::from(digit))) {
                *place = *digit;
            }
        }
    }
    out
}

/// An answer on its way back, with what keeps its caller's requests together and word for browsers. What an application
/// says in the proxy's name is not passed on.
pub fn response(head: &mut ResponseHead, context: &StreamContext<'_>) {
    if context.direction == Direction::Inbound {
        head.headers.remove_where(|name, _| {
            name.as_bytes().first() == Some(&b'x') && is_internal(name.as_bytes())
        });
    }
    if let Some(cookie) = &context.cookie {
        head.headers.push_field(cookie);
    }
    if let Some(backend) = context.backend {
        backend.response.apply(&mut head.headers);
    }
    if let Some(rule) = context.rule {
        rule.response.apply(&mut head.headers);
    }
    let Some(forward) = context.forward else {
        return;
    };
    if let (Some(cors), Some(origin)) = (&forward.cors, &context.origin) {
        cors.answer(origin, |field| head.headers.set_field(field));
    }
    if let (Some(session), Some(endpoint)) = (&forward.session, context.endpoint.get())
        && let Some(token) = session.renewed(context.session.as_ref(), endpoint)
    {
        session.answer(&token, &mut head.headers);
    }
}

/// An answer of our own to a request whose route was found: a page of another origin may read it like any other.
pub fn own(reply: &mut Reply, context: &StreamContext<'_>) {
    if let Some(forward) = context.forward
        && let (Some(cors), Some(origin)) = (&forward.cors, &context.origin)
    {
        cors.answer(origin, |field| reply.fields.push(field.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_random_uuids() {
        let mut rng = fastrand::Rng::with_seed(1);
        let (first, second) = (request_id(&mut rng), request_id(&mut rng));
        assert_ne!(first, second);
        let text = std::str::from_utf8(&first).unwrap();
        let parts: Vec<usize> = text.split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12]);
        assert_eq!(text.as_bytes()[14], b'4');
        assert!(matches!(text.as_bytes()[19], b'8' | b'9' | b'a' | b'b'));
    }
}
