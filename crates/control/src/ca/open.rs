//! How an authority comes up: from its files, in agreement with the mesh in the store. The first control plane says which root
//! the mesh has; every other one needs an intermediate under a root that the mesh trusts, and is refused with a hint otherwise.

use std::sync::{Arc, Mutex, RwLock};

use phalanx_pki::authority::Authority;
use phalanx_pki::clock::{Clock, SystemClock, UnixMillis};
use phalanx_pki::files;
use phalanx_pki::identity::Identity;
use phalanx_pki::issuer::{Attestation, Issuer};
use phalanx_pki::x509;
use phalanx_store::{Error, Store, Txn};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::append::Appender;
use super::counts::Counts;
use super::follow::Stored;
use super::jwks::Jwks;
use super::log::Log;
use super::mesh::{self, Mesh};
use super::often::Often;
use super::place::{self, PlaceError};
use super::record::{self, MeshRecord, issuer_key, root_key};
use super::revoke::Revocation;
use super::staple::Staples;
use super::{Ca, CaConfig, CaError, Inner};

/// How often another plane may be faster while they agree.
const TRIES: usize = 8;

impl Ca {
    /// Opens what is in the files, or makes it, and agrees with the mesh in the store.
    ///
    /// # Errors
    /// [`CaError::Place`] for files that can't be used and for a root that is none of the mesh's, each with a hint.
    pub async fn open(config: CaConfig, store: Store) -> Result<Self, CaError> {
        Self::open_at(config, store, Arc::new(SystemClock)).await
    }

