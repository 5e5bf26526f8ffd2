//! Who may shake hands now: so many at once in all, and fewer from one source, so that whoever begins handshakes and does not
//! go on with them is in nobody's way but his own.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::timeout;

/// Of a port, under way at the same time.
pub const AT_ONCE: usize = 1024;
/// Of one address.
pub const AT_ONCE_PER_SOURCE: usize = 256;
/// Of one address, under way and waiting; one more is refused. A fleet may come from behind one.
pub const WAITING_PER_SOURCE: usize = 4096;
/// For one's turn.
const TURN_MAX: Duration = Duration::from_secs(5);

pub struct Turns {
    all: Semaphore,
    /// Short critical sections, never across an await. Bounded by the seats.
    sources: Mutex<HashMap<IpAddr, Source>>,
}

struct Source {
    turns: Arc<Semaphore>,
    there: usize,
}

/// Of one handshake; dropping it lets the next one begin.
pub struct Turn<'t> {
    _all: SemaphorePermit<'t>,
    _own: OwnedSemaphorePermit,
    _place: Place<'t>,
}

struct Place<'t> {
    of: &'t Turns,
    source: IpAddr,
}

impl Turns {
    pub fn new() -> Self {
        Self {
            all: Semaphore::new(AT_ONCE),
            sources: Mutex::default(),
        }
    }

    /// None: too many of this source are there already, or its turn did not come in time.
    pub async fn take(&self, source: IpAddr) -> Option<Turn<'_>> {
        let (place, own) = self.enter(source)?;
        let turn = async {
            let own = own.acquire_owned().await.ok()?;
            let all = self.all.acquire().await.ok()?;
            Some((all, own))
        };
        let (all, own) = timeout(TURN_MAX, turn).await.ok()??;
        Some(Turn {
            _all: all,
            _own: own,
            _place: place,
        })
    }

    fn enter(&self, source: IpAddr) -> Option<(Place<'_>, Arc<Semaphore>)> {
        let mut sources = self.sources();
        let found = sources.entry(source).or_insert_with(|| Source {
            turns: Arc::new(Semaphore::new(AT_ONCE_PER_SOURCE)),
            there: 0,
        });
        if found.there >= WAITING_PER_SOURCE {
            return None;
        }
        found.there += 1;
        let turns = found.turns.clone();
        drop(sources);
        Some((Place { of: self, source }, turns))
    }

    fn sources(&self) -> MutexGuard<'_, HashMap<IpAddr, Source>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut sources = self.of.sources();
        if let Some(source) = sources.get_mut(&self.source) {
            source.there -= 1;
            if source.there == 0 {
                sources.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_source_takes_no_turn_of_another() {
        let turns = Turns::new();
        let (bad, good) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let mut held = Vec::new();
        for _ in 0..AT_ONCE_PER_SOURCE {
            held.push(turns.take(bad).await.unwrap());
        }
        assert!(turns.take(bad).await.is_none(), "its turn never comes");
        assert!(turns.take(good).await.is_some());
        held.pop();
        assert!(turns.take(bad).await.is_some());
        held.clear();
        assert!(turns.sources().is_empty(), "nobody is remembered");
    }
}
