//! The issuer: a root makes intermediates, an intermediate makes leaves. A leaf carries what its workload owns and nothing that
//! its request says; each one comes with a record for the issuance log, which the caller keeps.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use x509_cert::der::asn1::Ia5String;
use x509_cert::der::asn1::OctetString;
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::crl::dp::DistributionPoint;
use x509_cert::ext::pkix::name::{DistributionPointName, GeneralName};
use x509_cert::ext::pkix::{
    AccessDescription, AuthorityInfoAccessSyntax, BasicConstraints, CrlDistributionPoints,
    ExtendedKeyUsage, KeyUsage, KeyUsages, SubjectKeyIdentifier,
};
use x509_cert::name::RdnSequence;

use crate::ca::{self, Ca, CaError, Draft};
use crate::clock::UnixMillis;
use crate::csr::{self, Csr, CsrError};
use crate::files::{self, Access, FileError};
use crate::key::{Key, KeyError, KeyKind};
use crate::name::{Name, SpiffeId, TrustDomain, Workload};
use crate::revocation::Revocations;
use crate::roots::{Roots, RootsError};
use crate::verifier::{self, Expected, Policy, Refusal, Role};
use crate::x509::{self, CLIENT_AUTH, SERVER_AUTH, Serial, X509Error};

#[cfg(test)]
mod tests;

/// A leaf's NotBefore lies this far back, for peers whose clocks are behind.
pub const LEAF_BACKDATE: Duration = Duration::from_secs(1);
/// A CA's, which lives longer, further.
const CA_BACKDATE: Duration = Duration::from_secs(300);
/// Longest life of a leaf.
pub const LEAF_TTL_MAX: Duration = Duration::from_secs(90 * 86_400);
const OCSP_ACCESS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1");

/// The names of the files, as Istio has them.
const ROOT_CERT: &str = "root-cert.pem";
const CA_CERT: &str = "ca-cert.pem";
const CA_KEY: &str = "ca-key.pem";
const CERT_CHAIN: &str = "cert-chain.pem";
const ROOT_KEY: &str = "root-key.pem";

/// The embedded root. It signs intermediates only, so its key can be kept elsewhere afterwards.
#[derive(Debug)]
pub struct RootCa {
    ca: Ca,
    trust_domain: TrustDomain,
}

impl RootCa {
    /// A new self-signed root. Its name holds a part of its serial, so that two roots are told apart by name too.
    ///
    /// # Errors
    /// [`IssueError`]
    pub fn create(
        trust_domain: &TrustDomain,
        kind: KeyKind,
        now: UnixMillis,
        ttl: Duration,
    ) -> Result<Self, IssueError> {
        let key = Key::generate(kind)?;
        let serial = Serial::random()?;
        let subject = ca_name(trust_domain, "root", &serial)?;
        let id = x509::key_id(key.spki())?;
        let draft = Draft {
            serial: &serial,
            subject: subject.clone(),
            spki: key.spki(),
            not_before: now.minus(CA_BACKDATE),
            not_after: now.plus(ttl),
            extensions: ca_extensions(&id, None, None)?,
        };
        let der = ca::sign_draft(draft, subject, &key)?;
        Ok(Self {
            ca: Ca::try_new(der, key)?,
            trust_domain: trust_domain.clone(),
        })
    }

    /// Reads `root-cert.pem` and `root-key.pem`, which has to be 0600.
    ///
    /// # Errors
    /// [`IssueError`]
    pub fn load(dir: &Path, trust_domain: &TrustDomain) -> Result<Self, IssueError> {
        let certs = x509::certs_from_pem(&files::read(&dir.join(ROOT_CERT), Access::Public)?)?;
        let key = Key::from_pem(&files::read(&dir.join(ROOT_KEY), Access::Private)?)?;
        let der = certs.into_iter().next().ok_or(X509Error::Pem)?;
        Ok(Self {
            ca: Ca::try_new(der, key)?,
            trust_domain: trust_domain.clone(),
        })
    }

