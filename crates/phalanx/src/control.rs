//! `control`: the control plane.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use phalanx_control::{ServeError, serve};
use phalanx_store::etcd::Credentials;
use phalanx_store::{Error, EtcdConfig};

use crate::exit::{Failure, Outcome};
use crate::signal;

#[derive(Args)]
pub struct Options {
    /// Where the state is kept: in a folder of its own, or in an etcd
    #[arg(long, value_name = "embedded|etcd://HOST:PORT[,HOST:PORT]", default_value = "embedded", value_parser = place)]
    store: serve::Place,
    /// User of the etcd
    #[arg(long, value_name = "NAME", requires = "store_password_file")]
    store_user: Option<String>,
    /// File with the password of that user
    #[arg(long, value_name = "FILE", requires = "store_user")]
    store_password_file: Option<PathBuf>,
    /// Folder of the embedded store
    #[arg(long, value_name = "DIR", default_value = "phalanx-data")]
    data: PathBuf,
    /// xDS and registry
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:15010")]
    xds: SocketAddr,
    /// Admin API and console
    #[arg(long, value_name = "HOST:PORT", default_value = phalanx_client::api::DEFAULT_ADMIN)]
    admin: SocketAddr,
    /// Names of the mesh (<service>.<namespace>.svc.mesh), over UDP and TCP
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:15053")]
    dns: SocketAddr,
    /// Take plain-text clients that do not prove who they are
    #[arg(long)]
    open: bool,
}

pub fn run(options: Options) -> Outcome {
    signal::start_log();
    let config = serve::Config {
        store: options.place()?,
        data: options.data,
        xds: options.xds,
        admin: options.admin,
        dns: Some(options.dns),
        open: options.open,
        ..serve::Config::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let runtime = runtime.map_err(|e| Failure::defect(format!("cannot start a runtime: {e}")))?;
    runtime
        .block_on(serve::run(config, signal::shutdown()))
        .map_err(|error| match error {
            ServeError::TaskEnded { .. } => Failure::defect(error),
            ServeError::Etcd {
                url,
                source: source @ Error::Unreachable { .. },
            } => Failure::unreachable(format!("the store at {url} cannot be used: {source}"))
                .hint("is etcd running there? the control plane needs it to start, not to go on"),
            error => Failure::from_error(error),
        })
}

impl Options {
    fn place(&self) -> Result<serve::Place, Failure> {
        let (user, file) = match (&self.store_user, &self.store_password_file) {
            (Some(user), Some(file)) => (user, file),
            _ => return Ok(self.store.clone()),
        };
        let serve::Place::Etcd(etcd) = &self.store else {
            return Err(Failure::usage(
                "--store-user is for --store etcd://…, the embedded store has no users",
            ));
        };
        let password = std::fs::read_to_string(file).map_err(|e| {
            Failure::file(format!(
                "cannot read the password in {}: {e}",
                file.display()
            ))
        })?;
        let credentials = Credentials {
            user: user.clone(),
            password: password.trim_end_matches(['\r', '\n']).into(),
        };
        Ok(serve::Place::Etcd(EtcdConfig {
            credentials: Some(credentials),
            ..etcd.clone()
        }))
    }
}

fn place(text: &str) -> Result<serve::Place, String> {
    match text {
        "embedded" => Ok(serve::Place::Embedded),
        url => EtcdConfig::parse(url)
            .map(serve::Place::Etcd)
            .map_err(|error| match error {
                Error::Invalid { problem } => problem,
                error => error.to_string(),
            }),
    }
}
