//! Between etcd's words and ours: keys under a prefix, entries, transactions.
//!
//! Under the prefix lie the keys as they are, and the store's own, which begin with `!`. `!leases/ID`, one for each lease
//! that was granted here, is put under its lease, goes with it, and so tells an expiry from a deletion; see [`super::feed`].
//! `!parts/ID/…` are parts of large values; see [`super::parts`]. `!origin` says where the state came from; see
//! [`super::origin`].

use phalanx_proto::{
    etcdserverpb::{
        Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
        compare::{CompareResult, CompareTarget, TargetUnion},
        request_op::Request,
    },
    mvccpb::KeyValue,
};

use crate::{Entry, Error, Expect, LeaseId, Op, Result, Revision, Txn};

const RESERVED: &str = "!";
const LEASES: &str = "!leases/";
const PARTS: &str = "!parts/";
pub const ORIGIN: &str = "!origin";
/// etcd takes so many operations in a transaction, unless it is told otherwise; but in each of the transactions in it, too,
/// as long as all on the way to an operation together are not more.
pub const OPS_MAX: usize = 128;
/// So many transactions of so many operations fit into one with as many expectations.
const GROUP: usize = 64;
/// etcd's word for all keys, as both ends of a range.
const EVERYTHING: &[u8] = &[0];

#[derive(Clone, Debug)]
pub struct Keys {
    prefix: String,
}

impl Keys {
    pub fn new(prefix: &str) -> Keys {
        Keys {
            prefix: prefix.into(),
        }
    }

    pub fn full(&self, key: &str) -> Vec<u8> {
        [self.prefix.as_bytes(), key.as_bytes()].concat()
    }

    /// First key and end of what starts with `prefix`.
    pub fn range(&self, prefix: &str) -> (Vec<u8>, Vec<u8>) {
        let first = self.full(prefix);
        let end = end_of(&first);
        match first.is_empty() {
            true => (EVERYTHING.to_vec(), EVERYTHING.to_vec()),
            false => (first, end),
        }
    }

    pub fn lease(&self, lease: LeaseId) -> Vec<u8> {
        self.full(&format!("{LEASES}{:016x}", lease.0))
    }

    pub fn leases(&self) -> (Vec<u8>, Vec<u8>) {
        self.range(LEASES)
    }

    pub fn reserved(&self) -> (Vec<u8>, Vec<u8>) {
        self.range(RESERVED)
    }

    pub fn origin(&self) -> Vec<u8> {
        self.full(ORIGIN)
    }

    pub fn parts(&self) -> (Vec<u8>, Vec<u8>) {
        self.range(PARTS)
    }

    pub fn parts_of(&self, id: u64) -> (Vec<u8>, Vec<u8>) {
        self.range(&format!("{PARTS}{id:016x}/"))
    }

    /// The first part names the key that the value belongs to.
    pub fn part(&self, id: u64, number: usize, owner: &str) -> Vec<u8> {
        let owner = if number == 0 { owner } else { "" };
        self.full(&format!("{PARTS}{id:016x}/{number:04}/{owner}"))
    }

    /// Of a first part: its value's id, and the full key that the value belongs to.
    pub fn owner(&self, part: &[u8]) -> Option<(u64, Vec<u8>)> {
        let part = part.strip_prefix(self.prefix.as_bytes())?;
        let mut words = std::str::from_utf8(part)
            .ok()?
            .strip_prefix(PARTS)?
            .splitn(3, '/');
        let id = u64::from_str_radix(words.next()?, 16).ok()?;
        let number: usize = words.next()?.parse().ok()?;
        (number == 0).then_some((id, self.full(words.next()?)))
    }

