//! The service `Leaderboard` over boards. Reads come from a board's snapshot, and their metadata is what
//! [`Board::answer`](crate::board::Board::answer) writes over HTTP; results go to whatever implements [`Scores`], those that
//! have a name once.

mod names;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use phalanx_proto::phalanx::game::v1 as wire;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};
use wire::freshness::Cache;
use wire::leaderboard_server::{Leaderboard, LeaderboardServer};
use wire::rank::Source;

use self::names::{Known, Names};
use super::caller::{Act, Door, Guard};
use super::{REQUEST_BYTES_MAX, named, or_default, pushed_back};
use crate::board::memory::{Memory, MemoryError};
use crate::board::{
    self, Around, BadPlayer, Board, Freshness, Neighbours, Order, Own, PageQuery, PlayerId, Rank,
    ReadError, Refused, Reply, Row, Snapshot,
};

/// Boards that one service has at most.
pub const BOARDS_MAX: usize = 1_024;
/// Places on each side of a player, where nothing is said.
pub const RADIUS_DEFAULT: usize = 5;
/// Bytes of a result's name.
pub const ID_BYTES_MAX: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    #[error(transparent)]
    Player(#[from] BadPlayer),
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Nothing was kept; the same call is welcome later.
    #[error("{0}")]
    Busy(String),
    #[error("the board is final")]
    Final,
}

/// Where the results of one board go.
pub trait Scores: Send + Sync + 'static {
    /// Counts a result of `points` at `at_ms` (Unix). Ready when it can't get lost any more.
    fn submit<'a>(
        &'a self,
        player: &'a PlayerId,
        points: i64,
        at_ms: u64,
    ) -> Reply<'a, Result<(), SubmitError>>;
}

impl Scores for Memory {
    fn submit<'a>(
        &'a self,
        player: &'a PlayerId,
        points: i64,
        at_ms: u64,
    ) -> Reply<'a, Result<(), SubmitError>> {
        let counted = Memory::submit(self, player.as_str(), points, at_ms);
        let counted = counted.map(drop).map_err(|error| match error {
            MemoryError::Player(error) => error.into(),
            MemoryError::Refused(error) => error.into(),
            MemoryError::Final => SubmitError::Final,
        });
        Box::pin(std::future::ready(counted))
    }
}

#[cfg(feature = "redis")]
impl Scores for board::RedisBoard {
    fn submit<'a>(
        &'a self,
        player: &'a PlayerId,
        points: i64,
        at_ms: u64,
    ) -> Reply<'a, Result<(), SubmitError>> {
        Box::pin(async move {
            match self.submit_at(player, points, at_ms).await {
                Ok(_) => Ok(()),
                Err(board::WriteError::Refused(error)) => Err(error.into()),
                Err(board::WriteError::Final) => Err(SubmitError::Final),
                Err(error) => Err(SubmitError::Busy(error.to_string())),
            }
        })
    }
}

/// One board of a service.
#[derive(Clone)]
pub struct Served {
    pub board: Arc<Board>,
    /// None: results come in elsewhere, and `Submit` is refused.
    pub scores: Option<Arc<dyn Scores>>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BoardsError {
    #[error("board {0} is there twice")]
    Twice(String),
    #[error("{0} boards, {BOARDS_MAX} are served at most")]
    TooMany(usize),
}

/// Several boards by their names.
pub struct Boards {
    known: HashMap<String, Arc<Kept>>,
    door: Door,
}

struct Kept {
    board: Arc<Board>,
    scores: Option<Arc<dyn Scores>>,
    /// A mutex, held for a look; never across an await.
    names: Mutex<Names>,
}

impl Boards {
    /// # Errors
    /// [`BoardsError`]
    pub fn try_new(boards: impl IntoIterator<Item = Served>) -> Result<Self, BoardsError> {
        let mut known = HashMap::new();
        for served in boards {
            let name = served.board.spec().name.clone();
            let kept = Kept {
                board: served.board,
                scores: served.scores,
                names: Mutex::default(),
            };
            if known.insert(name.clone(), Arc::new(kept)).is_some() {
                return Err(BoardsError::Twice(name));
            }
            if known.len() > BOARDS_MAX {
                return Err(BoardsError::TooMany(known.len()));
            }
        }
        Ok(Self {
            known,
            door: Door::default(),
        })
    }

