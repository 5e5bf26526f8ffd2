//! Gateway: where players come in, over HTTP and JSON or a WebSocket. It knows who is logged in; everything else it
//! asks of match, battle and leaderboard. What fails behind it keeps its reason on the way out.

mod asking;
mod live;
pub mod message;
mod presence;
mod session;

use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Json, Query, State, WebSocketUpgrade};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::call::{Call, CallError, HttpClient};
use crate::carry::{self, Carried, REASON};
use crate::leaderboard::Top;
use crate::proto::arena::v1::PlayReply;
use crate::proto::arena::v1::battle_client::BattleClient;
use crate::proto::arena::v1::matchmaker_client::MatchmakerClient;
use crate::serve::{self, ServiceConfig, Stop};
use crate::{battle, leaderboard, matchmaker};
use asking::{Asking, play_deadline};
use message::{Login, Played, Problem, Welcome};
use phalanx_telemetry::metrics::{CONTENT_TYPE, Exposition};
use presence::{Presence, Unwelcome};
use session::{PLAYER_MAX, Session, Sessions};

pub const NAME: &str = "gateway";

const BATTLE_DEADLINE: Duration = Duration::from_secs(5);
const BOARD_DEADLINE: Duration = Duration::from_secs(5);
/// Of a request body and of a WebSocket message.
const MESSAGE_MAX: usize = 16 * 1024;
/// How long open WebSockets are waited for after the stop.
const GOODBYE: Duration = Duration::from_secs(10);

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
    let stop = Arc::new(Stop::on(shutdown));
    let (open, mut all_closed) = mpsc::channel(1);
    let presence = Presence::try_new(secret()?, fastrand::u64(..)).await?;
    let gateway = Gateway {
        sessions: Mutex::default(),
        presence: Mutex::new(presence),
        matchmaker: matchmaker::client(config.outbound)?,
        battle: battle::client(config.outbound)?,
        board: HttpClient::new(config.outbound, leaderboard::NAME),
        stop: stop.clone(),
        open,
    };
    let router = Router::new()
        .route("/login", post(login))
        .route("/play", post(play))
        .route("/leaderboard", get(board))
        .route("/ws", get(live))
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok"))
        .layer(DefaultBodyLimit::max(MESSAGE_MAX))
        .with_state(Arc::new(gateway));
    serve::http(NAME, listener, router, &stop).await?;
    // Upgraded connections are nobody's but their own: each holds a clone of `open`.
    if tokio::time::timeout(GOODBYE, all_closed.recv())
        .await
        .is_err()
    {
        tracing::warn!("stopped with players connected");
    }
    Ok(())
}

pub struct Gateway {
    /// A mutex, because the process has one thread and nothing is awaited under it.
    sessions: Mutex<Sessions>,
    /// Likewise.
    presence: Mutex<Presence>,
    matchmaker: MatchmakerClient<Channel>,
    battle: BattleClient<Channel>,
    board: HttpClient,
    stop: Arc<Stop>,
    open: mpsc::Sender<()>,
}

/// What the tokens of this process are sealed with.
fn secret() -> anyhow::Result<[u8; 32]> {
    let mut secret = [0; 32];
    let mut random = std::fs::File::open("/dev/urandom").context("opening the source of chance")?;
    random
        .read_exact(&mut secret)
        .context("reading from the source of chance")?;
    Ok(secret)
}

