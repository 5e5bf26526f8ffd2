//! What a sidecar would do with a request, and why: the same checks, stages and balancer that requests go through, over a
//! plan, with every intermediate result told. Offline the plan is made from files, in a sidecar it is the one in force.
//!
//! Nothing is sent, counted or taken. No socket and no file; how rules are shown comes in as a function.

mod edge;
mod lane;
mod supposed;
mod told;
mod udp;

use std::sync::Arc;

use fastrand::Rng;
use phalanx_model::identity::SpiffeId;
use phalanx_model::matching::access::Decision;
use phalanx_model::name::{ClusterName, Direction};
use phalanx_model::reason::Reason;
use phalanx_model::resource::{
    self, Action, Assignment, Health, MtlsMode, RouteTable, Rule, VirtualHost,
};
use phalanx_pki::verifier::Peer;
use phalanx_relay::{
    Checked, Deadlines, Field, Http1Line, Http2Pseudo, Limits as HeadLimits, Refusal, Reply,
    Verdict, Version, Workspace,
};
use phalanx_xds::decode::Resource;
use serde_json::Value;

use crate::balance::{Load, Pick, Tried};
use crate::context::{Caller, KnownCaller, StreamContext};
use crate::discovery::Configuration;
use crate::drive::walk;
use crate::guard::Asked;
use crate::plan::cluster::ClusterPlan;
use crate::plan::table::ForwardPlan;
use crate::plan::{Outbound, Plan, Routes};
use crate::upstream::{Permit, Share};

pub use supposed::Supposed;
pub use told::{
    Authorization, Backend, Coloured, Compared, Copies, Endpoint, Ends, Explanation, Head, Host,
    Limits, Outcome, RuleTold, TakenBy,
};

/// A request that nobody sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asking {
    pub method: String,
    pub authority: String,
    pub path: String,
    pub query: Option<String>,
    pub headers: Vec<(String, String)>,
    /// Spoken in HTTP/2; gRPC always is.
    pub http2: bool,
}

/// Where it comes in.
pub struct Setting<'a> {
    pub node: String,
    pub plan: &'a Plan,
    /// What the plan was made of.
    pub configuration: &'a Configuration,
    pub direction: Direction,
    /// Who calls, of an inbound request; none: somebody in plain text.
    pub caller: Option<SpiffeId>,
    /// The other end of the connection, of a request from outside; none: somebody on this machine.
    pub peer: Option<std::net::IpAddr>,
    /// The sidecar has an identity.
    pub guarded: bool,
    /// Since the account's start.
    pub now_us: u64,
    /// How a rule is shown.
    pub describe: fn(&Rule) -> Value,
}

/// Of somebody who asks.
#[derive(Debug)]
pub enum Answer {
    Told(Box<Explanation>),
    /// This host is not held: the control plane has to be asked for it first.
    Park {
        authority: String,
    },
}

