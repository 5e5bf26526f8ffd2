//! The service `Matchmaking` over shards. Roles and regions have names here and places there; everything else is
//! passed on. Who watches is told until the ticket is matched or gone, or the shard changes hands (`UNAVAILABLE`: watch
//! again, at the next owner).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use phalanx_proto::phalanx::game::v1 as wire;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use wire::gone::Why;
use wire::look_request::Of;
use wire::matchmaking_server::{Matchmaking, MatchmakingServer};
use wire::ticket_state::Stage as WireStage;

use super::caller::{Act, Door, Guard};
use super::{REQUEST_BYTES_MAX, named, pushed_back};
use crate::matchmaking::ledger::{CLASSES, How, Match, MatchId};
use crate::matchmaking::rating::Rating;
use crate::matchmaking::rules::MatchRules;
use crate::matchmaking::ticket::{
    Backfill, BackfillId, Latency, OpenSeats, PARTY_MAX, Player, Roles, Ticket, TicketId,
};
use crate::matchmaking::{Refusal, Request as Ask, Role, Shard, Stage, TicketState, Watching};

/// Shards that one service has at most.
pub const SHARDS_MAX: usize = 256;
/// When to come again, where nothing better is known.
const PUSHBACK: Duration = Duration::from_secs(1);
/// Quality as the search reckons, at its best.
const QUALITY_WHOLE: f64 = 1_000.0;

/// Shards by their keys, as this process has them: as owner, or as a standby that says so.
#[derive(Clone)]
pub struct Shards {
    known: Arc<HashMap<String, One>>,
    door: Door,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShardsError {
    #[error("shard {0} is there twice")]
    Twice(String),
    #[error("{0} shards, {SHARDS_MAX} are served at most")]
    TooMany(usize),
}

#[derive(Clone)]
struct One {
    shard: Shard,
    rules: Arc<MatchRules>,
}

impl Shards {
    /// Each with its rules, by which roles and regions have names.
    ///
    /// # Errors
    /// [`ShardsError`]
    pub fn try_new(
        shards: impl IntoIterator<Item = (Shard, Arc<MatchRules>)>,
    ) -> Result<Self, ShardsError> {
        let mut known = HashMap::new();
        for (shard, rules) in shards {
            let key = shard.key().to_string();
            if known.insert(key.clone(), One { shard, rules }).is_some() {
                return Err(ShardsError::Twice(key));
            }
            if known.len() > SHARDS_MAX {
                return Err(ShardsError::TooMany(known.len()));
            }
        }
        Ok(Self {
            known: Arc::new(known),
            door: Door::default(),
        })
    }

    /// Asks `guard` before each call. Without one, whoever reaches the service may confirm and refuse for anybody.
    #[must_use]
    pub fn guarded(self, guard: impl Guard) -> Self {
        Self {
            door: Door::guarded(guard),
            ..self
        }
    }

    /// For `tonic::transport::Server::add_service`.
    pub fn into_server(self) -> MatchmakingServer<Self> {
        MatchmakingServer::new(self).max_decoding_message_size(REQUEST_BYTES_MAX)
    }

    fn find(&self, key: &str) -> Result<&One, Status> {
        if key.is_empty() {
            let mut all = self.known.values();
            return match (all.next(), all.next()) {
                (Some(only), None) => Ok(only),
                (None, _) => Err(Status::not_found("there is no shard here")),
                _ => Err(Status::invalid_argument("shard: there are several")),
            };
        }
        let found = self.known.get(key);
        found.ok_or_else(|| Status::not_found(format!("there is no shard {}", named(key))))
    }
}

impl One {
    async fn ask(&self, request: Ask) -> Result<Response<wire::TicketState>, Status> {
        let state = self.shard.ask(request).await.map_err(refused)?;
        Ok(Response::new(self.told(&state)))
    }

    async fn offer(&self, request: Ask) -> Result<Response<wire::BackfillState>, Status> {
        let state = self.shard.ask(request).await.map_err(refused)?;
        let offered = matches!(state.stage, Stage::Offered(true));
        Ok(Response::new(wire::BackfillState { offered }))
    }

    fn told(&self, state: &TicketState) -> wire::TicketState {
        wire::TicketState {
            ticket: state.ticket.0,
            stage: self.stage(&state.stage),
        }
    }

