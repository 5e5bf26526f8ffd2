//! The board of ratings, over HTTP and JSON: a board of the game kit whose store is this process or a Redis (`store`).
//! Readers answer from one snapshot and say how old it is (`X-Cache`, `Age`, `ETag`, `Cache-Status`). Scores may come again
//! (the mesh retries them): each match counts once. Players, remembered matches and what a reader may ask for are bounded.

mod store;

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Json, Query, State};
use axum::http::header::IF_NONE_MATCH;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use phalanx_game::board::memory::MemoryOptions;
use phalanx_game::board::{self, Answer, Board, Page, PageQuery, PlayerId, Version};
use phalanx_telemetry::metrics::{CONTENT_TYPE, Exposition};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::Notify;

use crate::battle::NAME_MAX;
use crate::serve::{self, ServiceConfig, Stop};
use store::{PLAYERS_MAX, RATING_MAX, Store};

pub const NAME: &str = "leaderboard";

/// Matches remembered to tell a repeated score from a new one.
const MATCHES_MAX: usize = 65_536;
const SCORES_MAX: usize = 8;
const TOP_MAX: usize = 100;
const BODY_MAX: usize = 4096;
/// A score after a pause is on the board at once, the next ones within this time.
const PERIOD: Duration = Duration::from_millis(50);
/// What a reader is told of an answer's age; the gateway hands it on.
pub const FRESHNESS: [&str; 5] = ["x-cache", "age", "etag", "cache-status", "cache-control"];

pub async fn run(
    config: ServiceConfig,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    serve(config.bind().await?, config, shutdown).await
}

/// The same on a socket that is bound already.
pub async fn serve(
    listener: TcpListener,
    config: ServiceConfig,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let stop = Stop::on(shutdown);
    let store = match config.redis {
        None => Store::in_process(MemoryOptions {
            players_max: PLAYERS_MAX,
            period: PERIOD,
        })?,
        Some(url) => {
            let home: PathBuf = config
                .folder
                .context("a leaderboard in Redis keeps a log: give it --folder")?
                .join(NAME);
            Store::in_redis(&url, &home).await?
        }
    };
    let hall = Arc::new(Hall::new(store));
    let router = Router::new()
        .route("/scores", post(record))
        .route("/top", get(top))
        .route("/kept", get(kept))
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok"))
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(hall.clone());
    let publish = async {
        let mut every = tokio::time::interval(PERIOD);
        loop {
            every.tick().await;
            hall.tick();
        }
    };
    tokio::select! {
        served = serve::http(NAME, listener, router, &stop) => served,
        () = publish => Ok(()),
    }
}

/// `POST /scores`: what one match did to its players.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MatchScores {
    pub match_id: String,
    /// 1 to 8.
    pub scores: Vec<Score>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Score {
    pub player: String,
    /// After the match.
    pub rating: u32,
    pub won: bool,
}

/// Its answer: false when the match was counted before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    pub recorded: bool,
}

/// `GET /kept`: where the board is kept, and how it was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    pub in_redis: bool,
    /// Whether the store is there now.
    pub up: bool,
    /// How often it was found to be away.
    pub outages: u64,
    /// Results that were counted and have yet to arrive there.
    pub pending: u64,
    /// Reads that were answered, by `X-Cache`.
    pub hits: u64,
    pub stale: u64,
    /// Reads that were not.
    pub refused: u64,
    /// The oldest answer's age, seconds.
    pub oldest_s: u64,
}

/// `GET /top?n=10`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Top {
    pub top: Vec<Rank>,
    /// Counted since the start.
    pub matches: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rank {
    pub rank: u32,
    pub player: String,
    pub rating: u32,
    pub won: u32,
    pub lost: u32,
}

#[derive(Deserialize)]
struct TopQuery {
    #[serde(default = "ten")]
    n: usize,
}

fn ten() -> usize {
    10
}

type Shared = State<Arc<Hall>>;

async fn record(State(hall): Shared, Json(scores): Json<MatchScores>) -> Response {
    let named = |name: &String| (1..=NAME_MAX).contains(&name.len());
    let fits = named(&scores.match_id)
        && (1..=SCORES_MAX).contains(&scores.scores.len())
        && scores
            .scores
            .iter()
            .all(|score| PlayerId::check(&score.player).is_ok());
    if !fits {
        return bad_request("a match needs an id and 1 to 8 named players");
    }
    // Whoever asked may hang up: what was begun is counted whole, or taken back.
    let recording = tokio::spawn(async move { hall.record(scores).await });
    let recorded = recording.await.map_err(anyhow::Error::from);
    match recorded.and_then(|recorded| recorded) {
        Ok(recorded) => Json(Recorded { recorded }).into_response(),
        Err(error) => {
            let message = error.to_string();
            (StatusCode::SERVICE_UNAVAILABLE, message).into_response()
        }
    }
}