impl Asking {
    /// Of `METHOD URL`, where the URL is `http://AUTHORITY/PATH?QUERY`, without a scheme too.
    ///
    /// # Errors
    /// In words.
    pub fn parse(method: &str, url: &str, headers: &[String]) -> Result<Self, String> {
        let rest = match url.split_once("://") {
            Some(("http" | "grpc" | "udp", rest)) => rest,
            Some((scheme, _)) => {
                return Err(format!(
                    "scheme `{scheme}`: inside the mesh applications call http:// (or grpc://), encrypting is the sidecars' work"
                ));
            }
            None => url,
        };
        let cut = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, rest) = rest.split_at(cut);
        if authority.is_empty() {
            return Err(format!("`{url}` names no host"));
        }
        let (path, query) = match rest.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (rest, None),
        };
        let header = |text: &String| {
            let (name, value) = text
                .split_once(':')
                .ok_or_else(|| format!("header `{text}` is no NAME:VALUE"))?;
            Ok((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
        };
        let mut headers: Vec<(String, String)> =
            headers.iter().map(header).collect::<Result<_, String>>()?;
        let is_grpc = url.starts_with("grpc://");
        if is_grpc && !headers.iter().any(|(name, _)| name == "content-type") {
            headers.push(("content-type".into(), "application/grpc".into()));
        }
        let speaks_grpc = headers
            .iter()
            .any(|(name, value)| name == "content-type" && value.starts_with("application/grpc"));
        Ok(Self {
            method: method.to_owned(),
            authority: authority.to_owned(),
            path: if path.is_empty() { "/" } else { path }.to_owned(),
            query,
            headers,
            http2: speaks_grpc,
        })
    }

    /// What was sent on, as the other end reads it.
    pub fn of(head: &Head, port: Option<String>, http2: bool) -> Self {
        let port = port.map(|port| ("x-phalanx-port".to_owned(), port));
        Self {
            method: head.method.clone(),
            authority: head.authority.clone(),
            path: head.path.clone(),
            query: head.query.clone(),
            headers: head.headers.iter().cloned().chain(port).collect(),
            http2,
        }
    }

    /// By the constructor that every request goes through.
    fn check(&self) -> Result<Checked, Refusal> {
        let limits = HeadLimits::default();
        let named = |name: &'static str, value| (name.as_bytes(), str::as_bytes(value));
        let host = (!self.http2).then(|| named("host", self.authority.as_str()));
        let fields = self.headers.iter();
        let fields = fields.map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        let fields = host.into_iter().chain(fields);
        let (method, path, query) = (&*self.method, &*self.path, self.query.as_deref());
        let checked = match self.http2 {
            true => Checked::http2(
                Workspace::default(),
                Http2Pseudo {
                    method,
                    authority: Some(&self.authority),
                    path,
                    query,
                    ended: true,
                },
                fields,
                &limits,
            ),
            false => Checked::http1(
                Workspace::default(),
                Http1Line {
                    method,
                    authority: None,
                    path,
                    query,
                    version: Version::Http11,
                },
                fields,
                &limits,
            ),
        };
        checked.map_err(|(refusal, _)| refusal)
    }
}

/// Everything about one request at one sidecar.
pub fn explain(setting: &Setting<'_>, asking: &Asking) -> Answer {
    if udp::is_meant(asking) {
        return Answer::Told(Box::new(udp::explain(setting, asking)));
    }
    let mut told = Explanation {
        direction: setting.direction.as_str().to_owned(),
        node: setting.node.clone(),
        ..Explanation::default()
    };
    let first = match asking.check() {
        Ok(checked) => checked,
        Err(refusal) => {
            told.request = unchecked(asking);
            told.refused = Some(refusal.to_string());
            let grpc = false; // a head that is refused is not looked into
            told.outcomes = vec![answered(&refusal.reply(), grpc, 100.0)];
            return Answer::Told(Box::new(told));
        }
    };
    told.request = head(&first);
    let caller = match at_edge(setting, first.authority()) {
        Some(Ok(gate)) => {
            told.notes.push(format!("it comes in at {}", gate.address));
            Caller::Outside(gate.outside)
        }
        Some(Err(why)) => {
            told.notes.push(why);
            told.outcomes = vec![answered(
                &Reply::of(Reason::NoRoute),
                first.is_grpc(),
                100.0,
            )];
            return Answer::Told(Box::new(told));
        }
        None => caller(setting.caller.as_ref()),
    };
    if let Caller::Outside(outside) = &caller {
        let request = edge::admitted(setting, &caller, first);
        if let Some(routes) = setting.plan.gates.routes(&outside.table) {
            tell_rules(&mut told, setting, routes, &request, request.host());
        }
    } else if setting.direction == Direction::Outbound {
        match &setting.plan.outbound {
            Outbound::All(routes) => {
                tell_rules(&mut told, setting, routes, &first, first.authority());
            }
            Outbound::Demand { hosts, .. } => match hosts.find(first.authority()) {
                Some(routes) => {
                    tell_rules(&mut told, setting, routes, &first, first.authority());
                }
                None => {
                    return Answer::Park {
                        authority: first.authority().to_owned(),
                    };
                }
            },
            Outbound::Unknown => told
                .notes
                .push("no configuration has come from the control plane yet".to_owned()),
        }
    }
    let mut outcomes: Vec<Counted> = Vec::new();
    for seed in 0..WALKS {
        let Ok(request) = asking.check() else { break };
        let (gone, authorization) = go(setting, &caller, request, seed);
        told.authorization = authorization.or(told.authorization.take());
        match outcomes
            .iter_mut()
            .find(|known| known.outcome == gone.outcome)
        {
            Some(known) => known.count += 1,
            None => outcomes.push(gone),
        }
    }
    outcomes.sort_by_key(|outcome| std::cmp::Reverse(outcome.count));
    if let Some(likeliest) = outcomes.first_mut() {
        told.changes = changes(&told.request, &likeliest.sent);
        told.notes.extend(likeliest.note.take());
        told.limits = likeliest.limits.take();
        if likeliest.outcome.ends == Ends::Forward {
            told.upstream = Some(likeliest.sent.clone());
        }
    }
    let rules = rules(setting, &told, &caller);
    let met = told.rules.iter().position(|rule| rule.met);
    let met = met.and_then(|place| rules.get(place));
    told.backends = backends(setting, met, &outcomes);
    told.copies = met.map_or(Vec::new(), |rule| lane::copies(setting, rule));
    let has_session = outcomes.first().is_some_and(|one| one.wanted.is_some());
    let is_seen = setting.direction == Direction::Outbound && !matches!(caller, Caller::Outside(_));
    // What a trust edge gave it.
    let given = outcomes
        .first()
        .filter(|_| !is_seen)
        .map(|one| one.sent.clone());
    let shared = |outcome: Counted| Outcome {
        share_percent: percent(outcome.count, WALKS),
        ..outcome.outcome
    };
    told.outcomes = outcomes.into_iter().map(shared).collect();
    told.colour = lane::coloured(setting, &told, given.as_ref(), rules, has_session);
    Answer::Told(Box::new(told))
}

