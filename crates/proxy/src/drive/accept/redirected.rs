//! Connections that the kernel redirected, from or to an application that knows nothing of us. Where they were going decides:
//! a call goes to the service that has the address, or on to the address where the mesh has none; a connection to the
//! application is taken as at the inbound listener, for the very port that was called.

use std::net::SocketAddr;
use std::rc::Rc;

use phalanx_model::instance::Protocol;
use phalanx_model::matching::canonical::canonical_authority;
use phalanx_model::name::{Direction, MESH_SUFFIX};
use phalanx_model::resource::MtlsMode;
use tokio::net::TcpStream;

use super::relay::{pass, relay_to};
use super::sniff::{self, Heard, Meant, may_enter, reset};
use crate::account::{Event, TlsRefused};
use crate::config::OutboundPolicy;
use crate::context::Original;
use crate::desk::ANSWER_MAX;
use crate::drive::core::{Cluster, Core};
use crate::drive::deadline::Watch;
use crate::drive::secure;
use crate::drive::server::{self, Door};
use crate::drive::shut;
use crate::drive::stream::Stream;
use crate::intercept::Redirected;
use crate::plan::{Inbound, Outbound, Plan};

pub(super) async fn serve(
    core: &Rc<Core>,
    watch: &Rc<Watch>,
    stream: TcpStream,
    direction: Direction,
) {
    let Some(redirected) = core.redirected.get().cloned() else {
        return;
    };
    let Some(original) = original(&stream, watch, &redirected) else {
        core.count(Event::NotRedirected);
        return reset(stream);
    };
    match direction {
        Direction::Outbound => outbound(core, watch, stream, original, &redirected).await,
        Direction::Inbound => {
            let port = original.port();
            let apps = &core.plan().plan.inbound.apps;
            if !apps.iter().any(|app| app.number == port) {
                return undeclared(core, watch, stream, original).await;
            }
            let meant = Meant {
                port,
                wait: redirected.wait,
            };
            super::serve(core, watch, stream, Direction::Inbound, Some(meant)).await;
        }
    }
}

/// None where nothing was redirected, or who was going there would come back to us.
fn original(stream: &TcpStream, watch: &Watch, redirected: &Redirected) -> Option<SocketAddr> {
    let (original, local) = (sniff::original(stream)?, stream.local_addr().ok()?);
    let ip = original.ip();
    let is_here = ip == local.ip()
        || ip.is_loopback()
        || ip.is_unspecified()
        || watch.address.is_some_and(|peer| peer.ip() == ip);
    let is_loop = original == local || (is_here && redirected.is_own(original.port()));
    (!is_loop).then_some(original)
}

/// Who is at an address, or has a name.
enum Found {
    Service {
        cluster: Rc<Cluster>,
        /// The instance at the very address, if it works: programs with pools of their own mean it.
        wanted: Option<usize>,
    },
    /// Nobody of the mesh.
    Nobody,
    /// Nobody can be asked.
    Silence,
}

async fn outbound(
    core: &Rc<Core>,
    watch: &Rc<Watch>,
    stream: TcpStream,
    address: SocketAddr,
    redirected: &Redirected,
) {
    let original = Original {
        address,
        authority: address.to_string().into(),
        is_open: redirected.policy == OutboundPolicy::Allow,
    };
    let found = find(core, &original.authority, address).await;
    let protocol = match &found {
        Found::Service { cluster, .. } => Some(cluster.plan.protocol),
        Found::Nobody | Found::Silence => None,
    };
    // Without an identity there is nothing that silence could lay open.
    let is_past = original.is_open && matches!(found, Found::Silence) && core.secure.is_none();
    if protocol == Some(Protocol::Tcp) || is_past {
        return unread(core, stream, &original, found).await;
    }
    let wait = match protocol {
        None | Some(Protocol::Auto) => Some(redirected.wait),
        Some(_) => None,
    };
    match sniff::listen(core, watch, &stream, wait).await {
        Heard::Nothing => {}
        Heard::Other => unread(core, stream, &original, found).await,
        Heard::Tls => {
            let found = by_name(core, &stream, &original, found).await;
            unread(core, stream, &original, found).await;
        }
        Heard::Http1 => {
            let may_pass = original.is_open && matches!(found, Found::Nobody);
            if may_pass && !calls_mesh(core, &stream).await {
                return pass(core, Direction::Outbound, stream, address).await;
            }
            let door = Door::redirected(core, watch, original);
            server::serve_http1(&door, Stream::Plain(stream)).await;
        }
        Heard::Http2 => {
            let door = Door::redirected(core, watch, original);
            server::serve_http2(&door, Stream::Plain(stream)).await;
        }
    }
}

/// Bytes: to the instance that was called, to another one where that does not work, or where they were going.
async fn unread(core: &Rc<Core>, stream: TcpStream, original: &Original, found: Found) {
    match found {
        Found::Service { cluster, wanted } => {
            let endpoint = wanted.and_then(|member| cluster.endpoint(member));
            let is_plain = endpoint.is_some_and(|(endpoint, _)| endpoint.tls.is_none());
            // In plain text nothing tells its sidecar that these are bytes, unless the port says so.
            if is_plain && cluster.plan.protocol != Protocol::Tcp {
                return pass(core, Direction::Outbound, stream, original.address).await;
            }
            relay_to(core, &cluster, wanted, Stream::Plain(stream), None).await;
        }
        Found::Nobody if original.is_open => {
            pass(core, Direction::Outbound, stream, original.address).await;
        }
        Found::Silence if original.is_open && core.secure.is_none() => {
            pass(core, Direction::Outbound, stream, original.address).await;
        }
        Found::Nobody | Found::Silence => {
            core.count(Event::OutboundRefused);
            reset(stream);
        }
    }
}

