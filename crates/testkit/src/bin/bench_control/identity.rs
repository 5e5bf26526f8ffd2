//! Certificates: how fast they are signed, and a crowd of workloads that joins and renews, each over a TLS connection of its own. A
//! workload's own work (its key, checking what it gets) is left out of what is timed where it can be: each has a machine of its own.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper_util::rt::TokioIo;
use phalanx_client::admin::Admin;
use phalanx_client::api::JoinTokenRequest;
use phalanx_client::identity::Proof;
use phalanx_client::secure::{Protocol, Secure, trusting};
use phalanx_pki::clock::UnixMillis;
use phalanx_pki::csr::{self, Csr};
use phalanx_pki::issuer::{Attestation, Order, RootCa};
use phalanx_pki::key::{Key, KeyKind};
use phalanx_pki::name::{TrustDomain, Workload};
use phalanx_pki::roots::Roots;
use phalanx_testkit::member::Member;
use serde_json::{Value as Json, json};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::spread;

const YEAR: Duration = Duration::from_secs(365 * 86_400);
const LIFE: Duration = Duration::from_secs(72 * 3600);
/// Different requests, in turn.
const REQUESTS: usize = 64;
/// Tokens that are made at a time.
const MAKERS: usize = 16;
/// How often, and after how long, a workload asks again that was told to come later.
const TRIES: usize = 20;
const AGAIN: Duration = Duration::from_millis(100);
/// Renewals of one workload while as many are made as are answered: with those before, fewer than one holder may have at once (50).
const SHARE: u64 = 40;

/// Signs leaves on one thread: each request is read, its signature and names are checked.
pub fn sign(time: Duration) -> anyhow::Result<Json> {
    let (domain, now) = (TrustDomain::default(), UnixMillis(1_800_000_000_000));
    let root = RootCa::create(&domain, KeyKind::default(), now, YEAR)?;
    let issuer = root.intermediate(KeyKind::default(), now, YEAR)?;
    let mut requests = Vec::new();
    for n in 0..REQUESTS {
        let workload = Workload::parse(&domain, "default", &format!("w-{n}"), Some("az1"))?;
        let key = Key::generate(KeyKind::default())?;
        requests.push((csr::request(&key, &workload)?, workload));
    }
    let (begun, before, mut count) = (Instant::now(), on_cpu()?, 0_u64);
    while begun.elapsed() < time {
        for (request, workload) in &requests {
            let csr = Csr::from_der(request)?;
            let operator = Attestation::Operator {
                name: "bench".into(),
            };
            let order = Order::new(workload, LIFE, operator);
            std::hint::black_box(issuer.issue(&csr, &order, now)?);
            count += 1;
        }
    }
    let cpu = (on_cpu()? - before).as_secs_f64();
    Ok(json!({ "count": count, "per_cpu_second": count as f64 / cpu }))
}

/// Of this thread.
fn on_cpu() -> anyhow::Result<Duration> {
    let text = fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanos = text.split_whitespace().next().context("no schedstat")?;
    Ok(Duration::from_nanos(nanos.parse()?))
}

/// Workloads `w-0`, `w-1`, …
#[derive(Default)]
pub struct Workloads(Vec<Member>);

impl Workloads {
    /// Each joins by a token of its own; `data` is the control plane's. Making the tokens is not timed.
    pub async fn join(
        admin: &str,
        xds: &str,
        data: &str,
        count: usize,
    ) -> anyhow::Result<(Self, Json)> {
        let folder = Path::new(data).join("admin");
        let roots = fs::read_to_string(folder.join("roots.pem"))?;
        let secure = Secure::try_new(
            trusting(Roots::from_pem(roots.as_bytes())?),
            Protocol::Http1,
        )?;
        let token = fs::read_to_string(folder.join("token"))?;
        let client = Admin::new(admin).with_secure(secure).with_token(&token);
        let mut proofs = Vec::new();
        for start in (0..count).step_by(MAKERS) {
            let mut made = JoinSet::new();
            for n in start..(start + MAKERS).min(count) {
                let client = client.clone();
                made.spawn(async move {
                    let request = JoinTokenRequest {
                        namespace: "default".into(),
                        service: format!("w-{n}"),
                        ttl_ms: 3_600_000,
                        ..JoinTokenRequest::default()
                    };
                    client
                        .join_token(&request)
                        .await
                        .map(|made| (n, made.token))
                });
            }
            while let Some(made) = made.join_next().await {
                proofs.push(made??);
            }
        }
        let mut tasks = JoinSet::new();
        let begun = Instant::now();
        for (n, token) in proofs {
            let member = Member::new(xds, &roots, &format!("w-{n}"))?;
            tasks.spawn(async move {
                join(&member, &token).await?;
                anyhow::Ok((member, begun.elapsed()))
            });
        }
        let (mut members, mut times) = (Vec::new(), Vec::new());
        while let Some(joined) = tasks.join_next().await {
            let (member, took) = joined??;
            members.push(member);
            times.push(took);
        }
        let answer = told(begun.elapsed(), times);
        Ok((Self(members), answer))
    }

