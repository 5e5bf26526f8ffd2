//! Which certificates are in use: of each line of renewals the last one, and how much of its life is left. For status, metrics
//! and alarms; nothing is decided here.

use std::collections::HashMap;
use std::sync::Arc;

use phalanx_pki::examine::is_late;
use phalanx_pki::verifier::Peer;
use phalanx_pki::x509::Serial;

use super::log::Line;
use super::{Ca, UnixMillis};

/// What somebody shows by now, as far as is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InUse {
    pub serial: Serial,
    pub not_before: UnixMillis,
    pub not_after: UnixMillis,
    /// Whether it should have been renewed by now.
    pub late: bool,
}

/// How many certificates there are in each state; every one that the log has is in one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// In use, and in time.
    pub good: u64,
    /// In use, and not renewed in time.
    pub late: u64,
    /// Alive, but its holder has the next one.
    pub renewed: u64,
    pub revoked: u64,
    /// In the last week.
    pub expired: u64,
}

/// Which certificate each holder got last. Whoever renews over a connection that is older than its certificate gets several in
/// the place of one, so all that go back to one first certificate are one holder's.
pub struct Successors {
    /// The first certificate behind each.
    firsts: HashMap<Serial, Serial>,
    /// By the first one.
    last: HashMap<Serial, Arc<Line>>,
}

impl Ca {
    /// Of every certificate that the log has: those in between have ended when a connection is older than two lives.
    pub fn successors(&self) -> Successors {
        Successors::of(self.log().newest().rev())
    }

    /// What somebody shows by now whose connection was made with `peer`'s certificate.
    pub fn in_use(&self, successors: &Successors, peer: &Peer) -> InUse {
        let line = successors.last(&peer.serial);
        let (serial, not_before, not_after) = match &line {
            Some(line) => (&line.serial, line.record.not_before, line.record.not_after),
            // Of an outside CA, or not renewed yet.
            None => (&peer.serial, peer.not_before, peer.not_after),
        };
        let (life, left) = (not_before.until(not_after), self.now().until(not_after));
        InUse {
            serial: serial.clone(),
            not_before,
            not_after,
            late: is_late(life, left),
        }
    }

    pub fn census(&self) -> Census {
        let now = self.now();
        let lines: Vec<Arc<Line>> = self.log().newest().cloned().collect();
        let successors = Successors::of(lines.iter().rev());
        let mut census = Census::default();
        for line in &lines {
            let (begin, end) = (line.record.not_before, line.record.not_after);
            let state = match () {
                () if self.is_revoked(&line.serial).is_some() => &mut census.revoked,
                () if end <= now => &mut census.expired,
                () if successors.last(&line.serial).is_some() => &mut census.renewed,
                () if is_late(begin.until(end), now.until(end)) => &mut census.late,
                () => &mut census.good,
            };
            *state += 1;
        }
        census
    }
}

impl Successors {
    /// Lines, oldest first.
    fn of<'a>(lines: impl Iterator<Item = &'a Arc<Line>>) -> Self {
        let (mut firsts, mut last) = (HashMap::new(), HashMap::new());
        for line in lines {
            let before = line.record.replaces.as_ref();
            // One that is forgotten stands for those before it.
            let first = before.map(|before| firsts.get(before).unwrap_or(before));
            let first = first.unwrap_or(&line.serial).clone();
            last.insert(first.clone(), line.clone());
            firsts.insert(line.serial.clone(), first);
        }
        Self { firsts, last }
    }

    /// The last one of the holder of this one; none when it is that.
    fn last(&self, serial: &Serial) -> Option<Arc<Line>> {
        let first = self.firsts.get(serial).unwrap_or(serial);
        let last = self.last.get(first)?;
        (last.serial != *serial).then(|| last.clone())
    }
}

#[cfg(test)]
mod tests {
    use phalanx_model::ServiceName;
    use phalanx_pki::issuer::Attestation;
    use phalanx_pki::name::{SpiffeId, TrustDomain};

    use super::*;
    use crate::ca::record::IssuedRecord;

    fn line(at: i64, replaces: Option<&Arc<Line>>) -> Arc<Line> {
        let record = IssuedRecord {
            id: SpiffeId {
                trust_domain: TrustDomain::default(),
                service: ServiceName::new("arena", "battle"),
            },
            zone: None,
            hosts: Vec::new(),
            not_before: UnixMillis(at),
            not_after: UnixMillis(at + 10),
            issued_at: UnixMillis(at),
            issuer: Serial::random().unwrap(),
            issuer_key: String::new(),
            fingerprint: String::new(),
            attested: Attestation::Operator { name: "t".into() },
            replaces: replaces.map(|line| line.serial.clone()),
            bundle: String::new(),
            plane: "p".into(),
        };
        let serial = Serial::random().unwrap();
        Arc::new(Line { serial, record })
    }

    #[test]
    fn renewals_over_one_connection_are_one_holders() {
        let first = line(0, None);
        // Two over the connection that the first one made, one over a later connection.
        let (second, third) = (line(1, Some(&first)), line(2, Some(&first)));
        let fourth = line(3, Some(&second));
        let other = line(4, None);
        let log = [&first, &second, &third, &fourth, &other];
        let successors = Successors::of(log.into_iter());
        for line in [&first, &second, &third] {
            let last = successors.last(&line.serial).unwrap();
            assert_eq!(last.serial, fourth.serial);
        }
        assert!(successors.last(&fourth.serial).is_none());
        assert!(successors.last(&other.serial).is_none());
        // The first ones are forgotten a week after their end.
        let successors = Successors::of([&third, &fourth].into_iter());
        assert_eq!(successors.last(&first.serial).unwrap().serial, third.serial);
    }
}
