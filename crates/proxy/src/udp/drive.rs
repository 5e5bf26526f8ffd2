//! The driver of one core: one task that reads whatever sockets have something, in batches, asks the table, and sends. No
//! packet costs an allocation or a lock, but for those that another core has to be given.

use std::collections::BTreeMap;
use std::future::{Future as _, poll_fn};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use arc_swap::cache::Cache;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::{Sleep, sleep};

use super::kin::Kin;
use super::ports::{Own, Ports, Stray};
use super::shut::Shut;
use super::sys::{self, BATCH, Inbox, Message, Runs};
use super::table::{Arrived, Config, Now, SHUT_NS, Table, Up};
use super::target::SocketId;
use super::world::Outlook;
use crate::account::Account;
use crate::account::udp::Dropped;
use crate::plan::{Plan, UdpPortPlan};

/// Serves what the plan says until told to close and the last session has ended. Once told, new sessions are refused, unless
/// another process `succeeds`: that has these ports when this one is gone, so that until then nobody else serves them.
pub async fn run(
    own: Own,
    plan: Arc<ArcSwap<Plan>>,
    account: Arc<Account>,
    mut closing: watch::Receiver<bool>,
    succeeds: impl Fn() -> bool,
) {
    let mut opened = own.opened.clone();
    let mut plans = account.datagrams().plans();
    let mut driver = match Driver::new(own, plan, account) {
        Ok(driver) => driver,
        Err(error) => {
            tracing::error!(%error, "no datagrams are served");
            return;
        }
    };
    loop {
        let is_draining = driver.is_draining;
        let served = poll_fn(|cx| driver.turn(cx));
        let is_told = tokio::select! {
            biased;
            () = served => return,
            Ok(()) = opened.changed() => false,
            Ok(()) = plans.changed() => false,
            _ = closing.wait_for(|closing| *closing), if !is_draining => true,
        };
        if is_told {
            driver.drain(succeeds());
        }
        driver.is_stale = true;
    }
}

struct Driver {
    core: usize,
    ports: Arc<Ports>,
    latest: Cache<Arc<ArcSwap<Plan>>, Arc<Plan>>,
    /// Look at the plan again, whether it is another or not.
    is_stale: bool,
    is_draining: bool,
    world: Outlook,
    table: Table,
    /// Since then times are counted.
    started: Instant,
    /// By place in the table.
    listening: Vec<Option<Listening>>,
    by_address: BTreeMap<SocketAddr, u16>,
    /// What could not be bound, and was told.
    failed: BTreeMap<SocketAddr, String>,
    upstream: Upstream,
    strays: tokio::sync::mpsc::Receiver<Stray>,
    /// Made with the first port.
    inbox: Option<Inbox>,
    messages: Vec<(u32, Message)>,
    batch: Vec<Message>,
    alarm: Pin<Box<Sleep>>,
    swept: Instant,
    sweeps: u32,
}

struct Listening {
    address: SocketAddr,
    name: Arc<str>,
    socket: AsyncFd<OwnedFd>,
    shut: Shut,
    /// What the system has dropped.
    dropped: u32,
    /// Datagrams asked for at once.
    eager: usize,
    runs: Runs,
}

/// Sockets towards endpoints, of both families; behind one descriptor, so that thousands of them are one to the runtime.
struct Upstream {
    ready: AsyncFd<OwnedFd>,
    sockets: [Vec<Option<UdpSocket>>; 2],
    events: Vec<epoll::Event>,
    /// Those that may have more than was read.
    pending: Vec<SocketId>,
    runs: Runs,
}

impl Driver {
    fn new(own: Own, plan: Arc<ArcSwap<Plan>>, account: Arc<Account>) -> io::Result<Self> {
        let Own {
            core,
            ports,
            strays,
            ..
        } = own;
        let sockets_max = sockets_max(sys::descriptors_max(), ports.cores()).max(SOCKETS_MIN);
        let many = ports.cores() > 1;
        let number = u16::try_from(core).unwrap_or(u16::MAX);
        let table = Table::new(Config {
            seed: fastrand::u64(..),
            core,
            sockets_max,
            sources_max: SOURCES_MAX,
            everybody: many.then(|| ports.everybody.clone()),
            kin: many.then(|| Kin::new(ports.owners.clone(), number)),
            strangers: account.datagrams().port("upstream", None, ports.cores()),
        });
        Ok(Self {
            core,
            ports,
            latest: Cache::new(plan.clone()),
            is_stale: true,
            is_draining: false,
            started: account.started(),
            world: Outlook::new(plan.load_full(), account),
            table,
            listening: Vec::new(),
            by_address: BTreeMap::new(),
            failed: BTreeMap::new(),
            upstream: Upstream::new()?,
            strays,
            inbox: None,
            messages: Vec::with_capacity(BATCH),
            batch: Vec::with_capacity(BATCH),
            alarm: Box::pin(sleep(Duration::ZERO)),
            swept: Instant::now(),
            sweeps: 0,
        })
    }

