//! What one request to etcd can't carry: large values are written in parts beforehand, and a note of where they are stands in
//! the key's place. The transaction puts the notes and keeps the parts, at one revision.
//!
//! Until then the parts are under a lease, so whoever dies in between leaves nothing behind. Parts that no note names any
//! more are swept. Readers look parts up at the revision that they read the note at.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use phalanx_proto::{
    etcdserverpb::{
        DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, request_op::Request,
        response_op::Response,
    },
    mvccpb::KeyValue,
};
use prost::Message;

use super::{
    REQUEST_BYTES_MAX, Shared, at,
    keys::{OPS_MAX, op, revision, signed},
    wire::{COMPACTED, Fault, Repeat},
};
use crate::{Entry, Error, LeaseId, Op, Result, Revision, Txn};

/// Of one part. etcd takes 1.5 MiB in a request, unless it is told otherwise.
pub const PART_BYTES: usize = 1 << 20;
/// How long the parts wait for their transaction.
const STAGED_MAX: Duration = Duration::from_secs(60);
/// Smaller values stay where they are: a note with its parts is hardly smaller.
const SPILL_MIN: usize = 512;
/// About what a note and the keeping of one part add to a request, beside the keys.
const NOTE_BYTES: usize = 160;
/// Parts read at once.
const READ_MAX: i64 = 4;
/// Owners that are looked at, and parts that are listed, at once.
const SWEEP_LOOKS: usize = 64;
const SWEEP_LIST: i64 = 512;

/// A value that begins like this and is no note is written in parts, too, so it can't be taken for one.
const MARK: &[u8] = b"\0phalanx parts ";

/// Where a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Note {
    /// Chosen at random, never used again.
    id: u64,
    parts: usize,
    bytes: usize,
}

impl Note {
    fn encode(self) -> Bytes {
        let Note { id, parts, bytes } = self;
        [MARK, format!("{id:016x} {parts} {bytes}").as_bytes()]
            .concat()
            .into()
    }

    fn parse(value: &[u8]) -> Option<Note> {
        let text = std::str::from_utf8(value.strip_prefix(MARK)?).ok()?;
        let mut words = text.split(' ');
        let note = Note {
            id: u64::from_str_radix(words.next()?, 16).ok()?,
            parts: words.next()?.parse().ok()?,
            bytes: words.next()?.parse().ok()?,
        };
        words.next().is_none().then_some(note)
    }
}

/// Whether a value read from etcd stands for a larger one.
pub fn is_note(value: &[u8]) -> bool {
    value.starts_with(MARK)
}

/// Which values of a transaction have to be written in parts so that the rest fits: the largest.
fn spilled(txn: &Txn, request_bytes: usize) -> BTreeSet<usize> {
    let value = |index: usize| txn.ops.get(index).and_then(Op::value);
    let length = |index: usize| value(index).map_or(0, Bytes::len);
    let indices = 0..txn.ops.len();
    let mut spilled: BTreeSet<usize> = indices
        .clone()
        .filter(|&index| value(index).is_some_and(|value| is_note(value)))
        .collect();
    let mut by_size: Vec<usize> = indices.filter(|index| !spilled.contains(index)).collect();
    by_size.sort_by_key(|&index| std::cmp::Reverse(length(index)));
    let mut bytes = request_bytes;
    for index in by_size {
        if bytes <= REQUEST_BYTES_MAX || length(index) < SPILL_MIN {
            break;
        }
        let key = txn.ops[index].key().len();
        let parts = length(index).div_ceil(PART_BYTES);
        bytes = bytes - length(index) + (parts + 1) * NOTE_BYTES + key;
        spilled.insert(index);
    }
    spilled
}

