//! Listening sockets on their way from one process to the next: by role and address, and of each address all that there
//! are, because each has connections of its own waiting.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use socket2::Socket;

use super::{Listeners, TakeoverError};
use crate::intercept::Redirected;

/// All sockets of one address.
#[derive(Clone, Debug)]
pub struct Bundle {
    pub role: &'static str,
    pub address: SocketAddr,
    pub sockets: Arc<[OwnedFd]>,
}

impl Bundle {
    /// # Errors
    /// When a descriptor can't be doubled.
    pub fn of(
        role: &'static str,
        address: SocketAddr,
        sockets: &[TcpListener],
    ) -> io::Result<Self> {
        let double = |socket: &TcpListener| socket.as_fd().try_clone_to_owned();
        Ok(Self {
            role,
            address,
            sockets: sockets.iter().map(double).collect::<io::Result<_>>()?,
        })
    }

    pub fn listeners(&self) -> Listeners {
        Listeners {
            role: self.role.to_owned(),
            address: self.address.to_string(),
            sockets: self.sockets.len(),
        }
    }

    pub fn files(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets.iter().map(AsFd::as_fd)
    }
}

/// What came from the process before, and was not yet taken. Dropped, the rest is closed: nobody wants it any more.
#[derive(Debug, Default)]
pub struct Inherited {
    bundles: Vec<(String, SocketAddr, Vec<TcpListener>)>,
    /// Another process served before, whether or not it had listeners.
    pub has_holder: bool,
    /// What is no listener: of the role [`Redirected::LOCK`].
    lock: Option<OwnedFd>,
}

impl Inherited {
    /// # Errors
    /// When a descriptor is no TCP listener at the address that it was said to be.
    pub fn add(&mut self, told: &Listeners, files: Vec<OwnedFd>) -> io::Result<()> {
        self.has_holder = true;
        if told.role == Redirected::LOCK {
            self.lock = files.into_iter().next();
            return Ok(());
        }
        let wrong = || {
            let told = format!("what came is no {} listener at {}", told.role, told.address);
            io::Error::new(io::ErrorKind::InvalidData, told)
        };
        let address: SocketAddr = told.address.parse().map_err(|_| wrong())?;
        let mut sockets = Vec::with_capacity(files.len());
        for file in files {
            let socket = Socket::from(file);
            let is_it = socket.is_listener()? && socket.local_addr()?.as_socket() == Some(address);
            if !is_it {
                return Err(wrong());
            }
            sockets.push(TcpListener::from(socket));
        }
        self.bundles.push((told.role.clone(), address, sockets));
        Ok(())
    }

    /// What keeps the network namespace for who intercepts in it; not looked at.
    pub fn take_lock(&mut self) -> Option<OwnedFd> {
        self.lock.take()
    }

    /// The sockets of a listener of ours; port 0 is whatever port the one before had.
    pub fn take(
        &mut self,
        role: &str,
        wanted: SocketAddr,
    ) -> Option<(SocketAddr, Vec<TcpListener>)> {
        let is_it = |(other, address, _): &(String, SocketAddr, _)| {
            other == role && is_at(*address, wanted)
        };
        let at = self.bundles.iter().position(is_it)?;
        let (_, address, sockets) = self.bundles.remove(at);
        Some((address, sockets))
    }

    /// # Errors
    /// When the one before has such a listener elsewhere: an upgrade keeps it.
    pub fn expect(&self, role: &'static str, wanted: SocketAddr) -> Result<(), TakeoverError> {
        let mut theirs = self.bundles.iter().filter(|(other, ..)| other == role);
        let theirs = theirs.next().map(|(_, address, _)| *address);
        match theirs {
            Some(theirs) if is_at(theirs, wanted) => Ok(()),
            _ => Err(TakeoverError::Address {
                role,
                theirs: theirs.map_or("no address".to_owned(), |theirs| theirs.to_string()),
                ours: wanted.to_string(),
            }),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.bundles.is_empty()
    }

    /// Whether there are sockets of that role.
    pub fn has_role(&self, role: &str) -> bool {
        self.bundles.iter().any(|(other, ..)| other == role)
    }

    /// Where they listen.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.bundles.iter().map(|(_, address, _)| *address)
    }

    /// Whether a socket at that address is among them.
    pub fn has(&self, wanted: SocketAddr) -> bool {
        self.bundles
            .iter()
            .any(|(_, address, _)| *address == wanted)
    }
}

fn is_at(theirs: SocketAddr, wanted: SocketAddr) -> bool {
    theirs == wanted || (wanted.port() == 0 && theirs.ip() == wanted.ip())
}