    /// Writes the two files, the key first and with mode 0600.
    ///
    /// # Errors
    /// [`IssueError::File`]
    pub fn save(&self, dir: &Path) -> Result<(), IssueError> {
        files::private_dir(dir)?;
        files::write(
            &dir.join(ROOT_KEY),
            self.ca.key().to_pem()?.as_bytes(),
            Access::Private,
        )?;
        let cert = x509::certs_to_pem([self.ca.der()]);
        Ok(files::write(
            &dir.join(ROOT_CERT),
            cert.as_bytes(),
            Access::Public,
        )?)
    }

    pub fn roots(&self) -> Result<Roots, IssueError> {
        Ok(Roots::try_new([self.ca.der().clone()])?)
    }

    pub fn ca(&self) -> &Ca {
        &self.ca
    }

    /// A new intermediate with a key of its own, which may sign leaves and no further CA.
    ///
    /// # Errors
    /// [`IssueError`]
    pub fn intermediate(
        &self,
        kind: KeyKind,
        now: UnixMillis,
        ttl: Duration,
    ) -> Result<Issuer, IssueError> {
        let key = Key::generate(kind)?;
        let serial = Serial::random()?;
        let id = x509::key_id(key.spki())?;
        let draft = Draft {
            serial: &serial,
            subject: ca_name(&self.trust_domain, "intermediate", &serial)?,
            spki: key.spki(),
            not_before: now.minus(CA_BACKDATE).max(self.ca.cert().not_before),
            not_after: now.plus(ttl).min(self.ca.cert().not_after),
            extensions: ca_extensions(&id, Some(self.ca.key_id()), Some(0))?,
        };
        let der = self.ca.sign_certificate(draft)?;
        Issuer::try_new(
            Ca::try_new(der, key)?,
            Vec::new(),
            self.roots()?,
            &self.trust_domain,
            now,
        )
    }
}

fn ca_name(
    trust_domain: &TrustDomain,
    kind: &str,
    serial: &Serial,
) -> Result<RdnSequence, X509Error> {
    let tag: String = serial.to_string().chars().take(8).collect();
    // A common name takes 64 characters (RFC 5280, upper bounds).
    let domain: String = trust_domain.as_str().chars().take(30).collect();
    x509::common_name(&format!("Phalanx {kind} {tag} {domain}"))
}

fn ca_extensions(
    id: &[u8],
    issuer: Option<&[u8]>,
    path_len: Option<u8>,
) -> Result<Vec<Extension>, X509Error> {
    let usage = KeyUsage(KeyUsages::KeyCertSign | KeyUsages::CRLSign | KeyUsages::DigitalSignature);
    let mut extensions = vec![
        x509::extension(
            &BasicConstraints {
                ca: true,
                path_len_constraint: path_len,
            },
            true,
        )?,
        x509::extension(&usage, true)?,
        x509::extension(&SubjectKeyIdentifier(octets(id)?), false)?,
    ];
    if let Some(issuer) = issuer {
        extensions.push(x509::authority_key_id(issuer)?);
    }
    Ok(extensions)
}

fn octets(bytes: &[u8]) -> Result<OctetString, X509Error> {
    OctetString::new(bytes).map_err(|_| X509Error::Encode)
}

/// Where peers can ask about a certificate; written into each leaf.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Urls {
    pub ocsp: Option<String>,
    /// [`ISSUER`] in it becomes the issuer's key, as [`Issuer::key_hex`] has it: each has a list of its own.
    pub crl: Option<String>,
}

/// See [`Urls::crl`].
pub const ISSUER: &str = "{issuer}";

/// An intermediate that makes leaves.
#[derive(Clone, Debug)]
pub struct Issuer {
    ca: Arc<Ca>,
    /// The CAs between `ca` and the root, lowest first.
    above: Vec<CertificateDer<'static>>,
    roots: Roots,
    trust_domain: TrustDomain,
    urls: Urls,
}