/// Where a Gateway takes it; none: this is no Gateway.
fn at_edge(setting: &Setting<'_>, authority: &str) -> Option<Result<edge::Gate, String>> {
    let is_edge = setting.plan.gates.all().next().is_some();
    (is_edge && setting.direction == Direction::Outbound).then(|| edge::find(setting, authority))
}

/// One end that such requests come to.
struct Counted {
    outcome: Outcome,
    count: u64,
    sent: Head,
    /// What it is called as, or why it is no call.
    note: Option<String>,
    limits: Option<Limits>,
    cluster: Option<usize>,
    hash: Option<u64>,
    /// Where its session is.
    wanted: Option<usize>,
}

/// Through the stages, and as far as an endpoint.
fn go(
    setting: &Setting<'_>,
    caller: &Caller,
    mut request: Checked,
    seed: u64,
) -> (Counted, Option<Authorization>) {
    let plan = setting.plan;
    let grpc = request.is_grpc();
    let rng = Rng::with_seed(seed);
    let mut context = StreamContext::new(setting.direction, caller, setting.guarded, rng);
    context.dry = true;
    context.peer = Some(edge::peer(setting));
    let verdict = walk(plan, &mut request, &mut context);
    let authorization = authorized(setting, &context, caller, &request);
    let outcome = match verdict {
        Verdict::Respond(reply) => answered(&reply, grpc, 0.0),
        Verdict::Park => answered(&Reply::of(Reason::NoHealthyUpstream), grpc, 0.0),
        Verdict::Continue => {
            let cluster = context.cluster.and_then(|place| plan.clusters.get(place));
            match cluster {
                Some(cluster) => forwarded(cluster, &context, setting.now_us)
                    .unwrap_or_else(|reason| answered(&Reply::of(reason), grpc, 0.0)),
                None => answered(&Reply::of(Reason::Fault), grpc, 0.0),
            }
        }
    };
    let streaming = grpc || request.upgrade().is_some();
    let counted = Counted {
        outcome,
        count: 1,
        sent: head(&request),
        note: note(&context),
        limits: context
            .forward
            .map(|forward| limits(forward, &request, streaming)),
        cluster: context.cluster,
        hash: context.hash,
        wanted: context.wanted,
    };
    (counted, authorization)
}

/// Where callers may speak JSON to gRPC.
fn note(context: &StreamContext<'_>) -> Option<String> {
    let work = context.transcoding.as_deref()?;
    let refused = || Some(format!("no call: {}", work.refused()?));
    work.told().or_else(refused)
}

