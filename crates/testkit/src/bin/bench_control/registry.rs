//! Instances by the million: registered, kept alive by batches of heartbeats, looked up by name.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use phalanx_proto::phalanx::registry::v1 as wire;
use prost::Message;
use serde_json::{Value as Json, json};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::grpc::Link;
use crate::spread;

/// Instances of services `s<n>` in namespace `load`, filled up one after the other.
#[derive(Clone, Copy)]
pub struct Crowd {
    pub instances: usize,
    pub services: usize,
}

impl Crowd {
    fn instance(self, number: usize) -> wire::Instance {
        let (service, id) = self.names(number);
        let address = std::net::Ipv4Addr::from_bits(0x0a00_0001 + number as u32);
        wire::Instance {
            id,
            namespace: NAMESPACE.to_owned(),
            labels: [("app", service.as_str()), ("version", "v1")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            service,
            ports: vec![wire::Port {
                name: "game".to_owned(),
                address: format!("{address}:15006"),
                number: 7000,
                protocol: String::new(),
            }],
            zone: format!("az{}", number % 3),
            weight: 1,
            ..Default::default()
        }
    }

    fn names(self, number: usize) -> (String, String) {
        let each = self.instances.div_ceil(self.services).max(1);
        (format!("s{}", number / each), format!("i{number}"))
    }

    /// Registers all, each once, with so many under way at once.
    pub async fn register(self, address: SocketAddr) -> anyhow::Result<Json> {
        let begun = Instant::now();
        let mut workers = JoinSet::new();
        for worker in 0..CONNECTIONS {
            let link = Arc::new(Link::connect(address).await?);
            for lane in 0..LANES {
                let (link, first) = (link.clone(), worker * LANES + lane);
                workers.spawn(async move {
                    for number in (first..self.instances).step_by(CONNECTIONS * LANES) {
                        let request = wire::RegisterRequest {
                            instance: Some(self.instance(number)),
                            epoch: 1,
                            ttl_ms: TTL_MS,
                        };
                        let path = "/phalanx.registry.v1.Registry/Register";
                        link.ask::<wire::RegisterResponse>(path, &request).await?;
                    }
                    anyhow::Ok(())
                });
            }
        }
        while let Some(done) = workers.join_next().await {
            done??;
        }
        let seconds = begun.elapsed().as_secs_f64();
        Ok(
            json!({ "instances": self.instances, "seconds": seconds, "per_second": self.instances as f64 / seconds }),
        )
    }

    /// All of them in turn, so many a second; the times are those of a batch's answer.
    pub async fn beat(
        self,
        address: SocketAddr,
        per_second: usize,
        time: Duration,
    ) -> anyhow::Result<Json> {
        let link = Link::connect(address).await?;
        let mut call = link
            .call("/phalanx.registry.v1.Registry/Heartbeats")
            .await?;
        let each = Duration::from_millis(20);
        let batch = (per_second / 50).max(1);
        let mut ticks = interval(each);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let (begun, mut next, mut times) = (Instant::now(), 0, Vec::new());
        while begun.elapsed() < time {
            ticks.tick().await;
            let sent = Instant::now();
            let beats = (next..next + batch).map(|number| {
                let (service, id) = self.names(number % self.instances);
                wire::Beat {
                    namespace: NAMESPACE.to_owned(),
                    service,
                    id,
                    epoch: 1,
                    ttl_ms: TTL_MS,
                }
            });
            call.send(&wire::HeartbeatBatch {
                sequence: next as u64,
                beats: beats.collect(),
            })?;
            next += batch;
            let answer = call.next().await?.context("the stream ended")?;
            let answer = wire::HeartbeatBatchAnswer::decode(answer)?;
            ensure!(
                answer.unknown.is_empty(),
                "{} instances are not known",
                answer.unknown.len()
            );
            times.push(sent.elapsed());
        }
        let mut told = spread(times);
        told["per_second"] = (next as f64 / begun.elapsed().as_secs_f64()).into();
        Ok(told)
    }

    /// Addresses of instances and SRV records of services by DNS over UDP, so many a second.
    pub async fn look_up(
        self,
        address: SocketAddr,
        per_second: usize,
        time: Duration,
    ) -> anyhow::Result<Json> {
        let mut askers = JoinSet::new();
        for asker in 0..ASKERS {
            askers.spawn(self.ask(address, asker, per_second / ASKERS, time));
        }
        let (mut took, mut times, mut lost) = (Duration::ZERO, Vec::new(), 0);
        while let Some(done) = askers.join_next().await {
            let (of_one, missing, until) = done??;
            took = took.max(until);
            times.extend(of_one);
            lost += missing;
        }
        let answered = times.len() as f64;
        let mut told = spread(times);
        told["per_second"] = (answered / took.as_secs_f64()).into();
        told["lost"] = lost.into();
        Ok(told)
    }

    /// Sends on schedule whether or not answers come, so that a server that falls behind shows it.
    async fn ask(
        self,
        address: SocketAddr,
        asker: usize,
        per_second: usize,
        time: Duration,
    ) -> anyhow::Result<(Vec<Duration>, usize, Duration)> {
        let socket = UdpSocket::bind("127.0.0.1:0").await?;
        socket.connect(address).await?;
        let each = Duration::from_micros(400);
        let batch = (per_second / 2500).max(1);
        let total = (time.as_micros() / each.as_micros()) as usize * batch;
        let (mut sent, mut times) = (vec![None; QUESTIONS], Vec::with_capacity(total));
        let (mut asked, mut buffer) = (0, [0; 1500]);
        let mut ticks = interval(each);
        let begun = Instant::now();
        let (end, mut took) = (begun + time + Duration::from_secs(1), time);
        while times.len() < total && Instant::now() < end {
            tokio::select! {
                biased;
                read = socket.recv(&mut buffer) => {
                    let read = buffer.get(..read?).unwrap_or_default();
                    let (Some(id), Some(flags)) = (read.get(..2), read.get(3)) else { bail!("that is no answer") };
                    ensure!(flags & 0x0f == 0, "code {}", flags & 0x0f);
                    let slot: &mut Option<Instant> = &mut sent[usize::from(u16::from_be_bytes([id[0], id[1]]))];
                    times.extend(slot.take().map(|at| at.elapsed()));
                    took = begun.elapsed();
                }
                _ = ticks.tick(), if asked < total => for _ in 0..batch.min(total - asked) {
                    let id = asked % QUESTIONS;
                    let question = self.question(id as u16, asker * 7919 + asked * 31);
                    sent[id] = Some(Instant::now());
                    socket.send(&question).await?;
                    asked += 1;
                },
                () = tokio::time::sleep_until(end.into()) => {}
            }
        }
        let lost = asked - times.len();
        Ok((times, lost, took))
    }

    /// An instance's address, which is what a client asks that was given an SRV record.
    fn question(self, id: u16, number: usize) -> Vec<u8> {
        let (service, instance) = self.names(number % self.instances);
        let mut bytes = [
            id.to_be_bytes(),
            [0x01, 0x00],
            [0, 1],
            [0, 0],
            [0, 0],
            [0, 0],
        ]
        .concat();
        for label in [&instance, &service, NAMESPACE, "svc", "mesh"] {
            bytes.push(label.len() as u8);
            bytes.extend_from_slice(label.as_bytes());
        }
        bytes.extend_from_slice(&[0, 0, 1, 0, 1]);
        bytes
    }
}

const NAMESPACE: &str = "load";
const TTL_MS: u32 = 600_000;
const CONNECTIONS: usize = 8;
const LANES: usize = 128;
const ASKERS: usize = 4;
/// Numbers of questions.
const QUESTIONS: usize = 65_536;
