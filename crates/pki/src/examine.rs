//! What is wrong with a certificate, for people: every check is made and named, where [`crate::verifier`] stops at the first
//! refusal. What files, a handshake and the authority's addresses gave goes in; findings with advice come out. Nobody is
//! let in by this room.

use std::fmt;
use std::time::Duration;

pub use rustls::pki_types::CertificateDer;
use serde::Serialize;
use x509_cert::Certificate;
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::pkix::name::{DistributionPointName, GeneralName};
use x509_cert::ext::pkix::{AuthorityInfoAccessSyntax, CrlDistributionPoints};
use x509_cert::spki::SubjectPublicKeyInfoRef;

use crate::clock::UnixMillis;
use crate::key::Key;
use crate::name::{Name, SpiffeId, Workload};
use crate::ocsp;
use crate::revocation::{Link, Listed, Revocations};
use crate::roots::Roots;
use crate::verifier::{self, Refusal, Role, SKEW};
use crate::x509::{self, CLIENT_AUTH, Cert, SERVER_AUTH, X509Error};

mod advice;
#[cfg(test)]
mod tests;

/// A leaf with less of its life left than this share of it, or than a day, should have been renewed by now.
const LATE_SHARE: u32 = 3;
const LATE_MAX: Duration = Duration::from_secs(86_400);
const OCSP_ACCESS: &str = "1.3.6.1.5.5.7.48.1";
const EC_KEY: &str = "1.2.840.10045.2.1";
const P256: &str = "1.2.840.10045.3.1.7";
const P384: &str = "1.3.132.0.34";
const RSA_KEY: &str = "1.2.840.113549.1.1.1";

/// What one certificate says, as people read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Description {
    /// Lower-case hex.
    pub serial: String,
    /// `None` where the names hold no SPIFFE id of the mesh's form.
    pub id: Option<String>,
    pub subject: String,
    pub issuer: String,
    /// `URI:…`, `DNS:…`, and the kinds of names that are neither.
    pub names: Vec<String>,
    /// Unix milliseconds.
    pub not_before_ms: i64,
    pub not_after_ms: i64,
    /// Such as `ECDSA P-256`.
    pub key: String,
    /// `server`, `client`.
    pub purposes: Vec<&'static str>,
    pub is_ca: bool,
    pub must_staple: bool,
    /// SHA-256 of its DER, hex.
    pub fingerprint: String,
    /// Where its issuer answers OCSP.
    pub ocsp_url: Option<String>,
    /// Where its issuer's revocation list is.
    pub crl_url: Option<String>,
}

impl Description {
    /// # Errors
    /// [`X509Error::Certificate`]
    pub fn of(der: &[u8]) -> Result<Self, X509Error> {
        let cert = Cert::parse(der)?;
        let raw = Certificate::from_der(der).map_err(|_| X509Error::Certificate)?;
        let others = cert.other_names.iter().map(|kind| (*kind).to_owned());
        let purposes = [(SERVER_AUTH, "server"), (CLIENT_AUTH, "client")];
        let has = |oid| cert.usages.as_ref().is_some_and(|u| u.contains(oid));
        Ok(Self {
            serial: cert.serial.to_string(),
            id: spiffe_id(&cert).map(|id| id.to_string()),
            subject: cert.subject(),
            issuer: cert.issuer(),
            names: cert
                .names
                .iter()
                .map(Name::to_string)
                .chain(others)
                .collect(),
            not_before_ms: cert.not_before.0,
            not_after_ms: cert.not_after.0,
            key: key_kind(&cert.spki),
            purposes: purposes
                .iter()
                .filter(|(oid, _)| has(oid))
                .map(|(_, name)| *name)
                .collect(),
            is_ca: cert.is_ca,
            must_staple: cert.must_staple,
            fingerprint: x509::hex(&x509::fingerprint(der)),
            ocsp_url: ocsp_url(&raw),
            crl_url: crl_url(&raw),
        })
    }
}

