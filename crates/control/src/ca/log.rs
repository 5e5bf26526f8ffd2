//! The issuance log in memory: every certificate until a week after it expired, newest first, found by serial and by whom it is
//! of. Lines only come (from the store, and on their way there) and, when they are old, go; none changes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use phalanx_model::ServiceName;
use phalanx_pki::clock::UnixMillis;
use phalanx_pki::issuer::Attestation;
use phalanx_pki::name::{Name, SpiffeId, Workload};
use phalanx_pki::x509::Serial;

use super::record::IssuedRecord;
use super::revoke::Revoked;
use super::{Ca, CaError};

/// Most lines that are kept, in the store and in memory (about 1 KB each). A sidecar that renews every two days has five.
pub const LINES_MAX: usize = 100_000;
/// Most living certificates of one workload: its instances, and those they had before.
pub const LIVING_MAX: usize = 20_000;
/// How long after its certificate's end a line is kept.
pub const KEPT: Duration = Duration::from_secs(7 * 86_400);
/// Most lines in one answer.
pub const ANSWER_MAX: usize = 10_000;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub serial: Serial,
    pub record: IssuedRecord,
}

/// When it was issued, and a number of its own: the order of the log.
type Place = (UnixMillis, u64);

#[derive(Debug, Default)]
pub(super) struct Log {
    lines: BTreeMap<Place, Arc<Line>>,
    places: HashMap<Serial, Place>,
    /// By the end of their certificates.
    ends: BTreeSet<(UnixMillis, Place)>,
    by_id: HashMap<SpiffeId, BTreeSet<(UnixMillis, Place)>>,
    /// Of those that came in the place of another: the first one of the same holder.
    firsts: HashMap<Serial, Serial>,
    /// The other way round: by the first one, those that came in its place.
    later: HashMap<Serial, BTreeSet<Serial>>,
    next: u64,
}

impl Log {
    /// False when it is there already.
    pub fn add(&mut self, serial: Serial, record: IssuedRecord) -> bool {
        if self.places.contains_key(&serial) {
            return false;
        }
        self.next += 1;
        let place = (record.issued_at, self.next);
        let end = (record.not_after, place);
        if let Some(before) = &record.replaces {
            let first = self.first(before).clone();
            self.come_after(&serial, first);
        }
        self.places.insert(serial.clone(), place);
        self.ends.insert(end);
        self.by_id.entry(record.id.clone()).or_default().insert(end);
        self.lines.insert(place, Arc::new(Line { serial, record }));
        true
    }

    pub fn remove(&mut self, serial: &Serial) {
        let Some(place) = self.places.remove(serial) else {
            return;
        };
        if let Some(first) = self.firsts.remove(serial)
            && let Some(later) = self.later.get_mut(&first)
        {
            later.remove(serial);
            if later.is_empty() {
                self.later.remove(&first);
            }
        }
        let Some(line) = self.lines.remove(&place) else {
            return;
        };
        let end = (line.record.not_after, place);
        self.ends.remove(&end);
        if let Some(own) = self.by_id.get_mut(&line.record.id) {
            own.remove(&end);
            if own.is_empty() {
                self.by_id.remove(&line.record.id);
            }
        }
    }

    /// The first certificate of the holder of this one, which may be this one.
    pub fn first<'a>(&'a self, serial: &'a Serial) -> &'a Serial {
        self.firsts.get(serial).unwrap_or(serial)
    }

    /// All certificates of the holder of this one.
    pub fn holder<'a>(&'a self, serial: &'a Serial) -> impl Iterator<Item = &'a Arc<Line>> {
        let first = self.first(serial);
        let later = self.later.get(first).into_iter().flatten();
        let all = std::iter::once(first).chain(later);
        all.filter_map(|serial| self.lines.get(self.places.get(serial)?))
    }

    /// Of the holder of this one, what it got last; none when nothing is known of it.
    pub fn last<'a>(&'a self, serial: &'a Serial) -> Option<&'a Arc<Line>> {
        let place = |line: &&Arc<Line>| self.places.get(&line.serial).copied();
        self.holder(serial).max_by_key(place)
    }

    /// Lines may come in any order: what was taken for a first one brings along those that came in its place.
    fn come_after(&mut self, serial: &Serial, first: Serial) {
        let mut moved = self.later.remove(serial).unwrap_or_default();
        for serial in &moved {
            self.firsts.insert(serial.clone(), first.clone());
        }
        moved.insert(serial.clone());
        self.firsts.insert(serial.clone(), first.clone());
        let later = self.later.entry(first).or_default();
        // The smaller one into the larger.
        if later.len() < moved.len() {
            std::mem::swap(later, &mut moved);
        }
        later.append(&mut moved);
    }

