//! Limits that sidecars share: they lease tokens here, ahead of need, and say what they let through on credit. What a limit
//! is stands in the world; how much of it is left, in memory or in a Redis.
//!
//! A stock Envoy asks for each request, by its own rate limit service, out of the same buckets.
//!
//! Module order (a module imports only later ones): envoy, redis, memory.

mod envoy;
mod memory;
mod redis;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use phalanx_model::document::{BackendPolicy, Document, DocumentId, Kind};
use phalanx_model::resource::limit::{GlobalLimit, Rate};
use phalanx_model::{InstanceId, ServiceName};
use phalanx_proto::phalanx::limits::v1 as wire;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use self::memory::Memory;
use self::redis::Redis;
pub use self::redis::{RedisAddress, RedisAddressError, answers as redis_answers};
use crate::access::Who;
use crate::world::World;

/// Cheap to clone.
#[derive(Clone)]
pub struct Limits(Arc<Inner>);

struct Inner {
    worlds: watch::Receiver<Arc<World>>,
    buckets: Buckets,
    counts: Counts,
}

enum Buckets {
    Memory(Memory),
    Redis(Box<Redis>),
}

/// Since the start.
#[derive(Debug, Default)]
pub struct Counts {
    pub leased: AtomicU64,
    pub spent: AtomicU64,
    pub dry: AtomicU64,
    pub unanswered: AtomicU64,
}

/// One question, with the limit that it is about.
#[derive(Clone, Debug)]
struct Take {
    /// `<namespace>/<name>`.
    policy: String,
    key: u64,
    rate: Rate,
    spent: u32,
    wanted: u32,
    returned: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Given {
    tokens: u32,
    /// 0: there are more.
    dry_ns: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("the buckets can't be reached")]
struct Unreachable;

impl Limits {
    /// `redis`: where buckets are kept; none: here, until the process ends.
    pub fn new(worlds: watch::Receiver<Arc<World>>, redis: Option<RedisAddress>) -> Self {
        let buckets = match redis {
            Some(address) => Buckets::Redis(Box::new(Redis::new(address))),
            None => Buckets::Memory(Memory::default()),
        };
        Self(Arc::new(Inner {
            worlds,
            buckets,
            counts: Counts::default(),
        }))
    }

    pub fn counts(&self) -> &Counts {
        &self.0.counts
    }

    /// Buckets in this process.
    pub fn held(&self) -> usize {
        match &self.0.buckets {
            Buckets::Memory(memory) => memory.len(),
            Buckets::Redis(_) => 0,
        }
    }

    /// In the order of the questions.
    async fn take(&self, takes: &[Take]) -> Result<Vec<Given>, Unreachable> {
        let given = match &self.0.buckets {
            Buckets::Memory(memory) => memory.take(takes),
            Buckets::Redis(redis) => redis.take(takes).await.map_err(|error| {
                tracing::debug!(%error, "the Redis of rate limits does not answer");
                Unreachable
            })?,
        };
        let counts = &self.0.counts;
        let leased = given.iter().map(|given| u64::from(given.tokens)).sum();
        let spent = takes.iter().map(|take| u64::from(take.spent)).sum();
        let dry = given.iter().filter(|given| given.dry_ns > 0).count();
        counts.leased.fetch_add(leased, Ordering::Relaxed);
        counts.spent.fetch_add(spent, Ordering::Relaxed);
        counts.dry.fetch_add(dry as u64, Ordering::Relaxed);
        Ok(given)
    }

    /// The limit of this policy, if the asker has to keep it.
    fn limit(&self, policy: &str, asker: &Asker<'_>) -> Option<GlobalLimit> {
        let world = self.0.worlds.borrow();
        let policy = self.policy(&world, policy)?;
        let limits = policy.limits.as_ref()?;
        let limit = limits.global.as_ref();
        limit.filter(|_| asker.is_meant(&world, policy)).cloned()
    }

