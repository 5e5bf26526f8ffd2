//! Bots: players from outside who log in, queue, fight and look at the board, most over HTTP/1.1 with a kept
//! connection, some over a WebSocket. Open loop: actions start on a clock, not when the answer before them came,
//! so a slow game shows as latency and skipped actions. Every failure is counted with its reason.

mod latency;
pub mod mover;
mod player;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use latency::Latencies;
use mover::Rooms;
use player::{Action, Bot};

use crate::process::{LANE, LANE_VERSION};

/// An action that is later than this is not done at all, but counted as skipped.
const LATE_MAX: Duration = Duration::from_secs(1);
/// Kinds of failure that are told apart; the rest is counted as one.
const KINDS_MAX: usize = 32;
/// One bot in this many plays over a WebSocket.
const LIVE_EVERY: usize = 6;
/// Players in each room.
const MOVERS: u32 = 4;
const ROOMS: u8 = 2;
/// Actions of the developer's bot, a second: few, so that the split of the others is theirs.
const LANE_RATE: f64 = 1.0;

#[derive(Clone, Debug)]
pub struct BotConfig {
    /// Where players come in; bot N takes the N-th address, round and round.
    pub gateway: Vec<SocketAddr>,
    /// Each is one player on one connection, with at most one action under way.
    pub bots: usize,
    /// Actions per second of all bots together.
    pub rate: f64,
    /// None: until the shutdown.
    pub duration: Option<Duration>,
    /// Where one more player comes in, who plays in a developer's lane, and those in rooms; none without an edge.
    pub edge: Option<Edge>,
}

#[derive(Clone, Copy, Debug)]
pub struct Edge {
    pub http: SocketAddr,
    pub room: SocketAddr,
}

impl BotConfig {
    /// What the demo runs with.
    pub fn demo(gateway: SocketAddr) -> Self {
        Self {
            gateway: vec![gateway],
            bots: 60,
            rate: 250.0,
            duration: None,
            edge: None,
        }
    }
}

/// What the bots saw. Serialised, because they run in a process of their own.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct BotSummary {
    pub elapsed_s: f64,
    /// Begun and answered or failed.
    pub actions: u64,
    pub logins: u64,
    /// Connections that broke and players who came back by their token.
    #[serde(default)]
    pub resumes: u64,
    /// Matches played, and those of them over a WebSocket.
    pub plays: u64,
    pub live_plays: u64,
    pub trainings: u64,
    pub boards: u64,
    /// Not begun, because their bot was busy with an earlier one for too long.
    pub skipped: u64,
    pub failed: u64,
    /// By what failed: `play: 503 no_healthy_upstream`.
    pub failures: BTreeMap<String, FailureCount>,
    /// Of successful actions, from when they were due to the last byte.
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// Plays and trainings by the version of battle that answered (of the last leg; a match of two players is told to
    /// both, so this is no fair sample of the split: the mesh's own counts are).
    pub versions: BTreeMap<String, u64>,
    /// Matches against another player, each counted for both.
    pub paired: u64,
    /// Plays in the lane, and those in it or outside of it that the wrong battle fought.
    pub lane_plays: u64,
    pub lane_astray: u64,
    pub rooms: Rooms,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureCount {
    pub count: u64,
    /// The message of the first.
    pub sample: String,
}

