//! Which core has a session. The system gives a client's datagrams to one core, mostly: not when the client roams, and not
//! when sockets come or go. A core that meets somebody new asks here, under a lock, and hands on what another core has.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Of all cores: keys of sessions by hash, with the core that has each.
pub struct Owners {
    seed: u64,
    shards: Box<[Mutex<HashMap<u64, u16>>]>,
}

/// One core's view.
pub struct Kin {
    owners: Arc<Owners>,
    core: u16,
    /// Others' sessions whose datagrams come here, and since when we know (ticks).
    known: HashMap<u64, (u16, u32)>,
}

impl Owners {
    pub fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            seed,
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        })
    }

    /// A session of the process before is that core's, unless another one has it.
    pub fn assign(&self, port: SocketAddr, (from, token): (Option<SocketAddr>, &[u8]), core: u16) {
        let key = super::hash(self.seed, &[port], from, token);
        self.with(key, |shard| {
            shard.entry(key).or_insert(core);
        });
    }

    fn with<R>(&self, key: u64, then: impl FnOnce(&mut HashMap<u64, u16>) -> R) -> Option<R> {
        let shard = self.shards.get(key as usize % SHARDS)?;
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        Some(then(&mut shard))
    }
}

impl Kin {
    pub fn new(owners: Arc<Owners>, core: u16) -> Self {
        Self {
            owners,
            core,
            known: HashMap::new(),
        }
    }

    /// The same on every core.
    pub fn key(&self, port: SocketAddr, from: Option<SocketAddr>, token: &[u8]) -> u64 {
        super::hash(self.owners.seed, &[port], from, token)
    }

    /// Who has it, as far as that is known here.
    pub fn known(&self, key: u64, now: u32) -> Option<u16> {
        let (owner, since) = self.known.get(&key)?;
        (now.saturating_sub(*since) < KNOWN_TICKS).then_some(*owner)
    }

    /// Makes it ours, unless another core has it.
    pub fn claim(&mut self, key: u64, now: u32) -> Result<(), u16> {
        let core = self.core;
        let owner = self
            .owners
            .with(key, |shard| *shard.entry(key).or_insert(core));
        match owner {
            Some(owner) if owner != core => {
                if self.known.len() >= KNOWN_MAX {
                    self.known.clear();
                }
                self.known.insert(key, (owner, now));
                Err(owner)
            }
            _ => Ok(()),
        }
    }

    pub fn release(&mut self, key: u64) {
        let core = self.core;
        self.owners.with(key, |shard| {
            if shard.get(&key) == Some(&core) {
                shard.remove(&key);
            }
        });
    }

    pub fn sweep(&mut self, now: u32) {
        self.known
            .retain(|_, (_, since)| now.saturating_sub(*since) < KNOWN_TICKS);
    }
}

const SHARDS: usize = 64;
/// Asked again after this, in ticks of 100 ms.
const KNOWN_TICKS: u32 = 10;
const KNOWN_MAX: usize = 16_384;