impl Issuer {
    /// Takes an intermediate if a leaf of it would verify: a probe is issued in memory and checked as a peer would check it.
    ///
    /// # Errors
    /// [`IssueError::Probe`] says why a leaf would be refused.
    pub fn try_new(
        ca: Ca,
        above: Vec<CertificateDer<'static>>,
        roots: Roots,
        trust_domain: &TrustDomain,
        now: UnixMillis,
    ) -> Result<Self, IssueError> {
        let above: Vec<_> = above
            .into_iter()
            .filter(|c| !roots.contains(&x509::fingerprint(c)))
            .collect();
        let above = above.into_iter().filter(|c| c != ca.der()).collect();
        let trust_domain = trust_domain.clone();
        let issuer = Self {
            ca: Arc::new(ca),
            above,
            roots,
            trust_domain,
            urls: Urls::default(),
        };
        issuer.probe(&issuer.roots, now)?;
        Ok(issuer)
    }

    #[must_use]
    pub fn with_urls(mut self, urls: Urls) -> Self {
        let crl = urls.crl.map(|url| url.replace(ISSUER, &self.key_hex()));
        self.urls = Urls { crl, ..urls };
        self
    }

    /// Reads `ca-cert.pem`, `ca-key.pem` (0600), `cert-chain.pem` and `root-cert.pem`, and checks that they fit together.
    ///
    /// # Errors
    /// [`IssueError`]
    pub fn load(
        dir: &Path,
        trust_domain: &TrustDomain,
        now: UnixMillis,
    ) -> Result<Self, IssueError> {
        let public = |name: &str| files::read(&dir.join(name), Access::Public);
        let key = Key::from_pem(&files::read(&dir.join(CA_KEY), Access::Private)?)?;
        let cert = x509::certs_from_pem(&public(CA_CERT)?)?
            .into_iter()
            .next()
            .ok_or(X509Error::Pem)?;
        let roots = Roots::from_pem(&public(ROOT_CERT)?)?;
        let above = x509::certs_from_pem(&public(CERT_CHAIN)?)?;
        Self::try_new(Ca::try_new(cert, key)?, above, roots, trust_domain, now)
    }

    /// Writes the four files, the key with mode 0600.
    ///
    /// # Errors
    /// [`IssueError::File`]
    pub fn save(&self, dir: &Path) -> Result<(), IssueError> {
        files::private_dir(dir)?;
        let public =
            |name: &str, pem: String| files::write(&dir.join(name), pem.as_bytes(), Access::Public);
        files::write(
            &dir.join(CA_KEY),
            self.ca.key().to_pem()?.as_bytes(),
            Access::Private,
        )?;
        public(CA_CERT, x509::certs_to_pem([self.ca.der()]))?;
        public(CERT_CHAIN, x509::certs_to_pem(&self.chain()))?;
        Ok(public(ROOT_CERT, self.roots.to_pem())?)
    }

    /// Makes a leaf for a request, after checking that the workload owns everything it asks for.
    ///
    /// # Errors
    /// [`IssueError::Csr`] for a request that is refused, [`IssueError`] otherwise.
    pub fn issue(
        &self,
        csr: &Csr,
        order: &Order<'_>,
        now: UnixMillis,
    ) -> Result<Issued, IssueError> {
        csr.check_owned(order.workload)?;
        self.issue_to(csr.spki(), order, now)
    }

    /// Makes a leaf for a key that the caller made itself: for a stock Envoy, or for files.
    ///
    /// # Errors
    /// [`IssueError`]
    pub fn issue_to(
        &self,
        spki: &[u8],
        order: &Order<'_>,
        now: UnixMillis,
    ) -> Result<Issued, IssueError> {
        let workload = order.workload;
        if workload.id().trust_domain != self.trust_domain {
            return Err(IssueError::TrustDomain {
                asked: workload.id().trust_domain.clone(),
            });
        }
        check_hosts(order)?;
        let issuer = self.ca.cert();
        let span = self.life(order.ttl, now)?;
        let serial = Serial::random()?;
        let draft = Draft {
            serial: &serial,
            subject: RdnSequence::default(),
            spki,
            not_before: span.0,
            not_after: span.1,
            extensions: self.leaf_extensions(spki, order)?,
        };
        let leaf = self.ca.sign_certificate(draft)?;
        let record = Issuance {
            serial,
            id: workload.id().clone(),
            names: order.names(),
            not_before: span.0,
            not_after: span.1,
            issued_at: now,
            issuer: issuer.serial.clone(),
            issuer_key: self.key_hex(),
            fingerprint: x509::hex(&x509::fingerprint(&leaf)),
            attested: order.attested.clone(),
        };
        Ok(Issued {
            chain: std::iter::once(leaf).chain(self.chain()).collect(),
            record,
        })
    }