    fn stage(&self, stage: &Stage) -> Option<WireStage> {
        Some(match stage {
            Stage::Outside(estimate) => WireStage::Outside(wire::Outside {
                ahead: estimate.ahead,
                likely_ms: estimate.likely.map(ms),
                least_ms: ms(estimate.least),
                most_ms: estimate.most.map(ms),
            }),
            Stage::Waiting { since_ms } => WireStage::Waiting(wire::Waiting {
                since_ms: *since_ms,
            }),
            Stage::Reserved {
                id,
                until_ms,
                ask,
                confirmed,
                players,
            } => WireStage::Proposed(wire::Proposed {
                r#match: id.to_string(),
                until_ms: *until_ms,
                ask: *ask,
                confirmed: *confirmed,
                players: *players,
            }),
            Stage::Ended(How::Matched(made)) => WireStage::Matched(self.matched(made)),
            Stage::Ended(how) => WireStage::Gone(gone(how)),
            Stage::Offered(_) => return None,
        })
    }

    fn matched(&self, made: &Match) -> wire::Matched {
        let role = |place: &Option<u8>| {
            let role = place.and_then(|place| self.rules.spec().roles.get(usize::from(place)));
            role.map(|role| role.name.clone()).unwrap_or_default()
        };
        let teams = made.teams.iter().enumerate().map(|(at, team)| wire::Team {
            players: team
                .iter()
                .flat_map(|party| &party.players)
                .copied()
                .collect(),
            roles: made.roles.get(at).into_iter().flatten().map(role).collect(),
        });
        wire::Matched {
            r#match: made.id.to_string(),
            teams: teams.collect(),
            region: self
                .rules
                .region_name(made.region)
                .unwrap_or_default()
                .to_owned(),
            quality: f64::from(made.quality.score) / QUALITY_WHOLE,
            room: made.room.clone(),
        }
    }

    fn ticket(&self, request: wire::EnqueueRequest) -> Result<Ticket, Status> {
        if request.ticket == 0 {
            return Err(Status::invalid_argument(
                "ticket: choose a number other than 0",
            ));
        }
        if request.players.len() > PARTY_MAX {
            let message = format!("players: {} (at most {PARTY_MAX})", request.players.len());
            return Err(Status::invalid_argument(message));
        }
        let players = request.players.into_iter().enumerate();
        let players = players.map(|(at, player)| self.player(at, player));
        Ok(Ticket {
            id: TicketId(request.ticket),
            players: players.collect::<Result<_, _>>()?,
            // The shard's clock says.
            enqueued_ms: 0,
        })
    }

    fn player(&self, at: usize, player: wire::Player) -> Result<Player, Status> {
        let rating = player
            .rating
            .map(|rating| Rating::new(rating.mu, rating.sigma));
        let mut places = Vec::new();
        for name in &player.roles {
            let place = self.rules.role(name);
            places
                .push(place.ok_or_else(|| unknown(&format!("players[{at}].roles"), "role", name))?);
        }
        let mut latency = Latency::NONE;
        for (name, measured) in &player.latency_ms {
            let region = self.rules.region(name);
            let region = region
                .ok_or_else(|| unknown(&format!("players[{at}].latency_ms"), "region", name))?;
            let measured = u16::try_from(*measured).unwrap_or(Latency::MAX);
            latency.set(region, Some(measured));
        }
        Ok(Player {
            id: player.id,
            rating: rating.unwrap_or_default(),
            roles: Roles::of(&places),
            latency_ms: latency,
        })
    }

    fn backfill(&self, request: &wire::OpenBackfillRequest) -> Result<Backfill, Status> {
        let region = self.rules.region(&request.region);
        let region = region.ok_or_else(|| unknown("region", "region", &request.region))?;
        // The shard refuses more, but a request may name many.
        if request.open.len() > crate::matchmaking::ledger::TEAMS_MAX {
            return Err(Status::invalid_argument(
                "open: more teams than a match has",
            ));
        }
        let open = request.open.iter().map(|team| self.open(team));
        Ok(Backfill {
            id: BackfillId(request.backfill),
            region,
            rating: request.rating,
            open: open.collect::<Result<_, _>>()?,
            since_ms: request.since_ms,
        })
    }