fn spiffe_id(cert: &Cert) -> Option<SpiffeId> {
    let mut uris = cert.names.iter().filter_map(|name| match name {
        Name::Uri(text) => Some(text),
        Name::Dns(_) | Name::Ip(_) => None,
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => uri.parse().ok(),
        _ => None,
    }
}

fn key_kind(spki: &[u8]) -> String {
    let Ok(spki) = SubjectPublicKeyInfoRef::try_from(spki) else {
        return "unreadable".to_owned();
    };
    let curve = spki.algorithm.parameters_oid().ok().map(|o| o.to_string());
    match (spki.algorithm.oid.to_string().as_str(), curve.as_deref()) {
        (EC_KEY, Some(P256)) => "ECDSA P-256".to_owned(),
        (EC_KEY, Some(P384)) => "ECDSA P-384".to_owned(),
        (EC_KEY, _) => "ECDSA on another curve".to_owned(),
        (RSA_KEY, _) => "RSA".to_owned(),
        (other, _) => format!("algorithm {other}"),
    }
}

fn ocsp_url(cert: &Certificate) -> Option<String> {
    let found = cert.tbs_certificate.get::<AuthorityInfoAccessSyntax>();
    let (_, access) = found.ok().flatten()?;
    let ocsp = access
        .0
        .iter()
        .find(|a| a.access_method.to_string() == OCSP_ACCESS)?;
    uri(&ocsp.access_location)
}

fn crl_url(cert: &Certificate) -> Option<String> {
    let found = cert.tbs_certificate.get::<CrlDistributionPoints>();
    let (_, points) = found.ok().flatten()?;
    points.0.iter().find_map(|p| match &p.distribution_point {
        Some(DistributionPointName::FullName(names)) => names.iter().find_map(uri),
        _ => None,
    })
}

fn uri(name: &GeneralName) -> Option<String> {
    match name {
        GeneralName::UniformResourceIdentifier(text) => Some(text.to_string()),
        _ => None,
    }
}

/// How somebody showed that the certificate's key is theirs.
#[derive(Clone, Copy, Debug)]
pub enum Possession<'a> {
    /// Nobody had to.
    NotAsked,
    /// The key lies beside the certificate.
    Key(&'a Key),
    /// A handshake was signed with it, or with another.
    Handshake { proven: bool },
}

/// An answer that was to be had from elsewhere.
#[derive(Clone, Debug)]
pub enum Answer<T> {
    NotAsked,
    /// Asked for, but there is none.
    Nothing,
    Failed(String),
    Got(T),
}

/// Everything that a certificate is judged by.
#[derive(Debug)]
pub struct Evidence<'a> {
    /// The leaf first.
    pub chain: &'a [CertificateDer<'static>],
    pub possession: Possession<'a>,
    pub roots: &'a Roots,
    pub expected: Option<&'a SpiffeId>,
    /// What came with the handshake, DER.
    pub staple: Answer<Vec<u8>>,
    /// What the issuer's responder said, DER.
    pub ocsp: Answer<Vec<u8>>,
    /// The issuer's revocation lists, DER.
    pub crls: Answer<Vec<Vec<u8>>>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// `chain`, `key`, `names`, `dates`, `purpose`, `staple`, `ocsp` or `crl`.
    pub check: &'static str,
    pub result: Verdict,
    pub detail: String,
    /// A stable word for a finding, of [`Refusal::as_str`] where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Ok,
    /// Works, but somebody should look.
    Warning,
    Failed,
    /// Not looked at, and why.
    Skipped,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "FAILED",
            Self::Skipped => "skipped",
        })
    }
}

