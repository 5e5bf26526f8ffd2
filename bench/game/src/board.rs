//! The board's reads over HTTP at 20,000 a second while Redis is well, killed, frozen or slow, beside a server that asks Redis
//! for every read, and Redis alone. One thread sends when it is time and counts from then, on core 1; the server, its board's
//! tasks and Redis have core 0.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use hdrhistogram::Histogram;
use phalanx_game::board::redis::{LiveConfig, RedisBoard, RedisConfig};
use phalanx_game::board::{
    Better, Board, BoardSpec, Kind, Own, PageQuery, PlayerId, Rank, Request, StoreState, now_ms,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::{Options, Row};

const MEMBERS: usize = 100_000;
const READS_PER_SECOND: u64 = 20_000;
const RANKS_PER_SECOND: u64 = 2_000;
const WRITES_PER_SECOND: u64 = 100;
const CONNECTIONS: usize = 64;
const SERVER_CORE: usize = 0;
const LOAD_CORE: usize = 1;
const NAME: &str = "bench";
const KEY: &str = "phalanx:{board:bench}:e1";
const PAGES: &str = "a page of 100 over HTTP at 20,000/s";
const RANKS: &str = "own place outside the top over HTTP at 2,000/s";
const PAGE: &str = "/top?limit=100";

pub fn run(options: &Options) -> anyhow::Result<Vec<Row>> {
    let mut figures = Figures::default();
    for _ in 0..options.rounds {
        round(options, &mut figures)?;
    }
    Ok(figures.rows)
}

/// Rows in the order of their first sample.
#[derive(Default)]
struct Figures {
    rows: Vec<Row>,
}

impl Figures {
    fn add(
        &mut self,
        case: &'static str,
        who: &'static str,
        unit: &'static str,
        bar: Option<&str>,
        sample: f64,
    ) {
        let known = self
            .rows
            .iter_mut()
            .find(|row| row.case == case && row.who == who && row.unit == unit);
        match known {
            Some(row) => row.samples.push(sample),
            None => self.rows.push(Row {
                case,
                who,
                unit,
                samples: vec![sample],
                bar: bar.map(str::to_owned),
                note: String::new(),
            }),
        }
    }

    fn note(&mut self, case: &'static str, who: &'static str, note: String) {
        for row in self
            .rows
            .iter_mut()
            .filter(|row| row.case == case && row.who == who)
        {
            row.note.clone_from(&note);
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Trouble {
    None,
    Killed,
    Frozen,
    Slow,
}

fn round(options: &Options, figures: &mut Figures) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let mut redis = Redis::start(directory.path())?;
    redis.fill()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .on_thread_start(|| pin(0, SERVER_CORE))
        .enable_all()
        .build()?;
    let (proxy, delay_ms) = runtime.block_on(proxy(redis.port))?;
    let mut spec = BoardSpec::new(NAME, Kind::Best(Better::Higher));
    spec.top = 10_000;
    let board = Arc::new(Board::try_new(spec)?);
    let config = LiveConfig::new(
        RedisConfig::new(format!("redis://{proxy}")),
        Some(directory.path().join("board")),
    );
    let live = runtime.block_on(RedisBoard::start(board.clone(), config))?;
    wait(&board, StoreState::Up)?;
    let live = Arc::new(live);
    let writer = runtime.spawn(write(live.clone()));
    let address = runtime.block_on(serve(Ours(board.clone())))?;
    let seconds = Duration::from_secs(options.seconds);

    for (who, trouble) in [
        ("phalanx, redis well", Trouble::None),
        ("phalanx, redis killed", Trouble::Killed),
        ("phalanx, redis frozen", Trouble::Frozen),
        ("phalanx, redis slow (+1 s)", Trouble::Slow),
    ] {
        for (case, per_second, bar, path) in [
            (
                PAGES,
                READS_PER_SECOND,
                "≤ 1.2 ms",
                (|_| PAGE.to_owned()) as fn(u64) -> String,
            ),
            (RANKS, RANKS_PER_SECOND, "≤ 5 ms", rank_of),
        ] {
            wait(&board, StoreState::Up)?;
            runtime.block_on(exact(&board))?;
            let before = board.metrics();
            let load = std::thread::spawn(move || load(address, per_second, seconds, path));
            // It happens in the middle of what is measured.
            std::thread::sleep(seconds / 4);
            match trouble {
                Trouble::None => {}
                Trouble::Killed => redis.kill()?,
                Trouble::Frozen => redis.signal(libc::SIGSTOP)?,
                Trouble::Slow => delay_ms.store(1000, Ordering::Relaxed),
            }
            let measured = load
                .join()
                .map_err(|_| anyhow::anyhow!("the load ended badly"))??;
            let after = board.metrics();
            match trouble {
                Trouble::None => {}
                Trouble::Killed => redis.restart()?,
                Trouble::Frozen => redis.signal(libc::SIGCONT)?,
                Trouble::Slow => delay_ms.store(0, Ordering::Relaxed),
            }
            figures.add(case, who, "P99 ms", Some(bar), measured.p99_ms());
            figures.add(case, who, "P50 ms", None, measured.p50_ms());
            figures.add(case, who, "answers not 200", Some("0"), measured.bad as f64);
            if case == RANKS {
                let exact = after.rank_store - before.rank_store;
                let estimated = after.rank_estimated - before.rank_estimated;
                figures.note(
                    case,
                    who,
                    format!("last round: {exact} exact, {estimated} estimated"),
                );
            }
        }
    }
    wait(&board, StoreState::Up)?;

    let client = redis::Client::open(format!("redis://127.0.0.1:{}", redis.port))?;
    let connection = runtime.block_on(client.get_multiplexed_async_connection())?;
    let direct = runtime.block_on(serve(Direct(connection)))?;
    let load =
        std::thread::spawn(move || load(direct, READS_PER_SECOND, seconds, |_| PAGE.to_owned()));
    let measured = load
        .join()
        .map_err(|_| anyhow::anyhow!("the load ended badly"))??;
    let who = "redis asked by every read";
    figures.add(PAGES, who, "P99 ms", None, measured.p99_ms());
    figures.add(PAGES, who, "P50 ms", None, measured.p50_ms());
    figures.note(
        PAGES,
        who,
        "redis well; without JSON, the bare answer".to_owned(),
    );

    let (p50, p99, per_second) = redis.benchmark()?;
    figures.add(
        "ZRANGE 0 99 WITHSCORES, closed loop",
        "redis-benchmark -c 64",
        "P99 ms",
        None,
        p99,
    );
    figures.add(
        "ZRANGE 0 99 WITHSCORES, closed loop",
        "redis-benchmark -c 64",
        "P50 ms",
        None,
        p50,
    );
    figures.add(
        "ZRANGE 0 99 WITHSCORES, closed loop",
        "redis-benchmark -c 64",
        "reads/s",
        None,
        per_second,
    );

    in_process(&board, options, figures);
    writer.abort();
    Ok(())
}

/// Results all the while, so that there is a new version at every refresh.
async fn write(live: Arc<RedisBoard>) {
    let mut every = tokio::time::interval(Duration::from_millis(1000 / WRITES_PER_SECOND));
    loop {
        every.tick().await;
        let player = some_below(1000);
        let player = PlayerId::parse(&format!("p{player}")).expect("a player");
        if let Err(error) = live.submit(&player, (MEMBERS + 1) as i64).await {
            eprintln!("a result was not accepted: {error}");
        }
    }
}

/// Some number: which player's result it is doesn't matter.
fn some_below(bound: u64) -> u64 {
    now_ms().wrapping_mul(0x9E37_79B9_7F4A_7C15) % bound
}

/// Redis answers about players outside the top.
async fn exact(board: &Board) -> anyhow::Result<()> {
    let own = Own::new("p50000")?;
    let deadline = Instant::now() + Duration::from_secs(30);
    while !matches!(board.rank(&own, now_ms()).await?.rank, Rank::Store { .. }) {
        anyhow::ensure!(
            Instant::now() < deadline,
            "redis doesn't answer about players"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// Some of 1,000 players far below the top; their score is told, as a profile would.
fn rank_of(read: u64) -> String {
    let player = 50_000 + read % 1000;
    format!("/rank/p{player}?score={}", MEMBERS as u64 - player)
}

fn in_process(board: &Arc<Board>, options: &Options, figures: &mut Figures) {
    let case = "reads in process, one thread";
    let per_second = |mut read: Box<dyn FnMut()>| {
        let (began, lasts) = (
            Instant::now(),
            Duration::from_secs(options.seconds).min(Duration::from_secs(2)),
        );
        let mut reads = 0_u64;
        while began.elapsed() < lasts {
            for _ in 0..100 {
                read();
            }
            reads += 100;
        }
        reads as f64 / began.elapsed().as_secs_f64()
    };
    let query = PageQuery {
        limit: 100,
        ..PageQuery::default()
    };
    let rows = {
        let board = board.clone();
        per_second(Box::new(move || {
            let page = board.page(&query, now_ms()).expect("a page");
            let sum: u64 = page.rows().map(|row| row.order.bits()).sum();
            std::hint::black_box(sum);
        }))
    };
    figures.add(
        case,
        "a page of 100, its rows walked",
        "reads/s",
        None,
        rows,
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let answers = {
        let board = board.clone();
        per_second(Box::new(move || {
            let request = Request {
                path: "top",
                query: "limit=100",
                ..Request::default()
            };
            std::hint::black_box(runtime.block_on(board.answer(request, now_ms())));
        }))
    };
    figures.add(
        case,
        "a page of 100 as an HTTP answer",
        "reads/s",
        None,
        answers,
    );
    let own = Own::new("p500").expect("a player");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let ranks = {
        let board = board.clone();
        per_second(Box::new(move || {
            std::hint::black_box(runtime.block_on(board.rank(&own, now_ms()))).expect("a place");
        }))
    };
    figures.add(case, "own place inside the top", "reads/s", None, ranks);
}

fn wait(board: &Board, state: StoreState) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while board.store() != state
        || board
            .snapshot()
            .is_none_or(|newest| newest.total() < MEMBERS as u64)
    {
        if Instant::now() > deadline {
            bail!("the board's store is {:?}, not {state:?}", board.store());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// A process, or with 0 this thread, on one core, if there are two.
fn pin(process: i32, core: usize) {
    if std::thread::available_parallelism().is_ok_and(|cores| cores.get() < 2) {
        return;
    }
    // SAFETY: a set of cores is plain bits, and lives through the call.
    unsafe {
        let mut cores: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut cores);
        libc::sched_setaffinity(process, size_of::<libc::cpu_set_t>(), &cores);
    }
}

struct Measured {
    ns: Histogram<u64>,
    answers: u64,
    bad: u64,
}

impl Measured {
    fn p99_ms(&self) -> f64 {
        self.ns.value_at_quantile(0.99) as f64 / 1e6
    }

    fn p50_ms(&self) -> f64 {
        self.ns.value_at_quantile(0.5) as f64 / 1e6
    }
}

/// One keep-alive connection, with at most one request under way.
struct Connection {
    stream: TcpStream,
    /// When the request that is under way should have been sent.
    due: Option<Instant>,
    answer: Vec<u8>,
}

/// Open loop: each read has its time from the beginning and counts from there, also if it had to wait for a connection.
fn load(
    address: SocketAddr,
    per_second: u64,
    lasts: Duration,
    path: impl Fn(u64) -> String,
) -> anyhow::Result<Measured> {
    pin(0, LOAD_CORE);
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        connections.push(Connection {
            stream,
            due: None,
            answer: Vec::new(),
        });
    }
    let epoll = Epoll::new()?;
    for (at, connection) in connections.iter().enumerate() {
        epoll.add(&connection.stream, at as u64)?;
    }
    let mut free: Vec<usize> = (0..CONNECTIONS).collect();
    let mut measured = Measured {
        ns: Histogram::new(3)?,
        answers: 0,
        bad: 0,
    };
    let reads = per_second * lasts.as_millis() as u64 / 1000;
    let (began, mut sent) = (Instant::now(), 0);
    let mut bytes = vec![0; 64 << 10];
    while measured.answers < reads {
        while sent < reads && !free.is_empty() {
            let due = began + Duration::from_nanos(sent * 1_000_000_000 / per_second);
            if due > Instant::now() {
                break;
            }
            let Some(at) = free.pop() else { break };
            let request = format!("GET {} HTTP/1.1\r\nhost: board\r\n\r\n", path(sent));
            connections[at].stream.write_all(request.as_bytes())?;
            connections[at].due = Some(due);
            sent += 1;
        }
        for at in epoll.ready()? {
            let connection = &mut connections[at as usize];
            match connection.stream.read(&mut bytes) {
                Ok(0) => bail!("the server closed a connection"),
                Ok(read) => connection.answer.extend_from_slice(&bytes[..read]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error.into()),
            }
            if whole(&connection.answer) {
                let due = connection.due.take().context("an answer to nothing")?;
                measured.ns.record(due.elapsed().as_nanos() as u64)?;
                measured.answers += 1;
                measured.bad += u64::from(!connection.answer.starts_with(b"HTTP/1.1 200"));
                connection.answer.clear();
                free.push(at as usize);
            }
        }
        if began.elapsed() > lasts + Duration::from_secs(60) {
            bail!(
                "{} of {reads} reads were not answered",
                reads - measured.answers
            );
        }
    }
    Ok(measured)
}

fn whole(answer: &[u8]) -> bool {
    let Some(head) = answer.windows(4).position(|four| four == b"\r\n\r\n") else {
        return false;
    };
    let text = std::str::from_utf8(&answer[..head]).unwrap_or_default();
    let length = text
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.and_then(|length| length.parse().ok()).unwrap_or(0);
    answer.len() >= head + 4 + length
}

struct Epoll(i32);

impl Epoll {
    fn new() -> anyhow::Result<Self> {
        // SAFETY: takes no pointers.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        Ok(Self(fd))
    }

    fn add(&self, stream: &TcpStream, at: u64) -> anyhow::Result<()> {
        let mut event = libc::epoll_event {
            events: libc::EPOLLIN as u32,
            u64: at,
        };
        // SAFETY: both descriptors are open, the event lives through the call.
        let added =
            unsafe { libc::epoll_ctl(self.0, libc::EPOLL_CTL_ADD, stream.as_raw_fd(), &mut event) };
        if added < 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        Ok(())
    }

    /// Without waiting.
    fn ready(&self) -> anyhow::Result<Vec<u64>> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; CONNECTIONS];
        // SAFETY: room for as many events as is said.
        let ready = unsafe { libc::epoll_wait(self.0, events.as_mut_ptr(), CONNECTIONS as i32, 0) };
        if ready < 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        Ok(events[..ready as usize]
            .iter()
            .map(|event| event.u64)
            .collect())
    }
}

impl Drop for Epoll {
    fn drop(&mut self) {
        // SAFETY: opened by `new`, closed once.
        unsafe { libc::close(self.0) };
    }
}

/// What answers a path and query with a status, headers and a body.
trait Service: Clone + Send + 'static {
    fn answer(&mut self, target: &str, out: &mut Vec<u8>) -> impl Future<Output = ()> + Send;
}

#[derive(Clone)]
struct Ours(Arc<Board>);

impl Service for Ours {
    async fn answer(&mut self, target: &str, out: &mut Vec<u8>) {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let request = Request {
            path: path.trim_start_matches('/'),
            query,
            ..Request::default()
        };
        let answer = self.0.answer(request, now_ms()).await;
        write!(out, "HTTP/1.1 {} -\r\n", answer.status).expect("memory");
        for (name, value) in &answer.headers {
            write!(out, "{name}: {value}\r\n").expect("memory");
        }
        if answer.header("content-length").is_none() {
            write!(out, "content-length: {}\r\n", answer.body.len()).expect("memory");
        }
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(&answer.body);
    }
}

/// What most do: ask Redis.
#[derive(Clone)]
struct Direct(redis::aio::MultiplexedConnection);

impl Service for Direct {
    async fn answer(&mut self, _target: &str, out: &mut Vec<u8>) {
        let mut command = redis::cmd("ZRANGE");
        command.arg(KEY).arg(0).arg(99).arg("WITHSCORES");
        let rows: redis::RedisResult<Vec<(String, f64)>> = command.query_async(&mut self.0).await;
        let mut body = Vec::new();
        let status = if rows.is_ok() { 200 } else { 503 };
        for (player, order) in rows.unwrap_or_default() {
            writeln!(body, "{player} {order}").expect("memory");
        }
        write!(
            out,
            "HTTP/1.1 {status} -\r\ncontent-length: {}\r\n\r\n",
            body.len()
        )
        .expect("memory");
        out.extend_from_slice(&body);
    }
}

async fn serve(service: impl Service) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut service = service.clone();
            tokio::spawn(async move {
                stream.set_nodelay(true).ok()?;
                let (mut request, mut answer) = (Vec::new(), Vec::new());
                let mut bytes = vec![0; 4096];
                loop {
                    let read = stream
                        .read(&mut bytes)
                        .await
                        .ok()
                        .filter(|read| *read > 0)?;
                    request.extend_from_slice(&bytes[..read]);
                    if !request.ends_with(b"\r\n\r\n") {
                        continue;
                    }
                    let head = std::str::from_utf8(&request).ok()?;
                    let target = head.split(' ').nth(1)?.to_owned();
                    request.clear();
                    answer.clear();
                    service.answer(&target, &mut answer).await;
                    stream.write_all(&answer).await.ok()?;
                }
                #[allow(unreachable_code)]
                Some(())
            });
        }
    });
    Ok(address)
}

