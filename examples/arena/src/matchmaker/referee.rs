//! Has a match fought by battle, and scored on the leaderboard.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::bout::{Bout, Bouts, Outcome};
use super::caller::settled;
use crate::battle::{self, ROUNDS_MAX};
use crate::call::{Call, HttpClient};
use crate::carry::{REASON, failed, passed_on};
use crate::leaderboard::{self, MatchScores, Score};
use crate::proto::arena::v1::battle_client::BattleClient;
use crate::proto::arena::v1::{FightReply, FightRequest, Fighter, Round, watch_event};

const FIGHT_DEADLINE: Duration = Duration::from_secs(5);
/// Given with an answer, if at all, and said again in the next call of the same match.
const SEAT: &str = "x-battle-seat";
const SCORE_DEADLINE: Duration = Duration::from_secs(3);

/// What a worker does with a match.
pub struct Referee {
    bouts: Arc<Bouts>,
    battle: BattleClient<Channel>,
    board: HttpClient,
}

impl Referee {
    pub fn try_new(bouts: Arc<Bouts>, outbound: SocketAddr) -> anyhow::Result<Self> {
        Ok(Self {
            bouts,
            battle: battle::client(outbound)?,
            board: HttpClient::new(outbound, leaderboard::NAME),
        })
    }

    /// From the first blow to the last word to its players.
    pub async fn play(&self, bout: &Bout) {
        // Whoever was to play it gave up before its turn came.
        if bout.is_left() {
            return self.bouts.fail(bout, &Status::cancelled("nobody is here"));
        }
        match self.referee(bout).await {
            Ok(outcome) => self.bouts.end(bout, outcome),
            Err(status) => self.bouts.fail(bout, &settled(status)),
        }
    }

    async fn referee(&self, bout: &Bout) -> Result<Outcome, Status> {
        let fought = tokio::time::timeout(FIGHT_DEADLINE, self.legs(bout)).await;
        let outcome =
            fought.map_err(|_| Status::deadline_exceeded("battle: the fight took too long"))??;
        self.score(bout, &outcome).await?;
        Ok(outcome)
    }

    /// One fight against the house, two against a player: the second one with sides changed.
    async fn legs(&self, bout: &Bout) -> Result<Outcome, Status> {
        let request = |leg: u32, left: &Fighter, right: &Fighter| FightRequest {
            match_id: format!("{}.{leg}", bout.id),
            left: Some(left.clone()),
            right: Some(right.clone()),
        };
        let (own, other) = (&bout.pairing.left, &bout.pairing.right);
        let first = self.leg(bout, None, request(1, own, other)).await?;
        let outcome = |margin: i64, legs, last: FightReply| {
            let winner = if margin > 0 { own } else { other };
            Outcome {
                winner: winner.player.clone(),
                version: last.version,
                rules: last.rules,
                legs,
            }
        };
        // A fight always has a winner, also when the margin is nought: the odd point decides.
        let odd = if first.reply.winner == own.player {
            1
        } else {
            -1
        };
        if bout.pairing.house {
            return Ok(outcome(odd, 1, first.reply));
        }
        let second = self
            .leg(bout, first.seat.clone(), request(2, other, own))
            .await?;
        let margin = 2 * (first.margin - second.margin) + odd;
        Ok(outcome(margin, 2, second.reply))
    }

