//! Join tokens as operators see them: which wait to be used, and one taken back. Their secrets are nowhere to be seen.

use phalanx_pki::clock::UnixMillis;
use phalanx_store::Txn;

use super::record::{TOKENS, TokenRecord, token_key};
use super::{Ca, CaError};

/// A token that waits to be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waits {
    pub id: String,
    pub namespace: String,
    pub service: String,
    pub zone: Option<String>,
    pub expires: UnixMillis,
    pub author: String,
}

impl Ca {
    /// Those that were neither used nor have expired, soonest to expire first.
    ///
    /// # Errors
    /// [`CaError::Store`]
    pub async fn tokens(&self) -> Result<Vec<Waits>, CaError> {
        let now = self.now();
        let page = self.0.store.list(TOKENS).await?;
        let mut waiting: Vec<Waits> = page
            .entries
            .iter()
            .filter_map(|entry| waits(&entry.key, &entry.value))
            .filter(|token| now <= token.expires)
            .collect();
        waiting.sort_by(|a, b| (a.expires, &a.id).cmp(&(b.expires, &b.id)));
        Ok(waiting)
    }

    /// Makes a token good for nothing. One that was used already is no more, so there is nothing to take back.
    ///
    /// # Errors
    /// [`CaError::NoToken`], [`CaError::TokenUsed`], [`CaError::Store`]
    pub async fn revoke_token(&self, id: &str, author: &str) -> Result<Waits, CaError> {
        let is_id = id.len() <= ID_MAX && id.bytes().all(|b| b.is_ascii_alphanumeric());
        let unknown = || CaError::NoToken {
            id: super::token::clip(id),
        };
        let key = token_key(id);
        let entry = match is_id {
            true => self.0.store.get(&key).await?,
            false => None,
        };
        let entry = entry.ok_or_else(unknown)?;
        let token = waits(&key, &entry.value).ok_or(CaError::TokenUsed)?;
        let txn = Txn::new().expect_modified(&key, entry.modified).delete(key);
        match self.0.store.commit(txn).await {
            Ok(_) => {}
            // Somebody was faster: it was used, or taken back.
            Err(phalanx_store::Error::Conflict { .. }) => return Err(CaError::TokenUsed),
            Err(error) => return Err(error.into()),
        }
        tracing::info!(id, author, "join token taken back");
        Ok(token)
    }
}

/// None for one that was used, or is damaged.
fn waits(key: &str, value: &[u8]) -> Option<Waits> {
    let record: TokenRecord = serde_json::from_slice(value).ok()?;
    if record.used.is_some() {
        return None;
    }
    Some(Waits {
        id: key.strip_prefix(TOKENS)?.to_owned(),
        namespace: record.namespace,
        service: record.service,
        zone: record.zone,
        expires: record.not_after,
        author: record.author,
    })
}

const ID_MAX: usize = 64;
