//! The board of ratings, over HTTP and JSON: a board of the game kit whose store is this process. Readers answer from one
//! snapshot and say how old it is (`X-Cache`, `Age`, `ETag`, `Cache-Status`). Scores may come again (the mesh retries them):
//! each match counts once. Players, remembered matches and what a reader may ask for are bounded.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Json, Query, State};
use axum::http::header::IF_NONE_MATCH;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use phalanx_game::board::memory::{Memory, MemoryOptions};
use phalanx_game::board::{
    self, Better, Board, BoardSpec, Kind, Page, PageQuery, PlayerId, Version,
};
use phalanx_telemetry::metrics::{CONTENT_TYPE, Exposition};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use crate::battle::NAME_MAX;
use crate::serve::{self, ServiceConfig, Stop};

pub const NAME: &str = "leaderboard";

/// Players on the board; the lowest leaves when it is full.
const PLAYERS_MAX: usize = 10_000;
/// Matches remembered to tell a repeated score from a new one.
const MATCHES_MAX: usize = 65_536;
const SCORES_MAX: usize = 8;
const TOP_MAX: usize = 100;
const BODY_MAX: usize = 4096;
/// The greatest rating that the board takes.
const RATING_MAX: i64 = 1_000_000;
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
    _config: ServiceConfig,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let stop = Stop::on(shutdown);
    let hall = Arc::new(Hall::try_new(MemoryOptions {
        players_max: PLAYERS_MAX,
        period: PERIOD,
    })?);
    let router = Router::new()
        .route("/scores", post(record))
        .route("/top", get(top))
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
    match hall.record(scores) {
        Ok(recorded) => Json(Recorded { recorded }).into_response(),
        Err(error) => bad_request(&error.to_string()),
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
        Err(error) => return (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response(),
    };
    // Its headers; the body here has the matches won and lost besides.
    let answer = hall.board().page_answer(&page, seen);
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

async fn metrics(State(hall): Shared) -> Response {
    let mut out = Exposition::new();
    board::write([&**hall.board()], &mut out);
    ([("content-type", CONTENT_TYPE)], out.finish()).into_response()
}

/// The board, and what it doesn't know: matches won and lost.
struct Hall {
    memory: Arc<Memory>,
    /// A mutex, because the process has one thread and nothing is awaited under it.
    books: Mutex<Books>,
}

#[derive(Default)]
struct Books {
    seen: HashSet<Arc<str>>,
    seen_order: VecDeque<Arc<str>>,
    tallies: HashMap<String, Tally>,
    matches: u64,
    /// As they were when the board's newest version was published: what is told with it.
    told: Told,
}

#[derive(Clone, Copy, Default)]
struct Tally {
    won: u32,
    lost: u32,
}

#[derive(Default)]
struct Told {
    version: Option<Version>,
    /// In the order of the places, as many as anybody may ask for.
    tallies: Vec<Tally>,
    matches: u64,
}

impl Hall {
    fn try_new(options: MemoryOptions) -> anyhow::Result<Self> {
        // A rating goes up and down: a sum of what each match changed.
        let spec = BoardSpec {
            score_max: RATING_MAX,
            season_from_ms: board::now_ms(),
            top: PLAYERS_MAX,
            ..BoardSpec::new("ratings", Kind::Sum(Better::Higher))
        };
        let board = Arc::new(Board::try_new(spec)?);
        let hall = Self {
            memory: Memory::attach(board, options),
            books: Mutex::default(),
        };
        hall.tell(&mut hall.lock());
        Ok(hall)
    }

    fn board(&self) -> &Arc<Board> {
        self.memory.board()
    }

    /// False: the match was counted before.
    fn record(&self, scores: MatchScores) -> anyhow::Result<bool> {
        let mut books = self.lock();
        let match_id: Arc<str> = scores.match_id.into();
        if !books.is_new(match_id) {
            return Ok(false);
        }
        for score in &scores.scores {
            books.count(score);
        }
        let now_ms = board::now_ms();
        for score in &scores.scores {
            let before = self.memory.order(&score.player);
            let before = before.map_or(0.0, |order| self.board().law().score(order, now_ms));
            let change = i64::from(score.rating).min(RATING_MAX) - before as i64;
            self.memory.submit(&score.player, change, now_ms)?;
        }
        self.forget(&mut books);
        self.tell(&mut books);
        Ok(true)
    }

    fn tick(&self) {
        let mut books = self.lock();
        self.memory.tick(board::now_ms());
        self.tell(&mut books);
    }

    fn top(&self, query: &PageQuery, now_ms: u64) -> Result<(Page, Top), board::ReadError> {
        let books = self.lock();
        let page = self.board().page(query, now_ms)?;
        let tallies = books.told.tallies.iter().copied();
        let tallies = tallies.chain(std::iter::repeat(Tally::default()));
        let rows = page.rows().zip(tallies).map(|(row, tally)| Rank {
            rank: u32::try_from(row.place).unwrap_or(u32::MAX),
            player: row.player.to_owned(),
            rating: row.score as u32,
            won: tally.won,
            lost: tally.lost,
        });
        let top = Top {
            top: rows.collect(),
            matches: books.told.matches,
        };
        Ok((page, top))
    }

    /// Who has fallen off the board.
    fn forget(&self, books: &mut Books) {
        if books.tallies.len() > PLAYERS_MAX + SCORES_MAX {
            let known = |player: &String| self.memory.order(player).is_some();
            books.tallies.retain(|player, _| known(player));
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

    fn count(&mut self, score: &Score) {
        let tally = self.tallies.entry(score.player.clone()).or_default();
        *(if score.won {
            &mut tally.won
        } else {
            &mut tally.lost
        }) += 1;
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
        Hall::try_new(MemoryOptions {
            players_max: PLAYERS_MAX,
            ..MemoryOptions::default()
        })
        .unwrap()
    }

    fn read(hall: &Hall) -> Top {
        hall.tick();
        hall.top(&PageQuery::default(), board::now_ms()).unwrap().1
    }

    #[test]
    fn a_match_counts_once() {
        let hall = hall();
        assert!(hall.record(one("m1", "ann", 1016, true)).unwrap());
        assert!(!hall.record(one("m1", "ann", 1016, true)).unwrap());
        let top = read(&hall);
        assert_eq!(top.matches, 1);
        assert_eq!(
            (top.top[0].rating, top.top[0].won, top.top[0].lost),
            (1016, 1, 0)
        );
    }

    #[test]
    fn a_player_stands_once_and_the_best_first() {
        let hall = hall();
        hall.record(one("m1", "ann", 1016, true)).unwrap();
        hall.record(one("m2", "bob", 1100, true)).unwrap();
        hall.record(one("m3", "ann", 1000, false)).unwrap();
        let top = read(&hall).top;
        let names: Vec<_> = top
            .iter()
            .map(|rank| (rank.rank, rank.player.as_str(), rank.rating))
            .collect();
        assert_eq!(names, [(1, "bob", 1100), (2, "ann", 1000)]);
        assert_eq!((top[1].won, top[1].lost), (1, 1));
    }

    #[test]
    fn one_version_is_told_with_what_belongs_to_it() {
        let hall = Hall::try_new(MemoryOptions {
            period: Duration::from_secs(3600),
            ..MemoryOptions::default()
        })
        .unwrap();
        hall.record(one("m1", "ann", 1016, true)).unwrap();
        let before = hall.top(&PageQuery::default(), board::now_ms()).unwrap();
        assert_eq!(
            (before.1.top.len(), before.1.matches),
            (0, 0),
            "not published"
        );
        let after = read(&hall);
        assert_eq!((after.top.len(), after.matches), (1, 1));
    }

    #[test]
    fn players_and_matches_are_bounded() {
        let hall = Hall::try_new(MemoryOptions {
            players_max: 100,
            period: Duration::from_secs(3600),
        })
        .unwrap();
        let mut books = hall.lock();
        for id in 0..(MATCHES_MAX + 10) {
            books.is_new(format!("m{id}").into());
        }
        assert_eq!(
            (books.seen.len(), books.seen_order.len()),
            (MATCHES_MAX, MATCHES_MAX)
        );
        drop(books);
        for id in 0..(PLAYERS_MAX + 100) {
            hall.record(one(&format!("n{id}"), &format!("p{id}"), id as u32, true))
                .unwrap();
        }
        assert_eq!(hall.memory.len(), 100);
        assert!(hall.lock().tallies.len() <= PLAYERS_MAX + SCORES_MAX);
    }
}