/// Plays until `shutdown` or the end of the duration; actions under way are finished.
pub async fn run(config: BotConfig, shutdown: impl Future<Output = ()>) -> BotSummary {
    let begin = Instant::now();
    let board = Arc::new(Mutex::new(Tally::default()));
    let mut bots = JoinSet::new();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    for (number, gateway) in (0..config.bots).zip(config.gateway.iter().cycle()) {
        let bot = Bot::new(number, *gateway, number % LIVE_EVERY == LIVE_EVERY - 1);
        let clock = Clock::of(number, &config, begin);
        let (board, stopped) = (board.clone(), stopped.clone());
        bots.spawn(async move { play(bot, clock, &board, until(stopped)).await });
    }
    if let Some(edge) = config.edge {
        let bot = Bot::new(config.bots, edge.http, false).coloured(LANE);
        let clock = Clock {
            next: begin,
            every: Duration::from_secs_f64(1.0 / LANE_RATE),
        };
        let (of_lane, ended) = (board.clone(), stopped.clone());
        bots.spawn(async move { play(bot, clock, &of_lane, until(ended)).await });
        for player in 0..MOVERS * u32::from(ROOMS) {
            let room = u8::try_from(player % u32::from(ROOMS)).unwrap_or(0) + 1;
            let (board, stopped) = (board.clone(), stopped.clone());
            bots.spawn(async move {
                match mover::play(player, room, edge.room, until(stopped)).await {
                    Ok(moved) => lock(&board).summary.rooms.add(&moved),
                    Err(error) => lock(&board).fail("move", "socket", error.to_string()),
                }
            });
        }
    }
    let over = async {
        match config.duration {
            Some(duration) => sleep_until(begin + duration).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = shutdown => {}
        () = over => {}
    }
    stop.send_replace(true);
    while let Some(ended) = bots.join_next().await {
        if let Err(error) = ended {
            lock(&board).fail("bot", "panic", error.to_string());
        }
    }
    let tally = std::mem::take(&mut *lock(&board));
    tally.summary(begin.elapsed())
}

async fn until(mut stopped: tokio::sync::watch::Receiver<bool>) {
    _ = stopped.wait_for(|stopped| *stopped).await;
}

/// When a bot acts: all bots together are evenly spaced.
struct Clock {
    next: Instant,
    every: Duration,
}

impl Clock {
    fn of(number: usize, config: &BotConfig, begin: Instant) -> Self {
        let gap = 1.0 / config.rate.clamp(0.001, 1e6);
        let every = Duration::from_secs_f64(gap * config.bots as f64);
        Self {
            next: begin + Duration::from_secs_f64(gap * number as f64),
            every,
        }
    }

    /// When the next action is due, and how many are too late to be done.
    fn tick(&mut self, now: Instant) -> (Instant, u64) {
        let mut skipped = 0;
        while now.saturating_duration_since(self.next) > LATE_MAX {
            self.next += self.every;
            skipped += 1;
        }
        let due = self.next;
        self.next += self.every;
        (due, skipped)
    }
}

async fn play(
    mut bot: Bot,
    mut clock: Clock,
    board: &Mutex<Tally>,
    ended: impl Future<Output = ()>,
) {
    tokio::pin!(ended);
    loop {
        let (due, skipped) = clock.tick(Instant::now());
        lock(board).summary.skipped += skipped;
        tokio::select! {
            biased;
            () = &mut ended => return,
            () = sleep_until(due) => {}
        }
        let action = bot.next();
        let done = bot.act(action).await;
        if let Ok(player::Done {
            version: Some(version),
            ..
        }) = &done
        {
            let summary = &mut lock(board).summary;
            summary.lane_plays += u64::from(bot.is_coloured());
            summary.lane_astray += u64::from(bot.is_coloured() != (version == LANE_VERSION));
        }
        lock(board).count(action, done, due.elapsed());
    }
}

fn lock(board: &Mutex<Tally>) -> std::sync::MutexGuard<'_, Tally> {
    board.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A mutex holds it, because all bots share one thread; nothing is awaited under it.
#[derive(Default)]
struct Tally {
    summary: BotSummary,
    latencies: Latencies,
}

impl Tally {
    fn count(
        &mut self,
        action: Action,
        done: Result<player::Done, player::Failure>,
        took: Duration,
    ) {
        self.summary.actions += 1;
        let done = match done {
            Ok(done) => done,
            Err(failure) => return self.fail(action.as_str(), &failure.kind, failure.message),
        };
        self.latencies.record(took);
        let summary = &mut self.summary;
        match action {
            Action::Resume if done.resumed => summary.resumes += 1,
            Action::Login | Action::Resume => summary.logins += 1,
            Action::Play => summary.plays += 1,
            Action::Spar => summary.trainings += 1,
            Action::Board => summary.boards += 1,
        }
        summary.live_plays += u64::from(done.live && action == Action::Play);
        summary.paired += u64::from(done.paired);
        if let Some(version) = done.version {
            *summary.versions.entry(version).or_default() += 1;
        }
    }

    fn fail(&mut self, action: &str, kind: &str, message: String) {
        self.summary.failed += 1;
        let failures = &mut self.summary.failures;
        let mut key = format!("{action}: {kind}");
        if failures.len() >= KINDS_MAX && !failures.contains_key(&key) {
            key = "other".into();
        }
        let failure = failures.entry(key).or_insert(FailureCount {
            count: 0,
            sample: message,
        });
        failure.count += 1;
    }

    fn summary(mut self, elapsed: Duration) -> BotSummary {
        self.summary.elapsed_s = elapsed.as_secs_f64();
        self.summary.p50_ms = self.latencies.quantile_ms(0.50);
        self.summary.p99_ms = self.latencies.quantile_ms(0.99);
        self.summary
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_clock_spaces_all_bots_evenly_and_skips_what_is_too_late() {
        let begin = Instant::now();
        let config = BotConfig {
            gateway: vec![],
            bots: 10,
            rate: 100.0,
            duration: None,
            edge: None,
        };
        let mut clock = Clock::of(3, &config, begin);
        assert_eq!(clock.tick(begin), (begin + Duration::from_millis(30), 0));
        assert_eq!(clock.tick(begin), (begin + Duration::from_millis(130), 0));
        let (due, skipped) = clock.tick(begin + Duration::from_millis(1540));
        assert_eq!((due - begin, skipped), (Duration::from_millis(630), 4));
    }

    #[tokio::test]
    async fn a_gateway_that_refuses_connections_is_counted_with_its_reason() {
        // Held, but nobody listens.
        let held = tokio::net::TcpSocket::new_v4().unwrap();
        held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let closed = held.local_addr().unwrap();
        let config = BotConfig {
            gateway: vec![closed],
            bots: 6,
            rate: 200.0,
            duration: Some(Duration::from_millis(200)),
            edge: None,
        };
        let summary = run(config, std::future::pending()).await;
        assert!(summary.failed > 0 && summary.failed == summary.actions);
        assert!(
            summary.failures.contains_key("login: connect"),
            "{:?}",
            summary.failures
        );
    }

    #[test]
    fn kinds_of_failure_are_bounded() {
        let mut tally = Tally::default();
        (0..100).for_each(|kind| tally.fail("play", &kind.to_string(), String::new()));
        assert_eq!(tally.summary.failures.len(), KINDS_MAX + 1);
        assert_eq!(tally.summary.failed, 100);
    }
}
