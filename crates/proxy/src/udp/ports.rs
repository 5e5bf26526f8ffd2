//! Listening sockets: each address of the plan is bound once per core (SO_REUSEPORT), by whichever core sees it first, for all.
//! That none of them is without somebody who reads it, all cores are told. Where another process served before, its sockets
//! and sessions come here, and go from here to the next.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::{mpsc, watch};

use super::kin::Owners;
use super::source::Everybody;
use super::sys;
use super::will::Will;
use crate::takeover::{Bequest, Testator};

/// Of all cores.
pub struct Ports {
    cores: usize,
    /// Grows when sockets were opened.
    opened: watch::Sender<u64>,
    state: Mutex<BTreeMap<SocketAddr, Open>>,
    strays: Vec<mpsc::Sender<Stray>>,
    pub(super) owners: Arc<Owners>,
    pub(super) everybody: Arc<Everybody>,
    /// The process before is about to leave us its sockets: nothing is bound until then.
    is_waiting: AtomicBool,
    /// Another process has these addresses, and may leave them to us: what can be bound is not known.
    is_deferred: AtomicBool,
    /// Nobody reads what would be bound from now on.
    is_sealed: AtomicBool,
    /// By core; taken by each.
    left_to_us: Mutex<Vec<Vec<Estate>>>,
    /// Cores leave what they have to another process.
    leaving: watch::Sender<bool>,
    left: Mutex<Option<mpsc::Receiver<Bequest>>>,
}

/// Whether an address is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reserved {
    /// Or it is no longer for us to say.
    Yes,
    /// Not known before the process that has it has left what it leaves.
    Later,
}

/// What one core gets of [`Ports`].
pub struct Own {
    pub core: usize,
    pub ports: Arc<Ports>,
    /// Datagrams that came to other cores.
    pub strays: mpsc::Receiver<Stray>,
    pub opened: watch::Receiver<u64>,
    pub leaving: watch::Receiver<bool>,
    /// Where to, when it is told so.
    pub left: mpsc::Sender<Bequest>,
}

/// What a core of the process before left, but for its listening sockets.
pub struct Estate {
    pub will: Will,
    /// Towards endpoints, in the order of the will.
    pub sockets: Vec<OwnedFd>,
}

/// A datagram for a session of another core.
pub struct Stray {
    /// The listener's address.
    pub port: SocketAddr,
    pub from: SocketAddr,
    pub local: Option<std::net::IpAddr>,
    pub bytes: Box<[u8]>,
}

struct Open {
    /// By core; taken by each.
    sockets: Vec<Option<UdpSocket>>,
    sessions: Arc<AtomicU32>,
    /// Cores that have taken theirs and not closed it.
    held: usize,
}

/// One core's part of an address.
pub struct Taken {
    pub socket: UdpSocket,
    /// Of all cores.
    pub sessions: Arc<AtomicU32>,
}

impl Ports {
    pub fn new(cores: usize) -> (Arc<Self>, Vec<Own>) {
        let cores = cores.max(1);
        let (senders, receivers): (Vec<_>, Vec<_>) =
            (0..cores).map(|_| mpsc::channel(STRAYS_MAX)).unzip();
        let (left, all_left) = mpsc::channel(cores);
        let ports = Arc::new(Self {
            cores,
            opened: watch::Sender::new(0),
            state: Mutex::default(),
            strays: senders,
            owners: Owners::new(fastrand::u64(..)),
            everybody: Arc::default(),
            is_waiting: AtomicBool::new(false),
            is_deferred: AtomicBool::new(false),
            is_sealed: AtomicBool::new(false),
            left_to_us: Mutex::new((0..cores).map(|_| Vec::new()).collect()),
            leaving: watch::Sender::new(false),
            left: Mutex::new(Some(all_left)),
        });
        let own = |(core, strays)| Own {
            core,
            ports: ports.clone(),
            strays,
            opened: ports.opened.subscribe(),
            leaving: ports.leaving.subscribe(),
            left: left.clone(),
        };
        let own = receivers.into_iter().enumerate().map(own).collect();
        (ports, own)
    }

    pub fn cores(&self) -> usize {
        self.cores
    }

