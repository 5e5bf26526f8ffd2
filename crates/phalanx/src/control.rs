//! `control`: the control plane.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use phalanx_control::{ServeError, serve};
use phalanx_store::Error;

use crate::etcd::{self, Access};
use crate::exit::{Failure, Outcome};
use crate::signal;

#[derive(Args)]
pub struct Options {
    /// Where the state is kept: in a folder of its own, or in an etcd (etcds:// is over TLS)
    #[arg(long, value_name = "embedded|etcd[s]://HOST:PORT[,HOST:PORT]", default_value = "embedded", value_parser = place)]
    store: serve::Place,
    #[command(flatten)]
    access: Access,
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
            } => etcd::unreachable(&url, &source),
            error => Failure::from_error(error),
        })
}

impl Options {
    fn place(&self) -> Result<serve::Place, Failure> {
        match &self.store {
            serve::Place::Embedded if self.access.is_given() => Err(Failure::usage(
                "--store-user, --store-ca and the like are for --store etcd://…, the embedded store has neither users nor TLS",
            )),
            serve::Place::Embedded => Ok(serve::Place::Embedded),
            serve::Place::Etcd(etcd) => self.access.apply(etcd.clone()).map(serve::Place::Etcd),
        }
    }
}

fn place(text: &str) -> Result<serve::Place, String> {
    match text {
        "embedded" => Ok(serve::Place::Embedded),
        url => etcd::parse(url).map(serve::Place::Etcd),
    }
}