    fn now(&self) -> Now {
        let elapsed = self.started.elapsed().as_nanos();
        Now {
            ns: u64::try_from(elapsed).unwrap_or(u64::MAX),
        }
    }

    fn drain(&mut self, is_succeeded: bool) {
        self.is_draining = true;
        if !is_succeeded {
            self.table.drain();
        }
    }

    /// Does what there is to do, at most [`ROUNDS`] batches of each kind: others of this core want their turn. Ends when the
    /// last session of a draining process has.
    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.renew();
        let mut is_busy = false;
        for port in 0..self.listening.len() {
            is_busy |= self.read_clients(port, cx);
        }
        is_busy |= self.read_endpoints(cx);
        is_busy |= self.read_strays(cx);
        is_busy |= self.look_at_clock(cx);
        if self.is_draining && self.table.is_empty() {
            return Poll::Ready(());
        }
        if is_busy {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn renew(&mut self) {
        let latest = self.latest.load();
        if !self.is_stale && Arc::ptr_eq(latest, &self.world.plan) {
            return;
        }
        self.is_stale = false;
        self.world.plan = latest.clone();
        self.open_and_close();
        self.table.renew(&self.world);
    }

    fn open_and_close(&mut self) {
        let plan = self.world.plan.clone();
        let is_wanted = |address: &SocketAddr| {
            let found = plan.udp.binary_search_by_key(address, |port| port.address);
            found.is_ok()
        };
        let gone = self.by_address.keys().filter(|at| !is_wanted(at));
        for address in gone.copied().collect::<Vec<_>>() {
            self.close(address);
        }
        self.failed.retain(|address, _| is_wanted(address));
        for port in &plan.udp {
            match self.by_address.get(&port.address) {
                Some(known) => {
                    let counts = self.counts(port);
                    self.table.rule(*known, port.rules, counts);
                }
                None if self.is_draining => {}
                None => self.open(port),
            }
        }
    }

    fn counts(&self, port: &UdpPortPlan) -> Arc<crate::account::udp::Port> {
        let datagrams = self.world.account.datagrams();
        datagrams.port(&port.name, Some(port.address), self.ports.cores())
    }

    fn open(&mut self, port: &UdpPortPlan) {
        let address = port.address;
        let opened = self.ports.take(self.core, address).and_then(|taken| {
            let watched = sys::watch(taken.socket.into());
            let watched = watched.inspect_err(|_| self.ports.close(address));
            Ok((watched?, taken.sessions))
        });
        let (socket, sessions) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                let told = error.to_string();
                if self.failed.get(&address) != Some(&told) {
                    tracing::error!(%error, %address, port = %port.name, "port for datagrams can't be opened, trying again");
                    self.failed.insert(address, told);
                }
                return;
            }
        };
        self.failed.remove(&address);
        let counts = self.counts(port);
        let place = self.table.open(address, port.rules, counts, sessions);
        let listening = Listening {
            address,
            name: port.name.clone(),
            dropped: sys::dropped(&socket).unwrap_or(0),
            socket,
            shut: Shut::default(),
            eager: EAGER_MIN,
            runs: Runs::default(),
        };
        let at = usize::from(place);
        if self.listening.len() <= at {
            self.listening.resize_with(at + 1, || None);
        }
        if let Some(slot) = self.listening.get_mut(at) {
            *slot = Some(listening);
        }
        self.by_address.insert(address, place);
        self.inbox.get_or_insert_with(Inbox::new);
        tracing::info!(%address, port = %port.name, core = self.core, "port for datagrams opened");
    }

    fn close(&mut self, address: SocketAddr) {
        let Some(place) = self.by_address.remove(&address) else {
            return;
        };
        self.table.close(place);
        if let Some(slot) = self.listening.get_mut(usize::from(place))
            && let Some(closed) = slot.take()
        {
            self.ports.close(closed.address);
            tracing::info!(%address, port = %closed.name, core = self.core, "port for datagrams closed");
        }
    }

    /// True: there is more.
    fn read_clients(&mut self, port: usize, cx: &mut Context<'_>) -> bool {
        let place = u16::try_from(port).unwrap_or(u16::MAX);
        for _ in 0..ROUNDS {
            let now = self.now();
            let Some(Some(listening)) = self.listening.get_mut(port) else {
                return false;
            };
            let Some(inbox) = &mut self.inbox else {
                return false;
            };
            inbox.clear();
            match listening.receive(inbox, cx) {
                Poll::Pending => return false,
                Poll::Ready(Err(error)) => {
                    tracing::debug!(%error, address = %listening.address, "cannot receive");
                    return false;
                }
                Poll::Ready(Ok(())) => {}
            }
            self.messages.clear();
            for at in 0..inbox.len() {
                let Some(datagram) = inbox.get(at) else {
                    continue;
                };
                let Some(from) = datagram.from else {
                    self.table.count_dropped(place, Dropped::BadSource, 1);
                    continue;
                };
                let arrived = Arrived {
                    port: place,
                    from,
                    local: datagram.local,
                    datagram: datagram.bytes,
                    is_paid: false,
                };
                match self.table.up(&arrived, now, &mut self.world) {
                    Ok(Up::Onward { socket, to, body }) => {
                        let message = Message {
                            to,
                            local: None,
                            place: at,
                            body,
                        };
                        self.messages.push((socket, message));
                    }
                    Ok(Up::Elsewhere(core)) => {
                        let stray = Stray {
                            port: listening.address,
                            from,
                            local: datagram.local,
                            bytes: datagram.bytes.into(),
                        };
                        if !self.ports.pass(core, stray) {
                            self.table.count_dropped(place, Dropped::Queue, 1);
                        }
                    }
                    Err(_) => {}
                }
            }
            self.shut_out(now);
            self.send_up(place, now);
        }
        true
    }

    /// At the port where it floods.
    fn shut_out(&mut self, now: Now) {
        let Some((port, from)) = self.table.flooding() else {
            return;
        };
        if let Some(Some(listening)) = self.listening.get_mut(usize::from(port)) {
            listening.shut_out(from, now);
        }
    }

    /// Sends what lies in `messages`, of which the numbers are sockets.
    fn send_up(&mut self, port: u16, now: Now) {
        let Some(inbox) = &self.inbox else { return };
        self.messages
            .sort_unstable_by_key(|(socket, message)| (*socket, message.place));
        let mut rest = &self.messages[..];
        while let Some((socket, first)) = rest.first() {
            let count = rest.iter().take_while(|(other, _)| other == socket).count();
            let (these, later) = rest.split_at(count);
            rest = later;
            let Some((socket, runs)) = self.upstream.socket(*socket) else {
                self.table
                    .count_dropped(port, Dropped::Descriptors, count as u64);
                continue;
            };
            let told = match count {
                1 => inbox.send_one(socket, first),
                _ => {
                    self.batch.clear();
                    self.batch
                        .extend(these.iter().map(|(_, message)| message.clone()));
                    inbox.send(socket, &self.batch, runs, now.ns)
                }
            };
            if told.failed > 0 {
                self.table
                    .count_dropped(port, Dropped::Send, told.failed as u64);
            }
        }
        self.messages.clear();
    }

    /// True: there is more.
    fn read_endpoints(&mut self, cx: &mut Context<'_>) -> bool {
        for _ in 0..ROUNDS {
            if self.upstream.pending.is_empty() && self.upstream.poll(cx).is_pending() {
                return false;
            }
            let now = self.now();
            let Some(inbox) = &mut self.inbox else {
                self.upstream.pending.clear();
                return false;
            };
            inbox.clear();
            self.messages.clear();
            while inbox.room() >= EAGER_MIN
                && let Some(socket) = self.upstream.pending.pop()
            {
                let first = inbox.len();
                let Some(from) = self.upstream.opened(socket) else {
                    continue;
                };
                let max = inbox.room().min(UPSTREAM_MAX);
                match inbox.receive(from, max) {
                    // It has more, maybe; the others come first.
                    Ok(got) if got == max => self.upstream.pending.insert(0, socket),
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    // What the system tells of an earlier datagram; there may be more behind.
                    Err(_) => self.upstream.pending.insert(0, socket),
                }
                for at in first..inbox.len() {
                    let Some(datagram) = inbox.get(at) else {
                        continue;
                    };
                    let (Some(from), bytes) = (datagram.from, datagram.bytes.len()) else {
                        continue;
                    };
                    let down = self.table.down(socket, from, bytes, now, &mut self.world);
                    if let Ok(down) = down {
                        let message = Message {
                            to: down.to,
                            local: down.local,
                            place: at,
                            body: 0..bytes,
                        };
                        self.messages.push((down.port.into(), message));
                    }
                }
            }
            self.send_down(now);
        }
        true
    }

    /// Sends what lies in `messages`, of which the numbers are ports.
    fn send_down(&mut self, now: Now) {
        let Some(inbox) = &self.inbox else { return };
        let is_one = |pair: &[(u32, Message)]| match pair {
            [(one, _), (other, _)] => one == other,
            _ => true,
        };
        if !self.messages.windows(2).all(is_one) {
            self.messages
                .sort_unstable_by_key(|(port, message)| (*port, message.place));
        }
        let mut rest = &self.messages[..];
        while let Some((port, _)) = rest.first() {
            let count = rest.iter().take_while(|(other, _)| other == port).count();
            let (these, later) = rest.split_at(count);
            rest = later;
            let place = u16::try_from(*port).unwrap_or(u16::MAX);
            let Some(Some(listening)) = self.listening.get_mut(usize::from(place)) else {
                self.table.count_dropped(place, Dropped::Send, count as u64);
                continue;
            };
            self.batch.clear();
            self.batch
                .extend(these.iter().map(|(_, message)| message.clone()));
            let (socket, runs) = (listening.socket.get_ref(), &mut listening.runs);
            let told = inbox.send(socket, &self.batch, runs, now.ns);
            if told.failed > 0 {
                self.table
                    .count_dropped(place, Dropped::Send, told.failed as u64);
            }
        }
        self.messages.clear();
    }

    /// What came to other cores; true: there is more.
    fn read_strays(&mut self, cx: &mut Context<'_>) -> bool {
        for _ in 0..BATCH {
            let Poll::Ready(Some(stray)) = self.strays.poll_recv(cx) else {
                return false;
            };
            let Some(place) = self.by_address.get(&stray.port).copied() else {
                continue;
            };
            let arrived = Arrived {
                port: place,
                from: stray.from,
                local: stray.local,
                datagram: &stray.bytes,
                is_paid: true,
            };
            let now = self.now();
            let Ok(Up::Onward { socket, to, body }) = self.table.up(&arrived, now, &mut self.world)
            else {
                continue;
            };
            let body = stray.bytes.get(body).unwrap_or_default();
            let Some((socket, _)) = self.upstream.socket(socket) else {
                self.table.count_dropped(place, Dropped::Descriptors, 1);
                continue;
            };
            if socket.send_to(body, to).is_err() {
                self.table.count_dropped(place, Dropped::Send, 1);
            }
        }
        true
    }

    /// True: there is more.
    fn look_at_clock(&mut self, cx: &mut Context<'_>) -> bool {
        if self.alarm.as_mut().poll(cx).is_pending() {
            return false;
        }
        let now = self.now();
        let is_more = self.table.tick(now, &mut self.world);
        if self.swept.elapsed() >= SWEEP {
            self.swept = Instant::now();
            self.sweep(now);
        }
        self.is_stale |= !self.failed.is_empty();
        let wait = match self.table.is_empty() && self.failed.is_empty() {
            true => SWEEP,
            false => TICK,
        };
        self.alarm
            .as_mut()
            .reset(tokio::time::Instant::now() + wait);
        // The alarm has to know who waits.
        self.alarm.as_mut().poll(cx).is_ready() || is_more
    }

    fn sweep(&mut self, now: Now) {
        for (place, listening) in self.listening.iter_mut().enumerate() {
            let Some(listening) = listening else { continue };
            if listening.shut.sweep(now.ns) {
                listening.guard();
            }
            let dropped = sys::dropped(&listening.socket).unwrap_or(listening.dropped);
            let more = dropped.wrapping_sub(listening.dropped);
            listening.dropped = dropped;
            if more > 0 {
                let place = u16::try_from(place).unwrap_or(u16::MAX);
                self.table
                    .count_dropped(place, Dropped::Kernel, more.into());
            }
        }
        self.sweeps = self.sweeps.wrapping_add(1);
        if self.sweeps.is_multiple_of(UNUSED_SWEEPS) {
            self.upstream
                .close(|socket| self.table.is_unused(socket, now));
        }
    }
}

