//! The load on a control plane: a command a line on standard input, a line of JSON for each on standard output. It outlives
//! the commands, so that streams stay open between them.
//!
//! `mesh ADMIN SERVICES`, `streams XDS CLUSTERS`, `open N`, `reopen N`, `change URL-OF-A-PEER|ADMIN`, `close`,
//! `crowd INSTANCES SERVICES`, `register XDS`, `beat XDS RATE S`, `lookup DNS RATE S`, `both XDS DNS BEATS LOOKUPS S`,
//! `etcd-register URL N`, `etcd-beat URL N S`, `sign S`, `join ADMIN XDS DATA N`, `renew new|open`, `renew-for S`, `waves S`,
//! `pulse ADDRESS HOST CONNECTIONS RATE S`.

#[path = "bench_control/etcd.rs"]
mod etcd;
#[path = "bench_control/grpc.rs"]
mod grpc;
#[path = "bench_control/identity.rs"]
mod identity;
#[path = "bench_control/mesh.rs"]
mod mesh;
#[path = "bench_control/registry.rs"]
mod registry;
#[path = "bench_control/streams.rs"]
mod streams;

use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value as Json, json};
use tokio::io::{AsyncBufReadExt, BufReader};

use identity::Workloads;
use registry::Crowd;
use streams::Fleet;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut load = Load::default();
    while let Some(line) = lines.next_line().await? {
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = load
            .carry_out(&words)
            .await
            .unwrap_or_else(|error| json!({ "error": format!("{error:#}") }));
        println!("{answer}");
    }
    Ok(())
}

#[derive(Default)]
struct Load {
    fleet: Option<Fleet>,
    crowd: Option<Crowd>,
    workloads: Workloads,
    changes: u32,
}

impl Load {
    async fn carry_out(&mut self, words: &[&str]) -> anyhow::Result<Json> {
        let seconds = |text: &str| anyhow::Ok(Duration::from_secs(text.parse()?));
        match *words {
            ["mesh", admin, services] => mesh::make(admin, services.parse()?).await,
            ["streams", xds, clusters] => {
                self.fleet = Some(Fleet::new(xds.parse()?, clusters.parse()?));
                Ok(json!({}))
            }
            ["open", count] => self.fleet()?.open(count.parse()?, false).await,
            ["reopen", count] => self.fleet()?.open(count.parse()?, true).await,
            ["change", admin] => {
                self.changes += 1;
                let change = mesh::change(admin, self.changes);
                self.fleet()?.change(change).await
            }
            ["close"] => {
                self.fleet = None;
                Ok(json!({}))
            }
            ["crowd", instances, services] => {
                self.crowd = Some(Crowd {
                    instances: instances.parse()?,
                    services: services.parse()?,
                });
                Ok(json!({}))
            }
            ["register", xds] => self.crowd()?.register(xds.parse()?).await,
            ["beat", xds, rate, time] => {
                let crowd = self.crowd()?;
                crowd
                    .beat(xds.parse()?, rate.parse()?, seconds(time)?)
                    .await
            }
            ["lookup", dns, rate, time] => {
                let crowd = self.crowd()?;
                crowd
                    .look_up(dns.parse()?, rate.parse()?, seconds(time)?)
                    .await
            }
            ["both", xds, dns, beats, lookups, time] => {
                let (crowd, time) = (self.crowd()?, seconds(time)?);
                let beats = crowd.beat(xds.parse()?, beats.parse()?, time);
                let lookups = crowd.look_up(dns.parse()?, lookups.parse()?, time);
                let (beats, lookups) = tokio::try_join!(beats, lookups)?;
                Ok(json!({ "beats": beats, "lookups": lookups }))
            }
            ["etcd-register", address, count] => {
                etcd::register(address.parse()?, count.parse()?).await
            }
            ["etcd-beat", address, count, time] => {
                etcd::beat(address.parse()?, count.parse()?, seconds(time)?).await
            }
            ["sign", time] => identity::sign(seconds(time)?),
            ["join", admin, xds, data, count] => {
                let (joined, answer) = Workloads::join(admin, xds, data, count.parse()?).await?;
                self.workloads = joined;
                Ok(answer)
            }
            ["renew", "new"] => self.workloads.renew(true).await,
            ["renew", "open"] => self.workloads.renew(false).await,
            ["renew-for", time] => self.workloads.renew_for(seconds(time)?).await,
            ["waves", time] => self.workloads.waves(seconds(time)?).await,
            ["pulse", address, host, connections, rate, time] => {
                let address = address.parse()?;
                let (connections, rate) = (connections.parse()?, rate.parse()?);
                identity::pulse(address, host, connections, rate, seconds(time)?).await
            }
            _ => bail!("no such command: {}", words.join(" ")),
        }
    }

    fn fleet(&mut self) -> anyhow::Result<&mut Fleet> {
        self.fleet.as_mut().context("`streams` comes first")
    }

    fn crowd(&self) -> anyhow::Result<Crowd> {
        self.crowd.context("`crowd` comes first")
    }
}

/// Count, median, 99th percentile and greatest, in ms.
fn spread(mut times: Vec<Duration>) -> Json {
    times.sort_unstable();
    let at = |part: f64| {
        let index = ((times.len() as f64 * part).ceil() as usize).clamp(1, times.len().max(1)) - 1;
        times.get(index).map(|time| time.as_secs_f64() * 1e3)
    };
    json!({ "count": times.len(), "p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": at(1.0) })
}
