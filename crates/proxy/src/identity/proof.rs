//! What the first certificate is asked for by: the file of a join token, or of a service account's JWT, and the roots by
//! which the control plane is known before it has told any.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use phalanx_client::identity::Proof as Shown;
use phalanx_pki::files::{self, Access, FileError};
use phalanx_pki::jwt;
use phalanx_pki::roots::{Roots, RootsError};
use phalanx_pki::x509;
use tracing::warn;

use crate::config::Proof;

/// Longest line with a token.
const TOKEN_MAX: usize = jwt::TOKEN_MAX;
const PEM: &str = "-----BEGIN ";

/// All that joining takes.
#[derive(Debug)]
pub struct Bootstrap {
    pub proof: Shown,
    pub roots: Roots,
    /// SHA-256 of the token: which one it was, without holding it.
    pub fingerprint: [u8; 32],
}

impl Bootstrap {
    /// Reads the proof, and the roots: of `roots`, else of the token's file, else those that were `kept`.
    ///
    /// # Errors
    /// [`ProofError`]
    pub fn read(
        proof: &Proof,
        roots: Option<&Path>,
        kept: Option<Roots>,
    ) -> Result<Self, ProofError> {
        let (Proof::JoinToken(path) | Proof::ServiceAccount(path)) = proof;
        let text = read(path)?;
        let (token, pem) = text.split_at(text.find(PEM).unwrap_or(text.len()));
        let token = one_line(token).ok_or_else(|| ProofError::Token { path: path.clone() })?;
        let roots = match roots {
            Some(path) => roots_of(path, &read(path)?)?,
            None if !pem.is_empty() => roots_of(path, pem)?,
            None => kept.ok_or_else(|| ProofError::NoRoots { path: path.clone() })?,
        };
        let fingerprint = x509::fingerprint(token.as_bytes());
        let token = token.to_owned();
        let proof = match proof {
            Proof::JoinToken(_) => Shown::JoinToken(token),
            Proof::ServiceAccount(_) => Shown::ServiceAccount(token),
        };
        Ok(Self {
            proof,
            roots,
            fingerprint,
        })
    }
}

fn read(path: &Path) -> Result<String, ProofError> {
    let bytes = files::read(path, Access::Public)?;
    String::from_utf8(bytes).map_err(|_| ProofError::Token {
        path: path.to_owned(),
    })
}

fn roots_of(path: &Path, pem: &str) -> Result<Roots, ProofError> {
    Roots::from_pem(pem.as_bytes()).map_err(|source| ProofError::Roots {
        path: path.to_owned(),
        source,
    })
}

fn one_line(text: &str) -> Option<&str> {
    let text = text.trim();
    let is_token = |b: u8| b.is_ascii_graphic();
    (!text.is_empty() && text.len() <= TOKEN_MAX && text.bytes().all(is_token)).then_some(text)
}

/// Not refused: a shell wrote it, with whatever mask that has, and the token ends with its first use.
pub fn warn_if_open(proof: &Proof) {
    let Proof::JoinToken(path) = proof else {
        return;
    };
    let mode = path.metadata().map_or(0, |meta| meta.mode());
    if mode & 0o077 != 0 {
        warn!(file = %path.display(), mode = format!("{:o}", mode & 0o777), "others can read the join token (chmod 600)");
    }
}

/// What is wrong with what a sidecar is to join by.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{} does not start with one line that is a token", path.display())]
    Token { path: PathBuf },
    #[error("the roots in {} can't be used", path.display())]
    Roots {
        path: PathBuf,
        #[source]
        source: RootsError,
    },
    #[error(
        "by what roots to trust the control plane is not known: {} has none under its token, and no --roots FILE is given",
        path.display()
    )]
    NoRoots { path: PathBuf },
}