/// As the driver does with a request that the stages let through.
fn forwarded(
    cluster: &Arc<ClusterPlan>,
    context: &StreamContext<'_>,
    now_us: u64,
) -> Result<Outcome, Reason> {
    let limit = cluster.limits.max_requests;
    let permit = Permit::take(cluster.breaker.clone(), Share::Request, limit);
    permit.ok_or(Reason::Overflow)?;
    pick(cluster, context.hash, &mut Rng::with_seed(0), now_us).ok_or(Reason::NoHealthyUpstream)?;
    Ok(Outcome {
        ends: Ends::Forward,
        cluster: Some(cluster.name.to_string()),
        ..Outcome::default()
    })
}

/// What a core has measured of endpoints is its own and not looked at.
fn pick(cluster: &ClusterPlan, hash: Option<u64>, rng: &mut Rng, now_us: u64) -> Option<usize> {
    let mut turn = rng.u32(..);
    let picked = cluster.group.pick(Pick {
        load: |_| None::<&Load>,
        tried: &Tried::default(),
        rng,
        now_us,
        turn: &mut turn,
        hash,
    });
    picked.map(|picked| picked.member)
}

fn answered(reply: &Reply, grpc: bool, share_percent: f64) -> Outcome {
    let of_grpc = reply.reason.filter(|_| grpc);
    Outcome {
        share_percent,
        ends: Ends::Answer,
        cluster: None,
        status: Some(of_grpc.map_or(reply.status, |_| 200)),
        grpc_status: of_grpc.map(|reason| reply.grpc_status.unwrap_or(reason.grpc_status())),
        reason: reply.reason.map(|reason| reason.as_str().to_owned()),
        location: reply.location.clone(),
    }
}

/// The host that was found, its rules up to the one that is met, and what each compared.
fn tell_rules(
    told: &mut Explanation,
    setting: &Setting<'_>,
    routes: &Routes,
    request: &Checked,
    name: &str,
) {
    let table = routes.table.rules();
    let Some(host) = table.host(name) else {
        told.notes.push(match setting.plan.gates.all().next() {
            Some(_) => format!("no host `{name}`: no route of this port has this hostname"),
            None => format!("no host `{name}`: no Service has this name for this caller"),
        });
        return;
    };
    let source = source(setting.configuration, &table.name, &host.name);
    told.host = Some(Host {
        name: host.name.clone(),
        domains: source.map(|of| of.domains.clone()).unwrap_or_default(),
    });
    for (place, rule) in host.rules().iter().enumerate() {
        let compared = rule.compare(request).into_iter().map(|one| Compared {
            what: one.what,
            expected: one.expected,
            found: one.found,
            holds: one.holds,
        });
        let shown = source.and_then(|of| of.rules.get(place));
        let met = rule.matches(request);
        told.rules.push(RuleTold {
            name: rule.name.clone(),
            source: None,
            met,
            compared: compared.collect(),
            rule: shown.map(setting.describe).unwrap_or_default(),
        });
        if met {
            told.rules_behind = host.rules().len() - place - 1;
            return;
        }
    }
    told.notes.push("no rule of the host is met".to_owned());
}

/// The host's rules as they came, beside the compiled ones.
fn source<'c>(
    configuration: &'c Configuration,
    table: &str,
    host: &str,
) -> Option<&'c VirtualHost> {
    let key = (phalanx_xds::Kind::Routes, table.to_owned());
    match &configuration.held().get(&key)?.resource {
        Resource::Routes(RouteTable { hosts, .. }) => hosts.iter().find(|of| of.name == host),
        _ => None,
    }
}

/// Of an inbound request, by the rules of the port that was chosen.
fn authorized(
    setting: &Setting<'_>,
    context: &StreamContext<'_>,
    caller: &Caller,
    request: &Checked,
) -> Option<Authorization> {
    let entry = context.entry?;
    let known = match caller {
        Caller::Known(known) => Some(&known.peer.id),
        _ => None,
    };
    let decision = entry.access.decide(known, &Asked(request));
    let refused = entry.mode == MtlsMode::Strict && known.is_none();
    let (word, policy) = match decision {
        _ if refused => ("unauthenticated", None),
        Decision::Allowed => {
            let by = entry.access.allowed_by(known, &Asked(request));
            ("allowed", by.map(str::to_owned))
        }
        Decision::Denied(policy) => ("denied", Some(policy.to_owned())),
        Decision::NotAllowed => ("not allowed", None),
    };
    Some(Authorization {
        mode: format!("{:?}", entry.mode),
        caller: setting.caller.as_ref().map(ToString::to_string),
        decision: word.to_owned(),
        policy,
        source: None,
    })
}

