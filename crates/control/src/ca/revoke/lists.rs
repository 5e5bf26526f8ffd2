//! Revocation lists: made anew whenever the records of an issuer change, and at half of their life. Only a plane with the
//! issuer's key makes them; the store carries them to the others. Numbers grow over restarts and planes, for each list is
//! put in the place of the one before by compare-and-set, and grow too where the store was set back, for none is below the clock.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use phalanx_pki::clock::UnixMillis;
use phalanx_pki::issuer::Issuer;
use phalanx_pki::revocation::{self, CrlError, Link, Revocations, TOLD_MAX, build_crl};
use phalanx_pki::verifier::SKEW;
use phalanx_pki::x509;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use super::super::Ca;

/// From thisUpdate to nextUpdate. Peers of this mesh take a list past it still, others may not.
const VALIDITY: Duration = Duration::from_secs(24 * 3600);
/// How far another plane's clock may be ahead; peers take a minute.
const EARLY: Duration = Duration::from_secs(30);
/// How often a list is made again when another plane's came in between.
const TRIES: usize = 5;

/// The newest list of an issuer, signed by the control plane that has its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    pub number: u64,
    pub this_update: UnixMillis,
    pub next_update: UnixMillis,
    /// Of the issuer's certificate.
    not_after: UnixMillis,
    /// DER of the certificate whose key signed it.
    #[serde(with = "as_base64")]
    pub issuer: Vec<u8>,
    /// DER of the CRL.
    #[serde(with = "as_base64")]
    pub der: Vec<u8>,
    /// What it was made of: a digest of the records.
    content: u64,
}

impl List {
    pub(super) fn encode(&self) -> Vec<u8> {
        // Strings and numbers only: there is nothing that JSON has no words for.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// `None` for what no peer would take: one bad list would keep all others from being taken with it.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let list: Self = serde_json::from_slice(bytes).ok()?;
        let issuer = [CertificateDer::from(list.issuer.as_slice())];
        let read = Revocations::try_new(&[list.der.as_slice()], &issuer, list.this_update, SKEW);
        read.is_ok().then_some(list)
    }

    /// Nobody can ask for it any more: everything of its issuer has expired.
    pub(super) fn is_over(&self, now: UnixMillis) -> bool {
        self.not_after < now
    }

    fn is_due(&self, now: UnixMillis) -> bool {
        self.next_update.minus(VALIDITY / 2) <= now || self.is_early(now)
    }

    /// Made by a clock that was ahead. One such list would keep peers from taking any.
    fn is_early(&self, now: UnixMillis) -> bool {
        self.this_update > now.plus(EARLY)
    }
}

impl Ca {
    /// The newest list of every issuer of the mesh, this plane's and others', but for those that peers would not take yet.
    pub fn lists(&self) -> Vec<Arc<List>> {
        let (mut lists, now) = (self.revocation().lists(), self.now());
        lists.retain(|list| !list.is_early(now));
        lists
    }

    /// DER of the lists.
    pub fn crls(&self) -> Arc<[Vec<u8>]> {
        self.lists().iter().map(|list| list.der.clone()).collect()
    }

    /// The list of the issuer with this key: SHA-256 of its SubjectPublicKeyInfo, hex.
    pub fn crl(&self, issuer_key: &str) -> Option<Vec<u8>> {
        let list = self.revocation().list(issuer_key)?;
        Some(list.der.clone())
    }

    /// Which of this plane's issuers has no current list.
    pub fn overdue(&self) -> Option<String> {
        let now = self.now();
        let current =
            |key: &str| (self.revocation().list(key)).is_some_and(|list| now < list.next_update);
        let authority = self.authority();
        let mut living = authority.issuers().filter(|i| now < i.not_after());
        let without = living.find(|issuer| !current(&issuer.key_hex()))?;
        Some(format!(
            "the issuer {} has no current revocation list",
            without.key_hex()
        ))
    }

    /// Makes the lists of this plane's own issuers where they are not what they should be.
    pub(in crate::ca) async fn renew_lists(&self) {
        let (authority, now) = (self.authority(), self.now());
        let mut seen = BTreeSet::new();
        for issuer in authority.issuers().filter(|i| now < i.not_after()) {
            let key = issuer.key_hex();
            if !seen.insert(key.clone()) {
                continue;
            }
            match self.renew_list(issuer, &key, now).await {
                Ok(()) => self.revocation().well(&key),
                Err(error) => self.revocation().ails(&key, &error),
            }
        }
    }

