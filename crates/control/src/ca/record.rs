//! The store's keys under `ca/` and the JSON of their values; the one place that knows them. No secret is among them: keys
//! stay in the files of the control plane that they are of, and of a token there is only a hash. (Revocations and their lists
//! lie there too; [`super::revoke`] keeps those.)

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use phalanx_pki::clock::UnixMillis;
use phalanx_pki::issuer::Attestation;
use phalanx_pki::name::{SpiffeId, TrustDomain};
use phalanx_pki::x509::Serial;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Everything of this room.
pub use crate::world::record::CA;

/// Which mesh this store is of. The first control plane writes it, together with its root.
pub const MESH: &str = "ca/mesh";
pub const ISSUED: &str = "ca/issued/";
pub const TOKENS: &str = "ca/tokens/";
pub const ROOTS: &str = "ca/roots/";
pub const ISSUERS: &str = "ca/issuers/";
pub const TRUSTING: &str = "ca/trusting/";
pub const ROTATION: &str = "ca/rotation";

/// What a key stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    Mesh,
    Rotation,
    Issued(Serial),
    Token(String),
    /// The fingerprint.
    Root(String),
    Issuer(Serial),
    Trusting(Serial),
    /// Of a later version, foreign, or kept by [`super::revoke`].
    Other,
}

impl Key {
    /// Whether all control planes have to agree on it.
    pub fn is_mesh(&self) -> bool {
        matches!(
            self,
            Self::Mesh | Self::Rotation | Self::Root(_) | Self::Issuer(_)
        )
    }

    pub fn parse(key: &str) -> Self {
        match key {
            MESH => return Self::Mesh,
            ROTATION => return Self::Rotation,
            _ => {}
        }
        let Some((kind, name)) = key.strip_prefix(CA).and_then(|rest| rest.split_once('/')) else {
            return Self::Other;
        };
        let serial = |of: fn(Serial) -> Self| Serial::parse(name).map_or(Self::Other, of);
        match kind {
            "issued" => serial(Self::Issued),
            "issuers" => serial(Self::Issuer),
            "trusting" => serial(Self::Trusting),
            "tokens" => Self::Token(name.to_owned()),
            "roots" => Self::Root(name.to_owned()),
            _ => Self::Other,
        }
    }
}

/// `ca/issued/<serial>`
pub fn issued_key(serial: &Serial) -> String {
    format!("{ISSUED}{serial}")
}

/// `ca/tokens/<id>`
pub fn token_key(id: &str) -> String {
    format!("{TOKENS}{id}")
}

/// `ca/roots/<fingerprint, hex>`
pub fn root_key(fingerprint: &str) -> String {
    format!("{ROOTS}{fingerprint}")
}

/// `ca/issuers/<serial>`
pub fn issuer_key(serial: &Serial) -> String {
    format!("{ISSUERS}{serial}")
}

/// `ca/trusting/<serial>`
pub fn trusting_key(serial: &Serial) -> String {
    format!("{TRUSTING}{serial}")
}

/// DER, as base64.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Der(pub Vec<u8>);

impl Serialize for Der {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Der {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text).map_err(serde::de::Error::custom)?;
        Ok(Self(bytes))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshRecord {
    pub trust_domain: TrustDomain,
    pub plane: String,
    pub at: UnixMillis,
}

/// One line of the issuance log: written once, never changed, deleted a week after `not_after`. Its serial is in the key, its
/// names follow from `id`, `zone` and `hosts`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedRecord {
    pub id: SpiffeId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// DNS names and addresses for people's tools; of a control plane's own only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    pub not_before: UnixMillis,
    pub not_after: UnixMillis,
    pub issued_at: UnixMillis,
    /// The serial of the issuing CA's certificate; what else there is to know of it stands at `ca/issuers/`.
    pub issuer: Serial,
    /// SHA-256 of the issuing CA's SubjectPublicKeyInfo, hex.
    pub issuer_key: String,
    /// SHA-256 of the leaf, hex.
    pub fingerprint: String,
    pub attested: Attestation,
    /// The certificate whose holder asked for this one in its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<Serial>,
    /// Which bundle of roots went along with it.
    pub bundle: String,
    pub plane: String,
}

/// A join token. Its secret is known to its bearer only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// SHA-256 of the secret, hex.
    pub secret: String,
    pub namespace: String,
    pub service: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    pub issued_at: UnixMillis,
    pub not_after: UnixMillis,
    pub author: String,
    /// The key that it was used for; nobody else's from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<TokenUse>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenUse {
    /// SHA-256 of the SubjectPublicKeyInfo, hex.
    pub key: String,
    pub at: UnixMillis,
    /// How often an answer was given for that key: the first may be lost on its way.
    pub answers: u32,
}

/// A root that the mesh trusts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootRecord {
    pub der: Der,
    pub plane: String,
    pub at: UnixMillis,
}

/// A CA that signs leaves, or did: its certificates, so that others can check its lists and answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuerRecord {
    /// Lowest first, without the root.
    pub chain: Vec<Der>,
    /// SHA-256 of its SubjectPublicKeyInfo, hex.
    pub key: String,
    /// The fingerprints of the roots that it stands under, hex.
    pub roots: Vec<String>,
    pub not_after: UnixMillis,
    /// The control plane that has its key.
    pub plane: String,
}

/// Where the rotation of the root stands; absent: none is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotationRecord {
    pub step: Step,
    /// The fingerprints of the roots that go, hex.
    pub old: Vec<String>,
    /// Of the ones that come.
    pub new: Vec<String>,
    /// The control plane that leads: it has the keys.
    pub plane: String,
    pub author: String,
    pub begun: UnixMillis,
    /// When this step was taken.
    pub at: UnixMillis,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Overlap,
    Switched,
}

/// What the holder of a certificate has said of the bundle while a rotation is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustingRecord {
    /// The last bundle that it took; empty: it is connected and has taken none.
    pub bundle: String,
    /// Why it took no newer one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// Where it is connected.
    pub plane: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_text() {
        let serial = Serial::random().unwrap();
        for (key, parsed) in [
            (issued_key(&serial), Key::Issued(serial.clone())),
            (issuer_key(&serial), Key::Issuer(serial.clone())),
            (trusting_key(&serial), Key::Trusting(serial.clone())),
            (token_key("ab12"), Key::Token("ab12".into())),
            (root_key("cd34"), Key::Root("cd34".into())),
            (MESH.to_owned(), Key::Mesh),
            (ROTATION.to_owned(), Key::Rotation),
        ] {
            assert_eq!(Key::parse(&key), parsed);
        }
        for foreign in [
            "",
            "ca/",
            "ca/issued/",
            "ca/issued/zz",
            "ca/later/1",
            "config/x/y/z",
        ] {
            assert_eq!(Key::parse(foreign), Key::Other, "{foreign}");
        }
    }
}
