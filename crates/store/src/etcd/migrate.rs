//! From a backup to an etcd, under a prefix where nothing is. A note says that it is under way, so nobody uses half of it;
//! one that was interrupted is gone on with, whatever of it is there.

use std::{collections::BTreeMap, time::Duration};

use super::{Etcd, origin::Origin, parts::PART_BYTES};
use crate::{
    Entry, Error, EtcdConfig, Result, Revision, Txn,
    backup::{Backup, REVISIONS_SKIPPED},
};

/// Of one transaction, beside a single value that is larger.
const CHUNK_OPS: usize = 100;
/// Attempts at a transaction whose answer does not come; all of them may be done twice.
const ATTEMPTS_MAX: usize = 5;
const ATTEMPT_PAUSE: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migrated {
    /// As the store over this etcd will tell it: above all that the old one could have told.
    pub revision: Revision,
    pub entries: usize,
    /// Of them, how many an interrupted migration had brought already.
    pub resumed: usize,
}

/// Copies everything, reads it back, and only then lets it be used. `progress` hears how many of how many entries are there.
///
/// # Errors
/// [`Error::NotEmpty`] when something else lies under the prefix. After any other error it may be called again.
pub async fn migrate(
    backup: &Backup,
    config: EtcdConfig,
    mut progress: impl FnMut(usize, usize),
) -> Result<Migrated> {
    let place = format!("{} under {}", config.url(), config.prefix);
    let etcd = super::open(config).await?;
    let copying = Origin {
        is_whole: false,
        ahead: backup.revision.saturating_add(REVISIONS_SKIPPED),
    };
    let before = match etcd.shared.origin().await? {
        Some((Origin { is_whole: true, .. }, _)) => {
            let found = "a state that was migrated earlier".into();
            return Err(Error::NotEmpty { place, found });
        }
        Some((_, at)) => at,
        None => {
            let everything = etcd.shared.keys.range("");
            if etcd.shared.count(everything).await? > 0 {
                let found = etcd.list("").await?.entries.into_iter().next();
                let found =
                    found.map_or_else(|| "something that is no text".into(), |entry| entry.key);
                return Err(Error::NotEmpty { place, found });
            }
            0
        }
    };
    let taken = || Error::Refused {
        reason: format!("somebody else writes to {place} at the same time"),
    };
    if !etcd.shared.set_origin(copying, before).await? {
        return Err(taken());
    }
    let Some((_, claimed)) = etcd.shared.origin().await? else {
        return Err(taken());
    };
    let target = Target {
        etcd: &etcd,
        claimed,
    };
    let resumed = target
        .copy(backup, &mut progress)
        .await
        .map_err(|error| match error {
            Error::Conflict { .. } => taken(),
            error => error,
        })?;
    verify(&etcd, backup).await?;
    let whole = Origin {
        is_whole: true,
        ..copying
    };
    let is_set = match etcd.shared.set_origin(whole, claimed).await {
        // Run again, it would find itself in the way.
        Err(Error::Unknown { .. }) => {
            let found = etcd.shared.origin().await?.map(|(origin, _)| origin);
            found == Some(whole) || etcd.shared.set_origin(whole, claimed).await?
        }
        is_set => is_set?,
    };
    if !is_set {
        return Err(taken());
    }
    let head = etcd.shared.head().await?;
    etcd.close();
    Ok(Migrated {
        revision: head.saturating_add(copying.ahead),
        entries: backup.entries.len(),
        resumed,
    })
}

/// Where everything goes, while the note there is ours.
struct Target<'a> {
    etcd: &'a Etcd,
    /// etcd's revision of the note.
    claimed: i64,
}

impl Target<'_> {
    /// Makes what is there what the backup holds. Returns how much of it was right already.
    async fn copy(
        &self,
        backup: &Backup,
        progress: &mut impl FnMut(usize, usize),
    ) -> Result<usize> {
        let there = self.etcd.list("").await?.entries.into_iter();
        let mut there: BTreeMap<String, Entry> =
            there.map(|entry| (entry.key.clone(), entry)).collect();
        let all = backup.entries.len();
        let (mut resumed, mut done) = (0, 0);
        let mut txn = Txn::new();
        for entry in &backup.entries {
            done += 1;
            let found = there.remove(&entry.key);
            if found.is_some_and(|found| found.value == entry.value && found.lease.is_none()) {
                resumed += 1;
                continue;
            }
            let is_full =
                txn.ops.len() >= CHUNK_OPS || txn.bytes() + entry.value.len() > PART_BYTES;
            if is_full && !txn.ops.is_empty() {
                self.commit(std::mem::take(&mut txn)).await?;
                progress(done - 1, all);
            }
            txn = txn.put(&entry.key, entry.value.clone());
        }
        for key in there.into_keys() {
            if txn.ops.len() >= CHUNK_OPS {
                self.commit(std::mem::take(&mut txn)).await?;
            }
            txn = txn.delete(key);
        }
        if !txn.ops.is_empty() {
            self.commit(txn).await?;
        }
        progress(all, all);
        Ok(resumed)
    }

    /// # Errors
    /// [`Error::Conflict`] when the note is another's by now: a second migration may have ended, and what is there be in use.
    async fn commit(&self, txn: Txn) -> Result<()> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            match self.etcd.commit_at_origin(&txn, self.claimed).await {
                Ok(_) => return Ok(()),
                Err(Error::Unknown { .. } | Error::Unreachable { .. })
                    if attempts < ATTEMPTS_MAX =>
                {
                    tokio::time::sleep(ATTEMPT_PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

async fn verify(etcd: &Etcd, backup: &Backup) -> Result<()> {
    let page = etcd.list("").await?;
    let differs = |key: &str| Error::Refused {
        reason: format!("what was written is not what is read back, at the key {key}"),
    };
    let mut wanted = backup.entries.iter();
    for found in &page.entries {
        match wanted.next() {
            Some(entry) if entry.key == found.key && entry.value == found.value => {}
            _ => return Err(differs(&found.key)),
        }
    }
    wanted
        .next()
        .map_or(Ok(()), |entry| Err(differs(&entry.key)))
}