/// Between the board and Redis: holds answers back for a while that can be changed.
async fn proxy(port: u16) -> anyhow::Result<(SocketAddr, Arc<AtomicU64>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let delay_ms = Arc::new(AtomicU64::new(0));
    let delay = delay_ms.clone();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let delay = delay.clone();
            tokio::spawn(async move {
                let mut server = tokio::net::TcpStream::connect(("127.0.0.1", port))
                    .await
                    .ok()?;
                let (mut from_client, mut to_client) = client.split();
                let (mut from_server, mut to_server) = server.split();
                let back = async {
                    let mut bytes = vec![0; 64 << 10];
                    loop {
                        let read = from_server
                            .read(&mut bytes)
                            .await
                            .ok()
                            .filter(|read| *read > 0)?;
                        let delay = delay.load(Ordering::Relaxed);
                        if delay > 0 {
                            tokio::time::sleep(Duration::from_millis(delay)).await;
                        }
                        to_client.write_all(&bytes[..read]).await.ok()?;
                    }
                };
                tokio::select! {
                    done = back => done,
                    _ = tokio::io::copy(&mut from_client, &mut to_server) => Some(()),
                }
            });
        }
    });
    Ok((address, delay_ms))
}

struct Redis {
    child: Child,
    port: u16,
    directory: std::path::PathBuf,
}