fn limits(forward: &ForwardPlan, request: &Checked, streaming: bool) -> Limits {
    let hedging = forward.hedging_of(request);
    let by_default = forward.default_timeout && !streaming;
    let usual = u64::try_from(Deadlines::default().route.as_millis()).unwrap_or(u64::MAX);
    Limits {
        request_timeout_ms: forward.request_timeout_ms.or(by_default.then_some(usual)),
        is_default: forward.request_timeout_ms.is_none() && by_default,
        attempt_timeout_ms: forward.attempt_timeout_ms,
        retries: forward.retry.attempts,
        backoff_ms: forward.retry.backoff_ms,
        hedge_delay_ms: hedging.map(|of| u64::try_from(of.delay.as_millis()).unwrap_or(u64::MAX)),
        hedges: hedging.map_or(0, |of| of.extra_max),
    }
}

/// All rules of the host that was found.
fn rules<'s>(setting: &Setting<'s>, told: &Explanation, caller: &Caller) -> &'s [Rule] {
    let routes = match (&setting.plan.outbound, caller) {
        (_, Caller::Outside(outside)) => setting.plan.gates.routes(&outside.table),
        (Outbound::All(routes), _) => Some(routes),
        (Outbound::Demand { hosts, .. }, _) => hosts.find(&told.request.authority),
        (Outbound::Unknown, _) => None,
    };
    let table = routes.map(|routes| routes.table.rules());
    let found = table.zip(told.host.as_ref());
    let found =
        found.and_then(|(table, host)| source(setting.configuration, &table.name, &host.name));
    found.map_or(&[], |host| &host.rules)
}

/// The backends of the rule that was met, each with its endpoints; inbound the application.
fn backends(setting: &Setting<'_>, met: Option<&Rule>, outcomes: &[Counted]) -> Vec<Backend> {
    let hash = outcomes.iter().find_map(|outcome| outcome.hash);
    let session = outcomes.first().and_then(|o| o.cluster.zip(o.wanted));
    let resources = setting.configuration.resources();
    let of_cluster = |name: &ClusterName, weight, share| {
        let plan = setting.plan.cluster(name);
        let sent = resources.assignments.get(name).map(|sent| &**sent);
        Backend {
            cluster: Some(name.to_string()),
            weight,
            share_percent: share,
            endpoints: plan
                .map(|plan| {
                    let held = session.and_then(|(place, member)| {
                        let of = setting.plan.clusters.get(place)?;
                        Arc::ptr_eq(of, plan).then_some(member)
                    });
                    endpoints(plan, sent, (hash, held), setting.now_us)
                })
                .unwrap_or_default(),
            requests: plan.map_or((0, 0), |plan| {
                (plan.breaker.count(Share::Request), plan.limits.max_requests)
            }),
        }
    };
    if let Some(rule) = met {
        let Action::Forward(forward) = &rule.action else {
            return Vec::new();
        };
        let total: u64 = forward.backends.iter().map(|b| u64::from(b.weight)).sum();
        let backend = |backend: &resource::Backend| {
            let share = percent(u64::from(backend.weight), total);
            match &backend.cluster {
                Some(name) => of_cluster(name, backend.weight, share),
                None => Backend {
                    weight: backend.weight,
                    share_percent: share,
                    ..Backend::default()
                },
            }
        };
        return forward.backends.iter().map(backend).collect();
    }
    let places = outcomes.iter().filter_map(|outcome| outcome.cluster);
    let clusters = places.filter_map(|place| setting.plan.clusters.get(place));
    clusters
        .take(1)
        .map(|cluster| of_cluster(&cluster.name, 1, 100.0))
        .collect()
}

