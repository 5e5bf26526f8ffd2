//! The driver of one core: one task that reads whatever sockets have something, in batches, asks the table, and sends. No
//! packet costs an allocation or a lock, but for those that another core has to be given.

mod upstream;

use std::collections::{BTreeMap, HashMap};
use std::future::{Future as _, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use arc_swap::cache::Cache;
use socket2::SockRef;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::{Sleep, sleep};

use self::upstream::Upstream;
use super::kin::Kin;
use super::ports::{Estate, Own, Ports, Stray};
use super::shut::Shut;
use super::sys::{self, BATCH, Inbox, Message, Runs};
use super::table::{Arrived, Config, Now, SHUT_NS, Table, Up};
use super::target::SocketId;
use super::will::Will;
use super::world::Outlook;
use crate::account::Account;
use crate::account::udp::Dropped;
use crate::plan::{Plan, UdpPortPlan};
use crate::takeover::Bequest;

/// Serves what the plan says until told to close and the last session has ended. Once told, new sessions are refused, unless
/// another process `succeeds`: that has these ports when this one is gone, so that until then nobody else serves them.
pub async fn run(
    own: Own,
    plan: Arc<ArcSwap<Plan>>,
    account: Arc<Account>,
    mut closing: watch::Receiver<bool>,
    succeeds: impl Fn() -> bool,
) {
    let (mut opened, mut leaving) = (own.opened.clone(), own.leaving.clone());
    let left = own.left.clone();
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
        let told = tokio::select! {
            biased;
            () = served => return,
            Ok(()) = opened.changed() => Told::Look,
            Ok(()) = plans.changed() => Told::Look,
            Ok(_) = leaving.wait_for(|leaving| *leaving) => Told::Leave,
            _ = closing.wait_for(|closing| *closing), if !is_draining => Told::Close,
        };
        match told {
            Told::Look => {}
            Told::Close => driver.drain(succeeds()),
            Told::Leave => {
                // As many fit as there are cores.
                let _ = left.try_send(driver.bequeath());
                return;
            }
        }
        driver.is_stale = true;
    }
}

enum Told {
    /// At the plan.
    Look,
    Close,
    Leave,
}

struct Driver {
    core: usize,
    ports: Arc<Ports>,
    latest: Cache<Arc<ArcSwap<Plan>>, Arc<Plan>>,
    /// Look at the plan again, whether it is another or not.
    is_stale: bool,
    is_draining: bool,
    /// What the process before left is here.
    is_settled: bool,
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
            is_settled: false,
            started: account.started(),
            world: Outlook::new(plan.load_full(), account),
            table,
            listening: Vec::new(),
            by_address: BTreeMap::new(),
            failed: BTreeMap::new(),
            upstream: Upstream::new(sockets_max / 2)?,
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
        let elapsed = BEFORE_START + self.started.elapsed();
        Now {
            ns: u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX),
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
        if self.ports.is_waiting() {
            return; // for its sockets: what it holds can't be bound, what nobody holds would be taken from it
        }
        let latest = self.latest.load();
        if !self.is_stale && Arc::ptr_eq(latest, &self.world.plan) {
            return;
        }
        self.is_stale = false;
        self.world.plan = latest.clone();
        self.open_and_close();
        if !std::mem::replace(&mut self.is_settled, true) {
            self.inherit();
        }
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
            // Of the process before, which may have shut somebody out.
            let _ = SockRef::from(&taken.socket).detach_filter();
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