impl Shared {
    /// The request for a transaction, after what of it is too large was written in parts; and their lease.
    pub(super) async fn stage(&self, txn: &Txn) -> Result<(TxnRequest, Option<LeaseId>)> {
        let request = self.keys.txn(txn);
        let has_mark = txn
            .ops
            .iter()
            .any(|op| op.value().is_some_and(|value| is_note(value)));
        if request.encoded_len() <= REQUEST_BYTES_MAX && !has_mark {
            return Ok((request, None));
        }
        let spilled = spilled(txn, request.encoded_len());
        let mut parts = Vec::new();
        let mut small = txn.clone();
        for index in spilled {
            let Some(Op::Put { key, value, .. }) = small.ops.get_mut(index) else {
                continue;
            };
            let note = Note {
                id: fastrand::u64(..),
                parts: value.len().div_ceil(PART_BYTES).max(1),
                bytes: value.len(),
            };
            for number in 0..note.parts {
                let start = (number * PART_BYTES).min(value.len());
                let end = (start + PART_BYTES).min(value.len());
                parts.push((
                    self.keys.part(note.id, number, key),
                    value.slice(start..end),
                ));
            }
            *value = note.encode();
        }
        let keep = parts.iter().map(|(key, _)| {
            op(Request::RequestPut(PutRequest {
                key: key.clone(),
                ignore_value: true,
                ..Default::default()
            }))
        });
        let request = self.keys.txn_and(&small, keep);
        let bytes = request.encoded_len();
        if bytes > REQUEST_BYTES_MAX {
            return Err(Error::Invalid {
                problem: format!(
                    "a transaction of {bytes} bytes without its large values, at most {REQUEST_BYTES_MAX} fit: its keys are too long"
                ),
            });
        }
        let lease = self.write(parts).await.map_err(|error| match error {
            // Whatever became of the parts: the transaction itself was not sent.
            Error::Unknown { reason } => Error::Unreachable { reason },
            error => error,
        })?;
        Ok((request, Some(lease)))
    }

    async fn write(&self, parts: Vec<(Vec<u8>, Bytes)>) -> Result<LeaseId> {
        let lease = self.grant(STAGED_MAX).await?;
        let mut puts: Vec<RequestOp> = Vec::new();
        let mut bytes = 0;
        for (key, value) in parts {
            if bytes + value.len() > PART_BYTES || puts.len() == OPS_MAX {
                self.put_all(std::mem::take(&mut puts)).await?;
                bytes = 0;
            }
            bytes += value.len();
            puts.push(op(Request::RequestPut(PutRequest {
                key,
                value: value.to_vec(),
                lease: signed(lease.0),
                ..Default::default()
            })));
        }
        self.put_all(puts).await?;
        Ok(lease)
    }

    async fn put_all(&self, success: Vec<RequestOp>) -> Result<()> {
        let request = TxnRequest {
            success,
            ..Default::default()
        };
        let done = self.txn(Repeat::Always, &request).await;
        done.map(drop).map_err(Fault::of_read)
    }

    /// The entry with its own value, if it was found at `read_at` with a note in its place.
    pub(super) async fn whole(&self, mut entry: Entry, read_at: Revision) -> Result<Entry, Fault> {
        let Some(note) = Note::parse(&entry.value) else {
            return Ok(entry);
        };
        let gathered = match self.gather(note, read_at).await {
            // The note may be older than what is kept and still be valid.
            Err(fault) if fault.says(COMPACTED) => match self.gather(note, 0).await? {
                None => return Err(fault),
                gathered => gathered,
            },
            gathered => gathered?,
        };
        match gathered {
            Some(value) => entry.value = value,
            None => {
                tracing::error!(key = entry.key, "parts of this value are missing in etcd");
            }
        }
        Ok(entry)
    }

    /// None: not all of them are there.
    async fn gather(&self, note: Note, read_at: Revision) -> Result<Option<Bytes>, Fault> {
        let (key, range_end) = self.keys.parts_of(note.id);
        let mut request = RangeRequest {
            key,
            range_end,
            limit: READ_MAX,
            revision: signed(read_at),
            ..Default::default()
        };
        let (mut value, mut parts) = (BytesMut::new(), 0);
        loop {
            let answer = self.range(request.clone()).await?;
            if request.revision == 0 {
                request.revision = signed(at(&answer.header));
            }
            for part in &answer.kvs {
                value.extend_from_slice(&part.value);
                parts += 1;
            }
            match answer.kvs.last() {
                Some(last) if answer.more => request.key = [&last.key[..], &[0]].concat(),
                _ => break,
            }
        }
        let is_whole = parts == note.parts && value.len() == note.bytes;
        Ok(is_whole.then(|| value.freeze()))
    }

