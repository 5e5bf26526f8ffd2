//! Revocation lists: made by a [`Ca`], and read into a table that a handshake asks without checking a signature again. A table
//! is immutable; a list that can't be checked is refused as a whole, and the tables before it stay.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use x509_cert::Version;
use x509_cert::crl::{CertificateList, RevokedCert, TbsCertList};
use x509_cert::der::asn1::Uint;
use x509_cert::der::oid::{AssociatedOid, ObjectIdentifier};
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::{AuthorityKeyIdentifier, CrlNumber, CrlReason};

use crate::ca::{Ca, CaError};
use crate::clock::UnixMillis;
use crate::x509::{self, Cert, Serial, X509Error};

/// Largest CRL that is read, DER: 100,000 entries take 4 MB.
pub const CRL_MAX: usize = 8 * 1024 * 1024;
/// Most entries of one CRL.
pub const REVOKED_MAX: usize = 100_000;
/// Most CRLs in a table.
pub const CRLS_MAX: usize = 32;
/// Most certificates that are known to be revoked without a list: 100 bytes each on the wire.
pub const TOLD_MAX: usize = 20_000;
/// A CRL's thisUpdate lies this far back, for clocks that are behind: a list that is refused as from the future lets revoked
/// peers in.
const BACKDATE: Duration = Duration::from_secs(60);

/// Why a certificate was revoked (RFC 5280, 5.3.1), by the names that openssl uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reason {
    #[default]
    Unspecified,
    KeyCompromise,
    #[serde(rename = "CACompromise")]
    CaCompromise,
    AffiliationChanged,
    Superseded,
    CessationOfOperation,
    /// For now: the only reason that can be taken back.
    CertificateHold,
    PrivilegeWithdrawn,
}

impl Reason {
    pub const ALL: [Self; 8] = [
        Self::Unspecified,
        Self::KeyCompromise,
        Self::CaCompromise,
        Self::AffiliationChanged,
        Self::Superseded,
        Self::CessationOfOperation,
        Self::CertificateHold,
        Self::PrivilegeWithdrawn,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::KeyCompromise => "keyCompromise",
            Self::CaCompromise => "CACompromise",
            Self::AffiliationChanged => "affiliationChanged",
            Self::Superseded => "superseded",
            Self::CessationOfOperation => "cessationOfOperation",
            Self::CertificateHold => "certificateHold",
            Self::PrivilegeWithdrawn => "privilegeWithdrawn",
        }
    }

    /// `None` for a word that is no reason. `removeFromCRL` is none (it is for delta lists), nor is `aACompromise` (it is for
    /// attribute certificates).
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|r| r.as_str() == text)
    }

    pub(crate) fn to_code(self) -> CrlReason {
        match self {
            Self::Unspecified => CrlReason::Unspecified,
            Self::KeyCompromise => CrlReason::KeyCompromise,
            Self::CaCompromise => CrlReason::CaCompromise,
            Self::AffiliationChanged => CrlReason::AffiliationChanged,
            Self::Superseded => CrlReason::Superseded,
            Self::CessationOfOperation => CrlReason::CessationOfOperation,
            Self::CertificateHold => CrlReason::CertificateHold,
            Self::PrivilegeWithdrawn => CrlReason::PrivilegeWithdrawn,
        }
    }
}

/// One revoked certificate of one issuer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    pub serial: Serial,
    pub at: UnixMillis,
    pub reason: Reason,
}

/// Signs a CRL (version 2) that is good from now for `validity`. `number` has to grow from one CRL of an issuer to the next.
///
/// # Errors
/// [`CrlError`]
pub fn build_crl(
    ca: &Ca,
    revoked: &[Revoked],
    number: u64,
    now: UnixMillis,
    validity: Duration,
) -> Result<Vec<u8>, CrlError> {
    if revoked.len() > REVOKED_MAX {
        return Err(CrlError::TooManyEntries);
    }
    if !ca.signs_crls() {
        return Err(CrlError::NotCrlSigner {
            issuer: ca.cert().subject(),
        });
    }
    let entries: Vec<RevokedCert> = revoked.iter().map(entry).collect::<Result<_, _>>()?;
    let number = Uint::new(&number.to_be_bytes()).map_err(|_| X509Error::Encode)?;
    let tbs = TbsCertList {
        version: Version::V2,
        signature: ca.key().algorithm(),
        issuer: ca.cert().subject.clone(),
        this_update: x509::to_time(now.minus(BACKDATE))?,
        next_update: Some(x509::to_time(now.plus(validity))?),
        revoked_certificates: Some(entries).filter(|e| !e.is_empty()),
        crl_extensions: Some(vec![
            x509::authority_key_id(ca.key_id())?,
            x509::extension(&CrlNumber(number), false)?,
        ]),
    };
    let signature = ca.sign(&tbs)?;
    let list = CertificateList {
        signature_algorithm: ca.key().algorithm(),
        tbs_cert_list: tbs,
        signature,
    };
    Ok(list.to_der().map_err(|_| X509Error::Encode)?)
}

