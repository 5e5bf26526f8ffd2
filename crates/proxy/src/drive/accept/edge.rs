//! A connection from outside the mesh: by the name in its handshake TLS is ended here or passed on, and bytes or requests
//! follow. Nobody out there is anybody to the mesh, whatever they show.

use std::net::SocketAddr;
use std::rc::Rc;

use phalanx_model::name::Direction;
use tokio::net::TcpStream;

use super::{Preface, first_byte, in_time, preface, relay};
use crate::account::TlsRefused;
use crate::context::{Caller, Outside};
use crate::drive::core::Core;
use crate::drive::deadline::Watch;
use crate::drive::secure::{self, HANDSHAKE_RECORD};
use crate::drive::server::{self, Door};
use crate::drive::stream::Stream;
use crate::plan::Alpn;
use crate::plan::gateway::{Gate, GateTarget, GateTls};

/// What was decided about a connection; nothing of the plan is held on to.
type Decided = (GateTls, GateTarget);

pub(super) async fn serve(
    core: &Rc<Core>,
    watch: &Rc<Watch>,
    stream: TcpStream,
    address: SocketAddr,
) {
    let Some((tls, target)) = decide(core, watch, &stream, address).await else {
        return;
    };
    match (tls, target) {
        (GateTls::Off | GateTls::Passthrough, GateTarget::Stream(shares)) => {
            let place = shares.choose(&mut core.random());
            let plan = core.plan();
            if let Some(cluster) = place.and_then(|place| plan.cluster(place)) {
                relay(core, cluster, Stream::Plain(stream), None).await;
            }
        }
        (GateTls::Off, GateTarget::Http(table)) => {
            let outside = Outside {
                table,
                is_secured: false,
            };
            let spoken = in_time(core, preface(&stream)).await;
            let door = Door::new(core, watch, Direction::Outbound, Caller::Outside(outside));
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
        (GateTls::Terminate(server), GateTarget::Http(table)) => {
            let Some((stream, alpn)) = secure::terminate(core, stream, server).await else {
                return;
            };
            let outside = Outside {
                table,
                is_secured: true,
            };
            let door = Door::new(core, watch, Direction::Outbound, Caller::Outside(outside));
            match alpn {
                Some(Alpn::Http2 | Alpn::Mesh) => server::serve_http2(&door, stream).await,
                _ => server::serve_http1(&door, stream).await,
            }
        }
        // Never made: discovery refuses it, or it has been said why nothing is taken.
        (GateTls::Terminate(_), GateTarget::Stream(_))
        | (GateTls::Passthrough, GateTarget::Http(_))
        | (GateTls::Closed, _) => {}
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
        if let Some(decided) = silent(gate) {
            return Some(decided);
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
        (true, HANDSHAKE_RECORD) => in_time(core, secure::named(stream)).await?,
        (true, _) => {
            refuse(TlsRefused::PlainText);
            return None;
        }
    };
    // As it is by now: the peer may have taken its time.
    let plan = core.plan();
    let chain = plan.plan.gates.at(&address)?.chain(name.as_deref());
    match chain.map(|chain| (chain.tls.clone(), chain.target.clone())) {
        Some((GateTls::Closed, _)) => refuse(TlsRefused::NoCredentials),
        None => refuse(TlsRefused::Name),
        decided => return decided,
    }
    None
}

/// A port of raw TCP, where the backend may be who speaks first.
fn silent(gate: &Gate) -> Option<Decided> {
    let chain = gate.chain(None).filter(|_| !gate.reads_names)?;
    let is_stream = matches!(chain.target, GateTarget::Stream(_));
    is_stream.then(|| (chain.tls.clone(), chain.target.clone()))
}
