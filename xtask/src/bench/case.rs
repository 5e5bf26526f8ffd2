//! The cases: what is sent through which kind of proxy, and what is counted.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::load::{self, Flood};
use super::running::{Child, LOAD_CORE, Running, wait_for_echo, wait_for_port};
use super::sample::Sample;
use super::{idle, pair};

pub const BACKEND_H1: &str = "127.0.0.1:18101";
const BACKEND_H2: &str = "127.0.0.1:18102";
const BACKEND_TCP: &str = "127.0.0.1:18103";
/// The first of [`UDP_ENDPOINTS`].
const BACKEND_UDP: &str = "127.0.0.100:18104";
/// Where every proxy listens, one at a time.
pub const LISTEN: &str = "127.0.0.1:18100";

/// What is spoken, on both sides of the proxy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wire {
    Http1,
    Http2,
    Tcp,
    Udp,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Load {
    /// As fast as it goes, `wrk`.
    Wrk,
    /// The same, `h2load`: connections, and streams on each.
    H2load(&'static str, &'static str),
    /// Bytes: the generator's name for them, and connections.
    Relay(&'static str, &'static str),
    /// Open loop, at [`load::RATE`].
    Paced,
    /// Connections that do nothing; with mutual TLS, straight to the server's proxy of a pair.
    Idle,
    /// A good client at [`load::GOOD_RATE`], and bad ones beside it.
    Flood(Flood),
}

#[derive(PartialEq, Eq, Debug)]
pub struct Case {
    pub name: &'static str,
    pub title: &'static str,
    pub wire: Wire,
    /// Two proxies, with mutual TLS between them, and HTTP/2 where the proxy can; both are counted.
    pub paired: bool,
    pub load: Load,
    /// What the CPU time is divided by.
    pub unit: &'static str,
}

pub const PAIR: Case = Case {
    name: "pair",
    title: "HTTP/1.1 \u{2192} mutual TLS \u{2192} HTTP/1.1 through a pair of proxies, the sum of both (`wrk -t1 -c64`)",
    wire: Wire::Http1,
    paired: true,
    load: Load::Wrk,
    unit: "request",
};

pub static ALL: [Case; 19] = [
    Case {
        name: "h1",
        title: "HTTP/1.1 \u{2192} HTTP/1.1, 64 keep-alive connections, 1 KB answers (`wrk -t1 -c64`)",
        wire: Wire::Http1,
        paired: false,
        load: Load::Wrk,
        unit: "request",
    },
    Case {
        name: "h2",
        title: "h2c \u{2192} h2c, gRPC-like, 16 connections \u{d7} 8 streams, 200 B (`h2load -c16 -m8`)",
        wire: Wire::Http2,
        paired: false,
        load: Load::H2load("16", "8"),
        unit: "request",
    },
    Case {
        name: "h2-64x1",
        title: "h2c \u{2192} h2c, gRPC-like, 64 connections \u{d7} 1 stream, 200 B (`h2load -c64 -m1`)",
        wire: Wire::Http2,
        paired: false,
        load: Load::H2load("64", "1"),
        unit: "request",
    },
    PAIR,
    Case {
        name: "rate",
        title: "HTTP/1.1 at a fixed 4,000 requests/s, 32 connections, open loop",
        wire: Wire::Http1,
        paired: false,
        load: Load::Paced,
        unit: "request",
    },
    Case {
        name: "rate-pair",
        title: "The pair at a fixed 4,000 requests/s, 32 connections, open loop",
        wire: Wire::Http1,
        paired: true,
        load: Load::Paced,
        unit: "request",
    },
    Case {
        name: "idle-h1",
        title: "Memory of idle connections: HTTP/1.1 in plain text",
        wire: Wire::Http1,
        paired: false,
        load: Load::Idle,
        unit: "connection",
    },
    Case {
        name: "idle-h2",
        title: "Memory of idle connections: h2c",
        wire: Wire::Http2,
        paired: false,
        load: Load::Idle,
        unit: "connection",
    },
    Case {
        name: "idle-tls",
        title: "Memory of idle connections: HTTP/1.1 over mutual TLS",
        wire: Wire::Http1,
        paired: true,
        load: Load::Idle,
        unit: "connection",
    },
    Case {
        name: "idle-tls-h2",
        title: "Memory of idle connections: HTTP/2 over mutual TLS",
        wire: Wire::Http2,
        paired: true,
        load: Load::Idle,
        unit: "connection",
    },
    Case {
        name: "flood-tls",
        title: "A good client beside handshakes without a certificate (at the server's proxy of the pair)",
        wire: Wire::Http1,
        paired: true,
        load: Load::Flood(Flood::Tls),
        unit: "attack",
    },
    Case {
        name: "flood-reset",
        title: "A good client beside HTTP/2 rapid reset",
        wire: Wire::Http1,
        paired: false,
        load: Load::Flood(Flood::Reset),
        unit: "attack",
    },
    Case {
        name: "flood-bad",
        title: "A good client beside requests with two lengths",
        wire: Wire::Http1,
        paired: false,
        load: Load::Flood(Flood::Bad),
        unit: "attack",
    },
    Case {
        name: "tcp",
        title: "Raw TCP, 4 connections in each direction, as fast as they go",
        wire: Wire::Tcp,
        paired: false,
        load: Load::Relay("bulk", "8"),
        unit: "MB",
    },
    Case {
        name: "tcp-small",
        title: "Raw TCP, 64 connections, messages of 1 KB and their echoes",
        wire: Wire::Tcp,
        paired: false,
        load: Load::Relay("small", "64"),
        unit: "message",
    },
    Case {
        name: "tcp-short",
        title: "Raw TCP, connections of 16 KB there and back, 16 at a time",
        wire: Wire::Tcp,
        paired: false,
        load: Load::Relay("short", "16"),
        unit: "connection",
    },
    Case {
        name: "udp",
        title: "UDP at a fixed 20,000 datagrams/s each way, 64 clients, 120 B, open loop",
        wire: Wire::Udp,
        paired: false,
        load: Load::Paced,
        unit: "packet",
    },
    Case {
        name: "udp-sessions",
        title: "Memory of UDP sessions",
        wire: Wire::Udp,
        paired: false,
        load: Load::Idle,
        unit: "session",
    },
    Case {
        name: "flood-udp",
        title: "Good UDP clients beside one source that sends as fast as it can",
        wire: Wire::Udp,
        paired: false,
        load: Load::Flood(Flood::Udp),
        unit: "attack",
    },
];