    /// The key as its owner wrote it. What others put here that is no text can't be named, and is not seen.
    pub fn name<'a>(&self, full: &'a [u8]) -> Option<&'a str> {
        let key = full.strip_prefix(self.prefix.as_bytes())?;
        let key = std::str::from_utf8(key).ok()?;
        (!key.is_empty() && !key.starts_with(RESERVED)).then_some(key)
    }

    pub fn entry(&self, found: KeyValue) -> Option<Entry> {
        Some(Entry {
            key: self.name(&found.key)?.into(),
            value: found.value.into(),
            created: revision(found.create_revision),
            modified: revision(found.mod_revision),
            version: revision(found.version),
            lease: lease(found.lease),
        })
    }

    /// The transaction; where it conflicts, it answers where each expected key was modified.
    pub fn txn(&self, txn: &Txn) -> TxnRequest {
        self.txn_and(txn, std::iter::empty())
    }

    /// The same with operations that are the store's own.
    pub fn txn_and(&self, txn: &Txn, own: impl Iterator<Item = RequestOp>) -> TxnRequest {
        let looks = txn.expect.iter().map(|expect| {
            op(Request::RequestRange(RangeRequest {
                key: self.full(expect.key()),
                keys_only: true,
                ..Default::default()
            }))
        });
        TxnRequest {
            compare: txn.expect.iter().map(|e| self.compare(e)).collect(),
            success: grouped(txn.ops.iter().map(|o| self.op(o)).chain(own).collect()),
            failure: looks.collect(),
        }
    }

    fn compare(&self, expect: &Expect) -> Compare {
        let (result, target, union) = match expect {
            Expect::Absent { .. } => (CompareResult::Equal, CompareTarget::Create, created(0)),
            Expect::Exists { .. } => (CompareResult::Greater, CompareTarget::Create, created(0)),
            Expect::Modified { at, .. } => {
                // To etcd an absent key was modified at 0, to us it was not modified.
                let at = if *at == 0 { i64::MAX } else { signed(*at) };
                let union = TargetUnion::ModRevision(at);
                (CompareResult::Equal, CompareTarget::Mod, union)
            }
        };
        Compare {
            result: result.into(),
            target: target.into(),
            key: self.full(expect.key()),
            target_union: Some(union),
        }
    }

    fn op(&self, operation: &Op) -> RequestOp {
        op(match operation {
            Op::Put { key, value, lease } => Request::RequestPut(PutRequest {
                key: self.full(key),
                value: value.to_vec(),
                lease: lease.map_or(0, |lease| signed(lease.0)),
                ..Default::default()
            }),
            Op::Delete { key } => Request::RequestDeleteRange(DeleteRangeRequest {
                key: self.full(key),
                ..Default::default()
            }),
        })
    }

    pub fn check(&self, txn: &Txn) -> Result<()> {
        let mut keys = txn.expect.iter().map(Expect::key);
        let mut changed = txn.ops.iter().map(Op::key);
        let reserved = |key: &&str| key.starts_with(RESERVED);
        match keys.find(reserved).or_else(|| changed.find(reserved)) {
            Some(key) => Err(Error::Invalid {
                problem: format!("the key {key}: what starts with {RESERVED} is the store's own"),
            }),
            None => Ok(()),
        }
    }

    /// The lease's own key, only if it is there (`created` > 0) or anew.
    pub fn mark(&self, lease: LeaseId, mark: &'static [u8], is_there: bool) -> TxnRequest {
        let put = PutRequest {
            key: self.lease(lease),
            value: mark.to_vec(),
            lease: signed(lease.0),
            ..Default::default()
        };
        let there = Compare {
            result: CompareResult::Greater.into(),
            target: CompareTarget::Create.into(),
            key: self.lease(lease),
            target_union: Some(created(0)),
        };
        TxnRequest {
            compare: if is_there { vec![there] } else { Vec::new() },
            success: vec![op(Request::RequestPut(put))],
            failure: Vec::new(),
        }
    }
}

/// More operations than etcd takes in one transaction go into several inside of it, which still are one.
fn grouped(mut ops: Vec<RequestOp>) -> Vec<RequestOp> {
    if ops.len() <= OPS_MAX {
        return ops;
    }
    let mut groups = Vec::new();
    while !ops.is_empty() {
        let rest = ops.split_off(ops.len().min(GROUP));
        groups.push(op(Request::RequestTxn(TxnRequest {
            success: std::mem::replace(&mut ops, rest),
            ..Default::default()
        })));
    }
    groups
}

fn created(revision: i64) -> TargetUnion {
    TargetUnion::CreateRevision(revision)
}

pub fn op(request: Request) -> RequestOp {
    RequestOp {
        request: Some(request),
    }
}

/// etcd counts in signed numbers that are never negative.
pub fn revision(signed: i64) -> Revision {
    signed.try_into().unwrap_or(0)
}

pub fn signed(number: u64) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}

pub fn lease(id: i64) -> Option<LeaseId> {
    (id > 0).then_some(LeaseId(revision(id)))
}

/// The first key after all that start with `prefix`; a single 0 where there is none.
fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    EVERYTHING.to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_ends_before_the_first_key_that_does_not_start_with_its_prefix() {
        let keys = Keys::new("/p/");
        assert_eq!(keys.range("a"), (b"/p/a".to_vec(), b"/p/b".to_vec()));
        assert_eq!(keys.range(""), (b"/p/".to_vec(), b"/p0".to_vec()));
        let all = Keys::new("");
        assert_eq!(all.range(""), (vec![0], vec![0]));
        assert_eq!(end_of(&[b'a', 0xff, 0xff]), [b'b']);
        assert_eq!(end_of(&[0xff]), [0]);
    }

    #[test]
    fn a_name_is_text_under_the_prefix_and_not_the_stores_own() {
        let keys = Keys::new("/p/");
        assert_eq!(keys.name(b"/p/a/b"), Some("a/b"));
        for other in [
            &b"/q/a"[..],
            b"/p/",
            b"/p/\xff",
            &keys.lease(LeaseId(7)),
            &keys.part(1, 0, "a"),
            &keys.origin(),
        ] {
            assert_eq!(keys.name(other), None);
        }
    }

    #[test]
    fn the_first_part_of_a_value_names_its_owner() {
        let keys = Keys::new("/p/");
        let part = keys.part(0xab, 0, "history/0001/x");
        assert_eq!(
            keys.owner(&part),
            Some((0xab, b"/p/history/0001/x".to_vec()))
        );
        assert_eq!(keys.owner(&keys.part(0xab, 1, "x")), None);
        assert_eq!(keys.owner(b"/p/!parts/zz"), None);
    }
}
