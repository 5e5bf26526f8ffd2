//! Bytes that nobody reads, joined to an endpoint of a cluster, or to where they were going.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use phalanx_model::identity::SpiffeId;
use phalanx_model::name::Direction;
use tokio::net::TcpStream;

use super::sniff::reset;
use crate::account::{EdgeCell, Event, Traffic};
use crate::balance::{Evidence, Picked, Tried};
use crate::drive::core::{Cluster, Core};
use crate::drive::secure;
use crate::drive::stream::Stream;
use crate::drive::tunnel::{End, Ended, Tunnel};
use crate::plan::Alpn;
use crate::upstream::{Fault, Permit, Share};

/// Joins `downstream` to an endpoint of the cluster. `caller`: who was let in by its certificate.
pub(super) async fn relay(
    core: &Rc<Core>,
    cluster: &Rc<Cluster>,
    downstream: Stream,
    caller: Option<&SpiffeId>,
) {
    relay_to(core, cluster, None, downstream, caller).await;
}

/// The same; `wanted` is tried first, and others where that one does not take the connection.
pub(super) async fn relay_to(
    core: &Rc<Core>,
    cluster: &Rc<Cluster>,
    mut wanted: Option<usize>,
    downstream: Stream,
    caller: Option<&SpiffeId>,
) {
    let own = caller.map(|id| cluster.plan.unassigned.with_peer(id, &core.account));
    let downstream = End::new(downstream);
    let (mut tried, mut rng) = (Tried::default(), core.random());
    for _ in 0..TCP_ATTEMPTS {
        let pick = || cluster.pick(&tried, &mut rng, None, core.wheel.now_us());
        let Some(picked) = wanted.take().map(Picked::wanted).or_else(pick) else {
            return;
        };
        let member = picked.member;
        tried.add(member);
        let Some((endpoint, plan)) = cluster.endpoint(member) else {
            return;
        };
        let breaker = &cluster.plan.breaker;
        let Some(_permit) = Permit::take(
            breaker.clone(),
            Share::Connection,
            cluster.plan.limits.max_connections,
        ) else {
            return;
        };
        let edges = own.as_ref().unwrap_or(&plan.edges);
        let cell: &EdgeCell = edges.of_traffic(Traffic::Tcp).cell(core.index);
        let report = |evidence| {
            if cluster
                .plan
                .group
                .report(member, evidence, core.wheel.now_ms())
            {
                cell.ejected();
            }
        };
        let timeout = cluster.plan.pool.connect_timeout;
        match secure::connect(core, endpoint, Alpn::Tcp, timeout).await {
            Ok((upstream, _)) => {
                core.account.witness().reached(endpoint.address);
                report(Evidence::Success);
                endpoint.load.begin();
                cell.tunnel_opened();
                let _open = OpenTunnel {
                    cell,
                    load: &endpoint.load,
                };
                let upstream = End::new(upstream);
                let mut tunnel = Tunnel::new(&downstream, &upstream);
                let ended = tunnel.run(core, core.deadlines.tunnel_idle, |sent, received| {
                    cell.tunnel_moved(sent, received)
                });
                if ended.await == Ended::Idle {
                    core.count(Event::TunnelIdleDeadline);
                }
                return;
            }
            Err(fault) => {
                cell.connect_failed();
                if fault == Fault::Refused {
                    core.account.witness().refused(endpoint.address);
                }
                if let Some(evidence) = fault.evidence() {
                    report(evidence);
                }
            }
        }
    }
}

/// Joins a redirected connection to where it was going, untouched.
pub(super) async fn pass(
    core: &Rc<Core>,
    direction: Direction,
    downstream: TcpStream,
    to: SocketAddr,
) {
    core.count(Event::PassedThrough);
    let edges = core.passing(direction);
    let cell: &EdgeCell = edges.of_traffic(Traffic::Tcp).cell(core.index);
    let connecting = secure::tcp(to);
    let Ok(Ok(upstream)) = tokio::time::timeout(PASS_CONNECT, connecting).await else {
        cell.connect_failed();
        // As it would have been told by whom it called.
        return reset(downstream);
    };
    cell.tunnel_opened();
    let load = crate::balance::Load::default();
    load.begin();
    let _open = OpenTunnel { cell, load: &load };
    let downstream = End::new(Stream::Plain(downstream));
    let upstream = End::new(Stream::Plain(upstream));
    let mut tunnel = Tunnel::new(&downstream, &upstream);
    let idle_ms = core.deadlines.tunnel_idle;
    let moved = |sent, received| cell.tunnel_moved(sent, received);
    if tunnel.run(core, idle_ms, moved).await == Ended::Idle {
        core.count(Event::TunnelIdleDeadline);
    }
}

/// Counted as open until dropped, however the tunnel ends.
struct OpenTunnel<'t> {
    cell: &'t EdgeCell,
    load: &'t crate::balance::Load,
}

impl Drop for OpenTunnel<'_> {
    fn drop(&mut self) {
        self.cell.tunnel_closed();
        self.load.end();
    }
}

const TCP_ATTEMPTS: u32 = 3;
/// To somebody who may be far away.
const PASS_CONNECT: Duration = Duration::from_secs(10);