    /// Asks `guard` before each call. Without one, whoever reaches the service may submit a result for anybody.
    #[must_use]
    pub fn guarded(self, guard: impl Guard) -> Self {
        Self {
            door: Door::guarded(guard),
            ..self
        }
    }

    /// For `tonic::transport::Server::add_service`.
    pub fn into_server(self) -> LeaderboardServer<Self> {
        LeaderboardServer::new(self).max_decoding_message_size(REQUEST_BYTES_MAX)
    }

    fn find(&self, name: &str) -> Result<&Arc<Kept>, Status> {
        let found = self.known.get(name);
        found.ok_or_else(|| Status::not_found(format!("there is no board {}", named(name))))
    }
}

#[tonic::async_trait]
impl Leaderboard for Boards {
    async fn submit(
        &self,
        request: Request<wire::SubmitRequest>,
    ) -> Result<Response<wire::SubmitResponse>, Status> {
        let request = self.door.admit(request, |asked| Act::Submit {
            board: &asked.board,
            player: &asked.player,
        })?;
        let kept = self.find(&request.board)?;
        let player = player(&request.player)?;
        if request.id.len() > ID_BYTES_MAX {
            let message = format!("id: {} bytes (at most {ID_BYTES_MAX})", request.id.len());
            return Err(Status::invalid_argument(message));
        }
        let counted = match request.id.as_str() {
            "" => kept.submit(&player, request.points).await.map(|()| true),
            id => kept.submit_once(player, request.points, id).await,
        };
        let counted = counted?;
        Ok(Response::new(wire::SubmitResponse { counted }))
    }

    async fn page(
        &self,
        request: Request<wire::PageRequest>,
    ) -> Result<Response<wire::PageResponse>, Status> {
        let request = self.door.admit(request, |asked| Act::Read {
            board: &asked.board,
            player: &asked.viewer,
        })?;
        let board = &self.find(&request.board)?.board;
        let viewer = match request.viewer.as_str() {
            "" => None,
            viewer => Some(player(viewer)?),
        };
        let query = PageQuery {
            offset: 0,
            limit: or_default(request.size, board::page::PAGE_DEFAULT),
            token: Some(request.token).filter(|token| !token.is_empty()),
            viewer,
            max_age_ms: request.max_age_ms,
        };
        let page = board.page(&query, board::now_ms()).map_err(refused)?;
        let answer = wire::PageResponse {
            rows: page.rows().map(row).collect(),
            next_token: page.next().unwrap_or_default().to_owned(),
            total: page.total(),
            freshness: Some(freshness(page.snapshot(), &page.freshness())),
        };
        Ok(told(answer, board, page.snapshot(), &page.freshness()))
    }

    async fn around(
        &self,
        request: Request<wire::AroundRequest>,
    ) -> Result<Response<wire::AroundResponse>, Status> {
        let request = self.door.admit(request, |asked| Act::Read {
            board: &asked.board,
            player: &asked.player,
        })?;
        let board = &self.find(&request.board)?.board;
        let radius = or_default(request.radius, RADIUS_DEFAULT);
        let own = own(&request.player, request.max_age_ms)?;
        let around = board.around(&own, radius, board::now_ms()).await;
        let answer = match around.map_err(refused)? {
            Around::Top(page) => {
                let rows: Vec<wire::Row> = page.rows().map(row).collect();
                let mine = rows.iter().find(|row| row.player == request.player);
                let rank = mine.map(|row| wire::Rank {
                    source: Source::Top.into(),
                    place: row.place,
                    low: row.place,
                    high: row.place,
                    score: row.score,
                    pending: row.pending,
                });
                let (snapshot, fresh) = (page.snapshot().clone(), page.freshness());
                (rows, rank, snapshot, fresh)
            }
            Around::Store { neighbours, place } => {
                let rank = rank(board, &place.rank, &place.snapshot);
                let rows = neighbours_rows(board, &neighbours, &place.snapshot);
                (rows, Some(rank), place.snapshot, place.freshness)
            }
            Around::Alone(place) => {
                let rank = rank(board, &place.rank, &place.snapshot);
                let alone = place.rank.order().map(|_| wire::Row {
                    place: rank.place,
                    player: request.player.clone(),
                    score: rank.score,
                    pending: rank.pending,
                });
                let rows = alone.into_iter().collect();
                (rows, Some(rank), place.snapshot, place.freshness)
            }
        };
        let (rows, rank, snapshot, fresh) = answer;
        let answer = wire::AroundResponse {
            rows,
            rank,
            freshness: Some(freshness(&snapshot, &fresh)),
        };
        Ok(told(answer, board, &snapshot, &fresh))
    }