async fn login(
    State(gateway): State<Arc<Gateway>>,
    Json(login): Json<Login>,
) -> Result<Json<Welcome>, Refusal> {
    Ok(Json(gateway.login(&login.player)?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PlayQuery {
    /// How long to wait for another player before a fighter of the house will do; 0: a moment.
    #[serde(default)]
    wait_ms: u32,
}

async fn play(
    State(gateway): State<Arc<Gateway>>,
    Query(PlayQuery { wait_ms }): Query<PlayQuery>,
    headers: HeaderMap,
) -> Result<Json<Played>, Refusal> {
    let (id, session) = gateway.session(bearer(&headers))?;
    let carried = Carried::from_headers(&headers).in_session(&id);
    let mut asking = Asking::of(session, wait_ms, play_deadline(wait_ms));
    loop {
        let request = carried.request(asking.request.clone(), asking.attempt());
        match gateway.matchmaker.clone().play(request).await {
            Ok(reply) => return Ok(Json(gateway.played(&id, reply.into_inner()))),
            Err(status) => asking.again(status).await?,
        }
    }
}

#[derive(Deserialize)]
struct BoardQuery {
    n: Option<u32>,
}

async fn board(
    State(gateway): State<Arc<Gateway>>,
    Query(query): Query<BoardQuery>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let carried = Carried::from_headers(&headers);
    let (top, told) = gateway.board(query.n.unwrap_or(10), &carried).await?;
    let mut response = Json(top).into_response();
    for name in leaderboard::FRESHNESS {
        if let Some(value) = told.get(name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    Ok(response)
}

async fn metrics(State(gateway): State<Arc<Gateway>>) -> Response {
    let mut out = Exposition::new();
    gateway.with_presence(|presence| presence.write(&mut out));
    ([("content-type", CONTENT_TYPE)], out.finish()).into_response()
}

async fn live(
    State(gateway): State<Arc<Gateway>>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    let carried = Carried::from_headers(&headers);
    let open = gateway.open.clone();
    upgrade
        .max_message_size(MESSAGE_MAX)
        .on_upgrade(async move |socket| {
            let stop = gateway.stop.wait();
            live::converse(gateway, socket, carried, stop).await;
            drop(open);
        })
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers
        .get(AUTHORIZATION)?
        .to_str()
        .ok()?
        .strip_prefix("Bearer ")
}

impl Gateway {
    fn login(&self, player: &str) -> Result<Welcome, Refusal> {
        let opened = self.with_sessions(|sessions| sessions.open(player));
        let (session, Session { player, rating }) = opened.ok_or_else(|| {
            Refusal::bad_request(format!(
                "a player's name has 1 to {PLAYER_MAX} letters, digits, - and _"
            ))
        })?;
        Ok(Welcome {
            player,
            session,
            rating,
            resume: None,
        })
    }

    fn session(&self, id: Option<&str>) -> Result<(String, Session), Refusal> {
        let found = id.and_then(|id| {
            Some((
                id.to_string(),
                self.with_sessions(|sessions| sessions.find(id))?,
            ))
        });
        found.ok_or_else(|| Refusal::new(StatusCode::UNAUTHORIZED, "log in first"))
    }

    /// Remembers a player's new rating and tells the result.
    fn played(&self, id: &str, reply: PlayReply) -> Played {
        self.with_sessions(|sessions| sessions.rate(id, reply.rating));
        Played {
            match_id: reply.match_id,
            opponent: reply.opponent.unwrap_or_default().player,
            house: reply.house,
            won: reply.won,
            rating: reply.rating,
            version: reply.version,
            rules: reply.rules,
            rounds: reply.rounds,
            legs: reply.legs,
        }
    }

    async fn top(&self, n: u32, carried: &Carried) -> Result<Top, Refusal> {
        Ok(self.board(n, carried).await?.0)
    }

    /// With the headers of its answer, which say how old it is.
    async fn board(&self, n: u32, carried: &Carried) -> Result<(Top, HeaderMap), Refusal> {
        let call = Call {
            method: Method::GET,
            path: format!("/top?n={n}"),
            headers: carried.headers().clone(),
            body: Bytes::new(),
            repeatable: true,
            deadline: BOARD_DEADLINE,
        };
        let answer = self.board.send(call).await?;
        if !answer.status().is_success() {
            let reason = answer
                .headers()
                .get(REASON)
                .and_then(|value| value.to_str().ok());
            let message = format!("{} answered {}", leaderboard::NAME, answer.status());
            return Err(Refusal {
                reason: reason.map(str::to_string),
                ..Refusal::unavailable(message)
            });
        }
        let top = serde_json::from_slice(answer.body())
            .map_err(|error| Refusal::unavailable(error.to_string()))?;
        Ok((top, answer.into_parts().0.headers))
    }

    fn with_presence<T>(&self, work: impl FnOnce(&mut Presence) -> T) -> T {
        work(&mut self.presence.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn with_sessions<T>(&self, work: impl FnOnce(&mut Sessions) -> T) -> T {
        work(&mut self.sessions.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// An answer other than success.
#[derive(Clone, Debug)]
pub struct Refusal {
    status: StatusCode,
    message: String,
    reason: Option<String>,
}

impl Refusal {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            reason: None,
        }
    }

    fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        let http = match status.code() {
            Code::InvalidArgument | Code::OutOfRange | Code::FailedPrecondition => {
                StatusCode::BAD_REQUEST
            }
            Code::Unauthenticated => StatusCode::UNAUTHORIZED,
            Code::PermissionDenied => StatusCode::FORBIDDEN,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Code::Unavailable | Code::Cancelled => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::BAD_GATEWAY,
        };
        let message = format!("{:?}: {}", status.code(), status.message());
        Self {
            reason: carry::reason(&status).map(str::to_string),
            ..Self::new(http, message)
        }
    }
}

impl From<Unwelcome> for Refusal {
    fn from(error: Unwelcome) -> Self {
        let status = match error {
            Unwelcome::Later(_) => StatusCode::TOO_MANY_REQUESTS,
            _ => StatusCode::UNAUTHORIZED,
        };
        Self::new(status, error.to_string())
    }
}

impl From<CallError> for Refusal {
    fn from(error: CallError) -> Self {
        let status = match error {
            CallError::Deadline(_) => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, format!("{}: {error}", leaderboard::NAME))
    }
}

impl From<&Refusal> for Problem {
    fn from(refusal: &Refusal) -> Self {
        let Refusal {
            status,
            message,
            reason,
        } = refusal.clone();
        Self {
            status: status.as_u16(),
            error: message,
            reason,
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response<Body> {
        let mut response = (self.status, Json(Problem::from(&self))).into_response();
        if let Some(reason) = self
            .reason
            .and_then(|reason| HeaderValue::try_from(reason).ok())
        {
            response.headers_mut().insert(REASON, reason);
        }
        response
    }
}
