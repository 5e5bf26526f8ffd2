//! Join tokens: `phxj1.<claims>.<mac>`, both in base64url. A token lets one service fetch its first certificate, once, within a
//! time, and from one zone if it names one. Checking is pure; that an id is used once is for the store to say.

use std::fmt;
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::clock::UnixMillis;
use crate::name::{NameError, TrustDomain, Workload};
use crate::x509;

/// Longest token, bytes.
pub const TOKEN_MAX: usize = 1024;
/// Longest time that a token may be used.
pub const TOKEN_TTL_MAX: Duration = Duration::from_secs(7 * 86_400);
const PREFIX: &str = "phxj1";
/// How far a token's issue may lie in the future: two control planes' clocks.
const SKEW: Duration = Duration::from_secs(1);

/// A secret of the control plane, 32 bytes. Several control planes over one store share it.
#[derive(Clone)]
pub struct JoinKey(hmac::Key);

impl JoinKey {
    /// # Errors
    /// [`JoinError::Key`] for fewer than 32 bytes.
    pub fn try_new(secret: &[u8]) -> Result<Self, JoinError> {
        if secret.len() < 32 {
            return Err(JoinError::Key);
        }
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, secret)))
    }

    /// A new secret, to be written with mode 0600.
    ///
    /// # Errors
    /// [`JoinError::Random`]
    pub fn generate() -> Result<Zeroizing<Vec<u8>>, JoinError> {
        let mut secret = Zeroizing::new(vec![0u8; 32]);
        aws_lc_rs::rand::fill(&mut secret).map_err(|_| JoinError::Random)?;
        Ok(secret)
    }
}

impl fmt::Debug for JoinKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinKey")
    }
}

/// What a token lets its bearer be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinClaim {
    /// 128 random bits, hex: burnt in the store when the token is used.
    pub id: String,
    pub trust_domain: TrustDomain,
    pub namespace: String,
    pub service: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    pub issued_at: UnixMillis,
    pub not_after: UnixMillis,
}

impl JoinClaim {
    /// A claim for a workload, with an id of its own.
    ///
    /// # Errors
    /// [`JoinError::Ttl`], [`JoinError::Random`]
    pub fn try_new(workload: &Workload, ttl: Duration, now: UnixMillis) -> Result<Self, JoinError> {
        if ttl.is_zero() || ttl > TOKEN_TTL_MAX {
            return Err(JoinError::Ttl);
        }
        let mut id = [0u8; 16];
        aws_lc_rs::rand::fill(&mut id).map_err(|_| JoinError::Random)?;
        Ok(Self {
            id: x509::hex(&id),
            trust_domain: workload.id().trust_domain.clone(),
            namespace: workload.id().service.namespace.clone(),
            service: workload.id().service.name.clone(),
            zone: workload.zone().map(str::to_owned),
            issued_at: now,
            not_after: now.plus(ttl),
        })
    }

    /// Who the bearer is. A zone is only what the token names: one that the bearer claims beyond that is refused.
    ///
    /// # Errors
    /// [`JoinError::Zone`], [`JoinError::Name`]
    pub fn workload(&self, claimed_zone: Option<&str>) -> Result<Workload, JoinError> {
        if claimed_zone.is_some() && claimed_zone != self.zone.as_deref() {
            return Err(JoinError::Zone);
        }
        Ok(Workload::parse(
            &self.trust_domain,
            &self.namespace,
            &self.service,
            self.zone.as_deref(),
        )?)
    }
}

/// Signs a claim.
///
/// # Errors
/// [`JoinError::Malformed`] for a claim longer than a token may be.
pub fn mint(key: &JoinKey, claim: &JoinClaim) -> Result<Zeroizing<String>, JoinError> {
    let claims = serde_json::to_vec(claim).map_err(|_| JoinError::Malformed)?;
    let signed = format!("{PREFIX}.{}", URL_SAFE_NO_PAD.encode(claims));
    let mac = hmac::sign(&key.0, signed.as_bytes());
    let token = Zeroizing::new(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac.as_ref())));
    if token.len() > TOKEN_MAX {
        Err(JoinError::Malformed)
    } else {
        Ok(token)
    }
}

