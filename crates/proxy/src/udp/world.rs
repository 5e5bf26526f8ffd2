//! What the table asks of a plan and of the session directory.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use phalanx_model::name::Direction;

use super::session::Fate;
use super::table::{Seat, Seated, Told, World};
use crate::account::sight::Phases;
use crate::account::{Account, Edge, EdgeKey, Security, Sight, Traffic};
use crate::balance::{Pick, Tried};
use crate::plan::udp::Placed;
use crate::plan::{Plan, UdpPortPlan, UdpTarget};

pub struct Outlook {
    pub plan: Arc<Plan>,
    pub account: Arc<Account>,
    pub rng: fastrand::Rng,
    turn: u32,
}

impl Outlook {
    pub fn new(plan: Arc<Plan>, account: Arc<Account>) -> Self {
        Self {
            plan,
            account,
            rng: fastrand::Rng::new(),
            turn: 0,
        }
    }

    fn port(&self, address: SocketAddr) -> Option<&UdpPortPlan> {
        let ports = &self.plan.udp;
        let at = ports.binary_search_by_key(&address, |port| port.address);
        ports.get(at.ok()?)
    }

    fn now_us(&self) -> u64 {
        let elapsed = self.account.started().elapsed();
        u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX)
    }

    fn address(&self, target: UdpTarget) -> Option<SocketAddr> {
        let cluster = self.plan.clusters.get(target.cluster)?;
        Some(cluster.endpoints.get(target.endpoint)?.address)
    }
}

impl World for Outlook {
    fn seat(&self, port: SocketAddr, token: &[u8]) -> Seated {
        let (directory, asked) = (&self.plan.directory, &self.plan.directories);
        if asked.is_empty() && directory.is_empty() {
            return Seated::Nobody;
        }
        let mut hex = [0; 2 * TOKEN_MAX];
        let (Some(port), Some(key)) = (self.port(port), hex_of(token, &mut hex)) else {
            return Seated::Nobody;
        };
        match port.placed(&self.plan, key) {
            Placed::At(address, held) => Seated::At(Seat { address, held }),
            Placed::Elsewhere(_) => Seated::Elsewhere,
            Placed::Nobody => Seated::Nobody,
        }
    }

    fn changes(&self) -> u64 {
        self.plan.directory.changes()
    }

    fn is_endpoint(&self, port: SocketAddr, address: SocketAddr) -> bool {
        let found = self.port(port);
        found.is_some_and(|port| port.at(&self.plan, address).is_some())
    }

    fn labelled(&self, port: SocketAddr, token: &[u8]) -> Option<SocketAddr> {
        let target = self.port(port)?.by_token(&self.plan, token)?;
        self.address(target)
    }

    /// The one with fewer sessions of two, unless the client's address decides.
    fn choose(
        &mut self,
        port: SocketAddr,
        from: SocketAddr,
        live: &dyn Fn(SocketAddr) -> u32,
    ) -> Option<SocketAddr> {
        let now_us = self.now_us();
        let plan = self.plan.clone();
        let mut rng = self.rng.fork();
        let cluster = self.port(port)?.choose(from.ip(), &mut rng)?.cluster?;
        let cluster = plan.clusters.get(cluster)?;
        let hash = match from.ip().to_canonical() {
            IpAddr::V4(ip) => xxhash_rust::xxh3::xxh3_64(&ip.octets()),
            IpAddr::V6(ip) => xxhash_rust::xxh3::xxh3_64(&ip.octets()),
        };
        let tried = Tried::default();
        let mut pick = || {
            let picked = cluster.group.pick(Pick {
                load: |_| None,
                tried: &tried,
                rng: &mut rng,
                now_us,
                turn: &mut self.turn,
                hash: Some(hash),
            });
            Some(cluster.endpoints.get(picked?.member)?.address)
        };
        let one = pick()?;
        if cluster.group.is_keyed() {
            return Some(one);
        }
        let other = pick().filter(|other| live(*other) < live(one));
        Some(other.unwrap_or(one))
    }

    fn fate(&self, port: SocketAddr, endpoint: SocketAddr) -> Fate {
        let target = self
            .port(port)
            .and_then(|port| port.at(&self.plan, endpoint));
        let keeps = target.is_some_and(|target| {
            let cluster = self.plan.clusters.get(target.cluster);
            cluster.is_some_and(|c| c.group.keeps(target.endpoint, self.now_us() / 1000))
        });
        match keeps {
            true => Fate::Stays,
            false => Fate::Gone,
        }
    }

    fn edge(&self, port: SocketAddr, endpoint: SocketAddr) -> Option<Arc<Edge>> {
        let target = self.port(port)?.at(&self.plan, endpoint)?;
        let cluster = self.plan.clusters.get(target.cluster)?;
        let endpoint = cluster.endpoints.get(target.endpoint)?;
        let key = EdgeKey {
            traffic: Traffic::Udp,
            security: Security::Plain,
            ..endpoint.edges.of_traffic(Traffic::Tcp).key().clone()
        };
        Some(self.account.edge(key))
    }

    /// A line of the access log, where there is one.
    fn ended(&mut self, told: &Told<'_>) {
        let lookout = self.account.lookout();
        if lookout.wanted().nothing() {
            return;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now_ms = now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
        let mut sight = Sight::take();
        sight.time_ms = now_ms.saturating_sub(told.lasted_ms);
        sight.direction = Direction::Outbound;
        sight.traffic = Traffic::Udp;
        sight.peer = Some(told.client);
        sight.upstream = told.endpoint;
        if let Some(edge) = told.edge {
            sight.cluster = edge.key().cluster.clone();
            sight.version.push_str(&edge.key().version);
        }
        sight.rule.push_str(told.port);
        sight.bytes = (told.up.bytes, told.down.bytes);
        sight.messages = (told.up.packets, told.down.packets);
        sight.phases = Phases {
            end_us: told.lasted_ms * 1000,
            ..Phases::default()
        };
        match lookout.keeps(&mut sight) {
            true => lookout.tell(sight),
            false => sight.put(),
        }
    }
}

/// In lower case, as keys of the directory are.
fn hex_of<'h>(token: &[u8], hex: &'h mut [u8; 2 * TOKEN_MAX]) -> Option<&'h [u8]> {
    let digit = |value: u8| char::from_digit(u32::from(value), 16).map_or(b'0', |c| c as u8);
    let (pairs, _) = hex.as_chunks_mut::<2>();
    if token.len() > pairs.len() {
        return None;
    }
    for ([high, low], byte) in pairs.iter_mut().zip(token) {
        (*high, *low) = (digit(byte >> 4), digit(byte & 15));
    }
    hex.get(..token.len() * 2)
}

const TOKEN_MAX: usize = phalanx_model::resource::udp::TOKEN_MAX as usize;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_the_directory_are_tokens_in_lower_case_hex() {
        let mut hex = [0; 2 * TOKEN_MAX];
        assert_eq!(hex_of(&[0, 0xab, 0x1f], &mut hex), Some(&b"00ab1f"[..]));
        assert_eq!(hex_of(&[0xff; 64], &mut hex).map(<[u8]>::len), Some(128));
        assert_eq!(hex_of(&[0xff; 65], &mut hex), None);
    }
}
