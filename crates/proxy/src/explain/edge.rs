//! A request from outside at a Gateway: the port and the chain that its host leads to, and what it is there once the edge has
//! taken away and given what it does.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use fastrand::Rng;
use phalanx_model::name::Direction;
use phalanx_relay::Checked;

use super::Setting;
use crate::context::{Caller, Outside, StreamContext};
use crate::listen;
use crate::plan::gateway::{GateTarget, GateTls};

/// Where it comes in.
pub(super) struct Gate {
    pub(super) address: SocketAddr,
    pub(super) outside: Outside,
}

/// By the port in the URL; without one, the only port that takes HTTP.
///
/// # Errors
/// In words, when there is none.
pub(super) fn find(setting: &Setting<'_>, authority: &str) -> Result<Gate, String> {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => {
            (host, port.parse::<u16>().ok())
        }
        _ => (authority, None),
    };
    let mut found: Vec<(SocketAddr, Arc<str>, bool)> = Vec::new();
    let mut known = Vec::new();
    for (address, gate) in setting.plan.gates.all() {
        // Who speaks TLS there is taken to name the host of the request in its handshake.
        let Some(chain) = gate.chain(gate.reads_names.then_some(host)) else {
            continue;
        };
        if let GateTarget::Http(table) = &chain.target {
            known.push(address.to_string());
            if port.is_none_or(|port| port == address.port()) {
                let is_secured = matches!(chain.tls, GateTls::Terminate(_) | GateTls::Closed);
                found.push((*address, table.clone(), is_secured));
            }
        }
    }
    let mut found = found.into_iter();
    match (found.next(), found.next()) {
        (Some((address, table, is_secured)), None) => Ok(Gate {
            address,
            outside: Outside { table, is_secured },
        }),
        _ if known.is_empty() => Err(format!("no port of this Gateway takes HTTP for `{host}`")),
        (None, _) => Err(format!(
            "no port {} of this Gateway takes HTTP for `{host}`, but {}",
            port.unwrap_or_default(),
            known.join(", ")
        )),
        (Some(_), Some(_)) => Err(format!(
            "several ports of this Gateway take HTTP for `{host}`: say which in the URL ({})",
            known.join(", ")
        )),
    }
}

/// As the rules see it.
pub(super) fn admitted(setting: &Setting<'_>, caller: &Caller, mut request: Checked) -> Checked {
    let rng = Rng::with_seed(0);
    let mut context = StreamContext::new(Direction::Outbound, caller, setting.guarded, rng);
    context.dry = true;
    context.peer = Some(peer(setting));
    let _ = listen::admit(setting.plan, &mut request, &mut context); // refuses nobody
    request
}

/// Of whom nothing is said, loopback.
pub(super) fn peer(setting: &Setting<'_>) -> IpAddr {
    setting.peer.unwrap_or(Ipv4Addr::LOCALHOST.into())
}