    /// NotBefore and NotAfter in whole seconds; NotAfter is no later than the issuer's own.
    fn life(&self, ttl: Duration, now: UnixMillis) -> Result<(UnixMillis, UnixMillis), IssueError> {
        if ttl < Duration::from_secs(1) || ttl > LEAF_TTL_MAX {
            return Err(IssueError::Ttl);
        }
        let last = self.ca.cert().not_after;
        if now >= last {
            return Err(IssueError::Expired { not_after: last });
        }
        let whole = |at: UnixMillis| UnixMillis(at.0.div_euclid(1000) * 1000);
        Ok((
            whole(now.minus(LEAF_BACKDATE)),
            whole(now.plus(ttl).min(last)),
        ))
    }

    fn leaf_extensions(&self, spki: &[u8], order: &Order<'_>) -> Result<Vec<Extension>, X509Error> {
        let usage = KeyUsage(KeyUsages::DigitalSignature.into());
        let names = csr::alt_names(&order.names())?;
        let mut extensions = vec![
            x509::extension(
                &BasicConstraints {
                    ca: false,
                    path_len_constraint: None,
                },
                true,
            )?,
            x509::extension(&usage, true)?,
            x509::extension(&ExtendedKeyUsage(vec![SERVER_AUTH, CLIENT_AUTH]), false)?,
            // Critical, because the subject is empty (RFC 5280, 4.2.1.6).
            x509::extension(&names, true)?,
            x509::extension(&SubjectKeyIdentifier(octets(&x509::key_id(spki)?)?), false)?,
            x509::authority_key_id(self.ca.key_id())?,
        ];
        if let Some(url) = &self.urls.ocsp {
            let access = AccessDescription {
                access_method: OCSP_ACCESS,
                access_location: uri(url)?,
            };
            extensions.push(x509::extension(
                &AuthorityInfoAccessSyntax(vec![access]),
                false,
            )?);
        }
        if let Some(url) = &self.urls.crl {
            let point = DistributionPoint {
                distribution_point: Some(DistributionPointName::FullName(vec![uri(url)?])),
                reasons: None,
                crl_issuer: None,
            };
            extensions.push(x509::extension(&CrlDistributionPoints(vec![point]), false)?);
        }
        if order.must_staple {
            extensions.push(x509::raw_extension(
                x509::TLS_FEATURE,
                false,
                x509::MUST_STAPLE.to_vec(),
            )?);
        }
        Ok(extensions)
    }

    /// Issues a leaf that nobody gets, and verifies it against `roots` for both ends of a connection.
    pub(crate) fn probe(&self, roots: &Roots, now: UnixMillis) -> Result<(), IssueError> {
        let key = Key::generate(KeyKind::default())?;
        let workload = Workload::parse(&self.trust_domain, "phalanx", "probe", None)
            .map_err(|_| X509Error::Encode)?;
        let order = Order::new(
            &workload,
            Duration::from_secs(60),
            Attestation::Operator {
                name: "probe".into(),
            },
        );
        let issued = self.issue_to(key.spki(), &order, now)?;
        for role in [Role::Server, Role::Client] {
            let policy = Policy::new(role, Expected::ids([workload.id().clone()]));
            verifier::verify(
                &issued.chain,
                &[],
                roots,
                &Revocations::default(),
                &policy,
                now,
            )
            .map_err(|reason| IssueError::Probe {
                issuer: self.ca.cert().subject(),
                reason,
            })?;
        }
        Ok(())
    }