fn endpoints(
    cluster: &ClusterPlan,
    sent: Option<&Assignment>,
    (hash, session): (Option<u64>, Option<usize>),
    now_us: u64,
) -> Vec<Endpoint> {
    let session = session.filter(|member| cluster.group.keeps(*member, now_us / 1000));
    let mut counts = vec![0u64; cluster.endpoints.len()];
    let mut rng = Rng::with_seed(1);
    for _ in 0..PICKS {
        let picked = session.or_else(|| pick(cluster, hash, &mut rng, now_us));
        if let Some(count) = picked.and_then(|member| counts.get_mut(member)) {
            *count += 1;
        }
    }
    let shown = cluster.endpoints.iter().zip(counts).enumerate();
    let shown = shown.filter_map(|(place, (plan, count))| {
        let member = cluster.group.member(place)?;
        let sent = sent.and_then(|sent| sent.endpoints.get(place));
        Some(Endpoint {
            address: plan.address.to_string(),
            instance: sent.map(|sent| sent.instance.clone()).unwrap_or_default(),
            version: sent.map(|sent| sent.version.clone()).unwrap_or_default(),
            zone: sent.map(|sent| sent.zone.clone()).unwrap_or_default(),
            weight: member.weight,
            health: match member.health {
                Health::Healthy => "healthy",
                Health::Draining => "draining",
                Health::Unhealthy => "unhealthy",
            }
            .to_owned(),
            ejected: member.outlier.is_ejected(now_us / 1000),
            stands_in: cluster.lane.is_some() && member.is_far,
            mutual_tls: plan.tls.is_some(),
            picked_percent: percent(count, PICKS),
        })
    });
    shown.take(ENDPOINTS_SHOWN).collect()
}

fn caller(id: Option<&SpiffeId>) -> Caller {
    let Some(id) = id else {
        return Caller::Plain;
    };
    match Field::new("x-forwarded-client-cert", &format!("URI={id}")) {
        Ok(header) => Caller::Known(Box::new(KnownCaller {
            peer: Arc::new(Peer::supposed(id.clone())),
            header,
        })),
        Err(_) => Caller::Nobody,
    }
}

fn head(request: &Checked) -> Head {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let headers = request.headers().iter();
    Head {
        method: request.method_str().to_owned(),
        authority: request.authority().to_owned(),
        path: request.path().to_owned(),
        query: request.query().map(str::to_owned),
        headers: headers
            .map(|(name, value)| (name.as_str().to_owned(), text(value)))
            .collect(),
    }
}

fn unchecked(asking: &Asking) -> Head {
    Head {
        method: asking.method.clone(),
        authority: asking.authority.clone(),
        path: asking.path.clone(),
        query: asking.query.clone(),
        headers: asking.headers.clone(),
    }
}

/// In words; what every hop makes anew is left out.
fn changes(before: &Head, after: &Head) -> Vec<String> {
    let mut told = Vec::new();
    let pairs = [
        ("method", &before.method, &after.method),
        ("host", &before.authority, &after.authority),
        ("path", &before.path, &after.path),
    ];
    for (what, before, after) in pairs {
        if before != after {
            told.push(format!("{what} {before} becomes {after}"));
        }
    }
    let of = |head: &Head, name: &str| -> Vec<String> {
        let values = head.headers.iter().filter(|(known, _)| known == name);
        values.map(|(_, value)| value.clone()).collect()
    };
    let mut names: Vec<&String> = before.headers.iter().map(|(name, _)| name).collect();
    names.extend(after.headers.iter().map(|(name, _)| name));
    names.sort();
    names.dedup();
    for name in names
        .into_iter()
        .filter(|name| !FRESH.contains(&name.as_str()))
    {
        let (was, is) = (of(before, name), of(after, name));
        if was == is {
            continue;
        }
        told.push(match (was.is_empty(), is.is_empty()) {
            (true, _) => format!("header {name} is added: {}", is.join(", ")),
            (_, true) => format!("header {name} is removed"),
            _ => format!(
                "header {name}: {} becomes {}",
                was.join(", "),
                is.join(", ")
            ),
        });
    }
    told
}

fn percent(part: u64, of: u64) -> f64 {
    let percent = part as f64 * 100.0 / of.max(1) as f64;
    (percent * 10.0).round() / 10.0
}

/// How often the stages are walked, for what is left to chance: weights, percentages.
const WALKS: u64 = 200;
const PICKS: u64 = 1_000;
const ENDPOINTS_SHOWN: usize = 100;
/// Made by every hop for every request.
const FRESH: [&str; 2] = ["traceparent", "x-request-id"];
