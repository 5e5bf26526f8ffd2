//! How often a holder may renew: some at once, and then as often as its certificates' life asks for and a good deal more. Who has
//! a certificate could otherwise fill the log that all share. All that goes back to one first certificate is one holder's.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use phalanx_pki::clock::UnixMillis;
use phalanx_pki::x509::Serial;

/// At once, after a while without any.
pub const BURST: u32 = 50;
/// Within the life of one certificate; two are enough.
pub const PER_LIFE: u32 = 100;
/// Holders that are remembered before those are forgotten who may have all at once again.
const HOLDERS_MAX: usize = 20_000;

/// By the first certificate, until when what was given counts. Held for a look-up.
#[derive(Debug, Default)]
pub(super) struct Often(Mutex<HashMap<Serial, UnixMillis>>);

impl Often {
    /// # Errors
    /// After which time it may be asked again.
    pub fn take(&self, first: &Serial, life: Duration, now: UnixMillis) -> Result<(), Duration> {
        let each = (life / PER_LIFE).max(Duration::from_millis(1));
        let mut given = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if given.len() >= HOLDERS_MAX {
            given.retain(|_, until| *until > now);
        }
        let until = given.get(first).map_or(now, |until| (*until).max(now));
        let ahead = now.until(until);
        if ahead > each * (BURST - 1) {
            return Err(ahead - each * (BURST - 1));
        }
        given.insert(first.clone(), until.plus(each));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_renews_in_bursts_and_then_at_its_pace() {
        let (often, life) = (Often::default(), Duration::from_secs(100));
        let (one, other) = (Serial::random().unwrap(), Serial::random().unwrap());
        let now = UnixMillis(1_000_000);
        for _ in 0..BURST {
            assert_eq!(often.take(&one, life, now), Ok(()));
        }
        assert_eq!(often.take(&one, life, now), Err(Duration::from_secs(1)));
        assert_eq!(
            often.take(&other, life, now),
            Ok(()),
            "others are not concerned"
        );
        let later = now.plus(Duration::from_secs(1));
        assert_eq!(often.take(&one, life, later), Ok(()));
        assert!(often.take(&one, life, later).is_err());
    }
}
