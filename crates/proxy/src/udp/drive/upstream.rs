//! The sockets of one core towards endpoints.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::task::{Context, Poll, ready};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::unix::AsyncFd;

use super::super::sys::{self, Runs};
use super::super::target::SocketId;

/// Sockets towards endpoints, of both families; behind one descriptor, so that thousands of them are one to the runtime.
pub(super) struct Upstream {
    ready: AsyncFd<OwnedFd>,
    sockets: [Vec<Option<Line>>; 2],
    /// Lines that have a connected one, and how many may.
    hot: usize,
    hot_max: usize,
    events: Vec<epoll::Event>,
    /// Those that may have more than was read, [`HOT`] or not.
    pub(super) pending: Vec<SocketId>,
    runs: Runs,
}

/// A socket that sessions of several endpoints use. Where much goes to one of them it gets a connected one beside it at the same
/// port: for that the system needs no look at its routes, neither on the way out nor on the way in.
struct Line {
    socket: UdpSocket,
    hot: Option<(UdpSocket, SocketAddr)>,
    /// Where the last datagrams went, and how many.
    toward: Option<SocketAddr>,
    run: usize,
}

/// Of a [`SocketId`]: its connected socket.
const HOT: SocketId = 1 << 31;

/// Without that.
pub(super) fn number(socket: SocketId) -> SocketId {
    socket & !HOT
}

/// How to send from a line.
pub(super) struct Way<'u> {
    pub(super) socket: &'u UdpSocket,
    /// Connected to where all of them go.
    pub(super) hot: Option<&'u UdpSocket>,
    pub(super) runs: &'u mut Runs,
}

impl Upstream {
    pub(super) fn new(hot_max: usize) -> io::Result<Self> {
        let ready = epoll::create(CreateFlags::CLOEXEC)?;
        Ok(Self {
            ready: sys::watch(ready)?,
            sockets: Default::default(),
            hot: 0,
            hot_max,
            events: Vec::with_capacity(EVENTS),
            pending: Vec::with_capacity(EVENTS),
            runs: Runs::default(),
        })
    }

    fn line(&mut self, socket: SocketId) -> Option<&mut Option<Line>> {
        let socket = number(socket);
        let sockets = self.sockets.get_mut((socket & 1) as usize)?;
        sockets.get_mut((socket >> 1) as usize)
    }

    pub(super) fn opened(&self, socket: SocketId) -> Option<&UdpSocket> {
        let at = number(socket);
        let sockets = self.sockets.get((at & 1) as usize)?;
        let line = sockets.get((at >> 1) as usize)?.as_ref()?;
        match socket & HOT {
            0 => Some(&line.socket),
            _ => line.hot.as_ref().map(|(hot, _)| hot),
        }
    }

    /// For `count` datagrams, which all go `to` one endpoint if that is said. Opened when it is used for the first time. None:
    /// the system gives no more.
    #[inline]
    pub(super) fn way(
        &mut self,
        socket: SocketId,
        to: Option<SocketAddr>,
        count: usize,
    ) -> Option<Way<'_>> {
        let is_ipv6 = socket & 1 == 1;
        let sockets = self.sockets.get_mut(usize::from(is_ipv6))?;
        let at = (socket >> 1) as usize;
        if sockets.len() <= at {
            sockets.resize_with(at + 1, || None);
        }
        let slot = sockets.get_mut(at)?;
        if slot.is_none() {
            match open(is_ipv6, socket, self.ready.get_ref()) {
                Ok(opened) => *slot = Some(Line::new(opened)),
                Err(error) => tracing::debug!(%error, "no more sockets towards endpoints"),
            }
        }
        let line = slot.as_mut()?;
        if line.wants_hot(to, count) && (line.hot.is_some() || self.hot < self.hot_max) {
            self.hot -= usize::from(line.hot.is_some());
            line.heat(socket, self.ready.get_ref());
            self.hot += usize::from(line.hot.is_some());
        }
        let hot = line.hot.as_ref().filter(|(_, peer)| to == Some(*peer));
        Some(Way {
            socket: &line.socket,
            hot: hot.map(|(hot, _)| hot),
            runs: &mut self.runs,
        })
    }

    /// A line goes without its connected socket, until much goes one way again.
    pub(super) fn cool(&mut self, socket: SocketId) {
        let line = self.line(socket).and_then(Option::as_mut);
        if line.is_some_and(|line| line.hot.take().is_some()) {
            self.hot -= 1;
        }
    }

    /// Of each family.
    pub(super) fn counts(&self) -> [usize; 2] {
        self.sockets.each_ref().map(Vec::len)
    }

    /// One of the process before; `own` is what its line is called here if that has come already. None: it can't be used.
    pub(super) fn adopt(
        &mut self,
        is_ipv6: bool,
        own: Option<SocketId>,
        file: OwnedFd,
    ) -> Option<SocketId> {
        let socket = UdpSocket::from(file);
        if socket.local_addr().ok()?.is_ipv6() != is_ipv6 {
            return None;
        }
        if let Some(own) = own {
            let peer = socket.peer_addr().ok()?;
            observe(&socket, own | HOT, self.ready.get_ref()).ok()?;
            self.line(own)?.as_mut()?.hot = Some((socket, peer));
            self.hot += 1;
            return Some(own);
        }
        if socket.peer_addr().is_ok() {
            return None; // the line that it belongs to could not be used
        }
        let sockets = self.sockets.get_mut(usize::from(is_ipv6))?;
        let own = (u32::try_from(sockets.len()).ok()? << 1) | u32::from(is_ipv6);
        observe(&socket, own, self.ready.get_ref()).ok()?;
        sockets.push(Some(Line::new(socket)));
        Some(own)
    }

    /// All of them; a connected one behind its line's own, by the same number.
    pub(super) fn leave(&mut self) -> Vec<(SocketId, UdpSocket)> {
        let mut all = Vec::new();
        for (family, sockets) in self.sockets.iter_mut().enumerate() {
            for (at, slot) in sockets.iter_mut().enumerate() {
                let id = (at << 1 | family) as SocketId;
                if let Some(line) = slot.take() {
                    all.push((id, line.socket));
                    all.extend(line.hot.map(|(hot, _)| (id, hot)));
                }
            }
        }
        all
    }

    /// Notes which sockets have something.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let Ok(mut guard) = ready!(self.ready.poll_read_ready(cx)) else {
                return Poll::Pending;
            };
            self.events.clear();
            let buffer = rustix::buffer::spare_capacity(&mut self.events);
            let now = rustix::event::Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            let got = epoll::wait(guard.get_inner(), buffer, Some(&now)).unwrap_or(0);
            if got < EVENTS {
                guard.clear_ready();
            }
            if got > 0 {
                let sockets = self.events.iter().map(|event| event.data.u64() as SocketId);
                self.pending.extend(sockets);
                return Poll::Ready(());
            }
        }
    }

    pub(super) fn close(&mut self, is_unused: impl Fn(SocketId) -> bool) {
        for (family, sockets) in self.sockets.iter_mut().enumerate() {
            for (at, slot) in sockets.iter_mut().enumerate() {
                if slot.is_some() && is_unused((at << 1 | family) as SocketId) {
                    // The system forgets it in the set as well.
                    let hot = slot.take().and_then(|line| line.hot);
                    self.hot -= usize::from(hot.is_some());
                }
            }
        }
    }
}