    /// All at once, over new connections or those that they have; one who is told to come later does.
    pub async fn renew(&mut self, on_new_connections: bool) -> anyhow::Result<Json> {
        let mut tasks = JoinSet::new();
        let begun = Instant::now();
        for member in std::mem::take(&mut self.0) {
            if on_new_connections {
                member.reconnect();
            }
            tasks.spawn(async move {
                let renewed = renew(&member).await;
                renewed.map(|()| (member, begun.elapsed()))
            });
        }
        let mut times = Vec::new();
        while let Some(renewed) = tasks.join_next().await {
            let (member, took) = renewed??;
            self.0.push(member);
            times.push(took);
        }
        Ok(told(begun.elapsed(), times))
    }

    /// All at once, again every second.
    pub async fn waves(&mut self, time: Duration) -> anyhow::Result<Json> {
        let (begun, mut waves, mut count) = (Instant::now(), Vec::new(), 0);
        while begun.elapsed() < time {
            let wave = Instant::now();
            self.renew(false).await?;
            waves.push(wave.elapsed());
            count += self.0.len();
            sleep(Duration::from_secs(1).saturating_sub(wave.elapsed())).await;
        }
        Ok(json!({ "renewed": count, "waves": spread(waves) }))
    }

    /// As many as are answered, until the time is over or each has its share.
    pub async fn renew_for(&mut self, time: Duration) -> anyhow::Result<Json> {
        let mut tasks = JoinSet::new();
        let begun = Instant::now();
        for member in std::mem::take(&mut self.0) {
            tasks.spawn(async move {
                let mut count = 0_u64;
                while begun.elapsed() < time && count < SHARE {
                    renew(&member).await?;
                    count += 1;
                }
                anyhow::Ok((member, count))
            });
        }
        let mut count = 0;
        while let Some(renewed) = tasks.join_next().await {
            let (member, own) = renewed??;
            self.0.push(member);
            count += own;
        }
        Ok(json!({ "count": count, "per_second": count as f64 / begun.elapsed().as_secs_f64() }))
    }
}

/// With one key, as a token is good for one.
async fn join(member: &Member, token: &str) -> anyhow::Result<()> {
    let key = Key::generate(KeyKind::default())?;
    let mut tries = 0;
    loop {
        tries += 1;
        let proof = Proof::JoinToken(token.to_owned());
        match member.join_as(proof, key.clone()).await {
            Ok(_) => return Ok(()),
            Err(error) if tries == TRIES => return Err(error),
            Err(_) => sleep(AGAIN).await,
        }
    }
}

async fn renew(member: &Member) -> anyhow::Result<()> {
    let mut tries = 0;
    loop {
        tries += 1;
        match member.renew().await {
            Ok(_) => return Ok(()),
            Err(error) if tries == TRIES => return Err(error),
            Err(_) => sleep(AGAIN).await,
        }
    }
}

fn told(took: Duration, times: Vec<Duration>) -> Json {
    let (count, seconds) = (times.len() as f64, took.as_secs_f64());
    let mut answer = spread(times);
    answer["s"] = seconds.into();
    answer["per_second"] = (count / seconds).into();
    answer
}

/// A constant load: `rate` requests a second on `connections` that stay, each request timed from when it is sent.
pub async fn pulse(
    address: std::net::SocketAddr,
    host: &str,
    connections: u32,
    rate: u32,
    time: Duration,
) -> anyhow::Result<Json> {
    let (begun, mut tasks) = (Instant::now(), JoinSet::new());
    let every = Duration::from_secs(1) * connections / rate;
    for n in 0..connections {
        let host = host.to_owned();
        tasks.spawn(async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let io = TokioIo::new(stream);
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
            tokio::spawn(connection);
            sleep(every * n / connections).await;
            let mut ticks = interval(every);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut times = Vec::new();
            while begun.elapsed() < time {
                ticks.tick().await;
                let request = Request::get("/")
                    .header("host", &host)
                    .body(Empty::<Bytes>::new())?;
                let sent = Instant::now();
                let answer = sender.send_request(request).await?;
                anyhow::ensure!(answer.status() == 200, "answered {}", answer.status());
                answer.into_body().collect().await?;
                times.push(sent.elapsed());
            }
            anyhow::Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(own) = tasks.join_next().await {
        times.extend(own??);
    }
    Ok(spread(times))
}