impl Listening {
    /// Reads a batch; pending: there is none.
    fn receive(&mut self, inbox: &mut Inbox, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.socket.poll_read_ready(cx))?;
            match inbox.receive(guard.get_inner(), self.eager) {
                Ok(got) => {
                    if got < self.eager {
                        guard.clear_ready();
                    }
                    self.eager = (got * 2).clamp(EAGER_MIN, BATCH);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn shut_out(&mut self, from: SocketAddr, now: Now) {
        if self.shut.put(from, now.ns.saturating_add(SHUT_NS)) {
            self.guard();
        }
    }

    /// Puts the filter in place that the list asks for.
    fn guard(&self) {
        let socket = SockRef::from(self.socket.get_ref());
        let put = match self.shut.is_empty() {
            true => socket.detach_filter(),
            false => socket.attach_filter(&self.shut.program()),
        };
        if let Err(error) = put {
            // Its limits hold without it.
            tracing::debug!(%error, address = %self.address, "no filter at the port");
        }
    }
}

impl Upstream {
    fn new() -> io::Result<Self> {
        let ready = epoll::create(CreateFlags::CLOEXEC)?;
        Ok(Self {
            ready: sys::watch(ready)?,
            sockets: Default::default(),
            events: Vec::with_capacity(EVENTS),
            pending: Vec::with_capacity(EVENTS),
            runs: Runs::default(),
        })
    }

    fn opened(&self, socket: SocketId) -> Option<&UdpSocket> {
        let sockets = self.sockets.get((socket & 1) as usize)?;
        sockets.get((socket >> 1) as usize)?.as_ref()
    }

    /// Opened when it is used for the first time. None: the system gives no more.
    fn socket(&mut self, socket: SocketId) -> Option<(&UdpSocket, &mut Runs)> {
        let is_ipv6 = socket & 1 == 1;
        let sockets = self.sockets.get_mut(usize::from(is_ipv6))?;
        let at = (socket >> 1) as usize;
        if sockets.len() <= at {
            sockets.resize_with(at + 1, || None);
        }
        let slot = sockets.get_mut(at)?;
        if slot.is_none() {
            match open(is_ipv6, socket, self.ready.get_ref()) {
                Ok(opened) => *slot = Some(opened),
                Err(error) => tracing::debug!(%error, "no more sockets towards endpoints"),
            }
        }
        Some((slot.as_ref()?, &mut self.runs))
    }

    /// Notes which sockets have something.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
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

    fn close(&mut self, is_unused: impl Fn(SocketId) -> bool) {
        for (family, sockets) in self.sockets.iter_mut().enumerate() {
            for (at, slot) in sockets.iter_mut().enumerate() {
                if slot.is_some() && is_unused((at << 1 | family) as SocketId) {
                    *slot = None; // the system forgets it in the set as well
                }
            }
        }
    }
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
    let flags = EventFlags::IN | EventFlags::ET;
    epoll::add(ready, &socket, EventData::new_u64(number.into()), flags)?;
    Ok(socket.into())
}

/// Of one core and family, of which there are two. The other half of the descriptors is for connections.
fn sockets_max(descriptors: usize, cores: usize) -> usize {
    (descriptors / 4).min(SOCKETS_MAX) / cores.max(1)
}

/// Sockets towards endpoints, of all cores.
const SOCKETS_MAX: usize = 8_192;
/// Of each core, however few descriptors there are.
const SOCKETS_MIN: usize = 16;
/// Sources that a core remembers.
const SOURCES_MAX: usize = 131_072;
/// Batches in one turn.
const ROUNDS: usize = 4;
/// Datagrams asked of a socket that had few.
const EAGER_MIN: usize = 4;
/// Datagrams of one upstream socket before the next one's.
const UPSTREAM_MAX: usize = 16;
/// Sockets that had something, in one call.
const EVENTS: usize = 64;
const TICK: Duration = Duration::from_millis(100);
const SWEEP: Duration = Duration::from_secs(1);
/// Unused sockets are closed at every so manieth sweep.
const UNUSED_SWEEPS: u32 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_both_families_and_all_cores_are_half_of_the_descriptors_at_most() {
        for (descriptors, cores) in [
            (1024, 2),
            (65_536, 8),
            (1 << 20, 512),
            (1 << 20, 1024),
            (0, 1),
        ] {
            let all = sockets_max(descriptors, cores) * cores * 2;
            assert!(all <= descriptors / 2 && all <= 2 * SOCKETS_MAX, "{all}");
        }
        assert_eq!(sockets_max(1 << 20, 2), SOCKETS_MAX / 2);
    }
}