    fn state(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, Open>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Binds `address` for all cores, which take their parts when the plan has it. One that is bound stays as it is.
    ///
    /// # Errors
    /// It can't be bound.
    pub fn reserve(&self, address: SocketAddr) -> io::Result<Reserved> {
        if self.is_sealed.load(Ordering::Acquire) || *self.leaving.borrow() {
            return Ok(Reserved::Yes);
        }
        if self.is_deferred.load(Ordering::Acquire) {
            return Ok(Reserved::Later);
        }
        self.bound(&mut self.state(), address)?;
        Ok(Reserved::Yes)
    }

    /// No plan will have it: what no core has taken closes. The cores close what they took when they see that.
    pub fn release(&self, address: SocketAddr) {
        let mut state = self.state();
        if state.get(&address).is_some_and(|open| open.held == 0) {
            state.remove(&address);
        }
    }

    /// Another process serves, and may leave its sockets here.
    pub fn defer(&self) {
        self.is_deferred.store(true, Ordering::Release);
    }

    /// What there is to come from another process is here.
    pub fn settle(&self) {
        self.is_deferred.store(false, Ordering::Release);
    }

    /// Nothing is bound for a plan to come any more.
    pub fn seal(&self) {
        self.is_sealed.store(true, Ordering::Release);
    }

    fn bound<'s>(
        &self,
        state: &'s mut BTreeMap<SocketAddr, Open>,
        address: SocketAddr,
    ) -> io::Result<&'s mut Open> {
        match state.entry(address) {
            Entry::Occupied(open) => Ok(open.into_mut()),
            Entry::Vacant(place) => {
                let sockets = bind(address, self.cores)?;
                self.opened.send_modify(|count| *count += 1);
                Ok(place.insert(Open {
                    sockets: sockets.into_iter().map(Some).collect(),
                    sessions: Arc::default(),
                    held: 0,
                }))
            }
        }
    }

    /// The socket of a core at `address`: another one, if that core has closed what it had while others have theirs still, for
    /// they may never see the plan without that address.
    ///
    /// # Errors
    /// It can't be bound.
    pub fn take(&self, core: usize, address: SocketAddr) -> io::Result<Taken> {
        let mut state = self.state();
        let open = self.bound(&mut state, address)?;
        let bound = open.sockets.get_mut(core).and_then(Option::take);
        let socket = match bound {
            Some(bound) => bound,
            None => listen(address, true)?,
        };
        open.held += 1;
        Ok(Taken {
            socket,
            sessions: open.sessions.clone(),
        })
    }

    /// The process before is about to leave something: see [`Ports::inherit`].
    pub fn wait(&self) {
        self.is_waiting.store(true, Ordering::Release);
    }

    pub fn is_waiting(&self) -> bool {
        self.is_waiting.load(Ordering::Acquire)
    }

    /// What it left: each core's part goes to one of ours. Where it had more cores, the listening sockets of the others close.
    pub fn inherit(&self, bequests: Vec<Bequest>) {
        for bequest in bequests {
            let core = bequest.core;
            if let Err(why) = self.inherit_one(bequest) {
                tracing::warn!(core, why, "what the process before left is not understood");
            }
        }
        self.is_waiting.store(false, Ordering::Release);
        self.settle();
        self.opened.send_modify(|count| *count += 1);
    }

    fn inherit_one(&self, bequest: Bequest) -> Result<(), &'static str> {
        let will = Will::read(&bequest.told).ok_or("its words")?;
        if bequest.files.len() != will.ports.len() + will.sockets.len() {
            return Err("its descriptors");
        }
        let mut files = bequest.files.into_iter();
        let mut state = self.state();
        for (address, file) in will.ports.iter().zip(files.by_ref()) {
            let socket = UdpSocket::from(file);
            let is_it = |at: SocketAddr| (at.ip(), at.port()) == (address.ip(), address.port());
            if !socket.local_addr().is_ok_and(is_it) {
                return Err("a socket at another address");
            }
            let open = state.entry(*address).or_insert_with(|| Open {
                sockets: (0..self.cores).map(|_| None).collect(),
                sessions: Arc::default(),
                held: 0,
            });
            if let Some(slot) = open.sockets.get_mut(bequest.core) {
                *slot = Some(socket);
            }
        }
        drop(state);
        let core = bequest.core % self.cores;
        // Before anybody reads: a core that meets one of these hands it on.
        for left in &will.sessions {
            if let Some(port) = will.ports.get(usize::from(left.port)) {
                self.owners.assign(*port, left.key(), core as u16);
            }
        }
        let sockets = files.collect();
        if let Some(own) = self.left_to_us().get_mut(core) {
            own.push(Estate { will, sockets });
        }
        Ok(())
    }

    fn left_to_us(&self) -> MutexGuard<'_, Vec<Vec<Estate>>> {
        self.left_to_us
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// What is left to a core, once it has taken the listening sockets that it has a use for: the others of its own close.
    pub fn estates(&self, core: usize) -> Vec<Estate> {
        let own = self.left_to_us().get_mut(core).map(std::mem::take);
        let mut state = self.state();
        for open in state.values_mut() {
            if let Some(unwanted) = open.sockets.get_mut(core) {
                *unwanted = None;
            }
        }
        state.retain(|_, open| open.held > 0 || open.sockets.iter().any(Option::is_some));
        own.unwrap_or_default()
    }

    /// A core has closed what it took. With the last one go those that nobody took.
    pub fn close(&self, address: SocketAddr) {
        let mut state = self.state();
        if let Some(open) = state.get_mut(&address) {
            open.held = open.held.saturating_sub(1);
            if open.held == 0 {
                state.remove(&address);
            }
        }
    }

    /// False: that core has more of them than it can take.
    pub fn pass(&self, core: u16, stray: Stray) -> bool {
        let to = self.strays.get(usize::from(core));
        to.is_some_and(|to| to.try_send(stray).is_ok())
    }
}

