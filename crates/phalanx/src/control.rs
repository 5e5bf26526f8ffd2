//! `control`: the control plane.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use phalanx_control::{ServeError, serve};
use phalanx_store::{Error, EtcdConfig};

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
    /// An etcd in which services register by themselves, by leased keys /services/<name>/<ip:port>; with --store etcd://… it
    /// is the same one unless said otherwise, and the access is the same
    #[arg(long, value_name = "none|etcd[s]://HOST:PORT[,HOST:PORT]", value_parser = services)]
    services: Option<Services>,
    /// Under which prefix they do
    #[arg(long, value_name = "PREFIX", default_value = phalanx_control::import::PREFIX)]
    services_prefix: String,
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
    /// Its name among several control planes over one etcd; made of the host's name and the port by default
    #[arg(long, value_name = "NAME")]
    plane: Option<String>,
    /// Take plain-text clients that do not prove who they are
    #[arg(long)]
    open: bool,
}

pub fn run(options: Options) -> Outcome {
    signal::start_log();
    let config = serve::Config {
        store: options.place()?,
        services: options.services()?,
        data: options.data,
        xds: options.xds,
        admin: options.admin,
        dns: Some(options.dns),
        open: options.open,
        plane: options.plane,
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

/// Where services that register themselves are looked for.
#[derive(Clone)]
enum Services {
    None,
    Etcd(Box<EtcdConfig>),
}

impl Options {
    fn services(&self) -> Result<Option<EtcdConfig>, Failure> {
        let etcd = match (&self.services, &self.store) {
            (Some(Services::None), _) | (None, serve::Place::Embedded) => return Ok(None),
            (Some(Services::Etcd(etcd)), _) => (**etcd).clone(),
            (None, serve::Place::Etcd(etcd)) => (**etcd).clone(),
        };
        if !self.services_prefix.ends_with('/') {
            return Err(Failure::usage("--services-prefix has to end with /"));
        }
        let mut etcd = self.access.apply(etcd)?;
        etcd.prefix = self.services_prefix.clone();
        Ok(Some(etcd))
    }

    fn place(&self) -> Result<serve::Place, Failure> {
        let is_for_services = matches!(self.services, Some(Services::Etcd(_)));
        match &self.store {
            serve::Place::Embedded if self.access.is_given() && !is_for_services => {
                Err(Failure::usage(
                    "--store-user, --store-ca and the like are for an etcd, the embedded store has neither users nor TLS",
                ))
            }
            serve::Place::Embedded => Ok(serve::Place::Embedded),
            serve::Place::Etcd(etcd) => self
                .access
                .apply((**etcd).clone())
                .map(|etcd| serve::Place::Etcd(Box::new(etcd))),
        }
    }
}

fn services(text: &str) -> Result<Services, String> {
    match text {
        "none" => Ok(Services::None),
        url => etcd::parse(url).map(|etcd| Services::Etcd(Box::new(etcd))),
    }
}

fn place(text: &str) -> Result<serve::Place, String> {
    match text {
        "embedded" => Ok(serve::Place::Embedded),
        url => etcd::parse(url).map(|etcd| serve::Place::Etcd(Box::new(etcd))),
    }
}
