//! Certificates that somebody else puts into a directory: `cert.pem`, `key.pem` (0600), `roots.pem`. They are looked at by
//! polling, which sees renames, rewrites and the swaps of links that Kubernetes makes alike. A set is taken when it is
//! complete, at rest, and good; until then the one before stays.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use phalanx_client::channel::Control;
use phalanx_pki::clock::UnixMillis;
use phalanx_pki::credentials::{
    CERT_FILE, Credentials, CredentialsError, KEY_FILE, Parts, ROOTS_FILE,
};
use phalanx_pki::files::{self, Access};
use phalanx_pki::key::Key;
use phalanx_pki::name::Workload;
use phalanx_pki::renewal::{Renewal, RenewalPolicy};
use phalanx_pki::roots::Roots;
use phalanx_pki::x509;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tracing::{info, warn};

use super::chain;
use super::holding::{Holding, owner};
use super::renew::Connection;
use super::status::Topic;

/// Longest time between two looks; `--cert-check`, where that is shorter.
const LOOK_MAX: Duration = Duration::from_secs(1);
/// The content is read at each so many looks, even if nothing else says that it changed.
const CONTENT_EVERY: u32 = 10;
/// So many looks that find the same bad set make it one that nobody is still writing.
const BAD_LOOKS: u32 = 3;
const FILES: [&str; 3] = [CERT_FILE, KEY_FILE, ROOTS_FILE];

pub struct Watching {
    holding: Arc<Holding>,
    policy: RenewalPolicy,
    control: Control,
    connection: Connection,
    watched: Watched,
}

impl Watching {
    pub fn new(holding: Arc<Holding>, dir: &Path, policy: RenewalPolicy, control: Control) -> Self {
        Self {
            watched: Watched::new(dir, holding.own.clone()),
            connection: Connection::new(&holding.identity),
            holding,
            policy,
            control,
        }
    }

    pub async fn run(mut self) {
        let pause = LOOK_MAX.min(self.policy.check);
        loop {
            let (mut watched, now) = (self.watched, self.holding.identity.now());
            let looked = spawn_blocking(move || {
                let look = watched.look(now);
                (watched, look)
            });
            let Ok((watched, look)) = looked.await else {
                return;
            };
            self.watched = watched;
            self.found(look);
            self.warn_of_end();
            if self.connection.is_due(&self.holding.identity) {
                self.control.reconnect();
            }
            sleep(pause).await;
        }
    }

    fn found(&self, look: Look) {
        let status = &self.holding.status;
        match look {
            Look::Same => {}
            Look::Waiting(why) => {
                if self.holding.identity.credentials().is_none() {
                    status.alarm(Topic::Files, why);
                }
            }
            Look::Fresh(credentials) => {
                let peer = credentials.peer().clone();
                self.holding.publish_read(*credentials);
                status.renewed();
                status.settle(Topic::Files);
                info!(id = %peer.id, serial = %peer.serial, until = %peer.not_after, "certificate taken from files");
            }
            Look::Bad(error) => {
                let why = chain(&error);
                if status.failed(Topic::Files, why.clone()) {
                    warn!(
                        error = why,
                        "the files can't be used, what was in force stays"
                    );
                }
            }
        }
    }

    fn warn_of_end(&self) {
        let Some(credentials) = self.holding.identity.credentials() else {
            return;
        };
        let (peer, now) = (credentials.peer(), self.holding.identity.now());
        let due = self
            .policy
            .decide(peer.not_before, peer.not_after, &peer.serial, now);
        if matches!(due, Renewal::Keep { .. }) {
            self.holding.status.settle(Topic::Expiring);
            return;
        }
        let until = peer.not_after;
        let why = format!("the certificate ends at {until} and nobody has put another there");
        if self.holding.status.alarm(Topic::Expiring, why) {
            warn!(%until, "the certificate in the watched files ends soon");
        }
    }
}

/// What one look finds.
#[derive(Debug)]
pub enum Look {
    Same,
    /// Not complete, or still being written.
    Waiting(String),
    Fresh(Box<Credentials>),
    /// At rest, and no good. Said once for each such set.
    Bad(CredentialsError),
}

