//! Transactions: what must hold, and what is then done, all or nothing.

use std::{collections::BTreeSet, fmt, time::Duration};

use bytes::Bytes;

use crate::{Error, LeaseId, Result, Revision};

/// All expectations are checked against the newest state, then all operations happen at one revision. A transaction that
/// changes nothing (it only expects, or deletes what is not there) commits without a new revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    pub expect: Vec<Expect>,
    pub ops: Vec<Op>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    Absent { key: String },
    Modified { key: String, at: Revision },
    Exists { key: String },
}

/// A key may occur in one operation of a transaction only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// The lease replaces the one that the key had; `None` detaches it.
    Put {
        key: String,
        value: Bytes,
        lease: Option<LeaseId>,
    },
    Delete {
        key: String,
    },
}

/// What a backend takes; beyond it is [`Error::Invalid`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub key_bytes_max: usize,
    pub value_bytes_max: usize,
    /// Expectations and operations together.
    pub txn_ops_max: usize,
    pub txn_expects_max: usize,
    /// Keys and values of all operations together.
    pub txn_bytes_max: usize,
    pub lease_ttl_max: Duration,
    pub leases_max: usize,
}

impl Txn {
    pub fn new() -> Txn {
        Txn::default()
    }

    pub fn expect_absent(mut self, key: impl Into<String>) -> Txn {
        self.expect.push(Expect::Absent { key: key.into() });
        self
    }

    pub fn expect_modified(mut self, key: impl Into<String>, at: Revision) -> Txn {
        self.expect.push(Expect::Modified {
            key: key.into(),
            at,
        });
        self
    }

    pub fn expect_exists(mut self, key: impl Into<String>) -> Txn {
        self.expect.push(Expect::Exists { key: key.into() });
        self
    }

    pub fn put(mut self, key: impl Into<String>, value: impl Into<Bytes>) -> Txn {
        self.ops.push(Op::Put {
            key: key.into(),
            value: value.into(),
            lease: None,
        });
        self
    }

    pub fn put_leased(
        mut self,
        key: impl Into<String>,
        value: impl Into<Bytes>,
        lease: LeaseId,
    ) -> Txn {
        self.ops.push(Op::Put {
            key: key.into(),
            value: value.into(),
            lease: Some(lease),
        });
        self
    }

    pub fn delete(mut self, key: impl Into<String>) -> Txn {
        self.ops.push(Op::Delete { key: key.into() });
        self
    }

    /// Bytes of all keys and values, which is about what the transaction will hold in queues and write to disk.
    pub fn bytes(&self) -> usize {
        let expected: usize = self.expect.iter().map(|expect| expect.key().len()).sum();
        let done: usize = self
            .ops
            .iter()
            .map(|op| op.key().len() + op.value().map_or(0, Bytes::len))
            .sum();
        expected + done
    }

    pub(crate) fn check(&self, limits: &Limits) -> Result<()> {
        let refuse = |problem: String| Err(Error::Invalid { problem });
        let count = self.expect.len() + self.ops.len();
        if count > limits.txn_ops_max {
            return refuse(format!(
                "{count} operations in a transaction, at most {} fit",
                limits.txn_ops_max
            ));
        }
        let expects = self.expect.len();
        if expects > limits.txn_expects_max {
            return refuse(format!(
                "{expects} expectations in a transaction, at most {} fit",
                limits.txn_expects_max
            ));
        }
        let bytes = self.bytes();
        if bytes > limits.txn_bytes_max {
            return refuse(format!(
                "a transaction of {bytes} bytes, at most {} fit",
                limits.txn_bytes_max
            ));
        }
        for key in self
            .expect
            .iter()
            .map(Expect::key)
            .chain(self.ops.iter().map(Op::key))
        {
            if key.is_empty() {
                return refuse("an empty key".into());
            }
            if key.len() > limits.key_bytes_max {
                let start: String = key.chars().take(64).collect();
                return refuse(format!(
                    "a key of {} bytes, at most {} fit: {start}…",
                    key.len(),
                    limits.key_bytes_max
                ));
            }
        }
        let mut keys = BTreeSet::new();
        for op in &self.ops {
            if !keys.insert(op.key()) {
                return refuse(format!(
                    "two operations on the key {} in one transaction",
                    op.key()
                ));
            }
            let length = op.value().map_or(0, Bytes::len);
            if length > limits.value_bytes_max {
                let most = limits.value_bytes_max;
                return refuse(format!(
                    "a value of {length} bytes for the key {}, at most {most} fit",
                    op.key()
                ));
            }
        }
        Ok(())
    }
}

impl Expect {
    pub fn key(&self) -> &str {
        match self {
            Expect::Absent { key } | Expect::Modified { key, .. } | Expect::Exists { key } => key,
        }
    }

    /// Whether it holds for a key that was last modified at `found`, or is absent.
    pub(crate) fn holds(&self, found: Option<Revision>) -> bool {
        match self {
            Expect::Absent { .. } => found.is_none(),
            Expect::Modified { at, .. } => found == Some(*at),
            Expect::Exists { .. } => found.is_some(),
        }
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expect::Absent { .. } => f.write_str("be absent"),
            Expect::Modified { at, .. } => write!(f, "be as of revision {at}"),
            Expect::Exists { .. } => f.write_str("exist"),
        }
    }
}

impl Op {
    pub fn key(&self) -> &str {
        match self {
            Op::Put { key, .. } | Op::Delete { key } => key,
        }
    }

    pub fn value(&self) -> Option<&Bytes> {
        match self {
            Op::Put { value, .. } => Some(value),
            Op::Delete { .. } => None,
        }
    }
}
