//! Listeners that open and close while the workers run, as an edge's Gateway says. Each is bound on every worker, like those
//! that are there from the start.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, watch};

use super::accept::{self, Service};
use super::core::Core;
use super::{Bound, Shared};
use crate::edge::Sockets;

/// Listeners on their way to a worker.
const OPENED_MAX: usize = 256;

/// A socket of one worker.
pub struct Opened {
    listener: TcpListener,
    address: SocketAddr,
    /// True, or nobody there to say so: to be closed.
    closing: watch::Receiver<bool>,
}

pub struct Gates {
    workers: Vec<mpsc::Sender<Opened>>,
    /// Held while sockets are bound; by discovery alone.
    open: Mutex<BTreeMap<SocketAddr, watch::Sender<bool>>>,
}

impl Gates {
    /// With what each worker takes them from.
    pub fn new(workers: usize) -> (Arc<Self>, Vec<mpsc::Receiver<Opened>>) {
        let (workers, opened) = (0..workers).map(|_| mpsc::channel(OPENED_MAX)).unzip();
        let gates = Self {
            workers,
            open: Mutex::default(),
        };
        (Arc::new(gates), opened)
    }
}

impl Sockets for Gates {
    fn open(&self, address: SocketAddr) -> Result<(), String> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.contains_key(&address) {
            return Ok(());
        }
        let bound = Bound::open("gateway", address, self.workers.len());
        let bound = bound.map_err(|error| error.to_string())?;
        let (close, closing) = watch::channel(false);
        for (worker, listener) in self.workers.iter().zip(bound.listeners) {
            let opened = Opened {
                listener,
                address,
                closing: closing.clone(),
            };
            let sent = worker.try_send(opened);
            sent.map_err(|_| format!("no worker takes the listener at {address}"))?;
        }
        open.insert(address, close);
        Ok(())
    }

    fn close(&self, address: SocketAddr) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(close) = open.remove(&address) {
            let _ = close.send(true);
        }
    }
}

/// Accepts at whatever is opened, until all is to be closed.
pub(super) async fn follow(
    core: Rc<Core>,
    shared: Arc<Shared>,
    mut opened: mpsc::Receiver<Opened>,
    mut closing: watch::Receiver<bool>,
) {
    loop {
        let next = tokio::select! {
            next = opened.recv() => next,
            _ = closing.wait_for(|closed| *closed) => return,
        };
        let Some(next) = next else { return };
        match tokio::net::TcpListener::from_std(next.listener) {
            Ok(listener) => {
                let (core, shared, closing) = (core.clone(), shared.clone(), closing.clone());
                let service = Service::Gateway(next.address);
                tokio::task::spawn_local(async move {
                    let (close, either) = watch::channel(false);
                    let accepting = accept::run(core, listener, service, shared, either);
                    tokio::join!(accepting, end(next.closing, closing, close));
                });
            }
            Err(error) => {
                tracing::error!(%error, address = %next.address, "listener can't be used")
            }
        }
    }
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
