//! Service-account tokens (JWT, RFC 7519) as Kubernetes issues them, checked against a JWKS (RFC 7517). A key's algorithm is
//! what the JWKS says it is; the token's header can only agree. Nothing in a token points anywhere that is then fetched.

use std::fmt;
use std::time::Duration;

use aws_lc_rs::rsa::PublicKeyComponents;
use aws_lc_rs::signature::{self, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use phalanx_model::name::check_label;
use serde::Deserialize;

use crate::clock::UnixMillis;
use crate::x509;

#[cfg(test)]
mod tests;

/// Longest token, bytes; Kubernetes' have about 1 KB.
pub const TOKEN_MAX: usize = 8 * 1024;
/// Largest JWKS, bytes.
pub const JWKS_MAX: usize = 64 * 1024;
/// Most keys in a JWKS.
const KEYS_MAX: usize = 32;
/// How far the issuer's clock and ours may differ.
const SKEW: Duration = Duration::from_secs(5);
/// RSA moduli, bytes: 2048 to 4096 bits.
const MODULUS: std::ops::RangeInclusive<usize> = 256..=512;

/// The keys of an issuer that are for RS256 and ES256; keys for anything else are passed over.
#[derive(Debug)]
pub struct Jwks(Vec<Jwk>);

#[derive(Debug)]
struct Jwk {
    id: Option<String>,
    key: PublicKey,
}

enum PublicKey {
    Rs256 {
        modulus: Vec<u8>,
        exponent: Vec<u8>,
    },
    /// An uncompressed point of P-256.
    Es256(Vec<u8>),
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.algorithm())
    }
}

#[derive(Deserialize)]
struct RawSet {
    keys: Vec<RawKey>,
}

#[derive(Deserialize)]
struct RawKey {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl Jwks {
    /// # Errors
    /// [`JwtError::Jwks`] for what is no JWKS, is too large, or has no key that could be used.
    pub fn parse(json: &[u8]) -> Result<Self, JwtError> {
        if json.len() > JWKS_MAX {
            return Err(JwtError::Jwks);
        }
        let set: RawSet = serde_json::from_slice(json).map_err(|_| JwtError::Jwks)?;
        if set.keys.len() > KEYS_MAX {
            return Err(JwtError::Jwks);
        }
        let keys: Vec<Jwk> = set.keys.into_iter().filter_map(usable).collect();
        if keys.is_empty() {
            Err(JwtError::Jwks)
        } else {
            Ok(Self(keys))
        }
    }

    /// The one key that a header may mean.
    fn find(&self, header: &Header) -> Result<&PublicKey, JwtError> {
        let mut named = self.0.iter().filter(|k| match &header.kid {
            Some(kid) => k.id.as_ref() == Some(kid),
            None => true,
        });
        match (named.next(), named.next()) {
            (Some(found), None) if found.key.algorithm() == header.alg => Ok(&found.key),
            (Some(_), None) => Err(JwtError::Algorithm),
            _ => Err(JwtError::UnknownKey),
        }
    }
}

fn usable(raw: RawKey) -> Option<Jwk> {
    if raw.purpose.is_some_and(|p| p != "sig") {
        return None;
    }
    let bytes = |text: Option<String>| URL_SAFE_NO_PAD.decode(text?).ok();
    let key = match (raw.kty.as_str(), raw.crv.as_deref()) {
        ("RSA", _) => {
            let (modulus, exponent) = (bytes(raw.n)?, bytes(raw.e)?);
            let fits = MODULUS.contains(&modulus.len()) && (1..=8).contains(&exponent.len());
            fits.then_some(PublicKey::Rs256 { modulus, exponent })?
        }
        ("EC", Some("P-256")) => {
            let (x, y) = (bytes(raw.x)?, bytes(raw.y)?);
            let fits = x.len() == 32 && y.len() == 32;
            fits.then(|| PublicKey::Es256([&[4u8][..], &x, &y].concat()))?
        }
        _ => return None,
    };
    let meant = raw.alg.is_none_or(|alg| alg == key.algorithm());
    meant.then_some(Jwk { id: raw.kid, key })
}

impl PublicKey {
    fn algorithm(&self) -> &'static str {
        match self {
            Self::Rs256 { .. } => "RS256",
            Self::Es256(_) => "ES256",
        }
    }

    fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), JwtError> {
        let done = match self {
            Self::Rs256 { modulus, exponent } => PublicKeyComponents {
                n: modulus,
                e: exponent,
            }
            .verify(&signature::RSA_PKCS1_2048_8192_SHA256, message, signature),
            Self::Es256(point) => {
                UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point)
                    .verify(message, signature)
            }
        };
        done.map_err(|_| JwtError::Signature)
    }
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    /// Extensions that have to be understood (RFC 7515, 4.1.11): we understand none.
    crit: Option<serde_json::Value>,
    /// Compressed or encrypted tokens are none of ours.
    zip: Option<serde_json::Value>,
    enc: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: Audience,
    /// Seconds since the epoch, which RFC 7519 allows to have a fraction.
    exp: f64,
    nbf: Option<f64>,
    iat: Option<f64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

