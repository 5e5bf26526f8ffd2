//! Signs of death other than silence: callers whose connections were refused. Pure; time comes in.

use std::collections::HashMap;
use std::net::SocketAddr;

/// By address, when a caller was last refused there.
#[derive(Debug, Default)]
pub struct Evidence {
    refused: HashMap<SocketAddr, u64>,
    /// Full, it is not swept again before.
    sweep_ms: u64,
}

impl Evidence {
    /// False: there is no room for it.
    pub fn refused(&mut self, address: SocketAddr, now_ms: u64) -> bool {
        if self.refused.len() >= ADDRESSES_MAX && !self.refused.contains_key(&address) {
            if now_ms < self.sweep_ms {
                return false;
            }
            self.sweep_ms = now_ms + SWEEP_MS;
            self.refused.retain(|_, at| *at + AGE_MAX_MS > now_ms);
            if self.refused.len() >= ADDRESSES_MAX {
                return false;
            }
        }
        let at = self.refused.entry(address).or_default();
        *at = now_ms.max(*at);
        true
    }

    /// A caller that was refused got through again.
    pub fn reached(&mut self, address: &SocketAddr) {
        self.refused.remove(address);
    }

    /// Whether somebody was refused there at `since_ms` or later.
    pub fn is_refused(&self, address: &SocketAddr, since_ms: u64) -> bool {
        self.refused.get(address).is_some_and(|at| *at >= since_ms)
    }
}

const ADDRESSES_MAX: usize = 65_536;
/// The longest lease: older signs can't be about one that is just over.
const AGE_MAX_MS: u64 = 600_000;
/// Each costs a look at every address.
const SWEEP_MS: u64 = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_came_after_the_last_beat_counts() {
        let mut evidence = Evidence::default();
        let at: SocketAddr = "127.0.0.1:1".parse().unwrap();
        assert!(evidence.refused(at, 500));
        assert!(evidence.is_refused(&at, 500) && !evidence.is_refused(&at, 501));
        evidence.reached(&at);
        assert!(!evidence.is_refused(&at, 0));
    }

    #[test]
    fn what_is_too_old_makes_room() {
        let mut evidence = Evidence::default();
        for n in 0..ADDRESSES_MAX as u32 {
            let ip = std::net::Ipv4Addr::from_bits(n);
            assert!(evidence.refused((ip, 1).into(), 0));
        }
        let one_more: SocketAddr = "[::1]:1".parse().unwrap();
        assert!(!evidence.refused(one_more, 1));
        assert!(!evidence.refused(one_more, 2), "not even looked");
        assert!(evidence.refused(one_more, AGE_MAX_MS));
    }
}
