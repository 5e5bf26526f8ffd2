//! Thousands of delta streams, one connection each, that subscribe as a proxy does and acknowledge everything.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use phalanx_proto::envoy::config::core::v3::Node;
use phalanx_proto::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use prost::Message;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use serde_json::{Value as Json, json};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::grpc::{Call, Link};
use crate::spread;

const CDS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const EDS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
const LDS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const RDS: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
const TYPES: [&str; 4] = [CDS, EDS, LDS, RDS];

/// A response, without the bodies that nobody here looks at.
#[derive(Clone, PartialEq, Message)]
struct Answer {
    #[prost(message, repeated, tag = "2")]
    resources: Vec<Resource>,
    #[prost(string, tag = "4")]
    type_url: String,
    #[prost(string, tag = "5")]
    nonce: String,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(string, tag = "1")]
    version: String,
    #[prost(string, tag = "3")]
    name: String,
}

/// All open streams.
pub struct Fleet {
    address: SocketAddr,
    /// Clusters that each stream has to receive to be complete, and as many endpoint sets.
    clusters: usize,
    streams: JoinSet<anyhow::Result<()>>,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    complete: watch::Sender<usize>,
    /// When each stream acknowledged the route table that came after the last change.
    acks: watch::Sender<Vec<Instant>>,
    /// What the first stream holds, for streams that come back: by type, name and version.
    held: Mutex<BTreeMap<&'static str, BTreeMap<String, String>>>,
}

impl Fleet {
    pub fn new(address: SocketAddr, clusters: usize) -> Self {
        Self {
            address,
            clusters,
            streams: JoinSet::new(),
            seen: Arc::default(),
        }
    }

    /// Opens `count` streams at once; they come with what they hold if `known`. Returns when all have everything.
    pub async fn open(&mut self, count: usize, known: bool) -> anyhow::Result<Json> {
        let started = Instant::now();
        self.streams.shutdown().await;
        let held = std::mem::take(&mut *lock(&self.seen.held));
        let held = Arc::new(if known { held } else { BTreeMap::new() });
        self.seen.complete.send_replace(0);
        let begun = Instant::now();
        for number in 0..count {
            let stream = Stream {
                number,
                clusters: self.clusters,
                seen: self.seen.clone(),
                held: held.clone(),
            };
            self.streams.spawn(stream.run(self.address));
        }
        let mut complete = self.seen.complete.subscribe();
        let all = complete.wait_for(|complete| *complete >= count);
        tokio::select! {
            all = tokio::time::timeout(PATIENCE, all) => { all.context("not all streams were served")??; }
            failed = failure(&mut self.streams) => bail!("a stream failed: {failed:#}"),
        }
        let mut all = (*held).clone();
        all.append(&mut lock(&self.seen.held));
        *lock(&self.seen.held) = all;
        Ok(json!({ "streams": count, "ms": ms(begun), "closing_ms": ms(started) - ms(begun) }))
    }

    /// Runs `change` and waits until each stream has acknowledged a new route table.
    pub async fn change(
        &mut self,
        change: impl Future<Output = anyhow::Result<()>>,
    ) -> anyhow::Result<Json> {
        let count = self.streams.len();
        self.seen.acks.send_replace(Vec::with_capacity(count));
        let begun = Instant::now();
        change.await?;
        let stored_ms = ms(begun);
        let mut acks = self.seen.acks.subscribe();
        let all = acks.wait_for(|acks| acks.len() >= count);
        let acks = tokio::select! {
            all = tokio::time::timeout(PATIENCE, all) => all.context("not all streams acknowledged")??.clone(),
            failed = failure(&mut self.streams) => bail!("a stream failed: {failed:#}"),
        };
        let times = acks.iter().map(|at| at.duration_since(begun)).collect();
        let mut told = spread(times);
        told["stored_ms"] = stored_ms.into();
        Ok(told)
    }
}

async fn failure(streams: &mut JoinSet<anyhow::Result<()>>) -> anyhow::Error {
    match streams.join_next().await {
        Some(Ok(Err(error))) => error,
        Some(Err(error)) => error.into(),
        _ => anyhow::anyhow!("it ended"),
    }
}

