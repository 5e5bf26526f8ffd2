//! DNS of the mesh's zone, `svc.mesh`: authoritative, over UDP and TCP, for whoever has no sidecar to resolve names for it.
//!
//! Worlds come compiled and become an immutable [`Index`]; a datagram or a framed message goes through [`answer`], which is
//! pure; [`guard`] keeps the server from being anyone's amplifier. Here live sockets, the clock and the counters.

mod answer;
pub mod fuzz;
mod guard;
mod index;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch::{self, Receiver};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::answer::{Answer, Asker, Transport, answer, slip};
use self::guard::{Guard, Verdict};
pub(crate) use self::index::Index;
use crate::snapshot::Published;

/// Both sockets of the one address.
#[derive(Debug)]
pub struct Sockets {
    udp: UdpSocket,
    tcp: TcpListener,
    address: SocketAddr,
}

impl Sockets {
    /// Port 0 takes one that is free for both.
    ///
    /// # Errors
    /// Of the first that can't be bound.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let mut tries = if address.port() == 0 { BIND_TRIES } else { 1 };
        loop {
            let tcp = TcpListener::bind(address).await?;
            let address = tcp.local_addr()?;
            tries -= 1;
            match UdpSocket::bind(address).await {
                Ok(udp) => {
                    // As much as the kernel allows: what comes while a core is busy waits instead of being lost.
                    let _ = SockRef::from(&udp).set_recv_buffer_size(RECEIVE_BYTES);
                    return Ok(Self { udp, tcp, address });
                }
                Err(error) if tries == 0 => return Err(error),
                Err(_) => {}
            }
        }
    }
}

/// The server; [`Dns::run`] makes it serve.
pub struct Dns {
    sockets: Sockets,
    published: Receiver<Arc<Published>>,
    indexes: watch::Sender<Arc<Index>>,
    shared: Arc<Shared>,
    stop: CancellationToken,
}

/// What questions share, whichever way they came.
struct Shared {
    index: Receiver<Arc<Index>>,
    /// A few look-ups at a time, never across an await.
    guard: Mutex<Guard>,
    started: Instant,
    turns: AtomicU64,
    counts: Arc<Counts>,
}

/// Since start, for `/metrics`.
#[derive(Debug, Default)]
pub struct Counts {
    pub udp: AtomicU64,
    pub tcp: AtomicU64,
    /// By [`CODES`].
    pub codes: [AtomicU64; CODES.len()],
    pub truncated: AtomicU64,
    /// Questions over the rate of their source.
    pub limited: AtomicU64,
    /// What got no answer: no DNS, no question, a full socket.
    pub dropped: AtomicU64,
    /// Open TCP connections.
    pub connections: AtomicUsize,
    pub services: AtomicUsize,
    pub revision: AtomicU64,
}

/// Response codes that are counted apart; the last stands for any other.
pub const CODES: [(&str, ResponseCode); 7] = [
    ("NOERROR", ResponseCode::NoError),
    ("NXDOMAIN", ResponseCode::NXDomain),
    ("REFUSED", ResponseCode::Refused),
    ("FORMERR", ResponseCode::FormErr),
    ("NOTIMP", ResponseCode::NotImp),
    ("BADVERS", ResponseCode::BADVERS),
    ("SERVFAIL", ResponseCode::ServFail),
];

