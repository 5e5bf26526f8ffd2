//! One sidecar intercepts in a network namespace. A name in the abstract space of Unix sockets is of one such namespace, and
//! free again in the instant its holder is gone, however that ended.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use super::InterceptError;

#[derive(Debug)]
pub(super) struct Lock {
    _held: UnixListener,
}

impl Lock {
    /// # Errors
    /// [`InterceptError::Another`] while somebody has it.
    pub(super) fn take() -> Result<Self, InterceptError> {
        let bound =
            SocketAddr::from_abstract_name(NAME).and_then(|at| UnixListener::bind_addr(&at));
        match bound {
            Ok(held) => Ok(Self { _held: held }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(InterceptError::Another),
            Err(error) => Err(InterceptError::Lock(error)),
        }
    }
}

const NAME: &str = "phalanx-intercept";