    fn open(&self, team: &wire::OpenSeats) -> Result<OpenSeats, Status> {
        let mut roles = vec![0; self.rules.spec().roles.len()];
        for (name, seats) in &team.roles {
            let place = self.rules.role(name);
            let place = place.ok_or_else(|| unknown("open.roles", "role", name))?;
            if let Some(slot) = roles.get_mut(place) {
                *slot = seats_of("open.roles", *seats)?;
            }
        }
        Ok(OpenSeats {
            roles,
            any: seats_of("open.any", team.any)?,
        })
    }
}

#[tonic::async_trait]
impl Matchmaking for Shards {
    async fn enqueue(
        &self,
        request: Request<wire::EnqueueRequest>,
    ) -> Result<Response<wire::TicketState>, Status> {
        let request = self.door.admit(request, |asked| Act::Enqueue {
            shard: &asked.shard,
            players: asked.players.iter().map(|player| player.id).collect(),
            class: asked.class,
        })?;
        let one = self.find(&request.shard)?;
        let class = u8::try_from(request.class)
            .ok()
            .filter(|class| *class < CLASSES);
        let class = class.ok_or_else(|| {
            Status::invalid_argument(format!("class: {} (0 to {})", request.class, CLASSES - 1))
        })?;
        let ticket = one.ticket(request)?;
        one.ask(Ask::Enqueue { ticket, class }).await
    }

    async fn cancel(
        &self,
        request: Request<wire::CancelRequest>,
    ) -> Result<Response<wire::TicketState>, Status> {
        let request = self.door.admit(request, |asked| Act::Ticket {
            shard: &asked.shard,
            ticket: asked.ticket,
        })?;
        let ticket = TicketId(request.ticket);
        self.find(&request.shard)?.ask(Ask::Cancel { ticket }).await
    }

    async fn look(
        &self,
        request: Request<wire::LookRequest>,
    ) -> Result<Response<wire::TicketState>, Status> {
        let request = self.door.admit(request, |asked| match asked.of {
            Some(Of::Player(player)) => Act::Player {
                shard: &asked.shard,
                player,
            },
            Some(Of::Ticket(ticket)) => Act::Ticket {
                shard: &asked.shard,
                ticket,
            },
            None => Act::Ticket {
                shard: &asked.shard,
                ticket: 0,
            },
        })?;
        let ask = match request.of {
            Some(Of::Ticket(ticket)) => Ask::Look {
                ticket: TicketId(ticket),
            },
            Some(Of::Player(player)) => Ask::LookFor { player },
            None => return Err(Status::invalid_argument("of: a ticket or a player")),
        };
        self.find(&request.shard)?.ask(ask).await
    }

    type WatchStream = ReceiverStream<Result<wire::TicketState, Status>>;

