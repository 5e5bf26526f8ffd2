//! Match: brings players of like rating together, has each match fought by battle and scored on the leaderboard. A player
//! who waits alone meets a fighter of the house. A match outlives the call of either of its players: it is the job of a
//! pool of workers whose size follows the load.

mod lobby;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::Method;
use phalanx_game::workers::{Bounds, PoolOptions, Refused, Staffing, Workers};
use phalanx_telemetry::metrics::Family;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::AsciiMetadataValue;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use crate::battle::{self, NAME_MAX, ROUNDS_MAX};
use crate::call::{self, Call, HttpClient};
use crate::carry::{Carried, REASON, failed, passed_on, pushed_back};
use crate::leaderboard::{self, MatchScores, Score};
use crate::proto::arena::v1 as wire;
use crate::serve::{self, ServiceConfig, Stop};
use lobby::{Lobby, RATING_MAX, RATING_MIN, rated};
use wire::battle_client::BattleClient;
use wire::matchmaker_client::MatchmakerClient;
use wire::matchmaker_server::{Matchmaker, MatchmakerServer};
use wire::{
    FightReply, FightRequest, Fighter, PlayEvent, PlayReply, PlayRequest, Proposal, play_event,
    watch_event,
};

pub const NAME: &str = "match";

/// How long a player waits for another one.
const HOUSE_AFTER: Duration = Duration::from_millis(2);
const FIGHT_DEADLINE: Duration = Duration::from_secs(5);
/// Given with an answer, if at all, and said again in the next call of the same match.
const SEAT: &str = "x-battle-seat";
const SCORE_DEADLINE: Duration = Duration::from_secs(3);
/// Matches that are played at once, at least and at most, and that wait for their turn.
const WORKERS_MIN: u32 = 32;
const WORKERS_MAX: u32 = 512;
const MATCHES_MAX: usize = 1024;
/// What a player who is refused waits at least.
const PUSHBACK: Duration = Duration::from_millis(100);
/// How long matches under way are waited for after the stop.
const LAST_MATCHES: Duration = Duration::from_secs(5);
/// A proposal, the rounds of two legs and a result: sending to a player never waits.
const EVENTS_MAX: usize = 2 * ROUNDS_MAX + 2;

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
    let referee = Arc::new(Referee {
        battle: battle::client(config.outbound)?,
        board: HttpClient::new(config.outbound, leaderboard::NAME),
    });
    let pool = PoolOptions {
        name: NAME.into(),
        queue_max: MATCHES_MAX,
        ..PoolOptions::default()
    };
    let policy = Staffing::within(Bounds::try_new(WORKERS_MIN, WORKERS_MAX)?);
    let workers = Workers::spawn(pool, policy, move |job: Match| {
        let referee = referee.clone();
        async move { referee.play(job).await }
    });
    let room = Arc::new(Room {
        lobby: Mutex::new(Lobby::try_new()?),
        started: Instant::now(),
        workers,
    });
    let shown = room.clone();
    let service = MatchmakerServer::new(Door(room.clone()));
    let routes = serve::with_metrics(Routes::new(service), move |out| {
        shown.workers.write(out);
        let waiting = shown.with_lobby(|lobby| lobby.len());
        out.family(&WAITING).sample(&[], waiting as u64);
    });
    serve::grpc(NAME, listener, routes, &stop).await?;
    room.workers.drain(LAST_MATCHES).await;
    Ok(())
}

const WAITING: Family = Family::gauge(
    "arena_players_waiting",
    "Players who wait for somebody to meet.",
);

/// A client of the service, by its name.
pub fn client(outbound: SocketAddr) -> anyhow::Result<MatchmakerClient<Channel>> {
    Ok(MatchmakerClient::new(call::grpc(outbound, NAME)?))
}

type Events = mpsc::Receiver<Result<PlayEvent, Status>>;

struct Door(Arc<Room>);

#[tonic::async_trait]
impl Matchmaker for Door {
    async fn play(&self, request: Request<PlayRequest>) -> Result<Response<PlayReply>, Status> {
        let mut events = self.0.enter(request, false)?;
        while let Some(event) = events.recv().await {
            if let Some(play_event::Event::Result(result)) = event?.event {
                return Ok(Response::new(result));
            }
        }
        Err(Status::internal("the match ended without a result"))
    }