/// A directory and what was last seen in it.
#[derive(Debug)]
pub struct Watched {
    dir: PathBuf,
    own: Workload,
    /// Of the last look.
    stamps: Option<[Stamp; 3]>,
    looks: u32,
    taken: Option<[u8; 32]>,
    /// A set that is no good, and how often it was found.
    bad: Option<([u8; 32], u32)>,
}

/// By what a file is known to be another, without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Watched {
    pub fn new(dir: &Path, own: Workload) -> Self {
        Self {
            dir: dir.to_owned(),
            own,
            stamps: None,
            looks: 0,
            taken: None,
            bad: None,
        }
    }

    pub fn look(&mut self, now: UnixMillis) -> Look {
        self.looks = self.looks.wrapping_add(1);
        let stamps = match self.stamps() {
            Ok(stamps) => stamps,
            Err(error) => {
                self.stamps = None;
                return Look::Waiting(format!("in {}, {error}", self.dir.display()));
            }
        };
        let is_same = self.stamps.replace(stamps) == Some(stamps);
        let is_settled = self.bad.is_none_or(|(_, looks)| looks >= BAD_LOOKS);
        if is_same && is_settled && !self.looks.is_multiple_of(CONTENT_EVERY) {
            return Look::Same;
        }
        let read = self.read();
        if self.stamps().ok() != Some(stamps) {
            self.stamps = None;
            return Look::Waiting("the files are being replaced".to_owned());
        }
        let (digest, parts) = match read {
            Ok(read) => read,
            Err(error) => return self.is_bad(x509::fingerprint(chain(&error).as_bytes()), error),
        };
        if self.taken == Some(digest) {
            self.bad = None;
            return Look::Same;
        }
        let credentials = parts.and_then(|parts| {
            let own = owner(&self.own, &parts.chain);
            Credentials::try_new(parts, &own, now)
        });
        match credentials {
            Ok(credentials) => {
                (self.taken, self.bad) = (Some(digest), None);
                Look::Fresh(Box::new(credentials))
            }
            Err(error) => self.is_bad(digest, error),
        }
    }

    #[cfg(test)]
    pub fn pretend_seen(&mut self) {
        self.stamps = self.stamps().ok();
    }

    /// The key of one set and the certificate of another may only mean that the second is not there yet.
    fn is_bad(&mut self, digest: [u8; 32], error: CredentialsError) -> Look {
        let looks = match self.bad {
            Some((before, looks)) if before == digest => looks.saturating_add(1),
            _ => 1,
        };
        self.bad = Some((digest, looks));
        match looks {
            BAD_LOOKS => Look::Bad(error),
            _ if looks > BAD_LOOKS => Look::Same,
            _ => Look::Waiting(chain(&error)),
        }
    }

    /// A digest, and what it is of.
    fn read(&self) -> Result<([u8; 32], Result<Parts, CredentialsError>), CredentialsError> {
        let file = |name: &str, access| files::read(&self.dir.join(name), access);
        let cert = file(CERT_FILE, Access::Public)?;
        let key = file(KEY_FILE, Access::Private)?;
        let roots = file(ROOTS_FILE, Access::Public)?;
        let mut whole = Vec::new();
        for bytes in [&cert, &key, &roots] {
            whole.extend_from_slice(&x509::fingerprint(bytes));
        }
        let parts = || {
            Ok(Parts {
                chain: x509::certs_from_pem(&cert)?,
                key: Key::from_pem(&key)?,
                staple: None,
                roots: Roots::from_pem(&roots)?,
            })
        };
        Ok((x509::fingerprint(&whole), parts()))
    }

    fn stamps(&self) -> io::Result<[Stamp; 3]> {
        let stamp = |name: &str| {
            let path = self.dir.join(name);
            let meta = fs::metadata(path)
                .map_err(|error| io::Error::new(error.kind(), format!("{name}: {error}")))?;
            Ok::<_, io::Error>(Stamp {
                device: meta.dev(),
                inode: meta.ino(),
                size: meta.size(),
                modified: (meta.mtime(), meta.mtime_nsec()),
                changed: (meta.ctime(), meta.ctime_nsec()),
            })
        };
        let [cert, key, roots] = FILES;
        Ok([stamp(cert)?, stamp(key)?, stamp(roots)?])
    }
}
