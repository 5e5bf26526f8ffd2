//! How a session is stored: `sessions/<namespace>/<service>/<key>`, one key of the store each.

use std::time::Duration;

use phalanx_model::ServiceName;
use serde::{Deserialize, Serialize};

pub use crate::world::record::SESSIONS;

/// Bytes of a key.
pub const KEY_MAX: usize = 128;
/// Bytes of an instance's id.
const INSTANCE_MAX: usize = 128;

/// A key within a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId {
    pub service: ServiceName,
    pub key: std::sync::Arc<str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    #[error("a session's key has 1 to {KEY_MAX} visible ASCII characters")]
    Key,
    #[error("`{0}` is no DNS label")]
    Name(&'static str),
}

impl SessionId {
    /// # Errors
    /// [`BadKey`]
    pub fn parse(namespace: &str, service: &str, key: &str) -> Result<Self, BadKey> {
        let service = service_of(namespace, service)?;
        let fits = (1..=KEY_MAX).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic());
        match fits {
            true => Ok(Self {
                service,
                key: key.into(),
            }),
            false => Err(BadKey::Key),
        }
    }

    /// None: a key of the store that no session has.
    pub fn stored(key: &str) -> Option<Self> {
        let mut parts = key.strip_prefix(SESSIONS)?.splitn(3, '/');
        let (namespace, service) = (parts.next()?, parts.next()?);
        Self::parse(namespace, service, parts.next()?).ok()
    }

    pub fn store_key(&self) -> String {
        format!("{SESSIONS}{}", self.path())
    }

    /// `<namespace>/<service>/<key>`
    pub fn path(&self) -> String {
        let Self { service, key } = self;
        format!("{}/{}/{key}", service.namespace, service.name)
    }
}

/// # Errors
/// [`BadKey`]
pub fn service_of(namespace: &str, service: &str) -> Result<ServiceName, BadKey> {
    ServiceName::parse(namespace, service).map_err(|_| BadKey::Name("the name of a service"))
}

/// The value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRecord {
    pub instance: String,
    /// None: the revision of the store at which this was written, which is later than all that was before. Some: it was
    /// written again for another reason than a change of hands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
}

impl SessionRecord {
    /// None: damaged, or of a later version.
    pub fn read(value: &[u8]) -> Option<Self> {
        let record: Self = serde_json::from_slice(value).ok()?;
        (1..=INSTANCE_MAX)
            .contains(&record.instance.len())
            .then_some(record)
    }

    pub fn value(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    pub fn ttl(&self) -> Option<Duration> {
        self.ttl_ms.map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_again_whatever_is_in_them() {
        for key in ["room-1", "a/b//c", "*", "%2f"] {
            let id = SessionId::parse("default", "battle", key).unwrap();
            assert_eq!(SessionId::stored(&id.store_key()), Some(id));
        }
        for key in ["", "a b", "ä", &"x".repeat(KEY_MAX + 1)] {
            assert_eq!(SessionId::parse("default", "battle", key), Err(BadKey::Key));
        }
        for stored in ["sessions/default/battle", "sessions/a b/c/d", "other/a/b/c"] {
            assert_eq!(SessionId::stored(stored), None, "{stored}");
        }
    }
}
