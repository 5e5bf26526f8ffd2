//! A connection from outside the mesh: by the name in its handshake TLS is ended here or passed on, and bytes or requests
//! follow. Nobody out there is anybody to the mesh, whatever they show.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use phalanx_model::name::Direction;
use rustls::ServerConfig;
use tokio::net::TcpStream;

use super::relay::relay;
use super::sniff::{Preface, first_byte, in_time, preface};
use crate::account::TlsRefused;
use crate::context::{Caller, Outside};
use crate::drive::core::{Cluster, Core, CorePlan};
use crate::drive::deadline::Watch;
use crate::drive::secure::{self, HANDSHAKE_RECORD};
use crate::drive::server::{self, Door};
use crate::drive::stream::Stream;
use crate::plan::Alpn;
use crate::plan::gateway::{Gate, GateChain, GateTarget, GateTls};

/// What was decided about a connection. Of the plan only the cluster is held on to: its place means another one in the next.
enum Decided {
    Stream(Rc<Cluster>),
    /// By the table of this name.
    Plain(Arc<str>),
    Secured(Arc<ServerConfig>, Arc<str>),
}

impl Decided {
    /// None where there is nothing to pass it on to.
    fn of(core: &Core, plan: &CorePlan, chain: &GateChain) -> Option<Self> {
        match (&chain.tls, &chain.target) {
            (GateTls::Off | GateTls::Passthrough, GateTarget::Stream(shares)) => {
                let place = shares.choose(&mut core.random())?;
                Some(Self::Stream(plan.cluster(place)?.clone()))
            }
            (GateTls::Off, GateTarget::Http(table)) => Some(Self::Plain(table.clone())),
            (GateTls::Terminate(server), GateTarget::Http(table)) => {
                Some(Self::Secured(server.clone(), table.clone()))
            }
            // Never made: discovery refuses it, or it has been said why nothing is taken.
            (GateTls::Terminate(_), GateTarget::Stream(_))
            | (GateTls::Passthrough, GateTarget::Http(_))
            | (GateTls::Closed, _) => None,
        }
    }
}

pub(super) async fn serve(
    core: &Rc<Core>,
    watch: &Rc<Watch>,
    stream: TcpStream,
    address: SocketAddr,
) {
    let Some(decided) = decide(core, watch, &stream, address).await else {
        return;
    };
    let door = |table, is_secured| {
        let outside = Outside { table, is_secured };
        Door::new(core, watch, Direction::Outbound, Caller::Outside(outside))
    };
    match decided {
        Decided::Stream(cluster) => relay(core, &cluster, Stream::Plain(stream), None).await,
        Decided::Plain(table) => {
            let spoken = in_time(core, preface(&stream)).await;
            let door = door(table, false);
            match spoken {
                Some(Preface::Http2) => {
                    server::serve_http2(&door, Stream::Plain(stream)).await;
                }
                // To what is neither, 400 is the answer.
                Some(Preface::Http1 | Preface::Other) => {
                    server::serve_http1(&door, Stream::Plain(stream)).await;
                }
                None => {}
            }
        }
        Decided::Secured(server, table) => {
            let Some((stream, alpn)) = secure::terminate(core, stream, server).await else {
                return;
            };
            let door = door(table, true);
            match alpn {
                Some(Alpn::Http2 | Alpn::Mesh) => server::serve_http2(&door, stream).await,
                _ => server::serve_http1(&door, stream).await,
            }
        }
    }
}

/// None where the connection is to be closed; what is refused is counted.
async fn decide(
    core: &Rc<Core>,
    watch: &Rc<Watch>,
    stream: &TcpStream,
    address: SocketAddr,
) -> Option<Decided> {
    let reads_names = {
        let plan = core.plan();
        let gate = plan.plan.gates.at(&address)?;
        if let Some(chain) = silent(gate) {
            return Decided::of(core, &plan, chain);
        }
        gate.reads_names
    };
    let first = first_byte(core, watch, stream).await?;
    let refuse = |reason| {
        if let Some(peer) = watch.address {
            core.refuse_tls(Direction::Inbound, reason, peer);
        }
    };
    let name = match (reads_names, first) {
        (false, _) => None,
        (true, HANDSHAKE_RECORD) => in_time(core, secure::named(core, stream)).await?,
        (true, _) => {
            refuse(TlsRefused::PlainText);
            return None;
        }
    };
    // As it is by now: the peer may have taken its time.
    let plan = core.plan();
    let chain = plan.plan.gates.at(&address)?.chain(name.as_deref());
    match chain.map(|chain| (&chain.tls, chain)) {
        Some((GateTls::Closed, _)) => refuse(TlsRefused::NoCredentials),
        None => refuse(TlsRefused::Name),
        Some((_, chain)) => return Decided::of(core, &plan, chain),
    }
    None
}

/// A port of raw TCP, where the backend may be who speaks first.
fn silent(gate: &Gate) -> Option<&GateChain> {
    let chain = gate.chain(None).filter(|_| !gate.reads_names)?;
    matches!(chain.target, GateTarget::Stream(_)).then_some(chain)
}
