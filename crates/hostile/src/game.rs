//! What clients and other replicas give to the game kit.

use std::sync::OnceLock;
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use phalanx_game::matchmaking::Ledger;
use phalanx_game::session::{Keyring, Secret, TokenError};

const SECRET: [u8; 32] = [7; 32];
/// Tokens of the corpus are good by then.
const NOW: Duration = Duration::from_millis(1_795_430_980_000);

fn keyring() -> &'static Keyring {
    static KEYRING: OnceLock<Keyring> = OnceLock::new();
    KEYRING.get_or_init(|| {
        let secret = Secret {
            id: 1,
            bytes: SECRET.to_vec(),
            seals_from: Duration::ZERO,
            opens_until: None,
        };
        Keyring::try_new(&[secret]).unwrap_or_else(|error| panic!("{error}"))
    })
}

/// As a client shows them, and as one would who had the secret: what opens has one text only.
pub fn reconnect_tokens(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = opens(text);
    }
    let key = hmac::Key::new(hmac::HMAC_SHA256, &SECRET);
    let mut tag = hmac::Context::with_key(&key);
    tag.update(b"phalanx game reconnect");
    tag.update(bytes);
    let sealed = [bytes, tag.sign().as_ref()].concat();
    let opened = opens(&URL_SAFE_NO_PAD.encode(sealed));
    assert_ne!(opened, Err(TokenError::Forged));
}

fn opens(text: &str) -> Result<(), TokenError> {
    let pass = keyring().open(text, NOW)?;
    assert!(pass.expires > NOW);
    let _ = pass.in_time(NOW);
    // One that could never be used is not sealed.
    if let Ok(again) = keyring().seal(&pass, NOW) {
        assert_eq!(again, text);
    }
    Ok(())
}

/// The books of a shard, as an owner ships them to its standby: the whole state, and entries. What is taken balances, and
/// reads back.
pub fn ledgers(bytes: &[u8]) {
    if let Some(ledger) = Ledger::restore(bytes) {
        reads_back(&ledger);
    }
    let mut ledger = Ledger::new();
    if ledger.read(bytes) > 0 {
        reads_back(&ledger);
    }
}

fn reads_back(ledger: &Ledger) {
    assert!(ledger.audit().is_ok(), "{:?}", ledger.audit());
    let state = ledger.snapshot();
    let again = Ledger::restore(&state).map(|ledger| ledger.snapshot());
    assert_eq!(again, Some(state));
}