    pub fn entry(&self, serial: &Serial) -> Option<Arc<Line>> {
        self.lines.get(self.places.get(serial)?).cloned()
    }

    /// Certificates of a workload that have not expired (revoked ones among them).
    pub fn live(&self, id: &SpiffeId, now: UnixMillis) -> Vec<Arc<Line>> {
        let own = self.by_id.get(id).into_iter();
        let ends = own.flat_map(|own| own.range((now, (UnixMillis(i64::MIN), 0))..));
        ends.filter_map(|(_, place)| self.lines.get(place).cloned())
            .collect()
    }

    /// Everybody's, in the order of their ends.
    pub fn living(&self, now: UnixMillis) -> impl Iterator<Item = &Arc<Line>> {
        self.ends
            .range((now, (UnixMillis(i64::MIN), 0))..)
            .filter_map(|(_, place)| self.lines.get(place))
    }

    /// Newest first.
    pub fn newest(&self) -> impl DoubleEndedIterator<Item = &Arc<Line>> {
        self.lines.values().rev()
    }

    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// # Errors
    /// [`CaError::LeavesFull`], [`CaError::LogFull`]
    pub fn room_for(&self, id: &SpiffeId, now: UnixMillis) -> Result<(), CaError> {
        let own = self.by_id.get(id);
        if own.is_some_and(|own| own.len() >= LIVING_MAX) && self.live(id, now).len() >= LIVING_MAX
        {
            return Err(CaError::LeavesFull {
                id: id.clone(),
                max: LIVING_MAX,
            });
        }
        let oldest = self.ends.first();
        if self.lines.len() >= LINES_MAX && oldest.is_none_or(|(end, _)| *end >= now) {
            return Err(CaError::LogFull { max: LINES_MAX });
        }
        Ok(())
    }

    /// Lines whose week is over; and of expired ones as many more as are too many in all.
    pub fn overdue(&self, now: UnixMillis, max: usize) -> Vec<Serial> {
        let surplus = self.lines.len().saturating_sub(LINES_MAX * 9 / 10);
        let old = self.ends.iter().enumerate();
        old.take_while(|(n, (end, _))| end.plus(KEPT) < now || (*n < surplus && *end < now))
            .take(max)
            .filter_map(|(_, (_, place))| self.lines.get(place))
            .map(|line| line.serial.clone())
            .collect()
    }
}

/// Which lines are wanted; each condition that is there has to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IssuedQuery {
    pub serial: Option<Serial>,
    pub service: Option<ServiceName>,
    pub namespace: Option<String>,
    /// Neither expired nor revoked.
    pub living_only: bool,
    /// 0: as many as there may be in one answer ([`ANSWER_MAX`]).
    pub limit: usize,
}

/// A line with what has become of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedEntry {
    pub serial: Serial,
    pub id: SpiffeId,
    pub zone: Option<String>,
    pub names: Vec<Name>,
    pub not_before: UnixMillis,
    pub not_after: UnixMillis,
    pub issued_at: UnixMillis,
    pub issuer: Serial,
    /// SHA-256 of the leaf, hex.
    pub fingerprint: String,
    pub attested: Attestation,
    /// The one that its holder had before.
    pub replaces: Option<Serial>,
    /// The control plane that issued it.
    pub plane: String,
    pub revoked: Option<Arc<Revoked>>,
}

impl Ca {
    /// The log, newest first.
    pub fn issued(&self, query: &IssuedQuery) -> Vec<IssuedEntry> {
        let limit = match query.limit {
            0 => ANSWER_MAX,
            limit => limit.min(ANSWER_MAX),
        };
        let now = self.now();
        let fits = |line: &Line| {
            let service = &line.record.id.service;
            query.service.as_ref().is_none_or(|s| s == service)
                && query
                    .namespace
                    .as_ref()
                    .is_none_or(|n| *n == service.namespace)
                && !(query.living_only
                    && (line.record.not_after < now || self.is_revoked(&line.serial).is_some()))
        };
        let found: Vec<Arc<Line>> = {
            let log = self.log();
            match &query.serial {
                Some(serial) => log.entry(serial).filter(|l| fits(l)).into_iter().collect(),
                None => log
                    .newest()
                    .filter(|l| fits(l))
                    .take(limit)
                    .cloned()
                    .collect(),
            }
        };
        found.iter().map(|line| self.told(line)).collect()
    }

    /// How many lines there are.
    pub fn issued_count(&self) -> usize {
        self.log().len()
    }

    /// How many streams follow the bundle.
    pub fn followers(&self) -> usize {
        self.peers().len()
    }