/// Makes every check.
///
/// # Errors
/// [`X509Error::Certificate`] for a chain in which a certificate can't be read, or that has none.
pub fn examine(evidence: &Evidence<'_>, now: UnixMillis) -> Result<Vec<Check>, X509Error> {
    let certs: Vec<Cert> = evidence
        .chain
        .iter()
        .map(|der| Cert::parse(der))
        .collect::<Result<_, _>>()?;
    let leaf = certs.first().ok_or(X509Error::Certificate)?;
    let path = verifier::verify_path(evidence.chain, Role::Server, evidence.roots, now);
    Ok(vec![
        chain(evidence, leaf, path.as_ref().err().copied()),
        key(evidence, leaf),
        names(evidence, leaf),
        dates(&certs, evidence.roots, now),
        purpose(leaf),
        staple(evidence, leaf, now),
        ocsp(evidence, leaf, now),
        crl(evidence, &certs, now),
    ])
}

/// The request to ask a responder about a leaf, DER; `None` if its issuer is not among what is known.
pub fn ocsp_request(chain: &[CertificateDer<'static>], roots: &Roots) -> Option<Vec<u8>> {
    let leaf = Cert::parse(chain.first()?).ok()?;
    let issuer = signer(&leaf, chain, roots)?;
    ocsp::request(&subject(&leaf, &issuer)).ok()
}

fn chain(evidence: &Evidence<'_>, leaf: &Cert, refusal: Option<Refusal>) -> Check {
    const CHECK: &str = "chain";
    match refusal.filter(|r| belongs(*r) == CHECK) {
        None if refusal.is_some_and(|r| belongs(r) == "purpose") => {
            let text = "followed no further than the leaf, which is for something else";
            Check::new(CHECK, Verdict::Skipped, text)
        }
        None => {
            let top = evidence.roots.iter().map(|r| r.subject().to_owned());
            let is_root =
                |der: &&CertificateDer<'_>| evidence.roots.contains(&x509::fingerprint(der));
            let above = evidence.chain.iter().skip(1);
            let between = match above.filter(|der| !is_root(der)).count() {
                0 => "issued by".to_owned(),
                1 => "1 intermediate below".to_owned(),
                n => format!("{n} intermediates below"),
            };
            let roots = top.collect::<Vec<_>>().join(" or ");
            let text = format!("{between} {roots}");
            Check::new(CHECK, Verdict::Ok, text)
        }
        Some(Refusal::UnknownCa) => {
            let text = format!(
                "issued by `{}`, and leads to no root that is trusted here",
                leaf.issuer()
            );
            Check::refused(CHECK, Refusal::UnknownCa, text)
        }
        Some(other) => Check::refused(CHECK, other, other.to_string()),
    }
}

/// Which check a refusal of the verifier is about.
fn belongs(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::NoSpiffeId
        | Refusal::SeveralSpiffeIds
        | Refusal::WildcardName
        | Refusal::WrongTrustDomain
        | Refusal::WrongName => "names",
        Refusal::MissingClientEku | Refusal::MissingServerEku | Refusal::CaAsLeaf => "purpose",
        Refusal::Expired | Refusal::NotYetValid | Refusal::IssuerExpired => "dates",
        _ => "chain",
    }
}

fn key(evidence: &Evidence<'_>, leaf: &Cert) -> Check {
    const CHECK: &str = "key";
    let kind = key_kind(&leaf.spki);
    match evidence.possession {
        Possession::NotAsked => {
            let text = format!("{kind}; whether somebody holds it was not asked (--key FILE)");
            Check::new(CHECK, Verdict::Skipped, text)
        }
        Possession::Key(key) if key.spki() == leaf.spki => {
            Check::new(CHECK, Verdict::Ok, format!("{kind}, the one beside it"))
        }
        Possession::Key(_) => {
            let text = "the private key belongs to another certificate";
            Check::failed(CHECK, "key_mismatch", text, advice::KEY_MISMATCH)
        }
        Possession::Handshake { proven: true } => {
            Check::new(CHECK, Verdict::Ok, format!("{kind}, signed the handshake"))
        }
        Possession::Handshake { proven: false } => {
            Check::refused(CHECK, Refusal::BadProof, Refusal::BadProof.to_string())
        }
    }
}