    async fn rank(
        &self,
        request: Request<wire::RankRequest>,
    ) -> Result<Response<wire::RankResponse>, Status> {
        let request = self.door.admit(request, |asked| Act::Read {
            board: &asked.board,
            player: &asked.player,
        })?;
        let board = &self.find(&request.board)?.board;
        let own = own(&request.player, request.max_age_ms)?;
        let place = board.rank(&own, board::now_ms()).await.map_err(refused)?;
        let answer = wire::RankResponse {
            rank: Some(rank(board, &place.rank, &place.snapshot)),
            freshness: Some(freshness(&place.snapshot, &place.freshness)),
        };
        Ok(told(answer, board, &place.snapshot, &place.freshness))
    }

    async fn friends(
        &self,
        request: Request<wire::FriendsRequest>,
    ) -> Result<Response<wire::FriendsResponse>, Status> {
        let request = self.door.admit(request, |asked| Act::Read {
            board: &asked.board,
            player: "",
        })?;
        let board = &self.find(&request.board)?.board;
        let most = board::kind::FRIENDS_MAX;
        if request.players.len() > most {
            let message = format!("players: {} (at most {most})", request.players.len());
            return Err(Status::invalid_argument(message));
        }
        let players = request.players.iter().map(|text| player(text));
        let players: Vec<PlayerId> = players.collect::<Result<_, _>>()?;
        let friends = board.friends(&players, request.max_age_ms, board::now_ms());
        let friends = friends.await.map_err(refused)?;
        let snapshot = &friends.snapshot;
        let answer = wire::FriendsResponse {
            friends: friends
                .friends
                .iter()
                .map(|friend| wire::Friend {
                    player: friend.player.as_str().to_owned(),
                    rank: Some(rank(board, &friend.rank, snapshot)),
                })
                .collect(),
            freshness: Some(freshness(snapshot, &friends.freshness)),
        };
        Ok(told(answer, board, snapshot, &friends.freshness))
    }
}

impl Kept {
    async fn submit(&self, player: &PlayerId, points: i64) -> Result<(), Status> {
        let scores = self.scores.as_ref().ok_or_else(|| {
            let name = &self.board.spec().name;
            Status::failed_precondition(format!("board {name} takes no results here"))
        })?;
        let submitted = scores.submit(player, points, board::now_ms()).await;
        submitted.map_err(|error| match error {
            SubmitError::Player(_) | SubmitError::Refused(_) => {
                Status::invalid_argument(error.to_string())
            }
            SubmitError::Final => Status::failed_precondition(error.to_string()),
            SubmitError::Busy(why) => pushed_back(why, None),
        })
    }

    /// False: a result by that name was counted before.
    async fn submit_once(
        self: &Arc<Self>,
        player: PlayerId,
        points: i64,
        id: &str,
    ) -> Result<bool, Status> {
        let name = Names::of(&player, id);
        match self.names().take(name) {
            Known::Counted => return Ok(false),
            Known::UnderWay => return Err(Status::aborted("the same result is being counted")),
            Known::New => {}
        }
        let mut turn = Turn {
            kept: self.clone(),
            name,
            counted: false,
        };
        // A task, because a call that is given up may have its result counted all the same: the name waits for that.
        let counting = tokio::spawn(async move { turn.count(&player, points).await });
        let over = |_| Err(Status::internal("the result was not counted to its end"));
        counting.await.unwrap_or_else(over)
    }

