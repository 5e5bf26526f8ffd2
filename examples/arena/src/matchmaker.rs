//! Match: brings players of like rating together, has each match fought by battle and scored on the leaderboard. A player
//! whom nobody meets in time fights one of the house. Who plays by everybody's rules waits in a shard that survives
//! `kill -9` (`queue`); a developer's lane waits in this process alone (`lobby`). A match outlives the call of either of its
//! players: it is the job of a pool of workers whose size follows the load.

mod bout;
mod caller;
mod lobby;
mod queue;
mod referee;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use phalanx_game::workers::{Bounds, PoolOptions, Refused, Staffing, Workers};
use phalanx_telemetry::metrics::Family;
use tokio::net::TcpListener;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::call;
use crate::carry::pushed_back;
use crate::proto::arena::v1 as wire;
use crate::serve::{self, ServiceConfig, Stop};
use bout::{Bout, Bouts, Pairing};
pub use caller::SETTLED;
use caller::{Caller, Events};
use lobby::{Lobby, Player};
use queue::Queue;
use referee::Referee;
use wire::matchmaker_client::MatchmakerClient;
use wire::matchmaker_server::{Matchmaker, MatchmakerServer};
use wire::{PlayEvent, PlayReply, PlayRequest, play_event};

pub const NAME: &str = "match";

/// Matches that are played at once, at least and at most, and that wait for their turn.
const WORKERS_MIN: u32 = 32;
const WORKERS_MAX: u32 = 512;
const MATCHES_MAX: usize = 1024;
/// What a player who is refused waits at least.
const PUSHBACK: Duration = Duration::from_millis(100);
/// How long matches under way are waited for after the stop.
const LAST_MATCHES: Duration = Duration::from_secs(5);

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
    let folder = config
        .folder
        .context("match keeps a log: give it --folder")?;
    let queue = Queue::open(config.listen, &folder.join(NAME), config.replica).await?;
    let bouts = Arc::<Bouts>::default();
    let referee = Arc::new(Referee::try_new(bouts.clone(), config.outbound)?);
    let pool = PoolOptions {
        name: NAME.into(),
        queue_max: MATCHES_MAX,
        ..PoolOptions::default()
    };
    let policy = Staffing::within(Bounds::try_new(WORKERS_MIN, WORKERS_MAX)?);
    let workers = Workers::spawn(pool, policy, move |bout: Arc<Bout>| {
        let referee = referee.clone();
        async move { referee.play(&bout).await }
    });
    let room = Arc::new(Room {
        queue,
        lanes: Mutex::new(Lobby::try_new()?),
        started: Instant::now(),
        bouts,
        workers,
    });
    let shown = room.clone();
    let service = MatchmakerServer::new(Door(room.clone()));
    let routes = serve::with_metrics(Routes::new(service), move |out| {
        shown.workers.write(out);
        shown.queue.write(out);
        let lanes = shown.with_lanes(|lanes| lanes.len()) as u64;
        let waiting = shown.queue.len() + lanes;
        out.family(&WAITING).sample(&[], waiting);
    });
    // Only the owner of the shard takes players; the standby says that it doesn't serve.
    let owned = room.queue.owned();
    tokio::select! {
        served = serve::grpc_while(NAME, listener, routes, &stop, owned) => served?,
        reason = room.queue.failed() => anyhow::bail!("the queue failed: {reason}"),
    }
    room.workers.drain(LAST_MATCHES).await;
    room.queue.drain().await;
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
        Err(Status::unavailable("the match ended without a result"))
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

struct Room {
    queue: Queue,
    /// A mutex, because the process has one thread and nothing is awaited under it.
    lanes: Mutex<Lobby<Caller>>,
    started: Instant,
    bouts: Arc<Bouts>,
    workers: Workers<Arc<Bout>>,
}

impl Room {
    /// Lets a player wait; the events of the match come over the channel.
    fn enter(
        self: &Arc<Self>,
        request: Request<PlayRequest>,
        live: bool,
    ) -> Result<Events, Status> {
        let (caller, events) = Caller::of(request, live)?;
        match caller.colour().is_empty() {
            true => {
                let room = self.clone();
                tokio::spawn(async move {
                    match room.queue.seek(&caller).await {
                        Some(Ok(pairing)) => room.play(pairing, caller),
                        Some(Err(status)) => caller.fail(status),
                        None => {}
                    }
                });
            }
            false => self.enter_lane(caller)?,
        }
        Ok(events)
    }

    fn enter_lane(self: &Arc<Self>, caller: Caller) -> Result<(), Status> {
        let wait = caller.wait;
        let now_ms = self.started.elapsed().as_millis() as u64;
        let entered = self.with_lanes(|lanes| lanes.enter(caller, now_ms));
        let Some((place, met)) = entered else {
            return Err(pushed_back("the lobby is full".into(), PUSHBACK));
        };
        for (seed, other) in met {
            let tickets = [seed.ticket, other.ticket];
            let pairing = Pairing::of(tickets, [seed.fighter.clone(), other.fighter.clone()]);
            self.play(pairing.clone(), seed);
            self.play(pairing, other);
        }
        if !self.with_lanes(|lanes| lanes.holds(place)) {
            return Ok(());
        }
        let room = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            if let Some(alone) = room.with_lanes(|lanes| lanes.leave(place)) {
                let pairing = Pairing::with_house(alone.ticket, &alone.fighter);
                room.play(pairing, alone);
            }
        });
        Ok(())
    }

    /// Lets a player in on a match, which the first one begins.
    fn play(&self, pairing: Pairing, caller: Caller) {
        let Some(bout) = self.bouts.join(pairing, caller) else {
            return;
        };
        if let Err(Refused { job, why }) = self.workers.submit(bout) {
            let wait = self.workers.wait().unwrap_or_default().max(PUSHBACK);
            self.bouts.fail(&job, &pushed_back(why.to_string(), wait));
        }
    }

    fn with_lanes<T>(&self, work: impl FnOnce(&mut Lobby<Caller>) -> T) -> T {
        work(&mut self.lanes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