    /// Deletes parts that no note names any more. Returns how many values they were.
    pub(super) async fn sweep(&self) -> Result<usize, Fault> {
        let mut swept = 0;
        let mut kept: BTreeMap<u64, (Vec<u8>, Revision)> = BTreeMap::new();
        for part in self.list_parts().await? {
            // Under a lease still: its transaction may be under way.
            if part.lease == 0
                && let Some((id, owner)) = self.keys.owner(&part.key)
            {
                kept.insert(id, (owner, revision(part.mod_revision)));
            }
        }
        let kept: Vec<_> = kept.into_iter().collect();
        for some in kept.chunks(SWEEP_LOOKS) {
            let looks = some.iter().map(|(_, (owner, _))| {
                op(Request::RequestRange(RangeRequest {
                    key: owner.clone(),
                    keys_only: true,
                    ..Default::default()
                }))
            });
            let request = TxnRequest {
                success: looks.collect(),
                ..Default::default()
            };
            let answer = self.txn(Repeat::Always, &request).await?;
            let found = answer.responses.into_iter().map(|op| match op.response {
                Some(Response::ResponseRange(range)) => range.kvs.into_iter().next(),
                _ => None,
            });
            // The note was put when its parts were kept, at the same revision. A later put of the key is another value.
            let stale = some.iter().zip(found).filter(|((_, (_, at)), owner)| {
                owner
                    .as_ref()
                    .is_none_or(|owner| revision(owner.mod_revision) != *at)
            });
            let deletions: Vec<RequestOp> = stale
                .map(|((id, _), _)| {
                    let (key, range_end) = self.keys.parts_of(*id);
                    op(Request::RequestDeleteRange(DeleteRangeRequest {
                        key,
                        range_end,
                    }))
                })
                .collect();
            if !deletions.is_empty() {
                swept += deletions.len();
                let request = TxnRequest {
                    success: deletions,
                    ..Default::default()
                };
                self.txn(Repeat::Always, &request).await?;
            }
        }
        Ok(swept)
    }

    async fn list_parts(&self) -> Result<Vec<KeyValue>, Fault> {
        let (key, range_end) = self.keys.parts();
        let mut request = RangeRequest {
            key,
            range_end,
            limit: SWEEP_LIST,
            keys_only: true,
            ..Default::default()
        };
        let mut all = Vec::new();
        loop {
            let answer = self.range(request.clone()).await?;
            all.extend(answer.kvs);
            match all.last() {
                Some(last) if answer.more => request.key = [&last.key[..], &[0]].concat(),
                _ => return Ok(all),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_reads_back_and_nothing_else_is_one() {
        let note = Note {
            id: 7,
            parts: 2,
            bytes: PART_BYTES + 1,
        };
        assert_eq!(Note::parse(&note.encode()), Some(note));
        for other in [
            &b""[..],
            b"{}",
            MARK,
            b"\0phalanx parts x 1 1",
            b"\0phalanx parts 1 1",
            b"\0phalanx parts 1 1 1 1",
        ] {
            assert_eq!(Note::parse(other), None);
        }
    }

    #[test]
    fn the_largest_values_are_spilled_and_no_more_than_needed() {
        let txn = Txn::new()
            .put("a", vec![0; 1 << 20])
            .put("b", vec![0; 2 << 20])
            .put("c", vec![0; 100])
            .put("d", vec![0; 300 << 10]);
        assert_eq!(spilled(&txn, txn.bytes()), BTreeSet::from([1]));
        let forged = Txn::new().put("a", MARK);
        assert_eq!(spilled(&forged, forged.bytes()), BTreeSet::from([0]));
    }
}