    /// One fight; the audience hears every round. With the `seat` of an earlier one it is fought by the same battle.
    async fn leg(
        &self,
        bout: &Bout,
        seat: Option<AsciiMetadataValue>,
        request: FightRequest,
    ) -> Result<Leg, Status> {
        let named = |status: Status| passed_on(battle::NAME, &status);
        let mut request = bout.carried.request(request, FIGHT_DEADLINE);
        if let Some(seat) = seat {
            request.metadata_mut().insert(SEAT, seat);
        }
        let mut battle = self.battle.clone();
        let mut leg = Leg::default();
        if !bout.is_live() {
            let answer = battle.fight(request).await.map_err(named)?;
            leg.seat = answer.metadata().get(SEAT).cloned();
            let mut reply = answer.into_inner();
            for round in reply.rounds.drain(..).take(ROUNDS_MAX) {
                leg.count(&round);
                bout.round(round);
            }
            leg.reply = reply;
            return Ok(leg);
        }
        let answer = battle.watch(request).await.map_err(named)?;
        leg.seat = answer.metadata().get(SEAT).cloned();
        let mut stream = answer.into_inner();
        let mut ended = None;
        while let Some(event) = stream.message().await.map_err(named)? {
            match event.event {
                Some(watch_event::Event::Round(round)) if leg.rounds < ROUNDS_MAX => {
                    leg.count(&round);
                    bout.round(round);
                }
                // The stream is read to its end: a caller that leaves before the trailers has cancelled the call.
                Some(watch_event::Event::Result(reply)) => ended = Some(reply),
                _ => {}
            }
        }
        leg.reply =
            ended.ok_or_else(|| Status::unavailable("battle: the fight ended without a result"))?;
        Ok(leg)
    }

    async fn score(&self, bout: &Bout, outcome: &Outcome) -> Result<(), Status> {
        let score = |(player, rating, won): (&Fighter, u32, bool)| Score {
            player: player.player.clone(),
            rating,
            won,
        };
        let scores = MatchScores {
            match_id: bout.id.clone(),
            scores: bout.scores(outcome).map(score).collect(),
        };
        let body =
            serde_json::to_vec(&scores).map_err(|error| Status::internal(error.to_string()))?;
        let call = Call {
            method: Method::POST,
            path: "/scores".into(),
            headers: bout.carried.headers().clone(),
            body: Bytes::from(body),
            // A match counts once, however often its score comes.
            repeatable: true,
            deadline: SCORE_DEADLINE,
        };
        let refused =
            |code, message: String, reason| Err(failed(leaderboard::NAME, code, &message, reason));
        match self.board.send(call).await {
            Ok(answer) if answer.status().is_success() => Ok(()),
            Ok(answer) => {
                let reason = answer
                    .headers()
                    .get(REASON)
                    .and_then(|value| value.to_str().ok());
                refused(
                    Code::Unavailable,
                    format!("answered {}", answer.status()),
                    reason,
                )
            }
            Err(error) => refused(Code::Unavailable, error.to_string(), None),
        }
    }
}

/// How one of a match's fights ended.
#[derive(Default)]
struct Leg {
    reply: FightReply,
    /// What battle wants to be told when the match goes on.
    seat: Option<AsciiMetadataValue>,
    rounds: usize,
    /// Health of the left fighter less that of the right one.
    margin: i64,
}

impl Leg {
    fn count(&mut self, round: &Round) {
        self.rounds += 1;
        self.margin = i64::from(round.left_health) - i64::from(round.right_health);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matchmaker::bout::Pairing;
    use crate::matchmaker::caller::Caller;
    use crate::proto::arena::v1::PlayRequest;

    #[tokio::test]
    async fn a_match_that_all_its_players_gave_up_is_not_fought() {
        let nobody_calls = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        nobody_calls.set_nonblocking(true).unwrap();
        let outbound = nobody_calls.local_addr().unwrap();
        let bouts = Arc::<Bouts>::default();
        let referee = Referee::try_new(bouts.clone(), outbound).unwrap();
        let request = PlayRequest {
            player: "ann".into(),
            rating: 1000,
            ..PlayRequest::default()
        };
        let (ann, gone) = Caller::of(tonic::Request::new(request), false).unwrap();
        drop(gone);
        let pairing = Pairing::with_house(ann.ticket, &ann.fighter);
        let bout = bouts.join(pairing, ann).unwrap();
        referee.play(&bout).await;
        let called = nobody_calls.accept().map(|_| ());
        assert_eq!(
            called.map_err(|error| error.kind()),
            Err(std::io::ErrorKind::WouldBlock)
        );
    }
}