/// Where 100,000 sessions go to, for one endpoint has a socket for each.
pub const UDP_ENDPOINTS: u8 = 100;

impl Case {
    pub fn is_tcp(&self) -> bool {
        self.wire == Wire::Tcp
    }

    pub fn is_udp(&self) -> bool {
        self.wire == Wire::Udp
    }

    /// Endpoints of the service.
    pub fn endpoints(&self) -> u8 {
        match self.is_udp() && self.is_idle() {
            true => UDP_ENDPOINTS,
            false => 1,
        }
    }

    pub fn is_idle(&self) -> bool {
        self.load == Load::Idle
    }

    /// Its tail of latency is what is looked for.
    pub fn is_about_tails(&self) -> bool {
        matches!(self.load, Load::Paced | Load::Flood(_))
    }

    pub fn backend(&self) -> &'static str {
        match self.backend_wire() {
            Wire::Http1 => BACKEND_H1,
            Wire::Http2 => BACKEND_H2,
            Wire::Tcp => BACKEND_TCP,
            Wire::Udp => BACKEND_UDP,
        }
    }

    /// Behind a pair there is HTTP/1.1.
    fn backend_wire(&self) -> Wire {
        match self.paired {
            true => Wire::Http1,
            false => self.wire,
        }
    }

    /// What a proxy must let in.
    pub fn connections(&self) -> usize {
        match self.is_idle() {
            true => idle::CONNECTIONS + 50,
            false => 4000,
        }
    }

    pub fn start_backend(&self, root: &Path) -> anyhow::Result<Child> {
        let mut command = Command::new("taskset");
        let protocol = match self.backend_wire() {
            Wire::Http1 => "h1",
            Wire::Http2 => "h2",
            Wire::Tcp => "tcp",
            Wire::Udp => "udp",
        };
        command
            .args(["-c", LOAD_CORE])
            .arg(root.join("target/dist/bench-backend"))
            .args([protocol, self.backend()]);
        if self.is_udp() {
            command.arg(self.endpoints().to_string());
        }
        let child = Child::spawn(&mut command, "backend")?;
        self.wait_for(self.backend())?;
        Ok(child)
    }

    /// Until somebody listens there, or answers.
    pub fn wait_for(&self, address: &str) -> anyhow::Result<()> {
        match self.is_udp() {
            true => wait_for_echo(address),
            false => wait_for_port(address),
        }
    }

    pub fn measure(&self, root: &Path, proxy: &Running, time: Duration) -> anyhow::Result<Sample> {
        match self.load {
            Load::Idle => idle::measure(self, root, proxy),
            Load::Flood(flood) => load::beside(flood, self, root, proxy, time),
            _ => load::measure(self, root, proxy, time),
        }
    }

    /// Where the bad ones go.
    pub fn attacked(&self) -> &'static str {
        match self.paired {
            true => pair::BETWEEN,
            false => LISTEN,
        }
    }
}
