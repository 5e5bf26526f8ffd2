//! Proofs in, certificates out. Who somebody is comes from the proof alone; of a request only its key and its signature count,
//! and what it asks for beyond that is refused by name. Nothing is handed out before its line in the log is on disk.

use std::time::Duration;

use phalanx_pki::authority::Authority;
use phalanx_pki::csr::Csr;
use phalanx_pki::issuer::{Attestation, Issued, Order};
use phalanx_pki::key::{Key, KeyKind};
use phalanx_pki::name::{Name, Workload};
use phalanx_pki::verifier::{Peer, SKEW};
use phalanx_pki::x509::Serial;
use phalanx_store::Op;

use super::record::{IssuedRecord, issued_key};
use super::token::clip;
use super::{Ca, CaError};

/// What a workload that has no certificate yet sends.
#[derive(Clone, Debug)]
pub struct JoinRequest {
    pub proof: Proof,
    /// Who it wants to be; refused when the proof is of somebody else.
    pub namespace: String,
    pub service: String,
    /// Empty: whichever the proof says, or none.
    pub zone: String,
    /// PKCS#10, DER.
    pub csr: Vec<u8>,
}

#[derive(Clone, PartialEq, Eq)]
pub enum Proof {
    JoinToken(String),
    ServiceAccount(String),
}

impl std::fmt::Debug for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::JoinToken(_) => "JoinToken",
            Self::ServiceAccount(_) => "ServiceAccount",
        })
    }
}

/// What a leaf is to be, beside its workload and key.
struct Terms<'a> {
    ttl: Duration,
    attested: Attestation,
    replaces: Option<Serial>,
    hosts: &'a [Name],
}

impl Ca {
    /// The first certificate.
    ///
    /// # Errors
    /// [`CaError`]; a request that is refused uses up no token.
    pub async fn join(&self, request: JoinRequest) -> Result<Issued, CaError> {
        match &request.proof {
            Proof::JoinToken(token) => self.join_by_token(token, &request).await,
            Proof::ServiceAccount(token) => self.join_by_account(token, &request).await,
        }
    }

    async fn join_by_token(&self, token: &str, request: &JoinRequest) -> Result<Issued, CaError> {
        let claimed = (&*request.namespace, &*request.service, &*request.zone);
        let shown = self.shown(token, claimed, self.now()).await?;
        self.check_workload(&shown.workload)?;
        let csr = Csr::from_der(&request.csr)?;
        csr.check_owned(&shown.workload)?;
        let attested = Attestation::JoinToken {
            id: shown.id().to_owned(),
        };
        let terms = self.terms(None, attested);
        let (issued, record) = self.make(&shown.workload, csr.spki(), terms)?;
        let (serial, now) = (issued.record.serial.clone(), self.now());
        self.log().add(serial.clone(), record.clone());
        let op = line(&serial, &record)?;
        if let Err(error) = self.use_token(shown, csr.spki(), op, now).await {
            self.log().remove(&serial);
            return Err(error);
        }
        Ok(told(issued))
    }

    /// A service account's token is not used up: Kubernetes hands the same one to a container that is started again. It is bound
    /// to our audience, and short-lived.
    async fn join_by_account(&self, token: &str, request: &JoinRequest) -> Result<Issued, CaError> {
        let account = self.account(token).await?;
        let asked = (&request.namespace, &request.service);
        if asked != (&account.namespace, &account.name) {
            return Err(CaError::JwtOfAnother {
                of: format!("{}/{}", account.namespace, account.name),
                asked: clip(&format!("{}/{}", request.namespace, request.service)),
            });
        }
        if !request.zone.is_empty() {
            return Err(CaError::ZoneUnproven);
        }
        let domain = self.trust_domain();
        let workload = Workload::parse(domain, &account.namespace, &account.name, None)?;
        let csr = Csr::from_der(&request.csr)?;
        let attested = Attestation::ServiceAccount {
            subject: format!("{}/{}", account.namespace, account.name),
        };
        self.issue(&workload, &csr, None, attested).await
    }

    /// The next certificate of somebody who has one: the same names, and no others.
    ///
    /// # Errors
    /// [`CaError::Revoked`], [`CaError::Ended`], [`CaError::TooOften`], [`CaError`]
    pub async fn renew(&self, peer: &Peer, csr: &Csr) -> Result<Issued, CaError> {
        let workload = self.workload_of(peer)?;
        self.check_workload(&workload)?;
        self.check_standing(&peer.serial)?;
        // Expiry closes no connection: this one may be older than its certificate was good for.
        if self.now().minus(SKEW) > peer.not_after {
            return Err(CaError::Ended {
                serial: peer.serial.to_string(),
                until: peer.not_after,
            });
        }
        csr.check_owned(&workload)?;
        let first = self.log().first(&peer.serial).clone();
        let life = self.0.config.leaf_ttl;
        if let Err(again) = self.0.often.take(&first, life, self.now()) {
            let id = peer.id.clone();
            return Err(CaError::TooOften { id, again });
        }
        let serial = peer.serial.clone();
        let terms = Terms {
            replaces: Some(serial.clone()),
            ..self.terms(None, Attestation::Certificate { serial })
        };
        let issued = self.record(&workload, csr.spki(), terms).await?;
        // It may have been revoked meanwhile; what is in the log by now, whoever revokes a workload finds.
        self.check_standing(&peer.serial)?;
        Ok(issued)
    }

    /// A certificate for a request that somebody else vouches for.
    ///
    /// # Errors
    /// [`CaError`]
    pub async fn issue(
        &self,
        workload: &Workload,
        csr: &Csr,
        ttl: Option<Duration>,
        attested: Attestation,
    ) -> Result<Issued, CaError> {
        self.check_workload(workload)?;
        csr.check_owned(workload)?;
        let terms = self.terms(ttl, attested);
        self.record(workload, csr.spki(), terms).await
    }