fn names(evidence: &Evidence<'_>, leaf: &Cert) -> Check {
    const CHECK: &str = "names";
    let refused = |refusal: Refusal, text: String| Check::refused(CHECK, refusal, text);
    if let Some(name) = leaf.names.iter().find(|n| n.is_wildcard()) {
        return refused(Refusal::WildcardName, format!("has the wildcard {name}"));
    }
    let uris = leaf.names.iter().filter(|n| matches!(n, Name::Uri(_)));
    let Some(id) = spiffe_id(leaf) else {
        let refusal = match uris.count() {
            0 | 1 => Refusal::NoSpiffeId,
            _ => Refusal::SeveralSpiffeIds,
        };
        return refused(refusal, refusal.to_string());
    };
    if let Some(expected) = evidence.expected.filter(|e| **e != id) {
        let refusal = match expected.trust_domain == id.trust_domain {
            true => Refusal::WrongName,
            false => Refusal::WrongTrustDomain,
        };
        return refused(refusal, format!("is {id}, expected {expected}"));
    }
    match foreign(leaf, &id) {
        Some(name) => {
            let text = format!("has the name {name}, which {id} does not own");
            Check::failed(CHECK, "foreign_name", text, advice::FOREIGN_NAME)
        }
        None => Check::new(CHECK, Verdict::Ok, id.to_string()),
    }
}

/// A name that is neither the workload's nor its zone's. The control plane alone has names for people's tools.
fn foreign(leaf: &Cert, id: &SpiffeId) -> Option<String> {
    let service = &id.service;
    if service.namespace == "phalanx-system" && service.name == "control" {
        return None;
    }
    if let Some(kind) = leaf.other_names.first() {
        return Some((*kind).to_owned());
    }
    let zoned = |name: &Name| {
        let Name::Dns(text) = name else { return false };
        let label = text.strip_suffix(".internal").unwrap_or_default();
        let zone = label
            .strip_prefix(service.name.as_str())
            .and_then(|rest| rest.strip_prefix('-'));
        zone.is_some_and(|zone| {
            let workload = Workload::parse(
                &id.trust_domain,
                &service.namespace,
                &service.name,
                Some(zone),
            );
            workload.is_ok_and(|w| w.owns(name))
        })
    };
    let own = Workload::parse(&id.trust_domain, &service.namespace, &service.name, None);
    let is_own = |name: &Name| own.as_ref().is_ok_and(|w| w.owns(name)) || zoned(name);
    let found = leaf.names.iter().find(|name| !is_own(name));
    found.map(Name::to_string)
}

fn dates(certs: &[Cert], roots: &Roots, now: UnixMillis) -> Check {
    const CHECK: &str = "dates";
    for (depth, cert) in certs.iter().enumerate() {
        let (who, late, early) = match depth {
            0 => ("it".to_owned(), Refusal::Expired, Refusal::NotYetValid),
            _ => {
                let refusal = Refusal::IssuerExpired;
                (format!("`{}`", cert.subject()), refusal, refusal)
            }
        };
        if now.minus(SKEW) > cert.not_after {
            let text = format!("{who} expired at {}", cert.not_after);
            return Check::refused(CHECK, late, text);
        }
        if now.plus(SKEW) < cert.not_before {
            let text = format!("{who} is valid from {} on", cert.not_before);
            return Check::refused(CHECK, early, text);
        }
    }
    let over = |r: &&crate::roots::Root| now.minus(SKEW) > r.not_after();
    if let (Some(root), true) = (roots.iter().find(over), roots.iter().all(|r| over(&r))) {
        let text = format!(
            "the root `{}` expired at {}",
            root.subject(),
            root.not_after()
        );
        return Check::refused(CHECK, Refusal::IssuerExpired, text);
    }
    let Some(leaf) = certs.first() else {
        return Check::new(CHECK, Verdict::Skipped, "there is no certificate");
    };
    let (life, left) = (
        leaf.not_before.until(leaf.not_after),
        now.until(leaf.not_after),
    );
    let text = format!("good until {}, {} more", leaf.not_after, span(left));
    match is_late(life, left) {
        true => Check {
            reason: Some("renewal_due"),
            advice: Some(advice::RENEWAL_DUE.to_owned()),
            ..Check::new(CHECK, Verdict::Warning, text)
        },
        false => Check::new(CHECK, Verdict::Ok, text),
    }
}

