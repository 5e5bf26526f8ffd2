//! Where the state under a prefix came from. After a migration every revision that is told is etcd's own and what had been
//! reached before, so none goes back and none means two things. Inside of this room they are etcd's own.
//!
//! `!origin` says how far ahead, and whether the migration has ended; until then nobody may use what is there.

use std::time::Duration;

use super::{
    Etcd, Shared,
    feed::Watch as Feed,
    keys::op,
    wire::{Fault, Repeat},
};
use crate::{
    Batch, Entry, Error, EtcdConfig, EventKind, Expect, LeaseId, Page, Result, Revision, Status,
    Txn,
};
use phalanx_proto::etcdserverpb::{
    Compare, PutRequest, RangeRequest, TxnRequest,
    compare::{CompareResult, CompareTarget, TargetUnion},
    request_op::Request,
};

/// The backend that a [`Store`](crate::Store) has.
#[derive(Debug)]
pub struct Shifted {
    pub(crate) etcd: Etcd,
    shift: Shift,
}

#[derive(Debug)]
pub struct Watch {
    feed: Feed,
    shift: Shift,
}

/// What `!origin` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    pub is_whole: bool,
    pub ahead: Revision,
}

impl Origin {
    pub fn encode(self) -> Vec<u8> {
        let Origin { is_whole, ahead } = self;
        let state = if is_whole { WHOLE } else { COPYING };
        format!("{state} {ahead}").into_bytes()
    }

    fn parse(value: &[u8]) -> Option<Origin> {
        let (state, ahead) = std::str::from_utf8(value).ok()?.split_once(' ')?;
        let is_whole = state == WHOLE;
        let ahead = ahead.parse().ok()?;
        (is_whole || state == COPYING).then_some(Origin { is_whole, ahead })
    }
}

const WHOLE: &str = "whole";
const COPYING: &str = "copying";

/// As [`super::open`], for what may have been migrated.
pub async fn open_shifted(config: EtcdConfig) -> Result<Shifted> {
    let place = format!("{} under {}", config.url(), config.prefix);
    let etcd = super::open(config).await?;
    let ahead = match etcd.shared.origin().await?.map(|(origin, _)| origin) {
        None => 0,
        Some(Origin {
            is_whole: true,
            ahead,
        }) => ahead,
        Some(Origin {
            is_whole: false, ..
        }) => {
            let reason = format!(
                "a migration to {place} has not ended: run `phalanx migrate` again, it goes on where it was"
            );
            return Err(Error::Refused { reason });
        }
    };
    Ok(Shifted {
        etcd,
        shift: Shift(ahead),
    })
}

impl Shared {
    /// With etcd's revision of it.
    pub(super) async fn origin(&self) -> Result<Option<(Origin, i64)>> {
        let request = RangeRequest {
            key: self.keys.origin(),
            ..Default::default()
        };
        let answer = self.range(request).await.map_err(Fault::of_read)?;
        let Some(found) = answer.kvs.into_iter().next() else {
            return Ok(None);
        };
        match Origin::parse(&found.value) {
            Some(origin) => Ok(Some((origin, found.mod_revision))),
            None => Err(Error::Refused {
                reason:
                    "the note of where the state came from makes no sense, perhaps to this version"
                        .into(),
            }),
        }
    }

    /// Whether it was written: only if it still is as of `before`, 0 for absent.
    pub(super) async fn set_origin(&self, origin: Origin, before: i64) -> Result<bool> {
        let put = PutRequest {
            key: self.keys.origin(),
            value: origin.encode(),
            ..Default::default()
        };
        let request = TxnRequest {
            compare: vec![self.origin_is(before)],
            success: vec![op(Request::RequestPut(put))],
            failure: Vec::new(),
        };
        let done = self.txn(Repeat::IfNotDone, &request).await;
        Ok(done.map_err(Fault::of_write)?.succeeded)
    }

    /// That the note is as of `at`.
    pub(super) fn origin_is(&self, at: i64) -> Compare {
        Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Mod.into(),
            key: self.keys.origin(),
            target_union: Some(TargetUnion::ModRevision(at)),
        }
    }
}

impl Shifted {
    pub async fn get(&self, key: &str) -> Result<Option<Entry>> {
        let found = self.etcd.get(key).await.map_err(|e| self.shift.error(e))?;
        Ok(found.map(|entry| self.shift.entry(entry)))
    }

    pub async fn list(&self, prefix: &str) -> Result<Page> {
        let page = self
            .etcd
            .list(prefix)
            .await
            .map_err(|e| self.shift.error(e))?;
        let entries = page.entries.into_iter();
        Ok(Page {
            entries: entries.map(|entry| self.shift.entry(entry)).collect(),
            revision: self.shift.told(page.revision),
        })
    }

    pub async fn commit(&self, txn: Txn) -> Result<Revision> {
        let done = self.etcd.commit(self.shift.txn(txn)).await;
        done.map(|at| self.shift.told(at))
            .map_err(|e| self.shift.error(e))
    }