    fn told(&self, line: &Line) -> IssuedEntry {
        let record = &line.record;
        IssuedEntry {
            serial: line.serial.clone(),
            id: record.id.clone(),
            zone: record.zone.clone(),
            names: names(record),
            not_before: record.not_before,
            not_after: record.not_after,
            issued_at: record.issued_at,
            issuer: record.issuer.clone(),
            fingerprint: record.fingerprint.clone(),
            attested: record.attested.clone(),
            replaces: record.replaces.clone(),
            plane: record.plane.clone(),
            revoked: self.is_revoked(&line.serial),
        }
    }
}

fn names(record: &IssuedRecord) -> Vec<Name> {
    let service = &record.id.service;
    let domain = &record.id.trust_domain;
    let zone = record.zone.as_deref();
    let workload = Workload::parse(domain, &service.namespace, &service.name, zone);
    let mut names = workload.map(|w| w.names()).unwrap_or_default();
    names.extend(record.hosts.iter().filter_map(|host| Name::host(host).ok()));
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_pki::name::TrustDomain;

    fn record(service: &str, issued: i64, end: i64) -> IssuedRecord {
        IssuedRecord {
            id: SpiffeId {
                trust_domain: TrustDomain::default(),
                service: ServiceName::new("arena", service),
            },
            zone: None,
            hosts: Vec::new(),
            not_before: UnixMillis(issued),
            not_after: UnixMillis(end),
            issued_at: UnixMillis(issued),
            issuer: Serial::random().unwrap(),
            issuer_key: String::new(),
            fingerprint: String::new(),
            attested: Attestation::Operator { name: "t".into() },
            replaces: None,
            bundle: String::new(),
            plane: "p".into(),
        }
    }

    #[test]
    fn a_line_is_kept_for_a_week_after_its_certificate() {
        let mut log = Log::default();
        let (old, young) = (Serial::random().unwrap(), Serial::random().unwrap());
        assert!(log.add(old.clone(), record("a", 0, 1000)));
        assert!(log.add(young.clone(), record("a", 1, 9_000_000_000)));
        assert!(
            !log.add(old.clone(), record("b", 7, 7)),
            "a line is never written over"
        );
        let week = UnixMillis(1000).plus(KEPT);
        assert!(log.overdue(week, 10).is_empty());
        assert_eq!(
            log.overdue(UnixMillis(week.0 + 1), 10),
            std::slice::from_ref(&old)
        );
        log.remove(&old);
        assert!(log.entry(&old).is_none());
        assert_eq!(log.len(), 1);
        assert_eq!(log.newest().next().unwrap().serial, young);
    }

    #[test]
    fn a_holder_is_the_same_in_whatever_order_its_lines_come() {
        let serials: Vec<Serial> = (0..5).map(|_| Serial::random().unwrap()).collect();
        // Each in the place of the one before, but the third, which comes in the place of the first too.
        let before = [None, Some(0), Some(0), Some(2), Some(3)];
        for order in [
            [0, 1, 2, 3, 4],
            [4, 3, 2, 1, 0],
            [3, 0, 4, 1, 2],
            [1, 4, 2, 0, 3],
        ] {
            let mut log = Log::default();
            for n in order {
                let mut line = record("a", i64::try_from(n).unwrap(), 10);
                line.replaces = before[n].map(|n: usize| serials[n].clone());
                log.add(serials[n].clone(), line);
            }
            log.add(Serial::random().unwrap(), record("a", 9, 10));
            for serial in &serials {
                assert_eq!(log.first(serial), &serials[0]);
                assert_eq!(log.holder(serial).count(), 5);
                assert_eq!(log.last(serial).unwrap().serial, serials[4]);
            }
            log.remove(&serials[4]);
            assert_eq!(log.last(&serials[1]).unwrap().serial, serials[3]);
            // What is left of a holder whose first line is gone is still one.
            log.remove(&serials[0]);
            assert_eq!(log.holder(&serials[1]).count(), 3);
            for serial in &serials {
                log.remove(serial);
            }
            assert!(log.firsts.is_empty() && log.later.is_empty());
        }
    }

    #[test]
    fn the_living_of_a_workload_are_its_own() {
        let mut log = Log::default();
        for (service, end) in [("a", 10), ("a", 20), ("b", 30)] {
            log.add(Serial::random().unwrap(), record(service, 0, end));
        }
        let id = record("a", 0, 0).id;
        assert_eq!(log.live(&id, UnixMillis(15)).len(), 1);
        assert_eq!(log.living(UnixMillis(15)).count(), 2);
        assert_eq!(log.living(UnixMillis(31)).count(), 0);
    }
}
