//! Certificates, join tokens, roots and users. Certificates travel as PEM; of private keys only that of an intermediate for
//! another control plane does.

use serde::{Deserialize, Serialize};

/// Most serials that one revocation names.
pub const SERIALS_MAX: usize = 1000;
/// Most certificates that one answer lists.
pub const ISSUED_MAX: usize = 1000;

/// `POST /api/v1/cert/token`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinTokenRequest {
    pub namespace: String,
    pub service: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// From now; within a second and a week.
    pub ttl_ms: u64,
    #[serde(default)]
    pub author: String,
}

/// A token is told once: only its hash is stored.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    pub token: String,
    pub id: String,
    pub namespace: String,
    pub service: String,
    pub zone: Option<String>,
    pub expires_ms: u64,
    /// Whom its bearer has to trust, PEM.
    pub roots: String,
}

impl std::fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "JoinToken({})", self.id)
    }
}

/// `GET /api/v1/cert/tokens`: those that are neither used nor expired.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinTokens {
    pub items: Vec<JoinTokenView>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinTokenView {
    pub id: String,
    pub namespace: String,
    pub service: String,
    pub zone: Option<String>,
    pub expires_ms: u64,
    /// Who made it.
    pub author: String,
}

/// `POST /api/v1/cert/token/revoke`, answered by the token that is good no more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokeTokenRequest {
    pub id: String,
    #[serde(default)]
    pub author: String,
}

/// `POST /api/v1/cert/sign`: a certificate for whoever holds the key of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignRequest {
    /// PKCS#10, PEM.
    pub csr: String,
    pub namespace: String,
    pub service: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// The control plane's `--leaf-ttl` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
    #[serde(default)]
    pub author: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    /// PEM, the leaf first, without the root.
    pub chain: String,
    /// PEM
    pub roots: String,
    pub serial: String,
    /// Its SPIFFE id.
    pub id: String,
    pub not_after_ms: u64,
}

/// `GET /api/v1/cert/issued?service=&namespace=&serial=&revoked=1&expiring_ms=&limit=`, newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedCertificates {
    pub items: Vec<IssuedCertificate>,
    /// Whether there are more than were asked for.
    pub more: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedCertificate {
    /// Lower-case hex.
    pub serial: String,
    /// Its SPIFFE id.
    pub id: String,
    /// `URI:…` and `DNS:…`
    pub names: Vec<String>,
    pub issued_ms: u64,
    pub not_before_ms: u64,
    pub not_after_ms: u64,
    /// Serial of the CA that signed it.
    pub issuer: String,
    /// SHA-256 of its DER, hex.
    pub fingerprint: String,
    /// `join_token`, `certificate`, `service_account` or `operator`.
    pub attested_by: String,
    /// The token's id, the serial of the certificate before, the account, the operator's name.
    pub attested: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_ms: Option<u64>,
    /// Why, by RFC 5280's names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What to ask of the issuance log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IssuedQuery {
    pub namespace: Option<String>,
    pub service: Option<String>,
    pub serial: Option<String>,
    /// Only what is revoked.
    pub revoked: bool,
    /// Only what is good and will not be after this long, milliseconds.
    pub expiring_ms: Option<u64>,
    pub limit: Option<u64>,
}

/// `POST /api/v1/cert/revoke`: by serials, or every certificate that has not expired of a service, by its name or its SPIFFE id
/// (`workload`), or of whoever holds one (`holders`: serials).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokeRequest {
    #[serde(default)]
    pub serials: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holders: Vec<String>,
    pub reason: String,
    #[serde(default)]
    pub author: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    /// Those that are revoked by this request; what was revoked before is not among them.
    pub serials: Vec<String>,
    /// What the holders of certificates that were named still have that is good: what is open with those stays open.
    #[serde(default)]
    pub left: Vec<String>,
}

/// `POST /api/v1/cert/release`: what was revoked with `certificateHold` is good again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseCertificatesRequest {
    pub serials: Vec<String>,
    #[serde(default)]
    pub author: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Released {
    pub serials: Vec<String>,
}

/// Of a proxy: what it shows by now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyCertificate {
    pub serial: String,
    pub not_before_ms: u64,
    pub not_after_ms: u64,
    /// Whether it should have been renewed by now: less than a third of its life, and less than a day, is left.
    pub late: bool,
}

/// Of `status`: a certificate that somebody should look after.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LateCertificate {
    /// The proxy that has it, or `control plane <name>`.
    pub node: String,
    pub serial: String,
    pub not_after_ms: u64,
    pub expired: bool,
}

/// A CA as people look at it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaView {
    pub subject: String,
    pub serial: String,
    /// SHA-256 of its DER, hex.
    pub fingerprint: String,
    pub not_after_ms: u64,
}

/// `GET /api/v1/cert/roots`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trust {
    pub trust_domain: String,
    /// All of them, PEM.
    pub pem: String,
    pub roots: Vec<CaView>,
    /// The intermediate that signs now.
    pub issuer: CaView,
}

/// `POST /api/v1/cert/rotate`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RotateRequest {
    /// `begin`, `abort`, `switch` or `finish`.
    pub step: String,
    #[serde(default)]
    pub author: String,
}

/// `GET /api/v1/cert/rotation`, and what a step leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotation {
    /// `steady`, `overlap` (both roots are trusted, the old one signs) or `switched` (both are trusted, the new one signs).
    pub phase: String,
    /// What peers are told to trust.
    pub roots: Vec<CaView>,
    /// The intermediate that signs now.
    pub issuer: CaView,
    /// The control plane that leads the rotation; empty when none is under way.
    pub led_by: String,
    /// Who began it.
    pub author: String,
    pub begun_ms: u64,
    /// Fingerprints of the roots that go, hex.
    pub old: Vec<String>,
    /// Fingerprints of the roots that come, hex.
    pub new: Vec<String>,
    /// Holders of living certificates that have not said yet that they trust the new root.
    pub unconfirmed: u64,
    /// Those of them that are connected somewhere: without them it does not go on.
    pub unconfirmed_connected: u64,
    /// The control plane has just started: who is not connected may be on its way.
    #[serde(default)]
    pub settling: bool,
    /// Some of them, those that are connected first.
    pub waiting: Vec<Unconfirmed>,
    /// Certificates under the roots that go, neither expired nor revoked.
    pub outstanding: u64,
    /// When the last of them ends.
    pub outstanding_until_ms: Option<u64>,
}

/// Whose word a rotation waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unconfirmed {
    /// Its SPIFFE id.
    pub id: String,
    pub serial: String,
    pub not_after_ms: u64,
    /// The control plane that it is connected to; empty for none.
    pub plane: String,
    /// Why it does not trust what it was told to.
    pub error: String,
}

/// `POST /api/v1/cert/intermediate`: an intermediate under this mesh's root, for another control plane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IntermediateRequest {
    #[serde(default)]
    pub author: String,
}

/// The files of a `--ca DIR`, PEM. The one answer with a private key in it.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intermediate {
    pub trust_domain: String,
    /// `root-cert.pem`
    pub root_cert: String,
    /// `ca-cert.pem`
    pub ca_cert: String,
    /// `ca-key.pem`
    pub ca_key: String,
    /// `cert-chain.pem`
    pub cert_chain: String,
    pub not_after_ms: u64,
}

impl std::fmt::Debug for Intermediate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Intermediate({})", self.trust_domain)
    }
}
