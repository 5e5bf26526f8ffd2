//! The sessions of one core on their way to another process: numbers and addresses in bytes, least significant first. What
//! comes is read as if a stranger had written it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use super::session::{Flow, Proof};
use super::target::SocketId;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Will {
    /// Whose listening sockets come along.
    pub ports: Vec<SocketAddr>,
    /// Towards endpoints, which come along behind the others.
    pub sockets: Vec<SocketId>,
    pub sessions: Vec<Left>,
}

/// A session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// By place in [`Will::ports`].
    pub port: u16,
    pub client: SocketAddr,
    pub local: Option<IpAddr>,
    pub endpoint: SocketAddr,
    pub socket: SocketId,
    /// Since its client's last datagram and its first, in ticks.
    pub idle: u32,
    pub age: u32,
    pub proof: Proof,
    pub is_heard: bool,
    pub credit: u32,
    pub up: Flow,
    pub down: Flow,
    /// And whether it is the session alone.
    pub token: Option<(Box<[u8]>, bool)>,
}

impl Left {
    /// What it is found by: where its client is, unless the token alone is the session, and the token.
    pub fn key(&self) -> (Option<SocketAddr>, &[u8]) {
        match &self.token {
            None => (Some(self.client), &[]),
            Some((token, true)) => (None, token),
            Some((token, false)) => (Some(self.client), token),
        }
    }
}

impl Will {
    pub fn write(&self) -> Vec<u8> {
        let mut out = Writer(Vec::with_capacity(64 + self.sessions.len() * SESSION_BYTES));
        out.put(&[VERSION]);
        out.count(self.ports.len());
        self.ports.iter().for_each(|port| out.address(*port));
        out.count(self.sockets.len());
        self.sockets
            .iter()
            .for_each(|id| out.put(&id.to_le_bytes()));
        out.count(self.sessions.len());
        for left in &self.sessions {
            out.put(&left.port.to_le_bytes());
            out.address(left.client);
            match left.local {
                None => out.put(&[0]),
                Some(ip) => out.ip(ip),
            }
            out.address(left.endpoint);
            for number in [left.socket, left.idle, left.age, left.credit] {
                out.put(&number.to_le_bytes());
            }
            let proof = match left.proof {
                Proof::Nothing => 0,
                Proof::Answered => 1,
                Proof::Given => 2,
            };
            out.put(&[proof, u8::from(left.is_heard)]);
            let (up, down) = (left.up, left.down);
            for number in [up.packets, up.bytes, down.packets, down.bytes] {
                out.put(&number.to_le_bytes());
            }
            match &left.token {
                None => out.put(&[0]),
                Some((token, roams)) => {
                    out.put(&[1 + u8::from(*roams)]);
                    out.count(token.len());
                    out.put(token);
                }
            }
        }
        out.0
    }

    /// None: that is none, or of another version.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let mut rest = Reader(bytes);
        if rest.byte()? != VERSION {
            return None;
        }
        let mut will = Self::default();
        for _ in 0..rest.u32()? {
            will.ports.push(rest.address()?);
        }
        for _ in 0..rest.u32()? {
            will.sockets.push(rest.u32()?);
        }
        for _ in 0..rest.u32()? {
            will.sessions.push(rest.session()?);
        }
        rest.0.is_empty().then_some(will)
    }
}

struct Writer(Vec<u8>);

