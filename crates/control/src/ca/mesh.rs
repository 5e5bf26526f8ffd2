//! What the mesh has agreed on, as the store says: which roots are trusted, who signs under them, where a rotation stands.
//! Immutable; each change makes the next one. The roots of all control planes are one bundle.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use phalanx_pki::clock::UnixMillis;
use phalanx_pki::issuer::Issuer;
use phalanx_pki::revocation::Link;
use phalanx_pki::roots::{Roots, RootsError};
use phalanx_pki::x509::{self, Serial};
use phalanx_store::{Entry, Revision, Txn};
use rustls::pki_types::CertificateDer;

use super::record::{
    Der, IssuerRecord, Key, MeshRecord, RootRecord, RotationRecord, issuer_key, root_key,
};
use super::{Ca, CaError};

/// Most issuers that are known: those of all control planes, with the ones before them.
pub const ISSUERS_MAX: usize = 32;

#[derive(Clone, Debug)]
pub(super) struct Mesh {
    pub record: Option<(MeshRecord, Revision)>,
    stored: BTreeMap<String, RootRecord>,
    pub issuers: BTreeMap<Serial, IssuerRecord>,
    pub rotation: Option<(RotationRecord, Revision)>,
    roots: Option<Roots>,
    bundle: String,
    /// What was read at once; changes up to there are in it.
    since: Revision,
}

/// A CA that signs leaves of the mesh, or did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuerEntry {
    pub serial: Serial,
    /// Its certificate, and those between it and the root.
    pub chain: Vec<Vec<u8>>,
    /// SHA-256 of its SubjectPublicKeyInfo, hex.
    pub key: String,
    pub not_after: UnixMillis,
    /// The control plane that has its key.
    pub plane: String,
}

/// What everybody has to be told: whom to trust, and what is revoked.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// Grows with each change.
    pub version: u64,
    pub roots: Roots,
    /// Which roots these are, as the log and the rotation name them.
    pub roots_id: String,
    /// The lists of all issuers, DER.
    pub crls: Arc<[Vec<u8>]>,
    /// The certificates of those that signed them, DER.
    pub issuers: Vec<Vec<u8>>,
    /// What is revoked and on none of the lists.
    pub told: Vec<Link>,
}

impl Bundle {
    fn says_same(&self, other: &Self) -> bool {
        self.roots_id == other.roots_id
            && self.crls == other.crls
            && self.issuers == other.issuers
            && self.told == other.told
    }
}

impl Mesh {
    /// From everything that is stored, or from the part of it that is this room's.
    ///
    /// # Errors
    /// [`CaError::Damaged`]: what everybody trusts is not guessed.
    pub fn of(entries: &[Entry], since: Revision) -> Result<Self, CaError> {
        let mut mesh = Self::empty();
        for entry in entries {
            mesh.apply(&Key::parse(&entry.key), entry)?;
        }
        mesh.since = since;
        Ok(mesh)
    }

    fn empty() -> Self {
        Self {
            since: 0,
            record: None,
            stored: BTreeMap::new(),
            issuers: BTreeMap::new(),
            rotation: None,
            roots: None,
            bundle: String::new(),
        }
    }

    /// Takes one entry of the store, if it is of this room and newer.
    ///
    /// # Errors
    /// [`CaError::Damaged`]; then nothing has changed.
    pub fn apply(&mut self, key: &Key, entry: &Entry) -> Result<(), CaError> {
        if entry.modified <= self.since {
            return Ok(());
        }
        match key {
            Key::Mesh => self.record = Some((read(entry)?, entry.modified)),
            Key::Rotation => self.rotation = Some((read(entry)?, entry.modified)),
            Key::Root(fingerprint) => {
                self.stored.insert(fingerprint.clone(), read(entry)?);
                self.bind();
            }
            Key::Issuer(serial) => {
                let record = read(entry)?;
                if self.issuers.len() < ISSUERS_MAX || self.issuers.contains_key(serial) {
                    self.issuers.insert(serial.clone(), record);
                } else {
                    tracing::warn!(%serial, "more than {ISSUERS_MAX} issuers are known to the mesh");
                }
            }
            Key::Issued(_) | Key::Token(_) | Key::Trusting(_) | Key::Other => {}
        }
        Ok(())
    }

    /// Likewise for a key that was deleted.
    pub fn drop_key(&mut self, key: &Key, at: Revision) {
        if at <= self.since {
            return;
        }
        match key {
            Key::Mesh => self.record = None,
            Key::Rotation => self.rotation = None,
            Key::Root(fingerprint) => {
                self.stored.remove(fingerprint);
                self.bind();
            }
            Key::Issuer(serial) => drop(self.issuers.remove(serial)),
            Key::Issued(_) | Key::Token(_) | Key::Trusting(_) | Key::Other => {}
        }
    }

