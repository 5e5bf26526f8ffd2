//! The sessions of one core. Datagrams go in with their times, what is to be done with them comes out: no socket, no clock.
//!
//! A session is found by its client's address or by its token, an answer's by socket and endpoint. Nothing is ever sent to an
//! address that no datagram of a session came from.

mod end;
mod enter;
mod follow;
mod key;
mod leave;

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use phalanx_model::resource::udp::UdpRules;

use self::enter::Entered;
use self::key::Key;
use super::index::Index;
use super::kin::Kin;
use super::session::{Fate, Flow, Place, Port, Session};
use super::slots::{NONE, Slots};
use super::source::{self, Over, Sources};
use super::target::{SocketId, Targets};
use super::wheel::Wheel;
use crate::account::Edge;
use crate::account::udp::{self as account, Dropped};
use crate::directory::Entry;

/// What a plan and the directory say, asked when a session begins and when it must move.
pub trait World {
    /// By the session directory.
    fn seat(&self, port: SocketAddr, token: &[u8]) -> Seated;
    /// Another number after the directory replaced something.
    fn changes(&self) -> u64;
    fn is_endpoint(&self, port: SocketAddr, address: SocketAddr) -> bool;
    /// By an instance's label.
    fn labelled(&self, port: SocketAddr, token: &[u8]) -> Option<SocketAddr>;
    /// By weight; `live` tells the sessions of an endpoint.
    fn choose(
        &mut self,
        port: SocketAddr,
        from: SocketAddr,
        live: &dyn Fn(SocketAddr) -> u32,
    ) -> Option<SocketAddr>;
    fn fate(&self, port: SocketAddr, endpoint: SocketAddr) -> Fate;
    fn edge(&self, port: SocketAddr, endpoint: SocketAddr) -> Option<Arc<Edge>>;
    fn ended(&mut self, told: &Told<'_>);
}

/// What the session directory says of a token.
#[derive(Clone)]
pub enum Seated {
    /// Nobody has it.
    Nobody,
    /// Somebody has it who is no endpoint of this plan, or somebody may: the directory has not come yet.
    Elsewhere,
    At(Seat),
}

#[derive(Clone)]
pub struct Seat {
    pub address: SocketAddr,
    pub held: Arc<Entry>,
}

/// A session that ended.
pub struct Told<'t> {
    pub port: &'t str,
    pub client: SocketAddr,
    pub endpoint: Option<SocketAddr>,
    pub edge: Option<&'t Arc<Edge>>,
    pub up: Flow,
    pub down: Flow,
    /// In ms, from its client's first datagram to its last.
    pub lasted_ms: u64,
}

/// From a client.
pub struct Arrived<'d> {
    pub port: u16,
    pub from: SocketAddr,
    /// Of ours, where the port has several.
    pub local: Option<IpAddr>,
    pub datagram: &'d [u8],
    /// Another core has taken it from what its source may send.
    pub is_paid: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Up {
    /// This part of the datagram, to an endpoint.
    Onward {
        socket: SocketId,
        to: SocketAddr,
        body: Range<usize>,
    },
    /// To the core that has the session.
    Elsewhere(u16),
}

/// An answer, to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Down {
    pub port: u16,
    pub to: SocketAddr,
    pub local: Option<IpAddr>,
}

/// Since the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now {
    pub ns: u64,
}

impl Now {
    /// Of 100 ms.
    #[inline]
    pub fn tick(self) -> u32 {
        (self.ns / TICK_NS) as u32
    }
}

pub const TICK_NS: u64 = 100_000_000;

/// How a table is made.
pub struct Config {
    /// Unknown to clients.
    pub seed: u64,
    pub core: usize,
    pub sockets_max: usize,
    pub sources_max: usize,
    /// None where there is one core.
    pub everybody: Option<Arc<source::Everybody>>,
    pub kin: Option<Kin>,
    /// For answers that are nobody's.
    pub strangers: Arc<account::Port>,
}