impl Writer {
    fn put(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn count(&mut self, count: usize) {
        self.put(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
    }

    fn ip(&mut self, ip: IpAddr) {
        match ip {
            IpAddr::V4(ip) => {
                self.put(&[4]);
                self.put(&ip.octets());
            }
            IpAddr::V6(ip) => {
                self.put(&[6]);
                self.put(&ip.octets());
            }
        }
    }

    fn address(&mut self, address: SocketAddr) {
        self.ip(address.ip());
        self.put(&address.port().to_le_bytes());
        if let SocketAddr::V6(address) = address {
            self.put(&address.scope_id().to_le_bytes());
        }
    }
}

struct Reader<'b>(&'b [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn ip(&mut self, kind: u8) -> Option<IpAddr> {
        match kind {
            4 => Some(Ipv4Addr::from(self.take::<4>()?).into()),
            6 => Some(Ipv6Addr::from(self.take::<16>()?).into()),
            _ => None,
        }
    }

    fn address(&mut self) -> Option<SocketAddr> {
        let kind = self.byte()?;
        let ip = self.ip(kind)?;
        let port = self.take().map(u16::from_le_bytes)?;
        Some(match ip {
            IpAddr::V4(ip) => SocketAddrV4::new(ip, port).into(),
            IpAddr::V6(ip) => SocketAddrV6::new(ip, port, 0, self.u32()?).into(),
        })
    }

    fn flow(&mut self) -> Option<Flow> {
        Some(Flow {
            packets: self.u64()?,
            bytes: self.u64()?,
        })
    }

    fn session(&mut self) -> Option<Left> {
        let port = self.take().map(u16::from_le_bytes)?;
        let client = self.address()?;
        let local = match self.byte()? {
            0 => None,
            kind => Some(self.ip(kind)?),
        };
        let endpoint = self.address()?;
        let (socket, idle, age, credit) = (self.u32()?, self.u32()?, self.u32()?, self.u32()?);
        let proof = match self.byte()? {
            0 => Proof::Nothing,
            1 => Proof::Answered,
            2 => Proof::Given,
            _ => return None,
        };
        let is_heard = self.byte()? != 0;
        let (up, down) = (self.flow()?, self.flow()?);
        let token = match self.byte()? {
            0 => None,
            kind @ (1 | 2) => {
                let length = self.u32()? as usize;
                let (token, rest) = self.0.split_at_checked(length)?;
                self.0 = rest;
                Some((token.into(), kind == 2))
            }
            _ => return None,
        };
        Some(Left {
            port,
            client,
            local,
            endpoint,
            socket,
            idle,
            age,
            proof,
            is_heard,
            credit,
            up,
            down,
            token,
        })
    }
}

const VERSION: u8 = 1;
/// Of most, in bytes.
const SESSION_BYTES: usize = 96;

#[cfg(test)]
mod tests {
    use super::*;

    fn will() -> Will {
        let v4 = SocketAddr::from(([127, 0, 0, 1], 7000));
        let v6: SocketAddr = "[fe80::1%7]:9".parse().unwrap();
        let left = Left {
            port: 1,
            client: v6,
            local: Some(v4.ip()),
            endpoint: v4,
            socket: 6,
            idle: 3,
            age: 70_000,
            proof: Proof::Answered,
            is_heard: true,
            credit: 9,
            up: Flow {
                packets: 1,
                bytes: 2,
            },
            down: Flow {
                packets: 3,
                bytes: u64::MAX,
            },
            token: Some((Box::from(&b"abc"[..]), true)),
        };
        let other = Left {
            client: v4,
            local: None,
            proof: Proof::Given,
            token: None,
            ..left.clone()
        };
        Will {
            ports: vec![v4, v6],
            sockets: vec![0, 3, 6],
            sessions: vec![left, other],
        }
    }

    #[test]
    fn what_is_left_is_what_comes() {
        assert_eq!(Will::read(&will().write()), Some(will()));
        assert_eq!(Will::read(&Will::default().write()), Some(Will::default()));
    }

    #[test]
    fn anything_else_is_none_and_does_no_harm() {
        let bytes = will().write();
        for end in 0..bytes.len() {
            assert_eq!(Will::read(&bytes[..end]), None);
        }
        let mut rng = fastrand::Rng::with_seed(3);
        for _ in 0..20_000 {
            let mut other = bytes.clone();
            other[rng.usize(..bytes.len())] = rng.u8(..);
            let _ = Will::read(&other);
        }
        assert_eq!(Will::read(&[VERSION, 255, 255, 255, 255]), None);
    }
}