    type PlayLiveStream = ReceiverStream<Result<PlayEvent, Status>>;

    async fn play_live(
        &self,
        request: Request<PlayRequest>,
    ) -> Result<Response<Self::PlayLiveStream>, Status> {
        Ok(Response::new(ReceiverStream::new(
            self.0.enter(request, true)?,
        )))
    }
}

/// A player who waits or is in a match.
struct Ticket {
    fighter: Fighter,
    carried: Carried,
    /// Wants the rounds, not only the result.
    live: bool,
    events: mpsc::Sender<Result<PlayEvent, Status>>,
}

impl Ticket {
    fn tell(&self, event: play_event::Event) {
        // Fails when the caller is gone; there is room for every event of a match.
        let _ = self.events.try_send(Ok(PlayEvent { event: Some(event) }));
    }
}

impl lobby::Player for Ticket {
    fn name(&self) -> &str {
        &self.fighter.player
    }

    fn rating(&self) -> u32 {
        self.fighter.rating
    }

    fn colour(&self) -> &[u8] {
        self.carried.colour()
    }

    fn left(&self) -> bool {
        self.events.is_closed()
    }
}

enum Opponent {
    Player(Box<Ticket>),
    House(Fighter),
}

impl Opponent {
    fn fighter(&self) -> &Fighter {
        match self {
            Self::Player(ticket) => &ticket.fighter,
            Self::House(fighter) => fighter,
        }
    }

    fn ticket(&self) -> Option<&Ticket> {
        match self {
            Self::Player(ticket) => Some(ticket),
            Self::House(_) => None,
        }
    }
}

/// One that was made.
struct Match {
    seed: Ticket,
    opponent: Opponent,
}

impl Match {
    fn tickets(&self) -> impl Iterator<Item = &Ticket> {
        [Some(&self.seed), self.opponent.ticket()]
            .into_iter()
            .flatten()
    }

    fn fail(&self, status: &Status) {
        for ticket in self.tickets() {
            let _ = ticket.events.try_send(Err(status.clone()));
        }
    }
}

struct Room {
    /// A mutex, because the process has one thread and nothing is awaited under it.
    lobby: Mutex<Lobby<Ticket>>,
    started: Instant,
    workers: Workers<Match>,
}