    /// Sessions that this core's like in the process before left.
    fn inherit(&mut self) {
        let (now, estates) = (self.now(), self.ports.estates(self.core));
        for Estate { will, sockets } in estates {
            let mut renamed: HashMap<SocketId, SocketId> = HashMap::new();
            for (id, file) in will.sockets.iter().zip(sockets) {
                let known = renamed.get(id).copied();
                if let Some(own) = self.upstream.adopt(id & 1 == 1, known, file) {
                    renamed.insert(*id, own);
                }
            }
            let (mut came, mut lost) = (0_u32, 0_u32);
            for left in will.sessions {
                let address = will.ports.get(usize::from(left.port));
                let port = address.and_then(|address| self.by_address.get(address));
                let place = port.copied().zip(renamed.get(&left.socket).copied());
                let is_here = place.is_some_and(|(port, socket)| {
                    self.table.inherit(port, socket, left, now, &self.world)
                });
                match is_here {
                    true => came += 1,
                    false => lost += 1,
                }
            }
            tracing::info!(core = self.core, came, lost, "sessions taken over");
            self.table.inherited(now, self.upstream.counts());
        }
    }

    /// Everything, for another process.
    fn bequeath(mut self) -> Bequest {
        while let Ok(stray) = self.strays.try_recv() {
            self.carry(stray);
        }
        let (mut will, mut files) = (Will::default(), Vec::new());
        let mut numbers = BTreeMap::new();
        for listening in self.listening.iter_mut().filter_map(Option::take) {
            numbers.insert(listening.address, will.ports.len() as u16);
            will.ports.push(listening.address);
            files.push(listening.socket.into_inner());
        }
        for (id, socket) in self.upstream.leave() {
            will.sockets.push(id);
            files.push(socket.into());
        }
        let number = |address| numbers.get(&address).copied();
        will.sessions = self.table.leave(self.now(), number);
        tracing::info!(
            core = self.core,
            sessions = will.sessions.len(),
            "sessions handed over"
        );
        Bequest {
            core: self.core,
            told: will.write(),
            files,
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
            let to = these.iter().all(|(_, other)| other.to == first.to);
            let Some(mut way) = self.upstream.way(*socket, to.then_some(first.to), count) else {
                self.table
                    .count_dropped(port, Dropped::Descriptors, count as u64);
                continue;
            };
            let mut batch = match count {
                1 => std::slice::from_ref(first),
                _ => {
                    self.batch.clear();
                    self.batch
                        .extend(these.iter().map(|(_, message)| message.clone()));
                    &self.batch[..]
                }
            };
            if let Some(hot) = way.hot {
                let sent = inbox.send_connected(hot, batch, way.runs, now.ns);
                batch = batch.get(sent..).unwrap_or_default();
                if batch.is_empty() {
                    continue;
                }
                // Whatever it was, of these or of earlier ones: the other way goes by itself.
                self.upstream.cool(*socket);
                match self.upstream.way(*socket, None, 0) {
                    Some(other) => way = other,
                    None => continue,
                }
            }
            let told = match batch {
                [one] => inbox.send_one(way.socket, one),
                _ => inbox.send(way.socket, batch, way.runs, now.ns),
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
                    let line = upstream::number(socket);
                    let down = self.table.down(line, from, bytes, now, &mut self.world);
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
            self.carry(stray);
        }
        true
    }

    fn carry(&mut self, stray: Stray) {
        let Some(place) = self.by_address.get(&stray.port).copied() else {
            return;
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
            return;
        };
        let body = stray.bytes.get(body).unwrap_or_default();
        let Some(way) = self.upstream.way(socket, None, 1) else {
            self.table.count_dropped(place, Dropped::Descriptors, 1);
            return;
        };
        if way.socket.send_to(body, to).is_err() {
            self.table.count_dropped(place, Dropped::Send, 1);
        }
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

/// Of one core and family, of which there are two; half as many are connected ones. The other half of the descriptors is for
/// connections.
fn sockets_max(descriptors: usize, cores: usize) -> usize {
    (descriptors / 5).min(SOCKETS_MAX) / cores.max(1)
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
/// Time there was before this process, for sessions that are older than it.
const BEFORE_START: Duration = Duration::from_secs(30 * 24 * 3600);
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
            let with_hot = all + all / 4;
            assert!(
                with_hot <= descriptors / 2 && all <= 2 * SOCKETS_MAX,
                "{all}"
            );
        }
        assert_eq!(sockets_max(1 << 20, 2), SOCKETS_MAX / 2);
    }
}
