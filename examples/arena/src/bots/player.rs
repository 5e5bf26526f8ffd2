//! One bot: what it does next, and how it does it over HTTP or a WebSocket. After a failure it connects and logs in
//! again; nothing that failed is tried twice, so that every failure is seen.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use hyper::{Method, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::call::{Call, CallError, HttpClient};
use crate::carry::REASON;
use crate::gateway;
use crate::gateway::message::{ClientMessage, Login, Played, Problem, ServerMessage, Welcome};
use crate::leaderboard::Top;

/// An action without an answer by then has failed.
const DEADLINE: Duration = Duration::from_secs(10);
/// One action in this many looks at the board.
const BOARD_EVERY: u64 = 12;
/// Over a WebSocket, one in this many is a training.
const SPAR_EVERY: u64 = 5;
/// After this many the connection breaks, as a telephone's does, and the bot comes back by its token.
const BREAK_EVERY: u64 = 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Login,
    /// Back in the session before, over a new WebSocket.
    Resume,
    Play,
    Spar,
    Board,
}

impl Action {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Login => "login",
            Self::Resume => "resume",
            Self::Play => "play",
            Self::Spar => "spar",
            Self::Board => "board",
        }
    }
}

/// What a successful action showed.
#[derive(Debug, Default)]
pub struct Done {
    pub live: bool,
    pub version: Option<String>,
    /// Against another player.
    pub paired: bool,
    /// Let back in by the token.
    pub resumed: bool,
}

#[derive(Debug)]
pub struct Failure {
    /// Few values: `503 no_healthy_upstream`, `connect`, `timeout`, `reset`.
    pub kind: String,
    pub message: String,
}

impl Failure {
    fn new(kind: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            kind: kind.into(),
            message: message.into(),
        }
    }

    fn status(status: u16, reason: Option<&str>, message: String) -> Self {
        let kind = match reason {
            Some(reason) => format!("{status} {reason}"),
            None => status.to_string(),
        };
        Self::new(kind, message)
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        let kind = error.kind();
        Self::new(kind, format!("{:#}", anyhow::Error::from(error)))
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::status(problem.status, problem.reason.as_deref(), problem.error)
    }
}

impl From<tungstenite::Error> for Failure {
    fn from(error: tungstenite::Error) -> Self {
        match error {
            tungstenite::Error::Http(response) => {
                let reason = response
                    .headers()
                    .get(REASON)
                    .and_then(|value| value.to_str().ok());
                Self::status(
                    response.status().as_u16(),
                    reason,
                    "the WebSocket was refused".into(),
                )
            }
            tungstenite::Error::Io(error)
                if error.kind() == std::io::ErrorKind::ConnectionRefused =>
            {
                Self::new("connect", error.to_string())
            }
            error => Self::new("reset", error.to_string()),
        }
    }
}

pub struct Bot {
    name: String,
    gateway: SocketAddr,
    wire: Wire,
    acted: u64,
    colour: Option<HeaderValue>,
}

enum Wire {
    Http {
        client: HttpClient,
        session: Option<HeaderValue>,
    },
    Live(Live),
}

#[derive(Default)]
struct Live {
    socket: Option<Box<WebSocketStream<TcpStream>>>,
    /// The token of the last welcome.
    resume: Option<String>,
}

impl Bot {
    pub fn new(number: usize, gateway: SocketAddr, live: bool) -> Self {
        let http = || Wire::Http {
            client: HttpClient::new(gateway, gateway::NAME),
            session: None,
        };
        let wire = if live {
            Wire::Live(Live::default())
        } else {
            http()
        };
        // Bots don't all look at the board at once.
        Self {
            name: format!("bot-{number:03}"),
            gateway,
            wire,
            acted: number as u64,
            colour: None,
        }
    }

    /// One that says which environment it plays in; over HTTP only.
    pub fn coloured(self, colour: &'static str) -> Self {
        Self {
            colour: Some(HeaderValue::from_static(colour)),
            ..self
        }
    }

