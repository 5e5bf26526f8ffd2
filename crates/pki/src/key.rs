//! Private keys: made, read from PEM, signed with, written back as PEM. The bytes of a key are wiped when it is dropped, and
//! `Debug` does not show them.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, KeyPair,
    RSA_PKCS1_SHA256,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_cert::der::asn1::{BitString, Null};
use x509_cert::der::pem::LineEnding;
use x509_cert::spki::AlgorithmIdentifierOwned;
use zeroize::Zeroizing;

use crate::x509::{ECDSA_SHA256, ECDSA_SHA384, RSA_SHA256};

/// Largest PEM file of a key (an RSA key of 4096 bits takes 3.3 KB).
const PEM_MAX: usize = 16 * 1024;
/// Sizes of RSA keys, bits.
pub(crate) const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

/// What kind of key is made. ECDSA P-256 is the default: it signs twenty times faster than RSA.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyKind {
    #[default]
    EcdsaP256,
    EcdsaP384,
}

/// A private key. Clones share it.
#[derive(Clone)]
pub struct Key(Arc<Inner>);

struct Inner {
    pair: Pair,
    spki: Vec<u8>,
    der: PrivateKeyDer<'static>,
}

enum Pair {
    P256(EcdsaKeyPair),
    P384(EcdsaKeyPair),
    Rsa(rsa::KeyPair),
}

impl Key {
    /// A new key from the system's randomness.
    ///
    /// # Errors
    /// [`KeyError::Generate`]
    pub fn generate(kind: KeyKind) -> Result<Self, KeyError> {
        let algorithm = match kind {
            KeyKind::EcdsaP256 => &ECDSA_P256_SHA256_ASN1_SIGNING,
            KeyKind::EcdsaP384 => &ECDSA_P384_SHA384_ASN1_SIGNING,
        };
        let pair = EcdsaKeyPair::generate(algorithm).map_err(|_| KeyError::Generate)?;
        let pkcs8 = pair.to_pkcs8v1().map_err(|_| KeyError::Generate)?;
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8.as_ref().to_vec()));
        let pair = match kind {
            KeyKind::EcdsaP256 => Pair::P256(pair),
            KeyKind::EcdsaP384 => Pair::P384(pair),
        };
        Self::of(pair, der)
    }

    /// A key in PKCS#8, SEC 1 or PKCS#1: ECDSA on P-256 or P-384, or RSA of 2048–4096 bits.
    ///
    /// # Errors
    /// [`KeyError::Pem`], [`KeyError::Encrypted`], [`KeyError::Kind`]
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        if pem.len() > PEM_MAX {
            return Err(KeyError::Pem);
        }
        if find(pem, b"ENCRYPTED") {
            return Err(KeyError::Encrypted);
        }
        Self::from_der(PrivateKeyDer::from_pem_slice(pem).map_err(|_| KeyError::Pem)?)
    }

    /// # Errors
    /// [`KeyError::Kind`]
    pub fn from_der(der: PrivateKeyDer<'static>) -> Result<Self, KeyError> {
        let bytes = der.secret_der();
        let ec = |algorithm| match &der {
            PrivateKeyDer::Pkcs8(_) => EcdsaKeyPair::from_pkcs8(algorithm, bytes).ok(),
            PrivateKeyDer::Sec1(_) => EcdsaKeyPair::from_private_key_der(algorithm, bytes).ok(),
            _ => None,
        };
        let rsa = || match &der {
            PrivateKeyDer::Pkcs8(_) => rsa::KeyPair::from_pkcs8(bytes).ok(),
            PrivateKeyDer::Pkcs1(_) => rsa::KeyPair::from_der(bytes).ok(),
            _ => None,
        };
        let pair = ec(&ECDSA_P256_SHA256_ASN1_SIGNING)
            .map(Pair::P256)
            .or_else(|| ec(&ECDSA_P384_SHA384_ASN1_SIGNING).map(Pair::P384))
            .or_else(|| {
                rsa()
                    .filter(|k| RSA_BITS.contains(&(k.public_modulus_len() * 8)))
                    .map(Pair::Rsa)
            })
            .ok_or(KeyError::Kind)?;
        Self::of(pair, der)
    }

    fn of(pair: Pair, der: PrivateKeyDer<'static>) -> Result<Self, KeyError> {
        let spki = match &pair {
            Pair::P256(key) | Pair::P384(key) => {
                AsDer::<PublicKeyX509Der<'_>>::as_der(key.public_key())
            }
            Pair::Rsa(key) => AsDer::<PublicKeyX509Der<'_>>::as_der(key.public_key()),
        };
        let spki = spki.map_err(|_| KeyError::Kind)?.as_ref().to_vec();
        Ok(Self(Arc::new(Inner { pair, spki, der })))
    }

    /// DER of its SubjectPublicKeyInfo.
    pub fn spki(&self) -> &[u8] {
        &self.0.spki
    }

    /// For rustls. The copy holds the secret.
    pub fn to_der(&self) -> PrivateKeyDer<'static> {
        self.0.der.clone_key()
    }

    /// PEM with the secret in it; wiped when dropped.
    ///
    /// # Errors
    /// [`KeyError::Pem`], which cannot happen for a key that was made or read here.
    pub fn to_pem(&self) -> Result<Zeroizing<String>, KeyError> {
        let label = match &self.0.der {
            PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
            PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
            _ => "PRIVATE KEY",
        };
        let text =
            x509_cert::der::pem::encode_string(label, LineEnding::LF, self.0.der.secret_der());
        text.map(Zeroizing::new).map_err(|_| KeyError::Pem)
    }

    /// The identifier that goes with [`Key::sign`].
    pub(crate) fn algorithm(&self) -> AlgorithmIdentifierOwned {
        let (oid, parameters) = match self.0.pair {
            Pair::P256(_) => (ECDSA_SHA256, None),
            Pair::P384(_) => (ECDSA_SHA384, None),
            Pair::Rsa(_) => (RSA_SHA256, Some(Null.into())),
        };
        AlgorithmIdentifierOwned { oid, parameters }
    }

    /// # Errors
    /// [`KeyError::Sign`]
    pub(crate) fn sign(&self, message: &[u8]) -> Result<BitString, KeyError> {
        let rng = SystemRandom::new();
        let bytes = match &self.0.pair {
            Pair::P256(key) | Pair::P384(key) => key
                .sign(&rng, message)
                .map_err(|_| KeyError::Sign)?
                .as_ref()
                .to_vec(),
            Pair::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &rng, message, &mut signature)
                    .map_err(|_| KeyError::Sign)?;
                signature
            }
        };
        BitString::from_bytes(&bytes).map_err(|_| KeyError::Sign)
    }
}

