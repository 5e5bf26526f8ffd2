//! How often a holder may renew: some at once, and then as often as its certificates' life asks for and a good deal more. Who has
//! a certificate could otherwise fill the log that all share. All that goes back to one first certificate is one holder's. What the
//! log says of the past, and of other control planes, counts like what was asked for here.

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
        let each = each(life);
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

    /// Renewals that nobody asked this one about, oldest first, each with its holder: before its start, or of another control
    /// plane.
    pub fn note<'a>(
        &self,
        renewals: impl Iterator<Item = (&'a Serial, UnixMillis)>,
        life: Duration,
        now: UnixMillis,
    ) {
        let each = each(life);
        let mut noted: HashMap<&Serial, UnixMillis> = HashMap::new();
        let mut given = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (first, at) in renewals {
            let before = noted.get(first).or_else(|| given.get(first));
            let until = before.map_or(at, |until| (*until).max(at)).plus(each);
            // Another's clock makes nobody wait for more than all at once.
            noted.insert(first, until.min(now.plus(each * BURST)));
        }
        for (first, until) in noted {
            if until > now && (given.len() < HOLDERS_MAX || given.contains_key(first)) {
                given.insert(first.clone(), until);
            }
        }
    }
}

fn each(life: Duration) -> Duration {
    (life / PER_LIFE).max(Duration::from_millis(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_gave_counts_and_what_is_long_ago_does_not() {
        let (often, life) = (Often::default(), Duration::from_secs(100));
        let first = Serial::random().unwrap();
        let now = UnixMillis(10_000_000);
        let ago = |seconds| (&first, now.minus(Duration::from_secs(seconds)));
        often.note((1000..1100).rev().map(ago), life, now);
        assert!(often.0.lock().unwrap().is_empty());
        // Thirty of those forty count no more.
        often.note((0..40).map(|_| ago(30)), life, now);
        for _ in 0..BURST - 10 {
            assert_eq!(often.take(&first, life, now), Ok(()));
        }
        assert_eq!(often.take(&first, life, now), Err(Duration::from_secs(1)));
        // A clock that is ahead.
        let ahead = std::iter::once((&first, now.plus(life * 1000)));
        often.note(ahead, life, now);
        assert_eq!(often.take(&first, life, now.plus(life)), Ok(()));
    }

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