impl Testator for Ports {
    fn bequeath(&self) -> Pin<Box<dyn Future<Output = Vec<Bequest>> + Send + '_>> {
        Box::pin(async {
            let taken = self
                .left
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            let Some(mut left) = taken else {
                return Vec::new();
            };
            self.leaving.send_replace(true);
            let mut bequests = Vec::with_capacity(self.cores);
            // One that hangs costs its own sessions only.
            let until = tokio::time::Instant::now() + LEAVING_MAX;
            while bequests.len() < self.cores
                && let Ok(Some(bequest)) = tokio::time::timeout_at(until, left.recv()).await
            {
                bequests.push(bequest);
            }
            bequests
        })
    }
}

fn bind(address: SocketAddr, count: usize) -> io::Result<Vec<UdpSocket>> {
    // Alone first: shared with a stranger, half of the clients would be his.
    drop(listen(address, false)?);
    (0..count).map(|_| listen(address, true)).collect()
}

fn listen(address: SocketAddr, shared: bool) -> io::Result<UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    if shared {
        // As much as the system lets us have.
        let _ = socket.set_recv_buffer_size(QUEUE_BYTES);
        let _ = socket.set_send_buffer_size(QUEUE_BYTES);
        if address.ip().is_unspecified() {
            sys::tell_local(&socket, address.is_ipv6())?;
        }
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Of a listening socket, in the system.
const QUEUE_BYTES: usize = 4 << 20;
/// For all cores to leave what they have.
const LEAVING_MAX: std::time::Duration = std::time::Duration::from_secs(3);
/// Datagrams on their way to another core.
const STRAYS_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_that_closed_an_address_which_others_never_left_has_it_again() {
        let (ports, _own) = Ports::new(2);
        let free = UdpSocket::bind("127.0.62.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let first = ports.take(0, address).unwrap();
        let other = ports.take(1, address).unwrap();
        drop(first);
        ports.close(address);
        let again = ports.take(0, address).unwrap();
        assert_eq!(again.socket.local_addr().unwrap(), address);
        assert!(Arc::ptr_eq(&again.sessions, &other.sessions));
        drop((again, other));
        ports.close(address);
        ports.close(address);
        assert!(ports.state().is_empty());
        // Nor does an address stay bound for a core that never took its part.
        drop(ports.take(1, address).unwrap());
        ports.close(address);
        UdpSocket::bind(address).unwrap();
    }

    #[test]
    fn an_address_is_reserved_for_all_cores_or_the_reason_is_told() {
        let (ports, _own) = Ports::new(2);
        let stranger = UdpSocket::bind("127.0.62.2:0").unwrap();
        let address = stranger.local_addr().unwrap();
        let error = ports.reserve(address).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(stranger);
        assert_eq!(ports.reserve(address).unwrap(), Reserved::Yes);
        assert_eq!(ports.reserve(address).unwrap(), Reserved::Yes, "it stays");
        let held = ports.take(0, address).unwrap();
        ports.release(address);
        assert!(ports.state().contains_key(&address), "a core reads there");
        drop(held);
        ports.close(address);
        ports.reserve(address).unwrap();
        ports.release(address);
        UdpSocket::bind(address).expect("nobody took it, so nobody has it");
    }

    #[test]
    fn nothing_is_bound_while_another_process_has_it_nor_where_nobody_reads_any_more() {
        let (ports, _own) = Ports::new(1);
        let stranger = UdpSocket::bind("127.0.62.3:0").unwrap();
        let address = stranger.local_addr().unwrap();
        ports.defer();
        assert_eq!(ports.reserve(address).unwrap(), Reserved::Later);
        ports.inherit(Vec::new());
        assert!(ports.reserve(address).is_err());
        ports.seal();
        assert_eq!(ports.reserve(address).unwrap(), Reserved::Yes);
        assert!(ports.state().is_empty());
    }
}