/// Whether a certificate of such a life should have been renewed when only this is left of it.
pub fn is_late(life: Duration, left: Duration) -> bool {
    left < (life / LATE_SHARE).min(LATE_MAX)
}

/// `71h`, `12m`, `3s`: the largest unit, rounded down.
pub fn span(span: Duration) -> String {
    match span.as_secs() {
        secs @ 0..120 => format!("{secs}s"),
        secs @ 120..7200 => format!("{}m", secs / 60),
        secs @ 7200..345_600 => format!("{}h", secs / 3600),
        secs => format!("{}d", secs / 86_400),
    }
}

fn purpose(leaf: &Cert) -> Check {
    const CHECK: &str = "purpose";
    let has = |oid| leaf.usages.as_ref().is_some_and(|u| u.contains(oid));
    let missing = match (leaf.is_ca, has(&SERVER_AUTH), has(&CLIENT_AUTH)) {
        (true, ..) => Refusal::CaAsLeaf,
        (false, false, _) => Refusal::MissingServerEku,
        (false, true, false) => Refusal::MissingClientEku,
        (false, true, true) => {
            return Check::new(CHECK, Verdict::Ok, "both ends of a connection");
        }
    };
    Check::refused(CHECK, missing, missing.to_string())
}

fn staple(evidence: &Evidence<'_>, leaf: &Cert, now: UnixMillis) -> Check {
    const CHECK: &str = "staple";
    match &evidence.staple {
        Answer::NotAsked => {
            Check::new(CHECK, Verdict::Skipped, "there is no handshake with a file")
        }
        Answer::Nothing if leaf.must_staple => Check::refused(
            CHECK,
            Refusal::MissingStaple,
            "none was sent, and the certificate demands one".to_owned(),
        ),
        Answer::Nothing => Check::new(
            CHECK,
            Verdict::Skipped,
            "none was sent, and none is demanded",
        ),
        Answer::Failed(why) => Check::failed(CHECK, "bad_staple", why, advice::STAPLE),
        Answer::Got(bytes) => response(CHECK, evidence, leaf, bytes, now),
    }
}

fn ocsp(evidence: &Evidence<'_>, leaf: &Cert, now: UnixMillis) -> Check {
    const CHECK: &str = "ocsp";
    match &evidence.ocsp {
        Answer::NotAsked => Check::new(CHECK, Verdict::Skipped, "not asked (--offline)"),
        Answer::Nothing => Check::new(
            CHECK,
            Verdict::Skipped,
            "the certificate names no responder",
        ),
        Answer::Failed(why) => Check::failed(CHECK, "ocsp_unreachable", why, advice::OCSP),
        Answer::Got(bytes) => response(CHECK, evidence, leaf, bytes, now),
    }
}

fn response(
    check: &'static str,
    evidence: &Evidence<'_>,
    leaf: &Cert,
    bytes: &[u8],
    now: UnixMillis,
) -> Check {
    let Some(issuer) = signer(leaf, evidence.chain, evidence.roots) else {
        let text = "its issuer is not known, so the answer can't be checked";
        return Check::refused(check, Refusal::BadStaple, text.to_owned());
    };
    match ocsp::check_staple(bytes, &subject(leaf, &issuer), now, SKEW) {
        Ok(answer) => {
            let text = format!("good, says its issuer, until {}", answer.next_update);
            Check::new(check, Verdict::Ok, text)
        }
        Err(error) => {
            let text = error.to_string();
            // One that was asked for is stapled to nothing.
            let text = match check {
                "ocsp" => text.replace("stapled ", ""),
                _ => text,
            };
            Check::refused(check, Refusal::of_staple(error), text)
        }
    }
}

