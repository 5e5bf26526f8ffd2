//! `control`: the control plane.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use phalanx_control::{ServeError, serve};

use crate::exit::{Failure, Outcome};
use crate::signal;

#[derive(Args)]
pub struct Options {
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
            error => Failure::from_error(error),
        })
}