    /// A certificate with a key that is made here and kept nowhere: for a stock Envoy, and for files.
    ///
    /// # Errors
    /// [`CaError`]
    pub async fn issue_with_key(
        &self,
        workload: &Workload,
        ttl: Option<Duration>,
        attested: Attestation,
    ) -> Result<(Issued, Key), CaError> {
        self.check_workload(workload)?;
        let key = Key::generate(KeyKind::default()).map_err(|e| CaError::Issue(e.into()))?;
        let terms = self.terms(ttl, attested);
        let issued = self.record(workload, key.spki(), terms).await?;
        Ok((issued, key))
    }

    /// The control plane's own.
    pub(super) async fn issue_own(
        &self,
        workload: &Workload,
        key: &Key,
        hosts: &[Name],
    ) -> Result<Issued, CaError> {
        let name = self.0.config.plane.clone();
        let terms = Terms {
            hosts,
            ..self.terms(None, Attestation::ControlPlane { name })
        };
        self.record(workload, key.spki(), terms).await
    }

    /// Who a peer is, and its zone, as its certificate says: the authority wrote both.
    pub fn workload_of(&self, peer: &Peer) -> Result<Workload, CaError> {
        let service = &peer.id.service;
        let zone = peer.dns_names.iter().find_map(|name| {
            let zoned = name.strip_suffix(".internal")?;
            zoned.strip_prefix(&service.name)?.strip_prefix('-')
        });
        let domain = &peer.id.trust_domain;
        Ok(Workload::parse(
            domain,
            &service.namespace,
            &service.name,
            zone,
        )?)
    }

    /// Of this mesh, and not the control plane's own name.
    pub(super) fn check_workload(&self, workload: &Workload) -> Result<(), CaError> {
        let id = workload.id();
        if id.trust_domain != *self.trust_domain() {
            return Err(CaError::TrustDomain {
                id: id.clone(),
                ours: self.trust_domain().clone(),
            });
        }
        if workload.is_control() {
            return Err(CaError::Reserved { id: id.clone() });
        }
        Ok(())
    }

    fn check_standing(&self, serial: &Serial) -> Result<(), CaError> {
        match self.is_revoked(serial) {
            Some(_) => Err(CaError::Revoked {
                serial: serial.to_string(),
            }),
            None => Ok(()),
        }
    }

    fn terms(&self, ttl: Option<Duration>, attested: Attestation) -> Terms<'static> {
        Terms {
            ttl: ttl.unwrap_or(self.0.config.leaf_ttl),
            attested,
            replaces: None,
            hosts: &[],
        }
    }

    /// Makes a leaf, and returns when it is in the log.
    async fn record(
        &self,
        workload: &Workload,
        spki: &[u8],
        terms: Terms<'_>,
    ) -> Result<Issued, CaError> {
        let (issued, record) = self.make(workload, spki, terms)?;
        let serial = issued.record.serial.clone();
        let op = line(&serial, &record)?;
        // Seen from now on, so that whoever revokes the workload meanwhile doesn't miss it.
        self.log().add(serial.clone(), record);
        if let Err(error) = self.0.appender.append(&self.0.store, op).await {
            self.log().remove(&serial);
            return Err(error.into());
        }
        Ok(told(issued))
    }

    fn make(
        &self,
        workload: &Workload,
        spki: &[u8],
        terms: Terms<'_>,
    ) -> Result<(Issued, IssuedRecord), CaError> {
        let (now, authority) = (self.now(), self.authority());
        self.log().room_for(workload.id(), now)?;
        let order = Order {
            hosts: terms.hosts,
            ..Order::new(workload, terms.ttl, terms.attested)
        };
        let issued = signer(&authority).issue_to(spki, &order, now)?;
        let made = &issued.record;
        let record = IssuedRecord {
            id: made.id.clone(),
            zone: workload.zone().map(str::to_owned),
            hosts: terms.hosts.iter().map(host).collect(),
            not_before: made.not_before,
            not_after: made.not_after,
            issued_at: made.issued_at,
            issuer: made.issuer.clone(),
            issuer_key: made.issuer_key.clone(),
            fingerprint: made.fingerprint.clone(),
            attested: made.attested.clone(),
            replaces: terms.replaces,
            bundle: self.mesh().bundle().to_owned(),
            plane: self.0.config.plane.clone(),
        };
        Ok((issued, record))
    }

    async fn account(&self, token: &str) -> Result<phalanx_pki::jwt::ServiceAccount, CaError> {
        match &self.0.jwks {
            Some(jwks) => jwks.verify(token, self.now()).await,
            None => Err(super::JwksError::None.into()),
        }
    }
}

fn signer(authority: &Authority) -> &phalanx_pki::issuer::Issuer {
    authority.active()
}

fn told(issued: Issued) -> Issued {
    let record = &issued.record;
    tracing::debug!(id = %record.id, serial = %record.serial, until = %record.not_after, "certificate issued");
    issued
}

fn line(serial: &Serial, record: &IssuedRecord) -> Result<Op, CaError> {
    let key = issued_key(serial);
    match serde_json::to_vec(record) {
        Ok(value) => Ok(Op::Put {
            key,
            value: value.into(),
            lease: None,
        }),
        Err(source) => Err(CaError::Damaged { key, source }),
    }
}

fn host(name: &Name) -> String {
    match name {
        Name::Uri(text) | Name::Dns(text) => text.clone(),
        Name::Ip(address) => address.to_string(),
    }
}
