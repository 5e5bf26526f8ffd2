//! A constant rate, whatever becomes of the answers: requests have their times from the beginning, and what one takes is
//! counted from its time, also if it had to wait for a connection to become free. So a proxy that stops for a while is told
//! of every request that would have come meanwhile.

use std::collections::VecDeque;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;

/// Prints `sent N`, `answered N`, and `p50 µs`, `p99 µs`, `max µs`: what is not answered in the end has taken until then.
pub async fn load(
    to: SocketAddr,
    rate: u32,
    connections: usize,
    seconds: u64,
) -> anyhow::Result<()> {
    ensure!(rate > 0 && connections > 0, "no load");
    let count = u64::from(rate) * seconds;
    let pace = Arc::new(Pace::default());
    let mut readers = JoinSet::new();
    for _ in 0..connections {
        let socket = tokio::net::TcpStream::connect(to).await?.into_std()?;
        socket.set_nodelay(true)?;
        let reading = tokio::net::TcpStream::from_std(socket.try_clone()?)?;
        let lane = pace.join(socket);
        readers.spawn(read(reading, pace.clone(), lane));
    }
    let ticking = pace.clone();
    let clock = std::thread::spawn(move || ticking.tick(rate, count));
    let until = Instant::now() + Duration::from_secs(seconds) + PATIENCE;
    while pace.answered() < count {
        if let Some(ended) = readers.try_join_next() {
            ended??;
            bail!("the other end closed a connection");
        }
        if Instant::now() > until {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let ended = clock.join().ok().context("the clock panicked")?;
    ended?;
    let answered = pace.answered();
    let mut took = pace.close();
    ensure!(!took.is_empty(), "no request was sent");
    took.sort_unstable();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
    println!("sent {count}\nanswered {answered}");
    println!("p50 {}\np99 {}\nmax {}", at(0.50), at(0.99), at(1.0));
    Ok(())
}

/// Shared by the thread that knows the time and the tasks that read.
#[derive(Default)]
struct Pace(Mutex<State>);

#[derive(Default)]
struct State {
    lanes: Vec<Lane>,
    free: VecDeque<usize>,
    /// Requests whose time has come while no connection was free.
    late: VecDeque<Instant>,
    took_us: Vec<u64>,
}

struct Lane {
    socket: std::net::TcpStream,
    /// Of the request under way.
    due: Instant,
}

impl Pace {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(&self, socket: std::net::TcpStream) -> usize {
        let mut state = self.lock();
        let due = Instant::now();
        state.lanes.push(Lane { socket, due });
        let lane = state.lanes.len() - 1;
        state.free.push_back(lane);
        lane
    }

    fn answered(&self) -> u64 {
        self.lock().took_us.len() as u64
    }

    /// What each took; those without an answer have waited until now.
    fn close(&self) -> Vec<u64> {
        let mut state = self.lock();
        let mut took = std::mem::take(&mut state.took_us);
        let busy = |(lane, _): &(usize, &Lane)| !state.free.contains(lane);
        let lanes = state.lanes.iter().enumerate().filter(busy);
        let waiting = lanes.map(|(_, lane)| &lane.due).chain(&state.late);
        took.extend(waiting.map(|due| due.elapsed().as_micros() as u64));
        took
    }

    fn tick(&self, rate: u32, count: u64) -> anyhow::Result<()> {
        sharpen();
        let begun = Instant::now();
        for number in 0..count {
            let due = begun + Duration::from_nanos(number * 1_000_000_000 / u64::from(rate));
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let mut state = self.lock();
            match state.free.pop_front() {
                Some(lane) => state.send(lane, due)?,
                None => state.late.push_back(due),
            }
        }
        Ok(())
    }

    fn answer(&self, lane: usize) -> anyhow::Result<()> {
        let mut state = self.lock();
        let took = state.lanes[lane].due.elapsed();
        state.took_us.push(took.as_micros() as u64);
        match state.late.pop_front() {
            Some(due) => state.send(lane, due)?,
            None => state.free.push_back(lane),
        }
        Ok(())
    }
}

impl State {
    fn send(&mut self, lane: usize, due: Instant) -> anyhow::Result<()> {
        let lane = &mut self.lanes[lane];
        lane.due = due;
        // One request is under way on a connection: there is room for it.
        Ok(lane.socket.write_all(REQUEST)?)
    }
}

async fn read(
    mut stream: tokio::net::TcpStream,
    pace: Arc<Pace>,
    lane: usize,
) -> anyhow::Result<()> {
    let (mut buffer, mut filled) = (vec![0; 16 * 1024], 0);
    loop {
        let read = stream.read(&mut buffer[filled..]).await?;
        if read == 0 {
            return Ok(());
        }
        filled += read;
        let got = &buffer[..filled];
        let Some(head) = got.windows(4).position(|w| w == b"\r\n\r\n") else {
            continue;
        };
        let text = std::str::from_utf8(&got[..head])?;
        ensure!(text.starts_with("HTTP/1.1 200"), "answered: {text}");
        let mut lines = text.lines().filter_map(|line| line.split_once(':'));
        let length = lines.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        let length: usize = length.context("no length")?.1.trim().parse()?;
        if filled < head + 4 + length {
            continue;
        }
        ensure!(filled == head + 4 + length, "more than an answer");
        filled = 0;
        pace.answer(lane)?;
    }
}

/// Lets the kernel wake this thread when it asked to be, instead of up to 50 µs later.
pub fn sharpen() {
    let one_ns: libc::c_ulong = 1;
    // SAFETY: takes two integers, and changes how this thread's timers are grouped.
    #[allow(unsafe_code)]
    unsafe {
        libc::prctl(libc::PR_SET_TIMERSLACK, one_ns);
    }
}

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: backend\r\nUser-Agent: bench\r\n\r\n";
/// For answers that are late.
const PATIENCE: Duration = Duration::from_secs(20);
