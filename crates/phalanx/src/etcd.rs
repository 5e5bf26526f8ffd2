//! How verbs reach an etcd: its address, who they are there, and whom they believe.

use std::path::{Path, PathBuf};

use clap::Args;
use phalanx_store::etcd::{Credentials, Tls};
use phalanx_store::{Error, EtcdConfig};

use crate::exit::Failure;

#[derive(Args, Clone)]
pub struct Access {
    /// User of the etcd
    #[arg(long, value_name = "NAME", requires = "store_password_file")]
    store_user: Option<String>,
    /// File with the password of that user
    #[arg(long, value_name = "FILE", requires = "store_user")]
    store_password_file: Option<PathBuf>,
    /// For etcds://: certificates (PEM) of the authority that signed etcd's own
    #[arg(long, value_name = "FILE")]
    store_ca: Option<PathBuf>,
    /// Client certificate (PEM) for an etcd that asks for one
    #[arg(long, value_name = "FILE", requires_all = ["store_key", "store_ca"])]
    store_cert: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, value_name = "FILE", requires = "store_cert")]
    store_key: Option<PathBuf>,
    /// The name in etcd's certificate, where it is not the host of its address
    #[arg(long, value_name = "NAME", requires = "store_ca")]
    store_server_name: Option<String>,
}

impl Access {
    pub fn is_given(&self) -> bool {
        self.store_user.is_some() || self.store_ca.is_some()
    }

    /// The configuration with what the files hold.
    pub fn apply(&self, mut etcd: EtcdConfig) -> Result<EtcdConfig, Failure> {
        if let (Some(user), Some(file)) = (&self.store_user, &self.store_password_file) {
            let password = String::from_utf8(read("the password", file)?).map_err(|_| {
                Failure::file(format!("the password in {} is no text", file.display()))
            })?;
            etcd.credentials = Some(Credentials {
                user: user.clone(),
                password: password.trim_end_matches(['\r', '\n']).into(),
            });
        }
        match (&mut etcd.tls, &self.store_ca) {
            (Some(tls), Some(ca)) => {
                *tls = Tls {
                    ca: read("the authority's certificate", ca)?,
                    identity: None,
                    server_name: self.store_server_name.clone(),
                };
                if let (Some(chain), Some(key)) = (&self.store_cert, &self.store_key) {
                    let chain = read("the client certificate", chain)?;
                    tls.identity = Some((chain, read("the client's key", key)?));
                }
            }
            (Some(_), None) => {
                return Err(Failure::usage(
                    "etcds:// needs --store-ca FILE: the certificate of the authority that signed etcd's own",
                ));
            }
            (None, Some(_)) => {
                return Err(Failure::usage(
                    "--store-ca is for etcds://…; etcd:// is plain text",
                ));
            }
            (None, None) => {}
        }
        Ok(etcd)
    }
}

/// For clap.
pub fn parse(url: &str) -> Result<EtcdConfig, String> {
    EtcdConfig::parse(url).map_err(|error| match error {
        Error::Invalid { problem } => problem,
        error => error.to_string(),
    })
}

/// An etcd that did not answer when it had to.
pub fn unreachable(url: &str, error: &Error) -> Failure {
    let text = error.to_string();
    let hint = if text.contains("certificate") {
        "what etcd showed is not from the authority in --store-ca, or not for that name; it may also want --store-cert"
    } else {
        "is etcd running there? the control plane needs it to start, not to go on"
    };
    Failure::unreachable(format!("the store at {url} cannot be used: {text}")).hint(hint)
}

fn read(what: &str, file: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(file)
        .map_err(|e| Failure::file(format!("cannot read {what} in {}: {e}", file.display())))
}
