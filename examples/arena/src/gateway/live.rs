//! The WebSocket: a player's messages one after another, each answered before the next one is read.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use axum::http::StatusCode;
use phalanx_game::session::Stage;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_stream::StreamExt;
use tonic::Status;

use super::asking::{Asking, play_deadline};
use super::message::{ClientMessage, Problem, ServerMessage, Welcome};
use super::presence::{Farewell, Presence, Socket};
use super::{BATTLE_DEADLINE, Gateway, Refusal};
use crate::carry::Carried;
use crate::proto::arena::v1::{PlayReply, SparMove, play_event};

/// In one training.
const THRUSTS_MAX: usize = 64;
/// Who takes a message no sooner is gone.
const TAKEN_WITHIN: Duration = Duration::from_secs(10);

/// Runs until the player goes or the gateway stops; a message that is being answered then is answered.
pub async fn converse(
    gateway: Arc<Gateway>,
    mut socket: WebSocket,
    carried: Carried,
    stop: impl Future<Output = ()>,
) {
    let place = gateway.with_presence(Presence::connect);
    let mut session = None;
    listen(&gateway, &mut socket, &carried, &place, &mut session, stop).await;
    gateway.with_presence(|presence| presence.disconnect(&place, session.as_deref()));
}

async fn listen(
    gateway: &Gateway,
    socket: &mut WebSocket,
    carried: &Carried,
    place: &Socket,
    session: &mut Option<String>,
    stop: impl Future<Output = ()>,
) {
    tokio::pin!(stop);
    loop {
        let said = tokio::select! {
            said = socket.recv() => said,
            () = place.replaced.notified() => {
                return close(socket, close_code::NORMAL, "the player is back by another connection").await;
            }
            () = &mut stop => {
                let farewell = session.as_deref();
                let farewell = farewell.and_then(|id| gateway.with_presence(|p| p.farewell(id)));
                if let Some(Farewell { token, after }) = farewell {
                    let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
                    let _ = say(socket, &ServerMessage::Away { after_ms, resume: token }).await;
                }
                return close(socket, close_code::AWAY, "the gateway stops").await;
            }
        };
        let Some(Ok(message)) = said else { return };
        let text = match message {
            Message::Text(text) => text,
            Message::Close(_) => return,
            // Pings are answered below us; there are no binary messages in this game.
            _ => continue,
        };
        let mut talk = Talk {
            gateway,
            socket,
            carried,
            place,
            session,
        };
        let answered = match serde_json::from_str(text.as_str()) {
            Ok(message) => talk.answer(message).await,
            Err(error) => Err(Refusal::bad_request(error.to_string())),
        };
        let last = match answered {
            Ok(last) => last,
            Err(refusal) => ServerMessage::Error(Problem::from(&refusal)),
        };
        if say(socket, &last).await.is_err() {
            return;
        }
    }
}

async fn close(socket: &mut WebSocket, code: u16, reason: &'static str) {
    let frame = CloseFrame {
        code,
        reason: reason.into(),
    };
    let _ = socket.send(Message::Close(Some(frame))).await;
}

struct Talk<'a> {
    gateway: &'a Gateway,
    socket: &'a mut WebSocket,
    carried: &'a Carried,
    place: &'a Socket,
    /// Its id, once logged in.
    session: &'a mut Option<String>,
}

