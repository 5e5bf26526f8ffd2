//! The same with what etcd has for it: a lease and a key for each instance, and a message for each renewal.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use phalanx_proto::etcdserverpb as etcd;
use prost::Message;
use serde_json::{Value as Json, json};
use tokio::task::JoinSet;

use crate::grpc::Link;

/// Grants a lease for each instance and puts its key under it.
pub async fn register(address: SocketAddr, instances: usize) -> anyhow::Result<Json> {
    let begun = Instant::now();
    let mut workers = JoinSet::new();
    for worker in 0..CONNECTIONS {
        let link = Arc::new(Link::connect(address).await?);
        for lane in 0..LANES {
            let (link, first) = (link.clone(), worker * LANES + lane);
            workers.spawn(async move {
                for number in (first..instances).step_by(CONNECTIONS * LANES) {
                    let id = number as i64 + 1;
                    let grant = etcd::LeaseGrantRequest { ttl: TTL_S, id };
                    link.ask::<etcd::LeaseGrantResponse>("/etcdserverpb.Lease/LeaseGrant", &grant)
                        .await?;
                    let put = etcd::PutRequest {
                        key: format!("/services/load/i{number}").into(),
                        value: vec![b'x'; VALUE_BYTES],
                        lease: id,
                        ..Default::default()
                    };
                    link.ask::<etcd::PutResponse>("/etcdserverpb.KV/Put", &put)
                        .await?;
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
        json!({ "instances": instances, "seconds": seconds, "per_second": instances as f64 / seconds }),
    )
}

/// As many renewals as it takes, for so long; each stream has a window of them under way.
pub async fn beat(address: SocketAddr, instances: usize, time: Duration) -> anyhow::Result<Json> {
    let begun = Instant::now();
    let mut workers = JoinSet::new();
    for worker in 0..CONNECTIONS {
        let link = Link::connect(address).await?;
        workers.spawn(async move {
            let mut call = link.call("/etcdserverpb.Lease/LeaseKeepAlive").await?;
            let mut ids = (worker..instances).step_by(CONNECTIONS).cycle();
            let (mut sent, mut answered) = (0, 0);
            while begun.elapsed() < time {
                while sent - answered < LANES {
                    let id = ids.next().context("no instance")? as i64 + 1;
                    call.send(&etcd::LeaseKeepAliveRequest { id })?;
                    sent += 1;
                }
                let answer = call.next().await?.context("the stream ended")?;
                let answer = etcd::LeaseKeepAliveResponse::decode(answer)?;
                ensure!(answer.ttl > 0, "lease {} is gone", answer.id);
                answered += 1;
            }
            anyhow::Ok(answered)
        });
    }
    let mut answered = 0;
    while let Some(done) = workers.join_next().await {
        answered += done??;
    }
    Ok(json!({ "per_second": answered as f64 / begun.elapsed().as_secs_f64() }))
}

/// About what a registration of ours takes in the store.
const VALUE_BYTES: usize = 200;
const TTL_S: i64 = 600;
const CONNECTIONS: usize = 8;
const LANES: usize = 128;