impl Dns {
    /// Indexes the present world before it returns, so that no question is ever answered from nothing.
    pub fn new(
        sockets: Sockets,
        mut published: Receiver<Arc<Published>>,
        stop: CancellationToken,
    ) -> Self {
        let first = published.borrow_and_update().clone();
        let counts = Arc::new(Counts::default());
        let index = build(&first, name_server(sockets.address), None);
        counts.indexed(&index);
        let (indexes, index) = watch::channel(Arc::new(index));
        let shared = Shared {
            index,
            guard: Mutex::default(),
            started: Instant::now(),
            turns: AtomicU64::new(0),
            counts,
        };
        Self {
            sockets,
            published,
            indexes,
            shared: Arc::new(shared),
            stop,
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.sockets.address
    }

    pub fn counts(&self) -> Arc<Counts> {
        self.shared.counts.clone()
    }

    /// Serves until `stop`.
    pub async fn run(self) {
        let Sockets { udp, tcp, address } = self.sockets;
        let (shared, stop) = (self.shared, self.stop);
        let connections = connections(shared.clone(), tcp, stop.clone());
        let serve = async {
            tokio::join!(
                follow(
                    self.published,
                    self.indexes,
                    name_server(address),
                    &shared.counts
                ),
                datagrams(&shared, &udp),
            )
        };
        let serve = async {
            tokio::select! {
                () = stop.cancelled() => {}
                _ = serve => {}
            }
        };
        tokio::join!(serve, connections);
    }
}

/// What the apex names as its server; nobody reaches an unspecified address.
fn name_server(address: SocketAddr) -> Option<IpAddr> {
    Some(address.ip()).filter(|ip| !ip.is_unspecified())
}

fn build(published: &Published, name_server: Option<IpAddr>, before: Option<&Index>) -> Index {
    let mesh = published.mesh.clone();
    let instances = &published.world.instances;
    Index::build(mesh, instances, published.revision, name_server, before)
}

/// Indexes each world that is published; those that come while one is indexed, or right after, are skipped but the newest.
async fn follow(
    mut published: Receiver<Arc<Published>>,
    indexes: watch::Sender<Arc<Index>>,
    name_server: Option<IpAddr>,
    counts: &Counts,
) {
    while published.changed().await.is_ok() {
        let world = published.borrow_and_update().clone();
        let before = indexes.borrow().clone();
        let built =
            tokio::task::spawn_blocking(move || build(&world, name_server, Some(&before))).await;
        match built {
            Ok(index) => {
                counts.indexed(&index);
                indexes.send_replace(Arc::new(index));
            }
            Err(error) => tracing::error!(%error, "names could not be indexed, the last ones stay"),
        }
        sleep(INDEX_PAUSE).await;
    }
    // Without worlds the last names stay.
    std::future::pending().await
}

async fn datagrams(shared: &Shared, socket: &UdpSocket) {
    let mut packet = vec![0; QUESTION_MAX];
    loop {
        let (length, source) = match socket.recv_from(&mut packet).await {
            Ok(received) => received,
            Err(error) => {
                tracing::warn!(%error, "cannot take a datagram");
                sleep(RECEIVE_PAUSE).await;
                continue;
            }
        };
        shared.counts.udp.fetch_add(1, Ordering::Relaxed);
        let packet = packet.get(..length).unwrap_or_default();
        let said = shared.datagram(packet, source.ip());
        // A full socket loses answers, and whoever asked asks again.
        let sent = said.is_some_and(|said| socket.try_send_to(&said, source).is_ok());
        if !sent {
            shared.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn connections(shared: Arc<Shared>, listener: TcpListener, stop: CancellationToken) {
    let seats = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let tasks = TaskTracker::new();
    loop {
        // A full house waits in the kernel's backlog; the idle leave soon.
        let accepted = async {
            let seat = seats.clone().acquire_owned().await.ok()?;
            Some((listener.accept().await, seat))
        };
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accepted => accepted,
        };
        match accepted {
            Some((Ok((stream, source)), seat)) => {
                let connection = connection(shared.clone(), stream, source.ip(), seat);
                let stop = stop.clone();
                tasks.spawn(async move {
                    tokio::select! {
                        () = stop.cancelled() => {}
                        // An error is the peer's: it broke off, or made no sense.
                        _ = connection => {}
                    }
                });
            }
            Some((Err(error), _)) => {
                tracing::warn!(%error, "cannot take a connection");
                sleep(RECEIVE_PAUSE).await;
            }
            None => break,
        }
    }
    tasks.close();
    tasks.wait().await;
}

/// One question at a time, in order; what a peer sends ahead waits in its socket.
async fn connection(
    shared: Arc<Shared>,
    stream: TcpStream,
    source: IpAddr,
    _seat: OwnedSemaphorePermit,
) -> io::Result<()> {
    let _open = Open::new(&shared.counts);
    // Only costs time where it fails.
    let _ = stream.set_nodelay(true);
    shared.guard(|guard, now_ms| guard.prove(source, now_ms));
    let mut stream = BufReader::with_capacity(READ_AHEAD, stream);
    for _ in 0..QUESTIONS_MAX {
        let packet = timeout(IDLE_MAX, framed(&mut stream)).await??;
        shared.counts.tcp.fetch_add(1, Ordering::Relaxed);
        let Some(said) = shared.answer(&packet, source, Transport::Tcp) else {
            shared.counts.dropped.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        };
        let length = u16::try_from(said.len()).map_err(io::Error::other)?;
        let framed = [&length.to_be_bytes()[..], &said].concat();
        timeout(IDLE_MAX, stream.write_all(&framed)).await??;
    }
    Ok(())
}

/// A message with its length before it.
async fn framed(stream: &mut BufReader<TcpStream>) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > QUESTION_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut packet = vec![0; length];
    stream.read_exact(&mut packet).await?;
    Ok(packet)
}

/// Counts a connection for as long as it is open.
struct Open<'a>(&'a Counts);

impl<'a> Open<'a> {
    fn new(counts: &'a Counts) -> Self {
        counts.connections.fetch_add(1, Ordering::Relaxed);
        Self(counts)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shared {
    fn guard<T>(&self, ask: impl FnOnce(&mut Guard, u64) -> T) -> T {
        let now_ms = self.started.elapsed().as_millis() as u64;
        let mut guard = self.guard.lock().unwrap_or_else(PoisonError::into_inner);
        ask(&mut guard, now_ms)
    }

    fn datagram(&self, packet: &[u8], source: IpAddr) -> Option<Vec<u8>> {
        match self.guard(|guard, now_ms| guard.judge(source, now_ms)) {
            Verdict::Answer { is_proven } => {
                self.answer(packet, source, Transport::Udp { is_proven })
            }
            verdict => {
                self.counts.limited.fetch_add(1, Ordering::Relaxed);
                let slipped = (verdict == Verdict::Slip).then(|| self.caught(|| slip(packet)));
                slipped.flatten()
            }
        }
    }

    fn answer(&self, packet: &[u8], source: IpAddr, transport: Transport) -> Option<Vec<u8>> {
        let index = self.index.borrow().clone();
        let asker = Asker {
            ip: source,
            transport,
            turn: scattered(self.turns.fetch_add(1, Ordering::Relaxed)),
        };
        self.caught(|| answer(&index, packet, asker))
    }

    /// A packet that finds a defect of ours gets no answer, and everyone else still does.
    fn caught(&self, make: impl FnOnce() -> Option<Answer>) -> Option<Vec<u8>> {
        let made = catch_unwind(AssertUnwindSafe(make)).unwrap_or_else(|_| {
            tracing::error!("a DNS message was not survived: this is a defect");
            None
        })?;
        let last = CODES.len() - 1;
        let code = CODES.iter().position(|(_, code)| *code == made.code);
        if let Some(count) = self.counts.codes.get(code.unwrap_or(last)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let truncated = u64::from(made.is_truncated);
        self.counts
            .truncated
            .fetch_add(truncated, Ordering::Relaxed);
        Some(made.bytes)
    }
}

impl Counts {
    fn indexed(&self, index: &Index) {
        self.services.store(index.services(), Ordering::Relaxed);
        self.revision.store(index.revision(), Ordering::Relaxed);
    }
}

/// Turns that count up would follow the pattern in which questions come (A, AAAA, A, …): splitmix64 breaks it.
fn scattered(turn: u64) -> u64 {
    let mixed = turn.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Bytes of a question: a name, and EDNS with its options.
const QUESTION_MAX: usize = 4096;
const READ_AHEAD: usize = 4096;
/// TCP at once.
const CONNECTIONS_MAX: usize = 256;
/// Of one connection.
const QUESTIONS_MAX: usize = 10_000;
/// For the next whole question, and for taking an answer.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// Between two indexes, so that a mesh in motion is not indexed all the time.
const INDEX_PAUSE: Duration = Duration::from_millis(100);
const RECEIVE_PAUSE: Duration = Duration::from_millis(100);
/// Of questions that wait, asked of the kernel.
const RECEIVE_BYTES: usize = 4 << 20;
const BIND_TRIES: usize = 16;

#[cfg(test)]
mod tests;