impl Talk<'_> {
    /// Says all but the last message, which it returns.
    async fn answer(&mut self, message: ClientMessage) -> Result<ServerMessage, Refusal> {
        match message {
            ClientMessage::Login(login) => {
                let welcome = self.gateway.login(&login.player)?;
                self.leave();
                *self.session = Some(welcome.session.clone());
                let resume = self.gateway.with_presence(|presence| {
                    presence.enter(&welcome.session, &welcome.player, self.place)
                });
                Ok(ServerMessage::Welcome(Welcome { resume, ..welcome }))
            }
            ClientMessage::Resume { token } => self.resume(&token).await,
            ClientMessage::Play { wait_ms } => {
                self.stage(Stage::InBattle);
                let deadline = play_deadline(wait_ms);
                let played = within(deadline, self.play(wait_ms, deadline)).await;
                self.stage(Stage::Browsing);
                played
            }
            ClientMessage::Spar { thrusts } => within(BATTLE_DEADLINE, self.spar(thrusts)).await,
            ClientMessage::Board {} => Ok(ServerMessage::Board(
                self.gateway.top(10, self.carried).await?,
            )),
        }
    }

    /// Back in the session that the token names.
    async fn resume(&mut self, token: &str) -> Result<ServerMessage, Refusal> {
        let (pass, hold) = self.gateway.with_presence(|p| p.knock(token))?;
        tokio::time::sleep(hold).await;
        let (id, session) = self.gateway.session(Some(pass.session.as_str()))?;
        let resume = self
            .gateway
            .with_presence(|p| p.resume(&pass, self.place))?;
        if self.session.as_ref() != Some(&id) {
            self.leave();
            *self.session = Some(id.clone());
        }
        Ok(ServerMessage::Welcome(Welcome {
            player: session.player,
            session: id,
            rating: session.rating,
            resume,
        }))
    }

    /// The session before goes on without this connection.
    fn leave(&mut self) {
        if let Some(former) = self.session.take() {
            let gone = |presence: &mut Presence| presence.leave(&former, self.place);
            self.gateway.with_presence(gone);
        }
    }

    fn stage(&self, stage: Stage) {
        if let Some(id) = &self.session {
            self.gateway
                .with_presence(|presence| presence.stage(id, stage));
        }
    }

    /// Asks again when the matchmaker dies: the match is then told from its beginning.
    async fn play(&mut self, wait_ms: u32, deadline: Duration) -> Result<ServerMessage, Refusal> {
        let (id, session) = self.gateway.session(self.session.as_deref())?;
        let mut asking = Asking::of(session, wait_ms, deadline);
        loop {
            match self.told(&id, &asking).await? {
                Ok(result) => {
                    return Ok(ServerMessage::Played(self.gateway.played(&id, result)));
                }
                Err(status) => asking.again(status).await?,
            }
        }
    }

    /// Says what one call tells of a match. What can be asked again is the inner error.
    async fn told(
        &mut self,
        id: &str,
        asking: &Asking,
    ) -> Result<Result<PlayReply, Status>, Refusal> {
        let request = self.carried.clone().in_session(id);
        let until = Instant::now() + asking.attempt();
        let request = request.request(asking.request.clone(), asking.attempt());
        let mut matchmaker = self.gateway.matchmaker.clone();
        let mut events = match matchmaker.play_live(request).await {
            Ok(events) => events.into_inner(),
            Err(status) => return Ok(Err(status)),
        };
        loop {
            let event = match timeout_at(until, events.next()).await {
                Ok(Some(Ok(event))) => event,
                Ok(Some(Err(status))) => return Ok(Err(status)),
                Ok(None) => {
                    return Ok(Err(Status::unavailable("the match ended without a result")));
                }
                Err(_) => return Ok(Err(Status::deadline_exceeded("match: no end in time"))),
            };
            match event.event {
                Some(play_event::Event::Proposal(proposal)) => {
                    let opponent = proposal.opponent.unwrap_or_default().player;
                    let proposal = ServerMessage::Proposal {
                        match_id: proposal.match_id,
                        opponent,
                        house: proposal.house,
                    };
                    self.say(proposal).await?;
                }
                Some(play_event::Event::Round(round)) => {
                    self.say(ServerMessage::Round {
                        number: round.number,
                        attacker: round.attacker,
                        damage: round.damage,
                        critical: round.critical,
                    })
                    .await?;
                }
                Some(play_event::Event::Result(result)) => return Ok(Ok(result)),
                None => {}
            }
        }
    }

    /// Both directions at once: battle answers every move while the stream is open.
    async fn spar(&mut self, thrusts: Vec<(i32, i32)>) -> Result<ServerMessage, Refusal> {
        let (id, _) = self.gateway.session(self.session.as_deref())?;
        if thrusts.is_empty() || thrusts.len() > THRUSTS_MAX {
            return Err(Refusal::bad_request(format!(
                "a training takes 1 to {THRUSTS_MAX} thrusts"
            )));
        }
        let moves = thrusts
            .into_iter()
            .map(|(thrust_x, thrust_y)| SparMove { thrust_x, thrust_y });
        let moves = tokio_stream::iter(moves.collect::<Vec<_>>());
        let request = self
            .carried
            .clone()
            .in_session(&id)
            .request(moves, BATTLE_DEADLINE);
        let mut answers = self
            .gateway
            .battle
            .clone()
            .spar(request)
            .await?
            .into_inner();
        let (mut moves, mut hits, mut version) = (0, 0, String::new());
        while let Some(answer) = answers.next().await.transpose()? {
            moves += 1;
            hits += u32::from(answer.hit);
            version = answer.version;
            self.say(ServerMessage::Moved {
                number: answer.number,
                x: answer.x,
                y: answer.y,
                hit: answer.hit,
            })
            .await?;
        }
        Ok(ServerMessage::Spared {
            moves,
            hits,
            version,
        })
    }

    async fn say(&mut self, message: ServerMessage) -> Result<(), Refusal> {
        say(self.socket, &message)
            .await
            .map_err(|_| Refusal::unavailable("the player is gone"))
    }
}

async fn say(socket: &mut WebSocket, message: &ServerMessage) -> Result<(), axum::Error> {
    let text = serde_json::to_string(message).map_err(axum::Error::new)?;
    let sent = timeout(TAKEN_WITHIN, socket.send(Message::text(text))).await;
    sent.map_err(axum::Error::new)?
}

/// A call's own deadline ends with its headers: this is the stream's.
async fn within<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, Refusal>>,
) -> Result<T, Refusal> {
    let late = |_| {
        let message = format!("no end within {limit:?}");
        Err(Refusal::new(StatusCode::GATEWAY_TIMEOUT, message))
    };
    timeout(limit, answer).await.unwrap_or_else(late)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_has_no_end_is_a_timeout() {
        let endless = std::future::pending::<Result<(), Refusal>>();
        let refusal = within(Duration::from_millis(1), endless).await.unwrap_err();
        assert_eq!(Problem::from(&refusal).status, 504);
        assert_eq!(within(BATTLE_DEADLINE, async { Ok(7) }).await.ok(), Some(7));
    }
}