impl Room {
    /// Lets a player wait; the events of the match come over the channel.
    fn enter(
        self: &Arc<Self>,
        request: Request<PlayRequest>,
        live: bool,
    ) -> Result<Events, Status> {
        let carried = Carried::from_metadata(request.metadata());
        let PlayRequest { player, rating } = request.into_inner();
        let rating = rating.clamp(RATING_MIN, RATING_MAX);
        if !(1..=NAME_MAX).contains(&player.len()) {
            return Err(Status::invalid_argument("a player needs a name"));
        }
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let ticket = Ticket {
            fighter: Fighter { player, rating },
            carried,
            live,
            events,
        };
        let now_ms = self.started.elapsed().as_millis() as u64;
        let entered = self.with_lobby(|lobby| lobby.enter(ticket, now_ms));
        let Some((place, met)) = entered else {
            return Err(pushed_back("the lobby is full".into(), PUSHBACK));
        };
        for (seed, other) in met {
            self.begin(seed, Opponent::Player(Box::new(other)));
        }
        if !self.with_lobby(|lobby| lobby.holds(place)) {
            return Ok(receiver);
        }
        let room = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(HOUSE_AFTER).await;
            if let Some(seed) = room.with_lobby(|lobby| lobby.leave(place)) {
                let house = lobby::house(seed.fighter.rating);
                room.begin(seed, Opponent::House(house));
            }
        });
        Ok(receiver)
    }

    fn begin(&self, seed: Ticket, opponent: Opponent) {
        let submitted = self.workers.submit(Match { seed, opponent });
        if let Err(Refused { job, why }) = submitted {
            let wait = self.workers.wait().unwrap_or_default().max(PUSHBACK);
            job.fail(&pushed_back(why.to_string(), wait));
        }
    }

    fn with_lobby<T>(&self, work: impl FnOnce(&mut Lobby<Ticket>) -> T) -> T {
        work(&mut self.lobby.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What a worker does with a match.
struct Referee {
    battle: BattleClient<Channel>,
    board: HttpClient,
}

impl Referee {
    /// From the proposal to the last word to its players.
    async fn play(&self, job: Match) {
        // Whoever was to play it gave up before its turn came.
        if job.tickets().all(lobby::Player::left) {
            return;
        }
        let match_id = format!("{:016x}", fastrand::u64(..));
        if let Err(status) = self.referee(&match_id, &job.seed, &job.opponent).await {
            job.fail(&status);
        }
    }

    async fn referee(
        &self,
        match_id: &str,
        seed: &Ticket,
        opponent: &Opponent,
    ) -> Result<(), Status> {
        let tickets = || [Some(seed), opponent.ticket()].into_iter().flatten();
        let audience: Vec<_> = tickets().filter(|ticket| ticket.live).collect();
        for ticket in &audience {
            let (other, house) = facing(ticket, seed, opponent);
            let proposal = Proposal {
                match_id: match_id.into(),
                opponent: Some(other.clone()),
                house,
            };
            ticket.tell(play_event::Event::Proposal(proposal));
        }
        let fought = tokio::time::timeout(
            FIGHT_DEADLINE,
            self.legs(match_id, seed, opponent, &audience),
        )
        .await;
        let outcome =
            fought.map_err(|_| Status::deadline_exceeded("battle: the fight took too long"))??;
        let results: Vec<_> = tickets()
            .map(|ticket| {
                (
                    ticket,
                    result(match_id, ticket, facing(ticket, seed, opponent), &outcome),
                )
            })
            .collect();
        self.score(&seed.carried, match_id, &results).await?;
        for (ticket, result) in results {
            ticket.tell(play_event::Event::Result(result));
        }
        Ok(())
    }

    /// One fight against the house, two against a player: the second one with sides changed.
    async fn legs(
        &self,
        match_id: &str,
        seed: &Ticket,
        opponent: &Opponent,
        audience: &[&Ticket],
    ) -> Result<Outcome, Status> {
        let request = |leg: u32, left: &Fighter, right: &Fighter| FightRequest {
            match_id: format!("{match_id}.{leg}"),
            left: Some(left.clone()),
            right: Some(right.clone()),
        };
        let (own, other) = (&seed.fighter, opponent.fighter());
        let first = self
            .leg(&seed.carried, None, request(1, own, other), audience, 0)
            .await?;
        let outcome = |margin: i64, rounds, legs, last: FightReply| {
            let winner = if margin > 0 { own } else { other };
            Outcome {
                winner: winner.player.clone(),
                version: last.version,
                rules: last.rules,
                rounds,
                legs,
            }
        };
        // A fight always has a winner, also when the margin is nought: the odd point decides.
        let odd = if first.reply.winner == own.player {
            1
        } else {
            -1
        };
        if opponent.ticket().is_none() {
            return Ok(outcome(odd, first.rounds, 1, first.reply));
        }
        let second = self
            .leg(
                &seed.carried,
                first.seat.clone(),
                request(2, other, own),
                audience,
                first.rounds,
            )
            .await?;
        let margin = 2 * (first.margin - second.margin) + odd;
        Ok(outcome(
            margin,
            first.rounds + second.rounds,
            2,
            second.reply,
        ))
    }

    /// One fight. The audience hears every round, numbered on from `before`. With the `seat` of an earlier one it is fought
    /// by the same battle.
    async fn leg(
        &self,
        carried: &Carried,
        seat: Option<AsciiMetadataValue>,
        request: FightRequest,
        audience: &[&Ticket],
        before: u32,
    ) -> Result<Leg, Status> {
        let named = |status: Status| passed_on(battle::NAME, &status);
        let mut request = carried.request(request, FIGHT_DEADLINE);
        if let Some(seat) = seat {
            request.metadata_mut().insert(SEAT, seat);
        }
        let mut battle = self.battle.clone();
        let mut leg = Leg::default();
        if audience.is_empty() {
            let answer = battle.fight(request).await.map_err(named)?;
            leg.seat = answer.metadata().get(SEAT).cloned();
            let mut reply = answer.into_inner();
            reply.rounds.drain(..).for_each(|round| leg.count(&round));
            leg.reply = reply;
            return Ok(leg);
        }
        let answer = battle.watch(request).await.map_err(named)?;
        leg.seat = answer.metadata().get(SEAT).cloned();
        let mut stream = answer.into_inner();
        let mut ended = None;
        while let Some(event) = stream.message().await.map_err(named)? {
            match event.event {
                Some(watch_event::Event::Round(mut round)) if leg.rounds < ROUNDS_MAX as u32 => {
                    leg.count(&round);
                    round.number = before + leg.rounds;
                    audience
                        .iter()
                        .for_each(|ticket| ticket.tell(play_event::Event::Round(round.clone())));
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

    async fn score(
        &self,
        carried: &Carried,
        match_id: &str,
        results: &[(&Ticket, PlayReply)],
    ) -> Result<(), Status> {
        let score = |(ticket, result): &(&Ticket, PlayReply)| Score {
            player: ticket.fighter.player.clone(),
            rating: result.rating,
            won: result.won,
        };
        let scores = MatchScores {
            match_id: match_id.to_string(),
            scores: results.iter().map(score).collect(),
        };
        let body =
            serde_json::to_vec(&scores).map_err(|error| Status::internal(error.to_string()))?;
        let call = Call {
            method: Method::POST,
            path: "/scores".into(),
            headers: carried.headers().clone(),
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

/// Whom a player of the match faces, and whether that is the house.
fn facing<'a>(ticket: &Ticket, seed: &'a Ticket, opponent: &'a Opponent) -> (&'a Fighter, bool) {
    if ticket.fighter.player == seed.fighter.player {
        (opponent.fighter(), opponent.ticket().is_none())
    } else {
        (&seed.fighter, false)
    }
}

fn result(
    match_id: &str,
    ticket: &Ticket,
    (other, house): (&Fighter, bool),
    outcome: &Outcome,
) -> PlayReply {
    let won = outcome.winner == ticket.fighter.player;
    PlayReply {
        match_id: match_id.to_string(),
        opponent: Some(other.clone()),
        house,
        won,
        rating: rated(ticket.fighter.rating, other.rating, won),
        version: outcome.version.clone(),
        rules: outcome.rules.clone(),
        rounds: outcome.rounds,
        legs: outcome.legs,
    }
}

/// How a match ended.
struct Outcome {
    winner: String,
    version: String,
    rules: String,
    rounds: u32,
    legs: u32,
}

/// How one of its fights ended.
#[derive(Default)]
struct Leg {
    reply: FightReply,
    /// What battle wants to be told when the match goes on.
    seat: Option<AsciiMetadataValue>,
    rounds: u32,
    /// Health of the left fighter less that of the right one.
    margin: i64,
}

impl Leg {
    fn count(&mut self, round: &wire::Round) {
        self.rounds += 1;
        self.margin = i64::from(round.left_health) - i64::from(round.right_health);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_match_that_all_its_players_gave_up_is_not_fought() {
        let nobody_calls = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        nobody_calls.set_nonblocking(true).unwrap();
        let outbound = nobody_calls.local_addr().unwrap();
        let referee = Referee {
            battle: battle::client(outbound).unwrap(),
            board: HttpClient::new(outbound, leaderboard::NAME),
        };
        let (events, gone) = mpsc::channel(EVENTS_MAX);
        drop(gone);
        let seed = Ticket {
            fighter: Fighter {
                player: "ann".into(),
                rating: 1000,
            },
            carried: Carried::default(),
            live: false,
            events,
        };
        let opponent = Opponent::House(lobby::house(1000));
        referee.play(Match { seed, opponent }).await;
        let called = nobody_calls.accept().map(|_| ());
        assert_eq!(
            called.map_err(|error| error.kind()),
            Err(std::io::ErrorKind::WouldBlock)
        );
    }
}