    fn policy<'w>(&self, world: &'w World, policy: &str) -> Option<&'w BackendPolicy> {
        let (namespace, name) = policy.strip_prefix(KIND)?.split_once('/')?;
        let id = DocumentId {
            kind: Kind::BackendPolicy,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        match world.documents.get(&id)?.document.as_deref()? {
            Document::BackendPolicy(policy) => Some(policy),
            _ => None,
        }
    }
}

/// Who keeps a limit.
struct Asker<'a> {
    service: ServiceName,
    /// Where it has registered.
    instance: Option<&'a str>,
}

impl Asker<'_> {
    /// It is of a target by its name, or taken by a target's selector.
    fn is_meant(&self, world: &World, policy: &BackendPolicy) -> bool {
        if policy.targets.contains(&self.service) {
            return true;
        }
        let registered = self.instance.and_then(|id| {
            world.instances.get(&InstanceId {
                service: self.service.clone(),
                id: id.to_owned(),
            })
        });
        let Some(registered) = registered else {
            return false;
        };
        let labels = &registered.instance.labels;
        let takes = |target: &ServiceName| {
            let service = world.service(target).filter(|s| !s.selector.is_empty());
            service.is_some_and(|service| {
                let mut wanted = service.selector.iter();
                target.namespace == self.service.namespace
                    && wanted.all(|(key, value)| labels.get(key) == Some(value))
            })
        };
        policy.targets.iter().any(takes)
    }
}

#[tonic::async_trait]
impl wire::limits_server::Limits for Limits {
    async fn lease(
        &self,
        request: Request<wire::LeaseRequest>,
    ) -> Result<Response<wire::LeaseResponse>, Status> {
        let who = Who::of(request.extensions());
        let request = request.into_inner();
        if request.asks.len() > ASKS_MAX {
            return Err(Status::invalid_argument(format!(
                "{} questions, at most {ASKS_MAX} are taken",
                request.asks.len()
            )));
        }
        let mut parts = request.node.splitn(3, '/');
        let (Some(namespace), Some(name), Some(id)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(Status::invalid_argument(
                "a node is `<namespace>/<service>/<instance>`",
            ));
        };
        let asker = Asker {
            service: ServiceName::new(namespace, name),
            instance: Some(id),
        };
        who.owns(&asker.service)?;
        let known = |ask: &wire::Ask| {
            let limit = self.limit(&ask.policy, &asker)?;
            Some(Take {
                policy: ask.policy.strip_prefix(KIND)?.to_owned(),
                key: ask.key,
                rate: limit.rate,
                spent: ask.spent,
                wanted: ask.wanted,
                returned: ask.returned.min(limit.rate.burst),
            })
        };
        let takes: Vec<Option<Take>> = request.asks.iter().map(known).collect();
        let asked: Vec<Take> = takes.iter().flatten().cloned().collect();
        let given = self.take(&asked).await;
        if given.is_err() {
            return Err(Status::unavailable(Unreachable.to_string()));
        }
        let mut given = given.unwrap_or_default().into_iter();
        let grants = takes
            .iter()
            .map(|take| match take.as_ref().and_then(|_| given.next()) {
                Some(given) => wire::Grant {
                    tokens: given.tokens,
                    dry_ns: given.dry_ns,
                    unanswered: false,
                },
                None => {
                    let counts = &self.0.counts;
                    counts.unanswered.fetch_add(1, Ordering::Relaxed);
                    wire::Grant {
                        unanswered: true,
                        ..wire::Grant::default()
                    }
                }
            });
        let grants = grants.collect();
        Ok(Response::new(wire::LeaseResponse { grants }))
    }
}

/// How far a bucket may be overdrawn by what was let through on credit, in bursts; more is forgiven.
const OVERDRAFT: u32 = 8;
/// Questions in a call.
const ASKS_MAX: usize = 1_000;
const KIND: &str = "BackendPolicy/";

#[cfg(test)]
mod tests;
