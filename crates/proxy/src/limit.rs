//! What one request may do to the application: whether it comes in at all (load, rate limits), what is made worse on purpose
//! (faults), and how long it may take (the deadline that gRPC's callers send along).

pub mod deadline;

use phalanx_model::name::Direction;
use phalanx_model::reason::Reason;
use phalanx_model::resource::limit::Priority;
use phalanx_relay::{Checked, Reply, Verdict, names};

use crate::context::{Caller, StreamContext};
use crate::plan::Plan;
use crate::quota::clock;
use crate::quota::guard::{Asker, Passed};

/// Deadlines in both directions; the rest is the callee's business, so that all of its callers count.
pub fn admit<'p>(_: &'p Plan, request: &mut Checked, context: &mut StreamContext<'p>) -> Verdict {
    if request.is_grpc()
        && let Some(told) = request.headers().get(names::GRPC_TIMEOUT)
        && let Some(left_ns) = deadline::parse(told)
    {
        if left_ns == 0 {
            return Reason::Timeout.into();
        }
        context.deadline_ns = Some(clock::now_ns().saturating_add(left_ns));
    }
    let Some(entry) = context.entry else {
        return Verdict::Continue;
    };
    if context.direction != Direction::Inbound || entry.limits.is_open() || context.dry {
        return Verdict::Continue;
    }
    let caller = match context.caller {
        Caller::Known(known) => Some(&known.peer.id),
        Caller::Plain | Caller::Nobody | Caller::Outside(_) => None,
    };
    let asker = Asker {
        caller,
        told: told(request),
        rng: &mut context.rng,
    };
    match entry.limits.admit(request, asker) {
        Ok(Passed { delay_ms, admitted }) => {
            context.delay_ms = delay_ms;
            context.admitted = admitted;
            Verdict::Continue
        }
        Err(reply) => Verdict::Respond(reply),
    }
}

/// What somebody of the mesh said: others' words were taken away at the door.
fn told(request: &Checked) -> Option<Priority> {
    Priority::parse(request.headers().get(names::X_PHALANX_PRIORITY)?)
}

/// How long the caller still waits, for whoever sets the deadline of the whole exchange; none: it has not said.
pub fn left_ms(context: &StreamContext<'_>) -> Option<u64> {
    let until = context.deadline_ns?;
    Some((until.saturating_sub(clock::now_ns()) / clock::MILLISECOND).max(1))
}

/// Before each attempt: what is left of the caller's time goes with it.
///
/// # Errors
/// Nothing is left: the request isn't sent.
pub fn carry(request: &mut Checked, context: &StreamContext<'_>) -> Result<(), Reply> {
    let Some(until) = context.deadline_ns else {
        return Ok(());
    };
    let left = deadline::Timeout::new(until.saturating_sub(clock::now_ns()));
    let Some(value) = left.as_ref().and_then(|left| left.value()) else {
        return Err(Reply::of(Reason::Timeout));
    };
    request.headers_mut().set(names::GRPC_TIMEOUT, value);
    Ok(())
}

#[cfg(test)]
mod tests;
