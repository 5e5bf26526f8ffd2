//! What it costs to have an empty battle fought, in processor time of everybody involved: the caller's task, whoever hands
//! the work on, the worker, and the answer's way back. All on a tokio runtime of as many threads as cores, with as many
//! workers.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use kameo::actor::{ActorRef as KameoRef, Spawn};
use kameo_actors::pool::{ActorPool, Dispatch};
use phalanx_game::battle::{
    Battle, Call, Context, Executor, Kind, Options as ExecutorOptions, Reject,
};
use ractor::factory::queues::DefaultQueue;
use ractor::factory::routing::QueuerRouting;
use ractor::factory::{
    Factory, FactoryArguments, FactoryMessage, Job, Worker, WorkerBuilder, WorkerId,
};
use ractor::{ActorProcessingErr, ActorRef};
use tokio::sync::oneshot;

use super::load::cpu_seconds;
use crate::{Options, Row};

/// Calls of one measurement.
const CALLS: u64 = 200_000;
/// Callers at the same time; each has one call in flight.
const IN_FLIGHT: [(u64, &str); 2] = [
    (64, "dispatch of an empty battle, 64 in flight"),
    (1, "dispatch of an empty battle, 1 in flight"),
];

pub fn run(options: &Options) -> anyhow::Result<Vec<Row>> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores)
        .enable_all()
        .build()?;
    let mut rows = Vec::new();
    for (in_flight, case) in IN_FLIGHT {
        let calls = if in_flight == 1 { CALLS / 10 } else { CALLS };
        let mut samples: [Vec<f64>; 3] = Default::default();
        for _ in 0..options.rounds {
            let peers: [Arc<dyn Peer>; 3] = runtime.block_on(async {
                anyhow::Ok([
                    Arc::new(Phalanx::start(cores)?) as Arc<dyn Peer>,
                    Arc::new(RactorPeer::start(cores).await?) as Arc<dyn Peer>,
                    Arc::new(KameoPeer::start(cores)) as Arc<dyn Peer>,
                ])
            })?;
            for (peer, samples) in peers.into_iter().zip(&mut samples) {
                runtime.block_on(drive(peer.clone(), in_flight, calls / 10))?;
                let before = cpu_seconds();
                runtime.block_on(drive(peer.clone(), in_flight, calls))?;
                samples.push((cpu_seconds() - before) * 1e9 / calls as f64);
                runtime.block_on(peer.stop());
            }
        }
        let bar = (in_flight > 1).then(|| "below both".to_owned());
        let whos = ["phalanx", "ractor Factory", "kameo ActorPool"];
        for ((who, samples), bar) in whos.into_iter().zip(samples).zip([bar, None, None]) {
            rows.push(Row {
                case,
                who,
                unit: "CPU-ns per call",
                samples,
                bar,
                note: String::new(),
            });
        }
    }
    Ok(rows)
}

async fn drive(peer: Arc<dyn Peer>, in_flight: u64, calls: u64) -> anyhow::Result<()> {
    let callers: Vec<_> = (0..in_flight)
        .map(|_| {
            let peer = peer.clone();
            tokio::spawn(async move { peer.calls(calls / in_flight).await })
        })
        .collect();
    for caller in callers {
        caller.await??;
    }
    Ok(())
}

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The loop of calls is the peer's own, so that no boxed future per call is measured.
trait Peer: Send + Sync {
    fn calls(&self, count: u64) -> Boxed<'_, anyhow::Result<()>>;
    fn stop(&self) -> Boxed<'_, ()>;
}

struct Echo;

impl Battle for Echo {
    type Input = u64;
    type Output = u64;
    type Rules = ();

    fn fight(&self, _: &mut Context<'_, ()>, input: &u64) -> Result<u64, Reject> {
        Ok(*input)
    }

    fn write_input(input: &u64, out: &mut Vec<u8>) {
        out.extend(input.to_le_bytes());
    }

    fn read_input(bytes: &[u8]) -> Option<u64> {
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    }

    fn write_output(output: &u64, out: &mut Vec<u8>) {
        out.extend(output.to_le_bytes());
    }
}

struct Phalanx {
    executor: std::sync::Mutex<Option<Executor>>,
    kind: Kind<Echo>,
}

impl Phalanx {
    fn start(cores: usize) -> anyhow::Result<Self> {
        let executor = Executor::start(ExecutorOptions {
            cores,
            ..ExecutorOptions::default()
        })?;
        let kind = executor.register("echo", Echo, 1, ())?;
        Ok(Self {
            executor: std::sync::Mutex::new(Some(executor)),
            kind,
        })
    }
}