    /// As [`Ca::open`], by another clock.
    ///
    /// # Errors
    /// As [`Ca::open`].
    pub async fn open_at(
        config: CaConfig,
        store: Store,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, CaError> {
        files::private_dir(&config.dir).map_err(PlaceError::from)?;
        let (authority, stored) = agree(&config, &store, clock.now()).await?;
        let revocation = Revocation::load(store.clone()).await?;
        let jwks = config.jwks.clone().map(Jwks::new);
        let own = Arc::new(Identity::new(clock.clone()));
        let opened = clock.now();
        let ca = Self(Arc::new(Inner {
            config,
            store,
            clock,
            authority: RwLock::new(Arc::new(authority)),
            mesh: RwLock::new(Arc::new(stored.mesh)),
            log: Mutex::new(stored.log),
            appender: Appender::default(),
            jwks,
            peers: Mutex::new(stored.peers),
            own,
            bundle: Mutex::default(),
            followed: Mutex::new(stored.revision),
            changes: watch::Sender::new(1),
            steps: tokio::sync::Mutex::default(),
            revocation,
            staples: Staples::default(),
            counts: Counts::default(),
            often: Often::default(),
            opened,
            stopped: CancellationToken::new(),
        }));
        {
            let log = ca.log();
            ca.note_renewals(&log, log.newest().rev());
        }
        ca.reconcile().await?;
        ca.register_issuers().await?;
        ca.renew_own().await?;
        ca.tend_revocation().await;
        let authority = ca.authority();
        tracing::info!(
            trust_domain = %ca.trust_domain(),
            issuer = %authority.active().ca().cert().serial,
            until = %authority.active().not_after(),
            roots = ca.roots().iter().count(),
            "certificate authority opened"
        );
        Ok(ca)
    }
}

/// The authority of this control plane, under a root that the mesh trusts. The first control plane says which one that is.
async fn agree(
    config: &CaConfig,
    store: &Store,
    now: UnixMillis,
) -> Result<(Authority, Stored), CaError> {
    for _ in 0..TRIES {
        let stored = Stored::read(store).await?;
        let Some((record, _)) = &stored.mesh.record else {
            found(config, store, now).await?;
            continue;
        };
        if record.trust_domain != config.trust_domain {
            return Err(PlaceError::TrustDomain {
                ours: config.trust_domain.clone(),
                theirs: record.trust_domain.clone(),
            }
            .into());
        }
        let ours = ours(config, &stored.mesh, now)?;
        if let Some(authority) = ours
            .as_ref()
            .filter(|a| stored.mesh.has_root_of(a.active()))
        {
            let authority = match stored.mesh.trusted() {
                Some(roots) => authority.within(roots.clone(), now)?,
                None => authority.clone(),
            };
            return Ok((authority, stored));
        }
        let is_founder = record.plane == config.plane;
        if !is_founder || !is_abandoned(config, &stored.log, now) {
            let lives = stored.log.living(now).map(|line| line.record.not_after);
            return Err(match &ours {
                Some(authority) => foreign(authority.active(), &stored.mesh),
                None if is_founder => PlaceError::KeysLost {
                    dir: config.dir.clone(),
                    until: lives.max().unwrap_or(now),
                },
                None => PlaceError::NoIntermediate {
                    plane: record.plane.clone(),
                },
            }
            .into());
        }
        adopt(config, store, &stored.mesh, ours, now).await?;
    }
    Err(CaError::Contended)
}

/// What is in our files, and in `--ca DIR`.
fn ours(config: &CaConfig, mesh: &Mesh, now: UnixMillis) -> Result<Option<Authority>, CaError> {
    let kept = place::load(config, now)?;
    let Some(dir) = &config.outside else {
        return Ok(kept);
    };
    let issuer = place::outside(config, dir, now)?;
    let Some(kept) = kept.filter(|a| mesh.has_root_of(a.active()) || !mesh.has_roots()) else {
        return keep(config, Authority::new(issuer));
    };
    if kept.issuers().any(|i| i.ca().der() == issuer.ca().der()) {
        return Ok(Some(kept));
    }
    if !mesh.has_root_of(&issuer) && mesh.has_roots() {
        return Err(foreign(&issuer, mesh).into());
    }
    let roots = match mesh.trusted() {
        Some(roots) => roots.clone(),
        None => kept
            .roots()
            .and(issuer.roots())
            .map_err(|e| CaError::Authority(e.into()))?,
    };
    keep(
        config,
        kept.within(roots, now)?.replace_intermediate(issuer, now)?,
    )
}

fn keep(config: &CaConfig, authority: Authority) -> Result<Option<Authority>, CaError> {
    place::save(config, &authority)?;
    Ok(Some(authority))
}

pub(super) fn foreign(issuer: &Issuer, mesh: &Mesh) -> PlaceError {
    let short = |hex: &str| hex.chars().take(16).collect::<String>();
    let ours = issuer
        .roots()
        .iter()
        .map(|r| short(&x509::hex(r.fingerprint())));
    let theirs = mesh.fingerprints().map(|f| short(f));
    PlaceError::ForeignRoot {
        ours: ours.collect::<Vec<_>>().join(", "),
        theirs: theirs.collect::<Vec<_>>().join(", "),
    }
}

/// The first control plane of a mesh.
async fn found(config: &CaConfig, store: &Store, now: UnixMillis) -> Result<(), CaError> {
    let empty = Mesh::of(&[], 0)?;
    let authority = match ours(config, &empty, now)? {
        Some(authority) => authority,
        None => {
            let made = Authority::new(place::create(config, now)?);
            place::save(config, &made)?;
            made
        }
    };
    let record = MeshRecord {
        trust_domain: config.trust_domain.clone(),
        plane: config.plane.clone(),
        at: now,
    };
    let mut txn = Txn::new().expect_absent(record::MESH);
    txn = txn.put(record::MESH, mesh::encode(record::MESH, &record)?);
    txn = mesh::put_roots(txn, authority.roots(), &config.plane, now)?;
    txn = mesh::put_issuer(txn, authority.active(), &config.plane)?;
    match store.commit(txn).await {
        Ok(_) | Err(Error::Conflict { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Whether nobody would miss the roots that the store names: no certificate lives but this control plane's own former ones.
fn is_abandoned(config: &CaConfig, log: &Log, now: UnixMillis) -> bool {
    let own = |attested: &Attestation| match attested {
        Attestation::ControlPlane { name } => *name == config.plane,
        _ => false,
    };
    log.living(now).all(|line| own(&line.record.attested))
}

/// Takes the place of a CA whose keys are lost, where nobody trusts it any more.
async fn adopt(
    config: &CaConfig,
    store: &Store,
    mesh: &Mesh,
    ours: Option<Authority>,
    now: UnixMillis,
) -> Result<(), CaError> {
    let authority = match ours {
        Some(authority) => authority,
        None => {
            let made = Authority::new(place::create(config, now)?);
            place::save(config, &made)?;
            made
        }
    };
    let mut txn = Txn::new();
    if let Some((_, revision)) = &mesh.record {
        txn = txn.expect_modified(record::MESH, *revision);
    }
    for fingerprint in mesh.fingerprints() {
        txn = txn.delete(root_key(fingerprint));
    }
    for serial in mesh.issuers.keys() {
        txn = txn.delete(issuer_key(serial));
    }
    if mesh.rotation.is_some() {
        txn = txn.delete(record::ROTATION);
    }
    let record = MeshRecord {
        trust_domain: config.trust_domain.clone(),
        plane: config.plane.clone(),
        at: now,
    };
    txn = txn.put(record::MESH, mesh::encode(record::MESH, &record)?);
    txn = mesh::put_roots(txn, authority.active().roots(), &config.plane, now)?;
    match store.commit(txn).await {
        Ok(_) => {
            tracing::warn!(
                "the mesh's CA was gone and no certificate of it is alive: this control plane's takes its place"
            );
            Ok(())
        }
        Err(Error::Conflict { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
