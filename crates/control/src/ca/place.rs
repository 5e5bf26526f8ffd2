//! Where this control plane's own keys and certificates lie: `DATA/ca`, and `--ca DIR` for an intermediate from outside.
//!
//! `DATA/ca/roots/<fingerprint>/` has the embedded roots (`root-cert.pem`, `root-key.pem`), `DATA/ca/<serial>/` the intermediates,
//! `authority.json` says which of them signs. A root's key signs intermediates only: it may be moved elsewhere, and be put back
//! for the day on which another intermediate is needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use phalanx_pki::authority::{Authority, AuthorityError};
use phalanx_pki::clock::UnixMillis;
use phalanx_pki::files::FileError;
use phalanx_pki::issuer::{IssueError, Issuer, RootCa, Urls};
use phalanx_pki::key::KeyKind;
use phalanx_pki::name::TrustDomain;
use phalanx_pki::roots::Roots;
use phalanx_pki::x509;
use zeroize::Zeroizing;

use super::CaConfig;

/// How long an embedded root lives.
pub const ROOT_TTL: Duration = Duration::from_secs(10 * 365 * 86_400);
/// How long an intermediate lives.
pub const INTERMEDIATE_TTL: Duration = Duration::from_secs(365 * 86_400);
/// Where `--ca DIR` has the intermediate that a rotation goes to.
const NEXT: &str = "next";
const ROOTS: &str = "roots";
const ROOT_KEY: &str = "root-key.pem";

/// An intermediate for another control plane, PEM, by the names of `--ca DIR`.
#[derive(Clone)]
pub struct IntermediateFiles {
    /// `root-cert.pem`
    pub root_cert: String,
    /// `ca-cert.pem`
    pub ca_cert: String,
    /// `ca-key.pem`, mode 0600
    pub ca_key: Zeroizing<String>,
    /// `cert-chain.pem`
    pub cert_chain: String,
    pub not_after: UnixMillis,
}

impl std::fmt::Debug for IntermediateFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IntermediateFiles(until {})", self.not_after)
    }
}

/// What was here before, if anything was.
pub(super) fn load(config: &CaConfig, now: UnixMillis) -> Result<Option<Authority>, PlaceError> {
    let damaged = |source| PlaceError::Damaged {
        dir: config.dir.clone(),
        source,
    };
    let loaded = Authority::load(&config.dir, &config.trust_domain, now).map_err(damaged)?;
    Ok(loaded.map(|authority| authority.with_urls(&urls(config))))
}

pub(super) fn urls(config: &CaConfig) -> Urls {
    Urls {
        ocsp: config.ocsp_url.clone(),
        crl: config.crl_url.clone(),
    }
}

pub(super) fn save(config: &CaConfig, authority: &Authority) -> Result<(), PlaceError> {
    let failed = |source| PlaceError::Damaged {
        dir: config.dir.clone(),
        source,
    };
    authority.save(&config.dir).map_err(failed)
}

/// A root of our own with its first intermediate. One that a start before this one made and did not come to use is taken.
pub(super) fn create(config: &CaConfig, now: UnixMillis) -> Result<Issuer, PlaceError> {
    let failed = |source| PlaceError::Create {
        dir: config.dir.clone(),
        source,
    };
    let root = match first_root(config)? {
        Some(root) => root,
        None => new_root(config, now)?,
    };
    let issuer = root
        .intermediate(KeyKind::default(), now, INTERMEDIATE_TTL)
        .map_err(failed)?;
    Ok(issuer.with_urls(urls(config)))
}

/// Another root with an intermediate: to rotate to.
pub(super) fn create_next(config: &CaConfig, now: UnixMillis) -> Result<Issuer, PlaceError> {
    let failed = |source| PlaceError::Create {
        dir: config.dir.clone(),
        source,
    };
    let issuer = new_root(config, now)?
        .intermediate(KeyKind::default(), now, INTERMEDIATE_TTL)
        .map_err(failed)?;
    Ok(issuer.with_urls(urls(config)))
}

fn new_root(config: &CaConfig, now: UnixMillis) -> Result<RootCa, PlaceError> {
    let failed = |source| PlaceError::Create {
        dir: config.dir.clone(),
        source,
    };
    let root = RootCa::create(&config.trust_domain, KeyKind::default(), now, ROOT_TTL);
    let root = root.map_err(failed)?;
    let roots = root.roots().map_err(failed)?;
    root.save(&root_dir(config, &roots)).map_err(failed)?;
    Ok(root)
}

fn root_dir(config: &CaConfig, roots: &Roots) -> PathBuf {
    let first = roots.iter().next().map(|r| x509::hex(r.fingerprint()));
    let name = first.unwrap_or_default();
    config
        .dir
        .join(ROOTS)
        .join(name.get(..16).unwrap_or("none"))
}

fn first_root(config: &CaConfig) -> Result<Option<RootCa>, PlaceError> {
    let Ok(found) = fs::read_dir(config.dir.join(ROOTS)) else {
        return Ok(None);
    };
    let mut found: Vec<PathBuf> = found.flatten().map(|entry| entry.path()).collect();
    found.sort();
    let with_key = found.into_iter().find(|dir| dir.join(ROOT_KEY).exists());
    with_key
        .map(|dir| load_root(&dir, &config.trust_domain))
        .transpose()
}

