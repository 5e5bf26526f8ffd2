//! Who follows the bundle, and how far each has come. While a root is rotated this is what is waited for, so it goes into the
//! store then, where every control plane sees it.

use std::collections::HashMap;

use phalanx_pki::name::SpiffeId;
use phalanx_pki::x509::Serial;

use super::record::TrustingRecord;

/// Most streams at once, and of one certificate.
pub const STREAMS_MAX: usize = 20_000;
pub const STREAMS_PER_PEER_MAX: usize = 8;

#[derive(Debug, Default)]
pub(super) struct Peers {
    streams: HashMap<u64, Stream>,
    /// How many there are of each certificate that connected.
    counts: HashMap<Serial, usize>,
    next: u64,
    /// What the store has, of the rotation that is under way.
    stored: HashMap<Serial, TrustingRecord>,
}

#[derive(Clone, Debug)]
pub(super) struct Stream {
    /// None: in plain text.
    pub id: Option<SpiffeId>,
    /// Of the certificate that the connection was made with.
    connected: Option<Serial>,
    /// Of the one that it shows to others now.
    pub serial: Option<Serial>,
    /// The last bundle of roots that it took.
    pub bundle: String,
    pub error: String,
}

impl Peers {
    /// None when there are too many, of this peer or in all.
    pub fn open(&mut self, peer: Option<(SpiffeId, Serial)>) -> Option<u64> {
        let connected = peer.as_ref().map(|(_, serial)| serial.clone());
        let count = connected
            .as_ref()
            .and_then(|serial| self.counts.get(serial));
        if self.streams.len() >= STREAMS_MAX || count.is_some_and(|n| *n >= STREAMS_PER_PEER_MAX) {
            return None;
        }
        if let Some(serial) = &connected {
            *self.counts.entry(serial.clone()).or_default() += 1;
        }
        self.next += 1;
        let stream = Stream {
            id: peer.map(|(id, _)| id),
            serial: connected.clone(),
            connected,
            bundle: String::new(),
            error: String::new(),
        };
        self.streams.insert(self.next, stream);
        Some(self.next)
    }

    pub fn close(&mut self, stream: u64) {
        let closed = self.streams.remove(&stream);
        let Some(serial) = closed.and_then(|stream| stream.connected) else {
            return;
        };
        if let Some(count) = self.counts.get_mut(&serial) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&serial);
            }
        }
    }

    /// What a stream said; `bundle` is none when it has not taken one.
    pub fn said(&mut self, stream: u64, serial: Option<Serial>, bundle: Option<&str>, error: &str) {
        let Some(stream) = self.streams.get_mut(&stream) else {
            return;
        };
        if stream.id.is_some() && serial.is_some() {
            stream.serial = serial;
        }
        if let Some(bundle) = bundle {
            bundle.clone_into(&mut stream.bundle);
        }
        error.clone_into(&mut stream.error);
    }

    /// Open streams.
    pub fn len(&self) -> usize {
        self.streams.len()
    }

    /// Peers that are known by their certificate.
    pub fn known(&self) -> impl Iterator<Item = (&Serial, &Stream)> {
        let all = self.streams.values();
        all.filter_map(|stream| Some((stream.serial.as_ref()?, stream)))
    }

    /// Of those, what the store does not say yet, at most `max`.
    pub fn unsaid(&self, plane: &str, max: usize) -> Vec<(Serial, TrustingRecord)> {
        let record = |stream: &Stream| TrustingRecord {
            bundle: stream.bundle.clone(),
            error: stream.error.clone(),
            plane: plane.to_owned(),
        };
        let now = self
            .known()
            .map(|(serial, stream)| (serial, record(stream)));
        let new = now.filter(|(serial, record)| self.stored.get(*serial) != Some(record));
        let mut by_serial: HashMap<Serial, TrustingRecord> = HashMap::new();
        for (serial, record) in new.take(max) {
            by_serial.insert(serial.clone(), record);
        }
        by_serial.into_iter().collect()
    }

    pub fn store(&mut self, serial: Serial, record: Option<TrustingRecord>) {
        match record {
            Some(record) => drop(self.stored.insert(serial, record)),
            None => drop(self.stored.remove(&serial)),
        }
    }

    pub fn stored(&self) -> &HashMap<Serial, TrustingRecord> {
        &self.stored
    }

    pub fn forget_stored(&mut self) {
        self.stored.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_model::ServiceName;
    use phalanx_pki::name::TrustDomain;

    fn id() -> SpiffeId {
        SpiffeId {
            trust_domain: TrustDomain::default(),
            service: ServiceName::new("arena", "battle"),
        }
    }

    #[test]
    fn a_peer_has_few_streams_and_another_still_gets_one() {
        let mut peers = Peers::default();
        let serial = Serial::random().unwrap();
        let streams: Vec<_> = (0..STREAMS_PER_PEER_MAX + 3)
            .map(|_| peers.open(Some((id(), serial.clone()))))
            .collect();
        let opened: Vec<u64> = streams.into_iter().flatten().collect();
        assert_eq!(opened.len(), STREAMS_PER_PEER_MAX);
        assert!(
            peers
                .open(Some((id(), Serial::random().unwrap())))
                .is_some()
        );
        peers.close(opened[0]);
        assert!(peers.open(Some((id(), serial))).is_some());
    }

    #[test]
    fn only_what_the_store_does_not_know_is_told() {
        let mut peers = Peers::default();
        let serial = Serial::random().unwrap();
        let stream = peers.open(Some((id(), serial.clone()))).unwrap();
        peers.said(stream, None, Some("b1"), "");
        let unsaid = peers.unsaid("p", 10);
        assert_eq!(unsaid.len(), 1);
        assert_eq!(unsaid[0].1.bundle, "b1");
        peers.store(serial, Some(unsaid[0].1.clone()));
        assert!(peers.unsaid("p", 10).is_empty());
        peers.said(stream, None, None, "no room");
        assert_eq!(peers.unsaid("p", 10)[0].1.error, "no room");
        assert_eq!(
            peers.unsaid("p", 10)[0].1.bundle,
            "b1",
            "the one before stays in force"
        );
    }
}
