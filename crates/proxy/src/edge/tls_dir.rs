//! Certificates that an edge shows, in a folder of files: `<name>/tls.crt` (the chain, leaf first) and `<name>/tls.key`, as
//! Kubernetes mounts a Secret. They are looked at again and again; a pair that is no good leaves the one before in use.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use phalanx_pki::key::Key;
use phalanx_pki::tls::provider;
use phalanx_pki::x509::certs_from_pem;
use rustls::client::verify_server_name;
use rustls::pki_types::ServerName;
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, version};
use tracing::{info, warn};

/// Between two looks at the files.
pub const LOOK: Duration = Duration::from_secs(1);
/// Of a file.
const BYTES_MAX: u64 = 1 << 20;
/// In the order of preference.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];
const CHAIN: &str = "tls.crt";
const KEY: &str = "tls.key";

/// Shared by the workers' handshakes and the task that looks.
#[derive(Debug, Default)]
pub struct TlsDir {
    /// None: there are no certificates.
    folder: Option<PathBuf>,
    /// Held for a look-up or while files are read; never by a handshake.
    made: Mutex<Made>,
}

#[derive(Debug, Default)]
struct Made {
    pairs: BTreeMap<String, Pair>,
    /// By the names of what they show, so that sessions live on from one plan to the next.
    servers: BTreeMap<Vec<String>, Arc<ServerConfig>>,
}

#[derive(Debug)]
struct Pair {
    shown: Arc<ArcSwap<CertifiedKey>>,
    /// As read last, good or not.
    text: Text,
}

type Text = (Vec<u8>, Vec<u8>);

impl TlsDir {
    pub fn new(folder: Option<PathBuf>) -> Arc<Self> {
        Arc::new(Self {
            folder,
            made: Mutex::default(),
        })
    }

    /// The receiving end that shows one of these certificates.
    ///
    /// # Errors
    /// A sentence that names the certificate and the file.
    pub fn server(&self, names: &[String]) -> Result<Arc<ServerConfig>, String> {
        let mut made = self.made();
        if let Some(server) = made.servers.get(names) {
            return Ok(server.clone());
        }
        let mut shown = Vec::with_capacity(names.len());
        for name in names {
            let known = made.pairs.get(name).map(|pair| pair.shown.clone());
            let pair = match known {
                Some(pair) => pair,
                None => {
                    let text = self.read(name)?;
                    let key = certified(name, &text)?;
                    let pair = Arc::new(ArcSwap::from_pointee(key));
                    let entry = Pair {
                        shown: pair.clone(),
                        text,
                    };
                    made.pairs.insert(name.clone(), entry);
                    pair
                }
            };
            shown.push(pair);
        }
        let config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&version::TLS13, &version::TLS12])
            .map_err(|error| error.to_string())?;
        let mut config = config
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Shown(shown)));
        config.alpn_protocols = PROTOCOLS.map(|name| name.into()).into();
        let server = Arc::new(config);
        made.servers.insert(names.to_vec(), server.clone());
        Ok(server)
    }

    /// Takes up what has changed in the files in use. Blocks.
    pub fn look(&self) {
        let mut made = self.made();
        for (name, pair) in &mut made.pairs {
            let text = match self.read(name) {
                Ok(text) if text != pair.text => text,
                _ => continue, // gone for a moment, or for good: what was there stays in use
            };
            match certified(name, &text) {
                Ok(key) => {
                    pair.shown.store(Arc::new(key));
                    info!(name, "certificate taken from files");
                }
                Err(error) => warn!(error, "a certificate can't be used, the one before stays"),
            }
            pair.text = text;
        }
    }

    fn read(&self, name: &str) -> Result<Text, String> {
        let Some(folder) = &self.folder else {
            return Err(format!(
                "certificate `{name}`: this edge has no folder of certificates (--tls-dir DIR)"
            ));
        };
        let folder = folder.join(name);
        let file = |path: PathBuf| {
            let text = read(&path);
            text.map_err(|error| format!("certificate `{name}`: {}: {error}", path.display()))
        };
        Ok((file(folder.join(CHAIN))?, file(folder.join(KEY))?))
    }

    fn made(&self) -> MutexGuard<'_, Made> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let mut file = fs::File::open(path)?.take(BYTES_MAX);
    file.read_to_end(&mut text)?;
    Ok(text)
}

/// Refuses a key that is not the leaf's.
fn certified(name: &str, (chain, key): &Text) -> Result<CertifiedKey, String> {
    let wrong = |error: &dyn std::fmt::Display| format!("certificate `{name}`: {error}");
    let chain = certs_from_pem(chain).map_err(|error| wrong(&error))?;
    let key = Key::from_pem(key).map_err(|error| wrong(&error))?;
    CertifiedKey::from_der(chain, key.to_der(), &provider()).map_err(|error| wrong(&error))
}

/// The first that is for the name, else the first, of those whose keys the caller can check.
#[derive(Debug)]
struct Shown(Vec<Arc<ArcSwap<CertifiedKey>>>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name();
        let fits =
            |key: &Arc<CertifiedKey>| key.key.choose_scheme(hello.signature_schemes()).is_some();
        let mut fitting = self.0.iter().map(|pair| pair.load_full()).filter(fits);
        let first = fitting.next()?;
        if self.0.len() == 1 || name.is_some_and(|name| is_for(&first, name)) {
            return Some(first);
        }
        let other = name.and_then(|name| fitting.find(|key| is_for(key, name)));
        Some(other.unwrap_or(first))
    }
}

fn is_for(key: &CertifiedKey, name: &str) -> bool {
    let leaf = key.cert.first().map(ParsedCertificate::try_from);
    let (Some(Ok(leaf)), Ok(name)) = (leaf, ServerName::try_from(name)) else {
        return false;
    };
    verify_server_name(&leaf, &name).is_ok()
}

#[cfg(test)]
mod tests;
