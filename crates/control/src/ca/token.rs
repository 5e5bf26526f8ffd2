//! Join tokens: made for one workload, good for the first key that shows them, until they expire. What is stored is a hash, so
//! neither the store nor a backup of it lets anybody in.
//!
//! "Used" is a compare-and-set on the token's record that names the key. The same key may ask again for a while, because the
//! answer to the first time may be lost on its way; whoever hasn't got that key can't sign a request for it.

use std::time::Duration;

use phalanx_pki::clock::UnixMillis;
use phalanx_pki::join::{self, JoinError, JoinToken};
use phalanx_pki::name::Workload;
use phalanx_pki::x509;
use phalanx_store::{Op, Revision, Txn};
use zeroize::Zeroizing;

use super::record::{TokenRecord, TokenUse, token_key};
use super::{Ca, CaError};

/// Most tokens that wait to be used.
pub const TOKENS_MAX: usize = 10_000;
/// How long, and how often, the key that used a token may ask again.
const AGAIN: Duration = Duration::from_secs(600);
const ANSWERS_MAX: u32 = 8;
/// How often a key may find that its token was written at the same time.
const TRIES: usize = 4;

/// A token that was shown, and would be taken.
pub(super) struct Shown {
    id: String,
    record: TokenRecord,
    revision: Revision,
    pub workload: Workload,
}

impl Shown {
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl Ca {
    /// Makes a token: the one who has it may join as the workload, once.
    ///
    /// # Errors
    /// [`CaError::Join`] for a time that is too long, [`CaError::TokensFull`], [`CaError::Reserved`], [`CaError::Store`]
    pub async fn token(
        &self,
        workload: &Workload,
        ttl: Duration,
        author: &str,
    ) -> Result<Zeroizing<String>, CaError> {
        self.check_workload(workload)?;
        join::check_ttl(ttl)?;
        let now = self.now();
        let waiting = self.0.store.list(super::record::TOKENS).await?.entries;
        if waiting.len() >= TOKENS_MAX {
            return Err(CaError::TokensFull { max: TOKENS_MAX });
        }
        let token = JoinToken::generate()?;
        let service = &workload.id().service;
        let record = TokenRecord {
            secret: token.digest(),
            namespace: service.namespace.clone(),
            service: service.name.clone(),
            zone: workload.zone().map(str::to_owned),
            issued_at: now,
            not_after: now.plus(ttl),
            author: author.to_owned(),
            used: None,
        };
        let key = token_key(token.id());
        let txn = Txn::new().expect_absent(&key).put(key, encode(&record)?);
        self.0.store.commit(txn).await?;
        tracing::info!(id = token.id(), workload = %workload.id(), author, "join token made");
        Ok(token.to_text())
    }

    /// Looks a token up. Nothing is used yet.
    pub(super) async fn shown(
        &self,
        text: &str,
        claimed: (&str, &str, &str),
        now: UnixMillis,
    ) -> Result<Shown, CaError> {
        let token = JoinToken::parse(text)?;
        let key = token_key(token.id());
        let entry = self.0.store.get(&key).await?;
        let entry = entry.ok_or(CaError::TokenUnknown)?;
        let record = decode(&key, &entry.value)?;
        // Who hasn't got the secret learns nothing about the token.
        if !token.is_of(&record.secret) {
            return Err(CaError::TokenUnknown);
        }
        if now > record.not_after {
            let not_after = record.not_after;
            return Err(JoinError::Expired { not_after }.into());
        }
        let (namespace, service, zone) = claimed;
        if (namespace, service) != (&record.namespace, &record.service) {
            return Err(CaError::TokenOfAnother {
                of: format!("{}/{}", record.namespace, record.service),
                asked: clip(&format!("{namespace}/{service}")),
            });
        }
        if !zone.is_empty() && Some(zone) != record.zone.as_deref() {
            return Err(JoinError::Zone.into());
        }
        let zone = record.zone.as_deref();
        let workload = Workload::parse(self.trust_domain(), namespace, service, zone)?;
        Ok(Shown {
            id: token.id().to_owned(),
            workload,
            revision: entry.modified,
            record,
        })
    }

    /// Binds a token to a key, and writes the certificate's line into the log, both or neither.
    pub(super) async fn use_token(
        &self,
        shown: Shown,
        spki: &[u8],
        line: Op,
        now: UnixMillis,
    ) -> Result<(), CaError> {
        let key = x509::hex(&x509::sha256(spki));
        let name = token_key(&shown.id);
        let (mut record, mut revision) = (shown.record, shown.revision);
        for _ in 0..TRIES {
            record.used = Some(answer(record.used.take(), &key, now)?);
            let mut txn = Txn::new().expect_modified(&name, revision);
            txn = txn.put(&name, encode(&record)?);
            txn.ops.push(line.clone());
            match self.0.store.commit(txn).await {
                Ok(_) => return Ok(()),
                // Another was faster; or this very key, whose first answer got lost between the store and here.
                Err(phalanx_store::Error::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            let entry = self.0.store.get(&name).await?;
            let entry = entry.ok_or(CaError::TokenUnknown)?;
            record = decode(&name, &entry.value)?;
            revision = entry.modified;
        }
        Err(CaError::Contended)
    }

    /// Deletes tokens that have expired.
    pub(super) async fn prune_tokens(&self) -> Result<(), CaError> {
        let now = self.now();
        let page = self.0.store.list(super::record::TOKENS).await?;
        let over = page.entries.into_iter().filter(|entry| {
            let record = serde_json::from_slice::<TokenRecord>(&entry.value);
            // One that can't be read lets nobody in, and would stay for ever.
            record.map_or(true, |record| record.not_after < now)
        });
        let keys: Vec<String> = over.map(|entry| entry.key).collect();
        for chunk in keys.chunks(PRUNED_AT_ONCE) {
            let txn = chunk.iter().fold(Txn::new(), |txn, key| txn.delete(key));
            self.0.store.commit(txn).await?;
        }
        Ok(())
    }
}

/// Keys that one transaction deletes.
pub(super) const PRUNED_AT_ONCE: usize = 512;

/// Who has used a token after this key does.
fn answer(used: Option<TokenUse>, key: &str, now: UnixMillis) -> Result<TokenUse, CaError> {
    match used {
        None => Ok(TokenUse {
            key: key.to_owned(),
            at: now,
            answers: 1,
        }),
        Some(used) if used.key != key => Err(CaError::TokenUsed),
        Some(used) if used.answers >= ANSWERS_MAX || used.at.plus(AGAIN) < now => {
            Err(CaError::TokenUsed)
        }
        Some(used) => Ok(TokenUse {
            answers: used.answers + 1,
            ..used
        }),
    }
}

fn decode(key: &str, value: &[u8]) -> Result<TokenRecord, CaError> {
    serde_json::from_slice(value).map_err(|source| CaError::Damaged {
        key: key.to_owned(),
        source,
    })
}

fn encode(record: &TokenRecord) -> Result<Vec<u8>, CaError> {
    serde_json::to_vec(record).map_err(|source| CaError::Damaged {
        key: "ca/tokens/".to_owned(),
        source,
    })
}

/// What of a foreign text is fit to be shown.
pub(super) fn clip(text: &str) -> String {
    text.chars()
        .take(100)
        .flat_map(char::escape_debug)
        .collect()
}
