//! Listeners that open and close while the workers run, as an edge's Gateway says. Each is bound on every worker, like those
//! that are there from the start, and goes to the next process like those; while it does, no other is opened here.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::accept::{self, Service};
use super::core::Core;
use super::{Bound, Shared};
use crate::edge::Sockets;
use crate::lasting::Lasting;
use crate::takeover::{Bundle, Inherited, Lender};

/// Listeners on their way to a worker.
const OPENED_MAX: usize = 256;
/// The role of such listeners among those that are handed over.
pub(super) const ROLE: &str = "gateway";

/// The sockets of one address that are for one worker.
pub struct Opened {
    listeners: Vec<TcpListener>,
    address: SocketAddr,
    /// True, or nobody there to say so: to be closed.
    closing: watch::Receiver<bool>,
}

pub struct Gates {
    workers: Vec<mpsc::Sender<Opened>>,
    /// Another process may ask for the sockets.
    keeps: bool,
    /// Held while sockets are bound; by discovery and by the side that hands over.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    open: BTreeMap<SocketAddr, Open>,
    /// What the process before listens at and was not yet opened here; none: nobody was before, or it is over.
    inherited: Option<Inherited>,
    tenure: Tenure,
}

struct Open {
    close: watch::Sender<bool>,
    /// None where no other process will ask.
    bundle: Option<Bundle>,
}

/// Whose the addresses are.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Tenure {
    #[default]
    Ours,
    /// Another process has seen which there are, and may take them at any moment.
    Lent,
    /// What is opened from now on, it opens; or nobody, at the end.
    Over,
}

impl Gates {
    /// With what each worker takes them from. `inherited`: what the process before listens at.
    pub fn new(
        workers: usize,
        keeps: bool,
        inherited: Inherited,
    ) -> (Arc<Self>, Vec<mpsc::Receiver<Opened>>) {
        let (workers, opened) = (0..workers).map(|_| mpsc::channel(OPENED_MAX)).unzip();
        let state = State {
            inherited: inherited.has_holder.then_some(inherited),
            ..State::default()
        };
        let gates = Self {
            workers,
            keeps,
            state: Mutex::new(state),
        };
        (Arc::new(gates), opened)
    }

    /// What the process before had and its Gateway no longer has is nobody's from now on.
    pub fn settle(&self) {
        self.state().inherited = None;
    }

    /// Nothing is held open or opened from here any more; who accepts goes on until it is told to close.
    pub fn seal(&self) {
        let mut state = self.state();
        state.tenure = Tenure::Over;
        for open in state.open.values_mut() {
            open.bundle = None;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands the sockets out among the workers.
    fn share(&self, bound: &Bound, closing: &watch::Receiver<bool>) -> Result<(), String> {
        let address = bound.address;
        for (index, worker) in self.workers.iter().enumerate() {
            let listeners = bound.share(index, self.workers.len());
            let opened = Opened {
                listeners: listeners.map_err(|error| error.to_string())?,
                address,
                closing: closing.clone(),
            };
            let sent = worker.try_send(opened);
            sent.map_err(|_| format!("no worker takes the listener at {address}"))?;
        }
        Ok(())
    }
}

impl Sockets for Gates {
    fn open(&self, address: SocketAddr) -> Result<(), String> {
        let mut state = self.state();
        if state.open.contains_key(&address) {
            return Ok(());
        }
        match state.tenure {
            Tenure::Ours => {}
            Tenure::Lent => {
                return Err(format!(
                    "{address} is opened by the process that takes over"
                ));
            }
            Tenure::Over => return Ok(()),
        }
        let mut none = Inherited::default();
        let inherited = state.inherited.as_mut().unwrap_or(&mut none);
        let bound = Bound::take(ROLE, address, self.workers.len(), inherited);
        let bound = bound.map_err(|error| error.to_string())?;
        let bundle = self.keeps.then(|| bound.bundle()).transpose();
        let bundle = bundle.map_err(|error| error.to_string())?;
        let (close, closing) = watch::channel(false);
        self.share(&bound, &closing)?;
        state.open.insert(address, Open { close, bundle });
        Ok(())
    }

    fn close(&self, address: SocketAddr) {
        if let Some(open) = self.state().open.remove(&address) {
            let _ = open.close.send(true);
        }
    }

    fn left(&self) -> Option<Vec<SocketAddr>> {
        let state = self.state();
        let inherited = state.inherited.as_ref()?;
        Some(inherited.addresses().collect())
    }
}

impl Lender for Gates {
    fn lend(&self) -> Vec<Bundle> {
        let mut state = self.state();
        if state.tenure == Tenure::Ours {
            state.tenure = Tenure::Lent;
        }
        let bundles = state.open.values().filter_map(|open| open.bundle.clone());
        bundles.collect()
    }

    fn take_back(&self) {
        let mut state = self.state();
        if state.tenure == Tenure::Lent {
            state.tenure = Tenure::Ours;
        }
    }
}

/// Accepts at whatever is opened, until all is to be closed. Dropped, it accepts nothing more at once.
pub(super) async fn follow(
    core: Rc<Core>,
    shared: Arc<Shared>,
    mut opened: mpsc::Receiver<Opened>,
    mut closing: watch::Receiver<bool>,
    lasting: Lasting,
) {
    let mut accepting = JoinSet::new();
    loop {
        let next = tokio::select! {
            next = opened.recv() => next,
            Some(_) = accepting.join_next() => continue,
            _ = closing.wait_for(|closed| *closed) => None,
        };
        let Some(next) = next else { break };
        let service = Service::Gateway(next.address);
        for listener in next.listeners {
            let listener = match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => listener,
                Err(error) => {
                    tracing::error!(%error, address = %next.address, "listener can't be used");
                    continue;
                }
            };
            let (core, shared) = (core.clone(), shared.clone());
            let (one, other) = (next.closing.clone(), closing.clone());
            let running = async move {
                let (close, either) = watch::channel(false);
                let accepting = accept::run(core, listener, service, shared, either);
                tokio::join!(accepting, end(one, other, close));
            };
            accepting.spawn_local(lasting.guard("listener", running));
        }
    }
    while accepting.join_next().await.is_some() {}
}

/// Tells when either of two says so.
async fn end(
    mut one: watch::Receiver<bool>,
    mut other: watch::Receiver<bool>,
    close: watch::Sender<bool>,
) {
    tokio::select! {
        _ = one.wait_for(|closed| *closed) => {}
        _ = other.wait_for(|closed| *closed) => {}
    }
    let _ = close.send(true);
}

#[cfg(test)]
mod tests;
