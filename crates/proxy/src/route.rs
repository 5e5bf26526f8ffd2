//! Which rule a request meets and which backend gets it.

pub mod json;

mod seat;

use std::net::SocketAddr;

use phalanx_model::matching::CompiledRule;
use phalanx_model::name::Direction;
use phalanx_model::reason::Reason;
use phalanx_model::resource::Health;
use phalanx_relay::{Checked, Reply, Verdict};

use crate::context::{Caller, StreamContext};
use crate::plan::table::{ActionPlan, BackendPlan, ForwardPlan, RedirectPlan, RulePlan, rewritten};
use crate::plan::{Hosts, Outbound, Plan, Routes};

/// Outbound: the host by authority, then the first rule, then a backend by weight. Inbound: the application's port.
pub fn choose<'p>(
    plan: &'p Plan,
    request: &mut Checked,
    context: &mut StreamContext<'p>,
) -> Verdict {
    match context.direction {
        Direction::Inbound => {
            seat::admit(request, context);
            choose_app(plan, context)
        }
        Direction::Outbound if let Caller::Outside(outside) = context.caller => {
            match plan.gates.routes(&outside.table) {
                Some(routes) => choose_rule(plan, routes, request, context),
                None => Reason::NoHealthyUpstream.into(), // not the caller's mistake, and it may come
            }
        }
        Direction::Outbound => match &plan.outbound {
            Outbound::All(routes) => choose_rule(plan, routes, request, context),
            Outbound::Demand { hosts, .. } => match hosts.find(request.authority()) {
                Some(routes) if routes.is_empty() && context.original.is_some() => {
                    choose_original(plan, hosts, request, context)
                }
                Some(routes) => choose_rule(plan, routes, request, context),
                None => Verdict::Park,
            },
            // Nothing was ever received: not the caller's mistake, and it may come.
            Outbound::Unknown => Reason::NoHealthyUpstream.into(),
        },
    }
}

/// Nobody has the host: the address decides that it was sent to before it was redirected, and leads there where that is
/// nobody's of the mesh either.
fn choose_original<'p>(
    plan: &'p Plan,
    hosts: &'p Hosts,
    request: &mut Checked,
    context: &mut StreamContext<'p>,
) -> Verdict {
    let Some(original) = context.original else {
        return Reason::NoRoute.into();
    };
    match hosts.find(&original.authority) {
        None => Verdict::Park,
        Some(routes) if !routes.is_empty() => {
            choose_rule_of(plan, routes, &original.authority, request, context)
        }
        Some(_) if !original.is_open => Reason::NoRoute.into(),
        Some(_) => {
            context.rule = Some(&plan.inbound.rule);
            if let ActionPlan::Forward(forward) = &plan.inbound.rule.action {
                context.forward = Some(forward);
            }
            context.passes = true;
            Verdict::Continue
        }
    }
}

/// The port that was asked for; the only one takes everything.
fn choose_app<'p>(plan: &'p Plan, context: &mut StreamContext<'p>) -> Verdict {
    let app = match &*plan.inbound.apps {
        [only] => Some(only),
        apps => apps
            .iter()
            .find(|app| Some(app.number) == context.meant_port.or(context.asked_port)),
    };
    let Some(app) = app else {
        return Reason::NoRoute.into();
    };
    context.entry = app.entry.as_deref();
    context.rule = Some(&plan.inbound.rule);
    context.cluster = Some(app.cluster);
    if let ActionPlan::Forward(forward) = &plan.inbound.rule.action {
        context.forward = Some(forward);
    }
    Verdict::Continue
}

fn choose_rule<'p>(
    plan: &'p Plan,
    routes: &'p Routes,
    request: &mut Checked,
    context: &mut StreamContext<'p>,
) -> Verdict {
    let rules = routes.table.rules();
    // At an edge the port says how somebody came there, not what is meant.
    let authority = match context.caller {
        Caller::Outside(_) => request.host(),
        _ => request.authority(),
    };
    match rules.host(authority).and_then(|host| host.find(request)) {
        Some(rule) => follow(plan, routes, rule, request, context),
        None => Reason::NoRoute.into(),
    }
}

/// The same for whoever has another name than the request says.
fn choose_rule_of<'p>(
    plan: &'p Plan,
    routes: &'p Routes,
    authority: &str,
    request: &mut Checked,
    context: &mut StreamContext<'p>,
) -> Verdict {
    let host = routes.table.rules().host(authority);
    match host.and_then(|host| host.find(request)) {
        Some(rule) => follow(plan, routes, rule, request, context),
        None => Reason::NoRoute.into(),
    }
}

