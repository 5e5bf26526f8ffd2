//! Join tokens: `phxj1.<id>.<secret>`, in hex and base64url. A token says nothing by itself: whoever made it keeps, under its id,
//! a hash of its secret and what it lets its bearer be. So there is no key that could leak, and no signature to forge.

use std::fmt;
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use crate::clock::UnixMillis;
use crate::x509;

/// Longest token, bytes.
pub const TOKEN_MAX: usize = 256;
/// Longest time that a token may be used.
pub const TOKEN_TTL_MAX: Duration = Duration::from_secs(7 * 86_400);
const PREFIX: &str = "phxj1";
const ID_BYTES: usize = 16;
const SECRET_BYTES: usize = 32;

/// A token with its secret, which `Debug` does not show.
pub struct JoinToken {
    id: String,
    secret: Zeroizing<[u8; SECRET_BYTES]>,
}

impl JoinToken {
    /// 128 bits of id, 256 of secret.
    ///
    /// # Errors
    /// [`JoinError::Random`]
    pub fn generate() -> Result<Self, JoinError> {
        let mut id = [0u8; ID_BYTES];
        let mut secret = Zeroizing::new([0u8; SECRET_BYTES]);
        aws_lc_rs::rand::fill(&mut id).map_err(|_| JoinError::Random)?;
        aws_lc_rs::rand::fill(secret.as_mut()).map_err(|_| JoinError::Random)?;
        Ok(Self {
            id: x509::hex(&id),
            secret,
        })
    }

    /// # Errors
    /// [`JoinError::Malformed`]
    pub fn parse(text: &str) -> Result<Self, JoinError> {
        let text = text.trim();
        if text.len() > TOKEN_MAX {
            return Err(JoinError::Malformed);
        }
        let mut parts = text.split('.');
        let (Some(PREFIX), Some(id), Some(secret), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(JoinError::Malformed);
        };
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if id.len() != ID_BYTES * 2 || !id.bytes().all(hex) {
            return Err(JoinError::Malformed);
        }
        let secret = URL_SAFE_NO_PAD
            .decode(secret)
            .map(Zeroizing::new)
            .map_err(|_| JoinError::Malformed)?;
        let mut exact = Zeroizing::new([0u8; SECRET_BYTES]);
        if secret.len() != SECRET_BYTES {
            return Err(JoinError::Malformed);
        }
        exact.copy_from_slice(&secret);
        Ok(Self {
            id: id.to_owned(),
            secret: exact,
        })
    }

    /// The whole token; wiped when dropped.
    pub fn to_text(&self) -> Zeroizing<String> {
        let secret = Zeroizing::new(URL_SAFE_NO_PAD.encode(self.secret.as_ref()));
        Zeroizing::new(format!("{PREFIX}.{}.{}", self.id, *secret))
    }

    /// Which one it is; no secret.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// SHA-256 of its secret, hex: what its maker keeps.
    pub fn digest(&self) -> String {
        x509::hex(&x509::sha256(self.secret.as_ref()))
    }

    /// Whether its secret is the one of a digest; takes as long whichever it is.
    pub fn is_of(&self, digest: &str) -> bool {
        verify_slices_are_equal(self.digest().as_bytes(), digest.as_bytes()).is_ok()
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({})", self.id)
    }
}

/// # Errors
/// [`JoinError::Ttl`] unless it is above zero and at most [`TOKEN_TTL_MAX`].
pub fn check_ttl(ttl: Duration) -> Result<(), JoinError> {
    if ttl.is_zero() || ttl > TOKEN_TTL_MAX {
        Err(JoinError::Ttl)
    } else {
        Ok(())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    #[error("this is no join token ({PREFIX}.<id>.<secret>, at most {TOKEN_MAX} bytes)")]
    Malformed,
    #[error("the join token expired at {not_after}")]
    Expired { not_after: UnixMillis },
    #[error("the join token is for another zone, or for none")]
    Zone,
    #[error("a join token lives for at most {}h", TOKEN_TTL_MAX.as_secs() / 3600)]
    Ttl,
    #[error("no randomness")]
    Random,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_text_and_hides_in_debug() {
        let token = JoinToken::generate().unwrap();
        let text = token.to_text();
        let again = JoinToken::parse(&format!(" {}\n", *text)).unwrap();
        assert_eq!(again.id(), token.id());
        assert!(again.is_of(&token.digest()));
        assert!(!format!("{token:?}").contains(&text[40..]));
        assert!(text.len() < TOKEN_MAX);
    }

    #[test]
    fn no_changed_byte_gets_through() {
        let token = JoinToken::generate().unwrap();
        let text = token.to_text();
        for at in 0..text.len() {
            let mut forged = text.as_bytes().to_vec();
            forged[at] ^= 1;
            let Ok(forged) = String::from_utf8(forged) else {
                continue;
            };
            let taken = JoinToken::parse(&forged)
                .is_ok_and(|f| f.id() == token.id() && f.is_of(&token.digest()));
            assert!(!taken, "byte {at}");
        }
        for bad in ["", ".", "..", "phxj1..", &"a".repeat(TOKEN_MAX + 1)] {
            assert!(JoinToken::parse(bad).is_err());
        }
    }

    #[test]
    fn a_token_lives_for_a_week_at_most() {
        assert!(check_ttl(TOKEN_TTL_MAX).is_ok());
        assert!(check_ttl(TOKEN_TTL_MAX + Duration::from_millis(1)).is_err());
        assert!(check_ttl(Duration::ZERO).is_err());
    }
}