    async fn renew_list(
        &self,
        issuer: &Issuer,
        key: &str,
        now: UnixMillis,
    ) -> Result<(), ListError> {
        for _ in 0..TRIES {
            let (list, at) = self.revocation().list_at(key);
            let (version, known) = self.revocation().content(key);
            let is_fresh = |content| {
                list.as_ref()
                    .is_some_and(|l| l.content == content && !l.is_due(now))
            };
            if known.is_some_and(is_fresh) {
                return Ok(());
            }
            let revoked = self.revocation().of_issuer(key);
            let content = digest(&revoked);
            self.revocation().learn(key, version, content);
            if is_fresh(content) {
                return Ok(());
            }
            let before = list.map_or(0, |l| l.number);
            let number = now.as_secs().max(before + 1);
            let der = build_crl(issuer.ca(), &revoked, number, now, VALIDITY)?;
            let list = List {
                number,
                this_update: now,
                next_update: now.plus(VALIDITY),
                not_after: issuer.not_after(),
                issuer: issuer.ca().der().to_vec(),
                der,
                content,
            };
            if self.revocation().put_list(key, list, at).await? {
                return Ok(());
            }
        }
        // Somebody else makes them: with the same key, so they say the same.
        Ok(())
    }

    /// Publishes what has changed since the last time: to this plane's own servers, and to whoever follows [`Ca::changes`].
    pub(in crate::ca) fn tell(&self) {
        if !self.revocation().take_untold() {
            return;
        }
        let old = self.own().revocations();
        let listed = self.listed(&old);
        let told = self.without_list(&listed);
        match listed.with_told(told) {
            Ok(fresh) => drop(self.own().publish_revocations(fresh)),
            Err(error) => tracing::error!(%error, "revocations without a list can't be told"),
        }
        self.tick();
    }

    /// What the lists say; `old` where they can't be taken.
    fn listed(&self, old: &Revocations) -> Revocations {
        let lists = self.lists();
        let ders: Vec<&[u8]> = lists.iter().map(|l| l.der.as_slice()).collect();
        if old.has_lists(&ders) {
            return old.clone();
        }
        let issuers: Vec<_> = lists
            .iter()
            .map(|l| CertificateDer::from(l.issuer.as_slice()))
            .collect();
        match Revocations::try_new(&ders, &issuers, self.now(), SKEW) {
            Ok(fresh) if !fresh.is_behind(old) => fresh,
            Ok(_) => {
                tracing::warn!("revocation lists in the store are older than those in force");
                old.clone()
            }
            Err(error) => {
                tracing::error!(%error, "the revocation lists can't be taken together");
                old.clone()
            }
        }
    }

    /// Who is revoked and on no list, because the plane that has the issuer's key is away; the latest first.
    fn without_list(&self, listed: &Revocations) -> Vec<Link> {
        let mut found = self.revocation().unlisted(listed, self.now());
        if found.len() > TOLD_MAX {
            let most = TOLD_MAX;
            tracing::error!(
                revoked = found.len(),
                most,
                "more are revoked than can be told while the control planes of their issuers are away"
            );
            found.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
            found.truncate(TOLD_MAX);
        }
        found.into_iter().map(|(_, link)| link).collect()
    }
}

mod as_base64 {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::ca::record::Der;

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        Der(bytes.to_vec()).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        Der::deserialize(deserializer).map(|der| der.0)
    }
}

/// Of what a list says, independent of when it is said.
fn digest(revoked: &[revocation::Revoked]) -> u64 {
    let mut text = Vec::new();
    for entry in revoked {
        text.extend(entry.serial.to_string().bytes());
        text.extend(entry.reason.as_str().bytes());
        text.extend(entry.at.0.to_be_bytes());
    }
    let [a, b, c, d, e, f, g, h, ..] = x509::fingerprint(&text);
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

#[derive(Debug, thiserror::Error)]
pub(in crate::ca) enum ListError {
    #[error("cannot make the revocation list of an issuer")]
    Make(#[from] CrlError),
    #[error("cannot store the revocation list of an issuer")]
    Store(#[from] phalanx_store::Error),
}