/// Checks a token against the current key and those before it.
///
/// # Errors
/// [`JoinError`]. The claims of a token with a wrong mac are never looked at.
pub fn verify(keys: &[JoinKey], token: &str, now: UnixMillis) -> Result<JoinClaim, JoinError> {
    let token = token.trim();
    if token.len() > TOKEN_MAX {
        return Err(JoinError::Malformed);
    }
    let (signed, mac) = token.rsplit_once('.').ok_or(JoinError::Malformed)?;
    let (prefix, claims) = signed.split_once('.').ok_or(JoinError::Malformed)?;
    let mac = URL_SAFE_NO_PAD
        .decode(mac)
        .map_err(|_| JoinError::Malformed)?;
    if prefix != PREFIX {
        return Err(JoinError::Malformed);
    }
    if !keys
        .iter()
        .any(|k| hmac::verify(&k.0, signed.as_bytes(), &mac).is_ok())
    {
        return Err(JoinError::Signature);
    }
    let claims = URL_SAFE_NO_PAD
        .decode(claims)
        .map_err(|_| JoinError::Malformed)?;
    let claim: JoinClaim = serde_json::from_slice(&claims).map_err(|_| JoinError::Malformed)?;
    if now > claim.not_after {
        return Err(JoinError::Expired {
            not_after: claim.not_after,
        });
    }
    if claim.issued_at > now.plus(SKEW) {
        return Err(JoinError::FromTheFuture);
    }
    claim.workload(None)?;
    Ok(claim)
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    #[error("this is no join token ({PREFIX}.<claims>.<mac>, at most {TOKEN_MAX} bytes)")]
    Malformed,
    #[error("the join token was not made by this control plane")]
    Signature,
    #[error("the join token expired at {not_after}")]
    Expired { not_after: UnixMillis },
    #[error("the join token is from the future; is the clock right?")]
    FromTheFuture,
    #[error("the join token is for another zone, or for none")]
    Zone,
    #[error("a join token lives for at most {}h", TOKEN_TTL_MAX.as_secs() / 3600)]
    Ttl,
    #[error("a join key needs 32 bytes")]
    Key,
    #[error("no randomness")]
    Random,
    #[error(transparent)]
    Name(#[from] NameError),
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_795_000_000_000);

    fn key(byte: u8) -> JoinKey {
        JoinKey::try_new(&[byte; 32]).unwrap()
    }

    fn claim(zone: Option<&str>) -> JoinClaim {
        let domain = TrustDomain::parse("phalanx.local").unwrap();
        let workload = Workload::parse(&domain, "arena", "battle", zone).unwrap();
        JoinClaim::try_new(&workload, Duration::from_secs(60), NOW).unwrap()
    }

    #[test]
    fn a_token_is_good_for_its_time_under_the_current_and_the_last_key() {
        let claim = claim(Some("az1"));
        let token = mint(&key(1), &claim).unwrap();
        assert_eq!(verify(&[key(2), key(1)], &token, NOW).unwrap(), claim);
        let late = NOW.plus(Duration::from_millis(60_001));
        assert!(matches!(
            verify(&[key(1)], &token, late),
            Err(JoinError::Expired { .. })
        ));
        let early = NOW.minus(Duration::from_secs(2));
        assert_eq!(
            verify(&[key(1)], &token, early),
            Err(JoinError::FromTheFuture)
        );
        assert_eq!(verify(&[key(2)], &token, NOW), Err(JoinError::Signature));
    }

    #[test]
    fn a_token_binds_to_its_zone() {
        assert_eq!(
            claim(Some("az1")).workload(Some("az1")).unwrap().zone(),
            Some("az1")
        );
        assert_eq!(
            claim(Some("az1")).workload(None).unwrap().zone(),
            Some("az1")
        );
        assert_eq!(
            claim(Some("az1")).workload(Some("az2")),
            Err(JoinError::Zone)
        );
        assert_eq!(claim(None).workload(Some("az1")), Err(JoinError::Zone));
        assert_eq!(claim(None).workload(None).unwrap().zone(), None);
    }

    #[test]
    fn no_changed_byte_gets_through() {
        let token = mint(&key(1), &claim(None)).unwrap();
        for at in 0..token.len() {
            let mut forged = token.as_bytes().to_vec();
            forged[at] ^= 1;
            let Ok(forged) = String::from_utf8(forged) else {
                continue;
            };
            assert!(verify(&[key(1)], &forged, NOW).is_err(), "byte {at}");
        }
        for bad in ["", ".", "..", "phxj1..", &"a".repeat(TOKEN_MAX + 1)] {
            assert!(verify(&[key(1)], bad, NOW).is_err());
        }
        assert!(verify(&[], &token, NOW).is_err());
    }
}