fn follow<'p>(
    plan: &'p Plan,
    routes: &'p Routes,
    rule: &'p CompiledRule<RulePlan>,
    request: &mut Checked,
    context: &mut StreamContext<'p>,
) -> Verdict {
    let is_secured = matches!(context.caller, Caller::Outside(outside) if outside.is_secured);
    context.rule = Some(&rule.attachment);
    context.prefix_len = rule.prefix_len();
    match &rule.attachment.action {
        ActionPlan::Respond(reason) => own(&rule.attachment, Reply::of(*reason)),
        ActionPlan::Redirect(redirect) => {
            match location(redirect, request, context.prefix_len, is_secured) {
                Some(location) => own(&rule.attachment, Reply::redirect(redirect.status, location)),
                None => Reason::BadPath.into(),
            }
        }
        ActionPlan::Forward(forward) => forward_to(plan, routes, forward, request, context),
    }
}

/// An answer by the rule itself, which its header edits hold for too.
fn own(rule: &RulePlan, reply: Reply) -> Verdict {
    Verdict::Respond(Reply {
        fields: rule.response.given(),
        ..reply
    })
}

fn forward_to<'p>(
    plan: &'p Plan,
    routes: &'p Routes,
    forward: &'p ForwardPlan,
    request: &mut Checked,
    context: &mut StreamContext<'p>,
) -> Verdict {
    if let Some(cors) = &forward.cors {
        if let Some(fields) = cors.preflight(request) {
            return Verdict::Respond(Reply::with_fields(fields));
        }
        context.origin = cors.allowed(request.headers());
    }
    context.forward = Some(forward);
    if let Some(session) = &forward.session {
        context.session = session.find(request.headers());
    }
    let seat = match seat::find(plan, routes, forward, request, context) {
        Ok(seat) => seat,
        Err(verdict) => return verdict,
    };
    let kept = match seat {
        Some((backend, member, entry)) => {
            context.seat = Some(entry);
            Some((backend, member))
        }
        None => context
            .session
            .and_then(|held| keeper(plan, routes, forward, held.address)),
    };
    let backend = match kept {
        Some((backend, member)) => {
            context.wanted = Some(member);
            backend
        }
        None => match forward.choose(&mut context.rng) {
            Some(backend) => backend,
            None => return Reason::InvalidBackend.into(),
        },
    };
    let Some(cluster) = backend.cluster else {
        return Reason::InvalidBackend.into();
    };
    let place = |cluster: usize| routes.clusters.get(cluster).copied().flatten();
    context.backend = Some(backend);
    context.cluster = place(cluster);
    if let Some(key) = &forward.key
        && let Some(cluster) = context.cluster.and_then(|place| plan.clusters.get(place))
        && cluster.group.is_keyed()
    {
        let found = key.find(request.headers(), context.peer, &mut context.rng);
        (context.hash, context.cookie) = found;
    }
    for mirror in &forward.mirrors {
        if mirror.takes(&mut context.rng) {
            context.mirrors.extend(place(mirror.cluster));
        }
    }
    match context.cluster {
        Some(_) => Verdict::Continue,
        None => Reason::NoHealthyUpstream.into(), // the cluster has not come yet
    }
}

/// The backend that has the endpoint at this address, and which of its members that is. Weights don't count: a session
/// outlives them. A draining endpoint keeps its sessions, an unhealthy one does not.
fn keeper<'p>(
    plan: &Plan,
    routes: &Routes,
    forward: &'p ForwardPlan,
    address: SocketAddr,
) -> Option<(&'p BackendPlan, usize)> {
    forward.backends.iter().find_map(|backend| {
        let place = routes.clusters.get(backend.cluster?).copied().flatten()?;
        let cluster = plan.clusters.get(place)?;
        let member = cluster.find(address)?;
        let keeps = cluster.group.member(member)?.health != Health::Unhealthy;
        keeps.then_some((backend, member))
    })
}

/// Scheme, host, port and path by the rule, else the request's; a scheme's own port is left out. The query stays.
fn location(
    redirect: &RedirectPlan,
    request: &Checked,
    prefix_len: Option<usize>,
    is_secured: bool,
) -> Option<String> {
    let own = if is_secured { "https" } else { "http" };
    let scheme = redirect.scheme.as_deref().unwrap_or(own);
    let host = redirect
        .hostname
        .as_deref()
        .unwrap_or_else(|| request.host());
    // A new scheme brings its own port, unless one is written.
    let port = redirect.port.or_else(|| {
        if redirect.scheme.is_some() {
            None
        } else {
            request.port()
        }
    });
    let port = port.filter(|port| !matches!((scheme, port), ("http", 80) | ("https", 443)));
    let path = match &redirect.path {
        None => request.path().to_owned(),
        Some(rewrite) => rewritten(rewrite, request.path(), prefix_len)?,
    };
    let port = port.map(|port| format!(":{port}")).unwrap_or_default();
    let query = request
        .query()
        .map(|query| format!("?{query}"))
        .unwrap_or_default();
    Some(format!("{scheme}://{host}{port}{path}{query}"))
}

#[cfg(test)]
mod tests;
