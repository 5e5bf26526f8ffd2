//! The board of ratings, over HTTP and JSON, in memory. Scores may come again (the mesh retries them): each match
//! counts once. Both the players and the remembered matches are bounded.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::{DefaultBodyLimit, Json, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
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
    let router = Router::new()
        .route("/scores", post(record))
        .route("/top", get(top))
        .route("/healthz", get(async || "ok"))
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(Arc::<Mutex<Board>>::default());
    serve::http(NAME, listener, router, &stop).await
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

/// A mutex, because the process has one thread and nothing is awaited under it.
type Shared = State<Arc<Mutex<Board>>>;

async fn record(State(board): Shared, Json(scores): Json<MatchScores>) -> Response {
    let named = |name: &String| (1..=NAME_MAX).contains(&name.len());
    let fits = named(&scores.match_id)
        && (1..=SCORES_MAX).contains(&scores.scores.len())
        && scores.scores.iter().all(|score| named(&score.player));
    if !fits {
        return (
            StatusCode::BAD_REQUEST,
            "a match needs an id and 1 to 8 named players",
        )
            .into_response();
    }
    let recorded = board
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .record(scores);
    Json(Recorded { recorded }).into_response()
}

async fn top(State(board): Shared, Query(query): Query<TopQuery>) -> Json<Top> {
    Json(
        board
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .top(query.n.min(TOP_MAX)),
    )
}

#[derive(Default)]
struct Board {
    players: HashMap<Arc<str>, Standing>,
    /// The same players, best first.
    order: BTreeSet<(Reverse<u32>, Arc<str>)>,
    seen: HashSet<Arc<str>>,
    seen_order: VecDeque<Arc<str>>,
    matches: u64,
}

#[derive(Clone, Copy, Default)]
struct Standing {
    rating: u32,
    won: u32,
    lost: u32,
}

impl Board {
    fn record(&mut self, scores: MatchScores) -> bool {
        let match_id: Arc<str> = scores.match_id.into();
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
        for score in scores.scores {
            self.stand(score);
        }
        true
    }

    fn stand(&mut self, score: Score) {
        let player: Arc<str> = score.player.into();
        let mut standing = self.players.get(&player).copied().unwrap_or_default();
        self.order
            .remove(&(Reverse(standing.rating), player.clone()));
        standing.rating = score.rating;
        *(if score.won {
            &mut standing.won
        } else {
            &mut standing.lost
        }) += 1;
        self.order
            .insert((Reverse(standing.rating), player.clone()));
        self.players.insert(player, standing);
        if self.players.len() > PLAYERS_MAX
            && let Some((_, lowest)) = self.order.pop_last()
        {
            self.players.remove(&lowest);
        }
    }

    fn top(&self, n: usize) -> Top {
        let rank = |(rank, (_, player)): (u32, &(Reverse<u32>, Arc<str>))| {
            let standing = self.players.get(player).copied().unwrap_or_default();
            let Standing { rating, won, lost } = standing;
            Rank {
                rank,
                player: player.to_string(),
                rating,
                won,
                lost,
            }
        };
        Top {
            top: (1..).zip(self.order.iter().take(n)).map(rank).collect(),
            matches: self.matches,
        }
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

    #[test]
    fn a_match_counts_once() {
        let mut board = Board::default();
        assert!(board.record(one("m1", "ann", 1016, true)));
        assert!(!board.record(one("m1", "ann", 1016, true)));
        let top = board.top(10);
        assert_eq!(top.matches, 1);
        assert_eq!(
            (top.top[0].rating, top.top[0].won, top.top[0].lost),
            (1016, 1, 0)
        );
    }

    #[test]
    fn a_player_stands_once_and_the_best_first() {
        let mut board = Board::default();
        board.record(one("m1", "ann", 1016, true));
        board.record(one("m2", "bob", 1100, true));
        board.record(one("m3", "ann", 1000, false));
        let top = board.top(10).top;
        let names: Vec<_> = top
            .iter()
            .map(|rank| (rank.rank, rank.player.as_str(), rank.rating))
            .collect();
        assert_eq!(names, [(1, "bob", 1100), (2, "ann", 1000)]);
    }

    #[test]
    fn players_and_matches_are_bounded() {
        let mut board = Board::default();
        for id in 0..(MATCHES_MAX + 10) {
            board.record(one(
                &format!("m{id}"),
                &format!("p{}", id % (PLAYERS_MAX + 5)),
                id as u32,
                true,
            ));
        }
        assert_eq!(
            (board.players.len(), board.order.len()),
            (PLAYERS_MAX, PLAYERS_MAX)
        );
        assert_eq!(
            (board.seen.len(), board.seen_order.len()),
            (MATCHES_MAX, MATCHES_MAX)
        );
    }
}
