//! From a backup to a data directory. The new file gets its name when it is complete and on disk, so an interrupted restore
//! leaves the directory as it was.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    disk::{self, FILE},
    engine::{Delta, Engine},
    record,
};
use crate::{
    Entry, Error, Event, Result, Revision,
    backup::{Backup, REVISIONS_SKIPPED},
};

/// What one transaction of a restore writes.
const CHUNK_BYTES: usize = 8 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Of the store as it is now: above all that the old one could have told anybody.
    pub revision: Revision,
    /// Where the store that was there is now.
    pub aside: Option<PathBuf>,
}

/// Makes the store of a directory what the backup holds. Entries keep their revisions; the next write comes
/// [`REVISIONS_SKIPPED`] later. With `force` a store that is there is kept beside it under another name.
///
/// # Errors
/// [`Error::NotEmpty`] when something is there, [`Error::InUse`] when a control plane uses it.
pub fn restore(directory: &Path, backup: &Backup, force: bool) -> Result<Restored> {
    let attempt = |attempt: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| Error::Open {
            attempt,
            path,
            source: Arc::new(source),
        }
    };
    disk::make(directory)?;
    let lock = disk::lock(directory)?;
    let there = others(directory).map_err(attempt("look into", directory))?;
    if let Some(name) = there.first()
        && !force
    {
        return Err(Error::NotEmpty {
            place: directory.display().to_string(),
            found: name.clone(),
        });
    }
    let revision = backup.revision.saturating_add(REVISIONS_SKIPPED);
    let path = directory.join(FILE);
    disk::complete(
        directory,
        |disk| {
            let engine = Engine::open(disk)?;
            for delta in deltas(backup, revision) {
                engine.commit(&delta)?;
            }
            let head = engine.head()?;
            engine.close();
            if head == revision {
                return Ok(());
            }
            let problem = format!("it is at revision {head}, not at {revision}");
            Err(super::Fault::Damaged(problem))
        },
        |unfinished| {
            let mut aside = None;
            if path.try_exists()? {
                // Linked and not renamed: there is no moment without a store, which a start would take for a new one.
                let old = free_name(directory)?;
                fs::hard_link(&path, &old)?;
                aside = Some(old);
            }
            fs::rename(unfinished, &path)?;
            Ok(aside)
        },
    )
    .map(|aside| {
        drop(lock);
        Restored { revision, aside }
    })
}

/// What is in the directory beside the store's own helpers.
fn others(directory: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !disk::HELPERS.contains(&name.as_str()) && name != "lost+found" {
            names.push(name);
        }
    }
    // What says most comes first.
    names.sort_by_key(|name| (name != FILE, name.clone()));
    Ok(names)
}

fn free_name(directory: &Path) -> io::Result<PathBuf> {
    for number in 1_u32.. {
        let name = directory.join(format!("{FILE}.before-restore-{number}"));
        if !name.try_exists()? {
            return Ok(name);
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// The entries at their places in the log, then the head.
fn deltas(backup: &Backup, head: Revision) -> impl Iterator<Item = Delta> {
    // A place is a revision and a position in it; which one it was is of no more interest.
    let mut by_revision: BTreeMap<Revision, Vec<&Entry>> = BTreeMap::new();
    for entry in &backup.entries {
        by_revision.entry(entry.modified).or_default().push(entry);
    }
    let mut deltas = vec![Delta::default()];
    let mut bytes = 0;
    for (revision, entries) in by_revision {
        for (position, entry) in entries.into_iter().enumerate() {
            let record = record::encode(&Event::put(Entry {
                lease: None,
                ..entry.clone()
            }));
            if bytes > CHUNK_BYTES {
                deltas.push(Delta::default());
                bytes = 0;
            }
            bytes += record.len();
            if let Some(delta) = deltas.last_mut() {
                delta.records.push(((revision, position as u32), record));
            }
        }
    }
    if let Some(last) = deltas.last_mut() {
        // No watch begins before the restore, and no lease of before is taken for one of now.
        last.floor = Some((head, head));
        last.lease_next = Some(head);
    }
    deltas.into_iter()
}