impl Line {
    fn new(socket: UdpSocket) -> Self {
        Self {
            socket,
            hot: None,
            toward: None,
            run: 0,
        }
    }

    /// Whether so much goes to one endpoint that it is worth a socket.
    fn wants_hot(&mut self, to: Option<SocketAddr>, count: usize) -> bool {
        self.run = match to.is_some() && self.toward == to {
            true => self.run.saturating_add(count),
            false => count,
        };
        self.toward = to;
        // What waits in one that is replaced is lost: it has to have been idle.
        match &self.hot {
            None => to.is_some() && self.run >= HOT_AFTER,
            Some((_, peer)) => to.is_some_and(|to| to != *peer) && self.run >= HOT_AGAIN,
        }
    }

    fn heat(&mut self, socket: SocketId, ready: &OwnedFd) {
        self.run = 0;
        let Some(to) = self.toward else { return };
        match connected(&self.socket, to).and_then(|hot| {
            observe(&hot, socket | HOT, ready)?;
            Ok(hot)
        }) {
            Ok(hot) => self.hot = Some((hot, to)),
            Err(error) => tracing::debug!(%error, endpoint = %to, "no connected socket"),
        }
    }
}

/// At the same port as `beside`. What other endpoints send while it is not yet connected may come to it; it is read as well.
fn connected(beside: &UdpSocket, to: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(to), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_port(true)?;
    if to.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Shared for this moment only: a stranger of our user would get what endpoints send.
    let shared = SockRef::from(beside);
    shared.set_reuse_port(true)?;
    let connected = socket
        .bind(&beside.local_addr()?.into())
        .and_then(|()| socket.connect(&to.into()));
    shared.set_reuse_port(false)?;
    connected?;
    Ok(socket.into())
}

/// Not connected: sessions of several endpoints use it.
fn open(is_ipv6: bool, number: SocketId, ready: &OwnedFd) -> io::Result<UdpSocket> {
    let (domain, any): (_, SocketAddr) = match is_ipv6 {
        false => (Domain::IPV4, (Ipv4Addr::UNSPECIFIED, 0).into()),
        true => (Domain::IPV6, (Ipv6Addr::UNSPECIFIED, 0).into()),
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    if is_ipv6 {
        socket.set_only_v6(true)?;
    }
    socket.bind(&any.into())?;
    observe(&socket, number, ready)?;
    Ok(socket.into())
}

fn observe(socket: impl AsFd, number: SocketId, ready: &OwnedFd) -> io::Result<()> {
    let flags = EventFlags::IN | EventFlags::ET;
    let data = EventData::new_u64(number.into());
    Ok(epoll::add(ready, socket, data, flags)?)
}

/// Datagrams to one endpoint, one after the other, that are worth a connected socket.
const HOT_AFTER: usize = 64;
/// And that are worth another one.
const HOT_AGAIN: usize = 4096;
/// Sockets that had something, in one call.
const EVENTS: usize = 64;
