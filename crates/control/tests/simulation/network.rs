//! Connections through memory to whichever control plane lives, with delays, and partitions that may hold in one direction only. What is sent into a
//! partition arrives after it, as with TCP; a connection that is opened into one waits.

use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Uri};

/// Of one pipe, in bytes.
const PIPE: usize = 64 * 1024;
const DELAY_MAX_MS: u64 = 20;

/// Where control planes are reached, by name.
#[derive(Clone, Default)]
pub struct Network {
    doors: Arc<Mutex<BTreeMap<String, Door>>>,
}

#[derive(Clone)]
struct Door {
    connections: mpsc::Sender<io::Result<DuplexStream>>,
    /// Cancelled when the process dies: its connections break.
    alive: CancellationToken,
}

/// One client's way to the control plane.
#[derive(Clone)]
pub struct Link {
    pub forth: Rc<watch::Sender<bool>>,
    pub back: Rc<watch::Sender<bool>>,
}

impl Link {
    pub fn new() -> Self {
        Self {
            forth: Rc::new(watch::Sender::new(true)),
            back: Rc::new(watch::Sender::new(true)),
        }
    }

    pub fn heal(&self) {
        self.forth.send_replace(true);
        self.back.send_replace(true);
    }
}

impl Network {
    /// A control plane came up: its connections.
    pub fn listen(&self, plane: &str) -> mpsc::Receiver<io::Result<DuplexStream>> {
        let (connections, accepted) = mpsc::channel(64);
        let alive = CancellationToken::new();
        let door = Door { connections, alive };
        self.doors.lock().unwrap().insert(plane.to_owned(), door);
        accepted
    }

    pub fn close(&self, plane: &str) {
        if let Some(door) = self.doors.lock().unwrap().remove(plane) {
            door.alive.cancel();
        }
    }

    /// A channel as `client::channel` makes them, over this network.
    pub fn channel(&self, link: &Link, seed: u64) -> Channel {
        let (network, random) = (
            self.clone(),
            Arc::new(Mutex::new(fastrand::Rng::with_seed(seed))),
        );
        let (forth, back) = (link.forth.subscribe(), link.back.subscribe());
        Endpoint::from_static("http://control:15010")
            .connect_timeout(Duration::from_secs(1))
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(5))
            .keep_alive_while_idle(true)
            .connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
                let network = network.clone();
                let random = random.lock().unwrap().fork();
                let (forth, back) = (forth.clone(), back.clone());
                async move { network.connect(forth, back, random).await.map(TokioIo::new) }
            }))
    }

    async fn connect(
        self,
        mut forth: watch::Receiver<bool>,
        mut back: watch::Receiver<bool>,
        mut random: fastrand::Rng,
    ) -> io::Result<DuplexStream> {
        let _ = forth.wait_for(|open| *open).await;
        let _ = back.wait_for(|open| *open).await;
        tokio::time::sleep(Duration::from_millis(random.u64(..DELAY_MAX_MS))).await;
        let doors: Vec<Door> = self.doors.lock().unwrap().values().cloned().collect();
        let door = random.choice(&doors);
        let door = door.ok_or(io::ErrorKind::ConnectionRefused)?;
        let (client, near) = duplex(PIPE);
        let (far, server) = duplex(PIPE);
        let refused = |_| io::Error::from(io::ErrorKind::ConnectionRefused);
        door.connections.send(Ok(server)).await.map_err(refused)?;
        let (near_read, near_write) = tokio::io::split(near);
        let (far_read, far_write) = tokio::io::split(far);
        let broken = door.alive.child_token();
        let there = carry(near_read, far_write, forth, random.fork());
        let back = carry(far_read, near_write, back, random);
        tokio::spawn(async move {
            tokio::select! {
                () = broken.cancelled() => {}
                () = there => {}
                () = back => {}
            }
        });
        Ok(client)
    }
}

/// Bytes keep their order; each piece takes its time, and more while the direction is cut.
async fn carry(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut open: watch::Receiver<bool>,
    mut random: fastrand::Rng,
) {
    let mut piece = vec![0; PIPE];
    loop {
        let Ok(length @ 1..) = from.read(&mut piece).await else {
            return;
        };
        tokio::time::sleep(Duration::from_millis(random.u64(..DELAY_MAX_MS))).await;
        if open.wait_for(|open| *open).await.is_err() {
            return;
        }
        if to.write_all(&piece[..length]).await.is_err() {
            return;
        }
    }
}
