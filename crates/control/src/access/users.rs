//! People and their tools: a name, a role and the hash of a token, in the store under `ca/users/`, so that every control plane
//! over it knows them. The token itself is told once and kept nowhere.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use phalanx_model::name::check_label;
use phalanx_pki::clock::{Clock, SystemClock, UnixMillis};
use phalanx_pki::x509::fingerprint as sha256;
use phalanx_store::{Entry, Event, EventKind, Store, Txn};
use rustls::crypto::aws_lc_rs;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::Role;

/// Where they are kept.
pub const USERS: &str = "ca/users/";
pub const USERS_MAX: usize = 1000;
/// Longest life of a token that ends at all.
pub const TTL_MAX: Duration = Duration::from_secs(10 * 365 * 86_400);
/// How every token begins, so that one that got lost is known for what it is.
const PREFIX: &str = "phalanx-user";
/// Random bytes.
const SECRET: usize = 32;
/// After a broken watch.
const PAUSE: Duration = Duration::from_millis(200);

/// A user as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserRecord {
    pub role: String,
    /// SHA-256 of the token's secret, hex.
    pub hash: String,
    pub created_ms: i64,
    /// None: it does not expire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<i64>,
    /// Who made it.
    pub author: String,
}

#[derive(Debug, thiserror::Error)]
pub enum UserError {
    #[error("`{0}` can be no user's name (a-z, 0-9 and -, at most 63)")]
    Name(String),
    #[error("there is a user `{0}` already")]
    Taken(String),
    #[error("there is no user `{0}`")]
    Unknown(String),
    #[error("{USERS_MAX} users are known, no more are taken")]
    Full,
    #[error("a token lives at most {} days", TTL_MAX.as_secs() / 86_400)]
    Ttl,
    #[error("the system has no randomness")]
    Random,
    #[error("the users can't be stored")]
    Store(#[from] phalanx_store::Error),
}

/// `phalanx-user.<name>.<secret>`
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    name: String,
    secret: String,
}

/// All of them; cheap to clone. Every change comes back through the store.
#[derive(Clone)]
pub struct Users {
    store: Store,
    known: Arc<RwLock<BTreeMap<String, UserRecord>>>,
}

impl Users {
    /// With whoever is stored.
    ///
    /// # Errors
    /// [`phalanx_store::Error`]
    pub async fn load(store: Store) -> Result<Self, phalanx_store::Error> {
        let users = Self {
            store,
            known: Arc::default(),
        };
        users.read().await?;
        Ok(users)
    }