    fn names(&self) -> std::sync::MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says how a named result ended, whatever ended it.
struct Turn {
    kept: Arc<Kept>,
    name: u128,
    counted: bool,
}

impl Turn {
    async fn count(&mut self, player: &PlayerId, points: i64) -> Result<bool, Status> {
        self.kept.submit(player, points).await?;
        self.counted = true;
        Ok(true)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.kept.names().end(self.name, self.counted);
    }
}

fn player(text: &str) -> Result<PlayerId, Status> {
    PlayerId::parse(text).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn own(text: &str, max_age_ms: Option<u64>) -> Result<Own, Status> {
    Ok(Own {
        player: player(text)?,
        hint: None,
        max_age_ms,
    })
}

fn refused(error: ReadError) -> Status {
    let message = error.to_string();
    match error {
        ReadError::Empty { .. } | ReadError::Stale { .. } => Status::unavailable(message),
        ReadError::Gone { .. } => Status::aborted(message),
        ReadError::Token(_) | ReadError::TooMany { .. } | ReadError::Player(_) => {
            Status::invalid_argument(message)
        }
    }
}

fn row(row: Row<'_>) -> wire::Row {
    wire::Row {
        place: row.place,
        player: row.player.to_owned(),
        score: row.score,
        pending: row.pending,
    }
}

fn neighbours_rows(board: &Board, neighbours: &Neighbours, of: &Snapshot) -> Vec<wire::Row> {
    let places = neighbours.first..;
    let members = places.zip(&neighbours.members);
    let rows = members.map(|(place, (player, order))| wire::Row {
        place,
        player: player.as_str().to_owned(),
        score: score(board, *order, of),
        pending: false,
    });
    rows.collect()
}

fn score(board: &Board, order: Order, of: &Snapshot) -> f64 {
    board.law().score(order, of.as_of_ms())
}

fn rank(board: &Board, rank: &Rank, of: &Snapshot) -> wire::Rank {
    let exact = |source: Source, place: u64, order: Order, pending: bool| wire::Rank {
        source: source.into(),
        place,
        low: place,
        high: place,
        score: score(board, order, of),
        pending,
    };
    let nowhere = |source: Source| wire::Rank {
        source: source.into(),
        ..wire::Rank::default()
    };
    match *rank {
        Rank::Top {
            place,
            order,
            pending,
        } => exact(Source::Top, place, order, pending),
        Rank::Store { place, order } => exact(Source::Store, place, order, false),
        Rank::About {
            order,
            estimate,
            pending,
        } => {
            let (place, low, high) =
                estimate.map_or((0, 0, 0), |about| (about.place, about.low, about.high));
            wire::Rank {
                source: Source::Estimate.into(),
                place,
                low,
                high,
                score: score(board, order, of),
                pending,
            }
        }
        Rank::Absent => nowhere(Source::Absent),
        Rank::Unknown => nowhere(Source::Unknown),
    }
}

fn freshness(snapshot: &Snapshot, fresh: &Freshness) -> wire::Freshness {
    let cache = if fresh.stale {
        Cache::Stale
    } else {
        Cache::Hit
    };
    wire::Freshness {
        version: snapshot.version().to_string(),
        as_of_ms: snapshot.as_of_ms(),
        age_ms: fresh.age_ms,
        cache: cache.into(),
        r#final: snapshot.is_final(),
    }
}

/// With the metadata that the same answer has over HTTP.
fn told<T>(answer: T, board: &Board, of: &Snapshot, fresh: &Freshness) -> Response<T> {
    let mut metadata = MetadataMap::new();
    let etag = ("etag", of.etag());
    for (name, value) in board::answer::freshness(fresh, board)
        .into_iter()
        .chain([etag])
    {
        if let Ok(value) = value.parse() {
            metadata.insert(name, value);
        }
    }
    Response::from_parts(metadata, answer, tonic::Extensions::default())
}