    /// What is sent after a leaf: this CA and those above it, without the root.
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        std::iter::once(self.ca.der().clone())
            .chain(self.above.iter().cloned())
            .collect()
    }

    pub fn ca(&self) -> &Arc<Ca> {
        &self.ca
    }

    pub fn roots(&self) -> &Roots {
        &self.roots
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    pub fn not_after(&self) -> UnixMillis {
        self.ca.cert().not_after
    }

    /// SHA-256 of its SubjectPublicKeyInfo, hex: how records, OCSP and CRLs name an issuer.
    pub fn key_hex(&self) -> String {
        x509::hex(&x509::sha256(&self.ca.cert().spki))
    }
}

fn uri(text: &str) -> Result<GeneralName, X509Error> {
    let text = Ia5String::new(text).map_err(|_| X509Error::Encode)?;
    Ok(GeneralName::UniformResourceIdentifier(text))
}

/// What a leaf is to be.
#[derive(Clone, Debug)]
pub struct Order<'a> {
    pub workload: &'a Workload,
    /// From now; cut to the issuer's own NotAfter.
    pub ttl: Duration,
    pub attested: Attestation,
    /// Peers must see a staple (RFC 7633).
    pub must_staple: bool,
    /// Host names and addresses for people's tools, which check them: of a control plane's own leaf only.
    pub hosts: &'a [Name],
}

fn check_hosts(order: &Order<'_>) -> Result<(), IssueError> {
    if !order.hosts.is_empty() && !order.workload.is_control() {
        let id = order.workload.id().to_string();
        return Err(IssueError::Hosts { id });
    }
    match order
        .hosts
        .iter()
        .find(|name| name.is_wildcard() || matches!(name, Name::Uri(_)))
    {
        Some(name) => Err(IssueError::Host {
            name: name.to_string(),
        }),
        None => Ok(()),
    }
}

impl<'a> Order<'a> {
    /// All names of the leaf.
    fn names(&self) -> Vec<Name> {
        let mut names = self.workload.names();
        let more = self.hosts.iter().filter(|name| !self.workload.owns(name));
        names.extend(more.cloned());
        names
    }

    pub fn new(workload: &'a Workload, ttl: Duration, attested: Attestation) -> Self {
        Self {
            workload,
            ttl,
            attested,
            must_staple: false,
            hosts: &[],
        }
    }
}

/// How a workload proved who it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "by")]
pub enum Attestation {
    JoinToken {
        id: String,
    },
    /// A certificate that was still valid: renewal.
    Certificate {
        serial: Serial,
    },
    ServiceAccount {
        subject: String,
    },
    /// Somebody with the right to do so.
    Operator {
        name: String,
    },
    /// The control plane, for itself.
    ControlPlane {
        name: String,
    },
}

/// A new leaf.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The leaf first, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    pub record: Issuance,
}

impl Issued {
    pub fn chain_pem(&self) -> String {
        x509::certs_to_pem(&self.chain)
    }
}

/// One line of the issuance log, which only grows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issuance {
    pub serial: Serial,
    pub id: SpiffeId,
    pub names: Vec<Name>,
    pub not_before: UnixMillis,
    pub not_after: UnixMillis,
    pub issued_at: UnixMillis,
    /// The serial of the issuing CA's certificate.
    pub issuer: Serial,
    /// SHA-256 of the issuing CA's SubjectPublicKeyInfo, hex.
    pub issuer_key: String,
    /// SHA-256 of the leaf, hex.
    pub fingerprint: String,
    pub attested: Attestation,
}

#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    #[error(transparent)]
    Csr(#[from] CsrError),
    #[error("this authority issues nothing for the trust domain `{asked}`")]
    TrustDomain { asked: TrustDomain },
    #[error("a leaf lives from 1s to {}h", LEAF_TTL_MAX.as_secs() / 3600)]
    Ttl,
    #[error("{id} is no control plane, so its leaf carries no host names")]
    Hosts { id: String },
    #[error("a leaf takes host names and addresses beside its own names, not {name}")]
    Host { name: String },
    #[error("the issuing CA expired at {not_after}")]
    Expired { not_after: UnixMillis },
    #[error("peers would refuse what `{issuer}` issues")]
    Probe {
        issuer: String,
        #[source]
        reason: Refusal,
    },
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error(transparent)]
    Roots(#[from] RootsError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    X509(#[from] X509Error),
}
