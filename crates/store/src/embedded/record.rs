//! How an event stands on disk. The place is the table's key: the revision, then the position within the transaction.
//!
//! ```text
//! u8 kind, u32 length of key, key                                        a delete (2) or an expiry (3)
//! u8 kind, u32 length of key, key, u64 created, u64 version, u64 lease, value   a put (1); lease 0 is none
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{Entry, Event, EventKind, LeaseId, Reason, Revision};

pub const FORMAT: u64 = 1;

/// Revision and position of an event. The place of a live entry's put is where its value is.
pub type Place = (Revision, u32);

const PUT: u8 = 1;
const DELETE: u8 = 2;
const EXPIRE: u8 = 3;

pub fn encode(event: &Event) -> Bytes {
    let key = event.key();
    let value = match &event.kind {
        EventKind::Put(entry) => 24 + entry.value.len(),
        EventKind::Delete { .. } => 0,
    };
    let mut record = BytesMut::with_capacity(5 + key.len() + value);
    record.put_u8(match &event.kind {
        EventKind::Put(_) => PUT,
        EventKind::Delete {
            reason: Reason::Deleted,
            ..
        } => DELETE,
        EventKind::Delete {
            reason: Reason::Expired,
            ..
        } => EXPIRE,
    });
    // A key has at most LIMITS.key_bytes_max bytes.
    record.put_u32(key.len() as u32);
    record.put_slice(key.as_bytes());
    if let EventKind::Put(entry) = &event.kind {
        record.put_u64(entry.created);
        record.put_u64(entry.version);
        record.put_u64(entry.lease.map_or(0, |lease| lease.0));
        record.put_slice(&entry.value);
    }
    record.freeze()
}

pub fn decode(revision: Revision, mut record: &[u8]) -> Option<Event> {
    let kind = record.try_get_u8().ok()?;
    let length = record.try_get_u32().ok()? as usize;
    let (key, rest) = record.split_at_checked(length)?;
    let key = std::str::from_utf8(key).ok()?.to_owned();
    record = rest;
    match kind {
        PUT => {
            let created = record.try_get_u64().ok()?;
            let version = record.try_get_u64().ok()?;
            let lease = record.try_get_u64().ok()?;
            let lease = (lease != 0).then_some(LeaseId(lease));
            let value = Bytes::copy_from_slice(record);
            Some(Event::put(Entry {
                key,
                value,
                created,
                modified: revision,
                version,
                lease,
            }))
        }
        DELETE if record.is_empty() => Some(Event::delete(key, Reason::Deleted)),
        EXPIRE if record.is_empty() => Some(Event::delete(key, Reason::Expired)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_as_the_event() {
        let entry = Entry {
            key: "/routes/größe".into(),
            value: Bytes::from_static(b"10/90"),
            created: 3,
            modified: 9,
            version: 4,
            lease: Some(LeaseId(77)),
        };
        for event in [
            Event::put(entry.clone()),
            Event::put(Entry {
                lease: None,
                value: Bytes::new(),
                ..entry
            }),
            Event::delete("/a", Reason::Deleted),
            Event::delete("/a", Reason::Expired),
        ] {
            assert_eq!(decode(9, &encode(&event)), Some(event));
        }
    }

    #[test]
    fn a_cut_or_foreign_record_is_refused() {
        let record = encode(&Event::delete("/a", Reason::Deleted));
        for length in 0..record.len() {
            assert_eq!(decode(1, &record[..length]), None, "cut to {length}");
        }
        assert_eq!(decode(1, &[9, 0, 0, 0, 0]), None);
        assert_eq!(decode(1, &[PUT, 255, 255, 255, 255, 0]), None);
    }
}