struct Stream {
    number: usize,
    clusters: usize,
    seen: Arc<Seen>,
    held: Arc<BTreeMap<&'static str, BTreeMap<String, String>>>,
}

impl Stream {
    async fn run(self, address: SocketAddr) -> anyhow::Result<()> {
        let link = Link::connect(address).await?;
        let mut call = link
            .call("/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources")
            .await?;
        let mut missing = BTreeMap::from([
            (CDS, self.clusters),
            (EDS, self.clusters),
            (LDS, 1),
            (RDS, 1),
        ]);
        let held = |of: &str| self.held.get(of).cloned().unwrap_or_default();
        for (kind, names) in [
            (CDS, Vec::new()),
            (LDS, Vec::new()),
            (RDS, vec!["outbound".to_owned()]),
        ] {
            let versions = held(kind);
            missing
                .entry(kind)
                .and_modify(|n| *n = n.saturating_sub(versions.len()));
            self.subscribe(&mut call, kind, names, versions)?;
        }
        let versions = held(EDS);
        if !versions.is_empty() {
            missing.insert(EDS, self.clusters.saturating_sub(versions.len()));
            self.subscribe(&mut call, EDS, versions.keys().cloned().collect(), versions)?;
        }
        let mut is_complete = false;
        loop {
            if !is_complete && missing.values().all(|count| *count == 0) {
                is_complete = true;
                self.seen.complete.send_modify(|complete| *complete += 1);
            }
            let answer = call.next().await?.context("the stream ended")?;
            self.take(&mut call, &answer, &mut missing)?;
        }
    }

    fn take(
        &self,
        call: &mut Call,
        answer: &[u8],
        missing: &mut BTreeMap<&'static str, usize>,
    ) -> anyhow::Result<()> {
        let answer = Answer::decode(answer)?;
        let kind = TYPES.into_iter().find(|kind| *kind == answer.type_url);
        let kind = kind.with_context(|| format!("{} came", answer.type_url))?;
        call.send(&DeltaDiscoveryRequest {
            type_url: answer.type_url,
            response_nonce: answer.nonce,
            ..Default::default()
        })?;
        if kind == RDS {
            self.seen.acks.send_modify(|acks| acks.push(Instant::now()));
        }
        if let Some(count) = missing.get_mut(kind) {
            *count = count.saturating_sub(answer.resources.len());
        }
        if kind == CDS && !self.held.contains_key(EDS) {
            let names = answer.resources.iter().map(|r| r.name.clone()).collect();
            self.subscribe(call, EDS, names, BTreeMap::new())?;
        }
        if self.number == 0 {
            let mut held = lock(&self.seen.held);
            let held = held.entry(kind).or_default();
            held.extend(answer.resources.into_iter().map(|r| (r.name, r.version)));
        }
        Ok(())
    }

    fn subscribe(
        &self,
        call: &mut Call,
        kind: &str,
        names: Vec<String>,
        versions: BTreeMap<String, String>,
    ) -> anyhow::Result<()> {
        call.send(&DeltaDiscoveryRequest {
            node: (kind == CDS).then(|| self.node()),
            type_url: kind.to_owned(),
            resource_names_subscribe: names,
            initial_resource_versions: versions.into_iter().collect(),
            ..Default::default()
        })
    }

    fn node(&self) -> Node {
        let text = |text: &str| Value {
            kind: Some(Kind::StringValue(text.to_owned())),
        };
        let fields = [
            ("service", text("load")),
            ("namespace", text("default")),
            ("outbound", text("127.0.0.1:15001")),
        ];
        Node {
            id: format!("default/load/{}", self.number),
            cluster: "load".to_owned(),
            metadata: Some(Struct {
                fields: fields.map(|(key, value)| (key.to_owned(), value)).into(),
            }),
            user_agent_name: "envoy".to_owned(),
            ..Default::default()
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// For all streams together.
const PATIENCE: Duration = Duration::from_secs(120);