pub struct Table {
    seed: u64,
    core: usize,
    sessions: Slots<Session>,
    index: Index,
    ports: Vec<Option<Port>>,
    places: Slots<Place>,
    by_endpoint: HashMap<(u16, SocketAddr), u32>,
    targets: Targets,
    sources: Sources,
    wheel: Wheel,
    kin: Option<Kin>,
    strangers: Arc<account::Port>,
    is_draining: bool,
    flooding: Option<(u16, SocketAddr)>,
    hand: u32,
    /// Plans so far.
    renewed: u64,
    /// When endpoints were looked over.
    swept: u32,
}

impl Table {
    pub fn new(config: Config) -> Self {
        Self {
            seed: config.seed,
            core: config.core,
            sessions: Slots::default(),
            index: Index::default(),
            ports: Vec::new(),
            places: Slots::default(),
            by_endpoint: HashMap::new(),
            targets: Targets::new(config.sockets_max),
            sources: Sources::new(!config.seed, config.everybody, config.sources_max),
            wheel: Wheel::default(),
            kin: config.kin,
            strangers: config.strangers,
            is_draining: false,
            flooding: None,
            hand: 0,
            renewed: 0,
            swept: 0,
        }
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// No new sessions from now on.
    pub fn drain(&mut self) {
        self.is_draining = true;
    }

    /// Clients come here; `shared` counts the sessions of all cores.
    pub fn open(
        &mut self,
        address: SocketAddr,
        rules: UdpRules,
        counts: Arc<account::Port>,
        shared: Arc<AtomicU32>,
    ) -> u16 {
        let port = Port {
            address,
            rules,
            counts,
            shared,
            sessions: 0,
            is_closed: false,
            half: VecDeque::new(),
        };
        let vacant = self.ports.iter().position(Option::is_none);
        let at = vacant.unwrap_or_else(|| {
            self.ports.push(None);
            self.ports.len() - 1
        });
        if let Some(slot) = self.ports.get_mut(at) {
            *slot = Some(port);
        }
        u16::try_from(at).unwrap_or(u16::MAX)
    }

    /// Other rules, for sessions that are there as well.
    pub fn rule(&mut self, port: u16, rules: UdpRules, counts: Arc<account::Port>) {
        if let Some(port) = self.port_mut(port) {
            (port.rules, port.counts) = (rules, counts);
        }
    }

    /// Nobody listens there any more; its sessions end bit by bit.
    pub fn close(&mut self, port: u16) {
        if let Some(port) = self.port_mut(port) {
            port.is_closed = true;
        }
    }

    /// Another plan is in force.
    pub fn renew(&mut self, world: &impl World) {
        self.renewed += 1;
        let ports = &self.ports;
        let mut unused = Vec::new();
        for (at, place) in self.places.iter_mut() {
            let port = ports.get(usize::from(place.port)).and_then(Option::as_ref);
            let Some(port) = port.filter(|_| place.sessions > 0) else {
                unused.push((at, (place.port, place.address)));
                continue;
            };
            place.fate = world.fate(port.address, place.address);
            if let Some(edge) = world.edge(port.address, place.address) {
                place.edge = Some(edge);
            }
        }
        for (at, key) in unused {
            self.places.remove(at);
            self.by_endpoint.remove(&key);
        }
    }

    /// A datagram of a client.
    #[inline]
    pub fn up(
        &mut self,
        arrived: &Arrived<'_>,
        now: Now,
        world: &mut impl World,
    ) -> Result<Up, Dropped> {
        let passed = self.pass(arrived, now, world);
        if let Err(why) = passed {
            self.count_dropped(arrived.port, why, 1);
        }
        passed
    }

    /// Counts what came to no session.
    pub fn count_dropped(&self, port: u16, why: Dropped, packets: u64) {
        let counts = self.port(port).map_or(&self.strangers, |port| &port.counts);
        if let Some(cell) = counts.cell(self.core) {
            cell.dropped(why, packets);
        }
    }

    /// A source that sends so much more than it may that it had better be shut out at the door, for [`SHUT_NS`].
    pub fn flooding(&mut self) -> Option<(u16, SocketAddr)> {
        self.flooding.take()
    }

    fn pass(
        &mut self,
        arrived: &Arrived<'_>,
        now: Now,
        world: &mut impl World,
    ) -> Result<Up, Dropped> {
        let (from, datagram) = (arrived.from, arrived.datagram);
        let port = self.port(arrived.port).ok_or(Dropped::NoEndpoint)?;
        let split = port.rules.token.and_then(|rule| rule.split(datagram));
        let by_token = match split {
            Some((token, body)) => {
                let found = self.by_token(arrived, token, now, world)?;
                found.map(|session| (session, body))
            }
            None => None,
        };
        let (place, body, is_paid) = match by_token {
            Some((session, body)) => (session, body, false),
            None => {
                let client = self.find(arrived.port, Key::Client(from));
                match client.filter(|place| split.is_none() || self.is_checked(*place, now)) {
                    Some(session) => (session, datagram, false),
                    None => match self.enter(arrived, split, client, now, world)? {
                        Entered::Found(session) => (session, datagram, false),
                        Entered::Here(session, body) => (session, body, true),
                        Entered::Elsewhere(core) => return Ok(Up::Elsewhere(core)),
                    },
                }
            }
        };
        if !is_paid {
            let source = self.sessions.get(place).map_or(NONE, |s| s.source);
            self.pay(source, arrived, now)?;
        }
        self.settle(place, now, world);
        let session = self.sessions.get_mut(place).ok_or(Dropped::NoEndpoint)?;
        if session.is_lost() {
            return Err(Dropped::Elsewhere);
        }
        session.seen = now.tick();
        session.up.add(body.len());
        session.said(datagram.len());
        let (socket, at) = (session.socket, session.place);
        let place = self.places.get(at).ok_or(Dropped::NoEndpoint)?;
        if let Some(edge) = &place.edge {
            edge.cell(self.core).tunnel_moved(body.len() as u64, 0);
        }
        let port = self.port(arrived.port);
        if let Some(cell) = port.and_then(|port| port.counts.cell(self.core)) {
            cell.up(body.len());
        }
        let begin = match datagram.len() == body.len() {
            true => 0,
            // Cut off in front, or behind.
            false if body.as_ptr() != datagram.as_ptr() => datagram.len() - body.len(),
            false => 0,
        };
        Ok(Up::Onward {
            socket,
            to: place.address,
            body: begin..begin + body.len(),
        })
    }

    /// Takes the datagram from what its source may send.
    #[inline]
    fn pay(&mut self, source: u32, arrived: &Arrived<'_>, now: Now) -> Result<(), Dropped> {
        if arrived.is_paid {
            return Ok(());
        }
        let port = self.ports.get(usize::from(arrived.port));
        let port = port.and_then(Option::as_ref).ok_or(Dropped::NoEndpoint)?;
        let met = self.sources.get(source).ok_or(Dropped::Sources)?;
        let limits = &port.rules.limits;
        let Err(over) = met.shared.take(limits, arrived.datagram.len(), now.ns) else {
            return Ok(());
        };
        if let Some(source) = self.sources.get_mut(source)
            && source.exceed(now.ns)
        {
            source.shared.bar(now.ns.saturating_add(SHUT_NS));
            self.flooding = Some((arrived.port, arrived.from));
        }
        Err(match over {
            Over::Packets => Dropped::SourcePackets,
            Over::Bytes => Dropped::SourceBytes,
        })
    }

    /// A session that has its socket: from now on it is found, and ends when nothing comes.
    fn enlist(&mut self, session: u32, hash: u64) {
        let Some(there) = self.sessions.get(session) else {
            return;
        };
        let (number, place) = (there.port, there.place);
        let (began, seen) = (there.began, there.seen);
        let (is_half_open, idle) = (there.is_half_open(), self.idle(there));
        self.wheel
            .add(&mut self.sessions, session, seen.saturating_add(idle));
        self.index.insert(hash, session);
        self.enter_place(place);
        if let Some(port) = self.port_mut(number) {
            port.sessions += 1;
            if is_half_open {
                if port.half.len() >= HALF_MAX {
                    port.half.pop_front();
                }
                port.half.push_back((session, began));
            }
        }
        if let Some(cell) = self.cell(number) {
            cell.opened();
        }
    }

    fn enter_place(&mut self, place: u32) {
        if let Some(place) = self.places.get_mut(place) {
            place.sessions += 1;
            if let Some(edge) = &place.edge {
                edge.cell(self.core).tunnel_opened();
            }
        }
    }

    fn leave_place(&mut self, place: u32) {
        if let Some(place) = self.places.get_mut(place) {
            place.sessions = place.sessions.saturating_sub(1);
            if let Some(edge) = &place.edge {
                edge.cell(self.core).tunnel_closed();
            }
        }
    }

    fn place(&mut self, port: u16, endpoint: SocketAddr, world: &impl World) -> u32 {
        if let Some(place) = self.by_endpoint.get(&(port, endpoint)) {
            return *place;
        }
        let address = self.port(port).map(|port| port.address);
        let place = self.places.insert(Place {
            port,
            address: endpoint,
            target: self.targets.of(endpoint),
            sessions: 0,
            fate: Fate::Stays,
            edge: address.and_then(|address| world.edge(address, endpoint)),
        });
        self.by_endpoint.insert((port, endpoint), place);
        place
    }

    fn choose(
        &self,
        port: SocketAddr,
        from: SocketAddr,
        world: &mut impl World,
    ) -> Option<SocketAddr> {
        world.choose(port, from, &|endpoint| self.targets.live(endpoint))
    }

    #[inline]
    pub fn down(
        &mut self,
        socket: SocketId,
        from: SocketAddr,
        bytes: usize,
        now: Now,
        world: &mut impl World,
    ) -> Result<Down, Dropped> {
        let found = self.targets.session(socket, from);
        let found = match found {
            Some(found) => found,
            None => match self.whose(socket, from, now, world) {
                Some(found) => found,
                None => {
                    self.count_dropped(u16::MAX, Dropped::Stranger, 1);
                    return Err(Dropped::Stranger);
                }
            },
        };
        let is_odd = |session: &Session| session.is_replaced() || session.is_lost();
        if self.sessions.get(found).is_some_and(is_odd) {
            self.look_again(found, false, now, world);
            let is_lost = self.sessions.get(found).is_none_or(Session::is_lost);
            if is_lost || self.targets.session(socket, from) != Some(found) {
                let port = self.sessions.get(found).map_or(u16::MAX, |s| s.port);
                self.count_dropped(port, Dropped::Left, 1);
                return Err(Dropped::Left);
            }
        }
        let session = self.sessions.get_mut(found).ok_or(Dropped::Stranger)?;
        if !session.may_hear(bytes) {
            let port = session.port;
            self.count_dropped(port, Dropped::Unproven, 1);
            return Err(Dropped::Unproven);
        }
        session.down.add(bytes);
        let down = Down {
            port: session.port,
            to: session.client,
            local: session.local,
        };
        let edge = self.places.get(session.place);
        if let Some(edge) = edge.and_then(|place| place.edge.as_ref()) {
            edge.cell(self.core).tunnel_moved(0, bytes as u64);
        }
        if let Some(cell) = self.cell(down.port) {
            cell.down(bytes);
        }
        Ok(down)
    }

    /// Whether a socket may be closed, until it is wanted again.
    pub fn is_unused(&self, socket: SocketId, now: Now) -> bool {
        self.targets.is_unused(socket, now.tick())
    }

    #[inline]
    fn port(&self, port: u16) -> Option<&Port> {
        self.ports.get(usize::from(port))?.as_ref()
    }

    fn port_mut(&mut self, port: u16) -> Option<&mut Port> {
        self.ports.get_mut(usize::from(port))?.as_mut()
    }

    #[inline]
    fn cell(&self, port: u16) -> Option<&account::Cell> {
        self.port(port)?.counts.cell(self.core)
    }
}

/// How long a flooding source is shut out.
pub const SHUT_NS: u64 = 2_000_000_000;
/// Half-open sessions of a port that are known as such.
const HALF_MAX: usize = 1 << 16;

#[cfg(test)]
mod tests;
