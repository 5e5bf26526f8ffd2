//! Listening sockets: each address of the plan is bound once per core (SO_REUSEPORT), by whichever core sees it first, for all.
//! That none of them is without somebody who reads it, all cores are told.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::{mpsc, watch};

use super::kin::Owners;
use super::source::Everybody;
use super::sys;

/// Of all cores.
pub struct Ports {
    cores: usize,
    /// Grows when sockets were opened.
    opened: watch::Sender<u64>,
    state: Mutex<BTreeMap<SocketAddr, Open>>,
    strays: Vec<mpsc::Sender<Stray>>,
    pub(super) owners: Arc<Owners>,
    pub(super) everybody: Arc<Everybody>,
}

/// What one core gets of [`Ports`].
pub struct Own {
    pub core: usize,
    pub ports: Arc<Ports>,
    /// Datagrams that came to other cores.
    pub strays: mpsc::Receiver<Stray>,
    pub opened: watch::Receiver<u64>,
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
        let ports = Arc::new(Self {
            cores,
            opened: watch::Sender::new(0),
            state: Mutex::default(),
            strays: senders,
            owners: Owners::new(fastrand::u64(..)),
            everybody: Arc::default(),
        });
        let own = |(core, strays)| Own {
            core,
            ports: ports.clone(),
            strays,
            opened: ports.opened.subscribe(),
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

    /// The socket of a core at `address`: another one, if that core has closed what it had while others have theirs still, for
    /// they may never see the plan without that address.
    ///
    /// # Errors
    /// It can't be bound.
    pub fn take(&self, core: usize, address: SocketAddr) -> io::Result<Taken> {
        let mut state = self.state();
        if let Entry::Vacant(place) = state.entry(address) {
            let sockets = bind(address, self.cores)?;
            let open = Open {
                sockets: sockets.into_iter().map(Some).collect(),
                sessions: Arc::default(),
                held: 0,
            };
            place.insert(open);
            self.opened.send_modify(|count| *count += 1);
        }
        let open = state.get_mut(&address).ok_or(io::ErrorKind::NotFound)?;
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
/// Datagrams on their way to another core.
const STRAYS_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_that_closed_an_address_which_others_never_left_has_it_again() {
        let (ports, _own) = Ports::new(2);
        let free = UdpSocket::bind("127.0.0.1:0").unwrap();
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
}
