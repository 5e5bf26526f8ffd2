//! Requests whose session the directory places: they go where it is and nowhere else, whatever weights and health say, and
//! the application is told the epoch. An instance that does not have the session must not see them: two would.

use std::sync::Arc;

use phalanx_model::name::Direction;
use phalanx_model::reason::Reason;
use phalanx_model::resource::sessions::Missing;
use phalanx_relay::{Checked, Value, Verdict, names};

use crate::context::{Caller, StreamContext};
use crate::directory::Entry;
use crate::plan::table::{BackendPlan, ForwardPlan};
use crate::plan::{Outbound, Plan, Routes};

/// A seat among the backends of a rule: the backend, which of its members it is, and the directory's entry.
pub(super) type Seat<'p> = (&'p BackendPlan, usize, Arc<Entry>);

/// Where the request's session is; none: it has none, or one that is nowhere and may be placed.
pub(super) fn find<'p>(
    plan: &'p Plan,
    routes: &'p Routes,
    forward: &'p ForwardPlan,
    request: &mut Checked,
    context: &StreamContext<'p>,
) -> Result<Option<Seat<'p>>, Verdict> {
    let found = match plan.directories.is_empty() {
        true => Ok(None),
        false => look(plan, routes, forward, request, context),
    };
    let headers = request.headers_mut();
    match &found {
        Ok(Some((.., entry))) => {
            if let Some(epoch) = Value::new(entry.epoch.to_string().as_bytes()) {
                headers.set(names::X_SESSION_EPOCH, epoch);
            }
        }
        // What an application copied from another request.
        _ => drop(headers.remove(names::X_SESSION_EPOCH)),
    }
    found
}

fn look<'p>(
    plan: &'p Plan,
    routes: &'p Routes,
    forward: &'p ForwardPlan,
    request: &Checked,
    context: &StreamContext<'p>,
) -> Result<Option<Seat<'p>>, Verdict> {
    let (mut is_elsewhere, mut is_refused, mut is_unknown) = (false, false, false);
    for backend in &forward.backends {
        let place = backend
            .cluster
            .and_then(|cluster| routes.clusters.get(cluster));
        let cluster = place.copied().flatten();
        let Some(cluster) = cluster.and_then(|place| plan.clusters.get(place)) else {
            continue;
        };
        let Some(directory) = &cluster.directory else {
            continue;
        };
        let Some(key) = directory.key(request.headers()) else {
            continue;
        };
        if !plan.directory.is_filled(&directory.service) {
            is_unknown = true;
            continue;
        }
        match plan.directory.hold(&directory.service, key) {
            Some(entry) => {
                let mut addresses = entry.addresses.iter();
                match addresses.find_map(|address| cluster.find(*address)) {
                    Some(member) => return Ok(Some((backend, member, entry))),
                    None => is_elsewhere = true,
                }
            }
            None => is_refused |= directory.missing == Missing::Refuse,
        }
    }
    let may_wait = !matches!(context.caller, Caller::Outside(_))
        && matches!(plan.outbound, Outbound::Demand { .. });
    match () {
        () if is_elsewhere => Err(Reason::NoHealthyUpstream.into()),
        () if is_unknown && may_wait => Err(Verdict::Park),
        () if is_unknown || is_refused => Err(Reason::NoHealthyUpstream.into()),
        () => Ok(None),
    }
}

/// What a caller says of the epoch is taken away, unless it is known to be of the mesh; in a mesh without identities nobody
/// is known.
pub(super) fn admit(request: &mut Checked, context: &StreamContext<'_>) {
    let may_tell = !context.guarded || matches!(context.caller, Caller::Known(_));
    if context.direction == Direction::Inbound && !may_tell {
        request.headers_mut().remove(names::X_SESSION_EPOCH);
    }
}
