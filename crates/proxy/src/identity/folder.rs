//! The identity directory: `cert.pem`, `key.pem` (0600), `roots.pem` and `crls.pem`, always a set that belongs together
//! ([`phalanx_pki::files::write_set`]), so that others may read it too, and a restart needs nobody.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use phalanx_pki::clock::UnixMillis;
use phalanx_pki::credentials::{CERT_FILE, Credentials, CredentialsError, KEY_FILE, ROOTS_FILE};
use phalanx_pki::files::{self, Access};
use phalanx_pki::name::Workload;
use phalanx_pki::revocation::Revocations;
use phalanx_pki::roots::Roots;
use phalanx_pki::verifier::SKEW;
use phalanx_pki::x509;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use tracing::warn;

use super::chain;
use super::holding::owner;

/// Revocation lists, and the certificates of the CAs that signed them.
const CRLS_FILE: &str = "crls.pem";
/// Largest such file that is read.
const CRLS_BYTES_MAX: u64 = 64 * 1024 * 1024;

#[derive(Clone, Debug)]
pub struct Folder {
    dir: PathBuf,
    /// PEM, as it was last told; kept for the next time that the set is written.
    crls: String,
}

/// What a directory holds.
pub struct Stored {
    /// None when there is nothing at all.
    pub credentials: Result<Option<Credentials>, CredentialsError>,
    /// Whether or not the certificate is good.
    pub roots: Option<Roots>,
    pub revocations: Option<Revocations>,
}

impl Folder {
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            crls: String::new(),
        }
    }

    /// Reads what a life before has left.
    pub fn load(&mut self, own: &Workload, now: UnixMillis) -> Stored {
        let file = |name: &str| files::read(&self.dir.join(name), Access::Public);
        let credentials = match self.dir.join(CERT_FILE).symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            _ => self.credentials(own, now).map(Some),
        };
        let roots = file(ROOTS_FILE)
            .ok()
            .and_then(|pem| Roots::from_pem(&pem).ok());
        let crls = read_crls(&self.dir.join(CRLS_FILE));
        let revocations = crls.as_deref().and_then(|pem| {
            let parsed = parse_crls(pem.as_bytes(), now);
            parsed
                .inspect_err(|error| warn!(error, "the stored revocation lists can't be used"))
                .ok()
        });
        self.crls = crls.filter(|_| revocations.is_some()).unwrap_or_default();
        Stored {
            credentials,
            roots,
            revocations,
        }
    }

    fn credentials(
        &self,
        own: &Workload,
        now: UnixMillis,
    ) -> Result<Credentials, CredentialsError> {
        let pem = files::read(&self.dir.join(CERT_FILE), Access::Public)?;
        let own = owner(own, &x509::certs_from_pem(&pem)?);
        Credentials::load(&self.dir, &own, now)
    }

    /// What to write from now on beside the certificate.
    pub fn keep_crls(&mut self, crls: &[Vec<u8>], issuers: &[CertificateDer<'static>]) {
        let mut text = x509::certs_to_pem(issuers);
        for crl in crls {
            text.push_str(&x509::pem("X509 CRL", crl));
        }
        self.crls = text;
    }

    /// Replaces the whole set at once.
    ///
    /// # Errors
    /// [`CredentialsError`]; the set before stays.
    pub fn save(&self, credentials: &Credentials, roots: &Roots) -> Result<(), CredentialsError> {
        let (chain, key) = (credentials.chain_pem(), credentials.parts().key.to_pem()?);
        let roots = roots.to_pem();
        let set = [
            (CERT_FILE, chain.as_bytes(), Access::Public),
            (KEY_FILE, key.as_bytes(), Access::Private),
            (ROOTS_FILE, roots.as_bytes(), Access::Public),
            (CRLS_FILE, self.crls.as_bytes(), Access::Public),
        ];
        Ok(files::write_set(&self.dir, &set)?)
    }
}

fn read_crls(path: &Path) -> Option<String> {
    let mut text = String::new();
    let file = File::open(path).ok()?;
    file.take(CRLS_BYTES_MAX).read_to_string(&mut text).ok()?;
    (!text.is_empty()).then_some(text)
}

fn parse_crls(pem: &[u8], now: UnixMillis) -> Result<Revocations, String> {
    let crls: Vec<_> = CertificateRevocationListDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())?;
    let issuers = x509::certs_from_pem(pem).map_err(|error| error.to_string())?;
    Revocations::try_new(&crls, &issuers, now, SKEW).map_err(|error| chain(&error))
}