    pub fn is_coloured(&self) -> bool {
        self.colour.is_some()
    }

    pub fn next(&mut self) -> Action {
        let live = match &mut self.wire {
            Wire::Http { session: None, .. } => return Action::Login,
            Wire::Http { .. } => false,
            Wire::Live(live) => {
                if self.acted.is_multiple_of(BREAK_EVERY) {
                    live.socket = None;
                }
                match (&live.socket, &live.resume) {
                    (None, None) => return Action::Login,
                    // Counted, so that it doesn't break again at once.
                    (None, Some(_)) => {
                        self.acted += 1;
                        return Action::Resume;
                    }
                    (Some(_), _) => true,
                }
            }
        };
        self.acted += 1;
        match self.acted {
            acted if acted.is_multiple_of(BOARD_EVERY) => Action::Board,
            acted if live && acted.is_multiple_of(SPAR_EVERY) => Action::Spar,
            _ => Action::Play,
        }
    }

    pub async fn act(&mut self, action: Action) -> Result<Done, Failure> {
        let late = || Failure::new("timeout", format!("no answer within {DEADLINE:?}"));
        let doing = async {
            match &mut self.wire {
                Wire::Http { client, session } => {
                    let colour = self.colour.as_ref();
                    over_http(client, session, colour, &self.name, action).await
                }
                Wire::Live(live) => over_websocket(self.gateway, live, &self.name, action).await,
            }
        };
        let done = timeout(DEADLINE, doing).await.map_err(|_| late()).flatten();
        if done.is_err() {
            match &mut self.wire {
                Wire::Http { session, .. } => *session = None,
                Wire::Live(live) => *live = Live::default(),
            }
        }
        done
    }
}

async fn over_http(
    client: &HttpClient,
    session: &mut Option<HeaderValue>,
    colour: Option<&HeaderValue>,
    name: &str,
    action: Action,
) -> Result<Done, Failure> {
    let mut headers = HeaderMap::new();
    if let Some(session) = session {
        headers.insert(AUTHORIZATION, session.clone());
    }
    if let Some(colour) = colour {
        headers.insert("x-env", colour.clone());
    }
    let call = |method, path: &str, body| Call {
        method,
        path: path.to_string(),
        headers: headers.clone(),
        body,
        repeatable: false,
        deadline: DEADLINE,
    };
    match action {
        Action::Login => {
            let body = encoded(&Login {
                player: name.to_string(),
            })?;
            let welcome: Welcome = decoded(client.send(call(Method::POST, "/login", body)).await?)?;
            let bearer = HeaderValue::try_from(format!("Bearer {}", welcome.session));
            *session =
                Some(bearer.map_err(|_| Failure::new("answer", "a session that is no header"))?);
            Ok(Done::default())
        }
        Action::Play => {
            let played: Played = decoded(
                client
                    .send(call(Method::POST, "/play", Bytes::new()))
                    .await?,
            )?;
            Ok(Done {
                live: false,
                version: Some(played.version),
                paired: !played.house,
                ..Done::default()
            })
        }
        Action::Board => {
            let _: Top = decoded(
                client
                    .send(call(Method::GET, "/leaderboard?n=10", Bytes::new()))
                    .await?,
            )?;
            Ok(Done::default())
        }
        Action::Spar | Action::Resume => Err(Failure::new("usage", "only over a WebSocket")),
    }
}

fn encoded(body: &impl Serialize) -> Result<Bytes, Failure> {
    serde_json::to_vec(body)
        .map(Bytes::from)
        .map_err(|error| Failure::new("request", error.to_string()))
}