/// TLS of the application's own: the address decides, else the name in the handshake.
async fn by_name(core: &Rc<Core>, stream: &TcpStream, original: &Original, found: Found) -> Found {
    if !matches!(found, Found::Nobody) {
        return found;
    }
    let within = std::time::Duration::from_millis(core.deadlines.handshake);
    let named = tokio::time::timeout(within, secure::named(core, stream)).await;
    let Some(name) = named
        .ok()
        .flatten()
        .flatten()
        .filter(|name| may_be_mesh(name))
    else {
        return found;
    };
    let authority = format!("tcp/{name}:{}", original.address.port());
    find(core, &authority, original.address).await
}

/// Spares the control plane questions about everybody else.
fn may_be_mesh(name: &str) -> bool {
    name.split('.').count() <= 2 || name.ends_with(MESH_SUFFIX)
}

/// Whether the first request is for a host of the mesh, whatever address it was sent to.
async fn calls_mesh(core: &Rc<Core>, stream: &TcpStream) -> bool {
    let host = sniff::host(stream).await;
    let Some(authority) = host
        .as_deref()
        .and_then(|host| canonical_authority(host).ok())
    else {
        return false;
    };
    let is_mesh =
        may_be_mesh(authority.host()) && authority.host().parse::<std::net::IpAddr>().is_err();
    is_mesh && is_known(core, authority.as_str()).await == Some(true)
}

/// Whether the mesh has somebody of this name; none where nobody can be asked.
async fn is_known(core: &Rc<Core>, authority: &str) -> Option<bool> {
    let until = tokio::time::Instant::now() + ANSWER_MAX;
    let mut plan = core.plan();
    // Nothing has come yet: it is starting.
    while matches!(plan.plan.outbound, Outbound::Unknown) && tokio::time::Instant::now() < until {
        tokio::time::sleep(START_LOOK).await;
        plan = core.plan();
    }
    let (hosts, desk) = match &plan.plan.outbound {
        Outbound::Demand { hosts, desk } => (hosts, desk),
        Outbound::All(routes) => return Some(routes.table.rules().host(authority).is_some()),
        Outbound::Unknown => return None,
    };
    if let Some(routes) = hosts.find(authority) {
        return Some(!routes.is_empty());
    }
    let is_there = || match &core.plan().plan.outbound {
        Outbound::Demand { hosts, .. } => hosts.contains(authority),
        _ => true,
    };
    desk.wait(authority, is_there).await.ok()?;
    match &core.plan().plan.outbound {
        Outbound::Demand { hosts, .. } => hosts.find(authority).map(|routes| !routes.is_empty()),
        _ => None,
    }
}

async fn find(core: &Rc<Core>, authority: &str, address: SocketAddr) -> Found {
    match is_known(core, authority).await {
        None => return Found::Silence,
        Some(false) => return Found::Nobody,
        Some(true) => {}
    }
    let plan = core.plan();
    let routes = match &plan.plan.outbound {
        Outbound::Demand { hosts, .. } => hosts.find(authority),
        Outbound::All(routes) => Some(routes),
        Outbound::Unknown => None,
    };
    let places = routes.into_iter().flat_map(|routes| routes.clusters.iter());
    let clusters: Vec<_> = places
        .flatten()
        .filter_map(|place| plan.cluster(*place))
        .collect();
    let now_ms = core.wheel.now_ms();
    let meant = clusters.iter().find_map(|cluster| {
        let member = cluster.plan.find_meant(address)?;
        Some((
            *cluster,
            cluster.plan.group.keeps(member, now_ms).then_some(member),
        ))
    });
    let any = || Some((*clusters.first()?, None));
    match meant.or_else(any) {
        Some((cluster, wanted)) => Found::Service {
            cluster: cluster.clone(),
            wanted,
        },
        // The host is there, and none of its clusters has come.
        None => Found::Silence,
    }
}

/// A port that this sidecar was told nothing of: let through untouched where the rules for every port take plain text from
/// anybody.
async fn undeclared(core: &Rc<Core>, watch: &Watch, stream: TcpStream, original: SocketAddr) {
    let port = original.port();
    let refused = match core.plan().plan.inbound.entry(port) {
        Some(entry) if entry.mode == MtlsMode::Strict => Some(TlsRefused::PlainText),
        None if core.secure.is_some() => Some(TlsRefused::NoPolicy),
        Some(entry) if !may_enter(core, Some(entry), None) => return reset(stream),
        _ => None,
    };
    if let (Some(reason), Some(peer)) = (refused, watch.address) {
        core.refuse_tls(Direction::Inbound, reason, peer);
        return reset(stream);
    }
    let may_stay = |plan: &Plan| may_pass(&plan.inbound, port);
    let passing = pass(core, Direction::Inbound, stream, original);
    shut::while_it(core, may_stay, passing).await;
}

fn may_pass(inbound: &Inbound, port: u16) -> bool {
    inbound.entry(port).is_none_or(|entry| {
        entry.mode != MtlsMode::Strict && entry.access.decide_unread(None).is_allowed()
    })
}

/// Between two looks for the first configuration.
const START_LOOK: std::time::Duration = std::time::Duration::from_millis(10);