fn entry(revoked: &Revoked) -> Result<RevokedCert, X509Error> {
    // RFC 5280, 5.3.1: `unspecified` should not be written.
    let reason = Some(revoked.reason).filter(|r| *r != Reason::Unspecified);
    let reason = reason
        .map(|r| x509::extension(&r.to_code(), false))
        .transpose()?;
    Ok(RevokedCert {
        serial_number: revoked.serial.to_number()?,
        revocation_date: x509::to_time(revoked.at)?,
        crl_entry_extensions: reason.map(|r| vec![r]),
    })
}

/// One step of a chain: who signed (SHA-256 of the issuer's SubjectPublicKeyInfo), and which serial.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Link {
    pub issuer_key: [u8; 32],
    pub serial: Serial,
}

/// What the tables say about a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listed {
    /// There is no CRL of this issuer.
    NoList,
    /// The CRL's nextUpdate has passed, and the serial is not on it.
    Stale,
    /// By a list, or by word.
    Revoked,
    No,
}

/// Verified CRLs, one per issuer's key, and beside them what is revoked by the word of an authority that was asked over an
/// authenticated connection, where no list says it yet.
#[derive(Clone, Debug, Default)]
pub struct Revocations {
    tables: Arc<HashMap<[u8; 32], Table>>,
    told: Arc<BTreeSet<Link>>,
}

#[derive(Debug)]
struct Table {
    number: u64,
    next_update: UnixMillis,
    serials: HashMap<Serial, UnixMillis>,
    der: Vec<u8>,
}