impl Redis {
    fn start(directory: &std::path::Path) -> anyhow::Result<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?
            .local_addr()?
            .port();
        let directory = directory.to_owned();
        let child = Self::spawn(port, &directory)?;
        let redis = Self {
            child,
            port,
            directory,
        };
        redis.ready()?;
        Ok(redis)
    }

    fn spawn(port: u16, directory: &std::path::Path) -> anyhow::Result<Child> {
        Command::new("redis-server")
            .args([
                "--port",
                &port.to_string(),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "yes",
            ])
            .arg("--dir")
            .arg(directory)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("redis-server")
            .inspect(|child| pin(child.id() as i32, SERVER_CORE))
    }

    fn ready(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.try_ping().is_none() {
            if Instant::now() > deadline {
                bail!("redis-server doesn't answer");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn try_ping(&self) -> Option<()> {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.port)).ok()?;
        let mut connection = client.get_connection().ok()?;
        redis::cmd("PING").query(&mut connection).ok()
    }

    /// Player n has place n + 1.
    fn fill(&self) -> anyhow::Result<()> {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.port))?;
        let mut connection = client.get_connection()?;
        let law =
            phalanx_game::board::Law::try_new(&BoardSpec::new(NAME, Kind::Best(Better::Higher)))?;
        let mut player = 0;
        while player < MEMBERS {
            let mut add = redis::cmd("ZADD");
            add.arg(KEY);
            for _ in 0..1000 {
                let order = law.order((MEMBERS - player) as i64, 0)?;
                add.arg(order.bits()).arg(format!("p{player}"));
                player += 1;
            }
            add.exec(&mut connection)?;
        }
        Ok(())
    }

    fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    fn restart(&mut self) -> anyhow::Result<()> {
        self.child = Self::spawn(self.port, &self.directory)?;
        self.ready()
    }

    fn signal(&self, signal: i32) -> anyhow::Result<()> {
        // SAFETY: takes no pointers; the child has not been waited for.
        let sent = unsafe { libc::kill(self.child.id() as i32, signal) };
        anyhow::ensure!(sent == 0, "{}", std::io::Error::last_os_error());
        Ok(())
    }

    /// P50 and P99 in ms, reads per second.
    fn benchmark(&self) -> anyhow::Result<(f64, f64, f64)> {
        let output = Command::new("redis-benchmark")
            .args([
                "-p",
                &self.port.to_string(),
                "-c",
                "64",
                "-n",
                "50000",
                "--csv",
            ])
            .args(["ZRANGE", KEY, "0", "99", "WITHSCORES"])
            .output()
            .context("redis-benchmark")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text
            .lines()
            .last()
            .context("redis-benchmark says nothing")?;
        // The command is the first field, with blanks and quotes.
        let fields: Vec<f64> = line
            .split(',')
            .filter_map(|field| field.trim_matches('"').parse().ok())
            .collect();
        // Reads per second, then average, least, P50, P95, P99 and most, in ms.
        let [per_second, _, _, p50, _, p99, _] = fields[..] else {
            bail!("redis-benchmark says {line}");
        };
        Ok((p50, p99, per_second))
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.signal(libc::SIGCONT);
        let _ = self.kill();
    }
}