fn load_root(dir: &Path, trust_domain: &TrustDomain) -> Result<RootCa, PlaceError> {
    RootCa::load(dir, trust_domain).map_err(|source| PlaceError::Root {
        dir: dir.to_owned(),
        source,
    })
}

/// The root that an issuer stands under, if it is one of ours and its key is here.
pub(super) fn root_of(config: &CaConfig, issuer: &Issuer) -> Result<Option<RootCa>, PlaceError> {
    let dir = root_dir(config, issuer.roots());
    if !dir.join(ROOT_KEY).exists() {
        return Ok(None);
    }
    load_root(&dir, &config.trust_domain).map(Some)
}

/// Another intermediate under the same root; none when the root's key is not here.
pub(super) fn intermediate(
    config: &CaConfig,
    issuer: &Issuer,
    now: UnixMillis,
) -> Result<Option<Issuer>, PlaceError> {
    let Some(root) = root_of(config, issuer)? else {
        return Ok(None);
    };
    let made = root.intermediate(KeyKind::default(), now, INTERMEDIATE_TTL);
    let made = made.map_err(|source| PlaceError::Create {
        dir: config.dir.clone(),
        source,
    })?;
    Ok(Some(made.with_urls(urls(config))))
}

/// The intermediate of `--ca DIR`.
pub(super) fn outside(
    config: &CaConfig,
    dir: &Path,
    now: UnixMillis,
) -> Result<Issuer, PlaceError> {
    let issuer = Issuer::load(dir, &config.trust_domain, now);
    let issuer = issuer.map_err(|source| PlaceError::Outside {
        dir: dir.to_owned(),
        source,
    })?;
    Ok(issuer.with_urls(urls(config)))
}

/// The one that a rotation goes to.
pub(super) fn outside_next(
    config: &CaConfig,
    dir: &Path,
    now: UnixMillis,
) -> Result<Issuer, PlaceError> {
    let next = dir.join(NEXT);
    if !next.exists() {
        return Err(PlaceError::NoNext { dir: next });
    }
    outside(config, &next, now)
}

/// When its certificate was last written; none when it isn't there.
pub(super) fn outside_stamp(dir: &Path) -> Option<std::time::SystemTime> {
    fs::metadata(dir.join("ca-cert.pem")).ok()?.modified().ok()
}

pub(super) fn files_of(issuer: &Issuer) -> Result<IntermediateFiles, IssueError> {
    let ca = issuer.ca();
    Ok(IntermediateFiles {
        root_cert: issuer.roots().to_pem(),
        ca_cert: x509::certs_to_pem([ca.der()]),
        ca_key: ca.key().to_pem()?,
        cert_chain: x509::certs_to_pem(&issuer.chain()),
        not_after: issuer.not_after(),
    })
}

/// What is wrong with the files, and what can be done.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    #[error(
        "the CA in {} cannot be used; put the directory back from a backup, its files belong together", dir.display()
    )]
    Damaged {
        dir: PathBuf,
        #[source]
        source: AuthorityError,
    },
    #[error(
        "the root in {} cannot be used; put it back from where it is kept, or take its root-key.pem away: it is needed for a new intermediate only", dir.display()
    )]
    Root {
        dir: PathBuf,
        #[source]
        source: IssueError,
    },
    #[error("cannot make a CA in {}", dir.display())]
    Create {
        dir: PathBuf,
        #[source]
        source: IssueError,
    },
    #[error(
        "--ca {} cannot be used: it takes ca-cert.pem, ca-key.pem (mode 0600), cert-chain.pem and root-cert.pem, which have to fit together", dir.display()
    )]
    Outside {
        dir: PathBuf,
        #[source]
        source: IssueError,
    },
    #[error(
        "there is no {}: put the new ca-cert.pem, ca-key.pem, cert-chain.pem and root-cert.pem there, then begin", dir.display()
    )]
    NoNext { dir: PathBuf },
    #[error(
        "this mesh has a CA already, made by the control plane `{plane}`, and this one has no intermediate under its root: \
         `phalanx cert intermediate --out DIR` at a running control plane, then start this one with `--ca DIR`"
    )]
    NoIntermediate { plane: String },
    #[error(
        "the keys of this mesh's CA were in {} and are not there: put that directory back from a backup, its files belong together. \
         Certificates of it live until {until}; another CA takes its place only after that", dir.display()
    )]
    KeysLost { dir: PathBuf, until: UnixMillis },
    #[error(
        "the root {ours} of this control plane is none that the mesh trusts ({theirs}): \
         `phalanx cert intermediate --out DIR` at a running control plane, then start this one with `--ca DIR`"
    )]
    ForeignRoot { ours: String, theirs: String },
    #[error(
        "the store is of a mesh with the trust domain `{theirs}`, not `{ours}` (start with `--trust-domain {theirs}`)"
    )]
    TrustDomain {
        ours: TrustDomain,
        theirs: TrustDomain,
    },
    #[error(
        "the root's key is not in {}: put root-key.pem back (mode 0600) for as long as this takes", dir.display()
    )]
    RootOffline { dir: PathBuf },
    #[error(transparent)]
    File(#[from] FileError),
}

/// For an error: where an issuer's root would lie.
pub(super) fn root_place(config: &CaConfig, issuer: &Issuer) -> PathBuf {
    root_dir(config, issuer.roots())
}