    /// Follows the store until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let follow = async {
                let from = self.read().await?;
                let mut watch = self.store.watch(USERS, from).await?;
                while let Some(batch) = watch.next().await {
                    batch?.events.into_iter().for_each(|e| self.take(e));
                }
                Ok::<(), phalanx_store::Error>(())
            };
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                ended = follow => ended,
            };
            match ended {
                Err(phalanx_store::Error::Closed) => return,
                Err(error) => {
                    tracing::debug!(%error, "users can't be followed, reading them again")
                }
                Ok(()) => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    /// Whose token it is.
    pub fn check(&self, token: &str) -> Option<(String, Role)> {
        let token: Token = token.parse().ok()?;
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let user = known.get(&token.name)?;
        let is_over = user.expires_ms.is_some_and(|until| until <= now().0);
        // Two hashes: how long they are alike tells nothing about what was hashed.
        let is_it = user.hash == token.hash() && !is_over;
        is_it
            .then(|| Role::parse(&user.role))
            .flatten()
            .map(|role| (token.name, role))
    }

    pub fn all(&self) -> Vec<(String, UserRecord)> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.iter().map(|(n, u)| (n.clone(), u.clone())).collect()
    }

    /// A new user; the token is told now and never again.
    ///
    /// # Errors
    /// [`UserError`]
    pub async fn add(
        &self,
        name: &str,
        role: Role,
        ttl: Option<Duration>,
        author: &str,
    ) -> Result<(Token, UserRecord), UserError> {
        check_label(name).map_err(|_| UserError::Name(clip(name)))?;
        if ttl.is_some_and(|ttl| ttl.is_zero() || ttl > TTL_MAX) {
            return Err(UserError::Ttl);
        }
        if self.all().len() >= USERS_MAX {
            return Err(UserError::Full);
        }
        let token = Token::random(name)?;
        let record = token.record(role, ttl, author);
        let txn = Txn::new().expect_absent(key(name));
        let taken = |_| UserError::Taken(name.to_owned());
        self.put(txn, name, &record).await.map_err(|e| match e {
            UserError::Store(phalanx_store::Error::Conflict { .. }) => taken(e),
            e => e,
        })?;
        Ok((token, record))
    }

    /// Makes the token's user an administrator, whoever has been one under that name.
    ///
    /// # Errors
    /// [`UserError`]
    pub async fn install(&self, token: &Token) -> Result<(), UserError> {
        if self.check(&token.to_string()).is_some() {
            return Ok(());
        }
        let record = token.record(Role::Admin, None, "control");
        self.put(Txn::new(), &token.name, &record).await
    }

    /// # Errors
    /// [`UserError`]
    pub async fn remove(&self, name: &str) -> Result<(), UserError> {
        check_label(name).map_err(|_| UserError::Name(clip(name)))?;
        let txn = Txn::new().expect_exists(key(name)).delete(key(name));
        match self.store.commit(txn).await {
            Ok(_) => {
                self.write(|known| known.remove(name));
                Ok(())
            }
            Err(phalanx_store::Error::Conflict { .. }) => Err(UserError::Unknown(name.to_owned())),
            Err(error) => Err(error.into()),
        }
    }

    async fn put(&self, txn: Txn, name: &str, record: &UserRecord) -> Result<(), UserError> {
        let value = serde_json::to_vec(record).unwrap_or_default();
        self.store.commit(txn.put(key(name), value)).await?;
        self.write(|known| known.insert(name.to_owned(), record.clone()));
        Ok(())
    }

    async fn read(&self) -> Result<u64, phalanx_store::Error> {
        let page = self.store.list(USERS).await?;
        let users = page.entries.iter().filter_map(user).take(USERS_MAX);
        let users = users.collect();
        self.write(|known| *known = users);
        Ok(page.revision)
    }

    fn take(&self, event: Event) {
        match event.kind {
            EventKind::Put(entry) => match user(&entry) {
                Some((name, record)) => {
                    self.write(|known| known.insert(name, record));
                }
                None => tracing::warn!(key = entry.key, "a user in the store can't be read"),
            },
            EventKind::Delete { key, .. } => {
                self.write(|known| known.remove(key.strip_prefix(USERS).unwrap_or_default()));
            }
        }
    }

    fn write<T>(&self, change: impl FnOnce(&mut BTreeMap<String, UserRecord>) -> T) -> T {
        change(&mut self.known.write().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Token {
    /// # Errors
    /// [`UserError::Random`]
    pub fn random(name: &str) -> Result<Self, UserError> {
        let mut secret = [0; SECRET];
        let random = aws_lc_rs::default_provider().secure_random;
        random.fill(&mut secret).map_err(|_| UserError::Random)?;
        Ok(Self {
            name: name.to_owned(),
            secret: hex(&secret),
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    fn hash(&self) -> String {
        hex(&sha256(self.secret.as_bytes()))
    }

    fn record(&self, role: Role, ttl: Option<Duration>, author: &str) -> UserRecord {
        UserRecord {
            role: role.as_str().to_owned(),
            hash: self.hash(),
            created_ms: now().0,
            expires_ms: ttl.map(|ttl| now().plus(ttl).0),
            author: author.to_owned(),
        }
    }
}

impl FromStr for Token {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.trim().split('.');
        let parts = [parts.next(), parts.next(), parts.next(), parts.next()];
        let [Some(PREFIX), Some(name), Some(secret), None] = parts else {
            return Err(());
        };
        let is_secret = secret.len() == 2 * SECRET && secret.bytes().all(|b| b.is_ascii_hexdigit());
        match check_label(name) {
            Ok(()) if is_secret => Ok(Self {
                name: name.to_owned(),
                secret: secret.to_owned(),
            }),
            _ => Err(()),
        }
    }
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{PREFIX}.{}.{}", self.name, self.secret)
    }
}

/// Without the secret.
impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{PREFIX}.{}.…", self.name)
    }
}

fn key(name: &str) -> String {
    format!("{USERS}{name}")
}

fn user(entry: &Entry) -> Option<(String, UserRecord)> {
    let name = entry.key.strip_prefix(USERS)?;
    let record = serde_json::from_slice(&entry.value).ok()?;
    Some((name.to_owned(), record))
}

fn now() -> UnixMillis {
    SystemClock.now()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// What of a foreign text is fit to be shown.
fn clip(text: &str) -> String {
    text.chars()
        .take(100)
        .flat_map(char::escape_debug)
        .collect()
}
