//! What an application does not pass on: the colour of the request that its call is the child of, its trace and its id are
//! given to the call where it is known whose child that is (see [`crate::underway`]).

use phalanx_model::name::Direction;
use phalanx_model::reason::Reason;
use phalanx_relay::{Checked, Verdict, names};

use crate::context::{Caller, StreamContext};
use crate::plan::Plan;
use crate::underway::{Cause, Here, How};

/// First of all for what the application sends. What it says itself stays.
#[inline]
pub fn fill<'p>(_: &'p Plan, request: &mut Checked, context: &mut StreamContext<'p>) -> Verdict {
    match context.underway {
        Some(here) if is_application(context) && context.correlated.is_none() => {
            give(here, request, context)
        }
        _ => Verdict::Continue,
    }
}

fn is_application(context: &StreamContext<'_>) -> bool {
    context.direction == Direction::Outbound && !matches!(context.caller, Caller::Outside(_))
}

fn give(here: Here<'_>, request: &mut Checked, context: &mut StreamContext<'_>) -> Verdict {
    let cause = match () {
        () if request.headers().contains(names::X_ENV) => None,
        () if here.is_coloured() => Some(here.cause(request.headers())),
        () => Some(Cause::Unknown),
    };
    let is_foreign = matches!(cause, Some(Cause::Foreign));
    let (how, colour) = match cause {
        None => (How::Carried, None),
        Some(Cause::Traced(colour)) => (How::Traced, Some(colour)),
        Some(Cause::Correlated(colour)) => (How::Correlated, Some(colour)),
        Some(Cause::Ambiguous { lost }) => {
            if lost && here.is_strict() {
                context.correlated = Some(How::Ambiguous);
                here.count(How::Ambiguous);
                return Reason::ColourLost.into();
            }
            (How::Ambiguous, None)
        }
        Some(Cause::Unknown | Cause::Foreign) => (How::None, None),
    };
    context.correlated = Some(how);
    here.count(how);
    let headers = request.headers();
    let has_both = headers.contains(names::TRACEPARENT) && headers.contains(names::X_REQUEST_ID);
    let ids = match has_both || is_foreign {
        true => None,
        false => here.sole(),
    };
    if let Some(colour) = colour {
        colour.give(request.headers_mut());
    }
    if let Some(ids) = ids {
        ids.give(request.headers_mut());
    }
    Verdict::Continue
}

#[cfg(test)]
mod tests;