    pub async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch> {
        let feed = match self.shift.own(from) {
            Some(from) => self.etcd.watch(prefix, from).await,
            // Of the store that was migrated: its events were left behind.
            None => Err(Error::Compacted {
                from: 0,
                oldest: self.etcd.shared.find_oldest(prefix).await.max(1),
            }),
        };
        match feed {
            Ok(feed) => Ok(Watch {
                feed,
                shift: self.shift,
            }),
            Err(error) => Err(match self.shift.error(error) {
                Error::Compacted { oldest, .. } => Error::Compacted { from, oldest },
                error => error,
            }),
        }
    }

    pub async fn grant(&self, ttl: Duration) -> Result<LeaseId> {
        self.etcd.grant(ttl).await
    }

    pub async fn keep_alive(&self, lease: LeaseId) -> Result<Duration> {
        self.etcd.keep_alive(lease).await
    }

    pub async fn revoke(&self, lease: LeaseId) -> Result<Revision> {
        let revoked = self.etcd.revoke(lease).await;
        revoked.map(|at| self.shift.told(at))
    }

    pub async fn compact(&self, keep_from: Revision) -> Result<()> {
        let keep_from = self.shift.own(keep_from).unwrap_or(0);
        let done = self.etcd.compact(keep_from).await;
        done.map_err(|e| self.shift.error(e))
    }

    pub fn revision(&self) -> Revision {
        self.shift.told(self.etcd.revision())
    }

    pub fn status(&self) -> Status {
        let status = self.etcd.status();
        Status {
            revision: self.shift.told(status.revision),
            oldest: self.shift.told(status.oldest),
            ..status
        }
    }

    pub fn close(&self) {
        self.etcd.close();
    }
}

impl Watch {
    /// As [`crate::Watch::next`].
    pub async fn next(&mut self) -> Option<Result<Batch>> {
        let next = self.feed.next().await?;
        Some(match next {
            Ok(batch) => Ok(self.shift.batch(batch)),
            Err(error) => Err(self.shift.error(error)),
        })
    }
}

/// How far what is told is ahead of etcd's own numbers. 0 stays 0: before everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shift(Revision);

impl Shift {
    fn told(self, own: Revision) -> Revision {
        if own == 0 {
            0
        } else {
            own.saturating_add(self.0)
        }
    }

    /// None: it was told by the store before the migration.
    fn own(self, told: Revision) -> Option<Revision> {
        match told.checked_sub(self.0) {
            _ if told == 0 => Some(0),
            Some(0) | None => None,
            own => own,
        }
    }

    fn entry(self, entry: Entry) -> Entry {
        Entry {
            created: self.told(entry.created),
            modified: self.told(entry.modified),
            ..entry
        }
    }

    fn batch(self, mut batch: Batch) -> Batch {
        batch.revision = self.told(batch.revision);
        if self.0 > 0 {
            for event in &mut batch.events {
                if let EventKind::Put(entry) = &mut event.kind {
                    entry.created = self.told(entry.created);
                    entry.modified = self.told(entry.modified);
                }
            }
        }
        batch
    }

    fn txn(self, mut txn: Txn) -> Txn {
        for expect in &mut txn.expect {
            if let Expect::Modified { at, .. } = expect {
                // What was before the migration is nothing's revision, which is what 0 is.
                *at = self.own(*at).unwrap_or(0);
            }
        }
        txn
    }

    fn error(self, error: Error) -> Error {
        match error {
            Error::Conflict {
                key,
                mut expected,
                found,
            } => {
                if let Expect::Modified { at, .. } = &mut expected {
                    *at = self.told(*at);
                }
                Error::Conflict {
                    key,
                    expected,
                    found: found.map(|at| self.told(at)),
                }
            }
            Error::Compacted { from, oldest } => Error::Compacted {
                from: self.told(from),
                oldest: self.told(oldest),
            },
            Error::Future { asked, head } => Error::Future {
                asked: self.told(asked),
                head: self.told(head),
            },
            error => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_reads_back() {
        for is_whole in [true, false] {
            let origin = Origin {
                is_whole,
                ahead: 77,
            };
            assert_eq!(Origin::parse(&origin.encode()), Some(origin));
        }
        for bad in [&b""[..], b"whole", b"whole x", b"half 7", b"\xff 7"] {
            assert_eq!(Origin::parse(bad), None);
        }
    }

    #[test]
    fn revisions_of_before_are_none_of_now_and_zero_stays_zero() {
        let shift = Shift(1000);
        assert_eq!((shift.told(0), shift.told(1)), (0, 1001));
        assert_eq!(shift.own(0), Some(0));
        assert_eq!((shift.own(7), shift.own(1000)), (None, None));
        assert_eq!(shift.own(1001), Some(1));
    }
}
