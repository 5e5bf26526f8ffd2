//! Upgrading a sidecar while it serves: the process that starts asks the one that runs for its listening sockets, gets
//! ready behind its back, takes the registration and then tells it to drain. The descriptors themselves are passed, so no
//! backlog is ever without somebody who accepts from it. Whatever fails before the last word leaves the old one serving.
//!
//! A conversation over a Unix socket: hello → offer and descriptors → ready → yielded → commit → draining → inherit →
//! bequests.

mod bequest;
mod heir;
mod holder;
mod inherited;
mod parley;

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use self::bequest::{Bequest, Legacy, Testator};
pub use self::heir::{Heir, OfHolder};
pub use self::holder::{Committed, Estate, Holder, Lender, listen};
pub use self::inherited::{Bundle, Inherited};

/// What the two sides must agree on. One that changes its meaning gets another number; both may speak several.
pub const PROTOCOL: u32 = 1;

/// The heir's words. `Hello` means the same in every protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromHeir {
    Hello(Hello),
    /// Configuration and certificate are here: the registration may change hands.
    Ready,
    /// Everything is here: whoever connects is the heir's from now on.
    Commit {
        /// How long the holder's streams may go on.
        drain_ms: u64,
    },
    /// It is here to take bequests.
    Inherit,
}

/// The holder's words. `Refused` means the same in every protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromHolder {
    Offer(Offer),
    Refused {
        reason: String,
    },
    /// Asserts its registration no more; none: there is none.
    Yielded(Option<Yielded>),
    Draining,
    /// What is left to an heir that asked for it.
    Bequests(Vec<bequest::Sizes>),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub protocols: Vec<u32>,
    /// Of the program, for people.
    pub release: String,
    /// `namespace/name`.
    pub service: String,
    /// Takes bequests.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub inherits: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    pub protocol: u32,
    pub release: String,
    /// Of the registered instance.
    pub instance: String,
    /// Bequests follow the last word.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bequeaths: bool,
    /// Their descriptors follow, in this order.
    pub listeners: Vec<Listeners>,
}

/// The sockets of one address: each has a backlog of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listeners {
    pub role: String,
    /// Of the Unix socket that upgrades are asked for at: its path.
    pub address: String,
    pub sockets: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Yielded {
    /// Later than everything the holder asserted.
    pub epoch: u64,
    /// Whether the application is there, and whether it wants traffic.
    pub registered: bool,
    pub accepting: bool,
}

/// Why a process did not take over. The one that runs goes on.
#[derive(Debug, thiserror::Error)]
pub enum TakeoverError {
    #[error("{path} is no socket, and is left alone (--upgrade-socket takes another path)")]
    NoSocket { path: PathBuf },
    #[error("cannot use the upgrade socket {path}")]
    Socket {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "the process behind {path} belongs to user {uid}, not to ours ({own}): its listeners are not taken"
    )]
    Stranger { path: PathBuf, uid: u32, own: u32 },
    #[error("the running sidecar does not hand over: {reason}")]
    Refused { reason: String },
    #[error(
        "the running sidecar speaks another takeover protocol ({0}); stop it before this one is started"
    )]
    Protocol(String),
    #[error(
        "the running sidecar serves instance `{theirs}`, this one would be `{ours}`: an upgrade keeps the instance"
    )]
    Instance { theirs: String, ours: String },
    #[error(
        "the running sidecar has its {role} listener at {theirs}, this one wants {ours}: an upgrade keeps addresses"
    )]
    Address {
        role: &'static str,
        theirs: String,
        ours: String,
    },
    #[error(
        "the running sidecar does not answer for {0:?}: it hangs, or another process is about to take over"
    )]
    Busy(std::time::Duration),
    #[error("the running sidecar broke off")]
    Talk(#[source] io::Error),
    #[error(
        "not ready after {0:?}: {1}; the running sidecar goes on (--upgrade-wait waits longer)"
    )]
    NotReady(std::time::Duration, &'static str),
}

impl TakeoverError {
    fn socket(path: &std::path::Path, source: io::Error) -> Self {
        Self::Socket {
            path: path.to_owned(),
            source,
        }
    }
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[cfg(test)]
mod tests;
