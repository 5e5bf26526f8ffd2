//! One session: a client at an address, its endpoint, and the socket that the endpoint knows it by.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::account::Edge;
use crate::account::udp as account;
use crate::directory::Entry;
use phalanx_model::resource::udp::UdpRules;

pub struct Session {
    /// Where answers go.
    pub client: SocketAddr,
    /// Of ours, what the client sends to; where the listener has one address, none.
    pub local: Option<IpAddr>,
    pub ticket: Option<Box<Ticket>>,
    pub port: u16,
    /// The port and the endpoint.
    pub place: u32,
    pub socket: u32,
    pub source: u32,
    /// Its neighbours on the wheel.
    pub next: u32,
    pub prev: u32,
    /// Where on the wheel.
    pub due: u32,
    /// In ticks, as all times here.
    pub began: u32,
    pub seen: u32,
    /// When it was last looked for another endpoint, because there was something to look for.
    pub checked: u32,
    pub proof: Proof,
    /// Something came from its endpoint, whether its client got it or not.
    pub is_heard: bool,
    /// Bytes that its client may get before it has shown that it gets them.
    pub credit: u32,
    pub up: Flow,
    pub down: Flow,
}

/// Whether a client is where its datagrams say that they come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    Nothing,
    /// It was sent something.
    Answered,
    /// It said something after that; or it is on this machine, which nobody elsewhere can claim.
    Given,
}

impl Proof {
    pub fn of(client: SocketAddr) -> Self {
        match client.ip().to_canonical().is_loopback() {
            true => Self::Given,
            false => Self::Nothing,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    pub packets: u64,
    pub bytes: u64,
}

impl Flow {
    #[inline]
    pub fn add(&mut self, bytes: usize) {
        self.packets += 1;
        self.bytes += bytes as u64;
    }
}

/// What a session with a token remembers of it.
pub struct Ticket {
    pub token: Box<[u8]>,
    /// Whether the token alone is the session, whatever address it comes from; else token and address.
    pub roams: bool,
    /// Its place in the directory, where it has one.
    pub held: Option<Arc<Entry>>,
    /// Where it was before it roamed, and when it did.
    pub previous: Option<SocketAddr>,
    pub moved: u32,
    /// The directory has it where we can't bring it: it goes nowhere until that is otherwise.
    pub is_lost: bool,
}

impl Session {
    /// Whether the directory has another place for it, or none.
    #[inline]
    pub fn is_replaced(&self) -> bool {
        let held = self.ticket.as_ref().and_then(|ticket| ticket.held.as_ref());
        held.is_some_and(|held| held.is_replaced())
    }

    #[inline]
    pub fn is_lost(&self) -> bool {
        self.ticket.as_ref().is_some_and(|ticket| ticket.is_lost)
    }

    /// Its client said one thing, and may be made up.
    #[inline]
    pub fn is_half_open(&self) -> bool {
        self.up.packets <= 1 && self.proof != Proof::Given
    }

    /// A datagram of its client's came.
    #[inline]
    pub fn said(&mut self, bytes: usize) {
        match self.proof {
            Proof::Given => {}
            Proof::Answered => self.proof = Proof::Given,
            Proof::Nothing => {
                let more = u32::try_from(bytes + HEADER_BYTES).unwrap_or(u32::MAX);
                let more = more.saturating_mul(AMPLIFIED_MAX);
                self.credit = self.credit.saturating_add(more);
            }
        }
    }

    /// Whether its client may be sent so many, from what it has left.
    #[inline]
    pub fn may_hear(&mut self, bytes: usize) -> bool {
        self.is_heard = true;
        if self.proof == Proof::Given {
            return true;
        }
        let cost = u32::try_from(bytes + HEADER_BYTES).unwrap_or(u32::MAX);
        let Some(left) = self.credit.checked_sub(cost) else {
            return false;
        };
        (self.credit, self.proof) = (left, Proof::Answered);
        true
    }

    pub fn token(&self) -> &[u8] {
        self.ticket.as_ref().map_or(&[], |ticket| &ticket.token)
    }
}

/// So many times as much as came from somebody may be sent there while he may be made up.
const AMPLIFIED_MAX: u32 = 3;
/// Of IP and UDP, which are sent too.
const HEADER_BYTES: usize = 28;

/// A listening socket's address, as one core sees it.
pub struct Port {
    pub address: SocketAddr,
    pub rules: UdpRules,
    pub counts: Arc<account::Port>,
    /// Sessions of all cores.
    pub shared: Arc<std::sync::atomic::AtomicU32>,
    /// Of this core.
    pub sessions: u32,
    /// Nobody listens any more.
    pub is_closed: bool,
    /// Sessions that began with one datagram and when, the oldest first; what is not half-open any more is skipped.
    pub half: VecDeque<(u32, u32)>,
}

/// An endpoint, as a port sees it.
pub struct Place {
    pub port: u16,
    pub address: SocketAddr,
    pub target: u32,
    pub sessions: u32,
    pub fate: Fate,
    pub edge: Option<Arc<Edge>>,
}

/// What a plan says of an endpoint that has sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Its sessions stay, also where it drains.
    Stays,
    /// It is no endpoint any more, or does not work: its sessions go elsewhere.
    Gone,
}
