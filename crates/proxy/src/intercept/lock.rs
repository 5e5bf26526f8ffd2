//! One sidecar intercepts in a network namespace. A name in the abstract space of Unix sockets is of one such namespace, and
//! free again in the instant its holder is gone, however that ended.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use super::InterceptError;

#[derive(Debug)]
pub(super) struct Lock {
    held: UnixListener,
}

impl Lock {
    /// # Errors
    /// [`InterceptError::Another`] while somebody has it.
    pub(super) fn take() -> Result<Self, InterceptError> {
        Self::take_named(NAME)
    }

    fn take_named(name: &str) -> Result<Self, InterceptError> {
        let bound =
            SocketAddr::from_abstract_name(name).and_then(|at| UnixListener::bind_addr(&at));
        match bound {
            Ok(held) => Ok(Self { held }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(InterceptError::Another),
            Err(error) => Err(InterceptError::Lock(error)),
        }
    }

    /// For another process to have at the same time: it is free when both are gone.
    pub(super) fn share(&self) -> io::Result<OwnedFd> {
        self.held.as_fd().try_clone_to_owned()
    }

    /// From the process that had it before. None: it is something else.
    pub(super) fn inherit(socket: OwnedFd) -> Option<Self> {
        Self::inherit_named(socket, NAME)
    }

    fn inherit_named(socket: OwnedFd, name: &str) -> Option<Self> {
        let held = UnixListener::from(socket);
        let address = held.local_addr().ok()?;
        let is_it = address.as_abstract_name() == Some(name.as_bytes());
        is_it.then_some(Self { held })
    }
}

const NAME: &str = "phalanx-intercept";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_gets_in_between_who_hands_over_and_the_heir() {
        let name = format!("phalanx-intercept-test-{}", std::process::id());
        let before = Lock::take_named(&name).unwrap();
        let heir = Lock::inherit_named(before.share().unwrap(), &name).unwrap();
        drop(before);
        let other = Lock::take_named(&name);
        assert!(matches!(other, Err(InterceptError::Another)), "{other:?}");
        drop(heir);
        Lock::take_named(&name).unwrap();
    }

    #[test]
    fn another_socket_is_no_lock() {
        let name = format!("phalanx-intercept-other-{}", std::process::id());
        let other = Lock::take_named(&name).unwrap();
        assert!(Lock::inherit(other.share().unwrap()).is_none());
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(Lock::inherit(OwnedFd::from(tcp)).is_none());
    }
}