fn bad_request(message: &str) -> Response {
    (StatusCode::BAD_REQUEST, message.to_owned()).into_response()
}

async fn top(State(hall): Shared, Query(query): Query<TopQuery>, headers: HeaderMap) -> Response {
    let seen = headers.get(IF_NONE_MATCH).and_then(|tag| tag.to_str().ok());
    let now_ms = board::now_ms();
    let limit = query.n.clamp(1, TOP_MAX);
    let query = PageQuery {
        limit,
        ..PageQuery::default()
    };
    let (page, top) = match hall.top(&query, now_ms) {
        Ok(read) => read,
        Err(error) => {
            hall.lock().reads.refused += 1;
            return (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response();
        }
    };
    // Its headers; the body here has the matches won and lost besides.
    let answer = hall.board().page_answer(&page, seen);
    hall.lock().reads.count(&answer);
    let mut response = match answer.status {
        304 => StatusCode::NOT_MODIFIED.into_response(),
        _ => Json(top).into_response(),
    };
    for (name, value) in answer.headers {
        if FRESHNESS.contains(&name)
            && let Ok(value) = value.parse()
        {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

async fn kept(State(hall): Shared) -> Json<Kept> {
    Json(hall.kept())
}

async fn metrics(State(hall): Shared) -> Response {
    let mut out = Exposition::new();
    hall.store.write(&mut out);
    ([("content-type", CONTENT_TYPE)], out.finish()).into_response()
}

/// The board, and what it doesn't know: matches won and lost.
struct Hall {
    store: Store,
    /// A mutex, because the process has one thread and nothing is awaited under it.
    books: Mutex<Books>,
    /// A match's result is kept, or is not.
    settled: Notify,
}

#[derive(Default)]
struct Books {
    seen: HashSet<Arc<str>>,
    seen_order: VecDeque<Arc<str>>,
    /// Those of them whose results are on their way to be kept.
    underway: HashSet<Arc<str>>,
    tallies: HashMap<String, Tally>,
    matches: u64,
    /// As they were when the board's newest version was published: what is told with it.
    told: Told,
    reads: Reads,
}

#[derive(Clone, Copy, Default)]
struct Tally {
    won: u32,
    lost: u32,
    /// What the store has, or has coming.
    rating: Option<i64>,
}

#[derive(Default)]
struct Told {
    version: Option<Version>,
    /// In the order of the places, as many as anybody may ask for.
    tallies: Vec<Tally>,
    matches: u64,
}

#[derive(Default)]
struct Reads {
    hits: u64,
    stale: u64,
    refused: u64,
    oldest_s: u64,
}

impl Hall {
    fn new(store: Store) -> Self {
        let hall = Self {
            store,
            books: Mutex::default(),
            settled: Notify::new(),
        };
        hall.tell(&mut hall.lock());
        hall
    }

    fn board(&self) -> &Arc<Board> {
        self.store.board()
    }

    /// False: the match was counted before.
    async fn record(&self, scores: MatchScores) -> anyhow::Result<bool> {
        for Score { player, .. } in &scores.scores {
            // Redis may be away, but keeps everybody: what was said before holds. The process lets its lowest go.
            let lasts = matches!(self.store, Store::Redis(_));
            if lasts && self.lock().rating(player).is_some() {
                continue;
            }
            let known = self.store.score(player).await?.unwrap_or(0);
            let mut books = self.lock();
            // Another match of hers may have been counted meanwhile.
            if !lasts || books.rating(player).is_none() {
                books.remember(player, known);
            }
        }
        let match_id: Arc<str> = scores.match_id.into();
        // What is being counted is not kept yet.
        loop {
            let settled = self.settled.notified();
            if !self.lock().underway.contains(&match_id) {
                break;
            }
            settled.await;
        }
        let changes: Vec<i64> = {
            let mut books = self.lock();
            if !books.is_new(match_id.clone()) {
                return Ok(false);
            }
            books.underway.insert(match_id.clone());
            let changes = scores.scores.iter().map(|score| books.count(score));
            changes.collect()
        };
        let added = scores.scores.iter().zip(&changes);
        let added = added.map(|(score, change)| self.store.add(&score.player, *change));
        let added = futures_util::future::join_all(added).await;
        let mut books = self.lock();
        books.underway.remove(&match_id);
        self.settled.notify_waiters();
        let mut refused = Ok(());
        for ((score, change), added) in scores.scores.iter().zip(&changes).zip(added) {
            if let Err(error) = added {
                books.take_back(score, *change);
                refused = Err(error);
            }
        }
        self.forget(&mut books);
        if let Err(error) = refused {
            // It may come again: whoever was counted changes nothing then.
            books.unsee(&match_id);
            return Err(error);
        }
        self.tell(&mut books);
        Ok(true)
    }

    fn tick(&self) {
        let mut books = self.lock();
        self.store.tick();
        self.tell(&mut books);
    }

    fn top(&self, query: &PageQuery, now_ms: u64) -> Result<(Page, Top), board::ReadError> {
        let mut books = self.lock();
        self.tell(&mut books);
        let page = self.board().page(query, now_ms)?;
        // With Redis another version may just have come: then the newest counts are told with it.
        let belongs = books.told.version == Some(page.version());
        let rows = page.rows().enumerate().map(|(at, row)| {
            let told = books.told.tallies.get(at).filter(|_| belongs);
            let tally = told.or_else(|| books.tallies.get(row.player));
            let tally = tally.copied().unwrap_or_default();
            Rank {
                rank: u32::try_from(row.place).unwrap_or(u32::MAX),
                player: row.player.to_owned(),
                rating: row.score as u32,
                won: tally.won,
                lost: tally.lost,
            }
        });
        let top = Top {
            top: rows.collect(),
            matches: books.told.matches,
        };
        Ok((page, top))
    }

    fn kept(&self) -> Kept {
        let (pending, outages, up) = self.store.behind();
        let reads = &self.lock().reads;
        Kept {
            in_redis: matches!(self.store, Store::Redis(_)),
            up,
            outages,
            pending,
            hits: reads.hits,
            stale: reads.stale,
            refused: reads.refused,
            oldest_s: reads.oldest_s,
        }
    }

    /// Who has fallen off the board.
    fn forget(&self, books: &mut Books) {
        if books.tallies.len() > PLAYERS_MAX + SCORES_MAX {
            books.tallies.retain(|player, _| self.store.knows(player));
        }
    }

    /// After whatever may have published a version.
    fn tell(&self, books: &mut Books) {
        let Some(newest) = self.board().snapshot() else {
            return;
        };
        if books.told.version == Some(newest.version()) {
            return;
        }
        let tally = |player| books.tallies.get(player).copied().unwrap_or_default();
        let tallies = newest
            .entries()
            .take(TOP_MAX)
            .map(|entry| tally(entry.player));
        books.told = Told {
            version: Some(newest.version()),
            tallies: tallies.collect(),
            matches: books.matches,
        };
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Books {
    fn is_new(&mut self, match_id: Arc<str>) -> bool {
        if !self.seen.insert(match_id.clone()) {
            return false;
        }
        self.seen_order.push_back(match_id);
        if self.seen_order.len() > MATCHES_MAX
            && let Some(oldest) = self.seen_order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        self.matches += 1;
        true
    }

    fn unsee(&mut self, match_id: &str) {
        if self.seen.remove(match_id) {
            self.seen_order.retain(|seen| **seen != *match_id);
            self.matches -= 1;
        }
    }

    fn rating(&self, player: &str) -> Option<i64> {
        self.tallies.get(player)?.rating
    }

    fn remember(&mut self, player: &str, rating: i64) {
        let tally = self.tallies.entry(player.to_owned()).or_default();
        tally.rating = Some(rating);
    }

    /// What it changes in the player's rating.
    fn count(&mut self, score: &Score) -> i64 {
        let tally = self.tallies.entry(score.player.clone()).or_default();
        *tally.games(score.won) += 1;
        let rating = i64::from(score.rating).min(RATING_MAX);
        rating - tally.rating.replace(rating).unwrap_or(0)
    }

    fn take_back(&mut self, score: &Score, change: i64) {
        if let Some(tally) = self.tallies.get_mut(&score.player) {
            *tally.games(score.won) -= 1;
            tally.rating = tally.rating.map(|rating| rating - change);
        }
    }
}

impl Tally {
    fn games(&mut self, won: bool) -> &mut u32 {
        match won {
            true => &mut self.won,
            false => &mut self.lost,
        }
    }
}

impl Reads {
    /// As its headers tell the reader.
    fn count(&mut self, answer: &Answer) {
        match answer.header("x-cache") {
            Some("HIT") => self.hits += 1,
            _ => self.stale += 1,
        }
        let age_s = answer.header("age").and_then(|age| age.parse().ok());
        self.oldest_s = self.oldest_s.max(age_s.unwrap_or(0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(match_id: &str, player: &str, rating: u32, won: bool) -> MatchScores {
        let scores = vec![Score {
            player: player.into(),
            rating,
            won,
        }];
        MatchScores {
            match_id: match_id.into(),
            scores,
        }
    }

    fn hall() -> Hall {
        hall_of(MemoryOptions {
            players_max: PLAYERS_MAX,
            ..MemoryOptions::default()
        })
    }

    fn hall_of(options: MemoryOptions) -> Hall {
        Hall::new(Store::in_process(options).unwrap())
    }

    fn read(hall: &Hall) -> Top {
        hall.tick();
        hall.top(&PageQuery::default(), board::now_ms()).unwrap().1
    }

    #[tokio::test]
    async fn a_match_counts_once() {
        let hall = hall();
        assert!(hall.record(one("m1", "ann", 1016, true)).await.unwrap());
        assert!(!hall.record(one("m1", "ann", 1016, true)).await.unwrap());
        let top = read(&hall);
        assert_eq!(top.matches, 1);
        assert_eq!(
            (top.top[0].rating, top.top[0].won, top.top[0].lost),
            (1016, 1, 0)
        );
    }

    #[tokio::test]
    async fn who_tells_a_result_again_is_not_answered_before_it_is_kept() {
        let hall = Arc::new(hall());
        {
            let mut books = hall.lock();
            assert!(books.is_new("m1".into()));
            books.underway.insert("m1".into());
        }
        let telling = hall.clone();
        let again = async move { telling.record(one("m1", "ann", 1016, true)).await };
        let again = tokio::spawn(again);
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(!again.is_finished());
        {
            let mut books = hall.lock();
            books.unsee("m1");
            books.underway.clear();
        }
        hall.settled.notify_waiters();
        assert!(again.await.unwrap().unwrap(), "the first was not");
        assert_eq!(read(&hall).top[0].rating, 1016);
    }

    #[tokio::test]
    async fn a_player_stands_once_and_the_best_first() {
        let hall = hall();
        hall.record(one("m1", "ann", 1016, true)).await.unwrap();
        hall.record(one("m2", "bob", 1100, true)).await.unwrap();
        hall.record(one("m3", "ann", 1000, false)).await.unwrap();
        let top = read(&hall).top;
        let names: Vec<_> = top
            .iter()
            .map(|rank| (rank.rank, rank.player.as_str(), rank.rating))
            .collect();
        assert_eq!(names, [(1, "bob", 1100), (2, "ann", 1000)]);
        assert_eq!((top[1].won, top[1].lost), (1, 1));
    }

    #[tokio::test]
    async fn one_version_is_told_with_what_belongs_to_it() {
        let hall = hall_of(MemoryOptions {
            period: Duration::from_secs(3600),
            ..MemoryOptions::default()
        });
        hall.record(one("m1", "ann", 1016, true)).await.unwrap();
        let before = hall.top(&PageQuery::default(), board::now_ms()).unwrap();
        assert_eq!(
            (before.1.top.len(), before.1.matches),
            (0, 0),
            "not published"
        );
        let after = read(&hall);
        assert_eq!((after.top.len(), after.matches), (1, 1));
    }

    #[tokio::test]
    async fn who_fell_off_the_board_comes_back_with_her_whole_rating() {
        let hall = hall_of(MemoryOptions {
            players_max: 1,
            ..MemoryOptions::default()
        });
        hall.record(one("m1", "ann", 1000, true)).await.unwrap();
        hall.record(one("m2", "bob", 1100, true)).await.unwrap();
        hall.record(one("m3", "ann", 1200, true)).await.unwrap();
        let top = read(&hall).top;
        assert_eq!((top[0].player.as_str(), top[0].rating), ("ann", 1200));
    }

    #[tokio::test]
    async fn players_and_matches_are_bounded() {
        let hall = hall_of(MemoryOptions {
            players_max: 100,
            period: Duration::from_secs(3600),
        });
        {
            let mut books = hall.lock();
            for id in 0..(MATCHES_MAX + 10) {
                books.is_new(format!("m{id}").into());
            }
            assert_eq!(
                (books.seen.len(), books.seen_order.len()),
                (MATCHES_MAX, MATCHES_MAX)
            );
        }
        for id in 0..(PLAYERS_MAX + 100) {
            hall.record(one(&format!("n{id}"), &format!("p{id}"), id as u32, true))
                .await
                .unwrap();
        }
        hall.tick();
        assert_eq!(hall.board().metrics().members, 100);
        assert!(hall.lock().tallies.len() <= PLAYERS_MAX + SCORES_MAX);
    }
}
