//! What the operator of this very machine needs: `DATA/admin/roots.pem`, whom to trust, and `DATA/admin/token`, an
//! administrator's. Whoever can read that folder could read the keys of the authority beside it.

use std::path::{Path, PathBuf};

use phalanx_pki::files::{self, Access, FileError};
use phalanx_pki::roots::Roots;

use super::{Token, UserError, Users};

#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    User(#[from] UserError),
    #[error("{} holds no token of an administrator (remove it to have another one made)", path.display())]
    Token { path: PathBuf },
}

/// `DATA/admin`
#[derive(Clone, Debug)]
pub struct Local {
    dir: PathBuf,
}

impl Local {
    /// Made when it isn't there, for its owner only.
    ///
    /// # Errors
    /// [`LocalError::File`]
    pub fn at(dir: PathBuf) -> Result<Self, LocalError> {
        files::private_dir(&dir)?;
        let dir = dir.canonicalize().unwrap_or(dir);
        Ok(Self { dir })
    }

    pub fn roots(&self) -> PathBuf {
        self.dir.join(ROOTS)
    }

    pub fn token(&self) -> PathBuf {
        self.dir.join(TOKEN)
    }

    /// Takes the token that is there, or makes one, and knows its bearer as an administrator from now on.
    ///
    /// # Errors
    /// [`LocalError`]
    pub async fn install(&self, users: &Users, name: &str) -> Result<(), LocalError> {
        let token = match read(&self.token())? {
            Some(token) if token.name() == name => token,
            // Of this control plane under another name.
            _ => {
                let token = Token::random(name)?;
                files::write(
                    &self.token(),
                    format!("{token}\n").as_bytes(),
                    Access::Private,
                )?;
                token
            }
        };
        Ok(users.install(&token).await?)
    }

    /// # Errors
    /// [`LocalError::File`]
    pub fn write_roots(&self, roots: &Roots) -> Result<(), LocalError> {
        let pem = roots.to_pem();
        let there = files::read(&self.roots(), Access::Public);
        if there.is_ok_and(|there| there == pem.as_bytes()) {
            return Ok(());
        }
        Ok(files::write(&self.roots(), pem.as_bytes(), Access::Public)?)
    }
}

fn read(path: &Path) -> Result<Option<Token>, LocalError> {
    if !path.exists() {
        return Ok(None);
    }
    let bytes = files::read(path, Access::Private)?;
    let token = std::str::from_utf8(&bytes)
        .ok()
        .and_then(|text| text.parse().ok());
    token.map(Some).ok_or_else(|| LocalError::Token {
        path: path.to_owned(),
    })
}

const ROOTS: &str = "roots.pem";
const TOKEN: &str = "token";