    fn bind(&mut self) {
        let ders = self
            .stored
            .values()
            .map(|r| CertificateDer::from(r.der.0.clone()));
        match Roots::try_new(ders) {
            Ok(roots) => {
                self.bundle = bundle_of(&roots);
                self.roots = Some(roots);
            }
            // The bundle before stays: nobody is served by trusting nothing.
            Err(RootsError::Empty) => {}
            Err(error) => tracing::warn!(%error, "the mesh's roots cannot be read"),
        }
    }

    pub fn has_roots(&self) -> bool {
        !self.stored.is_empty()
    }

    /// The fingerprints of what is stored, hex.
    pub fn fingerprints(&self) -> impl Iterator<Item = &String> {
        self.stored.keys()
    }

    pub fn trusted(&self) -> Option<&Roots> {
        self.roots.as_ref()
    }

    /// Which roots these are: a hash over their fingerprints.
    pub fn bundle(&self) -> &str {
        &self.bundle
    }

    /// The fingerprints that an issuer stands under, and that the mesh trusts.
    pub fn has_root_of(&self, issuer: &Issuer) -> bool {
        let mut own = issuer.roots().iter();
        own.any(|r| self.stored.contains_key(&x509::hex(r.fingerprint())))
    }
}

impl Ca {
    /// What everybody has to be told now.
    /// Made once per change, for all who are told.
    pub fn bundle(&self) -> Arc<Bundle> {
        let version = *self.0.changes.borrow();
        let mut made = self.0.bundle.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, bundle)) = &*made
            && *of == version
        {
            return bundle.clone();
        }
        let lists = self.lists();
        let fresh = Bundle {
            version,
            roots: self.roots(),
            roots_id: self.mesh().bundle().to_owned(),
            crls: lists.iter().map(|list| list.der.clone()).collect(),
            issuers: lists.iter().map(|list| list.issuer.clone()).collect(),
            told: self.own().revocations().told().cloned().collect(),
        };
        // What says the same as before is the same: nobody is told again.
        let bundle = match made.take() {
            Some((_, old)) if old.says_same(&fresh) => old,
            _ => Arc::new(fresh),
        };
        *made = Some((version, bundle.clone()));
        bundle
    }

    /// Every CA that signs leaves of the mesh, or did and may have living ones.
    pub fn issuers(&self) -> Vec<IssuerEntry> {
        let mesh = self.mesh();
        let entry = |(serial, record): (&Serial, &IssuerRecord)| IssuerEntry {
            serial: serial.clone(),
            chain: record.chain.iter().map(|der| der.0.clone()).collect(),
            key: record.key.clone(),
            not_after: record.not_after,
            plane: record.plane.clone(),
        };
        mesh.issuers.iter().map(entry).collect()
    }
}

pub(super) fn issuer_record(issuer: &Issuer, plane: &str) -> IssuerRecord {
    let fingerprints = issuer.roots().iter().map(|r| x509::hex(r.fingerprint()));
    IssuerRecord {
        chain: issuer.chain().iter().map(|der| Der(der.to_vec())).collect(),
        key: issuer.key_hex(),
        roots: fingerprints.collect(),
        not_after: issuer.not_after(),
        plane: plane.to_owned(),
    }
}

/// Adds an issuer to a transaction.
pub(super) fn put_issuer(txn: Txn, issuer: &Issuer, plane: &str) -> Result<Txn, CaError> {
    let key = issuer_key(&issuer.ca().cert().serial);
    let value = encode(&key, &issuer_record(issuer, plane))?;
    Ok(txn.put(key, value))
}

/// Adds roots to one.
pub(super) fn put_roots(
    mut txn: Txn,
    roots: &Roots,
    plane: &str,
    at: UnixMillis,
) -> Result<Txn, CaError> {
    for root in roots.iter() {
        let key = root_key(&x509::hex(root.fingerprint()));
        let record = RootRecord {
            der: Der(root.der().to_vec()),
            plane: plane.to_owned(),
            at,
        };
        let value = encode(&key, &record)?;
        txn = txn.put(key, value);
    }
    Ok(txn)
}

/// The first 64 bits of a hash over the roots' fingerprints, hex.
pub(super) fn bundle_of(roots: &Roots) -> String {
    let mut all: Vec<[u8; 32]> = roots.iter().map(|r| *r.fingerprint()).collect();
    all.sort_unstable();
    let hash = x509::sha256(all.as_flattened());
    x509::hex(hash.get(..8).unwrap_or_default())
}

pub(super) fn encode<T: serde::Serialize>(key: &str, record: &T) -> Result<Vec<u8>, CaError> {
    serde_json::to_vec(record).map_err(|source| CaError::Damaged {
        key: key.to_owned(),
        source,
    })
}

pub(super) fn read<T: serde::de::DeserializeOwned>(entry: &Entry) -> Result<T, CaError> {
    serde_json::from_slice(&entry.value).map_err(|source| CaError::Damaged {
        key: entry.key.clone(),
        source,
    })
}