fn decoded<T: DeserializeOwned>(answer: Response<Bytes>) -> Result<T, Failure> {
    if answer.status().is_success() {
        return serde_json::from_slice(answer.body())
            .map_err(|error| Failure::new("answer", error.to_string()));
    }
    let reason = answer
        .headers()
        .get(REASON)
        .and_then(|value| value.to_str().ok());
    let text = String::from_utf8_lossy(answer.body());
    let problem = serde_json::from_slice::<Problem>(answer.body()).map(|problem| problem.error);
    let message = problem.unwrap_or_else(|_| text.chars().take(200).collect());
    Err(Failure::status(answer.status().as_u16(), reason, message))
}

async fn over_websocket(
    gateway: SocketAddr,
    live: &mut Live,
    name: &str,
    action: Action,
) -> Result<Done, Failure> {
    let login = || {
        ClientMessage::Login(Login {
            player: name.to_string(),
        })
    };
    let message = match action {
        Action::Login | Action::Resume => {
            let stream = TcpStream::connect(gateway)
                .await
                .map_err(tungstenite::Error::Io)?;
            stream.set_nodelay(true).map_err(tungstenite::Error::Io)?;
            let (open, _) = client_async(format!("ws://{}/ws", gateway::NAME), stream).await?;
            live.socket = Some(Box::new(open));
            match live.resume.take().filter(|_| action == Action::Resume) {
                Some(token) => ClientMessage::Resume { token },
                None => login(),
            }
        }
        Action::Play => ClientMessage::Play { wait_ms: 0 },
        Action::Spar => ClientMessage::Spar {
            thrusts: vec![(4000, 0), (8000, 500), (8000, -500), (-2000, 0)],
        },
        Action::Board => ClientMessage::Board {},
    };
    let mut heard = talk(live, &message).await;
    let refused = |kind: &str| kind == "401" || kind == "429";
    let refused = matches!(&heard, Err(failure) if refused(&failure.kind));
    if action == Action::Resume && refused {
        // The gateway that gave the token is gone, or it is too soon to come back by one again.
        heard = talk(live, &login()).await;
    } else if let Ok(done) = &mut heard {
        done.resumed = action == Action::Resume;
    }
    heard
}

/// Says one thing and hears all that answers it.
async fn talk(live: &mut Live, message: &ClientMessage) -> Result<Done, Failure> {
    let open = live
        .socket
        .as_mut()
        .ok_or_else(|| Failure::new("usage", "not connected"))?;
    let text = serde_json::to_string(message)
        .map_err(|error| Failure::new("request", error.to_string()))?;
    open.send(Message::text(text)).await?;
    let mut rounds = 0;
    let live_done = || Done {
        live: true,
        ..Done::default()
    };
    loop {
        let said = open
            .next()
            .await
            .ok_or_else(|| Failure::new("reset", "the gateway hung up"))??;
        let text = match said {
            Message::Text(text) => text,
            Message::Close(frame) => return Err(Failure::new("closed", format!("{frame:?}"))),
            _ => continue,
        };
        let heard: ServerMessage = serde_json::from_str(text.as_str())
            .map_err(|error| Failure::new("answer", error.to_string()))?;
        match heard {
            // From the beginning, once more if need be.
            ServerMessage::Proposal { .. } => rounds = 0,
            ServerMessage::Round { .. } => rounds += 1,
            ServerMessage::Played(played) if played.rounds != rounds => {
                return Err(Failure::new(
                    "answer",
                    format!("heard {rounds} of {} rounds", played.rounds),
                ));
            }
            ServerMessage::Played(played) => {
                return Ok(Done {
                    version: Some(played.version),
                    paired: !played.house,
                    ..live_done()
                });
            }
            ServerMessage::Spared { version, .. } => {
                return Ok(Done {
                    version: Some(version),
                    ..live_done()
                });
            }
            ServerMessage::Welcome(welcome) => {
                live.resume = welcome.resume;
                return Ok(live_done());
            }
            ServerMessage::Error(problem) => return Err(problem.into()),
            ServerMessage::Away { .. } => {
                return Err(Failure::new("closed", "the gateway stops"));
            }
            heard if heard.is_last() => return Ok(live_done()),
            _ => {}
        }
    }
}