/// Whom a token has to come from, and whom it has to be meant for.
#[derive(Clone, Debug)]
pub struct Accept<'a> {
    pub issuer: &'a str,
    pub audience: &'a str,
}

/// A service account that a token proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccount {
    pub namespace: String,
    pub name: String,
    pub not_after: UnixMillis,
    /// SHA-256 of the token, hex: to burn it, or to log which one it was.
    pub token: String,
}

/// Checks a token: key, signature, issuer, audience, time, and that its subject is
/// `system:serviceaccount:<namespace>:<name>`.
///
/// # Errors
/// [`JwtError`]. The claims of a token with a wrong signature are never looked at.
pub fn verify(
    keys: &Jwks,
    token: &str,
    accept: &Accept<'_>,
    now: UnixMillis,
) -> Result<ServiceAccount, JwtError> {
    let token = token.trim();
    if token.len() > TOKEN_MAX {
        return Err(JwtError::Malformed);
    }
    let mut parts = token.split('.');
    let (Some(header), Some(claims), Some(mac), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(JwtError::Malformed);
    };
    let parsed: Header = decode(header)?;
    if parsed.crit.is_some() || parsed.zip.is_some() || parsed.enc.is_some() {
        return Err(JwtError::Malformed);
    }
    let key = keys.find(&parsed)?;
    let mac = URL_SAFE_NO_PAD
        .decode(mac)
        .map_err(|_| JwtError::Malformed)?;
    key.verify(format!("{header}.{claims}").as_bytes(), &mac)?;
    let claims: Claims = decode(claims)?;
    let not_after = check(&claims, accept, now)?;
    let (namespace, name) = subject(&claims.sub).ok_or(JwtError::Subject)?;
    Ok(ServiceAccount {
        namespace,
        name,
        not_after,
        token: x509::hex(&x509::sha256(token.as_bytes())),
    })
}

fn decode<T: for<'de> Deserialize<'de>>(part: &str) -> Result<T, JwtError> {
    let json = URL_SAFE_NO_PAD
        .decode(part)
        .map_err(|_| JwtError::Malformed)?;
    serde_json::from_slice(&json).map_err(|_| JwtError::Malformed)
}

fn check(claims: &Claims, accept: &Accept<'_>, now: UnixMillis) -> Result<UnixMillis, JwtError> {
    if claims.iss != accept.issuer {
        return Err(JwtError::Issuer);
    }
    let meant = match &claims.aud {
        Audience::One(one) => one == accept.audience,
        Audience::Many(many) => many.iter().any(|a| a == accept.audience),
    };
    if !meant {
        return Err(JwtError::Audience);
    }
    let not_after = date(claims.exp)?;
    if now.minus(SKEW) >= not_after {
        return Err(JwtError::Expired { not_after });
    }
    for start in [claims.nbf, claims.iat].into_iter().flatten() {
        if date(start)? > now.plus(SKEW) {
            return Err(JwtError::NotYetValid);
        }
    }
    Ok(not_after)
}

/// Seconds between the epoch and the year 9999.
fn date(secs: f64) -> Result<UnixMillis, JwtError> {
    if !(0.0..253_402_300_800.0).contains(&secs) {
        return Err(JwtError::Malformed);
    }
    // In range, so nothing is lost but the fraction of a millisecond.
    Ok(UnixMillis((secs * 1000.0) as i64))
}

fn subject(text: &str) -> Option<(String, String)> {
    let (namespace, name) = text
        .strip_prefix("system:serviceaccount:")?
        .split_once(':')?;
    check_label(namespace).ok()?;
    check_label(name).ok()?;
    Some((namespace.to_owned(), name.to_owned()))
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    #[error("the JWKS cannot be read, or has no key for RS256 (2048 to 4096 bits) or ES256")]
    Jwks,
    #[error("this is no service-account token (JWT, at most {TOKEN_MAX} bytes)")]
    Malformed,
    #[error("the token's key is not in the JWKS")]
    UnknownKey,
    #[error("the token's algorithm is not that of its key")]
    Algorithm,
    #[error("the token's signature is wrong")]
    Signature,
    #[error("the token is of another issuer")]
    Issuer,
    #[error("the token is meant for another audience")]
    Audience,
    #[error("the token expired at {not_after}")]
    Expired { not_after: UnixMillis },
    #[error("the token is not valid yet")]
    NotYetValid,
    #[error(
        "the token's subject is no service account (system:serviceaccount:<namespace>:<name>, DNS labels)"
    )]
    Subject,
}
