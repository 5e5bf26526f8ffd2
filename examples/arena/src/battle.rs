//! Battle: turns the impacts that physics computes into rounds, by the rules of this process' version, on the threads of an
//! executor: what can't be done within the caller's deadline is refused at once.
//! The outcome follows from match id, fighters and rules alone: a repeated call gets the same answer.

mod fight;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use phalanx_game::battle::{self as kit, Call, Executor, Kind, Reject};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use crate::carry::{Carried, budget, passed_on, pushed_back};
use crate::proto::arena::v1 as wire;
use crate::serve::{self, ServiceConfig, Stop};
use crate::{call, physics};
use fight::{Bout, Fight, Ring, Rules, Training};
pub use fight::{NAME_MAX, ROUNDS_MAX};
use wire::battle_client::BattleClient;
use wire::battle_server::{Battle, BattleServer};
use wire::physics_client::PhysicsClient;
use wire::{FightReply, FightRequest, SparAnswer, SparMove, WatchEvent, watch_event};

pub const NAME: &str = "battle";

/// Moves in one training.
const MOVES_MAX: u32 = 64;
/// How long one goes on where the caller says nothing.
const TRAINING_MAX: Duration = Duration::from_secs(60);
const PHYSICS_DEADLINE: Duration = Duration::from_secs(3);
/// Operations of a fight: far more than any has.
const FUEL: u64 = 10_000;

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
    // One of many processes on a machine, and physics has the greater part of the work.
    let executor = Arc::new(Executor::start(kit::Options {
        cores: 1,
        ..kit::Options::default()
    })?);
    let rules = Rules::of_version(&config.version);
    let arena = Arena {
        kind: executor.register(NAME, Ring, rules.number(), rules)?,
        rules,
        version: config.version,
        physics: physics::client(config.outbound)?,
    };
    let shown = executor.clone();
    let routes = serve::with_metrics(Routes::new(BattleServer::new(arena)), move |out| {
        shown.write(out);
    });
    serve::grpc(NAME, listener, routes, &stop).await?;
    executor.close();
    Ok(())
}

/// A client of the service, by its name.
pub fn client(outbound: SocketAddr) -> anyhow::Result<BattleClient<Channel>> {
    Ok(BattleClient::new(call::grpc(outbound, NAME)?))
}

struct Arena {
    version: String,
    rules: Rules,
    kind: Kind<Ring>,
    physics: PhysicsClient<Channel>,
}

impl Arena {
    async fn decide(&self, request: Request<FightRequest>) -> Result<FightReply, Status> {
        let begin = Instant::now();
        // What is decided here is decided by the rules that were in force when the call came.
        let rules = self.kind.pin();
        let within = budget(request.metadata()).unwrap_or(PHYSICS_DEADLINE);
        let carried = Carried::from_metadata(request.metadata());
        let fight = Fight::try_new(request.into_inner())?;
        let simulate = carried.request(fight.opening(), PHYSICS_DEADLINE.min(within));
        let simulated = self.physics.clone().simulate(simulate).await;
        let simulated = simulated.map_err(|status| passed_on(physics::NAME, &status))?;
        let mut impacts = simulated.into_inner().impacts;
        impacts.truncate(ROUNDS_MAX);
        let mut call = Call::new(fight.seed(self.rules))
            .within(within.saturating_sub(begin.elapsed()))
            .fuel(FUEL);
        if let Some(session) = carried.session() {
            call = call.session(session);
        }
        let bout = Bout { fight, impacts };
        let fought = self.kind.submit_pinned(&rules, bout, call).await;
        let fought = fought.map_err(refused)?;
        Ok(FightReply {
            version: self.version.clone(),
            ..fought.output
        })
    }
}

fn refused(reject: Reject) -> Status {
    let message = reject.to_string();
    match reject {
        Reject::Overloaded { retry_after } => pushed_back(message, retry_after),
        Reject::DeadlinePassed { .. } => Status::deadline_exceeded(message),
        Reject::Cancelled => Status::cancelled(message),
        Reject::Draining => Status::unavailable(message),
        Reject::Foul(_) => Status::invalid_argument(message),
        Reject::NoSuchRules { .. } => Status::failed_precondition(message),
        Reject::Exhausted { .. } | Reject::Panicked { .. } | Reject::Poison { .. } => {
            Status::internal(message)
        }
    }
}

#[tonic::async_trait]
impl Battle for Arena {
    async fn fight(&self, request: Request<FightRequest>) -> Result<Response<FightReply>, Status> {
        Ok(Response::new(self.decide(request).await?))
    }

    type WatchStream = tokio_stream::Iter<std::vec::IntoIter<Result<WatchEvent, Status>>>;

    async fn watch(
        &self,
        request: Request<FightRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let mut result = self.decide(request).await?;
        let rounds = std::mem::take(&mut result.rounds)
            .into_iter()
            .map(watch_event::Event::Round);
        let events = rounds.chain([watch_event::Event::Result(result)]);
        let events: Vec<_> = events
            .map(|event| Ok(WatchEvent { event: Some(event) }))
            .collect();
        Ok(Response::new(tokio_stream::iter(events)))
    }

    type SparStream = ReceiverStream<Result<SparAnswer, Status>>;

    async fn spar(
        &self,
        request: Request<Streaming<SparMove>>,
    ) -> Result<Response<Self::SparStream>, Status> {
        let carried = Carried::from_metadata(request.metadata());
        let within = budget(request.metadata()).unwrap_or(TRAINING_MAX);
        let (answers, stream) = mpsc::channel(1);
        let (physics, version) = (self.physics.clone(), self.version.clone());
        tokio::spawn(async move {
            let train = train(request.into_inner(), carried, physics, version, &answers);
            let ended = tokio::select! {
                ended = train => ended,
                () = answers.closed() => Ok(()),
                () = tokio::time::sleep(within.min(TRAINING_MAX)) => {
                    Err(Status::deadline_exceeded("the training took too long"))
                }
            };
            if let Err(status) = ended {
                let _ = answers.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// Answers each move with one tick of physics, until the player ends the stream.
async fn train(
    mut moves: Streaming<SparMove>,
    carried: Carried,
    mut physics: PhysicsClient<Channel>,
    version: String,
    answers: &mpsc::Sender<Result<SparAnswer, Status>>,
) -> Result<(), Status> {
    let mut training = Training::new();
    let mut number = 0;
    while let Some(step) = moves.message().await? {
        number += 1;
        if number > MOVES_MAX {
            return Err(Status::resource_exhausted(format!(
                "a training has at most {MOVES_MAX} moves"
            )));
        }
        let stepped = physics
            .step(carried.request(training.thrust(&step), PHYSICS_DEADLINE))
            .await;
        let stepped = stepped.map_err(|status| passed_on(physics::NAME, &status))?;
        let answer = training.stepped(stepped.into_inner(), number, &version);
        if answers.send(Ok(answer)).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}