fn find(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|w| w == part)
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.0.pair {
            Pair::P256(_) => "ECDSA P-256",
            Pair::P384(_) => "ECDSA P-384",
            Pair::Rsa(_) => "RSA",
        };
        write!(f, "Key({kind})")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("cannot make a key")]
    Generate,
    #[error("no private key in PEM (at most {PEM_MAX} bytes)")]
    Pem,
    #[error("the private key is encrypted with a passphrase, which is not supported")]
    Encrypted,
    #[error("the private key is neither ECDSA on P-256 or P-384 nor RSA of 2048 to 4096 bits")]
    Kind,
    #[error("cannot sign")]
    Sign,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_pem_and_hides_in_debug() {
        for kind in [KeyKind::EcdsaP256, KeyKind::EcdsaP384] {
            let key = Key::generate(kind).unwrap();
            let again = Key::from_pem(key.to_pem().unwrap().as_bytes()).unwrap();
            assert_eq!(key.spki(), again.spki());
            assert!(format!("{key:?}").len() < 20);
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        assert_eq!(Key::from_pem(b"").unwrap_err(), KeyError::Pem);
        let encrypted =
            b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        assert_eq!(Key::from_pem(encrypted).unwrap_err(), KeyError::Encrypted);
        assert_eq!(
            Key::from_pem(&vec![b'a'; PEM_MAX + 1]).unwrap_err(),
            KeyError::Pem
        );
    }
}
