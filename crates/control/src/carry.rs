//! What has to be known when the state moves to a store with other revisions: those of the history, which people name in
//! `rollback`, stay what they were.

use phalanx_store::Backup;

use crate::world::record::HISTORY;

/// How the JSON of a history record begins that came from another store.
const PIN: &[u8] = b"{\"revision\":";

/// Writes into each history record at which revision it happened.
pub fn pin(mut backup: Backup) -> Backup {
    for entry in &mut backup.entries {
        let is_record = entry.key.starts_with(HISTORY) && entry.value.starts_with(b"{\"");
        if is_record && pinned(&entry.value).is_none() {
            let revision = entry.modified.to_string();
            let parts = [PIN, revision.as_bytes(), b",", &entry.value[1..]];
            entry.value = parts.concat().into();
        }
    }
    backup
}

/// The revision of a history record, if that is not its key's.
pub fn pinned(record: &[u8]) -> Option<u64> {
    let rest = record.strip_prefix(PIN)?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(rest.get(..digits)?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use phalanx_store::{Store, Txn};

    use super::*;
    use crate::world::record::{HistoryRecord, history_key};

    #[tokio::test]
    async fn a_pinned_record_tells_its_revision_and_reads_as_before() {
        let text = r#"{"time":1,"author":"ada","message":"","changes":[]}"#;
        let store = Store::memory().await.unwrap();
        store
            .commit(Txn::new().put("config/x", "{}"))
            .await
            .unwrap();
        store
            .commit(Txn::new().put(history_key(1), text))
            .await
            .unwrap();
        store
            .commit(Txn::new().put(history_key(2), "garbage"))
            .await
            .unwrap();
        let pinned_once = pin(store.backup().await.unwrap());
        let values: Vec<&[u8]> = pinned_once.entries.iter().map(|e| &e.value[..]).collect();
        let [document, record, garbage] = values[..] else {
            panic!("{values:?}");
        };
        assert_eq!((document, garbage), (&b"{}"[..], &b"garbage"[..]));
        assert_eq!(pinned(record), Some(2));
        let read: HistoryRecord = serde_json::from_slice(record).unwrap();
        assert_eq!(read, serde_json::from_str(text).unwrap());
        // Moving on once more changes nothing.
        assert_eq!(pin(pinned_once.clone()), pinned_once);
        assert_eq!(pinned(text.as_bytes()), None);
    }
}