impl Peer for Phalanx {
    fn calls(&self, count: u64) -> Boxed<'_, anyhow::Result<()>> {
        Box::pin(async move {
            for number in 0..count {
                let fought = self.kind.submit(number, Call::new(number)).await?;
                anyhow::ensure!(fought.output == number);
            }
            Ok(())
        })
    }

    fn stop(&self) -> Boxed<'_, ()> {
        Box::pin(async {
            let executor = self.executor.lock().expect("no holder panics").take();
            if let Some(executor) = executor {
                executor.drain(Duration::from_secs(1)).await;
            }
        })
    }
}

type RactorMessage = FactoryMessage<u64, Ask>;

#[derive(Debug)]
struct Ask(u64, oneshot::Sender<u64>);

struct RactorWorker;

impl Worker for RactorWorker {
    type Key = u64;
    type Message = Ask;
    type State = ();
    type Arguments = ();

    async fn pre_start(
        &self,
        _: WorkerId,
        _: &ActorRef<RactorMessage>,
        (): (),
    ) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(
        &self,
        _: WorkerId,
        _: &ActorRef<RactorMessage>,
        Job {
            key,
            msg: Ask(number, answer),
            ..
        }: Job<u64, Ask>,
        (): &mut (),
    ) -> Result<u64, ActorProcessingErr> {
        let _ = answer.send(number);
        Ok(key)
    }
}

struct RactorBuilder;

impl WorkerBuilder<RactorWorker, ()> for RactorBuilder {
    fn build(&mut self, _: WorkerId) -> (RactorWorker, ()) {
        (RactorWorker, ())
    }
}

struct RactorPeer(ActorRef<RactorMessage>);

impl RactorPeer {
    async fn start(workers: usize) -> anyhow::Result<Self> {
        let factory = Factory::<
            u64,
            Ask,
            (),
            RactorWorker,
            QueuerRouting<u64, Ask>,
            DefaultQueue<u64, Ask>,
        >::default();
        let arguments = FactoryArguments::builder()
            .num_initial_workers(workers)
            .queue(DefaultQueue::default())
            .router(QueuerRouting::default())
            .worker_builder(Box::new(RactorBuilder) as Box<dyn WorkerBuilder<RactorWorker, ()>>)
            .build();
        let (factory, _) = ractor::Actor::spawn(None, factory, arguments).await?;
        Ok(Self(factory))
    }
}

impl Peer for RactorPeer {
    fn calls(&self, count: u64) -> Boxed<'_, anyhow::Result<()>> {
        Box::pin(async move {
            for number in 0..count {
                let (sender, answer) = oneshot::channel();
                let job = Job::new(number, Ask(number, sender));
                self.0
                    .cast(FactoryMessage::Dispatch(job))
                    .map_err(|error| anyhow::anyhow!("{error}"))?;
                anyhow::ensure!(answer.await? == number);
            }
            Ok(())
        })
    }

    fn stop(&self) -> Boxed<'_, ()> {
        Box::pin(async {
            self.0.stop(None);
        })
    }
}

struct KameoWorker;

impl kameo::Actor for KameoWorker {
    type Args = Self;
    type Error = kameo::error::Infallible;

    async fn on_start(args: Self, _: KameoRef<Self>) -> Result<Self, Self::Error> {
        Ok(args)
    }
}

struct Say(u64);

impl kameo::message::Message<Say> for KameoWorker {
    type Reply = u64;

    async fn handle(
        &mut self,
        Say(number): Say,
        _: &mut kameo::message::Context<Self, u64>,
    ) -> u64 {
        number
    }
}

struct KameoPeer(KameoRef<ActorPool<KameoWorker>>);

impl KameoPeer {
    fn start(workers: usize) -> Self {
        Self(ActorPool::spawn(ActorPool::new(workers, || {
            KameoWorker::spawn(KameoWorker)
        })))
    }
}

impl Peer for KameoPeer {
    fn calls(&self, count: u64) -> Boxed<'_, anyhow::Result<()>> {
        Box::pin(async move {
            for number in 0..count {
                let answer = self.0.ask(Dispatch(Say(number))).await;
                let answer = answer.map_err(|_| anyhow::anyhow!("the pool refused"))?;
                anyhow::ensure!(answer == number);
            }
            Ok(())
        })
    }

    fn stop(&self) -> Boxed<'_, ()> {
        Box::pin(async {
            let _ = self.0.stop_gracefully().await;
        })
    }
}