fn subject<'a>(leaf: &'a Cert, issuer: &'a Cert) -> ocsp::Subject<'a> {
    ocsp::Subject {
        serial: &leaf.serial,
        issuer: &leaf.issuer,
        issuer_spki: &issuer.spki,
    }
}

/// Whoever signed it, among what was sent and what is trusted.
fn signer(leaf: &Cert, chain: &[CertificateDer<'static>], roots: &Roots) -> Option<Cert> {
    let der = chain.first()?;
    let raw = Certificate::from_der(der).ok()?;
    let message = raw.tbs_certificate.to_der().ok()?;
    let known = chain.iter().skip(1).chain(roots.iter().map(|r| r.der()));
    let known = known.filter_map(|der| Cert::parse(der).ok());
    let signed = |cert: &Cert| {
        cert.subject == leaf.issuer
            && x509::verify_signature(
                &cert.spki,
                &raw.signature_algorithm,
                &message,
                &raw.signature,
            )
            .is_ok()
    };
    known.into_iter().find(signed)
}

fn crl(evidence: &Evidence<'_>, certs: &[Cert], now: UnixMillis) -> Check {
    const CHECK: &str = "crl";
    let lists = match &evidence.crls {
        Answer::NotAsked => return Check::new(CHECK, Verdict::Skipped, "not asked (--offline)"),
        Answer::Nothing => {
            return Check::new(CHECK, Verdict::Skipped, "the certificate names no list");
        }
        Answer::Failed(why) => return Check::failed(CHECK, "crl_unreachable", why, advice::CRL),
        Answer::Got(lists) => lists,
    };
    let issuers: Vec<CertificateDer<'_>> = evidence
        .chain
        .iter()
        .skip(1)
        .chain(evidence.roots.iter().map(|r| r.der()))
        .cloned()
        .collect();
    let tables = match Revocations::try_new(lists, &issuers, now, SKEW) {
        Ok(tables) => tables,
        Err(error) => return Check::failed(CHECK, "bad_crl", error.to_string(), advice::CRL),
    };
    for link in links(certs, evidence.roots) {
        match tables.ask(&link, now, SKEW) {
            Listed::Revoked => {
                let text = format!("serial {} is on its issuer's list", link.serial);
                return Check::refused(CHECK, Refusal::Revoked, text);
            }
            Listed::Stale => {
                let refusal = Refusal::StaleCrl;
                return Check::refused(CHECK, refusal, refusal.to_string());
            }
            Listed::No | Listed::NoList => {}
        }
    }
    let text = format!(
        "not on its issuer's list, which has {} serials",
        tables.len()
    );
    Check::new(CHECK, Verdict::Ok, text)
}

/// Each certificate of the chain with the key of the one above it.
fn links(certs: &[Cert], roots: &Roots) -> Vec<Link> {
    let above: Vec<Cert> = certs
        .iter()
        .skip(1)
        .cloned()
        .chain(roots.iter().filter_map(|r| Cert::parse(r.der()).ok()))
        .collect();
    let of = |cert: &Cert| {
        let signer = above.iter().find(|c| c.subject == cert.issuer)?;
        Some(Link {
            issuer_key: x509::sha256(&signer.spki),
            serial: cert.serial.clone(),
        })
    };
    certs.iter().filter_map(of).collect()
}

impl Check {
    fn new(check: &'static str, result: Verdict, detail: impl Into<String>) -> Self {
        Self {
            check,
            result,
            detail: detail.into(),
            reason: None,
            advice: None,
        }
    }

    fn refused(check: &'static str, refusal: Refusal, detail: String) -> Self {
        Self::failed(check, refusal.as_str(), detail, advice::of(refusal))
    }

    fn failed(
        check: &'static str,
        reason: &'static str,
        detail: impl Into<String>,
        advice: &str,
    ) -> Self {
        Self {
            reason: Some(reason),
            advice: Some(advice.to_owned()),
            ..Self::new(check, Verdict::Failed, detail)
        }
    }
}