impl Revocations {
    /// Checks each CRL against the certificate of its issuer among `issuers`. Those need no chain: an entry counts only
    /// for chains that end in a trusted root and hold the very key that signed the CRL.
    ///
    /// # Errors
    /// [`CrlError`]; nothing is taken over then.
    pub fn try_new<C: AsRef<[u8]>>(
        crls: &[C],
        issuers: &[CertificateDer<'_>],
        now: UnixMillis,
        skew: Duration,
    ) -> Result<Self, CrlError> {
        if crls.len() > CRLS_MAX || issuers.len() > x509::CERTS_MAX {
            return Err(CrlError::TooMany);
        }
        let issuers: Vec<Cert> = issuers
            .iter()
            .map(|c| Cert::parse(c))
            .collect::<Result<_, _>>()?;
        let mut tables = HashMap::new();
        for der in crls {
            let (key, table) = Table::read(der.as_ref(), &issuers, now, skew)?;
            let newer = tables
                .get(&key)
                .is_none_or(|t: &Table| t.number < table.number);
            if newer {
                tables.insert(key, table);
            }
        }
        Ok(Self {
            tables: Arc::new(tables),
            told: Arc::default(),
        })
    }

    /// The same lists with `told` beside them, in the place of what was told before. What a list has is left out.
    ///
    /// # Errors
    /// [`CrlError::TooManyTold`]
    pub fn with_told(&self, told: impl IntoIterator<Item = Link>) -> Result<Self, CrlError> {
        let mut kept = BTreeSet::new();
        for link in told.into_iter().filter(|link| !self.is_listed(link)) {
            kept.insert(link);
            if kept.len() > TOLD_MAX {
                return Err(CrlError::TooManyTold);
            }
        }
        Ok(Self {
            tables: self.tables.clone(),
            told: Arc::new(kept),
        })
    }

    /// What is revoked and on no list, in order.
    pub fn told(&self) -> impl Iterator<Item = &Link> {
        self.told.iter()
    }

    /// Whether a list has it, current or not.
    pub fn is_listed(&self, link: &Link) -> bool {
        let table = self.tables.get(&link.issuer_key);
        table.is_some_and(|t| t.serials.contains_key(&link.serial))
    }

    /// Whether a list of `self` is older than the list of the same issuer in `other`: a replay.
    pub fn is_behind(&self, other: &Self) -> bool {
        let older = |(key, t): (&[u8; 32], &Table)| {
            other.tables.get(key).is_some_and(|o| t.number < o.number)
        };
        self.tables.iter().any(older)
    }

    /// Whether these are the lists, DER.
    pub fn has_lists(&self, ders: &[&[u8]]) -> bool {
        let mut own = self.crls();
        self.tables.len() == ders.len() && own.all(|crl| ders.contains(&crl))
    }

    /// Whether both have the same serials revoked; a list that was only signed again is the same.
    pub fn lists_same(&self, other: &Self) -> bool {
        let same = |(key, t): (&[u8; 32], &Table)| {
            other
                .tables
                .get(key)
                .is_some_and(|o| t.serials == o.serials)
        };
        self.told == other.told
            && self.tables.len() == other.tables.len()
            && self.tables.iter().all(same)
    }

    pub fn ask(&self, link: &Link, now: UnixMillis, skew: Duration) -> Listed {
        if self.told.contains(link) {
            return Listed::Revoked;
        }
        let Some(table) = self.tables.get(&link.issuer_key) else {
            return Listed::NoList;
        };
        if table.serials.contains_key(&link.serial) {
            return Listed::Revoked;
        }
        if now.minus(skew) > table.next_update {
            Listed::Stale
        } else {
            Listed::No
        }
    }

    /// The CRLs themselves, DER.
    pub fn crls(&self) -> impl Iterator<Item = &[u8]> {
        self.tables.values().map(|t| t.der.as_slice())
    }

    /// What there is to say about each list.
    pub fn lists(&self) -> impl Iterator<Item = ListInfo> {
        self.tables.iter().map(|(key, table)| ListInfo {
            issuer_key: *key,
            number: table.number,
            next_update: table.next_update,
            serials: table.serials.len(),
        })
    }

    /// How many certificates are revoked, by lists and by word.
    pub fn len(&self) -> usize {
        let listed: usize = self.tables.values().map(|t| t.serials.len()).sum();
        listed + self.told.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One list, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListInfo {
    /// SHA-256 of the issuer's SubjectPublicKeyInfo.
    pub issuer_key: [u8; 32],
    /// Grows from list to list of an issuer.
    pub number: u64,
    pub next_update: UnixMillis,
    /// How many are on it.
    pub serials: usize,
}

impl Table {
    fn read(
        der: &[u8],
        issuers: &[Cert],
        now: UnixMillis,
        skew: Duration,
    ) -> Result<([u8; 32], Self), CrlError> {
        if der.len() > CRL_MAX {
            return Err(CrlError::Malformed);
        }
        let list = CertificateList::from_der(der).map_err(|_| CrlError::Malformed)?;
        let tbs = &list.tbs_cert_list;
        let revoked = tbs.revoked_certificates.as_deref().unwrap_or_default();
        if tbs.version != Version::V2
            || list.signature_algorithm != tbs.signature
            || revoked.len() > REVOKED_MAX
        {
            return Err(CrlError::Malformed);
        }
        let extensions = tbs.crl_extensions.as_deref().unwrap_or_default();
        check_critical(extensions)?;
        let issuer = signer(&list, issuers, extensions)?;
        let this_update = x509::of_time(&tbs.this_update);
        if this_update > now.plus(skew) {
            return Err(CrlError::FromTheFuture);
        }
        let next_update = tbs
            .next_update
            .as_ref()
            .map(x509::of_time)
            .ok_or(CrlError::NoNextUpdate)?;
        let mut serials = HashMap::with_capacity(revoked.len());
        for entry in revoked {
            check_critical(entry.crl_entry_extensions.as_deref().unwrap_or_default())?;
            let serial = Serial::of(&entry.serial_number).map_err(|_| CrlError::Malformed)?;
            serials.insert(serial, x509::of_time(&entry.revocation_date));
        }
        let table = Self {
            number: number(extensions)?,
            next_update,
            serials,
            der: der.to_vec(),
        };
        Ok((x509::sha256(&issuer.spki), table))
    }
}

/// The issuer whose name, key identifier, usage and key fit the list.
fn signer<'a>(
    list: &CertificateList,
    issuers: &'a [Cert],
    extensions: &[Extension],
) -> Result<&'a Cert, CrlError> {
    let tbs = &list.tbs_cert_list;
    let wanted = find::<AuthorityKeyIdentifier>(extensions)?.and_then(|a| a.key_identifier);
    let same_key = |c: &&Cert| match (&wanted, &c.subject_key_id) {
        (Some(wanted), Some(id)) => wanted.as_bytes() == id.as_slice(),
        _ => true,
    };
    let message = tbs.to_der().map_err(|_| CrlError::Malformed)?;
    let mut named = issuers
        .iter()
        .filter(|c| c.subject == tbs.issuer)
        .filter(same_key)
        .peekable();
    if named.peek().is_none() {
        return Err(CrlError::UnknownIssuer {
            issuer: tbs.issuer.to_string(),
        });
    }
    let signed = |c: &&Cert| {
        x509::verify_signature(
            &c.spki,
            &list.signature_algorithm,
            &message,
            &list.signature,
        )
        .is_ok()
    };
    let found = named.find(signed).ok_or(CrlError::Signature)?;
    if !found.is_ca || found.key_usage.is_some_and(|u| !u.crl_sign()) {
        return Err(CrlError::NotCrlSigner {
            issuer: found.subject(),
        });
    }
    Ok(found)
}

/// Delta lists, partitioned and indirect ones are marked critical: taking them for whole lists would let revoked peers in.
fn check_critical(extensions: &[Extension]) -> Result<(), CrlError> {
    let known = [CrlNumber::OID, AuthorityKeyIdentifier::OID, CrlReason::OID];
    match extensions
        .iter()
        .find(|e| e.critical && !known.contains(&e.extn_id))
    {
        Some(e) => Err(CrlError::Extension { oid: e.extn_id }),
        None => Ok(()),
    }
}

fn number(extensions: &[Extension]) -> Result<u64, CrlError> {
    let Some(number) = find::<CrlNumber>(extensions)? else {
        return Ok(0);
    };
    let bytes = number.0.as_bytes();
    if bytes.len() > 8 {
        return Err(CrlError::Malformed);
    }
    Ok(bytes.iter().fold(0, |acc, b| acc << 8 | u64::from(*b)))
}

fn find<'a, T: AssociatedOid + Decode<'a>>(
    extensions: &'a [Extension],
) -> Result<Option<T>, CrlError> {
    let found = extensions.iter().find(|e| e.extn_id == T::OID);
    found
        .map(|e| T::from_der(e.extn_value.as_bytes()).map_err(|_| CrlError::Malformed))
        .transpose()
}

#[derive(Debug, thiserror::Error)]
pub enum CrlError {
    #[error(
        "the CRL cannot be read (version 2 in DER, at most {CRL_MAX} bytes and {REVOKED_MAX} entries)"
    )]
    Malformed,
    #[error("a CRL takes at most {REVOKED_MAX} entries")]
    TooManyEntries,
    #[error("at most {CRLS_MAX} CRLs and {} issuers", x509::CERTS_MAX)]
    TooMany,
    #[error("the CRL's issuer `{issuer}` is not among the CA certificates given with it")]
    UnknownIssuer { issuer: String },
    #[error("at most {TOLD_MAX} certificates can be revoked without a list")]
    TooManyTold,
    #[error("the CRL's signature is not its issuer's")]
    Signature,
    #[error("`{issuer}` may not sign CRLs (key usage cRLSign)")]
    NotCrlSigner { issuer: String },
    #[error(
        "the CRL has the critical extension {oid}, which is not supported (delta, indirect and partitioned lists are not)"
    )]
    Extension { oid: ObjectIdentifier },
    #[error("the CRL is from the future; is the clock right?")]
    FromTheFuture,
    #[error("the CRL has no nextUpdate")]
    NoNextUpdate,
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error(transparent)]
    X509(#[from] X509Error),
}