    async fn watch(
        &self,
        request: Request<wire::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let request = self.door.admit(request, |asked| Act::Ticket {
            shard: &asked.shard,
            ticket: asked.ticket,
        })?;
        let one = self.find(&request.shard)?.clone();
        let watching = one
            .shard
            .watch(TicketId(request.ticket))
            .await
            .map_err(refused)?;
        // A watcher who reads slowly is told the newest, not all that was between.
        let (states, stream) = mpsc::channel(1);
        tokio::spawn(async move {
            tokio::select! {
                () = follow(one, watching, &states) => {}
                () = states.closed() => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn confirm(
        &self,
        request: Request<wire::ConfirmRequest>,
    ) -> Result<Response<wire::TicketState>, Status> {
        let request = self.door.admit(request, |asked| Act::Player {
            shard: &asked.shard,
            player: asked.player,
        })?;
        let (id, player) = (match_id(&request.r#match)?, request.player);
        let one = self.find(&request.shard)?;
        one.ask(Ask::Confirm { id, player }).await
    }

    async fn refuse(
        &self,
        request: Request<wire::RefuseRequest>,
    ) -> Result<Response<wire::TicketState>, Status> {
        let request = self.door.admit(request, |asked| Act::Player {
            shard: &asked.shard,
            player: asked.player,
        })?;
        let (id, player) = (match_id(&request.r#match)?, request.player);
        let one = self.find(&request.shard)?;
        one.ask(Ask::Refuse { id, player }).await
    }

    async fn open_backfill(
        &self,
        request: Request<wire::OpenBackfillRequest>,
    ) -> Result<Response<wire::BackfillState>, Status> {
        let request = self.door.admit(request, |asked| Act::Backfill {
            shard: &asked.shard,
            backfill: asked.backfill,
        })?;
        let one = self.find(&request.shard)?;
        let backfill = one.backfill(&request)?;
        let room = request.room;
        one.offer(Ask::OpenBackfill { backfill, room }).await
    }

    async fn close_backfill(
        &self,
        request: Request<wire::CloseBackfillRequest>,
    ) -> Result<Response<wire::BackfillState>, Status> {
        let request = self.door.admit(request, |asked| Act::Backfill {
            shard: &asked.shard,
            backfill: asked.backfill,
        })?;
        let id = BackfillId(request.backfill);
        let one = self.find(&request.shard)?;
        one.offer(Ask::CloseBackfill { id }).await
    }

    async fn status(
        &self,
        request: Request<wire::StatusRequest>,
    ) -> Result<Response<wire::StatusResponse>, Status> {
        let request = self.door.admit(request, |asked| Act::Status {
            shard: &asked.shard,
        })?;
        let one = self.find(&request.shard)?;
        let (spec, metrics) = (one.rules.spec(), one.shard.metrics());
        Ok(Response::new(wire::StatusResponse {
            owner: matches!(metrics.role, Role::Owner { .. }),
            regions: spec
                .regions
                .iter()
                .map(|region| region.name.clone())
                .collect(),
            roles: spec.roles.iter().map(|role| role.name.clone()).collect(),
            teams: spec.teams.into(),
            team_size: spec.team_size.into(),
            inside: metrics.owner.inside,
            outside: metrics.owner.outside,
        }))
    }
}

/// Tells a watcher until there is nothing more to tell.
async fn follow(
    one: One,
    mut watching: Watching,
    states: &mpsc::Sender<Result<wire::TicketState, Status>>,
) {
    while let Some(state) = watching.next().await {
        let last = state.stage.is_final();
        if states.send(Ok(one.told(&state))).await.is_err() || last {
            return;
        }
    }
    let over = Status::unavailable("the shard changes hands: watch again");
    let _ = states.send(Err(over)).await;
}

fn gone(how: &How) -> wire::Gone {
    let (why, id) = match how {
        How::Matched(made) => (Why::Unspecified, Some(made.id)),
        How::Cancelled => (Why::Cancelled, None),
        How::Expired => (Why::Expired, None),
        How::Refused { id, .. } => (Why::Refused, Some(*id)),
        How::Unconfirmed { id } => (Why::Unconfirmed, Some(*id)),
    };
    wire::Gone {
        why: why.into(),
        r#match: id.map(|id| id.to_string()).unwrap_or_default(),
    }
}

fn match_id(text: &str) -> Result<MatchId, Status> {
    text.parse()
        .map_err(|error| Status::invalid_argument(format!("match: {error}")))
}

fn seats_of(path: &str, seats: u32) -> Result<u8, Status> {
    let seats = u8::try_from(seats);
    seats.map_err(|_| Status::invalid_argument(format!("{path}: more seats than a team has")))
}

fn unknown(path: &str, what: &str, name: &str) -> Status {
    Status::invalid_argument(format!("{path}: the rules have no {what} {}", named(name)))
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn refused(refusal: Refusal) -> Status {
    let message = refusal.to_string();
    match refusal {
        Refusal::Unfit(_) | Refusal::RoomTooLong { .. } => Status::invalid_argument(message),
        Refusal::NoTicket(_) | Refusal::NoPlayer(_) => Status::not_found(message),
        Refusal::Queued { .. } | Refusal::Taken(_) | Refusal::OtherBackfill(_) => {
            Status::already_exists(message)
        }
        Refusal::NoSeat { .. } | Refusal::Reserved { .. } | Refusal::Filling(_) => {
            Status::failed_precondition(message)
        }
        Refusal::Full { .. }
        | Refusal::WatchesFull { .. }
        | Refusal::BackfillsFull { .. }
        | Refusal::Busy => pushed_back(message, Some(PUSHBACK)),
        Refusal::Draining | Refusal::NotOwner { .. } | Refusal::Unknown => {
            Status::unavailable(message)
        }
    }
}
